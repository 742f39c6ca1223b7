//! The payhub client: pay, get paid, watch the ledger and leave without anybody's help.
//!
//! A [`Client`] is one member: one seed, one channel with one hub, one store. It trusts nobody but its own disk and its
//! own view of the ledger. Every message of the hub is checked (vouchers, credit numbers, receipts, settlements); what
//! it decides is durable before it leaves; the watchtower inside it answers a close while the program runs.
//!
//! ```no_run
//! # async fn example(chain: dispute::Chain, asset: proto::Asset) -> Result<(), payhub_client::Error> {
//! use proto::Amount;
//! let alice = payhub_client::Client::builder()
//!     .hub("http://127.0.0.1:7000")
//!     .seed([7; 32])
//!     .store("alice")
//!     .chain(chain)
//!     .name("alice")
//!     .connect()
//!     .await?;
//! alice.open(asset, Amount::new(5_000_000)).await?;
//! let paid = alice.pay("bob", Amount::new(250_000), asset).note("tea").await?;
//! println!("paid: {}", paid.id);
//! # Ok(())
//! # }
//! ```
//!
//! # Tasks
//! One thread owns the member's state and store (`owner`); one task keeps the session (`session`), one follows the ledger
//! and runs the watchtower (`guard`), and one keeps a remote watchtower up to date if there is one (`tower`). A `Client` is a handle to them: cheap to clone, and they end with the last one.
//!
//! # Outcomes
//! A payment that fails says what became of it: [`Error::outcome`] is `NotPaid` or `Unknown`. `Unknown` means that the
//! frame was signed and no answer came; it is sent again, byte for byte, in every new session, and
//! [`Client::resolve`] tells how it ended.

mod error;
mod event;
pub mod exit;
mod guard;
mod info;
mod owner;
mod pay;
mod session;
mod stream;
mod tower;
mod wallet;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use dispute::{AccountKey, Call, Chain, CloseOrder, FinalizeOrder, Funding, Order, Submitter, SubmitterConfig};
use futures::Stream;
use proto::account::Status;
use proto::member::{Ask, Member};
use proto::typed::Receipt;
use proto::wire::{self, v1};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, NATIVE, PaymentId, Proven, Scheme, SecretKey};
use storage::{Backend, Index, MemoryBackend, MemoryIndex, Store, StoreConfig};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

pub use error::{Error, Outcome};
pub use event::{Event, ReceivedPayment};
pub use info::{AssetInfo, Info};
pub use owner::Paid;
pub use pay::{NewPayment, Pay, PayMany, Payee, Payer, Ticket};
pub use proto::member::{Balance, Limits, Misbehaviour};
pub use stream::{Meter, MeterError, Metered, NewStream};
pub use wallet::{HistoryEntry, HistoryKind};

use exit::{ExitKit, KitFile};
use info::Desk;
use owner::{Guarded, Inbox, Input, Owner, Reading, Reply};
use wallet::{Counter, Wallet};

/// Events that wait for a slow reader; beyond it he misses the oldest and is told how many.
const EVENTS_MAX: usize = 4096;
/// How long an opening or a close is waited for: some blocks and the hub's confirmations.
const LEDGER_WAIT: Duration = Duration::from_secs(60);
/// How long a settlement is waited for.
const SETTLE_WAIT: Duration = Duration::from_secs(30);
/// How long `resolve` waits for an answer that is under way.
const RESOLVE_WAIT: Duration = Duration::from_secs(5);
/// How long a payment is waited for by default.
pub(crate) const PAY_WAIT: Duration = Duration::from_secs(30);
/// Names that are remembered; when full they are looked up anew.
const NAMES_MAX: usize = 65_536;
/// The exit kit in the store's folder; see [`exit`].
pub const KIT_FILE: &str = "exit-kit.json";
/// Time between looks at something that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A member: see the crate's documentation.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

/// What a [`Client`] is made of.
pub struct Builder {
    hub: Option<String>,
    seed: Option<[u8; 32]>,
    scheme: Scheme,
    store: Option<PathBuf>,
    disk: Option<Disk>,
    counter: Option<PathBuf>,
    chain: Option<Chain>,
    name: String,
    limits: Limits,
    window: usize,
    poll: Duration,
    submitter: Option<SubmitterConfig>,
    tower: Tower,
    remote_tower: Option<String>,
}

/// A store that is no folder.
type Disk = (Arc<dyn Backend>, Box<dyn Index>);

enum Tower {
    On,
    Off,
}

struct Inner {
    inbox: Inbox,
    desk: Arc<Desk>,
    submitter: Submitter,
    account: Address,
    key: SecretKey,
    events: broadcast::Sender<Event>,
    pinned: Mutex<HashSet<ChannelId>>,
    /// Names that were looked up: a name is pinned as long as the program runs, whatever the hub says later.
    names: Mutex<HashMap<String, ChannelId>>,
    next_job: AtomicU64,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// An account and what it comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountBalance {
    /// The asset.
    pub asset: Asset,
    /// What it comes to.
    pub balance: Balance,
}

/// A settlement that is on the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Its number.
    pub seq: u64,
    /// What the member has withdrawn in all.
    pub member_withdrawn: Amount,
}

// ---- life ----------------------------------------------------------------------------------------------------------

impl Client {
    /// A builder; hub, seed, store and chain must be set.
    pub fn builder() -> Builder {
        Builder {
            hub: None,
            seed: None,
            scheme: Scheme::Ed25519,
            store: None,
            disk: None,
            counter: None,
            chain: None,
            name: String::new(),
            limits: Limits::default(),
            window: 16,
            poll: Duration::from_millis(500),
            submitter: None,
            tower: Tower::On,
            remote_tower: None,
        }
    }

    /// The member's account on the ledger: deposits come from it, payouts go to it, and it pays for gas.
    pub fn account(&self) -> Address {
        self.inner.account
    }

    /// The ledger that this client watches.
    pub fn chain(&self) -> &Chain {
        &self.inner.desk.chain
    }

    /// The channel, once there is one.
    pub async fn channel(&self) -> Result<Option<ChannelId>, Error> {
        self.read(|wallet, _| wallet.member().map(Member::channel)).await
    }

    /// The channel's terms, once there are any.
    pub async fn terms(&self) -> Result<Option<ChannelTerms>, Error> {
        self.read(|wallet, _| wallet.member().map(|m| m.terms().clone())).await
    }

    /// What the hub offers, verified.
    pub async fn info(&self) -> Result<Arc<Info>, Error> {
        self.inner.desk.info().await
    }

    /// Whether a session is live.
    pub async fn is_connected(&self) -> Result<bool, Error> {
        self.read(|_, reading| reading.live).await
    }

    /// Waits until a session is live.
    pub async fn connected(&self, within: Duration) -> Result<(), Error> {
        self.wait("a session with the hub", within, |_, reading| reading.live.then_some(())).await
    }

    /// Stops: writes everything down, ends the session, closes the store.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let result = self.ask(|reply| Input::Stop { reply }).await;
        self.inner.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        result
    }

    /// What happens from now on.
    pub fn events(&self) -> impl Stream<Item = Event> + Send + Unpin + use<> {
        BroadcastStream::new(self.inner.events.subscribe()).map(|event| match event {
            Ok(event) => event,
            Err(BroadcastStreamRecvError::Lagged(count)) => Event::Missed { count },
        })
    }
}

impl Builder {
    /// The hub's address, as in `http://127.0.0.1:7000`.
    pub fn hub(mut self, url: impl Into<String>) -> Self {
        self.hub = Some(url.into());
        self
    }

    /// The secret from which all keys derive: voucher keys of both schemes and the account on the ledger.
    pub fn seed(mut self, seed: [u8; 32]) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The signature scheme of the voucher key; Ed25519 by default.
    pub fn scheme(mut self, scheme: Scheme) -> Self {
        self.scheme = scheme;
        self
    }

    /// The folder of the store; it belongs to one process. Beside it, with the ending `.counter`, stands the count of
    /// signed settlements: leave it out of backups, it is what tells an old store from a new one.
    pub fn store(mut self, folder: impl AsRef<Path>) -> Self {
        self.store = Some(folder.as_ref().to_owned());
        self
    }

    /// Another place for the count of signed settlements, best on another disk.
    pub fn counter(mut self, file: impl AsRef<Path>) -> Self {
        self.counter = Some(file.as_ref().to_owned());
        self
    }

    /// Keeps everything in memory only. Whatever was received and not withdrawn is lost with the process: for tests.
    pub fn in_memory(mut self) -> Self {
        self.store = None;
        self.counter = Some(PathBuf::new());
        self
    }

    /// Keeps the store on a disk of another kind than a folder; the count of signed settlements is then kept in memory
    /// unless [`Builder::counter`] says otherwise.
    pub fn store_on(mut self, backend: Arc<dyn Backend>, index: Box<dyn Index>) -> Self {
        self.disk = Some((backend, index));
        self
    }

    /// The ledger, through a node of one's own choice.
    pub fn chain(mut self, chain: Chain) -> Self {
        self.chain = Some(chain);
        self
    }

    /// A name to be found by at the hub; first come, first served.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// What the signer itself holds to.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Frames of one lane that may wait for an answer at once.
    pub fn window(mut self, frames: usize) -> Self {
        self.window = frames.max(1);
        self
    }

    /// Time between looks at the ledger's head: a fraction of its block time.
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = every;
        self
    }

    /// How transactions are sent; for a local ledger by default.
    pub fn submitter(mut self, config: SubmitterConfig) -> Self {
        self.submitter = Some(config);
        self
    }

    /// Leaves the watching of closes to somebody else, who holds this member's evidence.
    pub fn without_watchtower(mut self) -> Self {
        self.tower = Tower::Off;
        self
    }

    /// A watchtower that is a program of its own, as in `http://127.0.0.1:7450`: it gets the newest evidence and answers
    /// closes while this program is off. What is received is acknowledged only when the tower holds it; while the tower
    /// is away ([`Event::TowerAway`]) payments go on and acknowledgements wait.
    pub fn tower(mut self, url: impl Into<String>) -> Self {
        self.remote_tower = Some(url.into());
        self
    }

    /// Opens the store, asks the hub for its offers, and keeps a session from now on.
    ///
    /// A hub that is away is no error once there is a channel: balances are shown and the way to the ledger is open
    /// without it.
    pub async fn connect(self) -> Result<Client, Error> {
        let url = self.hub.ok_or(Error::Missing { what: "the hub's address" })?;
        let seed = self.seed.ok_or(Error::Missing { what: "a seed" })?;
        let chain = self.chain.ok_or(Error::Missing { what: "a chain" })?;
        if self.store.is_none() && self.disk.is_none() && self.counter.is_none() {
            return Err(Error::Missing { what: "a store (a folder, or in memory)" });
        }
        let hub = session::hub(&url)?;
        let remote = self.remote_tower.map(|url| tower::endpoint(&url).map(|endpoint| (url, endpoint))).transpose()?;
        chain.check().await?;
        let genesis = chain.genesis_hash().await?;
        let key = SecretKey::derive(self.scheme, &seed, "voucher");
        let account_key = SecretKey::derive(Scheme::Secp256k1, &seed, "account");
        let account_key = AccountKey::from_secret(&account_key.to_seed()).expect("a derived key is a good key");
        let account = account_key.address();
        let identity = identity(&chain, genesis, &key);
        let store = open_store(self.store.as_deref(), self.disk, &identity)?;
        let counter = match (&self.store, self.counter) {
            (_, Some(file)) if !file.as_os_str().is_empty() => Counter::File(file),
            (Some(folder), _) => Counter::File(folder.with_extension("counter")),
            (None, _) => Counter::Memory,
        };
        let kit = self.store.as_ref().map(|folder| KitFile::at(folder.join(KIT_FILE))).transpose();
        let kit = kit.map_err(|e| Error::Store(format!("the exit kit's thread: {e}")))?;
        let wallet = Wallet::open(store, counter, *chain.domain(), key.clone(), self.limits)?;
        let desk = Arc::new(Desk::new(hub, url.clone(), chain.clone(), genesis));
        // What the hub no longer offers is watched all the same.
        let known = wallet.member().map(Member::assets);
        let assets = match (desk.info().await, known) {
            (Ok(info), known) => info.assets.iter().map(|a| a.asset).chain(known.into_iter().flatten()).collect(),
            (Err(_), Some(known)) => known,
            (Err(error), None) => return Err(error),
        };
        let config = self.submitter.unwrap_or_else(SubmitterConfig::local);
        let submitter = Submitter::new(chain.clone(), vec![account_key], config);

        let (inbox, inputs) = mpsc::channel(owner::INBOX_MAX);
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let (has_channel_tx, has_channel) = watch::channel(false);
        let (guarded_tx, guarded) = watch::channel(Guarded::default());
        let config = owner::Config {
            name: self.name,
            url,
            window: self.window,
            submitter: submitter.clone(),
            runtime: tokio::runtime::Handle::current(),
            hub: desk.hub.clone(),
            inbox: inbox.downgrade(),
            kit,
            gate: remote.as_ref().map(|_| tower::Gate::default()),
        };
        let owner = Owner::new(wallet, config, events.clone(), has_channel_tx, guarded_tx);
        spawn_owner(owner, inputs)?;
        let tower = matches!(self.tower, Tower::On).then(|| submitter.clone());
        let uploads = remote.map(|(url, endpoint)| {
            tokio::spawn(tower::run(url, endpoint, chain.clone(), guarded.clone(), inbox.clone()))
        });
        let mut tasks = vec![
            tokio::spawn(session::run(desk.clone(), inbox.clone(), has_channel)),
            tokio::spawn(guard::run(chain, tower, self.poll, assets, guarded, inbox.clone())),
        ];
        tasks.extend(uploads);
        let (pinned, names, next_job) = (Mutex::default(), Mutex::default(), AtomicU64::new(1));
        let inner = Inner { inbox, desk, submitter, account, key, events, pinned, names, next_job, tasks };
        Ok(Client { inner: Arc::new(inner) })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The owner ends when the last sender of its inbox is gone, and these tasks hold two.
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

// ---- money in and out ----------------------------------------------------------------------------------------------

impl Client {
    /// Opens the channel with a first deposit, or deposits into it if it is open; returns when the hub counts the
    /// deposit and payments can begin.
    pub async fn open(&self, asset: Asset, amount: Amount) -> Result<ChannelId, Error> {
        let info = self.info().await?;
        let served = info.asset(asset).ok_or(Error::UnknownAsset { asset })?;
        let known = self.read(|w, _| w.member().map(|m| m.terms().clone())).await?;
        if known.is_none() && amount < served.deposit_min {
            return Err(Error::DepositTooSmall { given: amount, min: served.deposit_min });
        }
        self.check_owns(asset, amount).await?;
        let terms = match known {
            Some(terms) => terms,
            None => self.begin(&info).await?,
        };
        let channel = self.chain().domain().channel_id(&terms);
        let before = self.chain().books(&AccountId { channel, asset }).await?.member_deposit;
        self.approve(asset, amount).await?;
        let adjudicator = self.chain().adjudicator();
        let call = adjudicator.open(&terms, Bytes::new(), asset, amount, &Funding::Caller);
        self.transact("the deposit", call).await?;
        let due = before.saturating_add(amount);
        let counted = self.wait("the deposit's confirmation by ledger and hub", LEDGER_WAIT, move |wallet, reading| {
            let ours = wallet.member()?.balance(asset)?.ledger.member_deposit;
            let theirs = reading.hub_view.get(&asset)?.member_deposit;
            (reading.live && ours >= due && theirs >= due).then_some(())
        });
        match counted.await {
            Ok(()) => Ok(channel),
            Err(Error::TooSlow { .. }) => Err(Error::NotServedYet),
            Err(error) => Err(error),
        }
    }

    /// Deposits into the open channel.
    pub async fn deposit(&self, asset: Asset, amount: Amount) -> Result<(), Error> {
        if self.terms().await?.is_none() {
            return Err(Error::NoChannel);
        }
        self.open(asset, amount).await.map(|_| ())
    }

    /// Pays out to the member's account on the ledger what both sides agree to; the channel stays open.
    pub async fn withdraw(&self, asset: Asset, amount: Amount) -> Result<Settled, Error> {
        self.settle_as(asset, Ask::Withdraw(amount)).await
    }

    /// Posts the present state with a payout of `withdraw`; the same as [`Client::withdraw`].
    pub async fn settle(&self, asset: Asset, withdraw: Amount) -> Result<Settled, Error> {
        self.withdraw(asset, withdraw).await
    }

    /// Closes the account together with the hub: everything is paid out at once.
    ///
    /// A deposit that crosses the agreement leaves a rest in the account, which is then closed again.
    pub async fn close(&self, asset: Asset) -> Result<Settled, Error> {
        let until = tokio::time::Instant::now() + SETTLE_WAIT;
        loop {
            let settled = self.settle_as(asset, Ask::Close).await?;
            let status = self.balance(asset).await?.ledger.status;
            if status == Status::Final || tokio::time::Instant::now() >= until {
                return Ok(settled);
            }
        }
    }

    /// Starts to close the account without the hub. The watchtower posts the evidence and, after the challenge period,
    /// pays out; returns the end of that period, chain time in seconds.
    pub async fn close_unilateral(&self, asset: Asset) -> Result<u64, Error> {
        let terms = self.terms().await?.ok_or(Error::NoChannel)?;
        let account = AccountId { channel: self.chain().domain().channel_id(&terms), asset };
        let call = self.chain().adjudicator().start_close(&CloseOrder { terms, asset, request: None });
        self.transact("the start of the close", call).await?;
        let deadline_s = self.chain().books(&account).await?.deadline_s;
        // Whoever asks next is told of the close.
        let seen = self.wait("the close in this client's view of the ledger", LEDGER_WAIT, move |wallet, _| {
            (wallet.member()?.balance(asset)?.ledger.status != Status::Open).then_some(())
        });
        seen.await?;
        Ok(deadline_s)
    }

    /// Pays the account out after its challenge period; the watchtower does so by itself while the client runs.
    pub async fn finalize(&self, asset: Asset) -> Result<(), Error> {
        let terms = self.terms().await?.ok_or(Error::NoChannel)?;
        let account = AccountId { channel: self.chain().domain().channel_id(&terms), asset };
        if self.chain().books(&account).await?.status == dispute::Status::Final {
            return Ok(());
        }
        let call = self.chain().adjudicator().finalize(&FinalizeOrder { terms, asset });
        self.transact("the payout", call).await
    }

    /// Waits until the account is paid out for ever.
    pub async fn is_final(&self, asset: Asset, within: Duration) -> Result<(), Error> {
        self.wait("the account's payout", within, move |wallet, _| {
            let balance = wallet.member()?.balance(asset)?;
            (balance.ledger.status == Status::Final).then_some(())
        })
        .await
    }

    async fn settle_as(&self, asset: Asset, ask: Ask) -> Result<Settled, Error> {
        let until = tokio::time::Instant::now() + SETTLE_WAIT;
        let slow = |_| Error::TooSlow { what: "the agreement on the settlement", seconds: SETTLE_WAIT.as_secs() };
        let settling = loop {
            let asked = self.ask(|reply| Input::Settle { asset, ask, reply });
            match tokio::time::timeout_at(until, asked).await.map_err(slow)? {
                // The hub is busy with the account, as while it adds collateral: that passes in a block or two.
                Err(Error::Hub { retryable: true, .. }) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(LOOK_EVERY * 5).await;
                }
                other => break other?,
            }
        };
        if let Some((why, order)) = settling.unposted {
            tracing::warn!(why, "the hub did not post the settlement; it is posted from here");
            self.transact("the settlement", self.chain().adjudicator().settle(&order)).await?;
        }
        let seq = settling.seq;
        let ledger = self.wait("the settlement on the ledger", LEDGER_WAIT, move |wallet, _| {
            let ledger = wallet.member()?.balance(asset)?.ledger;
            (ledger.seq >= seq).then_some(ledger)
        });
        Ok(Settled { seq, member_withdrawn: ledger.await?.member_withdrawn })
    }

    /// Begins a channel with the hub's offer: the terms are durable before anything is sent to the ledger, so that no
    /// deposit can go to a channel that nobody remembers.
    async fn begin(&self, info: &Info) -> Result<ChannelTerms, Error> {
        let scheme = self.inner.key.scheme();
        let offer = info.offer(scheme).ok_or(Error::NoOffer { scheme })?;
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).expect("the operating system gives randomness");
        let mine = self.inner.key.public();
        let terms = ChannelTerms {
            hub: offer.hub,
            hubKey: offer.hubKey,
            hubScheme: offer.hubScheme,
            member: self.inner.account,
            memberKey: mine.bytes,
            memberScheme: mine.scheme.number(),
            challengePeriod: offer.challengePeriod,
            salt: B256::from(salt),
        };
        let begun = terms.clone();
        self.ask(|reply| Input::Begin { terms, reply }).await?;
        Ok(begun)
    }

    async fn check_owns(&self, asset: Asset, amount: Amount) -> Result<(), Error> {
        let (account, needed) = (self.inner.account, U256::from(amount.get()));
        let balance = self.chain().balance(asset, account).await?;
        if balance < needed { Err(Error::NotEnoughOnLedger { account, asset, balance, needed }) } else { Ok(()) }
    }

    async fn approve(&self, asset: Asset, amount: Amount) -> Result<(), Error> {
        if asset == NATIVE || self.chain().allowance(asset, self.inner.account).await? >= U256::from(amount.get()) {
            return Ok(());
        }
        self.transact("the approval of the deposit", self.chain().approve(asset, U256::from(amount.get()))).await
    }

    async fn transact(&self, what: &'static str, call: Call) -> Result<(), Error> {
        let order = Order::new(call).from(self.inner.account);
        let mined = self.inner.submitter.submit(order).await.mined();
        mined.map(|_| ()).map_err(|why| Error::Transaction { what, why })
    }
}

// ---- what is held --------------------------------------------------------------------------------------------------

impl Client {
    /// What an account comes to; all zero where there is none.
    pub async fn balance(&self, asset: Asset) -> Result<Balance, Error> {
        self.read(move |w, _| w.member().and_then(|m| m.balance(asset)).unwrap_or_default()).await
    }

    /// Every account and what it comes to.
    pub async fn accounts(&self) -> Result<Vec<AccountBalance>, Error> {
        self.read(|wallet, _| {
            let Some(member) = wallet.member() else { return Vec::new() };
            let balance = |asset| Some(AccountBalance { asset, balance: member.balance(asset)? });
            member.assets().into_iter().filter_map(balance).collect()
        })
        .await
    }

    /// The newest `limit` entries of the history, newest first.
    pub async fn history(&self, limit: usize) -> Result<Vec<HistoryEntry>, Error> {
        self.read(move |wallet, _| wallet.history(limit)).await?
    }

    /// What can be shown to the ledger for an account: for another watchtower, or a backup.
    pub async fn evidence(&self, asset: Asset) -> Result<Option<proto::member::Evidence>, Error> {
        self.read(move |w, _| w.member().and_then(|m| m.evidence(asset))).await
    }

    /// The largest receipt for each payee who has not acknowledged it, with the terms of his channel. Such a payment is
    /// *accepted*: the hub owes it by its signature; it is *delivered* when the payee acknowledges. Whoever is handed a
    /// receipt can show it to the ledger while the payee's account closes, and then the hub pays.
    pub async fn receipts(&self) -> Result<Vec<(ChannelTerms, Proven<Receipt>)>, Error> {
        self.read(|wallet, _| tower::receipts_of(wallet.member())).await
    }

    /// Waits until the remote watchtower holds all evidence; returns at once where there is nothing to hold.
    pub async fn guarded_by_tower(&self, within: Duration) -> Result<(), Error> {
        self.wait("the watchtower to hold the newest evidence", within, |wallet, reading| {
            tower::holds_all(wallet.member(), &reading.tower_holds).then_some(())
        })
        .await
    }

    /// Everything that gets the money out without the hub and without this store, as it stands now. The same is kept in
    /// the store's folder as [`KIT_FILE`].
    pub async fn exit_kit(&self) -> Result<ExitKit, Error> {
        let domain = *self.chain().domain();
        let parts = self.read(move |w, _| w.member().map(|m| exit::Parts::of(&domain, m))).await?;
        Ok(parts.ok_or(Error::NoChannel)?.assemble())
    }

    /// What became of a payment of this client.
    ///
    /// One that waits for its answer is asked for at the hub; while hub and ledger are silent it stays `Unknown`.
    pub async fn resolve(&self, id: PaymentId) -> Result<Outcome, Error> {
        let until = tokio::time::Instant::now() + RESOLVE_WAIT;
        loop {
            let standing = self.read(move |wallet, reading| standing(wallet, reading, id)).await??;
            let (asset, token) = match standing {
                Standing::Settled(outcome) => return Ok(outcome),
                Standing::Waiting { asset, token } => (asset, token),
            };
            let proven = match token {
                Some(token) => self.hub_proves_paid(asset, token, id).await?,
                None => false,
            };
            if proven {
                return Ok(Outcome::Paid);
            }
            if tokio::time::Instant::now() >= until {
                return Ok(Outcome::Unknown);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// After a loss of data: takes the hub's largest voucher as the new base of what was received, although credits
    /// before it are missing here.
    pub async fn accept_gap(&self, asset: Asset) -> Result<(), Error> {
        self.ask(|reply| Input::Rebase { asset, reply }).await
    }

    /// The channel behind a name: asked of the hub, checked on the ledger, and pinned.
    pub async fn lookup(&self, name: &str) -> Result<ChannelId, Error> {
        let names = || self.inner.names.lock().expect("no holder panics");
        if let Some(channel) = names().get(name).copied() {
            return Ok(channel);
        }
        let request = v1::LookupRequest { name: name.to_owned() };
        let answer = self.inner.desk.hub.clone().lookup(request).await;
        let answer = answer.map_err(|e| match e.code() {
            tonic::Code::NotFound => Error::payee(name, "the hub knows nobody by this name"),
            _ => Error::hub(&e, &self.inner.desk.url),
        })?;
        let answer = answer.into_inner();
        let channel = wire::read_channel("lookup.channel_id", &answer.channel_id)?;
        let member = wire::read_address("lookup.member", &answer.member)?;
        let terms = guard::opened(self.chain(), channel).await?;
        if terms.member != member {
            return Err(Error::payee(name, "the hub names another account than the ledger does"));
        }
        self.pin_terms(channel, terms).await?;
        let mut names = names();
        if names.len() >= NAMES_MAX {
            names.clear();
        }
        names.insert(name.to_owned(), channel);
        Ok(channel)
    }

    /// Pins a payee by its channel: its terms are read from the ledger.
    pub async fn pin(&self, payee: ChannelId) -> Result<(), Error> {
        let here = || self.inner.pinned.lock().expect("no holder panics");
        if payee == ChannelId::HUB || here().contains(&payee) {
            return Ok(());
        }
        if self.read(move |w, _| w.member().is_some_and(|m| m.is_pinned(payee))).await? {
            here().insert(payee);
            return Ok(());
        }
        let terms = guard::opened(self.chain(), payee).await?;
        self.pin_terms(payee, terms).await
    }

    async fn pin_terms(&self, payee: ChannelId, terms: ChannelTerms) -> Result<(), Error> {
        self.ask(|reply| Input::Pin { payee, terms, reply }).await?;
        self.inner.pinned.lock().expect("no holder panics").insert(payee);
        Ok(())
    }

    async fn hub_proves_paid(&self, asset: Asset, token: Bytes, id: PaymentId) -> Result<bool, Error> {
        let request = v1::GetPaymentRequest { token: token.0, id: wire::bytes_of(id.0) };
        // A hub that does not answer leaves the question open.
        let Ok(answer) = self.inner.desk.hub.clone().get_payment(request).await else { return Ok(false) };
        let answer = answer.into_inner();
        if !answer.known {
            return Ok(false);
        }
        self.read(move |wallet, _| {
            let Some(member) = wallet.member() else { return false };
            let waiting = member.unanswered_payment(id).filter(|(a, _)| *a == asset);
            waiting.is_some_and(|(_, payment)| member.proves_paid(payment, &answer))
        })
        .await
    }
}

// ---- helpers -------------------------------------------------------------------------------------------------------

enum Standing {
    Settled(Outcome),
    Waiting { asset: Asset, token: Option<Bytes> },
}

fn standing(wallet: &Wallet, reading: &Reading, id: PaymentId) -> Result<Standing, Error> {
    if wallet.was_paid(id)? {
        return Ok(Standing::Settled(Outcome::Paid));
    }
    let member = wallet.member().ok_or(Error::NoChannel)?;
    let Some((asset, _)) = member.unanswered_payment(id) else {
        // Never signed, or refused; a store that lost data cannot say which.
        let outcome = if member.trusts_itself() { Outcome::NotPaid } else { Outcome::Unknown };
        return Ok(Standing::Settled(outcome));
    };
    if member.ledger_says_unpaid(asset) == Some(true) {
        return Ok(Standing::Settled(Outcome::NotPaid));
    }
    Ok(Standing::Waiting { asset, token: reading.live.then(|| reading.token.clone()) })
}

impl Client {
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Wallet, &Reading) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let read = Input::Read(Box::new(move |wallet, reading| drop(reply.send(read(wallet, reading)))));
        self.inner.inbox.send(read).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)
    }

    async fn ask<T>(&self, input: impl FnOnce(Reply<T>) -> Input) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.inner.inbox.send(input(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Looks again and again until something is so.
    async fn wait<T: Send + 'static>(
        &self,
        what: &'static str,
        within: Duration,
        look: impl Fn(&Wallet, &Reading) -> Option<T> + Send + Sync + 'static,
    ) -> Result<T, Error> {
        let until = tokio::time::Instant::now() + within;
        let look = Arc::new(look);
        loop {
            let looking = look.clone();
            if let Some(found) = self.read(move |wallet, reading| looking(wallet, reading)).await? {
                return Ok(found);
            }
            if tokio::time::Instant::now() >= until {
                return Err(Error::TooSlow { what, seconds: within.as_secs() });
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn take_job(&self) -> u64 {
        self.inner.next_job.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inner.inbox
    }
}

/// What a store belongs to: one ledger, one contract, one key.
fn identity(chain: &Chain, genesis: B256, key: &SecretKey) -> [u8; 32] {
    let mut bytes = b"payhub member store".to_vec();
    bytes.extend_from_slice(chain.domain().separator().as_slice());
    bytes.extend_from_slice(genesis.as_slice());
    bytes.push(key.scheme().number());
    bytes.extend_from_slice(key.public().bytes.as_slice());
    keccak256(bytes).0
}

fn open_store(folder: Option<&Path>, disk: Option<Disk>, identity: &[u8; 32]) -> Result<Store, Error> {
    if let Some(folder) = folder {
        return Ok(Store::open(folder, identity, StoreConfig::default())?);
    }
    let in_memory = || -> Disk { (Arc::new(MemoryBackend::new()), Box::new(MemoryIndex::new())) };
    let (backend, index) = disk.unwrap_or_else(in_memory);
    let mut config = StoreConfig::default();
    // Segments are allocated ahead, which counts where the disk is memory.
    config.journal.segment_bytes = 1 << 20;
    Ok(Store::open_with(backend, index, identity, config)?)
}

/// The owner waits for the disk and so has a thread and a clock of its own.
fn spawn_owner(owner: Owner, inputs: mpsc::Receiver<Input>) -> Result<(), Error> {
    let failed = |e: std::io::Error| Error::Store(format!("the owner's thread: {e}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let thread = std::thread::Builder::new().name("payhub-member".to_owned());
    thread.spawn(move || runtime.block_on(owner.run(inputs))).map(|_| ()).map_err(failed)
}
