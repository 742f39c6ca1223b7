//! Bad input: what it is called, what to do, which exit code; nothing changes.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::apart::Apart;
use crate::dev;
use crate::world::{Done, World, busy_port, web_server};

const DONE: i32 = 0;
const OTHER: i32 = 1;
const USAGE: i32 = 2;
const CONNECT: i32 = 3;
const REFUSED: i32 = 4;
const NOT_FOUND: i32 = 5;

/// Runs a line of words as a user types it.
fn check(world: &World, line: &str, code: i32, parts: &[&str]) {
    let words: Vec<&str> = line.split_whitespace().map(|word| if word == "''" { "" } else { word }).collect();
    check_words(world, &words, "", code, parts);
}

/// Goes through a whole table before it fails, so that one sees all that is wrong.
fn check_all<T: AsRef<str>>(table: &[(T, i32, &[&str])], check: impl Fn(&str, i32, &[&str])) {
    let fails = |(line, code, parts): &&(T, i32, &[&str])| {
        let checked = || check(line.as_ref(), *code, parts);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(checked)).is_err()
    };
    let failed: Vec<&str> = table.iter().filter(fails).map(|(line, ..)| line.as_ref()).collect();
    assert!(failed.is_empty(), "these lines fail as said above: {failed:#?}");
}

fn check_words(world: &World, words: &[&str], stdin: &str, code: i32, parts: &[&str]) {
    let done = world.run_with(&[words, &["--json"]].concat(), stdin);
    said(&done, code, parts);
    let error = &done.object()["error"];
    assert_eq!((&done.object()["ok"], &error["code"]), (&Value::from(false), &Value::from(code)), "{done:#?}");
    assert!(error["reason"].as_str().is_some_and(|r| !r.is_empty()), "a word for programs: {done:#?}");
    assert!(error["what"].is_string() && error["fix"].is_string(), "{done:#?}");
}

fn said(done: &Done, code: i32, parts: &[&str]) {
    assert_eq!(done.code(), code, "{done:#?}");
    for part in parts {
        assert!(done.stderr.contains(part), "{part:?} is not said: {done:#?}");
    }
    assert!(!done.stderr.contains("panicked"), "{done:#?}");
}

#[test]
fn wrong_commands_are_refused_with_a_reason_and_change_nothing() {
    let world = World::new();
    let (running, ready) = dev::start(&world, "d");
    let rpc = ready["rpc"].as_str().expect("a URL");
    let grpc = ready["grpc"].as_str().expect("a URL");
    world.json(&["keys", "new", "dave"]);
    world.json(&["faucet", "dave", "1COIN"]);
    world.json(&["faucet", "dave", "50USDH"]);
    world.json(&["keys", "new", "poor"]);
    world.json(&["close", "carol", "--asset", "USDH"]);
    let long_note = "x".repeat(proto::frame::NOTE_MAX + 1);
    let before: Vec<Value> = ["alice", "bob", "carol"].iter().map(|m| world.json(&["balance", m])).collect();

    let table: &[(&str, i32, &[&str])] = &[
        // Names.
        ("pay nobody 1USDH --from alice", NOT_FOUND, &["nobody", "what to do"]),
        ("pay bob 1USDH --from mallory", NOT_FOUND, &["mallory", "alice, bob, carol", "payhub keys new mallory"]),
        ("balance mallory", NOT_FOUND, &["mallory", "what to do"]),
        ("faucet mallory 1COIN", NOT_FOUND, &["mallory", "what to do"]),
        ("balance ../alice", USAGE, &["../alice", "a-z"]),
        ("pay 0x12 1USDH --from alice", NOT_FOUND, &["0x12", "what to do"]),
        // Assets and amounts.
        ("pay bob 1EUR --from alice", NOT_FOUND, &["EUR", "COIN, USDH"]),
        ("faucet alice 1EUR", NOT_FOUND, &["EUR", "COIN, USDH"]),
        ("settle alice --asset EUR", NOT_FOUND, &["EUR", "COIN, USDH"]),
        ("close alice --asset EUR", NOT_FOUND, &["EUR", "COIN, USDH"]),
        ("pay bob 0USDH --from alice", USAGE, &["zero", "positive"]),
        ("pay bob 0.000000USDH --from alice", USAGE, &["zero", "positive"]),
        ("pay bob -1USDH --from alice", USAGE, &["-1USDH", "positive"]),
        ("pay bob +1USDH --from alice", USAGE, &["+1USDH", "positive"]),
        ("pay bob 0.0000001USDH --from alice", USAGE, &["0.0000001USDH", "6"]),
        ("pay bob 1.2.3USDH --from alice", USAGE, &["1.2.3USDH"]),
        ("pay bob 5 --from alice", USAGE, &["no unit", "5USDH"]),
        ("pay bob USDH --from alice", USAGE, &["USDH"]),
        ("pay bob '' --from alice", USAGE, &["what to do"]),
        ("pay bob 1e3USDH --from alice", NOT_FOUND, &["COIN, USDH"]),
        ("pay bob 999999999999999999999999999999999999999999USDH --from alice", USAGE, &["what to do"]),
        // More than there is.
        ("pay bob 100000USDH --from alice", REFUSED, &["100000 USDH", "500 USDH", "payhub fund"]),
        ("pay bob 5USDH --from alice --count 101 --frame 101", REFUSED, &["505 USDH", "500 USDH"]),
        ("withdraw 501USDH --from alice", REFUSED, &["501", "500", "what to do"]),
        ("fund 100000USDH --from alice", REFUSED, &["100000 USDH", "500 USDH", "payhub faucet"]),
        ("pay alice 1USDH --from alice", REFUSED, &["same channel", "what to do"]),
        // Closed channels.
        ("pay bob 1USDH --from carol", REFUSED, &["final", "what to do"]),
        ("pay carol 1USDH --from alice", REFUSED, &["carol", "what to do"]),
        ("close carol --asset USDH", REFUSED, &["no open account", "payhub channels"]),
        ("settle carol --asset USDH", REFUSED, &["nothing to settle", "payhub balance"]),
        ("fund 1USDH --from carol", REFUSED, &["what to do"]),
        // No channel yet.
        ("pay bob 1USDH --from dave", NOT_FOUND, &["no channel", "payhub open"]),
        ("fund 1USDH --from dave", NOT_FOUND, &["no channel", "payhub open"]),
        ("pay dave 1USDH --from alice", NOT_FOUND, &["dave", "opened a channel"]),
        ("open 0.5USDH --from dave", REFUSED, &["0.5 USDH", "1 USDH"]),
        ("open 5USDH --from poor", REFUSED, &["what to do"]),
        // The command line.
        ("pay bob 1USDH --from alice --count 0", USAGE, &["--count"]),
        ("pay bob 1USDH --from alice --rate 0", USAGE, &["--rate"]),
        ("pay bob 1USDH --from alice --frame 1025", USAGE, &["--frame"]),
        ("pay bob 1USDH", USAGE, &["--from"]),
        ("pay", USAGE, &["--from"]),
        ("fly", USAGE, &["fly"]),
        ("balance alice --fast", USAGE, &["--fast"]),
        ("demo --payments 0", USAGE, &["--payments"]),
        ("dev --port-base 65533 --in-memory", USAGE, &["65533", "65530"]),
        // Keys.
        ("keys new alice", USAGE, &["never replaced", "another name"]),
        ("keys new Alice", USAGE, &["Alice", "a-z"]),
        ("keys new eve --secret 1234", USAGE, &["64 hexadecimal digits"]),
        ("watch alice", USAGE, &["open already", "payhub events alice --follow"]),
        // Places.
        ("balance dave --hub http://127.0.0.1:1", CONNECT, &["127.0.0.1:1", "what to do"]),
        ("balance dave --rpc http://127.0.0.1:1", CONNECT, &["127.0.0.1:1", "what to do"]),
        ("faucet dave 1COIN --rpc http://127.0.0.1:1", CONNECT, &["127.0.0.1:1", "what to do"]),
        ("balance dave --hub nonsense", USAGE, &["nonsense", "http://127.0.0.1"]),
        ("balance dave --rpc nonsense", USAGE, &["nonsense", "http://127.0.0.1"]),
        ("faucet dave 1COIN --rpc nonsense", USAGE, &["nonsense", "http://127.0.0.1"]),
    ];
    check_all(table, |line, code, parts| check(&world, line, code, parts));
    check_words(&world, &["pay", "bob", "1USDH", "--from", "alice", "--note", &long_note], "", USAGE, &["note"]);
    check_words(&world, &["keys", "new", "eve", "--secret", "-"], "not hexadecimal", USAGE, &["64 hexadecimal digits"]);

    // A server that is neither hub nor ledger.
    let page = web_server();
    check(&world, &format!("balance dave --hub {page} --rpc {rpc}"), CONNECT, &[&page, "what to do"]);
    check(&world, &format!("balance dave --rpc {page} --hub {grpc}"), CONNECT, &[&page, "what to do"]);

    // A secret that others can read, or that is none.
    let secret = world.path("d/members/dave/secret");
    let mode = |mode| std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).expect("chmod");
    mode(0o644);
    check(&world, "balance dave", USAGE, &["can be read by others", "chmod 600"]);
    mode(0o600);
    let good = std::fs::read(&secret).expect("the secret");
    std::fs::write(&secret, "0123\n").expect("it can be written");
    check(&world, "balance dave", USAGE, &["secret", "64 hexadecimal digits"]);
    std::fs::write(&secret, good).expect("it can be written");
    assert_eq!(world.json(&["balance", "dave"])["ok"], true);

    let after: Vec<Value> = ["alice", "bob", "carol"].iter().map(|m| world.json(&["balance", m])).collect();
    assert_eq!(before, after, "nothing changed");
    running.stop();
}

#[test]
fn servers_that_cannot_start_say_why() {
    let apart = Apart::start(0);
    let world = &apart.world;
    let rpc = apart.rpc();
    let (_listener, busy) = busy_port();
    let second = world.start(&["ledger", "run", "--dev", "--data-dir", "ledger-2", "--listen", "127.0.0.1:0"]);
    let other_rpc = second.1["rpc"].as_str().expect("a URL").to_owned();
    let bad_genesis = world.write("genesis.json", "{\"alloc\": 5}");
    let hub = |rest: &str| format!("hub run --dev --listen 127.0.0.1:0 {rest}");
    let table: &[(String, i32, &[&str])] = &[
        // Hubs.
        (
            hub(&format!("--data-dir h1 --rpc {rpc} --adjudicator 0x00000000000000000000000000000000deadbeef")),
            OTHER,
            &["no contract", "DeaDBeef", "payhub deploy"],
        ),
        (hub(&format!("--data-dir h2 --rpc {rpc} --adjudicator {}", apart.usdh)), OTHER, &["not the adjudicator"]),
        (hub(&format!("--data-dir h3 --rpc {rpc} --adjudicator 0x12")), USAGE, &["--adjudicator", "40 hexadecimal"]),
        (hub(&format!("--data-dir h3 --rpc {rpc} --token {}", apart.adjudicator)), OTHER, &["what to do"]),
        (hub(&format!("--data-dir hub --rpc {rpc}")), OTHER, &["in use by another process", "stop that one"]),
        (
            hub(&format!("--data-dir h4 --rpc {rpc} --challenge-period 5000000")),
            USAGE,
            &["challenge period", "5000000 s"],
        ),
        (
            format!("hub run --data-dir h4 --listen 127.0.0.1:0 --rpc {rpc} --challenge-period 60"),
            USAGE,
            &["challenge period", "60 s"],
        ),
        (
            format!("hub run --dev --data-dir h5 --rpc {rpc} --listen 127.0.0.1:{busy}"),
            OTHER,
            &["cannot listen", "another address"],
        ),
        (hub("--data-dir h6 --rpc http://127.0.0.1:1"), CONNECT, &["127.0.0.1:1", "what to do"]),
        (hub("--data-dir h6 --rpc nonsense"), USAGE, &["nonsense"]),
        // Ledgers.
        (
            "ledger run --dev --data-dir ledger --listen 127.0.0.1:0".to_owned(),
            OTHER,
            &["in use by another process", "stop that one"],
        ),
        (format!("ledger run --dev --in-memory --listen 127.0.0.1:{busy}"), OTHER, &["cannot serve", "choose another"]),
        ("ledger run --dev --in-memory --block-time 0".to_owned(), USAGE, &["--block-time", "leave --block-time out"]),
        ("ledger run --dev --in-memory --block-time 2x".to_owned(), USAGE, &["--block-time", "\"x\" is unknown"]),
        ("ledger run --dev --in-memory --block-time soon".to_owned(), USAGE, &["--block-time", "250ms"]),
        ("ledger run --dev --in-memory --block-time 2d".to_owned(), USAGE, &["units are ms, s and min"]),
        ("ledger run --dev --in-memory --block-time 100000s".to_owned(), USAGE, &["at most a day"]),
        ("ledger run --dev --in-memory --workers 0".to_owned(), USAGE, &["--workers"]),
        ("ledger run --dev --in-memory --workers 9999".to_owned(), USAGE, &["9999 workers", "correct --workers"]),
        (
            "ledger verify --data-dir ledger".to_owned(),
            OTHER,
            &["in use by another process", "verify a copy of the directory"],
        ),
        ("ledger verify --data-dir nowhere".to_owned(), NOT_FOUND, &["holds no chain", "name the data directory"]),
        ("ledger verify --executor all --workers 9999".to_owned(), USAGE, &["9999 workers"]),
        ("ledger run --dev --in-memory --genesis nowhere.json".to_owned(), USAGE, &["nowhere.json", "--genesis"]),
        (format!("ledger run --dev --in-memory --genesis {bad_genesis}"), USAGE, &["genesis"]),
        ("dev --data-dir d --port-base 65533".to_owned(), USAGE, &["65533"]),
        (format!("deploy --rpc {rpc} --key 12"), USAGE, &["64 hexadecimal digits"]),
        (format!("deploy --rpc http://127.0.0.1:1 --key {}", "11".repeat(32)), CONNECT, &["127.0.0.1:1"]),
        (format!("deploy --rpc {rpc} --key {}", "12".repeat(32)), REFUSED, &["what to do"]),
        (format!("deploy --rpc {rpc} --key {} --shards 1000", "12".repeat(32)), USAGE, &["128"]),
    ];
    check_all(table, |line, code, parts| check(world, line, code, parts));

    // A hub's store with another chain of the same id, and a ledger's folder with other settings.
    let listen = ["--listen", "127.0.0.1:0"];
    let (stray, _) = world.start(&[&["hub", "run", "--dev", "--data-dir", "h7", "--rpc", &rpc][..], &listen].concat());
    stray.stop();
    check(world, &hub(&format!("--data-dir h7 --rpc {other_rpc}")), OTHER, &["the store is not one of", "what to do"]);
    second.0.stop();
    check(world, "ledger run --data-dir ledger-2 --listen 127.0.0.1:0", OTHER, &["genesis", "another directory"]);

    // A member of one chain shown another, and one store in two processes.
    apart.member("alice", "100USDH");
    let before = apart.dollars("alice");
    let (third, ready) = world.start(&["ledger", "run", "--dev", "--in-memory", "--listen", "127.0.0.1:0"]);
    let third_rpc = ready["rpc"].as_str().expect("a URL");
    check(world, &format!("balance alice --rpc {third_rpc}"), OTHER, &["what to do"]);
    third.stop();
    let (watching, _) = world.start(&["watch", "alice"]);
    // Another home finds no socket of the open wallet, but the store itself is locked.
    let elsewhere = World::new();
    let home = world.path("home").display().to_string();
    check_words(
        &elsewhere,
        &["balance", "alice", "--data-dir", &home],
        "",
        OTHER,
        &["in use by another process", "what to do"],
    );
    watching.stop();
    assert_eq!(apart.dollars("alice"), before, "nothing changed");
    apart.stop();
}

#[test]
fn garbage_on_the_ports_changes_nothing() {
    let world = World::new();
    let (running, ready) = world.start(&["dev", "--in-memory", "--port-base", "0"]);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A frame that says it has 16 MiB, a truncated one, a message of gRPC that is none.
    let oversized = [255, 255, 255, 0, 0, 0, 0, 0, 1];
    let post = |length: &str, body: &str| {
        let head = "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ";
        format!("{head}{length}\r\n\r\n{body}").into_bytes()
    };
    let messages: [Vec<u8>; 9] = [
        vec![0; 4096],
        vec![255; 65_536],
        preface.clone(),
        [&preface[..], &settings, &oversized, &[7; 9000]].concat(),
        [&preface[..], &settings[..5]].concat(),
        post("5", "{\"a\":"),
        post("99999999999", "[["),
        post("12", "[1,2,3,4,5]]"),
        post("x", ""),
    ];
    for field in ["grpc", "rpc"] {
        let address = ready[field].as_str().expect("a URL").trim_start_matches("http://");
        for message in &messages {
            use std::io::Write;
            let mut stream = std::net::TcpStream::connect(address).expect("the port is open");
            // It may hang up in the middle, which is its right.
            let _ = stream.write_all(message);
        }
    }
    assert_eq!(world.json(&["pay", "bob", "1USDH", "--from", "alice"])["paid"], 1);
    assert_eq!(world.json(&["withdraw", "1USDH", "--from", "bob"])["withdrawn"], "1");
    assert!(!running.errors().contains("panicked"), "{}", running.errors());
    running.stop();
}

#[test]
fn a_hub_that_went_away_is_named() {
    let mut apart = Apart::start(0);
    apart.member("alice", "100USDH");
    apart.hub.take().expect("the hub runs").kill();
    let parts: &[&str] = &["hub", "does not answer", "what to do"];
    check(&apart.world, "pay bob 1USDH --from alice", CONNECT, parts);
    check(&apart.world, "withdraw 1USDH --from alice", CONNECT, parts);
    // His own books need no hub, nor does the way out; see `apart`.
    let known = apart.world.run(&["channels", "alice", "--json"]);
    assert_eq!(known.code(), DONE, "{known:#?}");
    apart.ledger.take().expect("the ledger runs").kill();
    check(&apart.world, "balance alice", CONNECT, &["ledger", "does not answer", "what to do"]);
    apart.start_ledger();
    apart.start_hub();
    assert_eq!(apart.dollars("alice")["channel"], "100");
    apart.stop();
}

#[test]
fn mistakes_in_a_file_of_payments_are_named_with_their_line() {
    let world = World::new();
    let head = "from,to,amount,asset,note\n";
    let table = [
        ("a,b,c\n1,2,3\n".to_owned(), "from,to,amount,asset,note"),
        (format!("{head}a,b,1,USDH,ok\na,b,0,USDH,\n"), "line 3"),
        (format!("{head}a,b,1,EUR,\n"), "EUR"),
        (head.to_owned(), "no payments"),
    ];
    for (text, part) in table {
        let file = world.write("payments.csv", &text);
        check(&world, &format!("demo --csv {file}"), USAGE, &[part, "what to do"]);
    }
    check(&world, "demo --csv nowhere.csv", USAGE, &["nowhere.csv", "what to do"]);
}
