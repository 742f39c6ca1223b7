//! What it takes when everybody leaves at once: gas, blocks, time and money; and the challenge period that leaves time
//! for it.
//!
//! Plain arithmetic over [`Pace`], without I/O. A hub checks its challenge period with it at the start, and its operator
//! asks for the whole plan.

use crate::chain::Pace;
use crate::gas::{self, Measured};

/// Time that people need to notice and react, seconds: the largest part of a challenge period outside development.
pub const PEOPLE_TIME_S: u64 = 24 * 3600;
/// Least time for the responses of a mass exit, seconds, however few accounts there are: blocks may be full of others.
pub const MASS_EXIT_TIME_S: u64 = 3600;
/// How much longer than planned the responses may take. A watchtower calls for people when half of its window is over:
/// what takes longer than planned must still be done by then.
pub const SAFETY_FACTOR: u64 = 2;
/// One part in so many of a block that an exit can have. Above half of its limit every block makes the next one dearer by
/// up to an eighth (EIP-1559), which nobody outbids for long.
pub const BLOCK_SHARE: u64 = 2;
/// Gas of a transaction before it does anything.
const TRANSACTION_GAS: u64 = 21_000;
/// The fees that a plan is made for, as multiples of the base fee now.
pub const FEE_FACTORS: [u128; 3] = [1, 10, 100];

/// What every account does in an exit, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStep {
    /// The close is started.
    Start,
    /// Evidence is posted; this must be done within the challenge period.
    Respond,
    /// The account is paid out.
    Finalize,
}

/// How transactions are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// One for each account, as when everybody leaves on his own.
    Single,
    /// Up to a hundred accounts in each, as the hub or a tower of many members does.
    Batched,
}

/// What one step of all accounts takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The step.
    pub step: ExitStep,
    /// How it is sent.
    pub packing: Packing,
    /// Transactions.
    pub transactions: u64,
    /// Gas of all of them.
    pub gas: u64,
    /// Blocks, of each of which the exit has its [`BLOCK_SHARE`].
    pub blocks: u64,
    /// Seconds.
    pub time_s: u64,
    /// Cost in wei at each of [`FEE_FACTORS`]; the tip is paid on top.
    pub cost_wei: [u128; 3],
}

/// A plan for all accounts to leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitPlan {
    /// How many accounts.
    pub accounts: u64,
    /// The steps, first one by one, then batched.
    pub legs: Vec<Leg>,
    /// The shortest challenge period with which nobody is late, seconds.
    pub challenge_period_needed_s: u64,
}

impl ExitPlan {
    /// Whether a challenge period is too short for these accounts.
    pub fn is_too_short(&self, challenge_period_s: u64) -> bool {
        challenge_period_s < self.challenge_period_needed_s
    }
}

/// Plans the exit of `accounts` accounts, all now.
pub fn plan(accounts: u64, pace: &Pace, confirmations: u64) -> ExitPlan {
    let each = |packing| {
        [ExitStep::Start, ExitStep::Respond, ExitStep::Finalize].map(|step| leg(step, packing, accounts, pace))
    };
    ExitPlan {
        accounts,
        legs: [each(Packing::Single), each(Packing::Batched)].concat(),
        challenge_period_needed_s: challenge_period_needed_s(accounts, pace, confirmations),
    }
}

/// The shortest challenge period that leaves time to respond: two reorganisations' depth, the inclusion of the responses
/// of all accounts one by one with [`SAFETY_FACTOR`], and people.
pub fn challenge_period_needed_s(accounts: u64, pace: &Pace, confirmations: u64) -> u64 {
    let responses_s = leg(ExitStep::Respond, Packing::Single, accounts, pace).time_s;
    confirmations
        .saturating_mul(2)
        .saturating_mul(pace.block_time_s)
        .saturating_add(responses_s.saturating_mul(SAFETY_FACTOR).max(MASS_EXIT_TIME_S))
        .saturating_add(PEOPLE_TIME_S)
}

fn leg(step: ExitStep, packing: Packing, accounts: u64, pace: &Pace) -> Leg {
    let Measured { gas, .. } = match (step, packing) {
        (ExitStep::Start, Packing::Single) => gas::START_CLOSE,
        (ExitStep::Respond, Packing::Single) => gas::RESPOND,
        (ExitStep::Finalize, Packing::Single) => gas::FINALIZE,
        (ExitStep::Start, Packing::Batched) => gas::START_CLOSE_OF_MANY,
        (ExitStep::Respond, Packing::Batched) => gas::RESPOND_OF_MANY,
        (ExitStep::Finalize, Packing::Batched) => gas::FINALIZE_OF_MANY,
    };
    let share = pace.block_gas_limit / BLOCK_SHARE;
    // What a whole batch shares is measured as a part of each of its entries; a smaller one shares it among fewer.
    let (frame, entry) = match packing {
        Packing::Single => (0, gas),
        Packing::Batched => (TRANSACTION_GAS, gas - TRANSACTION_GAS / gas::BATCH),
    };
    let entries = match packing {
        Packing::Single => 1,
        Packing::Batched => (share.saturating_sub(frame) / entry).clamp(1, gas::BATCH),
    };
    let transactions = accounts.div_ceil(entries);
    // A block holds one transaction at least, or the chain is of no use at all.
    let a_block = (share / (frame + entry * entries)).max(1);
    let blocks = transactions.div_ceil(a_block);
    let all = entry.saturating_mul(accounts).saturating_add(frame.saturating_mul(transactions));
    let cost_wei = FEE_FACTORS.map(|factor| {
        let price = pace.fees.base_fee_wei.saturating_mul(factor).saturating_add(pace.fees.priority_fee_wei);
        price.saturating_mul(u128::from(all))
    });
    Leg { step, packing, transactions, gas: all, blocks, time_s: blocks.saturating_mul(pace.block_time_s), cost_wei }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Fees;

    fn pace(block_gas_limit: u64, block_time_s: u64) -> Pace {
        Pace { block_gas_limit, block_time_s, fees: Fees { base_fee_wei: 1_000, priority_fee_wei: 7 } }
    }

    #[test]
    fn a_plan_adds_up() {
        let plan = plan(1_000, &pace(30_000_000, 12), 6);
        // (step, packing, transactions, gas, blocks): a share of 15,000,000 a block.
        let expected = [
            (ExitStep::Start, Packing::Single, 1_000, 34_882_000, 3),
            (ExitStep::Respond, Packing::Single, 1_000, 45_819_000, 4),
            (ExitStep::Finalize, Packing::Single, 1_000, 61_729_000, 5),
            (ExitStep::Start, Packing::Batched, 10, 13_939_000, 1),
            (ExitStep::Respond, Packing::Batched, 10, 24_734_000, 2),
            (ExitStep::Finalize, Packing::Batched, 10, 23_064_000, 2),
        ];
        for (leg, (step, packing, transactions, gas, blocks)) in plan.legs.iter().zip(expected) {
            assert_eq!((leg.step, leg.packing, leg.transactions, leg.gas), (step, packing, transactions, gas));
            assert_eq!((leg.blocks, leg.time_s), (blocks, blocks * 12), "{step:?} {packing:?}");
            let gas = u128::from(gas);
            assert_eq!(leg.cost_wei, [gas * 1_007, gas * 10_007, gas * 100_007]);
        }
        assert_eq!(plan.legs.len(), expected.len());
        assert!(plan.is_too_short(plan.challenge_period_needed_s - 1));
        assert!(!plan.is_too_short(plan.challenge_period_needed_s));
    }

    #[test]
    fn the_challenge_period_grows_with_the_accounts_at_risk() {
        let day = PEOPLE_TIME_S;
        // (accounts, block gas limit, block time, confirmations, needed)
        let table = [
            (0, 30_000_000, 1, 0, day + 3_600),
            (0, 30_000_000, 12, 0, day + 3_600),
            (0, 30_000_000, 12, 64, day + 3_600 + 64 * 2 * 12),
            // 327 responses fit a block's share: 150 blocks are half an hour, which the safety factor makes an hour.
            (327 * 150, 30_000_000, 12, 0, day + 3_600),
            (327 * 150 + 1, 30_000_000, 12, 0, day + 3_624),
            (1_000_000, 30_000_000, 12, 6, day + 3_059 * 12 * 2 + 6 * 2 * 12),
        ];
        for (accounts, limit, block_time_s, confirmations, needed) in table {
            let found = challenge_period_needed_s(accounts, &pace(limit, block_time_s), confirmations);
            assert_eq!(found, needed, "{accounts} accounts, {limit} gas, {block_time_s} s, {confirmations} deep");
        }
    }

    #[test]
    fn tiny_blocks_huge_fees_and_no_accounts_are_no_accident() {
        let nobody = plan(0, &pace(30_000_000, 12), 0);
        assert!(nobody.legs.iter().all(|leg| (leg.transactions, leg.gas, leg.blocks) == (0, 0, 0)));
        let alone = plan(1, &pace(30_000_000, 12), 0);
        for (single, batched) in alone.legs[..3].iter().zip(&alone.legs[3..]) {
            assert!(batched.gas > TRANSACTION_GAS && batched.gas <= single.gas, "a batch of one is no bargain");
        }
        let tiny = plan(10, &pace(0, 1), 0);
        assert!(tiny.legs.iter().all(|leg| leg.blocks == 10), "one transaction a block: {tiny:?}");
        let fees = Fees { base_fee_wei: u128::MAX, priority_fee_wei: 1 };
        let dear = plan(u64::MAX, &Pace { block_gas_limit: 1, block_time_s: u64::MAX, fees }, u64::MAX);
        assert!(dear.legs.iter().all(|leg| leg.cost_wei == [u128::MAX; 3]));
        assert_eq!(dear.challenge_period_needed_s, u64::MAX);
    }
}
