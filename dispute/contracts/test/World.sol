// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAdjudicator} from "../IAdjudicator.sol";
import {
    Account,
    Batch,
    CloseRequest,
    Evidence,
    Funding,
    FUNDING_ALLOWANCE,
    FUNDING_AUTHORIZATION,
    Proof,
    Receipt,
    ReceiptEvidence,
    SettleEntry,
    Settlement,
    SIDE_HUB,
    SIDE_MEMBER,
    Terms,
    TickEvidence,
    TickVoucher,
    Voucher,
    VoucherEvidence
} from "../Types.sol";
import {vm} from "./Vm.sol";

/// What the tests need of the token that the project publishes.
interface Dollar {
    function mint(address to, uint256 amount) external;
    function approve(address spender, uint256 amount) external returns (bool);
    function transfer(address to, uint256 amount) external returns (bool);
    function transferFrom(address from, address to, uint256 amount) external returns (bool);
    function balanceOf(address account) external view returns (uint256);
    function DOMAIN_SEPARATOR() external view returns (bytes32);
}

/// A channel with the keys of its parties. The payout accounts are other addresses than the voucher keys, as they should be.
struct Pair {
    Terms terms;
    bytes32 id;
    uint256 memberKey;
    uint256 hubKey;
    uint256 memberAccountKey;
}

/// @title A deployment from the committed artifacts, and the hands of the parties
/// @dev Everything that is signed is hashed by the contract's own views, which the golden vectors check.
abstract contract World {
    uint256 internal constant HUB_KEY = uint256(keccak256("hub voucher key"));
    uint256 internal constant HUB_ACCOUNT_KEY = uint256(keccak256("hub payout account"));
    uint32 internal constant PERIOD = 1 days;
    uint64 internal constant START = 1_800_000_000;
    uint256 internal constant SHARDS = 4;

    IAdjudicator internal adjudicator;
    Dollar internal dollar;
    address internal hub = vm.addr(HUB_ACCOUNT_KEY);

    function setUp() public virtual {
        vm.warp(START);
        dollar = Dollar(deploy("TestDollar", abi.encode(address(this))));
        adjudicator = IAdjudicator(
            deploy("Adjudicator", abi.encode(uint32(1 hours), uint32(30 days), uint16(SHARDS), address(dollar)))
        );
    }

    // ---------------------------------------------------------------- deployment

    function deploy(string memory name, bytes memory arguments) internal returns (address made) {
        string memory path = string.concat("artifacts/", name, ".json");
        bytes memory code = bytes.concat(vm.parseJsonBytes(vm.readFile(path), ".bytecode"), arguments);
        assembly ("memory-safe") {
            made := create(0, add(code, 0x20), mload(code))
            if iszero(made) {
                returndatacopy(0x00, 0x00, returndatasize())
                revert(0x00, returndatasize())
            }
        }
    }

    // ---------------------------------------------------------------- parties

    function newPair(string memory name) internal view returns (Pair memory p) {
        p.memberKey = uint256(keccak256(bytes.concat("voucher key of ", bytes(name))));
        p.memberAccountKey = uint256(keccak256(bytes.concat("payout account of ", bytes(name))));
        p.hubKey = HUB_KEY;
        p.terms = Terms({
            hub: hub,
            hubKey: keyOf(HUB_KEY),
            hubScheme: 2,
            member: vm.addr(p.memberAccountKey),
            memberKey: keyOf(p.memberKey),
            memberScheme: 2,
            challengePeriod: PERIOD,
            salt: keccak256(bytes(name))
        });
        p.id = adjudicator.channelIdOf(p.terms);
    }

    function keyOf(uint256 key) internal pure returns (bytes32) {
        return bytes32(uint256(uint160(vm.addr(key))));
    }

    /// Gives `amount` dollars to `account` and lets the adjudicator take them.
    function provide(address account, uint256 amount) internal {
        dollar.mint(account, amount);
        vm.prank(account);
        dollar.approve(address(adjudicator), type(uint256).max);
    }

    /// An open channel with dollars of both sides in it.
    function opened(string memory name, uint128 memberDeposit, uint128 hubDeposit) internal returns (Pair memory p) {
        p = newPair(name);
        provide(p.terms.member, memberDeposit);
        vm.prank(p.terms.member);
        adjudicator.open(p.terms, "", address(dollar), memberDeposit, byCaller());
        if (hubDeposit > 0) {
            provide(hub, hubDeposit);
            vm.prank(hub);
            adjudicator.deposit(p.terms, address(dollar), SIDE_HUB, hubDeposit, byCaller());
        }
    }

    function byCaller() internal pure returns (Funding memory) {
        return Funding(FUNDING_ALLOWANCE, "");
    }

    /// What the member signs so that anybody may take `amount` dollars from him into this account, and nowhere else.
    function byAuthorization(Pair memory p, Dollar asset, uint8 side, uint128 amount)
        internal
        view
        returns (Funding memory)
    {
        bytes32 payerNonce = keccak256(abi.encode("nonce", p.id, amount));
        bytes32 nonce = adjudicator.authorizationNonce(p.id, address(asset), side, payerNonce);
        bytes32 typeHash = keccak256(
            "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 structHash = keccak256(
            abi.encode(
                typeHash, p.terms.member, adjudicator.vaultOf(p.id), uint256(amount), 0, type(uint256).max, nonce
            )
        );
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", asset.DOMAIN_SEPARATOR(), structHash));
        bytes memory signed = signature(p.memberAccountKey, digest);
        return Funding(
            FUNDING_AUTHORIZATION, abi.encode(p.terms.member, 0, type(uint256).max, payerNonce, signed)
        );
    }

    // ---------------------------------------------------------------- signatures

    function signature(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function plain(uint256 key, bytes32 digest) internal pure returns (Proof memory proof) {
        proof.signature = signature(key, digest);
    }

    /// A batch of two leaves, of which `digest` is one.
    function batched(uint256 key, uint64 flush, bytes32 digest, bytes32 sibling)
        internal
        view
        returns (Proof memory proof)
    {
        proof.batched = true;
        proof.flush = flush;
        proof.path = new bytes32[](1);
        proof.path[0] = sibling;
        proof.signature = signature(key, adjudicator.batchDigest(Batch(flush, adjudicator.batchRoot(digest, proof.path))));
    }

    function settlement(
        Pair memory p,
        address asset,
        uint64 seq,
        uint128 memberWithdrawn,
        uint128 hubWithdrawn,
        bool close
    ) internal view returns (SettleEntry memory e) {
        e.terms = p.terms;
        e.asset = asset;
        e.seq = seq;
        e.memberWithdrawn = memberWithdrawn;
        e.hubWithdrawn = hubWithdrawn;
        e.validUntil = uint64(block.timestamp) + 1 hours;
        e.close = close;
        bytes32 digest = adjudicator.settlementDigest(
            Settlement(p.id, asset, seq, memberWithdrawn, hubWithdrawn, e.validUntil, close)
        );
        e.memberSignature = signature(p.memberKey, digest);
        e.hubProof = plain(p.hubKey, digest);
    }

    function memberVoucher(Pair memory p, address asset, uint32 lane, uint128 cumulative)
        internal
        view
        returns (VoucherEvidence memory v)
    {
        v = VoucherEvidence(lane, cumulative, 0, keccak256("memo"), plain(1, 0));
        v.proof = plain(p.memberKey, voucherDigest(p, asset, SIDE_MEMBER, v));
    }

    function hubVoucher(Pair memory p, address asset, uint128 cumulative)
        internal
        view
        returns (VoucherEvidence memory v)
    {
        v = VoucherEvidence(0, cumulative, 7, keccak256("memo"), plain(1, 0));
        v.proof = plain(p.hubKey, voucherDigest(p, asset, SIDE_HUB, v));
    }

    function voucherDigest(Pair memory p, address asset, uint8 payer, VoucherEvidence memory v)
        internal
        view
        returns (bytes32)
    {
        return adjudicator.voucherDigest(Voucher(p.id, asset, payer, v.lane, v.cumulative, v.credits, v.memo));
    }

    function hubReceipt(Pair memory p, address asset, uint64 credit, uint128 total)
        internal
        view
        returns (ReceiptEvidence memory r)
    {
        r = ReceiptEvidence(credit, 1, total, keccak256("payments"), plain(1, 0));
        r.proof = plain(
            p.hubKey, adjudicator.receiptDigest(Receipt(p.id, asset, r.credit, r.amount, r.total, r.payments))
        );
    }

    /// A chain of `ticks` steps above `cumulative`, revealed up to `index`.
    function tickVoucher(
        Pair memory p,
        address asset,
        uint32 lane,
        uint128 cumulative,
        uint128 tick,
        uint32 ticks,
        uint32 index
    ) internal view returns (TickEvidence memory t) {
        bytes32 secret = keccak256(abi.encode("secret", p.id, lane, ticks));
        bytes32 anchor = sha256Times(secret, ticks);
        t = TickEvidence(lane, cumulative, tick, ticks, anchor, keccak256("memo"), index, 0, "");
        t.preimage = sha256Times(secret, ticks - index);
        t.signature = signature(
            p.memberKey,
            adjudicator.tickVoucherDigest(
                TickVoucher(p.id, asset, lane, cumulative, tick, ticks, anchor, t.memo)
            )
        );
    }

    function sha256Times(bytes32 value, uint256 count) internal pure returns (bytes32) {
        for (uint256 i = 0; i < count; ++i) value = sha256(abi.encode(value));
        return value;
    }

    function closeRequest(Pair memory p, uint256 key, address asset, uint64 validUntil)
        internal
        view
        returns (bytes memory)
    {
        return signature(key, adjudicator.closeRequestDigest(CloseRequest(p.id, asset, validUntil)));
    }

    function hubSaid(VoucherEvidence memory v) internal pure returns (Evidence memory e) {
        e.hubVouchers = new VoucherEvidence[](1);
        e.hubVouchers[0] = v;
    }

    function memberSaid(VoucherEvidence memory v) internal pure returns (Evidence memory e) {
        e.memberVouchers = new VoucherEvidence[](1);
        e.memberVouchers[0] = v;
    }

    function receipted(ReceiptEvidence memory r) internal pure returns (Evidence memory e) {
        e.hubReceipts = new ReceiptEvidence[](1);
        e.hubReceipts[0] = r;
    }

    function ticked(TickEvidence memory t) internal pure returns (Evidence memory e) {
        e.memberTicks = new TickEvidence[](1);
        e.memberTicks[0] = t;
    }

    // ---------------------------------------------------------------- looking

    function books(Pair memory p) internal view returns (Account memory) {
        return adjudicator.books(p.id, address(dollar));
    }

    function owed(Pair memory p, address asset, address account) internal view returns (uint256) {
        return adjudicator.claimable(adjudicator.vaultOf(p.id), asset, account);
    }

    error Differs(string what, uint256 got, uint256 expected);
    error NotSo(string what);

    function same(uint256 got, uint256 expected, string memory what) internal pure {
        if (got != expected) revert Differs(what, got, expected);
    }

    function so(bool fact, string memory what) internal pure {
        if (!fact) revert NotSo(what);
    }
}
