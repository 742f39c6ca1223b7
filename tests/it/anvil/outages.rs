//! A bad line between hub and node: the hub goes on, misses nothing and does nothing twice.

use dispute::Chain;
use payhub_tests::town::{DEPOSIT, INBOUND, PATIENCE, Town, amount};

use super::line::Line;
use super::{collateral_was_deposited_once, on_ledger};

/// One seed is one plan of what goes wrong; the order in which requests come is the machine's.
const SEED: u64 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_on_a_bad_line_misses_no_event_and_counts_none_twice() {
    let mut town = Town::anvil(2).await;
    let usdh = town.usdh();
    let line = Line::to(town.world().chain().url(), SEED).await;
    town.stop_hub().await;
    let domain = *town.chain().domain();
    town.hub_chain = Chain::connect(&line.url(), domain, town.chain().confirmations()).expect("a loopback URL");
    town.start_hub().await;
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
