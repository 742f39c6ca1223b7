// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAdjudicator} from "../IAdjudicator.sol";
import {
    Account,
    CloseEntry,
    Evidence,
    FinalizeEntry,
    FundEntry,
    Funding,
    NATIVE,
    OpenEntry,
    RespondEntry,
    SettleEntry,
    SIDE_HUB,
    SIDE_MEMBER,
    VoucherEvidence
} from "../Types.sol";
import {Mood, MoodyReceiver, MoodyToken} from "./Hostile.sol";
import {vm, Vm} from "./Vm.sol";
import {Pair, World} from "./World.sol";

/// @title The rules, one fact a test
contract RulesTest is World {
    bytes32 private constant ORDER = bytes32(uint256(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141));

    function closing(Pair memory p) private {
        vm.prank(p.terms.member);
        adjudicator.startClose(p.terms, address(dollar), 0, 0, "");
    }

    function finalized(Pair memory p) private {
        vm.warp(START + 2 * PERIOD);
        adjudicator.finalize(p.terms, address(dollar));
    }

    /// The next call must revert with exactly this error.
    function refused(bytes memory reason) private {
        vm.expectRevert(reason);
    }

    function final_(Pair memory p) private view returns (bytes memory) {
        return abi.encodeWithSelector(IAdjudicator.AccountFinal.selector, p.id, address(dollar));
    }

    // ---------------------------------------------------------------- published audit findings of comparable systems

    /// Finding: version 0 stood for "nothing yet", so a state of version 0 made a deposit out of nothing.
    function test_a_sequence_of_zero_is_refused_and_moves_nothing() external {
        Pair memory p = opened("alice", 100, 100);
        SettleEntry memory e = settlement(p, address(dollar), 0, 50, 50, false);
        refused(abi.encodeWithSelector(IAdjudicator.StaleSequence.selector, 0, 0));
        adjudicator.settle(e);
        same(books(p).memberWithdrawn + books(p).hubWithdrawn, 0, "withdrawn");
    }

    /// Finding: finalising dropped the marker of the close, and the account could be used again.
    function test_a_finalised_account_is_final_for_every_call() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        finalized(p);
        same(books(p).status, 2, "status");
        SettleEntry memory e = settlement(p, address(dollar), 9, 100, 100, true);
        Evidence memory evidence = hubSaid(hubVoucher(p, address(dollar), 50));
        provide(p.terms.member, 100);
        refused(final_(p));
        adjudicator.settle(e);
        refused(final_(p));
        adjudicator.respond(p.terms, address(dollar), evidence);
        refused(final_(p));
        adjudicator.finalize(p.terms, address(dollar));
        refused(final_(p));
        vm.prank(p.terms.member);
        adjudicator.startClose(p.terms, address(dollar), 0, 0, "");
        refused(final_(p));
        vm.prank(p.terms.member);
        adjudicator.deposit(p.terms, address(dollar), SIDE_MEMBER, 100, byCaller());
        refused(final_(p));
        vm.prank(p.terms.member);
        adjudicator.open(p.terms, "", address(dollar), 100, byCaller());
        same(books(p).status, 2, "status");
    }

    /// Finding: the token could be changed between two states of a channel.
    function test_what_was_signed_for_one_asset_proves_nothing_for_another() external {
        Pair memory p = opened("alice", 100, 100);
        vm.deal(p.terms.member, 100);
        vm.prank(p.terms.member);
        adjudicator.open{value: 100}(p.terms, "", NATIVE, 100, byCaller());
        vm.prank(p.terms.member);
        adjudicator.startClose(p.terms, NATIVE, 0, 0, "");

        Evidence memory forDollars = hubSaid(hubVoucher(p, address(dollar), 50));
        bytes32 wrong = voucherDigest(p, NATIVE, SIDE_HUB, forDollars.hubVouchers[0]);
        refused(abi.encodeWithSelector(IAdjudicator.BadSignature.selector, SIDE_HUB, wrong));
        adjudicator.respond(p.terms, NATIVE, forDollars);

        SettleEntry memory e = settlement(p, address(dollar), 1, 0, 100, false);
        e.asset = NATIVE;
        so(!succeeds(abi.encodeCall(IAdjudicator.settle, (e))), "a settlement of another asset");
        same(adjudicator.books(p.id, NATIVE).hubWithdrawn, 0, "withdrawn");
    }

    /// Finding: transitions that go below zero or above the type's largest number.
    function test_claims_beyond_every_deposit_saturate_and_never_revert() external {
        uint128 max = type(uint128).max;
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), max));
        e.memberVouchers = new VoucherEvidence[](2);
        e.memberVouchers[0] = memberVoucher(p, address(dollar), 0, max);
        e.memberVouchers[1] = memberVoucher(p, address(dollar), 63, max);
        adjudicator.respond(p.terms, address(dollar), e);
        same(books(p).memberPaid, max, "the sum of the lanes saturates");
        finalized(p);
        // Both say they paid everything there is: net as deposited.
        same(books(p).memberWithdrawn, 100, "member");
        same(books(p).hubWithdrawn, 100, "hub");
    }

    /// Finding: co-signing a state during a dispute started its clock again.
    function test_a_settlement_while_closing_keeps_the_deadline() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        uint64 deadline = books(p).deadline;
        vm.warp(START + PERIOD / 2);
        adjudicator.settle(settlement(p, address(dollar), 1, 10, 10, false));
        same(books(p).deadline, deadline, "deadline");
        same(books(p).status, 1, "status");
        refused(abi.encodeWithSelector(IAdjudicator.AccountClosing.selector, p.id, address(dollar), deadline));
        vm.prank(p.terms.member);
        adjudicator.startClose(p.terms, address(dollar), 0, 0, "");
        vm.warp(deadline);
        SettleEntry memory late = settlement(p, address(dollar), 2, 20, 20, false);
        refused(abi.encodeWithSelector(IAdjudicator.ChallengeOver.selector, deadline, deadline));
        adjudicator.settle(late);
        adjudicator.finalize(p.terms, address(dollar));
        same(books(p).memberWithdrawn, 100, "member");
    }

    /// Finding: a session key registered twice acted for both registrations.
    function test_one_key_in_two_channels_signs_for_one_of_them() external {
        Pair memory a = opened("alice", 100, 100);
        Pair memory b = newPair("alice again");
        (b.memberKey, b.memberAccountKey, b.terms.memberKey, b.terms.member) =
            (a.memberKey, a.memberAccountKey, a.terms.memberKey, a.terms.member);
        b.id = adjudicator.channelIdOf(b.terms);
        provide(a.terms.member, 100);
        vm.prank(b.terms.member);
        adjudicator.open(b.terms, "", address(dollar), 100, byCaller());
        closing(b);
        Evidence memory e = hubSaid(hubVoucher(a, address(dollar), 50));
        so(
            !succeeds(abi.encodeCall(IAdjudicator.respond, (b.terms, address(dollar), e))),
            "a voucher of the other channel"
        );
        SettleEntry memory s = settlement(a, address(dollar), 1, 0, 100, false);
        s.terms = b.terms;
        so(!succeeds(abi.encodeCall(IAdjudicator.settle, (s))), "a settlement of the other channel");
        bytes memory request = closeRequest(a, a.memberKey, address(dollar), START + 1);
        so(
            !succeeds(
                abi.encodeCall(IAdjudicator.startClose, (b.terms, address(dollar), START + 1, SIDE_MEMBER, request))
            ),
            "a request of the other channel"
        );
    }

    /// Finding: a limit of zero crashed a listing. Here lists are batches, and an empty one does nothing.
    function test_an_empty_batch_does_nothing() external {
        adjudicator.openMany(new OpenEntry[](0));
        adjudicator.fundMany(new FundEntry[](0));
        adjudicator.settleMany(new SettleEntry[](0));
        adjudicator.startCloseMany(new CloseEntry[](0));
        adjudicator.respondMany(new RespondEntry[](0));
        adjudicator.finalizeMany(new FinalizeEntry[](0));
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        Evidence memory nothing;
        refused(abi.encodeWithSelector(IAdjudicator.NothingRaised.selector, 0, 0));
        adjudicator.respond(p.terms, address(dollar), nothing);
    }

    /// Finding: frames without a limit. Here: lanes, paths and chains.
    function test_evidence_is_bounded() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        Evidence memory e = memberSaid(memberVoucher(p, address(dollar), 64, 1));
        refused(abi.encodeWithSelector(IAdjudicator.LaneOutOfRange.selector, SIDE_MEMBER, 64));
        adjudicator.respond(p.terms, address(dollar), e);
        e = hubSaid(hubVoucher(p, address(dollar), 1));
        e.hubVouchers[0].proof.batched = true;
        e.hubVouchers[0].proof.path = new bytes32[](33);
        refused(abi.encodeWithSelector(IAdjudicator.PathTooLong.selector, 33));
        adjudicator.respond(p.terms, address(dollar), e);
        e = ticked(tickVoucher(p, address(dollar), 0, 0, 1, 3, 1));
        e.memberTicks[0].ticks = 2049;
        refused(abi.encodeWithSelector(IAdjudicator.TicksOutOfRange.selector, 2049, 1));
        adjudicator.respond(p.terms, address(dollar), e);
        e = ticked(tickVoucher(p, address(dollar), 0, 0, 1, 3, 1));
        e.memberTicks[0].index = 4;
        refused(abi.encodeWithSelector(IAdjudicator.TicksOutOfRange.selector, 3, 4));
        adjudicator.respond(p.terms, address(dollar), e);
        e = ticked(tickVoucher(p, address(dollar), 0, type(uint128).max, 1, 3, 1));
        refused(abi.encodeWithSelector(IAdjudicator.TickValueOverflow.selector, uint256(type(uint128).max) + 3));
        adjudicator.respond(p.terms, address(dollar), e);
    }

    /// Finding: a lock was taken after the status had been read. Here a token calls back into every entry point that touches money.
    function test_nothing_is_read_before_the_guard() external {
        MoodyToken token = new MoodyToken();
        Pair memory p = newPair("alice");
        token.mint(p.terms.member, 1_000);
        vm.prank(p.terms.member);
        token.approve(address(adjudicator), 1_000);
        vm.prank(p.terms.member);
        adjudicator.open(p.terms, "", address(token), 100, byCaller());
        SettleEntry memory s = settlement(p, address(token), 1, 60, 0, false);
        bytes[8] memory calls = [
            abi.encodeCall(IAdjudicator.settle, (s)),
            abi.encodeCall(IAdjudicator.deposit, (p.terms, address(token), SIDE_MEMBER, 1, byCaller())),
            abi.encodeCall(IAdjudicator.open, (p.terms, "", address(token), 1, byCaller())),
            abi.encodeCall(IAdjudicator.fundMany, (new FundEntry[](0))),
            abi.encodeCall(IAdjudicator.claim, (adjudicator.vaultOf(p.id), address(token), hub)),
            abi.encodeCall(IAdjudicator.finalize, (p.terms, address(token))),
            abi.encodeCall(IAdjudicator.settleMany, (new SettleEntry[](0))),
            abi.encodeCall(IAdjudicator.startClose, (p.terms, address(token), 0, 0, ""))
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            token.set(Mood.Reenters, address(adjudicator), calls[i]);
            vm.prank(p.terms.member);
            adjudicator.deposit(p.terms, address(token), SIDE_MEMBER, 10, byCaller());
            same(token.reentered(), 0, "callbacks that got through");
            same(adjudicator.books(p.id, address(token)).memberDeposit, 110 + 10 * i, "credited once");
        }
        adjudicator.settle(s);
        same(token.reentered(), 0, "callbacks that got through");
        same(token.balanceOf(p.terms.member), 1_000 - 180 + 60, "paid once");
    }

    /// Finding: an event carried the caller's state and not the stored one.
    function test_events_tell_what_is_stored() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        adjudicator.respond(p.terms, address(dollar), hubSaid(hubVoucher(p, address(dollar), 50)));
        // Lower hub evidence in a call that raises the member's: the event says 50 still.
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), 40));
        e.memberVouchers = memberSaid(memberVoucher(p, address(dollar), 3, 20)).memberVouchers;
        vm.expectEmit(address(adjudicator));
        emit IAdjudicator.Proven(p.id, address(dollar), 20, 50);
        adjudicator.respond(p.terms, address(dollar), e);
        Account memory account = books(p);
        same(account.memberPaid, 20, "member");
        same(account.hubPaid, 50, "hub");
        provide(hub, 1);
        Pair memory other = opened("bob", 5, 0);
        vm.expectEmit(address(adjudicator));
        emit IAdjudicator.Deposited(other.id, address(dollar), SIDE_HUB, 1, 1);
        vm.prank(hub);
        adjudicator.deposit(other.terms, address(dollar), SIDE_HUB, 1, byCaller());
    }

    // ---------------------------------------------------------------- opening

    function test_a_channel_in_bobs_name_needs_bob() external {
        Pair memory p = newPair("bob");
        provide(address(this), 100);
        dollar.approve(address(adjudicator), 100);
        refused(abi.encodeWithSelector(IAdjudicator.NotConsented.selector, p.id, p.terms.member));
        adjudicator.open(p.terms, "", address(dollar), 100, byCaller());
        refused(abi.encodeWithSelector(IAdjudicator.NotConsented.selector, p.id, p.terms.member));
        adjudicator.open(p.terms, signature(HUB_KEY, p.id), address(dollar), 100, byCaller());
        adjudicator.open(p.terms, signature(p.memberAccountKey, p.id), address(dollar), 100, byCaller());
        same(books(p).memberDeposit, 100, "deposit");
        so(adjudicator.channel(p.id), "open");
    }

    /// The mark of an open channel lies in its home account, and every asset sees it there.
    function test_an_open_channel_takes_any_asset_whichever_it_was_opened_with() external {
        MoodyToken token = new MoodyToken();
        address[3] memory assets = [address(dollar), address(token), NATIVE];
        token.mint(address(this), 1_000);
        token.approve(address(adjudicator), 1_000);
        provide(address(this), 1_000);
        dollar.approve(address(adjudicator), 1_000);
        vm.deal(address(this), 1_000);
        for (uint256 first = 0; first < 3; ++first) {
            for (uint128 amount = 0; amount < 8; amount += 7) {
                Pair memory p = newPair(string.concat("m", vm.toString(first), vm.toString(amount)));
                bytes memory consent = signature(p.memberAccountKey, p.id);
                for (uint256 i = 0; i < 3; ++i) {
                    refused(abi.encodeWithSelector(IAdjudicator.NotOpened.selector, p.id));
                    adjudicator.deposit{value: assets[i] == NATIVE ? 1 : 0}(p.terms, assets[i], SIDE_HUB, 1, byCaller());
                }
                adjudicator.open{value: assets[first] == NATIVE ? amount : 0}(
                    p.terms, consent, assets[first], amount, byCaller()
                );
                so(adjudicator.channel(p.id), "open");
                for (uint256 i = 0; i < 3; ++i) {
                    adjudicator.deposit{value: assets[i] == NATIVE ? 1 : 0}(p.terms, assets[i], SIDE_HUB, 1, byCaller());
                    Account memory account = adjudicator.books(p.id, assets[i]);
                    same(account.hubDeposit, 1, "hub");
                    same(account.memberDeposit, i == first ? amount : 0, "member");
                }
                so(adjudicator.channel(p.id), "still open");
            }
        }
    }

    function test_a_batch_of_openings_skips_what_open_refuses() external {
        OpenEntry[] memory entries = new OpenEntry[](4);
        Pair[4] memory p = [newPair("a"), newPair("b"), newPair("c"), newPair("d")];
        provide(address(this), 1_000);
        dollar.approve(address(adjudicator), 1_000);
        for (uint256 i = 0; i < 4; ++i) {
            entries[i] = OpenEntry(p[i].terms, signature(p[i].memberAccountKey, p[i].id), address(dollar), 100, byCaller());
        }
        entries[1].consent = signature(HUB_KEY, p[1].id);
        (entries[3].asset, entries[3].amount) = (NATIVE, 0);
        vm.recordLogs();
        adjudicator.openMany(entries);
        same(refusals(), 1, "refusals");
        same(books(p[0]).memberDeposit, 100, "first");
        so(!adjudicator.channel(p[1].id), "not consented");
        same(books(p[2]).memberDeposit, 100, "third");
        so(adjudicator.channel(p[3].id), "opened without money");
        same(dollar.balanceOf(address(this)), 800, "the caller paid");

        // A batch carries no coins, whatever its entries say.
        (entries[1].consent, entries[1].asset) = (signature(p[1].memberAccountKey, p[1].id), NATIVE);
        vm.recordLogs();
        adjudicator.openMany(entries);
        so(!adjudicator.channel(p[1].id), "nothing to pay with");
    }

    /// Entries that a gas limit was too small for are never skipped in silence.
    function test_a_batch_short_of_gas_fails_as_a_whole() external {
        Pair memory p = newPair("a");
        OpenEntry[] memory entries = new OpenEntry[](1);
        provide(address(this), 100);
        dollar.approve(address(adjudicator), 100);
        entries[0] = OpenEntry(p.terms, signature(p.memberAccountKey, p.id), address(dollar), 100, byCaller());
        bytes memory call = abi.encodeCall(IAdjudicator.openMany, (entries));
        uint256 gasLimit = 5_000;
        bool done;
        while (!done) {
            (done,) = address(adjudicator).call{gas: gasLimit}(call);
            if (done) break;
            so(!adjudicator.channel(p.id), "nothing done");
            gasLimit += 1_000;
        }
        so(adjudicator.channel(p.id), "the smallest limit that succeeds does it all");
    }

    /// EIP-7825: a transaction may take 2^24 gas.
    function test_a_deployment_with_the_most_vaults_fits_one_transaction() external {
        bytes memory arguments = abi.encode(uint32(1 hours), uint32(30 days), uint16(128), address(dollar));
        uint256 creationBytes = vm.parseJsonBytes(vm.readFile("artifacts/Adjudicator.json"), ".bytecode").length;
        uint256 gasBefore = gasleft();
        deploy("Adjudicator", arguments);
        // The transaction, the creation (which this call pays too), and every byte of calldata as if it were not zero.
        uint256 gasUsed = gasBefore - gasleft() + 21_000 + 16 * (creationBytes + arguments.length);
        so(gasUsed < 1 << 24, vm.toString(gasUsed));
    }

    // ---------------------------------------------------------------- disputes

    function test_withdrawn_beyond_deposit_still_finalizes() external {
        Pair memory p = opened("alice", 100, 100);
        adjudicator.settle(settlement(p, address(dollar), 1, 180, 0, false));
        closing(p);
        finalized(p);
        same(books(p).memberWithdrawn, 180, "no more for the member");
        same(books(p).hubWithdrawn, 20, "the rest is the hub's");
    }

    function test_evidence_counts_before_the_deadline_only() external {
        Pair memory p = opened("alice", 100, 100);
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), 30));
        refused(abi.encodeWithSelector(IAdjudicator.AccountNotClosing.selector, p.id, address(dollar)));
        adjudicator.respond(p.terms, address(dollar), e);
        closing(p);
        uint64 deadline = books(p).deadline;
        same(deadline, START + PERIOD, "fixed by the terms");
        vm.warp(deadline - 1);
        refused(abi.encodeWithSelector(IAdjudicator.ChallengeRunning.selector, deadline, deadline - 1));
        adjudicator.finalize(p.terms, address(dollar));
        adjudicator.respond(p.terms, address(dollar), e);
        e = hubSaid(hubVoucher(p, address(dollar), 31));
        vm.warp(deadline);
        refused(abi.encodeWithSelector(IAdjudicator.ChallengeOver.selector, deadline, deadline));
        adjudicator.respond(p.terms, address(dollar), e);
        adjudicator.finalize(p.terms, address(dollar));
        same(dollar.balanceOf(p.terms.member), 130, "what was shown in time");
    }

    function test_receipt_and_later_voucher_count_once() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), 30));
        e.hubReceipts = receipted(hubReceipt(p, address(dollar), 4, 20)).hubReceipts;
        adjudicator.respond(p.terms, address(dollar), e);
        same(books(p).hubPaid, 30, "the larger one");
        adjudicator.respond(p.terms, address(dollar), receipted(hubReceipt(p, address(dollar), 5, 35)));
        same(books(p).hubPaid, 35, "not added up");
        e = receipted(hubReceipt(p, address(dollar), 4, 20));
        refused(abi.encodeWithSelector(IAdjudicator.NothingRaised.selector, 0, 35));
        adjudicator.respond(p.terms, address(dollar), e);
    }

    function test_a_withheld_credit_is_paid_by_its_receipt() external {
        Pair memory p = opened("alice", 0 + 1, 100);
        closing(p);
        adjudicator.respond(p.terms, address(dollar), receipted(hubReceipt(p, address(dollar), 1, 60)));
        finalized(p);
        same(dollar.balanceOf(p.terms.member), 61, "the payee has it");
    }

    function test_tick_and_plain_of_one_lane_count_once() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        Evidence memory e = ticked(tickVoucher(p, address(dollar), 7, 10, 2, 20, 5));
        adjudicator.respond(p.terms, address(dollar), e);
        same(books(p).memberPaid, 20, "10 and five ticks of 2");
        e.memberVouchers = memberSaid(memberVoucher(p, address(dollar), 7, 15)).memberVouchers;
        refused(abi.encodeWithSelector(IAdjudicator.LaneRepeated.selector, 7));
        adjudicator.respond(p.terms, address(dollar), e);
        e = ticked(tickVoucher(p, address(dollar), 7, 10, 2, 20, 6));
        e.memberTicks[0].index = 7;
        refused(abi.encodeWithSelector(IAdjudicator.WrongPreimage.selector, e.memberTicks[0].anchor, 7));
        adjudicator.respond(p.terms, address(dollar), e);
    }

    function test_each_direction_counts_on_its_own() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        Evidence memory e = memberSaid(memberVoucher(p, address(dollar), 64, 30));
        e.hubVouchers = hubSaid(hubVoucher(p, address(dollar), 40)).hubVouchers;
        adjudicator.respond(p.terms, address(dollar), e);
        same(books(p).memberPaid, 0, "a faulty list proves nothing");
        same(books(p).hubPaid, 40, "the other counts");
    }

    function test_members_sign_no_batches_and_number_no_credits() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        Evidence memory e = memberSaid(memberVoucher(p, address(dollar), 5, 30));
        bytes32 digest = voucherDigest(p, address(dollar), SIDE_MEMBER, e.memberVouchers[0]);
        e.memberVouchers[0].proof = batched(p.memberKey, 1, digest, keccak256("sibling"));
        refused(abi.encodeWithSelector(IAdjudicator.BatchByMember.selector, 5));
        adjudicator.respond(p.terms, address(dollar), e);
        e = memberSaid(memberVoucher(p, address(dollar), 5, 30));
        e.memberVouchers[0].credits = 1;
        refused(abi.encodeWithSelector(IAdjudicator.CreditsNotZero.selector, 1));
        adjudicator.respond(p.terms, address(dollar), e);
        e = hubSaid(hubVoucher(p, address(dollar), 30));
        e.hubVouchers[0].lane = 1;
        refused(abi.encodeWithSelector(IAdjudicator.LaneOutOfRange.selector, SIDE_HUB, 1));
        adjudicator.respond(p.terms, address(dollar), e);
    }

    /// Bits outside of a field's type never pass: neither into the books nor into a digest that only a contract could have made.
    function test_bits_outside_of_a_field_are_refused() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        bytes memory good = abi.encodeCall(
            IAdjudicator.respond, (p.terms, address(dollar), receipted(hubReceipt(p, address(dollar), 1, 60)))
        );
        // Word by word of the receipt: credit, amount, total.
        uint256 found;
        for (uint256 i = 4 + 32 * 10; i + 32 <= good.length; i += 32) {
            bytes32 word;
            assembly ("memory-safe") {
                word := mload(add(add(good, 0x20), i))
            }
            if (word == keccak256("payments")) found = i;
        }
        for (uint256 i = 1; i <= 3; ++i) {
            bytes memory dirty = bytes.concat(good);
            dirty[found - 32 * i] = 0x01;
            so(!succeeds(dirty), "dirty bits");
        }
        so(succeeds(good), "clean bits");
    }

    function test_signatures_are_exact() external {
        Pair memory p = opened("alice", 100, 100);
        closing(p);
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), 30));
        bytes32 digest = voucherDigest(p, address(dollar), SIDE_HUB, e.hubVouchers[0]);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(p.hubKey, digest);
        bytes[6] memory wrong = [
            abi.encodePacked(r, bytes32(uint256(ORDER) - uint256(s)), v == 27 ? uint8(28) : uint8(27)),
            abi.encodePacked(r, s, v == 27 ? uint8(28) : uint8(27)),
            abi.encodePacked(r, s, uint8(29)),
            abi.encodePacked(bytes32(0), s, v),
            abi.encodePacked(r, s, v, uint8(0)),
            abi.encodePacked(r, s)
        ];
        for (uint256 i = 0; i < wrong.length; ++i) {
            e.hubVouchers[0].proof.signature = wrong[i];
            refused(abi.encodeWithSelector(IAdjudicator.BadSignature.selector, SIDE_HUB, digest));
            adjudicator.respond(p.terms, address(dollar), e);
        }
        e.hubVouchers[0].proof.signature = abi.encodePacked(r, s, v);
        adjudicator.respond(p.terms, address(dollar), e);
    }

    function test_dust_deposit_cannot_block_or_burn_a_close() external {
        Pair memory p = opened("alice", 100, 100);
        SettleEntry memory e = settlement(p, address(dollar), 1, 150, 50, true);
        provide(address(this), 1);
        dollar.approve(address(adjudicator), 1);
        adjudicator.deposit(p.terms, address(dollar), SIDE_HUB, 1, byCaller());
        adjudicator.settle(e);
        same(books(p).status, 0, "a rest is left");
        same(dollar.balanceOf(p.terms.member), 150, "paid all the same");
        adjudicator.settle(settlement(p, address(dollar), 2, 150, 51, true));
        same(books(p).status, 2, "closed");
    }

    // ---------------------------------------------------------------- money

    function test_claim_never_crosses_vaults() external {
        Pair memory p = opened("alice", 100, 100);
        adjudicator.settle(settlement(p, address(dollar), 1, 0, 80, false));
        address vault = adjudicator.vaultOf(p.id);
        for (uint256 i = 0; i < SHARDS; ++i) {
            address other = adjudicator.vaultOf(bytes32(i));
            if (other == vault) continue;
            refused(abi.encodeWithSelector(IAdjudicator.NothingToClaim.selector, other, address(dollar), hub));
            adjudicator.claim(other, address(dollar), hub);
        }
        adjudicator.claim(vault, address(dollar), hub);
        same(dollar.balanceOf(hub), 80, "hub");
        same(dollar.balanceOf(vault), 120, "vault");
    }

    function test_a_vault_obeys_its_adjudicator_alone() external {
        Pair memory p = opened("alice", 100, 100);
        address vault = adjudicator.vaultOf(p.id);
        bytes memory transfer = abi.encodeCall(dollar.transfer, (address(this), 1));
        bytes memory order = abi.encodePacked(uint256(uint160(address(dollar))), uint256(0), transfer);
        refused(abi.encodeWithSignature("NotAnOrder(address)", address(this)));
        (bool ignored,) = vault.call(order);
        ignored;
        vm.deal(address(this), 5);
        (bool taken,) = vault.call{value: 5}("");
        so(taken, "coins are welcome");
        vm.prank(address(adjudicator));
        (bool done,) = vault.call(order);
        so(done, "orders of the adjudicator");
        same(dollar.balanceOf(address(this)), 1, "carried out");
    }

    /// The adjudicator calls whatever token or account it is told to, and somebody tells it to call a vault.
    function test_no_call_to_a_token_or_account_is_an_order_to_a_vault() external {
        Pair memory rich = opened("rich", 100, 100);
        address vault = adjudicator.vaultOf(rich.id);
        vm.deal(vault, 1_000);
        Pair memory p = newPair("thief");
        bytes memory consent = signature(p.memberAccountKey, p.id);
        // A vault as the token: paid by the caller, by authorisation, in a batch; and as the account whose consent is asked for.
        so(!succeeds(abi.encodeCall(IAdjudicator.open, (p.terms, consent, vault, 1, byCaller()))), "allowance");
        Funding memory authorized = byAuthorization(p, dollar, SIDE_MEMBER, 1);
        so(!succeeds(abi.encodeCall(IAdjudicator.open, (p.terms, consent, vault, 1, authorized))), "authorisation");
        so(!succeeds(abi.encodeCall(IAdjudicator.open, (p.terms, "", vault, 1, authorized))), "consent by authorisation");
        adjudicator.open(p.terms, consent, NATIVE, 0, byCaller());
        FundEntry[] memory entries = new FundEntry[](1);
        entries[0] = FundEntry(p.terms, vault, SIDE_MEMBER, 1);
        vm.recordLogs();
        adjudicator.fundMany(entries);
        same(refusals(), 1, "the entry is refused");
        p.terms.member = vault;
        so(!succeeds(abi.encodeCall(IAdjudicator.open, (p.terms, consent, NATIVE, 0, byCaller()))), "a vault consents to nothing");
        bytes[4] memory calls = [
            abi.encodeCall(dollar.balanceOf, (vault)),
            abi.encodeCall(dollar.transferFrom, (address(this), vault, 1)),
            abi.encodeCall(dollar.DOMAIN_SEPARATOR, ()),
            abi.encodeWithSignature("isValidSignature(bytes32,bytes)", p.id, consent)
        ];
        for (uint256 i = 0; i < calls.length; ++i) {
            vm.prank(address(adjudicator));
            (bool done, bytes memory reason) = vault.call(calls[i]);
            so(!done && bytes4(reason) == bytes4(keccak256("NotAnOrder(address)")), "no order");
        }
        same(dollar.balanceOf(vault), 200, "the dollars are there");
        same(vault.balance, 1_000, "the coins are there");
    }

    /// What cannot be sent becomes claimable, whatever token or receiver do, and the other party is paid.
    function test_payouts_never_block() external {
        Mood[8] memory moods =
            [Mood.Honest, Mood.Fee, Mood.False, Mood.Silent, Mood.Reverts, Mood.Burns, Mood.Floods, Mood.Reenters];
        for (uint256 i = 0; i < moods.length; ++i) {
            MoodyToken token = new MoodyToken();
            Pair memory p = newPair(string.concat("m", vm.toString(i)));
            token.mint(p.terms.member, 100);
            vm.prank(p.terms.member);
            token.approve(address(adjudicator), 100);
            vm.prank(p.terms.member);
            adjudicator.open(p.terms, "", address(token), 100, byCaller());
            SettleEntry memory e = settlement(p, address(token), 1, 60, 40, true);
            token.set(moods[i], address(adjudicator), abi.encodeCall(IAdjudicator.settle, (e)));
            adjudicator.settle{gas: 3_000_000}(e);
            same(adjudicator.books(p.id, address(token)).status, 2, "closed");
            same(owed(p, address(token), hub), 40, "the hub's part waits");
            bool sent = moods[i] == Mood.Honest || moods[i] == Mood.Fee || moods[i] == Mood.Silent
                || moods[i] == Mood.Reenters;
            same(owed(p, address(token), p.terms.member), sent ? 0 : 60, "what could not be sent waits");
            token.set(Mood.Honest, address(0), "");
            if (!sent) adjudicator.claim(adjudicator.vaultOf(p.id), address(token), p.terms.member);
            so(token.balanceOf(p.terms.member) >= 59, "in the end he has it");
        }
    }

    function test_a_receiver_of_coins_cannot_block_either() external {
        Mood[5] memory moods = [Mood.Honest, Mood.Reverts, Mood.Burns, Mood.Floods, Mood.Reenters];
        for (uint256 i = 0; i < moods.length; ++i) {
            MoodyReceiver receiver = new MoodyReceiver();
            Pair memory p = newPair(string.concat("m", vm.toString(i)));
            p.terms.member = address(receiver);
            p.id = adjudicator.channelIdOf(p.terms);
            vm.deal(address(receiver), 100);
            vm.prank(address(receiver));
            adjudicator.open{value: 100}(p.terms, "", NATIVE, 100, byCaller());
            receiver.set(
                moods[i], address(adjudicator), abi.encodeCall(IAdjudicator.claim, (adjudicator.vaultOf(p.id), NATIVE, hub))
            );
            adjudicator.settle(settlement(p, NATIVE, 1, 60, 40, true));
            same(receiver.reentered(), 0, "callbacks that got through");
            bool sent = moods[i] == Mood.Honest || moods[i] == Mood.Reenters;
            same(address(receiver).balance, sent ? 60 : 0, "sent");
            same(owed(p, NATIVE, address(receiver)), sent ? 0 : 60, "owed");
            if (sent) continue;
            address vault = adjudicator.vaultOf(p.id);
            if (moods[i] == Mood.Reverts) {
                refused(abi.encodeWithSelector(IAdjudicator.RefundFailed.selector, address(receiver), 60));
                adjudicator.claim(vault, NATIVE, address(receiver));
            }
            vm.prank(address(receiver));
            adjudicator.claimTo(vault, NATIVE, address(0xbeef));
            same(address(0xbeef).balance, 60, "claimed to another account");
            vm.deal(address(0xbeef), 0);
        }
    }

    function test_native_batch_adds_up() external {
        Pair memory a = opened("alice", 1, 0);
        Pair memory b = opened("bob", 1, 0);
        FundEntry[] memory entries = new FundEntry[](3);
        entries[0] = FundEntry(a.terms, NATIVE, SIDE_HUB, 10);
        entries[1] = FundEntry(b.terms, NATIVE, SIDE_HUB, 20);
        entries[2] = FundEntry(newPair("never opened").terms, NATIVE, SIDE_HUB, 30);
        vm.deal(hub, 100);
        refused(abi.encodeWithSelector(IAdjudicator.NativeAmountMismatch.selector, 59, 60));
        vm.prank(hub);
        adjudicator.fundMany{value: 59}(entries);
        vm.prank(hub);
        adjudicator.fundMany{value: 60}(entries);
        same(hub.balance, 70, "the refused entry's coins came back");
        same(adjudicator.books(a.id, NATIVE).hubDeposit + adjudicator.books(b.id, NATIVE).hubDeposit, 30, "credited");
        same(address(adjudicator).balance, 0, "nothing stays behind");
    }

    /// Deposits of one account sum to 2^128 - 1 at most, those of one batch together too.
    function test_deposits_of_one_batch_cannot_overflow_an_account() external {
        Pair memory p = opened("alice", 1, 0);
        uint128 half = 1 << 127;
        provide(hub, 1 << 128);
        FundEntry[] memory entries = new FundEntry[](3);
        entries[0] = FundEntry(p.terms, address(dollar), SIDE_MEMBER, half);
        entries[1] = FundEntry(p.terms, address(dollar), SIDE_HUB, half);
        entries[2] = FundEntry(p.terms, address(dollar), SIDE_HUB, half - 2);
        vm.expectEmit(address(adjudicator));
        emit IAdjudicator.EntryRefused(
            1, abi.encodeWithSelector(IAdjudicator.DepositsOverflow.selector, (uint256(1) << 128) + 1)
        );
        vm.prank(hub);
        adjudicator.fundMany(entries);
        same(books(p).memberDeposit, half + 1, "member");
        same(books(p).hubDeposit, half - 2, "hub");
        refused(abi.encodeWithSelector(IAdjudicator.DepositsOverflow.selector, uint256(1) << 128));
        vm.prank(hub);
        adjudicator.deposit(p.terms, address(dollar), SIDE_HUB, 1, byCaller());
    }

    /// The hub's parts of a batch are written down once a vault and asset, and add up as if each had been posted alone.
    function test_a_batch_owes_the_hub_what_its_entries_owe() external {
        Pair[6] memory p;
        SettleEntry[] memory entries = new SettleEntry[](6);
        for (uint256 i = 0; i < 6; ++i) {
            p[i] = opened(string.concat("m", vm.toString(i)), 100, 100);
            entries[i] = settlement(p[i], address(dollar), 1, 0, uint128(10 + i), false);
        }
        // One hub of another name among them.
        Pair memory odd = newPair("odd");
        odd.terms.hub = address(0xabc);
        odd.id = adjudicator.channelIdOf(odd.terms);
        provide(odd.terms.member, 100);
        vm.prank(odd.terms.member);
        adjudicator.open(odd.terms, "", address(dollar), 100, byCaller());
        entries[3] = settlement(odd, address(dollar), 1, 0, 77, false);
        adjudicator.settleMany(entries);
        uint256 owedAll;
        for (uint256 i = 0; i < SHARDS; ++i) {
            owedAll += adjudicator.claimable(adjudicator.vaultOf(bytes32(i)), address(dollar), hub);
        }
        same(owedAll, 10 + 11 + 12 + 14 + 15, "the hub's parts");
        same(owed(odd, address(dollar), address(0xabc)), 77, "the other hub's");
    }

    /// Allowances and authorisations pay for what their owner meant, and nothing else.
    function test_allowance_of_a_stranger_is_not_spendable() external {
        Pair memory victim = opened("victim", 100, 0);
        provide(victim.terms.member, 500);
        Pair memory thief = newPair("thief");
        vm.prank(thief.terms.member);
        so(
            !succeeds(abi.encodeCall(IAdjudicator.open, (thief.terms, "", address(dollar), 500, byCaller()))),
            "the payer is the caller"
        );
        bytes memory pull = abi.encodeWithSignature(
            "pullExactly(address,address,address,uint256)",
            address(dollar),
            victim.terms.member,
            adjudicator.vaultOf(thief.id),
            500
        );
        refused(abi.encodeWithSelector(IAdjudicator.OnlySelf.selector, address(this)));
        (bool ignored,) = address(adjudicator).call(pull);
        ignored;
        same(dollar.balanceOf(victim.terms.member), 500, "untouched");
    }

    /// A vault's balance never pays for what was not deposited, in amounts of every width.
    function testFuzz_settle_and_finalize_pay_what_the_books_say(
        uint128 memberDeposit,
        uint128 hubDeposit,
        uint8 narrow,
        uint128 memberSaid_,
        uint128 hubSaid_,
        uint128 withdrawn
    ) external {
        memberDeposit = (memberDeposit >> (narrow % 127)) / 2;
        hubDeposit = (hubDeposit >> (narrow % 127)) / 2;
        if (memberDeposit == 0) memberDeposit = 1;
        memberSaid_ >>= narrow % 100;
        hubSaid_ >>= narrow % 100;
        withdrawn = withdrawn % (memberDeposit + hubDeposit + 1);
        Pair memory p = opened("alice", memberDeposit, hubDeposit);
        adjudicator.settle(settlement(p, address(dollar), 1, withdrawn / 2, withdrawn - withdrawn / 2, false));
        closing(p);
        Evidence memory e = hubSaid(hubVoucher(p, address(dollar), hubSaid_));
        e.memberVouchers = memberSaid(memberVoucher(p, address(dollar), 0, memberSaid_)).memberVouchers;
        if (hubSaid_ | memberSaid_ != 0) adjudicator.respond(p.terms, address(dollar), e);
        finalized(p);

        uint256 custody = uint256(memberDeposit) + hubDeposit - withdrawn;
        int256 net = int256(uint256(memberDeposit)) + int256(uint256(hubSaid_)) - int256(uint256(withdrawn / 2))
            - int256(uint256(memberSaid_));
        uint256 expected = net < 0 ? 0 : uint256(net) > custody ? custody : uint256(net);
        same(dollar.balanceOf(p.terms.member), withdrawn / 2 + expected, "member");
        same(owed(p, address(dollar), hub), withdrawn - withdrawn / 2 + custody - expected, "hub");
        same(dollar.balanceOf(adjudicator.vaultOf(p.id)), owed(p, address(dollar), hub), "vault");
    }

    // ---------------------------------------------------------------- helpers

    function succeeds(bytes memory call) private returns (bool done) {
        (done,) = address(adjudicator).call(call);
    }

    /// Refused entries since `recordLogs`.
    function refusals() private returns (uint256 count) {
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; ++i) {
            if (logs[i].topics[0] == IAdjudicator.EntryRefused.selector) ++count;
        }
    }

    receive() external payable {}
}
