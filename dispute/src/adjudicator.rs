//! The adjudicator contract as typed calls, events and refusals.
//!
//! Everything that goes to the contract is built here from verified evidence of `proto`, and everything that comes from
//! it is turned into plain data here: no other module knows the ABI. Building a call does no I/O and decides nothing.
//!
//! [`Evidence`] keeps what one party can show about one account: the largest claim of every lane of the member and the
//! largest word of the hub. It refuses what the contract would refuse, because one bad entry would sink the whole
//! direction that it stands in.

use std::collections::BTreeMap;
use std::fmt;

use alloy_primitives::{Address, B256, Bytes, Log, LogData, TxKind, U256, keccak256};
use alloy_sol_types::{SolCall, SolEventInterface, SolInterface, SolValue, sol};
use proto::ids::{LANES, NATIVE};
use proto::stream::LaneVoucher;
use proto::typed::{CloseRequest, Receipt, Settlement, TickVoucher, Voucher};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, Domain, Proof, Proven, Side, Signed};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::adjudicator::abi::IAdjudicator as contract;

/// The bindings generated from the committed ABI, for those who need more than this module offers.
pub mod abi {
    #![allow(missing_docs, clippy::all)]
    use alloy_sol_types::sol;

    sol!(
        #[sol(all_derives)]
        IAdjudicator,
        "contracts/artifacts/IAdjudicator.json"
    );
}

sol! {
    /// What token libraries report when money does not move.
    #[allow(missing_docs)]
    interface TokenRefusals {
        error SafeERC20FailedOperation(address token);
        error ERC20InsufficientBalance(address sender, uint256 balance, uint256 needed);
        error ERC20InsufficientAllowance(address spender, uint256 allowance, uint256 needed);
        error ERC3009InvalidAuthorizationTime(uint256 validAfter, uint256 validBefore);
        error ERC3009InvalidSignature();
        error ERC3009UsedAuthorization(address authorizer, bytes32 nonce);
        error ECDSAInvalidSignature();
        error ReentrancyGuardReentrantCall();
        error Error(string reason);
        error Panic(uint256 code);
    }
}

/// A call of a contract, ready to be sent by anybody who pays for its gas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The contract, or `Create` with the creation code as data.
    pub to: TxKind,
    /// Native coins that go along.
    pub value: U256,
    /// Selector and arguments.
    pub data: Bytes,
    /// Gas that the call needs at least, whatever an estimate says.
    ///
    /// A batch skips entries that fail, so the cheapest gas limit at which a batch "succeeds" is one at which all of its
    /// entries run out of gas; estimates of batches are therefore floors that need a floor themselves.
    pub gas_min: u64,
}

/// How a deposit is paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Funding {
    /// By the sender of the transaction: an allowance for the adjudicator, or native coins.
    Caller,
    /// By an EIP-3009 `receiveWithAuthorization` that the payer signed; anybody may send it.
    Authorization {
        /// The payer.
        from: Address,
        /// Seconds; the authorisation counts after this time.
        valid_after_s: u64,
        /// Seconds; the authorisation counts before this time.
        valid_before_s: u64,
        /// 32 bytes that the payer chose; see [`authorization_nonce`].
        payer_nonce: B256,
        /// The payer's signature in the token's own domain.
        signature: Bytes,
    },
}

/// A channel that a batch opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenOrder {
    /// The channel's terms.
    pub terms: ChannelTerms,
    /// The member's signature over the channel id; empty where he sends the batch or pays by an authorisation.
    pub consent: Bytes,
    /// The asset. A batch carries no coins: in the native coin a channel opens with amount 0.
    pub asset: Asset,
    /// Base units.
    pub amount: Amount,
    /// How it is paid.
    pub funding: Funding,
}

/// A deposit of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FundOrder {
    /// The channel's terms.
    pub terms: ChannelTerms,
    /// The asset.
    pub asset: Asset,
    /// The side that is credited.
    pub side: Side,
    /// Base units.
    pub amount: Amount,
}

/// A settlement that both parties signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettleOrder {
    terms: ChannelTerms,
    member: Signed<Settlement>,
    hub: Proven<Settlement>,
}

/// The start of a unilateral close.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloseOrder {
    /// The channel's terms.
    pub terms: ChannelTerms,
    /// The asset.
    pub asset: Asset,
    /// A request signed by a voucher key; without it the sender must be one of the two payout accounts.
    pub request: Option<(Side, Signed<CloseRequest>)>,
}

/// The payout of a closed account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinalizeOrder {
    /// The channel's terms.
    pub terms: ChannelTerms,
    /// The asset.
    pub asset: Asset,
}

/// Evidence for an account that is closing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RespondOrder {
    /// The channel's terms.
    pub terms: ChannelTerms,
    /// What is shown; it names the asset.
    pub evidence: Evidence,
}

/// What can be shown about one account: the largest claim of every lane, and the largest word of the hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    account: AccountId,
    member: BTreeMap<u32, LaneClaim>,
    hub: Option<HubClaim>,
}

/// What a lane of the member is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaneClaim {
    /// A plain voucher.
    Voucher(Signed<Voucher>),
    /// A stream of ticks, revealed up to an index.
    Ticks(TickClaim),
}

/// A tick voucher with the preimage of one index, which was verified when this value was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TickClaim {
    voucher: Signed<TickVoucher>,
    index: u32,
    preimage: B256,
}

/// The hub's word for what it paid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HubClaim {
    /// A voucher, held by the payee.
    Voucher(Proven<Voucher>),
    /// A receipt, held by a payer.
    Receipt(Proven<Receipt>),
}

/// A piece of evidence as it comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claim {
    /// A member's voucher.
    Member(Signed<Voucher>),
    /// Ticks of a member.
    Ticks(TickClaim),
    /// The hub's voucher.
    Hub(Proven<Voucher>),
    /// The hub's receipt.
    Receipt(Proven<Receipt>),
}

/// Evidence that the contract would refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It is about another account.
    #[error("the evidence is about {given}, this is {expected}; offer it to the account that it names")]
    OtherAccount {
        /// The account asked.
        expected: AccountId,
        /// The account that the evidence names.
        given: AccountId,
    },
    /// It is signed by the wrong side for where it stands.
    #[error("a voucher paid by the {given:?} cannot stand for one paid by the {expected:?}")]
    OtherSide {
        /// The payer wanted.
        expected: Side,
        /// The payer named.
        given: Side,
    },
    /// It breaks a rule that needs no signature.
    #[error(transparent)]
    Rule(#[from] proto::evidence::EvidenceError),
    /// The index is beyond the voucher's ticks.
    #[error("tick {index} does not exist, the voucher has {ticks}")]
    Index {
        /// The index given.
        index: u32,
        /// The ticks of the voucher.
        ticks: u32,
    },
    /// The preimage does not lead to the anchor.
    #[error("SHA-256 applied {index} times to the preimage does not give the anchor {anchor}")]
    Preimage {
        /// The index given.
        index: u32,
        /// The anchor of the voucher.
        anchor: B256,
    },
    /// The two signatures of a settlement are over different structs.
    #[error("member and hub signed different settlements ({member} and {hub}); both must sign the same one")]
    SignedApart {
        /// What the member signed.
        member: B256,
        /// What the hub signed.
        hub: B256,
    },
}

/// The status of an account on the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Deposits, settlements and closes are possible.
    #[default]
    Open,
    /// The challenge period runs, or is over and nobody finalized yet.
    Closing,
    /// Paid out, for ever.
    Final,
}

/// The books of an account as the ledger keeps them; all zero for an account that never was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerBooks {
    /// The status.
    pub status: Status,
    /// End of the challenge period in seconds of chain time; 0 while never closing.
    pub deadline_s: u64,
    /// The highest settlement number posted.
    pub seq: u64,
    /// `MD`.
    pub member_deposit: Amount,
    /// `HD`.
    pub hub_deposit: Amount,
    /// `MW`.
    pub member_withdrawn: Amount,
    /// `HW`.
    pub hub_withdrawn: Amount,
    /// `PM` as far as it was proven to the ledger.
    pub member_paid: Amount,
    /// `PH` as far as it was proven to the ledger.
    pub hub_paid: Amount,
}

/// A block's place in the chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockRef {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// The hash of the block before it.
    pub parent: B256,
    /// Its timestamp in seconds.
    pub time_s: u64,
}

/// Something that the adjudicator reported, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEvent {
    /// Number of the block.
    pub block_number: u64,
    /// Hash of the block.
    pub block_hash: B256,
    /// Timestamp of the block in seconds.
    pub block_time_s: u64,
    /// Index of the log in the block; (block hash, log index) names an event.
    pub log_index: u64,
    /// Hash of the transaction.
    pub tx_hash: B256,
    /// What happened.
    pub kind: EventKind,
}

/// What the adjudicator can report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventKind {
    /// A channel came into being.
    Opened {
        /// The channel.
        channel: ChannelId,
        /// Its terms.
        terms: ChannelTerms,
    },
    /// A deposit arrived.
    Deposited {
        /// The account.
        account: AccountId,
        /// The side that is credited.
        side: Side,
        /// What arrived.
        amount: Amount,
        /// The side's deposits in all.
        total: Amount,
    },
    /// A settlement was posted.
    Settled {
        /// The account.
        account: AccountId,
        /// Its number.
        seq: u64,
        /// The member's withdrawals in all.
        member_withdrawn: Amount,
        /// The hub's withdrawals in all.
        hub_withdrawn: Amount,
        /// Whether it was meant to close the account.
        close: bool,
        /// The status afterwards; a close that a deposit crossed leaves it as it was.
        status: Status,
    },
    /// A challenge period began.
    Closing {
        /// The account.
        account: AccountId,
        /// Its end in seconds.
        deadline_s: u64,
    },
    /// Evidence raised a total.
    Proven {
        /// The account.
        account: AccountId,
        /// What the member paid, as far as proven.
        member_paid: Amount,
        /// What the hub paid, as far as proven.
        hub_paid: Amount,
    },
    /// A unilateral close was paid out.
    Finalized {
        /// The account.
        account: AccountId,
        /// To the member.
        to_member: Amount,
        /// To the hub.
        to_hub: Amount,
    },
    /// Money waits in a vault for an account to fetch it.
    Claimable {
        /// The vault.
        vault: Address,
        /// The asset.
        asset: Asset,
        /// Whose it is.
        owner: Address,
        /// What was added.
        amount: U256,
        /// What waits in all.
        total: U256,
    },
    /// Waiting money was fetched.
    Claimed {
        /// The vault.
        vault: Address,
        /// The asset.
        asset: Asset,
        /// Whose it was.
        owner: Address,
        /// Where it went.
        to: Address,
        /// How much.
        amount: U256,
    },
    /// An entry of a batch had no effect.
    EntryRefused {
        /// Its place in the batch.
        index: u64,
        /// Why.
        refusal: Refusal,
    },
}

/// Why a contract refused a call, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What to make of it.
    pub class: RefusalClass,
    /// What the contract said and what to do about it.
    pub text: String,
    /// The bytes it said it with.
    pub data: Bytes,
}

/// What a refusal means for the one who sent the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalClass {
    /// What was wanted has happened already, or can never happen any more: sending it again is pointless.
    Moot,
    /// The call came too early; the same call can succeed later.
    Early,
    /// The call itself is wrong, or somebody lacks money or consent.
    Wrong,
}

/// A log that does not read as an event of the adjudicator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "log {log_index} of transaction {tx_hash} is no event of this adjudicator: {why}; is the contract of another version?"
)]
pub struct EventError {
    /// The transaction.
    pub tx_hash: B256,
    /// The log.
    pub log_index: u64,
    /// What is wrong.
    pub why: String,
}

impl Call {
    /// A call that creates a contract.
    pub fn create(creation_code: Bytes) -> Self {
        Call { to: TxKind::Create, value: U256::ZERO, data: creation_code, gas_min: 0 }
    }

    /// A call of any contract.
    pub fn of(to: Address, value: U256, data: Bytes) -> Self {
        Call { to: TxKind::Call(to), value, data, gas_min: 0 }
    }
}

/// The adjudicator of a domain: builds calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjudicator {
    domain: Domain,
}

/// Gas of a batch before its entries: the transaction itself, and the 120,000 that a payout must be able to get at its
/// end, whatever it uses.
const GAS_FRAME: u64 = 220_000;
/// Gas of one opening of a batch: an authorisation that a token checks too, slots of a foreign asset, a vault's first tokens.
const GAS_OPEN: u64 = 180_000;
/// Gas of one deposit of a batch: new slots, an event, a token transfer that it may not share. Measured on the compiled
/// contract with secp256k1 keys, as are those below, and rounded up.
const GAS_FUND: u64 = 70_000;
/// Gas of one settlement of a batch: two signatures, slots, a payout to a new token holder.
const GAS_SETTLE: u64 = 110_000;
/// Gas of one unilateral close of a batch.
const GAS_CLOSE: u64 = 40_000;
/// Gas of one payout of a batch: to a token holder it takes 40,000, to a contract that uses its whole allowance more.
const GAS_FINALIZE: u64 = 100_000;
/// Gas of one response before its evidence.
const GAS_RESPOND: u64 = 100_000;
/// Gas of a lane's or a hub's signature; twice what the protocol counts, because this is a floor for a limit.
const GAS_LANE: u64 = 20_000;
/// Gas of a tick not yet folded, as the protocol counts it.
const GAS_TICK: u64 = 300;

impl Adjudicator {
    /// The adjudicator of a domain.
    pub fn new(domain: Domain) -> Self {
        Adjudicator { domain }
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Its address.
    pub fn address(&self) -> Address {
        self.domain.adjudicator
    }

    /// Opens a channel and deposits for the member; for an open channel this is a deposit.
    ///
    /// `consent` is the member's signature over the channel id, or empty where he sends the transaction himself or pays
    /// by an authorisation.
    pub fn open(&self, terms: &ChannelTerms, consent: Bytes, asset: Asset, amount: Amount, funding: &Funding) -> Call {
        let call = contract::openCall {
            terms: terms_abi(terms),
            consent,
            asset,
            amount: amount.get(),
            funding: funding_abi(funding),
        };
        self.call(value_of(asset, amount, funding), &call, 0)
    }

    /// Opens channels; one that [`Adjudicator::open`] would be refused for is skipped.
    pub fn open_many(&self, orders: &[OpenOrder]) -> Call {
        let entries = orders.iter().map(|o| contract::OpenEntry {
            terms: terms_abi(&o.terms),
            consent: o.consent.clone(),
            asset: o.asset,
            amount: o.amount.get(),
            funding: funding_abi(&o.funding),
        });
        let call = contract::openManyCall { entries: entries.collect() };
        self.call(U256::ZERO, &call, gas_of(orders.iter().map(|_| GAS_OPEN)))
    }

    /// Deposits for a side.
    pub fn deposit(&self, terms: &ChannelTerms, asset: Asset, side: Side, amount: Amount, funding: &Funding) -> Call {
        let call = contract::depositCall {
            terms: terms_abi(terms),
            asset,
            side: side as u8,
            amount: amount.get(),
            funding: funding_abi(funding),
        };
        self.call(value_of(asset, amount, funding), &call, 0)
    }

    /// Deposits that the sender pays; neighbours of one vault and asset are pulled with one transfer.
    pub fn fund_many(&self, orders: &[FundOrder]) -> Call {
        let value = orders.iter().filter(|o| o.asset == NATIVE).map(|o| U256::from(o.amount.get())).sum();
        let entries = orders.iter().map(|o| contract::FundEntry {
            terms: terms_abi(&o.terms),
            asset: o.asset,
            side: o.side as u8,
            amount: o.amount.get(),
        });
        self.call(
            value,
            &contract::fundManyCall { entries: entries.collect() },
            gas_of(orders.iter().map(|_| GAS_FUND)),
        )
    }

    /// Posts a settlement.
    pub fn settle(&self, order: &SettleOrder) -> Call {
        self.call(U256::ZERO, &contract::settleCall { entry: order.to_abi() }, 0)
    }

    /// Posts settlements; a bad one is skipped with [`EventKind::EntryRefused`].
    pub fn settle_many(&self, orders: &[SettleOrder]) -> Call {
        let entries = orders.iter().map(SettleOrder::to_abi).collect();
        self.call(U256::ZERO, &contract::settleManyCall { entries }, gas_of(orders.iter().map(|_| GAS_SETTLE)))
    }

    /// Starts a unilateral close.
    pub fn start_close(&self, order: &CloseOrder) -> Call {
        let contract::CloseEntry { terms, asset, validUntil, side, signature } = order.to_abi();
        self.call(U256::ZERO, &contract::startCloseCall { terms, asset, validUntil, side, signature }, 0)
    }

    /// Starts unilateral closes.
    pub fn start_close_many(&self, orders: &[CloseOrder]) -> Call {
        let entries = orders.iter().map(CloseOrder::to_abi).collect();
        self.call(U256::ZERO, &contract::startCloseManyCall { entries }, gas_of(orders.iter().map(|_| GAS_CLOSE)))
    }

    /// Posts evidence for an account that is closing.
    pub fn respond(&self, order: &RespondOrder) -> Call {
        let contract::RespondEntry { terms, asset, evidence } = order.to_abi();
        self.call(U256::ZERO, &contract::respondCall { terms, asset, evidence }, order.gas_min())
    }

    /// Posts evidence for accounts that are closing.
    pub fn respond_many(&self, orders: &[RespondOrder]) -> Call {
        let entries = orders.iter().map(RespondOrder::to_abi).collect();
        self.call(U256::ZERO, &contract::respondManyCall { entries }, gas_of(orders.iter().map(RespondOrder::gas_min)))
    }

    /// Pays a closed account out.
    pub fn finalize(&self, order: &FinalizeOrder) -> Call {
        self.call(U256::ZERO, &contract::finalizeCall { terms: terms_abi(&order.terms), asset: order.asset }, 0)
    }

    /// Pays closed accounts out.
    pub fn finalize_many(&self, orders: &[FinalizeOrder]) -> Call {
        let entries = orders.iter().map(|o| contract::FinalizeEntry { terms: terms_abi(&o.terms), asset: o.asset });
        let gas = gas_of(orders.iter().map(|_| GAS_FINALIZE));
        self.call(U256::ZERO, &contract::finalizeManyCall { entries: entries.collect() }, gas)
    }

    /// Sends what waits in a vault for `account` to it; anybody may.
    pub fn claim(&self, vault: Address, asset: Asset, account: Address) -> Call {
        self.call(U256::ZERO, &contract::claimCall { vault, asset, account }, 0)
    }

    /// Sends what waits in a vault for the sender to another address.
    pub fn claim_to(&self, vault: Address, asset: Asset, to: Address) -> Call {
        self.call(U256::ZERO, &contract::claimToCall { vault, asset, to }, 0)
    }

    fn call<C: SolCall>(&self, value: U256, call: &C, gas_min: u64) -> Call {
        Call { to: TxKind::Call(self.address()), value, data: call.abi_encode().into(), gas_min }
    }
}

impl SettleOrder {
    /// Puts the two signatures of a settlement together.
    pub fn new(terms: ChannelTerms, member: Signed<Settlement>, hub: Proven<Settlement>) -> Result<Self, ClaimError> {
        if member.digest() != hub.digest() {
            return Err(ClaimError::SignedApart { member: member.digest(), hub: hub.digest() });
        }
        Ok(SettleOrder { terms, member, hub })
    }

    /// The settlement.
    pub fn settlement(&self) -> &Settlement {
        self.member.body()
    }

    /// The channel's terms.
    pub fn terms(&self) -> &ChannelTerms {
        &self.terms
    }

    fn to_abi(&self) -> contract::SettleEntry {
        let body = self.settlement();
        contract::SettleEntry {
            terms: terms_abi(&self.terms),
            asset: body.asset,
            seq: body.seq,
            memberWithdrawn: body.memberWithdrawn,
            hubWithdrawn: body.hubWithdrawn,
            validUntil: body.validUntil,
            close: body.close,
            memberSignature: Bytes::copy_from_slice(self.member.signature().as_slice()),
            hubProof: proof_abi(self.hub.proof()),
        }
    }
}

impl CloseOrder {
    fn to_abi(&self) -> contract::CloseEntry {
        let (valid_until, side, signature) = match &self.request {
            Some((side, signed)) => {
                (signed.body().validUntil, *side as u8, Bytes::copy_from_slice(signed.signature().as_slice()))
            }
            None => (0, 0, Bytes::new()),
        };
        let (terms, asset) = (terms_abi(&self.terms), self.asset);
        contract::CloseEntry { terms, asset, validUntil: valid_until, side, signature }
    }
}

impl RespondOrder {
    /// Gas that the response needs at least.
    pub fn gas_min(&self) -> u64 {
        GAS_RESPOND.saturating_add(self.evidence.claim_gas())
    }

    fn to_abi(&self) -> contract::RespondEntry {
        let (terms, asset) = (terms_abi(&self.terms), self.evidence.account.asset);
        contract::RespondEntry { terms, asset, evidence: self.evidence.to_abi() }
    }
}

impl TickClaim {
    /// Takes a tick voucher and a preimage and checks all that the contract checks.
    pub fn verify(voucher: Signed<TickVoucher>, index: u32, preimage: B256) -> Result<Self, ClaimError> {
        let body = voucher.body();
        body.check()?;
        if index > body.ticks {
            return Err(ClaimError::Index { index, ticks: body.ticks });
        }
        let end = (0..index).fold(preimage, |word, _| B256::from_slice(&Sha256::digest(word)));
        if end != body.anchor {
            return Err(ClaimError::Preimage { index, anchor: body.anchor });
        }
        Ok(TickClaim { voucher, index, preimage })
    }

    /// The voucher.
    pub fn voucher(&self) -> &Signed<TickVoucher> {
        &self.voucher
    }

    /// The index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its preimage.
    pub fn preimage(&self) -> B256 {
        self.preimage
    }

    /// What the lane is worth with it.
    pub fn value(&self) -> Amount {
        let body = self.voucher.body();
        let ticks = Amount::new(body.tick).checked_mul(u128::from(self.index));
        ticks.and_then(|ticks| ticks.checked_add(Amount::new(body.cumulative))).expect("checked: the full value fits")
    }
}

impl LaneClaim {
    /// What the lane is worth.
    pub fn value(&self) -> Amount {
        match self {
            LaneClaim::Voucher(voucher) => Amount::new(voucher.body().cumulative),
            LaneClaim::Ticks(claim) => claim.value(),
        }
    }
}

impl LaneClaim {
    /// Gas that claiming it takes.
    fn gas(&self) -> u64 {
        match self {
            LaneClaim::Voucher(_) => GAS_LANE,
            LaneClaim::Ticks(claim) => GAS_LANE.saturating_add(GAS_TICK.saturating_mul(u64::from(claim.index))),
        }
    }
}

impl HubClaim {
    /// What the hub paid by its own word.
    pub fn value(&self) -> Amount {
        match self {
            HubClaim::Voucher(voucher) => Amount::new(voucher.body().cumulative),
            HubClaim::Receipt(receipt) => Amount::new(receipt.body().total),
        }
    }
}

impl From<LaneVoucher> for Claim {
    fn from(voucher: LaneVoucher) -> Self {
        match voucher {
            LaneVoucher::Plain(voucher) => Claim::Member(voucher),
            LaneVoucher::Ticks(lane) => {
                let (voucher, index, preimage) = (lane.opening().voucher().clone(), lane.index(), lane.word());
                Claim::Ticks(TickClaim { voucher, index, preimage })
            }
        }
    }
}

impl Claim {
    /// The account that it is about.
    pub fn account(&self) -> AccountId {
        match self {
            Claim::Member(voucher) => voucher.body().account(),
            Claim::Ticks(claim) => claim.voucher.body().account(),
            Claim::Hub(voucher) => voucher.body().account(),
            Claim::Receipt(receipt) => receipt.body().account(),
        }
    }
}

impl Evidence {
    /// No evidence yet.
    pub fn new(account: AccountId) -> Self {
        Evidence { account, member: BTreeMap::new(), hub: None }
    }

    /// The account.
    pub fn account(&self) -> AccountId {
        self.account
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.member.is_empty() && self.hub.is_none()
    }

    /// Takes a piece of evidence; says whether it is worth more than what was there.
    ///
    /// Signatures were verified when the piece was made; the caller vouches that it was with the keys of the channel's
    /// terms.
    pub fn add(&mut self, claim: Claim) -> Result<Raised, ClaimError> {
        let given = claim.account();
        if given != self.account {
            return Err(ClaimError::OtherAccount { expected: self.account, given });
        }
        match claim {
            Claim::Member(voucher) => {
                expect_payer(voucher.body(), Side::Member)?;
                let lane = voucher.body().lane;
                Ok(self.raise_lane(lane, LaneClaim::Voucher(voucher)))
            }
            Claim::Ticks(claim) => Ok(self.raise_lane(claim.voucher.body().lane, LaneClaim::Ticks(claim))),
            Claim::Hub(voucher) => {
                expect_payer(voucher.body(), Side::Hub)?;
                Ok(self.raise_hub(HubClaim::Voucher(voucher)))
            }
            Claim::Receipt(receipt) => Ok(self.raise_hub(HubClaim::Receipt(receipt))),
        }
    }

    /// What the member paid by this evidence; sums saturate as they do on the ledger.
    pub fn member_paid(&self) -> Amount {
        self.member.values().fold(Amount::ZERO, |sum, claim| sum.saturating_add(claim.value()))
    }

    /// What the hub paid by this evidence.
    pub fn hub_paid(&self) -> Amount {
        self.hub.as_ref().map_or(Amount::ZERO, HubClaim::value)
    }

    /// The member's lanes.
    pub fn lanes(&self) -> &BTreeMap<u32, LaneClaim> {
        &self.member
    }

    /// The hub's word.
    pub fn hub(&self) -> Option<&HubClaim> {
        self.hub.as_ref()
    }

    /// Only the directions that are worth more than what is posted; a direction always goes whole.
    pub fn above(&self, member_posted: Amount, hub_posted: Amount) -> Evidence {
        let member = if self.member_paid() > member_posted { self.member.clone() } else { BTreeMap::new() };
        let hub = if self.hub_paid() > hub_posted { self.hub.clone() } else { None };
        Evidence { account: self.account, member, hub }
    }

    /// Gas that checking it takes, bounded by the protocol's claim gas of each direction.
    fn claim_gas(&self) -> u64 {
        let lanes = self.member.values().map(LaneClaim::gas).fold(0, u64::saturating_add);
        lanes.saturating_add(self.hub.as_ref().map_or(0, |_| GAS_LANE))
    }

    fn raise_lane(&mut self, lane: u32, claim: LaneClaim) -> Raised {
        debug_assert!(lane < LANES, "checked when the claim was made");
        // A fold is worth the ticks that it folds and takes less gas to claim: without it the evidence would outgrow one
        // transaction.
        let is_better =
            |old: &LaneClaim| claim.value() > old.value() || (claim.value() == old.value() && claim.gas() < old.gas());
        if self.member.get(&lane).is_some_and(|old| !is_better(old)) {
            return Raised::No;
        }
        self.member.insert(lane, claim);
        Raised::Yes
    }

    fn raise_hub(&mut self, claim: HubClaim) -> Raised {
        if claim.value() <= self.hub_paid() {
            return Raised::No;
        }
        self.hub = Some(claim);
        Raised::Yes
    }

    fn to_abi(&self) -> contract::Evidence {
        let mut evidence = contract::Evidence {
            memberVouchers: Vec::new(),
            memberTicks: Vec::new(),
            hubVouchers: Vec::new(),
            hubReceipts: Vec::new(),
        };
        for claim in self.member.values() {
            match claim {
                LaneClaim::Voucher(voucher) => {
                    let signature = Bytes::copy_from_slice(voucher.signature().as_slice());
                    evidence.memberVouchers.push(voucher_abi(voucher.body(), direct_abi(signature)));
                }
                LaneClaim::Ticks(claim) => evidence.memberTicks.push(tick_abi(claim)),
            }
        }
        match &self.hub {
            Some(HubClaim::Voucher(voucher)) => {
                evidence.hubVouchers.push(voucher_abi(voucher.body(), proof_abi(voucher.proof())));
            }
            Some(HubClaim::Receipt(receipt)) => evidence.hubReceipts.push(receipt_abi(receipt)),
            None => {}
        }
        evidence
    }
}

/// Whether a piece of evidence changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raised {
    /// It is worth more than what was there.
    Yes,
    /// What was there is worth as much or more.
    No,
}

impl LedgerBooks {
    /// What the account holds: `MD + HD - MW - HW`.
    pub fn custody(&self) -> U256 {
        let wide = |amount: Amount| U256::from(amount.get());
        (wide(self.member_deposit) + wide(self.hub_deposit))
            .saturating_sub(wide(self.member_withdrawn) + wide(self.hub_withdrawn))
    }

    pub(crate) fn from_abi(account: &contract::Account) -> Self {
        LedgerBooks {
            status: Status::from_number(account.status),
            deadline_s: account.deadline,
            seq: account.seq,
            member_deposit: Amount::new(account.memberDeposit),
            hub_deposit: Amount::new(account.hubDeposit),
            member_withdrawn: Amount::new(account.memberWithdrawn),
            hub_withdrawn: Amount::new(account.hubWithdrawn),
            member_paid: Amount::new(account.memberPaid),
            hub_paid: Amount::new(account.hubPaid),
        }
    }
}

impl Status {
    fn from_number(number: u8) -> Self {
        match number {
            0 => Status::Open,
            1 => Status::Closing,
            _ => Status::Final,
        }
    }
}

impl LedgerEvent {
    /// The account that it is about, if it is about one.
    pub fn account(&self) -> Option<AccountId> {
        self.kind.account()
    }

    /// The channel that it is about, if it is about one.
    pub fn channel(&self) -> Option<ChannelId> {
        match &self.kind {
            EventKind::Opened { channel, .. } => Some(*channel),
            kind => kind.account().map(|account| account.channel),
        }
    }

    /// Reads a log of the adjudicator.
    pub(crate) fn decode(log: &alloy::rpc::types::Log, block: &BlockRef) -> Result<Self, EventError> {
        let (tx_hash, log_index) = (log.transaction_hash.unwrap_or_default(), log.log_index.unwrap_or_default());
        let kind = EventKind::decode(&log.inner).map_err(|why| EventError { tx_hash, log_index, why })?;
        Ok(LedgerEvent {
            block_number: block.number,
            block_hash: block.hash,
            block_time_s: block.time_s,
            log_index,
            tx_hash,
            kind,
        })
    }
}

impl EventKind {
    /// The account that it is about, if it is about one.
    pub fn account(&self) -> Option<AccountId> {
        match self {
            EventKind::Deposited { account, .. }
            | EventKind::Settled { account, .. }
            | EventKind::Closing { account, .. }
            | EventKind::Proven { account, .. }
            | EventKind::Finalized { account, .. } => Some(*account),
            EventKind::Opened { .. }
            | EventKind::Claimable { .. }
            | EventKind::Claimed { .. }
            | EventKind::EntryRefused { .. } => None,
        }
    }

    fn decode(log: &Log<LogData>) -> Result<Self, String> {
        use contract::IAdjudicatorEvents as E;
        let account = |channel: B256, asset: Address| AccountId { channel: ChannelId(channel), asset };
        let event = E::decode_log(log).map_err(|error| error.to_string())?;
        Ok(match event.data {
            E::Opened(e) => EventKind::Opened { channel: ChannelId(e.channelId), terms: terms_proto(&e.terms) },
            E::Deposited(e) => EventKind::Deposited {
                account: account(e.channelId, e.asset),
                side: if e.side == 0 { Side::Member } else { Side::Hub },
                amount: Amount::new(e.amount),
                total: Amount::new(e.total),
            },
            E::Settled(e) => EventKind::Settled {
                account: account(e.channelId, e.asset),
                seq: e.seq,
                member_withdrawn: Amount::new(e.memberWithdrawn),
                hub_withdrawn: Amount::new(e.hubWithdrawn),
                close: e.close,
                status: Status::from_number(e.status),
            },
            E::Closing(e) => EventKind::Closing { account: account(e.channelId, e.asset), deadline_s: e.deadline },
            E::Proven(e) => EventKind::Proven {
                account: account(e.channelId, e.asset),
                member_paid: Amount::new(e.memberPaid),
                hub_paid: Amount::new(e.hubPaid),
            },
            E::Finalized(e) => EventKind::Finalized {
                account: account(e.channelId, e.asset),
                to_member: Amount::new(e.toMember),
                to_hub: Amount::new(e.toHub),
            },
            E::Claimable(e) => EventKind::Claimable {
                vault: e.vault,
                asset: e.asset,
                owner: e.account,
                amount: e.amount,
                total: e.total,
            },
            E::Claimed(e) => {
                EventKind::Claimed { vault: e.vault, asset: e.asset, owner: e.account, to: e.to, amount: e.amount }
            }
            E::EntryRefused(e) => EventKind::EntryRefused {
                index: u64::try_from(e.index).unwrap_or(u64::MAX),
                refusal: Refusal::decode(e.reason),
            },
        })
    }
}

impl Refusal {
    /// Reads what a contract reverted with.
    pub fn decode(data: Bytes) -> Self {
        let known = contract::IAdjudicatorErrors::abi_decode(&data).map(|error| explain(&error));
        let (class, text) = known
            .or_else(|_| TokenRefusals::TokenRefusalsErrors::abi_decode(&data).map(explain_token))
            .unwrap_or_else(|_| match data.is_empty() {
                true => (
                    RefusalClass::Wrong,
                    "the contract refused without a reason; it ran out of gas or is another contract".to_owned(),
                ),
                false => {
                    (RefusalClass::Wrong, format!("the contract refused with data that is no known error: {data}"))
                }
            });
        Refusal { class, text, data }
    }

    /// A refusal that the node put in words of its own.
    pub fn worded(text: impl Into<String>) -> Self {
        Refusal { class: RefusalClass::Wrong, text: text.into(), data: Bytes::new() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The nonce that an EIP-3009 authorisation must carry, which binds the money to one side of one account.
pub fn authorization_nonce(account: &AccountId, side: Side, payer_nonce: B256) -> B256 {
    keccak256((account.channel.0, account.asset, U256::from(side as u8), payer_nonce).abi_encode())
}

fn expect_payer(voucher: &Voucher, expected: Side) -> Result<(), ClaimError> {
    match voucher.check()? {
        given if given != expected => Err(ClaimError::OtherSide { expected, given }),
        _ => Ok(()),
    }
}

fn gas_of(entries: impl Iterator<Item = u64>) -> u64 {
    entries.fold(GAS_FRAME, u64::saturating_add)
}

fn value_of(asset: Asset, amount: Amount, funding: &Funding) -> U256 {
    match funding {
        Funding::Caller if asset == NATIVE => U256::from(amount.get()),
        Funding::Caller | Funding::Authorization { .. } => U256::ZERO,
    }
}

fn terms_abi(terms: &ChannelTerms) -> contract::Terms {
    contract::Terms {
        hub: terms.hub,
        hubKey: terms.hubKey,
        hubScheme: terms.hubScheme,
        member: terms.member,
        memberKey: terms.memberKey,
        memberScheme: terms.memberScheme,
        challengePeriod: terms.challengePeriod,
        salt: terms.salt,
    }
}

fn terms_proto(terms: &contract::Terms) -> ChannelTerms {
    ChannelTerms {
        hub: terms.hub,
        hubKey: terms.hubKey,
        hubScheme: terms.hubScheme,
        member: terms.member,
        memberKey: terms.memberKey,
        memberScheme: terms.memberScheme,
        challengePeriod: terms.challengePeriod,
        salt: terms.salt,
    }
}

fn funding_abi(funding: &Funding) -> contract::Funding {
    match funding {
        Funding::Caller => contract::Funding { kind: 0, data: Bytes::new() },
        Funding::Authorization { from, valid_after_s, valid_before_s, payer_nonce, signature } => {
            let (after, before) = (U256::from(*valid_after_s), U256::from(*valid_before_s));
            let data = (*from, after, before, *payer_nonce, signature.clone()).abi_encode_params();
            contract::Funding { kind: 1, data: data.into() }
        }
    }
}

fn direct_abi(signature: Bytes) -> contract::Proof {
    contract::Proof { signature, batched: false, flush: 0, path: Vec::new() }
}

fn proof_abi(proof: &Proof) -> contract::Proof {
    let signature = Bytes::copy_from_slice(proof.signature().as_slice());
    match proof {
        Proof::Direct(_) => direct_abi(signature),
        Proof::Batch { flush, path, .. } => {
            contract::Proof { signature, batched: true, flush: *flush, path: path.clone() }
        }
    }
}

fn voucher_abi(body: &Voucher, proof: contract::Proof) -> contract::VoucherEvidence {
    contract::VoucherEvidence {
        lane: body.lane,
        cumulative: body.cumulative,
        credits: body.credits,
        memo: body.memo,
        proof,
    }
}

fn tick_abi(claim: &TickClaim) -> contract::TickEvidence {
    let body = claim.voucher.body();
    contract::TickEvidence {
        lane: body.lane,
        cumulative: body.cumulative,
        tick: body.tick,
        ticks: body.ticks,
        anchor: body.anchor,
        memo: body.memo,
        index: claim.index,
        preimage: claim.preimage,
        signature: Bytes::copy_from_slice(claim.voucher.signature().as_slice()),
    }
}

fn receipt_abi(receipt: &Proven<Receipt>) -> contract::ReceiptEvidence {
    let body = receipt.body();
    contract::ReceiptEvidence {
        credit: body.credit,
        amount: body.amount,
        total: body.total,
        payments: body.payments,
        proof: proof_abi(receipt.proof()),
    }
}

fn explain_token(error: TokenRefusals::TokenRefusalsErrors) -> (RefusalClass, String) {
    use TokenRefusals::TokenRefusalsErrors as T;
    let text = match error {
        T::SafeERC20FailedOperation(e) => {
            format!("token {} did not move the money; check balance and allowance", e.token)
        }
        T::ERC20InsufficientBalance(e) => {
            format!("{} holds {} base units of the token and needs {}", e.sender, e.balance, e.needed)
        }
        T::ERC20InsufficientAllowance(e) => {
            format!(
                "{} may spend {} base units of the token and needs {}; approve it first",
                e.spender, e.allowance, e.needed
            )
        }
        T::ERC3009InvalidAuthorizationTime(e) => {
            format!(
                "the authorisation counts after {} and before {}; have a new one signed",
                e.validAfter, e.validBefore
            )
        }
        T::ERC3009InvalidSignature(_) | T::ECDSAInvalidSignature(_) => {
            "the authorisation is not signed by its payer for this amount, channel, asset and side".to_owned()
        }
        T::ERC3009UsedAuthorization(e) => {
            let text = format!("the authorisation {} of {} was used or cancelled before", e.nonce, e.authorizer);
            return (RefusalClass::Moot, text);
        }
        T::ReentrancyGuardReentrantCall(_) => "a contract called back while its own call was under way".to_owned(),
        T::Error(e) => e.reason,
        T::Panic(e) => format!("the contract panicked with code {}", e.code),
    };
    (RefusalClass::Wrong, text)
}

fn explain(error: &contract::IAdjudicatorErrors) -> (RefusalClass, String) {
    use RefusalClass::{Early, Moot, Wrong};
    use contract::IAdjudicatorErrors as E;
    #[allow(
        unreachable_patterns,
        reason = "an error that is younger than this list is still shown, by its name and values"
    )]
    match error {
        E::NotOpened(e) => (Wrong, format!("channel {} was never opened with these terms", e.channelId)),
        E::NotConsented(e) => (
            Wrong,
            format!(
                "member {} did not agree to channel {}: he must send, sign the terms or sign the payment",
                e.member, e.channelId
            ),
        ),
        E::PeriodOutOfBounds(e) => {
            (Wrong, format!("a challenge period of {} s is outside of {} to {} s", e.given, e.min, e.max))
        }
        E::BadPayoutAccounts(e) => {
            (Wrong, format!("payout accounts {} and {} must differ and not be zero", e.hub, e.member))
        }
        E::UnknownScheme(e) => {
            (Wrong, format!("signature scheme {} does not work on this ledger; use 2 (secp256k1)", e.scheme))
        }
        E::IllFormedKey(e) => (Wrong, format!("{} is no key of scheme {}", e.key, e.scheme)),
        E::UnknownSide(e) => (Wrong, format!("side {} does not exist", e.side)),
        E::FundingKindUnsupported(e) => (Wrong, format!("kind {} of funding does not exist for this asset", e.kind)),
        E::AmountIsZero(_) => (Wrong, "a deposit needs an amount".to_owned()),
        E::NativeAmountMismatch(e) => (Wrong, format!("{} coins were sent and {} asked for", e.sent, e.asked)),
        E::DepositsOverflow(e) => (Wrong, format!("deposits would sum to {}, more than an account can hold", e.total)),
        E::TransferShort(e) => (
            Wrong,
            format!("{} of {} base units of {} arrived; the token takes fees or refuses", e.arrived, e.asked, e.asset),
        ),
        E::RefundFailed(e) => (Wrong, format!("{} coins could not be sent back to {}", e.amount, e.to)),
        E::OnlySelf(e) => (Wrong, format!("{} called what only the contract may call", e.caller)),
        E::AccountClosing(e) => {
            (Moot, format!("the account of channel {} is closing until {}", e.channelId, e.deadline))
        }
        E::AccountNotClosing(e) => (Early, format!("the account of channel {} is not closing", e.channelId)),
        E::AccountFinal(e) => (Moot, format!("the account of channel {} is final", e.channelId)),
        E::ChallengeOver(e) => (Moot, format!("the challenge period ended at {}, it is {}", e.deadline, e.timestamp)),
        E::ChallengeRunning(e) => {
            (Early, format!("the challenge period runs until {}, it is {}", e.deadline, e.timestamp))
        }
        E::Expired(e) => (Moot, format!("the signature was valid until {}, it is {}", e.validUntil, e.timestamp)),
        E::StaleSequence(e) => (Moot, format!("settlement {} is overtaken by {}", e.given, e.stored)),
        E::TotalsLowered(e) => (
            Wrong,
            format!(
                "withdrawn totals {} and {} are below the posted {} and {}",
                e.memberWithdrawn, e.hubWithdrawn, e.storedMember, e.storedHub
            ),
        ),
        E::TotalsExceedDeposits(e) => {
            (Wrong, format!("withdrawals of {} exceed deposits of {}", e.withdrawn, e.deposited))
        }
        E::NotPayoutAccount(e) => {
            (Wrong, format!("{} is no payout account of the channel; sign a close request", e.caller))
        }
        E::BadSignature(e) => (Wrong, format!("the signature of side {} over {} is not good", e.side, e.digest)),
        E::PathTooLong(e) => (Wrong, format!("a batch path of {} steps is too long", e.length)),
        E::LaneOutOfRange(e) => (Wrong, format!("lane {} does not exist for payer {}", e.lane, e.payer)),
        E::LaneRepeated(e) => (Wrong, format!("lane {} stands twice or out of order in the evidence", e.lane)),
        E::CreditsNotZero(e) => (Wrong, format!("a member's voucher numbers {} credits", e.credits)),
        E::BatchByMember(e) => (Wrong, format!("lane {} is shown with a batch proof, which only hubs sign", e.lane)),
        E::TicksOutOfRange(e) => (Wrong, format!("tick {} of {} does not exist", e.index, e.ticks)),
        E::TickValueOverflow(e) => (Wrong, format!("the last tick would be worth {}", e.value)),
        E::WrongPreimage(e) => {
            (Wrong, format!("the preimage of tick {} does not lead to anchor {}", e.index, e.anchor))
        }
        E::NothingRaised(e) => (Moot, format!("the evidence proves nothing above {} and {}", e.memberPaid, e.hubPaid)),
        E::NothingToClaim(e) => (Moot, format!("nothing waits for {} in vault {}", e.account, e.vault)),
        E::PayoutGasUnavailable(e) => {
            (Wrong, format!("a payout needs {} gas and {} is left; send more gas", e.needed, e.available))
        }
        E::PullOutOfGas(_) => (Wrong, "the gas did not suffice to pull tokens; send more gas".to_owned()),
        E::BadDeployment(e) => (
            Wrong,
            format!(
                "{} shards with periods of {} to {} s cannot be deployed",
                e.shards, e.minChallengePeriod, e.maxChallengePeriod
            ),
        ),
        younger => (Wrong, format!("{younger:?}")),
    }
}
