//! The scheduler of parallel execution under a model checker: the commit rule, the cursors, and who wakes whom.
//!
//! The scheduler is compiled here a second time, with locks and atomics that hand control to shuttle, which lets one
//! thread go at a time and decides at each of them who is next: at random, or by priorities that change at few points
//! (PCT), which finds the rare orders. The threads do what those of parallel execution do, with transactions over a
//! handful of cells in the place of the EVM's and every bad luck in the place of contracts.
//!
//! A wake-up that is lost is a deadlock here, and shuttle reports those. On a failure it prints the seed or the
//! schedule, with which `shuttle::check_random_with_seed` and `shuttle::replay` repeat it. `PAYHUB_SCHEDULES` is the
//! number of orders that each test tries.

#[path = "../../src/scheduler.rs"]
mod scheduler;

/// What `crate::sync` is in the ledger.
mod sync {
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, PoisonError};

    pub(crate) mod atomic {
        pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    }
}

// What the checks themselves note down is invisible to the threads: these are no points at which another goes on.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use scheduler::{Scheduler, Task};
use shuttle::rand::{Rng, thread_rng};
use sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Orders that each test tries unless told otherwise: all tests together take seconds.
const SCHEDULES: usize = 10_000;

/// At how many points PCT changes priorities, at most: most known bugs in locks need no more than three.
const PCT_DEPTH: usize = 4;

/// How many cells there are.
const CELLS: usize = 4;

#[test]
fn every_transaction_is_committed_once_in_order_and_the_state_is_that_of_one_by_one() {
    shuttle::check_random(|| Run::new(Plan::any(Luck::Bad)).go(), schedules());
}

#[test]
fn the_same_holds_when_priorities_change_seldom() {
    shuttle::check_pct(|| Run::new(Plan::any(Luck::Bad)).go(), schedules(), PCT_DEPTH);
}

#[test]
fn a_block_that_fails_or_a_thread_that_dies_ends_all_threads() {
    shuttle::check_random(|| Run::new(Plan::any(Luck::Fatal)).go(), schedules());
    shuttle::check_pct(|| Run::new(Plan::any(Luck::Fatal)).go(), schedules(), PCT_DEPTH);
}

#[test]
fn while_one_takes_long_at_the_frontier_the_others_execute_whatever_does_not_need_it() {
    shuttle::check_random(|| Run::new(Plan::any(Luck::Long)).go(), schedules());
    shuttle::check_pct(|| Run::new(Plan::any(Luck::Long)).go(), schedules(), PCT_DEPTH);
}

#[test]
fn while_one_takes_long_at_the_frontier_whatever_it_overtook_is_looked_at_again() {
    shuttle::check_random(|| Run::new(Plan::any(Luck::Overtaking)).go(), schedules());
    shuttle::check_pct(|| Run::new(Plan::any(Luck::Overtaking)).go(), schedules(), PCT_DEPTH);
}

#[test]
fn who_is_overtaken_while_it_runs_is_looked_at_when_it_has_finished() {
    let story = || {
        let scheduler = Scheduler::new(vec![None; 3], 3);
        let claim = || scheduler.claim();
        assert_eq!((claim(), claim()), (Some(Task::Execute(0)), Some(Task::Execute(1))));
        scheduler.finish(0, "zero");
        scheduler.recheck_from(1);
        assert_eq!(claim(), Some(Task::Execute(2)), "there is nothing to look at yet");
        scheduler.finish(1, "one");
        assert_eq!(claim(), Some(Task::Recheck(1, "one")));
        scheduler.finish(1, "one");
        scheduler.finish(2, "two");
        // Who was overtaken may have misled those after it.
        assert_eq!((claim(), claim()), (Some(Task::Recheck(2, "two")), None));
    };
    shuttle::check_random(story, 1);
}

/// Decides whether something happens that does so once in so many times.
fn happens(rate: u32) -> bool {
    rate > 0 && thread_rng().gen_ratio(1, rate)
}

fn schedules() -> usize {
    std::env::var("PAYHUB_SCHEDULES").map_or(SCHEDULES, |told| told.parse().expect("PAYHUB_SCHEDULES is a number"))
}

/// What may happen to a block besides being executed.
#[derive(Clone, Copy, PartialEq)]
enum Luck {
    /// Estimates, transactions that cannot be executed ahead, needless rechecks and waits, pauses, giving up.
    Bad,
    /// The same, and the block fails or a thread dies.
    Fatal,
    /// No transaction is committed before the others have executed all that they are able to.
    Long,
    /// No transaction is committed before the others have looked again at all later ones.
    Overtaking,
}

struct Transaction {
    sender: usize,
    reads: Vec<usize>,
    /// Writes this cell or, if what it read is odd, the next one.
    writes: usize,
    /// Is put off once until this one is done.
    put_off_on: Option<usize>,
    /// Is not worth executing ahead.
    cheap: bool,
}

/// How often each kind of bad luck happens: once in so many times, or never if 0. Some kinds show what they do only where
/// others keep away, so each plan has its own.
struct Rates {
    left_to_frontier: u32,
    put_off: u32,
    recheck: u32,
    pause: u32,
    give_up: u32,
    death: u32,
}

struct Plan {
    luck: Luck,
    rates: Rates,
    transactions: Vec<Transaction>,
    lookahead: usize,
    /// For each thread.
    commit_every: Vec<usize>,
    /// The block fails there.
    fails_at: Option<usize>,
}

impl Plan {
    fn any(luck: Luck) -> Self {
        let mut rng = thread_rng();
        let patient = matches!(luck, Luck::Long | Luck::Overtaking);
        let len = rng.gen_range(4..=8);
        // The third thread is for what two do behind the back of one at the frontier. For overtaking there is one helper,
        // and nothing is put off: a recheck may be lost otherwise, which costs speed.
        let threads = if luck == Luck::Overtaking { 2 } else { rng.gen_range(2..=3) };
        let senders = rng.gen_range(1..=len);
        let rate = |happens: bool| if happens { [0, 3, 10][thread_rng().gen_range(0..3)] } else { 0 };
        let transactions = (0..len).map(|at| Transaction {
            sender: if luck == Luck::Overtaking { at } else { rng.gen_range(0..senders) },
            reads: (0..rng.gen_range(1..=2)).map(|_| rng.gen_range(0..CELLS)).collect(),
            writes: rng.gen_range(0..CELLS),
            put_off_on: (at > 0 && luck != Luck::Overtaking && rng.gen_ratio(1, 4)).then(|| rng.gen_range(0..at)),
            cheap: !patient && rng.gen_ratio(1, 8),
        });
        Self {
            luck,
            rates: Rates {
                left_to_frontier: rate(!patient),
                put_off: rate(!patient),
                recheck: rate(!patient),
                pause: rate(!patient),
                give_up: rate(!patient),
                death: rate(luck == Luck::Fatal),
            },
            transactions: transactions.collect(),
            lookahead: rng.gen_range(1..=len),
            commit_every: (0..threads).map(|i| if i == 0 { 1 } else { rng.gen_range(1..=3) }).collect(),
            fails_at: (luck == Luck::Fatal && rng.gen_ratio(1, 2)).then(|| rng.gen_range(0..len)),
        }
    }

    fn len(&self) -> usize {
        self.transactions.len()
    }

    fn predecessors(&self) -> Vec<Option<usize>> {
        let before = |at: usize| (0..at).rev().find(|i| self.transactions[*i].sender == self.transactions[at].sender);
        (0..self.len()).map(before).collect()
    }

    /// Whether a transaction cannot be executed ahead before another one is done.
    fn needs(&self, predecessors: &[Option<usize>], at: usize, on: usize) -> bool {
        at == on
            || [predecessors[at], self.transactions[at].put_off_on]
                .into_iter()
                .flatten()
                .any(|before| self.needs(predecessors, before, on))
    }

    /// The state after so many transactions, one by one.
    fn sequential(&self, transactions: usize) -> [u64; CELLS] {
        let mut state = [0; CELLS];
        for at in 0..transactions {
            let (cell, value) = self.outcome(at, |cell| state[cell]);
            state[cell] = value;
        }
        state
    }

    /// Which cell a transaction writes, and what.
    fn outcome(&self, at: usize, mut read: impl FnMut(usize) -> u64) -> (usize, u64) {
        let tx = &self.transactions[at];
        let value = tx.reads.iter().fold(at as u64 + 1, |value, cell| value.wrapping_mul(31).wrapping_add(read(*cell)));
        ((tx.writes + (value % 2) as usize) % CELLS, value)
    }
}

/// The result of an execution ahead.
struct Speculation {
    at: usize,
    /// Tells it from other results of the same transaction.
    number: usize,
    reads: Vec<(usize, u64)>,
    write: (usize, u64),
}

/// The values of one cell.
#[derive(Default)]
struct Cell {
    /// By position: the value, and whether it is being computed anew.
    versions: std::collections::BTreeMap<usize, (u64, bool)>,
    readers_end: usize,
}

#[derive(Default)]
struct Commit {
    state: [u64; CELLS],
    order: Vec<usize>,
}

/// What really happens to a transaction, to be compared with what the scheduler says.
#[derive(Default)]
struct Witness {
    /// Somebody has it in hands.
    busy: AtomicBool,
    /// It has been executed, ahead or for good.
    executed: AtomicBool,
    /// It has been put off as planned.
    put_off: AtomicBool,
    /// It has been left to the frontier.
    left: AtomicBool,
    /// The number of the result that the scheduler has; 0 for none.
    result: AtomicUsize,
}

/// How far executions and rechecks have come, for who waits for them.
#[derive(Default)]
struct Progress {
    /// Counts what overtook later transactions.
    epoch: usize,
    /// For each transaction the epoch in which the newest look at it began.
    looked_at: Vec<Option<usize>>,
}

/// The pause that is in force, with a number that tells it from others.
type Pause = (usize, usize);

enum Ended {
    Done(Speculation),
    Estimate(usize),
    LeftToFrontier,
    /// The thread does not go on.
    Died,
}

struct Run {
    plan: Plan,
    predecessors: Vec<Option<usize>>,
    scheduler: Scheduler<Speculation>,
    memory: Vec<Mutex<Cell>>,
    written: Vec<Mutex<Option<usize>>>,
    commit: Mutex<Commit>,
    progress: Mutex<Progress>,
    progressed: Condvar,
    witnesses: Vec<Witness>,
    results: AtomicUsize,
    committed: AtomicUsize,
    pause: std::sync::Mutex<Pause>,
}

impl Run {
    fn new(plan: Plan) -> Self {
        let predecessors = plan.predecessors();
        let len = plan.len();
        Self {
            scheduler: Scheduler::new(predecessors.clone(), plan.lookahead),
            predecessors,
            memory: std::iter::repeat_with(Mutex::default).take(CELLS).collect(),
            written: std::iter::repeat_with(Mutex::default).take(len).collect(),
            commit: Mutex::default(),
            progress: Mutex::new(Progress { epoch: 0, looked_at: vec![None; len] }),
            progressed: Condvar::new(),
            witnesses: std::iter::repeat_with(Witness::default).take(len).collect(),
            results: AtomicUsize::new(0),
            committed: AtomicUsize::new(0),
            pause: std::sync::Mutex::default(),
            plan,
        }
    }

    fn go(&self) {
        shuttle::thread::scope(|scope| {
            for commit_every in &self.plan.commit_every[1..] {
                scope.spawn(|| self.work(*commit_every));
            }
            self.work(self.plan.commit_every[0]);
        });
        assert!(self.scheduler.done());
        let commit = self.commit.lock().unwrap_or_else(PoisonError::into_inner);
        let committed = commit.order.len();
        assert!(committed == self.plan.len() || self.plan.luck == Luck::Fatal, "some were left out");
        assert!(self.plan.fails_at.is_none_or(|at| committed <= at), "a failed transaction was committed");
        assert_eq!(commit.order, (0..committed).collect::<Vec<_>>());
        assert_eq!(commit.state, self.plan.sequential(committed));
    }

    /// What every thread of parallel execution does.
    fn work(&self, commit_every: usize) {
        let mut tasks = 0_usize;
        while !self.scheduler.done() {
            let task = if tasks.is_multiple_of(commit_every) { None } else { self.claim() };
            let task = task.or_else(|| {
                self.scheduler.advance(&self.commit, |commit, at, result| self.step(commit, at, result));
                self.claim()
            });
            tasks += 1;
            match task {
                Some(Task::Execute(at)) => {
                    if !self.execute(at) {
                        return;
                    }
                }
                Some(Task::Recheck(at, result)) => {
                    if !self.recheck(at, result) {
                        return;
                    }
                }
                None => self.scheduler.sleep(),
            }
        }
    }

    /// Takes a task, and checks that it may be done now.
    fn claim(&self) -> Option<Task<Speculation>> {
        let pause = self.pause();
        let task = self.scheduler.claim()?;
        match &task {
            Task::Execute(at) => {
                self.take(*at);
                let committed = self.committed.load(SeqCst);
                assert!(*at < committed + self.plan.lookahead, "{at} is too far ahead of {committed}");
                assert!(
                    self.pause() != pause || committed >= pause.1,
                    "{at} was started in the pause until {}",
                    pause.1
                );
                let ready = |before: usize| self.witnesses[before].executed.load(SeqCst);
                assert!(self.predecessors[*at].is_none_or(ready), "{at} was started before its predecessor");
                assert_eq!(self.witnesses[*at].result.load(SeqCst), 0, "the result of {at} was dropped");
                assert!(!self.witnesses[*at].left.load(SeqCst), "{at} was left to the frontier");
            }
            Task::Recheck(at, result) => {
                self.take(*at);
                self.take_result(*at, Some(result));
            }
        }
        Some(task)
    }

    /// Executes a transaction ahead of the committed state. `false` if the thread died of it.
    fn execute(&self, at: usize) -> bool {
        let (transaction, witness) = (&self.plan.transactions[at], &self.witnesses[at]);
        if transaction.cheap {
            self.leave_to_frontier(at);
            return true;
        }
        let epoch = self.progress().epoch;
        let put_off_on = transaction.put_off_on.filter(|_| !witness.put_off.swap(true, SeqCst));
        match put_off_on.map_or_else(|| self.speculate(at), Ended::Estimate) {
            Ended::Done(result) => {
                self.publish(at, result.write);
                self.finish(at, result, epoch);
            }
            Ended::Estimate(on) => {
                self.give_back(at);
                self.scheduler.put_off(at, on);
            }
            Ended::LeftToFrontier => self.leave_to_frontier(at),
            Ended::Died => {
                self.scheduler.stop();
                return false;
            }
        }
        true
    }

    fn leave_to_frontier(&self, at: usize) {
        self.witnesses[at].left.store(true, SeqCst);
        self.give_back(at);
        self.scheduler.leave_to_frontier(at);
    }

    fn speculate(&self, at: usize) -> Ended {
        let mut met = None;
        let mut reads = Vec::new();
        let write = self.plan.outcome(at, |cell| {
            let (value, estimate) = self.read(at, cell);
            met = met.or(estimate);
            reads.push((cell, value));
            value
        });
        if happens(self.plan.rates.death) {
            return Ended::Died;
        }
        if happens(self.plan.rates.left_to_frontier) {
            return Ended::LeftToFrontier;
        }
        if at > 0 && happens(self.plan.rates.put_off) {
            return Ended::Estimate(thread_rng().gen_range(0..at));
        }
        match met {
            Some(on) => Ended::Estimate(on),
            None => Ended::Done(Speculation { at, number: self.results.fetch_add(1, SeqCst) + 1, reads, write }),
        }
    }

    /// Looks whether a result still stands, and if not executes the transaction again.
    fn recheck(&self, at: usize, result: Speculation) -> bool {
        let epoch = self.progress().epoch;
        if result.reads.iter().all(|(cell, value)| self.read(at, *cell) == (*value, None)) {
            self.finish(at, result, epoch);
            return true;
        }
        if !self.patient() {
            self.mark_estimate(at);
        }
        self.execute(at)
    }

    /// The newest value below a position, and who is computing it anew.
    fn read(&self, at: usize, cell: usize) -> (u64, Option<usize>) {
        let mut cell = self.cell(cell);
        cell.readers_end = cell.readers_end.max(at + 1);
        match cell.versions.range(..at).next_back() {
            Some((position, (value, estimate))) => (*value, estimate.then_some(*position)),
            None => (0, None),
        }
    }

    /// Makes a value visible to later transactions.
    fn publish(&self, at: usize, (cell, value): (usize, u64)) {
        let before = self.written(at).replace(cell);
        let mut overtaken = false;
        {
            let mut cell = self.cell(cell);
            let same = cell.versions.insert(at, (value, false)).is_some_and(|(old, _)| old == value);
            overtaken |= !same && cell.readers_end > at + 1;
        }
        if let Some(before) = before.filter(|before| *before != cell) {
            let mut cell = self.cell(before);
            cell.versions.remove(&at);
            overtaken |= cell.readers_end > at + 1;
        }
        if overtaken {
            self.scheduler.recheck_from(at + 1);
        }
        if happens(self.plan.rates.recheck) {
            self.scheduler.recheck_from(thread_rng().gen_range(0..=self.plan.len()));
        }
    }

    fn mark_estimate(&self, at: usize) {
        let written = *self.written(at);
        if let Some(cell) = written
            && let Some((_, estimate)) = self.cell(cell).versions.get_mut(&at)
        {
            *estimate = true;
        }
    }

    fn finish(&self, at: usize, result: Speculation, epoch: usize) {
        let witness = &self.witnesses[at];
        witness.executed.store(true, SeqCst);
        assert_eq!(witness.result.swap(result.number, SeqCst), 0, "{at} has two results");
        self.give_back(at);
        self.scheduler.finish(at, result);
        self.progress().looked_at[at] = Some(epoch);
        self.progressed.notify_all();
    }

    /// Commits the transaction at the frontier: with its result if that stands, else by executing it here.
    fn step(&self, commit: &mut Commit, at: usize, result: Option<Speculation>) -> bool {
        self.take(at);
        self.take_result(at, result.as_ref());
        assert_eq!(at, commit.order.len(), "committed out of order");
        if self.plan.fails_at == Some(at) {
            return false;
        }
        let stands = result
            .as_ref()
            .is_some_and(|result| result.reads.iter().all(|(cell, value)| commit.state[*cell] == *value));
        if self.patient() {
            self.wait_for_the_others(at);
        }
        if happens(self.plan.rates.pause) {
            let until = at + 1 + thread_rng().gen_range(0..4);
            self.pause_until(until, || self.scheduler.pause_until(until));
        }
        if happens(self.plan.rates.give_up) {
            self.pause_until(usize::MAX, || self.scheduler.give_up());
        }
        let write = match result.filter(|_| stands) {
            Some(result) => result.write,
            None => {
                if !self.patient() {
                    self.mark_estimate(at);
                }
                let write = self.plan.outcome(at, |cell| commit.state[cell]);
                if !self.scheduler.gave_up() {
                    self.publish(at, write);
                }
                write
            }
        };
        commit.state[write.0] = write.1;
        commit.order.push(at);
        self.witnesses[at].executed.store(true, SeqCst);
        self.committed.store(at + 1, SeqCst);
        self.give_back(at);
        true
    }

    /// Takes as long as the others need to do all that can be done without the transaction at the frontier. If nobody
    /// does it, this is for ever, which is reported.
    fn wait_for_the_others(&self, at: usize) {
        let mut begun_after = 0;
        if self.plan.luck == Luck::Overtaking {
            begun_after = {
                let mut progress = self.progress();
                progress.epoch += 1;
                progress.epoch
            };
            self.scheduler.recheck_from(at + 1);
        }
        let end = self.plan.len().min(at + self.plan.lookahead);
        for later in at + 1..end {
            if self.plan.needs(&self.predecessors, later, at) {
                continue;
            }
            let mut progress = self.progress();
            while progress.looked_at[later].is_none_or(|epoch| epoch < begun_after) {
                progress = self.progressed.wait(progress).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn patient(&self) -> bool {
        matches!(self.plan.luck, Luck::Long | Luck::Overtaking)
    }

    fn take(&self, at: usize) {
        assert!(!self.witnesses[at].busy.swap(true, SeqCst), "{at} is in the hands of two");
        assert!(self.committed.load(SeqCst) <= at, "{at} is committed already");
    }

    fn give_back(&self, at: usize) {
        assert!(self.witnesses[at].busy.swap(false, SeqCst), "{at} is in nobody's hands");
    }

    /// The scheduler hands over the result that it got, of this transaction, and once.
    fn take_result(&self, at: usize, result: Option<&Speculation>) {
        assert!(result.is_none_or(|result| result.at == at), "the result of another one than {at}");
        let number = result.map_or(0, |result| result.number);
        assert_eq!(number, self.witnesses[at].result.swap(0, SeqCst), "not the newest result of {at}");
    }

    fn pause(&self) -> Pause {
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pause_until(&self, until: usize, pause: impl FnOnce()) {
        let note = |until| {
            let mut noted = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
            *noted = (noted.0 + 1, until);
        };
        // Between the two it is unknown which one is in force.
        note(0);
        pause();
        note(until);
    }

    fn cell(&self, cell: usize) -> MutexGuard<'_, Cell> {
        self.memory[cell].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self, at: usize) -> MutexGuard<'_, Option<usize>> {
        self.written[at].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
