//! Who plays: one hub and two members, with keys that are the same in every play.

use std::sync::LazyLock;

use alloy_primitives::{Address, B256};
use proto::{AccountId, ChannelTerms, Domain, NATIVE, Scheme, SecretKey};

/// The challenge period of the plays, seconds.
pub const CHALLENGE_PERIOD_S: u64 = 86_400;
/// The time at which plays begin.
pub const START: u64 = 1_000_000;

/// The domain of the plays.
pub static DOMAIN: LazyLock<Domain> = LazyLock::new(|| Domain::new(31_337, Address::repeat_byte(0xad)));
/// The hub's voucher key.
pub static HUB_KEY: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::derive(Scheme::Ed25519, &[100; 32], "play"));
/// The members' voucher keys.
pub static MEMBER_KEYS: LazyLock<[SecretKey; 2]> =
    LazyLock::new(|| [1, 2].map(|n| SecretKey::derive(Scheme::Ed25519, &[n; 32], "play")));

/// The hub's payout account.
pub const HUB: Address = Address::repeat_byte(0xbb);

/// The terms of a member's channel.
pub fn terms(member: usize) -> ChannelTerms {
    let n = u8::try_from(member + 1).expect("there are two members");
    ChannelTerms {
        hub: HUB,
        hubKey: HUB_KEY.public().bytes,
        hubScheme: Scheme::Ed25519.number(),
        member: Address::repeat_byte(n),
        memberKey: MEMBER_KEYS[member].public().bytes,
        memberScheme: Scheme::Ed25519.number(),
        challengePeriod: u32::try_from(CHALLENGE_PERIOD_S).expect("a day fits"),
        salt: B256::repeat_byte(n),
    }
}

/// A member's account in the one asset of the plays.
pub fn account(member: usize) -> AccountId {
    AccountId { channel: DOMAIN.channel_id(&terms(member)), asset: NATIVE }
}
