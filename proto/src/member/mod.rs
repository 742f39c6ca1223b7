//! The member's side of a channel: what he signed, what he holds, what he may count on. Without I/O, clock or
//! randomness.
//!
//! A [`Member`] is the counterpart of the hub's books. Every call that changes something returns a [`Step`]: records
//! that must be durable before anything of the step leaves the process, and the events that follow from them. The
//! state is what [`Member::apply`] makes of the records, so that a member is rebuilt from its journal and nothing else.
//!
//! # What a member counts
//! * Of what he was paid: every hub voucher that is durable here and whose credits continue without a gap in number,
//!   total and head. A larger voucher of the hub is kept as evidence in any case ([`Member::evidence`]).
//! * Of what he paid: frames answered `Accepted` with receipts that verify. What he may still spend is reckoned with
//!   everything that he signed.
//! * Deposits as of the confirmed head; withdrawals as of the seen head, or of a settlement that he signed, from the
//!   moment he signed it until it is overtaken or expired at the confirmed head.
//! * The hub's collateral not at all while his store may be older than what he signed ([`Member::distrust`]).
//!
//! # What a member never does
//! He moves a lane only over his own verified signature, resends only the very same bytes and only where no answer
//! came, signs no settlement that takes more from him than his user asked for, and signs and counts nothing of an
//! account between a close that he signed and its end. No key signs bytes that it did not hash itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

use crate::account::{Kept, SEQ_AHEAD_MAX, SETTLEMENT_VALIDITY_S, Status, Totals, clamp};
use crate::amount::{Amount, net};
use crate::evidence::{Proof, Proven, Signed};
use crate::frame::{BYTES_MAX, Frame, FrameError, LaneTip, Payment, payments_hash};
use crate::ids::{AccountId, Asset, ChannelId, PaymentId};
use crate::keys::{KeyError, PublicKey, Scheme, SecretKey};
use crate::stream::{LaneVoucher, StreamError, StreamId, StreamOpening, StreamTerms, Words, fold_voucher, times};
use crate::typed::{
    Ack, ChannelTerms, CloseRequest, Domain, Login, Receipt, Settlement, TickVoucher, Voucher, chain_hash,
};
use crate::wire::{self, Credit, TicksAccepted, WireError, v1};

#[cfg(test)]
mod tests;

/// Most frames of one account that wait for an answer: what a client sends again after a lost connection.
pub const UNANSWERED_MAX: usize = 256;
/// Most receipts of one account that wait for their delivery; each is a few hundred bytes of memory. Beyond it the
/// payee's oldest is forgotten: later ones of the same payee carry its worth in their totals, and only the news of its
/// delivery will not come.
pub const UNDELIVERED_MAX: usize = 4096;
/// Most payees that one member pins.
pub const PINS_MAX: usize = 65_536;
/// Most credits that are held back until the voucher that covers them comes.
pub const STAGED_MAX: usize = 1 << 20;
/// The longest validity that a settlement was ever given, seconds: what a restored member waits.
pub const VALIDITY_LONGEST_S: u64 = SETTLEMENT_VALIDITY_S;
/// Bytes of a frame's message besides its payments, rounded up.
pub const FRAME_OVERHEAD: usize = 256;
/// Bytes of a payment in a frame's message besides its note, rounded up.
pub const PAYMENT_OVERHEAD: usize = 104;

/// One channel as its member sees it.
#[derive(Debug)]
pub struct Member {
    domain: Domain,
    key: SecretKey,
    hub_key: PublicKey,
    state: State,
    limits: Limits,
    /// Number and time of nothing but time: the confirmed head's, seconds; 0 until it is known.
    confirmed_time: u64,
    distrust: Distrust,
    next_tag: u64,
}

/// What a member keeps: serialise it for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    terms: ChannelTerms,
    accounts: BTreeMap<Asset, Account>,
    pins: BTreeMap<ChannelId, ChannelTerms>,
    newest_batch: Option<BatchSeen>,
    settlements_signed: u64,
}

/// What the signer itself holds to, whatever it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most that may be signed and not receipted, per account: what a dishonest hub could take without paying anybody.
    pub max_unreceipted: Amount,
    /// Most that may be receipted and not acknowledged by its payees, per account.
    pub max_undelivered: Amount,
}

/// One account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    ledger: Totals,
    lanes: BTreeMap<u32, Lane>,
    unanswered: VecDeque<Pending>,
    /// The ids in `unanswered`.
    #[serde(skip)]
    waiting_ids: BTreeSet<PaymentId>,
    hub_voucher: Option<Proven<Voucher>>,
    counted: Counted,
    undelivered: BTreeMap<(ChannelId, u64), Held>,
    /// The sum of them, and of those that were forgotten before their delivery: they go on filling the signer's bound.
    undelivered_total: Amount,
    kept: Vec<Agreed>,
    seq_signed: u64,
    /// Credits that wait for the voucher that covers them; the hub sends them again in a new session.
    #[serde(skip)]
    staged: Vec<Staged>,
    /// Whether this session showed credits that do not continue what was counted.
    #[serde(skip)]
    gap: bool,
    #[serde(skip)]
    acked: u64,
    #[serde(skip)]
    deliveries: BTreeMap<ChannelId, Delivery>,
    /// By flush: tags of frames that were sent again and whose answers its receipts prove only together with others.
    #[serde(skip)]
    partial: BTreeMap<u64, BTreeSet<u64>>,
}

/// A receipt that its payee has not acknowledged, with the payments that it proves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The hub's word.
    pub receipt: Proven<Receipt>,
    /// What it proves.
    pub ids: Vec<PaymentId>,
}

/// A settlement that this member signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agreed {
    /// His half.
    pub signed: Signed<Settlement>,
    /// The hub's half, when it came.
    pub hub: Option<Proof>,
}

/// What is durable after a step, in the order of its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A payee's terms are pinned.
    Pinned(ChannelTerms),
    /// The ledger says something new of an account.
    Ledger {
        /// The account's asset.
        asset: Asset,
        /// What it says.
        totals: Totals,
    },
    /// A frame was signed.
    Signed(Frame),
    /// Frames were accepted, with receipts for all their payments.
    Accepted {
        /// The account's asset.
        asset: Asset,
        /// The flush.
        flush: u64,
        /// Lane and cumulative amount of each frame.
        frames: Vec<(u32, Amount)>,
        /// The receipts.
        receipts: Vec<Proven<Receipt>>,
        /// The ticks that they prove besides.
        ticks: Vec<TicksAccepted>,
    },
    /// A frame was refused.
    Refused {
        /// The account's asset.
        asset: Asset,
        /// The frame's lane.
        lane: u32,
        /// The frame's cumulative amount.
        cumulative: Amount,
    },
    /// A stream was opened on a lane; the secret is durable before the anchor leaves.
    Opening {
        /// The opening.
        opening: StreamOpening,
        /// The start of its chain.
        secret: Secret,
    },
    /// The hub took an opening.
    Opened {
        /// The account's asset.
        asset: Asset,
        /// The lane.
        lane: u32,
        /// The opening's anchor.
        anchor: B256,
    },
    /// The hub refused an opening or a fold of a lane.
    NotOpened {
        /// The account's asset.
        asset: Asset,
        /// The lane.
        lane: u32,
    },
    /// A word of a lane's chain leaves.
    Revealed {
        /// The account's asset.
        asset: Asset,
        /// The lane.
        lane: u32,
        /// Its index.
        index: u32,
    },
    /// Ticks were refused.
    TicksRefused {
        /// The account's asset.
        asset: Asset,
        /// The lane.
        lane: u32,
        /// The opening's anchor.
        anchor: B256,
        /// The index refused.
        index: u32,
    },
    /// A lane of ticks is to be folded.
    Folding(Signed<Voucher>),
    /// The hub took the fold.
    Folded {
        /// The account's asset.
        asset: Asset,
        /// The lane.
        lane: u32,
    },
    /// The hub showed a newer signature of this member than this store had.
    Adopted(LaneVoucher),
    /// A larger voucher of the hub is kept as evidence.
    HubVoucher(Proven<Voucher>),
    /// Credits were counted, up to a voucher of the hub.
    Credited {
        /// The account's asset.
        asset: Asset,
        /// Where the stream stands now.
        counted: Counted,
        /// The credits, for the history.
        credits: Vec<CreditNote>,
    },
    /// Payees acknowledged receipts.
    Delivered {
        /// The account's asset.
        asset: Asset,
        /// Payee and credit number of each.
        receipts: Vec<(ChannelId, u64)>,
    },
    /// A settlement was signed.
    Agreed(Signed<Settlement>),
    /// The hub's half of it came.
    Countersigned {
        /// The account's asset.
        asset: Asset,
        /// The settlement's number.
        seq: u64,
        /// The hub's word.
        proof: Proof,
    },
}

/// A credit as the history keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditNote {
    /// Its number.
    pub number: u64,
    /// The payer's channel.
    pub payer: ChannelId,
    /// Id, amount and note of each payment.
    pub payments: Vec<(PaymentId, Amount, alloy_primitives::Bytes)>,
}

/// What to make durable, and what may be told after that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Durable first, in this order.
    pub records: Vec<Record>,
    /// Then these.
    pub events: Vec<Event>,
}

/// Something that the member's user wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A payment is owed by the hub to its payee: receipt verified.
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
        /// The credit's number in the payee's account; 0 for the hub itself.
        credit: u64,
    },
    /// A frame was refused: none of its payments was made.
    NotPaid {
        /// Its payments.
        payments: Vec<Payment>,
        /// The asset.
        asset: Asset,
        /// A word for programs.
        reason: String,
        /// A sentence for people.
        message: String,
        /// Whether a new frame with the same payments may succeed.
        retryable: bool,
        /// When, at the earliest.
        retry_after_ms: u32,
    },
    /// A stream is open.
    Opened {
        /// The asset.
        asset: Asset,
        /// The lane.
        lane: u32,
        /// The stream.
        stream: StreamId,
    },
    /// An opening was refused: nothing of its stream will be paid.
    NotOpened {
        /// The asset.
        asset: Asset,
        /// The lane.
        lane: u32,
        /// The stream.
        stream: StreamId,
        /// A word for programs.
        reason: String,
        /// A sentence for people.
        message: String,
        /// Whether a new opening may succeed.
        retryable: bool,
        /// When, at the earliest.
        retry_after_ms: u32,
    },
    /// Ticks were refused. They may be revealed again, and count as signed until they are receipted.
    TicksRefused {
        /// The asset.
        asset: Asset,
        /// The lane.
        lane: u32,
        /// The stream.
        stream: StreamId,
        /// The index refused.
        index: u32,
        /// A word for programs.
        reason: String,
        /// A sentence for people.
        message: String,
        /// Whether it may succeed later.
        retryable: bool,
        /// When, at the earliest.
        retry_after_ms: u32,
    },
    /// The hub accepted ticks in an earlier session whose receipts did not come: ask it for the payment.
    TicksUnproven {
        /// The asset.
        asset: Asset,
        /// The lane.
        lane: u32,
        /// The index that the hub shows.
        index: u32,
    },
    /// A credit was counted.
    Received {
        /// The asset.
        asset: Asset,
        /// The credit.
        credit: Credit,
    },
    /// A payee acknowledged payments.
    Delivered {
        /// The asset.
        asset: Asset,
        /// The payee.
        payee: ChannelId,
        /// The payments.
        ids: Vec<PaymentId>,
    },
    /// The hub showed a newer own signature: this store was old. Settlements and the hub's collateral have to wait.
    StoreWasOld {
        /// The asset.
        asset: Asset,
        /// The lane.
        lane: u32,
    },
    /// After a loss of data the hub's voucher was taken as the new base of what is counted.
    Rebased {
        /// The asset.
        asset: Asset,
        /// Its credit number.
        credits: u64,
    },
    /// The hub did what no honest hub does.
    Misbehaved(Misbehaviour),
}

/// What no honest hub does. Some variants carry what proves it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misbehaviour {
    /// A message that is malformed or carries a signature that does not verify.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// An account that this channel does not have.
    #[error("the hub speaks of asset {asset}, in which this channel has no account")]
    UnknownAccount {
        /// The asset.
        asset: Asset,
    },
    /// A lane's state without this member's own signature; it was ignored.
    #[error("the hub claims a state of lane {lane} without my signature over it")]
    LaneUnsigned {
        /// The lane.
        lane: u32,
    },
    /// The hub's lane is behind what it accepted.
    #[error("the hub has lane {lane} at {theirs} and acknowledged {ours}: it lost data or hides it")]
    LaneBehind {
        /// The lane.
        lane: u32,
        /// What it acknowledged.
        ours: Amount,
        /// What it shows.
        theirs: Amount,
    },
    /// The hub kept a voucher that it had refused.
    #[error("the hub kept a voucher of lane {lane} up to {cumulative} that it had refused")]
    KeptRefused {
        /// The lane.
        lane: u32,
        /// Its cumulative amount.
        cumulative: Amount,
    },
    /// Receipts that do not prove the payments they answer.
    #[error("the receipts of flush {flush} do not prove the payments that they answer")]
    BadReceipts {
        /// The flush.
        flush: u64,
    },
    /// Frames answered out of their order.
    #[error("the hub answered lane {lane} out of order")]
    Order {
        /// The lane.
        lane: u32,
    },
    /// One credit number for two credits: two signatures of the hub prove it.
    #[error("the hub gave credit number {} of channel {} to two payers", first.body().credit, first.body().channelId)]
    NumberTwice {
        /// One of them.
        first: Box<Proven<Receipt>>,
        /// The other.
        second: Box<Proven<Receipt>>,
    },
    /// The payee acknowledged a chain of credits that does not hold this receipt: with the payee's voucher it proves
    /// that one number was given twice.
    #[error("payee {payee} acknowledged credit {credit}, but another one than my receipt names")]
    NotInTheChain {
        /// The payee.
        payee: ChannelId,
        /// The number.
        credit: u64,
    },
    /// Credits that do not continue.
    #[error("credit {given} came where {expected} was due")]
    Gap {
        /// Number due.
        expected: u64,
        /// Number given.
        given: u64,
    },
    /// A credit or voucher whose sums or heads do not fit.
    #[error("credit {number} does not fit its sums or the voucher over it")]
    CreditChain {
        /// Its number.
        number: u64,
    },
    /// The hub's newest voucher is smaller than the one it gave before.
    #[error("the hub shows a voucher of {theirs} after it had given one of {ours}")]
    VoucherBehind {
        /// What it gave.
        ours: Amount,
        /// What it shows.
        theirs: Amount,
    },
    /// A settlement without the hub's valid half.
    #[error("the hub's half of settlement {seq} does not fit what was agreed")]
    BadSettlement {
        /// Its number.
        seq: u64,
    },
}

/// Why a member cannot be made or a payee not be pinned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TermsError {
    /// A key of the terms is unusable.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The terms are another member's.
    #[error("the terms name another member's key")]
    NotMine,
    /// The terms do not make the channel id that was asked for.
    #[error("channel {asked} has other terms than these, which are of {found}")]
    OtherChannel {
        /// What was asked for.
        asked: ChannelId,
        /// What the terms are of.
        found: ChannelId,
    },
    /// The payee is with another hub.
    #[error("payee {payee} has its channel with another hub")]
    OtherHub {
        /// The payee.
        payee: ChannelId,
    },
    /// No more payees can be pinned.
    #[error("{PINS_MAX} payees are pinned; no more fit this store")]
    Full,
}

/// Why a frame is not signed. Nothing was signed and nothing paid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayError {
    /// The channel has no account in the asset.
    #[error("this channel has no account in asset {asset}; deposit first")]
    NoAccount {
        /// The asset.
        asset: Asset,
    },
    /// The account is closing or closed.
    #[error("the account is {status:?} on the ledger; nothing can be paid from it")]
    NotOpen {
        /// Its status.
        status: Status,
    },
    /// A close was signed.
    #[error("a close of the account is signed and may be posted until {until}")]
    Frozen {
        /// Its validity, chain time in seconds.
        until: u64,
    },
    /// The lane waits for the rest of its refused frames.
    #[error("lane {lane} waits for answers to frames that follow a refused one; try again")]
    LaneBusy {
        /// The lane.
        lane: u32,
    },
    /// Too many frames wait for an answer.
    #[error("{UNANSWERED_MAX} frames wait for an answer; try again when one came")]
    Window,
    /// A payee whose terms are not pinned.
    #[error("payee {payee} is not pinned; look it up on the ledger first")]
    NotPinned {
        /// The payee.
        payee: ChannelId,
    },
    /// A payment to oneself.
    #[error("payer and payee are the same channel")]
    PayeeIsPayer,
    /// The id is in a frame that waits for its answer.
    #[error("payment {id} is in a frame that waits for its answer")]
    IdPending {
        /// The id.
        id: PaymentId,
    },
    /// The account does not hold that much.
    #[error("the frame costs {cost}, the account has {available}; deposit, or pay less")]
    Insufficient {
        /// Amounts and fees.
        cost: Amount,
        /// What can be spent.
        available: Amount,
    },
    /// The signer's bound on unreceipted payments.
    #[error("{exposure} would be signed and not receipted; the limit is {limit}")]
    Exposure {
        /// What it would be.
        exposure: Amount,
        /// The bound.
        limit: Amount,
    },
    /// The signer's bound on undelivered payments.
    #[error("{undelivered} would be receipted and not acknowledged by its payees; the limit is {limit}")]
    Undelivered {
        /// What it would be.
        undelivered: Amount,
        /// The bound.
        limit: Amount,
    },
    /// The lane has no stream that could go on.
    #[error("lane {lane} has no open stream; open one")]
    NoStream {
        /// The lane.
        lane: u32,
    },
    /// An index that is not new, or beyond the chain.
    #[error("tick {index} of lane {lane} is not between {from} and {ticks}; open another stream when this one ends")]
    Index {
        /// The lane.
        lane: u32,
        /// The index asked for.
        index: u32,
        /// The first that is new.
        from: u32,
        /// The chain's length.
        ticks: u32,
    },
    /// A secret whose chain was used before.
    #[error("this secret made a chain before, on lane {lane}; a stream needs fresh bytes")]
    SecretUsed {
        /// The lane.
        lane: u32,
    },
    /// The stream itself.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The list itself.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Too many bytes.
    #[error("the frame has {given} bytes; at most {BYTES_MAX} fit")]
    TooLarge {
        /// Bytes.
        given: usize,
    },
}

/// What the user asked of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// This much more to the member.
    Withdraw(Amount),
    /// Everything out.
    Close,
}

/// Why a settlement is not signed, in the order of the checks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Decline {
    /// Not an account of this channel.
    #[error("it is about an account that this channel does not have")]
    NoAccount,
    /// The account is closed.
    #[error("the account is final")]
    Final,
    /// This store may be older than what was signed from it.
    #[error("this store may be older than what was signed; nothing is signed until the longest validity is past")]
    StoreMayBeOld,
    /// A close is signed.
    #[error("a close of the account is signed and may still be posted")]
    Frozen,
    /// The number is not new, or too far ahead.
    #[error("number {given} must be above {above} and below the ledger's + 2^32")]
    Seq {
        /// Given.
        given: u64,
        /// The highest signed or posted.
        above: u64,
    },
    /// A total falls.
    #[error("a total of it is below what is withdrawn or promised already")]
    Falls,
    /// More than was deposited.
    #[error("its totals are more than the deposits")]
    BeyondDeposits,
    /// A net would be negative.
    #[error("it would take what is owed to the other side")]
    Unbacked,
    /// It is valid too long.
    #[error("it is valid until {given}, at most {limit} is agreed to")]
    TooLong {
        /// Given.
        given: u64,
        /// The latest.
        limit: u64,
    },
    /// Nobody here asked for it.
    #[error("it pays the member something else than what was asked for")]
    NotAskedFor,
}

/// What an account comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// What can be spent.
    pub available: Amount,
    /// Everything ever received and counted.
    pub received: Amount,
    /// The part of it that the contract does not hold collateral for.
    pub unbacked: Amount,
    /// Everything paid and receipted, fees included.
    pub paid: Amount,
    /// Signed and not receipted.
    pub unreceipted: Amount,
    /// Receipted and not acknowledged by the payees.
    pub undelivered: Amount,
    /// What the hub could still pay to this account.
    pub inbound: Amount,
    /// What the ledger says.
    pub ledger: Totals,
    /// Whether a close freezes the account.
    pub frozen: bool,
}

/// What a member can show to the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// His own newest accepted vouchers, by lane, with the ticks accepted.
    pub lanes: Vec<LaneVoucher>,
    /// The hub's largest.
    pub hub: Option<Proven<Voucher>>,
}

/// Where the counted part of the hub's stream stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Newest credit number.
    pub credits: u64,
    /// `PH`.
    pub total: Amount,
    /// Head of the credit chain.
    pub head: B256,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Lane {
    /// The newest voucher answered `Accepted`, or adopted, with the ticks accepted.
    accepted: Option<LaneVoucher>,
    /// The stream that was opened last, until something else continues the lane.
    stream: Option<Stream>,
    /// A fold that waits for its answer.
    fold: Option<Fold>,
    /// The largest cumulative amount ever signed on the lane, ticks revealed included.
    signed_max: Amount,
    /// Up to where everything is receipted.
    receipted: Amount,
    /// A frame was refused while later ones are unanswered: they are refused too, so nothing new is signed yet.
    doomed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    frame: Frame,
    #[serde(skip)]
    tag: u64,
    /// Whether it was sent again in this session.
    #[serde(skip)]
    again: bool,
}

/// A stream of this member. Its ticks up to `settled` were answered; what is revealed beyond waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stream {
    opening: StreamOpening,
    secret: Secret,
    opened: bool,
    revealed: u32,
    settled: u32,
    /// The highest index that the hub showed in this session: what it accepted beyond the receipts is still to be proven.
    #[serde(skip)]
    shown: u32,
    #[serde(skip)]
    tag: u64,
    /// The chain, made from the secret when it is first needed.
    #[serde(skip)]
    words: Option<Words>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fold {
    voucher: Signed<Voucher>,
    #[serde(skip)]
    tag: u64,
}

/// The start of a chain: who knows it can pay everything that is not revealed yet.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(B256);

/// What a session sends again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resent {
    /// A frame with its tag.
    Frame(u64, Frame),
    /// An opening with its tag.
    Opening(u64, StreamOpening),
    /// A fold with its tag.
    Fold(u64, Signed<Voucher>),
    /// The newest word of a lane.
    Tick(Tick),
}

/// A word to be revealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The account's asset.
    pub asset: Asset,
    /// The lane.
    pub lane: u32,
    /// The index.
    pub index: u32,
    /// The word.
    pub word: B256,
}

/// A stream as its payer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamView {
    /// What a tick is.
    pub terms: StreamTerms,
    /// How many ticks it has.
    pub ticks: u32,
    /// The highest index revealed.
    pub revealed: u32,
    /// The highest index that receipts prove.
    pub accepted: u32,
    /// Whether the hub took the opening.
    pub opened: bool,
    /// Whether something on the lane waits for an answer.
    pub waits: bool,
}

/// What the answers to frames that were sent again come to so far.
enum Partial {
    Covered(Vec<usize>),
    Waits,
    Bad,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Staged {
    after: Counted,
    credit: Credit,
}

/// An acknowledgement whose digests come in pages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Delivery {
    credits: u64,
    head: B256,
    next: u64,
    reached: B256,
    matched: Vec<(u64, bool)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct BatchSeen {
    flush: u64,
    root: B256,
    signature: crate::keys::Signature,
}

/// Whether this store may be older than what was signed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distrust {
    No,
    /// Until the longest validity is past, counted from the first head that is seen.
    FromNextHead,
    Until(u64),
}

// ---- life ----------------------------------------------------------------------------------------------------------

impl Default for Limits {
    fn default() -> Self {
        Limits { max_unreceipted: Amount::MAX, max_undelivered: Amount::MAX }
    }
}

impl Member {
    /// The member of a new channel with these terms.
    pub fn new(domain: Domain, key: SecretKey, terms: ChannelTerms, limits: Limits) -> Result<Self, TermsError> {
        let state = State {
            terms,
            accounts: BTreeMap::new(),
            pins: BTreeMap::new(),
            newest_batch: None,
            settlements_signed: 0,
        };
        Member::restore(domain, key, state, limits)
    }

    /// The member that a snapshot is of; the records after it are to be applied next.
    pub fn restore(domain: Domain, key: SecretKey, mut state: State, limits: Limits) -> Result<Self, TermsError> {
        for account in state.accounts.values_mut() {
            let waiting = account.unanswered.iter().flat_map(|p| &p.frame.payments);
            account.waiting_ids = waiting.map(|p| p.id).collect();
        }
        let terms = &state.terms;
        let hub_key = PublicKey::new(Scheme::from_number(terms.hubScheme)?, terms.hubKey)?;
        let mine = key.public();
        if terms.memberScheme != mine.scheme.number() || terms.memberKey != mine.bytes {
            return Err(TermsError::NotMine);
        }
        Ok(Member { domain, key, hub_key, state, limits, confirmed_time: 0, distrust: Distrust::No, next_tag: 1 })
    }

    /// What a snapshot has to keep.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The channel.
    pub fn channel(&self) -> ChannelId {
        self.domain.channel_id(&self.state.terms)
    }

    /// Its terms.
    pub fn terms(&self) -> &ChannelTerms {
        &self.state.terms
    }

    /// The key that the hub signs for this channel with.
    pub fn hub_key(&self) -> &PublicKey {
        &self.hub_key
    }

    /// The assets in which the channel has accounts.
    pub fn assets(&self) -> Vec<Asset> {
        self.state.accounts.keys().copied().collect()
    }

    /// Settlements ever signed: to be kept a second time, apart from the store and its backups, before each is sent.
    pub fn settlements_signed(&self) -> u64 {
        self.state.settlements_signed
    }

    /// Notes that this store cannot prove that nothing newer was signed: until the longest validity of a settlement is
    /// past at the confirmed head, nothing is settled and the hub's collateral is not counted.
    pub fn distrust(&mut self) {
        self.distrust = match self.confirmed_time {
            0 => Distrust::FromNextHead,
            time => Distrust::Until(time.saturating_add(VALIDITY_LONGEST_S)),
        };
    }

    /// Whether the hub's collateral may be counted.
    pub fn trusts_itself(&self) -> bool {
        match self.distrust {
            Distrust::No => true,
            Distrust::FromNextHead => false,
            Distrust::Until(time) => self.confirmed_time > time,
        }
    }

    /// Notes the confirmed head's time. Settlements that are over at it no longer count, so [`Member::ledger`] must
    /// first have been told, for every account, totals of a head at least as new: a settlement that was posted in between
    /// would otherwise count neither as kept nor as posted.
    pub fn head(&mut self, confirmed_time: u64) {
        self.confirmed_time = self.confirmed_time.max(confirmed_time);
        if self.distrust == Distrust::FromNextHead && confirmed_time > 0 {
            self.distrust();
        }
        self.forget_what_is_over();
    }

    fn forget_what_is_over(&mut self) {
        let time = self.confirmed_time;
        for account in self.state.accounts.values_mut() {
            let seq = account.ledger.seq_confirmed;
            account.kept.retain(|k| !kept(k).is_over(seq, time));
        }
    }

    /// Takes what the ledger says of an account, whether or not it changed.
    pub fn ledger(&mut self, asset: Asset, totals: Totals) -> Step {
        let known = self.state.accounts.get(&asset);
        if known.is_some_and(|a| a.ledger == totals) {
            return Step::default();
        }
        let step = self.step(vec![Record::Ledger { asset, totals }]);
        self.forget_what_is_over();
        step
    }

    /// Pins a payee: its terms, as the ledger's `Opened` event gave them, must make the channel id that was asked for
    /// and name this hub.
    pub fn pin(&mut self, payee: ChannelId, terms: ChannelTerms) -> Result<Step, TermsError> {
        if self.state.pins.contains_key(&payee) {
            return Ok(Step::default());
        }
        let found = self.domain.channel_id(&terms);
        if found != payee {
            return Err(TermsError::OtherChannel { asked: payee, found });
        }
        if terms.hub != self.state.terms.hub {
            return Err(TermsError::OtherHub { payee });
        }
        PublicKey::new(Scheme::from_number(terms.hubScheme)?, terms.hubKey)?;
        PublicKey::new(Scheme::from_number(terms.memberScheme)?, terms.memberKey)?;
        if self.state.pins.len() >= PINS_MAX {
            return Err(TermsError::Full);
        }
        Ok(self.step(vec![Record::Pinned(terms)]))
    }

    /// Whether a payee can be paid without looking it up.
    pub fn is_pinned(&self, payee: ChannelId) -> bool {
        payee == ChannelId::HUB || self.state.pins.contains_key(&payee)
    }
}

// ---- paying --------------------------------------------------------------------------------------------------------

impl Member {
    /// Signs the frame that continues a lane. It may be sent when the record is durable.
    pub fn sign_frame(&mut self, asset: Asset, lane: u32, payments: Vec<Payment>) -> Result<(u64, Frame), PayError> {
        let account = self.state.accounts.get(&asset).ok_or(PayError::NoAccount { asset })?;
        self.check_open(account)?;
        if account.lanes.get(&lane).is_some_and(|l| l.doomed || l.waits()) {
            return Err(PayError::LaneBusy { lane });
        }
        if account.unanswered.len() >= UNANSWERED_MAX {
            return Err(PayError::Window);
        }
        self.check_payees(payments.iter().map(|p| p.payee))?;
        if let Some(id) = account.pending_id(&payments) {
            return Err(PayError::IdPending { id });
        }
        let cost = payments.iter().try_fold(Amount::ZERO, |sum, p| sum.checked_add(p.cost()?));
        self.check_limits(account, lane, cost.ok_or(FrameError::Overflow)?)?;
        let bytes = payments.iter().fold(FRAME_OVERHEAD, |sum, p| sum + PAYMENT_OVERHEAD + p.note.len());
        if bytes > BYTES_MAX {
            return Err(PayError::TooLarge { given: bytes });
        }
        let tip = account.tip(lane);
        let frame = Frame::sign(&self.domain, &self.key, self.account_id(asset), lane, tip, payments)?;
        let tag = self.take_tag();
        self.apply(&Record::Signed(frame.clone()));
        self.of(asset).unanswered.back_mut().expect("a signed frame waits for its answer").tag = tag;
        Ok((tag, frame))
    }

    /// Takes the hub's word that frames are accepted.
    ///
    /// A frame that was sent again may be answered alone although its receipts cover more frames of its flush; then the
    /// run of frames around it that the receipts do prove is what was accepted. Where frames of other lanes stand between
    /// them that were refused or accepted later, it takes the answers to all of them.
    pub fn accepted(&mut self, message: &v1::Accepted) -> Result<Step, Misbehaviour> {
        let asset = wire::read_address("accepted.asset", &message.asset)?;
        let account = self.state.accounts.get(&asset).ok_or(Misbehaviour::UnknownAccount { asset })?;
        let named: Vec<usize> = message.tags.iter().filter_map(|tag| account.position_of(*tag)).collect();
        let ticks: Vec<TicksAccepted> =
            message.ticks.iter().map(wire::read_ticks_accepted).collect::<Result<_, _>>()?;
        let news = ticks.iter().filter(|t| account.is_news(t)).copied();
        // What follows on ticks whose receipts did not come is proven after them, by what the hub is asked for.
        let (later, fresh): (Vec<_>, Vec<_>) = news.partition(|t| account.follows_unproven(t));
        if named.is_empty() && fresh.is_empty() {
            return Ok(self.note_unproven(asset, &later));
        }
        let bad = Misbehaviour::BadReceipts { flush: message.flush };
        let receipts = self.read_receipts(message)?;
        let rows: Vec<Row> = ticks.iter().map(row_of).collect::<Option<_>>().ok_or(bad.clone())?;
        let covered = match account.covered(asset, &named, &rows, &receipts) {
            Some(covered) => covered,
            None => match self.of(asset).covered_together(asset, message.flush, &named, &rows, &receipts) {
                Partial::Covered(covered) => covered,
                Partial::Waits => return Ok(Step::default()),
                Partial::Bad => return Err(bad),
            },
        };
        let account = &self.state.accounts[&asset];
        let frames: Vec<(u32, Amount)> = covered.iter().map(|&i| account.unanswered[i].place()).collect();
        account.check_order(&covered)?;
        fresh.iter().try_for_each(|ticks| account.check_ticks(ticks))?;
        let mut events = Vec::new();
        for ticks in &fresh {
            events.extend(paid_event(asset, ticks, &receipts));
        }
        for &i in &covered {
            for p in &account.unanswered[i].frame.payments {
                let receipt = receipts.iter().find(|r| r.body().channelId == p.payee.0);
                let credit = receipt.map(|r| r.body().credit).unwrap_or_default();
                let (id, payee, amount, fee) = (p.id, p.payee, p.amount, p.fee);
                events.push(Event::Paid { id, asset, payee, amount, fee, credit });
            }
        }
        for receipt in &receipts {
            let key = (ChannelId(receipt.body().channelId), receipt.body().credit);
            let Some(known) = account.undelivered.get(&key) else { continue };
            if known.receipt.digest() != receipt.digest() {
                let (first, second) = (Box::new(known.receipt.clone()), Box::new(receipt.clone()));
                events.push(Event::Misbehaved(Misbehaviour::NumberTwice { first, second }));
            }
        }
        self.note_batches(&receipts);
        let accepted = Record::Accepted { asset, flush: message.flush, frames, receipts, ticks: fresh };
        let mut step = self.step(vec![accepted]);
        step.events = events;
        step.extend(self.note_unproven(asset, &later));
        Ok(step)
    }

    /// Takes a refusal: final for those bytes, and no outcome for the ids in it.
    pub fn refused(&mut self, message: &v1::Refused) -> Result<Step, Misbehaviour> {
        let Some((asset, place, payments)) = self.find_tag(message.tag) else {
            return Ok(self.not_opened(message));
        };
        let mut step = self.step(vec![Record::Refused { asset, lane: place.0, cumulative: place.1 }]);
        step.events.push(Event::NotPaid {
            payments,
            asset,
            reason: message.reason.clone(),
            message: message.message.clone(),
            retryable: message.retryable,
            retry_after_ms: message.retry_after_ms,
        });
        if let Some(view) = &message.lane {
            step.extend(self.lane_view(asset, view));
        }
        Ok(step)
    }

    /// Whether an answer of `GetPayment` proves that the payment is made: a receipt by the pinned hub key that names
    /// the payee and opens to a list with this payment and its signed amount.
    pub fn proves_paid(&self, payment: &Payment, message: &v1::GetPaymentResponse) -> bool {
        let Some(receipt) = &message.receipt else { return false };
        let Some(key) = self.receipt_key(payment.payee) else { return false };
        let Ok(receipt) = wire::read_receipt(&self.domain, &key, receipt) else { return false };
        let rows: Result<Vec<_>, _> = message.opening.iter().cloned().map(wire::read_credited_payment).collect();
        let Ok(rows) = rows else { return false };
        let rows: Vec<(PaymentId, Amount)> = rows.into_iter().map(|p| (p.id, p.amount)).collect();
        let body = receipt.body();
        body.channelId == payment.payee.0
            && rows.contains(&(payment.id, payment.amount))
            && Amount::checked_sum(rows.iter().map(|r| r.1)) == Some(Amount::new(body.amount))
            && payments_hash(&rows) == body.payments
    }

    /// What became of a payment that waits for its answer, once the account is final: `true` where the ledger shows
    /// that its voucher was never claimed; `None` while the hub may still claim it, or where it did.
    pub fn ledger_says_unpaid(&self, asset: Asset) -> Option<bool> {
        let account = self.state.accounts.get(&asset)?;
        let accepted = Amount::checked_sum(account.lanes.values().map(Lane::accepted_cumulative))?;
        let settled = account.ledger.status == Status::Final;
        (settled && account.ledger.member_paid <= accepted).then_some(true)
    }

    /// The payment, if it is in a frame that waits for its answer.
    pub fn unanswered_payment(&self, id: PaymentId) -> Option<(Asset, &Payment)> {
        self.state.accounts.iter().find_map(|(asset, account)| {
            let mut all = account.unanswered.iter().flat_map(|p| &p.frame.payments);
            all.find(|p| p.id == id).map(|p| (*asset, p))
        })
    }

    /// Every frame that waits for its answer: asset, lane and cumulative amount, and its payments.
    pub fn waiting(&self) -> impl Iterator<Item = ((Asset, u32, Amount), &[Payment])> {
        self.state.accounts.iter().flat_map(|(asset, account)| {
            account.unanswered.iter().map(|p| ((*asset, p.place().0, p.place().1), p.frame.payments.as_slice()))
        })
    }

    /// Frames of a lane that wait for their answer.
    pub fn unanswered_on(&self, asset: Asset, lane: u32) -> usize {
        let account = self.state.accounts.get(&asset);
        account.map(|a| a.unanswered.iter().filter(|p| p.frame.lane() == lane).count()).unwrap_or_default()
    }

    /// Frames of an account that wait for their answer.
    pub fn unanswered(&self, asset: Asset) -> usize {
        self.state.accounts.get(&asset).map(|a| a.unanswered.len()).unwrap_or_default()
    }

    fn check_open(&self, account: &Account) -> Result<(), PayError> {
        if account.ledger.status != Status::Open {
            return Err(PayError::NotOpen { status: account.ledger.status });
        }
        match account.freeze() {
            Some(until) => Err(PayError::Frozen { until }),
            None => Ok(()),
        }
    }

    fn check_payees(&self, payees: impl Iterator<Item = ChannelId>) -> Result<(), PayError> {
        let me = self.channel();
        let mut last = None;
        for payee in payees {
            if last == Some(payee) {
                continue;
            }
            if payee == me {
                return Err(PayError::PayeeIsPayer);
            }
            if !self.is_pinned(payee) {
                return Err(PayError::NotPinned { payee });
            }
            last = Some(payee);
        }
        Ok(())
    }

    fn check_limits(&self, account: &Account, lane: u32, cost: Amount) -> Result<(), PayError> {
        let available = account.available();
        if cost > available {
            return Err(PayError::Insufficient { cost, available });
        }
        let raised = account.tip(lane).cumulative.saturating_add(cost);
        let grown = raised.saturating_sub(account.lanes.get(&lane).map(|l| l.signed_max).unwrap_or_default());
        let (exposure, limit) = (account.unreceipted().saturating_add(grown), self.limits.max_unreceipted);
        if exposure > limit {
            return Err(PayError::Exposure { exposure, limit });
        }
        let (undelivered, limit) = (account.undelivered_sum().saturating_add(cost), self.limits.max_undelivered);
        if undelivered > limit {
            return Err(PayError::Undelivered { undelivered, limit });
        }
        Ok(())
    }

    fn read_receipts(&self, message: &v1::Accepted) -> Result<Vec<Proven<Receipt>>, Misbehaviour> {
        message
            .receipts
            .iter()
            .map(|receipt| {
                let payee = wire::read_channel("receipt.payee", &receipt.payee)?;
                let key = self.receipt_key(payee).ok_or(Misbehaviour::BadReceipts { flush: message.flush })?;
                Ok(wire::read_receipt(&self.domain, &key, receipt)?)
            })
            .collect()
    }

    /// The key that the hub signs receipts for a payee with: that of the payee's terms, because the ledger redeems them
    /// there; for the hub itself that of this channel.
    fn receipt_key(&self, payee: ChannelId) -> Option<PublicKey> {
        if payee == ChannelId::HUB {
            return Some(self.hub_key);
        }
        let terms = self.state.pins.get(&payee)?;
        Some(PublicKey { scheme: Scheme::from_number(terms.hubScheme).ok()?, bytes: terms.hubKey })
    }

    fn find_tag(&self, tag: u64) -> Option<(Asset, (u32, Amount), Vec<Payment>)> {
        self.state.accounts.iter().find_map(|(asset, account)| {
            let pending = &account.unanswered[account.position_of(tag)?];
            Some((*asset, pending.place(), pending.frame.payments.clone()))
        })
    }
}

// ---- streams -------------------------------------------------------------------------------------------------------

impl Member {
    /// Opens a stream of `ticks` ticks on a lane on which nothing waits. It may be sent when the record is durable; ticks
    /// may follow at once. The secret must be fresh: who knows it can pay the whole stream.
    pub fn open_stream(
        &mut self,
        asset: Asset,
        lane: u32,
        terms: StreamTerms,
        ticks: u32,
        secret: Secret,
    ) -> Result<(u64, StreamOpening, Step), PayError> {
        let account = self.lane_to_continue(asset, lane)?;
        let tip = account.tip(lane);
        self.check_payees(std::iter::once(terms.payee))?;
        let words = Words::new(secret.0, ticks.min(TickVoucher::TICKS_MAX.saturating_add(1)));
        self.check_fresh(secret)?;
        let id = self.account_id(asset);
        let opening = StreamOpening::sign(&self.domain, &self.key, id, lane, tip, terms, &words)?;
        let tag = self.take_tag();
        let step = self.step(vec![Record::Opening { opening: opening.clone(), secret }]);
        if let Some(stream) = &mut self.of(asset).lane(lane).stream {
            (stream.tag, stream.words) = (tag, Some(words));
        }
        Ok((tag, opening, step))
    }

    /// Pays every tick of a lane's stream up to `index`. The word may be sent when the record is durable.
    pub fn reveal(&mut self, asset: Asset, lane: u32, index: u32) -> Result<(Tick, Step), PayError> {
        let account = self.state.accounts.get(&asset).ok_or(PayError::NoAccount { asset })?;
        self.check_open(account)?;
        let known = account.lanes.get(&lane).filter(|l| l.fold.is_none() && !l.doomed);
        let none = PayError::NoStream { lane };
        let Some((known, stream)) = known.and_then(|l| Some((l, l.stream.as_ref()?))) else { return Err(none) };
        if account.unanswered.iter().any(|p| p.frame.lane() == lane) {
            return Err(PayError::LaneBusy { lane });
        }
        let ticks = stream.opening.voucher().body().ticks;
        // What was revealed can be claimed, so less than that is never revealed again; as much is, after a refusal.
        let refused = stream.revealed <= stream.settled && stream.revealed > known.accepted_index();
        let from = if refused { stream.revealed } else { stream.revealed.saturating_add(1) };
        if index < from || index > ticks {
            return Err(PayError::Index { lane, index, from, ticks });
        }
        let cost = stream.opening.tip(index).cumulative.saturating_sub(account.tip(lane).cumulative);
        self.check_limits(account, lane, cost)?;
        let step = self.step(vec![Record::Revealed { asset, lane, index }]);
        let stream = self.of(asset).lane(lane).stream.as_mut().expect("it was just there");
        let word = stream.words().word(index).expect("the index is within the chain");
        Ok((Tick { asset, lane, index, word }, step))
    }

    /// Folds a lane of ticks, so that the evidence stays small; `None` where there is nothing to fold. It may be sent when
    /// the record is durable.
    pub fn fold(&mut self, asset: Asset, lane: u32) -> Result<Option<(u64, Signed<Voucher>, Step)>, PayError> {
        let account = self.lane_to_continue(asset, lane)?;
        let accepted = account.lanes.get(&lane).and_then(|l| l.accepted.as_ref()).and_then(LaneVoucher::ticks);
        let Some(ticks) = accepted else { return Ok(None) };
        let voucher = Signed::sign(&self.domain, &self.key, fold_voucher(ticks.opening(), ticks.index()));
        let tag = self.take_tag();
        let step = self.step(vec![Record::Folding(voucher.clone())]);
        if let Some(fold) = &mut self.of(asset).lane(lane).fold {
            fold.tag = tag;
        }
        Ok(Some((tag, voucher, step)))
    }

    /// The stream of a lane.
    pub fn stream(&self, asset: Asset, lane: u32) -> Option<StreamView> {
        let lane = self.state.accounts.get(&asset)?.lanes.get(&lane)?;
        let stream = lane.stream.as_ref()?;
        Some(StreamView {
            terms: *stream.opening.terms(),
            ticks: stream.opening.voucher().body().ticks,
            revealed: stream.revealed,
            accepted: lane.accepted_index(),
            opened: stream.opened,
            waits: lane.waits(),
        })
    }

    /// Takes the hub's word that an opening or a fold is durable.
    pub fn opened(&mut self, message: &v1::StreamOpened) -> Result<Step, Misbehaviour> {
        let asset = wire::read_address("opened.asset", &message.asset)?;
        let account = self.state.accounts.get(&asset).ok_or(Misbehaviour::UnknownAccount { asset })?;
        let Some((lane, known)) = account.lanes.iter().find(|(_, l)| l.has_tag(message.tag)) else {
            return Ok(Step::default());
        };
        let lane = *lane;
        if known.fold.is_some() {
            return Ok(self.step(vec![Record::Folded { asset, lane }]));
        }
        let Some(stream) = &known.stream else { return Ok(Step::default()) };
        let (anchor, stream) = (stream.anchor(), stream.opening.terms().stream);
        let mut step = self.step(vec![Record::Opened { asset, lane, anchor }]);
        step.events.push(Event::Opened { asset, lane, stream });
        Ok(step)
    }

    /// Takes a refusal of ticks. What was revealed can still be claimed, so it goes on counting as signed.
    pub fn ticks_refused(&mut self, message: &v1::TickRefused) -> Result<Step, Misbehaviour> {
        let asset = wire::read_address("refused.asset", &message.asset)?;
        let account = self.state.accounts.get(&asset).ok_or(Misbehaviour::UnknownAccount { asset })?;
        let (lane, index) = (message.lane, message.index);
        let stream = account.lanes.get(&lane).and_then(|l| l.stream.as_ref());
        let Some(stream) = stream.filter(|s| s.revealed >= index && s.settled < index) else {
            return Ok(Step::default());
        };
        let (anchor, stream) = (stream.anchor(), stream.opening.terms().stream);
        let mut step = self.step(vec![Record::TicksRefused { asset, lane, anchor, index }]);
        step.events.push(Event::TicksRefused {
            asset,
            lane,
            stream,
            index,
            reason: message.reason.clone(),
            message: message.message.clone(),
            retryable: message.retryable,
            retry_after_ms: message.retry_after_ms,
        });
        if let Some(view) = &message.state {
            step.extend(self.lane_view(asset, view));
        }
        Ok(step)
    }

    /// The index before the ticks of the payment that ends with `index`, if the answer of `GetPayment` proves it.
    pub fn ticks_proven(&self, asset: Asset, lane: u32, index: u32, message: &v1::GetPaymentResponse) -> Option<u32> {
        let stream = self.state.accounts.get(&asset)?.lanes.get(&lane)?.stream.as_ref()?;
        let terms = stream.opening.terms();
        let paid = wire::read_payment(message.payment.clone()?).ok()?;
        let count = paid.amount.get().checked_div(terms.amount.get())?;
        let before = index.checked_sub(u32::try_from(count).ok()?).filter(|before| *before < index)?;
        let (id, payee) = (terms.stream.payment(index), terms.payee);
        let payment = Payment { id, payee, amount: times(terms.amount, index.saturating_sub(before)), ..paid };
        self.proves_paid(&payment, message).then_some(before)
    }

    /// Takes ticks that the hub accepted in an earlier session, by the answer that proves them; the earlier ones first.
    pub fn prove_ticks(
        &mut self,
        asset: Asset,
        lane: u32,
        index: u32,
        message: &v1::GetPaymentResponse,
    ) -> Result<Step, Misbehaviour> {
        let bad = Misbehaviour::BadReceipts { flush: message.flush };
        let before = self.ticks_proven(asset, lane, index, message).ok_or(bad.clone())?;
        let account = &self.state.accounts[&asset];
        let stream = account.lanes.get(&lane).and_then(|l| l.stream.as_ref()).ok_or(bad.clone())?;
        let ticks = TicksAccepted { lane, before, index, anchor: stream.anchor(), terms: *stream.opening.terms() };
        if !account.is_news(&ticks) {
            return Ok(Step::default());
        }
        account.check_ticks(&ticks)?;
        let key = self.receipt_key(ticks.terms.payee).ok_or(bad.clone())?;
        let receipt = message.receipt.as_ref().ok_or(bad)?;
        let receipts = vec![wire::read_receipt(&self.domain, &key, receipt)?];
        self.note_batches(&receipts);
        let event = paid_event(asset, &ticks, &receipts);
        let (flush, ticks) = (message.flush, vec![ticks]);
        let mut step = self.step(vec![Record::Accepted { asset, flush, frames: Vec::new(), receipts, ticks }]);
        step.events.extend(event);
        Ok(step)
    }

    /// Who was shown words of a chain can claim them wherever its end, or another of its words, is signed again. What is
    /// forgotten is not looked at: random bytes do not come twice.
    fn check_fresh(&self, secret: Secret) -> Result<(), PayError> {
        let longest = Words::new(secret.0, TickVoucher::TICKS_MAX);
        let mut lanes = self.state.accounts.values().flat_map(|account| &account.lanes);
        let used = lanes.find(|(_, lane)| lane.anchors().any(|anchor| longest.contains(anchor)));
        used.map_or(Ok(()), |(lane, _)| Err(PayError::SecretUsed { lane: *lane }))
    }

    /// The account, if its lane can be continued: nothing on it waits for an answer.
    fn lane_to_continue(&self, asset: Asset, lane: u32) -> Result<&Account, PayError> {
        let account = self.state.accounts.get(&asset).ok_or(PayError::NoAccount { asset })?;
        self.check_open(account)?;
        let waits = account.lanes.get(&lane).is_some_and(|l| l.doomed || l.waits());
        if waits || account.unanswered.iter().any(|p| p.frame.lane() == lane) {
            return Err(PayError::LaneBusy { lane });
        }
        Ok(account)
    }

    /// A refusal that answers an opening or a fold.
    fn not_opened(&mut self, message: &v1::Refused) -> Step {
        let found = self.state.accounts.iter().find_map(|(asset, account)| {
            let (lane, known) = account.lanes.iter().find(|(_, l)| l.has_tag(message.tag))?;
            let stream = known.stream.as_ref().filter(|_| known.fold.is_none()).map(|s| s.opening.terms().stream);
            Some((*asset, *lane, stream))
        });
        let Some((asset, lane, stream)) = found else { return Step::default() };
        let mut step = self.step(vec![Record::NotOpened { asset, lane }]);
        step.events.extend(stream.map(|stream| Event::NotOpened {
            asset,
            lane,
            stream,
            reason: message.reason.clone(),
            message: message.message.clone(),
            retryable: message.retryable,
            retry_after_ms: message.retry_after_ms,
        }));
        if let Some(view) = &message.lane {
            step.extend(self.lane_view(asset, view));
        }
        step
    }

    /// Ticks that were accepted after others whose receipts did not come.
    fn note_unproven(&mut self, asset: Asset, later: &[TicksAccepted]) -> Step {
        for ticks in later {
            self.of(asset).lane(ticks.lane).show(ticks.index);
        }
        let event = |ticks: &TicksAccepted| Event::TicksUnproven { asset, lane: ticks.lane, index: ticks.index };
        Step { records: Vec::new(), events: later.iter().map(event).collect() }
    }

    /// Whether the hub has ticks of an open stream whose receipts did not come.
    fn unproven(&self, asset: Asset, view: &v1::LaneState) -> Option<Event> {
        let lane = self.state.accounts.get(&asset)?.lanes.get(&view.lane)?;
        let (stream, index) = (lane.stream.as_ref()?, view.ticks.as_ref()?.index);
        let mine = view.ticks.as_ref().is_some_and(|ticks| ticks.anchor.as_ref() == stream.anchor().as_slice());
        let news = mine && index > lane.accepted_index() && index <= stream.revealed;
        news.then_some(Event::TicksUnproven { asset, lane: view.lane, index })
    }
}

// ---- being paid ----------------------------------------------------------------------------------------------------

impl Member {
    /// Takes credits and the voucher over them. The voucher is kept as evidence whatever the credits are; they are
    /// counted only where number, total and head continue.
    pub fn credited(&mut self, message: v1::Credited) -> Result<Step, Misbehaviour> {
        let asset = wire::read_address("credited.asset", &message.asset)?;
        let id = self.account_id(asset);
        self.state.accounts.get(&asset).ok_or(Misbehaviour::UnknownAccount { asset })?;
        let voucher = message.voucher.as_ref();
        let voucher = voucher.map(|v| wire::read_hub_voucher(&self.domain, &self.hub_key, id, v)).transpose()?;
        let mut step = match &voucher {
            Some(voucher) => self.keep_hub_voucher(asset, voucher.clone()),
            None => Step::default(),
        };
        for credit in message.credits {
            let credit = wire::read_credit(credit)?;
            if let Err(fault) = self.stage(id, credit) {
                self.of(asset).staged.clear();
                self.of(asset).gap = true;
                step.events.push(Event::Misbehaved(fault));
                return Ok(step);
            }
        }
        if let Some(voucher) = voucher {
            step.extend(self.count(asset, voucher.body()));
        }
        Ok(step)
    }

    /// Whether the credits of this session do not continue what is counted: a new session asks for them again.
    pub fn has_gap(&self, asset: Asset) -> bool {
        self.state.accounts.get(&asset).is_some_and(|a| a.gap)
    }

    /// After a loss of data: takes the largest voucher of the hub that is kept as the new base of what is counted.
    pub fn rebase(&mut self, asset: Asset) -> Step {
        let Some(account) = self.state.accounts.get(&asset) else { return Step::default() };
        let Some(voucher) = &account.hub_voucher else { return Step::default() };
        let counted = counted_by(voucher.body());
        if counted.credits <= account.counted.credits || !account.may_count() {
            return Step::default();
        }
        let mut step = self.step(vec![Record::Credited { asset, counted, credits: Vec::new() }]);
        self.of(asset).gap = false;
        step.events.push(Event::Rebased { asset, credits: counted.credits });
        step
    }

    /// The member's word over what he holds and counts as backed, if there is more of it than he said before.
    pub fn ack(&mut self, asset: Asset) -> Option<Signed<Ack>> {
        let channel = self.channel();
        let trusts = self.trusts_itself();
        let account = self.state.accounts.get_mut(&asset)?;
        let counted = account.counted;
        if counted.credits <= account.acked || !account.unbacked(trusts).is_zero() || account.gap {
            return None;
        }
        account.acked = counted.credits;
        let ack = Ack { channelId: channel.0, asset, credits: counted.credits, head: counted.head };
        Some(Signed::sign(&self.domain, &self.key, ack))
    }

    /// Credits counted and not yet acknowledged in this session.
    pub fn unacked(&self, asset: Asset) -> u64 {
        self.state.accounts.get(&asset).map(|a| a.counted.credits.saturating_sub(a.acked)).unwrap_or_default()
    }

    fn keep_hub_voucher(&mut self, asset: Asset, voucher: Proven<Voucher>) -> Step {
        self.note_batch(voucher.digest(), voucher.proof());
        let known = self.state.accounts.get(&asset).and_then(|a| a.hub_voucher.as_ref());
        if known.is_some_and(|k| k.body().cumulative >= voucher.body().cumulative) {
            return Step::default();
        }
        self.step(vec![Record::HubVoucher(voucher)])
    }

    fn stage(&mut self, id: AccountId, credit: Credit) -> Result<(), Misbehaviour> {
        let receipt = credit.receipt(id);
        let digest = self.domain.digest(&receipt);
        let account = self.of(id.asset);
        let before = account.staged.last().map(|s| s.after).unwrap_or(account.counted);
        if credit.number <= before.credits {
            return Ok(());
        }
        if Some(credit.number) != before.credits.checked_add(1) || account.gap {
            return Err(Misbehaviour::Gap { expected: before.credits.saturating_add(1), given: credit.number });
        }
        let sum = Amount::checked_sum(credit.payments.iter().map(|p| p.amount));
        let positive = !credit.amount.is_zero() && credit.payments.iter().all(|p| !p.amount.is_zero());
        let continues = before.total.checked_add(credit.amount) == Some(credit.total);
        if !positive || !continues || sum != Some(credit.amount) || account.staged.len() >= STAGED_MAX {
            return Err(Misbehaviour::CreditChain { number: credit.number });
        }
        let head = chain_hash(before.head, digest);
        let after = Counted { credits: credit.number, total: credit.total, head };
        account.staged.push(Staged { after, credit });
        Ok(())
    }

    fn count(&mut self, asset: Asset, voucher: &Voucher) -> Step {
        let account = self.of(asset);
        let reached = account.staged.last().map(|s| s.after).unwrap_or(account.counted);
        // A voucher over credits that are still to come: they are held back until then. While the account is not open, or
        // a close that this member signed may be posted, nothing new counts; the hub sends it again in a new session.
        if voucher.credits > reached.credits || account.staged.is_empty() || !account.may_count() {
            return Step::default();
        }
        let staged = std::mem::take(&mut account.staged);
        if counted_by(voucher) != reached {
            account.gap = true;
            let fault = Misbehaviour::CreditChain { number: voucher.credits };
            return Step { records: Vec::new(), events: vec![Event::Misbehaved(fault)] };
        }
        let credits = staged.iter().map(|s| note_of(&s.credit)).collect();
        let mut step = self.step(vec![Record::Credited { asset, counted: reached, credits }]);
        step.events = staged.into_iter().map(|s| Event::Received { asset, credit: s.credit }).collect();
        step
    }
}

// ---- delivery ------------------------------------------------------------------------------------------------------

impl Member {
    /// Takes a payee's acknowledgement. Payments are delivered when the payee's pinned key signed it and the heads
    /// computed from this member's own receipt on end in the acknowledged one.
    pub fn delivered(&mut self, message: &v1::Delivered) -> Result<Step, Misbehaviour> {
        let payee = wire::read_channel("delivered.payee", &message.payee)?;
        let Some(terms) = self.state.pins.get(&payee) else { return Ok(Step::default()) };
        let scheme = Scheme::from_number(terms.memberScheme).expect("pinned terms were checked");
        let key = PublicKey { scheme, bytes: terms.memberKey };
        let page = wire::read_delivered(&self.domain, &key, message)?;
        let asset = page.ack.body().asset;
        let account = self.state.accounts.get_mut(&asset).ok_or(Misbehaviour::UnknownAccount { asset })?;
        let Some(delivery) = account.delivery_of(&page) else { return Ok(Step::default()) };
        let mut delivery = delivery;
        for digest in &page.digests {
            if delivery.next > delivery.credits {
                return Err(Misbehaviour::NotInTheChain { payee, credit: page.credit });
            }
            if let Some(held) = account.undelivered.get(&(payee, delivery.next)) {
                delivery.matched.push((delivery.next, held.receipt.digest() == *digest));
            }
            delivery.reached = chain_hash(delivery.reached, *digest);
            delivery.next = delivery.next.saturating_add(1);
        }
        if !page.last_page {
            account.deliveries.insert(payee, delivery);
            return Ok(Step::default());
        }
        let complete = delivery.next == delivery.credits.saturating_add(1) && delivery.reached == delivery.head;
        if !complete {
            return Err(Misbehaviour::NotInTheChain { payee, credit: page.credit });
        }
        Ok(self.take_delivery(asset, payee, delivery))
    }

    fn take_delivery(&mut self, asset: Asset, payee: ChannelId, delivery: Delivery) -> Step {
        let account = self.of(asset);
        let (good, bad): (Vec<_>, Vec<_>) = delivery.matched.into_iter().partition(|(_, matches)| *matches);
        let receipts: Vec<_> = good.into_iter().map(|(credit, _)| (payee, credit)).collect();
        let ids = receipts.iter().filter_map(|key| account.undelivered.get(key)).flat_map(|h| h.ids.clone()).collect();
        let mut step = self.step(vec![Record::Delivered { asset, receipts }]);
        step.events.push(Event::Delivered { asset, payee, ids });
        let faults = bad.into_iter().map(|(credit, _)| Misbehaviour::NotInTheChain { payee, credit });
        step.events.extend(faults.map(Event::Misbehaved));
        step
    }

    /// The first receipt of each payee that it has not acknowledged: what to ask the hub for when a session begins,
    /// because a payee may have acknowledged while this member was away.
    pub fn undelivered(&self) -> Vec<(Asset, ChannelId, u64)> {
        let mut first: BTreeMap<(Asset, ChannelId), u64> = BTreeMap::new();
        for (asset, account) in &self.state.accounts {
            for (payee, credit) in account.undelivered.keys() {
                first.entry((*asset, *payee)).or_insert(*credit);
            }
        }
        first.into_iter().map(|((asset, payee), credit)| (asset, payee, credit)).collect()
    }

    /// The first receipt of one payee that it has not acknowledged.
    pub fn undelivered_by(&self, asset: Asset, payee: ChannelId) -> Option<u64> {
        let account = self.state.accounts.get(&asset)?;
        account.undelivered.range((payee, 0)..=(payee, u64::MAX)).next().map(|((_, credit), _)| *credit)
    }

    /// The largest receipt for a payee that it has not acknowledged: to be handed to it, or posted when its account is
    /// seen closing.
    pub fn receipt_for(&self, asset: Asset, payee: ChannelId) -> Option<(&ChannelTerms, &Proven<Receipt>)> {
        let account = self.state.accounts.get(&asset)?;
        let of_payee = account.undelivered.range((payee, 0)..=(payee, u64::MAX));
        let largest = of_payee.map(|(_, held)| &held.receipt).max_by_key(|r| r.body().total)?;
        Some((self.state.pins.get(&payee)?, largest))
    }
}

// ---- sessions ------------------------------------------------------------------------------------------------------

impl Member {
    /// Answers a challenge: `Login` is a struct of its own, so that no challenge is ever signed as it came.
    pub fn login(&self, server: B256, nonce: B256, expires: u64) -> Signed<Login> {
        let login = Login { channelId: self.channel().0, server, nonce, expires };
        Signed::sign(&self.domain, &self.key, login)
    }

    /// Begins a session: what the hub is told, so that it can show what is missing and notice its own age.
    pub fn hello(&mut self, login: &Signed<Login>, name: &str) -> v1::Hello {
        self.next_tag = 1;
        for account in self.state.accounts.values_mut() {
            account.staged.clear();
            account.deliveries.clear();
            account.partial.clear();
            account.acked = 0;
            account.gap = false;
            account.unanswered.iter_mut().for_each(|p| (p.tag, p.again) = (0, false));
            for lane in account.lanes.values_mut() {
                lane.stream.iter_mut().for_each(|stream| (stream.tag, stream.shown) = (0, 0));
                lane.fold.iter_mut().for_each(|fold| fold.tag = 0);
            }
        }
        let batch = self.state.newest_batch.as_ref().map(|b| v1::BatchSeen {
            flush: b.flush,
            root: wire::bytes_of(b.root),
            signature: wire::bytes_of(b.signature.as_slice()),
        });
        v1::Hello {
            channel_id: wire::bytes_of(self.channel().0),
            signature: wire::bytes_of(login.signature().as_slice()),
            newest_batch: batch,
            accounts: self.state.accounts.iter().map(|(asset, account)| account.seen(*asset)).collect(),
            name: name.to_owned(),
        }
    }

    /// Takes the hub's view of the accounts at the beginning of a session.
    pub fn welcome(&mut self, message: &v1::Welcome) -> Result<Step, Misbehaviour> {
        let mut step = Step::default();
        for view in &message.accounts {
            let asset = wire::read_address("account.asset", &view.asset)?;
            if !self.state.accounts.contains_key(&asset) {
                continue;
            }
            for lane in &view.lanes {
                step.extend(self.lane_view(asset, lane));
                step.events.extend(self.unproven(asset, lane));
            }
            let id = self.account_id(asset);
            let account = &self.state.accounts[&asset];
            let ours = account.hub_voucher.as_ref().map(|v| v.body().cumulative).unwrap_or_default();
            let missing =
                account.lanes.iter().find(|(n, l)| l.accepted.is_some() && view.lanes.iter().all(|v| v.lane != **n));
            if let Some((lane, known)) = missing {
                let (lane, ours, theirs) = (*lane, known.accepted_cumulative(), Amount::ZERO);
                step.events.push(Event::Misbehaved(Misbehaviour::LaneBehind { lane, ours, theirs }));
            }
            let theirs = match &view.hub_voucher {
                Some(voucher) => {
                    let voucher = wire::read_hub_voucher(&self.domain, &self.hub_key, id, voucher)?;
                    let cumulative = voucher.body().cumulative;
                    step.extend(self.keep_hub_voucher(asset, voucher));
                    cumulative
                }
                None => 0,
            };
            if theirs < ours {
                let (ours, theirs) = (Amount::new(ours), Amount::new(theirs));
                step.events.push(Event::Misbehaved(Misbehaviour::VoucherBehind { ours, theirs }));
            }
        }
        Ok(step)
    }

    /// What no answer came to, to be sent again byte for byte in this order.
    pub fn resend(&mut self) -> Vec<Resent> {
        let mut resent = Vec::new();
        let mut next = self.next_tag;
        let mut take_tag = || {
            next = next.saturating_add(1);
            next.saturating_sub(1)
        };
        for (asset, account) in &mut self.state.accounts {
            for pending in &mut account.unanswered {
                (pending.tag, pending.again) = (take_tag(), true);
                resent.push(Resent::Frame(pending.tag, pending.frame.clone()));
            }
            for (lane, state) in &mut account.lanes {
                if let Some(fold) = &mut state.fold {
                    fold.tag = take_tag();
                    resent.push(Resent::Fold(fold.tag, fold.voucher.clone()));
                }
                let Some(stream) = &mut state.stream else { continue };
                if !stream.opened {
                    stream.tag = take_tag();
                    resent.push(Resent::Opening(stream.tag, stream.opening.clone()));
                }
                let index = stream.revealed;
                if index > stream.settled
                    && let Some(word) = stream.words().word(index)
                {
                    resent.push(Resent::Tick(Tick { asset: *asset, lane: *lane, index, word }));
                }
            }
        }
        self.next_tag = next;
        resent
    }

    /// What a lane's state, as the hub shows it, means: nothing without this member's own signature.
    fn lane_view(&mut self, asset: Asset, view: &v1::LaneState) -> Step {
        let fault = |fault| Step { records: Vec::new(), events: vec![Event::Misbehaved(fault)] };
        let read = wire::read_lane(&self.domain, &self.key.public(), self.account_id(asset), view);
        let Ok(voucher) = read else { return fault(Misbehaviour::LaneUnsigned { lane: view.lane }) };
        let lane = voucher.lane();
        let account = self.of(asset);
        let known = account.lanes.get(&lane).cloned().unwrap_or_default();
        let (ours, theirs) = (known.accepted_cumulative(), voucher.value());
        let same = |tip: LaneTip| tip == voucher.tip();
        let waiting = account.unanswered.iter().any(|p| p.frame.lane() == lane && same(p.frame.tip()))
            || known.fold.as_ref().is_some_and(|fold| same(tip_of(&fold.voucher)));
        if waiting || known.accepted.as_ref().is_some_and(|accepted| same(accepted.tip())) {
            return Step::default();
        }
        // The stream that this member has open: an index that he revealed is no news, a smaller one than was receipted is
        // looked at below, and only he knows words that he does not remember revealing.
        let mine = known.stream.as_ref().zip(voucher.ticks()).filter(|(mine, view)| mine.opening == *view.opening());
        if let Some((stream, view)) = mine
            && (ours..=stream.tip_revealed().cumulative).contains(&theirs)
        {
            let opened = Record::Opened { asset, lane, anchor: view.anchor() };
            let step = if stream.opened { Step::default() } else { self.step(vec![opened]) };
            self.of(asset).lane(lane).show(view.index());
            return step;
        }
        if theirs < ours {
            return fault(Misbehaviour::LaneBehind { lane, ours, theirs });
        }
        if mine.is_none() && theirs <= known.signed_max {
            return fault(Misbehaviour::KeptRefused { lane, cumulative: theirs });
        }
        let mut step = self.step(vec![Record::Adopted(voucher)]);
        self.distrust();
        step.events.push(Event::StoreWasOld { asset, lane });
        step
    }
}

// ---- settling ------------------------------------------------------------------------------------------------------

impl Member {
    /// Signs a settlement that the hub proposed, or says why not. `ask` is what the user asked for; without it only
    /// what leaves the member's withdrawals unchanged is signed.
    ///
    /// Before the signature leaves, [`Member::settlements_signed`] must be durable in its second place, then the record.
    pub fn agree(&mut self, proposal: Settlement, ask: Option<Ask>) -> Result<(Step, Signed<Settlement>), Decline> {
        self.check_settlement(&proposal, ask)?;
        let signed = Signed::sign(&self.domain, &self.key, proposal);
        Ok((self.step(vec![Record::Agreed(signed.clone())]), signed))
    }

    /// Takes the hub's half of a settlement; afterwards either side can post it.
    pub fn countersigned(&mut self, message: &v1::SettlementPosted) -> Result<Step, Misbehaviour> {
        let asset = wire::read_address("posted.asset", &message.asset)?;
        let account = self.state.accounts.get(&asset).ok_or(Misbehaviour::UnknownAccount { asset })?;
        let (seq, bad) = (message.seq, Misbehaviour::BadSettlement { seq: message.seq });
        let Some(agreed) = account.kept.iter().find(|k| k.signed.body().seq == seq) else { return Ok(Step::default()) };
        let Some(proof) = &message.proof else { return Ok(Step::default()) };
        let proof = wire::read_proof(self.hub_key.scheme, proof)?;
        let proven = Proven::verify(&self.domain, &self.hub_key, agreed.signed.body().clone(), proof.clone());
        proven.map_err(|_| bad)?;
        Ok(self.step(vec![Record::Countersigned { asset, seq, proof }]))
    }

    /// The settlements that this member signed and that may still be posted.
    pub fn agreed(&self, asset: Asset) -> &[Agreed] {
        self.state.accounts.get(&asset).map(|a| a.kept.as_slice()).unwrap_or_default()
    }

    /// Permission for anybody to start a close of the account for this member; it freezes nothing until it is used.
    pub fn close_request(&self, asset: Asset, valid_until: u64) -> Signed<CloseRequest> {
        let request = CloseRequest { channelId: self.channel().0, asset, validUntil: valid_until };
        Signed::sign(&self.domain, &self.key, request)
    }

    fn check_settlement(&self, s: &Settlement, ask: Option<Ask>) -> Result<(), Decline> {
        let account = self.state.accounts.get(&s.asset).filter(|_| s.channelId == self.channel().0);
        let account = account.ok_or(Decline::NoAccount)?;
        if account.ledger.status == Status::Final {
            return Err(Decline::Final);
        }
        if !self.trusts_itself() || self.confirmed_time == 0 {
            return Err(Decline::StoreMayBeOld);
        }
        if account.freeze().is_some() {
            return Err(Decline::Frozen);
        }
        let (given, above) = (s.seq, account.seq_signed.max(account.ledger.seq));
        if given <= above || given >= account.ledger.seq.saturating_add(SEQ_AHEAD_MAX) {
            return Err(Decline::Seq { given, above });
        }
        let (member, hub) = (Amount::new(s.memberWithdrawn), Amount::new(s.hubWithdrawn));
        let (member_before, hub_before) = account.withdrawn();
        if member < member_before || hub < hub_before {
            return Err(Decline::Falls);
        }
        let ledger = &account.ledger;
        if net([ledger.member_deposit, ledger.hub_deposit], [member, hub]).is_negative() {
            return Err(Decline::BeyondDeposits);
        }
        let member_net = net([ledger.member_deposit, account.counted.total], [member, account.paid()]);
        let hub_net = net([ledger.hub_deposit, account.paid()], [hub, account.owed()]);
        if member_net.is_negative() || hub_net.is_negative() {
            return Err(Decline::Unbacked);
        }
        let limit = self.confirmed_time.saturating_add(SETTLEMENT_VALIDITY_S);
        if s.validUntil > limit {
            return Err(Decline::TooLong { given: s.validUntil, limit });
        }
        let asked_for = match ask {
            None => member == member_before && (!s.close || clamp(member_net).is_zero()),
            Some(Ask::Withdraw(more)) => Some(member) == member_before.checked_add(more) && !s.close,
            Some(Ask::Close) => clamp(member_net).is_zero() && s.close,
        };
        if asked_for { Ok(()) } else { Err(Decline::NotAskedFor) }
    }
}

// ---- what is held --------------------------------------------------------------------------------------------------

impl Member {
    /// What an account comes to.
    pub fn balance(&self, asset: Asset) -> Option<Balance> {
        let account = self.state.accounts.get(&asset)?;
        let (_, hub_withdrawn) = account.withdrawn();
        let hub_net = net([account.ledger.hub_deposit, account.paid()], [hub_withdrawn, account.counted.total]);
        Some(Balance {
            available: account.available(),
            received: account.counted.total,
            unbacked: account.unbacked(self.trusts_itself()),
            paid: account.paid(),
            unreceipted: account.unreceipted(),
            undelivered: account.undelivered_sum(),
            inbound: clamp(hub_net),
            ledger: account.ledger,
            frozen: account.freeze().is_some(),
        })
    }

    /// What the member can show to the ledger: his own newest accepted vouchers and the hub's largest, counted or not.
    pub fn evidence(&self, asset: Asset) -> Option<Evidence> {
        let account = self.state.accounts.get(&asset)?;
        let lanes = account.lanes.values().filter_map(|l| l.accepted.clone()).collect();
        Some(Evidence { lanes, hub: account.hub_voucher.clone() })
    }

    /// Applies a record, newly decided or read from the journal. Doing so twice changes nothing more.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Pinned(terms) => {
                self.state.pins.insert(self.domain.channel_id(terms), terms.clone());
            }
            Record::Ledger { asset, totals } => self.of(*asset).ledger = *totals,
            Record::Signed(frame) => self.of(frame.account().asset).sign(frame),
            Record::Accepted { asset, frames, receipts, ticks, .. } => {
                self.of(*asset).accept(frames, ticks, receipts);
                self.note_batches(receipts);
            }
            Record::Opening { opening, secret } => {
                let lane = self.of(opening.account().asset).lanes.entry(opening.lane()).or_default();
                lane.stream = Some(Stream {
                    opening: opening.clone(),
                    secret: *secret,
                    opened: false,
                    revealed: 0,
                    settled: 0,
                    shown: 0,
                    tag: 0,
                    words: None,
                });
            }
            Record::Opened { asset, lane, anchor } => self.of(*asset).lane(*lane).opened(*anchor),
            Record::NotOpened { asset, lane } => {
                let lane = self.of(*asset).lane(*lane);
                // What waited is the fold of an open stream, or the opening of one.
                lane.fold = None;
                lane.stream = lane.stream.take().filter(|stream| stream.opened);
            }
            Record::Revealed { asset, lane, index } => self.of(*asset).lane(*lane).reveal(*index),
            Record::TicksRefused { asset, lane, anchor, index } => {
                let stream = self.of(*asset).lane(*lane).stream.as_mut().filter(|stream| stream.anchor() == *anchor);
                stream.into_iter().for_each(|stream| stream.settled = stream.settled.max(*index));
            }
            Record::Folding(voucher) => {
                let lane = self.of(voucher.body().asset).lane(voucher.body().lane);
                lane.fold = Some(Fold { voucher: voucher.clone(), tag: 0 });
            }
            Record::Folded { asset, lane } => self.of(*asset).lane(*lane).folded(),
            Record::Refused { asset, lane, cumulative } => self.of(*asset).refuse(*lane, *cumulative),
            Record::Adopted(voucher) => self.of(voucher.account().asset).adopt(voucher),
            Record::HubVoucher(voucher) => {
                self.note_batch(voucher.digest(), voucher.proof());
                self.of(voucher.body().asset).hub_voucher = Some(voucher.clone());
            }
            Record::Credited { asset, counted, .. } => self.of(*asset).counted = *counted,
            Record::Delivered { asset, receipts } => {
                let account = self.of(*asset);
                for held in receipts.iter().filter_map(|key| account.undelivered.remove(key)) {
                    account.undelivered_total = account.undelivered_total.saturating_sub(held.amount());
                }
            }
            Record::Agreed(signed) => {
                let account = self.of(signed.body().asset);
                if account.seq_signed < signed.body().seq {
                    account.seq_signed = signed.body().seq;
                    account.kept.push(Agreed { signed: signed.clone(), hub: None });
                    self.state.settlements_signed = self.state.settlements_signed.saturating_add(1);
                }
            }
            Record::Countersigned { asset, seq, proof } => {
                let kept = &mut self.of(*asset).kept;
                kept.iter_mut().filter(|k| k.signed.body().seq == *seq).for_each(|k| k.hub = Some(proof.clone()));
            }
        }
    }

    fn step(&mut self, records: Vec<Record>) -> Step {
        records.iter().for_each(|record| self.apply(record));
        Step { records, events: Vec::new() }
    }

    fn of(&mut self, asset: Asset) -> &mut Account {
        self.state.accounts.entry(asset).or_default()
    }

    fn account_id(&self, asset: Asset) -> AccountId {
        AccountId { channel: self.channel(), asset }
    }

    fn take_tag(&mut self) -> u64 {
        let tag = self.next_tag;
        self.next_tag = tag.saturating_add(1);
        tag
    }

    fn note_batches(&mut self, receipts: &[Proven<Receipt>]) {
        for receipt in receipts {
            // Only batches of this channel's own hub key: the hub compares them with what that key signed.
            if self.receipt_key(ChannelId(receipt.body().channelId)) == Some(self.hub_key) {
                self.note_batch(receipt.digest(), receipt.proof());
            }
        }
    }

    fn note_batch(&mut self, digest: B256, proof: &Proof) {
        let Proof::Batch { flush, path, signature } = proof else { return };
        if self.state.newest_batch.as_ref().is_some_and(|b| b.flush >= *flush) {
            return;
        }
        let Some(root) = crate::batch::root_of(&digest, path) else { return };
        self.state.newest_batch = Some(BatchSeen { flush: *flush, root, signature: *signature });
    }
}

impl Account {
    /// Where the next frame of a lane continues: the last signed frame that waits, or the last accepted one.
    fn tip(&self, lane: u32) -> LaneTip {
        let waiting = self.unanswered.iter().rev().find(|p| p.frame.lane() == lane);
        match waiting {
            Some(pending) => pending.frame.tip(),
            None => self.lanes.get(&lane).map(Lane::tip).unwrap_or_default(),
        }
    }

    fn lane(&mut self, lane: u32) -> &mut Lane {
        self.lanes.entry(lane).or_default()
    }

    /// Whether these are ticks of a stream of this member beyond what receipts prove.
    fn is_news(&self, ticks: &TicksAccepted) -> bool {
        let lane = self.lanes.get(&ticks.lane);
        lane.is_some_and(|l| l.anchor() == Some(ticks.anchor) && ticks.index > l.accepted_index())
    }

    /// Whether ticks start where the hub showed the lane in this session, beyond what receipts prove.
    fn follows_unproven(&self, ticks: &TicksAccepted) -> bool {
        let Some(lane) = self.lanes.get(&ticks.lane) else { return false };
        let Some(stream) = &lane.stream else { return false };
        ticks.before > lane.accepted_index()
            && ticks.before <= stream.shown
            && ticks.index <= stream.revealed
            && ticks.terms == *stream.opening.terms()
    }

    /// Ticks are accepted in their order, without a gap, and never beyond what was revealed.
    fn check_ticks(&self, ticks: &TicksAccepted) -> Result<(), Misbehaviour> {
        let lane = self.lanes.get(&ticks.lane);
        let fits = |lane: &Lane, stream: &Stream| {
            ticks.before == lane.accepted_index()
                && ticks.index <= stream.revealed
                && ticks.terms == *stream.opening.terms()
        };
        match lane.and_then(|lane| Some((lane, lane.stream.as_ref()?))) {
            Some((lane, stream)) if fits(lane, stream) => Ok(()),
            Some(_) | None => Err(Misbehaviour::Order { lane: ticks.lane }),
        }
    }

    fn paid(&self) -> Amount {
        sum(self.lanes.values().map(Lane::accepted_cumulative))
    }

    /// `PM` with everything that waits for an answer.
    fn committed(&self) -> Amount {
        let mut lanes: Vec<u32> = self.lanes.keys().copied().collect();
        lanes.extend(self.unanswered.iter().map(|p| p.frame.lane()));
        lanes.sort_unstable();
        lanes.dedup();
        sum(lanes.into_iter().map(|lane| self.tip(lane).cumulative))
    }

    /// `PH` with everything held, counted or not: what the hub's net has to carry.
    fn owed(&self) -> Amount {
        let held = self.hub_voucher.as_ref().map(|v| Amount::new(v.body().cumulative)).unwrap_or_default();
        held.max(self.counted.total)
    }

    fn withdrawn(&self) -> (Amount, Amount) {
        let posted: Vec<Kept> = self.kept.iter().map(kept).collect();
        self.ledger.withdrawn_with(&posted)
    }

    fn available(&self) -> Amount {
        let (withdrawn, _) = self.withdrawn();
        clamp(net([self.ledger.member_deposit, self.counted.total], [withdrawn, self.committed()]))
    }

    /// The part of what was counted that the contract holds no collateral for.
    fn unbacked(&self, trusts_collateral: bool) -> Amount {
        // A settlement that this store forgot may take what was paid to the hub just as well as what it deposited.
        if !trusts_collateral {
            return self.counted.total;
        }
        let (_, withdrawn) = self.withdrawn();
        clamp(net([withdrawn, self.counted.total], [self.ledger.hub_deposit, self.paid()]))
    }

    fn unreceipted(&self) -> Amount {
        sum(self.lanes.values().map(|l| l.signed_max.saturating_sub(l.receipted)))
    }

    fn undelivered_sum(&self) -> Amount {
        self.undelivered_total
    }

    /// Whether new credits count: a voucher that comes late in a challenge period, or after it, the ledger may never pay.
    fn may_count(&self) -> bool {
        self.ledger.status == Status::Open && self.freeze().is_none()
    }

    /// Until when a close that this member signed may be posted, if there is one.
    fn freeze(&self) -> Option<u64> {
        self.kept.iter().filter(|k| k.signed.body().close).map(|k| k.signed.body().validUntil).max()
    }

    fn position_of(&self, tag: u64) -> Option<usize> {
        self.unanswered.iter().position(|p| p.tag == tag && tag != 0)
    }

    fn pending_id(&self, payments: &[Payment]) -> Option<PaymentId> {
        payments.iter().map(|p| p.id).find(|id| self.waiting_ids.contains(id))
    }

    /// The waiting frames that a set of receipts proves: those that were named, or the run around them that the
    /// receipts open to.
    fn covered(
        &self,
        asset: Asset,
        named: &[usize],
        ticks: &[Row],
        receipts: &[Proven<Receipt>],
    ) -> Option<Vec<usize>> {
        if self.proven_by(asset, named, ticks, receipts) {
            return Some(named.to_vec());
        }
        let (first, last) = (*named.iter().min()?, *named.iter().max()?);
        for from in (0..=first).rev() {
            for to in last..self.unanswered.len() {
                let run: Vec<usize> = (from..=to).collect();
                if self.proven_by(asset, &run, ticks, receipts) {
                    return Some(run);
                }
            }
        }
        None
    }

    /// As [`Account::covered`], for frames that were sent again, with those that the same flush answered before.
    fn covered_together(
        &mut self,
        asset: Asset,
        flush: u64,
        named: &[usize],
        ticks: &[Row],
        receipts: &[Proven<Receipt>],
    ) -> Partial {
        if named.is_empty() || named.iter().any(|&i| !self.unanswered[i].again) {
            return Partial::Bad;
        }
        let mut tags = self.partial.remove(&flush).unwrap_or_default();
        tags.extend(named.iter().map(|&i| self.unanswered[i].tag));
        let together: Vec<usize> =
            (0..self.unanswered.len()).filter(|&i| tags.contains(&self.unanswered[i].tag)).collect();
        if self.proven_by(asset, &together, ticks, receipts) {
            return Partial::Covered(together);
        }
        self.partial.insert(flush, tags);
        let waits = |p: &Pending| p.again && self.partial.values().all(|tags| !tags.contains(&p.tag));
        if self.unanswered.iter().any(waits) { Partial::Waits } else { Partial::Bad }
    }

    fn proven_by(&self, asset: Asset, frames: &[usize], ticks: &[Row], receipts: &[Proven<Receipt>]) -> bool {
        let mut lists: BTreeMap<ChannelId, Vec<(PaymentId, Amount)>> = BTreeMap::new();
        for p in frames.iter().flat_map(|&i| &self.unanswered[i].frame.payments) {
            lists.entry(p.payee).or_default().push((p.id, p.amount));
        }
        for (payee, id, amount) in ticks {
            lists.entry(*payee).or_default().push((*id, *amount));
        }
        let fits = |receipt: &Proven<Receipt>, rows: &[(PaymentId, Amount)]| {
            let body = receipt.body();
            let numbers = if body.is_for_hub() {
                body.credit == 0 && body.total == 0
            } else {
                body.credit > 0 && body.total >= body.amount
            };
            numbers
                && body.asset == asset
                && Amount::checked_sum(rows.iter().map(|r| r.1)) == Some(Amount::new(body.amount))
                && payments_hash(rows) == body.payments
        };
        // One receipt for each payee: the same one twice would hide that another payee got nothing.
        let payees: BTreeSet<B256> = receipts.iter().map(|r| r.body().channelId).collect();
        payees.len() == receipts.len()
            && lists.len() == receipts.len()
            && receipts.iter().all(|r| lists.get(&ChannelId(r.body().channelId)).is_some_and(|rows| fits(r, rows)))
    }

    /// Accepted frames must be the oldest waiting ones of their lanes, and continue what was accepted: a frame whose
    /// predecessor was refused carries that one's money too, and no receipt says so. What this member's own signature
    /// already covers, adopted from the hub, is answered again at any time.
    fn check_order(&self, frames: &[usize]) -> Result<(), Misbehaviour> {
        let mut reached: BTreeMap<u32, Amount> = BTreeMap::new();
        let mut in_order = frames.to_vec();
        in_order.sort_unstable();
        for &i in &in_order {
            let frame = &self.unanswered[i].frame;
            let (lane, end) = (frame.lane(), frame.tip().cumulative);
            let accepted = self.lanes.get(&lane).map(Lane::accepted_cumulative).unwrap_or_default();
            let at = reached.entry(lane).or_insert(accepted);
            let continues = frame.cost().and_then(|cost| at.checked_add(cost)) == Some(end);
            let skipped = (0..i).any(|j| self.unanswered[j].frame.lane() == lane && !frames.contains(&j));
            if skipped || !(continues || end <= *at) {
                return Err(Misbehaviour::Order { lane });
            }
            *at = (*at).max(end);
        }
        Ok(())
    }

    fn sign(&mut self, frame: &Frame) {
        let lane = self.lanes.entry(frame.lane()).or_default();
        lane.signed_max = lane.signed_max.max(frame.tip().cumulative);
        self.waiting_ids.extend(frame.payments.iter().map(|p| p.id));
        self.unanswered.push_back(Pending { frame: frame.clone(), tag: 0, again: false });
    }

    fn accept(&mut self, frames: &[(u32, Amount)], ticks: &[TicksAccepted], receipts: &[Proven<Receipt>]) {
        let mut ids: BTreeMap<ChannelId, Vec<PaymentId>> = BTreeMap::new();
        for (lane, cumulative) in frames {
            let Some(i) = self.unanswered.iter().position(|p| p.place() == (*lane, *cumulative)) else { continue };
            let pending = self.unanswered.remove(i).expect("its position was just found");
            for p in &pending.frame.payments {
                self.waiting_ids.remove(&p.id);
                ids.entry(p.payee).or_default().push(p.id);
            }
            let known = self.lanes.entry(*lane).or_default();
            known.receipted = known.receipted.max(*cumulative);
            if *cumulative > known.accepted_cumulative() {
                known.accepted = Some(LaneVoucher::Plain(pending.frame.voucher));
                known.stream = None;
            }
            self.settle_lane(*lane);
        }
        for ticks in ticks {
            if let Some((payee, id)) = self.lane(ticks.lane).accept_ticks(ticks.anchor, ticks.index) {
                ids.entry(payee).or_default().push(id);
            }
        }
        for receipt in receipts.iter().filter(|r| !r.body().is_for_hub()) {
            let payee = ChannelId(receipt.body().channelId);
            let held = Held { receipt: receipt.clone(), ids: ids.remove(&payee).unwrap_or_default() };
            self.undelivered_total = self.undelivered_total.saturating_add(held.amount());
            let key = (payee, receipt.body().credit);
            if let Some(replaced) = self.undelivered.insert(key, held) {
                self.undelivered_total = self.undelivered_total.saturating_sub(replaced.amount());
                // Frames and ticks of one receipt may be proven one after the other.
                if let Some(held) = self.undelivered.get_mut(&key).filter(|h| h.receipt == replaced.receipt) {
                    let more = std::mem::replace(&mut held.ids, replaced.ids);
                    let more: Vec<_> = more.into_iter().filter(|id| !held.ids.contains(id)).collect();
                    held.ids.extend(more);
                }
            }
            let oldest = self.undelivered.range((payee, 0)..).next().map(|(key, _)| *key);
            if let Some(oldest) = oldest.filter(|_| self.undelivered.len() > UNDELIVERED_MAX) {
                self.undelivered.remove(&oldest);
            }
        }
    }

    fn refuse(&mut self, lane: u32, cumulative: Amount) {
        let Some(i) = self.unanswered.iter().position(|p| p.place() == (lane, cumulative)) else { return };
        let refused = self.unanswered.remove(i).expect("its position was just found");
        for p in &refused.frame.payments {
            self.waiting_ids.remove(&p.id);
        }
        self.lanes.entry(lane).or_default().doomed = true;
        self.settle_lane(lane);
    }

    fn adopt(&mut self, voucher: &LaneVoucher) {
        let lane = self.lane(voucher.lane());
        lane.signed_max = lane.signed_max.max(voucher.value());
        lane.accepted = Some(voucher.clone());
        (lane.stream, lane.fold) = (None, None);
        lane.doomed = true;
        self.settle_lane(voucher.lane());
    }

    /// A lane none of whose frames waits can be continued from what was accepted.
    fn settle_lane(&mut self, lane: u32) {
        if self.unanswered.iter().all(|p| p.frame.lane() != lane) {
            self.lanes.entry(lane).or_default().doomed = false;
        }
    }

    fn delivery_of(&mut self, page: &wire::Delivered) -> Option<Delivery> {
        let ack = page.ack.body();
        let begun = self.deliveries.remove(&page.payee).filter(|d| d.credits == ack.credits && d.head == ack.head);
        if begun.is_some() {
            return begun;
        }
        let held = self.undelivered.get(&(page.payee, page.credit))?;
        if page.credit > ack.credits {
            return None;
        }
        Some(Delivery {
            credits: ack.credits,
            head: ack.head,
            next: page.credit.saturating_add(1),
            reached: chain_hash(page.head_before, held.receipt.digest()),
            matched: vec![(page.credit, true)],
        })
    }

    fn seen(&self, asset: Asset) -> v1::AccountSeen {
        v1::AccountSeen {
            asset: wire::bytes_of(asset),
            credits: self.counted.credits,
            hub_voucher: self.hub_voucher.as_ref().map(wire::hub_voucher_message),
            lanes: self.lanes.values().filter_map(|l| l.accepted.as_ref()).map(wire::lane_message).collect(),
        }
    }
}

impl Held {
    fn amount(&self) -> Amount {
        Amount::new(self.receipt.body().amount)
    }
}

impl Lane {
    fn accepted_cumulative(&self) -> Amount {
        self.accepted.as_ref().map(LaneVoucher::value).unwrap_or_default()
    }

    /// Where the lane stands without the frames that wait: ticks that wait for their answer count, refused ones do not.
    fn tip(&self) -> LaneTip {
        match (&self.fold, &self.stream) {
            (Some(fold), _) => tip_of(&fold.voucher),
            (None, Some(stream)) if stream.revealed > stream.settled => stream.tip_revealed(),
            (None, Some(stream)) if !stream.opened => stream.opening.tip(0),
            (None, Some(_) | None) => self.accepted.as_ref().map(LaneVoucher::tip).unwrap_or_default(),
        }
    }

    /// Whether an opening, ticks or a fold wait for their answer.
    fn waits(&self) -> bool {
        let index = self.accepted_index();
        let stream = |s: &Stream| !s.opened || s.revealed > s.settled || s.shown > index;
        self.fold.is_some() || self.stream.as_ref().is_some_and(stream)
    }

    fn has_tag(&self, tag: u64) -> bool {
        let stream = self.stream.as_ref().filter(|stream| !stream.opened).map(|stream| stream.tag);
        tag != 0 && self.fold.as_ref().map_or(stream, |fold| Some(fold.tag)) == Some(tag)
    }

    fn anchor(&self) -> Option<B256> {
        self.stream.as_ref().map(Stream::anchor)
    }

    fn anchors(&self) -> impl Iterator<Item = B256> {
        let accepted = self.accepted.as_ref().and_then(LaneVoucher::ticks).map(|ticks| ticks.anchor());
        self.anchor().into_iter().chain(accepted)
    }

    /// The highest index of the open stream that receipts prove.
    fn accepted_index(&self) -> u32 {
        let ticks = self.accepted.as_ref().and_then(LaneVoucher::ticks);
        ticks.filter(|ticks| Some(ticks.anchor()) == self.anchor()).map(|ticks| ticks.index()).unwrap_or_default()
    }

    fn opened(&mut self, anchor: B256) {
        let Some(stream) = self.stream.as_mut().filter(|s| s.anchor() == anchor && !s.opened) else { return };
        stream.opened = true;
        self.accepted = Some(LaneVoucher::opened(stream.opening.clone()));
    }

    fn reveal(&mut self, index: u32) {
        let Some(stream) = &mut self.stream else { return };
        // A refused index that is revealed again waits again.
        stream.settled = stream.settled.min(index.saturating_sub(1));
        stream.revealed = stream.revealed.max(index);
        self.signed_max = self.signed_max.max(stream.tip_revealed().cumulative);
    }

    fn show(&mut self, index: u32) {
        self.stream.iter_mut().for_each(|stream| stream.shown = stream.shown.max(index));
    }

    /// Takes accepted ticks; gives the payment that they are.
    fn accept_ticks(&mut self, anchor: B256, index: u32) -> Option<(ChannelId, PaymentId)> {
        self.opened(anchor);
        let stream = self.stream.as_mut().filter(|stream| stream.anchor() == anchor)?;
        let revealed = stream.words().reveal(index)?;
        stream.settled = stream.settled.max(index);
        let terms = *stream.opening.terms();
        let ticks = self.accepted.as_mut().and_then(LaneVoucher::ticks_mut)?;
        ticks.advance(&revealed);
        self.receipted = self.receipted.max(self.accepted_cumulative());
        Some((terms.payee, terms.stream.payment(index)))
    }

    fn folded(&mut self) {
        if let Some(fold) = self.fold.take() {
            self.accepted = Some(LaneVoucher::Plain(fold.voucher));
            self.stream = None;
        }
    }
}

impl Stream {
    fn anchor(&self) -> B256 {
        self.opening.voucher().body().anchor
    }

    fn tip_revealed(&self) -> LaneTip {
        self.opening.tip(self.revealed)
    }

    fn words(&mut self) -> &Words {
        let (secret, ticks) = (self.secret.0, self.opening.voucher().body().ticks);
        self.words.get_or_insert_with(|| Words::new(secret, ticks))
    }
}

impl Secret {
    /// Takes 32 bytes that nobody else knows and that were never used before.
    pub fn new(bytes: B256) -> Self {
        Secret(bytes)
    }

    /// Fresh bytes from the operating system's randomness.
    pub fn random() -> Self {
        let mut bytes = B256::ZERO;
        getrandom::fill(bytes.as_mut_slice()).expect("the operating system gives randomness");
        Secret(bytes)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Pending {
    fn place(&self) -> (u32, Amount) {
        (self.frame.lane(), self.frame.tip().cumulative)
    }
}

impl Step {
    /// Appends what another step decided after this one.
    pub fn extend(&mut self, other: Step) {
        self.records.extend(other.records);
        self.events.extend(other.events);
    }
}

/// The fee that a price of `flat` and `ppm` parts per million asks for an amount: `flat + ceil(amount * ppm /
/// 1,000,000)`, or `None` if it does not fit 128 bits.
pub fn fee(amount: Amount, flat: Amount, ppm: u32) -> Option<Amount> {
    let million = alloy_primitives::U256::from(1_000_000u32);
    let share = alloy_primitives::U256::from(amount.get()).saturating_mul(alloy_primitives::U256::from(ppm));
    let total = share.div_ceil(million).saturating_add(flat.into());
    u128::try_from(total).ok().map(Amount::new)
}

/// A payment as receipts open to it: payee, id, amount.
type Row = (ChannelId, PaymentId, Amount);

fn row_of(ticks: &TicksAccepted) -> Option<Row> {
    ticks.payment().map(|payment| (payment.payee, payment.id, payment.amount))
}

fn paid_event(asset: Asset, ticks: &TicksAccepted, receipts: &[Proven<Receipt>]) -> Option<Event> {
    let Payment { id, payee, amount, fee, .. } = ticks.payment()?;
    let credit = receipts.iter().find(|r| r.body().channelId == payee.0).map(|r| r.body().credit);
    Some(Event::Paid { id, asset, payee, amount, fee, credit: credit.unwrap_or_default() })
}

fn kept(agreed: &Agreed) -> Kept {
    Kept { settlement: agreed.signed.body().clone() }
}

fn tip_of(voucher: &Signed<Voucher>) -> LaneTip {
    LaneTip { cumulative: Amount::new(voucher.body().cumulative), memo: voucher.body().memo }
}

fn counted_by(voucher: &Voucher) -> Counted {
    Counted { credits: voucher.credits, total: Amount::new(voucher.cumulative), head: voucher.memo }
}

fn note_of(credit: &Credit) -> CreditNote {
    let payments = credit.payments.iter().map(|p| (p.id, p.amount, p.note.clone())).collect();
    CreditNote { number: credit.number, payer: credit.payer, payments }
}

fn sum(amounts: impl Iterator<Item = Amount>) -> Amount {
    amounts.fold(Amount::ZERO, Amount::saturating_add)
}
