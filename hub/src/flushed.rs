//! A durable flush with everything that the hub signed in it, and who is concerned.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use alloy_primitives::B256;
use proto::books::{Credit, Entry, FlushRecord, SignedOutcome};
use proto::stream::TicksPaid;
use proto::typed::{Receipt, Voucher};
use proto::{AccountId, Asset, ChannelId, PaymentId, Proof, Proven};

/// A flush that is durable and signed.
#[derive(Debug)]
pub(crate) struct Flushed {
    /// What was written.
    pub(crate) record: Arc<FlushRecord>,
    /// What follows from it.
    pub(crate) signed: SignedOutcome,
    /// Which receipts are a payer's.
    of_payer: BTreeMap<(ChannelId, Asset), Vec<usize>>,
    /// Which credits are an account's, and its voucher.
    of_payee: BTreeMap<AccountId, (Range<usize>, usize)>,
    /// Which entries are ticks of a payer.
    ticks: BTreeMap<AccountId, Vec<usize>>,
}

impl Flushed {
    pub(crate) fn new(record: Arc<FlushRecord>, signed: SignedOutcome) -> Self {
        let mut of_payer: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        let mut of_payee: BTreeMap<AccountId, (Range<usize>, usize)> = BTreeMap::new();
        for (i, voucher) in signed.vouchers.iter().enumerate() {
            of_payee.insert(voucher.body().account(), (0..0, i));
        }
        for (i, credit) in signed.credits.iter().enumerate() {
            of_payer.entry((credit.payer, credit.receipt.asset)).or_default().push(i);
            if let Some((range, _)) = of_payee.get_mut(&credit.receipt.account()).filter(|_| !credit.is_for_hub()) {
                // The credits of one account stand together.
                *range = if range.start == range.end { i..i + 1 } else { range.start..i + 1 };
            }
        }
        let mut ticks: BTreeMap<AccountId, Vec<usize>> = BTreeMap::new();
        // Ticks end the record.
        let first = record.entries.iter().rposition(|e| !matches!(e, Entry::Ticks(_))).map_or(0, |last| last + 1);
        for (i, entry) in record.entries.iter().enumerate().skip(first) {
            if let Entry::Ticks(paid) = entry {
                ticks.entry(paid.account).or_default().push(i);
            }
        }
        Flushed { record, signed, of_payer, of_payee, ticks }
    }

    pub(crate) fn number(&self) -> u64 {
        self.record.number
    }

    /// The receipts for what a payer paid in one asset, in the order of their credits.
    pub(crate) fn receipts(&self, payer: ChannelId, asset: Asset) -> impl Iterator<Item = &Proven<Receipt>> {
        self.of_payer.get(&(payer, asset)).into_iter().flatten().map(|i| &self.signed.receipts[*i])
    }

    /// The ticks that a payer's account paid, in record order.
    pub(crate) fn ticks(&self, payer: AccountId) -> impl Iterator<Item = &TicksPaid> {
        let entries = self.ticks.get(&payer).into_iter().flatten().map(|i| &self.record.entries[*i]);
        entries.filter_map(|entry| if let Entry::Ticks(paid) = entry { Some(paid) } else { None })
    }

    /// The credit and receipt of one payment.
    pub(crate) fn credit_of(
        &self,
        payer: ChannelId,
        asset: Asset,
        payee: ChannelId,
        id: PaymentId,
    ) -> Option<(&Credit, &Proven<Receipt>)> {
        let mine = self.of_payer.get(&(payer, asset))?;
        mine.iter()
            .map(|i| (&self.signed.credits[*i], &self.signed.receipts[*i]))
            .find(|(c, _)| c.receipt.channelId == payee.0 && c.payments.iter().any(|(known, _, _)| *known == id))
    }

    /// The credits of an account.
    pub(crate) fn credits(&self, account: AccountId) -> &[Credit] {
        self.of_payee.get(&account).map_or(&[], |(range, _)| &self.signed.credits[range.clone()])
    }

    /// The voucher that covers them.
    pub(crate) fn voucher(&self, account: AccountId) -> Option<&Proven<Voucher>> {
        self.of_payee.get(&account).map(|(_, i)| &self.signed.vouchers[*i])
    }

    /// The roots of the batches that were signed, one per key.
    pub(crate) fn roots(&self) -> Vec<B256> {
        let mut roots: Vec<B256> = Vec::new();
        let proofs = self.signed.receipts.iter().map(|p| (p.digest(), p.proof()));
        let proofs = proofs.chain(self.signed.vouchers.iter().map(|p| (p.digest(), p.proof())));
        let proofs = proofs.chain(self.signed.settlements.iter().map(|p| (p.digest(), p.proof())));
        for (digest, proof) in proofs {
            let Proof::Batch { path, .. } = proof else { continue };
            if let Some(root) = proto::batch::root_of(&digest, path).filter(|root| !roots.contains(root)) {
                roots.push(root);
            }
        }
        roots
    }
}
