//! A fast look at the executors, without the statistics of `payhub ledger bench`:
//!
//! ```text
//! cargo run --release -p payhub-ledger --example ledger_bench -- erc20_disjoint [uniswap_many ...] [--txs N] [--reps N] [--block-gas N] [--report]
//! ```
//!
//! Without a workload it runs all of them. Executors take turns; the best and the median time count. With `--report` it runs
//! what the command runs, with one and two workers, and prints the tables.
#![allow(clippy::print_stdout)]

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use payhub_ledger::bench::{self, Plan, Prepared, Workload, Workshop};
use payhub_ledger::block_stm::BlockStm;
use payhub_ledger::executor::{Executor, Sequential};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn executors() -> Vec<(String, Box<dyn Executor>)> {
    let workers = |n| NonZeroUsize::new(n).expect("not zero");
    vec![
        ("sequential".to_owned(), Box::new(Sequential::new())),
        ("block-stm 1".to_owned(), Box::new(BlockStm::new(workers(1)))),
        ("block-stm 2".to_owned(), Box::new(BlockStm::new(workers(2)))),
        ("block-stm 2, no cut-off".to_owned(), Box::new(BlockStm::new(workers(2)).with_cutoff(0))),
    ]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut names, mut txs, mut reps, mut block_gas, mut report) = (Vec::new(), None, 15, 60_000_000, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|n| n.parse::<u64>().ok()).ok_or("a number is missing");
        match arg.as_str() {
            "--txs" => txs = Some(number()? as usize),
            "--reps" => reps = number()? as usize,
            "--block-gas" => block_gas = number()?,
            "--report" => report = true,
            name => names.push(name.parse::<Workload>()?),
        }
    }
    if names.is_empty() {
        names.extend(Workload::ALL);
    }
    if report {
        let workers = [1, 2].map(|n| NonZeroUsize::new(n).expect("not zero")).to_vec();
        let repetitions = NonZeroUsize::new(reps).ok_or("at least one repetition")?;
        let plan = Plan { workloads: names, txs, workers, repetitions, block_gas, contracts: None, seed: 43 };
        println!("{}", bench::run(&plan, &mut |_, _, _| ())?.markdown());
        return Ok(());
    }
    let mut workshop = Workshop::new(None, block_gas);
    for workload in names {
        let started = Instant::now();
        let prepared = workshop.prepare(workload, txs)?;
        println!(
            "{workload}: {} transactions, {} blocks, {:.1} Mgas, prepared in {:.1} s",
            prepared.txs(),
            prepared.blocks.len(),
            prepared.gas() as f64 / 1e6,
            started.elapsed().as_secs_f64()
        );
        run(&prepared, reps)?;
    }
    Ok(())
}

fn run(prepared: &Prepared, reps: usize) -> Result<(), Box<dyn std::error::Error>> {
    let mut executors = executors();
    let mut times = vec![Vec::new(); executors.len()];
    for rep in 0..=reps {
        for (i, (name, executor)) in executors.iter_mut().enumerate() {
            let mut elapsed = Duration::ZERO;
            for block in &prepared.blocks {
                let list = block.transactions.iter().map(AsRef::as_ref).collect::<Vec<_>>();
                let started = Instant::now();
                let output = executor.execute(&block.context, &list, &block.state)?;
                elapsed += started.elapsed();
                let same = output.outcomes == block.expected.outcomes
                    && output.receipts == block.expected.receipts
                    && output.changes == block.expected.changes;
                if !same {
                    return Err(format!("{name} differs from sequential in block {}", block.context.number).into());
                }
            }
            // The first round warms caches and pools.
            if rep > 0 {
                times[i].push(elapsed);
            }
        }
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    let base = times[0][times[0].len() / 2].as_secs_f64();
    for ((name, _), times) in executors.iter().zip(&times) {
        let (median, best) = (times[times.len() / 2].as_secs_f64(), times[0].as_secs_f64());
        println!(
            "  {name:<24} {:>9.0} tx/s (best {:>9.0})  {:>8.2} ms  ratio {:.2}",
            prepared.txs() as f64 / median,
            prepared.txs() as f64 / best,
            median * 1e3,
            base / median
        );
    }
    Ok(())
}
