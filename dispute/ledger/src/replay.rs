//! Parallel re-execution of a block whose access list is known (EIP-7928): for replicas and auditors.
//!
//! The list says what every transaction changed, so each transaction can be executed on its own: what it reads is the
//! newest value that the list gives to a transaction before it, and below that the state before the block. There are
//! no conflicts and nothing is executed twice.
//!
//! The list is not believed. The results are committed in order, the access list of what was really done is made
//! again, and the two must be equal. If they are, then by induction every transaction read what its predecessors wrote:
//! the first reads only the state before the block, so what it wrote is right and is what the list says it wrote; so
//! the second read what was right; and so on.

use std::num::NonZeroUsize;
use std::time::Instant;

use alloy_eip7928::{AccountChanges, BlockAccessList};
use alloy_primitives::map::{AddressMap, B256Map, U256Map};
use alloy_primitives::{Address, B256, U256};
use rayon::prelude::*;
use revm::Database;
use revm::context_interface::result::EVMError;
use revm::state::{AccountInfo, Bytecode};

use crate::evm::{BlockContext, Checks, Executed, evm_over, execute_without_tip};
use crate::executor::{BlockOutput, ExecutionError, Frontier, SkipReason, Statistics, skip_reason};
use crate::state::{ReadState, StateError};
use crate::transaction::Recovered;

/// Transactions that a thread takes at a time: so many that making its EVM costs little, so few that all threads have
/// something to do until the end.
const CHUNK: usize = 16;

/// Why a block cannot be replayed with a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The list is not what the block's transactions did.
    #[error("the access list is not that of the block: {0}")]
    OtherList(String),
    /// With this list a transaction cannot be executed; those of a block all can be.
    #[error("with this access list transaction {index} cannot be executed: {reason}")]
    NotExecutable {
        /// Position in the block.
        index: usize,
        /// Why.
        reason: SkipReason,
    },
    /// The state or the EVM failed.
    #[error(transparent)]
    Execution(#[from] ExecutionError),
}

/// Re-executes blocks with their access lists.
pub struct Replay {
    workers: NonZeroUsize,
    pool: Option<rayon::ThreadPool>,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("workers", &self.workers).finish_non_exhaustive()
    }
}

impl Replay {
    /// With so many threads. Where the operating system gives none, one after the other.
    pub fn new(workers: NonZeroUsize) -> Self {
        let build = || {
            rayon::ThreadPoolBuilder::new()
                .num_threads(workers.get())
                .thread_name(|i| format!("replay-{i}"))
                .build()
                .inspect_err(|error| tracing::warn!(%error, "no threads for replaying blocks"))
                .ok()
        };
        Self { workers, pool: if workers.get() > 1 { build() } else { None } }
    }

    /// Executes the transactions of a block again and compares what they did with `list`.
    ///
    /// The output has the access list that was made, which is equal to `list`.
    pub fn replay(
        &mut self,
        block: &BlockContext,
        transactions: &[&Recovered],
        state: &ReadState<'_>,
        list: &BlockAccessList,
    ) -> Result<BlockOutput, ReplayError> {
        let started = Instant::now();
        let known = Known::new(list);
        let execute = |(chunk, txs): (usize, &[&Recovered])| {
            let mut replayer = Replayer::new(block, state, &known);
            let first = chunk * CHUNK;
            (first..).zip(txs).map(|(at, tx)| replayer.execute(tx, at)).collect::<Vec<_>>()
        };
        let executed: Vec<Vec<_>> = match &self.pool {
            Some(pool) => pool.install(|| transactions.par_chunks(CHUNK).enumerate().map(execute).collect()),
            None => transactions.chunks(CHUNK).enumerate().map(execute).collect(),
        };
        let mut frontier = Frontier::new(block, state, true, transactions.len());
        for (tx, executed) in transactions.iter().zip(executed.into_iter().flatten()) {
            let executed = executed?;
            // Changes are told by comparing with the account before; whoever executes here has loaded it.
            for address in executed.1.keys() {
                frontier.committed().basic(*address).map_err(|source| frontier.state_error(source))?;
            }
            frontier.commit(tx, executed)?;
        }
        let output = frontier.finish();
        let made = output.access_list.as_ref().expect("the frontier was told to record accesses");
        if made != list {
            return Err(ReplayError::OtherList(first_difference(list, made)));
        }
        let statistics = Statistics {
            workers: self.workers.get(),
            executions: transactions.len() as u64,
            elapsed: started.elapsed(),
            ..Statistics::default()
        };
        Ok(BlockOutput { statistics, ..output })
    }
}

fn first_difference(stored: &BlockAccessList, made: &BlockAccessList) -> String {
    let differs = stored.iter().zip(made).find(|(stored, made)| stored != made);
    match differs {
        Some((stored, made)) if stored.address == made.address => {
            format!("it says other things about account {}", stored.address)
        }
        Some((stored, made)) => {
            format!("where it has account {} the block accesses {}", stored.address, made.address)
        }
        None => format!("it has {} accounts, the block accesses {}", stored.len(), made.len()),
    }
}

/// A list, ready to be asked.
struct Known<'l> {
    accounts: AddressMap<KnownAccount<'l>>,
    codes: B256Map<Bytecode>,
}

struct KnownAccount<'l> {
    changes: &'l AccountChanges,
    /// The hashes of the codes it got, with the transactions that gave them.
    codes: Vec<(u64, B256)>,
    /// Its written slots, with where their writes are.
    slots: U256Map<usize>,
}

impl<'l> Known<'l> {
    fn new(list: &'l BlockAccessList) -> Self {
        let mut known = Self {
            accounts: AddressMap::with_capacity_and_hasher(list.len(), Default::default()),
            codes: B256Map::default(),
        };
        for changes in list {
            let mut codes = Vec::new();
            for change in &changes.code_changes {
                let code = Bytecode::new_raw(change.new_code().clone());
                let hash = code.hash_slow();
                codes.push((change.block_access_index.get(), hash));
                known.codes.insert(hash, code);
            }
            let slots = changes.storage_changes.iter().enumerate().map(|(i, slot)| (slot.slot, i)).collect();
            known.accounts.insert(changes.address, KnownAccount { changes, codes, slots });
        }
        known
    }
}

/// The newest of some changes before a transaction; they are in the order of their transactions.
fn before<T>(changes: &[T], index: u64, at: impl Fn(&T) -> u64) -> Option<&T> {
    changes.partition_point(|change| at(change) < index).checked_sub(1).map(|newest| &changes[newest])
}

/// An EVM over the state before the block and the list.
struct Replayer<'r>(crate::evm::LedgerEvm<AsOf<'r>>, u64);

impl<'r> Replayer<'r> {
    fn new(block: &BlockContext, base: &'r ReadState<'r>, known: &'r Known<'r>) -> Self {
        Self(evm_over(block, AsOf { base, known, index: 0 }, Checks::Block), block.number)
    }

    fn execute(&mut self, tx: &Recovered, at: usize) -> Result<Executed, ReplayError> {
        // Number 0 of the list is what happens before the first transaction.
        self.0.ctx.journaled_state.database.index = at as u64 + 1;
        execute_without_tip(&mut self.0, tx.env()).map_err(|error: EVMError<StateError>| {
            match skip_reason(self.1, at, error) {
                Ok(reason) => ReplayError::NotExecutable { index: at, reason },
                Err(error) => error.into(),
            }
        })
    }
}

/// The state as the transaction with a number finds it, if the list is right.
struct AsOf<'r> {
    base: &'r ReadState<'r>,
    known: &'r Known<'r>,
    index: u64,
}

impl Database for AsOf<'_> {
    type Error = StateError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        let info = self.base.basic_ref(address)?;
        let Some(account) = self.known.accounts.get(&address) else { return Ok(info) };
        let index = self.index;
        let balance = before(&account.changes.balance_changes, index, |c| c.block_access_index.get());
        let nonce = before(&account.changes.nonce_changes, index, |c| c.block_access_index.get());
        let code = before(&account.codes, index, |(at, _)| *at);
        if balance.is_none() && nonce.is_none() && code.is_none() {
            return Ok(info);
        }
        let mut info = info.unwrap_or_else(|| AccountInfo { code: None, ..AccountInfo::default() });
        if let Some(change) = balance {
            info.balance = change.post_balance;
        }
        if let Some(change) = nonce {
            info.nonce = change.new_nonce;
        }
        if let Some((_, hash)) = code {
            info.code_hash = *hash;
        }
        // An empty account does not exist (EIP-161).
        Ok(Some(info).filter(|info| !info.is_empty()))
    }

    fn code_by_hash(&mut self, hash: B256) -> Result<Bytecode, StateError> {
        match self.known.codes.get(&hash) {
            Some(code) => Ok(code.clone()),
            None => self.base.code_by_hash_ref(hash),
        }
    }

    fn storage(&mut self, address: Address, index: U256) -> Result<U256, StateError> {
        let written = self.known.accounts.get(&address).and_then(|account| {
            let changes = &account.changes.storage_changes[*account.slots.get(&index)?].changes;
            before(changes, self.index, |change| change.block_access_index.get())
        });
        match written {
            Some(change) => Ok(change.new_value),
            None => self.base.storage_ref(address, index),
        }
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        self.base.block_hash_ref(number)
    }
}
