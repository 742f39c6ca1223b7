//! The hot functions of the protocol, for counting their instructions: `tests/instructions` runs each case under
//! valgrind's callgrind, which counts only inside of [`hot`].
//!
//! ```text
//! instructions            names the cases
//! instructions CASE       runs one, and prints how many operations it did
//! ```
#![allow(clippy::print_stdout, clippy::expect_used)]

use std::hint::black_box;

use alloy_primitives::{Address, B256, Bytes, FixedBytes};
use payhub_proto::account::Totals;
use payhub_proto::books::{
    AssetPolicy, Books, KnownPayment, LedgerUpdate, Outcome, Paid, PaymentIndex, Policy, SessionId,
};
use payhub_proto::wire::{self, v1};
use payhub_proto::{
    AccountId, Amount, Asset, ChannelId, ChannelTerms, Domain, Frame, LaneTip, Payment, PaymentId, Scheme, SecretKey,
};

/// Operations of a case: enough that a table that grows once does not matter.
const OPERATIONS: u64 = 64;
const ASSET: Asset = Address::repeat_byte(0x70);
const HUB: Address = Address::repeat_byte(0xbb);
const PERIOD_S: u32 = 86_400;

type Case = (&'static str, fn());

/// Everything that a payment costs in cryptography and books, at the hub and at both members.
const CASES: [Case; 11] = [
    ("sign_frame_1", || sign_frame(1)),
    ("sign_frame_64", || sign_frame(64)),
    ("write_frame_64", || write_frame(64)),
    ("verify_frame_1", || verify_frame(1)),
    ("verify_frame_64", || verify_frame(64)),
    ("accept_frame_1", || accept_frame(1)),
    ("accept_frame_64", || accept_frame(64)),
    ("sign_flush", sign_flush),
    ("write_receipt", write_receipt),
    ("check_receipt", check_receipt),
    ("check_credit_64", check_credit),
];

/// Instructions count in here and nowhere else.
#[inline(never)]
fn hot<T>(work: impl FnOnce() -> T) -> T {
    black_box(work())
}

fn main() {
    let wanted = std::env::args().nth(1);
    match CASES.iter().find(|(name, _)| Some(*name) == wanted.as_deref()) {
        Some((_, case)) => {
            case();
            println!("{OPERATIONS}");
        }
        None => CASES.iter().for_each(|(name, _)| println!("{name}")),
    }
}

// ---- cases ---------------------------------------------------------------------------------------------------------

/// The payer makes and signs a frame.
fn sign_frame(payments: usize) {
    let mut world = World::new();
    for _ in 0..OPERATIONS {
        let payments = world.payments(payments);
        world.tip = hot(|| world.sign(payments)).tip();
    }
}

/// The payer writes it for the wire.
fn write_frame(payments: usize) {
    let mut world = World::new();
    for tag in 0..OPERATIONS {
        let frame = world.frame(payments);
        hot(|| wire::frame_message(tag, &frame));
    }
}

/// The hub reads a frame and checks form and signature.
fn verify_frame(payments: usize) {
    let mut world = World::new();
    for tag in 0..OPERATIONS {
        let message = wire::frame_message(tag, &world.frame(payments));
        hot(|| world.verify(message));
    }
}

/// The books take a verified frame, alone in its flush, and seal that.
fn accept_frame(payments: usize) {
    let mut world = World::new();
    for tag in 0..OPERATIONS {
        let frame = world.frame(payments);
        let frame = world.verify(wire::frame_message(tag, &frame));
        hot(|| world.accept(frame));
    }
}

/// The hub makes the receipt and the voucher of a flush of one frame and signs their root.
fn sign_flush() {
    let mut world = World::new();
    for _ in 0..OPERATIONS {
        let (flush, outcome) = world.flush();
        hot(|| outcome.sign(&world.domain, flush, std::slice::from_ref(&world.hub_key), |_| Scheme::Ed25519));
    }
}

/// The hub writes a receipt for the wire.
fn write_receipt() {
    let mut world = World::new();
    for _ in 0..OPERATIONS {
        let (flush, outcome) = world.flush();
        let keys = std::slice::from_ref(&world.hub_key);
        let signed = outcome.sign(&world.domain, flush, keys, |_| Scheme::Ed25519);
        let receipt = signed.receipts.first().expect("a frame has a receipt");
        hot(|| wire::receipt_message(receipt));
    }
}

/// The payer reads a receipt and checks the hub's word.
fn check_receipt() {
    let mut world = World::new();
    for _ in 0..OPERATIONS {
        let (flush, outcome) = world.flush();
        let keys = std::slice::from_ref(&world.hub_key);
        let signed = outcome.sign(&world.domain, flush, keys, |_| Scheme::Ed25519);
        let message = wire::receipt_message(signed.receipts.first().expect("a frame has a receipt"));
        let key = world.hub_key.public();
        hot(|| wire::read_receipt(&world.domain, &key, &message)).expect("the hub signed it");
    }
}

/// The payee reads a credit of 64 payments and hashes it as its payer's receipt.
fn check_credit() {
    let mut world = World::new();
    let account = AccountId { channel: world.payee, asset: ASSET };
    for number in 1..=OPERATIONS {
        let payments = world.payments(64);
        let row = |p: &Payment| v1::CreditedPayment {
            id: wire::bytes_of(p.id.0),
            amount: wire::amount_bytes(p.amount),
            note: p.note.0.clone(),
        };
        let credit = v1::Credit {
            number,
            payer: wire::bytes_of(world.payer.0),
            amount: wire::amount_bytes(Amount::new(64)),
            total: wire::amount_bytes(Amount::new(64)),
            payments: payments.iter().map(row).collect(),
        };
        hot(|| {
            let credit = wire::read_credit(credit).expect("well-formed");
            world.domain.digest(&credit.receipt(account))
        });
    }
}

// ---- a hub's books with a payer and a payee ------------------------------------------------------------------------

struct World {
    domain: Domain,
    books: Books,
    hub_key: SecretKey,
    key: SecretKey,
    payer: ChannelId,
    payee: ChannelId,
    tip: LaneTip,
    ids: u64,
}

/// Nothing was paid before.
struct Nothing;

impl PaymentIndex for Nothing {
    fn find(&self, _: ChannelId, _: PaymentId) -> Option<KnownPayment> {
        None
    }
}

impl World {
    fn new() -> Self {
        let domain = Domain::new(31_337, Address::repeat_byte(0xad));
        let key_of = |n: u8| SecretKey::derive(Scheme::Ed25519, &[n; 32], "voucher");
        let hub_key = key_of(200);
        let policy = Policy {
            hub: HUB,
            keys: vec![hub_key.public()],
            challenge_period_s: PERIOD_S,
            settlement_validity_s: 3600,
            assets: vec![AssetPolicy {
                asset: ASSET,
                symbol: "USDH".to_owned(),
                decimals: 6,
                deposit_min: Amount::new(1),
                inbound_target: Amount::new(1),
                inbound_max: Amount::new(1),
                fee_flat: Amount::ZERO,
                fee_ppm: 0,
            }],
        };
        let mut books = Books::new(domain, policy);
        let terms = |n: u8| ChannelTerms {
            hub: HUB,
            hubKey: hub_key.public().bytes,
            hubScheme: Scheme::Ed25519.number(),
            member: Address::repeat_byte(n),
            memberKey: key_of(n).public().bytes,
            memberScheme: Scheme::Ed25519.number(),
            challengePeriod: PERIOD_S,
            salt: B256::repeat_byte(n),
        };
        let mut update = LedgerUpdate { confirmed: 1, confirmed_time: 1, ..LedgerUpdate::default() };
        let rich =
            Totals { member_deposit: Amount::new(1 << 40), hub_deposit: Amount::new(1 << 40), ..Totals::default() };
        for n in [1, 2] {
            update.opened.push(terms(n));
            update.totals.push((AccountId { channel: domain.channel_id(&terms(n)), asset: ASSET }, rich));
        }
        books.ledger(update);
        let (payer, payee) = (domain.channel_id(&terms(1)), domain.channel_id(&terms(2)));
        books.hello(payer, SessionId(1), None).expect("a served channel may say hello");
        books.seal().expect("there is something to seal");
        World { domain, books, hub_key, key: key_of(1), payer, payee, tip: LaneTip::default(), ids: 0 }
    }

    fn payments(&mut self, count: usize) -> Vec<Payment> {
        let mut payment = || {
            self.ids += 1;
            let id = PaymentId(FixedBytes::left_padding_from(&self.ids.to_be_bytes()));
            Payment { id, payee: self.payee, amount: Amount::new(1), fee: Amount::ZERO, note: Bytes::new() }
        };
        (0..count).map(|_| payment()).collect()
    }

    fn sign(&self, payments: Vec<Payment>) -> Frame {
        let account = AccountId { channel: self.payer, asset: ASSET };
        Frame::sign(&self.domain, &self.key, account, 0, self.tip, payments).expect("well-formed")
    }

    fn frame(&mut self, payments: usize) -> Frame {
        let payments = self.payments(payments);
        let frame = self.sign(payments);
        self.tip = frame.tip();
        frame
    }

    fn verify(&self, message: v1::Frame) -> Frame {
        let parts = wire::read_frame(message).expect("well-formed");
        parts.verify(&self.domain, &self.key.public(), self.payer).expect("its payer signed it")
    }

    fn accept(&mut self, frame: Frame) -> Option<Outcome> {
        assert_eq!(self.books.pay(SessionId(1), frame, &Nothing), Ok(Paid::Accepted));
        self.books.seal_with_outcome().map(|(_, outcome)| outcome)
    }

    fn flush(&mut self) -> (u64, Outcome) {
        let frame = self.frame(1);
        assert_eq!(self.books.pay(SessionId(1), frame, &Nothing), Ok(Paid::Accepted));
        let (record, outcome) = self.books.seal_with_outcome().expect("a frame was accepted");
        (record.number, outcome)
    }
}
