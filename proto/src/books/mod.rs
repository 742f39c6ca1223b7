//! The hub's books: a pure state machine behind one sequencer.
//!
//! Every operation decides on the state as it stands, durable or not, and either refuses without changing anything or
//! changes the state and adds an [`Entry`] to the open flush. [`Books::seal`] ends the flush: it numbers the credits and
//! gives the [`FlushRecord`] to be written. Only when that record is durable may anything that follows from it leave
//! the hub ([`FlushRecord::outcome`]). A write that fails ends the process; nothing left before it.
//!
//! ```text
//! pay, hello, propose, agree, ack, ledger ──► state + entry ──► seal ──► record ──► (write) ──► outcome ──► sign, send
//! start: rows of a checkpoint ──► restore; records after it ──► replay
//! ```
//!
//! What holds after every operation, for every account: both nets are at least zero with every settlement that may
//! still be posted counted as posted; for every flush, what payers paid is what payees and the hub got (I4).

mod channels;
mod record;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use alloy_primitives::map::{HashMap, HashSet};
use alloy_primitives::{Address, B256, Bytes, U256};
use serde::{Deserialize, Serialize};

pub use channels::Channels;
pub use record::{Credit, CreditBase, Entry, FlushRecord, Outcome, SignedOutcome};
pub use refusal::Refusal;

use crate::account::{Kept, SEQ_AHEAD_MAX, Status, Totals, clamp, covers};
use crate::amount::{Amount, Net, net};
use crate::evidence::Signed;
use crate::frame::{Frame, LaneTip, Listed, Payment};
use crate::ids::{AccountId, Asset, ChannelId, PaymentId};
use crate::keys::{PublicKey, Scheme};
use crate::stream::{
    CLAIM_GAS_MAX, GAS_LANE, GAS_TICK, LaneVoucher, Revealed, StreamError, StreamId, StreamOpening, TicksPaid,
};
use crate::typed::{Ack, ChannelTerms, Domain, Settlement, Voucher};

/// Credits that the books keep for their payee's acknowledgement; older ones are acknowledged without telling the
/// payers, who then ask for the payment. A payee acknowledges at least every 1,024 credits.
pub const LINKS_MAX: usize = 4096;

/// Digests that one acknowledgement makes the books hand out, 8 MiB: the suffixes of thousands of payers would be many
/// times that. Those with the longest are left to ask.
pub const DELIVERED_DIGESTS_MAX: usize = 1 << 18;

/// Lanes that can be full of ticks without their claim passing [`CLAIM_GAS_MAX`]: each takes at most 624,400 gas.
const LANES_OF_TICKS: usize = 4;

/// Settlements of one account that may be kept unposted at a time.
pub const KEPT_MAX: usize = 4;

/// Longest name.
pub const NAME_MAX: usize = 32;

/// What a hub is and offers: fixed while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The hub's payout account.
    pub hub: Address,
    /// The hub's voucher keys, one per scheme that it serves.
    pub keys: Vec<PublicKey>,
    /// The challenge period of the channels that it serves, seconds.
    pub challenge_period_s: u32,
    /// How long its settlement proposals stay valid, seconds.
    pub settlement_validity_s: u64,
    /// The assets that it serves.
    pub assets: Vec<AssetPolicy>,
}

/// The hub's terms for one asset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetPolicy {
    /// The asset.
    pub asset: Asset,
    /// Its symbol.
    pub symbol: String,
    /// Its decimal places.
    pub decimals: u8,
    /// The first deposit that makes a channel served.
    pub deposit_min: Amount,
    /// The collateral that the hub keeps ready for a served payee.
    pub inbound_target: Amount,
    /// The most collateral that it locks for one payee by itself.
    pub inbound_max: Amount,
    /// Fixed part of the fee of a payment.
    pub fee_flat: Amount,
    /// Proportional part of the fee, parts per million of the amount, rounded up.
    pub fee_ppm: u32,
}

/// A live connection's number; unique while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What an accepted call of [`Books::pay`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paid {
    /// The frame is in the open flush.
    Accepted,
    /// The very same payments were accepted before, in that flush: its answer is given again.
    Again {
        /// The flush.
        flush: u64,
    },
}

/// What an accepted call of [`Books::tick`] means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticked {
    /// The ticks up to the index are in the open flush.
    Accepted,
    /// The index was accepted before: that flush has answered it, or will.
    Known,
}

/// What is asked of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Pay the member this much more.
    Withdraw(Amount),
    /// Pay the hub this much more: it takes idle collateral back.
    Reclaim(Amount),
    /// Pay both out and close.
    Close,
}

/// A payment that was accepted before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPayment {
    /// Where.
    pub flush: u64,
    /// In which asset's account it was paid.
    pub asset: Asset,
    /// Index of its frame's entry in the record; two payments of one frame share it.
    pub entry: u32,
    /// The payment.
    pub payment: Payment,
}

/// The memory of payments that left the books: every accepted payment whose flush was sealed.
pub trait PaymentIndex {
    /// Finds a payment of a payer's channel.
    fn find(&self, payer: ChannelId, id: PaymentId) -> Option<KnownPayment>;
}

/// What the ledger's follower reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerUpdate {
    /// Number of the confirmed head.
    pub confirmed: u64,
    /// Its time, seconds.
    pub confirmed_time: u64,
    /// Channels whose `Opened` event is confirmed.
    pub opened: Vec<ChannelTerms>,
    /// Accounts whose totals changed, with absolute values.
    pub totals: Vec<(AccountId, Totals)>,
    /// The follower's position after this update.
    pub cursor: Bytes,
}

/// One channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Its terms.
    pub terms: ChannelTerms,
    /// The name that leads to it.
    pub name: Option<String>,
    /// Whether a first deposit reached the minimum.
    pub served: bool,
    /// Its accounts.
    pub accounts: BTreeMap<Asset, Account>,
}

/// One account as the hub counts it: everything accepted, durable or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What the ledger says.
    pub ledger: Totals,
    /// The member's lanes: the newest accepted voucher of each, with the ticks revealed since.
    pub lanes: BTreeMap<u32, LaneVoucher>,
    /// `PM`: the sum of the lanes.
    pub member_paid: Amount,
    /// `PH`, the open flush included.
    pub hub_paid: Amount,
    /// `PH` as of the last sealed flush.
    pub credited: Amount,
    /// Number of the newest credit.
    pub credits: u64,
    /// Head of the credit chain.
    pub head: B256,
    /// Newest credit that the payee acknowledged.
    pub acked: u64,
    /// Head of the credit chain before the oldest of `links`.
    pub links_base: B256,
    /// Credits that wait for their acknowledgement, oldest first; at most [`LINKS_MAX`].
    pub links: VecDeque<Link>,
    /// Settlements that may still be posted.
    pub kept: Vec<Kept>,
    /// Those of them that the member signed.
    pub agreed: Vec<Signed<Settlement>>,
    /// Number of the newest settlement ever proposed: a number is never proposed twice, because whoever signed the one
    /// signs no other with its number, even when the first is over.
    pub proposed: u64,
}

/// A credit that waits for its acknowledgement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its number.
    pub number: u64,
    /// Who paid.
    pub payer: ChannelId,
    /// The receipt's digest.
    pub digest: B256,
    /// Head after it.
    pub head: B256,
}

/// What a payer gets when a payee acknowledged: enough to see his own receipt in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The payer.
    pub payer: ChannelId,
    /// The acknowledgement.
    pub ack: Signed<Ack>,
    /// The payer's first receipt that it covers.
    pub credit: u64,
    /// Head before that receipt.
    pub head_before: B256,
    /// Digests of the receipts after it, up to the acknowledged one.
    pub digests: Vec<B256>,
}

/// Collateral that the hub should deposit for a payee.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The payee's account.
    pub account: AccountId,
    /// How much.
    pub amount: Amount,
}

/// Sums over all accounts of one asset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AssetSums {
    /// What the contract holds, by the ledger's totals.
    pub custody: Net,
    /// What is the members'.
    pub member_nets: Net,
    /// What is the hub's.
    pub hub_nets: Net,
    /// Everything that members ever paid, fees included.
    pub paid: U256,
    /// Everything that the hub ever credited.
    pub credited: U256,
    /// Fees and payments to the hub.
    pub income: Amount,
    /// What final accounts paid the hub beyond (or below) its books.
    pub windfall: Net,
}

/// The books. See the module's documentation.
#[derive(Debug)]
pub struct Books {
    domain: Domain,
    policy: Policy,
    channels: Channels,
    sessions: BTreeMap<ChannelId, SessionId>,
    names: BTreeMap<String, ChannelId>,
    income: BTreeMap<Asset, Amount>,
    confirmed: u64,
    confirmed_time: u64,
    cursor: Bytes,
    frozen: Option<u64>,
    draining: bool,
    sealed: u64,
    open: OpenFlush,
    /// Accounts that may lack collateral, with the net that the hub needs in them beyond its target.
    wants: BTreeMap<AccountId, Amount>,
    /// Accounts that a deposit of the hub is under way to.
    funding: BTreeSet<AccountId>,
    /// Accounts with settlements that may still be posted, so that a new head looks at those only.
    keeping: BTreeSet<AccountId>,
    touched: BTreeSet<ChannelId>,
}

#[derive(Debug, Default)]
struct OpenFlush {
    entries: Vec<Entry>,
    credited: Vec<AccountId>,
    seen: HashSet<AccountId>,
    /// Where each payment stands: its frame's entry, and its place in the frame.
    ids: HashMap<(ChannelId, PaymentId), (u32, u32)>,
    /// The ticks of each opening, which end the record: what they come to is known when the flush is sealed.
    ticks: Vec<TicksPaid>,
    /// Where they stand in `ticks`, by payer and stream: a stream has one opening.
    streams: HashMap<(ChannelId, StreamId), usize>,
    debits: BTreeMap<Asset, U256>,
    income: BTreeMap<Asset, Amount>,
}

impl OpenFlush {
    /// Takes over the tables of the flush before, empty but with their room.
    fn keep_room(&mut self, sealed: &mut OpenFlush) {
        (self.ids, self.seen) = (std::mem::take(&mut sealed.ids), std::mem::take(&mut sealed.seen));
        self.ids.clear();
        self.seen.clear();
    }

    /// A payment of the open flush: its asset, its entry, itself.
    fn payment(&self, payer: ChannelId, id: PaymentId) -> Option<(Asset, u32, &Payment)> {
        let (entry, place) = *self.ids.get(&(payer, id))?;
        let Entry::Frame(frame) = self.entries.get(entry as usize)? else { return None };
        Some((frame.account().asset, entry, frame.payments.get(place as usize)?))
    }
}

/// The part of the books that is not a channel: one row of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ground {
    income: BTreeMap<Asset, Amount>,
    confirmed: u64,
    confirmed_time: u64,
    cursor: Bytes,
    frozen: Option<u64>,
    sealed: u64,
}

// ---- life ----------------------------------------------------------------------------------------------------------

impl Books {
    /// Empty books.
    pub fn new(domain: Domain, policy: Policy) -> Self {
        let channels = Channels::new(&policy);
        Books {
            domain,
            policy,
            channels,
            sessions: BTreeMap::new(),
            names: BTreeMap::new(),
            income: BTreeMap::new(),
            confirmed: 0,
            confirmed_time: 0,
            cursor: Bytes::new(),
            frozen: None,
            draining: false,
            sealed: 0,
            open: OpenFlush::default(),
            wants: BTreeMap::new(),
            funding: BTreeSet::new(),
            keeping: BTreeSet::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Books from the rows of a checkpoint. Rows may be ahead of it: [`Books::replay`] is idempotent.
    pub fn restore(
        domain: Domain,
        policy: Policy,
        ground: Ground,
        channels: impl IntoIterator<Item = (ChannelId, Channel)>,
    ) -> Self {
        let mut books = Books::new(domain, policy);
        let (mut restored, mut names) = (Vec::new(), Vec::new());
        for (id, channel) in channels {
            if let Some(name) = &channel.name {
                names.push((name.clone(), id));
            }
            let kept = channel.accounts.iter().filter(|(_, account)| !account.kept.is_empty());
            books.keeping.extend(kept.map(|(asset, _)| AccountId { channel: id, asset: *asset }));
            restored.push((id, books.channels.slot(id, channel)));
        }
        // Trees that are made at once are dense; those that grow are half empty.
        books.channels.fill(restored);
        books.names = names.into_iter().collect();
        let Ground { income, confirmed, confirmed_time, cursor, frozen, sealed } = ground;
        Books { income, confirmed, confirmed_time, cursor, frozen, sealed, ..books }
    }

    /// Applies a record that was written before. Everything in it is absolute, so that twice is once.
    pub fn replay(&mut self, record: &FlushRecord) {
        for entry in &record.entries {
            self.replay_entry(entry);
        }
        self.note_credits(&record.outcome(&self.domain));
        for (asset, total) in &record.income {
            let income = self.income.entry(*asset).or_default();
            *income = (*income).max(*total);
        }
        self.sealed = self.sealed.max(record.number);
    }

    /// Ends the open flush: `None` if it holds nothing that must be written.
    ///
    /// # Panics
    /// If the flush does not conserve money (I4): then nothing of it may be written.
    pub fn seal(&mut self) -> Option<FlushRecord> {
        self.seal_with_outcome().map(|(record, _)| record)
    }

    /// As [`Books::seal`], with the record's outcome, which sealing needs anyway.
    ///
    /// # Panics
    /// As [`Books::seal`].
    pub fn seal_with_outcome(&mut self) -> Option<(FlushRecord, Outcome)> {
        if self.open.entries.is_empty() && self.open.ticks.is_empty() {
            return None;
        }
        let mut open = std::mem::take(&mut self.open);
        open.entries.extend(std::mem::take(&mut open.ticks).into_iter().map(Entry::Ticks));
        self.open.keep_room(&mut open);
        let credited: Vec<CreditBase> = open.credited.iter().map(|account| self.credit_base(*account)).collect();
        let income: Vec<(Asset, Amount)> =
            open.income.keys().map(|asset| (*asset, self.income.get(asset).copied().unwrap_or_default())).collect();
        let number = self.sealed.checked_add(1).expect("flush numbers do not run out in 2^64");
        let record = FlushRecord { number, entries: open.entries, credited, income };
        self.sealed = number;
        let outcome = record.outcome(&self.domain);
        let credited = self.note_credits(&outcome);
        for (asset, debits) in &open.debits {
            let income = U256::from(open.income.get(asset).copied().unwrap_or_default().get());
            let credits = credited.get(asset).copied().unwrap_or_default();
            assert_eq!(*debits, credits.saturating_add(income), "I4: debits equal credits and income of asset {asset}");
        }
        Some((record, outcome))
    }

    /// The checkpoint row that is not a channel.
    pub fn ground(&self) -> Ground {
        Ground {
            income: self.income.clone(),
            confirmed: self.confirmed,
            confirmed_time: self.confirmed_time,
            cursor: self.cursor.clone(),
            frozen: self.frozen,
            sealed: self.sealed,
        }
    }

    /// Looks at some channels that are awake and puts to sleep those without a session that did not change since the
    /// last checkpoint. Call it now and then; it changes no answer.
    pub fn rest(&mut self, count: usize) {
        let (sessions, touched) = (&self.sessions, &self.touched);
        self.channels.rest(count, |id| sessions.contains_key(id) || touched.contains(id));
    }

    /// The channels that changed since the last call: the rows that the next checkpoint writes.
    pub fn take_touched(&mut self) -> BTreeSet<ChannelId> {
        std::mem::take(&mut self.touched)
    }
}

// ---- what is asked of the books ------------------------------------------------------------------------------------

impl Books {
    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Number of the last sealed flush.
    pub fn sealed(&self) -> u64 {
        self.sealed
    }

    /// The confirmed head: number and time.
    pub fn confirmed(&self) -> (u64, u64) {
        (self.confirmed, self.confirmed_time)
    }

    /// The ledger follower's stored position.
    pub fn cursor(&self) -> &Bytes {
        &self.cursor
    }

    /// The flush that a member holds and this store lacks, if the hub froze over it.
    pub fn frozen(&self) -> Option<u64> {
        self.frozen
    }

    /// All channels.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// One channel.
    pub fn channel(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.get(&id)
    }

    /// One account.
    pub fn account(&self, id: AccountId) -> Option<&Account> {
        self.channels.get(&id.channel)?.accounts.get(&id.asset)
    }

    /// The channel behind a name.
    pub fn named(&self, name: &str) -> Option<ChannelId> {
        self.names.get(name).copied()
    }

    /// The live session of a channel.
    pub fn session(&self, channel: ChannelId) -> Option<SessionId> {
        self.sessions.get(&channel).copied()
    }

    /// The hub's signature scheme in a channel's terms.
    pub fn scheme_of(&self, channel: ChannelId) -> Option<Scheme> {
        Scheme::from_number(self.channels.get(&channel)?.terms.hubScheme).ok()
    }

    /// The sums per asset, for an audit.
    pub fn sums(&self) -> BTreeMap<Asset, AssetSums> {
        let mut all = self.channels.sums();
        for (asset, income) in &self.income {
            all.entry(*asset).or_default().income = *income;
        }
        all
    }

    /// Collateral that payees lack, as of now; each account is named once until it is asked for again.
    ///
    /// A payee is kept at the target; for a frame that needs more at once it is as much as that, up to the maximum.
    ///
    /// Until [`Books::funding_ended`] the accounts count as being funded: a close that a deposit of the hub crosses
    /// would leave that deposit behind.
    pub fn take_wants(&mut self) -> Vec<Want> {
        let accounts = std::mem::take(&mut self.wants);
        let wants: Vec<Want> = accounts
            .into_iter()
            .filter_map(|(id, needed)| {
                let policy = self.policy.asset(id.asset)?;
                let channel = self.channels.get(&id.channel).filter(|c| c.served)?;
                let none = Account::default();
                let account = channel.accounts.get(&id.asset).unwrap_or(&none);
                let enough = policy.inbound_target.max(needed.min(policy.inbound_max));
                let amount = enough.saturating_sub(clamp(account.hub_net()));
                (!account.is_blocking() && !amount.is_zero()).then_some(Want { account: id, amount })
            })
            .collect();
        self.funding.extend(wants.iter().map(|want| want.account));
        wants
    }

    /// The deposits that were asked for are confirmed, or will not come.
    pub fn funding_ended(&mut self, accounts: impl IntoIterator<Item = AccountId>) {
        for account in accounts {
            self.funding.remove(&account);
        }
    }

    /// Looks at an account's collateral again, for a net of `needed`: the next [`Books::take_wants`] names it if it lacks
    /// some.
    pub fn want(&mut self, id: AccountId, needed: Amount) {
        let known = self.wants.entry(id).or_default();
        *known = (*known).max(needed);
    }
}

// ---- sessions ------------------------------------------------------------------------------------------------------

impl Books {
    /// A member proved who he is: from now on his older sessions are refused. Answer him when everything accepted
    /// before is durable.
    ///
    /// `newest_batch` is the newest flush whose batch signature (verified) the member showed.
    pub fn hello(&mut self, id: ChannelId, session: SessionId, newest_batch: Option<u64>) -> Result<(), Refusal> {
        let channel = self.channels.get(&id).filter(|c| c.served).ok_or(Refusal::UnknownChannel { channel: id })?;
        let assets: Vec<Asset> = channel.accounts.keys().copied().collect();
        self.sessions.insert(id, session);
        if let Some(flush) = newest_batch.filter(|flush| *flush > self.sealed) {
            self.freeze(flush);
        }
        assets.into_iter().for_each(|asset| self.want(AccountId { channel: id, asset }, Amount::ZERO));
        Ok(())
    }

    /// Somebody showed that the hub once signed something else as that flush, or a flush that is not here: this store is
    /// older than what it signed. From now on nothing is accepted.
    pub fn freeze(&mut self, flush: u64) {
        if self.frozen.is_none() {
            self.record(Entry::Frozen { flush });
        }
    }

    /// A connection ended.
    pub fn goodbye(&mut self, id: ChannelId, session: SessionId) {
        if self.sessions.get(&id) == Some(&session) {
            self.sessions.remove(&id);
        }
    }

    /// Gives a channel a name; first come, first served. The same name again is fine.
    pub fn name(&mut self, id: ChannelId, name: &str) -> Result<(), Refusal> {
        let refused = || Refusal::Name { name: name.to_owned() };
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(good) {
            return Err(refused());
        }
        match self.names.get(name) {
            Some(owner) if *owner == id => return Ok(()),
            Some(_) => return Err(refused()),
            None => {}
        }
        self.record(Entry::Named(id, name.to_owned()));
        Ok(())
    }

    /// From now on nothing new is accepted.
    pub fn drain(&mut self) {
        self.draining = true;
    }
}

// ---- paying --------------------------------------------------------------------------------------------------------

impl Books {
    /// Decides a frame whose form and signature were checked: see [`Refusal`] for the order of the checks.
    pub fn pay(
        &mut self,
        session: SessionId,
        frame: impl Into<Listed>,
        index: &impl PaymentIndex,
    ) -> Result<Paid, Refusal> {
        let (frame, list) = frame.into().into_parts();
        let from = frame.account();
        if let Some(flush) = self.known(&frame, index)? {
            return Ok(Paid::Again { flush });
        }
        self.check_running()?;
        let channel = self.channels.get(&from.channel).ok_or(Refusal::UnknownChannel { channel: from.channel })?;
        if self.sessions.get(&from.channel) != Some(&session) {
            return Err(Refusal::OldSession);
        }
        let policy = self.policy.asset(from.asset).ok_or(Refusal::UnknownAsset { asset: from.asset })?;
        let none = Account::default();
        let payer = channel.accounts.get(&from.asset).unwrap_or(&none);
        payer.check_open()?;
        payer.check_continues(&frame, list)?;
        payer.check_claim_gas(frame.lane(), GAS_LANE)?;
        policy.check_fees(&frame.payments)?;
        let mut checked: Vec<ChannelId> = Vec::new();
        for payment in &frame.payments {
            if !checked.iter().rev().any(|payee| *payee == payment.payee) {
                self.check_payee(from, payment.payee)?;
                checked.push(payment.payee);
            }
        }
        let cost = frame.cost().ok_or(Refusal::Overflow { account: from })?;
        let available = payer.member_net();
        if !covers(available, cost) {
            return Err(Refusal::InsufficientFunds { cost, available: clamp(available) });
        }
        let member_paid = payer.member_paid.checked_add(cost).ok_or(Refusal::Overflow { account: from })?;
        let credits = self.check_backing(from, frame.payments.iter().map(|p| (p.payee, p.amount)))?;
        self.take(from, frame, member_paid, credits);
        Ok(Paid::Accepted)
    }

    /// The flush that has the very same payments, if it is known; an error where only some are, or others.
    fn known(&self, frame: &Frame, index: &impl PaymentIndex) -> Result<Option<u64>, Refusal> {
        let from = frame.account();
        let next = self.sealed.saturating_add(1);
        // The ids of ticks are only known when the flush is sealed, so all of their stream are taken.
        let taken = |p: &Payment| self.open.streams.contains_key(&(from.channel, StreamId::of(p.id)));
        let find = |payment: &Payment| match self.open.payment(from.channel, payment.id) {
            Some((asset, entry, known)) => Some(KnownPayment { flush: next, asset, entry, payment: known.clone() }),
            None => index.find(from.channel, payment.id),
        };
        let mut place = None;
        for (i, payment) in frame.payments.iter().enumerate() {
            let used = Refusal::IdUsed { id: payment.id };
            match find(payment) {
                None if place.is_some() || taken(payment) => return Err(used),
                None => {}
                Some(_) if i > 0 && place.is_none() => return Err(used),
                Some(known) => {
                    let same = known.asset == from.asset && known.payment.same_content(payment);
                    let here = (known.flush, known.entry);
                    if !same || place.is_some_and(|p| p != here) {
                        return Err(used);
                    }
                    place = Some(here);
                }
            }
        }
        Ok(place.map(|(flush, _)| flush))
    }

    fn check_running(&self) -> Result<(), Refusal> {
        if self.frozen.is_some() {
            return Err(Refusal::HubFrozen);
        }
        if self.draining { Err(Refusal::Draining) } else { Ok(()) }
    }

    fn check_payee(&self, from: AccountId, payee: ChannelId) -> Result<(), Refusal> {
        if payee == ChannelId::HUB {
            return Ok(());
        }
        if payee == from.channel {
            return Err(Refusal::PayeeIsPayer);
        }
        let channel = self.channels.get(&payee).filter(|c| c.served).ok_or(Refusal::UnknownPayee { payee })?;
        if channel.accounts.get(&from.asset).is_some_and(Account::is_blocking) {
            return Err(Refusal::PayeeClosing { payee });
        }
        Ok(())
    }

    /// What each payee's account gets, in the order of first appearance, if the hub's collateral in each covers it.
    fn check_backing(
        &mut self,
        from: AccountId,
        payments: impl Iterator<Item = (ChannelId, Amount)>,
    ) -> Result<Vec<(AccountId, Amount)>, Refusal> {
        // A frame has few payees, and usually goes on with the one it just paid.
        let mut credits: Vec<(AccountId, Amount)> = Vec::new();
        for (channel, amount) in payments.filter(|(payee, _)| *payee != ChannelId::HUB) {
            let account = AccountId { channel, asset: from.asset };
            match credits.iter_mut().rev().find(|(known, _)| *known == account) {
                Some((_, credit)) => *credit = credit.checked_add(amount).ok_or(Refusal::Overflow { account })?,
                None => credits.push((account, amount)),
            }
        }
        // Of several that lack something the lowest id is named, whatever the payer's order.
        let mut in_order: Vec<&(AccountId, Amount)> = credits.iter().collect();
        in_order.sort_unstable();
        let mut short = None;
        for (account, credit) in in_order {
            let held = self.account(*account);
            let backing = held.map(Account::hub_net).unwrap_or_default();
            if held.map_or(Some(*credit), |a| a.hub_paid.checked_add(*credit)).is_none() {
                return Err(Refusal::Overflow { account: *account });
            }
            if !covers(backing, *credit) && short.is_none() {
                short = Some((*account, credit.saturating_sub(clamp(backing))));
            }
        }
        match short {
            None => Ok(credits),
            Some((account, missing)) => {
                credits.iter().for_each(|(account, credit)| self.want(*account, *credit));
                Err(Refusal::PayeeUnbacked { payee: account.channel, missing })
            }
        }
    }

    /// The one place where an accepted frame changes the books.
    fn take(&mut self, from: AccountId, frame: Frame, member_paid: Amount, credits: Vec<(AccountId, Amount)>) {
        self.entry(from).lanes.insert(frame.lane(), LaneVoucher::Plain(frame.voucher.clone()));
        let payees: Vec<AccountId> = credits.iter().map(|(account, _)| *account).collect();
        self.move_money(from, member_paid, credits);
        payees.into_iter().for_each(|account| self.note_credited(account));
        let entry = u32::try_from(self.open.entries.len()).expect("a flush holds fewer than 2^32 entries");
        let places =
            frame.payments.iter().zip(0..).map(|(payment, place)| ((from.channel, payment.id), (entry, place)));
        self.open.ids.extend(places);
        self.open.entries.push(Entry::Frame(frame));
    }

    /// From the payer to the payees and, what is left, to the hub.
    fn move_money(&mut self, from: AccountId, member_paid: Amount, credits: Vec<(AccountId, Amount)>) {
        let payer = self.entry(from);
        let debit = member_paid.saturating_sub(payer.member_paid);
        payer.member_paid = member_paid;
        let credited =
            Amount::checked_sum(credits.iter().map(|(_, credit)| *credit)).expect("parts of a sum that fits");
        for (account, credit) in credits {
            let payee = self.entry(account);
            payee.hub_paid = payee.hub_paid.checked_add(credit).expect("checked before the frame was taken");
        }
        let income = debit.saturating_sub(credited);
        let total = self.income.entry(from.asset).or_default();
        *total = total.saturating_add(income);
        let of_flush = self.open.income.entry(from.asset).or_default();
        *of_flush = of_flush.saturating_add(income);
        let debits = self.open.debits.entry(from.asset).or_default();
        *debits = debits.saturating_add(debit.into());
    }

    /// The accounts of a flush, in the order of their first credit.
    fn note_credited(&mut self, account: AccountId) {
        if account.channel != ChannelId::HUB && self.open.seen.insert(account) {
            self.open.credited.push(account);
            self.note_low_backing(account);
        }
    }

    /// Asks for collateral before it runs out: at half of the target.
    fn note_low_backing(&mut self, id: AccountId) {
        let target = self.policy.asset(id.asset).map(|p| p.inbound_target).unwrap_or_default();
        let low = self.account(id).is_some_and(|a| !covers(a.hub_net(), Amount::new(target.get() / 2)));
        if low {
            self.want(id, Amount::ZERO);
        }
    }
}

// ---- streams -------------------------------------------------------------------------------------------------------

impl Books {
    /// Decides the opening of a stream whose form and signature were checked; the same opening again is accepted again.
    pub fn open_stream(&mut self, session: SessionId, opening: StreamOpening) -> Result<(), Refusal> {
        let from = opening.account();
        let known = self.lane(from, opening.lane()).and_then(LaneVoucher::ticks);
        if known.is_some_and(|known| *known.opening() == opening) {
            return Ok(());
        }
        let payer = self.check_payer(session, from)?;
        let (tip, terms) = (payer.tip(opening.lane()), *opening.terms());
        if tip.opened(&terms) != opening.tip(0) {
            return Err(Refusal::LaneBroken { lane: opening.lane(), cumulative: tip.cumulative });
        }
        payer.check_claim_gas(opening.lane(), GAS_LANE)?;
        let price = self.policy.asset(from.asset).map(|policy| policy.fee(terms.amount)).unwrap_or_default();
        if terms.fee < price {
            return Err(Refusal::FeeTooLow { id: terms.stream.payment(0), given: terms.fee, price });
        }
        self.check_payee(from, terms.payee)?;
        // Ticks of this flush stand at its end, where an opening of the same stream would take their ids again.
        if self.open.streams.contains_key(&(from.channel, terms.stream)) {
            return Err(Refusal::IdUsed { id: terms.stream.payment(0) });
        }
        self.record(Entry::Stream(opening));
        Ok(())
    }

    /// Decides ticks whose word was checked: everything between the index accepted before and this one is paid.
    pub fn tick(
        &mut self,
        session: SessionId,
        from: AccountId,
        lane: u32,
        revealed: Revealed,
        index: &impl PaymentIndex,
    ) -> Result<Ticked, Refusal> {
        let stream = self.lane(from, lane).and_then(LaneVoucher::ticks);
        let stream = stream.filter(|stream| stream.anchor() == revealed.anchor());
        if stream.is_some_and(|stream| revealed.index() <= stream.index()) {
            return Ok(Ticked::Known);
        }
        let payer = self.check_payer(session, from)?;
        let tip = payer.tip(lane);
        let Some(stream) = stream else { return Err(Refusal::LaneBroken { lane, cumulative: tip.cumulative }) };
        // The word may have been checked against another opening, with the same anchor and more ticks.
        let (reached, ticks) = (revealed.index(), stream.opening().voucher().body().ticks);
        if reached > ticks {
            return Err(StreamError::BeyondChain { index: reached, ticks }.into());
        }
        let paid = TicksPaid {
            account: from,
            lane,
            anchor: revealed.anchor(),
            terms: *stream.opening().terms(),
            before: stream.index(),
            index: revealed.index(),
            word: revealed.word(),
            cumulative: stream.opening().tip(revealed.index()).cumulative,
        };
        payer.check_claim_gas(lane, GAS_LANE.saturating_add(GAS_TICK.saturating_mul(paid.index.into())))?;
        self.check_payee(from, paid.terms.payee)?;
        let cost = paid.cumulative.saturating_sub(tip.cumulative);
        let available = payer.member_net();
        if !covers(available, cost) {
            return Err(Refusal::InsufficientFunds { cost, available: clamp(available) });
        }
        let member_paid = payer.member_paid.checked_add(cost).ok_or(Refusal::Overflow { account: from })?;
        let place = self.check_tick_id(&paid, index)?;
        let credits = self.check_backing(from, std::iter::once((paid.terms.payee, paid.amount())))?;
        if let Some(lane) = self.entry(from).lanes.get_mut(&lane).and_then(LaneVoucher::ticks_mut) {
            lane.advance(&revealed);
        }
        self.move_money(from, member_paid, credits);
        self.note_credited(AccountId { channel: paid.terms.payee, asset: from.asset });
        match place {
            Some(place) => {
                let before = self.open.ticks[place].before;
                self.open.ticks[place] = TicksPaid { before, ..paid };
            }
            None => {
                self.open.streams.insert((from.channel, paid.terms.stream), self.open.ticks.len());
                self.open.ticks.push(paid);
            }
        }
        Ok(Ticked::Accepted)
    }

    /// Decides a fold whose signature was checked: a plain voucher of what the lane is worth; the same again is accepted
    /// again.
    pub fn fold(&mut self, session: SessionId, fold: Signed<Voucher>) -> Result<(), Refusal> {
        let (from, lane) = (fold.body().account(), fold.body().lane);
        let known = self.lane(from, lane);
        if known.is_some_and(|known| matches!(known, LaneVoucher::Plain(voucher) if voucher.body() == fold.body())) {
            return Ok(());
        }
        let tip = self.check_payer(session, from)?.tip(lane);
        let folded = known.and_then(LaneVoucher::ticks).map(|ticks| tip.folded(ticks.anchor(), ticks.index()));
        let given = LaneTip { cumulative: Amount::new(fold.body().cumulative), memo: fold.body().memo };
        if folded != Some(given) {
            return Err(Refusal::LaneBroken { lane, cumulative: tip.cumulative });
        }
        self.record(Entry::Folded(fold));
        Ok(())
    }

    fn lane(&self, id: AccountId, lane: u32) -> Option<&LaneVoucher> {
        self.account(id)?.lanes.get(&lane)
    }

    /// What every call of a payer besides a frame's needs first, in the order of [`Refusal`]. As with frames, what was
    /// accepted before is known in any case: a refusal of it would be untrue.
    fn check_payer(&self, session: SessionId, from: AccountId) -> Result<&Account, Refusal> {
        self.check_running()?;
        let unknown = Refusal::UnknownChannel { channel: from.channel };
        let channel = self.channels.get(&from.channel).ok_or(unknown)?;
        if self.sessions.get(&from.channel) != Some(&session) {
            return Err(Refusal::OldSession);
        }
        self.policy.asset(from.asset).ok_or(Refusal::UnknownAsset { asset: from.asset })?;
        let account = channel.accounts.get(&from.asset);
        let account = account.ok_or(Refusal::InsufficientFunds { cost: Amount::ZERO, available: Amount::ZERO })?;
        account.check_open()?;
        Ok(account)
    }

    /// Where the open flush has ticks of the same opening, if it has; an error where the id that these would make one
    /// payment under was used before.
    fn check_tick_id(&self, paid: &TicksPaid, index: &impl PaymentIndex) -> Result<Option<usize>, Refusal> {
        let (payer, id) = (paid.account.channel, paid.id());
        let place = self.open.streams.get(&(payer, paid.terms.stream)).copied();
        let another = |at: usize| {
            let known = &self.open.ticks[at];
            (known.account, known.lane, known.anchor) != (paid.account, paid.lane, paid.anchor)
        };
        if place.is_some_and(another) || self.open.ids.contains_key(&(payer, id)) || index.find(payer, id).is_some() {
            return Err(Refusal::IdUsed { id });
        }
        Ok(place)
    }
}

// ---- acknowledgements ----------------------------------------------------------------------------------------------

impl Books {
    /// Takes a payee's acknowledgement, verified against its key; gives what each payer is to be told.
    pub fn ack(&mut self, ack: Signed<Ack>) -> Result<Vec<Delivery>, Refusal> {
        let id = ack.body().account();
        let account = self.account(id).ok_or(Refusal::UnknownChannel { channel: id.channel })?;
        let bad = || Refusal::BadAck { credits: ack.body().credits, acked: account.acked, newest: account.credits };
        if ack.body().credits <= account.acked || ack.body().credits > account.credits {
            return Err(bad());
        }
        let deliveries = match account.links.front() {
            Some(first) if first.number <= ack.body().credits => account.deliveries(&ack).ok_or_else(bad)?,
            _ => Vec::new(),
        };
        self.record(Entry::Acked(ack));
        Ok(deliveries)
    }
}

// ---- settling ------------------------------------------------------------------------------------------------------

impl Books {
    /// Proposes a settlement. From here on its totals count as withdrawn until it is over; a close freezes the account.
    /// The proposal may leave when the flush is durable.
    pub fn propose(&mut self, id: AccountId, ask: Ask) -> Result<Settlement, Refusal> {
        if self.frozen.is_some() {
            return Err(Refusal::HubFrozen);
        }
        let account = self.account(id).ok_or(Refusal::UnknownChannel { channel: id.channel })?;
        if let (Ask::Close, Some(waiting)) = (ask, account.close_that_waits()) {
            return Ok(waiting.clone());
        }
        account.check_open()?;
        if let Some(first) = account.kept.first().filter(|_| account.kept.len() >= KEPT_MAX) {
            return Err(Refusal::TooManyKept { kept: account.kept.len(), until: first.settlement.validUntil });
        }
        if ask == Ask::Close && self.funding.contains(&id) {
            return Err(Refusal::BeingFunded);
        }
        let (member_withdrawn, hub_withdrawn) = account.split(ask)?;
        let seq = account.proposed.max(account.ledger.seq).saturating_add(1);
        assert!(seq < account.ledger.seq.saturating_add(SEQ_AHEAD_MAX), "a few proposals cannot use up 2^32 numbers");
        let settlement = Settlement {
            channelId: id.channel.0,
            asset: id.asset,
            seq,
            memberWithdrawn: member_withdrawn.get(),
            hubWithdrawn: hub_withdrawn.get(),
            validUntil: self.confirmed_time.saturating_add(self.policy.settlement_validity_s),
            close: ask == Ask::Close,
        };
        self.record(Entry::Proposed(settlement.clone()));
        Ok(settlement)
    }

    /// The proposal of an account that waits for the member's signature, to be sent again.
    pub fn waiting(&self, id: AccountId) -> Vec<Settlement> {
        self.account(id).map(|a| a.kept.iter().map(|k| k.settlement.clone()).collect()).unwrap_or_default()
    }

    /// Takes the member's signature under a proposal, verified against its key. The hub's own follows with the flush,
    /// so a frozen hub does not take it.
    pub fn agree(&mut self, signed: Signed<Settlement>) -> Result<(), Refusal> {
        if self.frozen.is_some() {
            return Err(Refusal::HubFrozen);
        }
        let (id, seq) = (signed.body().account(), signed.body().seq);
        let missing = Refusal::NoSuchSettlement { seq };
        let Some(account) = self.account(id) else { return Err(missing) };
        if !account.kept.iter().any(|k| k.settlement == *signed.body()) {
            return Err(missing);
        }
        if account.agreed.iter().any(|known| known.body() == signed.body()) {
            return Ok(());
        }
        self.record(Entry::Agreed(signed));
        Ok(())
    }
}

// ---- the ledger ----------------------------------------------------------------------------------------------------

impl Books {
    /// Takes what the ledger's follower saw. Channels with other terms than the offered ones are not served; the
    /// return value names them with the reason.
    pub fn ledger(&mut self, update: LedgerUpdate) -> Vec<(ChannelId, &'static str)> {
        let mut unserved = Vec::new();
        for terms in update.opened {
            let id = self.domain.channel_id(&terms);
            match self.policy.check_terms(&terms) {
                Ok(()) if self.channels.contains_key(&id) => {}
                Ok(()) => self.record(Entry::Opened(terms)),
                Err(why) => unserved.push((id, why)),
            }
        }
        // Anybody may deposit any token for anybody: accounts in assets that are not served would fill a victim's channel
        // without end.
        let counts = |id: &AccountId| {
            let channel = self.channels.get(&id.channel);
            channel.is_some_and(|c| self.policy.asset(id.asset).is_some() || c.accounts.contains_key(&id.asset))
        };
        let totals: Vec<(AccountId, Totals)> = update.totals.into_iter().filter(|(id, _)| counts(id)).collect();
        let expires = self.any_kept_is_over(update.confirmed_time);
        let moved = update.cursor != self.cursor;
        if totals.is_empty() && !expires && !moved {
            self.confirmed = self.confirmed.max(update.confirmed);
            self.confirmed_time = self.confirmed_time.max(update.confirmed_time);
            return unserved;
        }
        self.record(Entry::Ledger {
            confirmed: update.confirmed,
            confirmed_time: update.confirmed_time,
            totals,
            cursor: update.cursor,
        });
        unserved
    }

    fn any_kept_is_over(&self, confirmed_time: u64) -> bool {
        let is_over = |a: &Account| a.kept.iter().any(|k| k.is_over(a.ledger.seq_confirmed, confirmed_time));
        self.keeping.iter().any(|id| self.account(*id).is_some_and(is_over))
    }
}

// ---- applying ------------------------------------------------------------------------------------------------------

impl Books {
    /// Adds an entry to the open flush and applies it.
    fn record(&mut self, entry: Entry) {
        self.replay_entry(&entry);
        self.open.entries.push(entry);
    }

    /// Applies an entry; absolute, so that it may be applied to a state that has it already.
    fn replay_entry(&mut self, entry: &Entry) {
        match entry {
            Entry::Opened(terms) => {
                let id = self.domain.channel_id(terms);
                self.touched.insert(id);
                if !self.channels.contains_key(&id) {
                    let accounts = BTreeMap::new();
                    self.channels.insert(id, Channel { terms: terms.clone(), name: None, served: false, accounts });
                }
            }
            Entry::Ledger { confirmed, confirmed_time, totals, cursor } => {
                self.confirmed = self.confirmed.max(*confirmed);
                self.confirmed_time = self.confirmed_time.max(*confirmed_time);
                self.cursor = cursor.clone();
                for (id, totals) in totals {
                    self.apply_totals(*id, *totals);
                }
                self.drop_kept_that_are_over();
            }
            Entry::Named(id, name) => {
                if let Some(channel) = self.channels.get_mut(id) {
                    if let Some(old) = channel.name.replace(name.clone()) {
                        self.names.remove(&old);
                    }
                    self.names.insert(name.clone(), *id);
                    self.touched.insert(*id);
                }
            }
            Entry::Frame(frame) => {
                let account = self.entry(frame.account());
                let before = account.tip(frame.lane()).cumulative;
                let after = frame.tip().cumulative;
                if after > before {
                    account.member_paid = account.member_paid.saturating_add(after.saturating_sub(before));
                    account.lanes.insert(frame.lane(), LaneVoucher::Plain(frame.voucher.clone()));
                }
            }
            Entry::Stream(opening) => {
                self.entry(opening.account()).raise_lane(LaneVoucher::opened(opening.clone()));
            }
            Entry::Folded(voucher) => {
                self.entry(voucher.body().account()).raise_lane(LaneVoucher::Plain(voucher.clone()));
            }
            Entry::Ticks(paid) => {
                let account = self.entry(paid.account);
                let before = account.tip(paid.lane).cumulative;
                // What continued the lane in the same flush stands before the ticks that it counts on.
                let lane = account.lanes.get_mut(&paid.lane).and_then(LaneVoucher::ticks_mut);
                if let Some(lane) = lane.filter(|lane| lane.opening().tip(paid.index).cumulative == paid.cumulative) {
                    lane.advance(&paid.revealed());
                }
                let after = account.tip(paid.lane).cumulative;
                account.member_paid = account.member_paid.saturating_add(after.saturating_sub(before));
            }
            Entry::Proposed(settlement) => {
                let account = self.entry(settlement.account());
                if account.proposed < settlement.seq {
                    account.proposed = settlement.seq;
                    account.kept.push(Kept { settlement: settlement.clone() });
                    self.keeping.insert(settlement.account());
                }
            }
            Entry::Agreed(signed) => {
                let account = self.entry(signed.body().account());
                let kept = account.kept.iter().any(|k| k.settlement == *signed.body());
                if kept && !account.agreed.contains(signed) {
                    account.agreed.push(signed.clone());
                }
            }
            Entry::Acked(ack) => {
                let account = self.entry(ack.body().account());
                account.acked = account.acked.max(ack.body().credits);
                while let Some(link) = account.links.pop_front_if(|link| link.number <= account.acked) {
                    account.links_base = link.head;
                }
            }
            Entry::Frozen { flush } => self.frozen = Some(*flush),
        }
    }

    fn apply_totals(&mut self, id: AccountId, totals: Totals) {
        let minimum = self.policy.asset(id.asset).map(|p| p.deposit_min);
        let Some(channel) = self.channels.get_mut(&id.channel) else { return };
        channel.served |= minimum.is_some_and(|m| totals.member_deposit >= m && !totals.member_deposit.is_zero());
        channel.accounts.entry(id.asset).or_default().ledger = totals;
        self.touched.insert(id.channel);
        if channel.served {
            let assets: Vec<Asset> = channel.accounts.keys().copied().collect();
            assets.into_iter().for_each(|asset| self.want(AccountId { channel: id.channel, asset }, Amount::ZERO));
        }
    }

    fn drop_kept_that_are_over(&mut self) {
        let time = self.confirmed_time;
        for id in std::mem::take(&mut self.keeping) {
            let account = self.entry(id);
            let seq = account.ledger.seq_confirmed;
            account.kept.retain(|k| !k.is_over(seq, time));
            account.agreed.retain(|s| account.kept.iter().any(|k| k.settlement == *s.body()));
            if !account.kept.is_empty() {
                self.keeping.insert(id);
            }
        }
    }

    /// Applies the credits that a flush numbers; gives their sum per asset.
    fn note_credits(&mut self, outcome: &Outcome) -> BTreeMap<Asset, U256> {
        let mut sums: BTreeMap<Asset, U256> = BTreeMap::new();
        for credit in outcome.credits.iter().filter(|c| !c.is_for_hub()) {
            let id = credit.receipt.account();
            let sum = sums.entry(id.asset).or_default();
            *sum = sum.saturating_add(U256::from(credit.receipt.amount));
            let account = self.entry(id);
            if account.credits >= credit.receipt.credit {
                continue;
            }
            let total = Amount::new(credit.receipt.total);
            account.credits = credit.receipt.credit;
            account.credited = total;
            account.hub_paid = account.hub_paid.max(total);
            account.head = credit.head;
            let Credit { payer, digest, head, .. } = *credit;
            account.links.push_back(Link { number: account.credits, payer, digest, head });
            if account.links.len() > LINKS_MAX
                && let Some(oldest) = account.links.pop_front()
            {
                account.links_base = oldest.head;
            }
        }
        sums
    }

    fn credit_base(&self, id: AccountId) -> CreditBase {
        let account = self.account(id).expect("a credited account exists");
        CreditBase { account: id, credits: account.credits, total: account.credited, head: account.head }
    }

    /// The account, made if it is new; marks its channel as touched.
    fn entry(&mut self, id: AccountId) -> &mut Account {
        self.touched.insert(id.channel);
        let channel = self.channels.get_mut(&id.channel).expect("entries are recorded for known channels only");
        channel.accounts.entry(id.asset).or_default()
    }
}

// ---- sums ----------------------------------------------------------------------------------------------------------

impl AssetSums {
    /// Counts an account.
    fn add(&mut self, account: &Account) {
        self.custody = self.custody.saturating_add(account.ledger.custody());
        self.paid = self.paid.saturating_add(account.member_paid.into());
        self.credited = self.credited.saturating_add(account.hub_paid.into());
        if account.ledger.status == Status::Final {
            self.windfall = self.windfall.saturating_add(account.windfall());
        } else {
            let (member, hub) = account.ledger_nets();
            self.member_nets = self.member_nets.saturating_add(member);
            self.hub_nets = self.hub_nets.saturating_add(hub);
        }
    }

    /// Takes an account out again that was counted as it is.
    fn remove(&mut self, account: &Account) {
        let mut one = AssetSums::default();
        one.add(account);
        self.custody = self.custody.saturating_sub(one.custody);
        self.paid = self.paid.saturating_sub(one.paid);
        self.credited = self.credited.saturating_sub(one.credited);
        self.windfall = self.windfall.saturating_sub(one.windfall);
        self.member_nets = self.member_nets.saturating_sub(one.member_nets);
        self.hub_nets = self.hub_nets.saturating_sub(one.hub_nets);
    }
}

// ---- one account ---------------------------------------------------------------------------------------------------

impl Account {
    /// Where a lane stands.
    pub fn tip(&self, lane: u32) -> LaneTip {
        self.lanes.get(&lane).map_or_else(LaneTip::default, LaneVoucher::tip)
    }

    /// Takes a lane's next voucher of a replay: one that is worth less than what is there was overtaken.
    fn raise_lane(&mut self, voucher: LaneVoucher) {
        let (before, after) = (self.tip(voucher.lane()).cumulative, voucher.value());
        if after >= before {
            self.member_paid = self.member_paid.saturating_add(after.saturating_sub(before));
            self.lanes.insert(voucher.lane(), voucher);
        }
    }

    /// Whether the evidence of the member's direction fits one call if claiming `lane` takes `gas`.
    fn check_claim_gas(&self, lane: u32, gas: u64) -> Result<(), Refusal> {
        // So few lanes cannot pass the bound, whatever their ticks.
        if self.lanes.len() < LANES_OF_TICKS {
            return Ok(());
        }
        let others = self.lanes.iter().filter(|(n, _)| **n != lane).map(|(_, voucher)| voucher.claim_gas());
        let gas = others.fold(gas, u64::saturating_add);
        if gas > CLAIM_GAS_MAX { Err(Refusal::FoldFirst { gas, max: CLAIM_GAS_MAX }) } else { Ok(()) }
    }

    /// What the member may still pay.
    pub fn member_net(&self) -> Net {
        self.ledger.member_net(&self.kept, self.member_paid, self.hub_paid)
    }

    /// What the hub may still credit.
    pub fn hub_net(&self) -> Net {
        self.ledger.hub_net(&self.kept, self.member_paid, self.hub_paid)
    }

    /// Both nets by what the ledger has posted only: their sum is the custody.
    pub fn ledger_nets(&self) -> (Net, Net) {
        let t = &self.ledger;
        (t.member_net(&[], self.member_paid, self.hub_paid), t.hub_net(&[], self.member_paid, self.hub_paid))
    }

    /// For a final account: what the ledger paid the hub beyond its books.
    pub fn windfall(&self) -> Net {
        net([self.ledger.hub_withdrawn, self.hub_paid], [self.ledger.hub_deposit, self.member_paid])
    }

    /// Whether payments from and to the account are refused: closing, final, or a close may still be posted.
    pub fn is_blocking(&self) -> bool {
        self.check_open().is_err()
    }

    fn check_open(&self) -> Result<(), Refusal> {
        if self.ledger.status != Status::Open {
            return Err(Refusal::NotOpen { status: self.ledger.status });
        }
        match self.kept.iter().find(|k| k.closes()) {
            Some(close) => Err(Refusal::Freezing { until: close.settlement.validUntil }),
            None => Ok(()),
        }
    }

    /// A proposed close that the member has not signed: who asks again, because it was lost with a session, gets it again.
    fn close_that_waits(&self) -> Option<&Settlement> {
        let unsigned = |s: &&Settlement| !self.agreed.iter().any(|signed| signed.body() == *s);
        self.kept.iter().filter(|k| k.closes()).map(|k| &k.settlement).find(unsigned)
    }

    fn check_continues(&self, frame: &Frame, list: B256) -> Result<(), Refusal> {
        let tip = self.tip(frame.lane());
        match tip.after_list(&frame.payments, || list) {
            Some(next) if next == frame.tip() => Ok(()),
            Some(_) | None => Err(Refusal::LaneBroken { lane: frame.lane(), cumulative: tip.cumulative }),
        }
    }

    /// The totals that a settlement would carry.
    fn split(&self, ask: Ask) -> Result<(Amount, Amount), Refusal> {
        let (member, hub) = self.ledger.withdrawn_with(&self.kept);
        let more = |asked: Amount, available: Net, withdrawn: Amount| {
            if asked.is_zero() {
                return Err(Refusal::NothingToSettle);
            }
            let room = clamp(available).min(clamp(self.custody_with_kept(member, hub)));
            match withdrawn.checked_add(asked).filter(|_| asked <= room) {
                Some(total) => Ok(total),
                None => Err(Refusal::PayoutTooLarge { asked, available: room }),
            }
        };
        match ask {
            Ask::Withdraw(asked) => Ok((more(asked, self.member_net(), member)?, hub)),
            Ask::Reclaim(asked) => Ok((member, more(asked, self.hub_net(), hub)?)),
            Ask::Close => self.close_split(member, hub),
        }
    }

    /// Both nets in full, if each total is at least what may already be withdrawn.
    fn close_split(&self, member: Amount, hub: Amount) -> Result<(Amount, Amount), Refusal> {
        let zero = Amount::ZERO;
        let member_total = net([self.ledger.member_deposit, self.hub_paid], [self.member_paid, zero]);
        let hub_total = net([self.ledger.hub_deposit, self.member_paid], [self.hub_paid, zero]);
        if covers(member_total, member) && covers(hub_total, hub) {
            Ok((clamp(member_total), clamp(hub_total)))
        } else {
            Err(Refusal::CannotClose)
        }
    }

    fn custody_with_kept(&self, member: Amount, hub: Amount) -> Net {
        net([self.ledger.member_deposit, self.ledger.hub_deposit], [member, hub])
    }

    /// What each payer is told of an acknowledgement, or `None` if its head is not that of its credit.
    fn deliveries(&self, ack: &Signed<Ack>) -> Option<Vec<Delivery>> {
        let covered: Vec<&Link> = self.links.iter().take_while(|link| link.number <= ack.body().credits).collect();
        let last = covered.last()?;
        if last.number != ack.body().credits || last.head != ack.body().head {
            return None;
        }
        let mut told = BTreeSet::new();
        let firsts: Vec<usize> = (0..covered.len()).filter(|&i| told.insert(covered[i].payer)).collect();
        let mut deliveries = Vec::new();
        let mut digests = 0usize;
        for i in firsts.into_iter().rev() {
            digests = digests.saturating_add(covered.len() - i);
            if digests > DELIVERED_DIGESTS_MAX {
                break;
            }
            let link = covered[i];
            let head_before = i.checked_sub(1).map_or(self.links_base, |previous| covered[previous].head);
            deliveries.push(Delivery {
                payer: link.payer,
                ack: ack.clone(),
                credit: link.number,
                head_before,
                digests: covered[i.saturating_add(1)..].iter().map(|l| l.digest).collect(),
            });
        }
        deliveries.reverse();
        Some(deliveries)
    }
}

impl Policy {
    /// The terms of an asset.
    pub fn asset(&self, asset: Asset) -> Option<&AssetPolicy> {
        self.assets.iter().find(|a| a.asset == asset)
    }

    /// Whether terms equal what the hub offers, with a member's key that the ledger will accept.
    pub fn check_terms(&self, terms: &ChannelTerms) -> Result<(), &'static str> {
        if terms.hub != self.hub {
            return Err("another hub's payout account");
        }
        let scheme = Scheme::from_number(terms.hubScheme).map_err(|_| "an unknown hub scheme")?;
        if !self.keys.contains(&PublicKey { scheme, bytes: terms.hubKey }) {
            return Err("not this hub's voucher key");
        }
        if terms.challengePeriod != self.challenge_period_s {
            return Err("another challenge period than the offered one");
        }
        let scheme = Scheme::from_number(terms.memberScheme).map_err(|_| "an unknown member scheme")?;
        PublicKey::new(scheme, terms.memberKey).map(|_| ()).map_err(|_| "an unusable member key")
    }
}

impl AssetPolicy {
    /// The least fee of a payment: `flat + ceil(amount * ppm / 1,000,000)`.
    pub fn fee(&self, amount: Amount) -> Amount {
        let million = U256::from(1_000_000u32);
        let share = U256::from(amount.get()).saturating_mul(U256::from(self.fee_ppm)).div_ceil(million);
        let fee = share.saturating_add(U256::from(self.fee_flat.get()));
        Amount::new(u128::try_from(fee).unwrap_or(u128::MAX))
    }

    fn check_fees(&self, payments: &[Payment]) -> Result<(), Refusal> {
        let low = payments.iter().map(|p| (p, self.fee(p.amount))).find(|(p, price)| p.fee < *price);
        match low {
            Some((p, price)) => Err(Refusal::FeeTooLow { id: p.id, given: p.fee, price }),
            None => Ok(()),
        }
    }
}
