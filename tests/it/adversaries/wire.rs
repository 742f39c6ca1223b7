//! A member played by hand: every byte that goes to the hub is the story's.

use payhub_tests::town::{PATIENCE, Town, amount};
use proto::frame::LaneTip;
use proto::typed::{Ack, Login, server_id};
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::v1::member_client::MemberClient;
use proto::wire::{self, v1};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, Domain, Frame, Payment, PaymentId, SecretKey, Signed};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// The host that the hub of a town calls itself.
pub const HOST: &str = "localhost";
/// Pays for any of the small payments here.
pub const FEE: u128 = 1_000;

/// A member without a program.
pub struct Hand {
    pub domain: Domain,
    pub asset: Asset,
    pub terms: ChannelTerms,
    pub key: SecretKey,
    pub tip: LaneTip,
    pub url: String,
}

/// His session.
pub struct Session {
    pub outbox: mpsc::Sender<v1::ClientMessage>,
    pub inbox: Streaming<v1::HubMessage>,
    pub client: MemberClient<Channel>,
    pub welcome: v1::Welcome,
    /// What was said to open it.
    pub hello: v1::Hello,
}

impl Hand {
    /// A member whose channel the hub serves and has funded.
    pub async fn join(town: &Town, seed: u8) -> Hand {
        let (terms, key) = town.open_by_hand(seed).await;
        let tip = LaneTip::default();
        let hand = Hand { domain: *town.chain().domain(), asset: town.usdh(), terms, key, tip, url: town.url() };
        let one = &hand;
        town.until("the hub serves and funds the channel", || async move {
            let Ok(session) = one.try_connect().await else { return false };
            let funded = |a: &v1::AccountState| a.ledger.as_ref().is_some_and(|l| l.hub_deposit.iter().any(|b| *b > 0));
            session.welcome.accounts.iter().any(funded)
        })
        .await;
        hand
    }

    pub fn channel(&self) -> ChannelId {
        self.domain.channel_id(&self.terms)
    }

    pub fn account(&self) -> AccountId {
        AccountId { channel: self.channel(), asset: self.asset }
    }

    /// The next frame of lane 0, one payment; the lane goes on from it.
    pub fn frame(&mut self, id: u8, payee: ChannelId, base_units: u128) -> Frame {
        let frame = self.frame_at(0, self.tip, vec![payment(id, payee, base_units)]);
        self.tip = frame.tip();
        frame
    }

    /// A frame anywhere.
    pub fn frame_at(&self, lane: u32, tip: LaneTip, payments: Vec<Payment>) -> Frame {
        Frame::sign(&self.domain, &self.key, self.account(), lane, tip, payments).expect("it can be signed")
    }

    /// The answer to a challenge.
    pub fn hello(&self, challenge: &v1::Challenge, host: &str, key: &SecretKey) -> v1::Hello {
        let login = Login {
            channelId: self.channel().0,
            server: server_id(self.terms.hubKey, host),
            nonce: wire::read_b256("nonce", &challenge.nonce).expect("32 bytes"),
            expires: challenge.expires,
        };
        let signed = Signed::sign(&self.domain, key, login);
        v1::Hello {
            channel_id: wire::bytes_of(self.channel().0),
            signature: wire::bytes_of(signed.signature().as_slice()),
            ..v1::Hello::default()
        }
    }

    pub fn ack(&self, credits: u64, head: alloy_primitives::B256) -> ToHub {
        let ack = Ack { channelId: self.channel().0, asset: self.asset, credits, head };
        ToHub::Ack(wire::ack_message(&Signed::sign(&self.domain, &self.key, ack)))
    }

    pub async fn connect(&self) -> Session {
        self.try_connect().await.expect("welcome")
    }

    pub async fn try_connect(&self) -> Result<Session, Status> {
        self.connect_with(|challenge| self.hello(challenge, HOST, &self.key)).await
    }

    /// Opens a session with whatever hello the story makes of the challenge.
    pub async fn connect_with(&self, hello: impl FnOnce(&v1::Challenge) -> v1::Hello) -> Result<Session, Status> {
        let mut client = MemberClient::connect(self.url.clone()).await.expect("the hub listens");
        let (outbox, messages) = mpsc::channel(64);
        let mut inbox = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let Some(Kind::Challenge(challenge)) = next(&mut inbox).await? else { panic!("the hub speaks first") };
        let hello = hello(&challenge);
        outbox.send(v1::ClientMessage { kind: Some(ToHub::Hello(hello.clone())) }).await.expect("open");
        match next(&mut inbox).await? {
            Some(Kind::Welcome(welcome)) => Ok(Session { outbox, inbox, client, welcome, hello }),
            Some(Kind::Farewell(farewell)) => Err(Status::unavailable(farewell.reason)),
            other => panic!("a welcome, not {other:?}"),
        }
    }
}

impl Session {
    pub async fn send(&self, kind: ToHub) {
        // A session that the hub ended takes nothing more; stories see that from its answers.
        let _ = self.outbox.send(v1::ClientMessage { kind: Some(kind) }).await;
    }

    pub async fn pay(&self, tag: u64, frame: &Frame) {
        self.send(ToHub::Frame(wire::frame_message(tag, frame))).await;
    }

    /// The next message, account updates left out.
    pub async fn next(&mut self) -> Result<Option<Kind>, Status> {
        loop {
            match next(&mut self.inbox).await? {
                Some(Kind::Account(_)) => {}
                other => return Ok(other),
            }
        }
    }

    pub async fn accepted(&mut self) -> v1::Accepted {
        match self.next().await {
            Ok(Some(Kind::Accepted(accepted))) => accepted,
            other => panic!("accepted, not {other:?}"),
        }
    }

    pub async fn refused(&mut self) -> v1::Refused {
        match self.next().await {
            Ok(Some(Kind::Refused(refused))) => refused,
            other => panic!("refused, not {other:?}"),
        }
    }

    pub async fn credited(&mut self) -> v1::Credited {
        match self.next().await {
            Ok(Some(Kind::Credited(credited))) => credited,
            other => panic!("credited, not {other:?}"),
        }
    }
}

/// A payment that any hub's price allows.
pub fn payment(id: u8, payee: ChannelId, base_units: u128) -> Payment {
    Payment {
        id: PaymentId([id; 16].into()),
        payee,
        amount: amount(base_units),
        fee: Amount::new(FEE),
        note: Default::default(),
    }
}

async fn next(inbox: &mut Streaming<v1::HubMessage>) -> Result<Option<Kind>, Status> {
    let message = tokio::time::timeout(PATIENCE, inbox.message()).await.expect("the hub answers in time")?;
    Ok(message.and_then(|message| message.kind))
}
