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
//! | `pay`, `pay-runs` | [`Runs`]: (payer, id) -> flush, index of the frame's entry |
//! | `place`, `place-runs` | [`Runs`]: (account, its last credit in a flush) -> flush; (channel, flush with events); |
//! | | (account, credits of an acknowledgement) -> flush |
//!
//! A payment's row says where it is, never what it is: a look-up reads the journal and compares.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use alloy_primitives::keccak256;
use proto::books::{Books, Channel, Delivery, Entry, FlushRecord, Ground, KnownPayment, Outcome, PaymentIndex, Policy};
use proto::typed::{Ack, Settlement, Voucher};
use proto::{AccountId, ChannelId, ChannelTerms, Domain, PaymentId, Proven, Scheme, SecretKey, Signed};
use serde::{Deserialize, Serialize};
use storage::{Batch, JournalReader, StoreView, Table};

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
    directory: RwLock<HashMap<ChannelId, Arc<ChannelTerms>>>,
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
            payments: Runs::open(view.clone(), "pay", "pay-runs")?,
            places: Runs::open(view.clone(), "place", "place-runs")?,
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
        Ok((Arc::new(rows), books))
    }

    fn restore(&self, domain: Domain, policy: Policy) -> Result<Books> {
        let mut channels = Vec::new();
        let mut versions = HashMap::new();
        self.each(CHANNEL, |key, value| {
            let Some(id) = ChannelId::from_slice(key) else { return Ok(()) };
            let channel = match decode::<Head<Channel>>("a channel's row", value)? {
                Head::Whole(channel) => channel,
                Head::Parts { version, count } => {
                    versions.insert(id, version);
                    self.parts(id, version, count)?
                }
            };
            self.learn(id, &channel.terms);
            channels.push((id, channel));
            Ok(())
        })?;
        let mut stray = Vec::new();
        self.each(PART, |key, _| {
            let version = key.get(32..40).and_then(|v| v.try_into().ok()).map(u64::from_be_bytes);
            let current = ChannelId::from_slice(&key[..key.len().min(32)]).and_then(|id| versions.get(&id).copied());
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
        Ok(match self.view.get(GROUND, BOOKS)? {
            Some(bytes) => Books::restore(domain, policy, decode("the ground row", &bytes)?, channels),
            None => Books::new(domain, policy),
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
        let mut entries = Vec::new();
        for (i, entry) in record.entries.iter().enumerate() {
            match entry {
                Entry::Frame(frame) => {
                    let payer = frame.account().channel;
                    let keys = frame.payments.iter().map(|p| self.payment_key(payer, p.id));
                    entries.extend(keys.map(|key| [key, record.number, i as u64]));
                }
                Entry::Ticks(paid) => {
                    entries.push([self.payment_key(paid.account.channel, paid.id()), record.number, i as u64]);
                }
                Entry::Opened(_)
                | Entry::Ledger { .. }
                | Entry::Named(..)
                | Entry::Stream(_)
                | Entry::Folded(_)
                | Entry::Proposed(_)
                | Entry::Agreed(_)
                | Entry::Acked(_)
                | Entry::Frozen { .. } => {}
            }
        }
        self.payments.add(entries);
        lock(&self.recent).sealed.insert(record.number, record);
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
        let flushed = Arc::new(self.sign(record, outcome));
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

    fn sign(&self, record: Arc<FlushRecord>, outcome: Outcome) -> Flushed {
        let signed = outcome.sign(&self.domain, record.number, &self.keys, |channel| {
            let terms = self.terms(channel).expect("the books pay and credit known channels only");
            Scheme::from_number(terms.hubScheme).expect("the books serve known schemes only")
        });
        Flushed::new(record, signed)
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
        directory.entry(id).or_insert_with(|| Arc::new(terms.clone()));
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
        self.view.checkpoint(first, self.view.checkpointed())?;
        let (payments, places) = (self.payments.write_chunks()?, self.places.write_chunks()?);
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
        lock(&self.garbage).extend(stale);
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

    /// A channel's terms.
    pub(crate) fn terms(&self, channel: ChannelId) -> Option<Arc<ChannelTerms>> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner).get(&channel).cloned()
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
        Ok(Arc::new(self.sign(record, outcome)))
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

/// Encodes a record for the journal.
pub(crate) fn encode_record(record: &FlushRecord) -> Vec<u8> {
    encode(record)
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
