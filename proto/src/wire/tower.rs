//! Uploads to a watchtower: written from what a member holds, read with every signature checked.

use alloy_primitives::Address;

use super::{
    Malformed, WireError, at_most, bytes_of, hub_voucher_message, lane_message, read_address, read_b256, read_channel,
    read_hub_voucher, read_lane, read_receipt, receipt_message, required, v1,
};
use crate::evidence::Proven;
use crate::ids::{AccountId, Asset, ChannelId, LANES};
use crate::keys::{KeyError, PublicKey, Scheme};
use crate::stream::{CLAIM_GAS_MAX, GAS_LANE, GAS_TICK, LaneVoucher};
use crate::typed::{ChannelTerms, Domain, Receipt, Voucher};

/// Most bytes of one upload: terms, a voucher with the longest path, all lanes and some receipts take a third of it.
pub const UPLOAD_BYTES_MAX: usize = 64 * 1024;
/// Most receipts in one upload: only the largest counts, and each costs a verification.
pub const RECEIPTS_MAX: usize = 8;

/// The evidence of one account, verified with the keys of the terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The channel's terms.
    pub terms: ChannelTerms,
    /// The account.
    pub account: AccountId,
    /// The hub's voucher.
    pub hub: Option<Proven<Voucher>>,
    /// Receipts of the hub for this account.
    pub receipts: Vec<Proven<Receipt>>,
    /// The member's own vouchers, with the ticks accepted.
    pub lanes: Vec<LaneVoucher>,
}

/// Why an upload is not taken, whatever the ledger says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// A field is not well-formed, or a signature in it is bad.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// It is for another ledger or contract.
    #[error(
        "the upload is for adjudicator {given} on chain {given_chain}, this tower watches {ours} on chain {our_chain}; upload to a tower of that ledger"
    )]
    OtherDomain {
        /// The chain id given.
        given_chain: u64,
        /// The contract given.
        given: Address,
        /// The tower's chain id.
        our_chain: u64,
        /// The tower's contract.
        ours: Address,
    },
    /// The terms are those of another channel.
    #[error("the terms are those of channel {derived}, the upload names {named}; send the terms that hash to it")]
    OtherChannel {
        /// The channel named.
        named: ChannelId,
        /// The channel that the terms make.
        derived: ChannelId,
    },
    /// A key of the terms is none that vouchers can be verified with.
    #[error("the {whose} key of the terms cannot be used: {why}")]
    Key {
        /// `hub` or `member`.
        whose: &'static str,
        /// Why.
        why: KeyError,
    },
    /// A receipt is about another account.
    #[error("a receipt is about {given}, the upload is about {expected}; upload it with the terms of its own payee")]
    OtherAccount {
        /// The account of the upload.
        expected: AccountId,
        /// The account of the receipt.
        given: AccountId,
    },
    /// There is nothing in it.
    #[error("the upload holds no voucher and no receipt; there is nothing that a tower could post")]
    Empty,
}

impl Upload {
    /// The message of it.
    pub fn to_message(&self, domain: &Domain, tag: u64) -> v1::TowerUpload {
        v1::TowerUpload {
            tag,
            chain_id: domain.chain_id,
            adjudicator: bytes_of(domain.adjudicator),
            channel_id: bytes_of(self.account.channel.0),
            terms: Some(terms_message(&self.terms)),
            asset: bytes_of(self.account.asset),
            hub_voucher: self.hub.as_ref().map(hub_voucher_message),
            receipts: self.receipts.iter().map(receipt_message).collect(),
            lanes: self.lanes.iter().map(lane_message).collect(),
        }
    }

    /// Reads an upload for a tower of `domain`. What costs little is checked first.
    pub fn read(domain: &Domain, message: &v1::TowerUpload) -> Result<Self, UploadError> {
        let given = read_address("upload.adjudicator", &message.adjudicator)?;
        if (message.chain_id, given) != (domain.chain_id, domain.adjudicator) {
            return Err(UploadError::OtherDomain {
                given_chain: message.chain_id,
                given,
                our_chain: domain.chain_id,
                ours: domain.adjudicator,
            });
        }
        at_most("upload.lanes", message.lanes.len(), LANES as usize)?;
        at_most("upload.receipts", message.receipts.len(), RECEIPTS_MAX)?;
        if message.hub_voucher.is_none() && message.receipts.is_empty() && message.lanes.is_empty() {
            return Err(UploadError::Empty);
        }
        let terms = read_terms(required("upload.terms", message.terms.as_ref())?)?;
        let named = read_channel("upload.channel_id", &message.channel_id)?;
        let derived = domain.channel_id(&terms);
        if derived != named {
            return Err(UploadError::OtherChannel { named, derived });
        }
        let asset: Asset = read_address("upload.asset", &message.asset)?;
        let account = AccountId { channel: named, asset };
        let hub_key = key("hub", terms.hubScheme, terms.hubKey)?;
        let member_key = key("member", terms.memberScheme, terms.memberKey)?;
        let hub = message.hub_voucher.as_ref().map(|m| read_hub_voucher(domain, &hub_key, account, m)).transpose()?;
        let mut receipts = Vec::with_capacity(message.receipts.len());
        for message in &message.receipts {
            let receipt = read_receipt(domain, &hub_key, message)?;
            let given = receipt.body().account();
            if given != account {
                return Err(UploadError::OtherAccount { expected: account, given });
            }
            receipts.push(receipt);
        }
        // Before any hash is computed: evidence that no hub would accept is none.
        let gas = message.lanes.iter().map(|lane| {
            GAS_LANE.saturating_add(GAS_TICK.saturating_mul(lane.ticks.as_ref().map_or(0, |ticks| ticks.index.into())))
        });
        let gas = gas.fold(0, u64::saturating_add);
        if gas > CLAIM_GAS_MAX {
            let why = Malformed::Value { given: gas };
            return Err(WireError { field: "upload.lanes", why }.into());
        }
        let lanes = message.lanes.iter().map(|m| read_lane(domain, &member_key, account, m));
        let lanes = lanes.collect::<Result<_, _>>()?;
        Ok(Upload { terms, account, hub, receipts, lanes })
    }
}

fn key(whose: &'static str, scheme: u8, bytes: alloy_primitives::B256) -> Result<PublicKey, UploadError> {
    let read = Scheme::from_number(scheme).and_then(|scheme| PublicKey::new(scheme, bytes));
    read.map_err(|why| UploadError::Key { whose, why })
}

fn terms_message(terms: &ChannelTerms) -> v1::Terms {
    v1::Terms {
        hub: bytes_of(terms.hub),
        hub_key: bytes_of(terms.hubKey),
        hub_scheme: terms.hubScheme.into(),
        member: bytes_of(terms.member),
        member_key: bytes_of(terms.memberKey),
        member_scheme: terms.memberScheme.into(),
        challenge_period_s: terms.challengePeriod,
        salt: bytes_of(terms.salt),
    }
}

fn read_terms(message: &v1::Terms) -> Result<ChannelTerms, WireError> {
    let scheme = |field, given: u32| {
        u8::try_from(given).map_err(|_| WireError { field, why: Malformed::Value { given: given.into() } })
    };
    Ok(ChannelTerms {
        hub: read_address("terms.hub", &message.hub)?,
        hubKey: read_b256("terms.hub_key", &message.hub_key)?,
        hubScheme: scheme("terms.hub_scheme", message.hub_scheme)?,
        member: read_address("terms.member", &message.member)?,
        memberKey: read_b256("terms.member_key", &message.member_key)?,
        memberScheme: scheme("terms.member_scheme", message.member_scheme)?,
        challengePeriod: message.challenge_period_s,
        salt: read_b256("terms.salt", &message.salt)?,
    })
}
