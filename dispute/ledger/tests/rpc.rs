//! The JSON-RPC server from outside: following the chain by filters and subscriptions, and what hostile or careless
//! clients get. Requests are written to sockets by hand, because no client library sends what is wrong.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, hex};
use payhub_ledger::chain::ARRIVALS_KEPT;
use payhub_ledger::{BlockTime, Config, Ledger, RpcServer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Init code of a contract that emits one log with topic 7 when called, and returns 42.
const LOGGER: [u8; 30] = hex!("6012600c60003960126000f3" "602a60005260076020" "6000a160206000f3" "00");

/// Init code of a contract that reads slot 5 when called.
const READER: [u8; 17] = hex!("6005600c60003960056000f3" "6005545000");

struct Node {
    ledger: Ledger,
    server: RpcServer,
}

impl Node {
    /// Blocks on demand and on command only, so that numbers are exact.
    async fn start() -> Self {
        Self::with(Config { heartbeat: None, ..Config::dev() }).await
    }

    async fn with(config: Config) -> Self {
        let ledger = Ledger::start(config).await.expect("a ledger in memory starts");
        let server = ledger.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.expect("loopback");
        Self { ledger, server }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.server.local_addr()).await.expect("it listens")
    }

    /// Sends bytes as the body of a request; returns the status and the body of the answer.
    async fn post(&self, body: &[u8]) -> (u16, Value) {
        let mut socket = self.connect().await;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).await.expect("sent");
        // A server that refuses by the length may close before it has read everything.
        let _ = socket.write_all(body).await;
        let answer = read_all(&mut socket).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        (status, serde_json::from_str(body).unwrap_or_else(|_| Value::from(body)))
    }

    async fn answer(&self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.post(request.to_string().as_bytes()).await.1
    }

    async fn ask(&self, method: &str, params: Value) -> Value {
        let mut answer = self.answer(method, params).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    async fn refusal(&self, method: &str, params: Value) -> (i64, String) {
        refusal(&self.answer(method, params).await)
    }

    fn signed(&self, nonce: u64, to: TxKind, input: &[u8]) -> Bytes {
        self.signed_by(0, nonce, to, input)
    }

    fn signed_by(&self, i: usize, nonce: u64, to: TxKind, input: &[u8]) -> Bytes {
        let key = PrivateKeySigner::from_slice(&self.ledger.dev_accounts()[i].secret).expect("a developer key");
        let mut tx = TxEip1559 {
            chain_id: self.ledger.deployment().chain_id,
            nonce,
            gas_limit: 200_000,
            max_fee_per_gas: 3_000_000_000,
            max_priority_fee_per_gas: 1_000_000_000,
            to,
            input: input.to_vec().into(),
            ..TxEip1559::default()
        };
        let signature = key.sign_transaction_sync(&mut tx).expect("a local key signs");
        TxEnvelope::from(tx.into_signed(signature)).encoded_2718().into()
    }

    /// Sends a transaction and waits for its block; returns its receipt.
    async fn execute(&self, nonce: u64, to: TxKind, input: &[u8]) -> Value {
        let mut heads = self.ledger.heads();
        heads.mark_unchanged();
        let hash = self.ask("eth_sendRawTransaction", json!([self.signed(nonce, to, input)])).await;
        loop {
            let receipt = self.ask("eth_getTransactionReceipt", json!([hash])).await;
            if !receipt.is_null() {
                return receipt;
            }
            heads.changed().await.expect("a block");
        }
    }

    async fn deploy(&self, nonce: u64, code: &[u8]) -> Address {
        let receipt = self.execute(nonce, TxKind::Create, code).await;
        serde_json::from_value(receipt["contractAddress"].clone()).expect("a contract")
    }

    /// It still works.
    async fn is_well(&self) {
        assert_eq!(self.ask("eth_chainId", json!([])).await, json!("0x539"));
    }
}

fn refusal(answer: &Value) -> (i64, String) {
    let code = answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("it must be refused: {answer}"));
    (code, answer["error"]["message"].as_str().unwrap_or_default().to_owned())
}

async fn read_all(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // Whatever came before a reset is the answer.
    let _ = socket.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A WebSocket client as simple as can be.
struct WebSocket {
    socket: TcpStream,
    next_id: u64,
    /// Notifications that came while an answer was waited for.
    events: std::collections::VecDeque<Value>,
}

impl WebSocket {
    async fn open(node: &Node) -> Self {
        let mut socket = node.connect().await;
        let hello = "GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write_all(hello.as_bytes()).await.expect("sent");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.expect("an answer"));
        }
        assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
        Self { socket, next_id: 0, events: Default::default() }
    }

    /// Sends a text frame; the mask of zeros leaves it as it is.
    async fn send(&mut self, text: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(&frame(text)).await
    }

    /// The next text frame, or `None` at the end.
    async fn receive(&mut self) -> Option<Value> {
        loop {
            let kind = self.socket.read_u8().await.ok()? & 0x0f;
            let length = match self.socket.read_u8().await.ok()? {
                126 => u64::from(self.socket.read_u16().await.ok()?),
                127 => self.socket.read_u64().await.ok()?,
                short => u64::from(short),
            };
            let mut payload = vec![0; usize::try_from(length).expect("small")];
            self.socket.read_exact(&mut payload).await.ok()?;
            match kind {
                1 => return Some(serde_json::from_slice(&payload).expect("JSON")),
                8 => return None,
                _ => {}
            }
        }
    }

    async fn answer(&mut self, method: &str, params: Value) -> Value {
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params});
        self.send(request.to_string().as_bytes()).await.expect("sent");
        loop {
            let message = self.receive().await.expect("an answer");
            if message.get("id").is_some() {
                assert_eq!(message["id"], json!(self.next_id));
                return message;
            }
            self.events.push_back(message);
        }
    }

    async fn subscribe(&mut self, params: Value) -> String {
        let answer = self.answer("eth_subscribe", params).await;
        answer["result"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// The next notification: the subscription and what it reports.
    async fn event(&mut self) -> (String, Value) {
        let mut event = match self.events.pop_front() {
            Some(event) => event,
            None => self.receive().await.expect("an event"),
        };
        assert_eq!(event["method"], "eth_subscription", "{event}");
        let id = event["params"]["subscription"].as_str().expect("an id").to_owned();
        (id, event["params"]["result"].take())
    }
}

fn frame(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        middle @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((middle as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(text);
    frame
}

#[tokio::test]
async fn filters_report_what_happened_since_they_were_asked_last() {
    let node = Node::start().await;
    let logger = node.deploy(0, &LOGGER).await;
    node.execute(1, TxKind::Call(logger), &[]).await;

    let blocks = node.ask("eth_newBlockFilter", json!([])).await;
    let logs = node.ask("eth_newFilter", json!([{"address": logger, "fromBlock": "0x0"}])).await;
    let others = node.ask("eth_newFilter", json!([{"address": Address::ZERO}])).await;
    let later = node.ask("eth_newFilter", json!([{"fromBlock": "0x4"}])).await;
    let waiting = node.ask("eth_newPendingTransactionFilter", json!([])).await;
    for filter in [&blocks, &logs, &waiting] {
        assert_eq!(node.ask("eth_getFilterChanges", json!([filter])).await, json!([]));
    }
    let third = node.execute(2, TxKind::Call(logger), &[]).await;
    let fourth = node.execute(3, TxKind::Call(logger), &[]).await;

    let hashes = json!([third["blockHash"], fourth["blockHash"]]);
    assert_eq!(node.ask("eth_getFilterChanges", json!([blocks])).await, hashes);
    let hashes = json!([third["transactionHash"], fourth["transactionHash"]]);
    assert_eq!(node.ask("eth_getFilterChanges", json!([waiting])).await, hashes);
    let both = json!([third["logs"][0], fourth["logs"][0]]);
    assert_eq!(node.ask("eth_getFilterChanges", json!([logs])).await, both);
    assert_eq!(node.ask("eth_getFilterChanges", json!([logs])).await, json!([]));
    assert_eq!(node.ask("eth_getFilterChanges", json!([others])).await, json!([]));
    assert_eq!(node.ask("eth_getFilterChanges", json!([later])).await, json!([fourth["logs"][0]]));
    // All of them, also the one from before the filter was made.
    let all = node.ask("eth_getFilterLogs", json!([logs])).await;
    assert_eq!(all.as_array().map(Vec::len), Some(3));

    assert_eq!(node.ask("eth_uninstallFilter", json!([logs])).await, json!(true));
    assert_eq!(node.ask("eth_uninstallFilter", json!([logs])).await, json!(false));
    for method in ["eth_getFilterChanges", "eth_getFilterLogs"] {
        let (code, message) = node.refusal(method, json!([logs])).await;
        assert!(code == -32_000 && message.starts_with("filter not found"), "{code} {message}");
    }
    let (code, message) = node.refusal("eth_getFilterLogs", json!([blocks])).await;
    assert!(code == -32_602 && message.contains("not one for logs"), "{code} {message}");
}

#[tokio::test]
async fn the_number_of_filters_is_limited() {
    let node = Node::start().await;
    let mut made = 0;
    let (code, message) = loop {
        let answer = node.answer("eth_newBlockFilter", json!([])).await;
        if answer.get("error").is_some() {
            break refusal(&answer);
        }
        made += 1;
    };
    assert_eq!((made, code), (1_024, -32_005));
    assert!(message.contains("uninstall some"), "{message}");
    node.is_well().await;
}

#[tokio::test]
async fn subscribers_get_heads_logs_and_arrivals_in_order() {
    let node = Node::start().await;
    let logger = node.deploy(0, &LOGGER).await;
    let mut socket = WebSocket::open(&node).await;
    let heads = socket.subscribe(json!(["newHeads"])).await;
    let first = node.execute(1, TxKind::Call(logger), &[]).await;
    let (id, head) = socket.event().await;
    assert_eq!((&id, &head["hash"], &head["number"]), (&heads, &first["blockHash"], &json!("0x2")));
    assert_eq!(head["logsBloom"], node.ask("eth_getBlockByNumber", json!(["latest", false])).await["logsBloom"]);
    assert_eq!(socket.answer("eth_unsubscribe", json!([heads])).await["result"], json!(true));
    assert_eq!(socket.answer("eth_unsubscribe", json!([heads])).await["result"], json!(false));

    let logs = socket.subscribe(json!(["logs", {"address": logger, "topics": [[B256::from(U256::from(7))]]}])).await;
    let nothing = socket.subscribe(json!(["logs", {"topics": [B256::from(U256::from(8))]}])).await;
    for nonce in 2..5 {
        let receipt = node.execute(nonce, TxKind::Call(logger), &[]).await;
        assert_eq!(socket.event().await, (logs.clone(), receipt["logs"][0].clone()));
    }
    for id in [logs, nothing] {
        assert_eq!(socket.answer("eth_unsubscribe", json!([id])).await["result"], json!(true));
    }
    let hashes = socket.subscribe(json!(["newPendingTransactions"])).await;
    let receipt = node.execute(5, TxKind::Call(logger), &[]).await;
    assert_eq!(socket.event().await, (hashes, receipt["transactionHash"].clone()));
}

#[tokio::test]
async fn a_waiting_transaction_is_shown_in_full_to_who_wants_it() {
    let never = BlockTime::Interval(Duration::from_secs(86_400));
    let node = Node::with(Config { block_time: never, ..Config::dev() }).await;
    let mut socket = WebSocket::open(&node).await;
    let id = socket.subscribe(json!(["newPendingTransactions", true])).await;
    let hash = node.ask("eth_sendRawTransaction", json!([node.signed(0, TxKind::Create, &LOGGER)])).await;
    let (from, transaction) = socket.event().await;
    assert_eq!((from, &transaction["hash"], &transaction["blockHash"]), (id, &hash, &Value::Null));
    assert_eq!(node.ask("eth_getTransactionCount", json!([transaction["from"], "pending"])).await, "0x1");
    assert_eq!(node.ask("eth_getTransactionCount", json!([transaction["from"], "latest"])).await, "0x0");
}

#[tokio::test]
async fn logs_of_blocks_that_were_taken_back_are_reported_as_removed() {
    let node = Node::start().await;
    let logger = node.deploy(0, &LOGGER).await;
    let snapshot = node.ask("evm_snapshot", json!([])).await;
    let mut socket = WebSocket::open(&node).await;
    socket.subscribe(json!(["logs", {"address": logger}])).await;
    let filter = node.ask("eth_newFilter", json!([{"address": logger}])).await;
    let unread = node.ask("eth_newFilter", json!([{"address": logger}])).await;
    let mut gone = Vec::new();
    for nonce in 1..3 {
        let receipt = node.execute(nonce, TxKind::Call(logger), &[]).await;
        gone.push(receipt["logs"][0].clone());
        assert_eq!(socket.event().await.1, gone[gone.len() - 1]);
    }
    node.ask("eth_getFilterChanges", json!([filter])).await;
    assert_eq!(node.ask("evm_revert", json!([snapshot])).await, json!(true));
    let again = node.execute(1, TxKind::Call(logger), &[1]).await;

    let mut expected = gone.into_iter().rev().collect::<Vec<_>>();
    expected.iter_mut().for_each(|log| log["removed"] = json!(true));
    expected.push(again["logs"][0].clone());
    for log in &expected {
        assert_eq!(&socket.event().await.1, log);
    }
    assert_eq!(node.ask("eth_getFilterChanges", json!([filter])).await, json!(expected));
    // Who was never told of them is not told that they are gone.
    assert_eq!(node.ask("eth_getFilterChanges", json!([unread])).await, json!([again["logs"][0]]));
}

/// In a runtime of one thread the follower cannot run while the test floods the pool, so it falls behind for sure.
#[tokio::test]
async fn who_falls_too_far_behind_is_told_and_not_served_with_a_gap() {
    let never = BlockTime::Interval(Duration::from_secs(86_400));
    let node = Node::with(Config { block_time: never, ..Config::dev() }).await;
    let mut socket = WebSocket::open(&node).await;
    let id = socket.subscribe(json!(["newPendingTransactions"])).await;
    let filter = node.ask("eth_newPendingTransactionFilter", json!([])).await;
    for i in 0..ARRIVALS_KEPT as u64 + 1 {
        let raw = node.signed_by((i % 4) as usize, i / 4, TxKind::Call(Address::ZERO), &[]);
        node.ledger.submit(&raw).expect("there is room");
    }
    let event = socket.receive().await.expect("an event");
    assert_eq!(event["params"]["subscription"], json!(id));
    let why = event["params"]["error"].as_str().unwrap_or_else(|| panic!("{event}"));
    assert!(why.contains("more than 4096 transactions arrived"), "{why}");
    let (code, message) = node.refusal("eth_getFilterChanges", json!([filter])).await;
    assert!(code == -32_000 && message.contains("more than 4096 transactions arrived"), "{code} {message}");
    let (_, message) = node.refusal("eth_getFilterChanges", json!([filter])).await;
    assert!(message.starts_with("filter not found"), "{message}");
    // The connection is as good as before.
    socket.subscribe(json!(["newPendingTransactions"])).await;
    let raw = node.signed_by(5, 0, TxKind::Call(Address::ZERO), &[]);
    let hash = node.ask("eth_sendRawTransaction", json!([raw])).await;
    assert_eq!(socket.event().await.1, hash);
}

#[tokio::test]
async fn an_access_list_names_what_a_call_touches_and_makes_it_cheaper_to_touch() {
    let node = Node::start().await;
    let reader = node.deploy(0, &READER).await;
    let caller = node.ledger.dev_accounts()[0].address;
    let slot = "0x0000000000000000000000000000000000000000000000000000000000000005";
    let answer = node.ask("eth_createAccessList", json!([{"from": caller, "to": reader}])).await;
    assert_eq!(answer["accessList"], json!([{"address": reader, "storageKeys": [slot]}]));
    assert!(answer.get("error").is_none(), "{answer}");
    // 21,000, the list (2,400 + 1,900), PUSH1, a warm SLOAD (100) and POP.
    assert_eq!(answer["gasUsed"], json!("0x633d"));
    let plain = node.ask("eth_createAccessList", json!([{"from": caller, "to": Address::repeat_byte(9)}])).await;
    assert_eq!(plain, json!({"accessList": [], "gasUsed": "0x5208"}));
    // A call that reverts has a list too, and the reason.
    let usdh = node.ledger.deployment().usdh;
    let transfer = hex!("a9059cbb" "0000000000000000000000000000000000000000000000000000000000000001" "00000000000000000000000000000000000000000000000000000000000000ff");
    let call = json!([{"from": Address::repeat_byte(9), "to": usdh, "input": Bytes::from(transfer)}]);
    let answer = node.ask("eth_createAccessList", call).await;
    assert_eq!(answer["accessList"][0]["address"], json!(usdh));
    assert!(answer["error"].as_str().is_some_and(|error| error.starts_with("execution reverted")), "{answer}");
}

#[tokio::test]
async fn browsers_may_ask_a_developer_chain_on_loopback_and_no_other() {
    for dev in [true, false] {
        let node = Node::with(Config { dev, heartbeat: None, ..Config::dev() }).await;
        for head in [
            "OPTIONS / HTTP/1.1\r\naccess-control-request-method: POST\r\n",
            "POST / HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: 2\r\n",
        ] {
            let mut socket = node.connect().await;
            let request =
                format!("{head}host: localhost\r\norigin: https://wallet.example\r\nconnection: close\r\n\r\n{{}}");
            socket.write_all(request.as_bytes()).await.expect("sent");
            let answer = read_all(&mut socket).await;
            assert_eq!(answer.contains("access-control-allow-origin: *"), dev, "{head}: {answer}");
        }
    }
}

/// What is wrong with a request, and the code and words that say so.
#[tokio::test]
async fn hostile_input_gets_a_clear_error_and_the_node_goes_on() {
    let node = Node::start().await;
    for _ in 0..5 {
        node.ask("anvil_mine", json!([10_000])).await;
    }
    let call = |method: &str, params: Value| {
        json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string().into_bytes()
    };
    let long = format!("0x{}", "f".repeat(65));
    let addresses = (0..5_000u64).map(|i| Address::left_padding_from(&i.to_be_bytes())).collect::<Vec<_>>();
    let topics = (0..5_000u64).map(U256::from).map(B256::from).collect::<Vec<_>>();
    let nobody = Address::ZERO;
    let cases: Vec<(&str, Vec<u8>, i64, &str)> = vec![
        ("nothing", b"".to_vec(), -32_700, "Parse error"),
        ("no JSON", b"get me a block".to_vec(), -32_700, "Parse error"),
        ("cut JSON", br#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId""#.to_vec(), -32_700, "Parse error"),
        ("not UTF-8", b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"\xff\xfe\"}".to_vec(), -32_600, "Invalid request"),
        ("no request", b"{}".to_vec(), -32_700, "Parse error"),
        ("an empty batch", b"[]".to_vec(), -32_600, "Invalid request"),
        ("a wrong version", br#"{"jsonrpc":"1.0","id":1,"method":"eth_chainId"}"#.to_vec(), -32_600, "Invalid request"),
        ("deep nesting", "[".repeat(100_000).into_bytes(), -32_700, "Parse error"),
        (
            "deep nesting in parameters",
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"eth_call","params":{}{}}}"#,
                "[".repeat(5_000),
                "]".repeat(5_000)
            )
            .into_bytes(),
            -32_602,
            "Invalid params",
        ),
        ("an unknown method", call("eth_mining", json!([])), -32_601, "Method not found"),
        ("proofs", call("eth_getProof", json!([nobody, [], "latest"])), -32_601, "Method not found"),
        ("somebody else's keys", call("eth_sendTransaction", json!([{}])), -32_601, "Method not found"),
        ("parameters that are no list", call("eth_getBalance", json!("latest")), -32_602, "Invalid params"),
        ("no parameters", call("eth_getBalance", json!([])), -32_602, "Invalid params"),
        ("a wrong type", call("eth_getBalance", json!([true])), -32_602, "Invalid params"),
        ("an address that is short", call("eth_getBalance", json!(["0x00"])), -32_602, "Invalid params"),
        ("an object for a number", call("eth_getBlockByNumber", json!([{"a": 1}, false])), -32_602, "Invalid params"),
        ("a negative number", call("eth_getBlockByNumber", json!(["-0x1", false])), -32_602, "Invalid params"),
        (
            "more than 64 bits",
            call("eth_getBlockByNumber", json!(["0x10000000000000000", false])),
            -32_602,
            "Invalid params",
        ),
        ("more than 256 bits", call("eth_getStorageAt", json!([nobody, long])), -32_602, "Invalid params"),
        ("no hexadecimal", call("eth_sendRawTransaction", json!(["0xzz"])), -32_602, "Invalid params"),
        ("odd digits", call("eth_sendRawTransaction", json!(["0x123"])), -32_602, "Invalid params"),
        ("no transaction", call("eth_sendRawTransaction", json!(["0x02c0"])), -32_000, "not a signed transaction"),
        (
            "state overrides",
            call("eth_call", json!([{}, "latest", {nobody.to_string(): {"balance": "0x1"}}])),
            -32_602,
            "overrides are not supported",
        ),
        ("old state", call("eth_call", json!([{"to": nobody}, "0x1"])), -32_000, "the state of block 1 is not kept"),
        (
            "a block to come",
            call("eth_getBalance", json!([nobody, "0xffffffffffffffff"])),
            -32_000,
            "there is no block",
        ),
        (
            "a huge range",
            call("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "latest"}])),
            -32_005,
            "is too wide",
        ),
        (
            "a range that is backwards",
            call("eth_getLogs", json!([{"fromBlock": "0x9", "toBlock": "0x1"}])),
            -32_602,
            "the range is empty",
        ),
        ("many addresses", call("eth_getLogs", json!([{"address": addresses}])), -32_005, "5000 alternatives"),
        ("many topics", call("eth_newFilter", json!([{"topics": [null, topics]}])), -32_005, "5000 alternatives"),
        (
            "topics that no log has",
            call("eth_getLogs", json!([{"topics": [null, null, null, null, null]}])),
            -32_602,
            "Invalid params",
        ),
        (
            "a filter of one block",
            call("eth_newFilter", json!([{"blockHash": B256::ZERO}])),
            -32_602,
            "a filter follows the chain",
        ),
        ("an unknown filter", call("eth_getFilterChanges", json!(["0x1"])), -32_000, "filter not found"),
        ("a filter with a long name", call("eth_getFilterChanges", json!([long])), -32_602, "Invalid params"),
        (
            "all blocks' fees",
            call("eth_feeHistory", json!(["0xffffffffffffffffff", "latest", []])),
            -32_602,
            "is too large",
        ),
        (
            "many percentiles",
            call("eth_feeHistory", json!([1, "latest", (0..101).collect::<Vec<_>>()])),
            -32_602,
            "percentiles",
        ),
        ("percentiles that fall", call("eth_feeHistory", json!([1, "latest", [50, 10]])), -32_602, "percentiles"),
        ("many blocks", call("anvil_mine", json!([u64::MAX / 2])), -32_005, "at most 10000"),
        (
            "gas without end",
            call("eth_estimateGas", json!([{"to": nobody, "gas": "0xffffffffffffffff", "value": U256::MAX}])),
            -32_000,
            "funds",
        ),
        (
            "subscribing without a socket",
            call("eth_subscribe", json!(["newHeads"])),
            -32_601,
            "subscriptions need a WebSocket",
        ),
        ("another kind of transaction", call("eth_call", json!([{"type": "0x3"}])), -32_602, "blob and set-code"),
    ];
    let mut wrong = Vec::new();
    for (name, body, code, words) in cases {
        let (status, answer) = node.post(&body).await;
        let message = answer["error"]["message"].as_str().unwrap_or_default();
        if answer["error"]["code"] != json!(code) || !message.contains(words) {
            wrong.push(format!("{name}: {status} {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    node.is_well().await;
}

#[tokio::test]
async fn bodies_and_batches_have_limits() {
    let node = Node::start().await;
    let request = r#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#;
    let batch = |n: usize| format!("[{}]", vec![request; n].join(",")).into_bytes();
    let (_, answer) = node.post(&batch(1_000)).await;
    assert_eq!(answer.as_array().map(Vec::len), Some(1_000));
    let (code, message) = refusal(&node.post(&batch(1_001)).await.1);
    assert!(code == -32_010 && message.contains("batch request was too large"), "{code} {message}");
    // Half right, half wrong: each gets its own answer.
    let mixed = format!(r#"[{request}, 7, {{"jsonrpc":"2.0","id":2,"method":"nope"}}]"#);
    let codes = node.post(mixed.as_bytes()).await.1;
    let codes = codes.as_array().expect("a batch").iter().map(|answer| answer["error"]["code"].clone());
    assert_eq!(codes.collect::<Vec<_>>(), [Value::Null, json!(-32_600), json!(-32_601)]);

    let (status, _) = node.post(&vec![b' '; 3 * 1024 * 1024]).await;
    assert_eq!(status, 413);
    let mut socket = WebSocket::open(&node).await;
    socket.send(&vec![b' '; 3 * 1024 * 1024]).await.expect("sent");
    let (code, message) = refusal(&socket.receive().await.expect("an answer"));
    assert!(code == -32_007 && message.contains("too big"), "{code} {message}");
    node.is_well().await;
}

#[tokio::test]
async fn wrong_subscriptions_are_refused_and_many_too() {
    let node = Node::start().await;
    let mut socket = WebSocket::open(&node).await;
    for (params, words) in [
        (json!([]), "Invalid params"),
        (json!(["newheads"]), "there is no subscription `newheads`"),
        (json!(["syncing"]), "there is no subscription `syncing`"),
        (json!(["logs", 7]), "the options of `logs` are wrong"),
        (json!(["logs", {"address": "0x1"}]), "the options of `logs` are wrong"),
        (json!(["newPendingTransactions", {}]), "only true or false"),
    ] {
        let (code, message) = refusal(&socket.answer("eth_subscribe", params.clone()).await);
        assert!(code == -32_602 && message.contains(words), "{params}: {code} {message}");
    }
    for _ in 0..64 {
        socket.subscribe(json!(["newHeads"])).await;
    }
    let (code, message) = refusal(&socket.answer("eth_subscribe", json!(["newHeads"])).await);
    assert!(code == -32_006 && message.contains("Too many subscriptions"), "{code} {message}");
    // The others are served.
    node.deploy(0, &LOGGER).await;
    for _ in 0..64 {
        assert_eq!(socket.event().await.1["number"], "0x1");
    }
    node.is_well().await;
}

/// A client that sends and never reads costs a bounded amount: after a while nothing more is taken from it.
#[tokio::test]
async fn who_reads_no_answers_can_send_no_more_questions() {
    let node = Node::start().await;
    let logger = node.deploy(0, &LOGGER).await;
    for nonce in 1..40 {
        node.execute(nonce, TxKind::Call(logger), &[]).await;
    }
    let mut socket = WebSocket::open(&node).await;
    socket.subscribe(json!(["newHeads"])).await;
    let question = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getLogs", "params": [{"fromBlock": "0x0"}]});
    let questions = frame(question.to_string().as_bytes()).repeat(100);
    let mut sent = 0;
    // The socket takes no more when the buffers on both sides are full. Without a limit they would never be.
    loop {
        tokio::select! {
            biased;
            written = socket.socket.write(&questions) => sent += written.expect("the connection is open"),
            () = quiet(&node) => break,
        }
        assert!(sent < 256 << 20, "{sent} bytes of questions were taken without an answer being read");
    }
    // Others are served, and the chain goes on.
    node.execute(40, TxKind::Call(logger), &[]).await;
    node.is_well().await;
    // And if he reads after all, he is served too.
    assert!(socket.receive().await.is_some());
}

/// A while in which the server has time for everything else.
async fn quiet(node: &Node) {
    for _ in 0..50 {
        node.is_well().await;
    }
}
