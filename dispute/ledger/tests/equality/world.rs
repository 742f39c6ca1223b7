//! Random worlds and blocks. Everything follows from one seed: accounts, contracts, blocks, transactions.
//!
//! Worlds are small on purpose: few accounts and few slots meet often, and meetings are what goes wrong in a parallel
//! executor. Nonces are predicted as if each transaction were executed, so most are right and some are not.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use alloy::consensus::{SignableTransaction, TxEip1559, TxEip2930, TxEnvelope, TxLegacy, TypedTransaction};
use alloy::eips::eip2718::Encodable2718;
use alloy::eips::eip2930::{AccessList, AccessListItem};
use alloy::signers::SignerSync;
use alloy::signers::local::PrivateKeySigner;
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, Signature, TxKind, U256, address, keccak256};
use payhub_ledger::ED25519_PRECOMPILE;
use payhub_ledger::evm::BlockContext;
use payhub_ledger::state::{AccountChange, Basic, ChangeSet, State};
use payhub_ledger::transaction::Recovered;

use crate::asm::{Step, Then, Value, both, code, deployer, hashed, of, op, slot};
use crate::dice::Dice;

/// The chain all worlds are on.
pub const CHAIN_ID: u64 = 1;

/// Gas of a block: no block here comes near it, and the executors do not count it.
const BLOCK_GAS_LIMIT: u64 = 1_000_000_000;

const ETHER: u128 = 1_000_000_000_000_000_000;

/// Keys of all senders that any world has.
static SIGNERS: LazyLock<Vec<PrivateKeySigner>> = LazyLock::new(|| {
    (1..=24u8).map(|i| PrivateKeySigner::from_bytes(&B256::repeat_byte(i)).expect("a scalar below the order")).collect()
});

/// Whether an EVM that is not ours has to understand the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Our executors only: signatures are not made and our precompile is called.
    Ourselves,
    /// The Ethereum reference implementation too.
    Reference,
}

/// One block before it is executed.
#[derive(Debug, Clone)]
pub struct Block {
    /// Its environment.
    pub context: BlockContext,
    /// Its candidates.
    pub transactions: Vec<Recovered>,
}

/// A world in the middle of its history.
pub struct World {
    dice: Dice,
    audience: Audience,
    /// The state after the blocks so far.
    pub state: State,
    number: u64,
    timestamp: u64,
    /// Hashes of the blocks so far.
    pub block_hashes: BTreeMap<u64, B256>,
    senders: Vec<Address>,
    contracts: Vec<Contract>,
    others: Vec<Address>,
    fee_recipients: Vec<Address>,
}

/// What the generator remembers of a contract: how to call it with sense.
#[derive(Debug, Clone, Copy)]
struct Contract {
    address: Address,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Adds to a slot, to one by argument, reads others.
    Counter,
    /// Balances in a mapping, a total that is read, events.
    Token,
    /// Pays its coins to whom it is told.
    Payer,
    /// Makes children at addresses that repeat, calls, pays and destroys them.
    Factory,
    /// Calls back into itself and others behind a guard.
    Guard,
    /// Reads accounts, code and blocks.
    Reader,
    /// Calls by each of the call instructions.
    Caller,
    /// Ends in each way that is not success.
    Failing,
    /// Calls precompiles.
    Hasher,
    /// Random steps.
    Random,
}

const KINDS: [Kind; 10] = [
    Kind::Counter,
    Kind::Token,
    Kind::Payer,
    Kind::Factory,
    Kind::Guard,
    Kind::Reader,
    Kind::Caller,
    Kind::Failing,
    Kind::Hasher,
    Kind::Random,
];

impl World {
    /// The world of a seed before its first block.
    pub fn new(seed: u64, audience: Audience) -> Self {
        let mut dice = Dice::new(seed);
        let mut genesis = ChangeSet::default();
        let senders: Vec<Address> = SIGNERS.iter().take(2 + dice.below(23)).map(PrivateKeySigner::address).collect();
        for sender in &senders {
            let balance = match dice.below(12) {
                0 => None,
                1 => Some(U256::from(dice.number(100_000))),
                2 => Some(U256::from(dice.number(ETHER / 100))),
                3 => Some(U256::from(u128::MAX)),
                _ => Some(U256::from(1_000 * ETHER + dice.number(1_000))),
            };
            let nonce = if dice.below(200) == 0 { u64::MAX - 1 - dice.bits() % 2 } else { dice.bits() % 3 };
            if let Some(balance) = balance {
                let basic = Basic { balance, nonce, code_hash: KECCAK256_EMPTY };
                put(&mut genesis, *sender, basic, &[], &[]);
            }
        }
        let kinds = 3 + dice.below(9);
        let contracts: Vec<Contract> = (0..kinds)
            .map(|i| {
                let address = Address::with_last_byte(0xc0 + u8::try_from(i).expect("few"));
                Contract { address, kind: *dice.pick(&KINDS).expect("not empty") }
            })
            .collect();
        let others: Vec<Address> =
            (0..2 + dice.below(4)).map(|i| Address::repeat_byte(0xe0 + u8::try_from(i).expect("few"))).collect();
        let mut world = Self {
            dice,
            audience,
            state: State::default(),
            number: 0,
            timestamp: 1_800_000_000,
            block_hashes: BTreeMap::new(),
            senders,
            contracts: contracts.clone(),
            others,
            fee_recipients: Vec::new(),
        };
        // Someone who gets the fees may be anybody; the same one for a few blocks, as on a real chain.
        let candidates = [
            address!("0xfee0000000000000000000000000000000000000"),
            world.senders[0],
            world.others[0],
            world.contracts[0].address,
            world.contracts[1].address,
            world.factory_child(world.contracts[2].address, 0),
            world.senders[1].create(0),
            Address::with_last_byte(4),
            Address::ZERO,
        ];
        for _ in 0..2 {
            let picked = world.dice.pick(&candidates).copied().expect("not empty");
            world.fee_recipients.push(picked);
        }
        for contract in &contracts {
            let program = world.program(*contract);
            let balance = U256::from(world.dice.number(ETHER));
            let slots: Vec<(U256, U256)> = match contract.kind {
                Kind::Token => world
                    .everybody()
                    .into_iter()
                    .filter(|_| world.dice.chance(70))
                    .map(|a| (mapping_slot(a), U256::from(1_000)))
                    .collect(),
                _ => (0..world.dice.below(6)).map(|i| (U256::from(i), U256::from(1 + world.dice.below(9)))).collect(),
            };
            let basic = Basic { balance, nonce: 1, code_hash: keccak256(&program) };
            put(&mut genesis, contract.address, basic, &program, &slots);
        }
        // An account that signs and has code (EIP-3607), and a contract that can create no more.
        if world.dice.chance(15) {
            let program = code(&[Step::Return(1.into())]);
            let basic = Basic { balance: U256::from(ETHER), nonce: 0, code_hash: keccak256(&program) };
            put(&mut genesis, world.senders[1], basic, &program, &[]);
        }
        if world.dice.chance(10) {
            let contract = genesis.accounts.get_mut(&contracts[1].address).expect("just made");
            contract.basic = contract.basic.map(|basic| Basic { nonce: u64::MAX, ..basic });
        }
        world.state.apply(&genesis);
        let first = if world.dice.chance(10) { 300 } else { 1 };
        for number in 0..first {
            world.push_hash(number);
        }
        world.number = first - 1;
        world
    }

    /// The next block; [`World::advance`] with its changes makes it part of the history.
    pub fn next_block(&mut self) -> Block {
        let length = match self.dice.below(100) {
            0..50 => 1 + self.dice.below(6),
            50..85 => 1 + self.dice.below(20),
            85..99 => 1 + self.dice.below(50),
            _ if self.audience == Audience::Reference => 50,
            _ => 51 + self.dice.below(250),
        };
        self.block_of(length)
    }

    /// A block with this many candidates.
    pub fn block_of(&mut self, length: usize) -> Block {
        let base_fee = *self.dice.pick(&[0, 7, 1_000_000_000]).expect("not empty");
        let context = BlockContext {
            chain_id: CHAIN_ID,
            number: self.number + 1,
            timestamp: self.timestamp + 1 + self.dice.bits() % 20,
            fee_recipient: self.fee_recipients[self.dice.below(2)],
            gas_limit: BLOCK_GAS_LIMIT,
            base_fee,
            prev_randao: B256::from(U256::from(self.dice.bits())),
        };
        let mood = Mood::throw(&mut self.dice);
        let mut nonces: BTreeMap<Address, u64> = self.senders.iter().map(|a| (*a, self.state.basic(a).nonce)).collect();
        let transactions = (0..length).map(|_| self.transaction(&context, &mood, &mut nonces)).collect();
        Block { context, transactions }
    }

    /// Moves the world past a block.
    pub fn advance(&mut self, block: &Block, changes: &ChangeSet) {
        self.state.apply(changes);
        self.number = block.context.number;
        self.timestamp = block.context.timestamp;
        self.push_hash(self.number);
    }

    fn push_hash(&mut self, number: u64) {
        let hash = keccak256(number.to_be_bytes());
        self.block_hashes.insert(number, hash);
        self.state.push_block_hash(number, hash);
    }

    fn transaction(&mut self, block: &BlockContext, mood: &Mood, nonces: &mut BTreeMap<Address, u64>) -> Recovered {
        let mut from = if self.dice.chance(mood.one_sender) { 0 } else { self.dice.below(self.senders.len()) };
        if self.state.basic(&self.senders[from]).balance < U256::from(ETHER / 100) && self.dice.chance(70) {
            from = self.dice.below(self.senders.len());
        }
        let sender = self.senders[from];
        let expected = nonces.get(&sender).copied().unwrap_or_default();
        let mut gap = false;
        let nonce = if self.dice.chance(mood.bad_nonce) {
            match self.dice.below(3) {
                // A gap that nobody fills, or that the next transaction of the sender fills.
                0 => {
                    gap = true;
                    expected.saturating_add(1 + self.dice.bits() % 2)
                }
                1 => expected.saturating_sub(1),
                _ => expected.saturating_sub(self.dice.bits() % 3),
            }
        } else {
            expected
        };
        let (to, value, input) = self.purpose(mood, sender);
        let list = match self.dice.below(10) {
            0..2 => self.access_list(),
            _ => AccessList::default(),
        };
        let intrinsic = intrinsic_gas(to, &input, &list);
        let gas_limit = match self.dice.below(100) {
            0 => intrinsic - 1,
            1..8 => intrinsic + self.dice.bits() % 40_000,
            8..95 => intrinsic + 300_000 - self.dice.bits() % 200_000,
            _ => intrinsic + 1_000_000,
        };
        let gas_limit = if input.is_empty() && self.dice.chance(60) { intrinsic } else { gas_limit };
        let tip = if self.dice.chance(mood.no_tip) { 0 } else { u128::from(self.dice.bits() % 3_000_000_000) };
        let base_fee = u128::from(block.base_fee);
        let (max_fee, tip) = match self.dice.below(100) {
            0 => (base_fee.saturating_sub(1), 0),
            1 => (base_fee + tip, base_fee + tip + 1),
            2..50 => (base_fee + tip, tip),
            _ => (base_fee + tip + u128::from(self.dice.bits() % 1_000), tip),
        };
        // Nonces go on as if the transaction were executed wherever it looks so; a balance changes on the way.
        let cost = U256::from(max_fee).saturating_mul(U256::from(gas_limit)).saturating_add(value);
        let affordable = cost <= self.state.basic(&sender).balance || self.dice.chance(20);
        if !gap && nonce == expected && affordable && max_fee >= base_fee.max(tip) && gas_limit >= intrinsic {
            nonces.insert(sender, expected.saturating_add(1));
        }
        let chain_id = CHAIN_ID;
        let plain = list.is_empty();
        let tx = match self.dice.below(4) {
            0 | 1 if plain => TypedTransaction::Legacy(TxLegacy {
                chain_id: Some(chain_id),
                nonce,
                gas_price: max_fee,
                gas_limit,
                to,
                value,
                input,
            }),
            0 => TypedTransaction::Eip2930(TxEip2930 {
                chain_id,
                nonce,
                gas_price: max_fee,
                gas_limit,
                to,
                value,
                access_list: list,
                input,
            }),
            _ => TypedTransaction::Eip1559(TxEip1559 {
                chain_id,
                nonce,
                gas_limit,
                max_fee_per_gas: max_fee,
                max_priority_fee_per_gas: tip,
                to,
                value,
                access_list: list,
                input,
            }),
        };
        self.signed(tx, from)
    }

    fn signed(&self, tx: TypedTransaction, from: usize) -> Recovered {
        let signature = match self.audience {
            // Executors never look at signatures.
            Audience::Ourselves => Signature::test_signature(),
            Audience::Reference => {
                SIGNERS[from].sign_hash_sync(&tx.signature_hash()).expect("signing in memory does not fail")
            }
        };
        let tx: TxEnvelope = tx.into_envelope(signature);
        let raw: Bytes = match self.audience {
            Audience::Ourselves => Bytes::new(),
            Audience::Reference => tx.encoded_2718().into(),
        };
        Recovered { sender: self.senders[from], hash: keccak256(&raw), raw, tx }
    }

    /// To whom, how much, with what bytes.
    fn purpose(&mut self, mood: &Mood, sender: Address) -> (TxKind, U256, Bytes) {
        let roll = u64::try_from(self.dice.below(100)).expect("small");
        if roll < mood.transfers {
            let to = match self.dice.below(12) {
                0 => sender,
                1 => self.fee_recipients[0],
                2 => self.fee_recipients[1],
                3 => Address::from_word(keccak256(self.dice.bits().to_be_bytes())),
                4 => self.some_target(),
                5..8 => self.others[0],
                _ => self.somebody(),
            };
            let value = match self.dice.below(10) {
                0..2 => U256::ZERO,
                2 if self.dice.chance(20) => U256::from(ETHER * 2_000),
                3 if self.dice.chance(20) => self.state.basic(&sender).balance,
                4 => U256::from(ETHER),
                5 if self.dice.chance(10) => U256::MAX,
                _ => U256::from(self.dice.number(1_000_000)),
            };
            return (TxKind::Call(to), value, Bytes::new());
        }
        if roll < mood.transfers + mood.creations {
            let runtime = self.child_runtime();
            let constructor = self.constructor();
            let value = if self.dice.chance(30) { U256::from(self.dice.number(1_000)) } else { U256::ZERO };
            let init = match self.dice.below(30) {
                // One byte too much for EIP-3860, one too much for EIP-170, a reserved first byte (EIP-3541), nothing.
                0 if self.dice.chance(10) => vec![0; 49_153],
                1 if self.dice.chance(10) => deployer(&[], &vec![0; 24_577]),
                2 => deployer(&[], &[0xef, 1]),
                3 => Vec::new(),
                _ => deployer(&constructor, &runtime),
            };
            return (TxKind::Create, value, init.into());
        }
        let value = if self.dice.chance(20) { U256::from(self.dice.number(1_000)) } else { U256::ZERO };
        let (to, kind) = if self.dice.chance(mood.hot) {
            (self.contracts[0].address, self.contracts[0].kind)
        } else if self.dice.chance(15) {
            (self.some_target(), Kind::Random)
        } else {
            let contract = self.contracts[self.dice.below(self.contracts.len())];
            (contract.address, contract.kind)
        };
        let words: Vec<U256> = match kind {
            Kind::Token | Kind::Payer => {
                let to = if self.dice.chance(mood.hot) { self.others[0] } else { self.somebody() };
                vec![word(to), U256::from(self.dice.below(40))]
            }
            _ => (0..2)
                .map(|_| if self.dice.chance(30) { word(self.some_target()) } else { U256::from(self.dice.below(12)) })
                .collect(),
        };
        let input: Vec<u8> = words.iter().flat_map(|w| w.to_be_bytes::<32>()).collect();
        (TxKind::Call(to), value, input.into())
    }

    fn access_list(&mut self) -> AccessList {
        let items = (0..self.dice.below(4)).map(|_| AccessListItem {
            address: self.some_target(),
            storage_keys: (0..self.dice.below(3)).map(|_| U256::from(self.dice.below(6)).into()).collect(),
        });
        AccessList(items.collect())
    }

    fn everybody(&self) -> Vec<Address> {
        self.senders.iter().chain(&self.others).copied().collect()
    }

    /// A sender or another account without code.
    fn somebody(&mut self) -> Address {
        let everybody = self.everybody();
        *self.dice.pick(&everybody).expect("there are senders")
    }

    /// Any address that means something, now or later: accounts, contracts, contracts to be, precompiles.
    fn some_target(&mut self) -> Address {
        match self.dice.below(12) {
            0..2 => self.somebody(),
            2..6 => self.contracts[self.dice.below(self.contracts.len())].address,
            6 => self.fee_recipients[self.dice.below(2)],
            7 => Address::with_last_byte(1 + u8::try_from(self.dice.below(10)).expect("small")),
            8..10 => {
                let factory = self.contracts[self.dice.below(self.contracts.len())].address;
                let salt = self.dice.bits() % 2;
                self.factory_child(factory, salt)
            }
            10 => self.contracts[self.dice.below(self.contracts.len())].address.create(1 + self.dice.bits() % 3),
            _ => {
                let sender = self.senders[self.dice.below(self.senders.len())];
                sender.create(self.state.basic(&sender).nonce.saturating_add(self.dice.bits() % 3))
            }
        }
    }

    /// Where a factory puts its child.
    fn factory_child(&self, factory: Address, salt: u64) -> Address {
        factory.create2_from_code(B256::from(U256::from(salt)), factory_init())
    }

    /// A value for random steps.
    fn value(&mut self, depth: usize) -> Value {
        const PLAIN: [u8; 17] = [
            op::ADDRESS,
            op::ORIGIN,
            op::CALLER,
            op::CALLVALUE,
            op::CALLDATASIZE,
            op::CODESIZE,
            op::GASPRICE,
            op::RETURNDATASIZE,
            op::COINBASE,
            op::TIMESTAMP,
            op::NUMBER,
            op::PREVRANDAO,
            op::GASLIMIT,
            op::CHAINID,
            op::SELFBALANCE,
            op::BASEFEE,
            op::BLOBBASEFEE,
        ];
        match self.dice.below(if depth == 0 { 6 } else { 14 }) {
            0 => Value::from(self.dice.bits() % 8),
            1 => Value::Arg(self.dice.bits() % 2),
            2 => Value::Env(*self.dice.pick(&PLAIN).expect("not empty")),
            3 => self.some_target().into(),
            4 => Value::Returned,
            5 => slot(self.dice.bits() % 6),
            6 => of(op::SLOAD, self.index()),
            7 => of(op::BALANCE, self.value(depth - 1)),
            8 => of(op::EXTCODEHASH, self.value(depth - 1)),
            9 => of(op::EXTCODESIZE, self.value(depth - 1)),
            10 => of(op::TLOAD, self.index()),
            11 => both(op::ADD, self.value(depth - 1), self.value(depth - 1)),
            12 => of(op::BLOCKHASH, both(op::SUB, Value::Env(op::NUMBER), self.dice.bits() % 260)),
            _ => both(op::EQ, self.value(depth - 1), self.value(depth - 1)),
        }
    }

    /// A slot out of few, so that contracts and transactions meet; sometimes one that the state decides.
    fn index(&mut self) -> Value {
        match self.dice.below(6) {
            0 => both(op::MOD, Value::Arg(0), 6),
            1 => both(op::MOD, slot(self.dice.bits() % 6), 6),
            2 => hashed(Value::Env(op::CALLER)),
            _ => Value::from(self.dice.bits() % 6),
        }
    }

    fn steps(&mut self, most: usize, depth: usize) -> Vec<Step> {
        (0..1 + self.dice.below(most)).map(|_| self.step(depth)).collect()
    }

    fn step(&mut self, depth: usize) -> Step {
        let cases = if depth == 0 { 10 } else { 16 };
        match self.dice.below(cases) {
            0..2 => {
                let index = self.index();
                Step::Store(index.clone(), both(op::ADD, of(op::SLOAD, index), 1))
            }
            2 => Step::Store(self.index(), self.value(2)),
            3 => Step::StoreTransient(self.index(), self.value(1)),
            4 => {
                let topics = (0..self.dice.below(5)).map(|_| self.value(1)).collect();
                Step::Log(topics, self.value(2))
            }
            5 => {
                let then = self.then();
                Step::Call {
                    with: op::CALL,
                    to: self.value(1),
                    value: Value::from(self.dice.bits() % 3),
                    arguments: Vec::new(),
                    gas: Some(Value::from(self.dice.bits() % 50_000)),
                    then,
                }
            }
            6 => Step::HashCodeOf(self.value(1), self.index()),
            7 => {
                let with =
                    *self.dice.pick(&[op::CALL, op::CALLCODE, op::DELEGATECALL, op::STATICCALL]).expect("not empty");
                let to = self.some_target();
                let gas = self.dice.chance(50).then(|| Value::from(self.dice.bits() % 100_000));
                let arguments = (0..self.dice.below(3)).map(|_| self.value(0)).collect();
                Step::Call { with, to: to.into(), value: 0.into(), arguments, gas, then: self.then() }
            }
            8 => {
                let index = Value::from(self.dice.bits() % 6);
                Step::Store(index.clone(), of(op::SLOAD, index))
            }
            9 if self.dice.chance(25) => self.ending(),
            9 => Step::Store(self.index(), 0.into()),
            10..12 => Step::If(self.value(1), self.steps(3, depth - 1)),
            12..14 => Step::Loop(1 + self.dice.bits() % 4, self.steps(2, depth - 1)),
            _ => {
                let salt = self.dice.chance(60).then(|| Value::from(self.dice.bits() % 2));
                let init = if self.dice.chance(50) {
                    factory_init()
                } else {
                    let runtime = self.child_runtime();
                    deployer(&self.constructor(), &runtime)
                };
                Step::Create { init, salt, value: Value::from(self.dice.bits() % 3), then: self.then() }
            }
        }
    }

    fn then(&mut self) -> Then {
        match self.dice.below(3) {
            0 => Then::Ignore,
            1 => Then::Require,
            _ => Then::Store(Value::from(self.dice.bits() % 6)),
        }
    }

    fn ending(&mut self) -> Step {
        match self.dice.below(6) {
            0 => Step::Revert(self.value(1)),
            1 => Step::Raw(op::INVALID),
            2 => Step::Spin,
            3 => Step::SelfDestruct(self.value(0)),
            4 => Step::Raw(op::POP),
            _ => Step::Return(self.value(1)),
        }
    }

    /// What a created contract does when it is called.
    fn child_runtime(&mut self) -> Vec<u8> {
        match self.dice.below(5) {
            0 => Vec::new(),
            1 => child_runtime(),
            _ => code(&self.steps(4, 1)),
        }
    }

    fn constructor(&mut self) -> Vec<Step> {
        match self.dice.below(8) {
            0 => vec![Step::SelfDestruct(self.value(0))],
            1 => vec![Step::Revert(7.into())],
            2..5 => Vec::new(),
            _ => self.steps(3, 1),
        }
    }

    fn program(&mut self, contract: Contract) -> Vec<u8> {
        let call = |with, to: Value, value: Value, arguments: Vec<Value>, then| Step::Call {
            with,
            to,
            value,
            arguments,
            gas: None,
            then,
        };
        let caller = || Value::Env(op::CALLER);
        let steps = match contract.kind {
            Kind::Counter => {
                let mine = hashed(caller());
                vec![
                    Step::Store(0.into(), both(op::ADD, slot(0), 1)),
                    Step::Store(mine.clone(), both(op::ADD, of(op::SLOAD, mine), Value::Arg(1))),
                    Step::Loop(
                        1 + self.dice.bits() % 6,
                        vec![Step::Store(
                            both(op::ADD, 1, Value::Index),
                            both(op::ADD, of(op::SLOAD, both(op::ADD, 1, Value::Index)), Value::Arg(0)),
                        )],
                    ),
                    Step::Log(vec![slot(0)], Value::Arg(0)),
                ]
            }
            Kind::Token => {
                let (mine, theirs) = (hashed(caller()), hashed(Value::Arg(0)));
                vec![
                    Step::If(both(op::LT, of(op::SLOAD, mine.clone()), Value::Arg(1)), vec![Step::Revert(1.into())]),
                    Step::Store(mine.clone(), both(op::SUB, of(op::SLOAD, mine), Value::Arg(1))),
                    Step::Store(theirs.clone(), both(op::ADD, of(op::SLOAD, theirs), Value::Arg(1))),
                    Step::Log(vec![keccak256("Transfer").into_value(), caller(), Value::Arg(0)], Value::Arg(1)),
                    Step::Return(1.into()),
                ]
            }
            Kind::Payer => vec![
                call(op::CALL, Value::Arg(0), Value::Arg(1), vec![], self.then()),
                call(op::CALL, Value::Env(op::COINBASE), 1.into(), vec![], Then::Ignore),
                Step::Store(1.into(), of(op::BALANCE, Value::Arg(0))),
            ],
            Kind::Factory => {
                let salt = self.dice.bits() % 2;
                let child: Value = self.factory_child(contract.address, salt).into();
                let destroy = vec![call(op::CALL, child.clone(), 0.into(), vec![1.into()], Then::Ignore)];
                vec![
                    Step::Store(0.into(), both(op::ADD, slot(0), 1)),
                    Step::Create {
                        init: factory_init(),
                        salt: Some(salt.into()),
                        value: 1.into(),
                        then: Then::Store(1.into()),
                    },
                    call(op::CALL, child.clone(), 2.into(), vec![], Then::Ignore),
                    Step::If(both(op::MOD, Value::Arg(0), 2), destroy),
                    // Coins sent after the destruction are burned with the account.
                    call(op::CALL, child.clone(), 1.into(), vec![], Then::Ignore),
                    Step::Store(2.into(), of(op::BALANCE, child.clone())),
                    Step::Store(3.into(), of(op::EXTCODEHASH, child)),
                ]
            }
            Kind::Guard => vec![
                Step::If(slot(0), vec![Step::Revert(2.into())]),
                Step::Store(0.into(), 1.into()),
                Step::If(of(op::TLOAD, 1), vec![Step::Revert(3.into())]),
                Step::StoreTransient(1.into(), 1.into()),
                call(op::CALL, self.some_target().into(), 0.into(), vec![Value::Arg(1)], Then::Store(1.into())),
                call(op::CALL, contract.address.into(), 0.into(), vec![], Then::Store(2.into())),
                Step::StoreTransient(1.into(), 0.into()),
                Step::Store(0.into(), 0.into()),
            ],
            Kind::Reader => {
                let target: Value = self.some_target().into();
                vec![
                    Step::Log(vec![of(op::BALANCE, target.clone())], of(op::BALANCE, Value::Env(op::COINBASE))),
                    Step::Log(vec![], of(op::EXTCODEHASH, target.clone())),
                    Step::HashCodeOf(target.clone(), 0.into()),
                    Step::Store(1.into(), of(op::EXTCODESIZE, target)),
                    Step::Store(2.into(), of(op::BLOCKHASH, both(op::SUB, Value::Env(op::NUMBER), 1))),
                    Step::Store(3.into(), of(op::BALANCE, Value::Arg(0))),
                    Step::Store(4.into(), of(op::EXTCODEHASH, Value::Arg(1))),
                    Step::Store(5.into(), Value::Env(op::SELFBALANCE)),
                ]
            }
            Kind::Caller => {
                let mut steps = Vec::new();
                for with in [op::CALL, op::DELEGATECALL, op::STATICCALL, op::CALLCODE] {
                    let to = self.contracts[self.dice.below(self.contracts.len())].address;
                    let then = self.then();
                    steps.push(call(with, to.into(), 0.into(), vec![Value::Arg(1), Value::Arg(0)], then));
                }
                steps
            }
            Kind::Failing => {
                let endings = [
                    Step::Revert(9.into()),
                    Step::Raw(op::INVALID),
                    Step::Spin,
                    Step::Raw(op::POP),
                    Step::Raw(0x0c),
                    Step::SelfDestruct(caller()),
                    Step::SelfDestruct(Value::Env(op::ADDRESS)),
                ];
                let mut steps = vec![Step::Store(0.into(), both(op::ADD, slot(0), 1)), Step::Log(vec![], slot(0))];
                for (i, ending) in (0u64..).zip(endings) {
                    steps.push(Step::If(both(op::EQ, Value::Arg(0), i), vec![ending]));
                }
                steps
            }
            Kind::Hasher => self.precompile_calls(),
            Kind::Random => self.steps(7, 2),
        };
        code(&steps)
    }

    fn precompile_calls(&mut self) -> Vec<Step> {
        let mut steps = vec![Step::Store(0.into(), both(op::ADD, slot(0), 1))];
        let digest = keccak256(self.dice.bits().to_be_bytes());
        let signature = SIGNERS[0].sign_hash_sync(&digest).expect("signing in memory does not fail");
        let mut recover = digest.to_vec();
        recover.extend([0; 31]);
        recover.push(27 + u8::from(signature.v()));
        recover.extend(signature.r().to_be_bytes::<32>());
        recover.extend(signature.s().to_be_bytes::<32>());
        let junk: Vec<u8> = (0..self.dice.below(200)).map(|_| self.dice.bits().to_le_bytes()[0]).collect();
        // 3^5 mod 7, and the sum of a point of alt_bn128 with itself.
        let mut power = Vec::new();
        for length in [1u64, 1, 1] {
            power.extend(U256::from(length).to_be_bytes::<32>());
        }
        power.extend([3, 5, 7]);
        let mut points = Vec::new();
        for coordinate in [1u64, 2, 1, 2] {
            points.extend(U256::from(coordinate).to_be_bytes::<32>());
        }
        let mut inputs: Vec<(Address, Vec<u8>)> = vec![
            (Address::with_last_byte(1), recover),
            (Address::with_last_byte(2), junk.clone()),
            (Address::with_last_byte(3), junk.clone()),
            (Address::with_last_byte(4), junk.clone()),
            (Address::with_last_byte(5), power),
            (Address::with_last_byte(6), points),
            (Address::with_last_byte(9), junk.clone()),
            (Address::with_last_byte(10), junk.clone()),
        ];
        if self.audience == Audience::Ourselves {
            let key = ed25519_dalek::SigningKey::from_bytes(&digest.0);
            let mut signed = digest.to_vec();
            signed.extend(key.verifying_key().to_bytes());
            signed.extend(ed25519_dalek::Signer::sign(&key, digest.as_slice()).to_bytes());
            let mut forged = signed.clone();
            forged[5] ^= 1;
            inputs.extend([(ED25519_PRECOMPILE, signed), (ED25519_PRECOMPILE, forged), (ED25519_PRECOMPILE, junk)]);
        }
        for _ in 0..3 {
            let (to, bytes) = self.dice.pick(&inputs).cloned().expect("not empty");
            steps.push(Step::CallWithBytes { to: to.into(), bytes, then: Then::Store(1.into()) });
            steps.push(Step::Store(2.into(), Value::Returned));
        }
        steps
    }
}

/// What a transaction pays before its first instruction (Yellow Paper, EIP-2028, EIP-2930, EIP-3860).
fn intrinsic_gas(to: TxKind, input: &[u8], list: &AccessList) -> u64 {
    let bytes = input.len() as u64;
    let zeros = input.iter().filter(|byte| **byte == 0).count() as u64;
    let creation = if to.is_create() { 32_000 + 2 * bytes.div_ceil(32) } else { 0 };
    let list = list.iter().map(|item| 2_400 + 1_900 * item.storage_keys.len() as u64).sum::<u64>();
    21_000 + 4 * zeros + 16 * (bytes - zeros) + creation + list
}

/// How a block leans, in per cent.
struct Mood {
    transfers: u64,
    creations: u64,
    hot: u64,
    bad_nonce: u64,
    no_tip: u64,
    one_sender: u64,
}

impl Mood {
    fn throw(dice: &mut Dice) -> Self {
        let mut one_of = |choices: &[u64]| *dice.pick(choices).expect("not empty");
        Self {
            transfers: one_of(&[5, 30, 80]),
            creations: one_of(&[2, 10, 20]),
            hot: one_of(&[0, 20, 90]),
            bad_nonce: one_of(&[0, 5, 5, 30]),
            no_tip: one_of(&[0, 20, 100]),
            one_sender: one_of(&[0, 0, 0, 50, 100]),
        }
    }
}

trait IntoValue {
    fn into_value(self) -> Value;
}

impl IntoValue for B256 {
    fn into_value(self) -> Value {
        Value::Word(self.into())
    }
}

fn word(address: Address) -> U256 {
    U256::from_be_slice(address.as_slice())
}

fn mapping_slot(address: Address) -> U256 {
    keccak256(word(address).to_be_bytes::<32>()).into()
}

/// A contract that counts and pays, and that an argument destroys.
fn child_runtime() -> Vec<u8> {
    code(&[
        Step::Store(0.into(), both(op::ADD, slot(0), 1)),
        Step::Store(2.into(), slot(1)),
        Step::If(Value::Arg(0), vec![Step::SelfDestruct(Value::Env(op::CALLER))]),
    ])
}

/// What factories deploy, always the same bytes, so that the address depends on factory and salt alone.
fn factory_init() -> Vec<u8> {
    deployer(&[Step::Store(1.into(), Value::Env(op::CALLVALUE))], &child_runtime())
}

fn put(genesis: &mut ChangeSet, address: Address, basic: Basic, code: &[u8], slots: &[(U256, U256)]) {
    if !code.is_empty() {
        genesis.codes.insert(basic.code_hash, Bytes::copy_from_slice(code));
    }
    let change = AccountChange { basic: Some(basic), storage_reset: false, slots: slots.iter().copied().collect() };
    genesis.accounts.insert(address, change);
}
