//! `payhub ledger bench`: the executors against each other.

use std::num::NonZeroUsize;
use std::path::Path;

use ledger::bench::{self, BenchError, Plan, Workload};
use ledger::{BLOCK_GAS_LIMIT, BLOCK_GAS_LIMIT_MAX};

use crate::args::LedgerBench;
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::run_ledger::ledger_failure;

/// Decides the order of the measurements; any number does, the same one makes runs comparable.
const SEED: u64 = 43;

/// Measures, and says what was found.
pub fn run(args: &LedgerBench, out: Output) -> Result<(), Failure> {
    let plan = plan(args)?;
    let bar = out.progress(1, "");
    let mut progress = |stage: &str, done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(stage.to_owned());
    };
    let report = bench::run(&plan, &mut progress).map_err(|e| failure(&e))?;
    bar.finish_and_clear();
    out.say(report.conditions());
    if !report.machine.optimised {
        out.say("This build is not optimised, its numbers are worth nothing: cargo build --release");
    }
    out.table(&bench::report::HEAD, report.rows());
    out.say("Ratios are against sequential execution of the same blocks. Predicted: from traced dependencies, not measured.");
    if let Some(file) = &args.svg {
        write(file, &bench::chart(&report))?;
        out.say(format!("chart: {}", file.display()));
    }
    if let Some(file) = &args.markdown {
        write(file, &report.markdown())?;
        out.say(format!("tables: {}", file.display()));
    }
    out.object(&serde_json::to_value(&report).map_err(|e| Failure::other(format!("the report is no JSON: {e}")))?);
    Ok(())
}

fn plan(args: &LedgerBench) -> Result<Plan, Failure> {
    let usage = |what: String| Failure::usage(what, "see `payhub ledger bench --help`");
    let mut workloads = args.workload.iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>().map_err(usage)?;
    if workloads.is_empty() {
        workloads.extend(Workload::ALL);
    }
    workloads.sort_unstable();
    workloads.dedup();
    let mut workers = args.workers.clone();
    if workers.is_empty() {
        // Two is what ratios are stated for, whatever the machine has.
        workers.extend([NonZeroUsize::MIN, NonZeroUsize::MIN.saturating_add(1), bench::cores()]);
    }
    workers.sort_unstable();
    workers.dedup();
    let block_gas = args.block_gas.unwrap_or(BLOCK_GAS_LIMIT);
    // What a transaction of the workloads may use at most, and what a block of the ledger may.
    if !(1_000_000..=BLOCK_GAS_LIMIT_MAX).contains(&block_gas) {
        return Err(usage(format!("a block of {block_gas} gas is not one million to {BLOCK_GAS_LIMIT_MAX}")));
    }
    Ok(Plan {
        workloads,
        txs: args.txs.map(NonZeroUsize::get),
        workers,
        repetitions: args.repetitions,
        block_gas,
        contracts: args.contracts.clone(),
        seed: SEED,
    })
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text).map_err(|e| Failure::other(format!("{} cannot be written: {e}", file.display())))
}

fn failure(error: &BenchError) -> Failure {
    match error {
        BenchError::Contracts { .. } => Failure::new(Code::NotFound, "CONTRACTS_MISSING", error, ""),
        BenchError::Ledger(error) => ledger_failure(error),
        BenchError::Setup { .. }
        | BenchError::Failed { .. }
        | BenchError::Differs { .. }
        | BenchError::Execution(_)
        | BenchError::Replay(_) => Failure::new(Code::Other, "LEDGER", error, ""),
    }
}
