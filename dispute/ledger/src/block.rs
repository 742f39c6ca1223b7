//! Sealed blocks and the journal records that make them durable.
//!
//! A block is one record: header, transactions, receipts, change set and access list. The record is the commit
//! point; receipts are published after it is durable, and recovery applies the change sets without running the EVM.
//! Whoever wants to check a block executes it again, in parallel with the help of its access list ([`crate::verify`]).
//!
//! Three header fields are worth knowing. `stateRoot` is the root of the state *before* the block (after its parent),
//! because roots are computed off the way to the receipt. `mixHash` (`PREVRANDAO`) is the hash of the parent's hash,
//! so it is deterministic and no source of randomness. `blockAccessListHash` (EIP-7928) is the hash of the access
//! list's RLP, which is also what the record keeps.

use alloy::consensus::{EMPTY_OMMER_ROOT_HASH, Header, ReceiptEnvelope, ReceiptWithBloom};
use alloy::eips::eip2718::Encodable2718;
use alloy::eips::eip7685::EMPTY_REQUESTS_HASH;
use alloy::rlp::{Decodable, Encodable};
use alloy_eip7928::BlockAccessList;
use alloy_primitives::{Address, B64, B256, Bloom, Bytes, U256, b256, keccak256};
use alloy_trie::EMPTY_ROOT_HASH;
use alloy_trie::root::{ordered_trie_root_encoded, ordered_trie_root_with_encoder};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use storage::MAX_RECORD_BYTES;

use crate::evm::BlockContext;
use crate::executor::Receipt;
use crate::genesis::{Deployment, GenesisRecord};
use crate::state::ChangeSet;
use crate::transaction::Recovered;

/// What stands in `extraData` of every header.
pub const EXTRA_DATA: &[u8] = b"payhub";

/// The access-list hash of a block without transactions: that of an empty list.
pub const EMPTY_ACCESS_LIST_HASH: B256 = b256!("0x1dcc4de8dec75d7aab85b567b6ccd41ad312451b948a7413f0a142fd40d49347");

/// Why a journal record cannot be understood. The journal's checksums hold, so it was written by other software.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}: the data directory was written by another version of this software; open it with that version, or start a new chain in another directory"
)]
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

/// A block with what is needed to recover from it and to check it. [`encode_block`] writes it.
#[derive(Debug, Clone, Deserialize)]
pub struct BlockRecord {
    header: Bytes,
    transactions: Vec<(Address, Bytes)>,
    /// Receipts in order.
    pub receipts: Vec<Receipt>,
    /// The net effect on the state.
    pub changes: ChangeSet,
    /// Development mode: seconds the chain's clock was moved against the wall clock.
    pub clock_offset_s: i64,
    /// RLP of the access list (EIP-7928). Absent where it would not have fitted into the record.
    pub access_list: Option<Bytes>,
}

/// The same, borrowed, for writing. Field by field it must be what [`BlockRecord`] reads.
#[derive(Serialize)]
struct BlockRecordRef<'a> {
    header: Bytes,
    transactions: Vec<(Address, &'a Bytes)>,
    receipts: &'a [Receipt],
    changes: &'a ChangeSet,
    clock_offset_s: i64,
    access_list: Option<&'a Bytes>,
}

/// What the beginning of a block's record tells, read without receipts and changes.
#[derive(Debug, Clone)]
pub struct BlockIndex {
    /// The header.
    pub header: Header,
    /// Its hash.
    pub hash: B256,
    /// The hashes of the transactions in order.
    pub transactions: Vec<B256>,
}

/// What is read of a record whose effect is known already.
#[derive(Debug)]
pub enum Outline {
    /// The first entry.
    Genesis {
        /// Where the contracts are, what the configuration asked for, and the header.
        deployment: Deployment,
        /// See [`GenesisRecord::inputs`].
        inputs: B256,
        /// Block 0.
        index: BlockIndex,
    },
    /// A block.
    Block(BlockIndex),
    /// Another entry.
    Other,
}

// The first byte of an entry: kind and version in one. Version 1 knew no access lists.
const GENESIS_V2: u8 = 0x02;
const BLOCK_V2: u8 = 0x12;
const CHANGES_V1: u8 = 0x21;
const REVERT_V1: u8 = 0x31;
const RETIRED: [u8; 2] = [0x01, 0x11];

impl Record {
    /// The bytes of a genesis entry.
    pub fn encode_genesis(genesis: &GenesisRecord) -> Vec<u8> {
        tagged(GENESIS_V2, genesis)
    }

    /// The bytes of an entry for a change by hand.
    pub fn encode_changes(changes: &ChangeSet) -> Vec<u8> {
        tagged(CHANGES_V1, changes)
    }

    /// The bytes of an entry that makes every entry after number `to` void.
    pub fn encode_revert(to: u64) -> Vec<u8> {
        tagged(REVERT_V1, &to)
    }

    /// Reads an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (tag, body) = split(bytes)?;
        match tag {
            GENESIS_V2 => postcard::from_bytes(body).map(|g| Self::Genesis(Box::new(g))),
            BLOCK_V2 => postcard::from_bytes(body).map(|b| Self::Block(Box::new(b))),
            CHANGES_V1 => postcard::from_bytes(body).map(Self::Changes),
            REVERT_V1 => postcard::from_bytes(body).map(|to| Self::Revert { to }),
            unknown => return Err(unknown_kind(unknown)),
        }
        .map_err(|e| undecodable(tag, &e))
    }

    /// Reads of an entry what is wanted when a checkpoint holds its effect on the state.
    pub fn outline(bytes: &[u8]) -> Result<Outline, RecordError> {
        let (tag, body) = split(bytes)?;
        match tag {
            GENESIS_V2 => {
                let ((deployment, inputs, header), _) =
                    postcard::take_from_bytes::<(Deployment, B256, Bytes)>(body).map_err(|e| undecodable(tag, &e))?;
                Ok(Outline::Genesis { deployment, inputs, index: BlockIndex::new(&header, &[])? })
            }
            BLOCK_V2 => {
                let ((header, transactions), _) = postcard::take_from_bytes::<(Bytes, Vec<(Address, Bytes)>)>(body)
                    .map_err(|e| undecodable(tag, &e))?;
                Ok(Outline::Block(BlockIndex::new(&header, &transactions)?))
            }
            CHANGES_V1 | REVERT_V1 => Ok(Outline::Other),
            unknown => Err(unknown_kind(unknown)),
        }
    }

    /// Whether an entry is a block; decodes nothing.
    pub fn is_block(bytes: &[u8]) -> Result<bool, RecordError> {
        match split(bytes)?.0 {
            BLOCK_V2 => Ok(true),
            GENESIS_V2 | CHANGES_V1 | REVERT_V1 => Ok(false),
            unknown => Err(unknown_kind(unknown)),
        }
    }

    /// If the entry is a revert, the last entry that still counts; decodes nothing else.
    pub fn revert_target(bytes: &[u8]) -> Option<u64> {
        let (tag, body) = bytes.split_first()?;
        if *tag == REVERT_V1 { postcard::from_bytes(body).ok() } else { None }
    }
}

fn tagged(tag: u8, body: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(body, vec![tag]).expect("plain data of known length encodes into memory")
}

fn split(bytes: &[u8]) -> Result<(u8, &[u8]), RecordError> {
    bytes.split_first().map(|(tag, body)| (*tag, body)).ok_or_else(|| RecordError::new("an empty record"))
}

fn undecodable(tag: u8, error: &postcard::Error) -> RecordError {
    RecordError::new(format_args!("a record of kind {tag:#04x} does not decode ({error})"))
}

fn unknown_kind(tag: u8) -> RecordError {
    if RETIRED.contains(&tag) {
        return RecordError::new("records of format 1, this program reads format 2");
    }
    RecordError::new(format_args!("a record of unknown kind {tag:#04x}"))
}

/// The bytes of a block's entry. The access list is left out where the record would grow too large with it: the
/// block can then still be checked by executing it, though not with the help of its list.
pub fn encode_block(block: &Block, changes: &ChangeSet, access_list: Option<&Bytes>, clock_offset_s: i64) -> Vec<u8> {
    let record = BlockRecordRef {
        header: encode_header(&block.header),
        transactions: block.transactions.iter().map(|tx| (tx.sender, &tx.raw)).collect(),
        receipts: &block.receipts,
        changes,
        clock_offset_s,
        access_list,
    };
    let bytes = tagged(BLOCK_V2, &record);
    if bytes.len() <= MAX_RECORD_BYTES || access_list.is_none() {
        return bytes;
    }
    tagged(BLOCK_V2, &BlockRecordRef { access_list: None, ..record })
}

impl BlockRecord {
    /// The header.
    pub fn header(&self) -> Result<Header, RecordError> {
        decode_header(&self.header)
    }

    /// The transactions in order, with the senders that were recovered when they were admitted.
    pub fn transactions(&self) -> &[(Address, Bytes)] {
        &self.transactions
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

impl BlockIndex {
    fn new(header: &[u8], transactions: &[(Address, Bytes)]) -> Result<Self, RecordError> {
        let header = decode_header(header)?;
        let transactions = transactions.iter().map(|(_, raw)| keccak256(raw)).collect();
        Ok(Self { hash: header.hash_slow(), header, transactions })
    }
}

impl From<&Block> for BlockIndex {
    fn from(block: &Block) -> Self {
        let transactions = block.transactions.iter().map(|tx| tx.hash).collect();
        Self { header: block.header.clone(), hash: block.hash, transactions }
    }
}

/// The RLP of an access list, which its hash is the hash of.
pub fn encode_access_list(list: &BlockAccessList) -> Bytes {
    alloy::rlp::encode(list).into()
}

/// An access list from its RLP.
pub fn decode_access_list(bytes: &[u8]) -> Result<BlockAccessList, RecordError> {
    BlockAccessList::decode(&mut &bytes[..])
        .map_err(|e| RecordError::new(format_args!("an access list does not decode ({e})")))
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

/// Seals an executed block. `state_root` is the root of the state before it, `access_list_hash` that of the RLP of
/// its access list.
pub fn seal(
    context: &BlockContext,
    parent: B256,
    state_root: B256,
    access_list_hash: Option<B256>,
    transactions: Vec<Arc<Recovered>>,
    receipts: Vec<Receipt>,
) -> Block {
    let raw = transactions.iter().map(|tx| tx.raw.as_ref()).collect::<Vec<_>>();
    let header = Header {
        parent_hash: parent,
        state_root,
        block_access_list_hash: access_list_hash,
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
        // There are no requests here, but the RLP of a header needs every field before the access list's.
        requests_hash: Some(EMPTY_REQUESTS_HASH),
        block_access_list_hash: Some(EMPTY_ACCESS_LIST_HASH),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::AccountChange;

    fn block() -> Block {
        let context = BlockContext {
            chain_id: 1,
            number: 7,
            timestamp: 8,
            fee_recipient: Address::repeat_byte(1),
            gas_limit: 9,
            base_fee: 10,
            prev_randao: B256::repeat_byte(2),
        };
        let receipt = Receipt {
            tx_type: 2,
            success: true,
            gas_used: 21_000,
            cumulative_gas_used: 21_000,
            contract_address: None,
            logs: Vec::new(),
        };
        let list = Some(keccak256(b"list"));
        seal(&context, B256::repeat_byte(3), B256::repeat_byte(4), list, Vec::new(), vec![receipt])
    }

    #[test]
    fn a_block_is_read_as_it_was_written_wholly_or_in_outline() {
        let (block, list) = (block(), Bytes::from_static(b"list"));
        let mut changes = ChangeSet::default();
        changes.accounts.insert(Address::repeat_byte(5), AccountChange { storage_reset: true, ..Default::default() });
        let bytes = encode_block(&block, &changes, Some(&list), -3);
        assert!(Record::is_block(&bytes).expect("a known kind"));
        let Ok(Record::Block(record)) = Record::decode(&bytes) else { panic!("no block") };
        assert_eq!((&record.changes, record.clock_offset_s, &record.access_list), (&changes, -3, &Some(list)));
        let read = record.block().expect("a block");
        assert_eq!((read.hash, &read.header, &read.receipts), (block.hash, &block.header, &block.receipts));
        let Ok(Outline::Block(index)) = Record::outline(&bytes) else { panic!("no block") };
        assert_eq!((index.hash, index.header, index.transactions), (block.hash, block.header, Vec::new()));
    }

    #[test]
    fn an_access_list_that_does_not_fit_is_left_out_and_its_hash_stays() {
        let block = block();
        let spare = MAX_RECORD_BYTES - encode_block(&block, &ChangeSet::default(), None, 0).len();
        // The bytes that tell its presence and length take five.
        for (len, fits) in [(spare - 5, true), (spare - 3, false), (MAX_RECORD_BYTES, false)] {
            let list = Bytes::from(vec![1; len]);
            let bytes = encode_block(&block, &ChangeSet::default(), Some(&list), 0);
            assert!(bytes.len() <= MAX_RECORD_BYTES);
            let Ok(Record::Block(record)) = Record::decode(&bytes) else { panic!("no block") };
            assert_eq!(record.access_list.is_some(), fits, "{len}");
            assert_eq!(record.header().expect("a header").block_access_list_hash, block.header.block_access_list_hash);
        }
    }

    #[test]
    fn an_empty_access_list_has_the_hash_of_empty_blocks() {
        assert_eq!(keccak256(encode_access_list(&Vec::new())), EMPTY_ACCESS_LIST_HASH);
    }

    #[test]
    fn records_of_other_versions_are_refused_with_the_reason() {
        for (bytes, reason) in [
            (&[0x01, 0][..], "format 1, this program reads format 2"),
            (&[0x11, 0], "format 1, this program reads format 2"),
            (&[0x77], "unknown kind 0x77"),
            (&[], "an empty record"),
            (&[BLOCK_V2, 1], "does not decode"),
        ] {
            let refused = Record::decode(bytes).map(|_| ()).expect_err(reason).to_string();
            assert!(refused.contains(reason) && refused.contains("another version"), "{refused}");
        }
    }
}
