//! `payhub watch --store DIR`: a watchtower that is a program of its own.
//!
//! What the folder is decides what is watched. In a **member's store** his programs keep an exit kit with his newest
//! evidence ([`client::KIT_FILE`]); the tower reads it again whenever it changes, opens nothing else there and needs
//! nothing else: no hub, no lock, no secret of the member. Any other folder is the **tower's own**: members upload their
//! evidence over gRPC, and it is durable in the folder before they are answered.
//!
//! Either way the only key is one that pays for gas. It posts evidence for closes that others began and pays closed
//! accounts out; the money goes where the channels' terms say.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use client::exit::{ExitKit, KitAccount};
use dispute::Claim;
use dispute::chain::Chain;
use dispute::remote::{RemoteError, RemoteTower, TowerConfig, TowerLimits, TowerNews, TowerStore};
use dispute::submitter::{AccountKey, Submitter, SubmitterConfig};
use dispute::watchtower::Alarm;
use proto::frame::member_voucher;
use proto::keys::PublicKey;
use proto::typed::Receipt;
use proto::{AccountId, LaneTip, Proof, Proven, Scheme, Signed, wire};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;

use crate::args::Watch;
use crate::chain::{AssetInfo, chain_failure, coin, units_256};
use crate::failure::{Code, Failure};
use crate::home::{self, MemberHome};
use crate::members;
use crate::output::Output;

/// Time between looks at the ledger's head.
const POLL: Duration = Duration::from_millis(500);
/// Time between looks at a member's kit, which is written once a second at most.
const KIT_POLL: Duration = Duration::from_secs(1);

/// What the folder is.
enum Folder {
    /// The tower's own.
    Own(PathBuf),
    /// A member's store, with the kit that his programs keep there.
    OfMember { kit_file: PathBuf, kit: Box<ExitKit> },
}

/// Runs until SIGINT or SIGTERM.
pub async fn run(args: &Watch, out: Output) -> Result<(), Failure> {
    let dir =
        args.store.as_deref().ok_or_else(|| Failure::usage("neither a member nor --store is given", "give one"))?;
    let rpc = args.at.rpc.clone();
    let fix = "say it: --rpc http://127.0.0.1:7445; best one that is not the hub's";
    let rpc = rpc.ok_or_else(|| Failure::usage("a tower of its own remembers no ledger", fix))?;
    let folder = folder(dir)?;
    let confirmations = match args.confirmations {
        Some(confirmations) => confirmations,
        None => members::confirmations(&rpc).await?,
    };
    let adjudicator = match (&folder, args.adjudicator) {
        (_, Some(given)) => given,
        (Folder::OfMember { kit, .. }, None) => kit.adjudicator,
        (Folder::Own(_), None) => ledger::genesis::DEPLOYER.create(0),
    };
    let chain = Chain::discover(&rpc, adjudicator, confirmations).await.map_err(|e| chain_failure(&e))?;
    let key = gas_key(args.key.as_deref(), &folder)?;
    let local = members::confirmations(&rpc).await? == 0;
    let sending = if local { SubmitterConfig::local() } else { SubmitterConfig::remote() };
    let submitter = Submitter::new(chain.clone(), vec![key], sending);
    let config = TowerConfig {
        listen: match &folder {
            Folder::Own(_) => listen(&args.listen)?,
            Folder::OfMember { .. } => None,
        },
        store: match &folder {
            Folder::Own(dir) => TowerStore::Folder(dir.join("tower")),
            Folder::OfMember { .. } => TowerStore::Memory,
        },
        poll: POLL,
        limits: TowerLimits::default(),
    };
    let tower = RemoteTower::start(config, chain.clone(), submitter).await.map_err(|e| start_failure(&e))?;
    let mut news = tower.news();
    if let Folder::OfMember { kit, .. } = &folder {
        hand_over(&tower, &chain, kit).await?;
    }
    // From the word that it is ready on, it ends in order.
    let stopped = crate::until_stopped();
    ready(&tower, &chain, &folder, dir, out).await?;
    let show = async {
        let mut last = None;
        loop {
            match news.recv().await {
                // A ledger that is away is said once, not at every look.
                Ok(news) if last.as_ref() == Some(&news) => {}
                Ok(news) => {
                    members::show_item(&news_json(&news), out);
                    last = Some(news);
                }
                Err(RecvError::Lagged(count)) => members::show_item(&json!({ "event": "missed", "count": count }), out),
                Err(RecvError::Closed) => return,
            }
        }
    };
    let result = tokio::select! {
        failed = tower.failed() => Err(Failure::other(failed)),
        () = show => Ok(()),
        () = follow(&tower, &chain, &folder) => Ok(()),
        () = stopped => Ok(()),
    };
    tower.shutdown().await;
    result
}

/// Says that it watches, for whom, and whether the gas account has anything to answer with.
async fn ready(tower: &RemoteTower, chain: &Chain, folder: &Folder, dir: &Path, out: Output) -> Result<(), Failure> {
    let account = tower.gas_account();
    let gas = chain.balance(proto::NATIVE, account).await.map_err(|e| chain_failure(&e))?;
    let coin: AssetInfo = coin();
    let url = tower.addr().map(|address| format!("http://{address}"));
    let (mode, channel) = match folder {
        Folder::Own(_) => ("uploads", None),
        Folder::OfMember { kit, .. } => ("member", Some(kit.channel)),
    };
    match (&url, channel) {
        (_, Some(channel)) => {
            out.say(format!("watching channel {channel} with the evidence that {} keeps", dir.display()))
        }
        (Some(url), None) => out.say(format!("watchtower at {url}; members name it with --tower {url}")),
        (None, None) => out.say("watchtower without a listener; it goes on with what it holds"),
    }
    let accounts = tower.accounts();
    out.say(format!("  {accounts} accounts on chain {}, adjudicator {}", chain.chain_id(), chain.domain().adjudicator));
    out.say(format!("  account {account} pays for gas and has {} {}", units_256(gas, &coin), coin.symbol));
    if gas.is_zero() {
        out.say("  it has nothing: give it coins, or no close is answered");
    }
    out.object(&json!({
        "ready": true, "mode": mode, "tower": url, "store": dir, "channel": channel, "rpc": chain.url(),
        "chain_id": chain.chain_id(), "adjudicator": chain.domain().adjudicator, "account": account,
        "gas": units_256(gas, &coin), "accounts": accounts,
    }));
    Ok(())
}

fn news_json(news: &TowerNews) -> Value {
    let place = |account: &AccountId| (account.channel.to_string(), account.asset.to_string());
    match news {
        TowerNews::Responding { account, member_paid, hub_paid } => {
            let (channel, asset) = place(account);
            json!({
                "event": "responding", "channel": channel, "asset": asset, "member_paid_base_units": member_paid,
                "hub_paid_base_units": hub_paid,
            })
        }
        TowerNews::PayingOut { account } => {
            let (channel, asset) = place(account);
            json!({ "event": "paying_out", "channel": channel, "asset": asset })
        }
        TowerNews::Final { account } => {
            let (channel, asset) = place(account);
            json!({ "event": "final", "channel": channel, "asset": asset })
        }
        TowerNews::Alarm(alarm) => {
            let kind = match alarm {
                Alarm::HalfTime { .. } => "HALF_TIME",
                Alarm::Missed { .. } => "MISSED",
                Alarm::Refused { .. } => "REFUSED",
                Alarm::Blind { .. } => "BLIND",
            };
            json!({ "event": "alarm", "kind": kind, "message": alarm.to_string() })
        }
    }
}

// ---- the folder ----------------------------------------------------------------------------------------------------

/// A member's store has a kit in it; his home has the store in it. A folder of this name that is neither is ours.
fn folder(dir: &Path) -> Result<Folder, Failure> {
    for kit_file in [dir.join(client::KIT_FILE), dir.join("store").join(client::KIT_FILE)] {
        if kit_file.is_file() {
            let kit = Box::new(read_kit(&kit_file)?);
            return Ok(Folder::OfMember { kit_file, kit });
        }
    }
    if dir.join("config.json").is_file() || dir.join("store").is_dir() {
        let what =
            format!("{} looks like a member's folder, but there is no {} in it yet", dir.display(), client::KIT_FILE);
        let fix = "open his channel first, or give the tower a folder of its own";
        return Err(Failure::not_found(what, fix));
    }
    Ok(Folder::Own(dir.to_owned()))
}

fn read_kit(path: &Path) -> Result<ExitKit, Failure> {
    let bad = |e: &dyn std::fmt::Display| Failure::other(format!("{}: {e}", path.display()));
    ExitKit::read(&std::fs::read_to_string(path).map_err(|e| bad(&e))?).map_err(|e| bad(&e))
}

/// Reads the kit again whenever it changes; never returns.
async fn follow(tower: &RemoteTower, chain: &Chain, folder: &Folder) {
    let Folder::OfMember { kit_file, .. } = folder else { return std::future::pending().await };
    let changed_at = || std::fs::metadata(kit_file).and_then(|data| data.modified()).ok();
    let mut read_at: Option<SystemTime> = None;
    loop {
        let now = changed_at();
        if now != read_at {
            match read_kit(kit_file) {
                Ok(kit) => match hand_over(tower, chain, &kit).await {
                    Ok(()) => read_at = now,
                    Err(failure) => tracing::error!(%failure, "the member's newest evidence is not taken"),
                },
                Err(failure) => tracing::error!(%failure, "the member's newest evidence cannot be read"),
            }
        }
        tokio::time::sleep(KIT_POLL).await;
    }
}

async fn hand_over(tower: &RemoteTower, chain: &Chain, kit: &ExitKit) -> Result<(), Failure> {
    if kit.domain() != *chain.domain() {
        let what = format!("the member's channel is at {} on chain {}", kit.adjudicator, kit.chain_id);
        return Err(Failure::usage(what, "name the ledger of that chain with --rpc"));
    }
    for account in &kit.accounts {
        let books = chain.books(&kit.account_id(account.asset)).await.map_err(|e| chain_failure(&e))?;
        if books.status == dispute::Status::Final {
            continue;
        }
        let held = tower.hold(kit.terms.clone(), account.asset, claims(kit, account)?).await;
        held.map_err(Failure::other)?;
    }
    Ok(())
}

/// The evidence of a kit's account, verified.
fn claims(kit: &ExitKit, account: &KitAccount) -> Result<Vec<Claim>, Failure> {
    let (domain, terms, id) = (kit.domain(), &kit.terms, kit.account_id(account.asset));
    let key = |scheme, bytes| Scheme::from_number(scheme).and_then(|scheme| PublicKey::new(scheme, bytes));
    let hub_key = key(terms.hubScheme, terms.hubKey).map_err(Failure::other)?;
    let member_key = key(terms.memberScheme, terms.memberKey).map_err(Failure::other)?;
    let evidence = &account.evidence;
    let mut claims = Vec::new();
    for voucher in &evidence.member_vouchers {
        let Proof::Direct(signature) = &voucher.proof else { continue };
        let body = member_voucher(id, voucher.lane, LaneTip { cumulative: voucher.cumulative, memo: voucher.memo });
        let signed = Signed::verify(&domain, &member_key, body, *signature).map_err(Failure::other)?;
        claims.push(Claim::Member(signed));
    }
    if let Some(voucher) = &evidence.hub_voucher {
        let body = wire::hub_voucher(id, voucher.cumulative, voucher.credits, voucher.memo);
        let proven = Proven::verify(&domain, &hub_key, body, voucher.proof.clone()).map_err(Failure::other)?;
        claims.push(Claim::Hub(proven));
    }
    if let Some(receipt) = &evidence.hub_receipt {
        let body = Receipt {
            channelId: id.channel.0,
            asset: id.asset,
            credit: receipt.credit,
            amount: receipt.amount.get(),
            total: receipt.total.get(),
            payments: receipt.payments,
        };
        let proven = Proven::verify(&domain, &hub_key, body, receipt.proof.clone()).map_err(Failure::other)?;
        claims.push(Claim::Receipt(proven));
    }
    Ok(claims)
}

// ---- arguments -----------------------------------------------------------------------------------------------------

fn listen(text: &str) -> Result<Option<SocketAddr>, Failure> {
    if text == "none" {
        return Ok(None);
    }
    let bad = |e| Failure::usage(format!("--listen {text:?} is no address: {e}"), "as in 127.0.0.1:7450, or none");
    text.parse().map(Some).map_err(bad)
}

/// The key that pays for gas. In the tower's own folder it is made at the first start; a member's folder is not written
/// to, and the secret in it is not looked at: it can move money.
fn gas_key(file: Option<&str>, folder: &Folder) -> Result<AccountKey, Failure> {
    let secret = match (file, folder) {
        (Some("-"), _) => home::parse_secret(&std::io::read_to_string(std::io::stdin())?)?,
        (Some(path), _) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                Failure::usage(format!("{path} cannot be read: {e}"), "name a file with 64 hexadecimal digits, or -")
            })?;
            home::parse_secret(&text)?
        }
        (None, Folder::Own(dir)) => {
            let home = MemberHome { name: "tower".to_owned(), dir: dir.clone() };
            if !dir.join("secret").is_file() {
                home.create(&proto::SecretKey::random(Scheme::Secp256k1).to_seed())?;
            }
            home.secret()?
        }
        (None, Folder::OfMember { .. }) => {
            let fix = "name the secret of an account that has coins for gas and nothing else: --key FILE, or --key -";
            return Err(Failure::usage("who pays for gas is not said, and the member's own key is not used", fix));
        }
    };
    AccountKey::from_secret(&secret).map_err(Failure::other)
}

fn start_failure(error: &RemoteError) -> Failure {
    let (code, reason) = match error {
        RemoteError::Chain(e) => return chain_failure(e),
        RemoteError::Listen { .. } => (Code::Other, "PORT_BUSY"),
        RemoteError::Store(storage::Error::Locked { .. }) => (Code::Other, "STORE_LOCKED"),
        RemoteError::Store(storage::Error::ForeignStore { .. }) => (Code::Other, "STORE_OF_ANOTHER"),
        RemoteError::Store(_) | RemoteError::Record(_) | RemoteError::Unreadable { .. } => (Code::Other, "STORE"),
        RemoteError::NoGasKey => (Code::Usage, "USAGE"),
        RemoteError::Stopped { .. } => (Code::Other, "FAILED"),
    };
    Failure::new(code, reason, error, "")
}
