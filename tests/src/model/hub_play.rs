//! An honest hub among members who do what they like.
//!
//! The hub is `proto::books`: it answers by its rules, makes its records durable before anything leaves, posts what it
//! accepted when it sees a close, and crashes now and then. The two members share their secrets. When both accounts are
//! final, the hub must have got from each at least what its books say: `HW >= HD + PM - PH`.

use std::collections::BTreeMap;

use alloy_primitives::{B256, Bytes, FixedBytes};
use proto::account::{SETTLEMENT_VALIDITY_S, Status, Totals};
use proto::books::{
    Ask, AssetPolicy, Books, Entry, FlushRecord, KnownPayment, LedgerUpdate, Paid, PaymentIndex, Policy, Refusal,
    SessionId, Ticked,
};
use proto::stream::{Words, fold_voucher};
use proto::typed::{Receipt, Settlement, Voucher};
use proto::{
    Amount, ChannelId, Frame, LaneTip, LaneVoucher, NATIVE, Payment, PaymentId, Proven, Scheme, Side, Signed, StreamId,
    StreamOpening, StreamTerms,
};

use super::cast::{CHALLENGE_PERIOD_S, DOMAIN, HUB, HUB_KEY, MEMBER_KEYS, START, account, terms};
use super::ledger::{Call, HubWord, Ledger};
use super::{Care, Loss, Sometimes};
use crate::dice::Dice;

/// Paths that a run of many plays must have taken.
pub const RARE: &[&str] = &[
    "a deposit was reorganised away",
    "a frame of an old session was refused",
    "a frame was answered again",
    "a payer wanted to spend what a kept settlement withdraws",
    "a payee's backing was reserved by others",
    "a close froze an account",
    "a kept settlement expired",
    "a kept settlement was posted late",
    "a kept settlement was posted while closing",
    "a close left a rest",
    "an account was closed cooperatively",
    "an account was finalised after a close",
    "an old receipt was posted",
    "a close hid the member's vouchers",
    "the hub crashed with an open flush",
    "a response was reorganised away",
    "an unaccepted voucher was posted",
    "a stream was opened",
    "ticks were accepted",
    "ticks were known",
    "ticks of an old session were refused",
    "a payer wanted to tick what he does not have",
    "ticks of a payee without backing were refused",
    "ticks of another chain were refused",
    "a close froze ticks",
    "a frame continued a lane of ticks",
    "a lane of ticks was folded",
    "a fold of another index was refused",
    "a close hid ticks",
    "an older index was posted",
    "an unaccepted word was posted",
];

#[derive(Debug, Default)]
struct Index(BTreeMap<(ChannelId, PaymentId), KnownPayment>);

impl PaymentIndex for Index {
    fn find(&self, payer: ChannelId, id: PaymentId) -> Option<KnownPayment> {
        self.0.get(&(payer, id)).cloned()
    }
}

/// A member who keeps everything that he ever saw.
#[derive(Debug, Default)]
struct Crook {
    session: u64,
    frames: Vec<Frame>,
    streams: Vec<(StreamOpening, Words)>,
    folds: Vec<Signed<Voucher>>,
    vouchers: Vec<Proven<Voucher>>,
    receipts: Vec<Proven<Receipt>>,
    proposals: Vec<Settlement>,
    agreed: Vec<(Signed<Settlement>, Proven<Settlement>)>,
}

/// A play.
struct Play {
    care: Care,
    dice: Dice,
    ledger: Ledger,
    books: Books,
    index: Index,
    records: Vec<FlushRecord>,
    crooks: [Crook; 2],
    /// Proposals whose record is not durable yet.
    unsent: Vec<(usize, Settlement)>,
    sessions: u64,
    ids: u64,
    cursor: u64,
    seen: Sometimes,
}

/// Plays one play; an error where the hub lost money.
pub fn play(seed: u64, care: Care) -> Result<Sometimes, Loss> {
    let mut play = Play::new(seed, care);
    let moves = 30 + play.dice.below(60);
    for _ in 0..moves {
        play.make_move();
        play.audit();
    }
    play.wind_down();
    play.judge()?;
    Ok(play.seen)
}

fn policy() -> Policy {
    Policy {
        hub: HUB,
        keys: vec![HUB_KEY.public()],
        challenge_period_s: u32::try_from(CHALLENGE_PERIOD_S).expect("a day fits"),
        settlement_validity_s: SETTLEMENT_VALIDITY_S,
        assets: vec![AssetPolicy {
            asset: NATIVE,
            symbol: "COIN".to_owned(),
            decimals: 6,
            deposit_min: Amount::new(1),
            inbound_target: Amount::new(200),
            inbound_max: Amount::new(1000),
            fee_flat: Amount::new(1),
            fee_ppm: 0,
        }],
    }
}

impl Play {
    fn new(seed: u64, care: Care) -> Play {
        let mut dice = Dice::new(seed);
        let confirmations = dice.below(4);
        let ledger = Ledger::new(vec![account(0), account(1)], CHALLENGE_PERIOD_S, confirmations, START);
        let mut play = Play {
            care,
            dice,
            ledger,
            books: Books::new(*DOMAIN, policy()),
            index: Index::default(),
            records: Vec::new(),
            crooks: Default::default(),
            unsent: Vec::new(),
            sessions: 0,
            ids: 0,
            cursor: 0,
            seen: Sometimes::default(),
        };
        let update = LedgerUpdate { opened: vec![terms(0), terms(1)], ..LedgerUpdate::default() };
        play.books.ledger(update);
        for n in 0..2 {
            play.deposit(n, Side::Member);
            play.deposit(n, Side::Hub);
        }
        for _ in 0..=confirmations {
            play.ledger.mine(12, |_| {});
        }
        play.sync();
        for n in 0..2 {
            play.hello(n);
        }
        play
    }

    fn make_move(&mut self) {
        let n = self.dice.below(2);
        match self.dice.below(31) {
            24 | 25 => self.open_stream(n),
            26..=29 => self.tick(n),
            30 => self.fold(n),
            0..=8 => self.pay(n),
            9 | 10 => self.seal(),
            11 => self.replay_frame(n),
            12 | 13 => self.propose(n),
            14 | 15 => self.agree(n),
            16 => self.post(n),
            17 => {
                let side = if self.dice.chance(50) { Side::Member } else { Side::Hub };
                self.deposit(n, side);
            }
            18 => self.hello(n),
            19 => self.crash(),
            20 => self.reorganise(),
            _ => self.block(),
        }
        if self.dice.chance(1) {
            self.ledger.send(Call::StartClose { account: n });
        }
    }

    // ---- off the ledger ----

    fn pay(&mut self, n: usize) {
        let count = 1 + self.dice.below(3);
        let payments: Vec<Payment> = (0..count).map(|_| self.payment(n)).collect();
        let lane = u32::try_from(self.dice.below(3)).expect("small");
        let tip = self.tip(n, lane);
        let frame = Frame::sign(&DOMAIN, &MEMBER_KEYS[n], account(n), lane, tip, payments).expect("it is well-formed");
        self.crooks[n].frames.push(frame.clone());
        self.submit(n, frame);
    }

    /// Where a lane stands, or something that the member makes up.
    fn tip(&mut self, n: usize, lane: u32) -> LaneTip {
        let accepted = self.books.account(account(n)).map(|a| a.tip(lane)).unwrap_or_default();
        match self.dice.below(10) {
            0 => self.newest_signed(n, lane).unwrap_or(accepted),
            1 => LaneTip { cumulative: Amount::new(self.dice.number(300)), ..accepted },
            _ => accepted,
        }
    }

    fn payee(&mut self, n: usize) -> ChannelId {
        if self.dice.chance(15) { ChannelId::HUB } else { account(1 - n).channel }
    }

    /// The session that a message comes in: mostly the live one.
    fn session(&mut self, n: usize) -> SessionId {
        let live = self.crooks[n].session;
        SessionId(if self.dice.chance(5) { live.saturating_sub(1) } else { live })
    }

    fn payment(&mut self, n: usize) -> Payment {
        self.ids += 1;
        let payee = self.payee(n);
        let most = if self.dice.chance(20) { 600 } else { 80 };
        Payment {
            id: PaymentId(FixedBytes::left_padding_from(&self.ids.to_be_bytes())),
            payee,
            amount: Amount::new(1 + self.dice.number(most)),
            fee: Amount::new(1 + self.dice.number(3)),
            note: Bytes::new(),
        }
    }

    fn newest_signed(&self, n: usize, lane: u32) -> Option<LaneTip> {
        self.crooks[n].frames.iter().rev().find(|f| f.lane() == lane).map(Frame::tip)
    }

    // ---- streams ----

    fn open_stream(&mut self, n: usize) {
        self.ids += 1;
        let fresh = StreamId(FixedBytes::left_padding_from(&self.ids.to_be_bytes()));
        let used = self.crooks[n].streams.last().map(|(opening, words)| (opening.terms().stream, words.clone()));
        // A stream's name or its chain may be used again: nothing but the payer's own money is at stake.
        let (stream, words) = match used {
            Some((stream, _)) if self.dice.chance(5) => (stream, self.chain()),
            Some((_, words)) if self.dice.chance(5) => (fresh, words),
            _ => (fresh, self.chain()),
        };
        let most = if self.dice.chance(20) { 60 } else { 8 };
        let terms = StreamTerms {
            stream,
            payee: self.payee(n),
            amount: Amount::new(1 + self.dice.number(most)),
            fee: Amount::new(1 + self.dice.number(2)),
        };
        let lane = u32::try_from(self.dice.below(3)).expect("small");
        let tip = self.tip(n, lane);
        let signed = StreamOpening::sign(&DOMAIN, &MEMBER_KEYS[n], account(n), lane, tip, terms, &words);
        let opening = signed.expect("it is well-formed");
        self.crooks[n].streams.push((opening.clone(), words));
        let session = self.session(n);
        let opened = self.books.open_stream(session, opening);
        self.seen.note_if("a stream was opened", opened.is_ok());
        self.note_frozen(&opened);
    }

    fn chain(&mut self) -> Words {
        self.ids += 1;
        let ticks = u32::try_from(1 + self.dice.below(16)).expect("small");
        Words::new(B256::left_padding_from(&self.ids.to_be_bytes()), ticks)
    }

    /// Reveals a word, mostly of the newest stream.
    fn tick(&mut self, n: usize) {
        let Some(stream) = self.stream(n) else { return };
        let (opening, words) = &self.crooks[n].streams[stream];
        let at = self.index_of(n, stream);
        let ahead = if self.dice.chance(80) { at } else { 0 };
        let index = ahead + u32::try_from(1 + self.dice.below(5)).expect("small");
        let (lane, Some(revealed)) = (opening.lane(), words.reveal(index)) else { return };
        let session = self.session(n);
        match self.books.tick(session, account(n), lane, revealed, &self.index) {
            Ok(Ticked::Accepted) => self.seen.note("ticks were accepted"),
            Ok(Ticked::Known) => self.seen.note("ticks were known"),
            Err(refusal) => {
                match refusal.reason() {
                    "OLD_SESSION" => self.seen.note("ticks of an old session were refused"),
                    "INSUFFICIENT_FUNDS" => self.seen.note("a payer wanted to tick what he does not have"),
                    "PAYEE_UNBACKED" => self.seen.note("ticks of a payee without backing were refused"),
                    "LANE_BROKEN" => self.seen.note("ticks of another chain were refused"),
                    _ => {}
                }
                self.note_frozen(&Err(refusal));
            }
        }
    }

    /// The index that the hub accepted of a stream that its lane still has.
    fn index_of(&self, n: usize, stream: usize) -> u32 {
        let opening = &self.crooks[n].streams[stream].0;
        let at = self.books.account(account(n)).and_then(|a| a.lanes.get(&opening.lane())?.ticks());
        at.filter(|ticks| ticks.opening() == opening).map(|ticks| ticks.index()).unwrap_or_default()
    }

    fn note_frozen(&mut self, result: &Result<(), Refusal>) {
        let froze = matches!(result, Err(Refusal::Freezing { .. } | Refusal::PayeeClosing { .. }));
        self.seen.note_if("a close froze ticks", froze);
    }

    fn stream(&mut self, n: usize) -> Option<usize> {
        let last = self.crooks[n].streams.len().checked_sub(1)?;
        Some(if self.dice.chance(75) { last } else { self.dice.below(last + 1) })
    }

    /// Folds a lane of ticks, at its index or at one that would suit the member better.
    fn fold(&mut self, n: usize) {
        let Some(stream) = self.stream(n) else { return };
        let opening = self.crooks[n].streams[stream].0.clone();
        let at = self.books.account(account(n)).and_then(|a| a.lanes.get(&opening.lane())?.ticks());
        let at = at.map(|t| t.index()).unwrap_or_default();
        let index = if self.dice.chance(70) { at } else { u32::try_from(self.dice.below(8)).expect("small") };
        let fold = Signed::sign(&DOMAIN, &MEMBER_KEYS[n], fold_voucher(&opening, index));
        self.crooks[n].folds.push(fold.clone());
        let session = self.session(n);
        let folded = self.books.fold(session, fold);
        self.seen.note_if("a lane of ticks was folded", folded.is_ok());
        let broken = matches!(folded, Err(Refusal::LaneBroken { .. }));
        self.seen.note_if("a fold of another index was refused", broken && index != at);
    }

    // ---- frames ----

    fn submit(&mut self, n: usize, frame: Frame) {
        let session = self.session(n);
        let held = self.books.account(account(n)).and_then(|a| a.lanes.get(&frame.lane())?.ticks());
        let after_ticks = held.is_some_and(|ticks| ticks.index() > 0);
        let kept = self.books.account(account(n)).is_some_and(|a| !a.kept.is_empty());
        match self.books.pay(session, frame, &self.index) {
            Ok(Paid::Accepted) => {
                self.seen.note("a frame was accepted");
                self.seen.note_if("a frame continued a lane of ticks", after_ticks);
            }
            Ok(Paid::Again { .. }) => self.seen.note("a frame was answered again"),
            Err(refusal) => match refusal.reason() {
                "OLD_SESSION" => self.seen.note("a frame of an old session was refused"),
                "INSUFFICIENT_FUNDS" => {
                    self.seen.note_if("a payer wanted to spend what a kept settlement withdraws", kept);
                }
                "PAYEE_UNBACKED" => self.seen.note("a payee's backing was reserved by others"),
                "FREEZING" | "PAYEE_CLOSING" => self.seen.note("a close froze an account"),
                _ => {}
            },
        }
    }

    fn replay_frame(&mut self, n: usize) {
        if let Some(frame) = self.dice.pick(&self.crooks[n].frames).cloned() {
            self.submit(n, frame);
        }
    }

    fn hello(&mut self, n: usize) {
        self.sessions += 1;
        if self.books.hello(account(n).channel, SessionId(self.sessions), None).is_ok() {
            self.crooks[n].session = self.sessions;
        }
    }

    fn propose(&mut self, n: usize) {
        let ask = match self.dice.below(4) {
            0 => Ask::Close,
            1 => Ask::Reclaim(Amount::new(self.dice.number(150))),
            _ => Ask::Withdraw(Amount::new(self.dice.number(150))),
        };
        if let Ok(settlement) = self.books.propose(account(n), ask) {
            self.unsent.push((n, settlement));
        }
    }

    /// The member signs a proposal that he saw, old or new.
    fn agree(&mut self, n: usize) {
        let newest = self.crooks[n].proposals.last().filter(|_| self.dice.chance(50)).cloned();
        if let Some(proposal) = newest.or_else(|| self.dice.pick(&self.crooks[n].proposals).cloned()) {
            let signed = Signed::sign(&DOMAIN, &MEMBER_KEYS[n], proposal);
            let _ = self.books.agree(signed);
        }
    }

    /// One durable write: from here on everybody has what follows from it.
    fn seal(&mut self) {
        let Some(record) = self.books.seal() else { return };
        for (n, proposal) in std::mem::take(&mut self.unsent) {
            self.crooks[n].proposals.push(proposal);
        }
        let outcome =
            record.outcome(&DOMAIN).sign(&DOMAIN, record.number, std::slice::from_ref(&*HUB_KEY), |_| Scheme::Ed25519);
        for n in 0..2 {
            let id = account(n).channel.0;
            let crook = &mut self.crooks[n];
            crook.vouchers.extend(outcome.vouchers.iter().filter(|v| v.body().channelId == id).cloned());
            crook.receipts.extend(outcome.receipts.iter().filter(|r| r.body().channelId == id).cloned());
            for hub in outcome.settlements.iter().filter(|s| s.body().channelId == id) {
                let member = Signed::sign(&DOMAIN, &MEMBER_KEYS[n], hub.body().clone());
                crook.agreed.push((member, hub.clone()));
            }
        }
        self.note_payments(&record);
        self.records.push(record);
    }

    fn note_payments(&mut self, record: &FlushRecord) {
        for (entry, decision) in record.entries.iter().enumerate() {
            let (payer, payments) = match decision {
                Entry::Frame(frame) => (frame.account().channel, frame.payments.clone()),
                Entry::Ticks(paid) => (paid.account.channel, vec![paid.payment()]),
                _ => continue,
            };
            for payment in payments {
                let (entry, id) = (u32::try_from(entry).expect("few entries"), payment.id);
                let known = KnownPayment { flush: record.number, asset: NATIVE, entry, payment };
                assert!(self.index.0.insert((payer, id), known).is_none(), "I5: {id} was paid twice");
            }
        }
    }

    /// The process ends and starts again from its records: what was not written never happened.
    fn crash(&mut self) {
        let sealed = self.books.sealed();
        self.unsent.clear();
        let mut books = Books::new(*DOMAIN, policy());
        self.records.iter().for_each(|record| books.replay(record));
        assert_eq!(books.sealed(), sealed, "everything sealed was durable");
        let lost = books.channels() != self.books.channels();
        self.seen.note_if("the hub crashed with an open flush", lost);
        self.books = books;
        if self.books.channel(account(0).channel).is_none() {
            let update = LedgerUpdate { opened: vec![terms(0), terms(1)], ..LedgerUpdate::default() };
            self.books.ledger(update);
        }
        self.sync();
        for n in 0..2 {
            self.hello(n);
        }
    }

    // ---- on the ledger ----

    fn deposit(&mut self, n: usize, side: Side) {
        let amount = Amount::new(self.dice.number(400));
        self.ledger.send(Call::Deposit { account: n, side, amount });
    }

    /// A member, or anybody, posts something.
    fn post(&mut self, n: usize) {
        let closing = self.ledger.seen(n).status == Status::Closing;
        let call = match self.dice.below(6) {
            0..=4 if closing && self.dice.chance(50) => self.unaccepted(n),
            0 => self.old_word(n),
            1 | 2 => self.unaccepted(n),
            _ => {
                let newest = self.crooks[n].agreed.last().filter(|_| self.dice.chance(40)).cloned();
                let pair = newest.or_else(|| self.dice.pick(&self.crooks[n].agreed).cloned());
                pair.map(|(member, hub)| Call::Settle { account: n, member: Box::new(member), hub: Box::new(hub) })
            }
        };
        let Some(call) = call else { return };
        let good = self.ledger.check(&call).is_ok();
        match &call {
            Call::Settle { member, .. } => self.note_settle(n, member.body(), good),
            Call::Respond { hub, lanes, .. } => {
                self.seen.note_if("an unaccepted voucher was posted", good && !lanes.is_empty());
                self.note_words(n, lanes, good);
                let receipt = matches!(hub.as_deref(), Some(HubWord::Receipt(_)));
                self.seen.note_if("an old receipt was posted", good && receipt);
            }
            Call::Deposit { .. } | Call::StartClose { .. } | Call::Finalize { .. } => {}
        }
        self.ledger.send(call);
    }

    fn note_settle(&mut self, n: usize, settlement: &Settlement, good: bool) {
        let late = settlement.validUntil.saturating_sub(self.ledger.time()) < SETTLEMENT_VALIDITY_S / 2;
        let seen = self.ledger.seen(n);
        let deposits = seen.member_deposit.saturating_add(seen.hub_deposit);
        let rest = settlement.close && settlement.memberWithdrawn + settlement.hubWithdrawn < deposits.get();
        let closing = seen.status == Status::Closing;
        self.seen.note_if("a kept settlement was posted late", good && late);
        self.seen.note_if("a kept settlement was posted while closing", good && closing);
        self.seen.note_if("a close left a rest", good && rest);
        let expired = self.ledger.confirmed().1 > settlement.validUntil;
        self.seen.note_if("a kept settlement expired", expired);
    }

    fn old_word(&mut self, n: usize) -> Option<Call> {
        let hub = if self.dice.chance(50) {
            HubWord::Receipt(self.dice.pick(&self.crooks[n].receipts)?.clone())
        } else {
            HubWord::Voucher(self.dice.pick(&self.crooks[n].vouchers)?.clone())
        };
        Some(Call::Respond { account: n, lanes: Vec::new(), hub: Some(Box::new(hub)) })
    }

    fn unaccepted(&mut self, n: usize) -> Option<Call> {
        let voucher = match self.dice.below(6) {
            0 | 1 => LaneVoucher::Plain(self.dice.pick(&self.crooks[n].frames)?.voucher.clone()),
            2..=4 => {
                // What the hub accepted, so that the older index hides money, or whatever there is.
                let held: Vec<usize> =
                    (0..self.crooks[n].streams.len()).filter(|at| self.index_of(n, *at) > 0).collect();
                let held = self.dice.pick(&held).copied().filter(|_| self.dice.chance(60));
                let stream = held.or_else(|| self.stream(n))?;
                let most = held.map_or(self.crooks[n].streams[stream].1.ticks(), |held| self.index_of(n, held));
                let index = u32::try_from(self.dice.below(most as usize + 1)).expect("small");
                let (opening, words) = &self.crooks[n].streams[stream];
                let (mut voucher, revealed) = (LaneVoucher::opened(opening.clone()), words.reveal(index)?);
                voucher.ticks_mut()?.advance(&revealed);
                voucher
            }
            _ => LaneVoucher::Plain(self.dice.pick(&self.crooks[n].folds)?.clone()),
        };
        Some(Call::Respond { account: n, lanes: vec![voucher], hub: None })
    }

    fn note_words(&mut self, n: usize, lanes: &[LaneVoucher], good: bool) {
        let held = self.books.account(account(n));
        for ticks in lanes.iter().filter_map(LaneVoucher::ticks) {
            let at = held.and_then(|a| a.lanes.get(&ticks.opening().lane())?.ticks());
            let at = at.filter(|at| at.opening() == ticks.opening()).map(|at| at.index());
            self.seen.note_if("an older index was posted", good && at.is_some_and(|at| at > ticks.index()));
            self.seen.note_if("an unaccepted word was posted", good && at.is_none_or(|at| at < ticks.index()));
        }
    }

    fn reorganise(&mut self) {
        if self.near_a_deadline() {
            return;
        }
        let depth = 1 + self.dice.below(3);
        for call in self.ledger.reorganise(depth) {
            match &call {
                Call::Deposit { .. } => self.seen.note("a deposit was reorganised away"),
                Call::Respond { lanes, .. } => {
                    self.seen.note_if("a response was reorganised away", !lanes.is_empty());
                }
                Call::Settle { .. } | Call::StartClose { .. } | Call::Finalize { .. } => {}
            }
            if self.dice.chance(50) {
                self.ledger.send(call);
            }
        }
        self.follow();
    }

    fn block(&mut self) {
        let mut seconds = match self.dice.below(8) {
            0 => SETTLEMENT_VALIDITY_S + 1,
            1 => SETTLEMENT_VALIDITY_S / 2,
            2 => CHALLENGE_PERIOD_S,
            _ => 12,
        };
        if (0..2).any(|n| !self.may_end(n)) {
            seconds = 1;
        }
        let dice = &mut self.dice;
        self.ledger.mine(seconds, |calls| dice.shuffle(calls));
        self.follow();
    }

    /// Whether the deadline of an account may pass: what the hub accepted is proven and confirmed, which the length of
    /// the challenge period guarantees to whoever answers at once.
    fn may_end(&self, n: usize) -> bool {
        let paid = self.books.account(account(n)).map(|a| a.member_paid).unwrap_or_default();
        let done = self.care == Care::IgnoresCloses || self.ledger.settled(n).member_paid >= paid;
        self.ledger.seen(n).status != Status::Closing || done
    }

    fn near_a_deadline(&self) -> bool {
        (0..2).any(|n| {
            let seen = self.ledger.seen(n);
            seen.status == Status::Closing && self.ledger.time().saturating_add(60) >= seen.deadline
        })
    }

    /// The hub's follower may lag, but not while a close runs: its tower watches.
    fn follow(&mut self) {
        let closing = (0..2).any(|n| self.ledger.seen(n).status != Status::Open);
        if closing || self.dice.chance(70) {
            self.sync();
        }
    }

    fn sync(&mut self) {
        self.cursor += 1;
        let (confirmed, confirmed_time) = self.ledger.confirmed();
        let totals: Vec<_> = (0..2).map(|n| (account(n), self.view(n))).collect();
        let cursor = Bytes::from(self.cursor.to_be_bytes().to_vec());
        self.books.ledger(LedgerUpdate { confirmed, confirmed_time, opened: vec![], totals, cursor });
        for n in 0..2 {
            self.answer_close(n);
        }
    }

    fn view(&self, n: usize) -> Totals {
        let (view, seen) = (self.ledger.view(n), self.ledger.seen(n));
        match self.care {
            Care::Full | Care::IgnoresCloses => view,
            Care::CountsUnconfirmedDeposits => {
                Totals { member_deposit: seen.member_deposit, hub_deposit: seen.hub_deposit, ..view }
            }
            Care::ForgetsSettlements => Totals { seq_confirmed: u64::MAX, ..view },
        }
    }

    /// Whoever sees a close posts everything that he holds above what is posted.
    fn answer_close(&mut self, n: usize) {
        let seen = *self.ledger.seen(n);
        let Some(held) = self.books.account(account(n)) else { return };
        if seen.status != Status::Closing {
            return;
        }
        if self.ledger.time() >= seen.deadline {
            self.ledger.send(Call::Finalize { account: n });
        } else if held.member_paid > seen.member_paid && self.care != Care::IgnoresCloses {
            self.seen.note("a close hid the member's vouchers");
            let lanes: Vec<LaneVoucher> = held.lanes.values().cloned().collect();
            let ticks = lanes.iter().filter_map(LaneVoucher::ticks).any(|ticks| ticks.index() > 0);
            self.seen.note_if("a close hid ticks", ticks);
            self.ledger.send(Call::Respond { account: n, lanes, hub: None });
        }
    }

    // ---- the end ----

    fn wind_down(&mut self) {
        self.seal();
        for _ in 0..400 {
            for n in 0..2 {
                if self.ledger.seen(n).status == Status::Open && self.dice.chance(30) {
                    self.ledger.send(Call::StartClose { account: n });
                }
                if self.dice.chance(40) {
                    self.post(n);
                }
            }
            self.block();
            self.seal();
            self.audit();
            if (0..2).all(|n| self.ledger.settled(n).status == Status::Final) {
                return;
            }
        }
        panic!("an account never became final: {:?} {:?}", self.ledger.seen(0), self.ledger.seen(1));
    }

    fn judge(&mut self) -> Result<(), Loss> {
        self.sync();
        for n in 0..2 {
            let end: Totals = *self.ledger.seen(n);
            let held = self.books.account(account(n)).expect("it has deposits");
            let got = end.hub_withdrawn.get() + held.hub_paid.get();
            let due = end.hub_deposit.get() + held.member_paid.get();
            if got < due {
                return Err(Loss { loser: "the hub", lost: due - got, why: format!("account {n} ended as {end:?}") });
            }
            assert_eq!(held.windfall(), (got - due).try_into().expect("small"));
            let cooperative = end.deadline == 0;
            self.seen.note_if("an account was closed cooperatively", cooperative);
            self.seen.note_if("an account was finalised after a close", !cooperative);
        }
        Ok(())
    }

    fn audit(&self) {
        if self.care != Care::Full {
            return;
        }
        for n in 0..2 {
            let Some(held) = self.books.account(account(n)) else { continue };
            if held.ledger.status == Status::Open {
                assert!(!held.hub_net().is_negative(), "the hub credited what it does not have: {held:?}");
                assert!(!held.member_net().is_negative(), "the member spent what he does not have: {held:?}");
            }
        }
        for sums in self.books.sums().values() {
            let income = alloy_primitives::U256::from(sums.income.get());
            assert_eq!(sums.paid, sums.credited + income, "I4");
        }
    }
}
