//! Bits rot, files are mixed up: all of it is found, nothing of it is read as data.

use payhub_storage::{Crash, Error, MemoryBackend, MemoryIndex};

use crate::{Random, open_journal, open_store, payload, records};

/// A store of several segments, the oldest archived.
fn written(clean: bool) -> (MemoryBackend, Vec<Vec<u8>>) {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    let payloads: Vec<Vec<u8>> = (1..=14).map(|number| payload(number, 120 * number as usize)).collect();
    for pair in payloads.chunks(2) {
        journal.append_many(pair).unwrap();
    }
    assert!(journal.reader().archive_before(8).unwrap() >= 1);
    if clean {
        journal.close().unwrap();
    }
    (disk, payloads)
}

fn image(disk: &MemoryBackend) -> MemoryBackend {
    disk.crash(Crash::Kept, 0)
}

/// Opens and reads all.
fn read_all(disk: &MemoryBackend) -> Result<Vec<Vec<u8>>, Error> {
    records(&open_journal(disk)?)
}

#[test]
fn a_flipped_bit_in_any_byte_of_a_closed_journal_is_found() {
    let (disk, _) = written(true);
    let mut random = Random(11);
    let mut flips = 0;
    for (name, bytes) in disk.files() {
        for at in 0..bytes.len() {
            let bit = random.below(8);
            let rotten = image(&disk);
            rotten.tamper(&name, |bytes| bytes[at] ^= 1 << bit);
            let archived_tail = name.starts_with("archive/") && bytes[at..].iter().all(|byte| *byte == 0);
            match read_all(&rotten) {
                Err(Error::Corrupt { segment, .. }) => assert_eq!(segment, name, "seed 11, bit {bit} of byte {at}"),
                // Behind the last record of an archived segment there is nothing that anybody reads.
                Ok(_) if archived_tail => {}
                other => panic!("seed 11, bit {bit} of byte {at} of {name}: {other:?}"),
            }
            flips += 1;
        }
    }
    assert!(flips >= 3 * 4096);
}

#[test]
fn a_flipped_bit_after_an_unclean_end_is_found_or_harms_nothing() {
    let (disk, payloads) = written(false);
    let mut random = Random(12);
    for (name, bytes) in disk.files() {
        for at in 0..bytes.len() {
            let bit = random.below(8);
            let rotten = image(&disk);
            rotten.tamper(&name, |bytes| bytes[at] ^= 1 << bit);
            match read_all(&rotten) {
                Err(Error::Corrupt { segment, .. }) => assert_eq!(segment, name),
                Ok(found) => assert!(found == payloads, "seed 12, bit {bit} of byte {at} of {name}: a record changed"),
                other => panic!("seed 12, bit {bit} of byte {at} of {name}: {other:?}"),
            }
        }
    }
}

type Damage = fn(&MemoryBackend);

#[test]
fn damage_is_named_with_its_place_and_nothing_is_changed() {
    let cases: [(&str, Damage); 6] = [
        ("a lost sector of a durable record", |disk| {
            disk.tamper(&segment(disk, 0), |bytes| bytes[1024..1536].fill(0));
        }),
        ("a lost record with later ones behind it", |disk| {
            disk.tamper(&segment(disk, 1), |bytes| bytes[128..1024].fill(0));
        }),
        ("a segment that was cut", |disk| disk.tamper(&segment(disk, 0), |bytes| bytes.truncate(2048))),
        ("a segment of no bytes", |disk| disk.tamper(&segment(disk, 1), Vec::clear)),
        ("two segments of the same content", |disk| {
            let other = disk.files()[&segment(disk, 0)].clone();
            disk.tamper(&segment(disk, 1), |bytes| *bytes = other);
        }),
        ("a missing segment in the middle", |disk| {
            payhub_storage::Backend::remove(disk, &segment(disk, 1)).unwrap();
        }),
    ];
    for (what, damage) in cases {
        let (disk, _) = written(false);
        assert!(segments(&disk).len() >= 3, "{:?}", segments(&disk));
        damage(&disk);
        let before = disk.files();
        let error = read_all(&disk).expect_err(what);
        assert!(matches!(error, Error::Corrupt { .. }) && error.is_damage(), "{what}: {error}");
        assert_eq!(disk.files(), before, "{what}: something was changed");
    }
}

fn segments(disk: &MemoryBackend) -> Vec<String> {
    disk.files().into_keys().filter(|name| name.starts_with("journal/")).collect()
}

fn segment(disk: &MemoryBackend, nth: usize) -> String {
    segments(disk)[nth].clone()
}

#[test]
fn a_tail_that_was_never_finished_is_cut_and_only_there() {
    let (disk, payloads) = written(false);
    let last = segments(&disk).pop().unwrap();
    let end = disk.files()[&last].iter().rposition(|byte| *byte != 0).unwrap();
    // The newest write had two records; some of its sectors never came.
    disk.tamper(&last, |bytes| bytes[end - 512..=end].fill(0));
    assert_eq!(read_all(&disk).unwrap(), payloads[..payloads.len() - 1]);
    let mut journal = open_journal(&disk).unwrap();
    assert_eq!(journal.append(b"next").unwrap(), payloads.len() as u64);
}

#[test]
fn a_hole_before_a_later_write_is_damage_even_in_the_last_segment() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    let places: Vec<usize> = (1..=3).map(|number| 128 + (number - 1) * 1088).collect();
    for number in 1..=3 {
        journal.append(&payload(number, 1000)).unwrap();
    }
    let name = segment(&disk, 0);
    let lost = |from: usize, to: usize| {
        let rotten = image(&disk);
        rotten.tamper(&name, |bytes| bytes[from..to].fill(0));
        read_all(&rotten).map(|found| found.len())
    };
    assert!(matches!(lost(places[1], places[1] + 1088), Err(Error::Corrupt { .. })), "a lost record");
    assert!(matches!(lost(1536, 2048), Err(Error::Corrupt { .. })), "a lost sector");
    assert!(matches!(lost(places[0], places[2]), Err(Error::Corrupt { .. })), "two lost records");
    assert_eq!(lost(places[2], 4096).unwrap(), 2, "a write that may never have been acknowledged");
}

#[test]
fn a_record_or_segment_of_another_history_is_found() {
    let write = |second: &[u8]| {
        let disk = MemoryBackend::new();
        let mut journal = open_journal(&disk).unwrap();
        journal.append(&payload(1, 100)).unwrap();
        journal.append(second).unwrap();
        for number in 3..=6 {
            journal.append(&payload(number, 2000)).unwrap();
        }
        disk
    };
    let (ours, other) = (write(b"to Alice"), write(b"to Mallory"));
    let records_end = 128 + 192 + 128;
    for (nth, to) in [(0, records_end), (1, 4096)] {
        // Each part is whole by itself: CRC and numbers hold, only the chain does not.
        let (mixed, name) = (image(&ours), segment(&ours, nth));
        let part = other.files()[&name][..to].to_vec();
        mixed.tamper(&name, |bytes| bytes[..to].copy_from_slice(&part));
        assert!(matches!(open_journal(&mixed), Err(Error::Corrupt { .. })), "segment {nth}");
    }
    // The newest segment has nothing behind it that could tell, only its beginning.
    let (mixed, name) = (image(&ours), segments(&ours).pop().unwrap());
    let part = other.files()[&name].clone();
    mixed.tamper(&name, |bytes| *bytes = part);
    assert!(matches!(open_journal(&mixed), Err(Error::Corrupt { .. })));
}

#[test]
fn history_that_was_moved_away_is_missed_when_it_is_needed_only() {
    let (disk, payloads) = written(true);
    let oldest = disk.files().into_keys().find(|name| name.starts_with("archive/")).unwrap();
    payhub_storage::Backend::remove(&disk, &oldest).unwrap();
    let journal = open_journal(&disk).unwrap();
    let first = journal.reader().first();
    assert_eq!(journal.read(14).unwrap(), payloads[13]);
    let replay = |from| journal.replay(from, |_, _| Ok::<(), Error>(()));
    assert!(matches!(replay(1), Err(Error::HistoryMissing { wanted: 1, first: f }) if f == first));
    replay(first).unwrap();
}

#[test]
fn a_rotten_row_is_found_wherever_it_is_read() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let store = open_store(&disk, &index).unwrap();
    let mut batch = payhub_storage::Batch::new();
    batch.put("t", b"a".to_vec(), b"value".to_vec()).put("t", b"b".to_vec(), b"value".to_vec());
    store.checkpoint(batch, 0).unwrap();
    let mut raw = Vec::new();
    index.tamper("t", b"a", |value| raw = value.clone());
    for at in 0..raw.len() {
        index.tamper("t", b"a", |value| value[at] ^= 4);
        assert!(matches!(store.get("t", b"a"), Err(Error::CorruptRow { .. })));
        assert!(matches!(store.scan("t", b"", b"", 9), Err(Error::CorruptRow { .. })));
        index.tamper("t", b"a", |value| value[at] ^= 4);
    }
    // A whole row in another one's place is not that row.
    index.tamper("t", b"b", |value| *value = raw.clone());
    assert!(matches!(store.get("t", b"b"), Err(Error::CorruptRow { .. })));
    assert_eq!(store.get("t", b"a").unwrap().unwrap(), b"value");
}

#[test]
fn a_rotten_small_file_is_found() {
    let (disk, index) = (MemoryBackend::new(), MemoryIndex::new());
    let store = open_store(&disk, &index).unwrap();
    store.put_file("genesis", &[9; 32]).unwrap();
    for at in 0..36 {
        disk.tamper("files/genesis", |bytes| bytes[at] ^= 1);
        assert!(matches!(store.get_file("genesis"), Err(Error::CorruptFile { .. })));
        disk.tamper("files/genesis", |bytes| bytes[at] ^= 1);
    }
    disk.tamper("files/genesis", |bytes| bytes.truncate(3));
    assert!(matches!(store.get_file("genesis"), Err(Error::CorruptFile { .. })));
}
