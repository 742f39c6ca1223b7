//! How a hub bears many channels: makes a store as a hub would have written it, starts from it, and pays.
//!
//! For measurements and tests. Everything goes through the hub's own books, rows and journal; only the network is left
//! out, and all members share one key, because keys cost nothing once a channel sleeps. The full measurement is
//! `cargo run --release -p payhub-hub --example million_channels`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U256};
use proto::account::Totals;
use proto::books::{AssetPolicy, Books, LedgerUpdate, Policy, SessionId};
use proto::frame::LaneTip;
use proto::{AccountId, Amount, ChannelId, ChannelTerms, Domain, Frame, Payment, PaymentId, Scheme, SecretKey};

use crate::rows::{Index, Rows, Snapshot, encode_record};
use crate::{HubConfig, Opened, StartError, StoreAt, open_store};

/// The hub's and the members' seed.
const SEED: [u8; 32] = [7; 32];
const GENESIS: B256 = B256::repeat_byte(3);
/// Channels that are opened in one flush, and payments in one.
const FLUSH: usize = 4096;
/// Flushes between two checkpoints.
const CHECKPOINT: u64 = 16;

/// A hub without a network.
#[derive(Debug)]
pub struct Bench {
    journal: storage::Journal,
    rows: Arc<Rows>,
    books: Books,
    key: SecretKey,
    hub: Address,
    hub_key: SecretKey,
    challenge_period_s: u32,
    /// How long the start took.
    pub started_in: Duration,
}

/// What is in memory of the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// All of them.
    pub channels: usize,
    /// Those that stand as structs.
    pub awake: usize,
    /// Bytes that the others are packed into.
    pub packed_bytes: usize,
}

impl Bench {
    /// Starts from the store in a folder, as the hub does, or makes one.
    ///
    /// # Errors
    /// As the hub's start.
    pub fn open(dir: &Path) -> Result<Bench, StartError> {
        let began = Instant::now();
        let config = HubConfig::new(SEED, StoreAt::Folder(dir.to_owned()), vec![asset_policy()]);
        let hub_keys = config.voucher_keys();
        let (hub, hub_key) = (config.account(), hub_keys[0].clone());
        let (policy, keys): (Policy, _) = (config.policy(), config.all_keys());
        let challenge_period_s = config.challenge_period_s;
        let Opened { journal, rows, books } =
            open_store(config.store, config.store_config, &domain(), GENESIS, hub, policy, keys, &SEED)?;
        let started_in = began.elapsed();
        let key = SecretKey::derive(Scheme::Ed25519, &SEED, "member");
        Ok(Bench { journal, rows, books, key, hub, hub_key, challenge_period_s, started_in })
    }

    /// Opens channels `0..count`, each with deposits, a name and one payment to the next one, and puts them to sleep.
    pub fn fill(&mut self, count: usize) {
        for first in (0..count).step_by(FLUSH) {
            let numbers = first..count.min(first + FLUSH);
            let opened: Vec<ChannelTerms> = numbers.clone().map(|n| self.terms(n)).collect();
            let ids: Vec<ChannelId> = opened.iter().map(|terms| domain().channel_id(terms)).collect();
            let deposit = Amount::new(1_000_000_000);
            let totals = Totals { member_deposit: deposit, hub_deposit: deposit, ..Totals::default() };
            let totals = ids.iter().map(|id| (account(*id), totals)).collect();
            let cursor = (first as u64).to_be_bytes().to_vec().into();
            self.books.ledger(LedgerUpdate { confirmed: 1, confirmed_time: 1, opened, totals, cursor });
            for (n, id) in numbers.zip(&ids) {
                self.books.name(*id, &format!("member-{n}")).expect("the name is free");
            }
            self.flush();
            for (i, id) in ids.iter().enumerate() {
                let payee = ids[(i + 1) % ids.len()];
                self.pay(*id, LaneTip::default(), payee, 1);
            }
            self.flush();
            if self.books.sealed() % CHECKPOINT < 2 {
                self.checkpoint();
            }
        }
        self.checkpoint();
    }

    /// The ids of channels that were filled.
    pub fn ids(&self, numbers: impl IntoIterator<Item = usize>) -> Vec<ChannelId> {
        numbers.into_iter().map(|n| domain().channel_id(&self.terms(n))).collect()
    }

    /// Lets each of the channels pay the next one `rounds` times, a flush a round; gives the time without the payers'
    /// own signatures and without checkpoints, which the hub writes on another thread.
    pub fn rounds(&mut self, channels: &[ChannelId], rounds: usize) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..rounds {
            let mut frames = Vec::with_capacity(channels.len());
            for (i, id) in channels.iter().enumerate() {
                let tip = self.books.account(account(*id)).expect("it was filled").tip(0);
                // What the lane has paid makes ids that were never used.
                let number = 2 + tip.cumulative.get();
                frames.push((*id, self.frame(*id, tip, channels[(i + 1) % channels.len()], number)));
            }
            let began = Instant::now();
            for (id, frame) in frames {
                self.take(id, frame);
            }
            self.flush();
            spent += began.elapsed();
        }
        spent
    }

    /// What is in memory.
    pub fn held(&self) -> Held {
        let channels = self.books.channels();
        Held { channels: channels.len(), awake: channels.awake(), packed_bytes: channels.packed_bytes() }
    }

    /// Closes the store.
    pub fn close(self) {
        self.journal.close().expect("the journal closes");
    }

    fn pay(&mut self, from: ChannelId, tip: LaneTip, payee: ChannelId, number: u128) {
        let frame = self.frame(from, tip, payee, number);
        self.take(from, frame);
    }

    fn frame(&self, from: ChannelId, tip: LaneTip, payee: ChannelId, number: u128) -> Frame {
        let id = PaymentId(number.to_be_bytes().into());
        let one = Amount::new(1);
        let payment = Payment { id, payee, amount: one, fee: one, note: Default::default() };
        Frame::sign(&domain(), &self.key, account(from), 0, tip, vec![payment]).expect("one small payment")
    }

    fn take(&mut self, from: ChannelId, frame: Frame) {
        if self.books.session(from).is_none() {
            self.books.hello(from, SessionId(1), None).expect("the channel is served");
        }
        let index = Index { rows: &self.rows, failed: Default::default() };
        self.books.pay(SessionId(1), frame, &index).expect("the payment is good");
    }

    fn flush(&mut self) {
        let Some((record, outcome)) = self.books.seal_with_outcome() else { return };
        let (number, record) = (record.number, Arc::new(record));
        self.rows.seal(record.clone());
        let mut encoded = Vec::new();
        encode_record(&record, &mut encoded);
        self.journal.append(&encoded).expect("the disk takes it");
        self.rows.settle(number, Some(outcome)).expect("the store can be read");
    }

    /// Writes the rows of what changed, and puts everybody to sleep.
    pub fn checkpoint(&mut self) {
        self.rows.begin_payments();
        self.rows.begin_words();
        let touched = self.books.take_touched();
        let channels = touched.iter().filter_map(|id| self.books.channel(*id).map(|c| (*id, c.clone()))).collect();
        let snapshot = Snapshot { upto: self.books.sealed(), ground: self.books.ground(), channels };
        self.rows.checkpoint(snapshot).expect("the index takes it");
        self.rows.tidy_journal().expect("the journal is tidied");
        for id in touched {
            self.books.goodbye(id, SessionId(1));
        }
        self.books.rest(usize::MAX);
    }

    fn terms(&self, number: usize) -> ChannelTerms {
        ChannelTerms {
            hub: self.hub,
            hubKey: self.hub_key.public().bytes,
            hubScheme: self.hub_key.scheme().number(),
            member: Address::from_word(B256::from(U256::from(number))),
            memberKey: self.key.public().bytes,
            memberScheme: self.key.scheme().number(),
            challengePeriod: self.challenge_period_s,
            salt: proto::typed::chain_hash(B256::from(U256::from(number)), B256::ZERO),
        }
    }
}

fn domain() -> Domain {
    Domain::new(31337, Address::repeat_byte(1))
}

fn account(channel: ChannelId) -> AccountId {
    AccountId { channel, asset: asset_policy().asset }
}

fn asset_policy() -> AssetPolicy {
    AssetPolicy {
        asset: Address::repeat_byte(9),
        symbol: "USDH".into(),
        decimals: 6,
        deposit_min: Amount::new(10),
        inbound_target: Amount::new(1_000),
        inbound_max: Amount::new(10_000),
        fee_flat: Amount::new(1),
        fee_ppm: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted, not timed: an idle channel costs the books less than half a kilobyte, before and after a restart, and
    /// only those that pay stand as structs.
    #[test]
    fn twenty_thousand_idle_channels_sleep_in_less_than_half_a_kilobyte_each() {
        let dir = tempfile::tempdir().expect("a folder");
        let count = 20_000;
        let mut bench = Bench::open(dir.path()).expect("opens");
        bench.fill(count);
        let check = |held: Held, awake: usize| {
            assert_eq!((held.channels, held.awake), (count, awake));
            assert!(held.packed_bytes < (count - awake) * 512, "{held:?}");
        };
        check(bench.held(), 0);
        let sums = bench.books.sums();
        bench.close();
        let mut bench = Bench::open(dir.path()).expect("opens again");
        check(bench.held(), 0);
        assert_eq!(bench.books.sums(), sums);
        let payers = bench.ids((0..100).map(|n| n * 199));
        bench.rounds(&payers, 3);
        check(bench.held(), 100);
        let after = bench.books.sums();
        let paid =
            |sums: &std::collections::BTreeMap<Address, proto::books::AssetSums>| sums[&asset_policy().asset].paid;
        assert_eq!(paid(&after), paid(&sums) + U256::from(2 * 3 * 100));
        bench.checkpoint();
        check(bench.held(), 0);
        assert_eq!(bench.books.sums(), after, "sleep changes no sum");
    }
}
