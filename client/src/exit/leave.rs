//! The way out, walked by what the ledger says.
//!
//! Every step is chosen by the account's books on the ledger and nothing is remembered, so that this can be stopped at
//! any point and started again, by anybody, beside a watchtower that does the same.

use std::time::Duration;

use alloy_primitives::{TxHash, U256};
use dispute::adjudicator::RefusalClass;
use dispute::{Call, Chain, ChainError, LedgerBooks, Order, Outcome, Refusal, Status, Submitter, Urgency};
use proto::{Amount, Asset, ChannelId};
use tokio::time::Instant;

use super::{ExitKit, KitAccount};

/// Time between looks at the ledger while a challenge period runs.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a call is sent of which the ledger shows no effect, before that is reported.
const ATTEMPTS_MAX: u32 = 4;

/// Where an account is on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The asset.
    pub asset: Asset,
    /// How far it is.
    pub state: ExitState,
    /// What the ledger paid out to the member in all, in base units, settlements before this exit included.
    pub paid: Amount,
    /// What of it could not be delivered and waits in a vault.
    pub waiting_in_vault: U256,
}

/// How far an account is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitState {
    /// There was nothing in it.
    Empty,
    /// Everything that can be shown is shown; the payout is possible at this time.
    Closing {
        /// The end of the challenge period, in seconds of chain time.
        deadline_s: u64,
    },
    /// Paid out, for ever.
    Paid,
}

/// What happens on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A settlement that both had signed was posted.
    Settled {
        /// The asset.
        asset: Asset,
        /// Its number.
        seq: u64,
    },
    /// The challenge period began.
    Started {
        /// The asset.
        asset: Asset,
    },
    /// The evidence is on the ledger.
    Shown {
        /// The asset.
        asset: Asset,
    },
    /// The challenge period ended before all evidence could be shown.
    TooLate {
        /// The asset.
        asset: Asset,
    },
    /// The challenge period runs.
    Waiting {
        /// The asset.
        asset: Asset,
        /// Its end.
        deadline_s: u64,
        /// Chain time now.
        now_s: u64,
    },
    /// The ledger does not answer at the moment; it is asked again.
    Trouble {
        /// What it said.
        why: String,
    },
    /// Paid out.
    Paid {
        /// The asset.
        asset: Asset,
        /// What the member got in all.
        paid: Amount,
    },
}

/// Why it does not go on.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// The ledger does not answer, or is another one.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The contract refused a call.
    #[error("{what} of asset {asset} was refused by the contract: {refusal}")]
    Refused {
        /// The call.
        what: &'static str,
        /// The asset.
        asset: Asset,
        /// Why.
        refusal: Refusal,
    },
    /// A call was not sent.
    #[error("{what} of asset {asset} was not sent: {why}; the account of the key needs coins for gas")]
    NotSent {
        /// The call.
        what: &'static str,
        /// The asset.
        asset: Asset,
        /// Why.
        why: String,
    },
    /// A call is in no block yet.
    #[error(
        "{what} of asset {asset} was sent as {tx_hashes:?} and is in no block yet; run this again, it goes on where it is"
    )]
    Unknown {
        /// The call.
        what: &'static str,
        /// The asset.
        asset: Asset,
        /// What was sent.
        tx_hashes: Vec<TxHash>,
    },
    /// The ledger does not show what a call should have done.
    #[error(
        "{what} of asset {asset} went through and its effect does not show on the ledger; the node may be behind, run this again"
    )]
    NoEffect {
        /// The call.
        what: &'static str,
        /// The asset.
        asset: Asset,
    },
    /// The channel of the kit is not on this ledger.
    #[error("channel {channel} was never opened on this ledger; is it the right chain, and the right node?")]
    NoChannel {
        /// The channel.
        channel: ChannelId,
    },
}

/// Gets the money of a kit out: starts the close or answers one that runs, shows the evidence, waits for the challenge
/// period if `wait`, pays out. Any key with coins for gas will do.
pub async fn leave(
    kit: &ExitKit,
    submitter: &Submitter,
    wait: bool,
    mut hear: impl FnMut(Progress),
) -> Result<Vec<Exit>, LeaveError> {
    let chain = submitter.chain();
    chain.check().await?;
    let channel = ChannelId(kit.channel);
    if !chain.is_opened(channel).await? {
        return Err(LeaveError::NoChannel { channel });
    }
    let mut walkers: Vec<Walker<'_>> =
        kit.accounts.iter().map(|account| Walker { kit, account, submitter, chain, until: None, done: None }).collect();
    loop {
        let mut failed = None;
        // An account that cannot go on does not keep the others from it.
        for walker in &mut walkers {
            match walker.walk(&mut hear).await {
                Ok(()) => {}
                Err(LeaveError::Chain(error @ ChainError::Unreachable { .. })) if wait && walker.until.is_some() => {
                    hear(Progress::Trouble { why: error.to_string() });
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let closing =
            |w: &Walker<'_>| !matches!(&w.done, Some(exit) if !matches!(exit.state, ExitState::Closing { .. }));
        if !wait || !walkers.iter().any(closing) {
            return Ok(walkers.into_iter().filter_map(|walker| walker.done).collect());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Walker<'a> {
    kit: &'a ExitKit,
    account: &'a KitAccount,
    submitter: &'a Submitter,
    chain: &'a Chain,
    /// When the challenge period must be over by the clock of this machine: a chain that makes blocks only for
    /// transactions does not tell the time by itself.
    until: Option<Instant>,
    done: Option<Exit>,
}

impl Walker<'_> {
    /// Goes as far as the account can go now.
    async fn walk(&mut self, hear: &mut impl FnMut(Progress)) -> Result<(), LeaveError> {
        let asset = self.account.asset;
        if matches!(&self.done, Some(exit) if !matches!(exit.state, ExitState::Closing { .. })) {
            return Ok(());
        }
        let (mut started, mut shown, mut finalized) = (0, 0, 0);
        loop {
            let books = self.chain.books(&self.kit.account_id(asset)).await?;
            match books.status {
                Status::Open if books.custody().is_zero() => {
                    return self.end(&books, ExitState::Empty).await;
                }
                Status::Open => {
                    if started == 0 && self.settle(&books, hear).await? {
                        started += 1;
                        continue;
                    }
                    self.send(&mut started, "the start of the close", self.account.calls.start_close.to_call()).await?;
                    hear(Progress::Started { asset });
                }
                Status::Closing => {
                    let now_s = self.chain.head().await?.time_s;
                    let evidence = &self.account.evidence;
                    let hidden = evidence.member_paid > books.member_paid || evidence.hub_paid > books.hub_paid;
                    if let (true, true, Some(respond)) = (hidden, now_s < books.deadline_s, &self.account.calls.respond)
                    {
                        self.send(&mut shown, "the evidence", respond.to_call()).await?;
                        hear(Progress::Shown { asset });
                        continue;
                    }
                    let left = Duration::from_secs(books.deadline_s.saturating_sub(now_s));
                    let until = *self.until.get_or_insert_with(|| Instant::now() + left);
                    if !left.is_zero() && Instant::now() < until {
                        hear(Progress::Waiting { asset, deadline_s: books.deadline_s, now_s });
                        return self.end(&books, ExitState::Closing { deadline_s: books.deadline_s }).await;
                    }
                    if hidden && finalized == 0 {
                        hear(Progress::TooLate { asset });
                    }
                    if !self.send(&mut finalized, "the payout", self.account.calls.finalize.to_call()).await? {
                        return self.end(&books, ExitState::Closing { deadline_s: books.deadline_s }).await;
                    }
                }
                Status::Final => {
                    hear(Progress::Paid { asset, paid: books.member_withdrawn });
                    return self.end(&books, ExitState::Paid).await;
                }
            }
        }
    }

    /// Posts the newest settlement that still counts: it pays without a challenge period.
    async fn settle(&self, books: &LedgerBooks, hear: &mut impl FnMut(Progress)) -> Result<bool, LeaveError> {
        let now_s = self.chain.head().await?.time_s;
        let settlements = &self.account.evidence.settlements;
        let posted = settlements.iter().filter(|s| s.seq > books.seq && now_s <= s.valid_until);
        let Some(newest) = posted.max_by_key(|s| s.seq) else { return Ok(false) };
        // One that the contract does not take any more is no loss: the close pays the same.
        let order = Order::new(newest.call.to_call()).urgency(Urgency::Urgent);
        if let Outcome::Mined(_) = self.submitter.submit(order).await {
            hear(Progress::Settled { asset: self.account.asset, seq: newest.seq });
            return Ok(true);
        }
        Ok(false)
    }

    /// Sends a call. False if it came too early; true if it, or somebody else's like it, is on the ledger.
    async fn send(&self, attempts: &mut u32, what: &'static str, call: Call) -> Result<bool, LeaveError> {
        let asset = self.account.asset;
        *attempts += 1;
        if *attempts > ATTEMPTS_MAX {
            return Err(LeaveError::NoEffect { what, asset });
        }
        match self.submitter.submit(Order::new(call).urgency(Urgency::Urgent)).await {
            Outcome::Mined(_) => Ok(true),
            Outcome::Reverted { refusal, .. } => match refusal.class {
                RefusalClass::Moot => Ok(true),
                RefusalClass::Early => Ok(false),
                RefusalClass::Wrong => Err(LeaveError::Refused { what, asset, refusal }),
            },
            Outcome::NotSent { why } => Err(LeaveError::NotSent { what, asset, why }),
            Outcome::Unknown { tx_hashes } => Err(LeaveError::Unknown { what, asset, tx_hashes }),
        }
    }

    async fn end(&mut self, books: &LedgerBooks, state: ExitState) -> Result<(), LeaveError> {
        let asset = self.account.asset;
        let mut waiting = U256::ZERO;
        if state == ExitState::Paid {
            let vault = self.chain.vault_of(ChannelId(self.kit.channel)).await?;
            let owner = self.kit.pays_to;
            waiting = self.chain.claimable(vault, asset, owner).await?;
            if !waiting.is_zero() {
                // A receiver that refuses money goes on refusing it: then it waits, and only its owner can direct it.
                let claim = self.chain.adjudicator().claim(vault, asset, owner);
                if let Outcome::Mined(_) = self.submitter.submit(Order::new(claim)).await {
                    waiting = self.chain.claimable(vault, asset, owner).await?;
                }
            }
        }
        self.done = Some(Exit { asset, state, paid: books.member_withdrawn, waiting_in_vault: waiting });
        Ok(())
    }
}
