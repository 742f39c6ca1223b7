//! The withholding hub: takes a payment, gives the receipt, and never tells the payee.

use std::sync::Arc;

use dispute::{CloseOrder, Status};
use payhub_tests::town::{DEPOSIT, Disk, FAKE_HUB, Town, account_of, amount};
use proto::frame::payments_hash;
use proto::typed::Receipt;
use proto::wire::v1::hub_message::Kind;
use proto::wire::{self, v1};

use super::fake_hub::{FakeHub, channel_of, opening};

/// The payee knows nothing of the payment; his account closes, and the payer's program posts the receipt: the ledger
/// pays it.
async fn withheld_credit(payer_is_away: bool) {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let mut hub = FakeHub::start(&town).await;
    let (disk, url) = (Disk::default(), hub.url());
    let program =
        || town.client(21, "").store_on(Arc::new(disk.backend.clone()), Box::new(disk.index.clone())).hub(url.clone());
    let (alice, _, mut session) = hub.admit_with(&town, 21, program()).await;
    let (bob, _) = town.open_with(22, account_of(FAKE_HUB).address(), &hub.key).await;
    hub.fund(&town, &bob, 10_000).await;
    let payee = channel_of(&town, &bob);
    let paying = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.pay(payee, amount(700), usdh).await })
    };
    let frame = session.frame().await;
    let (sum, rows) = opening(&frame);
    let receipt = hub.receipt(Receipt {
        channelId: payee.0,
        asset: usdh,
        credit: 1,
        amount: sum.get(),
        total: sum.get(),
        payments: payments_hash(&rows),
    });
    let asset = wire::bytes_of(usdh);
    let accepted = v1::Accepted { flush: 1, asset, tags: vec![frame.tag], receipts: vec![receipt], ticks: vec![] };
    session.send(Kind::Accepted(accepted)).await;
    paying.await.expect("runs").expect("the receipt proves it");
    assert_eq!(alice.balance(usdh).await.expect("runs").undelivered, amount(700), "nobody acknowledged");

    // The hub closes the payee's account, with no voucher for him in the world; the payer may learn it late.
    if payer_is_away {
        alice.shutdown().await.expect("stops");
    }
    let before = town.dollars(bob.member).await;
    let close = CloseOrder { terms: bob.clone(), asset: usdh, request: None };
    town.send_as(FAKE_HUB, town.chain().adjudicator().start_close(&close)).await;
    let account = town.account(payee);
    let _later = match payer_is_away {
        true => Some(program().connect().await.expect("the hub need not answer")),
        false => None,
    };
    let town = &town;
    town.until(
        "the payer posts the receipt",
        || async move { town.world().books(&account).await.hub_paid == amount(700) },
    )
    .await;
    town.pass_period().await;
    let finalize = dispute::FinalizeOrder { terms: bob.clone(), asset: usdh };
    town.send_as(22, town.chain().adjudicator().finalize(&finalize)).await;
    assert_eq!(town.world().books(&account).await.status, Status::Final);
    assert_eq!(town.dollars(bob.member).await - before, DEPOSIT + 700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withheld_credit_is_paid_by_its_receipt() {
    withheld_credit(false).await;
}

/// A close that began while the payer's program was away is found when it starts.
#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_is_posted_by_a_payer_who_comes_back_before_the_deadline() {
    withheld_credit(true).await;
}
