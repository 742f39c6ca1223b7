//! The bytes of a segment: a header, then records one after the other, then zeros.
//!
//! ```text
//! segment header (128)  magic 8 | version 4 | 0 4 | identity 32 | first record 8 | length 8 | chain 32 | 0 28 | crc 4
//! record header   (64)  kind 4 | payload length 4 | number 8 | first number of its write 8 | chain 32 | payload crc 4 | crc 4
//! payload               padded with zeros to a multiple of 64
//! ```
//! All numbers are little-endian. A record's chain value is `blake3(chain value before ‖ first 24 header bytes ‖
//! payload)`. A record header starts at a multiple of 64, so it never spans two sectors and a torn write leaves it
//! whole or blank: anything else there is rot. "First number of its write" tells a tail that was never finished (all
//! records behind the gap are of the same write) from a hole in what was durable.

use crate::backend::memory::SECTOR_BYTES;
use crate::{BackendFile, Digest, Error, Result};

/// The version of the journal's format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The largest payload of a record. A flush record of the busiest hub stays far below; the bound keeps a damaged length
/// from asking for all memory.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// The largest single write (headers and padding included). It is one buffer in memory and lies in one segment.
pub const MAX_BATCH_BYTES: usize = 64 << 20;

pub(super) const SEGMENT_HEADER_BYTES: u64 = 128;
pub(super) const RECORD_HEADER_BYTES: u64 = 64;
const SEGMENT_HEADER_LEN: usize = 128;
const RECORD_HEADER_LEN: usize = 64;
/// Headers start at multiples of this.
pub(super) const ALIGN: u64 = 64;
const MAGIC: [u8; 8] = *b"PAYHUBJ\0";
const KIND_RECORD: u32 = u32::from_le_bytes(*b"REC1");
const KIND_CLOSED: u32 = u32::from_le_bytes(*b"END1");

/// What every segment says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub identity: [u8; 32],
    pub first: u64,
    pub len: u64,
    /// The chain value before the first record.
    pub chain: [u8; 32],
}

/// The chain value before record 1.
pub(super) fn genesis(identity: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("payhub 2026 journal genesis", identity)
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..48].copy_from_slice(&self.identity);
        bytes[48..56].copy_from_slice(&self.first.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.len.to_le_bytes());
        bytes[64..96].copy_from_slice(&self.chain);
        let crc = crc32fast::hash(&bytes[..124]);
        bytes[124..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks the header of `name`, which belongs to `identity` and has `first` in its name.
    pub fn read(file: &dyn BackendFile, name: &str, identity: &[u8; 32], first: u64) -> Result<SegmentHeader> {
        let damaged = |why| Error::Corrupt { segment: name.to_string(), offset: 0, why };
        let len = file.len().map_err(|e| Error::io("measure", name, e))?;
        if len < SEGMENT_HEADER_BYTES {
            return Err(damaged("the file is shorter than a segment header"));
        }
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        file.read_at(0, &mut bytes).map_err(|e| Error::io("read", name, e))?;
        if bytes[0..8] != MAGIC {
            return Err(damaged("it does not start like a segment"));
        }
        if crc32fast::hash(&bytes[..124]) != u32_at(&bytes, 124) {
            return Err(damaged("the segment header's CRC does not match"));
        }
        let version = u32_at(&bytes, 8);
        if version != FORMAT_VERSION {
            return Err(Error::FormatVersion { file: name.to_string(), found: version, supported: FORMAT_VERSION });
        }
        let header = SegmentHeader {
            identity: digest_at(&bytes, 16),
            first: u64_at(&bytes, 48),
            len: u64_at(&bytes, 56),
            chain: digest_at(&bytes, 64),
        };
        if header.identity != *identity {
            let (expected, found) = (Digest(*identity), Digest(header.identity));
            return Err(Error::ForeignStore { file: name.to_string(), expected, found });
        }
        if header.first != first {
            return Err(damaged("its name and its header differ in the first record"));
        }
        if header.len != len || len % ALIGN != 0 {
            return Err(damaged("the file's length is not the one in its header"));
        }
        Ok(header)
    }
}

/// A record's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHeader {
    kind: u32,
    pub payload_len: usize,
    pub number: u64,
    pub write_first: u64,
    pub chain: [u8; 32],
    payload_crc: u32,
}

impl RecordHeader {
    fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut bytes = [0; RECORD_HEADER_LEN];
        bytes[0..4].copy_from_slice(&self.kind.to_le_bytes());
        let len = u32::try_from(self.payload_len).expect("payloads are bounded by MAX_RECORD_BYTES");
        bytes[4..8].copy_from_slice(&len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.write_first.to_le_bytes());
        bytes[24..56].copy_from_slice(&self.chain);
        bytes[56..60].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in these bytes, if its CRC holds.
    fn decode(bytes: &[u8]) -> Option<RecordHeader> {
        let kind = u32_at(bytes, 0);
        let whole = crc32fast::hash(&bytes[..60]) == u32_at(bytes, 60);
        (whole && (kind == KIND_RECORD || kind == KIND_CLOSED)).then(|| RecordHeader {
            kind,
            payload_len: u32_at(bytes, 4) as usize,
            number: u64_at(bytes, 8),
            write_first: u64_at(bytes, 16),
            chain: digest_at(bytes, 24),
            payload_crc: u32_at(bytes, 56),
        })
    }

    fn link(&self, before: &[u8; 32], payload: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(before).update(&self.encode()[..24]).update(payload);
        *hasher.finalize().as_bytes()
    }

    fn seal(mut self, before: &[u8; 32], payload: &[u8]) -> RecordHeader {
        self.payload_crc = crc32fast::hash(payload);
        self.chain = self.link(before, payload);
        self
    }
}

/// The bytes that a record with such a payload takes.
pub(super) fn record_bytes(payload_len: usize) -> u64 {
    RECORD_HEADER_BYTES + (payload_len as u64).next_multiple_of(ALIGN)
}

/// Appends a record to `buffer`; returns the chain value after it.
pub(super) fn encode_record(
    buffer: &mut Vec<u8>,
    number: u64,
    write_first: u64,
    before: &[u8; 32],
    payload: &[u8],
) -> [u8; 32] {
    let blank = RecordHeader {
        kind: KIND_RECORD,
        payload_len: payload.len(),
        number,
        write_first,
        chain: [0; 32],
        payload_crc: 0,
    };
    let header = blank.seal(before, payload);
    buffer.extend_from_slice(&header.encode());
    buffer.extend_from_slice(payload);
    buffer.resize(buffer.len().next_multiple_of(RECORD_HEADER_LEN), 0);
    header.chain
}

/// The mark of a clean shutdown, in the place where the record `number` would go.
pub(super) fn encode_closed(number: u64, before: &[u8; 32]) -> [u8; RECORD_HEADER_LEN] {
    let blank =
        RecordHeader { kind: KIND_CLOSED, payload_len: 0, number, write_first: number, chain: [0; 32], payload_crc: 0 };
    blank.seal(before, &[]).encode()
}

/// What lies at a place where a record may start.
#[derive(Debug)]
pub(super) enum Step {
    /// A good record; its payload is in the window until the next read.
    Record(RecordHeader),
    /// The mark of a clean shutdown.
    Closed,
    /// Nothing, or the end of the segment.
    Blank,
    /// A record of which some sectors are blank: a write that did not finish, unless something newer lies behind it.
    Torn,
}

/// Reads a segment forward, record by record, and checks all that can be checked.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    window: Window<'a>,
    /// Where the next record starts.
    pub offset: u64,
    /// Its number.
    pub next: u64,
    /// The chain value before it.
    pub chain: [u8; 32],
}

impl<'a> Walk<'a> {
    pub fn new(file: &'a dyn BackendFile, name: &'a str, len: u64, start: (u64, u64, [u8; 32])) -> Walk<'a> {
        let window = Window { file, name, len, ahead: WINDOW_BYTES as u64, at: 0, bytes: Vec::new() };
        Walk { window, offset: start.0, next: start.1, chain: start.2 }
    }

    /// For a look at one record: reads little more than asked for.
    pub fn short(mut self) -> Walk<'a> {
        self.window.ahead = SHORT_WINDOW_BYTES;
        self
    }

    /// Examines what lies ahead; moves on behind it if it is a record.
    pub fn step(&mut self) -> Result<Step> {
        let at = self.offset;
        if at + RECORD_HEADER_BYTES > self.window.len {
            return Ok(Step::Blank);
        }
        let damaged = self.window.damage(at);
        let bytes = self.window.slice(at, RECORD_HEADER_BYTES)?;
        if is_blank(bytes) {
            return Ok(Step::Blank);
        }
        let header = RecordHeader::decode(bytes).ok_or_else(|| damaged("a record header's CRC does not match"))?;
        if header.number != self.next || header.write_first > header.number {
            return Err(damaged("a record has the wrong number"));
        }
        if header.payload_len > MAX_RECORD_BYTES || at + record_bytes(header.payload_len) > self.window.len {
            return Err(damaged("a record's length exceeds its segment"));
        }
        let body =
            self.window.slice(at + RECORD_HEADER_BYTES, record_bytes(header.payload_len) - RECORD_HEADER_BYTES)?;
        let (payload, padding) = body.split_at(header.payload_len);
        if crc32fast::hash(payload) != header.payload_crc {
            let torn = has_blank_sector(at + RECORD_HEADER_BYTES, payload);
            return if torn { Ok(Step::Torn) } else { Err(damaged("a record's CRC does not match")) };
        }
        if header.link(&self.chain, payload) != header.chain {
            return Err(damaged("a record does not continue the chain"));
        }
        if !is_blank(padding) {
            return Err(damaged("the padding behind a record is not blank"));
        }
        if header.kind == KIND_CLOSED {
            return Ok(Step::Closed);
        }
        self.offset = at + record_bytes(header.payload_len);
        self.next = header.number + 1;
        self.chain = header.chain;
        Ok(Step::Record(header))
    }

    /// The payload of the record that [`Walk::step`] just returned.
    pub fn payload(&mut self, header: &RecordHeader) -> Result<&[u8]> {
        let start = self.offset - record_bytes(header.payload_len) + RECORD_HEADER_BYTES;
        self.window.slice(start, header.payload_len as u64)
    }

    /// Moves on behind the record ahead after a look at its header only. `None` if there is none.
    pub fn skip(&mut self) -> Result<Option<()>> {
        let at = self.offset;
        if at + RECORD_HEADER_BYTES > self.window.len {
            return Ok(None);
        }
        let damaged = self.window.damage(at);
        let bytes = self.window.slice(at, RECORD_HEADER_BYTES)?;
        let header = match RecordHeader::decode(bytes) {
            Some(header) if header.kind == KIND_RECORD && header.number == self.next => header,
            Some(_) | None => return Err(damaged("a record header is damaged")),
        };
        self.offset = at + record_bytes(header.payload_len);
        self.next += 1;
        self.chain = header.chain;
        Ok(Some(()))
    }

    /// The first byte from `from` on that is not zero.
    pub fn first_not_blank(&mut self, from: u64) -> Result<Option<u64>> {
        let mut at = from;
        while at < self.window.len {
            let count = (self.window.len - at).min(WINDOW_BYTES as u64);
            let bytes = self.window.slice(at, count)?;
            if let Some(place) = bytes.iter().position(|byte| *byte != 0) {
                return Ok(Some(at + place as u64));
            }
            at += count;
        }
        Ok(None)
    }

    /// Where behind the gap ahead a record of a *later* write lies. Writes are synced one after the other, so such a
    /// record proves that what is missing had been durable.
    pub fn later_write(&mut self) -> Result<Option<u64>> {
        let mut at = self.offset;
        while let Some(place) = self.first_not_blank(at)? {
            at = place / ALIGN * ALIGN;
            if at + RECORD_HEADER_BYTES > self.window.len {
                return Ok(None);
            }
            let header = RecordHeader::decode(self.window.slice(at, RECORD_HEADER_BYTES)?);
            if header.is_some_and(|header| header.write_first > self.next) {
                return Ok(Some(at));
            }
            at += ALIGN;
        }
        Ok(None)
    }
}

/// How much of a segment is read at once.
const WINDOW_BYTES: usize = 1 << 20;
/// How much is read at once when one record is wanted.
const SHORT_WINDOW_BYTES: u64 = 4 << 10;

#[derive(Debug)]
struct Window<'a> {
    file: &'a dyn BackendFile,
    name: &'a str,
    len: u64,
    ahead: u64,
    at: u64,
    bytes: Vec<u8>,
}

impl Window<'_> {
    /// `count` bytes from `at`, which lie within the file.
    fn slice(&mut self, at: u64, count: u64) -> Result<&[u8]> {
        let inside = at >= self.at && at + count <= self.at + self.bytes.len() as u64;
        if !inside {
            let wanted = count.max((self.len - at).min(self.ahead));
            self.bytes.resize(index(wanted), 0);
            self.at = at;
            let read = self.file.read_at(at, &mut self.bytes);
            if let Err(error) = read {
                self.bytes.clear();
                return Err(Error::io("read", self.name, error));
            }
        }
        let start = index(at - self.at);
        Ok(&self.bytes[start..start + index(count)])
    }

    fn damage(&self, offset: u64) -> impl Fn(&'static str) -> Error + use<> {
        let segment = self.name.to_string();
        move |why| Error::Corrupt { segment: segment.clone(), offset, why }
    }
}

/// Whether a sector that holds nothing of the header is blank where the payload reaches into it.
fn has_blank_sector(offset: u64, payload: &[u8]) -> bool {
    // The header's own sector was written, so what of the payload lies in it was written too.
    let in_header_sector = match index(offset % SECTOR_BYTES as u64) {
        0 => 0,
        used => SECTOR_BYTES - used,
    };
    let rest = payload.get(in_header_sector..).unwrap_or(&[]);
    rest.chunks(SECTOR_BYTES).any(is_blank)
}

fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn index(value: u64) -> usize {
    usize::try_from(value).expect("a window is smaller than memory")
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn digest_at(bytes: &[u8], at: usize) -> [u8; 32] {
    bytes[at..at + 32].try_into().expect("thirty-two bytes")
}
