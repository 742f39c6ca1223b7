//! The listeners: who may connect, for how long without a word, and how many at a time.
//!
//! A library's default server keeps a silent connection for ever. Here a connection counts only after its first byte,
//! which must come within a deadline; after that HTTP/2 pings ask for a sign of life.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use proto::wire::v1::member_server::MemberServer;
use proto::wire::v1::operator_server::OperatorServer;
use proto::wire::{DESCRIPTOR_SET, MESSAGE_BYTES_MAX};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router, TcpConnectInfo};

use crate::limits::{HANDSHAKE_DEADLINE, INBOUND_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAMS_MAX};
use crate::rpc::{MemberService, OperatorService};

/// Connections that spoke and wait to be taken by the server.
const ACCEPTED_MAX: usize = 64;
/// Streams that a peer may reset before they are accepted: beyond it the peer is attacking.
const PENDING_RESETS_MAX: usize = 64;
/// Header bytes of a call: ours has none worth mentioning.
const HEADERS_MAX: u32 = 8 << 10;

/// How many connections a listener keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caps {
    pub(crate) connections: usize,
    pub(crate) per_ip: usize,
}

/// The members' listener: service, health and reflection.
pub(crate) async fn serve_members(service: MemberService, listener: TcpListener, caps: Caps, stop: CancellationToken) {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<MemberServer<MemberService>>().await;
    let member = MemberServer::new(service)
        .max_decoding_message_size(INBOUND_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let router = server().add_service(member).add_service(health_service).add_service(reflection());
    serve(router, listener, caps, stop).await;
}

/// The operator's listener.
pub(crate) async fn serve_operator(
    service: OperatorService,
    listener: TcpListener,
    caps: Caps,
    stop: CancellationToken,
) {
    let router = server().add_service(OperatorServer::new(service)).add_service(reflection());
    serve(router, listener, caps, stop).await;
}

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_header_list_size(HEADERS_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .tcp_nodelay(true)
}

fn reflection()
-> tonic_reflection::server::v1::ServerReflectionServer<impl tonic_reflection::server::v1::ServerReflection> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptor set was written by our own build")
}

async fn serve(router: Router, listener: TcpListener, caps: Caps, stop: CancellationToken) {
    let (accepted, connections) = mpsc::channel(ACCEPTED_MAX);
    let accepting = tokio::spawn(accept(listener, caps, accepted, stop.clone()));
    let served = router.serve_with_incoming_shutdown(ReceiverStream::new(connections), stop.cancelled_owned()).await;
    if let Err(error) = served {
        tracing::warn!(%error, "a listener ended");
    }
    accepting.abort();
}

async fn accept(
    listener: TcpListener,
    caps: Caps,
    accepted: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
) {
    let open = Arc::new(Connections::default());
    loop {
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = stop.cancelled() => return,
        };
        let (stream, peer) = match connection {
            Ok(connection) => connection,
            Err(error) => {
                // Out of descriptors, usually: connections that end make room.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = open.enter(peer.ip(), caps) else {
            tracing::debug!(%peer, "a connection was refused: too many");
            continue;
        };
        let accepted = accepted.clone();
        tokio::spawn(async move {
            let mut first = [0];
            let spoke = tokio::time::timeout(HANDSHAKE_DEADLINE, stream.peek(&mut first)).await;
            if matches!(spoke, Ok(Ok(1))) {
                // Requests are small and latency counts.
                let _ = stream.set_nodelay(true);
                let _ = accepted.send(Ok(Connection { stream, _place: place })).await;
            }
        });
    }
}

#[derive(Debug, Default)]
struct Connections(Mutex<(usize, HashMap<IpAddr, usize>)>);

/// A counted connection; leaving is dropping it.
#[derive(Debug)]
struct Place {
    all: Arc<Connections>,
    ip: IpAddr,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    _place: Place,
}

impl Connections {
    fn enter(self: &Arc<Self>, ip: IpAddr, caps: Caps) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_ip) = &mut *open;
        let mine = by_ip.get(&ip).copied().unwrap_or_default();
        if *all >= caps.connections || mine >= caps.per_ip {
            return None;
        }
        *all += 1;
        by_ip.insert(ip, mine + 1);
        Some(Place { all: self.clone(), ip })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_ip) = &mut *open;
        *all -= 1;
        if let Some(mine) = by_ip.get_mut(&self.ip) {
            *mine -= 1;
            if *mine == 0 {
                by_ip.remove(&self.ip);
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        let address = |address: io::Result<SocketAddr>| address.ok();
        TcpConnectInfo { local_addr: address(self.stream.local_addr()), remote_addr: address(self.stream.peer_addr()) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
