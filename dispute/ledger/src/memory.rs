//! The multi-version memory: what transactions wrote, so that later ones can read it before it is committed.
//!
//! For each key that somebody wrote, the values by the position of the transaction that wrote them. A transaction reads
//! the newest value below its own position, and below all of them the state before the block. Keys are exact; hashes
//! only spread them over locks and tables. The memory also knows how far up somebody has read, so that a new value
//! tells at once whether an older one may have been read.
//!
//! A wrong value here costs an execution, because what was read is compared with the committed state before anything is
//! committed. The one answer that is believed is [`Read::Base`] for a key that nothing committed in the block has
//! touched: the value then comes from the state before the block, and is not read there a second time.

use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloy_primitives::map::{B256Map, DefaultHashBuilder};
use alloy_primitives::{Address, B256, KECCAK256_EMPTY, U256};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;
use revm::state::{Bytecode, EvmState};
use smallvec::SmallVec;

use crate::state::{Basic, ReadState, StateError};

/// Number of locks: so many that two threads seldom want the same, so few that clearing them costs nothing.
const SHARDS: usize = 256;

/// Keys for which a shard keeps room: together those of a block with a hundred thousand.
const KEYS_KEPT_PER_SHARD: usize = 400;

/// What a transaction can read or write. Code needs no key of its own: it is named by its hash, which is part of
/// [`Key::Basic`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Balance, nonce and code of an account.
    Basic(Address),
    /// A storage slot.
    Slot(Address, U256),
    /// That all storage of an account was dropped, because it was created or destroyed.
    StorageReset(Address),
}

/// An answer to a read.
#[derive(Debug)]
pub(crate) enum Read<T> {
    /// The newest value below the reader.
    Written(T),
    /// The value before the block: nobody below the reader wrote another.
    Base(T),
    /// The transaction at this position wrote the newest value, and it is being executed again.
    Estimate(usize),
}

struct Version<V> {
    position: u32,
    estimate: bool,
    value: V,
}

/// What was written to a key, by rising position.
struct Cell<K, V> {
    key: K,
    versions: SmallVec<[Version<V>; 1]>,
}

/// Cells of one kind. Small, because most of their cost is fetching them from another core.
type Table<K, V> = HashTable<Cell<K, V>>;

/// Aligned so that it shares no cache line with its neighbours.
#[derive(Default)]
#[repr(align(128))]
struct Shard {
    /// One more than the position of the highest reader of any key of the shard. One number for all keys, so that a
    /// read writes nothing but this; a false alarm costs a look at a few results.
    readers_end: u32,
    basics: Table<Address, Option<Basic>>,
    slots: Table<(Address, U256), U256>,
    resets: Table<Address, ()>,
}

/// The room that a memory needs, kept from block to block, because getting it from the system again takes longer than
/// everything else about it.
pub(crate) struct Tables(Vec<Mutex<Shard>>);

impl Default for Tables {
    fn default() -> Self {
        Self(std::iter::repeat_with(Mutex::default).take(SHARDS).collect())
    }
}

impl Tables {
    /// Forgets everything, and room beyond what a block usually needs.
    pub(crate) fn clear(&mut self) {
        for shard in &mut self.0 {
            let shard = shard.get_mut().unwrap_or_else(PoisonError::into_inner);
            if shard.basics.capacity() + shard.slots.capacity() > KEYS_KEPT_PER_SHARD {
                *shard = Shard::default();
            }
            shard.readers_end = 0;
            shard.basics.clear();
            shard.slots.clear();
            shard.resets.clear();
        }
    }
}

/// The memory of one block. `S` is a parameter so that the tests can make every hash collide.
pub(crate) struct Memory<'a, S = DefaultHashBuilder> {
    base: &'a ReadState<'a>,
    hasher: S,
    tables: Tables,
    /// How often an account with code was written.
    contracts_written: AtomicUsize,
    /// Whether any storage was dropped: only then a read of a slot has to ask for that, too.
    resets: AtomicBool,
    /// Code that the block's transactions created, by its hash, whether they are committed or not.
    codes: Mutex<B256Map<Bytecode>>,
}

impl<'a, S: BuildHasher> Memory<'a, S> {
    /// `tables` must be clear.
    pub(crate) fn new(base: &'a ReadState<'a>, hasher: S, tables: Tables) -> Self {
        Self {
            base,
            hasher,
            tables,
            contracts_written: AtomicUsize::new(0),
            resets: AtomicBool::new(false),
            codes: Mutex::new(B256Map::default()),
        }
    }

    /// The room, for the next block.
    pub(crate) fn into_tables(self) -> Tables {
        self.tables
    }

    /// Changes whenever an account with code is written. While it does not, such an account is as it was.
    pub(crate) fn contracts_written(&self) -> usize {
        self.contracts_written.load(Ordering::SeqCst)
    }

    /// The account as the transaction at `position` must see it.
    pub(crate) fn basic(&self, address: Address, position: usize) -> Result<Read<Option<Basic>>, StateError> {
        let hash = self.hash_account(&address, 0);
        let written = {
            let mut shard = self.read_shard(hash, position);
            let found = newest(&mut shard.basics, hash, &address, position);
            found.map(|(_, read)| read)
        };
        match written {
            Some(read) => Ok(read),
            None => Ok(Read::Base(self.base.basic_ref(address)?.as_ref().map(Basic::from))),
        }
    }

    /// The slot as the transaction at `position` must see it.
    pub(crate) fn slot(&self, address: Address, index: U256, position: usize) -> Result<Read<U256>, StateError> {
        let hash = self.hash_slot(&address, &index);
        let written = {
            let mut shard = self.read_shard(hash, position);
            newest(&mut shard.slots, hash, &(address, index), position)
        };
        if self.resets.load(Ordering::SeqCst) {
            let hash = self.hash_account(&address, 1);
            let mut shard = self.read_shard(hash, position);
            // A transaction that drops the storage and then writes the slot has both at its position.
            if let Some((at, reset)) = newest(&mut shard.resets, hash, &address, position)
                && written.as_ref().is_none_or(|(written_at, _)| *written_at < at)
            {
                return Ok(reset.map(|()| U256::ZERO));
            }
        }
        match written {
            Some((_, read)) => Ok(read),
            None => Ok(Read::Base(self.base.storage_ref(address, index)?)),
        }
    }

    /// Code by its hash.
    pub(crate) fn code(&self, hash: B256) -> Result<Bytecode, StateError> {
        // Whoever panicked under the lock ends the whole block.
        let created = self.codes.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).cloned();
        created.map_or_else(|| self.base.code_by_hash_ref(hash), Ok)
    }

    /// The hash of a block before this one.
    pub(crate) fn block_hash(&self, number: u64) -> Result<B256, StateError> {
        self.base.block_hash_ref(number)
    }

    /// Makes the writes of an execution visible and takes away those of the execution before it of the same
    /// transaction that were not repeated. `keys` are those of the execution before and become those of this one.
    /// Returns whether a later transaction may have read something else.
    pub(crate) fn publish(&self, position: usize, state: &mut EvmState, keys: &mut Vec<Key>) -> bool {
        let before = std::mem::take(keys);
        let mut overtaken = false;
        for (address, account) in state.iter_mut().filter(|(_, account)| account.is_touched()) {
            let gone = account.is_selfdestructed() || account.is_empty();
            if account.is_selfdestructed() || account.is_created() {
                self.resets.store(true, Ordering::SeqCst);
                keys.push(Key::StorageReset(*address));
                let hash = self.hash_account(address, 1);
                overtaken |=
                    self.write(hash, *address, position, (), |shard| &mut shard.resets, |a| self.hash_account(a, 1));
                if let Some(code) = account.info.code.as_ref().filter(|_| account.info.code_hash != KECCAK256_EMPTY) {
                    let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
                    codes.insert(account.info.code_hash, code.clone());
                }
            }
            if gone || account.is_created() || Basic::from(&*account.original_info_mut()) != Basic::from(&account.info)
            {
                if account.info.code_hash != KECCAK256_EMPTY {
                    self.contracts_written.fetch_add(1, Ordering::SeqCst);
                }
                keys.push(Key::Basic(*address));
                let basic = (!gone).then(|| Basic::from(&account.info));
                let hash = self.hash_account(address, 0);
                overtaken |=
                    self.write(hash, *address, position, basic, |shard| &mut shard.basics, |a| self.hash_account(a, 0));
            }
            if gone {
                continue;
            }
            for (index, slot) in account.storage.iter().filter(|(_, slot)| slot.is_changed()) {
                keys.push(Key::Slot(*address, *index));
                let (hash, key) = (self.hash_slot(address, index), (*address, *index));
                overtaken |= self.write(
                    hash,
                    key,
                    position,
                    slot.present_value,
                    |shard| &mut shard.slots,
                    |(a, i)| self.hash_slot(a, i),
                );
            }
        }
        for key in before.iter().filter(|key| !keys.contains(key)) {
            overtaken |= self.take_back(key, position);
        }
        overtaken
    }

    /// Marks what an execution wrote as being computed anew.
    pub(crate) fn mark_estimates(&self, position: usize, keys: &[Key]) {
        for key in keys {
            match key {
                Key::Basic(address) => {
                    let hash = self.hash_account(address, 0);
                    mark(&mut self.shard(hash).basics, hash, address, position);
                }
                Key::Slot(address, index) => {
                    let hash = self.hash_slot(address, index);
                    mark(&mut self.shard(hash).slots, hash, &(*address, *index), position);
                }
                Key::StorageReset(address) => {
                    let hash = self.hash_account(address, 1);
                    mark(&mut self.shard(hash).resets, hash, address, position);
                }
            }
        }
    }

    /// By words, which is several times faster than by bytes; `kind` tells tables apart.
    fn hash_account(&self, address: &Address, kind: u32) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        write_address(&mut hasher, address, kind);
        hasher.finish()
    }

    fn hash_slot(&self, address: &Address, index: &U256) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        write_address(&mut hasher, address, 2);
        index.as_limbs().iter().for_each(|limb| hasher.write_u64(*limb));
        hasher.finish()
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // The tables inside use the low and the highest bits of the hash.
        let shard = (hash >> 40) as usize % SHARDS;
        // Whoever panicked under the lock ends the whole block.
        self.tables.0[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_shard(&self, hash: u64, position: usize) -> MutexGuard<'_, Shard> {
        let mut shard = self.shard(hash);
        shard.readers_end = shard.readers_end.max(small(position) + 1);
        shard
    }

    /// Returns whether a later transaction may have read something else.
    fn write<K: Eq, V: PartialEq>(
        &self,
        hash: u64,
        key: K,
        position: usize,
        value: V,
        table: impl FnOnce(&mut Shard) -> &mut Table<K, V>,
        rehash: impl Fn(&K) -> u64,
    ) -> bool {
        let mut shard = self.shard(hash);
        let position = small(position);
        let read_above = shard.readers_end > position + 1;
        let cell = match table(&mut shard).entry(hash, |cell| cell.key == key, |cell| rehash(&cell.key)) {
            TableEntry::Occupied(entry) => entry.into_mut(),
            TableEntry::Vacant(entry) => entry.insert(Cell { key, versions: SmallVec::new() }).into_mut(),
        };
        let at = cell.versions.iter().rposition(|version| version.position < position).map_or(0, |below| below + 1);
        let written = Version { position, estimate: false, value };
        match cell.versions.get_mut(at).filter(|version| version.position == position) {
            Some(version) => {
                // Who met the estimate waits for the transaction, not for the value.
                let same = version.value == written.value;
                *version = written;
                read_above && !same
            }
            None => {
                cell.versions.insert(at, written);
                read_above
            }
        }
    }

    fn take_back(&self, key: &Key, position: usize) -> bool {
        let hash = match key {
            Key::Basic(address) => self.hash_account(address, 0),
            Key::Slot(address, index) => self.hash_slot(address, index),
            Key::StorageReset(address) => self.hash_account(address, 1),
        };
        let mut shard = self.shard(hash);
        match key {
            Key::Basic(address) => remove(&mut shard.basics, hash, address, position),
            Key::Slot(address, index) => remove(&mut shard.slots, hash, &(*address, *index), position),
            Key::StorageReset(address) => remove(&mut shard.resets, hash, address, position),
        }
        shard.readers_end > small(position) + 1
    }
}

impl<T> Read<T> {
    pub(crate) fn map<U>(self, f: impl FnOnce(T) -> U) -> Read<U> {
        match self {
            Self::Written(value) => Read::Written(f(value)),
            Self::Base(value) => Read::Base(f(value)),
            Self::Estimate(at) => Read::Estimate(at),
        }
    }
}

/// A position in a block: the block's gas bounds it far below 32 bits.
fn small(position: usize) -> u32 {
    u32::try_from(position).expect("a block has fewer than 2^32 transactions")
}

fn write_address(hasher: &mut impl Hasher, address: &Address, kind: u32) {
    let word = |at: usize| u64::from_ne_bytes(address[at..at + 8].try_into().expect("eight bytes"));
    hasher.write_u64(word(0));
    hasher.write_u64(word(8));
    hasher.write_u64(word(12) ^ u64::from(kind));
}

/// The newest value below a position with who wrote it.
fn newest<K: Eq, V: Copy>(table: &mut Table<K, V>, hash: u64, key: &K, position: usize) -> Option<(u32, Read<V>)> {
    let cell = table.find(hash, |cell| cell.key == *key)?;
    let version = cell.versions.iter().rev().find(|version| version.position < small(position))?;
    let read = if version.estimate { Read::Estimate(version.position as usize) } else { Read::Written(version.value) };
    Some((version.position, read))
}

fn mark<K: Eq, V>(table: &mut Table<K, V>, hash: u64, key: &K, position: usize) {
    let Some(cell) = table.find_mut(hash, |cell| cell.key == *key) else { return };
    if let Some(version) = cell.versions.iter_mut().find(|version| version.position == small(position)) {
        version.estimate = true;
    }
}

fn remove<K: Eq, V>(table: &mut Table<K, V>, hash: u64, key: &K, position: usize) {
    if let Some(cell) = table.find_mut(hash, |cell| cell.key == *key) {
        cell.versions.retain(|version| version.position != small(position));
    }
}

#[cfg(test)]
mod tests;
