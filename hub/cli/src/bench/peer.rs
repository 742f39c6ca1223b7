//! A member under load: one connection, its own key, its own view of its channel.
//!
//! It speaks the protocol as the client library does and checks what that checks: every receipt opens to exactly the
//! payments that it answers and leads to a root that the hub signed, lanes go on in order, credits continue in number,
//! total and head up to a voucher that leads to such a root, acknowledgements carry the payee's signature and the heads
//! that follow from the own receipt. Two things differ, because the hub is what is measured: nothing is written to a
//! disk here, and the signature over a flush is checked once for each member and flush, however many receipts it covers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{B256, Bytes, FixedBytes};
use futures::FutureExt as _;
use proto::batch::{root_of, verify_batch};
use proto::member::Counted;
use proto::stream::{StreamId, StreamOpening, StreamTerms, Words};
use proto::typed::{Ack, Login, Settlement, TickVoucher, chain_hash, server_id};
use proto::wire::v1::{client_message::Kind as ToHub, hub_message::Kind as FromHub};
use proto::wire::{self, v1};
use proto::{
    AccountId, Amount, Asset, ChannelId, Domain, Frame, LaneTip, Payment, PaymentId, Proof, PublicKey, Scheme,
    SecretKey, Signature, Signed,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use v1::member_client::MemberClient;

use super::tally::Tally;
use super::workload::{FrameLen, MIXED, Payees, Shape};
use crate::failure::Failure;

/// Time between acknowledgements of credits.
const ACK_EVERY: Duration = Duration::from_secs(1);
/// Credits after which an acknowledgement does not wait.
const ACK_CREDITS: u64 = 1024;
/// Messages of credits that the hub may send ahead.
const CREDIT_WINDOW: u32 = 256;
/// Frames that wait for an answer at most, as with the client library.
const UNANSWERED_MAX: usize = proto::member::UNANSWERED_MAX;
/// Messages of ticks that wait for an answer at most: they are a tenth of a frame's size, and the hub keeps places for
/// four times as many.
const TICKS_WAITING_MAX: usize = 512;
/// Messages taken in one go before new frames are signed.
const MESSAGES_MAX: usize = 64;
/// How long a refused lane rests.
const REFUSAL_PAUSE: Duration = Duration::from_millis(20);
/// What a payment of a mixed frame pays the hub.
const MIXED_FEE: Amount = Amount::new(1);
/// One in so many payments of a mixed workload is to the hub itself.
const HUB_IS_PAID_EVERY: u64 = 16;

/// What is known of every member before the load begins.
#[derive(Debug)]
pub struct Facts {
    /// The chain and contract.
    pub domain: Domain,
    /// The asset that is paid.
    pub asset: Asset,
    /// The hub's key.
    pub hub_key: PublicKey,
    /// The hub's name.
    pub host: String,
    /// Everybody's channel.
    pub channels: Vec<ChannelId>,
    /// Everybody's key, by channel.
    pub keys: BTreeMap<ChannelId, PublicKey>,
    /// Everybody's deposit.
    pub deposit: Amount,
    /// The hub's deposit in everybody's account.
    pub collateral: Amount,
}

/// What a member is told to do.
#[derive(Debug)]
pub enum Order {
    /// Keep so many frames of each lane waiting for their answers.
    Drive { shape: Shape, window: usize },
    /// Pay as [`Order::Due`] says.
    Await { shape: Shape },
    /// A frame should leave at this time; it counts as waiting already.
    Due(Instant),
    /// No more payments.
    Stop,
    /// Say what the books come to.
    Report(oneshot::Sender<Account>),
    /// Close the account together with the hub.
    Close(oneshot::Sender<Amount>),
}

/// A member's books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Whose.
    pub channel: ChannelId,
    /// Everything accepted with receipts, fees included.
    pub paid: Amount,
    /// What of it went to the hub: fees, and payments to it.
    pub to_hub: Amount,
    /// Everything credited under a voucher of the hub.
    pub received: Amount,
}

/// A member with a connection.
pub struct Peer {
    facts: Arc<Facts>,
    tally: Arc<Tally>,
    me: usize,
    id: AccountId,
    key: SecretKey,
    out: mpsc::UnboundedSender<v1::ClientMessage>,
    shape: Shape,
    /// Frames of each lane that may wait for an answer; 0 while nothing is to be paid.
    window: usize,
    /// Times at which frames should have left, in an open loop.
    due: VecDeque<Instant>,
    lanes: Vec<Lane>,
    next_lane: usize,
    pending: VecDeque<Pending>,
    next_tag: u64,
    id_prefix: [u8; 8],
    next_id: u64,
    dice: u64,
    paid: Amount,
    to_hub: Amount,
    staged: Counted,
    counted: Counted,
    acked: u64,
    window_owed: u32,
    /// The newest flush whose signature was checked.
    seen: Option<(u64, B256, Signature)>,
    undelivered: BTreeMap<(ChannelId, u64), B256>,
    delivery: BTreeMap<ChannelId, Delivery>,
    closing: Option<Closing>,
}

#[derive(Clone, Debug, Default)]
struct Lane {
    /// After everything signed.
    tip: LaneTip,
    /// After everything accepted.
    accepted: LaneTip,
    waiting: usize,
    /// A frame was refused; those behind it will be, too.
    doomed: bool,
    rests_until: Option<Instant>,
    /// The streams of which something waits, and the newest one; oldest first.
    streams: VecDeque<Stream>,
    /// Messages of ticks that wait, oldest first.
    ticks: VecDeque<PendingTicks>,
    /// Ticks were refused for now: the newest word is sent again after the rest.
    again: bool,
}

/// A stream that this member opened.
#[derive(Clone, Debug)]
struct Stream {
    opening: StreamOpening,
    words: Words,
    revealed: u32,
    accepted: u32,
}

#[derive(Clone, Debug)]
struct PendingTicks {
    anchor: B256,
    index: u32,
    count: u32,
    intended: Instant,
}

struct Pending {
    tag: u64,
    lane: usize,
    tip: LaneTip,
    cost: Amount,
    payments: Vec<Payment>,
    intended: Instant,
}

/// An acknowledgement whose digests come in pages.
struct Delivery {
    head: B256,
    credits: u64,
    next: u64,
    reached: B256,
}

struct Closing {
    reply: Option<oneshot::Sender<Amount>>,
    signed: Option<Settlement>,
}

/// What no honest hub says, or what this program does not expect of it.
pub type Fault = String;

impl Peer {
    /// Connects and logs in.
    pub async fn connect(
        facts: Arc<Facts>,
        tally: Arc<Tally>,
        me: usize,
        key: SecretKey,
        mut hub: MemberClient<Channel>,
    ) -> Result<(Peer, Streaming<v1::HubMessage>), Failure> {
        let (out, outgoing) = mpsc::unbounded_channel();
        let failed = |what: &str| Failure::connect(format!("member {me} cannot begin a session: {what}"), "");
        let answer = hub.session(UnboundedReceiverStream::new(outgoing)).await;
        let mut inbound = answer.map_err(|e| failed(&e.to_string()))?.into_inner();
        let Some(FromHub::Challenge(challenge)) = next(&mut inbound).await.map_err(|e| failed(&e))? else {
            return Err(failed("no challenge came"));
        };
        let id = AccountId { channel: facts.channels[me], asset: facts.asset };
        let nonce = wire::read_b256("challenge.nonce", &challenge.nonce).map_err(|e| failed(&e.to_string()))?;
        let server = server_id(facts.hub_key.bytes, &facts.host);
        let login = Login { channelId: id.channel.0, server, nonce, expires: challenge.expires };
        let login = Signed::sign(&facts.domain, &key, login);
        let seen = v1::AccountSeen { asset: wire::bytes_of(facts.asset), credits: 0, hub_voucher: None, lanes: vec![] };
        let hello = v1::Hello {
            channel_id: wire::bytes_of(id.channel.0),
            signature: wire::bytes_of(login.signature().as_slice()),
            newest_batch: None,
            accounts: vec![seen],
            name: String::new(),
        };
        let _ = out.send(v1::ClientMessage { kind: Some(ToHub::Hello(hello)) });
        let Some(FromHub::Welcome(_)) = next(&mut inbound).await.map_err(|e| failed(&e))? else {
            return Err(failed("no welcome came"));
        };
        let mut id_prefix = [0; 8];
        getrandom::fill(&mut id_prefix).expect("the operating system gives randomness");
        let idle = super::workload::Workload::Signed.shape();
        let mut peer = Peer {
            facts,
            tally,
            me,
            id,
            key,
            out,
            shape: idle,
            window: 0,
            due: VecDeque::new(),
            lanes: vec![Lane::default(); proto::ids::LANES as usize],
            next_lane: 0,
            pending: VecDeque::new(),
            next_tag: 1,
            id_prefix,
            next_id: 0,
            dice: me as u64,
            paid: Amount::ZERO,
            to_hub: Amount::ZERO,
            staged: Counted::default(),
            counted: Counted::default(),
            acked: 0,
            window_owed: 0,
            seen: None,
            undelivered: BTreeMap::new(),
            delivery: BTreeMap::new(),
            closing: None,
        };
        peer.send(ToHub::Window(v1::CreditWindow { more: CREDIT_WINDOW }));
        Ok((peer, inbound))
    }

    /// Works until nobody gives orders any more.
    pub async fn run(mut self, inbound: Streaming<v1::HubMessage>, orders: mpsc::UnboundedReceiver<Order>) {
        let (tally, me) = (self.tally.clone(), self.me);
        if let Err(fault) = self.work(inbound, orders).await {
            tally.fail(format!("member {me}: {fault}"));
        }
    }

    async fn work(
        &mut self,
        mut inbound: Streaming<v1::HubMessage>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) -> Result<(), Fault> {
        // Members acknowledge at different times.
        let offset = ACK_EVERY.mul_f64(self.me as f64 / self.facts.channels.len() as f64);
        let mut acks = tokio::time::interval_at(tokio::time::Instant::now() + offset, ACK_EVERY);
        acks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let resting = self.lanes.iter().any(|lane| lane.rests_until.is_some());
            tokio::select! {
                message = next(&mut inbound) => {
                    self.take(message?.ok_or("the hub hung up")?)?;
                    // What came together is answered together.
                    for _ in 1..MESSAGES_MAX {
                        let Some(message) = next(&mut inbound).now_or_never() else { break };
                        self.take(message?.ok_or("the hub hung up")?)?;
                    }
                }
                order = orders.recv() => match order {
                    Some(order) => {
                        self.obey(order);
                        while let Ok(order) = orders.try_recv() {
                            self.obey(order);
                        }
                    }
                    None => return Ok(()),
                },
                _ = acks.tick() => self.acknowledge(true),
                () = tokio::time::sleep(REFUSAL_PAUSE), if resting => {}
            }
            self.fill()?;
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Drive { shape, window } => self.begin(shape, window),
            Order::Await { shape } => self.begin(shape, 0),
            Order::Due(at) => self.due.push_back(at),
            Order::Stop => {
                self.window = 0;
                self.tally.forget(self.due.len());
                self.due.clear();
            }
            Order::Report(reply) => {
                let (channel, paid, to_hub, received) = (self.id.channel, self.paid, self.to_hub, self.counted.total);
                let _ = reply.send(Account { channel, paid, to_hub, received });
            }
            Order::Close(reply) => {
                self.closing = Some(Closing { reply: Some(reply), signed: None });
                let asset = wire::bytes_of(self.id.asset);
                let withdraw = wire::amount_bytes(Amount::ZERO);
                let request = v1::SettlementRequest { tag: 1, asset, withdraw, close: true };
                self.send(ToHub::SettlementRequest(request));
            }
        }
    }

    fn begin(&mut self, shape: Shape, window: usize) {
        (self.shape, self.window) = (shape, window);
    }

    fn send(&mut self, kind: ToHub) {
        // A connection that ended shows when the next message is read.
        let _ = self.out.send(v1::ClientMessage { kind: Some(kind) });
    }
}

// ---- paying --------------------------------------------------------------------------------------------------------

impl Peer {
    /// Signs what the window allows, and what is due.
    fn fill(&mut self) -> Result<(), Fault> {
        for lane in 0..self.shape.lanes {
            if self.lanes[lane].again && self.is_free(lane) {
                self.reveal_again(lane);
            }
            while self.window > self.lanes[lane].waiting && self.is_free(lane) {
                self.tally.waits();
                self.pay(lane, Instant::now())?;
            }
        }
        while let Some(intended) = self.due.front().copied() {
            let Some(lane) = self.lane_for_due() else { break };
            self.due.pop_front();
            self.pay(lane, intended)?;
        }
        Ok(())
    }

    fn is_free(&mut self, lane: usize) -> bool {
        let lane = &mut self.lanes[lane];
        if lane.rests_until.is_some_and(|until| Instant::now() >= until) {
            lane.rests_until = None;
        }
        !lane.doomed
            && lane.rests_until.is_none()
            && lane.ticks.len() < TICKS_WAITING_MAX
            && self.pending.len() < UNANSWERED_MAX
    }

    fn lane_for_due(&mut self) -> Option<usize> {
        let (lanes, from) = (self.shape.lanes, self.next_lane);
        let lane = (from..from + lanes).map(|lane| lane % lanes).find(|lane| self.is_free(*lane))?;
        self.next_lane = (lane + 1) % lanes;
        Some(lane)
    }

    fn pay(&mut self, lane: usize, intended: Instant) -> Result<(), Fault> {
        if let FrameLen::Ticks(count) = self.shape.frame {
            return self.tick(lane, count, intended);
        }
        let payments = self.payments();
        let (domain, number) = (&self.facts.domain, u32::try_from(lane).expect("lanes are few"));
        let frame = Frame::sign(domain, &self.key, self.id, number, self.lanes[lane].tip, payments);
        let frame = frame.map_err(|e| e.to_string())?;
        let cost = frame.cost().ok_or("a frame's cost does not fit")?;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.send(ToHub::Frame(wire::frame_message(tag, &frame)));
        let tip = frame.tip();
        let at = &mut self.lanes[lane];
        (at.tip, at.waiting) = (tip, at.waiting + 1);
        self.pending.push_back(Pending { tag, lane, tip, cost, payments: frame.payments, intended });
        Ok(())
    }

    fn payments(&mut self) -> Vec<Payment> {
        let count = match self.shape.frame {
            FrameLen::Fixed(count) => count,
            FrameLen::Ticks(_) => unreachable!("ticks are paid without a list"),
            FrameLen::Mixed => MIXED[self.roll(MIXED.len() as u64) as usize],
        };
        (0..count).map(|_| self.payment()).collect()
    }

    fn payment(&mut self) -> Payment {
        let members = self.facts.channels.len();
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.id_prefix);
        bytes[8..].copy_from_slice(&self.next_id.to_be_bytes());
        self.next_id += 1;
        let id = PaymentId(FixedBytes(bytes));
        match self.shape.payees {
            Payees::Next => {
                let payee = self.facts.channels[(self.me + 1) % members];
                Payment { id, payee, amount: Amount::new(1), fee: Amount::ZERO, note: Bytes::new() }
            }
            Payees::Anybody => {
                let other = 1 + self.roll(members as u64 - 1) as usize;
                let payee = match self.roll(HUB_IS_PAID_EVERY) {
                    0 => ChannelId::HUB,
                    _ => self.facts.channels[(self.me + other) % members],
                };
                let amount = Amount::new(u128::from(1 + self.roll(20)));
                Payment { id, payee, amount, fee: MIXED_FEE, note: Bytes::from_static(b"invoice 4711") }
            }
        }
    }

    /// SplitMix64 (Steele, Lea and Flood, 2014).
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.dice ^ (self.dice >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    fn accepted(&mut self, message: &v1::Accepted) -> Result<(), Fault> {
        let now = Instant::now();
        let mut lists: Vec<(ChannelId, Vec<(PaymentId, Amount)>)> = Vec::with_capacity(message.receipts.len());
        let mut at = 0;
        for tag in &message.tags {
            let answered = self.answered(*tag)?;
            let lane = &mut self.lanes[answered.lane];
            if lane.accepted.cumulative.checked_add(answered.cost) != Some(answered.tip.cumulative) {
                return Err(format!("frame {tag} was accepted out of order"));
            }
            lane.accepted = answered.tip;
            self.paid = self.paid.saturating_add(answered.cost);
            for payment in &answered.payments {
                let known = lists.get(at).is_some_and(|(payee, _)| *payee == payment.payee);
                if !known {
                    at = lists.iter().position(|(payee, _)| *payee == payment.payee).unwrap_or(lists.len());
                }
                if at == lists.len() {
                    lists.push((payment.payee, Vec::with_capacity(answered.payments.len())));
                }
                lists[at].1.push((payment.id, payment.amount));
                self.to_hub = self.to_hub.saturating_add(payment.fee);
            }
            self.tally.accepted(answered.payments.len(), answered.intended, now);
            self.tally.made(answered.payments.len());
        }
        for ticks in &message.ticks {
            let (payee, id, amount) = self.ticks_accepted(ticks, now)?;
            match lists.iter_mut().find(|(known, _)| *known == payee) {
                Some((_, rows)) => rows.push((id, amount)),
                None => lists.push((payee, vec![(id, amount)])),
            }
        }
        if lists.len() != message.receipts.len() {
            return Err(format!("{} receipts came for {} payees", message.receipts.len(), lists.len()));
        }
        for receipt in &message.receipts {
            self.receipt(receipt, &mut lists)?;
        }
        Ok(())
    }

    /// Takes a receipt that must prove one of the lists, and strikes that one out.
    fn receipt(
        &mut self,
        message: &v1::Receipt,
        lists: &mut Vec<(ChannelId, Vec<(PaymentId, Amount)>)>,
    ) -> Result<(), Fault> {
        let body = wire::read_receipt_body(message).map_err(|e| e.to_string())?;
        let payee = ChannelId(body.channelId);
        let place = lists.iter().position(|(p, _)| *p == payee).ok_or("a receipt is for nobody who was paid")?;
        let (_, rows) = lists.swap_remove(place);
        let digest = self.facts.domain.digest(&body);
        self.prove(digest, message.proof.as_ref())?;
        let sum = Amount::checked_sum(rows.iter().map(|(_, amount)| *amount));
        let good = body.asset == self.id.asset
            && sum == Some(Amount::new(body.amount))
            && proto::frame::payments_hash(&rows) == body.payments;
        if !good {
            return Err(format!("the receipt {} of {payee} does not prove its payments", body.credit));
        }
        if payee == ChannelId::HUB {
            self.to_hub = self.to_hub.saturating_add(Amount::new(body.amount));
        } else {
            self.undelivered.insert((payee, body.credit), digest);
        }
        Ok(())
    }

    fn refused(&mut self, message: &v1::Refused) -> Result<(), Fault> {
        if !message.retryable {
            // Frames behind a refused one are refused because they do not continue the lane.
            let behind = self.pending.iter().find(|p| p.tag == message.tag).is_some_and(|p| self.lanes[p.lane].doomed);
            if !behind {
                return Err(format!("frame {} was refused: {} ({})", message.tag, message.message, message.reason));
            }
        }
        let answered = self.answered(message.tag)?;
        self.tally.refused(answered.payments.len());
        let lane = &mut self.lanes[answered.lane];
        lane.doomed = lane.waiting > 0;
        if !lane.doomed {
            lane.tip = lane.accepted;
            let pause = Duration::from_millis(u64::from(message.retry_after_ms)).max(REFUSAL_PAUSE);
            lane.rests_until = Some(Instant::now() + pause);
        }
        Ok(())
    }

    fn answered(&mut self, tag: u64) -> Result<Pending, Fault> {
        // Answers come in the order of the frames, but for lanes that were refused.
        let place = self.pending.iter().position(|p| p.tag == tag);
        let place = place.ok_or_else(|| format!("frame {tag} was answered and does not wait for an answer"))?;
        let pending = self.pending.remove(place).expect("it was just found");
        self.lanes[pending.lane].waiting -= 1;
        Ok(pending)
    }

    /// Checks that a digest leads to a root that the hub signed.
    fn prove(&mut self, digest: B256, proof: Option<&v1::Proof>) -> Result<(), Fault> {
        let proof = proof.ok_or("a proof is missing")?;
        let Facts { domain, hub_key, .. } = &*self.facts;
        match wire::read_proof(hub_key.scheme, proof).map_err(|e| e.to_string())? {
            Proof::Direct(signature) => hub_key.verify(&digest, &signature).map_err(|e| e.to_string()),
            Proof::Batch { flush, path, signature } => {
                let root = root_of(&digest, &path).ok_or("a path is too long")?;
                if self.seen == Some((flush, root, signature)) {
                    return Ok(());
                }
                if !verify_batch(domain, hub_key, flush, root, &signature) {
                    return Err(format!("the hub did not sign what it shows of flush {flush}"));
                }
                self.seen = Some((flush, root, signature));
                Ok(())
            }
        }
    }
}

// ---- ticks -----------------------------------------------------------------------------------------------------------

impl Peer {
    /// Reveals the next word that is worth `count` ticks more, of the lane's stream or, where that has ended, of a new one.
    fn tick(&mut self, lane: usize, count: u32, intended: Instant) -> Result<(), Fault> {
        let number = u32::try_from(lane).expect("lanes are few");
        let room = |stream: &Stream| stream.words.ticks() - stream.revealed >= count;
        if !self.lanes[lane].streams.back().is_some_and(room) {
            self.open_stream(lane, number)?;
        }
        let (id, at) = (self.id, &mut self.lanes[lane]);
        let stream = at.streams.back_mut().expect("it was just opened");
        stream.revealed += count;
        let index = stream.revealed;
        let word = stream.words.word(index).expect("there is room");
        at.tip = stream.opening.tip(index);
        at.waiting += 1;
        let anchor = stream.words.anchor();
        at.ticks.push_back(PendingTicks { anchor, index, count, intended });
        self.send(ToHub::Tick(wire::tick_message(id.asset, number, index, word)));
        Ok(())
    }

    fn open_stream(&mut self, lane: usize, number: u32) -> Result<(), Fault> {
        let mut secret = B256::ZERO;
        getrandom::fill(secret.as_mut_slice()).expect("the operating system gives randomness");
        let words = Words::new(secret, TickVoucher::TICKS_MAX);
        let payee = self.facts.channels[(self.me + 1) % self.facts.channels.len()];
        let terms = StreamTerms { stream: StreamId::random(), payee, amount: Amount::new(1), fee: Amount::ZERO };
        let (domain, tip) = (&self.facts.domain, self.lanes[lane].tip);
        let opening = StreamOpening::sign(domain, &self.key, self.id, number, tip, terms, &words);
        let opening = opening.map_err(|e| e.to_string())?;
        let tag = self.next_tag;
        self.next_tag += 1;
        self.send(ToHub::StreamOpening(wire::opening_message(tag, &opening)));
        self.lanes[lane].streams.push_back(Stream { opening, words, revealed: 0, accepted: 0 });
        Ok(())
    }

    /// Takes accepted ticks, which go on where the last ones ended; gives the payment that a receipt must prove.
    fn ticks_accepted(
        &mut self,
        message: &v1::TicksAccepted,
        now: Instant,
    ) -> Result<(ChannelId, PaymentId, Amount), Fault> {
        let ticks = wire::read_ticks_accepted(message).map_err(|e| e.to_string())?;
        let at = &mut self.lanes[ticks.lane as usize];
        while at.streams.len() > 1 && at.streams[0].words.anchor() != ticks.anchor {
            at.streams.pop_front();
        }
        let stream = at.streams.front_mut().filter(|stream| stream.words.anchor() == ticks.anchor);
        let stream = stream.ok_or("ticks of a stream that nobody opened were accepted")?;
        if ticks.before != stream.accepted || ticks.index > stream.revealed || ticks.terms != *stream.opening.terms() {
            return Err(format!("ticks {} to {} were accepted out of order", ticks.before, ticks.index));
        }
        stream.accepted = ticks.index;
        at.accepted = stream.opening.tip(ticks.index);
        let of_these = |p: &PendingTicks| p.anchor == ticks.anchor && p.index <= ticks.index;
        while let Some(pending) = at.ticks.pop_front_if(|p| of_these(p)) {
            at.waiting -= 1;
            self.tally.accepted(pending.count as usize, pending.intended, now);
        }
        let payment = ticks.payment().ok_or("accepted ticks make no payment")?;
        self.tally.made(1);
        self.paid = self.paid.saturating_add(payment.cost().ok_or("a payment's cost does not fit")?);
        Ok((payment.payee, payment.id, payment.amount))
    }

    /// The newest word is worth all before it, so after a refusal it alone is sent again.
    fn ticks_refused(&mut self, message: &v1::TickRefused) -> Result<(), Fault> {
        if !message.retryable {
            return Err(format!("ticks were refused: {} ({})", message.message, message.reason));
        }
        let lane = self.lanes.get_mut(message.lane as usize).ok_or("ticks of a lane that is none were refused")?;
        lane.again = true;
        let pause = Duration::from_millis(u64::from(message.retry_after_ms)).max(REFUSAL_PAUSE);
        lane.rests_until = Some(Instant::now() + pause);
        Ok(())
    }

    fn reveal_again(&mut self, lane: usize) {
        let at = &mut self.lanes[lane];
        at.again = false;
        let Some(stream) = at.streams.back().filter(|stream| stream.accepted < stream.revealed) else { return };
        let Some(word) = stream.words.word(stream.revealed) else { return };
        let (index, number) = (stream.revealed, u32::try_from(lane).expect("lanes are few"));
        self.send(ToHub::Tick(wire::tick_message(self.id.asset, number, index, word)));
    }
}

// ---- being paid ----------------------------------------------------------------------------------------------------

impl Peer {
    fn take(&mut self, message: FromHub) -> Result<(), Fault> {
        match message {
            FromHub::Accepted(message) => self.accepted(&message),
            FromHub::Refused(message) => self.refused(&message),
            FromHub::TickRefused(message) => self.ticks_refused(&message),
            FromHub::StreamOpened(_) => Ok(()),
            FromHub::Credited(message) => self.credited(message),
            FromHub::Delivered(message) => self.delivered(&message),
            FromHub::Proposal(message) => self.proposed(&message),
            FromHub::Posted(message) => self.posted(&message),
            FromHub::SettlementRefused(message) => Err(format!("the close was refused: {}", message.message)),
            FromHub::Farewell(farewell) => Err(format!("the hub ended the session: {}", farewell.message)),
            FromHub::Account(_) => Ok(()),
            FromHub::Challenge(_) | FromHub::Welcome(_) => Err("a session begins only once".to_owned()),
        }
    }

    fn credited(&mut self, message: v1::Credited) -> Result<(), Fault> {
        self.window_owed += 1;
        if self.window_owed >= CREDIT_WINDOW / 4 {
            let more = std::mem::take(&mut self.window_owed);
            self.send(ToHub::Window(v1::CreditWindow { more }));
        }
        for credit in message.credits {
            let credit = wire::read_credit(credit).map_err(|e| e.to_string())?;
            let sum = Amount::checked_sum(credit.payments.iter().map(|p| p.amount));
            let continues = self.staged.credits + 1 == credit.number
                && self.staged.total.checked_add(credit.amount) == Some(credit.total)
                && sum == Some(credit.amount)
                && credit.payments.iter().all(|p| !p.amount.is_zero());
            if !continues {
                return Err(format!("credit {} does not continue credit {}", credit.number, self.staged.credits));
            }
            let digest = self.facts.domain.digest(&credit.receipt(self.id));
            let head = chain_hash(self.staged.head, digest);
            self.staged = Counted { credits: credit.number, total: credit.total, head };
        }
        let Some(voucher) = message.voucher else { return Ok(()) };
        let read = |e: wire::WireError| e.to_string();
        let cumulative = wire::read_amount("voucher.cumulative", &voucher.cumulative).map_err(read)?;
        let head = wire::read_b256("voucher.memo", &voucher.memo).map_err(read)?;
        let body = wire::hub_voucher(self.id, cumulative, voucher.credits, head);
        self.prove(self.facts.domain.digest(&body), voucher.proof.as_ref())?;
        if self.staged != (Counted { credits: voucher.credits, total: cumulative, head }) {
            return Err(format!("voucher {} does not cover the credits before it", voucher.credits));
        }
        let more = self.staged.total.saturating_sub(self.counted.total);
        self.counted = self.staged;
        self.tally.credited(more);
        if self.counted.credits - self.acked >= ACK_CREDITS {
            self.acknowledge(false);
        }
        Ok(())
    }

    /// Says what is held and backed by the hub's collateral and what was paid.
    fn acknowledge(&mut self, also_few: bool) {
        let backed = self.facts.collateral.saturating_add(self.paid) >= self.counted.total;
        let new = self.counted.credits - self.acked;
        if new == 0 || !backed || (!also_few && new < ACK_CREDITS) {
            return;
        }
        self.acked = self.counted.credits;
        let Counted { credits, head, .. } = self.counted;
        let ack = Ack { channelId: self.id.channel.0, asset: self.id.asset, credits, head };
        let ack = Signed::sign(&self.facts.domain, &self.key, ack);
        self.send(ToHub::Ack(wire::ack_message(&ack)));
    }

    /// A payee's acknowledgement: its heads must follow from the receipt that is held here.
    fn delivered(&mut self, message: &v1::Delivered) -> Result<(), Fault> {
        let payee = wire::read_channel("delivered.payee", &message.payee).map_err(|e| e.to_string())?;
        let key = self.facts.keys.get(&payee).ok_or("somebody who does not exist acknowledged")?;
        let page = wire::read_delivered(&self.facts.domain, key, message).map_err(|e| e.to_string())?;
        let ack = page.ack.body();
        let begun = self.delivery.remove(&payee).filter(|d| d.credits == ack.credits && d.head == ack.head);
        let mut delivery = match (begun, self.undelivered.get(&(payee, page.credit))) {
            (Some(begun), _) => begun,
            (None, Some(own)) => {
                let reached = chain_hash(page.head_before, *own);
                Delivery { head: ack.head, credits: ack.credits, next: page.credit + 1, reached }
            }
            (None, None) => return Ok(()),
        };
        for digest in &page.digests {
            if self.undelivered.get(&(payee, delivery.next)).is_some_and(|own| own != digest) {
                return Err(format!("credit {} of {payee} is another one than the receipt says", delivery.next));
            }
            delivery.reached = chain_hash(delivery.reached, *digest);
            delivery.next += 1;
        }
        if !page.last_page {
            self.delivery.insert(payee, delivery);
            return Ok(());
        }
        if delivery.next != delivery.credits + 1 || delivery.reached != delivery.head {
            return Err(format!("what {payee} acknowledged does not follow from the receipt {}", page.credit));
        }
        let mut later = self.undelivered.split_off(&(payee, page.credit));
        let behind = later.split_off(&(payee, delivery.credits + 1));
        self.undelivered.extend(behind);
        Ok(())
    }
}

// ---- closing -------------------------------------------------------------------------------------------------------

impl Peer {
    fn proposed(&mut self, message: &v1::SettlementProposal) -> Result<(), Fault> {
        let proposal = wire::read_proposal(self.id.channel, message).map_err(|e| e.to_string())?;
        let due = self.facts.deposit.saturating_add(self.counted.total).checked_sub(self.paid);
        let Some(closing) = self.closing.as_mut() else { return Err("a settlement nobody asked for".to_owned()) };
        if !proposal.close || Some(Amount::new(proposal.memberWithdrawn)) != due {
            return Err(format!("the hub proposes to pay out {}, due are {due:?}", proposal.memberWithdrawn));
        }
        let signed = Signed::sign(&self.facts.domain, &self.key, proposal.clone());
        let answer = wire::answer_message(proposal.asset, proposal.seq, Some(&signed));
        closing.signed = Some(proposal);
        self.send(ToHub::SettlementAnswer(answer));
        Ok(())
    }

    fn posted(&mut self, message: &v1::SettlementPosted) -> Result<(), Fault> {
        if !message.error.is_empty() {
            return Err(format!("the close was not posted: {}", message.error));
        }
        let Some(Closing { reply: Some(reply), signed: Some(signed) }) = self.closing.take() else {
            return Err("a settlement was posted that nobody signed".to_owned());
        };
        self.prove(self.facts.domain.digest(&signed), message.proof.as_ref())?;
        let _ = reply.send(Amount::new(signed.memberWithdrawn));
        Ok(())
    }
}

/// A member's voucher key of its number: the same ones at every run.
pub fn key_of(seed: &[u8; 32]) -> SecretKey {
    SecretKey::derive(Scheme::Ed25519, seed, "voucher")
}

async fn next(inbound: &mut Streaming<v1::HubMessage>) -> Result<Option<FromHub>, Fault> {
    loop {
        match inbound.message().await.map_err(|e| e.to_string())? {
            // A kind that this version does not know.
            Some(v1::HubMessage { kind: None }) => {}
            Some(v1::HubMessage { kind }) => return Ok(kind),
            None => return Ok(None),
        }
    }
}
