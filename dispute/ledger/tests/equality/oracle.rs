//! The independent oracle: revm's own in-memory database, and the state root by a
//! full rebuild with `alloy-trie`. It shares no code with our overlay, our change sets, our state or our trie.

use std::collections::BTreeMap;

use alloy::rlp;
use alloy_eip7928::{
    AccountChanges, BalanceChange, BlockAccessIndex, BlockAccessList, CodeChange, NonceChange, SlotChanges,
    StorageChange,
};
use alloy_primitives::map::AddressSet;
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder, Nibbles, TrieAccount};
use ed25519_dalek::{Signature, VerifyingKey};
use payhub_ledger::ED25519_PRECOMPILE;
use payhub_ledger::evm::BlockContext;
use payhub_ledger::executor::{Outcome, Receipt, SkipReason, StoredLog};
use payhub_ledger::state::State;
use revm::context::{BlockEnv, CfgEnv, Context, Evm, Journal, TxEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::context_interface::result::{EVMError, ExecutionResult, HaltReason, InvalidTransaction, ResultAndState};
use revm::context_interface::{Cfg, ContextTr};
use revm::database::{CacheDB, EmptyDB};
use revm::handler::instructions::EthInstructions;
use revm::handler::{EthPrecompiles, PrecompileProvider, precompile_output_to_interpreter_result};
use revm::interpreter::{CallInputs, InterpreterResult};
use revm::precompile::PrecompileOutput;
use revm::primitives::hardfork::SpecId;
use revm::state::{Account, AccountInfo, Bytecode};
use revm::{DatabaseCommit, ExecuteEvm};

use crate::world::{Block, CHAIN_ID};

/// An EVM with a state of its own that follows a world block by block.
pub struct Oracle {
    db: CacheDB<EmptyDB>,
    created: AddressSet,
    /// How often what was seen.
    pub seen: BTreeMap<&'static str, u64>,
}

/// What the oracle says about a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Executed or skipped, for each transaction.
    pub outcomes: Vec<Outcome>,
    /// Receipts of the executed ones.
    pub receipts: Vec<Receipt>,
    /// What they accessed and changed (EIP-7928).
    pub access_list: BlockAccessList,
}

/// Accesses of one account so far, in the terms of EIP-7928: changes by the number of their transaction.
#[derive(Default)]
struct Accesses {
    balances: BTreeMap<u64, U256>,
    nonces: BTreeMap<u64, u64>,
    codes: BTreeMap<u64, Bytes>,
    slots: BTreeMap<U256, BTreeMap<u64, U256>>,
}

impl Accesses {
    /// Notes what a transaction makes of an account that `db` still has as it was before.
    fn note(&mut self, number: u64, address: Address, account: &Account, db: &CacheDB<EmptyDB>) {
        let before = db.cache.accounts.get(&address);
        let destroyed = account.is_selfdestructed();
        let now = if destroyed { AccountInfo::default() } else { account.info.clone() };
        let old = before.map(|before| before.info.clone()).unwrap_or_default();
        if old.balance != now.balance {
            self.balances.insert(number, now.balance);
        }
        if old.nonce != now.nonce {
            self.nonces.insert(number, now.nonce);
        }
        if old.code_hash != now.code_hash {
            self.codes.insert(number, now.code.map(|code| code.original_bytes()).unwrap_or_default());
        }
        for (index, slot) in &account.storage {
            let writes = self.slots.entry(*index).or_default();
            let old = before.and_then(|before| before.storage.get(index)).copied().unwrap_or_default();
            let now = if destroyed { U256::ZERO } else { slot.present_value };
            if old != now {
                writes.insert(number, now);
            }
        }
    }

    fn changes(self, address: Address) -> AccountChanges {
        let at = BlockAccessIndex::new;
        let (reads, writes): (Vec<_>, Vec<_>) = self.slots.into_iter().partition(|(_, writes)| writes.is_empty());
        let writes = writes.into_iter().map(|(index, writes)| {
            SlotChanges::new(index, writes.into_iter().map(|(n, value)| StorageChange::new(at(n), value)).collect())
        });
        AccountChanges {
            address,
            storage_changes: writes.collect(),
            storage_reads: reads.into_iter().map(|(index, _)| index).collect(),
            balance_changes: self.balances.into_iter().map(|(n, value)| BalanceChange::new(at(n), value)).collect(),
            nonce_changes: self.nonces.into_iter().map(|(n, nonce)| NonceChange::new(at(n), nonce)).collect(),
            code_changes: self.codes.into_iter().map(|(n, code)| CodeChange::new(at(n), code)).collect(),
        }
    }
}

impl Oracle {
    /// Takes over a state and what `BLOCKHASH` knows.
    pub fn new(state: &State, block_hashes: &BTreeMap<u64, B256>) -> Self {
        let mut db = CacheDB::new(EmptyDB::default());
        for (address, account) in state.accounts() {
            let code = state.code(address);
            let info = AccountInfo {
                balance: account.basic.balance,
                nonce: account.basic.nonce,
                code_hash: account.basic.code_hash,
                code: Some(Bytecode::new_raw(code)),
                ..AccountInfo::default()
            };
            db.insert_account_info(*address, info);
            for (index, value) in &account.slots {
                let Ok(()) = db.insert_account_storage(*address, *index, *value);
            }
        }
        for (number, hash) in block_hashes {
            db.cache.block_hashes.insert(U256::from(*number), *hash);
        }
        Self { db, created: AddressSet::default(), seen: BTreeMap::new() }
    }

    /// Tells the hash of a block, for `BLOCKHASH`.
    pub fn push_hash(&mut self, number: u64, hash: B256) {
        self.db.cache.block_hashes.insert(U256::from(number), hash);
    }

    /// Executes a block and keeps its effect.
    pub fn execute(&mut self, block: &Block) -> Result<Verdict, String> {
        let ctx = Context::<BlockEnv, TxEnv, CfgEnv, _, Journal<&mut CacheDB<EmptyDB>>, ()>::new(
            &mut self.db,
            SpecId::CANCUN,
        )
        .with_block(environment(&block.context))
        .with_cfg(CfgEnv::new_with_spec(SpecId::CANCUN).with_chain_id(CHAIN_ID));
        let precompiles = Precompiles::new();
        let mut evm = Evm::new(ctx, EthInstructions::new_mainnet_with_spec(SpecId::CANCUN), precompiles);
        let (mut outcomes, mut receipts, mut cumulative_gas_used) = (Vec::new(), Vec::<Receipt>::new(), 0);
        let mut accesses = BTreeMap::<Address, Accesses>::new();
        for (index, tx) in block.transactions.iter().enumerate() {
            match evm.transact(tx.env()) {
                Ok(ResultAndState { result, state }) => {
                    let mut see = |what| *self.seen.entry(what).or_default() += 1;
                    see(match &result {
                        ExecutionResult::Success { .. } => "executed",
                        ExecutionResult::Revert { .. } => "reverted",
                        ExecutionResult::Halt { reason: HaltReason::OutOfGas(_), .. } => "out of gas",
                        ExecutionResult::Halt { .. } => "halted",
                    });
                    for (address, account) in &state {
                        if account.is_created() && account.is_selfdestructed() {
                            see("created and destroyed");
                        }
                        if account.is_created() && !self.created.insert(*address) {
                            see("created again");
                        }
                        if account.is_touched() && account.is_empty() {
                            see("touched and empty");
                        }
                        if *address == block.context.fee_recipient && account.info.code_hash != KECCAK256_EMPTY {
                            see("fees to a contract");
                        }
                    }
                    for log in result.logs() {
                        see(["log 0", "log 1", "log 2", "log 3", "log 4"][log.topics().len()]);
                    }
                    let db = &mut evm.ctx.journaled_state.database;
                    for (address, account) in &state {
                        let number = receipts.len() as u64 + 1;
                        accesses.entry(*address).or_default().note(number, *address, account, db);
                    }
                    db.commit(state);
                    let gas_used = result.tx_gas_used();
                    cumulative_gas_used += gas_used;
                    let logs = if result.is_success() { result.logs() } else { &[] };
                    let logs = logs.iter().map(|log| StoredLog {
                        address: log.address,
                        topics: log.data.topics().to_vec(),
                        data: log.data.data.clone(),
                    });
                    receipts.push(Receipt {
                        tx_type: tx.tx.tx_type() as u8,
                        success: result.is_success(),
                        gas_used,
                        cumulative_gas_used,
                        contract_address: result.created_address(),
                        logs: logs.collect(),
                    });
                    outcomes.push(Outcome::Executed);
                }
                Err(EVMError::Transaction(InvalidTransaction::NonceTooHigh { tx, state })) => {
                    *self.seen.entry("skipped: nonce ahead").or_default() += 1;
                    outcomes.push(Outcome::Skipped(SkipReason::NonceAhead { tx, state }));
                }
                Err(EVMError::Transaction(invalid)) => {
                    *self.seen.entry(name(&invalid)).or_default() += 1;
                    outcomes.push(Outcome::Skipped(SkipReason::Invalid(invalid)));
                }
                Err(other) => return Err(format!("the oracle fails at transaction {index}: {other}")),
            }
        }
        let access_list = accesses.into_iter().map(|(address, accesses)| accesses.changes(address)).collect();
        Ok(Verdict { outcomes, receipts, access_list })
    }

    /// The accounts that exist: those that are not empty (EIP-161), with their slots that are not zero.
    fn accounts(&self) -> impl Iterator<Item = (&Address, &AccountInfo, Vec<(U256, U256)>)> {
        self.db.cache.accounts.iter().filter(|(_, account)| !account.info.is_empty()).map(|(address, account)| {
            let slots = account.storage.iter().filter(|(_, value)| !value.is_zero());
            (address, &account.info, slots.map(|(index, value)| (*index, *value)).collect())
        })
    }

    /// Tells where a state differs from the oracle's.
    pub fn difference(&self, state: &State) -> Option<String> {
        let mut seen = AddressSet::default();
        for (address, info, slots) in self.accounts() {
            seen.insert(*address);
            let Some(account) = state.account(address) else {
                return Some(format!("account {address} is missing, the oracle has {info:?}"));
            };
            let basic = account.basic;
            if (basic.balance, basic.nonce, basic.code_hash) != (info.balance, info.nonce, info.code_hash) {
                return Some(format!("account {address} is {basic:?}, the oracle has {info:?}"));
            }
            if let Some((index, value)) = slots.iter().find(|(index, value)| account.slots.get(index) != Some(value)) {
                let ours = account.slots.get(index);
                return Some(format!("slot {index} of {address} is {ours:?}, the oracle has {value}"));
            }
            if slots.len() != account.slots.len() {
                return Some(format!("{address} has {} slots, the oracle has {}", account.slots.len(), slots.len()));
            }
            if info.code_hash != KECCAK256_EMPTY {
                let code = self.db.cache.contracts.get(&info.code_hash).map(Bytecode::original_bytes);
                if code != Some(state.code(address)) {
                    return Some(format!("the code of {address} differs from the oracle's"));
                }
            }
        }
        let extra = state.accounts().find(|(address, _)| !seen.contains(*address));
        extra.map(|(address, account)| format!("account {address} exists ({account:?}), not so for the oracle"))
    }

    /// The state root, built from nothing.
    pub fn root(&self) -> B256 {
        let leaves = self.accounts().map(|(address, info, slots)| {
            let slots = slots
                .iter()
                .map(|(index, value)| (keccak256(index.to_be_bytes::<32>()), rlp::encode_fixed_size(value).to_vec()));
            let leaf = TrieAccount {
                nonce: info.nonce,
                balance: info.balance,
                storage_root: root_of(slots.collect()),
                code_hash: info.code_hash,
            };
            (keccak256(address), rlp::encode(leaf))
        });
        root_of(leaves.collect())
    }
}

fn name(invalid: &InvalidTransaction) -> &'static str {
    match invalid {
        InvalidTransaction::NonceTooLow { .. } => "skipped: nonce used",
        InvalidTransaction::LackOfFundForMaxFee { .. } => "skipped: insolvent",
        InvalidTransaction::OverflowPaymentInTransaction => "skipped: cost overflows",
        InvalidTransaction::RejectCallerWithCode => "skipped: sender has code",
        InvalidTransaction::NonceOverflowInTransaction => "skipped: nonce exhausted",
        InvalidTransaction::CallGasCostMoreThanGasLimit { .. } => "skipped: intrinsic gas",
        InvalidTransaction::GasPriceLessThanBasefee => "skipped: below base fee",
        InvalidTransaction::PriorityFeeGreaterThanMaxFee => "skipped: tip above fee",
        InvalidTransaction::CreateInitCodeSizeLimit => "skipped: init code too long",
        _ => "skipped for another reason",
    }
}

fn root_of(mut leaves: Vec<(B256, Vec<u8>)>) -> B256 {
    if leaves.is_empty() {
        return EMPTY_ROOT_HASH;
    }
    leaves.sort();
    let mut builder = HashBuilder::default();
    for (key, value) in leaves {
        builder.add_leaf(Nibbles::unpack(key), &value);
    }
    builder.root()
}

fn environment(block: &BlockContext) -> BlockEnv {
    BlockEnv {
        number: U256::from(block.number),
        beneficiary: block.fee_recipient,
        timestamp: U256::from(block.timestamp),
        gas_limit: block.gas_limit,
        basefee: block.base_fee,
        prevrandao: Some(block.prev_randao),
        blob_excess_gas_and_price: Some(BlobExcessGasAndPrice { excess_blob_gas: 0, blob_gasprice: 1 }),
        ..BlockEnv::default()
    }
}

/// Ethereum's precompiles and ours, written down a second time.
struct Precompiles {
    ethereum: EthPrecompiles,
    addresses: AddressSet,
}

impl Precompiles {
    fn new() -> Self {
        let ethereum = EthPrecompiles::new(SpecId::CANCUN);
        let mut addresses = ethereum.warm_addresses().clone();
        addresses.insert(ED25519_PRECOMPILE);
        Self { ethereum, addresses }
    }
}

impl<CTX: ContextTr<Cfg: Cfg<Spec = SpecId>>> PrecompileProvider<CTX> for Precompiles {
    type Output = InterpreterResult;

    fn set_spec(&mut self, _spec: SpecId) -> bool {
        false
    }

    fn run(&mut self, context: &mut CTX, inputs: &CallInputs) -> Result<Option<InterpreterResult>, String> {
        if inputs.bytecode_address != ED25519_PRECOMPILE {
            return PrecompileProvider::<CTX>::run(&mut self.ethereum, context, inputs);
        }
        let valid = valid(&inputs.input.as_bytes(context)).is_some();
        let output = if valid { B256::with_last_byte(1).to_vec() } else { Vec::new() };
        // The price is written as a number here: it is part of what contracts rely on.
        let output = PrecompileOutput::new(2_000, Bytes::from(output), inputs.reservoir);
        Ok(Some(precompile_output_to_interpreter_result(output, inputs.gas_limit)))
    }

    fn warm_addresses(&self) -> &AddressSet {
        &self.addresses
    }
}

fn valid(input: &[u8]) -> Option<()> {
    let (digest, rest) = input.split_at_checked(32)?;
    let (key, signature) = rest.split_at_checked(32)?;
    let key = VerifyingKey::from_bytes(key.try_into().ok()?).ok()?;
    key.verify_strict(digest, &Signature::from_slice(signature).ok()?).ok()
}
