//! The payer who cheats with ticks: words of other chains, indices that he has no word for, one anchor twice, ids used
//! before, more than he has. The hub takes what is proven and nothing else, and whoever is honest beside him is paid.

use alloy_primitives::B256;
use payhub_tests::town::{DEPOSIT, Town, amount};
use proto::frame::LaneTip;
use proto::stream::{StreamId, StreamOpening, StreamTerms, Words, fold_voucher};
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::{self, v1};
use proto::{Amount, ChannelId, Payment, Signed};

use super::wire::{FEE, Hand, Session, payment};

const LANE: u32 = 9;

fn terms(stream: u8, payee: ChannelId, base_units: u128) -> StreamTerms {
    StreamTerms { stream: StreamId([stream; 12].into()), payee, amount: amount(base_units), fee: Amount::new(FEE) }
}

fn opening(hand: &Hand, lane: u32, tip: LaneTip, terms: StreamTerms, words: &Words) -> StreamOpening {
    StreamOpening::sign(&hand.domain, &hand.key, hand.account(), lane, tip, terms, words).expect("it can be signed")
}

async fn open(session: &mut Session, tag: u64, opening: &StreamOpening) -> Result<(), String> {
    session.send(ToHub::StreamOpening(wire::opening_message(tag, opening))).await;
    match session.next().await {
        Ok(Some(Kind::StreamOpened(opened))) if opened.tag == tag => Ok(()),
        Ok(Some(Kind::Refused(refused))) if refused.tag == tag => Err(refused.reason),
        other => panic!("an answer to the opening, not {other:?}"),
    }
}

async fn tick(
    session: &mut Session,
    hand: &Hand,
    lane: u32,
    index: u32,
    word: B256,
) -> Result<v1::TicksAccepted, v1::TickRefused> {
    session.send(ToHub::Tick(wire::tick_message(hand.asset, lane, index, word))).await;
    match session.next().await {
        Ok(Some(Kind::Accepted(accepted))) => Ok(accepted.ticks[0].clone()),
        Ok(Some(Kind::TickRefused(refused))) => Err(refused),
        other => panic!("an answer to the tick, not {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_words_of_the_signed_chain_are_money() {
    let town = Town::embedded().await;
    let (mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut session = mallory.connect().await;
    let (words, other) = (Words::new(B256::repeat_byte(1), 50), Words::new(B256::repeat_byte(2), 50));
    let word = |index: u32| words.word(index).expect("within the chain");
    let reason = |refused: Result<v1::TicksAccepted, v1::TickRefused>| refused.expect_err("no money").reason;

    assert_eq!(reason(tick(&mut session, &mallory, LANE, 1, word(1)).await), "NO_STREAM");
    let good = opening(&mallory, LANE, LaneTip::default(), terms(1, bob.channel(), 10), &words);
    // Another's signature, another lane, another price than was signed.
    let stolen = opening(&bob, LANE, LaneTip::default(), terms(1, bob.channel(), 10), &words);
    assert_eq!(open(&mut session, 1, &stolen).await, Err("BAD_SIGNATURE".into()));
    type Change = fn(&mut v1::StreamOpening);
    let table: [(&str, Change, &str); 7] = [
        ("another lane", |o| o.lane += 1, "BAD_SIGNATURE"),
        ("another number of ticks", |o| o.ticks += 1, "BAD_SIGNATURE"),
        ("another anchor", |o| o.anchor = wire::bytes_of([7; 32]), "BAD_SIGNATURE"),
        ("no ticks", |o| o.ticks = 0, "MALFORMED"),
        ("too many ticks", |o| o.ticks = 2_049, "MALFORMED"),
        ("a tick of nothing", |o| o.terms.as_mut().expect("there").amount = wire::amount_bytes(amount(0)), "MALFORMED"),
        // The memo is signed and the terms are what it hashes: other terms do not continue the lane.
        ("another stream", |o| o.terms.as_mut().expect("there").stream = wire::bytes_of([8; 12]), "LANE_BROKEN"),
    ];
    for (tag, (name, change, expected)) in (10..).zip(table) {
        let mut message = wire::opening_message(tag, &good);
        change(&mut message);
        session.send(ToHub::StreamOpening(message)).await;
        let refused = session.refused().await;
        assert_eq!((refused.tag, refused.reason.as_str()), (tag, expected), "{name}");
    }
    assert_eq!(open(&mut session, 2, &good).await, Ok(()));
    assert_eq!(open(&mut session, 3, &good).await, Ok(()), "the same again is the same");

    assert_eq!(reason(tick(&mut session, &mallory, LANE, 1, word(2)).await), "BAD_PREIMAGE");
    assert_eq!(reason(tick(&mut session, &mallory, LANE, 3, word(2)).await), "BAD_PREIMAGE");
    assert_eq!(reason(tick(&mut session, &mallory, LANE, 5, other.word(5).expect("there")).await), "BAD_PREIMAGE");
    assert_eq!(reason(tick(&mut session, &mallory, LANE, 51, word(50)).await), "MALFORMED");
    assert_eq!(reason(tick(&mut session, &mallory, LANE + 1, 1, word(1)).await), "NO_STREAM");
    let accepted = tick(&mut session, &mallory, LANE, 5, word(5)).await.expect("a word of the chain");
    assert_eq!((accepted.before, accepted.index), (0, 5));
    // A word that is known is answered by silence, because it was answered before: the next answer is the next tick's.
    session.send(ToHub::Tick(wire::tick_message(mallory.asset, LANE, 5, word(5)))).await;
    assert_eq!(reason(tick(&mut session, &mallory, LANE, 3, word(3)).await), "TICK_BEHIND");
    let accepted = tick(&mut session, &mallory, LANE, 8, word(8)).await.expect("a word of the chain");
    assert_eq!((accepted.before, accepted.index), (5, 8));

    // Folds: of another index, unsigned, and the right one, after which the chain is over.
    let fold = |index: u32| Signed::sign(&mallory.domain, &mallory.key, fold_voucher(&good, index));
    for (tag, index, expected) in [(20, 7, Some("LANE_BROKEN")), (21, 9, Some("LANE_BROKEN")), (22, 8, None)] {
        session.send(ToHub::Fold(wire::fold_message(tag, &fold(index)))).await;
        match (session.next().await, expected) {
            (Ok(Some(Kind::Refused(refused))), Some(reason)) => assert_eq!(refused.reason, reason),
            (Ok(Some(Kind::StreamOpened(opened))), None) => assert_eq!(opened.tag, tag),
            (other, _) => panic!("index {index}: {other:?}"),
        }
    }
    assert_eq!(reason(tick(&mut session, &mallory, LANE, 9, word(9)).await), "LANE_BROKEN");
    let mut of_bob = bob.connect().await;
    let credits = of_bob.credited().await.credits;
    let credited: u128 = credits.iter().flat_map(|c| &c.payments).map(|p| amount_of(&p.amount)).sum();
    assert_eq!(credited, 80);
    town.check_conservation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_anchor_or_one_id_twice_gains_nothing() {
    let town = Town::embedded().await;
    let (mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut session = mallory.connect().await;
    let words = Words::new(B256::repeat_byte(1), 50);
    let word = |index: u32| words.word(index).expect("within the chain");
    // One anchor on two lanes is two promises: each is paid for.
    for (tag, lane) in [(1, 9), (2, 10)] {
        let opening = opening(&mallory, lane, LaneTip::default(), terms(lane as u8, bob.channel(), 10), &words);
        assert_eq!(open(&mut session, tag, &opening).await, Ok(()));
        assert_eq!(tick(&mut session, &mallory, lane, 5, word(5)).await.expect("paid").index, 5);
    }
    // One stream on two lanes would give one id to two payments.
    let twice = opening(&mallory, 11, LaneTip::default(), terms(9, bob.channel(), 10), &words);
    assert_eq!(open(&mut session, 3, &twice).await, Ok(()), "an opening pays nothing");
    let refused = tick(&mut session, &mallory, 11, 5, word(5)).await.expect_err("that id is a payment");
    assert_eq!(refused.reason, "ID_USED");
    // Nor can a plain payment take the id of ticks, nor ticks that of a plain payment.
    let id = StreamId([9; 12].into()).payment(5);
    let taken = mallory.frame_at(0, LaneTip::default(), vec![Payment { id, ..payment(1, bob.channel(), 3) }]);
    session.pay(4, &taken).await;
    assert_eq!(session.refused().await.reason, "ID_USED");
    let id = StreamId([9; 12].into()).payment(6);
    let plain = mallory.frame_at(0, LaneTip::default(), vec![Payment { id, ..payment(1, bob.channel(), 3) }]);
    session.pay(5, &plain).await;
    assert_eq!(session.accepted().await.tags, [5]);
    assert_eq!(tick(&mut session, &mallory, 9, 6, word(6)).await.expect_err("a payment has it").reason, "ID_USED");
    assert_eq!(tick(&mut session, &mallory, 9, 7, word(7)).await.expect("another id").before, 5);
    town.check_conservation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_beyond_what_is_there_or_of_an_old_session_are_refused() {
    let town = Town::embedded().await;
    let (mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut session = mallory.connect().await;
    let words = Words::new(B256::repeat_byte(1), 50);
    let word = |index: u32| words.word(index).expect("within the chain");
    let dear = opening(&mallory, LANE, LaneTip::default(), terms(1, bob.channel(), DEPOSIT / 10), &words);
    assert_eq!(open(&mut session, 1, &dear).await, Ok(()));
    let refused = tick(&mut session, &mallory, LANE, 10, word(10)).await.expect_err("with the fees too much");
    assert_eq!((refused.reason.as_str(), refused.index), ("INSUFFICIENT_FUNDS", 10));
    let state = refused.state.expect("the lane as the hub has it");
    assert_eq!(state.ticks.expect("a stream").index, 0);
    // The hub could claim the word that it refused, so less is no offer on that chain; the lane goes on from what was
    // accepted, which is nothing.
    assert_eq!(tick(&mut session, &mallory, LANE, 1, word(1)).await.expect_err("less").reason, "TICK_BEHIND");
    let words = Words::new(B256::repeat_byte(2), 50);
    let word = |index: u32| words.word(index).expect("within the chain");
    let tip = LaneTip::default().opened(dear.terms());
    let cheap = opening(&mallory, LANE, tip, terms(2, bob.channel(), 10), &words);
    assert_eq!(open(&mut session, 2, &cheap).await, Ok(()));
    assert_eq!(tick(&mut session, &mallory, LANE, 1, word(1)).await.expect("affordable").index, 1);
    let mut newer = mallory.connect().await;
    session.send(ToHub::Tick(wire::tick_message(mallory.asset, LANE, 2, word(2)))).await;
    match session.next().await {
        Ok(Some(Kind::TickRefused(refused))) => assert_eq!(refused.reason, "OLD_SESSION"),
        Ok(Some(Kind::Farewell(_))) | Ok(None) | Err(_) => {}
        other => panic!("a refusal or the end, not {other:?}"),
    }
    // The new session goes on where the hub stands, without the opening.
    let shown = newer.welcome.accounts[0].lanes.iter().find(|lane| lane.lane == LANE).expect("the lane is shown");
    assert_eq!(shown.ticks.as_ref().expect("a stream").index, 1);
    let hub = town.hub().status().await.expect("runs");
    assert_eq!(hub.payments, 1);
    assert_eq!(tick(&mut newer, &mallory, LANE, 2, word(2)).await.expect("it goes on").before, 1);
    town.check_conservation().await;
}

/// Two openings with one anchor: the words that the long one allows are not money on the short one, which is what was
/// accepted, whoever the payee is.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_opening_with_the_same_anchor_lengthens_no_chain() {
    let town = Town::embedded().await;
    let (mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut session = mallory.connect().await;
    let long = Words::new(B256::repeat_byte(1), 50);
    let short = Words::new(long.word(1).expect("there"), 1);
    assert_eq!(short.anchor(), long.anchor());
    for (lane, payee) in [(9, ChannelId::HUB), (10, bob.channel())] {
        let (tag, tip) = (u64::from(lane) * 10, LaneTip::default());
        let accepted = opening(&mallory, lane, tip, terms(lane as u8, payee, 10), &short);
        assert_eq!(open(&mut session, tag, &accepted).await, Ok(()));
        let refused = opening(&mallory, lane, tip, terms(lane as u8 + 100, payee, 10), &long);
        assert_eq!(open(&mut session, tag + 1, &refused).await, Err("LANE_BROKEN".into()));
        for index in [2, 50] {
            let word = long.word(index).expect("there");
            let refused = tick(&mut session, &mallory, lane, index, word).await.expect_err("one tick was signed");
            assert_eq!(refused.reason, "MALFORMED", "index {index}");
        }
    }
    assert_eq!(town.hub().status().await.expect("it runs").payments, 0);
    town.check_conservation().await;
}

fn amount_of(bytes: &[u8]) -> u128 {
    wire::read_amount("amount", bytes).expect("16 bytes").get()
}
