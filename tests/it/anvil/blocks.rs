//! Fees that jump, blocks that are slow, and a hub that is stopped in the middle of everything.

use std::time::Duration;

use alloy::eips::BlockNumberOrTag;
use alloy::providers::Provider;
use dispute::SubmitterConfig;
use futures::future::join;
use payhub_tests::town::{DEPOSIT, INBOUND, PATIENCE, Town, amount};
use serde_json::json;

use super::{collateral_was_deposited_once, on_ledger};
use crate::stories::proven;

/// A hundred times what anvil begins with.
const SPIKE_WEI: u128 = 100_000_000_000;

/// Transactions that wait for a block.
async fn waiting(town: &Town) -> u64 {
    let status = town.world().rpc("txpool_status", json!([])).await;
    let count = |name: &str| {
        let text = status[name].as_str().expect("a quantity");
        u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a quantity")
    };
    count("pending") + count("queued")
}

async fn until_waiting(town: &Town) {
    town.until("a transaction waits", || async move { waiting(town).await > 0 }).await;
}

async fn mine_at(town: &Town, base_fee_wei: u128) {
    town.world().rpc("anvil_setNextBlockBaseFeePerGas", json!([format!("{base_fee_wei:#x}")])).await;
    town.world().rpc("evm_mine", json!([])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_gets_in_before_the_deadline_although_the_base_fee_jumps() {
    let mut town = Town::anvil(0).await;
    let usdh = town.usdh();
    let alice = town.member(1, "alice").await;
    let quick = SubmitterConfig { bump_after: Duration::from_millis(200), ..SubmitterConfig::local() };
    let bob = town.join(2, town.client(2, "bob").submitter(quick)).await;
    let bobs = town.account(bob.channel().await.expect("runs").expect("open"));
    collateral_was_deposited_once(&town, bobs).await;
    alice.pay("bob", amount(300_000), usdh).await.expect("paid");
    town.received(&bob, 300_000).await;
    // She holds a receipt for him, and would show it herself, at the new price.
    alice.shutdown().await.expect("stops");
    town.stop_hub().await;

    town.world().rpc("evm_setAutomine", json!([false])).await;
    let mined = async {
        until_waiting(&town).await;
        town.world().rpc("evm_mine", json!([])).await;
    };
    let (begun, ()) = join(bob.close_unilateral(usdh), mined).await;
    let deadline_s = begun.expect("begun");
    until_waiting(&town).await;
    // His tower's response was sent at the old price. From here on every block asks for the new one.
    mine_at(&town, SPIKE_WEI).await;
    assert!(town.world().books(&bobs).await.hub_paid.is_zero(), "the old price is too low");
    let town_ = &town;
    town.until("the response", || async move {
        mine_at(town_, SPIKE_WEI).await;
        town_.world().books(&bobs).await.hub_paid == amount(300_000)
    })
    .await;
    let newest = town.chain().provider().get_block_by_number(BlockNumberOrTag::Latest).await;
    let header = newest.expect("the chain answers").expect("there is one").header;
    assert_eq!(header.inner.base_fee_per_gas.map(u128::from), Some(SPIKE_WEI));
    assert!(header.inner.timestamp < deadline_s, "before the deadline");
    town.world().rpc("evm_setAutomine", json!([true])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_blocks_and_restarts_in_the_middle_lose_nothing_and_double_nothing() {
    let mut town = Town::anvil(1).await;
    let usdh = town.usdh();
    let alice = town.member(1, "alice").await;
    let alices = town.account(alice.channel().await.expect("runs").expect("open"));
    collateral_was_deposited_once(&town, alices).await;
    let bob = town.client(2, "bob").connect().await.expect("connects");
    town.endow(bob.account(), 10 * DEPOSIT).await;

    // From here on a block a second, whatever waits.
    let _still = town.still().await;
    town.world().rpc("evm_setAutomine", json!([false])).await;
    town.world().rpc("anvil_setIntervalMining", json!([1])).await;

    // Opening: the hub dies before the deposit is confirmed, and again while its own deposit waits for a block.
    let opening = tokio::spawn({
        let bob = bob.clone();
        async move { bob.open(usdh, amount(DEPOSIT)).await }
    });
    until_waiting(&town).await;
    town.kill_hub().await;
    town.start_hub().await;
    let channel = opening.await.expect("no panic").expect("the channel opens");
    let bobs = town.account(channel);
    town.note_channel(channel);
    let town_ = &town;
    town.until("the hub's deposit is sent", || async move {
        waiting(town_).await > 0 || !town_.world().books(&bobs).await.hub_deposit.is_zero()
    })
    .await;
    town.kill_hub().await;
    town.start_hub().await;
    bob.connected(PATIENCE).await.expect("a session");
    collateral_was_deposited_once(&town, bobs).await;

    // Settling: the hub dies with the settlement in no block yet.
    alice.connected(PATIENCE).await.expect("a session");
    // He pays first, and more than he gets: else the hub might top its collateral up, rightly, after any of the restarts.
    bob.pay("alice", amount(400_000), usdh).await.expect("paid");
    alice.pay("bob", amount(300_000), usdh).await.expect("paid");
    town.received(&bob, 300_000).await;
    let before = town.dollars(bob.account()).await;
    let settling = tokio::spawn({
        let bob = bob.clone();
        async move { bob.withdraw(usdh, amount(200_000)).await }
    });
    until_waiting(&town).await;
    town.kill_hub().await;
    town.start_hub().await;
    on_ledger(&town, bobs, "the settlement", |books| books.seq == 1).await;
    // Whether the member was told depends on when his session went.
    let _ = settling.await.expect("no panic");
    assert_eq!(town.dollars(bob.account()).await - before, 200_000);
    town.check_conservation().await;

    // Responding: the hub dies when the close is seen.
    bob.connected(PATIENCE).await.expect("a session");
    bob.pay("alice", amount(50_000), usdh).await.expect("paid");
    let owed = bob.balance(usdh).await.expect("runs").available;
    bob.close_unilateral(usdh).await.expect("begun");
    town.kill_hub().await;
    town.start_hub().await;
    proven(&town, &bob).await;
    town.pass_period().await;
    bob.is_final(usdh, PATIENCE).await.expect("final");
    town.check_conservation().await;
    assert_eq!(town.dollars(bob.account()).await - before, 200_000 + owed.get());
    assert_eq!(town.world().books(&bobs).await.hub_deposit, amount(INBOUND));
}
