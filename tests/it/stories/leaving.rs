//! How money comes out: with the hub, without it, and against it.

use std::sync::atomic::{AtomicBool, Ordering};

use client::{Error, Outcome};
use dispute::watchtower::{Alarm, Save, Tower, TowerHost, run_tower, tower_channel};
use dispute::{Claim, CloseOrder, CursorState, FinalizeOrder, Submitter, SubmitterConfig};
use futures::future::join;
use payhub_tests::chains::Person;
use payhub_tests::town::{DEPOSIT, PATIENCE, POLL, Town, amount};

use super::paying::proven;

/// What an offline member is paid whose hub closes behind its own back, so that neither its tower nor its program posts
/// anything for him. He had received 300,000.
async fn payout_of_an_offline_member(watched: bool) -> u128 {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let alice = town.member(1, "alice").await;
    let bob = town.join(2, town.client(2, "bob").without_watchtower()).await;
    alice.pay("bob", amount(300_000), usdh).await.expect("paid");
    town.received(&bob, 300_000).await;
    let terms = bob.terms().await.expect("runs").expect("open");
    let account = town.account(bob.channel().await.expect("runs").expect("open"));
    let evidence = bob.evidence(usdh).await.expect("runs").expect("an account");
    let payout = bob.account();
    bob.shutdown().await.expect("goes offline");
    alice.shutdown().await.expect("stops");
    town.stop_hub().await;

    // The tower has gas and no key that moves money of the channel; it never talks to the member again.
    let guard =
        Submitter::new(town.chain().clone(), vec![town.world().key(Person::Crony).clone()], SubmitterConfig::local());
    let (handle, requests) = tower_channel();
    let (tower, start) = (Tower::new(*town.chain().domain()), CursorState::from_block(0));
    let tower = tokio::spawn(run_tower(tower, start, town.chain().clone(), guard, POLL, Forgetful, requests));
    if watched {
        handle.watch(terms.clone(), usdh).await.expect("watched");
        handle.offer(Claim::Hub(evidence.hub.expect("the hub's voucher"))).await.expect("taken");
    }
    let before = town.dollars(payout).await;
    let adjudicator = town.chain().adjudicator();
    town.send_as_hub(adjudicator.start_close(&CloseOrder { terms: terms.clone(), asset: usdh, request: None })).await;
    if watched {
        let town = &town;
        town.until(
            "the tower's response",
            || async move { town.world().books(&account).await.hub_paid == amount(300_000) },
        )
        .await;
    }
    town.pass_period().await;
    if watched {
        let town = &town;
        town.until("the tower's payout", || async move {
            town.world().books(&account).await.status == dispute::Status::Final
        })
        .await;
    } else {
        town.send_as_hub(adjudicator.finalize(&FinalizeOrder { terms, asset: usdh })).await;
    }
    tower.abort();
    town.dollars(payout).await - before
}

struct Forgetful;

impl TowerHost for Forgetful {
    fn save(&mut self, _: &Save) -> Result<(), String> {
        Ok(())
    }

    fn alarm(&mut self, alarm: &Alarm) {
        panic!("nothing here is alarming: {alarm}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchtower_gets_everything_for_a_member_who_is_away() {
    assert_eq!(payout_of_an_offline_member(true).await, DEPOSIT + 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_watchtower_only_what_nobody_posted_is_lost() {
    assert_eq!(payout_of_an_offline_member(false).await, DEPOSIT);
}

/// The hub's tower posts what a leaving member paid, the member's own what he received; none needs the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_leaves_while_the_hub_is_dead() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    alice.pay("bob", amount(400_000), usdh).await.expect("paid");
    bob.pay("alice", amount(150_000), usdh).await.expect("paid");
    town.received(&alice, 150_000).await;
    town.received(&bob, 400_000).await;
    town.kill_hub().await;
    let unknown = alice.pay("bob", amount(1), usdh).timeout(std::time::Duration::from_millis(50)).await;
    assert_ne!(unknown.expect_err("the hub is dead").outcome(), Outcome::Paid);
    for member in [&alice, &bob] {
        let owed = member.balance(usdh).await.expect("runs");
        let before = town.dollars(member.account()).await;
        member.close_unilateral(usdh).await.expect("begun");
        proven(&town, member).await;
        town.pass_period().await;
        member.is_final(usdh, PATIENCE).await.expect("final");
        assert_eq!(town.dollars(member.account()).await - before, owed.available.get());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_to_a_closing_payee_are_refused() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    alice.pay("bob", amount(1_000), usdh).await.expect("paid");
    town.received(&bob, 1_000).await;
    bob.close_unilateral(usdh).await.expect("begun");
    let town = &town;
    let account = town.account(bob.channel().await.expect("runs").expect("open"));
    let alice = &alice;
    town.until("the hub refuses", || async move {
        match alice.pay("bob", amount(1), usdh).await {
            Ok(_) => false,
            Err(Error::Refused { reason, .. }) => reason == "PAYEE_CLOSING",
            Err(other) => panic!("refused otherwise: {other}"),
        }
    })
    .await;
    let from_him = bob.pay("alice", amount(1), usdh).await.expect_err("his own account closes");
    assert_eq!(from_him.outcome(), Outcome::NotPaid);
    proven(town, &bob).await;
    town.pass_period().await;
    bob.is_final(usdh, PATIENCE).await.expect("final");
    let books = town.world().books(&account).await;
    // The hub accepts until it sees the close; what it accepted is paid out.
    assert_eq!(books.member_withdrawn.get(), DEPOSIT + books.hub_paid.get());
    // What came after he saw the close is evidence, stored and posted, that he counts only when the ledger has paid it.
    let counted = bob.balance(usdh).await.expect("runs").received;
    assert!(counted.get() >= 1_000 && books.hub_paid >= counted, "counted {counted}, proven {}", books.hub_paid);
}

/// A payee to whom somebody pays without a pause closes all the same, and what was accepted before is paid out.
#[tokio::test(flavor = "multi_thread")]
async fn a_payee_under_load_can_close() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let payer = alice.payer("bob", usdh).await.expect("known");
    let closing = AtomicBool::new(false);
    let load = async {
        let mut paid = 0u128;
        loop {
            match payer.pay(amount(3), []).expect("there is room").await {
                Ok(_) => paid += 3,
                Err(error) => {
                    assert!(closing.load(Ordering::Acquire), "after {paid}: {error}");
                    assert_eq!(error.outcome(), Outcome::NotPaid, "{error}");
                    return paid;
                }
            }
        }
    };
    let before = town.dollars(bob.account()).await;
    let close = async {
        let (bob, town) = (&bob, &town);
        town.until("thirty received", || async move { bob.balance(usdh).await.expect("runs").received >= amount(30) })
            .await;
        closing.store(true, Ordering::Release);
        bob.close(usdh).await.expect("closed");
        bob.is_final(usdh, PATIENCE).await.expect("final");
    };
    let (paid, ()) = join(load, close).await;
    assert_eq!(town.dollars(bob.account()).await - before, DEPOSIT + paid);
    town.check_conservation().await;
}
