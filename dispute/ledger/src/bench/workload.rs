//! The workloads: what is on the chain before, and which transactions are measured.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use alloy_primitives::{Address, Bytes, U256};
use alloy_sol_types::SolCall;
use serde::{Serialize, Serializer};

use super::BenchError;
use super::adjudicator::{Hub, SUBMITTERS};
use super::uniswap::{Contracts, Exchange};
use super::world::{Actor, Actors, Order, PreparedBlock, Token, World, stranger};

/// Vaults of the adjudicator where a workload does not name another number.
const SHARDS: u16 = 64;

/// Gas of a token transfer; a first one to an account uses 52,000.
const TOKEN_GAS: u64 = 60_000;

/// Holders of `erc20_20_holders`.
const HOLDERS: usize = 20;

/// Pools of `mixed`.
const MIXED_POOLS: usize = 32;

/// A kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Workload {
    /// Plain transfers, each with a sender and a recipient of its own.
    TransferIndependent,
    /// Plain transfers to one account.
    TransferHot,
    /// Plain transfers of one sender.
    SenderChain,
    /// Token transfers, each with a sender and a recipient of its own.
    Erc20Disjoint,
    /// Token transfers among twenty holders.
    Erc20TwentyHolders,
    /// Token transfers to one holder.
    Erc20Hot,
    /// Uniswap v2 swaps, each in a pool of its own.
    UniswapMany,
    /// Uniswap v2 swaps in one pool.
    UniswapOne,
    /// Channels opened.
    AdjudicatorOpen,
    /// Settlements posted.
    AdjudicatorSettle,
    /// All channels closed and paid out, with one vault.
    MassExitS1,
    /// The same with 64 vaults.
    MassExitS64,
    /// Some of each.
    Mixed,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::TransferIndependent,
        Self::TransferHot,
        Self::SenderChain,
        Self::Erc20Disjoint,
        Self::Erc20TwentyHolders,
        Self::Erc20Hot,
        Self::UniswapMany,
        Self::UniswapOne,
        Self::AdjudicatorOpen,
        Self::AdjudicatorSettle,
        Self::MassExitS1,
        Self::MassExitS64,
        Self::Mixed,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TransferIndependent => "transfer_independent",
            Self::TransferHot => "transfer_hot",
            Self::SenderChain => "sender_chain",
            Self::Erc20Disjoint => "erc20_disjoint",
            Self::Erc20TwentyHolders => "erc20_20_holders",
            Self::Erc20Hot => "erc20_hot",
            Self::UniswapMany => "uniswap_many",
            Self::UniswapOne => "uniswap_one",
            Self::AdjudicatorOpen => "adjudicator_open",
            Self::AdjudicatorSettle => "adjudicator_settle",
            Self::MassExitS1 => "mass_exit_s1",
            Self::MassExitS64 => "mass_exit_s64",
            Self::Mixed => "mixed",
        }
    }

    /// How many transactions it has unless told otherwise: as many as take some ten milliseconds one by one.
    pub fn default_txs(self) -> usize {
        match self {
            Self::TransferIndependent | Self::TransferHot | Self::SenderChain => 8_000,
            Self::Erc20Disjoint | Self::Erc20TwentyHolders | Self::Erc20Hot => 4_000,
            Self::Mixed => 1_500,
            Self::UniswapMany | Self::UniswapOne => 800,
            Self::AdjudicatorOpen | Self::AdjudicatorSettle => 400,
            // A close and a payout for each channel.
            Self::MassExitS1 | Self::MassExitS64 => 800,
        }
    }

    fn needs_uniswap(self) -> bool {
        matches!(self, Self::UniswapMany | Self::UniswapOne | Self::Mixed)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|workload| workload.name() == name)
            .ok_or_else(|| format!("there is no workload `{name}`, these are: {}", known()))
    }
}

impl Serialize for Workload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A workload that is ready to run.
#[derive(Debug)]
pub struct Prepared {
    /// Which.
    pub workload: Workload,
    /// Its blocks, each with the state before it.
    pub blocks: Vec<PreparedBlock>,
    /// What one must know to judge its numbers.
    pub conditions: String,
}

impl Prepared {
    /// Transactions in all.
    pub fn txs(&self) -> usize {
        self.blocks.iter().map(|block| block.transactions.len()).sum()
    }

    /// Gas used in all.
    pub fn gas(&self) -> u64 {
        let used = |block: &PreparedBlock| block.expected.receipts.last().map_or(0, |last| last.cumulative_gas_used);
        self.blocks.iter().map(used).sum()
    }
}

/// Makes workloads ready.
#[derive(Debug)]
pub struct Workshop {
    actors: Actors,
    contracts: Option<Contracts>,
    folder: Option<PathBuf>,
    block_gas: u64,
}

impl Workshop {
    /// Blocks hold at most `block_gas`; Uniswap is read from `contracts` when it is needed.
    pub fn new(contracts: Option<PathBuf>, block_gas: u64) -> Self {
        Self { actors: Actors::default(), contracts: None, folder: contracts, block_gas }
    }

    /// Builds the state and signs the transactions.
    pub fn prepare(&mut self, workload: Workload, txs: Option<usize>) -> Result<Prepared, BenchError> {
        let txs = txs.unwrap_or_else(|| workload.default_txs()).max(1);
        if workload.needs_uniswap() && self.contracts.is_none() {
            self.contracts = Some(Contracts::load(self.folder.as_deref())?);
        }
        let shards = if workload == Workload::MassExitS1 { 1 } else { SHARDS };
        let mut world = World::new(shards, self.block_gas)?;
        // The first accounts are the hub's submitters, so that no account plays two parts.
        let actors = self.actors.first(SUBMITTERS + txs);
        let (submitters, actors) = actors.split_at(SUBMITTERS);
        let contracts = self.contracts.as_ref();
        let exchange = |world: &mut World, pools| {
            Exchange::deploy(world, contracts.expect("loaded above for workloads that need it"), pools)
        };
        let on_channels = |what: &str| {
            format!(
                "{what}; {shards} vault{}, {SUBMITTERS} submitter keys in turn, Ed25519 vouchers",
                if shards == 1 { "" } else { "s" }
            )
        };
        let (blocks, conditions) = match workload {
            Workload::TransferIndependent => {
                let pairs = actors.iter().enumerate().map(|(i, actor)| (*actor, recipient(i)));
                let orders = transfers(&mut world, pairs);
                (world.blocks(&orders)?, "a sender and a recipient of its own for each".to_owned())
            }
            Workload::TransferHot => {
                let orders = transfers(&mut world, actors.iter().map(|actor| (*actor, recipient(0))));
                (world.blocks(&orders)?, "a sender of its own for each, one recipient".to_owned())
            }
            Workload::SenderChain => {
                let orders = transfers(&mut world, (0..txs).map(|i| (actors[0], recipient(i))));
                (world.blocks(&orders)?, "one sender, a recipient of its own for each".to_owned())
            }
            Workload::Erc20Disjoint => {
                let pairs = actors.iter().enumerate().map(|(i, actor)| (*actor, recipient(i)));
                let orders = token_transfers(&mut world, pairs)?;
                (world.blocks(&orders)?, "test dollars, a sender and a recipient of its own for each".to_owned())
            }
            Workload::Erc20TwentyHolders => {
                let holders = &actors[..HOLDERS.min(txs)];
                let mut random = Random(0x20);
                let pairs = (0..txs).map(|i| {
                    let to = random.below(holders.len());
                    (holders[i % holders.len()], holders[to].address)
                });
                let orders = token_transfers(&mut world, pairs.collect::<Vec<_>>())?;
                let conditions = format!("test dollars, {HOLDERS} senders in turn, recipients at random among them");
                (world.blocks(&orders)?, conditions)
            }
            Workload::Erc20Hot => {
                let orders = token_transfers(&mut world, actors.iter().map(|actor| (*actor, recipient(0))))?;
                (world.blocks(&orders)?, "test dollars, a sender of its own for each, one recipient".to_owned())
            }
            Workload::UniswapMany => {
                let exchange = exchange(&mut world, txs)?;
                let orders = exchange.swaps(&mut world, actors)?;
                (world.blocks(&orders)?, "a trader and a pool of its own for each, one router".to_owned())
            }
            Workload::UniswapOne => {
                let exchange = exchange(&mut world, 1)?;
                let orders = exchange.swaps(&mut world, actors)?;
                (world.blocks(&orders)?, "a trader of its own for each, one pool".to_owned())
            }
            Workload::AdjudicatorOpen => {
                let hub = Hub::new(&mut world, shards, submitters, actors)?;
                let blocks = world.blocks(&hub.opens())?;
                (blocks, on_channels("one channel each, deposit by EIP-3009"))
            }
            Workload::AdjudicatorSettle => {
                let hub = Hub::new(&mut world, shards, submitters, actors)?;
                hub.open_all(&mut world)?;
                (world.blocks(&hub.settlements())?, on_channels("one channel each, both sides paid"))
            }
            Workload::MassExitS1 | Workload::MassExitS64 => {
                let members = &actors[..txs.div_ceil(2)];
                let hub = Hub::new(&mut world, shards, submitters, members)?;
                hub.open_all(&mut world)?;
                let conditions = on_channels("every channel: startClose, then finalize after the challenge period");
                (hub.exit(&mut world)?, conditions)
            }
            Workload::Mixed => {
                let orders = mixed(&mut world, submitters, actors, shards, exchange)?;
                let conditions = "40 % plain transfers, 30 % test dollars (half of them among 20 holders), \
                                  20 % swaps over 32 pools, 10 % settlements, shuffled";
                (world.blocks(&orders)?, conditions.to_owned())
            }
        };
        Ok(Prepared { workload, blocks, conditions })
    }
}

fn recipient(number: usize) -> Address {
    stranger("recipient", number as u64)
}

fn transfers(world: &mut World, pairs: impl IntoIterator<Item = (Actor, Address)>) -> Vec<Order> {
    let order = |(from, to)| Order { from, to, value: 1, data: Bytes::new(), gas_limit: 21_000, shard: None };
    let orders = pairs.into_iter().map(order).collect::<Vec<_>>();
    world.fund(orders.iter().flat_map(|order| [order.from.address, order.to]));
    orders
}

fn token_transfers(
    world: &mut World,
    pairs: impl IntoIterator<Item = (Actor, Address)>,
) -> Result<Vec<Order>, BenchError> {
    let usdh = world.deployment.usdh;
    let mut orders = Vec::new();
    let mut holders = Vec::new();
    for (from, to) in pairs {
        let data = Token::transferCall { to, amount: U256::ONE }.abi_encode().into();
        holders.extend([from.address, to]);
        orders.push(Order { from, to: usdh, value: 0, data, gas_limit: TOKEN_GAS, shard: None });
    }
    holders.sort_unstable();
    holders.dedup();
    world.fund(orders.iter().map(|order| order.from.address));
    world.mint(holders, 1_000_000)?;
    Ok(orders)
}

fn mixed(
    world: &mut World,
    submitters: &[Actor],
    actors: &[Actor],
    shards: u16,
    exchange: impl FnOnce(&mut World, usize) -> Result<Exchange, BenchError>,
) -> Result<Vec<Order>, BenchError> {
    let share = |percent: usize| actors.len() * percent / 100;
    let (settling, rest) = actors.split_at(share(10));
    let (trading, rest) = rest.split_at(share(20));
    let (among_holders, rest) = rest.split_at(share(15));
    let (paying, transferring) = rest.split_at(share(15));
    let mut orders = Vec::new();
    if !settling.is_empty() {
        let hub = Hub::new(world, shards, submitters, settling)?;
        hub.open_all(world)?;
        orders.extend(hub.settlements());
    }
    if !trading.is_empty() {
        orders.extend(exchange(world, MIXED_POOLS.min(trading.len()))?.swaps(world, trading)?);
    }
    if !among_holders.is_empty() {
        let holders = &among_holders[..HOLDERS.min(among_holders.len())];
        let mut random = Random(0x20);
        let pairs = (0..among_holders.len())
            .map(|i| (holders[i % holders.len()], holders[random.below(holders.len())].address));
        orders.extend(token_transfers(world, pairs.collect::<Vec<_>>())?);
    }
    orders.extend(token_transfers(world, paying.iter().enumerate().map(|(i, actor)| (*actor, recipient(i))))?);
    orders.extend(transfers(world, transferring.iter().enumerate().map(|(i, actor)| (*actor, recipient(i)))));
    Random(0x31).shuffle(&mut orders);
    Ok(orders)
}

/// SplitMix64: the same workloads and orders in every run, on every machine.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is far below 2^64, so that the bias does not matter.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Puts the items into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
