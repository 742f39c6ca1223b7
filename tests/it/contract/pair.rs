//! A hub and a member with a channel, and everything that they can sign.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use dispute::adjudicator::Claim;
use dispute::{CloseOrder, Evidence, FinalizeOrder, Funding, LedgerBooks, RespondOrder, SettleOrder, TickClaim};
use payhub_tests::chains::{Person, World};
use proto::batch::{BatchTree, sign_batch};
use proto::typed::{CloseRequest, Receipt, Settlement, TickVoucher, Voucher};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, Domain, Proven, PublicKey, SecretKey, Side, Signed};
use sha2::{Digest, Sha256};

/// Challenge period of the stories. Long: no story may lose a race against a slow machine.
pub const PERIOD_S: u32 = 36_000;

/// A time that does not come.
pub const NEVER: u64 = u64::MAX;

#[derive(Clone)]
pub struct Pair {
    pub domain: Domain,
    pub terms: ChannelTerms,
    pub asset: Asset,
    pub member_key: SecretKey,
    pub hub_key: SecretKey,
}

pub fn a(base_units: u128) -> Amount {
    Amount::new(base_units)
}

impl Pair {
    /// A channel of Alice with the hub; the name makes it another one than those of other names.
    pub fn new(world: &World, asset: Asset, name: &str) -> Pair {
        Pair::between(world, Person::Hub, Person::Alice, asset, name)
    }

    pub fn between(world: &World, hub: Person, member: Person, asset: Asset, name: &str) -> Pair {
        let key = |who: &str| SecretKey::derive(world.scheme(), &keccak256(who).0, "story");
        let (hub_key, member_key) = (key(&format!("{hub:?}")), key(&format!("{member:?}")));
        let terms = ChannelTerms {
            hub: world.address(hub),
            hubKey: hub_key.public().bytes,
            hubScheme: hub_key.scheme().number(),
            member: world.address(member),
            memberKey: member_key.public().bytes,
            memberScheme: member_key.scheme().number(),
            challengePeriod: PERIOD_S,
            salt: keccak256(name),
        };
        Pair { domain: world.domain(), terms, asset, member_key, hub_key }
    }

    /// A channel whose money is, or is not, in the vault that `vault` names.
    pub async fn placed(self, world: &World, vault: Address, same: bool) -> Pair {
        let mut pair = self;
        while (pair.vault(world).await == vault) != same {
            pair.terms.salt = keccak256(pair.terms.salt);
        }
        pair
    }

    /// The same channel, another asset.
    pub fn with_asset(&self, asset: Asset) -> Pair {
        Pair { asset, ..self.clone() }
    }

    /// The same people, another voucher key of the member.
    pub fn with_member_key(&self, key: PublicKey) -> Pair {
        let mut pair = self.clone();
        (pair.terms.memberKey, pair.terms.memberScheme) = (key.bytes, key.scheme.number());
        pair
    }

    pub fn id(&self) -> ChannelId {
        self.domain.channel_id(&self.terms)
    }

    pub fn account(&self) -> AccountId {
        AccountId { channel: self.id(), asset: self.asset }
    }

    // ------------------------------------------------------------ on the ledger

    /// Alice opens by her own transaction.
    pub async fn open(&self, world: &World, amount: u128) {
        let call = world.adjudicator().open(&self.terms, Bytes::new(), self.asset, a(amount), &Funding::Caller);
        world.send(self.terms.member, call).await;
    }

    pub async fn deposit(&self, world: &World, side: Side, amount: u128) {
        let payer = match side {
            Side::Member => self.terms.member,
            Side::Hub => self.terms.hub,
        };
        let call = world.adjudicator().deposit(&self.terms, self.asset, side, a(amount), &Funding::Caller);
        world.send(payer, call).await;
    }

    /// Opens with a deposit of each side.
    pub async fn funded(self, world: &World, member: u128, hub: u128) -> Pair {
        self.open(world, member).await;
        if hub > 0 {
            self.deposit(world, Side::Hub, hub).await;
        }
        self
    }

    /// The member starts a unilateral close.
    pub async fn start_close(&self, world: &World) {
        world.send(self.terms.member, world.adjudicator().start_close(&self.close_order(None))).await;
    }

    pub async fn respond(&self, world: &World, claims: impl IntoIterator<Item = Claim>) {
        world.send(world.address(Person::Anyone), world.adjudicator().respond(&self.response(claims))).await;
    }

    /// Lets the challenge period pass and finalizes; what each side got.
    pub async fn finalize(&self, world: &World) -> (u128, u128) {
        world.pass(u64::from(PERIOD_S)).await;
        let mined =
            world.send(world.address(Person::Anyone), world.adjudicator().finalize(&self.finalize_order())).await;
        let paid = mined.events.iter().find_map(|event| match &event.kind {
            dispute::EventKind::Finalized { account, to_member, to_hub } if *account == self.account() => {
                Some((to_member.get(), to_hub.get()))
            }
            _ => None,
        });
        paid.expect("a payout is reported")
    }

    pub async fn books(&self, world: &World) -> LedgerBooks {
        world.books(&self.account()).await
    }

    pub async fn vault(&self, world: &World) -> Address {
        world.chain().vault_of(self.id()).await.expect("the chain answers")
    }

    pub async fn claimable(&self, world: &World, owner: Address) -> U256 {
        let vault = self.vault(world).await;
        world.chain().claimable(vault, self.asset, owner).await.expect("the chain answers")
    }

    // ------------------------------------------------------------ signed by both

    pub fn settlement(&self, seq: u64, member: u128, hub: u128, close: bool) -> Settlement {
        Settlement {
            channelId: self.id().0,
            asset: self.asset,
            seq,
            memberWithdrawn: member,
            hubWithdrawn: hub,
            validUntil: NEVER,
            close,
        }
    }

    pub fn signed(&self, settlement: Settlement) -> SettleOrder {
        let member = Signed::sign(&self.domain, &self.member_key, settlement.clone());
        let hub = Proven::sign(&self.domain, &self.hub_key, settlement);
        SettleOrder::new(self.terms.clone(), member, hub).expect("both signed the same")
    }

    pub fn close_order(&self, by: Option<Side>) -> CloseOrder {
        let request = by.map(|side| {
            let key = match side {
                Side::Member => &self.member_key,
                Side::Hub => &self.hub_key,
            };
            (side, Signed::sign(&self.domain, key, self.close_request(NEVER)))
        });
        CloseOrder { terms: self.terms.clone(), asset: self.asset, request }
    }

    pub fn close_request(&self, valid_until: u64) -> CloseRequest {
        CloseRequest { channelId: self.id().0, asset: self.asset, validUntil: valid_until }
    }

    pub fn finalize_order(&self) -> FinalizeOrder {
        FinalizeOrder { terms: self.terms.clone(), asset: self.asset }
    }

    // ------------------------------------------------------------ evidence

    pub fn voucher_body(&self, lane: u32, cumulative: u128) -> Voucher {
        Voucher {
            channelId: self.id().0,
            asset: self.asset,
            payer: Side::Member as u8,
            lane,
            cumulative,
            credits: 0,
            memo: keccak256(lane.to_be_bytes()),
        }
    }

    pub fn hub_voucher_body(&self, cumulative: u128, credits: u64) -> Voucher {
        Voucher { payer: Side::Hub as u8, credits, ..self.voucher_body(0, cumulative) }
    }

    pub fn receipt_body(&self, credit: u64, amount: u128, total: u128) -> Receipt {
        Receipt { channelId: self.id().0, asset: self.asset, credit, amount, total, payments: keccak256("payments") }
    }

    pub fn tick_body(&self, lane: u32, cumulative: u128, tick: u128, ticks: u32) -> TickVoucher {
        let anchor = sha256_times(self.tick_secret(lane), ticks);
        let memo = keccak256("ticks");
        TickVoucher { channelId: self.id().0, asset: self.asset, lane, cumulative, tick, ticks, anchor, memo }
    }

    /// What a payer reveals for tick `index` of a voucher of `ticks`.
    pub fn preimage(&self, lane: u32, ticks: u32, index: u32) -> B256 {
        sha256_times(self.tick_secret(lane), ticks - index)
    }

    pub fn voucher(&self, lane: u32, cumulative: u128) -> Claim {
        Claim::Member(Signed::sign(&self.domain, &self.member_key, self.voucher_body(lane, cumulative)))
    }

    pub fn ticks(&self, body: TickVoucher, index: u32) -> Claim {
        let preimage = self.preimage(body.lane, body.ticks, index);
        let signed = Signed::sign(&self.domain, &self.member_key, body);
        Claim::Ticks(TickClaim::verify(signed, index, preimage).expect("the chain leads to the anchor"))
    }

    pub fn hub_voucher(&self, cumulative: u128, credits: u64) -> Claim {
        Claim::Hub(Proven::sign(&self.domain, &self.hub_key, self.hub_voucher_body(cumulative, credits)))
    }

    pub fn receipt(&self, credit: u64, amount: u128, total: u128) -> Claim {
        Claim::Receipt(Proven::sign(&self.domain, &self.hub_key, self.receipt_body(credit, amount, total)))
    }

    /// One flush of the hub with a voucher, a receipt and a settlement among `others` leaves of other channels.
    pub fn flush(&self, number: u64, others: u8, voucher: Voucher, receipt: Receipt, settlement: Settlement) -> Flush {
        let mut digests =
            vec![self.domain.digest(&voucher), self.domain.digest(&receipt), self.domain.digest(&settlement)];
        digests.extend((0..others).map(|i| keccak256([i])));
        let tree = BatchTree::new(&digests).expect("there are leaves");
        let signature = sign_batch(&self.domain, &self.hub_key, number, tree.root());
        let domain = &self.domain;
        Flush {
            voucher: Proven::from_own_batch(domain, voucher, number, tree.path(0), signature),
            receipt: Proven::from_own_batch(domain, receipt, number, tree.path(1), signature),
            settlement: Proven::from_own_batch(domain, settlement, number, tree.path(2), signature),
        }
    }

    pub fn response(&self, claims: impl IntoIterator<Item = Claim>) -> RespondOrder {
        let mut evidence = Evidence::new(self.account());
        for claim in claims {
            evidence.add(claim).expect("it is of this account");
        }
        RespondOrder { terms: self.terms.clone(), evidence }
    }

    fn tick_secret(&self, lane: u32) -> B256 {
        keccak256(format!("a secret of lane {lane}"))
    }
}

/// What a flush of the hub proves.
pub struct Flush {
    pub voucher: Proven<Voucher>,
    pub receipt: Proven<Receipt>,
    pub settlement: Proven<Settlement>,
}

fn sha256_times(word: B256, times: u32) -> B256 {
    (0..times).fold(word, |word, _| B256::from_slice(&Sha256::digest(word)))
}

/// I1 and I9: no account paid out more than came in, and each vault holds exactly what it owes: the custody of its
/// accounts and what waits in it. `pairs` must be all accounts that have money on the chain.
pub async fn audit(world: &World, pairs: &[&Pair]) {
    let mut owed: BTreeMap<(Address, Asset), U256> = BTreeMap::new();
    let mut waiting: BTreeSet<(Address, Asset, Address)> = BTreeSet::new();
    for pair in pairs {
        let books = pair.books(world).await;
        let wide = |amount: Amount| U256::from(amount.get());
        let paid_in = wide(books.member_deposit) + wide(books.hub_deposit);
        assert!(wide(books.member_withdrawn) + wide(books.hub_withdrawn) <= paid_in, "I1: {books:?}");
        let vault = pair.vault(world).await;
        *owed.entry((vault, pair.asset)).or_default() += books.custody();
        waiting.insert((vault, pair.asset, pair.terms.hub));
        waiting.insert((vault, pair.asset, pair.terms.member));
    }
    for (vault, asset, owner) in waiting {
        let claimable = world.chain().claimable(vault, asset, owner).await.expect("the chain answers");
        *owed.entry((vault, asset)).or_default() += claimable;
    }
    for ((vault, asset), owed) in owed {
        assert_eq!(world.balance(asset, vault).await, owed, "I9: vault {vault} of asset {asset}");
    }
}
