//! Execution of one block: block environment, recovered transactions and a read-only state go in; receipts,
//! outcomes, the change set and statistics come out.
//!
//! An [`Executor`] knows nothing of channels, networks, disks or clocks. Every executor must return the same
//! block for the same input, and each is a test oracle for the others. [`Sequential`] is plain revm.

use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Bloom, BloomInput, Bytes, Log, LogData};
use revm::context_interface::result::{EVMError, ExecutionResult, InvalidTransaction};
use revm::{DatabaseCommit, ExecuteEvm};
use serde::{Deserialize, Serialize};

use crate::evm::{BlockContext, Checks, evm};
use crate::state::{ChangeSet, ReadState, StateError};
use crate::transaction::Recovered;

/// A log as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredLog {
    /// The contract that emitted it.
    pub address: Address,
    /// Indexed values.
    pub topics: Vec<B256>,
    /// The rest.
    pub data: Bytes,
}

impl StoredLog {
    /// The log in alloy's form.
    pub fn to_log(&self) -> Log {
        Log { address: self.address, data: LogData::new_unchecked(self.topics.clone(), self.data.clone()) }
    }
}

/// What a transaction did, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// EIP-2718 type of the transaction.
    pub tx_type: u8,
    /// Whether it was executed to its end without a revert.
    pub success: bool,
    /// Gas it was charged for.
    pub gas_used: u64,
    /// The same, summed over the block up to here.
    pub cumulative_gas_used: u64,
    /// The contract it created.
    pub contract_address: Option<Address>,
    /// Logs in order.
    pub logs: Vec<StoredLog>,
}

impl Receipt {
    /// The bloom filter over its logs.
    pub fn bloom(&self) -> Bloom {
        let mut bloom = Bloom::ZERO;
        for log in &self.logs {
            bloom.accrue(BloomInput::Raw(log.address.as_slice()));
            for topic in &log.topics {
                bloom.accrue(BloomInput::Raw(topic.as_slice()));
            }
        }
        bloom
    }
}

/// What became of a transaction given to an executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the block; the next receipt is its own.
    Executed,
    /// It is not in the block and changed nothing.
    Skipped(SkipReason),
}

/// Why a transaction cannot be in the block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// An earlier transaction of its sender is missing; it may be executed later.
    #[error("nonce {tx} is ahead of the account's {state}")]
    NonceAhead {
        /// Nonce of the transaction.
        tx: u64,
        /// Nonce of the account.
        state: u64,
    },
    /// It can never be executed on this state.
    #[error("{0}")]
    Invalid(InvalidTransaction),
}

/// Numbers about one execution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Transactions executed, re-executions included.
    pub executions: u64,
    /// Executions whose result was thrown away.
    pub re_executions: u64,
    /// Time from first to last transaction.
    pub elapsed: Duration,
}

/// An executed block before it is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockOutput {
    /// One for each transaction, in order.
    pub outcomes: Vec<Outcome>,
    /// One for each executed transaction, in order.
    pub receipts: Vec<Receipt>,
    /// The net effect on the state.
    pub changes: ChangeSet,
    /// Numbers about the execution; not part of the block.
    pub statistics: Statistics,
}

/// Why a block cannot be executed at all. No transaction can cause it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecutionError {
    /// The state did not answer.
    #[error("transaction {index} of block {number}: {source}")]
    State {
        /// Block number.
        number: u64,
        /// Position in the block.
        index: usize,
        /// What the state said.
        source: StateError,
    },
    /// The EVM failed in a way it has no outcome for.
    #[error("transaction {index} of block {number}: the EVM failed: {message}")]
    Evm {
        /// Block number.
        number: u64,
        /// Position in the block.
        index: usize,
        /// What the EVM said.
        message: String,
    },
}

/// Executes blocks.
pub trait Executor: Send {
    /// A short name for logs and benchmarks.
    fn name(&self) -> &'static str;

    /// Executes the transactions in order, each on the state its predecessors left.
    /// The caller keeps the sum of the gas limits within the block's.
    fn execute(
        &mut self,
        block: &BlockContext,
        transactions: &[&Recovered],
        state: &ReadState<'_>,
    ) -> Result<BlockOutput, ExecutionError>;
}

/// One transaction after the other with plain revm: the baseline and the reference.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sequential;

impl Executor for Sequential {
    fn name(&self) -> &'static str {
        "sequential"
    }

    fn execute(
        &mut self,
        block: &BlockContext,
        transactions: &[&Recovered],
        state: &ReadState<'_>,
    ) -> Result<BlockOutput, ExecutionError> {
        let started = Instant::now();
        let mut evm = evm(block, state, Checks::Block);
        let mut outcomes = Vec::with_capacity(transactions.len());
        let mut receipts = Vec::with_capacity(transactions.len());
        let mut cumulative_gas_used = 0u64;
        for (index, tx) in transactions.iter().enumerate() {
            match evm.transact(tx.env()) {
                Ok(done) => {
                    evm.ctx.journaled_state.database.commit(done.state);
                    cumulative_gas_used += done.result.tx_gas_used();
                    receipts.push(receipt(tx, &done.result, cumulative_gas_used));
                    outcomes.push(Outcome::Executed);
                }
                Err(error) => outcomes.push(Outcome::Skipped(skip_reason(block.number, index, error)?)),
            }
        }
        let changes = evm.ctx.journaled_state.database.changes();
        let statistics =
            Statistics { executions: transactions.len() as u64, re_executions: 0, elapsed: started.elapsed() };
        Ok(BlockOutput { outcomes, receipts, changes, statistics })
    }
}

fn skip_reason(number: u64, index: usize, error: EVMError<StateError>) -> Result<SkipReason, ExecutionError> {
    match error {
        EVMError::Transaction(InvalidTransaction::NonceTooHigh { tx, state }) => {
            Ok(SkipReason::NonceAhead { tx, state })
        }
        EVMError::Transaction(invalid) => Ok(SkipReason::Invalid(invalid)),
        EVMError::Database(source) => Err(ExecutionError::State { number, index, source }),
        EVMError::Header(header) => Err(ExecutionError::Evm { number, index, message: header.to_string() }),
        EVMError::Custom(message) => Err(ExecutionError::Evm { number, index, message }),
        EVMError::CustomAny(any) => Err(ExecutionError::Evm { number, index, message: any.to_string() }),
    }
}

fn receipt(tx: &Recovered, result: &ExecutionResult, cumulative_gas_used: u64) -> Receipt {
    // Logs of a reverted transaction do not count.
    let logs = if result.is_success() { result.logs() } else { &[] };
    Receipt {
        tx_type: tx.tx.tx_type() as u8,
        success: result.is_success(),
        gas_used: result.tx_gas_used(),
        cumulative_gas_used,
        contract_address: result.created_address(),
        logs: logs
            .iter()
            .map(|log| StoredLog {
                address: log.address,
                topics: log.data.topics().to_vec(),
                data: log.data.data.clone(),
            })
            .collect(),
    }
}
