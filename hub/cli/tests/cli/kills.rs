//! SIGKILL to hub or ledger in the middle of payments: everything acknowledged is there, once, and adds up. And to a
//! ledger that does nothing but make blocks: every receipt that it has shown is there, in the same block.
//!
//! The points are random in time. A run repeats with `PAYHUB_SEED`; `PAYHUB_KILLS` makes it the long one (see the top).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::Encodable2718;
use alloy::network::TxSignerSync;
use alloy::providers::{DynProvider, Provider, ProviderBuilder};
use alloy::signers::local::PrivateKeySigner;
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use proto::Amount;
use serde_json::{Value, json};

use crate::apart::{Apart, wait};
use crate::world::{Running, World, free_port, micros, row};

/// Whom to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Hub,
    Ledger,
}

/// What goes on while somebody is killed.
struct Plan {
    victims: Vec<Victim>,
    count: u64,
    rate: u64,
    amount: &'static str,
    /// The latest a kill comes after the one before.
    gap_max: Duration,
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let given = std::env::var("PAYHUB_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let mut bytes = [0; 8];
            getrandom::fill(&mut bytes).expect("random bytes");
            u64::from_le_bytes(bytes)
        });
        println!("PAYHUB_SEED={seed}");
        Dice(seed)
    }

    fn below(&mut self, limit: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        limit.mul_f64((z >> 11) as f64 / (1u64 << 53) as f64)
    }
}

fn long_run() -> Option<usize> {
    std::env::var("PAYHUB_KILLS").ok().and_then(|kills| kills.parse().ok())
}

#[test]
fn a_hub_killed_while_it_is_paid_through_loses_nothing_and_doubles_nothing() {
    let mut dice = Dice::new();
    match long_run() {
        None => {
            let plan = Plan {
                victims: vec![Victim::Hub; 3],
                count: 4000,
                rate: 1000,
                amount: "0.0001USDH",
                gap_max: Duration::from_millis(1300),
            };
            play(&plan, &mut dice);
        }
        Some(kills) => {
            // Each round is one run of the command; some rounds meet several kills.
            let mut left = kills;
            while left > 0 {
                let now = left.min(5);
                let plan = Plan {
                    victims: vec![Victim::Hub; now],
                    count: 200_000,
                    rate: 20_000,
                    amount: "0.0001USDH",
                    gap_max: Duration::from_secs(3),
                };
                left -= play(&plan, &mut dice).max(1);
                println!("{} kills of the hub, {left} to go", kills - left);
            }
        }
    }
}

#[test]
fn a_ledger_killed_while_the_hub_adds_collateral_loses_nothing_and_doubles_nothing() {
    let mut dice = Dice::new();
    match long_run() {
        None => {
            // Amounts that make the hub add collateral for the payee several times on the way.
            let plan = Plan {
                victims: vec![Victim::Ledger; 2],
                count: 3000,
                rate: 1000,
                amount: "0.1USDH",
                gap_max: Duration::from_millis(1300),
            };
            play(&plan, &mut dice);
        }
        Some(kills) => {
            let mut left = kills;
            while left > 0 {
                let now = left.min(5);
                let plan = Plan {
                    victims: vec![Victim::Ledger; now],
                    count: 200_000,
                    rate: 20_000,
                    amount: "0.002USDH",
                    gap_max: Duration::from_secs(3),
                };
                left -= play(&plan, &mut dice).max(1);
                println!("{} kills of the ledger, {left} to go", kills - left);
            }
        }
    }
}

#[test]
fn a_wallet_killed_while_it_pays_leaves_an_unknown_outcome_that_it_finds_out_itself() {
    let apart = Apart::start(0);
    apart.member("alice", "500USDH");
    apart.member("bob", "1USDH");
    let (bob, _) = apart.world.start(&["watch", "bob"]);
    let (alice, _) = apart.world.start(&["watch", "alice"]);
    let mut paying =
        apart.world.launch(&["pay", "bob", "0.001USDH", "--from", "alice", "--count", "100000", "--frame", "16"]);
    bob.until(|e| e["event"] == "received");
    alice.kill();
    let said = paying.line();
    assert_eq!(paying.wait().code(), Some(6), "{said}");
    assert_eq!(said["error"]["reason"], "OUTCOME_UNKNOWN", "{said}");

    // The wallet comes back, sends again what was signed, and both sides agree.
    let (alice, _) = apart.world.start(&["watch", "alice"]);
    let until = Instant::now() + crate::world::PATIENCE;
    let paid = loop {
        let (paid, received) = (micros(&apart.dollars("alice")["paid"]), micros(&apart.dollars("bob")["received"]));
        if paid == received {
            break paid;
        }
        // Until her frames are answered again, alice counts less as paid than bob has: she holds no receipts for the rest.
        assert!(Instant::now() < until, "alice paid {paid}, bob received {received}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let count = u64::try_from(paid / 1000).expect("small");
    assert!(count > 0 && count < 100_000, "killed in the middle: {count}");
    assert!(ids(&apart, "alice", "sent", count) == ids(&apart, "bob", "received", count), "each payment once");
    assert_eq!(apart.status().payments, count);
    alice.stop();
    bob.stop();
    apart.stop();
}

/// Who sends to the ledger that is killed: developer accounts, each waiting for its receipt before it sends again.
const SENDERS: usize = 4;

/// Zeros in each transaction, so that the journal grows fast enough for checkpoints and new files.
const PADDING: usize = 120_000;

#[test]
fn a_ledger_killed_while_it_makes_blocks_keeps_every_receipt_that_it_has_shown() {
    let mut dice = Dice::new();
    let kills = long_run().unwrap_or(3);
    let world = World::new();
    let listen = format!("127.0.0.1:{}", free_port());
    let run = ["ledger", "run", "--dev", "--data-dir", "ledger", "--workers", "2", "--listen", &listen];
    let url = format!("http://{listen}");
    let mut shown: Vec<Value> = Vec::new();
    for kill in 1..=kills {
        let (ledger, ready) = world.start(&run);
        assert_eq!(ready["workers"], 2, "{ready}");
        are_there(&url, &shown);
        let before = shown.len();
        let sending = {
            let url = url.clone();
            std::thread::spawn(move || wait(send_until_it_is_gone(&url)))
        };
        std::thread::sleep(Duration::from_millis(500) + dice.below(Duration::from_millis(2500)));
        ledger.kill();
        shown.extend(sending.join().expect("the senders end with the ledger"));
        println!("  kill {kill}: {} receipts shown", shown.len() - before);
        let verified = world.json(&["ledger", "verify", "--data-dir", "ledger"]);
        assert_eq!(verified["ok"], true, "{verified}");
        let checkpoint = verified["checkpoint"].as_str().expect("a text");
        assert!(!checkpoint.starts_with("unusable"), "{verified}");
    }
    assert!(!shown.is_empty(), "receipts were shown");
    let (ledger, _) = world.start(&run);
    are_there(&url, &shown);
    ledger.stop();
    let verified = world.json(&["ledger", "verify", "--data-dir", "ledger"]);
    assert!(verified["transactions"].as_u64() >= Some(shown.len() as u64), "{verified}");
}

/// Sends from all accounts until the ledger does not answer; gives the receipts that it has shown.
async fn send_until_it_is_gone(url: &str) -> Vec<Value> {
    let senders = (0..SENDERS).map(|i| {
        let provider = ProviderBuilder::new().connect_http(url.parse().expect("a URL")).erased();
        let key = PrivateKeySigner::from_slice(&ledger::genesis::dev_accounts()[i].secret).expect("a developer key");
        async move {
            let mut receipts = Vec::new();
            while let Some(receipt) = send_one(&provider, &key).await {
                receipts.push(receipt);
            }
            receipts
        }
    });
    futures::future::join_all(senders).await.concat()
}

/// Sends one transaction and waits for its receipt; nothing if the ledger is gone.
async fn send_one(provider: &DynProvider, key: &PrivateKeySigner) -> Option<Value> {
    let nonce = provider.get_transaction_count(key.address()).await.ok()?;
    let mut tx = TxEip1559 {
        chain_id: ledger::genesis::DEV_CHAIN_ID,
        nonce,
        gas_limit: 1_000_000,
        max_fee_per_gas: 2_000_000_000,
        max_priority_fee_per_gas: 1_000_000_000,
        to: TxKind::Call(Address::repeat_byte(7)),
        value: U256::ONE,
        input: vec![0; PADDING].into(),
        ..TxEip1559::default()
    };
    let signature = key.sign_transaction_sync(&mut tx).expect("a local key signs");
    let raw = Bytes::from(TxEnvelope::from(tx.into_signed(signature)).encoded_2718());
    let hash = provider.raw_request::<_, B256>("eth_sendRawTransaction".into(), (raw,)).await.ok()?;
    loop {
        let receipt = receipt(provider, &json!(hash)).await?;
        if !receipt.is_null() {
            return Some(receipt);
        }
    }
}

async fn receipt(provider: &DynProvider, hash: &Value) -> Option<Value> {
    provider.raw_request::<_, Value>("eth_getTransactionReceipt".into(), json!([hash])).await.ok()
}

/// Every receipt is what it was, block hash included.
fn are_there(url: &str, shown: &[Value]) {
    let provider = ProviderBuilder::new().connect_http(url.parse().expect("a URL")).erased();
    wait(async {
        for before in shown {
            let now = receipt(&provider, &before["transactionHash"]).await.expect("the ledger answers");
            assert_eq!(now, *before);
        }
    });
}

/// Pays, kills, starts again, and counts everything; gives how many kills fell into the payments.
fn play(plan: &Plan, dice: &mut Dice) -> usize {
    let mut apart = Apart::start(1000);
    apart.member("alice", "800USDH");
    apart.member("bob", "1USDH");
    let (count, rate) = (plan.count.to_string(), plan.rate.to_string());
    let (watching, _) = apart.world.start(&["watch", "bob"]);
    let mut paying =
        apart.world.launch(&["pay", "bob", plan.amount, "--from", "alice", "--count", &count, "--rate", &rate]);
    // In the middle of the payments: the first of them has arrived.
    watching.until(|e| e["event"] == "received");
    let started = Instant::now();
    let mut kills = 0;
    for victim in &plan.victims {
        std::thread::sleep(dice.below(plan.gap_max));
        if !paying.is_running() {
            break;
        }
        println!("  {victim:?} killed {} ms after the first payment", started.elapsed().as_millis());
        kill_and_start_again(&mut apart, *victim);
        kills += 1;
    }
    let paid = paying.line();
    let status = paying.wait();
    assert!(status.success(), "the payments ended with {status}: {paid} {}", paying.errors());
    assert_eq!(paid["paid"], plan.count, "{paid}");
    everything_is_there_once(&apart, plan, watching);
    apart.stop();
    kills
}

fn kill_and_start_again(apart: &mut Apart, victim: Victim) {
    match victim {
        Victim::Hub => {
            apart.hub.take().expect("the hub runs").kill();
            apart.start_hub();
        }
        Victim::Ledger => {
            apart.ledger.take().expect("the ledger runs").kill();
            apart.start_ledger();
        }
    }
}

fn everything_is_there_once(apart: &Apart, plan: &Plan, watching: Running) {
    let count = u128::from(plan.count);
    let each = micros(&Value::from(plan.amount.trim_end_matches("USDH")));
    let fee = each.div_ceil(1000);
    watching_has(apart, each * count);
    watching.stop();

    // Totals of both members, with the hub's price between them.
    let (alice, bob) = (apart.dollars("alice"), apart.dollars("bob"));
    assert_eq!(micros(&bob["received"]), each * count, "{bob}");
    assert_eq!(micros(&alice["paid"]), (each + fee) * count, "{alice}");
    assert_eq!(micros(&bob["channel"]), 1_000_000 + each * count, "{bob}");

    // The same payments on both sides, each once.
    let sent = ids(apart, "alice", "sent", plan.count);
    let received = ids(apart, "bob", "received", plan.count);
    assert_eq!(sent.len() as u64, plan.count, "every payment is once in alice's history");
    assert!(sent == received, "what alice sent is what bob received");

    // The hub's own books, and what the contract really holds.
    let status = apart.status();
    assert_eq!(status.payments, plan.count, "{status:?}");
    // That the ledger was away is worth an alarm; nothing else is.
    assert!(status.alarms.iter().all(|alarm| alarm.contains("does not answer")) && !status.frozen, "{status:?}");
    let books = status.assets.iter().find(|a| a.symbol == "USDH").expect("the hub serves USDH");
    let net = |text: &str| text.parse::<i128>().expect("a whole number");
    let custody = books.custody.iter().fold(0_u128, |sum, byte| (sum << 8) | u128::from(*byte));
    assert_eq!(i128::try_from(custody).expect("small"), net(&books.member_nets) + net(&books.hub_nets), "{books:?}");
    let on_ledger = [apart.books(&apart.account("alice")), apart.books(&apart.account("bob"))];
    let held: u128 = on_ledger.iter().map(|b| u128::try_from(b.custody()).expect("small")).sum();
    assert_eq!(held, custody, "{on_ledger:?}");
    let deposits: Vec<Amount> = on_ledger.iter().map(|b| b.member_deposit).collect();
    assert_eq!(deposits, [Amount::new(800_000_000), Amount::new(1_000_000)]);
    vaults_hold(apart, held);
}

/// Waits until bob has counted everything: his open wallet follows the hub.
fn watching_has(apart: &Apart, expected: u128) {
    let until = Instant::now() + crate::world::PATIENCE;
    loop {
        let received = micros(&apart.dollars("bob")["received"]);
        if received == expected {
            return;
        }
        assert!(received < expected && Instant::now() < until, "bob has {received} of {expected}");
    }
}

fn ids(apart: &Apart, name: &str, kind: &str, count: u64) -> BTreeSet<String> {
    let limit = (count * 2).to_string();
    let history = apart.world.json(&["history", name, "--limit", &limit]);
    let entries = history["entries"].as_array().expect("a list").iter().filter(|e| e["kind"] == kind);
    let listed: Vec<String> = entries.map(|e| e["id"].as_str().expect("an id").to_owned()).collect();
    let set: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(set.len(), listed.len(), "{name}'s history names no payment twice");
    set
}

/// The token's balances of the vaults are the sum of what the accounts have in custody.
fn vaults_hold(apart: &Apart, expected: u128) {
    let chain = apart.chain();
    let accounts = [apart.account("alice"), apart.account("bob")];
    let held = wait(async {
        let mut vaults = BTreeSet::new();
        for account in accounts {
            vaults.insert(chain.vault_of(account.channel).await.expect("the ledger answers"));
        }
        let mut held = 0;
        for vault in vaults {
            let balance = chain.balance(apart.usdh, vault).await.expect("the ledger answers");
            held += u128::try_from(balance).expect("small");
        }
        held
    });
    assert_eq!(held, expected);
    assert_eq!(
        row(&apart.world.json(&["balance", "bob"]), "assets", "USDH")["backed"],
        apart.dollars("bob")["channel"]
    );
}
