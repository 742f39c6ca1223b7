//! The flat state (accounts, storage, code) and the change sets that move it from one block to the next.
//!
//! A [`ChangeSet`] holds *net* changes only and is the unit of persistence: recovery applies change sets in
//! order and never runs the EVM. Accounts are shared behind `Arc`, so a snapshot of the whole state costs one
//! pointer per account.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use alloy_primitives::map::{AddressMap, B256Map, U256Map};
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use revm::DatabaseRef;
use revm::database_interface::DBErrorMarker;
use revm::state::{AccountInfo, Bytecode};
use serde::{Deserialize, Serialize};

/// How many block hashes the `BLOCKHASH` instruction can reach.
pub const BLOCK_HASHES_KEPT: usize = 256;

/// A read of the state that cannot be answered. It is fatal for the executor: nothing a transaction does causes it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// An account names code that the state does not hold.
    #[error(
        "code {0} is named by an account but missing from the state: the data directory is damaged, restore it from a backup"
    )]
    MissingCode(B256),
}

impl DBErrorMarker for StateError {}

/// What an executor reads: accounts, code, slots and recent block hashes as they were before the block.
pub type ReadState<'a> = dyn DatabaseRef<Error = StateError> + Sync + 'a;

/// Balance, nonce and code of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basic {
    /// Balance in base units of the native coin.
    pub balance: U256,
    /// Number of transactions sent (or of contracts created, for a contract).
    pub nonce: u64,
    /// Keccak-256 of the code; the hash of nothing for an account without code.
    pub code_hash: B256,
}

impl Default for Basic {
    fn default() -> Self {
        Self { balance: U256::ZERO, nonce: 0, code_hash: KECCAK256_EMPTY }
    }
}

impl From<&AccountInfo> for Basic {
    fn from(info: &AccountInfo) -> Self {
        Self { balance: info.balance, nonce: info.nonce, code_hash: info.code_hash }
    }
}

impl From<Basic> for AccountInfo {
    fn from(basic: Basic) -> Self {
        // The EVM asks for code by its hash, and knows that of nothing.
        AccountInfo {
            balance: basic.balance,
            nonce: basic.nonce,
            code_hash: basic.code_hash,
            account_id: None,
            code: None,
        }
    }
}

/// One account with its storage. Slots that hold zero are absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Balance, nonce and code hash.
    pub basic: Basic,
    /// The storage.
    pub slots: U256Map<U256>,
}

/// The net effect of a block on one account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountChange {
    /// The account after the block; `None` when it no longer exists.
    pub basic: Option<Basic>,
    /// Whether all earlier storage is dropped before `slots` are written.
    pub storage_reset: bool,
    /// New values of the slots that changed.
    pub slots: BTreeMap<U256, U256>,
}

/// The net effect of a block on the state. Ordered maps make its encoding canonical.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeSet {
    /// Accounts that differ from before.
    pub accounts: BTreeMap<Address, AccountChange>,
    /// Code that is new.
    pub codes: BTreeMap<B256, Bytes>,
}

/// The state after some block.
#[derive(Debug, Clone, Default)]
pub struct State {
    accounts: AddressMap<Arc<Account>>,
    codes: B256Map<Bytecode>,
    block_hashes: VecDeque<(u64, B256)>,
}

impl State {
    /// The account, if it exists.
    pub fn account(&self, address: &Address) -> Option<&Account> {
        self.accounts.get(address).map(Arc::as_ref)
    }

    /// Balance, nonce and code hash; the empty account if there is none.
    pub fn basic(&self, address: &Address) -> Basic {
        self.account(address).map(|a| a.basic).unwrap_or_default()
    }

    /// A storage slot; zero if never written.
    pub fn slot(&self, address: &Address, index: U256) -> U256 {
        self.account(address).and_then(|a| a.slots.get(&index)).copied().unwrap_or_default()
    }

    /// The code of an account; empty if it has none.
    pub fn code(&self, address: &Address) -> Bytes {
        let hash = self.basic(address).code_hash;
        self.codes.get(&hash).map(|code| code.original_bytes()).unwrap_or_default()
    }

    /// All accounts, in no particular order.
    pub fn accounts(&self) -> impl Iterator<Item = (&Address, &Account)> {
        self.accounts.iter().map(|(address, account)| (address, account.as_ref()))
    }

    /// All codes with their hashes, in no particular order.
    pub fn codes(&self) -> impl Iterator<Item = (&B256, Bytes)> {
        self.codes.iter().map(|(hash, code)| (hash, code.original_bytes()))
    }

    /// Gives up the accounts one by one, in no particular order, so that what only this copy holds is freed on the
    /// way.
    pub fn into_accounts(self) -> impl Iterator<Item = (Address, Arc<Account>)> {
        self.accounts.into_iter()
    }

    /// How many accounts there are.
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether there are no accounts.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Applies the effect of a block. Applying the same set twice changes nothing.
    pub fn apply(&mut self, changes: &ChangeSet) {
        for (hash, code) in &changes.codes {
            self.codes.entry(*hash).or_insert_with(|| Bytecode::new_raw(code.clone()));
        }
        for (address, change) in &changes.accounts {
            let Some(basic) = change.basic else {
                self.accounts.remove(address);
                continue;
            };
            let account = Arc::make_mut(self.accounts.entry(*address).or_default());
            account.basic = basic;
            if change.storage_reset {
                account.slots.clear();
            }
            for (index, value) in &change.slots {
                if value.is_zero() {
                    account.slots.remove(index);
                } else {
                    account.slots.insert(*index, *value);
                }
            }
        }
    }

    /// Remembers the hash of a block for `BLOCKHASH`.
    pub fn push_block_hash(&mut self, number: u64, hash: B256) {
        self.block_hashes.push_back((number, hash));
        if self.block_hashes.len() > BLOCK_HASHES_KEPT {
            self.block_hashes.pop_front();
        }
    }
}

impl DatabaseRef for State {
    type Error = StateError;

    fn basic_ref(&self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        Ok(self.account(&address).map(|account| account.basic.into()))
    }

    fn code_by_hash_ref(&self, code_hash: B256) -> Result<Bytecode, StateError> {
        if code_hash == KECCAK256_EMPTY {
            return Ok(Bytecode::default());
        }
        self.codes.get(&code_hash).cloned().ok_or(StateError::MissingCode(code_hash))
    }

    fn storage_ref(&self, address: Address, index: U256) -> Result<U256, StateError> {
        Ok(self.slot(&address, index))
    }

    fn block_hash_ref(&self, number: u64) -> Result<B256, StateError> {
        // The EVM itself answers zero for blocks out of reach.
        let first = self.block_hashes.front().map_or(0, |(n, _)| *n);
        let index = number.checked_sub(first).and_then(|i| usize::try_from(i).ok());
        let found = index.and_then(|i| self.block_hashes.get(i)).filter(|(n, _)| *n == number);
        Ok(found.map(|(_, hash)| *hash).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::address;

    const A: Address = address!("0x00000000000000000000000000000000000000aa");

    fn set(basic: Option<Basic>, reset: bool, slots: &[(u64, u64)]) -> ChangeSet {
        let slots = slots.iter().map(|(k, v)| (U256::from(*k), U256::from(*v))).collect();
        let change = AccountChange { basic, storage_reset: reset, slots };
        ChangeSet { accounts: BTreeMap::from([(A, change)]), codes: BTreeMap::new() }
    }

    #[test]
    fn change_sets_apply_idempotently_and_zero_slots_vanish() {
        let mut state = State::default();
        let first = set(Some(Basic { nonce: 1, ..Basic::default() }), false, &[(1, 5), (2, 6)]);
        state.apply(&first);
        state.apply(&first);
        assert_eq!(state.slot(&A, U256::from(1)), U256::from(5));
        state.apply(&set(Some(Basic::default()), false, &[(1, 0)]));
        assert_eq!(state.account(&A).map(|a| a.slots.len()), Some(1));
        state.apply(&set(Some(Basic::default()), true, &[(7, 1)]));
        assert_eq!(state.slot(&A, U256::from(2)), U256::ZERO);
        state.apply(&set(None, true, &[]));
        assert!(state.account(&A).is_none());
    }

    #[test]
    fn snapshots_do_not_see_later_changes() {
        let mut state = State::default();
        state.apply(&set(Some(Basic::default()), false, &[(1, 5)]));
        let snapshot = state.clone();
        state.apply(&set(Some(Basic::default()), false, &[(1, 9)]));
        assert_eq!(snapshot.slot(&A, U256::from(1)), U256::from(5));
    }

    #[test]
    fn change_sets_survive_their_encoding() {
        let mut changes =
            set(Some(Basic { balance: U256::MAX, nonce: 3, ..Basic::default() }), true, &[(0, 1), (9, 0)]);
        changes.codes.insert(B256::repeat_byte(7), Bytes::from_static(b"\x60\x00"));
        let bytes = postcard::to_stdvec(&changes).expect("in memory");
        assert_eq!(postcard::from_bytes::<ChangeSet>(&bytes).expect("just encoded"), changes);
    }

    #[test]
    fn block_hashes_reach_back_256_blocks() {
        let mut state = State::default();
        for number in 0..300u64 {
            state.push_block_hash(number, B256::from(U256::from(number + 1)));
        }
        assert_eq!(state.block_hash_ref(43), Ok(B256::ZERO));
        assert_eq!(state.block_hash_ref(44), Ok(B256::from(U256::from(45))));
        assert_eq!(state.block_hash_ref(299), Ok(B256::from(U256::from(300))));
        assert_eq!(state.block_hash_ref(300), Ok(B256::ZERO));
    }
}
