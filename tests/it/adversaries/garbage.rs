//! The client that sends garbage: fields of wrong lengths, messages cut anywhere, bits flipped, frames too large, and
//! bytes that are no HTTP at all. What is not well-formed is refused or ends its own session, and nobody else notices.

use payhub_tests::dice::Dice;
use payhub_tests::town::{PATIENCE, Town};
use prost::Message;
use prost::bytes::{BufMut, Bytes};
use proto::frame::LaneTip;
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::{self, v1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

use super::wire::{HOST, Hand, payment};

type Field = fn(&mut v1::Frame) -> &mut Bytes;

const FIELDS: &[(&str, Field)] = &[
    ("asset", |f| &mut f.asset),
    ("cumulative", |f| &mut f.cumulative),
    ("memo", |f| &mut f.memo),
    ("signature", |f| &mut f.signature),
    ("payment.id", |f| &mut f.payments[0].id),
    ("payment.payee", |f| &mut f.payments[0].payee),
    ("payment.amount", |f| &mut f.payments[0].amount),
    ("payment.fee", |f| &mut f.payments[0].fee),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_field_of_the_wrong_length_or_content_is_refused_in_its_place() {
    let town = Town::embedded().await;
    let (mut mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut session = mallory.connect().await;
    let good = mallory.frame(1, bob.channel(), 10);
    let mut tag = 0;
    for (name, field) in FIELDS {
        let length = field(&mut wire::frame_message(0, &good)).len();
        for wrong in [0, 1, length - 1, length + 1, 4 * length] {
            tag += 1;
            let mut message = wire::frame_message(tag, &good);
            *field(&mut message) = wire::bytes_of(vec![1; wrong]);
            session.send(ToHub::Frame(message)).await;
            let refused = session.refused().await;
            let reason = if *name == "signature" { "BAD_SIGNATURE" } else { "MALFORMED" };
            assert_eq!((refused.tag, refused.reason.as_str()), (tag, reason), "{name} of {wrong} bytes");
        }
        // One flipped bit anywhere: well-formed, and not what was signed.
        tag += 1;
        let mut message = wire::frame_message(tag, &good);
        let mut bytes = field(&mut message).to_vec();
        bytes[length / 2] ^= 4;
        *field(&mut message) = bytes.into();
        session.send(ToHub::Frame(message)).await;
        assert_eq!(session.refused().await.tag, tag, "{name}");
    }
    for (name, payments) in [("no payment", 0), ("a payment too many", 1_025)] {
        tag += 1;
        let mut message = wire::frame_message(tag, &good);
        message.payments = vec![v1::Payment::default(); payments];
        session.send(ToHub::Frame(message)).await;
        assert_eq!(session.refused().await.reason, "MALFORMED", "{name}");
    }
    session.pay(1_000, &good).await;
    assert_eq!(session.accepted().await.tags, [1_000], "after all that the good one is taken");
    town.check_conservation().await;
}

/// Sends bytes as they are and reads messages.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = v1::HubMessage;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        target.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = v1::HubMessage;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<v1::HubMessage>, Status> {
        v1::HubMessage::decode(source).map(Some).map_err(|e| Status::internal(e.to_string()))
    }
}

/// Opens a session as that member, sends these bytes as a message, closes, and waits for the end.
async fn say(hand: &Hand, bytes: Vec<u8>) -> Result<(), Status> {
    let channel = Endpoint::from_shared(hand.url.clone()).expect("an address").connect().await.expect("listens");
    let (outbox, messages) = tokio::sync::mpsc::channel::<Vec<u8>>(4);
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("connected");
    let path = "/payhub.v1.Member/Session".parse().expect("a path");
    let stream = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut answers = grpc.streaming(Request::new(stream), path, Raw).await?.into_inner();
    let challenge = answers.message().await?.expect("the hub speaks first");
    let Some(v1::hub_message::Kind::Challenge(challenge)) = challenge.kind else { panic!("a challenge") };
    let hello = ToHub::Hello(hand.hello(&challenge, HOST, &hand.key));
    outbox.send(v1::ClientMessage { kind: Some(hello) }.encode_to_vec()).await.expect("open");
    answers.message().await?.expect("a welcome");
    outbox.send(bytes).await.expect("open");
    drop(outbox);
    let end = async {
        while answers.message().await?.is_some() {}
        Ok(())
    };
    tokio::time::timeout(PATIENCE, end).await.expect("the hub ends the session")
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_mangled_and_oversized_messages_end_their_own_session_only() {
    let town = Town::embedded().await;
    let (mut mallory, bob) = (Hand::join(&town, 11).await, Hand::join(&town, 12).await);
    let mut bystander = bob.connect().await;
    let good = mallory.frame(1, bob.channel(), 10);
    let whole = v1::ClientMessage { kind: Some(ToHub::Frame(wire::frame_message(1, &good))) }.encode_to_vec();
    let seed = 20_261_122;
    let mut dice = Dice::new(seed);
    for cut in (1..whole.len()).step_by(29) {
        // Cut between fields it may still be a message; then it is refused for what it lacks.
        let _ = say(&mallory, whole[..cut].to_vec()).await;
    }
    for _ in 0..24 {
        let mut mangled = whole.clone();
        let at = dice.below(mangled.len());
        // The payments and the signature are covered; the tag is the client's own affair.
        mangled[at] = mangled[at].wrapping_add(1 + dice.below(254) as u8);
        let decoded = v1::ClientMessage::decode(mangled.as_slice());
        if let Ok(v1::ClientMessage { kind: Some(ToHub::Frame(frame)) }) = &decoded {
            let same = v1::Frame { tag: 1, ..frame.clone() } == wire::frame_message(1, &good);
            if same {
                continue;
            }
        }
        let _ = say(&mallory, mangled).await;
    }
    let status = town.hub().status().await.expect("runs");
    assert_eq!(status.payments, 0, "no garbage is a payment (seed {seed})");

    // Above the size of a message the transport itself says no.
    let mut large = wire::frame_message(1, &good);
    large.payments[0].note = wire::bytes_of(vec![0; 70_000]);
    let large = v1::ClientMessage { kind: Some(ToHub::Frame(large)) }.encode_to_vec();
    let refused = say(&mallory, large).await;
    assert!(matches!(
        refused.map_err(|s| s.code()),
        Ok(()) | Err(Code::OutOfRange | Code::ResourceExhausted | Code::Unknown)
    ));

    // Bytes that are no HTTP: the connection is closed, at the latest after its deadline.
    for noise in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 512], b"\x16\x03\x01\x02\x00"] {
        let address = mallory.url.trim_start_matches("http://");
        let mut connection = TcpStream::connect(address).await.expect("the hub listens");
        connection.write_all(noise).await.expect("open");
        connection.shutdown().await.expect("open");
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut answer)).await;
        // Whether it ends with a reset or in order is the system's affair.
        let _ = ended.expect("the hub hangs up");
    }
    // The one beside him pays and is paid.
    let back = bob.frame_at(0, LaneTip::default(), vec![payment(9, mallory.channel(), 3)]);
    bystander.pay(1, &back).await;
    assert_eq!(bystander.accepted().await.tags, [1]);
    let mut session = mallory.connect().await;
    session.pay(1, &good).await;
    assert_eq!(session.credited().await.credits.len(), 1);
    assert_eq!(session.accepted().await.tags, [1]);
    town.check_conservation().await;
}
