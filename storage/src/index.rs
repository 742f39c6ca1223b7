//! The index: rows for look-ups, written behind the journal and rebuilt from it at any time.
//!
//! An engine only has to keep rows and to say when they are durable. Whether a row is what was written is checked above
//! it ([`crate::StoreView`] puts a CRC behind each value), because no embedded engine here finds a flipped bit by itself.

pub(crate) mod memory;
pub(crate) mod sled;

use std::fmt::Debug;

use crate::{Error, Result};

/// The name of a table. Tables exist as soon as a row is in them. Names that begin with `~` are the store's own.
pub type Table = &'static str;

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// The largest key. Keys are ids with a prefix; long keys make every node of the tree large.
pub const MAX_KEY_BYTES: usize = 256;

/// The largest value. Larger ones take another path in sled (files of their own, outside of what we sync).
pub const MAX_VALUE_BYTES: usize = 16 << 10;

/// One change of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table.
    pub table: Table,
    /// The key.
    pub key: Vec<u8>,
    /// The new value, or none to delete the row.
    pub value: Option<Vec<u8>>,
}

/// Changes that belong together, in order: of two for one row the later one holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    changes: Vec<Change>,
}

impl Batch {
    /// A batch without changes.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Sets a row. Sizes are checked when the batch is applied.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut Batch {
        self.changes.push(Change { table, key: key.into(), value: Some(value.into()) });
        self
    }

    /// Deletes a row, if there is one.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) -> &mut Batch {
        self.changes.push(Change { table, key: key.into(), value: None });
        self
    }

    /// The changes in order.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(crate) fn map_values(self, mut change: impl FnMut(Table, &[u8], Vec<u8>) -> Vec<u8>) -> Batch {
        let changes = self.changes.into_iter().map(|Change { table, key, value }| {
            let value = value.map(|value| change(table, &key, value));
            Change { table, key, value }
        });
        Batch { changes: changes.collect() }
    }

    pub(crate) fn check(&self) -> Result<()> {
        let within = |table, part, bytes, limit| match bytes <= limit {
            true => Ok(()),
            false => Err(Error::RowTooLarge { table, part, bytes, limit }),
        };
        self.changes.iter().try_for_each(|change| {
            // Names are constants of the program, so this is never a matter of input.
            assert!(!change.table.starts_with('~'), "table names with `~` are the store's own");
            within(change.table, "key", change.key.len(), MAX_KEY_BYTES)?;
            within(change.table, "value", change.value.as_ref().map_or(0, Vec::len), MAX_VALUE_BYTES)
        })
    }
}

/// An engine for rows.
pub trait Index: Send + Sync + Debug {
    /// The value of a row.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Makes the changes visible. They are durable after [`Index::flush`] only; before that a crash may leave any of them.
    fn apply(&self, batch: &Batch) -> Result<()>;

    /// Makes all that was applied before durable.
    fn flush(&self) -> Result<()>;

    /// The rows whose key begins with `prefix` and is at least `from` (empty: all), in order of their keys, at most
    /// `limit`. For the next page give the last key with a zero byte behind it.
    fn scan(&self, table: Table, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Row>>;

    /// Removes all rows of all tables. Durable after [`Index::flush`].
    fn clear(&self) -> Result<()>;
}
