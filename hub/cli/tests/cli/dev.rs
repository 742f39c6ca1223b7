//! `payhub dev` and every member's command against it.

use serde_json::{Value, json};

use crate::world::{Running, World, free_port, has_fields, micros, row};

/// Starts `payhub dev` on any free ports.
pub fn start(world: &World, data_dir: &str) -> (Running, Value) {
    world.start(&["dev", "--data-dir", data_dir, "--port-base", "0"])
}

fn is_hex(value: &Value, bytes: usize) -> bool {
    let digits = value.as_str().map(|text| text.trim_start_matches("0x"));
    digits.is_some_and(|d| d.len() == 2 * bytes && d.chars().all(|c| c.is_ascii_hexdigit()))
}

#[test]
fn the_ready_line_says_what_is_where() {
    let world = World::new();
    let (running, ready) = world.start(&["dev", "--in-memory", "--port-base", "0"]);
    has_fields(&ready, &["ready", "grpc", "rpc", "chain_id", "adjudicator", "assets", "members"]);
    assert!(ready["grpc"].as_str().is_some_and(|url| url.starts_with("http://127.0.0.1:")), "{ready}");
    assert!(ready["rpc"].as_str().is_some_and(|url| url.starts_with("http://127.0.0.1:")), "{ready}");
    assert!(ready["chain_id"].is_u64() && is_hex(&ready["adjudicator"], 20), "{ready}");
    for (symbol, decimals) in [("COIN", 18), ("USDH", 6)] {
        let assets = ready["assets"].as_array().expect("a list");
        let asset = assets.iter().find(|a| a["symbol"] == symbol).expect(symbol);
        has_fields(asset, &["symbol", "address", "decimals"]);
        assert!(asset["decimals"] == decimals && is_hex(&asset["address"], 20), "{asset}");
    }
    let members = ready["members"].as_array().expect("a list");
    let names: Vec<&Value> = members.iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["alice", "bob", "carol"]);
    for member in members {
        has_fields(member, &["name", "account", "secret"]);
        assert!(is_hex(&member["account"], 20) && is_hex(&member["secret"], 32), "{member}");
    }
    // Nothing is asked of a person who did not say where: the running one is found.
    assert_eq!(world.json(&["pay", "bob", "1USDH", "--from", "alice"])["paid"], 1);
    running.stop();
    let gone = world.run(&["balance", "alice", "--json"]);
    assert_eq!(
        (gone.code(), &gone.object()["error"]["reason"]),
        (5, &json!("NOT_FOUND")),
        "in memory: nothing is left"
    );
}

#[test]
fn everything_a_member_can_ask_has_its_fields() {
    let world = World::new();
    let (running, ready) = start(&world, "d");

    let follow = world.launch(&["events", "bob", "--follow"]);
    // The first line comes with the connection or with a payment, so pay until something is seen of a payment.
    let paid = world.json(&["pay", "bob", "0.0001USDH", "--from", "alice", "--count", "300", "--note", "tea"]);
    for field in ["paid", "payments_per_s", "p50_ms", "p99_ms", "receipts"] {
        assert!(paid[field].is_number(), "{field}: {paid}");
    }
    assert_eq!((&paid["paid"], &paid["amount"], &paid["asset"]), (&json!(300), &json!("0.03"), &json!("USDH")));
    // More ticks than one signature covers.
    let streamed =
        world.json(&["stream", "bob", "0.00001USDH", "--from", "carol", "--ticks", "3000", "--rate", "6000"]);
    assert!(streamed["ticks_per_s"].is_number(), "{streamed}");
    assert_eq!(
        (&streamed["paid"], &streamed["amount"], &streamed["asset"]),
        (&json!(3000), &json!("0.03"), &json!("USDH"))
    );
    let started = world.json(&["pay", "bob", "0.01USDH", "--from", "carol", "--rate", "50", "--count", "5"]);
    assert_eq!(started["paid"], 5);
    let event = follow.until(|e| e["event"] == "received");
    has_fields(&event, &["event", "from", "amount", "asset", "credit", "payments"]);
    follow.stop();

    let alice = world.json(&["balance", "alice"]);
    assert_eq!(alice["member"], "alice");
    for asset in ["COIN", "USDH"] {
        let row = row(&alice, "assets", asset);
        has_fields(row, &["asset", "wallet", "channel", "backed", "paid", "received"]);
        assert!(row.as_object().is_some_and(|r| r.values().all(Value::is_string)), "decimal strings: {row}");
    }
    assert_eq!(row(&alice, "assets", "USDH")["paid"], "0.03");
    assert_eq!(row(&alice, "assets", "USDH")["channel"], "499.97");
    let bob = world.json(&["balance", "bob"]);
    assert_eq!(row(&bob, "assets", "USDH")["received"], "0.11");

    let history = world.json(&["history", "bob", "--limit", "400"]);
    let entries = history["entries"].as_array().expect("a list");
    assert_eq!(entries.iter().filter(|e| e["kind"] == "received" && e["note"] == "tea").count(), 300);
    for field in ["kind", "id", "from", "amount", "asset", "note", "at_ms", "credit"] {
        assert!(!entries[0][field].is_null(), "{field}: {}", entries[0]);
    }
    let channels = world.json(&["channels", "alice"]);
    assert!(is_hex(&channels["channel"], 32), "{channels}");
    let account = row(&channels, "accounts", "USDH");
    for (field, value) in [("status", "open"), ("deposited", "500"), ("withdrawn", "0"), ("paid", "0.03")] {
        assert_eq!(account[field], value, "{account}");
    }

    let given = world.json(&["faucet", "alice", "7USDH"]);
    assert_eq!((&given["given"], &given["wallet"]), (&json!("7"), &json!("507")));
    assert_eq!(world.json(&["fund", "10USDH", "--from", "alice"])["deposited"], "10");
    let taken = world.json(&["withdraw", "2.5USDH", "--from", "alice"]);
    assert_eq!((&taken["withdrawn"], &taken["withdrawn_in_all"]), (&json!("2.5"), &json!("2.5")));
    let alice = world.json(&["balance", "alice"]);
    assert_eq!(row(&alice, "assets", "USDH")["wallet"], "499.5");
    assert_eq!(row(&alice, "assets", "USDH")["channel"], "507.47");

    let settled = world.json(&["settle", "bob", "--asset", "USDH"]);
    assert_eq!(row(&settled, "settled", "USDH")["withdrawn"], "500.11");
    let closed = world.json(&["close", "bob"]);
    assert_eq!(row(&closed, "closed", "USDH")["how"], "cooperative");
    let bob = world.json(&["balance", "bob"]);
    assert_eq!(row(&bob, "assets", "USDH")["wallet"], "1000.11");
    assert_eq!(row(&world.json(&["channels", "bob"]), "accounts", "USDH")["status"], "final");

    // A newcomer: keys, gifts, channel, all without saying where things are.
    let keys = world.json(&["keys", "new", "dave"]);
    assert!(is_hex(&keys["account"], 20), "{keys}");
    world.json(&["faucet", "dave", "1COIN"]);
    world.json(&["faucet", "dave", "20USDH"]);
    let opened = world.json(&["open", "10USDH", "--from", "dave"]);
    assert!(is_hex(&opened["channel"], 32) && opened["deposited"] == "10", "{opened}");
    let (watching, ready_line) = world.start(&["watch", "dave"]);
    assert_eq!(ready_line["member"], "dave");
    world.json(&["pay", "dave", "1USDH", "--from", "alice"]);
    let seen = watching.until(|e| e["event"] == "received");
    assert_eq!(seen["amount"], "1");
    // The open wallet answers for him.
    world.json(&["pay", "carol", "0.5USDH", "--from", "dave"]);
    assert_eq!(row(&world.json(&["balance", "dave"]), "assets", "USDH")["channel"], "10.5");
    watching.stop();

    // Started again on the same folder it goes on where it was, at other ports.
    running.signal("INT");
    let mut running = running;
    assert!(running.wait().success(), "{}", running.errors());
    let (running, again) = start(&world, "d");
    for field in ["chain_id", "adjudicator", "assets", "members"] {
        assert_eq!(again[field], ready[field]);
    }
    for (member, channel) in [("alice", "506.47"), ("bob", "0"), ("carol", "500.42"), ("dave", "10.5")] {
        let balance = world.json(&["balance", member]);
        assert_eq!(row(&balance, "assets", "USDH")["channel"], channel, "{balance}");
    }
    assert_eq!(world.json(&["pay", "dave", "1USDH", "--from", "carol", "--count", "3"])["paid"], 3);
    assert_eq!(row(&world.json(&["balance", "dave"]), "assets", "USDH")["channel"], "13.5");

    // One at a time on a folder; and a kill loses nothing.
    let second = world.run(&["dev", "--data-dir", "d", "--port-base", "0", "--json"]);
    assert_eq!((second.code(), &second.object()["error"]["reason"]), (1, &json!("STORE_LOCKED")), "{second:#?}");
    running.kill();
    let (running, _) = start(&world, "d");
    for (member, channel) in [("alice", "506.47"), ("carol", "497.42"), ("dave", "13.5")] {
        assert_eq!(row(&world.json(&["balance", member]), "assets", "USDH")["channel"], channel, "{member}");
    }
    assert_eq!(world.json(&["pay", "dave", "1USDH", "--from", "alice"])["paid"], 1);
    running.stop();
}

#[test]
fn ports_follow_the_base_and_people_get_sentences() {
    let world = World::new();
    let base = loop {
        let base = free_port();
        if [base + 1, base + 5].iter().all(|p| std::net::TcpListener::bind(("127.0.0.1", *p)).is_ok()) {
            break base;
        }
    };
    let (running, ready) = world.start(&["dev", "--in-memory", "--port-base", &base.to_string()]);
    assert_eq!(ready["grpc"], format!("http://127.0.0.1:{base}"));
    assert_eq!(ready["rpc"], format!("http://127.0.0.1:{}", base + 5));
    let said = |args: &[&str]| {
        let done = world.run(args);
        assert_eq!(done.code(), 0, "{done:#?}");
        done.stdout
    };
    assert!(said(&["pay", "bob", "1USDH", "--from", "alice"]).contains("paid 1 times, 1 USDH in all"));
    let balance = said(&["balance", "bob"]);
    assert!(balance.contains("USDH") && balance.contains("501") && !balance.contains('{'), "{balance}");
    // A busy base: which port, and what to do.
    let second = world.run(&["dev", "--data-dir", "other", "--port-base", &base.to_string(), "--json"]);
    assert_eq!(second.code(), 1);
    assert!(second.object()["error"]["what"].as_str().is_some_and(|w| w.contains(&(base + 5).to_string())));
    assert!(!second.object()["error"]["fix"].as_str().unwrap_or("").is_empty(), "{second:#?}");
    assert_eq!(micros(&row(&world.json(&["balance", "bob"]), "assets", "USDH")["received"]), micros(&json!("1")));
    running.stop();
}
