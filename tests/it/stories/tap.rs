//! A relay between members and their hub that writes down what members sign.
//!
//! It holds every signer to his rules: one voucher for one place of a lane, one head for one number of credits, for
//! ever, whatever happened to his disk in between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use futures::stream::BoxStream;
use proto::wire::v1;
use proto::wire::v1::client_message::Kind;
use proto::wire::v1::member_client::MemberClient;
use proto::wire::v1::member_server::{Member, MemberServer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};

/// A running relay; it ends with this value.
pub struct Tap {
    /// Where members connect to.
    pub url: String,
    words: Arc<Mutex<Words>>,
    server: JoinHandle<()>,
}

/// Channel, asset, lane, cumulative amount.
type Place = (Vec<u8>, Vec<u8>, u32, Vec<u8>);

/// What was signed. Places are keyed by the bytes on the wire.
#[derive(Debug, Default)]
struct Words {
    /// A place of a lane -> memo, signature.
    vouchers: BTreeMap<Place, (Vec<u8>, Vec<u8>)>,
    /// An anchor -> the lane and the voucher that it was signed with.
    anchors: BTreeMap<Vec<u8>, (u32, Vec<u8>, Vec<u8>)>,
    /// Channel, asset, credits -> head.
    acks: BTreeMap<(Vec<u8>, Vec<u8>, u64), Vec<u8>>,
    contradictions: Vec<String>,
}

#[derive(Clone)]
struct Relay {
    hub: MemberClient<Channel>,
    words: Arc<Mutex<Words>>,
}

impl Tap {
    /// Listens, and relays to a hub that need not run yet.
    pub async fn on(hub: &str) -> Tap {
        let endpoint = Endpoint::from_shared(hub.to_owned()).expect("the hub's address is one");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let words = Arc::<Mutex<Words>>::default();
        let relay = Relay { hub: MemberClient::new(endpoint.connect_lazy()), words: words.clone() };
        let serving = Server::builder()
            .add_service(MemberServer::new(relay))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { serving.await.expect("the relay serves") });
        Tap { url, words, server }
    }

    /// How many vouchers and acknowledgements passed.
    pub fn seen(&self) -> (usize, usize) {
        let words = lock(&self.words);
        (words.vouchers.len(), words.acks.len())
    }

    /// The most credits that a channel acknowledged.
    pub fn acked(&self, channel: &[u8]) -> u64 {
        lock(&self.words)
            .acks
            .keys()
            .filter(|(of, ..)| of == channel)
            .map(|(_, _, credits)| *credits)
            .max()
            .unwrap_or(0)
    }

    /// Nobody signed two things where only one may ever be signed.
    pub fn check(&self) {
        assert_eq!(lock(&self.words).contradictions, Vec::<String>::new());
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Words {
    fn note(&mut self, channel: &mut Vec<u8>, message: &v1::ClientMessage) {
        match &message.kind {
            Some(Kind::Hello(hello)) => *channel = hello.channel_id.to_vec(),
            Some(Kind::Frame(f)) => {
                let place = (channel.clone(), f.asset.to_vec(), f.lane, f.cumulative.to_vec());
                self.note_voucher(place, (f.memo.to_vec(), f.signature.to_vec()));
            }
            Some(Kind::Fold(f)) => {
                let place = (channel.clone(), f.asset.to_vec(), f.lane, f.cumulative.to_vec());
                self.note_voucher(place, (f.memo.to_vec(), f.signature.to_vec()));
            }
            Some(Kind::StreamOpening(o)) => {
                let word = (o.lane, o.memo.to_vec(), o.signature.to_vec());
                let known = self.anchors.entry(o.anchor.to_vec()).or_insert_with(|| word.clone());
                if *known != word {
                    self.contradictions
                        .push(format!("one anchor for two openings, on lanes {} and {}", known.0, o.lane));
                }
            }
            Some(Kind::Ack(ack)) => {
                let place = (channel.clone(), ack.asset.to_vec(), ack.credits);
                let known = self.acks.entry(place).or_insert_with(|| ack.head.to_vec());
                if *known != ack.head {
                    self.contradictions.push(format!("two heads at credit {}", ack.credits));
                }
            }
            _ => {}
        }
    }

    fn note_voucher(&mut self, place: Place, word: (Vec<u8>, Vec<u8>)) {
        let (lane, cumulative) = (place.2, place.3.clone());
        let known = self.vouchers.entry(place).or_insert_with(|| word.clone());
        if *known != word {
            self.contradictions.push(format!("two vouchers on lane {lane} at {cumulative:?}"));
        }
    }
}

#[tonic::async_trait]
impl Member for Relay {
    async fn get_info(&self, request: Request<v1::GetInfoRequest>) -> Result<Response<v1::GetInfoResponse>, Status> {
        self.hub.clone().get_info(request.into_inner()).await
    }

    type SessionStream = Streaming<v1::HubMessage>;

    async fn session(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (words, mut channel) = (self.words.clone(), Vec::new());
        let messages = request.into_inner().take_while(|m| std::future::ready(m.is_ok())).filter_map(move |message| {
            let message = message.ok();
            if let Some(message) = &message {
                lock(&words).note(&mut channel, message);
            }
            std::future::ready(message)
        });
        self.hub.clone().max_decoding_message_size(proto::wire::MESSAGE_BYTES_MAX).session(messages).await
    }

    type EventsStream = BoxStream<'static, Result<v1::Event, Status>>;

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let events = self.hub.clone().events(request.into_inner()).await?.into_inner();
        Ok(Response::new(events.boxed()))
    }

    async fn get_payment(
        &self,
        request: Request<v1::GetPaymentRequest>,
    ) -> Result<Response<v1::GetPaymentResponse>, Status> {
        self.hub.clone().get_payment(request.into_inner()).await
    }

    async fn lookup(&self, request: Request<v1::LookupRequest>) -> Result<Response<v1::LookupResponse>, Status> {
        self.hub.clone().lookup(request.into_inner()).await
    }
}

fn lock(words: &Mutex<Words>) -> MutexGuard<'_, Words> {
    words.lock().unwrap_or_else(PoisonError::into_inner)
}
