//! The index on disk: sled 0.34.7, never trusted alone.
//!
//! sled's `flush` calls `sync_file_range` on Linux, which is no promise: the disk's cache and the file's length are not
//! part of it. We therefore sync the data file ourselves after each flush, and `conf`, the data file and the folders
//! after opening. Any failure poisons the handle: a failed sync is never tried again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use super::{Batch, Index, Row, Table};
use crate::backend::{patiently, sync_parent};
use crate::{Error, Result};

/// How sled is set up.
#[derive(Clone, Debug)]
pub struct SledConfig {
    /// Memory for pages; sled takes up to twice as much. What does not fit is read again, usually from the system's cache.
    pub cache_bytes: u64,
}

impl Default for SledConfig {
    fn default() -> SledConfig {
        SledConfig { cache_bytes: 32 << 20 }
    }
}

/// Rows are handed to sled in portions of this size: a portion is taken under a lock that readers of the table wait for.
const APPLY_ROWS_MAX: usize = 1024;

/// How sled says that its file is locked; it has no error of its own for that.
const LOCK_MESSAGE: &str = "could not acquire lock";

/// Rows on disk. One sled tree per table.
#[derive(Debug)]
pub struct SledIndex {
    db: ::sled::Db,
    /// sled's data file, for the sync that sled leaves out.
    data: File,
    trees: RwLock<BTreeMap<Table, ::sled::Tree>>,
    /// One flush at a time, so that a sync is never attributed to rows that came after it began.
    flushing: Mutex<()>,
    poison: OnceLock<String>,
}

impl SledIndex {
    /// Opens the database in `dir`, or makes it, and makes its files' existence durable.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Index`] if sled cannot read it (rebuild it then), [`Error::Io`] or [`Error::DiskFull`] from the syncs.
    pub fn open(dir: &Path, config: &SledConfig) -> Result<SledIndex> {
        let io = |action| move |e| Error::io(action, dir.display().to_string(), e);
        // Without an interval sled starts no thread that flushes (and fails) behind our back.
        let setup = ::sled::Config::new().path(dir).cache_capacity(config.cache_bytes).flush_every_ms(None);
        let opened = patiently(|| match setup.open() {
            Err(::sled::Error::Io(e)) if e.to_string().contains(LOCK_MESSAGE) => None,
            answer => Some(answer.map_err(|e| engine("open", &e))),
        });
        let db = opened.unwrap_or_else(|| Err(Error::Locked { dir: dir.to_path_buf() }))?;
        db.flush().map_err(|e| engine("flush", &e))?;
        let data = File::open(dir.join("db")).map_err(io("open the data file of"))?;
        data.sync_all().map_err(io("sync the data file of"))?;
        sync_created(dir).map_err(io("sync"))?;
        Ok(SledIndex {
            db,
            data,
            trees: RwLock::new(BTreeMap::new()),
            flushing: Mutex::new(()),
            poison: OnceLock::new(),
        })
    }

    /// Removes the database in `dir`, if there is one, so that [`SledIndex::open`] makes an empty one.
    ///
    /// # Errors
    /// What the disk says.
    pub fn destroy(dir: &Path) -> Result<()> {
        match fs::remove_dir_all(dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir.display().to_string(), e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn tree(&self, table: Table) -> Result<::sled::Tree> {
        if let Some(tree) = self.trees.read().unwrap_or_else(PoisonError::into_inner).get(table) {
            return Ok(tree.clone());
        }
        let tree = self.db.open_tree(table).map_err(|e| engine("open a table", &e))?;
        self.trees.write().unwrap_or_else(PoisonError::into_inner).insert(table, tree.clone());
        Ok(tree)
    }

    /// Runs a change unless an earlier one failed.
    fn change(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        if let Some(why) = self.poison.get() {
            return Err(Error::Poisoned { why: why.clone() });
        }
        let outcome = change();
        if let Err(error) = &outcome {
            self.poison.get_or_init(|| error.to_string());
        }
        outcome
    }

    fn apply_changes(&self, batch: &Batch) -> Result<()> {
        for portion in batch.changes().chunks(APPLY_ROWS_MAX) {
            let mut tables: BTreeMap<Table, ::sled::Batch> = BTreeMap::new();
            for change in portion {
                let rows = tables.entry(change.table).or_default();
                match &change.value {
                    Some(value) => rows.insert(change.key.as_slice(), value.as_slice()),
                    None => rows.remove(change.key.as_slice()),
                }
            }
            for (table, rows) in tables {
                self.tree(table)?.apply_batch(rows).map_err(|e| engine("write rows", &e))?;
            }
        }
        Ok(())
    }

    fn flush_and_sync(&self) -> Result<()> {
        let _one_at_a_time = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.db.flush().map_err(|e| engine("flush", &e))?;
        self.data.sync_all().map_err(|e| Error::io("sync", "index/db", e))
    }

    fn drop_tables(&self) -> Result<()> {
        let mut trees = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        trees.clear();
        let default = self.db.name();
        for name in self.db.tree_names() {
            if name != default {
                self.db.drop_tree(name).map_err(|e| engine("drop a table", &e))?;
            }
        }
        Ok(())
    }
}

impl Index for SledIndex {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.tree(table)?.get(key).map_err(|e| engine("read a row", &e))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn apply(&self, batch: &Batch) -> Result<()> {
        self.change(|| self.apply_changes(batch))
    }

    fn flush(&self) -> Result<()> {
        self.change(|| self.flush_and_sync())
    }

    fn scan(&self, table: Table, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for row in self.tree(table)?.range(prefix.max(from)..).take(limit) {
            let (key, value) = row.map_err(|e| engine("read rows", &e))?;
            if !key.starts_with(prefix) {
                break;
            }
            rows.push((key.to_vec(), value.to_vec()));
        }
        Ok(rows)
    }

    fn clear(&self) -> Result<()> {
        self.change(|| self.drop_tables())
    }
}

/// Makes the existence of sled's files durable: their contents, their names, and the folder's own name.
fn sync_created(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        File::open(entry?.path())?.sync_all()?;
    }
    File::open(dir)?.sync_all()?;
    sync_parent(dir)
}

fn engine(action: &'static str, error: &::sled::Error) -> Error {
    match error {
        ::sled::Error::Io(e) if e.kind() == io::ErrorKind::StorageFull => {
            Error::DiskFull { action, file: "index".to_string() }
        }
        other => Error::Index { action, why: other.to_string() },
    }
}
