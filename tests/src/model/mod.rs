//! Random plays: an honest party by its state machine, everybody else free, the ledger by the rules.
//!
//! A play is a few dozen random moves on one hub. In a [`member_play`] the member is honest (`proto::member`) and the
//! hub does what it likes: it refuses and keeps, claims what it refused, hides credits, numbers them wrongly, lies about
//! lanes, proposes anything, keeps settlements and posts them late, closes with old vouchers, and mines the blocks. In a
//! [`hub_play`] the hub is honest (`proto::books`) and two members are not. The ledger ([`ledger`]) is a model of the
//! adjudicator, with blocks, confirmations and reorganisations.
//!
//! At the end every account is brought to `Final` on the ledger, and the honest side must have got what it is entitled
//! to. Nothing is timed and nothing is real but the signatures, so that a play is a few milliseconds and follows from
//! its seed alone.
//!
//! The long run, 300,000 plays of each kind:
//!
//! ```text
//! PAYHUB_PLAYS=300000 cargo test --release -p payhub-tests --test it model
//! ```
//!
//! One play again: `PAYHUB_SEED=<seed> PAYHUB_PLAYS=1 cargo test -p payhub-tests --test it model`.

pub mod cast;
pub mod hub_play;
pub mod ledger;
pub mod member_play;

use std::collections::BTreeMap;

/// How the honest side plays. Anything but [`Care::Full`] breaks one rule, to show that the plays notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// By the rules.
    Full,
    /// Counts deposits at the seen head instead of the confirmed one.
    CountsUnconfirmedDeposits,
    /// Does not answer when it sees a close.
    IgnoresCloses,
    /// Forgets the settlements that it signed: the member's store is replaced without a word, the hub's proposals are
    /// said to be overtaken.
    ForgetsSettlements,
}

/// What the honest side lost in a play.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{loser} lost {lost}: {why}")]
pub struct Loss {
    /// Who.
    pub loser: &'static str,
    /// How much.
    pub lost: u128,
    /// The end of the play.
    pub why: String,
}

/// How often each path was taken over all plays: a rare path that never ran fails the run.
#[derive(Clone, Debug, Default)]
pub struct Sometimes(BTreeMap<&'static str, u64>);

impl Sometimes {
    /// Notes that a path was taken.
    pub fn note(&mut self, path: &'static str) {
        self.note_if(path, true);
    }

    /// Notes a path, and whether it was taken: a path that was only ever considered stays at 0.
    pub fn note_if(&mut self, path: &'static str, taken: bool) {
        let count = self.0.entry(path).or_default();
        *count = count.saturating_add(u64::from(taken));
    }

    /// Adds what another play counted.
    pub fn add(&mut self, other: &Sometimes) {
        for (path, count) in &other.0 {
            let sum = self.0.entry(path).or_default();
            *sum = sum.saturating_add(*count);
        }
    }

    /// How often a path was taken.
    pub fn count(&self, path: &str) -> u64 {
        self.0.get(path).copied().unwrap_or_default()
    }

    /// The paths of a list that were never taken.
    pub fn never<'a>(&self, paths: &[&'a str]) -> Vec<&'a str> {
        paths.iter().copied().filter(|path| self.count(path) == 0).collect()
    }
}
