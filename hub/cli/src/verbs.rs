//! What a wallet does when it is asked: the members' commands over a [`Client`].

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use client::{Client, Error, Event, HistoryKind, NewPayment, Outcome, Paid, Payee};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use hdrhistogram::Histogram;
use proto::account::Status;
use proto::member::PayError;
use proto::{Amount, Asset, ChannelId, NATIVE, PaymentId};
use serde_json::{Value, json};

use crate::chain::{AssetInfo, chain_failure, coin, money, parse_money, units, units_256};
use crate::failure::{Code, Failure};
use crate::wallet::{Request, Sink};

/// How long a payment may take before its outcome is called unknown: long enough for a hub to be started again.
const PAY_PATIENCE: Duration = Duration::from_secs(600);
/// How long a payment that was refused for now is tried again: collateral arrives within a block or two.
const RETRY_PATIENCE: Duration = Duration::from_secs(60);
/// Time between the rounds of a stream.
const STREAM_ROUND: Duration = Duration::from_millis(20);
/// Frames under way at a time, of one payment or of many: enough to keep the hub busy while answers travel.
pub const WINDOW: usize = 256;

/// Answers one request.
pub async fn handle(client: Client, name: String, request: Request, sink: Sink) -> Result<Value, Failure> {
    match request {
        Request::Open { amount } => open(&client, &amount, &sink).await,
        Request::Fund { amount } => fund(&client, &amount, &sink).await,
        Request::Withdraw { amount } => withdraw(&client, &amount).await,
        Request::Pay { to, amount, count, frame, rate, note } => {
            let order = PayOrder { to, amount, count, frame, rate, note };
            pay(&client, order, &sink).await
        }
        Request::Stream { to, amount, ticks, rate } => stream(&client, &to, &amount, ticks, rate, &sink).await,
        Request::Balance => balance(&client, &name).await,
        Request::Channels => channels(&client, &name).await,
        Request::History { limit } => history(&client, &name, limit).await,
        Request::Events { follow } => events(&client, &name, follow, &sink).await,
        Request::Settle { asset } => settle(&client, asset.as_deref(), &sink).await,
        Request::Close { asset, unilateral } => close(&client, asset.as_deref(), unilateral, &sink).await,
        Request::Explain { hub } => crate::explain::of_wallet(&client, &name, hub.as_deref()).await,
        Request::ExitKit => {
            let kit = client.exit_kit().await.map_err(|e| failure(&e))?;
            Ok(json!({ "ok": true, "kit": kit }))
        }
    }
}

/// A client's failure with its exit code.
pub fn failure(error: &Error) -> Failure {
    let (code, reason) = match error {
        Error::Unreachable { .. } => (Code::Connect, "CANNOT_CONNECT"),
        Error::BadUrl { .. } | Error::Missing { .. } => (Code::Usage, "USAGE"),
        Error::Refused { reason, .. } | Error::Hub { reason, .. } => (Code::Refused, reason.as_str()),
        Error::Payee { .. } | Error::NoChannel | Error::UnknownAsset { .. } => (Code::NotFound, "NOT_FOUND"),
        Error::Unanswered { .. } | Error::Undecided { .. } => (Code::Unknown, "OUTCOME_UNKNOWN"),
        Error::DepositTooSmall { .. } => (Code::Refused, "DEPOSIT_TOO_SMALL"),
        Error::NotEnoughOnLedger { .. } => (Code::Refused, "NOT_ENOUGH_ON_LEDGER"),
        Error::Pay(PayError::Insufficient { .. }) => (Code::Refused, "INSUFFICIENT_FUNDS"),
        Error::Pay(PayError::NotOpen { .. }) => (Code::Refused, "ACCOUNT_CLOSED"),
        Error::Pay(PayError::PayeeIsPayer) => (Code::Refused, "PAYEE_IS_PAYER"),
        Error::Pay(PayError::NoAccount { .. }) => (Code::NotFound, "NOT_FOUND"),
        Error::Pay(_) => (Code::Refused, "SIGNER"),
        Error::Declined(_) => (Code::Refused, "DECLINED"),
        Error::Transaction { .. } => (Code::Refused, "LEDGER_REFUSED"),
        Error::OtherLedger { .. } => (Code::Other, "OTHER_LEDGER"),
        Error::Chain(error) => return crate::chain::chain_failure(error),
        Error::Misbehaved(_) => (Code::Other, "HUB_MISBEHAVED"),
        _ => (Code::Other, "FAILED"),
    };
    let fix = match error {
        Error::NotEnoughOnLedger { .. } => "on a development chain: payhub faucet NAME 100USDH",
        Error::NoChannel => "open one first: payhub open 100USDH --from NAME",
        Error::Payee { .. } => "check the name, and that the payee has opened a channel",
        Error::Pay(PayError::NotOpen { .. }) => {
            "see `payhub channels`; a closed account stays closed, a new name has a new one"
        }
        Error::Transaction { .. } => "look at `payhub channels` and at the account on the ledger",
        Error::Pay(PayError::PayeeIsPayer) => "name another payee",
        Error::Refused { retryable: true, .. } => "try again in a moment",
        Error::Unanswered { .. } => {
            "the payment is sent again when the hub is back; `payhub history` shows how it ended"
        }
        _ => "",
    };
    Failure::new(code, reason, error, fix)
}

/// The same with amounts of an asset as people write them.
fn failure_in(asset: &AssetInfo, error: &Error) -> Failure {
    let mut failure = failure(error);
    let symbol = &asset.symbol;
    match error {
        Error::Pay(PayError::Insufficient { cost, available }) => {
            let (cost, available) = (money(*cost, asset), money(*available, asset));
            failure.what = format!("that costs {cost} with the fee, and the channel has {available} to spend");
            failure.fix = format!("pay less, or add to it: payhub fund 100{symbol} --from NAME");
        }
        Error::Pay(PayError::NotOpen { status }) => {
            let status = format!("{status:?}").to_lowercase();
            failure.what = format!("the account in {symbol} is {status} on the ledger, so nothing can be paid from it");
        }
        Error::DepositTooSmall { given, min } => {
            let (given, min) = (money(*given, asset), money(*min, asset));
            failure.what = format!("a first deposit of {given} is below the hub's minimum of {min}");
            failure.fix = format!("deposit at least {min}");
        }
        Error::NotEnoughOnLedger { account, balance, needed, .. } => {
            let (balance, needed) = (units_256(*balance, asset), units_256(*needed, asset));
            failure.what =
                format!("account {account} has {balance} {symbol} on the ledger, {needed} {symbol} are needed");
            failure.fix = format!("deposit less, or on a development chain: payhub faucet NAME {needed}{symbol}");
        }
        _ => {}
    }
    failure
}

/// The assets that the hub serves; while the hub is away those that the member holds, as the ledger describes them: who
/// leaves without the hub must find everything without it.
pub async fn assets(client: &Client) -> Result<Vec<AssetInfo>, Failure> {
    let of = |a: &client::AssetInfo| AssetInfo { symbol: a.symbol.clone(), asset: a.asset, decimals: a.decimals };
    let away = match client.info().await {
        Ok(info) => return Ok(info.assets.iter().map(of).collect()),
        Err(error) => failure(&error),
    };
    let mut held = Vec::new();
    for account in client.accounts().await.map_err(|e| failure(&e))? {
        held.push(described_by_the_ledger(client, account.asset).await?);
    }
    if held.is_empty() { Err(away) } else { Ok(held) }
}

async fn described_by_the_ledger(client: &Client, asset: Asset) -> Result<AssetInfo, Failure> {
    if asset == NATIVE {
        return Ok(coin());
    }
    let chain = client.chain();
    let symbol = chain.symbol(asset).await.map_err(|e| chain_failure(&e))?;
    let decimals = chain.decimals(asset).await.map_err(|e| chain_failure(&e))?;
    Ok(AssetInfo { symbol, asset, decimals })
}

fn symbol_of(assets: &[AssetInfo], asset: Asset) -> AssetInfo {
    let unknown = || AssetInfo { symbol: asset.to_string(), asset, decimals: 0 };
    assets.iter().find(|a| a.asset == asset).cloned().unwrap_or_else(unknown)
}

fn chosen(assets: &[AssetInfo], symbol: Option<&str>) -> Result<Vec<AssetInfo>, Failure> {
    let Some(symbol) = symbol else { return Ok(assets.to_vec()) };
    match assets.iter().find(|a| a.symbol.eq_ignore_ascii_case(symbol)) {
        Some(asset) => Ok(vec![asset.clone()]),
        None => {
            let known: Vec<&str> = assets.iter().map(|a| a.symbol.as_str()).collect();
            Err(Failure::not_found(format!("there is no asset {symbol:?} here"), format!("here: {}", known.join(", "))))
        }
    }
}

// ---- money in and out ----------------------------------------------------------------------------------------------

async fn open(client: &Client, amount: &str, sink: &Sink) -> Result<Value, Failure> {
    let assets = assets(client).await?;
    let (amount, asset) = parse_money(amount, &assets)?;
    let accounts = client.accounts().await.map_err(|e| failure(&e))?;
    if let Some(closed) = accounts.iter().find(|a| a.asset == asset.asset && a.balance.ledger.status != Status::Open) {
        let status = format!("{:?}", closed.balance.ledger.status).to_lowercase();
        let what = format!("the account in {} is {status} on the ledger and takes no deposits", asset.symbol);
        let fix = "a closed account stays closed; a new name has a new one: payhub keys new NAME";
        return Err(Failure::new(Code::Refused, "ACCOUNT_CLOSED", what, fix));
    }
    sink.note("sending the deposit to the ledger and waiting until ledger and hub count it").await;
    let channel = client.open(asset.asset, amount).await.map_err(|e| failure_in(asset, &e))?;
    Ok(json!({ "ok": true, "channel": channel.to_string(), "deposited": units(amount, asset), "asset": asset.symbol }))
}

async fn fund(client: &Client, amount: &str, sink: &Sink) -> Result<Value, Failure> {
    if client.channel().await.map_err(|e| failure(&e))?.is_none() {
        return Err(failure(&Error::NoChannel));
    }
    open(client, amount, sink).await
}

async fn withdraw(client: &Client, amount: &str) -> Result<Value, Failure> {
    let assets = assets(client).await?;
    let (amount, asset) = parse_money(amount, &assets)?;
    let available = client.balance(asset.asset).await.map_err(|e| failure(&e))?.available;
    if amount > available {
        let what = format!("{} cannot be withdrawn: the channel has {}", money(amount, asset), money(available, asset));
        return Err(Failure::new(
            Code::Refused,
            "INSUFFICIENT_FUNDS",
            what,
            "withdraw less; `payhub balance` shows it as backed",
        ));
    }
    let settled = client.withdraw(asset.asset, amount).await.map_err(|e| failure_in(asset, &e))?;
    Ok(json!({
        "ok": true, "asset": asset.symbol, "withdrawn": units(amount, asset), "seq": settled.seq,
        "withdrawn_in_all": units(settled.member_withdrawn, asset),
    }))
}

async fn settle(client: &Client, symbol: Option<&str>, sink: &Sink) -> Result<Value, Failure> {
    let mut settled = Vec::new();
    for asset in chosen(&assets(client).await?, symbol)? {
        let available = client.balance(asset.asset).await.map_err(|e| failure(&e))?.available;
        if available.is_zero() {
            continue;
        }
        sink.note(format!("settling {}", money(available, &asset))).await;
        let done = client.settle(asset.asset, available).await.map_err(|e| failure(&e))?;
        settled.push(json!({
            "asset": asset.symbol, "withdrawn": units(available, &asset), "seq": done.seq,
            "withdrawn_in_all": units(done.member_withdrawn, &asset),
        }));
    }
    if settled.is_empty() {
        let what = "there is nothing to settle: no account has anything that can be withdrawn";
        return Err(Failure::new(Code::Refused, "NOTHING_TO_SETTLE", what, "look at `payhub balance`"));
    }
    Ok(json!({ "ok": true, "settled": settled }))
}

async fn close(client: &Client, symbol: Option<&str>, unilateral: bool, sink: &Sink) -> Result<Value, Failure> {
    let assets = chosen(&assets(client).await?, symbol)?;
    let held = client.accounts().await.map_err(|e| failure(&e))?;
    let open = |a: &&AssetInfo| {
        held.iter().any(|h| h.asset == a.asset && h.balance.ledger.status == Status::Open && has_money(&h.balance))
    };
    let mut closed = Vec::new();
    for asset in assets.iter().filter(open) {
        if unilateral {
            sink.note(format!("starting the challenge period of {}", asset.symbol)).await;
            let deadline_s = client.close_unilateral(asset.asset).await.map_err(|e| failure(&e))?;
            closed.push(json!({ "asset": asset.symbol, "how": "unilateral", "deadline": deadline_s }));
        } else {
            sink.note(format!("closing {} together with the hub", asset.symbol)).await;
            let done = client.close(asset.asset).await.map_err(|e| failure(&e))?;
            let paid_out = units(done.member_withdrawn, asset);
            closed.push(json!({ "asset": asset.symbol, "how": "cooperative", "withdrawn_in_all": paid_out }));
        }
    }
    if closed.is_empty() {
        let what = "there is no open account to close";
        return Err(Failure::new(Code::Refused, "NOTHING_TO_CLOSE", what, "look at `payhub channels`"));
    }
    Ok(json!({ "ok": true, "closed": closed }))
}

fn has_money(balance: &client::Balance) -> bool {
    let ledger = &balance.ledger;
    !(ledger.member_deposit.is_zero() && ledger.hub_deposit.is_zero() && balance.received.is_zero())
}

// ---- paying --------------------------------------------------------------------------------------------------------

struct PayOrder {
    to: String,
    amount: String,
    count: u64,
    frame: u64,
    rate: Option<u64>,
    note: String,
}

struct Tally {
    paid: u64,
    credits: BTreeSet<u64>,
    latency_us: Histogram<u64>,
    unknown: Vec<PaymentId>,
}

async fn pay(client: &Client, order: PayOrder, sink: &Sink) -> Result<Value, Failure> {
    let assets = assets(client).await?;
    let (amount, asset) = parse_money(&order.amount, &assets)?;
    if order.note.len() > proto::frame::NOTE_MAX {
        let what = format!("the note has {} bytes", order.note.len());
        return Err(Failure::usage(what, format!("write at most {}", proto::frame::NOTE_MAX)));
    }
    if client.channel().await.map_err(|e| failure(&e))?.is_none() {
        return Err(failure(&Error::NoChannel));
    }
    let payee = client.payee(Payee::from(order.to.as_str())).await.map_err(|e| failure(&e))?;
    affordable(client, asset, amount, order.count).await?;
    let histogram = Histogram::new_with_bounds(1, 3_600_000_000, 3).map_err(Failure::other)?;
    let mut tally = Tally { paid: 0, credits: BTreeSet::new(), latency_us: histogram, unknown: Vec::new() };
    let started = Instant::now();
    let mut running = FuturesUnordered::new();
    let (mut ordered, mut failed) = (0, None);
    let go_on = |ordered: u64, failed: &Option<Failure>| failed.is_none() && ordered < order.count;
    while go_on(ordered, &failed) || !running.is_empty() {
        if go_on(ordered, &failed) && running.len() < WINDOW {
            let due = order.rate.map(|rate| started + at_rate(ordered, rate));
            if due.is_none_or(|due| due <= Instant::now()) {
                let size = order.frame.min(order.count - ordered);
                // Latency counts from when a payment was due, so that a slow hub does not hide its own queue.
                running.push(pay_chunk(client, asset, payee, amount, &order, size, due.unwrap_or_else(Instant::now)));
                ordered += size;
                continue;
            }
        }
        let wake = match order.rate {
            Some(rate) if go_on(ordered, &failed) && running.len() < WINDOW => started + at_rate(ordered, rate),
            Some(_) | None => Instant::now() + Duration::from_secs(3600),
        };
        tokio::select! {
            () = tokio::time::sleep_until(wake.into()) => {}
            Some(mut chunk) = running.next() => {
                // What is under way is waited for, so that the failure can say how much was paid.
                failed = failed.or(chunk.failed.take());
                tally.add(chunk);
                sink.progress(tally.paid, order.count);
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    for id in std::mem::take(&mut tally.unknown) {
        match client.resolve(id).await.map_err(|e| failure(&e))? {
            Outcome::Paid => tally.paid += 1,
            Outcome::NotPaid => {}
            Outcome::Unknown => tally.unknown.push(id),
        }
    }
    if let Some(id) = tally.unknown.first() {
        let what =
            format!("{} payments were made; {} wait for an answer, the first is {id}", tally.paid, tally.unknown.len());
        let fix = "they are sent again when the hub is back; `payhub history` shows how they ended";
        return Err(Failure::new(Code::Unknown, "OUTCOME_UNKNOWN", what, fix));
    }
    if let Some(failure) = failed {
        let what = match tally.paid {
            0 => failure.what,
            paid => format!("{paid} of {} payments were made, then: {}", order.count, failure.what),
        };
        return Err(Failure { what, ..failure });
    }
    let ms = |quantile| tally.latency_us.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(json!({
        "ok": true, "paid": tally.paid, "asset": asset.symbol,
        "amount": amount.checked_mul(u128::from(tally.paid)).map(|sum| units(sum, asset)),
        "payments_per_s": (tally.paid as f64 / seconds).round(), "p50_ms": ms(0.5), "p99_ms": ms(0.99),
        "receipts": tally.credits.len(),
    }))
}

/// Pays by the tick. The client reveals what was added in rounds, so that a tick costs next to nothing.
async fn stream(
    client: &Client,
    to: &str,
    amount: &str,
    ticks: u64,
    rate: Option<u64>,
    sink: &Sink,
) -> Result<Value, Failure> {
    let assets = assets(client).await?;
    let (amount, asset) = parse_money(amount, &assets)?;
    if client.channel().await.map_err(|e| failure(&e))?.is_none() {
        return Err(failure(&Error::NoChannel));
    }
    affordable(client, asset, amount, ticks).await?;
    let stream = client.stream(to, asset.asset).rate(amount).cap(ticks).every(STREAM_ROUND);
    let meter = stream.await.map_err(|e| failure_in(asset, &e))?;
    let started = Instant::now();
    let mut added = 0;
    let mut round = tokio::time::interval(STREAM_ROUND);
    while added < ticks && meter.add(0).is_ok() {
        round.tick().await;
        let due = rate.map_or(ticks, |rate| (started.elapsed().as_secs_f64() * rate as f64) as u64).min(ticks);
        if meter.add(due - added).is_err() {
            break;
        }
        added = due;
        sink.progress(meter.so_far().paid, ticks);
    }
    let metered = meter.finish().await.map_err(|e| failure_in(asset, &e))?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(json!({
        "ok": true, "paid": metered.paid, "asset": asset.symbol,
        "amount": amount.checked_mul(u128::from(metered.paid)).map(|sum| units(sum, asset)),
        "ticks_per_s": (metered.paid as f64 / seconds).round(),
    }))
}

fn at_rate(ordered: u64, rate: u64) -> Duration {
    Duration::from_secs_f64(ordered as f64 / rate as f64)
}

/// Refuses what the account cannot pay to the end, before any of it is paid.
async fn affordable(client: &Client, asset: &AssetInfo, amount: Amount, count: u64) -> Result<(), Failure> {
    let balance = client.balance(asset.asset).await.map_err(|e| failure(&e))?;
    if balance.ledger.status != Status::Open {
        return Err(failure_in(asset, &Error::Pay(PayError::NotOpen { status: balance.ledger.status })));
    }
    let info = client.info().await.map_err(|e| failure(&e))?;
    let fee = info.asset(asset.asset).and_then(|served| served.fee(amount)).unwrap_or_default();
    let cost = amount.checked_add(fee).and_then(|each| each.checked_mul(u128::from(count))).unwrap_or(Amount::MAX);
    let available = balance.available;
    if cost > available {
        return Err(failure_in(asset, &Error::Pay(PayError::Insufficient { cost, available })));
    }
    Ok(())
}

struct Chunk {
    paid: Vec<Paid>,
    unknown: Vec<PaymentId>,
    latency: Duration,
    failed: Option<Failure>,
}

/// Pays `size` times. What is refused for now is tried again under the same ids, so that nothing is ever paid twice.
async fn pay_chunk(
    client: &Client,
    asset: &AssetInfo,
    payee: ChannelId,
    amount: Amount,
    order: &PayOrder,
    size: u64,
    due: Instant,
) -> Chunk {
    let new = |id| NewPayment {
        id: Some(id),
        note: alloy_primitives::Bytes::copy_from_slice(order.note.as_bytes()),
        ..NewPayment::new(payee, amount)
    };
    let mut left: Vec<PaymentId> = (0..size).map(|_| PaymentId::random()).collect();
    let frame = usize::try_from(size).unwrap_or(usize::MAX);
    let mut chunk = Chunk { paid: Vec::new(), unknown: Vec::new(), latency: Duration::ZERO, failed: None };
    let mut pause = Duration::from_millis(20);
    loop {
        let payments = left.iter().map(|id| new(*id)).collect();
        let results = client.pay_many(asset.asset, payments).frame(frame).timeout(PAY_PATIENCE).await;
        let results = match results {
            Ok(results) => results,
            Err(e) => return Chunk { failed: Some(failure_in(asset, &e)), ..chunk },
        };
        let mut again = Vec::new();
        for (id, result) in left.iter().zip(results) {
            match result {
                Ok(paid) => chunk.paid.push(paid),
                Err(e) if e.outcome() == Outcome::Unknown => chunk.unknown.push(*id),
                Err(e) if e.is_retryable() && due.elapsed() < RETRY_PATIENCE => again.push(*id),
                Err(e) => chunk.failed = Some(not_payable(&order.to, failure_in(asset, &e))),
            }
        }
        if again.is_empty() || chunk.failed.is_some() {
            chunk.latency = due.elapsed();
            return chunk;
        }
        left = again;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// A refusal that is about the payee names him as the payer does.
fn not_payable(payee: &str, failure: Failure) -> Failure {
    if !failure.reason.starts_with("PAYEE_") {
        return failure;
    }
    let fix = if failure.fix.is_empty() { "ask the payee; see also `payhub events`".to_owned() } else { failure.fix };
    Failure { what: format!("{payee} cannot be paid now: {}", failure.what), fix, ..failure }
}

impl Tally {
    fn add(&mut self, chunk: Chunk) {
        let count = u64::try_from(chunk.paid.len()).unwrap_or(u64::MAX);
        self.paid += count;
        self.credits.extend(chunk.paid.iter().map(|p| p.credit));
        let latency = u64::try_from(chunk.latency.as_micros()).unwrap_or(u64::MAX);
        self.latency_us.saturating_record_n(latency.max(1), count);
        self.unknown.extend(chunk.unknown);
    }
}

// ---- looking -------------------------------------------------------------------------------------------------------

async fn balance(client: &Client, name: &str) -> Result<Value, Failure> {
    let mut rows = Vec::new();
    for asset in assets(client).await? {
        let wallet = client.chain().balance(asset.asset, client.account()).await;
        let wallet = wallet.map_err(|e| crate::chain::chain_failure(&e))?;
        let b = client.balance(asset.asset).await.map_err(|e| failure(&e))?;
        let channel = b.available.saturating_add(b.unbacked);
        rows.push(json!({
            "asset": asset.symbol, "wallet": units_256(wallet, &asset), "channel": units(channel, &asset),
            "backed": units(b.available, &asset), "paid": units(b.paid, &asset), "received": units(b.received, &asset),
        }));
    }
    Ok(json!({ "ok": true, "member": name, "account": client.account(), "assets": rows }))
}

async fn channels(client: &Client, name: &str) -> Result<Value, Failure> {
    let assets = assets(client).await?;
    let channel = client.channel().await.map_err(|e| failure(&e))?;
    let mut rows = Vec::new();
    for account in client.accounts().await.map_err(|e| failure(&e))? {
        let asset = symbol_of(&assets, account.asset);
        let b = &account.balance;
        let ledger = &b.ledger;
        let status = match ledger.status {
            Status::Open if b.frozen => "freezing",
            Status::Open => "open",
            Status::Closing => "closing",
            Status::Final => "final",
        };
        let mut row = json!({
            "asset": asset.symbol, "status": status, "deposited": units(ledger.member_deposit, &asset),
            "collateral": units(ledger.hub_deposit, &asset), "withdrawn": units(ledger.member_withdrawn, &asset),
            "paid": units(b.paid, &asset), "received": units(b.received, &asset), "unbacked": units(b.unbacked, &asset),
            "undelivered": units(b.undelivered, &asset), "seq": ledger.seq,
        });
        if ledger.status == Status::Closing {
            row["deadline"] = json!(ledger.deadline);
        }
        if ledger.status == Status::Final {
            // What the member could have proven, against what the ledger paid: posted too late, or not at all.
            let due = ledger.member_deposit.saturating_add(b.received).saturating_sub(b.paid);
            row["lost"] = json!(units(due.saturating_sub(ledger.member_withdrawn), &asset));
        }
        rows.push(row);
    }
    let id = channel.map(|c| c.to_string());
    Ok(json!({ "ok": true, "member": name, "channel": id, "accounts": rows }))
}

async fn history(client: &Client, name: &str, limit: usize) -> Result<Value, Failure> {
    let assets = assets(client).await?;
    let entries = client.history(limit).await.map_err(|e| failure(&e))?;
    let rows: Vec<Value> = entries
        .into_iter()
        .map(|entry| {
            let asset = symbol_of(&assets, entry.asset);
            let mut row = match entry.kind {
                HistoryKind::Sent { id, payee, amount, fee, note } => json!({
                    "kind": "sent", "id": id.to_string(), "to": payee.to_string(), "amount": units(amount, &asset),
                    "fee": units(fee, &asset), "note": String::from_utf8_lossy(&note),
                }),
                HistoryKind::Received { id, payer, amount, note, credit } => json!({
                    "kind": "received", "id": id.to_string(), "from": payer.to_string(), "amount": units(amount, &asset),
                    "credit": credit, "note": String::from_utf8_lossy(&note),
                }),
                HistoryKind::Settled { seq, member_withdrawn, close } => json!({
                    "kind": if close { "closed" } else { "settled" }, "seq": seq,
                    "amount": units(member_withdrawn, &asset),
                }),
            };
            row["at_ms"] = json!(entry.at_ms);
            row["asset"] = json!(asset.symbol);
            row
        })
        .collect();
    Ok(json!({ "ok": true, "member": name, "entries": rows }))
}

async fn events(client: &Client, name: &str, follow: bool, sink: &Sink) -> Result<Value, Failure> {
    if !follow {
        return history(client, name, 100).await;
    }
    let assets = assets(client).await?;
    let mut events = client.events();
    while let Some(event) = events.next().await {
        sink.item(event_json(&event, &assets)).await?;
    }
    Ok(json!({ "ok": true }))
}

/// An event as JSON.
pub fn event_json(event: &Event, assets: &[AssetInfo]) -> Value {
    let of = |asset: &Asset| symbol_of(assets, *asset);
    match event {
        Event::Connected => json!({ "event": "connected" }),
        Event::Disconnected { why } => json!({ "event": "disconnected", "why": why }),
        Event::Paid { id, asset, payee, amount, fee } => {
            let a = of(asset);
            json!({ "event": "paid", "id": id.to_string(), "to": payee.to_string(), "amount": units(*amount, &a),
                "fee": units(*fee, &a), "asset": a.symbol })
        }
        Event::NotPaid { id, reason } => json!({ "event": "not_paid", "id": id.to_string(), "reason": reason }),
        Event::Received { asset, payer, amount, credit, payments } => {
            let a = of(asset);
            let payments: Vec<Value> = payments
                .iter()
                .map(|p| json!({ "id": p.id.to_string(), "amount": units(p.amount, &a), "note": String::from_utf8_lossy(&p.note) }))
                .collect();
            json!({ "event": "received", "from": payer.to_string(), "amount": units(*amount, &a), "asset": a.symbol,
                "credit": credit, "payments": payments })
        }
        Event::Delivered { asset, payee, ids } => json!({
            "event": "delivered", "asset": of(asset).symbol, "to": payee.to_string(),
            "ids": ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
        Event::Deposited { asset, member_deposit, hub_deposit } => {
            let a = of(asset);
            json!({ "event": "deposited", "asset": a.symbol, "deposited": units(*member_deposit, &a),
                "collateral": units(*hub_deposit, &a) })
        }
        Event::Settled { asset, member_withdrawn, hub_withdrawn } => {
            let a = of(asset);
            json!({ "event": "settled", "asset": a.symbol, "withdrawn": units(*member_withdrawn, &a),
                "hub_withdrawn": units(*hub_withdrawn, &a) })
        }
        Event::Closing { asset, deadline_s } => {
            json!({ "event": "closing", "asset": of(asset).symbol, "deadline": deadline_s })
        }
        Event::Final { asset } => json!({ "event": "final", "asset": of(asset).symbol }),
        Event::Unbacked { asset, amount } => {
            let a = of(asset);
            json!({ "event": "unbacked", "asset": a.symbol, "amount": units(*amount, &a) })
        }
        Event::StoreWasOld { asset, lane } => {
            json!({ "event": "store_was_old", "asset": of(asset).symbol, "lane": lane })
        }
        Event::Rebased { asset, credits } => {
            json!({ "event": "rebased", "asset": of(asset).symbol, "credits": credits })
        }
        Event::HubMisbehaved(how) => json!({ "event": "hub_misbehaved", "how": how.to_string() }),
        Event::Alarm { message } => json!({ "event": "alarm", "message": message }),
        Event::TowerAway { why } => json!({ "event": "tower_away", "why": why }),
        Event::TowerBack => json!({ "event": "tower_back" }),
        Event::Missed { count } => json!({ "event": "missed", "count": count }),
    }
}
