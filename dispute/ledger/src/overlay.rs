//! The state as a block in execution leaves it: what committed transactions wrote, and below that the state before
//! the block. From it come the block's net changes and its access list (EIP-7928).

use std::collections::BTreeMap;

use alloy_eip7928::{
    AccountChanges, BalanceChange, BlockAccessIndex, BlockAccessList, CodeChange, NonceChange, SlotChanges,
    StorageChange,
};
use alloy_primitives::map::{AddressMap, B256Map, B256Set, Entry, U256Map};
use alloy_primitives::{Address, B256, KECCAK256_EMPTY, U256};
use revm::state::{Account, AccountInfo, Bytecode, EvmState};
use revm::{Database, DatabaseCommit};

use crate::state::{AccountChange, Basic, ChangeSet, ReadState, StateError};

/// Committed changes over a base state.
pub struct Overlay<'a> {
    base: &'a ReadState<'a>,
    accounts: AddressMap<OverlayAccount>,
    codes: B256Map<Bytecode>,
    fee_recipient: Address,
    recipient_loaded: bool,
    /// Tips that the fee recipient's account does not show yet: they are added when somebody reads it.
    tips_owed: U256,
    /// Number of the transaction that is committed next, from 1 (EIP-7928), if accesses are recorded.
    recording: Option<u64>,
}

#[derive(Default)]
struct OverlayAccount {
    before: Option<AccountInfo>,
    now: Option<AccountInfo>,
    storage_reset: bool,
    slots: U256Map<Slot>,
    /// Whether a committed transaction accessed it. What an execution that was thrown away read does not count.
    accessed: bool,
    balances: Vec<(u64, U256)>,
    nonces: Vec<(u64, u64)>,
    codes: Vec<(u64, Bytecode)>,
}

struct Slot {
    before: U256,
    now: U256,
    accessed: bool,
    writes: Vec<(u64, U256)>,
}

impl Slot {
    fn unchanged(value: U256) -> Self {
        Self { before: value, now: value, accessed: false, writes: Vec::new() }
    }

    fn write(&mut self, value: U256, recording: Option<u64>) {
        if let Some(index) = recording.filter(|_| self.now != value) {
            self.writes.push((index, value));
        }
        self.now = value;
    }
}

impl<'a> Overlay<'a> {
    /// Nothing is changed yet.
    pub fn new(base: &'a ReadState<'a>, fee_recipient: Address) -> Self {
        Self {
            base,
            accounts: AddressMap::default(),
            codes: B256Map::default(),
            fee_recipient,
            recipient_loaded: false,
            tips_owed: U256::ZERO,
            recording: None,
        }
    }

    /// Keeps what [`Overlay::access_list`] needs, from here on.
    pub(crate) fn record_accesses(&mut self) {
        self.recording = Some(1);
    }

    fn load(&mut self, address: Address) -> Result<&mut OverlayAccount, StateError> {
        if address == self.fee_recipient {
            self.pay_tips();
        }
        match self.accounts.entry(address) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let before = self.base.basic_ref(address)?;
                Ok(entry.insert(OverlayAccount { now: before.clone(), before, ..OverlayAccount::default() }))
            }
        }
    }

    fn pay_tips(&mut self) {
        let owed = std::mem::take(&mut self.tips_owed);
        if owed.is_zero() {
            return;
        }
        let account = self.accounts.get_mut(&self.fee_recipient).expect("tips are owed only to a loaded account");
        let info = account.now.get_or_insert_default();
        info.balance = info.balance.saturating_add(owed);
    }

    /// Whether the account is as somebody read it. If he read it from the state before the block, that state need not
    /// be asked again.
    pub(crate) fn basic_is(
        &mut self,
        address: Address,
        read: Option<Basic>,
        from_base: bool,
    ) -> Result<bool, StateError> {
        if from_base && address != self.fee_recipient {
            return Ok(match self.accounts.entry(address) {
                Entry::Occupied(entry) => entry.get().now.as_ref().map(Basic::from) == read,
                Entry::Vacant(entry) => {
                    let before = read.map(AccountInfo::from);
                    entry.insert(OverlayAccount { now: before.clone(), before, ..OverlayAccount::default() });
                    true
                }
            });
        }
        Ok(self.load(address)?.now.as_ref().map(Basic::from) == read)
    }

    /// Whether the slot holds what somebody read, likewise.
    pub(crate) fn slot_is(
        &mut self,
        address: Address,
        index: U256,
        read: U256,
        from_base: bool,
    ) -> Result<bool, StateError> {
        // Whoever reads a slot has read its account before, so this is found without asking the base.
        let account = self.load(address)?;
        if from_base && !account.storage_reset {
            return Ok(account.slots.entry(index).or_insert_with(|| Slot::unchanged(read)).now == read);
        }
        Ok(self.storage(address, index)? == read)
    }

    /// Commits a transaction: its state, and its tip if the state does not contain it.
    pub(crate) fn commit_with_tip(&mut self, state: EvmState, tip: U256) -> Result<(), StateError> {
        let paid = state.contains_key(&self.fee_recipient);
        self.commit(state);
        if !self.recipient_loaded {
            self.recipient_loaded = true;
            let recording = self.recording.is_some();
            let recipient = self.load(self.fee_recipient)?;
            recipient.accessed |= recording;
            // Being paid touches the account, and an empty account that was touched does not exist (EIP-161).
            recipient.now = recipient.now.take().filter(|info| !info.is_empty());
        }
        if !paid && !tip.is_zero() {
            self.tips_owed = self.tips_owed.saturating_add(tip);
            if let Some(index) = self.recording {
                let recipient = self.accounts.get_mut(&self.fee_recipient).expect("it was loaded above");
                let shown = recipient.now.as_ref().map_or(U256::ZERO, |info| info.balance);
                recipient.balances.push((index, shown.saturating_add(self.tips_owed)));
            }
        }
        self.recording = self.recording.map(|index| index + 1);
        Ok(())
    }

    /// The net changes of everything committed so far.
    pub fn changes(&mut self) -> ChangeSet {
        self.pay_tips();
        // Sorted by key alone first: changes are large, and a map is built fastest from what is in order.
        let mut ordered = self.accounts.iter().collect::<Vec<_>>();
        ordered.sort_unstable_by_key(|(address, _)| **address);
        let accounts = ordered.into_iter().filter_map(|(address, account)| Some((*address, account.change()?)));
        let accounts = accounts.collect::<BTreeMap<_, _>>();
        let named = accounts.values().filter_map(|change| Some(change.basic?.code_hash)).collect::<B256Set>();
        let codes = self.codes.iter().filter(|(hash, _)| named.contains(*hash));
        let codes = codes.map(|(hash, code)| (*hash, code.original_bytes())).collect();
        ChangeSet { accounts, codes }
    }

    /// What the committed transactions accessed and changed, in the order that EIP-7928 prescribes. `None` unless
    /// accesses were recorded.
    pub(crate) fn access_list(&self) -> Option<BlockAccessList> {
        self.recording?;
        let accessed = self.accounts.iter().filter(|(_, account)| account.accessed);
        let mut list = accessed.map(|(address, account)| account.accesses(*address)).collect::<Vec<_>>();
        list.sort_unstable_by_key(|account| account.address);
        Some(list)
    }
}

impl OverlayAccount {
    /// The net change; `None` if there is none.
    fn change(&self) -> Option<AccountChange> {
        let changed = |slot: &Slot| if self.storage_reset { !slot.now.is_zero() } else { slot.now != slot.before };
        let slots = self.slots.iter().filter(|(_, slot)| changed(slot));
        let mut slots = slots.map(|(index, slot)| (*index, slot.now)).collect::<Vec<_>>();
        slots.sort_unstable_by_key(|(index, _)| *index);
        let slots = slots.into_iter().collect::<BTreeMap<_, _>>();
        // Created and destroyed within the block, or only read.
        if self.now == self.before && slots.is_empty() && !(self.storage_reset && self.before.is_some()) {
            return None;
        }
        let basic = self.now.as_ref().map(Basic::from);
        let slots = if basic.is_some() { slots } else { BTreeMap::new() };
        Some(AccountChange { basic, storage_reset: self.storage_reset, slots })
    }

    fn accesses(&self, address: Address) -> AccountChanges {
        let mut slots = self.slots.iter().filter(|(_, slot)| slot.accessed).collect::<Vec<_>>();
        slots.sort_unstable_by_key(|(index, _)| **index);
        let (written, read): (Vec<_>, Vec<_>) = slots.into_iter().partition(|(_, slot)| !slot.writes.is_empty());
        let at = BlockAccessIndex::new;
        AccountChanges {
            address,
            storage_changes: written
                .into_iter()
                .map(|(slot, Slot { writes, .. })| {
                    SlotChanges::new(
                        *slot,
                        writes.iter().map(|(i, value)| StorageChange::new(at(*i), *value)).collect(),
                    )
                })
                .collect(),
            storage_reads: read.into_iter().map(|(slot, _)| *slot).collect(),
            balance_changes: self.balances.iter().map(|(i, balance)| BalanceChange::new(at(*i), *balance)).collect(),
            nonce_changes: self.nonces.iter().map(|(i, nonce)| NonceChange::new(at(*i), *nonce)).collect(),
            code_changes: self.codes.iter().map(|(i, code)| CodeChange::new(at(*i), code.original_bytes())).collect(),
        }
    }

    /// Takes over what a committed transaction left of the account.
    fn commit(&mut self, changed: Account, recording: Option<u64>) {
        if recording.is_some() {
            self.accessed = true;
            for (index, slot) in &changed.storage {
                self.slots.entry(*index).or_insert_with(|| Slot::unchanged(slot.original_value)).accessed = true;
            }
        }
        if !changed.is_touched() {
            return;
        }
        if changed.is_selfdestructed() || changed.is_created() {
            self.storage_reset = true;
            self.slots.values_mut().for_each(|slot| slot.write(U256::ZERO, recording));
        }
        // An empty account that was touched does not exist (EIP-161).
        let gone = changed.is_selfdestructed() || changed.is_empty();
        if !gone {
            for (index, slot) in &changed.storage {
                if slot.is_changed() {
                    let known = self.slots.entry(*index).or_insert_with(|| Slot::unchanged(slot.original_value));
                    known.write(slot.present_value, recording);
                }
            }
        }
        let now = (!gone).then_some(changed.info);
        if let Some(index) = recording {
            self.record(index, now.as_ref());
        }
        self.now = now;
    }

    fn record(&mut self, index: u64, next: Option<&AccountInfo>) {
        let parts = |info: Option<&AccountInfo>| {
            info.map_or((U256::ZERO, 0, KECCAK256_EMPTY), |info| (info.balance, info.nonce, info.code_hash))
        };
        let (before, after) = (parts(self.now.as_ref()), parts(next));
        if before.0 != after.0 {
            self.balances.push((index, after.0));
        }
        if before.1 != after.1 {
            self.nonces.push((index, after.1));
        }
        if before.2 != after.2 {
            // An account gets other code only when it is created, and then the code is there.
            self.codes.push((index, next.and_then(|info| info.code.clone()).unwrap_or_default()));
        }
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
        account.slots.insert(index, Slot::unchanged(value));
        Ok(value)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        self.base.block_hash_ref(number)
    }
}

impl DatabaseCommit for Overlay<'_> {
    fn commit(&mut self, changes: EvmState) {
        for (address, changed) in changes {
            if changed.is_touched()
                && changed.is_created()
                && changed.info.code_hash != KECCAK256_EMPTY
                && let Some(code) = &changed.info.code
            {
                self.codes.insert(changed.info.code_hash, code.clone());
            }
            self.accounts.entry(address).or_default().commit(changed, self.recording);
        }
    }
}
