//! Which transactions are likely to touch the same storage. This is all the ledger knows of the adjudicator, and only
//! the order of a block depends on it, never its result.
//!
//! A channel's money is in the vault `channel id % number of vaults`, and the channel id is the digest of the terms,
//! which every call about a channel carries.

use std::collections::HashMap;

use alloy::consensus::Transaction as _;
use alloy_primitives::{Address, B256, TxKind, U256, keccak256};
use alloy_sol_types::{SolCall, SolStruct};
use proto::{ChannelTerms, Domain};

use crate::genesis::Deployment;
use crate::transaction::Recovered;

mod abi {
    alloy_sol_types::sol!(IAdjudicator, "../contracts/artifacts/IAdjudicator.json");
}
use abi::IAdjudicator as Calls;

/// Bytes of encoded channel terms: eight static fields.
const TERMS_BYTES: usize = 8 * 32;

const WORD: usize = 32;

/// Transactions of one lane are expected to wait for each other; those of different lanes are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Only the sender is known to be shared.
    Sender(Address),
    /// They move money of one vault.
    Vault(u16),
}

/// Where the terms of the first channel stand in the arguments.
#[derive(Debug, Clone, Copy)]
enum Shape {
    /// They are the first argument.
    First,
    /// They begin the only argument, which is dynamic.
    Entry,
    /// They begin the entries of a list, which have a fixed size.
    FixedEntries,
    /// They begin the entries of a list, which have offsets.
    Entries,
}

/// Tells lanes apart.
#[derive(Debug)]
pub struct Spread {
    adjudicator: Address,
    separator: B256,
    terms_type: B256,
    shards: u16,
    shapes: HashMap<[u8; 4], Shape>,
}

impl Spread {
    /// For an adjudicator with a number of vaults.
    pub fn new(deployment: &Deployment, shards: u16) -> Self {
        let shapes = [
            (Calls::openCall::SELECTOR, Shape::First),
            (Calls::depositCall::SELECTOR, Shape::First),
            (Calls::startCloseCall::SELECTOR, Shape::First),
            (Calls::respondCall::SELECTOR, Shape::First),
            (Calls::finalizeCall::SELECTOR, Shape::First),
            (Calls::settleCall::SELECTOR, Shape::Entry),
            (Calls::fundManyCall::SELECTOR, Shape::FixedEntries),
            (Calls::finalizeManyCall::SELECTOR, Shape::FixedEntries),
            (Calls::settleManyCall::SELECTOR, Shape::Entries),
            (Calls::startCloseManyCall::SELECTOR, Shape::Entries),
            (Calls::respondManyCall::SELECTOR, Shape::Entries),
        ];
        Self {
            adjudicator: deployment.adjudicator,
            separator: Domain::new(deployment.chain_id, deployment.adjudicator).separator(),
            terms_type: keccak256(ChannelTerms::eip712_encode_type().as_bytes()),
            shards: shards.max(1),
            shapes: shapes.into_iter().collect(),
        }
    }

    /// The lane of a transaction. A call about several channels counts by its first: senders sort them by vault.
    pub fn lane(&self, tx: &Recovered) -> Lane {
        let vault = (tx.tx.kind() == TxKind::Call(self.adjudicator)).then(|| self.vault(tx.tx.input())).flatten();
        vault.map_or(Lane::Sender(tx.sender), Lane::Vault)
    }

    fn vault(&self, input: &[u8]) -> Option<u16> {
        let (selector, arguments) = input.split_first_chunk::<4>()?;
        let terms = terms(*self.shapes.get(selector)?, arguments)?;
        let hash = keccak256([self.terms_type.as_slice(), terms].concat());
        let channel = keccak256([&[0x19, 0x01], self.separator.as_slice(), hash.as_slice()].concat());
        Some((U256::from_be_bytes(channel.0) % U256::from(self.shards)).to::<u16>())
    }
}

/// The encoded terms of the first channel, if the arguments are long enough to hold them.
fn terms(shape: Shape, arguments: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let word = arguments.get(at..at.checked_add(WORD)?)?;
        usize::try_from(U256::from_be_slice(word)).ok()
    };
    let start = match shape {
        Shape::First => 0,
        Shape::Entry => word(0)?,
        Shape::FixedEntries => word(0)?.checked_add(WORD)?,
        Shape::Entries => {
            let entries = word(0)?.checked_add(WORD)?;
            entries.checked_add(word(entries)?)?
        }
    };
    arguments.get(start..start.checked_add(TERMS_BYTES)?)
}

#[cfg(test)]
mod tests {
    use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
    use alloy_primitives::{Bytes, Signature};

    use super::*;

    const SHARDS: u16 = 7;

    fn deployment() -> Deployment {
        let nobody = Address::ZERO;
        Deployment {
            chain_id: 1337,
            genesis_hash: B256::ZERO,
            adjudicator: Address::repeat_byte(0xad),
            usdh: nobody,
            multicall3: nobody,
            ed25519_precompile: nobody,
        }
    }

    fn channel(salt: u8) -> (Calls::Terms, u16) {
        let terms = Calls::Terms {
            hub: Address::repeat_byte(1),
            hubKey: B256::repeat_byte(2),
            hubScheme: 1,
            member: Address::repeat_byte(3),
            memberKey: B256::repeat_byte(4),
            memberScheme: 2,
            challengePeriod: 60,
            salt: B256::repeat_byte(salt),
        };
        let signed = ChannelTerms {
            hub: terms.hub,
            hubKey: terms.hubKey,
            hubScheme: 1,
            member: terms.member,
            memberKey: terms.memberKey,
            memberScheme: 2,
            challengePeriod: 60,
            salt: terms.salt,
        };
        let id = Domain::new(1337, deployment().adjudicator).channel_id(&signed);
        (terms, (U256::from_be_bytes(id.0.0) % U256::from(SHARDS)).to())
    }

    fn proof() -> Calls::Proof {
        Calls::Proof { signature: Bytes::from([9; 65]), batched: false, flush: 0, path: vec![] }
    }

    fn settle(terms: Calls::Terms) -> Calls::SettleEntry {
        Calls::SettleEntry {
            terms,
            asset: Address::ZERO,
            seq: 1,
            memberWithdrawn: 2,
            hubWithdrawn: 3,
            validUntil: 4,
            close: true,
            memberSignature: Bytes::from([7; 65]),
            hubProof: proof(),
        }
    }

    fn evidence() -> Calls::Evidence {
        Calls::Evidence { memberVouchers: vec![], memberTicks: vec![], hubVouchers: vec![], hubReceipts: vec![] }
    }

    /// Every call about channels, with the first of them as given.
    fn calls(first: &Calls::Terms, second: &Calls::Terms) -> Vec<(&'static str, Vec<u8>)> {
        let (asset, signature) = (Address::ZERO, Bytes::from([5; 65]));
        let funding = Calls::Funding { kind: 0, data: Bytes::new() };
        let fund = |terms: &Calls::Terms| Calls::FundEntry { terms: terms.clone(), asset, side: 0, amount: 1 };
        let close = |terms: &Calls::Terms| Calls::CloseEntry {
            terms: terms.clone(),
            asset,
            validUntil: 1,
            side: 0,
            signature: signature.clone(),
        };
        let respond = |terms: &Calls::Terms| Calls::RespondEntry { terms: terms.clone(), asset, evidence: evidence() };
        let finalize = |terms: &Calls::Terms| Calls::FinalizeEntry { terms: terms.clone(), asset };
        let terms = first.clone();
        let open = Calls::openCall { terms, consent: signature.clone(), asset, amount: 1, funding: funding.clone() };
        let terms = first.clone();
        let deposit = Calls::depositCall { terms, asset, side: 1, amount: 1, funding };
        let terms = first.clone();
        let start = Calls::startCloseCall { terms, asset, validUntil: 1, side: 1, signature: signature.clone() };
        vec![
            ("open", open.abi_encode()),
            ("deposit", deposit.abi_encode()),
            ("startClose", start.abi_encode()),
            ("respond", Calls::respondCall { terms: first.clone(), asset, evidence: evidence() }.abi_encode()),
            ("finalize", Calls::finalizeCall { terms: first.clone(), asset }.abi_encode()),
            ("settle", Calls::settleCall { entry: settle(first.clone()) }.abi_encode()),
            ("fundMany", Calls::fundManyCall { entries: vec![fund(first), fund(second)] }.abi_encode()),
            ("finalizeMany", Calls::finalizeManyCall { entries: vec![finalize(first), finalize(second)] }.abi_encode()),
            (
                "settleMany",
                Calls::settleManyCall { entries: vec![settle(first.clone()), settle(second.clone())] }.abi_encode(),
            ),
            ("startCloseMany", Calls::startCloseManyCall { entries: vec![close(first), close(second)] }.abi_encode()),
            ("respondMany", Calls::respondManyCall { entries: vec![respond(first), respond(second)] }.abi_encode()),
        ]
    }

    #[test]
    fn every_call_about_channels_is_in_the_lane_of_its_first_channels_vault() {
        let spread = Spread::new(&deployment(), SHARDS);
        for salt in 0..20 {
            let ((first, vault), (second, _)) = (channel(salt), channel(salt + 100));
            for (name, input) in calls(&first, &second) {
                assert_eq!(spread.vault(&input), Some(vault), "{name}, salt {salt}");
            }
        }
    }

    #[test]
    fn calldata_that_is_cut_or_points_nowhere_has_no_vault_and_harms_nothing() {
        let spread = Spread::new(&deployment(), SHARDS);
        let (first, _) = channel(1);
        for (name, input) in calls(&first, &first) {
            for length in 0..4 + TERMS_BYTES {
                assert_eq!(spread.vault(&input[..length]), None, "{name}, {length} bytes");
            }
            let far = [&input[..4], &[0xff; 4 * TERMS_BYTES]].concat();
            spread.vault(&far);
        }
        let other = [&[1, 2, 3, 4][..], &[0; 1_000]].concat();
        assert_eq!(spread.vault(&other), None);
    }

    #[test]
    fn only_calls_of_the_adjudicator_are_in_a_vaults_lane() {
        let spread = Spread::new(&deployment(), SHARDS);
        let ((terms, vault), sender) = (channel(3), Address::repeat_byte(0x5e));
        let input = Bytes::from(Calls::finalizeCall { terms, asset: Address::ZERO }.abi_encode());
        for (name, to, expected) in [
            ("the adjudicator", TxKind::Call(deployment().adjudicator), Lane::Vault(vault)),
            ("another contract", TxKind::Call(Address::repeat_byte(0xcc)), Lane::Sender(sender)),
            ("a creation", TxKind::Create, Lane::Sender(sender)),
        ] {
            let tx = TxEip1559 { to, input: input.clone(), ..TxEip1559::default() };
            let tx = TxEnvelope::from(tx.into_signed(Signature::test_signature()));
            let tx = Recovered { raw: Bytes::new(), hash: *tx.tx_hash(), sender, tx };
            assert_eq!(spread.lane(&tx), expected, "{name}");
        }
    }
}
