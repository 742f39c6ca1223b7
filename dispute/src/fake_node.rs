//! A node in memory, for tests: it does what it is told, including what nodes should not do.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use alloy::consensus::{Transaction, TxEnvelope};
use alloy::eips::eip2718::Decodable2718;
use alloy::rpc::client::RpcClient;
use alloy::rpc::json_rpc::{ErrorPayload, RequestPacket, Response, ResponsePacket, ResponsePayload, SerializedRequest};
use alloy::transports::{TransportError, TransportErrorKind, TransportFut};
use alloy_primitives::{B256, Bytes, TxHash, keccak256};
use serde_json::{Value, json};

use crate::adjudicator::abi::IAdjudicator as contract;
use alloy_sol_types::{SolCall, SolValue};

/// The node; clones are the same one.
#[derive(Clone)]
pub(crate) struct FakeNode(Arc<Mutex<State>>);

pub(crate) struct State {
    pub(crate) chain_id: u64,
    /// Code of every address.
    pub(crate) code: Bytes,
    /// What the adjudicator says is its domain.
    pub(crate) separator: Option<B256>,
    /// Whether a transaction is mined when it comes in.
    pub(crate) automine: bool,
    /// Takes that many transactions without answering.
    pub(crate) silent: usize,
    /// Refuses that many transactions with these words.
    pub(crate) rejects: Vec<&'static str>,
    /// What estimates revert with.
    pub(crate) reverts: Option<Bytes>,
    /// Whether it answers at all.
    pub(crate) dead: bool,
    /// Every transaction that came in: nonce, hash, most fee per gas.
    pub(crate) sent: Vec<(u64, TxHash, u128)>,
    pool: BTreeMap<u64, (TxHash, u128)>,
    blocks: Vec<Vec<TxHash>>,
    receipts: HashMap<TxHash, u64>,
    nonce: u64,
}

impl FakeNode {
    pub(crate) fn new() -> Self {
        FakeNode(Arc::new(Mutex::new(State {
            chain_id: 31_337,
            code: Bytes::from_static(&[1]),
            separator: None,
            automine: true,
            silent: 0,
            rejects: Vec::new(),
            reverts: None,
            dead: false,
            sent: Vec::new(),
            pool: BTreeMap::new(),
            blocks: vec![Vec::new()],
            receipts: HashMap::new(),
            nonce: 0,
        })))
    }

    pub(crate) fn client(&self) -> RpcClient {
        RpcClient::new(self.clone(), true)
    }

    /// Changes or reads its state.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().expect("no test panics while it holds the node"))
    }
}

impl State {
    /// Makes a block of everything that can be in it.
    pub(crate) fn mine(&mut self) {
        let number = self.blocks.len() as u64;
        let mut block = Vec::new();
        while let Some((hash, _)) = self.pool.remove(&self.nonce) {
            self.nonce += 1;
            self.receipts.insert(hash, number);
            block.push(hash);
        }
        self.blocks.push(block);
    }

    /// Takes the newest block back and forgets its transactions.
    pub(crate) fn take_back(&mut self) {
        for hash in self.blocks.pop().expect("a block") {
            self.receipts.remove(&hash);
            self.nonce -= 1;
        }
    }

    /// Lets another process use the next nonce.
    pub(crate) fn foreign_transaction(&mut self) {
        self.nonce += 1;
        self.pool.clear();
        self.blocks.push(Vec::new());
    }

    fn answer(&mut self, method: &str, params: &Value) -> Result<Value, ErrorPayload> {
        let quantity = |number: u64| json!(format!("{number:#x}"));
        match method {
            "eth_chainId" => Ok(quantity(self.chain_id)),
            "eth_getCode" => Ok(json!(self.code)),
            "eth_getBalance" => Ok(quantity(u64::MAX)),
            "eth_maxPriorityFeePerGas" => Ok(quantity(100)),
            "eth_estimateGas" => match &self.reverts {
                Some(data) => Err(error("execution reverted", Some(data))),
                None => Ok(quantity(50_000)),
            },
            "eth_call" => match self.separator {
                Some(separator) if params[0]["input"].as_str().is_some_and(is_separator_call) => {
                    Ok(json!(Bytes::from(separator.abi_encode())))
                }
                _ => Err(error("execution reverted", None)),
            },
            "eth_getTransactionCount" if params[1] == "pending" => {
                let waiting = (self.nonce..).take_while(|nonce| self.pool.contains_key(nonce)).count();
                Ok(quantity(self.nonce + waiting as u64))
            }
            "eth_getTransactionCount" => Ok(quantity(self.nonce)),
            "eth_getBlockByNumber" => Ok(self.block(self.blocks.len() as u64 - 1)),
            "eth_getTransactionReceipt" => Ok(self.receipt(&params[0])),
            "eth_sendRawTransaction" => self.take(&params[0]),
            other => panic!("the fake node does not know {other}"),
        }
    }

    fn take(&mut self, raw: &Value) -> Result<Value, ErrorPayload> {
        let raw: Bytes = serde_json::from_value(raw.clone()).expect("bytes");
        let tx = TxEnvelope::decode_2718(&mut raw.as_ref()).expect("a signed transaction");
        let (nonce, hash, fee) = (tx.nonce(), *tx.tx_hash(), tx.max_fee_per_gas());
        if let Some(words) = self.rejects.pop() {
            return Err(error(words, None));
        }
        if nonce < self.nonce {
            return Err(error("nonce too low", None));
        }
        if self.pool.get(&nonce).is_some_and(|(_, waiting)| fee < waiting + waiting / 10) {
            return Err(error("replacement transaction underpriced", None));
        }
        self.pool.insert(nonce, (hash, fee));
        self.sent.push((nonce, hash, fee));
        if self.automine {
            self.mine();
        }
        Ok(json!(hash))
    }

    fn block(&self, number: u64) -> Value {
        let mut block = alloy::rpc::types::Block::<TxHash>::default();
        block.header.hash = keccak256(number.to_be_bytes());
        block.header.inner.number = number;
        block.header.inner.base_fee_per_gas = Some(1_000);
        serde_json::to_value(block).expect("a block is plain data")
    }

    fn receipt(&self, hash: &Value) -> Value {
        let tx: TxHash = serde_json::from_value(hash.clone()).expect("a hash");
        let Some(number) = self.receipts.get(&tx) else { return Value::Null };
        json!({
            "type": "0x2", "status": "0x1", "cumulativeGasUsed": "0x5208", "gasUsed": "0x5208",
            "effectiveGasPrice": "0x1", "logs": [], "logsBloom": Bytes::from(vec![0; 256]), "transactionHash": tx,
            "transactionIndex": "0x0", "blockHash": keccak256(number.to_be_bytes()),
            "blockNumber": format!("{number:#x}"), "from": alloy_primitives::Address::ZERO,
            "to": alloy_primitives::Address::ZERO, "contractAddress": null,
        })
    }
}

impl tower::Service<RequestPacket> for FakeNode {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let RequestPacket::Single(request) = packet else { panic!("no batches are asked of the fake node") };
        let answer = self.with(|state| respond(state, &request));
        Box::pin(async move { answer })
    }
}

fn respond(state: &mut State, request: &SerializedRequest) -> Result<ResponsePacket, TransportError> {
    let gone = || Err(TransportErrorKind::custom_str("the line is dead"));
    if state.dead {
        return gone();
    }
    let params = request.params().map_or(Value::Null, |raw| serde_json::from_str(raw.get()).expect("JSON"));
    let answer = state.answer(request.method(), &params);
    if request.method() == "eth_sendRawTransaction" && state.silent > 0 {
        state.silent -= 1;
        return gone();
    }
    let payload = match answer {
        Ok(value) => ResponsePayload::Success(serde_json::value::to_raw_value(&value).expect("JSON")),
        Err(error) => ResponsePayload::Failure(error),
    };
    Ok(ResponsePacket::Single(Response { id: request.id().clone(), payload }))
}

fn error(message: &'static str, data: Option<&Bytes>) -> ErrorPayload {
    let data = data.map(|data| serde_json::value::to_raw_value(data).expect("JSON"));
    ErrorPayload { code: 3, message: message.into(), data }
}

fn is_separator_call(input: &str) -> bool {
    input == alloy_primitives::hex::encode_prefixed(contract::domainSeparatorCall::SELECTOR)
}
