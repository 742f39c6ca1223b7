//! How this ledger runs revm: the fork, the Ed25519 precompile and the way the fee recipient is paid.

use alloy_primitives::map::AddressSet;
use alloy_primitives::{Address, B256, Bytes, U256, address};
use revm::context::{BlockEnv, CfgEnv, Context, Evm, Journal, TxEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::context_interface::result::{EVMError, ExecutionResult, HaltReason};
use revm::context_interface::{Cfg, ContextSetters, ContextTr};
use revm::handler::instructions::EthInstructions;
use revm::handler::{
    EthFrame, EthPrecompiles, EvmTr, FrameResult, Handler, MainnetHandler, PrecompileProvider, post_execution,
    precompile_output_to_interpreter_result,
};
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::{CallInputs, InterpreterResult};
use revm::precompile::PrecompileOutput;
use revm::primitives::hardfork::SpecId;
use revm::state::EvmState;
use revm::{Database, ExecuteEvm};

use crate::overlay::Overlay;
use crate::state::ReadState;

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

type LedgerContext<DB> = Context<BlockEnv, TxEnv, CfgEnv, DB, Journal<DB>, ()>;

/// The EVM of this ledger over a database.
pub type LedgerEvm<DB> = Evm<
    LedgerContext<DB>,
    (),
    EthInstructions<EthInterpreter, LedgerContext<DB>>,
    LedgerPrecompiles,
    EthFrame<EthInterpreter>,
>;

/// An EVM for one block (or one call) that collects what it changes over `base`.
pub fn evm<'a>(block: &BlockContext, base: &'a ReadState<'a>, checks: Checks) -> LedgerEvm<Overlay<'a>> {
    evm_over(block, Overlay::new(base, block.fee_recipient), checks)
}

/// An EVM for one block (or one call) over any database.
pub fn evm_over<DB: Database>(block: &BlockContext, database: DB, checks: Checks) -> LedgerEvm<DB> {
    let mut cfg = CfgEnv::new_with_spec(FORK).with_chain_id(block.chain_id);
    if checks == Checks::Call {
        cfg.disable_nonce_check = true;
        cfg.disable_eip3607 = true;
        cfg.tx_chain_id_check = false;
    }
    let ctx = Context::<BlockEnv, TxEnv, CfgEnv, DB, Journal<DB>, ()>::new(database, FORK)
        .with_block(block.env())
        .with_cfg(cfg);
    Evm::new(ctx, EthInstructions::new_mainnet_with_spec(FORK), LedgerPrecompiles::new())
}

/// A transaction's result and the accounts it loaded, changed or not.
pub(crate) type Executed = (ExecutionResult, EvmState);

/// Executes a transaction, but leaves the tip to whoever commits it, so that two transactions do not depend on each
/// other only because they pay the same fee recipient. When the transaction itself loaded the fee recipient's
/// account, the tip is in its state like any other change: then the order of the two matters (the account may have
/// been destroyed).
pub(crate) fn execute_without_tip<DB: Database>(
    evm: &mut LedgerEvm<DB>,
    tx: TxEnv,
) -> Result<Executed, EVMError<DB::Error>> {
    evm.ctx.set_tx(tx);
    let result = TipLater(MainnetHandler::default()).run(evm);
    // The journal must be emptied whatever the result is.
    let state = evm.finalize();
    Ok((result?, state))
}

struct TipLater<DB: Database>(MainnetHandler<LedgerEvm<DB>, EVMError<DB::Error>, EthFrame<EthInterpreter>>);

impl<DB: Database> Handler for TipLater<DB> {
    type Evm = LedgerEvm<DB>;
    type Error = EVMError<DB::Error>;
    type HaltReason = HaltReason;

    fn reward_beneficiary(&self, evm: &mut Self::Evm, result: &mut FrameResult) -> Result<(), Self::Error> {
        let recipient = evm.ctx.block.beneficiary;
        if !evm.ctx.journaled_state.inner.state.contains_key(&recipient) {
            return Ok(());
        }
        post_execution::reward_beneficiary(evm.ctx(), result.gas()).map_err(From::from)
    }
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
