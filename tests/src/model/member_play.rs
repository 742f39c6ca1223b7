//! An honest member with a hub that does what it likes.
//!
//! The member is `proto::member`: it signs, counts and posts by its rules, and its journal is durable before anything
//! leaves. The hub keeps every signature that it ever saw. When the account is final, the member must have got at least
//! `MD + B - PM`: his deposits and everything that he ever counted as backed, less everything that he signed, refused
//! or not; and what he signed without a receipt never passed the bound that his signer holds.

use std::collections::BTreeMap;

use alloy_primitives::{B256, Bytes, FixedBytes};
use proto::account::{SETTLEMENT_VALIDITY_S, Status, Totals};
use proto::member::{
    Ask, Balance, Event, Limits, Member, Misbehaviour, PayError, Record, Resent, Secret, Step, Tick, VALIDITY_LONGEST_S,
};
use proto::typed::{Receipt, Settlement, Voucher, chain_hash};
use proto::wire::{self, Credit, CreditedPayment, v1};
use proto::{
    Amount, ChannelId, Frame, LaneVoucher, NATIVE, Payment, PaymentId, Proven, Scheme, SecretKey, Side, Signed,
    StreamId, StreamOpening, StreamTerms,
};

use super::cast::{CHALLENGE_PERIOD_S, DOMAIN, HUB_KEY, MEMBER_KEYS, START, account, terms};
use super::ledger::{Call, HubWord, Ledger};
use super::{Care, Loss, Sometimes};
use crate::dice::Dice;

/// Paths that a run of many plays must have taken.
pub const RARE: &[&str] = &[
    "a deposit was reorganised away",
    "a credit was counted",
    "a credit was not backed",
    "a gap voucher was kept",
    "a credit that does not add up was sent",
    "a frame was accepted",
    "bad receipts were refused",
    "a frame was refused",
    "a lane without the member's signature was claimed",
    "a refused voucher was shown as the lane's state",
    "frames were sent again in a new session",
    "the signer's bound refused a frame",
    "a settlement was signed",
    "a settlement was declined",
    "a kept settlement expired",
    "a kept settlement was posted late",
    "a kept settlement was posted while closing",
    "a kept close was posted",
    "a close left a rest",
    "the member restarted from his journal",
    "an old store was restored",
    "a restored member counted collateral again",
    "the hub closed with old vouchers",
    "a refused voucher was claimed",
    "a response was sent late",
    "a response was reorganised away",
    "the member closed",
    "an account was closed cooperatively",
    "a stream was opened",
    "an opening was refused",
    "a refused opening was shown as the lane's state",
    "ticks were accepted",
    "ticks were accepted before their opening was answered",
    "ticks were refused",
    "refused ticks were revealed again",
    "bad receipts of ticks were refused",
    "ticks out of order were refused",
    "the signer's bound refused ticks",
    "ticks were sent again in a new session",
    "ticks were proven later",
    "a lane of ticks was folded",
    "a fold was refused",
    "a frame continued a lane of ticks",
    "ticks were claimed",
    "refused ticks were claimed",
    "ticks that an old store forgot were shown",
];

/// Most that the member signs without a receipt.
const MAX_UNRECEIPTED: Amount = Amount::new(120);
/// How long before a deadline nothing is left to chance, seconds.
const MARGIN_S: u64 = 60;

/// What the hub has: everything that it ever saw or said.
#[derive(Debug, Default)]
struct Liar {
    inbox: Vec<Resent>,
    /// Every state of a lane that a signature or a word of the member proves.
    shown: Vec<LaneVoucher>,
    refused: Vec<LaneVoucher>,
    openings: Vec<StreamOpening>,
    /// The index of each chain up to which the hub has receipts, by anchor.
    accepted: BTreeMap<B256, u32>,
    /// What `GetPayment` would answer, by anchor and index.
    proofs: BTreeMap<(B256, u32), v1::GetPaymentResponse>,
    credits: Vec<(Credit, Proven<Voucher>)>,
    total: u128,
    head: B256,
    payee_credits: u64,
    payee_total: u128,
    agreed: Vec<(Signed<Settlement>, Proven<Settlement>)>,
    seq: u64,
}

/// A play.
struct Play {
    care: Care,
    dice: Dice,
    ledger: Ledger,
    member: Member,
    /// The member's durable store.
    journal: Vec<Record>,
    hub: Liar,
    ask: Option<Ask>,
    /// The largest cumulative amount that the member ever signed, by lane.
    signed: BTreeMap<u32, Amount>,
    /// Everything that the member ever counted as backed.
    backed: Amount,
    /// Whether an old store was restored: then the bound on what is unreceipted counts from there.
    restored: bool,
    ids: u64,
    seen: Sometimes,
}

/// Plays one play; an error where the member lost money.
pub fn play(seed: u64, care: Care) -> Result<Sometimes, Loss> {
    let mut play = Play::new(seed, care);
    let moves = 30 + play.dice.below(60);
    for _ in 0..moves {
        play.make_move();
        play.reckon();
    }
    play.wind_down();
    play.judge()?;
    Ok(play.seen)
}

fn new_member() -> Member {
    let limits = Limits { max_unreceipted: MAX_UNRECEIPTED, max_undelivered: Amount::MAX };
    Member::new(*DOMAIN, MEMBER_KEYS[0].clone(), terms(0), limits).expect("his own terms")
}

fn payee() -> ChannelId {
    account(1).channel
}

impl Play {
    fn new(seed: u64, care: Care) -> Play {
        let mut dice = Dice::new(seed);
        let confirmations = dice.below(4);
        let ledger = Ledger::new(vec![account(0)], CHALLENGE_PERIOD_S, confirmations, START);
        let mut play = Play {
            care,
            dice,
            ledger,
            member: new_member(),
            journal: Vec::new(),
            hub: Liar::default(),
            ask: None,
            signed: BTreeMap::new(),
            backed: Amount::ZERO,
            restored: false,
            ids: 0,
            seen: Sometimes::default(),
        };
        let pinned = play.member.pin(payee(), terms(1)).expect("good terms");
        play.write(pinned);
        play.deposit(Side::Member);
        play.deposit(Side::Hub);
        for _ in 0..=confirmations {
            play.ledger.mine(12, |_| {});
        }
        play.sync();
        play
    }

    fn make_move(&mut self) {
        match self.dice.below(35) {
            26 | 27 => self.open_stream(),
            28..=31 => self.reveal(),
            32 => self.fold(),
            33 | 34 => self.answer(),
            0..=4 => self.pay(),
            5..=8 => self.answer(),
            9..=12 => self.credit(),
            13 | 14 => self.propose(),
            15 => self.post(),
            16 => self.ask(),
            17 => self.new_session(),
            18 => {
                let side = if self.dice.chance(50) { Side::Member } else { Side::Hub };
                self.deposit(side);
            }
            19 => self.reorganise(),
            20 => self.restart(),
            _ => self.block(),
        }
        if self.dice.chance(1) {
            self.ledger.send(Call::StartClose { account: 0 });
        }
        if self.dice.chance(1) {
            self.restore();
        }
    }

    /// A step's records are durable before anything of it leaves.
    fn write(&mut self, step: Step) -> Vec<Event> {
        self.journal.extend(step.records);
        step.events
    }

    fn heard(&mut self, result: Result<Step, Misbehaviour>) -> Vec<Event> {
        result.map(|step| self.write(step)).unwrap_or_default()
    }

    fn balance(&self) -> Balance {
        self.member.balance(NATIVE).expect("he has an account")
    }

    // ---- the member ----

    fn pay(&mut self) {
        self.ids += 1;
        let payment = Payment {
            id: PaymentId(FixedBytes::left_padding_from(&self.ids.to_be_bytes())),
            payee: if self.dice.chance(20) { ChannelId::HUB } else { payee() },
            amount: Amount::new(1 + self.dice.number(60)),
            fee: Amount::new(self.dice.number(3)),
            note: Bytes::new(),
        };
        let lane = u32::try_from(self.dice.below(3)).expect("small");
        let result = self.member.sign_frame(NATIVE, lane, vec![payment]);
        let exposed = matches!(result, Err(PayError::Exposure { .. }));
        self.seen.note_if("the signer's bound refused a frame", exposed);
        if let Ok((tag, frame)) = result {
            self.journal.push(Record::Signed(frame.clone()));
            let ticks = self.member.stream(NATIVE, lane).is_some_and(|stream| stream.accepted > 0);
            self.seen.note_if("a frame continued a lane of ticks", ticks);
            self.show(LaneVoucher::Plain(frame.voucher.clone()));
            self.hub.inbox.push(Resent::Frame(tag, frame));
        }
    }

    /// The member gave a signature or a word away: from now on the hub can claim it.
    fn show(&mut self, voucher: LaneVoucher) {
        let most = self.signed.entry(voucher.lane()).or_default();
        *most = (*most).max(voucher.value());
        if !self.hub.shown.contains(&voucher) {
            self.hub.shown.push(voucher);
        }
    }

    fn open_stream(&mut self) {
        self.ids += 1;
        let most = if self.dice.chance(15) { 40 } else { 6 };
        let terms = StreamTerms {
            stream: StreamId(FixedBytes::left_padding_from(&self.ids.to_be_bytes())),
            payee: if self.dice.chance(20) { ChannelId::HUB } else { payee() },
            amount: Amount::new(1 + self.dice.number(most)),
            fee: Amount::new(self.dice.number(2)),
        };
        let lane = u32::try_from(self.dice.below(3)).expect("small");
        let ticks = u32::try_from(1 + self.dice.below(20)).expect("small");
        let secret = Secret::new(B256::left_padding_from(&self.ids.to_be_bytes()));
        if let Ok((tag, opening, step)) = self.member.open_stream(NATIVE, lane, terms, ticks, secret) {
            self.write(step);
            self.hub.openings.push(opening.clone());
            self.show(LaneVoucher::opened(opening.clone()));
            self.hub.inbox.push(Resent::Opening(tag, opening));
        }
    }

    fn reveal(&mut self) {
        let open: Vec<_> = (0..3).filter_map(|lane| Some((lane, self.member.stream(NATIVE, lane)?))).collect();
        let Some((lane, stream)) = self.dice.pick(&open).copied() else { return };
        let refused = !stream.waits && stream.revealed > stream.accepted;
        let again = refused && self.dice.chance(50);
        let ahead = if again { 0 } else { 1 + self.dice.below(4) };
        let index = stream.revealed + u32::try_from(ahead).expect("small");
        let result = self.member.reveal(NATIVE, lane, index);
        let exposed = matches!(result, Err(PayError::Exposure { .. }));
        self.seen.note_if("the signer's bound refused ticks", exposed);
        if let Ok((tick, step)) = result {
            self.write(step);
            self.seen.note_if("refused ticks were revealed again", again && index > 0);
            let voucher = self.ticked(&tick).expect("a word of an opening that the hub has");
            self.show(voucher);
            self.hub.inbox.push(Resent::Tick(tick));
        }
    }

    fn fold(&mut self) {
        let lane = u32::try_from(self.dice.below(3)).expect("small");
        if let Ok(Some((tag, fold, step))) = self.member.fold(NATIVE, lane) {
            self.write(step);
            self.show(LaneVoucher::Plain(fold.clone()));
            self.hub.inbox.push(Resent::Fold(tag, fold));
        }
    }

    /// What a word makes of the opening that it is of.
    fn ticked(&self, tick: &Tick) -> Option<LaneVoucher> {
        self.hub.openings.iter().rev().filter(|opening| opening.lane() == tick.lane).find_map(|opening| {
            let revealed = opening.chain().advance(tick.index, tick.word).ok()?;
            let mut voucher = LaneVoucher::opened(opening.clone());
            voucher.ticks_mut()?.advance(&revealed);
            Some(voucher)
        })
    }

    /// The member asks for ticks that the hub accepted in an earlier session, back to what he has receipts for, and takes
    /// them in their order.
    fn prove(&mut self, lane: u32, index: u32) {
        let Some(stream) = self.member.stream(NATIVE, lane) else { return };
        let opening = self.hub.openings.iter().rev().find(|o| o.lane() == lane && *o.terms() == stream.terms);
        let Some(anchor) = opening.map(|opening| opening.voucher().body().anchor) else { return };
        let (mut answers, mut at) = (Vec::new(), index);
        while at > stream.accepted {
            let Some(answer) = self.hub.proofs.get(&(anchor, at)).cloned() else { return };
            let Some(before) = self.member.ticks_proven(NATIVE, lane, at, &answer) else { return };
            answers.push((at, answer));
            at = before;
        }
        for (index, answer) in answers.into_iter().rev() {
            let result = self.member.prove_ticks(NATIVE, lane, index, &answer);
            let proven = !self.heard(result).is_empty();
            self.seen.note_if("ticks were proven later", proven);
        }
    }

    /// What a client does about events that ask for something.
    fn follow_up(&mut self, events: &[Event]) {
        for event in events {
            if let Event::TicksUnproven { lane, index, .. } = event
                && self.dice.chance(80)
            {
                self.prove(*lane, *index);
            }
        }
    }

    fn ask(&mut self) {
        self.ask = match self.dice.below(4) {
            0 => None,
            1 | 2 => Some(Ask::Close),
            _ => Some(Ask::Withdraw(Amount::new(1 + self.dice.number(100)))),
        };
    }

    fn new_session(&mut self) {
        let login = self.member.login(B256::ZERO, B256::ZERO, u64::MAX);
        let hello = self.member.hello(&login, "");
        self.hub.inbox.clear();
        let welcome = self.welcome();
        let events = self.member.welcome(&welcome).map(|step| self.write(step)).unwrap_or_default();
        self.note_faults(&events);
        self.hub.inbox = self.member.resend();
        let resent = |kind: fn(&Resent) -> bool| self.hub.inbox.iter().any(kind);
        let (frames, ticks) = (resent(|r| matches!(r, Resent::Frame(..))), resent(|r| matches!(r, Resent::Tick(_))));
        self.seen.note_if("frames were sent again in a new session", frames);
        self.seen.note_if("ticks were sent again in a new session", ticks);
        self.follow_up(&events);
        if self.dice.chance(60) {
            let from = hello.accounts.first().map(|a| a.credits).unwrap_or_default();
            let missing = self.hub.credits.iter().filter(|(c, _)| c.number > from);
            let credits: Vec<Credit> = missing.map(|(credit, _)| credit.clone()).collect();
            let voucher = self.hub.credits.last().map(|(_, voucher)| voucher.clone());
            self.tell(credits, voucher);
        }
    }

    /// The process ends and starts again: the journal is all there is.
    fn restart(&mut self) {
        self.sync();
        let trusted = self.member.trusts_itself();
        let before = self.balance();
        self.rebuild();
        if !trusted {
            self.member.distrust();
        }
        self.member.head(self.ledger.confirmed().1);
        if trusted {
            assert_eq!(self.balance(), before, "a restart changes nothing that is counted");
        }
        self.seen.note("the member restarted from his journal");
        self.new_session();
    }

    /// The member gets an old copy of his store back; its counter of settlements says so.
    fn restore(&mut self) {
        let keep = self.dice.below(self.journal.len());
        let has_account = |r: &Record| matches!(r, Record::Ledger { .. });
        if !self.journal[..keep].iter().any(has_account) {
            return;
        }
        self.journal.truncate(keep);
        self.rebuild();
        self.member.distrust();
        self.restored = true;
        self.backed = Amount::ZERO;
        self.ask = None;
        self.seen.note("an old store was restored");
        self.sync();
        self.new_session();
    }

    fn rebuild(&mut self) {
        self.member = new_member();
        let journal = std::mem::take(&mut self.journal);
        journal.iter().for_each(|record| self.member.apply(record));
        self.journal = journal;
    }

    /// What the member counts as his own, and the bound that he holds.
    fn reckon(&mut self) {
        let balance = self.balance();
        self.backed = self.backed.max(balance.received.saturating_sub(balance.unbacked));
        self.seen.note_if("a credit was not backed", !balance.unbacked.is_zero());
        let again = self.restored && self.member.trusts_itself() && !balance.received.is_zero();
        self.seen.note_if("a restored member counted collateral again", again && balance.unbacked.is_zero());
        if !self.restored {
            assert!(balance.unreceipted <= MAX_UNRECEIPTED, "{} is unreceipted", balance.unreceipted);
        }
    }

    // ---- the hub ----

    fn answer(&mut self) {
        if self.hub.inbox.is_empty() {
            return;
        }
        let at = if self.dice.chance(90) { 0 } else { self.dice.below(self.hub.inbox.len()) };
        let message = self.hub.inbox.remove(at);
        match (self.dice.below(10), message) {
            (0..=5, Resent::Frame(tag, frame)) => self.accept(tag, &frame),
            (0..=5, Resent::Opening(tag, _)) => self.accept_opening(tag),
            (0..=5, Resent::Fold(tag, _)) => {
                self.accept_opening(tag);
                self.seen.note("a lane of ticks was folded");
            }
            (0..=6, Resent::Tick(tick)) => self.accept_ticks(&tick),
            (6..=8, Resent::Frame(tag, frame)) => {
                self.refuse(tag, frame.lane());
                self.hub.refused.push(LaneVoucher::Plain(frame.voucher));
            }
            (6..=8, Resent::Opening(tag, opening)) => {
                self.refuse(tag, opening.lane());
                self.hub.refused.push(LaneVoucher::opened(opening));
            }
            (6..=8, Resent::Fold(tag, fold)) => {
                self.refuse(tag, fold.body().lane);
                self.seen.note("a fold was refused");
                self.hub.refused.push(LaneVoucher::Plain(fold));
            }
            (7 | 8, Resent::Tick(tick)) => self.refuse_ticks(&tick),
            _ => {}
        }
    }

    fn accept_opening(&mut self, tag: u64) {
        let result = self.member.opened(&v1::StreamOpened { tag, asset: wire::bytes_of(NATIVE) });
        let events = self.heard(result);
        let opened = events.iter().any(|e| matches!(e, Event::Opened { .. }));
        self.seen.note_if("a stream was opened", opened);
    }

    /// Accepts ticks; tells of it at once, later or never, and not always the truth.
    fn accept_ticks(&mut self, tick: &Tick) {
        let Some(voucher) = self.ticked(tick) else { return };
        let Some(ticks) = voucher.ticks() else { return };
        let (anchor, terms) = (ticks.anchor(), *ticks.opening().terms());
        let before = self.hub.accepted.get(&anchor).copied().unwrap_or_default();
        if before >= tick.index {
            return;
        }
        self.hub.accepted.insert(anchor, tick.index);
        let lie = self.dice.below(24);
        let (before, index) = match lie {
            1 => (before, tick.index + 1),
            2 => (before.saturating_sub(1), tick.index),
            3 if tick.index > before + 1 => (before + 1, tick.index),
            _ => (before, tick.index),
        };
        let amount = terms.amount.get() * u128::from(index - before);
        let id = terms.stream.payment(index);
        let less = u128::from(lie == 0);
        let for_hub = terms.payee == ChannelId::HUB;
        if !for_hub {
            self.hub.payee_credits += 1;
            self.hub.payee_total += amount;
        }
        let body = Receipt {
            channelId: terms.payee.0,
            asset: NATIVE,
            credit: if for_hub { 0 } else { self.hub.payee_credits },
            amount: amount - less,
            total: if for_hub { 0 } else { self.hub.payee_total },
            payments: proto::frame::payments_hash(&[(id, Amount::new(amount))]),
        };
        let receipt = wire::receipt_message(&Proven::sign(&DOMAIN, &HUB_KEY, body));
        let (payee, fee) = (terms.payee, Amount::ZERO);
        let payment = Payment { id, payee, amount: Amount::new(amount), fee, note: Bytes::new() };
        let opening = CreditedPayment { id, amount: payment.amount, note: Bytes::new() };
        let answer = v1::GetPaymentResponse {
            known: true,
            payment: Some(wire::payment_message(&payment)),
            receipt: Some(receipt.clone()),
            opening: vec![wire::credited_payment_message(&opening)],
            ..v1::GetPaymentResponse::default()
        };
        self.hub.proofs.insert((anchor, index), answer);
        let mut told = v1::TicksAccepted {
            lane: tick.lane,
            before,
            index,
            anchor: wire::bytes_of(anchor),
            terms: wire::opening_message(0, ticks.opening()).terms,
        };
        match lie {
            4 => told.terms.iter_mut().for_each(|t| t.amount = wire::amount_bytes(Amount::new(1))),
            5 => told.anchor = wire::bytes_of(B256::repeat_byte(9)),
            6..=8 => return,
            _ => {}
        }
        let opened = self.member.stream(NATIVE, tick.lane).is_some_and(|stream| stream.opened);
        let message = v1::Accepted {
            flush: 1,
            asset: wire::bytes_of(NATIVE),
            tags: vec![],
            receipts: vec![receipt],
            ticks: vec![told],
        };
        let result = self.member.accepted(&message);
        self.seen
            .note_if("bad receipts of ticks were refused", matches!(result, Err(Misbehaviour::BadReceipts { .. })));
        self.seen.note_if("ticks out of order were refused", matches!(result, Err(Misbehaviour::Order { .. })));
        let events = self.heard(result);
        let paid = events.iter().any(|e| matches!(e, Event::Paid { .. }));
        self.seen.note_if("ticks were accepted", paid);
        self.seen.note_if("ticks were accepted before their opening was answered", paid && !opened);
        self.follow_up(&events);
    }

    fn refuse_ticks(&mut self, tick: &Tick) {
        let state = self.lane_view(tick.lane);
        let (asset, lane, index) = (wire::bytes_of(NATIVE), tick.lane, tick.index);
        let message = v1::TickRefused { asset, lane, index, reason: "NO".into(), state, ..v1::TickRefused::default() };
        let result = self.member.ticks_refused(&message);
        let events = self.heard(result);
        let refused = events.iter().any(|e| matches!(e, Event::TicksRefused { .. }));
        self.seen.note_if("ticks were refused", refused);
        let voucher = self.ticked(tick);
        self.hub.refused.extend(voucher);
        self.note_faults(&events);
    }

    fn accept(&mut self, tag: u64, frame: &Frame) {
        let payment = &frame.payments[0];
        let for_hub = payment.payee == ChannelId::HUB;
        if !for_hub {
            self.hub.payee_credits += 1;
            self.hub.payee_total += payment.amount.get();
        }
        let lie = u128::from(self.dice.chance(10));
        let body = Receipt {
            channelId: payment.payee.0,
            asset: NATIVE,
            credit: if for_hub { 0 } else { self.hub.payee_credits },
            amount: payment.amount.get() + lie,
            total: if for_hub { 0 } else { self.hub.payee_total },
            payments: proto::frame::payments_hash(&[(payment.id, payment.amount)]),
        };
        let receipt = wire::receipt_message(&Proven::sign(&DOMAIN, &HUB_KEY, body));
        let message = v1::Accepted {
            flush: 1,
            asset: wire::bytes_of(NATIVE),
            tags: vec![tag],
            receipts: vec![receipt],
            ticks: vec![],
        };
        let result = self.member.accepted(&message);
        self.seen.note_if("bad receipts were refused", matches!(result, Err(Misbehaviour::BadReceipts { .. })));
        let events = self.heard(result);
        self.seen.note_if("a frame was accepted", events.iter().any(|e| matches!(e, Event::Paid { .. })));
    }

    fn refuse(&mut self, tag: u64, lane: u32) {
        let lane = self.lane_view(lane);
        let message = v1::Refused { tag, reason: "NO".into(), retryable: true, lane, ..v1::Refused::default() };
        let result = self.member.refused(&message);
        let events = self.heard(result);
        self.seen.note_if("a frame was refused", events.iter().any(|e| matches!(e, Event::NotPaid { .. })));
        let closed = events.iter().any(|e| matches!(e, Event::NotOpened { .. }));
        self.seen.note_if("an opening was refused", closed);
        self.note_faults(&events);
    }

    fn note_faults(&mut self, events: &[Event]) {
        for event in events {
            if let Event::StoreWasOld { lane, .. } = event {
                let ticks = self.member.evidence(NATIVE).into_iter().flat_map(|e| e.lanes);
                let ticks = ticks.filter(|v| v.lane() == *lane).any(|v| v.ticks().is_some_and(|t| t.index() > 0));
                self.seen.note_if("ticks that an old store forgot were shown", ticks);
            }
            let Event::Misbehaved(fault) = event else { continue };
            let unsigned = matches!(fault, Misbehaviour::LaneUnsigned { .. });
            self.seen.note_if("a lane without the member's signature was claimed", unsigned);
            let Misbehaviour::KeptRefused { lane, cumulative } = fault else { continue };
            self.seen.note("a refused voucher was shown as the lane's state");
            let opening = |v: &LaneVoucher| v.ticks().is_some() && v.lane() == *lane && v.value() == *cumulative;
            let opening = self.hub.refused.iter().any(opening);
            self.seen.note_if("a refused opening was shown as the lane's state", opening);
        }
    }

    /// The truth, something old, something refused, a forgery or nothing.
    fn lane_view(&mut self, lane: u32) -> Option<v1::LaneState> {
        let of_lane: Vec<LaneVoucher> = self.hub.shown.iter().filter(|v| v.lane() == lane).cloned().collect();
        match self.dice.below(6) {
            0 => None,
            1 => match of_lane.last()? {
                LaneVoucher::Plain(voucher) => {
                    let stranger = SecretKey::derive(Scheme::Ed25519, &[77; 32], "play");
                    let mut body = voucher.body().clone();
                    body.cumulative += 1000;
                    Some(wire::lane_message(&LaneVoucher::Plain(Signed::sign(&DOMAIN, &stranger, body))))
                }
                ticks => {
                    let mut message = wire::lane_message(ticks);
                    message.ticks.iter_mut().for_each(|ticks| ticks.index += 1);
                    Some(message)
                }
            },
            2 | 3 => self.dice.pick(&of_lane).map(wire::lane_message),
            _ => of_lane.last().map(wire::lane_message),
        }
    }

    fn welcome(&mut self) -> v1::Welcome {
        let lanes: Vec<v1::LaneState> = (0..3).filter_map(|lane| self.lane_view(lane)).collect();
        let hub_voucher = self.dice.pick(&self.hub.credits).map(|(_, v)| wire::hub_voucher_message(v));
        let state =
            v1::AccountState { asset: wire::bytes_of(NATIVE), lanes, hub_voucher, ..v1::AccountState::default() };
        v1::Welcome { accounts: vec![state], ..v1::Welcome::default() }
    }

    /// Owes the member something more, and tells him or not.
    fn credit(&mut self) {
        self.ids += 1;
        let most = if self.dice.chance(15) { 500 } else { 60 };
        let amount = Amount::new(1 + self.dice.number(most));
        let id = PaymentId(FixedBytes::left_padding_from(&self.ids.to_be_bytes()));
        let number = u64::try_from(self.hub.credits.len()).expect("few") + 1;
        self.hub.total += amount.get();
        let total = Amount::new(self.hub.total);
        let payments = vec![CreditedPayment { id, amount, note: Bytes::new() }];
        let credit = Credit { number, payer: payee(), amount, total, payments };
        self.hub.head = chain_hash(self.hub.head, DOMAIN.digest(&credit.receipt(account(0))));
        let body = wire::hub_voucher(account(0), total, number, self.hub.head);
        let voucher = Proven::sign(&DOMAIN, &HUB_KEY, body);
        self.hub.credits.push((credit.clone(), voucher.clone()));
        match self.dice.below(10) {
            0 => {}
            1 => self.tell(vec![], Some(voucher)),
            2 => {
                self.tell(vec![credit], None);
                self.tell(vec![], Some(voucher));
            }
            3 => {
                let inflated = Credit { amount: Amount::new(amount.get() + 1), ..credit };
                self.seen.note("a credit that does not add up was sent");
                self.tell(vec![inflated], Some(voucher));
            }
            _ => self.tell(vec![credit], Some(voucher)),
        }
    }

    fn tell(&mut self, credits: Vec<Credit>, voucher: Option<Proven<Voucher>>) {
        let message = v1::Credited {
            asset: wire::bytes_of(NATIVE),
            credits: credits.iter().map(wire::credit_message).collect(),
            voucher: voucher.as_ref().map(wire::hub_voucher_message),
        };
        let result = self.member.credited(message);
        let kept = result.as_ref().is_ok_and(|s| s.records.iter().any(|r| matches!(r, Record::HubVoucher(_))));
        let events = self.heard(result);
        let gap = events.iter().any(|e| matches!(e, Event::Misbehaved(Misbehaviour::Gap { .. })));
        self.seen.note_if("a gap voucher was kept", gap && kept);
        self.seen.note_if("a credit was counted", events.iter().any(|e| matches!(e, Event::Received { .. })));
    }

    /// Proposes what is fair, or what would be nice; signs its own half and keeps both.
    fn propose(&mut self) {
        let balance = self.balance();
        let seen = *self.ledger.seen(0);
        let kept = self.member.agreed(NATIVE).iter().map(|k| k.signed.body().clone());
        let (member_before, hub_before) = kept
            .fold((seen.member_withdrawn.get(), seen.hub_withdrawn.get()), |(m, h), s| {
                (m.max(s.memberWithdrawn), h.max(s.hubWithdrawn))
            });
        let net = |plus: [Amount; 2], minus: Amount| (plus[0].get() + plus[1].get()).saturating_sub(minus.get());
        let ledger = balance.ledger;
        let member_all = net([ledger.member_deposit, balance.received], balance.paid);
        let hub_all = net([ledger.hub_deposit, balance.paid], balance.received);
        let close = self.dice.chance(if self.ask == Some(Ask::Close) { 90 } else { 10 });
        let asked = match self.ask {
            Some(Ask::Withdraw(more)) => member_before + more.get(),
            _ => member_before,
        };
        let fair = self.dice.chance(70);
        let (member, hub) = match (close, fair) {
            (true, true) => (member_all, hub_all),
            (true, false) => (member_all, hub_all + self.dice.number(20)),
            (false, true) => (asked, hub_before + self.dice.number(hub_all.saturating_sub(hub_before) + 1)),
            (false, false) => (asked.saturating_sub(self.dice.number(5)), hub_before + self.dice.number(500)),
        };
        self.hub.seq += 1;
        let wait = if self.dice.chance(90) { SETTLEMENT_VALIDITY_S } else { SETTLEMENT_VALIDITY_S + 1 };
        let proposal = Settlement {
            channelId: account(0).channel.0,
            asset: NATIVE,
            seq: if self.dice.chance(90) { self.hub.seq } else { self.hub.seq.saturating_sub(1) },
            memberWithdrawn: member,
            hubWithdrawn: hub,
            validUntil: self.ledger.confirmed().1 + wait,
            close,
        };
        match self.member.agree(proposal.clone(), self.ask) {
            Err(_) => self.seen.note("a settlement was declined"),
            Ok((step, signed)) => {
                self.write(step);
                self.seen.note("a settlement was signed");
                self.ask = None;
                let half = Proven::sign(&DOMAIN, &HUB_KEY, proposal);
                if self.dice.chance(50) {
                    let message = v1::SettlementPosted {
                        asset: wire::bytes_of(NATIVE),
                        seq: half.body().seq,
                        proof: Some(wire::proof_message(half.proof())),
                        ..v1::SettlementPosted::default()
                    };
                    let result = self.member.countersigned(&message);
                    self.heard(result);
                }
                self.hub.agreed.push((signed, half));
            }
        }
    }

    /// Posts a settlement that it kept, or starts a close, or shows vouchers of the member during one.
    fn post(&mut self) {
        let closing = self.ledger.seen(0).status == Status::Closing;
        let call = match self.dice.below(4) {
            0 if !closing && self.dice.chance(30) => {
                self.seen.note("the hub closed with old vouchers");
                Some(Call::StartClose { account: 0 })
            }
            1 if closing => self.claim(),
            _ => {
                let pair = self.dice.pick(&self.hub.agreed).cloned();
                pair.map(|(member, hub)| Call::Settle { account: 0, member: Box::new(member), hub: Box::new(hub) })
            }
        };
        let Some(call) = call else { return };
        if let Call::Settle { member, .. } = &call {
            let good = self.ledger.check(&call).is_ok();
            self.note_settle(member.body(), good);
        }
        self.ledger.send(call);
    }

    fn note_settle(&mut self, settlement: &Settlement, good: bool) {
        let seen = self.ledger.seen(0);
        let closing = seen.status == Status::Closing;
        let late = settlement.validUntil.saturating_sub(self.ledger.time()) < SETTLEMENT_VALIDITY_S / 2;
        let deposits = seen.member_deposit.saturating_add(seen.hub_deposit);
        let rest = settlement.memberWithdrawn + settlement.hubWithdrawn < deposits.get();
        let expired = self.ledger.confirmed().1 > settlement.validUntil;
        self.seen.note_if("a kept settlement was posted late", good && late);
        self.seen.note_if("a kept settlement was posted while closing", good && closing);
        self.seen.note_if("a kept close was posted", good && settlement.close);
        self.seen.note_if("a close left a rest", good && settlement.close && rest);
        self.seen.note_if("a kept settlement expired", expired);
    }

    /// The most that the hub can make of what it saw, or something smaller.
    fn claim(&mut self) -> Option<Call> {
        let mut lanes: BTreeMap<u32, LaneVoucher> = BTreeMap::new();
        let all = self.dice.chance(70);
        for voucher in &self.hub.shown {
            let larger = lanes.get(&voucher.lane()).is_none_or(|v| v.value() < voucher.value());
            if larger && (all || self.dice.chance(50)) {
                lanes.insert(voucher.lane(), voucher.clone());
            }
        }
        let refused = |v: &LaneVoucher| self.hub.refused.contains(v);
        let ticks = |v: &LaneVoucher| v.ticks().is_some_and(|ticks| ticks.index() > 0);
        let (claimed, ticked) = (lanes.values().any(refused), lanes.values().any(ticks));
        let refused_ticks = lanes.values().any(|v| refused(v) && ticks(v));
        self.seen.note_if("a refused voucher was claimed", claimed);
        self.seen.note_if("ticks were claimed", ticked);
        self.seen.note_if("refused ticks were claimed", refused_ticks);
        let old = self.dice.pick(&self.hub.credits).map(|(_, v)| Box::new(HubWord::Voucher(v.clone())));
        (!lanes.is_empty()).then(|| Call::Respond { account: 0, lanes: lanes.into_values().collect(), hub: old })
    }

    // ---- the ledger ----

    fn deposit(&mut self, side: Side) {
        let amount = Amount::new(self.dice.number(400));
        self.ledger.send(Call::Deposit { account: 0, side, amount });
    }

    fn reorganise(&mut self) {
        if self.margin() {
            return;
        }
        let depth = 1 + self.dice.below(3);
        for call in self.ledger.reorganise(depth) {
            match &call {
                Call::Deposit { .. } => self.seen.note("a deposit was reorganised away"),
                Call::Respond { .. } => self.seen.note("a response was reorganised away"),
                Call::Settle { .. } | Call::StartClose { .. } | Call::Finalize { .. } => {}
            }
            if self.dice.chance(50) {
                self.ledger.send(call);
            }
        }
        self.follow();
    }

    fn margin(&self) -> bool {
        let seen = self.ledger.seen(0);
        seen.status == Status::Closing && self.ledger.time().saturating_add(MARGIN_S) >= seen.deadline
    }

    fn block(&mut self) {
        let mut seconds = match self.dice.below(8) {
            0 => SETTLEMENT_VALIDITY_S + 1,
            1 => SETTLEMENT_VALIDITY_S / 2,
            2 => CHALLENGE_PERIOD_S - MARGIN_S * 2,
            3 => VALIDITY_LONGEST_S,
            _ => 12,
        };
        if !self.may_end() {
            let left = self.ledger.seen(0).deadline.saturating_sub(self.ledger.time());
            seconds = seconds.min(left.saturating_sub(MARGIN_S).max(1));
        }
        let dice = &mut self.dice;
        self.ledger.mine(seconds, |calls| dice.shuffle(calls));
        self.follow();
    }

    /// Whether the deadline may pass: what the member counts is proven and confirmed, which the length of the challenge
    /// period guarantees to whoever answers at once.
    fn may_end(&self) -> bool {
        let proven = self.ledger.settled(0).hub_paid >= self.balance().received;
        let done = self.care == Care::IgnoresCloses || proven;
        self.ledger.seen(0).status != Status::Closing || done
    }

    /// The member's follower may lag, but not while a close runs: his tower watches.
    fn follow(&mut self) {
        if self.ledger.seen(0).status != Status::Open || self.dice.chance(70) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        let step = self.member.ledger(NATIVE, self.view());
        self.write(step);
        self.member.head(self.ledger.confirmed().1);
        self.answer_close();
    }

    fn view(&self) -> Totals {
        let (view, seen) = (self.ledger.view(0), self.ledger.seen(0));
        match self.care {
            Care::Full | Care::IgnoresCloses => view,
            Care::CountsUnconfirmedDeposits => {
                Totals { member_deposit: seen.member_deposit, hub_deposit: seen.hub_deposit, ..view }
            }
            Care::ForgetsSettlements => Totals { seq_confirmed: u64::MAX, ..view },
        }
    }

    /// Whoever sees a close posts at once everything that he holds above what is posted, whatever the nets look like.
    fn answer_close(&mut self) {
        let seen = *self.ledger.seen(0);
        if seen.status != Status::Closing {
            return;
        }
        if self.ledger.time() >= seen.deadline {
            self.ledger.send(Call::Finalize { account: 0 });
            return;
        }
        if self.care == Care::IgnoresCloses {
            return;
        }
        let evidence = self.member.evidence(NATIVE).expect("he has an account");
        let held = evidence.hub.as_ref().map(|v| Amount::new(v.body().cumulative)).unwrap_or_default();
        let paid = Amount::checked_sum(evidence.lanes.iter().map(LaneVoucher::value));
        if held > seen.hub_paid || paid > Some(seen.member_paid) {
            let late = self.ledger.time().saturating_add(CHALLENGE_PERIOD_S / 2) > seen.deadline;
            self.seen.note_if("a response was sent late", late);
            let hub = evidence.hub.map(|v| Box::new(HubWord::Voucher(v)));
            self.ledger.send(Call::Respond { account: 0, lanes: evidence.lanes, hub });
        }
    }

    // ---- the end ----

    fn wind_down(&mut self) {
        for _ in 0..400 {
            if self.ledger.seen(0).status == Status::Open && self.dice.chance(30) {
                self.seen.note("the member closed");
                self.ledger.send(Call::StartClose { account: 0 });
            }
            match self.dice.below(4) {
                0 | 1 => self.post(),
                2 if self.dice.chance(30) => self.credit(),
                _ => {}
            }
            self.block();
            self.reckon();
            if self.ledger.settled(0).status == Status::Final {
                return;
            }
        }
        panic!("the account never became final: {:?}", self.ledger.seen(0));
    }

    fn judge(&mut self) -> Result<(), Loss> {
        let end = *self.ledger.seen(0);
        let signed = Amount::checked_sum(self.signed.values().copied()).expect("small");
        let got = end.member_withdrawn.get() + signed.get();
        let due = end.member_deposit.get() + self.backed.get();
        if got < due {
            let why = format!("{} were counted as backed, {signed} signed; the account ended as {end:?}", self.backed);
            return Err(Loss { loser: "the member", lost: due - got, why });
        }
        self.seen.note_if("an account was closed cooperatively", end.deadline == 0);
        Ok(())
    }
}
