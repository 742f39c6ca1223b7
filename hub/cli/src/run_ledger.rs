//! `payhub ledger run`: the embedded ledger as a process of its own.

use std::num::NonZeroUsize;

use ledger::{BlockTime, Config, Genesis, Ledger, RpcServer};
use serde_json::json;

use crate::args::LedgerRun;
use crate::failure::{Code, Failure};
use crate::output::Output;

/// Runs until the process is asked to stop.
pub async fn run(args: LedgerRun, out: Output) -> Result<(), Failure> {
    let config = config(&args)?;
    let workers = config.worker_count();
    let ledger = Ledger::start(config).await.map_err(|e| ledger_failure(&e))?;
    let server = ledger.serve(args.listen).await.map_err(|e| ledger_failure(&e))?;
    // From the word that it is ready on, it ends in order.
    let stopped = crate::until_stopped();
    announce(&ledger, &server, workers, out);
    tokio::select! {
        () = stopped => {}
        why = ledger.ended() => return Err(Failure::new(Code::Other, "LEDGER", format!("the ledger has stopped: {why}"), "")),
    }
    server.stop().await;
    ledger.shutdown().await.map_err(|e| ledger_failure(&e))
}

fn config(args: &LedgerRun) -> Result<Config, Failure> {
    let mut config = if args.dev { Config::dev() } else { Config::durable(&args.data_dir) };
    config.data_dir = (!args.in_memory).then(|| args.data_dir.clone());
    config.workers = args.workers;
    if let Some(period) = args.block_time {
        config.block_time = BlockTime::Interval(period);
    }
    if let Some(path) = &args.genesis {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Failure::usage(format!("the genesis file {} cannot be read: {e}", path.display()), "correct --genesis")
        })?;
        config.genesis = Some(Genesis::from_json(&text).map_err(|e| ledger_failure(&e))?);
    }
    Ok(config)
}

fn announce(ledger: &Ledger, server: &RpcServer, workers: NonZeroUsize, out: Output) {
    let d = ledger.deployment();
    let execution = match workers.get() {
        1 => "one worker: transactions one by one".to_owned(),
        several => format!("{several} workers: transactions in parallel"),
    };
    out.say(format!(
        "ledger of chain {} at {}\n  adjudicator {}\n  test dollar {}\n  {execution}",
        d.chain_id,
        server.url(),
        d.adjudicator,
        d.usdh
    ));
    out.object(&json!({
        "ready": true, "rpc": server.url(), "chain_id": d.chain_id, "genesis": d.genesis_hash,
        "adjudicator": d.adjudicator, "test_dollar": d.usdh, "multicall3": d.multicall3,
        "workers": workers.get(),
    }));
}

/// A ledger's failure with its exit code.
pub fn ledger_failure(error: &ledger::Error) -> Failure {
    let (code, reason, fix) = match error {
        ledger::Error::Bind { .. } => {
            (Code::Other, "PORT_BUSY", "stop the program that uses it, or choose another: --listen, --port-base of dev")
        }
        ledger::Error::Workers(_) => (Code::Usage, "USAGE", "correct --workers"),
        ledger::Error::GenesisFile(_) => {
            (Code::Usage, "USAGE", "correct the file; it is JSON with `alloc`, as geth has it")
        }
        ledger::Error::OtherChain { .. } | ledger::Error::OtherGenesis { .. } => {
            (Code::Other, "DATA_OF_ANOTHER", "use the settings that it was made with, or another --data-dir")
        }
        ledger::Error::Storage(storage::Error::Locked { .. }) => (Code::Other, "STORE_LOCKED", ""),
        _ => (Code::Other, "LEDGER", ""),
    };
    Failure::new(code, reason, error, fix)
}
