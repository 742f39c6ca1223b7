//! Voucher keys: Ed25519 (scheme 1) and secp256k1 (scheme 2), each with one strict rule.
//!
//! The rule is the same in every program, because a signature that the hub accepts and the ledger refuses is money
//! given away. **Ed25519**: `s < L`, `R` and the key canonical and not of small order, and the *bytes* of `sB - kA`
//! equal `R`; no cofactor and no batch verification (RFC 8032 section 5.1.7 without the cofactor). The key must also be
//! free of torsion, which is checked once, before a channel is served or used ([`PublicKey::check`]). **secp256k1**:
//! exactly 65 bytes `r || s || v`, `0 < r < n`, `0 < s <= n/2`, `v` 27 or 28; the signer's address is *recovered* and
//! compared, as `ecrecover` does on the ledger.
//!
//! A key signs only digests of structs that this crate hashed itself ([`crate::typed`]): [`SecretKey::sign`] is not
//! public outside the crate.

use std::cell::RefCell;
use std::fmt;

use alloy_primitives::map::HashMap;
use alloy_primitives::{Address, B256, FixedBytes, keccak256};
use curve25519_dalek::edwards::CompressedEdwardsY;
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, SECP256K1};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Keys that a thread remembers in decompressed form, about 1 MiB.
const KNOWN_KEYS_MAX: usize = 4096;

/// A signature scheme. The number is what channel terms carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Scheme {
    /// Ed25519: the default; verified on the embedded ledger by a precompile.
    Ed25519 = 1,
    /// secp256k1: any EVM chain, by `ecrecover`.
    Secp256k1 = 2,
}

/// A voucher key's public half in the 32 bytes that channel terms carry.
///
/// Scheme 1: the compressed point. Scheme 2: the 20-byte address, left-padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey {
    /// The scheme.
    pub scheme: Scheme,
    /// The 32 bytes.
    pub bytes: B256,
}

/// A voucher key's secret half. It prints as its public key and is wiped when dropped.
#[derive(Clone)]
pub struct SecretKey(Secret);

#[derive(Clone)]
enum Secret {
    Ed25519(Box<SigningKey>),
    Secp256k1(Box<(secp256k1::SecretKey, Zeroizing<[u8; 32]>)>),
}

/// A signature over a 32-byte digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Signature {
    /// `R || s`.
    Ed25519(FixedBytes<64>),
    /// `r || s || v` with `v` 27 or 28.
    Secp256k1(FixedBytes<65>),
}

/// Why a key or a signature is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No such scheme.
    #[error("signature scheme {given} does not exist; 1 is Ed25519, 2 is secp256k1")]
    UnknownScheme {
        /// The number given.
        given: u8,
    },
    /// The 32 bytes are no key of the scheme.
    #[error("{bytes} is not a usable {scheme:?} key: {why}")]
    BadKey {
        /// The scheme.
        scheme: Scheme,
        /// The bytes given.
        bytes: B256,
        /// What is wrong with them.
        why: &'static str,
    },
    /// The signature has the wrong length for the scheme.
    #[error("a {scheme:?} signature has {expected} bytes, not {given}")]
    Length {
        /// The scheme.
        scheme: Scheme,
        /// Bytes wanted.
        expected: usize,
        /// Bytes given.
        given: usize,
    },
    /// The signature is not one of this key over this digest.
    #[error("the signature is not one of {key} over digest {digest}")]
    BadSignature {
        /// The key.
        key: PublicKey,
        /// The digest.
        digest: B256,
    },
}

impl Scheme {
    /// The scheme with that number.
    pub fn from_number(number: u8) -> Result<Self, KeyError> {
        match number {
            1 => Ok(Scheme::Ed25519),
            2 => Ok(Scheme::Secp256k1),
            given => Err(KeyError::UnknownScheme { given }),
        }
    }

    /// The number that channel terms carry.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Bytes in a signature.
    pub fn signature_len(self) -> usize {
        match self {
            Scheme::Ed25519 => 64,
            Scheme::Secp256k1 => 65,
        }
    }
}

impl PublicKey {
    /// Builds a key from terms and checks it in full (see [`PublicKey::check`]).
    pub fn new(scheme: Scheme, bytes: B256) -> Result<Self, KeyError> {
        let key = PublicKey { scheme, bytes };
        key.check().map(|()| key)
    }

    /// The address form of a secp256k1 key.
    pub fn from_address(address: Address) -> Self {
        PublicKey { scheme: Scheme::Secp256k1, bytes: address.into_word() }
    }

    /// Everything that must hold before a channel with this key is served or used: canonical, not of small order,
    /// torsion-free; for scheme 2 a left-padded address that is not zero.
    ///
    /// Torsion is checked here and not by the contract: the one place where the two differ.
    pub fn check(&self) -> Result<(), KeyError> {
        let bad = |why| Err(KeyError::BadKey { scheme: self.scheme, bytes: self.bytes, why });
        match self.scheme {
            Scheme::Ed25519 => {
                let Some(point) = CompressedEdwardsY(self.bytes.0).decompress() else {
                    return bad("it is not a point of the curve");
                };
                if point.compress().0 != self.bytes.0 {
                    return bad("its encoding is not canonical");
                }
                if point.is_small_order() {
                    return bad("its order is small");
                }
                if !point.is_torsion_free() {
                    return bad("it has a torsion part");
                }
                Ok(())
            }
            Scheme::Secp256k1 if self.bytes[..12] != [0; 12] => bad("an address is left-padded with zeros"),
            Scheme::Secp256k1 if self.bytes.is_zero() => bad("it is zero"),
            Scheme::Secp256k1 => Ok(()),
        }
    }

    /// Checks a signature by the strict rule of the scheme.
    pub fn verify(&self, digest: &B256, signature: &Signature) -> Result<(), KeyError> {
        let good = match (self.scheme, signature) {
            (Scheme::Ed25519, Signature::Ed25519(bytes)) => ed25519_verify_strict(&digest.0, &self.bytes.0, &bytes.0),
            (Scheme::Secp256k1, Signature::Secp256k1(bytes)) => {
                !self.bytes.is_zero()
                    && secp256k1_recover_strict(&digest.0, &bytes.0).map(|a| a.into_word()) == Some(self.bytes)
            }
            (scheme, other) => {
                let (expected, given) = (scheme.signature_len(), other.scheme().signature_len());
                return Err(KeyError::Length { scheme, expected, given });
            }
        };
        if good { Ok(()) } else { Err(KeyError::BadSignature { key: *self, digest: *digest }) }
    }
}

impl SecretKey {
    /// A key of `scheme` from 32 secret bytes.
    ///
    /// For secp256k1 the bytes must be a scalar in `1..n`; all but about one in 2^128 are.
    pub fn from_seed(scheme: Scheme, seed: [u8; 32]) -> Result<Self, KeyError> {
        match scheme {
            Scheme::Ed25519 => Ok(SecretKey(Secret::Ed25519(Box::new(SigningKey::from_bytes(&seed))))),
            Scheme::Secp256k1 => secp256k1::SecretKey::from_byte_array(seed)
                .map(|key| SecretKey(Secret::Secp256k1(Box::new((key, Zeroizing::new(seed))))))
                .map_err(|_| KeyError::BadKey { scheme, bytes: B256::ZERO, why: "the secret is not a scalar in 1..n" }),
        }
    }

    /// A key derived from a seed for one purpose: `keccak256("payhub key" || purpose || scheme || seed)`.
    ///
    /// One seed thus gives both voucher keys and the account key, and no two purposes share a key.
    pub fn derive(scheme: Scheme, seed: &[u8; 32], purpose: &str) -> Self {
        let mut attempt = Zeroizing::new(derive_seed(scheme, seed, purpose));
        loop {
            if let Ok(key) = SecretKey::from_seed(scheme, *attempt) {
                return key;
            }
            *attempt = keccak256(*attempt).0;
        }
    }

    /// A fresh key from the operating system's randomness.
    pub fn random(scheme: Scheme) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).expect("the operating system gives randomness");
        SecretKey::derive(scheme, &seed, "random")
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        match &self.0 {
            Secret::Ed25519(_) => Scheme::Ed25519,
            Secret::Secp256k1(_) => Scheme::Secp256k1,
        }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        match &self.0 {
            Secret::Ed25519(key) => PublicKey { scheme: Scheme::Ed25519, bytes: key.verifying_key().to_bytes().into() },
            Secret::Secp256k1(pair) => PublicKey::from_address(address_of(&pair.0.public_key(SECP256K1))),
        }
    }

    /// The 32 secret bytes, for a key store.
    pub fn to_seed(&self) -> Zeroizing<[u8; 32]> {
        match &self.0 {
            Secret::Ed25519(key) => Zeroizing::new(key.to_bytes()),
            Secret::Secp256k1(pair) => pair.1.clone(),
        }
    }

    /// Signs a digest that this crate hashed itself; deterministic (RFC 8032, RFC 6979).
    pub(crate) fn sign(&self, digest: &B256) -> Signature {
        match &self.0 {
            Secret::Ed25519(key) => Signature::Ed25519(key.sign(digest.as_slice()).to_bytes().into()),
            Secret::Secp256k1(pair) => {
                let signature = SECP256K1.sign_ecdsa_recoverable(Message::from_digest(digest.0), &pair.0);
                let (recovery, compact) = signature.serialize_compact();
                let mut bytes = [0; 65];
                bytes[..64].copy_from_slice(&compact);
                bytes[64] = if i32::from(recovery) == 0 { 27 } else { 28 };
                Signature::Secp256k1(bytes.into())
            }
        }
    }
}

impl Signature {
    /// Reads a signature of `scheme`; the length must fit exactly.
    pub fn from_slice(scheme: Scheme, bytes: &[u8]) -> Result<Self, KeyError> {
        let length = || KeyError::Length { scheme, expected: scheme.signature_len(), given: bytes.len() };
        match scheme {
            Scheme::Ed25519 => FixedBytes::try_from(bytes).map(Signature::Ed25519).map_err(|_| length()),
            Scheme::Secp256k1 => FixedBytes::try_from(bytes).map(Signature::Secp256k1).map_err(|_| length()),
        }
    }

    /// The bytes as the ledger takes them.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Signature::Ed25519(bytes) => bytes.as_slice(),
            Signature::Secp256k1(bytes) => bytes.as_slice(),
        }
    }

    /// The scheme.
    pub fn scheme(&self) -> Scheme {
        match self {
            Signature::Ed25519(_) => Scheme::Ed25519,
            Signature::Secp256k1(_) => Scheme::Secp256k1,
        }
    }
}

/// The strict Ed25519 rule over a 32-byte message; the ledger's precompile calls this very function.
///
/// Torsion in the key is not looked at here (it costs a scalar multiplication): see [`PublicKey::check`].
pub fn ed25519_verify_strict(digest: &[u8; 32], key: &[u8; 32], signature: &[u8; 64]) -> bool {
    let Some(verifying) = ed25519_key(key) else { return false };
    // `verify_strict` compares the bytes of R with the bytes it computed, so a non-canonical R cannot pass.
    verifying.verify_strict(digest, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
}

/// The point of a canonical key. Whoever pays, pays again: the last ones are remembered, because decompressing a key and
/// compressing it again takes a quarter of a verification.
fn ed25519_key(key: &[u8; 32]) -> Option<VerifyingKey> {
    thread_local! {
        static KNOWN: RefCell<HashMap<[u8; 32], VerifyingKey>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        if let Some(verifying) = known.get(key) {
            return Some(*verifying);
        }
        let verifying = VerifyingKey::from_bytes(key).ok()?;
        // dalek keeps the bytes it was given; a non-canonical encoding shows when the point is compressed again.
        if verifying.to_edwards().compress().0 != *key {
            return None;
        }
        if known.len() >= KNOWN_KEYS_MAX {
            known.clear();
        }
        known.insert(*key, verifying);
        Some(verifying)
    })
}

/// The address that made a 65-byte signature, or `None` where the strict rule refuses it.
pub fn secp256k1_recover_strict(digest: &[u8; 32], signature: &[u8; 65]) -> Option<Address> {
    let recovery = match signature[64] {
        27 => RecoveryId::Zero,
        28 => RecoveryId::One,
        _ => return None,
    };
    let recoverable = RecoverableSignature::from_compact(&signature[..64], recovery).ok()?;
    let mut normalized = recoverable.to_standard();
    normalized.normalize_s();
    if normalized != recoverable.to_standard() {
        return None;
    }
    let key = SECP256K1.recover_ecdsa(Message::from_digest(*digest), &recoverable).ok()?;
    Some(address_of(&key))
}

fn address_of(key: &secp256k1::PublicKey) -> Address {
    Address::from_raw_public_key(&key.serialize_uncompressed()[1..])
}

fn derive_seed(scheme: Scheme, seed: &[u8; 32], purpose: &str) -> [u8; 32] {
    let mut input = Zeroizing::new(Vec::new());
    input.extend_from_slice(b"payhub key");
    input.extend_from_slice(purpose.as_bytes());
    input.push(scheme.number());
    input.extend_from_slice(seed);
    keccak256(&*input).0
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} key {}", self.scheme, self.bytes)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "secret of {}", self.public())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.as_slice()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use curve25519_dalek::{EdwardsPoint, Scalar};
    use sha2::{Digest, Sha512};

    /// A signature, and whether the strict rule takes it: a row of the golden vectors.
    pub(crate) struct Case {
        pub name: &'static str,
        pub scheme: Scheme,
        pub key: B256,
        pub digest: B256,
        pub signature: Vec<u8>,
        pub good: bool,
    }

    /// A key, and whether a channel with it may be served: a row of the golden vectors.
    pub(crate) struct KeyCase {
        pub name: &'static str,
        pub scheme: Scheme,
        pub key: B256,
        pub good: bool,
    }

    /// The group order of Ed25519, little-endian.
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    /// A point of order 8.
    const TORSION: [u8; 32] = [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ];
    const SECRET: [u8; 32] = [7; 32];

    fn digest() -> B256 {
        keccak256("a digest")
    }

    fn torsion() -> EdwardsPoint {
        CompressedEdwardsY(TORSION).decompress().expect("it is a point")
    }

    /// The secret scalar behind `SECRET`.
    fn scalar() -> Scalar {
        SigningKey::from_bytes(&SECRET).to_scalar()
    }

    fn challenge(r: &[u8; 32], key: &[u8; 32]) -> Scalar {
        let hash = Sha512::new().chain_update(r).chain_update(key).chain_update(digest()).finalize();
        Scalar::from_bytes_mod_order_wide(&hash.into())
    }

    /// `R || s` with `s = r + k a`, whatever bytes stand for R and the key.
    fn assemble(nonce: Scalar, r: [u8; 32], key: [u8; 32]) -> Vec<u8> {
        let s = nonce + challenge(&r, &key) * scalar();
        [r, s.to_bytes()].concat()
    }

    /// `y = p + 1` encodes the neutral element a second time.
    fn not_canonical() -> [u8; 32] {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (0xee, 0x7f);
        bytes
    }

    /// A key with a torsion part, and a signature for which the torsion cancels in `kA`.
    fn key_with_torsion() -> ([u8; 32], Vec<u8>) {
        let key = (EdwardsPoint::mul_base(&scalar()) + torsion()).compress().0;
        let cancels = |nonce: &u64| {
            let r = EdwardsPoint::mul_base(&Scalar::from(*nonce)).compress().0;
            challenge(&r, &key).to_bytes()[0].is_multiple_of(8)
        };
        let nonce = Scalar::from((1..1000u64).find(cancels).expect("one challenge in eight is a multiple of 8"));
        let r = EdwardsPoint::mul_base(&nonce).compress().0;
        (key, assemble(nonce, r, key))
    }

    fn add_order(signature: &[u8]) -> Vec<u8> {
        let mut out = signature.to_vec();
        let mut carry = 0u16;
        for (byte, order) in out[32..].iter_mut().zip(L) {
            let sum = u16::from(*byte) + u16::from(order) + carry;
            *byte = u8::try_from(sum % 256).expect("a remainder fits");
            carry = sum / 256;
        }
        out
    }

    fn with(signature: &[u8], edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut out = signature.to_vec();
        edit(&mut out);
        out
    }

    /// `n - s` with the other `v`: the same key recovers from it.
    fn high_s(signature: &[u8]) -> Vec<u8> {
        let s =
            secp256k1::SecretKey::from_byte_array(signature[32..64].try_into().expect("32 bytes")).expect("0 < s < n");
        with(signature, |bytes| {
            bytes[32..64].copy_from_slice(&s.negate().secret_bytes());
            bytes[64] = 55 - bytes[64];
        })
    }

    /// Every signature that a program could get wrong.
    pub(crate) fn cases() -> Vec<Case> {
        let nonce = Scalar::from(4242u64);
        let key = SigningKey::from_bytes(&SECRET).verifying_key().to_bytes();
        let good = SecretKey::from_seed(Scheme::Ed25519, SECRET).expect("any 32 bytes").sign(&digest());
        let good = good.as_slice().to_vec();
        let r = EdwardsPoint::mul_base(&nonce);
        let r_with_torsion = (r + torsion()).compress().0;
        let (torsion_key, torsion_signature) = key_with_torsion();
        let identity = EdwardsPoint::default().compress().0;
        let small_key = [r.compress().0, nonce.to_bytes()].concat();
        let ed = |name, key: [u8; 32], signature: Vec<u8>, good| Case {
            name,
            scheme: Scheme::Ed25519,
            key: key.into(),
            digest: digest(),
            signature,
            good,
        };
        let member = SecretKey::from_seed(Scheme::Secp256k1, SECRET).expect("a scalar");
        let recoverable = member.sign(&digest()).as_slice().to_vec();
        let secp = |name, key: B256, signature: Vec<u8>, good| Case {
            name,
            scheme: Scheme::Secp256k1,
            key,
            digest: digest(),
            signature,
            good,
        };
        let address = member.public().bytes;
        vec![
            ed("ed25519: good", key, good.clone(), true),
            ed("ed25519: a nonce of one's own choice is good too", key, assemble(nonce, r.compress().0, key), true),
            ed("ed25519: torsion in R", key, assemble(nonce, r_with_torsion, key), false),
            ed(
                "ed25519: torsion in the key that cancels: only the key check refuses it",
                torsion_key,
                torsion_signature,
                true,
            ),
            ed("ed25519: s + L", key, add_order(&good), false),
            ed("ed25519: R of small order", key, assemble(Scalar::ZERO, identity, key), false),
            ed("ed25519: R not canonical", key, assemble(Scalar::ZERO, not_canonical(), key), false),
            ed("ed25519: key of small order", identity, small_key.clone(), false),
            ed("ed25519: key not canonical", not_canonical(), small_key, false),
            ed("ed25519: another digest's signature", key, with(&good, |b| b[40] ^= 1), false),
            ed("ed25519: another key", r.compress().0, good.clone(), false),
            ed("ed25519: one byte short", key, good[..63].to_vec(), false),
            ed("ed25519: one byte long", key, [good.as_slice(), &[0]].concat(), false),
            ed("ed25519: all zero", key, vec![0; 64], false),
            secp("secp256k1: good", address, recoverable.clone(), true),
            secp("secp256k1: flipped v", address, with(&recoverable, |b| b[64] = 55 - b[64]), false),
            secp("secp256k1: v = 29", address, with(&recoverable, |b| b[64] = 29), false),
            secp("secp256k1: v = 0", address, with(&recoverable, |b| b[64] -= 27), false),
            secp("secp256k1: high s", address, high_s(&recoverable), false),
            secp("secp256k1: r = 0", address, with(&recoverable, |b| b[..32].fill(0)), false),
            secp("secp256k1: s = 0", address, with(&recoverable, |b| b[32..64].fill(0)), false),
            secp("secp256k1: r not below n", address, with(&recoverable, |b| b[..32].fill(0xff)), false),
            secp("secp256k1: key zero", B256::ZERO, with(&recoverable, |b| b[..32].fill(0)), false),
            secp("secp256k1: another key", B256::with_last_byte(1), recoverable.clone(), false),
            secp("secp256k1: 64 bytes", address, recoverable[..64].to_vec(), false),
            secp("secp256k1: 66 bytes", address, [recoverable.as_slice(), &[0]].concat(), false),
        ]
    }

    /// Every kind of key that terms could carry.
    pub(crate) fn key_cases() -> Vec<KeyCase> {
        let ed = |name, key: [u8; 32], good| KeyCase { name, scheme: Scheme::Ed25519, key: key.into(), good };
        let secp = |name, key: B256, good| KeyCase { name, scheme: Scheme::Secp256k1, key, good };
        let public = |scheme| SecretKey::from_seed(scheme, SECRET).expect("a usable seed").public().bytes;
        let on_no_curve = (2..=255u8).map(|y| B256::right_padding_from(&[y]).0);
        let on_no_curve = on_no_curve.filter(|b| CompressedEdwardsY(*b).decompress().is_none()).min();
        vec![
            ed("ed25519: good", public(Scheme::Ed25519).0, true),
            ed("ed25519: torsion", key_with_torsion().0, false),
            ed("ed25519: small order", TORSION, false),
            ed("ed25519: the neutral element", EdwardsPoint::default().compress().0, false),
            ed("ed25519: not canonical", not_canonical(), false),
            ed("ed25519: not a point", on_no_curve.expect("half of all numbers are no y"), false),
            ed("ed25519: zero", [0; 32], false),
            secp("secp256k1: good", public(Scheme::Secp256k1), true),
            secp("secp256k1: zero", B256::ZERO, false),
            secp("secp256k1: not padded", public(Scheme::Secp256k1) | B256::repeat_byte(0x10), false),
        ]
    }

    fn takes(case: &Case) -> bool {
        let key = PublicKey { scheme: case.scheme, bytes: case.key };
        Signature::from_slice(case.scheme, &case.signature).is_ok_and(|s| key.verify(&case.digest, &s).is_ok())
    }

    fn check_cases(part: &str) {
        let chosen: Vec<Case> = cases().into_iter().filter(|c| c.name.contains(part)).collect();
        assert!(!chosen.is_empty(), "no case is named {part}");
        for case in chosen {
            assert_eq!(takes(&case), case.good, "{}", case.name);
        }
    }

    #[test]
    fn the_strict_rule_takes_the_good_and_refuses_the_bad() {
        check_cases("");
    }

    /// The cofactored equation holds for this signature, so a batch would accept it; the strict rule does not.
    #[test]
    #[allow(non_snake_case)]
    fn torsion_in_R_refused() {
        check_cases("torsion in R");
        let case = cases().into_iter().find(|c| c.name.ends_with("torsion in R")).expect("it is listed");
        let (r, s): ([u8; 32], [u8; 32]) =
            (case.signature[..32].try_into().expect("32 bytes"), case.signature[32..].try_into().expect("32 bytes"));
        let key = CompressedEdwardsY(case.key.0).decompress().expect("a good key");
        let right =
            EdwardsPoint::mul_base(&Scalar::from_canonical_bytes(s).expect("s < L")) - key * challenge(&r, &case.key.0);
        let given = CompressedEdwardsY(r).decompress().expect("a point");
        assert_ne!(right, given);
        assert_eq!(right.mul_by_cofactor(), given.mul_by_cofactor());
    }

    #[test]
    fn flipped_v_refused_off_ledger() {
        check_cases("flipped v");
    }

    /// The one exception to I6: the contract does not look for torsion in a key, so hub and client do before use.
    #[test]
    fn a_key_with_torsion_can_sign_but_is_never_served() {
        check_cases("torsion in the key");
        for case in key_cases() {
            assert_eq!(PublicKey::new(case.scheme, case.key).is_ok(), case.good, "{}", case.name);
        }
    }

    #[test]
    fn a_signature_of_the_other_scheme_is_refused() {
        let [ed, secp] = [Scheme::Ed25519, Scheme::Secp256k1].map(|s| SecretKey::from_seed(s, SECRET).expect("usable"));
        assert!(ed.public().verify(&digest(), &secp.sign(&digest())).is_err());
        assert!(secp.public().verify(&digest(), &ed.sign(&digest())).is_err());
    }
}
