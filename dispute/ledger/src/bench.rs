//! What the executors are worth: the same signed blocks of real contracts through each of them, and a report.
//!
//! ```text
//! Workshop -> Prepared (state, blocks, expected results) -> measure -> Report (JSON, table, chart)
//!                                                        -> predict
//! ```
//!
//! A run compares like with like: every executor starts from the same state, must return exactly what the sequential
//! one returned, and takes its turns in a random order, so that a machine that slows down for a while slows down all of
//! them. A transaction that fails makes the run fail: a workload of failures would measure nothing.

mod adjudicator;
mod measure;
pub mod predict;
pub mod report;
mod svg;
mod uniswap;
pub mod workload;
pub mod world;

use std::path::PathBuf;

pub use self::measure::{Plan, cores, run};
pub use self::report::Report;
pub use self::svg::chart;
pub use self::workload::{Prepared, Workload, Workshop};

/// Why a benchmark cannot be run, or its result not be believed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Uniswap is not there.
    #[error(
        "Uniswap's contracts cannot be read from `{path}`: {why}; run `npm install --ignore-scripts` in the folder `tests` of the checkout, or name the folder of the packages with --contracts"
    )]
    Contracts {
        /// Where they should be.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The state before the blocks cannot be made.
    #[error("{what} failed: {why}")]
    Setup {
        /// What was being done.
        what: &'static str,
        /// What went wrong.
        why: String,
    },
    /// A transaction to be measured fails.
    #[error("transaction {index} of block {number} fails: {why}")]
    Failed {
        /// Block number.
        number: u64,
        /// Position in the block.
        index: usize,
        /// Why.
        why: String,
    },
    /// An executor is wrong.
    #[error(
        "{executor} disagrees with sequential execution about the {what} of block {number} of {workload}: this is a defect, please report it"
    )]
    Differs {
        /// Which executor.
        executor: &'static str,
        /// What differs.
        what: &'static str,
        /// In which workload.
        workload: Workload,
        /// In which block.
        number: u64,
    },
    /// The genesis cannot be made.
    #[error(transparent)]
    Ledger(#[from] crate::Error),
    /// A block cannot be executed.
    #[error(transparent)]
    Execution(#[from] crate::executor::ExecutionError),
    /// A block cannot be replayed from the access list of its own execution.
    #[error(transparent)]
    Replay(#[from] crate::replay::ReplayError),
}
