//! `payhub watch --store`: a watchtower as a process of its own, and output whose reader goes away.

use std::process::Stdio;

use alloy_primitives::Address;
use proto::AccountId;
use serde_json::{Value, json};

use crate::apart::{Apart, until, wait};
use crate::world::{Running, World, busy_port, free_port, has_fields};

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_else(|| panic!("{field} in {value}")).to_owned()
}

/// Test dollars of an address, in millionths.
fn dollars_of(apart: &Apart, owner: Address) -> u128 {
    wait(apart.chain().balance(apart.usdh, owner)).expect("the ledger answers").to()
}

/// The tower answers the hub's close, and after the challenge period pays out; what the member got comes back.
fn answers(apart: &Apart, tower: &Running, account: AccountId, payout: Address, owed: u128) -> u128 {
    let before = dollars_of(apart, payout);
    apart.hub_closes(&account);
    let responding = tower.until(|e| e["event"] == "responding");
    assert_eq!(responding["channel"], account.channel.to_string(), "{responding}");
    until(|| apart.books(&account).hub_paid.get() == owed);
    apart.pass_time(61);
    tower.until(|e| e["event"] == "final");
    dollars_of(apart, payout) - before
}

#[test]
fn a_tower_that_was_killed_after_the_upload_answers_for_a_member_who_lost_everything() {
    let mut apart = Apart::start(0);
    let listen = format!("127.0.0.1:{}", free_port());
    let (rpc, url) = (apart.rpc(), format!("http://{listen}"));
    let start = ["watch", "--store", "tower", "--rpc", &rpc, "--listen", &listen];
    let (tower, ready) = apart.world.start(&start);
    let fields =
        ["ready", "mode", "tower", "store", "channel", "rpc", "chain_id", "adjudicator", "account", "gas", "accounts"];
    has_fields(&ready, &fields);
    assert_eq!((&ready["mode"], &ready["tower"], &ready["accounts"]), (&json!("uploads"), &json!(url), &json!(0)));
    let gas = text(&ready, "account");
    apart.world.json(&["faucet", &gas, "1COIN", "--rpc", &rpc]);
    apart.member("alice", "500USDH");
    apart.member("bob", "10USDH");
    apart.world.json(&["pay", "bob", "25USDH", "--from", "alice"]);
    // The tower is named once; every command that brings him something hands it over before it ends.
    apart.world.json(&["balance", "bob", "--tower", &url]);
    assert_eq!(apart.dollars("bob")["received"], "25");
    let account = apart.account("bob");
    let payout: Address = text(&apart.world.json(&["balance", "bob"]), "account").parse().expect("an address");
    tower.kill();
    std::fs::remove_dir_all(apart.world.path("home/members/bob")).expect("his folder was there");
    apart.hub.take().expect("the hub runs").kill();

    let (tower, ready) = apart.world.start(&start);
    assert_eq!((&ready["accounts"], text(&ready, "account")), (&json!(1), gas), "the kill lost nothing");
    assert_eq!(answers(&apart, &tower, account, payout, 25_000_000), 35_000_000);
    tower.stop();
    apart.ledger.take().expect("the ledger runs").stop();
}

#[test]
fn a_members_store_is_watched_over_without_hub_and_without_his_keys() {
    let mut apart = Apart::start(0);
    apart.member("alice", "500USDH");
    apart.member("bob", "10USDH");
    apart.world.json(&["pay", "bob", "5USDH", "--from", "alice"]);
    assert_eq!(apart.dollars("bob")["received"], "5");
    let account = apart.account("bob");
    let payout: Address = text(&apart.world.json(&["balance", "bob"]), "account").parse().expect("an address");
    let rpc = apart.rpc();
    let store = apart.world.path("home/members/bob").display().to_string();
    let refused = apart.world.run(&["watch", "--store", &store, "--rpc", &rpc, "--json"]);
    assert_eq!(refused.code(), 2, "{refused:#?}");
    assert!(refused.object()["error"]["fix"].as_str().is_some_and(|fix| fix.contains("--key")), "{refused:#?}");
    let key = apart.world.write("gas", &hex::encode([0x42; 32]));
    let (tower, ready) = apart.world.start(&["watch", "--store", &store, "--rpc", &rpc, "--key", &key]);
    assert_eq!((&ready["mode"], &ready["tower"], &ready["accounts"]), (&json!("member"), &Value::Null, &json!(1)));
    apart.world.json(&["faucet", &text(&ready, "account"), "1COIN", "--rpc", &rpc]);
    // What comes later is in the kit that his programs keep, and the tower reads it there.
    apart.world.json(&["pay", "bob", "7USDH", "--from", "alice"]);
    assert_eq!(apart.dollars("bob")["received"], "12");
    std::fs::remove_file(apart.world.path("home/members/bob/secret")).expect("it was there");
    apart.hub.take().expect("the hub runs").kill();
    assert_eq!(answers(&apart, &tower, account, payout, 12_000_000), 22_000_000);
    tower.stop();
    apart.ledger.take().expect("the ledger runs").stop();
}

#[test]
fn a_tower_that_cannot_start_says_why() {
    let world = World::new();
    let (ledger, ready) = world.start(&["ledger", "run", "--dev", "--in-memory", "--listen", "127.0.0.1:0"]);
    let rpc = text(&ready, "rpc");
    let (_busy, port) = busy_port();
    let taken = format!("127.0.0.1:{port}");
    std::fs::create_dir_all(world.path("newcomer")).expect("a folder");
    std::fs::write(world.path("newcomer/config.json"), "{}").expect("a file");
    let (running, _) = world.start(&["watch", "--store", "mine", "--rpc", &rpc, "--listen", "127.0.0.1:0"]);
    let table: &[(&[&str], i32, &str)] = &[
        (&["watch"], 2, "USAGE"),
        (&["watch", "bob", "--store", "t"], 2, "USAGE"),
        (&["watch", "bob", "--listen", "127.0.0.1:0"], 2, "USAGE"),
        (&["watch", "--store", "t"], 2, "USAGE"),
        (&["watch", "--store", "t", "--rpc", &rpc, "--listen", "everywhere"], 2, "USAGE"),
        (&["watch", "--store", "t", "--rpc", &rpc, "--listen", &taken], 1, "PORT_BUSY"),
        (&["watch", "--store", "mine", "--rpc", &rpc, "--listen", "127.0.0.1:0"], 1, "STORE_LOCKED"),
        (&["watch", "--store", "newcomer", "--rpc", &rpc], 5, "NOT_FOUND"),
        (&["watch", "--store", "t", "--rpc", &rpc, "--key", "no-such-file"], 2, "USAGE"),
        (&["watch", "--store", "t", "--rpc", "http://127.0.0.1:1"], 3, "CANNOT_CONNECT"),
    ];
    for (args, code, reason) in table {
        let done = world.run(&[args, &["--json"][..]].concat());
        assert_eq!(done.code(), *code, "{done:#?}");
        let error = &done.object()["error"];
        assert_eq!(&error["reason"], reason, "{done:#?}");
        assert!(error["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{done:#?}");
    }
    running.stop();
    ledger.stop();
}

/// As `payhub ... | head -0`: whoever reads goes away before anything is written.
#[test]
fn output_whose_reader_went_away_ends_the_program_without_a_word() {
    let world = World::new();
    for args in [&["keys", "new", "alice"][..], &["keys", "new", "bob", "--json"], &["balance", "nobody", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = world.command(args);
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{args:?}: {said}");
        assert_eq!(output.status.code(), Some(141), "{args:?}: {said}");
    }
}
