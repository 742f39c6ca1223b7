//! Transactions that wait for a block: one queue by nonce for each sender, bounded in every direction.
//!
//! A transaction whose nonce is ahead waits until the gap is filled. A waiting transaction is replaced by one with
//! the same sender and nonce that pays at least [`REPLACEMENT_BUMP_PERCENT`] more. When the pool is full, new
//! transactions are refused with an error that says so; nothing is dropped silently.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use alloy::consensus::Transaction as _;
use alloy_primitives::map::{AddressMap, B256Map};
use alloy_primitives::{Address, B256, U256};

use crate::state::{Basic, State};
use crate::transaction::Recovered;

/// Most transactions that wait, all senders together: a few seconds of full blocks.
pub const POOL_TRANSACTIONS_MAX: usize = 65_536;

/// Most bytes that wait, so that large transactions cannot fill the memory before the count is reached.
pub const POOL_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Most transactions of one sender: a hub's submitter key may queue a whole mass exit.
pub const SENDER_TRANSACTIONS_MAX: usize = 4_096;

/// How far ahead of the account a nonce may be; farther ones are mistakes.
pub const NONCE_AHEAD_MAX: u64 = 4_096;

/// Above this many waiting transactions those behind a gap are refused, so that they cannot starve the others.
pub const POOL_TRANSACTIONS_BEFORE_GAPS_REFUSED: usize = POOL_TRANSACTIONS_MAX / 2;

/// Most bytes of transactions in one block. A block is one journal record of at most 16 MiB, and what is left holds
/// the receipts and changes that [`BLOCK_GAS_LIMIT_MAX`](crate::BLOCK_GAS_LIMIT_MAX) can produce (a log byte costs 8 gas).
pub const BLOCK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How much more a replacement must pay, in per cent of both fee and tip (geth's rule).
pub const REPLACEMENT_BUMP_PERCENT: u128 = 10;

/// Why the pool refuses a transaction on the present state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The pool holds this very transaction.
    #[error("already known: {0} is waiting for a block")]
    AlreadyKnown(B256),
    /// The nonce is used up.
    #[error("nonce too low: the transaction has {tx}, the account's next nonce is {next}")]
    NonceTooLow {
        /// Nonce of the transaction.
        tx: u64,
        /// Next usable nonce.
        next: u64,
    },
    /// The nonce is absurdly far ahead.
    #[error(
        "nonce too high: the transaction has {tx}, the account's next nonce is {next}, at most {NONCE_AHEAD_MAX} ahead can wait"
    )]
    NonceTooHigh {
        /// Nonce of the transaction.
        tx: u64,
        /// Next usable nonce.
        next: u64,
    },
    /// It cannot fit any block.
    #[error("gas limit {limit} exceeds the block's {block}")]
    GasLimitAboveBlock {
        /// Gas limit of the transaction.
        limit: u64,
        /// Gas limit of a block.
        block: u64,
    },
    /// It does not pay the base fee.
    #[error("max fee per gas {max} is below the base fee {base_fee}")]
    FeeBelowBase {
        /// What it pays at most.
        max: u128,
        /// What every transaction pays.
        base_fee: u64,
    },
    /// The account cannot pay for it.
    #[error("insufficient funds for gas * price + value: the account has {balance}, the transaction may cost {cost}")]
    InsufficientFunds {
        /// Balance of the sender.
        balance: U256,
        /// Largest cost of the transaction.
        cost: U256,
    },
    /// A contract cannot send transactions (EIP-3607).
    #[error("the sender {0} has code and cannot send transactions")]
    SenderHasCode(Address),
    /// The waiting transaction pays too much to be replaced for this.
    #[error("replacement transaction underpriced: fee and tip must be at least {fee_needed} and {tip_needed}")]
    Underpriced {
        /// Least maximum fee.
        fee_needed: u128,
        /// Least tip.
        tip_needed: u128,
    },
    /// This sender has too many waiting.
    #[error(
        "too many transactions of {sender} are waiting ({SENDER_TRANSACTIONS_MAX}): try again after the next block"
    )]
    SenderFull {
        /// The sender.
        sender: Address,
    },
    /// Too much is waiting.
    #[error("the transaction pool is full: try again after the next block")]
    Full,
}

/// The rules of a block that admission needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Gas limit of a block.
    pub block_gas: u64,
    /// Base fee per gas.
    pub base_fee: u64,
}

#[derive(Debug)]
struct Waiting {
    tx: Arc<Recovered>,
    arrival: u64,
}

/// The transaction pool.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    senders: AddressMap<BTreeMap<u64, Waiting>>,
    by_hash: B256Map<(Address, u64)>,
    bytes: usize,
    arrivals: u64,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: Limits) -> Self {
        Self { limits, senders: AddressMap::default(), by_hash: B256Map::default(), bytes: 0, arrivals: 0 }
    }

    /// Admits a transaction on a state.
    pub fn add(&mut self, tx: Recovered, state: &State) -> Result<(), PoolError> {
        let account = state.basic(&tx.sender);
        self.check(&tx, &account)?;
        let (nonce, sender) = (tx.tx.nonce(), tx.sender);
        if let Some(waiting) = self.senders.get(&sender).and_then(|queue| queue.get(&nonce)) {
            check_replacement(&tx, &waiting.tx)?;
            self.remove(sender, nonce);
        } else {
            self.check_room(&tx, &account)?;
        }
        self.bytes += tx.raw.len();
        self.arrivals += 1;
        self.by_hash.insert(tx.hash, (sender, nonce));
        self.senders.entry(sender).or_default().insert(nonce, Waiting { tx: Arc::new(tx), arrival: self.arrivals });
        Ok(())
    }

    fn check(&self, tx: &Recovered, account: &Basic) -> Result<(), PoolError> {
        let (nonce, next) = (tx.tx.nonce(), account.nonce);
        if self.by_hash.contains_key(&tx.hash) {
            return Err(PoolError::AlreadyKnown(tx.hash));
        }
        if nonce < next {
            return Err(PoolError::NonceTooLow { tx: nonce, next });
        }
        if nonce - next > NONCE_AHEAD_MAX {
            return Err(PoolError::NonceTooHigh { tx: nonce, next });
        }
        if tx.tx.gas_limit() > self.limits.block_gas {
            return Err(PoolError::GasLimitAboveBlock { limit: tx.tx.gas_limit(), block: self.limits.block_gas });
        }
        let max = tx.tx.max_fee_per_gas();
        if max < u128::from(self.limits.base_fee) {
            return Err(PoolError::FeeBelowBase { max, base_fee: self.limits.base_fee });
        }
        if tx.cost_max() > account.balance {
            return Err(PoolError::InsufficientFunds { balance: account.balance, cost: tx.cost_max() });
        }
        if account.code_hash != Basic::default().code_hash {
            return Err(PoolError::SenderHasCode(tx.sender));
        }
        Ok(())
    }

    fn check_room(&self, tx: &Recovered, account: &Basic) -> Result<(), PoolError> {
        let of_sender = self.senders.get(&tx.sender).map_or(0, BTreeMap::len);
        if of_sender >= SENDER_TRANSACTIONS_MAX {
            return Err(PoolError::SenderFull { sender: tx.sender });
        }
        let full = self.waiting() >= POOL_TRANSACTIONS_MAX || self.bytes + tx.raw.len() > POOL_BYTES_MAX;
        let behind_gap = tx.tx.nonce() > self.next_nonce(&tx.sender, account.nonce);
        if full || (behind_gap && self.waiting() >= POOL_TRANSACTIONS_BEFORE_GAPS_REFUSED) {
            return Err(PoolError::Full);
        }
        Ok(())
    }

    /// How many transactions wait.
    pub fn waiting(&self) -> usize {
        self.by_hash.len()
    }

    /// A waiting transaction.
    pub fn get(&self, hash: &B256) -> Option<Arc<Recovered>> {
        let (sender, nonce) = self.by_hash.get(hash)?;
        self.senders.get(sender)?.get(nonce).map(|waiting| waiting.tx.clone())
    }

    /// The nonce after the last one that waits without a gap.
    pub fn next_nonce(&self, sender: &Address, account_nonce: u64) -> u64 {
        let Some(queue) = self.senders.get(sender) else { return account_nonce };
        queue
            .range(account_nonce..)
            .zip(account_nonce..)
            .take_while(|((nonce, _), expected)| *nonce == expected)
            .count() as u64
            + account_nonce
    }

    /// The transactions of the next block: highest tip first, then first come first served, each sender's in order,
    /// as many as fit by their gas limits.
    pub fn select(&self, state: &State) -> Vec<Arc<Recovered>> {
        let priority = |waiting: &Waiting| (waiting.tx.tip(self.limits.base_fee), Reverse(waiting.arrival));
        let mut heads = BinaryHeap::new();
        for (sender, queue) in &self.senders {
            let nonce = state.basic(sender).nonce;
            if let Some(first) = queue.get(&nonce) {
                heads.push((priority(first), *sender, nonce));
            }
        }
        let (mut room, mut room_bytes) = (self.limits.block_gas, BLOCK_BYTES_MAX);
        let mut selected = Vec::new();
        while let Some((_, sender, nonce)) = heads.pop() {
            let queue = &self.senders[&sender];
            let tx = &queue[&nonce].tx;
            // A sender whose next transaction does not fit waits; smaller ones of others may still go in.
            let left = room.checked_sub(tx.tx.gas_limit()).zip(room_bytes.checked_sub(tx.raw.len()));
            let Some((gas, bytes)) = left else { continue };
            (room, room_bytes) = (gas, bytes);
            selected.push(tx.clone());
            if let Some(next) = queue.get(&(nonce + 1)) {
                heads.push((priority(next), sender, nonce + 1));
            }
            if room < 21_000 {
                break;
            }
        }
        selected
    }

    /// Takes out a transaction that was executed or can never be.
    pub fn discard(&mut self, tx: &Recovered) {
        if self.by_hash.contains_key(&tx.hash) {
            self.remove(tx.sender, tx.tx.nonce());
        }
    }

    /// Takes out everything of a sender below its account nonce.
    pub fn discard_used(&mut self, sender: Address, account_nonce: u64) {
        let used = match self.senders.get(&sender) {
            Some(queue) => queue.range(..account_nonce).map(|(nonce, _)| *nonce).collect::<Vec<_>>(),
            None => return,
        };
        for nonce in used {
            self.remove(sender, nonce);
        }
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        *self = Self { arrivals: self.arrivals, ..Self::new(self.limits) };
    }

    fn remove(&mut self, sender: Address, nonce: u64) {
        let Some(queue) = self.senders.get_mut(&sender) else { return };
        if let Some(gone) = queue.remove(&nonce) {
            self.by_hash.remove(&gone.tx.hash);
            self.bytes -= gone.tx.raw.len();
        }
        if queue.is_empty() {
            self.senders.remove(&sender);
        }
    }
}

fn check_replacement(new: &Recovered, old: &Recovered) -> Result<(), PoolError> {
    let bumped = |value: u128| {
        // Rounded up and at least one more, so that tiny fees cannot be replaced for nothing for ever.
        let bump = value.saturating_mul(REPLACEMENT_BUMP_PERCENT).div_ceil(100).max(1);
        value.saturating_add(bump)
    };
    let tip = |tx: &Recovered| tx.tx.max_priority_fee_per_gas().unwrap_or(tx.tx.max_fee_per_gas());
    let fee_needed = bumped(old.tx.max_fee_per_gas());
    let tip_needed = bumped(tip(old));
    if new.tx.max_fee_per_gas() < fee_needed || tip(new) < tip_needed {
        return Err(PoolError::Underpriced { fee_needed, tip_needed });
    }
    Ok(())
}
