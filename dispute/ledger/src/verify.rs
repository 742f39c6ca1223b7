//! Checking a stored chain: every block of a range is executed again, by one executor or by several, and what comes
//! out is compared with what is stored.
//!
//! Nothing of the directory is believed but the genesis and the change sets before the range, and each of those is
//! covered by a root in a later header: signatures are recovered again, headers are sealed again, the state root is
//! computed from the change sets, and receipts, changes and access lists come from execution. The directory is opened
//! for reading only and stays as it is; a process that has it open is found by its lock.

use std::fmt::{Debug, Display};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy::consensus::Header;
use alloy_eip7928::BlockAccessList;
use alloy_primitives::{Address, B256, Bytes, keccak256};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use storage::{Backend, FileBackend, JournalReader};

use crate::Error;
use crate::block::{BlockRecord, Record, RecordError, decode_access_list, encode_access_list, prev_randao, seal};
use crate::block_stm::BlockStm;
use crate::chain::{Void, journal_identity};
use crate::checkpoint::{self, Checkpoint, CheckpointError};
use crate::evm::BlockContext;
use crate::executor::{BlockOutput, Executor, Outcome, Sequential};
use crate::replay::Replay;
use crate::state::{ChangeSet, State};
use crate::transaction::Recovered;
use crate::trie::StateTrie;

/// Most characters of a value in a [`Difference`].
const SHOWN_CHARS: usize = 400;

/// Who executes the blocks again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// [`Sequential`].
    Sequential,
    /// [`BlockStm`], however small the block is.
    Parallel,
    /// [`Replay`], with the stored access list.
    Replay,
}

impl By {
    /// All of them.
    pub const ALL: [By; 3] = [By::Sequential, By::Parallel, By::Replay];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            By::Sequential => "sequential",
            By::Parallel => "parallel",
            By::Replay => "replay",
        }
    }
}

/// What is checked, and how.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The first block; block 0 is not executed. `None`: block 1.
    pub from: Option<u64>,
    /// The last block. `None`: the newest.
    pub to: Option<u64>,
    /// The executors; each executes every block.
    pub by: Vec<By>,
    /// Threads of the parallel ones.
    pub workers: NonZeroUsize,
}

/// What one executor did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Which.
    pub by: By,
    /// Blocks that it executed.
    pub blocks: u64,
    /// In this time.
    pub elapsed: Duration,
}

/// What is known of the checkpoint of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckpointFinding {
    /// There is none.
    None,
    /// It holds the state that the change sets up to its record make.
    Agrees {
        /// The record.
        record: u64,
    },
    /// It reflects a record behind the range, or one that a revert made void.
    NotReached {
        /// The record.
        record: u64,
    },
    /// A start will pass it over and replay the journal.
    Unusable(String),
}

/// The first thing that is not as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The block.
    pub block: u64,
    /// Who executed it; none for what needs no execution.
    pub by: Option<By>,
    /// What differs.
    pub what: String,
    /// What is stored.
    pub stored: String,
    /// What came out.
    pub found: String,
}

impl Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "block {}, {}", self.block, self.what)?;
        if let Some(by) = self.by {
            write!(f, " ({} execution)", by.name())?;
        }
        write!(f, ": stored {}, found {}", self.stored, self.found)
    }
}

/// What was checked and what came out.
#[derive(Debug, Clone)]
pub struct Report {
    /// The chain's id.
    pub chain_id: u64,
    /// The hash of its block 0.
    pub genesis_hash: B256,
    /// The newest block of the directory.
    pub head: u64,
    /// The first block that was checked.
    pub from: u64,
    /// The last block that was to be checked.
    pub to: u64,
    /// Blocks that are as stored.
    pub blocks: u64,
    /// Their transactions.
    pub transactions: u64,
    /// Their gas.
    pub gas: u64,
    /// What each executor did.
    pub work: Vec<Work>,
    /// Blocks stored without their access list, because the record would have grown too large; replay skips them.
    pub without_list: u64,
    /// The hash of the last block that is as stored.
    pub hash: B256,
    /// The root of the state after it.
    pub state_root: B256,
    /// The checkpoint of the state.
    pub checkpoint: CheckpointFinding,
    /// The first difference. Nothing behind it was checked.
    pub difference: Option<Difference>,
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is no chain.
    #[error("`{dir}` holds no chain; name the data directory of a ledger")]
    NoChain {
        /// The folder.
        dir: String,
    },
    /// The range is not in the chain.
    #[error("blocks {from} to {to} are asked for, the chain has blocks 1 to {head}; choose a range within")]
    Range {
        /// From the options, or the default.
        from: u64,
        /// From the options, or the default.
        to: u64,
        /// The newest block.
        head: u64,
    },
    /// The directory cannot be read.
    #[error(transparent)]
    Ledger(#[from] Error),
    /// The journal cannot be read.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl From<RecordError> for VerifyError {
    fn from(error: RecordError) -> Self {
        Self::Ledger(error.into())
    }
}

/// Checks the chain in a data directory. `progress` hears of every block that is done, and of how many there are.
pub fn verify(dir: &Path, plan: &Plan, progress: impl FnMut(u64, u64)) -> Result<Report, VerifyError> {
    // A lock makes the folder; a mistyped name must not.
    if !dir.join("journal").is_dir() {
        return Err(VerifyError::NoChain { dir: dir.display().to_string() });
    }
    verify_on(Arc::new(FileBackend::open(dir)?), plan, progress)
}

/// Checks the chain on a disk that nobody writes to.
pub fn verify_on(
    backend: Arc<dyn Backend>,
    plan: &Plan,
    progress: impl FnMut(u64, u64),
) -> Result<Report, VerifyError> {
    let journal = JournalReader::open(backend.clone(), &journal_identity())?;
    if journal.last() == 0 {
        return Err(VerifyError::NoChain { dir: "the disk".to_owned() });
    }
    let void = Void::find(&journal)?;
    let head = head(&journal, &void)?;
    let (from, to) = (plan.from.unwrap_or(1), plan.to.unwrap_or(head));
    // A chain that has only block 0 is a chain; there is just nothing to execute.
    let nothing = head == 0 && plan.from.is_none_or(|from| from <= 1) && plan.to.is_none_or(|to| to == 0);
    if !nothing && (from > to || to > head) {
        return Err(VerifyError::Range { from, to, head });
    }
    let (checkpoint, finding) = match checkpoint::load(&*backend, &journal) {
        Ok(None) => (None, CheckpointFinding::None),
        Ok(Some(found)) => {
            let finding = CheckpointFinding::NotReached { record: found.record };
            // What a revert took back is no state of this chain.
            (Some(found).filter(|found| !void.contains_state_after(found.record)), finding)
        }
        Err(CheckpointError::Journal(error)) => return Err(error.into()),
        Err(error) => (None, CheckpointFinding::Unusable(error.to_string())),
    };
    let checker = Checker {
        state: State::default(),
        trie: StateTrie::new(plan.workers),
        trie_is_built: false,
        parent: Header::default(),
        engines: plan.by.iter().map(|by| Engine::new(*by, plan.workers)).collect(),
        checkpoint,
        report: Report {
            chain_id: 0,
            genesis_hash: B256::ZERO,
            head,
            from,
            to,
            blocks: 0,
            transactions: 0,
            gas: 0,
            work: plan.by.iter().map(|by| Work { by: *by, blocks: 0, elapsed: Duration::ZERO }).collect(),
            without_list: 0,
            hash: B256::ZERO,
            state_root: B256::ZERO,
            checkpoint: finding,
            difference: None,
        },
    };
    checker.run(&journal, &void, progress)
}

/// The number of the newest block.
fn head(journal: &JournalReader, void: &Void) -> Result<u64, VerifyError> {
    let mut blocks = 0u64;
    journal.replay(1, |number, bytes| {
        if !void.contains(number) && Record::is_block(bytes)? {
            blocks += 1;
        }
        Ok::<(), VerifyError>(())
    })?;
    Ok(blocks)
}

/// Ends the walk through the journal, for good or because of an error.
enum Stop {
    Done,
    Differs(Difference),
    Failed(VerifyError),
}

impl<E: Into<VerifyError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

struct Checker {
    state: State,
    trie: StateTrie,
    trie_is_built: bool,
    parent: Header,
    engines: Vec<Engine>,
    checkpoint: Option<Checkpoint>,
    report: Report,
}

impl Checker {
    fn run(
        mut self,
        journal: &JournalReader,
        void: &Void,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Report, VerifyError> {
        let walked = journal.replay(1, |number, bytes| {
            if !void.contains(number) {
                self.take(number, Record::decode(bytes)?, &mut progress)?;
            }
            self.compare_checkpoint(number)
        });
        match walked {
            Ok(()) | Err(Stop::Done) => {}
            Err(Stop::Differs(difference)) => self.report.difference = Some(difference),
            Err(Stop::Failed(error)) => return Err(error),
        }
        if self.report.difference.is_none() {
            self.build_trie();
            self.report.state_root = self.trie.root();
        }
        Ok(self.report)
    }

    fn take(&mut self, number: u64, record: Record, progress: &mut impl FnMut(u64, u64)) -> Result<(), Stop> {
        match record {
            Record::Genesis(genesis) => {
                self.parent = crate::block::decode_header(&genesis.header)?;
                self.report.chain_id = genesis.deployment.chain_id;
                self.report.genesis_hash = genesis.deployment.genesis_hash;
                self.report.hash = self.parent.hash_slow();
                self.follow(&genesis.changes);
                self.same(0, None, "its hash", &genesis.deployment.genesis_hash, &self.report.hash)?;
                // Later roots cover the genesis state too, but only if there are later blocks in the range.
                self.build_trie();
                let root = self.trie.root();
                self.same(0, None, "the state root", &self.parent.state_root, &root)
            }
            Record::Changes(changes) => {
                self.follow(&changes);
                Ok(())
            }
            Record::Revert { .. } => Ok(()),
            Record::Block(record) => {
                let header = record.header()?;
                if header.number > self.report.to {
                    // The first header behind the range holds the root after it.
                    self.build_trie();
                    let root = self.trie.root();
                    self.same(header.number, None, "the state root before it", &header.state_root, &root)?;
                    self.report.state_root = root;
                    return Err(Stop::Done);
                }
                if header.number >= self.report.from {
                    self.build_trie();
                    self.check(number, &header, &record)?;
                    self.report.blocks += 1;
                    self.report.transactions += record.transactions().len() as u64;
                    self.report.gas += header.gas_used;
                    progress(self.report.blocks, self.report.to + 1 - self.report.from);
                }
                self.follow(&record.changes);
                self.report.hash = header.hash_slow();
                self.parent = header;
                Ok(())
            }
        }
    }

    /// Follows a change set that counts as checked.
    fn follow(&mut self, changes: &ChangeSet) {
        self.state.apply(changes);
        if self.trie_is_built {
            self.trie.apply(changes);
        }
    }

    fn build_trie(&mut self) {
        if !self.trie_is_built {
            self.trie.rebuild(&self.state);
            self.trie_is_built = true;
        }
    }

    fn check(&mut self, journal_record: u64, header: &Header, record: &BlockRecord) -> Result<(), Stop> {
        let number = header.number;
        let parent = self.report.hash;
        self.same(number, None, "its number", &number, &(self.parent.number + 1))?;
        self.same(number, None, "the parent's hash", &header.parent_hash, &parent)?;
        self.same(number, None, "PREVRANDAO", &header.mix_hash, &prev_randao(parent))?;
        if header.timestamp < self.parent.timestamp {
            return Err(differs(
                number,
                None,
                "its time is before the parent's",
                &header.timestamp,
                &self.parent.timestamp,
            ));
        }
        let root = self.trie.root();
        self.same(number, None, "the state root before it", &header.state_root, &root)?;
        let transactions = self.recover(number, record.transactions())?;
        self.state.push_block_hash(self.parent.number, parent);

        let context = BlockContext {
            chain_id: self.report.chain_id,
            number,
            timestamp: header.timestamp,
            fee_recipient: header.beneficiary,
            gas_limit: header.gas_limit,
            base_fee: header.base_fee_per_gas.unwrap_or_default(),
            prev_randao: header.mix_hash,
        };
        let list_hash = header.block_access_list_hash;
        let sealed = seal(&context, parent, root, list_hash, transactions.clone(), record.receipts.clone());
        self.same(number, None, "the transactions root", &header.transactions_root, &sealed.header.transactions_root)?;
        self.same(number, None, "the receipts root", &header.receipts_root, &sealed.header.receipts_root)?;
        self.same(number, None, "the logs bloom", &header.logs_bloom, &sealed.header.logs_bloom)?;
        self.same(number, None, "the gas used", &header.gas_used, &sealed.header.gas_used)?;
        self.same(number, None, "the header", header, &sealed.header)?;
        let list = match &record.access_list {
            Some(bytes) => {
                self.same(number, None, "the access list's hash", &list_hash, &Some(keccak256(bytes)))?;
                Some(decode_access_list(bytes)?)
            }
            None => {
                self.report.without_list += 1;
                None
            }
        };

        let transactions = transactions.iter().map(Arc::as_ref).collect::<Vec<_>>();
        let mut engines = std::mem::take(&mut self.engines);
        for (engine, work) in engines.iter_mut().zip(&mut self.report.work) {
            let started = Instant::now();
            let output = match engine.execute(&context, &transactions, &self.state, list.as_ref()) {
                Ok(Some(output)) => output,
                Ok(None) => continue,
                Err(refusal) => {
                    let stored = format!("record {journal_record} of the journal");
                    return Err(differs(
                        number,
                        Some(work.by),
                        "it cannot be executed",
                        &Plain(stored),
                        &Plain(refusal),
                    ));
                }
            };
            work.elapsed += started.elapsed();
            work.blocks += 1;
            compare(number, work.by, record, list_hash, &output)?;
        }
        self.engines = engines;
        Ok(())
    }

    /// The transactions with the senders that their signatures tell.
    fn recover(&self, block: u64, stored: &[(Address, Bytes)]) -> Result<Vec<Arc<Recovered>>, Stop> {
        let chain_id = self.report.chain_id;
        let recovered = stored.par_iter().map(|(_, raw)| Recovered::decode(raw, chain_id)).collect::<Vec<_>>();
        let mut transactions = Vec::with_capacity(stored.len());
        for (i, ((sender, _), recovered)) in stored.iter().zip(recovered).enumerate() {
            let tx = recovered.map_err(|e| {
                let (what, found) = (format!("transaction {i}"), Plain(e.to_string()));
                differs(block, None, what, &Plain("a transaction".to_owned()), &found)
            })?;
            self.same(block, None, format!("the sender of transaction {i}"), sender, &tx.sender)?;
            transactions.push(Arc::new(tx));
        }
        Ok(transactions)
    }

    fn compare_checkpoint(&mut self, record: u64) -> Result<(), Stop> {
        let Some(checkpoint) = self.checkpoint.take_if(|checkpoint| checkpoint.record == record) else {
            return Ok(());
        };
        self.report.checkpoint = match first_other_account(&self.state, &checkpoint.state) {
            None => CheckpointFinding::Agrees { record },
            Some(address) => {
                let what = format!("the checkpoint of record {record}, account {address}");
                let (stored, found) = (checkpoint.state.account(&address), self.state.account(&address));
                return Err(differs(self.parent.number, None, what, &stored, &found));
            }
        };
        Ok(())
    }

    fn same<T: PartialEq + Debug>(
        &self,
        block: u64,
        by: Option<By>,
        what: impl Into<String>,
        stored: &T,
        found: &T,
    ) -> Result<(), Stop> {
        if stored == found { Ok(()) } else { Err(differs(block, by, what, stored, found)) }
    }
}

/// A text that is shown as it is.
struct Plain(String);

impl Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn differs(block: u64, by: Option<By>, what: impl Into<String>, stored: &dyn Debug, found: &dyn Debug) -> Stop {
    let shown = |value: &dyn Debug| {
        let text = format!("{value:?}");
        match text.char_indices().nth(SHOWN_CHARS) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text,
        }
    };
    Stop::Differs(Difference { block, by, what: what.into(), stored: shown(stored), found: shown(found) })
}

/// Holds what an executor made against the record.
fn compare(
    block: u64,
    by: By,
    record: &BlockRecord,
    list_hash: Option<B256>,
    output: &BlockOutput,
) -> Result<(), Stop> {
    let by = Some(by);
    if let Some((i, outcome)) = output.outcomes.iter().enumerate().find(|(_, outcome)| **outcome != Outcome::Executed) {
        return Err(differs(block, by, format!("transaction {i}"), &Outcome::Executed, outcome));
    }
    let count = record.receipts.len().max(output.receipts.len());
    for i in 0..count {
        let (stored, found) = (record.receipts.get(i), output.receipts.get(i));
        if stored != found {
            return Err(differs(block, by, format!("the receipt of transaction {i}"), &stored, &found));
        }
    }
    let (stored, found) = (&record.changes, &output.changes);
    if stored != found {
        let addresses = stored.accounts.keys().chain(found.accounts.keys());
        for address in addresses {
            let (stored, found) = (stored.accounts.get(address), found.accounts.get(address));
            if stored != found {
                return Err(differs(block, by, format!("the change of account {address}"), &stored, &found));
            }
        }
        let hashes = |changes: &ChangeSet| changes.codes.keys().copied().collect::<Vec<_>>();
        return Err(differs(block, by, "the codes", &hashes(stored), &hashes(found)));
    }
    let found = output.access_list.as_ref().map(|list| keccak256(encode_access_list(list)));
    if found.is_some() && found != list_hash {
        return Err(differs(block, by, "the access list's hash", &list_hash, &found));
    }
    Ok(())
}

/// The first account, in no particular order, that two states do not agree on.
fn first_other_account(a: &State, b: &State) -> Option<Address> {
    let other = |(address, account): (&Address, &crate::state::Account), state: &State| {
        (state.account(address) != Some(account) || state.code(address) != a.code(address)).then_some(*address)
    };
    let missing = a.accounts().find_map(|entry| other(entry, b));
    missing.or_else(|| b.accounts().find_map(|(address, _)| a.account(address).is_none().then_some(*address)))
}

enum Engine {
    Executor(Box<dyn Executor>),
    Replay(Replay),
}

impl Engine {
    fn new(by: By, workers: NonZeroUsize) -> Self {
        match by {
            By::Sequential => Self::Executor(Box::new(Sequential::new().with_access_list(true))),
            By::Parallel => Self::Executor(Box::new(BlockStm::new(workers).with_access_list(true).with_cutoff(0))),
            By::Replay => Self::Replay(Replay::new(workers)),
        }
    }

    /// Nothing if it cannot do this block, because there is no access list.
    fn execute(
        &mut self,
        context: &BlockContext,
        transactions: &[&Recovered],
        state: &State,
        list: Option<&BlockAccessList>,
    ) -> Result<Option<BlockOutput>, String> {
        match (self, list) {
            (Self::Executor(executor), _) => {
                executor.execute(context, transactions, state).map(Some).map_err(|e| e.to_string())
            }
            (Self::Replay(replay), Some(list)) => {
                replay.replay(context, transactions, state, list).map(Some).map_err(|e| e.to_string())
            }
            (Self::Replay(_), None) => Ok(None),
        }
    }
}
