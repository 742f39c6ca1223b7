//! EIP-712 typed data: every struct that a key of payhub may sign, its domain and its digest.
//!
//! The domain is `name "payhub", version "1", chainId, verifyingContract = adjudicator`. Ed25519 keys sign the 32-byte
//! digest. The same structs are hashed by the contract; the golden vectors under `proto/vectors` hold both to the same
//! bytes. A key never signs 32 bytes that it did not hash from one of these structs.

use std::sync::OnceLock;

use alloy_primitives::{Address, B256, Keccak256, keccak256};
use alloy_sol_types::{SolStruct, SolValue, sol};
use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ChannelId};

sol! {
    /// What a channel is: fixed at opening; its digest is the channel id.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct ChannelTerms {
        address hub;
        bytes32 hubKey;
        uint8 hubScheme;
        address member;
        bytes32 memberKey;
        uint8 memberScheme;
        uint32 challengePeriod;
        bytes32 salt;
    }

    /// A cumulative promise of its payer on one lane; the newest replaces every earlier one of its lane.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Voucher {
        bytes32 channelId;
        address asset;
        uint8 payer;
        uint32 lane;
        uint128 cumulative;
        uint64 credits;
        bytes32 memo;
    }

    /// A lane's promise that grows by `tick` with each preimage of `anchor` revealed.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct TickVoucher {
        bytes32 channelId;
        address asset;
        uint32 lane;
        uint128 cumulative;
        uint128 tick;
        uint32 ticks;
        bytes32 anchor;
        bytes32 memo;
    }

    /// The hub's promise that credit number `credit` of a payee's account holds the payments of one payer in one flush.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Receipt {
        bytes32 channelId;
        address asset;
        uint64 credit;
        uint128 amount;
        uint128 total;
        bytes32 payments;
    }

    /// The payee's word that it holds, and counts as backed, every credit up to `credits`.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Ack {
        bytes32 channelId;
        address asset;
        uint64 credits;
        bytes32 head;
    }

    /// Cumulative withdrawals that both parties agree to.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Settlement {
        bytes32 channelId;
        address asset;
        uint64 seq;
        uint128 memberWithdrawn;
        uint128 hubWithdrawn;
        uint64 validUntil;
        bool close;
    }

    /// Lets anybody start the challenge period for its signer.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct CloseRequest {
        bytes32 channelId;
        address asset;
        uint64 validUntil;
    }

    /// The terms that a hub offers for new channels.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Offer {
        address hub;
        bytes32 hubKey;
        uint8 hubScheme;
        uint32 challengePeriod;
        uint64 expires;
    }

    /// A member's answer to a hub's challenge when a session begins.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Login {
        bytes32 channelId;
        bytes32 server;
        bytes32 nonce;
        uint64 expires;
    }

    /// One signature of the hub over everything that it signs in one flush.
    #[derive(Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
    struct Batch {
        uint64 flush;
        bytes32 root;
    }
}

/// Where signatures count: one chain and one adjudicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Domain {
    /// The chain's id.
    pub chain_id: u64,
    /// The adjudicator's address.
    pub adjudicator: Address,
    separator: B256,
}

/// A struct of this module; sealed, so that nothing else can be signed.
pub trait Typed: SolStruct + Clone + sealed::Sealed {
    /// `keccak256` of the struct's EIP-712 type, computed once.
    fn type_hash(&self) -> B256;
}

/// A struct that the hub may sign as a leaf of a [`Batch`]: hub vouchers, receipts and its side of settlements.
pub trait Batchable: Typed {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! typed {
    ($($name:ident),*) => { $(
        impl sealed::Sealed for $name {}
        impl Typed for $name {
            fn type_hash(&self) -> B256 {
                static HASH: OnceLock<B256> = OnceLock::new();
                *HASH.get_or_init(|| self.eip712_type_hash())
            }
        }
    )* };
}
typed!(ChannelTerms, Voucher, TickVoucher, Receipt, Ack, Settlement, CloseRequest, Offer, Login, Batch);
impl Batchable for Voucher {}
impl Batchable for Receipt {}
impl Batchable for Settlement {}

impl Domain {
    /// The domain of an adjudicator on a chain.
    pub fn new(chain_id: u64, adjudicator: Address) -> Self {
        let domain = alloy_sol_types::eip712_domain! {
            name: "payhub",
            version: "1",
            chain_id: chain_id,
            verifying_contract: adjudicator,
        };
        Domain { chain_id, adjudicator, separator: domain.hash_struct() }
    }

    /// `keccak256` of the encoded domain.
    pub fn separator(&self) -> B256 {
        self.separator
    }

    /// `keccak256(0x1901 || separator || hashStruct(body))`.
    pub fn digest<T: Typed>(&self, body: &T) -> B256 {
        let mut input = [0; 66];
        input[..2].copy_from_slice(&[0x19, 0x01]);
        input[2..34].copy_from_slice(self.separator.as_slice());
        let mut hasher = Keccak256::new();
        hasher.update(body.type_hash());
        hasher.update(body.eip712_encode_data());
        hasher.finalize_into(&mut input[34..]);
        keccak256(input)
    }

    /// The channel that these terms name.
    pub fn channel_id(&self, terms: &ChannelTerms) -> ChannelId {
        ChannelId(self.digest(terms))
    }
}

/// `Login.server`: `keccak256(abi.encode(hubKey, keccak256(host name)))`, so that a login for one server is worthless
/// at another.
pub fn server_id(hub_key: B256, host: &str) -> B256 {
    keccak256((hub_key, keccak256(host.as_bytes())).abi_encode())
}

/// `keccak256(abi.encode(a, b))` of two words: the step of lane memos and of credit heads.
pub fn chain_hash(previous: B256, next: B256) -> B256 {
    let mut input = [0; 64];
    input[..32].copy_from_slice(previous.as_slice());
    input[32..].copy_from_slice(next.as_slice());
    keccak256(input)
}

macro_rules! of_account {
    ($($name:ident),*) => { $(impl $name {
        /// The account that this is about.
        pub fn account(&self) -> AccountId {
            AccountId { channel: ChannelId(self.channelId), asset: self.asset }
        }
    })* };
}
of_account!(Voucher, TickVoucher, Receipt, Ack, Settlement, CloseRequest);
