//! Settlement and disputes: everything between the protocol and a ledger.
//!
//! The ledger is any EVM chain with an adjudicator contract on it, reached by JSON-RPC or, for the embedded ledger, in
//! process; both go through one code path. From bottom to top:
//!
//! - [`artifacts`]: the compiled contracts, for genesis files and deployments.
//! - [`adjudicator`]: the contract as typed calls, events and refusals. No other module knows the ABI.
//! - [`chain`]: reading a ledger: heads, logs, books, balances; and the check that it is the right one.
//! - [`cursor`]: the ledger's events, each exactly once, through reorganisations, restarts and outages.
//! - [`submitter`]: sending transactions with several keys until they are mined or refused.
//! - [`settlement`]: packing many entries into few transactions.
//! - [`gas`]: what operations were measured to take; [`exit_plan`]: what a mass exit takes, and the challenge period it needs.
//! - [`watchtower`]: answering a close with everything that is held, in time; [`remote`]: as a program of its own, for
//!   members who are away.
//!
//! The cursor and the watchtower are state machines without I/O; their drivers ([`cursor::follow`],
//! [`watchtower::run_tower`]) are thin. They keep no files: owners store the small records that these machines hand out,
//! together with their own effects. The one owner in this crate is [`remote`].

pub mod adjudicator;
pub mod artifacts;
pub mod chain;
pub mod cursor;
pub mod exit_plan;
#[cfg(test)]
mod fake_node;
pub mod gas;
pub mod remote;
pub mod settlement;
pub mod submitter;
pub mod watchtower;

pub use adjudicator::{
    Adjudicator, BlockRef, Call, Claim, CloseOrder, EventKind, Evidence, FinalizeOrder, FundOrder, Funding,
    LedgerBooks, LedgerEvent, OpenOrder, Refusal, RespondOrder, SettleOrder, Status, TickClaim,
};
pub use chain::{Chain, ChainError};
pub use cursor::{Cursor, CursorState, Item, Step, Update, follow};
pub use submitter::{AccountKey, Order, Outcome, Submitter, SubmitterConfig, Urgency};
pub use watchtower::{Tower, TowerHandle, run_tower};
