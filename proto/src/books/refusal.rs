//! Why the hub refuses: one closed list, in the order in which the checks are made.

use crate::account::Status;
use crate::amount::Amount;
use crate::frame::FrameError;
use crate::ids::{AccountId, Asset, ChannelId, PaymentId};
use crate::stream::StreamError;

/// A refusal. It is final for the bytes that it answers; nothing was changed and no payment id was used up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The frame itself is malformed or not signed by its payer.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// An opening, a tick or a fold is malformed, not signed by its payer, or not of its chain.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The id was used for a payment with other content, or for only some payments of the frame.
    #[error("payment id {id} was used before; a new payment needs a new id, a repetition the whole old frame")]
    IdUsed {
        /// The id.
        id: PaymentId,
    },
    /// The hub's store is older than what it signed.
    #[error("the hub is frozen: its store lacks flushes that members hold; nothing is signed until its operator acts")]
    HubFrozen,
    /// The hub finishes what it has and takes nothing new.
    #[error("the hub is draining and takes no new payments; try again after its restart")]
    Draining,
    /// The channel is not one that the hub serves.
    #[error(
        "channel {channel} is not served here; open one with the terms and the minimum deposit that GetInfo offers"
    )]
    UnknownChannel {
        /// The channel.
        channel: ChannelId,
    },
    /// A newer session of the channel has taken over.
    #[error("this session is not the channel's newest; connect again")]
    OldSession,
    /// The asset is not served.
    #[error("asset {asset} is not served here; GetInfo lists the assets")]
    UnknownAsset {
        /// The asset.
        asset: Asset,
    },
    /// The payer's account is not open.
    #[error("the account is {status:?} on the ledger; nothing can be paid from it")]
    NotOpen {
        /// Its status.
        status: Status,
    },
    /// A close of the payer's account is signed or proposed.
    #[error("the account is frozen by a close that may still be posted, valid until {until}")]
    Freezing {
        /// The close's validity, chain time in seconds.
        until: u64,
    },
    /// The frame does not continue its lane: cumulative amount or running hash differ.
    #[error("the frame does not continue lane {lane}, which stands at {cumulative}; sign again from there")]
    LaneBroken {
        /// The lane.
        lane: u32,
        /// What was accepted on it.
        cumulative: Amount,
    },
    /// The evidence of the account would no longer fit one call to the ledger.
    #[error("the account's lanes would take {gas} gas to claim, at most {max}; fold a lane of ticks first")]
    FoldFirst {
        /// What it would be.
        gas: u64,
        /// The bound.
        max: u64,
    },
    /// A fee below the hub's price.
    #[error("payment {id} offers a fee of {given}, the price is {price}")]
    FeeTooLow {
        /// The payment.
        id: PaymentId,
        /// The fee given.
        given: Amount,
        /// The least fee.
        price: Amount,
    },
    /// The payee's channel is not served.
    #[error("payee {payee} has no channel with this hub; ask the payee to open one")]
    UnknownPayee {
        /// The payee.
        payee: ChannelId,
    },
    /// A payment to oneself.
    #[error("payer and payee are the same channel")]
    PayeeIsPayer,
    /// The payee's account is closing, closed or frozen by a close.
    #[error("payee {payee} is closing its account and can be paid no more on it")]
    PayeeClosing {
        /// The payee.
        payee: ChannelId,
    },
    /// The payer cannot pay that much.
    #[error("the frame costs {cost}, the account has {available}; deposit, or pay less")]
    InsufficientFunds {
        /// Amounts and fees.
        cost: Amount,
        /// What is left to pay with.
        available: Amount,
    },
    /// The payee's account lacks the hub's collateral for this much.
    #[error("the hub's collateral for payee {payee} falls short by {missing}; it is being funded, try again")]
    PayeeUnbacked {
        /// The payee.
        payee: ChannelId,
        /// What is missing.
        missing: Amount,
    },
    /// A sum of the account would pass 128 bits.
    #[error("the totals of {account} would pass 2^128 - 1; settle and open another channel")]
    Overflow {
        /// The account.
        account: AccountId,
    },
    /// The name is taken or not well-formed.
    #[error("the name {name:?} is taken or not made of 1 to 32 of a-z, 0-9, '-', '_' and '.'")]
    Name {
        /// The name.
        name: String,
    },
    /// An acknowledgement that does not fit what was credited.
    #[error("an acknowledgement of credit {credits} does not fit the account's credits ({acked} to {newest})")]
    BadAck {
        /// The number acknowledged.
        credits: u64,
        /// Acknowledged before.
        acked: u64,
        /// The newest credit.
        newest: u64,
    },
    /// A settlement that nobody proposed, or that is over.
    #[error("no settlement {seq} of this account waits for a signature; ask for a new one")]
    NoSuchSettlement {
        /// Its number.
        seq: u64,
    },
    /// Too many settlements may still be posted.
    #[error("{kept} settlements of this account may still be posted; wait until {until}")]
    TooManyKept {
        /// How many.
        kept: usize,
        /// When the first of them is over, chain time in seconds.
        until: u64,
    },
    /// A deposit of the hub is on its way to the account; a close would leave it behind.
    #[error("the hub is just adding collateral to the account; close it when that is confirmed, in a block or two")]
    BeingFunded,
    /// A payout that a net does not cover.
    #[error("a payout of {asked} is more than the {available} that can be paid out; ask for less")]
    PayoutTooLarge {
        /// What was asked for.
        asked: Amount,
        /// What could be paid out.
        available: Amount,
    },
    /// A close for which one net is not sound.
    #[error("the nets do not allow a cooperative close now; try again after the next block, or close unilaterally")]
    CannotClose,
    /// Nothing would change.
    #[error("there is nothing to settle")]
    NothingToSettle,
}

impl Refusal {
    /// The word for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Frame(FrameError::Key(_)) => "BAD_SIGNATURE",
            Refusal::Stream(StreamError::Key(_)) => "BAD_SIGNATURE",
            Refusal::Stream(StreamError::WrongWord { .. }) => "BAD_PREIMAGE",
            Refusal::Stream(StreamError::NoStream { .. }) => "NO_STREAM",
            Refusal::Stream(StreamError::Behind { .. }) => "TICK_BEHIND",
            Refusal::Frame(_) | Refusal::Stream(_) => "MALFORMED",
            Refusal::IdUsed { .. } => "ID_USED",
            Refusal::HubFrozen => "HUB_FROZEN",
            Refusal::Draining => "DRAINING",
            Refusal::UnknownChannel { .. } => "UNKNOWN_CHANNEL",
            Refusal::OldSession => "OLD_SESSION",
            Refusal::UnknownAsset { .. } => "UNKNOWN_ASSET",
            Refusal::NotOpen { .. } => "NOT_OPEN",
            Refusal::Freezing { .. } => "FREEZING",
            Refusal::LaneBroken { .. } => "LANE_BROKEN",
            Refusal::FoldFirst { .. } => "FOLD_FIRST",
            Refusal::FeeTooLow { .. } => "FEE_TOO_LOW",
            Refusal::UnknownPayee { .. } => "UNKNOWN_PAYEE",
            Refusal::PayeeIsPayer => "PAYEE_IS_PAYER",
            Refusal::PayeeClosing { .. } => "PAYEE_CLOSING",
            Refusal::InsufficientFunds { .. } => "INSUFFICIENT_FUNDS",
            Refusal::PayeeUnbacked { .. } => "PAYEE_UNBACKED",
            Refusal::Overflow { .. } => "OVERFLOW",
            Refusal::Name { .. } => "NAME",
            Refusal::BadAck { .. } => "BAD_ACK",
            Refusal::NoSuchSettlement { .. } => "NO_SUCH_SETTLEMENT",
            Refusal::TooManyKept { .. } => "TOO_MANY_KEPT",
            Refusal::BeingFunded => "BEING_FUNDED",
            Refusal::PayoutTooLarge { .. } => "PAYOUT_TOO_LARGE",
            Refusal::CannotClose => "CANNOT_CLOSE",
            Refusal::NothingToSettle => "NOTHING_TO_SETTLE",
        }
    }

    /// Whether the same payments in a new frame may succeed without anybody changing their mind.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Refusal::Draining
                | Refusal::OldSession
                | Refusal::LaneBroken { .. }
                | Refusal::PayeeUnbacked { .. }
                | Refusal::Freezing { .. }
                | Refusal::TooManyKept { .. }
                | Refusal::BeingFunded
                | Refusal::CannotClose
        )
    }
}
