//! Settlement on an EVM node that is not ours and that is in trouble: reorganisations, lost connections, fee spikes, slow
//! blocks, restarts in the middle, and a second ledger.
//!
//! [`reorganisations`] takes blocks back, [`outages`] cuts the line between hub and node, [`blocks`] is about fees, slow
//! blocks and restarts, [`two_ledgers`] about the same people on two chains, and [`line`] is the line that is cut.

mod blocks;
mod line;
mod outages;
mod reorganisations;
mod two_ledgers;

use dispute::LedgerBooks;
use payhub_tests::town::{INBOUND, Town};
use proto::AccountId;
use serde_json::json;

/// Confirmations of towns whose ledger is reorganised: one more than blocks are taken back.
const CONFIRMATIONS: u64 = 4;
/// Blocks that a reorganisation takes back.
const DEPTH: u64 = 3;

/// Replaces the newest blocks by empty ones.
async fn reorganise(town: &Town) {
    town.world().rpc("anvil_reorg", json!([DEPTH, []])).await;
}

/// Waits until the contract's books of an account, at the newest block, are as a story wants them.
async fn on_ledger(town: &Town, account: AccountId, what: &str, holds: impl Fn(&LedgerBooks) -> bool) {
    let holds = &holds;
    town.until(what, || async move { holds(&town.world().books(&account).await) }).await;
}

/// The hub's collateral was deposited, once.
async fn collateral_was_deposited_once(town: &Town, account: AccountId) {
    on_ledger(town, account, "the hub's collateral", |books| !books.hub_deposit.is_zero()).await;
    town.check_conservation().await;
    assert_eq!(town.world().books(&account).await.hub_deposit.get(), INBOUND);
}

/// Money in the contract by the hub's books.
async fn custody(town: &Town) -> String {
    town.hub().status().await.expect("runs").assets[0].1.custody.to_string()
}
