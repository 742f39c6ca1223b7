//! All channels of the books: those in use as structs, the idle ones asleep in a few hundred bytes each.
//!
//! A hub has a hundred times more channels than channels that pay at the moment. A [`Channel`] as a struct takes
//! kilobytes; asleep it is its encoding with the words that most channels share (the hub's key and address, the assets,
//! the channel's own id, zero hashes) replaced by one byte each. Reading a channel wakes it, so that nobody has to ask;
//! [`Channels::rest`] puts some of those to sleep again that nobody needs. Whether a channel sleeps changes no answer.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque, btree_map};

use super::{Account, AssetSums, Channel, Policy};
use crate::account::Status;
use crate::ids::{Asset, ChannelId};

/// The channels by id.
#[derive(Clone, Debug, Default)]
pub struct Channels {
    slots: BTreeMap<ChannelId, Slot>,
    /// Words that are replaced in what sleeps.
    words: Words,
    /// Who is awake, in the order in which [`Channels::rest`] looks at them.
    awake: RefCell<VecDeque<ChannelId>>,
    /// The sums over everybody who sleeps.
    asleep: RefCell<BTreeMap<Asset, AssetSums>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    awake: OnceCell<Box<Channel>>,
    /// The channel as it was when it fell asleep; empty once it was changed.
    packed: Box<[u8]>,
}

#[derive(Clone, Debug, Default)]
struct Words {
    all: Vec<Vec<u8>>,
    /// Which bytes a word begins with, so that most places need one look.
    first: Vec<bool>,
}

/// Longest run of bytes between two words.
const RUN_MAX: usize = 127;

impl Channels {
    /// No channels; the words of a policy are those that its channels share.
    pub fn new(policy: &Policy) -> Self {
        let mut words = vec![vec![0; 32]];
        words.push(policy.hub.to_vec());
        words.extend(policy.keys.iter().map(|key| key.bytes.to_vec()));
        words.extend(policy.assets.iter().map(|asset| asset.asset.to_vec()));
        // A word's number and the mark beside it fit a byte.
        words.truncate(RUN_MAX);
        let mut first = vec![false; 256];
        words.iter().for_each(|word| first[usize::from(word[0])] = true);
        Channels { words: Words { all: words, first }, ..Channels::default() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many of them are awake.
    pub fn awake(&self) -> usize {
        self.awake.borrow().len()
    }

    /// Bytes that those who sleep are packed into.
    pub fn packed_bytes(&self) -> usize {
        self.slots.values().map(|slot| slot.packed.len()).sum()
    }

    /// A channel; wakes it.
    pub fn get(&self, id: &ChannelId) -> Option<&Channel> {
        self.slots.get(id).map(|slot| self.wake(id, slot))
    }

    /// Whether a channel is there.
    pub fn contains_key(&self, id: &ChannelId) -> bool {
        self.slots.contains_key(id)
    }

    /// A channel that may be changed; wakes it.
    pub fn get_mut(&mut self, id: &ChannelId) -> Option<&mut Channel> {
        let slot = self.slots.get_mut(id)?;
        if slot.awake.get().is_none() {
            let channel = unpack(&self.words, id, &slot.packed);
            note_awake(&self.awake, &self.asleep, id, &channel);
            slot.awake = OnceCell::from(Box::new(channel));
        }
        slot.packed = Box::default();
        slot.awake.get_mut().map(Box::as_mut)
    }

    /// Adds a channel, awake.
    pub fn insert(&mut self, id: ChannelId, channel: Channel) {
        let slot = Slot { awake: OnceCell::from(Box::new(channel)), packed: Box::default() };
        let old = self.slots.insert(id, slot);
        match old {
            Some(Slot { awake, packed }) if awake.get().is_none() => {
                note_awake(&self.awake, &self.asleep, &id, &unpack(&self.words, &id, &packed));
            }
            Some(_) => {}
            None => self.awake.get_mut().push_back(id),
        }
    }

    /// A channel of a start, for [`Channels::fill`]: asleep unless something in it is pending.
    pub(super) fn slot(&mut self, id: ChannelId, channel: Channel) -> Slot {
        if channel.is_pending() {
            self.awake.get_mut().push_back(id);
            return Slot { awake: OnceCell::from(Box::new(channel)), packed: Box::default() };
        }
        self.count_asleep(&channel);
        Slot { awake: OnceCell::new(), packed: pack(&self.words, &id, &channel) }
    }

    /// Takes all channels of a start at once: in order of their ids this makes the densest tree.
    pub(super) fn fill(&mut self, slots: Vec<(ChannelId, Slot)>) {
        self.slots = slots.into_iter().collect();
    }

    /// Looks at `count` of those who are awake, longest since first, and puts to sleep whom nothing keeps: neither
    /// `busy` nor anything pending.
    pub fn rest(&mut self, count: usize, busy: impl Fn(&ChannelId) -> bool) {
        for _ in 0..count.min(self.awake()) {
            let Some(id) = self.awake.get_mut().pop_front() else { return };
            let slot = self.slots.get_mut(&id).expect("whoever is awake is there");
            let channel = slot.awake.get().expect("whoever is awake has a struct");
            if busy(&id) || channel.is_pending() {
                self.awake.get_mut().push_back(id);
                continue;
            }
            if slot.packed.is_empty() {
                slot.packed = pack(&self.words, &id, channel);
            }
            let channel = slot.awake.take().expect("it was there");
            self.count_asleep(&channel);
        }
    }

    /// All ids in order.
    pub fn keys(&self) -> impl Iterator<Item = &ChannelId> {
        self.slots.keys()
    }

    /// All channels in the order of their ids. This wakes every one of them: not for a hub with millions.
    pub fn iter(&self) -> impl Iterator<Item = (&ChannelId, &Channel)> {
        self.slots.iter().map(|(id, slot)| (id, self.wake(id, slot)))
    }

    /// As [`Channels::iter`], without the ids.
    pub fn values(&self) -> impl Iterator<Item = &Channel> {
        self.iter().map(|(_, channel)| channel)
    }

    /// The channels in a range of ids; those that are read wake up.
    pub fn range(&self, ids: impl std::ops::RangeBounds<ChannelId>) -> impl Iterator<Item = (&ChannelId, &Channel)> {
        self.slots.range(ids).map(|(id, slot)| (id, self.wake(id, slot)))
    }

    /// Everybody with something pending (a close or a settlement that may still be posted), and perhaps others.
    pub fn pending(&self) -> impl Iterator<Item = (ChannelId, &Channel)> {
        let ids: Vec<ChannelId> = self.awake.borrow().iter().copied().collect();
        ids.into_iter().filter_map(|id| self.get(&id).map(|channel| (id, channel)))
    }

    /// The sums over all accounts.
    pub fn sums(&self) -> BTreeMap<Asset, AssetSums> {
        let mut sums = self.asleep.borrow().clone();
        for (_, channel) in self.pending() {
            for (asset, account) in &channel.accounts {
                sums.entry(*asset).or_default().add(account);
            }
        }
        sums
    }

    fn wake<'a>(&self, id: &ChannelId, slot: &'a Slot) -> &'a Channel {
        slot.awake.get_or_init(|| {
            let channel = unpack(&self.words, id, &slot.packed);
            note_awake(&self.awake, &self.asleep, id, &channel);
            Box::new(channel)
        })
    }

    fn count_asleep(&mut self, channel: &Channel) {
        let asleep = self.asleep.get_mut();
        for (asset, account) in &channel.accounts {
            asleep.entry(*asset).or_default().add(account);
        }
    }
}

impl<'a> IntoIterator for &'a Channels {
    type Item = (&'a ChannelId, &'a Channel);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter().collect::<Vec<_>>().into_iter()
    }
}

/// Equal if every channel is, asleep or not.
impl PartialEq for Channels {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Channels {}

impl Channel {
    /// Whether something of it waits for the ledger, so that the hub's tasks must find it without being told its id.
    fn is_pending(&self) -> bool {
        let waits = |a: &Account| a.ledger.status == Status::Closing || !a.kept.is_empty() || !a.agreed.is_empty();
        self.accounts.values().any(waits)
    }
}

fn note_awake(
    awake: &RefCell<VecDeque<ChannelId>>,
    asleep: &RefCell<BTreeMap<Asset, AssetSums>>,
    id: &ChannelId,
    channel: &Channel,
) {
    awake.borrow_mut().push_back(*id);
    let mut sums = asleep.borrow_mut();
    for (asset, account) in &channel.accounts {
        if let btree_map::Entry::Occupied(mut known) = sums.entry(*asset) {
            known.get_mut().remove(account);
        }
    }
}

// ---- packing -------------------------------------------------------------------------------------------------------

/// Runs of at most [`RUN_MAX`] bytes after their length, and numbers of words with the highest bit set; 0x80 is the
/// channel's own id.
fn pack(words: &Words, id: &ChannelId, channel: &Channel) -> Box<[u8]> {
    let bytes = postcard::to_stdvec(channel).expect("memory takes whatever is written to it");
    let mut packed = Vec::with_capacity(bytes.len());
    let (mut at, mut run) = (0, 0);
    while at < bytes.len() {
        let here = &bytes[at..];
        let own = || here.starts_with(id.as_slice()).then_some((0, 32));
        let shared = || {
            let found = words.all.iter().enumerate().find(|(_, word)| here.starts_with(word));
            found.map(|(number, word)| (number + 1, word.len()))
        };
        let found = own().or_else(|| words.first[usize::from(here[0])].then(shared).flatten());
        match found {
            Some((number, len)) => {
                put_runs(&mut packed, &bytes[run..at]);
                packed.push(0x80 | u8::try_from(number).expect("there are at most 127 words"));
                at += len;
                run = at;
            }
            None => at += 1,
        }
    }
    put_runs(&mut packed, &bytes[run..]);
    // Exactly as large as it is: a block that was shrunk in place keeps its size.
    Box::from(packed.as_slice())
}

fn put_runs(packed: &mut Vec<u8>, bytes: &[u8]) {
    for run in bytes.chunks(RUN_MAX) {
        packed.push(u8::try_from(run.len()).expect("a run has at most 127 bytes"));
        packed.extend_from_slice(run);
    }
}

fn unpack(words: &Words, id: &ChannelId, mut packed: &[u8]) -> Channel {
    let mut bytes = Vec::with_capacity(2 * packed.len());
    while let Some((mark, rest)) = packed.split_first() {
        let number = usize::from(mark & 0x7f);
        packed = match (mark & 0x80 == 0, number) {
            (true, len) => {
                bytes.extend_from_slice(&rest[..len]);
                &rest[len..]
            }
            (false, 0) => {
                bytes.extend_from_slice(id.as_slice());
                rest
            }
            (false, word) => {
                bytes.extend_from_slice(&words.all[word - 1]);
                rest
            }
        };
    }
    postcard::from_bytes(&bytes).expect("what was packed here is what comes back")
}
