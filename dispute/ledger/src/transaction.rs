//! Admission of raw transactions: decoding, the rules that need no state, and the one signature recovery.
//!
//! Recovery uses libsecp256k1 and happens once, on the caller's thread; the sender travels with the transaction
//! from then on.

use std::sync::LazyLock;

use alloy::consensus::{Transaction as _, TxEnvelope};
use alloy::eips::eip2718::Decodable2718;
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, keccak256};
use revm::context::TxEnv;
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, Secp256k1, VerifyOnly};

/// Largest encoded transaction. The value is geth's; a contract of the largest size the fork allows fits twice.
pub const TRANSACTION_BYTES_MAX: usize = 128 * 1024;

/// Largest init code (EIP-3860).
pub const INITCODE_BYTES_MAX: usize = 49_152;

static SECP256K1: LazyLock<Secp256k1<VerifyOnly>> = LazyLock::new(Secp256k1::verification_only);

/// Why a raw transaction is refused whatever the state is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too many bytes.
    #[error("the transaction has {bytes} bytes, at most {TRANSACTION_BYTES_MAX} are accepted")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A type that this ledger does not execute.
    #[error("transaction type {0} is not supported here: send a legacy, EIP-2930 (1) or EIP-1559 (2) transaction")]
    UnsupportedType(u8),
    /// Not a transaction.
    #[error("the bytes are not a signed transaction: {0}")]
    Malformed(String),
    /// Signed for another chain.
    #[error("wrong chain id: the transaction is signed for {signed}, this chain is {chain}")]
    WrongChain {
        /// What the transaction names.
        signed: u64,
        /// What this chain is.
        chain: u64,
    },
    /// A legacy transaction that every chain would accept.
    #[error("the transaction names no chain id (EIP-155) and could be replayed elsewhere: sign it for chain {chain}")]
    NotReplayProtected {
        /// What this chain is.
        chain: u64,
    },
    /// The signature recovers to no address.
    #[error("the signature is invalid: {0}")]
    BadSignature(&'static str),
    /// The tip is above the maximum fee.
    #[error("max priority fee per gas {tip} is above max fee per gas {max}")]
    TipAboveMaxFee {
        /// Priority fee.
        tip: u128,
        /// Maximum fee.
        max: u128,
    },
    /// The gas limit does not cover what every transaction of this size costs.
    #[error("intrinsic gas too low: the gas limit is {limit}, the transaction needs at least {needed}")]
    IntrinsicGas {
        /// Gas limit of the transaction.
        limit: u64,
        /// Least that could do.
        needed: u64,
    },
    /// Init code is too long.
    #[error("the init code has {bytes} bytes, at most {INITCODE_BYTES_MAX} are accepted")]
    InitCodeTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The nonce can never be used (EIP-2681).
    #[error("the nonce is 2^64-1, which no account can use")]
    NonceExhausted,
}

/// A transaction whose sender is known.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The signed transaction.
    pub tx: TxEnvelope,
    /// Who signed it.
    pub sender: Address,
    /// Its hash.
    pub hash: B256,
    /// Its bytes, as they count in the transactions root.
    pub raw: Bytes,
}

impl Recovered {
    /// Decodes and checks a raw transaction and recovers its sender.
    pub fn decode(raw: &Bytes, chain_id: u64) -> Result<Self, DecodeError> {
        if raw.len() > TRANSACTION_BYTES_MAX {
            return Err(DecodeError::TooLarge { bytes: raw.len() });
        }
        // Below 0xc0 the first byte is a type; from there on it begins the list of a legacy transaction.
        match raw.first() {
            Some(&kind @ (0 | 3..=0xbf)) => return Err(DecodeError::UnsupportedType(kind)),
            Some(_) => {}
            None => return Err(DecodeError::Malformed("there are none".to_owned())),
        }
        let mut rest = raw.as_ref();
        let tx = TxEnvelope::decode_2718(&mut rest).map_err(|e| DecodeError::Malformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(DecodeError::Malformed(format!("{} bytes follow it", rest.len())));
        }
        check_fields(&tx, chain_id)?;
        let sender = recover(tx.signature(), tx.signature_hash())?;
        Ok(Self { sender, hash: keccak256(raw), raw: raw.clone(), tx })
    }

    /// Rebuilds a transaction that was admitted before; the record that holds it is checksummed.
    pub fn from_record(raw: Bytes, sender: Address) -> Result<Self, DecodeError> {
        let tx = TxEnvelope::decode_2718(&mut raw.as_ref()).map_err(|e| DecodeError::Malformed(e.to_string()))?;
        Ok(Self { sender, hash: keccak256(&raw), raw, tx })
    }

    /// The most this transaction can cost its sender.
    pub fn cost_max(&self) -> U256 {
        let gas = U256::from(self.tx.gas_limit()).saturating_mul(U256::from(self.tx.max_fee_per_gas()));
        gas.saturating_add(self.tx.value())
    }

    /// The tip per gas at a base fee.
    pub fn tip(&self, base_fee: u64) -> u128 {
        self.tx.effective_tip_per_gas(base_fee).unwrap_or(0)
    }

    /// The price per gas at a base fee.
    pub fn effective_gas_price(&self, base_fee: u64) -> u128 {
        self.tx.effective_gas_price(Some(base_fee))
    }

    /// The transaction as revm takes it.
    pub fn env(&self) -> TxEnv {
        TxEnv {
            tx_type: self.tx.tx_type() as u8,
            caller: self.sender,
            gas_limit: self.tx.gas_limit(),
            gas_price: self.tx.max_fee_per_gas(),
            kind: self.tx.kind(),
            value: self.tx.value(),
            data: self.tx.input().clone(),
            nonce: self.tx.nonce(),
            chain_id: self.tx.chain_id(),
            access_list: self.tx.access_list().cloned().unwrap_or_default(),
            gas_priority_fee: self.tx.max_priority_fee_per_gas(),
            blob_hashes: Vec::new(),
            max_fee_per_blob_gas: 0,
            authorization_list: Vec::new(),
        }
    }
}

fn check_fields(tx: &TxEnvelope, chain: u64) -> Result<(), DecodeError> {
    match tx.chain_id() {
        None => return Err(DecodeError::NotReplayProtected { chain }),
        Some(signed) if signed != chain => return Err(DecodeError::WrongChain { signed, chain }),
        Some(_) => {}
    }
    if tx.nonce() == u64::MAX {
        return Err(DecodeError::NonceExhausted);
    }
    let max = tx.max_fee_per_gas();
    if let Some(tip) = tx.max_priority_fee_per_gas().filter(|tip| *tip > max) {
        return Err(DecodeError::TipAboveMaxFee { tip, max });
    }
    if tx.kind() == TxKind::Create && tx.input().len() > INITCODE_BYTES_MAX {
        return Err(DecodeError::InitCodeTooLarge { bytes: tx.input().len() });
    }
    let needed = intrinsic_gas(tx);
    if tx.gas_limit() < needed {
        return Err(DecodeError::IntrinsicGas { limit: tx.gas_limit(), needed });
    }
    Ok(())
}

/// The gas every transaction pays before its first instruction (Yellow Paper, EIP-2028, EIP-2930, EIP-3860).
fn intrinsic_gas(tx: &TxEnvelope) -> u64 {
    let zeros = tx.input().iter().filter(|byte| **byte == 0).count() as u64;
    let bytes = tx.input().len() as u64;
    let data = 4 * zeros + 16 * (bytes - zeros);
    let create = if tx.kind() == TxKind::Create { 32_000 + 2 * bytes.div_ceil(32) } else { 0 };
    let list = tx
        .access_list()
        .map_or(0, |list| list.iter().fold(0u64, |sum, item| sum + 2_400 + 1_900 * item.storage_keys.len() as u64));
    21_000 + data + create + list
}

fn recover(signature: &Signature, digest: B256) -> Result<Address, DecodeError> {
    // EIP-2: of the two signatures that recover alike only the low one counts.
    if signature.normalize_s().is_some() {
        return Err(DecodeError::BadSignature("s is in the upper half of the order"));
    }
    let mut compact = [0u8; 64];
    compact[..32].copy_from_slice(&signature.r().to_be_bytes::<32>());
    compact[32..].copy_from_slice(&signature.s().to_be_bytes::<32>());
    let id = if signature.v() { RecoveryId::One } else { RecoveryId::Zero };
    let signature = RecoverableSignature::from_compact(&compact, id)
        .map_err(|_| DecodeError::BadSignature("r or s is zero or not below the order"))?;
    let key = SECP256K1
        .recover_ecdsa(Message::from_digest(digest.0), &signature)
        .map_err(|_| DecodeError::BadSignature("no key recovers from it"))?;
    Ok(Address::from_raw_public_key(&key.serialize_uncompressed()[1..]))
}
