//! The connection to the hub: dial, log in, hand messages on, and again after every end.
//!
//! This task knows no rules. It owns the connection; the owner task decides what is said on it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::wire::{self, v1};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use v1::client_message::Kind as ToHub;
use v1::hub_message::Kind as FromHub;
use v1::member_client::MemberClient;

use crate::error::Error;
use crate::info::Desk;
use crate::owner::{Inbox, Input};

/// First pause between attempts to connect; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long a hub may take to begin a session: it answers a hello only when everything before it is durable.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(20);
/// How far the clocks of hub and member may differ, seconds.
const CLOCK_SKEW_S: u64 = 300;

pub(crate) type Hub = MemberClient<Channel>;

/// A client of the hub's service that connects when it is used.
pub(crate) fn hub(url: &str) -> Result<Hub, Error> {
    let bad = |why: String| Error::BadUrl { url: url.to_owned(), why };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| bad(e.to_string()))?;
    if endpoint.uri().scheme().is_none() {
        return Err(bad("it does not begin with http://".to_owned()));
    }
    let endpoint = endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    Ok(MemberClient::new(endpoint.connect_lazy()).max_decoding_message_size(wire::MESSAGE_BYTES_MAX))
}

/// Keeps a session alive as long as there is a channel and the owner lives.
pub(crate) async fn run(desk: Arc<Desk>, inbox: Inbox, mut has_channel: watch::Receiver<bool>) {
    if has_channel.wait_for(|has| *has).await.is_err() {
        return;
    }
    let mut pause = PAUSE_MIN;
    loop {
        let mut began = false;
        let end = one(&desk, &inbox, &mut began).await;
        let why = match end {
            Ok(()) => "the hub ended the session".to_owned(),
            Err(error) => error.to_string(),
        };
        if inbox.send(Input::Disconnected { why }).await.is_err() {
            return;
        }
        pause = if began { PAUSE_MIN } else { pause.saturating_mul(2).min(PAUSE_MAX) };
        tokio::time::sleep(pause).await;
    }
}

/// One session, from the challenge to its end.
async fn one(desk: &Desk, inbox: &Inbox, began: &mut bool) -> Result<(), Error> {
    let url = desk.url.as_str();
    let (mut hub, host) = (desk.hub.clone(), desk.info().await?.host.clone());
    // Unbounded, because everything that goes in is bounded by the member: at most `UNANSWERED_MAX` frames of an
    // account wait for an answer, and acknowledgements and windows are coalesced.
    let (out, outgoing) = mpsc::unbounded_channel();
    let silent = || Error::Unreachable { url: url.to_owned(), why: "it did not begin a session in time".to_owned() };
    let login = async {
        let answer = hub.session(UnboundedReceiverStream::new(outgoing)).await.map_err(|e| Error::hub(&e, url))?;
        let mut messages = answer.into_inner();
        let challenge = match next(&mut messages, url).await? {
            Some(FromHub::Challenge(challenge)) => challenge,
            other => return Err(unexpected("a challenge", other)),
        };
        let nonce = wire::read_b256("challenge.nonce", &challenge.nonce)?;
        if challenge.expires.saturating_add(CLOCK_SKEW_S) < now_s() {
            return Err(Error::Unreachable { url: url.to_owned(), why: "its challenge is out of date".to_owned() });
        }
        let (reply, hello) = oneshot::channel();
        let ask = Input::Challenge { host, nonce, expires: challenge.expires, reply };
        inbox.send(ask).await.map_err(|_| Error::Stopped)?;
        let hello = hello.await.map_err(|_| Error::Stopped)?;
        out.send(message(ToHub::Hello(hello))).map_err(|_| silent())?;
        match next(&mut messages, url).await? {
            Some(FromHub::Welcome(welcome)) => Ok((messages, welcome)),
            other => Err(unexpected("a welcome", other)),
        }
    };
    let (mut messages, welcome) = tokio::time::timeout(LOGIN_TIMEOUT, login).await.map_err(|_| silent())??;
    *began = true;
    let (alive, mut hung_up) = oneshot::channel();
    inbox.send(Input::Welcome { welcome, out, alive }).await.map_err(|_| Error::Stopped)?;
    loop {
        let message = tokio::select! {
            message = next(&mut messages, url) => message?,
            _ = &mut hung_up => return Ok(()),
        };
        match message {
            Some(message) => inbox.send(Input::Message(Box::new(message))).await.map_err(|_| Error::Stopped)?,
            None => return Ok(()),
        }
    }
}

/// A message to the hub.
pub(crate) fn message(kind: ToHub) -> v1::ClientMessage {
    v1::ClientMessage { kind: Some(kind) }
}

async fn next(messages: &mut tonic::Streaming<v1::HubMessage>, url: &str) -> Result<Option<FromHub>, Error> {
    loop {
        match messages.message().await.map_err(|e| Error::hub(&e, url))? {
            // A kind that this version does not know.
            Some(v1::HubMessage { kind: None }) => {}
            Some(v1::HubMessage { kind }) => return Ok(kind),
            None => return Ok(None),
        }
    }
}

fn unexpected(what: &str, got: Option<FromHub>) -> Error {
    let message = match got {
        Some(FromHub::Farewell(farewell)) => {
            return Error::Hub { reason: farewell.reason, message: farewell.message, retryable: true };
        }
        Some(_) => format!("the hub said something else where {what} was due"),
        None => format!("the hub hung up where {what} was due"),
    };
    Error::Hub { reason: "PROTOCOL".to_owned(), message, retryable: true }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
