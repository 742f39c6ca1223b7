//! Execution ahead of the committed state: revm over the multi-version memory, with every value that was read.

use std::hash::BuildHasher;

use alloy_primitives::map::{AddressMap, B256Map};
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use revm::Database;
use revm::context_interface::result::EVMError;
use revm::database_interface::DBErrorMarker;
use revm::state::{AccountInfo, Bytecode};

use crate::evm::{BlockContext, Checks, Executed, LedgerEvm, evm_over, execute_without_tip};
use crate::memory::{Key, Memory, Read};
use crate::state::{Basic, StateError};
use crate::transaction::Recovered;

/// Codes that a thread keeps a copy of. A copy of its own, because a counter of references that two threads share
/// costs more than a lookup.
const CODES_KEPT: usize = 1_024;

/// What an execution ahead of the committed state gave.
#[derive(Debug)]
pub(crate) struct Speculation {
    /// Everything it read. It is right if and only if all of it equals the committed values.
    pub reads: Vec<Seen>,
    /// What it did.
    pub executed: Executed,
}

/// A value that an execution read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub value: SeenValue,
    /// Whether it is the value before the block.
    pub from_base: bool,
}

/// What was read, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SeenValue {
    /// An account.
    Basic(Address, Option<Basic>),
    /// A storage slot.
    Slot(Address, U256, U256),
}

impl Seen {
    pub(crate) fn key(&self) -> Key {
        match self.value {
            SeenValue::Basic(address, _) => Key::Basic(address),
            SeenValue::Slot(address, index, _) => Key::Slot(address, index),
        }
    }
}

/// How an execution ahead of the committed state ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With a result that is right if what it read was.
    Done(Box<Speculation>),
    /// It read a value that the transaction at this position is computing anew.
    Estimate(usize),
    /// It read the account of the fee recipient.
    FeeRecipient,
    /// It cannot be executed on the state it saw.
    NotExecutable,
    /// The state or the EVM failed; the same will happen, and be reported, at the frontier.
    Failed,
}

/// Why a read gives no value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoValue {
    #[error("transaction {0} of the block is computing the value anew")]
    Estimate(usize),
    #[error("the account of the fee recipient is known only at the frontier")]
    FeeRecipient,
    #[error(transparent)]
    State(StateError),
}

impl DBErrorMarker for NoValue {}

/// What a thread keeps from block to block.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    codes: B256Map<Bytecode>,
    nothing: Option<Bytecode>,
}

impl Cache {
    fn nothing(&mut self) -> Bytecode {
        self.nothing.get_or_insert_with(|| Bytecode::new_legacy(Bytes::new())).clone()
    }
}

/// An EVM for executions ahead of the committed state.
pub(crate) struct Speculator<'m, 'a, S: BuildHasher>(LedgerEvm<View<'m, 'a, S>>);

impl<'m, 'a, S: BuildHasher> Speculator<'m, 'a, S> {
    pub(crate) fn new(block: &BlockContext, memory: &'m Memory<'a, S>, cache: &'m mut Cache) -> Self {
        if cache.codes.len() > CODES_KEPT {
            cache.codes.clear();
        }
        let view = View {
            memory,
            cache,
            fee_recipient: block.fee_recipient,
            position: 0,
            reads: Vec::new(),
            contracts: AddressMap::default(),
            contracts_as_of: memory.contracts_written(),
        };
        Self(evm_over(block, view, Checks::Block))
    }

    /// Executes a transaction on what the memory holds for its position.
    pub(crate) fn execute(&mut self, tx: &Recovered, position: usize) -> Ended {
        let view = &mut self.0.ctx.journaled_state.database;
        view.position = position;
        view.reads = Vec::with_capacity(8);
        match execute_without_tip(&mut self.0, tx.env()) {
            Ok((result, mut state)) => {
                for account in state.values_mut() {
                    // Whoever drops them is another thread. Code that is new must travel on.
                    account.original_info_mut().code = None;
                    if !account.is_created() {
                        account.info.code = None;
                    }
                }
                let reads = std::mem::take(&mut self.0.ctx.journaled_state.database.reads);
                Ended::Done(Box::new(Speculation { reads, executed: (result, state) }))
            }
            Err(EVMError::Transaction(_)) => Ended::NotExecutable,
            Err(EVMError::Database(NoValue::Estimate(at))) => Ended::Estimate(at),
            Err(EVMError::Database(NoValue::FeeRecipient)) => Ended::FeeRecipient,
            Err(_) => Ended::Failed,
        }
    }
}

/// The memory as one transaction sees it.
struct View<'m, 'a, S> {
    memory: &'m Memory<'a, S>,
    cache: &'m mut Cache,
    fee_recipient: Address,
    position: usize,
    reads: Vec<Seen>,
    /// Accounts with code that nobody has written since `contracts_as_of`. Everybody who calls a contract reads its
    /// account, and without this every such read would fetch the same memory from another core.
    contracts: AddressMap<Option<Basic>>,
    contracts_as_of: usize,
}

impl<S: BuildHasher> View<'_, '_, S> {
    fn known_contract(&mut self, address: &Address) -> Option<Option<Basic>> {
        let now = self.memory.contracts_written();
        if now != self.contracts_as_of {
            self.contracts.clear();
            self.contracts_as_of = now;
        }
        self.contracts.get(address).copied()
    }
}

impl<S: BuildHasher> Database for View<'_, '_, S> {
    type Error = NoValue;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, NoValue> {
        if address == self.fee_recipient {
            return Err(NoValue::FeeRecipient);
        }
        let (basic, from_base) = match self.known_contract(&address) {
            Some(basic) => (basic, true),
            None => match self.memory.basic(address, self.position).map_err(NoValue::State)? {
                Read::Base(basic) => {
                    if basic.is_some_and(|basic| basic.code_hash != KECCAK256_EMPTY) {
                        self.contracts.insert(address, basic);
                    }
                    (basic, true)
                }
                Read::Written(basic) => (basic, false),
                Read::Estimate(at) => return Err(NoValue::Estimate(at)),
            },
        };
        self.reads.push(Seen { value: SeenValue::Basic(address, basic), from_base });
        Ok(basic.map(|basic| {
            let code = (basic.code_hash == KECCAK256_EMPTY).then(|| self.cache.nothing());
            AccountInfo { code, ..AccountInfo::from(basic) }
        }))
    }

    fn code_by_hash(&mut self, hash: B256) -> Result<Bytecode, NoValue> {
        if let Some(code) = self.cache.codes.get(&hash) {
            return Ok(code.clone());
        }
        let shared = self.memory.code(hash).map_err(NoValue::State)?;
        let own = Bytecode::new_raw(Bytes::copy_from_slice(shared.original_byte_slice()));
        self.cache.codes.insert(hash, own.clone());
        Ok(own)
    }

    fn storage(&mut self, address: Address, index: U256) -> Result<U256, NoValue> {
        let (value, from_base) = match self.memory.slot(address, index, self.position).map_err(NoValue::State)? {
            Read::Base(value) => (value, true),
            Read::Written(value) => (value, false),
            Read::Estimate(at) => return Err(NoValue::Estimate(at)),
        };
        self.reads.push(Seen { value: SeenValue::Slot(address, index, value), from_base });
        Ok(value)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, NoValue> {
        self.memory.block_hash(number).map_err(NoValue::State)
    }
}
