//! `payhub demo`: the whole story in one process, with real parts.
//!
//! A ledger starts, a hub starts, members open channels and pay each other, everybody settles; one member stays away, and
//! is paid once more while he is: the hub takes the debit, gives the payer its receipt, and the payee never hears of it.
//! Then the hub's operator stops the hub and closes that member's account on the ledger without posting what he is owed.
//! The member's watchtower posts the hub's voucher that he had, and the receipt that the payer handed over. At the end every account's payout on the ledger is compared with what the members'
//! own books say, to the last unit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use alloy_primitives::{U256, keccak256};
use client::{Balance, Client, NewPayment, Outcome};
use dispute::adjudicator::Claim;
use dispute::chain::Chain;
use dispute::cursor::CursorState;
use dispute::submitter::{AccountKey, Submitter, SubmitterConfig};
use dispute::watchtower::{Alarm, Save, Tower, TowerHandle, TowerHost, run_tower, tower_channel};
use dispute::{CloseOrder, LedgerBooks, Status};
use futures::future::try_join_all;
use hub::{Hub, HubConfig, StoreAt};
use indicatif::ProgressBar;
use ledger::{Config, Ledger};
use proto::typed::Receipt;
use proto::{AccountId, Amount, ChannelId, Net, PaymentId};
use serde_json::{Value, json};

use crate::args;
use crate::chain::{self, AssetInfo, chain_failure, coin, money, test_dollar, units};
use crate::dev::chain_of;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::run_hub;
use crate::run_ledger::ledger_failure;
use crate::verbs;

/// The members of the story without a file; the last of them is paid the most and then stays away.
const CAST: [&str; 5] = ["alice", "bob", "carol", "dave", "erin"];
/// The challenge period of the story's channels, seconds of chain time; it is passed by turning the clock forward.
const CHALLENGE_PERIOD_S: u32 = 3600;
/// The hub's price: a tenth of a percent.
const FEE_PPM: u32 = 1_000;
/// Most members that a file may name: each of them is a client with a store and a watchtower.
const MEMBERS_MAX: usize = 64;
/// Payments that a member hands to its client at a time.
const CHUNK: usize = 1_024;
/// Payments to a signature.
const FRAME: usize = 64;
/// How often members and hub look for a new block of the ledger in this process.
const POLL: Duration = Duration::from_millis(20);
/// How long the story waits for something that should happen within a block or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// One payment of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    from: String,
    to: String,
    amount: Amount,
    asset: usize,
    note: String,
}

struct Member {
    name: String,
    client: Client,
    channel: ChannelId,
}

/// What went through one account, by the books of its member.
#[derive(Clone, Copy, Debug)]
struct Flow {
    account: AccountId,
    paid: Amount,
    received: Amount,
}

struct Dispute {
    withheld: Amount,
    recovered: Amount,
    /// The part of it that only the payer's receipt could prove.
    receipt_redeemed: Amount,
    asset: AssetInfo,
    member: String,
}

/// Runs the story; an error, or books that do not reconcile, end it with a failure.
pub async fn run(args: args::Demo, out: Output) -> Result<(), Failure> {
    let started = Instant::now();
    let folder = tempfile::TempDir::new()?;
    let ledger = start_ledger(folder.path()).await?;
    let deployment = ledger.deployment();
    let chain = chain_of(&ledger);
    let assets = vec![test_dollar(deployment.usdh), coin()];
    let plan = match &args.csv {
        Some(path) => read_plan(path, &assets)?,
        None => make_plan(args.payments),
    };
    let names = names_of(&plan)?;
    out.say(format!("A ledger started: an EVM chain in this process, id {}.", deployment.chain_id));

    let config = hub_config(folder.path(), &assets, &plan);
    let hub_seed = config.seed;
    run_hub::fill(&chain, config.account(), &assets).await?;
    let hub = Hub::start(config, chain.clone()).await.map_err(|e| run_hub::start_failure(&e))?;
    let grpc = format!("http://{}", hub.addr());
    out.say(format!("A hub started at {grpc}; it asks a fee of 0.1 %."));

    let bar = out.progress(names.len() as u64, "opening channels");
    let opening = names.iter().map(|name| open(name, folder.path(), &chain, &grpc, &assets, &plan, &bar));
    let members = try_join_all(opening).await?;
    bar.finish_and_clear();
    out.say(format!("{} members opened channels and deposited: {}.", members.len(), names.join(", ")));

    let paying = Instant::now();
    let bar = out.progress(plan.len() as u64, "paying");
    try_join_all(members.iter().map(|m| pay_all(m, &members, &plan, &assets, &bar))).await?;
    bar.finish_and_clear();
    let payments_per_s = (plan.len() as f64 / paying.elapsed().as_secs_f64()).round();
    out.say(format!(
        "{} payments were made, each signed, written to disk and receipted: {payments_per_s} a second.",
        plan.len()
    ));

    let mut quiet = wait_until_quiet(&members, &plan, &assets).await?;
    check_hub_books(&hub, &assets).await?;
    let (victim, away) = who_stays_away(&members, &quiet, &assets);
    let of_victim = |(m, _): &(usize, usize)| *m == victim;
    let accounts = (0..members.len()).flat_map(|m| (0..assets.len()).map(move |a| (m, a)));
    let (his, theirs): (Vec<_>, Vec<_>) = accounts.filter(|account| *account != (victim, away)).partition(of_victim);
    let bar = out.progress(2 * (his.len() + theirs.len()) as u64, "settling");
    close_together(&members, &assets, &his, &bar).await?;

    // From here on he is away, and whoever pays him gets the hub's word for it and no word of his.
    let tower = watch_in_the_name_of(&members[victim], &assets[away], &ledger).await?;
    members[victim].client.shutdown().await.map_err(|e| verbs::failure(&e))?;
    let payer = (0..members.len()).find(|m| *m != victim).ok_or_else(|| Failure::other("somebody pays"))?;
    let late = pay_who_is_away(&members[payer], &members[victim], &assets[away], &tower).await?;
    quiet[victim][away].received = quiet[victim][away].received.saturating_add(late);
    quiet[payer][away].paid =
        members[payer].client.balance(assets[away].asset).await.map_err(|e| verbs::failure(&e))?.paid;
    close_together(&members, &assets, &theirs, &bar).await?;
    bar.finish_and_clear();
    let cooperative = his.len() + theirs.len();
    out.say(format!(
        "{cooperative} accounts settled together with the hub: half withdrawn first, then closed and paid out."
    ));

    let flows = flows(&members, &quiet, &assets);
    for (_, member) in members.iter().enumerate().filter(|(m, _)| *m != victim) {
        member.client.shutdown().await.map_err(|e| verbs::failure(&e))?;
    }
    hub.shutdown().await.map_err(|e| Failure::other(e.to_string()))?;
    out.say(format!(
        "{} went offline, and {} paid him {} more: accepted by the hub with a receipt, never delivered.",
        members[victim].name,
        members[payer].name,
        money(late, &assets[away])
    ));
    let dispute =
        cheat_and_recover(&members[victim], &assets[away], &ledger, &chain, hub_seed, &flows, tower, late, out).await?;

    let reconciled = reconcile(&chain, &flows, &assets).await?;
    let blocks = chain.head().await.map_err(|e| chain_failure(&e))?.number;
    ledger.shutdown().await.map_err(|e| ledger_failure(&e))?;
    let ok = reconciled.iter().all(|r| r.difference.is_zero())
        && dispute.withheld == dispute.recovered
        && dispute.receipt_redeemed == late;
    show(&reconciled, &assets, out);
    if !ok {
        let what = format!("the ledger and the members' books differ: {:?}", differences(&reconciled, &assets));
        return Err(Failure::new(
            Code::Other,
            "DOES_NOT_RECONCILE",
            what,
            "this is a bug; please report it with the output",
        ));
    }
    out.object(&json!({
        "ok": ok,
        "chain": { "kind": "embedded", "chain_id": deployment.chain_id, "blocks": blocks },
        "channels_opened": members.len(), "payments": plan.len(), "payments_per_s": payments_per_s,
        "settled": { "cooperative": cooperative, "unilateral": 1 },
        "dispute": {
            "member": dispute.member, "asset": dispute.asset.symbol,
            "withheld": units(dispute.withheld, &dispute.asset), "recovered": units(dispute.recovered, &dispute.asset),
            "receipt_redeemed": units(dispute.receipt_redeemed, &dispute.asset),
        },
        "reconciled": reconciled.iter().map(|r| r.to_json(&assets)).collect::<Vec<Value>>(),
        "elapsed_s": (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0,
    }));
    out.say(format!("Everything reconciles to the last unit. {:.1} s in all.", started.elapsed().as_secs_f64()));
    Ok(())
}

// ---- the plan ------------------------------------------------------------------------------------------------------

/// Payments between the cast in two assets, the same at every run. Everybody pays everybody; the last member is paid
/// more often than the others.
fn make_plan(count: u64) -> Vec<Row> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut dice = |sides: u64| {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    };
    let cast = CAST.len() as u64;
    let row = |_| {
        let from = dice(cast);
        let to = if dice(3) == 0 { cast - 1 } else { dice(cast) };
        let to = if to == from { (to + 1) % cast } else { to };
        let (amount, asset) = if dice(5) == 0 {
            (Amount::new(u128::from(1 + dice(900)) * 1_000_000_000_000), 1)
        } else {
            (Amount::new(u128::from(100 + dice(20_000))), 0)
        };
        let name = |index: u64| CAST[index as usize].to_owned();
        Row { from: name(from), to: name(to), amount, asset, note: String::new() }
    };
    (0..count).map(row).collect()
}

/// Reads `from,to,amount,asset,note`; every mistake is named with its line.
fn read_plan(path: &Path, assets: &[AssetInfo]) -> Result<Vec<Row>, Failure> {
    let file = path.display();
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_path(path).map_err(|e| {
        Failure::usage(format!("{file} cannot be read: {e}"), "name a CSV file with the head from,to,amount,asset,note")
    })?;
    let head = reader.headers().map_err(|e| Failure::usage(format!("{file}: {e}"), "correct the file"))?.clone();
    let expected = ["from", "to", "amount", "asset"];
    if head.iter().take(4).ne(expected) {
        let what = format!("{file} begins with {:?}", head.iter().collect::<Vec<_>>().join(","));
        return Err(Failure::usage(what, "its first line must be from,to,amount,asset,note"));
    }
    let mut rows = Vec::new();
    for (index, record) in reader.records().enumerate() {
        let line = index + 2;
        let wrong =
            |what: String| Failure::usage(format!("{file}, line {line}: {what}"), "correct the line; nothing was paid");
        let record = record.map_err(|e| wrong(e.to_string()))?;
        let field = |i: usize| record.get(i).unwrap_or("");
        let (from, to) = (field(0), field(1));
        if from.is_empty() || to.is_empty() || from == to {
            return Err(wrong(format!("payer {from:?} and payee {to:?} must be two different names")));
        }
        for name in [from, to] {
            crate::home::MemberHome::at(Path::new("."), name).map_err(|f| wrong(f.what))?;
        }
        let symbol = field(3);
        let asset = assets.iter().position(|a| a.symbol.eq_ignore_ascii_case(symbol));
        let asset = asset.ok_or_else(|| wrong(format!("there is no asset {symbol:?}; here: USDH, COIN")))?;
        let amount = Amount::parse_units(field(2), assets[asset].decimals).map_err(|e| wrong(e.to_string()))?;
        if amount.is_zero() {
            return Err(wrong("the amount is zero; amounts are positive".to_owned()));
        }
        let note: String = record.iter().skip(4).collect::<Vec<_>>().join(",");
        if note.len() > proto::frame::NOTE_MAX {
            return Err(wrong(format!("the note has {} bytes, at most {}", note.len(), proto::frame::NOTE_MAX)));
        }
        rows.push(Row { from: from.to_owned(), to: to.to_owned(), amount, asset, note });
    }
    if rows.is_empty() {
        return Err(Failure::usage(format!("{file} holds no payments"), "add lines from,to,amount,asset,note"));
    }
    Ok(rows)
}

fn names_of(plan: &[Row]) -> Result<Vec<String>, Failure> {
    let names: BTreeSet<&str> = plan.iter().flat_map(|r| [r.from.as_str(), r.to.as_str()]).collect();
    if names.len() > MEMBERS_MAX {
        let what = format!("the file names {} members", names.len());
        return Err(Failure::usage(what, format!("the demo runs all of them in one process; at most {MEMBERS_MAX}")));
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// What a member pays in all, fees included, with a little to spare.
fn outflow(plan: &[Row], name: &str, asset: usize) -> Amount {
    let fee = |amount: Amount| Amount::new((amount.get() * u128::from(FEE_PPM)).div_ceil(1_000_000));
    let mine = plan.iter().filter(|r| r.from == name && r.asset == asset);
    Amount::checked_sum(mine.map(|r| r.amount.saturating_add(fee(r.amount)))).unwrap_or(Amount::MAX)
}

fn inflow(plan: &[Row], name: &str, asset: usize) -> Amount {
    let mine = plan.iter().filter(|r| r.to == name && r.asset == asset);
    Amount::checked_sum(mine.map(|r| r.amount)).unwrap_or(Amount::MAX)
}

// ---- ledger, hub, members ------------------------------------------------------------------------------------------

async fn start_ledger(folder: &Path) -> Result<Ledger, Failure> {
    let mut config = Config::dev();
    config.data_dir = Some(folder.join("ledger"));
    Ledger::start(config).await.map_err(|e| ledger_failure(&e))
}

fn hub_config(folder: &Path, assets: &[AssetInfo], plan: &[Row]) -> HubConfig {
    let names: BTreeSet<&str> = plan.iter().map(|r| r.to.as_str()).collect();
    let policies = assets.iter().enumerate().map(|(index, asset)| {
        let mut policy = run_hub::policy(asset, FEE_PPM);
        // Collateral for a quarter of what the busiest payee will get: the hub has to fund it again on the way.
        let busiest = names.iter().map(|name| inflow(plan, name, index)).max().unwrap_or_default();
        policy.inbound_target = Amount::new(busiest.get() / 4).max(policy.deposit_min);
        policy.inbound_max = busiest.max(policy.inbound_target).saturating_add(late_amount(asset));
        policy
    });
    let seed = keccak256("payhub demo hub").0;
    let mut config = HubConfig::new(seed, StoreAt::Folder(folder.join("hub")), policies.collect());
    config.development = true;
    config.challenge_period_s = CHALLENGE_PERIOD_S;
    config.poll = POLL;
    config
}

async fn open(
    name: &str,
    folder: &Path,
    chain: &Chain,
    grpc: &str,
    assets: &[AssetInfo],
    plan: &[Row],
    bar: &ProgressBar,
) -> Result<Member, Failure> {
    let client = Client::builder()
        .hub(grpc)
        .seed(keccak256(format!("payhub demo member {name}")).0)
        .store(folder.join("members").join(name))
        .chain(chain.clone())
        .name(name)
        .poll(POLL)
        .connect()
        .await
        .map_err(|e| verbs::failure(&e))?;
    chain::faucet(chain, client.account(), Amount::new(10u128.pow(18)), &coin()).await?;
    let mut channel = ChannelId::HUB;
    for (index, asset) in assets.iter().enumerate() {
        let minimum = run_hub::policy(asset, FEE_PPM).deposit_min;
        let deposit = outflow(plan, name, index).saturating_add(minimum).saturating_add(late_amount(asset));
        chain::faucet(chain, client.account(), deposit, asset).await?;
        channel = client.open(asset.asset, deposit).await.map_err(|e| verbs::failure(&e))?;
    }
    bar.inc(1);
    Ok(Member { name: name.to_owned(), client, channel })
}

// ---- paying --------------------------------------------------------------------------------------------------------

/// Makes a member's payments in the order of the plan, one lane an asset.
async fn pay_all(
    member: &Member,
    members: &[Member],
    plan: &[Row],
    assets: &[AssetInfo],
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let channels: BTreeMap<&str, ChannelId> = members.iter().map(|m| (m.name.as_str(), m.channel)).collect();
    let of_asset = |index: usize| {
        let mine = plan.iter().filter(move |r| r.from == member.name && r.asset == index);
        let payments: Vec<NewPayment> = mine
            .map(|r| NewPayment {
                id: Some(PaymentId::random()),
                note: alloy_primitives::Bytes::copy_from_slice(r.note.as_bytes()),
                ..NewPayment::new(channels[r.to.as_str()], r.amount)
            })
            .collect();
        pay_in_chunks(&member.client, &assets[index], payments, bar)
    };
    try_join_all((0..assets.len()).map(of_asset)).await.map(|_| ())
}

async fn pay_in_chunks(
    client: &Client,
    asset: &AssetInfo,
    payments: Vec<NewPayment>,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    for chunk in payments.chunks(CHUNK) {
        let until = Instant::now() + PATIENCE;
        let mut left = chunk.to_vec();
        while !left.is_empty() {
            let results =
                client.pay_many(asset.asset, left.clone()).frame(FRAME).await.map_err(|e| verbs::failure(&e))?;
            let mut again = Vec::new();
            for (payment, result) in left.into_iter().zip(results) {
                match result {
                    Ok(_) => bar.inc(1),
                    // The same id: whatever happens, it is paid once.
                    Err(e) if e.is_retryable() && e.outcome() == Outcome::NotPaid && Instant::now() < until => {
                        again.push(payment)
                    }
                    Err(e) => return Err(verbs::failure(&e)),
                }
            }
            left = again;
            if !left.is_empty() {
                tokio::time::sleep(POLL).await;
            }
        }
    }
    Ok(())
}

/// Waits until every payee has counted everything that the plan sends it; gives each member's balances.
async fn wait_until_quiet(
    members: &[Member],
    plan: &[Row],
    assets: &[AssetInfo],
) -> Result<Vec<Vec<Balance>>, Failure> {
    let until = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    for member in members {
        let mut balances = Vec::new();
        for (index, asset) in assets.iter().enumerate() {
            let expected = inflow(plan, &member.name, index);
            loop {
                let balance = member.client.balance(asset.asset).await.map_err(|e| verbs::failure(&e))?;
                if balance.received == expected && balance.unbacked.is_zero() {
                    balances.push(balance);
                    break;
                }
                if Instant::now() > until {
                    let what = format!(
                        "{} counts {} of {} received",
                        member.name,
                        money(balance.received, asset),
                        money(expected, asset)
                    );
                    return Err(Failure::new(Code::Other, "NOT_RECEIVED", what, "this is a bug, please report it"));
                }
                tokio::time::sleep(POLL).await;
            }
        }
        all.push(balances);
    }
    Ok(all)
}

/// I1 in the hub's own books: what the contract holds is the sum of the nets, per asset.
async fn check_hub_books(hub: &Hub, assets: &[AssetInfo]) -> Result<(), Failure> {
    let status = hub.status().await.map_err(|e| Failure::other(e.to_string()))?;
    for (policy, sums) in &status.assets {
        if sums.custody != sums.member_nets.saturating_add(sums.hub_nets) {
            let symbol = assets.iter().find(|a| a.asset == policy.asset).map_or("?", |a| a.symbol.as_str());
            return Err(Failure::other(format!("the hub's books of {symbol} do not add up: {sums:?}")));
        }
    }
    Ok(())
}

// ---- settling ------------------------------------------------------------------------------------------------------

/// The member and asset (dollars, if anybody earned some) with the largest gain: whom a cheating hub would pick.
fn who_stays_away(members: &[Member], balances: &[Vec<Balance>], assets: &[AssetInfo]) -> (usize, usize) {
    let gain = |m: usize, a: usize| balances[m][a].received.saturating_sub(balances[m][a].paid);
    let best = |a: usize| (0..members.len()).max_by_key(|m| gain(*m, a)).unwrap_or(0);
    let asset = (0..assets.len()).find(|a| !gain(best(*a), *a).is_zero()).unwrap_or(0);
    (best(asset), asset)
}

/// Of each of these accounts half is taken out first, and then it is closed.
async fn close_together(
    members: &[Member],
    assets: &[AssetInfo],
    accounts: &[(usize, usize)],
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let settle = |(m, a): (usize, usize)| {
        let (client, asset, bar) = (members[m].client.clone(), assets[a].asset, bar.clone());
        async move {
            let available = client.balance(asset).await.map_err(|e| verbs::failure(&e))?.available;
            let half = Amount::new(available.get() / 2);
            if !half.is_zero() {
                client.withdraw(asset, half).await.map_err(|e| verbs::failure(&e))?;
            }
            bar.inc(1);
            client.close(asset).await.map_err(|e| verbs::failure(&e))?;
            bar.inc(1);
            Ok::<(), Failure>(())
        }
    };
    try_join_all(accounts.iter().copied().map(settle)).await.map(|_| ())
}

// ---- the dispute ---------------------------------------------------------------------------------------------------

/// A watchtower that keeps its records in memory: it lives as long as the story.
struct Lookout;

impl TowerHost for Lookout {
    fn save(&mut self, _save: &Save) -> Result<(), String> {
        Ok(())
    }

    fn alarm(&mut self, alarm: &Alarm) {
        tracing::warn!(?alarm, "the watchtower raises an alarm");
    }
}

/// A watchtower that runs, and the end that evidence is handed to it by.
struct Watching {
    handle: TowerHandle,
    task: tokio::task::JoinHandle<()>,
}

/// Starts a watchtower with what the member holds: vouchers, and a key that pays for gas and can move nothing else.
async fn watch_in_the_name_of(member: &Member, asset: &AssetInfo, ledger: &Ledger) -> Result<Watching, Failure> {
    let chain = chain_of(ledger);
    let key = AccountKey::from_secret(&keccak256("payhub demo watchtower").0).map_err(Failure::other)?;
    chain::faucet(&chain, key.address(), Amount::new(10u128.pow(18)), &coin()).await?;
    let submitter = Submitter::new(chain.clone(), vec![key], SubmitterConfig::local());
    let (handle, requests) = tower_channel();
    let position = CursorState::from_block(0);
    let tower = Tower::new(*chain.domain());
    let task = tokio::spawn(async move {
        let stopped = run_tower(tower, position, chain, submitter, POLL, Lookout, requests).await;
        tracing::error!(%stopped, "the watchtower stopped");
    });
    let terms = member.client.terms().await.map_err(|e| verbs::failure(&e))?;
    let terms = terms.ok_or_else(|| Failure::other("a member of the story has a channel"))?;
    handle.watch(terms, asset.asset).await.map_err(|e| Failure::other(e.to_string()))?;
    let evidence = member.client.evidence(asset.asset).await.map_err(|e| verbs::failure(&e))?;
    let evidence = evidence.ok_or_else(|| Failure::other("a member of the story holds evidence"))?;
    let own = evidence.lanes.into_iter().map(Claim::from);
    for claim in own.chain(evidence.hub.into_iter().map(Claim::Hub)) {
        handle.offer(claim).await.map_err(|e| Failure::other(e.to_string()))?;
    }
    Ok(Watching { handle, task })
}

/// What somebody pays to the member who is away: half of the smallest deposit.
fn late_amount(asset: &AssetInfo) -> Amount {
    Amount::new((run_hub::policy(asset, FEE_PPM).deposit_min.get() / 2).max(1))
}

/// Pays a member who is away. The hub accepts: the payer gets a receipt, but no acknowledgement, because the payee never
/// gets the credit. The payer hands the receipt to the payee's watchtower.
async fn pay_who_is_away(
    payer: &Member,
    payee: &Member,
    asset: &AssetInfo,
    tower: &Watching,
) -> Result<Amount, Failure> {
    let late = late_amount(asset);
    let wrong = |e: &client::Error| verbs::failure(e);
    // What was acknowledged by now is not what this is about.
    let before = payer.client.balance(asset.asset).await.map_err(|e| wrong(&e))?.undelivered;
    let payment = NewPayment { id: Some(PaymentId::random()), ..NewPayment::new(payee.channel, late) };
    pay_in_chunks(&payer.client, asset, vec![payment], &ProgressBar::hidden()).await?;
    let after = payer.client.balance(asset.asset).await.map_err(|e| wrong(&e))?.undelivered;
    if after.saturating_sub(before) > late || after.is_zero() {
        return Err(Failure::other(format!("{after} are accepted and not delivered, where {late} should be")));
    }
    let receipts = payer.client.receipts().await.map_err(|e| wrong(&e))?;
    let his = |receipt: &Receipt| receipt.account() == AccountId { channel: payee.channel, asset: asset.asset };
    let receipt = receipts.into_iter().map(|(_, receipt)| receipt).find(|receipt| his(receipt.body()));
    let receipt = receipt.ok_or_else(|| Failure::other("an accepted payment that is not delivered has a receipt"))?;
    tower.handle.offer(Claim::Receipt(receipt)).await.map_err(|e| Failure::other(e.to_string()))?;
    Ok(late)
}

/// The hub's operator closes the account with the hub's own key and posts nothing; the tower answers. `late` is what only
/// the payer's receipt can prove.
#[allow(clippy::too_many_arguments)]
async fn cheat_and_recover(
    member: &Member,
    asset: &AssetInfo,
    ledger: &Ledger,
    chain: &Chain,
    hub_seed: [u8; 32],
    flows: &[Flow],
    tower: Watching,
    late: Amount,
    out: Output,
) -> Result<Dispute, Failure> {
    let account = AccountId { channel: member.channel, asset: asset.asset };
    let known_to_him = |total: Amount| total.saturating_sub(late);
    let flow = flows.iter().find(|f| f.account == account).ok_or_else(|| Failure::other("the account is known"))?;
    let key = hub::account_key(&hub_seed, 0);
    let from = key.address();
    let submitter = Submitter::new(chain.clone(), vec![key], SubmitterConfig::local());
    let terms = member.client.terms().await.ok().flatten();
    let terms = match terms {
        Some(terms) => terms,
        None => opened_terms(chain, member.channel).await?,
    };
    let order = CloseOrder { terms, asset: asset.asset, request: None };
    chain::send(&submitter, from, chain.adjudicator().start_close(&order), "the hub's close").await?;
    let books = chain.books(&account).await.map_err(|e| chain_failure(&e))?;
    // What the ledger would pay if nobody answered: by what is posted, which is nothing of the hub's debts.
    let unanswered = books.member_deposit.saturating_sub(books.member_withdrawn);
    let withheld = flow.due(&books).0.saturating_sub(books.member_withdrawn).saturating_sub(unanswered);
    out.say(format!(
        "The hub's operator stopped the hub and closed {}'s {} account on the ledger, posting nothing:\n  \
         unanswered, {} would be withheld.",
        member.name,
        asset.symbol,
        money(withheld, asset)
    ));
    let answered = until(chain, account, |b| b.hub_paid.max(b.member_paid) > Amount::ZERO).await?;
    // His voucher says what he had received when he went; what is posted above it is the receipt's.
    let by_receipt = answered.hub_paid.saturating_sub(known_to_him(flow.received));
    out.say(format!(
        "  the watchtower saw it and posted the hub's own word over {}: {} of it by the receipt that the payer handed over.",
        money(answered.hub_paid, asset),
        money(by_receipt, asset)
    ));
    pass_time(ledger, u64::from(CHALLENGE_PERIOD_S) + 1).await?;
    let last = until(chain, account, |b| b.status == Status::Final).await?;
    tower.task.abort();
    let recovered = last.member_withdrawn.saturating_sub(books.member_withdrawn).saturating_sub(unanswered);
    out.say(format!(
        "  after the challenge period {} was paid out: {} recovered.",
        member.name,
        money(recovered, asset)
    ));
    let receipt_redeemed = last.hub_paid.saturating_sub(known_to_him(flow.received)).min(recovered);
    Ok(Dispute { withheld, recovered, receipt_redeemed, asset: asset.clone(), member: member.name.clone() })
}

async fn opened_terms(chain: &Chain, channel: ChannelId) -> Result<proto::ChannelTerms, Failure> {
    let head = chain.head().await.map_err(|e| chain_failure(&e))?.number;
    let events = chain.events_in(0, head).await.map_err(|e| chain_failure(&e))?;
    let opened = events.into_iter().find_map(|event| match event.kind {
        dispute::EventKind::Opened { channel: id, terms } if id == channel => Some(terms),
        _ => None,
    });
    opened.ok_or_else(|| Failure::other("the channel's opening is on the ledger"))
}

async fn until(
    chain: &Chain,
    account: AccountId,
    there: impl Fn(&LedgerBooks) -> bool,
) -> Result<LedgerBooks, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let books = chain.books(&account).await.map_err(|e| chain_failure(&e))?;
        if there(&books) {
            return Ok(books);
        }
        if Instant::now() > deadline {
            return Err(Failure::other(format!("the watchtower did not act within {} s", PATIENCE.as_secs())));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn pass_time(ledger: &Ledger, seconds: u64) -> Result<(), Failure> {
    let rpc = ledger.rpc_client();
    let asked = |e: alloy::transports::TransportError| Failure::other(format!("the clock could not be turned: {e}"));
    let _: Value = rpc.request("evm_increaseTime", (seconds,)).await.map_err(asked)?;
    let _: Value = rpc.request("evm_mine", ()).await.map_err(asked)?;
    Ok(())
}

// ---- reconciling ---------------------------------------------------------------------------------------------------

/// One asset: what the ledger paid out, against what the members' own books say.
struct Reconciled {
    asset: usize,
    ledger: U256,
    books: U256,
    difference: Net,
}

impl Reconciled {
    fn to_json(&self, assets: &[AssetInfo]) -> Value {
        let asset = &assets[self.asset];
        json!({
            "asset": asset.symbol, "ledger": chain::units_256(self.ledger, asset),
            "books": chain::units_256(self.books, asset), "difference": self.difference.to_string(),
        })
    }
}

/// What went through each account, by the books of its member.
fn flows(members: &[Member], balances: &[Vec<Balance>], assets: &[AssetInfo]) -> Vec<Flow> {
    let of = |member: &Member, asset: &AssetInfo, b: &Balance| Flow {
        account: AccountId { channel: member.channel, asset: asset.asset },
        paid: b.paid,
        received: b.received,
    };
    let of_member =
        |(m, b): (&Member, &Vec<Balance>)| assets.iter().zip(b).map(|(a, b)| of(m, a, b)).collect::<Vec<_>>();
    members.iter().zip(balances).flat_map(of_member).collect()
}

impl Flow {
    /// What member and hub should have been paid in the end: deposits, plus what came, minus what went.
    fn due(&self, books: &LedgerBooks) -> (Amount, Amount) {
        let member = books.member_deposit.saturating_add(self.received).saturating_sub(self.paid);
        (member, books.hub_deposit.saturating_add(self.paid).saturating_sub(self.received))
    }
}

/// Compares account by account, and then each vault's balance with what it still owes.
async fn reconcile(chain: &Chain, flows: &[Flow], assets: &[AssetInfo]) -> Result<Vec<Reconciled>, Failure> {
    let mut all = Vec::new();
    for (index, asset) in assets.iter().enumerate() {
        let mut row = Reconciled { asset: index, ledger: U256::ZERO, books: U256::ZERO, difference: Net::ZERO };
        let (mut vaults, mut hubs) = (BTreeSet::new(), BTreeSet::new());
        for flow in flows.iter().filter(|f| f.account.asset == asset.asset) {
            let books = chain.books(&flow.account).await.map_err(|e| chain_failure(&e))?;
            vaults.insert(chain.vault_of(flow.account.channel).await.map_err(|e| chain_failure(&e))?);
            hubs.insert(opened_terms(chain, flow.account.channel).await?.hub);
            let (member, hub) = flow.due(&books);
            for (paid, owed) in [(books.member_withdrawn, member), (books.hub_withdrawn, hub)] {
                row.ledger += U256::from(paid.get());
                row.books += U256::from(owed.get());
                let apart = paid.saturating_sub(owed).max(owed.saturating_sub(paid));
                row.difference =
                    row.difference.saturating_add(proto::amount::net([apart, Amount::ZERO], [Amount::ZERO; 2]));
            }
            row.difference = row.difference.saturating_add(Net::from_raw(books.custody()));
        }
        for vault in &vaults {
            let balance = chain.balance(asset.asset, *vault).await.map_err(|e| chain_failure(&e))?;
            let mut owed = U256::ZERO;
            for hub in &hubs {
                owed += chain.claimable(*vault, asset.asset, *hub).await.map_err(|e| chain_failure(&e))?;
            }
            row.difference = row.difference.saturating_add(Net::from_raw(balance.abs_diff(owed)));
        }
        all.push(row);
    }
    Ok(all)
}

fn differences(reconciled: &[Reconciled], assets: &[AssetInfo]) -> Vec<String> {
    reconciled.iter().map(|r| format!("{} {}", r.difference, assets[r.asset].symbol)).collect()
}

fn show(reconciled: &[Reconciled], assets: &[AssetInfo], out: Output) {
    let row = |r: &Reconciled| {
        let asset = &assets[r.asset];
        vec![
            asset.symbol.clone(),
            chain::units_256(r.ledger, asset),
            chain::units_256(r.books, asset),
            r.difference.to_string(),
        ]
    };
    out.say("\nWhat the ledger paid out, against what the members' own books say:");
    out.table(&["asset", "ledger", "books", "difference"], reconciled.iter().map(row).collect());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(text: &str) -> Result<Vec<Row>, Failure> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("it can be written");
        read_plan(file.path(), &[test_dollar(alloy_primitives::Address::repeat_byte(1)), coin()])
    }

    #[test]
    fn a_file_of_payments_is_read_and_its_mistakes_are_named_with_their_line() {
        let rows = read("from,to,amount,asset,note\na,b,0.5,USDH,tea\nb,a,1,coin,\"x, y\"\n").expect("good lines");
        assert_eq!((rows[0].amount.get(), rows[0].asset, rows[1].note.as_str()), (500_000, 0, "x, y"));
        let head = "from,to,amount,asset,note\n";
        let bad = [
            ("a,b,c\n1,2,3\n".to_owned(), "from,to,amount"),
            (format!("{head}a,a,1,USDH,\n"), "line 2"),
            (format!("{head}a,b,1,USDH,\na,b,0,USDH,\n"), "line 3"),
            (format!("{head}a,b,-1,USDH,\n"), "line 2"),
            (format!("{head}a,b,0.1234567,USDH,\n"), "line 2"),
            (format!("{head}a,b,1,EUR,\n"), "no asset"),
            (format!("{head}A b,b,1,USDH,\n"), "line 2"),
            (head.to_owned(), "no payments"),
        ];
        for (text, part) in bad {
            let failure = read(&text).expect_err(&text);
            assert!(failure.to_string().contains(part), "{text:?}: {failure}");
        }
    }

    #[test]
    fn the_plan_is_the_same_at_every_run_and_pays_nobody_by_himself() {
        let plan = make_plan(1000);
        assert_eq!(plan, make_plan(1000));
        assert!(plan.iter().all(|r| r.from != r.to && !r.amount.is_zero()));
        assert_eq!(names_of(&plan).expect("few names").len(), CAST.len());
    }
}
