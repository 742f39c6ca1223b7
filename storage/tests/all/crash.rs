//! The power goes at every operation, and every policy of the disk is tried on what is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use payhub_storage::{Batch, Crash, Error, Fault, Index, MemoryBackend, MemoryIndex, Result, Row, Store, Table};

use crate::{Random, open_boxed, open_journal, open_store, payload, records};

/// What the world outside knows when the power goes.
#[derive(Clone, Debug, Default)]
struct Witness {
    /// Everything that was handed to the journal, acknowledged or not.
    appended: Vec<Vec<u8>>,
    acknowledged: usize,
    checkpointed: u64,
    /// Values of the small file that may be there: the acknowledged one and the one under way.
    counter: Vec<Option<Vec<u8>>>,
}

/// The newest record per key, as rows and as a fold over records: what a consumer keeps.
fn key_of(number: u64) -> Vec<u8> {
    vec![(number % 5) as u8]
}

fn fold(records: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let rows = records.iter().enumerate();
    rows.map(|(at, record)| (key_of(at as u64 + 1), record[..record.len().min(64)].to_vec())).collect()
}

/// A life of a store: appends of all sizes, batches, checkpoints, archiving, a small file, clean and unclean ends.
fn live(disk: &MemoryBackend, index: &dyn Fn() -> Box<dyn Index>, seed: u64, witness: &mut Witness) -> Result<()> {
    let mut random = Random(seed);
    witness.counter = vec![None];
    for life in 0..3 {
        let mut store = open_boxed(disk, index(), crate::config())?;
        for step in 0..9 {
            let count = if step % 3 == 2 { 1 + random.below(4) } else { 1 };
            let payloads: Vec<Vec<u8>> = (0..count)
                .map(|nth| {
                    let number = witness.appended.len() as u64 + nth + 1;
                    payload(number, random.below(1500) as usize)
                })
                .collect();
            witness.appended.extend(payloads.iter().cloned());
            store.journal().append_many(&payloads)?;
            witness.acknowledged = witness.appended.len();
            if step % 4 == 3 {
                checkpoint(&store, witness)?;
                store.view().archive()?;
            }
            if step % 4 == life % 4 {
                store.view().prepare_segment()?;
            }
            if step == 5 {
                let value = vec![life as u8; 700];
                witness.counter.push(Some(value.clone()));
                store.put_file("counter", &value)?;
                witness.counter.drain(..witness.counter.len() - 1);
            }
        }
        if life == 0 {
            store.close()?;
        }
    }
    Ok(())
}

fn checkpoint(store: &Store, witness: &mut Witness) -> Result<()> {
    let mut batch = Batch::new();
    for (key, value) in fold(&witness.appended[..witness.acknowledged]) {
        batch.put("newest", key, value);
    }
    store.checkpoint(batch, witness.acknowledged as u64)?;
    witness.checkpointed = witness.acknowledged as u64;
    Ok(())
}

/// Opens what a crash left and holds it against the witness.
fn check(disk: &MemoryBackend, index: &MemoryIndex, witness: &Witness, story: &str) {
    let mut store = open_store(disk, index).unwrap_or_else(|error| panic!("{story}: {error}"));
    let found = records(store.journal()).unwrap_or_else(|error| panic!("{story}: {error}"));
    assert!(found.len() >= witness.acknowledged, "{story}: an acknowledged record is missing");
    assert!(found.len() <= witness.appended.len(), "{story}: a record appeared");
    assert!(found == witness.appended[..found.len()], "{story}: not a beginning of what was appended");

    let checkpointed = store.checkpointed();
    assert!(checkpointed >= witness.checkpointed && checkpointed <= found.len() as u64, "{story}: the mark");
    let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = store.scan("newest", &[], &[], 100).unwrap().into_iter().collect();
    let replayed = store.replay_tail(|number, record| {
        rows.insert(key_of(number), record[..record.len().min(64)].to_vec());
        Ok::<(), Error>(())
    });
    replayed.unwrap_or_else(|error| panic!("{story}: {error}"));
    assert!(rows == fold(&found), "{story}: rows and replay differ from the journal");

    let counter = store.get_file("counter").unwrap_or_else(|error| panic!("{story}: {error}"));
    assert!(witness.counter.contains(&counter), "{story}: the small file");

    let number = store.append(b"after the crash").unwrap_or_else(|error| panic!("{story}: {error}"));
    assert_eq!(number, found.len() as u64 + 1, "{story}");
}

/// Seeds per policy: the first two leave nothing to chance.
const IMAGES: [(Crash, u64); 4] = [(Crash::Lost, 1), (Crash::Kept, 1), (Crash::Torn, 8), (Crash::Reordered, 8)];

/// Every image that the power loss may leave, and then one more power loss during recovery.
fn check_images(disk: &MemoryBackend, index: &MemoryIndex, witness: &Witness, story: &str) -> u64 {
    let mut images = 0;
    for (policy, seeds) in IMAGES {
        for seed in 0..seeds {
            let story = format!("{story}, {policy:?}, image seed {seed}");
            let (image, rows) = (disk.crash(policy, seed), index.crash(policy, seed));
            let again = image.crash(Crash::Lost, 0);
            check(&image, &rows.crash(Crash::Lost, 0), witness, &story);
            again.fail_at(seed % 7, Fault::PowerCut);
            let outcome = open_store(&again, &rows.crash(Crash::Lost, 0));
            drop(outcome);
            let second = again.crash(policy, seed + 1);
            check(&second, &rows.crash(Crash::Lost, 0), witness, &format!("{story}, and again while recovering"));
            images += 2;
        }
    }
    images
}

#[test]
fn every_power_loss_leaves_every_acknowledged_record_and_nothing_else() {
    let mut images = 0;
    for seed in [1, 2] {
        let (whole, mut witness) = (MemoryBackend::new(), Witness::default());
        let rows = MemoryIndex::new();
        live(&whole, &|| Box::new(rows.clone()), seed, &mut witness).unwrap();
        assert!(witness.checkpointed > 0 && whole.files().keys().any(|name| name.starts_with("archive/")));
        for n in 0..whole.operations() {
            let (disk, rows, mut witness) = (MemoryBackend::new(), MemoryIndex::new(), Witness::default());
            disk.fail_at(n, Fault::PowerCut);
            let outcome = live(&disk, &|| Box::new(rows.clone()), seed, &mut witness);
            assert!(outcome.is_err(), "seed {seed}: operation {n} must fail");
            images += check_images(&disk, &rows, &witness, &format!("seed {seed}, power cut at operation {n}"));
        }
    }
    assert!(images >= 3000, "only {images} images");
}

/// Turns the disk off together with the index.
#[derive(Debug)]
struct SharedPower {
    index: MemoryIndex,
    disk: MemoryBackend,
    operations: Arc<AtomicU64>,
    cut_at: u64,
}

impl SharedPower {
    fn cut(&self) -> Result<()> {
        if self.operations.fetch_add(1, Ordering::Relaxed) == self.cut_at {
            self.disk.fail_next(Fault::PowerCut);
            return Err(Error::Index { action: "go on", why: "the power is off".to_string() });
        }
        Ok(())
    }
}

impl Index for SharedPower {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.index.get(table, key)
    }
    fn apply(&self, batch: &Batch) -> Result<()> {
        self.index.apply(batch)?;
        self.cut()
    }
    fn flush(&self) -> Result<()> {
        self.cut()?;
        self.index.flush()
    }
    fn scan(&self, table: Table, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Row>> {
        self.index.scan(table, prefix, from, limit)
    }
    fn clear(&self) -> Result<()> {
        self.index.clear()?;
        self.cut()
    }
}

#[test]
fn a_power_loss_within_a_checkpoint_leaves_rows_that_replay_repairs() {
    let mut cut_at = 0;
    loop {
        let (disk, rows, mut witness) = (MemoryBackend::new(), MemoryIndex::new(), Witness::default());
        let operations = Arc::new(AtomicU64::new(0));
        let power = || -> Box<dyn Index> {
            let (index, disk, operations) = (rows.clone(), disk.clone(), operations.clone());
            Box::new(SharedPower { index, disk, operations, cut_at })
        };
        if live(&disk, &power, 3, &mut witness).is_ok() {
            break;
        }
        check_images(&disk, &rows, &witness, &format!("seed 3, power cut at operation {cut_at} of the index"));
        cut_at += 1;
    }
    assert!(cut_at > 20, "only {cut_at} operations of the index");
}

#[test]
fn a_restart_after_any_failed_operation_answers_only_what_a_later_power_loss_keeps() {
    let (whole, rows) = (MemoryBackend::new(), MemoryIndex::new());
    live(&whole, &|| Box::new(rows.clone()), 4, &mut Witness::default()).unwrap();
    for n in 0..whole.operations() {
        for fault in [Fault::Broken, Fault::DiskFull] {
            let (disk, rows, mut witness) = (MemoryBackend::new(), MemoryIndex::new(), Witness::default());
            disk.fail_at(n, fault);
            let story = format!("seed 4, {fault:?} at operation {n}");
            live(&disk, &|| Box::new(rows.clone()), 4, &mut witness).expect_err(&story);
            // The process starts again on the same machine: reading shows what the page cache has.
            let answered = records(&open_journal(&disk).unwrap_or_else(|error| panic!("{story}: {error}"))).unwrap();
            assert!(answered.len() >= witness.acknowledged, "{story}");
            assert!(answered == witness.appended[..answered.len()], "{story}");
            for (policy, seed) in [(Crash::Lost, 0), (Crash::Reordered, 1), (Crash::Torn, 2)] {
                let image = disk.crash(policy, seed);
                let kept = records(&open_journal(&image).unwrap()).unwrap();
                assert!(kept == answered, "{story}, {policy:?}: an answered record is gone");
            }
        }
    }
}
