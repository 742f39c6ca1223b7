//! `payhub bench`: a second of each workload, all its fields, and books that reconcile.

use crate::world::{World, has_fields};

const MACHINE: [&str; 7] = [
    "cores",
    "ed25519_sign_us",
    "ed25519_verify_strict_us",
    "sha256_ns",
    "fdatasync_us",
    "append_records_per_s",
    "grpc_messages_per_s",
];
const WORKLOAD: [&str; 18] = [
    "name",
    "clients",
    "payments",
    "payments_per_s",
    "p50_ms",
    "p99_ms",
    "p999_ms",
    "hub_cpu_us_per_payment",
    "client_cpu_us_per_payment",
    "ratio_to_limit",
    "flushes_per_s",
    "journal_bytes_per_payment",
    "reconciled",
    "lone",
    "half_rate",
    "limit_payments_per_s",
    "limit_formula",
    "payments_refused",
];

#[test]
fn every_workload_pays_and_reconciles() {
    let world = World::new();
    let dir = world.path("bench").display().to_string();
    let chart = world.path("chart.svg").display().to_string();
    // All but the one that opens a thousand channels.
    let all = ["signed", "frames_16", "frames_64", "frames_256", "ticks_1", "ticks_packed", "lanes_64", "mixed"];
    let mut args =
        vec!["bench", "--clients", "4", "--seconds", "1", "--window", "2", "--data-dir", &dir, "--svg", &chart];
    args.extend(all.iter().flat_map(|workload| ["--workload", *workload]));
    let report = world.json(&args);
    has_fields(&report["machine"], &MACHINE);
    let workloads = report["workloads"].as_array().expect("a list");
    let names: Vec<&str> = workloads.iter().filter_map(|w| w["name"].as_str()).collect();
    assert_eq!(names, all);
    for workload in workloads {
        has_fields(workload, &WORKLOAD);
        assert_eq!(workload["reconciled"], true, "{workload}");
        assert!(workload["payments"].as_u64().is_some_and(|payments| payments > 0), "{workload}");
        has_fields(&workload["half_rate"], &["rate", "p50_ms", "p99_ms", "p999_ms"]);
    }
    assert_eq!(report["settled"]["accounts"], 4, "{report}");
    assert_eq!(report["settled"]["reconciled"], true, "{report}");
    let chart = std::fs::read_to_string(chart).expect("the chart was written");
    assert!(chart.contains("frames_256") && chart.ends_with("</svg>\n"));
    let left = std::fs::read_dir(dir).expect("the folder is there").count();
    assert_eq!(left, 0, "what the run kept is removed at its end");
}

#[test]
fn a_rate_is_held_in_an_open_loop() {
    let world = World::new();
    let dir = world.path("bench").display().to_string();
    let args =
        ["bench", "--workload", "signed", "--clients", "2", "--seconds", "1", "--rate", "40", "--data-dir", &dir];
    let report = world.json(&args);
    let signed = &report["workloads"][0];
    assert!(signed["reconciled"] == true && signed["half_rate"].is_null(), "{signed}");
    assert!(signed["payments"].as_u64().is_some_and(|payments| payments > 0), "{signed}");
}

#[test]
fn an_unknown_workload_is_refused_with_the_names_of_all() {
    let done = World::new().run(&["bench", "--workload", "fast"]);
    assert_eq!(done.status.code(), Some(2), "{done:#?}");
    assert!(done.stderr.contains("frames_64"), "{done:#?}");
}
