//! What a user of the embedded ledger relies on, told through alloy's provider over the in-process transport (and
//! once over HTTP), so that the whole way is exercised: JSON, dispatch, admission, execution, journal.

use std::time::Duration;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEip4844, TxEip7702, TxEnvelope, TxLegacy, proofs};
use alloy::eips::{BlockId, BlockNumberOrTag, Encodable2718};
use alloy::network::{EthereumWallet, TransactionBuilder, TxSignerSync};
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::rpc::types::{Filter, TransactionRequest};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol;
use alloy::transports::{RpcError, TransportErrorKind};
use alloy_primitives::{Address, B256, Bloom, Bytes, TxKind, U256, hex};
use payhub_ledger as ledger;
use payhub_ledger::{AdjudicatorParameters, BlockTime, Config, ED25519_PRECOMPILE, Error, Genesis, Ledger};
use serde_json::{Value, json};

sol! {
    #[sol(rpc)]
    contract TestDollar {
        error ERC20InsufficientBalance(address sender, uint256 balance, uint256 needed);
        event Transfer(address indexed from, address indexed to, uint256 value);
        function transfer(address to, uint256 amount) external returns (bool);
        function mint(address to, uint256 amount) external;
        function balanceOf(address account) external view returns (uint256);
        function decimals() external view returns (uint8);
    }

    #[sol(rpc)]
    contract Adjudicator {
        function ed25519Available() external view returns (bool);
        function minChallengePeriod() external view returns (uint32);
        function domainSeparator() external view returns (bytes32);
    }

    #[sol(rpc)]
    contract Multicall3 {
        function getBlockNumber() external view returns (uint256);
        function getCurrentBlockTimestamp() external view returns (uint256);
        function getChainId() external view returns (uint256);
    }
}

/// Init code of a contract that returns 42 and emits one log with topic 7 when called.
const ANSWER: [u8; 30] = hex!("6012600c60003960126000f3" "602a60005260076020" "6000a160206000f3" "00");

type ClientError = RpcError<TransportErrorKind>;

/// Blocks only when a transaction waits, so that numbers in stories are exact.
fn quiet() -> Config {
    Config { heartbeat: None, ..Config::dev() }
}

/// Blocks only on command, so that transactions can be watched waiting.
fn manual() -> Config {
    Config { block_time: BlockTime::Interval(Duration::from_secs(86_400)), ..Config::dev() }
}

fn signer(ledger: &Ledger, i: usize) -> PrivateKeySigner {
    PrivateKeySigner::from_slice(&ledger.dev_accounts()[i].secret).expect("a developer key")
}

fn provider(ledger: &Ledger, i: usize) -> DynProvider {
    let wallet = EthereumWallet::from(signer(ledger, i));
    ProviderBuilder::new().wallet(wallet).connect_client(ledger.rpc_client()).erased()
}

async fn start(config: Config) -> (Ledger, DynProvider) {
    let ledger = Ledger::start(config).await.expect("the ledger starts");
    let provider = provider(&ledger, 0);
    (ledger, provider)
}

async fn send(provider: &DynProvider, tx: TransactionRequest) -> alloy::rpc::types::TransactionReceipt {
    provider.send_transaction(tx).await.expect("admitted").get_receipt().await.expect("in a block")
}

fn transfer(to: Address, value: u64) -> TransactionRequest {
    TransactionRequest::default().to(to).value(U256::from(value))
}

/// A plain transfer with everything but the nonce fixed.
fn raw(key: &PrivateKeySigner, chain_id: u64, nonce: u64, fee_gwei: u128) -> Bytes {
    let mut tx = TxEip1559 {
        chain_id,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: fee_gwei * 1_000_000_000,
        max_priority_fee_per_gas: fee_gwei * 500_000_000,
        to: TxKind::Call(Address::repeat_byte(9)),
        value: U256::from(1),
        ..TxEip1559::default()
    };
    let signature = key.sign_transaction_sync(&mut tx).expect("a local key signs");
    TxEnvelope::from(tx.into_signed(signature)).encoded_2718().into()
}

async fn submit(provider: &DynProvider, raw: &Bytes) -> Result<B256, ClientError> {
    provider.raw_request::<_, B256>("eth_sendRawTransaction".into(), (raw,)).await
}

async fn rpc(provider: &DynProvider, method: &'static str, params: Value) -> Value {
    provider.raw_request::<_, Value>(method.into(), params).await.unwrap_or_else(|e| panic!("{method}: {e}"))
}

fn refusal(result: Result<impl std::fmt::Debug, ClientError>) -> (i64, String) {
    let error = result.expect_err("it must be refused");
    let payload = error.as_error_resp().unwrap_or_else(|| panic!("no JSON-RPC error but {error}"));
    (payload.code, payload.message.to_string())
}

#[tokio::test]
async fn a_transfer_moves_money_and_pays_tip_and_base_fee() {
    let recipient = Address::repeat_byte(0xfe);
    let (ledger, provider) = start(Config { fee_recipient: recipient, ..quiet() }).await;
    let (from, to) = (ledger.dev_accounts()[0].address, Address::repeat_byte(7));
    let before = provider.get_balance(from).await.expect("balance");
    let receipt = send(&provider, transfer(to, 5)).await;
    assert!(receipt.status());
    assert_eq!(receipt.gas_used, 21_000);
    assert_eq!(receipt.block_number, Some(1));
    assert_eq!(provider.get_balance(to).await.expect("balance"), U256::from(5));
    let paid = U256::from(receipt.effective_gas_price) * U256::from(21_000u64);
    assert_eq!(provider.get_balance(from).await.expect("balance"), before - paid - U256::from(5));
    let tip = U256::from(receipt.effective_gas_price - u128::from(ledger::BASE_FEE_PER_GAS)) * U256::from(21_000u64);
    assert_eq!(provider.get_balance(recipient).await.expect("balance"), tip);
    assert_eq!(provider.get_transaction_count(from).await.expect("nonce"), 1);
    ledger.shutdown().await.expect("a clean end");
}

#[tokio::test]
async fn a_deployed_contract_answers_and_its_logs_are_found() {
    let (_ledger, provider) = start(quiet()).await;
    let receipt = send(&provider, TransactionRequest::default().with_deploy_code(ANSWER)).await;
    let contract = receipt.contract_address.expect("a contract");
    let code = provider.get_code_at(contract).await.expect("code");
    assert_eq!(code.as_ref(), &ANSWER[12..]);

    let call = TransactionRequest::default().to(contract);
    let answer = provider.call(call.clone()).await.expect("call");
    assert_eq!(U256::from_be_slice(&answer), U256::from(42));

    let receipt = send(&provider, call).await;
    assert_eq!(receipt.logs().len(), 1);
    let topic = B256::from(U256::from(7));
    for (filter, expected) in [
        (Filter::new().address(contract).from_block(0), 1),
        (Filter::new().event_signature(topic).from_block(0), 1),
        (Filter::new().event_signature(B256::ZERO).from_block(0), 0),
        (Filter::new().address(contract).from_block(3), 0),
        (Filter::new().at_block_hash(receipt.block_hash.expect("in a block")), 1),
    ] {
        let logs = provider.get_logs(&filter).await.expect("logs");
        assert_eq!(logs.len(), expected, "{filter:?}");
    }
}

#[tokio::test]
async fn a_custom_error_reaches_the_caller_decoded() {
    let (ledger, provider) = start(quiet()).await;
    let usdh = TestDollar::new(ledger.deployment().usdh, provider.clone());
    let poor = Address::repeat_byte(0x11);
    let error = usdh.transfer(Address::repeat_byte(1), U256::from(1)).from(poor).call().await.expect_err("no money");
    let decoded = error.as_decoded_error::<TestDollar::ERC20InsufficientBalance>().expect("the custom error");
    assert_eq!((decoded.sender, decoded.needed), (poor, U256::from(1)));

    let result = usdh.transfer(Address::repeat_byte(1), U256::MAX).send().await.map(|_| ());
    let error = result.expect_err("the estimate reverts");
    assert!(error.as_decoded_error::<TestDollar::ERC20InsufficientBalance>().is_some(), "{error}");
    // With a gas limit of its own there is no estimate: it is in a block, and failed. The nonce is named because
    // alloy's counter may have spent one on the estimate that failed.
    let receipt =
        usdh.transfer(Address::repeat_byte(1), U256::MAX).gas(100_000).nonce(0).send().await.expect("admitted");
    let receipt = receipt.get_receipt().await.expect("in a block");
    assert!(!receipt.status() && receipt.logs().is_empty());
}

#[tokio::test]
async fn contracts_of_block_zero_work_and_their_constructors_ran() {
    let (ledger, provider) = start(quiet()).await;
    let deployment = ledger.deployment();
    let usdh = TestDollar::new(deployment.usdh, provider.clone());
    let me = ledger.dev_accounts()[3].address;
    assert_eq!(usdh.decimals().call().await.expect("decimals"), 6);
    assert_eq!(usdh.balanceOf(me).call().await.expect("balance"), U256::from(1_000_000_000_000u64));
    // The faucet mints, and its first transaction has nonce 0.
    let receipt = usdh.mint(me, U256::from(5)).nonce(0).send().await.expect("admitted").get_receipt().await;
    assert!(receipt.expect("in a block").status());

    let adjudicator = Adjudicator::new(deployment.adjudicator, provider.clone());
    assert!(adjudicator.ed25519Available().call().await.expect("available"));
    assert_eq!(
        adjudicator.minChallengePeriod().call().await.expect("period"),
        AdjudicatorParameters::DEV.challenge_period_min_s
    );
    assert_ne!(adjudicator.domainSeparator().call().await.expect("separator"), B256::ZERO);

    let multicall = Multicall3::new(deployment.multicall3, provider.clone());
    assert_eq!(multicall.getChainId().call().await.expect("chain id"), U256::from(deployment.chain_id));
    assert_eq!(multicall.getBlockNumber().call().await.expect("number"), U256::from(1));
    assert_eq!(multicall.getBlockNumber().block(BlockId::pending()).call().await.expect("number"), U256::from(2));
    let genesis = provider.get_block(BlockId::earliest()).await.expect("block").expect("block 0");
    assert_eq!(genesis.header.hash, deployment.genesis_hash);
    assert_eq!(genesis.header.hash, genesis.header.inner.hash_slow());
}

#[tokio::test]
async fn the_ed25519_precompile_accepts_good_and_refuses_bad_signatures() {
    let (_ledger, provider) = start(quiet()).await;
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let digest = B256::repeat_byte(0x42);
    let signature = ed25519_dalek::Signer::sign(&key, digest.as_slice());
    let good = [digest.as_slice(), key.verifying_key().as_bytes(), &signature.to_bytes()].concat();
    let flipped = |i: usize| {
        let mut bytes = good.clone();
        bytes[i] ^= 1;
        bytes
    };
    let one = U256::from(1).to_be_bytes_vec();
    let cases = [
        ("good", good.clone(), one),
        ("another digest", flipped(0), vec![]),
        ("another key", flipped(32), vec![]),
        ("another R", flipped(64), vec![]),
        ("another s", flipped(127), vec![]),
        ("too short", good[..127].to_vec(), vec![]),
        ("too long", [good.as_slice(), &[0]].concat(), vec![]),
        ("nothing", vec![], vec![]),
    ];
    for (name, input, expected) in cases {
        let call = TransactionRequest::default().to(ED25519_PRECOMPILE).input(Bytes::from(input).into());
        assert_eq!(provider.call(call).await.expect("call").to_vec(), expected, "{name}");
    }
    // 2,000 gas on top of what a transaction with this data costs, and not a unit less.
    let call = TransactionRequest::default().to(ED25519_PRECOMPILE).input(Bytes::from(good.clone()).into());
    let intrinsic: u64 = 21_000 + good.iter().map(|byte| if *byte == 0 { 4 } else { 16 }).sum::<u64>();
    assert!(provider.call(call.clone().gas_limit(intrinsic + 2_000)).await.is_ok());
    assert!(provider.call(call.clone().gas_limit(intrinsic + 1_999)).await.is_err());
    assert_eq!(send(&provider, call).await.gas_used, intrinsic + 2_000);
}

#[tokio::test]
async fn transactions_that_do_not_belong_here_are_refused_with_the_reason() {
    let (ledger, provider) = start(quiet()).await;
    let key = signer(&ledger, 0);
    let stranger = PrivateKeySigner::from_slice(&[5; 32]).expect("a key");
    let chain = ledger.deployment().chain_id;
    let sign = |tx: &mut dyn SignableTransaction<alloy_primitives::Signature>| {
        key.sign_transaction_sync(tx).expect("a local key signs")
    };
    let mut blob = TxEip4844 { chain_id: chain, blob_versioned_hashes: vec![B256::ZERO], ..TxEip4844::default() };
    let signature = sign(&mut blob);
    let blob = alloy::consensus::EthereumTxEnvelope::<TxEip4844>::from(blob.into_signed(signature)).encoded_2718();
    let mut set_code = TxEip7702 { chain_id: chain, ..TxEip7702::default() };
    let signature = sign(&mut set_code);
    let set_code = TxEnvelope::from(set_code.into_signed(signature)).encoded_2718();
    let mut unprotected = TxLegacy { gas_limit: 21_000, gas_price: 2_000_000_000, ..TxLegacy::default() };
    let signature = sign(&mut unprotected);
    let unprotected = TxEnvelope::from(unprotected.into_signed(signature)).encoded_2718();
    let mut dear =
        TxEip1559 { chain_id: chain, gas_limit: 60_000_001, max_fee_per_gas: 2_000_000_000, ..TxEip1559::default() };
    dear.to = TxKind::Call(Address::ZERO);
    let signature = sign(&mut dear);
    let dear = TxEnvelope::from(dear.into_signed(signature)).encoded_2718();
    let mut cut = raw(&key, chain, 0, 2).to_vec();
    cut.pop();

    let cases: [(&str, Vec<u8>, &str); 11] = [
        ("type 3", blob, "transaction type 3 is not supported"),
        ("type 4", set_code, "transaction type 4 is not supported"),
        (
            "another chain",
            raw(&key, chain + 1, 0, 2).to_vec(),
            "wrong chain id: the transaction is signed for 1338, this chain is 1337",
        ),
        ("no chain", unprotected, "names no chain id"),
        ("more gas than a block", dear, "gas limit 60000001 exceeds the block's 60000000"),
        ("below the base fee", raw(&key, chain, 0, 0).to_vec(), "below the base fee"),
        ("nobody's money", raw(&stranger, chain, 0, 2).to_vec(), "insufficient funds"),
        ("absurd nonce", raw(&key, chain, 5_000, 2).to_vec(), "nonce too high"),
        ("cut", cut, "not a signed transaction"),
        ("empty", vec![], "not a signed transaction"),
        ("too large", vec![2; 200_000], "200000 bytes"),
    ];
    for (name, bytes, expected) in cases {
        let (code, message) = refusal(submit(&provider, &bytes.into()).await);
        assert_eq!(code, -32000, "{name}");
        assert!(message.contains(expected), "{name}: {message}");
    }
    send(&provider, transfer(Address::ZERO, 1)).await;
    let (_, message) = refusal(submit(&provider, &raw(&key, chain, 0, 2)).await);
    assert!(message.contains("nonce too low: the transaction has 0, the account's next nonce is 1"), "{message}");
}

#[tokio::test]
async fn a_transaction_behind_a_nonce_gap_waits_for_the_gap_to_be_filled() {
    let (ledger, provider) = start(quiet()).await;
    let (key, chain) = (signer(&ledger, 0), ledger.deployment().chain_id);
    let ahead = submit(&provider, &raw(&key, chain, 1, 2)).await.expect("it waits");
    // Somebody else's block passes it by.
    let other = self::provider(&ledger, 1);
    send(&other, transfer(Address::ZERO, 1)).await;
    assert!(provider.get_transaction_receipt(ahead).await.expect("answer").is_none());
    let waiting = provider.get_transaction_by_hash(ahead).await.expect("answer").expect("known");
    assert_eq!(waiting.block_number, None);
    assert_eq!(provider.get_transaction_count(key.address()).pending().await.expect("nonce"), 0);

    let mut heads = ledger.heads();
    heads.mark_unchanged();
    submit(&provider, &raw(&key, chain, 0, 2)).await.expect("it fills the gap");
    heads.changed().await.expect("a block");
    let receipt = provider.get_transaction_receipt(ahead).await.expect("answer").expect("in the block");
    assert_eq!((receipt.block_number, receipt.transaction_index), (Some(2), Some(1)));
}

#[tokio::test]
async fn a_waiting_transaction_is_replaced_only_by_one_that_pays_a_tenth_more() {
    let (ledger, provider) = start(manual()).await;
    let (key, chain) = (signer(&ledger, 0), ledger.deployment().chain_id);
    let first = raw(&key, chain, 0, 10);
    let hash = submit(&provider, &first).await.expect("admitted");
    let (_, message) = refusal(submit(&provider, &first).await);
    assert!(message.contains("already known"), "{message}");
    let mut cheap = TxEip1559 {
        chain_id: chain,
        gas_limit: 21_000,
        max_fee_per_gas: 10_999_999_999,
        max_priority_fee_per_gas: 5_500_000_000,
        to: TxKind::Call(Address::ZERO),
        ..TxEip1559::default()
    };
    let signature = key.sign_transaction_sync(&mut cheap).expect("signed");
    let cheap = TxEnvelope::from(cheap.into_signed(signature)).encoded_2718();
    let (_, message) = refusal(submit(&provider, &cheap.into()).await);
    assert!(message.contains("replacement transaction underpriced"), "{message}");
    let second = submit(&provider, &raw(&key, chain, 0, 11)).await.expect("a tenth more");
    assert_eq!(provider.get_transaction_count(key.address()).pending().await.expect("nonce"), 1);
    rpc(&provider, "evm_mine", json!([])).await;
    assert!(provider.get_transaction_by_hash(hash).await.expect("answer").is_none());
    let receipt = provider.get_transaction_receipt(second).await.expect("answer").expect("in a block");
    assert_eq!(receipt.block_number, Some(1));
}

#[tokio::test]
async fn the_highest_tip_goes_first_and_a_senders_own_order_is_kept() {
    let (ledger, provider) = start(manual()).await;
    let chain = ledger.deployment().chain_id;
    let (a, b) = (signer(&ledger, 0), signer(&ledger, 1));
    let mut expected = Vec::new();
    for (key, nonce, gwei, place) in [(&a, 0, 3, 1), (&a, 1, 50, 2), (&b, 0, 9, 0)] {
        expected.push((place, submit(&provider, &raw(key, chain, nonce, gwei)).await.expect("admitted")));
    }
    expected.sort();
    rpc(&provider, "evm_mine", json!([])).await;
    let block = provider.get_block(BlockId::latest()).await.expect("answer").expect("block");
    let hashes = block.transactions.hashes().collect::<Vec<_>>();
    assert_eq!(hashes, expected.into_iter().map(|(_, hash)| hash).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_restart_keeps_blocks_receipts_logs_state_and_root() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config { dev: true, heartbeat: None, ..Config::durable(dir.path()) };
    let (ledger, provider) = start(config.clone()).await;
    let deployment = ledger.deployment();
    let usdh = TestDollar::new(deployment.usdh, provider.clone());
    let payee = Address::repeat_byte(0x77);
    let mut receipts = Vec::new();
    for amount in 1..=5u64 {
        let sent = usdh.transfer(payee, U256::from(amount)).send().await.expect("admitted");
        receipts.push(sent.get_receipt().await.expect("in a block"));
    }
    let before = snapshot(&provider).await;
    ledger.shutdown().await.expect("a clean end");
    let (_, message) = refusal(submit(&provider, &raw(&signer(&ledger, 1), 1337, 0, 2)).await);
    assert!(message.contains("the ledger has stopped"), "{message}");
    drop((ledger, provider, usdh));

    let (ledger, provider) = start(config.clone()).await;
    assert_eq!(ledger.deployment(), deployment);
    assert_eq!(snapshot(&provider).await, before);
    for receipt in receipts {
        let again = provider.get_transaction_receipt(receipt.transaction_hash).await.expect("answer");
        assert_eq!(again.as_ref(), Some(&receipt));
    }
    let usdh = TestDollar::new(deployment.usdh, provider.clone());
    assert_eq!(usdh.balanceOf(payee).call().await.expect("balance"), U256::from(15));
    // The next header holds the root of the recovered state, so it must be the one that was never computed again.
    let before_block = ledger_root(&ledger).await;
    send(&provider, transfer(payee, 1)).await;
    let head = provider.get_block(BlockId::latest()).await.expect("answer").expect("block");
    assert_eq!(head.header.state_root, before_block);
    ledger.shutdown().await.expect("a clean end");
}

/// Everything the RPC tells about a chain.
async fn snapshot(provider: &DynProvider) -> Vec<Value> {
    let head = provider.get_block_number().await.expect("head");
    let mut all = vec![rpc(provider, "eth_getLogs", json!([{"fromBlock": "0x0"}])).await];
    for number in 0..=head {
        all.push(rpc(provider, "eth_getBlockByNumber", json!([format!("{number:#x}"), true])).await);
        all.push(rpc(provider, "eth_getBlockReceipts", json!([format!("{number:#x}")])).await);
    }
    all
}

/// The root of the head's state by the oracle.
async fn ledger_root(ledger: &Ledger) -> B256 {
    ledger.with_state(ledger::trie::rebuilt_root)
}

#[tokio::test]
async fn every_header_holds_the_root_of_the_state_before_it() {
    let (ledger, provider) = start(quiet()).await;
    let usdh = TestDollar::new(ledger.deployment().usdh, provider.clone());
    for i in 1..=6u8 {
        let root = ledger_root(&ledger).await;
        let sent = usdh.transfer(Address::repeat_byte(1 + i % 3), U256::from(i)).send().await.expect("admitted");
        sent.get_receipt().await.expect("in a block");
        let head = provider.get_block(BlockId::latest()).await.expect("answer").expect("block");
        assert_eq!(head.header.state_root, root, "block {}", head.header.number);
        let parent = provider.get_block_by_number(BlockNumberOrTag::Number(head.header.number - 1)).await;
        assert_eq!(head.header.parent_hash, parent.expect("answer").expect("block").header.hash);
    }
}

#[tokio::test]
async fn headers_commit_to_transactions_receipts_and_logs() {
    let (ledger, provider) = start(manual()).await;
    let (usdh, chain) = (ledger.deployment().usdh, ledger.deployment().chain_id);
    for i in 0..4u8 {
        let contract = TestDollar::new(usdh, self::provider(&ledger, usize::from(i)));
        let _pending = contract.transfer(Address::repeat_byte(0x55), U256::from(i)).send().await.expect("admitted");
        submit(&provider, &raw(&signer(&ledger, 5), chain, u64::from(i), 2)).await.expect("admitted");
    }
    rpc(&provider, "evm_mine", json!([])).await;
    let block = provider.get_block(BlockId::latest()).full().await.expect("answer").expect("block");
    let receipts = provider.get_block_receipts(BlockId::latest()).await.expect("answer").expect("block");
    assert_eq!((block.transactions.len(), receipts.len()), (8, 8));
    let transactions = block.transactions.txns().map(|tx| tx.inner.inner().clone()).collect::<Vec<_>>();
    let receipts = receipts.into_iter().map(|r| r.into_primitives_receipt().inner).collect::<Vec<_>>();
    let header = &block.header;
    assert_eq!(header.transactions_root, proofs::calculate_transaction_root(&transactions));
    assert_eq!(header.receipts_root, proofs::calculate_receipt_root(&receipts));
    assert_eq!(header.hash, header.inner.hash_slow());
    let bloom = receipts.iter().fold(Bloom::ZERO, |bloom, receipt| bloom | *receipt.logs_bloom());
    assert!(!bloom.is_zero() && bloom == header.logs_bloom);
    assert_eq!(header.gas_used, receipts.last().expect("eight").cumulative_gas_used());
}

#[tokio::test]
async fn blocks_that_left_the_memory_come_from_the_journal() {
    let (ledger, provider) = start(quiet()).await;
    let usdh = TestDollar::new(ledger.deployment().usdh, provider.clone());
    let sent = usdh.transfer(Address::repeat_byte(3), U256::from(1)).send().await.expect("admitted");
    let receipt = sent.get_receipt().await.expect("in a block");
    let before = snapshot(&provider).await;
    rpc(&provider, "anvil_mine", json!([ledger::chain::RECENT_BLOCKS + 10])).await;
    let again = provider.get_transaction_receipt(receipt.transaction_hash).await.expect("answer");
    assert_eq!(again, Some(receipt));
    let mut after = vec![rpc(&provider, "eth_getLogs", json!([{"fromBlock": "0x0"}])).await];
    for number in ["0x0", "0x1"] {
        after.push(rpc(&provider, "eth_getBlockByNumber", json!([number, true])).await);
        after.push(rpc(&provider, "eth_getBlockReceipts", json!([number])).await);
    }
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_transaction_that_became_insolvent_is_dropped_and_the_others_go_on() {
    let (ledger, provider) = start(manual()).await;
    let (poor, chain) = (signer(&ledger, 1), ledger.deployment().chain_id);
    // Enough for either of the two transactions, not for both.
    let one = U256::from(21_000u64) * U256::from(4_000_000_000u64) + U256::from(1);
    rpc(&provider, "anvil_setBalance", json!([poor.address(), one])).await;
    let first = submit(&provider, &raw(&poor, chain, 0, 4)).await.expect("it can pay for this");
    let second = submit(&provider, &raw(&poor, chain, 1, 4)).await.expect("and, looked at alone, for this");
    let other = submit(&provider, &raw(&signer(&ledger, 0), chain, 0, 2)).await.expect("admitted");
    rpc(&provider, "evm_mine", json!([])).await;
    for hash in [first, other] {
        assert!(provider.get_transaction_receipt(hash).await.expect("answer").expect("in the block").status());
    }
    assert!(provider.get_transaction_by_hash(second).await.expect("answer").is_none());
    assert_eq!(provider.get_transaction_count(poor.address()).pending().await.expect("nonce"), 1);
}

#[tokio::test]
async fn a_data_directory_opens_only_with_its_own_genesis_settings() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config { heartbeat: None, ..Config::durable(dir.path()) };
    let ledger = Ledger::start(config.clone()).await.expect("a new chain");
    let chain_id = ledger.deployment().chain_id;
    assert!(chain_id >= 1 << 40, "a random chain id: {chain_id}");
    assert!(ledger.dev_accounts().is_empty());

    let locked = Ledger::start(config.clone()).await.expect_err("it is open");
    assert!(matches!(locked, Error::Storage(storage::Error::Locked { .. })), "{locked}");
    ledger.shutdown().await.expect("a clean end");
    drop(ledger);

    let other = Ledger::start(Config { chain_id: Some(5), ..config.clone() }).await.expect_err("another chain");
    assert!(matches!(other, Error::OtherChain { wanted: 5, stored, .. } if stored == chain_id), "{other}");
    let genesis = Genesis::from_json(r#"{"alloc": {"0x00000000000000000000000000000000000000aa": {"balance": "12"}}}"#);
    let genesis = Some(genesis.expect("a genesis file"));
    for wrong in [
        Config { genesis, ..config.clone() },
        Config { dev: true, ..config.clone() },
        Config { faucet: Some(Address::repeat_byte(1)), ..config.clone() },
    ] {
        let other = Ledger::start(wrong).await.expect_err("another genesis");
        assert!(matches!(other, Error::OtherGenesis { .. }), "{other}");
    }
    let again = Ledger::start(config).await.expect("its own settings");
    assert_eq!(again.deployment().chain_id, chain_id);
    again.shutdown().await.expect("a clean end");
}

#[tokio::test]
async fn a_genesis_file_fills_accounts_with_balance_code_and_storage() {
    let genesis = Genesis::from_json(
        r#"{"config": {"londonBlock": 0}, "alloc": {
            "0x00000000000000000000000000000000000000aa": {"balance": "1000", "nonce": "0x3"},
            "00000000000000000000000000000000000000bb": {"balance": "0x10", "code": "0x602a60005260206000f3",
                "storage": {"0x0000000000000000000000000000000000000000000000000000000000000001":
                            "0x0000000000000000000000000000000000000000000000000000000000000007"}}}}"#,
    );
    let (_ledger, provider) = start(Config { genesis: Some(genesis.expect("valid")), ..quiet() }).await;
    let (aa, bb) = (Address::with_last_byte(0xaa), Address::with_last_byte(0xbb));
    assert_eq!(provider.get_balance(aa).await.expect("balance"), U256::from(1_000));
    assert_eq!(provider.get_transaction_count(aa).await.expect("nonce"), 3);
    assert_eq!(provider.get_storage_at(bb, U256::from(1)).await.expect("slot"), U256::from(7));
    let answer = provider.call(TransactionRequest::default().to(bb)).await.expect("call");
    assert_eq!(U256::from_be_slice(&answer), U256::from(42));
    assert!(matches!(Genesis::from_json("{\"alloc\": 3}"), Err(Error::GenesisFile(_))));
}

#[tokio::test]
async fn time_moves_and_a_snapshot_brings_everything_back_even_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = Config { dev: true, heartbeat: None, ..Config::durable(dir.path()) };
    let (ledger, provider) = start(config.clone()).await;
    let rich = Address::repeat_byte(0xab);
    send(&provider, transfer(rich, 1)).await;
    let before = snapshot(&provider).await;
    let id = rpc(&provider, "evm_snapshot", json!([])).await;

    rpc(&provider, "anvil_setBalance", json!([rich, "0x64"])).await;
    assert_eq!(provider.get_balance(rich).await.expect("balance"), U256::from(100));
    rpc(&provider, "anvil_setStorageAt", json!([rich, "0x1", B256::repeat_byte(1)])).await;
    let head = |block: Value| block["timestamp"].as_str().map(|t| t.to_owned()).expect("a timestamp");
    let t0 = provider.get_block(BlockId::latest()).await.expect("answer").expect("block").header.timestamp;
    rpc(&provider, "evm_increaseTime", json!([86_400])).await;
    rpc(&provider, "evm_mine", json!([])).await;
    let t1 = provider.get_block(BlockId::latest()).await.expect("answer").expect("block").header.timestamp;
    assert!((t0 + 86_400..t0 + 86_460).contains(&t1), "{t0} {t1}");
    rpc(&provider, "evm_setNextBlockTimestamp", json!([t1 + 1_000])).await;
    send(&provider, transfer(rich, 1)).await;
    let block = rpc(&provider, "eth_getBlockByNumber", json!(["latest", false])).await;
    assert_eq!(head(block), format!("{:#x}", t1 + 1_000));
    let late = provider.raw_request::<_, Value>("evm_setNextBlockTimestamp".into(), (t0,)).await;
    assert!(refusal(late).1.contains("before the newest block"));
    rpc(&provider, "anvil_mine", json!(["0x3", "0x3c"])).await;
    let t3 = provider.get_block(BlockId::latest()).await.expect("answer").expect("block").header.timestamp;
    assert!(t3 >= t1 + 1_000 + 120, "{t1} {t3}");

    assert_eq!(rpc(&provider, "evm_revert", json!([id])).await, json!(true));
    assert_eq!(rpc(&provider, "evm_revert", json!([id])).await, json!(false), "a snapshot is used up");
    assert_eq!(snapshot(&provider).await, before);
    assert_eq!(provider.get_balance(rich).await.expect("balance"), U256::from(1));
    // The chain goes on from there, with the root of the state it went back to.
    let root = ledger_root(&ledger).await;
    // A new provider, because the old one counts the nonces it has used.
    let provider = self::provider(&ledger, 0);
    send(&provider, transfer(rich, 1)).await;
    let block = provider.get_block(BlockId::latest()).await.expect("answer").expect("block");
    assert_eq!((block.header.number, block.header.state_root), (2, root));

    let after = snapshot(&provider).await;
    ledger.shutdown().await.expect("a clean end");
    drop((ledger, provider));
    let (_ledger, provider) = start(config).await;
    assert_eq!(snapshot(&provider).await, after);
    assert_eq!(provider.get_balance(rich).await.expect("balance"), U256::from(2));
}

#[tokio::test]
async fn only_the_newest_state_can_be_asked_and_limits_say_so() {
    let (ledger, provider) = start(quiet()).await;
    let me = ledger.dev_accounts()[0].address;
    send(&provider, transfer(Address::ZERO, 1)).await;
    let old = provider.get_balance(me).block_id(BlockId::number(0)).await;
    let (code, message) = refusal(old);
    assert_eq!(code, -32000);
    assert!(message.contains("the state of block 0 is not kept, only that of the newest block (1)"), "{message}");
    assert!(provider.get_balance(me).block_id(BlockId::number(1)).await.is_ok());
    assert!(provider.get_balance(me).block_id(BlockId::finalized()).await.is_ok());
    assert!(refusal(provider.get_balance(me).block_id(BlockId::number(9)).await).1.contains("no block 9"));

    rpc(&provider, "anvil_mine", json!([10])).await;
    let empty = json!([{"fromBlock": "0x5", "toBlock": "0x4"}]);
    let wrong = provider.raw_request::<_, Value>("eth_getLogs".into(), empty).await;
    assert_eq!(refusal(wrong).0, -32602);
    let history = provider.get_fee_history(4, BlockNumberOrTag::Latest, &[50.0]).await.expect("history");
    assert_eq!((history.oldest_block, history.base_fee_per_gas.len()), (8, 5));
    let overrides = json!([{"to": me}, "latest", {me.to_string(): {"balance": "0x1"}}]);
    let refused = provider.raw_request::<_, Value>("eth_call".into(), overrides).await;
    assert!(refusal(refused).1.contains("overrides are not supported"));
}

#[tokio::test]
async fn parameters_that_make_no_sense_are_refused_and_never_panic() {
    let (_ledger, provider) = start(quiet()).await;
    let garbage = [
        json!([]),
        json!(null),
        json!({}),
        json!([null]),
        json!(["x"]),
        json!([{}]),
        json!([[], {}, 7]),
        json!([-1]),
        json!([
            "0xffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "0xffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
        ]),
        json!([{"fromBlock": "0xffffffffffffffff", "toBlock": "0xffffffffffffffff"}]),
        json!(["0xffffffffffffffff", "0xffffffffffffffff", []]),
    ];
    let methods = [
        "eth_getBalance",
        "eth_getCode",
        "eth_getStorageAt",
        "eth_getTransactionCount",
        "eth_call",
        "eth_estimateGas",
        "eth_getBlockByNumber",
        "eth_getBlockByHash",
        "eth_getBlockReceipts",
        "eth_getTransactionByHash",
        "eth_getTransactionReceipt",
        "eth_getLogs",
        "eth_feeHistory",
        "eth_sendRawTransaction",
        "web3_sha3",
        "eth_getTransactionByBlockNumberAndIndex",
        "eth_getBlockTransactionCountByNumber",
        "evm_increaseTime",
        "evm_setNextBlockTimestamp",
        "evm_mine",
        "anvil_mine",
        "evm_revert",
        "anvil_setBalance",
        "anvil_setNonce",
        "anvil_setCode",
        "anvil_setStorageAt",
        "no_such_method",
    ];
    for method in methods {
        for params in &garbage {
            // Any answer will do, as long as the chain goes on.
            let _ = provider.raw_request::<_, Value>(method.into(), params.clone()).await;
        }
    }
    send(&provider, transfer(Address::ZERO, 1)).await;
}

#[tokio::test]
async fn the_same_answers_come_over_http() {
    let (ledger, provider) = start(quiet()).await;
    send(&provider, transfer(Address::ZERO, 1)).await;
    let server = ledger.serve("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let url = server.url().parse().expect("a URL");
    let wallet = EthereumWallet::from(signer(&ledger, 1));
    let remote = ProviderBuilder::new().wallet(wallet).connect_http(url).erased();
    assert_eq!(snapshot(&remote).await, snapshot(&provider).await);
    remote.client().set_poll_interval(Duration::from_millis(20));
    let receipt = send(&remote, transfer(Address::ZERO, 1)).await;
    assert_eq!(receipt.block_number, Some(2));
    server.stop().await;
    assert!(remote.get_block_number().await.is_err());
}

#[tokio::test]
async fn developer_accounts_are_those_of_other_tools() {
    let (ledger, _) = start(quiet()).await;
    let accounts = ledger.dev_accounts();
    let known = [
        (0, "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
        (1, "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"),
        (9, "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"),
    ];
    for (i, address) in known {
        assert_eq!(accounts[i].address.to_string(), address);
    }
}

#[tokio::test]
async fn an_idle_chain_still_makes_blocks_when_it_has_a_heartbeat() {
    let (ledger, _) = start(Config { heartbeat: Some(Duration::from_millis(5)), ..Config::dev() }).await;
    let mut heads = ledger.heads();
    heads.wait_for(|number| *number >= 3).await.expect("three blocks");
    ledger.shutdown().await.expect("a clean end");
}
