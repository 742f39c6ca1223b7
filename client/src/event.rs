//! What an app is told without asking.

use alloy_primitives::Bytes;
use proto::member::Misbehaviour;
use proto::{Amount, Asset, ChannelId, PaymentId};

/// Something happened. Events are a convenience: what counts is in the store and comes again with
/// [`Client::history`](crate::Client::history) and [`Client::balance`](crate::Client::balance).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session with the hub began.
    Connected,
    /// The session ended; another one is being tried.
    Disconnected {
        /// Why.
        why: String,
    },
    /// A payment was made: its receipt is verified and durable.
    Paid {
        /// The payment.
        id: PaymentId,
        /// The asset.
        asset: Asset,
        /// The payee.
        payee: ChannelId,
        /// What the payee gets.
        amount: Amount,
        /// What the hub got.
        fee: Amount,
    },
    /// A payment that nobody waits for any more, because the program was restarted, was refused: it was not made.
    NotPaid {
        /// The payment.
        id: PaymentId,
        /// A word for programs.
        reason: String,
    },
    /// Money came: the hub's voucher over it is verified and durable.
    Received {
        /// The asset.
        asset: Asset,
        /// The payer.
        payer: ChannelId,
        /// The sum of the payments.
        amount: Amount,
        /// The number of the credit.
        credit: u64,
        /// The payments.
        payments: Vec<ReceivedPayment>,
    },
    /// A payee acknowledged payments with its own key.
    Delivered {
        /// The asset.
        asset: Asset,
        /// The payee.
        payee: ChannelId,
        /// The payments.
        ids: Vec<PaymentId>,
    },
    /// A deposit is confirmed on the ledger.
    Deposited {
        /// The asset.
        asset: Asset,
        /// The member's deposits in all.
        member_deposit: Amount,
        /// The hub's deposits in all.
        hub_deposit: Amount,
    },
    /// A settlement was posted.
    Settled {
        /// The asset.
        asset: Asset,
        /// What the member has withdrawn in all.
        member_withdrawn: Amount,
        /// What the hub has withdrawn in all.
        hub_withdrawn: Amount,
    },
    /// A unilateral close began; the watchtower answers it.
    Closing {
        /// The asset.
        asset: Asset,
        /// The end of the challenge period, chain time in seconds.
        deadline_s: u64,
    },
    /// The account is paid out for ever.
    Final {
        /// The asset.
        asset: Asset,
    },
    /// The part of what was received that the contract holds no collateral for has changed.
    Unbacked {
        /// The asset.
        asset: Asset,
        /// How much it is now.
        amount: Amount,
    },
    /// The hub showed a newer signature of this member than the store had: the store was old. Settlements and the hub's
    /// collateral wait until nothing signed before can still be posted.
    StoreWasOld {
        /// The asset.
        asset: Asset,
        /// The lane.
        lane: u32,
    },
    /// After a loss of data the hub's voucher was taken as the new base of what was received.
    Rebased {
        /// The asset.
        asset: Asset,
        /// Its credit number.
        credits: u64,
    },
    /// The hub did what no honest hub does; consider closing the account.
    HubMisbehaved(Misbehaviour),
    /// The watchtower needs a person.
    Alarm {
        /// What it says.
        message: String,
    },
    /// The remote watchtower does not hold the newest evidence. Payments go on; what is received is acknowledged to its
    /// payers when the tower holds it.
    TowerAway {
        /// Why.
        why: String,
    },
    /// The remote watchtower holds everything again.
    TowerBack,
    /// The reader was too slow and missed that many events.
    Missed {
        /// How many.
        count: u64,
    },
}

/// One payment of [`Event::Received`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedPayment {
    /// Its id.
    pub id: PaymentId,
    /// The amount.
    pub amount: Amount,
    /// The payer's note.
    pub note: Bytes,
}
