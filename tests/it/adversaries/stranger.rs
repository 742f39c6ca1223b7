//! The stranger: calls everything without the right to. The table holds every call against every wrong credential.

use payhub_tests::town::Town;
use proto::typed::Ack;
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::v1::member_client::MemberClient;
use proto::wire::v1::operator_client::OperatorClient;
use proto::wire::{self, v1};
use proto::{Domain, Signed};
use tonic::Code;

use super::wire::{HOST, Hand};

/// What a stranger makes of a challenge that is meant for Alice.
type WrongHello = fn(&Hand, &Hand, &v1::Challenge) -> v1::Hello;

const WRONG_HELLOS: &[(&str, WrongHello, Code)] = &[
    (
        "no signature",
        |alice, _, c| v1::Hello { signature: Default::default(), ..alice.hello(c, HOST, &alice.key) },
        Code::InvalidArgument,
    ),
    (
        "a signature of zeros",
        |alice, _, c| v1::Hello { signature: wire::bytes_of([0; 64]), ..alice.hello(c, HOST, &alice.key) },
        Code::Unauthenticated,
    ),
    ("the wrong key", |alice, mallory, c| alice.hello(c, HOST, &mallory.key), Code::Unauthenticated),
    (
        "his own login for her channel",
        |alice, mallory, c| v1::Hello {
            channel_id: wire::bytes_of(alice.channel().0),
            ..mallory.hello(c, HOST, &mallory.key)
        },
        Code::Unauthenticated,
    ),
    ("the wrong host", |alice, _, c| alice.hello(c, "elsewhere", &alice.key), Code::Unauthenticated),
    (
        "another nonce",
        |alice, _, c| alice.hello(&v1::Challenge { nonce: wire::bytes_of([1; 32]), ..c.clone() }, HOST, &alice.key),
        Code::Unauthenticated,
    ),
    (
        "an expired challenge",
        |alice, _, c| alice.hello(&v1::Challenge { expires: 1, ..c.clone() }, HOST, &alice.key),
        Code::Unauthenticated,
    ),
    (
        "a challenge that never expires",
        |alice, _, c| alice.hello(&v1::Challenge { expires: u64::MAX, ..c.clone() }, HOST, &alice.key),
        Code::Unauthenticated,
    ),
    (
        "another chain",
        |alice, _, c| {
            let elsewhere = Hand { domain: Domain::new(1, alice.domain.adjudicator), ..copy(alice) };
            v1::Hello { channel_id: wire::bytes_of(alice.channel().0), ..elsewhere.hello(c, HOST, &alice.key) }
        },
        Code::Unauthenticated,
    ),
    (
        "her signature under something else",
        |alice, _, c| {
            let ack = Ack { channelId: alice.channel().0, asset: alice.asset, credits: 1, head: Default::default() };
            let signature = wire::bytes_of(Signed::sign(&alice.domain, &alice.key, ack).signature().as_slice());
            v1::Hello { signature, ..alice.hello(c, HOST, &alice.key) }
        },
        Code::Unauthenticated,
    ),
    (
        "a channel that nobody opened",
        |alice, _, c| v1::Hello { channel_id: wire::bytes_of([7; 32]), ..alice.hello(c, HOST, &alice.key) },
        Code::NotFound,
    ),
    (
        "half a channel",
        |alice, _, c| v1::Hello { channel_id: wire::bytes_of([7; 16]), ..alice.hello(c, HOST, &alice.key) },
        Code::InvalidArgument,
    ),
    (
        "65 accounts",
        |alice, _, c| v1::Hello { accounts: vec![Default::default(); 65], ..alice.hello(c, HOST, &alice.key) },
        Code::InvalidArgument,
    ),
    (
        "a batch that the hub never signed",
        |alice, _, c| {
            let newest_batch = Some(v1::BatchSeen {
                flush: 1 << 40,
                root: wire::bytes_of([1; 32]),
                signature: wire::bytes_of([2; 64]),
            });
            v1::Hello { newest_batch, ..alice.hello(c, HOST, &alice.key) }
        },
        Code::InvalidArgument,
    ),
];

fn copy(hand: &Hand) -> Hand {
    Hand { terms: hand.terms.clone(), key: hand.key.clone(), url: hand.url.clone(), ..*hand }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_login_but_the_right_one_opens_a_session() {
    let town = Town::embedded().await;
    let (alice, mallory) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut hers = alice.connect().await;
    for (name, hello, code) in WRONG_HELLOS {
        let refused = alice.connect_with(|challenge| hello(&alice, &mallory, challenge)).await.map(drop);
        assert_eq!(refused.expect_err(name).code(), *code, "{name}");
    }
    // Neither does any other first message, and hers goes on.
    let frame = copy(&alice).frame(1, mallory.channel(), 10);
    let firsts: Vec<(&str, Option<ToHub>)> = vec![
        ("nothing", None),
        ("a frame", Some(ToHub::Frame(wire::frame_message(1, &frame)))),
        ("an acknowledgement", Some(alice.ack(1, Default::default()))),
        ("a window", Some(ToHub::Window(v1::CreditWindow { more: 1 }))),
        ("a request for a settlement", Some(ToHub::SettlementRequest(Default::default()))),
        ("an answer to one", Some(ToHub::SettlementAnswer(Default::default()))),
        ("a request for a delivery", Some(ToHub::DeliveryRequest(Default::default()))),
    ];
    for (name, first) in firsts {
        let mut client = MemberClient::connect(alice.url.clone()).await.expect("the hub listens");
        let messages = tokio_stream::iter([v1::ClientMessage { kind: first }]);
        let mut inbox = client.session(messages).await.expect("it is challenged").into_inner();
        inbox.message().await.expect("a challenge").expect("a challenge");
        assert_eq!(inbox.message().await.expect_err(name).code(), Code::FailedPrecondition, "{name}");
    }
    hers.pay(1, &frame).await;
    assert_eq!(hers.accepted().await.tags, [1]);
    hers.send(ToHub::Hello(hers.hello.clone())).await;
    let Ok(Some(Kind::Farewell(farewell))) = hers.next().await else { panic!("one hello a session") };
    assert_eq!(farewell.reason, "MALFORMED");
    assert_eq!(town.hub().status().await.expect("runs").payments, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_but_ones_own_shows_anything() {
    let town = Town::embedded().await;
    let (mut alice, mallory) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let (mut hers, mut his) = (alice.connect().await, mallory.connect().await);
    let gone = copy(&mallory).connect().await;
    drop(std::mem::replace(&mut his, mallory.connect().await));
    let frame = alice.frame(1, mallory.channel(), 10);
    hers.pay(1, &frame).await;
    hers.accepted().await;
    let id = wire::bytes_of([1; 16]);
    let bad: [(&str, Vec<u8>); 5] = [
        ("none", vec![]),
        ("a short one", vec![1; 31]),
        ("a long one", [his.welcome.token.as_ref(), &[0]].concat()),
        ("a guessed one", vec![9; 32]),
        ("that of a session that is over", gone.welcome.token.to_vec()),
    ];
    let mut client = MemberClient::connect(alice.url.clone()).await.expect("the hub listens");
    for (name, token) in bad {
        let ask = v1::GetPaymentRequest { token: wire::bytes_of(&token), id: id.clone() };
        assert_eq!(client.get_payment(ask).await.map(drop).expect_err(name).code(), Code::Unauthenticated, "{name}");
        let ask = v1::EventsRequest { token: wire::bytes_of(&token), after_cursor: 0, follow: false };
        assert_eq!(client.events(ask).await.map(drop).expect_err(name).code(), Code::Unauthenticated, "{name}");
    }
    // Another's token shows what is that other's, not what one asks about.
    let ask = |token: &prost::bytes::Bytes| v1::GetPaymentRequest { token: token.clone(), id: id.clone() };
    let of_mallory = client.get_payment(ask(&his.welcome.token)).await.expect("answered").into_inner();
    assert_eq!(of_mallory, v1::GetPaymentResponse::default(), "the payment is Alice's");
    assert!(client.get_payment(ask(&hers.welcome.token)).await.expect("answered").into_inner().known);
    let malformed = v1::GetPaymentRequest { token: hers.welcome.token.clone(), id: wire::bytes_of([1; 15]) };
    assert_eq!(client.get_payment(malformed).await.expect_err("half an id").code(), Code::InvalidArgument);
    // These two are for everybody.
    client.get_info(v1::GetInfoRequest {}).await.expect("public");
    let nobody = client.lookup(v1::LookupRequest { name: "nobody".into() }).await.expect_err("no such name");
    assert_eq!(nobody.code(), Code::NotFound);
}

/// The operator's calls are not on the members' listener at all.
#[tokio::test(flavor = "multi_thread")]
async fn members_cannot_reach_the_operators_calls() {
    let town = Town::embedded().await;
    let mut operator = OperatorClient::connect(town.url()).await.expect("the hub listens");
    let mut codes = vec![
        operator.get_status(v1::GetStatusRequest {}).await.map(drop),
        operator.list_channels(v1::ListChannelsRequest::default()).await.map(drop),
        operator.settle_now(v1::SettleNowRequest::default()).await.map(drop),
        operator.start_close(v1::StartCloseRequest::default()).await.map(drop),
        operator.drain(v1::DrainRequest {}).await.map(drop),
    ];
    for answer in codes.drain(..) {
        assert_eq!(answer.expect_err("not served here").code(), Code::Unimplemented);
    }
    assert!(!town.hub().status().await.expect("runs").draining);
}
