//! Identifiers. Each is a type of its own, so that one cannot be passed where another is meant.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};

/// The asset of an account: a token's address, or [`NATIVE`] for the chain's own coin.
pub type Asset = Address;

/// The asset that stands for the chain's own coin.
pub const NATIVE: Asset = Address::ZERO;

/// Number of lanes in the member's direction; a lane number is below it (`protocol` rule: evidence fits one call).
pub const LANES: u32 = 64;

/// The digest of a channel's terms: 32 bytes that name the channel on and off the ledger.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChannelId(pub B256);

/// A payment's identifier: 16 bytes that its payer chose; it has one outcome for ever within the payer's channel.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PaymentId(pub alloy_primitives::FixedBytes<16>);

/// One asset of one channel: the unit that has books, a status, a deadline and a settlement number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AccountId {
    /// The channel.
    pub channel: ChannelId,
    /// The asset.
    pub asset: Asset,
}

/// A side of a channel. The number is what typed data carries as `payer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Side {
    /// The member.
    Member = 0,
    /// The hub.
    Hub = 1,
}

/// A text that is no identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: write 0x and {digits} hexadecimal digits")]
pub struct IdError {
    text: String,
    what: &'static str,
    digits: usize,
}

impl ChannelId {
    /// The hub itself as a payee: a payment to it is income.
    pub const HUB: ChannelId = ChannelId(B256::ZERO);

    /// Reads exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        B256::try_from(bytes).ok().map(ChannelId)
    }

    /// The 32 bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl PaymentId {
    /// Reads exactly 16 bytes.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        alloy_primitives::FixedBytes::try_from(bytes).ok().map(PaymentId)
    }

    /// The 16 bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// A fresh identifier from the operating system's randomness.
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        PaymentId(bytes.into())
    }
}

impl Side {
    /// The other side.
    pub fn other(self) -> Side {
        match self {
            Side::Member => Side::Hub,
            Side::Hub => Side::Member,
        }
    }
}

macro_rules! hex_text {
    ($name:ident, $what:literal, $digits:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "0x{}", hex::encode(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = || IdError { text: text.to_owned(), what: $what, digits: $digits };
                let digits = text.strip_prefix("0x").unwrap_or(text);
                let bytes = hex::decode(digits).map_err(|_| error())?;
                Self::from_slice(&bytes).ok_or_else(error)
            }
        }
    };
}
hex_text!(ChannelId, "a channel id", 64);
hex_text!(PaymentId, "a payment id", 32);

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "channel {} asset {}", self.channel, self.asset)
    }
}
