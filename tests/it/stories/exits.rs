//! How members leave with one file each, when hub and stores are gone: by the program, and by `cast` alone with the
//! commands of the manual.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use client::exit::{Exit, ExitKit, ExitState, KitError, leave};
use client::{Client, KIT_FILE};
use dispute::{AccountKey, CloseOrder, Status, Submitter, SubmitterConfig};
use futures::{StreamExt, stream};
use payhub_tests::chains::Person;
use payhub_tests::dice::Dice;
use payhub_tests::town::{DEPOSIT, Disk, Town, amount};
use tokio::process::Command;

/// Sets how many members leave.
const MEMBERS: &str = "PAYHUB_EXIT_MEMBERS";
/// How many leave otherwise: 16 s of two cores in a debug build.
const MEMBERS_DEFAULT: u8 = 100;
/// The first member's seed: apart from those of hubs.
const FIRST: u8 = 100;
/// Members whose kit is the one that their store keeps by itself; the others ask for theirs.
const WITH_STORES: u8 = 4;
/// Payments of each member, on average.
const PAYMENTS: usize = 6;
/// Things that go on at once.
const AT_ONCE: usize = 8;
/// Time between the members' looks at the ledger: there are many of them.
const LOOK_EVERY: Duration = Duration::from_millis(250);

fn stranger(town: &Town) -> Submitter {
    let keys: Vec<AccountKey> =
        vec![town.world().key(Person::Crony).clone(), town.world().key(Person::Mallory).clone()];
    Submitter::new(town.chain().clone(), keys, SubmitterConfig::local())
}

fn worth(kit: &str) -> u128 {
    ExitKit::read(kit).expect("a good kit").accounts[0].worth.get()
}

/// Leaves once. One submitter for everybody who leaves at the same time: it numbers the transactions of its keys.
async fn left(town: &Town, gas: &Submitter, kit: &str) -> Exit {
    let kit = ExitKit::read(kit).expect("a good kit");
    let exits = leave(&kit, gas, false, |_| {}).await.expect("the way out is open");
    exits.into_iter().find(|exit| exit.asset == town.usdh()).expect("an account in dollars")
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, reason = "the seed of a random play is told")]
async fn everybody_leaves_with_a_kit_alone_when_hub_and_stores_are_deleted() {
    let count = std::env::var(MEMBERS).ok().and_then(|text| text.parse().ok()).unwrap_or(MEMBERS_DEFAULT).min(150);
    let seed = 20_261_122;
    println!("{count} members, seed {seed}");
    let folders = tempfile::tempdir().expect("a folder");
    let mut town = Town::embedded().await;
    let usdh = town.usdh();

    let join = |i: u8| {
        let name = format!("m{i}");
        let program = town.client(FIRST + i, &name).poll(LOOK_EVERY).without_watchtower();
        let program = if i < WITH_STORES { program.store(folders.path().join(&name)) } else { program };
        town.join(FIRST + i, program)
    };
    let members: Vec<Client> = stream::iter(0..count).map(join).buffered(AT_ONCE).collect().await;

    // What everybody is owed, by the payments alone.
    let mut owed: BTreeMap<u8, u128> = (0..count).map(|i| (i, DEPOSIT)).collect();
    let mut received: BTreeMap<u8, u128> = BTreeMap::new();
    let mut dice = Dice::new(seed);
    let some = |dice: &mut Dice| u8::try_from(dice.below(usize::from(count))).expect("a member");
    let plan: Vec<(u8, u8, u128)> = (0..PAYMENTS * usize::from(count))
        .map(|_| (some(&mut dice), some(&mut dice), 1 + dice.number(20_000)))
        .filter(|(from, to, _)| from != to)
        .collect();
    let pay = |(from, to, value): (u8, u8, u128)| {
        let payer = &members[usize::from(from)];
        async move {
            let paid = payer.pay(format!("m{to}").as_str(), amount(value), usdh).await.expect("paid");
            (from, to, value, paid.fee.get())
        }
    };
    let mut paid = stream::iter(plan).map(pay).buffer_unordered(AT_ONCE);
    while let Some((from, to, value, fee)) = paid.next().await {
        *owed.get_mut(&from).expect("a member") -= value + fee;
        *owed.get_mut(&to).expect("a member") += value;
        *received.entry(to).or_default() += value;
    }
    drop(paid);
    for (i, total) in &received {
        town.received(&members[usize::from(*i)], *total).await;
    }

    // A store keeps its kit fresh while its member runs, and leaves it so.
    for (i, total) in owed.iter().filter(|(i, _)| **i < WITH_STORES) {
        let kept = folders.path().join(format!("m{i}")).join(KIT_FILE);
        let fresh = || std::fs::read_to_string(&kept).is_ok_and(|text| worth(&text) == *total);
        town.until("the store's kit is fresh", || std::future::ready(fresh())).await;
    }

    // The kits are all that is left.
    let mut kits = Vec::new();
    for (i, member) in (0..count).zip(members) {
        let asked = member.exit_kit().await.expect("runs").to_json();
        let account = member.account();
        member.shutdown().await.expect("stops");
        let kept = folders.path().join(format!("m{i}")).join(KIT_FILE);
        let kit = if i < WITH_STORES { std::fs::read_to_string(kept).expect("the store keeps a kit") } else { asked };
        assert_eq!(worth(&kit), owed[&i], "m{i}: the kit says what it is worth");
        kits.push((i, account, kit));
    }
    drop(folders);
    town.kill_hub().await;
    town.disk = Disk::default();

    let town = &town;
    let before: BTreeMap<u8, u128> =
        stream::iter(&kits).then(|(i, account, _)| async move { (*i, town.dollars(*account).await) }).collect().await;
    let gas = &stranger(town);
    let walk = || stream::iter(&kits).map(|(_, _, kit)| left(town, gas, kit)).buffered(AT_ONCE).collect::<Vec<Exit>>();
    let started = walk().await;
    assert!(started.iter().all(|exit| matches!(exit.state, ExitState::Closing { .. })), "{started:?}");
    assert_eq!(walk().await, started, "a second time changes nothing");
    town.pass_period().await;
    let ended = walk().await;
    assert!(ended.iter().all(|exit| exit.state == ExitState::Paid && exit.waiting_in_vault.is_zero()), "{ended:?}");
    assert_eq!(walk().await, ended, "a last time changes nothing");
    for (i, account, _) in &kits {
        assert_eq!(town.dollars(*account).await - before[i], owed[i], "m{i} got what the books owed");
    }
}

/// A town in which the hub is gone, and the kit of Bob, who had received 300,000 and paid 1,000.
async fn orphan() -> (Town, Client, String, u128) {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.join(2, town.client(2, "bob").without_watchtower()).await);
    alice.pay("bob", amount(300_000), usdh).await.expect("paid");
    town.received(&bob, 300_000).await;
    let paid = bob.pay("alice", amount(1_000), usdh).await.expect("paid");
    let kit = bob.exit_kit().await.expect("runs").to_json();
    bob.shutdown().await.expect("stops");
    alice.shutdown().await.expect("stops");
    town.kill_hub().await;
    (town, bob, kit, DEPOSIT + 300_000 - 1_000 - paid.fee.get())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kit_answers_a_close_of_the_hub_that_hides_payments() {
    let (town, bob, kit, owed) = orphan().await;
    let before = town.dollars(bob.account()).await;
    let terms = ExitKit::read(&kit).expect("a good kit").terms;
    let close = CloseOrder { terms, asset: town.usdh(), request: None };
    town.send_as_hub(town.chain().adjudicator().start_close(&close)).await;
    assert!(matches!(left(&town, &stranger(&town), &kit).await.state, ExitState::Closing { .. }));
    town.pass_period().await;
    assert_eq!(left(&town, &stranger(&town), &kit).await.state, ExitState::Paid);
    assert_eq!(town.dollars(bob.account()).await - before, owed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_kit_is_refused_before_anything_is_sent() {
    let (_town, _bob, kit, _) = orphan().await;
    let value: serde_json::Value = serde_json::from_str(&kit).expect("JSON");
    type Change = fn(&mut serde_json::Value);
    let flip = |value: &mut serde_json::Value| {
        let text = value.as_str().expect("text").to_owned();
        let last = if text.ends_with('0') { '1' } else { '0' };
        *value = format!("{}{last}", &text[..text.len() - 1]).into();
    };
    let places = [
        "/channel",
        "/pays_to",
        "/terms/salt",
        "/accounts/0/worth",
        "/accounts/0/calls/start_close/data",
        "/accounts/0/calls/respond/data",
        "/accounts/0/calls/finalize/data",
        "/accounts/0/evidence/hub_paid",
        "/accounts/0/evidence/hub_voucher/cumulative",
        "/accounts/0/evidence/member_vouchers/0/memo",
        "/accounts/0/evidence/close_request/signature/Ed25519",
    ];
    for place in places {
        let mut damaged = value.clone();
        flip(damaged.pointer_mut(place).unwrap_or_else(|| panic!("{place} is in {kit}")));
        let error = ExitKit::read(&damaged.to_string()).expect_err(place);
        assert!(matches!(error, KitError::Damaged { .. } | KitError::Signature { .. }), "{place}: {error}");
    }
    let others: [(Change, &str); 3] = [
        (|kit| kit["payhub_exit_kit"] = 2.into(), "of version 2"),
        (|kit| drop(kit.as_object_mut().expect("an object").remove("terms")), "no exit kit"),
        (|kit| *kit = serde_json::json!([]), "no exit kit"),
    ];
    for (change, expected) in others {
        let mut changed = value.clone();
        change(&mut changed);
        let error = ExitKit::read(&changed.to_string()).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_manual_get_the_money_out_with_cast_alone() {
    let (town, bob, kit, owed) = orphan().await;
    let before = town.dollars(bob.account()).await;
    let ledger = town.world().ledger().expect("the embedded one");
    let server = ledger.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.expect("loopback");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("kit.json");
    std::fs::write(&file, &kit).expect("written");
    let secret = alloy_primitives::hex::encode_prefixed(ledger.dev_accounts()[Person::Crony as usize].secret);
    let run = async |blocks: &[&str]| {
        let url = server.url();
        // The tests need Node and not jq, whose paths Node reads as well.
        let jq = r#"jq() { node -p "JSON.parse(require('fs').readFileSync('$3','utf8'))$2"; }"#;
        let settings = format!("set -euo pipefail\nexport ETH_RPC_URL={url}\nkit={} key={secret} i=0", file.display());
        let manual: Vec<String> = blocks.iter().map(|name| block(name)).collect();
        let script = format!("{settings}\n{jq}\n{}", manual.join("\n"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(cast_folder()).chain(std::env::split_paths(&path));
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).env("PATH", std::env::join_paths(paths).expect("paths"));
        let output = bash.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("bash runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{blocks:?}: {said}\n{}", String::from_utf8_lossy(&output.stdout));
    };
    run(&["settings", "start", "respond"]).await;
    town.pass_period().await;
    run(&["settings", "finalize", "claim"]).await;
    let channel = ExitKit::read(&kit).expect("a good kit").account_id(town.usdh());
    assert_eq!(town.world().books(&channel).await.status, Status::Final);
    assert_eq!(town.dollars(bob.account()).await - before, owed);
}

/// A block of commands of the manual, by the comment on its first line.
fn block(name: &str) -> String {
    const MANUAL: &str = include_str!("../../../docs/exit.md");
    let start = format!("```sh\n# {name}\n");
    let (_, rest) = MANUAL.split_once(&start).unwrap_or_else(|| panic!("the manual has a block {name}"));
    rest.split_once("```").expect("the block ends").0.to_owned()
}

/// The folder of the native binary in the npm package for this machine.
fn cast_folder() -> PathBuf {
    let packages = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("node_modules/@foundry-rs");
    let folders = std::fs::read_dir(packages).expect("npm packages: start the tests with tests/run");
    let native = folders.flatten().filter(|f| f.file_name().to_string_lossy().starts_with("cast-"));
    native.map(|f| f.path().join("bin")).find(|f| f.join("cast").is_file()).expect("cast is installed by tests/run")
}
