//! Streams: a price a tick, and a meter that a frame loop can add to without ever waiting.
//!
//! A tick costs a hash, not a signature: the client signs one voucher for up to 2,048 ticks and reveals words of a hash
//! chain as the meter counts. Ticks that are added between two rounds are paid together.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use proto::member::PayError;
use proto::typed::TickVoucher;
use proto::{Amount, Asset};

use crate::Client;
use crate::error::Error;
use crate::owner::{Input, StreamOrder};
use crate::pay::Payee;

/// Time between rounds by default: a payee sees his income move, and a frame loop of any rate shares the rounds.
const EVERY: Duration = Duration::from_millis(50);

/// A stream that is opened when it is awaited; gives its [`Meter`].
#[must_use = "nothing is opened until it is awaited"]
pub struct NewStream<'a> {
    client: &'a Client,
    payee: Payee,
    asset: Asset,
    rate: Amount,
    fee: Option<Amount>,
    cap: u64,
    ticks: u32,
    every: Duration,
    lane: Option<u32>,
}

/// Counts ticks, which the client pays in the background. Clones count together; when the last one is gone, what was
/// added is still paid and the stream is folded.
#[derive(Clone)]
pub struct Meter {
    shared: Arc<Shared>,
}

/// What a stream came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Ticks added.
    pub added: u64,
    /// Ticks that the hub owes the payee: receipts prove them.
    pub paid: u64,
}

struct Shared {
    client: Client,
    job: u64,
    counters: Arc<Counters>,
}

/// What meter and client count.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Ticks added.
    pub added: AtomicU64,
    /// Ticks paid.
    pub paid: AtomicU64,
    /// Most ticks that may be added.
    pub cap: u64,
    /// Why nothing more is paid.
    pub stopped: Mutex<Option<String>>,
}

/// Why ticks were not added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// They would pass the cap.
    #[error("{asked} more ticks would pass the meter's cap: {added} of {cap} are used")]
    Cap {
        /// What was to be added.
        asked: u64,
        /// What was added before.
        added: u64,
        /// The cap.
        cap: u64,
    },
    /// The stream does not go on.
    #[error("the stream has stopped: {why}; finish the meter and open another")]
    Stopped {
        /// What happened.
        why: String,
    },
}

impl Client {
    /// A stream of ticks to a payee: a channel, a name, or the hub. Set a `rate` and await it.
    pub fn stream(&self, payee: impl Into<Payee>, asset: Asset) -> NewStream<'_> {
        NewStream {
            client: self,
            payee: payee.into(),
            asset,
            rate: Amount::new(1),
            fee: None,
            cap: u64::MAX,
            ticks: TickVoucher::TICKS_MAX,
            every: EVERY,
            lane: None,
        }
    }
}

impl NewStream<'_> {
    /// What the payee gets a tick, base units; 1 if not set.
    pub fn rate(mut self, amount: Amount) -> Self {
        self.rate = amount;
        self
    }

    /// The fee of a tick, instead of the hub's price.
    pub fn fee(mut self, fee: Amount) -> Self {
        self.fee = Some(fee);
        self
    }

    /// Most ticks that will ever be paid, whatever the meter is asked for. The signer holds to it.
    pub fn cap(mut self, ticks: u64) -> Self {
        self.cap = ticks;
        self
    }

    /// Ticks of one signature, 1 to 2,048: a longer chain costs the client memory and a claim on the ledger gas.
    pub fn ticks(mut self, ticks: u32) -> Self {
        self.ticks = ticks;
        self
    }

    /// Time between rounds.
    pub fn every(mut self, interval: Duration) -> Self {
        self.every = interval;
        self
    }

    /// The lane, instead of one that is free.
    pub fn lane(mut self, lane: u32) -> Self {
        self.lane = Some(lane);
        self
    }

    async fn run(self) -> Result<Meter, Error> {
        let info = self.client.info().await?;
        let served = info.asset(self.asset).ok_or(Error::UnknownAsset { asset: self.asset })?;
        let overflow = || Error::Pay(PayError::Frame(proto::frame::FrameError::Overflow));
        let fee = self.fee.or_else(|| served.fee(self.rate)).ok_or_else(overflow)?;
        let payee = self.client.payee(self.payee).await?;
        let counters = Arc::new(Counters {
            added: AtomicU64::new(0),
            paid: AtomicU64::new(0),
            cap: self.cap,
            stopped: Mutex::default(),
        });
        let job = self.client.take_job();
        let (asset, amount, ticks, lane) = (self.asset, self.rate, self.ticks, self.lane);
        let order = |reply| {
            let counters = counters.clone();
            Input::Stream(StreamOrder { job, asset, payee, amount, fee, ticks, lane, counters, reply })
        };
        self.client.ask(order).await?;
        let shared = Arc::new(Shared { client: self.client.clone(), job, counters: counters.clone() });
        tokio::spawn(rounds(Arc::downgrade(&shared), self.every.max(Duration::from_millis(1))));
        Ok(Meter { shared })
    }
}

impl<'a> IntoFuture for NewStream<'a> {
    type Output = Result<Meter, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl Meter {
    /// Adds ticks; never waits.
    pub fn add(&self, ticks: u64) -> Result<(), MeterError> {
        let counters = &self.shared.counters;
        if let Some(why) = counters.why_stopped() {
            return Err(MeterError::Stopped { why });
        }
        let cap = counters.cap;
        let within = |added: u64| added.checked_add(ticks).filter(|sum| *sum <= cap);
        let added = counters.added.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        added.map(|_| ()).map_err(|added| MeterError::Cap { asked: ticks, added, cap })
    }

    /// What was added and paid so far.
    pub fn so_far(&self) -> Metered {
        self.shared.counters.so_far()
    }

    /// Pays what was added, folds the stream and says what it came to. Waits for answers; a hub that is away is waited
    /// for.
    pub async fn finish(self) -> Result<Metered, Error> {
        let job = self.shared.job;
        self.shared.client.ask(|reply| Input::EndStream { job, reply: Some(reply) }).await?;
        match self.shared.counters.why_stopped() {
            Some(why) => Err(Error::StreamStopped { why, metered: self.so_far() }),
            None => Ok(self.so_far()),
        }
    }
}

impl Counters {
    pub(crate) fn so_far(&self) -> Metered {
        Metered { added: self.added.load(Ordering::Relaxed), paid: self.paid.load(Ordering::Relaxed) }
    }

    pub(crate) fn why_stopped(&self) -> Option<String> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn stop(&self, why: String) {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // A client that is too busy to hear it hears it from the round that finds the meter gone.
        let _ = self.client.inbox().try_send(Input::EndStream { job: self.job, reply: None });
    }
}

/// Has the client pay what was added, a round at a time.
async fn rounds(shared: Weak<Shared>, every: Duration) {
    let mut interval = tokio::time::interval(every);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = 0;
    loop {
        interval.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let added = shared.counters.added.load(Ordering::Relaxed);
        // The client looks at every meter in each of its own rounds too, so a wake-up that finds no room is no loss.
        if added != seen && shared.client.inbox().try_send(Input::MeterMoved).is_ok() {
            seen = added;
        }
    }
}
