//! The locks of parallel execution, in one place: a model checker compiles the scheduler with its own instead.

pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

pub(crate) mod atomic {
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
}
