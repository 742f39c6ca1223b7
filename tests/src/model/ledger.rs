//! A model of the adjudicator: for each account the rules of the contract, in plain numbers, with blocks, confirmations
//! and reorganisations.
//!
//! Signatures and the words of ticks are not checked here: the calls carry [`Signed`], [`Proven`] and [`LaneVoucher`]
//! values, which exist only verified.

use alloy_primitives::U256;
use proto::account::{Status, Totals};
use proto::typed::{Receipt, Settlement, Voucher};
use proto::{AccountId, Amount, ChannelId, LaneVoucher, Proven, Side, Signed};

/// A transaction.
#[derive(Clone, Debug)]
pub enum Call {
    /// Money for one side of an account.
    Deposit {
        /// Index of the account.
        account: usize,
        /// Whose deposit it is.
        side: Side,
        /// How much.
        amount: Amount,
    },
    /// A settlement with both halves.
    Settle {
        /// Index of the account.
        account: usize,
        /// The member's half.
        member: Box<Signed<Settlement>>,
        /// The hub's half.
        hub: Box<Proven<Settlement>>,
    },
    /// The beginning of a unilateral close, by a payout account.
    StartClose {
        /// Index of the account.
        account: usize,
    },
    /// Evidence during a close.
    Respond {
        /// Index of the account.
        account: usize,
        /// The member's vouchers, plain or of ticks, one a lane, lanes rising.
        lanes: Vec<LaneVoucher>,
        /// The hub's word.
        hub: Option<Box<HubWord>>,
    },
    /// The end of a close.
    Finalize {
        /// Index of the account.
        account: usize,
    },
}

/// What proves `PH`.
#[derive(Clone, Debug)]
pub enum HubWord {
    /// The hub's cumulative voucher.
    Voucher(Proven<Voucher>),
    /// A receipt: its total counts.
    Receipt(Proven<Receipt>),
}

/// Why a call reverts, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Revert {
    /// The account is final; that is for ever.
    #[error("the account is final")]
    Final,
    /// The account is not in the status that the call needs.
    #[error("the account is {0:?}")]
    Status(Status),
    /// The evidence is of another account.
    #[error("the evidence is of another account")]
    OtherAccount,
    /// Evidence that no ledger takes.
    #[error("the evidence is malformed")]
    Malformed,
    /// After the deadline.
    #[error("the challenge period is over")]
    Late,
    /// Before the deadline.
    #[error("the challenge period still runs")]
    Early,
    /// Past its validity.
    #[error("the settlement is no longer valid")]
    Expired,
    /// Not above the stored number.
    #[error("the settlement is overtaken")]
    OldSeq,
    /// A total falls.
    #[error("a total of the settlement is below what was withdrawn")]
    Falls,
    /// More than the deposits.
    #[error("the settlement is beyond the deposits")]
    BeyondDeposits,
    /// Nothing is raised.
    #[error("nothing is raised")]
    NothingRaised,
    /// The deposits do not fit.
    #[error("the deposits would pass 2^128 - 1")]
    Overflow,
}

/// The chain, with accounts numbered from 0.
#[derive(Clone, Debug)]
pub struct Ledger {
    ids: Vec<AccountId>,
    challenge_period_s: u64,
    confirmations: usize,
    blocks: Vec<Block>,
    confirmed: usize,
    queue: Vec<Call>,
}

#[derive(Clone, Debug)]
struct Block {
    time: u64,
    accounts: Vec<Totals>,
    calls: Vec<Call>,
}

impl Ledger {
    /// A chain whose accounts are open and empty.
    pub fn new(ids: Vec<AccountId>, challenge_period_s: u64, confirmations: usize, time: u64) -> Self {
        let accounts = vec![Totals::default(); ids.len()];
        let genesis = Block { time, accounts, calls: Vec::new() };
        Ledger { ids, challenge_period_s, confirmations, blocks: vec![genesis], confirmed: 0, queue: Vec::new() }
    }

    /// Sends a transaction: the next block has it.
    pub fn send(&mut self, call: Call) {
        self.queue.push(call);
    }

    /// Mines the block with everything that was sent, in the order given by `order`.
    pub fn mine(&mut self, seconds: u64, order: impl FnOnce(&mut [Call])) {
        let mut calls = std::mem::take(&mut self.queue);
        order(&mut calls);
        let time = self.time().saturating_add(seconds.max(1));
        let mut accounts = self.head().accounts.clone();
        calls.retain(|call| self.apply(time, &mut accounts, call).is_ok());
        for (before, after) in self.head().accounts.iter().zip(&accounts) {
            check_step(before, after);
        }
        self.blocks.push(Block { time, accounts, calls });
        self.confirmed = self.confirmed.max((self.blocks.len() - 1).saturating_sub(self.confirmations));
    }

    /// Takes blocks back that are not confirmed, at most `depth`; gives the calls that were in them, oldest first.
    pub fn reorganise(&mut self, depth: usize) -> Vec<Call> {
        let keep = (self.blocks.len().saturating_sub(depth)).max(self.confirmed + 1);
        self.blocks.drain(keep.min(self.blocks.len())..).flat_map(|block| block.calls).collect()
    }

    /// Time of the head, seconds.
    pub fn time(&self) -> u64 {
        self.head().time
    }

    /// Number and time of the confirmed head.
    pub fn confirmed(&self) -> (u64, u64) {
        (u64::try_from(self.confirmed).expect("few blocks"), self.blocks[self.confirmed].time)
    }

    /// The totals at the head.
    pub fn seen(&self, account: usize) -> &Totals {
        &self.head().accounts[account]
    }

    /// The totals at the confirmed head.
    pub fn settled(&self, account: usize) -> &Totals {
        &self.blocks[self.confirmed].accounts[account]
    }

    /// What a party counts: deposits and `seq_confirmed` of the confirmed head, the rest as seen.
    pub fn view(&self, account: usize) -> Totals {
        let (confirmed, seen) = (self.settled(account), self.seen(account));
        Totals {
            member_deposit: confirmed.member_deposit,
            hub_deposit: confirmed.hub_deposit,
            seq_confirmed: confirmed.seq,
            ..*seen
        }
    }

    /// Whether a call would be taken in a block a second from now.
    pub fn check(&self, call: &Call) -> Result<(), Revert> {
        self.apply(self.time().saturating_add(1), &mut self.head().accounts.clone(), call)
    }

    fn head(&self) -> &Block {
        self.blocks.last().expect("there is a genesis block")
    }

    fn apply(&self, time: u64, accounts: &mut [Totals], call: &Call) -> Result<(), Revert> {
        match call {
            Call::Deposit { account, side, amount } => deposit(&mut accounts[*account], *side, *amount),
            Call::Settle { account, member, hub } => {
                check_account(self.ids[*account], member.body().account())?;
                if member.body() != hub.body() {
                    return Err(Revert::Malformed);
                }
                settle(time, &mut accounts[*account], member.body())
            }
            Call::StartClose { account } => {
                let totals = &mut accounts[*account];
                check_status(totals, Status::Open)?;
                totals.status = Status::Closing;
                totals.deadline = time.saturating_add(self.challenge_period_s);
                Ok(())
            }
            Call::Respond { account, lanes, hub } => {
                let member_paid = self.member_paid(*account, lanes)?;
                let hub_paid = self.hub_paid(*account, hub.as_deref())?;
                respond(time, &mut accounts[*account], member_paid, hub_paid)
            }
            Call::Finalize { account } => finalize(time, &mut accounts[*account]),
        }
    }

    /// `PM` as the lanes prove it: sums saturate, they never revert.
    fn member_paid(&self, account: usize, lanes: &[LaneVoucher]) -> Result<Amount, Revert> {
        let mut next_lane = 0;
        let mut paid = Amount::ZERO;
        for voucher in lanes {
            check_account(self.ids[account], voucher.account())?;
            if voucher.lane() < next_lane {
                return Err(Revert::Malformed);
            }
            next_lane = voucher.lane() + 1;
            paid = paid.saturating_add(lane_value(voucher)?);
        }
        Ok(paid)
    }

    fn hub_paid(&self, account: usize, word: Option<&HubWord>) -> Result<Amount, Revert> {
        match word {
            None => Ok(Amount::ZERO),
            Some(HubWord::Voucher(voucher)) => {
                check_account(self.ids[account], voucher.body().account())?;
                let good = voucher.body().check() == Ok(Side::Hub);
                if good { Ok(Amount::new(voucher.body().cumulative)) } else { Err(Revert::Malformed) }
            }
            Some(HubWord::Receipt(receipt)) => {
                let body = receipt.body();
                check_account(self.ids[account], AccountId { channel: ChannelId(body.channelId), asset: body.asset })?;
                Ok(Amount::new(body.total))
            }
        }
    }
}

/// What one lane proves: a plain voucher its cumulative amount, ticks that of the opening and as much as they come to.
fn lane_value(voucher: &LaneVoucher) -> Result<Amount, Revert> {
    match voucher {
        LaneVoucher::Plain(voucher) if voucher.body().check() == Ok(Side::Member) => {
            Ok(Amount::new(voucher.body().cumulative))
        }
        LaneVoucher::Plain(_) => Err(Revert::Malformed),
        LaneVoucher::Ticks(lane) => {
            let body = lane.opening().voucher().body();
            if body.check().is_err() || lane.index() > body.ticks {
                return Err(Revert::Malformed);
            }
            let ticks = body.tick.saturating_mul(lane.index().into());
            Ok(Amount::new(body.cumulative.saturating_add(ticks)))
        }
    }
}

fn check_account(expected: AccountId, given: AccountId) -> Result<(), Revert> {
    if expected == given { Ok(()) } else { Err(Revert::OtherAccount) }
}

fn check_status(totals: &Totals, expected: Status) -> Result<(), Revert> {
    match totals.status {
        status if status == expected => Ok(()),
        Status::Final => Err(Revert::Final),
        status => Err(Revert::Status(status)),
    }
}

fn deposit(totals: &mut Totals, side: Side, amount: Amount) -> Result<(), Revert> {
    check_status(totals, Status::Open)?;
    let all = totals.member_deposit.checked_add(totals.hub_deposit).and_then(|sum| sum.checked_add(amount));
    all.ok_or(Revert::Overflow)?;
    let deposit = match side {
        Side::Member => &mut totals.member_deposit,
        Side::Hub => &mut totals.hub_deposit,
    };
    *deposit = deposit.saturating_add(amount);
    Ok(())
}

fn settle(time: u64, totals: &mut Totals, s: &Settlement) -> Result<(), Revert> {
    match totals.status {
        Status::Final => return Err(Revert::Final),
        Status::Closing if time >= totals.deadline => return Err(Revert::Late),
        Status::Open | Status::Closing => {}
    }
    if time > s.validUntil {
        return Err(Revert::Expired);
    }
    if s.seq <= totals.seq {
        return Err(Revert::OldSeq);
    }
    let (member, hub) = (Amount::new(s.memberWithdrawn), Amount::new(s.hubWithdrawn));
    if member < totals.member_withdrawn || hub < totals.hub_withdrawn {
        return Err(Revert::Falls);
    }
    let deposits = totals.member_deposit.saturating_add(totals.hub_deposit);
    let Some(withdrawn) = member.checked_add(hub).filter(|sum| *sum <= deposits) else {
        return Err(Revert::BeyondDeposits);
    };
    (totals.seq, totals.member_withdrawn, totals.hub_withdrawn) = (s.seq, member, hub);
    if s.close && withdrawn == deposits {
        totals.status = Status::Final;
    }
    Ok(())
}

fn respond(time: u64, totals: &mut Totals, member_paid: Amount, hub_paid: Amount) -> Result<(), Revert> {
    check_status(totals, Status::Closing)?;
    if time >= totals.deadline {
        return Err(Revert::Late);
    }
    if member_paid <= totals.member_paid && hub_paid <= totals.hub_paid {
        return Err(Revert::NothingRaised);
    }
    totals.member_paid = totals.member_paid.max(member_paid);
    totals.hub_paid = totals.hub_paid.max(hub_paid);
    Ok(())
}

/// `m = min(C, max(0, (MD + PH) - (MW + PM)))` to the member, `C - m` to the hub, in 256 bits and without the code
/// under test.
fn finalize(time: u64, totals: &mut Totals) -> Result<(), Revert> {
    check_status(totals, Status::Closing)?;
    if time < totals.deadline {
        return Err(Revert::Early);
    }
    let wide = |amount: Amount| U256::from(amount.get());
    let custody = wide(totals.member_deposit) + wide(totals.hub_deposit)
        - wide(totals.member_withdrawn)
        - wide(totals.hub_withdrawn);
    let credit = wide(totals.member_deposit) + wide(totals.hub_paid);
    let debit = wide(totals.member_withdrawn) + wide(totals.member_paid);
    let member = credit.saturating_sub(debit).min(custody);
    let narrow = |value: U256| Amount::new(u128::try_from(value).expect("a part of custody fits 128 bits"));
    totals.member_withdrawn = totals.member_withdrawn.saturating_add(narrow(member));
    totals.hub_withdrawn = totals.hub_withdrawn.saturating_add(narrow(custody - member));
    totals.status = Status::Final;
    Ok(())
}

/// I1 and I2 of every block.
fn check_step(before: &Totals, after: &Totals) {
    let rising = |t: &Totals| {
        let amounts = [t.member_deposit, t.hub_deposit, t.member_withdrawn, t.hub_withdrawn, t.member_paid, t.hub_paid];
        amounts.map(Amount::get)
    };
    let grown = rising(before).iter().zip(rising(after)).all(|(old, new)| *old <= new);
    assert!(grown && before.seq <= after.seq && before.status <= after.status, "I2: {before:?} became {after:?}");
    let withdrawn = after.member_withdrawn.checked_add(after.hub_withdrawn);
    let deposits = after.member_deposit.saturating_add(after.hub_deposit);
    assert!(withdrawn.is_some_and(|w| w <= deposits), "I1: more was withdrawn than deposited: {after:?}");
    assert!(before.status != Status::Final || before == after, "final is for ever: {before:?} became {after:?}");
}
