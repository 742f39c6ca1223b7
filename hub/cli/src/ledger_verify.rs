//! `payhub ledger verify`: a stored chain, executed again and compared.

use std::num::NonZeroUsize;

use ledger::verify::{By, CheckpointFinding, Plan, Report, VerifyError, verify};
use serde_json::{Value, json};

use crate::args::{ExecutorArg, LedgerVerify};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::run_ledger::ledger_failure;

/// Checks the directory; a difference is a failure.
pub async fn run(args: LedgerVerify, out: Output) -> Result<(), Failure> {
    let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let plan = Plan {
        from: args.from,
        to: args.to,
        by: match args.executor {
            ExecutorArg::Sequential => vec![By::Sequential],
            ExecutorArg::Parallel => vec![By::Parallel],
            ExecutorArg::Replay => vec![By::Replay],
            ExecutorArg::All => By::ALL.to_vec(),
        },
        workers: args.workers.unwrap_or_else(cores),
    };
    if plan.workers.get() > ledger::WORKERS_MAX {
        return Err(ledger_failure(&ledger::Error::Workers(plan.workers.get())));
    }
    let bar = out.progress(0, "blocks as stored");
    let watched = bar.clone();
    let work = tokio::task::spawn_blocking(move || {
        verify(&args.data_dir, &plan, |done, all| {
            watched.set_length(all);
            watched.set_position(done);
        })
    });
    let report = work.await.map_err(Failure::other)?.map_err(|e| failure(&e));
    bar.finish_and_clear();
    let report = report?;
    if let Some(difference) = &report.difference {
        return Err(Failure::new(
            Code::Other,
            "LEDGER_DIFFERS",
            format!("{difference} ({} blocks before it are as stored)", report.blocks),
            "restore the directory from a copy; if the copy differs too, this program executes otherwise than the one that wrote it",
        ));
    }
    tell(&report, out);
    Ok(())
}

fn tell(report: &Report, out: Output) {
    out.say(format!(
        "chain {}: blocks {} to {} are as stored ({} transactions, {} gas)\n  hash       {}\n  state root {}\n  checkpoint {}",
        report.chain_id,
        report.from,
        report.to,
        report.transactions,
        report.gas,
        report.hash,
        report.state_root,
        checkpoint(&report.checkpoint),
    ));
    if report.without_list > 0 {
        out.say(format!("  {} blocks are stored without their access list", report.without_list));
    }
    let row = |work: &ledger::verify::Work| {
        vec![work.by.name().to_owned(), work.blocks.to_string(), format!("{:.3} s", work.elapsed.as_secs_f64())]
    };
    out.table(&["executor", "blocks", "time"], report.work.iter().map(row).collect());
    let work = |work: &ledger::verify::Work| json!({ "name": work.by.name(), "blocks": work.blocks, "elapsed_s": work.elapsed.as_secs_f64() });
    out.object(&json!({
        "ok": true, "chain_id": report.chain_id, "genesis": report.genesis_hash, "head": report.head,
        "from": report.from, "to": report.to, "blocks": report.blocks, "transactions": report.transactions,
        "gas": report.gas, "hash": report.hash, "state_root": report.state_root,
        "blocks_without_access_list": report.without_list, "checkpoint": checkpoint(&report.checkpoint),
        "executors": report.work.iter().map(work).collect::<Vec<Value>>(),
    }));
}

fn checkpoint(finding: &CheckpointFinding) -> String {
    match finding {
        CheckpointFinding::None => "none".to_owned(),
        CheckpointFinding::Agrees { record } => format!("agrees (record {record})"),
        CheckpointFinding::NotReached { record } => format!("not reached (record {record})"),
        CheckpointFinding::Unusable(why) => format!("unusable: {why}"),
    }
}

fn failure(error: &VerifyError) -> Failure {
    match error {
        VerifyError::NoChain { .. } => Failure::not_found(error, ""),
        VerifyError::Range { .. } => Failure::new(Code::Usage, "USAGE", error, ""),
        VerifyError::Ledger(error) => ledger_failure(error),
        VerifyError::Storage(storage::Error::Locked { .. }) => Failure::new(
            Code::Other,
            "STORE_LOCKED",
            error,
            "stop the ledger that uses it, or verify a copy of the directory",
        ),
        VerifyError::Storage(_) => Failure::new(Code::Other, "LEDGER", error, ""),
    }
}
