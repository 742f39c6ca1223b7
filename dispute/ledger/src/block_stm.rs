//! Parallel execution of a block: optimistic, with the result of executing one by one.
//!
//! After Block-STM (Gelashvili et al., "Block-STM: Scaling Blockchain Execution by Turning Ordering Curse to a
//! Performance Blessing", PPoPP 2023), with three differences:
//!
//! * **The commit rule is a comparison of values.** A transaction that was executed ahead is committed when its turn
//!   comes if everything it read equals the committed state, which is kept apart from the multi-version memory, in the
//!   same structure that sequential execution uses. Execution is deterministic, so equal reads give equal results.
//!   This check is the validation and the audit in one, and cannot be switched off. The scheduler can therefore only
//!   make a block slow. Of the memory one word is taken: that a value which it calls the one before the block is that
//!   value, for a key that nothing committed in this block has touched. It passes such values on from the base
//!   unchanged, and they are not read a second time.
//! * **The frontier executes.** The transaction whose turn it is and that has no valid result is executed at once on
//!   the committed state, as sequential execution would, by whoever holds the commit lock. That is where everything
//!   goes that cannot be executed ahead (nonce gaps, insolvent senders, whatever reads the fee recipient) or is not
//!   worth it (a plain transfer costs as much as the check of its result), and what failed its check. With one thread
//!   every transaction is there, and parallel execution *is* sequential execution.
//! * **Speculation pays or pauses.** The pace of windows with and without it is measured by the clock; where it is not
//!   faster, nothing is executed ahead for a while, and in the end for the rest of the block. The clock decides what is
//!   done when, never what is in a block.
//!
//! Tips are summed beside the state and added to the fee recipient's account when somebody reads it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::TxKind;
use alloy_primitives::map::{AddressMap, DefaultHashBuilder, HashMap};
use revm::state::EvmState;

use crate::evm::BlockContext;
use crate::executor::{
    Aborts, BlockOutput, ExecutionError, Executor, Frontier, FrontierEvm, Key, Sequential, Statistics,
};
use crate::memory::{Memory, Read, Tables};
use crate::scheduler::{Scheduler, Task};
use crate::state::{ReadState, StateError};
use crate::sync::{Mutex, PoisonError};
use crate::transaction::Recovered;
use crate::vm::{Cache, Ended, Seen, SeenValue, Speculation, Speculator};

/// How far ahead of the frontier transactions are started: far enough that one long transaction does not stop the
/// others, near enough that what they read is seldom outdated.
const LOOKAHEAD: usize = 128;

/// Fewest transactions worth executing ahead for which other threads are woken. An estimate: a wake-up takes some 50 us,
/// a token transfer 4 us.
const CUTOFF: usize = 12;

/// After how many executions a thread other than the first tries to commit although there is more to execute. The
/// committed state is best touched by one thread; this is for when that one is busy with something long. Measurements
/// showed no clear difference between this and letting everybody commit.
const COMMIT_EVERY: usize = 16;

/// How many transfers without data are looked at to see whether they go to contracts.
const TRANSFERS_SAMPLED: usize = 32;

/// Transactions over which it is measured whether executing ahead pays.
const WINDOW: usize = 16;

/// Executing ahead pays if it is so much faster than not to, in per cent.
const PAYS_PERCENT: u128 = 105;

/// For how many transactions nothing is executed ahead after it did not pay, at first. Each pause that follows without
/// a window that paid is twice as long.
const PAUSE_MIN: usize = 32;

/// The longest pause; when the window after it does not pay either, the rest of the block is executed at the frontier.
const PAUSE_MAX: usize = 64;

/// Keys in the conflict report.
const CONFLICTS_REPORTED: usize = 32;

/// Parallel execution with a pool of threads of its own.
pub struct BlockStm {
    workers: NonZeroUsize,
    cutoff: usize,
    access_list: bool,
    jitter: Option<u64>,
    pool: Option<rayon::ThreadPool>,
    caches: Vec<Cache>,
    /// Room for the memory of the next block; the thread that clears it brings it back.
    tables: Arc<Mutex<Option<Tables>>>,
}

impl std::fmt::Debug for BlockStm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStm").field("workers", &self.workers).field("cutoff", &self.cutoff).finish_non_exhaustive()
    }
}

impl BlockStm {
    /// With so many threads, the caller's included. The others live as long as the executor and sleep between blocks.
    /// Where the operating system gives no threads, execution is sequential.
    pub fn new(workers: NonZeroUsize) -> Self {
        let others = workers.get() - 1;
        let build = || {
            rayon::ThreadPoolBuilder::new()
                .num_threads(others)
                .thread_name(|i| format!("execute-{}", i + 1))
                .build()
                .inspect_err(|error| tracing::warn!(%error, "no threads for parallel execution"))
                .ok()
        };
        Self {
            workers,
            cutoff: CUTOFF,
            access_list: false,
            jitter: None,
            pool: if others > 0 { build() } else { None },
            caches: std::iter::repeat_with(Cache::default).take(workers.get()).collect(),
            tables: Arc::default(),
        }
    }

    /// Whether access lists are recorded.
    pub fn with_access_list(self, access_list: bool) -> Self {
        Self { access_list, ..self }
    }

    /// The fewest transactions worth executing ahead for which a block is executed in parallel; 0 for always.
    pub fn with_cutoff(self, cutoff: usize) -> Self {
        Self { cutoff, ..self }
    }

    /// For tests: threads give way at random moments, so that rare interleavings happen.
    pub fn with_jitter(self, seed: u64) -> Self {
        Self { jitter: Some(seed), ..self }
    }

    /// [`Executor::execute`] with a hasher for the memory, so that the tests can choose a bad one.
    pub fn execute_hashed<S: std::hash::BuildHasher + Send + Sync>(
        &mut self,
        block: &BlockContext,
        transactions: &[&Recovered],
        state: &ReadState<'_>,
        hasher: S,
    ) -> Result<BlockOutput, ExecutionError> {
        let Some(pool) = self.pool.as_ref().filter(|_| worthwhile(transactions, state, self.cutoff)) else {
            return Sequential::new().with_access_list(self.access_list).execute(block, transactions, state);
        };
        let started = Instant::now();
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
        let run = Run {
            block,
            transactions,
            state,
            memory: Memory::new(state, hasher, tables),
            scheduler: Scheduler::new(predecessors(transactions), LOOKAHEAD),
            written: std::iter::repeat_with(Mutex::default).take(transactions.len()).collect(),
            commit: Mutex::new(Commit {
                frontier: Frontier::new(block, state, self.access_list, transactions.len()),
                error: None,
                pace: Pace::default(),
                statistics: Statistics::default(),
                conflicts: HashMap::default(),
            }),
        };
        let jitter = self.jitter;
        let (own, others) = self.caches.split_first_mut().expect("there is one for each worker");
        pool.in_place_scope(|scope| {
            for (seed, cache) in (1..).zip(others) {
                let run = &run;
                scope.spawn(move |_| run.work(cache, COMMIT_EVERY, jitter.map(|jitter| jitter.wrapping_add(seed))));
            }
            run.work(own, 1, jitter);
        });
        let Commit { frontier, error, statistics, conflicts, .. } =
            run.commit.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Nobody has to wait for that.
        let (mut tables, home) = (run.memory.into_tables(), self.tables.clone());
        pool.spawn(move || {
            tables.clear();
            *home.lock().unwrap_or_else(PoisonError::into_inner) = Some(tables);
        });
        if let Some(error) = error {
            return Err(error);
        }
        let output = frontier.finish();
        let mut conflicts = conflicts.into_iter().collect::<Vec<_>>();
        conflicts.sort_unstable_by(|(a, times_a), (b, times_b)| times_b.cmp(times_a).then(a.cmp(b)));
        conflicts.truncate(CONFLICTS_REPORTED);
        let statistics =
            Statistics { workers: self.workers.get(), conflicts, elapsed: started.elapsed(), ..statistics };
        Ok(BlockOutput { statistics, ..output })
    }
}

impl Executor for BlockStm {
    fn name(&self) -> &'static str {
        "block-stm"
    }

    fn execute(
        &mut self,
        block: &BlockContext,
        transactions: &[&Recovered],
        state: &ReadState<'_>,
    ) -> Result<BlockOutput, ExecutionError> {
        self.execute_hashed(block, transactions, state, DefaultHashBuilder::default())
    }
}

/// Whether enough transactions are worth executing ahead.
fn worthwhile(transactions: &[&Recovered], state: &ReadState<'_>, cutoff: usize) -> bool {
    let (plain, others): (Vec<&Recovered>, Vec<&Recovered>) =
        transactions.iter().partition(|tx| transfer_to(tx).is_some());
    if others.len() >= cutoff {
        return true;
    }
    // Transfers may run code, too; a sample tells.
    let step = plain.len().div_ceil(TRANSFERS_SAMPLED).max(1);
    let to_code = plain.iter().step_by(step).filter(|tx| !is_cheap(tx, state)).count();
    others.len() + to_code * step >= cutoff
}

fn transfer_to(tx: &Recovered) -> Option<alloy_primitives::Address> {
    use alloy::consensus::Transaction as _;
    match tx.tx.kind() {
        TxKind::Call(to) if tx.tx.input().is_empty() => Some(to),
        TxKind::Call(_) | TxKind::Create => None,
    }
}

/// Whether executing the transaction costs about as much as checking its result: a transfer that runs no code.
fn is_cheap(tx: &Recovered, state: &ReadState<'_>) -> bool {
    let Some(to) = transfer_to(tx) else { return false };
    // A state that fails is reported where it is read for good.
    state.basic_ref(to).is_ok_and(|info| info.is_none_or(|info| info.is_empty_code_hash()))
}

/// For each transaction the one before it of the same sender.
fn predecessors(transactions: &[&Recovered]) -> Vec<Option<usize>> {
    let mut last = AddressMap::with_capacity_and_hasher(transactions.len(), Default::default());
    (0..).zip(transactions).map(|(at, tx)| last.insert(tx.sender, at)).collect()
}

/// A block in execution.
struct Run<'a, S> {
    block: &'a BlockContext,
    transactions: &'a [&'a Recovered],
    state: &'a ReadState<'a>,
    memory: Memory<'a, S>,
    scheduler: Scheduler<Box<Speculation>>,
    /// What the newest execution of each transaction left in the memory.
    written: Vec<Mutex<Vec<Key>>>,
    commit: Mutex<Commit<'a>>,
}

/// What the holder of the commit lock works on.
struct Commit<'a> {
    frontier: Frontier<'a>,
    error: Option<ExecutionError>,
    pace: Pace,
    statistics: Statistics,
    conflicts: HashMap<Key, u64>,
}

/// Measures whether executing ahead pays: how much gas is committed in a time, against how much is executed in the same
/// time at the frontier. A clock decides only how fast a block is executed, never what is in it.
struct Pace {
    /// Executed at the frontier.
    here_gas: u64,
    here_time: Duration,
    /// The window that is being measured: it begins with a result from ahead.
    began: Option<Instant>,
    committed: usize,
    gas: u64,
    pause: usize,
}

enum Verdict {
    GoOn,
    Pause(usize),
    GiveUp,
}

impl Default for Pace {
    fn default() -> Self {
        Self { here_gas: 0, here_time: Duration::ZERO, began: None, committed: 0, gas: 0, pause: PAUSE_MIN }
    }
}

impl Pace {
    /// A transaction was executed at the frontier. `stale`: because its result from ahead did not stand.
    fn executed_here(&mut self, gas: u64, time: Duration, stale: bool) {
        self.here_gas += gas;
        self.here_time += time;
        self.count(gas, stale);
    }

    /// A transaction was committed with its result from ahead.
    fn speculated(&mut self, gas: u64) {
        self.count(gas, true);
    }

    fn count(&mut self, gas: u64, from_ahead: bool) {
        if self.began.is_some() {
            self.committed += 1;
            self.gas += gas;
        } else if from_ahead {
            self.began = Some(Instant::now());
        }
    }

    fn verdict(&mut self) -> Verdict {
        let Some(began) = self.began.filter(|_| self.committed >= WINDOW) else { return Verdict::GoOn };
        let (elapsed, gas) = (began.elapsed().as_nanos(), std::mem::take(&mut self.gas));
        (self.began, self.committed) = (None, 0);
        // gas / elapsed >= 1.05 * here_gas / here_time, if anything was executed here
        let ahead = u128::from(gas) * self.here_time.as_nanos() * 100;
        if self.here_gas == 0 || ahead >= u128::from(self.here_gas) * elapsed * PAYS_PERCENT {
            self.pause = PAUSE_MIN;
            return Verdict::GoOn;
        }
        let pause = self.pause;
        self.pause *= 2;
        if pause > PAUSE_MAX { Verdict::GiveUp } else { Verdict::Pause(pause) }
    }
}

/// What a thread counts for itself.
#[derive(Default)]
struct Counts {
    executions: u64,
    validations: u64,
    waits: u64,
    aborts: Aborts,
}

/// Ends the block if a thread panics, so that the others do not wait for it for ever.
struct StopOnPanic<'s>(&'s Scheduler<Box<Speculation>>);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

impl<'a, S: std::hash::BuildHasher> Run<'a, S> {
    /// What every thread does until the block is done. It tries to commit before every so many executions, and before it
    /// sleeps.
    fn work(&self, cache: &mut Cache, commit_every: usize, jitter: Option<u64>) {
        let _guard = StopOnPanic(&self.scheduler);
        let mut jitter = Jitter(jitter);
        let mut speculator = Speculator::new(self.block, &self.memory, cache);
        let mut evm = FrontierEvm::new(self.block);
        let mut counts = Counts::default();
        let mut tasks = 0usize;
        while !self.scheduler.done() {
            jitter.maybe_yield();
            let task = if tasks.is_multiple_of(commit_every) { None } else { self.scheduler.claim() };
            let task = task.or_else(|| {
                self.scheduler.advance(&self.commit, |commit, at, result| {
                    jitter.maybe_yield();
                    let stepped = self.step(commit, &mut evm, at, result);
                    stepped.map_err(|error| commit.error = Some(error)).is_ok()
                });
                jitter.maybe_yield();
                self.scheduler.claim()
            });
            tasks += 1;
            match task {
                Some(Task::Execute(at)) => self.execute(&mut speculator, at, &mut counts),
                Some(Task::Recheck(at, result)) => self.recheck(&mut speculator, at, result, &mut counts),
                None => self.scheduler.sleep(),
            }
        }
        let mut commit = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        commit.statistics.add(&counts);
    }

    /// Executes a transaction ahead of the committed state.
    fn execute(&self, speculator: &mut Speculator<'_, '_, S>, at: usize, counts: &mut Counts) {
        let tx = self.transactions[at];
        if is_cheap(tx, self.state) {
            return self.scheduler.leave_to_frontier(at);
        }
        counts.executions += 1;
        match speculator.execute(tx, at) {
            Ended::Done(mut done) => {
                self.publish(at, &mut done.executed.1);
                self.scheduler.finish(at, done);
            }
            Ended::Estimate(on) => {
                counts.waits += 1;
                counts.aborts.estimate += 1;
                self.scheduler.put_off(at, on);
            }
            Ended::FeeRecipient => {
                counts.aborts.fee_recipient += 1;
                self.scheduler.leave_to_frontier(at);
            }
            Ended::NotExecutable | Ended::Failed => {
                counts.aborts.not_executable += 1;
                self.scheduler.leave_to_frontier(at);
            }
        }
    }

    /// Looks whether a result still stands, and if not executes the transaction again.
    fn recheck(
        &self,
        speculator: &mut Speculator<'_, '_, S>,
        at: usize,
        result: Box<Speculation>,
        counts: &mut Counts,
    ) {
        counts.validations += 1;
        if result.reads.iter().all(|seen| self.still_reads(at, seen)) {
            return self.scheduler.finish(at, result);
        }
        counts.aborts.stale_before_commit += 1;
        self.memory.mark_estimates(at, &self.written(at));
        self.execute(speculator, at, counts);
    }

    fn still_reads(&self, at: usize, seen: &Seen) -> bool {
        match seen.value {
            SeenValue::Basic(address, before) => {
                matches!(self.memory.basic(address, at), Ok(Read::Written(now) | Read::Base(now)) if now == before)
            }
            SeenValue::Slot(address, index, before) => {
                matches!(self.memory.slot(address, index, at), Ok(Read::Written(now) | Read::Base(now)) if now == before)
            }
        }
    }

    /// Makes what an execution wrote visible to later transactions.
    fn publish(&self, at: usize, state: &mut EvmState) {
        let overtaken = self.memory.publish(at, state, &mut self.written(at));
        if overtaken {
            self.scheduler.recheck_from(at + 1);
        }
    }

    fn written(&self, at: usize) -> crate::sync::MutexGuard<'_, Vec<Key>> {
        self.written[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Commits the transaction at the frontier: with its result if that stands, else by executing it here.
    fn step(
        &self,
        commit: &mut Commit<'a>,
        evm: &mut FrontierEvm<'a>,
        at: usize,
        result: Option<Box<Speculation>>,
    ) -> Result<(), ExecutionError> {
        let tx = self.transactions[at];
        let stale = result.is_some();
        if let Some(result) = result {
            commit.statistics.validations += 1;
            let Some(stale) = commit.first_stale(&result.reads)? else {
                commit.pace.speculated(result.executed.0.tx_gas_used());
                self.pause_unless_it_pays(&mut commit.pace, at);
                return commit.frontier.commit(tx, result.executed);
            };
            commit.statistics.aborts.stale_at_commit += 1;
            *commit.conflicts.entry(stale).or_default() += 1;
            self.memory.mark_estimates(at, &self.written(at));
        }
        commit.statistics.executions += 1;
        let started = Instant::now();
        let executed = commit.frontier.execute(evm, tx)?;
        if let Ok((result, _)) = &executed {
            commit.pace.executed_here(result.tx_gas_used(), started.elapsed(), stale);
            self.pause_unless_it_pays(&mut commit.pace, at);
        }
        match executed {
            // Nobody executes ahead any more, so nobody reads the memory.
            Ok(executed) if self.scheduler.gave_up() => commit.frontier.commit(tx, executed),
            Ok(mut executed) => {
                self.publish(at, &mut executed.1);
                commit.frontier.commit(tx, executed)
            }
            Err(reason) => {
                self.publish(at, &mut EvmState::default());
                commit.frontier.skip(reason);
                Ok(())
            }
        }
    }

    fn pause_unless_it_pays(&self, pace: &mut Pace, at: usize) {
        match pace.verdict() {
            Verdict::GoOn => {}
            Verdict::Pause(transactions) => self.scheduler.pause_until(at + 1 + transactions),
            Verdict::GiveUp => self.scheduler.give_up(),
        }
    }
}

impl Commit<'_> {
    /// The first key whose value differs from what was read.
    fn first_stale(&mut self, reads: &[Seen]) -> Result<Option<Key>, ExecutionError> {
        for seen in reads {
            let same = self.is_committed(seen).map_err(|source| self.frontier.state_error(source))?;
            if !same {
                return Ok(Some(seen.key()));
            }
        }
        Ok(None)
    }

    fn is_committed(&mut self, seen: &Seen) -> Result<bool, StateError> {
        let committed = self.frontier.committed();
        match seen.value {
            SeenValue::Basic(address, read) => committed.basic_is(address, read, seen.from_base),
            SeenValue::Slot(address, index, read) => committed.slot_is(address, index, read, seen.from_base),
        }
    }
}

impl Statistics {
    fn add(&mut self, counts: &Counts) {
        self.executions += counts.executions;
        self.validations += counts.validations;
        self.waits += counts.waits;
        self.aborts.stale_before_commit += counts.aborts.stale_before_commit;
        self.aborts.estimate += counts.aborts.estimate;
        self.aborts.not_executable += counts.aborts.not_executable;
        self.aborts.fee_recipient += counts.aborts.fee_recipient;
    }
}

/// Gives way at random moments (xorshift), if a seed is given.
struct Jitter(Option<u64>);

impl Jitter {
    fn maybe_yield(&mut self) {
        let Some(seed) = &mut self.0 else { return };
        *seed = (*seed | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        *seed ^= *seed >> 29;
        if seed.is_multiple_of(3) {
            std::thread::yield_now();
        }
    }
}
