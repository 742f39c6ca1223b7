//! What programs hash is what the contract hashes, for every struct and random bodies.

use alloy_primitives::{Address, B256, keccak256};
use dispute::adjudicator::abi::IAdjudicator as contract;
use payhub_tests::chains::World;
use payhub_tests::dice::Dice;
use proto::ChannelTerms;
use proto::batch::{BatchTree, root_of};
use proto::typed::{Batch, CloseRequest, Receipt, Settlement, TickVoucher, Voucher};

use super::raw;

super::on_both_ledgers![every_digest_and_root_is_the_contracts];

const ROUNDS: usize = 12;

async fn every_digest_and_root_is_the_contracts(world: &World) {
    let mut random = Random::new();
    let (domain, to) = (world.domain(), world.adjudicator().address());
    assert_eq!(world.view(to, &contract::domainSeparatorCall {}).await, domain.separator());
    for round in 0..ROUNDS {
        let at = format!("round {round} of seed {}", random.seed);
        let terms = ChannelTerms {
            hub: random.address(),
            hubKey: random.word(),
            hubScheme: random.byte(),
            member: random.address(),
            memberKey: random.word(),
            memberScheme: random.byte(),
            challengePeriod: random.half(),
            salt: random.word(),
        };
        let theirs = world.view(to, &contract::channelIdOfCall { terms: raw::terms(&terms) }).await;
        assert_eq!(domain.channel_id(&terms).0, theirs, "terms, {at}");

        let (channel, asset) = (random.word(), random.address());
        macro_rules! same {
            ($view:ident, $argument:ident, $name:ident { $($field:ident),* }, $body:expr) => {{
                let body: $name = $body;
                let $argument = contract::$name { $($field: body.$field.clone()),* };
                assert_eq!(domain.digest(&body), world.view(to, &contract::$view { $argument }).await, "{}, {at}", stringify!($name));
            }};
        }
        same!(
            voucherDigestCall,
            voucher,
            Voucher { channelId, asset, payer, lane, cumulative, credits, memo },
            Voucher {
                channelId: channel,
                asset,
                payer: random.byte(),
                lane: random.half(),
                cumulative: random.amount(),
                credits: random.number(),
                memo: random.word(),
            }
        );
        same!(
            tickVoucherDigestCall,
            voucher,
            TickVoucher { channelId, asset, lane, cumulative, tick, ticks, anchor, memo },
            TickVoucher {
                channelId: channel,
                asset,
                lane: random.half(),
                cumulative: random.amount(),
                tick: random.amount(),
                ticks: random.half(),
                anchor: random.word(),
                memo: random.word(),
            }
        );
        same!(
            receiptDigestCall,
            receipt,
            Receipt { channelId, asset, credit, amount, total, payments },
            Receipt {
                channelId: channel,
                asset,
                credit: random.number(),
                amount: random.amount(),
                total: random.amount(),
                payments: random.word(),
            }
        );
        same!(
            settlementDigestCall,
            settlement,
            Settlement { channelId, asset, seq, memberWithdrawn, hubWithdrawn, validUntil, close },
            Settlement {
                channelId: channel,
                asset,
                seq: random.number(),
                memberWithdrawn: random.amount(),
                hubWithdrawn: random.amount(),
                validUntil: random.number(),
                close: random.byte().is_multiple_of(2),
            }
        );
        same!(
            closeRequestDigestCall,
            request,
            CloseRequest { channelId, asset, validUntil },
            CloseRequest { channelId: channel, asset, validUntil: random.number() }
        );
        same!(batchDigestCall, batch, Batch { flush, root }, Batch { flush: random.number(), root: random.word() });

        let digests: Vec<B256> = (0..=random.byte() % 40).map(|_| random.word()).collect();
        let tree = BatchTree::new(&digests).expect("there are leaves");
        let chosen = usize::from(random.byte()) % digests.len();
        let (digest, path) = (digests[chosen], tree.path(chosen));
        assert_eq!(root_of(&digest, &path), Some(tree.root()), "{at}");
        assert_eq!(world.view(to, &contract::batchRootCall { digest, path }).await, tree.root(), "root, {at}");
    }
}

/// Values that follow from a seed, which every failure names.
struct Random {
    seed: u64,
    dice: Dice,
}

impl Random {
    fn new() -> Self {
        let seed = u64::from_be_bytes(B256::random()[..8].try_into().expect("eight of 32 bytes"));
        Random { seed, dice: Dice::new(seed) }
    }

    fn word(&mut self) -> B256 {
        keccak256(self.dice.bits().to_be_bytes())
    }

    fn address(&mut self) -> Address {
        Address::from_word(self.word())
    }

    fn byte(&mut self) -> u8 {
        self.word()[0]
    }

    fn half(&mut self) -> u32 {
        u32::from_be_bytes(self.word()[..4].try_into().expect("four of 32 bytes"))
    }

    fn number(&mut self) -> u64 {
        self.dice.bits()
    }

    /// Any amount; the largest more often than chance would have it.
    fn amount(&mut self) -> u128 {
        if self.dice.chance(25) {
            return u128::MAX;
        }
        u128::from_be_bytes(self.word()[..16].try_into().expect("16 of 32 bytes"))
    }
}
