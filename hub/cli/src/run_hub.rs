//! `payhub hub run`: the hub as a process of its own, and the settings that `dev` and `demo` share with it.

use std::path::Path;
use std::sync::Arc;

use alloy_primitives::{Address, U256};
use dispute::chain::Chain;
use dispute::submitter::SubmitterConfig;
use hub::{AssetPolicy, Hub, HubConfig, StartError, StoreAt};
use proto::{Amount, NATIVE, Scheme, SecretKey};
use serde_json::json;

use crate::args::{HubRun, SchemeArg};
use crate::chain::{self, AssetInfo, chain_failure, coin, test_dollar};
use crate::failure::{Code, Failure};
use crate::home::MemberHome;
use crate::members;
use crate::output::Output;

/// Challenge period of channels with a hub for playing, seconds: one waits through it.
pub const DEV_CHALLENGE_PERIOD_S: u32 = 60;
/// Whole coins that a hub for playing is given when it has less.
const DEV_COINS: u64 = 2_000;
/// Whole test dollars that a hub for playing is given when it has less.
const DEV_DOLLARS: u64 = 5_000_000;

/// Runs until the process is asked to stop, or the hub stops by itself.
pub async fn run(args: HubRun, out: Output) -> Result<(), Failure> {
    let seed = seed(&args.data_dir)?;
    let embedded_adjudicator = ledger::genesis::DEPLOYER.create(0);
    let adjudicator = match &args.adjudicator {
        Some(text) => address(text, "--adjudicator")?,
        None => embedded_adjudicator,
    };
    let confirmations = match args.confirmations {
        Some(confirmations) => u64::from(confirmations),
        None => members::confirmations(&args.rpc).await?,
    };
    let chain = Chain::discover(&args.rpc, adjudicator, confirmations).await.map_err(|e| chain_failure(&e))?;
    let mut config = HubConfig::new(seed, StoreAt::Folder(args.data_dir.join("store")), policies(&args, &chain).await?);
    config.listen = args.listen;
    config.operator = args.operator;
    config.host = args.host.clone();
    config.development = args.dev;
    config.challenge_period_s =
        args.challenge_period.unwrap_or(if args.dev { DEV_CHALLENGE_PERIOD_S } else { config.challenge_period_s });
    config.schemes = schemes(&args.scheme, &chain).await?;
    if confirmations > 0 {
        config.submitter = SubmitterConfig::remote();
    }
    if args.dev {
        fill(&chain, config.account(), &assets_of(&config.assets)).await?;
    }
    let account = config.account();
    let hub = Hub::start(config, chain.clone()).await.map_err(|e| start_failure(&e))?;
    let grpc = format!("http://{}", hub.addr());
    // From the word that it is ready on, it ends in order.
    let stopped = crate::until_stopped();
    out.say(format!("hub at {grpc} on chain {}\n  account {account}\n  adjudicator {adjudicator}", chain.chain_id()));
    out.object(&json!({
        "ready": true, "grpc": grpc, "operator": hub.operator_addr().map(|a| format!("http://{a}")),
        "rpc": args.rpc, "chain_id": chain.chain_id(), "adjudicator": adjudicator, "account": account,
    }));
    let failed = tokio::select! {
        failed = hub.failed() => failed,
        () = stopped => Ok(()),
    };
    let ended = hub.shutdown().await;
    failed.and(ended).map_err(|e| Failure::other(e.to_string()))
}

/// The terms of an asset for a hub that nobody configured further: amounts of everyday size.
pub fn policy(asset: &AssetInfo, fee_ppm: u32) -> AssetPolicy {
    let units = |text: &str| Amount::parse_units(text, asset.decimals).unwrap_or(Amount::new(1));
    let (deposit_min, target, max) = if asset.asset == NATIVE { ("0.001", "1", "10") } else { ("1", "100", "1000") };
    AssetPolicy {
        asset: asset.asset,
        symbol: asset.symbol.clone(),
        decimals: asset.decimals,
        deposit_min: units(deposit_min),
        inbound_target: units(target),
        inbound_max: units(max),
        fee_flat: Amount::ZERO,
        fee_ppm,
    }
}

/// The assets behind policies.
pub fn assets_of(policies: &[AssetPolicy]) -> Vec<AssetInfo> {
    let of = |p: &AssetPolicy| AssetInfo { symbol: p.symbol.clone(), asset: p.asset, decimals: p.decimals };
    policies.iter().map(of).collect()
}

/// Gives a hub for playing coins and test dollars, if it has few.
pub async fn fill(chain: &Chain, account: Address, assets: &[AssetInfo]) -> Result<(), Failure> {
    for asset in assets {
        let whole = if asset.asset == NATIVE { DEV_COINS } else { DEV_DOLLARS };
        let Ok(amount) = Amount::parse_units(&whole.to_string(), asset.decimals) else { continue };
        let has = chain.balance(asset.asset, account).await.map_err(|e| chain_failure(&e))?;
        if has < U256::from(amount.get() / 2) {
            chain::faucet(chain, account, amount, asset).await?;
        }
    }
    Ok(())
}

/// A hub that did not start, with its exit code; the texts say what to do.
pub fn start_failure(error: &StartError) -> Failure {
    let (code, reason) = match error {
        StartError::Chain(e) => return chain_failure(e),
        StartError::Listen { .. } => (Code::Other, "PORT_BUSY"),
        StartError::StoreLocked(_) => (Code::Other, "STORE_LOCKED"),
        StartError::StoreOfAnother { .. } => (Code::Other, "STORE_OF_ANOTHER"),
        StartError::Store { .. } => (Code::Other, "STORE"),
        StartError::NoAssets | StartError::NoSchemes => (Code::Usage, "USAGE"),
        StartError::Scheme { .. } => (Code::Usage, "SCHEME"),
        StartError::ChallengePeriodRefused { .. } => (Code::Usage, "CHALLENGE_PERIOD"),
        StartError::ChallengePeriodTooShort { .. } => (Code::Usage, "CHALLENGE_PERIOD"),
    };
    Failure::new(code, reason, error, "")
}

/// An in-memory store.
pub fn memory_store() -> StoreAt {
    StoreAt::Backend(Arc::new(storage::MemoryBackend::new()), Box::new(storage::MemoryIndex::new()))
}

/// The hub's seed: made at the first start, in a file that only its owner can read.
pub fn seed(data_dir: &Path) -> Result<[u8; 32], Failure> {
    let home = MemberHome { name: "hub".to_owned(), dir: data_dir.to_owned() };
    if !data_dir.join("secret").is_file() {
        home.create(&SecretKey::random(Scheme::Ed25519).to_seed())?;
    }
    home.secret()
}

async fn policies(args: &HubRun, chain: &Chain) -> Result<Vec<AssetPolicy>, Failure> {
    let mut assets = vec![coin()];
    if args.tokens.is_empty() {
        let predeployed = ledger::genesis::DEPLOYER.create(1);
        if !chain.code(predeployed).await.map_err(|e| chain_failure(&e))?.is_empty() {
            assets.push(test_dollar(predeployed));
        }
    }
    for token in &args.tokens {
        let asset = address(token, "--token")?;
        let symbol = chain.symbol(asset).await.map_err(|e| chain_failure(&e))?;
        let decimals = chain.decimals(asset).await.map_err(|e| chain_failure(&e))?;
        assets.push(AssetInfo { symbol, asset, decimals });
    }
    Ok(assets.iter().map(|asset| policy(asset, args.fee_ppm)).collect())
}

async fn schemes(given: &[SchemeArg], chain: &Chain) -> Result<Vec<Scheme>, Failure> {
    if !given.is_empty() {
        let of = |s: &SchemeArg| match s {
            SchemeArg::Ed25519 => Scheme::Ed25519,
            SchemeArg::Secp256k1 => Scheme::Secp256k1,
        };
        return Ok(given.iter().map(of).collect());
    }
    let both = chain.ed25519_available().await.map_err(|e| chain_failure(&e))?;
    Ok(if both { vec![Scheme::Ed25519, Scheme::Secp256k1] } else { vec![Scheme::Secp256k1] })
}

fn address(text: &str, flag: &str) -> Result<Address, Failure> {
    let bad =
        |e| Failure::usage(format!("{flag} {text:?} is not an address: {e}"), "write 0x and 40 hexadecimal digits");
    text.parse().map_err(bad)
}
