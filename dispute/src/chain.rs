//! Reading a ledger, and nothing of what to make of it.
//!
//! A [`Chain`] is an adjudicator on an EVM chain, over JSON-RPC by HTTP or over any transport that the embedded ledger
//! hands out: one code path for both. It is cheap to clone. Nothing is asked of the chain when it is made, so that a
//! process can start while its ledger is away; [`Chain::check`] says whether it is the right one.

use std::time::Duration;

use alloy::eips::BlockId;
use alloy::network::{Ethereum, TransactionBuilder};
use alloy::providers::{Provider, RootProvider};
use alloy::rpc::client::RpcClient;
use alloy::rpc::types::{Filter, Header, TransactionReceipt, TransactionRequest};
use alloy::transports::{RpcError, TransportErrorKind};
use alloy_primitives::{Address, B256, Bytes, TxHash, U256};
use alloy_sol_types::{SolCall, sol};
use proto::ids::NATIVE;
use proto::{AccountId, Asset, ChannelId, Domain};

use crate::adjudicator::abi::IAdjudicator as contract;
use crate::adjudicator::{Adjudicator, BlockRef, Call, EventError, LedgerBooks, LedgerEvent, Refusal};

sol! {
    #[allow(missing_docs)]
    interface Erc20 {
        function balanceOf(address owner) external view returns (uint256);
        function allowance(address owner, address spender) external view returns (uint256);
        function approve(address spender, uint256 amount) external returns (bool);
        function decimals() external view returns (uint8);
        function symbol() external view returns (string);
        function mint(address to, uint256 amount) external;
        function transfer(address to, uint256 amount) external returns (bool);
        function DOMAIN_SEPARATOR() external view returns (bytes32);
    }
}

/// How long one request to a node may take: longer than any node needs for a full range of logs.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Blocks over which the block time is measured.
const BLOCK_TIME_SAMPLE: u64 = 256;
/// Decimals of every EVM chain's own coin.
const NATIVE_DECIMALS: u8 = 18;

/// An adjudicator on an EVM chain.
#[derive(Clone, Debug)]
pub struct Chain {
    provider: RootProvider<Ethereum>,
    adjudicator: Adjudicator,
    confirmations: u64,
    url: String,
}

/// Why a ledger did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The address of the node is no URL.
    #[error("{url:?} is no RPC address ({why}); write one like http://127.0.0.1:8545")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The node does not answer, or not in time, or with an error of its own.
    #[error("the ledger at {url} does not answer: {why}; check that the node runs and that the address is right")]
    Unreachable {
        /// The node.
        url: String,
        /// What happened.
        why: String,
    },
    /// It is another chain.
    #[error(
        "the node at {url} serves chain {found}, expected chain {expected}; use a node of chain {expected} or change the configured chain id"
    )]
    WrongChain {
        /// The node.
        url: String,
        /// The chain id expected.
        expected: u64,
        /// The chain id found.
        found: u64,
    },
    /// It is another chain with the same id, as developer chains are.
    #[error(
        "the chain at {url} began with block {found}, this store belongs to one that began with {expected}; use the store of this chain, or a new one"
    )]
    WrongGenesis {
        /// The node.
        url: String,
        /// The genesis hash expected.
        expected: B256,
        /// The genesis hash found.
        found: B256,
    },
    /// No contract at the address.
    #[error(
        "there is no contract at {address} on the chain at {url}; check the adjudicator's address, or deploy it with `payhub deploy`"
    )]
    NoContract {
        /// The node.
        url: String,
        /// The address.
        address: Address,
    },
    /// A contract, but not an adjudicator of this version and chain.
    #[error(
        "the contract at {address} is not the adjudicator that signatures are made for (domain {found}, expected {expected}); check the address and the version"
    )]
    WrongContract {
        /// The address.
        address: Address,
        /// The domain separator expected.
        expected: B256,
        /// The domain separator found; zero if it has none.
        found: B256,
    },
    /// A call was refused by a contract.
    #[error("the contract at {to} refused: {refusal}")]
    Refused {
        /// The contract.
        to: Address,
        /// Why.
        refusal: Refusal,
    },
    /// A log that is no event of the adjudicator.
    #[error(transparent)]
    Event(#[from] EventError),
    /// A node's answer makes no sense.
    #[error("the node at {url} answered {what} with something else: {why}; is it an Ethereum JSON-RPC node?")]
    Nonsense {
        /// The node.
        url: String,
        /// What was asked.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// The fees that a chain asks at a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fees {
    /// Burnt per gas.
    pub base_fee_wei: u128,
    /// What the node suggests on top.
    pub priority_fee_wei: u128,
}

/// How fast a chain is and how much fits into its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Most gas of a block.
    pub block_gas_limit: u64,
    /// Seconds from block to block, on the average of the last 256, rounded up.
    pub block_time_s: u64,
    /// What it asks now.
    pub fees: Fees,
}

/// A transaction that is in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mined {
    /// Its hash.
    pub tx_hash: TxHash,
    /// Number of its block.
    pub block_number: u64,
    /// Hash of its block.
    pub block_hash: B256,
    /// Gas it used.
    pub gas_used: u64,
    /// Whether it succeeded; a failed one changed nothing but its sender's balance and nonce.
    pub success: bool,
    /// The contract it created, if it created one.
    pub created: Option<Address>,
    /// Events of the adjudicator in it; block times are 0 here, the cursor has them.
    pub events: Vec<LedgerEvent>,
}

impl Chain {
    /// A chain by the address of a node. `confirmations` is the number of blocks on top of one that makes it confirmed;
    /// 0 where a block is final when it is there.
    pub fn connect(url: &str, domain: Domain, confirmations: u64) -> Result<Self, ChainError> {
        let bad = |why: String| ChainError::BadUrl { url: url.to_owned(), why };
        let parsed: alloy::transports::http::reqwest::Url = url.parse().map_err(|e| bad(format!("{e}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(bad(format!("scheme {:?} is not http or https", parsed.scheme())));
        }
        let client = alloy::transports::http::reqwest::Client::builder().timeout(REQUEST_TIMEOUT).build();
        let client = client.map_err(|e| bad(e.to_string()))?;
        Ok(Chain::over(RpcClient::new_http_with_client(client, parsed), url, domain, confirmations))
    }

    /// A chain over any transport; `name` stands for its address in messages.
    pub fn over(client: RpcClient, name: &str, domain: Domain, confirmations: u64) -> Self {
        Chain {
            provider: RootProvider::new(client),
            adjudicator: Adjudicator::new(domain),
            confirmations,
            url: name.to_owned(),
        }
    }

    /// A chain whose id the caller does not know yet: asks the node for it, and checks the contract.
    pub async fn discover(url: &str, adjudicator: Address, confirmations: u64) -> Result<Self, ChainError> {
        let unknown = Chain::connect(url, Domain::new(0, adjudicator), confirmations)?;
        let domain = Domain::new(unknown.remote_chain_id().await?, adjudicator);
        let chain = Chain { adjudicator: Adjudicator::new(domain), ..unknown };
        chain.check().await.map(|()| chain)
    }

    /// Makes sure that the node serves the expected chain and that the adjudicator on it is the one that signatures are
    /// made for.
    pub async fn check(&self) -> Result<(), ChainError> {
        let (expected, found) = (self.domain().chain_id, self.remote_chain_id().await?);
        if expected != found {
            return Err(ChainError::WrongChain { url: self.url.clone(), expected, found });
        }
        let address = self.adjudicator.address();
        if self.code(address).await?.is_empty() {
            return Err(ChainError::NoContract { url: self.url.clone(), address });
        }
        let expected = self.domain().separator();
        let found = match self.view(address, &contract::domainSeparatorCall {}, BlockId::latest()).await {
            Ok(separator) => separator,
            Err(ChainError::Refused { .. } | ChainError::Nonsense { .. }) => B256::ZERO,
            Err(error) => return Err(error),
        };
        if expected == found { Ok(()) } else { Err(ChainError::WrongContract { address, expected, found }) }
    }

    /// Makes sure that the chain began with the block that a store remembers.
    pub async fn check_genesis(&self, expected: B256) -> Result<(), ChainError> {
        let found = self.genesis_hash().await?;
        if expected == found {
            Ok(())
        } else {
            Err(ChainError::WrongGenesis { url: self.url.clone(), expected, found })
        }
    }

    /// The domain that signatures for this chain carry.
    pub fn domain(&self) -> &Domain {
        self.adjudicator.domain()
    }

    /// Builds calls.
    pub fn adjudicator(&self) -> &Adjudicator {
        &self.adjudicator
    }

    /// The chain's id, as configured.
    pub fn chain_id(&self) -> u64 {
        self.domain().chain_id
    }

    /// Blocks on top of one that make it confirmed.
    pub fn confirmations(&self) -> u64 {
        self.confirmations
    }

    /// The node's address, or the name of the transport.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The provider underneath, for calls that this module does not offer.
    pub fn provider(&self) -> &RootProvider<Ethereum> {
        &self.provider
    }

    /// The newest block.
    pub async fn head(&self) -> Result<BlockRef, ChainError> {
        let head = self.block_at(BlockId::latest()).await?;
        head.ok_or_else(|| self.nonsense("the newest block", "there is none"))
    }

    /// The block with that number on the node's chain, if it has one.
    pub async fn block(&self, number: u64) -> Result<Option<BlockRef>, ChainError> {
        self.block_at(BlockId::number(number)).await
    }

    /// The hash of the first block.
    pub async fn genesis_hash(&self) -> Result<B256, ChainError> {
        let genesis = self.block(0).await?;
        genesis.map(|block| block.hash).ok_or_else(|| self.nonsense("the first block", "there is none"))
    }

    /// The adjudicator's events in one block, asked by its hash, so that the answer cannot be about another one.
    pub async fn events_of(&self, block: &BlockRef) -> Result<Vec<LedgerEvent>, ChainError> {
        let filter = Filter::new().address(self.adjudicator.address()).at_block_hash(block.hash);
        let logs = self.provider.get_logs(&filter).await.map_err(|e| self.failed(e))?;
        let mut events = Vec::with_capacity(logs.len());
        for log in &logs {
            events.push(LedgerEvent::decode(log, block)?);
        }
        events.sort_by_key(|event| event.log_index);
        Ok(events)
    }

    /// The adjudicator's events in a range of blocks that can no longer change, in order.
    pub async fn events_in(&self, from: u64, to: u64) -> Result<Vec<LedgerEvent>, ChainError> {
        let filter = Filter::new().address(self.adjudicator.address()).from_block(from).to_block(to);
        let mut logs = self.provider.get_logs(&filter).await.map_err(|e| self.failed(e))?;
        logs.sort_by_key(|log| (log.block_number, log.log_index));
        let mut events = Vec::with_capacity(logs.len());
        let mut block = None::<BlockRef>;
        for log in &logs {
            let number = log.block_number.ok_or_else(|| self.nonsense("logs", "a log without a block"))?;
            let known = block.filter(|block| block.number == number);
            let at = match known {
                Some(known) => known,
                None => self.block(number).await?.ok_or_else(|| self.nonsense("logs", "a log of an unknown block"))?,
            };
            if log.block_hash.is_some_and(|hash| hash != at.hash) {
                return Err(
                    self.nonsense("logs", "a log of a block that is not on the chain; the chain moves, ask again")
                );
            }
            block = Some(at);
            events.push(LedgerEvent::decode(log, &at)?);
        }
        Ok(events)
    }

    /// The books of an account at the newest block.
    pub async fn books(&self, account: &AccountId) -> Result<LedgerBooks, ChainError> {
        self.books_at(account, BlockId::latest()).await
    }

    /// The books of an account as they were after a block.
    pub async fn books_after(&self, account: &AccountId, block_number: u64) -> Result<LedgerBooks, ChainError> {
        self.books_at(account, BlockId::number(block_number)).await
    }

    /// Whether a channel was opened.
    pub async fn is_opened(&self, channel: ChannelId) -> Result<bool, ChainError> {
        self.view(self.adjudicator.address(), &contract::channelCall { channelId: channel.0 }, BlockId::latest()).await
    }

    /// The vault that holds a channel's money: the `to` of an EIP-3009 authorisation.
    pub async fn vault_of(&self, channel: ChannelId) -> Result<Address, ChainError> {
        self.view(self.adjudicator.address(), &contract::vaultOfCall { channelId: channel.0 }, BlockId::latest()).await
    }

    /// What waits in a vault for an account.
    pub async fn claimable(&self, vault: Address, asset: Asset, account: Address) -> Result<U256, ChainError> {
        let call = contract::claimableCall { vault, asset, account };
        self.view(self.adjudicator.address(), &call, BlockId::latest()).await
    }

    /// Whether Ed25519 keys work on this ledger.
    pub async fn ed25519_available(&self) -> Result<bool, ChainError> {
        self.view(self.adjudicator.address(), &contract::ed25519AvailableCall {}, BlockId::latest()).await
    }

    /// The shortest and the longest challenge period that the deployment allows, in seconds.
    pub async fn challenge_period_bounds_s(&self) -> Result<(u32, u32), ChainError> {
        let address = self.adjudicator.address();
        let min = self.view(address, &contract::minChallengePeriodCall {}, BlockId::latest()).await?;
        let max = self.view(address, &contract::maxChallengePeriodCall {}, BlockId::latest()).await?;
        Ok((min, max))
    }

    /// What an address owns of an asset.
    pub async fn balance(&self, asset: Asset, owner: Address) -> Result<U256, ChainError> {
        if asset == NATIVE {
            return self.provider.get_balance(owner).await.map_err(|e| self.failed(e));
        }
        self.view(asset, &Erc20::balanceOfCall { owner }, BlockId::latest()).await
    }

    /// What the adjudicator may take of an owner's tokens.
    pub async fn allowance(&self, asset: Asset, owner: Address) -> Result<U256, ChainError> {
        let spender = self.adjudicator.address();
        self.view(asset, &Erc20::allowanceCall { owner, spender }, BlockId::latest()).await
    }

    /// Decimal places of an asset.
    pub async fn decimals(&self, asset: Asset) -> Result<u8, ChainError> {
        if asset == NATIVE {
            return Ok(NATIVE_DECIMALS);
        }
        self.view(asset, &Erc20::decimalsCall {}, BlockId::latest()).await
    }

    /// The symbol of a token; the native coin has none on the ledger.
    pub async fn symbol(&self, token: Asset) -> Result<String, ChainError> {
        self.view(token, &Erc20::symbolCall {}, BlockId::latest()).await
    }

    /// The EIP-712 domain separator of a token, which authorisations of its payments are signed in.
    pub async fn token_separator(&self, token: Asset) -> Result<B256, ChainError> {
        self.view(token, &Erc20::DOMAIN_SEPARATORCall {}, BlockId::latest()).await
    }

    /// A call that lets the adjudicator take `amount` of the sender's tokens.
    pub fn approve(&self, token: Asset, amount: U256) -> Call {
        let data = Erc20::approveCall { spender: self.adjudicator.address(), amount }.abi_encode();
        Call::of(token, U256::ZERO, data.into())
    }

    /// A call that sends an asset from the sender to an address.
    pub fn transfer(&self, asset: Asset, to: Address, amount: U256) -> Call {
        if asset == NATIVE {
            return Call::of(to, amount, Bytes::new());
        }
        let data = Erc20::transferCall { to, amount }.abi_encode();
        Call::of(asset, U256::ZERO, data.into())
    }

    /// A call that mints test dollars; only the faucet that the token was created with may send it.
    pub fn mint(&self, token: Asset, to: Address, amount: U256) -> Call {
        let data = Erc20::mintCall { to, amount }.abi_encode();
        Call::of(token, U256::ZERO, data.into())
    }

    /// The code at an address.
    pub async fn code(&self, address: Address) -> Result<Bytes, ChainError> {
        self.provider.get_code_at(address).await.map_err(|e| self.failed(e))
    }

    /// What a call would do at the newest block: its return data, or why it is refused.
    pub async fn simulate(&self, from: Address, call: &Call) -> Result<Bytes, ChainError> {
        let request = request_of(Some(from), call);
        self.provider.call(request).await.map_err(|e| self.refused(target(call), e))
    }

    /// Gas that a call takes by the node's estimate, or why it is refused.
    pub async fn estimate_gas(&self, from: Address, call: &Call) -> Result<u64, ChainError> {
        let request = request_of(Some(from), call);
        self.provider.estimate_gas(request).await.map_err(|e| self.refused(target(call), e))
    }

    /// What a call that failed in a block was refused with: it is tried again on the state after that block.
    pub(crate) async fn why_refused(&self, from: Address, call: &Call, block_number: u64) -> Refusal {
        let request = request_of(Some(from), call);
        match self.provider.call(request).block(BlockId::number(block_number)).await {
            Ok(_) => {
                Refusal::worded("the transaction failed, but the same call succeeds after its block; it may lack gas")
            }
            Err(error) => match self.refused(target(call), error) {
                ChainError::Refused { refusal, .. } => refusal,
                other => Refusal::worded(format!("the transaction failed, and why cannot be found out: {other}")),
            },
        }
    }

    /// Fees at the newest block.
    pub async fn fees(&self) -> Result<Fees, ChainError> {
        let header = self.header(BlockId::latest()).await?;
        let base_fee = header.and_then(|header| header.inner.base_fee_per_gas).unwrap_or_default();
        let priority = self.provider.get_max_priority_fee_per_gas().await.map_err(|e| self.failed(e))?;
        Ok(Fees { base_fee_wei: u128::from(base_fee), priority_fee_wei: priority })
    }

    /// How fast the chain is, how much fits into its blocks, and what it asks now.
    pub async fn pace(&self) -> Result<Pace, ChainError> {
        let head = self.header(BlockId::latest()).await?;
        let head = head.ok_or_else(|| self.nonsense("the newest block", "there is none"))?.inner;
        let past = head.number.saturating_sub(BLOCK_TIME_SAMPLE);
        let earlier_s = self.block(past).await?.map_or(head.timestamp, |block| block.time_s);
        let passed_s = head.timestamp.saturating_sub(earlier_s);
        Ok(Pace {
            block_gas_limit: head.gas_limit,
            block_time_s: passed_s.div_ceil(head.number.saturating_sub(past).max(1)),
            fees: self.fees().await?,
        })
    }

    /// What the node calls itself, as in `payhub/0.1.0` or `Geth/v1.14`.
    pub async fn client_version(&self) -> Result<String, ChainError> {
        self.provider.get_client_version().await.map_err(|e| self.failed(e))
    }

    /// The adjudicator's events about one channel from the first block on, in order: its terms, and every asset in it.
    /// Nodes of long chains may refuse to look that far back.
    pub async fn events_of_channel(&self, channel: ChannelId) -> Result<Vec<LedgerEvent>, ChainError> {
        let filter = Filter::new().address(self.adjudicator.address()).from_block(0).topic1(channel.0);
        let mut logs = self.provider.get_logs(&filter).await.map_err(|e| self.failed(e))?;
        logs.sort_by_key(|log| (log.block_number, log.log_index));
        let mut events = Vec::with_capacity(logs.len());
        for log in &logs {
            let number = log.block_number.ok_or_else(|| self.nonsense("logs", "a log without a block"))?;
            let at = self.block(number).await?.ok_or_else(|| self.nonsense("logs", "a log of an unknown block"))?;
            events.push(LedgerEvent::decode(log, &at)?);
        }
        Ok(events)
    }

    /// Transactions that an address has sent, those that wait included.
    pub async fn nonce(&self, address: Address) -> Result<u64, ChainError> {
        self.provider.get_transaction_count(address).block_id(BlockId::pending()).await.map_err(|e| self.failed(e))
    }

    /// Transactions of an address that are in blocks.
    pub async fn nonce_mined(&self, address: Address) -> Result<u64, ChainError> {
        self.provider.get_transaction_count(address).await.map_err(|e| self.failed(e))
    }

    /// Hands a signed transaction to the node.
    pub(crate) async fn broadcast(&self, raw: &[u8]) -> Result<(), BroadcastError> {
        match self.provider.send_raw_transaction(raw).await {
            Ok(_) => Ok(()),
            Err(RpcError::ErrorResp(payload)) => Err(BroadcastError::Rejected(payload.message.to_string())),
            Err(error) => Err(BroadcastError::Unanswered(self.failed(error))),
        }
    }

    /// The receipt of a transaction, if it is in a block.
    pub async fn receipt(&self, tx_hash: TxHash) -> Result<Option<Mined>, ChainError> {
        let receipt = self.provider.get_transaction_receipt(tx_hash).await.map_err(|e| self.failed(e))?;
        receipt.map(|receipt| self.mined(&receipt)).transpose()
    }

    fn mined(&self, receipt: &TransactionReceipt) -> Result<Mined, ChainError> {
        let place = receipt.block_number.zip(receipt.block_hash);
        let (number, hash) = place.ok_or_else(|| self.nonsense("a receipt", "it names no block"))?;
        let block = BlockRef { number, hash, ..BlockRef::default() };
        let ours = receipt.inner.logs().iter().filter(|log| log.address() == self.adjudicator.address());
        let events = ours.map(|log| LedgerEvent::decode(log, &block)).collect::<Result<Vec<_>, _>>()?;
        Ok(Mined {
            tx_hash: receipt.transaction_hash,
            block_number: number,
            block_hash: hash,
            gas_used: receipt.gas_used,
            success: receipt.status(),
            created: receipt.contract_address,
            events,
        })
    }

    async fn books_at(&self, account: &AccountId, block: BlockId) -> Result<LedgerBooks, ChainError> {
        let call = contract::booksCall { channelId: account.channel.0, asset: account.asset };
        let books = self.view(self.adjudicator.address(), &call, block).await?;
        Ok(LedgerBooks::from_abi(&books))
    }

    async fn remote_chain_id(&self) -> Result<u64, ChainError> {
        self.provider.get_chain_id().await.map_err(|e| self.failed(e))
    }

    async fn block_at(&self, id: BlockId) -> Result<Option<BlockRef>, ChainError> {
        let header = self.header(id).await?;
        Ok(header.map(|header| BlockRef {
            number: header.inner.number,
            hash: header.hash,
            parent: header.inner.parent_hash,
            time_s: header.inner.timestamp,
        }))
    }

    async fn header(&self, id: BlockId) -> Result<Option<Header>, ChainError> {
        let block = self.provider.get_block(id).await.map_err(|e| self.failed(e))?;
        Ok(block.map(|block| block.header))
    }

    async fn view<C: SolCall>(&self, to: Address, call: &C, block: BlockId) -> Result<C::Return, ChainError> {
        let request = TransactionRequest::default().with_to(to).with_input(call.abi_encode());
        let data = self.provider.call(request).block(block).await.map_err(|e| self.refused(to, e))?;
        C::abi_decode_returns(&data).map_err(|e| self.nonsense(C::SIGNATURE, &e.to_string()))
    }

    fn refused(&self, to: Address, error: RpcError<TransportErrorKind>) -> ChainError {
        let payload = match &error {
            RpcError::ErrorResp(payload) => payload,
            _ => return self.failed(error),
        };
        if let Some(data) = payload.as_revert_data() {
            return ChainError::Refused { to, refusal: Refusal::decode(data) };
        }
        // Nodes word refusals without revert data (no funds, out of gas) as they like; they all have in common that
        // the node answered, so asking again changes nothing.
        match payload.message.to_lowercase() {
            m if ["revert", "insufficient", "gas", "nonce", "halt"].iter().any(|word| m.contains(word)) => {
                ChainError::Refused { to, refusal: Refusal::worded(payload.message.to_string()) }
            }
            _ => self.failed(error),
        }
    }

    fn failed(&self, error: RpcError<TransportErrorKind>) -> ChainError {
        ChainError::Unreachable { url: self.url.clone(), why: error.to_string() }
    }

    fn nonsense(&self, what: &'static str, why: &str) -> ChainError {
        ChainError::Nonsense { url: self.url.clone(), what, why: why.to_owned() }
    }
}

/// Why a node did not take a transaction.
#[derive(Debug)]
pub(crate) enum BroadcastError {
    /// It answered no.
    Rejected(String),
    /// It did not answer; the transaction may have arrived.
    Unanswered(ChainError),
}

fn request_of(from: Option<Address>, call: &Call) -> TransactionRequest {
    let request = TransactionRequest::default().with_kind(call.to).with_value(call.value).with_input(call.data.clone());
    match from {
        Some(from) => request.with_from(from),
        None => request,
    }
}

fn target(call: &Call) -> Address {
    call.to.into_to().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_node::{FakeNode, State};

    const ADJUDICATOR: Address = Address::repeat_byte(0xad);

    #[tokio::test]
    async fn the_right_ledger_is_told_from_every_wrong_one() {
        let domain = Domain::new(31_337, ADJUDICATOR);
        type Change = fn(&mut State);
        let cases: [(&str, Change, &str); 6] = [
            ("the right one", |_| {}, ""),
            ("another chain", |node| node.chain_id = 1, "serves chain 1, expected chain 31337"),
            ("no contract", |node| node.code = Bytes::new(), "there is no contract at"),
            ("another contract", |node| node.separator = None, "is not the adjudicator"),
            ("another version", |node| node.separator = Some(B256::repeat_byte(7)), "is not the adjudicator"),
            ("nobody", |node| node.dead = true, "does not answer"),
        ];
        for (name, change, expected) in cases {
            let node = FakeNode::new();
            node.with(|state| state.separator = Some(domain.separator()));
            node.with(change);
            let text = match Chain::over(node.client(), "memory", domain, 0).check().await {
                Ok(()) => String::new(),
                Err(error) => error.to_string(),
            };
            assert!(text.contains(expected) && text.is_empty() == expected.is_empty(), "{name}: {text}");
        }
    }

    #[test]
    fn an_address_that_is_no_url_is_refused_with_an_example() {
        for url in ["", "localhost", "ws://127.0.0.1:8545", "ftp://127.0.0.1"] {
            let error = Chain::connect(url, Domain::new(1, ADJUDICATOR), 0).expect_err("it is no RPC address");
            assert!(error.to_string().contains("http://127.0.0.1:8545"), "{error}");
        }
    }
}
