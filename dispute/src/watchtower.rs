//! The watchtower: whoever sees a close posts at once everything he holds above what is posted.
//!
//! [`Tower`] is a state machine without I/O or clock. It knows, per account, the terms, the best evidence of both
//! directions, and what the ledger shows: confirmed, and seen on top of that. Each [`Tower::step`] returns actions in the
//! order in which they must be done: a [`Action::Record`] is durable before anything after it happens.
//!
//! The rule, and why it looks at no balance: posting evidence raises only the poster's stream, but lowers the other's
//! net. What a direction is worth to its payee depends on what the other side will still post, up to the last second of
//! the challenge period. A tower that judges by the nets of the moment, and stays silent because they look right, loses
//! in that last second. So the tower compares *totals*, each direction on its own, and nothing else. It works for both
//! sides alike: a member's tower holds hub vouchers and receipts (and his own vouchers, because an honest closer posts
//! both directions), the hub's holds the members' vouchers of all lanes.
//!
//! A response is done when the ledger's *confirmed* total covers the evidence. One that a reorganisation took away is
//! sent again. After a third of the challenge period without that, the fee rises; after half, an alarm. Times are chain
//! times; the caller passes an estimate of the next block's, so that a ledger that makes blocks on demand only is
//! finalized too.
//!
//! [`run_tower`] drives a tower against a chain. Requests that wait are taken together: their records share one write,
//! and each is answered when that is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alloy_primitives::{B256, keccak256};
use alloy_sol_types::SolValue;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use proto::{AccountId, Amount, Asset, ChannelTerms, Domain};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::adjudicator::{
    BlockRef, Claim, ClaimError, EventKind, Evidence, FinalizeOrder, LedgerBooks, LedgerEvent, Raised, RefusalClass,
    RespondOrder, Status,
};
use crate::chain::{Chain, ChainError};
use crate::cursor::{CursorState, Item, Step, Update, follow};
use crate::submitter::{Order, Outcome, Submitter, Urgency};

/// Most accounts that one tower watches: about a kilobyte each in memory.
pub const ACCOUNTS_MAX: usize = 1_000_000;
/// Requests that wait for the runner; callers beyond that wait for their turn.
const REQUESTS_MAX: usize = 1_024;
/// Requests that share a write.
const TOGETHER_MAX: usize = 256;
/// A failed attempt is repeated after this share of the challenge period, so that an outage of the node costs a few
/// percent of the window and no busy loop.
const RETRY_SHARE: u64 = 50;
/// Longest pause between attempts, in seconds.
const RETRY_MAX_S: u64 = 30;
/// Format of the records; raised when their shape changes.
const RECORD_VERSION: u8 = 1;

/// Watches accounts; see the module.
#[derive(Clone, Debug)]
pub struct Tower {
    domain: Domain,
    head: BlockRef,
    accounts: BTreeMap<AccountId, Watched>,
    /// The accounts that are closing: the only ones that time matters to.
    closing: BTreeSet<AccountId>,
    /// The accounts whose books were not read yet.
    bookless: BTreeSet<AccountId>,
}

/// What is known of one account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Watched {
    terms: ChannelTerms,
    evidence: Evidence,
    /// What the ledger shows for good.
    confirmed: View,
    /// Events on top of it, oldest first.
    unconfirmed: Vec<LedgerEvent>,
    /// Whether the ledger's books were read since the account is watched.
    books_known: bool,
    /// What is under way; forgotten by a restart, after which everything is tried again.
    #[serde(skip)]
    effort: Effort,
}

/// What the ledger shows of an account, as far as a tower cares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct View {
    window: Option<Window>,
    member_paid: Amount,
    hub_paid: Amount,
    is_final: bool,
}

/// A challenge period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Window {
    start_s: u64,
    deadline_s: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Effort {
    /// The response under way.
    response: Option<Response>,
    /// Responses started, so that one that was taken back is a new intent.
    attempts: u64,
    /// No attempt before this time.
    not_before_s: u64,
    /// Whether the fee was raised.
    urgent: bool,
    /// Whether somebody was told that half the window is over.
    half_told: bool,
    /// Whether somebody was told that the window closed.
    missed_told: bool,
    /// The last refusal that somebody was told about.
    refusal_told: Option<String>,
    /// Whether a payout is under way.
    finalizing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Response {
    member_paid: Amount,
    hub_paid: Amount,
    /// The block that holds it, once it is in one.
    mined_in: Option<u64>,
}

/// What a tower is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Watch an account from now on. The ledger's view of it comes by [`Input::Books`] and [`Input::Ledger`].
    Watch {
        /// The channel's terms.
        terms: ChannelTerms,
        /// The asset.
        asset: Asset,
    },
    /// The books of an account at the newest *confirmed* block.
    Books {
        /// The account.
        account: AccountId,
        /// Its books.
        books: LedgerBooks,
    },
    /// New evidence, verified with the keys of the account's terms.
    Claim(Box<Claim>),
    /// Something happened on the ledger.
    Ledger(Item),
    /// The newest block; comes after the items of the same step.
    Head(BlockRef),
    /// A task that an action asked for came to an end.
    Ended {
        /// The account.
        account: AccountId,
        /// The task.
        task: Task,
        /// How.
        end: TaskEnd,
    },
    /// Time passed.
    Tick,
}

/// What an action can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A response.
    Respond,
    /// A payout.
    Finalize,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// In a block.
    Mined {
        /// The block's number.
        block_number: u64,
    },
    /// Refused by the contract.
    Refused {
        /// What it means.
        class: RefusalClass,
        /// Why.
        why: String,
    },
    /// It is not known to have arrived.
    Lost {
        /// Why.
        why: String,
    },
}

/// What a tower wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Store these bytes under the account, durably, before doing what comes next.
    Record {
        /// The account.
        account: AccountId,
        /// For [`Tower::restore`].
        bytes: Vec<u8>,
    },
    /// Delete the account's record: it is final for ever.
    Forget {
        /// The account.
        account: AccountId,
    },
    /// Post evidence.
    Respond {
        /// What to post.
        order: Box<RespondOrder>,
        /// Chain time before which it must be in a block.
        deadline_s: u64,
        /// How urgent it is.
        urgency: Urgency,
        /// Names the attempt: sending the same one twice must not send two transactions.
        intent: B256,
    },
    /// Pay the account out.
    Finalize {
        /// The account.
        account: AccountId,
        /// What to pay out.
        order: Box<FinalizeOrder>,
        /// Names the attempt.
        intent: B256,
    },
    /// Tell a person.
    Alarm(Alarm),
}

/// Something that a person must know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// Half the challenge period is over.
    #[error(
        "{account}: half the challenge period is over and the evidence is not confirmed on the ledger; check the node, the gas balance and the fees before {deadline_s}"
    )]
    HalfTime {
        /// The account.
        account: AccountId,
        /// The deadline.
        deadline_s: u64,
    },
    /// The challenge period ended without the evidence.
    #[error(
        "{account}: the challenge period ended at {deadline_s} without all evidence; member paid {member_missing} and hub paid {hub_missing} more than the ledger knows"
    )]
    Missed {
        /// The account.
        account: AccountId,
        /// The deadline.
        deadline_s: u64,
        /// What the ledger does not know of the member's payments.
        member_missing: Amount,
        /// What the ledger does not know of the hub's payments.
        hub_missing: Amount,
    },
    /// The contract refuses the evidence.
    #[error("{account}: the contract refused: {why}")]
    Refused {
        /// The account.
        account: AccountId,
        /// Why.
        why: String,
    },
    /// The ledger cannot be followed.
    #[error("the ledger cannot be followed: {why}")]
    Blind {
        /// Why.
        why: String,
    },
}

/// Why a tower does not take an input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TowerError {
    /// The account is not watched.
    #[error("{account} is not watched; ask to watch it first")]
    NotWatched {
        /// The account.
        account: AccountId,
    },
    /// The evidence is not good.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The tower is full.
    #[error("the tower watches {max} accounts already; run another one")]
    Full {
        /// How many it can watch.
        max: usize,
    },
    /// A record does not read.
    #[error("the record of {account} does not read ({why}); restore it from a backup, or watch the account anew")]
    BadRecord {
        /// The account.
        account: AccountId,
        /// What is wrong.
        why: String,
    },
    /// The runner is gone.
    #[error("the watchtower has stopped; see its last message")]
    Stopped,
}

impl Tower {
    /// A tower that watches nothing.
    pub fn new(domain: Domain) -> Self {
        Tower {
            domain,
            head: BlockRef::default(),
            accounts: BTreeMap::new(),
            closing: BTreeSet::new(),
            bookless: BTreeSet::new(),
        }
    }

    /// A tower from the records that an earlier one handed out.
    pub fn restore(
        domain: Domain,
        records: impl IntoIterator<Item = (AccountId, Vec<u8>)>,
    ) -> Result<Self, TowerError> {
        let mut tower = Tower::new(domain);
        for (account, bytes) in records {
            let bad = |why: String| TowerError::BadRecord { account, why };
            let watched = Watched::from_record(&bytes).map_err(bad)?;
            if watched.evidence.account() != account {
                return Err(bad(format!("it is about {}", watched.evidence.account())));
            }
            tower.insert(account, watched);
        }
        Ok(tower)
    }

    /// The accounts watched.
    pub fn accounts(&self) -> impl Iterator<Item = AccountId> {
        self.accounts.keys().copied()
    }

    /// The evidence held for an account.
    pub fn evidence(&self, account: &AccountId) -> Option<&Evidence> {
        self.accounts.get(account).map(|watched| &watched.evidence)
    }

    /// The account that a request is about.
    fn account_of(&self, input: &Input) -> Option<AccountId> {
        match input {
            Input::Watch { terms, asset } => Some(AccountId { channel: self.domain.channel_id(terms), asset: *asset }),
            Input::Claim(claim) => Some(claim.account()),
            _ => None,
        }
    }

    /// What the evidence held for an account is worth; nothing for one that is not watched.
    pub fn held(&self, account: &AccountId) -> Held {
        let of = |evidence: &Evidence| Held {
            member_paid: evidence.member_paid(),
            hub_paid: evidence.hub_paid(),
            raised: false,
        };
        self.evidence(account).map(of).unwrap_or_default()
    }

    /// The accounts whose books were not read yet.
    pub fn wants_books(&self) -> impl Iterator<Item = AccountId> {
        self.bookless.iter().copied()
    }

    /// Takes an input; `now_s` is the timestamp that the next block will have at least.
    pub fn step(&mut self, now_s: u64, input: Input) -> Result<Vec<Action>, TowerError> {
        let mut actions = Vec::new();
        match input {
            Input::Watch { terms, asset } => {
                let account = AccountId { channel: self.domain.channel_id(&terms), asset };
                if self.accounts.contains_key(&account) {
                    return Ok(actions);
                }
                if self.accounts.len() >= ACCOUNTS_MAX {
                    return Err(TowerError::Full { max: ACCOUNTS_MAX });
                }
                let watched = Watched::new(terms, account);
                actions.push(watched.record(account));
                self.insert(account, watched);
            }
            Input::Claim(claim) => {
                let account = claim.account();
                let watched = self.accounts.get_mut(&account).ok_or(TowerError::NotWatched { account })?;
                if watched.evidence.add(*claim)? == Raised::Yes {
                    actions.push(watched.record(account));
                    self.decide(account, now_s, &mut actions);
                }
            }
            Input::Books { account, books } => {
                if let Some(watched) = self.accounts.get_mut(&account) {
                    watched.take_books(&books);
                    self.bookless.remove(&account);
                    actions.push(watched.record(account));
                    self.decide(account, now_s, &mut actions);
                }
            }
            Input::Ledger(item) => {
                let (Item::Seen(event) | Item::Confirmed(event) | Item::Reverted(event)) = &item;
                if let Some(account) = event.account()
                    && let Some(watched) = self.accounts.get_mut(&account)
                {
                    watched.take_item(item);
                    actions.push(watched.record(account));
                    self.decide(account, now_s, &mut actions);
                }
            }
            Input::Head(head) => {
                self.head = head;
                self.decide_all(now_s, &mut actions);
            }
            Input::Ended { account, task, end } => {
                if let Some(watched) = self.accounts.get_mut(&account) {
                    watched.end(account, now_s, task, end, &mut actions);
                    self.decide(account, now_s, &mut actions);
                }
            }
            Input::Tick => self.decide_all(now_s, &mut actions),
        }
        Ok(actions)
    }

    fn insert(&mut self, account: AccountId, watched: Watched) {
        if !watched.books_known {
            self.bookless.insert(account);
        }
        if watched.seen().window.is_some() {
            self.closing.insert(account);
        }
        self.accounts.insert(account, watched);
    }

    fn decide_all(&mut self, now_s: u64, actions: &mut Vec<Action>) {
        let accounts: Vec<AccountId> = self.closing.iter().copied().collect();
        for account in accounts {
            self.decide(account, now_s, actions);
        }
    }

    fn decide(&mut self, account: AccountId, now_s: u64, actions: &mut Vec<Action>) {
        let Some(watched) = self.accounts.get_mut(&account) else { return };
        if watched.confirmed.is_final {
            self.accounts.remove(&account);
            self.closing.remove(&account);
            self.bookless.remove(&account);
            actions.push(Action::Forget { account });
            return;
        }
        let seen = watched.seen();
        let Some(window) = seen.window.filter(|_| !seen.is_final) else {
            // Nothing is closing (any more): what was under way is pointless, and a later close starts afresh.
            watched.effort = Effort { attempts: watched.effort.attempts, ..Effort::default() };
            self.closing.remove(&account);
            return;
        };
        self.closing.insert(account);
        if self.head.time_s < window.deadline_s {
            watched.respond(account, &self.head, now_s, window, actions);
        } else {
            watched.tell_if_missed(account, window, actions);
        }
        if now_s >= window.deadline_s {
            watched.finalize(account, now_s, actions);
        }
    }
}

impl Watched {
    fn new(terms: ChannelTerms, account: AccountId) -> Self {
        Watched {
            terms,
            evidence: Evidence::new(account),
            confirmed: View::default(),
            unconfirmed: Vec::new(),
            books_known: false,
            effort: Effort::default(),
        }
    }

    fn record(&self, account: AccountId) -> Action {
        let mut bytes = vec![RECORD_VERSION];
        bytes.extend(postcard::to_stdvec(self).expect("plain data in memory always serializes"));
        Action::Record { account, bytes }
    }

    fn from_record(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&RECORD_VERSION, rest)) => postcard::from_bytes(rest).map_err(|error| error.to_string()),
            Some((version, _)) => Err(format!("format {version} is not {RECORD_VERSION}")),
            None => Err("it is empty".to_owned()),
        }
    }

    /// What the ledger shows at the newest block.
    fn seen(&self) -> View {
        let mut view = self.confirmed;
        for event in &self.unconfirmed {
            view.take(event, self.terms.challengePeriod);
        }
        view
    }

    fn take_books(&mut self, books: &LedgerBooks) {
        self.books_known = true;
        let view = &mut self.confirmed;
        view.member_paid = view.member_paid.max(books.member_paid);
        view.hub_paid = view.hub_paid.max(books.hub_paid);
        view.is_final |= books.status == Status::Final;
        if books.status == Status::Closing && view.window.is_none() {
            view.window = Some(Window::ending(books.deadline_s, self.terms.challengePeriod));
        }
    }

    fn take_item(&mut self, item: Item) {
        match item {
            Item::Seen(event) => {
                if !self.unconfirmed.contains(&event) {
                    self.unconfirmed.push(event);
                }
            }
            Item::Confirmed(event) => {
                self.unconfirmed.retain(|known| *known != event);
                self.confirmed.take(&event, self.terms.challengePeriod);
            }
            Item::Reverted(event) => {
                self.unconfirmed.retain(|known| *known != event);
                // What was posted may be gone: whatever is under way is not known to cover it any more, and what goes
                // out next is a new attempt.
                self.effort.response = None;
                self.effort.attempts = self.effort.attempts.saturating_add(1);
                self.effort.finalizing = false;
                self.effort.not_before_s = 0;
            }
        }
    }

    /// Posts what is held above what is posted, unless that is under way.
    fn respond(&mut self, account: AccountId, head: &BlockRef, now_s: u64, window: Window, actions: &mut Vec<Action>) {
        let seen = self.seen();
        if self.covers(&self.confirmed) {
            return;
        }
        let effort = &mut self.effort;
        let third = now_s >= window.after(1, 3);
        let raise = third && !effort.urgent;
        effort.urgent |= third;
        if now_s >= window.after(1, 2) && !std::mem::replace(&mut effort.half_told, true) {
            actions.push(Action::Alarm(Alarm::HalfTime { account, deadline_s: window.deadline_s }));
        }
        if self.covers(&seen) {
            return;
        }
        let effort = &mut self.effort;
        let (member_paid, hub_paid) = (self.evidence.member_paid(), self.evidence.hub_paid());
        let in_time = |response: &Response| response.mined_in.is_none_or(|number| head.number < number);
        let under_way = effort.response.filter(|response| {
            response.member_paid >= member_paid && response.hub_paid >= hub_paid && in_time(response)
        });
        if under_way.is_some() && !raise {
            return;
        }
        if under_way.is_none() {
            if now_s < effort.not_before_s {
                return;
            }
            if effort.response.is_some_and(|response| !in_time(&response)) {
                // It was mined in a block that the cursor has passed without finding it: it is gone.
                effort.attempts = effort.attempts.saturating_add(1);
            }
            effort.response = Some(Response { member_paid, hub_paid, mined_in: None });
        }
        let words = (account.channel.0, account.asset, member_paid.get(), hub_paid.get(), effort.attempts);
        let evidence = self.evidence.above(seen.member_paid, seen.hub_paid);
        actions.push(Action::Respond {
            order: Box::new(RespondOrder { terms: self.terms.clone(), evidence }),
            deadline_s: window.deadline_s,
            urgency: if effort.urgent { Urgency::Urgent } else { Urgency::Normal },
            intent: keccak256(words.abi_encode()),
        });
    }

    fn finalize(&mut self, account: AccountId, now_s: u64, actions: &mut Vec<Action>) {
        if self.effort.finalizing || now_s < self.effort.not_before_s {
            return;
        }
        self.effort.finalizing = true;
        self.effort.attempts = self.effort.attempts.saturating_add(1);
        let words = (account.channel.0, account.asset, "finalize".to_owned(), self.effort.attempts);
        actions.push(Action::Finalize {
            account,
            order: Box::new(FinalizeOrder { terms: self.terms.clone(), asset: account.asset }),
            intent: keccak256(words.abi_encode()),
        });
    }

    fn tell_if_missed(&mut self, account: AccountId, window: Window, actions: &mut Vec<Action>) {
        let seen = self.seen();
        if self.covers(&seen) || std::mem::replace(&mut self.effort.missed_told, true) {
            return;
        }
        actions.push(Action::Alarm(Alarm::Missed {
            account,
            deadline_s: window.deadline_s,
            member_missing: self.evidence.member_paid().saturating_sub(seen.member_paid),
            hub_missing: self.evidence.hub_paid().saturating_sub(seen.hub_paid),
        }));
    }

    fn end(&mut self, account: AccountId, now_s: u64, task: Task, end: TaskEnd, actions: &mut Vec<Action>) {
        let pause_s = (u64::from(self.terms.challengePeriod) / RETRY_SHARE).clamp(1, RETRY_MAX_S);
        let retry_at = now_s.saturating_add(pause_s);
        match (task, &end) {
            (Task::Respond, TaskEnd::Mined { block_number }) => {
                if let Some(response) = &mut self.effort.response {
                    response.mined_in = Some(*block_number);
                }
            }
            (Task::Respond, TaskEnd::Refused { .. } | TaskEnd::Lost { .. }) => {
                self.effort.response = None;
                self.effort.not_before_s = retry_at;
            }
            // The cursor will show it; if it does not, the payout is tried again.
            (Task::Finalize, TaskEnd::Mined { .. } | TaskEnd::Refused { .. } | TaskEnd::Lost { .. }) => {
                self.effort.finalizing = false;
                self.effort.not_before_s = retry_at;
            }
        }
        if let TaskEnd::Refused { class: RefusalClass::Wrong, why } = end
            && self.effort.refusal_told.as_ref() != Some(&why)
        {
            self.effort.refusal_told = Some(why.clone());
            actions.push(Action::Alarm(Alarm::Refused { account, why }));
        }
    }

    /// Whether the ledger knows everything that is held.
    fn covers(&self, view: &View) -> bool {
        view.member_paid >= self.evidence.member_paid() && view.hub_paid >= self.evidence.hub_paid()
    }
}

impl View {
    fn take(&mut self, event: &LedgerEvent, challenge_period_s: u32) {
        match &event.kind {
            EventKind::Closing { deadline_s, .. } => {
                self.window = Some(Window::ending(*deadline_s, challenge_period_s));
            }
            EventKind::Proven { member_paid, hub_paid, .. } => {
                self.member_paid = self.member_paid.max(*member_paid);
                self.hub_paid = self.hub_paid.max(*hub_paid);
            }
            EventKind::Settled { status, .. } => self.is_final |= *status == Status::Final,
            EventKind::Finalized { .. } => self.is_final = true,
            EventKind::Opened { .. }
            | EventKind::Deposited { .. }
            | EventKind::Claimable { .. }
            | EventKind::Claimed { .. }
            | EventKind::EntryRefused { .. } => {}
        }
    }
}

impl Window {
    fn ending(deadline_s: u64, challenge_period_s: u32) -> Self {
        Window { start_s: deadline_s.saturating_sub(u64::from(challenge_period_s)), deadline_s }
    }

    /// The time at which that share of the window is over.
    fn after(&self, part: u64, of: u64) -> u64 {
        let length = self.deadline_s.saturating_sub(self.start_s);
        self.start_s.saturating_add(length.saturating_mul(part) / of)
    }
}

/// What a tower needs of its owner.
pub trait TowerHost: Send {
    /// Makes a change durable before it returns. An error ends the tower: it must not act on what is not written down.
    fn save(&mut self, save: &Save) -> Result<(), String>;

    /// Tells a person.
    fn alarm(&mut self, alarm: &Alarm);

    /// Hears of what is about to be sent to the ledger, for whoever shows it.
    fn sending(&mut self, _action: &Action) {}
}

/// What is stored in one atomic write.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Save {
    /// The cursor's new state, if it moved.
    pub position: Option<CursorState>,
    /// Records to put; `None` deletes.
    pub records: BTreeMap<AccountId, Option<Vec<u8>>>,
}

/// Why a tower stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watchtower stopped because it could not write: {why}; make room or repair the disk, then start it again")]
pub struct TowerStopped {
    /// What the owner said.
    pub why: String,
}

/// Hands accounts and evidence to a running tower.
#[derive(Clone, Debug)]
pub struct TowerHandle(mpsc::Sender<Request>);

/// The receiving end of a [`TowerHandle`], for [`run_tower`].
#[derive(Debug)]
pub struct TowerRequests(mpsc::Receiver<Request>);

#[derive(Debug)]
struct Request {
    /// All about one account.
    inputs: Vec<Input>,
    answer: oneshot::Sender<Result<Held, TowerError>>,
}

/// What a tower holds of an account after a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// What the member paid by it.
    pub member_paid: Amount,
    /// What the hub paid by it.
    pub hub_paid: Amount,
    /// Whether the request raised either.
    pub raised: bool,
}

/// A handle, and what [`run_tower`] takes for it.
pub fn tower_channel() -> (TowerHandle, TowerRequests) {
    let (sender, receiver) = mpsc::channel(REQUESTS_MAX);
    (TowerHandle(sender), TowerRequests(receiver))
}

impl TowerHandle {
    /// Watches an account; durable when this returns.
    pub async fn watch(&self, terms: ChannelTerms, asset: Asset) -> Result<(), TowerError> {
        self.hold(terms, asset, Vec::new()).await.map(|_| ())
    }

    /// Hands over evidence that was verified with the keys of the account's terms; durable when this returns.
    pub async fn offer(&self, claim: Claim) -> Result<(), TowerError> {
        self.ask(vec![Input::Claim(Box::new(claim))]).await.map(|_| ())
    }

    /// Watches an account and hands over its evidence, verified with the keys of these terms, all in one write; durable
    /// when this returns.
    pub async fn hold(&self, terms: ChannelTerms, asset: Asset, claims: Vec<Claim>) -> Result<Held, TowerError> {
        let mut inputs = vec![Input::Watch { terms, asset }];
        inputs.extend(claims.into_iter().map(|claim| Input::Claim(Box::new(claim))));
        self.ask(inputs).await
    }

    async fn ask(&self, inputs: Vec<Input>) -> Result<Held, TowerError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Request { inputs, answer }).await.map_err(|_| TowerError::Stopped)?;
        answered.await.map_err(|_| TowerError::Stopped)?
    }
}

/// Where a tower begins that never ran before: at the newest confirmed block. What was before it is read from the
/// contract's books of each account.
pub async fn start_position(chain: &Chain) -> Result<CursorState, ChainError> {
    let head = chain.head().await?;
    let Some(number) = head.number.checked_sub(chain.confirmations()) else { return Ok(CursorState::from_block(0)) };
    Ok(chain.block(number).await?.map(CursorState::after).unwrap_or(CursorState::from_block(0)))
}

/// Drives a tower against a chain until its owner cannot write any more, or until it is dropped.
///
/// `position` is the state last saved, or one from the adjudicator's first block.
pub async fn run_tower(
    tower: Tower,
    position: CursorState,
    chain: Chain,
    submitter: Submitter,
    poll: Duration,
    host: impl TowerHost,
    requests: TowerRequests,
) -> TowerStopped {
    let updates = follow(chain.clone(), position.clone(), poll);
    let clock = Clock { head_time_s: position.tip().map_or(0, |tip| tip.time_s), seen: Instant::now(), runs: false };
    let runner = Runner { tower, position, chain, submitter, host, clock, tasks: FuturesUnordered::new() };
    match runner.run(std::pin::pin!(updates), requests, poll).await {
        Err(stopped) => stopped,
        Ok(never) => match never {},
    }
}

struct Runner<H> {
    tower: Tower,
    position: CursorState,
    chain: Chain,
    submitter: Submitter,
    host: H,
    clock: Clock,
    tasks: FuturesUnordered<BoxFuture<'static, Input>>,
}

/// Estimates the next block's time from the newest block's and the time since it was seen.
struct Clock {
    head_time_s: u64,
    seen: Instant,
    /// Whether the newest block is the chain's newest; while catching up, time stands still.
    runs: bool,
}

impl Clock {
    fn now_s(&self) -> u64 {
        let since = if self.runs { self.seen.elapsed().as_secs() } else { 0 };
        self.head_time_s.saturating_add(since)
    }

    fn set(&mut self, step: &Step) {
        *self = Clock { head_time_s: step.head.time_s, seen: Instant::now(), runs: step.behind == 0 };
    }
}

impl<H: TowerHost> Runner<H> {
    async fn run(
        mut self,
        mut updates: std::pin::Pin<&mut impl futures::Stream<Item = Update>>,
        mut requests: TowerRequests,
        poll: Duration,
    ) -> Result<std::convert::Infallible, TowerStopped> {
        let mut ticks = tokio::time::interval(poll.max(Duration::from_millis(100)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut waiting, mut closed) = (Vec::new(), false);
        loop {
            tokio::select! {
                Some(update) = updates.next() => self.on_update(update).await?,
                count = requests.0.recv_many(&mut waiting, TOGETHER_MAX), if !closed => {
                    // Without a handle nothing new comes; what is watched is watched all the same.
                    closed = count == 0;
                    self.on_requests(std::mem::take(&mut waiting)).await?;
                }
                Some(ended) = self.tasks.next(), if !self.tasks.is_empty() => self.feed(vec![ended], None)?,
                _ = ticks.tick() => self.feed(vec![Input::Tick], None)?,
            }
        }
    }

    async fn on_update(&mut self, update: Update) -> Result<(), TowerStopped> {
        match update {
            Update::Trouble(error) => {
                self.host.alarm(&Alarm::Blind { why: error.to_string() });
                Ok(())
            }
            Update::Step(step) => {
                self.clock.set(&step);
                self.position = step.state.clone();
                let mut inputs: Vec<Input> = step.items.into_iter().map(Input::Ledger).collect();
                inputs.push(Input::Head(step.head));
                self.feed(inputs, Some(step.state))?;
                self.read_books().await
            }
        }
    }

    async fn on_requests(&mut self, requests: Vec<Request>) -> Result<(), TowerStopped> {
        let (now_s, mut actions, mut answers) = (self.clock.now_s(), Vec::new(), Vec::new());
        for Request { inputs, answer } in requests {
            let account = inputs.iter().find_map(|input| self.tower.account_of(input));
            let held = |tower: &Tower| account.map(|account| tower.held(&account)).unwrap_or_default();
            let before = held(&self.tower);
            // What came before a piece that is refused stays: it is good by itself.
            let result =
                inputs.into_iter().try_for_each(|input| self.tower.step(now_s, input).map(|more| actions.extend(more)));
            let after = held(&self.tower);
            let raised = after.member_paid > before.member_paid || after.hub_paid > before.hub_paid;
            answers.push((answer, result.map(|()| Held { raised, ..after })));
        }
        self.act(actions, None)?;
        for (answer, result) in answers {
            // Whoever asked may have stopped waiting; what he asked for is done all the same.
            let _ = answer.send(result);
        }
        self.read_books().await
    }

    /// Reads the books of newly watched accounts as of the newest confirmed block, and tells the tower what happened
    /// since. An account whose books cannot be read is tried again at the next block.
    async fn read_books(&mut self) -> Result<(), TowerStopped> {
        let Some(confirmed) = self.position.confirmed() else { return Ok(()) };
        let accounts: Vec<AccountId> = self.tower.wants_books().collect();
        for account in accounts {
            // Where blocks are final at once, the newest books are confirmed ones; nodes need not keep older states.
            let books = match self.chain.confirmations() {
                0 => self.chain.books(&account).await,
                _ => self.chain.books_after(&account, confirmed.number).await,
            };
            match books {
                Ok(books) => {
                    let since = self.position.unconfirmed_of(account).cloned();
                    let mut inputs = vec![Input::Books { account, books }];
                    inputs.extend(since.map(|event| Input::Ledger(Item::Seen(event))));
                    self.feed(inputs, None)?;
                }
                Err(error) => {
                    tracing::warn!(%account, %error, "the books of a watched account cannot be read yet");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn feed(&mut self, inputs: Vec<Input>, position: Option<CursorState>) -> Result<(), TowerStopped> {
        let mut actions = Vec::new();
        for input in inputs {
            match self.tower.step(self.clock.now_s(), input) {
                Ok(more) => actions.extend(more),
                Err(error) => tracing::error!(%error, "the watchtower refused what the ledger told it"),
            }
        }
        self.act(actions, position)
    }

    /// Writes down first, then acts.
    fn act(&mut self, actions: Vec<Action>, position: Option<CursorState>) -> Result<(), TowerStopped> {
        let mut save = Save { position, records: BTreeMap::new() };
        let mut rest = Vec::new();
        for action in actions {
            match action {
                Action::Record { account, bytes } => drop(save.records.insert(account, Some(bytes))),
                Action::Forget { account } => drop(save.records.insert(account, None)),
                Action::Respond { .. } | Action::Finalize { .. } | Action::Alarm(_) => rest.push(action),
            }
        }
        if save != Save::default() {
            self.host.save(&save).map_err(|why| TowerStopped { why })?;
        }
        for action in rest {
            if !matches!(action, Action::Alarm(_)) {
                self.host.sending(&action);
            }
            match action {
                Action::Respond { order, deadline_s, urgency, intent } => {
                    let left = deadline_s.saturating_sub(self.clock.now_s()).max(1);
                    let account = order.evidence.account();
                    let call = self.chain.adjudicator().respond(&order);
                    let order = Order::new(call).intent(intent).urgency(urgency).patience(Duration::from_secs(left));
                    self.start(account, Task::Respond, order);
                }
                Action::Finalize { account, order, intent } => {
                    let call = self.chain.adjudicator().finalize(&order);
                    self.start(account, Task::Finalize, Order::new(call).intent(intent));
                }
                Action::Alarm(alarm) => self.host.alarm(&alarm),
                Action::Record { .. } | Action::Forget { .. } => {}
            }
        }
        Ok(())
    }

    fn start(&mut self, account: AccountId, task: Task, order: Order) {
        let submitter = self.submitter.clone();
        self.tasks.push(Box::pin(async move {
            let end = match submitter.submit(order).await {
                Outcome::Mined(mined) => TaskEnd::Mined { block_number: mined.block_number },
                Outcome::Reverted { refusal, .. } => TaskEnd::Refused { class: refusal.class, why: refusal.text },
                Outcome::NotSent { why } => TaskEnd::Lost { why },
                Outcome::Unknown { tx_hashes } => TaskEnd::Lost { why: format!("no receipt yet for {tx_hashes:?}") },
            };
            Input::Ended { account, task, end }
        }));
    }
}

#[cfg(test)]
mod tests {
    use proto::keys::{Scheme, SecretKey};
    use proto::typed::{Receipt, Voucher};
    use proto::{Proven, Signed};

    use super::*;

    const PERIOD_S: u32 = 300;
    const START_S: u64 = 1_000;
    const DEADLINE_S: u64 = START_S + PERIOD_S as u64;

    /// One account, its keys, and a tower that watches it.
    struct Scene {
        tower: Tower,
        domain: Domain,
        account: AccountId,
        hub: SecretKey,
        member: SecretKey,
        logs: u64,
    }

    impl Scene {
        fn new() -> Self {
            let domain = Domain::new(31_337, alloy_primitives::Address::repeat_byte(0xad));
            let (hub, member) = (
                SecretKey::derive(Scheme::Ed25519, &[1; 32], "hub"),
                SecretKey::derive(Scheme::Secp256k1, &[2; 32], "member"),
            );
            let terms = ChannelTerms {
                hub: alloy_primitives::Address::repeat_byte(1),
                hubKey: hub.public().bytes,
                hubScheme: hub.scheme().number(),
                member: alloy_primitives::Address::repeat_byte(2),
                memberKey: member.public().bytes,
                memberScheme: member.scheme().number(),
                challengePeriod: PERIOD_S,
                salt: B256::repeat_byte(3),
            };
            let asset = alloy_primitives::Address::repeat_byte(9);
            let account = AccountId { channel: domain.channel_id(&terms), asset };
            let mut tower = Tower::new(domain);
            let actions = tower.step(START_S, Input::Watch { terms, asset }).expect("room");
            assert!(matches!(actions[..], [Action::Record { .. }]));
            Scene { tower, domain, account, hub, member, logs: 0 }
        }

        fn hub_voucher(&self, cumulative: u128) -> Claim {
            let body = self.voucher(1, 0, cumulative);
            Claim::Hub(Proven::sign(&self.domain, &self.hub, body))
        }

        fn member_voucher(&self, lane: u32, cumulative: u128) -> Claim {
            Claim::Member(Signed::sign(&self.domain, &self.member, self.voucher(0, lane, cumulative)))
        }

        fn receipt(&self, total: u128) -> Claim {
            let (channel, asset) = (self.account.channel.0, self.account.asset);
            let body = Receipt { channelId: channel, asset, credit: 1, amount: 1, total, payments: B256::ZERO };
            Claim::Receipt(Proven::sign(&self.domain, &self.hub, body))
        }

        fn voucher(&self, payer: u8, lane: u32, cumulative: u128) -> Voucher {
            Voucher {
                channelId: self.account.channel.0,
                asset: self.account.asset,
                payer,
                lane,
                cumulative,
                credits: u64::from(payer),
                memo: B256::ZERO,
            }
        }

        fn event(&mut self, kind: EventKind) -> LedgerEvent {
            self.logs += 1;
            LedgerEvent {
                block_number: self.logs,
                block_hash: B256::with_last_byte(self.logs as u8),
                block_time_s: START_S,
                log_index: self.logs,
                tx_hash: B256::ZERO,
                kind,
            }
        }

        fn closing(&mut self) -> LedgerEvent {
            let account = self.account;
            self.event(EventKind::Closing { account, deadline_s: DEADLINE_S })
        }

        fn proven(&mut self, member: u128, hub: u128) -> LedgerEvent {
            let (account, member_paid, hub_paid) = (self.account, Amount::new(member), Amount::new(hub));
            self.event(EventKind::Proven { account, member_paid, hub_paid })
        }

        fn offer(&mut self, claim: Claim) -> Vec<Action> {
            self.step(START_S, Input::Claim(Box::new(claim)))
        }

        fn ledger(&mut self, item: Item) -> Vec<Action> {
            self.step(START_S, Input::Ledger(item))
        }

        fn head(&mut self, number: u64, time_s: u64) -> Vec<Action> {
            let head = BlockRef { number, time_s, ..BlockRef::default() };
            self.step(time_s, Input::Head(head))
        }

        fn ended(&mut self, now_s: u64, end: TaskEnd) -> Vec<Action> {
            let account = self.account;
            self.step(now_s, Input::Ended { account, task: Task::Respond, end })
        }

        /// Steps the tower, and drops the records from what it returns after checking that they come first.
        fn step(&mut self, now_s: u64, input: Input) -> Vec<Action> {
            let actions = self.tower.step(now_s, input).expect("the account is watched and the evidence good");
            let records = actions.iter().take_while(|a| matches!(a, Action::Record { .. })).count();
            assert!(actions[records..].iter().all(|a| !matches!(a, Action::Record { .. })), "records come first");
            actions[records..].to_vec()
        }

        /// The same tower after a crash: what is durable is the last record.
        fn restart(&mut self) {
            let watched = self.tower.accounts.get(&self.account).expect("watched");
            let Action::Record { account, bytes } = watched.record(self.account) else { unreachable!("a record") };
            let head = self.tower.head;
            self.tower = Tower::restore(self.domain, [(account, bytes)]).expect("its own record");
            self.tower.head = head;
        }
    }

    fn posted(actions: &[Action]) -> Vec<(u128, u128, Urgency)> {
        let of = |action: &Action| match action {
            Action::Respond { order, urgency, .. } => {
                Some((order.evidence.member_paid().get(), order.evidence.hub_paid().get(), *urgency))
            }
            _ => None,
        };
        actions.iter().filter_map(of).collect()
    }

    fn intents(actions: &[Action]) -> Vec<B256> {
        let of = |action: &Action| match action {
            Action::Respond { intent, .. } | Action::Finalize { intent, .. } => Some(*intent),
            _ => None,
        };
        actions.iter().filter_map(of).collect()
    }

    #[test]
    fn tower_posts_although_the_net_looks_right() {
        let mut scene = Scene::new();
        // The member paid 100 and was paid 100: at zero evidence the nets are those of the deposits, which looks right.
        scene.offer(scene.hub_voucher(100));
        scene.offer(scene.member_voucher(0, 100));
        let closing = scene.closing();
        let actions = scene.ledger(Item::Seen(closing));
        assert_eq!(posted(&actions), [(100, 100, Urgency::Normal)]);
    }

    #[test]
    fn tower_posts_when_a_refused_voucher_hides_the_payout() {
        let mut scene = Scene::new();
        scene.offer(scene.hub_voucher(70));
        let closing = scene.closing();
        assert_eq!(posted(&scene.ledger(Item::Seen(closing))), [(0, 70, Urgency::Normal)]);
        // The hub posts a voucher that it had refused: the member's net falls to nothing, and the hub's credit still counts.
        let refused = scene.proven(500, 0);
        assert_eq!(posted(&scene.ledger(Item::Seen(refused))), [], "the response is under way already");
        scene.ended(START_S, TaskEnd::Lost { why: "the node is gone".into() });
        assert_eq!(posted(&scene.head(5, START_S + 60)), [(0, 70, Urgency::Normal)]);
    }

    #[test]
    fn a_response_is_done_when_it_is_confirmed_and_is_sent_again_when_taken_back() {
        let mut scene = Scene::new();
        scene.offer(scene.hub_voucher(70));
        let closing = scene.closing();
        let first = scene.ledger(Item::Seen(closing.clone()));
        assert_eq!(posted(&first).len(), 1);
        assert_eq!(scene.ended(START_S, TaskEnd::Mined { block_number: 2 }), []);
        let proven = scene.proven(0, 70);
        assert_eq!(scene.ledger(Item::Seen(proven.clone())), []);
        let again = scene.ledger(Item::Reverted(proven.clone()));
        assert_eq!(posted(&again), [(0, 70, Urgency::Normal)]);
        assert_ne!(intents(&first), intents(&again), "a new attempt is a new intent");
        for item in [Item::Confirmed(closing), Item::Seen(proven.clone()), Item::Confirmed(proven)] {
            assert_eq!(scene.ledger(item), []);
        }
        assert_eq!(scene.head(9, DEADLINE_S - 1), [], "nothing is late: it is confirmed");
    }

    #[test]
    fn a_response_mined_in_a_block_that_was_replaced_before_it_was_seen_is_sent_again() {
        let mut scene = Scene::new();
        scene.offer(scene.receipt(70));
        let closing = scene.closing();
        scene.ledger(Item::Seen(closing));
        scene.ended(START_S, TaskEnd::Mined { block_number: 7 });
        assert_eq!(scene.head(6, START_S + 1), []);
        assert_eq!(posted(&scene.head(7, START_S + 2)), [(0, 70, Urgency::Normal)]);
    }

    #[test]
    fn better_evidence_during_a_close_is_posted_too_and_worse_is_not() {
        let mut scene = Scene::new();
        scene.offer(scene.member_voucher(0, 10));
        let closing = scene.closing();
        assert_eq!(posted(&scene.ledger(Item::Seen(closing))), [(10, 0, Urgency::Normal)]);
        assert_eq!(posted(&scene.offer(scene.member_voucher(5, 20))), [(30, 0, Urgency::Normal)]);
        assert_eq!(scene.offer(scene.member_voucher(5, 19)), []);
        let proven = scene.proven(30, 0);
        scene.ledger(Item::Seen(proven));
        assert_eq!(posted(&scene.offer(scene.hub_voucher(1))), [(0, 1, Urgency::Normal)], "only what is above");
    }

    #[test]
    fn the_fee_rises_after_a_third_and_a_person_is_told_after_half() {
        let mut scene = Scene::new();
        scene.offer(scene.hub_voucher(70));
        let closing = scene.closing();
        let first = scene.ledger(Item::Seen(closing));
        assert_eq!(scene.head(2, START_S + 99), []);
        let raised = scene.head(3, START_S + 100);
        assert_eq!(posted(&raised), [(0, 70, Urgency::Urgent)]);
        assert_eq!(intents(&first), intents(&raised), "the same transaction with a higher fee");
        assert_eq!(scene.head(4, START_S + 101), []);
        let alarm = Alarm::HalfTime { account: scene.account, deadline_s: DEADLINE_S };
        assert_eq!(scene.head(5, START_S + 150), [Action::Alarm(alarm)]);
        assert_eq!(scene.head(6, START_S + 151), []);
    }

    #[test]
    fn outage_longer_than_window_leaves_time_to_respond() {
        // The ledger's clock stands still while it is down, so that after the outage the deadline is still ahead in chain
        // time, however late it is on the wall.
        let mut scene = Scene::new();
        scene.offer(scene.hub_voucher(70));
        let closing = scene.closing();
        scene.ledger(Item::Seen(closing));
        scene.ended(START_S, TaskEnd::Lost { why: "the node is gone".into() });
        scene.restart();
        let actions = scene.head(40, DEADLINE_S - 10);
        assert_eq!(posted(&actions), [(0, 70, Urgency::Urgent)]);
        assert!(actions.iter().any(|a| matches!(a, Action::Alarm(Alarm::HalfTime { .. }))));
    }

    #[test]
    fn after_the_deadline_what_is_missing_is_told_once_and_the_account_paid_out_until_it_is_final() {
        let mut scene = Scene::new();
        scene.offer(scene.hub_voucher(70));
        let closing = scene.closing();
        scene.ledger(Item::Seen(closing));
        let actions = scene.head(9, DEADLINE_S);
        let missed = Alarm::Missed {
            account: scene.account,
            deadline_s: DEADLINE_S,
            member_missing: Amount::ZERO,
            hub_missing: Amount::new(70),
        };
        assert_eq!(actions[0], Action::Alarm(missed));
        assert!(matches!(actions[1..], [Action::Finalize { .. }]));
        assert_eq!(scene.head(10, DEADLINE_S + 1), []);
        let account = scene.account;
        let lost = TaskEnd::Lost { why: "the node is gone".into() };
        scene.step(DEADLINE_S + 2, Input::Ended { account, task: Task::Finalize, end: lost });
        assert!(matches!(scene.head(12, DEADLINE_S + 60)[..], [Action::Finalize { .. }]));
        let zero = Amount::ZERO;
        let finalized = scene.event(EventKind::Finalized { account, to_member: zero, to_hub: zero });
        assert_eq!(scene.ledger(Item::Seen(finalized.clone())), []);
        assert_eq!(scene.ledger(Item::Confirmed(finalized)), [Action::Forget { account }]);
        assert_eq!(scene.tower.accounts().count(), 0);
    }

    #[test]
    fn a_close_that_was_taken_back_ends_the_effort_and_a_cooperative_one_the_watch() {
        let mut scene = Scene::new();
        scene.offer(scene.hub_voucher(70));
        let closing = scene.closing();
        scene.ledger(Item::Seen(closing.clone()));
        assert_eq!(scene.ledger(Item::Reverted(closing)), []);
        assert_eq!(scene.head(9, DEADLINE_S), [], "no close, no payout");
        let (account, zero) = (scene.account, Amount::ZERO);
        let settled = scene.event(EventKind::Settled {
            account,
            seq: 1,
            member_withdrawn: zero,
            hub_withdrawn: zero,
            close: true,
            status: Status::Final,
        });
        scene.ledger(Item::Seen(settled.clone()));
        assert_eq!(scene.ledger(Item::Confirmed(settled)), [Action::Forget { account }]);
    }

    #[test]
    fn a_close_that_began_before_the_watch_is_found_in_the_books() {
        let mut scene = Scene::new();
        scene.offer(scene.hub_voucher(70));
        assert_eq!(scene.tower.wants_books().collect::<Vec<_>>(), [scene.account]);
        let books = LedgerBooks {
            status: Status::Closing,
            deadline_s: DEADLINE_S,
            hub_paid: Amount::new(60),
            ..LedgerBooks::default()
        };
        let account = scene.account;
        let actions = scene.step(START_S, Input::Books { account, books });
        assert_eq!(posted(&actions), [(0, 70, Urgency::Normal)]);
        assert_eq!(scene.tower.wants_books().count(), 0);
    }

    #[test]
    fn a_restart_at_any_point_posts_what_is_not_posted() {
        // (what was seen before the crash, whether the tower must post after it)
        for (seen, must_post) in [(0, true), (1, true), (2, false)] {
            let mut scene = Scene::new();
            scene.offer(scene.hub_voucher(70));
            let events = [scene.closing(), scene.proven(0, 70)];
            for event in events.iter().take(seen) {
                scene.ledger(Item::Seen(event.clone()));
            }
            scene.restart();
            if seen == 0 {
                scene.ledger(Item::Seen(events[0].clone()));
                scene.restart();
            }
            let actions = scene.head(9, START_S + 1);
            assert_eq!(!posted(&actions).is_empty(), must_post, "after {seen} events");
        }
    }

    #[test]
    fn a_refusal_is_told_once_for_each_reason_and_moot_ones_are_not() {
        let mut scene = Scene::new();
        scene.offer(scene.hub_voucher(70));
        let closing = scene.closing();
        scene.ledger(Item::Seen(closing));
        let refused = |class, why: &str| TaskEnd::Refused { class, why: why.to_owned() };
        let told = |actions: Vec<Action>| actions.iter().filter(|a| matches!(a, Action::Alarm(_))).count();
        for (class, why, times) in [
            (RefusalClass::Moot, "nothing raised", 0),
            (RefusalClass::Wrong, "bad signature", 1),
            (RefusalClass::Wrong, "bad signature", 0),
            (RefusalClass::Wrong, "no gas", 1),
        ] {
            assert_eq!(told(scene.ended(START_S, refused(class, why))), times, "{why}");
        }
    }

    #[test]
    fn evidence_that_would_sink_its_direction_is_refused() {
        let mut scene = Scene::new();
        let other = AccountId { asset: alloy_primitives::Address::ZERO, ..scene.account };
        let wrong_side = Claim::Hub(Proven::sign(&scene.domain, &scene.hub, scene.voucher(0, 0, 1)));
        let far_lane = scene.member_voucher(64, 1);
        let mut foreign = scene.voucher(1, 0, 1);
        foreign.asset = other.asset;
        let foreign = Claim::Hub(Proven::sign(&scene.domain, &scene.hub, foreign));
        for claim in [wrong_side, far_lane, foreign] {
            assert!(scene.tower.step(START_S, Input::Claim(Box::new(claim))).is_err());
        }
        assert!(scene.tower.evidence(&scene.account).is_some_and(Evidence::is_empty));
    }
}
