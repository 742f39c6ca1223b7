//! The replaying client: says again what was said before, in the hope that it counts twice.

use payhub_tests::town::{Town, amount};
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::{self, v1};
use tonic::Code;

use super::wire::{FEE, Hand, payment};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_again_counts_once() {
    let town = Town::embedded().await;
    let (mut mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut session = mallory.connect().await;
    let first = mallory.frame(1, bob.channel(), 100);
    let second = mallory.frame(2, bob.channel(), 200);
    session.pay(1, &first).await;
    let answer = session.accepted().await;
    session.pay(2, &second).await;
    let last = session.accepted().await;

    // The same bytes, at once, out of order, in one session and in the next.
    for (tag, frame, known) in [(3, &second, &last), (4, &first, &answer), (5, &first, &answer)] {
        session.pay(tag, frame).await;
        let again = session.accepted().await;
        assert_eq!(
            (again.tags.as_slice(), again.flush, &again.receipts),
            ([tag].as_slice(), known.flush, &known.receipts)
        );
    }
    let mut newer = mallory.connect().await;
    newer.pay(1, &first).await;
    assert_eq!(newer.accepted().await.receipts, answer.receipts);

    // The same payments under a new signature, on another lane and behind the newest voucher.
    for (tag, lane, tip) in [(2, 7, Default::default()), (3, 0, mallory.tip)] {
        let again = mallory.frame_at(lane, tip, vec![payment(1, bob.channel(), 100)]);
        newer.pay(tag, &again).await;
        assert_eq!(newer.accepted().await.receipts, answer.receipts, "an id has one outcome for ever");
    }
    // With other content it is refused, and so is a mixture of old and new.
    let other = mallory.frame_at(0, mallory.tip, vec![payment(1, bob.channel(), 101)]);
    let mixed = mallory.frame_at(0, mallory.tip, vec![payment(1, bob.channel(), 100), payment(3, bob.channel(), 1)]);
    for (tag, frame) in [(4, other), (5, mixed)] {
        newer.pay(tag, &frame).await;
        assert_eq!(newer.refused().await.reason, "ID_USED");
    }
    let status = town.hub().status().await.expect("runs");
    assert_eq!((status.payments, status.assets[0].1.income), (2, amount(2 * FEE)));
    town.check_conservation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_session_is_over_and_its_frames_are_nothing() {
    let town = Town::embedded().await;
    let (mut mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut old = mallory.connect().await;
    let mut new = mallory.connect().await;
    let Ok(Some(Kind::Farewell(farewell))) = old.next().await else { panic!("the old session ends") };
    assert_eq!(farewell.reason, "OLD_SESSION");
    let frame = mallory.frame(1, bob.channel(), 100);
    old.pay(1, &frame).await;
    assert!(matches!(old.next().await, Ok(None) | Err(_)), "nobody answers there");
    // Its token went with it.
    let request = v1::GetPaymentRequest { token: old.welcome.token.clone(), id: wire::bytes_of([1; 16]) };
    let refused = new.client.get_payment(request).await.expect_err("a token of an ended session");
    assert_eq!(refused.code(), Code::Unauthenticated);
    let ask = v1::GetPaymentRequest { token: new.welcome.token.clone(), id: wire::bytes_of([1; 16]) };
    assert!(!new.client.get_payment(ask).await.expect("answered").into_inner().known, "the ghost was not accepted");
    new.pay(1, &frame).await;
    assert_eq!(new.accepted().await.tags, [1]);
    assert_eq!(town.hub().status().await.expect("runs").payments, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_good_for_one_challenge() {
    let town = Town::embedded().await;
    let (mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let overheard = bob.connect().await;
    let replayed = mallory.connect_with(|_| overheard.hello.clone()).await.map(drop).expect_err("another nonce");
    assert_eq!(replayed.code(), Code::Unauthenticated);
    let mut still = overheard;
    still.send(ToHub::Window(v1::CreditWindow { more: 1 })).await;
    let ask = v1::GetPaymentRequest { token: still.welcome.token.clone(), id: wire::bytes_of([1; 16]) };
    still.client.get_payment(ask).await.expect("his own session lives");
}

/// What was paid while a payer was away is told to him by the acknowledgement that came first, and to nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn deliveries_are_found_again_for_their_payer_only() {
    let mut town = Town::embedded().await;
    let (mut alice, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut carol = Hand::join(&town, 13).await;
    let mut session = alice.connect().await;
    let mut receipts = Vec::new();
    let mut of_carol = carol.connect().await;
    for id in 1..=3 {
        let frame = alice.frame(id, bob.channel(), 10);
        session.pay(u64::from(id), &frame).await;
        let accepted = session.accepted().await;
        let hub_key = proto::PublicKey { scheme: town.scheme(), bytes: bob.terms.hubKey };
        receipts.push(wire::read_receipt(&bob.domain, &hub_key, &accepted.receipts[0]).expect("proven"));
        let frame = carol.frame(id, bob.channel(), 10);
        of_carol.pay(u64::from(id), &frame).await;
        of_carol.accepted().await;
    }
    drop((session, of_carol));
    // Bob acknowledges credits 1..2, then 1..6; the odd ones are Alice's.
    let mut of_bob = bob.connect().await;
    let mut heads = vec![Default::default()];
    while heads.len() <= 6 {
        for credit in of_bob.credited().await.credits {
            let credit = wire::read_credit(credit).expect("well-formed");
            let digest = bob.domain.digest(&credit.receipt(bob.account()));
            heads.push(proto::typed::chain_hash(heads[heads.len() - 1], digest));
        }
    }
    for credits in [2, 6] {
        of_bob.send(bob.ack(credits, heads[usize::try_from(credits).expect("small")])).await;
        // Answered behind the acknowledgement, which is then durable.
        let ask = v1::GetPaymentRequest { token: of_bob.welcome.token.clone(), id: wire::bytes_of([9; 16]) };
        of_bob.client.get_payment(ask).await.expect("answered");
    }
    for restarted in [false, true] {
        if restarted {
            town.stop_hub().await;
            town.start_hub().await;
        }
        let mut session = alice.connect().await;
        let asset = wire::bytes_of(alice.asset);
        let payee = wire::bytes_of(bob.channel().0);
        // The second credit is Carol's, the seventh nobody's: neither is answered.
        for (credit, acked) in [(2, None), (7, None), (1, Some(2)), (3, Some(6)), (5, Some(6))] {
            let (asset, payee) = (asset.clone(), payee.clone());
            session.send(ToHub::DeliveryRequest(v1::DeliveryRequest { asset, payee, credit })).await;
            let Some(acked) = acked else { continue };
            let Ok(Some(Kind::Delivered(delivered))) = session.next().await else { panic!("delivered") };
            let delivered =
                wire::read_delivered(&bob.domain, &bob.key.public(), &delivered).expect("signed by the payee");
            assert_eq!((delivered.credit, delivered.ack.body().credits), (credit, acked));
            let mine = &receipts[usize::try_from(credit / 2).expect("small")];
            let head = wire::head_after(delivered.head_before, [mine.digest()]);
            assert_eq!(wire::head_after(head, delivered.digests), delivered.ack.body().head);
        }
    }
}
