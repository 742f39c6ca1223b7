//! The state root, kept up to date incrementally.
//!
//! A Merkle-Patricia trie in memory with cached node references: a block costs as much hashing as it touched
//! paths, not as there are accounts. The oracle in the tests is a full rebuild with `alloy-trie`'s hash builder.
//! Every key is a Keccak-256 hash, so no key is a prefix of another and branches carry no values.

use alloy_primitives::map::AddressMap;
use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_trie::nodes::{BranchNodeRef, ExtensionNodeRef, LeafNodeRef, RlpNode};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, TrieAccount, TrieMask};

use crate::state::{ChangeSet, State};

/// The roots of the whole state: one trie of accounts, one of slots for each contract.
#[derive(Debug, Default)]
pub struct StateTrie {
    accounts: Trie,
    storage: AddressMap<Trie>,
}

impl StateTrie {
    /// Builds the tries of a state from nothing.
    pub fn build(state: &State) -> Self {
        let mut tries = Self::default();
        for (address, account) in state.accounts() {
            let storage = tries.storage.entry(*address).or_default();
            for (index, value) in &account.slots {
                set_slot(storage, *index, *value);
            }
            tries.write_account(state, *address);
        }
        tries
    }

    /// Follows a change set; `state` is the state after it.
    pub fn apply(&mut self, changes: &ChangeSet, state: &State) {
        for (address, change) in &changes.accounts {
            if change.storage_reset || change.basic.is_none() {
                self.storage.remove(address);
            }
            if change.basic.is_some() && !change.slots.is_empty() {
                let storage = self.storage.entry(*address).or_default();
                for (index, value) in &change.slots {
                    set_slot(storage, *index, *value);
                }
            }
            self.write_account(state, *address);
        }
    }

    /// The state root.
    pub fn root(&mut self) -> B256 {
        self.accounts.root()
    }

    fn write_account(&mut self, state: &State, address: Address) {
        let key = Nibbles::unpack(keccak256(address));
        let Some(account) = state.account(&address) else {
            self.accounts.remove(key);
            return;
        };
        let storage_root = match self.storage.get_mut(&address) {
            Some(trie) if trie.is_empty() => {
                self.storage.remove(&address);
                EMPTY_ROOT_HASH
            }
            Some(trie) => trie.root(),
            None => EMPTY_ROOT_HASH,
        };
        let leaf = TrieAccount {
            nonce: account.basic.nonce,
            balance: account.basic.balance,
            storage_root,
            code_hash: account.basic.code_hash,
        };
        self.accounts.insert(key, alloy::rlp::encode(leaf));
    }
}

fn set_slot(trie: &mut Trie, index: U256, value: U256) {
    let key = Nibbles::unpack(keccak256(index.to_be_bytes::<32>()));
    if value.is_zero() {
        trie.remove(key);
    } else {
        trie.insert(key, alloy::rlp::encode_fixed_size(&value).to_vec());
    }
}

/// One trie.
#[derive(Debug, Default)]
struct Trie(Option<Box<Node>>);

#[derive(Debug)]
struct Node {
    kind: Kind,
    /// The reference to this node in its parent, until something below changes.
    reference: Option<RlpNode>,
}

#[derive(Debug)]
enum Kind {
    Leaf { path: Nibbles, value: Vec<u8> },
    Extension { path: Nibbles, child: Box<Node> },
    Branch { children: Box<[Option<Box<Node>>; 16]> },
}

impl Trie {
    fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn insert(&mut self, key: Nibbles, value: Vec<u8>) {
        let root = self.0.take();
        self.0 = Some(insert(root, key, value));
    }

    fn remove(&mut self, key: Nibbles) {
        if let Some(root) = self.0.take() {
            self.0 = remove(root, key);
        }
    }

    fn root(&mut self) -> B256 {
        let Some(root) = &mut self.0 else { return EMPTY_ROOT_HASH };
        let reference = reference(root);
        // A root shorter than a hash is embedded by parents, but has none: it is hashed all the same.
        reference.as_hash().unwrap_or_else(|| keccak256(reference.as_slice()))
    }
}

fn node(kind: Kind) -> Box<Node> {
    Box::new(Node { kind, reference: None })
}

fn leaf(path: Nibbles, value: Vec<u8>) -> Box<Node> {
    node(Kind::Leaf { path, value })
}

/// `child` below `path`: itself if the path is empty.
fn extended(path: Nibbles, child: Box<Node>) -> Box<Node> {
    if path.is_empty() {
        return child;
    }
    match child.kind {
        Kind::Leaf { path: rest, value } => leaf(path.join(&rest), value),
        Kind::Extension { path: rest, child } => node(Kind::Extension { path: path.join(&rest), child }),
        Kind::Branch { .. } => node(Kind::Extension { path, child }),
    }
}

fn slot_of(path: &Nibbles, at: usize) -> usize {
    usize::from(path.get(at).expect("keys have one length, so a path ends only in a leaf"))
}

fn insert(at: Option<Box<Node>>, key: Nibbles, value: Vec<u8>) -> Box<Node> {
    let Some(mut at) = at else { return leaf(key, value) };
    at.reference = None;
    match at.kind {
        Kind::Leaf { path, .. } if path == key => leaf(path, value),
        Kind::Leaf { path, value: old } => {
            let common = path.common_prefix_length(&key);
            let mut children: Box<[Option<Box<Node>>; 16]> = Box::default();
            children[slot_of(&path, common)] = Some(leaf(path.slice(common + 1..), old));
            children[slot_of(&key, common)] = Some(leaf(key.slice(common + 1..), value));
            extended(key.slice(..common), node(Kind::Branch { children }))
        }
        Kind::Extension { path, child } => {
            let common = path.common_prefix_length(&key);
            if common == path.len() {
                let child = insert(Some(child), key.slice(common..), value);
                return node(Kind::Extension { path, child });
            }
            let mut children: Box<[Option<Box<Node>>; 16]> = Box::default();
            children[slot_of(&path, common)] = Some(extended(path.slice(common + 1..), child));
            children[slot_of(&key, common)] = Some(leaf(key.slice(common + 1..), value));
            extended(key.slice(..common), node(Kind::Branch { children }))
        }
        Kind::Branch { mut children } => {
            let slot = slot_of(&key, 0);
            children[slot] = Some(insert(children[slot].take(), key.slice(1..), value));
            at.kind = Kind::Branch { children };
            at
        }
    }
}

fn remove(mut at: Box<Node>, key: Nibbles) -> Option<Box<Node>> {
    match at.kind {
        Kind::Leaf { ref path, .. } => (*path != key).then_some(at),
        Kind::Extension { path, child } => {
            if !key.starts_with(&path) {
                at.kind = Kind::Extension { path, child };
                return Some(at);
            }
            let child = remove(child, key.slice(path.len()..))?;
            Some(extended(path, child))
        }
        Kind::Branch { mut children } => {
            let slot = slot_of(&key, 0);
            if let Some(child) = children[slot].take() {
                children[slot] = remove(child, key.slice(1..));
            }
            let mut present = (0..16u8).filter(|i| children[usize::from(*i)].is_some());
            match (present.next(), present.next()) {
                (None, _) => None,
                (Some(only), None) => {
                    let child = children[usize::from(only)].take()?;
                    Some(extended(Nibbles::from_nibbles([only]), child))
                }
                (Some(_), Some(_)) => Some(node(Kind::Branch { children })),
            }
        }
    }
}

fn reference(at: &mut Node) -> RlpNode {
    if let Some(known) = &at.reference {
        return known.clone();
    }
    let mut buffer = Vec::new();
    let made = match &mut at.kind {
        Kind::Leaf { path, value } => LeafNodeRef::new(path, value).rlp(&mut buffer),
        Kind::Extension { path, child } => {
            let child = reference(child);
            ExtensionNodeRef::new(path, child.as_slice()).rlp(&mut buffer)
        }
        Kind::Branch { children } => {
            let mut mask = TrieMask::default();
            let mut stack = Vec::with_capacity(16);
            for (i, child) in (0u8..).zip(children.iter_mut()) {
                if let Some(child) = child {
                    mask.set_bit(i);
                    stack.push(reference(child));
                }
            }
            BranchNodeRef::new(&stack, mask).rlp(&mut buffer)
        }
    };
    at.reference = Some(made.clone());
    made
}

/// The state root by a full rebuild with `alloy-trie`: slow and simple, the oracle of [`StateTrie`].
pub fn rebuilt_root(state: &State) -> B256 {
    let accounts = state.accounts().map(|(address, account)| {
        let slots = account.slots.iter().map(|(k, v)| (B256::from(k.to_be_bytes::<32>()), *v));
        let leaf = TrieAccount {
            nonce: account.basic.nonce,
            balance: account.basic.balance,
            storage_root: alloy_trie::root::storage_root_unhashed(slots),
            code_hash: account.basic.code_hash,
        };
        (*address, leaf)
    });
    alloy_trie::root::state_root_unhashed(accounts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{AccountChange, Basic};
    use std::collections::BTreeMap;

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
    fn incremental_root_equals_a_full_rebuild_after_every_change_set() {
        for seed in 1..=20u64 {
            let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let mut state = State::default();
            let mut trie = StateTrie::build(&state);
            for step in 0..60 {
                let mut changes = ChangeSet::default();
                for _ in 0..=random.below(6) {
                    let address = Address::with_last_byte(random.below(40) as u8);
                    let slots = (0..random.below(5))
                        .map(|_| (U256::from(random.below(12)), U256::from(random.below(4) * 1_000_003)))
                        .collect::<BTreeMap<_, _>>();
                    let gone = random.below(5) == 0;
                    let basic = Basic {
                        nonce: random.below(9),
                        balance: U256::from(random.below(1 << 40)),
                        ..Basic::default()
                    };
                    let change = if gone {
                        AccountChange { basic: None, storage_reset: true, slots: BTreeMap::new() }
                    } else {
                        AccountChange { basic: Some(basic), storage_reset: random.below(8) == 0, slots }
                    };
                    changes.accounts.insert(address, change);
                }
                state.apply(&changes);
                trie.apply(&changes, &state);
                assert_eq!(trie.root(), rebuilt_root(&state), "seed {seed}, step {step}");
            }
            assert_eq!(StateTrie::build(&state).root(), trie.root(), "seed {seed}");
        }
    }

    #[test]
    fn an_empty_state_has_the_empty_root() {
        assert_eq!(StateTrie::default().root(), EMPTY_ROOT_HASH);
        assert_eq!(rebuilt_root(&State::default()), EMPTY_ROOT_HASH);
    }
}
