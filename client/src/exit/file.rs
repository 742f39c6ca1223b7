//! The kit in the member's store folder, kept fresh off the payment path.
//!
//! The owner hands over what a kit is made of, a few times a second at most; a thread of its own builds the file and
//! replaces it, once a second at most, and a last time when the owner ends.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Parts;

/// Time between two versions of the file.
const WRITE_EVERY: Duration = Duration::from_secs(1);

/// The file and the thread that writes it; dropping it leaves the last version that was handed over.
pub(crate) struct KitFile {
    parts: Option<mpsc::Sender<Parts>>,
    thread: Option<JoinHandle<()>>,
}

impl KitFile {
    /// Keeps a kit at `path` from now on.
    pub(crate) fn at(path: PathBuf) -> io::Result<KitFile> {
        let (sender, parts) = mpsc::channel();
        let thread = std::thread::Builder::new().name("payhub-exit-kit".to_owned());
        let thread = thread.spawn(move || keep(&path, &parts))?;
        Ok(KitFile { parts: Some(sender), thread: Some(thread) })
    }

    /// Hands over what the next version is made of.
    pub(crate) fn offer(&self, parts: Parts) {
        if let Some(sender) = &self.parts {
            // The thread ends only with this value.
            let _ = sender.send(parts);
        }
    }
}

impl Drop for KitFile {
    fn drop(&mut self) {
        self.parts = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep(path: &Path, parts: &mpsc::Receiver<Parts>) {
    let mut waiting: Option<Parts> = None;
    let mut write_at = Instant::now();
    loop {
        let left = write_at.saturating_duration_since(Instant::now());
        let next = match &waiting {
            None => parts.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => parts.recv_timeout(left),
        };
        match next {
            Ok(newer) => {
                waiting = Some(newer);
                if Instant::now() < write_at {
                    continue;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                write_if_any(path, waiting.take());
                return;
            }
        }
        write_if_any(path, waiting.take());
        write_at = Instant::now() + WRITE_EVERY;
    }
}

fn write_if_any(path: &Path, parts: Option<Parts>) {
    let Some(parts) = parts else { return };
    if let Err(error) = replace(path, parts.assemble().to_json().as_bytes()) {
        tracing::error!(%error, path = %path.display(), "the exit kit cannot be written");
    }
}

/// Replaces the file by a durable one, or leaves it as it was.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
