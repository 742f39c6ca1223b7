//! The member's own eyes on the ledger: what it says of his accounts, and a watchtower that answers every close.
//!
//! Nothing here is stored: the evidence is the member's and durable in his store, and what the ledger says is read
//! again at every start. So the guard begins at the newest confirmed block.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alloy_sol_types::SolEvent;
use dispute::adjudicator::abi::IAdjudicator as contract;
use dispute::watchtower::{Alarm, Save, TowerHost, start_position, tower_channel};
use dispute::{
    BlockRef, Chain, ChainError, Claim, CursorState, EventKind, Item, LedgerBooks, Step, Submitter, Tower, TowerHandle,
    Update, follow, run_tower,
};
use futures::StreamExt;
use proto::account::{Status, Totals};
use proto::member::Member;
use proto::{AccountId, Asset, ChannelId, ChannelTerms};
use tokio::sync::{oneshot, watch};

use crate::error::Error;
use crate::owner::{Guarded, Inbox, Input, Reading};
use crate::wallet::Wallet;

/// Blocks searched at once where a node does not search the whole chain.
const SEARCH_BLOCKS: u64 = 2_000;

/// Follows the ledger for a member until its owner is gone; with a submitter it answers closes too.
pub(crate) async fn run(
    chain: Chain,
    submitter: Option<Submitter>,
    poll: Duration,
    assets: Vec<Asset>,
    mut guarded: watch::Receiver<Guarded>,
    inbox: Inbox,
) {
    let terms = match guarded.wait_for(|g| g.terms.is_some()).await {
        Ok(known) => known.terms.clone().expect("it was just waited for"),
        Err(_) => return,
    };
    let position = loop {
        match start_position(&chain).await {
            Ok(position) => break position,
            Err(error) => {
                tracing::warn!(%error, "the ledger cannot be watched yet");
                tokio::time::sleep(poll).await;
            }
        }
    };
    let domain = *chain.domain();
    let channel = domain.channel_id(&terms);
    let watched = inbox.clone();
    let assets: BTreeSet<Asset> = assets.into_iter().collect();
    let mut watcher = Watcher { chain: chain.clone(), channel, inbox: watched, stale: assets.clone(), assets };
    let Some(submitter) = submitter else { return watcher.run(position, poll).await };
    let (handle, requests) = tower_channel();
    let tower = Tower::new(domain);
    let tower = run_tower(tower, position.clone(), chain, submitter, poll, Host { inbox }, requests);
    tokio::select! {
        stopped = tower => tracing::error!(%stopped, "the watchtower of this client stopped"),
        () = supply(&handle, &terms, guarded) => {}
        () = watcher.run(position, poll) => {}
    }
}

/// The terms of a channel, as the ledger's `Opened` event gives them.
pub(crate) async fn opened(chain: &Chain, channel: ChannelId) -> Result<ChannelTerms, Error> {
    use alloy::providers::Provider;
    use alloy::rpc::types::Filter;
    if !chain.is_opened(channel).await? {
        return Err(Error::payee(channel, "no such channel was opened on the ledger"));
    }
    let filter = Filter::new()
        .address(chain.adjudicator().address())
        .event_signature(contract::Opened::SIGNATURE_HASH)
        .topic1(channel.0);
    let head = chain.head().await?.number;
    let mut logs = chain.provider().get_logs(&filter.clone().from_block(0).to_block(head)).await.unwrap_or_default();
    let mut to = head;
    while logs.is_empty() {
        let from = to.saturating_sub(SEARCH_BLOCKS - 1);
        let found = chain.provider().get_logs(&filter.clone().from_block(from).to_block(to)).await;
        let unreachable = |e: alloy::transports::TransportError| ChainError::Unreachable {
            url: chain.url().to_owned(),
            why: e.to_string(),
        };
        logs = found.map_err(unreachable)?;
        if from == 0 {
            break;
        }
        to = from - 1;
    }
    for log in logs {
        let Ok(event) = contract::Opened::decode_log(&log.inner) else { continue };
        let t = &event.data.terms;
        let terms = ChannelTerms {
            hub: t.hub,
            hubKey: t.hubKey,
            hubScheme: t.hubScheme,
            member: t.member,
            memberKey: t.memberKey,
            memberScheme: t.memberScheme,
            challengePeriod: t.challengePeriod,
            salt: t.salt,
        };
        if chain.domain().channel_id(&terms) == channel {
            return Ok(terms);
        }
    }
    Err(Error::payee(channel, "the ledger shows no terms that make this channel"))
}

/// What the ledger says of an account: deposits at the confirmed block, the rest at the newest one.
pub(crate) async fn totals(
    chain: &Chain,
    account: &AccountId,
    confirmed: Option<BlockRef>,
) -> Result<Totals, ChainError> {
    let seen = chain.books(account).await?;
    let deep = match confirmed {
        _ if chain.confirmations() == 0 => seen,
        Some(block) => chain.books_after(account, block.number).await?,
        None => LedgerBooks::default(),
    };
    let status = match seen.status {
        dispute::Status::Open => Status::Open,
        dispute::Status::Closing => Status::Closing,
        dispute::Status::Final => Status::Final,
    };
    Ok(Totals {
        member_deposit: deep.member_deposit,
        hub_deposit: deep.hub_deposit,
        member_withdrawn: seen.member_withdrawn,
        hub_withdrawn: seen.hub_withdrawn,
        seq: seen.seq,
        seq_confirmed: deep.seq,
        status,
        deadline: seen.deadline_s,
        member_paid: seen.member_paid,
        hub_paid: seen.hub_paid,
    })
}

struct Watcher {
    chain: Chain,
    channel: ChannelId,
    inbox: Inbox,
    /// The assets that hub and member know. Anybody may deposit any token for anybody, and accounts without end in
    /// worthless ones would make the hello too long.
    assets: BTreeSet<Asset>,
    /// Accounts whose books are to be read again.
    stale: BTreeSet<Asset>,
}

impl Watcher {
    async fn run(&mut self, position: CursorState, poll: Duration) {
        let mut updates = std::pin::pin!(follow(self.chain.clone(), position.clone(), poll));
        if self.report(position.tip(), position.confirmed()).await.is_err() || self.look_for_closes().await.is_err() {
            return;
        }
        while let Some(update) = updates.next().await {
            let step = match update {
                Update::Step(step) => step,
                Update::Trouble(error) => {
                    tracing::warn!(%error, "the ledger cannot be followed at the moment");
                    continue;
                }
            };
            if self.on_step(&step).await.is_err() || self.report(Some(step.head), step.confirmed).await.is_err() {
                return;
            }
        }
    }

    /// Accounts of payees that began to close while this program was away: they may need the receipts that it holds.
    async fn look_for_closes(&self) -> Result<(), Error> {
        let (reply, undelivered) = oneshot::channel();
        let look = move |wallet: &Wallet, _: &Reading| {
            drop(reply.send(wallet.member().map(Member::undelivered).unwrap_or_default()));
        };
        self.tell(Input::Read(Box::new(look))).await?;
        for (asset, channel, _) in undelivered.await.map_err(|_| Error::Stopped)? {
            let account = AccountId { channel, asset };
            match self.chain.books(&account).await {
                Ok(books) if books.status == dispute::Status::Closing => {
                    self.tell(Input::AnotherCloses(account)).await?
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%account, %error, "whether a payee's account closes cannot be read"),
            }
        }
        Ok(())
    }

    async fn on_step(&mut self, step: &Step) -> Result<(), Error> {
        for item in &step.items {
            let (Item::Seen(event) | Item::Confirmed(event) | Item::Reverted(event)) = item;
            let Some(account) = event.account() else { continue };
            if account.channel == self.channel {
                if self.assets.contains(&account.asset) {
                    self.stale.insert(account.asset);
                }
            } else if let (Item::Seen(_), EventKind::Closing { .. }) = (item, &event.kind) {
                self.tell(Input::AnotherCloses(account)).await?;
            }
        }
        Ok(())
    }

    /// Reads the accounts that changed, and then tells the time. What cannot be read now is read at the next block, and
    /// the time waits for it: a settlement that was posted in between would count neither as kept nor as posted.
    async fn report(&mut self, head: Option<BlockRef>, confirmed: Option<BlockRef>) -> Result<(), Error> {
        for asset in self.stale.clone() {
            let account = AccountId { channel: self.channel, asset };
            match totals(&self.chain, &account, confirmed).await {
                Ok(totals) => {
                    self.tell(Input::Ledger { asset, totals }).await?;
                    self.stale.remove(&asset);
                }
                Err(error) => tracing::warn!(%account, %error, "an account cannot be read on the ledger yet"),
            }
        }
        match confirmed.or(head.filter(|_| self.chain.confirmations() == 0)) {
            Some(block) if self.stale.is_empty() => self.tell(Input::Head { confirmed_time: block.time_s }).await,
            Some(_) | None => Ok(()),
        }
    }

    async fn tell(&self, input: Input) -> Result<(), Error> {
        self.inbox.send(input).await.map_err(|_| Error::Stopped)
    }
}

/// Hands the tower what the member holds, as it grows.
async fn supply(tower: &TowerHandle, terms: &ChannelTerms, mut guarded: watch::Receiver<Guarded>) {
    let mut offered: BTreeMap<Asset, proto::member::Evidence> = BTreeMap::new();
    loop {
        let newest = guarded.borrow_and_update().evidence.clone();
        for (asset, evidence) in newest {
            let known = offered.get(&asset);
            if known == Some(&evidence) {
                continue;
            }
            if known.is_none() && tower.watch(terms.clone(), asset).await.is_err() {
                continue;
            }
            let lanes = evidence.lanes.iter().cloned().map(Claim::from);
            let claims = lanes.chain(evidence.hub.iter().cloned().map(Claim::Hub));
            for claim in claims {
                if let Err(error) = tower.offer(claim).await {
                    // A final account is forgotten by the tower: nothing can be shown any more.
                    tracing::debug!(%asset, %error, "the watchtower does not take a piece of evidence");
                }
            }
            offered.insert(asset, evidence);
        }
        if guarded.changed().await.is_err() {
            return;
        }
    }
}

struct Host {
    inbox: Inbox,
}

impl TowerHost for Host {
    /// Nothing to write: the evidence is in the member's store, and the position is found anew at every start.
    fn save(&mut self, _: &Save) -> Result<(), String> {
        Ok(())
    }

    fn alarm(&mut self, alarm: &Alarm) {
        tracing::warn!(%alarm, "watchtower");
        // The log has it if the owner is too busy.
        let _ = self.inbox.try_send(Input::Alarm(alarm.to_string()));
    }
}
