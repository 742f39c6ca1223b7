//! Uniswap v2 as its authors compiled it: factory, pairs and router, read from the npm packages at run time.

use std::path::{Path, PathBuf};

use alloy_primitives::{Address, Bytes, TxKind, U256, hex};
use alloy_sol_types::{SolCall, SolValue, sol};
use serde::Deserialize;

use super::BenchError;
use super::world::{Actor, Order, Token, World, stranger};

/// Where npm puts the packages, seen from the top of the checkout.
const PACKAGES: &str = "tests/node_modules";

/// Gas of one swap; 105,000 to 120,000 are used.
const SWAP_GAS: u64 = 150_000;

/// What lies in a pool of each token, in base units.
const LIQUIDITY: u64 = 1_000_000_000_000;

/// What a trader has of each token.
const PURSE: u64 = 1_000_000_000;

/// What a swap sells.
const SOLD: u64 = 1_000;

sol! {
    interface Uniswap {
        function createPair(address tokenA, address tokenB) returns (address);
        function addLiquidity(address tokenA, address tokenB, uint256 amountADesired, uint256 amountBDesired, uint256 amountAMin, uint256 amountBMin, address to, uint256 deadline);
        function swapExactTokensForTokens(uint256 amountIn, uint256 amountOutMin, address[] path, address to, uint256 deadline);
    }
}

/// The creation codes.
#[derive(Debug)]
pub struct Contracts {
    factory: Vec<u8>,
    router: Vec<u8>,
    weth: Vec<u8>,
    /// The token of Uniswap's own tests; its constructor mints everything to the deployer.
    token: Vec<u8>,
}

impl Contracts {
    /// Reads them from `folder`, or from `tests/node_modules` of the checkout that the current folder or the program is in.
    pub fn load(folder: Option<&Path>) -> Result<Self, BenchError> {
        let folder = match folder {
            Some(folder) => folder.to_owned(),
            None => find()?,
        };
        let code = |name: &str| {
            let path = folder.join("@uniswap").join(name);
            read(&path).map_err(|why| BenchError::Contracts { path, why })
        };
        Ok(Self {
            factory: code("v2-core/build/UniswapV2Factory.json")?,
            token: code("v2-core/build/ERC20.json")?,
            router: code("v2-periphery/build/UniswapV2Router02.json")?,
            weth: code("v2-periphery/build/WETH9.json")?,
        })
    }
}

fn find() -> Result<PathBuf, BenchError> {
    let places = [std::env::current_dir(), std::env::current_exe()];
    let places = places.into_iter().flatten().collect::<Vec<_>>();
    let candidates = places.iter().flat_map(|place| place.ancestors()).map(|folder| folder.join(PACKAGES));
    candidates
        .into_iter()
        .find(|folder| folder.join("@uniswap").is_dir())
        .ok_or_else(|| BenchError::Contracts { path: PACKAGES.into(), why: "there is no such folder above".to_owned() })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    #[derive(Deserialize)]
    struct Build {
        bytecode: String,
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let build: Build = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    hex::decode(&build.bytecode).map_err(|e| e.to_string())
}

/// A router and pools on a chain.
#[derive(Debug)]
pub struct Exchange {
    router: Address,
    tokens: Vec<Address>,
    /// The tokens of each pool, by their places.
    pools: Vec<(usize, usize)>,
    owner: Address,
}

impl Exchange {
    /// Deploys the exchange with so many pools, over as few tokens as have so many pairs.
    pub fn deploy(world: &mut World, contracts: &Contracts, pools: usize) -> Result<Self, BenchError> {
        let owner = stranger("deployer", 0);
        let factory =
            world.deploy("deploying Uniswap's factory", [&contracts.factory[..], &(owner,).abi_encode()].concat())?;
        let weth = world.deploy("deploying WETH", contracts.weth.clone())?;
        let arguments = (factory, weth).abi_encode();
        let router = world.deploy("deploying Uniswap's router", [&contracts.router[..], &arguments].concat())?;
        let mut pairs = Vec::with_capacity(pools);
        let mut count = 1;
        while pairs.len() < pools {
            pairs.extend((0..count).map(|other| (other, count)).take(pools - pairs.len()));
            count += 1;
        }
        let supply = U256::MAX >> 1usize;
        let supply = [&contracts.token[..], &supply.abi_encode()].concat();
        let tokens =
            (0..count).map(|_| world.deploy("deploying a token", supply.clone())).collect::<Result<Vec<_>, _>>()?;
        let exchange = Self { router, tokens, pools: pairs, owner };
        exchange.fill(world, factory)?;
        Ok(exchange)
    }

    fn fill(&self, world: &mut World, factory: Address) -> Result<(), BenchError> {
        let approve = Token::approveCall { spender: self.router, amount: U256::MAX }.abi_encode();
        let approvals = self.tokens.iter().map(|token| (self.owner, TxKind::Call(*token), approve.clone()));
        world.setup("allowing the router to pull tokens", approvals)?;
        let amount = U256::from(LIQUIDITY);
        let pools = self.pools.iter().flat_map(|(a, b)| {
            let (token_a, token_b) = (self.tokens[*a], self.tokens[*b]);
            let create = Uniswap::createPairCall { tokenA: token_a, tokenB: token_b }.abi_encode();
            let add = Uniswap::addLiquidityCall {
                tokenA: token_a,
                tokenB: token_b,
                amountADesired: amount,
                amountBDesired: amount,
                amountAMin: U256::ZERO,
                amountBMin: U256::ZERO,
                to: self.owner,
                deadline: U256::MAX,
            };
            [(self.owner, TxKind::Call(factory), create), (self.owner, TxKind::Call(self.router), add.abi_encode())]
        });
        world.setup("filling pools", pools)
    }

    /// One swap for each trader; the pools take turns, and the direction changes each round, so that prices stay.
    pub fn swaps(&self, world: &mut World, traders: &[Actor]) -> Result<Vec<Order>, BenchError> {
        let route = |i: usize| {
            let (a, b) = self.pools[i % self.pools.len()];
            let (a, b) = (self.tokens[a], self.tokens[b]);
            if (i / self.pools.len()).is_multiple_of(2) { (a, b) } else { (b, a) }
        };
        let mut calls = Vec::with_capacity(3 * traders.len());
        for (i, trader) in traders.iter().enumerate() {
            let (sold, bought) = route(i);
            let amount = U256::from(PURSE);
            for token in [sold, bought] {
                let give = Token::transferCall { to: trader.address, amount }.abi_encode();
                calls.push((self.owner, TxKind::Call(token), give));
            }
            let approve = Token::approveCall { spender: self.router, amount: U256::MAX }.abi_encode();
            calls.push((trader.address, TxKind::Call(sold), approve));
        }
        world.setup("giving traders tokens", calls)?;
        world.fund(traders.iter().map(|trader| trader.address));
        let order = |(i, trader): (usize, &Actor)| {
            let (sold, bought) = route(i);
            let swap = Uniswap::swapExactTokensForTokensCall {
                amountIn: U256::from(SOLD),
                amountOutMin: U256::ONE,
                path: vec![sold, bought],
                to: trader.address,
                deadline: U256::MAX,
            };
            let data = Bytes::from(swap.abi_encode());
            Order { from: *trader, to: self.router, value: 0, data, gas_limit: SWAP_GAS, shard: None }
        };
        Ok(traders.iter().enumerate().map(order).collect())
    }
}
