//! The compiled contracts, as they are committed beside their sources.
//!
//! `cargo build` needs no Solidity compiler. A contract must be *created*, by running its constructor: the runtime code
//! of the artifact has zeros where immutables belong and would compute wrong digests without a word.

use std::sync::OnceLock;

use alloy_primitives::{Address, Bytes};
use alloy_sol_types::SolValue;
use serde::Deserialize;

/// The constructor's arguments: challenge periods, vaults, and the asset that channels are mostly opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// Shortest challenge period that channels may have, in seconds.
    pub challenge_period_min_s: u32,
    /// Longest challenge period that channels may have, in seconds.
    pub challenge_period_max_s: u32,
    /// Vaults over which channels are spread, 1 to 128; more of them let a parallel ledger run more calls at once.
    pub shards: u16,
    /// The asset whose accounts are the cheapest to open, zero for the native coin. It saves gas and decides nothing.
    pub home_asset: Address,
}

/// A contract as the compiler left it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// The ABI, as JSON.
    pub abi: serde_json::Value,
    bytecode: Bytes,
    sources_hash: String,
    own_sources_hash: String,
}

/// The adjudicator.
pub fn adjudicator() -> &'static Artifact {
    static ARTIFACT: OnceLock<Artifact> = OnceLock::new();
    ARTIFACT.get_or_init(|| read(include_str!("../contracts/artifacts/Adjudicator.json")))
}

/// A token for tests and development with EIP-3009 and permit: 6 decimals, symbol `USDH`.
pub fn test_dollar() -> &'static Artifact {
    static ARTIFACT: OnceLock<Artifact> = OnceLock::new();
    ARTIFACT.get_or_init(|| read(include_str!("../contracts/artifacts/TestDollar.json")))
}

/// What to send to create an adjudicator: bytecode and constructor arguments.
pub fn adjudicator_creation(deployment: &Deployment) -> Bytes {
    let Deployment { challenge_period_min_s, challenge_period_max_s, shards, home_asset } = *deployment;
    adjudicator().creation((challenge_period_min_s, challenge_period_max_s, shards, home_asset).abi_encode_params())
}

/// What to send to create a test dollar that `faucet` alone may mint.
pub fn test_dollar_creation(faucet: Address) -> Bytes {
    test_dollar().creation((faucet,).abi_encode_params())
}

impl Artifact {
    /// The creation code, without constructor arguments.
    pub fn bytecode(&self) -> &Bytes {
        &self.bytecode
    }

    /// The hash over compiler, settings and every source that the contract was compiled from.
    pub fn sources_hash(&self) -> &str {
        &self.sources_hash
    }

    /// The SHA-256 over our own sources: for each file under `dispute/contracts`, by its path there in sorted order, a
    /// zero byte, the path, a zero byte and the content.
    pub fn own_sources_hash(&self) -> &str {
        &self.own_sources_hash
    }

    fn creation(&self, arguments: Vec<u8>) -> Bytes {
        [self.bytecode.as_ref(), &arguments].concat().into()
    }
}

fn read(json: &str) -> Artifact {
    serde_json::from_str(json).expect("committed artifacts are written by the build script of the contracts")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use alloy_primitives::hex;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_committed_artifacts_were_compiled_from_the_committed_sources() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("contracts");
        let mut sources = BTreeMap::new();
        for folder in ["", "verifiers/"] {
            for entry in std::fs::read_dir(root.join(folder)).expect("the contracts are beside the crate") {
                let name = entry.expect("a readable folder").file_name().into_string().expect("plain names");
                if name.ends_with(".sol") {
                    let path = format!("{folder}{name}");
                    let content = std::fs::read_to_string(root.join(&path)).expect("a readable source");
                    sources.insert(path, content);
                }
            }
        }
        let mut hash = Sha256::new();
        for (path, content) in &sources {
            hash.update(format!("\0{path}\0{content}"));
        }
        let expected = hex::encode(hash.finalize());
        for (name, artifact) in [("Adjudicator", adjudicator()), ("TestDollar", test_dollar())] {
            assert_eq!(
                artifact.own_sources_hash(),
                expected,
                "{name}.json is older than its sources: run `node build.mjs` in dispute/contracts"
            );
            assert_eq!(artifact.sources_hash(), adjudicator().sources_hash(), "the artifacts are of one build");
        }
    }

    #[test]
    fn creation_code_is_the_bytecode_and_the_constructors_words() {
        let home_asset = Address::with_last_byte(4);
        let deployment = Deployment { challenge_period_min_s: 1, challenge_period_max_s: 2, shards: 3, home_asset };
        let code = adjudicator_creation(&deployment);
        let words = code.strip_prefix(adjudicator().bytecode().as_ref()).expect("the bytecode comes first");
        let last_bytes: Vec<u8> = words.chunks(32).map(|word| word[31]).collect();
        assert_eq!((words.len(), last_bytes), (128, vec![1, 2, 3, 4]));
        assert_eq!(test_dollar_creation(Address::ZERO).len(), test_dollar().bytecode().len() + 32);
    }
}
