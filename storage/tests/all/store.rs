//! Journal and index together.

use payhub_storage::{
    Batch, Crash, Error, Fault, IndexStart, MAX_FILE_BYTES, MAX_KEY_BYTES, MAX_VALUE_BYTES, MemoryBackend, MemoryIndex,
    Store, StoreConfig,
};

use crate::{config, open_boxed, open_store, payload};

fn batch(rows: &[(&str, &str)]) -> Batch {
    let mut batch = Batch::new();
    for (key, value) in rows {
        batch.put("rows", key.as_bytes(), value.as_bytes());
    }
    batch
}

fn tail(store: &Store) -> Vec<u64> {
    let mut numbers = Vec::new();
    store
        .replay_tail(|number, _| {
            numbers.push(number);
            Ok::<(), Error>(())
        })
        .unwrap();
    numbers
}

#[test]
fn a_start_is_the_checkpoint_and_the_journal_after_it() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let mut store = open_store(&disk, &index).unwrap();
    for number in 1..=5 {
        store.append(&payload(number, 10)).unwrap();
    }
    store.checkpoint(batch(&[("a", "1"), ("b", "2")]), 3).unwrap();
    for store in [store, open_store(&disk, &index).unwrap()] {
        assert_eq!((store.last(), store.checkpointed()), (5, 3));
        assert_eq!(tail(&store), [4, 5]);
        assert_eq!(store.get("rows", b"b").unwrap().unwrap(), b"2");
        assert_eq!(store.get("rows", b"c").unwrap(), None);
    }
}

#[test]
fn a_checkpoint_moves_forward_only_and_never_ahead_of_the_journal() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let mut store = open_store(&disk, &index).unwrap();
    store.append(b"one").unwrap();
    store.append(b"two").unwrap();
    store.checkpoint(Batch::new(), 2).unwrap();
    let operations = index.operations();
    assert!(matches!(store.checkpoint(Batch::new(), 3), Err(Error::CheckpointAhead { upto: 3, last: 2 })));
    assert!(matches!(store.checkpoint(Batch::new(), 1), Err(Error::CheckpointBehind { upto: 1, checkpointed: 2 })));
    for (key, value, part) in [(MAX_KEY_BYTES + 1, 0, "key"), (1, MAX_VALUE_BYTES + 1, "value")] {
        let mut large = Batch::new();
        large.put("rows", vec![0; key], vec![0; value]);
        let refused = store.checkpoint(large, 2);
        assert!(matches!(refused, Err(Error::RowTooLarge { part: p, .. }) if p == part));
    }
    assert_eq!(index.operations(), operations);
    store.append(b"not poisoned").unwrap();
}

#[test]
fn scans_give_pages_in_order_within_a_prefix() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let store = open_store(&disk, &index).unwrap();
    store.checkpoint(batch(&[("a1", ""), ("b1", "x"), ("b2", "y"), ("b3", "z"), ("c", "")]), 0).unwrap();
    let keys = |prefix: &[u8], from: &[u8], limit| -> Vec<String> {
        let rows = store.scan("rows", prefix, from, limit).unwrap();
        rows.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect()
    };
    assert_eq!(keys(b"b", b"", 2), ["b1", "b2"]);
    assert_eq!(keys(b"b", b"b2\0", 2), ["b3"]);
    assert_eq!(keys(b"", b"b3", 9), ["b3", "c"]);
    assert!(keys(b"b", b"c", 9).is_empty() && keys(b"", b"", 0).is_empty());
    assert!(store.scan("other", b"", b"", 9).unwrap().is_empty());
}

#[test]
fn the_writer_lives_on_its_own_thread() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let (mut journal, view) = open_store(&disk, &index).unwrap().split();
    let (sender, durable) = std::sync::mpsc::channel();
    let writer = std::thread::spawn(move || {
        for number in 1..=50 {
            sender.send(journal.append(&payload(number, 200)).unwrap()).unwrap();
        }
        journal.close().unwrap();
    });
    for number in durable {
        assert_eq!(view.journal().read(number).unwrap(), payload(number, 200));
        view.checkpoint(Batch::new(), number).unwrap();
        view.archive().unwrap();
    }
    writer.join().unwrap();
    assert_eq!(view.checkpointed(), 50);
    let store = open_store(&disk, &index).unwrap();
    assert!(tail(&store).is_empty());
}

#[test]
fn archiving_stops_at_the_checkpoint() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let mut store = open_store(&disk, &index).unwrap();
    for number in 1..=40 {
        store.append(&payload(number, 500)).unwrap();
    }
    assert_eq!(store.view().archive().unwrap(), 0);
    store.checkpoint(Batch::new(), 20).unwrap();
    assert!(store.view().archive().unwrap() > 0);
    let oldest_live = disk.files().into_keys().find(|name| name.starts_with("journal/")).unwrap();
    let first: u64 = oldest_live.trim_start_matches("journal/").trim_end_matches(".seg").parse().unwrap();
    assert!(first <= 21, "{oldest_live} holds what the checkpoint does not");
}

#[test]
fn a_rebuild_replays_the_whole_history_archive_included() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let mut store = open_store(&disk, &index).unwrap();
    for number in 1..=30 {
        store.append(&payload(number, 500)).unwrap();
    }
    store.checkpoint(batch(&[("stale", "row")]), 30).unwrap();
    store.view().archive().unwrap();
    store.rebuild().unwrap();
    assert_eq!(store.get("rows", b"stale").unwrap(), None);
    assert_eq!(tail(&store), (1..=30).collect::<Vec<_>>());

    store.checkpoint(batch(&[("stale", "row")]), 30).unwrap();
    let rebuilding = StoreConfig { index_start: IndexStart::Rebuild, ..config() };
    let store = open_boxed(&disk, Box::new(index.clone()), rebuilding.clone()).unwrap();
    assert_eq!((store.checkpointed(), tail(&store).len()), (0, 30));

    store.checkpoint(batch(&[("kept", "row")]), 30).unwrap();
    let archived = disk.files().into_keys().find(|name| name.starts_with("archive/")).unwrap();
    payhub_storage::Backend::remove(&disk, &archived).unwrap();
    let store = open_store(&disk, &index).unwrap();
    assert!(matches!(store.rebuild(), Err(Error::HistoryMissing { wanted: 1, .. })));
    assert!(matches!(open_boxed(&disk, Box::new(index.clone()), rebuilding), Err(Error::HistoryMissing { .. })));
    assert_eq!(store.get("rows", b"kept").unwrap().unwrap(), b"row", "nothing was dropped");
}

#[test]
fn a_rebuild_that_is_interrupted_never_leaves_a_mark_without_its_rows() {
    for nth in 0..4 {
        for (policy, seed) in Crash::ALL.into_iter().flat_map(|policy| (0..16).map(move |seed| (policy, seed))) {
            let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
            let mut store = open_store(&disk, &index).unwrap();
            store.append(b"one").unwrap();
            store.checkpoint(batch(&[("a", "1"), ("b", "2")]), 1).unwrap();
            let before_the_note = disk.crash(Crash::Kept, 0);
            index.fail_at(index.operations() + nth);
            store.rebuild().unwrap_err();
            let store = open_store(&before_the_note, &index.crash(policy, seed)).unwrap();
            let rows = store.scan("rows", b"", b"", 9).unwrap().len();
            let whole = (store.checkpointed(), rows) == (1, 2) || (store.checkpointed(), rows) == (0, 0);
            assert!(whole, "operation {nth}, {policy:?}, seed {seed}: {} rows at mark {}", rows, store.checkpointed());
        }
    }
}

#[test]
fn an_index_that_does_not_fit_its_journal_is_refused() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let mut store = open_store(&disk, &index).unwrap();
    for number in 1..=3 {
        store.append(&payload(number, 10)).unwrap();
    }
    store.checkpoint(Batch::new(), 3).unwrap();

    let older = MemoryBackend::new();
    open_store(&older, &MemoryIndex::new()).unwrap().append(&payload(1, 10)).unwrap();
    assert!(matches!(open_store(&older, &index), Err(Error::IndexAhead { checkpoint: 3, last: 1 })));

    let mut other = open_store(&older, &MemoryIndex::new()).unwrap();
    other.append(b"another second").unwrap();
    other.append(b"another third").unwrap();
    assert!(matches!(open_store(&older, &index), Err(Error::Diverged { record: 3 })));

    let foreign =
        Store::open_with(std::sync::Arc::new(MemoryBackend::new()), Box::new(index.clone()), &[8; 32], config());
    assert!(matches!(foreign, Err(Error::ForeignStore { .. })));

    index.tamper("~store", b"checkpoint", |mark| mark[5] ^= 1);
    assert!(matches!(open_store(&disk, &index), Err(Error::CorruptRow { .. })));
}

#[test]
fn a_failure_of_the_index_stops_the_store_and_the_next_start_rebuilds() {
    for nth in 0..4 {
        let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
        let mut store = open_store(&disk, &index).unwrap();
        store.append(b"one").unwrap();
        store.checkpoint(batch(&[("a", "1")]), 1).unwrap();
        index.fail_at(index.operations() + nth);
        assert!(matches!(store.checkpoint(batch(&[("a", "2")]), 1), Err(Error::Index { .. })), "operation {nth}");
        assert!(matches!(store.checkpoint(Batch::new(), 1), Err(Error::Poisoned { .. })));
        assert!(matches!(store.append(b"two"), Err(Error::Poisoned { .. })));
        assert!(matches!(store.put_file("a", b""), Err(Error::Poisoned { .. })));
        assert!(matches!(store.rebuild(), Err(Error::Poisoned { .. })));
        store.get("rows", b"a").unwrap();

        let index = index.crash(Crash::Kept, 0);
        let store = open_store(&disk, &index).unwrap();
        assert_eq!((store.checkpointed(), tail(&store)), (0, vec![1]), "operation {nth}");
        store.checkpoint(batch(&[("a", "1")]), 1).unwrap();
        assert_eq!(open_store(&disk, &index).unwrap().checkpointed(), 1, "rebuilt once, not for ever");
    }
}

#[test]
fn small_files_are_replaced_whole_or_not_at_all() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let mut store = open_store(&disk, &index).unwrap();
    assert_eq!(store.get_file("anchor").unwrap(), None);
    store.put_file("anchor", b"1").unwrap();
    store.put_file("anchor", b"22").unwrap();
    assert_eq!(store.get_file("anchor").unwrap().unwrap(), b"22");
    for name in ["", "../x", "a/b", "A", "a.tmp", "index-suspect", &"a".repeat(65)] {
        assert!(matches!(store.put_file(name, b""), Err(Error::FileName { .. })), "{name}");
        assert!(matches!(store.get_file(name), Err(Error::FileName { .. })), "{name}");
    }
    assert!(matches!(store.put_file("a", &vec![0; MAX_FILE_BYTES + 1]), Err(Error::FileTooLarge { .. })));
    store.put_file("largest", &vec![3; MAX_FILE_BYTES]).unwrap();
    assert_eq!(store.get_file("largest").unwrap().unwrap().len(), MAX_FILE_BYTES);

    disk.fail_next(Fault::DiskFull);
    assert!(store.put_file("anchor", b"333").unwrap_err().is_disk_full());
    assert!(matches!(store.append(b"one"), Err(Error::Poisoned { .. })));
    assert_eq!(store.get_file("anchor").unwrap().unwrap(), b"22");
}
