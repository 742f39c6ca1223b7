//! Transactions that wait for a block: one queue by nonce for each sender, bounded in every direction.
//!
//! A transaction whose nonce is ahead waits until the gap is filled. A waiting transaction is replaced by one with
//! the same sender and nonce that pays at least [`REPLACEMENT_BUMP_PERCENT`] more.
//!
//! When the pool is full, a transaction that could be executed next and pays a higher tip takes the place of the last
//! one of the sender that pays least; else it is refused with an error that says so. A transaction that waited for
//! [`WAIT_MAX`] is dropped. To be admitted is therefore no promise to be executed, and what is dropped is never
//! executed in another form: its hash is unknown from then on, its nonce is free, and later ones of its sender wait
//! for it. Its sender sees both by RPC and sends it again.
//!
//! A block is filled by tips, the highest first. Among equal tips the lanes take turns: vaults of the adjudicator
//! ([`spread`]), and senders otherwise. Neighbours in a block then rarely wait for each other when it is executed in
//! parallel, and nobody fills a block alone. Each sender's transactions keep their order.

mod spread;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::consensus::Transaction as _;
use alloy_primitives::map::{AddressMap, B256Map};
use alloy_primitives::{Address, B256, U256};

use crate::state::{Basic, State};
use crate::transaction::Recovered;

pub use spread::{Lane, Spread};

/// Most transactions that wait, all senders together: a few seconds of full blocks.
pub const POOL_TRANSACTIONS_MAX: usize = 65_536;

/// Most bytes that wait, so that large transactions cannot fill the memory before the count is reached.
pub const POOL_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Most transactions of one sender: a hub's submitter key may queue a whole mass exit.
pub const SENDER_TRANSACTIONS_MAX: usize = 4_096;

/// How far ahead of the account a nonce may be; farther ones are mistakes.
pub const NONCE_AHEAD_MAX: u64 = 4_096;

/// Transactions behind a gap are refused when the pool is filled to one part in this many, so that they cannot starve
/// those that could be executed.
pub const GAPS_REFUSED_FROM: usize = 2;

/// Most bytes of transactions in one block. A block is one journal record of at most 16 MiB, and what is left holds
/// the receipts and changes that [`BLOCK_GAS_LIMIT_MAX`](crate::BLOCK_GAS_LIMIT_MAX) can produce (a log byte costs 8 gas).
pub const BLOCK_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How much more a replacement must pay, in per cent of both fee and tip (geth's rule).
pub const REPLACEMENT_BUMP_PERCENT: u128 = 10;

/// How long a transaction may wait (geth's value): after that its sender has given up or sent it elsewhere.
pub const WAIT_MAX: Duration = Duration::from_secs(3 * 3_600);

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
    /// Too much is waiting, and this transaction does not pay more than what waits.
    #[error("the transaction pool is full: try again after the next block, or with a higher tip")]
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
    since: Instant,
    lane: Lane,
}

/// What a sender has waiting.
#[derive(Debug, Default)]
struct Queue {
    by_nonce: BTreeMap<u64, Waiting>,
    /// Their tips, each with how many pay it.
    tips: BTreeMap<u128, usize>,
}

impl Queue {
    /// The lowest tip. What stands behind a low tip is not executed before it, whatever it pays itself.
    fn tip_min(&self) -> Option<u128> {
        self.tips.first_key_value().map(|(tip, _)| *tip)
    }

    /// Its rank among the senders, unless it is empty.
    fn rank(&self, sender: Address) -> Option<Rank> {
        let last = self.by_nonce.values().next_back()?;
        Some((self.tip_min()?, Reverse(last.arrival), sender))
    }

    fn insert(&mut self, nonce: u64, tip: u128, waiting: Waiting) {
        *self.tips.entry(tip).or_default() += 1;
        let before = self.by_nonce.insert(nonce, waiting);
        debug_assert!(before.is_none(), "what is replaced is taken out first");
    }

    fn remove(&mut self, nonce: u64, base_fee: u64) -> Option<Waiting> {
        let gone = self.by_nonce.remove(&nonce)?;
        let tip = gone.tx.tip(base_fee);
        match self.tips.get_mut(&tip) {
            Some(payers) if *payers > 1 => *payers -= 1,
            _ => drop(self.tips.remove(&tip)),
        }
        Some(gone)
    }
}

/// Who is evicted first: the lowest tip, then the latest arrival.
type Rank = (u128, Reverse<u64>, Address);

/// The transaction pool.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    capacity: Capacity,
    spread: Option<Arc<Spread>>,
    senders: AddressMap<Queue>,
    by_hash: B256Map<(Address, u64)>,
    by_arrival: BTreeMap<u64, (Address, u64)>,
    /// One entry for each sender: that of its last transaction.
    tails: BTreeSet<Rank>,
    bytes: usize,
    arrivals: u64,
}

/// How much may wait. Only tests need less than the constants.
#[derive(Debug, Clone, Copy)]
struct Capacity {
    transactions: usize,
    bytes: usize,
}

impl Pool {
    /// An empty pool. Without a spread only senders take turns.
    pub fn new(limits: Limits, spread: Option<Spread>) -> Self {
        let capacity = Capacity { transactions: POOL_TRANSACTIONS_MAX, bytes: POOL_BYTES_MAX };
        Self::with_capacity(limits, spread.map(Arc::new), capacity)
    }

    fn with_capacity(limits: Limits, spread: Option<Arc<Spread>>, capacity: Capacity) -> Self {
        Self {
            limits,
            capacity,
            spread,
            senders: AddressMap::default(),
            by_hash: B256Map::default(),
            by_arrival: BTreeMap::new(),
            tails: BTreeSet::new(),
            bytes: 0,
            arrivals: 0,
        }
    }

    /// Admits a transaction on a state.
    pub fn add(&mut self, tx: Recovered, state: &State) -> Result<(), PoolError> {
        self.add_at(tx, state, Instant::now())
    }

    fn add_at(&mut self, tx: Recovered, state: &State, now: Instant) -> Result<(), PoolError> {
        self.expire(now);
        let account = state.basic(&tx.sender);
        self.check(&tx, &account)?;
        let (nonce, sender) = (tx.tx.nonce(), tx.sender);
        if let Some(waiting) = self.senders.get(&sender).and_then(|queue| queue.by_nonce.get(&nonce)) {
            check_replacement(&tx, &waiting.tx)?;
            self.remove(sender, nonce);
        } else {
            self.make_room(&tx, &account)?;
        }
        self.bytes += tx.raw.len();
        self.arrivals += 1;
        let arrival = self.arrivals;
        self.by_hash.insert(tx.hash, (sender, nonce));
        self.by_arrival.insert(arrival, (sender, nonce));
        let lane = self.spread.as_ref().map_or(Lane::Sender(sender), |spread| spread.lane(&tx));
        let waiting = Waiting { tx: Arc::new(tx), arrival, since: now, lane };
        let tip = waiting.tx.tip(self.limits.base_fee);
        self.change(sender, |queue| queue.insert(nonce, tip, waiting));
        Ok(())
    }

    /// Changes a queue and keeps its rank up to date.
    fn change<T>(&mut self, sender: Address, change: impl FnOnce(&mut Queue) -> T) -> T {
        let queue = self.senders.entry(sender).or_default();
        if let Some(rank) = queue.rank(sender) {
            self.tails.remove(&rank);
        }
        let result = change(queue);
        match queue.rank(sender) {
            Some(rank) => drop(self.tails.insert(rank)),
            None => drop(self.senders.remove(&sender)),
        }
        result
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

    /// Makes sure that a transaction fits, by evicting others if it deserves it.
    fn make_room(&mut self, tx: &Recovered, account: &Basic) -> Result<(), PoolError> {
        let of_sender = self.senders.get(&tx.sender);
        if of_sender.map_or(0, |queue| queue.by_nonce.len()) >= SENDER_TRANSACTIONS_MAX {
            return Err(PoolError::SenderFull { sender: tx.sender });
        }
        let tip = tx.tip(self.limits.base_fee);
        let tip = of_sender.and_then(Queue::tip_min).map_or(tip, |lowest| tip.min(lowest));
        let behind_gap = tx.tx.nonce() > self.next_nonce(&tx.sender, account.nonce);
        if behind_gap && self.waiting() >= self.capacity.transactions / GAPS_REFUSED_FROM {
            return Err(PoolError::Full);
        }
        let (mut waiting, mut bytes) = (self.waiting(), self.bytes + tx.raw.len());
        let mut victims = Vec::new();
        // One large transaction may cost several small ones their places, all of senders that pay less.
        for (cheapest, _, sender) in &self.tails {
            if waiting < self.capacity.transactions && bytes <= self.capacity.bytes {
                break;
            }
            if *cheapest >= tip {
                return Err(PoolError::Full);
            }
            let last = self.senders.get(sender).and_then(|queue| queue.by_nonce.last_key_value());
            // A sender's own predecessors are what the new one needs.
            if let Some((nonce, last)) = last.filter(|_| *sender != tx.sender) {
                victims.push((*sender, *nonce));
                (waiting, bytes) = (waiting - 1, bytes - last.tx.raw.len());
            }
        }
        if waiting >= self.capacity.transactions || bytes > self.capacity.bytes {
            return Err(PoolError::Full);
        }
        for (sender, nonce) in victims {
            tracing::debug!(%sender, nonce, "a waiting transaction made room for one that pays more");
            self.remove(sender, nonce);
        }
        Ok(())
    }

    /// Drops what has waited too long.
    fn expire(&mut self, now: Instant) {
        while let Some((_, &(sender, nonce))) = self.by_arrival.first_key_value() {
            let since = self.senders.get(&sender).and_then(|queue| queue.by_nonce.get(&nonce)).map(|tx| tx.since);
            let since = since.expect("the indexes name what waits");
            if now.saturating_duration_since(since) < WAIT_MAX {
                return;
            }
            tracing::debug!(%sender, nonce, "a transaction waited too long and was dropped");
            self.remove(sender, nonce);
        }
    }

    /// How many transactions wait.
    pub fn waiting(&self) -> usize {
        self.by_hash.len()
    }

    /// A waiting transaction.
    pub fn get(&self, hash: &B256) -> Option<Arc<Recovered>> {
        let (sender, nonce) = self.by_hash.get(hash)?;
        self.senders.get(sender)?.by_nonce.get(nonce).map(|waiting| waiting.tx.clone())
    }

    /// The nonce after the last one that waits without a gap.
    pub fn next_nonce(&self, sender: &Address, account_nonce: u64) -> u64 {
        let Some(queue) = self.senders.get(sender) else { return account_nonce };
        let queue = &queue.by_nonce;
        queue
            .range(account_nonce..)
            .zip(account_nonce..)
            .take_while(|((nonce, _), expected)| *nonce == expected)
            .count() as u64
            + account_nonce
    }

    /// The transactions of the next block: highest tip first, among equal tips lane after lane, each sender's in order,
    /// as many as fit by their gas limits.
    pub fn select(&mut self, state: &State) -> Vec<Arc<Recovered>> {
        self.expire(Instant::now());
        let mut heads = Vec::new();
        for (sender, queue) in &self.senders {
            let nonce = state.basic(sender).nonce;
            heads.extend(queue.by_nonce.get(&nonce).map(|first| (first.arrival, *sender, first)));
        }
        heads.sort_unstable_by_key(|(arrival, ..)| *arrival);
        let mut turns = Turns::default();
        for (_, sender, first) in heads {
            turns.enter(first.tx.tip(self.limits.base_fee), first.lane, sender, first.tx.tx.nonce());
        }
        let (mut room, mut room_bytes) = (self.limits.block_gas, BLOCK_BYTES_MAX);
        let mut selected = Vec::new();
        while let Some((sender, nonce)) = turns.next() {
            let queue = &self.senders[&sender].by_nonce;
            let tx = &queue[&nonce].tx;
            // A sender whose next transaction does not fit waits; smaller ones of others may still go in.
            let left = room.checked_sub(tx.tx.gas_limit()).zip(room_bytes.checked_sub(tx.raw.len()));
            let Some((gas, bytes)) = left else { continue };
            (room, room_bytes) = (gas, bytes);
            selected.push(tx.clone());
            if let Some(next) = queue.get(&(nonce + 1)) {
                turns.enter(next.tx.tip(self.limits.base_fee), next.lane, sender, nonce + 1);
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
            Some(queue) => queue.by_nonce.range(..account_nonce).map(|(nonce, _)| *nonce).collect::<Vec<_>>(),
            None => return,
        };
        for nonce in used {
            self.remove(sender, nonce);
        }
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        let empty = Self::with_capacity(self.limits, self.spread.clone(), self.capacity);
        *self = Self { arrivals: self.arrivals, ..empty };
    }

    fn remove(&mut self, sender: Address, nonce: u64) {
        let base_fee = self.limits.base_fee;
        if let Some(gone) = self.change(sender, |queue| queue.remove(nonce, base_fee)) {
            self.by_hash.remove(&gone.tx.hash);
            self.by_arrival.remove(&gone.arrival);
            self.bytes -= gone.tx.raw.len();
        }
    }
}

/// Who is next: the highest tip, and among equal tips one of each lane after the other.
#[derive(Default)]
struct Turns {
    by_tip: BTreeMap<u128, Ring>,
}

#[derive(Default)]
struct Ring {
    lanes: VecDeque<Lane>,
    waiting: HashMap<Lane, VecDeque<(Address, u64)>>,
}

impl Turns {
    fn enter(&mut self, tip: u128, lane: Lane, sender: Address, nonce: u64) {
        let ring = self.by_tip.entry(tip).or_default();
        let queue = ring.waiting.entry(lane).or_default();
        if queue.is_empty() {
            ring.lanes.push_back(lane);
        }
        queue.push_back((sender, nonce));
    }

    fn next(&mut self) -> Option<(Address, u64)> {
        let mut best = self.by_tip.last_entry()?;
        let ring = best.get_mut();
        let lane = ring.lanes.pop_front().expect("a ring without lanes is removed");
        let queue = ring.waiting.get_mut(&lane).expect("a lane in the ring has somebody waiting");
        let first = queue.pop_front();
        if !queue.is_empty() {
            ring.lanes.push_back(lane);
        }
        if ring.lanes.is_empty() {
            best.remove();
        }
        first
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

#[cfg(test)]
mod tests {
    use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
    use alloy::eips::eip2718::Encodable2718;
    use alloy_primitives::{Signature, TxKind};

    use super::*;
    use crate::state::{AccountChange, ChangeSet};

    const GWEI: u128 = 1_000_000_000;
    const LIMITS: Limits = Limits { block_gas: 210_000, base_fee: 1_000_000_000 };

    fn pool(transactions: usize) -> Pool {
        Pool::with_capacity(LIMITS, None, Capacity { transactions, bytes: usize::MAX })
    }

    fn who(i: u8) -> Address {
        Address::repeat_byte(i)
    }

    /// A state in which the first twenty senders are rich.
    fn state() -> State {
        let rich = |i| {
            let basic = Basic { balance: U256::from(1_000 * GWEI * GWEI), ..Basic::default() };
            (who(i), AccountChange { basic: Some(basic), ..AccountChange::default() })
        };
        let mut state = State::default();
        state.apply(&ChangeSet { accounts: (0..20).map(rich).collect(), ..ChangeSet::default() });
        state
    }

    /// The pool believes in senders; nothing here checks signatures.
    fn tx(sender: u8, nonce: u64, tip_gwei: u128) -> Recovered {
        let tx = TxEip1559 {
            nonce,
            gas_limit: 21_000,
            max_fee_per_gas: tip_gwei * GWEI + u128::from(LIMITS.base_fee),
            max_priority_fee_per_gas: tip_gwei * GWEI,
            to: TxKind::Call(who(0xee)),
            value: U256::from(sender),
            ..TxEip1559::default()
        };
        let tx = TxEnvelope::from(tx.into_signed(Signature::test_signature()));
        Recovered { raw: tx.encoded_2718().into(), hash: *tx.tx_hash(), sender: who(sender), tx }
    }

    fn fill(pool: &mut Pool, state: &State, all: &[(u8, u64, u128)]) {
        for (sender, nonce, tip) in all {
            pool.add(tx(*sender, *nonce, *tip), state).unwrap_or_else(|e| panic!("{sender}/{nonce}: {e}"));
        }
    }

    fn selected(pool: &mut Pool, state: &State) -> Vec<(u8, u64)> {
        pool.select(state).iter().map(|tx| (tx.sender[0], tx.tx.nonce())).collect()
    }

    #[test]
    fn senders_take_turns_among_equal_tips_and_higher_tips_come_first() {
        let state = state();
        for (name, waiting, expected) in [
            (
                "one sender's flood does not hold up the others",
                vec![(1, 0, 2), (1, 1, 2), (1, 2, 2), (2, 0, 2), (3, 0, 2), (2, 1, 2)],
                vec![(1, 0), (2, 0), (3, 0), (1, 1), (2, 1), (1, 2)],
            ),
            (
                "a higher tip goes first, one behind a low tip when its turn comes",
                vec![(1, 0, 1), (1, 1, 9), (2, 0, 5), (3, 0, 1)],
                vec![(2, 0), (1, 0), (1, 1), (3, 0)],
            ),
            ("what is behind a gap waits", vec![(1, 1, 9), (2, 0, 1), (2, 2, 9)], vec![(2, 0)]),
            (
                "a block is filled up to its gas limit, everybody getting a share",
                (0..10).map(|nonce| (1, nonce, 1)).chain([(2, 0, 1), (3, 0, 1)]).collect(),
                [(1, 0), (2, 0), (3, 0)].into_iter().chain((1..8).map(|nonce| (1, nonce))).collect(),
            ),
        ] {
            let mut pool = pool(100);
            fill(&mut pool, &state, &waiting);
            assert_eq!(selected(&mut pool, &state), expected, "{name}");
        }
    }

    #[test]
    fn vaults_take_turns_whoever_sends() {
        let mut turns = Turns::default();
        // Two submitters that both have calls for vault 0 first.
        for (sender, nonce, vault) in [(1, 0, 0), (2, 0, 0), (3, 0, 1), (4, 0, 0), (5, 0, 2)] {
            turns.enter(7, Lane::Vault(vault), who(sender), nonce);
        }
        let order = std::iter::from_fn(|| turns.next()).map(|(sender, _)| sender[0]).collect::<Vec<_>>();
        assert_eq!(order, [1, 3, 5, 2, 4]);
    }

    #[test]
    fn a_full_pool_lets_the_best_payer_in_for_the_last_of_the_worst() {
        let state = state();
        let full = [(1, 0, 5), (1, 1, 5), (2, 0, 2), (2, 1, 9), (3, 0, 2)];
        for (name, new, expected) in [
            ("not more than the cheapest", (4, 0, 2), Err(PoolError::Full)),
            ("more: of the cheapest the latest arrival goes", (4, 0, 3), Ok((3, 0))),
            ("a sender's tip counts no more than the lowest before it", (3, 1, 9), Err(PoolError::Full)),
            ("nor does it evict its own", (2, 2, 3), Err(PoolError::Full)),
            ("behind a gap nobody is evicted", (4, 1, 50), Err(PoolError::Full)),
        ] {
            let mut pool = pool(full.len());
            fill(&mut pool, &state, &full);
            let before = full.map(|(sender, nonce, tip)| (tx(sender, nonce, tip).hash, (sender, nonce)));
            let result = pool.add(tx(new.0, new.1, new.2), &state);
            let gone = before.iter().find(|(hash, _)| pool.get(hash).is_none()).map(|(_, which)| *which);
            assert_eq!(result.map(|()| gone.expect("somebody made room")), expected, "{name}");
            assert_eq!(pool.waiting(), full.len(), "{name}");
        }
    }

    #[test]
    fn an_evicted_transaction_leaves_its_predecessors_and_its_nonce_is_free_again() {
        let state = state();
        let mut pool = pool(3);
        fill(&mut pool, &state, &[(1, 0, 1), (1, 1, 1), (1, 2, 1), (2, 0, 2)]);
        assert_eq!(pool.next_nonce(&who(1), 0), 2);
        assert_eq!(selected(&mut pool, &state), [(2, 0), (1, 0), (1, 1)]);
        pool.discard(&tx(2, 0, 2));
        fill(&mut pool, &state, &[(1, 2, 1)]);
        assert_eq!(pool.next_nonce(&who(1), 0), 3);
    }

    #[test]
    fn a_large_transaction_takes_the_place_of_several_cheaper_ones_or_of_none() {
        let state = state();
        let size = tx(1, 0, 1).raw.len();
        let mut large = tx(9, 0, 3);
        large.raw = vec![0; 2 * size].into();
        // Some fees are a byte longer than others.
        let capacity = Capacity { transactions: 100, bytes: 3 * size + 16 };
        for (name, waiting, left) in [
            ("two cheaper ones go", [(1, 0, 1), (2, 0, 2), (3, 0, 4)], Ok(2)),
            ("one is not enough", [(1, 0, 1), (2, 0, 3), (3, 0, 4)], Err(PoolError::Full)),
        ] {
            let mut pool = Pool::with_capacity(LIMITS, None, capacity);
            fill(&mut pool, &state, &waiting);
            assert_eq!(pool.add(large.clone(), &state).map(|()| pool.waiting()), left, "{name}");
            assert!(pool.bytes <= capacity.bytes && (left.is_ok() || pool.waiting() == 3), "{name}");
        }
    }

    #[test]
    fn what_waits_too_long_is_dropped() {
        let state = state();
        let mut pool = pool(10);
        let start = Instant::now();
        pool.add_at(tx(1, 0, 1), &state, start).expect("admitted");
        pool.add_at(tx(2, 1, 1), &state, start + WAIT_MAX / 2).expect("admitted, behind a gap");
        pool.expire(start + WAIT_MAX - Duration::from_secs(1));
        assert_eq!(pool.waiting(), 2);
        pool.add_at(tx(3, 0, 1), &state, start + WAIT_MAX).expect("admitted");
        assert_eq!((pool.waiting(), pool.next_nonce(&who(1), 0)), (2, 0));
        pool.expire(start + 2 * WAIT_MAX);
        assert_eq!((pool.waiting(), pool.bytes, pool.tails.len(), pool.senders.len()), (0, 0, 0, 0));
    }

    /// The indexes must tell the same as the queues, whatever happened.
    #[test]
    fn the_indexes_agree_with_the_queues_after_random_work() {
        const SEED: u64 = 0x5eed_0001;
        let state = state();
        let mut pool = pool(24);
        let mut random = SEED;
        let mut below = |n: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % n
        };
        for step in 0..5_000 {
            let (sender, nonce, tip) = (below(6) as u8, below(8), u128::from(below(9)) + 1);
            match below(8) {
                0 => pool.discard_used(who(sender), nonce),
                1 => pool.discard(&tx(sender, nonce, tip)),
                _ => drop(pool.add(tx(sender, nonce, tip), &state)),
            }
            let all = pool.senders.values().flat_map(|queue| queue.by_nonce.values()).collect::<Vec<_>>();
            assert_eq!(all.len(), pool.by_hash.len(), "seed {SEED:#x}, step {step}");
            assert_eq!(all.len(), pool.by_arrival.len(), "seed {SEED:#x}, step {step}");
            assert_eq!(all.iter().map(|waiting| waiting.tx.raw.len()).sum::<usize>(), pool.bytes, "step {step}");
            let tails = pool.senders.iter().map(|(sender, queue)| {
                let tips = queue.by_nonce.values().map(|waiting| waiting.tx.tip(LIMITS.base_fee));
                let last = queue.by_nonce.values().next_back().expect("no queue is empty");
                (tips.min().expect("no queue is empty"), Reverse(last.arrival), *sender)
            });
            assert_eq!(tails.collect::<BTreeSet<_>>(), pool.tails, "seed {SEED:#x}, step {step}");
        }
    }
}
