//! Sorted runs: an index of small fixed entries that costs a thousandth of a row per entry.
//!
//! A row for each payment is more than any embedded engine keeps up with. An [`Entry`] is three numbers; the entries of
//! a checkpoint are sorted and packed into rows of [`CHUNK`] entries each: a *run*. A run never changes; eight runs of a
//! size are merged into one of the next size. In memory a run costs its *shape*: a filter of twelve bits an entry and the
//! first entry of each chunk. Shapes are written beside the chunks and read when the first look-up needs them, so that a
//! start does not read the whole history. What is not yet in a run stands in an ordered set in memory.
//!
//! The order of writing is what makes this safe: chunks and shape first, then (with the checkpoint's mark) the manifest that names
//! the runs, and chunks that no manifest names any more are deleted only with the next checkpoint.

use std::collections::{BTreeMap, BTreeSet, hash_map};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use alloy_primitives::map::HashMap;
use storage::{Batch, StoreView, Table};

/// A key, a second key that orders the entries of one key, and a value.
pub(crate) type Entry = [u64; 3];

/// Entries in a chunk: the most that fit a row.
const CHUNK: usize = storage::MAX_VALUE_BYTES / ENTRY_BYTES;
const ENTRY_BYTES: usize = 24;
/// Runs of one level that are merged into one of the next: look-ups ask few runs, and an entry is rewritten rarely.
const FAN: usize = 8;
/// Rows written at once, so that memory stays small whatever the size of the runs.
const ROWS_AT_ONCE: usize = 64;
/// Filter bits an entry: one look-up in a hundred reads a chunk in vain.
const FILTER_BITS: u64 = 12;
const FILTER_BLOCK_BITS: u64 = 512;
const FILTER_PROBES: u32 = 6;

/// An index made of runs.
#[derive(Debug)]
pub(crate) struct Runs {
    chunks: Table,
    shapes: Table,
    manifest: Table,
    view: StoreView,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Not yet part of any checkpoint.
    fresh: Fresh,
    /// Being written by the checkpoint under way.
    writing: Arc<Fresh>,
    /// The table of the checkpoint before: growing and filling new memory takes milliseconds, this has its room.
    spare: Fresh,
    runs: Vec<Arc<Run>>,
    next_run: u64,
    /// Runs that the last manifest no longer names.
    garbage: Vec<u64>,
}

/// Entries in memory. Nearly all payments are the only ones with their key, so that one step finds them; what shares a
/// key stands in order beside them.
#[derive(Debug, Default)]
struct Fresh {
    first: HashMap<u64, (u64, u64)>,
    more: BTreeSet<Entry>,
}

#[derive(Debug)]
struct Run {
    number: u64,
    level: u32,
    /// Read when it is needed.
    shape: OnceLock<Shape>,
}

/// What a look-up needs before it reads a chunk.
#[derive(Debug)]
struct Shape {
    first: Vec<(u64, u64)>,
    filter: Filter,
}

#[derive(Debug)]
struct Filter {
    words: Vec<u64>,
}

/// Runs that were written and wait for the mark.
#[derive(Debug)]
pub(crate) struct Written {
    runs: Vec<Arc<Run>>,
    next_run: u64,
    garbage: Vec<u64>,
}

impl Runs {
    /// Reads the manifest; chunks and shapes that it does not name are left for the next checkpoint to delete.
    pub(crate) fn open(view: StoreView, chunks: Table, shapes: Table, manifest: Table) -> storage::Result<Self> {
        let mut state = State::default();
        let mut live = BTreeSet::new();
        for (key, value) in all_rows(&view, manifest)? {
            let (Some(number), Some(level)) = (read_u64(&key, 0), read_u64(&value, 0)) else { continue };
            live.insert(number);
            state.runs.push(Arc::new(Run { number, level: level as u32, shape: OnceLock::new() }));
        }
        let mut stray = BTreeSet::new();
        for table in [chunks, shapes] {
            for number in runs_in(&view, table)? {
                state.next_run = state.next_run.max(number + 1);
                if !live.contains(&number) {
                    stray.insert(number);
                }
            }
        }
        state.garbage = stray.into_iter().collect();
        Ok(Runs { chunks, shapes, manifest, view, state: RwLock::new(state) })
    }

    /// Reads the shapes that no look-up has needed yet.
    pub(crate) fn warm(&self) -> storage::Result<()> {
        let runs = self.read().runs.clone();
        runs.iter().try_for_each(|run| self.shape(run).map(drop))
    }

    /// Adds entries that are to be found from now on.
    pub(crate) fn add(&self, entries: impl IntoIterator<Item = Entry>) {
        let fresh = &mut self.write().fresh;
        entries.into_iter().for_each(|entry| fresh.add(entry));
    }

    /// How many entries wait for a checkpoint.
    pub(crate) fn fresh(&self) -> usize {
        self.read().fresh.len()
    }

    /// Makes what was added so far the matter of the checkpoint that begins.
    pub(crate) fn begin_checkpoint(&self) {
        let mut state = self.write();
        assert!(state.writing.is_empty(), "one checkpoint is under way at a time");
        let spare = std::mem::take(&mut state.spare);
        state.writing = Arc::new(std::mem::replace(&mut state.fresh, spare));
    }

    /// All entries of a key, in order; an entry may be named twice.
    pub(crate) fn all(&self, key: u64) -> storage::Result<Vec<(u64, u64)>> {
        let (mut found, runs) = {
            let state = self.read();
            let found: Vec<(u64, u64)> = state.fresh.from(key, 0).chain(state.writing.from(key, 0)).collect();
            (found, state.runs_with(key))
        };
        for run in runs {
            let mut from = (key, 0);
            while let Some(entry) = self.first_in(&run, from)? {
                if entry[0] != key {
                    break;
                }
                found.push((entry[1], entry[2]));
                let Some(next) = entry[1].checked_add(1) else { break };
                from = (key, next);
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The first entry of a key whose second key is at least `least`.
    pub(crate) fn next(&self, key: u64, least: u64) -> storage::Result<Option<(u64, u64)>> {
        let (mut best, runs) = {
            let state = self.read();
            let best = state.fresh.from(key, least).chain(state.writing.from(key, least)).min();
            (best, state.runs_with(key))
        };
        for run in runs {
            if let Some(entry) = self.first_in(&run, (key, least))?.filter(|e| e[0] == key) {
                let found = (entry[1], entry[2]);
                best = Some(best.map_or(found, |b| b.min(found)));
            }
        }
        Ok(best)
    }

    /// Writes the checkpoint's entries and merges runs. Nothing refers to what is written yet; it must be made durable
    /// before [`Runs::write_manifest`]'s rows are written.
    pub(crate) fn write_chunks(&self) -> storage::Result<Written> {
        let (entries, mut runs, mut next_run, garbage) = {
            let state = self.read();
            (state.writing.clone(), state.runs.clone(), state.next_run, state.garbage.clone())
        };
        for number in garbage {
            self.delete(self.chunks, number)?;
            self.delete(self.shapes, number)?;
        }
        if !entries.is_empty() {
            let sorted = entries.sorted();
            runs.push(self.write_run(next_run, 0, sorted.len(), sorted.into_iter().map(Ok))?);
            next_run += 1;
        }
        let mut garbage = Vec::new();
        while let Some(level) = full_level(&runs) {
            let (merged, kept): (Vec<_>, Vec<_>) = runs.into_iter().partition(|run| run.level == level);
            let shapes = merged.iter().map(|run| self.shape(run)).collect::<storage::Result<Vec<_>>>()?;
            let size = shapes.iter().map(|shape| shape.first.len() * CHUNK).sum();
            let run = self.write_run(next_run, level + 1, size, Merge::new(self, &merged))?;
            next_run += 1;
            garbage.extend(merged.iter().map(|run| run.number));
            runs = kept;
            runs.push(run);
        }
        Ok(Written { runs, next_run, garbage })
    }

    fn delete(&self, table: Table, run: u64) -> storage::Result<()> {
        loop {
            let rows = self.view.scan(table, &run.to_be_bytes(), &[], ROWS_AT_ONCE)?;
            if rows.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::new();
            for (key, _) in rows {
                batch.delete(table, key);
            }
            self.view.write_ahead(batch)?;
        }
    }

    /// Adds the rows that name the runs to the batch that moves the mark.
    pub(crate) fn write_manifest(&self, written: &Written, batch: &mut Batch) {
        for number in &written.garbage {
            batch.delete(self.manifest, number.to_be_bytes());
        }
        for run in &written.runs {
            batch.put(self.manifest, run.number.to_be_bytes(), u64::from(run.level).to_be_bytes());
        }
    }

    /// The mark is durable: the runs replace what stood in memory.
    pub(crate) fn end_checkpoint(&self, written: Written) {
        let mut state = self.write();
        if let Some(mut written) = Arc::into_inner(std::mem::take(&mut state.writing)) {
            written.clear();
            state.spare = written;
        }
        let Written { runs, next_run, garbage } = written;
        (state.runs, state.next_run, state.garbage) = (runs, next_run, garbage);
    }

    fn write_run(
        &self,
        number: u64,
        level: u32,
        size: usize,
        mut entries: impl Iterator<Item = storage::Result<Entry>>,
    ) -> storage::Result<Arc<Run>> {
        let mut shape = Shape::sized(size);
        let mut batch = Batch::new();
        loop {
            let chunk: Vec<Entry> = entries.by_ref().take(CHUNK).collect::<storage::Result<_>>()?;
            if chunk.is_empty() {
                break;
            }
            batch.put(self.chunks, part_key(number, shape.first.len() as u32), encode(&chunk));
            shape.note(&chunk);
            if batch.len() >= ROWS_AT_ONCE {
                self.view.write_ahead(std::mem::take(&mut batch))?;
            }
        }
        for (part, bytes) in shape.encode().chunks(storage::MAX_VALUE_BYTES).enumerate() {
            batch.put(self.shapes, part_key(number, part as u32), bytes);
        }
        self.view.write_ahead(batch)?;
        Ok(Arc::new(Run { number, level, shape: OnceLock::from(shape) }))
    }

    /// Reads the rows of a run in order.
    fn visit(&self, table: Table, run: u64, mut visit: impl FnMut(&[u8])) -> storage::Result<()> {
        let mut from = Vec::new();
        loop {
            let rows = self.view.scan(table, &run.to_be_bytes(), &from, ROWS_AT_ONCE)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = [last.as_slice(), &[0]].concat();
            rows.iter().for_each(|(_, value)| visit(value));
        }
    }

    /// A run's shape, read if it was not yet.
    fn shape<'a>(&self, run: &'a Run) -> storage::Result<&'a Shape> {
        if let Some(shape) = run.shape.get() {
            return Ok(shape);
        }
        let mut bytes = Vec::new();
        self.visit(self.shapes, run.number, |part| bytes.extend_from_slice(part))?;
        let shape = match Shape::decode(&bytes) {
            Some(shape) => shape,
            // A run of an earlier version, which kept no shapes.
            None => {
                let mut chunks = 0;
                self.visit(self.chunks, run.number, |_| chunks += 1)?;
                let mut shape = Shape::sized(chunks * CHUNK);
                self.visit(self.chunks, run.number, |chunk| shape.note(&decode(chunk)))?;
                shape
            }
        };
        Ok(run.shape.get_or_init(|| shape))
    }

    /// The first entry of a run that is at least `from`.
    fn first_in(&self, run: &Run, from: (u64, u64)) -> storage::Result<Option<Entry>> {
        let shape = self.shape(run)?;
        if !shape.filter.may_hold(from.0) {
            return Ok(None);
        }
        let after = shape.first.partition_point(|first| *first < from);
        let start = after.saturating_sub(1);
        for chunk in start..shape.first.len().min(start + 2) {
            let Some(bytes) = self.view.get(self.chunks, &part_key(run.number, chunk as u32))? else { continue };
            if let Some(entry) = first_from(&bytes, from) {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    fn chunk(&self, run: u64, chunk: u32) -> storage::Result<Vec<Entry>> {
        let row = self.view.get(self.chunks, &part_key(run, chunk))?;
        Ok(row.map(|value| decode(&value)).unwrap_or_default())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fresh {
    fn add(&mut self, [key, second, value]: Entry) {
        match self.first.entry(key) {
            hash_map::Entry::Vacant(free) => drop(free.insert((second, value))),
            hash_map::Entry::Occupied(taken) if *taken.get() == (second, value) => {}
            hash_map::Entry::Occupied(_) => drop(self.more.insert([key, second, value])),
        }
    }

    fn clear(&mut self) {
        self.first.clear();
        self.more.clear();
    }

    fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// What a key has from `least` on; in no order.
    fn from(&self, key: u64, least: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.first.get(&key).copied().filter(|(second, _)| *second >= least);
        let more = match self.more.is_empty() {
            true => None,
            false => Some(self.more.range([key, least, 0]..=[key, u64::MAX, u64::MAX])),
        };
        first.into_iter().chain(more.into_iter().flatten().map(|entry| (entry[1], entry[2])))
    }

    fn sorted(&self) -> Vec<Entry> {
        let first = self.first.iter().map(|(key, (second, value))| [*key, *second, *value]);
        let mut all: Vec<Entry> = first.chain(self.more.iter().copied()).collect();
        all.sort_unstable();
        all
    }
}

impl State {
    /// The runs that may hold a key, as far as their shapes are known.
    fn runs_with(&self, key: u64) -> Vec<Arc<Run>> {
        let may_hold = |run: &&Arc<Run>| run.shape.get().is_none_or(|shape| shape.filter.may_hold(key));
        self.runs.iter().filter(may_hold).cloned().collect()
    }
}

impl Shape {
    fn sized(entries: usize) -> Self {
        Shape { first: Vec::new(), filter: Filter::sized(entries) }
    }

    fn note(&mut self, chunk: &[Entry]) {
        let Some(first) = chunk.first() else { return };
        self.first.push((first[0], first[1]));
        chunk.iter().for_each(|entry| self.filter.add(entry[0]));
    }

    fn encode(&self) -> Vec<u8> {
        let firsts = self.first.iter().flat_map(|(key, second)| [*key, *second]);
        let words = std::iter::once(self.first.len() as u64).chain(firsts).chain(self.filter.words.iter().copied());
        words.flat_map(u64::to_be_bytes).collect()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.chunks_exact(8).filter_map(|word| read_u64(word, 0));
        let count = usize::try_from(words.next()?).ok()?;
        let first = words.by_ref().take(2 * count).collect::<Vec<_>>();
        let first: Vec<(u64, u64)> = first.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let filter = Filter { words: words.collect() };
        (first.len() == count && !filter.words.is_empty()).then_some(Shape { first, filter })
    }
}

impl Filter {
    fn sized(entries: usize) -> Self {
        let blocks = (entries as u64 * FILTER_BITS).div_ceil(FILTER_BLOCK_BITS).max(1);
        Filter { words: vec![0; (blocks * FILTER_BLOCK_BITS / 64) as usize] }
    }

    fn add(&mut self, key: u64) {
        for (word, bit) in self.places(key) {
            self.words[word] |= 1 << bit;
        }
    }

    fn may_hold(&self, key: u64) -> bool {
        self.places(key).all(|(word, bit)| self.words[word] & (1 << bit) != 0)
    }

    /// All probes of a key fall into one block of 64 bytes, which is one cache line.
    fn places(&self, key: u64) -> impl Iterator<Item = (usize, u32)> + use<> {
        let words_per_block = FILTER_BLOCK_BITS / 64;
        let blocks = self.words.len() as u64 / words_per_block;
        let block = ((u128::from(key) * u128::from(blocks)) >> 64) as u64;
        let mut bits = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (key >> 29);
        (0..FILTER_PROBES).map(move |_| {
            let bit = bits % FILTER_BLOCK_BITS;
            bits = bits.rotate_right(9);
            ((block * words_per_block + bit / 64) as usize, (bit % 64) as u32)
        })
    }
}

/// The entries of several runs in one order.
struct Merge<'a> {
    runs: &'a Runs,
    cursors: Vec<(Arc<Run>, usize, std::vec::IntoIter<Entry>)>,
    heads: BTreeSet<(Entry, usize)>,
    failed: Option<storage::Error>,
}

impl<'a> Merge<'a> {
    fn new(runs: &'a Runs, merged: &[Arc<Run>]) -> Self {
        let cursors = merged.iter().map(|run| (run.clone(), 0, Vec::new().into_iter())).collect();
        let mut merge = Merge { runs, cursors, heads: BTreeSet::new(), failed: None };
        (0..merged.len()).for_each(|i| merge.advance(i));
        merge
    }

    fn advance(&mut self, i: usize) {
        let (run, chunk, entries) = &mut self.cursors[i];
        let chunks = run.shape.get().map_or(0, |shape| shape.first.len());
        if entries.len() == 0 && *chunk < chunks {
            match self.runs.chunk(run.number, *chunk as u32) {
                Ok(next) => *entries = next.into_iter(),
                Err(error) => self.failed = Some(error),
            }
            *chunk += 1;
        }
        if let Some(entry) = entries.next() {
            self.heads.insert((entry, i));
        }
    }
}

impl Iterator for Merge<'_> {
    type Item = storage::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.failed.take() {
            return Some(Err(error));
        }
        let (entry, i) = self.heads.pop_first()?;
        self.advance(i);
        Some(Ok(entry))
    }
}

fn full_level(runs: &[Arc<Run>]) -> Option<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    runs.iter().for_each(|run| *counts.entry(run.level).or_default() += 1);
    counts.into_iter().find(|(_, count)| *count >= FAN).map(|(level, _)| level)
}

fn all_rows(view: &StoreView, table: Table) -> storage::Result<Vec<storage::Row>> {
    let (mut all, mut from) = (Vec::new(), Vec::new());
    loop {
        let rows = view.scan(table, &[], &from, ROWS_AT_ONCE)?;
        let Some((last, _)) = rows.last() else { return Ok(all) };
        from = [last.as_slice(), &[0]].concat();
        all.extend(rows);
    }
}

/// The numbers of the runs that have rows, each found with one step.
fn runs_in(view: &StoreView, table: Table) -> storage::Result<Vec<u64>> {
    let (mut numbers, mut from) = (Vec::new(), Vec::new());
    while let Some((key, _)) = view.scan(table, &[], &from, 1)?.pop() {
        let Some(number) = read_u64(&key, 0) else { break };
        numbers.push(number);
        let Some(next) = number.checked_add(1) else { break };
        from = next.to_be_bytes().to_vec();
    }
    Ok(numbers)
}

fn part_key(run: u64, part: u32) -> Vec<u8> {
    [run.to_be_bytes().as_slice(), &part.to_be_bytes()].concat()
}

/// The first entry of a chunk that is at least `from`, by halving.
fn first_from(bytes: &[u8], from: (u64, u64)) -> Option<Entry> {
    let word = |at: usize| read_u64(bytes, at).expect("a chunk holds whole entries");
    let at = |i: usize| [0, 8, 16].map(|offset| word(i * ENTRY_BYTES + offset));
    let (mut low, mut high) = (0, bytes.len() / ENTRY_BYTES);
    while low < high {
        let middle = (low + high) / 2;
        let entry = at(middle);
        match (entry[0], entry[1]) < from {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    (low < bytes.len() / ENTRY_BYTES).then(|| at(low))
}

fn encode(entries: &[Entry]) -> Vec<u8> {
    // The store puts a checksum behind it.
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES + 8);
    entries.iter().flatten().for_each(|word| bytes.extend_from_slice(&word.to_be_bytes()));
    bytes
}

fn decode(bytes: &[u8]) -> Vec<Entry> {
    let word = |bytes: &[u8], i| read_u64(bytes, i).expect("a chunk of 24 bytes holds three words");
    bytes.chunks_exact(ENTRY_BYTES).map(|e| [word(e, 0), word(e, 8), word(e, 16)]).collect()
}

fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::{MemoryBackend, MemoryIndex, Store, StoreConfig};

    fn view() -> StoreView {
        let backend = Arc::new(MemoryBackend::new());
        Store::open_with(backend, Box::new(MemoryIndex::new()), &[1; 32], StoreConfig::default()).expect("opens").view()
    }

    fn checkpoint(runs: &Runs) {
        runs.begin_checkpoint();
        let written = runs.write_chunks().expect("writes");
        let mut batch = Batch::new();
        runs.write_manifest(&written, &mut batch);
        runs.view.checkpoint(batch, 0).expect("marks");
        runs.end_checkpoint(written);
    }

    /// Numbers that look random and are always the same.
    fn key(i: u64) -> u64 {
        (i / 3).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn every_entry_is_found_in_memory_in_runs_and_after_a_restart() {
        let view = view();
        let runs = Runs::open(view.clone(), "c", "s", "m").expect("opens");
        let count = 9_000u64;
        for i in 0..count {
            runs.add([[key(i), i, i + 7]]);
            if i % 300 == 299 && i < count - 150 {
                checkpoint(&runs);
            }
        }
        let again = {
            checkpoint(&runs);
            Runs::open(view, "c", "s", "m").expect("opens again")
        };
        for runs in [&runs, &again] {
            assert!(runs.read().runs.len() < 2 * FAN, "runs are merged");
            for i in 0..count {
                let first = i / 3 * 3;
                let all: Vec<_> = (first..first + 3).map(|j| (j, j + 7)).collect();
                assert_eq!(runs.all(key(i)).expect("reads"), all);
                assert_eq!(runs.next(key(i), i).expect("reads"), Some((i, i + 7)));
            }
            assert_eq!(runs.all(12345).expect("reads"), []);
            assert_eq!(runs.next(key(5), 6).expect("reads"), None);
        }
    }

    #[test]
    fn a_checkpoint_without_its_mark_changes_nothing() {
        let view = view();
        let runs = Runs::open(view.clone(), "c", "s", "m").expect("opens");
        runs.add([[1, 2, 3]]);
        checkpoint(&runs);
        runs.add([[4, 5, 6]]);
        runs.begin_checkpoint();
        runs.write_chunks().expect("writes");
        let again = Runs::open(view.clone(), "c", "s", "m").expect("opens");
        assert_eq!(again.all(1).expect("reads"), [(2, 3)]);
        assert_eq!(again.all(4).expect("reads"), []);
        assert_eq!(again.read().garbage.len(), 1);
        again.add([[4, 5, 6]]);
        checkpoint(&again);
        assert_eq!(Runs::open(view, "c", "s", "m").expect("opens").all(4).expect("reads"), [(5, 6)]);
    }
}
