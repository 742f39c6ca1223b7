//! What sessions and services share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::B256;
use proto::books::{Books, Policy, SessionId};
use proto::{ChannelId, Domain};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::limits::GREETINGS_MAX;
use crate::rows::Rows;
use crate::sequencer::Command;

/// The hub as its sessions and services see it.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) domain: Domain,
    pub(crate) policy: Policy,
    pub(crate) host: String,
    pub(crate) genesis_hash: B256,
    pub(crate) confirmations: u32,
    pub(crate) rows: Arc<Rows>,
    pub(crate) queue: mpsc::Sender<Command>,
    pub(crate) durable: watch::Receiver<u64>,
    /// Cancelled when the hub ends, for whatever reason.
    pub(crate) ended: CancellationToken,
    pub(crate) sessions: Arc<Semaphore>,
    /// Logins under way: strangers who say nothing take these, never the places of members.
    pub(crate) greetings: Arc<Semaphore>,
    pub(crate) sessions_max: usize,
    next_session: AtomicU64,
    draining: AtomicBool,
    tokens: Mutex<HashMap<B256, ChannelId>>,
    alarms: Mutex<Vec<String>>,
}

/// A capability that ends with its session.
#[derive(Debug)]
pub(crate) struct Token {
    pub(crate) secret: B256,
    core: Arc<Core>,
}

/// The hub ends and answers nothing more.
#[derive(Debug, thiserror::Error)]
#[error("the hub is shutting down; connect again")]
pub(crate) struct Ended;

/// Alarms that are kept for the operator: the newest ones.
const ALARMS_MAX: usize = 32;

impl Core {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn new(
        domain: Domain,
        policy: Policy,
        host: String,
        genesis_hash: B256,
        confirmations: u32,
        rows: Arc<Rows>,
        queue: mpsc::Sender<Command>,
        durable: watch::Receiver<u64>,
        ended: CancellationToken,
        sessions_max: usize,
    ) -> Self {
        Core {
            domain,
            policy,
            host,
            genesis_hash,
            confirmations,
            rows,
            queue,
            durable,
            ended,
            sessions: Arc::new(Semaphore::new(sessions_max)),
            greetings: Arc::new(Semaphore::new(GREETINGS_MAX)),
            sessions_max,
            next_session: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            tokens: Mutex::default(),
            alarms: Mutex::default(),
        }
    }

    pub(crate) fn next_session(&self) -> SessionId {
        SessionId(self.next_session.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks the sequencer; waits while its queue is full.
    pub(crate) async fn send(&self, command: Command) -> Result<(), Ended> {
        self.queue.send(command).await.map_err(|_| Ended)
    }

    /// Reads the books at the sequencer's place in time. What is told to others after it must wait for
    /// [`Core::barrier`].
    pub(crate) async fn query<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Books) -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let (done, answer) = oneshot::channel();
        let query = move |books: &mut Books| drop(done.send(read(books)));
        self.send(Command::Query(Box::new(query))).await?;
        self.answered(answer).await
    }

    /// Waits until everything that was accepted before is durable.
    pub(crate) async fn barrier(&self) -> Result<(), Ended> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Barrier(done)).await?;
        self.answered(answer).await
    }

    /// Waits for the sequencer's answer, or for the hub's end. A command that is sent while the sequencer ends can stay
    /// in the queue, which its senders keep alive: then nobody ever answers it, and nobody drops it either.
    pub(crate) async fn answered<T>(&self, answer: oneshot::Receiver<T>) -> Result<T, Ended> {
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| Ended),
            () = self.ended.cancelled() => Err(Ended),
        }
    }

    /// Makes a capability for a channel.
    pub(crate) fn token(self: &Arc<Self>, channel: ChannelId) -> Token {
        let secret = random();
        self.tokens().insert(secret, channel);
        Token { secret, core: self.clone() }
    }

    /// The channel that a capability is for.
    pub(crate) fn channel_of(&self, token: &[u8]) -> Option<ChannelId> {
        self.tokens().get(&B256::try_from(token).ok()?).copied()
    }

    /// Keeps an alarm for the operator and writes it to the log.
    pub(crate) fn alarm(&self, text: String) {
        tracing::error!(alarm = text);
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        if alarms.last() != Some(&text) {
            alarms.push(text);
        }
        if alarms.len() > ALARMS_MAX {
            alarms.remove(0);
        }
    }

    pub(crate) fn alarms(&self) -> Vec<String> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn sessions_open(&self) -> u64 {
        self.sessions_max.saturating_sub(self.sessions.available_permits()) as u64
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<B256, ChannelId>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.core.tokens().remove(&self.secret);
    }
}

/// 32 bytes that nobody can guess.
pub(crate) fn random() -> B256 {
    let mut bytes = B256::ZERO;
    getrandom::fill(bytes.as_mut_slice()).expect("the operating system gives randomness");
    bytes
}

/// The wall clock: for challenges and offers, which the hub itself or a patient reader checks; never for money.
pub(crate) fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}
