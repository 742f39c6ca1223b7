// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

import {IAdjudicator} from "./IAdjudicator.sol";
import {
    Evidence,
    Proof,
    ReceiptEvidence,
    SettleEntry,
    Settlement,
    SIDE_HUB,
    SIDE_MEMBER,
    STATUS_CLOSING,
    STATUS_FINAL,
    STATUS_OPEN,
    Terms,
    TickEvidence,
    Types,
    VoucherEvidence
} from "./Types.sol";
import {Slots} from "./Slots.sol";
import {VoucherKey} from "./verifiers/VoucherKey.sol";

/// @title The rules of an account
/// @dev Every function decides and none writes. A rule answers with a *refusal*: the ABI-encoded error, empty when all is well. A single call
/// reverts with it, a batch skips the entry and says why; so one entry cannot sink the others, and a batch that runs out of gas fails as a
/// whole instead of quietly skipping what it could not afford. "No refusal" is always the named result as it was born: writing `""` instead would
/// allocate it.
library Books {
    /// Members use lanes below 64: the evidence of one direction must fit one transaction.
    uint32 internal constant LANE_MAX = 63;
    /// Longest hash chain: 2048 steps cost about half a million gas.
    uint32 internal constant TICKS_MAX = 2048;
    /// Longest Merkle path: 2^32 leaves in one flush.
    uint256 internal constant PATH_MAX = 32;

    /// What a signature is checked in: the EIP-712 domain, the channel and the asset.
    struct Scope {
        bytes32 domain;
        bytes32 channelId;
        address asset;
    }

    // ---------------------------------------------------------------- opening and funding

    /// Why terms cannot open a channel here.
    function refuseTerms(Terms calldata t, uint32 minPeriod, uint32 maxPeriod, bool ed25519)
        internal
        pure
        returns (bytes memory refusal)
    {
        if (t.challengePeriod < minPeriod || t.challengePeriod > maxPeriod) {
            return abi.encodeWithSelector(
                IAdjudicator.PeriodOutOfBounds.selector, t.challengePeriod, minPeriod, maxPeriod
            );
        }
        if (t.hub == address(0) || t.member == address(0) || t.hub == t.member) {
            return abi.encodeWithSelector(IAdjudicator.BadPayoutAccounts.selector, t.hub, t.member);
        }
        refusal = _refuseKey(t.hubScheme, t.hubKey, ed25519);
        return refusal.length > 0 ? refusal : _refuseKey(t.memberScheme, t.memberKey, ed25519);
    }

    /// Why a deposit of `amount` is not taken, given that `pending` more is about to be credited to the account.
    function refuseDeposit(
        Scope memory scope,
        Slots.Totals memory totals,
        uint8 side,
        uint256 amount,
        uint256 pending
    ) internal pure returns (bytes memory refusal) {
        if (side > SIDE_HUB) return abi.encodeWithSelector(IAdjudicator.UnknownSide.selector, side);
        if (amount == 0) return abi.encodeWithSelector(IAdjudicator.AmountIsZero.selector);
        refusal = refuseUnlessOpen(scope, totals);
        if (refusal.length > 0) return refusal;
        // `pending` is the sum of 128-bit amounts in calldata: none of these sums reaches 256 bits.
        uint256 total;
        unchecked {
            total = totals.memberDeposit + totals.hubDeposit + pending + amount;
        }
        if (total > type(uint128).max) return abi.encodeWithSelector(IAdjudicator.DepositsOverflow.selector, total);
        return refusal;
    }

    /// Why an account that is closing or final refuses.
    function refuseUnlessOpen(Scope memory scope, Slots.Totals memory totals) internal pure returns (bytes memory refusal) {
        if (totals.status == STATUS_OPEN) return refusal;
        if (totals.status == STATUS_FINAL) return _final(scope);
        return abi.encodeWithSelector(
            IAdjudicator.AccountClosing.selector, scope.channelId, scope.asset, totals.deadline
        );
    }

    // ---------------------------------------------------------------- settling and closing

    /// Why a settlement is not posted. Signatures last: they are the dear part.
    function refuseSettlement(
        Scope memory scope,
        Slots.Totals memory totals,
        Settlement memory s,
        SettleEntry calldata e
    ) internal view returns (bytes memory refusal) {
        if (totals.status == STATUS_FINAL) return _final(scope);
        if (totals.status == STATUS_CLOSING && block.timestamp >= totals.deadline) {
            return abi.encodeWithSelector(IAdjudicator.ChallengeOver.selector, totals.deadline, block.timestamp);
        }
        if (block.timestamp > s.validUntil) return _expired(s.validUntil);
        if (s.seq <= totals.seq) return abi.encodeWithSelector(IAdjudicator.StaleSequence.selector, s.seq, totals.seq);
        if (s.memberWithdrawn < totals.memberWithdrawn || s.hubWithdrawn < totals.hubWithdrawn) {
            return abi.encodeWithSelector(
                IAdjudicator.TotalsLowered.selector,
                s.memberWithdrawn,
                s.hubWithdrawn,
                totals.memberWithdrawn,
                totals.hubWithdrawn
            );
        }
        // Sums of two 128-bit numbers.
        unchecked {
            uint256 paidOut = uint256(s.memberWithdrawn) + s.hubWithdrawn;
            uint256 paidIn = totals.memberDeposit + totals.hubDeposit;
            if (paidOut > paidIn) {
                return abi.encodeWithSelector(IAdjudicator.TotalsExceedDeposits.selector, paidOut, paidIn);
            }
        }
        bytes32 digest = Types.digest(scope.domain, Types.hashSettlement(s));
        refusal = _refuseMember(e.terms, digest, e.memberSignature);
        return refusal.length > 0 ? refusal : _refuseHub(scope.domain, e.terms, digest, e.hubProof);
    }

    /// Why a unilateral close does not start. `caller` counts only where there is no signature.
    function refuseClose(
        Scope memory scope,
        Slots.Totals memory totals,
        Terms calldata terms,
        uint64 validUntil,
        uint8 side,
        bytes calldata signature,
        address caller
    ) internal view returns (bytes memory refusal) {
        refusal = refuseUnlessOpen(scope, totals);
        if (refusal.length > 0) return refusal;
        if (signature.length == 0) {
            if (caller == terms.member || caller == terms.hub) return refusal;
            return abi.encodeWithSelector(IAdjudicator.NotPayoutAccount.selector, caller);
        }
        if (side > SIDE_HUB) return abi.encodeWithSelector(IAdjudicator.UnknownSide.selector, side);
        if (block.timestamp > validUntil) return _expired(validUntil);
        bytes32 digest = Types.digest(
            scope.domain, Types.hashCloseRequest(scope.channelId, scope.asset, validUntil)
        );
        return side == SIDE_MEMBER
            ? _refuseMember(terms, digest, signature)
            : _refuseSignature(SIDE_HUB, terms.hubScheme, terms.hubKey, digest, signature);
    }

    /// Why no evidence is taken.
    function refuseResponse(Scope memory scope, Slots.Totals memory totals) internal view returns (bytes memory refusal) {
        refusal = _refuseUnlessClosing(scope, totals);
        if (refusal.length > 0 || block.timestamp < totals.deadline) return refusal;
        return abi.encodeWithSelector(IAdjudicator.ChallengeOver.selector, totals.deadline, block.timestamp);
    }

    /// Why an account cannot be paid out.
    function refuseFinalize(Scope memory scope, Slots.Totals memory totals) internal view returns (bytes memory refusal) {
        refusal = _refuseUnlessClosing(scope, totals);
        if (refusal.length > 0 || block.timestamp >= totals.deadline) return refusal;
        return abi.encodeWithSelector(IAdjudicator.ChallengeRunning.selector, totals.deadline, block.timestamp);
    }

    /// How the custody is split at the end of a unilateral close: the member gets `min(C, max(0, MD + PH - MW - PM))`, the hub the rest.
    /// The sums of four 128-bit numbers cannot leave 256 bits, and what an insolvent payer promised beyond the custody is cut, never an error.
    function payout(Slots.Totals memory totals)
        internal
        pure
        returns (uint256 toMember, uint256 toHub)
    {
        // I1 keeps the custody from being negative; the other sums are of 128-bit numbers.
        unchecked {
            uint256 custody =
                totals.memberDeposit + totals.hubDeposit - totals.memberWithdrawn - totals.hubWithdrawn;
            uint256 credit = totals.memberDeposit + totals.hubPaid;
            uint256 debit = totals.memberWithdrawn + totals.memberPaid;
            uint256 net = credit > debit ? credit - debit : 0;
            toMember = net < custody ? net : custody;
            toHub = custody - toMember;
        }
    }

    // ---------------------------------------------------------------- evidence

    /// What the member provably paid: the sum over his lanes, saturating. A faulty item refuses the whole direction.
    function memberPaid(Scope memory scope, Terms calldata terms, Evidence calldata evidence)
        internal
        view
        returns (uint128 total, bytes memory refusal)
    {
        uint256 sum;
        uint256 lanes;
        uint256 count = evidence.memberVouchers.length;
        for (uint256 i = 0; i < count; ++i) {
            VoucherEvidence calldata v = evidence.memberVouchers[i];
            (lanes, refusal) = _takeLane(lanes, i == 0, v.lane);
            if (refusal.length == 0) refusal = _refuseMemberVoucher(scope, terms, v);
            if (refusal.length > 0) return (0, refusal);
            sum += v.cumulative;
        }
        uint256 plain = lanes;
        lanes = 0;
        count = evidence.memberTicks.length;
        for (uint256 i = 0; i < count; ++i) {
            TickEvidence calldata t = evidence.memberTicks[i];
            (lanes, refusal) = _takeLane(lanes, i == 0, t.lane);
            if (refusal.length == 0 && plain & lanes != 0) {
                refusal = abi.encodeWithSelector(IAdjudicator.LaneRepeated.selector, t.lane);
            }
            if (refusal.length == 0) refusal = _refuseTicks(scope, terms, t);
            if (refusal.length > 0) return (0, refusal);
            sum += uint256(t.cumulative) + uint256(t.index) * t.tick;
        }
        total = sum > type(uint128).max ? type(uint128).max : uint128(sum);
    }

    /// What the hub provably paid: the largest cumulative total that it signed, in a voucher or in a receipt. Nothing is added up, so a
    /// receipt and the voucher after it count once.
    function hubPaid(Scope memory scope, Terms calldata terms, Evidence calldata evidence)
        internal
        view
        returns (uint128 total, bytes memory refusal)
    {
        uint256 count = evidence.hubVouchers.length;
        for (uint256 i = 0; i < count; ++i) {
            VoucherEvidence calldata v = evidence.hubVouchers[i];
            refusal = _refuseHubVoucher(scope, terms, v);
            if (refusal.length > 0) return (0, refusal);
            if (v.cumulative > total) total = v.cumulative;
        }
        count = evidence.hubReceipts.length;
        for (uint256 i = 0; i < count; ++i) {
            ReceiptEvidence calldata r = evidence.hubReceipts[i];
            bytes32 digest = Types.digest(
                scope.domain,
                Types.hashReceipt(scope.channelId, scope.asset, r.credit, r.amount, r.total, r.payments)
            );
            refusal = _refuseHub(scope.domain, terms, digest, r.proof);
            if (refusal.length > 0) return (0, refusal);
            if (r.total > total) total = r.total;
        }
    }

    // ---------------------------------------------------------------- helpers

    function _final(Scope memory scope) private pure returns (bytes memory refusal) {
        return abi.encodeWithSelector(IAdjudicator.AccountFinal.selector, scope.channelId, scope.asset);
    }

    function _expired(uint64 validUntil) private view returns (bytes memory refusal) {
        return abi.encodeWithSelector(IAdjudicator.Expired.selector, validUntil, block.timestamp);
    }

    function _refuseUnlessClosing(Scope memory scope, Slots.Totals memory totals) private pure returns (bytes memory refusal) {
        if (totals.status == STATUS_CLOSING) return refusal;
        if (totals.status == STATUS_FINAL) return _final(scope);
        return abi.encodeWithSelector(IAdjudicator.AccountNotClosing.selector, scope.channelId, scope.asset);
    }

    function _refuseKey(uint8 scheme, bytes32 key, bool ed25519) private pure returns (bytes memory refusal) {
        if (scheme != VoucherKey.SECP256K1 && !(scheme == VoucherKey.ED25519 && ed25519)) {
            return abi.encodeWithSelector(IAdjudicator.UnknownScheme.selector, scheme);
        }
        if (VoucherKey.isWellFormed(scheme, key)) return refusal;
        return abi.encodeWithSelector(IAdjudicator.IllFormedKey.selector, scheme, key);
    }

    /// Adds a lane to the set of lanes named so far. Lanes rise exactly when the new bit is above all others.
    function _takeLane(uint256 lanes, bool first, uint32 lane) private pure returns (uint256 with, bytes memory refusal) {
        if (lane > LANE_MAX) {
            return (lanes, abi.encodeWithSelector(IAdjudicator.LaneOutOfRange.selector, SIDE_MEMBER, lane));
        }
        uint256 bit = uint256(1) << lane;
        if (!first && bit <= lanes) return (lanes, abi.encodeWithSelector(IAdjudicator.LaneRepeated.selector, lane));
        return (lanes | bit, refusal);
    }

    function _refuseMemberVoucher(Scope memory scope, Terms calldata terms, VoucherEvidence calldata v)
        private
        view
        returns (bytes memory refusal)
    {
        if (v.credits != 0) return abi.encodeWithSelector(IAdjudicator.CreditsNotZero.selector, v.credits);
        if (v.proof.batched) return abi.encodeWithSelector(IAdjudicator.BatchByMember.selector, v.lane);
        return _refuseMember(terms, _voucherDigest(scope, SIDE_MEMBER, v), v.proof.signature);
    }

    function _refuseHubVoucher(Scope memory scope, Terms calldata terms, VoucherEvidence calldata v)
        private
        view
        returns (bytes memory refusal)
    {
        if (v.lane != 0) return abi.encodeWithSelector(IAdjudicator.LaneOutOfRange.selector, SIDE_HUB, v.lane);
        return _refuseHub(scope.domain, terms, _voucherDigest(scope, SIDE_HUB, v), v.proof);
    }

    function _voucherDigest(Scope memory scope, uint8 payer, VoucherEvidence calldata v)
        private
        pure
        returns (bytes32)
    {
        return Types.digest(
            scope.domain,
            Types.hashVoucher(scope.channelId, scope.asset, payer, v.lane, v.cumulative, v.credits, v.memo)
        );
    }

    /// The signature before the chain: a stranger's tick voucher costs one recovery, not 2048 hashes.
    function _refuseTicks(Scope memory scope, Terms calldata terms, TickEvidence calldata t)
        private
        view
        returns (bytes memory refusal)
    {
        if (t.ticks == 0 || t.ticks > TICKS_MAX || t.index > t.ticks) {
            return abi.encodeWithSelector(IAdjudicator.TicksOutOfRange.selector, t.ticks, t.index);
        }
        uint256 end = uint256(t.cumulative) + uint256(t.ticks) * t.tick;
        if (end > type(uint128).max) return abi.encodeWithSelector(IAdjudicator.TickValueOverflow.selector, end);
        bytes32 digest = Types.digest(
            scope.domain,
            Types.hashTickVoucher(
                scope.channelId, scope.asset, t.lane, t.cumulative, t.tick, t.ticks, t.anchor, t.memo
            )
        );
        refusal = _refuseMember(terms, digest, t.signature);
        if (refusal.length > 0) return refusal;
        if (_sha256Times(t.preimage, t.index) != t.anchor) {
            return abi.encodeWithSelector(IAdjudicator.WrongPreimage.selector, t.anchor, t.index);
        }
        return refusal;
    }

    /// SHA-256 applied `count` times. Written in assembly because the compiler's call costs almost three times as much a step.
    function _sha256Times(bytes32 value, uint256 count) private view returns (bytes32 result) {
        assembly ("memory-safe") {
            mstore(0x00, value)
            for { let i := 0 } lt(i, count) { i := add(i, 1) } {
                // Only missing gas can make this fail; then there is none left to go on with either.
                if iszero(staticcall(gas(), 0x02, 0x00, 0x20, 0x00, 0x20)) { revert(0x00, 0x00) }
            }
            result := mload(0x00)
        }
    }

    /// Members sign digests, never batches.
    function _refuseMember(Terms calldata terms, bytes32 digest, bytes calldata signature)
        private
        view
        returns (bytes memory refusal)
    {
        return _refuseSignature(SIDE_MEMBER, terms.memberScheme, terms.memberKey, digest, signature);
    }

    /// The hub signs a digest, or the root of a batch that holds its leaf.
    function _refuseHub(bytes32 domain, Terms calldata terms, bytes32 digest, Proof calldata proof)
        private
        view
        returns (bytes memory refusal)
    {
        if (proof.batched) {
            if (proof.path.length > PATH_MAX) {
                return abi.encodeWithSelector(IAdjudicator.PathTooLong.selector, proof.path.length);
            }
            bytes32 root = MerkleProof.processProofCalldata(proof.path, Types.leaf(digest));
            digest = Types.digest(domain, Types.hashBatch(proof.flush, root));
        }
        return _refuseSignature(SIDE_HUB, terms.hubScheme, terms.hubKey, digest, proof.signature);
    }

    function _refuseSignature(uint8 side, uint8 scheme, bytes32 key, bytes32 digest, bytes calldata signature)
        private
        view
        returns (bytes memory refusal)
    {
        if (VoucherKey.verify(scheme, key, digest, signature)) return refusal;
        return abi.encodeWithSelector(IAdjudicator.BadSignature.selector, side, digest);
    }
}
