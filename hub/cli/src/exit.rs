//! The way out with one file: `payhub exit-kit` writes it, `payhub exit` gets the money out with it.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use client::exit::{Exit, ExitKit, ExitState, KitError, LeaveError, Progress, leave};
use dispute::submitter::{AccountKey, Submitter, SubmitterConfig};
use dispute::{Chain, ChainError};
use proto::{Asset, NATIVE, Scheme, SecretKey};
use serde_json::{Value, json};

use crate::args;
use crate::chain::{AssetInfo, chain_failure, coin, money, units, units_256};
use crate::failure::{Code, Failure};
use crate::home::{self, MemberHome};
use crate::members;
use crate::output::Output;
use crate::wallet::{self, Request};

/// `payhub exit-kit`: from the running wallet, else from the member's store, else the copy that his store keeps.
pub async fn exit_kit(args: args::ExitKit, out: Output) -> Result<(), Failure> {
    let data_dir = home::data_dir(args.at.data_dir.as_deref())?;
    let home = MemberHome::existing(&data_dir, &args.member)?;
    let asked = match wallet::ask(&home.socket()?, &Request::ExitKit, |_| {}).await {
        Some(answered) => answered,
        None => members::alone(&home, &args.at, None, Request::ExitKit, |_| {}).await,
    };
    let kit = match asked {
        Ok(value) => serde_json::from_value(value["kit"].clone()).map_err(Failure::other)?,
        // Whoever wants to leave may have neither hub nor ledger at hand: the store keeps a kit of its own.
        Err(failure) if failure.code == Code::Connect => {
            let kept = home.store().join(client::KIT_FILE);
            let Ok(kit) = read(&kept) else { return Err(failure) };
            out.say(format!("the ledger does not answer; this is the kit that {} kept by itself", kept.display()));
            kit
        }
        Err(failure) => return Err(failure),
    };
    write(&args.out, kit.to_json().as_bytes())?;
    out.say(format!("{} holds the way out of channel {}; it pays {}", args.out.display(), kit.channel, kit.pays_to));
    out.say("it is no key, but whoever has it can close the channel; newer payments need a newer kit");
    out.object(&json!({
        "ok": true, "file": args.out, "channel": kit.channel, "pays_to": kit.pays_to, "made_at_ms": kit.made_at_ms,
        "accounts": kit.accounts.iter().map(|a| json!({ "asset": a.asset, "worth_base_units": a.worth })).collect::<Vec<_>>(),
    }));
    Ok(())
}

/// `payhub exit`.
pub async fn exit(args: args::Exit, out: Output) -> Result<(), Failure> {
    let kit = read(&args.file)?;
    let key = account_key(&args.key, &kit)?;
    let confirmations = 0;
    let chain = Chain::connect(&args.rpc, kit.domain(), confirmations).map_err(|e| chain_failure(&e))?;
    chain.check().await.map_err(|e| chain_failure(&e))?;
    let mut assets = Vec::new();
    for account in &kit.accounts {
        assets.push(described(&chain, account.asset).await);
    }
    let local = members::confirmations(&args.rpc).await? == 0;
    let config = if local { SubmitterConfig::local() } else { SubmitterConfig::remote() };
    out.say(format!("channel {}: everything goes to {}", kit.channel, kit.pays_to));
    let spinner = out.spinner("asking the ledger");
    let hear = |progress: Progress| match progress {
        Progress::Waiting { asset, deadline_s, now_s } => spinner.set_message(format!(
            "{}: the challenge period runs for {} s more",
            of(&assets, asset).symbol,
            deadline_s.saturating_sub(now_s)
        )),
        Progress::Trouble { why } => spinner.set_message(format!("waiting for the ledger: {why}")),
        other => spinner.suspend(|| out.say(sentence(&other, &assets))),
    };
    let result = leave(&kit, &Submitter::new(chain, vec![key], config), !args.no_wait, hear).await;
    spinner.finish_and_clear();
    let exits = result.map_err(|e| leave_failure(&e))?;
    let done = exits.iter().all(|exit| !matches!(exit.state, ExitState::Closing { .. }));
    let rows = exits.iter().map(|exit| row(exit, &assets)).collect();
    out.table(&["asset", "state", "paid in all", "deadline", "in the vault"], rows);
    if !done {
        out.say("the challenge period runs; run the same command again after the deadline (seconds of chain time)");
    }
    let accounts: Vec<Value> = exits.iter().map(|exit| to_json(exit, &assets)).collect();
    out.object(&json!({
        "ok": true, "done": done, "channel": kit.channel, "pays_to": kit.pays_to, "accounts": accounts,
    }));
    Ok(())
}

fn read(path: &Path) -> Result<ExitKit, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        let what = format!("{} cannot be read: {e}", path.display());
        Failure::not_found(what, "name the file that `payhub exit-kit` wrote, or exit-kit.json of a member's store")
    })?;
    ExitKit::read(&text).map_err(|error| {
        let reason = match &error {
            KitError::NoKit { .. } => "NO_KIT",
            KitError::Version { .. } => "KIT_VERSION",
            KitError::Damaged { .. } | KitError::Signature { .. } => "KIT_DAMAGED",
        };
        Failure::new(Code::Usage, reason, format!("{}: {error}", path.display()), "")
    })
}

/// Replaces the file in one step; nobody else may read it.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |e: std::io::Error| {
        Failure::usage(format!("{} cannot be written: {e}", path.display()), "name a file in a folder of yours")
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&temporary, path).map_err(failed)
}

/// The account that pays for gas: any secret, or a member's own `secret` file, whose account derives from it.
fn account_key(file: &str, kit: &ExitKit) -> Result<AccountKey, Failure> {
    let text = match file {
        "-" => std::io::read_to_string(std::io::stdin())?,
        path => std::fs::read_to_string(path).map_err(|e| {
            Failure::usage(format!("{path} cannot be read: {e}"), "name a file with 64 hexadecimal digits, or -")
        })?,
    };
    let secret = home::parse_secret(&text)?;
    let derived = SecretKey::derive(Scheme::Secp256k1, &secret, "account").to_seed();
    let derived = AccountKey::from_secret(&derived).map_err(Failure::other)?;
    if derived.address() == kit.pays_to {
        return Ok(derived);
    }
    AccountKey::from_secret(&secret).map_err(Failure::other)
}

/// The asset as the ledger describes it; in base units where its token does not.
async fn described(chain: &Chain, asset: Asset) -> AssetInfo {
    if asset == NATIVE {
        return coin();
    }
    match (chain.symbol(asset).await, chain.decimals(asset).await) {
        (Ok(symbol), Ok(decimals)) => AssetInfo { symbol, asset, decimals },
        _ => AssetInfo { symbol: asset.to_string(), asset, decimals: 0 },
    }
}

fn of(assets: &[AssetInfo], asset: Asset) -> &AssetInfo {
    assets.iter().find(|a| a.asset == asset).expect("every account of the kit is described")
}

fn sentence(progress: &Progress, assets: &[AssetInfo]) -> String {
    match progress {
        Progress::Settled { asset, seq } => format!("{}: settlement {seq} is posted", of(assets, *asset).symbol),
        Progress::Started { asset } => format!("{}: the challenge period begins", of(assets, *asset).symbol),
        Progress::Shown { asset } => format!("{}: the evidence is on the ledger", of(assets, *asset).symbol),
        Progress::TooLate { asset } => {
            format!("{}: the challenge period was over before all evidence was shown", of(assets, *asset).symbol)
        }
        Progress::Paid { asset, paid } => {
            let asset = of(assets, *asset);
            format!("{}: paid out, {} in all", asset.symbol, money(*paid, asset))
        }
        Progress::Waiting { .. } | Progress::Trouble { .. } => String::new(),
    }
}

fn state(exit: &Exit) -> (&'static str, Option<u64>) {
    match exit.state {
        ExitState::Empty => ("empty", None),
        ExitState::Closing { deadline_s } => ("closing", Some(deadline_s)),
        ExitState::Paid => ("paid", None),
    }
}

fn row(exit: &Exit, assets: &[AssetInfo]) -> Vec<String> {
    let (asset, (state, deadline)) = (of(assets, exit.asset), state(exit));
    let deadline = deadline.map(|d| d.to_string()).unwrap_or_default();
    vec![
        asset.symbol.clone(),
        state.to_owned(),
        units(exit.paid, asset),
        deadline,
        units_256(exit.waiting_in_vault, asset),
    ]
}

fn to_json(exit: &Exit, assets: &[AssetInfo]) -> Value {
    let (asset, (state, deadline)) = (of(assets, exit.asset), state(exit));
    json!({
        "asset": asset.symbol, "address": asset.asset, "state": state, "paid": units(exit.paid, asset),
        "deadline": deadline, "waiting_in_vault": units_256(exit.waiting_in_vault, asset),
    })
}

fn leave_failure(error: &LeaveError) -> Failure {
    let (code, reason) = match error {
        LeaveError::Chain(error) => return chain_failure(error as &ChainError),
        LeaveError::Refused { .. } => (Code::Refused, "LEDGER_REFUSED"),
        LeaveError::NotSent { .. } => (Code::Refused, "NOT_SENT"),
        LeaveError::Unknown { .. } => (Code::Unknown, "OUTCOME_UNKNOWN"),
        LeaveError::NoEffect { .. } => (Code::Other, "NO_EFFECT"),
        LeaveError::NoChannel { .. } => (Code::NotFound, "NOT_FOUND"),
    };
    Failure::new(code, reason, error, "")
}
