//! The member's state and the store under it. Whatever a step decided is written here before anything leaves.
//!
//! The journal holds [`Line`]s: the channel's terms once, then the member's records. The index holds a snapshot of the
//! member at the checkpoint and the history. A snapshot is cut into rows under the number of the last record that it
//! includes, so that one which a crash cut short is never read: the checkpoint's mark still names the one before.
//!
//! Apart from the store lies a **counter**: the number of settlements ever signed. A store that was restored to an
//! older state disagrees with it, and then the member trusts neither his own record of settlements nor the hub's
//! collateral until the longest validity of a settlement is past (see `Member::distrust`).

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::Bytes;
use proto::member::{self, Limits, Member, Record, State, Step};
use proto::wire::TicksAccepted;
use proto::{Amount, Asset, ChannelId, ChannelTerms, Domain, Payment, PaymentId, SecretKey};
use serde::{Deserialize, Serialize};
use storage::{Batch, Store, Table};

use crate::error::Error;

/// Rows of snapshots: key = upto (8 bytes) and chunk (4 bytes).
const SNAPSHOTS: Table = "member";
/// Rows of the history: key = number (8 bytes).
const HISTORY: Table = "history";
/// Numbers in the history by payment id.
const PAYMENTS: Table = "payment";
/// Bytes of a snapshot in one row: rows stay below what the index takes.
const CHUNK_BYTES: usize = 12 * 1024;
/// Records after which a checkpoint is made: what a start has to replay at most.
const CHECKPOINT_RECORDS: usize = 4096;
/// Entries of the history that are kept.
const HISTORY_MAX: u64 = 1_000_000;
/// What the counter says while the store is known to be older than what was signed.
const COUNTER_UNKNOWN: u64 = u64::MAX;

/// Something that happened to an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Wall-clock time of this machine in milliseconds since 1970; for people only.
    pub at_ms: u64,
    /// The asset.
    pub asset: Asset,
    /// What happened.
    pub kind: HistoryKind,
}

/// What can happen to an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HistoryKind {
    /// A payment was made; the hub's receipt for it was verified.
    Sent {
        /// Its id.
        id: PaymentId,
        /// The payee.
        payee: ChannelId,
        /// What the payee gets.
        amount: Amount,
        /// What the hub got.
        fee: Amount,
        /// The note.
        note: Bytes,
    },
    /// A payment came.
    Received {
        /// Its id.
        id: PaymentId,
        /// The payer.
        payer: ChannelId,
        /// The amount.
        amount: Amount,
        /// The note.
        note: Bytes,
        /// The number of its credit.
        credit: u64,
    },
    /// A settlement was signed.
    Settled {
        /// Its number.
        seq: u64,
        /// What the member has withdrawn in all when it is posted.
        member_withdrawn: Amount,
        /// Whether it closes the account.
        close: bool,
    },
}

pub(crate) struct Wallet {
    domain: Domain,
    key: SecretKey,
    limits: Limits,
    store: Store,
    counter: Counter,
    /// Whether the counter proves that nothing newer was signed.
    proven: bool,
    member: Option<Member>,
    /// Payments of frames that wait for an answer, by asset, lane and cumulative amount.
    waiting: BTreeMap<(Asset, u32, Amount), Vec<Payment>>,
    fresh: VecDeque<(u64, HistoryEntry)>,
    history_next: u64,
    lines: Vec<Vec<u8>>,
    since_checkpoint: usize,
}

#[derive(Serialize, Deserialize)]
struct Line {
    at_ms: u64,
    entry: Entry,
}

#[derive(Serialize, Deserialize)]
enum Entry {
    Opened(ChannelTerms),
    Member(Box<Record>),
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    member: Option<State>,
    history_next: u64,
}

#[derive(Serialize)]
struct SnapshotRef<'a> {
    member: Option<&'a State>,
    history_next: u64,
}

/// Where the number of signed settlements is kept a second time.
pub(crate) enum Counter {
    File(PathBuf),
    Memory,
}

impl Wallet {
    /// Opens what the store holds: the snapshot at its checkpoint and every record after it.
    pub(crate) fn open(
        store: Store,
        counter: Counter,
        domain: Domain,
        key: SecretKey,
        limits: Limits,
    ) -> Result<Self, Error> {
        let mut wallet = Wallet {
            domain,
            key,
            limits,
            store,
            counter,
            proven: true,
            member: None,
            waiting: BTreeMap::new(),
            fresh: VecDeque::new(),
            history_next: 0,
            lines: Vec::new(),
            since_checkpoint: 0,
        };
        wallet.load_snapshot()?;
        let mut tail = Vec::new();
        wallet.store.view().replay_tail(|_, bytes| {
            tail.push(bytes.to_vec());
            Ok::<(), storage::Error>(())
        })?;
        wallet.since_checkpoint = tail.len();
        for bytes in tail {
            let line: Line = postcard::from_bytes(&bytes).map_err(|e| Error::Store(format!("a record: {e}")))?;
            wallet.replay(line)?;
        }
        wallet.check_counter()?;
        Ok(wallet)
    }

    pub(crate) fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    pub(crate) fn member_mut(&mut self) -> Option<&mut Member> {
        self.member.as_mut()
    }

    /// Begins a channel with these terms; nothing is on the ledger yet.
    pub(crate) fn begin(&mut self, terms: ChannelTerms) -> Result<(), Error> {
        let member = Member::new(self.domain, self.key.clone(), terms.clone(), self.limits)?;
        self.push(Entry::Opened(terms), now_ms());
        self.member = Some(member);
        Ok(())
    }

    /// Takes what a step decided: its records are written with the next [`Wallet::commit`], its events come back.
    pub(crate) fn take(&mut self, step: Step) -> Vec<member::Event> {
        let at_ms = now_ms();
        for record in step.records {
            self.note(&record, at_ms);
            self.push(Entry::Member(Box::new(record)), at_ms);
        }
        if step.events.iter().any(|e| matches!(e, member::Event::StoreWasOld { .. })) {
            // A restart within the wait must not end it.
            self.proven = false;
            if let Err(error) = self.counter.write(COUNTER_UNKNOWN) {
                tracing::error!(%error, "the counter of signed settlements cannot be written");
            }
        }
        step.events
    }

    /// Whether something waits to be written.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Writes everything taken so far. When this returns, it may be acted on.
    pub(crate) fn commit(&mut self) -> Result<(), Error> {
        let lines = std::mem::take(&mut self.lines);
        if lines.is_empty() {
            return Ok(());
        }
        self.since_checkpoint += lines.len();
        self.store.journal().append_many(&lines)?;
        if self.since_checkpoint >= CHECKPOINT_RECORDS { self.checkpoint() } else { Ok(()) }
    }

    /// Raises the counter before a settlement that was just signed may leave.
    pub(crate) fn raise_counter(&mut self) -> Result<(), Error> {
        let signed = self.member.as_ref().map(Member::settlements_signed).unwrap_or_default();
        self.counter.write(signed).map_err(|e| Error::Store(format!("the counter of signed settlements: {e}")))
    }

    /// Ends the time of distrust when it is over.
    pub(crate) fn settle_doubt(&mut self) -> Result<(), Error> {
        if !self.proven && self.member.as_ref().is_some_and(Member::trusts_itself) {
            self.raise_counter()?;
            self.proven = true;
        }
        Ok(())
    }

    /// The newest entries of the history, newest first.
    pub(crate) fn history(&self, limit: usize) -> Result<Vec<HistoryEntry>, Error> {
        let mut entries: Vec<HistoryEntry> = self.fresh.iter().rev().take(limit).map(|(_, e)| e.clone()).collect();
        let missing = limit.saturating_sub(entries.len());
        let stored = self.fresh.front().map(|(n, _)| *n).unwrap_or(self.history_next);
        if missing > 0 && stored > 0 {
            let from = stored.saturating_sub(u64::try_from(missing).unwrap_or(u64::MAX));
            let rows = self.store.scan(HISTORY, &[], &from.to_be_bytes(), missing)?;
            for (key, value) in rows.iter().rev() {
                if number_of(key) < stored {
                    entries.push(postcard::from_bytes(value).map_err(|e| Error::Store(format!("the history: {e}")))?);
                }
            }
        }
        Ok(entries)
    }

    /// Whether a payment is in the history as made.
    pub(crate) fn was_paid(&self, payment: PaymentId) -> Result<bool, Error> {
        let sent = |kind: &HistoryKind| matches!(kind, HistoryKind::Sent { id, .. } if *id == payment);
        if self.fresh.iter().any(|(_, entry)| sent(&entry.kind)) {
            return Ok(true);
        }
        Ok(self.store.get(PAYMENTS, payment.as_slice())?.is_some())
    }

    /// Makes a checkpoint and ends the store cleanly.
    pub(crate) fn close(mut self) -> Result<(), Error> {
        self.commit()?;
        if self.since_checkpoint > 0 {
            self.checkpoint()?;
        }
        self.store.close()?;
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        let upto = self.store.last();
        let before = self.store.checkpointed();
        let state = self.member.as_ref().map(Member::state);
        let snapshot = SnapshotRef { member: state, history_next: self.history_next };
        let bytes = postcard::to_stdvec(&snapshot).expect("the state serialises");
        let mut batch = Batch::new();
        for (i, chunk) in bytes.chunks(CHUNK_BYTES).enumerate() {
            batch.put(SNAPSHOTS, snapshot_key(upto, i), chunk.to_vec());
        }
        for (key, _) in self.store.scan(SNAPSHOTS, &before.to_be_bytes(), &[], usize::MAX)? {
            if before != upto {
                batch.delete(SNAPSHOTS, key);
            }
        }
        let fresh = std::mem::take(&mut self.fresh);
        for (number, entry) in &fresh {
            if let HistoryKind::Sent { id, .. } = &entry.kind {
                batch.put(PAYMENTS, id.as_slice().to_vec(), number.to_be_bytes().to_vec());
            }
            let value = postcard::to_stdvec(entry).expect("an entry serialises");
            batch.put(HISTORY, number.to_be_bytes().to_vec(), value);
            if let Some(old) = number.checked_sub(HISTORY_MAX) {
                batch.delete(HISTORY, old.to_be_bytes().to_vec());
            }
        }
        self.store.view().checkpoint(batch, upto)?;
        self.store.view().archive()?;
        self.since_checkpoint = 0;
        Ok(())
    }

    fn load_snapshot(&mut self) -> Result<(), Error> {
        let upto = self.store.checkpointed();
        let rows = self.store.scan(SNAPSHOTS, &upto.to_be_bytes(), &[], usize::MAX)?;
        if rows.is_empty() {
            return Ok(());
        }
        let bytes: Vec<u8> = rows.into_iter().flat_map(|(_, value)| value).collect();
        let snapshot: Snapshot =
            postcard::from_bytes(&bytes).map_err(|e| Error::Store(format!("the snapshot: {e}")))?;
        self.history_next = snapshot.history_next;
        if let Some(state) = snapshot.member {
            let member = Member::restore(self.domain, self.key.clone(), state, self.limits)?;
            self.waiting = member.waiting().map(|(place, payments)| (place, payments.to_vec())).collect();
            self.member = Some(member);
        }
        Ok(())
    }

    fn replay(&mut self, line: Line) -> Result<(), Error> {
        match line.entry {
            Entry::Opened(terms) => {
                self.member = Some(Member::new(self.domain, self.key.clone(), terms, self.limits)?);
            }
            Entry::Member(record) => {
                self.note(&record, line.at_ms);
                let member = self.member.as_mut();
                member.ok_or_else(|| Error::Store("records without a channel".to_owned()))?.apply(&record);
            }
        }
        Ok(())
    }

    fn check_counter(&mut self) -> Result<(), Error> {
        let unreadable = |e| Error::Store(format!("the counter of signed settlements: {e}"));
        let signed = self.member.as_ref().map(Member::settlements_signed).unwrap_or_default();
        let fresh = self.store.last() == 0;
        match self.counter.read().map_err(unreadable)? {
            Some(counted) if counted == signed => {}
            None if fresh || matches!(self.counter, Counter::Memory) => {
                self.counter.write(signed).map_err(unreadable)?;
            }
            Some(_) | None => {
                self.proven = false;
                self.counter.write(COUNTER_UNKNOWN).map_err(unreadable)?;
                if let Some(member) = &mut self.member {
                    member.distrust();
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, entry: Entry, at_ms: u64) {
        self.lines.push(postcard::to_stdvec(&Line { at_ms, entry }).expect("a record serialises"));
    }

    /// Derives the history from a record, newly made or replayed.
    fn note(&mut self, record: &Record, at_ms: u64) {
        match record {
            Record::Signed(frame) => {
                let place = (frame.account().asset, frame.lane(), frame.tip().cumulative);
                self.waiting.insert(place, frame.payments.clone());
            }
            Record::Refused { asset, lane, cumulative } => drop(self.waiting.remove(&(*asset, *lane, *cumulative))),
            Record::Accepted { asset, frames, ticks, .. } => {
                for p in ticks.iter().filter_map(TicksAccepted::payment) {
                    let (id, payee, amount, fee, note) = (p.id, p.payee, p.amount, p.fee, p.note);
                    self.enter(at_ms, *asset, HistoryKind::Sent { id, payee, amount, fee, note });
                }
                for (lane, cumulative) in frames {
                    for p in self.waiting.remove(&(*asset, *lane, *cumulative)).unwrap_or_default() {
                        let (id, payee, amount, fee, note) = (p.id, p.payee, p.amount, p.fee, p.note);
                        self.enter(at_ms, *asset, HistoryKind::Sent { id, payee, amount, fee, note });
                    }
                }
            }
            Record::Credited { asset, credits, .. } => {
                for note in credits {
                    let (payer, credit) = (note.payer, note.number);
                    for (id, amount, text) in &note.payments {
                        let (id, amount, note) = (*id, *amount, text.clone());
                        self.enter(at_ms, *asset, HistoryKind::Received { id, payer, amount, note, credit });
                    }
                }
            }
            Record::Agreed(signed) => {
                let s = signed.body();
                let member_withdrawn = Amount::new(s.memberWithdrawn);
                self.enter(at_ms, s.asset, HistoryKind::Settled { seq: s.seq, member_withdrawn, close: s.close });
            }
            Record::Pinned(_)
            | Record::Ledger { .. }
            | Record::Adopted(_)
            | Record::HubVoucher(_)
            | Record::Delivered { .. }
            | Record::Opening { .. }
            | Record::Opened { .. }
            | Record::NotOpened { .. }
            | Record::Revealed { .. }
            | Record::TicksRefused { .. }
            | Record::Folding(_)
            | Record::Folded { .. }
            | Record::Countersigned { .. } => {}
        }
    }

    fn enter(&mut self, at_ms: u64, asset: Asset, kind: HistoryKind) {
        self.fresh.push_back((self.history_next, HistoryEntry { at_ms, asset, kind }));
        self.history_next += 1;
    }
}

impl Counter {
    fn read(&self) -> std::io::Result<Option<u64>> {
        let Counter::File(path) = self else { return Ok(None) };
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text.trim().parse().unwrap_or(COUNTER_UNKNOWN))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file by a durable one, or leaves it as it was.
    fn write(&self, value: u64) -> std::io::Result<()> {
        let Counter::File(path) = self else { return Ok(()) };
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).map(PathBuf::from).unwrap_or(".".into());
        std::fs::create_dir_all(&folder)?;
        let temporary = path.with_extension("new");
        let mut file = std::fs::File::create(&temporary)?;
        writeln!(file, "{value}")?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(&folder)?.sync_all()
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Error::Store(error.to_string())
    }
}

fn snapshot_key(upto: u64, chunk: usize) -> Vec<u8> {
    let chunk = u32::try_from(chunk).expect("a snapshot has fewer than 2^32 chunks");
    [upto.to_be_bytes().as_slice(), chunk.to_be_bytes().as_slice()].concat()
}

fn number_of(key: &[u8]) -> u64 {
    key.try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use alloy_primitives::{Address, B256};
    use proto::Scheme;
    use proto::account::Totals;
    use proto::typed::Settlement;
    use storage::{MemoryBackend, MemoryIndex, StoreConfig};

    use super::*;

    const ASSET: Asset = Address::repeat_byte(0xAA);

    /// A disk, and a counter apart from it.
    struct Place {
        disk: (MemoryBackend, MemoryIndex),
        counter: PathBuf,
    }

    fn terms(seed: u8) -> ChannelTerms {
        let key = |seed: u8| SecretKey::derive(Scheme::Ed25519, &[seed; 32], "voucher").public().bytes;
        ChannelTerms {
            hub: Address::repeat_byte(2),
            hubKey: key(99),
            hubScheme: 1,
            member: Address::repeat_byte(seed),
            memberKey: key(seed),
            memberScheme: 1,
            challengePeriod: 60,
            salt: B256::repeat_byte(seed),
        }
    }

    fn domain() -> Domain {
        Domain::new(7, Address::repeat_byte(1))
    }

    impl Place {
        fn new(folder: &std::path::Path) -> Self {
            Place { disk: (MemoryBackend::new(), MemoryIndex::new()), counter: folder.join("counter") }
        }

        fn open(&self) -> Wallet {
            let (backend, index) = self.disk.clone();
            let mut config = StoreConfig::default();
            config.journal.segment_bytes = 1 << 20;
            let store = Store::open_with(Arc::new(backend), Box::new(index), &[1; 32], config);
            let key = SecretKey::derive(Scheme::Ed25519, &[1; 32], "voucher");
            let counter = Counter::File(self.counter.clone());
            Wallet::open(store.expect("a good disk"), counter, domain(), key, Limits::default()).expect("a good store")
        }

        /// The same disk as it is now, for a later restore.
        fn backup(&self) -> (MemoryBackend, MemoryIndex) {
            let (backend, index) = &self.disk;
            (backend.crash(storage::Crash::Kept, 1), index.crash(storage::Crash::Kept, 1))
        }
    }

    fn begin(wallet: &mut Wallet) {
        wallet.begin(terms(1)).expect("own terms");
        let member = wallet.member_mut().expect("it was just begun");
        member.head(1_000);
        let deposits =
            Totals { member_deposit: Amount::new(1_000), hub_deposit: Amount::new(1_000), ..Totals::default() };
        let mut step = member.ledger(ASSET, deposits);
        step.extend(member.pin(domain().channel_id(&terms(2)), terms(2)).expect("good terms"));
        wallet.take(step);
        wallet.commit().expect("a good disk");
    }

    fn sign(wallet: &mut Wallet, id: u8) {
        let payee = domain().channel_id(&terms(2));
        let (amount, fee) = (Amount::new(10), Amount::ZERO);
        let payment = Payment { id: PaymentId([id; 16].into()), payee, amount, fee, note: Bytes::new() };
        let member = wallet.member_mut().expect("begun");
        let (_, frame) = member.sign_frame(ASSET, 0, vec![payment]).expect("solvent");
        wallet.take(Step { records: vec![Record::Signed(frame)], events: Vec::new() });
    }

    /// What outlives a session.
    fn kept(wallet: &Wallet) -> Vec<u8> {
        postcard::to_stdvec(wallet.member().expect("begun").state()).expect("it serialises")
    }

    fn settle(wallet: &mut Wallet) {
        let member = wallet.member_mut().expect("begun");
        let proposal = Settlement {
            channelId: member.channel().0,
            asset: ASSET,
            seq: 1,
            memberWithdrawn: 0,
            hubWithdrawn: 1,
            validUntil: 2_000,
            close: false,
        };
        let (step, _) = member.agree(proposal, None).expect("it takes nothing from the member");
        wallet.raise_counter().expect("a good disk");
        wallet.take(step);
        wallet.commit().expect("a good disk");
    }

    #[test]
    fn a_wallet_is_what_its_journal_says_with_and_without_a_checkpoint() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::new(folder.path());
        let mut wallet = place.open();
        begin(&mut wallet);
        sign(&mut wallet, 1);
        wallet.commit().expect("a good disk");
        let state = kept(&wallet);
        drop(wallet);
        let mut wallet = place.open();
        assert_eq!(kept(&wallet), state, "from the journal");
        sign(&mut wallet, 2);
        let state = kept(&wallet);
        wallet.close().expect("a checkpoint");
        let mut wallet = place.open();
        assert_eq!(kept(&wallet), state, "from the snapshot");
        assert_eq!(wallet.waiting.len(), 2);
        sign(&mut wallet, 3);
        wallet.commit().expect("a good disk");
        drop(wallet);
        assert_eq!(place.open().member().expect("snapshot and tail").unanswered(ASSET), 3);
    }

    #[test]
    fn what_was_not_committed_is_not_there_after_a_crash() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut place = Place::new(folder.path());
        let mut wallet = place.open();
        begin(&mut wallet);
        sign(&mut wallet, 1);
        place.disk = place.backup();
        assert_eq!(place.open().member().expect("begun").unanswered(ASSET), 0);
    }

    #[test]
    fn a_store_older_than_its_counter_is_not_trusted() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut place = Place::new(folder.path());
        let mut wallet = place.open();
        begin(&mut wallet);
        let backup = place.backup();
        settle(&mut wallet);
        drop(wallet);
        assert!(place.open().member().expect("begun").trusts_itself(), "counter and store agree");
        place.disk = backup;
        let mut wallet = place.open();
        assert!(!wallet.member().expect("begun").trusts_itself());
        drop(wallet);
        wallet = place.open();
        assert!(!wallet.member().expect("begun").trusts_itself(), "another start does not end the wait");
        let member = wallet.member_mut().expect("begun");
        member.head(1_000);
        member.head(1_001 + proto::member::VALIDITY_LONGEST_S);
        wallet.settle_doubt().expect("a good disk");
        drop(wallet);
        assert!(place.open().member().expect("begun").trusts_itself(), "the wait is over");
    }

    #[test]
    fn a_missing_counter_is_an_old_store_unless_the_store_is_new() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::new(folder.path());
        let mut wallet = place.open();
        begin(&mut wallet);
        assert!(wallet.member().expect("begun").trusts_itself());
        drop(wallet);
        std::fs::remove_file(&place.counter).expect("it was made at the first start");
        assert!(!place.open().member().expect("begun").trusts_itself());
    }

    #[test]
    fn the_history_goes_on_over_checkpoints() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::new(folder.path());
        let mut wallet = place.open();
        begin(&mut wallet);
        for round in 0..4u64 {
            for i in 0..3u64 {
                let (seq, member_withdrawn) = (round * 3 + i, Amount::ZERO);
                wallet.enter(seq, ASSET, HistoryKind::Settled { seq, member_withdrawn, close: false });
            }
            if round < 3 {
                wallet.push(Entry::Opened(terms(1)), 0);
                wallet.commit().expect("a good disk");
                wallet.checkpoint().expect("a good disk");
            }
        }
        let numbers =
            |limit| -> Vec<u64> { wallet.history(limit).expect("a good disk").iter().map(|e| e.at_ms).collect() };
        assert_eq!(numbers(2), vec![11, 10]);
        assert_eq!(numbers(5), vec![11, 10, 9, 8, 7]);
        assert_eq!(numbers(100), (0..12).rev().collect::<Vec<u64>>());
    }
}
