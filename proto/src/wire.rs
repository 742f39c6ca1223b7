//! The protobuf schema `payhub.v1` and the conversions between its messages and the protocol's types.
//!
//! The only module that knows prost. Everything from the wire passes through here once, and comes out as a type that
//! cannot be malformed, or as a [`WireError`] that names the field. Functions named `…_message` write a message,
//! functions named `read_…` read one. What carries a signature comes out verified ([`Signed`], [`Proven`], and a frame
//! by [`FrameParts::verify`]); where the reader must first look up whose key it is, the unverified body has a reader
//! of its own and cannot be mistaken for evidence.

pub mod tower;

use alloy_primitives::{Address, B256, Bytes};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::account::{Status, Totals};
use crate::amount::Amount;
use crate::evidence::{EvidenceError, Proof, Proven, Signed};
use crate::frame::{BYTES_MAX, Frame, FrameError, LaneTip, PAYMENTS_MAX, Payment, member_voucher};
use crate::ids::{AccountId, Asset, ChannelId, LANES, PaymentId, Side};
use crate::keys::{KeyError, PublicKey, Scheme, Signature};
use crate::stream::{LaneVoucher, StreamError, StreamId, StreamOpening, StreamTerms, TicksPaid};
use crate::typed::{Ack, Batch, Domain, Offer, Receipt, Settlement, Voucher, chain_hash};

// The generated code documents itself in the schema.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("payhub.v1");
}

/// The encoded descriptor set of the schema, for server reflection.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/payhub.v1.bin"));

/// Most bytes of one message that a member accepts: a page of credits or digests stays far below it.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Digests in one page of a `Delivered`: an `Ack` comes at least as often, so one page is the usual case.
pub const DELIVERED_PAGE: usize = 1024;

/// A field of a message that the sender's program must not have written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field} is refused: {why}")]
pub struct WireError {
    /// The field, as the schema calls it.
    pub field: &'static str,
    /// What is wrong with it.
    pub why: Malformed,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Bytes of the wrong length.
    #[error("it has {given} bytes and must have {expected}")]
    Length {
        /// Bytes wanted.
        expected: usize,
        /// Bytes given.
        given: usize,
    },
    /// A message that must be there is not.
    #[error("it is missing")]
    Missing,
    /// A number that means nothing here.
    #[error("{given} is not a value that it can have")]
    Value {
        /// The number given.
        given: u64,
    },
    /// A list or message that is too long.
    #[error("it has {given} entries or bytes; at most {max} are accepted")]
    TooMany {
        /// How many there are.
        given: usize,
        /// How many there may be.
        max: usize,
    },
    /// A key or signature is bad.
    #[error(transparent)]
    Key(KeyError),
    /// A stream does not hold.
    #[error(transparent)]
    Stream(StreamError),
    /// The evidence does not hold.
    #[error(transparent)]
    Evidence(EvidenceError),
}

/// A frame as it came, well-formed but not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameParts {
    /// The session's number for it.
    pub tag: u64,
    /// The asset.
    pub asset: Asset,
    /// The lane; below [`LANES`].
    pub lane: u32,
    /// Where the payer says the lane stands after it.
    pub claimed: LaneTip,
    /// The payments.
    pub payments: Vec<Payment>,
    /// The payer's signature, of a length that is checked against his scheme.
    pub signature: Bytes,
}

/// An opening as it came, well-formed but not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpeningParts {
    /// The session's number for it.
    pub tag: u64,
    /// The asset.
    pub asset: Asset,
    /// The lane; below [`LANES`].
    pub lane: u32,
    /// Where the payer says the lane stands with it.
    pub claimed: LaneTip,
    /// What a tick is.
    pub terms: StreamTerms,
    /// How many ticks it has.
    pub ticks: u32,
    /// The end of the chain.
    pub anchor: B256,
    /// The payer's signature, of a length that is checked against his scheme.
    pub signature: Bytes,
}

/// A fold as it came, well-formed but not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoldParts {
    /// The session's number for it.
    pub tag: u64,
    /// The asset.
    pub asset: Asset,
    /// The lane; below [`LANES`].
    pub lane: u32,
    /// Where the payer says the lane stands with it.
    pub claimed: LaneTip,
    /// The payer's signature, of a length that is checked against his scheme.
    pub signature: Bytes,
}

/// Ticks that a flush accepted, as their payer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicksAccepted {
    /// The lane.
    pub lane: u32,
    /// The index accepted before.
    pub before: u32,
    /// The highest index accepted.
    pub index: u32,
    /// The opening's anchor.
    pub anchor: B256,
    /// What a tick is.
    pub terms: StreamTerms,
}

/// Payments of one payer to one payee in one flush, as the payee is told of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The payee account's number for it.
    pub number: u64,
    /// The payer's channel.
    pub payer: ChannelId,
    /// The sum.
    pub amount: Amount,
    /// The payee's hub stream after it.
    pub total: Amount,
    /// The payments, in record order.
    pub payments: Vec<CreditedPayment>,
}

/// One payment inside a [`Credit`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreditedPayment {
    /// Its id.
    pub id: PaymentId,
    /// What the payee gets.
    pub amount: Amount,
    /// The payer's note.
    pub note: Bytes,
}

/// A payee's acknowledgement as its payer is told of it; the `Ack` is verified with the payee's pinned key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// The payee.
    pub payee: ChannelId,
    /// The payee's signed word.
    pub ack: Signed<Ack>,
    /// The payer's first receipt that this covers.
    pub credit: u64,
    /// `head(credit - 1)`.
    pub head_before: B256,
    /// Digests of the receipts after `credit`.
    pub digests: Vec<B256>,
    /// Whether the digests end at the acknowledged credit.
    pub last_page: bool,
}

// ---- fields --------------------------------------------------------------------------------------------------------

/// The 16 big-endian bytes of an amount.
pub fn amount_bytes(amount: Amount) -> prost::bytes::Bytes {
    prost::bytes::Bytes::copy_from_slice(&amount.get().to_be_bytes())
}

/// The bytes of an address, digest or id.
pub fn bytes_of(bytes: impl AsRef<[u8]>) -> prost::bytes::Bytes {
    prost::bytes::Bytes::copy_from_slice(bytes.as_ref())
}

/// Bytes of a message on the wire, without the few of its framing.
pub fn encoded_len(message: &impl Message) -> usize {
    message.encoded_len()
}

/// Reads an amount of exactly 16 bytes.
pub fn read_amount(field: &'static str, bytes: &[u8]) -> Result<Amount, WireError> {
    fixed::<16>(field, bytes).map(|b| Amount::new(u128::from_be_bytes(b)))
}

/// Reads an address of exactly 20 bytes.
pub fn read_address(field: &'static str, bytes: &[u8]) -> Result<Address, WireError> {
    fixed::<20>(field, bytes).map(Address::from)
}

/// Reads a digest, key or nonce of exactly 32 bytes.
pub fn read_b256(field: &'static str, bytes: &[u8]) -> Result<B256, WireError> {
    fixed::<32>(field, bytes).map(B256::from)
}

/// Reads a channel id of exactly 32 bytes.
pub fn read_channel(field: &'static str, bytes: &[u8]) -> Result<ChannelId, WireError> {
    read_b256(field, bytes).map(ChannelId)
}

/// Reads a payment id of exactly 16 bytes.
pub fn read_payment_id(field: &'static str, bytes: &[u8]) -> Result<PaymentId, WireError> {
    fixed::<16>(field, bytes).map(|b| PaymentId(b.into()))
}

/// Reads a signature of `scheme`.
pub fn read_signature(field: &'static str, scheme: Scheme, bytes: &[u8]) -> Result<Signature, WireError> {
    Signature::from_slice(scheme, bytes).map_err(|e| refuse(field, Malformed::Key(e)))
}

/// The message of a field that must be there.
pub fn required<T>(field: &'static str, message: Option<T>) -> Result<T, WireError> {
    message.ok_or(refuse(field, Malformed::Missing))
}

// ---- payments and frames -------------------------------------------------------------------------------------------

/// Writes a payment.
pub fn payment_message(payment: &Payment) -> v1::Payment {
    v1::Payment {
        id: bytes_of(payment.id.0),
        payee: bytes_of(payment.payee.0),
        amount: amount_bytes(payment.amount),
        fee: amount_bytes(payment.fee),
        note: payment.note.0.clone(),
    }
}

/// Reads a payment.
pub fn read_payment(message: v1::Payment) -> Result<Payment, WireError> {
    Ok(Payment {
        id: read_payment_id("payment.id", &message.id)?,
        payee: read_channel("payment.payee", &message.payee)?,
        amount: read_amount("payment.amount", &message.amount)?,
        fee: read_amount("payment.fee", &message.fee)?,
        note: Bytes(message.note),
    })
}

/// Writes a frame.
pub fn frame_message(tag: u64, frame: &Frame) -> v1::Frame {
    let tip = frame.tip();
    v1::Frame {
        tag,
        asset: bytes_of(frame.account().asset),
        lane: frame.lane(),
        payments: frame.payments.iter().map(payment_message).collect(),
        cumulative: amount_bytes(tip.cumulative),
        memo: bytes_of(tip.memo),
        signature: bytes_of(frame.voucher.signature().as_slice()),
    }
}

/// Reads a frame; its size is checked first, because everything after it costs time in proportion.
pub fn read_frame(message: v1::Frame) -> Result<FrameParts, WireError> {
    at_most("frame.payments", message.payments.len(), PAYMENTS_MAX)?;
    at_most("frame", message.encoded_len(), BYTES_MAX)?;
    Ok(FrameParts {
        tag: message.tag,
        asset: read_address("frame.asset", &message.asset)?,
        lane: read_lane_number("frame.lane", message.lane)?,
        claimed: read_tip("frame.cumulative", &message.cumulative, "frame.memo", &message.memo)?,
        payments: message.payments.into_iter().map(read_payment).collect::<Result<_, _>>()?,
        signature: Bytes(message.signature),
    })
}

impl FrameParts {
    /// Checks the list and the payer's signature over the voucher that the frame claims.
    pub fn verify(self, domain: &Domain, key: &PublicKey, channel: ChannelId) -> Result<Frame, FrameError> {
        let account = AccountId { channel, asset: self.asset };
        let signature = Signature::from_slice(key.scheme, &self.signature)?;
        Frame::verify(domain, key, account, self.lane, self.claimed, self.payments, signature)
    }
}

/// Writes a lane's newest voucher.
pub fn lane_message(voucher: &LaneVoucher) -> v1::LaneState {
    let (tip, signature, ticks) = match voucher {
        LaneVoucher::Plain(voucher) => (tip_of(voucher), voucher.signature(), None),
        LaneVoucher::Ticks(lane) => {
            let state = v1::TickState {
                terms: Some(terms_message(lane.opening().terms())),
                ticks: lane.opening().voucher().body().ticks,
                anchor: bytes_of(lane.anchor()),
                index: lane.index(),
                word: bytes_of(lane.word()),
            };
            (lane.opening().tip(0), lane.opening().voucher().signature(), Some(state))
        }
    };
    v1::LaneState {
        lane: voucher.lane(),
        cumulative: amount_bytes(tip.cumulative),
        memo: bytes_of(tip.memo),
        signature: bytes_of(signature.as_slice()),
        ticks,
    }
}

/// Reads a member's own voucher of a lane and checks his signature over it, and for ticks the word revealed.
pub fn read_lane(
    domain: &Domain,
    member_key: &PublicKey,
    account: AccountId,
    message: &v1::LaneState,
) -> Result<LaneVoucher, WireError> {
    let lane = read_lane_number("lane.lane", message.lane)?;
    let tip = read_tip("lane.cumulative", &message.cumulative, "lane.memo", &message.memo)?;
    let signature = read_signature("lane.signature", member_key.scheme, &message.signature)?;
    let Some(ticks) = &message.ticks else {
        return Signed::verify(domain, member_key, member_voucher(account, lane, tip), signature)
            .map(LaneVoucher::Plain)
            .map_err(|e| refuse("lane.signature", Malformed::Key(e)));
    };
    let bad = |error| refuse("lane.ticks", Malformed::Stream(error));
    let terms = read_terms("lane.ticks.terms", ticks.terms.as_ref())?;
    let anchor = read_b256("lane.ticks.anchor", &ticks.anchor)?;
    let word = read_b256("lane.ticks.word", &ticks.word)?;
    let opened = StreamOpening::verify(domain, member_key, account, lane, tip, terms, ticks.ticks, anchor, signature);
    let opening = opened.map_err(bad)?;
    let revealed = opening.chain().advance(ticks.index, word).map_err(bad)?;
    let mut voucher = LaneVoucher::opened(opening);
    if let Some(lane) = voucher.ticks_mut() {
        lane.advance(&revealed);
    }
    Ok(voucher)
}

// ---- streams -------------------------------------------------------------------------------------------------------

/// Writes an opening.
pub fn opening_message(tag: u64, opening: &StreamOpening) -> v1::StreamOpening {
    let (body, tip) = (opening.voucher().body(), opening.tip(0));
    v1::StreamOpening {
        tag,
        asset: bytes_of(body.asset),
        lane: body.lane,
        terms: Some(terms_message(opening.terms())),
        ticks: body.ticks,
        anchor: bytes_of(body.anchor),
        cumulative: amount_bytes(tip.cumulative),
        memo: bytes_of(tip.memo),
        signature: bytes_of(opening.voucher().signature().as_slice()),
    }
}

/// Reads an opening.
pub fn read_opening(message: v1::StreamOpening) -> Result<OpeningParts, WireError> {
    Ok(OpeningParts {
        tag: message.tag,
        asset: read_address("opening.asset", &message.asset)?,
        lane: read_lane_number("opening.lane", message.lane)?,
        claimed: read_tip("opening.cumulative", &message.cumulative, "opening.memo", &message.memo)?,
        terms: read_terms("opening.terms", message.terms.as_ref())?,
        ticks: message.ticks,
        anchor: read_b256("opening.anchor", &message.anchor)?,
        signature: Bytes(message.signature),
    })
}

impl OpeningParts {
    /// Checks the bounds and the payer's signature.
    pub fn verify(self, domain: &Domain, key: &PublicKey, channel: ChannelId) -> Result<StreamOpening, StreamError> {
        let account = AccountId { channel, asset: self.asset };
        let signature = Signature::from_slice(key.scheme, &self.signature)?;
        let OpeningParts { lane, claimed, terms, ticks, anchor, .. } = self;
        StreamOpening::verify(domain, key, account, lane, claimed, terms, ticks, anchor, signature)
    }
}

/// Writes a fold.
pub fn fold_message(tag: u64, fold: &Signed<Voucher>) -> v1::Fold {
    v1::Fold {
        tag,
        asset: bytes_of(fold.body().asset),
        lane: fold.body().lane,
        cumulative: amount_bytes(Amount::new(fold.body().cumulative)),
        memo: bytes_of(fold.body().memo),
        signature: bytes_of(fold.signature().as_slice()),
    }
}

/// Reads a fold.
pub fn read_fold(message: v1::Fold) -> Result<FoldParts, WireError> {
    Ok(FoldParts {
        tag: message.tag,
        asset: read_address("fold.asset", &message.asset)?,
        lane: read_lane_number("fold.lane", message.lane)?,
        claimed: read_tip("fold.cumulative", &message.cumulative, "fold.memo", &message.memo)?,
        signature: Bytes(message.signature),
    })
}

impl TicksAccepted {
    /// The payment that they are; `None` where the numbers are impossible.
    pub fn payment(&self) -> Option<Payment> {
        let count = u128::from(self.index.checked_sub(self.before).filter(|count| *count > 0)?);
        let StreamTerms { stream, payee, amount, fee } = self.terms;
        let (amount, fee) = (amount.checked_mul(count)?, fee.checked_mul(count)?);
        Some(Payment { id: stream.payment(self.index), payee, amount, fee, note: Bytes::new() })
    }
}

impl FoldParts {
    /// Checks the payer's signature.
    pub fn verify(self, domain: &Domain, key: &PublicKey, channel: ChannelId) -> Result<Signed<Voucher>, KeyError> {
        let account = AccountId { channel, asset: self.asset };
        let signature = Signature::from_slice(key.scheme, &self.signature)?;
        Signed::verify(domain, key, member_voucher(account, self.lane, self.claimed), signature)
    }
}

/// Writes a tick.
pub fn tick_message(asset: Asset, lane: u32, index: u32, word: B256) -> v1::Tick {
    v1::Tick { asset: bytes_of(asset), lane, index, word: bytes_of(word) }
}

/// Reads asset and word of a tick.
pub fn read_tick(message: &v1::Tick) -> Result<(Asset, B256), WireError> {
    Ok((read_address("tick.asset", &message.asset)?, read_b256("tick.word", &message.word)?))
}

/// Writes what a flush accepted of an opening.
pub fn ticks_accepted_message(paid: &TicksPaid) -> v1::TicksAccepted {
    v1::TicksAccepted {
        lane: paid.lane,
        before: paid.before,
        index: paid.index,
        anchor: bytes_of(paid.anchor),
        terms: Some(terms_message(&paid.terms)),
    }
}

/// Reads what a flush accepted of an opening.
pub fn read_ticks_accepted(message: &v1::TicksAccepted) -> Result<TicksAccepted, WireError> {
    Ok(TicksAccepted {
        lane: read_lane_number("ticks.lane", message.lane)?,
        before: message.before,
        index: message.index,
        anchor: read_b256("ticks.anchor", &message.anchor)?,
        terms: read_terms("ticks.terms", message.terms.as_ref())?,
    })
}

fn terms_message(terms: &StreamTerms) -> v1::StreamTerms {
    v1::StreamTerms {
        stream: bytes_of(terms.stream.0),
        payee: bytes_of(terms.payee.0),
        amount: amount_bytes(terms.amount),
        fee: amount_bytes(terms.fee),
    }
}

fn read_terms(field: &'static str, message: Option<&v1::StreamTerms>) -> Result<StreamTerms, WireError> {
    let message = required(field, message)?;
    Ok(StreamTerms {
        stream: fixed::<12>("terms.stream", &message.stream).map(|bytes| StreamId(bytes.into()))?,
        payee: read_channel("terms.payee", &message.payee)?,
        amount: read_amount("terms.amount", &message.amount)?,
        fee: read_amount("terms.fee", &message.fee)?,
    })
}

// ---- the hub's word ------------------------------------------------------------------------------------------------

/// Writes a proof.
pub fn proof_message(proof: &Proof) -> v1::Proof {
    let signature = bytes_of(proof.signature().as_slice());
    match proof {
        Proof::Direct(_) => v1::Proof { signature, batched: false, flush: 0, path: Vec::new() },
        Proof::Batch { flush, path, .. } => {
            // One allocation for the whole path: the steps are parts of it.
            let mut steps = prost::bytes::Bytes::from(path.concat());
            let path = path.iter().map(|step| steps.split_to(step.len())).collect();
            v1::Proof { signature, batched: true, flush: *flush, path }
        }
    }
}

/// Reads a proof by a key of `scheme`; nothing is verified yet.
pub fn read_proof(scheme: Scheme, message: &v1::Proof) -> Result<Proof, WireError> {
    let signature = read_signature("proof.signature", scheme, &message.signature)?;
    at_most("proof.path", message.path.len(), crate::batch::PATH_MAX)?;
    if !message.batched {
        let stray = message.flush != 0 || !message.path.is_empty();
        return if stray {
            Err(refuse("proof.batched", Malformed::Value { given: 0 }))
        } else {
            Ok(Proof::Direct(signature))
        };
    }
    let path = message.path.iter().map(|step| read_b256("proof.path", step)).collect::<Result<_, _>>()?;
    Ok(Proof::Batch { flush: message.flush, path, signature })
}

/// Writes the hub's newest voucher of an account.
pub fn hub_voucher_message(voucher: &Proven<Voucher>) -> v1::HubVoucher {
    v1::HubVoucher {
        cumulative: amount_bytes(Amount::new(voucher.body().cumulative)),
        credits: voucher.body().credits,
        memo: bytes_of(voucher.body().memo),
        proof: Some(proof_message(voucher.proof())),
    }
}

/// Reads a hub voucher of an account and checks the hub's word for it.
pub fn read_hub_voucher(
    domain: &Domain,
    hub_key: &PublicKey,
    account: AccountId,
    message: &v1::HubVoucher,
) -> Result<Proven<Voucher>, WireError> {
    let cumulative = read_amount("hub_voucher.cumulative", &message.cumulative)?;
    let memo = read_b256("hub_voucher.memo", &message.memo)?;
    let body = hub_voucher(account, cumulative, message.credits, memo);
    let proof = read_proof(hub_key.scheme, required("hub_voucher.proof", message.proof.as_ref())?)?;
    Proven::verify(domain, hub_key, body, proof).map_err(|e| refuse("hub_voucher.proof", Malformed::Evidence(e)))
}

/// The hub's voucher of an account: lane 0, the newest credit number, the head of the credit chain.
pub fn hub_voucher(account: AccountId, cumulative: Amount, credits: u64, head: B256) -> Voucher {
    Voucher {
        channelId: account.channel.0,
        asset: account.asset,
        payer: Side::Hub as u8,
        lane: 0,
        cumulative: cumulative.get(),
        credits,
        memo: head,
    }
}

/// Writes a receipt.
pub fn receipt_message(receipt: &Proven<Receipt>) -> v1::Receipt {
    let body = receipt.body();
    v1::Receipt {
        payee: bytes_of(body.channelId),
        asset: bytes_of(body.asset),
        credit: body.credit,
        amount: amount_bytes(Amount::new(body.amount)),
        total: amount_bytes(Amount::new(body.total)),
        payments: bytes_of(body.payments),
        proof: Some(proof_message(receipt.proof())),
    }
}

/// Reads what a receipt says, so that its payee's hub key can be looked up; this is not evidence yet.
pub fn read_receipt_body(message: &v1::Receipt) -> Result<Receipt, WireError> {
    Ok(Receipt {
        channelId: read_b256("receipt.payee", &message.payee)?,
        asset: read_address("receipt.asset", &message.asset)?,
        credit: message.credit,
        amount: read_amount("receipt.amount", &message.amount)?.get(),
        total: read_amount("receipt.total", &message.total)?.get(),
        payments: read_b256("receipt.payments", &message.payments)?,
    })
}

/// Reads a receipt and checks the hub's word for it with the hub key of the payee's terms.
pub fn read_receipt(domain: &Domain, hub_key: &PublicKey, message: &v1::Receipt) -> Result<Proven<Receipt>, WireError> {
    let body = read_receipt_body(message)?;
    let proof = read_proof(hub_key.scheme, required("receipt.proof", message.proof.as_ref())?)?;
    Proven::verify(domain, hub_key, body, proof).map_err(|e| refuse("receipt.proof", Malformed::Evidence(e)))
}

/// Writes the newest batch signature that its holder has seen; `None` where the proof is no batch.
pub fn batch_seen_message(digest: B256, proof: &Proof) -> Option<v1::BatchSeen> {
    let Proof::Batch { flush, path, signature } = proof else { return None };
    let root = crate::batch::root_of(&digest, path)?;
    Some(v1::BatchSeen { flush: *flush, root: bytes_of(root), signature: bytes_of(signature.as_slice()) })
}

/// Reads a batch that somebody saw; returns flush and root if the hub really signed them.
pub fn read_batch_seen(
    domain: &Domain,
    hub_key: &PublicKey,
    message: &v1::BatchSeen,
) -> Result<(u64, B256), WireError> {
    let root = read_b256("newest_batch.root", &message.root)?;
    let signature = read_signature("newest_batch.signature", hub_key.scheme, &message.signature)?;
    Signed::verify(domain, hub_key, Batch { flush: message.flush, root }, signature)
        .map_err(|e| refuse("newest_batch.signature", Malformed::Key(e)))?;
    Ok((message.flush, root))
}

/// Writes a hub's offer.
pub fn offer_message(offer: &Signed<Offer>) -> v1::SignedOffer {
    v1::SignedOffer {
        scheme: u32::from(offer.body().hubScheme),
        hub_key: bytes_of(offer.body().hubKey),
        expires: offer.body().expires,
        signature: bytes_of(offer.signature().as_slice()),
    }
}

/// Reads an offer: the key is checked in full and the offer is signed with it.
pub fn read_offer(
    domain: &Domain,
    hub: Address,
    challenge_period_s: u32,
    message: &v1::SignedOffer,
) -> Result<Signed<Offer>, WireError> {
    let unknown = || refuse("offer.scheme", Malformed::Value { given: u64::from(message.scheme) });
    let number = u8::try_from(message.scheme).map_err(|_| unknown())?;
    let scheme = Scheme::from_number(number).map_err(|_| unknown())?;
    let bytes = read_b256("offer.hub_key", &message.hub_key)?;
    let key = PublicKey::new(scheme, bytes).map_err(|e| refuse("offer.hub_key", Malformed::Key(e)))?;
    let signature = read_signature("offer.signature", scheme, &message.signature)?;
    let (expires, period) = (message.expires, challenge_period_s);
    let offer = Offer { hub, hubKey: bytes, hubScheme: number, challengePeriod: period, expires };
    Signed::verify(domain, &key, offer, signature).map_err(|e| refuse("offer.signature", Malformed::Key(e)))
}

// ---- credits and acknowledgements ----------------------------------------------------------------------------------

/// Writes a credit.
pub fn credit_message(credit: &Credit) -> v1::Credit {
    v1::Credit {
        number: credit.number,
        payer: bytes_of(credit.payer.0),
        amount: amount_bytes(credit.amount),
        total: amount_bytes(credit.total),
        payments: credit.payments.iter().map(credited_payment_message).collect(),
    }
}

/// Reads a credit.
pub fn read_credit(message: v1::Credit) -> Result<Credit, WireError> {
    Ok(Credit {
        number: message.number,
        payer: read_channel("credit.payer", &message.payer)?,
        amount: read_amount("credit.amount", &message.amount)?,
        total: read_amount("credit.total", &message.total)?,
        payments: message.payments.into_iter().map(read_credited_payment).collect::<Result<_, _>>()?,
    })
}

/// Writes a payment as its payee is told of it.
pub fn credited_payment_message(payment: &CreditedPayment) -> v1::CreditedPayment {
    v1::CreditedPayment {
        id: bytes_of(payment.id.0),
        amount: amount_bytes(payment.amount),
        note: payment.note.0.clone(),
    }
}

/// Reads a payment as its payee is told of it.
pub fn read_credited_payment(message: v1::CreditedPayment) -> Result<CreditedPayment, WireError> {
    Ok(CreditedPayment {
        id: read_payment_id("credited.id", &message.id)?,
        amount: read_amount("credited.amount", &message.amount)?,
        note: Bytes(message.note),
    })
}

impl Credit {
    /// The receipt that the payer was given for this credit of `account`.
    pub fn receipt(&self, account: AccountId) -> Receipt {
        let rows: Vec<_> = self.payments.iter().map(|p| (p.id, p.amount)).collect();
        Receipt {
            channelId: account.channel.0,
            asset: account.asset,
            credit: self.number,
            amount: self.amount.get(),
            total: self.total.get(),
            payments: crate::frame::payments_hash(&rows),
        }
    }
}

/// Writes an acknowledgement.
pub fn ack_message(ack: &Signed<Ack>) -> v1::Ack {
    v1::Ack {
        asset: bytes_of(ack.body().asset),
        credits: ack.body().credits,
        head: bytes_of(ack.body().head),
        signature: bytes_of(ack.signature().as_slice()),
    }
}

/// Reads the acknowledgement of a channel and checks its member's signature over it.
pub fn read_ack(
    domain: &Domain,
    member_key: &PublicKey,
    channel: ChannelId,
    message: &v1::Ack,
) -> Result<Signed<Ack>, WireError> {
    let asset = read_address("ack.asset", &message.asset)?;
    let head = read_b256("ack.head", &message.head)?;
    let signature = read_signature("ack.signature", member_key.scheme, &message.signature)?;
    let body = Ack { channelId: channel.0, asset, credits: message.credits, head };
    Signed::verify(domain, member_key, body, signature).map_err(|e| refuse("ack.signature", Malformed::Key(e)))
}

/// Writes an acknowledgement for one of its payers.
pub fn delivered_message(delivered: &Delivered) -> v1::Delivered {
    v1::Delivered {
        payee: bytes_of(delivered.payee.0),
        ack: Some(ack_message(&delivered.ack)),
        credit: delivered.credit,
        head_before: bytes_of(delivered.head_before),
        digests: delivered.digests.iter().map(bytes_of).collect(),
        last_page: delivered.last_page,
    }
}

/// Reads an acknowledgement for a payer; `payee_key` is the key of the payee's pinned terms.
pub fn read_delivered(domain: &Domain, payee_key: &PublicKey, message: &v1::Delivered) -> Result<Delivered, WireError> {
    let payee = read_channel("delivered.payee", &message.payee)?;
    at_most("delivered.digests", message.digests.len(), DELIVERED_PAGE)?;
    Ok(Delivered {
        payee,
        ack: read_ack(domain, payee_key, payee, required("delivered.ack", message.ack.as_ref())?)?,
        credit: message.credit,
        head_before: read_b256("delivered.head_before", &message.head_before)?,
        digests: message.digests.iter().map(|d| read_b256("delivered.digests", d)).collect::<Result<_, _>>()?,
        last_page: message.last_page,
    })
}

/// `head(n) = keccak256(abi.encode(head(n - 1), digest of receipt n))`, from `head` over the digests that follow it.
pub fn head_after(head: B256, digests: impl IntoIterator<Item = B256>) -> B256 {
    digests.into_iter().fold(head, chain_hash)
}

// ---- settlements and ledger totals ---------------------------------------------------------------------------------

/// Writes a proposed settlement; `tag` names the request that it answers, 0 where the hub began.
pub fn proposal_message(tag: u64, settlement: &Settlement) -> v1::SettlementProposal {
    v1::SettlementProposal {
        tag,
        asset: bytes_of(settlement.asset),
        seq: settlement.seq,
        member_withdrawn: amount_bytes(Amount::new(settlement.memberWithdrawn)),
        hub_withdrawn: amount_bytes(Amount::new(settlement.hubWithdrawn)),
        valid_until: settlement.validUntil,
        close: settlement.close,
    }
}

/// Reads a proposed settlement of a channel.
pub fn read_proposal(channel: ChannelId, message: &v1::SettlementProposal) -> Result<Settlement, WireError> {
    Ok(Settlement {
        channelId: channel.0,
        asset: read_address("proposal.asset", &message.asset)?,
        seq: message.seq,
        memberWithdrawn: read_amount("proposal.member_withdrawn", &message.member_withdrawn)?.get(),
        hubWithdrawn: read_amount("proposal.hub_withdrawn", &message.hub_withdrawn)?.get(),
        validUntil: message.valid_until,
        close: message.close,
    })
}

/// Writes the member's answer to a proposal: his signature, or that he declines.
pub fn answer_message(asset: Asset, seq: u64, signed: Option<&Signed<Settlement>>) -> v1::SettlementAnswer {
    let signature = signed.map(|s| bytes_of(s.signature().as_slice())).unwrap_or_default();
    v1::SettlementAnswer { asset: bytes_of(asset), seq, signature }
}

/// Reads the member's answer: asset, number and his signature, which is verified against the proposal that the hub
/// kept; `None` where he declines.
pub fn read_answer(
    scheme: Scheme,
    message: &v1::SettlementAnswer,
) -> Result<(Asset, u64, Option<Signature>), WireError> {
    let asset = read_address("answer.asset", &message.asset)?;
    let signature = match message.signature.is_empty() {
        true => None,
        false => Some(read_signature("answer.signature", scheme, &message.signature)?),
    };
    Ok((asset, message.seq, signature))
}

/// Writes what the ledger says of an account.
pub fn totals_message(totals: &Totals) -> v1::LedgerTotals {
    let status = match totals.status {
        Status::Open => v1::AccountStatus::Open,
        Status::Closing => v1::AccountStatus::Closing,
        Status::Final => v1::AccountStatus::Final,
    };
    v1::LedgerTotals {
        member_deposit: amount_bytes(totals.member_deposit),
        hub_deposit: amount_bytes(totals.hub_deposit),
        member_withdrawn: amount_bytes(totals.member_withdrawn),
        hub_withdrawn: amount_bytes(totals.hub_withdrawn),
        seq: totals.seq,
        status: status.into(),
        deadline: totals.deadline,
    }
}

/// Reads what the sender says that the ledger says. The proven totals are not told; a member reads them, as everything
/// that he counts on, from the ledger.
pub fn read_totals(message: &v1::LedgerTotals) -> Result<Totals, WireError> {
    let unknown = || refuse("ledger.status", Malformed::Value { given: u64::from(message.status.unsigned_abs()) });
    let status = match v1::AccountStatus::try_from(message.status).map_err(|_| unknown())? {
        v1::AccountStatus::Open => Status::Open,
        v1::AccountStatus::Closing => Status::Closing,
        v1::AccountStatus::Final => Status::Final,
    };
    Ok(Totals {
        member_deposit: read_amount("ledger.member_deposit", &message.member_deposit)?,
        hub_deposit: read_amount("ledger.hub_deposit", &message.hub_deposit)?,
        member_withdrawn: read_amount("ledger.member_withdrawn", &message.member_withdrawn)?,
        hub_withdrawn: read_amount("ledger.hub_withdrawn", &message.hub_withdrawn)?,
        seq: message.seq,
        status,
        deadline: message.deadline,
        ..Totals::default()
    })
}

/// Writes the state of an account for a `Welcome`.
pub fn account_message<'a>(
    asset: Asset,
    totals: &Totals,
    lanes: impl IntoIterator<Item = &'a LaneVoucher>,
    hub_voucher: Option<&Proven<Voucher>>,
    kept: impl IntoIterator<Item = &'a Settlement>,
) -> v1::AccountState {
    v1::AccountState {
        asset: bytes_of(asset),
        ledger: Some(totals_message(totals)),
        lanes: lanes.into_iter().map(lane_message).collect(),
        hub_voucher: hub_voucher.map(hub_voucher_message),
        kept: kept.into_iter().map(|s| proposal_message(0, s)).collect(),
    }
}

// ---- helpers -------------------------------------------------------------------------------------------------------

fn refuse(field: &'static str, why: Malformed) -> WireError {
    WireError { field, why }
}

fn fixed<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], WireError> {
    bytes.try_into().map_err(|_| refuse(field, Malformed::Length { expected: N, given: bytes.len() }))
}

fn at_most(field: &'static str, given: usize, max: usize) -> Result<(), WireError> {
    if given > max { Err(refuse(field, Malformed::TooMany { given, max })) } else { Ok(()) }
}

fn read_lane_number(field: &'static str, lane: u32) -> Result<u32, WireError> {
    if lane < LANES { Ok(lane) } else { Err(refuse(field, Malformed::Value { given: u64::from(lane) })) }
}

fn tip_of(voucher: &Signed<Voucher>) -> LaneTip {
    LaneTip { cumulative: Amount::new(voucher.body().cumulative), memo: voucher.body().memo }
}

fn read_tip(
    cumulative_field: &'static str,
    cumulative: &[u8],
    memo_field: &'static str,
    memo: &[u8],
) -> Result<LaneTip, WireError> {
    Ok(LaneTip { cumulative: read_amount(cumulative_field, cumulative)?, memo: read_b256(memo_field, memo)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::{BatchTree, sign_batch};
    use crate::keys::SecretKey;

    fn domain() -> Domain {
        Domain::new(7, Address::repeat_byte(1))
    }

    fn account() -> AccountId {
        AccountId { channel: ChannelId(B256::repeat_byte(2)), asset: Address::repeat_byte(3) }
    }

    fn payment(id: u8) -> Payment {
        Payment {
            id: PaymentId([id; 16].into()),
            payee: ChannelId(B256::repeat_byte(9)),
            amount: Amount::new(5),
            fee: Amount::new(1),
            note: Bytes::from_static(b"tea"),
        }
    }

    fn frame(key: &SecretKey) -> Frame {
        Frame::sign(&domain(), key, account(), 3, LaneTip::default(), vec![payment(1), payment(2)]).expect("fits")
    }

    #[test]
    fn a_frame_passes_the_wire_in_both_schemes_and_no_altered_one_does() {
        for scheme in [Scheme::Ed25519, Scheme::Secp256k1] {
            let key = SecretKey::derive(scheme, &[1; 32], "voucher");
            let frame = frame(&key);
            let message = frame_message(4, &frame);
            let parts = read_frame(message.clone()).expect("well-formed");
            assert_eq!(parts.tag, 4);
            assert_eq!(parts.verify(&domain(), &key.public(), account().channel).as_ref(), Ok(&frame));
            let mut other_amount = message.clone();
            other_amount.cumulative = amount_bytes(Amount::new(13));
            let verified =
                read_frame(other_amount).expect("well-formed").verify(&domain(), &key.public(), account().channel);
            assert!(verified.is_err());
        }
    }

    fn opening(key: &SecretKey, words: &crate::stream::Words) -> StreamOpening {
        let (payee, amount, fee) = (ChannelId(B256::repeat_byte(9)), Amount::new(2), Amount::new(1));
        let terms = StreamTerms { stream: StreamId([7; 12].into()), payee, amount, fee };
        StreamOpening::sign(&domain(), key, account(), 3, LaneTip::default(), terms, words).expect("fits")
    }

    #[test]
    fn a_stream_passes_the_wire_in_both_schemes_and_no_altered_one_does() {
        type Row = fn(&mut v1::StreamOpening);
        let table: &[Row] = &[
            |m| m.lane = 4,
            |m| m.ticks = 8,
            |m| m.anchor = bytes_of([1; 32]),
            |m| m.cumulative = amount_bytes(Amount::new(1)),
            |m| m.memo = bytes_of([1; 32]),
            |m| m.asset = bytes_of([1; 20]),
            |m| m.terms.as_mut().expect("there").fee = amount_bytes(Amount::new(2)),
        ];
        for scheme in [Scheme::Ed25519, Scheme::Secp256k1] {
            let key = SecretKey::derive(scheme, &[1; 32], "voucher");
            let words = crate::stream::Words::new(B256::repeat_byte(5), 9);
            let opening = opening(&key, &words);
            let message = opening_message(4, &opening);
            let verify = |m: v1::StreamOpening| {
                read_opening(m).expect("well-formed").verify(&domain(), &key.public(), account().channel)
            };
            assert_eq!(verify(message.clone()).as_ref(), Ok(&opening));
            for (n, spoil) in table.iter().enumerate() {
                let mut other = message.clone();
                spoil(&mut other);
                assert!(verify(other).is_err(), "row {n}");
            }
            let fold = Signed::sign(&domain(), &key, crate::stream::fold_voucher(&opening, 4));
            let parts = read_fold(fold_message(5, &fold)).expect("well-formed");
            assert_eq!(parts.tag, 5);
            assert_eq!(parts.verify(&domain(), &key.public(), account().channel).as_ref(), Ok(&fold));
            let mut raised = fold_message(5, &fold);
            raised.cumulative = amount_bytes(Amount::new(13));
            assert!(
                read_fold(raised).expect("well-formed").verify(&domain(), &key.public(), account().channel).is_err()
            );
            let mut lane = LaneVoucher::opened(opening.clone());
            lane.ticks_mut().expect("a stream").advance(&words.reveal(4).expect("within the chain"));
            for voucher in [lane, LaneVoucher::opened(opening), LaneVoucher::Plain(fold)] {
                let read = read_lane(&domain(), &key.public(), account(), &lane_message(&voucher));
                assert_eq!(read, Ok(voucher));
            }
        }
    }

    #[test]
    fn a_malformed_field_of_a_stream_is_named() {
        let key = SecretKey::derive(Scheme::Ed25519, &[1; 32], "voucher");
        let words = crate::stream::Words::new(B256::repeat_byte(5), 9);
        let good = opening_message(4, &opening(&key, &words));
        type Row = (&'static str, fn(&mut v1::StreamOpening));
        let table: &[Row] = &[
            ("opening.asset", |m| m.asset = bytes_of([0; 19])),
            ("opening.lane", |m| m.lane = LANES),
            ("opening.cumulative", |m| m.cumulative = bytes_of([0; 15])),
            ("opening.memo", |m| m.memo = bytes_of([0; 33])),
            ("opening.anchor", |m| m.anchor = bytes_of([])),
            ("opening.terms", |m| m.terms = None),
            ("terms.stream", |m| m.terms.as_mut().expect("there").stream = bytes_of([0; 11])),
            ("terms.payee", |m| m.terms.as_mut().expect("there").payee = bytes_of([0; 31])),
            ("terms.amount", |m| m.terms.as_mut().expect("there").amount = bytes_of([0; 17])),
            ("terms.fee", |m| m.terms.as_mut().expect("there").fee = bytes_of([])),
        ];
        for (field, spoil) in table {
            let mut message = good.clone();
            spoil(&mut message);
            assert_eq!(read_opening(message).expect_err(field).field, *field);
        }
        let tick = tick_message(account().asset, 3, 4, B256::repeat_byte(1));
        assert_eq!(read_tick(&tick), Ok((account().asset, B256::repeat_byte(1))));
        let short = v1::Tick { word: bytes_of([0; 31]), ..tick };
        assert_eq!(read_tick(&short).expect_err("short").field, "tick.word");
    }

    #[test]
    fn a_malformed_field_is_named() {
        let key = SecretKey::derive(Scheme::Ed25519, &[1; 32], "voucher");
        let good = frame_message(1, &frame(&key));
        type Row = (&'static str, fn(&mut v1::Frame));
        let table: &[Row] = &[
            ("frame.asset", |f| f.asset = bytes_of([0; 19])),
            ("frame.lane", |f| f.lane = LANES),
            ("frame.cumulative", |f| f.cumulative = bytes_of([0; 15])),
            ("frame.memo", |f| f.memo = bytes_of([0; 33])),
            ("payment.id", |f| f.payments[0].id = bytes_of([0; 15])),
            ("payment.payee", |f| f.payments[0].payee = bytes_of([])),
            ("payment.amount", |f| f.payments[1].amount = bytes_of([1; 17])),
            ("payment.fee", |f| f.payments[1].fee = bytes_of([])),
            ("frame.payments", |f| f.payments = vec![v1::Payment::default(); PAYMENTS_MAX + 1]),
            ("frame", |f| f.payments[0].note = bytes_of(vec![0; BYTES_MAX])),
        ];
        for (field, spoil) in table {
            let mut message = good.clone();
            spoil(&mut message);
            assert_eq!(read_frame(message).expect_err(field).field, *field);
        }
    }

    #[test]
    fn the_hubs_word_passes_the_wire_directly_and_in_a_batch() {
        let hub = SecretKey::derive(Scheme::Ed25519, &[2; 32], "hub");
        let receipt = Receipt {
            channelId: B256::repeat_byte(9),
            asset: account().asset,
            credit: 4,
            amount: 10,
            total: 50,
            payments: B256::repeat_byte(8),
        };
        let voucher = hub_voucher(account(), Amount::new(50), 4, B256::repeat_byte(6));
        let digests = [domain().digest(&receipt), domain().digest(&voucher)];
        let tree = BatchTree::new(&digests).expect("two leaves");
        let signature = sign_batch(&domain(), &hub, 77, tree.root());
        let batched = Proven::from_own_batch(&domain(), receipt.clone(), 77, tree.path(0), signature);
        for proven in [batched.clone(), Proven::sign(&domain(), &hub, receipt)] {
            assert_eq!(read_receipt(&domain(), &hub.public(), &receipt_message(&proven)), Ok(proven));
        }
        let voucher = Proven::from_own_batch(&domain(), voucher, 77, tree.path(1), signature);
        let message = hub_voucher_message(&voucher);
        assert_eq!(read_hub_voucher(&domain(), &hub.public(), account(), &message), Ok(voucher));
        let seen = batch_seen_message(batched.digest(), batched.proof()).expect("a batch");
        assert_eq!(read_batch_seen(&domain(), &hub.public(), &seen), Ok((77, tree.root())));
        let mut raised = receipt_message(&batched);
        raised.amount = amount_bytes(Amount::new(11));
        assert_eq!(read_receipt(&domain(), &hub.public(), &raised).expect_err("another digest").field, "receipt.proof");
    }

    #[test]
    fn totals_and_settlements_pass_the_wire() {
        let totals = Totals {
            member_deposit: Amount::new(1),
            hub_deposit: Amount::MAX,
            member_withdrawn: Amount::new(3),
            hub_withdrawn: Amount::new(4),
            seq: 5,
            status: Status::Closing,
            deadline: 6,
            ..Totals::default()
        };
        assert_eq!(read_totals(&totals_message(&totals)), Ok(totals));
        let unknown = v1::LedgerTotals { status: 3, ..totals_message(&totals) };
        assert_eq!(read_totals(&unknown).expect_err("no such status").field, "ledger.status");
        let settlement = Settlement {
            channelId: account().channel.0,
            asset: account().asset,
            seq: 9,
            memberWithdrawn: 1,
            hubWithdrawn: 2,
            validUntil: 3,
            close: true,
        };
        assert_eq!(read_proposal(account().channel, &proposal_message(1, &settlement)), Ok(settlement));
    }
}
