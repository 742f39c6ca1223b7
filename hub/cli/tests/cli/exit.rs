//! `payhub exit-kit` and `payhub exit`: out of the channel with one file, when hub and store are deleted.

use std::fs;
use std::time::Instant;

use serde_json::json;

use crate::apart::Apart;
use crate::world::{PATIENCE, row};

#[test]
fn a_member_leaves_with_one_file_when_hub_and_store_are_deleted() {
    let mut apart = Apart::start(0);
    for (name, deposit) in [("alice", "500USDH"), ("bob", "10USDH")] {
        apart.member(name, deposit);
    }
    let world = &apart.world;
    let rpc = apart.rpc();
    let read = |file: &str| fs::read_to_string(world.path(file)).expect("a file");
    // From the running wallet, from the store, and the one that the store keeps by itself.
    let (watching, _) = world.start(&["watch", "bob"]);
    world.json(&["pay", "bob", "25USDH", "--from", "alice"]);
    watching.until(|e| e["event"] == "received");
    // The payment is in the kit by now. What it is worth is bounded by what the contract holds, and the hub's collateral
    // counts when Bob's own program has seen it on the ledger, which may be later than the hub has.
    let end = Instant::now() + PATIENCE;
    let asked = loop {
        let asked = world.json(&["exit-kit", "bob", "--out", "running.json"]);
        assert_eq!(asked["ok"], true, "{asked}");
        let kit: serde_json::Value = serde_json::from_str(&read("running.json")).expect("a kit");
        let account = &kit["accounts"][0];
        assert_eq!(account["evidence"]["hub_paid"], "25000000", "{account}");
        if asked["accounts"][0]["worth_base_units"] == "35000000" {
            break asked;
        }
        assert_eq!(
            (&account["worth"], &account["ledger"]["hub_deposit"]),
            (&json!("10000000"), &json!("0")),
            "{account}"
        );
        assert!(Instant::now() < end, "the hub's collateral is never seen: {account}");
    };
    watching.stop();
    let opened = world.json(&["exit-kit", "bob", "--out", "store.json"]);
    assert_eq!((&opened["accounts"], &opened["channel"]), (&asked["accounts"], &asked["channel"]));
    let folder = world.path("home/members/bob");
    fs::copy(folder.join("store").join(client::KIT_FILE), world.path("kept.json")).expect("the store keeps a kit");
    let secret = fs::read_to_string(folder.join("secret")).expect("a secret");

    apart.hub.take().expect("the hub runs").kill();
    fs::remove_dir_all(world.path("hub")).expect("deleted");
    fs::remove_dir_all(world.path("home")).expect("deleted");

    // Nothing is sent for a kit that is no good, without coins, or to a ledger that is not there.
    let kit = read("kept.json");
    let damaged = world.write("damaged.json", &kit.replacen("\"worth\": \"35000000\"", "\"worth\": \"36000000\"", 1));
    let poor = world.write("poor", &"11".repeat(32));
    let good = world.path("kept.json").display().to_string();
    let table: [(&str, &str, &str, i32, &str); 6] = [
        ("absent.json", &rpc, "-", 5, "NOT_FOUND"),
        (&poor, &rpc, "-", 2, "NO_KIT"),
        (&damaged, &rpc, "-", 2, "KIT_DAMAGED"),
        (&good, "http://127.0.0.1:1", "-", 3, "CANNOT_CONNECT"),
        (&good, &rpc, "absent", 2, "USAGE"),
        (&good, &rpc, &poor, 4, "NOT_SENT"),
    ];
    for (file, rpc, key, code, reason) in table {
        let done = world.run_with(&["exit", file, "--rpc", rpc, "--key", key, "--json"], &secret);
        assert_eq!((done.code(), &done.object()["error"]["reason"]), (code, &json!(reason)), "{done:#?}");
    }

    let exit = |file: &str, more: &[&str]| {
        let done =
            world.run_with(&[&["exit", file, "--rpc", &rpc, "--key", "-", "--json"][..], more].concat(), &secret);
        assert_eq!(done.code(), 0, "{done:#?}");
        done.object()
    };
    let started = exit("running.json", &["--no-wait"]);
    let account = row(&started, "accounts", "USDH");
    assert_eq!((&started["done"], &account["state"]), (&json!(false), &json!("closing")), "{started}");
    assert!(account["deadline"].is_u64(), "{started}");
    apart.pass_time(61);
    // Another copy goes on where the first one was; without --no-wait it would have waited.
    let ended = exit(&good, &[]);
    let account = row(&ended, "accounts", "USDH");
    assert_eq!((&ended["done"], &account["state"], &account["paid"]), (&json!(true), &json!("paid"), &json!("35")));
    assert_eq!(exit("store.json", &[]), ended, "once more changes nothing");
    apart.ledger.take().expect("the ledger runs").stop();
}
