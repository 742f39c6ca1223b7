//! Metered payments: a counter that a frame loop can add to without ever waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use proto::Amount;

use crate::pay::Payer;

/// Adds up what is owed to one payee and pays it in the background, many additions in one payment.
///
/// The meter never promises more than its cap: beyond it [`Meter::add`] refuses, and the game can stop.
#[derive(Clone)]
pub struct Meter {
    shared: Arc<Shared>,
}

struct Shared {
    /// Everything ever added.
    added: AtomicU64,
    /// Everything ever handed to the payer.
    ordered: AtomicU64,
    /// Everything ever paid.
    paid: AtomicU64,
    /// Everything that was not paid in the end.
    failed: AtomicU64,
    cap: u64,
}

/// Why an addition was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{asked} more would pass the meter's cap: {added} of {cap} base units are used")]
pub struct MeterError {
    /// What was to be added.
    pub asked: u64,
    /// What was added before.
    pub added: u64,
    /// The cap.
    pub cap: u64,
}

impl Payer {
    /// A meter that orders a payment every `interval` if something was added, and never more than `cap` base units in
    /// all. Its task ends with the last handle.
    pub fn meter(self, interval: Duration, cap: u64) -> Meter {
        let shared = Arc::new(Shared {
            added: AtomicU64::new(0),
            ordered: AtomicU64::new(0),
            paid: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            cap,
        });
        tokio::spawn(run(self, Arc::downgrade(&shared), interval));
        Meter { shared }
    }
}

impl Meter {
    /// Adds base units; never waits.
    pub fn add(&self, base_units: u64) -> Result<(), MeterError> {
        let cap = self.shared.cap;
        let within = |added: u64| added.checked_add(base_units).filter(|sum| *sum <= cap);
        let added = self.shared.added.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        added.map(|_| ()).map_err(|added| MeterError { asked: base_units, added, cap })
    }

    /// Base units added so far.
    pub fn added(&self) -> u64 {
        self.shared.added.load(Ordering::Relaxed)
    }

    /// Base units paid so far, fees not included.
    pub fn paid(&self) -> u64 {
        self.shared.paid.load(Ordering::Relaxed)
    }

    /// Base units whose payment failed, or whose outcome is not known.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }
}

async fn run(payer: Payer, shared: std::sync::Weak<Shared>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let owed = shared.added.load(Ordering::Relaxed) - shared.ordered.load(Ordering::Relaxed);
        if owed == 0 {
            continue;
        }
        // A client that is busy takes the sum at the next tick.
        let Ok(ticket) = payer.pay(Amount::new(u128::from(owed)), []) else { continue };
        shared.ordered.fetch_add(owed, Ordering::Relaxed);
        tokio::spawn(async move {
            let total = if ticket.await.is_ok() { &shared.paid } else { &shared.failed };
            total.fetch_add(owed, Ordering::Relaxed);
        });
    }
}
