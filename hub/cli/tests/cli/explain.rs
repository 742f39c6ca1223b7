//! `payhub explain` and `payhub plan-exit` against a running `payhub dev`.

use serde_json::{Value, json};

use crate::dev::start;
use crate::world::{World, row};

fn says(words: &Value, field: &str, piece: &str) {
    assert!(words[field].as_str().is_some_and(|text| text.contains(piece)), "{field} without {piece:?}: {words}");
}

#[test]
fn a_channel_is_explained_with_and_without_its_store() {
    let world = World::new();
    let (running, ready) = start(&world, "d");
    assert_eq!(world.json(&["pay", "bob", "1USDH", "--from", "carol"])["paid"], 1);
    let open = world.json(&["explain", "carol"]);
    assert!(open["node"].as_str().is_some_and(|text| text.contains("on the hub's own host")), "{open}");
    let usdh = row(&open, "accounts", "USDH");
    says(usdh, "must_act", "Nobody has to do anything.");
    says(usdh, "money", "A close would pay 499 USDH to carol");
    says(usdh, "proof", "the hub can prove that carol paid 1 USDH");

    world.json(&["close", "carol", "--asset", "USDH", "--unilateral"]);
    let closing = world.json(&["explain", "carol"]);
    let usdh = row(&closing, "accounts", "USDH");
    assert!(usdh["status"] == "closing" && usdh["deadline"].is_u64(), "{usdh}");
    says(usdh, "costs", "about 61,729 gas");

    // Of a channel of which nobody here has a store only what the ledger knows is told.
    let channel = open["channel"].as_str().expect("an id");
    let rpc = ready["rpc"].as_str().expect("a URL");
    let bare = world.json(&["explain", channel, "--rpc", rpc]);
    let usdh = row(&bare, "accounts", "USDH");
    assert_eq!((&usdh["status"], &bare["member"]), (&json!("closing"), &Value::Null));
    says(usdh, "proof", "No store is at hand");
    let unknown = world.run(&["explain", &format!("0x{}", "1".repeat(64)), "--rpc", rpc, "--json"]);
    assert_eq!((unknown.code(), &unknown.object()["error"]["reason"]), (5, &json!("NOT_FOUND")));

    // The hub for playing has a minute of challenge period: an alarm, whoever is to leave.
    let hub = ready["grpc"].as_str().expect("a URL");
    let plan = world.json(&["plan-exit", "--rpc", rpc, "--hub", hub, "--channels", "1000", "--block-time", "12"]);
    assert_eq!((&plan["alarm"], &plan["challenge_period_s"]), (&json!(true), &json!(60)));
    assert_eq!(plan["legs"].as_array().map(Vec::len), Some(6));
    let unknown = world.run(&["plan-exit", "--rpc", rpc, "--json"]);
    assert_eq!(unknown.code(), 2, "nobody said how many");
    running.stop();
}
