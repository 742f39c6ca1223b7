//! Every rule of the protocol that once was broken has a test of its own name; this is the list of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use alloy_primitives::{B256, Bytes};
use payhub_tests::chains::World;
use proto::keys::ed25519_verify_strict;
use proto::{Scheme, wire};
use serde::Deserialize;

/// Each failed on an earlier version of the protocol. A rule may be tested in several places.
const RULES: &[&str] = &[
    "a_kept_settlement_cannot_take_backing_twice",
    "a_kept_settlement_cannot_withdraw_spent_money",
    "a_refused_close_expires",
    "a_restored_member_waits_before_counting_collateral",
    "self_dealt_settlement_cannot_touch_other_custody",
    "stolen_authorisation_funds_only_its_channel",
    "allowance_of_a_stranger_is_not_spendable",
    "a_channel_in_bobs_name_needs_bob",
    "withdrawn_beyond_deposit_still_finalizes",
    "max_voucher_by_hub_does_not_brick_finalize",
    "receipt_and_later_voucher_count_once",
    "posting_a_high_credit_first_blocks_nothing",
    "duplicate_credit_number_is_seen_by_the_payer",
    "evidence_fits_one_transaction_at_every_limit",
    "tower_posts_although_the_net_looks_right",
    "dust_deposit_cannot_block_or_burn_a_close",
    "final_is_for_ever_same_terms_refused",
    "ghost_frame_of_an_old_session_is_refused",
    "client_ignores_a_lane_view_without_its_signature",
    "torsion_in_R_refused_in_every_sdk",
    "flipped_v_refused_off_ledger",
    "tick_and_plain_of_one_lane_count_once",
    "claim_never_crosses_vaults",
    "reentrant_deposit_credits_once",
    "native_batch_adds_up",
    "outage_longer_than_window_leaves_time_to_respond",
    "one_second_challenge_period_not_served",
    "two_payers_cannot_share_one_backing",
    "a_frame_is_not_accepted_on_a_refused_frames_signature",
    "two_lanes_in_one_flush_cannot_spend_twice",
    "settlement_counts_frames_waiting_for_the_flush",
    "tower_posts_when_a_refused_voucher_hides_the_payout",
    "hello_waits_for_the_flush_before_it",
    "busy_payee_can_close",
    "fees_do_not_fill_the_exposure",
    "delivered_needs_the_heads_from_my_receipt",
    "a_gap_voucher_is_kept_and_posted",
    "a_refused_id_may_be_paid_later",
    "raw_challenge_is_never_signed",
    "unaccepted_voucher_posted_by_member_is_windfall",
];

/// Rules about streams of ticks between member and hub: due with the first tick in the schema of a session. The contract
/// redeems ticks already, and its own rules about them are in the list above.
const RULES_OF_STREAMS: &[&str] = &["anchor_never_used_twice", "a_refused_tick_does_not_block_its_lane"];

#[test]
fn every_named_rule_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace");
    let mut tests = BTreeSet::new();
    collect(root, &mut tests);
    let streams = if schema_has_ticks() { RULES_OF_STREAMS } else { &[] };
    let missing: Vec<&&str> = RULES.iter().chain(streams).filter(|rule| !tests.contains(**rule)).collect();
    assert!(missing.is_empty(), "these rules have no test: {missing:?}");
}

/// The names of all functions in the Rust sources below a folder.
fn collect(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("sources can be listed").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let skipped = ["target", "node_modules"].iter().any(|s| name == *s) || name.to_string_lossy().starts_with('.');
        if path.is_dir() && !skipped {
            collect(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let source = fs::read_to_string(&path).expect("sources are text");
            let starts = source.match_indices("fn ").map(|(at, _)| &source[at + 3..]);
            let is_name = |c: char| c.is_alphanumeric() || c == '_';
            names.extend(starts.map(|rest| rest.chars().take_while(|c| is_name(*c)).collect::<String>()));
        }
    }
}

fn schema_has_ticks() -> bool {
    String::from_utf8_lossy(wire::DESCRIPTOR_SET).to_lowercase().contains("tick")
}

#[derive(Deserialize)]
struct Case {
    name: String,
    digest: B256,
    key: B256,
    signature: Bytes,
    expected: String,
}

/// One rule, byte for byte the same everywhere: the golden signature with torsion in R is refused by the library that
/// every program here is built on, and by the precompile of the ledger. A cofactored verifier would take it.
#[allow(non_snake_case)]
#[tokio::test]
async fn torsion_in_R_refused_in_every_sdk() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/vectors/signatures.json");
    let cases: Vec<Case> = serde_json::from_str(&fs::read_to_string(vectors).expect("they are there")).expect("JSON");
    let case = cases.iter().find(|case| case.name == "ed25519: torsion in R").expect("it is listed");
    assert_eq!(case.expected, "bad");
    let good = cases.iter().find(|case| case.expected == "good" && case.signature.len() == 64).expect("one is good");
    let world = World::embedded(Scheme::Ed25519).await;
    for (case, expected) in [(good, true), (case, false)] {
        let signature: [u8; 64] = case.signature.as_ref().try_into().expect("64 bytes");
        assert_eq!(ed25519_verify_strict(&case.digest, &case.key, &signature), expected, "{}", case.name);
        let input = [case.digest.as_slice(), case.key.as_slice(), &signature].concat();
        let call = dispute::Call::of(ledger::ED25519_PRECOMPILE, Default::default(), input.into());
        let anyone = world.address(payhub_tests::chains::Person::Anyone);
        let answer = world.chain().simulate(anyone, &call).await.expect("the ledger answers");
        assert_eq!(!answer.is_empty(), expected, "{}", case.name);
    }
}
