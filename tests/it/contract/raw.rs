//! Calls that well-meaning code cannot build: wrong signatures, repeated lanes, impossible numbers.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolCall, SolError};
use dispute::adjudicator::abi::IAdjudicator as contract;
use dispute::{Call, Refusal};
use proto::ChannelTerms;
use proto::typed::{Receipt, Settlement, TickVoucher, Typed, Voucher};
use proto::{SecretKey, Signed};

use super::pair::Pair;

pub fn call<C: SolCall>(to: Address, call: &C) -> Call {
    Call::of(to, U256::ZERO, call.abi_encode().into())
}

pub fn terms(terms: &ChannelTerms) -> contract::Terms {
    contract::Terms {
        hub: terms.hub,
        hubKey: terms.hubKey,
        hubScheme: terms.hubScheme,
        member: terms.member,
        memberKey: terms.memberKey,
        memberScheme: terms.memberScheme,
        challengePeriod: terms.challengePeriod,
        salt: terms.salt,
    }
}

/// The bytes of a signature over a struct.
pub fn sign<T: Typed>(pair: &Pair, key: &SecretKey, body: &T) -> Bytes {
    Bytes::copy_from_slice(Signed::sign(&pair.domain, key, body.clone()).signature().as_slice())
}

pub fn direct(signature: Bytes) -> contract::Proof {
    contract::Proof { signature, batched: false, flush: 0, path: Vec::new() }
}

pub fn batched(signature: Bytes, flush: u64, path: Vec<B256>) -> contract::Proof {
    contract::Proof { signature, batched: true, flush, path }
}

pub fn nothing() -> contract::Evidence {
    contract::Evidence {
        memberVouchers: Vec::new(),
        memberTicks: Vec::new(),
        hubVouchers: Vec::new(),
        hubReceipts: Vec::new(),
    }
}

pub fn voucher(body: &Voucher, proof: contract::Proof) -> contract::VoucherEvidence {
    let Voucher { lane, cumulative, credits, memo, .. } = *body;
    contract::VoucherEvidence { lane, cumulative, credits, memo, proof }
}

pub fn receipt(body: &Receipt, proof: contract::Proof) -> contract::ReceiptEvidence {
    let Receipt { credit, amount, total, payments, .. } = *body;
    contract::ReceiptEvidence { credit, amount, total, payments, proof }
}

pub fn ticks(body: &TickVoucher, index: u32, preimage: B256, signature: Bytes) -> contract::TickEvidence {
    let TickVoucher { lane, cumulative, tick, ticks, anchor, memo, .. } = *body;
    contract::TickEvidence { lane, cumulative, tick, ticks, anchor, memo, index, preimage, signature }
}

pub fn respond(pair: &Pair, evidence: contract::Evidence) -> Call {
    call(pair.domain.adjudicator, &contract::respondCall { terms: terms(&pair.terms), asset: pair.asset, evidence })
}

/// Shows one voucher of the member with whatever stands for its signature.
pub fn respond_voucher(pair: &Pair, body: &Voucher, signature: Bytes) -> Call {
    respond(pair, contract::Evidence { memberVouchers: vec![voucher(body, direct(signature))], ..nothing() })
}

pub fn settle(pair: &Pair, body: &Settlement, member: Bytes, hub: contract::Proof) -> Call {
    let entry = contract::SettleEntry {
        terms: terms(&pair.terms),
        asset: body.asset,
        seq: body.seq,
        memberWithdrawn: body.memberWithdrawn,
        hubWithdrawn: body.hubWithdrawn,
        validUntil: body.validUntil,
        close: body.close,
        memberSignature: member,
        hubProof: hub,
    };
    call(pair.domain.adjudicator, &contract::settleCall { entry })
}

pub fn start_close(pair: &Pair, valid_until: u64, side: u8, signature: Bytes) -> Call {
    let (terms, asset) = (terms(&pair.terms), pair.asset);
    let arguments = contract::startCloseCall { terms, asset, validUntil: valid_until, side, signature };
    call(pair.domain.adjudicator, &arguments)
}

/// A refusal as the error that it must be.
#[track_caller]
pub fn decoded<E: SolError>(refusal: &Refusal) -> E {
    E::abi_decode(&refusal.data)
        .unwrap_or_else(|_| panic!("expected {}, the contract said: {refusal} ({})", E::SIGNATURE, refusal.data))
}
