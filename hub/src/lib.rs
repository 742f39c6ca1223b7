//! The payhub hub as a library: channels, books, flush, sessions over gRPC, collateral and settlement.
//!
//! ```text
//! frame ─► session (form, signature) ─► sequencer (the books decide) ─► committer (journal, signatures) ─► answers
//!                                             ▲                               │
//!                                        ledger tasks                    checkpointer (rows)
//! ```
//! One thread decides, one thread writes, and nothing leaves before the record that implies it is durable. A write that
//! fails ends the hub: what was not written was not answered. See `sequencer`, `committer`, `rows`, `session`, `ledger`.
//!
//! [`Hub::start`] gives a handle; the binary around it reads configuration and prints.

mod committer;
mod core;
mod flushed;
mod ledger;
mod limits;
mod link;
mod operations;
mod rows;
mod rpc;
mod runs;
pub mod scale;
mod sequencer;
mod server;
mod session;
mod status;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use alloy_primitives::{Address, B256, keccak256};
use dispute::exit_plan::challenge_period_needed_s;
use dispute::submitter::{AccountKey, Submitter, SubmitterConfig};
use dispute::{Chain, ChainError};
use proto::books::{Ask, Books, Policy, Refusal};
use proto::typed::Settlement;
use proto::{AccountId, Domain, Scheme, SecretKey};
use storage::{Backend, Index, Store, StoreConfig};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use ledger::CloseError;
pub use operations::HubStatus;
pub use proto::books::AssetPolicy;

use crate::committer::{Committer, run_checkpoints};
use crate::core::Core;
use crate::ledger::LedgerTasks;
use crate::limits::{CHECKPOINT_FLUSHES, LOW_WATER_BYTES, QUEUE_MAX, SHUTDOWN_GRACE, SPACE_INTERVAL};
use crate::operations::Operations;
use crate::rows::{Rows, RowsError};
use crate::rpc::{MemberService, OperatorService};
use crate::sequencer::{Command, Sequencer};
use crate::server::Caps;

/// How far a member's view of the ledger may lag behind the hub's, seconds: members agree to a longest validity from the
/// head that they know, so that proposals stay this much below it.
const VALIDITY_SLACK_S: u64 = 600;

/// Where the hub keeps its journal and index.
#[derive(Debug)]
pub enum StoreAt {
    /// In a folder, which is made if it is not there and locked while the hub runs.
    Folder(PathBuf),
    /// On a given disk and engine: for tests.
    Backend(Arc<dyn Backend>, Box<dyn Index>),
}

/// How a hub is set up. [`HubConfig::new`] gives everything that has a sensible default.
#[derive(Debug)]
pub struct HubConfig {
    /// All keys of the hub derive from it: voucher keys per scheme ("voucher"), ledger accounts ("account",
    /// "account-1", ...).
    pub seed: [u8; 32],
    /// The store.
    pub store: StoreAt,
    /// Where members connect; port 0 for any.
    pub listen: SocketAddr,
    /// Where the operator connects; off unless given.
    pub operator: Option<SocketAddr>,
    /// The name that members know this server by; a login for one name is worthless at another.
    pub host: String,
    /// The assets served, with their prices and collateral.
    pub assets: Vec<AssetPolicy>,
    /// The challenge period of served channels, seconds.
    pub challenge_period_s: u32,
    /// How long settlement proposals stay valid, seconds.
    pub settlement_validity_s: u64,
    /// Signature schemes served.
    pub schemes: Vec<Scheme>,
    /// Development: any challenge period that the contract allows is served.
    pub development: bool,
    /// Ledger accounts that send transactions; the first one holds the hub's money.
    pub ledger_accounts: u32,
    /// The block at which the adjudicator was deployed, or any before it.
    pub start_block: u64,
    /// How often the ledger is asked for news.
    pub poll: Duration,
    /// How transactions are sent.
    pub submitter: SubmitterConfig,
    /// What may be open at a time.
    pub limits: Limits,
    /// Flushes between two checkpoints at most: fewer make a start shorter and cost writes.
    pub checkpoint_flushes: u64,
    /// The journal's and the index's settings.
    pub store_config: StoreConfig,
}

/// Bounds that depend on the machine. All others are constants with their reasons beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions; more are refused with a retry hint.
    pub sessions_max: usize,
    /// Connections; more are closed at once.
    pub connections_max: usize,
    /// Connections of one address.
    pub connections_per_ip_max: usize,
}

impl Default for Limits {
    /// For a machine with a few cores and the usual number of file descriptors.
    fn default() -> Self {
        Limits { sessions_max: 8192, connections_max: 8192, connections_per_ip_max: 4096 }
    }
}

/// Why a hub did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nobody can be paid.
    #[error("no asset is configured; name at least one with its symbol, decimals and limits")]
    NoAssets,
    /// Nobody can sign.
    #[error("no signature scheme is configured; name ed25519, secp256k1 or both")]
    NoSchemes,
    /// The address is taken or not of this machine.
    #[error("cannot listen on {address}: {source}; stop the program that uses it, or choose another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The store is in use by another process.
    #[error(transparent)]
    StoreLocked(Box<storage::Error>),
    /// The store belongs to another chain, contract or hub.
    #[error(
        "the store is not one of chain {chain_id} with adjudicator {adjudicator}, that first block and hub account \
         {account}: {source}"
    )]
    StoreOfAnother {
        /// The chain's id.
        chain_id: u64,
        /// The contract.
        adjudicator: Address,
        /// The hub's account.
        account: Address,
        /// What the store said.
        source: Box<storage::Error>,
    },
    /// The store cannot be opened or read.
    #[error("the store cannot be used: {why}")]
    Store {
        /// What happened, with what to do.
        why: String,
    },
    /// The ledger is not the right one or does not answer.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The ledger cannot verify a scheme.
    #[error(
        "this ledger cannot verify scheme {scheme:?}; serve secp256k1 only, or use a ledger with the Ed25519 precompile"
    )]
    Scheme {
        /// The scheme.
        scheme: Scheme,
    },
    /// The contract refuses the challenge period.
    #[error("a challenge period of {given} s is outside of the contract's {min} to {max} s; choose one inside")]
    ChallengePeriodRefused {
        /// Seconds configured.
        given: u32,
        /// Seconds at least.
        min: u32,
        /// Seconds at most.
        max: u32,
    },
    /// The challenge period leaves no time to respond.
    #[error(
        "a challenge period of {given} s is too short: confirmations, a mass exit and people need {needed} s on this chain; raise it, or start in development mode"
    )]
    ChallengePeriodTooShort {
        /// Seconds configured.
        given: u32,
        /// Seconds needed.
        needed: u64,
    },
}

/// Why a hub ended by itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hub stopped: {why}")]
pub struct HubFailed {
    /// What happened, with what to do.
    pub why: String,
}

/// The hub is shutting down or has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hub has ended; start it again")]
pub struct HubEnded;

/// Why a settlement was not proposed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettleError {
    /// The books refuse it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The hub has ended.
    #[error(transparent)]
    Ended(#[from] HubEnded),
}

/// A running hub. Dropping it ends it without waiting; [`Hub::shutdown`] ends it in order.
#[derive(Debug)]
pub struct Hub {
    operations: Operations,
    addr: SocketAddr,
    operator_addr: Option<SocketAddr>,
    account: Address,
    failure: watch::Receiver<Option<HubFailed>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    tasks: Mutex<Vec<tokio::task::JoinHandle<()>>>,
}

impl HubConfig {
    /// A hub for one seed and store with defaults for the rest: loopback, any port, both schemes, a challenge period of
    /// 26 hours, settlements valid for 50 minutes.
    pub fn new(seed: [u8; 32], store: StoreAt, assets: Vec<AssetPolicy>) -> Self {
        HubConfig {
            seed,
            store,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            operator: None,
            host: "localhost".to_owned(),
            assets,
            challenge_period_s: 26 * 3600,
            settlement_validity_s: proto::account::SETTLEMENT_VALIDITY_S - VALIDITY_SLACK_S,
            schemes: vec![Scheme::Ed25519, Scheme::Secp256k1],
            development: false,
            ledger_accounts: 1,
            start_block: 0,
            poll: Duration::from_millis(500),
            submitter: SubmitterConfig::local(),
            limits: Limits::default(),
            checkpoint_flushes: CHECKPOINT_FLUSHES,
            store_config: StoreConfig::default(),
        }
    }

    /// The hub's ledger account, which holds its money and is named in every channel's terms.
    pub fn account(&self) -> Address {
        account_key(&self.seed, 0).address()
    }

    /// The hub's voucher keys, one per served scheme.
    pub fn voucher_keys(&self) -> Vec<SecretKey> {
        self.schemes.iter().map(|scheme| SecretKey::derive(*scheme, &self.seed, "voucher")).collect()
    }

    /// The keys of all schemes: channels of a scheme that is no longer served are still settled.
    fn all_keys(&self) -> Vec<SecretKey> {
        let schemes = [Scheme::Ed25519, Scheme::Secp256k1].into_iter();
        schemes.map(|scheme| SecretKey::derive(scheme, &self.seed, "voucher")).collect()
    }

    fn policy(&self) -> Policy {
        Policy {
            hub: self.account(),
            keys: self.voucher_keys().iter().map(SecretKey::public).collect(),
            challenge_period_s: self.challenge_period_s,
            settlement_validity_s: self.settlement_validity_s,
            assets: self.assets.clone(),
        }
    }
}

/// The ledger account with that number of a seed.
pub fn account_key(seed: &[u8; 32], number: u32) -> AccountKey {
    let purpose = if number == 0 { "account".to_owned() } else { format!("account-{number}") };
    let secret = SecretKey::derive(Scheme::Secp256k1, seed, &purpose).to_seed();
    AccountKey::from_secret(&secret).expect("a derived key is a scalar of the curve")
}

// ---- the handle ----------------------------------------------------------------------------------------------------

impl Hub {
    /// Checks the ledger, opens the store, and serves.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(config: HubConfig, chain: Chain) -> Result<Hub, StartError> {
        chain.check().await?;
        let genesis = chain.genesis_hash().await?;
        check_ledger(&config, &chain).await?;
        Hub::run(config, *chain.domain(), genesis, Some(chain)).await
    }

    /// Where members connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where the operator connects, if that is on.
    pub fn operator_addr(&self) -> Option<SocketAddr> {
        self.operator_addr
    }

    /// The hub's ledger account.
    pub fn account(&self) -> Address {
        self.account
    }

    /// The hub at a glance.
    pub async fn status(&self) -> Result<HubStatus, HubEnded> {
        self.operations.status().await.map_err(ended)
    }

    /// Proposes a settlement of an account; it is posted when the member has signed it.
    pub async fn settle(&self, account: AccountId, ask: Ask) -> Result<Settlement, SettleError> {
        Ok(self.operations.settle(account, ask).await.map_err(ended)??)
    }

    /// Starts a unilateral close as the hub; gives the transaction.
    pub async fn start_close(&self, account: AccountId) -> Result<B256, CloseError> {
        self.operations.start_close(account).await
    }

    /// Refuses new payments from now on; returns when everything accepted before is durable.
    pub async fn drain(&self) -> Result<(), HubEnded> {
        self.operations.drain().await.map_err(ended)
    }

    /// Waits until the hub has ended; `Err` if it ended by itself.
    pub async fn failed(&self) -> Result<(), HubFailed> {
        self.operations.core.ended.cancelled().await;
        self.failure.borrow().clone().map_or(Ok(()), Err)
    }

    /// Ends in order: takes nothing new, writes and answers what it has, closes the store.
    ///
    /// # Errors
    /// What made it end earlier.
    pub async fn shutdown(self) -> Result<(), HubFailed> {
        let core = self.operations.core.clone();
        let farewell = ("SHUTTING_DOWN", "the hub is shutting down; connect again later".to_owned());
        let _ = core.send(Command::Stop { farewell }).await;
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().all(|thread| thread.join().is_ok()));
        let all_well = joined.await.unwrap_or(false);
        // Everything is durable and handed to the sessions; they write it out and end by themselves.
        let sessions = u32::try_from(core.sessions_max).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, core.sessions.acquire_many(sessions)).await;
        core.ended.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            let abort = task.abort_handle();
            if tokio::time::timeout(SHUTDOWN_GRACE, task).await.is_err() {
                abort.abort();
            }
        }
        let failure = self.failure.borrow().clone();
        match failure {
            Some(failure) => Err(failure),
            None if !all_well => Err(HubFailed { why: "a thread panicked; see the log".to_owned() }),
            None => Ok(()),
        }
    }

    async fn run(config: HubConfig, domain: Domain, genesis: B256, chain: Option<Chain>) -> Result<Hub, StartError> {
        if config.assets.is_empty() {
            return Err(StartError::NoAssets);
        }
        if config.schemes.is_empty() {
            return Err(StartError::NoSchemes);
        }
        let listener = bind(config.listen).await?;
        let operator = match config.operator {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let address = |listener: &TcpListener| listener.local_addr().expect("a bound listener has an address");
        let (addr, operator_addr) = (address(&listener), operator.as_ref().map(address));
        let (account, policy, keys) = (config.account(), config.policy(), config.all_keys());
        let HubConfig {
            seed,
            store,
            store_config,
            checkpoint_flushes,
            host,
            limits,
            start_block,
            poll,
            submitter,
            ledger_accounts,
            ..
        } = config;
        let opened = tokio::task::spawn_blocking(move || {
            open_store(store, store_config, &domain, genesis, account, policy, keys, &seed)
        });
        let Opened { journal, rows, books } = opened.await.expect("opening a store does not panic")?;
        let confirmations = chain.as_ref().map_or(0, |c| u32::try_from(c.confirmations()).unwrap_or(u32::MAX));
        let ended = CancellationToken::new();
        let (queue, commands) = mpsc::channel(QUEUE_MAX);
        let (durable, durable_at) = watch::channel(journal.last());
        let core = Arc::new(Core::new(
            domain,
            books.policy().clone(),
            host,
            genesis,
            confirmations,
            rows.clone(),
            queue.clone(),
            durable_at,
            ended.clone(),
            limits.sessions_max,
        ));
        let (agreed, to_post) = mpsc::unbounded_channel();
        let machine = Machine { books, rows, journal, commands, queue, durable, agreed, checkpoint_flushes };
        let (threads, failure, guard) = machine.start(&core);
        let mut tasks = Vec::new();
        let ledger = chain.map(|chain| {
            let keys = (0..ledger_accounts.max(1)).map(|number| account_key(&seed, number)).collect();
            let submitter = Submitter::new(chain.clone(), keys, submitter);
            LedgerTasks { core: core.clone(), chain, submitter, account, start_block, poll, agreed: to_post }
        });
        let handle = ledger.as_ref().map(LedgerTasks::handle);
        tasks.extend(ledger.map(|ledger| tokio::spawn(guard.watch("ledger's tasks", ledger.run()))));
        let operations = Operations { core: core.clone(), ledger: handle };
        let caps = Caps { connections: limits.connections_max, per_ip: limits.connections_per_ip_max };
        let members = server::serve_members(MemberService(core), listener, caps, ended.clone());
        tasks.push(tokio::spawn(members));
        tasks.push(tokio::spawn(watch_space(operations.clone())));
        if let Some(listener) = operator {
            let service = OperatorService(operations.clone());
            tasks.push(tokio::spawn(server::serve_operator(service, listener, caps, ended)));
        }
        tracing::info!(%addr, %account, "the hub serves");
        let (threads, tasks) = (Mutex::new(threads), Mutex::new(tasks));
        Ok(Hub { operations, addr, operator_addr, account, failure, threads, tasks })
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let farewell = ("SHUTTING_DOWN", "the hub has ended".to_owned());
        let core = &self.operations.core;
        if core.queue.try_send(Command::Stop { farewell }).is_err() {
            tracing::debug!("the hub had ended before its handle was dropped");
        }
        core.ended.cancel();
    }
}

fn ended(_: core::Ended) -> HubEnded {
    HubEnded
}

// ---- the threads ---------------------------------------------------------------------------------------------------

/// Everything that the threads own between them.
struct Machine {
    books: Books,
    rows: Arc<Rows>,
    journal: storage::Journal,
    commands: mpsc::Receiver<Command>,
    queue: mpsc::Sender<Command>,
    durable: watch::Sender<u64>,
    agreed: mpsc::UnboundedSender<(AccountId, u64)>,
    checkpoint_flushes: u64,
}

impl Machine {
    fn start(self, core: &Arc<Core>) -> (Vec<JoinHandle<()>>, watch::Receiver<Option<HubFailed>>, FailStop) {
        use std::sync::mpsc as thread_channel;
        let Machine { books, rows, journal, commands, queue, durable, agreed, checkpoint_flushes } = self;
        let (failures, failure) = watch::channel(None);
        // One flush waits while one is written: the sequencer seals no more.
        let (to_committer, flushes) = thread_channel::sync_channel(1);
        let (done, finished) = thread_channel::channel();
        let (checkpoints, snapshots) = thread_channel::channel();
        let sequencer = Sequencer::new(
            books,
            rows.clone(),
            commands,
            to_committer,
            finished,
            core.ended.clone(),
            checkpoint_flushes,
        );
        let committer = Committer {
            journal,
            rows: rows.clone(),
            flushes,
            done: done.clone(),
            queue: queue.downgrade(),
            durable,
            agreed,
            checkpoints,
            encoded: Vec::new(),
        };
        let guard = FailStop { core: core.clone(), failures: Arc::new(failures), queue: queue.downgrade() };
        let threads = vec![
            guard.spawn("sequencer", move || sequencer.run()),
            guard.spawn("committer", move || committer.run()),
            guard.spawn("checkpointer", move || run_checkpoints(&rows, &snapshots, &done)),
        ];
        (threads, failure, guard)
    }
}

/// A thread that fails or panics ends the hub: no answer leaves after it.
#[derive(Clone)]
struct FailStop {
    core: Arc<Core>,
    failures: Arc<watch::Sender<Option<HubFailed>>>,
    queue: mpsc::WeakSender<Command>,
}

impl FailStop {
    fn spawn(
        &self,
        name: &'static str,
        work: impl FnOnce() -> Result<(), RowsError> + Send + 'static,
    ) -> JoinHandle<()> {
        let guard = self.clone();
        let body = move || {
            let why = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("a rule that must hold did not (the {name} panicked); see the log"),
            };
            guard.stop(name, why);
        };
        std::thread::Builder::new().name(format!("hub-{name}")).spawn(body).expect("the system starts three threads")
    }

    /// Runs what must not end before the hub does: payments that go on while nobody watches the ledger would lend money
    /// to whoever closes.
    async fn watch(self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        // Dropped with this task, so that ending the hub ends it.
        let mut work = tokio::task::JoinSet::from_iter([work]);
        let ended = work.join_next().await;
        if self.core.ended.is_cancelled() || self.core.queue.is_closed() {
            return;
        }
        let why = match ended {
            Some(Err(_)) => format!("a rule that must hold did not (the {name} panicked); see the log"),
            Some(Ok(())) | None => format!("the {name} ended; see the alarms"),
        };
        self.stop(name, why);
    }

    fn stop(&self, name: &'static str, why: String) {
        tracing::error!(thread = name, why, "the hub stops");
        self.failures.send_if_modified(|failure| {
            let first = failure.is_none();
            failure.get_or_insert(HubFailed { why });
            first
        });
        self.core.ended.cancel();
        // The other threads end when they find their channels closed; this wakes the one that waits for commands. A full
        // queue wakes it as well.
        if let Some(queue) = self.queue.upgrade() {
            let _ = queue.try_send(Command::Wake);
        }
    }
}

// ---- start ---------------------------------------------------------------------------------------------------------

struct Opened {
    journal: storage::Journal,
    rows: Arc<Rows>,
    books: Books,
}

#[allow(clippy::too_many_arguments)]
fn open_store(
    at: StoreAt,
    config: StoreConfig,
    domain: &Domain,
    genesis: B256,
    account: Address,
    policy: Policy,
    keys: Vec<SecretKey>,
    seed: &[u8; 32],
) -> Result<Opened, StartError> {
    let identity = identity_of(domain, genesis, account);
    let store = match at {
        StoreAt::Folder(dir) => Store::open(&dir, &identity, config),
        StoreAt::Backend(backend, index) => Store::open_with(backend, index, &identity, config),
    };
    let store = store.map_err(|error| match error {
        storage::Error::Locked { .. } => StartError::StoreLocked(Box::new(error)),
        storage::Error::ForeignStore { .. } => StartError::StoreOfAnother {
            chain_id: domain.chain_id,
            adjudicator: domain.adjudicator,
            account,
            source: Box::new(error),
        },
        other => StartError::Store { why: other.to_string() },
    })?;
    let (journal, view) = store.split();
    let (rows, books) =
        Rows::open(view, *domain, policy, keys, seed).map_err(|error| StartError::Store { why: error.to_string() })?;
    Ok(Opened { journal, rows, books })
}

/// Whose store it is: a store of another chain, contract or hub is refused.
fn identity_of(domain: &Domain, genesis: B256, account: Address) -> [u8; 32] {
    let parts = [
        b"payhub hub store".as_slice(),
        &domain.chain_id.to_be_bytes(),
        domain.adjudicator.as_slice(),
        genesis.as_slice(),
        account.as_slice(),
    ];
    keccak256(parts.concat()).0
}

/// Takes nothing new before the disk is full, so that what was taken can be finished.
async fn watch_space(operations: Operations) {
    let core = operations.core.clone();
    let mut ticks = tokio::time::interval(SPACE_INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = core.ended.cancelled() => return,
        }
        let rows = core.rows.clone();
        let free = tokio::task::spawn_blocking(move || rows.free_bytes()).await;
        let Ok(Ok(free)) = free else { continue };
        if free < LOW_WATER_BYTES && !core.is_draining() {
            core.alarm(format!(
                "{free} bytes are free on the store's disk; no new payments are taken: free space, then restart"
            ));
            if operations.drain().await.is_err() {
                return;
            }
        }
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

async fn check_ledger(config: &HubConfig, chain: &Chain) -> Result<(), StartError> {
    if config.schemes.contains(&Scheme::Ed25519) && !chain.ed25519_available().await? {
        return Err(StartError::Scheme { scheme: Scheme::Ed25519 });
    }
    let given = config.challenge_period_s;
    let (min, max) = chain.challenge_period_bounds_s().await?;
    if given < min || given > max {
        return Err(StartError::ChallengePeriodRefused { given, min, max });
    }
    if config.development {
        return Ok(());
    }
    // The store is not open yet: what the chain needs at least, however many channels there are.
    let needed = challenge_period_needed_s(0, &chain.pace().await?, chain.confirmations());
    match u64::from(given) >= needed {
        true => Ok(()),
        false => Err(StartError::ChallengePeriodTooShort { given, needed }),
    }
}
