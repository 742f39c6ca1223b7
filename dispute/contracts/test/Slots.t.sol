// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Slots} from "../Slots.sol";

/// @title Whatever form an account is stored in, it is read as it was written
contract SlotsTest {
    using Slots for Slots.Stored;

    Slots.Stored private account;

    /// A number of any width, each about as likely as the others.
    function narrowed(uint256 value, uint256 width, uint256 bits) private pure returns (uint256) {
        return value & ((1 << (width % (bits + 1))) - 1);
    }

    function check(Slots.Totals memory t) private view {
        Slots.Totals memory read;
        account.load(read);
        account.loadPaid(read);
        read.form = t.form;
        require(keccak256(abi.encode(read)) == keccak256(abi.encode(t)), "read as written");
        Slots.Totals memory part;
        account.loadDeposits(part);
        require(
            part.memberDeposit == t.memberDeposit && part.hubDeposit == t.hubDeposit && part.deadline == t.deadline
                && part.opened == t.opened && part.status == t.status,
            "a part is read as written"
        );
    }

    /// An account's life: deposits, settlements, a close, evidence, the end, each step growing some total to any width.
    function testFuzz_an_account_is_read_as_it_was_written(uint256[10] calldata v, uint8[10] calldata w) external {
        Slots.Totals memory t;
        Slots.Totals memory part;
        t.opened = 1;

        account.loadDeposits(part);
        part.opened = 1;
        part.memberDeposit = t.memberDeposit = narrowed(v[0], w[0], 127);
        part.hubDeposit = t.hubDeposit = narrowed(v[1], w[1], 126);
        account.storeDeposits(part);
        check(t);

        part = Slots.none();
        account.load(part);
        part.memberWithdrawn = t.memberWithdrawn = narrowed(v[2], w[2], 127) % (t.memberDeposit + 1);
        part.hubWithdrawn = t.hubWithdrawn = narrowed(v[3], w[3], 127) % (t.hubDeposit + 1);
        part.seq = t.seq = narrowed(v[4], w[4], 64);
        account.store(part);
        check(t);

        part = Slots.none();
        account.loadDeposits(part);
        part.memberDeposit = t.memberDeposit += narrowed(v[5], w[5], 126);
        account.storeDeposits(part);
        check(t);

        part = Slots.none();
        account.loadDeposits(part);
        part.status = t.status = 1;
        part.deadline = t.deadline = narrowed(v[6], w[6], 64);
        account.storeDeposits(part);
        check(t);

        part = Slots.none();
        account.loadDeposits(part);
        account.loadPaid(part);
        part.memberPaid = t.memberPaid = narrowed(v[7], w[7], 128);
        part.hubPaid = t.hubPaid = narrowed(v[8], w[8], 128);
        account.storePaid(part);
        check(t);

        part = Slots.none();
        account.load(part);
        part.seq = t.seq += narrowed(v[9], w[9], 63) % (type(uint64).max - t.seq + 1);
        part.hubWithdrawn = t.hubWithdrawn = t.hubDeposit;
        account.store(part);
        check(t);

        part = Slots.none();
        account.load(part);
        account.loadPaid(part);
        part.status = t.status = 2;
        part.memberWithdrawn = t.memberWithdrawn = t.memberDeposit;
        account.store(part);
        check(t);
    }

    function test_a_small_account_is_one_slot_and_the_mark_is_part_of_it() external {
        Slots.Totals memory t;
        t.opened = 1;
        t.memberDeposit = t.hubDeposit = t.memberWithdrawn = t.hubWithdrawn = t.memberPaid = t.hubPaid = (1 << 34) - 1;
        t.seq = (1 << 15) - 1;
        t.deadline = type(uint32).max;
        t.status = 2;
        account.store(t);
        check(t);
        require(account.withdrawn | account.high | account.paid == 0, "one slot");
        t.seq += 1;
        account.store(t);
        check(t);
        require(account.withdrawn | account.high == 0 && account.paid != 0, "compact: evidence apart");
        t.form = 1;
        t.deadline = 1 << 36;
        account.store(t);
        check(t);
        require(account.withdrawn != 0 && account.high == 0, "wide");
    }
}
