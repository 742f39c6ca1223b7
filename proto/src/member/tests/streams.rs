//! Streams: what a member opens, reveals, counts as paid, shows again, and what he does not let a hub get away with.

use super::*;
use crate::stream::TicksPaid;

/// A member who writes everything down.
struct Alice {
    member: Member,
    journal: Vec<Record>,
}

impl Alice {
    fn new() -> Alice {
        Alice::limited(Limits::default())
    }

    fn limited(limits: Limits) -> Alice {
        Alice { member: limited(1, limits), journal: Vec::new() }
    }

    fn keep(&mut self, step: Step) -> Vec<Event> {
        self.journal.extend(step.records);
        step.events
    }

    fn open(&mut self, lane: u32, n: u8) -> (u64, StreamOpening) {
        let opened = self.member.open_stream(ASSET, lane, stream_terms(n), 100, secret(n)).expect("the lane is free");
        self.keep(opened.2);
        (opened.0, opened.1)
    }

    /// A stream that the hub took.
    fn opened(&mut self, lane: u32, n: u8) -> StreamOpening {
        let (tag, opening) = self.open(lane, n);
        let step = self.member.opened(&answered(tag)).expect("well-formed");
        let stream = opening.terms().stream;
        assert_eq!(self.keep(step), vec![Event::Opened { asset: ASSET, lane, stream }]);
        opening
    }

    fn reveal(&mut self, lane: u32, index: u32) -> Tick {
        let (tick, step) = self.member.reveal(ASSET, lane, index).expect("it is new, and solvent");
        self.keep(step);
        tick
    }

    fn frame(&mut self, lane: u32, payments: Vec<Payment>) -> (u64, Frame) {
        let signed = self.member.sign_frame(ASSET, lane, payments).expect("the lane is free");
        self.journal.push(Record::Signed(signed.1.clone()));
        signed
    }

    fn take(&mut self, answer: &v1::Accepted) -> Vec<Event> {
        let step = self.member.accepted(answer).expect("good receipts");
        self.keep(step)
    }

    fn refuse(&mut self, lane: u32, index: u32, state: Option<v1::LaneState>) -> Vec<Event> {
        let asset = wire::bytes_of(ASSET);
        let refused =
            v1::TickRefused { asset, lane, index, state, reason: "PAYEE_UNBACKED".into(), ..Default::default() };
        let step = self.member.ticks_refused(&refused).expect("well-formed");
        self.keep(step)
    }

    /// A new session: what is sent again.
    fn again(&mut self, lanes: &[LaneVoucher]) -> (Vec<Event>, Vec<Resent>) {
        let login = self.member.login(B256::ZERO, B256::ZERO, 9);
        self.member.hello(&login, "");
        let step = self.member.welcome(&welcome(lanes)).expect("well-formed");
        let events = self.keep(step);
        (events, self.member.resend())
    }

    fn view(&self, lane: u32) -> StreamView {
        self.member.stream(ASSET, lane).expect("a stream is open")
    }

    fn value(&self, lane: u32) -> Amount {
        let lanes = self.member.evidence(ASSET).expect("an account").lanes;
        lanes.iter().find(|v| v.lane() == lane).map(LaneVoucher::value).unwrap_or_default()
    }

    /// The journal alone makes the same member; so do his snapshot, and every record read back from what is stored.
    fn assert_rebuilds(&self) {
        let bytes = |state: &State| postcard::to_allocvec(state).expect("it writes");
        let stored = postcard::to_allocvec(&self.journal).expect("it writes");
        let read: Vec<Record> = postcard::from_bytes(&stored).expect("it reads");
        assert_eq!(read, self.journal);
        let mut again = limited(1, self.member.limits);
        for record in &read {
            again.apply(record);
            if !matches!(record, Record::Signed(_)) {
                again.apply(record);
            }
        }
        assert!(bytes(again.state()) == bytes(self.member.state()), "a record of a stream twice is that record once");
        let state: State = postcard::from_bytes(&bytes(self.member.state())).expect("reads");
        let key = SecretKey::derive(Scheme::Ed25519, &[1; 32], "voucher");
        let copy = Member::restore(domain(), key, state, self.member.limits).expect("own terms");
        assert!(bytes(copy.state()) == bytes(self.member.state()), "a snapshot is read as it was written");
        assert_eq!(copy.balance(ASSET), self.member.balance(ASSET));
        assert_eq!(copy.evidence(ASSET), self.member.evidence(ASSET));
    }
}

fn secret(n: u8) -> Secret {
    Secret::new(B256::repeat_byte(n))
}

/// Two units to the payee with seed 2 and one to the hub, a tick.
fn stream_terms(n: u8) -> StreamTerms {
    StreamTerms { stream: StreamId([n; 12].into()), payee: channel(2), amount: amount(2), fee: amount(1) }
}

fn answered(tag: u64) -> v1::StreamOpened {
    v1::StreamOpened { tag, asset: wire::bytes_of(ASSET) }
}

fn paid(opening: &StreamOpening, before: u32, index: u32) -> TicksPaid {
    let (account, lane, anchor) = (opening.account(), opening.lane(), opening.voucher().body().anchor);
    let cumulative = opening.tip(index).cumulative;
    TicksPaid { account, lane, anchor, terms: *opening.terms(), before, index, word: B256::ZERO, cumulative }
}

/// The opening's lane after `index` ticks of the stream whose secret is `n`.
fn revealed(opening: &StreamOpening, n: u8, index: u32) -> LaneVoucher {
    let words = Words::new(secret(n).0, opening.voucher().body().ticks);
    let mut voucher = LaneVoucher::opened(opening.clone());
    voucher.ticks_mut().expect("a stream").advance(&words.reveal(index).expect("within the chain"));
    voucher
}

fn welcome(lanes: &[LaneVoucher]) -> v1::Welcome {
    let lanes = lanes.iter().map(wire::lane_message).collect();
    let view = v1::AccountState { asset: wire::bytes_of(ASSET), lanes, ..v1::AccountState::default() };
    v1::Welcome { accounts: vec![view], ..v1::Welcome::default() }
}

impl Hub {
    /// Accepts frames and ticks in one flush.
    fn accept_with(&mut self, frames: &[(u64, Frame)], ticks: &[TicksPaid]) -> v1::Accepted {
        let mut payments: Vec<Payment> = frames.iter().flat_map(|(_, f)| f.payments.clone()).collect();
        payments.extend(ticks.iter().map(TicksPaid::payment));
        let payees: BTreeSet<ChannelId> = payments.iter().map(|p| p.payee).collect();
        let receipts =
            payees.into_iter().map(|to| wire::receipt_message(&self.credit(to, channel(1), &payments).1)).collect();
        v1::Accepted {
            flush: 1,
            asset: wire::bytes_of(ASSET),
            tags: frames.iter().map(|(tag, _)| *tag).collect(),
            receipts,
            ticks: ticks.iter().map(wire::ticks_accepted_message).collect(),
        }
    }

    /// Accepts ticks in a flush of their own: what `GetPayment` says of them.
    fn proof(&mut self, ticks: &TicksPaid) -> v1::GetPaymentResponse {
        let (credit, receipt) = self.credit(ticks.terms.payee, channel(1), &[ticks.payment()]);
        v1::GetPaymentResponse {
            known: true,
            flush: 1,
            payment: Some(wire::payment_message(&ticks.payment())),
            receipt: Some(wire::receipt_message(&receipt)),
            opening: credit.payments.iter().map(wire::credited_payment_message).collect(),
            ..v1::GetPaymentResponse::default()
        }
    }
}

// ---- paying --------------------------------------------------------------------------------------------------------

#[test]
fn ticks_are_paid_when_receipts_prove_them_flush_by_flush() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    assert_eq!(balance(&alice.member).available, amount(1_000), "an opening costs nothing");
    for index in [1, 4] {
        alice.reveal(0, index);
    }
    assert_eq!((balance(&alice.member).available, balance(&alice.member).unreceipted), (amount(988), amount(12)));
    assert!(alice.view(0).waits);
    let first = alice.take(&hub.accept_with(&[], &[paid(&opening, 0, 4)]));
    let id = opening.terms().stream.payment(4);
    let event = Event::Paid { id, asset: ASSET, payee: channel(2), amount: amount(8), fee: amount(4), credit: 1 };
    assert_eq!(first, vec![event]);
    let (view, held) = (alice.view(0), balance(&alice.member));
    assert_eq!((view.revealed, view.accepted, view.waits), (4, 4, false));
    assert_eq!((held.paid, held.unreceipted, held.undelivered), (amount(12), Amount::ZERO, amount(8)));
    alice.reveal(0, 5);
    alice.reveal(0, 9);
    alice.take(&hub.accept_with(&[], &[paid(&opening, 4, 5)]));
    alice.take(&hub.accept_with(&[], &[paid(&opening, 5, 9)]));
    assert_eq!((alice.value(0), balance(&alice.member).unreceipted), (amount(27), Amount::ZERO));
    assert_eq!(alice.take(&hub.accept_with(&[], &[paid(&opening, 4, 9)])), vec![], "told again");
    let delivered = alice.member.delivered(&hub.delivered(2, 1)).expect("the chain holds");
    assert!(matches!(&delivered.events[..], [Event::Delivered { ids, .. }] if ids.len() == 3 && ids[0] == id));
    alice.keep(delivered);
    alice.assert_rebuilds();
}

#[test]
fn one_answer_may_name_frames_and_ticks() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    alice.reveal(0, 3);
    let frame = alice.frame(1, vec![payment(1, 2, 10), payment(2, 3, 20)]);
    let answer = hub.accept_with(&[frame], &[paid(&opening, 0, 3)]);
    let table: &[fn(&mut v1::Accepted)] =
        &[|a| a.ticks.clear(), |a| a.tags.clear(), |a| drop(a.receipts.pop()), |a| a.receipts.reverse()];
    for (n, spoil) in table.iter().enumerate() {
        let mut bad = answer.clone();
        spoil(&mut bad);
        let taken = member_clone(&mut alice.member, |m| m.accepted(&bad));
        assert_eq!(taken.is_ok(), n == 3, "row {n}: only the order of receipts does not matter");
    }
    assert_eq!(alice.take(&answer).len(), 3);
    assert_eq!(balance(&alice.member).unreceipted, Amount::ZERO);
    alice.assert_rebuilds();
}

#[test]
fn ticks_may_be_accepted_before_their_opening_is_answered() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let (tag, opening) = alice.open(0, 1);
    alice.reveal(0, 3);
    assert_eq!(alice.take(&hub.accept_with(&[], &[paid(&opening, 0, 3)])).len(), 1);
    assert!(alice.view(0).opened, "ticks are accepted on open streams only");
    assert_eq!(alice.member.opened(&answered(tag)), Ok(Step::default()));
    assert_eq!(alice.value(0), amount(9));
    alice.assert_rebuilds();
}

#[test]
fn the_hub_can_be_the_payee_of_a_members_stream() {
    let (mut alice, hub) = (Alice::new(), hub());
    let terms = StreamTerms { payee: ChannelId::HUB, ..stream_terms(1) };
    let (_, opening, step) = alice.member.open_stream(ASSET, 0, terms, 9, secret(1)).expect("no pin is needed");
    alice.keep(step);
    alice.reveal(0, 5);
    let ticks = paid(&opening, 0, 5);
    let rows = [(ticks.id(), ticks.amount())];
    let body = Receipt {
        channelId: B256::ZERO,
        asset: ASSET,
        credit: 0,
        amount: 10,
        total: 0,
        payments: payments_hash(&rows),
    };
    let receipts = vec![wire::receipt_message(&Proven::sign(&domain(), &hub.key, body))];
    let ticks = vec![wire::ticks_accepted_message(&ticks)];
    let answer = v1::Accepted { flush: 1, asset: wire::bytes_of(ASSET), tags: vec![], receipts, ticks };
    assert_eq!(alice.take(&answer).len(), 1);
    let held = balance(&alice.member);
    assert_eq!((held.paid, held.unreceipted, held.undelivered), (amount(15), Amount::ZERO, Amount::ZERO));
    alice.assert_rebuilds();
}

#[test]
fn what_cannot_be_opened_revealed_or_folded() {
    let mut alice = Alice::new();
    let open = |m: &mut Member, lane, terms, ticks| m.open_stream(ASSET, lane, terms, ticks, secret(9)).map(|_| ());
    let mine = StreamTerms { payee: channel(1), ..stream_terms(9) };
    assert_eq!(open(&mut alice.member, 0, mine, 9), Err(PayError::PayeeIsPayer));
    let stranger = StreamTerms { payee: channel(7), ..stream_terms(9) };
    assert_eq!(open(&mut alice.member, 0, stranger, 9), Err(PayError::NotPinned { payee: channel(7) }));
    for ticks in [0, 2049] {
        assert!(matches!(open(&mut alice.member, 0, stream_terms(9), ticks), Err(PayError::Stream(_))), "{ticks}");
    }
    assert!(matches!(open(&mut alice.member, 64, stream_terms(9), 9), Err(PayError::Stream(_))), "no such lane");
    let reveal = |m: &mut Member, lane, index| m.reveal(ASSET, lane, index).map(|_| ());
    assert_eq!(reveal(&mut alice.member, 0, 1), Err(PayError::NoStream { lane: 0 }));
    assert_eq!(alice.member.fold(ASSET, 0).map(|f| f.is_some()), Ok(false), "there is nothing to fold");
    alice.frame(0, vec![payment(1, 2, 10)]);
    assert_eq!(open(&mut alice.member, 0, stream_terms(9), 9), Err(PayError::LaneBusy { lane: 0 }));
    let (_, opening) = alice.open(1, 1);
    let index = |index, from| Err(PayError::Index { lane: 1, index, from, ticks: 100 });
    assert_eq!(reveal(&mut alice.member, 1, 0), index(0, 1));
    assert_eq!(reveal(&mut alice.member, 1, 101), index(101, 1));
    alice.reveal(1, 5);
    assert_eq!(reveal(&mut alice.member, 1, 5), index(5, 6), "it waits for its answer");
    let busy = Err(PayError::LaneBusy { lane: 1 });
    assert_eq!(alice.member.sign_frame(ASSET, 1, vec![payment(2, 2, 10)]).map(|_| ()), busy);
    assert_eq!(open(&mut alice.member, 1, stream_terms(9), 9), busy);
    assert_eq!(alice.member.fold(ASSET, 1).map(|_| ()), busy);
    alice.take(&hub().accept_with(&[], &[paid(&opening, 0, 5)]));
    assert_eq!(alice.member.fold(ASSET, 1).map(|f| f.is_some()), Ok(true));
    assert_eq!(reveal(&mut alice.member, 1, 6), Err(PayError::NoStream { lane: 1 }), "the lane is being folded");
    let close = Settlement { close: true, ..settlement(1, 1_000, 1_000) };
    alice.member.apply(&Record::Agreed(Signed::sign(&domain(), &alice.member.key, close)));
    let until = 1_000 + SETTLEMENT_VALIDITY_S;
    assert_eq!(reveal(&mut alice.member, 1, 6), Err(PayError::Frozen { until }));
    assert_eq!(open(&mut alice.member, 2, stream_terms(9), 9), Err(PayError::Frozen { until }));
}

/// A word that was shown can be claimed, whatever the hub answered.
#[test]
fn revealed_ticks_fill_the_limits_even_when_they_are_refused() {
    let bound = amount(30);
    let mut alice = Alice::limited(Limits { max_unreceipted: bound, max_undelivered: amount(40) });
    let mut hub = hub();
    let opening = alice.opened(0, 1);
    let exposure = |exposure| Err(PayError::Exposure { exposure: amount(exposure), limit: bound });
    assert_eq!(alice.member.reveal(ASSET, 0, 11).map(|_| ()), exposure(33));
    alice.reveal(0, 10);
    alice.refuse(0, 10, None);
    let held = balance(&alice.member);
    assert_eq!((held.available, held.unreceipted), (amount(1_000), bound), "free to spend, and still exposed");
    assert_eq!(alice.member.sign_frame(ASSET, 1, vec![payment(1, 2, 5)]).map(|_| ()), exposure(36));
    assert_eq!(alice.member.reveal(ASSET, 0, 11).map(|_| ()), exposure(33));
    // A frame on the same lane can be claimed instead of the ticks, not besides.
    let frame = alice.frame(0, vec![payment(2, 2, 9)]);
    assert_eq!(balance(&alice.member).unreceipted, bound);
    alice.take(&hub.accept_with(&[frame], &[]));
    assert_eq!(balance(&alice.member).unreceipted, amount(20), "the ticks of the old chain can still be posted");
    let insolvent = Alice::new().member.open_stream(ASSET, 0, stream_terms(3), 2048, secret(3)).map(|_| ());
    assert_eq!(insolvent, Ok(()), "the whole stream need not be there at once");
    let mut rich = Alice::new();
    let terms = StreamTerms { amount: amount(99), ..stream_terms(3) };
    let (_, _, step) = rich.member.open_stream(ASSET, 0, terms, 2048, secret(3)).expect("free");
    rich.keep(step);
    let short = PayError::Insufficient { cost: amount(1_100), available: amount(1_000) };
    assert_eq!(rich.member.reveal(ASSET, 0, 11).map(|_| ()), Err(short));
    assert_eq!(opening.lane(), 0);
}

// ---- refusals ------------------------------------------------------------------------------------------------------

#[test]
fn a_refused_tick_does_not_block_its_lane() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    alice.reveal(0, 4);
    alice.take(&hub.accept_with(&[], &[paid(&opening, 0, 4)]));
    alice.reveal(0, 8);
    let events = alice.refuse(0, 8, Some(wire::lane_message(&revealed(&opening, 1, 4))));
    assert!(matches!(&events[..], [Event::TicksRefused { index: 8, .. }]));
    assert_eq!(alice.refuse(0, 8, None), vec![], "once");
    let index = alice.member.reveal(ASSET, 0, 7).map(|_| ());
    assert_eq!(index, Err(PayError::Index { lane: 0, index: 7, from: 8, ticks: 100 }), "8 can be claimed already");
    // The same word again, and it is taken.
    let again = alice.reveal(0, 8);
    assert_eq!(again.word, Words::new(secret(1).0, 100).word(8).expect("there"));
    alice.take(&hub.accept_with(&[], &[paid(&opening, 4, 8)]));
    // Refused once more, and the lane goes on from what was accepted.
    alice.reveal(0, 9);
    alice.refuse(0, 9, None);
    let (tag, frame) = alice.frame(0, vec![payment(1, 2, 10)]);
    assert_eq!(frame.tip().cumulative, amount(24 + 11));
    alice.take(&hub.accept_with(&[(tag, frame)], &[]));
    assert_eq!(alice.member.reveal(ASSET, 0, 9).map(|_| ()), Err(PayError::NoStream { lane: 0 }), "the chain is over");
    let held = balance(&alice.member);
    assert_eq!((held.paid, held.unreceipted), (amount(35), Amount::ZERO));
    alice.assert_rebuilds();
}

/// What was revealed before the refused index may be in a flush that is not written yet: the lane waits for it.
#[test]
fn a_refusal_that_overtakes_an_acceptance_does_not_continue_the_lane_too_early() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    alice.reveal(0, 4);
    alice.reveal(0, 8);
    alice.refuse(0, 8, Some(wire::lane_message(&revealed(&opening, 1, 4))));
    let frame = alice.member.sign_frame(ASSET, 0, vec![payment(1, 2, 10)]).map(|_| ());
    assert_eq!(frame, Err(PayError::LaneBusy { lane: 0 }));
    alice.take(&hub.accept_with(&[], &[paid(&opening, 0, 4)]));
    assert_eq!(alice.frame(0, vec![payment(1, 2, 10)]).1.tip().cumulative, amount(12 + 11));
    alice.assert_rebuilds();
}

#[test]
fn a_refused_opening_leaves_the_lane_as_it_was_and_what_was_revealed_exposed() {
    let mut alice = Alice::new();
    let (tag, opening) = alice.open(0, 1);
    alice.reveal(0, 5);
    let step = alice.member.refused(&refusal(tag)).expect("a refusal");
    assert!(matches!(&step.events[..], [Event::NotOpened { lane: 0, retryable: true, .. }]));
    alice.keep(step);
    assert_eq!(alice.member.stream(ASSET, 0), None);
    assert_eq!((balance(&alice.member).available, balance(&alice.member).unreceipted), (amount(1_000), amount(15)));
    for kept in [LaneVoucher::opened(opening.clone()), revealed(&opening, 1, 5)] {
        let (events, again) = alice.again(std::slice::from_ref(&kept));
        let fault = Misbehaviour::KeptRefused { lane: 0, cumulative: kept.value() };
        assert_eq!((events, again), (vec![Event::Misbehaved(fault)], vec![]));
    }
    assert_eq!(alice.frame(0, vec![payment(1, 2, 10)]).1.tip().cumulative, amount(11));
    alice.assert_rebuilds();
}

// ---- sessions ------------------------------------------------------------------------------------------------------

#[test]
fn what_no_answer_came_to_is_sent_again_as_it_was() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opened = alice.opened(0, 1);
    let tick = alice.reveal(0, 7);
    let (_, opening) = alice.open(1, 2);
    let early = alice.reveal(1, 2);
    let folding = alice.opened(2, 3);
    alice.reveal(2, 1);
    alice.take(&hub.accept_with(&[], &[paid(&folding, 0, 1)]));
    let (_, fold, step) = alice.member.fold(ASSET, 2).expect("free").expect("ticks");
    alice.keep(step);
    let (_, frame) = alice.frame(3, vec![payment(1, 2, 10)]);
    let (events, again) = alice.again(&[LaneVoucher::opened(opened), revealed(&folding, 3, 1)]);
    assert_eq!(events, vec![]);
    let expected = vec![
        Resent::Frame(1, frame),
        Resent::Tick(tick),
        Resent::Opening(2, opening),
        Resent::Tick(early),
        Resent::Fold(3, fold),
    ];
    assert_eq!(again, expected);
    // A process that ended in between says the same.
    let mut restarted = Alice { member: limited(1, Limits::default()), journal: vec![] };
    alice.journal.iter().for_each(|record| restarted.member.apply(record));
    assert_eq!(restarted.again(&[]).1, expected);
    // A hub that has them shows it, and nothing but words is sent again.
    let folded = LaneVoucher::Plain(match &expected[4] {
        Resent::Fold(_, fold) => fold.clone(),
        other => panic!("{other:?}"),
    });
    let Resent::Opening(_, opening) = &expected[2] else { panic!("an opening") };
    let (_, again) = alice.again(&[LaneVoucher::opened(opening.clone()), folded]);
    assert!(!again.iter().any(|r| matches!(r, Resent::Opening(..))), "it is open");
    let tag = again.iter().find_map(|r| if let Resent::Fold(tag, _) = r { Some(*tag) } else { None });
    let step = alice.member.opened(&answered(tag.expect("the fold waits for its answer"))).expect("well-formed");
    alice.keep(step);
    assert_eq!(alice.member.stream(ASSET, 2), None);
    alice.assert_rebuilds();
}

#[test]
fn ticks_of_an_earlier_session_are_proven_one_flush_after_another() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    for index in [3, 5, 9] {
        alice.reveal(0, index);
    }
    let (first, second) = (hub.proof(&paid(&opening, 0, 3)), hub.proof(&paid(&opening, 3, 5)));
    // The connection was lost; the hub has 5 of them and gets the rest now.
    let (events, again) = alice.again(&[revealed(&opening, 1, 5)]);
    assert_eq!(events, vec![Event::TicksUnproven { asset: ASSET, lane: 0, index: 5 }]);
    assert!(matches!(&again[..], [Resent::Tick(Tick { index: 9, .. })]));
    let third = paid(&opening, 5, 9);
    let rest = hub.proof(&third);
    let answer = v1::Accepted {
        flush: 3,
        asset: wire::bytes_of(ASSET),
        tags: vec![],
        receipts: vec![rest.receipt.clone().expect("a receipt")],
        ticks: vec![wire::ticks_accepted_message(&third)],
    };
    let events = alice.take(&answer);
    assert_eq!(events, vec![Event::TicksUnproven { asset: ASSET, lane: 0, index: 9 }], "they follow on unproven ones");
    assert!(alice.view(0).waits);
    // Back to what is proven, then forward.
    let (m, mut walk, mut at) = (&alice.member, Vec::new(), 9);
    for answer in [&rest, &second, &first] {
        walk.push((at, answer));
        at = m.ticks_proven(ASSET, 0, at, answer).expect("it proves them");
    }
    assert_eq!((at, walk.iter().map(|(index, _)| *index).collect::<Vec<_>>()), (0, vec![9, 5, 3]));
    assert_eq!(m.ticks_proven(ASSET, 0, 9, &first), None, "another payment");
    let order = alice.member.prove_ticks(ASSET, 0, 9, &rest);
    assert_eq!(order, Err(Misbehaviour::Order { lane: 0 }), "the earlier ones first");
    for (index, answer) in walk.into_iter().rev() {
        let step = alice.member.prove_ticks(ASSET, 0, index, answer).expect("in order");
        assert!(matches!(&alice.keep(step)[..], [Event::Paid { .. }]));
    }
    assert_eq!(alice.member.prove_ticks(ASSET, 0, 9, &rest), Ok(Step::default()), "known");
    let (view, held) = (alice.view(0), balance(&alice.member));
    assert_eq!((view.accepted, view.waits, held.unreceipted), (9, false, Amount::ZERO));
    assert_eq!(held.undelivered, amount(18));
    alice.assert_rebuilds();
}

#[test]
fn frames_and_ticks_of_one_receipt_may_be_proven_apart() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    alice.reveal(0, 3);
    let frame = alice.frame(1, vec![payment(1, 2, 10)]);
    let whole = hub.accept_with(std::slice::from_ref(&frame), &[paid(&opening, 0, 3)]);
    let (_, again) = alice.again(&[revealed(&opening, 1, 3), LaneVoucher::Plain(frame.1.voucher.clone())]);
    let tag = frames_of(again)[0].0;
    let rows = [payment(1, 2, 10), paid(&opening, 0, 3).payment()];
    let shown = rows.iter().map(|p| CreditedPayment { id: p.id, amount: p.amount, note: Bytes::new() });
    let answer = v1::GetPaymentResponse {
        known: true,
        payment: Some(wire::payment_message(&rows[1])),
        receipt: Some(whole.receipts[0].clone()),
        opening: shown.map(|p| wire::credited_payment_message(&p)).collect(),
        ..v1::GetPaymentResponse::default()
    };
    let step = alice.member.prove_ticks(ASSET, 0, 3, &answer).expect("the receipt opens to both");
    alice.keep(step);
    assert_eq!(alice.take(&v1::Accepted { tags: vec![tag], ..whole }).len(), 1);
    let held = balance(&alice.member);
    assert_eq!((held.unreceipted, held.undelivered), (Amount::ZERO, amount(16)), "one receipt is held once");
    let delivered = alice.member.delivered(&hub.delivered(2, 1)).expect("the chain holds");
    assert!(matches!(&delivered.events[..], [Event::Delivered { ids, .. }] if ids.len() == 2), "of both");
    alice.keep(delivered);
    alice.assert_rebuilds();
}

#[test]
fn a_view_of_a_lane_of_ticks_means_something_only_with_words() {
    // An index beyond what this store remembers: it was old, however much else was signed on the lane.
    for with_refused_frame in [false, true] {
        let mut alice = Alice::new();
        let opening = alice.opened(0, 1);
        if with_refused_frame {
            let (tag, _) = alice.frame(0, vec![payment(1, 2, 500)]);
            let step = alice.member.refused(&refusal(tag)).expect("a refusal");
            alice.keep(step);
        }
        alice.reveal(0, 3);
        let (events, again) = alice.again(&[revealed(&opening, 1, 7)]);
        assert_eq!((events, again), (vec![Event::StoreWasOld { asset: ASSET, lane: 0 }], vec![]));
        assert!(!alice.member.trusts_itself());
        assert_eq!(alice.value(0), amount(21), "his own word proves it");
        assert_eq!(alice.member.reveal(ASSET, 0, 8).map(|_| ()), Err(PayError::NoStream { lane: 0 }));
        assert_eq!(alice.frame(0, vec![payment(2, 2, 10)]).1.tip().cumulative, amount(32));
        alice.assert_rebuilds();
    }
    // Behind what receipts prove.
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    alice.reveal(0, 5);
    alice.take(&hub.accept_with(&[], &[paid(&opening, 0, 5)]));
    let behind =
        |theirs| Event::Misbehaved(Misbehaviour::LaneBehind { lane: 0, ours: amount(15), theirs: amount(theirs) });
    assert_eq!(alice.again(&[revealed(&opening, 1, 4)]).0, vec![behind(12)]);
    assert_eq!(alice.again(&[]).0, vec![behind(0)], "not shown at all");
    assert_eq!(alice.again(&[revealed(&opening, 1, 5)]), (vec![], vec![]));
    // An index without its word, and a word without this member's opening.
    let unsigned = vec![Event::Misbehaved(Misbehaviour::LaneUnsigned { lane: 0 })];
    let mut claimed = welcome(&[revealed(&opening, 1, 5)]);
    claimed.accounts[0].lanes[0].ticks.as_mut().expect("ticks").index = 6;
    let step = alice.member.welcome(&claimed).expect("well-formed");
    assert_eq!((step.records.len(), step.events), (0, unsigned.clone()));
    claimed.accounts[0].lanes[0].ticks.as_mut().expect("ticks").ticks = 101;
    assert_eq!(alice.member.welcome(&claimed).expect("well-formed").events, unsigned);
}

// ---- lies ----------------------------------------------------------------------------------------------------------

#[test]
fn the_hub_cannot_lie_about_ticks() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    alice.reveal(0, 5);
    alice.take(&hub.accept_with(&[], &[paid(&opening, 0, 5)]));
    alice.reveal(0, 9);
    let order = |lane| Err(Misbehaviour::Order { lane });
    let receipts = Err(Misbehaviour::BadReceipts { flush: 1 });
    let other = StreamTerms { fee: amount(0), ..*opening.terms() };
    let cheap = StreamTerms { amount: amount(1), ..*opening.terms() };
    let table: Vec<(&str, TicksPaid, Result<Step, Misbehaviour>)> = vec![
        ("beyond what was revealed", paid(&opening, 5, 10), order(0)),
        ("a gap before it", paid(&opening, 6, 9), order(0)),
        ("what was paid before", paid(&opening, 4, 9), order(0)),
        ("all of it again", paid(&opening, 0, 9), order(0)),
        ("another fee", TicksPaid { terms: other, ..paid(&opening, 5, 9) }, order(0)),
        ("another price", TicksPaid { terms: cheap, ..paid(&opening, 5, 9) }, order(0)),
        ("another anchor", TicksPaid { anchor: B256::ZERO, ..paid(&opening, 5, 9) }, Ok(Step::default())),
        ("another lane", TicksPaid { lane: 1, ..paid(&opening, 5, 9) }, Ok(Step::default())),
    ];
    for (name, ticks, expected) in table {
        let answer = hub.accept_with(&[], &[ticks]);
        let before = alice.member.state().clone();
        assert_eq!(alice.member.accepted(&answer), expected, "{name}");
        assert_eq!(*alice.member.state(), before, "{name}");
    }
    let good = hub.accept_with(&[], &[paid(&opening, 5, 9)]);
    let less = hub.accept_with(&[], &[paid(&opening, 5, 8)]);
    let ticks = good.ticks.clone();
    assert_eq!(alice.member.accepted(&v1::Accepted { ticks, ..less }), receipts, "a receipt for less");
    let none = v1::Accepted { receipts: vec![], ..good.clone() };
    assert_eq!(alice.member.accepted(&none), receipts, "no receipt");
    let mut backwards = good.clone();
    backwards.ticks[0].before = 9;
    assert_eq!(alice.member.accepted(&backwards), receipts, "ticks that are none");
    let twice = hub.accept_with(&[], &[paid(&opening, 5, 7), paid(&opening, 7, 9)]);
    assert_eq!(alice.member.accepted(&twice), order(0), "one payment for each stream and flush");
    assert_eq!(balance(&alice.member).unreceipted, amount(12), "nothing of it counts");
    assert_eq!(alice.take(&good).len(), 1);
    alice.assert_rebuilds();
}

// ---- lanes ---------------------------------------------------------------------------------------------------------

#[test]
fn a_stream_is_renewed_folded_and_followed_by_a_frame() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let frame = alice.frame(0, vec![payment(1, 2, 9)]);
    alice.take(&hub.accept_with(&[frame], &[]));
    let first = alice.opened(0, 1);
    alice.reveal(0, 100);
    alice.take(&hub.accept_with(&[], &[paid(&first, 0, 100)]));
    let second = alice.opened(0, 2);
    assert_eq!((second.tip(0).cumulative, alice.view(0).accepted), (amount(310), 0));
    alice.reveal(0, 4);
    alice.take(&hub.accept_with(&[], &[paid(&second, 0, 4)]));
    let (tag, fold, step) = alice.member.fold(ASSET, 0).expect("free").expect("ticks");
    alice.keep(step);
    assert_eq!(fold.body().cumulative, 322);
    assert_eq!(*fold.body(), fold_voucher(&second, 4));
    let busy = alice.member.sign_frame(ASSET, 0, vec![payment(2, 2, 9)]).map(|_| ());
    assert_eq!(busy, Err(PayError::LaneBusy { lane: 0 }), "until the fold is answered");
    let step = alice.member.opened(&answered(tag)).expect("well-formed");
    assert_eq!(alice.keep(step), vec![]);
    assert_eq!(alice.member.evidence(ASSET).expect("an account").lanes, vec![LaneVoucher::Plain(fold.clone())]);
    assert_eq!(alice.member.fold(ASSET, 0).map(|f| f.is_some()), Ok(false), "once is enough");
    let (tag, frame) = alice.frame(0, vec![payment(2, 2, 9)]);
    assert_eq!(frame.tip(), tip_of(&fold).after(&frame.payments).expect("fits"));
    alice.take(&hub.accept_with(&[(tag, frame)], &[]));
    assert_eq!((alice.value(0), balance(&alice.member).unreceipted), (amount(332), Amount::ZERO));
    alice.assert_rebuilds();
}

#[test]
fn a_refused_fold_leaves_the_stream_going() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    alice.reveal(0, 4);
    alice.take(&hub.accept_with(&[], &[paid(&opening, 0, 4)]));
    let (tag, _, step) = alice.member.fold(ASSET, 0).expect("free").expect("ticks");
    alice.keep(step);
    let step = alice.member.refused(&refusal(tag)).expect("a refusal");
    assert_eq!(alice.keep(step), vec![]);
    alice.reveal(0, 5);
    alice.take(&hub.accept_with(&[], &[paid(&opening, 4, 5)]));
    assert_eq!(alice.value(0), amount(15));
    alice.assert_rebuilds();
}

/// Words that were shown for one stream must be worth nothing in another.
#[test]
fn anchor_never_used_twice() {
    let (mut alice, mut hub) = (Alice::new(), hub());
    let opening = alice.opened(0, 1);
    alice.reveal(0, 4);
    alice.take(&hub.accept_with(&[], &[paid(&opening, 0, 4)]));
    let used = Err(PayError::SecretUsed { lane: 0 });
    for (lane, ticks) in [(0, 100), (1, 100), (1, 99), (1, 1), (1, 2048)] {
        let again = alice.member.open_stream(ASSET, lane, stream_terms(2), ticks, secret(1)).map(|_| ());
        assert_eq!(again, used, "lane {lane}, {ticks} ticks");
    }
    // A stream that waits for its successor's answer still counts, and so does one that an old store was shown.
    let (tag, _) = alice.open(0, 2);
    assert_eq!(alice.member.open_stream(ASSET, 1, stream_terms(3), 9, secret(1)).map(|_| ()), used);
    assert_eq!(alice.member.open_stream(ASSET, 1, stream_terms(3), 9, secret(2)).map(|_| ()), used);
    let step = alice.member.opened(&answered(tag)).expect("well-formed");
    alice.keep(step);
    let mut old = Alice::new();
    old.again(&[revealed(&opening, 1, 4)]);
    assert_eq!(old.member.open_stream(ASSET, 1, stream_terms(3), 9, secret(1)).map(|_| ()), used);
    let fresh: BTreeSet<B256> = (0..100).map(|_| Secret::random().0).collect();
    assert_eq!(fresh.len(), 100);
}

#[test]
fn secrets_are_never_printed() {
    let mut alice = Alice::new();
    let opening = alice.opened(0, 0xab);
    alice.reveal(0, 5);
    let Resent::Tick(shown) = alice.again(&[]).1.pop().expect("a word") else { panic!("a word") };
    let text = format!("{:?} {:?} {:?}", alice.member, alice.journal, opening).to_lowercase();
    let words = Words::new(secret(0xab).0, 100);
    for index in 1..=100 {
        let word = words.word(index).expect("there");
        assert!(!text.contains(&hex::encode(word)), "the word of index {index}");
    }
    assert!(format!("{shown:?}").to_lowercase().contains(&hex::encode(shown.word)), "what was revealed is no secret");
}
