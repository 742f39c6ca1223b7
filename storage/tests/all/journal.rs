//! The journal by itself.

use std::sync::Arc;

use payhub_storage::{Crash, Error, Fault, Journal, JournalConfig, JournalReader, MAX_RECORD_BYTES, MemoryBackend};
use proptest::prelude::*;

use crate::{IDENTITY, open_journal, payload, records};

#[test]
fn records_are_numbered_from_one_and_read_back() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    assert_eq!(journal.last(), 0);
    assert_eq!(journal.append(b"one").unwrap(), 1);
    assert_eq!(journal.append_many(&[b"two".as_slice(), b"", b"four"]).unwrap(), 2..=4);
    assert!(journal.append_many::<Vec<u8>>(&[]).unwrap().is_empty());
    assert_eq!(journal.read(3).unwrap(), b"");
    assert_eq!(journal.read(4).unwrap(), b"four");
    for record in [0, 5] {
        assert!(matches!(journal.read(record), Err(Error::NoSuchRecord { last: 4, .. })));
    }
    journal.replay(5, |_, _| Err(Error::Poisoned { why: "nothing is visited".into() })).unwrap();
}

#[test]
fn one_append_is_one_write_and_one_sync() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    let before = disk.operations();
    journal.append_many(&[b"payment"; 20]).unwrap();
    assert_eq!(disk.operations() - before, 2);
}

#[test]
fn what_append_returned_survives_the_loss_of_everything_else() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    for number in 1..=40 {
        journal.append(&payload(number, 300)).unwrap();
        assert_eq!(open_journal(&disk.crash(Crash::Lost, 0)).unwrap().last(), number);
    }
}

#[test]
fn a_foreign_identity_and_another_format_are_refused() {
    let disk = MemoryBackend::new();
    open_journal(&disk).unwrap().append(b"ours").unwrap();
    let foreign = Journal::open(Arc::new(disk.clone()), JournalConfig::default(), &[8; 32]);
    let Err(Error::ForeignStore { expected, found, .. }) = foreign else { panic!("{foreign:?}") };
    assert_eq!((expected.0, found.0), ([8; 32], IDENTITY));

    let name = disk.files().into_keys().next().unwrap();
    disk.tamper(&name, |bytes| {
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[..124]);
        bytes[124..128].copy_from_slice(&crc.to_le_bytes());
    });
    assert!(matches!(open_journal(&disk), Err(Error::FormatVersion { found: 2, supported: 1, .. })));
}

#[test]
fn a_failure_poisons_for_good_and_reading_goes_on() {
    for (fault, operation) in [(Fault::Broken, 0), (Fault::Broken, 1), (Fault::DiskFull, 0), (Fault::DiskFull, 1)] {
        let disk = MemoryBackend::new();
        let mut journal = open_journal(&disk).unwrap();
        let reader = journal.reader();
        journal.append(b"one").unwrap();
        disk.fail_at(disk.operations() + operation, fault);
        let error = journal.append(b"two").unwrap_err();
        assert_eq!(error.is_disk_full(), fault == Fault::DiskFull, "{error}");
        let before = disk.operations();
        for _ in 0..3 {
            assert!(matches!(journal.append(b"three"), Err(Error::Poisoned { .. })));
            assert!(matches!(reader.archive_before(1), Err(Error::Poisoned { .. })));
        }
        assert!(reader.poisoned().is_some() && reader.last() == 1 && reader.read(1).unwrap() == b"one");
        assert!(matches!(journal.close(), Err(Error::Poisoned { .. })));
        assert_eq!(disk.operations(), before, "a poisoned journal writes and syncs nothing");
    }
}

#[test]
fn a_disk_that_is_full_at_a_rotation_loses_nothing() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    for number in 1..=3 {
        journal.append(&payload(number, 1000)).unwrap();
    }
    disk.fail_at(disk.operations() + 1, Fault::DiskFull);
    assert!(journal.append(&payload(4, 1000)).unwrap_err().is_disk_full());
    let mut journal = open_journal(&disk).unwrap();
    assert_eq!(journal.append(&payload(4, 1000)).unwrap(), 4);
    assert_eq!(records(&journal).unwrap().len(), 4);
}

#[test]
fn a_segment_that_was_prepared_is_used_and_a_disk_that_is_too_full_for_it_is_heard_of_early() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    let reader = journal.reader();
    disk.fail_at(disk.operations() + 1, Fault::DiskFull);
    assert!(reader.prepare_segment().unwrap_err().is_disk_full());
    assert!(reader.poisoned().is_none() && disk.files().len() == 1, "the file is gone again");
    reader.prepare_segment().unwrap();
    let before = disk.operations();
    reader.prepare_segment().unwrap();
    assert_eq!(disk.operations(), before, "one is enough");
    journal.append(&payload(1, 3000)).unwrap();
    let before = disk.operations();
    journal.append(&payload(2, 3000)).unwrap();
    assert_eq!(disk.operations() - before, 6, "header, sync, rename, sync the folder, write, sync");
    reader.prepare_segment().unwrap();
    journal.append(&payload(3, 30_000)).unwrap();
    journal.append(&payload(4, 3000)).unwrap();
    for journal in [journal, open_journal(&disk).unwrap()] {
        assert_eq!(records(&journal).unwrap().len(), 4);
    }
    assert!(!disk.files().keys().any(|name| name.ends_with(".tmp")), "a start removes what is left over");
}

#[test]
fn an_unclean_start_copies_the_last_segment_and_a_clean_one_does_not() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    journal.append(b"one").unwrap();
    journal.close().unwrap();
    let before = disk.operations();
    let journal = open_journal(&disk).unwrap();
    assert_eq!(disk.operations() - before, 2, "the mark is taken off and synced");
    drop(journal);
    let before = disk.operations();
    let journal = open_journal(&disk).unwrap();
    assert!(disk.operations() - before >= 6, "create, fill, write, sync, rename, sync the folder");
    assert_eq!(records(&journal).unwrap(), [b"one"]);
}

#[test]
fn reading_only_changes_nothing_and_passes_over_an_unfinished_end() {
    let read_only = |disk: &MemoryBackend| JournalReader::open(Arc::new(disk.clone()), &IDENTITY);
    assert!(matches!(read_only(&MemoryBackend::new()), Err(Error::Io { .. })), "it makes no journal");
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    for number in 1..=9 {
        journal.append(&payload(number, 900)).unwrap();
    }
    disk.fail_at(disk.operations(), Fault::PowerCut);
    journal.append(&payload(10, 900)).unwrap_err();
    for disk in [disk.crash(Crash::Lost, 0), disk.crash(Crash::Torn, 1)] {
        let (files, operations) = (disk.files(), disk.operations());
        let reader = read_only(&disk).unwrap();
        assert_eq!((reader.first(), reader.last()), (1, 9));
        assert_eq!(reader.read(9).unwrap(), payload(9, 900));
        assert!(disk.files() == files && disk.operations() == operations);
        assert_eq!(open_journal(&disk).unwrap().chain(), reader.chain(9).unwrap());
    }
    let foreign = JournalReader::open(Arc::new(disk.crash(Crash::Lost, 0)), &[8; 32]);
    assert!(matches!(foreign, Err(Error::ForeignStore { .. })));
}

#[test]
fn what_a_failed_sync_left_in_the_page_cache_is_made_durable_before_it_is_answered() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    journal.append(b"one").unwrap();
    disk.fail_at(disk.operations() + 1, Fault::Broken);
    journal.append(b"two").unwrap_err();
    assert_eq!(open_journal(&disk.crash(Crash::Kept, 0)).unwrap().last(), 1, "the disk does not have it");
    assert_eq!(open_journal(&disk).unwrap().last(), 2, "reading shows it");
    assert_eq!(open_journal(&disk.crash(Crash::Lost, 0)).unwrap().last(), 2, "now the disk has it");
}

#[test]
fn segments_rotate_and_archived_ones_stay_readable() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    let all: Vec<Vec<u8>> = (1..=60).map(|number| payload(number, 400)).collect();
    for record in &all {
        journal.append(record).unwrap();
    }
    let reader = journal.reader();
    assert_eq!(reader.archive_before(1).unwrap(), 0);
    let moved = reader.archive_before(30).unwrap();
    assert!(moved >= 3 && reader.archive_before(30).unwrap() == 0);
    let all_but_the_active = reader.archive_before(u64::MAX).unwrap();
    let live: Vec<String> = disk.files().into_keys().filter(|name| name.starts_with("journal/")).collect();
    assert!(all_but_the_active > 0 && live.len() == 1, "the active segment stays: {live:?}");
    for journal in [journal, open_journal(&disk).unwrap()] {
        assert_eq!(records(&journal).unwrap(), all);
        assert_eq!(journal.read(1).unwrap(), all[0]);
        assert_eq!(journal.read(33).unwrap(), all[32]);
        assert_eq!(journal.reader().chain(60).unwrap(), journal.chain());
        assert_eq!(journal.reader().first(), 1);
    }
}

#[test]
fn a_record_larger_than_a_segment_gets_a_segment_of_its_size() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    let large = payload(1, 3 << 20);
    journal.append(b"small").unwrap();
    journal.append(&large).unwrap();
    journal.append(b"small").unwrap();
    let journal = open_journal(&disk).unwrap();
    assert_eq!(journal.read(2).unwrap(), large);
    assert_eq!(journal.read(3).unwrap(), b"small");
}

#[test]
fn what_exceeds_a_limit_is_refused_and_changes_nothing() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    let before = disk.operations();
    let largest = vec![1; MAX_RECORD_BYTES];
    let too_large = vec![1; MAX_RECORD_BYTES + 1];
    assert!(matches!(journal.append(&too_large), Err(Error::RecordTooLarge { .. })));
    assert!(matches!(journal.append_many(&[&largest; 4]), Err(Error::BatchTooLarge { .. })));
    assert_eq!(disk.operations(), before);
    assert_eq!(journal.append(&largest).unwrap(), 1);
    assert_eq!(journal.read(1).unwrap(), largest);
}

#[test]
fn readers_on_other_threads_see_exactly_what_is_durable() {
    let disk = MemoryBackend::new();
    let mut journal = open_journal(&disk).unwrap();
    let reader = journal.reader();
    let follower = std::thread::spawn(move || {
        let mut seen = 0;
        while seen < 200 {
            reader
                .replay(seen + 1, |number, found| {
                    assert_eq!(found, payload(number, 100));
                    seen = number;
                    Ok::<(), Error>(())
                })
                .unwrap();
            reader.archive_before(seen).unwrap();
            std::thread::yield_now();
        }
    });
    for number in 1..=200 {
        journal.append(&payload(number, 100)).unwrap();
    }
    follower.join().unwrap();
}

#[derive(Clone, Debug)]
enum Action {
    Append(Vec<usize>),
    Archive(u64),
    Close,
    Restart,
    Crash(usize, u64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => prop::collection::vec(0_usize..3000, 1..5).prop_map(Action::Append),
        1 => (0_u64..60).prop_map(Action::Archive),
        1 => Just(Action::Close),
        1 => Just(Action::Restart),
        1 => (0_usize..4, any::<u64>()).prop_map(|(policy, seed)| Action::Crash(policy, seed)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_journal_is_a_list_that_survives_everything(actions in prop::collection::vec(action(), 1..30)) {
        let mut disk = MemoryBackend::new();
        let mut journal = open_journal(&disk).unwrap();
        let mut model: Vec<Vec<u8>> = Vec::new();
        for action in actions {
            match action {
                Action::Append(lens) => {
                    let new: Vec<Vec<u8>> = lens.iter().map(|len| payload(model.len() as u64, *len)).collect();
                    let numbers = journal.append_many(&new).unwrap();
                    model.extend(new);
                    prop_assert_eq!(*numbers.end(), model.len() as u64);
                }
                Action::Archive(number) => {
                    journal.reader().archive_before(number).unwrap();
                }
                Action::Close => {
                    journal.close().unwrap();
                    journal = open_journal(&disk).unwrap();
                }
                Action::Restart => journal = open_journal(&disk).unwrap(),
                Action::Crash(policy, seed) => {
                    disk = disk.crash(Crash::ALL[policy], seed);
                    journal = open_journal(&disk).unwrap();
                }
            }
            prop_assert_eq!(&records(&journal).unwrap(), &model);
        }
    }
}
