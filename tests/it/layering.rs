//! The layers hold: which crate may use which is one table, and the manifests are held to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Who may use whom, by folder; dev-dependencies count like all others.
const LAYERS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("storage", &["proto"]),
    ("dispute", &["proto", "storage"]),
    ("dispute/ledger", &["proto", "storage", "dispute"]),
    ("client", &["proto", "storage", "dispute"]),
    ("hub", &["proto", "storage", "dispute", "ledger"]),
    ("hub/cli", &["proto", "storage", "dispute", "ledger", "hub", "client"]),
    ("tests", &["proto", "storage", "dispute", "ledger", "hub", "client"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace")
}

/// The workspace crates that a manifest names in any of its dependency tables.
fn uses(manifest: &str) -> BTreeSet<&str> {
    let own = ["proto", "storage", "dispute", "ledger", "hub", "client"];
    let mut in_table = false;
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if let Some(table) = line.trim().strip_prefix('[') {
            in_table = table.trim_end_matches(']').ends_with("dependencies");
        } else if in_table {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.extend(own.iter().find(|own| **own == name));
        }
    }
    found
}

#[test]
fn dependencies_point_one_way() {
    for (folder, allowed) in LAYERS {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("every layer has a manifest");
        let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
        let beyond: Vec<&str> = uses(&manifest).difference(&allowed).copied().collect();
        assert!(beyond.is_empty(), "{folder} may not use {beyond:?}");
    }
}

#[test]
fn every_member_of_the_workspace_is_in_the_table() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let members = manifest.lines().find(|line| line.starts_with("members")).expect("it lists its members");
    let listed: BTreeSet<&str> = members.split('"').skip(1).step_by(2).collect();
    let table: BTreeSet<&str> = LAYERS.iter().map(|(folder, _)| *folder).collect();
    assert_eq!(listed, table);
}

#[test]
fn the_top_level_is_what_it_should_be() {
    let expected: BTreeSet<&str> = ["hub", "client", "proto", "dispute", "storage", "tests", "docs"].into();
    let mut folders = BTreeMap::new();
    for entry in fs::read_dir(root()).expect("the workspace can be listed").flatten() {
        let name = entry.file_name().into_string().expect("names are text");
        if entry.path().is_dir() && !name.starts_with('.') && name != "target" {
            folders.insert(name, ());
        }
    }
    assert_eq!(folders.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
}
