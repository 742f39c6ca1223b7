// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title How an account is stored
/// @dev Amounts are 128 bits wide, but hardly any reaches 2^88 (309 million coins of 18 decimals). So the low 88 bits of two totals share a slot with
/// what is read and written with them, and the high bits go to a slot that is touched only when a flag says that they are not zero. A deposit
/// and the start of a close touch one slot, a settlement reads two and writes one. Totals only grow, so a flag once set stays set.
library Slots {
    uint8 private constant LOW_BITS = 88;

    /// First slot: deposits and where the account stands.
    struct DepositSlot {
        uint88 memberLow;
        uint88 hubLow;
        uint64 deadline;
        uint8 status;
        bool wide;
    }

    /// Second slot: what was paid out and the last settlement's number.
    struct WithdrawnSlot {
        uint88 memberLow;
        uint88 hubLow;
        uint64 seq;
        bool wide;
    }

    /// Third slot: the high bits of the totals above, where a flag says so.
    struct HighSlot {
        uint40 memberDeposit;
        uint40 hubDeposit;
        uint40 memberWithdrawn;
        uint40 hubWithdrawn;
    }

    /// Fourth slot: payments proven by evidence.
    struct Paid {
        uint128 member;
        uint128 hub;
    }

    struct Stored {
        DepositSlot deposit;
        WithdrawnSlot withdrawn;
        HighSlot high;
        Paid paid;
    }

    /// The first slot in full width.
    struct Deposits {
        uint128 member;
        uint128 hub;
        uint64 deadline;
        uint8 status;
    }

    /// The second slot in full width.
    struct Withdrawn {
        uint128 member;
        uint128 hub;
        uint64 seq;
    }

    function readDeposits(Stored storage account) internal view returns (Deposits memory d) {
        DepositSlot memory slot = account.deposit;
        d = Deposits(slot.memberLow, slot.hubLow, slot.deadline, slot.status);
        if (!slot.wide) return d;
        HighSlot memory high = account.high;
        d.member |= uint128(high.memberDeposit) << LOW_BITS;
        d.hub |= uint128(high.hubDeposit) << LOW_BITS;
    }

    function writeDeposits(Stored storage account, Deposits memory d) internal {
        bool wide = (d.member | d.hub) >> LOW_BITS != 0;
        // The casts keep the low 88 bits on purpose; the rest goes to the third slot.
        account.deposit = DepositSlot(uint88(d.member), uint88(d.hub), d.deadline, d.status, wide);
        if (!wide) return;
        account.high.memberDeposit = uint40(d.member >> LOW_BITS);
        account.high.hubDeposit = uint40(d.hub >> LOW_BITS);
    }

    function readWithdrawn(Stored storage account) internal view returns (Withdrawn memory w) {
        WithdrawnSlot memory slot = account.withdrawn;
        w = Withdrawn(slot.memberLow, slot.hubLow, slot.seq);
        if (!slot.wide) return w;
        HighSlot memory high = account.high;
        w.member |= uint128(high.memberWithdrawn) << LOW_BITS;
        w.hub |= uint128(high.hubWithdrawn) << LOW_BITS;
    }

    function writeWithdrawn(Stored storage account, Withdrawn memory w) internal {
        bool wide = (w.member | w.hub) >> LOW_BITS != 0;
        account.withdrawn = WithdrawnSlot(uint88(w.member), uint88(w.hub), w.seq, wide);
        if (!wide) return;
        account.high.memberWithdrawn = uint40(w.member >> LOW_BITS);
        account.high.hubWithdrawn = uint40(w.hub >> LOW_BITS);
    }
}
