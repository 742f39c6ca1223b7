//! The benchmark at a size that says nothing about speed: every workload runs, every transaction succeeds, every
//! executor agrees, the report has its schema, and unrelated channels share nothing.

use std::num::NonZeroUsize;

use payhub_ledger::BLOCK_GAS_LIMIT;
use payhub_ledger::bench::predict::{Trace, shared_between_groups};
use payhub_ledger::bench::{BenchError, Plan, Workload, Workshop, chart, run};
use serde_json::Value;

/// Enough that every vault and every submitter of the hub has several channels.
const CHANNELS: usize = 192;

#[test]
fn every_workload_runs_and_the_report_has_its_schema() {
    let plan = Plan {
        workloads: Workload::ALL.to_vec(),
        txs: Some(24),
        workers: [1, 2].map(|n| NonZeroUsize::new(n).expect("not zero")).to_vec(),
        repetitions: NonZeroUsize::MIN,
        // Small blocks: a workload is more than one of them.
        block_gas: 1_500_000,
        contracts: None,
        seed: 1,
    };
    let mut heard = Vec::new();
    // It fails if a transaction fails or an executor disagrees.
    let report = run(&plan, &mut |stage, done, total| heard.push((stage.to_owned(), done, total)))
        .unwrap_or_else(|e| panic!("{e}"));
    assert!(heard.iter().all(|(_, done, total)| done <= total) && heard.last().is_some_and(|(_, d, t)| d == t));

    let json = serde_json::to_value(&report).expect("plain data");
    assert!(json["machine"]["cores"].as_u64().is_some_and(|cores| cores > 0));
    let workloads = json["workloads"].as_array().expect("a list");
    let names = workloads.iter().map(|w| w["name"].as_str().expect("a name")).collect::<Vec<_>>();
    assert_eq!(
        names,
        [
            "transfer_independent",
            "transfer_hot",
            "sender_chain",
            "erc20_disjoint",
            "erc20_20_holders",
            "erc20_hot",
            "uniswap_many",
            "uniswap_one",
            "adjudicator_open",
            "adjudicator_settle",
            "mass_exit_s1",
            "mass_exit_s64",
            "mixed",
        ]
    );
    let positive = |value: &Value| value.as_f64().is_some_and(|number| number.is_finite() && number > 0.0);
    for w in workloads {
        assert_eq!(w["txs"], 24, "{w}");
        for field in [
            "gas",
            "sequential_tps",
            "ratio_1",
            "ratio_2",
            "replay_ratio_2",
            "executions_per_tx",
            "recover_s",
            "execute_s",
            "commit_s",
            "persist_s",
        ] {
            assert!(positive(&w[field]), "{field} of {w}");
        }
        for workers in ["4", "8", "16", "32"] {
            assert!(positive(&w["predicted"][workers]), "predicted with {workers} of {w}");
        }
        for workers in ["1", "2"] {
            assert!(w["predictor_error"][workers].as_f64().is_some_and(f64::is_finite), "error at {workers} of {w}");
        }
        for cause in ["stale", "estimate", "not_executable", "fee_recipient"] {
            assert!(w["aborts"][cause].as_f64().is_some_and(|number| number >= 0.0), "aborts by {cause} of {w}");
        }
    }

    let svg = chart(&report);
    let markdown = report.markdown();
    for name in names {
        assert!(svg.contains(&format!(">{name}</text>")) && markdown.contains(&format!("| {name} |")), "{name}");
    }
}

#[test]
fn channels_of_different_shards_and_submitters_share_no_key_that_one_writes() {
    let mut workshop = Workshop::new(None, BLOCK_GAS_LIMIT);
    for (workload, txs) in [
        (Workload::AdjudicatorOpen, CHANNELS),
        (Workload::AdjudicatorSettle, CHANNELS),
        (Workload::MassExitS64, 2 * CHANNELS),
    ] {
        let prepared = workshop.prepare(workload, Some(txs)).unwrap_or_else(|e| panic!("{e}"));
        let trace = Trace::of(&prepared).unwrap_or_else(|e| panic!("{e}"));
        for (block, traced) in prepared.blocks.iter().zip(&trace.blocks) {
            assert!(block.groups.iter().all(Option::is_some), "every transaction of {workload} is of one channel");
            assert_eq!(shared_between_groups(traced, &block.groups), None, "{workload}");
        }
        // The tracer does see dependencies: those of a submitter's nonces and of a vault.
        assert!(trace.blocks.iter().flatten().any(|tx| !tx.needs.is_empty()), "{workload}");
    }
}

#[test]
fn a_shared_key_is_found_where_there_is_one() {
    let prepared =
        Workshop::new(None, BLOCK_GAS_LIMIT).prepare(Workload::MassExitS1, Some(16)).unwrap_or_else(|e| panic!("{e}"));
    let trace = Trace::of(&prepared).unwrap_or_else(|e| panic!("{e}"));
    // As if each channel had a vault of its own: then the one vault's balance is shared without need.
    let mut found = false;
    for (block, traced) in prepared.blocks.iter().zip(&trace.blocks) {
        let mut groups = block.groups.clone();
        for (shard, group) in groups.iter_mut().flatten().enumerate() {
            group.shard = shard as u64;
        }
        found |= shared_between_groups(traced, &groups).is_some();
    }
    assert!(found);
}

#[test]
fn missing_contracts_are_named_with_the_command_that_installs_them() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut workshop = Workshop::new(Some(folder.path().to_owned()), BLOCK_GAS_LIMIT);
    let error = workshop.prepare(Workload::UniswapOne, Some(1)).expect_err("there is nothing in the folder");
    assert!(matches!(error, BenchError::Contracts { .. }));
    assert!(error.to_string().contains("npm install"), "{error}");
}
