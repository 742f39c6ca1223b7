//! Chains to run the contract on: the embedded ledger in this process, and `anvil`, an EVM node that is not ours.
//!
//! A [`World`] is a fresh chain with an adjudicator, a test dollar and a few people who have both coins and dollars. Both
//! kinds of chain are reached through the same code, so a story is told once and run on each. Every world is alone on
//! its chain: stories move its clock as they like, and what a vault holds is what the story put there.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::Encodable2718;
use alloy::providers::Provider;
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolCall;
use dispute::adjudicator::{Adjudicator, LedgerBooks};
use dispute::chain::Mined;
use dispute::{AccountKey, Call, Chain, ChainError, Order, Refusal, Submitter, SubmitterConfig, artifacts};
use ledger::{AdjudicatorParameters, Ledger};
use proto::{AccountId, Asset, Domain, Scheme};
use serde_json::{Value, json};

/// The chain id of every world that does not ask for another: the one that the golden vectors are signed for, which is also anvil's own.
pub const CHAIN_ID: u64 = 31_337;

/// How the adjudicator of a world is deployed. Two vaults are enough to tell "the same" from "another".
pub const PARAMETERS: AdjudicatorParameters = AdjudicatorParameters { shards: 2, ..AdjudicatorParameters::DEV };

/// Dollars that each person starts with, in base units.
pub const DOLLARS: u128 = ledger::genesis::DEV_USDH;

/// A chain with contracts and people on it.
pub struct World {
    node: Node,
    chain: Chain,
    submitter: Submitter,
    usdh: Asset,
    scheme: Scheme,
    people: Vec<AccountKey>,
}

enum Node {
    Embedded(Ledger),
    /// Kept for its end.
    Anvil {
        _process: Anvil,
    },
}

/// A running `anvil`; it ends with this value.
struct Anvil {
    process: Child,
    url: String,
}

/// Who is on a chain. Everybody starts with coins and [`DOLLARS`]; hub, Alice and Bob let the adjudicator take dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Person {
    /// Somebody who is party to nothing; it mints the dollars and sends what anybody may send.
    Anyone = 0,
    /// The hub's payout account.
    Hub,
    /// A member.
    Alice,
    /// Another member.
    Bob,
    /// An adversary.
    Mallory,
    /// The adversary's second account.
    Crony,
}

impl World {
    /// The embedded ledger, in memory; voucher keys are of `scheme`.
    pub async fn embedded(scheme: Scheme) -> World {
        // Without a heartbeat the clock moves only when a story makes a block.
        let config = ledger::Config {
            chain_id: Some(CHAIN_ID),
            adjudicator: Some(PARAMETERS),
            heartbeat: None,
            ..ledger::Config::dev()
        };
        let ledger = Ledger::start(config).await.expect("a ledger in memory starts");
        let deployment = ledger.deployment();
        let domain = Domain::new(CHAIN_ID, deployment.adjudicator);
        let chain = Chain::over(ledger.rpc_client(), "the embedded ledger", domain, 0);
        World::with(Node::Embedded(ledger), chain, deployment.usdh, scheme).await
    }

    /// A fresh anvil; voucher keys are of scheme 2, because only the embedded ledger verifies scheme 1.
    pub async fn anvil() -> World {
        World::anvil_with_id(CHAIN_ID).await
    }

    /// A fresh anvil with an id of its own.
    pub async fn anvil_with_id(chain_id: u64) -> World {
        let anvil = Anvil::start(chain_id);
        let nowhere = Chain::connect(&anvil.url, Domain::new(chain_id, Address::ZERO), 0).expect("a loopback URL");
        let deployer = Submitter::new(nowhere, people(), SubmitterConfig::local());
        let AdjudicatorParameters { challenge_period_min_s, challenge_period_max_s, shards } = PARAMETERS;
        let faucet = people()[Person::Anyone as usize].address();
        let usdh = create(&deployer, artifacts::test_dollar_creation(faucet)).await;
        let parameters =
            artifacts::Deployment { challenge_period_min_s, challenge_period_max_s, shards, home_asset: usdh };
        let adjudicator = create(&deployer, artifacts::adjudicator_creation(&parameters)).await;
        let chain = Chain::connect(&anvil.url, Domain::new(chain_id, adjudicator), 0).expect("a loopback URL");
        let world = World::with(Node::Anvil { _process: anvil }, chain, usdh, Scheme::Secp256k1).await;
        for person in &world.people {
            world.send(faucet, world.chain.mint(usdh, person.address(), U256::from(DOLLARS))).await;
        }
        world
    }

    async fn with(node: Node, chain: Chain, usdh: Asset, scheme: Scheme) -> World {
        chain.check().await.expect("the chain is the right one");
        let submitter = Submitter::new(chain.clone(), people(), SubmitterConfig::local());
        let world = World { node, chain, submitter, usdh, scheme, people: people() };
        for person in [Person::Hub, Person::Alice, Person::Bob] {
            world.send(world.address(person), world.chain.approve(usdh, U256::MAX)).await;
        }
        world
    }

    /// The chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Builds calls of the adjudicator.
    pub fn adjudicator(&self) -> &Adjudicator {
        self.chain.adjudicator()
    }

    /// The domain that everything is signed in.
    pub fn domain(&self) -> Domain {
        *self.chain.domain()
    }

    /// The test dollar.
    pub fn usdh(&self) -> Asset {
        self.usdh
    }

    /// The scheme of the voucher keys of this world.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The embedded ledger, if this is one: it alone verifies Ed25519.
    pub fn ledger(&self) -> Option<&Ledger> {
        match &self.node {
            Node::Embedded(ledger) => Some(ledger),
            Node::Anvil { .. } => None,
        }
    }

    /// Sends transactions of every person.
    pub fn submitter(&self) -> &Submitter {
        &self.submitter
    }

    /// A person's key.
    pub fn key(&self, person: Person) -> &AccountKey {
        &self.people[person as usize]
    }

    /// A person's address.
    pub fn address(&self, person: Person) -> Address {
        self.key(person).address()
    }

    /// Sends a call that must succeed, and waits for its block.
    pub async fn send(&self, from: Address, call: Call) -> Mined {
        let outcome = self.submitter.submit(Order::new(call).from(from)).await;
        outcome.mined().unwrap_or_else(|why| panic!("a call that must succeed failed: {why}"))
    }

    /// Sends a call in a block of exactly that time, without asking the node first; whether it succeeded.
    pub async fn succeeds_at(&self, time_s: u64, from: Person, call: &Call) -> bool {
        let account = ledger::genesis::dev_accounts()[from as usize];
        let signer = PrivateKeySigner::from_slice(&account.secret).expect("developer keys are keys");
        let tx = TxEip1559 {
            chain_id: self.chain.chain_id(),
            nonce: self.chain.nonce(account.address).await.expect("the chain answers"),
            gas_limit: 2_000_000,
            max_fee_per_gas: 10_000_000_000,
            max_priority_fee_per_gas: 1_000_000_000,
            to: call.to,
            value: call.value,
            access_list: Default::default(),
            input: call.data.clone(),
        };
        let signature = signer.sign_hash_sync(&tx.signature_hash()).expect("a local secret signs");
        let raw = TxEnvelope::from(tx.into_signed(signature)).encoded_2718();
        self.rpc("evm_setNextBlockTimestamp", json!([time_s])).await;
        let sent = self.chain.provider().send_raw_transaction(&raw).await.expect("the chain answers");
        let receipt = sent.get_receipt().await.expect("it is mined");
        let block = receipt.block_number.expect("it is in a block");
        let block = self.chain.block(block).await.expect("the chain answers").expect("it is on the chain");
        assert_eq!(block.time_s, time_s, "the chain's clock obeys");
        receipt.status()
    }

    /// Asks what a call would do that must be refused; says what with.
    pub async fn refusal(&self, from: Address, call: &Call) -> Refusal {
        match self.chain.simulate(from, call).await {
            Ok(data) => panic!("a call that must be refused answers {data}"),
            Err(ChainError::Refused { refusal, .. }) => refusal,
            Err(error) => panic!("a call that must be refused failed otherwise: {error}"),
        }
    }

    /// Calls a view.
    pub async fn view<C: SolCall>(&self, to: Address, call: &C) -> C::Return {
        let call = Call::of(to, U256::ZERO, call.abi_encode().into());
        let data = self.chain.simulate(self.address(Person::Anyone), &call).await.expect("views refuse nothing");
        C::abi_decode_returns(&data).expect("the ABI is the contract's")
    }

    /// The books of an account.
    pub async fn books(&self, account: &AccountId) -> LedgerBooks {
        self.chain.books(account).await.expect("the chain answers")
    }

    /// What an address owns.
    pub async fn balance(&self, asset: Asset, owner: Address) -> U256 {
        self.chain.balance(asset, owner).await.expect("the chain answers")
    }

    /// Chain time in seconds.
    pub async fn now_s(&self) -> u64 {
        self.chain.head().await.expect("the chain answers").time_s
    }

    /// Lets time pass; the newest block is younger than before by at least that much.
    pub async fn pass(&self, seconds: u64) {
        self.rpc("evm_increaseTime", json!([seconds])).await;
        self.rpc("evm_mine", json!([])).await;
    }

    /// Puts runtime code at an address.
    pub async fn set_code(&self, address: Address, code: &Bytes) {
        self.rpc("anvil_setCode", json!([address, code])).await;
    }

    /// Gives an address coins.
    pub async fn set_balance(&self, address: Address, wei: U256) {
        self.rpc("anvil_setBalance", json!([address, wei])).await;
    }

    /// Asks the node for something that only developer chains do.
    pub async fn rpc(&self, method: &'static str, params: Value) -> Value {
        let answer = self.chain.provider().raw_request(method.into(), params).await;
        answer.unwrap_or_else(|error| panic!("{method}: {error}"))
    }
}

fn people() -> Vec<AccountKey> {
    let secrets = ledger::genesis::dev_accounts().into_iter().take(Person::Crony as usize + 1);
    secrets.map(|account| AccountKey::from_secret(&account.secret).expect("developer keys are keys")).collect()
}

async fn create(submitter: &Submitter, code: Bytes) -> Address {
    // Always the same sender: a contract's address follows from who deployed it, and is to be the same on every chain.
    let order = Order::new(Call::create(code)).from(submitter.addresses()[Person::Anyone as usize]);
    let mined = submitter.submit(order).await.mined().expect("a contract can be deployed");
    mined.created.expect("a creation names its address")
}

impl Anvil {
    /// Starts the native binary, because the wrapper that npm installs beside it would be killed in its place.
    fn start(chain_id: u64) -> Anvil {
        let binary = binary().unwrap_or_else(|| {
            panic!("anvil is not in tests/node_modules: run tests/run once, which installs it");
        });
        let mut command = Command::new(binary);
        command.args(["--host", "127.0.0.1", "--port", "0", "--hardfork", "cancun"]);
        command.args(["--chain-id", &chain_id.to_string()]);
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("anvil can be started");
        let lines = BufReader::new(process.stdout.take().expect("it was asked for")).lines();
        let (found, url) = mpsc::channel();
        // The reader goes on to the end, or anvil would wait for room in the pipe.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("Listening on ") {
                    // The receiver is gone only when the test is over.
                    let _ = found.send(format!("http://{}", address.trim()));
                }
            }
        });
        let mut anvil = Anvil { process, url: String::new() };
        anvil.url = url.recv().expect("anvil says where it listens");
        anvil
    }
}

impl Drop for Anvil {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to stop.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The native binary in the package for this machine: its folder is named after system and processor.
fn binary() -> Option<PathBuf> {
    let packages = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("node_modules/@foundry-rs");
    let folders = std::fs::read_dir(packages).ok()?.filter_map(Result::ok);
    let native = folders.filter(|folder| folder.file_name().to_string_lossy().starts_with("anvil-"));
    native.map(|folder| folder.path().join("bin/anvil")).find(|path| path.is_file())
}
