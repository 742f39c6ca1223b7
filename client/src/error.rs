//! What can go wrong, and what it means for a payment.

use alloy_primitives::U256;
use proto::keys::KeyError;
use proto::member::{Decline, Misbehaviour, PayError, TermsError};
use proto::wire::WireError;
use proto::{Asset, PaymentId};

/// What became of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not made and never will be under this id, unless it is asked for again.
    NotPaid,
    /// The hub owes it to the payee: a receipt proves it.
    Paid,
    /// It was signed and no answer came yet. `Client::resolve` ends this as soon as the hub or the ledger can answer.
    Unknown,
}

/// Why a call of the client failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The builder lacks something.
    #[error("the client needs {what}; set it on the builder")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// The hub's address is no URL.
    #[error("{url:?} is no address of a hub ({why}); write one like http://127.0.0.1:7000")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The hub does not answer.
    #[error("the hub at {url} does not answer: {why}; check that it runs and that the address is right")]
    Unreachable {
        /// Its address.
        url: String,
        /// What happened.
        why: String,
    },
    /// The hub answered a call with an error.
    #[error("the hub refused: {message} ({reason})")]
    Hub {
        /// A word for programs.
        reason: String,
        /// A sentence for people.
        message: String,
        /// Whether asking again may help.
        retryable: bool,
    },
    /// The hub serves another ledger than this client watches.
    #[error("the hub's {what} is {theirs}, the ledger's is {ours}; connect to a hub of this ledger")]
    OtherLedger {
        /// What differs.
        what: &'static str,
        /// As the ledger has it.
        ours: String,
        /// As the hub says.
        theirs: String,
    },
    /// The hub calls itself by another name than the one it was reached by.
    #[error(
        "the server at {url} says that it is {said:?}; use that name, or start the hub with --host as in the address"
    )]
    OtherHost {
        /// Its own word.
        said: String,
        /// Where it was reached.
        url: String,
    },
    /// The hub offers no terms for the asked signature scheme.
    #[error("the hub offers no channels with {scheme:?} keys")]
    NoOffer {
        /// The scheme.
        scheme: proto::Scheme,
    },
    /// The hub does not serve an asset.
    #[error("the hub does not serve asset {asset}; `Client::info` lists the assets")]
    UnknownAsset {
        /// The asset.
        asset: Asset,
    },
    /// A deposit below the hub's minimum.
    #[error("a first deposit of {given} is below the hub's minimum of {min}")]
    DepositTooSmall {
        /// Given.
        given: proto::Amount,
        /// The minimum.
        min: proto::Amount,
    },
    /// The account does not own what it is to deposit.
    #[error("account {account} has {balance} of asset {asset} on the ledger, {needed} are needed")]
    NotEnoughOnLedger {
        /// The ledger account.
        account: alloy_primitives::Address,
        /// The asset.
        asset: Asset,
        /// What it has.
        balance: U256,
        /// What is needed.
        needed: U256,
    },
    /// There is no channel yet.
    #[error("this client has no channel yet; open one with a deposit")]
    NoChannel,
    /// The hub did not begin to serve the channel in time.
    #[error(
        "the deposit is on the ledger, but the hub does not serve the channel yet; it keeps being tried in the background"
    )]
    NotServedYet,
    /// A name that leads nowhere, or not where the ledger says.
    #[error("payee {payee}: {why}")]
    Payee {
        /// Name or channel.
        payee: String,
        /// What is wrong.
        why: String,
    },
    /// The signer's own rules; nothing was signed.
    #[error(transparent)]
    Pay(#[from] PayError),
    /// The hub refused the payment.
    #[error("payment {id} was refused: {message} ({reason})")]
    Refused {
        /// The payment.
        id: PaymentId,
        /// A word for programs.
        reason: String,
        /// A sentence for people.
        message: String,
        /// Whether a retry may succeed.
        retryable: bool,
    },
    /// A stream ended before all that was added to its meter was paid.
    #[error("the stream stopped after {} of {} ticks: {why}", metered.paid, metered.added)]
    StreamStopped {
        /// What happened.
        why: String,
        /// What it came to.
        metered: crate::stream::Metered,
    },
    /// The payment waited too long before it was signed.
    #[error("payment {id} was not sent in time; nothing was signed")]
    TimedOut {
        /// The payment.
        id: PaymentId,
    },
    /// The payment was signed and no answer came in time.
    #[error("payment {id} was sent and no answer came yet; ask `resolve` with this id")]
    Unanswered {
        /// The payment.
        id: PaymentId,
    },
    /// The payment's voucher may have been claimed on the ledger without a receipt.
    #[error("payment {id} waits: the hub is silent and the ledger has not decided yet")]
    Undecided {
        /// The payment.
        id: PaymentId,
    },
    /// Terms that cannot be used.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// A settlement that this member does not sign.
    #[error("the proposed settlement was not signed: {0}")]
    Declined(#[from] Decline),
    /// The hub did what no honest hub does.
    #[error("the hub misbehaved: {0}")]
    Misbehaved(#[from] Misbehaviour),
    /// A message of the hub is malformed.
    #[error("the hub's answer is malformed: {0}")]
    Wire(#[from] WireError),
    /// A key is unusable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The ledger does not answer or refuses.
    #[error(transparent)]
    Chain(#[from] dispute::ChainError),
    /// A transaction did not succeed.
    #[error("{what} on the ledger failed: {why}")]
    Transaction {
        /// Which.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The store failed; the client stopped, because it may not act on what is not written down.
    #[error("the store failed and the client stopped: {0}")]
    Store(String),
    /// The client was shut down.
    #[error("the client has stopped")]
    Stopped,
    /// A wait ended without what was waited for.
    #[error("{what} did not happen within {seconds} s; look again later")]
    TooSlow {
        /// What.
        what: &'static str,
        /// How long was waited.
        seconds: u64,
    },
}

impl Error {
    /// What the error means for the payment that was asked for.
    pub fn outcome(&self) -> Outcome {
        match self {
            Error::Unanswered { .. } | Error::Undecided { .. } | Error::Stopped | Error::Store(_) => Outcome::Unknown,
            _ => Outcome::NotPaid,
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Hub { retryable, .. } | Error::Refused { retryable, .. } => *retryable,
            Error::Pay(error) => matches!(
                error,
                PayError::LaneBusy { .. }
                    | PayError::Window
                    | PayError::Frozen { .. }
                    | PayError::Exposure { .. }
                    | PayError::Undelivered { .. }
            ),
            Error::Unreachable { .. }
            | Error::TimedOut { .. }
            | Error::NotServedYet
            | Error::TooSlow { .. }
            | Error::Declined(Decline::StoreMayBeOld | Decline::Frozen)
            | Error::Chain(dispute::ChainError::Unreachable { .. }) => true,
            _ => false,
        }
    }

    pub(crate) fn payee(payee: impl ToString, why: impl Into<String>) -> Self {
        Error::Payee { payee: payee.to_string(), why: why.into() }
    }

    /// A refusal of payments for a channel that is not known to be refused for good.
    pub(crate) fn hub(status: &tonic::Status, url: &str) -> Self {
        let unreachable = || Error::Unreachable { url: url.to_owned(), why: status.message().to_owned() };
        // What a hub says has no source; what the connection says has: nobody there, or a server of something else.
        if std::error::Error::source(status).is_some() {
            return unreachable();
        }
        match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => unreachable(),
            code => Error::Hub {
                reason: format!("{code:?}"),
                message: status.message().to_owned(),
                retryable: matches!(code, tonic::Code::ResourceExhausted | tonic::Code::Aborted),
            },
        }
    }
}
