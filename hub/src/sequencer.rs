//! The sequencer: one thread that owns the books and decides everything in one order.
//!
//! It takes commands from one bounded queue and applies them to the books at once. When the writer is free it seals
//! what was decided since and hands record and answers to the committer; the next flush fills while that one is
//! written. Nothing that it decides is told to anybody before the committer has made it durable: even a refusal goes
//! through it, because it may rest on what is not durable yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc as thread_channel;
use std::time::Instant;

use proto::account::Totals;
use proto::books::{Ask, Books, FlushRecord, LedgerUpdate, Outcome, Paid, Refusal, SessionId, Ticked};
use proto::frame::{Listed, PAYEES_MAX};
use proto::keys::{PublicKey, Scheme, Signature};
use proto::stream::{Revealed, StreamError, StreamOpening};
use proto::typed::{Ack, Settlement, Voucher};
use proto::wire::{self, v1};
use proto::{AccountId, Asset, ChannelId, Frame, Signed};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::limits::{
    ANSWER_RECEIPTS_MAX, AWAKE_MAX, CHECKPOINT_BYTES, CHECKPOINT_ENTRIES, CHECKPOINT_INTERVAL, FLUSH_ANSWERS_MAX,
    FLUSH_BYTES_MAX, FLUSH_FRAMES_MAX, LAG_MAX, PACE, PACE_FROM, PACE_FULL, QUEUE_BATCH, REST,
};
use crate::link::{Event, Link, Welcomed, WelcomedAccount};
use crate::rows::{Index, Rows, RowsError, Snapshot};

/// What is asked of the sequencer.
pub(crate) enum Command {
    /// A member proved who he is.
    Hello { link: Arc<Link>, newest_batch: Option<u64>, forked: Option<u64>, name: String },
    /// A frame whose form and signature are good.
    Pay { link: Arc<Link>, tag: u64, frame: Listed },
    /// The opening of a stream whose form and signature are good.
    Open { link: Arc<Link>, tag: u64, opening: Box<StreamOpening> },
    /// A fold whose signature is good.
    Fold { link: Arc<Link>, tag: u64, fold: Box<Signed<Voucher>> },
    /// Ticks up to an index, that came in so many messages: what was revealed, or why it is no word of its chain.
    Tick {
        link: Arc<Link>,
        account: AccountId,
        lane: u32,
        index: u32,
        revealed: Result<Revealed, StreamError>,
        ticks: usize,
    },
    /// A frame that was refused before it came here; the answer keeps its place.
    Refuse { link: Arc<Link>, refused: Box<v1::Refused>, account: AccountId, lane: u32 },
    /// A payee acknowledged.
    Ack { ack: Signed<Ack> },
    /// A member asks for a settlement.
    Request { link: Arc<Link>, tag: u64, account: AccountId, ask: Ask },
    /// A member's signature under a proposal.
    Answer { link: Arc<Link>, account: AccountId, seq: u64, signature: Signature },
    /// A connection ended.
    Goodbye { link: Arc<Link> },
    /// The ledger went on; answered when that is durable.
    Ledger { update: LedgerUpdate, done: oneshot::Sender<()> },
    /// The hub itself asks for a settlement.
    Settle { account: AccountId, ask: Ask, done: oneshot::Sender<Result<Settlement, Refusal>> },
    /// Reads the books as they are, accepted and not yet durable things included: for what stays inside.
    Query(Box<dyn FnOnce(&mut Books) + Send>),
    /// Answered when everything accepted before is durable.
    Barrier(oneshot::Sender<()>),
    /// A message for a member who may be online.
    Tell { channel: ChannelId, message: Box<v1::HubMessage> },
    /// Nothing; the committer is free again.
    Wake,
    /// Write what there is, answer it, and end.
    Stop { farewell: (&'static str, String) },
}

/// A sealed flush on its way to the disk.
pub(crate) struct Flush {
    pub(crate) sealed: Option<(Arc<FlushRecord>, Outcome)>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) credited: Vec<(Arc<Link>, AccountId)>,
    pub(crate) agreed: Vec<(AccountId, u64)>,
    pub(crate) checkpoint: Option<Snapshot>,
}

/// What is told when the flush is durable, in this order.
pub(crate) enum Answer {
    Accepted { link: Arc<Link>, asset: Asset, tags: Vec<u64>, ticks: usize },
    Event { link: Arc<Link>, event: Event },
    News { link: Arc<Link>, event: Event },
    Then(Box<dyn FnOnce() + Send>),
}

/// The committer's replies: a flush is durable and answered; a checkpoint is done.
pub(crate) enum Done {
    Flush { bytes: usize },
    Checkpoint,
}

pub(crate) struct Sequencer {
    books: Books,
    rows: Arc<Rows>,
    commands: mpsc::Receiver<Command>,
    committer: thread_channel::SyncSender<Flush>,
    done: thread_channel::Receiver<Done>,
    links: BTreeMap<ChannelId, Arc<Link>>,
    open: Open,
    in_flight: bool,
    /// Until then orders gather in the queue.
    paced_until: Option<Instant>,
    checkpoint: CheckpointClock,
    /// Cancelled when another thread failed or the handle was dropped.
    ended: CancellationToken,
}

/// One `Accepted`: where it stands, and how many receipts it may need.
struct Group {
    at: usize,
    receipts: usize,
}

/// The answers of the open flush.
#[derive(Default)]
struct Open {
    answers: Vec<Answer>,
    accepted: HashMap<(SessionId, Asset), Group>,
    agreed: Vec<(AccountId, u64)>,
    bytes: usize,
    frames: usize,
    /// Frames and runs of ticks, accepted or not.
    orders: usize,
    /// Whether one session's answer is as large as it may become.
    answer_is_full: bool,
}

struct CheckpointClock {
    /// Flushes between two checkpoints at most.
    flushes: u64,
    under_way: bool,
    began: Instant,
    bytes: usize,
    upto: u64,
}

impl Sequencer {
    pub(crate) fn new(
        books: Books,
        rows: Arc<Rows>,
        commands: mpsc::Receiver<Command>,
        committer: thread_channel::SyncSender<Flush>,
        done: thread_channel::Receiver<Done>,
        ended: CancellationToken,
        checkpoint_flushes: u64,
    ) -> Self {
        let checkpoint = CheckpointClock {
            flushes: checkpoint_flushes,
            under_way: false,
            began: Instant::now(),
            bytes: 0,
            upto: books.sealed(),
        };
        Sequencer {
            books,
            rows,
            commands,
            committer,
            done,
            links: BTreeMap::new(),
            open: Open::default(),
            in_flight: false,
            paced_until: None,
            checkpoint,
            ended,
        }
    }

    /// Runs until it is stopped or every handle of the queue is gone. An error means that the store cannot be read; the
    /// committer's errors are its own.
    pub(crate) fn run(mut self) -> Result<(), RowsError> {
        let mut batch = Vec::with_capacity(QUEUE_BATCH);
        loop {
            while let Ok(done) = self.done.try_recv() {
                self.note(done);
            }
            // The queue is not touched while the checkpoint lags: this is where back-pressure begins.
            while self.checkpoint.under_way && self.rows.fresh() >= LAG_MAX {
                let Ok(done) = self.done.recv() else { return Ok(()) };
                self.note(done);
            }
            if let Some(until) = self.paced_until.take() {
                std::thread::sleep(until.saturating_duration_since(Instant::now()));
            }
            if self.commands.blocking_recv_many(&mut batch, QUEUE_BATCH) == 0 || self.ended.is_cancelled() {
                return Ok(());
            }
            for command in batch.drain(..) {
                if let Command::Stop { farewell } = command {
                    return self.stop(farewell);
                }
                self.apply(command)?;
                while self.open.is_full() {
                    if self.in_flight {
                        let Ok(done) = self.done.recv() else { return Ok(()) };
                        self.note(done);
                    }
                    self.flush();
                }
            }
            self.flush();
        }
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Flush { bytes } => {
                self.in_flight = false;
                self.checkpoint.bytes = self.checkpoint.bytes.saturating_add(bytes);
            }
            Done::Checkpoint => self.checkpoint.under_way = false,
        }
    }

    /// Hands over what was decided, if the writer is free.
    fn flush(&mut self) {
        while let Ok(done) = self.done.try_recv() {
            self.note(done);
        }
        if self.in_flight {
            return;
        }
        let sealed = self.books.seal_with_outcome();
        let open = std::mem::take(&mut self.open);
        if sealed.is_none() && open.answers.is_empty() {
            return;
        }
        let mut credited = Vec::new();
        let sealed = sealed.map(|(record, outcome)| {
            let record = Arc::new(record);
            self.rows.seal(record.clone());
            let bases = record.credited.iter().map(|base| base.account);
            credited.extend(bases.filter_map(|id| self.links.get(&id.channel).map(|link| (link.clone(), id))));
            (record, outcome)
        });
        let checkpoint = sealed.is_some().then(|| self.snapshot_if_due()).flatten();
        // Waking this thread, writing, signing and telling cost the same for one order as for a hundred. In a crowd the
        // next orders wait a little for each other; a lone payer's never do, nor do those that fill a flush anyway.
        self.paced_until = (PACE_FROM..PACE_FULL).contains(&open.orders).then(|| Instant::now() + PACE);
        let flush = Flush { sealed, answers: open.answers, credited, agreed: open.agreed, checkpoint };
        self.in_flight = true;
        // Reading wakes channels, refused frames too: above the bound more are put to sleep than can have been woken.
        let crowd = self.books.channels().awake().saturating_sub(AWAKE_MAX);
        self.books.rest(REST.max(crowd));
        // A committer that failed is gone, and has the hub ended.
        let _ = self.committer.send(flush);
    }

    fn snapshot_if_due(&mut self) -> Option<Snapshot> {
        let clock = &self.checkpoint;
        let sealed = self.books.sealed();
        let due = self.rows.fresh() >= CHECKPOINT_ENTRIES
            || clock.bytes >= CHECKPOINT_BYTES
            || sealed.saturating_sub(clock.upto) >= clock.flushes
            || clock.began.elapsed() >= CHECKPOINT_INTERVAL;
        if clock.under_way || !due {
            return None;
        }
        let flushes = clock.flushes;
        self.checkpoint = CheckpointClock { flushes, under_way: true, began: Instant::now(), bytes: 0, upto: sealed };
        self.rows.begin_payments();
        let channels = self
            .books
            .take_touched()
            .into_iter()
            .filter_map(|id| self.books.channel(id).map(|channel| (id, channel.clone())))
            .collect();
        Some(Snapshot { upto: sealed, ground: self.books.ground(), channels })
    }

    /// Writes and answers everything, then lets the committer end.
    fn stop(mut self, (reason, message): (&'static str, String)) -> Result<(), RowsError> {
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            if !matches!(command, Command::Stop { .. }) {
                self.apply(command)?;
            }
        }
        for link in std::mem::take(&mut self.links).into_values() {
            let event = Event::Farewell { reason, message: message.clone() };
            self.open.answers.push(Answer::Event { link, event });
        }
        while self.in_flight {
            let Ok(done) = self.done.recv() else { return Ok(()) };
            self.note(done);
        }
        self.flush();
        Ok(())
    }
}

impl Open {
    fn is_full(&self) -> bool {
        self.bytes >= FLUSH_BYTES_MAX
            || self.frames >= FLUSH_FRAMES_MAX
            || self.answers.len() >= FLUSH_ANSWERS_MAX
            || self.answer_is_full
    }
}

// ---- deciding ------------------------------------------------------------------------------------------------------

impl Sequencer {
    fn apply(&mut self, command: Command) -> Result<(), RowsError> {
        match command {
            Command::Pay { link, tag, frame } => {
                self.open.orders += 1;
                return self.pay(link, tag, frame);
            }
            Command::Tick { link, account, lane, index, revealed, ticks } => {
                self.open.orders += 1;
                return self.tick(link, account, lane, (index, revealed), ticks);
            }
            Command::Open { link, tag, opening } => {
                let (account, lane) = (opening.account(), opening.lane());
                let opened = self.books.open_stream(link.id, *opening);
                self.opened(link, tag, account, lane, opened);
            }
            Command::Fold { link, tag, fold } => {
                let (account, lane) = (fold.body().account(), fold.body().lane);
                let folded = self.books.fold(link.id, *fold);
                self.opened(link, tag, account, lane, folded);
            }
            Command::Refuse { link, mut refused, account, lane } => {
                refused.lane = self.lane(account, lane);
                self.answer(link, Event::Refused(refused));
            }
            Command::Hello { link, newest_batch, forked, name } => self.hello(link, newest_batch, forked, &name),
            Command::Ack { ack } => self.ack(ack),
            Command::Request { link, tag, account, ask } => self.request(link, tag, account, ask),
            Command::Answer { link, account, seq, signature } => self.agree(&link, account, seq, signature),
            Command::Goodbye { link } => self.end_session(&link),
            Command::Ledger { update, done } => self.ledger(update, done),
            Command::Settle { account, ask, done } => {
                let proposed = self.books.propose(account, ask);
                if let Ok(settlement) = &proposed {
                    self.send_proposal(account.channel, 0, settlement);
                }
                self.then(move || drop(done.send(proposed)));
            }
            Command::Query(query) => query(&mut self.books),
            Command::Barrier(done) => self.then(move || {
                let _ = done.send(());
            }),
            Command::Tell { channel, message } => self.tell(channel, Event::Message(message)),
            Command::Wake => {}
            Command::Stop { .. } => unreachable!("the loop ends on it"),
        }
        Ok(())
    }

    fn pay(&mut self, link: Arc<Link>, tag: u64, listed: Listed) -> Result<(), RowsError> {
        let frame = listed.frame();
        let (account, lane) = (frame.account(), frame.lane());
        let (bytes, receipts) = (estimate(frame), frame.payments.len().min(PAYEES_MAX));
        let index = Index { rows: &self.rows, failed: Default::default() };
        let paid = self.books.pay(link.id, listed, &index);
        if let Some(error) = index.failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            // A payment whose past cannot be read must neither be taken nor refused.
            return Err(error);
        }
        match paid {
            Ok(Paid::Accepted) => {
                self.open.bytes += bytes;
                self.open.frames += 1;
                let (tags, _) = self.accepted(link, account.asset, receipts);
                tags.push(tag);
            }
            Ok(Paid::Again { flush }) => self.answer(link, Event::Again { flush, asset: account.asset, tag }),
            Err(refusal) => {
                let lane = self.lane(account, lane);
                self.answer(link, Event::Refused(Box::new(refused(tag, account.asset, &refusal, lane))));
            }
        }
        Ok(())
    }

    fn tick(
        &mut self,
        link: Arc<Link>,
        account: AccountId,
        lane: u32,
        (index, revealed): (u32, Result<Revealed, StreamError>),
        ticks: usize,
    ) -> Result<(), RowsError> {
        let known = Index { rows: &self.rows, failed: Default::default() };
        let ticked = match revealed {
            Ok(revealed) => self.books.tick(link.id, account, lane, revealed, &known),
            Err(error) => Err(Refusal::Stream(error)),
        };
        if let Some(error) = known.failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        match ticked {
            Ok(Ticked::Accepted) => {
                self.open.bytes += TICKS_BYTES;
                let (_, messages) = self.accepted(link, account.asset, 1);
                *messages += ticks;
            }
            Ok(Ticked::Known) => self.answer(link, Event::TicksKnown { ticks }),
            Err(refusal) => {
                let refused = v1::TickRefused {
                    asset: wire::bytes_of(account.asset),
                    lane,
                    index,
                    reason: refusal.reason().to_owned(),
                    message: refusal.to_string(),
                    retryable: refusal.is_retryable(),
                    retry_after_ms: retry_after_ms(&refusal),
                    state: self.lane(account, lane),
                };
                self.answer(link, Event::TicksRefused { refused: Box::new(refused), ticks });
            }
        }
        Ok(())
    }

    fn opened(&mut self, link: Arc<Link>, tag: u64, account: AccountId, lane: u32, opened: Result<(), Refusal>) {
        let asset = account.asset;
        let event = match opened {
            Ok(()) => {
                self.open.bytes += TICKS_BYTES;
                Event::Opened { asset, tag }
            }
            Err(refusal) => Event::Refused(Box::new(refused(tag, asset, &refusal, self.lane(account, lane)))),
        };
        self.answer(link, event);
    }

    /// One `Accepted` a flush for each session and asset: gives its tags, and its count of messages of ticks.
    fn accepted(&mut self, link: Arc<Link>, asset: Asset, receipts: usize) -> (&mut Vec<u64>, &mut usize) {
        let Open { answers, accepted, answer_is_full, .. } = &mut self.open;
        let group = accepted.entry((link.id, asset)).or_insert_with(|| {
            answers.push(Answer::Accepted { link, asset, tags: Vec::new(), ticks: 0 });
            Group { at: answers.len() - 1, receipts: 0 }
        });
        group.receipts += receipts;
        *answer_is_full |= group.receipts >= ANSWER_RECEIPTS_MAX;
        match answers.get_mut(group.at) {
            Some(Answer::Accepted { tags, ticks, .. }) => (tags, ticks),
            Some(_) | None => unreachable!("a group stands where its answer was put"),
        }
    }

    fn hello(&mut self, link: Arc<Link>, newest_batch: Option<u64>, forked: Option<u64>, name: &str) {
        if let Some(flush) = forked {
            self.books.freeze(flush);
        }
        if let Err(refusal) = self.books.hello(link.channel, link.id, newest_batch) {
            let event = Event::Farewell { reason: refusal.reason(), message: refusal.to_string() };
            return self.answer(link, event);
        }
        if let Some(old) = self.links.insert(link.channel, link.clone()) {
            let message = "a newer session of this channel has taken over".to_owned();
            self.answer(old, Event::Farewell { reason: "OLD_SESSION", message });
        }
        if !name.is_empty()
            && let Err(refusal) = self.books.name(link.channel, name)
        {
            tracing::debug!(channel = %link.channel, %refusal, "a name was refused");
        }
        let welcome = Event::Welcome(Box::new(self.welcome(link.channel)));
        self.answer(link, welcome);
    }

    fn welcome(&self, id: ChannelId) -> Welcomed {
        let channel = self.books.channel(id).expect("the books took the hello");
        let accounts = channel.accounts.iter().map(|(asset, account)| WelcomedAccount {
            account: AccountId { channel: id, asset: *asset },
            totals: account.ledger,
            lanes: account.lanes.values().cloned().collect(),
            kept: account.kept.iter().map(|kept| kept.settlement.clone()).collect(),
        });
        Welcomed { name: channel.name.clone().unwrap_or_default(), accounts: accounts.collect() }
    }

    fn ack(&mut self, ack: Signed<Ack>) {
        match self.books.ack(ack) {
            Ok(deliveries) => {
                for delivery in deliveries {
                    self.tell(delivery.payer, Event::Delivered(Box::new(delivery)));
                }
            }
            // An acknowledgement that was sent twice changes nothing, and one that does not fit proves nothing.
            Err(refusal) => tracing::debug!(%refusal, "an acknowledgement was dropped"),
        }
    }

    fn request(&mut self, link: Arc<Link>, tag: u64, account: AccountId, ask: Ask) {
        let current = self.books.session(link.channel) == Some(link.id);
        let proposed = if current { self.books.propose(account, ask) } else { Err(Refusal::OldSession) };
        match proposed {
            Ok(settlement) => self.send_proposal(account.channel, tag, &settlement),
            Err(refusal) => {
                let kind = v1::hub_message::Kind::SettlementRefused(v1::SettlementRefused {
                    tag,
                    reason: refusal.reason().to_owned(),
                    message: refusal.to_string(),
                    retryable: refusal.is_retryable(),
                });
                let event = Event::Message(Box::new(v1::HubMessage { kind: Some(kind) }));
                self.open.answers.push(Answer::News { link, event });
            }
        }
    }

    fn send_proposal(&mut self, channel: ChannelId, tag: u64, settlement: &Settlement) {
        let kind = v1::hub_message::Kind::Proposal(wire::proposal_message(tag, settlement));
        self.tell(channel, Event::Message(Box::new(v1::HubMessage { kind: Some(kind) })));
    }

    /// Takes a signature under a proposal, once: what is agreed is posted once, and each posting costs the hub gas. This
    /// is the one signature that is checked here, so a session that gives a bad one is over, and with it what it has in
    /// the queue.
    fn agree(&mut self, link: &Arc<Link>, account: AccountId, seq: u64, signature: Signature) {
        if self.books.session(link.channel) != Some(link.id) {
            return;
        }
        let Some(proposal) = self.books.waiting(account).into_iter().find(|s| s.seq == seq) else { return };
        let agreed = |s: &Signed<Settlement>| *s.body() == proposal;
        if self.books.account(account).is_some_and(|a| a.agreed.iter().any(agreed)) {
            return;
        }
        let channel = self.books.channel(account.channel);
        let Some(key) = channel.and_then(|channel| member_key(&channel.terms)) else { return };
        match Signed::verify(self.books.domain(), &key, proposal, signature) {
            Ok(signed) => match self.books.agree(signed) {
                Ok(()) => self.open.agreed.push((account, seq)),
                Err(refusal) => tracing::debug!(%account, seq, %refusal, "a signature under a settlement was dropped"),
            },
            Err(error) => {
                self.end_session(link);
                let message = format!("the signature under settlement {seq} is not this member's: {error}");
                self.answer(link.clone(), Event::Farewell { reason: "BAD_SIGNATURE", message });
            }
        }
    }

    fn end_session(&mut self, link: &Link) {
        self.books.goodbye(link.channel, link.id);
        if self.links.get(&link.channel).is_some_and(|known| known.id == link.id) {
            self.links.remove(&link.channel);
        }
    }

    fn ledger(&mut self, update: LedgerUpdate, done: oneshot::Sender<()>) {
        let totals: Vec<(AccountId, Totals)> = update.totals.clone();
        let span = tracing::debug_span!("ledger", confirmed = update.confirmed, accounts = totals.len()).entered();
        for (channel, why) in self.books.ledger(update) {
            tracing::info!(%channel, why, "a channel was opened that is not served");
        }
        drop(span);
        for (id, totals) in totals {
            let update =
                v1::AccountUpdate { asset: wire::bytes_of(id.asset), ledger: Some(wire::totals_message(&totals)) };
            let message = v1::HubMessage { kind: Some(v1::hub_message::Kind::Account(update)) };
            self.tell(id.channel, Event::Message(Box::new(message)));
        }
        self.then(move || {
            let _ = done.send(());
        });
    }

    fn lane(&self, account: AccountId, lane: u32) -> Option<v1::LaneState> {
        self.books.account(account)?.lanes.get(&lane).map(wire::lane_message)
    }

    fn answer(&mut self, link: Arc<Link>, event: Event) {
        self.open.answers.push(Answer::Event { link, event });
    }

    fn tell(&mut self, channel: ChannelId, event: Event) {
        if let Some(link) = self.links.get(&channel) {
            self.open.answers.push(Answer::News { link: link.clone(), event });
        }
    }

    fn then(&mut self, action: impl FnOnce() + Send + 'static) {
        self.open.answers.push(Answer::Then(Box::new(action)));
    }
}

/// A refusal as the member reads it.
pub(crate) fn refused(tag: u64, asset: Asset, refusal: &Refusal, lane: Option<v1::LaneState>) -> v1::Refused {
    v1::Refused {
        tag,
        reason: refusal.reason().to_owned(),
        message: refusal.to_string(),
        retryable: refusal.is_retryable(),
        retry_after_ms: retry_after_ms(refusal),
        asset: wire::bytes_of(asset),
        lane,
    }
}

/// When a retry may help: funding takes a block or two, a restart some seconds; what only needs a new signature, now.
pub(crate) fn retry_after_ms(refusal: &Refusal) -> u32 {
    match refusal {
        Refusal::PayeeUnbacked { .. } => 500,
        Refusal::Draining => 2_000,
        Refusal::Freezing { .. } | Refusal::TooManyKept { .. } | Refusal::CannotClose => 5_000,
        Refusal::HubFrozen => 60_000,
        _ => 0,
    }
}

/// The member's voucher key in a channel's terms.
pub(crate) fn member_key(terms: &proto::ChannelTerms) -> Option<PublicKey> {
    let scheme = Scheme::from_number(terms.memberScheme).ok()?;
    Some(PublicKey { scheme, bytes: terms.memberKey })
}

/// Bytes that ticks, an opening or a fold add to their record, a little more rather than less.
const TICKS_BYTES: usize = 320;

/// Bytes that a frame adds to its record, a little more rather than less.
fn estimate(frame: &Frame) -> usize {
    frame.payments.iter().map(|p| 96 + p.note.len()).sum::<usize>() + 320
}
