// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

// The structs that cross the contract's boundary, and the typed data (EIP-712) that the parties sign.
//
// Two families live here. *Signed* structs (`Terms`, `Voucher`, `TickVoucher`, `Receipt`, `Settlement`, `CloseRequest`,
// `Batch`) are hashed exactly as the protocol writes them; a changed name or field order changes every digest.
// *Call* structs carry those values and their proofs into the entry points.

/// @dev Sides of a channel, also the `payer` of a voucher.
uint8 constant SIDE_MEMBER = 0;
uint8 constant SIDE_HUB = 1;

/// @dev Status of an account. Open -> Closing -> Final, never back.
uint8 constant STATUS_OPEN = 0;
uint8 constant STATUS_CLOSING = 1;
uint8 constant STATUS_FINAL = 2;

/// @dev How a deposit is paid for.
uint8 constant FUNDING_ALLOWANCE = 0;
uint8 constant FUNDING_AUTHORIZATION = 1;

/// @dev The asset that stands for the native coin.
address constant NATIVE = address(0);

/// What both parties agree on when a channel opens; its digest is the channel id.
/// `hub` and `member` are the payout accounts, the only addresses that money can leave the channel to.
/// `hubKey` and `memberKey` sign vouchers and settlements: an Ed25519 key (scheme 1) or a left-padded address (scheme 2).
/// `challengePeriod` is in seconds.
struct Terms {
    address hub;
    bytes32 hubKey;
    uint8 hubScheme;
    address member;
    bytes32 memberKey;
    uint8 memberScheme;
    uint32 challengePeriod;
    bytes32 salt;
}

/// A payer's cumulative promise on one lane; the largest of a lane replaces all others.
struct Voucher {
    bytes32 channelId;
    address asset;
    uint8 payer;
    uint32 lane;
    uint128 cumulative;
    uint64 credits;
    bytes32 memo;
}

/// A member's promise to pay `tick` more for each preimage revealed of the hash chain that ends in `anchor`.
struct TickVoucher {
    bytes32 channelId;
    address asset;
    uint32 lane;
    uint128 cumulative;
    uint128 tick;
    uint32 ticks;
    bytes32 anchor;
    bytes32 memo;
}

/// The hub's proof, held by a payer, that it owes the payee `total` after credit number `credit`.
struct Receipt {
    bytes32 channelId;
    address asset;
    uint64 credit;
    uint128 amount;
    uint128 total;
    bytes32 payments;
}

/// New cumulative withdrawals that both parties agree on.
struct Settlement {
    bytes32 channelId;
    address asset;
    uint64 seq;
    uint128 memberWithdrawn;
    uint128 hubWithdrawn;
    uint64 validUntil;
    bool close;
}

/// Permission to start a unilateral close, for watchtowers and exit kits.
struct CloseRequest {
    bytes32 channelId;
    address asset;
    uint64 validUntil;
}

/// The root over everything that the hub signs in one flush.
struct Batch {
    uint64 flush;
    bytes32 root;
}

/// How a deposit is paid. Kind 0: `data` is ignored, the payer is the caller (allowance, or `msg.value`).
/// Kind 1 (EIP-3009): `data` = abi.encode(address from, uint256 validAfter, uint256 validBefore, bytes32 payerNonce, bytes signature).
struct Funding {
    uint8 kind;
    bytes data;
}

/// A signature over a struct's digest, or (`batched`) over `Batch(flush, root)` with `path` leading from the digest's leaf to `root`.
/// `flush` and `path` are ignored when not `batched`.
struct Proof {
    bytes signature;
    bool batched;
    uint64 flush;
    bytes32[] path;
}

/// A voucher as evidence; channel, asset and payer follow from where it stands.
struct VoucherEvidence {
    uint32 lane;
    uint128 cumulative;
    uint64 credits;
    bytes32 memo;
    Proof proof;
}

/// A tick voucher as evidence, with the preimage of index `index`: SHA-256 applied `index` times to `preimage` gives `anchor`.
struct TickEvidence {
    uint32 lane;
    uint128 cumulative;
    uint128 tick;
    uint32 ticks;
    bytes32 anchor;
    bytes32 memo;
    uint32 index;
    bytes32 preimage;
    bytes signature;
}

/// A receipt as evidence.
struct ReceiptEvidence {
    uint64 credit;
    uint128 amount;
    uint128 total;
    bytes32 payments;
    Proof proof;
}

/// Evidence of both directions. A direction is whole or not proven: `memberVouchers` and `memberTicks` together name every lane of the member
/// at most once, each list with rising lanes; of the hub's lists the largest value counts.
struct Evidence {
    VoucherEvidence[] memberVouchers;
    TickEvidence[] memberTicks;
    VoucherEvidence[] hubVouchers;
    ReceiptEvidence[] hubReceipts;
}

/// One channel of `openMany`; see `open`.
struct OpenEntry {
    Terms terms;
    bytes consent;
    address asset;
    uint128 amount;
    Funding funding;
}

/// One deposit of `fundMany`, paid by the caller.
struct FundEntry {
    Terms terms;
    address asset;
    uint8 side;
    uint128 amount;
}

/// A settlement with both signatures; the hub's may be a batch proof.
struct SettleEntry {
    Terms terms;
    address asset;
    uint64 seq;
    uint128 memberWithdrawn;
    uint128 hubWithdrawn;
    uint64 validUntil;
    bool close;
    bytes memberSignature;
    Proof hubProof;
}

/// One unilateral close of `startCloseMany`.
struct CloseEntry {
    Terms terms;
    address asset;
    uint64 validUntil;
    uint8 side;
    bytes signature;
}

/// One response of `respondMany`.
struct RespondEntry {
    Terms terms;
    address asset;
    Evidence evidence;
}

/// One account of `finalizeMany`.
struct FinalizeEntry {
    Terms terms;
    address asset;
}

/// The books of one (channel, asset). Totals are cumulative and never fall; a new account is all zero.
/// `status`: 0 Open, 1 Closing, 2 Final. `deadline`: end of the challenge period, a timestamp in seconds, 0 while never closing.
/// `memberPaid` and `hubPaid`: the largest payments proven by evidence so far.
struct Account {
    uint8 status;
    uint64 deadline;
    uint64 seq;
    uint128 memberDeposit;
    uint128 hubDeposit;
    uint128 memberWithdrawn;
    uint128 hubWithdrawn;
    uint128 memberPaid;
    uint128 hubPaid;
}

/// Hashes of the signed structs, and the leaf that stands for a digest in a batch.
library Types {
    bytes32 internal constant TERMS_TYPEHASH = keccak256(
        "ChannelTerms(address hub,bytes32 hubKey,uint8 hubScheme,address member,bytes32 memberKey,uint8 memberScheme,uint32 challengePeriod,bytes32 salt)"
    );
    bytes32 internal constant VOUCHER_TYPEHASH = keccak256(
        "Voucher(bytes32 channelId,address asset,uint8 payer,uint32 lane,uint128 cumulative,uint64 credits,bytes32 memo)"
    );
    bytes32 internal constant TICK_VOUCHER_TYPEHASH = keccak256(
        "TickVoucher(bytes32 channelId,address asset,uint32 lane,uint128 cumulative,uint128 tick,uint32 ticks,bytes32 anchor,bytes32 memo)"
    );
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 channelId,address asset,uint64 credit,uint128 amount,uint128 total,bytes32 payments)"
    );
    bytes32 internal constant SETTLEMENT_TYPEHASH = keccak256(
        "Settlement(bytes32 channelId,address asset,uint64 seq,uint128 memberWithdrawn,uint128 hubWithdrawn,uint64 validUntil,bool close)"
    );
    bytes32 internal constant CLOSE_REQUEST_TYPEHASH =
        keccak256("CloseRequest(bytes32 channelId,address asset,uint64 validUntil)");
    bytes32 internal constant BATCH_TYPEHASH = keccak256("Batch(uint64 flush,bytes32 root)");

    /// The EIP-712 digest of a struct hash in a domain.
    function digest(bytes32 domain, bytes32 structHash) internal pure returns (bytes32 result) {
        assembly ("memory-safe") {
            let ptr := mload(0x40)
            mstore(ptr, hex"1901")
            mstore(add(ptr, 0x02), domain)
            mstore(add(ptr, 0x22), structHash)
            result := keccak256(ptr, 0x42)
        }
    }

    /// The struct hash of channel terms. All eight fields are static, so their ABI encoding is the calldata itself. Bits outside of a field's type
    /// only give an id that was never opened: `open` reads, and so validates, every field.
    function hashTerms(Terms calldata t) internal pure returns (bytes32 result) {
        bytes32 typeHash = TERMS_TYPEHASH;
        assembly ("memory-safe") {
            let ptr := mload(0x40)
            mstore(ptr, typeHash)
            calldatacopy(add(ptr, 0x20), t, 0x100)
            result := keccak256(ptr, 0x120)
        }
    }

    // Field by field and not as structs: a struct in memory would be copied once more to be hashed.

    function hashVoucher(
        bytes32 channelId,
        address asset,
        uint8 payer,
        uint32 lane,
        uint128 cumulative,
        uint64 credits,
        bytes32 memo
    ) internal pure returns (bytes32) {
        return keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, asset, payer, lane, cumulative, credits, memo));
    }

    function hashTickVoucher(
        bytes32 channelId,
        address asset,
        uint32 lane,
        uint128 cumulative,
        uint128 tick,
        uint32 ticks,
        bytes32 anchor,
        bytes32 memo
    ) internal pure returns (bytes32) {
        return keccak256(abi.encode(TICK_VOUCHER_TYPEHASH, channelId, asset, lane, cumulative, tick, ticks, anchor, memo));
    }

    function hashReceipt(
        bytes32 channelId,
        address asset,
        uint64 credit,
        uint128 amount,
        uint128 total,
        bytes32 payments
    ) internal pure returns (bytes32) {
        return keccak256(abi.encode(RECEIPT_TYPEHASH, channelId, asset, credit, amount, total, payments));
    }

    /// A struct of static fields lies in memory as its ABI encoding; only the type hash must be put before it.
    function hashSettlement(Settlement memory s) internal pure returns (bytes32 result) {
        bytes32 typeHash = SETTLEMENT_TYPEHASH;
        assembly ("memory-safe") {
            let ptr := mload(0x40)
            mstore(ptr, typeHash)
            mcopy(add(ptr, 0x20), s, 0xe0)
            result := keccak256(ptr, 0x100)
        }
    }

    function hashCloseRequest(bytes32 channelId, address asset, uint64 validUntil) internal pure returns (bytes32) {
        return keccak256(abi.encode(CLOSE_REQUEST_TYPEHASH, channelId, asset, validUntil));
    }

    function hashBatch(uint64 flush, bytes32 root) internal pure returns (bytes32) {
        return keccak256(abi.encode(BATCH_TYPEHASH, flush, root));
    }

    /// The Merkle leaf of a digest. Hashed twice, so that no inner node can pose as a leaf.
    function leaf(bytes32 structDigest) internal pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(structDigest))));
    }
}
