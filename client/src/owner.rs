//! The one task that owns the member's state and store; everybody else holds a [`Handle`].
//!
//! It works in rounds: take every input that waits, decide, write the records of all decisions in one go, and only then
//! let the effects leave: messages to the hub, answers to callers, events. Payments that come in while a write is under
//! way thus share the next frame, the next signature and the next write, without a timer.
//!
//! The task has a thread of its own, because it waits for the disk.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use alloy_primitives::{B256, Bytes};
use dispute::{Evidence, Order, RespondOrder, SettleOrder, Submitter};
use proto::account::{Status, Totals};
use proto::frame::{BYTES_MAX, NOTE_MAX, PAYEES_MAX, PAYMENTS_MAX};
use proto::member::{self, Ask, Decline, FRAME_OVERHEAD, Member, PAYMENT_OVERHEAD, PayError, Step};
use proto::typed::server_id;
use proto::wire::{self, v1};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, Payment, PaymentId, Proven};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use v1::client_message::Kind as ToHub;
use v1::hub_message::Kind as FromHub;

use crate::error::Error;
use crate::event::{Event, ReceivedPayment};
use crate::exit::{KitFile, Parts};
use crate::session::{Hub, message};
use crate::tower::Gate;
use crate::wallet::Wallet;

mod streams;

pub(crate) use streams::StreamOrder;
use streams::Streams;

pub(crate) type Inbox = mpsc::Sender<Input>;
type Out = mpsc::UnboundedSender<v1::ClientMessage>;

/// Inputs that wait for the owner; beyond it senders wait.
pub(crate) const INBOX_MAX: usize = 4096;
/// Inputs taken in one round.
const ROUND_MAX: usize = 1024;
/// Payments that wait to be signed; beyond it callers are told to come back.
const QUEUE_MAX: usize = 1_000_000;
/// Time between rounds without input: acknowledgements, payments that wait for a retry.
const TICK: Duration = Duration::from_millis(100);
/// Time between acknowledgements: a few a second at most.
const ACK_EVERY: Duration = Duration::from_millis(250);
/// Credits after which an acknowledgement does not wait.
const ACK_CREDITS: u64 = 1024;
/// Messages of credits that the hub may send ahead.
const CREDIT_WINDOW: u32 = 256;
/// How long a proposal may wait for what the hub saw first: a block, a confirmation, a credit under way.
const PROPOSAL_PATIENCE: Duration = Duration::from_secs(10);
/// Proposals that wait; more are declined at once.
const PROPOSALS_MAX: usize = 16;
/// Frames in which a payment is tried.
const ATTEMPTS_MAX: u32 = 8;
/// Pause before a refused payment is tried again, where the hub names none.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What the owner is told.
pub(crate) enum Input {
    Begin {
        terms: ChannelTerms,
        reply: Reply<()>,
    },
    Pin {
        payee: ChannelId,
        terms: ChannelTerms,
        reply: Reply<()>,
    },
    Pay(PayOrder),
    Abandon {
        job: u64,
    },
    Stream(StreamOrder),
    /// A meter has counted: what it asks for is looked at in every round.
    MeterMoved,
    EndStream {
        job: u64,
        reply: Option<Reply<()>>,
    },
    /// The hub's answer about ticks of an earlier session.
    TicksProof {
        asset: Asset,
        lane: u32,
        index: u32,
        answer: Box<v1::GetPaymentResponse>,
    },
    Settle {
        asset: Asset,
        ask: Ask,
        reply: Reply<Settling>,
    },
    Rebase {
        asset: Asset,
        reply: Reply<()>,
    },
    /// Reads without changing anything.
    Read(Look),
    Challenge {
        host: String,
        nonce: B256,
        expires: u64,
        reply: oneshot::Sender<v1::Hello>,
    },
    Welcome {
        welcome: v1::Welcome,
        out: Out,
        alive: oneshot::Sender<()>,
    },
    Message(Box<FromHub>),
    Disconnected {
        why: String,
    },
    Head {
        confirmed_time: u64,
    },
    Ledger {
        asset: Asset,
        totals: Totals,
    },
    AnotherCloses(AccountId),
    Alarm(String),
    /// The remote watchtower holds this, durably.
    TowerHolds {
        asset: Asset,
        evidence: member::Evidence,
    },
    TowerAway {
        why: String,
    },
    TowerBack,
    Stop {
        reply: Reply<()>,
    },
}

pub(crate) type Look = Box<dyn FnOnce(&Wallet, &Reading) + Send>;
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;
pub(crate) type Results = Vec<Result<Paid, Error>>;

/// A payment that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paid {
    /// Its id.
    pub id: PaymentId,
    /// What the hub got.
    pub fee: Amount,
    /// The number of the credit in the payee's account; 0 for the hub itself.
    pub credit: u64,
}

/// Payments to make.
pub(crate) struct PayOrder {
    /// Its number, by which its caller can abandon it.
    pub job: u64,
    pub reply: oneshot::Sender<Results>,
    pub asset: Asset,
    pub lane: u32,
    /// Most payments in a frame.
    pub frame_max: usize,
    pub payments: Vec<Payment>,
}

/// A settlement that both signed.
pub(crate) struct Settling {
    pub seq: u64,
    /// What the hub said why it did not post it, and what the caller posts then.
    pub unposted: Option<(String, Box<SettleOrder>)>,
}

/// What may be read besides the wallet.
pub(crate) struct Reading {
    pub live: bool,
    pub token: Bytes,
    /// The hub's view of the ledger, by asset.
    pub hub_view: BTreeMap<Asset, Totals>,
    /// What the remote watchtower holds, by its answers.
    pub tower_holds: BTreeMap<Asset, member::Evidence>,
}

/// What the guard must know to answer a close.
#[derive(Clone, Default)]
pub(crate) struct Guarded {
    pub terms: Option<ChannelTerms>,
    pub evidence: BTreeMap<Asset, member::Evidence>,
}

pub(crate) struct Config {
    pub name: String,
    pub url: String,
    /// Frames of one lane that wait for an answer.
    pub window: usize,
    pub submitter: Submitter,
    /// Where transactions are sent from, and questions that wait for an answer.
    pub runtime: tokio::runtime::Handle,
    pub hub: Hub,
    /// Where their answers go; weak, because the owner ends with the last of those who ask it.
    pub inbox: mpsc::WeakSender<Input>,
    /// The member's way out, kept beside the store.
    pub kit: Option<KitFile>,
    /// What holds acknowledgements back, where there is a remote watchtower.
    pub gate: Option<Gate>,
}

pub(crate) struct Owner {
    wallet: Wallet,
    config: Config,
    reading: Reading,
    link: Option<Link>,
    queues: BTreeMap<(Asset, u32), VecDeque<Queued>>,
    queued: usize,
    jobs: HashMap<u64, Job>,
    in_flight: HashMap<PaymentId, Queued>,
    streams: Streams,
    asks: BTreeMap<u64, Asked>,
    next_ask: u64,
    /// Proposals that wait for what the hub saw first.
    proposals: Vec<(v1::SettlementProposal, Instant)>,
    effects: Vec<Effect>,
    /// Questions about the state, answered when what this round decided is written.
    reads: Vec<Look>,
    events: broadcast::Sender<Event>,
    has_channel: watch::Sender<bool>,
    guarded: watch::Sender<Guarded>,
    unbacked: BTreeMap<Asset, Amount>,
    evidence_changed: bool,
    /// What ends the client after this round: it may not act on what it cannot write down.
    failed: Option<Error>,
    gaps: HashSet<Asset>,
    /// Payees whose acknowledgements this session asked for, because they may have come while no session was live.
    catching_up: HashSet<(Asset, ChannelId)>,
    acked_at: Instant,
    window_owed: u32,
}

struct Link {
    out: Out,
    /// Dropping it ends the session.
    _alive: oneshot::Sender<()>,
}

#[derive(Clone)]
struct Queued {
    payment: Payment,
    lane: u32,
    job: u64,
    index: usize,
    frame_max: usize,
    attempts: u32,
    not_before: Option<Instant>,
}

struct Job {
    results: Vec<Option<Result<Paid, Error>>>,
    left: usize,
    reply: oneshot::Sender<Results>,
}

struct Asked {
    asset: Asset,
    ask: Ask,
    seq: Option<u64>,
    reply: Reply<Settling>,
}

enum Effect {
    Send(ToHub),
    Tell(Event),
    Answer(Box<dyn FnOnce() + Send>),
}

impl Owner {
    pub(crate) fn new(
        wallet: Wallet,
        config: Config,
        events: broadcast::Sender<Event>,
        has_channel: watch::Sender<bool>,
        guarded: watch::Sender<Guarded>,
    ) -> Self {
        let mut owner = Owner {
            wallet,
            config,
            reading: Reading {
                live: false,
                token: Bytes::new(),
                hub_view: BTreeMap::new(),
                tower_holds: BTreeMap::new(),
            },
            link: None,
            queues: BTreeMap::new(),
            queued: 0,
            jobs: HashMap::new(),
            failed: None,
            in_flight: HashMap::new(),
            streams: Streams::default(),
            asks: BTreeMap::new(),
            next_ask: 1,
            proposals: Vec::new(),
            effects: Vec::new(),
            reads: Vec::new(),
            events,
            has_channel,
            guarded,
            unbacked: BTreeMap::new(),
            evidence_changed: true,
            gaps: HashSet::new(),
            catching_up: HashSet::new(),
            acked_at: Instant::now(),
            window_owed: 0,
        };
        owner.has_channel.send_replace(owner.wallet.member().is_some());
        owner.publish_evidence();
        owner
    }

    /// Runs until it is told to stop, everybody is gone, or the store fails.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Input>) {
        let mut inputs = Vec::with_capacity(ROUND_MAX);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                count = inbox.recv_many(&mut inputs, ROUND_MAX) => if count == 0 { break },
                _ = tick.tick() => {}
            }
            let mut stop = None;
            for input in inputs.drain(..) {
                match input {
                    Input::Stop { reply } => stop = Some(reply),
                    other => self.on(other),
                }
            }
            if let Err(error) = self.finish_round() {
                tracing::error!(%error, "the client stops: what it decided is not written down");
                return;
            }
            if let Some(reply) = stop {
                self.link = None;
                self.end_kit();
                // Whoever asked may not wait for the answer.
                let _ = reply.send(self.wallet.close());
                return;
            }
        }
        self.end_kit();
        if let Err(error) = self.wallet.close() {
            tracing::error!(%error, "the store could not be closed cleanly");
        }
    }

    fn on(&mut self, input: Input) {
        match input {
            Input::Begin { terms, reply } => {
                let result = self.wallet.begin(terms);
                self.evidence_changed = true;
                self.answer(reply, result);
            }
            Input::Pin { payee, terms, reply } => {
                let result = self.with_member(|m| m.pin(payee, terms).map_err(Error::from));
                let result = result.map(|step| self.take(step));
                self.answer(reply, result);
            }
            Input::Pay(order) => self.on_pay(order),
            Input::Abandon { job } => self.on_abandon(job),
            Input::Stream(order) => self.on_stream(order),
            Input::MeterMoved => {}
            Input::EndStream { job, reply } => self.on_end_stream(job, reply),
            Input::TicksProof { asset, lane, index, answer } => self.on_ticks_proof(asset, lane, index, *answer),
            Input::Settle { asset, ask, reply } => self.on_settle(asset, ask, reply),
            Input::Rebase { asset, reply } => {
                let result = self.with_member(|m| Ok(m.rebase(asset))).map(|step| self.take(step));
                self.answer(reply, result);
            }
            Input::Read(read) => self.reads.push(read),
            Input::Challenge { host, nonce, expires, reply } => self.on_challenge(&host, nonce, expires, reply),
            Input::Welcome { welcome, out, alive } => self.on_welcome(&welcome, out, alive),
            Input::Message(message) => self.on_message(*message),
            Input::Disconnected { why } => self.on_disconnected(why),
            Input::Head { confirmed_time } => {
                if let Some(member) = self.wallet.member_mut() {
                    member.head(confirmed_time);
                }
                if let Err(error) = self.wallet.settle_doubt() {
                    tracing::error!(%error, "the counter of signed settlements cannot be written");
                }
            }
            Input::Ledger { asset, totals } => self.on_ledger(asset, totals),
            Input::AnotherCloses(account) => self.on_another_closes(account),
            Input::Alarm(message) => self.effects.push(Effect::Tell(Event::Alarm { message })),
            Input::TowerHolds { asset, evidence } => {
                if let Some(ack) = self.config.gate.as_mut().and_then(|gate| gate.holds(asset, &evidence)) {
                    self.send(ToHub::Ack(wire::ack_message(&ack)));
                }
                self.reading.tower_holds.insert(asset, evidence);
            }
            Input::TowerAway { why } => self.effects.push(Effect::Tell(Event::TowerAway { why })),
            Input::TowerBack => self.effects.push(Effect::Tell(Event::TowerBack)),
            Input::Stop { .. } => {}
        }
    }

    /// Signs what can be signed, writes everything down, then lets the effects leave.
    fn finish_round(&mut self) -> Result<(), Error> {
        for (proposal, until) in std::mem::take(&mut self.proposals) {
            self.on_proposal(&proposal, until);
        }
        self.pump();
        self.pump_streams();
        self.note_unbacked();
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        if self.wallet.is_dirty() {
            self.wallet.commit()?;
        }
        // What is shown is durable: nobody may count on what this disk could still lose.
        for read in std::mem::take(&mut self.reads) {
            read(&self.wallet, &self.reading);
        }
        let due = self.acked_at.elapsed() >= ACK_EVERY;
        if due {
            self.acked_at = Instant::now();
        }
        // What the tower posts at a close is handed to it before it is acknowledged.
        if due && std::mem::take(&mut self.evidence_changed) {
            self.publish_evidence();
        }
        self.acknowledge(due);
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send(kind) => {
                    // A session that just ended: whatever was not answered is sent again in the next one.
                    if let Some(link) = &self.link {
                        drop(link.out.send(message(kind)));
                    }
                }
                // Nobody may be listening.
                Effect::Tell(event) => drop(self.events.send(event)),
                Effect::Answer(answer) => answer(),
            }
        }
        if self.wallet.member().is_some() && !*self.has_channel.borrow() {
            self.has_channel.send_replace(true);
        }
        Ok(())
    }

    fn with_member<T>(&mut self, run: impl FnOnce(&mut Member) -> Result<T, Error>) -> Result<T, Error> {
        self.wallet.member_mut().ok_or(Error::NoChannel).and_then(run)
    }

    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, Error>) {
        // Whoever asked may have stopped waiting.
        self.effects.push(Effect::Answer(Box::new(move || drop(reply.send(result)))));
    }

    fn send(&mut self, kind: ToHub) {
        self.effects.push(Effect::Send(kind));
    }

    /// Takes a step: its records go to the next write, its events to whom they concern.
    fn take(&mut self, step: Step) {
        self.evidence_changed |= step.records.iter().any(|r| {
            use member::Record as R;
            match r {
                R::Accepted { .. } | R::HubVoucher(_) | R::Adopted(_) | R::Ledger { .. } | R::Countersigned { .. } => {
                    true
                }
                R::Opened { .. } | R::Folded { .. } => true,
                R::Pinned(_) | R::Signed(_) | R::Refused { .. } | R::Credited { .. } | R::Delivered { .. } => false,
                R::Opening { .. } | R::NotOpened { .. } | R::Revealed { .. } | R::TicksRefused { .. } => false,
                R::Folding(_) | R::Agreed(_) => false,
            }
        });
        for event in self.wallet.take(step) {
            self.on_member_event(event);
        }
    }

    fn misbehaved(&mut self, fault: member::Misbehaviour) {
        tracing::warn!(%fault, "the hub misbehaved");
        self.effects.push(Effect::Tell(Event::HubMisbehaved(fault)));
    }

    /// Takes what a message of the hub means; one that no honest hub sends ends the session.
    fn take_from_hub(&mut self, result: Option<Result<Step, member::Misbehaviour>>) {
        match result {
            Some(Ok(step)) => self.take(step),
            Some(Err(fault)) => {
                self.misbehaved(fault);
                self.hang_up();
            }
            None => {}
        }
    }

    fn hang_up(&mut self) {
        self.link = None;
        if let Some(gate) = &mut self.config.gate {
            gate.clear();
        }
        self.reading.live = false;
    }
}

// ---- paying --------------------------------------------------------------------------------------------------------

impl Owner {
    fn on_pay(&mut self, order: PayOrder) {
        let (job, lane, count) = (order.job, order.lane, order.payments.len());
        let results = std::iter::repeat_with(|| None).take(count).collect();
        self.jobs.insert(job, Job { results, left: count, reply: order.reply });
        let room = self.queued.saturating_add(count) <= QUEUE_MAX;
        let queue = self.queues.entry((order.asset, lane)).or_default();
        let frame_max = order.frame_max.clamp(1, PAYMENTS_MAX);
        let mut over = Vec::new();
        for (index, payment) in order.payments.into_iter().enumerate() {
            let queued = Queued { payment, lane, job, index, frame_max, attempts: 0, not_before: None };
            if room {
                self.queued += 1;
                queue.push_back(queued);
            } else {
                over.push(queued);
            }
        }
        for queued in over {
            self.finish(queued, Err(Error::Pay(PayError::Window)));
        }
        self.end_job_if_empty(job);
    }

    /// The caller waits no longer: what is not signed is dropped, what is signed stays unknown.
    fn on_abandon(&mut self, job: u64) {
        let mut dropped = Vec::new();
        for queue in self.queues.values_mut() {
            let (gone, kept): (VecDeque<_>, VecDeque<_>) = queue.drain(..).partition(|q| q.job == job);
            *queue = kept;
            dropped.extend(gone);
        }
        self.queued -= dropped.len();
        for queued in dropped {
            let id = queued.payment.id;
            self.finish(queued, Err(Error::TimedOut { id }));
        }
        let waiting: Vec<PaymentId> = self.in_flight.iter().filter(|(_, q)| q.job == job).map(|(id, _)| *id).collect();
        for id in waiting {
            if let Some(queued) = self.in_flight.remove(&id) {
                self.finish(queued, Err(Error::Unanswered { id }));
            }
        }
    }

    /// Signs frames from the queues as far as windows and limits allow.
    fn pump(&mut self) {
        if self.link.is_none() || self.queued == 0 {
            return;
        }
        let now = Instant::now();
        let lanes: Vec<(Asset, u32)> =
            self.queues.iter().filter(|(_, q)| !q.is_empty()).map(|(lane, _)| *lane).collect();
        for (asset, lane) in lanes {
            while self.pump_one(asset, lane, now) {}
        }
    }

    /// Signs one frame; `false` when the lane has to wait.
    fn pump_one(&mut self, asset: Asset, lane: u32, now: Instant) -> bool {
        let Some(member) = self.wallet.member_mut() else { return false };
        if member.unanswered_on(asset, lane) >= self.config.window {
            return false;
        }
        let Some(queue) = self.queues.get_mut(&(asset, lane)) else { return false };
        let batch = cut_frame(queue, now);
        if batch.is_empty() {
            return false;
        }
        let payments: Vec<Payment> = batch.iter().map(|q| q.payment.clone()).collect();
        match member.sign_frame(asset, lane, payments) {
            Ok((tag, frame)) => {
                self.queued -= batch.len();
                self.in_flight.extend(batch.into_iter().map(|q| (q.payment.id, q)));
                let encoded = wire::frame_message(tag, &frame);
                self.take(Step { records: vec![member::Record::Signed(frame)], events: Vec::new() });
                self.send(ToHub::Frame(encoded));
                true
            }
            Err(error) => {
                let waits = matches!(error, PayError::LaneBusy { .. } | PayError::Window)
                    || (matches!(
                        error,
                        PayError::Exposure { .. } | PayError::Undelivered { .. } | PayError::Insufficient { .. }
                    ) && member.unanswered(asset) > 0);
                if waits {
                    batch.into_iter().rev().for_each(|q| queue.push_front(q));
                    return false;
                }
                if batch.len() > 1 {
                    // One payment must not take others down with it: each is tried alone.
                    batch.into_iter().rev().for_each(|q| queue.push_front(Queued { frame_max: 1, ..q }));
                    return true;
                }
                self.queued -= batch.len();
                for queued in batch {
                    self.finish(queued, Err(Error::Pay(error.clone())));
                }
                true
            }
        }
    }

    fn on_member_event(&mut self, event: member::Event) {
        let told = match event {
            member::Event::Paid { id, asset, payee, amount, fee, credit } => {
                match self.in_flight.remove(&id) {
                    Some(queued) => self.finish(queued, Ok(Paid { id, fee, credit })),
                    None => self.on_ticks_paid(id, amount),
                }
                Event::Paid { id, asset, payee, amount, fee }
            }
            member::Event::NotPaid { payments, asset, reason, message, retryable, retry_after_ms } => {
                let pause = Duration::from_millis(u64::from(retry_after_ms)).max(RETRY_PAUSE);
                self.on_refused(payments, asset, &Refusal { reason, message, retryable, pause });
                return;
            }
            member::Event::Opened { stream, .. } => return self.on_stream_opened(stream),
            member::Event::NotOpened { stream, reason, message, retryable, retry_after_ms, .. } => {
                let refusal = Refusal { reason, message, retryable, pause: streams::pause(retry_after_ms) };
                return self.on_stream_refused(stream, stream.payment(0), refusal);
            }
            member::Event::TicksRefused { stream, index, reason, message, retryable, retry_after_ms, .. } => {
                let refusal = Refusal { reason, message, retryable, pause: streams::pause(retry_after_ms) };
                return self.on_stream_refused(stream, stream.payment(index), refusal);
            }
            member::Event::TicksUnproven { asset, lane, index } => return self.ask_ticks(asset, lane, index),
            member::Event::Received { asset, credit } => {
                let payments = credit.payments.into_iter();
                let payments = payments.map(|p| ReceivedPayment { id: p.id, amount: p.amount, note: p.note });
                Event::Received {
                    asset,
                    payer: credit.payer,
                    amount: credit.amount,
                    credit: credit.number,
                    payments: payments.collect(),
                }
            }
            member::Event::Delivered { asset, payee, ids } => Event::Delivered { asset, payee, ids },
            member::Event::StoreWasOld { asset, lane } => Event::StoreWasOld { asset, lane },
            member::Event::Rebased { asset, credits } => Event::Rebased { asset, credits },
            member::Event::Misbehaved(fault) => return self.misbehaved(fault),
        };
        self.effects.push(Effect::Tell(told));
    }

    /// A refused frame: payments that others may have taken down with them, and those that a retry can help, go into
    /// new frames; the rest is not paid.
    fn on_refused(&mut self, payments: Vec<Payment>, asset: Asset, refusal: &Refusal) {
        let many = payments.len() > 1;
        let broken = refusal.reason == "LANE_BROKEN";
        let mut again: BTreeMap<u32, Vec<Queued>> = BTreeMap::new();
        for payment in payments {
            let Some(queued) = self.in_flight.remove(&payment.id) else {
                let (id, reason) = (payment.id, refusal.reason.clone());
                self.effects.push(Effect::Tell(Event::NotPaid { id, reason }));
                continue;
            };
            let attempts = queued.attempts + 1;
            if attempts < ATTEMPTS_MAX && (broken || many || refusal.retryable) {
                let not_before = (!broken && !many).then(|| Instant::now() + refusal.pause);
                let frame_max = if many && !broken { 1 } else { queued.frame_max };
                again.entry(queued.lane).or_default().push(Queued { attempts, not_before, frame_max, ..queued });
                continue;
            }
            let id = queued.payment.id;
            let (reason, message, retryable) = (refusal.reason.clone(), refusal.message.clone(), refusal.retryable);
            self.finish(queued, Err(Error::Refused { id, reason, message, retryable }));
        }
        for (lane, payments) in again {
            self.queued += payments.len();
            let queue = self.queues.entry((asset, lane)).or_default();
            payments.into_iter().rev().for_each(|q| queue.push_front(q));
        }
    }

    fn finish(&mut self, queued: Queued, result: Result<Paid, Error>) {
        let Some(job) = self.jobs.get_mut(&queued.job) else { return };
        let slot = &mut job.results[queued.index];
        if slot.is_none() {
            *slot = Some(result);
            job.left -= 1;
        }
        self.end_job_if_empty(queued.job);
    }

    fn end_job_if_empty(&mut self, job: u64) {
        if self.jobs.get(&job).is_none_or(|j| j.left > 0) {
            return;
        }
        let Some(done) = self.jobs.remove(&job) else { return };
        let results = done.results.into_iter().map(|r| r.expect("nothing is left of the job")).collect();
        // Whoever asked may have stopped waiting.
        self.effects.push(Effect::Answer(Box::new(move || drop(done.reply.send(results)))));
    }
}

/// Whether a proposal is declined for what this member may only not have seen yet.
fn may_pass(decline: &Decline) -> bool {
    match decline {
        Decline::BeyondDeposits | Decline::Unbacked | Decline::TooLong { .. } | Decline::NotAskedFor => true,
        Decline::NoAccount
        | Decline::Final
        | Decline::StoreMayBeOld
        | Decline::Frozen
        | Decline::Seq { .. }
        | Decline::Falls => false,
    }
}

struct Refusal {
    reason: String,
    message: String,
    retryable: bool,
    pause: Duration,
}

/// Takes the payments of the next frame from a queue: at most the smallest `frame_max` among them, 64 KiB and 64
/// payees, and none before its time.
fn cut_frame(queue: &mut VecDeque<Queued>, now: Instant) -> Vec<Queued> {
    let (mut count, mut bytes, mut most) = (0, FRAME_OVERHEAD, PAYMENTS_MAX);
    let mut payees: Vec<ChannelId> = Vec::new();
    for queued in queue.iter() {
        let early = queued.not_before.is_some_and(|time| time > now);
        bytes += PAYMENT_OVERHEAD + queued.payment.note.len().min(NOTE_MAX);
        most = most.min(queued.frame_max);
        let known = payees.contains(&queued.payment.payee);
        if early || count >= most || bytes > BYTES_MAX || (!known && payees.len() >= PAYEES_MAX) {
            break;
        }
        if !known {
            payees.push(queued.payment.payee);
        }
        count += 1;
    }
    queue.drain(..count).collect()
}

// ---- the session ---------------------------------------------------------------------------------------------------

impl Owner {
    fn on_challenge(&mut self, host: &str, nonce: B256, expires: u64, reply: oneshot::Sender<v1::Hello>) {
        let name = self.config.name.clone();
        let hello = self.with_member(|member| {
            let server = server_id(member.terms().hubKey, host);
            let login = member.login(server, nonce, expires);
            Ok(member.hello(&login, &name))
        });
        if let Ok(hello) = hello {
            // The session may have ended meanwhile.
            let _ = reply.send(hello);
        }
    }

    fn on_welcome(&mut self, welcome: &v1::Welcome, out: Out, alive: oneshot::Sender<()>) {
        self.link = Some(Link { out, _alive: alive });
        if let Some(gate) = &mut self.config.gate {
            gate.clear();
        }
        self.reading.live = true;
        self.reading.token = Bytes(welcome.token.clone());
        for view in &welcome.accounts {
            self.note_hub_view(&view.asset, view.ledger.as_ref());
        }
        let step = self.wallet.member_mut().map(|m| m.welcome(welcome));
        self.take_from_hub(step);
        if self.link.is_none() {
            return;
        }
        self.effects.push(Effect::Tell(Event::Connected));
        self.send(ToHub::Window(v1::CreditWindow { more: CREDIT_WINDOW }));
        self.window_owed = 0;
        let again = self.wallet.member_mut().map(Member::resend).unwrap_or_default();
        self.send_again(again);
        let undelivered = self.wallet.member().map(Member::undelivered).unwrap_or_default();
        self.catching_up = undelivered.iter().map(|(asset, payee, _)| (*asset, *payee)).collect();
        for (asset, payee, credit) in undelivered {
            self.ask_delivery(asset, payee, credit);
        }
    }

    fn on_disconnected(&mut self, why: String) {
        self.hang_up();
        self.proposals.clear();
        self.effects.push(Effect::Tell(Event::Disconnected { why: why.clone() }));
        for (_, asked) in std::mem::take(&mut self.asks) {
            let why = format!("the session ended before the settlement was agreed: {why}");
            self.answer(asked.reply, Err(Error::Unreachable { url: self.config.url.clone(), why }));
        }
    }

    fn on_message(&mut self, message: FromHub) {
        if self.link.is_none() {
            // The rest of a session that was hung up.
            return;
        }
        match message {
            FromHub::Accepted(m) => {
                let step = self.wallet.member_mut().map(|member| member.accepted(&m));
                self.take_from_hub(step);
            }
            FromHub::Refused(m) => {
                let step = self.wallet.member_mut().map(|member| member.refused(&m));
                self.take_from_hub(step);
            }
            FromHub::StreamOpened(m) => {
                let step = self.wallet.member_mut().map(|member| member.opened(&m));
                self.take_from_hub(step);
            }
            FromHub::TickRefused(m) => {
                let step = self.wallet.member_mut().map(|member| member.ticks_refused(&m));
                self.take_from_hub(step);
            }
            FromHub::Credited(m) => self.on_credited(m),
            FromHub::Delivered(m) => self.on_delivered(&m),
            FromHub::Proposal(m) => self.on_proposal(&m, Instant::now() + PROPOSAL_PATIENCE),
            FromHub::SettlementRefused(m) => {
                if let Some(asked) = self.asks.remove(&m.tag) {
                    let refused = Error::Hub { reason: m.reason, message: m.message, retryable: m.retryable };
                    self.answer(asked.reply, Err(refused));
                }
            }
            FromHub::Posted(m) => self.on_posted(&m),
            FromHub::Account(m) => self.note_hub_view(&m.asset, m.ledger.as_ref()),
            FromHub::Farewell(m) => {
                tracing::info!(reason = m.reason, message = m.message, "the hub says farewell");
                self.hang_up();
            }
            FromHub::Challenge(_) | FromHub::Welcome(_) => self.hang_up(),
        }
    }

    fn on_delivered(&mut self, message: &v1::Delivered) {
        match self.wallet.member_mut().map(|member| member.delivered(message)) {
            // What a payee acknowledged is no ground to end the session with the hub.
            Some(Err(fault)) => return self.misbehaved(fault),
            other => self.take_from_hub(other),
        }
        let Ok(payee) = wire::read_channel("delivered.payee", &message.payee) else { return };
        let asset = message.ack.as_ref().and_then(|ack| wire::read_address("ack.asset", &ack.asset).ok());
        let Some(asset) = asset.filter(|asset| message.last_page && self.catching_up.contains(&(*asset, payee))) else {
            return;
        };
        // One answer goes up to one acknowledgement; there may have been more while this member was away.
        match self.wallet.member().and_then(|member| member.undelivered_by(asset, payee)) {
            Some(credit) => self.ask_delivery(asset, payee, credit),
            None => drop(self.catching_up.remove(&(asset, payee))),
        }
    }

    fn ask_delivery(&mut self, asset: Asset, payee: ChannelId, credit: u64) {
        let (asset, payee) = (wire::bytes_of(asset), wire::bytes_of(payee.0));
        self.send(ToHub::DeliveryRequest(v1::DeliveryRequest { asset, payee, credit }));
    }

    fn on_credited(&mut self, message: v1::Credited) {
        self.window_owed += 1;
        if self.window_owed >= CREDIT_WINDOW / 4 {
            let more = std::mem::take(&mut self.window_owed);
            self.send(ToHub::Window(v1::CreditWindow { more }));
        }
        let asset = wire::read_address("credited.asset", &message.asset).unwrap_or_default();
        let step = self.wallet.member_mut().map(|member| member.credited(message));
        self.take_from_hub(step);
        let Some(member) = self.wallet.member_mut() else { return };
        if !member.has_gap(asset) {
            return;
        }
        if !member.trusts_itself() {
            // The store is known to have lost data: what the hub signed is the new base.
            let step = member.rebase(asset);
            self.take(step);
        } else if self.gaps.insert(asset) {
            // A new session asks for the missing credits, once; after that it is for the user to decide.
            self.hang_up();
        }
    }

    fn note_hub_view(&mut self, asset: &[u8], ledger: Option<&v1::LedgerTotals>) {
        let asset = wire::read_address("account.asset", asset);
        if let (Ok(asset), Some(Ok(totals))) = (asset, ledger.map(wire::read_totals)) {
            self.reading.hub_view.insert(asset, totals);
        }
    }

    /// Says what is held and backed: at once where much of it waits, else a few times a second. With a remote watchtower
    /// it leaves when the tower holds it too.
    fn acknowledge(&mut self, due: bool) {
        if self.link.is_none() {
            return;
        }
        let Some(member) = self.wallet.member_mut() else { return };
        let (mut acks, mut waits) = (Vec::new(), false);
        for asset in member.assets() {
            let behind = self.config.gate.as_ref().is_some_and(|gate| gate.waits(asset));
            if !behind && (due || member.unacked(asset) >= ACK_CREDITS) {
                let signed = member.ack(asset);
                let admitted = match &mut self.config.gate {
                    Some(gate) => signed.and_then(|ack| {
                        let admitted = gate.admit(ack);
                        waits |= admitted.is_none();
                        admitted
                    }),
                    None => signed,
                };
                acks.extend(admitted);
            }
        }
        if waits && std::mem::take(&mut self.evidence_changed) {
            self.publish_evidence();
        }
        for ack in acks {
            self.send(ToHub::Ack(wire::ack_message(&ack)));
        }
    }
}

// ---- settling and the ledger ---------------------------------------------------------------------------------------

impl Owner {
    fn on_settle(&mut self, asset: Asset, ask: Ask, reply: Reply<Settling>) {
        if self.link.is_none() {
            let why = "there is no session at the moment".to_owned();
            return self.answer(reply, Err(Error::Unreachable { url: self.config.url.clone(), why }));
        }
        let tag = self.next_ask;
        self.next_ask += 1;
        let (withdraw, close) = match ask {
            Ask::Withdraw(amount) => (amount, false),
            Ask::Close => (Amount::ZERO, true),
        };
        self.asks.insert(tag, Asked { asset, ask, seq: None, reply });
        let withdraw = wire::amount_bytes(withdraw);
        let request = v1::SettlementRequest { tag, asset: wire::bytes_of(asset), withdraw, close };
        self.send(ToHub::SettlementRequest(request));
    }

    /// Signs a proposal or declines it; one that this member's view of ledger and credits does not reach yet is looked
    /// at again until then.
    fn on_proposal(&mut self, message: &v1::SettlementProposal, until: Instant) {
        let Some(member) = self.wallet.member_mut() else { return };
        let proposal = match wire::read_proposal(member.channel(), message) {
            Ok(proposal) => proposal,
            Err(error) => return self.misbehaved(error.into()),
        };
        let (asset, seq) = (proposal.asset, proposal.seq);
        // A proposal that was signed before is answered with the same signature.
        let known = member.agreed(asset).iter().find(|a| *a.signed.body() == proposal).map(|a| a.signed.clone());
        if let Some(signed) = known {
            return self.send(ToHub::SettlementAnswer(wire::answer_message(asset, seq, Some(&signed))));
        }
        let ask = self.asks.get(&message.tag).filter(|asked| asked.asset == asset).map(|asked| asked.ask);
        match member.agree(proposal, ask) {
            Ok((step, signed)) => {
                if let Err(error) = self.wallet.raise_counter() {
                    // Without its second record the signature must not leave, and the store now has one too many.
                    self.failed = Some(error);
                    return;
                }
                self.take(step);
                if let Some(asked) = self.asks.get_mut(&message.tag) {
                    asked.seq = Some(seq);
                }
                self.send(ToHub::SettlementAnswer(wire::answer_message(asset, seq, Some(&signed))));
            }
            Err(decline) if may_pass(&decline) && Instant::now() < until && self.proposals.len() < PROPOSALS_MAX => {
                self.proposals.push((message.clone(), until));
            }
            Err(decline) => {
                tracing::warn!(%decline, seq, "a proposed settlement is not signed");
                self.send(ToHub::SettlementAnswer(wire::answer_message(asset, seq, None)));
                if let Some(asked) = self.asks.remove(&message.tag) {
                    self.answer(asked.reply, Err(Error::Declined(decline)));
                }
            }
        }
    }

    fn on_posted(&mut self, message: &v1::SettlementPosted) {
        let step = self.wallet.member_mut().map(|member| member.countersigned(message));
        self.take_from_hub(step);
        let Ok(asset) = wire::read_address("posted.asset", &message.asset) else { return };
        let asked = self.asks.iter().find(|(_, a)| a.asset == asset && a.seq == Some(message.seq)).map(|(tag, _)| *tag);
        let Some(asked) = asked.and_then(|tag| self.asks.remove(&tag)) else { return };
        // Without an order it is on the ledger already, and its halves were forgotten.
        let order = self.settle_order(asset, message.seq).filter(|_| !message.error.is_empty());
        let unposted = order.map(|order| (message.error.clone(), Box::new(order)));
        self.answer(asked.reply, Ok(Settling { seq: message.seq, unposted }));
    }

    fn settle_order(&self, asset: Asset, seq: u64) -> Option<SettleOrder> {
        let member = self.wallet.member()?;
        let agreed = member.agreed(asset).iter().find(|a| a.signed.body().seq == seq)?;
        let domain = self.config.submitter.chain().domain();
        let hub = Proven::verify(domain, member.hub_key(), agreed.signed.body().clone(), agreed.hub.clone()?).ok()?;
        SettleOrder::new(member.terms().clone(), agreed.signed.clone(), hub).ok()
    }

    fn on_ledger(&mut self, asset: Asset, totals: Totals) {
        let Some(member) = self.wallet.member_mut() else { return };
        let before = member.balance(asset).map(|b| b.ledger);
        if before.is_none() && totals == Totals::default() {
            return;
        }
        let before = before.unwrap_or_default();
        let step = member.ledger(asset, totals);
        self.take(step);
        // What is on the ledger needs no answer of the hub any more.
        let posted: Vec<u64> = self
            .asks
            .iter()
            .filter(|(_, a)| a.asset == asset && a.seq.is_some_and(|seq| seq <= totals.seq))
            .map(|(tag, _)| *tag)
            .collect();
        for asked in posted.iter().filter_map(|tag| self.asks.remove(tag)).collect::<Vec<_>>() {
            let seq = asked.seq.expect("it was just compared");
            self.answer(asked.reply, Ok(Settling { seq, unposted: None }));
        }
        let mut tell = |event| self.effects.push(Effect::Tell(event));
        if (totals.member_deposit, totals.hub_deposit) != (before.member_deposit, before.hub_deposit) {
            let (member_deposit, hub_deposit) = (totals.member_deposit, totals.hub_deposit);
            tell(Event::Deposited { asset, member_deposit, hub_deposit });
        }
        if totals.seq > before.seq {
            let (member_withdrawn, hub_withdrawn) = (totals.member_withdrawn, totals.hub_withdrawn);
            tell(Event::Settled { asset, member_withdrawn, hub_withdrawn });
        }
        if totals.status != before.status {
            match totals.status {
                Status::Closing => tell(Event::Closing { asset, deadline_s: totals.deadline }),
                Status::Final => tell(Event::Final { asset }),
                Status::Open => {}
            }
        }
        self.evidence_changed = true;
    }

    /// A payee's account closes while it owes this member the delivery of payments: the receipt is posted, so that the
    /// payee gets the money even if the hub withheld the credit.
    fn on_another_closes(&mut self, account: AccountId) {
        let held = self.wallet.member().and_then(|m| m.receipt_for(account.asset, account.channel));
        let Some((terms, receipt)) = held else { return };
        let mut evidence = Evidence::new(account);
        if evidence.add(dispute::Claim::Receipt(receipt.clone())).is_err() {
            return;
        }
        let call =
            self.config.submitter.chain().adjudicator().respond(&RespondOrder { terms: terms.clone(), evidence });
        let (submitter, runtime) = (self.config.submitter.clone(), self.config.runtime.clone());
        self.effects.push(Effect::Answer(Box::new(move || {
            runtime.spawn(async move {
                if let Err(why) = submitter.submit(Order::new(call)).await.mined() {
                    // The payee's own tower may have been first: then there is nothing left to prove.
                    tracing::info!(%account, why, "a receipt for a closing payee was not posted");
                }
            });
        })));
    }

    fn note_unbacked(&mut self) {
        let Some(member) = self.wallet.member() else { return };
        for asset in member.assets() {
            let amount = member.balance(asset).map(|b| b.unbacked).unwrap_or_default();
            let known = self.unbacked.entry(asset).or_default();
            if *known != amount {
                *known = amount;
                self.effects.push(Effect::Tell(Event::Unbacked { asset, amount }));
            }
        }
    }

    fn publish_evidence(&mut self) {
        let Some(member) = self.wallet.member() else { return };
        let evidence = member.assets().into_iter().filter_map(|asset| Some((asset, member.evidence(asset)?))).collect();
        self.guarded.send_replace(Guarded { terms: Some(member.terms().clone()), evidence });
        if let Some(kit) = &self.config.kit {
            kit.offer(Parts::of(self.config.submitter.chain().domain(), member));
        }
    }

    /// Leaves the kit as the store is left.
    fn end_kit(&mut self) {
        if std::mem::take(&mut self.evidence_changed) {
            self.publish_evidence();
        }
        self.config.kit = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(payments: &[(u8, usize)]) -> VecDeque<Queued> {
        let queued = |(index, (payee, frame_max)): (usize, &(u8, usize))| Queued {
            payment: Payment {
                id: PaymentId([0; 16].into()),
                payee: ChannelId(B256::repeat_byte(*payee)),
                amount: Amount::new(1),
                fee: Amount::ZERO,
                note: Bytes::new(),
            },
            lane: 0,
            job: 1,
            index,
            frame_max: *frame_max,
            attempts: 0,
            not_before: None,
        };
        payments.iter().enumerate().map(queued).collect()
    }

    #[test]
    fn a_frame_is_cut_at_the_first_bound_that_it_meets() {
        let many_payees: Vec<(u8, usize)> = (0..100).map(|i| (i, 1024)).collect();
        type Row = (&'static str, Vec<(u8, usize)>, usize);
        let table: &[Row] = &[
            ("nothing waits", vec![], 0),
            ("all fit", vec![(1, 256); 10], 10),
            ("the frame that was asked for", vec![(1, 64); 100], 64),
            ("the smallest frame among them", vec![(1, 64), (1, 64), (1, 1), (1, 64)], 2),
            ("one that goes alone", vec![(1, 1), (1, 64)], 1),
            ("the hub's bound on payees", many_payees, PAYEES_MAX),
            ("the hub's bound on bytes", vec![(1, 1024); 1024], (BYTES_MAX - FRAME_OVERHEAD) / PAYMENT_OVERHEAD),
        ];
        for (name, payments, expected) in table {
            let mut waiting = queue(payments);
            assert_eq!(cut_frame(&mut waiting, Instant::now()).len(), *expected, "{name}");
            assert_eq!(waiting.len(), payments.len() - expected, "{name}");
        }
    }

    #[test]
    fn a_payment_that_waits_for_its_retry_holds_back_those_behind_it() {
        let now = Instant::now();
        let mut waiting = queue(&[(1, 64), (1, 64), (1, 64)]);
        waiting[1].not_before = Some(now + RETRY_PAUSE);
        assert_eq!(cut_frame(&mut waiting, now).len(), 1);
        assert_eq!(cut_frame(&mut waiting, now).len(), 0);
        assert_eq!(cut_frame(&mut waiting, now + RETRY_PAUSE).len(), 2);
    }

    #[test]
    fn the_bytes_reckoned_for_a_frame_are_never_too_few() {
        let key = proto::SecretKey::derive(proto::Scheme::Secp256k1, &[1; 32], "voucher");
        let domain = proto::Domain::new(u64::MAX, alloy_primitives::Address::repeat_byte(1));
        let account = AccountId { channel: ChannelId(B256::repeat_byte(1)), asset: Asset::repeat_byte(2) };
        for (count, note) in [(1, 0), (1, NOTE_MAX), (100, 7), (600, 0)] {
            let payment = |i: u32| Payment {
                id: PaymentId(alloy_primitives::FixedBytes::left_padding_from(&i.to_be_bytes())),
                payee: ChannelId(B256::repeat_byte(3)),
                amount: Amount::new(1),
                fee: Amount::ZERO,
                note: vec![1; note].into(),
            };
            let payments: Vec<Payment> = (0..count).map(payment).collect();
            let tip = proto::LaneTip::default();
            let frame = proto::Frame::sign(&domain, &key, account, 63, tip, payments).expect("well-formed");
            let reckoned = FRAME_OVERHEAD + usize::try_from(count).expect("small") * (PAYMENT_OVERHEAD + note);
            assert!(wire::encoded_len(&wire::frame_message(u64::MAX, &frame)) <= reckoned, "{count} payments");
        }
    }
}
