//! The ledger's events, each exactly once: seen, confirmed, or taken back.
//!
//! [`Cursor`] is a state machine without I/O. It is told the newest block ([`Cursor::on_head`]), says what it needs to
//! read ([`Cursor::want`]), and gets that ([`Cursor::on_block`], [`Cursor::on_range`]). What comes out is a [`Step`]:
//! items, and the [`CursorState`] after them. **The owner stores that state in the same write as the effects of the
//! items**; a process that starts again from a stored state gets exactly the steps that it had not stored.
//!
//! Blocks that are not yet `confirmations` deep are remembered with their hashes and events. A block whose parent is not
//! the newest block remembered proves a reorganisation: blocks are taken back, newest first, until one fits. Blocks that
//! are deep are read by ranges, so that a long outage costs few requests; ranges end [`RANGE_MARGIN`] below the head,
//! because a node behind a load balancer may not know the newest blocks that another one named.
//!
//! A reorganisation deeper than `confirmations` breaks the assumption that the whole system stands on. It is reported
//! and the cursor stays where it is: what to do then is no decision of a library.

use std::collections::VecDeque;
use std::time::Duration;

use alloy_primitives::B256;
use futures::Stream;
use proto::AccountId;
use serde::{Deserialize, Serialize};

use crate::adjudicator::{BlockRef, LedgerEvent};
use crate::chain::{Chain, ChainError};

/// Most blocks of one range: nodes commonly refuse to search more than a few thousand at once.
pub const RANGE_BLOCKS_MAX: u64 = 2_000;
/// How far below the head a range must end at least, in blocks.
pub const RANGE_MARGIN: u64 = 16;
/// Longest pause between attempts while a node does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Where a cursor stands: small, and all that it needs to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CursorState {
    /// The first block to read while there is no other.
    start: u64,
    /// The newest confirmed block.
    confirmed: Option<BlockRef>,
    /// Blocks on top of it, oldest first.
    window: VecDeque<WindowBlock>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct WindowBlock {
    block: BlockRef,
    events: Vec<LedgerEvent>,
}

/// What happened to an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// It is in a block of the chain.
    Seen(LedgerEvent),
    /// It is `confirmations` deep; it was seen before.
    Confirmed(LedgerEvent),
    /// Its block is no longer part of the chain; it was seen before and not confirmed.
    Reverted(LedgerEvent),
}

/// One move of the cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What happened, in order; empty where only the head moved.
    pub items: Vec<Item>,
    /// The newest block that is read.
    pub head: BlockRef,
    /// The newest confirmed block, if there is one yet.
    pub confirmed: Option<BlockRef>,
    /// Blocks that the node has and the cursor has not read yet; 0 when it has caught up.
    pub behind: u64,
    /// The state to store together with the effects of the items.
    pub state: CursorState,
}

/// What the cursor needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Nothing but a newer head.
    Head,
    /// The block with that number and its events.
    Block(u64),
    /// The events from one block to another, both included, and the blocks `from - 1` (if `before` says so) and `to`.
    Range {
        /// First block.
        from: u64,
        /// Last block.
        to: u64,
        /// The number of the block that is remembered as the newest, if one is.
        before: Option<u64>,
    },
}

/// A chain that does what it must not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// A confirmed block is no longer part of the chain.
    #[error(
        "block {number} was confirmed as {expected} and is now {found}: the ledger was reorganised deeper than the configured confirmations, or it is another chain; stop, compare the books with the ledger, then start from a new position"
    )]
    ReorgTooDeep {
        /// The block.
        number: u64,
        /// Its hash when it was confirmed.
        expected: B256,
        /// Its hash now.
        found: B256,
    },
}

/// Follows a chain; see the module.
#[derive(Clone, Debug)]
pub struct Cursor {
    state: CursorState,
    confirmations: u64,
    head: Option<BlockRef>,
}

impl CursorState {
    /// Before everything: reads from that block on, which is best the adjudicator's own, or 0.
    pub fn from_block(number: u64) -> Self {
        CursorState { start: number, confirmed: None, window: VecDeque::new() }
    }

    /// On top of a block that the owner knows: reads what comes after it.
    pub fn after(block: BlockRef) -> Self {
        CursorState { start: block.number.saturating_add(1), confirmed: Some(block), window: VecDeque::new() }
    }

    /// The newest block read, confirmed or not.
    pub fn tip(&self) -> Option<BlockRef> {
        self.window.back().map(|newest| newest.block).or(self.confirmed)
    }

    /// The newest confirmed block.
    pub fn confirmed(&self) -> Option<BlockRef> {
        self.confirmed
    }

    /// Events of an account that are seen and not confirmed, oldest first.
    pub fn unconfirmed_of(&self, account: AccountId) -> impl Iterator<Item = &LedgerEvent> {
        self.window.iter().flat_map(|block| &block.events).filter(move |event| event.account() == Some(account))
    }

    fn next(&self) -> u64 {
        self.tip().map_or(self.start, |tip| tip.number.saturating_add(1))
    }

    fn hash_at(&self, number: u64) -> Option<B256> {
        let remembered = self.window.iter().map(|block| block.block).chain(self.confirmed);
        remembered.into_iter().find(|block| block.number == number).map(|block| block.hash)
    }
}

impl Cursor {
    /// A cursor that goes on from a state.
    pub fn new(state: CursorState, confirmations: u64) -> Self {
        Cursor { state, confirmations, head: None }
    }

    /// Where it stands.
    pub fn state(&self) -> &CursorState {
        &self.state
    }

    /// Takes the newest block of the node.
    ///
    /// A head that is remembered already is a node that lags, and nothing happens. A head that contradicts a remembered
    /// block takes it and all above it back.
    pub fn on_head(&mut self, head: BlockRef) -> Result<Option<Step>, CursorError> {
        let first = self.head.is_none();
        let Some(tip) = self.state.tip() else {
            self.head = Some(head);
            return Ok(None);
        };
        if head.number > tip.number {
            self.head = Some(head);
            return Ok(first.then(|| self.step(Vec::new(), tip)));
        }
        match self.state.hash_at(head.number) {
            Some(known) if known != head.hash => {
                self.refuse_below_confirmed(head.number, head.hash)?;
                self.head = Some(head);
                let items = self.take_back(|block| block.number >= head.number);
                Ok(Some(self.step(items, tip)))
            }
            Some(_) | None => {
                self.head = self.head.or(Some(tip));
                Ok(first.then(|| self.step(Vec::new(), tip)))
            }
        }
    }

    /// What to read next.
    pub fn want(&self) -> Want {
        let Some(head) = self.head else { return Want::Head };
        let next = self.state.next();
        if next > head.number {
            return Want::Head;
        }
        let deep = head.number.checked_sub(self.confirmations.max(RANGE_MARGIN));
        let Some(deep) = deep.filter(|deep| next <= *deep) else { return Want::Block(next) };
        let to = deep.min(next.saturating_add(RANGE_BLOCKS_MAX - 1));
        Want::Range { from: next, to, before: self.state.tip().map(|tip| tip.number) }
    }

    /// Takes a block and its events. One that was not wanted is ignored.
    pub fn on_block(&mut self, block: BlockRef, events: Vec<LedgerEvent>) -> Result<Option<Step>, CursorError> {
        if block.number != self.state.next() {
            return Ok(None);
        }
        if let Some(tip) = self.state.tip().filter(|tip| tip.hash != block.parent) {
            return self.take_back_tip(tip, block.parent).map(Some);
        }
        let mut items: Vec<Item> = events.iter().cloned().map(Item::Seen).collect();
        self.state.window.push_back(WindowBlock { block, events });
        self.confirm_until(block.number.checked_sub(self.confirmations), &mut items);
        Ok(Some(self.step(items, block)))
    }

    /// Takes the events of a wanted range, with the block before it and its last block as the node has them now.
    pub fn on_range(
        &mut self,
        before: Option<BlockRef>,
        last: BlockRef,
        events: Vec<LedgerEvent>,
    ) -> Result<Option<Step>, CursorError> {
        let tip = self.state.tip();
        if tip.map(|tip| tip.number) != before.map(|before| before.number) || last.number < self.state.next() {
            return Ok(None);
        }
        if let Some((tip, before)) = tip.zip(before).filter(|(tip, before)| tip.hash != before.hash) {
            return self.take_back_tip(tip, before.hash).map(Some);
        }
        let mut items = Vec::new();
        self.confirm_until(Some(last.number), &mut items);
        for event in events {
            items.push(Item::Seen(event.clone()));
            items.push(Item::Confirmed(event));
        }
        self.state.confirmed = Some(last);
        Ok(Some(self.step(items, last)))
    }

    fn take_back_tip(&mut self, tip: BlockRef, found: B256) -> Result<Step, CursorError> {
        self.refuse_below_confirmed(tip.number, found)?;
        let items = self.take_back(|block| block.number >= tip.number);
        Ok(self.step(items, tip))
    }

    fn refuse_below_confirmed(&self, number: u64, found: B256) -> Result<(), CursorError> {
        match self.state.confirmed {
            Some(confirmed) if number <= confirmed.number => {
                Err(CursorError::ReorgTooDeep { number: confirmed.number, expected: confirmed.hash, found })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn take_back(&mut self, gone: impl Fn(&BlockRef) -> bool) -> Vec<Item> {
        let mut items = Vec::new();
        while self.state.window.back().is_some_and(|newest| gone(&newest.block)) {
            let newest = self.state.window.pop_back().expect("it was just looked at");
            items.extend(newest.events.into_iter().rev().map(Item::Reverted));
        }
        items
    }

    fn confirm_until(&mut self, number: Option<u64>, items: &mut Vec<Item>) {
        let Some(number) = number else { return };
        while self.state.window.front().is_some_and(|oldest| oldest.block.number <= number) {
            let oldest = self.state.window.pop_front().expect("it was just looked at");
            self.state.confirmed = Some(oldest.block);
            items.extend(oldest.events.into_iter().map(Item::Confirmed));
        }
    }

    fn step(&self, items: Vec<Item>, otherwise: BlockRef) -> Step {
        let head = self.state.tip().unwrap_or(otherwise);
        let known = self.head.map_or(head.number, |head| head.number);
        Step {
            items,
            head,
            confirmed: self.state.confirmed,
            behind: known.saturating_sub(head.number),
            state: self.state.clone(),
        }
    }
}

/// What [`follow`] yields.
#[derive(Debug)]
pub enum Update {
    /// The cursor moved.
    Step(Box<Step>),
    /// The ledger cannot be followed at the moment; said once for each different trouble, attempts go on.
    Trouble(FollowError),
}

/// Why the ledger cannot be followed at the moment.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The node does not answer as it should.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The chain does what it must not.
    #[error(transparent)]
    Cursor(#[from] CursorError),
}

/// Follows a chain from a state by asking for its head every `poll`. The stream ends only by being dropped.
pub fn follow(chain: Chain, state: CursorState, poll: Duration) -> impl Stream<Item = Update> + Send {
    let cursor = Cursor::new(state, chain.confirmations());
    let follower = Follower { chain, cursor, poll, pause: Duration::ZERO, trouble: None };
    futures::stream::unfold(follower, |mut follower| async move {
        let update = follower.next().await;
        Some((update, follower))
    })
}

struct Follower {
    chain: Chain,
    cursor: Cursor,
    poll: Duration,
    /// How long to wait before the next request.
    pause: Duration,
    /// What was last reported.
    trouble: Option<String>,
}

impl Follower {
    async fn next(&mut self) -> Update {
        loop {
            tokio::time::sleep(std::mem::take(&mut self.pause)).await;
            match self.advance().await {
                Ok(Some(step)) => {
                    self.trouble = None;
                    return Update::Step(Box::new(step));
                }
                Ok(None) => {}
                Err(error) => {
                    self.pause = self.poll.saturating_mul(4).clamp(self.poll, PAUSE_MAX);
                    let text = error.to_string();
                    if self.trouble.as_ref() != Some(&text) {
                        self.trouble = Some(text);
                        return Update::Trouble(error);
                    }
                }
            }
        }
    }

    /// Makes one round of requests.
    async fn advance(&mut self) -> Result<Option<Step>, FollowError> {
        match self.cursor.want() {
            Want::Head => {
                let head = self.chain.head().await?;
                let step = self.cursor.on_head(head)?;
                if step.is_none() && self.cursor.want() == Want::Head {
                    self.pause = self.poll;
                }
                Ok(step)
            }
            Want::Block(number) => {
                let Some(block) = self.chain.block(number).await? else {
                    // The chain became shorter, or another node answered: ask for the head again.
                    self.pause = self.poll;
                    let head = self.chain.head().await?;
                    return Ok(self.cursor.on_head(head)?);
                };
                let events = self.chain.events_of(&block).await?;
                Ok(self.cursor.on_block(block, events)?)
            }
            Want::Range { from, to, before } => {
                let before = match before {
                    Some(number) => Some(self.known_block(number).await?),
                    None => None,
                };
                let last = self.known_block(to).await?;
                let events = self.chain.events_in(from, to).await?;
                Ok(self.cursor.on_range(before, last, events)?)
            }
        }
    }

    async fn known_block(&self, number: u64) -> Result<BlockRef, ChainError> {
        self.chain.block(number).await?.ok_or_else(|| ChainError::Nonsense {
            url: self.chain.url().to_owned(),
            what: "a block below its head",
            why: format!("it does not have block {number}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use alloy_primitives::{Address, U256, keccak256};

    use super::*;
    use crate::adjudicator::EventKind;

    /// A chain that can be reorganised; every third block or so holds events.
    #[derive(Default)]
    struct Ledger {
        blocks: Vec<(BlockRef, Vec<LedgerEvent>)>,
        salt: u64,
    }

    impl Ledger {
        fn with_blocks(count: u64) -> Self {
            let mut ledger = Ledger::default();
            ledger.extend(count);
            ledger
        }

        fn extend(&mut self, count: u64) {
            for _ in 0..count {
                let number = self.blocks.len() as u64;
                let parent = self.blocks.last().map_or(B256::ZERO, |(block, _)| block.hash);
                let hash = keccak256([parent.as_slice(), &number.to_be_bytes(), &self.salt.to_be_bytes()].concat());
                let block = BlockRef { number, hash, parent, time_s: number * 10 };
                let events = (0..number % 3).map(|log_index| event(&block, log_index)).collect();
                self.blocks.push((block, events));
            }
        }

        /// Replaces the newest `depth` blocks by `count` others.
        fn reorganise(&mut self, depth: usize, count: u64) {
            self.blocks.truncate(self.blocks.len() - depth);
            self.salt += 1;
            self.extend(count);
        }

        fn head(&self) -> BlockRef {
            self.blocks.last().expect("a first block").0
        }
    }

    fn event(block: &BlockRef, log_index: u64) -> LedgerEvent {
        LedgerEvent {
            block_number: block.number,
            block_hash: block.hash,
            block_time_s: block.time_s,
            log_index,
            tx_hash: B256::ZERO,
            kind: EventKind::Claimable {
                vault: Address::ZERO,
                asset: Address::ZERO,
                owner: Address::ZERO,
                amount: U256::ONE,
                total: U256::ONE,
            },
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Known {
        Seen,
        Confirmed,
    }

    /// An owner that stores effects and position together, and complains about anything that is not exactly once.
    struct Owner {
        position: CursorState,
        known: BTreeMap<(B256, u64), Known>,
    }

    impl Owner {
        fn new() -> Self {
            Owner { position: CursorState::from_block(0), known: BTreeMap::new() }
        }

        fn store(&mut self, step: Step) {
            for item in step.items {
                let (Item::Seen(event) | Item::Confirmed(event) | Item::Reverted(event)) = &item;
                let id = (event.block_hash, event.log_index);
                let before = match item {
                    Item::Seen(_) => self.known.insert(id, Known::Seen),
                    Item::Confirmed(_) => self.known.insert(id, Known::Confirmed),
                    Item::Reverted(_) => self.known.remove(&id),
                };
                let expected = if matches!(item, Item::Seen(_)) { None } else { Some(Known::Seen) };
                assert_eq!(before, expected, "{item:?}");
            }
            self.position = step.state;
        }

        /// What it must know of a chain that it has caught up with.
        fn check(&self, ledger: &Ledger, confirmations: u64) {
            let head = ledger.head().number;
            let mut expected = BTreeMap::new();
            for (block, events) in &ledger.blocks {
                let known = if block.number + confirmations <= head { Known::Confirmed } else { Known::Seen };
                expected.extend(events.iter().map(|event| ((event.block_hash, event.log_index), known)));
            }
            assert_eq!(self.known, expected);
        }
    }

    /// One answer of the ledger to what the cursor wants; `None` when it wants nothing more.
    fn answer(cursor: &mut Cursor, ledger: &Ledger) -> Option<Result<Option<Step>, CursorError>> {
        let at = |number: u64| ledger.blocks.get(number as usize).cloned();
        match cursor.want() {
            Want::Head => None,
            Want::Block(number) => {
                let (block, events) = at(number)?;
                Some(cursor.on_block(block, events))
            }
            Want::Range { from, to, before } => {
                let before = before.and_then(&at).map(|(block, _)| block);
                let events = (from..=to).filter_map(at).flat_map(|(_, events)| events).collect();
                let (last, _) = at(to)?;
                Some(cursor.on_range(before, last, events))
            }
        }
    }

    /// Runs a cursor until it has caught up; `crash` says after which steps it dies before the owner has stored them.
    fn catch_up(owner: &mut Owner, ledger: &Ledger, confirmations: u64, mut crash: impl FnMut() -> bool) {
        'life: loop {
            let mut cursor = Cursor::new(owner.position.clone(), confirmations);
            let mut step = cursor.on_head(ledger.head()).expect("no deep reorganisation");
            loop {
                if let Some(step) = step {
                    if crash() {
                        continue 'life;
                    }
                    owner.store(step);
                }
                match answer(&mut cursor, ledger) {
                    Some(next) => step = next.expect("no deep reorganisation"),
                    None => return,
                }
            }
        }
    }

    #[test]
    fn every_event_is_seen_and_confirmed_exactly_once_whatever_the_length_of_the_outage() {
        for confirmations in [0, 1, 6, 30] {
            let mut ledger = Ledger::with_blocks(1);
            let mut owner = Owner::new();
            for outage in [0, 1, 2, 15, 16, 17, 60, RANGE_BLOCKS_MAX * 2 + 40] {
                ledger.extend(outage);
                catch_up(&mut owner, &ledger, confirmations, || false);
                owner.check(&ledger, confirmations);
            }
        }
    }

    #[test]
    fn a_crash_at_any_step_loses_and_doubles_nothing() {
        for crash_at in 0..60 {
            let mut ledger = Ledger::with_blocks(30);
            let mut owner = Owner::new();
            let mut steps = 0;
            for (depth, count) in [(0, 5), (3, 4), (6, 7), (1, 1), (0, 40)] {
                ledger.reorganise(depth, count);
                catch_up(&mut owner, &ledger, 6, || {
                    steps += 1;
                    steps == crash_at
                });
                owner.check(&ledger, 6);
            }
        }
    }

    #[test]
    fn reorganisations_are_followed_down_to_the_confirmations() {
        // (blocks replaced, blocks in their place): longer, as long, shorter, and all that is not confirmed.
        for (depth, count) in [(1, 2), (1, 1), (3, 3), (4, 2), (6, 7), (6, 1), (6, 60)] {
            let mut ledger = Ledger::with_blocks(20);
            let mut owner = Owner::new();
            catch_up(&mut owner, &ledger, 6, || false);
            ledger.reorganise(depth, count);
            catch_up(&mut owner, &ledger, 6, || false);
            // A shorter chain leaves what was confirmed confirmed: catch up to a longer one before comparing.
            ledger.extend(10);
            catch_up(&mut owner, &ledger, 6, || false);
            owner.check(&ledger, 6);
        }
    }

    #[test]
    fn a_reorganisation_below_the_confirmed_block_is_an_error_and_moves_nothing() {
        for (depth, count) in [(7, 7), (7, 9), (8, 60)] {
            let mut ledger = Ledger::with_blocks(20);
            let mut owner = Owner::new();
            catch_up(&mut owner, &ledger, 6, || false);
            ledger.reorganise(depth, count);
            let mut cursor = Cursor::new(owner.position.clone(), 6);
            let mut result = cursor.on_head(ledger.head());
            while let Ok(_step) = &result {
                match answer(&mut cursor, &ledger) {
                    Some(next) => result = next,
                    None => panic!("the cursor followed a chain that it must not follow"),
                }
            }
            let confirmed = owner.position.confirmed().expect("there is one");
            assert!(matches!(result, Err(CursorError::ReorgTooDeep { number, .. }) if number == confirmed.number));
            assert_eq!(cursor.state().confirmed(), Some(confirmed));
        }
    }

    #[test]
    fn duplicates_gaps_and_lagging_nodes_change_nothing() {
        let ledger = Ledger::with_blocks(12);
        let mut owner = Owner::new();
        catch_up(&mut owner, &ledger, 3, || false);
        let mut cursor = Cursor::new(owner.position.clone(), 3);
        cursor.on_head(ledger.head()).expect("good").expect("the first head is always told");
        let before = cursor.state().clone();
        for (block, events) in ledger.blocks.clone() {
            assert_eq!(cursor.on_block(block, events).expect("good"), None);
            assert_eq!(cursor.on_head(block).expect("good"), None);
        }
        let far = BlockRef { number: 40, ..BlockRef::default() };
        assert_eq!(cursor.on_block(far, Vec::new()).expect("good"), None);
        assert_eq!(cursor.state(), &before);
    }

    #[test]
    fn heads_are_told_when_nothing_else_happens() {
        let mut ledger = Ledger::with_blocks(1);
        let mut cursor = Cursor::new(CursorState::from_block(0), 2);
        let mut heads = Vec::new();
        for _ in 0..5 {
            assert_eq!(cursor.on_head(ledger.head()).expect("good"), None);
            let step = answer(&mut cursor, &ledger).expect("a block").expect("good").expect("a step");
            heads.push((step.head.number, step.confirmed.map(|block| block.number), step.behind));
            ledger.extend(1);
        }
        assert_eq!(heads, [(0, None, 0), (1, None, 0), (2, Some(0), 0), (3, Some(1), 0), (4, Some(2), 0)]);
    }

    #[test]
    fn random_chains_and_crashes_keep_every_event_exactly_once() {
        for seed in 0..300u64 {
            let mut random = Random(seed);
            let confirmations = random.below(8);
            let mut ledger = Ledger::with_blocks(1 + random.below(40));
            let mut owner = Owner::new();
            let mut crashes = Random(seed ^ 0xc4a5);
            for _ in 0..12 {
                let unconfirmed = ledger.head().number.min(confirmations);
                let depth = random.below(unconfirmed + 1);
                // A chain that is replaced by a shorter one leaves blocks confirmed that now lack confirmations.
                ledger.reorganise(depth as usize, depth + random.below(30));
                catch_up(&mut owner, &ledger, confirmations, || crashes.below(4) == 0);
                owner.check(&ledger, confirmations);
            }
            assert!(owner.position.tip().is_some(), "seed {seed}");
        }
    }

    /// splitmix64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ (mixed >> 31)) % end
        }
    }
}
