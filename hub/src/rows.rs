//! What the hub keeps on disk besides the journal, and how it finds things again.
//!
//! The journal holds every [`FlushRecord`]; everything here is derived from it. What is newer than the last checkpoint
//! stands in memory, the rest in rows of the index:
//!
//! | table | key -> value |
//! |---|---|
//! | `ground` | - -> what the books keep besides channels |
//! | `channel`, `part` | channel -> the channel's books; large ones in parts that carry the flush of their checkpoint |
//! | `voucher` | account -> the hub's newest voucher, with its proof |
//! | `settled` | account, number -> the hub's half of a settlement |
//! | `pay`, `pay-shapes`, `pay-runs` | [`Runs`]: (payer, id) -> flush, index of the frame's entry |
//! | `place`, `place-shapes`, `place-runs` | [`Runs`]: (account, its last credit in a flush) -> flush; (channel, flush with events); |
//! | | (account, credits of an acknowledgement) -> flush |
//!
//! A payment's row says where it is, never what it is: a look-up reads the journal and compares.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use alloy_primitives::keccak256;
use proto::books::{Books, Channel, Delivery, Entry, FlushRecord, Ground, KnownPayment, Outcome, PaymentIndex, Policy};
use proto::typed::{Ack, Settlement, Voucher};
use proto::{AccountId, ChannelId, ChannelTerms, Domain, PaymentId, Proven, Scheme, SecretKey, Signed};
use serde::{Deserialize, Serialize};
use storage::{Batch, JournalReader, Row, StoreView, Table};

use crate::flushed::Flushed;
use crate::runs::{Entry as RunEntry, Runs, Written};

const GROUND: Table = "ground";
const BOOKS: &[u8] = b"books";
const COUNT: &[u8] = b"payments";
const CHANNEL: Table = "channel";
const PART: Table = "part";
const VOUCHER: Table = "voucher";
const SETTLED: Table = "settled";

/// Largest channel that fits one row beside its head.
const PART_BYTES: usize = 15 << 10;
/// Flushes kept decoded and signed, and payments in them: live sessions are served from here.
const RECENT_FLUSHES: usize = 2048;
const RECENT_PAYMENTS: usize = 1 << 18;
/// Segments of the journal that stay in use: a start reads them through, a quarter of a second each.
const LIVE_SEGMENTS: usize = 4;
/// Terms in one generation of the directory, 8 MiB.
const DIRECTORY_MAX: usize = 1 << 15;
/// Pages of rows between the thread that reads them and the one that decodes them at a start.
const PAGES_AHEAD: usize = 8;
/// Old records kept decoded, a few MiB each at most.
const LOOKED_INTO_MAX: usize = 8;
const SCAN_ROWS: usize = 512;
/// Credits between a payer's and the acknowledgement that covers it: 2 MiB of digests. A payee's client acknowledges at
/// least every 1,024 credits; one that does not leaves its payers with their receipts.
const DELIVERY_CREDITS_MAX: u64 = 1 << 16;
/// Flushes read for one delivery: a payee that is paid in many small flushes and seldom acknowledges must not cost the hub
/// seconds for every question of an accomplice.
const DELIVERY_FLUSHES_MAX: usize = 4096;

/// Everything that is looked up; shared by all threads.
#[derive(Debug)]
pub(crate) struct Rows {
    view: StoreView,
    journal: JournalReader,
    domain: Domain,
    keys: Vec<SecretKey>,
    secret: [u64; 4],
    payments: Runs,
    places: Runs,
    directory: RwLock<Directory>,
    newest: Mutex<Newest>,
    recent: Mutex<Recent>,
    /// Old records that were looked into lately, newest last: whoever sends an old frame again names one flush up to a
    /// thousand times, and the sequencer must not read it as often.
    looked_into: Mutex<VecDeque<Arc<FlushRecord>>>,
    garbage: Mutex<Vec<Vec<u8>>>,
    payments_total: AtomicU64,
    /// The flush up to which they are counted.
    counted: AtomicU64,
}

/// Terms of channels that were asked for lately, and of those that no checkpoint has yet. The rest is in the rows.
#[derive(Debug, Default)]
struct Directory {
    unwritten: HashMap<ChannelId, Arc<ChannelTerms>>,
    writing: HashMap<ChannelId, Arc<ChannelTerms>>,
    /// Two generations: a full one becomes the old one, and who is in neither is read again.
    young: HashMap<ChannelId, Arc<ChannelTerms>>,
    old: HashMap<ChannelId, Arc<ChannelTerms>>,
}

/// The hub's newest words, as far as no checkpoint has them.
#[derive(Debug, Default)]
struct Newest {
    fresh: Words,
    writing: Arc<Words>,
}

#[derive(Debug, Default)]
struct Words {
    vouchers: HashMap<AccountId, Proven<Voucher>>,
    settlements: BTreeMap<(AccountId, u64), Proven<Settlement>>,
    /// Payments ever accepted, as of the checkpoint.
    payments: u64,
}

/// Flushes in memory: sealed ones until they are durable, then the newest durable ones.
#[derive(Debug, Default)]
struct Recent {
    sealed: BTreeMap<u64, Arc<FlushRecord>>,
    durable: BTreeMap<u64, Arc<Flushed>>,
    payments: usize,
}

/// The rows of one checkpoint that come from the books.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The flush after which it was taken.
    pub(crate) upto: u64,
    pub(crate) ground: Ground,
    pub(crate) channels: Vec<(ChannelId, Channel)>,
}

/// A channel's row: its books, or where their parts are.
#[derive(Serialize, Deserialize)]
enum Head<C> {
    Whole(C),
    Parts { version: u64, count: u32 },
}

/// What cannot be found although it was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowsError {
    #[error(transparent)]
    Store(#[from] storage::Error),
    /// Bytes that are no record or row of this version.
    #[error("{what} cannot be read ({why}); use the version of the program that wrote it, or rebuild the index")]
    Unreadable { what: String, why: postcard::Error },
    /// The journal's number differs from the record's own.
    #[error("journal record {at} calls itself flush {found}; the journal is not this hub's")]
    Misnumbered { at: u64, found: u64 },
}

type Result<T> = std::result::Result<T, RowsError>;

// ---- start ---------------------------------------------------------------------------------------------------------

impl Rows {
    /// Reads checkpoint and journal: the rows, and the books as of the last durable flush.
    pub(crate) fn open(
        view: StoreView,
        domain: Domain,
        policy: Policy,
        keys: Vec<SecretKey>,
        secret: &[u8; 32],
    ) -> Result<(Arc<Rows>, Books)> {
        let words = keccak256([b"payhub index".as_slice(), secret].concat());
        let secret = [0, 8, 16, 24].map(|at| word(words.as_slice(), at).expect("a hash has four words"));
        let rows = Rows {
            journal: view.journal(),
            domain,
            keys,
            secret,
            payments: Runs::open(view.clone(), "pay", "pay-shapes", "pay-runs")?,
            places: Runs::open(view.clone(), "place", "place-shapes", "place-runs")?,
            directory: RwLock::default(),
            newest: Mutex::default(),
            recent: Mutex::default(),
            looked_into: Mutex::default(),
            garbage: Mutex::default(),
            payments_total: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            view,
        };
        let mut books = rows.restore(domain, policy)?;
        rows.view.replay_tail(|number, bytes| {
            let record = decode_record(number, bytes)?;
            books.replay(&record);
            rows.seal(Arc::new(record));
            rows.settle(number, None).map(|_| ())
        })?;
        let rows = Arc::new(rows);
        rows.warm();
        Ok((rows, books))
    }

    /// Reads ahead, beside everything else, what the first payments would have to wait for. If that fails they hear of it.
    fn warm(self: &Arc<Self>) {
        let rows = Arc::downgrade(self);
        let warm = move || {
            let _ = rows.upgrade().map(|rows| rows.payments.warm().and_then(|()| rows.places.warm()));
        };
        let _ = std::thread::Builder::new().name("hub-warm".to_owned()).spawn(warm);
    }

    fn restore(&self, domain: Domain, policy: Policy) -> Result<Books> {
        let mut stray = Vec::new();
        let mut known: Option<(ChannelId, Option<u64>)> = None;
        self.each(PART, |key, _| {
            let version = key.get(32..40).and_then(|v| v.try_into().ok()).map(u64::from_be_bytes);
            let Some(id) = key.get(..32).and_then(ChannelId::from_slice) else { return Ok(()) };
            let current = match known {
                Some((channel, current)) if channel == id => current,
                Some(_) | None => self.version_in_parts(id)?,
            };
            known = Some((id, current));
            if version != current {
                stray.push(key.to_vec());
            }
            Ok(())
        })?;
        *lock(&self.garbage) = stray;
        // The row may be ahead of the checkpoint: it says up to which flush it counts.
        if let Some(bytes) = self.view.get(GROUND, COUNT)?
            && let (Some(upto), Some(count)) = (word(&bytes, 0), word(&bytes, 8))
        {
            self.counted.store(upto, Ordering::Relaxed);
            self.payments_total.store(count, Ordering::Relaxed);
        }
        let ground = match self.view.get(GROUND, BOOKS)? {
            Some(bytes) => decode("the ground row", &bytes)?,
            None => return Ok(Books::new(domain, policy)),
        };
        // One thread reads, one decodes, and nothing but the packed channels stays.
        std::thread::scope(|scope| {
            let (pages, to_decode) = std::sync::mpsc::sync_channel::<Result<Vec<Row>>>(PAGES_AHEAD);
            scope.spawn(move || {
                let mut from = Vec::new();
                loop {
                    let page = self.view.scan(CHANNEL, &[], &from, SCAN_ROWS).map_err(RowsError::from);
                    let last = page.as_ref().ok().and_then(|rows| rows.last());
                    let next = last.map(|(key, _)| [key.as_slice(), &[0]].concat());
                    if pages.send(page).is_err() {
                        return;
                    }
                    match next {
                        Some(next) => from = next,
                        None => return,
                    }
                }
            });
            let mut failed = None;
            let rows = to_decode.into_iter().flat_map(|page| match page {
                Ok(rows) => rows.into_iter().map(|row| self.read_channel(row)).collect(),
                Err(error) => vec![Err(error)],
            });
            let channels = rows.map_while(|row| row.map_err(|error| failed = Some(error)).ok()).flatten();
            let books = Books::restore(domain, policy, ground, channels);
            failed.map_or(Ok(books), Err)
        })
    }

    fn read_channel(&self, (key, value): Row) -> Result<Option<(ChannelId, Channel)>> {
        let Some(id) = ChannelId::from_slice(&key) else { return Ok(None) };
        Ok(Some((id, self.whole(id, &value)?)))
    }

    /// A channel from its row and parts.
    fn whole(&self, id: ChannelId, row: &[u8]) -> Result<Channel> {
        match decode::<Head<Channel>>("a channel's row", row)? {
            Head::Whole(channel) => Ok(channel),
            Head::Parts { version, count } => self.parts(id, version, count),
        }
    }

    /// The version of the parts that a channel's row refers to, if it does.
    fn version_in_parts(&self, id: ChannelId) -> Result<Option<u64>> {
        let Some(row) = self.view.get(CHANNEL, id.as_slice())? else { return Ok(None) };
        Ok(match decode::<Head<Channel>>("a channel's row", &row)? {
            Head::Whole(_) => None,
            Head::Parts { version, .. } => Some(version),
        })
    }

    fn parts(&self, id: ChannelId, version: u64, count: u32) -> Result<Channel> {
        let mut bytes = Vec::new();
        for part in 0..count {
            bytes.extend(self.view.get(PART, &part_key(id, version, part))?.unwrap_or_default());
        }
        decode("a channel in parts", &bytes)
    }

    fn each(&self, table: Table, mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut from = Vec::new();
        loop {
            let rows = self.view.scan(table, &[], &from, SCAN_ROWS)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = [last.as_slice(), &[0]].concat();
            rows.iter().try_for_each(|(key, value)| visit(key, value))?;
        }
    }
}

// ---- what the sequencer and the committer write --------------------------------------------------------------------

impl Rows {
    /// A flush was sealed: its payments are known from here on, durable or not.
    pub(crate) fn seal(&self, record: Arc<FlushRecord>) {
        let number = record.number;
        let placed = record.entries.iter().zip(0..);
        let frames = placed.clone().filter_map(|(entry, i)| match entry {
            Entry::Frame(frame) => Some((frame, i)),
            _ => None,
        });
        let payments = frames.flat_map(|(frame, i)| {
            let payer = frame.account().channel;
            frame.payments.iter().map(move |p| [self.payment_key(payer, p.id), number, i])
        });
        let ticks = placed.filter_map(|(entry, i)| match entry {
            Entry::Ticks(paid) => Some([self.payment_key(paid.account.channel, paid.id()), number, i]),
            _ => None,
        });
        self.payments.add(payments.chain(ticks));
        lock(&self.recent).sealed.insert(number, record);
    }

    /// A sealed flush is durable: signs it and makes everything in it findable.
    pub(crate) fn settle(&self, number: u64, outcome: Option<Outcome>) -> Result<Arc<Flushed>> {
        let record = lock(&self.recent).sealed.get(&number).cloned().expect("a flush is sealed before it is written");
        for entry in &record.entries {
            if let Entry::Opened(terms) = entry {
                self.learn(self.domain.channel_id(terms), terms);
            }
        }
        let outcome = outcome.unwrap_or_else(|| record.outcome(&self.domain));
        let flushed = Arc::new(self.sign(record, outcome)?);
        self.note_places(&flushed);
        {
            let mut newest = lock(&self.newest);
            let words = &mut newest.fresh;
            words.vouchers.extend(flushed.signed.vouchers.iter().map(|v| (v.body().account(), v.clone())));
            let settled = flushed.signed.settlements.iter();
            words.settlements.extend(settled.map(|s| ((s.body().account(), s.body().seq), s.clone())));
        }
        let payments: usize = flushed.signed.credits.iter().map(|credit| credit.payments.len()).sum();
        if self.counted.fetch_max(number, Ordering::Relaxed) < number {
            self.payments_total.fetch_add(payments as u64, Ordering::Relaxed);
        }
        lock(&self.recent).settle(&flushed);
        Ok(flushed)
    }

    fn sign(&self, record: Arc<FlushRecord>, outcome: Outcome) -> Result<Flushed> {
        let failed = Cell::new(None);
        let signed = outcome.sign(&self.domain, record.number, &self.keys, |channel| match self.terms(channel) {
            Ok(terms) => {
                let terms = terms.expect("the books pay and credit known channels only");
                Scheme::from_number(terms.hubScheme).expect("the books serve known schemes only")
            }
            Err(error) => {
                failed.set(Some(error));
                Scheme::Ed25519
            }
        });
        failed.into_inner().map_or_else(|| Ok(Flushed::new(record, signed)), Err)
    }

    fn note_places(&self, flushed: &Flushed) {
        let number = flushed.number();
        let mut entries: Vec<RunEntry> = Vec::new();
        for voucher in &flushed.signed.vouchers {
            let account = voucher.body().account();
            entries.push([self.account_key(account), voucher.body().credits, number]);
            entries.push([self.channel_key(account.channel), number, 0]);
        }
        for entry in &flushed.record.entries {
            match entry {
                Entry::Ledger { totals, .. } => {
                    entries.extend(totals.iter().map(|(id, _)| [self.channel_key(id.channel), number, 0]));
                }
                Entry::Proposed(settlement) => {
                    entries.push([self.channel_key(settlement.account().channel), number, 0]);
                }
                Entry::Acked(ack) => {
                    entries.push([self.ack_key(ack.body().account()), ack.body().credits, number]);
                }
                Entry::Opened(_)
                | Entry::Named(..)
                | Entry::Frame(_)
                | Entry::Stream(_)
                | Entry::Folded(_)
                | Entry::Ticks(_)
                | Entry::Agreed(_)
                | Entry::Frozen { .. } => {}
            }
        }
        self.places.add(entries);
    }

    fn learn(&self, id: ChannelId, terms: &ChannelTerms) {
        let mut directory = self.directory.write().unwrap_or_else(PoisonError::into_inner);
        directory.unwritten.entry(id).or_insert_with(|| Arc::new(terms.clone()));
    }
}

// ---- checkpoints ---------------------------------------------------------------------------------------------------

impl Rows {
    /// Entries that wait for a checkpoint.
    pub(crate) fn fresh(&self) -> usize {
        self.payments.fresh() + self.places.fresh()
    }

    /// The flush just sealed ends the next checkpoint: payments sealed later belong to the one after it.
    pub(crate) fn begin_payments(&self) {
        self.payments.begin_checkpoint();
    }

    /// The same for what becomes known when a flush is durable.
    pub(crate) fn begin_words(&self) {
        self.places.begin_checkpoint();
        let directory = &mut *self.directory.write().unwrap_or_else(PoisonError::into_inner);
        directory.writing = std::mem::take(&mut directory.unwritten);
        let mut newest = lock(&self.newest);
        newest.fresh.payments = self.payments_total();
        newest.writing = Arc::new(std::mem::take(&mut newest.fresh));
    }

    /// Writes the rows and moves the mark. Large or numerous parts go first; rows that refer to them go with the mark.
    pub(crate) fn checkpoint(&self, snapshot: Snapshot) -> Result<()> {
        let garbage = std::mem::take(&mut *lock(&self.garbage));
        let mut first = Batch::new();
        for key in garbage {
            first.delete(PART, key);
        }
        let mut last = Batch::new();
        let mut stale = Vec::new();
        for (id, channel) in &snapshot.channels {
            if let Some(bytes) = self.view.get(CHANNEL, id.as_slice())?
                && let Head::Parts { version, count } = decode::<Head<Channel>>("a channel's row", &bytes)?
                && version != snapshot.upto
            {
                stale.extend((0..count).map(|part| part_key(*id, version, part)));
            }
            let bytes = encode(channel);
            if bytes.len() <= PART_BYTES {
                last.put(CHANNEL, id.as_slice(), encode(&Head::Whole(channel)));
                continue;
            }
            let parts = bytes.chunks(PART_BYTES);
            let head = Head::<Channel>::Parts { version: snapshot.upto, count: parts.len() as u32 };
            for (part, bytes) in parts.enumerate() {
                first.put(PART, part_key(*id, snapshot.upto, part as u32), bytes);
            }
            last.put(CHANNEL, id.as_slice(), encode(&head));
        }
        let (payments, places) = (self.payments.write_chunks()?, self.places.write_chunks()?);
        // With this everything that was written ahead is durable, before anything refers to it.
        self.view.checkpoint(first, self.view.checkpointed())?;
        self.put_words(&mut last, snapshot.upto);
        last.put(GROUND, BOOKS, encode(&snapshot.ground));
        self.payments.write_manifest(&payments, &mut last);
        self.places.write_manifest(&places, &mut last);
        self.view.checkpoint(last, snapshot.upto)?;
        self.end(payments, places, stale);
        Ok(())
    }

    fn put_words(&self, batch: &mut Batch, upto: u64) {
        let words = lock(&self.newest).writing.clone();
        for (account, voucher) in &words.vouchers {
            batch.put(VOUCHER, account_bytes(*account), encode(voucher));
        }
        batch.put(GROUND, COUNT, [upto.to_be_bytes(), words.payments.to_be_bytes()].concat());
        for ((account, seq), settlement) in &words.settlements {
            batch.put(SETTLED, settled_key(*account, *seq), encode(settlement));
        }
    }

    fn end(&self, payments: Written, places: Written, stale: Vec<Vec<u8>>) {
        self.payments.end_checkpoint(payments);
        self.places.end_checkpoint(places);
        lock(&self.newest).writing = Arc::default();
        self.directory.write().unwrap_or_else(PoisonError::into_inner).writing = HashMap::new();
        lock(&self.garbage).extend(stale);
    }
}

// ---- the journal's files -------------------------------------------------------------------------------------------

impl Rows {
    /// Makes the next segment ready before the committer needs it, and archives those that no start reads, but for the
    /// newest: whoever asks about what happened lately is answered from an open file.
    pub(crate) fn tidy_journal(&self) -> storage::Result<()> {
        // A disk without room for it says so to the committer, when there is no other way.
        if let Err(error) = self.view.prepare_segment() {
            tracing::warn!(%error, "the journal's next segment could not be made ahead of time");
        }
        self.view.archive_keeping(LIVE_SEGMENTS).map(drop)
    }
}

// ---- look-ups ------------------------------------------------------------------------------------------------------

impl Rows {
    /// Bytes that may still be written to the disk.
    pub(crate) fn free_bytes(&self) -> storage::Result<u64> {
        self.view.free_bytes()
    }

    /// Payments ever accepted and durable.
    pub(crate) fn payments_total(&self) -> u64 {
        self.payments_total.load(Ordering::Relaxed)
    }

    /// A channel's terms; may read the disk.
    pub(crate) fn terms(&self, channel: ChannelId) -> Result<Option<Arc<ChannelTerms>>> {
        if let Some(terms) = self.directory.read().unwrap_or_else(PoisonError::into_inner).get(channel) {
            return Ok(Some(terms));
        }
        let Some(row) = self.view.get(CHANNEL, channel.as_slice())? else { return Ok(None) };
        let terms = Arc::new(self.whole(channel, &row)?.terms);
        self.directory.write().unwrap_or_else(PoisonError::into_inner).keep(channel, terms.clone());
        Ok(Some(terms))
    }

    /// The hub's key of a scheme.
    pub(crate) fn key(&self, scheme: Scheme) -> Option<&SecretKey> {
        self.keys.iter().find(|key| key.scheme() == scheme)
    }

    /// The newest durable voucher of the hub for an account.
    pub(crate) fn voucher(&self, account: AccountId) -> Result<Option<Proven<Voucher>>> {
        {
            let newest = lock(&self.newest);
            let known = newest.fresh.vouchers.get(&account).or_else(|| newest.writing.vouchers.get(&account));
            if let Some(voucher) = known {
                return Ok(Some(voucher.clone()));
            }
        }
        let row = self.view.get(VOUCHER, &account_bytes(account))?;
        row.map(|bytes| decode("a voucher's row", &bytes)).transpose()
    }

    /// The hub's half of an agreed settlement.
    pub(crate) fn settlement(&self, account: AccountId, seq: u64) -> Result<Option<Proven<Settlement>>> {
        {
            let newest = lock(&self.newest);
            let key = (account, seq);
            let known = newest.fresh.settlements.get(&key).or_else(|| newest.writing.settlements.get(&key));
            if let Some(settlement) = known {
                return Ok(Some(settlement.clone()));
            }
        }
        let row = self.view.get(SETTLED, &settled_key(account, seq))?;
        row.map(|bytes| decode("a settlement's row", &bytes)).transpose()
    }

    /// The durable flush that holds credit `number` of an account.
    pub(crate) fn flush_of_credit(&self, account: AccountId, number: u64) -> Result<Option<u64>> {
        Ok(self.places.next(self.account_key(account), number)?.map(|(_, flush)| flush))
    }

    /// The first durable acknowledgement of a payer's credit, with what he needs to see his receipt in it; `None` where
    /// there is none yet, or the credit is not his.
    pub(crate) fn delivery(&self, payer: ChannelId, account: AccountId, credit: u64) -> Result<Option<Delivery>> {
        let Some((_, flush)) = self.places.next(self.ack_key(account), credit)? else { return Ok(None) };
        let record = self.record(flush)?;
        let acks = record.entries.iter().filter_map(|e| if let Entry::Acked(ack) = e { Some(ack) } else { None });
        let covers = |ack: &&Signed<Ack>| ack.body().account() == account && ack.body().credits >= credit;
        let Some(ack) = acks.into_iter().find(covers).cloned() else { return Ok(None) };
        let newest = ack.body().credits;
        if newest.saturating_sub(credit) > DELIVERY_CREDITS_MAX {
            return Ok(None);
        }
        let (mut head_before, mut digests, mut next) = (None, Vec::new(), credit);
        let mut flushes = 0;
        while next <= newest {
            flushes += 1;
            if flushes > DELIVERY_FLUSHES_MAX {
                return Ok(None);
            }
            let Some(flush) = self.flush_of_credit(account, next)? else { return Ok(None) };
            let flushed = self.flushed(flush)?;
            let least = next;
            for c in flushed.credits(account).iter().filter(|c| (least..=newest).contains(&c.receipt.credit)) {
                match head_before {
                    None if c.payer != payer || c.receipt.credit != credit => return Ok(None),
                    None => head_before = Some(c.head_before),
                    Some(_) => digests.push(self.domain.digest(&c.receipt)),
                }
                next = c.receipt.credit.saturating_add(1);
            }
            if next == least {
                return Ok(None);
            }
        }
        Ok(head_before.map(|head_before| Delivery { payer, ack, credit, head_before, digests }))
    }

    /// The first durable flush after `flush` with events of a channel.
    pub(crate) fn flush_with_events(&self, channel: ChannelId, after: u64) -> Result<Option<u64>> {
        let Some(least) = after.checked_add(1) else { return Ok(None) };
        Ok(self.places.next(self.channel_key(channel), least)?.map(|(flush, _)| flush))
    }

    /// A durable flush that is still in memory.
    pub(crate) fn recent(&self, number: u64) -> Option<Arc<Flushed>> {
        lock(&self.recent).durable.get(&number).cloned()
    }

    /// A durable flush; one that is not in memory is derived and signed again, byte for byte the same.
    pub(crate) fn flushed(&self, number: u64) -> Result<Arc<Flushed>> {
        if let Some(flushed) = self.recent(number) {
            return Ok(flushed);
        }
        let record = Arc::new(decode_record(number, &self.journal.read(number)?)?);
        let outcome = record.outcome(&self.domain);
        Ok(Arc::new(self.sign(record, outcome)?))
    }

    fn record(&self, number: u64) -> Result<Arc<FlushRecord>> {
        {
            let recent = lock(&self.recent);
            let durable = || recent.durable.get(&number).map(|flushed| flushed.record.clone());
            if let Some(record) = recent.sealed.get(&number).cloned().or_else(durable) {
                return Ok(record);
            }
        }
        if let Some(record) = lock(&self.looked_into).iter().find(|record| record.number == number) {
            return Ok(record.clone());
        }
        let record = Arc::new(decode_record(number, &self.journal.read(number)?)?);
        let mut looked_into = lock(&self.looked_into);
        if looked_into.len() >= LOOKED_INTO_MAX {
            looked_into.pop_front();
        }
        looked_into.push_back(record.clone());
        Ok(record)
    }

    /// A payment of a payer, if it was ever accepted.
    pub(crate) fn payment(&self, payer: ChannelId, id: PaymentId) -> Result<Option<KnownPayment>> {
        for (flush, entry) in self.payments.all(self.payment_key(payer, id))? {
            let record = match self.record(flush) {
                // An entry of a flush that a crash took away again; whatever has its number now is compared below.
                Err(RowsError::Store(storage::Error::NoSuchRecord { .. })) => continue,
                other => other?,
            };
            let (account, payment) = match record.entries.get(entry as usize) {
                Some(Entry::Frame(frame)) => (frame.account(), frame.payments.iter().find(|p| p.id == id).cloned()),
                Some(Entry::Ticks(paid)) => (paid.account, (paid.id() == id).then(|| paid.payment())),
                Some(_) | None => continue,
            };
            if let Some(payment) = payment.filter(|_| account.channel == payer) {
                return Ok(Some(KnownPayment { flush, asset: account.asset, entry: entry as u32, payment }));
            }
        }
        Ok(None)
    }

    fn payment_key(&self, payer: ChannelId, id: PaymentId) -> u64 {
        self.hash(1, &[payer.as_slice(), id.as_slice()])
    }

    fn account_key(&self, account: AccountId) -> u64 {
        self.hash(2, &[account.channel.as_slice(), account.asset.as_slice()])
    }

    fn ack_key(&self, account: AccountId) -> u64 {
        self.hash(4, &[account.channel.as_slice(), account.asset.as_slice()])
    }

    fn channel_key(&self, channel: ChannelId) -> u64 {
        self.hash(3, &[channel.as_slice()])
    }

    /// A keyed hash: fast, always the same for a store, and nobody outside can make collisions on purpose.
    fn hash(&self, kind: u64, parts: &[&[u8]]) -> u64 {
        let fold = |a: u64, b: u64| {
            let product = u128::from(a) * u128::from(b);
            (product as u64) ^ ((product >> 64) as u64)
        };
        let mut state = self.secret[0] ^ kind;
        for chunk in parts.iter().flat_map(|part| part.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            state = fold(state ^ u64::from_be_bytes(word), self.secret[1] | 1).rotate_left(23) ^ self.secret[2];
        }
        fold(state, self.secret[3] | 1)
    }
}

/// The rows as the books see them. A store that cannot be read must not be taken for an empty one.
pub(crate) struct Index<'a> {
    pub(crate) rows: &'a Rows,
    /// The first failure; the sequencer stops the hub over it.
    pub(crate) failed: Mutex<Option<RowsError>>,
}

impl PaymentIndex for Index<'_> {
    fn find(&self, payer: ChannelId, id: PaymentId) -> Option<KnownPayment> {
        self.rows.payment(payer, id).unwrap_or_else(|error| {
            lock(&self.failed).get_or_insert(error);
            None
        })
    }
}

impl Directory {
    fn get(&self, id: ChannelId) -> Option<Arc<ChannelTerms>> {
        [&self.young, &self.unwritten, &self.writing, &self.old].into_iter().find_map(|terms| terms.get(&id).cloned())
    }

    fn keep(&mut self, id: ChannelId, terms: Arc<ChannelTerms>) {
        if self.young.len() >= DIRECTORY_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(id, terms);
    }
}

impl Recent {
    fn settle(&mut self, flushed: &Arc<Flushed>) {
        let size = |flushed: &Flushed| flushed.signed.credits.iter().map(|c| c.payments.len()).sum::<usize>();
        self.sealed.remove(&flushed.number());
        self.payments += size(flushed);
        self.durable.insert(flushed.number(), flushed.clone());
        while self.durable.len() > RECENT_FLUSHES || (self.payments > RECENT_PAYMENTS && self.durable.len() > 1) {
            let Some((_, oldest)) = self.durable.pop_first() else { return };
            self.payments -= size(&oldest);
        }
    }
}

/// Encodes a record for the journal into a buffer that is kept: megabytes of new memory a flush cost more than encoding.
pub(crate) fn encode_record(record: &FlushRecord, buffer: &mut Vec<u8>) {
    buffer.clear();
    postcard::to_io(record, buffer).expect("memory takes whatever is written to it");
}

fn decode_record(number: u64, bytes: &[u8]) -> Result<FlushRecord> {
    let record: FlushRecord = postcard::from_bytes(bytes)
        .map_err(|why| RowsError::Unreadable { what: format!("journal record {number}"), why })?;
    if record.number == number { Ok(record) } else { Err(RowsError::Misnumbered { at: number, found: record.number }) }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("memory takes whatever is written to it")
}

fn decode<T: for<'a> Deserialize<'a>>(what: &str, bytes: &[u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|why| RowsError::Unreadable { what: what.to_owned(), why })
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes)
}

fn account_bytes(account: AccountId) -> Vec<u8> {
    [account.channel.as_slice(), account.asset.as_slice()].concat()
}

fn settled_key(account: AccountId, seq: u64) -> Vec<u8> {
    [account_bytes(account).as_slice(), &seq.to_be_bytes()].concat()
}

fn part_key(id: ChannelId, version: u64, part: u32) -> Vec<u8> {
    [id.as_slice(), &version.to_be_bytes(), &part.to_be_bytes()].concat()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
