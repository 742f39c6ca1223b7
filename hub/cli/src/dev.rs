//! `payhub dev`: ledger, hub, faucet and three funded members in one process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use alloy_primitives::keccak256;
use client::Client;
use dispute::chain::Chain;
use hub::{Hub, HubConfig, StoreAt};
use ledger::{Config, Ledger};
use proto::{Amount, Domain, NATIVE, Scheme};
use serde_json::{Value, json};

use crate::args;
use crate::chain::{self, AssetInfo, chain_failure, coin, test_dollar};
use crate::failure::Failure;
use crate::home::{self, MemberHome};
use crate::members;
use crate::output::Output;
use crate::run_hub::{self, DEV_CHALLENGE_PERIOD_S};
use crate::run_ledger::ledger_failure;
use crate::verbs;
use crate::wallet;

/// The members of every `payhub dev`.
const MEMBERS: [&str; 3] = ["alice", "bob", "carol"];
/// How often members and hub look for a new block of the ledger in this process.
const POLL: Duration = Duration::from_millis(20);

struct Place {
    dir: PathBuf,
    /// Kept until the end where nothing is to remain.
    _temporary: Option<tempfile::TempDir>,
    in_memory: bool,
}

struct Member {
    home: MemberHome,
    secret: [u8; 32],
    client: Client,
}

/// Runs until the process is asked to stop.
pub async fn run(args: args::Dev, out: Output) -> Result<(), Failure> {
    let place = place(&args)?;
    let port =
        |offset: u16| SocketAddr::from(([127, 0, 0, 1], if args.port_base == 0 { 0 } else { args.port_base + offset }));
    let waiting = out.spinner("starting ledger, hub and members");
    let ledger = start_ledger(&place).await?;
    let rpc = ledger.serve(port(5)).await.map_err(|e| ledger_failure(&e))?;
    let assets = [coin(), test_dollar(ledger.deployment().usdh)];
    let hub = start_hub(&place, &ledger, &assets, port(0), port(1)).await?;
    let grpc = format!("http://{}", hub.addr());
    let mut team = Vec::new();
    for name in MEMBERS {
        team.push(start_member(name, &place, &ledger, &grpc, &rpc.url(), &assets).await?);
    }
    move_members(&place, &grpc, &rpc.url())?;
    home::set_current(&place.dir)?;
    waiting.finish_and_clear();
    // From the word that it is ready on, it ends in order.
    let stopped = crate::until_stopped();
    announce(&ledger, &grpc, &rpc.url(), &assets, &team, &place, out);

    let mut serving = tokio::task::JoinSet::new();
    for member in &team {
        let (socket, client, name) = (member.home.socket()?, member.client.clone(), member.home.name.clone());
        serving.spawn(async move {
            wallet::serve(&socket, move |request, sink| verbs::handle(client.clone(), name.clone(), request, sink))
                .await
        });
    }
    let ended = tokio::select! {
        () = stopped => Ok(()),
        failed = hub.failed() => failed.map_err(|e| Failure::other(e.to_string())),
        Some(served) = serving.join_next() => served.map_err(Failure::other).and_then(|result| result),
    };
    home::clear_current();
    serving.shutdown().await;
    for member in &team {
        let _ = std::fs::remove_file(member.home.socket()?);
        member.client.shutdown().await.map_err(|e| verbs::failure(&e))?;
    }
    hub.shutdown().await.map_err(|e| Failure::other(e.to_string()))?;
    rpc.stop().await;
    ledger.shutdown().await.map_err(|e| ledger_failure(&e))?;
    ended
}

fn place(args: &args::Dev) -> Result<Place, Failure> {
    if args.port_base > u16::MAX - 5 {
        return Err(Failure::usage(format!("--port-base {} leaves no room", args.port_base), "choose at most 65530"));
    }
    if args.in_memory {
        let temporary = tempfile::TempDir::new()?;
        return Ok(Place { dir: temporary.path().to_owned(), _temporary: Some(temporary), in_memory: true });
    }
    let dir = match &args.data_dir {
        Some(dir) => dir.clone(),
        None => home::root()?.join("dev"),
    };
    std::fs::create_dir_all(&dir)?;
    Ok(Place { dir: std::fs::canonicalize(dir)?, _temporary: None, in_memory: false })
}

async fn start_ledger(place: &Place) -> Result<Ledger, Failure> {
    let mut config = Config::dev();
    config.data_dir = (!place.in_memory).then(|| place.dir.join("ledger"));
    Ledger::start(config).await.map_err(|e| ledger_failure(&e))
}

/// The ledger of this process, over the same JSON-RPC that others reach over the network.
pub fn chain_of(ledger: &Ledger) -> Chain {
    let deployment = ledger.deployment();
    let domain = Domain::new(deployment.chain_id, deployment.adjudicator);
    Chain::over(ledger.rpc_client(), "the ledger in this process", domain, 0)
}

async fn start_hub(
    place: &Place,
    ledger: &Ledger,
    assets: &[AssetInfo],
    listen: SocketAddr,
    operator: SocketAddr,
) -> Result<Hub, Failure> {
    let dir = place.dir.join("hub");
    let store = if place.in_memory { run_hub::memory_store() } else { StoreAt::Folder(dir.join("store")) };
    let policies = assets.iter().map(|asset| run_hub::policy(asset, 0)).collect();
    let mut config = HubConfig::new(run_hub::seed(&dir)?, store, policies);
    config.listen = listen;
    config.operator = Some(operator);
    config.development = true;
    config.challenge_period_s = DEV_CHALLENGE_PERIOD_S;
    config.poll = POLL;
    let chain = chain_of(ledger);
    run_hub::fill(&chain, config.account(), assets).await?;
    Hub::start(config, chain).await.map_err(|e| run_hub::start_failure(&e))
}

/// A member of `dev` has a secret that everybody can compute, so that scripts find the same accounts everywhere.
fn dev_secret(name: &str) -> [u8; 32] {
    keccak256(format!("payhub dev member {name}")).0
}

async fn start_member(
    name: &str,
    place: &Place,
    ledger: &Ledger,
    grpc: &str,
    rpc: &str,
    assets: &[AssetInfo],
) -> Result<Member, Failure> {
    let home = MemberHome::at(&place.dir, name)?;
    if !home.dir.join("secret").is_file() {
        home.create(&dev_secret(name))?;
    }
    let secret = home.secret()?;
    let chain = chain_of(ledger);
    let adjudicator = Some(ledger.deployment().adjudicator);
    let (hub, rpc) = (Some(grpc.to_owned()), Some(rpc.to_owned()));
    home.set_config(&home::Config { hub, rpc, adjudicator, scheme: Some(Scheme::Ed25519.number()), tower: None })?;
    let builder =
        Client::builder().hub(grpc).seed(secret).chain(chain.clone()).name(name).poll(POLL).window(verbs::WINDOW);
    let builder = if place.in_memory { builder.in_memory() } else { builder.store(home.store()) };
    let client = builder.connect().await.map_err(|e| verbs::failure(&e))?;
    for (amount, asset) in members::pocket_money(assets) {
        let held = client.balance(asset.asset).await.map_err(|e| verbs::failure(&e))?;
        if !held.ledger.member_deposit.is_zero() {
            continue;
        }
        let has = chain.balance(asset.asset, client.account()).await.map_err(|e| chain_failure(&e))?;
        if has < alloy_primitives::U256::from(amount.get()) {
            chain::faucet(&chain, client.account(), amount, &asset).await?;
        }
        let deposit = if asset.asset == NATIVE { "1" } else { "500" };
        let deposit = Amount::parse_units(deposit, asset.decimals).map_err(Failure::other)?;
        client.open(asset.asset, deposit).await.map_err(|e| verbs::failure(&e))?;
    }
    client.connected(Duration::from_secs(30)).await.map_err(|e| verbs::failure(&e))?;
    Ok(Member { home, secret, client })
}

/// Tells the other members of this folder where hub and ledger are now: the ports may be others than the last time.
fn move_members(place: &Place, grpc: &str, rpc: &str) -> Result<(), Failure> {
    for name in home::members(&place.dir) {
        let home = MemberHome::at(&place.dir, &name)?;
        let config = home.config();
        if config.hub.is_some() {
            home.set_config(&home::Config { hub: Some(grpc.to_owned()), rpc: Some(rpc.to_owned()), ..config })?;
        }
    }
    Ok(())
}

fn announce(ledger: &Ledger, grpc: &str, rpc: &str, assets: &[AssetInfo], team: &[Member], place: &Place, out: Output) {
    let deployment = ledger.deployment();
    out.say(format!(
        "payhub dev is ready\n  hub (gRPC)      {grpc}\n  ledger (RPC)    {rpc}, chain {}\n  adjudicator     {}\n  data            {}\n",
        deployment.chain_id,
        deployment.adjudicator,
        if place.in_memory { "in memory".to_owned() } else { place.dir.display().to_string() }
    ));
    let row = |m: &Member| vec![m.home.name.clone(), m.client.account().to_string()];
    out.table(&["member", "account on the ledger"], team.iter().map(row).collect());
    out.say("In another terminal:\n  payhub pay bob 0.0001USDH --from alice --count 10000\n  payhub balance bob\nCtrl-C stops it.");
    let member =
        |m: &Member| json!({ "name": m.home.name, "account": m.client.account(), "secret": hex::encode(m.secret) });
    out.object(&json!({
        "ready": true, "grpc": grpc, "rpc": rpc, "chain_id": deployment.chain_id, "adjudicator": deployment.adjudicator,
        "assets": assets, "members": team.iter().map(member).collect::<Vec<Value>>(),
    }));
}
