//! The disk that lies: it keeps what is synced apart from what is only written, and makes every image that a power loss
//! may leave.
//!
//! A clone is another handle on the same disk, so reopening on a clone is a restart of the process, and reopening on
//! [`MemoryBackend::crash`] is a restart of the machine.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Backend, BackendFile};

/// What a disk writes wholly or not at all.
pub const SECTOR_BYTES: usize = 512;

/// What a power loss does to writes and names that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// None of them is there.
    Lost,
    /// All of them are there.
    Kept,
    /// In each file a beginning of them is there, and the write after that is cut within.
    Torn,
    /// Any sectors of any of them are there, in no order.
    Reordered,
}

impl Crash {
    /// All policies.
    pub const ALL: [Crash; 4] = [Crash::Lost, Crash::Kept, Crash::Torn, Crash::Reordered];
}

/// What the n-th changing operation meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with an I/O error. A sync that fails also drops what it should have written, while reading still shows
    /// it: that is what a page cache does.
    Broken,
    /// It fails for want of space.
    DiskFull,
    /// The power goes: it and everything after it fails. A write that was under way may still reach the disk.
    PowerCut,
}

/// A disk in memory. See the module's text.
#[derive(Clone, Debug, Default)]
pub struct MemoryBackend {
    disk: Arc<Mutex<Disk>>,
}

impl MemoryBackend {
    /// An empty disk without faults.
    pub fn new() -> MemoryBackend {
        MemoryBackend::default()
    }

    /// How many changing operations (create, write, truncate, preallocate, rename, remove, sync) were tried so far.
    pub fn operations(&self) -> u64 {
        self.disk().operations
    }

    /// Lets the `n`-th changing operation from the beginning (counted from 0) meet `fault`.
    pub fn fail_at(&self, n: u64, fault: Fault) {
        self.disk().faults.insert(n, fault);
    }

    /// Lets the next changing operation meet `fault`.
    pub fn fail_next(&self, fault: Fault) {
        let mut disk = self.disk();
        let n = disk.operations;
        disk.faults.insert(n, fault);
    }

    /// A new disk as a power loss may leave this one. The same policy and seed give the same image.
    pub fn crash(&self, policy: Crash, seed: u64) -> MemoryBackend {
        let disk = self.disk();
        let mut random = Random(seed);
        let names = disk.names_after(policy, &mut random);
        let files = disk.files.iter().map(|file| MemoryFile::settled(file.after(policy, &mut random))).collect();
        let image = Disk { files, names: names.clone(), durable_names: names, ..Disk::default() };
        MemoryBackend { disk: Arc::new(Mutex::new(image)) }
    }

    /// All files and what reading shows of them.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let disk = self.disk();
        disk.names.iter().map(|(name, id)| (name.clone(), disk.files[*id].shown.clone())).collect()
    }

    /// Changes a file behind everybody's back, durably: bit rot. The change gets the file's bytes.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn tamper(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.disk();
        let id = *disk.names.get(name).expect("the file to tamper with exists");
        let file = &mut disk.files[id];
        change(&mut file.shown);
        file.durable = file.shown.clone();
        file.pending.clear();
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        // Operations leave the disk whole at every point, so a panic of another test thread does not matter.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct Disk {
    files: Vec<MemoryFile>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    power_is_off: bool,
}

#[derive(Debug, Default)]
struct MemoryFile {
    shown: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<DataChange>,
}

#[derive(Clone, Debug)]
enum DataChange {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Debug)]
enum NameChange {
    Link { name: String, id: usize },
    Rename { from: String, to: String, id: usize },
    Unlink { name: String, id: usize },
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        let mut drop_name = |name: &String, id: &usize| {
            if names.get(name) == Some(id) {
                names.remove(name);
            }
        };
        match self {
            NameChange::Link { name, id } => drop(names.insert(name.clone(), *id)),
            NameChange::Unlink { name, id } => drop_name(name, id),
            NameChange::Rename { from, to, id } => {
                drop_name(from, id);
                names.insert(to.clone(), *id);
            }
        }
    }

    fn touches(&self, dir: &str) -> bool {
        match self {
            NameChange::Link { name, .. } | NameChange::Unlink { name, .. } => folder(name) == dir,
            NameChange::Rename { from, to, .. } => folder(from) == dir || folder(to) == dir,
        }
    }
}

fn folder(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl DataChange {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            DataChange::Length(len) => bytes.resize(*len, 0),
            DataChange::Write { offset, bytes: new } => {
                let end = offset + new.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(new);
            }
        }
    }

    /// The parts that the disk writes one by one.
    fn sectors(&self) -> Vec<DataChange> {
        let DataChange::Write { offset, bytes } = self else { return vec![self.clone()] };
        let (mut at, mut rest, mut parts) = (*offset, bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let count = rest.len().min(SECTOR_BYTES - at % SECTOR_BYTES);
            let (part, tail) = rest.split_at(count);
            parts.push(DataChange::Write { offset: at, bytes: part.to_vec() });
            (at, rest) = (at + count, tail);
        }
        parts
    }
}

impl MemoryFile {
    fn settled(bytes: Vec<u8>) -> MemoryFile {
        MemoryFile { shown: bytes.clone(), durable: bytes, pending: Vec::new() }
    }

    fn change(&mut self, change: DataChange) {
        change.apply(&mut self.shown);
        self.pending.push(change);
    }

    fn after(&self, policy: Crash, random: &mut Random) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let parts: Vec<DataChange> = self.pending.iter().flat_map(DataChange::sectors).collect();
        kept(parts, policy, random).iter().for_each(|change| change.apply(&mut bytes));
        bytes
    }
}

/// The changes of which a crash leaves something, in order.
fn kept<T>(changes: Vec<T>, policy: Crash, random: &mut Random) -> Vec<T> {
    match policy {
        Crash::Lost => Vec::new(),
        Crash::Kept => changes,
        Crash::Torn => {
            let count = random.below(changes.len() + 1);
            changes.into_iter().take(count).collect()
        }
        Crash::Reordered => changes.into_iter().filter(|_| random.below(2) == 0).collect(),
    }
}

impl Disk {
    fn names_after(&self, policy: Crash, random: &mut Random) -> BTreeMap<String, usize> {
        let mut names = self.durable_names.clone();
        kept(self.pending_names.clone(), policy, random).iter().for_each(|change| change.apply(&mut names));
        names
    }

    /// Counts the operation and tells how it ends.
    fn begin(&mut self) -> Result<(), Fault> {
        let n = self.operations;
        self.operations += 1;
        if self.power_is_off {
            return Err(Fault::Broken);
        }
        match self.faults.get(&n) {
            None => Ok(()),
            Some(fault) => {
                self.power_is_off = *fault == Fault::PowerCut;
                Err(*fault)
            }
        }
    }

    fn id(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such file"))
    }

    /// A change of names: done unless the operation fails, and under way when the power goes.
    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        let outcome = self.begin();
        if matches!(outcome, Ok(()) | Err(Fault::PowerCut)) {
            change.apply(&mut self.names);
            self.pending_names.push(change);
        }
        outcome.map_err(refusal)
    }

    fn change_data(&mut self, id: usize, change: DataChange) -> io::Result<()> {
        let outcome = self.begin();
        if matches!(outcome, Ok(()) | Err(Fault::PowerCut)) {
            self.files[id].change(change);
        }
        outcome.map_err(refusal)
    }
}

fn refusal(fault: Fault) -> io::Error {
    match fault {
        Fault::Broken => io::Error::other("injected failure"),
        Fault::DiskFull => io::Error::new(io::ErrorKind::StorageFull, "injected: no space left"),
        Fault::PowerCut => io::Error::other("injected: the power is off"),
    }
}

impl Backend for MemoryBackend {
    fn open(&self, name: &str) -> io::Result<Arc<dyn BackendFile>> {
        let id = self.disk().id(name)?;
        Ok(Arc::new(Handle { backend: self.clone(), id }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn BackendFile>> {
        let mut disk = self.disk();
        let id = disk.files.len();
        disk.files.push(MemoryFile::default());
        disk.change_names(NameChange::Link { name: name.to_string(), id })?;
        Ok(Arc::new(Handle { backend: self.clone(), id }))
    }

    fn create_dir(&self, _dir: &str) -> io::Result<()> {
        // Folders exist as soon as a file is in them.
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let id = disk.id(from)?;
        disk.change_names(NameChange::Rename { from: from.to_string(), to: to.to_string(), id })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let id = disk.id(name)?;
        disk.change_names(NameChange::Unlink { name: name.to_string(), id })
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let disk = self.disk();
        let inside = disk.names.keys().filter(|name| folder(name) == dir);
        Ok(inside.map(|name| name.rsplit('/').next().unwrap_or(name).to_string()).collect())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut disk = self.disk();
        let outcome = disk.begin();
        if outcome == Err(Fault::PowerCut) {
            return outcome.map_err(refusal);
        }
        let pending = std::mem::take(&mut disk.pending_names);
        let (synced, waiting): (Vec<_>, Vec<_>) = pending.into_iter().partition(|change| change.touches(dir));
        disk.pending_names = waiting;
        if outcome.is_ok() {
            synced.iter().for_each(|change| change.apply(&mut disk.durable_names));
        }
        outcome.map_err(refusal)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[derive(Debug)]
struct Handle {
    backend: MemoryBackend,
    id: usize,
}

fn size(value: u64) -> usize {
    usize::try_from(value).expect("a disk in memory is smaller than memory")
}

impl BackendFile for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.backend.disk().files[self.id].shown.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let disk = self.backend.disk();
        let end = size(offset).saturating_add(buffer.len());
        let bytes = disk.files[self.id].shown.get(size(offset)..end);
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let change = DataChange::Write { offset: size(offset), bytes: bytes.to_vec() };
        self.backend.disk().change_data(self.id, change)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.backend.disk().change_data(self.id, DataChange::Length(size(len)))
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.backend.disk();
        let at = disk.files[self.id].shown.len();
        let zeros = vec![0; size(len).saturating_sub(at)];
        disk.change_data(self.id, DataChange::Write { offset: at, bytes: zeros })
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.backend.disk();
        let outcome = disk.begin();
        if outcome == Err(Fault::PowerCut) {
            return outcome.map_err(refusal);
        }
        let file = &mut disk.files[self.id];
        let pending = std::mem::take(&mut file.pending);
        if outcome.is_ok() {
            pending.iter().for_each(|change| change.apply(&mut file.durable));
        }
        outcome.map_err(refusal)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, good enough to choose what a crash leaves.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).expect("smaller than a usize")
    }
}
