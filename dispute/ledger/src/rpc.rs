//! JSON-RPC: one dispatch for everybody. [`serve`] puts it on HTTP and WebSocket, [`InProcess`] behind alloy's
//! client without a network.
//!
//! Errors follow geth: code 3 with the return data for a revert, -32000 for what the chain refuses, -32602 for
//! parameters that make no sense, -32005 for a limit.
//!
//! Nobody can make the node hold much for him: sizes, counts and batches are bounded here, what one connection may
//! have under way in [`connection`], what a follower of the chain may be behind in [`follow`].

mod connection;
mod eth;
mod follow;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use alloy::rpc::json_rpc::{RequestPacket, Response, ResponsePacket, SerializedRequest};
use alloy::transports::{TransportError, TransportErrorKind, TransportFut};
use alloy_primitives::{Address, B256, Bytes, U64, U128, U256, keccak256};
use jsonrpsee::core::middleware::RpcServiceBuilder;
use jsonrpsee::server::{
    BatchRequestConfig, HttpBody, HttpRequest, HttpResponse, PingConfig, Server, ServerConfig, ServerHandle,
    StopHandle, serve_with_graceful_shutdown, stop_channel, ws,
};
use jsonrpsee::types::{ErrorObjectOwned, Params};
use jsonrpsee::{Methods, RpcModule};
use serde::Serialize;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tower::Service as _;

use crate::chain::{AdmissionError, Command, Edit, MINE_BLOCKS_MAX, Reply};
use crate::{Error, Ledger};

/// Largest request: the largest transaction in hexadecimal fits several times, a batch of ordinary ones too.
const REQUEST_BYTES_MAX: u32 = 2 * 1024 * 1024;

/// Largest response: a full block with full transactions.
const RESPONSE_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// Open connections of a server.
const CONNECTIONS_MAX: u32 = 512;

/// Requests in one batch.
const BATCH_REQUESTS_MAX: u32 = 1_000;

/// Subscriptions of one connection.
const SUBSCRIPTIONS_MAX: u32 = 64;

/// Answers and notifications of one connection that wait for the socket. Few, because each may be as large as
/// [`RESPONSE_BYTES_MAX`].
const MESSAGES_BUFFERED_MAX: u32 = 16;

/// Pause after the operating system refused a connection.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

/// Calls, estimates and log searches that run at a time. The others wait, so that they cannot take all the threads.
const HEAVY_REQUESTS_MAX: usize = 8;

type Answer<T> = Result<T, ErrorObjectOwned>;

/// What an answer can fail with, besides wrong parameters.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RpcError {
    /// The transaction is not admitted.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
    /// The chain failed or refused.
    #[error(transparent)]
    Ledger(#[from] Error),
    /// The call was reverted.
    #[error("execution reverted{}", reason(.0))]
    Reverted(Bytes),
    /// The call ended in another way than success or revert.
    #[error("{0}")]
    Failed(String),
    /// State is kept at the head only.
    #[error("the state of block {asked} is not kept, only that of the newest block ({head}): ask at `latest`")]
    OldState {
        /// The block asked about.
        asked: u64,
        /// The newest block.
        head: u64,
    },
    /// There is no such block.
    #[error("there is no block {0}")]
    NoBlock(String),
    /// More than a request may ask for.
    #[error("{0}")]
    Limit(String),
    /// A follower of the chain cannot be told everything any more.
    #[error("{0}")]
    Lost(String),
    /// There is no such filter.
    #[error("filter not found: {0:#x} was never made, was uninstalled, or was not asked for too long")]
    NoFilter(U128),
    /// A parameter that cannot be meant.
    #[error("{0}")]
    Parameter(String),
}

impl From<RpcError> for ErrorObjectOwned {
    fn from(error: RpcError) -> Self {
        let message = error.to_string();
        match error {
            RpcError::Reverted(data) => ErrorObjectOwned::owned(3, message, Some(data)),
            RpcError::Limit(_) => ErrorObjectOwned::owned(-32005, message, None::<()>),
            RpcError::Parameter(_) => ErrorObjectOwned::owned(-32602, message, None::<()>),
            RpcError::Admission(_)
            | RpcError::Ledger(_)
            | RpcError::Failed(_)
            | RpcError::OldState { .. }
            | RpcError::Lost(_)
            | RpcError::NoFilter(_)
            | RpcError::NoBlock(_) => ErrorObjectOwned::owned(-32000, message, None::<()>),
        }
    }
}

/// The text of `Error(string)` or `Panic(uint256)`, if the data is one of them.
fn reason(data: &Bytes) -> String {
    let decoded = alloy_sol_types::decode_revert_reason(data);
    decoded.map(|text| format!(": {}", text.trim_start_matches("revert: "))).unwrap_or_default()
}

/// A JSON-RPC server.
#[derive(Debug)]
pub struct RpcServer {
    local_addr: SocketAddr,
    handle: ServerHandle,
}

impl RpcServer {
    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.local_addr)
    }

    /// Closes all connections and ends the server.
    pub async fn stop(self) {
        // An error means that it has ended already.
        let _ = self.handle.stop();
        self.handle.stopped().await;
    }
}

/// Serves a ledger.
pub async fn serve(ledger: Ledger, address: SocketAddr) -> Result<RpcServer, Error> {
    let config = ServerConfig::builder()
        .max_request_body_size(REQUEST_BYTES_MAX)
        .max_response_body_size(RESPONSE_BYTES_MAX)
        .max_connections(CONNECTIONS_MAX)
        .set_batch_request_config(BatchRequestConfig::Limit(BATCH_REQUESTS_MAX))
        .max_subscriptions_per_connection(SUBSCRIPTIONS_MAX)
        .set_message_buffer_capacity(MESSAGES_BUFFERED_MAX)
        .set_id_provider(follow::SubscriptionIds)
        // A peer that went away without a word gives its place back.
        .enable_ws_ping(PingConfig::new())
        .build();
    let bind = |source| Error::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let local_addr = listener.local_addr().map_err(bind)?;
    let (stop, handle) = stop_channel();
    // Wallets in browsers ask from other origins. Only for development, and not for the whole network.
    let browsers = ledger.shared().dev && local_addr.ip().is_loopback();
    let peers = Peers { config, methods: methods(ledger), stop, browsers };
    tokio::spawn(accept(listener, peers));
    Ok(RpcServer { local_addr, handle })
}

/// What every connection of a server shares.
#[derive(Clone)]
struct Peers {
    config: ServerConfig,
    methods: Methods,
    stop: StopHandle,
    browsers: bool,
}

async fn accept(listener: TcpListener, peers: Peers) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
    let stopped = peers.stop.clone().shutdown();
    tokio::pin!(stopped);
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("the semaphore is never closed"),
            () = &mut stopped => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => return,
        };
        match accepted {
            Ok((socket, _)) => drop(tokio::spawn(talk(socket, peers.clone(), place))),
            Err(error) => {
                // Most likely too many open files: others must end first.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn talk(socket: TcpStream, peers: Peers, place: OwnedSemaphorePermit) {
    let Peers { config, methods, stop, browsers } = peers;
    // Without it answers are late, no more.
    let _ = socket.set_nodelay(true);
    let flow = connection::Flow::new(place);
    let service = Server::builder()
        .set_config(config)
        .set_rpc_middleware(RpcServiceBuilder::new().layer(connection::FlowLayer(flow.clone())))
        .to_service_builder()
        .build(methods, stop.clone());
    let watched = flow.clone();
    let service = tower::service_fn(move |request| {
        let mut service = service.clone();
        if ws::is_upgrade_request(&request) {
            watched.upgrade();
        }
        async move {
            if browsers && is_preflight(&request) {
                return Ok(allow_browsers(HttpResponse::new(HttpBody::empty())));
            }
            let answer = service.call(request).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(if browsers { allow_browsers(answer) } else { answer })
        }
    });
    let socket = connection::Guarded::new(socket, flow);
    if let Err(error) = serve_with_graceful_shutdown(socket, service, stop.shutdown()).await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Whether a browser asks for permission to ask.
fn is_preflight<B>(request: &HttpRequest<B>) -> bool {
    request.method().as_str() == "OPTIONS"
}

fn allow_browsers(mut answer: HttpResponse) -> HttpResponse {
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "content-type"),
        ("access-control-max-age", "86400"),
    ] {
        answer.headers_mut().insert(name, value.parse().expect("the constant is a header value"));
    }
    answer
}

/// The dispatch as a transport for alloy's client.
#[derive(Debug, Clone)]
pub(crate) struct InProcess(Methods);

impl InProcess {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self(methods(ledger))
    }
}

impl tower::Service<RequestPacket> for InProcess {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let methods = self.0.clone();
        Box::pin(async move {
            match packet {
                RequestPacket::Single(request) => Ok(ResponsePacket::Single(dispatch(&methods, &request).await?)),
                RequestPacket::Batch(requests) => {
                    let mut responses = Vec::with_capacity(requests.len());
                    for request in &requests {
                        responses.push(dispatch(&methods, request).await?);
                    }
                    Ok(ResponsePacket::Batch(responses))
                }
            }
        })
    }
}

async fn dispatch(methods: &Methods, request: &SerializedRequest) -> Result<Response, TransportError> {
    let sent = methods.raw_json_request(request.serialized().get(), 1).await;
    let (response, _) = sent.map_err(TransportErrorKind::custom)?;
    serde_json::from_str(response.get()).map_err(|e| TransportError::deser_err(e, response.get()))
}

/// What every answer works with.
struct Node {
    ledger: Ledger,
    heavy: Arc<Semaphore>,
}

/// Registers methods; the names are constants, so a clash is a mistake in this file.
struct Registry(RpcModule<Node>);

impl Registry {
    /// An answer from memory, at once.
    fn quick<T, F>(&mut self, name: &'static str, answer: F)
    where
        T: Serialize + Clone + 'static,
        F: Fn(&Ledger, Params<'_>) -> Answer<T> + Send + Sync + 'static,
    {
        let registered = self.0.register_method(name, move |params, node, _| answer(&node.ledger, params));
        registered.expect("method names are distinct");
    }

    /// An answer that takes time or reads from disk, on a thread of its own, a few at a time.
    fn heavy<T, F>(&mut self, name: &'static str, answer: F)
    where
        T: Serialize + Clone + Send + 'static,
        F: Fn(&Ledger, Params<'_>) -> Answer<T> + Clone + Send + Sync + 'static,
    {
        let registered = self.0.register_async_method(name, move |params, node, _| {
            let answer = answer.clone();
            async move {
                let permit = node.heavy.clone().acquire_owned().await.map_err(internal)?;
                let work = move || {
                    let _permit = permit;
                    answer(&node.ledger, params)
                };
                tokio::task::spawn_blocking(work).await.map_err(internal)?
            }
        });
        registered.expect("method names are distinct");
    }

    /// An answer that the producer gives.
    fn command<T, F, Fut>(&mut self, name: &'static str, answer: F)
    where
        T: Serialize + Clone + Send + 'static,
        F: Fn(Ledger, Params<'static>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Answer<T>> + Send + 'static,
    {
        let registered = self.0.register_async_method(name, move |params, node, _| answer(node.ledger.clone(), params));
        registered.expect("method names are distinct");
    }
}

fn internal(error: impl std::fmt::Display) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(-32603, error.to_string(), None::<()>)
}

fn methods(ledger: Ledger) -> Methods {
    let dev = ledger.shared().dev;
    let node = Node { ledger, heavy: Arc::new(Semaphore::new(HEAVY_REQUESTS_MAX)) };
    let mut registry = Registry(RpcModule::new(node));
    register_chain(&mut registry);
    register_state(&mut registry);
    register_followers(&mut registry);
    if dev {
        register_dev(&mut registry);
    }
    registry.0.into()
}

fn register_chain(on: &mut Registry) {
    on.quick("web3_clientVersion", |_, _| Ok(concat!("payhub-ledger/", env!("CARGO_PKG_VERSION"))));
    on.quick("web3_sha3", |_, p| Ok(keccak256(p.one::<Bytes>()?)));
    on.quick("net_version", |node, _| Ok(node.deployment().chain_id.to_string()));
    on.quick("net_listening", |_, _| Ok(true));
    on.quick("net_peerCount", |_, _| Ok(U64::ZERO));
    on.quick("eth_chainId", |node, _| Ok(U64::from(node.deployment().chain_id)));
    on.quick("eth_syncing", |_, _| Ok(false));
    // Keys are the client's business; this node signs nothing.
    on.quick("eth_accounts", |_, _| Ok(Vec::<Address>::new()));
    on.quick("eth_blockNumber", |node, _| Ok(U64::from(node.shared().view().head().header.number)));
    on.quick("eth_gasPrice", |node, _| Ok(U256::from(eth::gas_price(node))));
    on.quick("eth_maxPriorityFeePerGas", |_, _| Ok(U256::from(eth::SUGGESTED_TIP)));
    on.quick("eth_blobBaseFee", |_, _| Ok(U64::ONE));
    on.quick("eth_sendRawTransaction", |node, p| Ok(node.submit(&p.one()?).map_err(RpcError::from)?));
    on.heavy("eth_feeHistory", |node, p| {
        let mut p = p.sequence();
        Ok(eth::fee_history(node, eth::count(p.next()?)?, p.next()?, p.optional_next()?)?)
    });
    on.heavy("eth_getBlockByNumber", |node, p| {
        let mut p = p.sequence();
        let (tag, full) = (p.next()?, p.optional_next()?);
        Ok(eth::block_by_tag(node, tag, eth::Detail::from(full))?)
    });
    on.heavy("eth_getBlockByHash", |node, p| {
        let mut p = p.sequence();
        let (hash, full) = (p.next()?, p.optional_next()?);
        Ok(eth::block_by_hash(node, hash, eth::Detail::from(full))?)
    });
    on.heavy("eth_getBlockTransactionCountByNumber", |node, p| {
        let block = eth::find_by_tag(node, p.one()?)?;
        Ok(block.map(|block| U64::from(block.transactions.len())))
    });
    on.heavy("eth_getBlockTransactionCountByHash", |node, p| {
        let block = eth::find_by_hash(node, p.one()?)?;
        Ok(block.map(|block| U64::from(block.transactions.len())))
    });
    on.heavy("eth_getBlockReceipts", |node, p| Ok(eth::block_receipts(node, p.one()?)?));
    on.heavy("eth_getTransactionByHash", |node, p| Ok(eth::transaction(node, p.one()?)?));
    on.heavy("eth_getTransactionByBlockNumberAndIndex", |node, p| {
        let mut p = p.sequence();
        let block = eth::find_by_tag(node, p.next()?)?;
        Ok(eth::transaction_at(block, p.next()?))
    });
    on.heavy("eth_getTransactionByBlockHashAndIndex", |node, p| {
        let mut p = p.sequence();
        let block = eth::find_by_hash(node, p.next()?)?;
        Ok(eth::transaction_at(block, p.next()?))
    });
    on.heavy("eth_getRawTransactionByHash", |node, p| Ok(eth::raw_transaction(node, p.one()?)?));
    on.heavy("eth_getTransactionReceipt", |node, p| Ok(eth::receipt(node, p.one()?)?));
    on.heavy("eth_getLogs", |node, p| Ok(eth::logs(node, &p.one()?)?));
}

fn register_state(on: &mut Registry) {
    on.quick("eth_getBalance", |node, p| {
        let mut p = p.sequence();
        let (address, at): (Address, _) = (p.next()?, p.optional_next()?);
        Ok(eth::at_head(node, at, |view| view.state.basic(&address).balance)?)
    });
    on.quick("eth_getCode", |node, p| {
        let mut p = p.sequence();
        let (address, at): (Address, _) = (p.next()?, p.optional_next()?);
        Ok(eth::at_head(node, at, |view| view.state.code(&address))?)
    });
    on.quick("eth_getStorageAt", |node, p| {
        let mut p = p.sequence();
        let (address, index, at): (Address, U256, _) = (p.next()?, p.next()?, p.optional_next()?);
        Ok(eth::at_head(node, at, |view| B256::from(view.state.slot(&address, index)))?)
    });
    on.quick("eth_getTransactionCount", |node, p| {
        let mut p = p.sequence();
        let (address, at) = (p.next()?, p.optional_next()?);
        Ok(U64::from(eth::transaction_count(node, address, at)?))
    });
    on.heavy("eth_call", |node, p| {
        let mut p = p.sequence();
        let (request, at) = (p.next()?, p.optional_next()?);
        eth::refuse_overrides(p.optional_next::<Value>()?)?;
        eth::refuse_overrides(p.optional_next::<Value>()?)?;
        Ok(eth::call(node, request, at)?)
    });
    on.heavy("eth_estimateGas", |node, p| {
        let mut p = p.sequence();
        let (request, at) = (p.next()?, p.optional_next()?);
        eth::refuse_overrides(p.optional_next::<Value>()?)?;
        Ok(U64::from(eth::estimate_gas(node, request, at)?))
    });
    on.heavy("eth_createAccessList", |node, p| {
        let mut p = p.sequence();
        let (request, at) = (p.next()?, p.optional_next()?);
        eth::refuse_overrides(p.optional_next::<Value>()?)?;
        Ok(eth::create_access_list(node, request, at)?)
    });
}

fn register_followers(on: &mut Registry) {
    let filters = Arc::new(follow::Filters::default());
    let all = filters.clone();
    on.quick("eth_newFilter", move |node, p| Ok(all.logs(node, p.one()?)?));
    let all = filters.clone();
    on.quick("eth_newBlockFilter", move |node, _| Ok(all.blocks(node)?));
    let all = filters.clone();
    on.quick("eth_newPendingTransactionFilter", move |node, _| Ok(all.arrivals(node)?));
    let all = filters.clone();
    on.quick("eth_uninstallFilter", move |_, p| Ok(all.uninstall(p.one()?)));
    let all = filters.clone();
    on.heavy("eth_getFilterChanges", move |node, p| Ok(all.changes(node, p.one()?)?));
    on.heavy("eth_getFilterLogs", move |node, p| Ok(filters.all_logs(node, p.one()?)?));
    let registered = on.0.register_subscription(
        "eth_subscribe",
        "eth_subscription",
        "eth_unsubscribe",
        |params, pending, node, _| follow::subscribe(params, pending, node),
    );
    registered.expect("method names are distinct");
}

/// Time control and the like, as anvil names them.
fn register_dev(on: &mut Registry) {
    on.command("evm_mine", |node, p| async move {
        let timestamp = mine_timestamp(p.sequence().optional_next::<Value>()?)?;
        if let Some(timestamp) = timestamp {
            ask(&node, |reply| Command::SetNextTimestamp { timestamp, reply }).await?;
        }
        ask(&node, |reply| Command::Mine { blocks: 1, interval_s: 0, reply }).await?;
        Ok("0x0")
    });
    for name in ["anvil_mine", "hardhat_mine"] {
        on.command(name, |node, p| async move {
            let (blocks, interval_s) = {
                let mut p = p.sequence();
                (p.optional_next()?.map_or(Ok(1), seconds)?, p.optional_next()?.map_or(Ok(0), seconds)?)
            };
            if blocks > MINE_BLOCKS_MAX {
                let message = format!("{blocks} blocks at once: at most {MINE_BLOCKS_MAX} can be asked for");
                return Err(RpcError::Limit(message).into());
            }
            ask(&node, |reply| Command::Mine { blocks, interval_s, reply }).await?;
            Ok(Value::Null)
        });
    }
    for name in ["evm_increaseTime", "anvil_increaseTime"] {
        on.command(name, |node, p| async move {
            let by = seconds(p.one()?)?;
            let now = ask(&node, |reply| Command::IncreaseTime { seconds: by, reply }).await?;
            let offset = i128::from(now) - i128::from(crate::clock::wall_clock().as_secs());
            Ok(i64::try_from(offset).unwrap_or(i64::MAX))
        });
    }
    for name in ["evm_setNextBlockTimestamp", "anvil_setNextBlockTimestamp"] {
        on.command(name, |node, p| async move {
            let timestamp = seconds(p.one()?)?;
            ask(&node, |reply| Command::SetNextTimestamp { timestamp, reply }).await?;
            Ok(Value::Null)
        });
    }
    for name in ["evm_snapshot", "anvil_snapshot"] {
        on.command(
            name,
            |node, _| async move { Ok(U64::from(ask(&node, |reply| Command::Snapshot { reply }).await?)) },
        );
    }
    for name in ["evm_revert", "anvil_revert"] {
        on.command(name, |node, p| async move {
            let id = seconds(p.one()?)?;
            ask(&node, |reply| Command::Revert { id, reply }).await
        });
    }
    for name in ["anvil_setBalance", "hardhat_setBalance"] {
        on.command(name, |node, p| async move {
            let (address, balance) = p.parse::<(Address, U256)>()?;
            edit(&node, address, Edit::Balance(balance)).await
        });
    }
    for name in ["anvil_setNonce", "hardhat_setNonce"] {
        on.command(name, |node, p| async move {
            let (address, nonce) = p.parse::<(Address, U256)>()?;
            edit(&node, address, Edit::Nonce(seconds(nonce)?)).await
        });
    }
    for name in ["anvil_setCode", "hardhat_setCode"] {
        on.command(name, |node, p| async move {
            let (address, code) = p.parse::<(Address, Bytes)>()?;
            edit(&node, address, Edit::Code(code)).await
        });
    }
    for name in ["anvil_setStorageAt", "hardhat_setStorageAt"] {
        on.command(name, |node, p| async move {
            let (address, index, value) = p.parse::<(Address, U256, B256)>()?;
            edit(&node, address, Edit::Slot(index, value.into())).await?;
            Ok(true)
        });
    }
}

async fn ask<T>(node: &Ledger, command: impl FnOnce(Reply<T>) -> Command) -> Answer<T> {
    let (reply, answer) = oneshot::channel();
    let gone = || RpcError::Ledger(Error::Stopped("it was shut down".to_owned()));
    node.inner.commands.send(command(reply)).map_err(|_| gone())?;
    Ok(answer.await.map_err(|_| gone())?.map_err(RpcError::from)?)
}

async fn edit(node: &Ledger, address: Address, what: Edit) -> Answer<Value> {
    ask(node, |reply| Command::Change { address, what, reply }).await?;
    Ok(Value::Null)
}

/// A number of seconds, blocks or the like; larger ones than 64 bits are mistakes.
fn seconds(number: U256) -> Answer<u64> {
    let fits = u64::try_from(number).ok().filter(|n| *n <= i64::MAX as u64);
    Ok(fits.ok_or_else(|| RpcError::Parameter(format!("{number} is too large")))?)
}

/// `evm_mine` takes nothing, a timestamp, or `{"timestamp": n}`.
fn mine_timestamp(parameter: Option<Value>) -> Answer<Option<u64>> {
    let wrong = |e: serde_json::Error| RpcError::Parameter(format!("the timestamp is not a number: {e}"));
    let value = match parameter {
        Some(Value::Object(mut options)) => options.remove("timestamp").unwrap_or(Value::Null),
        Some(value) => value,
        None => Value::Null,
    };
    let number: Option<U256> = serde_json::from_value(value).map_err(wrong)?;
    number.map(seconds).transpose()
}
