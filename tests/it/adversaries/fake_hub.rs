//! A hub played by hand: it has keys and an account, and says what the story wants.

use std::net::SocketAddr;

use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use payhub_tests::town::{FAKE_HUB, PATIENCE, Town, account_of, amount};
use proto::account::{Status as OnLedger, Totals};
use proto::typed::{Offer, Receipt, Voucher};
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::v1::member_server::{Member, MemberServer};
use proto::wire::{self, v1};
use proto::{AccountId, Amount, ChannelId, ChannelTerms, Domain, Proven, SecretKey, Side, Signed};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// Seconds since 1970 at which nothing here has expired.
const LATE: u64 = 4_000_000_000;

/// A running fake; it ends with this value.
pub struct FakeHub {
    pub addr: SocketAddr,
    pub key: SecretKey,
    pub domain: Domain,
    sessions: mpsc::Receiver<FakeSession>,
    server: JoinHandle<()>,
}

/// A session with a real client, from the side of the hub.
pub struct FakeSession {
    inbox: Streaming<v1::ClientMessage>,
    outbox: mpsc::Sender<Result<v1::HubMessage, Status>>,
}

#[derive(Clone)]
struct Desk {
    info: v1::GetInfoResponse,
    sessions: mpsc::Sender<FakeSession>,
}

impl FakeHub {
    /// Listens, with an account on the town's ledger that owns money.
    pub async fn start(town: &Town) -> FakeHub {
        let key = SecretKey::derive(town.scheme(), &[FAKE_HUB; 32], "voucher");
        let account = account_of(FAKE_HUB).address();
        town.endow(account, 100_000_000).await;
        town.send_as(FAKE_HUB, town.chain().approve(town.usdh(), alloy_primitives::U256::MAX)).await;
        let domain = *town.chain().domain();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
        let addr = listener.local_addr().expect("it is bound");
        let offer = Offer {
            hub: account,
            hubKey: key.public().bytes,
            hubScheme: key.scheme().number(),
            challengePeriod: payhub_tests::town::PERIOD_S,
            expires: LATE,
        };
        let asset = v1::AssetInfo {
            asset: wire::bytes_of(town.usdh()),
            symbol: "USDH".into(),
            decimals: 6,
            deposit_min: wire::amount_bytes(amount(1)),
            inbound_max: wire::amount_bytes(amount(1_000_000)),
            fee_flat: wire::amount_bytes(amount(1)),
            fee_ppm: 0,
        };
        let genesis = town.chain().genesis_hash().await.expect("the chain answers");
        let info = v1::GetInfoResponse {
            chain_id: domain.chain_id,
            adjudicator: wire::bytes_of(domain.adjudicator),
            genesis_hash: wire::bytes_of(genesis),
            host: "fake".into(),
            hub_account: wire::bytes_of(account),
            challenge_period_s: payhub_tests::town::PERIOD_S,
            confirmations: 0,
            offers: vec![wire::offer_message(&Signed::sign(&domain, &key, offer))],
            assets: vec![asset],
            version: "fake".into(),
        };
        let (opened, sessions) = mpsc::channel(16);
        let service = MemberServer::new(Desk { info, sessions: opened });
        let serving = Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(serving.map(drop));
        FakeHub { addr, key, domain, sessions, server }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Greets the next session with this view of the member's account, taken from the ledger where the hub has none of
    /// its own; `view` may change it.
    pub async fn greet(&mut self, town: &Town, view: impl FnOnce(&mut v1::AccountState)) -> FakeSession {
        let waited = tokio::time::timeout(PATIENCE, self.sessions.recv()).await.expect("a session comes");
        let mut session = waited.expect("the fake serves");
        let challenge = v1::Challenge { nonce: wire::bytes_of([5; 32]), expires: LATE };
        session.send(Kind::Challenge(challenge)).await;
        let Some(ToHub::Hello(hello)) = session.next().await else { panic!("a hello") };
        let channel = wire::read_channel("hello", &hello.channel_id).expect("well-formed");
        let totals = totals(town, town.account(channel)).await;
        let mut state = wire::account_message(town.usdh(), &totals, [], None, []);
        if let Some(mine) = hello.accounts.first() {
            state.lanes = mine.lanes.clone();
            state.hub_voucher = mine.hub_voucher.clone();
        }
        view(&mut state);
        let token = wire::bytes_of([6; 32]);
        session.send(Kind::Welcome(v1::Welcome { token, name: String::new(), accounts: vec![state] })).await;
        session
    }

    /// Lets a real client open its channel here; the first session is greeted meanwhile.
    pub async fn admit(&mut self, town: &Town, seed: u8) -> (client::Client, ChannelTerms, FakeSession) {
        let program = town.client(seed, "");
        self.admit_with(town, seed, program).await
    }

    /// The same, with a program that the story set up.
    pub async fn admit_with(
        &mut self,
        town: &Town,
        seed: u8,
        program: client::Builder,
    ) -> (client::Client, ChannelTerms, FakeSession) {
        town.endow(account_of(seed).address(), 10 * payhub_tests::town::DEPOSIT).await;
        let program = program.hub(self.url());
        let member = program.connect().await.expect("connects");
        let deposit = amount(payhub_tests::town::DEPOSIT);
        let opening = {
            let (member, usdh) = (member.clone(), town.usdh());
            tokio::spawn(async move { member.open(usdh, deposit).await.expect("opens") })
        };
        let session = self.greet(town, |_| {}).await;
        let terms = member.terms().await.expect("runs").expect("it began a channel");
        let account = town.account(self.domain.channel_id(&terms));
        town.until("the deposit", || async move { town.world().books(&account).await.member_deposit == deposit }).await;
        let ledger = totals(town, account).await;
        let asset = wire::bytes_of(town.usdh());
        let update = v1::AccountUpdate { asset, ledger: Some(wire::totals_message(&ledger)) };
        session.send(Kind::Account(update)).await;
        opening.await.expect("opened");
        (member, terms, session)
    }

    /// Collateral of the fake for an account.
    pub async fn fund(&self, town: &Town, terms: &ChannelTerms, base_units: u128) {
        let adjudicator = town.chain().adjudicator();
        let funding = dispute::Funding::Caller;
        let deposit = adjudicator.deposit(terms, town.usdh(), Side::Hub, amount(base_units), &funding);
        town.send_as(FAKE_HUB, deposit).await;
    }

    /// A receipt with the fake's good signature, whatever it says.
    pub fn receipt(&self, body: Receipt) -> v1::Receipt {
        wire::receipt_message(&Proven::sign(&self.domain, &self.key, body))
    }

    /// A voucher with the fake's good signature.
    pub fn voucher(&self, body: Voucher) -> v1::HubVoucher {
        wire::hub_voucher_message(&Proven::sign(&self.domain, &self.key, body))
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakeSession {
    pub async fn send(&self, kind: Kind) {
        // A client that was lied to hangs up.
        let _ = self.outbox.send(Ok(v1::HubMessage { kind: Some(kind) })).await;
    }

    /// The next message; `None` when the client hung up.
    pub async fn next(&mut self) -> Option<ToHub> {
        let message = tokio::time::timeout(PATIENCE, self.inbox.message()).await.expect("the client speaks in time");
        message.ok().flatten().and_then(|message| message.kind)
    }

    /// The next frame, whatever else is said before it.
    pub async fn frame(&mut self) -> v1::Frame {
        loop {
            match self.next().await.expect("the client pays") {
                ToHub::Frame(frame) => return frame,
                _ => continue,
            }
        }
    }

    /// Waits until the client hangs up; says whether it acknowledged anything before.
    pub async fn hung_up(mut self) -> bool {
        let mut acked = false;
        while let Some(message) = self.next().await {
            acked |= matches!(message, ToHub::Ack(_));
        }
        acked
    }
}

async fn totals(town: &Town, account: AccountId) -> Totals {
    let books = town.world().books(&account).await;
    Totals {
        member_deposit: books.member_deposit,
        hub_deposit: books.hub_deposit,
        member_withdrawn: books.member_withdrawn,
        hub_withdrawn: books.hub_withdrawn,
        seq: books.seq,
        status: OnLedger::Open,
        ..Totals::default()
    }
}

/// The sum of a frame's payments, fees aside, and what their receipt opens to.
pub fn opening(frame: &v1::Frame) -> (Amount, Vec<(proto::PaymentId, Amount)>) {
    let rows: Vec<_> = frame
        .payments
        .iter()
        .map(|p| wire::read_payment(p.clone()).expect("well-formed"))
        .map(|p| (p.id, p.amount))
        .collect();
    (Amount::checked_sum(rows.iter().map(|row| row.1)).expect("small"), rows)
}

/// The channel of a payee.
pub fn channel_of(town: &Town, terms: &ChannelTerms) -> ChannelId {
    town.chain().domain().channel_id(terms)
}

#[tonic::async_trait]
impl Member for Desk {
    async fn get_info(&self, _: Request<v1::GetInfoRequest>) -> Result<Response<v1::GetInfoResponse>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    type SessionStream = ReceiverStream<Result<v1::HubMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbox, messages) = mpsc::channel(64);
        // A story that is over takes no more sessions.
        let _ = self.sessions.send(FakeSession { inbox: request.into_inner(), outbox }).await;
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    type EventsStream = BoxStream<'static, Result<v1::Event, Status>>;

    async fn events(&self, _: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        Ok(Response::new(futures::stream::empty().boxed()))
    }

    async fn get_payment(&self, _: Request<v1::GetPaymentRequest>) -> Result<Response<v1::GetPaymentResponse>, Status> {
        Ok(Response::new(v1::GetPaymentResponse::default()))
    }

    async fn lookup(&self, _: Request<v1::LookupRequest>) -> Result<Response<v1::LookupResponse>, Status> {
        Err(Status::not_found("nobody"))
    }
}
