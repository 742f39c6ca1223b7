//! The hub's side of the ledger: it follows, funds, settles, watches and collects.
//!
//! - The *follower* turns events into absolute totals and feeds them to the books together with its own position, in
//!   one record. Deposits count when confirmed; withdrawals, status, deadline and proven totals when seen.
//! - *Funding* deposits the collateral that payees lack, in batches.
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
use dispute::settlement;
use dispute::submitter::{Order, Outcome, Submitter, Urgency};
use dispute::watchtower::{Alarm, Save, Tower, TowerHandle, TowerHost, run_tower, tower_channel};
use dispute::{
    Call, Chain, ChainError, Claim, CloseOrder, EventKind, FundOrder, LedgerBooks, LedgerEvent, SettleOrder,
};
use futures::StreamExt;
use proto::account::{Status, Totals};
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
        let Ok(position) = position(&core, start_block).await else { return };
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
            stored: Bytes::new(),
        };
        let funding = Funding { core: core.clone(), chain: chain.clone(), submitter: submitter.clone(), account };
        let poster = Poster {
            core: core.clone(),
            submitter: submitter.clone(),
            waiting: Vec::new(),
            loose: BTreeSet::new(),
            posted: BTreeMap::new(),
        };
        let ended = core.ended.clone();
        tokio::select! {
            () = ended.cancelled() => {}
            _ = follower.run(position, poll) => {}
            _ = funding.run(poll) => {}
            _ = poster.run(agreed, taken_back) => {}
            _ = collect(core.clone(), submitter, account, claimable) => {}
            stopped = watching => core.alarm(format!("{stopped}")),
        }
    }
}

/// Where the follower stopped, by the books.
async fn position(core: &Core, start_block: u64) -> Result<CursorState, Ended> {
    let bytes = core.query(|books| books.cursor().clone()).await?;
    let stored = postcard::from_bytes(&bytes).ok();
    Ok(stored.unwrap_or_else(|| CursorState::from_block(start_block)))
}

/// Waits until nothing that an earlier run sent is still on its way to a block: what it holds cannot be seen on the ledger
/// yet, and would be sent a second time. A transaction that pays too little may hang there for ever, so that the wait ends.
async fn earlier_transactions_are_over(core: &Core, submitter: &Submitter) {
    let since = Instant::now();
    for address in submitter.addresses() {
        loop {
            let chain = submitter.chain();
            match (chain.nonce_mined(address).await, chain.nonce(address).await) {
                (Ok(mined), Ok(sent)) if sent <= mined => break,
                (Ok(mined), Ok(sent)) if since.elapsed() >= EARLIER_PATIENCE => {
                    let waiting = sent.saturating_sub(mined);
                    core.alarm(format!("{waiting} transactions of {address} are in no block yet; replace them"));
                    break;
                }
                (Ok(_), Ok(_)) => {}
                (Err(error), _) | (_, Err(error)) => {
                    core.alarm(format!("the nonce of {address} cannot be read from the ledger: {error}"));
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
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
    stored: Bytes,
}

impl Follower {
    async fn run(mut self, position: CursorState, poll: Duration) -> Result<(), Ended> {
        self.stored = self.core.query(|books| books.cursor().clone()).await?;
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
        let before = self.stored.clone();
        if moved {
            let bytes = postcard::to_stdvec(&step.state).expect("memory takes whatever is written to it");
            self.stored_at = step.head.number;
            self.stored = bytes.into();
        }
        update.cursor = self.stored.clone();
        update.totals = totals.into_iter().collect();
        for part in parts(update, before) {
            self.tell(part).await?;
        }
        for account in reverted {
            // The poster is gone only when the hub ends.
            let _ = self.reverted.send(account);
        }
        for account in closing {
            self.watch(account).await?;
        }
        Ok(())
    }

    async fn tell(&self, update: LedgerUpdate) -> Result<(), Ended> {
        let (done, durable) = oneshot::channel();
        self.core.send(Command::Ledger { update, done }).await?;
        self.core.answered(durable).await
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
        let claims = lanes.into_iter().map(Claim::Member).chain(voucher.map(Claim::Hub));
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

/// How long a deposit that was sent is waited for before the account is looked at afresh: it was dropped by then.
const FUNDING_PATIENCE: Duration = Duration::from_secs(1800);

/// How often a node that does not answer is asked before a deposit is left for the next time that it is needed.
const FUND_ATTEMPTS: u32 = 10;

/// Deposits on their way, by the total that they lead to and when they were sent.
type Pending = BTreeMap<AccountId, (Amount, Instant)>;

struct Funding {
    core: Arc<Core>,
    chain: Chain,
    submitter: Submitter,
    account: Address,
}

impl Funding {
    async fn run(self, poll: Duration) -> Result<(), Ended> {
        earlier_transactions_are_over(&self.core, &self.submitter).await;
        let mut approved = BTreeSet::new();
        let mut ticks = tokio::time::interval(poll);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Deposits that were mined and are not confirmed yet, by the total that they lead to.
        let mut pending = Pending::new();
        // Everything that the books count as being funded, whatever became of it.
        let mut taken: BTreeSet<AccountId> = BTreeSet::new();
        loop {
            ticks.tick().await;
            let asked = std::mem::take(&mut pending);
            let tried = std::mem::take(&mut taken);
            let found = self.core.query(move |books| {
                let deposited = |id| books.account(id).map(|a| a.ledger.hub_deposit).unwrap_or_default();
                let waits = |id, total, since: Instant| deposited(id) < total && since.elapsed() < FUNDING_PATIENCE;
                let open: Pending =
                    asked.into_iter().filter(|(id, (total, since))| waits(*id, *total, *since)).collect();
                books.funding_ended(tried.into_iter().filter(|id| !open.contains_key(id)));
                let wants = books.take_wants();
                let books = &*books;
                let deposited = |id| books.account(id).map(|a| a.ledger.hub_deposit).unwrap_or_default();
                let terms = |want: Want| {
                    let terms = books.channel(want.account.channel)?.terms.clone();
                    let max = books.policy().asset(want.account.asset)?.inbound_max;
                    Some((want, terms, max, deposited(want.account)))
                };
                (open, wants.into_iter().filter_map(terms).collect::<Vec<_>>())
            });
            let (open, wants) = found.await?;
            pending = open;
            taken.extend(pending.keys());
            taken.extend(wants.iter().map(|(want, ..)| want.account));
            let mut orders: BTreeMap<Asset, Vec<(FundOrder, Amount)>> = BTreeMap::new();
            for (want, terms, max, deposited) in wants {
                // An account whose deposit is under way is looked at again when that is confirmed.
                let amount = want.amount.min(max);
                if pending.contains_key(&want.account) || amount.is_zero() {
                    continue;
                }
                let order = FundOrder { terms, asset: want.account.asset, side: Side::Hub, amount };
                orders.entry(want.account.asset).or_default().push((order, deposited));
            }
            for (asset, orders) in orders {
                if !self.approve(asset, &mut approved).await {
                    continue;
                }
                self.fund(asset, orders, &mut pending).await;
            }
        }
    }

    /// Lets the contract take the hub's tokens: once, for everything.
    async fn approve(&self, asset: Asset, approved: &mut BTreeSet<Asset>) -> bool {
        if asset == NATIVE || approved.contains(&asset) {
            return true;
        }
        for _ in 0..FUND_ATTEMPTS {
            let enough = match self.chain.allowance(asset, self.account).await {
                Ok(allowance) if allowance > U256::MAX / U256::from(2) => Ok(()),
                Ok(_) => {
                    let order = Order::new(self.chain.approve(asset, U256::MAX)).from(self.account);
                    self.submitter.submit(order).await.mined().map(|_| ())
                }
                Err(error) => Err(error.to_string()),
            };
            match enough {
                Ok(()) => return approved.insert(asset),
                Err(why) => self.core.alarm(format!("the contract may not take the hub's tokens {asset}: {why}")),
            }
            tokio::time::sleep(PAUSE).await;
        }
        false
    }

    async fn fund(&self, asset: Asset, orders: Vec<(FundOrder, Amount)>, pending: &mut Pending) {
        let now = Instant::now();
        let mut left = match self.balance(asset).await {
            Ok(balance) => balance,
            Err(error) => return self.core.alarm(format!("the hub's balance cannot be read: {error}")),
        };
        let mut totals = BTreeMap::new();
        let mut affordable = Vec::new();
        for (order, deposited) in orders {
            let account = AccountId { channel: self.core.domain.channel_id(&order.terms), asset };
            // An earlier run may have sent a deposit that is on the ledger and not confirmed: one is enough.
            match self.hub_deposit(account).await {
                Some(there) if there > deposited => {
                    pending.insert(account, (there, now));
                    continue;
                }
                Some(_) => {}
                None => continue,
            }
            let amount = U256::from(order.amount.get());
            if amount > left {
                self.core.alarm(format!(
                    "the hub account {} lacks {asset} to fund payees; send more of it there",
                    self.account
                ));
                continue;
            }
            left = left.saturating_sub(amount);
            totals.insert(account, deposited.saturating_add(order.amount));
            affordable.push(order);
        }
        for packed in settlement::fund(self.chain.adjudicator(), affordable) {
            let accounts: Vec<AccountId> = packed
                .orders
                .iter()
                .map(|order| AccountId { channel: self.core.domain.channel_id(&order.terms), asset })
                .collect();
            match self.send(packed.call).await {
                Outcome::Mined(mined) => {
                    let refused: BTreeMap<usize, String> =
                        settlement::refused(&mined.events).map(|(i, refusal)| (i, refusal.to_string())).collect();
                    for (i, account) in accounts.iter().enumerate() {
                        match refused.get(&i) {
                            Some(why) => self.core.alarm(format!("the deposit for {account} was refused: {why}")),
                            None => {
                                pending.extend(totals.get(account).map(|total| (*account, (*total, now))));
                            }
                        }
                    }
                }
                unknown @ Outcome::Unknown { .. } => {
                    // It may still be mined: until it is, or long after, nothing more is sent to these accounts.
                    pending.extend(accounts.iter().filter_map(|a| Some((*a, (*totals.get(a)?, now)))));
                    self.core.alarm(format!("a batch of deposits is in no block yet: {}", why(unknown)));
                }
                other => self.core.alarm(format!("a batch of deposits failed: {}", why(other))),
            }
        }
    }

    /// Sends a batch of deposits, again where nothing of it was sent: the books ask for collateral once, and a node that
    /// does not answer is back soon.
    async fn send(&self, call: Call) -> Outcome {
        for _ in 1..FUND_ATTEMPTS {
            match self.submitter.submit(Order::new(call.clone()).from(self.account)).await {
                Outcome::NotSent { why } => {
                    self.core.alarm(format!("a batch of deposits could not be sent: {why}"));
                    tokio::time::sleep(PAUSE).await;
                }
                other => return other,
            }
        }
        self.submitter.submit(Order::new(call).from(self.account)).await
    }

    async fn balance(&self, asset: Asset) -> Result<U256, ChainError> {
        for _ in 1..FUND_ATTEMPTS {
            match self.chain.balance(asset, self.account).await {
                Ok(balance) => return Ok(balance),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
        self.chain.balance(asset, self.account).await
    }

    /// What the hub has deposited on the ledger, confirmed or not; none if the ledger does not say.
    async fn hub_deposit(&self, account: AccountId) -> Option<Amount> {
        for _ in 0..FUND_ATTEMPTS {
            match self.chain.books(&account).await {
                Ok(books) => return Some(books.hub_deposit),
                Err(error) => self.core.alarm(format!("{account} cannot be read from the ledger: {error}")),
            }
            tokio::time::sleep(PAUSE).await;
        }
        None
    }
}

// ---- settling ------------------------------------------------------------------------------------------------------

/// What is to be posted is what the books hold as agreed and the ledger has not: both are asked again whenever it is not
/// known what became of a transaction, so that nothing has to be remembered and posting twice is posting once.
struct Poster {
    core: Arc<Core>,
    submitter: Submitter,
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
        earlier_transactions_are_over(&self.core, &self.submitter).await;
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
