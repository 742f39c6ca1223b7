//! The hub's side of the ledger: it follows, funds, settles, watches and collects.
//!
//! - The *follower* turns events into absolute totals and feeds them to the books together with its own position, in
//!   one record. Deposits count when confirmed; withdrawals, status, deadline and proven totals when seen.
//! - *Funding* deposits the collateral that payees lack, in batches, and keeps at it until it is there; once, also where a
//!   run ends with a deposit on its way.
//! - The *poster* posts settlements that both parties signed, also those that an earlier run left behind or that a
//!   reorganisation took out of the chain.
//! - The *tower* answers every close with everything that the hub holds, of both directions, and finalizes.
//! - The *collector* claims what the contract keeps for the hub.
//!
//! All of them only carry out what the books decided and what is durable. While the ledger is away payments go on; the
//! books' rules keep them safe, and an alarm tells.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Bytes, TxHash, U256};
use dispute::adjudicator::Status as LedgerStatus;
use dispute::cursor::{CursorState, Item, Step, Update, follow};
use dispute::settlement::{self, Packed};
use dispute::submitter::{Herald, Order, Outcome, Submitter, Urgency};
use dispute::watchtower::{Alarm, Save, Tower, TowerHandle, TowerHost, run_tower, tower_channel};
use dispute::{
    Call, Chain, ChainError, Claim, CloseOrder, EventKind, FundOrder, LedgerBooks, LedgerEvent, SettleOrder,
};
use futures::StreamExt;
use proto::account::{Status, Totals, clamp};
use proto::books::{LedgerUpdate, Want};
use proto::typed::{ChannelTerms, Settlement};
use proto::wire::{self, v1};
use proto::{AccountId, Amount, Asset, NATIVE, Side, Signed};
use tokio::sync::{mpsc, oneshot};

use crate::core::{Core, Ended};
use crate::sequencer::Command;

/// Blocks without events after which the follower's position is stored anyway, so that a restart reads few.
const POSITION_EVERY_BLOCKS: u64 = 64;
/// Accounts of one ledger entry: a record stays small, whatever a range of blocks holds.
const TOTALS_MAX: usize = 1024;
/// Settlements gathered for one round of posting.
const POST_MAX: usize = 256;
/// How often a settlement that could not be sent is tried before its member is told, who can post it himself then.
const POST_ATTEMPTS: u32 = 5;
/// How long transactions of an earlier run are waited for before anything is sent that they may hold already.
const EARLIER_PATIENCE: Duration = Duration::from_secs(120);
/// Pause before the ledger is asked again after it failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Vaults that wait for being collected.
const CLAIMS_MAX: usize = 1024;

/// What others ask of the ledger tasks.
#[derive(Clone, Debug)]
pub(crate) struct LedgerHandle {
    submitter: Submitter,
    account: Address,
}

/// Why a unilateral close was not started.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The hub runs without a ledger.
    #[error("this hub has no ledger; start it with one")]
    NoLedger,
    /// No such account.
    #[error("{account} is not an account of this hub; list its channels first")]
    UnknownAccount {
        /// The account.
        account: AccountId,
    },
    /// The ledger did not take it.
    #[error("the close was not started: {why}; look at the account's status on the ledger, then try again")]
    Refused {
        /// What the ledger said.
        why: String,
    },
    /// The hub is shutting down.
    #[error("the hub is shutting down; start it and try again")]
    Ended,
}

pub(crate) struct LedgerTasks {
    pub(crate) core: Arc<Core>,
    pub(crate) chain: Chain,
    pub(crate) submitter: Submitter,
    pub(crate) account: Address,
    pub(crate) start_block: u64,
    pub(crate) poll: Duration,
    pub(crate) agreed: mpsc::UnboundedReceiver<(AccountId, u64)>,
}

impl LedgerTasks {
    pub(crate) fn handle(&self) -> LedgerHandle {
        LedgerHandle { submitter: self.submitter.clone(), account: self.account }
    }

    /// Runs everything until the hub ends.
    pub(crate) async fn run(self) {
        let LedgerTasks { core, chain, submitter, account, start_block, poll, agreed } = self;
        let Ok(noted) = core.query(|books| books.cursor().clone()).await else { return };
        let noted = Noted::read(&noted, start_block);
        let position = noted.cursor.clone();
        let _grounded = Grounded(submitter.clone());
        let (place, earlier) = (Arc::new(Place(tokio::sync::Mutex::new(noted))), Arc::<Earlier>::default());
        let domain = core.domain;
        let (tower, requests) = tower_channel();
        let (claims, claimable) = mpsc::channel(CLAIMS_MAX);
        // Unbounded, so that following never waits for posting; what is in it is in the cursor's window, and few.
        let (reverted, taken_back) = mpsc::unbounded_channel();
        let host = Host { core: core.clone() };
        let watching =
            run_tower(Tower::new(domain), position.clone(), chain.clone(), submitter.clone(), poll, host, requests);
        let follower = Follower {
            core: core.clone(),
            chain: chain.clone(),
            tower,
            claims,
            reverted,
            account,
            stored_at: 0,
            place: place.clone(),
        };
        let funding = Funding {
            core: core.clone(),
            chain: chain.clone(),
            submitter: submitter.clone(),
            account,
            place: place.clone(),
            earlier: earlier.clone(),
            poll,
            approved: BTreeSet::new(),
            pending: BTreeMap::new(),
            later: BTreeMap::new(),
            taken: BTreeSet::new(),
            empty: (0, Instant::now()),
        };
        let poster = Poster {
            core: core.clone(),
            submitter: submitter.clone(),
            place,
            earlier,
            waiting: Vec::new(),
            loose: BTreeSet::new(),
            posted: BTreeMap::new(),
        };
        let ended = core.ended.clone();
        tokio::select! {
            () = ended.cancelled() => {}
            _ = follower.run(position, poll) => {}
            _ = funding.run() => {}
            _ = poster.run(agreed, taken_back) => {}
            _ = collect(core.clone(), submitter, account, claimable) => {}
            stopped = watching => core.alarm(format!("{stopped}")),
        }
    }
}

/// Where the follower stopped, and the nonce below which the hub's account has sent deposits: together one value in the
/// books, so that a start finds both.
struct Place(tokio::sync::Mutex<Noted>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Noted {
    cursor: CursorState,
    is_stored: bool,
    nonces: u64,
}

impl Noted {
    /// Reads what the books keep.
    fn read(bytes: &[u8], start_block: u64) -> Noted {
        let noted = postcard::take_from_bytes::<CursorState>(bytes).ok().map(|(cursor, rest)| {
            // Stores of before had no nonce.
            let nonces = postcard::from_bytes(rest).unwrap_or_default();
            Noted { cursor, is_stored: true, nonces }
        });
        noted.unwrap_or_else(|| Noted { cursor: CursorState::from_block(start_block), is_stored: false, nonces: 0 })
    }

    fn bytes(&self) -> Bytes {
        if !self.is_stored && self.nonces == 0 {
            return Bytes::new();
        }
        let write = |noted: Result<Vec<u8>, postcard::Error>| noted.expect("memory takes whatever is written to it");
        let mut bytes = write(postcard::to_stdvec(&self.cursor));
        bytes.extend(write(postcard::to_stdvec(&self.nonces)));
        bytes.into()
    }
}

impl Place {
    async fn nonces(&self) -> u64 {
        self.0.lock().await.nonces
    }

    /// Writes each nonce down before anything is sent with it.
    fn herald(self: &Arc<Self>, core: Arc<Core>) -> Herald {
        let place = self.clone();
        Herald::new(move |nonce| {
            let (place, core) = (place.clone(), core.clone());
            async move {
                let mut noted = place.0.lock().await;
                noted.nonces = noted.nonces.max(nonce.saturating_add(1));
                let update = LedgerUpdate { cursor: noted.bytes(), ..LedgerUpdate::default() };
                tell(&core, update).await.map_err(|ended| ended.to_string())
            }
        })
    }
}

/// What an earlier run sent is over: waited for once, by whoever comes first.
#[derive(Default)]
struct Earlier(tokio::sync::OnceCell<()>);

impl Earlier {
    async fn are_over(&self, core: &Core, submitter: &Submitter, place: &Place) {
        self.0.get_or_init(|| earlier_transactions_are_over(core, submitter, place.nonces())).await;
    }
}

/// Waits until nothing that an earlier run sent is still on its way to a block: what it holds cannot be seen on the ledger
/// yet, and would be sent a second time. Something empty takes the place of a transaction that the node does not know, or
/// that pays too little for too long: it would hang there for ever, and everything after it.
async fn earlier_transactions_are_over(core: &Core, submitter: &Submitter, nonces: impl Future<Output = u64>) {
    let nonces = nonces.await;
    for (i, address) in submitter.addresses().into_iter().enumerate() {
        // Only the hub's own account, the first one, deposits.
        let nonces = if i == 0 { nonces } else { 0 };
        let mut since = (Instant::now(), 0);
        loop {
            let chain = submitter.chain();
            match (chain.nonce_mined(address).await, chain.nonce(address).await) {
                (Ok(mined), Ok(sent)) if mined >= sent.max(nonces) => break,
                (Ok(mined), Ok(sent)) => {
                    if since.1 != mined {
                        since = (Instant::now(), mined);
                    }
                    if sent <= mined || since.0.elapsed() >= EARLIER_PATIENCE {
                        core.alarm(format!(
                            "transaction {mined} of {address} is in no block; an empty one takes its place"
                        ));
                        // Where none waits, whatever else comes meanwhile is as good: it need not be outbid.
                        let urgency = if sent <= mined { Urgency::Normal } else { Urgency::Urgent };
                        let outcome = submitter.submit(empty(address, mined).urgency(urgency)).await;
                        tracing::info!(?outcome, nonce = mined, "an empty transaction");
                    }
                }
                (Err(error), _) | (_, Err(error)) => {
                    core.alarm(format!("the nonce of {address} cannot be read from the ledger: {error}"));
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// A transaction that does nothing but use up a nonce.
fn empty(address: Address, nonce: u64) -> Order {
    Order::new(Call::of(address, U256::ZERO, Bytes::new())).from(address).at_nonce(nonce)
}

/// Ends what flies when the ledger's tasks end, for whatever reason: another hub may start on the same keys.
struct Grounded(Submitter);

impl Drop for Grounded {
    fn drop(&mut self) {
        self.0.ground();
    }
}

/// Feeds the books; back when it is durable.
async fn tell(core: &Core, update: LedgerUpdate) -> Result<(), Ended> {
    let (done, durable) = oneshot::channel();
    core.send(Command::Ledger { update, done }).await?;
    core.answered(durable).await
}

// ---- following -----------------------------------------------------------------------------------------------------

struct Follower {
    core: Arc<Core>,
    chain: Chain,
    tower: TowerHandle,
    claims: mpsc::Sender<(Address, Asset)>,
    reverted: mpsc::UnboundedSender<AccountId>,
    account: Address,
    stored_at: u64,
    place: Arc<Place>,
}

impl Follower {
    async fn run(mut self, position: CursorState, poll: Duration) -> Result<(), Ended> {
        self.stored_at = position.tip().map_or(0, |tip| tip.number);
        self.watch_closing().await?;
        let updates = follow(self.chain.clone(), position, poll);
        let mut updates = std::pin::pin!(updates);
        while let Some(update) = updates.next().await {
            match update {
                Update::Step(step) => self.step(*step).await?,
                Update::Trouble(error) => self.core.alarm(format!("the ledger cannot be followed: {error}")),
            }
        }
        Ok(())
    }

    async fn step(&mut self, step: Step) -> Result<(), Ended> {
        tracing::debug!(head = step.head.number, items = step.items.len(), "the ledger went on");
        let mut update = LedgerUpdate {
            confirmed: step.confirmed.map_or(0, |block| block.number),
            confirmed_time: step.confirmed.map_or(0, |block| block.time_s),
            ..LedgerUpdate::default()
        };
        let moved = !step.items.is_empty() || step.head.number >= self.stored_at.saturating_add(POSITION_EVERY_BLOCKS);
        let mut totals = self.totals(&step).await?;
        let mut reverted = BTreeSet::new();
        for item in &step.items {
            match item {
                Item::Seen(event) => seen(&mut totals, event),
                Item::Confirmed(event) => {
                    if let EventKind::Opened { terms, .. } = &event.kind {
                        update.opened.push(terms.clone());
                    }
                    confirmed(&mut totals, event);
                    self.note_claimable(event);
                }
                Item::Reverted(event) => reverted.extend(event.account()),
            }
        }
        for account in reverted.iter().copied() {
            // What a block took with it is made up again: the ledger after the confirmed block, and what is seen on top.
            // The newest block would not do: it may be gone before the cursor has seen it, and nobody would take it back.
            let books = match step.confirmed {
                Some(confirmed) => self.books(account, confirmed.number).await,
                None => LedgerBooks::default(),
            };
            let known = totals.entry(account).or_default();
            *known = reread(known, &books);
            step.state.unconfirmed_of(account).for_each(|event| seen(&mut totals, event));
        }
        let closing: Vec<AccountId> =
            totals.iter().filter(|(_, t)| t.status == Status::Closing).map(|(id, _)| *id).collect();
        update.totals = totals.into_iter().collect();
        // Held until the last part is durable: nobody else stores a position that is ahead of its totals.
        let mut noted = self.place.0.lock().await;
        let before = noted.bytes();
        if moved {
            self.stored_at = step.head.number;
            (noted.cursor, noted.is_stored) = (step.state.clone(), true);
        }
        update.cursor = noted.bytes();
        for part in parts(update, before) {
            tell(&self.core, part).await?;
        }
        drop(noted);
        for account in reverted {
            // The poster is gone only when the hub ends.
            let _ = self.reverted.send(account);
        }
        for account in closing {
            self.watch(account).await?;
        }
        Ok(())
    }

    /// The totals of the accounts of a step as the books have them. An account that is new to them begins with what was
    /// seen of it before its channel was confirmed.
    async fn totals(&self, step: &Step) -> Result<BTreeMap<AccountId, Totals>, Ended> {
        let events = step.items.iter().map(|item| match item {
            Item::Seen(event) | Item::Confirmed(event) | Item::Reverted(event) => event,
        });
        let accounts: BTreeSet<AccountId> = events.filter_map(LedgerEvent::account).collect();
        if accounts.is_empty() {
            return Ok(BTreeMap::new());
        }
        let known = self.core.query(move |books| {
            let totals = |id: AccountId| books.account(id).map(|account| account.ledger);
            accounts.into_iter().map(|id| (id, totals(id))).collect::<Vec<_>>()
        });
        let mut all = BTreeMap::new();
        for (id, known) in known.await? {
            all.insert(id, known.unwrap_or_default());
            if known.is_none() {
                step.state.unconfirmed_of(id).for_each(|event| seen(&mut all, event));
            }
        }
        Ok(all)
    }

    async fn books(&self, account: AccountId, block_number: u64) -> LedgerBooks {
        loop {
            match self.chain.books_after(&account, block_number).await {
                Ok(books) => return books,
                // The block is older than the contract.
                Err(ChainError::Nonsense { .. }) => return LedgerBooks::default(),
                Err(error) => {
                    self.core.alarm(format!("an account cannot be read from the ledger: {error}"));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn note_claimable(&self, event: &LedgerEvent) {
        if let EventKind::Claimable { vault, asset, owner, .. } = &event.kind
            && *owner == self.account
        {
            // With the queue full the money stays where it is, for the hub, until the next event of that vault.
            let _ = self.claims.try_send((*vault, *asset));
        }
    }

    /// After a start: the closes that run.
    async fn watch_closing(&self) -> Result<(), Ended> {
        let closing = self.core.query(|books| {
            let accounts = books.channels().pending().flat_map(|(id, channel)| {
                let closing = channel.accounts.iter().filter(|(_, a)| a.ledger.status == Status::Closing);
                closing.map(move |(asset, _)| AccountId { channel: id, asset: *asset })
            });
            accounts.collect::<Vec<_>>()
        });
        for account in closing.await? {
            self.watch(account).await?;
        }
        Ok(())
    }

    /// Hands the tower everything that the hub holds of an account: the member's newest voucher of each lane and its
    /// own. Nothing is added later, because nothing is accepted on an account that is closing.
    async fn watch(&self, account: AccountId) -> Result<(), Ended> {
        let found = self.core.query(move |books| {
            let lanes = books.account(account)?.lanes.values().cloned().collect::<Vec<_>>();
            Some((books.channel(account.channel)?.terms.clone(), lanes))
        });
        let Some((terms, lanes)) = found.await? else { return Ok(()) };
        self.core.barrier().await?;
        let rows = self.core.rows.clone();
        let voucher = tokio::task::spawn_blocking(move || rows.voucher(account)).await;
        let voucher = match voucher {
            Ok(Ok(voucher)) => voucher,
            Ok(Err(error)) => {
                self.core.alarm(format!("the hub's own voucher for {account} cannot be read: {error}"));
                None
            }
            Err(_) => None,
        };
        let claims = lanes.into_iter().map(Claim::from).chain(voucher.map(Claim::Hub));
        let mut watched = self.tower.watch(terms, account.asset).await;
        for claim in claims {
            if watched.is_ok() {
                watched = self.tower.offer(claim).await;
            }
        }
        if let Err(error) = watched {
            self.core.alarm(format!("the close of {account} is not fully watched: {error}"));
        }
        Ok(())
    }
}

/// Cuts an update so that each record stays small. The new position goes with the last part: a crash between two parts
/// reads the blocks again, and totals are absolute. The time goes with it too: a settlement that is over at it counts as
/// posted only once the totals of its account are told.
fn parts(mut update: LedgerUpdate, position_before: Bytes) -> Vec<LedgerUpdate> {
    let mut parts = Vec::new();
    while update.totals.len() > TOTALS_MAX {
        let rest = update.totals.split_off(TOTALS_MAX);
        let totals = std::mem::replace(&mut update.totals, rest);
        let opened = std::mem::take(&mut update.opened);
        parts.push(LedgerUpdate { opened, totals, cursor: position_before.clone(), ..LedgerUpdate::default() });
    }
    parts.push(update);
    parts
}

/// What counts when it is seen.
fn seen(all: &mut BTreeMap<AccountId, Totals>, event: &LedgerEvent) {
    let Some(totals) = event.account().map(|id| all.entry(id).or_default()) else { return };
    match &event.kind {
        EventKind::Settled { seq, member_withdrawn, hub_withdrawn, status, .. } => {
            totals.member_withdrawn = totals.member_withdrawn.max(*member_withdrawn);
            totals.hub_withdrawn = totals.hub_withdrawn.max(*hub_withdrawn);
            totals.seq = totals.seq.max(*seq);
            totals.status = totals.status.max(status_of(*status));
        }
        EventKind::Closing { deadline_s, .. } => {
            totals.status = totals.status.max(Status::Closing);
            totals.deadline = *deadline_s;
        }
        EventKind::Proven { member_paid, hub_paid, .. } => {
            totals.member_paid = totals.member_paid.max(*member_paid);
            totals.hub_paid = totals.hub_paid.max(*hub_paid);
        }
        // An account becomes final once, and is paid out once.
        EventKind::Finalized { to_member, to_hub, .. } if totals.status != Status::Final => {
            totals.member_withdrawn = totals.member_withdrawn.saturating_add(*to_member);
            totals.hub_withdrawn = totals.hub_withdrawn.saturating_add(*to_hub);
            totals.status = Status::Final;
        }
        EventKind::Finalized { .. }
        | EventKind::Deposited { .. }
        | EventKind::Opened { .. }
        | EventKind::Claimable { .. }
        | EventKind::Claimed { .. }
        | EventKind::EntryRefused { .. } => {}
    }
}

/// What counts when it is confirmed. It counts as seen as well: an account that was closed in the very block that opened
/// its channel was unknown when that block was seen.
fn confirmed(all: &mut BTreeMap<AccountId, Totals>, event: &LedgerEvent) {
    seen(all, event);
    let Some(totals) = event.account().map(|id| all.entry(id).or_default()) else { return };
    match &event.kind {
        EventKind::Deposited { side: Side::Member, total, .. } => {
            totals.member_deposit = totals.member_deposit.max(*total);
        }
        EventKind::Deposited { side: Side::Hub, total, .. } => totals.hub_deposit = totals.hub_deposit.max(*total),
        EventKind::Settled { seq, .. } => totals.seq_confirmed = totals.seq_confirmed.max(*seq),
        EventKind::Closing { .. }
        | EventKind::Proven { .. }
        | EventKind::Finalized { .. }
        | EventKind::Opened { .. }
        | EventKind::Claimable { .. }
        | EventKind::Claimed { .. }
        | EventKind::EntryRefused { .. } => {}
    }
}

/// Totals after a reorganisation: what counts when confirmed stays, the rest is what the ledger says of a block.
fn reread(known: &Totals, books: &LedgerBooks) -> Totals {
    Totals {
        member_withdrawn: books.member_withdrawn,
        hub_withdrawn: books.hub_withdrawn,
        seq: books.seq,
        status: status_of(books.status),
        deadline: books.deadline_s,
        member_paid: books.member_paid,
        hub_paid: books.hub_paid,
        ..*known
    }
}

fn status_of(status: LedgerStatus) -> Status {
    match status {
        LedgerStatus::Open => Status::Open,
        LedgerStatus::Closing => Status::Closing,
        LedgerStatus::Final => Status::Final,
    }
}

// ---- funding -------------------------------------------------------------------------------------------------------

/// Longest pause before a deposit that failed is tried again, in looks at the ledger: half a minute at the usual pace.
const FUND_PAUSE_POLLS_MAX: u32 = 64;

/// Deposits what payees lack: once, whatever happens on the way.
///
/// A deposit that is sent twice is there twice, so that nothing is sent to an account as long as an earlier deposit may
/// still arrive. That is known by its nonce: written down before anything is sent with it, and over when it is used up in
/// a block that the books have confirmed. Then their totals say what became of it.
///
/// What lacks stays wanted until the books say that it does not, with longer and longer pauses where it fails.
struct Funding {
    core: Arc<Core>,
    chain: Chain,
    submitter: Submitter,
    account: Address,
    place: Arc<Place>,
    earlier: Arc<Earlier>,
    poll: Duration,
    approved: BTreeSet<Asset>,
    /// Accounts that a deposit may be on its way to.
    pending: BTreeMap<AccountId, Sent>,
    /// What is looked at again, each at its time.
    later: BTreeMap<AccountId, Later>,
    /// Everything that the books count as being funded, whatever became of it.
    taken: BTreeSet<AccountId>,
    /// Empty transactions that failed in a row, and when the next may be sent.
    empty: (u32, Instant),
}

/// Something that was sent with nonces below `nonces`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sent {
    nonces: u64,
    /// The head when these nonces were first seen used up.
    used_at: Option<u64>,
}

struct Later {
    needed: Amount,
    tries: u32,
    at: Instant,
}

/// A deposit to make.
struct Deposit {
    account: AccountId,
    order: FundOrder,
    /// The hub's deposits by the books.
    deposited: Amount,
    /// The net that the hub is to have then.
    needed: Amount,
}

impl Sent {
    /// Whether it has arrived for good or never will: its nonces are used up by what the books have confirmed.
    fn is_over(&mut self, nonces_mined: u64, head: u64, confirmed: u64) -> bool {
        if nonces_mined < self.nonces {
            // Not yet, or a reorganisation took it back.
            self.used_at = None;
            return false;
        }
        *self.used_at.get_or_insert(head) <= confirmed
    }
}

impl Funding {
    async fn run(mut self) -> Result<(), Ended> {
        self.earlier.are_over(&self.core, &self.submitter, &self.place).await;
        let mut ticks = tokio::time::interval(self.poll);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Of an earlier run nobody knows to whom it sent.
        let mut earlier = BTreeMap::from([((), Sent { nonces: self.place.nonces().await, used_at: None })]);
        while !earlier.is_empty() {
            ticks.tick().await;
            self.forget_what_is_over(&mut earlier).await?;
        }
        loop {
            ticks.tick().await;
            let mut pending = std::mem::take(&mut self.pending);
            let looked = self.forget_what_is_over(&mut pending).await;
            self.pending = pending;
            looked?;
            let mut by_asset: BTreeMap<Asset, Vec<Deposit>> = BTreeMap::new();
            for deposit in self.wanted().await? {
                by_asset.entry(deposit.account.asset).or_default().push(deposit);
            }
            for (asset, deposits) in by_asset {
                self.fund(asset, deposits).await;
            }
        }
    }

    /// Drops what has arrived for good, or never will.
    async fn forget_what_is_over<K: Ord>(&mut self, sent: &mut BTreeMap<K, Sent>) -> Result<(), Ended> {
        let Some(nonces) = sent.values().map(|sent| sent.nonces).max() else { return Ok(()) };
        let (confirmed, _) = self.core.query(|books| books.confirmed()).await?;
        // The head is read after the nonce: whatever used that up is in no later block.
        let read =
            async { Ok::<_, ChainError>((self.chain.nonce_mined(self.account).await?, self.chain.head().await?)) };
        match read.await {
            Ok((mined, head)) => {
                sent.retain(|_, sent| !sent.is_over(mined, head.number, confirmed));
                if mined < nonces {
                    self.use_up(mined).await;
                }
            }
            Err(error) => self.core.alarm(format!("deposits cannot be followed on the ledger: {error}")),
        }
        Ok(())
    }

    /// Uses up a nonce that was meant for a deposit, of which no node knows.
    async fn use_up(&mut self, nonce: u64) {
        let (tries, at) = self.empty;
        if !self.submitter.is_idle(self.account) || at > Instant::now() {
            return;
        }
        match self.chain.nonce(self.account).await {
            Ok(known) if known <= nonce => {}
            Ok(_) | Err(_) => return,
        }
        let outcome = self.submitter.submit(empty(self.account, nonce)).await;
        let tries = if matches!(outcome, Outcome::NotSent { .. }) { tries.saturating_add(1) } else { 0 };
        self.empty = (tries, Instant::now() + self.pause(tries));
    }

    /// Longer after each failure.
    fn pause(&self, tries: u32) -> Duration {
        self.poll.saturating_mul(1u32.checked_shl(tries).unwrap_or(u32::MAX).min(FUND_PAUSE_POLLS_MAX))
    }

    /// What the books want now, without what is under way or waits for its time.
    async fn wanted(&mut self) -> Result<Vec<Deposit>, Ended> {
        let now = Instant::now();
        let due = self.later.iter().filter(|(id, later)| later.at <= now && !self.pending.contains_key(id));
        let due: BTreeMap<AccountId, Amount> = due.map(|(id, later)| (*id, later.needed)).collect();
        let ended: Vec<AccountId> =
            std::mem::take(&mut self.taken).into_iter().filter(|id| !self.pending.contains_key(id)).collect();
        let again = due.clone();
        let found = self.core.query(move |books| {
            books.funding_ended(ended);
            again.into_iter().for_each(|(id, needed)| books.want(id, needed));
            let wants = books.take_wants();
            let books = &*books;
            let deposit = |Want { account, amount }: Want| {
                let terms = books.channel(account.channel)?.terms.clone();
                let amount = amount.min(books.policy().asset(account.asset)?.inbound_max);
                let known = books.account(account);
                let deposited = known.map(|a| a.ledger.hub_deposit).unwrap_or_default();
                let net = known.map(|a| clamp(a.hub_net())).unwrap_or_default();
                let order = FundOrder { terms, asset: account.asset, side: Side::Hub, amount };
                Some(Deposit { account, order, deposited, needed: net.saturating_add(amount) })
            };
            wants.into_iter().filter_map(deposit).collect::<Vec<_>>()
        });
        let wants = found.await?;
        self.taken.extend(self.pending.keys());
        self.taken.extend(wants.iter().map(|want| want.account));
        // What was due and is not wanted any more is settled; what is tried counts its failures on.
        self.later.retain(|id, _| !due.contains_key(id) || wants.iter().any(|want| want.account == *id));
        let (now, waits): (Vec<Deposit>, Vec<Deposit>) = wants.into_iter().partition(|want| {
            !self.pending.contains_key(&want.account)
                && self.later.get(&want.account).is_none_or(|_| due.contains_key(&want.account))
        });
        for want in waits {
            let later =
                self.later.entry(want.account).or_insert(Later { needed: Amount::ZERO, tries: 0, at: Instant::now() });
            later.needed = later.needed.max(want.needed);
        }
        Ok(now.into_iter().filter(|deposit| !deposit.order.amount.is_zero()).collect())
    }

    /// Tries again later, after a pause that grows with each failure.
    fn put_off(&mut self, deposits: impl IntoIterator<Item = (AccountId, Amount)>) {
        for (account, needed) in deposits {
            let tries = self.later.get(&account).map_or(0, |later| later.tries);
            let at = Instant::now() + self.pause(tries);
            self.later.insert(account, Later { needed, tries: tries.saturating_add(1), at });
        }
    }

    /// Lets the contract take the hub's tokens: once, for everything.
    async fn approve(&mut self, asset: Asset) -> Result<(), String> {
        if asset == NATIVE || self.approved.contains(&asset) {
            return Ok(());
        }
        let allowance = self.chain.allowance(asset, self.account).await.map_err(|e| e.to_string())?;
        if allowance <= U256::MAX / U256::from(2) {
            let order = Order::new(self.chain.approve(asset, U256::MAX)).from(self.account);
            self.submitter.submit(order).await.mined()?;
        }
        self.approved.insert(asset);
        Ok(())
    }

    async fn fund(&mut self, asset: Asset, deposits: Vec<Deposit>) {
        let needed: BTreeMap<AccountId, Amount> = deposits.iter().map(|d| (d.account, d.needed)).collect();
        let ready = match self.approve(asset).await {
            Ok(()) => self.chain.balance(asset, self.account).await.map_err(|e| e.to_string()),
            Err(why) => Err(format!("the contract may not take the hub's tokens {asset}: {why}")),
        };
        let mut left = match ready {
            Ok(balance) => balance,
            Err(why) => {
                self.core.alarm(format!("payees cannot be funded, which is tried again: {why}"));
                return self.put_off(needed);
            }
        };
        let mut orders = Vec::new();
        for Deposit { account, order, deposited, needed } in deposits {
            let amount = U256::from(order.amount.get());
            let refused = match self.chain.books(&account).await {
                // Somebody else deposited for the hub, and it is not confirmed yet.
                Ok(books) if books.hub_deposit > deposited => Some(None),
                Ok(_) if amount > left => Some(Some(format!(
                    "the hub account {} lacks {asset} to fund payees; send more of it there",
                    self.account
                ))),
                Ok(_) => None,
                Err(error) => Some(Some(format!("{account} cannot be read from the ledger: {error}"))),
            };
            match refused {
                None => {
                    left = left.saturating_sub(amount);
                    orders.push(order);
                }
                Some(why) => {
                    why.into_iter().for_each(|why| self.core.alarm(why));
                    self.put_off([(account, needed)]);
                }
            }
        }
        for packed in settlement::fund(self.chain.adjudicator(), orders) {
            self.send(packed, &needed).await;
        }
    }

    async fn send(&mut self, packed: Packed<FundOrder>, needed: &BTreeMap<AccountId, Amount>) {
        let account_of =
            |order: &FundOrder| AccountId { channel: self.core.domain.channel_id(&order.terms), asset: order.asset };
        let accounts: Vec<AccountId> = packed.orders.iter().map(account_of).collect();
        let before = self.place.nonces().await;
        let herald = self.place.herald(self.core.clone());
        let outcome = self.submitter.submit(Order::new(packed.call).from(self.account).herald(herald)).await;
        let nonces = self.place.nonces().await;
        // Where anything may have left it may arrive, whatever was answered.
        if nonces > before {
            self.pending.extend(accounts.iter().map(|id| (*id, Sent { nonces, used_at: None })));
        }
        let refused: BTreeMap<usize, String> = match outcome {
            Outcome::Mined(mined) => settlement::refused(&mined.events).map(|(i, why)| (i, why.to_string())).collect(),
            other => {
                self.core.alarm(format!("a batch of deposits is in no block: {}", why(other)));
                return self.put_off(accounts.iter().filter_map(|id| Some((*id, *needed.get(id)?))));
            }
        };
        for (i, account) in accounts.into_iter().enumerate() {
            match refused.get(&i) {
                Some(why) => {
                    self.core.alarm(format!("the deposit for {account} was refused: {why}"));
                    self.put_off(needed.get(&account).map(|needed| (account, *needed)));
                }
                // Looked at once more when it is confirmed.
                None => drop(self.later.insert(account, Later { needed: Amount::ZERO, tries: 0, at: Instant::now() })),
            }
        }
    }
}

// ---- settling ------------------------------------------------------------------------------------------------------

/// What is to be posted is what the books hold as agreed and the ledger has not: both are asked again whenever it is not
/// known what became of a transaction, so that nothing has to be remembered and posting twice is posting once.
struct Poster {
    core: Arc<Core>,
    submitter: Submitter,
    place: Arc<Place>,
    earlier: Arc<Earlier>,
    /// To be sent now.
    waiting: Vec<Posting>,
    /// Accounts with agreed settlements that may or may not be on the ledger: left behind by an earlier run, taken out
    /// by a reorganisation, or sent without an answer. They are looked at until the books have them as posted.
    loose: BTreeSet<AccountId>,
    /// What this run sent, while it may still be sent again by itself.
    posted: BTreeMap<(AccountId, u64), TxHash>,
}

/// A settlement that both signed, on its way.
struct Posting {
    order: SettleOrder,
    attempts: u32,
}

impl Poster {
    async fn run(
        mut self,
        mut agreed: mpsc::UnboundedReceiver<(AccountId, u64)>,
        mut taken_back: mpsc::UnboundedReceiver<AccountId>,
    ) -> Result<(), Ended> {
        self.earlier.are_over(&self.core, &self.submitter, &self.place).await;
        self.loose.extend(self.left_behind().await?);
        loop {
            self.look_again().await?;
            let submitter = &self.submitter;
            self.posted.retain(|_, tx_hash| submitter.is_aloft(*tx_hash));
            self.post().await?;
            let idle = self.waiting.is_empty() && self.loose.is_empty();
            let (mut batch, mut reverted) = (Vec::new(), Vec::new());
            tokio::select! {
                count = agreed.recv_many(&mut batch, POST_MAX) => if count == 0 {
                    return Ok(());
                },
                _ = taken_back.recv_many(&mut reverted, POST_MAX) => {}
                () = tokio::time::sleep(PAUSE), if !idle => {}
            }
            self.loose.extend(reverted);
            let orders = self.orders(batch).await?;
            self.waiting.extend(orders);
        }
    }

    /// Finds what has to be sent for the accounts of which that is not known.
    async fn look_again(&mut self) -> Result<(), Ended> {
        if self.loose.is_empty() {
            return Ok(());
        }
        let accounts = self.loose.clone();
        let open = self.core.query(move |books| {
            let open = |id: AccountId| {
                let account = books.account(id)?;
                let open = account.agreed.iter().map(|s| s.body().seq).filter(|seq| *seq > account.ledger.seq);
                Some((id, open.collect::<Vec<_>>()))
            };
            accounts.into_iter().filter_map(open).filter(|(_, open)| !open.is_empty()).collect::<BTreeMap<_, _>>()
        });
        let open = open.await?;
        self.core.barrier().await?;
        self.loose.retain(|account| open.contains_key(account));
        let mut missing = Vec::new();
        for (account, seqs) in open {
            let is_sent = |seq: &u64| self.posted.get(&(account, *seq)).is_some_and(|tx| self.submitter.is_aloft(*tx));
            let is_waiting = |seq: &u64| self.waiting.iter().any(|posting| key_of(&posting.order) == (account, *seq));
            let seqs: Vec<u64> = seqs.into_iter().filter(|seq| !is_sent(seq) && !is_waiting(seq)).collect();
            if seqs.is_empty() {
                continue;
            }
            match self.submitter.chain().books(&account).await {
                Ok(there) => missing.extend(seqs.into_iter().filter(|s| *s > there.seq).map(|seq| (account, seq))),
                Err(error) => self.core.alarm(format!("{account} cannot be read from the ledger: {error}")),
            }
        }
        let orders = self.orders(missing).await?;
        self.waiting.extend(orders);
        Ok(())
    }

    /// Accounts with settlements that an earlier run agreed to and that the ledger has not overtaken.
    async fn left_behind(&self) -> Result<Vec<AccountId>, Ended> {
        let found = self.core.query(|books| {
            let accounts = books.channels().pending().flat_map(|(_, channel)| channel.accounts.values());
            let agreed = accounts.flat_map(|account| {
                let open = account.agreed.iter().filter(|s| s.body().seq > account.ledger.seq);
                open.map(|s| s.body().account())
            });
            agreed.collect::<Vec<_>>()
        });
        found.await
    }

    /// Both halves of each, with the channel's terms.
    async fn orders(&self, agreed: Vec<(AccountId, u64)>) -> Result<Vec<Posting>, Ended> {
        type Half = (ChannelTerms, Signed<Settlement>);
        let wanted = agreed.clone();
        let halves: Vec<Option<Half>> = self
            .core
            .query(move |books| {
                let half = |(id, seq): (AccountId, u64)| {
                    let signed = books.account(id)?.agreed.iter().find(|s| s.body().seq == seq)?.clone();
                    Some((books.channel(id.channel)?.terms.clone(), signed))
                };
                wanted.into_iter().map(half).collect()
            })
            .await?;
        let rows = self.core.rows.clone();
        let keys = agreed.clone();
        let ours = tokio::task::spawn_blocking(move || {
            keys.into_iter().map(|(account, seq)| rows.settlement(account, seq)).collect::<Vec<_>>()
        });
        let ours = ours.await.map_err(|_| Ended)?;
        let mut postings = Vec::new();
        for (((account, seq), theirs), ours) in agreed.into_iter().zip(halves).zip(ours) {
            let (Some((terms, member)), Ok(Some(hub))) = (theirs, ours) else {
                tracing::debug!(%account, seq, "a settlement is over before it was posted");
                continue;
            };
            match SettleOrder::new(terms, member, hub) {
                Ok(order) => postings.push(Posting { order, attempts: 0 }),
                Err(error) => self.core.alarm(format!("settlement {seq} of {account} cannot be posted: {error}")),
            }
        }
        Ok(postings)
    }

    /// Posts what waits in as few transactions as fit.
    async fn post(&mut self) -> Result<(), Ended> {
        let postings = std::mem::take(&mut self.waiting);
        let attempts: BTreeMap<(AccountId, u64), u32> =
            postings.iter().map(|p| (key_of(&p.order), p.attempts + 1)).collect();
        let orders = postings.into_iter().map(|p| p.order).collect();
        for packed in settlement::settle(self.submitter.chain().adjudicator(), orders) {
            match self.submitter.submit(Order::new(packed.call)).await {
                Outcome::Mined(mined) => {
                    let refused: BTreeMap<usize, String> =
                        settlement::refused(&mined.events).map(|(i, refusal)| (i, refusal.to_string())).collect();
                    for (i, order) in packed.orders.iter().enumerate() {
                        match refused.get(&i) {
                            Some(why) => self.refused(order, Some(mined.tx_hash), why.clone()).await?,
                            None => {
                                self.posted.insert(key_of(order), mined.tx_hash);
                                self.tell(order, Some(mined.tx_hash), String::new()).await?;
                            }
                        }
                    }
                }
                Outcome::Reverted { refusal, .. } => {
                    for order in &packed.orders {
                        self.refused(order, None, refusal.to_string()).await?;
                    }
                }
                lost @ (Outcome::NotSent { .. } | Outcome::Unknown { .. }) => {
                    let aloft = match &lost {
                        Outcome::Unknown { tx_hashes } => tx_hashes.last().copied(),
                        _ => None,
                    };
                    let why = why(lost);
                    self.core.alarm(format!("settlements could not be posted: {why}"));
                    for order in packed.orders {
                        let key = key_of(&order);
                        let attempts = attempts.get(&key).copied().unwrap_or(POST_ATTEMPTS);
                        if aloft.is_none() && attempts < POST_ATTEMPTS {
                            self.waiting.push(Posting { order, attempts });
                            continue;
                        }
                        // The member may post it himself now. It stays agreed: what is on its way may arrive, and what
                        // is not is sent again when the ledger does not have it.
                        self.posted.extend(aloft.map(|tx_hash| (key, tx_hash)));
                        self.loose.insert(key.0);
                        self.tell(&order, None, why.clone()).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The contract does not take it, now or later.
    async fn refused(&mut self, order: &SettleOrder, transaction: Option<B256>, why: String) -> Result<(), Ended> {
        self.loose.remove(&key_of(order).0);
        self.tell(order, transaction, why).await
    }

    async fn tell(&self, order: &SettleOrder, transaction: Option<B256>, error: String) -> Result<(), Ended> {
        let settlement = order.settlement();
        let account = settlement.account();
        let seq = settlement.seq;
        if !error.is_empty() {
            tracing::warn!(%account, seq, error, "a settlement was not posted");
        }
        let rows = self.core.rows.clone();
        let half = tokio::task::spawn_blocking(move || rows.settlement(account, seq)).await.map_err(|_| Ended)?;
        let posted = v1::SettlementPosted {
            asset: wire::bytes_of(account.asset),
            seq,
            proof: half.ok().flatten().map(|half| wire::proof_message(half.proof())),
            transaction: transaction.map(wire::bytes_of).unwrap_or_default(),
            error,
        };
        let message = Box::new(v1::HubMessage { kind: Some(v1::hub_message::Kind::Posted(posted)) });
        self.core.send(Command::Tell { channel: account.channel, message }).await
    }
}

fn key_of(order: &SettleOrder) -> (AccountId, u64) {
    (order.settlement().account(), order.settlement().seq)
}

// ---- closing, watching, collecting ---------------------------------------------------------------------------------

impl LedgerHandle {
    pub(crate) async fn start_close(&self, core: &Arc<Core>, account: AccountId) -> Result<B256, CloseError> {
        let terms = core.query(move |books| {
            books.account(account)?;
            Some(books.channel(account.channel)?.terms.clone())
        });
        let terms = terms.await.map_err(|_| CloseError::Ended)?.ok_or(CloseError::UnknownAccount { account })?;
        let order = CloseOrder { terms, asset: account.asset, request: None };
        let call = self.submitter.chain().adjudicator().start_close(&order);
        let outcome = self.submitter.submit(Order::new(call).from(self.account).urgency(Urgency::Urgent)).await;
        outcome.mined().map(|mined| mined.tx_hash).map_err(|why| CloseError::Refused { why })
    }
}

/// The tower's owner. It keeps no records of its own: after a restart the books say which accounts are closing, and the
/// journal and the rows hold all evidence.
struct Host {
    core: Arc<Core>,
}

impl TowerHost for Host {
    fn save(&mut self, _: &Save) -> Result<(), String> {
        Ok(())
    }

    fn alarm(&mut self, alarm: &Alarm) {
        self.core.alarm(format!("watchtower: {alarm}"));
    }
}

/// Claims what waits for the hub, vault by vault.
async fn collect(
    core: Arc<Core>,
    submitter: Submitter,
    account: Address,
    mut claimable: mpsc::Receiver<(Address, Asset)>,
) -> Result<(), Ended> {
    let mut vaults = Vec::new();
    while claimable.recv_many(&mut vaults, CLAIMS_MAX).await > 0 {
        for (vault, asset) in std::mem::take(&mut vaults).into_iter().collect::<BTreeSet<_>>() {
            match submitter.chain().claimable(vault, asset, account).await {
                Ok(amount) if amount.is_zero() => continue,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%vault, %error, "what waits in a vault cannot be read");
                    continue;
                }
            }
            let call = submitter.chain().adjudicator().claim(vault, asset, account);
            if let Err(why) = submitter.submit(Order::new(call)).await.mined() {
                core.alarm(format!("the hub's money in vault {vault} was not collected: {why}"));
            }
        }
    }
    Ok(())
}

fn why(outcome: Outcome) -> String {
    outcome.mined().err().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_position_go_on_with_the_last_part_only() {
        let account = |i: usize| AccountId { channel: proto::ChannelId(B256::from(U256::from(i))), asset: NATIVE };
        let update = LedgerUpdate {
            confirmed: 7,
            confirmed_time: 1_000,
            totals: (0..2 * TOTALS_MAX + 1).map(|i| (account(i), Totals::default())).collect(),
            cursor: vec![2].into(),
            ..LedgerUpdate::default()
        };
        let parts = parts(update, vec![1].into());
        let told: Vec<_> = parts.iter().map(|p| (p.totals.len(), p.confirmed, p.confirmed_time, p.cursor[0])).collect();
        assert_eq!(told, [(TOTALS_MAX, 0, 0, 1), (TOTALS_MAX, 0, 0, 1), (1, 7, 1_000, 2)]);
    }
    #[test]
    fn a_close_in_the_block_of_the_opening_is_not_missed() {
        let account = AccountId { channel: proto::ChannelId(B256::repeat_byte(1)), asset: NATIVE };
        let closing = LedgerEvent {
            block_number: 1,
            block_hash: B256::ZERO,
            block_time_s: 1,
            log_index: 1,
            tx_hash: B256::ZERO,
            kind: EventKind::Closing { account, deadline_s: 100 },
        };
        let mut totals = BTreeMap::new();
        confirmed(&mut totals, &closing);
        assert_eq!((totals[&account].status, totals[&account].deadline), (Status::Closing, 100));
    }
}
