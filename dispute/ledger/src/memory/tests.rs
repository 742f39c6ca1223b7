//! The memory against the plainest one there is: a list of what each transaction wrote, searched from the end.

use std::collections::BTreeMap;

use alloy_primitives::address;
use revm::state::{Account, AccountInfo, EvmStorageSlot};

use super::*;
use crate::state::{AccountChange, ChangeSet, State};

const A: Address = address!("00000000000000000000000000000000000000aa");
const B: Address = address!("bb00000000000000000000000000000000000000");

/// Makes every hash collide.
#[derive(Clone, Copy)]
struct Colliding;

impl BuildHasher for Colliding {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for Colliding {
    fn finish(&self) -> u64 {
        7
    }

    fn write(&mut self, _: &[u8]) {}
}

/// What a transaction does to an account.
#[derive(Debug, Clone)]
enum Effect {
    Change { balance: u64, slots: Vec<(u64, u64)> },
    Create { balance: u64, slots: Vec<(u64, u64)> },
    Destroy,
}

fn basic(balance: u64) -> Basic {
    Basic { balance: U256::from(balance), ..Basic::default() }
}

fn effects(effects: &[(Address, Effect)]) -> EvmState {
    let account = |effect: &Effect| {
        let mut account = Account::from(AccountInfo::from(basic(1_000)));
        account.mark_touch();
        match effect {
            Effect::Destroy => account.mark_selfdestruct(),
            Effect::Create { .. } => account.mark_created(),
            Effect::Change { .. } => {}
        }
        if let Effect::Change { balance, slots } | Effect::Create { balance, slots } = effect {
            account.info.balance = U256::from(*balance);
            for (index, value) in slots {
                // No test writes so much, so every slot is changed.
                let slot = EvmStorageSlot::new_changed(U256::MAX, U256::from(*value), Default::default());
                account.storage.insert(U256::from(*index), slot);
            }
        }
        account
    };
    effects.iter().map(|(address, effect)| (*address, account(effect))).collect()
}

/// Account A with 5 and two slots.
fn base() -> State {
    let mut state = State::default();
    let slots = [(U256::from(0), U256::from(50)), (U256::from(1), U256::from(51))].into();
    let change = AccountChange { basic: Some(basic(5)), storage_reset: false, slots };
    state.apply(&ChangeSet { accounts: [(A, change)].into(), ..ChangeSet::default() });
    state
}

fn balance<S: BuildHasher>(memory: &Memory<'_, S>, address: Address, position: usize) -> String {
    let read = memory.basic(address, position).expect("the state is whole");
    format!("{:?}", read.map(|basic| basic.map(|basic| basic.balance)))
}

fn slot<S: BuildHasher>(memory: &Memory<'_, S>, address: Address, index: u64, position: usize) -> String {
    format!("{:?}", memory.slot(address, U256::from(index), position).expect("the state is whole"))
}

fn change(balance: u64, slots: &[(u64, u64)]) -> Effect {
    Effect::Change { balance, slots: slots.to_vec() }
}

#[test]
fn a_transaction_reads_the_newest_value_below_it_and_else_the_state_before_the_block() {
    let base = base();
    let memory = Memory::new(&base, DefaultHashBuilder::default(), Tables::default());
    for at in [6, 2] {
        memory.publish(at, &mut effects(&[(A, change(at as u64, &[(0, at as u64)]))]), &mut Vec::new());
    }
    for (position, expected) in [(0, "Base(Some(5))"), (2, "Base(Some(5))"), (3, "Written(Some(2))")] {
        assert_eq!(balance(&memory, A, position), expected, "at {position}");
    }
    for (position, expected) in [(2, "Base(50)"), (3, "Written(2)"), (6, "Written(2)"), (7, "Written(6)")] {
        assert_eq!(slot(&memory, A, 0, position), expected, "at {position}");
    }
    assert_eq!(slot(&memory, A, 1, 9), "Base(51)");
    assert_eq!(balance(&memory, B, 9), "Base(None)");
}

#[test]
fn an_estimate_names_its_transaction_until_the_next_execution_writes_or_takes_back() {
    let base = base();
    let memory = Memory::new(&base, DefaultHashBuilder::default(), Tables::default());
    let mut keys = Vec::new();
    memory.publish(1, &mut effects(&[(A, change(2, &[(0, 3), (1, 4)]))]), &mut keys);
    memory.mark_estimates(1, &keys);
    assert_eq!(balance(&memory, A, 2), "Estimate(1)");
    assert_eq!(slot(&memory, A, 0, 2), "Estimate(1)");
    assert_eq!(slot(&memory, A, 0, 1), "Base(50)", "only later ones wait");

    // This time it does not write slot 1.
    memory.publish(1, &mut effects(&[(A, change(2, &[(0, 9)]))]), &mut keys);
    assert_eq!(balance(&memory, A, 2), "Written(Some(2))");
    assert_eq!(slot(&memory, A, 0, 2), "Written(9)");
    assert_eq!(slot(&memory, A, 1, 2), "Base(51)");

    memory.publish(1, &mut EvmState::default(), &mut keys);
    assert!(keys.is_empty());
    assert_eq!(slot(&memory, A, 0, 2), "Base(50)");
    assert_eq!(balance(&memory, A, 2), "Base(Some(5))");
}

#[test]
fn dropped_storage_reads_as_zero_but_for_what_was_written_since() {
    let base = base();
    let memory = Memory::new(&base, DefaultHashBuilder::default(), Tables::default());
    memory.publish(1, &mut effects(&[(A, change(2, &[(0, 3)]))]), &mut Vec::new());
    memory.publish(3, &mut effects(&[(A, Effect::Destroy)]), &mut Vec::new());
    let mut keys = Vec::new();
    memory.publish(5, &mut effects(&[(A, Effect::Create { balance: 1, slots: vec![(1, 8)] })]), &mut keys);
    for (index, position, expected) in [
        (0, 3, "Written(3)"),
        (0, 4, "Written(0)"),
        (1, 3, "Base(51)"),
        (1, 4, "Written(0)"),
        (0, 6, "Written(0)"),
        (1, 6, "Written(8)"),
    ] {
        assert_eq!(slot(&memory, A, index, position), expected, "slot {index} at {position}");
    }
    assert_eq!(balance(&memory, A, 4), "Written(None)");
    memory.mark_estimates(5, &keys);
    assert_eq!(slot(&memory, A, 0, 6), "Estimate(5)", "whether the storage is dropped is open, too");
}

#[test]
fn a_new_value_tells_whether_a_later_transaction_may_have_read_the_old_one() {
    let base = base();
    let memory = Memory::new(&base, DefaultHashBuilder::default(), Tables::default());
    let mut keys = Vec::new();
    let mut publish = |effect| memory.publish(3, &mut effects(&[(A, effect)]), &mut keys);
    assert!(!publish(change(1_000, &[(0, 1)])), "nobody has read");
    slot(&memory, A, 0, 3);
    assert!(!publish(change(1_000, &[(0, 2)])), "its own reads do not count");
    slot(&memory, A, 0, 4);
    assert!(!publish(change(1_000, &[(0, 2)])), "the same value again");
    assert!(publish(change(1_000, &[(0, 3)])), "another value");
    assert!(publish(change(1_000, &[])), "none any more");
}

#[test]
fn tables_that_were_cleared_hold_nothing() {
    let base = base();
    let memory = Memory::new(&base, DefaultHashBuilder::default(), Tables::default());
    memory.publish(0, &mut effects(&[(A, change(2, &[(0, 3)]))]), &mut Vec::new());
    slot(&memory, A, 0, 9);
    let mut tables = memory.into_tables();
    tables.clear();
    let memory = Memory::new(&base, DefaultHashBuilder::default(), tables);
    assert_eq!(slot(&memory, A, 0, 2), "Base(50)");
    assert_eq!(balance(&memory, A, 2), "Base(Some(5))");
    let overtaken = memory.publish(2, &mut effects(&[(A, change(2, &[(0, 3)]))]), &mut Vec::new());
    assert!(!overtaken, "who read in the block before does not count");
}

/// The writes of one transaction, and whether they are estimates.
#[derive(Default)]
struct Written {
    estimate: bool,
    accounts: BTreeMap<Address, Effect>,
}

/// The plainest memory.
struct Plain<'a> {
    base: &'a State,
    written: Vec<Written>,
}

impl Plain<'_> {
    fn balance(&self, address: Address, position: usize, estimates: bool) -> String {
        for (at, written) in self.written[..position].iter().enumerate().rev() {
            let value = match written.accounts.get(&address) {
                Some(Effect::Change { balance: 1_000, .. }) | None => continue,
                Some(Effect::Change { balance, .. } | Effect::Create { balance, .. }) => Some(*balance),
                Some(Effect::Destroy) => None,
            };
            return if estimates && written.estimate {
                format!("Estimate({at})")
            } else {
                format!("Written({value:?})")
            };
        }
        format!("Base({:?})", self.base.account(&address).map(|account| account.basic.balance))
    }

    fn slot(&self, address: Address, index: u64, position: usize, estimates: bool) -> String {
        for (at, written) in self.written[..position].iter().enumerate().rev() {
            let find = |slots: &[(u64, u64)]| slots.iter().find(|(i, _)| *i == index).map(|(_, value)| *value);
            let value = match written.accounts.get(&address) {
                Some(Effect::Change { slots, .. }) => find(slots),
                Some(Effect::Create { slots, .. }) => Some(find(slots).unwrap_or(0)),
                Some(Effect::Destroy) => Some(0),
                None => None,
            };
            match value {
                Some(_) if estimates && written.estimate => return format!("Estimate({at})"),
                Some(value) => return format!("Written({value})"),
                None => {}
            }
        }
        format!("Base({})", self.base.slot(&address, U256::from(index)))
    }
}

/// A small generator (xorshift), so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

#[test]
fn any_history_reads_as_in_the_plainest_memory_and_no_reader_is_overtaken_unnoticed() {
    for seed in 1..=300 {
        any_history(seed, DefaultHashBuilder::default());
    }
}

#[test]
fn the_same_holds_when_all_hashes_collide() {
    for seed in 1..=300 {
        any_history(seed, Colliding);
    }
}

fn any_history<S: BuildHasher>(seed: u64, hasher: S) {
    const TRANSACTIONS: usize = 6;
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let base = base();
    let memory = Memory::new(&base, hasher, Tables::default());
    let mut plain = Plain { base: &base, written: Vec::new() };
    plain.written.resize_with(TRANSACTIONS, Written::default);
    let mut keys = vec![Vec::new(); TRANSACTIONS];
    let mut seen = Vec::new();
    for _ in 0..60 {
        let at = random.below(TRANSACTIONS as u64) as usize;
        match random.below(5) {
            0 => {
                memory.mark_estimates(at, &keys[at]);
                plain.written[at].estimate = true;
            }
            1 | 2 => {
                let mut accounts = BTreeMap::new();
                for address in [A, B] {
                    let balance = [1_000, 1_001, 1_002][random.below(3) as usize];
                    let slots = (0..random.below(3)).map(|i| (i, random.below(3))).collect();
                    match random.below(8) {
                        0..=2 => drop(accounts.insert(address, Effect::Change { balance, slots })),
                        3 => drop(accounts.insert(address, Effect::Create { balance, slots })),
                        4 => drop(accounts.insert(address, Effect::Destroy)),
                        _ => {}
                    }
                }
                let list = accounts.iter().map(|(address, effect)| (*address, effect.clone())).collect::<Vec<_>>();
                let answers = |plain: &Plain<'_>, seen: &[(Address, u64, usize)]| {
                    let answer = |(address, index, position): &(Address, u64, usize)| {
                        let basic = plain.balance(*address, *position, false);
                        (*position > at).then(|| (basic, plain.slot(*address, *index, *position, false)))
                    };
                    // The base is told from a written value that is equal, which readers do not care about.
                    let value = |text: String| text.split_once('(').map(|(_, value)| value.to_owned());
                    seen.iter().map(answer).map(|read| read.map(|(a, b)| (value(a), value(b)))).collect::<Vec<_>>()
                };
                let before = answers(&plain, &seen);
                let overtaken = memory.publish(at, &mut effects(&list), &mut keys[at]);
                plain.written[at] = Written { estimate: false, accounts };
                assert!(overtaken || before == answers(&plain, &seen), "seed {seed}: overtaken unnoticed by {at}");
            }
            _ => {
                let (address, index) = ([A, B][random.below(2) as usize], random.below(3));
                // As the EVM does: the account first.
                assert_eq!(balance(&memory, address, at), plain.balance(address, at, true), "seed {seed}");
                assert_eq!(slot(&memory, address, index, at), plain.slot(address, index, at, true), "seed {seed}");
                seen.push((address, index, at));
            }
        }
    }
}
