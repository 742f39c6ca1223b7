//! The flat state on disk, written behind, so that a start need not apply every change set since the genesis.
//!
//! A checkpoint is one file: the state after a journal record, with the number of that record and the journal's chain
//! value there, which stands for the whole history before it. A thread of its own writes it to a temporary file,
//! syncs it and renames it, so there is the old one or the new one, never half of one. The journal remains the truth:
//! a checkpoint that is missing, damaged, of another history or made void by `evm_revert` is passed over with a
//! warning, and everything is replayed; one that cannot be written is tried again later and stops nothing.
//!
//! ```text
//! "PAYHUBC" version | record | chain value | frames: length, change set | 0 | BLAKE3 of everything before
//! ```
//!
//! How much is written: a checkpoint is due when the journal has grown by as much as the last checkpoint was long, and
//! by [`CHECKPOINT_BYTES`] at least. So checkpoints at most double what a chain writes, and a start reads at most
//! that much of the journal for more than its index. While one is written, memory holds a pointer for each account and
//! the accounts that change meanwhile.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use storage::{Backend, BackendFile, JournalReader};

use crate::Error;
use crate::chain::Shared;
use crate::state::{Account, AccountChange, ChangeSet, State};

/// The journal grows at least by this much between two checkpoints: replaying it takes a fraction of a second.
pub const CHECKPOINT_BYTES: u64 = 16 << 20;

const DIR: &str = "checkpoint";
const FILE: &str = "checkpoint/state";
const TEMPORARY: &str = "checkpoint/new.tmp";

const MAGIC: [u8; 8] = *b"PAYHUBC\x01";
const HEAD_BYTES: usize = 8 + 8 + 32;
const HASH_BYTES: usize = 32;

/// About this much is encoded and written at a time.
const FRAME_BYTES: usize = 1 << 20;
/// No frame is larger: at most one code (of a genesis file, which fits a record of 16 MiB) or one account goes beyond [`FRAME_BYTES`].
const FRAME_BYTES_MAX: usize = 32 << 20;
/// Slots of one account in one frame.
const FRAME_SLOTS: usize = 8_192;
/// About what an account and a slot take in a frame.
const ACCOUNT_BYTES: usize = 128;
const SLOT_BYTES: usize = 66;

/// Why a checkpoint cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The disk refused.
    #[error("cannot {action} `{file}`: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not what was written.
    #[error("`{FILE}` is damaged: {0}")]
    Damaged(&'static str),
    /// It does not fit the journal.
    #[error("`{FILE}` does not belong to this journal: {0}")]
    Foreign(&'static str),
    /// The journal did not answer.
    #[error(transparent)]
    Journal(#[from] storage::Error),
}

/// A state with the place in the journal that it reflects.
#[derive(Debug)]
pub struct Checkpoint {
    /// The last record it reflects.
    pub record: u64,
    /// The journal's chain value there.
    pub chain: [u8; 32],
    /// Accounts and code; block hashes are not part of it.
    pub state: State,
}

fn failed(action: &'static str, file: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
    move |source| CheckpointError::Io { action, file, source }
}

/// Replaces the checkpoint. Gives the length of the file, or nothing if `stop` was set meanwhile.
pub fn write(backend: &dyn Backend, new: Checkpoint, stop: &AtomicBool) -> Result<Option<u64>, CheckpointError> {
    backend.create_dir(DIR).map_err(failed("make the folder", DIR))?;
    let file = backend.create(TEMPORARY).map_err(failed("create", TEMPORARY))?;
    let written = Writer::new(&*file).whole(new, stop);
    let len = match written {
        Ok(Some(len)) => len,
        unfinished => {
            // What it took of the disk is given back; if that fails too, the next one replaces it.
            let _ = backend.remove(TEMPORARY);
            return unfinished;
        }
    };
    file.sync().map_err(failed("sync", TEMPORARY))?;
    backend.rename(TEMPORARY, FILE).map_err(failed("rename", TEMPORARY))?;
    backend.sync_dir(DIR).map_err(failed("sync the folder", DIR))?;
    Ok(Some(len))
}

struct Writer<'a> {
    file: &'a dyn BackendFile,
    at: u64,
    hash: blake3::Hasher,
    frame: ChangeSet,
    /// About how long the frame will be.
    size: usize,
}

impl<'a> Writer<'a> {
    fn new(file: &'a dyn BackendFile) -> Self {
        Self { file, at: 0, hash: blake3::Hasher::new(), frame: ChangeSet::default(), size: 0 }
    }

    fn whole(mut self, new: Checkpoint, stop: &AtomicBool) -> Result<Option<u64>, CheckpointError> {
        self.put(&[&MAGIC[..], &new.record.to_le_bytes(), &new.chain].concat())?;
        for (hash, code) in new.state.codes() {
            self.size += code.len() + ACCOUNT_BYTES;
            self.frame.codes.insert(*hash, code);
            self.flush_if_full()?;
        }
        for (address, account) in new.state.into_accounts() {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.account(address, &account)?;
        }
        self.flush()?;
        self.put(&0u32.to_le_bytes())?;
        let hash = *self.hash.finalize().as_bytes();
        self.put(&hash)?;
        Ok(Some(self.at))
    }

    /// The slots of a large contract go into several frames, one after the other.
    fn account(&mut self, address: alloy_primitives::Address, account: &Account) -> Result<(), CheckpointError> {
        let change = || AccountChange { basic: Some(account.basic), storage_reset: false, slots: BTreeMap::new() };
        self.size += ACCOUNT_BYTES;
        self.frame.accounts.insert(address, change());
        let mut taken = 0;
        for (index, value) in &account.slots {
            if taken == FRAME_SLOTS {
                self.flush_if_full()?;
                taken = 0;
            }
            self.frame.accounts.entry(address).or_insert_with(change).slots.insert(*index, *value);
            self.size += SLOT_BYTES;
            taken += 1;
        }
        self.flush_if_full()
    }

    fn flush_if_full(&mut self) -> Result<(), CheckpointError> {
        if self.size < FRAME_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<(), CheckpointError> {
        let frame = std::mem::take(&mut self.frame);
        self.size = 0;
        if frame == ChangeSet::default() {
            return Ok(());
        }
        let mut bytes =
            postcard::to_extend(&frame, vec![0; 4]).expect("plain data of known length encodes into memory");
        let len = u32::try_from(bytes.len() - 4).expect("a frame is a few megabytes");
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.file.write_at(self.at, bytes).map_err(failed("write", TEMPORARY))?;
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// Reads the checkpoint, if there is one, and holds it against the journal.
pub fn load(backend: &dyn Backend, journal: &JournalReader) -> Result<Option<Checkpoint>, CheckpointError> {
    let file = match backend.open(FILE) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("open", FILE)(e)),
    };
    let checkpoint = Reader::new(&*file)?.whole()?;
    if checkpoint.record == 0 || checkpoint.record > journal.last() {
        return Err(CheckpointError::Foreign("the journal does not reach as far"));
    }
    if journal.chain(checkpoint.record)? != checkpoint.chain {
        return Err(CheckpointError::Foreign("the history before it is another"));
    }
    Ok(Some(checkpoint))
}

struct Reader<'a> {
    file: &'a dyn BackendFile,
    at: u64,
    len: u64,
    hash: blake3::Hasher,
}

impl<'a> Reader<'a> {
    fn new(file: &'a dyn BackendFile) -> Result<Self, CheckpointError> {
        let len = file.len().map_err(failed("measure", FILE))?;
        Ok(Self { file, at: 0, len, hash: blake3::Hasher::new() })
    }

    fn whole(mut self) -> Result<Checkpoint, CheckpointError> {
        let head = self.take(HEAD_BYTES)?;
        if head[..8] != MAGIC {
            return Err(CheckpointError::Damaged("it begins with other bytes"));
        }
        let record = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
        let chain = head[16..].try_into().expect("thirty-two bytes");
        let mut state = State::default();
        loop {
            let len = self.take(4)?;
            let len = u32::from_le_bytes(len[..].try_into().expect("four bytes"));
            match usize::try_from(len) {
                Ok(0) => break,
                Ok(len) if len <= FRAME_BYTES_MAX => {
                    let frame = self.take(len)?;
                    let frame = postcard::from_bytes::<ChangeSet>(&frame)
                        .map_err(|_| CheckpointError::Damaged("a frame does not decode"))?;
                    state.apply(&frame);
                }
                Ok(_) | Err(_) => return Err(CheckpointError::Damaged("a frame is too long")),
            }
        }
        let expected = *self.hash.finalize().as_bytes();
        if self.take(HASH_BYTES)? != expected {
            return Err(CheckpointError::Damaged("its hash does not fit"));
        }
        if self.at != self.len {
            return Err(CheckpointError::Damaged("bytes follow its end"));
        }
        Ok(Checkpoint { record, chain, state })
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>, CheckpointError> {
        let end = self.at + count as u64;
        if end > self.len {
            return Err(CheckpointError::Damaged("it is cut off"));
        }
        let mut bytes = vec![0; count];
        self.file.read_at(self.at, &mut bytes).map_err(failed("read", FILE))?;
        self.hash.update(&bytes);
        self.at = end;
        Ok(bytes)
    }
}

/// How the last attempt at a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The journal record that it reflects.
    pub record: u64,
    /// Whether it is on the disk.
    pub written: bool,
}

/// What is written behind, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Growth of the journal after which a checkpoint is due.
    pub checkpoint_bytes: u64,
    /// Size of a journal file. The next one is filled ahead of time, so that no block waits for zeros to be written.
    pub segment_bytes: u64,
}

/// The thread that writes behind. It ends when this is dropped; a checkpoint that is being written is given up.
#[derive(Debug)]
pub struct Behind {
    notes: Option<Sender<u64>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Behind {
    /// Starts the thread. `grown` is what the journal has grown by since the last checkpoint.
    pub fn start(
        shared: Arc<Shared>,
        backend: Arc<dyn Backend>,
        journal: JournalReader,
        policy: Policy,
        grown: u64,
    ) -> Result<Self, Error> {
        let (notes, written) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let work = Work { shared, backend, journal, policy, stop: stop.clone(), grown, last_len: 0, unprepared: 0 };
        let thread = std::thread::Builder::new()
            .name("ledger-behind".to_owned())
            .spawn(move || work.run(&written))
            .map_err(|e| Error::Thread(e.to_string()))?;
        Ok(Self { notes: Some(notes), stop, thread: Some(thread) })
    }

    /// A record of so many bytes is durable and visible.
    pub fn wrote(&self, bytes: usize) {
        // If the thread has panicked there are no checkpoints any more, and starts take longer.
        let _ = self.notes.as_ref().map(|notes| notes.send(bytes as u64));
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.notes = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    shared: Arc<Shared>,
    backend: Arc<dyn Backend>,
    journal: JournalReader,
    policy: Policy,
    stop: Arc<AtomicBool>,
    grown: u64,
    last_len: u64,
    /// Growth since the last segment was filled ahead of time.
    unprepared: u64,
}

impl Work {
    fn run(mut self, written: &Receiver<u64>) {
        while let Ok(bytes) = written.recv() {
            let bytes = written.try_iter().fold(bytes, |sum, more| sum.saturating_add(more));
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            self.grown += bytes;
            self.unprepared += bytes;
            if self.unprepared >= self.policy.segment_bytes / 2 {
                self.unprepared = 0;
                if let Err(error) = self.journal.prepare_segment() {
                    tracing::warn!(%error, "the journal's next file cannot be made ahead of time");
                }
            }
            if self.grown >= self.policy.checkpoint_bytes.max(self.last_len) {
                self.grown = 0;
                self.checkpoint();
            }
        }
    }

    fn checkpoint(&mut self) {
        let (record, state) = {
            let view = self.shared.view();
            (view.record(), view.state.clone())
        };
        let written = self
            .journal
            .chain(record)
            .map_err(CheckpointError::from)
            .and_then(|chain| write(&*self.backend, Checkpoint { record, chain, state }, &self.stop));
        match &written {
            Ok(Some(len)) => {
                tracing::debug!(record, bytes = len, "checkpoint");
                self.last_len = *len;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "no checkpoint was written; the next start replays more"),
        }
        let written = matches!(written, Ok(Some(_)));
        self.shared.checkpointed.send_replace(Some(Attempt { record, written }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Basic;
    use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
    use storage::{Journal, JournalConfig, MemoryBackend};

    fn journal(backend: &MemoryBackend) -> Journal {
        let config = JournalConfig { segment_bytes: 4096 };
        let mut journal = Journal::open(Arc::new(backend.clone()), config, &[7; 32]).expect("a journal");
        journal.append_many(&[b"a", b"b", b"c"]).expect("durable");
        journal
    }

    fn large_state() -> State {
        let mut changes = ChangeSet::default();
        for i in 0..40_000u64 {
            let address = Address::left_padding_from(&i.to_be_bytes());
            let basic = Basic { nonce: i, balance: U256::from(i) << 100, ..Basic::default() };
            changes.accounts.insert(address, AccountChange { basic: Some(basic), ..AccountChange::default() });
        }
        let code = Bytes::from(vec![1u8; 20_000]);
        let basic = Basic { code_hash: keccak256(&code), ..Basic::default() };
        let slots = (1..50_000u64).map(|i| (U256::from(i), U256::MAX - U256::from(i))).collect();
        changes.codes.insert(basic.code_hash, code);
        let change = AccountChange { basic: Some(basic), storage_reset: false, slots };
        changes.accounts.insert(Address::repeat_byte(9), change);
        let mut state = State::default();
        state.apply(&changes);
        state
    }

    fn content(state: &State) -> (BTreeMap<Address, Account>, BTreeMap<B256, Bytes>) {
        let accounts = state.accounts().map(|(address, account)| (*address, account.clone()));
        (accounts.collect(), state.codes().map(|(hash, code)| (*hash, code)).collect())
    }

    #[test]
    fn a_state_comes_back_as_it_was_written() {
        let backend = MemoryBackend::new();
        let reader = journal(&backend).reader();
        assert!(load(&backend, &reader).expect("readable").is_none());
        for state in [State::default(), large_state()] {
            let new = Checkpoint { record: 2, chain: reader.chain(2).expect("it is there"), state: state.clone() };
            let len = write(&backend, new, &AtomicBool::new(false)).expect("written").expect("not stopped");
            assert_eq!(backend.files()[FILE].len() as u64, len);
            let read = load(&backend, &reader).expect("readable").expect("a checkpoint");
            assert_eq!(read.record, 2);
            assert!(content(&read.state) == content(&state));
        }
    }

    #[test]
    fn damage_anywhere_and_another_history_are_noticed() {
        let backend = MemoryBackend::new();
        let reader = journal(&backend).reader();
        let put = |record, chain| {
            let mut changes = ChangeSet::default();
            let change = AccountChange { basic: Some(Basic::default()), ..AccountChange::default() };
            changes.accounts.insert(Address::repeat_byte(1), change);
            let mut state = State::default();
            state.apply(&changes);
            write(&backend, Checkpoint { record, chain, state }, &AtomicBool::new(false)).expect("written");
        };
        put(2, reader.chain(2).expect("it is there"));
        let good = backend.files()[FILE].clone();
        for at in 0..good.len() {
            backend.tamper(FILE, |bytes| bytes[at] ^= 0x10);
            assert!(load(&backend, &reader).is_err(), "byte {at}");
            backend.tamper(FILE, |bytes| *bytes = good[..at].to_vec());
            assert!(load(&backend, &reader).is_err(), "cut at {at}");
            backend.tamper(FILE, |bytes| *bytes = good.clone());
        }
        backend.tamper(FILE, |bytes| bytes.push(0));
        assert!(matches!(load(&backend, &reader), Err(CheckpointError::Damaged("bytes follow its end"))));
        for (record, chain) in [(2, reader.chain(1)), (4, reader.chain(3)), (0, reader.chain(0))] {
            put(record, chain.expect("it is there"));
            assert!(matches!(load(&backend, &reader), Err(CheckpointError::Foreign(_))), "{record}");
        }
    }

    #[test]
    fn one_that_is_given_up_leaves_the_old_one() {
        let backend = MemoryBackend::new();
        let reader = journal(&backend).reader();
        let chain = reader.chain(1).expect("it is there");
        write(&backend, Checkpoint { record: 1, chain, state: State::default() }, &AtomicBool::new(false))
            .expect("written");
        let given_up = write(&backend, Checkpoint { record: 1, chain, state: large_state() }, &AtomicBool::new(true));
        assert_eq!(given_up.expect("no failure"), None);
        assert!(load(&backend, &reader).expect("readable").expect("the old one").state.is_empty());
        assert!(!backend.files().contains_key(TEMPORARY));
    }
}
