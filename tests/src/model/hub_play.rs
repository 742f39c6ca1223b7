//! An honest hub among members who do what they like.
//!
//! The hub is `proto::books`: it answers by its rules, makes its records durable before anything leaves, posts what it
//! accepted when it sees a close, and crashes now and then. The two members share their secrets. When both accounts are
//! final, the hub must have got from each at least what its books say: `HW >= HD + PM - PH`.

use std::collections::BTreeMap;

use alloy_primitives::{Bytes, FixedBytes};
use proto::account::{SETTLEMENT_VALIDITY_S, Status, Totals};
use proto::books::{
    Ask, AssetPolicy, Books, Entry, FlushRecord, KnownPayment, LedgerUpdate, Paid, PaymentIndex, Policy, SessionId,
};
use proto::typed::{Receipt, Settlement, Voucher};
use proto::{Amount, ChannelId, Frame, LaneTip, NATIVE, Payment, PaymentId, Proven, Scheme, Side, Signed};

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
    let moves = 20 + play.dice.below(40);
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
        match self.dice.below(24) {
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
        let accepted = self.books.account(account(n)).map(|a| a.tip(lane)).unwrap_or_default();
        let tip = match self.dice.below(10) {
            0 => self.newest_signed(n, lane).unwrap_or(accepted),
            1 => LaneTip { cumulative: Amount::new(self.dice.number(300)), ..accepted },
            _ => accepted,
        };
        let frame = Frame::sign(&DOMAIN, &MEMBER_KEYS[n], account(n), lane, tip, payments).expect("it is well-formed");
        self.crooks[n].frames.push(frame.clone());
        self.submit(n, frame);
    }

    fn payment(&mut self, n: usize) -> Payment {
        self.ids += 1;
        let payee = if self.dice.chance(15) { ChannelId::HUB } else { account(1 - n).channel };
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

    fn submit(&mut self, n: usize, frame: Frame) {
        let live = self.crooks[n].session;
        let session = if self.dice.chance(5) { live.saturating_sub(1) } else { live };
        let kept = self.books.account(account(n)).is_some_and(|a| !a.kept.is_empty());
        match self.books.pay(SessionId(session), frame, &self.index) {
            Ok(Paid::Accepted) => self.seen.note("a frame was accepted"),
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
        if let Some(proposal) = self.dice.pick(&self.crooks[n].proposals).cloned() {
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
            let Entry::Frame(frame) = decision else { continue };
            for payment in &frame.payments {
                let known = KnownPayment {
                    flush: record.number,
                    asset: NATIVE,
                    entry: u32::try_from(entry).expect("few entries"),
                    payment: payment.clone(),
                };
                self.index.0.insert((frame.account().channel, payment.id), known);
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
        let call = match self.dice.below(4) {
            0 => self.old_word(n),
            1 => self.unaccepted(n),
            _ => {
                let pair = self.dice.pick(&self.crooks[n].agreed).cloned();
                pair.map(|(member, hub)| Call::Settle { account: n, member: Box::new(member), hub: Box::new(hub) })
            }
        };
        let Some(call) = call else { return };
        let good = self.ledger.check(&call).is_ok();
        match &call {
            Call::Settle { member, .. } => self.note_settle(n, member.body(), good),
            Call::Respond { hub, lanes, .. } => {
                self.seen.note_if("an unaccepted voucher was posted", good && !lanes.is_empty());
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
        let frame = self.dice.pick(&self.crooks[n].frames)?;
        Some(Call::Respond { account: n, lanes: vec![frame.voucher.clone()], hub: None })
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
            let lanes = held.lanes.values().cloned().collect();
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
