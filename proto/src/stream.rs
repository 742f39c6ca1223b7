//! Streams: many small ticks on one signature.
//!
//! The payer takes a fresh secret and hashes it `ticks` times; the end of that chain is the **anchor**. One signed
//! [`TickVoucher`] binds the anchor to a lane, a payee and a price. From then on he pays by revealing words of the
//! chain, from its end backwards: the word of *index* `k` becomes the anchor after `k` hashes, and makes the lane worth
//! `cumulative + k * tick`. A tick thus costs one hash and no signature, on either side, and the newest word revealed
//! is all that the ledger needs besides the voucher.
//!
//! ```text
//! secret ──SHA-256──► ... ──SHA-256──► word of index 1 ──SHA-256──► anchor
//! index = ticks                                                     index = 0
//! ```
//!
//! A [`StreamOpening`] continues its lane as a frame does: `cumulative` is what the lane was worth before it, its memo
//! hashes the [`StreamTerms`] onto the lane's running hash. What continues a lane of ticks starts from the value of the
//! highest index accepted, and from the opening's memo. A *fold* is a plain voucher of that very value whose memo says
//! which index it stands for: it pays nothing and makes the evidence small again.
//!
//! The ticks that one flush accepts of one opening are one payment: its id is `stream || k` with the highest index `k`
//! accepted, its amount what the payee gets for the ticks that are new ([`TicksPaid`]).

use std::fmt;

use alloy_primitives::{B256, Bytes, FixedBytes, keccak256};
use alloy_sol_types::SolValue;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::amount::Amount;
use crate::evidence::{EvidenceError, Signed};
use crate::frame::{LaneTip, Payment, member_voucher};
use crate::ids::{AccountId, ChannelId, PaymentId};
use crate::keys::{KeyError, PublicKey, SecretKey, Signature};
use crate::typed::{Domain, TickVoucher, Voucher, chain_hash};

/// Gas that a claim takes for each lane that it names.
pub const GAS_LANE: u64 = 10_000;
/// Gas that a claim takes for each tick that is not folded: one hash, and a little for the loop around it.
pub const GAS_TICK: u64 = 300;
/// Most claim gas of one direction: with both it stays far below what one transaction may take (EIP-7825), so that the
/// evidence always fits one call.
pub const CLAIM_GAS_MAX: u64 = 2_500_000;

/// Names a stream within its payer's channel: 12 random bytes, new for every opening.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamId(pub FixedBytes<12>);

/// What one tick is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamTerms {
    /// The stream.
    pub stream: StreamId,
    /// The payee's channel, or [`ChannelId::HUB`].
    pub payee: ChannelId,
    /// What the payee gets a tick; positive.
    pub amount: Amount,
    /// What the hub gets a tick.
    pub fee: Amount,
}

/// A signed tick voucher with the terms that its memo hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOpening {
    voucher: Signed<TickVoucher>,
    terms: StreamTerms,
}

/// Why an opening, a tick or a fold is not even a candidate: no lane was looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A tick that pays nothing.
    #[error("a tick of stream {stream} pays nothing; amounts are positive")]
    ZeroAmount {
        /// The stream.
        stream: StreamId,
    },
    /// Amount and fee of a tick, or the full value, do not fit.
    #[error("the full value of stream {stream} does not fit 128 bits; open it with fewer or smaller ticks")]
    Overflow {
        /// The stream.
        stream: StreamId,
    },
    /// Lane or number of ticks are out of bounds.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The signature is not the payer's.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// An index beyond the chain.
    #[error("tick {index} is beyond the {ticks} ticks of its voucher; open another stream")]
    BeyondChain {
        /// The index.
        index: u32,
        /// The chain's length.
        ticks: u32,
    },
    /// A word that does not lead to the anchor.
    #[error("the word of tick {index} does not hash to what was revealed before; reveal the chain of this opening")]
    WrongWord {
        /// The index.
        index: u32,
    },
    /// A word below one that was revealed before: whoever holds the later one can claim it, so less is no offer.
    #[error("tick {index} is behind tick {reached}, which was revealed before; reveal that one again, or a later one")]
    Behind {
        /// The index.
        index: u32,
        /// The highest index revealed.
        reached: u32,
    },
    /// A tick on a lane without a stream.
    #[error("lane {lane} has no stream in this session; open one")]
    NoStream {
        /// The lane.
        lane: u32,
    },
}

/// A word of a chain that was verified against the anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revealed {
    anchor: B256,
    index: u32,
    word: B256,
}

/// How far a chain was revealed: what the next word is checked against, by as many hashes as there are new ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    ticks: u32,
    reached: Revealed,
}

/// Every word of a chain, as its payer has them.
#[derive(Clone, PartialEq, Eq)]
pub struct Words(Vec<B256>);

/// A member's newest voucher of a lane: what the lane is worth, and the evidence for it.
// Nearly every lane is plain, and with every frame it gets a new voucher: a box would cost an allocation each time.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaneVoucher {
    /// A plain voucher, of a frame or a fold.
    Plain(Signed<Voucher>),
    /// A stream, and how far it was revealed.
    Ticks(Box<LaneTicks>),
}

/// A lane of ticks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneTicks {
    opening: StreamOpening,
    index: u32,
    word: B256,
}

/// The ticks of one opening that one flush accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicksPaid {
    /// The payer's account.
    pub account: AccountId,
    /// The lane.
    pub lane: u32,
    /// The opening's anchor.
    pub anchor: B256,
    /// What a tick is.
    pub terms: StreamTerms,
    /// The index accepted before.
    pub before: u32,
    /// The highest index accepted.
    pub index: u32,
    /// Its word.
    pub word: B256,
    /// What the lane is worth with it: an anchor that was signed twice does not tell which opening was meant.
    pub cumulative: Amount,
}

impl StreamId {
    /// Reads exactly 12 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        FixedBytes::try_from(bytes).ok().map(StreamId)
    }

    /// A fresh identifier from the operating system's randomness.
    pub fn random() -> Self {
        let mut bytes = [0; 12];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        StreamId(bytes.into())
    }

    /// The id of the payment that ends with tick `index`: `stream || index`, big-endian.
    pub fn payment(&self, index: u32) -> PaymentId {
        let mut id = [0; 16];
        id[..12].copy_from_slice(self.0.as_slice());
        id[12..].copy_from_slice(&index.to_be_bytes());
        PaymentId(id.into())
    }

    /// The stream whose payment this would be.
    pub fn of(id: PaymentId) -> StreamId {
        StreamId(FixedBytes::from_slice(&id.as_slice()[..12]))
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StreamTerms {
    /// What the payer pays a tick: amount and fee.
    pub fn tick(&self) -> Option<Amount> {
        self.amount.checked_add(self.fee)
    }

    /// The body of the opening's memo: `keccak256(abi.encode(keccak256("stream"), stream, payee, amount, fee))`.
    pub fn hash(&self) -> B256 {
        let row = (keccak256("stream"), self.stream.0, self.payee.0, self.amount.get(), self.fee.get());
        keccak256(row.abi_encode())
    }
}

impl StreamOpening {
    /// Makes and signs the opening that continues `tip`, with the end of a chain of `ticks` words.
    pub fn sign(
        domain: &Domain,
        key: &SecretKey,
        account: AccountId,
        lane: u32,
        tip: LaneTip,
        terms: StreamTerms,
        words: &Words,
    ) -> Result<Self, StreamError> {
        let tip = tip.opened(&terms);
        let body = tick_voucher(account, lane, tip, &terms, words.ticks(), words.anchor())?;
        Ok(StreamOpening { voucher: Signed::sign(domain, key, body), terms })
    }

    /// Takes an opening from the wire: checks its form and the payer's signature.
    ///
    /// Whether it continues its lane is for the one who knows the lane: see [`LaneTip::opened`].
    #[allow(clippy::too_many_arguments)]
    pub fn verify(
        domain: &Domain,
        key: &PublicKey,
        account: AccountId,
        lane: u32,
        claimed: LaneTip,
        terms: StreamTerms,
        ticks: u32,
        anchor: B256,
        signature: Signature,
    ) -> Result<Self, StreamError> {
        let body = tick_voucher(account, lane, claimed, &terms, ticks, anchor)?;
        Ok(StreamOpening { voucher: Signed::verify(domain, key, body, signature)?, terms })
    }

    /// The voucher.
    pub fn voucher(&self) -> &Signed<TickVoucher> {
        &self.voucher
    }

    /// What a tick is.
    pub fn terms(&self) -> &StreamTerms {
        &self.terms
    }

    /// The account that pays.
    pub fn account(&self) -> AccountId {
        self.voucher.body().account()
    }

    /// The lane.
    pub fn lane(&self) -> u32 {
        self.voucher.body().lane
    }

    /// Where the lane stands after `index` ticks.
    pub fn tip(&self, index: u32) -> LaneTip {
        let body = self.voucher.body();
        let ticks = Amount::new(body.tick).checked_mul(u128::from(index.min(body.ticks)));
        let cumulative = ticks.and_then(|ticks| ticks.checked_add(Amount::new(body.cumulative)));
        LaneTip { cumulative: cumulative.expect("checked at the opening: the full value fits"), memo: body.memo }
    }

    /// The chain, of which nothing is revealed yet.
    pub fn chain(&self) -> Chain {
        let anchor = self.voucher.body().anchor;
        Chain { ticks: self.voucher.body().ticks, reached: Revealed { anchor, index: 0, word: anchor } }
    }
}

impl LaneTip {
    /// Where the lane stands when a stream is opened on it.
    pub fn opened(&self, terms: &StreamTerms) -> LaneTip {
        LaneTip { cumulative: self.cumulative, memo: chain_hash(self.memo, terms.hash()) }
    }

    /// Where the lane stands when its ticks are folded: as before, with a memo that says up to which index of which
    /// anchor, `keccak256(abi.encode(keccak256("fold"), anchor, index))`.
    pub fn folded(&self, anchor: B256, index: u32) -> LaneTip {
        let body = keccak256((keccak256("fold"), anchor, index).abi_encode());
        LaneTip { cumulative: self.cumulative, memo: chain_hash(self.memo, body) }
    }
}

impl Revealed {
    /// The end of the chain that it is a word of.
    pub fn anchor(&self) -> B256 {
        self.anchor
    }

    /// How many hashes lead from the word to the anchor.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The word.
    pub fn word(&self) -> B256 {
        self.word
    }
}

impl Chain {
    /// Takes the word of an index: checked by one hash for every tick beyond what was reached. The very word that was
    /// reached may come again, because it may have been refused.
    pub fn advance(&mut self, index: u32, word: B256) -> Result<Revealed, StreamError> {
        if index > self.ticks {
            return Err(StreamError::BeyondChain { index, ticks: self.ticks });
        }
        let reached = self.reached.index;
        let steps = index.checked_sub(reached).ok_or(StreamError::Behind { index, reached })?;
        if hash_times(word, steps) != self.reached.word {
            return Err(StreamError::WrongWord { index });
        }
        self.reached = Revealed { anchor: self.reached.anchor, index, word };
        Ok(self.reached)
    }

    /// What was revealed so far.
    pub fn reached(&self) -> Revealed {
        self.reached
    }
}

impl Words {
    /// The chain of `ticks` words under a secret.
    pub fn new(secret: B256, ticks: u32) -> Self {
        let mut words = Vec::with_capacity(ticks as usize + 1);
        words.push(secret);
        let mut word = secret;
        for _ in 0..ticks {
            word = hash(word);
            words.push(word);
        }
        words.reverse();
        Words(words)
    }

    /// The chain's end.
    pub fn anchor(&self) -> B256 {
        self.0[0]
    }

    /// Its length.
    pub fn ticks(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX).saturating_sub(1)
    }

    /// The word of an index as what was revealed with it: it is of the chain because this is the chain.
    pub fn reveal(&self, index: u32) -> Option<Revealed> {
        Some(Revealed { anchor: self.anchor(), index, word: self.word(index)? })
    }

    /// Whether a word is of the chain.
    pub fn contains(&self, word: B256) -> bool {
        self.0.contains(&word)
    }

    /// The word of an index, or `None` beyond the chain.
    pub fn word(&self, index: u32) -> Option<B256> {
        self.0.get(index as usize).copied()
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is not revealed yet is money.
        write!(f, "Words({} of {})", self.ticks(), self.anchor())
    }
}

impl LaneVoucher {
    /// A stream of which nothing is revealed yet.
    pub fn opened(opening: StreamOpening) -> Self {
        let word = opening.voucher.body().anchor;
        LaneVoucher::Ticks(Box::new(LaneTicks { opening, index: 0, word }))
    }

    /// Where the lane stands.
    pub fn tip(&self) -> LaneTip {
        match self {
            LaneVoucher::Plain(voucher) => {
                LaneTip { cumulative: Amount::new(voucher.body().cumulative), memo: voucher.body().memo }
            }
            LaneVoucher::Ticks(lane) => lane.opening.tip(lane.index),
        }
    }

    /// What the lane is worth.
    pub fn value(&self) -> Amount {
        self.tip().cumulative
    }

    /// The lane.
    pub fn lane(&self) -> u32 {
        match self {
            LaneVoucher::Plain(voucher) => voucher.body().lane,
            LaneVoucher::Ticks(lane) => lane.opening.lane(),
        }
    }

    /// The account.
    pub fn account(&self) -> AccountId {
        match self {
            LaneVoucher::Plain(voucher) => voucher.body().account(),
            LaneVoucher::Ticks(lane) => lane.opening.account(),
        }
    }

    /// The stream, if it is one.
    pub fn ticks(&self) -> Option<&LaneTicks> {
        match self {
            LaneVoucher::Plain(_) => None,
            LaneVoucher::Ticks(lane) => Some(lane),
        }
    }

    /// The stream, to go on with it.
    pub fn ticks_mut(&mut self) -> Option<&mut LaneTicks> {
        match self {
            LaneVoucher::Plain(_) => None,
            LaneVoucher::Ticks(lane) => Some(lane),
        }
    }

    /// Gas that a claim of the lane takes.
    pub fn claim_gas(&self) -> u64 {
        let ticks = self.ticks().map_or(0, |lane| u64::from(lane.index));
        GAS_LANE.saturating_add(GAS_TICK.saturating_mul(ticks))
    }
}

impl LaneTicks {
    /// The opening.
    pub fn opening(&self) -> &StreamOpening {
        &self.opening
    }

    /// The highest index accepted.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its word.
    pub fn word(&self) -> B256 {
        self.word
    }

    /// The end of its chain.
    pub fn anchor(&self) -> B256 {
        self.opening.voucher.body().anchor
    }

    /// The chain as far as it is accepted.
    pub fn chain(&self) -> Chain {
        let reached = Revealed { anchor: self.anchor(), index: self.index, word: self.word };
        Chain { reached, ..self.opening.chain() }
    }

    /// Goes on to a later index of the same chain; an earlier one, or another chain's, changes nothing.
    pub fn advance(&mut self, revealed: &Revealed) {
        let in_chain = revealed.index <= self.opening.voucher.body().ticks;
        if revealed.anchor == self.anchor() && in_chain && revealed.index > self.index {
            (self.index, self.word) = (revealed.index, revealed.word);
        }
    }
}

impl TicksPaid {
    /// The id of the payment that these ticks are.
    pub fn id(&self) -> PaymentId {
        self.terms.stream.payment(self.index)
    }

    /// How many ticks are new.
    pub fn count(&self) -> u32 {
        self.index.saturating_sub(self.before)
    }

    /// What the payee gets.
    pub fn amount(&self) -> Amount {
        times(self.terms.amount, self.count())
    }

    /// What the hub gets.
    pub fn fee(&self) -> Amount {
        times(self.terms.fee, self.count())
    }

    /// The payment that these ticks are.
    pub fn payment(&self) -> Payment {
        let (id, payee, amount, fee) = (self.id(), self.terms.payee, self.amount(), self.fee());
        Payment { id, payee, amount, fee, note: Bytes::new() }
    }

    /// What was revealed; it was verified before it was written.
    pub fn revealed(&self) -> Revealed {
        Revealed { anchor: self.anchor, index: self.index, word: self.word }
    }
}

/// The plain voucher that folds a lane of ticks at an index.
pub fn fold_voucher(opening: &StreamOpening, index: u32) -> Voucher {
    let tip = opening.tip(index).folded(opening.voucher.body().anchor, index);
    member_voucher(opening.account(), opening.lane(), tip)
}

/// The sum of `count` ticks of an opening, whose full value is known to fit.
pub fn times(amount: Amount, count: u32) -> Amount {
    amount.checked_mul(u128::from(count)).expect("checked at the opening: the full value fits")
}

/// One step of a chain: SHA-256, which the ledger computes cheaply.
pub fn hash(word: B256) -> B256 {
    B256::from_slice(&Sha256::digest(word))
}

fn hash_times(word: B256, steps: u32) -> B256 {
    (0..steps).fold(word, |word, _| hash(word))
}

fn tick_voucher(
    account: AccountId,
    lane: u32,
    tip: LaneTip,
    terms: &StreamTerms,
    ticks: u32,
    anchor: B256,
) -> Result<TickVoucher, StreamError> {
    let stream = terms.stream;
    if terms.amount.is_zero() {
        return Err(StreamError::ZeroAmount { stream });
    }
    let tick = terms.tick().ok_or(StreamError::Overflow { stream })?;
    let voucher = TickVoucher {
        channelId: account.channel.0,
        asset: account.asset,
        lane,
        cumulative: tip.cumulative.get(),
        tick: tick.get(),
        ticks,
        anchor,
        memo: tip.memo,
    };
    voucher.check()?;
    Ok(voucher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Scheme;
    use alloy_primitives::Address;

    fn account() -> AccountId {
        AccountId { channel: ChannelId(B256::repeat_byte(2)), asset: Address::repeat_byte(3) }
    }

    fn terms(amount: u128, fee: u128) -> StreamTerms {
        let payee = ChannelId(B256::repeat_byte(9));
        StreamTerms { stream: StreamId::default(), payee, amount: Amount::new(amount), fee: Amount::new(fee) }
    }

    fn opening(words: &Words, terms: StreamTerms, tip: LaneTip) -> Result<StreamOpening, StreamError> {
        let key = SecretKey::derive(Scheme::Ed25519, &[1; 32], "voucher");
        StreamOpening::sign(&Domain::new(7, Address::ZERO), &key, account(), 5, tip, terms, words)
    }

    #[test]
    fn every_word_is_accepted_in_rising_order_whatever_is_left_out() {
        let words = Words::new(B256::repeat_byte(7), 20);
        for path in [vec![1, 2, 3, 20], vec![20], (1..=20).collect(), vec![4, 4, 9, 9, 17]] {
            let mut chain = opening(&words, terms(3, 1), LaneTip::default()).expect("fits").chain();
            let mut highest = 0;
            for index in path {
                let word = words.word(index).expect("within the chain");
                let revealed = chain.advance(index, word).expect("a word of the chain");
                highest = highest.max(index);
                assert_eq!((revealed.index(), Some(revealed.word())), (highest, words.word(highest)));
            }
        }
    }

    #[test]
    fn a_word_of_another_index_or_chain_is_refused_and_changes_nothing() {
        let (words, other) = (Words::new(B256::repeat_byte(7), 20), Words::new(B256::repeat_byte(8), 20));
        let mut chain = opening(&words, terms(3, 1), LaneTip::default()).expect("fits").chain();
        chain.advance(5, words.word(5).expect("there")).expect("a word of the chain");
        let reached = chain.reached();
        for (index, word) in [(6, words.word(7)), (7, words.word(6)), (6, other.word(6)), (20, Some(B256::ZERO))] {
            let refused = chain.advance(index, word.expect("there"));
            assert_eq!((refused, chain.reached()), (Err(StreamError::WrongWord { index }), reached));
        }
        let behind = chain.advance(4, words.word(4).expect("there"));
        assert_eq!((behind, chain.reached()), (Err(StreamError::Behind { index: 4, reached: 5 }), reached));
        let beyond = chain.advance(21, words.word(20).expect("there"));
        assert_eq!(beyond, Err(StreamError::BeyondChain { index: 21, ticks: 20 }));
    }

    #[test]
    fn bounds_of_an_opening() {
        let (one, long) = (Words::new(B256::ZERO, 1), Words::new(B256::ZERO, TickVoucher::TICKS_MAX + 1));
        let tip = |cumulative| LaneTip { cumulative: Amount::new(cumulative), memo: B256::ZERO };
        let table = [
            (opening(&one, terms(1, 0), tip(u128::MAX - 1)).map(|_| ()), Ok(())),
            (opening(&one, terms(1, 0), tip(u128::MAX)).map(|_| ()), Err(EvidenceError::Ticks.into())),
            (
                opening(&one, terms(0, 1), tip(0)).map(|_| ()),
                Err(StreamError::ZeroAmount { stream: StreamId::default() }),
            ),
            (
                opening(&one, terms(u128::MAX, 1), tip(0)).map(|_| ()),
                Err(StreamError::Overflow { stream: StreamId::default() }),
            ),
            (opening(&long, terms(1, 0), tip(0)).map(|_| ()), Err(EvidenceError::Ticks.into())),
            (opening(&Words::new(B256::ZERO, 0), terms(1, 0), tip(0)).map(|_| ()), Err(EvidenceError::Ticks.into())),
        ];
        for (given, expected) in table {
            assert_eq!(given, expected);
        }
    }

    #[test]
    fn a_payment_id_names_its_stream_and_index() {
        let stream = StreamId([0xab; 12].into());
        let id = stream.payment(0x0102_0304);
        assert_eq!((StreamId::of(id), &id.as_slice()[12..]), (stream, &[1u8, 2, 3, 4][..]));
    }
}
