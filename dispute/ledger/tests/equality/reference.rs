//! Blocks through the Ethereum reference implementation: the executable specification in Python, an EVM that shares
//! nothing with revm. State root, receipts root, gas, logs and the list of rejected transactions must be ours.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use alloy::consensus::{Receipt as ConsensusReceipt, ReceiptEnvelope, TxEnvelope};
use alloy::eips::eip2718::Encodable2718 as _;
use alloy::rlp;
use alloy_primitives::{B256, Bloom, Bytes, Log, U256, hex, keccak256};
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder, Nibbles};
use payhub_ledger::executor::{BlockOutput, Outcome, Receipt, SkipReason};
use payhub_ledger::state::State;
use payhub_ledger::trie::StateTrie;
use revm::context_interface::result::InvalidTransaction;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::check::{Watchdog, execute, sequential};
use crate::world::{Audience, Block, World};

/// Consecutive blocks of one world.
const BLOCKS_PER_WORLD: u64 = 5;

/// What the tool says about a block.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    state_root: B256,
    receipts_root: B256,
    logs_hash: B256,
    logs_bloom: Bloom,
    gas_used: U256,
    rejected: Vec<Rejected>,
}

#[derive(Debug, Clone, Deserialize)]
struct Rejected {
    index: usize,
    error: String,
}

/// A running tool that answers block after block.
pub struct Tool {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Tool {
    /// Starts the tool out of the virtual environment that `tests/run` makes.
    pub fn start() -> Self {
        let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests");
        let python = tests.join(".venv/bin/python");
        assert!(
            python.exists() && tests.join(".venv/bin/ethereum-spec-evm").exists(),
            "ethereum-execution is not in tests/.venv: run tests/run once, which installs it"
        );
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/equality/t8n.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the virtual environment has a python that starts");
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, input, output }
    }

    /// What the reference implementation makes of a block.
    fn execute(&mut self, state: &State, block_hashes: &BTreeMap<u64, B256>, block: &Block) -> Verdict {
        let request = json!({
            "chain_id": block.context.chain_id,
            "alloc": alloc(state),
            "env": environment(block_hashes, block),
            "txs": transactions(block),
        });
        writeln!(self.input, "{request}").expect("the tool reads until its input ends");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the tool writes text");
        let answer: Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("the tool gives no result ({e}); what it says is above: {line:?}\n{block:#?}"));
        serde_json::from_value(answer["result"].clone()).unwrap_or_else(|e| panic!("unknown result ({e}): {line}"))
    }

    /// Compares a block of ours with the tool's and returns ours.
    pub fn compare(
        &mut self,
        state: &State,
        block_hashes: &BTreeMap<u64, B256>,
        block: &Block,
    ) -> Result<BlockOutput, String> {
        let ours = execute(&mut sequential(), block, state)?;
        let theirs = self.execute(state, block_hashes, block);
        // The rejected ones first: they explain every other difference.
        let skipped = ours.outcomes.iter().enumerate().filter_map(|(i, outcome)| match outcome {
            Outcome::Executed => None,
            Outcome::Skipped(reason) => Some((i, reason)),
        });
        let rejected: BTreeMap<usize, &str> = theirs.rejected.iter().map(|r| (r.index, r.error.as_str())).collect();
        let skipped: BTreeMap<usize, &SkipReason> = skipped.collect();
        if !skipped.keys().eq(rejected.keys()) {
            return Err(format!("we skip {skipped:?}\nthe reference rejects {rejected:?}"));
        }
        for (index, reason) in &skipped {
            if !same_reason(reason, rejected[index]) {
                return Err(format!(
                    "transaction {index}: we skip it as {reason:?}, the reference: {}",
                    rejected[index]
                ));
            }
        }
        let gas_used = ours.receipts.last().map_or(0, |receipt| receipt.cumulative_gas_used);
        if theirs.gas_used != U256::from(gas_used) {
            return Err(format!("we use {gas_used} gas, the reference {}", theirs.gas_used));
        }
        let logs: Vec<Log> = ours.receipts.iter().flat_map(|r| r.logs.iter().map(|log| log.to_log())).collect();
        if theirs.logs_hash != keccak256(rlp::encode(&logs)) {
            return Err(format!("the logs differ, ours are {logs:?}"));
        }
        let bloom = ours.receipts.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | receipt.bloom());
        if theirs.logs_bloom != bloom {
            return Err("the bloom filters differ".to_owned());
        }
        let executed = ours.outcomes.iter().enumerate().filter(|(_, outcome)| **outcome == Outcome::Executed);
        if theirs.receipts_root != receipts_root(executed.map(|(i, _)| i).zip(&ours.receipts)) {
            return Err(format!("the receipts roots differ, ours are of {:?}", ours.receipts));
        }
        let mut state = state.clone();
        state.apply(&ours.changes);
        let root = StateTrie::build(&state).root();
        if theirs.state_root != root {
            return Err(format!("the state root is {root}, the reference's {}", theirs.state_root));
        }
        Ok(ours)
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs worlds through the reference implementation. Returns how many transactions were executed and rejected.
pub fn run(first_seed: u64, blocks: u64) -> (u64, u64) {
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let worlds = blocks.div_ceil(BLOCKS_PER_WORLD);
    let counts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers)
            .map(|worker| {
                scope.spawn(move || {
                    let mut tool = Tool::start();
                    let seeds = (0..worlds).filter(|i| i % workers == worker).map(|i| first_seed.wrapping_add(i));
                    seeds.map(|seed| world(&mut tool, seed)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join()).collect::<Vec<_>>()
    });
    counts.into_iter().fold((0, 0), |sum, count| match count {
        Ok(count) => (sum.0 + count.0, sum.1 + count.1),
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn world(tool: &mut Tool, seed: u64) -> (u64, u64) {
    let mut world = World::new(seed, Audience::Reference);
    let (mut executed, mut rejected) = (0, 0);
    for height in 1..=BLOCKS_PER_WORLD {
        let block = world.next_block();
        let watchdog = Watchdog::new(format!("the reference implementation hangs in world {seed}, block {height}"));
        let output = tool.compare(&world.state, &world.block_hashes, &block).unwrap_or_else(|difference| {
            panic!(
                "world {seed}, block {height}: {difference}\n{block:#?}\n\
                 reproduce with PAYHUB_SEED={seed} PAYHUB_T8N_BLOCKS={BLOCKS_PER_WORLD}"
            )
        });
        watchdog.done();
        executed += output.receipts.len() as u64;
        rejected += (output.outcomes.len() - output.receipts.len()) as u64;
        world.advance(&block, &output.changes);
    }
    (executed, rejected)
}

/// Whether a rejection is for the same reason. Both check in their own order, so only what cannot be two things at
/// once is told apart.
fn same_reason(ours: &SkipReason, theirs: &str) -> bool {
    let theirs_is = |what: &str| theirs.contains(what);
    match ours {
        SkipReason::NonceAhead { .. } => theirs_is("nonce too high"),
        SkipReason::Invalid(InvalidTransaction::NonceTooLow { .. }) => theirs_is("nonce too low"),
        SkipReason::Invalid(
            InvalidTransaction::LackOfFundForMaxFee { .. } | InvalidTransaction::OverflowPaymentInTransaction,
        ) => theirs_is("InsufficientBalance"),
        SkipReason::Invalid(InvalidTransaction::RejectCallerWithCode) => true,
        SkipReason::Invalid(_) => {
            !theirs_is("nonce too high") && !theirs_is("nonce too low") && !theirs_is("InsufficientBalance")
        }
    }
}

fn alloc(state: &State) -> Value {
    let accounts = state.accounts().map(|(address, account)| {
        let storage = account.slots.iter().map(|(index, value)| (word(*index), json!(word(*value))));
        let account = json!({
            "balance": format!("{:#x}", account.basic.balance),
            "nonce": format!("{:#x}", account.basic.nonce),
            "code": state.code(address),
            "storage": storage.collect::<serde_json::Map<_, _>>(),
        });
        (hex::encode_prefixed(address), account)
    });
    Value::Object(accounts.collect())
}

fn word(word: U256) -> String {
    hex::encode_prefixed(word.to_be_bytes::<32>())
}

fn environment(block_hashes: &BTreeMap<u64, B256>, block: &Block) -> Value {
    let hashes = block_hashes.iter().map(|(number, hash)| (format!("{number:#x}"), json!(hash)));
    let block = &block.context;
    json!({
        "currentCoinbase": hex::encode_prefixed(block.fee_recipient),
        "currentGasLimit": format!("{:#x}", block.gas_limit),
        "currentNumber": format!("{:#x}", block.number),
        "currentTimestamp": format!("{:#x}", block.timestamp),
        "currentBaseFee": format!("{:#x}", block.base_fee),
        "currentRandom": block.prev_randao,
        "currentExcessBlobGas": "0x0",
        "parentBeaconBlockRoot": B256::ZERO,
        "blockHashes": hashes.collect::<serde_json::Map<_, _>>(),
        "withdrawals": [],
    })
}

fn transactions(block: &Block) -> Bytes {
    let list: Vec<&TxEnvelope> = block.transactions.iter().map(|tx| &tx.tx).collect();
    let mut bytes = Vec::new();
    rlp::encode_list::<&TxEnvelope, TxEnvelope>(&list, &mut bytes);
    bytes.into()
}

/// The tool keys a receipt by the place of its transaction among all candidates, rejected ones included.
fn receipts_root<'a>(receipts: impl Iterator<Item = (usize, &'a Receipt)>) -> B256 {
    let mut leaves: Vec<(Nibbles, Vec<u8>)> = receipts
        .map(|(place, receipt)| {
            let logs = receipt.logs.iter().map(|log| log.to_log()).collect();
            let inner = ConsensusReceipt {
                status: receipt.success.into(),
                cumulative_gas_used: receipt.cumulative_gas_used,
                logs,
            }
            .with_bloom();
            let envelope = match receipt.tx_type {
                0 => ReceiptEnvelope::Legacy(inner),
                1 => ReceiptEnvelope::Eip2930(inner),
                _ => ReceiptEnvelope::Eip1559(inner),
            };
            (Nibbles::unpack(rlp::encode(place)), envelope.encoded_2718())
        })
        .collect();
    if leaves.is_empty() {
        return EMPTY_ROOT_HASH;
    }
    leaves.sort();
    let mut builder = HashBuilder::default();
    for (key, value) in leaves {
        builder.add_leaf(key, &value);
    }
    builder.root()
}
