//! A bad line between hub and node: the hub goes on, misses nothing and does nothing twice.

use dispute::Chain;
use payhub_tests::town::{DEPOSIT, INBOUND, PATIENCE, Town, amount};

use super::line::Line;
use super::{collateral_was_deposited_once, on_ledger};

/// One seed is one plan of what goes wrong; the order in which requests come is the machine's.
const SEED: u64 = 4;

/// A town whose hub reaches the node over a line.
async fn town_on_a_line(confirmations: u64) -> (Town, Line) {
    let mut town = Town::anvil(confirmations).await;
    let line = Line::to(town.world().chain().url(), SEED).await;
    town.stop_hub().await;
    let domain = *town.chain().domain();
    town.hub_chain = Chain::connect(&line.url(), domain, confirmations).expect("a loopback URL");
    town.start_hub().await;
    (town, line)
}

/// A member with collateral: from then on the hub need not ask for an allowance first.
async fn funded(town: &Town, seed: u8, name: &str) {
    let member = town.member(seed, name).await;
    let account = town.account(member.channel().await.expect("runs").expect("open"));
    collateral_was_deposited_once(town, account).await;
}

/// Everything that a hub could still do by itself is done and confirmed.
async fn some_blocks_later(town: &Town) {
    let head = town.chain().head().await.expect("the chain answers").number;
    town.until("some blocks", || async move { town.hub().status().await.expect("runs").head > head + 10 }).await;
}

/// The node hears of the deposit when the hub that sent it is dead, and the next one is about to send something itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_arrives_after_a_restart_is_made_once() {
    let (mut town, line) = town_on_a_line(1).await;
    funded(&town, 1, "alice").await;
    line.keep_transactions();
    let bob = town.member(2, "bob").await;
    let bobs = town.account(bob.channel().await.expect("runs").expect("open"));
    town.until("the deposit is on the line", async || line.kept() > 0).await;
    town.kill_hub().await;
    line.release_before("eth_estimateGas");
    town.start_hub().await;
    bob.connected(PATIENCE).await.expect("a session");
    collateral_was_deposited_once(&town, bobs).await;
    assert_eq!(line.kept(), 0, "the node has heard of it");
    some_blocks_later(&town).await;
    collateral_was_deposited_once(&town, bobs).await;
    town.stop_hub().await;
}

/// The same, but the deposit is lost: what its nonce was for must not be waited for.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_is_lost_with_its_hub_is_made_by_the_next() {
    let (mut town, line) = town_on_a_line(1).await;
    funded(&town, 1, "alice").await;
    line.keep_transactions();
    let bob = town.member(2, "bob").await;
    let bobs = town.account(bob.channel().await.expect("runs").expect("open"));
    town.until("the deposit is on the line", async || line.kept() > 0).await;
    town.kill_hub().await;
    line.refuse_transactions(false);
    town.start_hub().await;
    collateral_was_deposited_once(&town, bobs).await;
    some_blocks_later(&town).await;
    collateral_was_deposited_once(&town, bobs).await;
    town.stop_hub().await;
}

/// Nobody asks for it a second time: the hub remembers by itself what payees lack.
#[tokio::test(flavor = "multi_thread")]
async fn collateral_that_was_refused_for_long_is_deposited_when_the_node_is_back() {
    let (mut town, line) = town_on_a_line(1).await;
    funded(&town, 1, "alice").await;
    line.refuse_transactions(true);
    let bob = town.member(2, "bob").await;
    let bobs = town.account(bob.channel().await.expect("runs").expect("open"));
    town.until("many refusals", async || line.refused() > 11).await;
    assert!(town.world().books(&bobs).await.hub_deposit.is_zero());
    line.refuse_transactions(false);
    collateral_was_deposited_once(&town, bobs).await;
    town.stop_hub().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_on_a_bad_line_misses_no_event_and_counts_none_twice() {
    let (mut town, line) = town_on_a_line(2).await;
    let usdh = town.usdh();
    line.set_bad(true);

    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let [alices, bobs] = [&alice, &bob].map(|member| member.channel());
    let alices = town.account(alices.await.expect("runs").expect("open"));
    let bobs = town.account(bobs.await.expect("runs").expect("open"));
    for account in [alices, bobs] {
        collateral_was_deposited_once(&town, account).await;
    }
    for _ in 0..3 {
        alice.deposit(usdh, amount(10_000)).await.expect("the hub counts it");
    }
    alice.pay("bob", amount(300_000), usdh).await.expect("paid");
    town.received(&bob, 300_000).await;
    // The hub may give up and leave the posting to the member, or come back later: it happens once.
    bob.withdraw(usdh, amount(200_000)).await.expect("settled");
    on_ledger(&town, bobs, "the settlement", |books| books.member_withdrawn == amount(200_000)).await;
    bob.close(usdh).await.expect("closed");
    bob.is_final(usdh, PATIENCE).await.expect("final");
    town.check_conservation().await;
    assert!(line.broken() > 0, "the line was bad");
    line.set_bad(false);
    town.check_conservation().await;
    let [alices, bobs] = [town.world().books(&alices).await, town.world().books(&bobs).await];
    assert_eq!((alices.member_deposit, alices.hub_deposit), (amount(DEPOSIT + 30_000), amount(INBOUND)));
    assert_eq!((bobs.member_withdrawn, bobs.hub_deposit), (amount(DEPOSIT + 300_000), amount(INBOUND)));
    town.stop_hub().await;
}
