//! Sending transactions: several keys, each with its own nonces, until what was sent is mined, refused or given up.
//!
//! An [`Order`] becomes one *flight*: a task that owns one nonce of one key. Whatever the flight sends again, with a
//! higher fee or after a reorganisation, carries the same nonce, so that of all that it sends at most one is ever mined.
//! An order with an *intent* is guarded besides: while a flight with that intent is in the air, and as long as it is
//! remembered that one arrived, sending it again joins that flight instead of starting another.
//!
//! A caller who stops waiting ([`Outcome::Unknown`]) does not stop the flight; only [`Submitter::ground`] does, or the
//! end of the process.
//!
//! What flew when a process died is remembered by nobody here. It may still arrive, or never. Whether its owner may send
//! it again without looking is a matter of what it does:
//!
//! - *settle* carries a `seq` that must be above the account's: the second one is refused, and totals are absolute.
//! - *respond* raises proven totals to what the evidence says: the second time it raises nothing.
//! - *startClose* is refused when the account is closing, and the deadline of the first stays.
//! - *finalize* is refused when the account is final; what it pays follows from the books, not from the call.
//! - *claim* pays what waits in the vault: the second time nothing.
//! - *open* opens a channel once, but what comes with it is a deposit.
//! - **A deposit adds.** Sent twice it is there twice. Its owner gives the order a [`Herald`], writes down the nonce that
//!   it is told before anything leaves, and decides nothing new until that nonce is used up, by the deposit or by
//!   something else ([`Order::at_nonce`]): then the ledger says which, for ever.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::Encodable2718;
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy_primitives::{Address, B256, Bytes, TxHash, U256, keccak256};
use alloy_sol_types::SolValue;
use proto::{AccountId, Amount, ChannelTerms, Domain, Side};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::adjudicator::{Call, Funding, Refusal, authorization_nonce};
use crate::chain::{BroadcastError, Chain, ChainError, Fees, Mined};
use crate::settlement::TX_GAS_MAX;

/// Arrived intents that are remembered: enough for every guarded order of hours, at under 100 KiB.
const ARRIVED_MAX: usize = 1_024;
/// Share of an estimate that is added to it, in percent: state may change between estimate and block.
const GAS_MARGIN_PERCENT: u64 = 25;
/// A replacement must pay at least 10 % more on most nodes, 12.5 % on some.
const BUMP_PERCENT: u128 = 15;
/// How much more than the node's suggestion an urgent order tips.
const URGENT_TIP_FACTOR: u128 = 5;
/// Attempts to find the right nonce when a node says that one is taken.
const NONCE_ATTEMPTS: usize = 3;

/// An account key: pays for gas, and is a payout account where terms name its address.
///
/// It prints as its address. The secret is wiped when dropped.
#[derive(Clone)]
pub struct AccountKey(PrivateKeySigner);

/// 32 bytes that are no secret of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the 32 secret bytes are not a number in 1..n of secp256k1; use another secret")]
pub struct AccountKeyError;

/// How the submitter behaves.
#[derive(Clone, Debug)]
pub struct SubmitterConfig {
    /// Time between looks for a receipt: a fraction of the block time.
    pub poll: Duration,
    /// Time without a receipt after which the fee is raised.
    pub bump_after: Duration,
    /// Most wei per gas, whatever the urgency.
    pub fee_per_gas_max_wei: u128,
    /// Below this balance of a key an alarm is raised.
    pub gas_reserve_wei: U256,
}

/// How much a transaction may cost to be quick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    /// The node's suggestion.
    Normal,
    /// Several times that, and at once.
    Urgent,
}

/// Something to send.
#[derive(Clone, Debug)]
pub struct Order {
    /// The call.
    pub call: Call,
    /// The key that must send it; any of them if none.
    pub from: Option<Address>,
    /// Names what is to happen once; see the module.
    pub intent: Option<B256>,
    /// How urgent it is; an order that joins a flight makes that flight as urgent as itself.
    pub urgency: Urgency,
    /// How long the caller waits.
    pub patience: Duration,
    /// Hears of each nonce before anything is sent with it.
    pub herald: Option<Herald>,
    /// The nonce to use, whatever a node says.
    pub nonce: Option<u64>,
}

/// Hears which nonce an order takes, before anything is sent with it. Nothing is sent until it is through, and nothing
/// at all if it fails.
#[derive(Clone)]
pub struct Herald(Arc<HeraldFn>);

type HeraldFn = dyn Fn(u64) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync;

/// What became of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in a block and succeeded.
    Mined(Mined),
    /// The contract refused it: before it was sent, or in the block.
    Reverted {
        /// Why.
        refusal: Refusal,
        /// The block that it failed in; none if nothing was sent.
        mined: Option<Mined>,
    },
    /// Nothing was sent, or another transaction took the nonce: nothing of it will ever happen.
    NotSent {
        /// Why.
        why: String,
    },
    /// Not known yet; the flight goes on.
    Unknown {
        /// What was sent so far, of which at most one will be mined.
        tx_hashes: Vec<TxHash>,
    },
}

/// Sends transactions; cheap to clone.
#[derive(Clone)]
pub struct Submitter(Arc<Inner>);

struct Inner {
    chain: Chain,
    config: SubmitterConfig,
    lanes: Vec<Lane>,
    guard: Mutex<Guard>,
    /// What each flight in the air has sent.
    aloft: Mutex<Vec<TxHashes>>,
    grounded: watch::Sender<bool>,
}

type TxHashes = Arc<Mutex<Vec<TxHash>>>;

/// One key and its nonces.
struct Lane {
    key: AccountKey,
    nonces: tokio::sync::Mutex<Nonces>,
    flights: AtomicUsize,
}

#[derive(Default)]
struct Nonces {
    /// The nonce after the last one used while flights are in the air.
    next: Option<u64>,
}

#[derive(Default)]
struct Guard {
    flying: HashMap<B256, Flight>,
    arrived: HashMap<B256, Outcome>,
    arrived_order: VecDeque<B256>,
}

#[derive(Clone)]
struct Flight {
    outcome: watch::Receiver<Option<Outcome>>,
    urgency: watch::Sender<Urgency>,
    tx_hashes: TxHashes,
}

/// What a flight sends.
struct Envelope {
    nonce: u64,
    gas_limit: u64,
    tip_wei: u128,
    fee_max_wei: u128,
}

impl AccountKey {
    /// A key from its 32 secret bytes.
    pub fn from_secret(secret: &[u8; 32]) -> Result<Self, AccountKeyError> {
        PrivateKeySigner::from_slice(secret).map(AccountKey).map_err(|_| AccountKeyError)
    }

    /// Its address.
    pub fn address(&self) -> Address {
        self.0.address()
    }

    /// The member's consent to the opening of a channel by somebody else.
    pub fn consent(&self, domain: &Domain, terms: &ChannelTerms) -> Bytes {
        self.sign(&domain.channel_id(terms).0)
    }

    /// Authorises one deposit of tokens by EIP-3009, for one side of one account and nothing else.
    ///
    /// `token_separator` is the token's EIP-712 domain separator and `vault` the one that holds the channel's money:
    /// [`Chain::token_separator`] and [`Chain::vault_of`].
    pub fn authorize(
        &self,
        token_separator: B256,
        vault: Address,
        account: &AccountId,
        side: Side,
        amount: Amount,
        valid_before_s: u64,
    ) -> Funding {
        let payer_nonce = B256::random();
        let nonce = authorization_nonce(account, side, payer_nonce);
        let type_hash = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)",
        );
        let amount = U256::from(amount.get());
        let fields = (type_hash, self.address(), vault, amount, U256::ZERO, U256::from(valid_before_s), nonce);
        let hash = keccak256(fields.abi_encode());
        let digest = keccak256([&[0x19, 0x01], token_separator.as_slice(), hash.as_slice()].concat());
        let signature = self.sign(&digest);
        Funding::Authorization { from: self.address(), valid_after_s: 0, valid_before_s, payer_nonce, signature }
    }

    fn sign(&self, digest: &B256) -> Bytes {
        let signature = self.0.sign_hash_sync(digest).expect("a local secret signs every digest");
        signature.as_bytes().to_vec().into()
    }
}

impl SubmitterConfig {
    /// For a ledger in this process, or a development node: blocks come at once.
    pub fn local() -> Self {
        SubmitterConfig { poll: Duration::from_millis(10), bump_after: Duration::from_secs(5), ..Self::remote() }
    }

    /// For a public chain with blocks every few seconds.
    pub fn remote() -> Self {
        SubmitterConfig {
            poll: Duration::from_secs(1),
            bump_after: Duration::from_secs(45),
            fee_per_gas_max_wei: 1_000_000_000_000,
            gas_reserve_wei: U256::from(20_000_000_000_000_000u64),
        }
    }
}

impl Order {
    /// An order for any key, unguarded, of normal urgency, with two minutes of patience.
    pub fn new(call: Call) -> Self {
        let (urgency, patience) = (Urgency::Normal, Duration::from_secs(120));
        Order { call, from: None, intent: None, urgency, patience, herald: None, nonce: None }
    }

    /// The key that must send it.
    pub fn from(self, address: Address) -> Self {
        Order { from: Some(address), ..self }
    }

    /// What is to happen once.
    pub fn intent(self, intent: B256) -> Self {
        Order { intent: Some(intent), ..self }
    }

    /// How urgent it is.
    pub fn urgency(self, urgency: Urgency) -> Self {
        Order { urgency, ..self }
    }

    /// How long to wait.
    pub fn patience(self, patience: Duration) -> Self {
        Order { patience, ..self }
    }

    /// Who hears of the nonce first.
    pub fn herald(self, herald: Herald) -> Self {
        Order { herald: Some(herald), ..self }
    }

    /// Takes the place of whatever has that nonce and is in no block yet. It pays more and more until one of the two is.
    pub fn at_nonce(self, nonce: u64) -> Self {
        Order { nonce: Some(nonce), ..self }
    }
}

impl Herald {
    /// One that does what the function says.
    pub fn new<F>(hear: impl Fn(u64) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        Herald(Arc::new(move |nonce| Box::pin(hear(nonce))))
    }
}

impl Outcome {
    /// The block that it succeeded in, or why it did not, in words.
    pub fn mined(self) -> Result<Mined, String> {
        match self {
            Outcome::Mined(mined) => Ok(mined),
            Outcome::Reverted { refusal, .. } => Err(format!("the contract refused: {refusal}")),
            Outcome::NotSent { why } => Err(format!("nothing was sent: {why}")),
            Outcome::Unknown { tx_hashes } => {
                Err(format!("not in a block yet, still being sent as {tx_hashes:?}; look again later"))
            }
        }
    }
}

impl Submitter {
    /// A submitter with at least one key. More keys send more transactions at once, because a chain orders those of one
    /// sender one after the other.
    pub fn new(chain: Chain, keys: Vec<AccountKey>, config: SubmitterConfig) -> Self {
        let lane = |key| Lane { key, nonces: tokio::sync::Mutex::default(), flights: AtomicUsize::new(0) };
        let lanes = keys.into_iter().map(lane).collect();
        let grounded = watch::Sender::new(false);
        Submitter(Arc::new(Inner { chain, config, lanes, guard: Mutex::default(), aloft: Mutex::default(), grounded }))
    }

    /// Ends all flights, of this value and its clones, where they are: as the end of the process would. Nothing is sent
    /// from here on.
    pub fn ground(&self) {
        self.0.grounded.send_replace(true);
    }

    /// The chain that it sends to.
    pub fn chain(&self) -> &Chain {
        &self.0.chain
    }

    /// The addresses that it sends from.
    pub fn addresses(&self) -> Vec<Address> {
        self.0.lanes.iter().map(|lane| lane.key.address()).collect()
    }

    /// Whether nothing that an address sent may still be sent again by itself.
    pub fn is_idle(&self, address: Address) -> bool {
        let lanes = self.0.lanes.iter().filter(|lane| lane.key.address() == address);
        lanes.map(|lane| lane.flights.load(Ordering::Relaxed)).sum::<usize>() == 0
    }

    /// Coins that each key has for gas.
    pub async fn gas_balances(&self) -> Result<Vec<(Address, U256)>, ChainError> {
        let mut balances = Vec::new();
        for address in self.addresses() {
            balances.push((address, self.0.chain.balance(proto::NATIVE, address).await?));
        }
        Ok(balances)
    }

    /// Sends an order and waits for what becomes of it. Must be called within a tokio runtime.
    pub async fn submit(&self, order: Order) -> Outcome {
        let patience = order.patience;
        let mut flight = match self.board(order) {
            Ok(flight) => flight,
            Err(outcome) => return *outcome,
        };
        let arrived = tokio::time::timeout(patience, flight.outcome.wait_for(Option::is_some)).await;
        let unknown = || Outcome::Unknown { tx_hashes: locked(&flight.tx_hashes).clone() };
        match arrived {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or_else(unknown),
            Ok(Err(_)) | Err(_) => unknown(),
        }
    }

    /// Whether a transaction of this submitter may still be sent again by itself: its block is not confirmed, and should
    /// a reorganisation take that away, it goes into another one without its owner's doing.
    pub fn is_aloft(&self, tx_hash: TxHash) -> bool {
        locked(&self.0.aloft).iter().any(|hashes| locked(hashes).contains(&tx_hash))
    }

    /// Joins the flight of the order's intent, or starts one.
    fn board(&self, order: Order) -> Result<Flight, Box<Outcome>> {
        let mut guard = locked(&self.0.guard);
        if let Some(intent) = &order.intent {
            if let Some(outcome) = guard.arrived.get(intent) {
                return Err(Box::new(outcome.clone()));
            }
            if let Some(flight) = guard.flying.get(intent) {
                flight.urgency.send_if_modified(|urgency| {
                    let raised = *urgency < order.urgency;
                    *urgency = order.urgency.max(*urgency);
                    raised
                });
                return Ok(flight.clone());
            }
        }
        let Some(lane) = self.lane_for(order.from) else {
            let who = order.from.map_or("any address".to_owned(), |from| from.to_string());
            return Err(Box::new(Outcome::NotSent { why: format!("there is no key for {who}") }));
        };
        let (outcome_tx, outcome) = watch::channel(None);
        let (urgency, urgency_rx) = watch::channel(order.urgency);
        let flight = Flight { outcome, urgency, tx_hashes: Arc::default() };
        if let Some(intent) = order.intent {
            guard.flying.insert(intent, flight.clone());
        }
        self.0.lanes[lane].flights.fetch_add(1, Ordering::Relaxed);
        locked(&self.0.aloft).push(flight.tx_hashes.clone());
        let pilot = Pilot {
            inner: self.0.clone(),
            lane,
            order,
            outcome: outcome_tx,
            urgency: urgency_rx,
            tx_hashes: flight.tx_hashes.clone(),
        };
        tokio::spawn(pilot.fly());
        Ok(flight)
    }

    /// The key that must send, or the one with the fewest flights.
    fn lane_for(&self, from: Option<Address>) -> Option<usize> {
        let lanes = self.0.lanes.iter().enumerate();
        match from {
            Some(from) => lanes.into_iter().find(|(_, lane)| lane.key.address() == from).map(|(i, _)| i),
            None => lanes.min_by_key(|(_, lane)| lane.flights.load(Ordering::Relaxed)).map(|(i, _)| i),
        }
    }
}

/// Flies one order.
struct Pilot {
    inner: Arc<Inner>,
    lane: usize,
    order: Order,
    outcome: watch::Sender<Option<Outcome>>,
    urgency: watch::Receiver<Urgency>,
    tx_hashes: TxHashes,
}

impl Pilot {
    async fn fly(mut self) {
        let inner = self.inner.clone();
        let mut grounded = inner.grounded.subscribe();
        let flight = async {
            match self.take_off().await {
                Ok(envelope) => self.stay_aloft(envelope).await,
                Err(outcome) => self.deliver(outcome),
            }
        };
        tokio::select! {
            biased;
            _ = grounded.wait_for(|grounded| *grounded) => return,
            () = flight => {}
        }
        self.lane().flights.fetch_sub(1, Ordering::Relaxed);
        locked(&self.inner.aloft).retain(|hashes| !Arc::ptr_eq(hashes, &self.tx_hashes));
        self.alarm_when_gas_is_low().await;
    }

    fn lane(&self) -> &Lane {
        &self.inner.lanes[self.lane]
    }

    fn chain(&self) -> &Chain {
        &self.inner.chain
    }

    /// Estimates gas and fees, takes a nonce and sends for the first time.
    async fn take_off(&mut self) -> Result<Envelope, Outcome> {
        let not_sent = |why: String| Outcome::NotSent { why };
        let from = self.lane().key.address();
        let estimate = match self.chain().estimate_gas(from, &self.order.call).await {
            Ok(estimate) => estimate.max(self.order.call.gas_min),
            Err(ChainError::Refused { refusal, .. }) => return Err(Outcome::Reverted { refusal, mined: None }),
            Err(error) => return Err(not_sent(error.to_string())),
        };
        if estimate > TX_GAS_MAX {
            return Err(not_sent(format!("it takes {estimate} gas, a transaction may take {TX_GAS_MAX}; split it")));
        }
        let gas_limit = estimate.saturating_add(estimate / 100 * GAS_MARGIN_PERCENT).min(TX_GAS_MAX);
        let fees = self.chain().fees().await.map_err(|error| not_sent(error.to_string()))?;
        let (tip_wei, fee_max_wei) = self.inner.config.bid(&fees, *self.urgency.borrow());
        let inner = self.inner.clone();
        let mut nonces = inner.lanes[self.lane].nonces.lock().await;
        let mut last = String::new();
        if let Some(nonce) = self.order.nonce {
            return self.take_place(Envelope { nonce, gas_limit, tip_wei, fee_max_wei }).await;
        }
        for _ in 0..NONCE_ATTEMPTS {
            let alone = inner.lanes[self.lane].flights.load(Ordering::Relaxed) <= 1;
            let nonce = match nonces.next.filter(|_| !alone) {
                Some(next) => next,
                None => inner.chain.nonce(from).await.map_err(|error| not_sent(error.to_string()))?,
            };
            let envelope = Envelope { nonce, gas_limit, tip_wei, fee_max_wei };
            self.announce(nonce).await?;
            match self.send(&envelope).await {
                Ok(()) => {
                    nonces.next = Some(nonce.saturating_add(1));
                    return Ok(envelope);
                }
                Err(BroadcastError::Unanswered(error)) => {
                    tracing::warn!(%error, nonce, "the node did not answer; the transaction is sent again until it is known");
                    nonces.next = Some(nonce.saturating_add(1));
                    return Ok(envelope);
                }
                // A base fee that rises between look and sending is caught up with in the air.
                Err(BroadcastError::Rejected(why)) if is_known(&why) || is_below_base_fee(&why) => {
                    nonces.next = Some(nonce.saturating_add(1));
                    return Ok(envelope);
                }
                Err(BroadcastError::Rejected(why)) => {
                    locked(&self.tx_hashes).pop();
                    if !is_nonce_taken(&why) {
                        return Err(not_sent(why));
                    }
                    nonces.next = None;
                    last = why;
                }
            }
        }
        Err(not_sent(format!("no free nonce after {NONCE_ATTEMPTS} attempts: {last}")))
    }

    /// Sends at a nonce that something else may have. A node that says so keeps that until more is paid.
    async fn take_place(&mut self, envelope: Envelope) -> Result<Envelope, Outcome> {
        self.announce(envelope.nonce).await?;
        match self.send(&envelope).await {
            Err(BroadcastError::Rejected(why))
                if !is_known(&why) && !is_below_base_fee(&why) && !is_nonce_taken(&why) =>
            {
                locked(&self.tx_hashes).pop();
                Err(Outcome::NotSent { why })
            }
            Ok(()) | Err(BroadcastError::Rejected(_) | BroadcastError::Unanswered(_)) => Ok(envelope),
        }
    }

    async fn announce(&self, nonce: u64) -> Result<(), Outcome> {
        match &self.order.herald {
            Some(herald) => (herald.0)(nonce).await.map_err(|why| Outcome::NotSent { why }),
            None => Ok(()),
        }
    }

    /// Waits for a receipt, sends again, raises the fee; ends when the nonce is used up for good.
    async fn stay_aloft(&mut self, mut envelope: Envelope) {
        let mut sent_at = Instant::now();
        let (mut taken_seen, mut was_mined) = (false, false);
        loop {
            let raised = tokio::select! {
                () = tokio::time::sleep(self.inner.config.poll) => false,
                changed = self.urgency.changed() => changed.is_ok(),
            };
            match self.landed().await {
                Ok(Some(mined)) => {
                    self.deliver_mined(mined.clone()).await;
                    if self.is_deep(&mined).await {
                        return;
                    }
                    was_mined = true;
                    continue;
                }
                Ok(None) => {}
                Err(_) => continue,
            }
            if let Ok(used) = self.chain().nonce_mined(self.lane().key.address()).await
                && used > envelope.nonce
            {
                // A node may know the new nonce a moment before the receipt: believe it at the second look.
                if std::mem::replace(&mut taken_seen, true) {
                    let why = format!("another transaction of this key took nonce {}", envelope.nonce);
                    self.deliver(Outcome::NotSent { why });
                    return;
                }
                continue;
            }
            taken_seen = false;
            // Nodes drop what a reorganisation took out, and everything behind its nonce waits for it.
            let taken_back = std::mem::take(&mut was_mined);
            if raised || taken_back || sent_at.elapsed() >= self.inner.config.bump_after {
                sent_at = Instant::now();
                self.send_again(&mut envelope).await;
            }
        }
    }

    /// Sends with a higher fee, or the same where the fee cannot rise any more.
    async fn send_again(&mut self, envelope: &mut Envelope) {
        let Ok(fees) = self.chain().fees().await else { return };
        let config = &self.inner.config;
        let (tip, fee_max) = config.bid(&fees, *self.urgency.borrow());
        let more = |wei: u128| wei.saturating_add(wei.saturating_mul(BUMP_PERCENT) / 100).saturating_add(1);
        let bid = Envelope {
            tip_wei: tip.max(more(envelope.tip_wei)),
            fee_max_wei: fee_max.max(more(envelope.fee_max_wei)),
            ..*envelope
        };
        let affordable = bid.fee_max_wei <= config.fee_per_gas_max_wei && bid.tip_wei <= bid.fee_max_wei;
        let next = if affordable { bid } else { Envelope { ..*envelope } };
        match self.send(&next).await {
            Ok(()) => *envelope = next,
            Err(BroadcastError::Unanswered(error)) => {
                tracing::warn!(%error, nonce = next.nonce, "the node did not answer; the transaction is sent again until it is known");
                *envelope = next;
            }
            // It belongs to somebody else: outbid by steps of our own.
            Err(BroadcastError::Rejected(why)) if self.order.nonce.is_some() && is_nonce_taken(&why) => {
                *envelope = next
            }
            Err(BroadcastError::Rejected(why)) => {
                tracing::debug!(nonce = next.nonce, why, "the node keeps the transaction that it has");
            }
        }
    }

    async fn send(&self, envelope: &Envelope) -> Result<(), BroadcastError> {
        let call = &self.order.call;
        let tx = TxEip1559 {
            chain_id: self.chain().chain_id(),
            nonce: envelope.nonce,
            gas_limit: envelope.gas_limit,
            max_fee_per_gas: envelope.fee_max_wei,
            max_priority_fee_per_gas: envelope.tip_wei,
            to: call.to,
            value: call.value,
            access_list: Default::default(),
            input: call.data.clone(),
        };
        let signature = self.lane().key.0.sign_hash_sync(&tx.signature_hash());
        let signed = tx.into_signed(signature.expect("a local secret signs every digest"));
        self.note(*signed.hash());
        self.chain().broadcast(&TxEnvelope::from(signed).encoded_2718()).await
    }

    fn note(&self, hash: TxHash) {
        let mut hashes = locked(&self.tx_hashes);
        if !hashes.contains(&hash) {
            hashes.push(hash);
        }
    }

    /// The receipt of whichever transaction of this flight is in a block.
    async fn landed(&self) -> Result<Option<Mined>, ChainError> {
        let hashes = locked(&self.tx_hashes).clone();
        for hash in hashes.into_iter().rev() {
            if let Some(mined) = self.chain().receipt(hash).await? {
                return Ok(Some(mined));
            }
        }
        Ok(None)
    }

    async fn is_deep(&self, mined: &Mined) -> bool {
        let confirmations = self.chain().confirmations();
        if confirmations == 0 {
            return true;
        }
        let deep = mined.block_number.saturating_add(confirmations);
        self.chain().head().await.is_ok_and(|head| head.number >= deep)
    }

    async fn deliver_mined(&self, mined: Mined) {
        if self.outcome.borrow().is_some() {
            return;
        }
        if mined.success {
            return self.deliver(Outcome::Mined(mined));
        }
        let from = self.lane().key.address();
        let refusal = self.chain().why_refused(from, &self.order.call, mined.block_number).await;
        self.deliver(Outcome::Reverted { refusal, mined: Some(mined) });
    }

    /// Tells those who wait; the intent is remembered if it arrived, and free again if it did not.
    fn deliver(&self, outcome: Outcome) {
        if let Some(intent) = self.order.intent {
            locked(&self.inner.guard).settle(intent, &outcome);
        }
        self.outcome.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(outcome);
            }
            first
        });
    }

    async fn alarm_when_gas_is_low(&self) {
        let (address, reserve) = (self.lane().key.address(), self.inner.config.gas_reserve_wei);
        if let Ok(balance_wei) = self.chain().balance(proto::NATIVE, address).await
            && balance_wei < reserve
        {
            tracing::warn!(%address, %balance_wei, reserve_wei = %reserve, "ALARM: little is left for gas; send coins to this address");
        }
    }
}

impl SubmitterConfig {
    /// Tip and most fee per gas, in wei.
    fn bid(&self, fees: &Fees, urgency: Urgency) -> (u128, u128) {
        let tip = match urgency {
            Urgency::Normal => fees.priority_fee_wei,
            Urgency::Urgent => fees.priority_fee_wei.saturating_mul(URGENT_TIP_FACTOR),
        };
        // Twice the base fee holds for six full blocks in a row.
        let fee_max = fees.base_fee_wei.saturating_mul(2).saturating_add(tip).min(self.fee_per_gas_max_wei);
        (tip.min(fee_max), fee_max)
    }
}

impl Guard {
    fn settle(&mut self, intent: B256, outcome: &Outcome) {
        self.flying.remove(&intent);
        if !matches!(outcome, Outcome::Mined(_)) || self.arrived.insert(intent, outcome.clone()).is_some() {
            return;
        }
        self.arrived_order.push_back(intent);
        if self.arrived_order.len() > ARRIVED_MAX
            && let Some(oldest) = self.arrived_order.pop_front()
        {
            self.arrived.remove(&oldest);
        }
    }
}

impl fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret of {}", self.address())
    }
}

impl fmt::Debug for Herald {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a herald")
    }
}

impl fmt::Debug for Submitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submitter").field("url", &self.0.chain.url()).field("addresses", &self.addresses()).finish()
    }
}

/// A panic of another holder leaves the plain data behind these locks whole.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a node says that it has the transaction already.
fn is_known(why: &str) -> bool {
    let why = why.to_lowercase();
    why.contains("already known") || why.contains("already imported") || why.contains("known transaction")
}

/// Whether a node says that the nonce is taken, by a block or by a transaction that waits.
fn is_nonce_taken(why: &str) -> bool {
    let why = why.to_lowercase();
    why.contains("nonce too low") || why.contains("nonce is too low") || why.contains("underpriced")
}

/// Whether a node says that a transaction pays less than the next block asks.
fn is_below_base_fee(why: &str) -> bool {
    let why = why.to_lowercase();
    why.contains("base fee") && why.contains("less than")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_node::FakeNode;

    fn submitter(node: &FakeNode, confirmations: u64) -> Submitter {
        let domain = Domain::new(31_337, Address::repeat_byte(0xad));
        let chain = Chain::over(node.client(), "memory", domain, confirmations);
        let key = AccountKey::from_secret(&[7; 32]).expect("a scalar");
        let config = SubmitterConfig {
            poll: Duration::from_millis(1),
            bump_after: Duration::from_millis(20),
            ..SubmitterConfig::local()
        };
        Submitter::new(chain, vec![key], config)
    }

    fn order(value: u64) -> Order {
        Order::new(Call::of(Address::repeat_byte(1), U256::from(value), Bytes::new()))
    }

    /// Waits until the node is in a state; a test that waits for ever is stopped by its runner.
    async fn until(node: &FakeNode, reached: impl Fn(&mut crate::fake_node::State) -> bool) {
        while !node.with(&reached) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn many_at_once_from_one_key_take_one_nonce_each() {
        let node = FakeNode::new();
        let submitter = submitter(&node, 0);
        let outcomes = futures::future::join_all((0..30).map(|i| submitter.submit(order(i)))).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Mined(_))), "{outcomes:?}");
        let mut nonces: Vec<u64> = node.with(|state| state.sent.iter().map(|sent| sent.0).collect());
        nonces.sort_unstable();
        assert_eq!(nonces, (0..30).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn what_is_sent_again_carries_the_same_nonce_and_a_higher_fee() {
        let node = FakeNode::new();
        node.with(|state| state.automine = false);
        let submitter = submitter(&node, 0);
        let flight = tokio::spawn({
            let submitter = submitter.clone();
            async move { submitter.submit(order(1)).await }
        });
        until(&node, |state| state.sent.len() >= 3).await;
        node.with(|state| state.mine());
        let mined = flight.await.expect("no panic").mined().expect("it was mined");
        let sent = node.with(|state| state.sent.clone());
        assert!(sent.iter().all(|(nonce, _, _)| *nonce == 0), "{sent:?}");
        assert!(sent.windows(2).all(|pair| pair[0].2 < pair[1].2), "{sent:?}");
        assert!(sent.iter().any(|(_, hash, _)| *hash == mined.tx_hash));
    }

    #[tokio::test]
    async fn an_intent_flies_once_however_often_it_is_sent() {
        let node = FakeNode::new();
        let submitter = submitter(&node, 0);
        let guarded = || order(1).intent(B256::repeat_byte(1));
        let together = futures::future::join_all((0..5).map(|_| submitter.submit(guarded()))).await;
        let later = submitter.submit(guarded()).await;
        for outcome in together {
            assert_eq!(outcome, later);
        }
        assert_eq!(node.with(|state| state.sent.len()), 1);
    }

    #[tokio::test]
    async fn a_transaction_that_was_taken_back_is_sent_again() {
        let node = FakeNode::new();
        let submitter = submitter(&node, 2);
        submitter.submit(order(1)).await.mined().expect("it was mined");
        node.with(|state| {
            state.automine = false;
            state.take_back();
        });
        until(&node, |state| state.sent.len() >= 2).await;
        assert!(node.with(|state| state.sent.iter().all(|sent| sent.0 == 0)));
        node.with(|state| (0..3).for_each(|_| state.mine()));
    }

    #[tokio::test]
    async fn every_end_is_told_apart() {
        // (what the node does, what comes out)
        type Change = fn(&mut crate::fake_node::State);
        let cases: [(&str, Change, &str); 6] = [
            ("a refusal by the contract", |node| node.reverts = Some(Bytes::new()), "the contract refused"),
            (
                "a refusal by the node",
                |node| node.rejects = vec!["insufficient funds"],
                "nothing was sent: insufficient",
            ),
            ("a taken nonce", |node| node.rejects = vec!["nonce too low"; 2], "mined"),
            ("nonces taken for ever", |node| node.rejects = vec!["nonce too low"; 9], "no free nonce"),
            ("no answer", |node| node.silent = 1, "mined"),
            ("nobody", |node| node.dead = true, "does not answer"),
        ];
        for (name, change, expected) in cases {
            let node = FakeNode::new();
            node.with(change);
            let text = match submitter(&node, 0).submit(order(1)).await.mined() {
                Ok(_) => "mined".to_owned(),
                Err(text) => text,
            };
            assert!(text.contains(expected), "{name}: {text}");
        }
    }

    #[tokio::test]
    async fn a_rejected_transaction_leaves_no_gap_and_a_stolen_nonce_ends_its_flight() {
        let node = FakeNode::new();
        let submitter = submitter(&node, 0);
        node.with(|state| state.rejects = vec!["insufficient funds"]);
        assert!(matches!(submitter.submit(order(1)).await, Outcome::NotSent { .. }));
        assert!(matches!(submitter.submit(order(1)).await, Outcome::Mined(_)));
        node.with(|state| state.automine = false);
        let flight = tokio::spawn({
            let submitter = submitter.clone();
            async move { submitter.submit(order(2)).await }
        });
        until(&node, |state| state.sent.len() >= 2).await;
        node.with(|state| state.foreign_transaction());
        assert!(matches!(flight.await, Ok(Outcome::NotSent { .. })));
    }

    #[tokio::test]
    async fn nothing_leaves_before_the_herald_is_through() {
        let node = FakeNode::new();
        let submitter = submitter(&node, 0);
        let deaf = Herald::new(|_| async { Err("the disk is full".to_owned()) });
        let outcome = submitter.submit(order(1).herald(deaf)).await;
        assert!(matches!(&outcome, Outcome::NotSent { why } if why.contains("disk")), "{outcome:?}");
        assert_eq!(node.with(|state| state.sent.len()), 0);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let herald = {
            let (node, heard) = (node.clone(), heard.clone());
            Herald::new(move |nonce| {
                locked(&heard).push((nonce, node.with(|state| state.sent.len())));
                async { Ok(()) }
            })
        };
        for _ in 0..2 {
            submitter.submit(order(1).herald(herald.clone())).await.mined().expect("sent");
        }
        assert_eq!(*locked(&heard), [(0, 0), (1, 1)], "nonce and transactions sent before");
    }

    #[tokio::test]
    async fn a_grounded_submitter_sends_nothing_and_another_takes_the_place_of_what_it_sent() {
        let node = FakeNode::new();
        node.with(|state| state.automine = false);
        let dead = submitter(&node, 0);
        let flight = tokio::spawn({
            let dead = dead.clone();
            async move { dead.submit(order(1)).await }
        });
        until(&node, |state| state.sent.len() >= 2).await;
        dead.ground();
        assert!(matches!(flight.await, Ok(Outcome::Unknown { .. })));
        let sent = node.with(|state| state.sent.len());
        assert_eq!(dead.submit(order(2)).await, Outcome::Unknown { tx_hashes: Vec::new() });
        assert_eq!(node.with(|state| state.sent.len()), sent);

        let next = submitter(&node, 0);
        let instead = tokio::spawn(async move { next.submit(order(3).at_nonce(0)).await });
        until(&node, |state| state.sent.len() > sent).await;
        node.with(|state| state.mine());
        let mined = instead.await.expect("no panic").mined().expect("it paid more");
        assert!(
            node.with(|state| state.sent[sent..].iter().any(|(nonce, hash, _)| (*nonce, *hash) == (0, mined.tx_hash)))
        );
    }

    #[tokio::test]
    async fn who_stops_waiting_is_told_what_was_sent() {
        let node = FakeNode::new();
        node.with(|state| state.automine = false);
        let submitter = submitter(&node, 0);
        let impatient = order(1).intent(B256::repeat_byte(1)).patience(Duration::from_millis(30));
        let Outcome::Unknown { tx_hashes } = submitter.submit(impatient.clone()).await else { panic!("too early") };
        assert!(!tx_hashes.is_empty());
        node.with(|state| state.mine());
        let patient = impatient.patience(Duration::from_secs(60));
        assert!(matches!(submitter.submit(patient).await, Outcome::Mined(_)));
        assert!(node.with(|state| state.sent.iter().all(|sent| sent.0 == 0)));
    }
}
