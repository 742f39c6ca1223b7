//! What one connection may cost. The server library limits sizes and counts, but takes requests as fast as they come
//! and keeps answers for as long as the peer does not read them. So each connection has a [`Flow`]:
//!
//! - few of its calls run at a time, none while its peer takes no answers;
//! - while many wait, or the peer takes nothing, nothing more is read from it: TCP makes the peer wait;
//! - a peer that takes nothing for [`WRITE_STALL_MAX`], or says nothing for [`IDLE_MAX`], is disconnected.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use jsonrpsee::core::middleware::{Batch, Notification, RpcServiceT};
use jsonrpsee::core::server::MethodResponse;
use jsonrpsee::types::error::METHOD_NOT_FOUND_CODE;
use jsonrpsee::types::{ErrorObject, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Calls of one connection that run at a time.
const CALLS_MAX: usize = 16;

/// Calls of one connection that wait or run before nothing more is read from it.
const CALLS_WAITING_MAX: usize = 128;

/// A peer that takes not one byte for this long is gone or hostile.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);

/// A connection on which nothing moves for this long is closed. WebSocket peers answer pings more often than that.
pub const IDLE_MAX: Duration = Duration::from_secs(120);

/// How much goes on on a connection.
#[derive(Debug)]
pub struct Flow {
    calls: Semaphore,
    state: Mutex<State>,
    /// Told when the peer takes bytes again.
    moving: Notify,
    /// Whether answers may follow that nobody asked for at that moment.
    websocket: AtomicBool,
    /// Given back when the last part of the connection ends, that of a WebSocket included.
    _place: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct State {
    calls: usize,
    stalled: bool,
    dead: bool,
    reader: Option<Waker>,
}

impl Flow {
    /// Of a new connection, with its place among the others.
    pub fn new(place: OwnedSemaphorePermit) -> Arc<Self> {
        Arc::new(Self {
            calls: Semaphore::new(CALLS_MAX),
            state: Mutex::new(State::default()),
            moving: Notify::new(),
            websocket: AtomicBool::new(false),
            _place: place,
        })
    }

    /// From now on the connection is a WebSocket.
    pub fn upgrade(&self) {
        self.websocket.store(true, Ordering::Relaxed);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a call when it is its turn.
    async fn turn<T>(self: Arc<Self>, call: impl Future<Output = T>) -> T {
        self.state().calls += 1;
        let _counted = Counted(&self);
        let _permit = self.calls.acquire().await;
        loop {
            let moving = self.moving.notified();
            if !self.state().stalled {
                break;
            }
            moving.await;
        }
        call.await
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        if !state.stalled {
            self.moving.notify_waiters();
        }
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

struct Counted<'a>(&'a Flow);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(|state| state.calls -= 1);
    }
}

/// The layer that makes calls wait for their turn.
#[derive(Debug, Clone)]
pub struct FlowLayer(pub Arc<Flow>);

impl<S> tower::Layer<S> for FlowLayer {
    type Service = FlowService<S>;

    fn layer(&self, inner: S) -> FlowService<S> {
        FlowService { inner, flow: self.0.clone() }
    }
}

/// See [`FlowLayer`].
#[derive(Debug, Clone)]
pub struct FlowService<S> {
    inner: S,
    flow: Arc<Flow>,
}

impl<S> RpcServiceT for FlowService<S>
where
    S: RpcServiceT<
            MethodResponse = MethodResponse,
            BatchResponse = MethodResponse,
            NotificationResponse = MethodResponse,
        > + Clone
        + Send
        + Sync
        + 'static,
{
    type MethodResponse = MethodResponse;
    type NotificationResponse = MethodResponse;
    type BatchResponse = MethodResponse;

    fn call<'a>(&self, request: Request<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (inner, flow) = (self.inner.clone(), self.flow.clone());
        async move {
            if request.method_name() == "eth_subscribe" && !flow.websocket.load(Ordering::Relaxed) {
                let message = "subscriptions need a WebSocket (ws://...); over HTTP use eth_newFilter";
                let refused = ErrorObject::owned(METHOD_NOT_FOUND_CODE, message, None::<()>);
                return MethodResponse::error(request.id, refused);
            }
            flow.turn(inner.call(request)).await
        }
    }

    fn batch<'a>(&self, requests: Batch<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (inner, flow) = (self.inner.clone(), self.flow.clone());
        async move { flow.turn(inner.batch(requests)).await }
    }

    fn notification<'a>(&self, n: Notification<'a>) -> impl Future<Output = MethodResponse> + Send + 'a {
        let (inner, flow) = (self.inner.clone(), self.flow.clone());
        async move { flow.turn(inner.notification(n)).await }
    }
}

/// A socket that obeys its [`Flow`].
#[derive(Debug)]
pub struct Guarded {
    socket: TcpStream,
    flow: Arc<Flow>,
    stall: Option<Pin<Box<Sleep>>>,
    idle: Pin<Box<Sleep>>,
}

impl Guarded {
    /// Watches over a socket.
    pub fn new(socket: TcpStream, flow: Arc<Flow>) -> Self {
        Self { socket, flow, stall: None, idle: Box::pin(sleep(IDLE_MAX)) }
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
            if self.stall.take().is_some() {
                self.flow.set(|state| state.stalled = false);
            }
            return result;
        }
        if self.stall.is_none() {
            self.flow.state().stalled = true;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL_MAX)));
        if stall.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.flow.set(|state| (state.dead, state.stalled) = (true, false));
        Poll::Ready(Err(gone()))
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer takes nothing, or says nothing")
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        {
            let mut state = self.flow.state();
            if state.dead {
                return Poll::Ready(Err(gone()));
            }
            if state.stalled || state.calls >= CALLS_WAITING_MAX {
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let result = Pin::new(&mut self.socket).poll_read(cx, buf);
        if result.is_ready() {
            self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
        } else if self.idle.as_mut().poll(cx).is_ready() {
            if self.flow.state().calls == 0 {
                return Poll::Ready(Err(gone()));
            }
            // It is the peer who waits.
            self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
            let _ = self.idle.as_mut().poll(cx);
        }
        result
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.flow.state().dead {
            return Poll::Ready(Err(gone()));
        }
        let result = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.flow.state().dead {
            return Poll::Ready(Err(gone()));
        }
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (Guarded, TcpStream, Arc<Flow>) {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await.expect("loopback");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        let (socket, _) = listener.accept().await.expect("somebody connected");
        let place = Arc::new(Semaphore::new(1)).acquire_owned().await.expect("open");
        let flow = Flow::new(place);
        (Guarded::new(socket, flow.clone()), peer, flow)
    }

    /// What a future answers at once, if it does.
    async fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            value = future => Some(value),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn from_a_peer_that_takes_no_answers_nothing_is_read_and_nothing_runs() {
        let (mut socket, mut peer, flow) = pair().await;
        peer.write_all(b"questions").await.expect("sent");
        socket.socket.readable().await.expect("they are there");
        // Until the buffers on both sides are full, and the last write with them.
        while now(socket.write_all(&[7; 1 << 20])).await.is_some() {}
        assert!(now(socket.write(&[7])).await.is_none());
        let mut asked = [0; 9];
        assert!(now(socket.read(&mut asked)).await.is_none(), "nothing is read");
        assert!(now(flow.clone().turn(async {})).await.is_none(), "nothing runs");

        let reader = tokio::spawn(async move {
            let mut taken = vec![0; 1 << 20];
            while peer.read(&mut taken).await.is_ok_and(|bytes| bytes > 0) {}
        });
        socket.write_all(&[7]).await.expect("the peer takes it");
        flow.turn(async {}).await;
        socket.read_exact(&mut asked).await.expect("the connection is open");
        assert_eq!(&asked, b"questions");
        drop(socket);
        reader.await.expect("it ends with the connection");
    }

    #[tokio::test]
    async fn few_calls_run_at_a_time_and_while_many_wait_nothing_is_read() {
        let (mut socket, mut peer, flow) = pair().await;
        peer.write_all(b"more").await.expect("sent");
        socket.socket.readable().await.expect("it is there");
        let (started, mut running) = tokio::sync::mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let calls = (0..CALLS_WAITING_MAX).map(|_| {
            let (flow, started, gate) = (flow.clone(), started.clone(), gate.clone());
            tokio::spawn(flow.turn(async move {
                started.send(()).expect("the test listens");
                let _permit = gate.acquire().await;
            }))
        });
        let calls = calls.collect::<Vec<_>>();
        for _ in 0..CALLS_MAX {
            running.recv().await.expect("calls start");
        }
        while flow.state().calls < CALLS_WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert!(running.try_recv().is_err(), "no more than {CALLS_MAX} run");
        let mut more = [0; 4];
        assert!(now(socket.read(&mut more)).await.is_none(), "nothing is read");

        gate.add_permits(CALLS_WAITING_MAX);
        for call in calls {
            call.await.expect("every call gets its turn");
        }
        socket.read_exact(&mut more).await.expect("the connection is open");
        assert_eq!((&more, flow.state().calls), (b"more", 0));
    }
}
