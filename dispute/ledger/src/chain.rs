//! The chain: one thread makes blocks; everybody else reads a shared view of the newest one.
//!
//! ```text
//!  submit (any thread)        ledger (the producer)                                       ledger-roots
//!  decode, recover ─► Pool ─► select ─► execute ─► seal ─► append + sync ─► publish ──────► trie, root
//!                                          ▲         ▲      commit point     │ state,          │
//!                                      read lock     └────── the root before the block ◄───────┘
//!                                      of the view                           └─► ledger-behind: checkpoint, next file
//! ```
//!
//! - **One producer.** It owns journal and executor. It executes under a read lock of the view, which nobody but
//!   itself ever takes for writing, so reads go on meanwhile and executing threads read plain maps.
//! - **Durable first.** A block is one journal record. Only after the record is synced does the producer take the
//!   write lock, for as long as applying the change set takes: what anybody has seen survives a crash. A failed write or
//!   sync ends the chain; nothing is tried twice.
//! - **Roots late.** A header carries the root before its block. The trie follows on its own thread ([`roots`]) while
//!   the next block is collected and executed.
//! - **State behind.** The state is written to the disk now and then with the record it reflects ([`checkpoint`]). A
//!   start loads it, reads of older records only headers and transaction hashes for the index, and applies the change
//!   sets after it. Change sets hold absolute values, so applying one again changes nothing.
//! - **Reverts.** `evm_revert` is a record too: it makes the records after the snapshot void. A checkpoint of a void
//!   record is passed over.
//!
//! [`roots`]: crate::roots
//! [`checkpoint`]: crate::checkpoint

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use alloy_primitives::map::B256Map;
use alloy_primitives::{Address, B256, Bloom, Bytes, U256, keccak256};
use storage::{Backend, FileBackend, Journal, JournalConfig, JournalReader, MemoryBackend};
use tokio::sync::{broadcast, oneshot, watch};

use crate::block::{
    Block, BlockIndex, Outline, Record, decode_header, encode_access_list, encode_block, prev_randao, seal,
};
use crate::block_stm::BlockStm;
use crate::checkpoint::{self, Attempt, Behind, CHECKPOINT_BYTES, Checkpoint, Policy};
use crate::clock::ChainClock;
use crate::evm::BlockContext;
use crate::executor::{Executor, Outcome, Sequential, SkipReason};
use crate::genesis::{self, Deployment, GenesisRecord};
use crate::pool::{Limits, Pool, PoolError, Spread};
use crate::roots::Roots;
use crate::state::{AccountChange, Basic, ChangeSet, State};
use crate::transaction::{DecodeError, Recovered};
use crate::{BlockTime, Config, Error};

/// Blocks kept decoded in memory; older ones are read from the journal when asked for.
pub const RECENT_BLOCKS: usize = 1_024;

/// Size of a journal file. A new one is filled with zeros, so it is small against the storage crate's default: a
/// chain writes little between two of its rare starts.
const SEGMENT_BYTES: u64 = 16 << 20;

/// The same in memory, where every zero is paid for at once.
const MEMORY_SEGMENT_BYTES: u64 = 1 << 20;

/// Snapshots of development mode kept at a time; the oldest is forgotten when one more is taken.
pub const SNAPSHOTS_MAX: usize = 64;

/// Most blocks one call of `anvil_mine` may make.
pub const MINE_BLOCKS_MAX: u64 = 10_000;

/// Reverts of development mode that a follower may miss before it is lost.
const REVERTS_KEPT: usize = 64;

/// Admitted transactions that a follower may be behind before it is lost.
pub const ARRIVALS_KEPT: usize = 4_096;

/// Blocks that a revert of development mode took back, for those who reported them.
#[derive(Debug)]
pub struct Revert {
    /// The newest block that stayed.
    pub to: u64,
    /// What is gone, in order; of a longer chain the newest [`RECENT_BLOCKS`].
    pub gone: Vec<Arc<Block>>,
}

/// What a journal of this ledger is marked with.
pub(crate) fn journal_identity() -> [u8; 32] {
    keccak256("payhub ledger journal").0
}

/// Where a chain is kept and how its files are laid out. [`Disk::of`] chooses it for a configuration; tests of
/// crashes bring one that fails.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The disk.
    pub backend: Arc<dyn Backend>,
    /// Size of a journal file.
    pub segment_bytes: u64,
    /// Growth of the journal after which a checkpoint is written. `None`: never, and nothing is written behind.
    pub checkpoint_bytes: Option<u64>,
}

impl Disk {
    /// The disk that a configuration names: its data directory, or memory.
    pub fn of(config: &Config) -> Result<Self, Error> {
        Ok(match &config.data_dir {
            Some(dir) => Self {
                backend: Arc::new(FileBackend::open(dir)?),
                segment_bytes: SEGMENT_BYTES,
                checkpoint_bytes: Some(CHECKPOINT_BYTES),
            },
            None => Self {
                backend: Arc::new(MemoryBackend::new()),
                segment_bytes: MEMORY_SEGMENT_BYTES,
                checkpoint_bytes: None,
            },
        })
    }
}

/// The executor that a configuration asks for: parallel, unless it is to use one worker only.
pub fn executor_for(config: &Config) -> Box<dyn Executor> {
    match config.worker_count() {
        NonZeroUsize::MIN => Box::new(Sequential::new().with_access_list(true)),
        workers => Box::new(BlockStm::new(workers).with_access_list(true)),
    }
}

/// Why a transaction is not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// Refused whatever the state is.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Refused on the present state.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The chain has stopped.
    #[error("{0}")]
    Stopped(String),
}

/// What the view knows of every block without reading it.
#[derive(Debug)]
struct Entry {
    /// Its number in the journal.
    record: u64,
    hash: B256,
    bloom: Bloom,
}

/// The newest block's state and the index of all blocks.
#[derive(Debug)]
pub struct View {
    /// The state after the head.
    pub state: State,
    /// Chain time.
    pub clock: ChainClock,
    /// The last journal record that the state reflects.
    record: u64,
    entries: Vec<Entry>,
    by_hash: B256Map<u64>,
    transactions: B256Map<(u64, u32)>,
    recent: VecDeque<Arc<Block>>,
}

impl View {
    fn new(state: State, clock: ChainClock) -> Self {
        Self {
            state,
            clock,
            record: 0,
            entries: Vec::new(),
            by_hash: B256Map::default(),
            transactions: B256Map::default(),
            recent: VecDeque::new(),
        }
    }

    /// The last journal record that the state reflects.
    pub fn record(&self) -> u64 {
        self.record
    }

    /// The newest block.
    pub fn head(&self) -> &Arc<Block> {
        self.recent.back().expect("block 0 is there from the start")
    }

    /// The number of a block.
    pub fn number_of(&self, hash: &B256) -> Option<u64> {
        self.by_hash.get(hash).copied()
    }

    /// The block and position of a transaction.
    pub fn location(&self, transaction: &B256) -> Option<(u64, u32)> {
        self.transactions.get(transaction).copied()
    }

    /// The logs bloom of a block.
    pub fn bloom(&self, number: u64) -> Option<&Bloom> {
        self.entries.get(usize::try_from(number).ok()?).map(|entry| &entry.bloom)
    }

    fn push(&mut self, record: u64, block: Arc<Block>) {
        self.push_index(record, &BlockIndex::from(&*block));
        self.recent.push_back(block);
        if self.recent.len() > RECENT_BLOCKS {
            self.recent.pop_front();
        }
    }

    fn push_index(&mut self, record: u64, block: &BlockIndex) {
        let number = block.header.number;
        self.state.push_block_hash(number, block.hash);
        self.entries.push(Entry { record, hash: block.hash, bloom: block.header.logs_bloom });
        self.by_hash.insert(block.hash, number);
        for (i, hash) in (0u32..).zip(&block.transactions) {
            self.transactions.insert(*hash, (number, i));
        }
    }

    /// Takes a block only behind its parent.
    fn check_parent(&self, record: u64, block: &alloy::consensus::Header) -> Result<(), Error> {
        if self.entries.last().is_none_or(|parent| parent.hash != block.parent_hash) {
            return Err(Error::Damaged { record, what: "its parent is not the block before it" });
        }
        Ok(())
    }
}

/// What the producer and all handles share.
pub struct Shared {
    /// Where the contracts are.
    pub deployment: Deployment,
    /// Whether time control and the like are allowed.
    pub dev: bool,
    /// Who receives the tips.
    pub fee_recipient: Address,
    /// The rules of blocks.
    pub limits: Limits,
    /// The number of the newest block, for those who wait for one.
    pub head: watch::Sender<u64>,
    /// How the last attempt at a checkpoint ended; at first the one that the start loaded.
    pub checkpointed: watch::Sender<Option<Attempt>>,
    /// Reverts, sent before a reader of the view can see them.
    pub reverts: broadcast::Sender<Arc<Revert>>,
    /// The hashes of admitted transactions.
    pub arrivals: broadcast::Sender<B256>,
    view: RwLock<View>,
    pool: Mutex<Pool>,
    reader: RwLock<Option<JournalReader>>,
    stopped: OnceLock<String>,
    /// Whether a [`Command::Wake`] is on its way, so that a thousand transactions send one.
    woken: AtomicBool,
}

impl Shared {
    /// The view, for a short time: blocks wait for it.
    pub fn view(&self) -> RwLockReadGuard<'_, View> {
        // A reader that panicked has changed nothing; the producer's panic ends the chain by itself.
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_view(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pool. Take the view first if both are needed.
    pub fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block by number; from the journal if it is old.
    pub fn block(&self, number: u64) -> Result<Option<Arc<Block>>, Error> {
        let record = {
            let view = self.view();
            let oldest = view.recent.front().map_or(0, |block| block.header.number);
            if let Some(i) = number.checked_sub(oldest) {
                return Ok(usize::try_from(i).ok().and_then(|i| view.recent.get(i)).cloned());
            }
            let Some(entry) = usize::try_from(number).ok().and_then(|n| view.entries.get(n)) else { return Ok(None) };
            entry.record
        };
        let reader = self.reader.read().unwrap_or_else(PoisonError::into_inner);
        let Some(reader) = reader.as_ref() else { return Err(Error::Stopped("it was shut down".to_owned())) };
        match Record::decode(&reader.read(record)?)? {
            Record::Block(block) => Ok(Some(Arc::new(block.block()?))),
            Record::Genesis(genesis) => Ok(Some(Arc::new(genesis_block(&genesis)?))),
            Record::Changes(_) | Record::Revert { .. } => Ok(None),
        }
    }

    /// Whether the producer must be told that a transaction waits.
    pub fn must_wake(&self) -> bool {
        !self.woken.swap(true, Ordering::AcqRel)
    }

    fn stop(&self, why: String) {
        let _ = self.stopped.set(why);
        // Whoever waits for the next block learns that there is none.
        self.head.send_modify(|_| {});
    }

    /// Why the chain makes no more blocks, if so. Those who wait for the next head are woken then.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }

    /// The environment in which a call at the head runs: the state, block number and hash of the head, but chain
    /// time now, so that an answer does not grow old while no block is made.
    pub fn call_context(&self, view: &View, ahead: u64) -> BlockContext {
        let head = view.head();
        BlockContext {
            chain_id: self.deployment.chain_id,
            number: head.header.number + ahead,
            timestamp: view.clock.timestamp().max(head.header.timestamp),
            fee_recipient: self.fee_recipient,
            gas_limit: self.limits.block_gas,
            base_fee: self.limits.base_fee,
            prev_randao: prev_randao(head.hash),
        }
    }
}

/// What handles ask of the producer.
pub enum Command {
    /// A transaction waits.
    Wake,
    /// Make blocks now, empty or not.
    Mine {
        /// How many.
        blocks: u64,
        /// Seconds between them.
        interval_s: u64,
        /// The new head.
        reply: Reply<u64>,
    },
    /// Move chain time on; answers the new time.
    IncreaseTime {
        /// By how much.
        seconds: u64,
        /// Chain time after.
        reply: Reply<u64>,
    },
    /// The time of the next block.
    SetNextTimestamp {
        /// Seconds since 1970.
        timestamp: u64,
        /// Done.
        reply: Reply<()>,
    },
    /// Remember the present state.
    Snapshot {
        /// The number of the snapshot.
        reply: Reply<u64>,
    },
    /// Go back to a snapshot; it and later ones are gone.
    Revert {
        /// Its number.
        id: u64,
        /// Whether there was such a snapshot.
        reply: Reply<bool>,
    },
    /// Change an account by hand.
    Change {
        /// The account.
        address: Address,
        /// What.
        what: Edit,
        /// Done.
        reply: Reply<()>,
    },
    /// Make the journal safe and end.
    Shutdown {
        /// Done.
        reply: Reply<()>,
    },
}

/// The way back to who asked.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A change by hand (development mode).
#[derive(Debug, Clone)]
pub enum Edit {
    /// Another balance.
    Balance(U256),
    /// Another nonce.
    Nonce(u64),
    /// Other code.
    Code(Bytes),
    /// Another value in a slot.
    Slot(U256, U256),
}

struct Snapshot {
    id: u64,
    record: u64,
    number: u64,
    state: State,
    clock: ChainClock,
}

/// The thread that makes blocks.
struct Producer {
    shared: Arc<Shared>,
    journal: Journal,
    executor: Box<dyn Executor>,
    /// The root of the state after the head.
    roots: Roots,
    /// None where nothing is written behind.
    behind: Option<Behind>,
    block_time: BlockTime,
    heartbeat: Option<Duration>,
    last_block: Instant,
    next_timestamp: Option<u64>,
    snapshots: VecDeque<Snapshot>,
    snapshots_taken: u64,
}

/// Opens or creates the chain on a disk and starts its threads.
pub fn start(config: &Config, disk: Disk) -> Result<(Arc<Shared>, Sender<Command>), Error> {
    config.check()?;
    let Disk { backend, segment_bytes, checkpoint_bytes } = disk;
    let mut journal = Journal::open(backend.clone(), JournalConfig { segment_bytes }, &journal_identity())?;
    if journal.last() == 0 {
        journal.append(&Record::encode_genesis(&genesis::create(config)?))?;
    }
    let base = checkpoint_bytes.and_then(|_| usable_checkpoint(&*backend, &journal.reader()));
    let Loaded { view, deployment, reflected, replayed_bytes } = recover(&journal, base, config)?;
    let limits = Limits { block_gas: config.block_gas_limit, base_fee: config.base_fee_per_gas };
    let spread = Spread::new(&deployment, config.adjudicator_parameters().shards);
    let loaded = (reflected > 0).then_some(Attempt { record: reflected, written: true });
    let roots = Roots::start(view.state.clone(), config.worker_count())?;
    let shared = Arc::new(Shared {
        deployment,
        dev: config.dev,
        fee_recipient: config.fee_recipient,
        limits,
        head: watch::Sender::new(view.head().header.number),
        checkpointed: watch::Sender::new(loaded),
        reverts: broadcast::Sender::new(REVERTS_KEPT),
        arrivals: broadcast::Sender::new(ARRIVALS_KEPT),
        view: RwLock::new(view),
        pool: Mutex::new(Pool::new(limits, Some(spread))),
        reader: RwLock::new(Some(journal.reader())),
        stopped: OnceLock::new(),
        woken: AtomicBool::new(false),
    });
    let behind = |checkpoint_bytes| {
        let policy = Policy { checkpoint_bytes, segment_bytes };
        Behind::start(shared.clone(), backend.clone(), journal.reader(), policy, replayed_bytes)
    };
    let behind = checkpoint_bytes.map(behind).transpose()?;
    let producer = Producer {
        shared: shared.clone(),
        journal,
        executor: executor_for(config),
        roots,
        behind,
        block_time: config.block_time,
        heartbeat: config.heartbeat,
        last_block: Instant::now(),
        next_timestamp: None,
        snapshots: VecDeque::new(),
        snapshots_taken: 0,
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || {
            let _guard = StopOnPanic(producer.shared.clone());
            producer.run(&receiver);
        })
        .map_err(|e| Error::Thread(e.to_string()))?;
    Ok((shared, sender))
}

/// Says that the chain has stopped if its thread ends by a panic, so that nobody waits for a block.
struct StopOnPanic(Arc<Shared>);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop("its thread panicked, which is a bug; start it again".to_owned());
        }
    }
}

/// What the journal tells.
struct Loaded {
    view: View,
    deployment: Deployment,
    /// The record that the checkpoint reflects; 0 without one.
    reflected: u64,
    /// Records that were applied, because no checkpoint reflects them.
    replayed_bytes: u64,
}

fn genesis_block(genesis: &GenesisRecord) -> Result<Block, Error> {
    let header = decode_header(&genesis.header)?;
    Ok(Block { hash: header.hash_slow(), header, transactions: Vec::new(), receipts: Vec::new() })
}

/// The checkpoint; none if the journal must be replayed from its beginning.
fn usable_checkpoint(backend: &dyn Backend, journal: &JournalReader) -> Option<Checkpoint> {
    checkpoint::load(backend, journal).unwrap_or_else(|error| {
        tracing::warn!(%error, "the checkpoint of the state is passed over; the whole journal is replayed instead");
        None
    })
}

/// The records that reverts of development mode have made void.
#[derive(Debug, Default)]
pub(crate) struct Void(Vec<(u64, u64)>);

impl Void {
    /// Looks for reverts. They void records before them, so this comes before anything else is read.
    pub(crate) fn find(journal: &JournalReader) -> Result<Self, Error> {
        let mut void = Vec::new();
        journal.replay(1, |number, bytes| {
            void.extend(Record::revert_target(bytes).map(|to| (to + 1, number)));
            Ok::<(), Error>(())
        })?;
        Ok(Self(void))
    }

    /// Whether a record does not count. A revert's own record changes nothing either.
    pub(crate) fn contains(&self, record: u64) -> bool {
        self.0.iter().any(|(from, to)| (*from..=*to).contains(&record))
    }

    /// Whether the state after a record is no longer one of the chain's. The state after a revert is.
    pub(crate) fn contains_state_after(&self, record: u64) -> bool {
        self.0.iter().any(|(from, to)| (*from..*to).contains(&record))
    }
}

/// Rebuilds the view from a checkpoint and the journal: change sets are applied, nothing is executed.
fn recover(journal: &Journal, base: Option<Checkpoint>, config: &Config) -> Result<Loaded, Error> {
    let void = if config.dev { Void::find(&journal.reader())? } else { Void::default() };
    let base = base.filter(|base| {
        let usable = !void.contains_state_after(base.record);
        if !usable {
            tracing::warn!(
                "the checkpoint of the state was made void by a revert; the whole journal is replayed instead"
            );
        }
        usable
    });
    let (reflected, mut state) = base.map_or((0, State::default()), |base| (base.record, base.state));

    let started = Instant::now();
    let mut replayed_bytes = 0;
    let mut found: Option<(View, Deployment)> = None;
    journal.replay(1, |number, bytes| {
        if void.contains(number) {
            return Ok(());
        }
        if number <= reflected {
            match (Record::outline(bytes)?, &mut found) {
                (Outline::Genesis { deployment, inputs, index }, None) => {
                    check_same_chain(config, &deployment, inputs)?;
                    let clock = ChainClock::resume(index.header.timestamp, 0, started);
                    let mut view = View::new(std::mem::take(&mut state), clock);
                    view.push_index(number, &index);
                    found = Some((view, deployment));
                }
                (Outline::Block(index), Some((view, _))) => {
                    view.check_parent(number, &index.header)?;
                    view.push_index(number, &index);
                }
                (Outline::Other, _) => {}
                (Outline::Genesis { .. } | Outline::Block(_), _) => return Err(out_of_order(number)),
            }
            return Ok(());
        }
        replayed_bytes += bytes.len() as u64;
        match (Record::decode(bytes)?, &mut found) {
            (Record::Genesis(genesis), None) => {
                check_same_chain(config, &genesis.deployment, genesis.inputs)?;
                let block = Arc::new(genesis_block(&genesis)?);
                let mut view = View::new(State::default(), ChainClock::resume(block.header.timestamp, 0, started));
                view.state.apply(&genesis.changes);
                view.push(number, block);
                found = Some((view, genesis.deployment));
            }
            (Record::Block(record), Some((view, _))) => {
                let block = Arc::new(record.block()?);
                view.check_parent(number, &block.header)?;
                view.state.apply(&record.changes);
                view.clock = ChainClock::resume(block.header.timestamp, record.clock_offset_s, started);
                view.push(number, block);
            }
            (Record::Changes(changes), Some((view, _))) => view.state.apply(&changes),
            (Record::Revert { .. }, _) => {}
            (Record::Genesis(_) | Record::Block(_) | Record::Changes(_), _) => return Err(out_of_order(number)),
        }
        Ok(())
    })?;
    let (mut view, deployment) = found.ok_or(Error::Damaged { record: 1, what: "the genesis is missing" })?;
    if view.recent.is_empty() {
        load_head(&mut view, journal, started)?;
    }
    view.record = journal.last();
    Ok(Loaded { view, deployment, reflected, replayed_bytes })
}

fn out_of_order(record: u64) -> Error {
    Error::Damaged { record, what: "the genesis is not the first record, or there are two" }
}

/// The newest block is before the checkpoint, so only its outline was read.
fn load_head(view: &mut View, journal: &Journal, started: Instant) -> Result<(), Error> {
    let record = view.entries.last().map_or(1, |entry| entry.record);
    match Record::decode(&journal.read(record)?)? {
        Record::Block(block) => {
            let offset_s = block.clock_offset_s;
            let block = Arc::new(block.block()?);
            view.clock = ChainClock::resume(block.header.timestamp, offset_s, started);
            view.recent.push_back(block);
        }
        Record::Genesis(genesis) => view.recent.push_back(Arc::new(genesis_block(&genesis)?)),
        Record::Changes(_) | Record::Revert { .. } => {
            return Err(Error::Damaged { record, what: "it was a block a moment ago" });
        }
    }
    Ok(())
}

fn check_same_chain(config: &Config, deployment: &Deployment, inputs: B256) -> Result<(), Error> {
    let dir = || config.data_dir.as_deref().map_or_else(String::new, |dir: &Path| dir.display().to_string());
    let stored = deployment.chain_id;
    if let Some(wanted) = config.chain_id.filter(|wanted| *wanted != stored) {
        return Err(Error::OtherChain { dir: dir(), stored, wanted });
    }
    if inputs != genesis::inputs_hash(config) {
        return Err(Error::OtherGenesis { dir: dir(), stored: deployment.genesis_hash });
    }
    Ok(())
}

impl Producer {
    fn run(mut self, commands: &Receiver<Command>) {
        let reason = loop {
            let step = match self.next_command(commands) {
                Ok(Command::Shutdown { reply }) => {
                    let closed = self.close();
                    // Nobody may be waiting for it any more.
                    let _ = reply.send(closed);
                    return;
                }
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => self.build(true).map(|_| ()),
                Err(RecvTimeoutError::Disconnected) => {
                    if let Err(error) = self.close() {
                        tracing::error!(%error, "the ledger's journal was not closed cleanly");
                    }
                    return;
                }
            };
            if let Err(error) = step {
                break error;
            }
        };
        // Nothing was published that is not durable. What waits is lost, as on any node that stops.
        tracing::error!(error = %reason, "the ledger stopped");
        self.shared.stop(reason.to_string());
        while let Ok(command) = commands.recv() {
            self.refuse(command, &reason.to_string());
        }
    }

    /// The next command, or a timeout when the next block by the clock is due.
    fn next_command(&self, commands: &Receiver<Command>) -> Result<Command, RecvTimeoutError> {
        let period = match self.block_time {
            BlockTime::OnDemand => self.heartbeat,
            BlockTime::Interval(period) => Some(period),
        };
        match period {
            Some(period) => commands.recv_timeout(period.saturating_sub(self.last_block.elapsed())),
            None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn close(self) -> Result<(), Error> {
        self.shared.stop("it was shut down".to_owned());
        // It holds the disk, too.
        drop(self.behind);
        *self.shared.reader.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(self.journal.close()?)
    }

    fn refuse(&self, command: Command, why: &str) {
        let stopped = || Error::Stopped(why.to_owned());
        // A receiver that is gone needs no answer.
        match command {
            Command::Wake => {}
            Command::Mine { reply, .. } | Command::IncreaseTime { reply, .. } | Command::Snapshot { reply } => {
                let _ = reply.send(Err(stopped()));
            }
            Command::Revert { reply, .. } => {
                let _ = reply.send(Err(stopped()));
            }
            Command::SetNextTimestamp { reply, .. } | Command::Change { reply, .. } | Command::Shutdown { reply } => {
                let _ = reply.send(Err(stopped()));
            }
        }
    }

    /// Does what was asked. An error here ends the chain; what is only the caller's mistake goes into the reply.
    fn obey(&mut self, command: Command) -> Result<(), Error> {
        match command {
            Command::Wake => self.on_demand(),
            Command::Mine { blocks, interval_s, reply } => {
                for i in 0..blocks {
                    if i > 0 && interval_s > 0 {
                        let head = self.shared.view().head().header.timestamp;
                        self.next_timestamp = Some(head.saturating_add(interval_s));
                    }
                    self.build(true)?;
                }
                let _ = reply.send(Ok(*self.shared.head.borrow()));
                Ok(())
            }
            Command::IncreaseTime { seconds, reply } => {
                let mut view = self.shared.write_view();
                let now = view.clock.timestamp().saturating_add(seconds);
                view.clock.set(now);
                let _ = reply.send(Ok(now));
                Ok(())
            }
            Command::SetNextTimestamp { timestamp, reply } => {
                let head = self.shared.view().head().header.timestamp;
                let answer = if timestamp < head {
                    Err(Error::TimeBeforeHead { timestamp, head })
                } else {
                    self.next_timestamp = Some(timestamp);
                    Ok(())
                };
                let _ = reply.send(answer);
                Ok(())
            }
            Command::Snapshot { reply } => {
                let _ = reply.send(Ok(self.snapshot()));
                Ok(())
            }
            Command::Revert { id, reply } => {
                let reverted = self.revert(id)?;
                let _ = reply.send(Ok(reverted));
                Ok(())
            }
            Command::Change { address, what, reply } => {
                self.edit(address, what)?;
                let _ = reply.send(Ok(()));
                Ok(())
            }
            Command::Shutdown { .. } => Ok(()),
        }
    }

    /// On demand: blocks until nothing that can be executed waits.
    fn on_demand(&mut self) -> Result<(), Error> {
        // Cleared before looking: what arrives from here on sends another command.
        self.shared.woken.store(false, Ordering::Release);
        if self.block_time == BlockTime::OnDemand {
            while self.build(false)? {}
        }
        Ok(())
    }

    /// Makes one block. Returns whether it did: without `empty_too` a block needs a transaction.
    fn build(&mut self, empty_too: bool) -> Result<bool, Error> {
        let shared = self.shared.clone();
        let view = shared.view();
        let candidates = shared.pool().select(&view.state);
        if candidates.is_empty() && !empty_too {
            return Ok(false);
        }
        let parent = view.head().clone();
        let mut context = shared.call_context(&view, 1);
        let moved = self.next_timestamp.take().filter(|time| *time >= parent.header.timestamp);
        context.timestamp = moved.unwrap_or(context.timestamp);
        let transactions = candidates.iter().map(Arc::as_ref).collect::<Vec<_>>();
        let output = self.executor.execute(&context, &transactions, &view.state)?;
        drop(view);

        let mut executed = Vec::with_capacity(output.receipts.len());
        let mut hopeless = Vec::new();
        for (tx, outcome) in candidates.into_iter().zip(&output.outcomes) {
            match outcome {
                Outcome::Executed => executed.push(tx),
                Outcome::Skipped(SkipReason::NonceAhead { .. }) => {}
                Outcome::Skipped(reason @ SkipReason::Invalid(_)) => {
                    tracing::warn!(transaction = %tx.hash, sender = %tx.sender, %reason, "a transaction was dropped");
                    hopeless.push(tx);
                }
            }
        }
        if executed.is_empty() && !empty_too {
            let mut pool = shared.pool();
            hopeless.iter().for_each(|tx| pool.discard(tx));
            return Ok(!hopeless.is_empty());
        }

        let access_list = output.access_list.as_ref().map(encode_access_list);
        let list_hash = access_list.as_ref().map(keccak256);
        let root = self.roots.root()?;
        let block = Arc::new(seal(&context, parent.hash, root, list_hash, executed, output.receipts));
        let offset_s = {
            let mut view = shared.write_view();
            match moved {
                Some(time) => view.clock.set(time),
                None => view.clock.advance(),
            }
            view.clock.offset_s()
        };
        let record = encode_block(&block, &output.changes, access_list.as_ref(), offset_s);
        let number = self.journal.append(&record)?;
        self.publish(number, block, &output.changes, &hopeless);
        self.follow(output.changes, record.len())?;
        Ok(true)
    }

    /// Makes a durable block visible.
    fn publish(&mut self, record: u64, block: Arc<Block>, changes: &ChangeSet, hopeless: &[Arc<Recovered>]) {
        let shared = self.shared.clone();
        {
            let mut view = shared.write_view();
            view.state.apply(changes);
            view.record = record;
            view.push(record, block.clone());
            let mut pool = shared.pool();
            block.transactions.iter().chain(hopeless).for_each(|tx| pool.discard(tx));
            for tx in &block.transactions {
                pool.discard_used(tx.sender, view.state.basic(&tx.sender).nonce);
            }
        }
        self.last_block = Instant::now();
        shared.head.send_replace(block.header.number);
        tracing::debug!(number = block.header.number, transactions = block.transactions.len(), "block");
    }

    /// Receipts are out; what comes now is done by others: the root for the next header, and what is written behind.
    fn follow(&mut self, changes: ChangeSet, record_bytes: usize) -> Result<(), Error> {
        if let Some(behind) = &self.behind {
            behind.wrote(record_bytes);
        }
        self.roots.follow(Arc::new(changes))
    }

    fn snapshot(&mut self) -> u64 {
        let shared = self.shared.clone();
        let view = shared.view();
        self.snapshots_taken += 1;
        self.snapshots.push_back(Snapshot {
            id: self.snapshots_taken,
            record: self.journal.last(),
            number: view.head().header.number,
            state: view.state.clone(),
            clock: view.clock.clone(),
        });
        if self.snapshots.len() > SNAPSHOTS_MAX {
            self.snapshots.pop_front();
        }
        self.snapshots_taken
    }

    fn revert(&mut self, id: u64) -> Result<bool, Error> {
        let Some(at) = self.snapshots.iter().position(|snapshot| snapshot.id == id) else { return Ok(false) };
        let Some(snapshot) = self.snapshots.drain(at..).next() else { return Ok(false) };
        // The head may have left the blocks that are kept in memory.
        let head = self.shared.block(snapshot.number)?;
        let head = head.ok_or(Error::Damaged { record: snapshot.record, what: "the snapshot's block is missing" })?;
        let record = self.journal.append(&Record::encode_revert(snapshot.record))?;
        let shared = self.shared.clone();
        {
            let mut view = shared.write_view();
            let view = &mut *view;
            let gone = view.recent.iter().filter(|block| block.header.number > snapshot.number).cloned().collect();
            // Nobody may be following.
            let _ = shared.reverts.send(Arc::new(Revert { to: snapshot.number, gone }));
            view.state = snapshot.state;
            view.clock = snapshot.clock;
            view.record = record;
            let kept = usize::try_from(snapshot.number).map_or(usize::MAX, |n| n.saturating_add(1));
            for gone in view.entries.drain(kept.min(view.entries.len())..) {
                view.by_hash.remove(&gone.hash);
            }
            view.transactions.retain(|_, (number, _)| *number <= snapshot.number);
            view.recent.retain(|block| block.header.number <= snapshot.number);
            if view.recent.is_empty() {
                view.recent.push_back(head);
            }
            shared.pool().clear();
            self.roots.rebuild(view.state.clone())?;
        }
        self.next_timestamp = None;
        shared.head.send_replace(snapshot.number);
        Ok(true)
    }

    fn edit(&mut self, address: Address, what: Edit) -> Result<(), Error> {
        let mut changes = ChangeSet::default();
        {
            let view = self.shared.view();
            let mut basic = view.state.basic(&address);
            let mut slots = BTreeMap::new();
            match what {
                Edit::Balance(balance) => basic.balance = balance,
                Edit::Nonce(nonce) => basic.nonce = nonce,
                Edit::Slot(index, value) => slots.extend([(index, value)]),
                Edit::Code(code) => {
                    basic.code_hash = keccak256(&code);
                    changes.codes.extend((!code.is_empty()).then_some((basic.code_hash, code)));
                }
            }
            let empty = basic == Basic::default() && slots.is_empty();
            let change = AccountChange { basic: (!empty).then_some(basic), storage_reset: empty, slots };
            changes.accounts.insert(address, change);
        }
        let bytes = Record::encode_changes(&changes);
        let record = self.journal.append(&bytes)?;
        {
            let mut view = self.shared.write_view();
            view.state.apply(&changes);
            view.record = record;
        }
        self.follow(changes, bytes.len())?;
        self.on_demand()
    }
}
