//! The state root, kept up to date incrementally.
//!
//! A Merkle-Patricia trie in memory with cached node references: a block costs as much hashing as it touched
//! paths, not as there are accounts. Accounts do not depend on each other, so large change sets are hashed by several
//! threads. The oracle in the tests is a full rebuild with `alloy-trie`'s hash builder.
//! Every key is a Keccak-256 hash, so no key is a prefix of another and branches carry no values.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use alloy_primitives::map::{AddressMap, U256Map};
use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_trie::nodes::{BranchNodeRef, ExtensionNodeRef, LeafNodeRef, RlpNode};
use alloy_trie::{EMPTY_ROOT_HASH, Nibbles, TrieAccount, TrieMask};

use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use crate::state::{Basic, ChangeSet, State};

/// Fewer accounts and slots than this are hashed on the calling thread: waking others costs more.
const PARALLEL_KEYS_MIN: usize = 256;

/// The roots of the whole state: one trie of accounts, one of slots for each contract.
#[derive(Debug, Default)]
pub struct StateTrie {
    accounts: Trie,
    storage: AddressMap<Trie>,
    /// Threads of its own: those that execute transactions are busy with the next block meanwhile.
    threads: Option<rayon::ThreadPool>,
}

/// The work on one account, which depends on no other.
struct AccountWork<'a> {
    address: Address,
    basic: Option<Basic>,
    slots: Slots<'a>,
    storage: Trie,
    done: Option<(Nibbles, Option<Vec<u8>>)>,
}

enum Slots<'a> {
    Changed(&'a BTreeMap<U256, U256>),
    All(&'a U256Map<U256>),
}

impl StateTrie {
    /// The tries of the empty state; large work is spread over `workers` threads.
    pub fn new(workers: NonZeroUsize) -> Self {
        let pool = |_| {
            let name = |i| format!("ledger-roots-{i}");
            // Without threads the work is done by the caller alone.
            rayon::ThreadPoolBuilder::new().num_threads(workers.get()).thread_name(name).build().ok()
        };
        Self { threads: (workers.get() > 1).then_some(()).and_then(pool), ..Self::default() }
    }

    /// Builds the tries of a state from nothing.
    pub fn build(state: &State) -> Self {
        let mut tries = Self::default();
        tries.rebuild(state);
        tries
    }

    /// Forgets everything and builds the tries of `state`.
    pub fn rebuild(&mut self, state: &State) {
        (self.accounts, self.storage) = (Trie::default(), AddressMap::default());
        let work = state.accounts().map(|(address, account)| AccountWork {
            address: *address,
            basic: Some(account.basic),
            slots: Slots::All(&account.slots),
            storage: Trie::default(),
            done: None,
        });
        let work = work.collect::<Vec<_>>();
        self.run(work, usize::MAX);
    }

    /// Follows a change set.
    pub fn apply(&mut self, changes: &ChangeSet) {
        let mut keys = 0;
        let mut work = Vec::with_capacity(changes.accounts.len());
        for (address, change) in &changes.accounts {
            keys += 1 + change.slots.len();
            let before = self.storage.remove(address).filter(|_| !change.storage_reset);
            work.push(AccountWork {
                address: *address,
                basic: change.basic,
                slots: Slots::Changed(&change.slots),
                storage: before.unwrap_or_default(),
                done: None,
            });
        }
        self.run(work, keys);
    }

    /// The state root.
    pub fn root(&mut self) -> B256 {
        self.accounts.root()
    }

    fn run(&mut self, mut work: Vec<AccountWork<'_>>, keys: usize) {
        let threads = self.threads.as_ref().filter(|_| keys >= PARALLEL_KEYS_MIN);
        match threads {
            Some(threads) => threads.install(|| work.par_iter_mut().for_each(AccountWork::run)),
            None => work.iter_mut().for_each(AccountWork::run),
        }
        for AccountWork { address, storage, done, .. } in work {
            match done.expect("every piece of work was run") {
                (key, Some(leaf)) => self.accounts.insert(key, leaf),
                (key, None) => self.accounts.remove(key),
            }
            if !storage.is_empty() {
                self.storage.insert(address, storage);
            }
        }
        if let Some(threads) = threads {
            threads.install(|| self.accounts.hash_branches());
        }
    }
}

impl AccountWork<'_> {
    fn run(&mut self) {
        let key = Nibbles::unpack(keccak256(self.address));
        let Some(basic) = self.basic else {
            self.storage = Trie::default();
            self.done = Some((key, None));
            return;
        };
        match self.slots {
            Slots::Changed(slots) => {
                slots.iter().for_each(|(index, value)| set_slot(&mut self.storage, *index, *value))
            }
            Slots::All(slots) => slots.iter().for_each(|(index, value)| set_slot(&mut self.storage, *index, *value)),
        }
        let leaf = TrieAccount {
            nonce: basic.nonce,
            balance: basic.balance,
            storage_root: self.storage.root(),
            code_hash: basic.code_hash,
        };
        self.done = Some((key, Some(alloy::rlp::encode(leaf))));
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

    /// Hashes what is below the branch at the top, all sides at once.
    fn hash_branches(&mut self) {
        if let Some(Node { kind: Kind::Branch { children }, .. }) = self.0.as_deref_mut() {
            children.par_iter_mut().flatten().for_each(|child| {
                reference(child);
            });
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
    use crate::state::AccountChange;

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
            let mut trie = StateTrie::new(NonZeroUsize::new(1 + random.below(3) as usize).expect("above zero"));
            for step in 0..60 {
                let mut changes = ChangeSet::default();
                // Now and then so many that several threads hash them.
                let many = random.below(8) == 0;
                for _ in 0..=random.below(if many { 600 } else { 6 }) {
                    let address = Address::left_padding_from(&random.below(if many { 900 } else { 40 }).to_be_bytes());
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
                trie.apply(&changes);
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
