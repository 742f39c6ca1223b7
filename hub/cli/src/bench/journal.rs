//! How much of the disk the hub's journal takes, read from its segments while the hub runs.
//!
//! Segments are preallocated, so that their sizes say nothing. The headers of their records do.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Where the first record stands in a segment, and what records are padded to; see the storage crate's text.
const SEGMENT_HEADER_BYTES: u64 = 128;
const RECORD_HEADER_BYTES: u64 = 64;
const KIND_RECORD: [u8; 4] = *b"REC1";

/// Bytes of the records `after + 1` to `upto`, with their headers and padding.
pub fn bytes_between(store: &Path, after: u64, upto: u64) -> io::Result<u64> {
    let mut segments: Vec<(u64, PathBuf)> = Vec::new();
    for folder in ["journal", "archive"] {
        let Ok(entries) = std::fs::read_dir(store.join(folder)) else { continue };
        for entry in entries {
            let path = entry?.path();
            let first = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            segments.extend(first.map(|first| (first, path)));
        }
    }
    segments.sort_unstable();
    segments.dedup_by_key(|(first, _)| *first);
    let mut bytes = 0;
    for (i, (first, path)) in segments.iter().enumerate() {
        let behind = segments.get(i + 1).is_some_and(|(next, _)| *next <= after + 1);
        if !behind && *first <= upto {
            bytes += of_segment(&File::open(path)?, after, upto)?;
        }
    }
    Ok(bytes)
}

fn of_segment(file: &File, after: u64, upto: u64) -> io::Result<u64> {
    let (len, mut at, mut bytes) = (file.metadata()?.len(), SEGMENT_HEADER_BYTES, 0);
    while at + RECORD_HEADER_BYTES <= len {
        let mut header = [0; RECORD_HEADER_BYTES as usize];
        file.read_exact_at(&mut header, at)?;
        let field = |from: usize| u64::from_le_bytes(header[from..from + 8].try_into().expect("eight bytes"));
        let payload = field(4) & u64::from(u32::MAX);
        let number = field(8);
        if header[..4] != KIND_RECORD || number > upto {
            break;
        }
        let size = RECORD_HEADER_BYTES + payload.next_multiple_of(RECORD_HEADER_BYTES);
        if number > after {
            bytes += size;
        }
        at += size;
    }
    Ok(bytes)
}
