//! Golden vectors: the files under `proto/vectors` that the contract's tests and every SDK read too.
//!
//! Each file is a list of flat objects `{name, inputs..., expected}`. Byte strings and numbers are `0x` and hexadecimal
//! digits (numbers without leading zeros). The test fails when the code no longer gives what the files say; after a
//! deliberate change, `PAYHUB_WRITE_VECTORS=1 cargo test -p payhub-proto vectors` writes them again.

use std::path::PathBuf;

use alloy_primitives::{Address, B256, Bytes, address, keccak256};
use serde_json::{Value, json};

use crate::amount::Amount;
use crate::batch::{BatchTree, root_of};
use crate::frame::{LaneTip, Payment, list_hash, payments_hash};
use crate::ids::{ChannelId, PaymentId};
use crate::keys::tests::{cases, key_cases};
use crate::keys::{Scheme, SecretKey, secp256k1_recover_strict};
use crate::stream::{StreamId, StreamTerms, Words};
use crate::typed::*;

#[test]
fn the_vectors_are_what_the_code_gives() {
    check("signatures", signatures());
    check("keys", keys());
    check("typed", typed());
    check("lists", lists());
    check("chains", chains());
    check("batches", batches());
}

fn check(name: &str, rows: Vec<Value>) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(format!("{name}.json"));
    let text = format!("{}\n", serde_json::to_string_pretty(&rows).expect("values are JSON"));
    if std::env::var_os("PAYHUB_WRITE_VECTORS").is_some() {
        std::fs::write(&path, &text).expect("the vectors can be written");
    }
    let stored = std::fs::read_to_string(&path).expect("the vectors are in the repository");
    assert_eq!(stored, text, "{name}.json differs from what the code gives");
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    format!("0x{}", hex::encode(bytes))
}

fn number(n: impl Into<u128>) -> String {
    format!("{:#x}", n.into())
}

fn domain() -> Domain {
    Domain::new(31_337, address!("0x00000000000000000000000000000000c0ffee01"))
}

fn signatures() -> Vec<Value> {
    let expected = |good| if good { "good" } else { "bad" };
    cases()
        .into_iter()
        .map(|c| {
            json!({
                "name": c.name, "scheme": number(c.scheme.number()), "key": hex(c.key), "digest": hex(c.digest),
                "signature": hex(c.signature), "expected": expected(c.good),
            })
        })
        .collect()
}

fn keys() -> Vec<Value> {
    let expected = |good| if good { "good" } else { "bad" };
    key_cases()
        .into_iter()
        .map(|c| {
            json!({ "name": c.name, "scheme": number(c.scheme.number()), "key": hex(c.key), "expected": expected(c.good) })
        })
        .collect()
}

/// One row of `typed.json`; the body's fields stand beside the name.
fn typed_row<T: Typed>(body: &T, fields: Value) -> Value {
    let domain = domain();
    let keys = [Scheme::Ed25519, Scheme::Secp256k1].map(|s| SecretKey::from_seed(s, [9; 32]).expect("a usable seed"));
    let digest = domain.digest(body);
    let mut row = json!({
        "name": T::NAME, "type": T::eip712_encode_type(), "chainId": number(domain.chain_id),
        "adjudicator": hex(domain.adjudicator), "separator": hex(domain.separator()),
        "ed25519Key": hex(keys[0].public().bytes), "ed25519Signature": hex(keys[0].sign(&digest).as_slice()),
        "secp256k1Key": hex(keys[1].public().bytes), "secp256k1Signature": hex(keys[1].sign(&digest).as_slice()),
        "expected": hex(digest),
    });
    let all = row.as_object_mut().expect("a row is an object");
    all.extend(fields.as_object().expect("fields are an object").clone());
    row
}

macro_rules! row {
    ($name:ident { $($field:ident: $value:expr => $text:ident),* $(,)? }) => {{
        let body = $name { $($field: $value),* };
        typed_row(&body, json!({ $(stringify!($field): $text(body.$field)),* }))
    }};
}

fn flag(value: bool) -> Value {
    Value::Bool(value)
}

fn typed() -> Vec<Value> {
    let (hub, member, asset) = (Address::repeat_byte(0xa1), Address::repeat_byte(0xb2), Address::repeat_byte(0xc3));
    let word = |text: &str| keccak256(text);
    let key = |scheme, seed| SecretKey::from_seed(scheme, [seed; 32]).expect("a usable seed").public().bytes;
    vec![
        row!(ChannelTerms {
            hub: hub => hex, hubKey: key(Scheme::Ed25519, 1) => hex, hubScheme: 1 => number, member: member => hex,
            memberKey: key(Scheme::Secp256k1, 2) => hex, memberScheme: 2 => number, challengePeriod: 86_400 => number,
            salt: word("salt") => hex,
        }),
        row!(Voucher {
            channelId: word("channel") => hex, asset: asset => hex, payer: 0 => number, lane: 63 => number,
            cumulative: u128::MAX => number, credits: 0 => number, memo: word("memo") => hex,
        }),
        row!(Voucher {
            channelId: word("channel") => hex, asset: Address::ZERO => hex, payer: 1 => number, lane: 0 => number,
            cumulative: 1_000_000 => number, credits: u64::MAX => number, memo: word("head") => hex,
        }),
        row!(TickVoucher {
            channelId: word("channel") => hex, asset: asset => hex, lane: 7 => number, cumulative: 500 => number,
            tick: 3 => number, ticks: 2048 => number, anchor: word("anchor") => hex, memo: word("memo") => hex,
        }),
        row!(Receipt {
            channelId: word("channel") => hex, asset: asset => hex, credit: 12 => number, amount: 99 => number,
            total: 1_234 => number, payments: word("payments") => hex,
        }),
        row!(Ack { channelId: word("channel") => hex, asset: asset => hex, credits: 12 => number, head: word("head") => hex }),
        row!(Settlement {
            channelId: word("channel") => hex, asset: asset => hex, seq: 3 => number, memberWithdrawn: 70 => number,
            hubWithdrawn: 30 => number, validUntil: 1_800_000_000 => number, close: true => flag,
        }),
        row!(CloseRequest { channelId: word("channel") => hex, asset: asset => hex, validUntil: 1_800_000_000 => number }),
        row!(Offer {
            hub: hub => hex, hubKey: key(Scheme::Ed25519, 1) => hex, hubScheme: 1 => number,
            challengePeriod: 86_400 => number, expires: 1_800_000_000 => number,
        }),
        row!(Login {
            channelId: word("channel") => hex, server: server_id(key(Scheme::Ed25519, 1), "hub.example") => hex,
            nonce: word("nonce") => hex, expires: 1_800_000_000 => number,
        }),
        row!(Batch { flush: 77 => number, root: word("root") => hex }),
    ]
}

fn payments(count: u8) -> Vec<Payment> {
    (1..=count)
        .map(|i| Payment {
            id: PaymentId([i; 16].into()),
            payee: if i == 3 { ChannelId::HUB } else { ChannelId(keccak256([i])) },
            amount: Amount::new(1_000 * u128::from(i)),
            fee: Amount::new(u128::from(i)),
            note: Bytes::from(vec![b'n'; usize::from(i) - 1]),
        })
        .collect()
}

fn lists() -> Vec<Value> {
    let mut rows = Vec::new();
    for count in [1, 2, 5] {
        let list = payments(count);
        let fields = list.iter().map(|p| {
            json!({
                "id": hex(p.id.0), "payee": hex(p.payee.0), "amount": number(p.amount.get()),
                "fee": number(p.fee.get()), "note": hex(&p.note),
            })
        });
        let fields: Vec<Value> = fields.collect();
        rows.push(json!({ "name": "list", "payments": fields, "expected": hex(list_hash(&list)) }));
        let items: Vec<_> = list.iter().map(|p| (p.id, p.amount)).collect();
        rows.push(json!({ "name": "payments", "payments": fields, "expected": hex(payments_hash(&items)) }));
    }
    rows
}

fn chains() -> Vec<Value> {
    let mut rows = Vec::new();
    let (mut memo, mut head) = (B256::ZERO, B256::ZERO);
    for n in 1..=3u8 {
        let (body, receipt) = (list_hash(&payments(n)), keccak256([n]));
        let (next_memo, next_head) = (chain_hash(memo, body), chain_hash(head, receipt));
        rows.push(json!({ "name": "memo", "previous": hex(memo), "body": hex(body), "expected": hex(next_memo) }));
        rows.push(json!({ "name": "head", "previous": hex(head), "body": hex(receipt), "expected": hex(next_head) }));
        (memo, head) = (next_memo, next_head);
    }
    rows.extend(streams(memo));
    rows
}

/// An opening that continues a lane, words of its chain, and the fold of each.
fn streams(memo: B256) -> Vec<Value> {
    let (stream, payee) = (StreamId([0x51; 12].into()), ChannelId(keccak256("payee")));
    let terms = StreamTerms { stream, payee, amount: Amount::new(40), fee: Amount::new(2) };
    let words = Words::new(keccak256("secret"), 8);
    let opened = LaneTip { cumulative: Amount::new(500), memo }.opened(&terms);
    let mut rows = vec![json!({
        "name": "stream", "previous": hex(memo), "stream": hex(stream.0), "payee": hex(payee.0),
        "amount": number(40u8), "fee": number(2u8), "body": hex(terms.hash()), "expected": hex(opened.memo),
    })];
    for index in [0, 1, 8] {
        let folded = opened.folded(words.anchor(), index);
        rows.push(json!({
            "name": "fold", "previous": hex(opened.memo), "anchor": hex(words.anchor()), "index": number(index),
            "word": hex(words.word(index).expect("within the chain")), "id": hex(stream.payment(index).0),
            "expected": hex(folded.memo),
        }));
    }
    rows
}

fn batches() -> Vec<Value> {
    let domain = domain();
    let key = SecretKey::from_seed(Scheme::Secp256k1, [9; 32]).expect("a usable seed");
    [1u8, 2, 3, 5, 8]
        .into_iter()
        .map(|count| {
            let digests: Vec<B256> = (0..count).map(|i| keccak256([count, i])).collect();
            let tree = BatchTree::new(&digests).expect("there are leaves");
            let paths: Vec<Vec<B256>> = (0..digests.len()).map(|i| tree.path(i)).collect();
            for (digest, path) in digests.iter().zip(&paths) {
                assert_eq!(root_of(digest, path), Some(tree.root()));
            }
            let batch = domain.digest(&Batch { flush: u64::from(count), root: tree.root() });
            let signature = key.sign(&batch);
            let bytes = signature.as_slice().try_into().expect("65 bytes");
            assert_eq!(secp256k1_recover_strict(&batch.0, bytes).map(|a| a.into_word()), Some(key.public().bytes));
            json!({
                "name": format!("{count} leaves"), "digests": digests.iter().map(hex).collect::<Vec<_>>(),
                "paths": paths.iter().map(|p| p.iter().map(hex).collect::<Vec<_>>()).collect::<Vec<_>>(),
                "chainId": number(domain.chain_id), "adjudicator": hex(domain.adjudicator), "flush": number(count),
                "scheme": number(2u8), "key": hex(key.public().bytes), "signature": hex(signature.as_slice()),
                "batchDigest": hex(batch), "expected": hex(tree.root()),
            })
        })
        .collect()
}
