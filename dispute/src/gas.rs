//! What operations were measured to take, for those who tell people what it will cost.
//!
//! The figures are those of `docs/gas.md`, which a test compares; nothing that decides about money depends on them.

/// An operation as it was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Its name in the report.
    pub operation: &'static str,
    /// Gas of the whole transaction, or of each entry where the operation is one of a batch of 100.
    pub gas: u64,
}

/// Entries of the batches that were measured.
pub const BATCH: u64 = 100;

/// A settlement that leaves the account open and pays both.
pub const SETTLE: Measured = measured("settle a part, pays both", 77_384);
/// A cooperative close that pays both.
pub const SETTLE_AND_CLOSE: Measured = measured("settle and close, pays both", 77_491);
/// The start of a unilateral close.
pub const START_CLOSE: Measured = measured("startClose by a payout account", 34_882);
/// A response with one voucher.
pub const RESPOND: Measured = measured("respond with a voucher, first of the account", 45_819);
/// A payout after the challenge period.
pub const FINALIZE: Measured = measured("finalize, pays both", 61_729);
/// Fetching what waits in a vault.
pub const CLAIM: Measured = measured("claim", 44_633);
/// [`START_CLOSE`] as an entry of a batch.
pub const START_CLOSE_OF_MANY: Measured = measured("startClose, each of 100", 13_939);
/// [`RESPOND`] as an entry of a batch.
pub const RESPOND_OF_MANY: Measured = measured("respond, each of 100", 24_734);
/// [`FINALIZE`] as an entry of a batch.
pub const FINALIZE_OF_MANY: Measured = measured("finalize, each of 100", 23_064);

const fn measured(operation: &'static str, gas: u64) -> Measured {
    Measured { operation, gas }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_are_those_of_the_gas_report() {
        let report = include_str!("../../docs/gas.md");
        let rows = [
            SETTLE,
            SETTLE_AND_CLOSE,
            START_CLOSE,
            RESPOND,
            FINALIZE,
            CLAIM,
            START_CLOSE_OF_MANY,
            RESPOND_OF_MANY,
            FINALIZE_OF_MANY,
        ];
        for Measured { operation, gas } in rows {
            let row = report.lines().find(|line| line.starts_with(&format!("| {operation} |")));
            let figure = row.and_then(|row| row.split('|').nth(2)).map(|figure| figure.trim().replace(',', ""));
            assert_eq!(figure, Some(gas.to_string()), "{operation}: correct the constant after a new report");
        }
    }
}
