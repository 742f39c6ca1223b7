//! Streams: refusals and their order, the stories of ticks, folds and successors, and that a record says all of it.

use super::*;
use crate::frame::member_voucher;
use crate::stream::{StreamError, StreamTerms, fold_voucher};

/// Member 0 may pay 20,000 of his own; the hub put as much into the accounts of members 1 and 2.
fn rich() -> World {
    World::new(&[(20_000, 0), (100, 20_000), (100, 20_000)])
}

fn hub_terms(w: &mut World, amount: u128, fee: u128) -> StreamTerms {
    w.stream_terms(ChannelId::HUB, amount, fee)
}

/// A stream of `ticks` ticks of one unit from member 0 to member 1 on lane 0.
fn open(w: &mut World, ticks: u32) -> Stream {
    w.open_stream(0, 0, 1, ticks).expect("the lane goes on")
}

/// A payment whose id is that of the stream's payment up to `index`.
fn colliding(w: &mut World, stream: &Stream, index: u32) -> Payment {
    Payment { id: stream.terms().stream.payment(index), ..w.payment(w.id(1), 1) }
}

fn id_used(stream: &Stream, index: u32) -> Refusal {
    Refusal::IdUsed { id: stream.terms().stream.payment(index) }
}

// ---- refusals ------------------------------------------------------------------------------------------------------

const REFUSALS: &[Row] = &[
    ("BAD_PREIMAGE", |w| {
        let stream = open(w, 9);
        let word = stream.words.word(3).expect("there");
        done(stream.opening.chain().advance(4, word).map_err(Refusal::from))
    }),
    ("NO_STREAM", |_| Err(StreamError::NoStream { lane: 3 }.into())),
    ("MALFORMED", |w| {
        let stream = open(w, 9);
        done(stream.opening.chain().advance(10, B256::ZERO).map_err(Refusal::from))
    }),
    ("BAD_SIGNATURE", |w| {
        let stream = open(w, 9);
        let (body, tip) = (stream.opening.voucher().body().clone(), stream.opening.tip(0));
        let key = w.members[2].key.public();
        let signature = *stream.opening.voucher().signature();
        let account = stream.opening.account();
        let opened = StreamOpening::verify(
            &domain(),
            &key,
            account,
            0,
            tip,
            *stream.terms(),
            body.ticks,
            body.anchor,
            signature,
        );
        done(opened.map_err(Refusal::from))
    }),
    ("HUB_FROZEN", |w| {
        freeze(w);
        done(w.open_stream(0, 0, 1, 9))
    }),
    ("HUB_FROZEN", |w| {
        let stream = open(w, 9);
        freeze(w);
        done(w.tick(&stream, 1))
    }),
    ("DRAINING", |w| {
        let stream = open(w, 9);
        w.books.drain();
        w.fold(&stream, 0)
    }),
    ("DRAINING", |w| {
        let stream = open(w, 9);
        w.books.drain();
        done(w.tick(&stream, 1))
    }),
    ("UNKNOWN_CHANNEL", |w| {
        let terms = hub_terms(w, 1, 0);
        let words = w.words(9);
        let account = AccountId { channel: ChannelId(B256::repeat_byte(0xee)), asset: COIN };
        let key = &w.members[0].key;
        let opening = StreamOpening::sign(&domain(), key, account, 0, LaneTip::default(), terms, &words);
        w.books.open_stream(w.members[0].session, opening.expect("well-formed"))
    }),
    ("OLD_SESSION", |w| {
        w.books.hello(w.id(0), SessionId(50), None)?;
        done(w.open_stream(0, 0, 1, 9))
    }),
    ("OLD_SESSION", |w| {
        let stream = open(w, 9);
        w.books.hello(w.id(0), SessionId(50), None)?;
        done(w.tick(&stream, 1))
    }),
    ("OLD_SESSION", |w| {
        let stream = open(w, 9);
        w.books.hello(w.id(0), SessionId(50), None)?;
        w.fold(&stream, 0)
    }),
    ("UNKNOWN_ASSET", |w| {
        let stream = open(w, 9);
        w.books.policy.assets.clear();
        done(w.tick(&stream, 1))
    }),
    ("INSUFFICIENT_FUNDS", |w| {
        let terms = hub_terms(w, 1, 0);
        let words = w.words(9);
        let account = AccountId { channel: w.id(0), asset: TOKEN };
        let key = &w.members[0].key;
        let opening = StreamOpening::sign(&domain(), key, account, 0, LaneTip::default(), terms, &words);
        w.books.open_stream(w.members[0].session, opening.expect("well-formed"))
    }),
    ("NOT_OPEN", |w| {
        let stream = open(w, 9);
        close_member(w, 0);
        done(w.tick(&stream, 1))
    }),
    ("FREEZING", |w| {
        let stream = open(w, 9);
        w.books.propose(w.account_id(0), Ask::Close)?;
        done(w.tick(&stream, 1))
    }),
    ("LANE_BROKEN", |w| {
        let (terms, words) = (w.stream_terms(w.id(1), 1, 0), w.words(9));
        let first = w.opening(0, 0, terms, &words);
        w.pay(0, 1, 1)?;
        w.books.open_stream(w.members[0].session, first)
    }),
    ("LANE_BROKEN", |w| {
        let stream = open(w, 9);
        let plain = Stream { lane: 1, ..stream };
        done(w.tick(&plain, 1))
    }),
    ("LANE_BROKEN", |w| {
        let old = open(w, 9);
        w.tick(&old, 3)?;
        open(w, 9);
        done(w.tick(&old, 4))
    }),
    ("LANE_BROKEN", |w| {
        let stream = open(w, 9);
        w.tick(&stream, 3)?;
        w.fold(&stream, 2)
    }),
    ("LANE_BROKEN", |w| {
        w.pay(0, 1, 1)?;
        let tip = w.account(0).tip(0).folded(B256::ZERO, 0);
        let fold = Signed::sign(&domain(), &w.members[0].key, member_voucher(w.account_id(0), 0, tip));
        w.books.fold(w.members[0].session, fold)
    }),
    ("FOLD_FIRST", |w| {
        full_lanes(w, 4);
        done(w.open_stream(0, 4, 1, 1))
    }),
    ("FOLD_FIRST", |w| {
        full_lanes(w, 4);
        let payment = w.payment(w.id(1), 1);
        let frame = w.frame(0, 4, vec![payment]);
        done(w.send(0, frame))
    }),
    ("FEE_TOO_LOW", |w| {
        w.books.policy.assets[0].fee_flat = a(1);
        done(w.open_stream(0, 0, 1, 9))
    }),
    ("UNKNOWN_PAYEE", |w| {
        let terms = w.stream_terms(ChannelId(B256::repeat_byte(0xee)), 1, 0);
        done(w.open_with(0, 0, terms, 9))
    }),
    ("PAYEE_IS_PAYER", |w| done(w.open_stream(0, 0, 0, 9))),
    ("PAYEE_CLOSING", |w| {
        close_member(w, 1);
        done(w.open_stream(0, 0, 1, 9))
    }),
    ("PAYEE_CLOSING", |w| {
        let stream = open(w, 9);
        close_member(w, 1);
        done(w.tick(&stream, 1))
    }),
    ("INSUFFICIENT_FUNDS", |w| {
        w.edit_totals(0, |t| t.member_deposit = a(6));
        let stream = open(w, 9);
        w.tick(&stream, 6)?;
        done(w.tick(&stream, 7))
    }),
    ("PAYEE_UNBACKED", |w| {
        w.edit_totals(1, |t| t.hub_deposit = a(6));
        let stream = open(w, 9);
        w.tick(&stream, 6)?;
        done(w.tick(&stream, 7))
    }),
    ("ID_USED", |w| {
        let stream = open(w, 9);
        let payment = colliding(w, &stream, 4);
        let frame = w.frame(0, 1, vec![payment]);
        w.send(0, frame)?;
        done(w.tick(&stream, 4))
    }),
    ("ID_USED", |w| {
        let stream = open(w, 9);
        w.tick(&stream, 4)?;
        done(w.open_with(0, 0, *stream.terms(), 9))
    }),
    ("OVERFLOW", |w| {
        w.edit_totals(0, |t| (t.member_deposit, t.hub_deposit) = (a(MAX), a(10)));
        w.pay(1, 0, 10)?;
        let payment = w.payment(ChannelId::HUB, MAX);
        let frame = w.frame(0, 1, vec![payment]);
        w.send(0, frame)?;
        let terms = hub_terms(w, 1, 0);
        let stream = w.open_with(0, 0, terms, 9)?;
        done(w.tick(&stream, 1))
    }),
];

/// Lanes 0 to `count` - 1 of member 0, each with as many ticks as one voucher has.
fn full_lanes(w: &mut World, count: u32) -> Vec<Stream> {
    let full = |lane| {
        let stream = w.open_stream(0, lane, 1, 2048).expect("the lane is new");
        w.tick(&stream, 2048).expect("solvent, and few enough");
        stream
    };
    (0..count).map(full).collect()
}

#[test]
fn every_refusal_of_a_stream_says_its_reason_and_changes_nothing() {
    for (n, (reason, situation)) in REFUSALS.iter().enumerate() {
        let mut w = rich();
        let refusal = situation(&mut w).expect_err(reason);
        assert_eq!(refusal.reason(), *reason, "row {n}: {refusal}");
        if w.books.policy.assets.len() == 2 && w.books.policy == policy(0, 0) {
            w.audit();
        }
    }
}

#[test]
fn a_refusal_of_a_stream_leaves_the_books_as_they_were() {
    let mut w = rich();
    w.edit_totals(1, |t| t.hub_deposit = a(6));
    let stream = open(&mut w, 9);
    w.tick(&stream, 2).expect("backed");
    let view = |w: &World| (w.books.channels().clone(), w.books.ground(), format!("{:?}", w.books.open));
    let before = view(&w);
    let refusal = Refusal::PayeeUnbacked { payee: w.id(1), missing: a(3) };
    assert_eq!(w.tick(&stream, 9), Err(refusal));
    assert_eq!(w.fold(&stream, 9), Err(Refusal::LaneBroken { lane: 0, cumulative: a(2) }));
    assert_eq!(done(w.open_with(0, 1, *stream.terms(), 3)), Err(id_used(&stream, 0)));
    assert_eq!(before, view(&w));
}

#[test]
fn the_first_failing_check_of_a_stream_answers() {
    let table: &[Row] = &[
        ("HUB_FROZEN", |w| {
            freeze(w);
            w.books.drain();
            done(w.open_stream(0, 0, 1, 9))
        }),
        ("DRAINING", |w| {
            w.books.drain();
            w.books.goodbye(w.id(0), w.members[0].session);
            done(w.open_stream(0, 0, 1, 9))
        }),
        ("OLD_SESSION", |w| {
            w.books.hello(w.id(0), SessionId(50), None)?;
            w.books.policy.assets.clear();
            done(w.open_stream(0, 0, 1, 9))
        }),
        ("UNKNOWN_ASSET", |w| {
            w.books.policy.assets.clear();
            close_member(w, 0);
            done(w.open_stream(0, 0, 1, 9))
        }),
        ("NOT_OPEN", |w| {
            let stream = open(w, 9);
            close_member(w, 0);
            done(w.tick(&Stream { lane: 1, ..stream }, 1))
        }),
        ("LANE_BROKEN", |w| {
            let streams = full_lanes(w, 4);
            done(w.tick(&Stream { lane: 5, ..streams.into_iter().next().expect("four") }, 1))
        }),
        ("FOLD_FIRST", |w| {
            full_lanes(w, 4);
            w.books.policy.assets[0].fee_flat = a(1);
            done(w.open_stream(0, 4, 1, 1))
        }),
        ("FEE_TOO_LOW", |w| {
            w.books.policy.assets[0].fee_flat = a(1);
            done(w.open_stream(0, 0, 0, 1))
        }),
        ("PAYEE_CLOSING", |w| {
            let stream = w.open_stream(0, 0, 1, 2000)?;
            w.edit_totals(0, |t| t.member_deposit = a(5));
            close_member(w, 1);
            done(w.tick(&stream, 2000))
        }),
        ("INSUFFICIENT_FUNDS", |w| {
            let stream = open(w, 9);
            let payment = colliding(w, &stream, 4);
            let frame = w.frame(0, 1, vec![payment]);
            w.send(0, frame)?;
            w.edit_totals(0, |t| t.member_deposit = a(2));
            done(w.tick(&stream, 4))
        }),
        ("ID_USED", |w| {
            let stream = open(w, 9);
            let payment = colliding(w, &stream, 4);
            let frame = w.frame(0, 1, vec![payment]);
            w.send(0, frame)?;
            w.edit_totals(1, |t| t.hub_deposit = a(2));
            done(w.tick(&stream, 4))
        }),
    ];
    for (n, (reason, situation)) in table.iter().enumerate() {
        let refusal = situation(&mut rich()).expect_err(reason);
        assert_eq!(refusal.reason(), *reason, "row {n}: {refusal}");
    }
}

/// What was accepted is known whatever has happened since: refusing it would be untrue.
#[test]
fn what_was_accepted_before_is_known_even_when_nothing_new_is() {
    let mut w = rich();
    let stream = open(&mut w, 9);
    w.tick(&stream, 4).expect("solvent");
    w.seal();
    let folded = w.open_stream(0, 1, 1, 9).expect("another lane");
    w.fold(&folded, 0).expect("nothing of it was revealed");
    w.books.drain();
    w.books.propose(w.account_id(0), Ask::Close).expect("both nets are sound");
    w.seal();
    assert_eq!(w.books.open_stream(SessionId(999), stream.opening.clone()), Ok(()));
    assert_eq!(w.tick(&stream, 4), Ok(Ticked::Known));
    assert_eq!(w.tick(&stream, 2), Ok(Ticked::Known));
    assert_eq!(w.fold(&folded, 0), Ok(()));
    assert_eq!(w.seal(), None, "none of it is written again");
    assert_eq!(w.tick(&stream, 5), Err(Refusal::Draining));
}

// ---- stories -------------------------------------------------------------------------------------------------------

#[test]
fn ticks_are_paid_up_to_the_highest_index_once() {
    let mut w = rich();
    let stream = open(&mut w, 100);
    assert_eq!(w.tick(&stream, 3), Ok(Ticked::Accepted));
    assert_eq!(w.tick(&stream, 3), Ok(Ticked::Known));
    assert_eq!(w.tick(&stream, 10), Ok(Ticked::Accepted), "indices may be left out");
    assert_eq!(w.tick(&stream, 7), Ok(Ticked::Known));
    let record = w.seal().expect("an opening and ticks");
    let ticks = w.ticks(&stream, 0, 10);
    assert_eq!(record.entries, vec![Entry::Stream(stream.opening.clone()), Entry::Ticks(ticks)]);
    let signed = w.outcome(&record);
    assert_eq!(signed.receipts.len(), 1, "all ticks of a flush are one payment");
    assert_eq!(signed.credits[0].payments, vec![(stream.terms().stream.payment(10), a(10), Bytes::new())]);
    assert_eq!((w.account(0).member_paid, w.account(1).hub_paid), (a(10), a(10)));
    w.tick(&stream, 12).expect("the next flush goes on");
    let record = w.seal().expect("ticks");
    assert_eq!(record.entries, vec![Entry::Ticks(w.ticks(&stream, 10, 12))]);
    assert_eq!(w.outcome(&record).receipts[0].body().amount, 2, "only what is new");
    w.audit();
}

#[test]
fn a_fee_is_paid_with_every_tick() {
    let mut w = World::with_policy(&[(10_000, 0), (100, 1000)], policy(1, 10_000));
    let terms = w.stream_terms(w.id(1), 100, 1);
    let low = Refusal::FeeTooLow { id: terms.stream.payment(0), given: a(1), price: a(2) };
    assert_eq!(done(w.open_with(0, 0, terms, 9)), Err(low));
    let stream = w.open_with(0, 0, StreamTerms { fee: a(2), ..terms }, 9).expect("the price of one tick");
    w.tick(&stream, 5).expect("solvent");
    let record = w.seal().expect("ticks");
    assert_eq!(record.income, vec![(COIN, a(10))]);
    assert_eq!((w.account(0).member_paid, w.account(1).hub_paid), (a(510), a(500)));
    w.audit();
}

#[test]
fn the_hub_can_be_the_payee_of_a_stream() {
    let mut w = World::new(&[(100, 0)]);
    let terms = hub_terms(&mut w, 3, 1);
    let stream = w.open_with(0, 0, terms, 9).expect("no account of a payee is needed");
    w.tick(&stream, 5).expect("solvent");
    let record = w.seal().expect("ticks");
    assert_eq!((record.credited.clone(), record.income.clone()), (vec![], vec![(COIN, a(20))]));
    let signed = w.outcome(&record);
    assert_eq!((signed.receipts.len(), signed.receipts[0].body().amount), (1, 15));
    assert!(signed.receipts[0].body().is_for_hub());
    w.audit();
}

#[test]
fn what_continues_a_lane_of_ticks_starts_from_the_highest_index() {
    let mut w = rich();
    w.pay(0, 1, 7).expect("solvent");
    let stream = open(&mut w, 100);
    w.tick(&stream, 10).expect("solvent");
    // Built on the ticks of the open flush: the record has the frame before them, and says the same.
    let payment = w.payment(w.id(2), 5);
    let at_opening = w.frame_after(0, 0, stream.opening.tip(0), vec![payment.clone()]);
    assert_eq!(w.send(0, at_opening), Err(Refusal::LaneBroken { lane: 0, cumulative: a(17) }));
    let frame = w.frame_after(0, 0, stream.opening.tip(10), vec![payment]);
    assert_eq!(w.send(0, frame.clone()), Ok(Paid::Accepted));
    assert_eq!(w.account(0).member_paid, a(22));
    assert_eq!(w.tick(&stream, 11), Err(Refusal::LaneBroken { lane: 0, cumulative: a(22) }), "the chain is over");
    w.audit();
    let record = w.seal().expect("frames and ticks");
    assert!(matches!(&record.entries[1..], [Entry::Stream(_), Entry::Frame(_), Entry::Ticks(_)]));
    w.assert_replays();
}

#[test]
fn a_stream_is_renewed_by_another_opening() {
    let mut w = rich();
    let first = open(&mut w, 10);
    w.tick(&first, 10).expect("the whole chain");
    let second = open(&mut w, 10);
    w.tick(&second, 4).expect("solvent");
    assert_eq!(w.account(0).member_paid, a(14));
    let record = w.seal().expect("two streams");
    let ticks = [Entry::Ticks(w.ticks(&first, 0, 10)), Entry::Ticks(w.ticks(&second, 0, 4))];
    assert_eq!(record.entries[2..], ticks);
    assert_eq!(w.outcome(&record).credits[0].payments.len(), 2, "two payments, one receipt");
    w.audit();
    w.assert_replays();
}

#[test]
fn a_fold_pays_nothing_and_makes_the_lane_plain() {
    let mut w = rich();
    let stream = open(&mut w, 100);
    w.tick(&stream, 40).expect("solvent");
    let before = (w.account(0).member_paid, w.account(1).hub_paid);
    w.fold(&stream, 40).expect("it is what the lane is worth");
    w.fold(&stream, 40).expect("the same again");
    assert_eq!((w.account(0).member_paid, w.account(1).hub_paid), before);
    assert!(matches!(&w.account(0).lanes[&0], LaneVoucher::Plain(v) if *v.body() == fold_voucher(&stream.opening, 40)));
    assert_eq!(w.tick(&stream, 41), Err(Refusal::LaneBroken { lane: 0, cumulative: a(40) }));
    w.pay(0, 1, 2).expect("the lane goes on from the fold");
    w.audit();
    w.seal();
    assert_eq!(w.account(0).member_paid, a(42));
    w.assert_replays();
}

/// Off the ledger as on it: a lane is worth its newest voucher, plain or of ticks, and never the sum of both.
#[test]
fn tick_and_plain_of_one_lane_count_once_in_the_books() {
    let mut w = rich();
    for round in 1..=3u128 {
        w.pay(0, 1, 5).expect("solvent");
        let stream = open(&mut w, 9);
        w.tick(&stream, 5).expect("solvent");
        assert_eq!((w.account(0).lanes.len(), w.account(0).member_paid), (1, a(round * 10)));
        assert_eq!(w.account(0).lanes[&0].value(), a(round * 10));
    }
    w.audit();
}

#[test]
fn a_jump_of_ticks_is_insolvent_as_a_whole() {
    let mut w = World::new(&[(10, 0), (100, 1000)]);
    let stream = open(&mut w, 2048);
    let refusal = Refusal::InsufficientFunds { cost: a(11), available: a(10) };
    assert_eq!(w.tick(&stream, 11), Err(refusal));
    assert_eq!(w.tick(&stream, 10), Ok(Ticked::Accepted), "a smaller index is still free");
    let second = w.open_stream(0, 1, 1, 9).expect("an opening costs nothing");
    assert_eq!(w.tick(&second, 1), Err(Refusal::InsufficientFunds { cost: a(1), available: a(0) }));
    w.audit();
}

#[test]
fn a_refused_tick_does_not_block_its_lane() {
    let mut w = World::new(&[(100, 0), (100, 5)]);
    let stream = open(&mut w, 9);
    w.tick(&stream, 4).expect("backed");
    let refusal = Refusal::PayeeUnbacked { payee: w.id(1), missing: a(3) };
    assert_eq!(w.tick(&stream, 8), Err(refusal));
    // What counted on the refused reveal is refused too; what starts from the accepted index is not.
    let payment = w.payment(ChannelId::HUB, 1);
    let on_refused = w.frame_after(0, 0, stream.opening.tip(8), vec![payment.clone()]);
    assert_eq!(w.send(0, on_refused), Err(Refusal::LaneBroken { lane: 0, cumulative: a(4) }));
    w.edit_totals(1, |t| t.hub_deposit = a(100));
    assert_eq!(w.tick(&stream, 8), Ok(Ticked::Accepted), "the same word may be taken later");
    w.edit_totals(1, |t| t.hub_deposit = a(8));
    w.tick(&stream, 9).expect_err("not backed");
    let frame = w.frame_after(0, 0, stream.opening.tip(8), vec![payment]);
    assert_eq!(w.send(0, frame), Ok(Paid::Accepted));
    w.audit();
    w.seal();
    w.assert_replays();
}

/// A payer who breaks the rule shows the same words on two lanes, or on one lane twice. Every lane is paid for by
/// itself, so that hub and payee neither gain nor lose by it.
#[test]
fn anchor_used_twice_moves_no_money_that_was_not_paid() {
    for (lane, seal) in [(0, false), (0, true), (1, false), (1, true)] {
        let mut w = rich();
        let first = open(&mut w, 9);
        w.tick(&first, 5).expect("solvent");
        drop(seal.then(|| w.seal()));
        let terms = w.stream_terms(w.id(1), 1, 0);
        let opening = w.opening(0, lane, terms, &first.words);
        w.books.open_stream(w.members[0].session, opening.clone()).expect("the hub does not remember anchors");
        let second = Stream { from: 0, lane, opening, words: first.words.clone() };
        assert_eq!(w.tick(&second, 3), Ok(Ticked::Accepted), "words that the first stream showed are ticks here");
        assert_eq!((w.account(0).member_paid, w.account(1).hub_paid), (a(8), a(8)));
        w.audit();
        w.seal();
        w.assert_replays();
        assert_eq!(w.tick(&second, 4), Ok(Ticked::Accepted));
        w.seal();
        w.assert_replays();
        // A checkpoint may have written the row of the second stream before the records of the first are replayed.
        let mut ahead = Books::restore(domain(), policy(0, 0), w.books.ground(), rows(&w.books));
        w.records.iter().for_each(|record| ahead.replay(record));
        assert_eq!(ahead.channels(), w.books.channels());
    }
}

#[test]
fn the_payment_of_ticks_and_a_plain_payment_never_share_an_id() {
    for seal in [false, true] {
        let seal_if = |w: &mut World| drop(seal.then(|| w.seal()));
        // The plain one first.
        let mut w = rich();
        let stream = open(&mut w, 9);
        let payment = colliding(&mut w, &stream, 4);
        let frame = w.frame(0, 1, vec![payment]);
        w.send(0, frame.clone()).expect("the id is free");
        seal_if(&mut w);
        assert_eq!(w.tick(&stream, 4), Err(id_used(&stream, 4)));
        assert_eq!(w.tick(&stream, 5), Ok(Ticked::Accepted), "another index has another id");
        let again = w.send(0, frame).map(|paid| matches!(paid, Paid::Again { .. }));
        assert_eq!(again, Ok(true), "what was paid before stays paid");
        // The ticks first.
        let mut w = rich();
        let stream = open(&mut w, 9);
        w.tick(&stream, 4).expect("solvent");
        seal_if(&mut w);
        for index in [4, 6] {
            let payment = colliding(&mut w, &stream, index);
            let frame = w.frame(0, 1, vec![payment]);
            let free = seal && index == 6;
            let expected = if free { Ok(Paid::Accepted) } else { Err(id_used(&stream, index)) };
            assert_eq!(w.send(0, frame), expected, "while a flush is open it is not known where its ticks end");
        }
        w.audit();
    }
}

#[test]
fn a_stream_id_used_again_pays_no_id_twice() {
    let mut w = rich();
    let first = open(&mut w, 9);
    w.tick(&first, 4).expect("solvent");
    w.seal();
    let second = w.open_with(0, 0, *first.terms(), 9).expect("in another flush");
    assert_eq!(w.tick(&second, 4), Err(id_used(&first, 4)));
    assert_eq!(w.tick(&second, 3), Ok(Ticked::Accepted));
    let other_lane = w.open_with(0, 1, *first.terms(), 9);
    assert_eq!(done(other_lane), Err(id_used(&first, 0)), "its ticks of this flush are one payment");
    w.audit();
}

#[test]
fn evidence_that_would_not_fit_a_call_is_folded_first() {
    let mut w = rich();
    let streams = full_lanes(&mut w, 4);
    let gas = 4 * (GAS_LANE + 2048 * GAS_TICK) + GAS_LANE;
    assert_eq!(done(w.open_stream(0, 4, 1, 9)), Err(Refusal::FoldFirst { gas, max: CLAIM_GAS_MAX }));
    w.fold(&streams[2], 2048).expect("it makes the evidence smaller");
    let fifth = w.open_stream(0, 4, 1, 2048).expect("a lane is free");
    let gas = |index: u64| 3 * (GAS_LANE + 2048 * GAS_TICK) + GAS_LANE + GAS_LANE + index * GAS_TICK;
    let most = (CLAIM_GAS_MAX - gas(0)) / GAS_TICK;
    let index = u32::try_from(most).expect("small");
    assert_eq!(w.tick(&fifth, index), Ok(Ticked::Accepted), "up to the bound");
    assert_eq!(w.tick(&fifth, index + 1), Err(Refusal::FoldFirst { gas: gas(most + 1), max: CLAIM_GAS_MAX }));
    w.fold(&streams[0], 2048).expect("another fold frees it");
    assert_eq!(w.tick(&fifth, index + 1), Ok(Ticked::Accepted));
    let all: u64 = w.account(0).lanes.values().map(LaneVoucher::claim_gas).sum();
    assert!(all <= CLAIM_GAS_MAX, "{all}");
    w.audit();
}

#[test]
fn one_receipt_opens_to_frames_and_then_ticks() {
    let mut w = rich();
    let stream = open(&mut w, 9);
    w.tick(&stream, 4).expect("solvent");
    let payment = w.payment(w.id(1), 7);
    let frame = w.frame(0, 1, vec![payment.clone()]);
    w.send(0, frame).expect("solvent");
    let elsewhere = w.open_stream(0, 2, 2, 9).expect("solvent");
    w.tick(&elsewhere, 2).expect("solvent");
    w.tick(&stream, 6).expect("solvent");
    w.pay(1, 2, 1).expect("solvent");
    let record = w.seal().expect("frames and ticks");
    let signed = w.outcome(&record);
    let rows = [(payment.id, a(7), Bytes::new()), (stream.terms().stream.payment(6), a(6), Bytes::new())];
    let credit = signed.credits.iter().find(|c| c.receipt.channelId == w.id(1).0).expect("credited");
    assert_eq!(credit.payments, rows, "in the order of the record, not of their arrival");
    let hash = crate::frame::payments_hash(&[(rows[0].0, rows[0].1), (rows[1].0, rows[1].1)]);
    assert_eq!((credit.receipt.amount, credit.receipt.payments), (13, hash));
    let to_third: Vec<(u64, u128)> = signed
        .receipts
        .iter()
        .filter(|r| r.body().channelId == w.id(2).0)
        .map(|r| (r.body().credit, r.body().amount))
        .collect();
    assert_eq!(to_third, vec![(1, 1), (2, 2)], "frames of the flush come before ticks");
    w.audit();
    w.assert_replays();
}

#[test]
fn ticks_count_in_settlements_like_frames() {
    let mut w = World::new(&[(100, 0), (1, 100)]);
    let stream = open(&mut w, 90);
    w.tick(&stream, 60).expect("solvent, not sealed");
    let too_large = Err(Refusal::PayoutTooLarge { asked: a(41), available: a(40) });
    assert_eq!(w.books.propose(w.account_id(0), Ask::Withdraw(a(41))), too_large);
    w.books.propose(w.account_id(0), Ask::Withdraw(a(35))).expect("covered");
    let refusal = Refusal::InsufficientFunds { cost: a(6), available: a(5) };
    assert_eq!(w.tick(&stream, 66), Err(refusal), "a kept settlement counts as posted");
    let close = w.books.propose(w.account_id(1), Ask::Close).expect("both nets are sound");
    assert_eq!((close.memberWithdrawn, close.hubWithdrawn), (61, 40));
    assert_eq!(w.tick(&stream, 61), Err(Refusal::PayeeClosing { payee: w.id(1) }));
    w.audit();
}

/// The index that the next opening of a lane gets is its own, whatever the old one had.
#[test]
fn a_replayed_record_does_not_move_a_lane_back() {
    let mut w = rich();
    let first = open(&mut w, 9);
    w.seal();
    w.tick(&first, 3).expect("solvent");
    w.seal();
    w.fold(&first, 3).expect("worth as much");
    w.seal();
    let second = open(&mut w, 9);
    w.seal();
    w.fold(&second, 0).expect("nothing was revealed");
    w.seal();
    let third = open(&mut w, 9);
    w.tick(&third, 2).expect("solvent");
    w.seal();
    w.pay(0, 1, 4).expect("solvent");
    w.seal();
    w.assert_replays();
    let mut seen = rows(&w.books);
    for record in w.records.clone().iter().rev() {
        let mut books = Books::restore(domain(), policy(0, 0), w.books.ground(), seen.clone());
        books.replay(record);
        assert_eq!(
            books.account(w.account_id(0)).map(|x| x.member_paid),
            Some(a(9)),
            "an old record alone raises nothing"
        );
        seen = rows(&w.books);
    }
}
