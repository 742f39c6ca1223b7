//! Blocks made by hand around what breaks parallel executors, with what must come out of them, and blocks of real
//! contracts that nobody here wrote.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, Signature, TxKind, U256, keccak256};
use payhub_ledger::BLOCK_GAS_LIMIT;
use payhub_ledger::bench::{Workload, Workshop};
use payhub_ledger::block_stm::BlockStm;
use payhub_ledger::evm::BlockContext;
use payhub_ledger::executor::{BlockOutput, Executor, Outcome, SkipReason};
use payhub_ledger::state::{AccountChange, Basic, ChangeSet, State};
use payhub_ledger::transaction::Recovered;
use revm::context_interface::result::InvalidTransaction;

use crate::asm::{Step, Then, Value, both, code, deployer, of, op, slot};
use crate::check::{Watchdog, alternates, candidates, differs, execute, sequential};
use crate::oracle::Oracle;
use crate::reference::Tool;
use crate::world::{Block, CHAIN_ID};

/// What everybody here owns.
const RICH: u64 = 1_000_000_000_000_000_000;

/// Gas of a call with room to spare.
const GAS: u64 = 400_000;

const BASE_FEE: u64 = 7;
const TIP: u64 = 3;
const FEE_RECIPIENT: Address = Address::repeat_byte(0xfe);

/// How often each parallel executor gets a block: it takes another course each time.
const REPETITIONS: usize = 10;

/// A state and a block in the making.
struct Scene {
    genesis: ChangeSet,
    transactions: Vec<Recovered>,
    nonces: BTreeMap<Address, u64>,
    fee_recipient: Address,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self {
            genesis: ChangeSet::default(),
            transactions: Vec::new(),
            nonces: BTreeMap::new(),
            fee_recipient: FEE_RECIPIENT,
        };
        (0..20).for_each(|i| scene.account(person(i), RICH, &[]));
        scene
    }

    fn account(&mut self, address: Address, balance: u64, code: &[u8]) {
        let code_hash = if code.is_empty() { KECCAK256_EMPTY } else { keccak256(code) };
        if !code.is_empty() {
            self.genesis.codes.insert(code_hash, Bytes::copy_from_slice(code));
        }
        let basic = Basic { balance: U256::from(balance), nonce: u64::from(!code.is_empty()), code_hash };
        let change = AccountChange { basic: Some(basic), ..AccountChange::default() };
        self.genesis.accounts.insert(address, change);
    }

    /// The next transaction of a sender.
    fn send(&mut self, from: Address, to: TxKind, value: u64, input: Vec<u8>) {
        let nonce = self.nonces.entry(from).or_default();
        let now = *nonce;
        *nonce += 1;
        self.send_with(from, now, to, value, input, GAS);
    }

    fn send_with(&mut self, from: Address, nonce: u64, to: TxKind, value: u64, input: Vec<u8>, gas_limit: u64) {
        let tx = TxEip1559 {
            chain_id: CHAIN_ID,
            nonce,
            gas_limit,
            max_fee_per_gas: u128::from(BASE_FEE + TIP),
            max_priority_fee_per_gas: u128::from(TIP),
            to,
            value: U256::from(value),
            access_list: Default::default(),
            input: input.into(),
        };
        let tx = TxEnvelope::from(tx.into_signed(Signature::test_signature()));
        self.transactions.push(Recovered { tx, sender: from, hash: B256::ZERO, raw: Bytes::new() });
    }

    fn pay(&mut self, from: Address, to: Address, value: u64) {
        self.send(from, TxKind::Call(to), value, Vec::new());
    }

    fn call(&mut self, from: Address, to: Address, argument: u64) {
        self.send(from, TxKind::Call(to), 0, U256::from(argument).to_be_bytes::<32>().to_vec());
    }

    /// Executes the block by everybody, many times by the parallel executors, and returns what it does.
    fn play(self, name: &str) -> (BlockOutput, State) {
        let watchdog = Watchdog::new(format!("{name} hangs"));
        let mut state = State::default();
        state.apply(&self.genesis);
        state.push_block_hash(0, B256::repeat_byte(1));
        let context = BlockContext {
            chain_id: CHAIN_ID,
            number: 1,
            timestamp: 1_800_000_000,
            fee_recipient: self.fee_recipient,
            gas_limit: 1_000_000_000,
            base_fee: BASE_FEE,
            prev_randao: B256::ZERO,
        };
        let block = Block { context, transactions: self.transactions };
        let output = agreed(name, &block, &state);
        let mut oracle = Oracle::new(&state, &BTreeMap::from([(0, B256::repeat_byte(1))]));
        let verdict = oracle.execute(&block).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(verdict.outcomes, output.outcomes, "{name}");
        assert_eq!(verdict.receipts, output.receipts, "{name}");
        assert_eq!(Some(verdict.access_list), output.access_list, "{name}");
        state.apply(&output.changes);
        assert_eq!(oracle.difference(&state), None, "{name}");
        watchdog.done();
        (output, state)
    }
}

/// Executes a block by everybody and returns what they agree on.
fn agreed(name: &str, block: &Block, state: &State) -> BlockOutput {
    let output = execute(&mut sequential(), block, state).unwrap_or_else(|e| panic!("{name}: {e}"));
    for repetition in 0..REPETITIONS {
        let seed = repetition as u64 + 1;
        let jittery = |workers| {
            let workers = NonZeroUsize::new(workers).expect("not zero");
            BlockStm::new(workers).with_access_list(true).with_cutoff(0).with_jitter(seed)
        };
        let mut executors = if repetition == 0 { candidates(seed) } else { Vec::new() };
        if repetition == 0 {
            executors.extend(alternates(seed));
        }
        executors.extend([2, 3, 8].map(|workers| Box::new(jittery(workers)) as Box<dyn Executor>));
        for executor in &mut executors {
            if let Some(difference) = differs(executor.as_mut(), block, state, &output) {
                panic!("{name}, jitter {seed}: {} differs: {difference}", executor.name());
            }
        }
    }
    output
}

fn person(i: u8) -> Address {
    Address::repeat_byte(0x10 + i)
}

fn ahead(tx: u64, state: u64) -> Outcome {
    Outcome::Skipped(SkipReason::NonceAhead { tx, state })
}

fn used(tx: u64, state: u64) -> Outcome {
    Outcome::Skipped(SkipReason::Invalid(InvalidTransaction::NonceTooLow { tx, state }))
}

fn insolvent(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Skipped(SkipReason::Invalid(InvalidTransaction::LackOfFundForMaxFee { .. })))
}

/// A contract that adds one to slot 0 and logs it.
fn counter() -> Vec<u8> {
    code(&[Step::Store(0.into(), both(op::ADD, slot(0), 1)), Step::Log(vec![], slot(0))])
}

#[test]
fn a_gap_is_skipped_and_what_comes_after_it_is_executed_when_its_turn_has_come() {
    let mut scene = Scene::new();
    let a = person(0);
    for nonce in [0, 2, 1, 2, 2, 9, 3, 0] {
        scene.send_with(a, nonce, TxKind::Call(person(1)), 1, vec![], GAS);
        scene.pay(person(2), person(3), 1);
    }
    let (output, state) = scene.play("nonce gaps");
    let own: Vec<Outcome> = output.outcomes.iter().step_by(2).cloned().collect();
    let done = Outcome::Executed;
    assert_eq!(own, [done.clone(), ahead(2, 1), done.clone(), done.clone(), used(2, 3), ahead(9, 3), done, used(0, 4)]);
    assert_eq!(state.basic(&a).nonce, 4);
}

#[test]
fn a_block_of_gaps_alone_is_skipped_whole() {
    let mut scene = Scene::new();
    for nonce in (1..200).rev() {
        scene.send_with(person(0), nonce, TxKind::Call(person(1)), 1, vec![], GAS);
    }
    let (output, _) = scene.play("gaps alone");
    let expected: Vec<Outcome> = (1..200).rev().map(|nonce| ahead(nonce, 0)).collect();
    assert_eq!(output.outcomes, expected);
    assert_eq!(output.changes, ChangeSet::default());
}

#[test]
fn who_cannot_pay_is_skipped_and_who_was_paid_before_is_not() {
    let mut scene = Scene::new();
    let (poor, rich) = (Address::repeat_byte(0x77), person(0));
    scene.send_with(poor, 0, TxKind::Call(rich), 1, vec![], 21_000);
    scene.pay(rich, poor, 21_000 * (BASE_FEE + TIP) + 1);
    scene.send_with(poor, 0, TxKind::Call(rich), 1, vec![], 21_000);
    scene.send_with(poor, 1, TxKind::Call(rich), 1, vec![], 21_000);
    // Somebody who spends all he has, after which nothing is left for another transaction.
    let spender = person(1);
    scene.send_with(spender, 0, TxKind::Call(rich), RICH - 21_000 * (BASE_FEE + TIP), vec![], 21_000);
    scene.send_with(spender, 1, TxKind::Call(rich), 0, vec![], 21_000);
    let (output, state) = scene.play("insolvent senders");
    let skipped: Vec<bool> = output.outcomes.iter().map(insolvent).collect();
    assert_eq!(skipped, [true, false, false, true, false, true]);
    assert_eq!(state.basic(&poor).balance, U256::ZERO);
}

#[test]
fn a_chain_of_payments_each_from_what_came_before_goes_through() {
    let mut scene = Scene::new();
    let stranger = |i: u8| Address::repeat_byte(0x80 + i);
    let fee = 21_000 * (BASE_FEE + TIP);
    scene.pay(person(0), stranger(0), fee * 101);
    for i in 0..100u8 {
        let value = fee * (100 - u64::from(i));
        scene.send_with(stranger(i), 0, TxKind::Call(stranger(i + 1)), value, vec![], 21_000);
    }
    let (output, state) = scene.play("chain of payments");
    assert_eq!(output.receipts.len(), 101);
    assert_eq!(state.basic(&stranger(100)).balance, U256::from(fee));
    assert_eq!(state.basic(&FEE_RECIPIENT).balance, U256::from(101 * 21_000 * TIP));
}

#[test]
fn out_of_gas_costs_the_limit_and_undoes_the_rest() {
    let mut scene = Scene::new();
    let burner = Address::repeat_byte(0xb0);
    scene.account(burner, 0, &code(&[Step::Store(0.into(), 1.into()), Step::Log(vec![], 1.into()), Step::Spin]));
    for i in 0..12 {
        scene.call(person(i), burner, 0);
    }
    let (output, state) = scene.play("out of gas");
    assert!(output.receipts.iter().all(|r| !r.success && r.gas_used == GAS && r.logs.is_empty()));
    assert_eq!(state.slot(&burner, U256::ZERO), U256::ZERO);
}

#[test]
fn who_pays_himself_loses_the_fee_only() {
    let mut scene = Scene::new();
    for _ in 0..30 {
        for i in 0..4 {
            scene.pay(person(i), person(i), 1_000);
        }
    }
    let (output, state) = scene.play("self-transfers");
    assert_eq!(output.receipts.len(), 120);
    for i in 0..4 {
        let basic = state.basic(&person(i));
        assert_eq!(basic.nonce, 30);
        assert_eq!(basic.balance, U256::from(RICH - 30 * 21_000 * (BASE_FEE + TIP)));
    }
}

#[test]
fn the_fee_recipient_may_be_anybody() {
    let watcher = Address::repeat_byte(0xb1);
    // Slot 0 counts the looks, and what each saw is in the slot of its number.
    let watching = code(&[
        Step::Store(0.into(), both(op::ADD, slot(0), 1)),
        Step::Store(slot(0), of(op::BALANCE, Value::Env(op::COINBASE))),
    ]);
    // An account that does not exist, a sender, a contract that is called, a precompile.
    for recipient in [FEE_RECIPIENT, person(0), watcher, Address::with_last_byte(2)] {
        let mut scene = Scene::new();
        scene.fee_recipient = recipient;
        scene.account(watcher, 5, &watching);
        for i in 1..8 {
            scene.pay(person(i), recipient, 100);
            scene.pay(person(0), person(i), 1);
            scene.call(person(i), watcher, 0);
        }
        let (output, state) = scene.play("fee recipient");
        assert_eq!(output.receipts.len(), 21, "{recipient}");
        if recipient == FEE_RECIPIENT {
            let used: u64 = output.receipts.iter().map(|r| r.gas_used).sum();
            assert_eq!(state.basic(&recipient).balance, U256::from(used * TIP + 700));
            for look in 1..8 {
                let before = &output.receipts[..3 * look - 1];
                let gas: u64 = before.iter().map(|r| r.gas_used).sum();
                let seen = U256::from(gas * TIP + 100 * look as u64);
                assert_eq!(state.slot(&watcher, U256::from(look)), seen);
            }
        }
    }
}

#[test]
fn a_contract_is_created_and_called_in_the_same_block() {
    let mut scene = Scene::new();
    let creator = person(0);
    let child = creator.create(1);
    scene.call(person(1), child, 0);
    scene.pay(creator, person(1), 1);
    scene.send(creator, TxKind::Create, 5, deployer(&[Step::Store(0.into(), 40.into())], &counter()));
    for i in 1..10 {
        scene.call(person(i), child, 0);
    }
    let (output, state) = scene.play("created and called");
    assert!(output.receipts.iter().all(|r| r.success));
    assert_eq!(output.receipts[2].contract_address, Some(child));
    // The first call came too early and met an account without code.
    assert!(output.receipts[0].logs.is_empty());
    assert_eq!(state.slot(&child, U256::ZERO), U256::from(49));
    assert_eq!(state.basic(&child).balance, U256::from(5));
}

#[test]
fn create2_again_begins_with_empty_storage() {
    let mut scene = Scene::new();
    let factory = Address::repeat_byte(0xb2);
    let runtime = code(&[
        Step::Store(0.into(), both(op::ADD, slot(0), 1)),
        Step::Log(vec![], slot(0)),
        Step::If(Value::Arg(0), vec![Step::SelfDestruct(Value::Env(op::CALLER))]),
    ]);
    let init = deployer(&[Step::Store(0.into(), 10.into())], &runtime);
    let child = factory.create2_from_code(B256::ZERO, &init);
    let call = |argument: Value| Step::Call {
        with: op::CALL,
        to: child.into(),
        value: 0.into(),
        arguments: vec![argument],
        gas: None,
        then: Then::Require,
    };
    let steps = [
        Step::Create { init, salt: Some(0.into()), value: 0.into(), then: Then::Store(0.into()) },
        call(0.into()),
        call(Value::Arg(0)),
    ];
    scene.account(factory, 0, &code(&steps));
    // Destroyed in the transaction that created it, three times; then it stays; then it cannot be created again and,
    // being older than the transaction, cannot be destroyed either (EIP-6780).
    for (i, destroy) in (0..).zip([1u64, 1, 1, 0, 0, 1]) {
        // A creation that meets an account takes all the gas it is given, which leaves one 64th.
        let argument = U256::from(destroy).to_be_bytes::<32>().to_vec();
        scene.send_with(person(i), 0, TxKind::Call(factory), 0, argument, 30_000_000);
        scene.send_with(person(i), 1, TxKind::Call(child), 0, vec![], GAS);
    }
    let (output, state) = scene.play("CREATE2 again");
    assert!(output.receipts.iter().all(|r| r.success));
    let logs: Vec<u64> = output
        .receipts
        .iter()
        .flat_map(|r| r.logs.iter().filter(|log| log.address == child))
        .map(|log| U256::from_be_slice(&log.data).to())
        .collect();
    // Calls without data by the payments count as well, from the fourth transaction on.
    assert_eq!(logs, [11, 12, 11, 12, 11, 12, 11, 12, 13, 14, 15, 16, 17, 18, 19]);
    assert_eq!(state.slot(&child, U256::ZERO), U256::from(19));
    assert_eq!(state.basic(&child).code_hash, keccak256(&runtime));
}

#[test]
fn three_hundred_writers_of_one_slot_come_in_order() {
    let mut scene = Scene::new();
    let contract = Address::repeat_byte(0xb3);
    scene.account(contract, 0, &counter());
    for i in 0..300 {
        scene.call(person(u8::try_from(i % 20).expect("small")), contract, 0);
    }
    let (output, state) = scene.play("one hot slot");
    let order: Vec<u64> = output.receipts.iter().map(|r| U256::from_be_slice(&r.logs[0].data).to()).collect();
    assert_eq!(order, (1..=300).collect::<Vec<_>>());
    assert_eq!(state.slot(&contract, U256::ZERO), U256::from(300));
}

#[test]
fn real_contracts_do_the_same_by_every_executor_and_by_the_reference_implementation() {
    let mut tool = Tool::start();
    let mut workshop = Workshop::new(None, BLOCK_GAS_LIMIT);
    for workload in Workload::ALL {
        let name = workload.name();
        let watchdog = Watchdog::new(format!("{name} hangs"));
        let prepared = workshop.prepare(workload, Some(48)).unwrap_or_else(|e| panic!("{name}: {e}"));
        for prepared in prepared.blocks {
            let transactions = prepared.transactions.iter().map(|tx| Recovered::clone(tx)).collect();
            let block = Block { context: prepared.context, transactions };
            let output = agreed(name, &block, &prepared.state);
            assert!(output.receipts.iter().all(|receipt| receipt.success), "{name}");
            // The reference implementation does not have our precompile, which settlements call.
            if !name.starts_with("adjudicator") && !name.starts_with("mass_exit") && workload != Workload::Mixed {
                let compared = tool.compare(&prepared.state, &BTreeMap::new(), &block);
                compared.unwrap_or_else(|difference| panic!("{name}: {difference}"));
            }
        }
        watchdog.done();
    }
}
