//! Amounts of money, in base units, with no arithmetic that can wrap.
//!
//! An [`Amount`] is what a contract stores: an unsigned 128-bit number of the asset's smallest unit. There is no `+`
//! on purpose: every sum says what happens when it does not fit. A [`Net`] is a signed balance as it follows from
//! cumulative totals; it is 256 bits wide, because two totals of 128 bits each do not fit fewer.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{I256, U256};
use serde::{Deserialize, Serialize};

/// A non-negative number of base units of one asset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Amount(#[serde(with = "decimal")] u128);

/// A signed 256-bit balance: what remains to a party after its cumulative totals are netted.
pub type Net = I256;

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// There is nothing to read.
    #[error("the amount is empty; write digits and a unit, as in 0.25USDH")]
    Empty,
    /// The text holds something besides digits and one decimal point.
    #[error("{text:?} is not an amount; write digits with at most one decimal point, as in 0.25")]
    NotANumber {
        /// What was given.
        text: String,
    },
    /// More decimal places than the asset has.
    #[error("{text:?} has {given} decimal places, the asset has {decimals}; round it to {decimals}")]
    TooPrecise {
        /// What was given.
        text: String,
        /// Decimal places in the text.
        given: usize,
        /// Decimal places of the asset.
        decimals: u8,
    },
    /// The number does not fit 128 bits.
    #[error("{text:?} is larger than the largest amount, 2^128 - 1 base units")]
    TooLarge {
        /// What was given.
        text: String,
    },
}

impl Amount {
    /// Nothing.
    pub const ZERO: Amount = Amount(0);
    /// The largest amount that the contract can hold.
    pub const MAX: Amount = Amount(u128::MAX);

    /// An amount of `base_units`.
    pub const fn new(base_units: u128) -> Self {
        Amount(base_units)
    }

    /// The number of base units.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// Whether this is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` if it does not fit.
    pub const fn checked_add(self, other: Amount) -> Option<Amount> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Amount(sum)),
            None => None,
        }
    }

    /// The difference, or `None` if `other` is larger.
    pub const fn checked_sub(self, other: Amount) -> Option<Amount> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Amount(difference)),
            None => None,
        }
    }

    /// The difference, or nothing if `other` is larger.
    pub const fn saturating_sub(self, other: Amount) -> Amount {
        Amount(self.0.saturating_sub(other.0))
    }

    /// The sum, or [`Amount::MAX`] if it does not fit.
    pub const fn saturating_add(self, other: Amount) -> Amount {
        Amount(self.0.saturating_add(other.0))
    }

    /// The product with a count, or `None` if it does not fit.
    pub const fn checked_mul(self, count: u128) -> Option<Amount> {
        match self.0.checked_mul(count) {
            Some(product) => Some(Amount(product)),
            None => None,
        }
    }

    /// The sum of many amounts, or `None` if it does not fit.
    pub fn checked_sum(amounts: impl IntoIterator<Item = Amount>) -> Option<Amount> {
        amounts.into_iter().try_fold(Amount::ZERO, Amount::checked_add)
    }

    /// Reads a decimal number of whole units, as in `"1.25"`, for an asset with that many `decimals`.
    pub fn parse_units(text: &str, decimals: u8) -> Result<Amount, AmountError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AmountError::Empty);
        }
        let owned = || text.to_owned();
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
            return Err(AmountError::NotANumber { text: owned() });
        }
        let significant = fraction.trim_end_matches('0');
        if significant.len() > usize::from(decimals) {
            return Err(AmountError::TooPrecise { text: owned(), given: significant.len(), decimals });
        }
        let padded = format!("{whole}{significant:0<width$}", width = usize::from(decimals));
        let trimmed = padded.trim_start_matches('0');
        let base_units = if trimmed.is_empty() { Ok(0) } else { trimmed.parse::<u128>() };
        base_units.map(Amount).map_err(|_| AmountError::TooLarge { text: owned() })
    }

    /// Writes the amount as a decimal number of whole units, without needless zeros: `"1.25"`.
    pub fn format_units(self, decimals: u8) -> String {
        let width = usize::from(decimals);
        let digits = format!("{:0>width$}", self.0, width = width.saturating_add(1));
        let (whole, fraction) = digits.split_at(digits.len().saturating_sub(width));
        let fraction = fraction.trim_end_matches('0');
        if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Amount {
    type Err = AmountError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Amount::parse_units(text, 0)
    }
}

impl From<Amount> for U256 {
    fn from(amount: Amount) -> U256 {
        U256::from(amount.0)
    }
}

/// `plus[0] + plus[1] - minus[0] - minus[1]`, exactly.
pub fn net(plus: [Amount; 2], minus: [Amount; 2]) -> Net {
    let total = |[a, b]: [Amount; 2]| I256::from_raw(U256::from(a.0).saturating_add(U256::from(b.0)));
    total(plus).saturating_sub(total(minus))
}

/// Amounts stand in JSON as decimal strings: many readers of JSON lose digits past 2^53.
mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(value: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(value) } else { serializer.serialize_u128(*value) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            u128::deserialize(deserializer)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn text_to_amount() {
        let too_large = "340282366920938463463374607431768211456";
        let table: &[(&str, u8, Result<u128, AmountError>)] = &[
            ("1", 6, Ok(1_000_000)),
            ("0.0001", 6, Ok(100)),
            (".5", 1, Ok(5)),
            ("1.", 0, Ok(1)),
            ("1.500000", 1, Ok(15)),
            ("340282366920938463463374607431768211455", 0, Ok(u128::MAX)),
            ("", 6, Err(AmountError::Empty)),
            (".", 6, Err(AmountError::NotANumber { text: ".".into() })),
            ("-1", 6, Err(AmountError::NotANumber { text: "-1".into() })),
            ("1.2.3", 6, Err(AmountError::NotANumber { text: "1.2.3".into() })),
            ("1e3", 6, Err(AmountError::NotANumber { text: "1e3".into() })),
            ("0.1234567", 6, Err(AmountError::TooPrecise { text: "0.1234567".into(), given: 7, decimals: 6 })),
            (too_large, 0, Err(AmountError::TooLarge { text: too_large.into() })),
        ];
        for (text, decimals, expected) in table {
            assert_eq!(Amount::parse_units(text, *decimals).map(Amount::get), *expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(base_units: u128, decimals in 0u8..=38) {
            let text = Amount::new(base_units).format_units(decimals);
            prop_assert_eq!(Amount::parse_units(&text, decimals), Ok(Amount::new(base_units)));
        }
    }

    #[test]
    fn nets_do_not_wrap_at_the_extremes() {
        let max = Amount::MAX;
        assert!(net([max, max], [Amount::ZERO, Amount::ZERO]) > Net::ZERO);
        assert!(net([Amount::ZERO, Amount::ZERO], [max, max]) < Net::ZERO);
        assert_eq!(net([max, max], [max, max]), Net::ZERO);
    }
}
