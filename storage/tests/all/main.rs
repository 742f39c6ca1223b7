//! What the store promises, tried on a disk that lies and on a real one.

mod crash;
mod damage;
mod disk;
mod journal;
mod store;

use std::sync::Arc;

use payhub_storage::{Error, Index, Journal, JournalConfig, MemoryBackend, MemoryIndex, Result, Store, StoreConfig};

const IDENTITY: [u8; 32] = [7; 32];

/// Small segments, so that a few records fill one.
fn small() -> JournalConfig {
    JournalConfig { segment_bytes: 4096 }
}

fn config() -> StoreConfig {
    StoreConfig { journal: small(), ..StoreConfig::default() }
}

fn open_journal(disk: &MemoryBackend) -> Result<Journal> {
    Journal::open(Arc::new(disk.clone()), small(), &IDENTITY)
}

fn open_store(disk: &MemoryBackend, index: &MemoryIndex) -> Result<Store> {
    open_boxed(disk, Box::new(index.clone()), config())
}

fn open_boxed(disk: &MemoryBackend, index: Box<dyn Index>, config: StoreConfig) -> Result<Store> {
    Store::open_with(Arc::new(disk.clone()), index, &IDENTITY, config)
}

/// All records, as reading shows them.
fn records(journal: &Journal) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    journal.replay(1, |number, payload| {
        assert_eq!(number, found.len() as u64 + 1);
        found.push(payload.to_vec());
        Ok::<(), Error>(())
    })?;
    Ok(found)
}

/// A payload without blank sectors, so that a missing sector never looks like data.
fn payload(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| 1 + ((number as usize * 31 + at * 7) % 255) as u8).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}
