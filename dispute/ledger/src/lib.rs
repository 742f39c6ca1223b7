//! The embedded EVM chain: a settlement ledger inside the process, for development, tests, private networks and
//! benchmarks. The same contracts and the same client code run on any public EVM chain by its RPC URL.
//!
//! ```text
//! raw transaction -> admission (one signature recovery) -> pool -> executor -> journal record -> receipts
//!                                                                    revm       the commit point
//! ```
//!
//! What you get: EVM blocks of the Cancun fork, made on demand or by interval; JSON-RPC that `cast`, alloy, viem and
//! ethers understand, over HTTP, WebSocket and in process through one dispatch ([`Ledger::rpc_client`]); contracts
//! that exist from block 0 ([`Deployment`]); time that does not jump ([`clock`]); durable blocks, one atomic record
//! each ([`block`]).
//!
//! Limits that matter, all named constants beside the code they bound: the state and an index of blocks and
//! transactions live in memory, recent blocks too ([`chain::RECENT_BLOCKS`]), older ones are read from the journal;
//! a start loads the newest checkpoint of the state ([`checkpoint`]) and applies the journal's change sets after it,
//! without the EVM. State is kept at the head only: a call at an older
//! block is refused with an error that says so. Types 3 (blob) and 4 (set code) are refused.
//!
//! Whoever runs the only node of a chain decides what is in it. Members are safe from a hub only on a chain, or
//! through a node, that is not the hub's.

pub mod bench;
pub mod block;
pub mod block_stm;
pub mod chain;
pub mod checkpoint;
pub mod clock;
pub mod evm;
pub mod executor;
pub mod genesis;
mod memory;
pub mod overlay;
pub mod pool;
pub mod replay;
pub mod roots;
mod rpc;
mod scheduler;
pub mod state;
mod sync;
pub mod transaction;
pub mod trie;
pub mod verify;
mod vm;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use alloy::rpc::client::RpcClient;
use alloy_primitives::{Address, B256, Bytes};
use tokio::sync::{oneshot, watch};

pub use crate::chain::{AdmissionError, Disk};
pub use crate::evm::{ED25519_GAS, ED25519_PRECOMPILE};
pub use crate::genesis::{AdjudicatorParameters, Deployment, DevAccount, Genesis, GenesisAccount};
pub use crate::rpc::RpcServer;

use crate::chain::{Command, Reply, Shared};
use crate::transaction::Recovered;

/// Gas limit of a block unless configured: that of Ethereum's main network.
pub const BLOCK_GAS_LIMIT: u64 = 60_000_000;

/// Highest gas limit of a block: above it the largest possible block might not fit one journal record of 16 MiB
/// (8 MiB of transactions, which cost 4 gas a byte at least, and log bytes at 8 gas for the rest).
pub const BLOCK_GAS_LIMIT_MAX: u64 = 90_000_000;

/// Base fee per gas unless configured: 1 gwei. It is the same in every block, because there is no fee market here.
pub const BASE_FEE_PER_GAS: u64 = 1_000_000_000;

/// Most threads that execute transactions: far beyond what any workload gains from, and a bound on memory.
pub const WORKERS_MAX: usize = 256;

/// How often wallets and providers in this process look for a new block.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// When blocks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockTime {
    /// As soon as a transaction waits; what arrives while a block is being written goes together into the next.
    OnDemand,
    /// One each period, empty or not.
    Interval(Duration),
}

/// What a chain is and how it runs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The chain id. `None`: [`genesis::DEV_CHAIN_ID`] in development, else drawn at random at genesis and read from
    /// the data directory later.
    pub chain_id: Option<u64>,
    /// Where the chain is kept. `None`: in memory, gone with the process.
    pub data_dir: Option<PathBuf>,
    /// How many threads execute the transactions of a block. One: each after the other. `None`: as many as there are
    /// cores.
    pub workers: Option<NonZeroUsize>,
    /// When blocks are made.
    pub block_time: BlockTime,
    /// On demand: an empty block after this long without one, so that chain time, which contracts and clients read
    /// from the newest block, goes on. `None`: never.
    pub heartbeat: Option<Duration>,
    /// Development mode: rich accounts whose keys are public, and time control by RPC.
    pub dev: bool,
    /// Accounts that exist from the beginning, besides the contracts.
    pub genesis: Option<Genesis>,
    /// Who receives the tips.
    pub fee_recipient: Address,
    /// Base fee per gas; it is burned.
    pub base_fee_per_gas: u64,
    /// Gas limit of a block.
    pub block_gas_limit: u64,
    /// Who may mint test dollars. `None`: the first developer account in development, else nobody.
    pub faucet: Option<Address>,
    /// How the adjudicator is deployed. `None`: [`AdjudicatorParameters::DEV`] in development, else
    /// [`AdjudicatorParameters::PRODUCTION`].
    pub adjudicator: Option<AdjudicatorParameters>,
}

impl Config {
    /// A developer chain in memory: blocks on demand, an empty one each second when idle.
    pub fn dev() -> Self {
        Self { dev: true, heartbeat: Some(Duration::from_secs(1)), ..Self::at(None) }
    }

    /// A chain that is kept: blocks on demand, an empty one every ten seconds when idle.
    pub fn durable(data_dir: impl Into<PathBuf>) -> Self {
        Self::at(Some(data_dir.into()))
    }

    fn at(data_dir: Option<PathBuf>) -> Self {
        Self {
            chain_id: None,
            data_dir,
            workers: None,
            block_time: BlockTime::OnDemand,
            heartbeat: Some(Duration::from_secs(10)),
            dev: false,
            genesis: None,
            fee_recipient: Address::ZERO,
            base_fee_per_gas: BASE_FEE_PER_GAS,
            block_gas_limit: BLOCK_GAS_LIMIT,
            faucet: None,
            adjudicator: None,
        }
    }

    /// Who may mint test dollars.
    pub fn faucet_account(&self) -> Address {
        let first = || genesis::dev_accounts().first().map(|account| account.address);
        // With nobody to mint, the faucet is the zero address, which sends no transactions.
        self.faucet.or_else(|| if self.dev { first() } else { None }).unwrap_or_default()
    }

    /// How the adjudicator is deployed.
    pub fn adjudicator_parameters(&self) -> AdjudicatorParameters {
        let default = if self.dev { AdjudicatorParameters::DEV } else { AdjudicatorParameters::PRODUCTION };
        self.adjudicator.unwrap_or(default)
    }

    /// How many threads execute the transactions of a block.
    pub fn worker_count(&self) -> NonZeroUsize {
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.workers.unwrap_or_else(cores)
    }

    fn check(&self) -> Result<(), Error> {
        if self.worker_count().get() > WORKERS_MAX {
            return Err(Error::Workers(self.worker_count().get()));
        }
        if self.block_gas_limit > BLOCK_GAS_LIMIT_MAX {
            return Err(Error::BlockGasLimit(self.block_gas_limit));
        }
        Ok(())
    }
}

/// Why a ledger cannot be started or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The gas limit of a block is too high.
    #[error("block gas limit {0} is above {BLOCK_GAS_LIMIT_MAX}: choose a lower one")]
    BlockGasLimit(u64),
    /// Too many threads.
    #[error("{0} workers are asked for, at most {WORKERS_MAX} make sense: choose about as many as there are cores")]
    Workers(usize),
    /// The genesis file is wrong.
    #[error("the genesis file cannot be used: {0}")]
    GenesisFile(String),
    /// A contract of block 0 cannot be deployed.
    #[error("deploying {contract} in block 0 failed: {reason}")]
    Deploy {
        /// Which.
        contract: &'static str,
        /// Why.
        reason: String,
    },
    /// The operating system gives no random bytes.
    #[error("no random bytes for the genesis: {0}")]
    Randomness(String),
    /// The data directory holds a chain with another id.
    #[error(
        "the chain in `{dir}` has chain id {stored}, the configuration asks for {wanted}: use another directory or drop the chain id from the configuration"
    )]
    OtherChain {
        /// The data directory.
        dir: String,
        /// Its chain id.
        stored: u64,
        /// The configured one.
        wanted: u64,
    },
    /// The data directory holds a chain made from another configuration.
    #[error(
        "the chain in `{dir}` (genesis {stored}) was made from other genesis settings (development mode, genesis file, faucet or adjudicator parameters): use its settings or another directory"
    )]
    OtherGenesis {
        /// The data directory.
        dir: String,
        /// The hash of its block 0.
        stored: B256,
    },
    /// The data directory contradicts itself.
    #[error("record {record} of the data directory is damaged: {what}; restore the directory from a backup")]
    Damaged {
        /// Number of the journal record.
        record: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] block::RecordError),
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// A block cannot be executed.
    #[error(transparent)]
    Execution(#[from] executor::ExecutionError),
    /// The operating system gives no thread.
    #[error("the ledger's thread cannot be started: {0}")]
    Thread(String),
    /// The chain makes no more blocks.
    #[error("the ledger has stopped: {0}")]
    Stopped(String),
    /// Development mode: time cannot go back.
    #[error("timestamp {timestamp} is before the newest block's {head}")]
    TimeBeforeHead {
        /// What was asked for.
        timestamp: u64,
        /// Time of the newest block.
        head: u64,
    },
    /// The RPC server cannot listen.
    #[error("cannot serve JSON-RPC on {address}: {source}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// A running chain. A cheap handle: clone it freely. The chain ends with [`Ledger::shutdown`] or when the last
/// handle, client and server are gone.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

type Started = Result<(Arc<Shared>, Sender<Command>), Error>;

struct Inner {
    shared: Arc<Shared>,
    commands: Sender<Command>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("deployment", &self.inner.shared.deployment).finish_non_exhaustive()
    }
}

impl Ledger {
    /// Creates the chain, or opens it where it was left.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::open(move || chain::start(&config, Disk::of(&config)?)).await
    }

    /// The same on a given disk instead of the configuration's data directory.
    pub async fn start_on(config: Config, disk: Disk) -> Result<Self, Error> {
        Self::open(move || chain::start(&config, disk)).await
    }

    async fn open(start: impl FnOnce() -> Started + Send + 'static) -> Result<Self, Error> {
        let started = tokio::task::spawn_blocking(start).await;
        let (shared, commands) = started.map_err(|e| Error::Thread(e.to_string()))??;
        Ok(Self { inner: Arc::new(Inner { shared, commands }) })
    }

    /// A JSON-RPC client in this process: the same dispatch as over the network, without it.
    pub fn rpc_client(&self) -> RpcClient {
        RpcClient::new(rpc::InProcess::new(self.clone()), true).with_poll_interval(POLL_INTERVAL)
    }

    /// Serves JSON-RPC over HTTP and WebSocket; port 0 takes a free one.
    pub async fn serve(&self, address: SocketAddr) -> Result<RpcServer, Error> {
        rpc::serve(self.clone(), address).await
    }

    /// Where the contracts are.
    pub fn deployment(&self) -> Deployment {
        self.inner.shared.deployment
    }

    /// The developer accounts; none outside development mode.
    pub fn dev_accounts(&self) -> Vec<DevAccount> {
        if self.inner.shared.dev { genesis::dev_accounts() } else { Vec::new() }
    }

    /// The number of the newest block, for those who wait for the next.
    pub fn heads(&self) -> watch::Receiver<u64> {
        self.inner.shared.head.subscribe()
    }

    /// How the last attempt at a checkpoint of the state ended, for those who wait for the next; at first the one that
    /// the start loaded, if any.
    pub fn checkpoints(&self) -> watch::Receiver<Option<checkpoint::Attempt>> {
        self.shared().checkpointed.subscribe()
    }

    /// Reads the state of the head; blocks wait while `read` runs.
    pub fn with_state<T>(&self, read: impl FnOnce(&state::State) -> T) -> T {
        read(&self.shared().view().state)
    }

    /// Admits a raw transaction; returns its hash. It is not durable before it is in a block.
    pub fn submit(&self, raw: &Bytes) -> Result<B256, AdmissionError> {
        let shared = &self.inner.shared;
        if let Some(why) = shared.stopped() {
            return Err(AdmissionError::Stopped(Error::Stopped(why.to_owned()).to_string()));
        }
        let tx = Recovered::decode(raw, shared.deployment.chain_id)?;
        let hash = tx.hash;
        {
            let view = shared.view();
            shared.pool().add(tx, &view.state)?;
        }
        // Nobody may be following.
        let _ = shared.arrivals.send(hash);
        // If the thread has just ended, the transaction waits like on any node that was stopped.
        if shared.must_wake() {
            let _ = self.inner.commands.send(Command::Wake);
        }
        Ok(hash)
    }

    /// Waits until the chain makes no more blocks, because it was shut down or its disk failed; gives the reason.
    pub async fn ended(&self) -> String {
        let mut heads = self.heads();
        loop {
            if let Some(why) = self.shared().stopped() {
                return why.to_owned();
            }
            // The sender lives as long as this handle.
            let _ = heads.changed().await;
        }
    }

    /// Makes the journal safe and ends the chain. Other handles answer reads from memory and refuse transactions.
    pub async fn shutdown(&self) -> Result<(), Error> {
        if self.shared().stopped().is_some() {
            return Ok(());
        }
        self.ask(|reply| Command::Shutdown { reply }).await
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::Stopped("it was shut down".to_owned());
        self.inner.commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
