//! A real folder, real locks, the real engine.

use std::path::Path;
use std::process::Command;

use payhub_storage::{
    Batch, Error, FileBackend, Index, IndexStart, JournalConfig, SledConfig, SledIndex, Store, StoreConfig,
};

use crate::{IDENTITY, payload};

fn config() -> StoreConfig {
    StoreConfig {
        journal: JournalConfig { segment_bytes: 64 << 10 },
        sled: SledConfig { cache_bytes: 8 << 20 },
        ..StoreConfig::default()
    }
}

fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(dir, &IDENTITY, config())
}

fn rows(from: u64, to: u64) -> Batch {
    let mut batch = Batch::new();
    for number in from..=to {
        batch.put("by-number", number.to_be_bytes(), payload(number, 100));
        batch.put("newest", b"one".to_vec(), number.to_be_bytes());
    }
    batch
}

fn count_tail(store: &Store) -> u64 {
    let mut count = 0;
    store
        .replay_tail(|_, _| {
            count += 1;
            Ok::<(), Error>(())
        })
        .unwrap();
    count
}

#[test]
fn a_store_on_disk_comes_back_with_its_rows_and_its_tail() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    for number in 1..=3000 {
        store.append(&payload(number, 100)).unwrap();
        if number == 2500 {
            store.checkpoint(rows(1, number), number).unwrap();
        }
    }
    assert!(store.view().archive().unwrap() > 0);
    assert!(store.view().free_bytes().unwrap() > 0);
    drop(store);
    for clean in [false, true] {
        let store = open(dir.path()).unwrap();
        assert_eq!((store.last(), store.checkpointed(), count_tail(&store)), (3000, 2500, 500));
        let page = store.scan("by-number", &[], &2400_u64.to_be_bytes(), 1000).unwrap();
        assert_eq!(page.len(), 101);
        assert_eq!(page[0], (2400_u64.to_be_bytes().to_vec(), payload(2400, 100)));
        assert_eq!(store.get("newest", b"one").unwrap().unwrap(), 2500_u64.to_be_bytes());
        if clean {
            store.close().unwrap();
        }
    }
    let rebuilding = StoreConfig { index_start: IndexStart::Rebuild, ..config() };
    let store = Store::open(dir.path(), &IDENTITY, rebuilding).unwrap();
    assert_eq!((store.checkpointed(), count_tail(&store)), (0, 3000));
    assert_eq!(store.get("newest", b"one").unwrap(), None);
}

#[test]
fn sled_keeps_rows_over_a_flush_and_forgets_them_over_a_clear() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let config = SledConfig { cache_bytes: 8 << 20 };
    {
        let index = SledIndex::open(&path, &config).unwrap();
        index.apply(&rows(1, 2000)).unwrap();
        let mut batch = Batch::new();
        batch.delete("by-number", 7_u64.to_be_bytes());
        index.apply(&batch).unwrap();
        index.flush().unwrap();
        assert!(matches!(SledIndex::open(&path, &config), Err(Error::Locked { .. })), "sled's own lock");
    }
    for file in ["db", "conf"] {
        assert!(path.join(file).is_file(), "the files that we sync are sled's files: {file}");
    }
    {
        let index = SledIndex::open(&path, &config).unwrap();
        assert_eq!(index.scan("by-number", &[], &[], 5000).unwrap().len(), 1999);
        assert_eq!(index.get("by-number", &7_u64.to_be_bytes()).unwrap(), None);
        index.clear().unwrap();
        index.flush().unwrap();
        assert!(index.scan("by-number", &[], &[], 5000).unwrap().is_empty());
    }
    let index = SledIndex::open(&path, &config).unwrap();
    assert!(index.get("newest", b"one").unwrap().is_none());
    drop(index);
    SledIndex::destroy(&path).unwrap();
    SledIndex::destroy(&path).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_flipped_bit_in_a_segment_on_disk_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    store.append(&payload(1, 100)).unwrap();
    store.append(&payload(2, 100)).unwrap();
    drop(store);
    let segment = std::fs::read_dir(dir.path().join("journal")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    assert!(matches!(open(dir.path()), Err(Error::Corrupt { .. })));
}

#[test]
fn a_second_handle_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, view) = open(dir.path()).unwrap().split();
    assert!(matches!(open(dir.path()), Err(Error::Locked { .. })));
    assert!(matches!(FileBackend::open(dir.path()), Err(Error::Locked { .. })));
    drop(journal);
    assert!(matches!(open(dir.path()), Err(Error::Locked { .. })), "a view holds the lock too");
    drop(view);
    open(dir.path()).unwrap();
}

#[test]
fn a_foreign_identity_is_refused_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    assert!(matches!(Store::open(dir.path(), &[9; 32], config()), Err(Error::ForeignStore { .. })));
}

/// Set for the second process: the folder it shall try to open.
const SECOND_PROCESS: &str = "PAYHUB_STORAGE_TEST_SECOND_PROCESS";
const REFUSED: i32 = 42;

#[test]
fn a_second_process_is_refused() {
    if let Some(dir) = std::env::var_os(SECOND_PROCESS) {
        let refused = matches!(open(Path::new(&dir)), Err(Error::Locked { .. }));
        std::process::exit(if refused { REFUSED } else { 1 });
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).unwrap();
    let mut second = Command::new(std::env::current_exe().unwrap());
    second.args(["--exact", "disk::a_second_process_is_refused"]).env(SECOND_PROCESS, dir.path());
    assert_eq!(second.output().unwrap().status.code(), Some(REFUSED));
    drop(store);
}
