//! Ordinary Ethereum tools use the embedded ledger as they use any node: viem, ethers, web3.py and cast each deploy a
//! contract, call it, send transactions, read logs, poll a filter and subscribe over WebSocket. The sessions are in
//! `tests/tools`, know nothing of the ledger, and print what they saw.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use alloy_primitives::{Address, hex};
use ledger::{Config, Ledger, RpcServer};
use serde_json::Value;
use tokio::process::Command;

/// A session takes seconds; one that takes this long waits for ever.
const SESSION_MAX: Duration = Duration::from_secs(180);

/// What the payee ends up with: two transfers of five.
const BALANCE: u64 = 10;

#[tokio::test]
async fn a_viem_session_works_without_special_cases() {
    holds(&session("node", &["session.mjs", "viem"]).await);
}

#[tokio::test]
async fn an_ethers_session_works_without_special_cases() {
    holds(&session("node", &["session.mjs", "ethers"]).await);
}

#[tokio::test]
async fn a_web3_py_session_works_without_special_cases() {
    holds(&session("../.venv/bin/python", &["session.py"]).await);
}

#[tokio::test]
async fn a_cast_session_works_without_special_cases() {
    let facts = session("bash", &["session.sh"]).await;
    // It sends until its subscription reports two, because cast does not say when it is subscribed.
    let transfers = facts["transfers"].as_u64().expect("a number");
    assert!(transfers >= 2, "{facts}");
    assert_eq!(facts["balance"], 5 * transfers, "{facts}");
    for logs in ["logs", "filter"] {
        assert_eq!(facts[logs], transfers + 1, "{logs}: {facts}");
    }
    assert_eq!(facts["nonce"], transfers + 2, "{facts}");
    common(&facts);
}

/// Deployment, mint and two transfers.
fn holds(facts: &Value) {
    assert_eq!(facts["balance"], BALANCE, "{facts}");
    assert_eq!(facts["nonce"], 4, "{facts}");
    for (logs, expected) in [("logs", 3), ("filter", 3), ("log_events", 2)] {
        assert_eq!(facts[logs], expected, "{logs}: {facts}");
    }
    assert!(facts["head_events"].as_u64() >= Some(2), "{facts}");
    common(facts);
}

fn common(facts: &Value) {
    assert!(facts["log_events"].as_u64() >= Some(2), "{facts}");
    assert_eq!((&facts["fees"], &facts["rewards"]), (&Value::from(4), &Value::from(3)), "{facts}");
    // Of a transfer: the balances of payer and payee at least.
    assert!(facts["access_list_keys"].as_u64() >= Some(2), "{facts}");
    assert!(facts["refusal"].as_str().is_some_and(|why| why.contains("ERC20InsufficientBalance")), "{facts}");
}

/// Runs a tool against a fresh chain; returns what it printed last.
async fn session(program: &str, arguments: &[&str]) -> Value {
    let ledger = Ledger::start(Config::dev()).await.expect("a ledger in memory starts");
    let server = ledger.serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await.expect("loopback");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let artifact = root.join("../dispute/contracts/artifacts/TestDollar.json");
    let folder = root.join("tools");
    let program = if program.contains('/') { folder.join(program) } else { program.into() };
    let ended = Command::new(&program)
        .args(arguments)
        .args([server.url(), format!("ws://{}", server.local_addr())])
        .arg(hex::encode_prefixed(ledger.dev_accounts()[0].secret))
        .arg(artifact)
        .current_dir(&folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(SESSION_MAX, ended).await;
    let output = ended.unwrap_or_else(|_| panic!("{arguments:?} hangs: it waits for an event that does not come"));
    let output =
        output.unwrap_or_else(|e| panic!("{} cannot be run ({e}): start the tests with tests/run", program.display()));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {}\n{out}\n{err}", output.status);
    let last = out.lines().last().unwrap_or_default();
    let facts: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{e}: {out}\n{err}"));
    is_there(&ledger, &server, &facts);
    facts
}

/// The contract that the tool names exists on this very chain.
fn is_there(ledger: &Ledger, _running: &RpcServer, facts: &Value) {
    let contract: Address = serde_json::from_value(facts["contract"].clone()).expect("an address");
    assert!(!ledger.with_state(|state| state.code(&contract)).is_empty(), "{facts}");
}
