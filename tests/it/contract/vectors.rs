//! The golden vectors against the contract: its digests, its roots, and I6: what a verifier accepts off the ledger,
//! the contract accepts, and the other way round.

use std::collections::{BTreeMap, BTreeSet};

use alloy_primitives::{Address, B256, Bytes, U256, address};
use curve25519_dalek::edwards::CompressedEdwardsY;
use curve25519_dalek::scalar::clamp_integer;
use curve25519_dalek::{EdwardsPoint, Scalar};
use dispute::adjudicator::abi::IAdjudicator as contract;
use dispute::{Call, ChainError, Funding};
use payhub_tests::chains::{Person, World};
use proto::typed::Voucher;
use proto::{NATIVE, PublicKey, Scheme, SecretKey, Signature};
use serde::Deserialize;
use sha2::{Digest, Sha512};

use super::pair::{Pair, a};
use super::raw::{self, decoded};

super::on_both_ledgers![
    the_golden_digests_and_signatures_are_the_contracts,
    the_golden_batches_are_the_contracts,
    the_contract_takes_the_keys_that_programs_take,
    every_kind_of_signature_gets_the_same_answer_on_and_off_the_ledger,
];

/// Where the vectors were signed.
const GOLDEN: Address = address!("0x00000000000000000000000000000000c0ffee01");
/// `ecrecover`.
const RECOVER: Address = Address::with_last_byte(1);

// ---------------------------------------------------------------- typed data and batches

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypedRow {
    name: String,
    separator: B256,
    ed25519_key: B256,
    ed25519_signature: Bytes,
    secp256k1_key: B256,
    secp256k1_signature: Bytes,
    expected: B256,
    #[serde(flatten)]
    body: Body,
}

/// The fields of all structs together; each row has those of its own.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Body {
    channel_id: B256,
    asset: Address,
    hub: Address,
    hub_key: B256,
    hub_scheme: U256,
    member: Address,
    member_key: B256,
    member_scheme: U256,
    challenge_period: U256,
    salt: B256,
    payer: U256,
    lane: U256,
    cumulative: U256,
    credits: U256,
    memo: B256,
    tick: U256,
    ticks: U256,
    anchor: B256,
    credit: U256,
    amount: U256,
    total: U256,
    payments: B256,
    seq: U256,
    member_withdrawn: U256,
    hub_withdrawn: U256,
    valid_until: U256,
    close: bool,
    flush: U256,
    root: B256,
}

async fn the_golden_digests_and_signatures_are_the_contracts(world: &World) {
    at_the_golden_address(world).await;
    let rows: Vec<TypedRow> = read(include_str!("../../../proto/vectors/typed.json"));
    let mut without_view = BTreeSet::new();
    for row in rows {
        assert_eq!(world.view(GOLDEN, &contract::domainSeparatorCall {}).await, row.separator);
        match digest_view(world, &row.name, &row.body).await {
            Some(digest) => assert_eq!(digest, row.expected, "{}", row.name),
            None => assert!(without_view.insert(row.name.clone())),
        }
        assert_eq!(recovered(world, &row.expected, &row.secp256k1_signature).await, row.secp256k1_key, "{}", row.name);
        if world.ledger().is_some() {
            let good = precompile(world, &row.expected, &row.ed25519_key, &row.ed25519_signature).await;
            assert!(good, "{}", row.name);
        }
    }
    let off_ledger = ["Ack", "Login", "Offer"].map(str::to_owned);
    assert_eq!(without_view, BTreeSet::from(off_ledger), "what the contract never sees");
}

/// What the contract says that a struct's digest is.
async fn digest_view(world: &World, name: &str, body: &Body) -> Option<B256> {
    let (channel, asset, memo) = (body.channel_id, body.asset, body.memo);
    let cumulative = body.cumulative.to();
    Some(match name {
        "ChannelTerms" => {
            let terms = contract::Terms {
                hub: body.hub,
                hubKey: body.hub_key,
                hubScheme: body.hub_scheme.to(),
                member: body.member,
                memberKey: body.member_key,
                memberScheme: body.member_scheme.to(),
                challengePeriod: body.challenge_period.to(),
                salt: body.salt,
            };
            world.view(GOLDEN, &contract::channelIdOfCall { terms }).await
        }
        "Voucher" => {
            let (payer, lane, credits) = (body.payer.to(), body.lane.to(), body.credits.to());
            let voucher = contract::Voucher { channelId: channel, asset, payer, lane, cumulative, credits, memo };
            world.view(GOLDEN, &contract::voucherDigestCall { voucher }).await
        }
        "TickVoucher" => {
            let (lane, tick, ticks, anchor) = (body.lane.to(), body.tick.to(), body.ticks.to(), body.anchor);
            let voucher =
                contract::TickVoucher { channelId: channel, asset, lane, cumulative, tick, ticks, anchor, memo };
            world.view(GOLDEN, &contract::tickVoucherDigestCall { voucher }).await
        }
        "Receipt" => {
            let (credit, amount, total) = (body.credit.to(), body.amount.to(), body.total.to());
            let receipt =
                contract::Receipt { channelId: channel, asset, credit, amount, total, payments: body.payments };
            world.view(GOLDEN, &contract::receiptDigestCall { receipt }).await
        }
        "Settlement" => {
            let settlement = contract::Settlement {
                channelId: channel,
                asset,
                seq: body.seq.to(),
                memberWithdrawn: body.member_withdrawn.to(),
                hubWithdrawn: body.hub_withdrawn.to(),
                validUntil: body.valid_until.to(),
                close: body.close,
            };
            world.view(GOLDEN, &contract::settlementDigestCall { settlement }).await
        }
        "CloseRequest" => {
            let request = contract::CloseRequest { channelId: channel, asset, validUntil: body.valid_until.to() };
            world.view(GOLDEN, &contract::closeRequestDigestCall { request }).await
        }
        "Batch" => {
            let batch = contract::Batch { flush: body.flush.to(), root: body.root };
            world.view(GOLDEN, &contract::batchDigestCall { batch }).await
        }
        _ => return None,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BatchRow {
    name: String,
    digests: Vec<B256>,
    paths: Vec<Vec<B256>>,
    flush: U256,
    key: B256,
    signature: Bytes,
    batch_digest: B256,
    expected: B256,
}

async fn the_golden_batches_are_the_contracts(world: &World) {
    at_the_golden_address(world).await;
    let rows: Vec<BatchRow> = read(include_str!("../../../proto/vectors/batches.json"));
    for row in rows {
        assert_eq!(row.digests.len(), row.paths.len());
        for (digest, path) in row.digests.into_iter().zip(row.paths) {
            let root = world.view(GOLDEN, &contract::batchRootCall { digest, path }).await;
            assert_eq!(root, row.expected, "{}", row.name);
        }
        let batch = contract::Batch { flush: row.flush.to(), root: row.expected };
        let digest = world.view(GOLDEN, &contract::batchDigestCall { batch }).await;
        assert_eq!(digest, row.batch_digest, "{}", row.name);
        assert_eq!(recovered(world, &digest, &row.signature).await, row.key, "{}", row.name);
    }
}

/// Puts the adjudicator where the vectors were signed. Its code computes the domain anew at another address.
async fn at_the_golden_address(world: &World) {
    let code = world.chain().code(world.adjudicator().address()).await.expect("the chain answers");
    world.set_code(GOLDEN, &code).await;
}

async fn recovered(world: &World, digest: &B256, signature: &Bytes) -> B256 {
    let (rs, v) = signature.split_at(64);
    let input = [digest.as_slice(), B256::with_last_byte(v[0]).as_slice(), rs].concat();
    let call = Call::of(RECOVER, U256::ZERO, input.into());
    let output = world.chain().simulate(world.address(Person::Anyone), &call).await.expect("ecrecover refuses nothing");
    B256::try_from(output.as_ref()).unwrap_or_default()
}

/// Whether the ledger's Ed25519 precompile takes a signature.
async fn precompile(world: &World, digest: &B256, key: &B256, signature: &[u8]) -> bool {
    let input = [digest.as_slice(), key.as_slice(), signature].concat();
    let call = Call::of(ledger::ED25519_PRECOMPILE, U256::ZERO, input.into());
    let output = world.chain().simulate(world.address(Person::Anyone), &call).await;
    output.is_ok_and(|output| output.as_ref() == B256::with_last_byte(1).as_slice())
}

// ---------------------------------------------------------------- keys and signatures

#[derive(Deserialize)]
struct KeyRow {
    name: String,
    scheme: U256,
    key: B256,
    expected: String,
}

/// Keys that programs refuse and the contract does not: it checks form alone. They cannot verify anything, but for
/// one with a torsion part, which is why hub and client look for that before they serve or use a channel.
const PROGRAMS_ALONE_REFUSE: [&str; 4] =
    ["ed25519: torsion", "ed25519: small order", "ed25519: the neutral element", "ed25519: not a point"];

async fn the_contract_takes_the_keys_that_programs_take(world: &World) {
    let rows: Vec<KeyRow> = read(include_str!("../../../proto/vectors/keys.json"));
    let mut programs_alone = BTreeSet::new();
    for row in rows.into_iter().filter(|row| world.ledger().is_some() || row.scheme == U256::from(2)) {
        let key = PublicKey { scheme: Scheme::from_number(row.scheme.to()).expect("1 or 2"), bytes: row.key };
        let good = row.expected == "good";
        assert_eq!(key.check().is_ok(), good, "{}", row.name);
        let pair = Pair::new(world, NATIVE, "a key").with_member_key(key);
        match opens(world, &pair).await {
            true if !good => assert!(programs_alone.insert(row.name)),
            opens => assert_eq!(opens, good, "{}", row.name),
        }
    }
    let expected = PROGRAMS_ALONE_REFUSE.iter().map(|name| (*name).to_owned()).filter(|_| world.ledger().is_some());
    assert_eq!(programs_alone, expected.collect());
}

#[derive(Deserialize)]
struct SignatureRow {
    name: String,
    scheme: U256,
    key: B256,
    digest: B256,
    signature: Bytes,
    expected: String,
}

/// The vectors are over a digest that no channel has. So each row is made again over a voucher of a channel with the
/// row's key, in the way that its name tells, and shown to the contract as evidence.
async fn every_kind_of_signature_gets_the_same_answer_on_and_off_the_ledger(world: &World) {
    let rows: Vec<SignatureRow> = read(include_str!("../../../proto/vectors/signatures.json"));
    let makers = makers();
    let named: BTreeSet<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(named, makers.keys().copied().collect(), "every row can be made again");

    let mut closing: BTreeMap<(Scheme, B256), bool> = BTreeMap::new();
    for row in rows.iter().filter(|row| world.ledger().is_some() || row.scheme == U256::from(2)) {
        let key = PublicKey { scheme: Scheme::from_number(row.scheme.to()).expect("1 or 2"), bytes: row.key };
        let good = row.expected == "good";
        assert_eq!(proto_takes(&key, &row.digest, &row.signature), good, "{}", row.name);
        if key.scheme == Scheme::Ed25519 {
            // The precompile takes the golden bytes themselves.
            assert_eq!(precompile(world, &row.digest, &row.key, &row.signature).await, good, "{}", row.name);
        }

        let pair = Pair::new(world, NATIVE, "a signature").with_member_key(key);
        let known = closing.get(&(key.scheme, key.bytes)).copied();
        let opened = match known {
            Some(opened) => opened,
            None => {
                let opened = opens(world, &pair).await;
                if opened {
                    pair.open(world, 0).await;
                    pair.start_close(world).await;
                }
                closing.insert((key.scheme, key.bytes), opened);
                opened
            }
        };
        if !opened {
            assert!(!good, "{}: the contract refuses the key", row.name);
            continue;
        }
        let body = pair.voucher_body(0, 1);
        let digest = pair.domain.digest(&body);
        let signature = makers[row.name.as_str()](&Making { pair: &pair, body: &body, digest, key: key.bytes });
        assert_eq!(proto_takes(&key, &digest, &signature), good, "{}: off the ledger", row.name);
        let shown = raw::respond_voucher(&pair, &body, signature.into());
        match world.chain().simulate(world.address(Person::Anyone), &shown).await {
            Ok(_) => assert!(good, "{}: the contract takes it", row.name),
            Err(ChainError::Refused { refusal, .. }) => {
                assert!(!good, "{}: {refusal}", row.name);
                assert_eq!(decoded::<contract::BadSignature>(&refusal).digest, digest, "{}", row.name);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Whether the contract opens a channel with these terms; if not, its key must be the reason.
async fn opens(world: &World, pair: &Pair) -> bool {
    let open = world.adjudicator().open(&pair.terms, Bytes::new(), NATIVE, a(0), &Funding::Caller);
    match world.chain().simulate(pair.terms.member, &open).await {
        Ok(_) => true,
        Err(ChainError::Refused { refusal, .. }) => {
            assert_eq!(decoded::<contract::IllFormedKey>(&refusal).key, pair.terms.memberKey);
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn proto_takes(key: &PublicKey, digest: &B256, signature: &[u8]) -> bool {
    Signature::from_slice(key.scheme, signature).is_ok_and(|signature| key.verify(digest, &signature).is_ok())
}

/// What a signature is made over and for.
struct Making<'a> {
    pair: &'a Pair,
    body: &'a Voucher,
    digest: B256,
    key: B256,
}

type Maker = fn(&Making<'_>) -> Vec<u8>;

/// The seed of the keys of the vectors.
const SEED: [u8; 32] = [7; 32];
/// The group order of Ed25519, little-endian.
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];
/// A point of order 8.
const TORSION: [u8; 32] = [
    0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53,
    0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
];
/// The order of secp256k1.
const N: U256 =
    U256::from_limbs([0xbfd2_5e8c_d036_4141, 0xbaae_dce6_af48_a03b, 0xffff_ffff_ffff_fffe, 0xffff_ffff_ffff_ffff]);

/// How each row of the vectors is made.
fn makers() -> BTreeMap<&'static str, Maker> {
    let rows: [(&'static str, Maker); 26] = [
        ("ed25519: good", |m| m.good(Scheme::Ed25519)),
        ("ed25519: a nonce of one's own choice is good too", |m| {
            m.assembled(nonce_of_the_vectors(), point(nonce_of_the_vectors()))
        }),
        ("ed25519: torsion in R", |m| {
            let torsion = CompressedEdwardsY(TORSION).decompress().expect("it is a point");
            let r = EdwardsPoint::mul_base(&nonce_of_the_vectors()) + torsion;
            m.assembled(nonce_of_the_vectors(), r.compress().0)
        }),
        ("ed25519: torsion in the key that cancels: only the key check refuses it", |m| {
            let cancels = |nonce: &u64| m.challenge(&point(Scalar::from(*nonce))).to_bytes()[0] % 8 == 0;
            let nonce = Scalar::from((1..1000).find(cancels).expect("one challenge in eight is a multiple of 8"));
            m.assembled(nonce, point(nonce))
        }),
        ("ed25519: s + L", |m| {
            let mut out = m.good(Scheme::Ed25519);
            let mut carry = 0u16;
            for (byte, order) in out[32..].iter_mut().zip(ORDER) {
                let sum = u16::from(*byte) + u16::from(order) + carry;
                *byte = u8::try_from(sum % 256).expect("a remainder fits");
                carry = sum / 256;
            }
            out
        }),
        ("ed25519: R of small order", |m| m.assembled(Scalar::ZERO, EdwardsPoint::default().compress().0)),
        ("ed25519: R not canonical", |m| {
            let mut r = [0xff; 32];
            (r[0], r[31]) = (0xee, 0x7f);
            m.assembled(Scalar::ZERO, r)
        }),
        ("ed25519: key of small order", |_| small_key_signature()),
        ("ed25519: key not canonical", |_| small_key_signature()),
        ("ed25519: another digest's signature", |m| m.edited(Scheme::Ed25519, |b| b[40] ^= 1)),
        ("ed25519: another key", |m| m.good(Scheme::Ed25519)),
        ("ed25519: one byte short", |m| m.good(Scheme::Ed25519)[..63].to_vec()),
        ("ed25519: one byte long", |m| [m.good(Scheme::Ed25519).as_slice(), &[0]].concat()),
        ("ed25519: all zero", |_| vec![0; 64]),
        ("secp256k1: good", |m| m.good(Scheme::Secp256k1)),
        ("secp256k1: flipped v", |m| m.edited(Scheme::Secp256k1, |b| b[64] = 55 - b[64])),
        ("secp256k1: v = 29", |m| m.edited(Scheme::Secp256k1, |b| b[64] = 29)),
        ("secp256k1: v = 0", |m| m.edited(Scheme::Secp256k1, |b| b[64] -= 27)),
        ("secp256k1: high s", |m| {
            m.edited(Scheme::Secp256k1, |b| {
                let s = N - U256::from_be_slice(&b[32..64]);
                b[32..64].copy_from_slice(&s.to_be_bytes::<32>());
                b[64] = 55 - b[64];
            })
        }),
        ("secp256k1: r = 0", |m| m.edited(Scheme::Secp256k1, |b| b[..32].fill(0))),
        ("secp256k1: s = 0", |m| m.edited(Scheme::Secp256k1, |b| b[32..64].fill(0))),
        ("secp256k1: r not below n", |m| m.edited(Scheme::Secp256k1, |b| b[..32].fill(0xff))),
        ("secp256k1: key zero", |m| m.edited(Scheme::Secp256k1, |b| b[..32].fill(0))),
        ("secp256k1: another key", |m| m.good(Scheme::Secp256k1)),
        ("secp256k1: 64 bytes", |m| m.good(Scheme::Secp256k1)[..64].to_vec()),
        ("secp256k1: 66 bytes", |m| [m.good(Scheme::Secp256k1).as_slice(), &[0]].concat()),
    ];
    BTreeMap::from(rows)
}

impl Making<'_> {
    fn good(&self, scheme: Scheme) -> Vec<u8> {
        let key = SecretKey::from_seed(scheme, SEED).expect("a usable seed");
        raw::sign(self.pair, &key, self.body).to_vec()
    }

    fn edited(&self, scheme: Scheme, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut out = self.good(scheme);
        edit(&mut out);
        out
    }

    /// `R || s` with `s = r + k a`, whatever bytes stand for R and the key.
    fn assembled(&self, nonce: Scalar, r: [u8; 32]) -> Vec<u8> {
        let hash: [u8; 64] = Sha512::digest(SEED).into();
        let secret = Scalar::from_bytes_mod_order(clamp_integer(hash[..32].try_into().expect("half of 64 bytes")));
        [r, (nonce + self.challenge(&r) * secret).to_bytes()].concat()
    }

    fn challenge(&self, r: &[u8; 32]) -> Scalar {
        let hash = Sha512::new().chain_update(r).chain_update(self.key).chain_update(self.digest).finalize();
        Scalar::from_bytes_mod_order_wide(&hash.into())
    }
}

fn nonce_of_the_vectors() -> Scalar {
    Scalar::from(4242u64)
}

fn point(nonce: Scalar) -> [u8; 32] {
    EdwardsPoint::mul_base(&nonce).compress().0
}

/// Good for a verifier that takes the neutral element as a key: `kA` vanishes.
fn small_key_signature() -> Vec<u8> {
    [point(nonce_of_the_vectors()), nonce_of_the_vectors().to_bytes()].concat()
}

fn read<T: for<'de> Deserialize<'de>>(json: &str) -> Vec<T> {
    serde_json::from_str(json).expect("vectors are lists of flat objects")
}
