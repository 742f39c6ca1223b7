//! Evidence: what its holder can show to the ledger.
//!
//! A [`Signed`] struct carries the signature of one key over its own digest. A [`Proven`] one carries the hub's word,
//! which may be a signature over its digest or over the [`Batch`](crate::typed::Batch) that its digest is a leaf of.
//! Neither can be built from the wire without being verified. Members never sign batches, so a `Signed` has no path.

use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

use crate::batch;
use crate::ids::{LANES, Side};
use crate::keys::{KeyError, PublicKey, SecretKey, Signature};
use crate::typed::{Batchable, Domain, Receipt, TickVoucher, Typed, Voucher};

/// A struct and its signer's signature over its digest, which was verified when this value was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed<T> {
    body: T,
    signature: Signature,
    digest: B256,
}

/// A struct and the hub's word for it, verified when this value was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven<T> {
    body: T,
    proof: Proof,
    digest: B256,
}

/// How the hub vouches for a struct.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// A signature over the struct's own digest.
    Direct(Signature),
    /// A signature over the batch of one flush, and the path from the struct's leaf to its root.
    Batch {
        /// The journal's number of the flush.
        flush: u64,
        /// Siblings from the leaf to the root.
        path: Vec<B256>,
        /// The signature over `Batch(flush, root)`.
        signature: Signature,
    },
}

/// Evidence that contract and programs refuse alike.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// The signature or key is not good.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The path is longer than anybody accepts.
    #[error("a batch path has at most {max} steps, this one has {given}")]
    PathTooLong {
        /// Steps given.
        given: usize,
        /// Steps allowed.
        max: usize,
    },
    /// A payer other than 0 or 1.
    #[error("a voucher's payer is 0 (member) or 1 (hub), not {given}")]
    Payer {
        /// The number given.
        given: u8,
    },
    /// A lane that does not exist for the payer.
    #[error("lane {given} does not exist: members have lanes 0 to 63, the hub has lane 0")]
    Lane {
        /// The lane given.
        given: u32,
    },
    /// A member's voucher with a credit number.
    #[error("only the hub numbers credits; a member's voucher carries 0, not {given}")]
    Credits {
        /// The number given.
        given: u64,
    },
    /// A tick voucher outside its bounds.
    #[error("a tick voucher has 1 to 2048 ticks whose full value fits 128 bits")]
    Ticks,
}

impl<T: Typed> Signed<T> {
    /// Signs a struct.
    pub fn sign(domain: &Domain, key: &SecretKey, body: T) -> Self {
        let digest = domain.digest(&body);
        Signed { signature: key.sign(&digest), body, digest }
    }

    /// Takes a struct and a signature from elsewhere and checks them.
    pub fn verify(domain: &Domain, key: &PublicKey, body: T, signature: Signature) -> Result<Self, KeyError> {
        let digest = domain.digest(&body);
        key.verify(&digest, &signature)?;
        Ok(Signed { body, signature, digest })
    }

    /// What was signed.
    pub fn body(&self) -> &T {
        &self.body
    }

    /// The signature.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The digest that was signed.
    pub fn digest(&self) -> B256 {
        self.digest
    }
}

impl<T: Batchable> Proven<T> {
    /// Signs a struct on its own, outside any batch.
    pub fn sign(domain: &Domain, key: &SecretKey, body: T) -> Self {
        let digest = domain.digest(&body);
        Proven { proof: Proof::Direct(key.sign(&digest)), body, digest }
    }

    /// Takes a struct and a proof from elsewhere and checks them.
    pub fn verify(domain: &Domain, key: &PublicKey, body: T, proof: Proof) -> Result<Self, EvidenceError> {
        let digest = domain.digest(&body);
        match &proof {
            Proof::Direct(signature) => key.verify(&digest, signature)?,
            Proof::Batch { flush, path, signature } => {
                let too_long = EvidenceError::PathTooLong { given: path.len(), max: batch::PATH_MAX };
                let root = batch::root_of(&digest, path).ok_or(too_long)?;
                let signed = domain.digest(&crate::typed::Batch { flush: *flush, root });
                key.verify(&signed, signature)?;
            }
        }
        Ok(Proven { body, proof, digest })
    }

    /// Puts together what this process just signed as a batch; the tree and the signature are its own.
    pub fn from_own_batch(domain: &Domain, body: T, flush: u64, path: Vec<B256>, signature: Signature) -> Self {
        let digest = domain.digest(&body);
        Proven::from_own_leaf(body, digest, flush, path, signature)
    }

    /// The same where the digest, which is the batch's leaf, is at hand.
    pub(crate) fn from_own_leaf(body: T, digest: B256, flush: u64, path: Vec<B256>, signature: Signature) -> Self {
        Proven { body, proof: Proof::Batch { flush, path, signature }, digest }
    }

    /// What the hub vouches for.
    pub fn body(&self) -> &T {
        &self.body
    }

    /// How it vouches.
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// The struct's digest.
    pub fn digest(&self) -> B256 {
        self.digest
    }
}

impl Proof {
    /// The signature, over a digest or a batch.
    pub fn signature(&self) -> &Signature {
        match self {
            Proof::Direct(signature) | Proof::Batch { signature, .. } => signature,
        }
    }

    /// The flush whose batch this is, if it is one.
    pub fn flush(&self) -> Option<u64> {
        match self {
            Proof::Direct(_) => None,
            Proof::Batch { flush, .. } => Some(*flush),
        }
    }
}

impl Voucher {
    /// The side that pays.
    pub fn side(&self) -> Result<Side, EvidenceError> {
        match self.payer {
            0 => Ok(Side::Member),
            1 => Ok(Side::Hub),
            given => Err(EvidenceError::Payer { given }),
        }
    }

    /// The rules that do not need a signature: payer, lane, credit number.
    pub fn check(&self) -> Result<Side, EvidenceError> {
        let side = self.side()?;
        match side {
            Side::Hub if self.lane != 0 => Err(EvidenceError::Lane { given: self.lane }),
            Side::Member if self.lane >= LANES => Err(EvidenceError::Lane { given: self.lane }),
            Side::Member if self.credits != 0 => Err(EvidenceError::Credits { given: self.credits }),
            Side::Hub | Side::Member => Ok(side),
        }
    }
}

impl TickVoucher {
    /// Most ticks of one voucher: a claim hashes each of them once.
    pub const TICKS_MAX: u32 = 2048;

    /// The rules that do not need a signature: lane, number of ticks, full value.
    pub fn check(&self) -> Result<(), EvidenceError> {
        if self.lane >= LANES {
            return Err(EvidenceError::Lane { given: self.lane });
        }
        let full = self.tick.checked_mul(u128::from(self.ticks)).and_then(|all| self.cumulative.checked_add(all));
        if self.ticks == 0 || self.ticks > Self::TICKS_MAX || full.is_none() {
            return Err(EvidenceError::Ticks);
        }
        Ok(())
    }
}

impl Receipt {
    /// Whether the hub itself is the payee: such a receipt proves a payment, and no ledger redeems it.
    pub fn is_for_hub(&self) -> bool {
        self.channelId.is_zero()
    }
}
