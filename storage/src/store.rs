//! The store: journal and index with a checkpoint between them, and small files.
//!
//! # Checkpoint
//! The mark is a row of the store's own table: the number of the last record that the rows reflect, the chain value
//! there, and the store's identity. Order of [`StoreView::checkpoint`]: rows, flush, mark, flush. So the mark never
//! promises more than the rows hold. Rows may be ahead of it after a crash, which is harmless if rows are functions of the
//! journal (see the crate's text): replay writes them again.
//!
//! # Start
//! No mark: whatever rows there are belong to a checkpoint that was never finished or to a rebuild that was interrupted;
//! they are removed and everything is replayed. A mark is believed only if identity and chain value are the journal's.
//! After a failure of the index a small file says so, and the next start rebuilds: the page cache may show rows that the
//! disk does not have, and a missing row has no CRC that could tell.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    Backend, Batch, Digest, Error, FileBackend, Index, Journal, JournalConfig, JournalReader, Result, Row, SledConfig,
    SledIndex, Table,
};

/// The largest small file. They are read and replaced whole.
pub const MAX_FILE_BYTES: usize = 1 << 20;

const META: Table = "~store";
const MARK: &[u8] = b"checkpoint";
const MARK_VERSION: u32 = 1;
const MARK_BYTES: usize = 76;
const FILES: &str = "files";
const SUSPECT: &str = "index-suspect";
const MAX_FILE_NAME_BYTES: usize = 64;
const CRC_BYTES: usize = 4;

/// What to do with the index at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexStart {
    /// Believe it if its mark fits the journal; refuse to start if it is damaged.
    #[default]
    Trust,
    /// Throw it away and replay the whole journal.
    Rebuild,
}

/// How a store is set up.
#[derive(Clone, Debug, Default)]
pub struct StoreConfig {
    /// The journal's files.
    pub journal: JournalConfig,
    /// The index's engine (for [`Store::open`]).
    pub sled: SledConfig,
    /// Whether the index is believed.
    pub index_start: IndexStart,
}

/// A store with both of its ends in one hand. [`Store::split`] gives the writer to a thread of its own.
#[derive(Debug)]
pub struct Store {
    journal: Journal,
    view: StoreView,
}

/// Everything but appending: rows, checkpoint, replay, small files. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct StoreView {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    backend: Arc<dyn Backend>,
    index: Box<dyn Index>,
    journal: JournalReader,
    identity: [u8; 32],
    /// The mark. The lock also keeps checkpoints and rebuilds one after the other.
    checkpointed: Mutex<u64>,
    /// Keeps replacements of small files one after the other.
    files: Mutex<()>,
}

impl Store {
    /// Opens the store in a folder (or makes one) and locks it against other processes for as long as the store, the
    /// journal or a view of it lives.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::ForeignStore`], [`Error::FormatVersion`], damage of any kind, or what the disk says.
    pub fn open(dir: &Path, identity: &[u8; 32], config: StoreConfig) -> Result<Store> {
        let backend: Arc<dyn Backend> = Arc::new(FileBackend::open(dir)?);
        let journal = Journal::open(backend.clone(), config.journal.clone(), identity)?;
        let index_dir = dir.join("index");
        let rebuild = rebuild_is_due(&*backend, &journal.reader(), &config)?;
        if rebuild {
            SledIndex::destroy(&index_dir)?;
        }
        let index = SledIndex::open(&index_dir, &config.sled)?;
        assemble(backend, journal, Box::new(index), identity, rebuild)
    }

    /// Opens a store on a given disk and engine.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_with(
        backend: Arc<dyn Backend>,
        index: Box<dyn Index>,
        identity: &[u8; 32],
        config: StoreConfig,
    ) -> Result<Store> {
        let journal = Journal::open(backend.clone(), config.journal.clone(), identity)?;
        let rebuild = rebuild_is_due(&*backend, &journal.reader(), &config)?;
        assemble(backend, journal, index, identity, rebuild)
    }

    /// The writer for its own thread, and the view for everybody else.
    pub fn split(self) -> (Journal, StoreView) {
        (self.journal, self.view)
    }

    /// A handle on everything but appending.
    pub fn view(&self) -> StoreView {
        self.view.clone()
    }

    /// See [`Journal::append`].
    pub fn append(&mut self, payload: &[u8]) -> Result<u64> {
        self.journal.append(payload)
    }

    /// The writer.
    pub fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// The number of the newest durable record; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.journal.last()
    }

    /// See [`StoreView::checkpointed`].
    pub fn checkpointed(&self) -> u64 {
        self.view.checkpointed()
    }

    /// See [`StoreView::replay_tail`].
    pub fn replay_tail<E: From<Error>>(&self, visit: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        self.view.replay_tail(visit)
    }

    /// See [`StoreView::checkpoint`].
    pub fn checkpoint(&self, batch: Batch, upto: u64) -> Result<()> {
        self.view.checkpoint(batch, upto)
    }

    /// See [`StoreView::get`].
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.view.get(table, key)
    }

    /// See [`StoreView::scan`].
    pub fn scan(&self, table: Table, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Row>> {
        self.view.scan(table, prefix, from, limit)
    }

    /// See [`StoreView::rebuild`].
    pub fn rebuild(&self) -> Result<()> {
        self.view.rebuild()
    }

    /// See [`StoreView::put_file`].
    pub fn put_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.view.put_file(name, bytes)
    }

    /// See [`StoreView::get_file`].
    pub fn get_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.view.get_file(name)
    }

    /// Marks the journal as cleanly closed. See [`Journal::close`].
    pub fn close(self) -> Result<()> {
        self.journal.close()
    }
}

impl StoreView {
    /// All records up to this number are reflected in the rows, durably.
    pub fn checkpointed(&self) -> u64 {
        *self.inner.mark()
    }

    /// Visits the records after the checkpoint, in order. At a start: read the rows, then apply these.
    ///
    /// # Errors
    /// As [`JournalReader::replay`].
    pub fn replay_tail<E: From<Error>>(&self, visit: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let from = self.checkpointed() + 1;
        self.inner.journal.replay(from, visit)
    }

    /// Writes rows that, with those already there, reflect all records up to `upto`, and then moves the mark. Returns when
    /// both are durable. Rows must be idempotent under replay: a crash may leave any of them without the mark.
    ///
    /// # Errors
    /// [`Error::CheckpointAhead`], [`Error::CheckpointBehind`] and [`Error::RowTooLarge`] change nothing. A failure of the
    /// engine poisons the whole store, and the next start rebuilds the index.
    pub fn checkpoint(&self, batch: Batch, upto: u64) -> Result<()> {
        let inner = &*self.inner;
        inner.journal.check_poison()?;
        let mut mark = inner.mark();
        let (checkpointed, last) = (*mark, inner.journal.last());
        if upto > last {
            return Err(Error::CheckpointAhead { upto, last });
        }
        if upto < checkpointed {
            return Err(Error::CheckpointBehind { upto, checkpointed });
        }
        batch.check()?;
        let chain = inner.journal.chain(upto)?;
        let rows = batch.map_values(with_crc);
        inner.fail_stop(inner.write_checkpoint(&rows, upto, &chain))?;
        *mark = upto;
        Ok(())
    }

    /// Writes rows ahead of a checkpoint, without waiting for the disk. They are durable when the next
    /// [`StoreView::checkpoint`] returns, and not in order before that: rows that refer to them belong into a checkpoint
    /// after the next one.
    ///
    /// # Errors
    /// [`Error::RowTooLarge`] changes nothing; a failure of the engine is as in [`StoreView::checkpoint`].
    pub fn write_ahead(&self, batch: Batch) -> Result<()> {
        let inner = &*self.inner;
        inner.journal.check_poison()?;
        // Not beside a checkpoint or a rebuild.
        let _mark = inner.mark();
        batch.check()?;
        inner.fail_stop(inner.index.apply(&batch.map_values(with_crc)))
    }

    /// A row's value, checked.
    ///
    /// # Errors
    /// [`Error::CorruptRow`], or what the engine says.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.inner.get(table, key)
    }

    /// The rows whose key begins with `prefix` and is at least `from` (empty: all), in order of their keys, at most
    /// `limit`. For the next page give the last key with a zero byte behind it.
    ///
    /// # Errors
    /// [`Error::CorruptRow`], or what the engine says.
    pub fn scan(&self, table: Table, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Row>> {
        let rows = self.inner.index.scan(table, prefix, from, limit)?;
        let checked = rows.into_iter().map(|(key, value)| {
            let value = without_crc(table, &key, value)?;
            Ok((key, value))
        });
        checked.collect()
    }

    /// Drops all rows and sets the checkpoint to 0; [`StoreView::replay_tail`] then visits the whole journal, archive
    /// included.
    ///
    /// # Errors
    /// [`Error::HistoryMissing`] (nothing is dropped) if the archive does not reach back to record 1.
    pub fn rebuild(&self) -> Result<()> {
        let inner = &*self.inner;
        inner.journal.check_poison()?;
        check_history(&inner.journal)?;
        let mut mark = inner.mark();
        inner.fail_stop(inner.clear())?;
        *mark = 0;
        Ok(())
    }

    /// Moves segments that the checkpoint has made unnecessary for a start to the archive; returns how many.
    ///
    /// # Errors
    /// As [`JournalReader::archive_before`].
    pub fn archive(&self) -> Result<usize> {
        self.archive_keeping(1)
    }

    /// As [`StoreView::archive`], but leaves the newest `live` segments in use: they are read through at a start, and a
    /// record in them is found at once.
    ///
    /// # Errors
    /// As [`JournalReader::archive_before`].
    pub fn archive_keeping(&self, live: usize) -> Result<usize> {
        let checkpointed = self.checkpointed();
        self.inner.journal.archive_keeping(checkpointed + 1, live)
    }

    /// See [`JournalReader::prepare_segment`]; call it where the checkpoints are written.
    pub fn prepare_segment(&self) -> Result<()> {
        self.inner.journal.prepare_segment()
    }

    /// A handle for reading durable records.
    pub fn journal(&self) -> JournalReader {
        self.inner.journal.clone()
    }

    /// Replaces a small file atomically and durably.
    ///
    /// # Errors
    /// [`Error::FileName`] and [`Error::FileTooLarge`] change nothing. A failure of the disk poisons the whole store.
    pub fn put_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let inner = &*self.inner;
        inner.journal.check_poison()?;
        check_file(name, bytes)?;
        let _one_at_a_time = inner.files.lock().unwrap_or_else(PoisonError::into_inner);
        let written = write_file(&*inner.backend, name, bytes);
        if let Err(error) = &written {
            inner.journal.poison(error);
        }
        written
    }

    /// The content of a small file, checked; none if there is no such file.
    ///
    /// # Errors
    /// [`Error::FileName`], [`Error::CorruptFile`], or what the disk says.
    pub fn get_file(&self, name: &str) -> Result<Option<Vec<u8>>> {
        check_file(name, &[])?;
        read_file(&*self.inner.backend, name)
    }

    /// The bytes that may still be written to the disk. Stop taking payments before this is gone.
    ///
    /// # Errors
    /// What the disk says.
    pub fn free_bytes(&self) -> Result<u64> {
        self.inner.backend.free_bytes().map_err(|e| Error::io("measure free space of", ".", e))
    }
}

impl Inner {
    fn mark(&self) -> std::sync::MutexGuard<'_, u64> {
        self.checkpointed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.index.get(table, key)?.map(|value| without_crc(table, key, value)).transpose()
    }

    /// Rows first, then the mark.
    fn write_checkpoint(&self, rows: &Batch, upto: u64, chain: &[u8; 32]) -> Result<()> {
        if !rows.is_empty() {
            self.index.apply(rows)?;
            self.index.flush()?;
        }
        let mut mark = Batch::new();
        mark.put(META, MARK, encode_mark(upto, chain, &self.identity));
        self.index.apply(&mark.map_values(with_crc))?;
        self.index.flush()
    }

    /// The mark goes first, so that an interrupted removal is continued by the next start.
    fn clear(&self) -> Result<()> {
        let mut mark = Batch::new();
        mark.delete(META, MARK);
        self.index.apply(&mark)?;
        self.index.flush()?;
        self.index.clear()?;
        self.index.flush()
    }

    /// After a failure of the index nothing is written any more, and the next start is told to rebuild.
    fn fail_stop(&self, outcome: Result<()>) -> Result<()> {
        if let Err(error) = &outcome {
            tracing::error!(%error, "the index failed, the store stops");
            self.journal.poison(error);
            let noted = write_file(&*self.backend, SUSPECT, error.to_string().as_bytes());
            if let Err(error) = noted {
                tracing::error!(%error, "cannot leave a note for the next start; rebuild the index then");
            }
        }
        outcome
    }

    /// Reads the mark and holds it against the journal.
    fn load_mark(&self) -> Result<Option<u64>> {
        let damaged = || Error::CorruptRow { table: META.to_string(), key: "checkpoint".to_string() };
        let Some(bytes) = self.get(META, MARK)? else { return Ok(None) };
        let bytes: [u8; MARK_BYTES] = bytes.try_into().map_err(|_| damaged())?;
        let version = u32::from_le_bytes(bytes[0..4].try_into().expect("four bytes"));
        let checkpoint = u64::from_le_bytes(bytes[4..12].try_into().expect("eight bytes"));
        let found: [u8; 32] = bytes[44..76].try_into().expect("thirty-two bytes");
        if version != MARK_VERSION {
            let file = "index".to_string();
            return Err(Error::FormatVersion { file, found: version, supported: MARK_VERSION });
        }
        if found != self.identity {
            let (expected, found) = (Digest(self.identity), Digest(found));
            return Err(Error::ForeignStore { file: "index".to_string(), expected, found });
        }
        let last = self.journal.last();
        if checkpoint > last {
            return Err(Error::IndexAhead { checkpoint, last });
        }
        if bytes[12..44] != self.journal.chain(checkpoint)? {
            return Err(Error::Diverged { record: checkpoint });
        }
        Ok(Some(checkpoint))
    }
}

fn assemble(
    backend: Arc<dyn Backend>,
    journal: Journal,
    index: Box<dyn Index>,
    identity: &[u8; 32],
    rebuild: bool,
) -> Result<Store> {
    let inner = Inner {
        backend,
        index,
        journal: journal.reader(),
        identity: *identity,
        checkpointed: Mutex::new(0),
        files: Mutex::new(()),
    };
    let mark = if rebuild { None } else { inner.load_mark()? };
    match mark {
        Some(checkpoint) => *inner.mark() = checkpoint,
        None => {
            check_history(&inner.journal)?;
            inner.fail_stop(inner.clear())?;
        }
    }
    if rebuild {
        remove_file(&*inner.backend, SUSPECT)?;
    }
    Ok(Store { journal, view: StoreView { inner: Arc::new(inner) } })
}

/// Whether the index is to be thrown away; makes sure that it can be made again.
fn rebuild_is_due(backend: &dyn Backend, journal: &JournalReader, config: &StoreConfig) -> Result<bool> {
    backend.create_dir(FILES).map_err(|e| Error::io("make the folder", FILES, e))?;
    let suspect = has_file(backend, SUSPECT)?;
    if suspect {
        tracing::warn!("the index failed before the last end of the store, it is rebuilt from the journal");
    }
    let due = suspect || config.index_start == IndexStart::Rebuild;
    if due {
        check_history(journal)?;
    }
    Ok(due)
}

fn check_history(journal: &JournalReader) -> Result<()> {
    match journal.first() {
        1 => Ok(()),
        first => Err(Error::HistoryMissing { wanted: 1, first }),
    }
}

fn encode_mark(upto: u64, chain: &[u8; 32], identity: &[u8; 32]) -> Vec<u8> {
    [&MARK_VERSION.to_le_bytes()[..], &upto.to_le_bytes(), chain, identity].concat()
}

/// The CRC binds a value to its place, so that a row that turns up under another key is found too.
fn row_crc(table: &str, key: &[u8], value: &[u8]) -> [u8; CRC_BYTES] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(table.as_bytes());
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize().to_le_bytes()
}

fn with_crc(table: Table, key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = row_crc(table, key, &value);
    value.extend_from_slice(&crc);
    value
}

fn without_crc(table: Table, key: &[u8], mut value: Vec<u8>) -> Result<Vec<u8>> {
    let len = value.len().checked_sub(CRC_BYTES);
    match len {
        Some(len) if row_crc(table, key, &value[..len]) == value[len..] => {
            value.truncate(len);
            Ok(value)
        }
        Some(_) | None => {
            let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
            Err(Error::CorruptRow { table: table.to_string(), key })
        }
    }
}

fn check_file(name: &str, bytes: &[u8]) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > MAX_FILE_NAME_BYTES || !name.bytes().all(allowed) || name == SUSPECT {
        return Err(Error::FileName { name: name.to_string() });
    }
    if bytes.len() > MAX_FILE_BYTES {
        return Err(Error::FileTooLarge { name: name.to_string(), bytes: bytes.len(), limit: MAX_FILE_BYTES });
    }
    Ok(())
}

fn write_file(backend: &dyn Backend, name: &str, bytes: &[u8]) -> Result<()> {
    let (path, temporary) = (format!("{FILES}/{name}"), format!("{FILES}/{name}.tmp"));
    let io = |action| {
        let path = path.clone();
        move |e| Error::io(action, path, e)
    };
    let content = with_crc(FILES, name.as_bytes(), bytes.to_vec());
    let file = backend.create(&temporary).map_err(io("create"))?;
    file.write_at(0, &content).map_err(io("write"))?;
    file.sync().map_err(io("sync"))?;
    backend.rename(&temporary, &path).map_err(io("rename"))?;
    backend.sync_dir(FILES).map_err(io("sync the folder of"))
}

fn has_file(backend: &dyn Backend, name: &str) -> Result<bool> {
    let names = backend.list(FILES).map_err(|e| Error::io("list", FILES, e))?;
    Ok(names.iter().any(|listed| listed == name))
}

fn read_file(backend: &dyn Backend, name: &str) -> Result<Option<Vec<u8>>> {
    if !has_file(backend, name)? {
        return Ok(None);
    }
    let path = format!("{FILES}/{name}");
    let damaged = || Error::CorruptFile { name: name.to_string() };
    let file = backend.open(&path).map_err(|e| Error::io("open", &path, e))?;
    let len = file.len().map_err(|e| Error::io("measure", &path, e))?;
    if len > (MAX_FILE_BYTES + CRC_BYTES) as u64 {
        return Err(damaged());
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| damaged())?];
    file.read_at(0, &mut bytes).map_err(|e| Error::io("read", &path, e))?;
    without_crc(FILES, name.as_bytes(), bytes).map(Some).map_err(|_| damaged())
}

fn remove_file(backend: &dyn Backend, name: &str) -> Result<()> {
    if !has_file(backend, name)? {
        return Ok(());
    }
    let path = format!("{FILES}/{name}");
    backend.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
    backend.sync_dir(FILES).map_err(|e| Error::io("sync the folder", FILES, e))
}
