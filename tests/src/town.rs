//! A town: a ledger, a hub and its members in this process, talking real gRPC over loopback.
//!
//! The hub and, where a story wants it, a member keep their stores on disks in memory, so that a story can pull the plug
//! at any operation. Time on the ledger moves only when a story says so: a challenge period of ten minutes costs nothing.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::providers::Provider;
use alloy_primitives::{Address, Bytes, U256};
use client::{Client, Event};
use dispute::{AccountKey, Call, Chain, Funding, Order, Submitter, SubmitterConfig};
use futures::{Stream, StreamExt};
use hub::{AssetPolicy, Hub, HubConfig, StoreAt};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, NATIVE, Scheme, SecretKey};
use serde_json::{Value, json};
use storage::{Crash, MemoryBackend, MemoryIndex};

use crate::chains::{Person, World};

/// What a member's channel is opened with.
pub const DEPOSIT: u128 = 5_000_000;
/// The collateral that the hub keeps in each payee's account.
pub const INBOUND: u128 = 1_000_000;
/// The challenge period of every channel, chain time.
pub const PERIOD_S: u32 = 600;
/// Nothing here takes seconds; what takes this long will not come.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Time between looks at the ledger, for hub, members and towers.
pub const POLL: Duration = Duration::from_millis(20);

/// The seed of a hub that a story plays itself.
pub const FAKE_HUB: u8 = 99;
/// The seed of the hub.
const HUB_SEED: [u8; 32] = [7; 32];

/// A disk in memory: what is on it survives its process, and a crash leaves what the policy says.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The journal and the small files.
    pub backend: MemoryBackend,
    /// The rows.
    pub index: MemoryIndex,
}

/// A ledger, a hub and how to get members.
pub struct Town {
    world: World,
    chain: Chain,
    /// The ledger as the hub reaches it; a story may put another way to it here while the hub is down.
    pub hub_chain: Chain,
    /// The hub's disk; a story may put another one here while the hub is down.
    pub disk: Disk,
    hub: Option<Hub>,
    addr: SocketAddr,
    channels: Mutex<Vec<ChannelId>>,
    /// Makes blocks where deposits need confirmations.
    heart: Option<tokio::task::JoinHandle<()>>,
    /// Held while the heart beats.
    beating: Arc<tokio::sync::Mutex<()>>,
}

/// Amounts in base units.
pub fn amount(base_units: u128) -> Amount {
    Amount::new(base_units)
}

impl Disk {
    /// The disk after the power went away.
    pub fn crash(&self, policy: Crash, seed: u64) -> Disk {
        Disk { backend: self.backend.crash(policy, seed), index: self.index.crash(policy, seed) }
    }
}

impl Town {
    /// A town on the embedded ledger, members with Ed25519 keys.
    pub async fn embedded() -> Town {
        let world = World::embedded(Scheme::Ed25519).await;
        let chain = world.chain().clone();
        Town::with(world, chain).await
    }

    /// A town on anvil, where deposits count after so many confirmations; members with secp256k1 keys.
    pub async fn anvil(confirmations: u64) -> Town {
        let world = World::anvil().await;
        let chain = Chain::connect(world.chain().url(), world.domain(), confirmations).expect("a loopback URL");
        Town::with(world, chain).await
    }

    /// A town on a world of the story's choice; everybody sees the ledger as `chain` does.
    pub async fn with(world: World, chain: Chain) -> Town {
        let beating = Arc::new(tokio::sync::Mutex::new(()));
        let heart = (chain.confirmations() > 0).then(|| tokio::spawn(beat(chain.clone(), beating.clone())));
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        let (disk, channels) = (Disk::default(), Mutex::default());
        let mut town = Town { world, hub_chain: chain.clone(), chain, disk, hub: None, addr, channels, heart, beating };
        town.endow(town.hub_config().account(), 1_000_000_000).await;
        town.start_hub().await;
        town
    }

    /// The ledger, as hub and members see it.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The ledger as a world of people who are party to nothing.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The test dollar.
    pub fn usdh(&self) -> Asset {
        self.world.usdh()
    }

    /// The scheme of the members' keys.
    pub fn scheme(&self) -> Scheme {
        self.world.scheme()
    }

    /// An account of a channel, in dollars.
    pub fn account(&self, channel: ChannelId) -> AccountId {
        AccountId { channel, asset: self.usdh() }
    }

    // ---- the hub ------------------------------------------------------------------------------------------------

    /// How the hub of this town is configured.
    pub fn hub_config(&self) -> HubConfig {
        let asset = AssetPolicy {
            asset: self.usdh(),
            symbol: "USDH".into(),
            decimals: 6,
            deposit_min: amount(1_000),
            inbound_target: amount(INBOUND),
            inbound_max: amount(10 * INBOUND),
            fee_flat: amount(1),
            fee_ppm: 100,
        };
        let at = StoreAt::Backend(Arc::new(self.disk.backend.clone()), Box::new(self.disk.index.clone()));
        let mut config = HubConfig::new(HUB_SEED, at, vec![asset]);
        config.store_config.journal.segment_bytes = 1 << 20;
        config.development = true;
        config.challenge_period_s = PERIOD_S;
        config.poll = POLL;
        config.listen = self.addr;
        if self.scheme() == Scheme::Secp256k1 {
            config.schemes = vec![Scheme::Secp256k1];
        }
        config
    }

    /// The running hub.
    pub fn hub(&self) -> &Hub {
        self.hub.as_ref().expect("the hub runs")
    }

    /// Starts the hub, at the address that it had before.
    pub async fn start_hub(&mut self) {
        self.start_hub_with(self.hub_config()).await.expect("the hub starts");
    }

    /// Starts the hub with a configuration that a story changed.
    pub async fn start_hub_with(&mut self, config: HubConfig) -> Result<(), hub::StartError> {
        let hub = Hub::start(config, self.hub_chain.clone()).await?;
        self.addr = hub.addr();
        self.hub = Some(hub);
        Ok(())
    }

    /// Stops the hub in order.
    pub async fn stop_hub(&mut self) {
        self.hub.take().expect("the hub runs").shutdown().await.expect("the hub stops in order");
    }

    /// Takes the hub away without a word.
    pub async fn kill_hub(&mut self) {
        let hub = self.hub.take().expect("the hub runs");
        let addr = hub.addr();
        drop(hub);
        // Whoever starts it again needs the address.
        self.until("the hub's address is free", || async move { std::net::TcpListener::bind(addr).is_ok() }).await;
    }

    /// The hub's address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    // ---- members ------------------------------------------------------------------------------------------------

    /// A member's program, not yet connected; its store is in memory unless the story says otherwise.
    pub fn client(&self, seed: u8, name: &str) -> client::Builder {
        Client::builder()
            .hub(self.url())
            .seed([seed; 32])
            .scheme(self.scheme())
            .chain(self.chain.clone())
            .name(name)
            .poll(POLL)
            .in_memory()
    }

    /// A member with money on the ledger and an open channel.
    pub async fn member(&self, seed: u8, name: &str) -> Client {
        self.join(seed, self.client(seed, name)).await
    }

    /// The same, with a program that the story set up.
    pub async fn join(&self, seed: u8, program: client::Builder) -> Client {
        self.endow(account_of(seed).address(), 10 * DEPOSIT).await;
        let member = program.connect().await.expect("the member connects");
        let channel = member.open(self.usdh(), amount(DEPOSIT)).await.expect("the channel opens");
        self.note_channel(channel);
        member
    }

    /// Opens a channel on the ledger for a member whose program the story plays itself: the terms, and his voucher key.
    pub async fn open_by_hand(&self, seed: u8) -> (ChannelTerms, SecretKey) {
        let config = self.hub_config();
        let hub_key = config.voucher_keys().into_iter().find(|key| key.scheme() == self.scheme());
        self.open_with(seed, config.account(), &hub_key.expect("the hub has a key of this scheme")).await
    }

    /// The same with any hub.
    pub async fn open_with(&self, seed: u8, hub: Address, hub_key: &SecretKey) -> (ChannelTerms, SecretKey) {
        let account = account_of(seed);
        self.endow(account.address(), 10 * DEPOSIT).await;
        let key = SecretKey::derive(self.scheme(), &[seed; 32], "voucher");
        let terms = ChannelTerms {
            hub,
            hubKey: hub_key.public().bytes,
            hubScheme: hub_key.scheme().number(),
            member: account.address(),
            memberKey: key.public().bytes,
            memberScheme: key.scheme().number(),
            challengePeriod: PERIOD_S,
            salt: alloy_primitives::B256::repeat_byte(seed),
        };
        self.send_as(seed, self.chain.approve(self.usdh(), U256::MAX)).await;
        let adjudicator = self.chain.adjudicator();
        let open = adjudicator.open(&terms, Bytes::new(), self.usdh(), amount(DEPOSIT), &Funding::Caller);
        self.send_as(seed, open).await;
        self.note_channel(self.chain.domain().channel_id(&terms));
        (terms, key)
    }

    /// Counts a channel among those whose money must agree with the hub's books.
    pub fn note_channel(&self, channel: ChannelId) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
    }

    // ---- the ledger ---------------------------------------------------------------------------------------------

    /// Gives an account coins for gas and dollars.
    pub async fn endow(&self, to: Address, dollars: u128) {
        let bank = self.world.address(Person::Anyone);
        self.world.send(bank, self.chain.transfer(NATIVE, to, U256::from(10u64.pow(18)))).await;
        self.world.send(bank, self.chain.mint(self.usdh(), to, U256::from(dollars))).await;
    }

    /// Sends a transaction from the account that a seed derives.
    pub async fn send_as(&self, seed: u8, call: Call) {
        self.try_send_as(seed, call).await.expect("a call that must succeed");
    }

    /// The same where somebody else may have come first; says why it was refused.
    pub async fn try_send_as(&self, seed: u8, call: Call) -> Result<(), String> {
        let sender = Submitter::new(self.chain.clone(), vec![account_of(seed)], SubmitterConfig::local());
        sender.submit(Order::new(call)).await.mined().map(drop).map_err(|why| why.to_string())
    }

    /// Sends a transaction from the hub's account behind the hub's back.
    pub async fn send_as_hub(&self, call: Call) {
        let sender = Submitter::new(self.chain.clone(), vec![hub::account_key(&HUB_SEED, 0)], SubmitterConfig::local());
        sender.submit(Order::new(call)).await.mined().expect("a call that must succeed");
    }

    /// While this is held, blocks are made by transactions and by the story only.
    pub async fn still(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.beating.clone().lock_owned().await
    }

    /// Dollars of an address.
    pub async fn dollars(&self, owner: Address) -> u128 {
        self.chain.balance(self.usdh(), owner).await.expect("the chain answers").to()
    }

    /// Lets the challenge period pass.
    pub async fn pass_period(&self) {
        self.world.pass(u64::from(PERIOD_S) + 1).await;
    }

    // ---- waiting and checking -----------------------------------------------------------------------------------

    /// Waits until something holds.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        let wait = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            let alarms = match &self.hub {
                Some(hub) => hub.status().await.map(|status| status.alarms).unwrap_or_default(),
                None => Vec::new(),
            };
            panic!("never: {what}; the hub's alarms: {alarms:?}");
        }
    }

    /// Waits until a member counts that much as received.
    pub async fn received(&self, member: &Client, total: u128) {
        self.until(&format!("{total} received"), || async move {
            member.balance(self.usdh()).await.expect("runs").received == amount(total)
        })
        .await;
    }

    /// Money is conserved: in the hub's books, and between them and the contract's.
    pub async fn check_conservation(&self) {
        let mut found = String::new();
        let checked = async {
            loop {
                match self.conservation().await {
                    Ok(()) => return,
                    Err(why) => found = why,
                }
                // The hub may not have seen the newest block yet.
                tokio::time::sleep(POLL).await;
            }
        };
        if tokio::time::timeout(PATIENCE, checked).await.is_err() {
            panic!("{found}");
        }
    }

    async fn conservation(&self) -> Result<(), String> {
        let status = self.hub().status().await.expect("the hub runs");
        let (_, sums) = &status.assets[0];
        let nets = sums.member_nets.saturating_add(sums.hub_nets);
        let debits = sums.credited.saturating_add(U256::from(sums.income.get()));
        assert_eq!(sums.paid, debits, "I4: what payers paid is what payees and the hub got");
        let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut custody, mut open) = (U256::ZERO, true);
        for channel in channels {
            let books = self.world.books(&self.account(channel)).await;
            open &= books.status != dispute::Status::Final;
            custody = custody.saturating_add(books.custody());
        }
        if open && sums.custody != nets {
            return Err(format!("I1: custody {} is not the sum of the nets {nets}", sums.custody));
        }
        if sums.custody.to_string() != custody.to_string() {
            return Err(format!("the hub's books hold {}, the contract {custody}", sums.custody));
        }
        Ok(())
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        if let Some(heart) = &self.heart {
            heart.abort();
        }
    }
}

/// The ledger account that a seed derives, as the client does it.
pub fn account_of(seed: u8) -> AccountKey {
    let key = SecretKey::derive(Scheme::Secp256k1, &[seed; 32], "account");
    AccountKey::from_secret(&key.to_seed()).expect("a derived key is a good key")
}

/// Waits for an event of a member.
pub async fn event<T>(
    events: &mut (impl Stream<Item = Event> + Unpin),
    mut wanted: impl FnMut(Event) -> Option<T>,
) -> T {
    let wait = async {
        loop {
            let event = events.next().await.expect("the member runs");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the event comes")
}

async fn beat(chain: Chain, beating: Arc<tokio::sync::Mutex<()>>) {
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let _beat = beating.lock().await;
        // The node ends before this task when a story is over.
        let _: Result<Value, _> = chain.provider().raw_request("evm_mine".into(), json!([])).await;
    }
}
