//! The members' commands: to a running wallet where there is one, else with the member's own store.

use std::path::Path;

use alloy_primitives::Address;
use client::Client;
use dispute::chain::Chain;
use proto::wire::v1;
use proto::{Amount, NATIVE, Scheme, SecretKey};
use serde_json::{Value, json};

use crate::args::{self, SchemeArg, Where};
use crate::chain::{self, AssetInfo, chain_failure, coin, test_dollar};
use crate::failure::Failure;
use crate::home::{self, Config, MemberHome};
use crate::output::{self, Output};
use crate::verbs;
use crate::wallet::{self, Reply, Request, Sink};

/// What `--tower` says to forget a watchtower.
const NO_TOWER: &str = "none";
/// How long a command waits at its end until the remote watchtower holds what it brought.
const TOWER_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

/// `payhub keys new`.
pub fn new_keys(name: &str, data_dir: Option<&Path>, secret: Option<&str>, out: Output) -> Result<(), Failure> {
    // The same default as that of every command that will use them.
    let data_dir = home::data_dir(data_dir)?;
    let home = MemberHome::at(&data_dir, name)?;
    let secret = match secret {
        Some("-") => home::parse_secret(&std::io::read_to_string(std::io::stdin())?)?,
        Some(text) => home::parse_secret(text)?,
        None => *SecretKey::random(Scheme::Ed25519).to_seed(),
    };
    home.create(&secret)?;
    let account = account_of(&secret);
    let file = home.dir.join("secret");
    out.say(format!(
        "{name}: account {account}\n  secret in {}\n  whoever has that file has the money: keep a copy where only you can read it",
        file.display()
    ));
    out.object(&json!({ "ok": true, "name": name, "account": account, "secret_file": file, "data_dir": data_dir }));
    Ok(())
}

/// The ledger account of a secret.
pub fn account_of(secret: &[u8; 32]) -> Address {
    let key = SecretKey::derive(Scheme::Secp256k1, secret, "account").public();
    Address::from_word(key.bytes)
}

/// Does what a member's command asks and shows the result.
pub async fn run(
    name: &str,
    at: &Where,
    scheme: Option<SchemeArg>,
    request: Request,
    out: Output,
) -> Result<(), Failure> {
    let data_dir = home::data_dir(at.data_dir.as_deref())?;
    let home = MemberHome::existing(&data_dir, name)?;
    let bar = out.progress(0, title(&request));
    let hear = |reply: Reply| match reply {
        Reply::Progress { done, of } => {
            bar.set_length(of);
            bar.set_position(done);
        }
        Reply::Note { text } => bar.println(text),
        Reply::Item { value } => show_item(&value, out),
        Reply::Done { .. } | Reply::Failed { .. } => {}
    };
    let socket = home.socket()?;
    let asked = async {
        match wallet::ask(&socket, &request, hear).await {
            Some(result) => result,
            None => alone(&home, at, scheme, request.clone(), hear).await,
        }
    };
    if let Request::Events { follow: true } = request {
        return tokio::select! {
            ended = asked => ended.map(|_| ()),
            () = crate::until_stopped() => Ok(()),
        };
    }
    let result = asked.await;
    bar.finish_and_clear();
    show(&request, &result?, out);
    Ok(())
}

/// Opens the member's own store for one request.
pub async fn alone(
    home: &MemberHome,
    at: &Where,
    scheme: Option<SchemeArg>,
    request: Request,
    mut hear: impl FnMut(Reply),
) -> Result<Value, Failure> {
    let client = connect(home, at, scheme).await?;
    let (sink, mut replies) = Sink::new();
    let running = tokio::spawn(verbs::handle(client.clone(), home.name.clone(), request.clone(), sink));
    while let Some(reply) = replies.recv().await {
        hear(reply);
    }
    let result = running.await.map_err(|e| Failure::other(format!("the wallet failed: {e}")))?;
    // A close that was started here is watched from here: nobody else holds the evidence.
    if let (Ok(_), Request::Close { unilateral: true, .. }) = (&result, &request) {
        hear(Reply::Note {
            text: "the challenge period runs; `payhub watch` answers and pays out, as does any open wallet".to_owned(),
        });
    }
    if home.config().tower.is_some()
        && let Err(error) = client.guarded_by_tower(TOWER_WAIT).await
    {
        hear(Reply::Note {
            text: format!("{error}; the evidence is in the store and goes there with the next command"),
        });
    }
    client.shutdown().await.map_err(|e| verbs::failure(&e))?;
    result
}

/// A client over the member's own store. Hub, ledger and contract are remembered in his folder.
pub async fn connect(home: &MemberHome, at: &Where, scheme: Option<SchemeArg>) -> Result<Client, Failure> {
    let mut config = home.config();
    if config.hub.is_none() && config.rpc.is_none() {
        // A newcomer in a folder whose members all use the same hub, as that of `payhub dev`.
        let Config { hub, rpc, .. } = neighbour(home).unwrap_or_default();
        (config.hub, config.rpc) = (hub, rpc);
    }
    let known = |given: &Option<String>, remembered: &Option<String>, what: &str, example: &str| {
        given.clone().or_else(|| remembered.clone()).ok_or_else(|| {
            Failure::usage(
                format!("it is not known where {}'s {what} is", home.name),
                format!("say it once: {example}"),
            )
        })
    };
    let hub = known(&at.hub, &config.hub, "hub", "--hub http://127.0.0.1:7440")?;
    let rpc = known(&at.rpc, &config.rpc, "ledger", "--rpc http://127.0.0.1:7445")?;
    let adjudicator = match config.adjudicator {
        Some(adjudicator) => adjudicator,
        None => adjudicator_of(&hub).await?,
    };
    let chain = Chain::discover(&rpc, adjudicator, confirmations(&rpc).await?).await.map_err(|e| chain_failure(&e))?;
    let scheme = match (scheme, config.scheme) {
        (Some(SchemeArg::Ed25519), _) | (None, Some(1)) => Scheme::Ed25519,
        (Some(SchemeArg::Secp256k1), _) | (None, Some(2)) => Scheme::Secp256k1,
        (None, _) if chain.ed25519_available().await.map_err(|e| chain_failure(&e))? => Scheme::Ed25519,
        (None, _) => Scheme::Secp256k1,
    };
    let tower = match at.tower.as_deref() {
        Some(NO_TOWER) => None,
        Some(url) => Some(url.to_owned()),
        None => config.tower,
    };
    config = Config {
        hub: Some(hub.clone()),
        rpc: Some(rpc),
        adjudicator: Some(adjudicator),
        scheme: Some(scheme.number()),
        tower: tower.clone(),
    };
    let mut builder = Client::builder()
        .hub(hub)
        .seed(home.secret()?)
        .scheme(scheme)
        .store(home.store())
        .chain(chain)
        .name(home.name.clone())
        .window(verbs::WINDOW);
    if let Some(tower) = tower {
        builder = builder.tower(tower);
    }
    let client = builder.connect().await.map_err(|e| verbs::failure(&e))?;
    home.set_config(&config)?;
    let has_channel = client.channel().await.map_err(|e| verbs::failure(&e))?.is_some();
    if has_channel && client.info().await.is_ok() {
        // A hub that is away is no failure here, and not waited for: what needs it says so.
        let _ = client.connected(std::time::Duration::from_secs(5)).await;
    }
    Ok(client)
}

/// What a hub says its contract is; checked against the chain before it is used, and pinned from then on.
async fn adjudicator_of(hub: &str) -> Result<Address, Failure> {
    let unreachable = |why: &dyn std::fmt::Display| {
        Failure::connect(format!("the hub at {hub} does not answer: {why}"), "start it, or correct --hub")
    };
    let mut member = v1::member_client::MemberClient::connect(hub.to_owned()).await.map_err(|e| unreachable(&e))?;
    let info = member.get_info(v1::GetInfoRequest {}).await.map_err(|e| unreachable(&e))?.into_inner();
    Address::try_from(info.adjudicator.as_ref()).map_err(|_| Failure::other("the hub names no contract"))
}

/// Blocks until a deposit counts: none on an embedded ledger, whose blocks are final when they are durable.
pub async fn confirmations(rpc: &str) -> Result<u64, Failure> {
    use alloy::providers::{Provider, ProviderBuilder};
    let url =
        rpc.parse().map_err(|e| Failure::usage(format!("{rpc:?} is not a URL: {e}"), "as in http://127.0.0.1:7445"))?;
    let version = ProviderBuilder::new().connect_http(url).get_client_version().await.map_err(|e| {
        Failure::connect(format!("the ledger at {rpc} does not answer: {e}"), "start it, or correct --rpc")
    })?;
    Ok(if version.starts_with("payhub") { 0 } else { 6 })
}

/// `payhub watch MEMBER`: an open wallet, whose watchtower answers closes.
pub async fn watch(member: &str, at: &Where, out: Output) -> Result<(), Failure> {
    let data_dir = home::data_dir(at.data_dir.as_deref())?;
    let home = MemberHome::existing(&data_dir, member)?;
    let socket = home.socket()?;
    if tokio::net::UnixStream::connect(&socket).await.is_ok() {
        let what = format!("{member}'s wallet is open already, and watches");
        return Err(Failure::usage(what, format!("follow it: payhub events {member} --follow")));
    }
    let client = connect(&home, at, None).await?;
    let assets = verbs::assets(&client).await?;
    // From the word that it is ready on, it ends in order.
    let stopped = crate::until_stopped();
    out.say(format!("watching the ledger for {member}; Ctrl-C ends it"));
    out.object(&json!({ "ready": true, "member": member, "account": client.account() }));
    let mut events = client.events();
    let (serving, name) = (client.clone(), member.to_owned());
    let serve =
        wallet::serve(&socket, move |request, sink| verbs::handle(serving.clone(), name.clone(), request, sink));
    let show = async {
        use futures::StreamExt;
        while let Some(event) = events.next().await {
            show_item(&verbs::event_json(&event, &assets), out);
        }
    };
    let result = tokio::select! {
        served = serve => served,
        () = show => Ok(()),
        () = stopped => Ok(()),
    };
    let _ = std::fs::remove_file(&socket);
    client.shutdown().await.map_err(|e| verbs::failure(&e))?;
    result
}

/// `payhub faucet`.
pub async fn faucet(args: args::Faucet, out: Output) -> Result<(), Failure> {
    let data_dir = home::data_dir(args.at.data_dir.as_deref())?;
    let member = MemberHome::existing(&data_dir, &args.to);
    let (to, config) = match (args.to.parse::<Address>(), member) {
        (Ok(address), _) => (address, Config::default()),
        (Err(_), Ok(home)) => (account_of(&home.secret()?), home.config()),
        (Err(_), Err(failure)) => return Err(failure),
    };
    let rpc = args.at.rpc.clone().or(config.rpc).or_else(|| any_rpc(&data_dir));
    let rpc = rpc
        .ok_or_else(|| Failure::usage("it is not known where the ledger is", "say it: --rpc http://127.0.0.1:7445"))?;
    let adjudicator = ledger::genesis::DEPLOYER.create(0);
    let chain = Chain::discover(&rpc, adjudicator, 0).await.map_err(|e| chain_failure(&e))?;
    let assets = [coin(), test_dollar(ledger::genesis::DEPLOYER.create(1))];
    let (amount, asset) = chain::parse_money(&args.amount, &assets)?;
    let mined = chain::faucet(&chain, to, amount, asset).await?;
    let balance = chain.balance(asset.asset, to).await.map_err(|e| chain_failure(&e))?;
    out.say(format!("{to} now has {} {} on the ledger", chain::units_256(balance, asset), asset.symbol));
    out.object(&json!({
        "ok": true, "to": to, "asset": asset.symbol, "given": chain::units(amount, asset),
        "wallet": chain::units_256(balance, asset), "transaction": mined.tx_hash,
    }));
    Ok(())
}

/// The ledger that some member of a folder uses.
pub fn any_rpc(data_dir: &Path) -> Option<String> {
    configs(data_dir).into_iter().find_map(|config| config.rpc)
}

/// What another member of the same folder remembers of hub and ledger.
fn neighbour(home: &MemberHome) -> Option<Config> {
    let data_dir = home.dir.ancestors().nth(2)?;
    configs(data_dir).into_iter().find(|config| config.hub.is_some() && config.rpc.is_some())
}

fn configs(data_dir: &Path) -> Vec<Config> {
    let of = |name: &String| MemberHome::at(data_dir, name).ok().map(|home| home.config());
    home::members(data_dir).iter().filter_map(of).collect()
}

// ---- showing -------------------------------------------------------------------------------------------------------

fn title(request: &Request) -> &'static str {
    match request {
        Request::Pay { .. } | Request::Stream { .. } => "paying",
        Request::Open { .. } => "opening",
        Request::Fund { .. } => "depositing",
        Request::Withdraw { .. } | Request::Settle { .. } => "settling",
        Request::Close { .. } => "closing",
        Request::Balance
        | Request::Channels
        | Request::History { .. }
        | Request::Events { .. }
        | Request::Explain { .. }
        | Request::ExitKit => "asking",
    }
}

fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn rows(value: &Value, list: &str, keys: &[&str]) -> Vec<Vec<String>> {
    let items = value[list].as_array().cloned().unwrap_or_default();
    items.iter().map(|item| keys.iter().map(|key| text(item, key)).collect()).collect()
}

pub fn show_item(value: &Value, out: Output) {
    if out.json {
        output::line(value);
        return;
    }
    let object = value.as_object().cloned().unwrap_or_default();
    let rest: Vec<String> = object
        .keys()
        .filter(|k| *k != "event" && *k != "payments")
        .map(|k| format!("{k} {}", text(value, k)))
        .collect();
    output::line(format_args!("{:<12} {}", text(value, "event"), rest.join("  ")));
}

fn show(request: &Request, value: &Value, out: Output) {
    out.object(value);
    match request {
        Request::Open { .. } | Request::Fund { .. } => out.say(format!(
            "channel {} holds {} {} more",
            text(value, "channel"),
            text(value, "deposited"),
            text(value, "asset")
        )),
        Request::Withdraw { .. } => {
            out.say(format!("{} {} are in the wallet", text(value, "withdrawn"), text(value, "asset")));
        }
        Request::Pay { .. } => out.say(format!(
            "paid {} times, {} {} in all; {} payments/s, p50 {} ms, p99 {} ms; {} receipts",
            text(value, "paid"),
            text(value, "amount"),
            text(value, "asset"),
            text(value, "payments_per_s"),
            text(value, "p50_ms"),
            text(value, "p99_ms"),
            text(value, "receipts")
        )),
        Request::Stream { .. } => out.say(format!(
            "{} ticks paid, {} {} in all; {} ticks/s",
            text(value, "paid"),
            text(value, "amount"),
            text(value, "asset"),
            text(value, "ticks_per_s")
        )),
        Request::Balance => {
            let keys = ["asset", "wallet", "channel", "backed", "paid", "received"];
            out.say(format!("{} ({})", text(value, "member"), text(value, "account")));
            out.table(&keys, rows(value, "assets", &keys));
        }
        Request::Channels => show_channels(value, out),
        Request::History { .. } | Request::Events { .. } => {
            let keys = ["kind", "amount", "asset", "from", "to", "note"];
            out.table(&keys, rows(value, "entries", &keys));
        }
        Request::Settle { .. } => {
            let keys = ["asset", "withdrawn", "withdrawn_in_all", "seq"];
            out.table(&keys, rows(value, "settled", &keys));
        }
        Request::Close { .. } => {
            let keys = ["asset", "how", "withdrawn_in_all", "deadline"];
            out.table(&keys, rows(value, "closed", &keys));
        }
        Request::Explain { .. } => crate::explain::show(value, out),
        // It is shown by the command that asked for it.
        Request::ExitKit => {}
    }
}

fn show_channels(value: &Value, out: Output) {
    let keys = ["asset", "status", "deposited", "collateral", "withdrawn", "paid", "received", "unbacked"];
    out.say(format!("{}: channel {}", text(value, "member"), text(value, "channel")));
    out.table(&keys, rows(value, "accounts", &keys));
    for account in value["accounts"].as_array().into_iter().flatten() {
        if account["deadline"].is_u64() {
            out.say(format!(
                "{} is closing: until chain time {} anybody may post newer vouchers; an open wallet or `payhub watch {}` does",
                text(account, "asset"),
                text(account, "deadline"),
                text(value, "member")
            ));
        }
        if account["lost"].as_str().is_some_and(|lost| lost != "0") {
            out.say(format!(
                "{} is final and {} less was paid out than could have been proven: nobody posted it in time; \
                 a wallet left open, or `payhub watch`, would have",
                text(account, "asset"),
                text(account, "lost")
            ));
        }
    }
}

/// The amounts that a freshly made member of `payhub dev` gets.
pub fn pocket_money(assets: &[AssetInfo]) -> Vec<(Amount, AssetInfo)> {
    let of = |asset: &AssetInfo| if asset.asset == NATIVE { "10" } else { "1000" };
    assets
        .iter()
        .filter_map(|a| Amount::parse_units(of(a), a.decimals).ok().map(|amount| (amount, a.clone())))
        .collect()
}
