//! Who does what next: the cursors of parallel execution and the rule by which the frontier advances.
//!
//! Every transaction has a status. Threads execute the next transaction that nobody has started, and whoever has
//! finished one tries to take the commit lock. The holder of the lock advances the *frontier*, the first transaction
//! that is not committed: a finished one is handed over with its result, one that is not started is executed on the
//! spot, and only one that is running elsewhere stops him. The thread that runs it takes over when it is done.
//!
//! So there is always somebody who moves the frontier, no thread ever waits while it owes something to another, and
//! the block ends after as many steps as it has transactions, whatever the rest of this file does: everything else
//! (rechecks, waiting for estimates, pauses) only saves work.
//!
//! This file knows nothing of the EVM and takes its locks from `crate::sync`, so that a model checker can put its
//! own in their place.

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// No recheck is due.
const NONE: usize = usize::MAX;

enum Status<R> {
    /// Nobody has started it.
    Ready,
    /// It waits for another one, which makes it ready again.
    PutOff,
    /// Only the frontier executes it.
    AtFrontier,
    /// Somebody executes it. `overtaken`: meanwhile something changed that it may have read.
    Running { overtaken: bool },
    /// Executed ahead of the committed state.
    Finished(R),
    /// In the block, or left out of it for good.
    Committed,
}

/// Alone in its cache line (two, because processors fetch them in pairs), so that threads that work on neighbours do
/// not take it from each other.
#[repr(align(128))]
struct Apart<T>(T);

impl<T> std::ops::Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

struct Slot<R> {
    status: Status<R>,
    /// Those who were put off until this one is done.
    waiters: Vec<usize>,
}

/// What a thread is to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task<R> {
    /// Execute a transaction ahead of the committed state.
    Execute(usize),
    /// Look whether a result still stands.
    Recheck(usize, R),
}

/// The state of a block's execution, shared by all threads. `R` is the result of an execution.
pub(crate) struct Scheduler<R> {
    slots: Vec<Apart<Mutex<Slot<R>>>>,
    /// For each transaction the one before it of the same sender, without which it cannot be executed.
    after: Vec<Option<usize>>,
    /// How far ahead of the frontier transactions may be started.
    lookahead: usize,
    frontier: Apart<AtomicUsize>,
    /// The next to be started ahead of the frontier.
    next: Apart<AtomicUsize>,
    /// The lowest whose result may not stand any more.
    recheck: Apart<AtomicUsize>,
    /// Nothing is started ahead before the frontier is here.
    resume_at: AtomicUsize,
    stopped: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

impl<R> Scheduler<R> {
    pub(crate) fn new(after: Vec<Option<usize>>, lookahead: usize) -> Self {
        let slot = || Apart(Mutex::new(Slot { status: Status::Ready, waiters: Vec::new() }));
        Self {
            slots: std::iter::repeat_with(slot).take(after.len()).collect(),
            after,
            lookahead,
            frontier: Apart(AtomicUsize::new(0)),
            next: Apart(AtomicUsize::new(0)),
            recheck: Apart(AtomicUsize::new(NONE)),
            resume_at: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        }
    }

    /// Whether there is nothing more to do for anybody.
    pub(crate) fn done(&self) -> bool {
        self.stopped.load(SeqCst) || self.frontier.load(SeqCst) == self.slots.len()
    }

    /// Ends the block early: it failed.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, SeqCst);
        self.ring();
    }

    /// Advances the frontier as far as it goes now, unless somebody else does. `step` commits the transaction at the
    /// frontier, with the result of its execution if there is one; `false` from it ends the block.
    pub(crate) fn advance<C>(&self, commit: &Mutex<C>, mut step: impl FnMut(&mut C, usize, Option<R>) -> bool) {
        loop {
            // If somebody panicked under the lock, the block has ended.
            let Ok(mut held) = commit.try_lock() else { return };
            while let Some((at, result)) = self.take_frontier() {
                if !step(&mut held, at, result) {
                    return self.stop();
                }
                self.committed(at);
            }
            drop(held);
            // Who finished the frontier's transaction before the lock was free could not take it, and relies on this.
            if self.done() || self.frontier_runs_elsewhere() {
                return;
            }
        }
    }

    /// The transaction at the frontier, now running; `None` if it runs already or there is none.
    fn take_frontier(&self) -> Option<(usize, Option<R>)> {
        let at = self.frontier.load(SeqCst);
        if self.done() {
            return None;
        }
        let mut slot = self.slot(at);
        if matches!(slot.status, Status::Running { .. }) {
            return None;
        }
        let before = std::mem::replace(&mut slot.status, Status::Running { overtaken: false });
        drop(slot);
        self.next.fetch_max(at + 1, SeqCst);
        Some((at, if let Status::Finished(result) = before { Some(result) } else { None }))
    }

    fn committed(&self, at: usize) {
        let mut slot = self.slot(at);
        slot.status = Status::Committed;
        let waiters = std::mem::take(&mut slot.waiters);
        drop(slot);
        self.frontier.store(at + 1, SeqCst);
        self.release(waiters);
        if self.sleepers.load(SeqCst) > 0 && (self.done() || self.work_ahead()) {
            self.ring();
        }
    }

    fn frontier_runs_elsewhere(&self) -> bool {
        let at = self.frontier.load(SeqCst);
        at < self.slots.len() && matches!(self.slot(at).status, Status::Running { .. })
    }

    /// Something to do ahead of the frontier.
    pub(crate) fn claim(&self) -> Option<Task<R>> {
        self.claim_recheck().or_else(|| self.claim_next())
    }

    fn claim_recheck(&self) -> Option<Task<R>> {
        loop {
            let at = self.recheck.load(SeqCst);
            if at == NONE {
                return None;
            }
            let after = if at + 1 < self.next.load(SeqCst).min(self.slots.len()) { at + 1 } else { NONE };
            if self.recheck.compare_exchange(at, after, SeqCst, SeqCst).is_err() || at >= self.slots.len() {
                continue;
            }
            let mut slot = self.slot(at);
            match std::mem::replace(&mut slot.status, Status::Running { overtaken: true }) {
                Status::Finished(result) => {
                    slot.status = Status::Running { overtaken: false };
                    return Some(Task::Recheck(at, result));
                }
                Status::Running { .. } => {}
                other => slot.status = other,
            }
        }
    }

    fn claim_next(&self) -> Option<Task<R>> {
        loop {
            let (frontier, at) = (self.frontier.load(SeqCst), self.next.load(SeqCst));
            if !self.may_start(frontier, at) {
                return None;
            }
            if self.next.compare_exchange(at, at + 1, SeqCst, SeqCst).is_err() {
                continue;
            }
            let on = self.after[at].filter(|before| !self.is_executed(*before));
            let mut slot = self.slot(at);
            if !matches!(slot.status, Status::Ready) {
                continue;
            }
            // Not even for a moment running if it is put off: who is at the frontier would rely on a thread that may go
            // to sleep without a look at the frontier, because it has executed nothing.
            slot.status = if on.is_some() { Status::PutOff } else { Status::Running { overtaken: false } };
            drop(slot);
            match on {
                Some(on) => self.wait_for(at, on),
                None => return Some(Task::Execute(at)),
            }
        }
    }

    fn may_start(&self, frontier: usize, at: usize) -> bool {
        at < self.slots.len()
            && at < frontier.saturating_add(self.lookahead)
            && frontier >= self.resume_at.load(SeqCst)
            && !self.stopped.load(SeqCst)
    }

    fn is_executed(&self, at: usize) -> bool {
        matches!(self.slot(at).status, Status::Finished(_) | Status::Committed)
    }

    /// The running transaction has a result.
    pub(crate) fn finish(&self, at: usize, result: R) {
        let mut slot = self.slot(at);
        let overtaken = matches!(slot.status, Status::Running { overtaken: true });
        slot.status = Status::Finished(result);
        let waiters = std::mem::take(&mut slot.waiters);
        drop(slot);
        self.release(waiters);
        if overtaken {
            self.recheck_from(at);
        }
    }

    /// The running transaction is started again when the one at `on` is done.
    pub(crate) fn put_off(&self, at: usize, on: usize) {
        self.slot(at).status = Status::PutOff;
        self.wait_for(at, on);
    }

    /// The transaction that is put off becomes ready when the one at `on` is done.
    fn wait_for(&self, at: usize, on: usize) {
        // One lock at a time: what happens in between is either that `on` is done, which is looked at here, or that
        // the frontier takes the transaction, which it may.
        let mut other = self.slot(on);
        if matches!(other.status, Status::Finished(_) | Status::Committed) {
            drop(other);
            self.release(vec![at]);
        } else {
            other.waiters.push(at);
        }
    }

    /// The running transaction is left to the frontier.
    pub(crate) fn leave_to_frontier(&self, at: usize) {
        self.slot(at).status = Status::AtFrontier;
    }

    /// Results from a position on may not stand any more.
    pub(crate) fn recheck_from(&self, at: usize) {
        if at < self.next.load(SeqCst).min(self.slots.len()) {
            self.recheck.fetch_min(at, SeqCst);
            self.ring();
        }
    }

    /// Nothing is started ahead before the frontier is at a position: it would be for nothing.
    pub(crate) fn pause_until(&self, at: usize) {
        // Who gave up stays with it.
        self.resume_at.fetch_max(at, SeqCst);
    }

    /// Nothing is started ahead any more in this block.
    pub(crate) fn give_up(&self) {
        self.resume_at.store(NONE, SeqCst);
    }

    /// Whether nothing is started ahead any more in this block.
    pub(crate) fn gave_up(&self) -> bool {
        self.resume_at.load(SeqCst) == NONE
    }

    fn release(&self, waiters: Vec<usize>) {
        if waiters.is_empty() {
            return;
        }
        for at in waiters {
            let mut slot = self.slot(at);
            if matches!(slot.status, Status::PutOff) {
                slot.status = Status::Ready;
                drop(slot);
                self.next.fetch_min(at, SeqCst);
            }
        }
        self.ring();
    }

    /// Sleeps until there may be something to do.
    pub(crate) fn sleep(&self) {
        self.sleepers.fetch_add(1, SeqCst);
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever makes work first changes the state and then looks for sleepers, so one of the two sees the other.
        while !self.done() && !self.work_ahead() {
            bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        drop(bed);
        self.sleepers.fetch_sub(1, SeqCst);
    }

    fn work_ahead(&self) -> bool {
        self.recheck.load(SeqCst) != NONE || self.may_start(self.frontier.load(SeqCst), self.next.load(SeqCst))
    }

    fn ring(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }

    fn slot(&self, at: usize) -> MutexGuard<'_, Slot<R>> {
        // Whoever panicked under the lock ends the whole block.
        self.slots[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
