//! `payhub demo`: exit 0 only if all reconciles, and the fields that scripts rely on.

use serde_json::Value;

use crate::world::{World, has_fields, micros, repo};

fn check(story: &Value, payments: u64, members: usize) {
    assert_eq!(story["ok"], true, "{story}");
    let chain = &story["chain"];
    assert!(chain["kind"] == "embedded" && chain["chain_id"].is_u64() && chain["blocks"].is_u64(), "{chain}");
    assert_eq!(story["channels_opened"], members, "{story}");
    assert_eq!(story["payments"], payments, "{story}");
    assert!(story["payments_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{story}");
    assert_eq!(story["settled"]["cooperative"], 2 * members - 1, "{story}");
    assert_eq!(story["settled"]["unilateral"], 1, "{story}");
    assert!(micros(&story["dispute"]["withheld"]) > 0, "{story}");
    assert_eq!(story["dispute"]["withheld"], story["dispute"]["recovered"], "{story}");
    // The payment that was accepted and never delivered.
    assert!(micros(&story["dispute"]["receipt_redeemed"]) > 0, "{story}");
    has_fields(&story["dispute"], &["member", "asset", "withheld", "recovered", "receipt_redeemed"]);
    let reconciled = story["reconciled"].as_array().expect("a list");
    assert_eq!(reconciled.iter().map(|r| &r["asset"]).collect::<Vec<_>>(), ["USDH", "COIN"]);
    for row in reconciled {
        has_fields(row, &["asset", "ledger", "books", "difference"]);
        assert!(row["ledger"] == row["books"] && row["difference"] == "0", "{row}");
    }
    assert!(story["elapsed_s"].as_f64().is_some_and(|s| s > 0.0), "{story}");
}

#[test]
fn the_demo_reconciles() {
    check(&World::new().json(&["demo", "--payments", "300"]), 300, 5);
}

#[test]
fn the_demo_pays_from_the_sample_file() {
    let sample = repo().join("hub/cli/samples/api-metering-day.csv");
    let text = std::fs::read_to_string(&sample).expect("the sample is there");
    let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split(',').collect()).collect();
    let members: std::collections::BTreeSet<&str> = rows.iter().flat_map(|r| [r[0], r[1]]).collect();
    let story = World::new().json(&["demo", "--csv", &sample.display().to_string()]);
    check(&story, rows.len() as u64, members.len());
}
