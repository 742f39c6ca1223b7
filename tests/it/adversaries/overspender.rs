//! The overspending client: signs for money that he does not have.

use payhub_tests::town::{DEPOSIT, INBOUND, Town, amount};
use proto::frame::{FrameError, LaneTip};
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::{self, v1};
use proto::{Amount, ChannelId, Frame, Payment};

use super::wire::{FEE, Hand, payment};

#[tokio::test(flavor = "multi_thread")]
async fn more_than_there_is_is_never_paid() {
    let town = Town::embedded().await;
    let (mut mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut session = mallory.connect().await;
    let too_much = mallory.frame_at(0, LaneTip::default(), vec![payment(1, bob.channel(), DEPOSIT)]);
    session.pay(1, &too_much).await;
    assert_eq!(session.refused().await.reason, "INSUFFICIENT_FUNDS");

    // The same money on many lanes at once, sent without waiting: what is accepted fits the deposit.
    let half = INBOUND / 2;
    for lane in 0..64u32 {
        let id = u8::try_from(lane).expect("small") + 10;
        let to_hub = Payment { payee: ChannelId::HUB, ..payment(id, bob.channel(), half) };
        session.pay(u64::from(lane) + 10, &mallory.frame_at(lane, LaneTip::default(), vec![to_hub])).await;
    }
    let (mut accepted, mut refused) = (0, 0);
    while accepted + refused < 64 {
        match session.next().await {
            Ok(Some(Kind::Accepted(m))) => accepted += m.tags.len(),
            Ok(Some(Kind::Refused(m))) => {
                assert_eq!(m.reason, "INSUFFICIENT_FUNDS");
                refused += 1;
            }
            other => panic!("an answer, not {other:?}"),
        }
    }
    let most = DEPOSIT / (half + FEE);
    assert_eq!(accepted as u128, most);
    let left = DEPOSIT - most * (half + FEE);
    let status = town.hub().status().await.expect("runs");
    assert_eq!(status.assets[0].1.income.get(), DEPOSIT - left);

    // The rest is reserved for a withdrawal, so it cannot be paid any more.
    let withdraw = wire::amount_bytes(amount(left));
    let request = v1::SettlementRequest { tag: 1, asset: wire::bytes_of(mallory.asset), withdraw, close: false };
    session.send(ToHub::SettlementRequest(request)).await;
    let Ok(Some(Kind::Proposal(_))) = session.next().await else { panic!("a proposal") };
    mallory.tip = LaneTip::default();
    let spent = mallory.frame_at(63, LaneTip::default(), vec![payment(200, bob.channel(), 1)]);
    session.pay(100, &spent).await;
    assert_eq!(session.refused().await.reason, "INSUFFICIENT_FUNDS");
    town.check_conservation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_that_overflow_are_refused_by_signer_and_hub() {
    let town = Town::embedded().await;
    let (mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let huge = |id, base_units: u128| Payment { fee: Amount::MAX, ..payment(id, bob.channel(), base_units) };
    let sign =
        |payments| Frame::sign(&mallory.domain, &mallory.key, mallory.account(), 0, LaneTip::default(), payments);
    assert_eq!(sign(vec![huge(1, 1)]).expect_err("it does not fit"), FrameError::Overflow);

    // The honest signer cannot make such a frame; on the wire it is refused.
    let mut session = mallory.connect().await;
    let good = mallory.frame_at(0, LaneTip::default(), vec![payment(1, bob.channel(), 10)]);
    let most = [0xff; 16];
    type Spoil = fn(&mut v1::Frame, [u8; 16]);
    let table: &[(&str, &str, Spoil)] = &[
        ("an amount of all ones", "LANE_BROKEN", |f, most| f.payments[0].amount = wire::bytes_of(most)),
        ("a fee of all ones", "LANE_BROKEN", |f, most| f.payments[0].fee = wire::bytes_of(most)),
        ("a total of all ones", "BAD_SIGNATURE", |f, most| f.cumulative = wire::bytes_of(most)),
        ("a smaller total than its payments", "BAD_SIGNATURE", |f, _| f.cumulative = wire::amount_bytes(amount(1))),
        ("an amount of zero", "MALFORMED", |f, _| f.payments[0].amount = wire::amount_bytes(amount(0))),
        ("twice the payment, once the price", "MALFORMED", |f, _| f.payments.push(f.payments[0].clone())),
        ("a lane too many", "MALFORMED", |f, _| f.lane = 64),
        ("a lane of all ones", "MALFORMED", |f, _| f.lane = u32::MAX),
    ];
    for (tag, (name, reason, spoil)) in (1..).zip(table) {
        let mut message = wire::frame_message(tag, &good);
        spoil(&mut message, most);
        session.send(ToHub::Frame(message)).await;
        let refused = session.refused().await;
        assert_eq!((refused.tag, refused.reason.as_str()), (tag, *reason), "{name}");
    }
    session.pay(100, &good).await;
    assert_eq!(session.accepted().await.tags, [100]);
    town.check_conservation().await;
}
