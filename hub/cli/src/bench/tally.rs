//! What all members together did, and how long it took.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use proto::Amount;
use tokio::sync::watch;

/// Longest latency that is told apart from longer ones.
const LONGEST_US: u64 = 120_000_000;

/// Counters that every member adds to.
#[derive(Debug)]
pub struct Tally {
    payments: AtomicU64,
    made: AtomicU64,
    refused: AtomicU64,
    waiting: AtomicU64,
    credited: AtomicU64,
    /// Latencies in microseconds of what should have left since a time.
    latency: Mutex<(Option<Instant>, Histogram<u64>)>,
    fault: watch::Sender<Option<String>>,
}

/// Latencies of a phase.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
}

impl Tally {
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_US, 3).expect("the bounds are sound");
        Tally {
            payments: AtomicU64::new(0),
            made: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            credited: AtomicU64::new(0),
            latency: Mutex::new((None, histogram)),
            fault: watch::Sender::new(None),
        }
    }

    /// A frame is due, or left.
    pub fn waits(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// Frames that were due are given up before they left.
    pub fn forget(&self, frames: usize) {
        self.waiting.fetch_sub(frames as u64, Relaxed);
    }

    pub fn accepted(&self, payments: usize, intended: Instant, now: Instant) {
        self.payments.fetch_add(payments as u64, Relaxed);
        self.waiting.fetch_sub(1, Relaxed);
        let mut latency = self.latency.lock().expect("no holder panics");
        if latency.0.is_some_and(|since| intended >= since) {
            let us = u64::try_from(now.saturating_duration_since(intended).as_micros()).unwrap_or(LONGEST_US);
            latency.1.saturating_record_n(us.clamp(1, LONGEST_US), payments as u64);
        }
    }

    pub fn refused(&self, payments: usize) {
        self.refused.fetch_add(payments as u64, Relaxed);
        self.waiting.fetch_sub(1, Relaxed);
    }

    pub fn credited(&self, more: Amount) {
        self.credited.fetch_add(u64::try_from(more.get()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Payments of a message: as many as it lists, and one for all ticks of a stream in one flush.
    pub fn made(&self, payments: usize) {
        self.made.fetch_add(payments as u64, Relaxed);
    }

    /// Payments as the hub counts them.
    pub fn payments_made(&self) -> u64 {
        self.made.load(Relaxed)
    }

    /// Payments accepted so far, a tick as one.
    pub fn payments(&self) -> u64 {
        self.payments.load(Relaxed)
    }

    /// Payments refused so far.
    pub fn payments_refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// Frames that wait for an answer.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Relaxed)
    }

    /// Base units credited so far.
    pub fn units_credited(&self) -> u64 {
        self.credited.load(Relaxed)
    }

    /// Latencies count from now on.
    pub fn begin(&self) {
        let mut latency = self.latency.lock().expect("no holder panics");
        latency.0 = Some(Instant::now());
        latency.1.reset();
    }

    /// The latencies since [`Tally::begin`]; no more are taken.
    pub fn end(&self) -> Latency {
        let mut latency = self.latency.lock().expect("no holder panics");
        latency.0 = None;
        let at = |quantile| latency.1.value_at_quantile(quantile) as f64 / 1000.0;
        Latency { p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999) }
    }

    /// The run cannot go on.
    pub fn fail(&self, fault: String) {
        self.fault.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(fault);
            first
        });
    }

    /// Waits for a time, or gives what went wrong before.
    pub async fn pass(&self, time: Duration) -> Result<(), String> {
        let mut fault = self.fault.subscribe();
        match tokio::time::timeout(time, fault.wait_for(Option::is_some)).await {
            Ok(Ok(fault)) => Err(fault.clone().unwrap_or_default()),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}
