//! `payhub explain`: in plain words what stands, what is pending, who must act by when, what it costs, and where the money
//! goes.
//!
//! [`explain`] turns facts into sentences and does nothing else; the two functions after it collect the facts, from a
//! wallet or, for a channel that nobody here has a store of, from the ledger alone.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::Address;
use client::Client;
use dispute::chain::Chain;
use dispute::gas::{self, Measured};
use dispute::{EventKind, LedgerBooks, Status};
use proto::account::Totals;
use proto::typed::Receipt;
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, NATIVE, Proven};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Explain;
use crate::chain::{AssetInfo, chain_failure, coin, money};
use crate::failure::Failure;
use crate::home::{self, MemberHome};
use crate::members;
use crate::output::Output;
use crate::verbs;
use crate::wallet::Request;

/// Receipts that are told of one by one.
const RECEIPTS_SHOWN: usize = 5;

/// What is known of a channel.
#[derive(Clone, Debug)]
struct Facts {
    /// The member's name, or `the member`.
    member: String,
    /// The two payout accounts, and how long a challenge period is, seconds.
    terms: Terms,
    /// Time of the ledger's newest block, seconds.
    now_s: u64,
    /// Time of this computer, seconds.
    here_s: u64,
    /// What a unit of gas costs now.
    gas_price_wei: u128,
    /// The ledger node that was asked.
    node: Node,
    accounts: Vec<AccountFacts>,
}

#[derive(Clone, Copy, Debug)]
struct Terms {
    member: Address,
    hub: Address,
    challenge_period_s: u32,
}

/// Who may be behind the ledger node.
#[derive(Clone, Debug)]
struct Node {
    url: String,
    /// Whether it is an embedded ledger, whose blocks one operator makes.
    embedded: bool,
    /// Whether it is on the hub's host; unknown where the hub is.
    with_hub: Option<bool>,
}

#[derive(Clone, Debug)]
struct AccountFacts {
    asset: AssetInfo,
    books: LedgerBooks,
    /// What the member's store says, if it is at hand.
    held: Option<Held>,
    /// What waits in the channel's vault for the member's and the hub's account.
    waiting: (Amount, Amount),
}

/// What a member's store says of an account.
#[derive(Clone, Debug, Default)]
struct Held {
    /// What the hub paid, by its own signature.
    hub_paid: Amount,
    /// What the member paid, by vouchers that the hub accepted.
    member_paid: Amount,
    /// Signed and not accepted yet.
    unreceipted: Amount,
    /// Accepted and not acknowledged by the payees yet.
    undelivered: Amount,
    /// Received beyond the hub's collateral.
    unbacked: Amount,
    /// Whether a close freezes the account.
    frozen: bool,
    /// The hub's receipts for payees who have not acknowledged: the largest of each.
    receipts: Vec<HeldReceipt>,
}

/// A receipt of the hub for somebody else's account.
#[derive(Clone, Copy, Debug)]
struct HeldReceipt {
    payee: ChannelId,
    /// What the hub paid to the payee in all, by the receipt.
    total: Amount,
    /// What the ledger would pay to the payee for it beyond what is shown there, if the payee shows nothing better.
    adds: Amount,
}

/// An account in words; every field is a sentence or two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Words {
    asset: String,
    status: &'static str,
    /// The end of the challenge period, while one runs or waits for the payout.
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<u64>,
    stands: String,
    pending: String,
    must_act: String,
    by_when: String,
    otherwise: String,
    costs: String,
    money: String,
    proof: String,
    payments: String,
}

/// The facts of every account in words.
fn explain(facts: &Facts) -> Vec<Words> {
    facts.accounts.iter().map(|account| words(facts, account)).collect()
}

/// Who is believed by believing this node.
fn about_the_node(node: &Node) -> String {
    let url = &node.url;
    match (node.embedded, node.with_hub) {
        (true, Some(true)) => format!(
            "All of this is what the node at {url} says: an embedded ledger on the hub's own host. Its operator decides what \
             the chain says and must be trusted; for money that matters use a chain or a node that is not the hub's."
        ),
        (true, _) => format!(
            "All of this is what the node at {url} says: an embedded ledger, whose operator decides what the chain says and \
             must be trusted. Make sure that he is not the hub's, or verify a copy of the blocks: payhub ledger verify."
        ),
        (false, Some(true)) => format!(
            "All of this is what the node at {url} says, which is on the hub's host: whoever runs it can show another chain \
             than there is. Compare with a node that is not the hub's."
        ),
        (false, Some(false)) => {
            format!(
                "All of this is what the node at {url} says, which is not on the hub's host; its operator is believed."
            )
        }
        (false, None) => {
            format!("All of this is what the node at {url} says; make sure that it is not the hub's.")
        }
    }
}

fn words(facts: &Facts, account: &AccountFacts) -> Words {
    let books = &account.books;
    let common = Words {
        asset: account.asset.symbol.clone(),
        status: "open",
        deadline: None,
        stands: String::new(),
        pending: String::new(),
        must_act: String::new(),
        by_when: String::new(),
        otherwise: String::new(),
        costs: String::new(),
        money: String::new(),
        proof: proof(facts, account),
        payments: payments(facts, account),
    };
    match books.status {
        Status::Open => open(facts, account, common),
        Status::Closing => {
            let closing = Words { deadline: Some(books.deadline_s), ..common };
            if facts.now_s < books.deadline_s {
                challenged(facts, account, closing)
            } else {
                payable(facts, account, closing)
            }
        }
        Status::Final => paid_out(facts, account, Words { status: "final", ..common }),
    }
}

fn open(facts: &Facts, account: &AccountFacts, words: Words) -> Words {
    let (who, in_units) = (&facts.member, |amount| money(amount, &account.asset));
    let held = account.held.clone().unwrap_or_default();
    let (to_member, to_hub) = payout(&account.books, account.held.as_ref());
    let mut pending = Vec::new();
    if held.frozen {
        pending
            .push("A close is agreed on and not on the ledger yet; until then no payment goes in or out.".to_owned());
    }
    if !held.unbacked.is_zero() {
        let unbacked = in_units(held.unbacked);
        pending.push(format!("{unbacked} were received beyond the hub's collateral: a close now would not pay them."));
    }
    if account.held.is_some() && pending.is_empty() {
        pending.push("Nothing is pending.".to_owned());
    } else if account.held.is_none() {
        pending.push("No close is on the ledger; what is agreed off it cannot be seen without a store.".to_owned());
    }
    let alone = [gas::START_CLOSE, gas::RESPOND, gas::FINALIZE];
    let as_far = if account.held.is_some() { "" } else { ", as far as is known here" };
    Words {
        stands: format!(
            "The account is open and holds {}: {who} put in {} and took out {}, the hub put in {} and took out {}.",
            in_units(custody(&account.books)),
            in_units(account.books.member_deposit),
            in_units(account.books.member_withdrawn),
            in_units(account.books.hub_deposit),
            in_units(account.books.hub_withdrawn)
        ),
        pending: pending.join(" "),
        must_act: "Nobody has to do anything.".to_owned(),
        by_when: "There is no deadline.".to_owned(),
        otherwise: "If nobody acts, the account stays as it is, and payments go on.".to_owned(),
        costs: format!(
            "Closing together with the hub takes {}, which the hub pays. Alone, starting, answering and paying out take {}.",
            cost(&[gas::SETTLE_AND_CLOSE], facts.gas_price_wei),
            cost(&alone, facts.gas_price_wei)
        ),
        money: format!(
            "A close would pay {} to {who} and {} to the hub{as_far}: together with the hub within a block or two, alone after \
             the challenge period of {}, so not before {}. {}",
            in_units(to_member),
            in_units(to_hub),
            span(u64::from(facts.terms.challenge_period_s)),
            clock(facts.now_s.saturating_add(u64::from(facts.terms.challenge_period_s))),
            destinations(facts)
        ),
        ..words
    }
}

fn challenged(facts: &Facts, account: &AccountFacts, words: Words) -> Words {
    let (who, books, in_units) = (&facts.member, &account.books, |amount| money(amount, &account.asset));
    let left_s = books.deadline_s.saturating_sub(facts.now_s);
    let left = if left_s < 60 { span(left_s) } else { format!("{left_s} s ({})", span(left_s)) };
    let posted = format!(
        "shown so far: that the hub paid {} and that {who} paid {}",
        in_units(books.hub_paid),
        in_units(books.member_paid)
    );
    let owed = match &account.held {
        Some(held) if held.hub_paid > books.hub_paid => format!(
            "{who} must show the hub's signature over {}; an open wallet does so by itself, as does `payhub watch`.",
            in_units(held.hub_paid)
        ),
        Some(_) => format!("{who} need not do anything: all that the store can prove about the hub is on the ledger."),
        None => format!(
            "{who} must act if he holds a voucher or a receipt of the hub over more than {}.",
            in_units(books.hub_paid)
        ),
    };
    let hubs = match &account.held {
        Some(held) if held.member_paid > books.member_paid => format!(
            "The hub must show vouchers of {who} if it wants what he paid; it holds some over {}.",
            in_units(held.member_paid)
        ),
        Some(_) => "The hub need not do anything: all that it accepted is on the ledger.".to_owned(),
        None => format!("The hub must act if it holds vouchers over more than {}.", in_units(books.member_paid)),
    };
    let late = if facts.here_s >= books.deadline_s {
        " By this computer's clock that time has come: the ledger's newest block is older than that, and the next one may be \
         too late."
    } else {
        ""
    };
    let (member_now, hub_now) = payout(books, None);
    let (member_due, hub_due) = payout(books, account.held.as_ref());
    let due = match account.held.is_some() && (member_now, hub_now) != (member_due, hub_due) {
        true => format!(
            " With everything shown that the store knows of it would be {} and {}.",
            in_units(member_due),
            in_units(hub_due)
        ),
        false => String::new(),
    };
    Words {
        status: "closing",
        stands: format!("The account is closing and holds {}; {posted}.", in_units(custody(books))),
        pending: "The challenge period runs: vouchers and receipts can be shown, and a settlement that both signed can still \
                  be posted."
            .to_owned(),
        must_act: format!("{} {hubs} Anybody may show it for them.", sentence(&owed)),
        by_when: format!(
            "In a block before {}, which is {left} after the ledger's newest block.{late}",
            clock(books.deadline_s)
        ),
        otherwise: format!(
            "If nobody acts, {} go to {who} and {} to the hub, for ever.{due}",
            in_units(member_now),
            in_units(hub_now)
        ),
        costs: format!(
            "Answering takes {}, paying out afterwards {}.",
            cost(&[gas::RESPOND], facts.gas_price_wei),
            cost(&[gas::FINALIZE], facts.gas_price_wei)
        ),
        money: format!(
            "From {} on anybody can have it paid out; an open wallet does so by itself. {}",
            clock(books.deadline_s),
            destinations(facts)
        ),
        ..words
    }
}

fn payable(facts: &Facts, account: &AccountFacts, words: Words) -> Words {
    let (who, books, in_units) = (&facts.member, &account.books, |amount| money(amount, &account.asset));
    let (to_member, to_hub) = payout(books, None);
    Words {
        status: "closing",
        stands: format!(
            "The account's challenge period was over at {}; {} wait to be paid out.",
            clock(books.deadline_s),
            in_units(custody(books))
        ),
        pending: "Only the payout is pending; nothing that is shown now counts any more.".to_owned(),
        must_act: format!(
            "Anybody can have it paid out, {who}, the hub or a stranger; an open wallet does so by itself, as does `payhub \
             watch`."
        ),
        by_when: "There is no deadline.".to_owned(),
        otherwise: "If nobody acts, the money stays in the contract and nothing is lost.".to_owned(),
        costs: format!("Paying out takes {}.", cost(&[gas::FINALIZE], facts.gas_price_wei)),
        money: format!(
            "{} go to {who} and {} to the hub in the block of the payout. {}",
            in_units(to_member),
            in_units(to_hub),
            destinations(facts)
        ),
        ..words
    }
}

fn paid_out(facts: &Facts, account: &AccountFacts, words: Words) -> Words {
    let (who, books, in_units) = (&facts.member, &account.books, |amount| money(amount, &account.asset));
    let (members, hubs) = account.waiting;
    let due = account.held.as_ref().map(|held| {
        let due = books.member_deposit.saturating_add(held.hub_paid).saturating_sub(held.member_paid);
        due.saturating_sub(books.member_withdrawn)
    });
    let lost = match due.filter(|lost| !lost.is_zero()) {
        Some(lost) => format!(
            " {} less than the store can prove went to {who}: it was not shown in time, or the hub's collateral did not cover \
             it.",
            in_units(lost)
        ),
        None => String::new(),
    };
    let waits = |amount: Amount, whose: &str| {
        (!amount.is_zero()).then(|| format!("{} wait in the channel's vault for {whose} to fetch.", in_units(amount)))
    };
    let waiting: Vec<String> = [waits(members, who), waits(hubs, "the hub")].into_iter().flatten().collect();
    let nothing = waiting.is_empty();
    Words {
        stands: format!(
            "The account is closed for ever: {} went to {who} and {} to the hub in all.{lost}",
            in_units(books.member_withdrawn),
            in_units(books.hub_withdrawn)
        ),
        pending: if nothing { "Nothing is pending.".to_owned() } else { sentence(&waiting.join(" ")) },
        must_act: match (members.is_zero(), hubs.is_zero()) {
            (true, true) => "Nobody has to do anything.".to_owned(),
            (false, true) => format!("{} can fetch what waits; anybody may send it to him.", sentence(who)),
            (true, false) => "The hub can fetch what waits; anybody may send it to it.".to_owned(),
            (false, false) => {
                format!("{} and the hub can fetch what waits; anybody may send it to them.", sentence(who))
            }
        },
        by_when: "There is no deadline.".to_owned(),
        otherwise: "If nobody acts, nothing changes and nothing is lost.".to_owned(),
        costs: match nothing {
            true => "Nothing is left to pay for.".to_owned(),
            false => format!("Fetching takes {}.", cost(&[gas::CLAIM], facts.gas_price_wei)),
        },
        money: match members.is_zero() {
            true => format!("All of {who}'s part arrived at {}.", facts.terms.member),
            false => format!(
                "What waits could not be received by {}, and goes there when it is fetched.",
                facts.terms.member
            ),
        },
        ..words
    }
}

fn proof(facts: &Facts, account: &AccountFacts) -> String {
    let in_units = |amount| money(amount, &account.asset);
    match &account.held {
        Some(held) => format!(
            "{} can prove by the hub's signature that the hub paid {}, and the hub can prove that {} paid {}.{}",
            sentence(&facts.member),
            in_units(held.hub_paid),
            facts.member,
            in_units(held.member_paid),
            receipts(account, held)
        ),
        None => "No store is at hand: only what is on the ledger is known, not what either side could still show."
            .to_owned(),
    }
}

/// What is held for others: who would get what by it.
fn receipts(account: &AccountFacts, held: &Held) -> String {
    let in_units = |amount| money(amount, &account.asset);
    if held.receipts.is_empty() {
        return String::new();
    }
    let count = held.receipts.len();
    let mut text = format!(
        " The store holds {count} receipt{} of the hub for payees who have not acknowledged; while such a payee's account \
         closes, showing it makes the hub pay him:",
        if count == 1 { "" } else { "s" }
    );
    let of = |r: &HeldReceipt| {
        let (total, adds) = (in_units(r.total), in_units(r.adds));
        format!(
            " to {} up to {total} in all, {adds} more than the ledger was shown and the collateral covers;",
            r.payee
        )
    };
    text.extend(held.receipts.iter().take(RECEIPTS_SHOWN).map(of));
    match count.saturating_sub(RECEIPTS_SHOWN) {
        0 => text.truncate(text.trim_end_matches(';').len()),
        more => text += &format!(" and {more} more"),
    }
    text + "."
}

fn payments(facts: &Facts, account: &AccountFacts) -> String {
    let (who, in_units) = (sentence(&facts.member), |amount| money(amount, &account.asset));
    let Some(held) = &account.held else {
        return "Payments are not on the ledger; a store would tell which are accepted and which delivered.".to_owned();
    };
    if held.member_paid.is_zero() && held.unreceipted.is_zero() {
        return format!("{who} paid nothing from this account.");
    }
    let delivered = held.member_paid.saturating_sub(held.undelivered);
    let mut text = format!(
        "Of what {} paid, fees included, {} are delivered or were for the hub, {} are accepted (the hub owes them by its \
         receipts) and not yet acknowledged by the payees",
        facts.member,
        in_units(delivered),
        in_units(held.undelivered)
    );
    if !held.unreceipted.is_zero() {
        text += &format!(
            ", and {} are signed and not answered: the hub could claim them without a receipt",
            in_units(held.unreceipted)
        );
    }
    text + "."
}

fn destinations(facts: &Facts) -> String {
    let Terms { member, hub, .. } = facts.terms;
    format!(
        "{}'s part is sent to {member} at once, or waits in the vault if it cannot be received; the hub's part waits in the \
         vault for {hub}.",
        sentence(&facts.member)
    )
}

/// What a payout would give to member and hub, with what is on the ledger and what is held.
fn payout(books: &LedgerBooks, held: Option<&Held>) -> (Amount, Amount) {
    let totals = Totals {
        member_deposit: books.member_deposit,
        hub_deposit: books.hub_deposit,
        member_withdrawn: books.member_withdrawn,
        hub_withdrawn: books.hub_withdrawn,
        ..Totals::default()
    };
    let (member_paid, hub_paid) = held.map(|held| (held.member_paid, held.hub_paid)).unwrap_or_default();
    totals.payout(books.member_paid.max(member_paid), books.hub_paid.max(hub_paid))
}

fn custody(books: &LedgerBooks) -> Amount {
    Amount::new(u128::try_from(books.custody()).unwrap_or(u128::MAX))
}

/// Gas and what it costs now, as measured.
fn cost(operations: &[Measured], gas_price_wei: u128) -> String {
    let gas: u64 = operations.iter().map(|operation| operation.gas).sum();
    let wei = gas_price_wei.saturating_mul(u128::from(gas));
    format!("about {} gas ({} now)", grouped(gas.into()), money(Amount::new(wei), &coin()))
}

/// Starts with a capital letter, unless it is a name.
fn sentence(text: &str) -> String {
    match text.strip_prefix("the ") {
        Some(rest) => format!("The {rest}"),
        None => text.to_owned(),
    }
}

/// A number with commas.
pub fn grouped(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A length of time, as in `1 d 2 h 3 min 4 s`.
pub fn span(seconds: u64) -> String {
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n} {unit}")).collect();
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

/// A point in time, as in `2026-11-22 18:12:00 UTC`.
fn clock(seconds: u64) -> String {
    // Howard Hinnant's civil calendar: years begin in March, so that a leap day is the last one.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

// ---- collecting the facts ------------------------------------------------------------------------------------------

/// `payhub explain`.
pub async fn run(args: Explain, out: Output) -> Result<(), Failure> {
    // No member's name has 64 letters.
    match args.who.parse::<ChannelId>() {
        Ok(channel) => {
            let value = of_ledger(channel, &args).await?;
            show(&value, out);
            out.object(&value);
            Ok(())
        }
        Err(_) => {
            let data_dir = home::data_dir(args.at.data_dir.as_deref())?;
            let hub = args.at.hub.clone().or(MemberHome::existing(&data_dir, &args.who)?.config().hub);
            members::run(&args.who, &args.at, None, Request::Explain { hub }, out).await
        }
    }
}

/// What a wallet answers: ledger and store.
pub async fn of_wallet(client: &Client, name: &str, hub: Option<&str>) -> Result<Value, Failure> {
    let Some(terms) = client.terms().await.map_err(|e| verbs::failure(&e))? else {
        return Err(verbs::failure(&client::Error::NoChannel));
    };
    let channel = client.chain().domain().channel_id(&terms);
    let receipts = client.receipts().await.map_err(|e| verbs::failure(&e))?;
    let mut held = Vec::new();
    for account in client.accounts().await.map_err(|e| verbs::failure(&e))? {
        let balance = &account.balance;
        let evidence = client.evidence(account.asset).await.map_err(|e| verbs::failure(&e))?;
        let lanes = evidence.iter().flat_map(|e| &e.lanes).map(proto::LaneVoucher::value);
        let of_hub = evidence.as_ref().and_then(|e| e.hub.as_ref()).map(|v| Amount::new(v.body().cumulative));
        let held_here = Held {
            hub_paid: of_hub.unwrap_or_default(),
            member_paid: lanes.fold(Amount::ZERO, Amount::saturating_add),
            unreceipted: balance.unreceipted,
            undelivered: balance.undelivered,
            unbacked: balance.unbacked,
            frozen: balance.frozen,
            receipts: worth_of(client.chain(), account.asset, &receipts).await?,
        };
        held.push((account.asset, Some(held_here)));
    }
    let facts = collect(client.chain(), channel, &terms, name, held, hub).await?;
    Ok(value(&facts, Some(name), channel))
}

/// The receipts of one asset, with what the ledger would pay for each: what it was not shown yet, and no more than the
/// hub's collateral covers.
async fn worth_of(
    chain: &Chain,
    asset: Asset,
    receipts: &[(ChannelTerms, Proven<Receipt>)],
) -> Result<Vec<HeldReceipt>, Failure> {
    let mut held = Vec::new();
    for (_, receipt) in receipts.iter().filter(|(_, receipt)| receipt.body().asset == asset) {
        let account = receipt.body().account();
        let total = Amount::new(receipt.body().total);
        let mut adds = Amount::ZERO;
        if held.len() < RECEIPTS_SHOWN {
            let books = chain.books(&account).await.map_err(|e| chain_failure(&e))?;
            let with = Held { hub_paid: total, ..Held::default() };
            if books.status != Status::Final {
                adds = payout(&books, Some(&with)).0.saturating_sub(payout(&books, None).0);
            }
        }
        held.push(HeldReceipt { payee: account.channel, total, adds });
    }
    Ok(held)
}

/// What the ledger alone knows of a channel.
async fn of_ledger(channel: ChannelId, args: &Explain) -> Result<Value, Failure> {
    let data_dir = home::data_dir(args.at.data_dir.as_deref())?;
    let rpc = args.at.rpc.clone().or_else(|| members::any_rpc(&data_dir));
    let fix = "say it: --rpc http://127.0.0.1:7445";
    let rpc = rpc.ok_or_else(|| Failure::usage("it is not known where the ledger is", fix))?;
    let adjudicator = args.adjudicator.unwrap_or_else(|| ledger::genesis::DEPLOYER.create(0));
    let chain = Chain::discover(&rpc, adjudicator, 0).await.map_err(|e| chain_failure(&e))?;
    let mut terms: Option<ChannelTerms> = None;
    let mut assets: BTreeSet<Asset> = BTreeSet::new();
    for event in chain.events_of_channel(channel).await.map_err(|e| chain_failure(&e))? {
        match event.kind {
            EventKind::Opened { terms: opened, .. } => terms = Some(opened),
            EventKind::Deposited { account, .. }
            | EventKind::Settled { account, .. }
            | EventKind::Closing { account, .. }
            | EventKind::Finalized { account, .. } => {
                assets.insert(account.asset);
            }
            _ => {}
        }
    }
    let Some(terms) = terms else {
        let what = format!("no channel {channel} was ever opened at {adjudicator} on chain {}", chain.chain_id());
        return Err(Failure::not_found(what, "check the id, --rpc and --adjudicator"));
    };
    let accounts = assets.into_iter().map(|asset| (asset, None)).collect();
    let facts = collect(&chain, channel, &terms, "the member", accounts, args.at.hub.as_deref()).await?;
    Ok(value(&facts, None, channel))
}

async fn collect(
    chain: &Chain,
    channel: ChannelId,
    terms: &ChannelTerms,
    member: &str,
    accounts: Vec<(Asset, Option<Held>)>,
    hub: Option<&str>,
) -> Result<Facts, Failure> {
    let failed = |e| chain_failure(&e);
    let head = chain.head().await.map_err(failed)?;
    let fees = chain.fees().await.map_err(failed)?;
    let vault = chain.vault_of(channel).await.map_err(failed)?;
    let mut facts = Vec::new();
    for (asset, held) in accounts {
        let described = if asset == NATIVE {
            coin()
        } else {
            let symbol = chain.symbol(asset).await.map_err(failed)?;
            AssetInfo { symbol, asset, decimals: chain.decimals(asset).await.map_err(failed)? }
        };
        let waits = async |account| {
            let amount = chain.claimable(vault, asset, account).await.map_err(failed)?;
            Ok::<_, Failure>(Amount::new(u128::try_from(amount).unwrap_or(u128::MAX)))
        };
        let books = chain.books(&AccountId { channel, asset }).await.map_err(failed)?;
        let waiting = (waits(terms.member).await?, waits(terms.hub).await?);
        facts.push(AccountFacts { asset: described, books, held, waiting });
    }
    let embedded = chain.client_version().await.map_err(failed)?.starts_with("payhub");
    let url = chain.url().to_owned();
    let with_hub = hub.map(|hub| host(hub) == host(&url));
    Ok(Facts {
        member: member.to_owned(),
        terms: Terms { member: terms.member, hub: terms.hub, challenge_period_s: terms.challengePeriod },
        now_s: head.time_s,
        here_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        gas_price_wei: fees.base_fee_wei.saturating_add(fees.priority_fee_wei),
        node: Node { url, embedded, with_hub },
        accounts: facts,
    })
}

/// The host of a URL; every name of this machine is the same one. What is no URL, as the transport in a process that has
/// both, is this machine.
fn host(url: &str) -> String {
    let uri: Option<tonic::transport::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(tonic::transport::Uri::host).unwrap_or("localhost").trim_matches(['[', ']']);
    let here = host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if here { "localhost".to_owned() } else { host.to_lowercase() }
}

fn value(facts: &Facts, member: Option<&str>, channel: ChannelId) -> Value {
    json!({
        "ok": true, "member": member, "channel": channel.to_string(), "ledger_time": facts.now_s,
        "ledger_time_utc": clock(facts.now_s), "node": about_the_node(&facts.node), "accounts": explain(facts),
    })
}

/// Shows the object to people.
pub fn show(value: &Value, out: Output) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = value["member"].as_str().map(|name| format!("{name}: ")).unwrap_or_default();
    out.say(format!("{of}channel {}, ledger time {}", text(&value["channel"]), text(&value["ledger_time_utc"])));
    let topics = [
        ("state", "stands"),
        ("pending", "pending"),
        ("who acts", "must_act"),
        ("by when", "by_when"),
        ("otherwise", "otherwise"),
        ("cost", "costs"),
        ("money", "money"),
        ("proof", "proof"),
        ("payments", "payments"),
    ];
    for account in value["accounts"].as_array().into_iter().flatten() {
        out.say(format!("\n{} ({})", text(&account["asset"]), text(&account["status"])));
        for (title, key) in topics {
            out.say(format!("  {title:<10} {}", text(&account[key])));
        }
    }
    if value["accounts"].as_array().is_none_or(Vec::is_empty) {
        out.say("No account of this channel was ever funded.");
    }
    out.say(format!("\n{}", text(&value["node"])));
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE_S: u64 = 1_000_000;

    fn a(units: u128) -> Amount {
        Amount::new(units * 1_000_000)
    }

    /// 100 in by the member, 50 by the hub; the hub paid 30, the member 20; nothing of it on the ledger.
    fn facts(status: Status, now_s: u64, held: Option<Held>, waiting: (u128, u128)) -> Facts {
        let (member, hub) = (Address::repeat_byte(0xaa), Address::repeat_byte(0xbb));
        let paid = |amount| if status == Status::Final { a(amount) } else { Amount::ZERO };
        let books = LedgerBooks {
            status,
            deadline_s: if status == Status::Open { 0 } else { DEADLINE_S },
            member_deposit: a(100),
            hub_deposit: a(50),
            member_withdrawn: paid(100),
            hub_withdrawn: paid(50),
            ..LedgerBooks::default()
        };
        let waiting = (a(waiting.0), a(waiting.1));
        Facts {
            member: if held.is_some() { "alice" } else { "the member" }.to_owned(),
            terms: Terms { member, hub, challenge_period_s: 93_600 },
            now_s,
            here_s: now_s,
            gas_price_wei: 1_000_000_000,
            node: Node { url: "http://127.0.0.1:7445".to_owned(), embedded: true, with_hub: Some(true) },
            accounts: vec![AccountFacts { asset: crate::chain::test_dollar(hub), books, held, waiting }],
        }
    }

    fn held() -> Held {
        Held { hub_paid: a(30), member_paid: a(20), undelivered: a(5), ..Held::default() }
    }

    #[test]
    fn every_state_is_told_to_both_parties() {
        let (open, closing, done) = (Status::Open, Status::Closing, Status::Final);
        let (before, after) = (DEADLINE_S - 61, DEADLINE_S);
        let receipt = HeldReceipt { payee: ChannelId([7; 32].into()), total: a(12), adds: a(5) };
        let with_receipts = |count| Held { receipts: vec![receipt; count], ..held() };
        let unbacked = Held { unbacked: a(7), unreceipted: a(2), ..held() };
        let frozen = Held { frozen: true, ..held() };
        // (status, ledger time, store, waiting, pieces of the story)
        type Row = (Status, u64, Option<Held>, (u128, u128), &'static [&'static str]);
        let table: [Row; 14] = [
            (
                open,
                9,
                Some(held()),
                (0, 0),
                &[
                    "holds 150 USDH: alice put in 100 USDH and took out 0 USDH, the hub put in 50 USDH",
                    "Nothing is pending.",
                    "There is no deadline.",
                    "takes about 77,491 gas (0.000077491 COIN now), which the hub pays",
                    "take about 142,430 gas (0.00014243 COIN now)",
                    "A close would pay 110 USDH to alice and 40 USDH to the hub: together",
                    "challenge period of 1 d 2 h",
                    "alice can prove by the hub's signature that the hub paid 30 USDH",
                    "15 USDH are delivered or were for the hub, 5 USDH are accepted (the hub owes them",
                ],
            ),
            (
                open,
                9,
                Some(with_receipts(1)),
                (0, 0),
                &[
                    "The store holds 1 receipt of the hub for payees who have not acknowledged",
                    "0707 up to 12 USDH in all, 5 USDH more than the ledger was shown and the collateral covers.",
                ],
            ),
            (open, 9, Some(with_receipts(7)), (0, 0), &["holds 7 receipts of the hub", "covers; and 2 more."]),
            (open, 9, Some(frozen), (0, 0), &["A close is agreed on and not on the ledger yet"]),
            (
                open,
                9,
                Some(unbacked),
                (0, 0),
                &["7 USDH were received beyond the hub's collateral", "2 USDH are signed and not answered"],
            ),
            (
                open,
                9,
                None,
                (0, 0),
                &[
                    "cannot be seen without a store",
                    "as far as is known here",
                    "No store is at hand",
                    "The member's part",
                ],
            ),
            (
                closing,
                before,
                Some(held()),
                (0, 0),
                &[
                    "The account is closing and holds 150 USDH; shown so far: that the hub paid 0 USDH",
                    "alice must show the hub's signature over 30 USDH",
                    "The hub must show vouchers of alice if it wants what he paid; it holds some over 20 USDH",
                    "before 1970-01-12 13:46:40 UTC, which is 61 s (1 min 1 s) after the ledger's newest block.",
                    "If nobody acts, 100 USDH go to alice and 50 USDH to the hub, for ever. With everything shown \
                     that the store knows of it would be 110 USDH and 40 USDH.",
                    "Answering takes about 45,819 gas (0.000045819 COIN now), paying out afterwards about 61,729 gas",
                    "sent to 0xaAaAaAaaAaAaAaaAaAAAAAAAAaaaAaAaAaaAaaAa at once",
                ],
            ),
            (
                closing,
                before,
                Some(Held::default()),
                (0, 0),
                &["alice need not do anything", "The hub need not do anything", "alice paid nothing from this account"],
            ),
            (
                closing,
                before,
                None,
                (0, 0),
                &[
                    "The member must act if he holds a voucher or a receipt of the hub over more than 0 USDH",
                    "The hub must act if it holds vouchers over more than 0 USDH",
                    "If nobody acts, 100 USDH go to the member",
                ],
            ),
            (
                closing,
                after,
                Some(held()),
                (0, 0),
                &[
                    "challenge period was over at 1970-01-12 13:46:40 UTC; 150 USDH wait to be paid out",
                    "nothing that is shown now counts any more",
                    "Anybody can have it paid out",
                    "nothing is lost",
                    "100 USDH go to alice and 50 USDH to the hub in the block of the payout",
                ],
            ),
            (closing, after, None, (0, 0), &["150 USDH wait to be paid out", "go to the member"]),
            (
                done,
                after,
                Some(held()),
                (0, 50),
                &[
                    "closed for ever: 100 USDH went to alice and 50 USDH to the hub in all. 10 USDH less than the store",
                    "50 USDH wait in the channel's vault for the hub to fetch",
                    "Fetching takes about 44,633 gas",
                    "All of alice's part arrived at 0xaA",
                ],
            ),
            (done, after, None, (100, 0), &["The member can fetch what waits", "could not be received by 0xaA"]),
            (
                done,
                after,
                None,
                (0, 0),
                &["Nothing is pending.", "Nobody has to do anything.", "Nothing is left to pay for"],
            ),
        ];
        for (status, now_s, held, waiting, pieces) in table {
            let words = explain(&facts(status, now_s, held, waiting)).remove(0);
            let told = serde_json::to_value(&words).expect("plain text");
            let told: Vec<&str> = told.as_object().expect("fields").values().filter_map(Value::as_str).collect();
            assert!(told.iter().all(|text| !text.is_empty()), "{status:?} at {now_s}: {told:#?}");
            for piece in pieces {
                assert!(
                    told.iter().any(|text| text.contains(piece)),
                    "{status:?} at {now_s}: no {piece:?} in {told:#?}"
                );
            }
        }
    }

    #[test]
    fn a_deadline_that_passed_here_and_not_on_the_ledger_is_said() {
        let on_time = facts(Status::Closing, DEADLINE_S - 1, None, (0, 0));
        assert!(!explain(&on_time)[0].by_when.contains("this computer's clock"));
        let late = Facts { here_s: DEADLINE_S, ..on_time };
        let told = &explain(&late)[0].by_when;
        assert!(
            told.contains("which is 1 s after") && told.contains("By this computer's clock that time has come"),
            "{told}"
        );
    }

    #[test]
    fn who_runs_the_ledger_is_said_in_every_case() {
        let table = [
            (true, Some(true), "on the hub's own host"),
            (true, Some(false), "Make sure that he is not the hub's"),
            (true, None, "Make sure that he is not the hub's"),
            (false, Some(true), "Compare with a node that is not the hub's"),
            (false, Some(false), "not on the hub's host"),
            (false, None, "make sure that it is not the hub's"),
        ];
        for (embedded, with_hub, piece) in table {
            let told = about_the_node(&Node { url: "http://node".to_owned(), embedded, with_hub });
            assert!(told.contains(piece) && told.contains("http://node"), "{told}");
        }
        assert_eq!(host("http://127.0.0.1:7440"), host("http://localhost:7445"));
        assert_eq!(host("http://[::1]:7440"), host("the embedded ledger"));
        assert_ne!(host("https://rpc.example.org"), host("https://hub.example.org"));
    }

    #[test]
    fn times_and_numbers_read_as_people_write_them() {
        let clocks = [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ];
        for (seconds, text) in clocks {
            assert_eq!(clock(seconds), text);
        }
        for (seconds, text) in [(0, "0 s"), (59, "59 s"), (3_600, "1 h"), (93_784, "1 d 2 h 3 min 4 s")] {
            assert_eq!(span(seconds), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(grouped(number), text);
        }
    }
}
