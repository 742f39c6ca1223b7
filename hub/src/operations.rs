//! What the operator and the program that runs the hub may ask of it.

use std::sync::Arc;

use alloy_primitives::B256;
use proto::books::{Ask, AssetPolicy, AssetSums, Refusal};
use proto::typed::Settlement;
use proto::{AccountId, Amount};
use tokio::sync::oneshot;

use crate::core::{Core, Ended};
use crate::ledger::{CloseError, LedgerHandle};
use crate::sequencer::Command;

/// The hub at a glance.
#[derive(Clone, Debug, Default)]
pub struct HubStatus {
    /// Number of the ledger's confirmed head.
    pub head: u64,
    /// Its time, seconds.
    pub head_time_s: u64,
    /// Number of the last durable flush.
    pub flush: u64,
    /// Channels that the hub knows.
    pub channels: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Payments ever accepted.
    pub payments: u64,
    /// Sums over all accounts, per served asset.
    pub assets: Vec<(AssetPolicy, AssetSums)>,
    /// What a person should look after, newest last.
    pub alarms: Vec<String>,
    /// Whether new payments are refused because the hub is about to stop.
    pub draining: bool,
    /// The flush that a member showed and this store lacks, if the hub froze over it.
    pub frozen: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Operations {
    pub(crate) core: Arc<Core>,
    pub(crate) ledger: Option<LedgerHandle>,
}

impl Operations {
    pub(crate) async fn status(&self) -> Result<HubStatus, Ended> {
        let mut status = self
            .core
            .query(|books| {
                let mut sums = books.sums();
                let assets = books.policy().assets.iter();
                let (head, head_time_s) = books.confirmed();
                HubStatus {
                    head,
                    head_time_s,
                    channels: books.channels().len() as u64,
                    assets: assets.map(|p| (p.clone(), sums.remove(&p.asset).unwrap_or_default())).collect(),
                    frozen: books.frozen(),
                    ..HubStatus::default()
                }
            })
            .await?;
        // The sums hold what was accepted; they are told when it is durable.
        self.core.barrier().await?;
        status.flush = *self.core.durable.borrow();
        status.sessions = self.core.sessions_open();
        status.payments = self.core.rows.payments_total();
        status.alarms = self.core.alarms();
        status.draining = self.core.is_draining();
        Ok(status)
    }

    pub(crate) async fn settle(&self, account: AccountId, ask: Ask) -> Result<Result<Settlement, Refusal>, Ended> {
        let (done, proposed) = oneshot::channel();
        self.core.send(Command::Settle { account, ask, done }).await?;
        self.core.answered(proposed).await
    }

    /// The hub's collateral of an account beyond what it keeps ready for the payee.
    pub(crate) async fn reclaimable(&self, account: AccountId) -> Result<Amount, Ended> {
        self.core
            .query(move |books| {
                let target = books.policy().asset(account.asset).map(|p| p.inbound_target).unwrap_or_default();
                let net = books.account(account).map(|a| proto::account::clamp(a.hub_net())).unwrap_or_default();
                net.saturating_sub(target)
            })
            .await
    }

    pub(crate) async fn start_close(&self, account: AccountId) -> Result<B256, CloseError> {
        match &self.ledger {
            Some(ledger) => ledger.start_close(&self.core, account).await,
            None => Err(CloseError::NoLedger),
        }
    }

    pub(crate) async fn drain(&self) -> Result<(), Ended> {
        self.core.start_draining();
        self.core.query(|books| books.drain()).await?;
        self.core.barrier().await
    }
}
