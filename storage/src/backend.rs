//! The door to the disk. Journal and small files do nothing that is not one of these operations, so a disk that loses,
//! tears, reorders or refuses can stand in for the real one and every crash point can be enumerated in process.

pub(crate) mod memory;

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, statvfs};

use crate::{Error, Result};

/// A folder of files. Names are relative, with `/` between folder and file.
pub trait Backend: Send + Sync + Debug {
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn BackendFile>>;
    /// Makes an empty file, replacing one of that name. Its name is durable after [`Backend::sync_dir`].
    fn create(&self, name: &str) -> io::Result<Arc<dyn BackendFile>>;
    /// Makes a folder, durably; one that exists is left as it is.
    fn create_dir(&self, dir: &str) -> io::Result<()>;
    /// Renames atomically, replacing what has the new name. Durable after a sync of both folders.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The names of the files in a folder (without the folder), sorted.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// The bytes an ordinary process may still write.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file. Offsets are explicit, so handles are shared freely between threads.
pub trait BackendFile: Send + Sync + Debug {
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `buffer` from `offset`; an end of file before that is an error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`. Durable after [`BackendFile::sync`] only.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts or extends (with zeros) to `len`.
    fn truncate(&self, len: u64) -> io::Result<()>;
    /// Writes zeros up to `len`, so that later writes need neither new blocks nor a new length.
    fn preallocate(&self, len: u64) -> io::Result<()>;
    /// Makes data and length durable.
    fn sync(&self) -> io::Result<()>;
}

/// A folder on the real disk, locked for this handle as long as it lives.
#[derive(Debug)]
pub struct FileBackend {
    dir: PathBuf,
    /// Holds the advisory lock; the kernel releases it when the process ends, however it ends.
    _lock: File,
}

impl FileBackend {
    /// Opens (or makes) the folder and takes its exclusive lock.
    ///
    /// # Errors
    /// [`Error::Locked`] if any other handle has it, in this process or another.
    pub fn open(dir: &Path) -> Result<FileBackend> {
        let failed = |action| move |source| Error::io(action, dir.display().to_string(), source);
        fs::create_dir_all(dir).map_err(failed("make the folder"))?;
        let lock = File::open(dir).map_err(failed("open the folder"))?;
        let taken = patiently(|| match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Some(Ok(())),
            Err(rustix::io::Errno::WOULDBLOCK) => None,
            Err(errno) => Some(Err(failed("lock the folder")(errno.into()))),
        });
        taken.unwrap_or_else(|| Err(Error::Locked { dir: dir.to_path_buf() }))?;
        let backend = FileBackend { dir: dir.to_path_buf(), _lock: lock };
        backend.sync_dir("").map_err(failed("sync the folder"))?;
        sync_parent(dir).map_err(failed("sync the folder above"))?;
        Ok(backend)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// How long a lock may be held by somebody who is just going away: a handle that was dropped while a child process was
/// being started, or sled's threads, which let go of the file a little after the database was dropped.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Tries to take a lock until there is an answer, or none in time.
pub(crate) fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let since = Instant::now();
    loop {
        match attempt() {
            None if since.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_RETRY),
            answer => return answer,
        }
    }
}

/// Syncs the folder that holds `path`.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let path = path.canonicalize()?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

impl Backend for FileBackend {
    fn open(&self, name: &str) -> io::Result<Arc<dyn BackendFile>> {
        Ok(Arc::new(OpenOptions::new().read(true).write(true).open(self.path(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn BackendFile>> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).clone();
        Ok(Arc::new(options.open(self.path(name))?))
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        fs::create_dir_all(self.path(dir))?;
        sync_parent(&self.path(dir))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path(dir))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}

impl BackendFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        // Real zeros instead of `fallocate`: blocks that are only reserved cost a metadata write at each first sync.
        const CHUNK_BYTES: usize = 1 << 20;
        let zeros = vec![0; CHUNK_BYTES.min(usize::try_from(len).unwrap_or(CHUNK_BYTES))];
        let mut at = self.metadata()?.len();
        while at < len {
            let count = zeros.len().min(usize::try_from(len - at).unwrap_or(usize::MAX));
            self.write_all_at(&zeros[..count], at)?;
            at += count as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
