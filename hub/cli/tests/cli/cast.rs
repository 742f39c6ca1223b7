//! An EVM tool that is not ours agrees: `cast` against `payhub dev`.

use std::process::Command;

use serde_json::Value;

use crate::world::{World, repo, row, run};

fn cast(args: &[&str], rpc: &str) -> String {
    let modules = repo().join("tests/node_modules/@foundry-rs");
    let entries = std::fs::read_dir(&modules).into_iter().flatten().flatten();
    let native =
        entries.map(|e| e.path().join("bin/cast")).find(|p| p.is_file() && !p.starts_with(modules.join("cast/")));
    let native = native.unwrap_or_else(|| panic!("no cast in {}: run tests/run once", modules.display()));
    let mut command = Command::new(native);
    command.args(args).args(["--rpc-url", rpc]).env("FOUNDRY_DISABLE_NIGHTLY_WARNING", "1");
    let done = run(command, "");
    assert!(done.status.success(), "{done:#?}");
    done.stdout.trim().to_owned()
}

#[test]
fn cast_reads_the_chain_and_sends_a_transfer() {
    let world = World::new();
    let (running, ready) = world.start(&["dev", "--in-memory", "--port-base", "0"]);
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let rpc = text(&ready["rpc"]);
    let adjudicator = text(&ready["adjudicator"]);
    let assets = ready["assets"].as_array().expect("a list");
    let usdh = text(&assets.iter().find(|a| a["symbol"] == "USDH").expect("USDH")["address"]);
    let account = |name: &str| {
        let members = ready["members"].as_array().expect("a list");
        text(&members.iter().find(|m| m["name"] == name).expect(name)["account"])
    };

    assert_eq!(cast(&["chain-id"], &rpc), ready["chain_id"].to_string());
    let head: u64 = cast(&["block-number"], &rpc).parse().expect("a number");
    assert!(head > 0);
    let block: Value = serde_json::from_str(&cast(&["block", "latest", "--json"], &rpc)).expect("a block");
    assert!(block["hash"].is_string() && block["stateRoot"].is_string(), "{block}");
    assert!(cast(&["code", &adjudicator], &rpc).len() > 1000, "the adjudicator has code");

    // 1,000 given, 500 of it deposited.
    let balance_of = |who: &str| {
        let printed = cast(&["call", &usdh, "balanceOf(address)(uint256)", who], &rpc);
        printed.split_whitespace().next().expect("a number").to_owned()
    };
    assert_eq!(balance_of(&account("alice")), "500000000");

    world.json(&["pay", "bob", "1.25USDH", "--from", "alice"]);
    world.json(&["withdraw", "100USDH", "--from", "alice"]);
    let channel = text(&world.json(&["channels", "alice"])["channel"]);
    let signature = "books(bytes32,address)((uint8,uint64,uint64,uint128,uint128,uint128,uint128,uint128,uint128))";
    let books = cast(&["call", &adjudicator, signature, &channel, &usdh], &rpc);
    let totals = row(&world.json(&["channels", "alice"]), "accounts", "USDH").clone();
    let inner = books.trim_start_matches('(').trim_end_matches(')');
    let numbers: Vec<&str> = inner.split(',').map(|n| n.split_whitespace().next().unwrap_or("")).collect();
    // Status, deadline, seq, deposits of member and hub, withdrawals of both, what was proven of payments.
    let mut expected = vec!["0".to_owned(), "0".to_owned(), totals["seq"].to_string()];
    for field in ["deposited", "collateral", "withdrawn"] {
        expected.push(crate::world::micros(&totals[field]).to_string());
    }
    assert_eq!(numbers[..6], expected, "{books}");

    // A plain transfer with a developer account, and a token transfer that the network's own balance shows.
    let secret = |name: &str| {
        let members = ready["members"].as_array().expect("a list");
        format!("0x{}", text(&members.iter().find(|m| m["name"] == name).expect(name)["secret"]))
    };
    assert_ne!(secret("alice"), secret("bob"));
    let stranger = "0x00000000000000000000000000000000000a11ce";
    let developer = format!("0x{}", hex::encode(ledger::genesis::dev_accounts()[1].secret));
    let sent: Value = serde_json::from_str(&cast(
        &["send", stranger, "--value", "1.5ether", "--private-key", &developer, "--json"],
        &rpc,
    ))
    .expect("a receipt");
    assert_eq!(sent["status"], "0x1", "{sent}");
    assert_eq!(cast(&["balance", stranger], &rpc), "1500000000000000000");
    let receipt: Value =
        serde_json::from_str(&cast(&["receipt", &text(&sent["transactionHash"]), "--json"], &rpc)).expect("a receipt");
    assert_eq!(receipt["blockHash"], sent["blockHash"]);

    world.json(&["faucet", stranger, "2USDH", "--rpc", &rpc]);
    assert_eq!(balance_of(stranger), "2000000");
    let minted: Value = serde_json::from_str(&cast(
        &["send", &usdh, "transfer(address,uint256)", &account("bob"), "0", "--private-key", &developer, "--json"],
        &rpc,
    ))
    .expect("a receipt");
    assert_eq!(minted["status"], "0x1", "{minted}");
    assert_eq!(minted["logs"].as_array().map(Vec::len), Some(1), "a Transfer event: {minted}");
    running.stop();
}
