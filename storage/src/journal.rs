//! The journal: append-only segments of records, the truth of the store.
//!
//! One writer ([`Journal`], owned by one thread) and any number of readers ([`JournalReader`]), which see what is durable.
//!
//! # Start
//! All live segments are read through: CRC, numbers and chain must hold, and each segment must begin where the one before
//! it ended. Only the last one may end in a write that did not finish; that tail was never acknowledged and is dropped.
//! Any other difference is [`Error::Corrupt`] and nothing is changed. If the last shutdown was not clean, the good part of
//! the last segment is copied to a new file, file and folder are synced, and the copy takes its place; after a clean one
//! the mark is taken off, durably, so that the next start can tell.
//!
//! # Append
//! A write goes into one segment, which was filled with zeros and synced when it was made, so that `fdatasync` has only
//! data to write. A segment gets its name only after its header is durable. Filling takes a while; whoever calls
//! [`JournalReader::prepare_segment`] from another thread spares the writer the wait.

mod format;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use crate::{Backend, BackendFile, Error, Result};
use format::{
    ALIGN, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, SegmentHeader, Step, Walk, encode_closed, encode_record, genesis,
    record_bytes,
};
pub use format::{FORMAT_VERSION, MAX_BATCH_BYTES, MAX_RECORD_BYTES};

const LIVE: &str = "journal";
const ARCHIVE: &str = "archive";
const SUFFIX: &str = ".seg";
const TEMPORARY: &str = "journal/new.tmp";
const SPARE: &str = "journal/spare.tmp";

/// How the journal lays out its files.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// The size of a segment. It is filled with zeros when it is made and copied after an unclean end, so a larger one
    /// makes those moments longer and a smaller one makes them more frequent.
    pub segment_bytes: u64,
}

impl Default for JournalConfig {
    fn default() -> JournalConfig {
        JournalConfig { segment_bytes: 64 << 20 }
    }
}

/// The writer. There is one per store; it may live on a thread of its own.
#[derive(Debug)]
pub struct Journal {
    shared: Arc<Shared>,
    /// The segment that is written.
    file: Arc<dyn BackendFile>,
    name: String,
    len: u64,
    /// Where the next record goes, its number, and the chain value before it.
    end: u64,
    next: u64,
    chain: [u8; 32],
    /// Kept between writes so that its memory is.
    buffer: Vec<u8>,
}

/// A handle for reading what is durable, from any thread.
#[derive(Clone, Debug)]
pub struct JournalReader {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    backend: Arc<dyn Backend>,
    identity: [u8; 32],
    config: JournalConfig,
    segments: RwLock<Vec<Segment>>,
    /// A file full of zeros for the next segment. The lock is held while the file of that name is made or renamed.
    spare: Mutex<Option<Spare>>,
    last: AtomicU64,
    poison: OnceLock<String>,
}

#[derive(Debug)]
struct Spare {
    file: Arc<dyn BackendFile>,
    len: u64,
}

#[derive(Clone, Debug)]
struct Segment {
    first: u64,
    /// The chain value before its first record.
    chain: [u8; 32],
    home: Home,
}

#[derive(Clone, Debug)]
enum Home {
    /// In use: the file is open and the place of every record is known (in units of [`ALIGN`]).
    Live { file: Arc<dyn BackendFile>, len: u64, places: Vec<u32> },
    /// Moved away: opened and walked through on demand. Its header is read then.
    Archived,
}

impl Journal {
    /// Opens the journal of `identity`, or makes an empty one. See the module's text for what is checked and repaired.
    ///
    /// # Errors
    /// [`Error::ForeignStore`], [`Error::FormatVersion`], [`Error::Corrupt`], or what the disk says.
    pub fn open(backend: Arc<dyn Backend>, config: JournalConfig, identity: &[u8; 32]) -> Result<Journal> {
        for dir in [LIVE, ARCHIVE] {
            backend.create_dir(dir).map_err(|e| Error::io("make the folder", dir, e))?;
        }
        let archived = segments_in(&*backend, ARCHIVE)?;
        let live = segments_in(&*backend, LIVE)?;
        remove_leftovers(&*backend)?;
        match live.last() {
            Some(_) => recover(backend, config, identity, &archived, &live),
            None if archived.is_empty() => begin(backend, config, identity),
            None => Err(Error::Corrupt {
                segment: LIVE.to_string(),
                offset: 0,
                why: "there are archived segments but none in use",
            }),
        }
    }

    /// Writes a record and waits until it is durable. Returns its number: 1, 2, 3 and so on.
    ///
    /// # Errors
    /// [`Error::RecordTooLarge`] changes nothing. Any failure of the disk poisons the journal: whether the record is there
    /// is known after the next start only.
    pub fn append(&mut self, payload: &[u8]) -> Result<u64> {
        self.append_many(&[payload]).map(|numbers| *numbers.end())
    }

    /// Writes records with one sync and waits until all are durable. Returns their numbers (empty for none). After a
    /// crash before the return a beginning of them may be there.
    ///
    /// # Errors
    /// As [`Journal::append`], and [`Error::BatchTooLarge`].
    pub fn append_many<P: AsRef<[u8]>>(&mut self, payloads: &[P]) -> Result<RangeInclusive<u64>> {
        self.shared.check_poison()?;
        let bytes = measure(payloads)?;
        let first = self.next;
        if payloads.is_empty() {
            return Ok(first..=first - 1);
        }
        let written = self.write(payloads, bytes);
        self.shared.poison_on_error(written)?;
        Ok(first..=self.next - 1)
    }

    /// The number of the newest durable record; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.next - 1
    }

    /// The chain value after the newest record: 32 bytes that stand for the whole history.
    pub fn chain(&self) -> [u8; 32] {
        self.chain
    }

    /// One durable record. See [`JournalReader::read`].
    pub fn read(&self, number: u64) -> Result<Vec<u8>> {
        self.shared.read(number)
    }

    /// All durable records from `from` on. See [`JournalReader::replay`].
    pub fn replay<E: From<Error>>(&self, from: u64, visit: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        self.shared.replay(from, visit)
    }

    /// A handle for other threads.
    pub fn reader(&self) -> JournalReader {
        JournalReader { shared: self.shared.clone() }
    }

    /// Marks the journal as cleanly closed, durably, so that the next start need not copy the last segment. Dropping
    /// instead is safe and only makes the next start longer.
    ///
    /// # Errors
    /// [`Error::Poisoned`], or what the disk says.
    pub fn close(self) -> Result<()> {
        self.shared.check_poison()?;
        let mark = encode_closed(self.next, &self.chain);
        let written = self.file.write_at(self.end, &mark).map_err(|e| Error::io("write", &self.name, e));
        let synced = written.and_then(|()| self.file.sync().map_err(|e| Error::io("sync", &self.name, e)));
        self.shared.poison_on_error(synced)
    }

    /// Writes, syncs, and only then lets readers see it.
    fn write<P: AsRef<[u8]>>(&mut self, payloads: &[P], bytes: u64) -> Result<()> {
        // The mark of a clean shutdown must always find a place behind the last record.
        if self.end + bytes + RECORD_HEADER_BYTES > self.len {
            self.rotate(bytes)?;
        }
        let (first, mut number, mut chain) = (self.next, self.next, self.chain);
        let mut places = Vec::with_capacity(payloads.len());
        self.buffer.clear();
        for payload in payloads {
            places.push(place(self.end + self.buffer.len() as u64));
            chain = encode_record(&mut self.buffer, number, first, &chain, payload.as_ref());
            number += 1;
        }
        self.file.write_at(self.end, &self.buffer).map_err(|e| Error::io("write", &self.name, e))?;
        self.file.sync().map_err(|e| Error::io("sync", &self.name, e))?;
        (self.end, self.next, self.chain) = (self.end + bytes, number, chain);
        self.shared.publish(places, number - 1);
        Ok(())
    }

    /// Begins a new segment that has room for a write of `bytes`.
    fn rotate(&mut self, bytes: u64) -> Result<()> {
        let shared = &self.shared;
        // If the next one is being made right now, waiting for it would take no less time than making another.
        let mut spare = match shared.spare.try_lock() {
            Ok(spare) => Some(spare),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        let needed = segment_len(&shared.config, bytes);
        let fitting = spare.as_mut().and_then(|spare| spare.take()).filter(|spare| spare.len >= needed);
        let header = SegmentHeader {
            identity: shared.identity,
            first: self.next,
            len: fitting.as_ref().map_or(needed, |spare| spare.len),
            chain: self.chain,
        };
        let file = match fitting {
            Some(spare) => name_segment(&*shared.backend, &header, spare.file, SPARE)?,
            None => create_segment(&*shared.backend, &header, |_| Ok(()))?,
        };
        drop(spare);
        self.name = live_name(self.next);
        (self.file, self.len, self.end) = (file.clone(), header.len, SEGMENT_HEADER_BYTES);
        let mut segments = shared.segments_mut();
        // A segment without records gave its name to the new, larger one.
        segments.pop_if(|last| last.first == header.first);
        segments.push(Segment {
            first: header.first,
            chain: header.chain,
            home: Home::Live { file, len: header.len, places: Vec::new() },
        });
        Ok(())
    }
}

impl JournalReader {
    /// Opens the journal of `identity` for reading only: nothing is made, repaired or marked, and no writer comes of it.
    /// What an unfinished write left at the end is passed over. The caller keeps writers away, as [`crate::FileBackend`]
    /// does.
    ///
    /// # Errors
    /// As [`Journal::open`]; a journal that does not exist is an [`Error::Io`].
    pub fn open(backend: Arc<dyn Backend>, identity: &[u8; 32]) -> Result<JournalReader> {
        let archived = segments_in(&*backend, ARCHIVE)?;
        let live = segments_in(&*backend, LIVE)?;
        if live.is_empty() {
            let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::io("find a segment in", LIVE, missing));
        }
        let (segments, last) = look_through(&*backend, identity, &archived, &live)?;
        let journal = assemble(backend, JournalConfig::default(), identity, segments, last.end);
        Ok(journal.reader())
    }

    /// The number of the newest durable record; 0 if there is none.
    pub fn last(&self) -> u64 {
        self.shared.last()
    }

    /// The oldest record at hand, archive included; `last + 1` if there is none.
    pub fn first(&self) -> u64 {
        self.shared.segments().first().map_or(1, |segment| segment.first)
    }

    /// One durable record, checked against CRC and chain.
    ///
    /// # Errors
    /// [`Error::NoSuchRecord`], [`Error::HistoryMissing`], [`Error::Corrupt`].
    pub fn read(&self, number: u64) -> Result<Vec<u8>> {
        self.shared.read(number)
    }

    /// The chain value after record `number` (0: before the first).
    ///
    /// # Errors
    /// As [`JournalReader::read`].
    pub fn chain(&self, number: u64) -> Result<[u8; 32]> {
        self.shared.chain(number)
    }

    /// Visits all records that are durable now, from `from` (at least 1) on, in order, archive included. A `from` behind
    /// the last one visits nothing.
    ///
    /// # Errors
    /// As [`JournalReader::read`], and the visitor's.
    pub fn replay<E: From<Error>>(&self, from: u64, visit: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        self.shared.replay(from, visit)
    }

    /// Makes the file for the next segment ahead of time, so that the writer need not wait for zeros to be written when
    /// it needs one. Call it from a thread that may wait; it does nothing if one is ready.
    ///
    /// # Errors
    /// What the disk says. Nothing is lost by that and nothing is poisoned: a full disk is heard of here early.
    pub fn prepare_segment(&self) -> Result<()> {
        self.shared.check_poison()?;
        self.shared.prepare_segment()
    }

    /// Moves segments that lie wholly below record `number` to the archive; returns how many. They stay readable. Only
    /// what a durable checkpoint reflects may be archived, because archived segments are what an operator moves away;
    /// [`crate::StoreView::archive`] holds to that.
    ///
    /// # Errors
    /// [`Error::Poisoned`], or what the disk says.
    pub fn archive_before(&self, number: u64) -> Result<usize> {
        self.archive_keeping(number, 1)
    }

    /// As [`JournalReader::archive_before`], but leaves the newest `live` segments where they are.
    pub(crate) fn archive_keeping(&self, number: u64, live: usize) -> Result<usize> {
        self.shared.check_poison()?;
        self.shared.poison_on_error(self.shared.archive_before(number, live))
    }

    /// Whether a write or sync has failed, and how.
    pub fn poisoned(&self) -> Option<&str> {
        self.shared.poison.get().map(String::as_str)
    }

    /// Stops all writing for good, because another part of the store failed.
    pub(crate) fn poison(&self, why: &Error) {
        self.shared.poison.get_or_init(|| why.to_string());
    }

    pub(crate) fn check_poison(&self) -> Result<()> {
        self.shared.check_poison()
    }
}

impl Shared {
    fn segments(&self) -> RwLockReadGuard<'_, Vec<Segment>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn segments_mut(&self) -> RwLockWriteGuard<'_, Vec<Segment>> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    fn check_poison(&self) -> Result<()> {
        self.poison.get().map_or(Ok(()), |why| Err(Error::Poisoned { why: why.clone() }))
    }

    fn poison_on_error<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(error) = &outcome {
            tracing::error!(%error, "the journal stops");
            self.poison.get_or_init(|| error.to_string());
        }
        outcome
    }

    fn publish(&self, new: Vec<u32>, last: u64) {
        let mut segments = self.segments_mut();
        let active = segments.last_mut().expect("a journal has a segment");
        let Home::Live { places, .. } = &mut active.home else { unreachable!("the last segment is never archived") };
        places.extend(new);
        self.last.store(last, Ordering::Release);
    }

    fn read(&self, number: u64) -> Result<Vec<u8>> {
        let mut found = Vec::new();
        self.visit(number, number, |_, payload| {
            found = payload.to_vec();
            Ok::<(), Error>(())
        })?;
        Ok(found)
    }

    fn replay<E: From<Error>>(&self, from: u64, visit: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let last = self.last();
        if from > last {
            return Ok(());
        }
        self.visit(from, last, visit)
    }

    /// Visits the records `from..=to`.
    fn visit<E: From<Error>>(
        &self,
        from: u64,
        to: u64,
        mut visit: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut from = from;
        while from <= to {
            let open = self.locate(from)?;
            let mut walk = if from == to { open.walk().short() } else { open.walk() };
            while walk.next < from {
                open.expect(walk.skip()?, &walk)?;
            }
            let end = to.min(open.last);
            while walk.next <= end {
                let Step::Record(header) = walk.step()? else {
                    return Err(open.incomplete(&walk).into());
                };
                visit(header.number, walk.payload(&header)?)?;
            }
            if walk.next > open.last && open.next_chain.is_some_and(|chain| chain != walk.chain) {
                return Err(open.damage(walk.offset, "its end is not where the next segment begins").into());
            }
            from = end + 1;
        }
        Ok(())
    }

    fn chain(&self, number: u64) -> Result<[u8; 32]> {
        if number == 0 {
            return Ok(genesis(&self.identity));
        }
        let open = self.locate(number)?;
        let mut walk = open.walk();
        while walk.next <= number {
            open.expect(walk.skip()?, &walk)?;
        }
        Ok(walk.chain)
    }

    /// Opens the segment that holds a record, with the nearest place before it that is known.
    fn locate(&self, number: u64) -> Result<OpenSegment> {
        let segments = self.segments();
        let last = self.last();
        if number == 0 || number > last {
            return Err(Error::NoSuchRecord { record: number, last });
        }
        let position = segments.partition_point(|segment| segment.first <= number);
        let Some(position) = position.checked_sub(1) else {
            let first = segments.first().map_or(1, |segment| segment.first);
            return Err(Error::HistoryMissing { wanted: number, first });
        };
        let (segment, after) = (&segments[position], segments.get(position + 1));
        let last = after.map_or(last, |after| after.first - 1);
        // An archived neighbour's chain value is not known before its header is read; it is checked when it is.
        let next_chain = after.filter(|after| matches!(after.home, Home::Live { .. })).map(|after| after.chain);
        match &segment.home {
            Home::Live { file, len, places } => {
                let name = live_name(segment.first);
                let nth = usize::try_from(number - segment.first).expect("records of a segment fit into memory");
                // One record earlier, whose header has the chain value before ours.
                let start = match nth {
                    0 => (SEGMENT_HEADER_BYTES, segment.first, segment.chain),
                    _ => self.behind(&**file, &name, *len, u64::from(places[nth - 1]) * ALIGN, number - 1)?,
                };
                Ok(OpenSegment { name, file: file.clone(), len: *len, start, last, next_chain })
            }
            Home::Archived => {
                let first = segment.first;
                drop(segments);
                let name = archive_name(first);
                let file = self.backend.open(&name).map_err(|e| Error::io("open", &name, e))?;
                let header = SegmentHeader::read(&*file, &name, &self.identity, first)?;
                let start = (SEGMENT_HEADER_BYTES, first, header.chain);
                Ok(OpenSegment { name, file, len: header.len, start, last, next_chain })
            }
        }
    }

    /// Where a walk stands behind the record `number` at `offset`.
    fn behind(&self, file: &dyn BackendFile, name: &str, len: u64, offset: u64, number: u64) -> Result<Start> {
        // Only the header is wanted, so the walk may see no more than that.
        let mut walk = Walk::new(file, name, len.min(offset + RECORD_HEADER_BYTES), (offset, number, [0; 32]));
        walk.skip()?;
        Ok((walk.offset, walk.next, walk.chain))
    }

    fn prepare_segment(&self) -> Result<()> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.is_some() {
            return Ok(());
        }
        let len = segment_len(&self.config, 0);
        let io = |action| move |e| Error::io(action, SPARE, e);
        let file = self.backend.create(SPARE).map_err(io("create"))?;
        let filled = file.preallocate(len).map_err(io("fill")).and_then(|()| file.sync().map_err(io("sync")));
        match filled {
            Ok(()) => *spare = Some(Spare { file, len }),
            // What it took of the disk is given back; if that fails too, the next start does it.
            Err(_) => drop(self.backend.remove(SPARE)),
        }
        filled
    }

    fn archive_before(&self, number: u64, live: usize) -> Result<usize> {
        let mut moved = 0;
        while let Some(first) = self.next_to_archive(number, live) {
            let (from, to) = (live_name(first), archive_name(first));
            // One after the other, so that after a crash the archive is a beginning of the history.
            self.backend.rename(&from, &to).map_err(|e| Error::io("rename", &from, e))?;
            for dir in [ARCHIVE, LIVE] {
                self.backend.sync_dir(dir).map_err(|e| Error::io("sync the folder", dir, e))?;
            }
            let mut segments = self.segments_mut();
            if let Some(segment) = segments.iter_mut().find(|segment| segment.first == first) {
                segment.home = Home::Archived;
            }
            moved += 1;
        }
        Ok(moved)
    }

    fn next_to_archive(&self, number: u64, live: usize) -> Option<u64> {
        let segments = self.segments();
        let older = &segments[..segments.len().saturating_sub(live.saturating_sub(1))];
        let oldest = older.windows(2).find(|pair| matches!(pair[0].home, Home::Live { .. }))?;
        (oldest[1].first <= number).then_some(oldest[0].first)
    }
}

/// Offset, number of the record there, chain value before it.
type Start = (u64, u64, [u8; 32]);

/// A segment that is being read.
struct OpenSegment {
    name: String,
    file: Arc<dyn BackendFile>,
    len: u64,
    start: Start,
    /// The last durable record in it.
    last: u64,
    /// The chain value that the next segment begins with, if known.
    next_chain: Option<[u8; 32]>,
}

impl OpenSegment {
    fn walk(&self) -> Walk<'_> {
        Walk::new(&*self.file, &self.name, self.len, self.start)
    }

    fn damage(&self, offset: u64, why: &'static str) -> Error {
        Error::Corrupt { segment: self.name.clone(), offset, why }
    }

    fn incomplete(&self, walk: &Walk<'_>) -> Error {
        self.damage(walk.offset, "records are missing at its end")
    }

    fn expect(&self, step: Option<()>, walk: &Walk<'_>) -> Result<()> {
        step.ok_or_else(|| self.incomplete(walk))
    }
}

fn live_name(first: u64) -> String {
    format!("{LIVE}/{first:020}{SUFFIX}")
}

fn archive_name(first: u64) -> String {
    format!("{ARCHIVE}/{first:020}{SUFFIX}")
}

fn place(offset: u64) -> u32 {
    u32::try_from(offset / ALIGN).expect("a segment is smaller than 256 GiB")
}

/// The first records of the segments in a folder, in order.
fn segments_in(backend: &dyn Backend, dir: &str) -> Result<Vec<u64>> {
    let names = backend.list(dir).map_err(|e| Error::io("list", dir, e))?;
    let mut firsts: Vec<u64> =
        names.iter().filter_map(|name| name.strip_suffix(SUFFIX)).filter_map(|name| name.parse().ok()).collect();
    firsts.sort_unstable();
    Ok(firsts)
}

/// Removes files that never became a segment.
fn remove_leftovers(backend: &dyn Backend) -> Result<()> {
    for name in [TEMPORARY, SPARE] {
        match backend.remove(name) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("remove", name, e)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// The size of a write; also checks the limits.
fn measure<P: AsRef<[u8]>>(payloads: &[P]) -> Result<u64> {
    let mut bytes = 0;
    for payload in payloads {
        let len = payload.as_ref().len();
        if len > MAX_RECORD_BYTES {
            return Err(Error::RecordTooLarge { bytes: len, limit: MAX_RECORD_BYTES });
        }
        bytes += record_bytes(len);
    }
    if bytes > MAX_BATCH_BYTES as u64 {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        return Err(Error::BatchTooLarge { bytes, limit: MAX_BATCH_BYTES });
    }
    Ok(bytes)
}

fn segment_len(config: &JournalConfig, bytes: u64) -> u64 {
    let needed = SEGMENT_HEADER_BYTES + bytes + RECORD_HEADER_BYTES;
    config.segment_bytes.max(needed).next_multiple_of(4096)
}

/// Makes a segment under a temporary name and then names it.
fn create_segment(
    backend: &dyn Backend,
    header: &SegmentHeader,
    fill: impl FnOnce(&dyn BackendFile) -> Result<()>,
) -> Result<Arc<dyn BackendFile>> {
    let io = |action| move |e| Error::io(action, TEMPORARY, e);
    let file = backend.create(TEMPORARY).map_err(io("create"))?;
    file.preallocate(header.len).map_err(io("fill"))?;
    fill(&*file)?;
    name_segment(backend, header, file, TEMPORARY)
}

/// Writes the header into a file that is filled, syncs it, gives it its name, syncs the folder.
fn name_segment(
    backend: &dyn Backend,
    header: &SegmentHeader,
    file: Arc<dyn BackendFile>,
    temporary: &str,
) -> Result<Arc<dyn BackendFile>> {
    file.write_at(0, &header.encode()).map_err(|e| Error::io("write", temporary, e))?;
    file.sync().map_err(|e| Error::io("sync", temporary, e))?;
    backend.rename(temporary, &live_name(header.first)).map_err(|e| Error::io("rename", temporary, e))?;
    backend.sync_dir(LIVE).map_err(|e| Error::io("sync the folder", LIVE, e))?;
    Ok(file)
}

/// An empty journal.
fn begin(backend: Arc<dyn Backend>, config: JournalConfig, identity: &[u8; 32]) -> Result<Journal> {
    let chain = genesis(identity);
    let header = SegmentHeader { identity: *identity, first: 1, len: segment_len(&config, 0), chain };
    let file = create_segment(&*backend, &header, |_| Ok(()))?;
    let segment = Segment { first: 1, chain, home: Home::Live { file, len: header.len, places: Vec::new() } };
    Ok(assemble(backend, config, identity, vec![segment], (SEGMENT_HEADER_BYTES, 1, chain)))
}

/// Checks all live segments, repairs the last one's end.
fn recover(
    backend: Arc<dyn Backend>,
    config: JournalConfig,
    identity: &[u8; 32],
    archived: &[u64],
    live: &[u64],
) -> Result<Journal> {
    let (mut segments, last) = look_through(&*backend, identity, archived, live)?;
    let repaired = match last.closed {
        true => reopen(last.file, last.end.0, &last.header)?,
        false => copy(&*backend, &*last.file, last.end.0, &last.header)?,
    };
    if let Some(Segment { home: Home::Live { file, .. }, .. }) = segments.last_mut() {
        *file = repaired;
    }
    Ok(assemble(backend, config, identity, segments, last.end))
}

/// How the last segment was found.
struct LastSegment {
    header: SegmentHeader,
    file: Arc<dyn BackendFile>,
    end: Start,
    closed: bool,
}

/// Reads through all live segments, of which there is at least one, and changes nothing.
fn look_through(
    backend: &dyn Backend,
    identity: &[u8; 32],
    archived: &[u64],
    live: &[u64],
) -> Result<(Vec<Segment>, LastSegment)> {
    if archived.last().is_some_and(|archived| *archived >= live[0]) {
        let (segment, offset) = (live_name(live[0]), 0);
        return Err(Error::Corrupt { segment, offset, why: "an archived segment is not older than it" });
    }
    let mut segments: Vec<Segment> =
        archived.iter().map(|first| Segment { first: *first, chain: [0; 32], home: Home::Archived }).collect();
    let mut before: Option<Start> = (live[0] == 1).then(|| (0, 1, genesis(identity)));
    let mut last = None;
    for (position, first) in live.iter().enumerate() {
        let scanned = scan(backend, identity, *first, before, live.get(position + 1).is_none())?;
        before = Some(scanned.end);
        let home = Home::Live { file: scanned.file.clone(), len: scanned.header.len, places: scanned.places };
        segments.push(Segment { first: *first, chain: scanned.header.chain, home });
        last =
            Some(LastSegment { header: scanned.header, file: scanned.file, end: scanned.end, closed: scanned.closed });
    }
    Ok((segments, last.expect("there is a live segment")))
}

fn assemble(
    backend: Arc<dyn Backend>,
    config: JournalConfig,
    identity: &[u8; 32],
    segments: Vec<Segment>,
    end: Start,
) -> Journal {
    let active = segments.last().expect("a journal has a segment");
    let Home::Live { file, len, .. } = &active.home else { unreachable!("the last segment is never archived") };
    let (file, len, name) = (file.clone(), *len, live_name(active.first));
    let shared = Shared {
        backend,
        identity: *identity,
        config,
        segments: RwLock::new(segments),
        spare: Mutex::new(None),
        last: AtomicU64::new(end.1 - 1),
        poison: OnceLock::new(),
    };
    let (end, next, chain) = end;
    Journal { shared: Arc::new(shared), file, name, len, end, next, chain, buffer: Vec::new() }
}

/// What a look through a segment found.
struct Scanned {
    header: SegmentHeader,
    file: Arc<dyn BackendFile>,
    places: Vec<u32>,
    /// Behind the last good record.
    end: Start,
    /// Whether it ends with the mark of a clean shutdown.
    closed: bool,
}

/// Reads through a segment that must begin at `before` (unknown for the first one behind an archive).
fn scan(
    backend: &dyn Backend,
    identity: &[u8; 32],
    first: u64,
    before: Option<Start>,
    is_last: bool,
) -> Result<Scanned> {
    let name = live_name(first);
    let file = backend.open(&name).map_err(|e| Error::io("open", &name, e))?;
    let header = SegmentHeader::read(&*file, &name, identity, first)?;
    if before.is_some_and(|(_, next, chain)| (next, chain) != (header.first, header.chain)) {
        let why = "it does not begin where the segment before it ends";
        return Err(Error::Corrupt { segment: name, offset: 0, why });
    }
    let mut places = Vec::new();
    let mut walk = Walk::new(&*file, &name, header.len, (SEGMENT_HEADER_BYTES, first, header.chain));
    let step = loop {
        let at = walk.offset;
        match walk.step()? {
            Step::Record(_) => places.push(place(at)),
            step => break step,
        }
    };
    let closed = matches!(step, Step::Closed);
    check_rest(&mut walk, &name, &step, is_last)?;
    let end = (walk.offset, walk.next, walk.chain);
    drop(walk);
    Ok(Scanned { header, file, places, end, closed })
}

/// What lies behind the last good record must be blank, or, in the last segment, a write that did not finish.
fn check_rest(walk: &mut Walk<'_>, name: &str, step: &Step, is_last: bool) -> Result<()> {
    let damage = |offset, why| Err(Error::Corrupt { segment: name.to_string(), offset, why });
    match (step, is_last) {
        (Step::Closed, false) => damage(walk.offset, "a mark of the end lies before the end"),
        (Step::Torn, false) => damage(walk.offset, "a record is incomplete"),
        (Step::Closed, true) | (Step::Blank, false) => {
            let rest = if is_last { walk.offset + RECORD_HEADER_BYTES } else { walk.offset };
            match walk.first_not_blank(rest)? {
                Some(offset) => damage(offset, "the space behind the last record is not blank"),
                None => Ok(()),
            }
        }
        (Step::Blank | Step::Torn | Step::Record(_), _) => match walk.later_write()? {
            Some(_) => damage(walk.offset, "a record is missing or incomplete although later ones are there"),
            None => Ok(()),
        },
    }
}

/// Takes off the mark of a clean shutdown, durably.
fn reopen(file: Arc<dyn BackendFile>, end: u64, header: &SegmentHeader) -> Result<Arc<dyn BackendFile>> {
    let name = live_name(header.first);
    let blank = [0; RECORD_HEADER_BYTES as usize];
    file.write_at(end, &blank).map_err(|e| Error::io("write", &name, e))?;
    file.sync().map_err(|e| Error::io("sync", &name, e))?;
    Ok(file)
}

/// Replaces the last segment by a copy of its good part, because reading may show what the disk does not have.
fn copy(
    backend: &dyn Backend,
    old: &dyn BackendFile,
    end: u64,
    header: &SegmentHeader,
) -> Result<Arc<dyn BackendFile>> {
    const CHUNK_BYTES: u64 = 1 << 20;
    let name = live_name(header.first);
    tracing::warn!(segment = %name, "the last shutdown was not clean, the last segment is copied");
    create_segment(backend, header, |new| {
        let mut at = SEGMENT_HEADER_BYTES;
        while at < end {
            let count = (end - at).min(CHUNK_BYTES);
            let mut bytes = vec![0; usize::try_from(count).expect("a chunk fits into memory")];
            old.read_at(at, &mut bytes).map_err(|e| Error::io("read", &name, e))?;
            new.write_at(at, &bytes).map_err(|e| Error::io("write", TEMPORARY, e))?;
            at += count;
        }
        Ok(())
    })
}
