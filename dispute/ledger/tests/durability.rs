//! What survives: crashes at every write of the persistence path, damaged and void checkpoints, and what `verify`
//! says about directories that were changed.

use std::num::NonZeroUsize;
use std::sync::Arc;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::{BlockId, Encodable2718};
use alloy::network::TxSignerSync;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, sol};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, hex, keccak256};
use payhub_ledger::block::{BlockRecord, Record, decode_access_list, encode_access_list, encode_block};
use payhub_ledger::chain::Disk;
use payhub_ledger::checkpoint::Attempt;
use payhub_ledger::verify::{By, CheckpointFinding, Plan, Report, VerifyError, verify, verify_on};
use payhub_ledger::{AdjudicatorParameters, Config, Error, Ledger, trie};
use serde_json::{Value, json};
use storage::{Crash, Fault, Journal, JournalConfig, JournalReader, MemoryBackend};

sol! {
    function transfer(address to, uint256 amount) external returns (bool);
}

/// Small, so that a few large transactions fill one.
const SEGMENT_BYTES: u64 = 256 << 10;

/// Zeros that make the record of a transaction larger than the state is, so that each block brings a checkpoint.
const PADDING: usize = 120_000;

/// Blocks only when a transaction waits; few vaults, because genesis deploys them again and again here.
fn config() -> Config {
    let adjudicator = Some(AdjudicatorParameters { shards: 1, ..AdjudicatorParameters::DEV });
    Config { heartbeat: None, adjudicator, workers: NonZeroUsize::new(2), ..Config::dev() }
}

fn disk(backend: &MemoryBackend) -> Disk {
    let backend = Arc::new(backend.clone());
    Disk { backend, segment_bytes: SEGMENT_BYTES, checkpoint_bytes: Some(1) }
}

async fn start(backend: &MemoryBackend) -> Result<(Ledger, DynProvider), Error> {
    let ledger = Ledger::start_on(config(), disk(backend)).await?;
    let provider = ProviderBuilder::new().connect_client(ledger.rpc_client()).erased();
    Ok((ledger, provider))
}

async fn started(backend: &MemoryBackend) -> (Ledger, DynProvider) {
    start(backend).await.expect("the ledger starts")
}

fn signer(i: usize) -> PrivateKeySigner {
    PrivateKeySigner::from_slice(&payhub_ledger::genesis::dev_accounts()[i].secret).expect("a developer key")
}

fn signed(i: usize, nonce: u64, to: TxKind, value: u64, input: Bytes) -> Bytes {
    let mut tx = TxEip1559 {
        chain_id: payhub_ledger::genesis::DEV_CHAIN_ID,
        nonce,
        gas_limit: 5_000_000,
        max_fee_per_gas: 2_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        to,
        value: U256::from(value),
        input,
        ..TxEip1559::default()
    };
    let signature = signer(i).sign_transaction_sync(&mut tx).expect("a local key signs");
    TxEnvelope::from(tx.into_signed(signature)).encoded_2718().into()
}

fn padded(nonce: u64) -> Bytes {
    signed(0, nonce, TxKind::Call(Address::repeat_byte(7)), 1 + nonce, vec![0; PADDING].into())
}

async fn rpc(provider: &DynProvider, method: &'static str, params: Value) -> Result<Value, String> {
    provider.raw_request::<_, Value>(method.into(), params).await.map_err(|e| e.to_string())
}

/// Sends a transaction and waits for its block; gives the receipt as JSON.
async fn sent(ledger: &Ledger, provider: &DynProvider, raw: &Bytes) -> Result<Value, String> {
    let mut heads = ledger.heads();
    let hash = ledger.submit(raw).map_err(|e| e.to_string())?;
    loop {
        let receipt = rpc(provider, "eth_getTransactionReceipt", json!([hash])).await?;
        if !receipt.is_null() {
            return Ok(receipt);
        }
        tokio::select! {
            changed = heads.changed() => changed.map_err(|e| e.to_string())?,
            why = ledger.ended() => return Err(why),
        }
    }
}

/// Waits until the attempt at a checkpoint after record `at_least` is over.
async fn attempted(ledger: &Ledger, at_least: u64) -> Attempt {
    let mut checkpoints = ledger.checkpoints();
    let reached = checkpoints.wait_for(|attempt| attempt.is_some_and(|attempt| attempt.record >= at_least));
    reached.await.expect("the ledger lives").expect("an attempt")
}

fn read_only(backend: &MemoryBackend) -> JournalReader {
    JournalReader::open(Arc::new(backend.clone()), &identity()).expect("a journal")
}

fn identity() -> [u8; 32] {
    keccak256("payhub ledger journal").0
}

fn plan(by: &[By]) -> Plan {
    Plan { from: None, to: None, by: by.to_vec(), workers: NonZeroUsize::new(3).expect("three") }
}

fn checked(backend: &MemoryBackend, by: &[By]) -> Report {
    let report = verify_on(Arc::new(backend.clone()), &plan(by), |_, _| ()).expect("it can be checked");
    assert_eq!(report.difference, None);
    report
}

/// Everything that was published and has to be there after a crash.
#[derive(Default)]
struct Published {
    receipts: Vec<Value>,
    /// Whether the way back to the snapshot was begun, and whether it was done.
    reverting: bool,
    reverted: bool,
    /// How many receipts there were at the snapshot.
    kept: usize,
}

/// Blocks with checkpoints, a change by hand, a snapshot and the way back to it, until the disk refuses.
async fn play(backend: &MemoryBackend, published: &mut Published) -> Result<(), String> {
    let (ledger, provider) = start(backend).await.map_err(|e| e.to_string())?;
    let mut record = read_only(backend).last();
    let block = async |nonce: u64, published: &mut Published, record: &mut u64| {
        published.receipts.push(sent(&ledger, &provider, &padded(nonce)).await?);
        *record += 1;
        attempted(&ledger, *record).await;
        Ok::<(), String>(())
    };
    block(0, published, &mut record).await?;
    block(1, published, &mut record).await?;
    rpc(&provider, "anvil_setBalance", json!([Address::repeat_byte(8), "0x64"])).await?;
    record += 1;
    let id = rpc(&provider, "evm_snapshot", json!([])).await?;
    published.kept = published.receipts.len();
    block(2, published, &mut record).await?;
    published.reverting = true;
    assert_eq!(rpc(&provider, "evm_revert", json!([id])).await?, json!(true));
    published.reverted = true;
    published.receipts.truncate(published.kept);
    record += 1;
    block(2, published, &mut record).await?;
    block(3, published, &mut record).await?;
    ledger.shutdown().await.map_err(|e| e.to_string())
}

/// The disk after a crash holds everything that was published, and the chain goes on from there.
async fn nothing_is_lost(image: &MemoryBackend, published: &Published, context: &str) {
    let stored = image.crash(Crash::Kept, 0);
    let (ledger, provider) = start(image).await.unwrap_or_else(|e| panic!("{context}: {e}"));
    // A revert that was on its way may have come to the disk or not.
    let certain = if published.reverting && !published.reverted { published.kept } else { published.receipts.len() };
    for receipt in &published.receipts[..certain] {
        let again = rpc(&provider, "eth_getTransactionReceipt", json!([receipt["transactionHash"]])).await;
        assert_eq!(again.as_ref(), Ok(receipt), "{context}");
    }
    let root = ledger.with_state(trie::rebuilt_root);
    let head = provider.get_block(BlockId::latest()).await.expect("answer").expect("block");
    // By execution of what is stored, before anything repaired it.
    let report = checked(&stored, &[By::Sequential]);
    assert_eq!((report.head, report.hash), (head.header.number, head.header.hash), "{context}");
    assert_eq!(report.state_root, root, "{context}");
    assert!(!matches!(report.checkpoint, CheckpointFinding::Unusable(_)), "{context}: {report:?}");

    let nonce = provider.get_transaction_count(signer(1).address()).await.expect("nonce");
    let raw = signed(1, nonce, TxKind::Call(Address::repeat_byte(9)), 1, Bytes::new());
    let receipt = sent(&ledger, &provider, &raw).await.unwrap_or_else(|e| panic!("{context}: {e}"));
    assert_eq!(receipt["status"], "0x1", "{context}");
    let next = provider.get_block(BlockId::latest()).await.expect("answer").expect("block");
    assert_eq!((next.header.parent_hash, next.header.state_root), (head.header.hash, root), "{context}");
    ledger.shutdown().await.unwrap_or_else(|e| panic!("{context}: {e}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_loses_nothing_that_was_published() {
    let base = MemoryBackend::new();
    started(&base).await.0.shutdown().await.expect("a clean end");
    // Another disk with the same bytes, whose operations are counted from zero.
    let fresh = || base.crash(Crash::Kept, 0);

    let undisturbed = fresh();
    let mut published = Published::default();
    play(&undisturbed, &mut published).await.expect("nothing goes wrong");
    assert_eq!(published.receipts.len(), 4);
    assert!(undisturbed.files().contains_key("checkpoint/state"));
    assert!(undisturbed.files().len() > 3, "the journal has several files");
    nothing_is_lost(&undisturbed.crash(Crash::Lost, 0), &published, "undisturbed").await;

    let operations = undisturbed.operations();
    assert!(operations > 60, "there is something to enumerate: {operations}");
    let faults = [
        (Fault::PowerCut, &Crash::ALL[..]),
        (Fault::Broken, &[Crash::Lost][..]),
        (Fault::DiskFull, &[Crash::Kept][..]),
    ];
    for n in 0..operations {
        for (fault, policies) in faults {
            let backend = fresh();
            backend.fail_at(n, fault);
            let mut published = Published::default();
            // A checkpoint that cannot be written stops nothing; everything else does.
            let _ = play(&backend, &mut published).await;
            for policy in policies {
                let context = format!("{fault:?} at operation {n}, {policy:?}, {} published", published.receipts.len());
                nothing_is_lost(&backend.crash(*policy, n), &published, &context).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_the_chain_is_made_leaves_none_or_one() {
    for n in 0.. {
        let backend = MemoryBackend::new();
        backend.fail_at(n, Fault::PowerCut);
        let first = start(&backend).await.map(|(ledger, _)| ledger.deployment().genesis_hash);
        if backend.operations() <= n {
            return;
        }
        for policy in Crash::ALL {
            let image = backend.crash(policy, n);
            let (ledger, _) = start(&image).await.unwrap_or_else(|e| panic!("operation {n}, {policy:?}: {e}"));
            if let Ok(genesis_hash) = &first {
                assert_eq!(ledger.deployment().genesis_hash, *genesis_hash, "operation {n}, {policy:?}");
            }
            ledger.shutdown().await.expect("a clean end");
        }
    }
}

/// A chain with checkpoints; gives what the RPC tells of it.
async fn three_blocks(backend: &MemoryBackend) -> Vec<Value> {
    let (ledger, provider) = started(backend).await;
    for nonce in 0..3 {
        sent(&ledger, &provider, &padded(nonce)).await.expect("a receipt");
        assert!(attempted(&ledger, nonce + 2).await.written);
    }
    let told = everything(&provider).await;
    ledger.shutdown().await.expect("a clean end");
    told
}

async fn everything(provider: &DynProvider) -> Vec<Value> {
    let head = provider.get_block_number().await.expect("head");
    let mut all = Vec::new();
    for number in 0..=head {
        let number = format!("{number:#x}");
        all.push(rpc(provider, "eth_getBlockByNumber", json!([number, true])).await.expect("answer"));
        all.push(rpc(provider, "eth_getBlockReceipts", json!([number])).await.expect("answer"));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_from_a_checkpoint_tells_the_same_as_a_replay_of_everything() {
    let backend = MemoryBackend::new();
    let told = three_blocks(&backend).await;
    let last = read_only(&backend).last();
    let disks = [
        (backend.crash(Crash::Kept, 0), Some(Attempt { record: last, written: true })),
        (backend.crash(Crash::Kept, 1), None),
        (backend.crash(Crash::Kept, 2), None),
    ];
    disks[1].0.tamper("checkpoint/state", |bytes| bytes[100] ^= 1);
    disks[2].0.tamper("checkpoint/state", Vec::clear);
    for (disk, expected) in disks {
        let (ledger, provider) = started(&disk).await;
        assert_eq!(*ledger.checkpoints().borrow(), expected);
        assert_eq!(everything(&provider).await, told);
        let root = ledger.with_state(trie::rebuilt_root);
        // The clock and the root go on, too.
        sent(&ledger, &provider, &padded(3)).await.expect("a receipt");
        let head = provider.get_block(BlockId::latest()).await.expect("answer").expect("block");
        assert_eq!((head.header.number, head.header.state_root), (4, root));
        ledger.shutdown().await.expect("a clean end");
        checked(&disk, &By::ALL);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_of_a_state_that_was_taken_back_is_passed_over() {
    let backend = MemoryBackend::new();
    let (ledger, provider) = started(&backend).await;
    sent(&ledger, &provider, &padded(0)).await.expect("a receipt");
    attempted(&ledger, 2).await;
    let id = rpc(&provider, "evm_snapshot", json!([])).await.expect("a snapshot");
    sent(&ledger, &provider, &padded(1)).await.expect("a receipt");
    attempted(&ledger, 3).await;
    rpc(&provider, "evm_revert", json!([id])).await.expect("the way back");
    let root = ledger.with_state(trie::rebuilt_root);
    let crashed = backend.crash(Crash::Kept, 0);
    // The next checkpoint reflects the state after the revert, or a block behind it.
    sent(&ledger, &provider, &padded(1)).await.expect("a receipt");
    attempted(&ledger, 5).await;
    ledger.shutdown().await.expect("a clean end");
    assert_eq!(checked(&backend, &By::ALL).checkpoint, CheckpointFinding::Agrees { record: 5 });
    let (ledger, _) = started(&backend).await;
    assert_eq!(*ledger.checkpoints().borrow(), Some(Attempt { record: 5, written: true }));
    ledger.shutdown().await.expect("a clean end");

    assert_eq!(checked(&crashed, &By::ALL).checkpoint, CheckpointFinding::NotReached { record: 3 });
    let (ledger, provider) = started(&crashed).await;
    assert_eq!(*ledger.checkpoints().borrow(), None);
    assert_eq!(provider.get_block_number().await.expect("head"), 1);
    assert_eq!(ledger.with_state(trie::rebuilt_root), root);
    ledger.shutdown().await.expect("a clean end");
}

#[tokio::test]
async fn a_directory_of_an_older_format_is_refused_with_a_clear_error() {
    for tag in [0x01, 0x11] {
        let backend = MemoryBackend::new();
        let config = JournalConfig { segment_bytes: SEGMENT_BYTES };
        let mut journal = Journal::open(Arc::new(backend.clone()), config, &identity()).expect("a journal");
        journal.append(&[tag, 1, 2, 3]).expect("durable");
        journal.close().expect("a clean end");
        let refused = start(&backend).await.map(|_| ()).expect_err("an older format").to_string();
        assert!(refused.contains("format 1, this program reads format 2"), "{refused}");
        assert!(refused.contains("start a new chain in another directory"), "{refused}");
        let refused = verify_on(Arc::new(backend), &plan(&By::ALL), |_, _| ()).expect_err("an older format");
        assert!(refused.to_string().contains("format 1"), "{refused}");
    }
}

/// Init code of a contract that returns 42 and emits one log with topic 7 when called.
const ANSWER: [u8; 30] = hex!("6012600c60003960126000f3" "602a60005260076020" "6000a160206000f3" "00");

/// A chain with contracts, logs, failures, changes by hand and a revert, on a disk without checkpoints.
async fn lively_chain() -> MemoryBackend {
    let backend = MemoryBackend::new();
    let disk = Disk { checkpoint_bytes: None, ..disk(&backend) };
    let ledger = Ledger::start_on(config(), disk).await.expect("the ledger starts");
    let provider = ProviderBuilder::new().connect_client(ledger.rpc_client()).erased();
    let usdh = ledger.deployment().usdh;
    let pay =
        |amount: u64| transferCall { to: Address::repeat_byte(3), amount: U256::from(amount) }.abi_encode().into();
    let receipt = sent(&ledger, &provider, &signed(0, 0, TxKind::Create, 0, ANSWER.to_vec().into())).await;
    let contract = receipt.expect("a receipt")["contractAddress"].as_str().expect("a contract").parse();
    let contract = TxKind::Call(contract.expect("an address"));
    for nonce in 1..4 {
        for i in 1..6 {
            ledger.submit(&signed(i, nonce - 1, TxKind::Call(usdh), 0, pay(nonce * 5))).expect("admitted");
        }
        sent(&ledger, &provider, &signed(0, nonce, contract, 0, Bytes::new())).await.expect("a receipt");
    }
    // More than there is: it is in a block, and failed.
    sent(&ledger, &provider, &signed(0, 4, TxKind::Call(usdh), 0, pay(u64::MAX))).await.expect("a receipt");
    let id = rpc(&provider, "evm_snapshot", json!([])).await.expect("a snapshot");
    sent(&ledger, &provider, &signed(0, 5, contract, 0, Bytes::new())).await.expect("a receipt");
    rpc(&provider, "evm_revert", json!([id])).await.expect("the way back");
    rpc(&provider, "anvil_setBalance", json!([signer(9).address(), "0x64"])).await.expect("changed");
    sent(&ledger, &provider, &signed(0, 5, TxKind::Call(signer(9).address()), 7, Bytes::new()))
        .await
        .expect("a receipt");
    rpc(&provider, "evm_mine", json!([])).await.expect("an empty block");
    ledger.shutdown().await.expect("a clean end");
    backend
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_executes_any_range_with_every_executor_and_finds_the_same() {
    let backend = lively_chain().await;
    let files = backend.files();
    let whole = checked(&backend, &By::ALL);
    assert!(whole.head >= 6 && whole.transactions == 21 && whole.without_list == 0, "{whole:?}");
    assert_eq!((whole.from, whole.to, whole.blocks), (1, whole.head, whole.head));
    assert!(whole.work.iter().all(|work| work.blocks == whole.head), "{whole:?}");
    assert_eq!(whole.checkpoint, CheckpointFinding::None);
    for by in By::ALL {
        assert_eq!(checked(&backend, &[by]).state_root, whole.state_root);
    }
    for (from, to) in [(1, 1), (2, 4), (whole.head, whole.head)] {
        let mut heard = Vec::new();
        let plan = Plan { from: Some(from), to: Some(to), ..plan(&By::ALL) };
        let report = verify_on(Arc::new(backend.clone()), &plan, |done, all| heard.push((done, all)));
        let report = report.expect("it can be checked");
        assert_eq!((report.difference, report.blocks), (None, to - from + 1));
        assert_eq!(heard, (1..=to - from + 1).map(|done| (done, to - from + 1)).collect::<Vec<_>>());
    }
    assert!(backend.files() == files, "it only reads");
    for (from, to) in [(Some(4), Some(3)), (None, Some(whole.head + 1)), (Some(whole.head + 1), None)] {
        let refused = verify_on(Arc::new(backend.clone()), &Plan { from, to, ..plan(&By::ALL) }, |_, _| ());
        assert!(matches!(refused, Err(VerifyError::Range { head, .. }) if head == whole.head), "{refused:?}");
    }
}

/// A copy of a journal with one block's record changed. Later blocks are left out: they name the old hash.
fn forged(original: &MemoryBackend, number: u64, forge: impl FnOnce(&mut Forgery)) -> MemoryBackend {
    let backend = MemoryBackend::new();
    let config = JournalConfig { segment_bytes: SEGMENT_BYTES };
    let mut journal = Journal::open(Arc::new(backend.clone()), config, &identity()).expect("a journal");
    let mut forge = Some(forge);
    read_only(original)
        .replay(1, |_, bytes| {
            let record = Record::decode(bytes).expect("a record");
            let bytes = match record {
                Record::Block(record) if record.header().expect("a header").number == number => {
                    let mut forgery = Forgery { block: record.block().expect("a block"), record: *record };
                    if let Some(forge) = forge.take() {
                        forge(&mut forgery);
                    }
                    let Forgery { mut block, record } = forgery;
                    block.receipts = record.receipts;
                    encode_block(&block, &record.changes, record.access_list.as_ref(), record.clock_offset_s)
                }
                Record::Block(record) if record.header().expect("a header").number > number => return Ok(()),
                Record::Revert { .. } => return Ok(()),
                _ => bytes.to_vec(),
            };
            journal.append(&bytes).map(|_| ())
        })
        .expect("copied");
    journal.close().expect("a clean end");
    backend
}

struct Forgery {
    block: payhub_ledger::block::Block,
    record: BlockRecord,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_the_first_thing_that_is_not_as_executed() {
    let backend = lively_chain().await;
    type Forge = fn(&mut Forgery);
    let cases: [(&str, Option<By>, Forge); 12] = [
        ("the receipts root", None, |f| f.record.receipts[0].success = false),
        ("the parent's hash", None, |f| f.block.header.parent_hash = B256::ZERO),
        ("PREVRANDAO", None, |f| f.block.header.mix_hash = B256::ZERO),
        ("the state root before it", None, |f| f.block.header.state_root = B256::ZERO),
        ("the header", None, |f| f.block.header.extra_data = Bytes::new()),
        ("the gas used", None, |f| f.block.header.gas_used += 1),
        ("its time is before the parent's", None, |f| f.block.header.timestamp = 1),
        ("the sender of transaction 0", None, |f| Arc::make_mut(&mut f.block.transactions[0]).sender = Address::ZERO),
        ("the access list's hash", None, |f| {
            let list = f.record.access_list.take().expect("a list");
            let mut list = decode_access_list(&list).expect("it decodes");
            list.pop();
            f.record.access_list = Some(encode_access_list(&list));
        }),
        // What needs execution.
        ("the receipt of transaction 0", Some(By::Sequential), |f| {
            // The root covers the sum only.
            f.record.receipts[0].gas_used += 1;
        }),
        ("the change of account", Some(By::Sequential), |f| {
            let change = f.record.changes.accounts.values_mut().next().and_then(|change| change.basic.as_mut());
            change.expect("an account").balance += U256::ONE;
        }),
        ("the access list's hash", Some(By::Sequential), |f| {
            f.record.access_list = None;
            f.block.header.block_access_list_hash = Some(B256::ZERO);
        }),
    ];
    for (what, by, forge) in cases {
        let disk = forged(&backend, 2, forge);
        let report = verify_on(Arc::new(disk), &plan(&By::ALL), |_, _| ()).expect("it can be checked");
        let difference = report.difference.unwrap_or_else(|| panic!("{what} is not noticed"));
        assert!(difference.what.starts_with(what), "{what}: {difference}");
        assert_eq!((difference.block, difference.by, report.blocks), (2, by, 1), "{difference}");
    }
    // Each executor notices for itself.
    for by in By::ALL {
        let disk = forged(&backend, 2, |f| f.record.receipts[0].contract_address = Some(Address::ZERO));
        let report = verify_on(Arc::new(disk), &plan(&[by]), |_, _| ()).expect("it can be checked");
        assert_eq!(report.difference.map(|difference| difference.by), Some(Some(by)));
    }
    let unforged = verify_on(Arc::new(forged(&backend, 2, |_| ())), &plan(&By::ALL), |_, _| ());
    assert_eq!(unforged.expect("it can be checked").difference, None);
}

#[tokio::test]
async fn verify_refuses_a_directory_that_is_in_use_or_holds_no_chain() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = dir.path().join("missing");
    let refused = verify(&missing, &plan(&By::ALL), |_, _| ()).expect_err("no chain");
    assert!(matches!(refused, VerifyError::NoChain { .. }) && !missing.exists(), "{refused}");
    let config = Config { data_dir: Some(dir.path().to_owned()), ..config() };
    let ledger = Ledger::start(config).await.expect("the ledger starts");
    let refused = verify(dir.path(), &plan(&By::ALL), |_, _| ()).expect_err("it is in use");
    assert!(matches!(refused, VerifyError::Storage(storage::Error::Locked { .. })), "{refused}");
    ledger.shutdown().await.expect("a clean end");
    drop(ledger);
    let report = verify(dir.path(), &plan(&By::ALL), |_, _| ()).expect("it can be checked");
    assert_eq!((report.head, report.blocks, report.difference), (0, 0, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_commits_to_the_access_list_that_its_record_keeps() {
    let backend = lively_chain().await;
    let mut lists = 0;
    read_only(&backend)
        .replay(1, |_, bytes| {
            if let Record::Block(record) = Record::decode(bytes).expect("a record") {
                let header = record.header().expect("a header");
                let list = record.access_list.as_ref().expect("a list");
                assert_eq!(header.block_access_list_hash, Some(keccak256(list)));
                assert_eq!(header.requests_hash, Some(alloy::eips::eip7685::EMPTY_REQUESTS_HASH));
                let list = decode_access_list(list).expect("it decodes");
                assert_eq!(list.is_empty(), record.transactions().is_empty());
                lists += 1;
            }
            Ok::<(), storage::Error>(())
        })
        .expect("read");
    assert!(lists > 6);
}

#[tokio::test]
async fn the_number_of_workers_is_chosen_and_bounded() {
    assert_eq!(config().worker_count().get(), 2);
    assert!(Config { workers: None, ..config() }.worker_count().get() >= 1);
    let refused = Ledger::start(Config { workers: NonZeroUsize::new(1_000), ..config() }).await.expect_err("too many");
    assert!(matches!(refused, Error::Workers(1_000)), "{refused}");
    for workers in [1, 3] {
        let workers = NonZeroUsize::new(workers);
        let ledger = Ledger::start(Config { workers, ..config() }).await.expect("the ledger starts");
        let provider = ProviderBuilder::new().connect_client(ledger.rpc_client()).erased();
        sent(&ledger, &provider, &padded(0)).await.expect("a receipt");
        ledger.shutdown().await.expect("a clean end");
    }
}
