//! Daily life: opening, paying, being paid.

use client::{Client, Error, Event, NewPayment, Outcome, Payee};
use futures::future::join_all;
use payhub_tests::town::{DEPOSIT, Disk, INBOUND, PATIENCE, Town, amount, event};
use proto::Scheme;
use std::sync::Arc;

/// The basic story, on whatever ledger the town stands on.
async fn a_channel_lives_from_opening_to_close(mut town: Town) {
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let (mut of_bob, mut of_alice) = (bob.events(), alice.events());
    let paid = alice.pay("bob", amount(250_000), usdh).note("tea").await.expect("paid");
    let note = event(&mut of_bob, |event| match event {
        Event::Received { amount: got, payments, .. } => Some((got, payments[0].note.clone())),
        _ => None,
    });
    assert_eq!(note.await, (amount(250_000), b"tea".as_slice().into()));
    let delivered = event(&mut of_alice, |event| match event {
        Event::Delivered { ids, .. } => Some(ids),
        _ => None,
    });
    assert_eq!(delivered.await, [paid.id]);
    assert_eq!(alice.resolve(paid.id).await.expect("runs"), Outcome::Paid);
    bob.pay("alice", amount(100_000), usdh).await.expect("the other way");
    town.received(&alice, 100_000).await;
    town.check_conservation().await;

    // A part is settled; the channel goes on.
    let before = town.dollars(bob.account()).await;
    let settled = bob.withdraw(usdh, amount(200_000)).await.expect("settled");
    assert_eq!(settled.member_withdrawn, amount(200_000));
    assert_eq!(town.dollars(bob.account()).await - before, 200_000);
    alice.pay("bob", amount(5), usdh).await.expect("paid after a settlement");
    town.received(&bob, 250_005).await;
    town.check_conservation().await;

    // Together they close at once.
    let (before, owed) = (town.dollars(bob.account()).await, bob.balance(usdh).await.expect("runs").available);
    bob.close(usdh).await.expect("closed");
    bob.is_final(usdh, PATIENCE).await.expect("final");
    assert_eq!(town.dollars(bob.account()).await - before, owed.get());
    let refused = alice.pay("bob", amount(5), usdh).await.expect_err("his account is closed");
    assert_eq!(refused.outcome(), Outcome::NotPaid, "{refused}");

    // Alone one leaves after the challenge period.
    town.stop_hub().await;
    let (before, owed) = (town.dollars(alice.account()).await, alice.balance(usdh).await.expect("runs").available);
    alice.close_unilateral(usdh).await.expect("begun");
    proven(&town, &alice).await;
    town.pass_period().await;
    alice.is_final(usdh, PATIENCE).await.expect("final");
    assert_eq!(town.dollars(alice.account()).await - before, owed.get());
    alice.shutdown().await.expect("stops");
    bob.shutdown().await.expect("stops");
}

/// Waits until everything that a member holds is posted at a close.
pub(crate) async fn proven(town: &Town, member: &Client) {
    let account = town.account(member.channel().await.expect("runs").expect("open"));
    let balance = member.balance(town.usdh()).await.expect("runs");
    town.until("the evidence is posted", || async move {
        let books = town.world().books(&account).await;
        books.member_paid >= balance.paid && books.hub_paid >= balance.received
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_lives_from_opening_to_close_on_the_embedded_ledger() {
    a_channel_lives_from_opening_to_close(Town::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_lives_from_opening_to_close_on_anvil() {
    a_channel_lives_from_opening_to_close(Town::anvil(0).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_lives_from_opening_to_close_with_two_confirmations() {
    a_channel_lives_from_opening_to_close(Town::anvil(2).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_payments_go_in_frames_and_each_has_a_result() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let alice = town.member(1, "alice").await;
    let bob = town.join(2, town.client(2, "bob").scheme(Scheme::Secp256k1)).await;
    let payee = bob.channel().await.expect("runs").expect("open");
    for (count, frame) in [(3_000, 64), (100, 1)] {
        let payments = (0..count).map(|_| NewPayment::new(payee, amount(10))).collect();
        let results = alice.pay_many(usdh, payments).frame(frame).timeout(PATIENCE).await.expect("runs");
        assert!(results.iter().all(Result::is_ok), "{:?}", results.iter().find(|r| r.is_err()));
    }
    town.received(&bob, 31_000).await;
    assert_eq!(alice.history(10_000).await.expect("runs").len(), 3_100);
    assert_eq!(bob.history(10_000).await.expect("runs").len(), 3_100);
    town.check_conservation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_paid_says_so_and_costs_nothing() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, _bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let before = alice.balance(usdh).await.expect("runs");
    let nobody = alice.pay("nobody", amount(1), usdh).await.expect_err("no such name");
    assert_eq!(nobody.outcome(), Outcome::NotPaid);
    let too_much = alice.pay("bob", amount(DEPOSIT + 1), usdh).await.expect_err("too much");
    assert!(matches!(too_much, Error::Pay(_)) && too_much.outcome() == Outcome::NotPaid, "{too_much:?}");
    let cheap = alice.pay("bob", amount(1_000_000), usdh).fee(amount(100)).await.expect_err("below the price");
    assert!(matches!(&cheap, Error::Refused { reason, .. } if reason == "FEE_TOO_LOW"), "{cheap:?}");
    assert_eq!(cheap.outcome(), Outcome::NotPaid);
    let after = alice.balance(usdh).await.expect("runs");
    assert_eq!((before.available, before.paid), (after.available, after.paid));
    alice.pay("bob", amount(1), usdh).await.expect("the lane goes on after refusals");
}

/// The price is `flat + ceil(amount * ppm / 1,000,000)`; what it brings is the hub's, and nobody else's.
#[tokio::test(flavor = "multi_thread")]
async fn fees_are_the_hubs_and_nothing_else_is() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let mut fees = 0;
    for (base_units, fee) in [(1, 2), (10_000, 2), (10_001, 3), (250_000, 26)] {
        let paid = alice.pay("bob", amount(base_units), usdh).await.expect("paid");
        assert_eq!(paid.fee, amount(fee), "for {base_units}");
        fees += fee;
    }
    let gift = alice.pay(Payee::Hub, amount(1_000), usdh).await.expect("paid to the hub");
    assert_eq!(gift.credit, 0, "no ledger redeems what the hub got itself");
    fees += gift.fee.get() + 1_000;
    town.received(&bob, 270_002).await;
    let status = town.hub().status().await.expect("runs");
    assert_eq!(status.assets[0].1.income, amount(fees));
    assert_eq!(alice.balance(usdh).await.expect("runs").paid, amount(270_002 + fees));
    town.check_conservation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collateral_comes_by_itself_when_a_payee_needs_it() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let mut unbacked = bob.events();
    alice.pay("bob", amount(2 * INBOUND), usdh).await.expect("refused at first, funded, then accepted");
    alice.pay("bob", amount(INBOUND / 2), usdh).await.expect("paid");
    town.received(&bob, (2 * INBOUND) + INBOUND / 2).await;
    let balance = bob.balance(usdh).await.expect("runs");
    assert!(balance.ledger.hub_deposit >= amount(2 * INBOUND + INBOUND / 2), "{balance:?}");
    assert_eq!(balance.unbacked, amount(0));
    let next = futures::FutureExt::now_or_never(event(&mut unbacked, |event| match event {
        Event::Unbacked { amount, .. } if !amount.is_zero() => Some(amount),
        _ => None,
    }));
    assert_eq!(next, None, "the hub never signs an unbacked credit");
    town.check_conservation().await;
}

/// Everybody pays everybody at once, on several lanes; what one pays another gets, to the last unit.
#[tokio::test(flavor = "multi_thread")]
async fn six_members_pay_each_other_at_once_and_money_is_conserved() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let mut members = Vec::new();
    for seed in 1..=6u8 {
        let scheme = if seed % 2 == 0 { Scheme::Ed25519 } else { Scheme::Secp256k1 };
        let program = town.client(seed, &format!("member-{seed}")).scheme(scheme);
        members.push(town.join(seed, program).await);
    }
    let channels: Vec<_> =
        join_all(members.iter().map(|m| async { m.channel().await.expect("runs").expect("open") })).await;
    let paying = members.iter().zip(&channels).flat_map(|(member, me)| {
        let channels = &channels;
        (0..3u32).map(move |lane| {
            let others = channels.iter().filter(move |payee| *payee != me).cycle().take(50);
            let payments = others.map(|payee| NewPayment::new(*payee, amount(7 + u128::from(lane)))).collect();
            async move { member.pay_many(usdh, payments).lane(lane).frame(7).timeout(PATIENCE).await }
        })
    });
    for results in join_all(paying).await {
        for result in results.expect("runs") {
            result.expect("paid");
        }
    }
    // Each of five payers pays each of the others ten times on each lane.
    for member in &members {
        town.received(member, 5 * 10 * (7 + 8 + 9)).await;
        let balance = member.balance(usdh).await.expect("runs");
        assert_eq!(balance.paid, amount(150 * 2 + 50 * (7 + 8 + 9)), "fees are two units each");
        assert_eq!(balance.unreceipted, amount(0));
    }
    assert_eq!(town.hub().status().await.expect("runs").payments, 900);
    town.check_conservation().await;
    // What the books say is what the ledger pays.
    for member in &members {
        let (before, owed) =
            (town.dollars(member.account()).await, member.balance(usdh).await.expect("runs").available);
        member.close(usdh).await.expect("closed");
        assert_eq!(town.dollars(member.account()).await - before, owed.get());
    }
    let status = town.hub().status().await.expect("runs");
    assert_eq!(status.alarms, Vec::<String>::new());
}

/// The payee acknowledges while the payer's program is away; the payer learns it when he comes back.
#[tokio::test(flavor = "multi_thread")]
async fn delivery_is_told_to_a_payer_who_was_away() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let disk = Disk::default();
    let program = |name: &str, seed: u8, disk: &Disk| {
        town.client(seed, name).store_on(Arc::new(disk.backend.clone()), Box::new(disk.index.clone()))
    };
    let alice = town.join(1, program("alice", 1, &disk)).await;
    let carol = town.member(3, "carol").await;
    let of_bob = Disk::default();
    let bob = town.join(2, program("bob", 2, &of_bob)).await;
    let payee = bob.channel().await.expect("runs").expect("open");
    bob.shutdown().await.expect("stops");
    let first = alice.pay(payee, amount(10), usdh).await.expect("paid");
    carol.pay(payee, amount(20), usdh).await.expect("paid");
    let second = alice.pay(payee, amount(30), usdh).await.expect("paid");
    alice.shutdown().await.expect("stops");
    let mut of_carol = carol.events();
    let bob = program("bob", 2, &of_bob).connect().await.expect("connects");
    event(&mut of_carol, |event| matches!(event, Event::Delivered { .. }).then_some(())).await;
    town.received(&bob, 60).await;

    let alice = program("alice", 1, &disk).connect().await.expect("connects");
    let town = &town;
    let (alice, ids) = (&alice, [first.id, second.id]);
    town.until(
        "both are delivered",
        || async move { alice.balance(usdh).await.expect("runs").undelivered == amount(0) },
    )
    .await;
    for id in ids {
        assert_eq!(alice.resolve(id).await.expect("runs"), Outcome::Paid);
    }
    assert_eq!(alice.balance(usdh).await.expect("runs").paid.get(), 40 + 4);
}
