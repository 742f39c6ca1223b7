//! The stale hub: its store was restored to an older state. A member's newest batch signature shows it; it signs
//! nothing more.

use client::Outcome;
use payhub_tests::town::{PATIENCE, Town, amount};
use storage::Crash;

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_hub_freezes_at_the_first_hello_that_knows_more() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    alice.pay("bob", amount(1_000), usdh).await.expect("paid");
    town.received(&bob, 1_000).await;
    let older = town.disk.crash(Crash::Lost, 1);
    alice.pay("bob", amount(2_000), usdh).await.expect("paid");
    town.received(&bob, 3_000).await;
    town.kill_hub().await;
    town.disk = older;
    town.start_hub().await;
    alice.connected(PATIENCE).await.expect("a session");
    bob.connected(PATIENCE).await.expect("a session");
    let status = town.hub().status().await.expect("runs");
    assert!(status.frozen.is_some(), "{status:?}");

    // Nothing is taken, nothing is signed: no payment, no settlement, no close.
    let refused = alice.pay("bob", amount(1), usdh).timeout(std::time::Duration::from_millis(500)).await;
    assert_eq!(refused.expect_err("it is frozen").outcome(), Outcome::NotPaid);
    let patience = std::time::Duration::from_millis(500);
    let withdrawn = tokio::time::timeout(patience, bob.withdraw(usdh, amount(1))).await;
    assert!(!matches!(withdrawn, Ok(Ok(_))), "it is frozen");
    let closed = tokio::time::timeout(patience, bob.close(usdh)).await;
    assert!(!matches!(closed, Ok(Ok(_))), "it is frozen");
    assert_eq!(town.hub().status().await.expect("runs").payments, 1, "as the old store has it");

    // What it signed before it forgot is good all the same: the members have it, and the ledger pays it.
    let before = town.dollars(bob.account()).await;
    let owed = bob.balance(usdh).await.expect("runs").available;
    assert_eq!(bob.balance(usdh).await.expect("runs").received, amount(3_000));
    bob.close_unilateral(usdh).await.expect("begun");
    let account = town.account(bob.channel().await.expect("runs").expect("open"));
    let town = &town;
    assert_eq!(town.world().books(&account).await.seq, 0, "no settlement was signed");
    town.until("the evidence", || async move { town.world().books(&account).await.hub_paid == amount(3_000) }).await;
    town.pass_period().await;
    bob.is_final(usdh, PATIENCE).await.expect("final");
    assert_eq!(town.dollars(bob.account()).await - before, owed.get());

    // A restart does not make it forget that.
    assert!(town.hub().status().await.expect("runs").frozen.is_some());
}
