// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IAdjudicator} from "../IAdjudicator.sol";
import {
    Account,
    CloseEntry,
    Evidence,
    FinalizeEntry,
    FundEntry,
    NATIVE,
    OpenEntry,
    ReceiptEvidence,
    RespondEntry,
    SettleEntry,
    SIDE_HUB,
    SIDE_MEMBER,
    TickEvidence,
    VoucherEvidence
} from "../Types.sol";
import {Mood, MoodyReceiver, MoodyToken} from "./Hostile.sol";
import {vm} from "./Vm.sol";
import {Dollar, Pair, World} from "./World.sol";

/// @title Everything that anybody can do, honest or not, at random
/// @dev Four channels (one of a member whose account is a hostile contract, one that is never opened at first), three assets (an honest dollar, a
/// hostile token, coins). Each action may be refused; none may break a promise. After every action the accounts are compared with what they
/// were, and with a model of the evidence that knows nothing of how they are stored.
contract Players is World {
    uint256 private constant CHANNELS = 4;
    uint256 private constant ASSETS = 3;
    uint32 private constant LANES = 3;

    /// What each side holds in its own drawer: the largest promises of the other, and settlements that both signed.
    struct Drawer {
        uint128[LANES] memberLanes;
        uint128 hubTotal;
        // The model of what was proven on the ledger.
        uint256 provenMember;
        uint256 provenHub;
        uint64 seq;
    }

    Pair[CHANNELS] private pairs;
    address[ASSETS] private assets;
    MoodyToken private moody;
    MoodyReceiver private receiver;
    mapping(uint256 channel => mapping(uint256 asset => Drawer)) private drawers;
    mapping(uint256 channel => mapping(uint256 asset => Account)) private before;
    mapping(uint256 channel => mapping(uint256 asset => bytes32)) private beforeHash;
    SettleEntry[] private kept;
    bytes[] private seen;
    /// How often an action got through, and how many were tried.
    mapping(bytes32 what => uint256) public times;
    uint256 public actions;

    constructor() {
        setUp();
        moody = new MoodyToken();
        receiver = new MoodyReceiver();
        assets = [address(dollar), address(moody), NATIVE];
        for (uint256 c = 0; c < CHANNELS; ++c) {
            Pair memory p = newPair(string.concat("player ", vm.toString(c)));
            if (c == 1) p.terms.member = address(receiver);
            p.id = adjudicator.channelIdOf(p.terms);
            pairs[c] = p;
            _supply(p.terms.member);
            if (c != 3) {
                vm.prank(p.terms.member);
                adjudicator.open(p.terms, "", address(dollar), 1_000_000, byCaller());
            }
        }
        _supply(hub);
        _supply(address(this));
        _look();
    }

    /// Once: for the fuzzer this is an action like any other.
    function setUp() public override {
        if (address(adjudicator) == address(0)) super.setUp();
    }

    function _supply(address account) private {
        provide(account, type(uint128).max);
        moody.mint(account, type(uint128).max);
        vm.prank(account);
        moody.approve(address(adjudicator), type(uint256).max);
        vm.deal(account, type(uint96).max);
    }

    // ---------------------------------------------------------------- actions

    function open(uint8 c, uint8 a, uint128 amount, uint8 width, bool batch) external {
        (Pair memory p, address asset) = _pick(c, a);
        amount = _narrow(amount, width, asset);
        bytes memory consent = c % 8 == 0 ? new bytes(65) : signature(p.memberAccountKey, p.id);
        if (!batch) {
            _act("open", hub, asset == NATIVE ? amount : 0, abi.encodeCall(IAdjudicator.open, (p.terms, consent, asset, amount, byCaller())));
        } else {
            OpenEntry[] memory entries = new OpenEntry[](2);
            entries[0] = OpenEntry(p.terms, consent, asset, amount, byCaller());
            entries[1] = OpenEntry(pairs[2].terms, "", address(moody), 1, byCaller());
            _act("openMany", hub, 0, abi.encodeCall(IAdjudicator.openMany, (entries)));
        }
    }

    function deposit(uint8 c, uint8 a, uint8 side, uint128 amount, uint8 width) external {
        (Pair memory p, address asset) = _pick(c, a);
        amount = _narrow(amount, width, asset);
        address payer = side % 4 == 0 ? p.terms.member : side % 4 == 1 ? hub : address(this);
        // Now and then not what the call says.
        uint256 coins = asset == NATIVE && width % 16 != 0 ? amount : 0;
        _act("deposit", payer, coins, abi.encodeCall(IAdjudicator.deposit, (p.terms, asset, side % 3, amount, byCaller())));
    }

    function fundMany(uint8[4] calldata c, uint8[4] calldata a, uint64[4] calldata amounts, uint8 odd) external {
        FundEntry[] memory entries = new FundEntry[](4);
        uint256 coins;
        for (uint256 i = 0; i < 4; ++i) {
            (Pair memory p, address asset) = _pick(c[i], a[i]);
            entries[i] = FundEntry(p.terms, asset, uint8(i % 2), amounts[i]);
            if (asset == NATIVE) coins += amounts[i];
        }
        _act("fundMany", hub, odd % 16 == 0 ? coins / 2 : coins, abi.encodeCall(IAdjudicator.fundMany, (entries)));
    }

    /// A settlement of both; posted now, kept for later, or made wrong.
    function settle(uint8 c, uint8 a, uint128 toMember, uint128 toHub, uint8 how, bool close) external {
        SettleEntry memory e = _settlement(c, a, toMember, toHub, how, close);
        kept.push(e);
        if (how % 4 == 0) return;
        if (how % 16 == 1) e.memberWithdrawn += 1;
        _act("settle", address(this), 0, abi.encodeCall(IAdjudicator.settle, (e)));
    }

    function settleKept(uint256 which, uint256 other) external {
        if (kept.length == 0) return;
        SettleEntry[] memory entries = new SettleEntry[](2);
        entries[0] = kept[which % kept.length];
        entries[1] = kept[other % kept.length];
        _act("settleMany", address(this), 0, abi.encodeCall(IAdjudicator.settleMany, (entries)));
    }

    function startClose(uint8 c, uint8 a, uint8 how) external {
        (Pair memory p, address asset) = _pick(c, a);
        // Closes are rarer than payments, else nothing stays open.
        if (how % 4 != 0) return;
        how /= 4;
        address caller = how % 4 == 0 ? p.terms.member : how % 4 == 1 ? hub : address(this);
        bytes memory request =
            how % 4 < 2 ? bytes("") : closeRequest(p, how % 4 == 2 ? p.memberKey : p.hubKey, asset, uint64(block.timestamp));
        if (how % 8 < 4) {
            _act("startClose", caller, 0, abi.encodeCall(IAdjudicator.startClose, (p.terms, asset, uint64(block.timestamp), how % 4 == 2 ? 0 : 1, request)));
        } else {
            CloseEntry[] memory entries = new CloseEntry[](1);
            entries[0] = CloseEntry(p.terms, asset, uint64(block.timestamp), how % 4 == 2 ? 0 : 1, request);
            _act("startCloseMany", caller, 0, abi.encodeCall(IAdjudicator.startCloseMany, (entries)));
        }
    }

    /// A payment off the ledger: the payer signs more, the payee keeps the paper.
    function pay(uint8 c, uint8 a, bool byHub, uint8 lane, uint128 amount, uint8 width) external {
        Drawer storage d = drawers[c % CHANNELS][a % ASSETS];
        amount = amount >> (width % 128);
        unchecked {
            if (byHub && d.hubTotal + amount > d.hubTotal) d.hubTotal += amount;
            if (!byHub && d.memberLanes[lane % LANES] + amount > d.memberLanes[lane % LANES]) d.memberLanes[lane % LANES] += amount;
        }
    }

    /// Evidence: true but old, whole, or made up.
    function respond(uint8 c, uint8 a, uint8 how, uint128 older, bool batch) external {
        (Pair memory p, address asset) = _pick(c, a);
        (Evidence memory e, uint256 member, uint256 theHub) = _evidence(p, asset, drawers[c % CHANNELS][a % ASSETS], how, older);
        RespondEntry memory entry = RespondEntry(p.terms, asset, e);
        if (how % 32 == 31) {
            // Evidence of another channel, and one signed by the wrong party.
            entry.terms = pairs[(uint256(c) + 1) % CHANNELS].terms;
            (member, theHub) = (0, 0);
        }
        seen.push(abi.encode(entry));
        bool done;
        if (batch) {
            RespondEntry[] memory entries = new RespondEntry[](1);
            entries[0] = entry;
            done = _act("respondMany", address(this), 0, abi.encodeCall(IAdjudicator.respondMany, (entries)));
        } else {
            done = _act("respond", address(this), 0, abi.encodeCall(IAdjudicator.respond, (p.terms, asset, e)));
        }
    }

    function respondAgain(uint256 which, uint8 c) external {
        if (seen.length == 0) return;
        RespondEntry memory entry = abi.decode(seen[which % seen.length], (RespondEntry));
        if (c % 8 == 0) entry.terms = pairs[c % CHANNELS].terms;
        _act("respondAgain", hub, 0, abi.encodeCall(IAdjudicator.respond, (entry.terms, entry.asset, entry.evidence)));
    }

    function finalize(uint8 c, uint8 a, uint8 other, bool batch) external {
        (Pair memory p, address asset) = _pick(c, a);
        if (!batch) {
            _act("finalize", address(this), 0, abi.encodeCall(IAdjudicator.finalize, (p.terms, asset)));
            return;
        }
        FinalizeEntry[] memory entries = new FinalizeEntry[](3);
        entries[0] = FinalizeEntry(p.terms, asset);
        entries[1] = FinalizeEntry(pairs[other % CHANNELS].terms, asset);
        entries[2] = FinalizeEntry(p.terms, asset);
        _act("finalizeMany", address(this), 0, abi.encodeCall(IAdjudicator.finalizeMany, (entries)));
    }

    /// Both parties do what their watchtowers do: show everything before the deadline. Then nobody may get less than he can prove.
    function playToTheEnd(uint8 c, uint8 a) external {
        (Pair memory p, address asset) = _pick(c, a);
        Account memory account = adjudicator.books(p.id, asset);
        if (account.status != 1 || block.timestamp >= account.deadline) return;
        Drawer storage d = drawers[c % CHANNELS][a % ASSETS];
        (Evidence memory e, uint256 member, uint256 theHub) = _evidence(p, asset, d, 6, 0);
        _act("respond", hub, 0, abi.encodeCall(IAdjudicator.respond, (p.terms, asset, e)));
        account = adjudicator.books(p.id, asset);
        so(account.memberPaid == member || member < account.memberPaid, "the hub's evidence counts");
        so(account.hubPaid == theHub || theHub < account.hubPaid, "the member's evidence counts");
        vm.warp(account.deadline);
        so(_act("finalize", address(this), 0, abi.encodeCall(IAdjudicator.finalize, (p.terms, asset))), "pays out");

        uint256 deposits = uint256(account.memberDeposit) + account.hubDeposit;
        uint256 custody = deposits - account.memberWithdrawn - account.hubWithdrawn;
        uint256 credit = uint256(account.memberDeposit) + theHub;
        uint256 debit = uint256(account.memberWithdrawn) + member;
        uint256 net = credit > debit ? credit - debit : 0;
        if (net > custody) net = custody;
        Account memory end = adjudicator.books(p.id, asset);
        same(end.memberWithdrawn - account.memberWithdrawn, net, "the member gets what he can prove");
        same(end.hubWithdrawn - account.hubWithdrawn, custody - net, "the hub gets what it can prove");
        same(end.status, 2, "final");
        ++times["playToTheEnd"];
    }

    function claim(uint8 c, uint8 a, uint8 who, bool to) external {
        (Pair memory p, address asset) = _pick(c, a);
        address account = who % 3 == 0 ? hub : who % 3 == 1 ? p.terms.member : address(0xdead);
        address vault = who % 16 == 15 ? address(this) : adjudicator.vaultOf(p.id);
        if (to) _act("claimTo", account, 0, abi.encodeCall(IAdjudicator.claimTo, (vault, asset, address(0xbeef))));
        else _act("claim", address(this), 0, abi.encodeCall(IAdjudicator.claim, (vault, asset, account)));
    }

    function wait(uint32 time) external {
        vm.warp(block.timestamp + time % PERIOD);
    }

    /// The hostile token and the hostile account turn.
    function turn(uint8 mood, uint8 other, uint256 which, bool ban) external {
        bytes memory order = kept.length == 0
            ? abi.encodeCall(IAdjudicator.claim, (adjudicator.vaultOf(pairs[1].id), NATIVE, address(receiver)))
            : abi.encodeCall(IAdjudicator.settle, (kept[which % kept.length]));
        // Honest half of the time: what is refused for ever shows nothing.
        moody.set(mood % 2 == 0 ? Mood.Honest : Mood(mood / 2 % 9), address(adjudicator), order);
        moody.ban(pairs[other % CHANNELS].terms.member, ban);
        receiver.set(other % 2 == 0 ? Mood.Honest : Mood(other / 2 % 9), address(adjudicator), order);
    }

    /// A gift makes nobody richer on the books.
    function give(uint8 c, uint8 a, uint64 amount) external {
        (Pair memory p, address asset) = _pick(c, a);
        address vault = adjudicator.vaultOf(p.id);
        if (asset == address(dollar)) {
            dollar.mint(vault, amount);
        } else if (asset == NATIVE) {
            (bool done,) = vault.call{value: amount}("");
            so(done, "coins are welcome");
        } else {
            moody.mint(vault, amount);
        }
    }

    // ---------------------------------------------------------------- what they hold

    function _pick(uint8 c, uint8 a) private view returns (Pair memory p, address asset) {
        return (pairs[c % CHANNELS], assets[a % ASSETS]);
    }

    /// Any width, so that accounts of every form meet.
    function _narrow(uint128 amount, uint8 width, address asset) private pure returns (uint128) {
        return amount >> (asset == NATIVE ? 48 + width % 80 : 8 + width % 120);
    }

    function _settlement(uint8 c, uint8 a, uint128 toMember, uint128 toHub, uint8 how, bool close)
        private
        returns (SettleEntry memory)
    {
        (Pair memory p, address asset) = _pick(c, a);
        Drawer storage d = drawers[c % CHANNELS][a % ASSETS];
        Account memory account = adjudicator.books(p.id, asset);
        uint256 custody = uint256(account.memberDeposit) + account.hubDeposit - account.memberWithdrawn - account.hubWithdrawn;
        toMember = uint128(toMember % (custody + 1));
        toHub = close ? uint128(custody - toMember) : uint128(toHub % (custody - toMember + 1));
        d.seq += how % 32 == 2 ? 40_000 : how % 64 == 3 ? 1 << 33 : 1;
        return settlement(p, asset, d.seq, account.memberWithdrawn + toMember, account.hubWithdrawn + toHub, close);
    }

    /// `how`: bit 0 leave out the member's, bit 1 in receipts rather than vouchers, bit 2 everything at its newest; `older` makes the rest old.
    function _evidence(Pair memory p, address asset, Drawer storage d, uint8 how, uint128 older)
        private
        view
        returns (Evidence memory e, uint256 member, uint256 theHub)
    {
        bool newest = how & 4 != 0;
        theHub = newest ? d.hubTotal : d.hubTotal == 0 ? 0 : older % d.hubTotal;
        if (theHub > 0 && how & 2 == 0) e = hubSaid(hubVoucher(p, asset, uint128(theHub)));
        if (theHub > 0 && how & 2 != 0) e = receipted(hubReceipt(p, asset, 1, uint128(theHub)));
        if (how & 1 != 0) return (e, 0, theHub);
        e.memberVouchers = new VoucherEvidence[](LANES);
        for (uint32 lane = 0; lane < LANES; ++lane) {
            uint128 value = newest ? d.memberLanes[lane] : d.memberLanes[lane] == 0 ? 0 : older % d.memberLanes[lane];
            e.memberVouchers[lane] = memberVoucher(p, asset, lane, value);
            member += value;
        }
        // Now and then a lane twice: the whole direction must count for nothing.
        if (how % 32 == 8) {
            e.memberVouchers[1] = e.memberVouchers[2];
            return (e, 0, theHub);
        }
        if (member > type(uint128).max) member = type(uint128).max;
    }

    // ---------------------------------------------------------------- doing and looking

    function _act(bytes32 what, address caller, uint256 coins, bytes memory call_) private returns (bool done) {
        if (coins > caller.balance) coins = caller.balance;
        vm.prank(caller);
        // Enough for everything but a token that burns it all.
        (done,) = address(adjudicator).call{value: coins, gas: 2_500_000}(call_);
        if (done) ++times[what];
        ++actions;
        _look();
    }

    /// I1 and I2 for every account, against what was seen last; the guard; and no coin stays in the adjudicator.
    function _look() private {
        for (uint256 c = 0; c < CHANNELS; ++c) {
            for (uint256 a = 0; a < ASSETS; ++a) {
                Account memory now_ = adjudicator.books(pairs[c].id, assets[a]);
                bytes32 hash = keccak256(abi.encode(now_));
                if (hash == beforeHash[c][a]) continue;
                _compare(before[c][a], now_);
                (before[c][a], beforeHash[c][a]) = (now_, hash);
            }
        }
        same(moody.reentered() + receiver.reentered(), 0, "callbacks that got through");
        same(address(adjudicator).balance, 0, "coins left in the adjudicator");
    }

    function _compare(Account memory old, Account memory now_) private pure {
        uint256 deposits = uint256(now_.memberDeposit) + now_.hubDeposit;
        so(uint256(now_.memberWithdrawn) + now_.hubWithdrawn <= deposits, "I1: the sum never exceeds custody");
        so(deposits <= type(uint128).max, "deposits fit");
        so(
            now_.memberDeposit >= old.memberDeposit && now_.hubDeposit >= old.hubDeposit
                && now_.memberWithdrawn >= old.memberWithdrawn && now_.hubWithdrawn >= old.hubWithdrawn
                && now_.memberPaid >= old.memberPaid && now_.hubPaid >= old.hubPaid && now_.seq >= old.seq,
            "I2: totals only grow"
        );
        so(now_.status >= old.status, "I2: no way back");
        so(old.status != 2, "I2: final is for ever");
        so(old.deadline == 0 || now_.deadline == old.deadline, "I2: a deadline is set once");
        so(now_.status == 0 ? now_.deadline == 0 : now_.status == 2 || now_.deadline != 0, "a close has a deadline");
        if (old.status == 1) so(now_.memberDeposit == old.memberDeposit && now_.hubDeposit == old.hubDeposit, "no deposits while closing");
        if (now_.memberPaid != old.memberPaid || now_.hubPaid != old.hubPaid) so(old.status == 1, "evidence while closing");
    }

    /// I9 for every vault and asset; and the honest dollar and the coins to the last unit but for gifts, which only add.
    function solvent() external view {
        for (uint256 a = 0; a < ASSETS; ++a) {
            for (uint256 v = 0; v < SHARDS; ++v) {
                address vault = adjudicator.vaultOf(bytes32(v));
                uint256 owedHere = adjudicator.claimable(vault, assets[a], hub);
                owedHere += adjudicator.claimable(vault, assets[a], address(0xdead));
                for (uint256 c = 0; c < CHANNELS; ++c) {
                    owedHere += adjudicator.claimable(vault, assets[a], pairs[c].terms.member);
                    if (adjudicator.vaultOf(pairs[c].id) != vault) continue;
                    Account memory b = adjudicator.books(pairs[c].id, assets[a]);
                    owedHere += uint256(b.memberDeposit) + b.hubDeposit - b.memberWithdrawn - b.hubWithdrawn;
                }
                uint256 held = assets[a] == NATIVE ? vault.balance : Dollar(assets[a]).balanceOf(vault);
                so(held >= owedHere, "I9: a vault holds what it owes");
            }
        }
    }

    receive() external payable {}
}

/// @title The promises of the contract, whatever is done to it
contract InvariantTest {
    Players private players;
    address[] private _targets;

    function setUp() external {
        players = new Players();
        _targets.push(address(players));
    }

    function targetContracts() external view returns (address[] memory) {
        return _targets;
    }

    /// A run in which nothing gets through would keep every promise too.
    function test_every_action_gets_through_sometimes() external {
        string[15] memory all = [
            "open", "openMany", "deposit", "fundMany", "settle", "settleMany", "startClose", "startCloseMany",
            "respond", "respondMany", "respondAgain", "finalize", "finalizeMany", "claim", "playToTheEnd"
        ];
        uint256 missing = all.length;
        for (uint256 i = 0; missing > 0; ++i) {
            so(i < 200, "every action gets through");
            if (i % 10 == 0) players = new Players();
            for (uint256 k = 0; k < 50; ++k) _actAtRandom(uint256(keccak256(abi.encode("dice", i, k))));
            missing = 0;
            for (uint256 n = 0; n < all.length; ++n) {
                times[n] += players.times(bytes32(bytes(all[n])));
                if (times[n] == 0) ++missing;
            }
        }
        players.solvent();
    }

    mapping(uint256 action => uint256) private times;

    function _actAtRandom(uint256 d) private {
        (uint8 x, uint8 y, uint8 z, uint8 w) = (uint8(d), uint8(d >> 8), uint8(d >> 16), uint8(d >> 24));
        uint128 amount = uint128(d >> 128);
        bool flag = d >> 32 & 1 == 1;
        uint256 action = (d >> 40) % 14;
        if (action == 0) players.open(x, y, amount, z, flag);
        if (action == 1) players.deposit(x, y, z, amount, w);
        if (action == 2) players.fundMany([x, y, z, w], [y, z, w, x], [uint64(d >> 64), uint64(x) + 1, uint64(y) + 1, uint64(z) + 1], w);
        if (action == 3) players.settle(x, y, amount, uint128(d >> 100), z, w % 4 == 0);
        if (action == 4) players.settleKept(d, d >> 9);
        if (action == 5) players.startClose(x, y, z);
        if (action == 6) players.pay(x, y, flag, z, amount, w);
        if (action == 7) players.respond(x, y, z, amount, flag);
        if (action == 8) players.respondAgain(d, z);
        if (action == 9) players.finalize(x, y, z, flag);
        if (action == 10) players.playToTheEnd(x, y);
        if (action == 11) players.claim(x, y, z, flag && w % 2 == 0);
        if (action == 12) players.wait(uint32(d >> 64));
        if (action == 13) players.turn(x, y, d, z % 8 == 0);
    }

    function so(bool fact, string memory what) private pure {
        require(fact, what);
    }

    /// I1, I2 and the guard are looked at after every action by the players themselves: what they find reverts, and `fail_on_revert` is on.
    /// I9 is added up after every tenth action and at the end: what broke it stays broken, because nothing pays a vault back.
    function invariant_I1_I2_I9_nobody_gets_less_than_he_can_prove_and_the_sum_never_exceeds_custody() external view {
        if (players.actions() % 10 == 0) players.solvent();
    }

    function afterInvariant() external view {
        players.solvent();
    }
}
