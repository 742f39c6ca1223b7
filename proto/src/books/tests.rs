//! Every refusal, the order of the checks, the stories of the protocol that the hub's books decide, and random runs
//! that hold conservation, replay and reproducibility.

mod streams;

use super::*;
use crate::frame::{FrameError, NOTE_MAX, PAYEES_MAX, PAYMENTS_MAX};
use crate::keys::{SecretKey, Signature};
use crate::stream::{StreamTerms, Words, fold_voucher};
use crate::typed::chain_hash;
use alloy_primitives::{FixedBytes, address};

const COIN: Asset = Address::ZERO;
const TOKEN: Asset = address!("0x0000000000000000000000000000000000700000");
const UNSERVED: Asset = address!("0x0000000000000000000000000000000000bad000");
const HUB: Address = address!("0x000000000000000000000000000000000000bbbb");
const VALIDITY_S: u64 = 3600;
const START: u64 = 1_000_000;
const MAX: u128 = u128::MAX;

type Index = BTreeMap<(ChannelId, PaymentId), KnownPayment>;

impl PaymentIndex for Index {
    fn find(&self, payer: ChannelId, id: PaymentId) -> Option<KnownPayment> {
        self.get(&(payer, id)).cloned()
    }
}

/// The books with members whose keys are known, an index, and a ledger that says what it is told.
struct World {
    books: Books,
    index: Index,
    hub_keys: Vec<SecretKey>,
    members: Vec<Member>,
    records: Vec<FlushRecord>,
    time: u64,
    head: u64,
    ids: u64,
}

struct Member {
    key: SecretKey,
    id: ChannelId,
    session: SessionId,
}

/// A stream of a member, with its chain.
struct Stream {
    from: usize,
    lane: u32,
    opening: StreamOpening,
    words: Words,
}

impl Stream {
    fn terms(&self) -> &StreamTerms {
        self.opening.terms()
    }
}

fn a(n: u128) -> Amount {
    Amount::new(n)
}

fn seeded(scheme: Scheme, n: u8) -> SecretKey {
    SecretKey::derive(scheme, &[n; 32], "test")
}

/// The channels as a checkpoint's rows.
fn rows(books: &Books) -> BTreeMap<ChannelId, Channel> {
    books.channels().iter().map(|(id, channel)| (*id, channel.clone())).collect()
}

fn domain() -> Domain {
    Domain::new(31_337, Address::repeat_byte(0xad))
}

fn policy(fee_flat: u128, fee_ppm: u32) -> Policy {
    let asset = |asset, symbol: &str| AssetPolicy {
        asset,
        symbol: symbol.to_owned(),
        decimals: 6,
        deposit_min: a(1),
        inbound_target: a(1000),
        inbound_max: a(10_000),
        fee_flat: a(fee_flat),
        fee_ppm,
    };
    let keys = [Scheme::Ed25519, Scheme::Secp256k1].map(|s| seeded(s, 200).public()).to_vec();
    let assets = vec![asset(COIN, "COIN"), asset(TOKEN, "TOK")];
    Policy { hub: HUB, keys, challenge_period_s: 86_400, settlement_validity_s: VALIDITY_S, assets }
}

fn terms(n: u8) -> (SecretKey, ChannelTerms) {
    let scheme = if n.is_multiple_of(2) { Scheme::Ed25519 } else { Scheme::Secp256k1 };
    let key = seeded(scheme, n);
    let terms = ChannelTerms {
        hub: HUB,
        hubKey: seeded(scheme, 200).public().bytes,
        hubScheme: scheme.number(),
        member: Address::repeat_byte(n),
        memberKey: key.public().bytes,
        memberScheme: scheme.number(),
        challengePeriod: 86_400,
        salt: B256::repeat_byte(n),
    };
    (key, terms)
}

fn deposits(member: u128, hub: u128) -> Totals {
    Totals { member_deposit: a(member), hub_deposit: a(hub), ..Totals::default() }
}

impl World {
    /// Members with these deposits of (member, hub) in COIN, each with a session; all of it sealed; no fees.
    fn new(accounts: &[(u128, u128)]) -> World {
        World::with_policy(accounts, policy(0, 0))
    }

    fn with_policy(accounts: &[(u128, u128)], policy: Policy) -> World {
        let hub_keys = [Scheme::Ed25519, Scheme::Secp256k1].map(|s| seeded(s, 200)).to_vec();
        let mut world = World {
            books: Books::new(domain(), policy),
            index: Index::new(),
            hub_keys,
            members: Vec::new(),
            records: Vec::new(),
            time: START,
            head: 0,
            ids: 0,
        };
        for (member, hub) in accounts {
            world.open(deposits(*member, *hub));
        }
        world.seal();
        world
    }

    fn open(&mut self, totals: Totals) -> usize {
        let n = self.members.len();
        let (key, terms) = terms(u8::try_from(n + 1).expect("few members"));
        let id = domain().channel_id(&terms);
        let session = SessionId(u64::try_from(n).expect("few") + 1);
        let mut update = self.update(0);
        update.opened.push(terms);
        update.totals.push((AccountId { channel: id, asset: COIN }, totals));
        assert_eq!(self.books.ledger(update), vec![]);
        self.members.push(Member { key, id, session });
        if self.books.channel(id).is_some_and(|c| c.served) {
            self.books.hello(id, session, None).expect("a served channel may say hello");
        }
        n
    }

    /// An update of the ledger `seconds` later, with nothing in it yet.
    fn update(&mut self, seconds: u64) -> LedgerUpdate {
        self.time += seconds;
        self.head += 1;
        let cursor = Bytes::from(self.head.to_be_bytes().to_vec());
        LedgerUpdate { confirmed: self.head, confirmed_time: self.time, cursor, ..LedgerUpdate::default() }
    }

    fn later(&mut self, seconds: u64) {
        let update = self.update(seconds);
        self.books.ledger(update);
    }

    fn edit_totals(&mut self, n: usize, edit: impl FnOnce(&mut Totals)) {
        let id = self.account_id(n);
        let mut totals = self.books.account(id).map(|account| account.ledger).unwrap_or_default();
        edit(&mut totals);
        let mut update = self.update(1);
        update.totals.push((id, totals));
        self.books.ledger(update);
    }

    fn id(&self, n: usize) -> ChannelId {
        self.members[n].id
    }

    fn account_id(&self, n: usize) -> AccountId {
        AccountId { channel: self.id(n), asset: COIN }
    }

    fn account(&self, n: usize) -> &Account {
        self.books.account(self.account_id(n)).expect("the account exists")
    }

    fn fresh_id(&mut self) -> PaymentId {
        self.ids += 1;
        PaymentId(FixedBytes::left_padding_from(&self.ids.to_be_bytes()))
    }

    fn payment(&mut self, payee: ChannelId, amount: u128) -> Payment {
        Payment { id: self.fresh_id(), payee, amount: a(amount), fee: a(0), note: Bytes::new() }
    }

    /// A frame of member `from` that continues the lane's accepted tip.
    fn frame(&self, from: usize, lane: u32, payments: Vec<Payment>) -> Frame {
        let tip = self.books.account(self.account_id(from)).map(|x| x.tip(lane)).unwrap_or_default();
        self.frame_after(from, lane, tip, payments)
    }

    fn frame_after(&self, from: usize, lane: u32, tip: LaneTip, payments: Vec<Payment>) -> Frame {
        Frame::sign(&domain(), &self.members[from].key, self.account_id(from), lane, tip, payments)
            .expect("well-formed")
    }

    fn send(&mut self, from: usize, frame: Frame) -> Result<Paid, Refusal> {
        self.books.pay(self.members[from].session, frame, &self.index)
    }

    /// Member `from` pays member `to` on lane 0.
    fn pay(&mut self, from: usize, to: usize, amount: u128) -> Result<Paid, Refusal> {
        let payment = self.payment(self.id(to), amount);
        let frame = self.frame(from, 0, vec![payment]);
        self.send(from, frame)
    }

    /// Fresh terms of a stream.
    fn stream_terms(&mut self, payee: ChannelId, amount: u128, fee: u128) -> StreamTerms {
        self.ids += 1;
        let stream = StreamId(FixedBytes::left_padding_from(&self.ids.to_be_bytes()));
        StreamTerms { stream, payee, amount: a(amount), fee: a(fee) }
    }

    fn words(&mut self, ticks: u32) -> Words {
        self.ids += 1;
        Words::new(B256::left_padding_from(&self.ids.to_be_bytes()), ticks)
    }

    /// An opening of member `from` that continues the lane's accepted tip.
    fn opening(&self, from: usize, lane: u32, terms: StreamTerms, words: &Words) -> StreamOpening {
        let account = self.account_id(from);
        let tip = self.books.account(account).map(|x| x.tip(lane)).unwrap_or_default();
        let key = &self.members[from].key;
        StreamOpening::sign(&domain(), key, account, lane, tip, terms, words).expect("well-formed")
    }

    fn open_with(&mut self, from: usize, lane: u32, terms: StreamTerms, ticks: u32) -> Result<Stream, Refusal> {
        let words = self.words(ticks);
        let opening = self.opening(from, lane, terms, &words);
        self.books.open_stream(self.members[from].session, opening.clone())?;
        Ok(Stream { from, lane, opening, words })
    }

    /// Member `from` opens a stream of ticks of one unit to member `to`.
    fn open_stream(&mut self, from: usize, lane: u32, to: usize, ticks: u32) -> Result<Stream, Refusal> {
        let terms = self.stream_terms(self.id(to), 1, 0);
        self.open_with(from, lane, terms, ticks)
    }

    fn tick(&mut self, stream: &Stream, index: u32) -> Result<Ticked, Refusal> {
        let revealed = stream.words.reveal(index).expect("within the chain");
        let (session, account) = (self.members[stream.from].session, self.account_id(stream.from));
        self.books.tick(session, account, stream.lane, revealed, &self.index)
    }

    fn fold(&mut self, stream: &Stream, index: u32) -> Result<(), Refusal> {
        let fold = Signed::sign(&domain(), &self.members[stream.from].key, fold_voucher(&stream.opening, index));
        self.books.fold(self.members[stream.from].session, fold)
    }

    /// What a flush says of ticks that it accepted.
    fn ticks(&self, stream: &Stream, before: u32, index: u32) -> TicksPaid {
        let word = stream.words.word(index).expect("within the chain");
        let (account, lane, anchor) = (self.account_id(stream.from), stream.lane, stream.words.anchor());
        let cumulative = stream.opening.tip(index).cumulative;
        TicksPaid { account, lane, anchor, terms: *stream.terms(), before, index, word, cumulative }
    }

    /// The records make these books from nothing, once and twice, and onto what is there already.
    fn assert_replays(&self) {
        let policy = self.books.policy().clone();
        let mut fresh = Books::new(domain(), policy.clone());
        for _ in 0..2 {
            self.records.iter().for_each(|record| fresh.replay(record));
            assert_eq!(fresh.channels(), self.books.channels());
            assert_eq!(fresh.ground(), self.books.ground());
        }
        let channels = rows(&self.books);
        let mut ahead = Books::restore(domain(), policy, self.books.ground(), channels);
        self.records.iter().for_each(|record| ahead.replay(record));
        assert_eq!(ahead.channels(), self.books.channels());
    }

    fn sign(&self, n: usize, settlement: &Settlement) -> Signed<Settlement> {
        Signed::sign(&domain(), &self.members[n].key, settlement.clone())
    }

    fn ack(&self, n: usize, credits: u64, head: B256) -> Signed<Ack> {
        let body = Ack { channelId: self.id(n).0, asset: COIN, credits, head };
        Signed::sign(&domain(), &self.members[n].key, body)
    }

    fn seal(&mut self) -> Option<FlushRecord> {
        let record = self.books.seal()?;
        for (entry, decision) in record.entries.iter().enumerate() {
            let (from, payments) = match decision {
                Entry::Frame(frame) => (frame.account(), frame.payments.clone()),
                Entry::Ticks(paid) => (paid.account, vec![paid.payment()]),
                _ => continue,
            };
            for payment in payments {
                let entry = u32::try_from(entry).expect("few");
                let id = payment.id;
                let known = KnownPayment { flush: record.number, asset: from.asset, entry, payment };
                assert_eq!(self.index.insert((from.channel, id), known), None, "an id is paid once");
            }
        }
        self.records.push(record.clone());
        Some(record)
    }

    fn outcome(&self, record: &FlushRecord) -> SignedOutcome {
        let scheme_of = |id| self.books.scheme_of(id).expect("the channel is known");
        record.outcome(&domain()).sign(&domain(), record.number, &self.hub_keys, scheme_of)
    }

    /// What must hold after every operation.
    fn audit(&self) {
        for (id, channel) in self.books.channels() {
            for account in channel.accounts.values() {
                let lanes = Amount::checked_sum(account.lanes.values().map(LaneVoucher::value));
                assert_eq!(lanes, Some(account.member_paid), "PM is the sum of the lanes of {id}");
                let (member, hub) = account.ledger_nets();
                assert_eq!(account.ledger.custody(), member.saturating_add(hub), "I1 of {id}");
                assert!(!account.member_net().is_negative(), "the member of {id} spent what it does not have");
                assert!(!account.hub_net().is_negative(), "the hub credited {id} what it does not have");
            }
        }
        for (asset, sums) in self.books.sums() {
            assert_eq!(sums.paid, sums.credited + U256::from(sums.income.get()), "I4 of {asset}");
        }
    }
}

// ---- refusals ------------------------------------------------------------------------------------------------------

/// A situation and the reason that the hub gives in it.
type Row = (&'static str, fn(&mut World) -> Result<(), Refusal>);

fn done<T>(result: Result<T, Refusal>) -> Result<(), Refusal> {
    result.map(|_| ())
}

/// Member 0 has 100; the hub put 100 into the account of member 1 and 1,000 into that of member 2.
fn refusal_world() -> World {
    World::with_policy(&[(100, 0), (100, 100), (100, 1000)], policy(0, 0))
}

fn id_used(w: &mut World) -> Result<(), Refusal> {
    let first = w.payment(w.id(1), 5);
    let frame = w.frame(0, 0, vec![first.clone()]);
    w.send(0, frame)?;
    let frame = w.frame(0, 0, vec![Payment { amount: a(6), ..first }]);
    done(w.send(0, frame))
}

fn unserved(w: &mut World) -> usize {
    w.open(deposits(0, 0))
}

fn freeze(w: &mut World) {
    w.books.hello(w.id(0), w.members[0].session, Some(99)).expect("served");
}

fn close_member(w: &mut World, n: usize) {
    w.edit_totals(n, |t| (t.status, t.deadline) = (Status::Closing, START + 86_400));
}

const REFUSALS: &[Row] = &[
    ("MALFORMED", |w| {
        let account = w.account_id(0);
        done(Frame::sign(&domain(), &w.members[0].key, account, 0, LaneTip::default(), vec![]).map_err(Refusal::from))
    }),
    ("BAD_SIGNATURE", |w| {
        let payment = w.payment(w.id(1), 1);
        let frame = w.frame(0, 0, vec![payment]);
        let other = w.members[2].key.public();
        let signature = *frame.voucher.signature();
        let (account, tip) = (frame.account(), frame.tip());
        done(Frame::verify(&domain(), &other, account, 0, tip, frame.payments, signature).map_err(Refusal::from))
    }),
    ("ID_USED", id_used),
    ("HUB_FROZEN", |w| {
        freeze(w);
        done(w.pay(0, 1, 5))
    }),
    ("HUB_FROZEN", |w| {
        freeze(w);
        done(w.books.propose(w.account_id(1), Ask::Close))
    }),
    ("HUB_FROZEN", |w| {
        let settlement = w.books.propose(w.account_id(1), Ask::Close)?;
        freeze(w);
        w.books.agree(w.sign(1, &settlement))
    }),
    ("DRAINING", |w| {
        w.books.drain();
        done(w.pay(0, 1, 5))
    }),
    ("UNKNOWN_CHANNEL", |w| {
        let n = unserved(w);
        w.books.hello(w.id(n), SessionId(77), None)
    }),
    ("UNKNOWN_CHANNEL", |w| {
        let stranger = AccountId { channel: ChannelId(B256::repeat_byte(0xee)), asset: COIN };
        done(w.books.propose(stranger, Ask::Close))
    }),
    ("OLD_SESSION", |w| {
        w.books.hello(w.id(0), SessionId(50), None)?;
        done(w.pay(0, 1, 5))
    }),
    ("OLD_SESSION", |w| {
        w.books.goodbye(w.id(0), w.members[0].session);
        done(w.pay(0, 1, 5))
    }),
    ("UNKNOWN_ASSET", |w| {
        let payment = w.payment(w.id(1), 5);
        let account = AccountId { channel: w.id(0), asset: UNSERVED };
        let frame = Frame::sign(&domain(), &w.members[0].key, account, 0, LaneTip::default(), vec![payment])?;
        done(w.send(0, frame))
    }),
    ("NOT_OPEN", |w| {
        close_member(w, 0);
        done(w.pay(0, 1, 5))
    }),
    ("FREEZING", |w| {
        w.books.propose(w.account_id(0), Ask::Close)?;
        done(w.pay(0, 1, 5))
    }),
    ("FREEZING", |w| {
        w.books.propose(w.account_id(0), Ask::Close)?;
        done(w.books.propose(w.account_id(0), Ask::Withdraw(a(1))))
    }),
    ("LANE_BROKEN", |w| {
        let payment = w.payment(w.id(1), 5);
        let tip = LaneTip { cumulative: a(1), memo: B256::ZERO };
        let frame = w.frame_after(0, 0, tip, vec![payment]);
        done(w.send(0, frame))
    }),
    ("LANE_BROKEN", |w| {
        let payment = w.payment(w.id(1), 5);
        let tip = LaneTip { cumulative: a(0), memo: B256::repeat_byte(1) };
        let frame = w.frame_after(0, 0, tip, vec![payment]);
        done(w.send(0, frame))
    }),
    ("FEE_TOO_LOW", |w| {
        w.books.policy.assets[0].fee_flat = a(1);
        done(w.pay(0, 1, 5))
    }),
    ("UNKNOWN_PAYEE", |w| {
        let payment = w.payment(ChannelId(B256::repeat_byte(0xee)), 5);
        let frame = w.frame(0, 0, vec![payment]);
        done(w.send(0, frame))
    }),
    ("UNKNOWN_PAYEE", |w| {
        let n = unserved(w);
        done(w.pay(0, n, 5))
    }),
    ("PAYEE_IS_PAYER", |w| done(w.pay(0, 0, 5))),
    ("PAYEE_CLOSING", |w| {
        close_member(w, 1);
        done(w.pay(0, 1, 5))
    }),
    ("PAYEE_CLOSING", |w| {
        w.books.propose(w.account_id(1), Ask::Close)?;
        done(w.pay(0, 1, 5))
    }),
    ("INSUFFICIENT_FUNDS", |w| done(w.pay(0, 2, 101))),
    ("INSUFFICIENT_FUNDS", |w| {
        let payment = Payment { fee: a(1), ..w.payment(w.id(1), 100) };
        let frame = w.frame(0, 0, vec![payment]);
        done(w.send(0, frame))
    }),
    ("PAYEE_UNBACKED", |w| {
        w.edit_totals(0, |t| t.member_deposit = a(1000));
        done(w.pay(0, 1, 101))
    }),
    ("PAYEE_UNBACKED", |w| {
        let payment = w.payment(w.id(1), 5);
        let account = AccountId { channel: w.id(0), asset: TOKEN };
        let mut update = w.update(1);
        update.totals.push((account, deposits(100, 0)));
        w.books.ledger(update);
        let frame = Frame::sign(&domain(), &w.members[0].key, account, 0, LaneTip::default(), vec![payment])?;
        done(w.send(0, frame))
    }),
    ("OVERFLOW", |w| {
        w.edit_totals(0, |t| (t.member_deposit, t.hub_deposit) = (a(MAX), a(10)));
        w.pay(1, 0, 10)?;
        for (lane, amount) in [(0, MAX), (1, 1)] {
            let payment = w.payment(ChannelId::HUB, amount);
            let frame = w.frame(0, lane, vec![payment]);
            w.send(0, frame)?;
        }
        Ok(())
    }),
    ("OVERFLOW", |w| {
        w.edit_totals(0, |t| t.member_deposit = a(MAX));
        w.edit_totals(1, |t| t.hub_deposit = a(MAX));
        w.pay(0, 1, MAX - 5)?;
        w.pay(1, 2, 10)?;
        done(w.pay(2, 1, 6))
    }),
    ("NAME", |w| w.books.name(w.id(0), "Not A Name")),
    ("NAME", |w| w.books.name(w.id(0), "")),
    ("NAME", |w| w.books.name(w.id(0), &"x".repeat(NAME_MAX + 1))),
    ("NAME", |w| {
        w.books.name(w.id(0), "bob")?;
        w.books.name(w.id(1), "bob")
    }),
    ("BAD_ACK", |w| {
        let ack = w.ack(1, 1, B256::ZERO);
        done(w.books.ack(ack))
    }),
    ("BAD_ACK", |w| {
        w.pay(0, 1, 5)?;
        w.seal();
        let ack = w.ack(1, 1, B256::repeat_byte(1));
        done(w.books.ack(ack))
    }),
    ("BAD_ACK", |w| {
        w.pay(0, 1, 5)?;
        w.seal();
        let ack = w.ack(1, 1, w.account(1).head);
        w.books.ack(ack.clone())?;
        done(w.books.ack(ack))
    }),
    ("NO_SUCH_SETTLEMENT", |w| {
        let settlement = w.books.propose(w.account_id(0), Ask::Close)?;
        w.books.agree(w.sign(0, &Settlement { memberWithdrawn: 101, ..settlement }))
    }),
    ("NO_SUCH_SETTLEMENT", |w| {
        let settlement = w.books.propose(w.account_id(0), Ask::Close)?;
        w.later(VALIDITY_S + 1);
        w.books.agree(w.sign(0, &settlement))
    }),
    ("TOO_MANY_KEPT", |w| (0..=KEPT_MAX).try_for_each(|_| done(w.books.propose(w.account_id(0), Ask::Withdraw(a(1)))))),
    ("PAYOUT_TOO_LARGE", |w| done(w.books.propose(w.account_id(0), Ask::Withdraw(a(101))))),
    ("PAYOUT_TOO_LARGE", |w| done(w.books.propose(w.account_id(1), Ask::Reclaim(a(101))))),
    ("PAYOUT_TOO_LARGE", |w| {
        w.pay(0, 1, 60)?;
        done(w.books.propose(w.account_id(1), Ask::Withdraw(a(161))))
    }),
    ("CANNOT_CLOSE", |w| {
        w.pay(0, 1, 60)?;
        w.edit_totals(0, |t| t.member_withdrawn = a(50));
        done(w.books.propose(w.account_id(0), Ask::Close))
    }),
    ("NOTHING_TO_SETTLE", |w| done(w.books.propose(w.account_id(0), Ask::Withdraw(a(0))))),
];

#[test]
fn every_refusal_says_its_reason_and_changes_nothing() {
    let mut given = BTreeSet::new();
    for (reason, situation) in REFUSALS {
        let mut world = refusal_world();
        let refusal = situation(&mut world).expect_err(reason);
        assert_eq!(refusal.reason(), *reason, "{refusal}");
        given.insert(refusal.reason());
    }
    assert_eq!(given.len(), 25, "a refusal without a row: {given:?}");
}

#[test]
fn a_refused_frame_leaves_the_books_as_they_were() {
    for (reason, _) in REFUSALS {
        let mut world = refusal_world();
        world.edit_totals(1, |t| t.hub_deposit = a(3));
        let before = (world.books.channels().clone(), world.books.ground(), world.books.open.entries.clone());
        let good = world.payment(world.id(2), 5);
        let bad = world.payment(world.id(1), 4);
        let frame = world.frame(0, 0, vec![good, bad]);
        assert_eq!(world.send(0, frame).expect_err(reason).reason(), "PAYEE_UNBACKED");
        let after = (world.books.channels().clone(), world.books.ground(), world.books.open.entries.clone());
        assert_eq!(before, after, "the frame is atomic");
    }
}

/// In each row two things are wrong; the earlier check answers.
#[test]
fn the_first_failing_check_answers() {
    let table: &[Row] = &[
        ("ID_USED", |w| {
            freeze(w);
            let known = w.payment(w.id(1), 5);
            let (payer, id) = (w.id(0), known.id);
            let place = KnownPayment { flush: 1, asset: TOKEN, entry: 0, payment: known.clone() };
            w.index.insert((payer, id), place);
            let frame = w.frame(0, 0, vec![known]);
            done(w.send(0, frame))
        }),
        ("HUB_FROZEN", |w| {
            freeze(w);
            w.books.drain();
            done(w.pay(0, 1, 5))
        }),
        ("DRAINING", |w| {
            w.books.drain();
            w.books.goodbye(w.id(0), w.members[0].session);
            done(w.pay(0, 1, 5))
        }),
        ("OLD_SESSION", |w| {
            w.books.hello(w.id(0), SessionId(50), None)?;
            w.books.policy.assets.clear();
            done(w.pay(0, 1, 5))
        }),
        ("UNKNOWN_ASSET", |w| {
            w.books.policy.assets.clear();
            close_member(w, 0);
            done(w.pay(0, 1, 5))
        }),
        ("NOT_OPEN", |w| {
            w.books.propose(w.account_id(0), Ask::Close)?;
            close_member(w, 0);
            done(w.pay(0, 1, 5))
        }),
        ("FREEZING", |w| {
            w.books.propose(w.account_id(0), Ask::Close)?;
            let payment = w.payment(w.id(1), 5);
            let frame = w.frame_after(0, 0, LaneTip { cumulative: a(1), memo: B256::ZERO }, vec![payment]);
            done(w.send(0, frame))
        }),
        ("LANE_BROKEN", |w| {
            w.books.policy.assets[0].fee_flat = a(1);
            let payment = w.payment(w.id(1), 5);
            let frame = w.frame_after(0, 0, LaneTip { cumulative: a(1), memo: B256::ZERO }, vec![payment]);
            done(w.send(0, frame))
        }),
        ("FEE_TOO_LOW", |w| {
            w.books.policy.assets[0].fee_flat = a(1);
            let payment = w.payment(ChannelId(B256::repeat_byte(0xee)), 5);
            let frame = w.frame(0, 0, vec![payment]);
            done(w.send(0, frame))
        }),
        ("PAYEE_CLOSING", |w| {
            close_member(w, 1);
            done(w.pay(0, 1, 5000))
        }),
        ("INSUFFICIENT_FUNDS", |w| done(w.pay(0, 1, 5000))),
    ];
    for (reason, situation) in table {
        let refusal = situation(&mut refusal_world()).expect_err(reason);
        assert_eq!(refusal.reason(), *reason, "{refusal}");
    }
}

#[test]
fn every_malformed_frame_is_refused() {
    let mut w = World::new(&[(100, 100)]);
    let key = seeded(Scheme::Ed25519, 9);
    let account = w.account_id(0);
    let one = w.payment(ChannelId::HUB, 1);
    let many = |w: &mut World, count: usize, payee: fn(usize) -> ChannelId| -> Vec<Payment> {
        (0..count).map(|i| w.payment(payee(i), 1)).collect()
    };
    let to_hub = |_: usize| ChannelId::HUB;
    let to_each = |i: usize| ChannelId(B256::left_padding_from(&i.to_be_bytes()));
    let full = many(&mut w, PAYMENTS_MAX, to_hub);
    let too_many = many(&mut w, PAYMENTS_MAX + 1, to_hub);
    let payees = many(&mut w, PAYEES_MAX, to_each);
    let too_many_payees = many(&mut w, PAYEES_MAX + 1, to_each);
    let long = Payment { note: vec![0; NOTE_MAX].into(), ..one.clone() };
    let too_long = Payment { note: vec![0; NOTE_MAX + 1].into(), ..one.clone() };
    let zero = Payment { amount: a(0), fee: a(1), ..one.clone() };
    let huge = Payment { amount: a(MAX), fee: a(1), ..one.clone() };
    let id = one.id;
    let table: Vec<(u32, Vec<Payment>, Option<FrameError>)> = vec![
        (0, vec![], Some(FrameError::Count { given: 0 })),
        (0, full, None),
        (0, too_many, Some(FrameError::Count { given: PAYMENTS_MAX + 1 })),
        (0, payees, None),
        (0, too_many_payees, Some(FrameError::Payees)),
        (0, vec![zero], Some(FrameError::ZeroAmount { id })),
        (0, vec![long], None),
        (0, vec![too_long], Some(FrameError::NoteTooLong { id, given: NOTE_MAX + 1 })),
        (0, vec![one.clone(), one.clone()], Some(FrameError::DuplicateId { id })),
        (63, vec![one.clone()], None),
        (64, vec![one], Some(FrameError::Lane { given: 64 })),
        (0, vec![huge], Some(FrameError::Overflow)),
    ];
    for (lane, payments, expected) in table {
        let signed = Frame::sign(&domain(), &key, account, lane, LaneTip::default(), payments);
        assert_eq!(signed.err(), expected);
    }
}

// ---- stories -------------------------------------------------------------------------------------------------------

#[test]
fn two_payers_cannot_share_one_backing() {
    let mut w = World::new(&[(100, 0), (100, 0), (1, 10)]);
    assert_eq!(w.pay(0, 2, 6), Ok(Paid::Accepted));
    let refusal = Refusal::PayeeUnbacked { payee: w.id(2), missing: a(2) };
    assert_eq!(w.pay(1, 2, 6), Err(refusal));
    assert_eq!(w.pay(1, 2, 4), Ok(Paid::Accepted));
    w.audit();
}

#[test]
fn a_backing_that_was_short_is_asked_for() {
    let mut w = World::new(&[(100, 0), (1, 10)]);
    w.books.take_wants();
    w.pay(0, 1, 11).expect_err("not backed");
    assert_eq!(w.books.take_wants(), vec![Want { account: w.account_id(1), amount: a(990) }]);
    assert_eq!(w.books.take_wants(), vec![], "each is named once");
}

#[test]
fn two_lanes_in_one_flush_cannot_spend_twice() {
    let mut w = World::new(&[(10, 0), (1, 100)]);
    for (lane, expected) in
        [(0, Ok(Paid::Accepted)), (1, Err(Refusal::InsufficientFunds { cost: a(6), available: a(4) }))]
    {
        let payment = w.payment(w.id(1), 6);
        let frame = w.frame(0, lane, vec![payment]);
        assert_eq!(w.send(0, frame), expected);
    }
    w.audit();
}

#[test]
fn settlement_counts_frames_waiting_for_the_flush() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    w.pay(0, 1, 60).expect("accepted, not sealed");
    let (payer, payee) = (w.account_id(0), w.account_id(1));
    let too_large = |asked, available| Err(Refusal::PayoutTooLarge { asked: a(asked), available: a(available) });
    assert_eq!(w.books.propose(payer, Ask::Withdraw(a(41))), too_large(41, 40));
    assert_eq!(w.books.propose(payee, Ask::Reclaim(a(41))), too_large(41, 40));
    let close = w.books.propose(payer, Ask::Close).expect("both nets are sound");
    assert_eq!((close.memberWithdrawn, close.hubWithdrawn), (40, 60));
    let close = w.books.propose(payee, Ask::Close).expect("both nets are sound");
    assert_eq!((close.memberWithdrawn, close.hubWithdrawn), (61, 40));
    let record = w.seal().expect("frames and proposals");
    assert!(matches!(record.entries[..], [Entry::Frame(_), Entry::Proposed(_), Entry::Proposed(_)]));
    w.audit();
}

#[test]
fn a_kept_settlement_cannot_take_backing_twice() {
    let mut w = World::new(&[(100, 0), (1, 50)]);
    w.books.propose(w.account_id(1), Ask::Reclaim(a(50))).expect("it is idle");
    w.seal();
    let refusal = Refusal::PayeeUnbacked { payee: w.id(1), missing: a(5) };
    assert_eq!(w.pay(0, 1, 5), Err(refusal.clone()), "the member may sign and keep it");
    w.later(VALIDITY_S);
    assert_eq!(w.pay(0, 1, 5), Err(refusal), "it is still valid at its last second");
    w.later(1);
    assert_eq!(w.pay(0, 1, 5), Ok(Paid::Accepted));
    w.audit();
}

#[test]
fn a_kept_settlement_cannot_withdraw_spent_money() {
    let mut w = World::new(&[(100, 0), (1, 500)]);
    let account = w.account_id(0);
    let first = w.books.propose(account, Ask::Withdraw(a(80))).expect("covered");
    assert_eq!(w.pay(0, 1, 30), Err(Refusal::InsufficientFunds { cost: a(30), available: a(20) }));
    let again = w.books.propose(account, Ask::Withdraw(a(30)));
    assert_eq!(again, Err(Refusal::PayoutTooLarge { asked: a(30), available: a(20) }));
    let second = w.books.propose(account, Ask::Withdraw(a(20))).expect("the rest");
    assert_eq!((second.seq, second.memberWithdrawn), (first.seq + 1, 100));
    w.edit_totals(0, |t| (t.seq, t.member_withdrawn) = (first.seq, a(80)));
    assert_eq!(w.account(0).kept.len(), 2, "posted, not confirmed: a reorganisation may take it back");
    w.edit_totals(0, |t| t.seq_confirmed = first.seq);
    assert_eq!(w.account(0).kept.len(), 1, "the second may still be posted");
    w.audit();
}

#[test]
fn a_settlement_overtaken_by_a_posted_one_counts_no_more() {
    let mut w = World::new(&[(100, 0), (1, 500)]);
    let account = w.account_id(0);
    w.books.propose(account, Ask::Withdraw(a(80))).expect("covered");
    let second = w.books.propose(account, Ask::Withdraw(a(1))).expect("covered");
    w.edit_totals(0, |t| (t.seq, t.seq_confirmed, t.member_withdrawn) = (second.seq, second.seq, a(81)));
    assert_eq!(w.account(0).kept, vec![]);
    assert_eq!(w.pay(0, 1, 19), Ok(Paid::Accepted));
    w.audit();
}

#[test]
fn a_refused_close_expires() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    let payee = w.account_id(1);
    let first = w.books.propose(payee, Ask::Close).expect("both nets are sound");
    w.books.agree(w.sign(1, &first)).expect("it waits for a signature");
    assert_eq!(w.pay(0, 1, 5), Err(Refusal::PayeeClosing { payee: w.id(1) }));
    assert_eq!(w.pay(1, 0, 1), Err(Refusal::Freezing { until: first.validUntil }));
    w.later(VALIDITY_S);
    assert_eq!(w.pay(0, 1, 5), Err(Refusal::PayeeClosing { payee: w.id(1) }));
    w.later(1);
    assert_eq!(w.pay(0, 1, 5), Ok(Paid::Accepted));
    let second = w.books.propose(payee, Ask::Close).expect("both nets are sound");
    assert!(second.seq > first.seq, "whoever signed a number signs no other settlement with it");
    assert_eq!(w.account(1).agreed, vec![]);
    w.audit();
}

#[test]
fn a_close_that_was_lost_with_a_session_is_given_again() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    let payee = w.account_id(1);
    let first = w.books.propose(payee, Ask::Close).expect("both nets are sound");
    assert_eq!(w.books.propose(payee, Ask::Close), Ok(first.clone()), "the same proposal, under the same number");
    assert_eq!(w.books.propose(payee, Ask::Withdraw(a(1))), Err(Refusal::Freezing { until: first.validUntil }));
    w.books.agree(w.sign(1, &first)).expect("it waits for a signature");
    assert_eq!(w.books.propose(payee, Ask::Close), Err(Refusal::Freezing { until: first.validUntil }), "it is signed");
    w.audit();
}

#[test]
fn ghost_frame_of_an_old_session_is_refused() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    let payment = w.payment(w.id(1), 5);
    let ghost = w.frame(0, 0, vec![payment]);
    let old = w.members[0].session;
    w.members[0].session = SessionId(50);
    w.books.hello(w.id(0), SessionId(50), None).expect("served");
    assert_eq!(w.books.pay(old, ghost.clone(), &w.index), Err(Refusal::OldSession));
    w.pay(0, 1, 7).expect("the lane goes on without it");
    assert_eq!(w.send(0, ghost), Err(Refusal::LaneBroken { lane: 0, cumulative: a(7) }));
    w.books.goodbye(w.id(0), old);
    assert_eq!(w.pay(0, 1, 7), Ok(Paid::Accepted), "the end of the old connection does not end the new session");
    w.audit();
}

/// What a hello's answer must wait for is in the open flush: its record holds every frame of the older session, and no
/// later record does.
#[test]
fn hello_waits_for_the_flush_before_it() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    let payment = w.payment(w.id(1), 5);
    let before = w.frame(0, 0, vec![payment]);
    w.send(0, before.clone()).expect("accepted");
    let old = w.members[0].session;
    w.members[0].session = SessionId(50);
    w.books.hello(w.id(0), SessionId(50), None).expect("served");
    let payment = w.payment(w.id(1), 6);
    let late = w.frame(0, 0, vec![payment]);
    assert_eq!(w.books.pay(old, late, &w.index), Err(Refusal::OldSession));
    assert_eq!(w.send(0, before.clone()), Ok(Paid::Again { flush: w.books.sealed() + 1 }));
    let record = w.seal().expect("the frame");
    assert_eq!(record.entries, vec![Entry::Frame(before.clone())]);
    assert_eq!(w.send(0, before), Ok(Paid::Again { flush: record.number }));
    assert_eq!(w.seal(), None);
}

#[test]
fn a_frame_is_not_accepted_on_a_refused_frames_signature() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    let stranger = w.payment(ChannelId(B256::repeat_byte(0xee)), 5);
    let payment = w.payment(w.id(1), 5);
    let first = w.frame(0, 0, vec![stranger]);
    let second = w.frame_after(0, 0, first.tip(), vec![payment]);
    let borrowed = *second.voucher.signature();
    let key = w.members[0].key.public();
    let forged = Frame::verify(&domain(), &key, first.account(), 0, first.tip(), first.payments.clone(), borrowed);
    assert!(matches!(forged, Err(FrameError::Key(_))), "each frame needs a signature of its own");
    assert_eq!(w.send(0, first).expect_err("no such payee").reason(), "UNKNOWN_PAYEE");
    assert_eq!(w.send(0, second), Err(Refusal::LaneBroken { lane: 0, cumulative: a(0) }));
    assert_eq!(w.account(0).member_paid, a(0));
}

#[test]
fn busy_payee_can_close() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    for _ in 0..3 {
        w.pay(0, 1, 5).expect("accepted");
        w.seal();
    }
    w.pay(0, 1, 5).expect("accepted, not sealed, nothing acknowledged");
    let payee = w.account_id(1);
    let close = w.books.propose(payee, Ask::Close).expect("payments in flight do not hold a close up");
    assert_eq!((close.memberWithdrawn, close.hubWithdrawn), (21, 80));
    assert_eq!(w.pay(0, 1, 5), Err(Refusal::PayeeClosing { payee: w.id(1) }));
    w.books.agree(w.sign(1, &close)).expect("it waits");
    let record = w.seal().expect("a frame, a proposal and a signature");
    assert_eq!(w.outcome(&record).settlements.len(), 1, "the hub's signature follows from the record");
    w.edit_totals(1, |t| {
        (t.seq, t.seq_confirmed, t.status) = (close.seq, close.seq, Status::Final);
        (t.member_withdrawn, t.hub_withdrawn) = (a(21), a(80));
    });
    assert_eq!(w.account(1).windfall(), Net::ZERO);
    assert_eq!(w.pay(0, 1, 5), Err(Refusal::PayeeClosing { payee: w.id(1) }));
    w.audit();
}

#[test]
fn a_refused_id_may_be_paid_later() {
    let mut w = World::new(&[(100, 0), (1, 3)]);
    let payment = w.payment(w.id(1), 5);
    let frame = w.frame(0, 0, vec![payment.clone()]);
    assert_eq!(w.send(0, frame).expect_err("not backed").reason(), "PAYEE_UNBACKED");
    assert_eq!(w.seal(), None, "a refusal leaves nothing to write");
    w.edit_totals(1, |t| t.hub_deposit = a(100));
    let frame = w.frame(0, 1, vec![payment.clone()]);
    assert_eq!(w.send(0, frame.clone()), Ok(Paid::Accepted), "on another lane, too");
    assert_eq!(w.send(0, frame), Ok(Paid::Again { flush: w.books.sealed() + 1 }));
    let frame = w.frame(0, 0, vec![payment]);
    assert_eq!(w.send(0, frame).map(|paid| matches!(paid, Paid::Again { .. })), Ok(true), "the lane is no content");
    w.audit();
}

#[test]
fn payments_are_known_together_or_not_at_all() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    let [x, y, z] = [5, 6, 7].map(|amount| w.payment(w.id(1), amount));
    let frame = w.frame(0, 0, vec![x.clone(), y.clone()]);
    w.send(0, frame).expect("accepted");
    let frame = w.frame(0, 0, vec![z.clone()]);
    w.send(0, frame).expect("accepted");
    for seal in [false, true] {
        if seal {
            w.seal();
        }
        let flush = w.books.sealed() + u64::from(!seal);
        let changed = Payment { note: Bytes::from_static(b"other"), ..x.clone() };
        let fresh = w.payment(w.id(1), 1);
        let table = [
            (vec![x.clone(), y.clone()], Ok(Paid::Again { flush })),
            (vec![y.clone()], Ok(Paid::Again { flush })),
            (vec![x.clone(), z.clone()], Err(Refusal::IdUsed { id: z.id })),
            (vec![changed], Err(Refusal::IdUsed { id: x.id })),
            (vec![x.clone(), fresh.clone()], Err(Refusal::IdUsed { id: fresh.id })),
            (vec![fresh, x.clone()], Err(Refusal::IdUsed { id: x.id })),
        ];
        for (payments, expected) in table {
            let frame = w.frame(0, 0, payments);
            assert_eq!(w.send(0, frame), expected);
        }
    }
}

#[test]
fn unaccepted_voucher_posted_by_member_is_windfall() {
    let mut w = World::new(&[(100, 0), (1, 3)]);
    w.pay(0, 1, 3).expect("accepted");
    w.pay(0, 1, 30).expect_err("not backed; the member has signed it all the same");
    w.seal();
    w.edit_totals(0, |t| {
        (t.status, t.member_paid) = (Status::Final, a(33));
        (t.member_withdrawn, t.hub_withdrawn) = t.payout(a(33), a(0));
    });
    assert_eq!(w.account(0).windfall(), Net::try_from(30).expect("small"));
    assert_eq!(w.books.sums()[&COIN].windfall, Net::try_from(30).expect("small"));
}

#[test]
fn a_withdrawal_and_what_was_paid_in_lead_to_the_same_close() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    w.pay(0, 1, 20).expect("accepted");
    let payout = w.books.propose(w.account_id(0), Ask::Withdraw(a(30))).expect("covered");
    w.books.agree(w.sign(0, &payout)).expect("it waits");
    let close = w.books.propose(w.account_id(0), Ask::Close).expect("a close counts the kept payout");
    assert_eq!((close.memberWithdrawn, close.hubWithdrawn), (80, 20));
    assert_eq!(w.books.waiting(w.account_id(0)), vec![payout, close]);
}

#[test]
fn an_acknowledgement_tells_each_payer_from_his_receipt_on() {
    let mut w = World::new(&[(100, 0), (100, 0), (1, 100)]);
    for payer in [0, 1, 0] {
        w.pay(payer, 2, 5).expect("accepted");
        w.seal();
    }
    let head = w.account(2).head;
    let ack = w.ack(2, 3, head);
    let deliveries = w.books.ack(ack).expect("it fits");
    let told: Vec<(ChannelId, u64)> = deliveries.iter().map(|d| (d.payer, d.credit)).collect();
    assert_eq!(told, vec![(w.id(0), 1), (w.id(1), 2)]);
    for delivery in deliveries {
        let receipts = w.records.iter().flat_map(|record| record.outcome(&domain()).credits);
        let own =
            receipts.into_iter().find(|c| c.receipt.credit == delivery.credit && !c.is_for_hub()).expect("credited");
        let start = chain_hash(delivery.head_before, domain().digest(&own.receipt));
        assert_eq!(delivery.digests.iter().fold(start, |head, digest| chain_hash(head, *digest)), head);
    }
    assert!(w.account(2).links.is_empty());
}

#[test]
fn only_offered_terms_are_served() {
    type Edit = fn(&mut ChannelTerms);
    let table: &[(&str, Edit)] = &[
        ("another hub's payout account", |t| t.hub = Address::repeat_byte(1)),
        ("an unknown hub scheme", |t| t.hubScheme = 3),
        ("not this hub's voucher key", |t| t.hubKey = B256::repeat_byte(1)),
        ("another challenge period than the offered one", |t| t.challengePeriod = 1),
        ("an unknown member scheme", |t| t.memberScheme = 0),
        ("an unusable member key", |t| t.memberKey = B256::ZERO),
    ];
    for (why, edit) in table {
        let mut w = World::new(&[]);
        let (_, mut terms) = terms(1);
        edit(&mut terms);
        let mut update = w.update(1);
        let id = domain().channel_id(&terms);
        update.opened.push(terms);
        assert_eq!(w.books.ledger(update), vec![(id, *why)]);
        assert!(w.books.channel(id).is_none());
    }
}

#[test]
fn fees_round_up_and_never_wrap() {
    let p = AssetPolicy { fee_flat: a(2), fee_ppm: 3, ..policy(0, 0).assets[0].clone() };
    for (amount, fee) in [(1, 3), (333_333, 3), (333_334, 4), (1_000_000, 5)] {
        assert_eq!(p.fee(a(amount)), a(fee), "{amount}");
    }
    assert_eq!(AssetPolicy { fee_flat: a(MAX), ..p }.fee(a(MAX)), a(MAX));
}

#[test]
fn what_the_hub_signs_verifies_and_opens() {
    let mut w = World::new(&[(100, 0), (100, 0), (1, 100), (1, 100)]);
    let payments = [(2, 1), (3, 2), (2, 3)].map(|(to, amount)| w.payment(w.id(to), amount));
    let frame = w.frame(0, 0, payments.to_vec());
    w.send(0, frame).expect("accepted");
    w.pay(1, 2, 4).expect("accepted");
    let to_hub = w.payment(ChannelId::HUB, 5);
    let frame = w.frame(1, 0, vec![to_hub]);
    w.send(1, frame).expect("accepted");
    let record = w.seal().expect("frames");
    let signed = w.outcome(&record);
    let amounts: Vec<(u64, u128, u128)> =
        signed.receipts.iter().map(|r| (r.body().credit, r.body().amount, r.body().total)).collect();
    assert_eq!(amounts, vec![(1, 4, 4), (2, 4, 8), (1, 2, 2), (0, 5, 0)]);
    let key_of = |channel: ChannelId| {
        let terms = &w.books.channel(channel).expect("known").terms;
        PublicKey::new(Scheme::from_number(terms.hubScheme).expect("known"), terms.hubKey).expect("good")
    };
    for (credit, receipt) in signed.credits.iter().zip(&signed.receipts) {
        let key = key_of(credit.signing_channel());
        let again = crate::evidence::Proven::verify(&domain(), &key, receipt.body().clone(), receipt.proof().clone());
        assert_eq!(again.as_ref(), Ok(receipt));
    }
    for voucher in &signed.vouchers {
        let key = key_of(ChannelId(voucher.body().channelId));
        let again = crate::evidence::Proven::verify(&domain(), &key, voucher.body().clone(), voucher.proof().clone());
        assert_eq!(again.as_ref(), Ok(voucher));
        assert_eq!(voucher.body().check(), Ok(crate::ids::Side::Hub));
    }
    let heads: Vec<B256> = signed.vouchers.iter().map(|v| v.body().memo).collect();
    assert_eq!(heads, vec![w.account(2).head, w.account(3).head]);
}

// ---- random runs ---------------------------------------------------------------------------------------------------

/// SplitMix64: a whole run follows from one seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).expect("small")).expect("small")
    }

    fn amount(&mut self, n: u128) -> u128 {
        u128::from(self.next()) % n
    }
}

/// Everything that a restart could find: the rows as they stood after each record.
struct Run {
    world: World,
    dice: Dice,
    streams: Vec<Stream>,
    grounds: Vec<Ground>,
    rows: Vec<Channels>,
}

impl Run {
    fn new(seed: u64) -> Run {
        let world = World::with_policy(&[], policy(1, 1000));
        let mut run = Run { world, dice: Dice(seed), streams: vec![], grounds: vec![], rows: vec![] };
        run.keep_rows();
        for _ in 0..4 {
            run.world.open(deposits(500, 300));
        }
        run.seal();
        run
    }

    fn keep_rows(&mut self) {
        self.grounds.push(self.world.books.ground());
        self.rows.push(self.world.books.channels().clone());
    }

    fn seal(&mut self) {
        if self.world.seal().is_some() {
            self.keep_rows();
            for account in self.world.books.channels().values().flat_map(|c| c.accounts.values()) {
                assert_eq!(account.credited, account.hub_paid, "what is sealed is credited");
            }
        }
    }

    fn step(&mut self) {
        let n = self.dice.below(self.world.members.len());
        match self.dice.below(28) {
            20 | 21 => self.open_stream(n),
            22..=26 => self.tick(),
            27 => self.fold(),
            0..=8 => self.pay(n),
            9 | 10 => self.propose(n),
            11 => self.agree(n),
            12 | 13 => self.ledger(n),
            14 => self.ack(n),
            15 => {
                let name = ["ann", "bob", "cat"][self.dice.below(3)];
                let _ = self.world.books.name(self.world.id(n), name);
            }
            16 => {
                let session = SessionId(self.dice.next());
                self.world.members[n].session = session;
                let _ = self.world.books.hello(self.world.id(n), session, None);
            }
            _ => self.seal(),
        }
        self.world.audit();
    }

    fn pay(&mut self, from: usize) {
        let w = &mut self.world;
        let count = 1 + self.dice.below(3);
        let payments = (0..count).map(|_| {
            let to = self.dice.below(w.members.len() + 1);
            let payee = w.members.get(to).map_or(ChannelId::HUB, |m| m.id);
            Payment { fee: a(1 + self.dice.amount(2)), ..w.payment(payee, 1 + self.dice.amount(150)) }
        });
        let payments: Vec<Payment> = payments.collect();
        let lane = u32::try_from(self.dice.below(3)).expect("small");
        let frame = w.frame(from, lane, payments);
        if w.send(from, frame.clone()) == Ok(Paid::Accepted) && self.dice.below(4) == 0 {
            assert!(matches!(w.send(from, frame), Ok(Paid::Again { .. })));
        }
    }

    fn open_stream(&mut self, from: usize) {
        let w = &mut self.world;
        let to = self.dice.below(w.members.len() + 1);
        let payee = w.members.get(to).map_or(ChannelId::HUB, |m| m.id);
        let terms = match self.streams.last() {
            Some(last) if self.dice.below(5) == 0 => *last.terms(),
            _ => w.stream_terms(payee, 1 + self.dice.amount(20), 1 + self.dice.amount(2)),
        };
        let lane = u32::try_from(self.dice.below(3)).expect("small");
        if let Ok(stream) = w.open_with(from, lane, terms, 1 + u32::try_from(self.dice.below(12)).expect("small")) {
            if self.dice.below(3) == 0 {
                let again = w.books.open_stream(w.members[from].session, stream.opening.clone());
                assert_eq!(again, Ok(()), "the same again");
            }
            self.streams.push(stream);
        }
    }

    /// A word of any stream, mostly of a new one.
    fn tick(&mut self) {
        let Some(last) = self.streams.len().checked_sub(1) else { return };
        let stream = &self.streams[last - self.dice.below(last + 1).min(self.dice.below(4))];
        let index = 1 + self.dice.below(stream.words.ticks() as usize);
        let index = u32::try_from(index).expect("small");
        if self.world.tick(stream, index) == Ok(Ticked::Accepted) {
            assert_eq!(self.world.tick(stream, index), Ok(Ticked::Known));
        }
    }

    fn fold(&mut self) {
        let Some(last) = self.streams.len().checked_sub(1) else { return };
        let stream = &self.streams[last - self.dice.below(last + 1).min(self.dice.below(4))];
        let index = self.world.account(stream.from).lanes.get(&stream.lane).and_then(LaneVoucher::ticks);
        let index = index.map_or(0, |ticks| ticks.index());
        if index <= stream.words.ticks() && self.world.fold(stream, index).is_ok() {
            assert_eq!(self.world.fold(stream, index), Ok(()), "the same again");
        }
    }

    fn propose(&mut self, n: usize) {
        let ask = match self.dice.below(5) {
            0 => Ask::Close,
            1 | 2 => Ask::Withdraw(a(self.dice.amount(100))),
            _ => Ask::Reclaim(a(self.dice.amount(100))),
        };
        let _ = self.world.books.propose(self.world.account_id(n), ask);
    }

    fn agree(&mut self, n: usize) {
        let waiting = self.world.books.waiting(self.world.account_id(n));
        if !waiting.is_empty() {
            let signed = self.world.sign(n, &waiting[self.dice.below(waiting.len())]);
            self.world.books.agree(signed).expect("it waits for a signature");
        }
    }

    /// A block: time passes, deposits arrive, agreed settlements are posted, a posted one is confirmed.
    fn ledger(&mut self, n: usize) {
        let seconds = if self.dice.below(6) == 0 { VALIDITY_S } else { 12 };
        let (deposit, pick) = (a(self.dice.amount(200)), self.dice.below(4));
        let agreed = self.world.account(n).agreed.clone();
        self.world.later(seconds);
        let time = self.world.time;
        self.world.edit_totals(n, |t| {
            t.seq_confirmed = t.seq;
            match (pick, agreed.last().map(Signed::body)) {
                (0, _) if t.status == Status::Open => t.member_deposit = t.member_deposit.saturating_add(deposit),
                (1, _) if t.status == Status::Open => t.hub_deposit = t.hub_deposit.saturating_add(deposit),
                (_, Some(s)) if s.seq > t.seq && time < s.validUntil => {
                    (t.seq, t.member_withdrawn, t.hub_withdrawn) = (s.seq, a(s.memberWithdrawn), a(s.hubWithdrawn));
                    if s.close && t.custody().is_zero() {
                        t.status = Status::Final;
                    }
                }
                _ => {}
            }
        });
    }

    fn ack(&mut self, n: usize) {
        let account = self.world.account(n);
        if let Some(link) = account.links.get(self.dice.below(account.links.len().max(1))) {
            let ack = self.world.ack(n, link.number, link.head);
            let deliveries = self.world.books.ack(ack).expect("it fits");
            assert!(!deliveries.is_empty());
        }
    }

    /// Books restored from rows of which each is as new as the checkpoint or newer, and the records after it.
    fn restarted(&mut self, checkpoint: usize) -> Books {
        let last = self.rows.len() - 1;
        let mut pick = || checkpoint + self.dice.below(last - checkpoint + 1);
        let ids: Vec<ChannelId> = self.rows[last].keys().copied().collect();
        let rows: Vec<(ChannelId, Channel)> =
            ids.iter().filter_map(|id| self.rows[pick()].get(id).map(|row| (*id, row.clone()))).collect();
        let ground = self.grounds[pick()].clone();
        let mut books = Books::restore(domain(), self.world.books.policy().clone(), ground, rows);
        for record in &self.world.records[checkpoint..] {
            books.replay(record);
        }
        books
    }

    fn assert_same(&self, books: &Books, what: &str) {
        assert_eq!(books.channels(), self.world.books.channels(), "{what}");
        assert_eq!(books.ground(), self.world.books.ground(), "{what}");
        assert_eq!(books.names, self.world.books.names, "{what}");
    }
}

#[test]
fn random_runs_conserve_money_and_restart_where_they_were() {
    let runs: u64 = std::env::var("PAYHUB_BOOKS_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    for seed in 0..runs {
        let mut run = Run::new(seed);
        for _ in 0..150 {
            run.step();
        }
        run.seal();
        // The first record was sealed before any row was kept by `World::with_policy`, when there were no members.
        assert_eq!(run.rows.len(), run.world.records.len() + 1, "seed {seed}");
        for _ in 0..5 {
            let checkpoint = run.dice.below(run.rows.len());
            let mut books = run.restarted(checkpoint);
            run.assert_same(&books, &format!("seed {seed}, checkpoint {checkpoint}"));
            for record in &run.world.records[checkpoint..] {
                books.replay(record);
            }
            run.assert_same(&books, &format!("seed {seed}, checkpoint {checkpoint}, replayed twice"));
        }
        let last = run.world.records.last().expect("there are records").clone();
        let mut books = run.restarted(run.rows.len() - 1);
        books.replay(&last);
        run.assert_same(&books, &format!("seed {seed}, the last record again"));
        for record in run.world.records.clone() {
            let copy: FlushRecord =
                serde_json::from_str(&serde_json::to_string(&record).expect("writes")).expect("reads");
            assert_eq!(copy, record, "seed {seed}");
            assert_eq!(run.world.outcome(&copy), run.world.outcome(&record), "seed {seed}: byte for byte");
        }
    }
}

#[test]
fn the_rare_paths_of_the_random_runs_are_run() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut note = |what, happened: bool| *seen.entry(what).or_default() += usize::from(happened);
    for seed in 0..10 {
        let mut run = Run::new(seed);
        for _ in 0..150 {
            run.step();
        }
        let accounts: Vec<&Account> = run.world.books.channels().values().flat_map(|c| c.accounts.values()).collect();
        note("a settlement was posted", accounts.iter().any(|x| x.ledger.seq > 0));
        note("an account is final", accounts.iter().any(|x| x.ledger.status == Status::Final));
        note("a proposal went unposted", accounts.iter().any(|x| x.proposed > x.ledger.seq));
        note("credits were acknowledged", accounts.iter().any(|x| x.acked > 0));
        note("several lanes were paid on", accounts.iter().any(|x| x.lanes.len() > 1));
        let entries = || run.world.records.iter().flat_map(|record| &record.entries);
        let ticks = |e: &Entry| if let Entry::Ticks(paid) = e { Some((paid.lane, paid.anchor)) } else { None };
        note("ticks were paid", entries().any(|e| ticks(e).is_some()));
        note("ticks went on in a later flush", entries().any(|e| matches!(e, Entry::Ticks(paid) if paid.before > 0)));
        note("a lane of ticks was folded", entries().any(|e| matches!(e, Entry::Folded(_))));
        let continued = |record: &FlushRecord| {
            let frames = record.entries.iter().filter_map(|e| if let Entry::Frame(f) = e { Some(f) } else { None });
            let lanes: Vec<_> = frames.map(|f| (f.account(), f.lane())).collect();
            let paid = record.entries.iter().filter_map(|e| if let Entry::Ticks(p) = e { Some(p) } else { None });
            paid.into_iter().any(|p| lanes.contains(&(p.account, p.lane)))
        };
        note("a frame and ticks of one lane were in one flush", run.world.records.iter().any(continued));
    }
    assert!(seen.values().all(|count| *count > 0), "{seen:?}");
}

/// A signature is 64 or 65 bytes: the type keeps the two schemes apart, and a record keeps which one it is.
#[test]
fn signatures_survive_a_record() {
    for scheme in [Scheme::Ed25519, Scheme::Secp256k1] {
        let settlement = Settlement {
            channelId: B256::ZERO,
            asset: COIN,
            seq: 1,
            memberWithdrawn: 0,
            hubWithdrawn: 0,
            validUntil: 0,
            close: false,
        };
        let signed = Signed::sign(&domain(), &seeded(scheme, 1), settlement);
        let copy: Signature =
            serde_json::from_str(&serde_json::to_string(signed.signature()).expect("writes")).expect("reads");
        assert_eq!(&copy, signed.signature());
    }
}

#[test]
fn tokens_that_are_not_served_make_no_accounts() {
    let mut w = World::new(&[(100, 100)]);
    let mut update = w.update(1);
    for n in 1..=200u8 {
        let account = AccountId { channel: w.id(0), asset: Asset::repeat_byte(n) };
        update.totals.push((account, deposits(1, 0)));
    }
    update.totals.push((AccountId { channel: w.id(0), asset: TOKEN }, deposits(7, 0)));
    w.books.ledger(update);
    let accounts: Vec<Asset> = w.books.channel(w.id(0)).expect("open").accounts.keys().copied().collect();
    assert_eq!(accounts, [COIN, TOKEN]);
}
