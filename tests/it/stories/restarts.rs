//! Programs that are stopped and started, with the right store or an old one.

use std::sync::Arc;
use std::time::Duration;

use client::{Error, Outcome};
use futures::future::join_all;
use payhub_tests::town::{Disk, PATIENCE, Town, amount};
use storage::Crash;

use super::paying::proven;

fn on(program: client::Builder, disk: &Disk) -> client::Builder {
    program.store_on(Arc::new(disk.backend.clone()), Box::new(disk.index.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn hub_and_member_restart_under_load_and_every_payment_is_made_once() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let folder = tempfile::tempdir().expect("a folder");
    let program = |town: &Town| town.client(1, "alice").store(folder.path().join("alice"));
    let alice = town.join(1, program(&town)).await;
    let bob = town.member(2, "bob").await;
    for i in 0..5 {
        alice.pay("bob", amount(1_000 + i), usdh).await.expect("paid");
    }
    let before = alice.balance(usdh).await.expect("runs");
    alice.shutdown().await.expect("stops");
    let alice = program(&town).connect().await.expect("connects");
    alice.connected(PATIENCE).await.expect("a session");
    assert_eq!(alice.balance(usdh).await.expect("runs").available, before.available);
    assert_eq!(alice.history(100).await.expect("runs").len(), 5);

    let payer = alice.payer("bob", usdh).await.expect("known");
    let mut tickets = Vec::new();
    for i in 0..300u32 {
        tickets.push(payer.pay(amount(3), []).expect("there is room"));
        match i {
            100 => town.stop_hub().await,
            200 => town.start_hub().await,
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    for result in tokio::time::timeout(PATIENCE, join_all(tickets)).await.expect("answered") {
        result.expect("paid, now or after the restart");
    }
    assert_eq!(alice.history(1_000).await.expect("runs").len(), 305);
    town.received(&bob, 5_010 + 900).await;
    assert_eq!(town.hub().status().await.expect("runs").payments, 305);
    town.check_conservation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_without_an_answer_is_unknown_until_the_hub_is_back() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    alice.pay("bob", amount(10), usdh).await.expect("paid");
    town.received(&bob, 10).await;
    town.kill_hub().await;
    let late = alice.pay("bob", amount(9), usdh).timeout(Duration::from_millis(100)).await.expect_err("nobody answers");
    let expected = match late {
        Error::Unanswered { id } => {
            assert_eq!(late.outcome(), Outcome::Unknown);
            assert_eq!(alice.resolve(id).await.expect("runs"), Outcome::Unknown, "the hub is silent");
            Some(id)
        }
        Error::TimedOut { .. } => None,
        other => panic!("another failure: {other}"),
    };
    town.start_hub().await;
    alice.connected(PATIENCE).await.expect("a session");
    if let Some(id) = expected {
        let alice = &alice;
        town.until("an outcome", || async move { alice.resolve(id).await.expect("runs") == Outcome::Paid }).await;
        town.received(&bob, 19).await;
    }
    alice.pay("bob", amount(1), usdh).await.expect("paid");
    town.check_conservation().await;
}

/// A member's store from yesterday: the hub shows the member's own newer signatures, and he goes on from there. What he
/// may have signed since and forgot keeps him from settling for a while, never from leaving.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_store_adopts_its_own_newer_signatures_and_waits_before_it_settles() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let disk = Disk::default();
    let alice = town.join(1, on(town.client(1, "alice"), &disk)).await;
    let bob = town.member(2, "bob").await;
    for i in 0..5 {
        alice.pay("bob", amount(1_000 + i), usdh).await.expect("paid");
    }
    bob.pay("alice", amount(77), usdh).await.expect("paid");
    town.received(&alice, 77).await;
    let yesterday = disk.crash(Crash::Lost, 1);
    for i in 0..3 {
        alice.pay("bob", amount(2_000 + i), usdh).await.expect("paid");
    }
    let right = alice.balance(usdh).await.expect("runs");
    alice.shutdown().await.expect("stops");
    let alice = on(town.client(1, "alice"), &yesterday).connect().await.expect("connects");
    alice.connected(PATIENCE).await.expect("a session");
    let adopted = alice.balance(usdh).await.expect("runs");
    assert_eq!((adopted.available, adopted.paid), (right.available, right.paid));
    let declined = alice.withdraw(usdh, amount(5)).await.expect_err("the store was old");
    assert!(matches!(declined, Error::Declined(_)), "{declined:?}");
    alice.pay("bob", amount(3_000), usdh).await.expect("pays on");
    town.received(&bob, 5_010 + 6_003 + 3_000).await;
    town.stop_hub().await;
    let (before, owed) = (town.dollars(alice.account()).await, alice.balance(usdh).await.expect("runs").available);
    alice.close_unilateral(usdh).await.expect("begun");
    proven(&town, &alice).await;
    town.pass_period().await;
    alice.is_final(usdh, PATIENCE).await.expect("final");
    assert_eq!(town.dollars(alice.account()).await - before, owed.get());
}

/// The hub closes in order, from its own operator's call: the member's own tower answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_by_the_hub_is_answered_by_the_members_own_tower() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    alice.pay("bob", amount(10_000), usdh).await.expect("paid");
    bob.pay("alice", amount(4_000), usdh).await.expect("paid");
    town.received(&bob, 10_000).await;
    let account = town.account(bob.channel().await.expect("runs").expect("open"));
    let (before, owed) = (town.dollars(bob.account()).await, bob.balance(usdh).await.expect("runs").available);
    town.hub().start_close(account).await.expect("begun");
    proven(&town, &bob).await;
    town.pass_period().await;
    bob.is_final(usdh, PATIENCE).await.expect("final");
    assert_eq!(town.dollars(bob.account()).await - before, owed.get());
    town.check_conservation().await;
    town.stop_hub().await;
}
