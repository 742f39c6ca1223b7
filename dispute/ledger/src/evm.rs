//! How this ledger runs revm: the fork, the Ed25519 precompile and the overlay that collects a block's changes.

use alloy_primitives::map::{AddressMap, AddressSet, B256Map, U256Map};
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, address};
use revm::context::{BlockEnv, CfgEnv, Context, Evm, Journal, TxEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::context_interface::{Cfg, ContextTr};
use revm::handler::instructions::EthInstructions;
use revm::handler::{EthFrame, EthPrecompiles, PrecompileProvider, precompile_output_to_interpreter_result};
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::{CallInputs, InterpreterResult};
use revm::precompile::PrecompileOutput;
use revm::primitives::hardfork::SpecId;
use revm::state::{AccountInfo, Bytecode, EvmState};
use revm::{Database, DatabaseCommit};

use crate::state::{AccountChange, Basic, ChangeSet, ReadState, StateError};

/// The fork of every block of this ledger, the genesis included.
pub const FORK: SpecId = SpecId::CANCUN;

/// Where Ed25519 signatures are verified: input `digest (32) || key (32) || signature (64)`, output the word 1 if
/// the signature is valid under the strict rule and nothing if it is not.
pub const ED25519_PRECOMPILE: Address = address!("0x0000000000000000000000000000000000000ED2");

/// Flat price of one verification; the adjudicator's gas limits count on it.
pub const ED25519_GAS: u64 = 2_000;

/// The environment of a block, as far as execution depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockContext {
    /// The chain id that transactions must name.
    pub chain_id: u64,
    /// Block number.
    pub number: u64,
    /// Block time, seconds since 1970.
    pub timestamp: u64,
    /// Who receives the tips.
    pub fee_recipient: Address,
    /// Most gas the block may use.
    pub gas_limit: u64,
    /// Base fee per gas; it is burned.
    pub base_fee: u64,
    /// The value of `PREVRANDAO`.
    pub prev_randao: B256,
}

impl BlockContext {
    fn env(&self) -> BlockEnv {
        BlockEnv {
            number: U256::from(self.number),
            beneficiary: self.fee_recipient,
            timestamp: U256::from(self.timestamp),
            gas_limit: self.gas_limit,
            basefee: self.base_fee,
            difficulty: U256::ZERO,
            prevrandao: Some(self.prev_randao),
            // There are no blobs here; their price is the lowest the fork knows.
            blob_excess_gas_and_price: Some(BlobExcessGasAndPrice { excess_blob_gas: 0, blob_gasprice: 1 }),
            slot_num: 0,
        }
    }
}

/// Which of the rules that protect a block are lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// A transaction of a block: everything is checked.
    Block,
    /// A call that leaves no trace: any sender, any nonce.
    Call,
}

type LedgerContext<'a> = Context<BlockEnv, TxEnv, CfgEnv, Overlay<'a>, Journal<Overlay<'a>>, ()>;

/// The EVM of this ledger over an overlay.
pub type LedgerEvm<'a> = Evm<
    LedgerContext<'a>,
    (),
    EthInstructions<EthInterpreter, LedgerContext<'a>>,
    LedgerPrecompiles,
    EthFrame<EthInterpreter>,
>;

/// An EVM for one block (or one call) over `base`.
pub fn evm<'a>(block: &BlockContext, base: &'a ReadState<'a>, checks: Checks) -> LedgerEvm<'a> {
    let mut cfg = CfgEnv::new_with_spec(FORK).with_chain_id(block.chain_id);
    if checks == Checks::Call {
        cfg.disable_nonce_check = true;
        cfg.disable_eip3607 = true;
        cfg.tx_chain_id_check = false;
    }
    let ctx = Context::<BlockEnv, TxEnv, CfgEnv, Overlay<'a>, Journal<Overlay<'a>>, ()>::new(Overlay::new(base), FORK)
        .with_block(block.env())
        .with_cfg(cfg);
    Evm::new(ctx, EthInstructions::new_mainnet_with_spec(FORK), LedgerPrecompiles::new())
}

/// Ethereum's precompiles and [`ED25519_PRECOMPILE`].
#[derive(Debug, Clone)]
pub struct LedgerPrecompiles {
    ethereum: EthPrecompiles,
    warm: AddressSet,
}

impl LedgerPrecompiles {
    fn new() -> Self {
        let ethereum = EthPrecompiles::new(FORK);
        let mut warm = ethereum.warm_addresses().clone();
        warm.insert(ED25519_PRECOMPILE);
        Self { ethereum, warm }
    }
}

impl<CTX: ContextTr<Cfg: Cfg<Spec = SpecId>>> PrecompileProvider<CTX> for LedgerPrecompiles {
    type Output = InterpreterResult;

    /// The fork is fixed, so the set never changes after construction.
    fn set_spec(&mut self, _spec: SpecId) -> bool {
        false
    }

    fn run(&mut self, context: &mut CTX, inputs: &CallInputs) -> Result<Option<InterpreterResult>, String> {
        if inputs.bytecode_address != ED25519_PRECOMPILE {
            return PrecompileProvider::<CTX>::run(&mut self.ethereum, context, inputs);
        }
        // Gas first: a call that cannot pay must not get the work done.
        let output =
            if inputs.gas_limit < ED25519_GAS { Bytes::new() } else { ed25519_output(&inputs.input.as_bytes(context)) };
        let output = PrecompileOutput::new(ED25519_GAS, output, inputs.reservoir);
        Ok(Some(precompile_output_to_interpreter_result(output, inputs.gas_limit)))
    }

    fn warm_addresses(&self) -> &AddressSet {
        &self.warm
    }
}

fn ed25519_output(input: &[u8]) -> Bytes {
    let Ok(input) = <&[u8; 128]>::try_from(input) else { return Bytes::new() };
    let (digest, rest) = input.split_at(32);
    let (key, signature) = rest.split_at(32);
    let (Ok(digest), Ok(key), Ok(signature)) = (digest.try_into(), key.try_into(), signature.try_into()) else {
        return Bytes::new();
    };
    if proto::keys::ed25519_verify_strict(digest, key, signature) {
        Bytes::from(U256::ONE.to_be_bytes::<32>())
    } else {
        Bytes::new()
    }
}

/// The state as a running block sees it: what it wrote, and below that the state before the block.
pub struct Overlay<'a> {
    base: &'a ReadState<'a>,
    accounts: AddressMap<OverlayAccount>,
    codes: B256Map<Bytecode>,
}

#[derive(Default)]
struct OverlayAccount {
    before: Option<AccountInfo>,
    now: Option<AccountInfo>,
    storage_reset: bool,
    slots: U256Map<Slot>,
}

struct Slot {
    before: U256,
    now: U256,
}

impl<'a> Overlay<'a> {
    fn new(base: &'a ReadState<'a>) -> Self {
        Self { base, accounts: AddressMap::default(), codes: B256Map::default() }
    }

    fn load(&mut self, address: Address) -> Result<&mut OverlayAccount, StateError> {
        use alloy_primitives::map::Entry;
        match self.accounts.entry(address) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let before = self.base.basic_ref(address)?;
                Ok(entry.insert(OverlayAccount { now: before.clone(), before, ..OverlayAccount::default() }))
            }
        }
    }

    /// The net changes of everything committed so far.
    pub fn changes(&self) -> ChangeSet {
        let mut changes = ChangeSet::default();
        for (address, account) in &self.accounts {
            let slots = account
                .slots
                .iter()
                .filter(|(_, slot)| if account.storage_reset { !slot.now.is_zero() } else { slot.now != slot.before })
                .map(|(index, slot)| (*index, slot.now))
                .collect::<std::collections::BTreeMap<_, _>>();
            // Created and destroyed within the block, or only read.
            if account.now == account.before && slots.is_empty() && !(account.storage_reset && account.before.is_some())
            {
                continue;
            }
            let basic = account.now.as_ref().map(Basic::from);
            let slots = if basic.is_some() { slots } else { Default::default() };
            changes.accounts.insert(*address, AccountChange { basic, storage_reset: account.storage_reset, slots });
        }
        let named = |hash: &B256| changes.accounts.values().any(|a| a.basic.is_some_and(|b| b.code_hash == *hash));
        changes.codes = self
            .codes
            .iter()
            .filter(|(hash, _)| named(hash))
            .map(|(hash, code)| (*hash, code.original_bytes()))
            .collect();
        changes
    }
}

impl Database for Overlay<'_> {
    type Error = StateError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        self.load(address).map(|account| account.now.clone())
    }

    fn code_by_hash(&mut self, code_hash: B256) -> Result<Bytecode, StateError> {
        if let Some(code) = self.codes.get(&code_hash) {
            return Ok(code.clone());
        }
        self.base.code_by_hash_ref(code_hash)
    }

    fn storage(&mut self, address: Address, index: U256) -> Result<U256, StateError> {
        let base = self.base;
        let account = self.load(address)?;
        if let Some(slot) = account.slots.get(&index) {
            return Ok(slot.now);
        }
        if account.storage_reset {
            return Ok(U256::ZERO);
        }
        let value = base.storage_ref(address, index)?;
        account.slots.insert(index, Slot { before: value, now: value });
        Ok(value)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        self.base.block_hash_ref(number)
    }
}

impl DatabaseCommit for Overlay<'_> {
    fn commit(&mut self, changes: EvmState) {
        for (address, changed) in changes {
            if !changed.is_touched() {
                continue;
            }
            let account = self.accounts.entry(address).or_default();
            if changed.is_selfdestructed() || changed.is_created() {
                account.storage_reset = true;
                account.slots.clear();
            }
            // An empty account that was touched does not exist (EIP-161).
            if changed.is_selfdestructed() || changed.is_empty() {
                account.now = None;
                continue;
            }
            for (index, slot) in &changed.storage {
                if slot.is_changed() {
                    let known =
                        account.slots.entry(*index).or_insert(Slot { before: slot.original_value, now: U256::ZERO });
                    known.now = slot.present_value;
                }
            }
            if changed.info.code_hash != KECCAK256_EMPTY
                && changed.is_created()
                && let Some(code) = &changed.info.code
            {
                self.codes.insert(changed.info.code_hash, code.clone());
            }
            account.now = Some(changed.info);
        }
    }
}
