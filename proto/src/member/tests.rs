//! A member against a hub that is played by hand, so that it can be as dishonest as a test wants.

mod streams;

use super::*;
use crate::wire::CreditedPayment;
use alloy_primitives::{Address, Bytes};

const ASSET: Asset = Address::repeat_byte(0xAA);

/// A hub's side of two channels, signed directly.
struct Hub {
    key: SecretKey,
    domain: Domain,
    credits: BTreeMap<ChannelId, Counted>,
    log: BTreeMap<ChannelId, Vec<(B256, Counted)>>,
}

fn domain() -> Domain {
    Domain::new(7, Address::repeat_byte(1))
}

fn hub() -> Hub {
    let key = SecretKey::derive(Scheme::Ed25519, &[9; 32], "hub");
    Hub { key, domain: domain(), credits: BTreeMap::new(), log: BTreeMap::new() }
}

fn terms(seed: u8, scheme: Scheme) -> ChannelTerms {
    let key = SecretKey::derive(scheme, &[seed; 32], "voucher").public();
    ChannelTerms {
        hub: Address::repeat_byte(2),
        hubKey: hub().key.public().bytes,
        hubScheme: Scheme::Ed25519.number(),
        member: Address::repeat_byte(seed),
        memberKey: key.bytes,
        memberScheme: scheme.number(),
        challengePeriod: 3600,
        salt: B256::repeat_byte(seed),
    }
}

fn amount(base_units: u128) -> Amount {
    Amount::new(base_units)
}

fn deposits(member: u128, hub: u128) -> Totals {
    Totals { member_deposit: amount(member), hub_deposit: amount(hub), ..Totals::default() }
}

/// A member with a deposit of 1,000 on each side who knows the payee with seed 2.
fn member(seed: u8) -> Member {
    limited(seed, Limits::default())
}

fn limited(seed: u8, limits: Limits) -> Member {
    let key = SecretKey::derive(Scheme::Ed25519, &[seed; 32], "voucher");
    let mut member = Member::new(domain(), key, terms(seed, Scheme::Ed25519), limits).expect("own terms");
    member.head(1_000);
    member.ledger(ASSET, deposits(1_000, 1_000));
    for other in (1..=3).filter(|s| *s != seed) {
        let terms = terms(other, Scheme::Ed25519);
        member.pin(domain().channel_id(&terms), terms).expect("good terms");
    }
    member
}

fn channel(seed: u8) -> ChannelId {
    domain().channel_id(&terms(seed, Scheme::Ed25519))
}

fn payment(id: u8, payee: u8, base_units: u128) -> Payment {
    Payment {
        id: PaymentId([id; 16].into()),
        payee: channel(payee),
        amount: amount(base_units),
        fee: amount(1),
        note: Bytes::from_static(b"tea"),
    }
}

impl Hub {
    /// The next credit of a payee, and the receipt for it.
    fn credit(&mut self, payee: ChannelId, payer: ChannelId, payments: &[Payment]) -> (Credit, Proven<Receipt>) {
        let id = AccountId { channel: payee, asset: ASSET };
        let before = self.credits.get(&payee).copied().unwrap_or_default();
        let rows = payments.iter().filter(|p| p.payee == payee);
        let rows: Vec<_> = rows.map(|p| CreditedPayment { id: p.id, amount: p.amount, note: p.note.clone() }).collect();
        let sum = sum(rows.iter().map(|p| p.amount));
        let credit = Credit {
            number: before.credits + 1,
            payer,
            amount: sum,
            total: before.total.saturating_add(sum),
            payments: rows,
        };
        let receipt = Proven::sign(&self.domain, &self.key, credit.receipt(id));
        let head = chain_hash(before.head, receipt.digest());
        let after = Counted { credits: credit.number, total: credit.total, head };
        self.credits.insert(payee, after);
        self.log.entry(payee).or_default().push((receipt.digest(), after));
        (credit, receipt)
    }

    fn accept(&mut self, payer: ChannelId, frames: &[(u64, Frame)]) -> v1::Accepted {
        let payments: Vec<Payment> = frames.iter().flat_map(|(_, f)| f.payments.clone()).collect();
        let mut payees: Vec<ChannelId> = payments.iter().map(|p| p.payee).collect();
        payees.sort_unstable();
        payees.dedup();
        let receipts =
            payees.into_iter().map(|payee| wire::receipt_message(&self.credit(payee, payer, &payments).1)).collect();
        let tags = frames.iter().map(|(tag, _)| *tag).collect();
        v1::Accepted { flush: 1, asset: wire::bytes_of(ASSET), tags, receipts, ticks: vec![] }
    }

    fn voucher(&self, payee: ChannelId) -> Proven<Voucher> {
        let stand = self.credits[&payee];
        let account = AccountId { channel: payee, asset: ASSET };
        let body = wire::hub_voucher(account, stand.total, stand.credits, stand.head);
        Proven::sign(&self.domain, &self.key, body)
    }

    fn credited(&self, payee: ChannelId, credits: &[Credit]) -> v1::Credited {
        v1::Credited {
            asset: wire::bytes_of(ASSET),
            credits: credits.iter().map(wire::credit_message).collect(),
            voucher: Some(wire::hub_voucher_message(&self.voucher(payee))),
        }
    }

    /// The payee's word over everything credited so far, as told to the payer of credit number `credit`.
    fn delivered(&self, payee: u8, credit: u64) -> v1::Delivered {
        let key = SecretKey::derive(Scheme::Ed25519, &[payee; 32], "voucher");
        let log = &self.log[&channel(payee)];
        let newest = log.last().expect("something was credited").1;
        let ack = Ack { channelId: channel(payee).0, asset: ASSET, credits: newest.credits, head: newest.head };
        let at = usize::try_from(credit).expect("small");
        let head_before = if at == 1 { B256::ZERO } else { log[at - 2].1.head };
        wire::delivered_message(&wire::Delivered {
            payee: channel(payee),
            ack: Signed::sign(&self.domain, &key, ack),
            credit,
            head_before,
            digests: log[at..].iter().map(|(digest, _)| *digest).collect(),
            last_page: true,
        })
    }
}

fn refusal(tag: u64) -> v1::Refused {
    v1::Refused { tag, reason: "PAYEE_UNBACKED".into(), retryable: true, ..v1::Refused::default() }
}

fn frames_of(resent: Vec<Resent>) -> Vec<(u64, Frame)> {
    let frame = |one| if let Resent::Frame(tag, frame) = one { Some((tag, frame)) } else { None };
    resent.into_iter().filter_map(frame).collect()
}

fn balance(member: &Member) -> Balance {
    member.balance(ASSET).expect("there is an account")
}

/// What the journal would give back: the same member, from the records alone.
fn replayed(seed: u8, records: &[Record]) -> Member {
    let mut again = member(seed);
    records.iter().for_each(|record| again.apply(record));
    again
}

#[test]
fn a_frame_is_paid_when_its_receipts_prove_every_payment() {
    let (mut alice, mut hub) = (member(1), hub());
    let (t1, f1) = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 10), payment(2, 3, 20)]).expect("solvent");
    let (t2, f2) = alice.sign_frame(ASSET, 5, vec![payment(3, 2, 30)]).expect("solvent");
    assert_eq!(balance(&alice).available, amount(1_000 - 63));
    let frames = [(t1, f1.clone()), (t2, f2.clone())];
    let answer = hub.accept(channel(1), &frames);
    for spoil in [
        (|a: &mut v1::Accepted| drop(a.receipts.pop())) as fn(&mut v1::Accepted),
        |a| a.receipts[0].amount = wire::amount_bytes(amount(9)),
        |a| a.tags.truncate(1),
    ] {
        let mut bad = answer.clone();
        spoil(&mut bad);
        let taken = member_clone(&mut alice, |m| m.accepted(&bad));
        assert!(taken.is_err() || taken.expect("a run that is proven").events.len() == 3, "all or nothing");
    }
    let step = alice.accepted(&answer).expect("good receipts");
    assert_eq!(step.events.iter().filter(|e| matches!(e, Event::Paid { .. })).count(), 3);
    assert_eq!((balance(&alice).paid, balance(&alice).unreceipted), (amount(63), Amount::ZERO));
    assert_eq!(balance(&alice).undelivered, amount(60));
    let mut records = vec![Record::Signed(f1), Record::Signed(f2)];
    records.extend(step.records);
    assert_eq!(replayed(1, &records).state(), alice.state());
}

/// Runs something on a copy, so that a table of bad messages starts from one state.
fn member_clone<T>(member: &mut Member, run: impl FnOnce(&mut Member) -> T) -> T {
    let before = member.state.clone();
    let tags: Vec<u64> = member.of(ASSET).unanswered.iter().map(|p| p.tag).collect();
    let result = run(member);
    member.state = before;
    member.of(ASSET).unanswered.iter_mut().zip(tags).for_each(|(p, tag)| p.tag = tag);
    result
}

#[test]
fn a_frame_sent_again_is_proven_by_the_receipts_of_its_whole_flush() {
    let (mut alice, mut hub) = (member(1), hub());
    let frames: Vec<_> =
        (1..=4).map(|i| alice.sign_frame(ASSET, 0, vec![payment(i, 2, 10)]).expect("solvent")).collect();
    let mut answer = hub.accept(channel(1), &frames[1..3]);
    let login = alice.login(B256::ZERO, B256::ZERO, 9);
    alice.hello(&login, "");
    let again = frames_of(alice.resend());
    assert_eq!(again.iter().map(|a| &a.1).collect::<Vec<_>>(), frames.iter().map(|f| &f.1).collect::<Vec<_>>());
    let first = hub.accept(channel(1), &again[..1]);
    alice.accepted(&first).expect("the first alone");
    answer.tags = vec![again[2].0];
    assert_eq!(alice.accepted(&answer).expect("a run").events.len(), 2);
    assert_eq!(alice.unanswered(ASSET), 1);
}

#[test]
fn client_ignores_a_lane_view_without_its_signature() {
    let (mut alice, hub) = (member(1), hub());
    let account = AccountId { channel: channel(1), asset: ASSET };
    let ahead = LaneTip { cumulative: amount(500), memo: B256::repeat_byte(1) };
    let forged = Signed::sign(&domain(), &hub.key, crate::frame::member_voucher(account, 0, ahead));
    let view = v1::AccountState {
        asset: wire::bytes_of(ASSET),
        lanes: vec![wire::lane_message(&LaneVoucher::Plain(forged))],
        ..v1::AccountState::default()
    };
    let welcome = v1::Welcome { accounts: vec![view], ..v1::Welcome::default() };
    let step = alice.welcome(&welcome).expect("well-formed");
    assert_eq!(step.records, vec![]);
    assert_eq!(step.events, vec![Event::Misbehaved(Misbehaviour::LaneUnsigned { lane: 0 })]);
    let (_, frame) = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 10)]).expect("the lane did not move");
    assert_eq!(frame.tip().cumulative, amount(11));
}

#[test]
fn an_own_signature_newer_than_the_store_is_adopted_and_the_collateral_has_to_wait() {
    let mut old = member(1);
    let (mut newer, hub) = (member(1), hub());
    let (_, frame) = newer.sign_frame(ASSET, 3, vec![payment(1, 2, 10)]).expect("solvent");
    let view = v1::AccountState {
        asset: wire::bytes_of(ASSET),
        lanes: vec![wire::lane_message(&LaneVoucher::Plain(frame.voucher))],
        ..v1::AccountState::default()
    };
    let welcome = v1::Welcome { accounts: vec![view], ..v1::Welcome::default() };
    let step = old.welcome(&welcome).expect("well-formed");
    assert_eq!(step.events, vec![Event::StoreWasOld { asset: ASSET, lane: 3 }]);
    assert!(!old.trusts_itself());
    let (_, next) = old.sign_frame(ASSET, 3, vec![payment(2, 2, 10)]).expect("it continues what was adopted");
    assert_eq!(next.tip().cumulative, amount(22));
    drop(hub);
}

#[test]
fn one_receipt_twice_does_not_stand_for_another_payee() {
    let (mut alice, mut hub) = (member(1), hub());
    let (tag, frame) = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 100), payment(2, 3, 100)]).expect("solvent");
    let honest = hub.accept(alice.channel(), &[(tag, frame)]);
    let first = honest.receipts[0].clone();
    let thief = v1::Accepted { receipts: vec![first.clone(), first], ..honest.clone() };
    assert!(matches!(alice.accepted(&thief), Err(Misbehaviour::BadReceipts { .. })));
    assert_eq!(alice.balance(ASSET).expect("open").unreceipted, amount(202), "nothing counts as receipted");
    assert_eq!(alice.accepted(&honest).expect("both payees").events.len(), 2);
}

#[test]
fn a_frame_after_a_refused_one_is_never_accepted() {
    let (mut alice, mut hub) = (member(1), hub());
    let (first, _) = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 100)]).expect("solvent");
    let (second, frame) = alice.sign_frame(ASSET, 0, vec![payment(2, 2, 10)]).expect("solvent");
    let refused = v1::Refused { tag: first, reason: "PAYEE_UNBACKED".to_owned(), ..Default::default() };
    alice.refused(&refused).expect("a refusal");
    let thief = hub.accept(alice.channel(), &[(second, frame)]);
    assert_eq!(alice.accepted(&thief), Err(Misbehaviour::Order { lane: 0 }), "it carries the refused one's money");
    assert_eq!(alice.balance(ASSET).expect("open").unreceipted, amount(112), "the bound on exposure holds");
}

#[test]
fn an_old_frame_answered_again_does_not_move_an_adopted_lane_back() {
    let (mut old, mut hub) = (member(1), hub());
    let (_, first) = old.sign_frame(ASSET, 0, vec![payment(1, 2, 10)]).expect("solvent");
    let mut newer = member(1);
    newer.apply(&Record::Signed(first.clone()));
    let (_, second) = newer.sign_frame(ASSET, 0, vec![payment(2, 2, 20)]).expect("solvent");
    let lane = wire::lane_message(&LaneVoucher::Plain(second.voucher.clone()));
    let view = v1::AccountState { asset: wire::bytes_of(ASSET), lanes: vec![lane], ..Default::default() };
    let welcome = v1::Welcome { accounts: vec![view], ..Default::default() };
    old.welcome(&welcome).expect("his own signature");
    let again = frames_of(old.resend());
    let answer = hub.accept(old.channel(), &again);
    old.accepted(&answer).expect("it was accepted before");
    assert_eq!(old.evidence(ASSET).expect("open").lanes, vec![LaneVoucher::Plain(second.voucher)]);
}

#[test]
fn frames_sent_again_are_answered_around_a_refused_one() {
    let (mut alice, mut hub) = (member(1), hub());
    let mut frames = Vec::new();
    for (id, lane) in [(1, 0), (2, 1), (3, 0)] {
        frames.push(alice.sign_frame(ASSET, lane, vec![payment(id, 2, 10)]).expect("solvent"));
    }
    // The hub accepted the first and the third in one flush, refused the second, and no answer came.
    let answer = hub.accept(alice.channel(), &[frames[0].clone(), frames[2].clone()]);
    let login = alice.login(B256::ZERO, B256::ZERO, 0);
    alice.hello(&login, "alice");
    let tags: Vec<u64> = frames_of(alice.resend()).into_iter().map(|(tag, _)| tag).collect();
    let again = |tag| v1::Accepted { tags: vec![tag], ..answer.clone() };
    assert_eq!(alice.accepted(&again(tags[0])), Ok(Step::default()), "its receipts cover more than it");
    alice.refused(&v1::Refused { tag: tags[1], ..Default::default() }).expect("a refusal");
    assert_eq!(alice.accepted(&again(tags[2])).expect("both").events.len(), 2);
    assert_eq!(alice.unanswered(ASSET), 0);
    // Receipts that no answers add up to are still no receipts.
    alice.sign_frame(ASSET, 0, vec![payment(4, 2, 10)]).expect("solvent");
    let login = alice.login(B256::ZERO, B256::ZERO, 0);
    alice.hello(&login, "alice");
    let tag = frames_of(alice.resend())[0].0;
    assert!(matches!(alice.accepted(&again(tag)), Err(Misbehaviour::BadReceipts { .. })));
}

#[test]
fn duplicate_credit_number_is_seen_by_the_payer() {
    let (mut alice, mut hub) = (member(1), hub());
    let frame = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 10)]).expect("solvent");
    // Another payer got number 1 as well, and that is the one that the payee was told of.
    let mut liar = super::tests::hub();
    let other = Payment { amount: amount(4), ..payment(9, 2, 4) };
    liar.credit(channel(2), channel(3), &[other]);
    alice.accepted(&hub.accept(channel(1), &[frame])).expect("it looks good");
    let fault = alice.delivered(&liar.delivered(2, 1)).expect_err("the heads do not meet");
    assert_eq!(fault, Misbehaviour::NotInTheChain { payee: channel(2), credit: 1 });
    // One payer who got a number twice holds the proof himself.
    let frame = alice.sign_frame(ASSET, 0, vec![payment(2, 2, 10)]).expect("solvent");
    let step = alice.accepted(&super::tests::hub().accept(channel(1), &[frame])).expect("it proves the payment");
    let twice = |e: &Event| matches!(e, Event::Misbehaved(Misbehaviour::NumberTwice { .. }));
    assert!(step.events.iter().any(twice));
}

#[test]
fn fees_do_not_fill_the_exposure() {
    let limits = Limits { max_unreceipted: amount(25), ..Limits::default() };
    let (mut alice, mut hub) = (limited(1, limits), hub());
    for id in 1..=20 {
        let frame = alice.sign_frame(ASSET, 0, vec![payment(id, 2, 20)]).expect("everything before is receipted");
        let too_much = PayError::Exposure { exposure: amount(42), limit: amount(25) };
        assert_eq!(alice.sign_frame(ASSET, 0, vec![payment(99, 2, 20)]), Err(too_much));
        alice.accepted(&hub.accept(channel(1), &[frame])).expect("good receipts");
        assert_eq!(balance(&alice).unreceipted, Amount::ZERO, "fees have no receipt and need none");
    }
}

#[test]
fn a_refused_voucher_still_counts_as_exposure() {
    let limits = Limits { max_unreceipted: amount(30), ..Limits::default() };
    let mut alice = limited(1, limits);
    let (tag, _) = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 20)]).expect("within the limit");
    alice.refused(&refusal(tag)).expect("a refusal");
    assert_eq!((balance(&alice).unreceipted, balance(&alice).available), (amount(21), amount(1_000)));
    let other_lane = alice.sign_frame(ASSET, 1, vec![payment(2, 2, 20)]);
    assert!(matches!(other_lane, Err(PayError::Exposure { .. })), "the hub could claim both");
    alice.sign_frame(ASSET, 0, vec![payment(2, 2, 20)]).expect("on the same lane it replaces the refused one");
}

#[test]
fn delivered_needs_the_heads_from_my_receipt() {
    let (mut alice, mut hub) = (member(1), hub());
    let payee = channel(2);
    hub.credit(payee, channel(3), &[payment(7, 2, 5)]);
    let frame = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 10)]).expect("solvent");
    alice.accepted(&hub.accept(channel(1), &[frame])).expect("good receipts");
    hub.credit(payee, channel(3), &[payment(8, 2, 5)]);
    let good = hub.delivered(2, 2);
    let table: &[fn(&mut v1::Delivered)] = &[
        |d| d.digests.clear(),
        |d| d.digests[0] = wire::bytes_of([0; 32]),
        |d| d.head_before = wire::bytes_of([0; 32]),
        |d| d.digests.push(wire::bytes_of([0; 32])),
        |d| d.ack.as_mut().expect("an ack").credits += 1,
    ];
    for spoil in table {
        let mut bad = good.clone();
        spoil(&mut bad);
        alice.delivered(&bad).expect_err("not in the chain, or not signed");
        assert_eq!(balance(&alice).undelivered, amount(10));
    }
    let step = alice.delivered(&good).expect("the chain holds");
    assert_eq!(step.events, vec![Event::Delivered { asset: ASSET, payee, ids: vec![payment(1, 2, 10).id] }]);
    assert_eq!(balance(&alice).undelivered, Amount::ZERO);
}

#[test]
fn a_delivery_comes_in_pages() {
    let (mut alice, mut hub) = (member(1), hub());
    for id in 1..=3 {
        let frame = alice.sign_frame(ASSET, 0, vec![payment(id, 2, 10)]).expect("solvent");
        alice.accepted(&hub.accept(channel(1), &[frame])).expect("good receipts");
    }
    let whole = hub.delivered(2, 1);
    let mut first = whole.clone();
    let rest = first.digests.split_off(1);
    first.last_page = false;
    assert_eq!(alice.delivered(&first).expect("a page"), Step::default());
    let step = alice.delivered(&v1::Delivered { digests: rest, ..whole }).expect("the last page");
    assert!(matches!(&step.events[..], [Event::Delivered { ids, .. }] if ids.len() == 3));
}

#[test]
fn a_gap_voucher_is_kept_and_posted() {
    let (mut bob, mut hub) = (member(2), hub());
    let payee = channel(2);
    let (first, _) = hub.credit(payee, channel(1), &[payment(1, 2, 10)]);
    let (second, _) = hub.credit(payee, channel(1), &[payment(2, 2, 20)]);
    let step = bob.credited(hub.credited(payee, std::slice::from_ref(&second))).expect("well-formed");
    let gap = Misbehaviour::Gap { expected: 1, given: 2 };
    assert_eq!(step.events, vec![Event::Misbehaved(gap)]);
    assert_eq!(step.records, vec![Record::HubVoucher(hub.voucher(payee))]);
    assert_eq!(balance(&bob).received, Amount::ZERO, "not counted");
    assert_eq!(bob.evidence(ASSET).expect("an account").hub, Some(hub.voucher(payee)), "but posted");
    assert_eq!(bob.ack(ASSET), None);
    let login = bob.login(B256::ZERO, B256::ZERO, 9);
    assert_eq!(bob.hello(&login, "").accounts[0].credits, 0, "the new session asks for everything");
    bob.credited(hub.credited(payee, &[first, second])).expect("without a gap");
    assert_eq!(balance(&bob).received, amount(30));
    assert_eq!(bob.ack(ASSET).map(|a| a.body().head), Some(hub.credits[&payee].head));
    assert_eq!(bob.ack(ASSET), None, "said once");
}

#[test]
fn a_credit_that_does_not_add_up_is_not_counted() {
    let table: &[fn(&mut Credit)] = &[
        |c| c.amount = amount(11),
        |c| c.total = amount(9),
        |c| c.payments[0].amount = amount(9),
        |c| c.payments.clear(),
        |c| c.payments[0].id = PaymentId([9; 16].into()),
    ];
    for spoil in table {
        let (mut bob, mut hub) = (member(2), hub());
        let (mut credit, _) = hub.credit(channel(2), channel(1), &[payment(1, 2, 10)]);
        spoil(&mut credit);
        let step = bob.credited(hub.credited(channel(2), &[credit])).expect("well-formed");
        assert_eq!(step.events, vec![Event::Misbehaved(Misbehaviour::CreditChain { number: 1 })]);
        assert_eq!(balance(&bob).received, Amount::ZERO);
    }
}

#[test]
fn what_the_contract_holds_no_collateral_for_is_unbacked_until_it_does() {
    let (mut bob, mut hub) = (member(2), hub());
    let (credit, _) = hub.credit(channel(2), channel(1), &[payment(1, 2, 1_500)]);
    bob.credited(hub.credited(channel(2), &[credit])).expect("well-formed");
    assert_eq!((balance(&bob).received, balance(&bob).unbacked), (amount(1_500), amount(500)));
    assert_eq!(bob.ack(ASSET), None, "an Ack is over what is backed");
    bob.ledger(ASSET, deposits(1_000, 1_500));
    assert_eq!(balance(&bob).unbacked, Amount::ZERO);
    assert!(bob.ack(ASSET).is_some());
}

#[test]
fn a_refused_id_may_be_paid_later() {
    let (mut alice, mut hub) = (member(1), hub());
    let (t1, _) = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 10)]).expect("solvent");
    let (t2, _) = alice.sign_frame(ASSET, 0, vec![payment(2, 2, 10)]).expect("solvent");
    let pending = alice.sign_frame(ASSET, 1, vec![payment(1, 2, 10)]);
    assert_eq!(pending, Err(PayError::IdPending { id: payment(1, 2, 10).id }));
    let step = alice.refused(&refusal(t1)).expect("a refusal");
    assert!(matches!(&step.events[..], [Event::NotPaid { retryable: true, .. }]));
    assert_eq!(alice.sign_frame(ASSET, 0, vec![payment(1, 2, 10)]), Err(PayError::LaneBusy { lane: 0 }));
    alice.refused(&refusal(t2)).expect("a refusal");
    let again = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 10)]).expect("in a new frame");
    assert_eq!(again.1.tip().cumulative, amount(11), "from what was accepted");
    let step = alice.accepted(&hub.accept(channel(1), &[again])).expect("good receipts");
    assert!(matches!(&step.events[..], [Event::Paid { .. }]));
}

#[test]
fn raw_challenge_is_never_signed() {
    for scheme in [Scheme::Ed25519, Scheme::Secp256k1] {
        let key = SecretKey::derive(scheme, &[1; 32], "voucher");
        let alice = Member::new(domain(), key.clone(), terms(1, scheme), Limits::default()).expect("own terms");
        // A challenge that is in truth the digest of a voucher over everything.
        let account = AccountId { channel: alice.channel(), asset: ASSET };
        let all = LaneTip { cumulative: Amount::MAX, memo: B256::ZERO };
        let nonce = domain().digest(&crate::frame::member_voucher(account, 0, all));
        let login = alice.login(B256::ZERO, nonce, 9);
        assert!(key.public().verify(&nonce, login.signature()).is_err());
        assert!(key.public().verify(&domain().digest(login.body()), login.signature()).is_ok());
    }
}

fn settlement(seq: u64, member: u128, hub: u128) -> Settlement {
    Settlement {
        channelId: channel(1).0,
        asset: ASSET,
        seq,
        memberWithdrawn: member,
        hubWithdrawn: hub,
        validUntil: 1_000 + SETTLEMENT_VALIDITY_S,
        close: false,
    }
}

#[test]
fn a_settlement_is_signed_only_on_every_condition() {
    type Row = (&'static str, Settlement, Option<Ask>, Result<(), Decline>);
    let table: &[Row] = &[
        ("the hub takes collateral back", settlement(1, 0, 400), None, Ok(())),
        ("as asked", settlement(1, 300, 0), Some(Ask::Withdraw(amount(300))), Ok(())),
        ("everything", Settlement { close: true, ..settlement(1, 1_000, 1_000) }, Some(Ask::Close), Ok(())),
        (
            "less than everything",
            Settlement { close: true, ..settlement(1, 999, 1_000) },
            Some(Ask::Close),
            Err(Decline::NotAskedFor),
        ),
        ("more than asked", settlement(1, 301, 0), Some(Ask::Withdraw(amount(300))), Err(Decline::NotAskedFor)),
        ("unasked payout", settlement(1, 1, 0), None, Err(Decline::NotAskedFor)),
        ("unasked close", Settlement { close: true, ..settlement(1, 0, 1_000) }, None, Err(Decline::NotAskedFor)),
        ("number 0", settlement(0, 0, 0), None, Err(Decline::Seq { given: 0, above: 0 })),
        ("far ahead", settlement(1 << 32, 0, 0), None, Err(Decline::Seq { given: 1 << 32, above: 0 })),
        ("beyond the hub's net", settlement(1, 0, 1_001), None, Err(Decline::Unbacked)),
        ("beyond deposits", settlement(1, 1_500, 501), None, Err(Decline::BeyondDeposits)),
        (
            "valid too long",
            Settlement { validUntil: 1_001 + SETTLEMENT_VALIDITY_S, ..settlement(1, 0, 0) },
            None,
            Err(Decline::TooLong { given: 1_001 + SETTLEMENT_VALIDITY_S, limit: 1_000 + SETTLEMENT_VALIDITY_S }),
        ),
        (
            "another channel",
            Settlement { channelId: channel(2).0, ..settlement(1, 0, 0) },
            None,
            Err(Decline::NoAccount),
        ),
    ];
    for (name, proposal, ask, expected) in table {
        let mut alice = member(1);
        assert_eq!(alice.agree(proposal.clone(), *ask).map(|_| ()), *expected, "{name}");
        assert_eq!(alice.settlements_signed(), u64::from(expected.is_ok()), "{name}");
    }
}

#[test]
fn a_kept_settlement_cannot_withdraw_spent_money() {
    let mut alice = member(1);
    alice.agree(settlement(1, 800, 0), Some(Ask::Withdraw(amount(800)))).expect("it is hers");
    assert_eq!(balance(&alice).available, amount(200), "it counts from the signature on, posted or not");
    let spent = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 500)]);
    assert!(matches!(spent, Err(PayError::Insufficient { .. })));
    assert_eq!(alice.agree(settlement(2, 700, 0), None).map(|_| ()), Err(Decline::Falls));
    assert_eq!(alice.agree(settlement(1, 800, 0), None).map(|_| ()), Err(Decline::Seq { given: 1, above: 1 }));
    alice.head(1_000 + SETTLEMENT_VALIDITY_S);
    assert_eq!(balance(&alice).available, amount(200), "valid until and at that second");
    alice.head(1_001 + SETTLEMENT_VALIDITY_S);
    assert_eq!(balance(&alice).available, amount(1_000), "expired at the confirmed head");
}

#[test]
fn a_kept_settlement_cannot_take_backing_twice() {
    let (mut bob, mut hub) = (member(2), hub());
    let take = Settlement { channelId: channel(2).0, ..settlement(1, 0, 1_000) };
    bob.agree(take, None).expect("idle collateral");
    let (credit, _) = hub.credit(channel(2), channel(1), &[payment(1, 2, 100)]);
    bob.credited(hub.credited(channel(2), &[credit])).expect("well-formed");
    assert_eq!(balance(&bob).unbacked, amount(100));
}

#[test]
fn after_a_signed_close_nothing_is_signed_or_counted_until_it_is_over() {
    let (mut bob, mut hub) = (member(2), hub());
    let close = Settlement { channelId: channel(2).0, close: true, ..settlement(1, 1_000, 1_000) };
    bob.agree(close, Some(Ask::Close)).expect("everything");
    let until = 1_000 + SETTLEMENT_VALIDITY_S;
    assert_eq!(bob.sign_frame(ASSET, 0, vec![payment(1, 3, 1)]), Err(PayError::Frozen { until }));
    let (credit, _) = hub.credit(channel(2), channel(1), &[payment(1, 2, 100)]);
    bob.credited(hub.credited(channel(2), std::slice::from_ref(&credit))).expect("well-formed");
    assert_eq!(balance(&bob).received, Amount::ZERO);
    assert!(bob.evidence(ASSET).expect("an account").hub.is_some(), "stored all the same");
    bob.head(until + 1);
    let login = bob.login(B256::ZERO, B256::ZERO, 9);
    bob.hello(&login, "");
    bob.credited(hub.credited(channel(2), &[credit])).expect("well-formed");
    assert_eq!(balance(&bob).received, amount(100), "the close expired");
}

#[test]
fn a_restored_member_waits_before_counting_collateral() {
    let (mut bob, mut hub) = (member(2), hub());
    bob.distrust();
    let (credit, _) = hub.credit(channel(2), channel(1), &[payment(1, 2, 100)]);
    bob.credited(hub.credited(channel(2), &[credit])).expect("well-formed");
    assert_eq!((balance(&bob).received, balance(&bob).unbacked), (amount(100), amount(100)));
    assert_eq!(bob.ack(ASSET), None);
    let take = Settlement { channelId: channel(2).0, ..settlement(1, 0, 1) };
    assert_eq!(bob.agree(take, None).map(|_| ()), Err(Decline::StoreMayBeOld));
    bob.head(1_000 + VALIDITY_LONGEST_S);
    assert_eq!(bob.ack(ASSET), None);
    bob.head(1_001 + VALIDITY_LONGEST_S);
    assert_eq!(balance(&bob).unbacked, Amount::ZERO);
    assert!(bob.ack(ASSET).is_some());
}

#[test]
fn the_hubs_half_of_a_settlement_is_checked() {
    let (mut alice, hub) = (member(1), hub());
    let (_, signed) = alice.agree(settlement(1, 0, 10), None).expect("unchanged for her");
    let posted = |body: Settlement| v1::SettlementPosted {
        asset: wire::bytes_of(ASSET),
        seq: 1,
        proof: Some(wire::proof_message(Proven::sign(&domain(), &hub.key, body).proof())),
        ..v1::SettlementPosted::default()
    };
    let other = alice.countersigned(&posted(settlement(1, 0, 11)));
    assert_eq!(other, Err(Misbehaviour::BadSettlement { seq: 1 }));
    alice.countersigned(&posted(signed.body().clone())).expect("what was agreed");
    assert!(alice.agreed(ASSET)[0].hub.is_some());
}

#[test]
fn fees_round_up_in_256_bits() {
    let table = [
        (1_000_000, 0, 1, Some(1)),
        (1_000_001, 0, 1, Some(2)),
        (1, 5, 0, Some(5)),
        (0, 0, 0, Some(0)),
        (u128::MAX, 0, 1_000_000, Some(u128::MAX)),
        (u128::MAX, 1, 1_000_000, None),
    ];
    for (value, flat, ppm, expected) in table {
        assert_eq!(fee(amount(value), amount(flat), ppm), expected.map(amount));
    }
}

#[test]
fn an_answer_of_get_payment_proves_only_the_very_payment() {
    let (mut alice, mut hub) = (member(1), hub());
    let paid = payment(1, 2, 10);
    alice.sign_frame(ASSET, 0, vec![paid.clone(), payment(2, 2, 20)]).expect("solvent");
    let (credit, receipt) = hub.credit(channel(2), channel(1), &[paid.clone(), payment(2, 2, 20)]);
    let good = v1::GetPaymentResponse {
        known: true,
        receipt: Some(wire::receipt_message(&receipt)),
        opening: credit.payments.iter().map(wire::credited_payment_message).collect(),
        ..v1::GetPaymentResponse::default()
    };
    assert!(alice.proves_paid(&paid, &good));
    assert!(!alice.proves_paid(&Payment { amount: amount(11), ..paid.clone() }, &good), "another amount");
    assert!(!alice.proves_paid(&payment(3, 2, 10), &good), "another id");
    assert!(!alice.proves_paid(&Payment { payee: channel(3), ..paid.clone() }, &good), "another payee");
    let table: &[fn(&mut v1::GetPaymentResponse)] = &[
        |r| r.receipt = None,
        |r| r.opening.truncate(1),
        |r| r.opening.clear(),
        |r| r.receipt.as_mut().expect("a receipt").amount = wire::amount_bytes(amount(31)),
    ];
    for spoil in table {
        let mut bad = good.clone();
        spoil(&mut bad);
        assert!(!alice.proves_paid(&paid, &bad));
    }
}

#[test]
fn a_full_list_of_receipts_forgets_the_oldest_and_still_bounds_the_signer() {
    let (mut alice, mut hub) = (member(1), hub());
    let count = u32::try_from(UNDELIVERED_MAX).expect("small") + 2;
    let frame = alice.sign_frame(ASSET, 0, vec![payment(1, 2, 1)]).expect("solvent").1;
    let receipts = (0..count).map(|_| hub.credit(channel(2), channel(1), &[payment(1, 2, 1)]).1).collect();
    let frames = vec![(0, frame.tip().cumulative)];
    alice.apply(&Record::Accepted { asset: ASSET, flush: 1, frames, receipts, ticks: vec![] });
    let account = &alice.state().accounts[&ASSET];
    assert_eq!(account.undelivered.len(), UNDELIVERED_MAX);
    assert_eq!(balance(&alice).undelivered, amount(u128::from(count)));
    let (_, newest) = alice.receipt_for(ASSET, channel(2)).expect("kept");
    assert_eq!(newest.body().credit, u64::from(count));
}
