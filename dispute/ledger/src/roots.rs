//! State roots off the way to the receipt.
//!
//! A header carries the root of the state *before* its block, so a root is wanted only when the next block is
//! sealed. Change sets go to a thread that owns the trie; whoever seals asks for the newest root and waits only if it
//! is not ready.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use alloy_primitives::B256;

use crate::Error;
use crate::state::{ChangeSet, State};
use crate::trie::StateTrie;

/// The way to the thread that keeps the trie.
#[derive(Debug)]
pub struct Roots {
    jobs: Sender<Job>,
    answers: Receiver<B256>,
    /// Jobs without an answer yet.
    waiting: usize,
    root: B256,
}

enum Job {
    Follow(Arc<ChangeSet>),
    Rebuild(State),
}

impl Roots {
    /// Starts the thread, which first builds the trie of `state`; large work is spread over `workers` threads.
    pub fn start(state: State, workers: NonZeroUsize) -> Result<Self, Error> {
        let (jobs, work) = channel();
        let (results, answers) = channel();
        std::thread::Builder::new()
            .name("ledger-roots".to_owned())
            .spawn(move || serve(workers, &work, &results))
            .map_err(|e| Error::Thread(e.to_string()))?;
        let mut roots = Self { jobs, answers, waiting: 0, root: B256::ZERO };
        roots.rebuild(state)?;
        Ok(roots)
    }

    /// Follows a change set; does not wait.
    pub fn follow(&mut self, changes: Arc<ChangeSet>) -> Result<(), Error> {
        self.give(Job::Follow(changes))
    }

    /// Begins anew with another state; does not wait.
    pub fn rebuild(&mut self, state: State) -> Result<(), Error> {
        self.give(Job::Rebuild(state))
    }

    /// The root after everything that was followed.
    pub fn root(&mut self) -> Result<B256, Error> {
        while self.waiting > 0 {
            self.root = self.answers.recv().map_err(|_| ended())?;
            self.waiting -= 1;
        }
        Ok(self.root)
    }

    fn give(&mut self, job: Job) -> Result<(), Error> {
        self.jobs.send(job).map_err(|_| ended())?;
        self.waiting += 1;
        Ok(())
    }
}

fn ended() -> Error {
    Error::Stopped("the thread that computes state roots panicked, which is a bug; start it again".to_owned())
}

fn serve(workers: NonZeroUsize, work: &Receiver<Job>, results: &Sender<B256>) {
    let mut trie = StateTrie::new(workers);
    while let Ok(job) = work.recv() {
        match job {
            Job::Follow(changes) => trie.apply(&changes),
            Job::Rebuild(state) => trie.rebuild(&state),
        }
        if results.send(trie.root()).is_err() {
            return;
        }
    }
}
