//! The exit kit: everything that gets a member's money out of his channel, in one file, without hub and without store.
//!
//! A kit holds the newest evidence of every account and, built from it, the calls that the contract needs, ready to be
//! sent by any account that pays for gas: the start of the close carries a request that the member's voucher key signed
//! in advance, evidence and payout may be sent by anybody, and the money goes to the payout accounts that the terms name.
//! So a kit is no key: whoever finds one can close the channel with it, and that pays the member.
//!
//! [`ExitKit::read`] believes nothing: it verifies every signature in the file, builds the calls again and compares. What
//! was damaged on the way is thus found before a close begins, and not when its challenge period runs.
//!
//! [`leave`] walks the way out by what the ledger says, so that it can be stopped and started again at any point.

mod file;
mod leave;

use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::{Address, B256, Bytes, U256};
use dispute::adjudicator::{ClaimError, HubClaim, LaneClaim, TickClaim};
use dispute::{Adjudicator, Call, Claim, CloseOrder, Evidence, FinalizeOrder, RespondOrder, SettleOrder};
use proto::account::{Status, Totals};
use proto::evidence::EvidenceError;
use proto::keys::{KeyError, PublicKey, Signature};
use proto::member::Member;
use proto::typed::{CloseRequest, Receipt, Settlement, TickVoucher, Voucher};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, Domain, Proof, Proven, Scheme, Side, Signed};
use serde::{Deserialize, Serialize};

pub use leave::{Exit, ExitState, LeaveError, Progress, leave};

pub(crate) use file::KitFile;

/// The version of the format that this program writes and reads.
pub const KIT_VERSION: u32 = 1;
/// Most receipts of payments to others in a kit: the file stays small enough to be written every second.
const RECEIPTS_MAX: usize = 64;

/// A member's way out: see the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitKit {
    /// The version of the format.
    #[serde(rename = "payhub_exit_kit")]
    pub version: u32,
    /// What this file is, in plain words.
    pub about: Vec<String>,
    /// When it was made, in milliseconds since 1970 by the clock of the machine.
    pub made_at_ms: u64,
    /// The chain.
    pub chain_id: u64,
    /// The contract on it that holds the money.
    pub adjudicator: Address,
    /// The channel: the digest of its terms.
    pub channel: B256,
    /// The account that the money goes to, whoever sends the calls.
    pub pays_to: Address,
    /// The channel's terms.
    pub terms: ChannelTerms,
    /// One account for each asset.
    pub accounts: Vec<KitAccount>,
    /// Receipts of payments that their payees did not acknowledge yet. They pay the payees, not this member: a payee
    /// whose account closes before he heard of them needs them.
    pub receipts_for_others: Vec<KitReceiptFor>,
}

/// One account of a kit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitAccount {
    /// The token, or zero for the chain's own coin.
    pub asset: Asset,
    /// What the calls below get for the member, in base units, by the ledger's totals in this file.
    pub worth: Amount,
    /// What the ledger said when the file was made.
    pub ledger: KitLedger,
    /// What can be shown.
    pub evidence: KitEvidence,
    /// What to send.
    pub calls: KitCalls,
    /// In which order, in plain words.
    pub steps: Vec<String>,
}

/// What the ledger said of an account; amounts in base units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitLedger {
    /// Whether it is open.
    pub status: Status,
    /// What the member deposited.
    pub member_deposit: Amount,
    /// The hub's collateral.
    pub hub_deposit: Amount,
    /// What was paid out to the member.
    pub member_withdrawn: Amount,
    /// What was paid out to the hub.
    pub hub_withdrawn: Amount,
    /// The newest settlement's number.
    pub seq: u64,
    /// What the member paid, as far as it was proven to the ledger.
    pub member_paid: Amount,
    /// What the hub paid, as far as it was proven to the ledger.
    pub hub_paid: Amount,
}

/// The evidence of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitEvidence {
    /// What the member paid by his own vouchers.
    pub member_paid: Amount,
    /// What the hub paid him by its word.
    pub hub_paid: Amount,
    /// The member's newest voucher of each lane.
    pub member_vouchers: Vec<KitVoucher>,
    /// The member's streams of ticks, for the lanes that end with one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub member_ticks: Vec<KitTicks>,
    /// The hub's largest voucher.
    pub hub_voucher: Option<KitVoucher>,
    /// A receipt of the hub that is worth more than its voucher.
    pub hub_receipt: Option<KitReceipt>,
    /// The member's permission to start the close.
    pub close_request: KitCloseRequest,
    /// Settlements that both signed and that were not on the ledger yet.
    pub settlements: Vec<KitSettlement>,
}

/// A voucher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitVoucher {
    /// The lane.
    pub lane: u32,
    /// Everything paid on the lane so far.
    pub cumulative: Amount,
    /// The newest credit's number, of the hub only.
    pub credits: u64,
    /// The running hash of what was paid.
    pub memo: B256,
    /// The payer's word.
    pub proof: Proof,
}

/// A stream of ticks on a lane, up to the last one that the hub receipted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitTicks {
    /// The lane.
    pub lane: u32,
    /// Everything paid on the lane before the stream.
    pub cumulative: Amount,
    /// What a tick pays.
    pub tick: Amount,
    /// Ticks of the stream.
    pub ticks: u32,
    /// The end of its hash chain.
    pub anchor: B256,
    /// The running hash of what was paid.
    pub memo: B256,
    /// Ticks paid.
    pub index: u32,
    /// Hashes to the anchor in as many steps.
    pub preimage: B256,
    /// The member's signature over the voucher.
    pub signature: Signature,
}

/// A receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitReceipt {
    /// The credit's number.
    pub credit: u64,
    /// What was credited with it.
    pub amount: Amount,
    /// What the hub paid to the payee in all, this credit included.
    pub total: Amount,
    /// The hash of the payments in it.
    pub payments: B256,
    /// The hub's word.
    pub proof: Proof,
}

/// The member's permission, to whoever holds this file, to start the close of one account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitCloseRequest {
    /// Until when, in seconds of chain time: for ever.
    pub valid_until: u64,
    /// Signed by his voucher key.
    pub signature: Signature,
}

/// A settlement that both signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitSettlement {
    /// Its number.
    pub seq: u64,
    /// What the member has withdrawn in all with it.
    pub member_withdrawn: Amount,
    /// What the hub has withdrawn in all with it.
    pub hub_withdrawn: Amount,
    /// Until when it can be posted, in seconds of chain time.
    pub valid_until: u64,
    /// Whether it closes the account.
    pub close: bool,
    /// The member's signature.
    pub member_signature: Signature,
    /// The hub's word.
    pub hub_proof: Proof,
    /// The call that posts it.
    pub call: KitCall,
}

/// A receipt of a payment to somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitReceiptFor {
    /// The payee's channel.
    pub payee: B256,
    /// The asset.
    pub asset: Asset,
    /// What the hub paid to the payee in all, by this receipt.
    pub total: Amount,
    /// Shows it to the ledger while the payee's account closes.
    pub respond: KitCall,
}

/// What to send for an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitCalls {
    /// Starts the challenge period.
    pub start_close: KitCall,
    /// Shows all evidence, while the challenge period runs; none where there is nothing to show.
    pub respond: Option<KitCall>,
    /// Pays out, after it.
    pub finalize: KitCall,
}

/// A transaction without coins that any account may send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KitCall {
    /// The contract.
    pub to: Address,
    /// The calldata.
    pub data: Bytes,
    /// Gas that it needs at least, whatever an estimate says: evidence of one direction counts without the other, so the
    /// cheapest limit at which the call succeeds may be one at which half of it is lost. 0 where an estimate is right.
    pub gas_min: u64,
}

/// Why a file is no good kit.
#[derive(Debug, thiserror::Error)]
pub enum KitError {
    /// It is something else.
    #[error("this is no exit kit ({why}); give the file that `payhub exit-kit` wrote")]
    NoKit {
        /// What is wrong.
        why: String,
    },
    /// It is of another version.
    #[error(
        "this exit kit is of version {found}, this program reads version {KIT_VERSION}; use the payhub that made it"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It was changed or damaged.
    #[error("the exit kit is damaged: {what} does not fit; use another copy, or make it again from the store")]
    Damaged {
        /// Which part.
        what: String,
    },
    /// A signature does not verify.
    #[error(
        "the exit kit is damaged: {what} carries a signature that does not verify ({why}); use another copy, or make it again from the store"
    )]
    Signature {
        /// Which part.
        what: &'static str,
        /// What the verifier says.
        why: String,
    },
}

/// What a kit is made of: taken from the member's state at once, put together elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    domain: Domain,
    made_at_ms: u64,
    terms: ChannelTerms,
    accounts: Vec<AccountParts>,
    receipts: Vec<(ChannelTerms, Proven<Receipt>)>,
}

#[derive(Clone, Debug)]
struct AccountParts {
    asset: Asset,
    ledger: KitLedger,
    close: Signed<CloseRequest>,
    evidence: Evidence,
    settlements: Vec<Halves>,
}

/// A settlement with both signatures.
#[derive(Clone, Debug)]
struct Halves {
    member: Signed<Settlement>,
    hub: Proof,
    order: SettleOrder,
}

impl ExitKit {
    /// The kit of a member, by what he holds now.
    pub fn of(domain: &Domain, member: &Member) -> ExitKit {
        Parts::of(domain, member).assemble()
    }

    /// Reads a kit and checks all of it: terms, signatures and calls.
    pub fn read(text: &str) -> Result<ExitKit, KitError> {
        #[derive(Deserialize)]
        struct Head {
            payhub_exit_kit: u32,
        }
        let no_kit = |e: serde_json::Error| KitError::NoKit { why: e.to_string() };
        let head: Head = serde_json::from_str(text).map_err(no_kit)?;
        if head.payhub_exit_kit != KIT_VERSION {
            return Err(KitError::Version { found: head.payhub_exit_kit });
        }
        let kit: ExitKit = serde_json::from_str(text).map_err(no_kit)?;
        let again = kit.parts()?.assemble();
        let same =
            |what: &str, same: bool| if same { Ok(()) } else { Err(KitError::Damaged { what: what.to_owned() }) };
        same("the channel", kit.channel == again.channel)?;
        same("the account that it pays", kit.pays_to == again.pays_to)?;
        for (given, made) in kit.accounts.iter().zip(&again.accounts) {
            same(&format!("the calls of asset {}", given.asset), given.calls == made.calls)?;
            same(&format!("the evidence of asset {}", given.asset), given.evidence == made.evidence)?;
            same(&format!("what asset {} is worth", given.asset), given.worth == made.worth)?;
        }
        Ok(kit)
    }

    /// The kit as the text of its file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a kit is plain data");
        text.push('\n');
        text
    }

    /// Where its signatures count.
    pub fn domain(&self) -> Domain {
        Domain::new(self.chain_id, self.adjudicator)
    }

    /// An account of it on the ledger.
    pub fn account_id(&self, asset: Asset) -> AccountId {
        AccountId { channel: ChannelId(self.channel), asset }
    }

    /// What the file says, verified again.
    fn parts(&self) -> Result<Parts, KitError> {
        let key = |scheme, bytes| PublicKey::new(Scheme::from_number(scheme)?, bytes);
        let bad_key = |e: KeyError| KitError::Signature { what: "the terms", why: e.to_string() };
        let member = key(self.terms.memberScheme, self.terms.memberKey).map_err(bad_key)?;
        let hub = key(self.terms.hubScheme, self.terms.hubKey).map_err(bad_key)?;
        let verifier = Verifier { domain: self.domain(), member, hub, terms: &self.terms };
        let accounts = self.accounts.iter().map(|account| verifier.account(account)).collect::<Result<_, _>>()?;
        let made_at_ms = self.made_at_ms;
        Ok(Parts { domain: self.domain(), made_at_ms, terms: self.terms.clone(), accounts, receipts: Vec::new() })
    }
}

impl Parts {
    /// Takes what a member holds. His signatures here permit a close and nothing else.
    pub(crate) fn of(domain: &Domain, member: &Member) -> Parts {
        let accounts = member.assets().into_iter().filter_map(|asset| AccountParts::of(domain, member, asset));
        let mut owed: Vec<_> = member.undelivered().into_iter().map(|(asset, payee, _)| (asset, payee)).collect();
        owed.dedup();
        let receipts = owed.into_iter().take(RECEIPTS_MAX);
        let receipts = receipts.filter_map(|(asset, payee)| member.receipt_for(asset, payee));
        Parts {
            domain: *domain,
            made_at_ms: now_ms(),
            terms: member.terms().clone(),
            accounts: accounts.collect(),
            receipts: receipts.map(|(terms, receipt)| (terms.clone(), receipt.clone())).collect(),
        }
    }

    /// Builds calls and words.
    pub(crate) fn assemble(self) -> ExitKit {
        let Parts { domain, made_at_ms, terms, accounts, receipts } = self;
        let adjudicator = Adjudicator::new(domain);
        let receipts = receipts.into_iter().filter_map(|(terms, receipt)| receipt_for(&adjudicator, terms, receipt));
        ExitKit {
            version: KIT_VERSION,
            about: about(&terms),
            made_at_ms,
            chain_id: domain.chain_id,
            adjudicator: adjudicator.address(),
            channel: domain.channel_id(&terms).0,
            pays_to: terms.member,
            receipts_for_others: receipts.collect(),
            accounts: accounts.into_iter().map(|account| account.assemble(&adjudicator, &terms)).collect(),
            terms,
        }
    }
}

impl AccountParts {
    fn of(domain: &Domain, member: &Member, asset: Asset) -> Option<AccountParts> {
        let held = member.evidence(asset)?;
        let mut evidence = Evidence::new(AccountId { channel: member.channel(), asset });
        for claim in held.lanes.into_iter().map(Claim::from).chain(held.hub.map(Claim::Hub)) {
            if let Err(error) = evidence.add(claim) {
                tracing::warn!(%error, "a piece of evidence is left out of the exit kit");
            }
        }
        let settlements = member.agreed(asset).iter().filter_map(|agreed| {
            let body = agreed.signed.body().clone();
            let hub = Proven::verify(domain, member.hub_key(), body, agreed.hub.clone()?).ok()?;
            Halves::join(member.terms(), agreed.signed.clone(), hub).ok()
        });
        Some(AccountParts {
            asset,
            ledger: KitLedger::of(&member.balance(asset)?.ledger),
            close: member.close_request(asset, u64::MAX),
            evidence,
            settlements: settlements.collect(),
        })
    }

    fn assemble(self, adjudicator: &Adjudicator, terms: &ChannelTerms) -> KitAccount {
        let AccountParts { asset, ledger, close, evidence, settlements } = self;
        let (member_paid, hub_paid) = (evidence.member_paid(), evidence.hub_paid());
        let close_request = KitCloseRequest { valid_until: close.body().validUntil, signature: *close.signature() };
        let request = Some((Side::Member, close));
        let start_close = adjudicator.start_close(&CloseOrder { terms: terms.clone(), asset, request });
        let finalize = adjudicator.finalize(&FinalizeOrder { terms: terms.clone(), asset });
        let member_vouchers = evidence.lanes().values().filter_map(|claim| match claim {
            LaneClaim::Voucher(v) => Some(KitVoucher::of(v.body(), Proof::Direct(*v.signature()))),
            LaneClaim::Ticks(_) => None,
        });
        let member_vouchers = member_vouchers.collect();
        let member_ticks = evidence.lanes().values().filter_map(|claim| match claim {
            LaneClaim::Voucher(_) => None,
            LaneClaim::Ticks(claim) => Some(KitTicks::of(claim)),
        });
        let member_ticks = member_ticks.collect();
        let (mut hub_voucher, mut hub_receipt) = (None, None);
        match evidence.hub() {
            Some(HubClaim::Voucher(v)) => hub_voucher = Some(KitVoucher::of(v.body(), v.proof().clone())),
            Some(HubClaim::Receipt(r)) => hub_receipt = Some(KitReceipt::of(r)),
            None => {}
        }
        let respond = (!evidence.is_empty())
            .then(|| KitCall::of(&adjudicator.respond(&RespondOrder { terms: terms.clone(), evidence })));
        let settlements: Vec<_> = settlements.iter().map(|halves| KitSettlement::of(adjudicator, halves)).collect();
        let steps = steps(terms, respond.is_some(), !settlements.is_empty());
        KitAccount {
            asset,
            worth: ledger.worth(member_paid, hub_paid),
            ledger,
            evidence: KitEvidence {
                member_paid,
                hub_paid,
                member_vouchers,
                member_ticks,
                hub_voucher,
                hub_receipt,
                close_request,
                settlements,
            },
            calls: KitCalls { start_close: KitCall::of(&start_close), respond, finalize: KitCall::of(&finalize) },
            steps,
        }
    }
}

impl KitLedger {
    fn of(totals: &Totals) -> Self {
        KitLedger {
            status: totals.status,
            member_deposit: totals.member_deposit,
            hub_deposit: totals.hub_deposit,
            member_withdrawn: totals.member_withdrawn,
            hub_withdrawn: totals.hub_withdrawn,
            seq: totals.seq,
            member_paid: totals.member_paid,
            hub_paid: totals.hub_paid,
        }
    }

    /// What a close pays to the member by the contract's formula.
    fn worth(&self, member_paid: Amount, hub_paid: Amount) -> Amount {
        let wide = |amount: Amount| U256::from(amount.get());
        let plus = wide(self.member_deposit) + wide(self.hub_paid.max(hub_paid));
        let minus = wide(self.member_withdrawn) + wide(self.member_paid.max(member_paid));
        let withdrawn = wide(self.member_withdrawn) + wide(self.hub_withdrawn);
        let custody = (wide(self.member_deposit) + wide(self.hub_deposit)).saturating_sub(withdrawn);
        let net = plus.saturating_sub(minus).min(custody);
        Amount::new(u128::try_from(net).unwrap_or(u128::MAX))
    }
}

impl KitVoucher {
    fn of(body: &Voucher, proof: Proof) -> Self {
        let Voucher { lane, cumulative, credits, memo, .. } = *body;
        KitVoucher { lane, cumulative: Amount::new(cumulative), credits, memo, proof }
    }

    fn body(&self, account: &AccountId, payer: Side) -> Voucher {
        Voucher {
            channelId: account.channel.0,
            asset: account.asset,
            payer: payer as u8,
            lane: self.lane,
            cumulative: self.cumulative.get(),
            credits: self.credits,
            memo: self.memo,
        }
    }
}

impl KitTicks {
    fn of(claim: &TickClaim) -> Self {
        let signature = *claim.voucher().signature();
        let TickVoucher { lane, cumulative, tick, ticks, anchor, memo, .. } = *claim.voucher().body();
        let (cumulative, tick) = (Amount::new(cumulative), Amount::new(tick));
        let (index, preimage) = (claim.index(), claim.preimage());
        KitTicks { lane, cumulative, tick, ticks, anchor, memo, index, preimage, signature }
    }

    fn body(&self, account: &AccountId) -> TickVoucher {
        TickVoucher {
            channelId: account.channel.0,
            asset: account.asset,
            lane: self.lane,
            cumulative: self.cumulative.get(),
            tick: self.tick.get(),
            ticks: self.ticks,
            anchor: self.anchor,
            memo: self.memo,
        }
    }
}

impl KitReceipt {
    fn of(receipt: &Proven<Receipt>) -> Self {
        let Receipt { credit, amount, total, payments, .. } = *receipt.body();
        let (amount, total) = (Amount::new(amount), Amount::new(total));
        KitReceipt { credit, amount, total, payments, proof: receipt.proof().clone() }
    }
}

impl Halves {
    fn join(terms: &ChannelTerms, member: Signed<Settlement>, hub: Proven<Settlement>) -> Result<Self, ClaimError> {
        let proof = hub.proof().clone();
        let order = SettleOrder::new(terms.clone(), member.clone(), hub)?;
        Ok(Halves { member, hub: proof, order })
    }
}

impl KitSettlement {
    fn of(adjudicator: &Adjudicator, halves: &Halves) -> Self {
        let s = halves.order.settlement();
        KitSettlement {
            seq: s.seq,
            member_withdrawn: Amount::new(s.memberWithdrawn),
            hub_withdrawn: Amount::new(s.hubWithdrawn),
            valid_until: s.validUntil,
            close: s.close,
            member_signature: *halves.member.signature(),
            hub_proof: halves.hub.clone(),
            call: KitCall::of(&adjudicator.settle(&halves.order)),
        }
    }
}

impl KitCall {
    fn of(call: &Call) -> Self {
        let to = call.to.into_to().expect("it is a call of the contract");
        KitCall { to, data: call.data.clone(), gas_min: call.gas_min }
    }

    /// The call, ready to be sent.
    pub fn to_call(&self) -> Call {
        Call { gas_min: self.gas_min, ..Call::of(self.to, U256::ZERO, self.data.clone()) }
    }
}

/// Checks what a file says with the keys of its terms.
struct Verifier<'a> {
    domain: Domain,
    member: PublicKey,
    hub: PublicKey,
    terms: &'a ChannelTerms,
}

impl Verifier<'_> {
    fn account(&self, given: &KitAccount) -> Result<AccountParts, KitError> {
        let id = AccountId { channel: self.domain.channel_id(self.terms), asset: given.asset };
        let held = &given.evidence;
        let mut evidence = Evidence::new(id);
        let mut add = |claim| {
            let added = evidence.add(claim).map(|_| ());
            added.map_err(|e| KitError::Damaged { what: e.to_string() })
        };
        for voucher in &held.member_vouchers {
            let Proof::Direct(signature) = &voucher.proof else {
                return Err(KitError::Damaged { what: "a member's voucher with a batch proof".to_owned() });
            };
            let body = voucher.body(&id, Side::Member);
            add(Claim::Member(self.signed("a voucher of the member", body, signature)?))?;
        }
        for ticks in &held.member_ticks {
            let signed = self.signed("a stream of the member", ticks.body(&id), &ticks.signature)?;
            let claim = TickClaim::verify(signed, ticks.index, ticks.preimage);
            add(Claim::Ticks(claim.map_err(|e| KitError::Damaged { what: e.to_string() })?))?;
        }
        if let Some(voucher) = &held.hub_voucher {
            let body = voucher.body(&id, Side::Hub);
            let proven = Proven::verify(&self.domain, &self.hub, body, voucher.proof.clone());
            add(Claim::Hub(proven.map_err(bad("the hub's voucher"))?))?;
        }
        if let Some(receipt) = &held.hub_receipt {
            let body = Receipt {
                channelId: id.channel.0,
                asset: id.asset,
                credit: receipt.credit,
                amount: receipt.amount.get(),
                total: receipt.total.get(),
                payments: receipt.payments,
            };
            let proven = Proven::verify(&self.domain, &self.hub, body, receipt.proof.clone());
            add(Claim::Receipt(proven.map_err(bad("the hub's receipt"))?))?;
        }
        let request =
            CloseRequest { channelId: id.channel.0, asset: id.asset, validUntil: held.close_request.valid_until };
        let close = self.signed("the close request", request, &held.close_request.signature)?;
        let settlements = held.settlements.iter().map(|s| self.settlement(&id, s)).collect::<Result<_, _>>()?;
        Ok(AccountParts { asset: given.asset, ledger: given.ledger, close, evidence, settlements })
    }

    fn settlement(&self, account: &AccountId, given: &KitSettlement) -> Result<Halves, KitError> {
        let body = Settlement {
            channelId: account.channel.0,
            asset: account.asset,
            seq: given.seq,
            memberWithdrawn: given.member_withdrawn.get(),
            hubWithdrawn: given.hub_withdrawn.get(),
            validUntil: given.valid_until,
            close: given.close,
        };
        let member = self.signed("a settlement", body.clone(), &given.member_signature)?;
        let hub = Proven::verify(&self.domain, &self.hub, body, given.hub_proof.clone());
        let halves = Halves::join(self.terms, member, hub.map_err(bad("a settlement"))?);
        halves.map_err(|e| KitError::Damaged { what: e.to_string() })
    }

    fn signed<T: proto::typed::Typed>(
        &self,
        what: &'static str,
        body: T,
        signature: &Signature,
    ) -> Result<Signed<T>, KitError> {
        let signed = Signed::verify(&self.domain, &self.member, body, *signature);
        signed.map_err(|e| KitError::Signature { what, why: e.to_string() })
    }
}

fn bad(what: &'static str) -> impl Fn(EvidenceError) -> KitError {
    move |error| KitError::Signature { what, why: error.to_string() }
}

fn receipt_for(adjudicator: &Adjudicator, terms: ChannelTerms, receipt: Proven<Receipt>) -> Option<KitReceiptFor> {
    let account = receipt.body().account();
    let total = Amount::new(receipt.body().total);
    let mut evidence = Evidence::new(account);
    evidence.add(Claim::Receipt(receipt)).ok()?;
    let respond = KitCall::of(&adjudicator.respond(&RespondOrder { terms, evidence }));
    Some(KitReceiptFor { payee: account.channel.0, asset: account.asset, total, respond })
}

fn about(terms: &ChannelTerms) -> Vec<String> {
    vec![
        "This file gets the money of one payhub channel out of the contract, without the hub and without anything else."
            .to_owned(),
        format!("With payhub: payhub exit FILE --rpc URL --key KEYFILE. With cast alone: docs/exit.md. It pays {} and nobody else, \
             whoever sends the calls; any account with coins for gas can send them.", terms.member),
        "It holds no key. Whoever has it can close the channel, so keep it where only you can read it.".to_owned(),
        "Use the newest one: an older kit proves less, and what is not shown in the challenge period is not paid.".to_owned(),
    ]
}

fn steps(terms: &ChannelTerms, responds: bool, settles: bool) -> Vec<String> {
    let mut steps = Vec::new();
    if settles {
        steps.push(
            "Send the call of evidence.settlements if its valid_until is not past: it pays at once what both had agreed to, and \
             one with close = true ends here if the account is final after it."
                .to_owned(),
        );
    }
    steps.push(format!(
        "Send calls.start_close to the contract, unless the account is closing already. The challenge period of {} s begins.",
        terms.challengePeriod
    ));
    if responds {
        steps.push(
            "At once, and before the challenge period is over, send calls.respond: it shows what was paid to you and by you."
                .to_owned(),
        );
    }
    steps.push(format!("After the challenge period send calls.finalize: it pays {}.", terms.member));
    steps.push(
        "If the payout could not be delivered, it waits in the channel's vault: vaultOf(channel), then claim(vault, asset, pays_to)."
            .to_owned(),
    );
    steps
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proto::SecretKey;
    use proto::member::{Ask, Limits, Record};

    use super::*;

    #[test]
    fn a_settlement_that_both_signed_is_in_the_kit_and_survives_its_file() {
        let domain = Domain::new(1, Address::repeat_byte(1));
        let asset = Asset::repeat_byte(2);
        for scheme in [Scheme::Ed25519, Scheme::Secp256k1] {
            let key = |seed| SecretKey::derive(scheme, &[seed; 32], "voucher");
            let (mine, hub) = (key(1), key(2));
            let terms = ChannelTerms {
                hub: Address::repeat_byte(3),
                hubKey: hub.public().bytes,
                hubScheme: scheme.number(),
                member: Address::repeat_byte(4),
                memberKey: mine.public().bytes,
                memberScheme: scheme.number(),
                challengePeriod: 60,
                salt: B256::repeat_byte(5),
            };
            let mut member = Member::new(domain, mine, terms, Limits::default()).expect("good terms");
            let (member_deposit, hub_deposit) = (Amount::new(100), Amount::new(50));
            drop(member.ledger(asset, Totals { member_deposit, hub_deposit, ..Totals::default() }));
            member.head(1_000);
            let proposal = Settlement {
                channelId: member.channel().0,
                asset,
                seq: 1,
                memberWithdrawn: 40,
                hubWithdrawn: 0,
                validUntil: 2_000,
                close: false,
            };
            let ask = Some(Ask::Withdraw(Amount::new(40)));
            drop(member.agree(proposal.clone(), ask).expect("as asked for"));
            assert!(ExitKit::of(&domain, &member).accounts[0].evidence.settlements.is_empty(), "half of it is nothing");
            let proof = Proven::sign(&domain, &hub, proposal).proof().clone();
            member.apply(&Record::Countersigned { asset, seq: 1, proof });

            let kit = ExitKit::of(&domain, &member);
            let account = &kit.accounts[0];
            assert_eq!((account.worth.get(), account.calls.respond.is_some()), (100, false));
            assert_eq!((account.evidence.settlements.len(), account.evidence.settlements[0].seq), (1, 1));
            assert_eq!(ExitKit::read(&kit.to_json()).expect("what was written"), kit);
            let other = kit.to_json().replacen("\"seq\": 1,", "\"seq\": 2,", 1);
            assert!(matches!(ExitKit::read(&other), Err(KitError::Signature { .. })), "another settlement");
        }
    }

    #[test]
    fn worth_is_what_the_contract_pays_and_never_more_than_it_holds() {
        let of = |[md, hd, mw, hw, pm, ph]: [u128; 6]| {
            let ledger = KitLedger {
                status: Status::Open,
                member_deposit: Amount::new(md),
                hub_deposit: Amount::new(hd),
                member_withdrawn: Amount::new(mw),
                hub_withdrawn: Amount::new(hw),
                seq: 0,
                member_paid: Amount::ZERO,
                hub_paid: Amount::ZERO,
            };
            ledger.worth(Amount::new(pm), Amount::new(ph)).get()
        };
        let table = [
            ("nothing happened", [100, 50, 0, 0, 0, 0], 100),
            ("he was paid", [100, 50, 0, 0, 10, 30], 120),
            ("more than the collateral", [100, 50, 0, 0, 0, 80], 150),
            ("something is out already", [100, 50, 40, 10, 0, 0], 60),
            ("he owes more than he has", [100, 50, 0, 0, 130, 0], 0),
            ("the largest of everything", [u128::MAX, 0, 0, 0, 0, u128::MAX], u128::MAX),
        ];
        for (name, books, expected) in table {
            assert_eq!(of(books), expected, "{name}");
        }
    }
}
