//! What meters count becomes words of a chain: opened, revealed, renewed, retried and folded by the owner's rounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proto::ids::LANES;
use proto::member::{PayError, Resent, Secret, StreamView};
use proto::stream::{StreamId, StreamTerms};
use proto::wire::{self, v1};
use proto::{Amount, Asset, ChannelId, PaymentId};
use v1::client_message::Kind as ToHub;

use super::{ATTEMPTS_MAX, Input, Owner, RETRY_PAUSE, Refusal, Reply};
use crate::error::Error;
use crate::stream::Counters;

/// A stream to open and to keep going.
pub(crate) struct StreamOrder {
    pub job: u64,
    pub asset: Asset,
    pub payee: ChannelId,
    pub amount: Amount,
    pub fee: Amount,
    /// Ticks of one opening.
    pub ticks: u32,
    /// The lane; one that is free if none.
    pub lane: Option<u32>,
    pub counters: Arc<Counters>,
    pub reply: Reply<()>,
}

/// The streams of this client.
#[derive(Default)]
pub(crate) struct Streams {
    jobs: BTreeMap<u64, Streaming>,
    /// Answers that prove ticks of an earlier session, by lane, the newest first.
    proofs: BTreeMap<(Asset, u32), Vec<(u32, v1::GetPaymentResponse)>>,
}

struct Streaming {
    asset: Asset,
    lane: u32,
    payee: ChannelId,
    amount: Amount,
    fee: Amount,
    ticks: u32,
    counters: Arc<Counters>,
    /// The opening under way.
    current: Option<StreamId>,
    /// Ticks of the openings before it.
    done: u64,
    attempts: u32,
    not_before: Option<Instant>,
    /// Who waits for the first opening.
    begun: Option<Reply<()>>,
    /// Whether the meter is gone or finished, and who waits for the end.
    ending: bool,
    ended: Vec<Reply<()>>,
}

/// What a stream needs next.
enum Next {
    Nothing,
    Open,
    Reveal(u32),
    End,
}

impl Owner {
    pub(super) fn on_stream(&mut self, order: StreamOrder) {
        let StreamOrder { job, asset, payee, amount, fee, ticks, lane, counters, reply } = order;
        let Some(lane) = lane.or_else(|| self.free_lane(asset)) else {
            return self.answer(reply, Err(Error::Pay(PayError::LaneBusy { lane: LANES - 1 })));
        };
        let streaming = Streaming {
            asset,
            lane,
            payee,
            amount,
            fee,
            ticks,
            counters,
            current: None,
            done: 0,
            attempts: 0,
            not_before: None,
            begun: Some(reply),
            ending: false,
            ended: Vec::new(),
        };
        self.streams.jobs.insert(job, streaming);
    }

    pub(super) fn on_end_stream(&mut self, job: u64, reply: Option<Reply<()>>) {
        match self.streams.jobs.get_mut(&job) {
            Some(streaming) => {
                streaming.ending = true;
                streaming.ended.extend(reply);
            }
            None => reply.into_iter().for_each(|reply| self.answer(reply, Ok(()))),
        }
    }

    /// The highest lane that nothing uses: payments begin with the lowest.
    fn free_lane(&self, asset: Asset) -> Option<u32> {
        let member = self.wallet.member()?;
        let busy = |lane: u32| {
            self.streams.jobs.values().any(|s| s.asset == asset && s.lane == lane)
                || self.queues.get(&(asset, lane)).is_some_and(|queue| !queue.is_empty())
                || member.unanswered_on(asset, lane) > 0
                || member.stream(asset, lane).is_some_and(|view| view.waits)
        };
        (1..LANES).rev().find(|lane| !busy(*lane))
    }

    /// Goes on with every stream as far as answers and limits allow.
    pub(super) fn pump_streams(&mut self) {
        if self.link.is_none() {
            return;
        }
        let now = Instant::now();
        for job in self.streams.jobs.keys().copied().collect::<Vec<_>>() {
            // A chain that ends is followed by the next at once.
            while self.pump_stream(job, now) {}
        }
    }

    fn pump_stream(&mut self, job: u64, now: Instant) -> bool {
        let Some(member) = self.wallet.member() else { return false };
        let Some(streaming) = self.streams.jobs.get_mut(&job) else { return false };
        let view = member.stream(streaming.asset, streaming.lane);
        let view = view.filter(|view| Some(view.terms.stream) == streaming.current);
        match streaming.next(view, now) {
            Next::Nothing => false,
            Next::Open => self.open_next(job),
            Next::Reveal(index) => self.reveal(job, index),
            Next::End => {
                self.end_stream(job);
                false
            }
        }
    }

    fn open_next(&mut self, job: u64) -> bool {
        let Some(member) = self.wallet.member_mut() else { return false };
        let Some(streaming) = self.streams.jobs.get_mut(&job) else { return false };
        let stream = StreamId::random();
        let Streaming { asset, lane, payee, amount, fee, ticks, .. } = *streaming;
        let terms = StreamTerms { stream, payee, amount, fee };
        match member.open_stream(asset, lane, terms, ticks, Secret::random()) {
            Ok((tag, opening, step)) => {
                streaming.current = Some(stream);
                self.take(step);
                self.send(ToHub::StreamOpening(wire::opening_message(tag, &opening)));
                true
            }
            Err(PayError::LaneBusy { .. }) => false,
            Err(error) => {
                self.stop_stream(job, Error::Pay(error));
                false
            }
        }
    }

    fn reveal(&mut self, job: u64, index: u32) -> bool {
        let Some(member) = self.wallet.member_mut() else { return false };
        let Some(streaming) = self.streams.jobs.get_mut(&job) else { return false };
        let (asset, lane) = (streaming.asset, streaming.lane);
        match member.reveal(asset, lane, index) {
            Ok((tick, step)) => {
                streaming.not_before = None;
                self.take(step);
                self.send(ToHub::Tick(wire::tick_message(tick.asset, tick.lane, tick.index, tick.word)));
                true
            }
            Err(error) => {
                // Answers that are under way may make room.
                let waits = member.stream(asset, lane).is_some_and(|view| view.waits) || member.unanswered(asset) > 0;
                let room = matches!(
                    error,
                    PayError::Exposure { .. } | PayError::Undelivered { .. } | PayError::Insufficient { .. }
                );
                if !(matches!(error, PayError::LaneBusy { .. }) || (room && waits)) {
                    self.stop_stream(job, Error::Pay(error));
                }
                false
            }
        }
    }

    /// The last word of a stream: it is folded, so that the evidence stays small.
    fn end_stream(&mut self, job: u64) {
        let Some(streaming) = self.streams.jobs.remove(&job) else { return };
        let folded = self.wallet.member_mut().map(|member| member.fold(streaming.asset, streaming.lane));
        if let Some(Ok(Some((tag, fold, step)))) = folded {
            self.take(step);
            self.send(ToHub::Fold(wire::fold_message(tag, &fold)));
        }
        for reply in streaming.ended.into_iter().chain(streaming.begun) {
            self.answer(reply, Ok(()));
        }
    }

    /// Nothing more is paid on a stream; who added to its meter is told at the next addition.
    fn stop_stream(&mut self, job: u64, error: Error) {
        let Some(streaming) = self.streams.jobs.get_mut(&job) else { return };
        streaming.counters.stop(error.to_string());
        if let Some(begun) = streaming.begun.take() {
            streaming.ending = true;
            self.answer(begun, Err(error));
        }
    }

    fn job_of(&mut self, stream: StreamId) -> Option<(u64, &mut Streaming)> {
        let mut jobs = self.streams.jobs.iter_mut();
        jobs.find(|(_, streaming)| streaming.current == Some(stream)).map(|(job, streaming)| (*job, streaming))
    }

    pub(super) fn on_stream_opened(&mut self, stream: StreamId) {
        let begun = self.job_of(stream).and_then(|(_, streaming)| streaming.begun.take());
        begun.into_iter().for_each(|begun| self.answer(begun, Ok(())));
    }

    /// A payment was made: if it is one of ticks, the meter that counted them learns it.
    pub(super) fn on_ticks_paid(&mut self, id: PaymentId, amount: Amount) {
        if let Some((_, streaming)) = self.job_of(StreamId::of(id)) {
            let ticks = amount.get().checked_div(streaming.amount.get()).unwrap_or_default();
            streaming.counters.paid.fetch_add(u64::try_from(ticks).unwrap_or(u64::MAX), Ordering::Relaxed);
            streaming.attempts = 0;
            // Whoever is paid by it knows that it is open.
            let begun = streaming.begun.take();
            begun.into_iter().for_each(|begun| self.answer(begun, Ok(())));
        }
    }

    /// An opening or ticks were refused: tried again where that can help.
    pub(super) fn on_stream_refused(&mut self, stream: StreamId, id: PaymentId, refusal: Refusal) {
        let Some((job, streaming)) = self.job_of(stream) else { return };
        streaming.attempts += 1;
        if refusal.reason == "FOLD_FIRST" && streaming.attempts < ATTEMPTS_MAX {
            streaming.not_before = Some(Instant::now() + refusal.pause);
            return self.fold_and_go_on(job);
        }
        if refusal.retryable && streaming.attempts < ATTEMPTS_MAX {
            streaming.not_before = Some(Instant::now() + refusal.pause);
            return;
        }
        let Refusal { reason, message, retryable, .. } = refusal;
        self.stop_stream(job, Error::Refused { id, reason, message, retryable });
    }

    /// The account's evidence would no longer fit one call: what this stream paid so far is folded, and it goes on with a
    /// new opening. Where nothing is paid yet, others that are refused fold theirs.
    fn fold_and_go_on(&mut self, job: u64) {
        let Some(streaming) = self.streams.jobs.get_mut(&job) else { return };
        let folded = self.wallet.member_mut().map(|member| member.fold(streaming.asset, streaming.lane));
        if let Some(Ok(Some((tag, fold, step)))) = folded {
            streaming.current = None;
            streaming.done = streaming.done.max(streaming.counters.paid.load(Ordering::Relaxed));
            self.take(step);
            self.send(ToHub::Fold(wire::fold_message(tag, &fold)));
        }
    }

    pub(super) fn send_again(&mut self, again: Vec<Resent>) {
        for sent in again {
            self.send(match sent {
                Resent::Frame(tag, frame) => ToHub::Frame(wire::frame_message(tag, &frame)),
                Resent::Opening(tag, opening) => ToHub::StreamOpening(wire::opening_message(tag, &opening)),
                Resent::Fold(tag, fold) => ToHub::Fold(wire::fold_message(tag, &fold)),
                Resent::Tick(tick) => ToHub::Tick(wire::tick_message(tick.asset, tick.lane, tick.index, tick.word)),
            });
        }
    }
}

// ---- ticks whose receipts did not come ---------------------------------------------------------------------------------

impl Owner {
    /// Asks the hub for the payment that ends with an index of a lane's stream.
    pub(super) fn ask_ticks(&mut self, asset: Asset, lane: u32, index: u32) {
        let Some(view) = self.wallet.member().and_then(|member| member.stream(asset, lane)) else { return };
        let id = view.terms.stream.payment(index);
        let request = v1::GetPaymentRequest { token: self.reading.token.0.clone(), id: wire::bytes_of(id.0) };
        let (mut hub, inbox) = (self.config.hub.clone(), self.config.inbox.clone());
        self.config.runtime.spawn(async move {
            // Without an answer in all these attempts the next session asks again.
            let mut answer = Err(());
            for _ in 0..ATTEMPTS_MAX {
                answer = hub.get_payment(request.clone()).await.map_err(drop);
                if answer.is_ok() {
                    break;
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            let Ok(answer) = answer else { return };
            let Some(inbox) = inbox.upgrade() else { return };
            let _ = inbox.send(Input::TicksProof { asset, lane, index, answer: Box::new(answer.into_inner()) }).await;
        });
    }

    /// Takes an answer; those before it are asked for until they reach what is known, and then count in their order.
    pub(super) fn on_ticks_proof(&mut self, asset: Asset, lane: u32, index: u32, answer: v1::GetPaymentResponse) {
        let Some(member) = self.wallet.member() else { return };
        let Some(view) = member.stream(asset, lane) else { return };
        let Some(before) = member.ticks_proven(asset, lane, index, &answer) else {
            tracing::warn!(lane, index, "the hub shows ticks and does not prove them");
            self.streams.proofs.remove(&(asset, lane));
            return;
        };
        let proofs = self.streams.proofs.entry((asset, lane)).or_default();
        if proofs.last().is_some_and(|(newer, _)| *newer <= index) {
            // Another session has begun to ask meanwhile.
            proofs.clear();
        }
        proofs.push((index, answer));
        if before > view.accepted {
            return self.ask_ticks(asset, lane, before);
        }
        for (index, answer) in self.streams.proofs.remove(&(asset, lane)).unwrap_or_default().into_iter().rev() {
            let step = self.wallet.member_mut().map(|member| member.prove_ticks(asset, lane, index, &answer));
            self.take_from_hub(step);
        }
    }
}

impl Streaming {
    /// Decides from what the meter counted and what became of it.
    fn next(&mut self, view: Option<StreamView>, now: Instant) -> Next {
        let added = self.counters.added.load(Ordering::Relaxed).min(self.counters.cap);
        let stopped = self.counters.why_stopped().is_some();
        let early = self.not_before.is_some_and(|time| time > now);
        let Some(view) = view else {
            // The opening was refused, or this member's store turned out to be old.
            if self.current.take().is_some() {
                self.done = self.done.max(self.counters.paid.load(Ordering::Relaxed));
            }
            return match (stopped, self.ending && added <= self.done, early) {
                (true, _, _) if self.ending => Next::End,
                (true, _, _) => Next::Nothing,
                (false, true, _) => Next::End,
                (false, false, true) => Next::Nothing,
                (false, false, false) => Next::Open,
            };
        };
        let due = added.saturating_sub(self.done);
        let index = u32::try_from(due).unwrap_or(u32::MAX).min(view.ticks);
        let refused = !view.waits && view.revealed > view.accepted;
        if stopped {
            return if self.ending && !view.waits { Next::End } else { Next::Nothing };
        }
        if (index > view.revealed || (refused && index >= view.revealed)) && !early {
            return Next::Reveal(index);
        }
        if view.waits || refused {
            return Next::Nothing;
        }
        if view.accepted == view.ticks && due > u64::from(view.ticks) {
            self.done = self.done.saturating_add(view.ticks.into());
            self.current = None;
            return Next::Open;
        }
        if self.ending && due <= u64::from(view.accepted) { Next::End } else { Next::Nothing }
    }
}

/// The pause before ticks are tried again.
pub(super) fn pause(retry_after_ms: u32) -> Duration {
    Duration::from_millis(u64::from(retry_after_ms)).max(RETRY_PAUSE)
}
