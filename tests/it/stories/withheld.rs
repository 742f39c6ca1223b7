//! A hub that takes the debit and withholds the credit. *Accepted* and *delivered* are two things: the payer has the hub's
//! receipt and no word of the payee, and the receipt is enough for the ledger to pay the payee.

use std::sync::{Arc, Mutex};

use client::Event;
use dispute::{Claim, CloseOrder, Evidence, FinalizeOrder, RespondOrder, Status};
use futures::StreamExt;
use payhub_tests::town::{DEPOSIT, INBOUND, Town, amount};

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_payment_that_is_never_delivered_is_paid_by_the_receipt_up_to_the_collateral() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let alice = town.member(1, "alice").await;
    let bob = town.join(2, town.client(2, "bob").without_watchtower()).await;
    alice.pay("bob", amount(1_000), usdh).await.expect("paid");
    town.received(&bob, 1_000).await;
    let of_alice = &alice;
    town.until("the first is delivered", || async move {
        of_alice.balance(usdh).await.expect("runs").undelivered.is_zero()
    })
    .await;
    let channel = bob.channel().await.expect("runs").expect("open");
    let (terms, payout) = (bob.terms().await.expect("runs").expect("open"), bob.account());
    let knows = bob.evidence(usdh).await.expect("runs").expect("an account");
    bob.shutdown().await.expect("goes offline");

    // The hub accepts what it never tells him of: all of its collateral for him.
    let mut events = alice.events();
    let delivered = Arc::new(Mutex::new(Vec::new()));
    let heard = delivered.clone();
    let listening = tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if let Event::Delivered { ids, .. } = event {
                heard.lock().expect("nobody panics").extend(ids);
            }
        }
    });
    let late = amount(INBOUND - 1_000);
    let paid = alice.pay(channel, late, usdh).await.expect("accepted: the receipt is verified and durable");
    assert!(paid.credit > 0, "it names the credit of his account");
    // His account has no collateral left: more than it backs is not even accepted, so no receipt is worth less than it says.
    let beyond = alice.pay(channel, amount(INBOUND), usdh).timeout(std::time::Duration::from_millis(300)).await;
    assert_eq!(beyond.expect_err("not backed").outcome(), client::Outcome::NotPaid);
    assert_eq!(alice.balance(usdh).await.expect("runs").undelivered, late, "accepted, not delivered");
    assert!(!delivered.lock().expect("nobody panics").contains(&paid.id));
    town.kill_hub().await;

    // Alice hands Bob the receipt, by mail if need be. The hub's operator closes Bob's account and posts nothing.
    let receipts = alice.receipts().await.expect("runs");
    let [(of_bob, receipt)] = &receipts[..] else { panic!("one payee, one receipt: {receipts:?}") };
    assert_eq!((of_bob, receipt.body().channelId), (&terms, channel.0));
    assert_eq!((receipt.body().amount, receipt.body().total), (late.get(), INBOUND));
    alice.shutdown().await.expect("stops: nobody but Bob posts it");
    listening.abort();
    assert!(!delivered.lock().expect("nobody panics").contains(&paid.id), "never delivered");
    let before = town.dollars(payout).await;
    let adjudicator = town.chain().adjudicator();
    town.send_as_hub(adjudicator.start_close(&CloseOrder { terms: terms.clone(), asset: usdh, request: None })).await;
    let account = town.account(channel);
    let hub_paid = async || town.world().books(&account).await.hub_paid;
    // By what he knew himself he would get a thousandth of it.
    let mut evidence = Evidence::new(account);
    evidence.add(Claim::Hub(knows.hub.expect("the hub's voucher"))).expect("his");
    town.send_as(2, adjudicator.respond(&RespondOrder { terms: terms.clone(), evidence })).await;
    assert_eq!(hub_paid().await, amount(1_000));
    let mut evidence = Evidence::new(account);
    evidence.add(Claim::Receipt(receipt.clone())).expect("his");
    town.send_as(2, adjudicator.respond(&RespondOrder { terms: terms.clone(), evidence })).await;
    assert_eq!(hub_paid().await, amount(INBOUND));
    town.pass_period().await;
    town.send_as(2, adjudicator.finalize(&FinalizeOrder { terms, asset: usdh })).await;
    let books = town.world().books(&account).await;
    assert_eq!((books.status, books.hub_withdrawn), (Status::Final, amount(books.hub_deposit.get() - INBOUND)));
    assert_eq!(town.dollars(payout).await - before, DEPOSIT + INBOUND);
}
