//! The index for tests: rows in a map, with what is flushed kept apart from what is only applied.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Batch, Change, Index, Row, Table};
use crate::backend::memory::Random;
use crate::{Crash, Error, Result};

/// An index in memory. A clone is another handle on the same rows.
#[derive(Clone, Debug, Default)]
pub struct MemoryIndex {
    state: Arc<Mutex<State>>,
}

type Rows = BTreeMap<(String, Vec<u8>), Vec<u8>>;

#[derive(Debug, Default)]
struct State {
    shown: Rows,
    durable: Rows,
    pending: Vec<Pending>,
    operations: u64,
    fail_at: Option<u64>,
}

#[derive(Clone, Debug)]
enum Pending {
    Change(Change),
    /// A row that a clear removes. Rows go one by one, as in an engine on disk.
    Remove((String, Vec<u8>)),
}

impl Pending {
    fn apply(&self, rows: &mut Rows) {
        match self {
            Pending::Remove(place) => drop(rows.remove(place)),
            Pending::Change(Change { table, key, value }) => {
                let place = (table.to_string(), key.clone());
                match value {
                    Some(value) => drop(rows.insert(place, value.clone())),
                    None => drop(rows.remove(&place)),
                }
            }
        }
    }
}

impl MemoryIndex {
    /// An index without rows.
    pub fn new() -> MemoryIndex {
        MemoryIndex::default()
    }

    /// How many changing operations (apply, flush, clear) were tried so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Lets the `n`-th changing operation from the beginning (counted from 0) and all after it fail.
    pub fn fail_at(&self, n: u64) {
        self.state().fail_at = Some(n);
    }

    /// A new index as a power loss may leave this one. The same policy and seed give the same rows.
    pub fn crash(&self, policy: Crash, seed: u64) -> MemoryIndex {
        let state = self.state();
        let mut random = Random(seed);
        let count = match policy {
            Crash::Lost => 0,
            Crash::Kept | Crash::Reordered => state.pending.len(),
            Crash::Torn => random.below(state.pending.len() + 1),
        };
        let mut rows = state.durable.clone();
        for change in state.pending.iter().take(count) {
            if policy != Crash::Reordered || random.below(2) == 0 {
                change.apply(&mut rows);
            }
        }
        let image = State { shown: rows.clone(), durable: rows, ..State::default() };
        MemoryIndex { state: Arc::new(Mutex::new(image)) }
    }

    /// Changes a value behind everybody's back: bit rot.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn tamper(&self, table: &str, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let value = state.shown.get_mut(&(table.to_string(), key.to_vec())).expect("the row to tamper with exists");
        change(value);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, action: &'static str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let n = state.operations;
        state.operations += 1;
        match state.fail_at.is_some_and(|fail_at| n >= fail_at) {
            true => Err(Error::Index { action, why: "injected failure".to_string() }),
            false => Ok(state),
        }
    }
}

impl Index for MemoryIndex {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.state().shown.get(&(table.to_string(), key.to_vec())).cloned())
    }

    fn apply(&self, batch: &Batch) -> Result<()> {
        let mut state = self.begin("write rows")?;
        for change in batch.changes() {
            let change = Pending::Change(change.clone());
            change.apply(&mut state.shown);
            state.pending.push(change);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let mut state = self.begin("flush")?;
        state.durable = state.shown.clone();
        state.pending.clear();
        Ok(())
    }

    fn scan(&self, table: Table, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Row>> {
        let state = self.state();
        let start = (table.to_string(), prefix.max(from).to_vec());
        let rows = state.shown.range(start..).take_while(|((name, key), _)| name == table && key.starts_with(prefix));
        Ok(rows.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn clear(&self) -> Result<()> {
        let mut state = self.begin("clear")?;
        let rows = std::mem::take(&mut state.shown);
        state.pending.extend(rows.into_keys().map(Pending::Remove));
        Ok(())
    }
}
