//! Packing many entries into as few transactions as fit.
//!
//! A transaction is bounded by gas (EIP-7825 limits one to 2^24) and by bytes (nodes refuse larger ones). Entries are
//! sorted so that those of one asset and vault are neighbours: the first of them pays for touching the vault's balance,
//! and deposits of neighbours are pulled with one transfer. One that fails is skipped by the contract with an
//! `EntryRefused` event that names its place, which is the place in [`Packed::orders`].

use proto::{Asset, ChannelId};

use crate::adjudicator::{
    Adjudicator, Call, CloseOrder, EventKind, FinalizeOrder, FundOrder, LedgerEvent, Refusal, RespondOrder, SettleOrder,
};

/// Most gas of one transaction: below the 16,777,216 of EIP-7825, with room for an estimate's error.
pub const TX_GAS_MAX: u64 = 16_000_000;
/// Most bytes of calldata of one transaction: nodes refuse transactions above 128 KiB.
pub const TX_BYTES_MAX: usize = 120_000;

/// One transaction for several entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed<T> {
    /// The call.
    pub call: Call,
    /// Its entries, in the order of the call.
    pub orders: Vec<T>,
}

/// Sorts channels of one vault next to each other, without asking the contract how many vaults it has.
///
/// The vault is the id modulo the number of vaults, of which there are at most 128. For each power of two, ids that are
/// equal modulo it have equal lowest bits, and read in reverse those come first. For other numbers it is just an order.
pub fn vault_order(channel: ChannelId) -> u8 {
    (channel.0[31] & 0x7f).reverse_bits()
}

/// Packs settlements.
pub fn settle(adjudicator: &Adjudicator, orders: Vec<SettleOrder>) -> Vec<Packed<SettleOrder>> {
    let key = |order: &SettleOrder| (ChannelId(order.settlement().channelId), order.settlement().asset);
    pack(orders, key, |entries| adjudicator.settle_many(entries))
}

/// Packs the starts of unilateral closes.
pub fn start_close(adjudicator: &Adjudicator, orders: Vec<CloseOrder>) -> Vec<Packed<CloseOrder>> {
    let key = |order: &CloseOrder| (adjudicator.domain().channel_id(&order.terms), order.asset);
    pack(orders, key, |entries| adjudicator.start_close_many(entries))
}

/// Packs responses.
pub fn respond(adjudicator: &Adjudicator, orders: Vec<RespondOrder>) -> Vec<Packed<RespondOrder>> {
    let key = |order: &RespondOrder| (order.evidence.account().channel, order.evidence.account().asset);
    pack(orders, key, |entries| adjudicator.respond_many(entries))
}

/// Packs payouts.
pub fn finalize(adjudicator: &Adjudicator, orders: Vec<FinalizeOrder>) -> Vec<Packed<FinalizeOrder>> {
    let key = |order: &FinalizeOrder| (adjudicator.domain().channel_id(&order.terms), order.asset);
    pack(orders, key, |entries| adjudicator.finalize_many(entries))
}

/// Packs deposits.
pub fn fund(adjudicator: &Adjudicator, orders: Vec<FundOrder>) -> Vec<Packed<FundOrder>> {
    let key = |order: &FundOrder| (adjudicator.domain().channel_id(&order.terms), order.asset);
    pack(orders, key, |entries| adjudicator.fund_many(entries))
}

/// The entries of a mined batch that had no effect: their places and why.
pub fn refused(events: &[LedgerEvent]) -> impl Iterator<Item = (usize, &Refusal)> {
    events.iter().filter_map(|event| match &event.kind {
        EventKind::EntryRefused { index, refusal } => usize::try_from(*index).ok().map(|index| (index, refusal)),
        _ => None,
    })
}

fn pack<T>(
    mut orders: Vec<T>,
    account: impl Fn(&T) -> (ChannelId, Asset),
    many: impl Fn(&[T]) -> Call,
) -> Vec<Packed<T>> {
    orders.sort_by_cached_key(|order| {
        let (channel, asset) = account(order);
        (asset, vault_order(channel))
    });
    let mut packs: Vec<Vec<T>> = Vec::new();
    let frame = many(&[]);
    let (mut gas, mut bytes) = (0u64, 0usize);
    for order in orders {
        let alone = many(std::slice::from_ref(&order));
        let more_gas = gas.saturating_add(alone.gas_min.saturating_sub(frame.gas_min));
        let more_bytes = bytes.saturating_add(alone.data.len().saturating_sub(frame.data.len()));
        match packs.last_mut() {
            Some(open) if more_gas <= TX_GAS_MAX && more_bytes <= TX_BYTES_MAX => {
                open.push(order);
                (gas, bytes) = (more_gas, more_bytes);
            }
            Some(_) | None => {
                packs.push(vec![order]);
                (gas, bytes) = (alone.gas_min, alone.data.len());
            }
        }
    }
    packs.into_iter().map(|orders| Packed { call: many(&orders), orders }).collect()
}

#[cfg(test)]
mod tests {
    use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
    use alloy_sol_types::SolError;
    use proto::keys::{Scheme, SecretKey};
    use proto::typed::Settlement;
    use proto::{ChannelTerms, Domain, Proven, Signed};

    use super::*;
    use crate::adjudicator::{ClaimError, RefusalClass, abi::IAdjudicator as contract};

    fn terms(salt: u64) -> ChannelTerms {
        ChannelTerms {
            hub: Address::repeat_byte(1),
            hubKey: B256::repeat_byte(2),
            hubScheme: 1,
            member: Address::repeat_byte(3),
            memberKey: B256::repeat_byte(4),
            memberScheme: 1,
            challengePeriod: 60,
            salt: U256::from(salt).into(),
        }
    }

    fn settlement(seq: u64) -> Settlement {
        Settlement {
            channelId: B256::ZERO,
            asset: Address::ZERO,
            seq,
            memberWithdrawn: 1,
            hubWithdrawn: 2,
            validUntil: 3,
            close: false,
        }
    }

    #[test]
    fn neighbours_in_a_batch_share_their_vault_however_many_there_are() {
        let channels: Vec<ChannelId> = (0..2_000u64).map(|i| ChannelId(keccak256(i.to_be_bytes()))).collect();
        let mut sorted = channels.clone();
        sorted.sort_by_key(|channel| vault_order(*channel));
        for vaults in [1, 2, 4, 8, 16, 32, 64, 128] {
            let vault = |channel: &ChannelId| U256::from_be_bytes(channel.0.0) % U256::from(vaults);
            let runs = sorted.chunk_by(|a, b| vault(a) == vault(b)).count();
            assert_eq!(runs, vaults, "each of {vaults} vaults comes once");
        }

        // Whatever is packed is sorted, by asset first, and keeps what it is.
        let domain = Domain::new(1, Address::ZERO);
        let order = |salt: u64| FundOrder {
            terms: terms(salt),
            asset: Address::repeat_byte(u8::try_from(salt % 2).expect("0 or 1")),
            side: proto::Side::Hub,
            amount: proto::Amount::new(salt.into()),
        };
        let packed = fund(&Adjudicator::new(domain), (0..40).map(order).collect());
        let orders: Vec<&FundOrder> = packed.iter().flat_map(|pack| &pack.orders).collect();
        assert!(orders.is_sorted_by_key(|order| (order.asset, vault_order(domain.channel_id(&order.terms)))));
        let mut amounts: Vec<u128> = orders.iter().map(|order| order.amount.get()).collect();
        amounts.sort_unstable();
        assert_eq!(amounts, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn packs_fit_keep_the_order_of_one_vault_and_are_as_full_as_they_can_be() {
        let domain = Domain::new(1, Address::ZERO);
        let adjudicator = Adjudicator::new(domain);
        let key = SecretKey::derive(Scheme::Ed25519, &[1; 32], "key");
        let order = |seq: u64| {
            let (member, hub) =
                (Signed::sign(&domain, &key, settlement(seq)), Proven::sign(&domain, &key, settlement(seq)));
            SettleOrder::new(terms(seq), member, hub).expect("one settlement")
        };
        for count in [0, 1, 7, 300] {
            let packs = settle(&adjudicator, (0..count).map(order).collect());
            let seqs: Vec<u64> = packs.iter().flat_map(|p| &p.orders).map(|o| o.settlement().seq).collect();
            assert_eq!(seqs, (0..count).collect::<Vec<_>>());
            for pack in &packs {
                assert!(pack.call.gas_min <= TX_GAS_MAX && pack.call.data.len() <= TX_BYTES_MAX);
            }
            for pair in packs.windows(2) {
                let mut more = pair[0].orders.clone();
                more.push(pair[1].orders[0].clone());
                let call = adjudicator.settle_many(&more);
                let full = call.gas_min > TX_GAS_MAX || call.data.len() > TX_BYTES_MAX;
                assert!(full, "{} entries", pair[0].orders.len());
            }
        }
        let two = (Signed::sign(&domain, &key, settlement(1)), Proven::sign(&domain, &key, settlement(2)));
        assert!(matches!(SettleOrder::new(terms(0), two.0, two.1), Err(ClaimError::SignedApart { .. })));
    }

    #[test]
    fn refusals_say_what_happened_and_whether_to_try_again() {
        let zero = B256::ZERO;
        let cases: [(Vec<u8>, RefusalClass, &str); 7] = [
            (
                contract::NothingRaised { memberPaid: 3, hubPaid: 4 }.abi_encode(),
                RefusalClass::Moot,
                "nothing above 3 and 4",
            ),
            (
                contract::AccountFinal { channelId: zero, asset: Address::ZERO }.abi_encode(),
                RefusalClass::Moot,
                "is final",
            ),
            (
                contract::ChallengeRunning { deadline: 9, timestamp: U256::from(5) }.abi_encode(),
                RefusalClass::Early,
                "until 9, it is 5",
            ),
            (contract::BadSignature { side: 1, digest: zero }.abi_encode(), RefusalClass::Wrong, "is not good"),
            (alloy_sol_types::Revert::from("no luck").abi_encode(), RefusalClass::Wrong, "no luck"),
            (Vec::new(), RefusalClass::Wrong, "without a reason"),
            (vec![1, 2, 3, 4, 5], RefusalClass::Wrong, "0x0102030405"),
        ];
        for (data, class, text) in cases {
            let refusal = Refusal::decode(Bytes::from(data));
            assert_eq!(refusal.class, class, "{refusal}");
            assert!(refusal.text.contains(text), "{refusal}");
        }
    }
}
