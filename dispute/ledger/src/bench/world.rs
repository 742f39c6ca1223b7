//! The chain that a workload runs on: its state, its accounts, and blocks of signed transactions.

use std::sync::Arc;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::Encodable2718;
use alloy_primitives::map::AddressMap;
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, keccak256};
use alloy_sol_types::{SolCall, SolValue, sol};
use revm::context::TxEnv;
use revm::context_interface::result::ExecutionResult;
use revm::{DatabaseCommit, ExecuteEvm};
use secp256k1::{Message, PublicKey, SECP256K1, SecretKey};

use super::BenchError;
use crate::evm::{BlockContext, Checks, evm};
use crate::executor::{BlockOutput, Executor, Outcome, Sequential};
use crate::genesis::{self, AdjudicatorParameters, Deployment};
use crate::state::{AccountChange, Basic, ChangeSet, State};
use crate::transaction::Recovered;
use crate::{BASE_FEE_PER_GAS, Config};

/// Chain time of the first measured block; any moment does.
const TIME: u64 = 1_800_000_000;

/// The tip of every transaction: it is paid to the fee recipient, as on a real chain.
const TIP: u128 = 1_000_000_000;

/// What every funded account owns: a thousand coins.
const COINS: u128 = 1_000_000_000_000_000_000_000;

/// Gas of a transaction that prepares the state. Nobody pays for it.
const SETUP_GAS: u64 = 100_000_000;

sol! {
    /// The part of the token that the workloads use.
    interface Token {
        function mint(address to, uint256 amount);
        function transfer(address to, uint256 amount);
        function approve(address spender, uint256 amount);
    }
}

/// An account whose key we have.
#[derive(Debug, Clone, Copy)]
pub struct Actor {
    /// Its address.
    pub address: Address,
    secret: SecretKey,
}

impl Actor {
    /// The account of a number, the same in every run.
    pub fn new(number: u64) -> Self {
        let secret = keccak256(("payhub bench account", number).abi_encode());
        let secret = SecretKey::from_byte_array(secret.0).expect("a hash is below the order, but for one in 2^127");
        let key = PublicKey::from_secret_key(SECP256K1, &secret).serialize_uncompressed();
        Self { address: Address::from_raw_public_key(&key[1..]), secret }
    }

    /// Its signature over a digest.
    pub fn sign(&self, digest: B256) -> Signature {
        let (id, compact) =
            SECP256K1.sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.secret).serialize_compact();
        Signature::from_bytes_and_parity(&compact, i32::from(id) & 1 == 1)
    }
}

/// The first `count` accounts with keys, made once for all workloads.
#[derive(Debug, Default)]
pub struct Actors(Vec<Actor>);

impl Actors {
    /// At least `count` of them.
    pub fn first(&mut self, count: usize) -> &[Actor] {
        for number in self.0.len()..count {
            self.0.push(Actor::new(number as u64));
        }
        &self.0[..count]
    }
}

/// An address that nobody has the key of.
pub fn stranger(what: &str, number: u64) -> Address {
    Address::from_slice(&keccak256((what, number).abi_encode())[12..])
}

/// Who sent a transaction that concerns a channel, and the channel's shard: transactions that differ in both must not
/// share a key that one of them writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// The shard of the channel.
    pub shard: u64,
    /// The sender.
    pub submitter: Address,
}

/// A transaction before it is signed.
#[derive(Debug, Clone)]
pub struct Order {
    /// Who sends it.
    pub from: Actor,
    /// Whom it calls.
    pub to: Address,
    /// Coins that go along.
    pub value: u64,
    /// The call.
    pub data: Bytes,
    /// Its gas limit.
    pub gas_limit: u64,
    /// The shard, for calls that concern one channel.
    pub shard: Option<u64>,
}

/// A block to measure, with everything that belongs to it.
#[derive(Debug)]
pub struct PreparedBlock {
    /// Its environment.
    pub context: BlockContext,
    /// The state before it.
    pub state: State,
    /// Its transactions.
    pub transactions: Vec<Arc<Recovered>>,
    /// What concerns a channel.
    pub groups: Vec<Option<Group>>,
    /// What the sequential executor makes of it, with the access list.
    pub expected: BlockOutput,
}

/// A chain in the making.
#[derive(Debug)]
pub struct World {
    /// The state now.
    pub state: State,
    /// Where the contracts are.
    pub deployment: Deployment,
    context: BlockContext,
    block_gas: u64,
    nonces: AddressMap<u64>,
}

impl World {
    /// A chain with our contracts on it, blocks of at most `block_gas`, the adjudicator with `shards` vaults.
    pub fn new(shards: u16, block_gas: u64) -> Result<Self, BenchError> {
        let adjudicator = Some(AdjudicatorParameters { shards, ..AdjudicatorParameters::DEV });
        let record = genesis::create(&Config { adjudicator, ..Config::dev() })?;
        let mut state = State::default();
        state.apply(&record.changes);
        let context = BlockContext {
            chain_id: record.deployment.chain_id,
            number: 1,
            timestamp: TIME,
            fee_recipient: stranger("fee recipient", 0),
            gas_limit: block_gas,
            base_fee: BASE_FEE_PER_GAS,
            prev_randao: B256::ZERO,
        };
        Ok(Self { state, deployment: record.deployment, context, block_gas, nonces: AddressMap::default() })
    }

    /// Chain time of the next block.
    pub fn time(&self) -> u64 {
        self.context.timestamp
    }

    /// Lets time pass before the next block.
    pub fn pass(&mut self, seconds: u64) {
        self.context.timestamp += seconds;
    }

    /// What a contract answers to a call that changes nothing.
    pub fn ask(&self, what: &'static str, to: Address, data: Vec<u8>) -> Result<Bytes, BenchError> {
        let context = BlockContext { base_fee: 0, ..self.context.clone() };
        let gas_limit = self.block_gas;
        let tx = TxEnv { kind: TxKind::Call(to), data: data.into(), gas_limit, gas_price: 0, ..TxEnv::default() };
        let done = evm(&context, &self.state, Checks::Call).transact(tx);
        match done.map(|done| done.result) {
            Ok(ExecutionResult::Success { output, .. }) => Ok(output.into_data()),
            Ok(other) => Err(BenchError::Setup { what, why: format!("{other:?}") }),
            Err(error) => Err(BenchError::Setup { what, why: error.to_string() }),
        }
    }

    /// Gives accounts coins.
    pub fn fund(&mut self, accounts: impl IntoIterator<Item = Address>) {
        let mut changes = ChangeSet::default();
        for address in accounts {
            let basic = Basic { balance: U256::from(COINS), ..self.state.basic(&address) };
            let change = AccountChange { basic: Some(basic), storage_reset: false, slots: Default::default() };
            changes.accounts.insert(address, change);
        }
        self.state.apply(&changes);
    }

    /// Gives accounts test dollars.
    pub fn mint(&mut self, accounts: impl IntoIterator<Item = Address>, amount: u64) -> Result<(), BenchError> {
        let (faucet, usdh) = (Config::dev().faucet_account(), self.deployment.usdh);
        let call = |to| (faucet, TxKind::Call(usdh), Token::mintCall { to, amount: U256::from(amount) }.abi_encode());
        self.setup("minting test dollars", accounts.into_iter().map(call))
    }

    /// Runs calls that prepare the state, unsigned and unpaid.
    pub fn setup(
        &mut self,
        what: &'static str,
        calls: impl IntoIterator<Item = (Address, TxKind, Vec<u8>)>,
    ) -> Result<(), BenchError> {
        let context = BlockContext { base_fee: 0, gas_limit: SETUP_GAS, ..self.context.clone() };
        let changes = {
            let mut evm = evm(&context, &self.state, Checks::Call);
            for (caller, kind, data) in calls {
                let data = data.into();
                let tx = TxEnv { caller, kind, data, gas_limit: SETUP_GAS, gas_price: 0, ..TxEnv::default() };
                let done = evm.transact(tx).map_err(|e| BenchError::Setup { what, why: e.to_string() })?;
                if !matches!(done.result, ExecutionResult::Success { .. }) {
                    return Err(BenchError::Setup { what, why: format!("{:?}", done.result) });
                }
                evm.ctx.journaled_state.database.commit(done.state);
            }
            evm.ctx.journaled_state.database.changes()
        };
        self.state.apply(&changes);
        Ok(())
    }

    /// Deploys a contract; `code` is the creation code with its arguments.
    pub fn deploy(&mut self, what: &'static str, code: Vec<u8>) -> Result<Address, BenchError> {
        let deployer = stranger("deployer", 0);
        let address = deployer.create(self.state.basic(&deployer).nonce);
        self.setup(what, [(deployer, TxKind::Create, code)])?;
        Ok(address)
    }

    /// Signs the transactions, makes blocks of them in their order and executes these one after the other.
    /// Every transaction must succeed: a workload of failures measures nothing.
    pub fn blocks(&mut self, orders: &[Order]) -> Result<Vec<PreparedBlock>, BenchError> {
        let mut blocks = Vec::new();
        let mut rest = orders;
        while !rest.is_empty() {
            let mut room = self.block_gas;
            let fitting = rest.iter().take_while(|order| {
                let fits = order.gas_limit <= room;
                room = room.saturating_sub(order.gas_limit);
                fits
            });
            let (now, later) = rest.split_at(fitting.count().max(1));
            blocks.push(self.block(now)?);
            rest = later;
        }
        Ok(blocks)
    }

    fn block(&mut self, orders: &[Order]) -> Result<PreparedBlock, BenchError> {
        let transactions = orders.iter().map(|order| self.sign(order).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
        let group = |order: &Order| order.shard.map(|shard| Group { shard, submitter: order.from.address });
        let groups = orders.iter().map(group).collect();
        let (context, state) = (self.context.clone(), self.state.clone());
        let list = transactions.iter().map(Arc::as_ref).collect::<Vec<_>>();
        let expected = Sequential::new().with_access_list(true).execute(&context, &list, &state)?;
        for (index, outcome) in expected.outcomes.iter().enumerate() {
            let why = match outcome {
                Outcome::Skipped(reason) => reason.to_string(),
                // Nothing before it was skipped, so its receipt stands at its own place.
                Outcome::Executed if !expected.receipts[index].success => "it reverted".to_owned(),
                Outcome::Executed => continue,
            };
            return Err(BenchError::Failed { number: context.number, index, why });
        }
        self.state.apply(&expected.changes);
        self.context.number += 1;
        self.context.timestamp += 1;
        Ok(PreparedBlock { context, state, transactions, groups, expected })
    }

    fn sign(&mut self, order: &Order) -> Result<Recovered, BenchError> {
        let state = &self.state;
        let sender = order.from.address;
        let nonce = self.nonces.entry(sender).or_insert_with(|| state.basic(&sender).nonce);
        let tx = TxEip1559 {
            chain_id: self.context.chain_id,
            nonce: *nonce,
            gas_limit: order.gas_limit,
            max_fee_per_gas: u128::from(self.context.base_fee) + TIP,
            max_priority_fee_per_gas: TIP,
            to: TxKind::Call(order.to),
            value: U256::from(order.value),
            input: order.data.clone(),
            ..TxEip1559::default()
        };
        *nonce += 1;
        let signature = order.from.sign(tx.signature_hash());
        let raw = TxEnvelope::from(tx.into_signed(signature)).encoded_2718();
        Recovered::decode(&raw.into(), self.context.chain_id)
            .map_err(|e| BenchError::Setup { what: "signing a transaction", why: e.to_string() })
    }
}
