//! The answers of the `eth_` methods.

use std::sync::Arc;

use alloy::consensus::Transaction as _;
use alloy::consensus::transaction::{Recovered as AlloyRecovered, TransactionInfo};
use alloy::eips::eip2930::{AccessList, AccessListItem, AccessListResult};
use alloy::eips::{BlockId, BlockNumberOrTag};
use alloy::rpc::types::{
    Block as RpcBlock, BlockTransactions, FeeHistory, Filter, FilterBlockOption, Header as RpcHeader, Log as RpcLog,
    Transaction as RpcTransaction, TransactionReceipt, TransactionRequest,
};
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256};
use revm::ExecuteEvm;
use revm::context::TxEnv;
use revm::context_interface::result::{EVMError, ExecutionResult};
use revm::state::EvmState;
use serde_json::Value;

use super::RpcError;
use crate::Ledger;
use crate::block::{Block, receipt_envelope};
use crate::chain::View;
use crate::evm::{BlockContext, Checks, ED25519_PRECOMPILE, evm};
use crate::executor::StoredLog;
use crate::transaction::Recovered;

/// The tip wallets are told to pay. Blocks are not full here, so it only has to be more than nothing.
pub const SUGGESTED_TIP: u128 = 1_000_000;

/// Most blocks one `eth_getLogs` may look at.
const LOG_BLOCKS_MAX: u64 = 50_000;

/// Most logs one `eth_getLogs` may return.
pub const LOGS_MAX: usize = 10_000;

/// Most addresses, and most topics at one position, that a log filter may name (geth's values).
const FILTER_ALTERNATIVES_MAX: usize = 1_000;

/// Rounds in which an access list is looked for: one that is given to the transaction changes what the next run
/// costs, and so perhaps what it does.
const ACCESS_LIST_ROUNDS_MAX: usize = 8;

/// Most blocks one `eth_feeHistory` may look at (the specification's limit).
const FEE_HISTORY_BLOCKS_MAX: u64 = 1_024;

/// The addresses of Ethereum's precompiles, in the fork of this ledger.
const PRECOMPILES: std::ops::RangeInclusive<U256> = U256::ONE..=U256::from_limbs([10, 0, 0, 0]);

/// Most percentiles one `eth_feeHistory` may ask for.
const PERCENTILES_MAX: usize = 100;

/// An estimate is at most this much above the least gas limit that works, in thousandths (geth's tolerance).
const ESTIMATE_TOLERANCE_PERMILLE: u64 = 15;

type Result<T> = std::result::Result<T, RpcError>;

/// How a block is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Transactions as hashes.
    Hashes,
    /// Transactions in full.
    Full,
}

impl From<Option<bool>> for Detail {
    fn from(full: Option<bool>) -> Self {
        if full == Some(true) { Self::Full } else { Self::Hashes }
    }
}

/// A count parameter, which some tools send as a number and some as a hexadecimal string.
pub fn count(number: U256) -> Result<u64> {
    u64::try_from(number).map_err(|_| RpcError::Parameter(format!("{number} is too large")))
}

pub fn gas_price(node: &Ledger) -> u128 {
    u128::from(node.shared().limits.base_fee) + SUGGESTED_TIP
}

/// The number a tag means. A block is final when it is durable, so the head is the answer to all tags but the first.
fn number_of_tag(view: &View, tag: BlockNumberOrTag) -> u64 {
    match tag {
        BlockNumberOrTag::Number(number) => number,
        BlockNumberOrTag::Earliest => 0,
        BlockNumberOrTag::Latest | BlockNumberOrTag::Pending | BlockNumberOrTag::Safe | BlockNumberOrTag::Finalized => {
            view.head().header.number
        }
    }
}

pub fn find_by_tag(node: &Ledger, tag: BlockNumberOrTag) -> Result<Option<Arc<Block>>> {
    let number = number_of_tag(&node.shared().view(), tag);
    Ok(node.shared().block(number)?)
}

pub fn find_by_hash(node: &Ledger, hash: B256) -> Result<Option<Arc<Block>>> {
    let number = node.shared().view().number_of(&hash);
    let Some(number) = number else { return Ok(None) };
    // A revert in development mode may have put another block there in between.
    Ok(node.shared().block(number)?.filter(|block| block.hash == hash))
}

fn find(node: &Ledger, id: BlockId) -> Result<Option<Arc<Block>>> {
    match id {
        BlockId::Hash(hash) => find_by_hash(node, hash.block_hash),
        BlockId::Number(tag) => find_by_tag(node, tag),
    }
}

pub fn block_by_tag(node: &Ledger, tag: BlockNumberOrTag, detail: Detail) -> Result<Option<RpcBlock>> {
    Ok(find_by_tag(node, tag)?.map(|block| rpc_block(&block, detail)))
}

pub fn block_by_hash(node: &Ledger, hash: B256, detail: Detail) -> Result<Option<RpcBlock>> {
    Ok(find_by_hash(node, hash)?.map(|block| rpc_block(&block, detail)))
}

fn rpc_block(block: &Block, detail: Detail) -> RpcBlock {
    let size: usize = block.transactions.iter().map(|tx| tx.raw.len()).sum();
    let size = size + crate::block::encode_header(&block.header).len();
    let header = RpcHeader { size: Some(U256::from(size)), ..rpc_header(block) };
    let transactions = match detail {
        Detail::Hashes => BlockTransactions::Hashes(block.transactions.iter().map(|tx| tx.hash).collect()),
        Detail::Full => BlockTransactions::Full((0..block.transactions.len()).map(|i| included(block, i)).collect()),
    };
    RpcBlock { header, uncles: Vec::new(), transactions, withdrawals: Some(Default::default()) }
}

/// A header as subscribers see it.
pub fn rpc_header(block: &Block) -> RpcHeader {
    RpcHeader { hash: block.hash, inner: block.header.clone(), total_difficulty: Some(U256::ZERO), size: None }
}

fn included(block: &Block, i: usize) -> RpcTransaction {
    let tx = &block.transactions[i];
    let info = TransactionInfo {
        hash: Some(tx.hash),
        index: Some(i as u64),
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        base_fee: block.header.base_fee_per_gas,
        block_timestamp: Some(block.header.timestamp),
    };
    rpc_transaction(tx, info)
}

fn rpc_transaction(tx: &Recovered, info: TransactionInfo) -> RpcTransaction {
    RpcTransaction::from_transaction(AlloyRecovered::new_unchecked(tx.tx.clone(), tx.sender), info)
}

pub fn transaction_at(block: Option<Arc<Block>>, index: U64) -> Option<RpcTransaction> {
    let (block, i) = (block?, usize::try_from(index.to::<u64>()).ok()?);
    (i < block.transactions.len()).then(|| included(&block, i))
}

/// The block and position of a transaction that is in a block.
fn locate(node: &Ledger, hash: B256) -> Result<Option<(Arc<Block>, usize)>> {
    let location = node.shared().view().location(&hash);
    let Some((number, i)) = location else { return Ok(None) };
    let block = node.shared().block(number)?;
    Ok(block
        .map(|block| (block, i as usize))
        .filter(|(block, i)| block.transactions.get(*i).is_some_and(|t| t.hash == hash)))
}

pub fn transaction(node: &Ledger, hash: B256) -> Result<Option<RpcTransaction>> {
    if let Some((block, i)) = locate(node, hash)? {
        return Ok(Some(included(&block, i)));
    }
    let waiting = node.shared().pool().get(&hash);
    Ok(waiting.map(|tx| rpc_transaction(&tx, TransactionInfo { hash: Some(hash), ..TransactionInfo::default() })))
}

/// A transaction that waits, if it still does.
pub fn waiting_transaction(node: &Ledger, hash: B256) -> Result<Option<RpcTransaction>> {
    transaction(node, hash).map(|found| found.filter(|tx| tx.block_hash.is_none()))
}

pub fn raw_transaction(node: &Ledger, hash: B256) -> Result<Option<Bytes>> {
    if let Some((block, i)) = locate(node, hash)? {
        return Ok(block.transactions.get(i).map(|tx| tx.raw.clone()));
    }
    Ok(node.shared().pool().get(&hash).map(|tx| tx.raw.clone()))
}

pub fn receipt(node: &Ledger, hash: B256) -> Result<Option<TransactionReceipt>> {
    Ok(locate(node, hash)?.map(|(block, i)| rpc_receipts(&block).swap_remove(i)))
}

pub fn block_receipts(node: &Ledger, id: BlockId) -> Result<Option<Vec<TransactionReceipt>>> {
    Ok(find(node, id)?.map(|block| rpc_receipts(&block)))
}

fn rpc_receipts(block: &Block) -> Vec<TransactionReceipt> {
    let mut log_index = 0u64;
    let both = block.transactions.iter().zip(&block.receipts);
    both.zip(0u64..)
        .map(|((tx, receipt), index)| {
            let inner = receipt_envelope(receipt, |log| {
                let log = rpc_log(block, tx.hash, index, log_index, log);
                log_index += 1;
                log
            });
            TransactionReceipt {
                inner,
                transaction_hash: tx.hash,
                transaction_index: Some(index),
                block_hash: Some(block.hash),
                block_number: Some(block.header.number),
                gas_used: receipt.gas_used,
                effective_gas_price: tx.effective_gas_price(block.header.base_fee_per_gas.unwrap_or(0)),
                blob_gas_used: None,
                blob_gas_price: None,
                from: tx.sender,
                to: tx.tx.to(),
                contract_address: receipt.contract_address,
            }
        })
        .collect()
}

fn rpc_log(block: &Block, transaction: B256, index: u64, log_index: u64, log: &StoredLog) -> RpcLog {
    RpcLog {
        inner: log.to_log(),
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        block_timestamp: Some(block.header.timestamp),
        transaction_hash: Some(transaction),
        transaction_index: Some(index),
        log_index: Some(log_index),
        removed: false,
    }
}

/// Refuses what would make every block expensive to look at.
pub fn check_filter(filter: &Filter) -> Result<()> {
    let most = filter.topics.iter().map(|topics| topics.len()).max().unwrap_or(0).max(filter.address.len());
    if most > FILTER_ALTERNATIVES_MAX {
        let message = format!(
            "the filter names {most} alternatives, at most {FILTER_ALTERNATIVES_MAX} addresses and topics at a position are possible: use several filters"
        );
        return Err(RpcError::Limit(message));
    }
    Ok(())
}

pub fn logs(node: &Ledger, filter: &Filter) -> Result<Vec<RpcLog>> {
    check_filter(filter)?;
    let (from, to) = match filter.block_option {
        FilterBlockOption::AtBlockHash(hash) => {
            let number = node.shared().view().number_of(&hash);
            let number = number.ok_or_else(|| RpcError::NoBlock(hash.to_string()))?;
            (number, number)
        }
        FilterBlockOption::Range { from_block, to_block } => {
            let view = node.shared().view();
            let at = |tag: Option<BlockNumberOrTag>| number_of_tag(&view, tag.unwrap_or_default());
            (at(from_block), at(to_block).min(view.head().header.number))
        }
    };
    if let FilterBlockOption::Range { from_block: Some(from), to_block: Some(to) } = filter.block_option
        && let (Some(from), Some(to)) = (from.as_number(), to.as_number())
        && from > to
    {
        return Err(RpcError::Parameter(format!("the range is empty: fromBlock {from} is above toBlock {to}")));
    }
    if to.saturating_sub(from) >= LOG_BLOCKS_MAX {
        let message = format!("the range {from}..={to} is too wide: ask for at most {LOG_BLOCKS_MAX} blocks at a time");
        return Err(RpcError::Limit(message));
    }
    let mut found = Vec::new();
    for number in from..=to {
        if !node.shared().view().bloom(number).is_some_and(|bloom| filter.matches_bloom(*bloom)) {
            continue;
        }
        let Some(block) = node.shared().block(number)? else { continue };
        collect_logs(&block, filter, &mut found);
        if found.len() > LOGS_MAX {
            let message = format!("blocks {from}..={to} hold more than {LOGS_MAX} such logs: ask for fewer blocks");
            return Err(RpcError::Limit(message));
        }
    }
    Ok(found)
}

pub fn collect_logs(block: &Block, filter: &Filter, found: &mut Vec<RpcLog>) {
    let mut log_index = 0;
    for ((tx, receipt), index) in block.transactions.iter().zip(&block.receipts).zip(0u64..) {
        for log in &receipt.logs {
            if filter.matches_address(log.address) && filter.matches_topics(&log.topics) {
                found.push(rpc_log(block, tx.hash, index, log_index, log));
            }
            log_index += 1;
        }
    }
}

pub fn fee_history(
    node: &Ledger,
    blocks: u64,
    newest: BlockNumberOrTag,
    percentiles: Option<Vec<f64>>,
) -> Result<FeeHistory> {
    let percentiles = percentiles.unwrap_or_default();
    let rising = percentiles.windows(2).all(|pair| pair[0] <= pair[1]);
    if percentiles.len() > PERCENTILES_MAX || !rising || percentiles.iter().any(|p| !(0.0..=100.0).contains(p)) {
        let message = format!("reward percentiles must rise from 0 to 100 and be at most {PERCENTILES_MAX}");
        return Err(RpcError::Parameter(message));
    }
    let (newest, head) = {
        let view = node.shared().view();
        (number_of_tag(&view, newest), view.head().header.number)
    };
    if newest > head {
        return Err(RpcError::NoBlock(newest.to_string()));
    }
    let blocks = blocks.min(FEE_HISTORY_BLOCKS_MAX).min(newest + 1);
    let oldest = newest + 1 - blocks;
    let mut history = FeeHistory { oldest_block: oldest, ..FeeHistory::default() };
    let mut rewards = Vec::new();
    for number in oldest..=newest {
        let block = node.shared().block(number)?.ok_or_else(|| RpcError::NoBlock(number.to_string()))?;
        history.base_fee_per_gas.push(u128::from(block.header.base_fee_per_gas.unwrap_or(0)));
        history.gas_used_ratio.push(block.header.gas_used as f64 / block.header.gas_limit.max(1) as f64);
        history.base_fee_per_blob_gas.push(1);
        history.blob_gas_used_ratio.push(0.0);
        rewards.push(tips_at(&block, &percentiles));
    }
    // The fee of the block after is known: it is always the same.
    history.base_fee_per_gas.push(u128::from(node.shared().limits.base_fee));
    history.base_fee_per_blob_gas.push(1);
    history.reward = (!percentiles.is_empty()).then_some(rewards);
    Ok(history)
}

/// The tips at given percentiles of the gas of a block.
fn tips_at(block: &Block, percentiles: &[f64]) -> Vec<u128> {
    let base_fee = block.header.base_fee_per_gas.unwrap_or(0);
    let both = block.transactions.iter().zip(&block.receipts);
    let mut tips = both.map(|(tx, receipt)| (tx.tip(base_fee), receipt.gas_used)).collect::<Vec<_>>();
    tips.sort_unstable();
    let at = |percentile: &f64| {
        let wanted = (block.header.gas_used as f64 * percentile / 100.0) as u64;
        let mut sum = 0u64;
        let found = tips.iter().find(|(_, gas)| {
            sum += gas;
            sum >= wanted
        });
        found.or(tips.last()).map_or(0, |(tip, _)| *tip)
    };
    percentiles.iter().map(at).collect()
}

/// Reads from the state, which is kept at the head only.
pub fn at_head<T>(node: &Ledger, at: Option<BlockId>, read: impl FnOnce(&View) -> T) -> Result<T> {
    let view = node.shared().view();
    check_head(&view, at)?;
    Ok(read(&view))
}

fn check_head(view: &View, at: Option<BlockId>) -> Result<()> {
    let head = view.head().header.number;
    let asked = match at.unwrap_or_default() {
        BlockId::Number(tag) => number_of_tag(view, tag),
        BlockId::Hash(hash) => {
            let number = view.number_of(&hash.block_hash);
            number.ok_or_else(|| RpcError::NoBlock(hash.block_hash.to_string()))?
        }
    };
    match asked {
        _ if asked == head => Ok(()),
        _ if asked > head => Err(RpcError::NoBlock(asked.to_string())),
        _ => Err(RpcError::OldState { asked, head }),
    }
}

pub fn transaction_count(node: &Ledger, address: Address, at: Option<BlockId>) -> Result<u64> {
    let view = node.shared().view();
    check_head(&view, at)?;
    let nonce = view.state.basic(&address).nonce;
    if at == Some(BlockId::pending()) {
        return Ok(node.shared().pool().next_nonce(&address, nonce));
    }
    Ok(nonce)
}

pub fn refuse_overrides(parameter: Option<Value>) -> Result<()> {
    match parameter {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(map)) if map.is_empty() => Ok(()),
        Some(_) => Err(RpcError::Parameter("state and block overrides are not supported".to_owned())),
    }
}

/// How a call ended.
enum Ended {
    Success {
        output: Bytes,
        gas_used: u64,
        refunded: u64,
    },
    Reverted {
        data: Bytes,
        gas_used: u64,
    },
    /// Anything else, out of gas for one.
    Failed {
        why: String,
        gas_used: u64,
    },
}

/// One call with one gas limit.
fn run(node: &Ledger, request: &Request, gas_limit: u64) -> Result<Ended> {
    execute(node, request, gas_limit).map(|(ended, _)| ended)
}

/// The same, with everything it read and wrote. The view is locked for as long as it runs, so blocks wait for it: the
/// gas limit bounds how long.
fn execute(node: &Ledger, request: &Request, gas_limit: u64) -> Result<(Ended, EvmState)> {
    let view = node.shared().view();
    check_head(&view, request.at)?;
    let ahead = u64::from(request.at == Some(BlockId::pending()));
    let context = node.shared().call_context(&view, ahead);
    let context = BlockContext { base_fee: if request.tx.gas_price == 0 { 0 } else { context.base_fee }, ..context };
    let nonce = view.state.basic(&request.tx.caller).nonce;
    let mut evm = evm(&context, &view.state, Checks::Call);
    let done = evm.transact(TxEnv { gas_limit, nonce, ..request.tx.clone() });
    match done {
        Ok(done) => Ok((ended(done.result), done.state)),
        Err(EVMError::Transaction(invalid)) => {
            Ok((Ended::Failed { why: invalid.to_string(), gas_used: 0 }, EvmState::default()))
        }
        Err(other) => Err(RpcError::Failed(other.to_string())),
    }
}

fn ended(result: ExecutionResult) -> Ended {
    match result {
        ExecutionResult::Success { gas, output, .. } => {
            Ended::Success { output: output.into_data(), gas_used: gas.tx_gas_used(), refunded: gas.final_refunded() }
        }
        ExecutionResult::Revert { gas, output, .. } => Ended::Reverted { data: output, gas_used: gas.tx_gas_used() },
        ExecutionResult::Halt { reason, gas, .. } => {
            Ended::Failed { why: format!("execution failed: {reason:?}"), gas_used: gas.tx_gas_used() }
        }
    }
}

/// A call as revm takes it, its gas limit apart.
struct Request {
    tx: TxEnv,
    at: Option<BlockId>,
    gas_limit: u64,
}

impl Request {
    fn new(node: &Ledger, request: TransactionRequest, at: Option<BlockId>) -> Result<Self> {
        let kind = request.transaction_type.unwrap_or(0);
        if kind > 2 || request.authorization_list.is_some() || request.blob_versioned_hashes.is_some() {
            return Err(RpcError::Parameter("blob and set-code transactions are not supported".to_owned()));
        }
        if request.gas_price.is_some()
            && (request.max_fee_per_gas.is_some() || request.max_priority_fee_per_gas.is_some())
        {
            return Err(RpcError::Parameter("gasPrice and maxFeePerGas exclude each other".to_owned()));
        }
        let ceiling = node.shared().limits.block_gas;
        let gas_price = request.gas_price.or(request.max_fee_per_gas).unwrap_or(0);
        let tip = request.max_priority_fee_per_gas.filter(|_| gas_price > 0);
        let access_list = request.access_list.clone().unwrap_or_default();
        let tx_type = match (&tip, access_list.is_empty()) {
            (Some(_), _) => 2,
            (None, false) => 1,
            (None, true) => 0,
        };
        let tx = TxEnv {
            tx_type,
            caller: request.from.unwrap_or_default(),
            gas_limit: 0,
            gas_price,
            kind: request.to.unwrap_or(TxKind::Create),
            value: request.value.unwrap_or_default(),
            data: request.input.input().cloned().unwrap_or_default(),
            nonce: 0,
            chain_id: Some(node.deployment().chain_id),
            access_list,
            gas_priority_fee: tip,
            ..TxEnv::default()
        };
        Ok(Self { tx, at, gas_limit: request.gas.unwrap_or(ceiling).min(ceiling) })
    }
}

pub fn call(node: &Ledger, request: TransactionRequest, at: Option<BlockId>) -> Result<Bytes> {
    let request = Request::new(node, request, at)?;
    let affordable = affordable_gas(node, &request);
    match run(node, &request, request.gas_limit.min(affordable))? {
        Ended::Success { output, .. } => Ok(output),
        Ended::Reverted { data, .. } => Err(RpcError::Reverted(data)),
        Ended::Failed { why, .. } => Err(RpcError::Failed(why)),
    }
}

/// The gas the sender can pay at the price he names.
fn affordable_gas(node: &Ledger, request: &Request) -> u64 {
    if request.tx.gas_price == 0 {
        return u64::MAX;
    }
    let balance = node.shared().view().state.basic(&request.tx.caller).balance;
    let left = balance.saturating_sub(request.tx.value);
    u64::try_from(left / U256::from(request.tx.gas_price)).unwrap_or(u64::MAX)
}

/// The least gas limit with which the transaction succeeds, found by bisection and rounded up a little.
pub fn estimate_gas(node: &Ledger, request: TransactionRequest, at: Option<BlockId>) -> Result<u64> {
    // Estimates are for transactions to come.
    let request = Request::new(node, request, at.or(Some(BlockId::pending())))?;
    let mut high = request.gas_limit.min(affordable_gas(node, &request));
    let (gas_used, refunded) = match run(node, &request, high)? {
        Ended::Success { gas_used, refunded, .. } => (gas_used, refunded),
        Ended::Reverted { data, .. } => return Err(RpcError::Reverted(data)),
        Ended::Failed { why, .. } => return Err(RpcError::Failed(format!("{why} (with a gas limit of {high})"))),
    };
    let works = |gas_limit| Ok::<_, RpcError>(matches!(run(node, &request, gas_limit)?, Ended::Success { .. }));
    // Whatever succeeded needs at least what it used.
    let mut low = gas_used.saturating_sub(1);
    // The usual answer: what it used before refunds, and the 63/64 rule of calls on top.
    let guess = (gas_used.saturating_add(refunded).saturating_add(2_300)).saturating_mul(64) / 63;
    if gas_used < high && works(gas_used)? {
        return Ok(gas_used);
    }
    low = low.max(gas_used);
    if guess < high {
        if works(guess)? {
            high = guess;
        } else {
            low = low.max(guess);
        }
    }
    while high > low + 1 && (high - low) * 1_000 > high * ESTIMATE_TOLERANCE_PERMILLE {
        let middle = low + (high - low) / 2;
        if works(middle)? {
            high = middle;
        } else {
            low = middle;
        }
    }
    Ok(high)
}

/// The accounts and slots a call touches, besides those that every transaction has for free; what a call touched
/// before it was reverted counts too.
pub fn create_access_list(node: &Ledger, request: TransactionRequest, at: Option<BlockId>) -> Result<AccessListResult> {
    let mut request = Request::new(node, request, at.or(Some(BlockId::pending())))?;
    let gas_limit = request.gas_limit.min(affordable_gas(node, &request));
    for _ in 0..ACCESS_LIST_ROUNDS_MAX {
        let (ended, touched) = execute(node, &request, gas_limit)?;
        let (gas_used, error) = match ended {
            Ended::Success { gas_used, .. } => (gas_used, None),
            Ended::Reverted { data, gas_used } => (gas_used, Some(RpcError::Reverted(data).to_string())),
            Ended::Failed { why, gas_used } if !touched.is_empty() => (gas_used, Some(why)),
            Ended::Failed { why, .. } => return Err(RpcError::Failed(why)),
        };
        let access_list = access_list(node, &request, &touched);
        if access_list == request.tx.access_list {
            return Ok(AccessListResult { access_list, gas_used: U256::from(gas_used), error });
        }
        request.tx.tx_type = request.tx.tx_type.max(1);
        request.tx.access_list = access_list;
    }
    let message = format!("what the call touches was not the same in any two of {ACCESS_LIST_ROUNDS_MAX} runs");
    Err(RpcError::Failed(message))
}

fn access_list(node: &Ledger, request: &Request, touched: &EvmState) -> AccessList {
    let created = match request.tx.kind {
        TxKind::Call(to) => to,
        TxKind::Create => request.tx.caller.create(node.shared().view().state.basic(&request.tx.caller).nonce),
    };
    let free = [request.tx.caller, created, node.shared().fee_recipient, ED25519_PRECOMPILE];
    let is_free =
        |address: &Address| free.contains(address) || PRECOMPILES.contains(&U256::from_be_slice(&address[..]));
    let mut items = Vec::new();
    for (address, account) in touched {
        let mut storage_keys = account.storage.keys().map(|slot| B256::from(*slot)).collect::<Vec<_>>();
        storage_keys.sort_unstable();
        if !storage_keys.is_empty() || !is_free(address) {
            items.push(AccessListItem { address: *address, storage_keys });
        }
    }
    items.sort_unstable_by_key(|item| item.address);
    AccessList(items)
}
