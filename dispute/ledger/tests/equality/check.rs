//! Runs worlds through all executors and says at the first difference which one, where, and with how few
//! transactions it still happens.

use std::collections::BTreeMap;
use std::env;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use alloy_eip7928::BlockAccessList;
use alloy_primitives::U256;
use payhub_ledger::block_stm::BlockStm;
use payhub_ledger::evm::BlockContext;
use payhub_ledger::executor::{BlockOutput, ExecutionError, Executor, Outcome, Sequential};
use payhub_ledger::replay::Replay;
use payhub_ledger::state::{ReadState, State};
use payhub_ledger::transaction::Recovered;
use payhub_ledger::trie::StateTrie;

use crate::oracle::Oracle;
use crate::world::{Audience, Block, World};

/// Consecutive blocks of one world.
pub const BLOCKS_PER_WORLD: u64 = 10;

/// Every so many worlds the state root is compared after each block, in the others after the last.
const ROOTS_EVERY: u64 = 16;

/// How long one world may take before it counts as hanging. They take a fraction of a second; a machine that does
/// other work at the same time must not fail us.
const HANGS_AFTER: Duration = Duration::from_secs(180);

/// A number from the environment.
pub fn setting(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is not a number")))
}

/// The executors that must agree with `Sequential`: parallel ones with fewer threads than cores, as many, and more,
/// with and without random pauses.
pub fn candidates(jitter: u64) -> Vec<Box<dyn Executor>> {
    vec![
        Box::new(parallel(1).with_cutoff(0)),
        Box::new(parallel(2).with_cutoff(0)),
        Box::new(parallel(3).with_cutoff(0).with_jitter(jitter)),
        Box::new(parallel(8).with_cutoff(0)),
    ]
}

/// Those that take turns, one a block: with a hasher that is no good, as it is used, and with more pauses.
pub fn alternates(jitter: u64) -> Vec<Box<dyn Executor>> {
    vec![
        Box::new(Colliding(parallel(2).with_cutoff(0).with_jitter(jitter))),
        Box::new(parallel(2)),
        Box::new(parallel(2).with_cutoff(0).with_jitter(jitter + 1)),
        Box::new(Replaying(Replay::new(NonZeroUsize::new(2).expect("not zero")))),
    ]
}

fn parallel(workers: usize) -> BlockStm {
    BlockStm::new(NonZeroUsize::new(workers).expect("not zero")).with_access_list(true)
}

/// A parallel executor whose memory hashes every key to the same number.
struct Colliding(BlockStm);

impl Executor for Colliding {
    fn name(&self) -> &'static str {
        "parallel with a hasher that always collides"
    }

    fn execute(
        &mut self,
        block: &BlockContext,
        transactions: &[&Recovered],
        state: &ReadState<'_>,
    ) -> Result<BlockOutput, ExecutionError> {
        self.0.execute_hashed(block, transactions, state, BuildHasherDefault::<Constant>::default())
    }
}

/// Makes the block one by one and executes it again with its access list, and with one that lies.
struct Replaying(Replay);

impl Executor for Replaying {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn execute(
        &mut self,
        block: &BlockContext,
        transactions: &[&Recovered],
        state: &ReadState<'_>,
    ) -> Result<BlockOutput, ExecutionError> {
        let made = sequential().execute(block, transactions, state)?;
        let executed = transactions.iter().zip(&made.outcomes).filter(|(_, outcome)| **outcome == Outcome::Executed);
        let executed = executed.map(|(tx, _)| *tx).collect::<Vec<_>>();
        let list = made.access_list.clone().unwrap_or_default();
        let replayed = self.0.replay(block, &executed, state, &list);
        let replayed = replayed.unwrap_or_else(|error| panic!("a true access list is refused: {error}"));
        for (what, lie) in lies(&list) {
            let believed = self.0.replay(block, &executed, state, &lie);
            assert!(believed.is_err(), "a list with {what} is believed");
        }
        Ok(BlockOutput { outcomes: made.outcomes, ..replayed })
    }
}

/// Lists that differ from a true one in one value or one entry.
fn lies(list: &BlockAccessList) -> Vec<(&'static str, BlockAccessList)> {
    let mut lies = Vec::new();
    let mut lie = |what, change: &dyn Fn(&mut BlockAccessList) -> Option<()>| {
        let mut list = list.clone();
        lies.extend(change(&mut list).map(|()| (what, list)));
    };
    lie("another balance", &|list| {
        let change = list.iter_mut().find_map(|account| account.balance_changes.first_mut())?;
        change.post_balance ^= U256::from(1);
        Some(())
    });
    lie("another nonce", &|list| {
        list.iter_mut().find_map(|account| account.nonce_changes.last_mut())?.new_nonce ^= 1;
        Some(())
    });
    lie("another value of a slot", &|list| {
        let slot = list.iter_mut().find_map(|account| account.storage_changes.last_mut())?;
        slot.changes.first_mut()?.new_value ^= U256::from(1);
        Some(())
    });
    lie("an account too few", &|list| list.pop().map(|_| ()));
    lies
}

#[derive(Default)]
struct Constant;

impl Hasher for Constant {
    fn finish(&self) -> u64 {
        7
    }

    fn write(&mut self, _bytes: &[u8]) {}
}

/// How often what was seen.
pub type Seen = BTreeMap<&'static str, u64>;

/// Runs worlds until that many blocks are done, on all cores.
pub fn run(first_seed: u64, blocks: u64) -> Seen {
    let worlds = blocks.div_ceil(BLOCKS_PER_WORLD);
    let only = setting("PAYHUB_WORLD");
    let next = AtomicU64::new(0);
    let seen = Mutex::new(Seen::new());
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for thread in 0..thread::available_parallelism().map_or(1, |n| n.get() as u64) {
            let (next, seen, failure) = (&next, &seen, &failure);
            scope.spawn(move || {
                let jitter = first_seed.wrapping_add(100 * thread);
                let (mut always, mut in_turn) = (candidates(jitter), alternates(jitter));
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= worlds || failure.lock().expect("nobody panics with it").is_some() {
                        return;
                    }
                    let seed = only.unwrap_or(first_seed.wrapping_add(i));
                    match world(seed, i % ROOTS_EVERY == 0, &mut always, &mut in_turn) {
                        Ok(more) => {
                            let mut seen = seen.lock().expect("nobody panics with it");
                            for (what, times) in more {
                                *seen.entry(what).or_default() += times;
                            }
                        }
                        Err(message) => {
                            failure.lock().expect("nobody panics with it").get_or_insert(message);
                        }
                    }
                    if only.is_some() {
                        return;
                    }
                }
            });
        }
    });
    if let Some(message) = failure.into_inner().expect("nobody panics with it") {
        panic!("{message}");
    }
    seen.into_inner().expect("nobody panics with it")
}

/// Runs one world through the executors and the oracle.
pub fn world(
    seed: u64,
    each_root: bool,
    always: &mut [Box<dyn Executor>],
    in_turn: &mut [Box<dyn Executor>],
) -> Result<Seen, String> {
    let reproduce = format!("PAYHUB_WORLD={seed} PAYHUB_BLOCKS={BLOCKS_PER_WORLD}");
    let watchdog = Watchdog::new(format!("world {seed} hangs; reproduce with {reproduce}"));
    let mut world = World::new(seed, Audience::Ourselves);
    let mut oracle = Oracle::new(&world.state, &world.block_hashes);
    let mut trie = StateTrie::build(&world.state);
    for height in 1..=BLOCKS_PER_WORLD {
        let block = world.next_block();
        let at = |what: String| format!("world {seed}, block {height}: {what}\nreproduce with {reproduce}");
        let expected = execute(&mut sequential(), &block, &world.state).map_err(&at)?;
        let turn = (seed ^ height) as usize % in_turn.len().max(1);
        for executor in always.iter_mut().chain(in_turn.get_mut(turn)) {
            if let Some(difference) = differs(executor.as_mut(), &block, &world.state, &expected) {
                let small = minimal(block.transactions.clone(), |transactions| {
                    let block = Block { context: block.context.clone(), transactions: transactions.to_vec() };
                    let expected = execute(&mut sequential(), &block, &world.state).ok()?;
                    differs(executor.as_mut(), &block, &world.state, &expected)
                });
                return Err(at(format!("{} differs: {difference}\n{small}", executor.name())));
            }
        }
        let verdict = oracle.execute(&block).map_err(&at)?;
        if verdict.outcomes != expected.outcomes {
            return Err(at(first_difference("outcome", &verdict.outcomes, &expected.outcomes)));
        }
        if verdict.receipts != expected.receipts {
            return Err(at(first_difference("receipt", &verdict.receipts, &expected.receipts)));
        }
        let access_list = expected.access_list.unwrap_or_default();
        if verdict.access_list != access_list {
            return Err(at(first_difference("access list entry", &verdict.access_list, &access_list)));
        }
        world.advance(&block, &expected.changes);
        oracle.push_hash(block.context.number, world.block_hashes[&block.context.number]);
        trie.apply(&expected.changes);
        if let Some(difference) = oracle.difference(&world.state) {
            return Err(at(format!("the change set is wrong: {difference}\n{block:#?}")));
        }
        if (each_root || height == BLOCKS_PER_WORLD) && trie.root() != oracle.root() {
            return Err(at("the state root differs from the full rebuild".to_owned()));
        }
    }
    watchdog.done();
    Ok(oracle.seen)
}

/// The executor that the others are compared with.
pub fn sequential() -> Sequential {
    Sequential::new().with_access_list(true)
}

/// Executes a block.
pub fn execute(executor: &mut dyn Executor, block: &Block, state: &State) -> Result<BlockOutput, String> {
    let transactions: Vec<&Recovered> = block.transactions.iter().collect();
    let output = executor.execute(&block.context, &transactions, state);
    output.map_err(|error| format!("{} fails: {error}", executor.name()))
}

/// Tells how an executor's block differs from the sequential one.
pub fn differs(executor: &mut dyn Executor, block: &Block, state: &State, expected: &BlockOutput) -> Option<String> {
    let got = match execute(executor, block, state) {
        Ok(got) => got,
        Err(error) => return Some(error),
    };
    if got.outcomes != expected.outcomes {
        return Some(first_difference("outcome", &expected.outcomes, &got.outcomes));
    }
    if got.receipts != expected.receipts {
        return Some(first_difference("receipt", &expected.receipts, &got.receipts));
    }
    let accounts = |output: &BlockOutput| output.changes.accounts.clone().into_iter().collect::<Vec<_>>();
    if got.changes.accounts != expected.changes.accounts {
        return Some(first_difference("account change", &accounts(expected), &accounts(&got)));
    }
    if got.access_list != expected.access_list {
        let list = |output: &BlockOutput| output.access_list.clone().unwrap_or_default();
        return Some(first_difference("access list entry", &list(expected), &list(&got)));
    }
    (got.changes.codes != expected.changes.codes).then(|| "the new codes differ".to_owned())
}

/// Drops transactions one by one for as long as the block still fails, and describes what is left.
fn minimal(mut transactions: Vec<Recovered>, mut fails: impl FnMut(&[Recovered]) -> Option<String>) -> String {
    let mut index = transactions.len();
    let mut last = None;
    while index > 0 {
        index -= 1;
        let removed = transactions.remove(index);
        match fails(&transactions) {
            Some(difference) => last = Some(difference),
            None => transactions.insert(index, removed),
        }
    }
    let list: Vec<String> = transactions.iter().map(|t| format!("{} {:?}", t.sender, t.tx)).collect();
    format!(
        "it needs {} transactions:\n{}\n{}",
        transactions.len(),
        list.join("\n"),
        last.unwrap_or_else(|| "no transaction can be left out".to_owned())
    )
}

fn first_difference<T: PartialEq + std::fmt::Debug>(what: &str, expected: &[T], got: &[T]) -> String {
    let at = expected.iter().zip(got).position(|(a, b)| a != b).unwrap_or_else(|| expected.len().min(got.len()));
    format!("{what} {at} differs: expected {:?}\n got {:?}", expected.get(at), got.get(at))
}

/// Ends the process with a message if it is not told in time that all is well: a test that hangs says nothing.
pub struct Watchdog(Sender<()>);

impl Watchdog {
    /// Watches from now on.
    pub fn new(message: String) -> Self {
        let (done, wait) = channel();
        thread::spawn(move || {
            if wait.recv_timeout(HANGS_AFTER) == Err(RecvTimeoutError::Timeout) {
                let _ = writeln!(std::io::stderr(), "{message}");
                std::process::abort();
            }
        });
        Self(done)
    }

    /// Stops watching.
    pub fn done(self) {
        drop(self.0);
    }
}

/// Forgets that a slot was cleared: a mistake of the kind the comparison is there to find.
pub struct Forgetful;

impl Executor for Forgetful {
    fn name(&self) -> &'static str {
        "forgetful"
    }

    fn execute(
        &mut self,
        block: &BlockContext,
        transactions: &[&Recovered],
        state: &ReadState<'_>,
    ) -> Result<BlockOutput, ExecutionError> {
        let mut output = sequential().execute(block, transactions, state)?;
        for change in output.changes.accounts.values_mut() {
            change.slots.retain(|_, value| !value.is_zero());
        }
        Ok(output)
    }
}
