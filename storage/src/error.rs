//! Everything that can go wrong, as facts with values.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Thirty-two bytes that print as hex: a store's identity or a link of the chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {action} `{file}`: {source}; stop, look after the disk, then start again")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is no space left.
    #[error("the disk is full while trying to {action} `{file}`; free space, then start again")]
    DiskFull {
        /// What was tried.
        action: &'static str,
        /// On which file.
        file: String,
    },
    /// Another process, or another handle in this one, has the store open.
    #[error(
        "the store in `{}` is in use by another process; stop that one first, or choose another folder",
        dir.display()
    )]
    Locked {
        /// The folder.
        dir: PathBuf,
    },
    /// The files belong to another store.
    #[error("`{file}` belongs to store {found}, not to {expected}; check the folder and the key, never mix two stores")]
    ForeignStore {
        /// The file (or index) that tells.
        file: String,
        /// Who opens the store.
        expected: Digest,
        /// Whose store it is.
        found: Digest,
    },
    /// The files were written in another format.
    #[error(
        "`{file}` has format version {found}, this program reads {supported}; use the program version that wrote it, or migrate"
    )]
    FormatVersion {
        /// The file that tells.
        file: String,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// The journal is damaged: bytes changed after they were durable.
    #[error(
        "journal segment `{segment}` is damaged at byte {offset}: {why}; do not delete anything: restore this segment from a copy (standby or backup) and start again"
    )]
    Corrupt {
        /// The segment's file.
        segment: String,
        /// Where in it.
        offset: u64,
        /// What does not fit.
        why: &'static str,
    },
    /// A row of the index is damaged.
    #[error("row {key} of table `{table}` is damaged; rebuild the index from the journal")]
    CorruptRow {
        /// The table.
        table: String,
        /// The key, in hex.
        key: String,
    },
    /// A small file is damaged.
    #[error("the file `{name}` is damaged; restore it from a copy")]
    CorruptFile {
        /// The file's name.
        name: String,
    },
    /// Records that are needed were moved away from the archive.
    #[error(
        "record {wanted} is needed, but the oldest one here is {first}; bring back the archived segments before it"
    )]
    HistoryMissing {
        /// The record asked for.
        wanted: u64,
        /// The oldest record at hand.
        first: u64,
    },
    /// There is no such record yet.
    #[error("there is no record {record}; the last one is {last}")]
    NoSuchRecord {
        /// The record asked for.
        record: u64,
        /// The newest durable one.
        last: u64,
    },
    /// The checkpoint mark is ahead of the journal: the journal is older than what was once durable.
    #[error(
        "the index reflects record {checkpoint}, the journal ends at {last}: the journal was restored from an older copy or lost records; restore the newest journal, do not go on with this one"
    )]
    IndexAhead {
        /// What the index reflects.
        checkpoint: u64,
        /// Where the journal ends.
        last: u64,
    },
    /// The index was made from another history of the same store.
    #[error(
        "the index was made from another history: record {record} has another hash in the journal; find out which one is right, then restore the journal or rebuild the index"
    )]
    Diverged {
        /// The checkpointed record.
        record: u64,
    },
    /// A record is larger than [`crate::MAX_RECORD_BYTES`].
    #[error("a record of {bytes} bytes exceeds the limit of {limit}; split it")]
    RecordTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// One write is larger than [`crate::MAX_BATCH_BYTES`].
    #[error("a write of {bytes} bytes exceeds the limit of {limit}; append in several calls")]
    BatchTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A key or value is larger than [`crate::MAX_KEY_BYTES`] or [`crate::MAX_VALUE_BYTES`].
    #[error("a {part} of {bytes} bytes in table `{table}` exceeds the limit of {limit}; split the row")]
    RowTooLarge {
        /// The table.
        table: &'static str,
        /// `key` or `value`.
        part: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A small file is larger than [`crate::MAX_FILE_BYTES`].
    #[error("the file `{name}` of {bytes} bytes exceeds the limit of {limit}; large data belongs into the journal")]
    FileTooLarge {
        /// Its name.
        name: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A small file's name is not allowed.
    #[error("`{name}` cannot name a file; use 1 to 64 of a-z, 0-9 and `-`")]
    FileName {
        /// The name.
        name: String,
    },
    /// A checkpoint may not reflect what is not durable in the journal.
    #[error("a checkpoint up to {upto} was asked for, the journal ends at {last}; append first")]
    CheckpointAhead {
        /// What was asked for.
        upto: u64,
        /// Where the journal ends.
        last: u64,
    },
    /// A checkpoint never moves back.
    #[error(
        "a checkpoint up to {upto} was asked for, the index reflects {checkpointed} already; rebuild to start over"
    )]
    CheckpointBehind {
        /// What was asked for.
        upto: u64,
        /// Where the mark stands.
        checkpointed: u64,
    },
    /// The index engine failed.
    #[error(
        "the index cannot {action}: {why}; stop, look after the disk, then start again (the index can be rebuilt from the journal)"
    )]
    Index {
        /// What was tried.
        action: &'static str,
        /// What the engine said.
        why: String,
    },
    /// An earlier write or sync failed; nothing more is written by this handle.
    #[error("the store stopped after an earlier failure ({why}); end the process and start again")]
    Poisoned {
        /// The first failure.
        why: String,
    },
}

impl Error {
    /// Whether space on the disk is what is missing.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Error::DiskFull { .. })
    }

    /// Whether the files themselves are damaged, so that trying again cannot help.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Error::Corrupt { .. }
                | Error::CorruptRow { .. }
                | Error::CorruptFile { .. }
                | Error::IndexAhead { .. }
                | Error::Diverged { .. }
                | Error::HistoryMissing { .. }
        )
    }

    pub(crate) fn io(action: &'static str, file: impl Into<String>, source: io::Error) -> Error {
        let file = file.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::DiskFull { action, file },
            _ => Error::Io { action, file, source },
        }
    }
}
