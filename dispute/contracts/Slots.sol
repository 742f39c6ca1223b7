// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title How an account is stored
/// @dev A slot costs 2,100 gas to look at, 5,000 to change and 22,100 to use for the first time: more than all else that a settlement does with its
/// account. So an account is stored in one of four forms, the smallest that holds it:
///
///  - *small*, one slot: amounts below 2^34 (17,179 dollars of 6 decimals), fewer than 2^15 settlements. Nothing that happens to the account
///    touches another slot, evidence included.
///  - *compact*, one slot and one for evidence: amounts below 2^48 (281 million dollars), fewer than 2^23 settlements.
///  - *wide*, two slots and one for evidence: amounts below 2^88 (309 million coins of 18 decimals). A deposit and the start of a close touch the
///    first alone.
///  - *high*, three slots and one for evidence: anything that fits 128 bits.
///
/// Bits of the words, highest first:
///
///     small    memberDeposit 34, hubDeposit 34, memberWithdrawn 34, hubWithdrawn 34, memberPaid 34, hubPaid 34, seq 15, deadline 32, tail 5
///     compact  memberDeposit 48, hubDeposit 48, memberWithdrawn 48, hubWithdrawn 48, seq 23, deadline 36, tail 5
///     wide     memberDeposit 88, hubDeposit 88, unused 11, deadline 64, tail 5
///              memberWithdrawn 88, hubWithdrawn 88, unused 16, seq 64
///     high     as wide; and the bits above 88: unused 96, memberDeposit 40, hubDeposit 40, memberWithdrawn 40, hubWithdrawn 40
///     evidence memberPaid 128, hubPaid 128
///     tail     opened 1, status 2, form 2
///
/// Everything in an account only grows, so it never goes back to a smaller form, and a word of zero is an account that never was.
library Slots {
    uint256 private constant SMALL = 0;
    uint256 private constant COMPACT = 1;
    uint256 private constant WIDE = 2;
    uint256 private constant HIGH = 3;

    uint256 private constant MASK_34 = (1 << 34) - 1;
    uint256 private constant MASK_40 = (1 << 40) - 1;
    uint256 private constant MASK_48 = (1 << 48) - 1;
    uint256 private constant MASK_88 = (1 << 88) - 1;

    struct Stored {
        uint256 first;
        uint256 withdrawn;
        uint256 high;
        uint256 paid;
    }

    /// What the slots say, in whole words. `form` is the form that was read; `opened` is 1 where the account is known to belong to an open channel.
    struct Totals {
        uint256 memberDeposit;
        uint256 hubDeposit;
        uint256 memberWithdrawn;
        uint256 hubWithdrawn;
        uint256 memberPaid;
        uint256 hubPaid;
        uint256 seq;
        uint256 deadline;
        uint256 opened;
        uint256 status;
        uint256 form;
    }

    /// A `Totals` of zeros.
    function none() internal pure returns (Totals memory t) {}

    // ---------------------------------------------------------------- reading: into a `Totals` of zeros

    /// Deposits, status and deadline. The rest is there where it costs nothing, which `store...` knows by the form.
    function loadDeposits(Stored storage account, Totals memory t) internal view {
        uint256 word = account.first;
        uint256 form = word & 3;
        t.form = form;
        t.status = (word >> 2) & 3;
        t.opened = (word >> 4) & 1;
        if (form == SMALL) {
            t.memberDeposit = word >> 222;
            t.hubDeposit = (word >> 188) & MASK_34;
            t.memberWithdrawn = (word >> 154) & MASK_34;
            t.hubWithdrawn = (word >> 120) & MASK_34;
            t.memberPaid = (word >> 86) & MASK_34;
            t.hubPaid = (word >> 52) & MASK_34;
            t.seq = (word >> 37) & 0x7fff;
            t.deadline = (word >> 5) & type(uint32).max;
        } else if (form == COMPACT) {
            t.memberDeposit = word >> 208;
            t.hubDeposit = (word >> 160) & MASK_48;
            t.memberWithdrawn = (word >> 112) & MASK_48;
            t.hubWithdrawn = (word >> 64) & MASK_48;
            t.seq = (word >> 41) & 0x7fffff;
            t.deadline = (word >> 5) & 0xfffffffff;
        } else {
            t.memberDeposit = word >> 168;
            t.hubDeposit = (word >> 80) & MASK_88;
            t.deadline = (word >> 5) & type(uint64).max;
            if (form == WIDE) return;
            word = account.high;
            t.memberDeposit |= (word >> 120) << 88;
            t.hubDeposit |= ((word >> 80) & MASK_40) << 88;
            t.memberWithdrawn = ((word >> 40) & MASK_40) << 88;
            t.hubWithdrawn = (word & MASK_40) << 88;
        }
    }

    /// Everything but the evidence.
    function load(Stored storage account, Totals memory t) internal view {
        loadDeposits(account, t);
        if (t.form < WIDE) return;
        uint256 word = account.withdrawn;
        // Of the high form, the upper bits are in place.
        t.memberWithdrawn |= word >> 168;
        t.hubWithdrawn |= (word >> 80) & MASK_88;
        t.seq = word & type(uint64).max;
    }

    /// Adds the evidence to what was read.
    function loadPaid(Stored storage account, Totals memory t) internal view {
        if (t.form == SMALL) return;
        uint256 word = account.paid;
        t.memberPaid = word >> 128;
        t.hubPaid = word & type(uint128).max;
    }

    // ---------------------------------------------------------------- writing: what was read and then changed

    /// After `loadDeposits` and changes of deposits, status, deadline, `opened`.
    function storeDeposits(Stored storage account, Totals memory t) internal {
        _write(account, t);
    }

    /// After `load` and changes of anything but the evidence.
    function store(Stored storage account, Totals memory t) internal {
        if (_write(account, t) >= WIDE) account.withdrawn = _withdrawnWord(t);
    }

    /// After `loadDeposits`, `loadPaid` and changes of the evidence.
    function storePaid(Stored storage account, Totals memory t) internal {
        if (t.form == SMALL) _write(account, t);
        else account.paid = _paidWord(t);
    }

    /// Writes the first word and its high bits, and moves along what the account's old form held in that word and its new form does not.
    function _write(Stored storage account, Totals memory t) private returns (uint256 form) {
        form = _formFor(t);
        uint256 word = (t.deadline << 5) | (t.opened << 4) | (t.status << 2) | form;
        if (form == SMALL) {
            account.first = word | (t.memberDeposit << 222) | (t.hubDeposit << 188) | (t.memberWithdrawn << 154)
                | (t.hubWithdrawn << 120) | (t.memberPaid << 86) | (t.hubPaid << 52) | (t.seq << 37);
            return form;
        }
        if (t.form == SMALL && t.memberPaid | t.hubPaid != 0) account.paid = _paidWord(t);
        if (form == COMPACT) {
            account.first = word | (t.memberDeposit << 208) | (t.hubDeposit << 160) | (t.memberWithdrawn << 112)
                | (t.hubWithdrawn << 64) | (t.seq << 41);
            return form;
        }
        if (t.form < WIDE && _withdrawnWord(t) != 0) account.withdrawn = _withdrawnWord(t);
        account.first = word | ((t.memberDeposit & MASK_88) << 168) | ((t.hubDeposit & MASK_88) << 80);
        if (form == WIDE) return form;
        account.high = ((t.memberDeposit >> 88) << 120) | ((t.hubDeposit >> 88) << 80)
            | ((t.memberWithdrawn >> 88) << 40) | (t.hubWithdrawn >> 88);
    }

    /// The smallest form that holds everything, but never a smaller one than was read: then a part may not have been read at all.
    function _formFor(Totals memory t) private pure returns (uint256) {
        uint256 all = t.memberDeposit | t.hubDeposit | t.memberWithdrawn | t.hubWithdrawn;
        if (
            t.form == SMALL && ((all | t.memberPaid | t.hubPaid) >> 34) | (t.seq >> 15) | (t.deadline >> 32) == 0
        ) return SMALL;
        if (t.form <= COMPACT && (all >> 48) | (t.seq >> 23) | (t.deadline >> 36) == 0) return COMPACT;
        return t.form <= WIDE && all >> 88 == 0 ? WIDE : HIGH;
    }

    function _withdrawnWord(Totals memory t) private pure returns (uint256) {
        return ((t.memberWithdrawn & MASK_88) << 168) | ((t.hubWithdrawn & MASK_88) << 80) | t.seq;
    }

    function _paidWord(Totals memory t) private pure returns (uint256) {
        return (t.memberPaid << 128) | t.hubPaid;
    }
}
