//! The thread-side end of a session: where answers and news for a member go.
//!
//! Threads never wait for a member. Answers to frames always fit, because a session has at most
//! [`IN_FLIGHT_MAX`](crate::limits::IN_FLIGHT_MAX) frames under way and a place is kept for each. News (credits, deliveries, account updates) is
//! dropped when the queue fills up, and the session is told that it is behind: it then reads the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proto::account::Totals;
use proto::books::{Delivery, SessionId};
use proto::stream::LaneVoucher;
use proto::typed::Settlement;
use proto::wire::v1;
use proto::{AccountId, Asset, ChannelId};
use tokio::sync::mpsc;

use crate::flushed::Flushed;
use crate::limits::{EVENTS_MAX, IN_FLIGHT_MAX};

/// A session as the threads see it.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) id: SessionId,
    pub(crate) channel: ChannelId,
    events: mpsc::Sender<Event>,
    behind: AtomicBool,
}

/// What a session is to tell its member.
#[derive(Debug)]
pub(crate) enum Event {
    /// The hello is answered.
    Welcome(Box<Welcomed>),
    /// Frames were accepted in a flush, and so many messages of ticks.
    Accepted { flushed: Arc<Flushed>, asset: Asset, tags: Vec<u64>, ticks: usize },
    /// A frame was accepted before.
    Again { flush: u64, asset: Asset, tag: u64 },
    /// A frame, an opening or a fold was refused.
    Refused(Box<v1::Refused>),
    /// A stream was opened, or a lane folded.
    Opened { asset: Asset, tag: u64 },
    /// Ticks were refused that came in so many messages.
    TicksRefused { refused: Box<v1::TickRefused>, ticks: usize },
    /// Ticks that came in so many messages were accepted before.
    TicksKnown { ticks: usize },
    /// An account of the member was credited.
    Credited { flushed: Arc<Flushed>, account: AccountId },
    /// A payee acknowledged what the member paid.
    Delivered(Box<Delivery>),
    /// Anything that needs no further work.
    Message(Box<v1::HubMessage>),
    /// A newer session has taken over, or the hub ends.
    Farewell { reason: &'static str, message: String },
}

/// A session's first answer, as of the hello.
#[derive(Debug)]
pub(crate) struct Welcomed {
    pub(crate) name: String,
    pub(crate) accounts: Vec<WelcomedAccount>,
}

/// One account of it.
#[derive(Debug)]
pub(crate) struct WelcomedAccount {
    pub(crate) account: AccountId,
    pub(crate) totals: Totals,
    pub(crate) lanes: Vec<LaneVoucher>,
    pub(crate) kept: Vec<Settlement>,
}

impl Link {
    pub(crate) fn new(id: SessionId, channel: ChannelId) -> (Arc<Link>, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        (Arc::new(Link { id, channel, events, behind: AtomicBool::new(false) }), receiver)
    }

    /// Sends an answer to a frame, the welcome or the farewell.
    pub(crate) fn answer(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
            tracing::error!(session = self.id.0, channel = %self.channel, "an answer found no place in its queue");
        }
    }

    /// Sends news, unless the member is too slow for it.
    pub(crate) fn tell(&self, event: Event) {
        let room = self.events.capacity() > IN_FLIGHT_MAX + 2;
        if !room || matches!(self.events.try_send(event), Err(mpsc::error::TrySendError::Full(_))) {
            self.behind.store(true, Ordering::Release);
        }
    }

    /// Whether news was dropped since the last call.
    pub(crate) fn take_behind(&self) -> bool {
        self.behind.swap(false, Ordering::AcqRel)
    }
}
