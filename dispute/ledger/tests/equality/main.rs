//! All executors make the same block, and Ethereum would make it too.
//!
//! Random worlds ([`world`]) go through every executor and through two oracles that share no code with them: revm's own
//! database ([`oracle`]) and the Ethereum reference implementation in Python ([`reference`]).
//!
//! - `PAYHUB_BLOCKS=1000000`: the long run, with that many random blocks.
//! - `PAYHUB_T8N_BLOCKS=500`: that many blocks through the reference implementation.
//! - `PAYHUB_SEED=n`: the first of the worlds' seeds; `PAYHUB_WORLD=n`: only the world with this seed.

mod asm;
mod check;
#[path = "../../../../tests/src/dice.rs"]
#[allow(dead_code, reason = "the random plays throw these dice too, in more ways")]
mod dice;
mod oracle;
mod reference;
mod stories;
mod world;

use std::io::Write as _;

use payhub_ledger::executor::Executor;

/// Blocks in an ordinary run.
const BLOCKS: u64 = 20_000;

/// Blocks through the reference implementation in an ordinary run.
const REFERENCE_BLOCKS: u64 = 60;

/// What must have happened in an ordinary run, or it proves less than it says.
const EXPECTED: [&str; 23] = [
    "created again",
    "created and destroyed",
    "executed",
    "fees to a contract",
    "halted",
    "log 0",
    "log 1",
    "log 2",
    "log 3",
    "log 4",
    "out of gas",
    "reverted",
    "skipped: below base fee",
    "skipped: cost overflows",
    "skipped: init code too long",
    "skipped: insolvent",
    "skipped: intrinsic gas",
    "skipped: nonce ahead",
    "skipped: nonce exhausted",
    "skipped: nonce used",
    "skipped: sender has code",
    "skipped: tip above fee",
    "touched and empty",
];

/// Where the seeds of an ordinary run begin.
const SEED: u64 = 1;

#[test]
fn random_blocks_are_the_same_by_every_executor_and_by_the_oracle() {
    let blocks = check::setting("PAYHUB_BLOCKS").unwrap_or(BLOCKS);
    let seed = check::setting("PAYHUB_SEED").unwrap_or(SEED);
    let seen = check::run(seed, blocks);
    let _ = writeln!(std::io::stderr(), "{blocks} blocks from seed {seed}: {seen:#?}");
    if blocks >= BLOCKS {
        for what in EXPECTED {
            assert!(seen.get(what).is_some_and(|times| *times >= 20), "the random blocks have too few of: {what}");
        }
    }
}

#[test]
fn a_wrong_executor_is_caught_and_its_block_made_small() {
    let mut wrong: Vec<Box<dyn Executor>> = vec![Box::new(check::Forgetful)];
    let found = (1..).find_map(|seed| check::world(seed, false, &mut wrong, &mut []).err());
    let message = found.expect("some world clears a slot");
    assert!(message.contains("forgetful differs: account change"), "{message}");
    assert!(message.contains("reproduce with PAYHUB_WORLD="), "{message}");
    let (_, rest) = message.split_once("it needs ").expect("it was made smaller");
    let needed: usize = rest.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((1..=3).contains(&needed), "{message}");
}

#[test]
fn random_blocks_are_the_same_by_the_ethereum_reference_implementation() {
    let blocks = check::setting("PAYHUB_T8N_BLOCKS").unwrap_or(REFERENCE_BLOCKS);
    let seed = check::setting("PAYHUB_SEED").unwrap_or(SEED);
    let (executed, rejected) = reference::run(seed, blocks);
    let _ = writeln!(
        std::io::stderr(),
        "{blocks} blocks from seed {seed}: {executed} transactions executed, {rejected} rejected"
    );
}
