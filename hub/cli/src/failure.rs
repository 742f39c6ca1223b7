//! How a command fails: an exit code that scripts can rely on, and three sentences: what, why, what to do.

use std::fmt;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// What kind of failure.
    pub code: Code,
    /// What happened and why.
    pub what: String,
    /// What to do about it.
    pub fix: String,
    /// The word for programs, as in `INSUFFICIENT_FUNDS`.
    pub reason: String,
}

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// Anything else.
    Other = 1,
    /// The command line does not make sense.
    Usage = 2,
    /// Hub or ledger cannot be reached.
    Connect = 3,
    /// A rule refuses it; the reason says which.
    Refused = 4,
    /// No such member, channel, payment or asset.
    NotFound = 5,
    /// Whether the payment was made is not known yet.
    Unknown = 6,
}

impl Failure {
    /// A failure with everything said.
    ///
    /// The crates' errors are one sentence, `what happened; what to do`: without a `fix` of its own it is taken from there.
    pub fn new(code: Code, reason: &str, what: impl fmt::Display, fix: impl fmt::Display) -> Self {
        let (mut what, mut fix) = (what.to_string(), fix.to_string());
        if let Some((happened, advice)) = what.rsplit_once("; ").filter(|_| fix.is_empty()) {
            (what, fix) = (happened.to_owned(), advice.to_owned());
        }
        Failure { code, reason: reason.to_owned(), what, fix }
    }

    /// The command line does not make sense.
    pub fn usage(what: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Failure::new(Code::Usage, "USAGE", what, fix)
    }

    /// There is no such thing.
    pub fn not_found(what: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Failure::new(Code::NotFound, "NOT_FOUND", what, fix)
    }

    /// Something cannot be reached.
    pub fn connect(what: impl fmt::Display, fix: impl fmt::Display) -> Self {
        Failure::new(Code::Connect, "CANNOT_CONNECT", what, fix)
    }

    /// Anything else; the text should already say what to do.
    pub fn other(what: impl fmt::Display) -> Self {
        Failure::new(Code::Other, "FAILED", what, "")
    }

    /// As JSON, for `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "ok": false, "error": { "code": self.code as u8, "reason": self.reason, "what": self.what, "fix": self.fix } })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if !self.fix.is_empty() {
            write!(f, "\n  what to do: {}", self.fix)?;
        }
        Ok(())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::other(format!("input or output failed: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_in_the_sentence_becomes_the_fix() {
        let said = Failure::other("the store is in use; by another process; stop that one first");
        assert_eq!(
            (said.what.as_str(), said.fix.as_str()),
            ("the store is in use; by another process", "stop that one first")
        );
        let given = Failure::usage("this; that", "do it");
        assert_eq!((given.what.as_str(), given.fix.as_str()), ("this; that", "do it"));
    }
}
