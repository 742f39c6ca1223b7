//! Frames: what a payer sends. One lane, 1 to [`PAYMENTS_MAX`] payments and one voucher that covers them all.
//!
//! The voucher's `cumulative` is the lane's previous one plus every amount and fee; its `memo` is
//! `keccak256(abi.encode(previous memo, list hash))`, a running hash over everything that the lane ever paid. A
//! signature over the voucher is therefore a signature over the list.

use alloy_primitives::{B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::evidence::Signed;
use crate::ids::{AccountId, ChannelId, LANES, PaymentId, Side};
use crate::keys::{KeyError, PublicKey, SecretKey, Signature};
use crate::typed::{Domain, Voucher, chain_hash};

/// Most payments in a frame: one signature and one list hash are then a small part of the work.
pub const PAYMENTS_MAX: usize = 1024;
/// Most bytes in an encoded frame: a message of this size cannot hold up a connection.
pub const BYTES_MAX: usize = 64 * 1024;
/// Most different payees in a frame: each costs a credit, a receipt and a voucher.
pub const PAYEES_MAX: usize = 64;
/// Most bytes in a note: it is stored with the payment by three parties.
pub const NOTE_MAX: usize = 256;

/// One payment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Its identifier, chosen by the payer.
    pub id: PaymentId,
    /// The payee's channel with the same hub, or [`ChannelId::HUB`].
    pub payee: ChannelId,
    /// What the payee gets; positive.
    pub amount: Amount,
    /// What the hub gets.
    pub fee: Amount,
    /// A note of the payer, for the payee; at most [`NOTE_MAX`] bytes.
    pub note: Bytes,
}

/// A frame whose voucher's signature was verified, and whose list fits the voucher's memo and amounts given the state
/// of the lane before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// The payments, in the payer's order.
    pub payments: Vec<Payment>,
    /// The voucher that covers them.
    pub voucher: Signed<Voucher>,
}

/// A frame with the hash of its list, which is most of the work of deciding it: whoever has many threads makes it there.
#[derive(Clone, Debug)]
pub struct Listed {
    frame: Frame,
    list: B256,
}

/// Where a lane stands: what a frame continues from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneTip {
    /// Everything paid on the lane so far.
    pub cumulative: Amount,
    /// The running hash.
    pub memo: B256,
}

/// Why a frame is not even a candidate: nobody's state was looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No payments, or too many.
    #[error("a frame holds 1 to {PAYMENTS_MAX} payments, not {given}")]
    Count {
        /// Payments given.
        given: usize,
    },
    /// Too many different payees.
    #[error("a frame pays at most {PAYEES_MAX} different payees")]
    Payees,
    /// A payment of nothing.
    #[error("payment {id} is of zero; amounts are positive")]
    ZeroAmount {
        /// The payment.
        id: PaymentId,
    },
    /// A note that is too long.
    #[error("the note of payment {id} has {given} bytes; at most {NOTE_MAX} are kept")]
    NoteTooLong {
        /// The payment.
        id: PaymentId,
        /// Bytes given.
        given: usize,
    },
    /// The same id twice.
    #[error("payment id {id} stands twice in one frame")]
    DuplicateId {
        /// The id.
        id: PaymentId,
    },
    /// The lane does not exist.
    #[error("lane {given} does not exist: members have lanes 0 to 63")]
    Lane {
        /// The lane given.
        given: u32,
    },
    /// The sums do not fit 128 bits.
    #[error("the lane's cumulative amount would pass 2^128 - 1; open another lane")]
    Overflow,
    /// The signature is not the payer's.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Payment {
    /// Amount and fee.
    pub fn cost(&self) -> Option<Amount> {
        self.amount.checked_add(self.fee)
    }

    /// Whether two payments with one id are the same payment: lane and place do not count.
    pub fn same_content(&self, other: &Payment) -> bool {
        self == other
    }
}

impl Frame {
    /// Makes and signs the frame that continues `tip`.
    pub fn sign(
        domain: &Domain,
        key: &SecretKey,
        account: AccountId,
        lane: u32,
        tip: LaneTip,
        payments: Vec<Payment>,
    ) -> Result<Self, FrameError> {
        check_list(lane, &payments)?;
        let next = tip.after(&payments).ok_or(FrameError::Overflow)?;
        let voucher = Signed::sign(domain, key, member_voucher(account, lane, next));
        Ok(Frame { payments, voucher })
    }

    /// Takes a frame from the wire: checks its form and the signature over the voucher that it claims.
    ///
    /// Whether it continues its lane is for the one who knows the lane: see [`LaneTip::after`].
    pub fn verify(
        domain: &Domain,
        key: &PublicKey,
        account: AccountId,
        lane: u32,
        claimed: LaneTip,
        payments: Vec<Payment>,
        signature: Signature,
    ) -> Result<Self, FrameError> {
        check_list(lane, &payments)?;
        let voucher = Signed::verify(domain, key, member_voucher(account, lane, claimed), signature)?;
        Ok(Frame { payments, voucher })
    }

    /// The account that pays.
    pub fn account(&self) -> AccountId {
        self.voucher.body().account()
    }

    /// The lane.
    pub fn lane(&self) -> u32 {
        self.voucher.body().lane
    }

    /// Where the lane stands after this frame.
    pub fn tip(&self) -> LaneTip {
        LaneTip { cumulative: Amount::new(self.voucher.body().cumulative), memo: self.voucher.body().memo }
    }

    /// What the payer pays in all, fees included.
    pub fn cost(&self) -> Option<Amount> {
        self.payments.iter().try_fold(Amount::ZERO, |sum, p| sum.checked_add(p.cost()?))
    }
}

impl Listed {
    /// The frame.
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The frame, and its [`list_hash`].
    pub fn into_parts(self) -> (Frame, B256) {
        (self.frame, self.list)
    }
}

impl From<Frame> for Listed {
    fn from(frame: Frame) -> Self {
        Listed { list: list_hash(&frame.payments), frame }
    }
}

impl LaneTip {
    /// Where the lane stands after a list of payments, or `None` if the sum does not fit.
    pub fn after(&self, payments: &[Payment]) -> Option<LaneTip> {
        self.after_list(payments, || list_hash(payments))
    }

    /// The same where the list's hash is at hand.
    pub(crate) fn after_list(&self, payments: &[Payment], list: impl FnOnce() -> B256) -> Option<LaneTip> {
        let cumulative = payments.iter().try_fold(self.cumulative, |sum, p| sum.checked_add(p.cost()?))?;
        Some(LaneTip { cumulative, memo: chain_hash(self.memo, list()) })
    }
}

/// The member's voucher for a lane that stands at `tip`.
pub fn member_voucher(account: AccountId, lane: u32, tip: LaneTip) -> Voucher {
    Voucher {
        channelId: account.channel.0,
        asset: account.asset,
        payer: Side::Member as u8,
        lane,
        cumulative: tip.cumulative.get(),
        credits: 0,
        memo: tip.memo,
    }
}

/// `keccak256(abi.encode((bytes16 id, bytes32 payee, uint128 amount, uint128 fee, bytes32 noteHash)[]))`.
pub fn list_hash(payments: &[Payment]) -> B256 {
    let mut rows = abi_list(payments.len(), 5);
    for p in payments {
        put_words(&mut rows, p.id, p.amount, Some(p.payee.0));
        rows.extend_from_slice(&[0; 16]);
        rows.extend_from_slice(&p.fee.get().to_be_bytes());
        // Most payments have no note, and a hash is most of what a payment costs.
        let note = if p.note.is_empty() { KECCAK256_EMPTY } else { keccak256(&p.note) };
        rows.extend_from_slice(note.as_slice());
    }
    keccak256(rows)
}

/// `keccak256(abi.encode((bytes16 id, uint128 amount)[]))`: what a receipt's `payments` opens to.
pub fn payments_hash(payments: &[(PaymentId, Amount)]) -> B256 {
    opening_hash(payments.iter().copied())
}

/// As [`payments_hash`], of a list that stands elsewhere.
pub(crate) fn opening_hash(payments: impl ExactSizeIterator<Item = (PaymentId, Amount)>) -> B256 {
    let mut rows = abi_list(payments.len(), 2);
    payments.for_each(|(id, amount)| put_words(&mut rows, id, amount, None));
    keccak256(rows)
}

/// The head of the ABI encoding of one list: where it begins, and how many rows of `words` follow.
fn abi_list(rows: usize, words: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64 + rows * words * 32);
    bytes.extend_from_slice(U256::from(32).to_be_bytes::<32>().as_slice());
    bytes.extend_from_slice(U256::from(rows).to_be_bytes::<32>().as_slice());
    bytes
}

/// An id, perhaps a payee, and an amount, in the ABI's words.
fn put_words(bytes: &mut Vec<u8>, id: PaymentId, amount: Amount, payee: Option<B256>) {
    bytes.extend_from_slice(id.as_slice());
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend(payee.iter().flat_map(|payee| payee.0));
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(&amount.get().to_be_bytes());
}

fn check_list(lane: u32, payments: &[Payment]) -> Result<(), FrameError> {
    if payments.is_empty() || payments.len() > PAYMENTS_MAX {
        return Err(FrameError::Count { given: payments.len() });
    }
    if lane >= LANES {
        return Err(FrameError::Lane { given: lane });
    }
    for payment in payments {
        if payment.amount.is_zero() {
            return Err(FrameError::ZeroAmount { id: payment.id });
        }
        if payment.note.len() > NOTE_MAX {
            return Err(FrameError::NoteTooLong { id: payment.id, given: payment.note.len() });
        }
    }
    let mut payees: Vec<ChannelId> = payments.iter().map(|p| p.payee).collect();
    payees.dedup();
    payees.sort_unstable();
    payees.dedup();
    if payees.len() > PAYEES_MAX {
        return Err(FrameError::Payees);
    }
    let mut ids: Vec<PaymentId> = payments.iter().map(|p| p.id).collect();
    ids.sort_unstable();
    match ids.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(FrameError::DuplicateId { id: pair[0] }),
        None => Ok(()),
    }
}
