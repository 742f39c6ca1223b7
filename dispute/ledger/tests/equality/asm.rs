//! A very small language for contracts: values, steps, and the assembler that turns them into EVM code.
//!
//! Each value leaves one word on the stack and each step leaves the stack as it was, so steps can be put together at
//! random and the code still runs.

use alloy_primitives::{Address, U256};

/// Instructions by name, those that the generator uses.
pub mod op {
    pub const STOP: u8 = 0x00;
    pub const ADD: u8 = 0x01;
    pub const SUB: u8 = 0x03;
    pub const MOD: u8 = 0x06;
    pub const LT: u8 = 0x10;
    pub const EQ: u8 = 0x14;
    pub const ISZERO: u8 = 0x15;
    pub const KECCAK256: u8 = 0x20;
    pub const ADDRESS: u8 = 0x30;
    pub const BALANCE: u8 = 0x31;
    pub const ORIGIN: u8 = 0x32;
    pub const CALLER: u8 = 0x33;
    pub const CALLVALUE: u8 = 0x34;
    pub const CALLDATALOAD: u8 = 0x35;
    pub const CALLDATASIZE: u8 = 0x36;
    pub const CODESIZE: u8 = 0x38;
    pub const CODECOPY: u8 = 0x39;
    pub const GASPRICE: u8 = 0x3a;
    pub const EXTCODESIZE: u8 = 0x3b;
    pub const EXTCODECOPY: u8 = 0x3c;
    pub const RETURNDATASIZE: u8 = 0x3d;
    pub const EXTCODEHASH: u8 = 0x3f;
    pub const BLOCKHASH: u8 = 0x40;
    pub const COINBASE: u8 = 0x41;
    pub const TIMESTAMP: u8 = 0x42;
    pub const NUMBER: u8 = 0x43;
    pub const PREVRANDAO: u8 = 0x44;
    pub const GASLIMIT: u8 = 0x45;
    pub const CHAINID: u8 = 0x46;
    pub const SELFBALANCE: u8 = 0x47;
    pub const BASEFEE: u8 = 0x48;
    pub const BLOBBASEFEE: u8 = 0x4a;
    pub const POP: u8 = 0x50;
    pub const MLOAD: u8 = 0x51;
    pub const MSTORE: u8 = 0x52;
    pub const SLOAD: u8 = 0x54;
    pub const SSTORE: u8 = 0x55;
    pub const JUMP: u8 = 0x56;
    pub const JUMPI: u8 = 0x57;
    pub const GAS: u8 = 0x5a;
    pub const JUMPDEST: u8 = 0x5b;
    pub const TLOAD: u8 = 0x5c;
    pub const TSTORE: u8 = 0x5d;
    pub const PUSH0: u8 = 0x5f;
    pub const PUSH1: u8 = 0x60;
    pub const PUSH2: u8 = 0x61;
    pub const DUP1: u8 = 0x80;
    pub const SWAP1: u8 = 0x90;
    pub const LOG0: u8 = 0xa0;
    pub const CREATE: u8 = 0xf0;
    pub const CALL: u8 = 0xf1;
    pub const CALLCODE: u8 = 0xf2;
    pub const RETURN: u8 = 0xf3;
    pub const DELEGATECALL: u8 = 0xf4;
    pub const CREATE2: u8 = 0xf5;
    pub const STATICCALL: u8 = 0xfa;
    pub const REVERT: u8 = 0xfd;
    pub const INVALID: u8 = 0xfe;
    pub const SELFDESTRUCT: u8 = 0xff;
}

/// Memory: arguments of calls and hashes from 0, the first word that a call returned, the counter of the innermost
/// loop, init code and calldata of precompiles.
const RETURNED: u64 = 0x200;
const INDEX: u64 = 0x240;
const BLOB: u64 = 0x280;

/// Something that leaves one word on the stack.
#[derive(Debug, Clone)]
pub enum Value {
    /// A constant.
    Word(U256),
    /// A word of the calldata.
    Arg(u64),
    /// What an instruction without operands says.
    Env(u8),
    /// An instruction with one operand.
    Of(u8, Box<Value>),
    /// An instruction with two operands.
    Both(u8, Box<Value>, Box<Value>),
    /// Keccak-256 of a word: how Solidity spreads mappings over slots.
    Hashed(Box<Value>),
    /// The counter of the innermost loop.
    Index,
    /// The first word the last call returned.
    Returned,
}

impl From<u64> for Value {
    fn from(word: u64) -> Self {
        Self::Word(U256::from(word))
    }
}

impl From<Address> for Value {
    fn from(address: Address) -> Self {
        Self::Word(U256::from_be_slice(address.as_slice()))
    }
}

/// `instruction(a)`.
pub fn of(instruction: u8, a: impl Into<Value>) -> Value {
    Value::Of(instruction, Box::new(a.into()))
}

/// `a instruction b`.
pub fn both(instruction: u8, a: impl Into<Value>, b: impl Into<Value>) -> Value {
    Value::Both(instruction, Box::new(a.into()), Box::new(b.into()))
}

/// The mapping slot of a key.
pub fn hashed(key: impl Into<Value>) -> Value {
    Value::Hashed(Box::new(key.into()))
}

/// The content of a slot.
pub fn slot(index: impl Into<Value>) -> Value {
    of(op::SLOAD, index)
}

/// What follows a call or a creation.
#[derive(Debug, Clone)]
pub enum Then {
    /// Nothing.
    Ignore,
    /// A revert if it failed.
    Require,
    /// Its result goes into a slot.
    Store(Value),
}

/// Something that leaves the stack as it was.
#[derive(Debug, Clone)]
pub enum Step {
    /// Writes a slot.
    Store(Value, Value),
    /// Writes a transient slot.
    StoreTransient(Value, Value),
    /// Emits a log with these topics and one word of data.
    Log(Vec<Value>, Value),
    /// Calls with one of the four call instructions; all gas unless said otherwise.
    Call { with: u8, to: Value, value: Value, arguments: Vec<Value>, gas: Option<Value>, then: Then },
    /// Calls with constant bytes.
    CallWithBytes { to: Value, bytes: Vec<u8>, then: Then },
    /// Creates a contract; with a salt it is CREATE2.
    Create { init: Vec<u8>, salt: Option<Value>, value: Value, then: Then },
    /// Copies the first bytes of an account's code and keeps their hash.
    HashCodeOf(Value, Value),
    /// Destroys itself in favour of an account.
    SelfDestruct(Value),
    /// Steps if the value is not zero.
    If(Value, Vec<Step>),
    /// Steps a number of times.
    Loop(u64, Vec<Step>),
    /// Runs until the gas is used up.
    Spin,
    /// Ends with a revert that carries a word.
    Revert(Value),
    /// Ends and returns a word.
    Return(Value),
    /// One byte of code, whatever it does.
    Raw(u8),
}

/// Bytes in the making. Jump targets and places of data are filled in at the end.
#[derive(Default)]
struct Assembler {
    code: Vec<u8>,
    /// Data behind the code, and where its position must be written.
    data: Vec<(usize, Vec<u8>)>,
}

impl Assembler {
    fn op(&mut self, instruction: u8) {
        self.code.push(instruction);
    }

    fn word(&mut self, word: U256) {
        let bytes = word.to_be_bytes_trimmed_vec();
        match u8::try_from(bytes.len()).expect("a word has 32 bytes") {
            0 => self.op(op::PUSH0),
            n => {
                self.op(op::PUSH1 + n - 1);
                self.code.extend(bytes);
            }
        }
    }

    fn number(&mut self, number: u64) {
        self.word(U256::from(number));
    }

    /// Pushes a position that is not known yet and tells where to write it.
    fn position(&mut self) -> usize {
        self.op(op::PUSH2);
        self.code.extend([0, 0]);
        self.code.len() - 2
    }

    fn fill(&mut self, at: usize, position: usize) {
        let position = u16::try_from(position).expect("the programs are short");
        self.code[at..at + 2].copy_from_slice(&position.to_be_bytes());
    }

    fn label(&mut self) -> usize {
        self.op(op::JUMPDEST);
        self.code.len() - 1
    }

    /// Copies data into memory at [`BLOB`] and returns its length.
    fn blob(&mut self, bytes: &[u8]) -> u64 {
        let length = bytes.len() as u64;
        self.number(length);
        let at = self.position();
        self.data.push((at, bytes.to_vec()));
        self.number(BLOB);
        self.op(op::CODECOPY);
        length
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Word(word) => self.word(*word),
            Value::Arg(i) => {
                self.number(32 * i);
                self.op(op::CALLDATALOAD);
            }
            Value::Env(instruction) => self.op(*instruction),
            Value::Of(instruction, a) => {
                self.value(a);
                self.op(*instruction);
            }
            Value::Both(instruction, a, b) => {
                self.value(b);
                self.value(a);
                self.op(*instruction);
            }
            Value::Hashed(a) => {
                self.value(a);
                self.op(op::PUSH0);
                self.op(op::MSTORE);
                self.number(32);
                self.op(op::PUSH0);
                self.op(op::KECCAK256);
            }
            Value::Index => {
                self.number(INDEX);
                self.op(op::MLOAD);
            }
            Value::Returned => {
                self.number(RETURNED);
                self.op(op::MLOAD);
            }
        }
    }

    fn then(&mut self, then: &Then) {
        match then {
            Then::Ignore => self.op(op::POP),
            Then::Require => {
                let at = self.position();
                self.op(op::JUMPI);
                self.op(op::PUSH0);
                self.op(op::PUSH0);
                self.op(op::REVERT);
                let label = self.label();
                self.fill(at, label);
            }
            Then::Store(index) => {
                self.value(index);
                self.op(op::SSTORE);
            }
        }
    }

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Store(index, value) => {
                self.value(value);
                self.value(index);
                self.op(op::SSTORE);
            }
            Step::StoreTransient(index, value) => {
                self.value(value);
                self.value(index);
                self.op(op::TSTORE);
            }
            Step::Log(topics, data) => {
                for topic in topics.iter().rev() {
                    self.value(topic);
                }
                self.value(data);
                self.op(op::PUSH0);
                self.op(op::MSTORE);
                self.number(32);
                self.op(op::PUSH0);
                self.op(op::LOG0 + u8::try_from(topics.len()).expect("at most four topics"));
            }
            Step::Call { with, to, value, arguments, gas, then } => {
                for (i, argument) in (0u64..).zip(arguments) {
                    self.value(argument);
                    self.number(32 * i);
                    self.op(op::MSTORE);
                }
                self.call(*with, to, value, 0, 32 * arguments.len() as u64, gas.as_ref());
                self.then(then);
            }
            Step::CallWithBytes { to, bytes, then } => {
                let length = self.blob(bytes);
                self.call(op::CALL, to, &Value::from(0), BLOB, length, None);
                self.then(then);
            }
            Step::Create { init, salt, value, then } => {
                if let Some(salt) = salt {
                    self.value(salt);
                }
                let length = self.blob(init);
                self.number(length);
                self.number(BLOB);
                self.value(value);
                self.op(if salt.is_some() { op::CREATE2 } else { op::CREATE });
                self.then(then);
            }
            Step::HashCodeOf(account, index) => {
                self.number(96);
                self.op(op::PUSH0);
                self.number(BLOB);
                self.value(account);
                self.op(op::EXTCODECOPY);
                self.number(96);
                self.number(BLOB);
                self.op(op::KECCAK256);
                self.value(index);
                self.op(op::SSTORE);
            }
            Step::SelfDestruct(heir) => {
                self.value(heir);
                self.op(op::SELFDESTRUCT);
            }
            Step::If(condition, steps) => {
                self.value(&of(op::ISZERO, condition.clone()));
                let at = self.position();
                self.op(op::JUMPI);
                self.steps(steps);
                let label = self.label();
                self.fill(at, label);
            }
            Step::Loop(times, steps) => {
                self.number(*times);
                let label = self.label();
                self.op(op::DUP1);
                self.number(INDEX);
                self.op(op::MSTORE);
                self.steps(steps);
                self.number(1);
                self.op(op::SWAP1);
                self.op(op::SUB);
                self.op(op::DUP1);
                let at = self.position();
                self.fill(at, label);
                self.op(op::JUMPI);
                self.op(op::POP);
            }
            Step::Spin => {
                // Long logs use much gas in little time.
                let label = self.label();
                self.number(2_048);
                self.op(op::PUSH0);
                self.op(op::LOG0);
                let at = self.position();
                self.fill(at, label);
                self.op(op::JUMP);
            }
            Step::Revert(word) => self.end(op::REVERT, word),
            Step::Return(word) => self.end(op::RETURN, word),
            Step::Raw(byte) => self.op(*byte),
        }
    }

    fn call(&mut self, with: u8, to: &Value, value: &Value, from: u64, length: u64, gas: Option<&Value>) {
        self.number(32);
        self.number(RETURNED);
        self.number(length);
        self.number(from);
        if matches!(with, op::CALL | op::CALLCODE) {
            self.value(value);
        }
        self.value(to);
        match gas {
            Some(gas) => self.value(gas),
            None => self.op(op::GAS),
        }
        self.op(with);
    }

    fn end(&mut self, instruction: u8, word: &Value) {
        self.value(word);
        self.op(op::PUSH0);
        self.op(op::MSTORE);
        self.number(32);
        self.op(op::PUSH0);
        self.op(instruction);
    }

    fn finish(mut self) -> Vec<u8> {
        // Whatever comes after the last step is data and must not run.
        self.op(op::STOP);
        for (at, bytes) in std::mem::take(&mut self.data) {
            let position = self.code.len();
            self.fill(at, position);
            self.code.extend(bytes);
        }
        self.code
    }
}

/// The code of a contract that takes these steps.
pub fn code(steps: &[Step]) -> Vec<u8> {
    let mut assembler = Assembler::default();
    assembler.steps(steps);
    assembler.finish()
}

/// Init code that takes these steps and deploys `runtime`.
pub fn deployer(constructor: &[Step], runtime: &[u8]) -> Vec<u8> {
    let mut assembler = Assembler::default();
    assembler.steps(constructor);
    let length = assembler.blob(runtime);
    assembler.number(length);
    assembler.number(BLOB);
    assembler.op(op::RETURN);
    assembler.finish()
}
