//! A member's wallet: one process owns a member's store, everybody else talks to it over a local socket.
//!
//! The socket carries lines of JSON: one [`Request`] in, then [`Reply`] lines out, of which the last is `Done` or
//! `Failed`. The socket lies in a folder that only its owner can enter.

use std::future::Future;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::failure::{Code, Failure};

/// Longest request that a wallet reads: the longest has a note and some numbers.
const REQUEST_BYTES_MAX: u64 = 1 << 16;
/// Longest reply that is read: a million rows of history, from one's own wallet.
const REPLY_BYTES_MAX: u64 = 1 << 30;

/// What a wallet can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Open the channel with a deposit.
    Open { amount: String },
    /// Add to the deposit.
    Fund { amount: String },
    /// Take out without closing.
    Withdraw { amount: String },
    /// Pay.
    Pay { to: String, amount: String, count: u64, frame: u64, rate: Option<u64>, note: String },
    /// Pay by the tick.
    Stream { to: String, amount: String, ticks: u64, rate: Option<u64> },
    /// Amounts.
    Balance,
    /// Accounts with their totals.
    Channels,
    /// Payments, the newest first.
    History { limit: usize },
    /// What happens.
    Events { follow: bool },
    /// Settle everything that can be withdrawn.
    Settle { asset: Option<String> },
    /// Close and pay out.
    Close { asset: Option<String>, unilateral: bool },
    /// What stands, in words; the hub's address tells whose the ledger node is.
    Explain { hub: Option<String> },
    /// The way out without hub and store.
    ExitKit,
}

/// What comes back.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Reply {
    /// So many of so many.
    Progress { done: u64, of: u64 },
    /// A line of a stream.
    Item { value: Value },
    /// A sentence on the way.
    Note { text: String },
    /// The result.
    Done { value: Value },
    /// No result.
    Failed { code: u8, reason: String, what: String, fix: String },
}

/// Where a running request reports to.
#[derive(Clone, Debug)]
pub struct Sink(mpsc::Sender<Reply>);

impl Sink {
    /// A sink and what comes out of it.
    pub fn new() -> (Self, mpsc::Receiver<Reply>) {
        let (sender, receiver) = mpsc::channel(64);
        (Sink(sender), receiver)
    }

    /// Reports progress; skipped where the reader is slow.
    pub fn progress(&self, done: u64, of: u64) {
        let _ = self.0.try_send(Reply::Progress { done, of });
    }

    /// Reports a sentence.
    pub async fn note(&self, text: impl Into<String>) {
        let _ = self.0.send(Reply::Note { text: text.into() }).await;
    }

    /// Reports a line of a stream; an error where nobody listens any more.
    pub async fn item(&self, value: Value) -> Result<(), Failure> {
        self.0.send(Reply::Item { value }).await.map_err(|_| Failure::other("nobody listens any more"))
    }
}

impl Failure {
    fn to_reply(&self) -> Reply {
        let Failure { code, what, fix, reason } = self;
        Reply::Failed { code: *code as u8, reason: reason.clone(), what: what.clone(), fix: fix.clone() }
    }
}

/// The failure that a reply carries.
pub fn failure_of(code: u8, reason: String, what: String, fix: String) -> Failure {
    let code = match code {
        2 => Code::Usage,
        3 => Code::Connect,
        4 => Code::Refused,
        5 => Code::NotFound,
        6 => Code::Unknown,
        _ => Code::Other,
    };
    Failure { code, what, fix, reason }
}

/// Serves a wallet on its socket until dropped. `handle` answers one request.
pub async fn serve<H, F>(socket: &Path, handle: H) -> Result<(), Failure>
where
    H: Fn(Request, Sink) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    // A socket that nobody answers is left over from a process that was killed.
    if UnixStream::connect(socket).await.is_ok() {
        let what = "another process runs this member's wallet".to_owned();
        return Err(Failure::usage(what, "use that one, or stop it first"));
    }
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let handle = handle.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, handle).await {
                tracing::debug!(%error, "a wallet conversation ended early");
            }
        });
    }
}

async fn converse<H, F>(stream: UnixStream, handle: H) -> std::io::Result<()>
where
    H: Fn(Request, Sink) -> F,
    F: Future<Output = Result<Value, Failure>> + Send + 'static,
{
    let (read, mut write) = stream.into_split();
    let Some(line) = read_line(&mut BufReader::new(read), REQUEST_BYTES_MAX).await? else { return Ok(()) };
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(e) => {
            let failure = Failure::usage(format!("not a request: {e}"), "use the payhub binary of the same version");
            return send(&mut write, &failure.to_reply()).await;
        }
    };
    let (sink, mut replies) = Sink::new();
    let running = tokio::spawn(handle(request, sink));
    let abort = running.abort_handle();
    while let Some(reply) = replies.recv().await {
        // Who hangs up stops a stream, not a payment: only following is cut off.
        if let Err(error) = send(&mut write, &reply).await {
            if matches!(reply, Reply::Item { .. }) {
                abort.abort();
            }
            return Err(error);
        }
    }
    let last = match running.await {
        Ok(Ok(value)) => Reply::Done { value },
        Ok(Err(failure)) => failure.to_reply(),
        Err(e) => Failure::other(format!("the wallet failed: {e}")).to_reply(),
    };
    send(&mut write, &last).await
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}

async fn read_line(read: &mut (impl AsyncBufReadExt + Unpin), limit: u64) -> std::io::Result<Option<String>> {
    use tokio::io::AsyncReadExt;
    let mut line = String::new();
    let count = read.take(limit).read_line(&mut line).await?;
    Ok((count > 0).then_some(line))
}

/// Asks the wallet behind a socket; `None` where no wallet runs there.
pub async fn ask(socket: &Path, request: &Request, mut hear: impl FnMut(Reply)) -> Option<Result<Value, Failure>> {
    let stream = UnixStream::connect(socket).await.ok()?;
    Some(ask_over(stream, request, &mut hear).await)
}

async fn ask_over(stream: UnixStream, request: &Request, hear: &mut impl FnMut(Reply)) -> Result<Value, Failure> {
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request).map_err(Failure::other)?;
    line.push(b'\n');
    write.write_all(&line).await?;
    let mut read = BufReader::new(read);
    while let Some(line) = read_line(&mut read, REPLY_BYTES_MAX).await? {
        match serde_json::from_str(&line).map_err(Failure::other)? {
            Reply::Done { value } => return Ok(value),
            Reply::Failed { code, reason, what, fix } => return Err(failure_of(code, reason, what, fix)),
            reply @ (Reply::Progress { .. } | Reply::Item { .. } | Reply::Note { .. }) => hear(reply),
        }
    }
    let what = "the wallet went away before it answered";
    Err(Failure::new(Code::Unknown, "OUTCOME_UNKNOWN", what, "start it again and look at `payhub history`"))
}
