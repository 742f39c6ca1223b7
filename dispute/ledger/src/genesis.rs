//! What a chain starts from: accounts from a file, developer accounts, and the contracts every payhub ledger has.
//!
//! Contracts are deployed by running their constructors in block 0, never by copying `deployedBytecode`, whose
//! immutable values are zero. A chain that is not for development draws a random chain id. Every chain draws a
//! random `mixHash` for block 0, so two chains never share a genesis hash, developer chains included; a store that
//! remembers the genesis hash notices when its chain was replaced.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use alloy::consensus::Header;
use alloy::signers::local::PrivateKeySigner;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, address, b256, hex, keccak256};
use alloy_sol_types::{SolCall, SolValue, sol};
use revm::context::TxEnv;
use revm::context_interface::result::ExecutionResult;
use revm::{DatabaseCommit, ExecuteEvm};
use serde::{Deserialize, Serialize};

use crate::block::{empty_header, encode_header};
use crate::clock::wall_clock;
use crate::evm::{BlockContext, Checks, ED25519_PRECOMPILE, evm};
use crate::state::{AccountChange, Basic, ChangeSet, State};
use crate::{Config, Error};

/// The chain id of developer chains. All of them share it, like the addresses of the contracts.
pub const DEV_CHAIN_ID: u64 = 1337;

/// Where Multicall3 lives on every chain. `multicall3.hex` is the code that stands there on all of them; it has no
/// immutable values, so it needs no constructor.
pub const MULTICALL3: Address = address!("0xcA11bde05977b3631167028862bE2a173976CA11");

/// The account whose first transactions deployed the contracts. Nobody has its key: the address is a hash.
pub static DEPLOYER: LazyLock<Address> =
    LazyLock::new(|| Address::from_slice(&keccak256("payhub genesis deployer")[12..]));

/// What a developer account has in test dollars at genesis: a million, with six decimals.
pub const DEV_USDH: u128 = 1_000_000_000_000;

/// Gas for the constructors of block 0. It is paid by nobody.
const GENESIS_GAS: u64 = 1_000_000_000;

/// The keys of the mnemonic that Ethereum's development tools share ("test test test ... junk"), so that their
/// examples work unchanged. They are public: never send anything of value to them.
const DEV_SECRETS: [B256; 10] = [
    b256!("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"),
    b256!("0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"),
    b256!("0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a"),
    b256!("0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"),
    b256!("0x47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a"),
    b256!("0x8b3a350cf5c34c9194ca85829a2df0ec3153be0318b5e2d3348e872092edffba"),
    b256!("0x92db14e403b83dfe3df233f83dfa3a0d7096f21ca9b0d6d6b8d88b2b4ec1564e"),
    b256!("0x4bbbf85ce3377467afe5d46f804f221813b2bb87f24d81f60f1fcdbf7cbf4356"),
    b256!("0xdbda1821b80551c9d65939329250298aa3472ba22feea921c0cf5d620ea67b97"),
    b256!("0x2a871d0798f97d79848a013d4936a73bf4cc922c825d33c1cf7073dff6d409c6"),
];

sol! {
    function mint(address to, uint256 amount);
}

/// An account that exists in development mode, rich at genesis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevAccount {
    /// Its address.
    pub address: Address,
    /// Its secp256k1 key, which everybody knows.
    pub secret: [u8; 32],
}

/// The developer accounts, the same on every machine.
pub fn dev_accounts() -> Vec<DevAccount> {
    DEV_SECRETS
        .iter()
        .map(|secret| {
            let signer = PrivateKeySigner::from_bytes(secret).expect("the constants are keys below the order");
            DevAccount { address: signer.address(), secret: secret.0 }
        })
        .collect()
}

/// Where the contracts of a chain are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// The chain id.
    pub chain_id: u64,
    /// The hash of block 0.
    pub genesis_hash: B256,
    /// The adjudicator.
    pub adjudicator: Address,
    /// The test dollar (ERC-20 with permit and EIP-3009, six decimals).
    pub usdh: Address,
    /// Multicall3.
    pub multicall3: Address,
    /// The precompile that verifies Ed25519 signatures.
    pub ed25519_precompile: Address,
}

/// The arguments of the adjudicator's constructor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdjudicatorParameters {
    /// Shortest challenge period of a channel.
    pub challenge_period_min_s: u32,
    /// Longest challenge period of a channel.
    pub challenge_period_max_s: u32,
    /// Number of vaults among which channels are spread.
    pub shards: u16,
}

impl AdjudicatorParameters {
    /// For development: challenges may be as short as a second.
    pub const DEV: Self = Self { challenge_period_min_s: 1, challenge_period_max_s: 30 * 86_400, shards: 16 };

    /// Between parties that do not know each other: an hour at least.
    pub const PRODUCTION: Self =
        Self { challenge_period_min_s: 3_600, challenge_period_max_s: 30 * 86_400, shards: 64 };
}

/// An account of a genesis file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisAccount {
    /// Balance, decimal or hexadecimal.
    #[serde(default)]
    pub balance: U256,
    /// Nonce.
    #[serde(default)]
    pub nonce: U256,
    /// Runtime code. Immutable values must be filled in: no constructor runs.
    #[serde(default)]
    pub code: Bytes,
    /// Storage.
    #[serde(default)]
    pub storage: BTreeMap<B256, B256>,
}

/// A genesis file: the `alloc` of geth's format. Its other fields concern forks and consensus that this ledger does
/// not have, and are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// Accounts that exist from the beginning.
    #[serde(default)]
    pub alloc: BTreeMap<Address, GenesisAccount>,
}

impl Genesis {
    /// Reads a genesis file.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text).map_err(|e| Error::GenesisFile(e.to_string()))
    }
}

/// The first record of a ledger's journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GenesisRecord {
    /// Where the contracts are.
    pub deployment: Deployment,
    /// What the configuration asked for; a later start must ask for the same.
    pub inputs: B256,
    /// RLP of block 0.
    pub header: Bytes,
    /// The whole state after block 0.
    pub changes: ChangeSet,
}

/// The hash of everything in a configuration that shapes block 0, the chain id apart.
pub fn inputs_hash(config: &Config) -> B256 {
    let parts = (config.dev, &config.genesis, config.adjudicator_parameters(), config.faucet_account());
    keccak256(postcard::to_stdvec(&parts).expect("plain data of known length encodes into memory"))
}

/// Makes a new chain.
pub fn create(config: &Config) -> Result<GenesisRecord, Error> {
    let chain_id = match (config.chain_id, config.dev) {
        (Some(id), _) => id,
        (None, true) => DEV_CHAIN_ID,
        (None, false) => random_chain_id()?,
    };
    let context = BlockContext {
        chain_id,
        number: 0,
        timestamp: wall_clock().as_secs(),
        fee_recipient: config.fee_recipient,
        gas_limit: config.block_gas_limit,
        base_fee: config.base_fee_per_gas,
        prev_randao: random_word()?,
    };
    let mut changes = allocated(config)?;
    let (adjudicator, usdh) = deploy_all(config, &context, &mut changes)?;
    let mut state = State::default();
    state.apply(&changes);
    let header = Header { state_root: crate::trie::rebuilt_root(&state), ..empty_header(&context) };
    let deployment = Deployment {
        chain_id,
        genesis_hash: header.hash_slow(),
        adjudicator,
        usdh,
        multicall3: MULTICALL3,
        ed25519_precompile: ED25519_PRECOMPILE,
    };
    Ok(GenesisRecord { deployment, inputs: inputs_hash(config), header: encode_header(&header), changes })
}

/// The accounts that exist before any constructor runs.
fn allocated(config: &Config) -> Result<ChangeSet, Error> {
    let mut changes = ChangeSet::default();
    let dev = if config.dev { dev_accounts() } else { Vec::new() };
    for account in dev {
        put(&mut changes, account.address, GenesisAccount { balance: dev_balance(), ..GenesisAccount::default() })?;
    }
    let multicall = hex::decode(include_str!("multicall3.hex").trim()).expect("the file holds hexadecimal digits");
    put(
        &mut changes,
        MULTICALL3,
        GenesisAccount { nonce: U256::ONE, code: multicall.into(), ..GenesisAccount::default() },
    )?;
    for (address, account) in config.genesis.iter().flat_map(|genesis| &genesis.alloc) {
        put(&mut changes, *address, account.clone())?;
    }
    Ok(changes)
}

fn put(changes: &mut ChangeSet, address: Address, account: GenesisAccount) -> Result<(), Error> {
    let nonce = u64::try_from(account.nonce)
        .map_err(|_| Error::GenesisFile(format!("the nonce of {address} does not fit 64 bits")))?;
    let mut basic = Basic { balance: account.balance, nonce, ..Basic::default() };
    if !account.code.is_empty() {
        basic.code_hash = keccak256(&account.code);
        changes.codes.insert(basic.code_hash, account.code);
    }
    let slots = account.storage.into_iter().filter(|(_, value)| !value.is_zero());
    let slots = slots.map(|(index, value)| (index.into(), value.into())).collect();
    changes.accounts.insert(address, AccountChange { basic: Some(basic), storage_reset: false, slots });
    Ok(())
}

/// What a developer account has at genesis: ten thousand coins of 18 decimals.
fn dev_balance() -> U256 {
    U256::from(10_000u64) * U256::from(10u64).pow(U256::from(18))
}

fn deploy_all(config: &Config, context: &BlockContext, changes: &mut ChangeSet) -> Result<(Address, Address), Error> {
    let parameters = config.adjudicator_parameters();
    let faucet = config.faucet_account();
    let deployer = *DEPLOYER;
    let (adjudicator, usdh) = (deployer.create(0), deployer.create(1));
    // Channels here are mostly opened with the test dollar, so it is the adjudicator's home asset.
    let periods = (parameters.challenge_period_min_s, parameters.challenge_period_max_s);
    let arguments = (periods.0, periods.1, parameters.shards, usdh).abi_encode_params();
    let mut calls = vec![
        ("Adjudicator", deployer, TxKind::Create, init_code("Adjudicator", ADJUDICATOR, &arguments)?),
        ("TestDollar", deployer, TxKind::Create, init_code("TestDollar", TEST_DOLLAR, &faucet.abi_encode())?),
    ];
    if config.dev {
        for account in dev_accounts() {
            let data = mintCall { to: account.address, amount: U256::from(DEV_USDH) }.abi_encode();
            calls.push(("TestDollar.mint", faucet, TxKind::Call(usdh), data));
        }
    }

    let mut state = State::default();
    state.apply(changes);
    let context = BlockContext { base_fee: 0, gas_limit: GENESIS_GAS, ..context.clone() };
    let mut evm = evm(&context, &state, Checks::Call);
    for (name, caller, kind, data) in calls {
        let tx = TxEnv { caller, kind, data: data.into(), gas_limit: GENESIS_GAS, gas_price: 0, ..TxEnv::default() };
        let done = evm.transact(tx).map_err(|e| Error::Deploy { contract: name, reason: e.to_string() })?;
        if !matches!(done.result, ExecutionResult::Success { .. }) {
            return Err(Error::Deploy { contract: name, reason: format!("{:?}", done.result) });
        }
        evm.ctx.journaled_state.database.commit(done.state);
    }
    let made = evm.ctx.journaled_state.database.changes();
    for (address, mut change) in made.accounts {
        // The faucet's first real transaction still has nonce 0.
        let before = changes.accounts.get(&address).and_then(|account| account.basic);
        if let (true, Some(basic)) = (address == faucet, &mut change.basic) {
            basic.nonce = before.map_or(0, |basic| basic.nonce);
        }
        changes.accounts.insert(address, change);
    }
    changes.codes.extend(made.codes);
    Ok((adjudicator, usdh))
}

const ADJUDICATOR: &str = include_str!("../../contracts/artifacts/Adjudicator.json");
const TEST_DOLLAR: &str = include_str!("../../contracts/artifacts/TestDollar.json");

fn init_code(contract: &'static str, artifact: &str, arguments: &[u8]) -> Result<Vec<u8>, Error> {
    #[derive(Deserialize)]
    struct Artifact {
        bytecode: Bytes,
    }
    let artifact: Artifact =
        serde_json::from_str(artifact).map_err(|e| Error::Deploy { contract, reason: format!("its artifact: {e}") })?;
    Ok([artifact.bytecode.as_ref(), arguments].concat())
}

fn random_word() -> Result<B256, Error> {
    B256::try_random().map_err(|e| Error::Randomness(e.to_string()))
}

/// A chain id that no other chain is likely to have. JavaScript tools count to 2^53, and some multiply it by two and
/// add 36 (EIP-155), so it stays below 2^51.
fn random_chain_id() -> Result<u64, Error> {
    let word = random_word()?;
    let low = u64::from_be_bytes(word[..8].try_into().expect("eight of thirty-two bytes"));
    Ok((1 << 40) + low % (1 << 50))
}
