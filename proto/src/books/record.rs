//! What one flush writes, and what follows from it.
//!
//! A [`FlushRecord`] is the unit of durability: one journal record, whose number is the flush's number. It says in
//! absolute terms what came of it (lane tips, credit numbers, totals on the ledger), so that applying a record twice, or
//! to rows that are already ahead of it, changes nothing. [`FlushRecord::outcome`] derives from the record alone
//! everything that the hub then signs and sends, byte for byte the same at any later time.

use std::collections::BTreeMap;

use alloy_primitives::map::HashMap;
use alloy_primitives::{B256, Bytes};
use serde::{Deserialize, Serialize};

use crate::account::Totals;
use crate::amount::Amount;
use crate::batch::{BatchTree, sign_batch};
use crate::evidence::{Proven, Signed};
use crate::frame::{Frame, opening_hash};
use crate::ids::{AccountId, Asset, ChannelId, PaymentId, Side};
use crate::keys::{Scheme, SecretKey, Signature};
use crate::stream::{StreamOpening, TicksPaid};
use crate::typed::{Ack, Batchable, ChannelTerms, Domain, Receipt, Settlement, Voucher, chain_hash};

/// One durable write of the hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlushRecord {
    /// The journal's number of this record.
    pub number: u64,
    /// What was decided, in order.
    pub entries: Vec<Entry>,
    /// Where the credit streams of the credited accounts stood before this flush, in the order of their first credit.
    pub credited: Vec<CreditBase>,
    /// The hub's income per asset after this flush, for the assets that this flush changed.
    pub income: Vec<(Asset, Amount)>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// A channel that the hub serves was opened on the ledger.
    Opened(ChannelTerms),
    /// The ledger went on: absolute totals of the accounts that changed, and the follower's position.
    Ledger {
        /// Number of the confirmed head.
        confirmed: u64,
        /// Time of the confirmed head, seconds.
        confirmed_time: u64,
        /// What changed.
        totals: Vec<(AccountId, Totals)>,
        /// The event cursor's state: stored with its effects, so that nothing is missed and nothing applied twice.
        cursor: Bytes,
    },
    /// A name now leads to a channel.
    Named(ChannelId, String),
    /// A frame was accepted.
    Frame(Frame),
    /// A stream was opened on a lane; it pays nothing by itself.
    Stream(StreamOpening),
    /// A lane of ticks was folded into a plain voucher of the same value.
    Folded(Signed<Voucher>),
    /// Ticks were accepted: one entry for all of one opening, after every other entry of the flush, so that payments
    /// stand in the order frames, then ticks.
    Ticks(TicksPaid),
    /// A settlement was proposed; it counts as posted from here on.
    Proposed(Settlement),
    /// The member signed it; the hub's signature is a leaf of this flush.
    Agreed(Signed<Settlement>),
    /// A payee acknowledged its credits.
    Acked(Signed<Ack>),
    /// A member showed a batch of a flush that this store does not have: the store is older than what it signed.
    Frozen {
        /// The flush that the member showed.
        flush: u64,
    },
}

/// Where an account's credit stream stood before a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreditBase {
    /// The payee's account.
    pub account: AccountId,
    /// Its newest credit number.
    pub credits: u64,
    /// `PH`.
    pub total: Amount,
    /// Head of the credit chain.
    pub head: B256,
}

/// Everything that follows from a flush.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// One credit per (payer channel, payee account), the hub's own last.
    pub credits: Vec<Credit>,
    /// The hub's new voucher of each credited account.
    pub vouchers: Vec<Voucher>,
    /// Settlements that the hub signs.
    pub settlements: Vec<Settlement>,
}

/// One credit: what one payer paid to one account in one flush.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The payer.
    pub payer: ChannelId,
    /// The receipt's body. For the hub itself: channel zero, credit 0, total 0.
    pub receipt: Receipt,
    /// The receipt's digest.
    pub digest: B256,
    /// Head of the payee's credit chain before this credit.
    pub head_before: B256,
    /// Head after it.
    pub head: B256,
    /// The payments, in record order.
    pub payments: Vec<(PaymentId, Amount, Bytes)>,
}

/// An [`Outcome`] with the hub's signatures: one batch per key that has leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedOutcome {
    /// The flush.
    pub flush: u64,
    /// As in [`Outcome::credits`].
    pub credits: Vec<Credit>,
    /// The receipt of each credit.
    pub receipts: Vec<Proven<Receipt>>,
    /// As in [`Outcome::vouchers`].
    pub vouchers: Vec<Proven<Voucher>>,
    /// As in [`Outcome::settlements`].
    pub settlements: Vec<Proven<Settlement>>,
}

impl FlushRecord {
    /// Derives the outcome from the record alone.
    pub fn outcome(&self, domain: &Domain) -> Outcome {
        let mut collected = Collected::default();
        for entry in &self.entries {
            match entry {
                Entry::Frame(frame) => collected.frame(frame),
                Entry::Ticks(paid) => collected.ticks(paid),
                Entry::Opened(_)
                | Entry::Ledger { .. }
                | Entry::Named(..)
                | Entry::Stream(_)
                | Entry::Folded(_)
                | Entry::Proposed(_)
                | Entry::Agreed(_)
                | Entry::Acked(_)
                | Entry::Frozen { .. } => {}
            }
        }
        let mut outcome = Outcome::default();
        for base in &self.credited {
            let mut stand = *base;
            for (payer, payments) in collected.of(base.account) {
                outcome.credits.push(stand.credit(domain, payer, payments));
            }
            outcome.vouchers.push(stand.voucher());
        }
        for ((payer, asset), payments) in collected.to_hub {
            outcome.credits.push(hub_credit(domain, payer, asset, payments));
        }
        outcome.settlements = self
            .entries
            .iter()
            .filter_map(|entry| if let Entry::Agreed(signed) = entry { Some(signed.body().clone()) } else { None })
            .collect();
        outcome
    }
}

impl Outcome {
    /// Signs everything: one batch per scheme. `scheme_of` names the hub's scheme in a channel's terms.
    ///
    /// A receipt is signed with the key of the *payee's* channel, because that is where the ledger redeems it; the
    /// receipt of a payment to the hub itself with the key of the payer's.
    pub fn sign(
        self,
        domain: &Domain,
        flush: u64,
        keys: &[SecretKey],
        scheme_of: impl Fn(ChannelId) -> Scheme,
    ) -> SignedOutcome {
        let mut leaves: BTreeMap<Scheme, Vec<B256>> = BTreeMap::new();
        let mut place = |channel: ChannelId, digest: B256| {
            let scheme = scheme_of(channel);
            let of_key = leaves.entry(scheme).or_default();
            of_key.push(digest);
            Leaf { scheme, index: of_key.len() - 1, digest }
        };
        let receipts: Vec<_> = self.credits.iter().map(|c| place(c.signing_channel(), c.digest)).collect();
        let vouchers: Vec<_> = self.vouchers.iter().map(|v| place(ChannelId(v.channelId), domain.digest(v))).collect();
        let settlements: Vec<_> =
            self.settlements.iter().map(|s| place(ChannelId(s.channelId), domain.digest(s))).collect();
        let batches: BTreeMap<Scheme, (BatchTree, Signature)> = leaves
            .into_iter()
            .map(|(scheme, digests)| {
                let tree = BatchTree::new(&digests).expect("a scheme is listed with its first leaf");
                let key =
                    keys.iter().find(|key| key.scheme() == scheme).expect("the hub serves no scheme without a key");
                let signature = sign_batch(domain, key, flush, tree.root());
                (scheme, (tree, signature))
            })
            .collect();
        let batches = Batches { flush, batches };
        let bodies = self.credits.iter().map(|c| c.receipt.clone());
        SignedOutcome {
            flush,
            receipts: batches.prove(bodies, receipts),
            vouchers: batches.prove(self.vouchers.into_iter(), vouchers),
            settlements: batches.prove(self.settlements.into_iter(), settlements),
            credits: self.credits,
        }
    }
}

impl Credit {
    /// Whether the hub itself is the payee.
    pub fn is_for_hub(&self) -> bool {
        self.receipt.is_for_hub()
    }

    /// The channel whose hub key signs the receipt.
    pub fn signing_channel(&self) -> ChannelId {
        if self.is_for_hub() { self.payer } else { ChannelId(self.receipt.channelId) }
    }
}

/// Where a digest stands among the leaves of its key.
struct Leaf {
    scheme: Scheme,
    index: usize,
    digest: B256,
}

struct Batches {
    flush: u64,
    batches: BTreeMap<Scheme, (BatchTree, Signature)>,
}

impl Batches {
    fn prove<T: Batchable>(&self, bodies: impl Iterator<Item = T>, leaves: Vec<Leaf>) -> Vec<Proven<T>> {
        bodies
            .zip(leaves)
            .map(|(body, leaf)| {
                let (tree, signature) = &self.batches[&leaf.scheme];
                Proven::from_own_leaf(body, leaf.digest, self.flush, tree.path(leaf.index), *signature)
            })
            .collect()
    }
}

type Item = (PaymentId, Amount, Bytes);
type Items = Vec<Item>;

/// The payments of a flush by payee account and payer, in the order of first appearance.
#[derive(Default)]
struct Collected {
    payees: Vec<Payers>,
    to_members: HashMap<AccountId, usize>,
    to_hub: BTreeMap<(ChannelId, Asset), Items>,
}

/// What one payee gets, by payer. Thousands may pay the same one in a flush, so a payer's place is looked up.
#[derive(Default)]
struct Payers {
    in_order: Vec<(ChannelId, Items)>,
    places: HashMap<ChannelId, usize>,
}

impl Collected {
    fn frame(&mut self, frame: &Frame) {
        let from = frame.account();
        // A frame pays few payees: where each of them stands is looked up once.
        let mut known: Vec<(ChannelId, usize, usize)> = Vec::new();
        for p in &frame.payments {
            let item = (p.id, p.amount, p.note.clone());
            if p.payee == ChannelId::HUB {
                self.to_hub.entry((from.channel, from.asset)).or_default().push(item);
                continue;
            }
            let place =
                known.iter().rev().find(|(payee, ..)| *payee == p.payee).map(|(_, payee, payer)| (*payee, *payer));
            let (payee, payer) = place.unwrap_or_else(|| {
                let (payee, payer) = self.place(AccountId { channel: p.payee, asset: from.asset }, from.channel);
                known.push((p.payee, payee, payer));
                (payee, payer)
            });
            self.payees[payee].in_order[payer].1.push(item);
        }
    }

    fn ticks(&mut self, paid: &TicksPaid) {
        let (from, item) = (paid.account, (paid.id(), paid.amount(), Bytes::new()));
        if paid.terms.payee == ChannelId::HUB {
            self.to_hub.entry((from.channel, from.asset)).or_default().push(item);
            return;
        }
        let (payee, payer) = self.place(AccountId { channel: paid.terms.payee, asset: from.asset }, from.channel);
        self.payees[payee].in_order[payer].1.push(item);
    }

    /// Where the payments of a payer to an account stand.
    fn place(&mut self, account: AccountId, from: ChannelId) -> (usize, usize) {
        let payee = *self.to_members.entry(account).or_insert_with(|| {
            self.payees.push(Payers::default());
            self.payees.len() - 1
        });
        let Payers { in_order, places } = &mut self.payees[payee];
        let payer = *places.entry(from).or_insert_with(|| {
            in_order.push((from, Items::new()));
            in_order.len() - 1
        });
        (payee, payer)
    }

    fn of(&mut self, account: AccountId) -> Vec<(ChannelId, Items)> {
        let payee = self.to_members.remove(&account);
        payee.map(|payee| std::mem::take(&mut self.payees[payee].in_order)).unwrap_or_default()
    }
}

impl CreditBase {
    /// Takes the next number for one payer's payments.
    fn credit(&mut self, domain: &Domain, payer: ChannelId, payments: Items) -> Credit {
        let amount = sum(&payments);
        self.credits = self.credits.checked_add(1).expect("credit numbers do not run out in 2^64");
        self.total = self.total.checked_add(amount).expect("acceptance kept the credited total within 128 bits");
        let receipt = Receipt {
            channelId: self.account.channel.0,
            asset: self.account.asset,
            credit: self.credits,
            amount: amount.get(),
            total: self.total.get(),
            payments: opening(&payments),
        };
        let digest = domain.digest(&receipt);
        let head_before = self.head;
        self.head = chain_hash(head_before, digest);
        Credit { payer, receipt, digest, head_before, head: self.head, payments }
    }

    fn voucher(&self) -> Voucher {
        Voucher {
            channelId: self.account.channel.0,
            asset: self.account.asset,
            payer: Side::Hub as u8,
            lane: 0,
            cumulative: self.total.get(),
            credits: self.credits,
            memo: self.head,
        }
    }
}

fn hub_credit(domain: &Domain, payer: ChannelId, asset: Asset, payments: Items) -> Credit {
    let receipt = Receipt {
        channelId: B256::ZERO,
        asset,
        credit: 0,
        amount: sum(&payments).get(),
        total: 0,
        payments: opening(&payments),
    };
    let digest = domain.digest(&receipt);
    Credit { payer, receipt, digest, head_before: B256::ZERO, head: B256::ZERO, payments }
}

fn sum(payments: &Items) -> Amount {
    Amount::checked_sum(payments.iter().map(|(_, amount, _)| *amount))
        .expect("acceptance kept the sum of a flush within 128 bits")
}

fn opening(payments: &Items) -> B256 {
    opening_hash(payments.iter().map(|(id, amount, _)| (*id, *amount)))
}
