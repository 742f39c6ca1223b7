//! The books of one account, and the two questions that decide every payment: may the payer still pay, and is the
//! payee's claim backed by what the contract holds?
//!
//! ```text
//! memberNet = MD - MW + PH - PM      hubNet = HD - HW + PM - PH      custody = MD + HD - MW - HW = memberNet + hubNet
//! ```
//!
//! `MD HD` deposits and `MW HW` withdrawals are cumulative totals on the ledger; `PM PH` is what each side has paid off
//! the ledger. A settlement that a party signed counts for that party as already posted ([`Kept`]) until a posted one
//! with a higher `seq` overtakes it or its `validUntil` is past at the confirmed head: whoever lends the same backing
//! twice, once to a settlement in a drawer and once to a payment, loses it.

use serde::{Deserialize, Serialize};

use crate::amount::{Amount, Net, net};
use crate::typed::Settlement;

/// How long a settlement stays valid after it is proposed, seconds, by default.
pub const SETTLEMENT_VALIDITY_S: u64 = 3600;

/// How far a settlement's number may run ahead of the ledger's, so that nobody can use the numbers up.
pub const SEQ_AHEAD_MAX: u64 = 1 << 32;

/// What the ledger says of one account.
///
/// Deposits are those of the confirmed head; withdrawals, status, deadline and proven totals those of the seen head:
/// each party thus errs on the side on which it cannot lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// `MD`, confirmed.
    pub member_deposit: Amount,
    /// `HD`, confirmed.
    pub hub_deposit: Amount,
    /// `MW`, seen.
    pub member_withdrawn: Amount,
    /// `HW`, seen.
    pub hub_withdrawn: Amount,
    /// Number of the newest posted settlement, seen.
    pub seq: u64,
    /// Number of the newest posted settlement at the confirmed head.
    pub seq_confirmed: u64,
    /// Status, seen.
    pub status: Status,
    /// While closing: the end of the challenge period, chain time in seconds.
    pub deadline: u64,
    /// `PM` as far as it is proven on the ledger.
    pub member_paid: Amount,
    /// `PH` as far as it is proven on the ledger.
    pub hub_paid: Amount,
}

/// An account's status on the ledger. Final is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Status {
    /// Payments and settlements go on.
    #[default]
    Open,
    /// A unilateral close runs.
    Closing,
    /// Paid out.
    Final,
}

/// A settlement that a party signed or proposed and that may still be posted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What it says.
    pub settlement: Settlement,
}

impl Totals {
    /// `C`: what the contract still holds for the account.
    pub fn custody(&self) -> Net {
        net([self.member_deposit, self.hub_deposit], [self.member_withdrawn, self.hub_withdrawn])
    }

    /// `MW* HW*`: the larger of the ledger's withdrawals and those of every settlement that may still be posted.
    pub fn withdrawn_with(&self, kept: &[Kept]) -> (Amount, Amount) {
        kept.iter().fold((self.member_withdrawn, self.hub_withdrawn), |(member, hub), k| {
            (member.max(Amount::new(k.settlement.memberWithdrawn)), hub.max(Amount::new(k.settlement.hubWithdrawn)))
        })
    }

    /// `MD - MW* + PH - PM`: what the member may still pay.
    pub fn member_net(&self, kept: &[Kept], member_paid: Amount, hub_paid: Amount) -> Net {
        let (withdrawn, _) = self.withdrawn_with(kept);
        net([self.member_deposit, hub_paid], [withdrawn, member_paid])
    }

    /// `HD - HW* + PM - PH`: what the hub may still credit.
    pub fn hub_net(&self, kept: &[Kept], member_paid: Amount, hub_paid: Amount) -> Net {
        let (_, withdrawn) = self.withdrawn_with(kept);
        net([self.hub_deposit, member_paid], [withdrawn, hub_paid])
    }

    /// What a close would pay: `m = min(C, max(0, (MD + PH) - (MW + PM)))` to the member, `C - m` to the hub.
    pub fn payout(&self, member_paid: Amount, hub_paid: Amount) -> (Amount, Amount) {
        let custody = clamp(self.custody());
        let claim = clamp(net([self.member_deposit, hub_paid], [self.member_withdrawn, member_paid]));
        let member = claim.min(custody);
        (member, custody.saturating_sub(member))
    }
}

impl Kept {
    /// Whether it can no longer be posted: posted or overtaken, or past its validity, both at the confirmed head.
    pub fn is_over(&self, seq_confirmed: u64, confirmed_time: u64) -> bool {
        seq_confirmed >= self.settlement.seq || confirmed_time > self.settlement.validUntil
    }

    /// Whether it freezes the account while it may still be posted.
    pub fn closes(&self) -> bool {
        self.settlement.close
    }
}

/// A net as an amount: nothing if negative.
pub fn clamp(value: Net) -> Amount {
    if value.is_negative() { Amount::ZERO } else { Amount::new(u128::try_from(value.into_raw()).unwrap_or(u128::MAX)) }
}

/// Whether a net covers an amount.
pub fn covers(value: Net, amount: Amount) -> bool {
    !value.is_negative() && value.into_raw() >= alloy_primitives::U256::from(amount.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever is proven, a payout neither reverts nor exceeds custody, and gives each party its net where both
        /// nets are sound.
        #[test]
        fn a_payout_never_exceeds_custody(md: u64, hd: u64, pm: u64, ph: u64, w in 0u64..1000) {
            let a = |v: u64| Amount::new(u128::from(v));
            let totals = Totals { member_deposit: a(md), hub_deposit: a(hd), member_withdrawn: a(md.min(w)), ..Totals::default() };
            let (to_member, to_hub) = totals.payout(a(pm), a(ph));
            let paid = to_member.checked_add(to_hub).expect("both are at most custody");
            prop_assert_eq!(clamp(totals.custody()), paid);
            let (member, hub) = (totals.member_net(&[], a(pm), a(ph)), totals.hub_net(&[], a(pm), a(ph)));
            prop_assert_eq!(totals.custody(), member.saturating_add(hub), "I1");
            if !member.is_negative() && !hub.is_negative() {
                prop_assert_eq!((clamp(member), clamp(hub)), (to_member, to_hub));
            }
        }
    }
}
