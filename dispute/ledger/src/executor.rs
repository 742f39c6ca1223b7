//! Execution of one block: block environment, recovered transactions and a read-only state go in; receipts,
//! outcomes, the change set and statistics come out.
//!
//! An [`Executor`] knows nothing of channels, networks, disks or clocks. Every executor must return the same
//! block for the same input, and each is a test oracle for the others: [`Sequential`] is revm, one transaction after
//! the other; [`BlockStm`](crate::block_stm::BlockStm) executes ahead of what is committed on several threads;
//! [`Replay`](crate::replay::Replay) re-executes a block whose access list is known. All of them commit through
//! [`Frontier`].

use std::time::{Duration, Instant};

use alloy_eip7928::BlockAccessList;
use alloy_primitives::{Address, B256, Bloom, BloomInput, Bytes, Log, LogData, U256};
use revm::Database;
use revm::context_interface::result::{EVMError, ExecutionResult, InvalidTransaction};
use revm::state::{AccountInfo, Bytecode};
use serde::{Deserialize, Serialize};

use crate::evm::{BlockContext, Checks, Executed, LedgerEvm, evm_over, execute_without_tip};
use crate::overlay::Overlay;
use crate::state::{ChangeSet, ReadState, StateError};
use crate::transaction::Recovered;

pub use crate::memory::Key;

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
    /// Threads that could take part; 1 if the block was executed one by one.
    pub workers: usize,
    /// Transactions executed, re-executions included.
    pub executions: u64,
    /// Executions ahead of the committed state that were checked against it.
    pub validations: u64,
    /// How often an execution was put off until another one was done.
    pub waits: u64,
    /// Executions whose result was thrown away, by cause.
    pub aborts: Aborts,
    /// The keys whose values were outdated when an execution was checked, with how often, most frequent first.
    pub conflicts: Vec<(Key, u64)>,
    /// Time from first to last transaction.
    pub elapsed: Duration,
}

/// Executions whose result was thrown away, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Aborts {
    /// A value it had read was outdated when its turn to be committed came.
    pub stale_at_commit: u64,
    /// The same, noticed before its turn.
    pub stale_before_commit: u64,
    /// It read a value that was just being computed anew.
    pub estimate: u64,
    /// On the state it saw it was not executable (nonce gap, insolvent sender).
    pub not_executable: u64,
    /// It read the account of the fee recipient, which every transaction changes.
    pub fee_recipient: u64,
}

impl Aborts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.stale_at_commit + self.stale_before_commit + self.estimate + self.not_executable + self.fee_recipient
    }
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
    /// What the executed transactions accessed (EIP-7928), if the executor was asked to record it.
    pub access_list: Option<BlockAccessList>,
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

/// One transaction after the other: the baseline and the reference.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sequential {
    access_list: bool,
}

impl Sequential {
    /// Without access lists.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether access lists are recorded.
    pub fn with_access_list(self, access_list: bool) -> Self {
        Self { access_list }
    }
}

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
        let mut frontier = Frontier::new(block, state, self.access_list, transactions.len());
        let mut evm = FrontierEvm::new(block);
        for tx in transactions {
            match frontier.execute(&mut evm, tx)? {
                Ok(executed) => frontier.commit(tx, executed)?,
                Err(reason) => frontier.skip(reason),
            }
        }
        let executions = transactions.len() as u64;
        let output = frontier.finish();
        let statistics = Statistics { workers: 1, executions, elapsed: started.elapsed(), ..Statistics::default() };
        Ok(BlockOutput { statistics, ..output })
    }
}

/// Where execution becomes the block: the state after all committed transactions, and what they gave. The next
/// transaction is executed here or its execution elsewhere is committed here, in order and one at a time.
pub(crate) struct Frontier<'a> {
    /// `None` only while an EVM works on it.
    overlay: Option<Overlay<'a>>,
    number: u64,
    base_fee: u64,
    outcomes: Vec<Outcome>,
    receipts: Vec<Receipt>,
    gas_used: u64,
}

/// An EVM that executes at the frontier. An EVM cannot move between threads, so each has its own, and the committed
/// state is lent to it for each execution.
pub(crate) struct FrontierEvm<'a>(LedgerEvm<Lent<'a>>);

struct Lent<'a>(Option<Overlay<'a>>);

impl<'a> Lent<'a> {
    fn overlay(&mut self) -> &mut Overlay<'a> {
        self.0.as_mut().expect("an EVM runs only while the committed state is lent to it")
    }
}

impl Database for Lent<'_> {
    type Error = StateError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        self.overlay().basic(address)
    }

    fn code_by_hash(&mut self, hash: B256) -> Result<Bytecode, StateError> {
        self.overlay().code_by_hash(hash)
    }

    fn storage(&mut self, address: Address, index: U256) -> Result<U256, StateError> {
        self.overlay().storage(address, index)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        self.overlay().block_hash(number)
    }
}

impl FrontierEvm<'_> {
    pub(crate) fn new(block: &BlockContext) -> Self {
        Self(evm_over(block, Lent(None), Checks::Block))
    }
}

impl<'a> Frontier<'a> {
    pub(crate) fn new(block: &BlockContext, state: &'a ReadState<'a>, access_list: bool, transactions: usize) -> Self {
        let mut overlay = Overlay::new(state, block.fee_recipient);
        if access_list {
            overlay.record_accesses();
        }
        Self {
            overlay: Some(overlay),
            number: block.number,
            base_fee: block.base_fee,
            outcomes: Vec::with_capacity(transactions),
            receipts: Vec::with_capacity(transactions),
            gas_used: 0,
        }
    }

    /// Executes the next transaction on the committed state; nothing is committed yet.
    pub(crate) fn execute(
        &mut self,
        evm: &mut FrontierEvm<'a>,
        tx: &Recovered,
    ) -> Result<Result<Executed, SkipReason>, ExecutionError> {
        evm.0.ctx.journaled_state.database.0 = self.overlay.take();
        let executed = execute_without_tip(&mut evm.0, tx.env());
        self.overlay = evm.0.ctx.journaled_state.database.0.take();
        match executed {
            Ok(executed) => Ok(Ok(executed)),
            Err(error) => skip_reason(self.number, self.outcomes.len(), error).map(Err),
        }
    }

    /// Commits the next transaction, which was executed on the committed state or on values equal to it.
    pub(crate) fn commit(&mut self, tx: &Recovered, (result, state): Executed) -> Result<(), ExecutionError> {
        let gas_used = result.tx_gas_used();
        // Cannot overflow: a sender has paid it, and no balance exceeds 256 bits.
        let tip = U256::from(tx.tip(self.base_fee)) * U256::from(gas_used);
        let committed = self.committed().commit_with_tip(state, tip);
        committed.map_err(|source| self.state_error(source))?;
        self.gas_used += gas_used;
        self.receipts.push(receipt(tx, result, self.gas_used));
        self.outcomes.push(Outcome::Executed);
        Ok(())
    }

    /// Leaves the next transaction out of the block.
    pub(crate) fn skip(&mut self, reason: SkipReason) {
        self.outcomes.push(Outcome::Skipped(reason));
    }

    /// The committed state.
    pub(crate) fn committed(&mut self) -> &mut Overlay<'a> {
        self.overlay.as_mut().expect("no EVM works on it now")
    }

    /// A failed read of the state as an error of the next transaction.
    pub(crate) fn state_error(&self, source: StateError) -> ExecutionError {
        ExecutionError::State { number: self.number, index: self.outcomes.len(), source }
    }

    /// The block; the statistics are the caller's.
    pub(crate) fn finish(mut self) -> BlockOutput {
        let changes = self.committed().changes();
        let access_list = self.committed().access_list();
        let Self { outcomes, receipts, .. } = self;
        BlockOutput { outcomes, receipts, changes, access_list, statistics: Statistics::default() }
    }
}

/// Why the transaction is not in the block, or that the block cannot be executed.
pub(crate) fn skip_reason(
    number: u64,
    index: usize,
    error: EVMError<StateError>,
) -> Result<SkipReason, ExecutionError> {
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

fn receipt(tx: &Recovered, result: ExecutionResult, cumulative_gas_used: u64) -> Receipt {
    let (success, gas_used, contract_address) = (result.is_success(), result.tx_gas_used(), result.created_address());
    // Logs of a reverted transaction do not count.
    let logs = if success { result.into_logs() } else { Vec::new() };
    let stored = |Log { address, data }: Log| {
        let (topics, data) = data.split();
        StoredLog { address, topics, data }
    };
    Receipt {
        tx_type: tx.tx.tx_type() as u8,
        success,
        gas_used,
        cumulative_gas_used,
        contract_address,
        logs: logs.into_iter().map(stored).collect(),
    }
}
