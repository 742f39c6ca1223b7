// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {
    Batch,
    CloseEntry,
    Evidence,
    FinalizeEntry,
    FundEntry,
    NATIVE,
    Proof,
    RespondEntry,
    SettleEntry,
    SIDE_HUB,
    SIDE_MEMBER,
    Terms
} from "../Types.sol";
import {vm} from "./Vm.sol";
import {Dollar, Pair, World} from "./World.sol";

/// @title What every operation costs
/// @dev Runs with isolation: each call is a transaction of its own, with cold slots, base fee and calldata, refunds taken off. `gas.mjs` turns the
/// values into the committed report and compares them.
contract GasTest is World {
    uint128 private constant DEPOSIT = 500_000_000;

    function setUp() public override {
        super.setUp();
        // The vaults have held dollars before, and so have the parties: the slots of their balances are not empty.
        for (uint256 i = 0; i < 64; ++i) {
            dollar.mint(adjudicator.vaultOf(bytes32(i)), 1);
        }
        dollar.mint(hub, 1);
    }

    /// An open channel of which the member keeps some dollars outside.
    function ready(string memory name) private returns (Pair memory p) {
        p = opened(name, DEPOSIT, DEPOSIT);
        dollar.mint(p.terms.member, 1_000_000);
    }

    function note(string memory name) private {
        vm.snapshotValue("gas", name, vm.lastCallGas().gasTotalUsed);
    }

    function newOpen(uint256 approved, uint256 rest) private {
        Pair memory p = newPair("fresh");
        dollar.mint(p.terms.member, DEPOSIT + rest);
        vm.prank(p.terms.member);
        dollar.approve(address(adjudicator), approved);
        vm.prank(p.terms.member);
        adjudicator.open(p.terms, "", address(dollar), DEPOSIT, byCaller());
    }

    function test_open_standing() external {
        newOpen(type(uint256).max, 1);
        note("open, standing allowance");
    }

    function test_open_partial() external {
        newOpen(DEPOSIT + 1, 1);
        note("open, part of an allowance");
    }

    function test_open_exact() external {
        newOpen(DEPOSIT, 1);
        note("open, exact allowance");
    }

    function test_open_authorised() external {
        Pair memory p = newPair("fresh");
        dollar.mint(p.terms.member, DEPOSIT + 1);
        adjudicator.open(p.terms, "", address(dollar), DEPOSIT, byAuthorization(p, dollar, SIDE_MEMBER, DEPOSIT));
        note("open, EIP-3009 authorisation sent by anyone");
    }

    function test_open_other_asset() external {
        Dollar other = Dollar(deploy("TestDollar", abi.encode(address(this))));
        for (uint256 i = 0; i < 8; ++i) other.mint(adjudicator.vaultOf(bytes32(i)), 1);
        Pair memory p = newPair("fresh");
        other.mint(p.terms.member, DEPOSIT + 1);
        vm.prank(p.terms.member);
        other.approve(address(adjudicator), type(uint256).max);
        vm.prank(p.terms.member);
        adjudicator.open(p.terms, "", address(other), DEPOSIT, byCaller());
        note("open, another asset than home, standing allowance");
    }

    function test_open_coins() external {
        Pair memory p = newPair("fresh");
        vm.deal(p.terms.member, 3 ether);
        vm.deal(adjudicator.vaultOf(p.id), 1);
        vm.prank(p.terms.member);
        adjudicator.open{value: 1 ether}(p.terms, "", NATIVE, 1 ether, byCaller());
        note("open, coins");
    }

    /// Amounts of 18 decimals do not fit the small form.
    function wide(string memory name) private returns (Pair memory p) {
        p = opened(name, 5e20, 5e20);
        dollar.mint(p.terms.member, 1e18);
    }

    function test_wide() external {
        Pair memory p = newPair("fresh");
        provide(p.terms.member, 2e18);
        vm.prank(p.terms.member);
        adjudicator.open(p.terms, "", address(dollar), 1e18, byCaller());
        note("18 decimals: open, standing allowance");
        p = wide("alice");
        SettleEntry memory e = settlement(p, address(dollar), 1, 1e18, 1e18, false);
        adjudicator.settle(e);
        e = settlement(p, address(dollar), 2, 3e18, 3e18, false);
        adjudicator.settle(e);
        note("18 decimals: settle, both, later");
        closing(p);
        Evidence memory evidence = hubSaid(hubVoucher(p, address(dollar), 7e18));
        adjudicator.respond(p.terms, address(dollar), evidence);
        note("18 decimals: respond, one voucher, first");
        vm.warp(START + PERIOD);
        adjudicator.finalize(p.terms, address(dollar));
        note("18 decimals: finalize, pays both");
    }

    function test_evidence() external {
        Pair memory p = ready("alice");
        closing(p);
        Evidence memory e = receipted(hubReceipt(p, address(dollar), 3, 1_000));
        adjudicator.respond(p.terms, address(dollar), e);
        note("respond, one receipt, first");
        e = ticked(tickVoucher(p, address(dollar), 0, 0, 10, 2048, 2048));
        adjudicator.respond(p.terms, address(dollar), e);
        note("respond, a tick voucher with 2,048 steps");
    }

    function topUp(uint256 approved) private {
        Pair memory p = ready("alice");
        vm.prank(p.terms.member);
        dollar.approve(address(adjudicator), approved);
        vm.prank(p.terms.member);
        adjudicator.deposit(p.terms, address(dollar), SIDE_MEMBER, 500_000, byCaller());
    }

    function test_topup_standing() external {
        topUp(type(uint256).max);
        note("top-up, standing allowance");
    }

    function test_topup_partial() external {
        topUp(900_000);
        note("top-up, part of an allowance");
    }

    function test_topup_exact() external {
        topUp(500_000);
        note("top-up, exact allowance");
    }

    function settled(Pair memory p) private {
        adjudicator.settle(settlement(p, address(dollar), 1, 1_000_000, 1_000_000, false));
    }

    function test_settle_member() external {
        Pair memory p = ready("alice");
        settled(p);
        SettleEntry memory e = settlement(p, address(dollar), 2, 3_000_000, 1_000_000, false);
        adjudicator.settle(e);
        note("settle, member only, later");
    }

    function test_settle_both() external {
        Pair memory p = ready("alice");
        settled(p);
        SettleEntry memory e = settlement(p, address(dollar), 2, 3_000_000, 3_000_000, false);
        adjudicator.settle(e);
        note("settle, both, later");
    }

    function test_settle_first() external {
        settled(ready("bob"));
        Pair memory p = ready("alice");
        SettleEntry memory e = settlement(p, address(dollar), 1, 3_000_000, 3_000_000, false);
        // The vault owes the hub something from before.
        settled(twin(p));
        adjudicator.settle(e);
        note("settle, both, first");
    }

    /// Another channel of the same vault.
    function twin(Pair memory p) private returns (Pair memory other) {
        for (uint256 i = 0;; ++i) {
            string memory name = string.concat("twin ", vm.toString(i));
            other = newPair(name);
            if (adjudicator.vaultOf(other.id) == adjudicator.vaultOf(p.id)) return ready(name);
        }
    }

    function test_settle_very_first() external {
        Pair memory p = ready("alice");
        SettleEntry memory e = settlement(p, address(dollar), 1, 3_000_000, 3_000_000, false);
        adjudicator.settle(e);
        note("settle, both, first ever of the vault");
    }

    function test_settle_close() external {
        Pair memory p = ready("alice");
        settled(twin(p));
        SettleEntry memory e = settlement(p, address(dollar), 1, DEPOSIT + 5, DEPOSIT - 5, true);
        adjudicator.settle(e);
        note("settle and close, both");
    }

    function closing(Pair memory p) private {
        vm.prank(p.terms.member);
        adjudicator.startClose(p.terms, address(dollar), 0, 0, "");
    }

    function test_close() external {
        Pair memory p = ready("alice");
        closing(p);
        note("startClose by a payout account");
    }

    function test_close_signed() external {
        Pair memory p = ready("alice");
        bytes memory s = closeRequest(p, p.memberKey, address(dollar), START + 100);
        adjudicator.startClose(p.terms, address(dollar), START + 100, SIDE_MEMBER, s);
        note("startClose by a signed request");
    }

    function test_respond_first() external {
        Pair memory p = ready("alice");
        closing(p);
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), 7_000_000));
        adjudicator.respond(p.terms, address(dollar), e);
        note("respond, one voucher, first");
        e = hubSaid(hubVoucher(p, address(dollar), 8_000_000));
        adjudicator.respond(p.terms, address(dollar), e);
        note("respond, one voucher, later");
    }

    function test_respond_batched() external {
        Pair memory p = ready("alice");
        closing(p);
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), 7_000_000));
        bytes32[] memory path = new bytes32[](10);
        for (uint256 i = 0; i < 10; ++i) path[i] = keccak256(abi.encode(i));
        e.hubVouchers[0].proof = batchedBy(p.hubKey, 9, voucherDigest(p, address(dollar), SIDE_HUB, e.hubVouchers[0]), path);
        adjudicator.respond(p.terms, address(dollar), e);
        note("respond, one batched voucher (path of 10), first");
    }

    function test_respond_both() external {
        Pair memory p = ready("alice");
        closing(p);
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), 7_000_000));
        e.memberVouchers = memberSaid(memberVoucher(p, address(dollar), 0, 9_000_000)).memberVouchers;
        adjudicator.respond(p.terms, address(dollar), e);
        note("respond, both directions, first");
    }

    function test_finalize() external {
        Pair memory p = ready("alice");
        settled(twin(p));
        closing(p);
        adjudicator.respond(p.terms, address(dollar), hubSaid(hubVoucher(p, address(dollar), 7_000_000)));
        vm.warp(START + PERIOD);
        adjudicator.finalize(p.terms, address(dollar));
        note("finalize, pays both");
    }

    function test_claim() external {
        Pair memory p = ready("alice");
        settled(p);
        adjudicator.claim(adjudicator.vaultOf(p.id), address(dollar), hub);
        note("claim");
    }

    // ---------------------------------------------------------------- batches

    /// Open channels, sorted by vault.
    function many(uint256 count) private returns (Pair[] memory pairs) {
        pairs = new Pair[](count);
        uint256 made;
        for (uint256 i = 0; made < count; ++i) {
            string memory name = string.concat("m", vm.toString(i));
            // A quarter of them in each vault.
            if (uint256(newPair(name).id) % SHARDS != made * SHARDS / count) continue;
            pairs[made++] = ready(name);
        }
    }

    function startedMany(Pair[] memory pairs) private returns (uint256) {
        CloseEntry[] memory entries = new CloseEntry[](pairs.length);
        for (uint256 i = 0; i < pairs.length; ++i) {
            entries[i] = CloseEntry(pairs[i].terms, address(dollar), 0, 0, "");
        }
        vm.prank(hub);
        adjudicator.startCloseMany(entries);
        return vm.lastCallGas().gasTotalUsed;
    }

    function finalizedMany(Pair[] memory pairs) private returns (uint256) {
        FinalizeEntry[] memory entries = new FinalizeEntry[](pairs.length);
        for (uint256 i = 0; i < pairs.length; ++i) entries[i] = FinalizeEntry(pairs[i].terms, address(dollar));
        adjudicator.finalizeMany(entries);
        return vm.lastCallGas().gasTotalUsed;
    }

    function respondedMany(Pair[] memory pairs) private returns (uint256) {
        RespondEntry[] memory entries = new RespondEntry[](pairs.length);
        for (uint256 i = 0; i < pairs.length; ++i) {
            entries[i] = RespondEntry(pairs[i].terms, address(dollar), hubSaid(hubVoucher(pairs[i], address(dollar), 7_000_000)));
        }
        adjudicator.respondMany(entries);
        return vm.lastCallGas().gasTotalUsed;
    }

    function settledMany(Pair[] memory pairs, bool close) private returns (uint256) {
        SettleEntry[] memory entries = new SettleEntry[](pairs.length);
        for (uint256 i = 0; i < pairs.length; ++i) {
            entries[i] = settlement(pairs[i], address(dollar), 1, close ? DEPOSIT + 5 : 5, close ? DEPOSIT - 5 : 5, close);
        }
        adjudicator.settleMany(entries);
        return vm.lastCallGas().gasTotalUsed;
    }

    function fundedMany(Pair[] memory pairs) private returns (uint256) {
        FundEntry[] memory entries = new FundEntry[](pairs.length);
        for (uint256 i = 0; i < pairs.length; ++i) {
            entries[i] = FundEntry(pairs[i].terms, address(dollar), SIDE_HUB, 1_000);
        }
        dollar.mint(hub, 1_000 * pairs.length);
        vm.prank(hub);
        adjudicator.fundMany(entries);
        return vm.lastCallGas().gasTotalUsed;
    }

    function further(string memory name, uint256 all) private {
        // A hundred less the one that pays for the transaction itself: what each of them costs on top of the frame.
        vm.snapshotValue("gas", name, all / 100);
    }

    function test_batch_closings() external {
        Pair[] memory pairs = many(100);
        further("batch of 100, fund, each", fundedMany(pairs));
        further("batch of 100, settle, each", settledMany(pairs, false));
        further("batch of 100, startClose, each", startedMany(pairs));
        further("batch of 100, respond, each", respondedMany(pairs));
        vm.warp(START + PERIOD);
        further("batch of 100, finalize, each", finalizedMany(pairs));
    }

    function test_batch_settle_close() external {
        further("batch of 100, settle and close, each", settledMany(many(100), true));
    }

    function batchedBy(uint256 key, uint64 flush, bytes32 digest, bytes32[] memory path) private view returns (Proof memory proof) {
        proof = batched(key, flush, digest, path[0]);
        proof.path = path;
        proof.signature = signature(key, adjudicator.batchDigest(Batch(flush, adjudicator.batchRoot(digest, path))));
    }
}
