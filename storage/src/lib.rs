//! The store: bytes that are still there after the power went away. It knows bytes, not the protocol.
//!
//! # What it is
//! ```text
//!            append ─► Journal (the truth: checksummed, chained, one fdatasync per flush)
//!  Store ─┤                │ replay of what lies after the checkpoint
//!            checkpoint ─► Index (rows, written behind, rebuilt from the journal at any time)
//!            put_file ───► small files, replaced atomically
//! ```
//! - [`Journal`] is append-only. A record that [`Journal::append`] has numbered is durable. Each record carries its
//!   length, its number, a CRC and the hash of everything before it, so damage is found and never read as data.
//! - [`Index`] holds rows for look-ups. [`StoreView::checkpoint`] writes rows, makes them durable and only then moves the
//!   mark "the rows reflect the journal up to record n". Recovery is the rows plus the journal after the mark.
//! - [`Backend`] is the small door to the disk that journal and files go through. [`FileBackend`] is a folder;
//!   [`MemoryBackend`] is a disk that lies, for crash tests.
//!
//! # The contract with the consumer
//! 1. Decide, [`Journal::append`], and only then act. What was not acknowledged may or may not be there after a crash, and
//!    only as a prefix: if record n is there, so is every record before it.
//! 2. Rows must be **idempotent under replay**. After a crash rows may be ahead of the mark (any subset of an unfinished
//!    checkpoint), and every record after the mark is replayed over them. A row must therefore be a function of the
//!    journal alone ("the newest voucher is X"), never an increment of what the row held before.
//! 3. Any error of a write or sync ends the store: the handle is poisoned, every later change returns
//!    [`Error::Poisoned`], and the process should stop. A failed sync is never tried again, because the kernel may have
//!    dropped the pages and would report success for data that is nowhere. Reading goes on.
//!
//! # What we assume about the medium
//! - An aligned sector of 512 bytes is written wholly or not at all (disks guard sectors with their own code; a half
//!   written one reads as an error, not as a mixture).
//! - Between two syncs sectors may reach the disk in any order, partly, or not at all.
//! - When `fdatasync` of a file returned success, its data and length are durable; when `fsync` of a folder returned
//!   success, the names in it are. Renaming within one file system is atomic.
//! - After a *failed* sync the page cache may show data that the disk does not have. A start after anything but a clean
//!   shutdown therefore copies the last segment to a new file, syncs file and folder, and only then answers.
//! - Nobody else writes into the folder. An advisory lock refuses a second process.
//! - Bits may rot anywhere, at any time. CRC and chain find it. One case is left to the layer above: if the *last* write
//!   before an unclean end is replaced by blank sectors by a disk that had acknowledged it, it looks like a write that
//!   never finished. The newest signed batch that the counterparties hold is the witness against that.
//! - A disk that restores an older but consistent state is not noticed here either, for the same reason; only an index
//!   that is ahead of the journal is ([`Error::IndexAhead`]).

mod backend;
mod error;
mod index;
mod journal;
mod store;

pub use backend::memory::{Crash, Fault, MemoryBackend, SECTOR_BYTES};
pub use backend::{Backend, BackendFile, FileBackend};
pub use error::{Digest, Error, Result};
pub use index::memory::MemoryIndex;
pub use index::sled::{SledConfig, SledIndex};
pub use index::{Batch, Change, Index, MAX_KEY_BYTES, MAX_VALUE_BYTES, Row, Table};
pub use journal::{FORMAT_VERSION, Journal, JournalConfig, JournalReader, MAX_BATCH_BYTES, MAX_RECORD_BYTES};
pub use store::{IndexStart, MAX_FILE_BYTES, Store, StoreConfig, StoreView};
