//! The remote watchtower: a program of its own that holds the evidence of members who are away and answers for them.
//!
//! Members upload terms and their newest evidence over gRPC ([`proto::wire::tower`]); each upload is answered when it is
//! durable. The tower holds no key but one that pays for gas: everything that it can send is evidence for a close that
//! somebody else began, and the payout after it, which goes where the channel's terms say.
//!
//! # Whom it believes
//! Nobody logs in. Evidence is signed by the hub or by the member himself, with the keys in the terms, and the terms hash
//! to the channel; the ledger says whether that channel is open and holds money. So an upload is good whoever sends it,
//! and no upload can make the tower forget a better one.
//!
//! # What it costs a stranger to fill it
//! An account is watched only if money of it is on the ledger, and everything else is bounded by [`TowerLimits`]: what is
//! beyond a bound is refused with a reason, and what is held already is watched on. A stranger with a real channel can
//! make the tower pay for the gas of his own close, so an address that strangers reach should have little gas money, or
//! a proxy before it that knows its members.
//!
//! # The store
//! One journal line for each change ([`Save`]), and rows for accounts and position at checkpoints. A start reads the rows
//! and then the lines after them: what was answered before a kill is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use alloy_primitives::{Address, B256, keccak256};
use proto::wire::tower::{UPLOAD_BYTES_MAX, Upload, UploadError};
use proto::wire::v1::watchtower_server::{Watchtower, WatchtowerServer};
use proto::wire::{amount_bytes, bytes_of, v1};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms};
use storage::{Backend, Batch, Index, MemoryBackend, MemoryIndex, Store, StoreConfig, Table};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::{Request, Response, Status as Rpc, Streaming};

use crate::adjudicator::{Claim, Status};
use crate::chain::{Chain, ChainError};
use crate::cursor::CursorState;
use crate::submitter::Submitter;
use crate::watchtower::{
    Action, Alarm, Held, Save, Tower, TowerError, TowerHandle, TowerHost, run_tower, start_position, tower_channel,
};

/// Rows of accounts: key = channel (32 bytes), asset (20), chunk (2).
const ACCOUNTS: Table = "account";
/// Rows of the cursor's state: key = chunk (2 bytes).
const POSITION: Table = "position";
/// Bytes of a row: below what the index takes.
const CHUNK_BYTES: usize = 12 * 1024;
/// Bytes of records in one journal line, about: a block with events of very many accounts takes several.
const LINE_BYTES: usize = 1 << 20;
/// Journal lines after which a checkpoint is made: what a start has to replay at most.
const CHECKPOINT_LINES: usize = 4096;
/// Bytes of a segment of the journal: lines are small.
const SEGMENT_BYTES: u64 = 4 << 20;
/// News that wait for a slow reader; beyond it he misses the oldest.
const NEWS_MAX: usize = 1024;
/// Refusals after which a stream is ended: each may have cost a question to the ledger's node.
const REFUSALS_MAX: usize = 64;
/// Connections that spoke and wait to be taken by the server.
const ACCEPTED_MAX: usize = 64;
/// A connection says its first byte within this time.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// A connection shows a sign of life this often, or it is closed.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// What the tower takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TowerLimits {
    /// Channels watched; about three kilobytes of memory each.
    pub channels: usize,
    /// Accounts of one channel: a hub serves few assets, and an account costs a stranger a deposit of dust.
    pub accounts_per_channel: usize,
    /// Open upload streams of one address: a member needs one, and several may share an address.
    pub streams_per_address: usize,
    /// Open upload streams in all: each may hold one message in memory.
    pub streams: usize,
}

impl Default for TowerLimits {
    fn default() -> Self {
        TowerLimits { channels: 100_000, accounts_per_channel: 16, streams_per_address: 64, streams: 4_096 }
    }
}

/// Where the tower keeps what it holds.
pub enum TowerStore {
    /// A folder, locked while the tower runs.
    Folder(PathBuf),
    /// A disk of another kind.
    Disk(Arc<dyn Backend>, Box<dyn Index>),
    /// Nowhere: for evidence that is durable elsewhere.
    Memory,
}

/// How a tower is set up.
pub struct TowerConfig {
    /// Where members upload; nowhere if none.
    pub listen: Option<SocketAddr>,
    /// Where the evidence is kept.
    pub store: TowerStore,
    /// Time between looks at the ledger's head.
    pub poll: Duration,
    /// What is taken at most.
    pub limits: TowerLimits,
}

/// Why a tower does not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The ledger is not what it should be, or silent.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The store does not open, or cannot be written.
    #[error("the tower's store: {0}")]
    Store(#[from] storage::Error),
    /// A record of the store does not read.
    #[error("the tower's store: {0}")]
    Record(#[from] TowerError),
    /// A line of the store does not read.
    #[error(
        "the tower's store: {what} does not read ({why}); restore it from a backup, or let the members upload again"
    )]
    Unreadable {
        /// Which part.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The address cannot be listened at.
    #[error("{address} cannot be listened at: {why}; choose another address, or stop what listens there")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// There is no key that pays for gas.
    #[error("a tower needs a key that pays for gas; give one")]
    NoGasKey,
    /// It stopped.
    #[error("{why}")]
    Stopped {
        /// What it said.
        why: String,
    },
}

/// What a tower does, for whoever shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TowerNews {
    /// It posts evidence.
    Responding {
        /// The account.
        account: AccountId,
        /// What the member paid by what is posted.
        member_paid: Amount,
        /// What the hub paid by what is posted.
        hub_paid: Amount,
    },
    /// It pays an account out.
    PayingOut {
        /// The account.
        account: AccountId,
    },
    /// An account is paid out for ever, and forgotten.
    Final {
        /// The account.
        account: AccountId,
    },
    /// Something for a person.
    Alarm(Alarm),
}

/// A running tower.
pub struct RemoteTower {
    addr: Option<SocketAddr>,
    service: Arc<Service>,
    news: broadcast::Sender<TowerNews>,
    stop: watch::Sender<bool>,
    stopped: watch::Receiver<Option<String>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What both ends know: the host, which writes, and the service, which admits.
#[derive(Debug, Default)]
struct Watching(BTreeMap<ChannelId, BTreeSet<Asset>>);

struct Service {
    chain: Chain,
    genesis: B256,
    gas_account: Address,
    handle: TowerHandle,
    watching: Arc<Mutex<Watching>>,
    limits: TowerLimits,
    streams: Arc<Crowd>,
    stop: watch::Receiver<bool>,
}

impl RemoteTower {
    /// Opens the store, goes on where it was left, and listens.
    pub async fn start(config: TowerConfig, chain: Chain, submitter: Submitter) -> Result<Self, RemoteError> {
        chain.check().await?;
        let gas_account = *submitter.addresses().first().ok_or(RemoteError::NoGasKey)?;
        let genesis = chain.genesis_hash().await?;
        let (store, loaded) = load(config.store, &identity(&chain, genesis))?;
        let position = match loaded.position {
            Some(position) => position,
            None => start_position(&chain).await?,
        };
        let tower = Tower::restore(*chain.domain(), loaded.accounts)?;
        let watching = Arc::new(Mutex::new(Watching::default()));
        tower.accounts().for_each(|account| lock(&watching).insert(account));
        let listener = match config.listen {
            Some(address) => {
                let refused = |e: std::io::Error| RemoteError::Listen { address, why: e.to_string() };
                Some(TcpListener::bind(address).await.map_err(refused)?)
            }
            None => None,
        };
        let (handle, requests) = tower_channel();
        let (news, _) = broadcast::channel(NEWS_MAX);
        let (stop, stop_seen) = watch::channel(false);
        let (ended, stopped) = watch::channel(None);
        let service = Arc::new(Service {
            chain: chain.clone(),
            genesis,
            gas_account,
            handle,
            watching: watching.clone(),
            limits: config.limits,
            streams: Crowd::new(config.limits.streams_per_address, config.limits.streams),
            stop: stop_seen.clone(),
        });
        let host = Host { store, watching, news: news.clone(), dirty: BTreeMap::new(), position: None, lines: 0 };
        let running = run_tower(tower, position, chain, submitter, config.poll, host, requests);
        let (ended_too, mut stop_tower) = (ended.clone(), stop_seen.clone());
        let mut tasks = vec![tokio::spawn(async move {
            tokio::select! {
                stopped = running => drop(ended.send_replace(Some(stopped.to_string()))),
                _ = stop_tower.wait_for(|stop| *stop) => {}
            }
        })];
        let addr = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        if let Some(listener) = listener {
            tasks.push(tokio::spawn(serve(service.clone(), listener, stop_seen, ended_too)));
        }
        Ok(RemoteTower { addr, service, news, stop, stopped, tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// The account that pays for gas.
    pub fn gas_account(&self) -> Address {
        self.service.gas_account
    }

    /// How many accounts are watched.
    pub fn accounts(&self) -> usize {
        lock(&self.service.watching).0.values().map(BTreeSet::len).sum()
    }

    /// What it does from now on.
    pub fn news(&self) -> broadcast::Receiver<TowerNews> {
        self.news.subscribe()
    }

    /// Takes evidence from within the process, verified with the keys of the terms; durable when this returns.
    pub async fn hold(&self, terms: ChannelTerms, asset: Asset, claims: Vec<Claim>) -> Result<Held, TowerError> {
        self.service.handle.hold(terms, asset, claims).await
    }

    /// Returns when the tower cannot go on.
    pub async fn failed(&self) -> RemoteError {
        let mut stopped = self.stopped.clone();
        let why = stopped.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        RemoteError::Stopped { why: why.unwrap_or_else(|| "the watchtower ended".to_owned()) }
    }

    /// Ends it in order. All that was answered is durable already.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        for task in std::mem::take(&mut self.tasks) {
            // A task that panicked has nothing left to end.
            let _ = task.await;
        }
    }
}

impl Drop for RemoteTower {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

// ---- the service ---------------------------------------------------------------------------------------------------

async fn serve(
    service: Arc<Service>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
    ended: watch::Sender<Option<String>>,
) {
    let (accepted, connections) = mpsc::channel(ACCEPTED_MAX);
    // A member's connection carries one stream; another that asks for the tower's facts may stand beside it.
    let crowd = Crowd::new(2 * service.limits.streams_per_address, 2 * service.limits.streams);
    let server = WatchtowerServer::new(Door(service)).max_decoding_message_size(UPLOAD_BYTES_MAX);
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_pending_accept_reset_streams(Some(64))
        .http2_max_header_list_size(8 << 10)
        .max_concurrent_streams(16)
        .tcp_nodelay(true)
        .add_service(server);
    let stopping = async move { drop(stop.wait_for(|stop| *stop).await) };
    let served = tokio::select! {
        served = router.serve_with_incoming_shutdown(ReceiverStream::new(connections), stopping) => served,
        // Never: it goes on until this task ends.
        () = accept(listener, crowd, accepted) => Ok(()),
    };
    if let Err(error) = served {
        ended.send_replace(Some(format!("the tower's listener ended: {error}; start it again")));
    }
}

/// Why an upload is not taken.
#[derive(Clone, Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Upload(#[from] UploadError),
    #[error("channel {0} was not opened on the ledger that this tower sees; open it first, and wait for its block")]
    NotOpen(ChannelId),
    #[error("{0} never had a deposit on the ledger; a tower watches accounts that hold money")]
    NotFunded(AccountId),
    #[error("{0} is paid out for ever; no evidence changes that any more")]
    Final(AccountId),
    #[error("this tower watches {0} channels already; upload to another one")]
    TowerFull(usize),
    #[error("this tower watches {0} accounts of the channel already; upload the others to another one")]
    ChannelFull(usize),
    #[error("the tower's ledger node does not answer ({0}); upload again later")]
    LedgerAway(String),
    #[error("the tower does not take it: {0}")]
    Tower(TowerError),
}

impl Refused {
    fn to_message(&self) -> v1::TowerRefuses {
        use proto::wire::Malformed;
        let (reason, retryable) = match self {
            Refused::Upload(UploadError::Wire(error)) => match &error.why {
                Malformed::Key(_) | Malformed::Evidence(_) => ("BAD_SIGNATURE", false),
                Malformed::TooMany { .. } => ("TOO_LARGE", false),
                _ => ("MALFORMED", false),
            },
            Refused::Upload(UploadError::OtherDomain { .. }) => ("WRONG_DOMAIN", false),
            Refused::Upload(UploadError::OtherChannel { .. }) => ("WRONG_CHANNEL", false),
            Refused::Upload(UploadError::Key { .. }) => ("BAD_KEY", false),
            Refused::Upload(UploadError::OtherAccount { .. }) => ("OTHER_ACCOUNT", false),
            Refused::Upload(UploadError::Empty) => ("EMPTY", false),
            Refused::NotOpen(_) => ("NOT_OPEN", true),
            Refused::NotFunded(_) => ("NOT_FUNDED", true),
            Refused::Final(_) => ("FINAL", false),
            Refused::TowerFull(_) => ("TOWER_FULL", true),
            Refused::ChannelFull(_) => ("CHANNEL_FULL", true),
            Refused::LedgerAway(_) => ("LEDGER_AWAY", true),
            Refused::Tower(TowerError::Stopped) => ("STOPPED", true),
            Refused::Tower(_) => ("NOT_TAKEN", false),
        };
        v1::TowerRefuses { reason: reason.to_owned(), message: self.to_string(), retryable }
    }
}

impl Service {
    /// Judges an upload and keeps it; durable when this returns.
    async fn take(&self, message: &v1::TowerUpload) -> Result<Held, Refused> {
        let Upload { terms, account, hub, receipts, lanes } = Upload::read(self.chain.domain(), message)?;
        let known = lock(&self.watching).contains(&account);
        let place = match known {
            true => None,
            false => {
                self.admit(account).await?;
                Some(self.reserve(account)?)
            }
        };
        let claims = hub.into_iter().map(Claim::Hub);
        let claims = claims.chain(receipts.into_iter().map(Claim::Receipt)).chain(lanes.into_iter().map(Claim::from));
        let held = self.handle.hold(terms, account.asset, claims.collect()).await.map_err(Refused::Tower);
        if let (Some(account), Err(_)) = (place, &held) {
            lock(&self.watching).remove(&account);
        }
        held
    }

    /// Whether the ledger holds money of an account, so that there is something to watch.
    async fn admit(&self, account: AccountId) -> Result<(), Refused> {
        let away = |e: ChainError| Refused::LedgerAway(e.to_string());
        if !self.chain.is_opened(account.channel).await.map_err(away)? {
            return Err(Refused::NotOpen(account.channel));
        }
        let books = self.chain.books(&account).await.map_err(away)?;
        if books.status == Status::Final {
            return Err(Refused::Final(account));
        }
        if books.member_deposit.is_zero() && books.hub_deposit.is_zero() {
            return Err(Refused::NotFunded(account));
        }
        Ok(())
    }

    /// Takes a place among the accounts before the tower does, so that many uploads at once do not take more than there
    /// are.
    fn reserve(&self, account: AccountId) -> Result<AccountId, Refused> {
        let mut watching = lock(&self.watching);
        let channels = watching.0.len();
        match watching.0.get(&account.channel) {
            Some(assets) if assets.len() >= self.limits.accounts_per_channel => {
                return Err(Refused::ChannelFull(self.limits.accounts_per_channel));
            }
            None if channels >= self.limits.channels => return Err(Refused::TowerFull(self.limits.channels)),
            Some(_) | None => {}
        }
        watching.insert(account);
        Ok(account)
    }

    /// Answers one stream until it ends.
    async fn answer(
        &self,
        mut uploads: Streaming<v1::TowerUpload>,
        answers: mpsc::Sender<Result<v1::TowerAnswer, Rpc>>,
    ) {
        let (mut stop, mut refusals) = (self.stop.clone(), 0);
        loop {
            let next = tokio::select! {
                next = uploads.message() => next,
                _ = stop.wait_for(|stop| *stop) => Err(Rpc::unavailable("the tower stops; connect again")),
            };
            let upload = match next {
                Ok(Some(upload)) => upload,
                Ok(None) => return,
                // A message that is too large ends here too, with what tonic says about it.
                Err(status) => return drop(answers.send(Err(status)).await),
            };
            let result = match self.take(&upload).await {
                Ok(held) => v1::tower_answer::Result::Holds(v1::TowerHolds {
                    member_paid: amount_bytes(held.member_paid),
                    hub_paid: amount_bytes(held.hub_paid),
                    raised: held.raised,
                }),
                Err(refused) => {
                    refusals += 1;
                    tracing::debug!(%refused, "an upload is refused");
                    v1::tower_answer::Result::Refuses(refused.to_message())
                }
            };
            let answer = v1::TowerAnswer { tag: upload.tag, result: Some(result) };
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
            if refusals >= REFUSALS_MAX {
                let why = format!("{refusals} uploads of this stream were refused; correct them before you come back");
                return drop(answers.send(Err(Rpc::resource_exhausted(why))).await);
            }
        }
    }
}

// ---- who is there --------------------------------------------------------------------------------------------------

/// Counts who is there, by address.
#[derive(Debug)]
struct Crowd {
    here: Mutex<HashMap<IpAddr, usize>>,
    per_address: usize,
    all: usize,
}

/// A counted one; leaving is dropping it.
#[derive(Debug)]
struct Place {
    crowd: Arc<Crowd>,
    ip: IpAddr,
}

impl Crowd {
    fn new(per_address: usize, all: usize) -> Arc<Self> {
        Arc::new(Crowd { here: Mutex::default(), per_address, all })
    }

    /// A place, or how many of this address there are already.
    fn enter(self: &Arc<Self>, ip: IpAddr) -> Result<Place, usize> {
        let mut here = self.here.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = here.get(&ip).copied().unwrap_or_default();
        if mine >= self.per_address || here.values().sum::<usize>() >= self.all {
            return Err(mine);
        }
        here.insert(ip, mine + 1);
        Ok(Place { crowd: self.clone(), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut here = self.crowd.here.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = here.get_mut(&self.ip) {
            *mine -= 1;
            if *mine == 0 {
                here.remove(&self.ip);
            }
        }
    }
}

/// Takes connections that say something; a library's default server keeps silent ones for ever.
async fn accept(listener: TcpListener, crowd: Arc<Crowd>, accepted: mpsc::Sender<io::Result<Connection>>) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                // Out of descriptors, usually: connections that end make room.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = crowd.enter(peer.ip()) else { continue };
        let accepted = accepted.clone();
        tokio::spawn(async move {
            let spoke = tokio::time::timeout(HANDSHAKE_DEADLINE, stream.peek(&mut [0])).await;
            if matches!(spoke, Ok(Ok(1))) {
                // A server that ended takes none.
                let _ = accepted.send(Ok(Connection { stream, _place: place })).await;
            }
        });
    }
}

/// A counted connection.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

// ---- the calls -----------------------------------------------------------------------------------------------------

/// The service as tonic calls it.
struct Door(Arc<Service>);

#[tonic::async_trait]
impl Watchtower for Door {
    async fn get_info(&self, _: Request<v1::GetTowerInfoRequest>) -> Result<Response<v1::TowerInfo>, Rpc> {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let Service { chain, genesis, gas_account, limits, .. } = &*self.0;
        Ok(Response::new(v1::TowerInfo {
            chain_id: chain.chain_id(),
            adjudicator: bytes_of(chain.domain().adjudicator),
            genesis_hash: bytes_of(genesis),
            gas_account: bytes_of(gas_account),
            confirmations: u32::try_from(chain.confirmations()).unwrap_or(u32::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            limits: Some(v1::TowerLimits {
                channels: u64::try_from(limits.channels).unwrap_or(u64::MAX),
                accounts_per_channel: number(limits.accounts_per_channel),
                message_bytes: number(UPLOAD_BYTES_MAX),
                streams_per_address: number(limits.streams_per_address),
            }),
        }))
    }

    type UploadStream = ReceiverStream<Result<v1::TowerAnswer, Rpc>>;

    async fn upload(&self, request: Request<Streaming<v1::TowerUpload>>) -> Result<Response<Self::UploadStream>, Rpc> {
        let ip = request.remote_addr().map(|address| address.ip());
        let ip = ip.ok_or_else(|| Rpc::internal("the connection has no address"))?;
        let place = self.0.streams.enter(ip).map_err(|mine| {
            Rpc::resource_exhausted(match mine >= self.0.limits.streams_per_address {
                true => format!("{mine} uploads from your address are open already; close one, a member needs one"),
                false => "this tower serves as many members as it can; come back later".to_owned(),
            })
        })?;
        let service = self.0.clone();
        let (answers, stream) = mpsc::channel(1);
        tokio::spawn(async move {
            service.answer(request.into_inner(), answers).await;
            drop(place);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

// ---- the store -----------------------------------------------------------------------------------------------------

/// Writes what the tower decides, and tells what it does.
struct Host {
    store: Store,
    watching: Arc<Mutex<Watching>>,
    news: broadcast::Sender<TowerNews>,
    /// What changed since the checkpoint.
    dirty: BTreeMap<AccountId, Option<Vec<u8>>>,
    position: Option<CursorState>,
    lines: usize,
}

/// What a store holds.
#[derive(Default)]
struct Loaded {
    accounts: BTreeMap<AccountId, Vec<u8>>,
    position: Option<CursorState>,
}

impl TowerHost for Host {
    fn save(&mut self, save: &Save) -> Result<(), String> {
        let mut write = || self.write(save).map_err(|e| e.to_string());
        // The disk is waited for; where there are other threads, other tasks go on meanwhile.
        match tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor()) {
            Ok(tokio::runtime::RuntimeFlavor::MultiThread) => tokio::task::block_in_place(write),
            Ok(_) | Err(_) => write(),
        }
    }

    fn alarm(&mut self, alarm: &Alarm) {
        tracing::warn!(%alarm, "watchtower");
        self.tell(TowerNews::Alarm(alarm.clone()));
    }

    fn sending(&mut self, action: &Action) {
        match action {
            Action::Respond { order, .. } => self.tell(TowerNews::Responding {
                account: order.evidence.account(),
                member_paid: order.evidence.member_paid(),
                hub_paid: order.evidence.hub_paid(),
            }),
            Action::Finalize { account, .. } => self.tell(TowerNews::PayingOut { account: *account }),
            Action::Record { .. } | Action::Forget { .. } | Action::Alarm(_) => {}
        }
    }
}

impl Host {
    fn tell(&self, news: TowerNews) {
        // Nobody may be listening.
        let _ = self.news.send(news);
    }

    fn write(&mut self, save: &Save) -> storage::Result<()> {
        for line in lines_of(save) {
            self.store.append(&line)?;
            self.lines += 1;
        }
        if let Some(position) = &save.position {
            self.position = Some(position.clone());
        }
        for (account, record) in &save.records {
            self.dirty.insert(*account, record.clone());
            let mut watching = lock(&self.watching);
            match record {
                Some(_) => watching.insert(*account),
                None => watching.remove(account),
            }
        }
        for (account, _) in save.records.iter().filter(|(_, record)| record.is_none()) {
            self.tell(TowerNews::Final { account: *account });
        }
        if self.lines >= CHECKPOINT_LINES { self.checkpoint() } else { Ok(()) }
    }

    fn checkpoint(&mut self) -> storage::Result<()> {
        let mut batch = Batch::new();
        for (account, record) in std::mem::take(&mut self.dirty) {
            put(&mut batch, &self.store, ACCOUNTS, &key_of(&account), record.as_deref())?;
        }
        if let Some(position) = self.position.take() {
            let bytes = postcard::to_stdvec(&position).expect("plain data in memory always serializes");
            put(&mut batch, &self.store, POSITION, &[], Some(&bytes))?;
        }
        self.store.checkpoint(batch, self.store.last())?;
        self.store.view().archive()?;
        self.lines = 0;
        Ok(())
    }
}

impl Drop for Host {
    /// A shorter next start; what is not in the rows is in the journal.
    fn drop(&mut self) {
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "the tower's store could not be left with a checkpoint");
        }
    }
}

/// A change as journal lines: the records first, so that a kill between two lines forgets no event of a position.
fn lines_of(save: &Save) -> Vec<Vec<u8>> {
    let line = |save: &Save| postcard::to_stdvec(save).expect("plain data in memory always serializes");
    let (mut lines, mut part, mut bytes) = (Vec::new(), Save::default(), 0);
    for (account, record) in &save.records {
        bytes += record.as_ref().map_or(0, Vec::len);
        part.records.insert(*account, record.clone());
        if bytes >= LINE_BYTES {
            lines.push(line(&std::mem::take(&mut part)));
            bytes = 0;
        }
    }
    part.position = save.position.clone();
    if part != Save::default() {
        lines.push(line(&part));
    }
    lines
}

/// Writes a value in rows of a size that the index takes, and deletes those that an older one had more.
fn put(batch: &mut Batch, store: &Store, table: Table, key: &[u8], value: Option<&[u8]>) -> storage::Result<()> {
    let row = |chunk: usize| {
        let chunk = u16::try_from(chunk).expect("a record has some kilobytes");
        [key, &chunk.to_be_bytes()].concat()
    };
    let chunks: Vec<&[u8]> = value.map(|value| value.chunks(CHUNK_BYTES).collect()).unwrap_or_default();
    for (old, _) in store.scan(table, key, &[], usize::MAX)? {
        if (0..chunks.len()).all(|chunk| row(chunk) != old) {
            batch.delete(table, old);
        }
    }
    for (index, chunk) in chunks.into_iter().enumerate() {
        batch.put(table, row(index), chunk.to_vec());
    }
    Ok(())
}

/// Opens a store and reads it: the rows of the checkpoint, then the lines after it, which say more.
fn load(at: TowerStore, identity: &[u8; 32]) -> Result<(Store, Loaded), RemoteError> {
    let mut config = StoreConfig::default();
    config.journal.segment_bytes = SEGMENT_BYTES;
    let store = match at {
        TowerStore::Folder(folder) => Store::open(&folder, identity, config)?,
        TowerStore::Disk(backend, index) => Store::open_with(backend, index, identity, config)?,
        TowerStore::Memory => {
            let (backend, index) = (Arc::new(MemoryBackend::new()), Box::new(MemoryIndex::new()));
            Store::open_with(backend, index, identity, config)?
        }
    };
    let unreadable = |what, why: postcard::Error| RemoteError::Unreadable { what, why: why.to_string() };
    let mut loaded = Loaded::default();
    for (key, chunk) in store.scan(ACCOUNTS, &[], &[], usize::MAX)? {
        let Some(account) = account_of(&key) else {
            return Err(RemoteError::Unreadable { what: "a row's key", why: format!("it has {} bytes", key.len()) });
        };
        loaded.accounts.entry(account).or_default().extend(chunk);
    }
    let position: Vec<u8> =
        store.scan(POSITION, &[], &[], usize::MAX)?.into_iter().flat_map(|(_, chunk)| chunk).collect();
    let mut tail = Vec::new();
    store.replay_tail(|_, line| {
        tail.push(line.to_vec());
        Ok::<(), storage::Error>(())
    })?;
    for line in tail {
        let save: Save = postcard::from_bytes(&line).map_err(|e| unreadable("a line", e))?;
        loaded.position = save.position.or(loaded.position);
        for (account, record) in save.records {
            match record {
                Some(bytes) => drop(loaded.accounts.insert(account, bytes)),
                None => drop(loaded.accounts.remove(&account)),
            }
        }
    }
    // The rows of a position that was written again since may be of two versions; then the lines have it.
    if loaded.position.is_none() && !position.is_empty() {
        loaded.position = Some(postcard::from_bytes(&position).map_err(|e| unreadable("the position", e))?);
    }
    Ok((store, loaded))
}

fn key_of(account: &AccountId) -> Vec<u8> {
    [account.channel.0.as_slice(), account.asset.as_slice()].concat()
}

fn account_of(key: &[u8]) -> Option<AccountId> {
    let (channel, rest) = key.split_at_checked(32)?;
    let (asset, chunk) = rest.split_at_checked(20)?;
    (chunk.len() == 2)
        .then(|| AccountId { channel: ChannelId(B256::from_slice(channel)), asset: Address::from_slice(asset) })
}

/// What a store belongs to: one ledger, one contract.
fn identity(chain: &Chain, genesis: B256) -> [u8; 32] {
    let mut bytes = b"payhub tower store".to_vec();
    bytes.extend_from_slice(chain.domain().separator().as_slice());
    bytes.extend_from_slice(genesis.as_slice());
    keccak256(bytes).0
}

fn lock(watching: &Mutex<Watching>) -> MutexGuard<'_, Watching> {
    watching.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watching {
    fn contains(&self, account: &AccountId) -> bool {
        self.0.get(&account.channel).is_some_and(|assets| assets.contains(&account.asset))
    }

    fn insert(&mut self, account: AccountId) {
        self.0.entry(account.channel).or_default().insert(account.asset);
    }

    fn remove(&mut self, account: &AccountId) {
        if let Some(assets) = self.0.get_mut(&account.channel) {
            assets.remove(&account.asset);
            if assets.is_empty() {
                self.0.remove(&account.channel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Disk = (Arc<MemoryBackend>, MemoryIndex);

    fn account(byte: u8) -> AccountId {
        AccountId { channel: ChannelId(B256::repeat_byte(byte)), asset: Asset::repeat_byte(byte) }
    }

    fn open(disk: &Disk) -> (Host, Loaded) {
        let at = TowerStore::Disk(disk.0.clone(), Box::new(disk.1.clone()));
        let (store, loaded) = load(at, &[7; 32]).expect("a good store");
        let watching = Arc::new(Mutex::new(Watching::default()));
        let (news, _) = broadcast::channel(1);
        (Host { store, watching, news, dirty: BTreeMap::new(), position: None, lines: 0 }, loaded)
    }

    fn save(records: &[(u8, Option<Vec<u8>>)], position: Option<u64>) -> Save {
        let records = records.iter().map(|(byte, record)| (account(*byte), record.clone())).collect();
        Save { position: position.map(CursorState::from_block), records }
    }

    /// Records of several rows, shrunk and forgotten ones; read from lines alone, from rows alone, and from both.
    #[test]
    fn what_was_saved_is_there_after_a_kill_and_after_a_checkpoint() {
        for checkpoint_after in 0..=3 {
            let disk: Disk = (Arc::new(MemoryBackend::new()), MemoryIndex::new());
            let (mut host, loaded) = open(&disk);
            assert!(loaded.accounts.is_empty() && loaded.position.is_none());
            let steps = [
                save(&[(1, Some(vec![1; 40_000])), (2, Some(vec![2; 5]))], Some(10)),
                save(&[(1, Some(vec![3; 13_000])), (3, Some(vec![4; 12 * 1024]))], None),
                save(&[(2, None)], Some(20)),
            ];
            for (number, step) in steps.iter().enumerate() {
                if number == checkpoint_after {
                    host.checkpoint().expect("written");
                }
                host.save(step).expect("written");
            }
            if checkpoint_after == steps.len() {
                host.checkpoint().expect("written");
            }
            assert_eq!(lock(&host.watching).0.len(), 2, "as many as are not forgotten");
            let crashed: Disk =
                (Arc::new(disk.0.crash(storage::Crash::Lost, 1)), disk.1.crash(storage::Crash::Lost, 1));
            let (_, loaded) = open(&crashed);
            let expected = BTreeMap::from([(account(1), vec![3; 13_000]), (account(3), vec![4; 12 * 1024])]);
            assert_eq!(loaded.accounts, expected, "checkpoint after {checkpoint_after}");
            assert_eq!(loaded.position, Some(CursorState::from_block(20)), "checkpoint after {checkpoint_after}");
        }
    }

    #[test]
    fn a_change_of_very_many_accounts_is_written_in_several_lines_and_its_position_last() {
        let records: Vec<(u8, Option<Vec<u8>>)> = (0..100).map(|byte| (byte, Some(vec![byte; 30_000]))).collect();
        let all = save(&records, Some(5));
        let lines: Vec<Save> =
            lines_of(&all).iter().map(|line| postcard::from_bytes(line).expect("its own line")).collect();
        assert!(lines.len() > 2, "{}", lines.len());
        let (last, before) = lines.split_last().expect("some");
        assert!(last.position.is_some() && before.iter().all(|line| line.position.is_none()));
        let together: BTreeMap<_, _> = lines.iter().flat_map(|line| line.records.clone()).collect();
        assert_eq!(together, all.records);
        assert!(lines_of(&Save::default()).is_empty());
    }
}
