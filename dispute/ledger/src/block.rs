//! Sealed blocks and the journal records that make them durable.
//!
//! A block is one record: header, transactions, receipts and change set. The record is the commit point; receipts
//! are published after it is durable, and recovery applies the change sets without running the EVM.
//!
//! Two header fields are worth knowing. `stateRoot` is the root of the state *before* the block (after its parent),
//! because roots are computed off the way to the receipt. `mixHash` (`PREVRANDAO`) is the hash of the parent's hash,
//! so it is deterministic and no source of randomness.

use alloy::consensus::{EMPTY_OMMER_ROOT_HASH, Header, ReceiptEnvelope, ReceiptWithBloom};
use alloy::eips::eip2718::Encodable2718;
use alloy::rlp::{Decodable, Encodable};
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, U256, keccak256};
use alloy_trie::EMPTY_ROOT_HASH;
use alloy_trie::root::{ordered_trie_root_encoded, ordered_trie_root_with_encoder};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::evm::BlockContext;
use crate::executor::Receipt;
use crate::genesis::GenesisRecord;
use crate::state::ChangeSet;
use crate::transaction::Recovered;

/// What stands in `extraData` of every header.
pub const EXTRA_DATA: &[u8] = b"payhub";

/// Why a journal record cannot be understood. The journal's checksums hold, so it was written by other software.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: the data directory was written by another version of this software")]
pub struct RecordError(String);

impl RecordError {
    fn new(what: impl std::fmt::Display) -> Self {
        Self(what.to_string())
    }
}

/// A block that is durable.
#[derive(Debug, Clone)]
pub struct Block {
    /// The header.
    pub header: Header,
    /// Its hash.
    pub hash: B256,
    /// The transactions in order.
    pub transactions: Vec<Arc<Recovered>>,
    /// Their receipts in order.
    pub receipts: Vec<Receipt>,
}

/// One entry of the ledger's journal.
#[derive(Debug)]
pub enum Record {
    /// The first entry: what the chain starts from.
    Genesis(Box<GenesisRecord>),
    /// A block.
    Block(Box<BlockRecord>),
    /// Development mode: the state was changed by hand, between blocks.
    Changes(ChangeSet),
    /// Development mode: every entry after number `to` is void.
    Revert {
        /// The last entry that still counts.
        to: u64,
    },
}

/// A block with what is needed to recover from it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BlockRecord {
    header: Bytes,
    transactions: Vec<(Address, Bytes)>,
    /// Receipts in order.
    pub receipts: Vec<Receipt>,
    /// The net effect on the state.
    pub changes: ChangeSet,
    /// Development mode: seconds the chain's clock was moved against the wall clock.
    pub clock_offset_s: i64,
}

// The first byte of an entry: kind and version in one.
const GENESIS_V1: u8 = 0x01;
const BLOCK_V1: u8 = 0x11;
const CHANGES_V1: u8 = 0x21;
const REVERT_V1: u8 = 0x31;

impl Record {
    /// The bytes for the journal.
    pub fn encode(&self) -> Vec<u8> {
        let (tag, body) = match self {
            Self::Genesis(genesis) => (GENESIS_V1, postcard::to_stdvec(genesis)),
            Self::Block(block) => (BLOCK_V1, postcard::to_stdvec(block)),
            Self::Changes(changes) => (CHANGES_V1, postcard::to_stdvec(changes)),
            Self::Revert { to } => (REVERT_V1, postcard::to_stdvec(to)),
        };
        let mut bytes = vec![tag];
        bytes.extend(body.expect("plain data of known length encodes into memory"));
        bytes
    }

    /// Reads an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let Some((tag, body)) = bytes.split_first() else { return Err(RecordError::new("an empty record")) };
        match *tag {
            GENESIS_V1 => postcard::from_bytes(body).map(|g| Self::Genesis(Box::new(g))),
            BLOCK_V1 => postcard::from_bytes(body).map(|b| Self::Block(Box::new(b))),
            CHANGES_V1 => postcard::from_bytes(body).map(Self::Changes),
            REVERT_V1 => postcard::from_bytes(body).map(|to| Self::Revert { to }),
            unknown => return Err(RecordError::new(format_args!("a record of unknown kind {unknown:#04x}"))),
        }
        .map_err(|e| RecordError::new(format_args!("a record of kind {tag:#04x} does not decode ({e})")))
    }

    /// If the entry is a revert, the last entry that still counts; decodes nothing else.
    pub fn revert_target(bytes: &[u8]) -> Option<u64> {
        let (tag, body) = bytes.split_first()?;
        if *tag == REVERT_V1 { postcard::from_bytes(body).ok() } else { None }
    }
}

impl BlockRecord {
    /// The record of a block.
    pub fn new(block: &Block, changes: ChangeSet, clock_offset_s: i64) -> Self {
        Self {
            header: encode_header(&block.header),
            transactions: block.transactions.iter().map(|tx| (tx.sender, tx.raw.clone())).collect(),
            receipts: block.receipts.clone(),
            changes,
            clock_offset_s,
        }
    }

    /// The block of a record.
    pub fn block(&self) -> Result<Block, RecordError> {
        let header = decode_header(&self.header)?;
        let transactions = self
            .transactions
            .iter()
            .map(|(sender, raw)| Recovered::from_record(raw.clone(), *sender).map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(RecordError::new)?;
        Ok(Block { hash: header.hash_slow(), header, transactions, receipts: self.receipts.clone() })
    }
}

/// The RLP of a header.
pub fn encode_header(header: &Header) -> Bytes {
    let mut bytes = Vec::new();
    header.encode(&mut bytes);
    bytes.into()
}

/// A header from its RLP.
pub fn decode_header(bytes: &[u8]) -> Result<Header, RecordError> {
    Header::decode(&mut &bytes[..]).map_err(|e| RecordError::new(format_args!("a header does not decode ({e})")))
}

/// The value of `PREVRANDAO` in the block after `parent`.
pub fn prev_randao(parent: B256) -> B256 {
    keccak256(parent)
}

/// Seals an executed block. `state_root` is the root of the state before it.
pub fn seal(
    context: &BlockContext,
    parent: B256,
    state_root: B256,
    transactions: Vec<Arc<Recovered>>,
    receipts: Vec<Receipt>,
) -> Block {
    let raw = transactions.iter().map(|tx| tx.raw.as_ref()).collect::<Vec<_>>();
    let header = Header {
        parent_hash: parent,
        state_root,
        transactions_root: ordered_trie_root_encoded(&raw),
        receipts_root: receipts_root(&receipts),
        logs_bloom: receipts.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | receipt.bloom()),
        gas_used: receipts.last().map_or(0, |receipt| receipt.cumulative_gas_used),
        ..empty_header(context)
    };
    Block { hash: header.hash_slow(), header, transactions, receipts }
}

/// A header with everything that does not depend on transactions or state.
pub fn empty_header(context: &BlockContext) -> Header {
    Header {
        parent_hash: B256::ZERO,
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        beneficiary: context.fee_recipient,
        state_root: EMPTY_ROOT_HASH,
        transactions_root: EMPTY_ROOT_HASH,
        receipts_root: EMPTY_ROOT_HASH,
        logs_bloom: Bloom::ZERO,
        difficulty: U256::ZERO,
        number: context.number,
        gas_limit: context.gas_limit,
        gas_used: 0,
        timestamp: context.timestamp,
        extra_data: Bytes::from_static(EXTRA_DATA),
        mix_hash: context.prev_randao,
        nonce: B64::ZERO,
        base_fee_per_gas: Some(context.base_fee),
        withdrawals_root: Some(EMPTY_ROOT_HASH),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        ..Header::default()
    }
}

/// A receipt in Ethereum's form; `log` makes each log.
pub fn receipt_envelope<T>(receipt: &Receipt, log: impl FnMut(&crate::executor::StoredLog) -> T) -> ReceiptEnvelope<T> {
    let inner = ReceiptWithBloom {
        receipt: alloy::consensus::Receipt {
            status: receipt.success.into(),
            cumulative_gas_used: receipt.cumulative_gas_used,
            logs: receipt.logs.iter().map(log).collect(),
        },
        logs_bloom: receipt.bloom(),
    };
    match receipt.tx_type {
        1 => ReceiptEnvelope::Eip2930(inner),
        2 => ReceiptEnvelope::Eip1559(inner),
        // Admission refuses every other type.
        _ => ReceiptEnvelope::Legacy(inner),
    }
}

fn receipts_root(receipts: &[Receipt]) -> B256 {
    ordered_trie_root_with_encoder(receipts, |receipt, out| {
        receipt_envelope(receipt, |log| log.to_log()).encode_2718(out);
    })
}
