// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Create2} from "@openzeppelin/contracts/utils/Create2.sol";
import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {LowLevelCall} from "@openzeppelin/contracts/utils/LowLevelCall.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Books} from "./Books.sol";
import {IAdjudicator} from "./IAdjudicator.sol";
import {
    Account,
    Batch,
    CloseEntry,
    CloseRequest,
    Evidence,
    FinalizeEntry,
    FundEntry,
    Funding,
    FUNDING_ALLOWANCE,
    FUNDING_AUTHORIZATION,
    NATIVE,
    OpenEntry,
    Receipt,
    RespondEntry,
    SettleEntry,
    Settlement,
    SIDE_MEMBER,
    STATUS_CLOSING,
    STATUS_FINAL,
    Terms,
    TickVoucher,
    Types,
    Voucher
} from "./Types.sol";
import {Slots} from "./Slots.sol";
import {Vault} from "./Vault.sol";
import {Ed25519} from "./verifiers/Ed25519.sol";
import {PayoutAccount} from "./verifiers/PayoutAccount.sol";

/// @dev The variant of EIP-3009 that tokens offer for payers that are contracts.
interface IERC3009Bytes {
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external;
}

/// @title The adjudicator
/// @dev Thin: an entry point computes the channel id, asks `Books` whether the call is allowed, writes the account, and moves money last.
/// One guard in transient storage covers every entry point that touches money, so a token or receiver that calls back finds the door shut and a
/// balance difference measures one deposit only. No slot is written by transactions of unrelated channels.
contract Adjudicator is IAdjudicator, EIP712, ReentrancyGuardTransient {
    using Books for Books.Scope;
    using Slots for Slots.Stored;

    /// @dev Gas that a payout to a member gets. Enough for proxied dollar tokens and smart accounts; small enough that a hundred receivers that burn
    /// all of it still fit one transaction of 16.7 million gas (EIP-7825).
    uint256 private constant PAYOUT_GAS = 120_000;
    /// @dev What the call itself costs before the callee's gas starts: a cold account, its code check and the encoding.
    uint256 private constant PAYOUT_CALL_GAS = 6_000;
    /// @dev A vault costs 62,000 gas, the rest of the deployment 6 million: with this many it takes five sixths of a transaction (EIP-7825).
    uint256 private constant SHARDS_MAX = 128;

    /// @inheritdoc IAdjudicator
    uint32 public immutable minChallengePeriod;
    /// @inheritdoc IAdjudicator
    uint32 public immutable maxChallengePeriod;
    /// @inheritdoc IAdjudicator
    uint256 public immutable shards;
    /// @inheritdoc IAdjudicator
    bool public immutable ed25519Available;
    /// @inheritdoc IAdjudicator
    address public immutable homeAsset;
    /// @dev Hash of the vaults' creation code, from which their addresses follow.
    bytes32 private immutable _vaultCodeHash;

    mapping(bytes32 channelId => mapping(address asset => Slots.Stored)) private _accounts;
    mapping(bytes32 vaultAssetAccount => uint256) private _claimable;

    /// @dev What a call has come to owe and not yet written down: the sum over neighbouring entries of a batch with the same hub, vault and asset.
    struct Debt {
        address vault;
        address asset;
        address account;
        uint256 amount;
    }

    /// @dev Deploys the vaults too, so that no later call pays for one.
    /// @param minChallengePeriod_ shortest challenge period of a channel, in seconds
    /// @param maxChallengePeriod_ longest challenge period of a channel, in seconds
    /// @param shards_ how many vaults there are, 1 to 128
    /// @param homeAsset_ the asset that most channels will be opened with, see `homeAsset`
    constructor(uint32 minChallengePeriod_, uint32 maxChallengePeriod_, uint16 shards_, address homeAsset_)
        EIP712("payhub", "1")
    {
        if (
            shards_ == 0 || shards_ > SHARDS_MAX || minChallengePeriod_ == 0
                || minChallengePeriod_ > maxChallengePeriod_
        ) revert BadDeployment(shards_, minChallengePeriod_, maxChallengePeriod_);
        minChallengePeriod = minChallengePeriod_;
        maxChallengePeriod = maxChallengePeriod_;
        shards = shards_;
        homeAsset = homeAsset_;
        ed25519Available = Ed25519.isAvailable();
        bytes memory code = type(Vault).creationCode;
        _vaultCodeHash = keccak256(code);
        for (uint256 i = 0; i < shards_; ++i) {
            Create2.deploy(0, bytes32(i), code);
        }
    }

    // ---------------------------------------------------------------- opening and funding

    /// @inheritdoc IAdjudicator
    function open(
        Terms calldata terms,
        bytes calldata consent,
        address asset,
        uint128 amount,
        Funding calldata funding
    ) external payable nonReentrant returns (bytes32 channelId) {
        Books.Scope memory scope = _scope(terms, asset);
        channelId = scope.channelId;
        Slots.Stored storage account = _accounts[channelId][homeAsset];
        Slots.Totals memory totals;
        account.loadDeposits(totals);
        if (totals.opened == 0) {
            _require(Books.refuseTerms(terms, minChallengePeriod, maxChallengePeriod, ed25519Available));
            if (!_consented(channelId, terms.member, consent, asset, amount, funding)) {
                revert NotConsented(channelId, terms.member);
            }
            totals.opened = 1;
            emit Opened(channelId, terms.hub, terms.member, terms);
            // Where a deposit in the home asset follows, it writes the mark along.
            if (amount == 0 || asset != homeAsset) account.storeDeposits(totals);
            if (amount == 0) {
                if (msg.value != 0) revert NativeAmountMismatch(msg.value, 0);
                return channelId;
            }
        }
        if (asset != homeAsset) {
            account = _accounts[channelId][asset];
            totals = Slots.none();
            account.loadDeposits(totals);
            totals.opened = 1;
        }
        _deposit(scope, account, totals, SIDE_MEMBER, amount, funding);
    }

    /// @inheritdoc IAdjudicator
    function openMany(OpenEntry[] calldata entries) external {
        for (uint256 i = 0; i < entries.length; ++i) {
            OpenEntry calldata e = entries[i];
            bytes memory call = abi.encodeCall(IAdjudicator.open, (e.terms, e.consent, e.asset, e.amount, e.funding));
            uint256 gasBefore = gasleft();
            // To this very contract, so that the entry is undone on its own and its payer is still the caller.
            if (!LowLevelCall.delegatecallNoReturn(address(this), call)) {
                _requireGasLeft(gasBefore, e.asset, e.amount);
                emit EntryRefused(i, LowLevelCall.returnData());
            }
        }
    }

    /// @inheritdoc IAdjudicator
    function deposit(Terms calldata terms, address asset, uint8 side, uint128 amount, Funding calldata funding)
        external
        payable
        nonReentrant
    {
        Books.Scope memory scope = _scope(terms, asset);
        Slots.Stored storage account = _accounts[scope.channelId][asset];
        Slots.Totals memory totals;
        account.loadDeposits(totals);
        _require(_refuseUnopened(scope.channelId, totals));
        _deposit(scope, account, totals, side, amount, funding);
    }

    /// @inheritdoc IAdjudicator
    function fundMany(FundEntry[] calldata entries) external payable nonReentrant {
        uint256 count = entries.length;
        bytes32[] memory ids = new bytes32[](count);
        uint256 asked;
        for (uint256 i = 0; i < count; ++i) {
            ids[i] = channelIdOf(entries[i].terms);
            if (entries[i].asset == NATIVE) asked += entries[i].amount;
        }
        if (asked != msg.value) revert NativeAmountMismatch(msg.value, asked);

        uint256 forwarded;
        for (uint256 start = 0; start < count;) {
            uint256 end = start + 1;
            while (
                end < count && entries[end].asset == entries[start].asset
                    && _shardOf(ids[end]) == _shardOf(ids[start])
            ) ++end;
            forwarded += _fundGroup(entries, ids, start, end);
            start = end;
        }
        uint256 rest = msg.value - forwarded;
        if (rest > 0 && !LowLevelCall.callNoReturn(msg.sender, rest, "")) revert RefundFailed(msg.sender, rest);
    }

    /// @notice Pulls exactly `amount` into a vault or reverts; the part of `fundMany` that must be undone as a whole when less arrives.
    /// @dev Callable by this contract only, which always names its own caller as the payer.
    /// @param asset the token
    /// @param payer whose allowance for this contract is used
    /// @param vault where the tokens go
    /// @param amount base units
    function pullExactly(address asset, address payer, address vault, uint256 amount) external {
        if (msg.sender != address(this)) revert OnlySelf(msg.sender);
        uint256 before = _balanceOf(asset, vault);
        SafeERC20.safeTransferFrom(IERC20(asset), payer, vault, amount);
        uint256 arrived = _rise(before, _balanceOf(asset, vault));
        if (arrived < amount) revert TransferShort(asset, amount, arrived);
    }

    // ---------------------------------------------------------------- settling

    /// @inheritdoc IAdjudicator
    function settle(SettleEntry calldata entry) external nonReentrant {
        Debt memory debt;
        _require(_settle(entry, debt));
        _owe(debt);
    }

    /// @inheritdoc IAdjudicator
    function settleMany(SettleEntry[] calldata entries) external nonReentrant {
        Debt memory debt;
        uint256 mark = _memoryMark();
        for (uint256 i = 0; i < entries.length; ++i) {
            _report(i, _settle(entries[i], debt));
            _forgetMemory(mark);
        }
        _owe(debt);
    }

    // ---------------------------------------------------------------- closing

    /// @inheritdoc IAdjudicator
    function startClose(Terms calldata terms, address asset, uint64 validUntil, uint8 side, bytes calldata signature)
        external
        nonReentrant
    {
        _require(_startClose(terms, asset, validUntil, side, signature));
    }

    /// @inheritdoc IAdjudicator
    function startCloseMany(CloseEntry[] calldata entries) external nonReentrant {
        uint256 mark = _memoryMark();
        for (uint256 i = 0; i < entries.length; ++i) {
            CloseEntry calldata e = entries[i];
            _report(i, _startClose(e.terms, e.asset, e.validUntil, e.side, e.signature));
            _forgetMemory(mark);
        }
    }

    /// @inheritdoc IAdjudicator
    function respond(Terms calldata terms, address asset, Evidence calldata evidence) external nonReentrant {
        _require(_respond(terms, asset, evidence));
    }

    /// @inheritdoc IAdjudicator
    function respondMany(RespondEntry[] calldata entries) external nonReentrant {
        uint256 mark = _memoryMark();
        for (uint256 i = 0; i < entries.length; ++i) {
            _report(i, _respond(entries[i].terms, entries[i].asset, entries[i].evidence));
            _forgetMemory(mark);
        }
    }

    /// @inheritdoc IAdjudicator
    function finalize(Terms calldata terms, address asset) external nonReentrant {
        Debt memory debt;
        _require(_finalize(terms, asset, debt));
        _owe(debt);
    }

    /// @inheritdoc IAdjudicator
    function finalizeMany(FinalizeEntry[] calldata entries) external nonReentrant {
        Debt memory debt;
        uint256 mark = _memoryMark();
        for (uint256 i = 0; i < entries.length; ++i) {
            _report(i, _finalize(entries[i].terms, entries[i].asset, debt));
            _forgetMemory(mark);
        }
        _owe(debt);
    }

    // ---------------------------------------------------------------- claiming

    /// @inheritdoc IAdjudicator
    function claim(address vault, address asset, address account) external nonReentrant {
        _claim(vault, asset, account, account);
    }

    /// @inheritdoc IAdjudicator
    function claimTo(address vault, address asset, address to) external nonReentrant {
        _claim(vault, asset, msg.sender, to);
    }

    // ---------------------------------------------------------------- views

    /// @inheritdoc IAdjudicator
    function channelIdOf(Terms calldata terms) public view returns (bytes32) {
        return Types.digest(_domainSeparatorV4(), Types.hashTerms(terms));
    }

    /// @inheritdoc IAdjudicator
    function channel(bytes32 channelId) external view returns (bool opened) {
        return _isOpened(channelId);
    }

    /// @inheritdoc IAdjudicator
    function books(bytes32 channelId, address asset) external view returns (Account memory) {
        Slots.Stored storage account = _accounts[channelId][asset];
        Slots.Totals memory totals;
        account.load(totals);
        account.loadPaid(totals);
        return Account({
            status: uint8(totals.status),
            deadline: uint64(totals.deadline),
            seq: uint64(totals.seq),
            memberDeposit: uint128(totals.memberDeposit),
            hubDeposit: uint128(totals.hubDeposit),
            memberWithdrawn: uint128(totals.memberWithdrawn),
            hubWithdrawn: uint128(totals.hubWithdrawn),
            memberPaid: uint128(totals.memberPaid),
            hubPaid: uint128(totals.hubPaid)
        });
    }

    /// @inheritdoc IAdjudicator
    function vaultOf(bytes32 channelId) public view returns (address) {
        return Create2.computeAddress(bytes32(_shardOf(channelId)), _vaultCodeHash);
    }

    /// @inheritdoc IAdjudicator
    function claimable(address vault, address asset, address account) external view returns (uint256) {
        return _claimable[_claimKey(vault, asset, account)];
    }

    /// @inheritdoc IAdjudicator
    function domainSeparator() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// @inheritdoc IAdjudicator
    function payoutGas() external pure returns (uint256) {
        return PAYOUT_GAS;
    }

    /// @inheritdoc IAdjudicator
    function authorizationNonce(bytes32 channelId, address asset, uint8 side, bytes32 payerNonce)
        public
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(channelId, asset, side, payerNonce));
    }

    /// @inheritdoc IAdjudicator
    function voucherDigest(Voucher calldata voucher) external view returns (bytes32) {
        return _hashTypedDataV4(
            Types.hashVoucher(
                voucher.channelId,
                voucher.asset,
                voucher.payer,
                voucher.lane,
                voucher.cumulative,
                voucher.credits,
                voucher.memo
            )
        );
    }

    /// @inheritdoc IAdjudicator
    function tickVoucherDigest(TickVoucher calldata voucher) external view returns (bytes32) {
        return _hashTypedDataV4(
            Types.hashTickVoucher(
                voucher.channelId,
                voucher.asset,
                voucher.lane,
                voucher.cumulative,
                voucher.tick,
                voucher.ticks,
                voucher.anchor,
                voucher.memo
            )
        );
    }

    /// @inheritdoc IAdjudicator
    function receiptDigest(Receipt calldata receipt) external view returns (bytes32) {
        return _hashTypedDataV4(
            Types.hashReceipt(
                receipt.channelId, receipt.asset, receipt.credit, receipt.amount, receipt.total, receipt.payments
            )
        );
    }

    /// @inheritdoc IAdjudicator
    function settlementDigest(Settlement calldata settlement) external view returns (bytes32) {
        return _hashTypedDataV4(Types.hashSettlement(settlement));
    }

    /// @inheritdoc IAdjudicator
    function closeRequestDigest(CloseRequest calldata request) external view returns (bytes32) {
        return _hashTypedDataV4(Types.hashCloseRequest(request.channelId, request.asset, request.validUntil));
    }

    /// @inheritdoc IAdjudicator
    function batchDigest(Batch calldata batch) external view returns (bytes32) {
        return _hashTypedDataV4(Types.hashBatch(batch.flush, batch.root));
    }

    /// @inheritdoc IAdjudicator
    function batchRoot(bytes32 digest, bytes32[] calldata path) external pure returns (bytes32) {
        return MerkleProof.processProofCalldata(path, Types.leaf(digest));
    }

    // ---------------------------------------------------------------- entries: decide, write, move money

    function _settle(SettleEntry calldata e, Debt memory debt) private returns (bytes memory refusal) {
        Books.Scope memory scope = _scope(e.terms, e.asset);
        Settlement memory s = Settlement(
            scope.channelId, scope.asset, e.seq, e.memberWithdrawn, e.hubWithdrawn, e.validUntil, e.close
        );
        Slots.Stored storage account = _accounts[s.channelId][s.asset];
        Slots.Totals memory totals;
        account.load(totals);
        refusal = _refuseUnopened(s.channelId, totals);
        if (refusal.length == 0) refusal = scope.refuseSettlement(totals, s, e);
        if (refusal.length > 0) return refusal;

        // No total falls, and none is above the deposits.
        unchecked {
            uint256 toMember = s.memberWithdrawn - totals.memberWithdrawn;
            uint256 toHub = s.hubWithdrawn - totals.hubWithdrawn;
            totals.memberWithdrawn = s.memberWithdrawn;
            totals.hubWithdrawn = s.hubWithdrawn;
            totals.seq = s.seq;
            if (s.close && totals.memberWithdrawn + totals.hubWithdrawn == totals.memberDeposit + totals.hubDeposit) {
                totals.status = STATUS_FINAL;
            }
            account.store(totals);
            emit Settled(
                s.channelId, s.asset, s.seq, s.memberWithdrawn, s.hubWithdrawn, s.close, uint8(totals.status)
            );
            _payOut(scope, e.terms, toMember, toHub, debt);
        }
    }

    function _startClose(
        Terms calldata terms,
        address asset,
        uint64 validUntil,
        uint8 side,
        bytes calldata signature
    ) private returns (bytes memory refusal) {
        Books.Scope memory scope = _scope(terms, asset);
        Slots.Stored storage account = _accounts[scope.channelId][asset];
        Slots.Totals memory totals;
        account.loadDeposits(totals);
        refusal = _refuseUnopened(scope.channelId, totals);
        if (refusal.length == 0) {
            refusal = scope.refuseClose(totals, terms, validUntil, side, signature, msg.sender);
        }
        if (refusal.length > 0) return refusal;

        uint64 deadline = uint64(block.timestamp) + terms.challengePeriod;
        totals.status = STATUS_CLOSING;
        totals.deadline = deadline;
        account.storeDeposits(totals);
        emit Closing(scope.channelId, asset, deadline);
    }

    function _respond(Terms calldata terms, address asset, Evidence calldata evidence)
        private
        returns (bytes memory refusal)
    {
        Books.Scope memory scope = _scope(terms, asset);
        Slots.Stored storage account = _accounts[scope.channelId][asset];
        Slots.Totals memory totals;
        account.loadDeposits(totals);
        refusal = scope.refuseResponse(totals);
        if (refusal.length > 0) return refusal;

        account.loadPaid(totals);
        (uint128 member, bytes memory memberRefusal) = scope.memberPaid(terms, evidence);
        (uint128 hub, bytes memory hubRefusal) = scope.hubPaid(terms, evidence);
        if (member <= totals.memberPaid && hub <= totals.hubPaid) {
            if (memberRefusal.length > 0) return memberRefusal;
            if (hubRefusal.length > 0) return hubRefusal;
            return abi.encodeWithSelector(NothingRaised.selector, totals.memberPaid, totals.hubPaid);
        }
        if (member > totals.memberPaid) totals.memberPaid = member;
        if (hub > totals.hubPaid) totals.hubPaid = hub;
        account.storePaid(totals);
        emit Proven(scope.channelId, asset, uint128(totals.memberPaid), uint128(totals.hubPaid));
    }

    function _finalize(Terms calldata terms, address asset, Debt memory debt) private returns (bytes memory refusal) {
        Books.Scope memory scope = _scope(terms, asset);
        Slots.Stored storage account = _accounts[scope.channelId][asset];
        Slots.Totals memory totals;
        account.load(totals);
        refusal = scope.refuseFinalize(totals);
        if (refusal.length > 0) return refusal;

        account.loadPaid(totals);
        (uint256 toMember, uint256 toHub) = Books.payout(totals);
        totals.status = STATUS_FINAL;
        // The two are the custody, and no more than the deposits, which fit 128 bits.
        unchecked {
            totals.memberWithdrawn += toMember;
            totals.hubWithdrawn += toHub;
        }
        account.store(totals);
        emit Finalized(scope.channelId, asset, uint128(toMember), uint128(toHub));
        _payOut(scope, terms, toMember, toHub, debt);
    }

    // ---------------------------------------------------------------- money in

    /// @dev Whether the member agreed to these terms. An EIP-3009 signature is checked here and not left to the token, because anybody can write
    /// a token that accepts everything. The domain may be whatever the token claims: the signed nonce names the channel, and nothing else is wanted.
    function _consented(
        bytes32 channelId,
        address member,
        bytes calldata consent,
        address asset,
        uint128 amount,
        Funding calldata funding
    ) private view returns (bool) {
        if (msg.sender == member) return true;
        if (consent.length > 0) return PayoutAccount.signed(member, channelId, consent);
        if (funding.kind != FUNDING_AUTHORIZATION || asset == NATIVE) return false;
        (address from, uint256 validAfter, uint256 validBefore, bytes32 payerNonce, bytes memory signature) =
            _decodeAuthorization(funding.data);
        if (from != member) return false;
        bytes32 structHash = keccak256(
            abi.encode(
                PayoutAccount.RECEIVE_WITH_AUTHORIZATION_TYPEHASH,
                from,
                vaultOf(channelId),
                uint256(amount),
                validAfter,
                validBefore,
                authorizationNonce(channelId, asset, SIDE_MEMBER, payerNonce)
            )
        );
        bytes32 digest = Types.digest(IERC20Permit(asset).DOMAIN_SEPARATOR(), structHash);
        return PayoutAccount.signed(member, digest, signature);
    }

    function _deposit(
        Books.Scope memory scope,
        Slots.Stored storage account,
        Slots.Totals memory totals,
        uint8 side,
        uint128 amount,
        Funding calldata funding
    ) private {
        _require(scope.refuseDeposit(totals, side, amount, 0));
        uint256 arrived = _collect(scope, side, amount, funding);
        if (arrived == 0) revert TransferShort(scope.asset, amount, 0);
        // The balance may have risen by more than was asked for, which must not overflow the books either.
        if (arrived != amount) _require(scope.refuseDeposit(totals, side, arrived, 0));
        _credit(account, totals, scope, side, uint128(arrived));
    }

    /// @dev Moves the money of one deposit into the channel's vault and says how much arrived.
    function _collect(Books.Scope memory scope, uint8 side, uint128 amount, Funding calldata funding)
        private
        returns (uint256)
    {
        address asset = scope.asset;
        address vault = vaultOf(scope.channelId);
        if (funding.kind > (asset == NATIVE ? FUNDING_ALLOWANCE : FUNDING_AUTHORIZATION)) {
            revert FundingKindUnsupported(funding.kind);
        }
        uint256 coins = asset == NATIVE ? amount : 0;
        if (msg.value != coins) revert NativeAmountMismatch(msg.value, coins);
        if (asset == NATIVE) {
            _forward(vault, amount);
            return amount;
        }
        uint256 before = _balanceOf(asset, vault);
        if (funding.kind == FUNDING_ALLOWANCE) {
            SafeERC20.safeTransferFrom(IERC20(asset), msg.sender, vault, amount);
        } else {
            (address from, uint256 validAfter, uint256 validBefore, bytes32 payerNonce, bytes memory signature) =
                _decodeAuthorization(funding.data);
            bytes32 nonce = authorizationNonce(scope.channelId, asset, side, payerNonce);
            _order(vault, asset, _authorizedCall(vault, from, amount, validAfter, validBefore, nonce, signature));
        }
        return _rise(before, _balanceOf(asset, vault));
    }

    /// @dev Funds the neighbouring entries `start..end`, which share vault and asset. Returns the coins sent to the vault.
    function _fundGroup(FundEntry[] calldata entries, bytes32[] memory ids, uint256 start, uint256 end)
        private
        returns (uint256)
    {
        address asset = entries[start].asset;
        address vault = vaultOf(ids[start]);
        bool[] memory good = new bool[](end - start);
        uint256 sum;
        for (uint256 i = start; i < end; ++i) {
            bytes memory refusal = _refuseFunding(entries[i], ids[i], sum);
            good[i - start] = refusal.length == 0;
            if (refusal.length == 0) sum += entries[i].amount;
            else emit EntryRefused(i, refusal);
        }
        if (sum == 0) return 0;
        if (asset == NATIVE) {
            _forward(vault, sum);
        } else {
            bytes memory refusal = _tryPull(asset, vault, sum);
            if (refusal.length > 0) {
                for (uint256 i = start; i < end; ++i) {
                    if (good[i - start]) emit EntryRefused(i, refusal);
                }
                return 0;
            }
        }
        for (uint256 i = start; i < end; ++i) {
            if (!good[i - start]) continue;
            // Read again, because a batch may name an account twice.
            Slots.Stored storage account = _accounts[ids[i]][asset];
            Slots.Totals memory totals;
            account.loadDeposits(totals);
            totals.opened = 1;
            _credit(account, totals, Books.Scope(0, ids[i], asset), entries[i].side, entries[i].amount);
        }
        return asset == NATIVE ? sum : 0;
    }

    /// @dev The sum of the group so far counts as pending on every account of it: a little too strict near 2^128, and never too lax.
    function _refuseFunding(FundEntry calldata e, bytes32 channelId, uint256 pending)
        private
        view
        returns (bytes memory refusal)
    {
        Slots.Totals memory totals;
        _accounts[channelId][e.asset].loadDeposits(totals);
        refusal = _refuseUnopened(channelId, totals);
        if (refusal.length > 0) return refusal;
        return Books.Scope(0, channelId, e.asset).refuseDeposit(totals, e.side, e.amount, pending);
    }

    /// @dev Pulls from the caller; answers with the token's error. A pull that used up nearly all gas fails the whole call: else a caller who lets
    /// his node estimate gas would be told an amount that just suffices to refuse his own entries.
    function _tryPull(address asset, address vault, uint256 amount) private returns (bytes memory refusal) {
        uint256 gasBefore = gasleft();
        try this.pullExactly(asset, msg.sender, vault, amount) {}
        catch (bytes memory reason) {
            _requireGasLeft(gasBefore, asset, amount);
            return reason.length > 0 ? reason : abi.encodeWithSelector(TransferShort.selector, asset, amount, 0);
        }
    }

    function _requireGasLeft(uint256 gasBefore, address asset, uint256 amount) private view {
        if (gasleft() < gasBefore / 32) revert PullOutOfGas(asset, amount);
    }

    /// @dev `totals` is what the account holds now; nothing can have changed it since it was read, because the guard is up.
    function _credit(
        Slots.Stored storage account,
        Slots.Totals memory totals,
        Books.Scope memory scope,
        uint8 side,
        uint128 amount
    ) private {
        uint256 total;
        // `refuseDeposit` has seen that the deposits of both sides together fit 128 bits.
        unchecked {
            total = side == SIDE_MEMBER ? totals.memberDeposit += amount : totals.hubDeposit += amount;
        }
        account.storeDeposits(totals);
        emit Deposited(scope.channelId, scope.asset, side, amount, uint128(total));
    }

    /// @dev A vault takes every coin, so only a vault without code could make this fail, and the constructor made them all.
    function _forward(address vault, uint256 amount) private {
        if (!LowLevelCall.callNoReturn(vault, amount, "")) revert RefundFailed(vault, amount);
    }

    /// @dev 65 bytes go through the standard call, anything else through its variant for contract accounts.
    function _authorizedCall(
        address vault,
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) private pure returns (bytes memory) {
        if (signature.length != 65) {
            return abi.encodeCall(
                IERC3009Bytes.receiveWithAuthorization,
                (from, vault, amount, validAfter, validBefore, nonce, signature)
            );
        }
        (bytes32 r, bytes32 s, uint8 v) = (0, 0, uint8(signature[64]));
        assembly ("memory-safe") {
            r := mload(add(signature, 0x20))
            s := mload(add(signature, 0x40))
        }
        return abi.encodeCall(
            IERC3009.receiveWithAuthorization, (from, vault, amount, validAfter, validBefore, nonce, v, r, s)
        );
    }

    function _decodeAuthorization(bytes calldata data)
        private
        pure
        returns (address from, uint256 validAfter, uint256 validBefore, bytes32 payerNonce, bytes memory signature)
    {
        return abi.decode(data, (address, uint256, uint256, bytes32, bytes));
    }

    /// @dev The balance of `account`; reverts as the token does, or without a word if there is no such token.
    function _balanceOf(address asset, address account) private view returns (uint256 held) {
        bytes4 selector = IERC20.balanceOf.selector;
        assembly ("memory-safe") {
            mstore(0x00, selector)
            mstore(0x04, and(account, sub(shl(160, 1), 1)))
            if iszero(staticcall(gas(), asset, 0x00, 0x24, 0x00, 0x20)) {
                let ptr := mload(0x40)
                returndatacopy(ptr, 0x00, returndatasize())
                revert(ptr, returndatasize())
            }
            if lt(returndatasize(), 0x20) { revert(0x00, 0x00) }
            held := mload(0x00)
        }
    }

    function _rise(uint256 before, uint256 afterwards) private pure returns (uint256) {
        unchecked {
            return afterwards > before ? afterwards - before : 0;
        }
    }

    // ---------------------------------------------------------------- money out

    /// @dev Members are paid at once. The hub's part becomes claimable: a transfer to it in every call would make its balance the one slot that all
    /// transactions wait for.
    function _payOut(
        Books.Scope memory scope,
        Terms calldata terms,
        uint256 toMember,
        uint256 toHub,
        Debt memory debt
    ) private {
        if (toMember | toHub == 0) return;
        address vault = vaultOf(scope.channelId);
        if (toHub > 0) {
            if (debt.vault != vault || debt.asset != scope.asset || debt.account != terms.hub) {
                _owe(debt);
                (debt.vault, debt.asset, debt.account, debt.amount) = (vault, scope.asset, terms.hub, 0);
            }
            // 128-bit numbers, far fewer of them than 2^128.
            unchecked {
                debt.amount += toHub;
            }
        }
        if (toMember > 0) _pay(vault, scope.asset, terms.member, toMember);
    }

    /// @dev A payout never stops a call: what cannot be sent within its gas is owed. But the gas must be there, else a caller could starve the
    /// transfer on purpose.
    function _pay(address vault, address asset, address to, uint256 amount) private {
        uint256 available = gasleft() * 63 / 64;
        uint256 needed = PAYOUT_GAS + PAYOUT_CALL_GAS;
        if (available < needed) revert PayoutGasUnavailable(available, needed);
        if (!_send(vault, asset, to, amount, PAYOUT_GAS)) _owe(vault, asset, to, amount);
    }

    /// @dev Lets a vault send coins or tokens with at most `gasLimit` gas. Of what the receiver or token returns one word is copied.
    /// A token that returns nothing must have code, one that returns something must return true.
    function _send(address vault, address asset, address to, uint256 amount, uint256 gasLimit)
        private
        returns (bool done)
    {
        bytes4 transfer = IERC20.transfer.selector;
        assembly ("memory-safe") {
            let mask := sub(shl(160, 1), 1)
            let ptr := mload(0x40)
            let size := 0x40
            let token := and(asset, mask)
            switch token
            case 0 {
                mstore(ptr, and(to, mask))
                mstore(add(ptr, 0x20), amount)
            }
            default {
                mstore(ptr, token)
                mstore(add(ptr, 0x20), 0)
                mstore(add(ptr, 0x40), transfer)
                mstore(add(ptr, 0x44), and(to, mask))
                mstore(add(ptr, 0x64), amount)
                size := 0x84
            }
            done := call(gasLimit, vault, 0, ptr, size, 0x00, 0x20)
            if token {
                switch returndatasize()
                case 0 { done := and(done, gt(extcodesize(token), 0)) }
                default { done := and(done, and(gt(returndatasize(), 0x1f), eq(mload(0x00), 1))) }
            }
        }
    }

    /// @dev Lets a vault call `target`; reverts with its reason.
    function _order(address vault, address target, bytes memory data) private {
        bytes memory order = abi.encodePacked(uint256(uint160(target)), uint256(0), data);
        if (!LowLevelCall.callNoReturn(vault, order)) LowLevelCall.bubbleRevert();
    }

    function _owe(Debt memory debt) private {
        if (debt.amount > 0) _owe(debt.vault, debt.asset, debt.account, debt.amount);
    }

    function _owe(address vault, address asset, address account, uint256 amount) private {
        bytes32 key = _claimKey(vault, asset, account);
        uint256 total = _claimable[key] + amount;
        _claimable[key] = total;
        emit Claimable(vault, asset, account, amount, total);
    }

    function _claim(address vault, address asset, address account, address to) private {
        bytes32 key = _claimKey(vault, asset, account);
        uint256 amount = _claimable[key];
        if (amount == 0) revert NothingToClaim(vault, asset, account);
        _claimable[key] = 0;
        emit Claimed(vault, asset, account, to, amount);
        if (_send(vault, asset, to, amount, gasleft())) return;
        if (asset == NATIVE) revert RefundFailed(to, amount);
        // The token's own reason, unless it said nothing or `false`.
        uint256 size = LowLevelCall.returnDataSize();
        if (size != 0 && size != 0x20) LowLevelCall.bubbleRevert();
        revert SafeERC20.SafeERC20FailedOperation(asset);
    }

    // ---------------------------------------------------------------- helpers

    function _scope(Terms calldata terms, address asset) private view returns (Books.Scope memory scope) {
        scope.domain = _domainSeparatorV4();
        scope.channelId = Types.digest(scope.domain, Types.hashTerms(terms));
        scope.asset = asset;
    }

    /// @dev An account knows whether its channel is open once something happened to it; before, the home account knows.
    function _refuseUnopened(bytes32 channelId, Slots.Totals memory totals) private view returns (bytes memory refusal) {
        if (totals.opened == 0) {
            if (!_isOpened(channelId)) return abi.encodeWithSelector(NotOpened.selector, channelId);
            totals.opened = 1;
        }
    }

    function _isOpened(bytes32 channelId) private view returns (bool) {
        Slots.Totals memory home;
        _accounts[channelId][homeAsset].loadDeposits(home);
        return home.opened == 1;
    }

    function _shardOf(bytes32 channelId) private view returns (uint256) {
        return uint256(channelId) % shards;
    }

    function _claimKey(address vault, address asset, address account) private pure returns (bytes32) {
        return keccak256(abi.encode(vault, asset, account));
    }

    /// @dev Reverts with a refusal, if it is one.
    function _require(bytes memory refusal) private pure {
        if (refusal.length > 0) LowLevelCall.bubbleRevert(refusal);
    }

    /// @dev Where memory is free now.
    function _memoryMark() private pure returns (uint256 mark) {
        assembly ("memory-safe") {
            mark := mload(0x40)
        }
    }

    /// @dev Frees what was taken since `mark`. Memory costs with its square, and an entry of a batch leaves nothing in it that the next one needs.
    function _forgetMemory(uint256 mark) private pure {
        assembly ("memory-safe") {
            mstore(0x40, mark)
        }
    }

    /// @dev Tells the world why an entry of a batch had no effect.
    function _report(uint256 index, bytes memory refusal) private {
        if (refusal.length > 0) emit EntryRefused(index, refusal);
    }
}
