// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Clones} from "@openzeppelin/contracts/proxy/Clones.sol";
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
    /// @dev A vault costs 43,000 gas, the rest of the deployment 5.4 million: with this many it takes two thirds of a transaction (EIP-7825).
    uint256 private constant SHARDS_MAX = 128;

    /// @inheritdoc IAdjudicator
    uint32 public immutable minChallengePeriod;
    /// @inheritdoc IAdjudicator
    uint32 public immutable maxChallengePeriod;
    /// @inheritdoc IAdjudicator
    uint256 public immutable shards;
    /// @inheritdoc IAdjudicator
    bool public immutable ed25519Available;
    /// @dev What every vault is a clone of.
    address private immutable _vaultCode;

    mapping(bytes32 channelId => bool) private _opened;
    mapping(bytes32 channelId => mapping(address asset => Slots.Stored)) private _accounts;
    mapping(bytes32 vaultAssetAccount => uint256) private _claimable;

    /// @dev Deploys the vaults too, so that no later call pays for one.
    constructor(uint32 minChallengePeriod_, uint32 maxChallengePeriod_, uint16 shards_) EIP712("payhub", "1") {
        if (
            shards_ == 0 || shards_ > SHARDS_MAX || minChallengePeriod_ == 0
                || minChallengePeriod_ > maxChallengePeriod_
        ) revert BadDeployment(shards_, minChallengePeriod_, maxChallengePeriod_);
        minChallengePeriod = minChallengePeriod_;
        maxChallengePeriod = maxChallengePeriod_;
        shards = shards_;
        ed25519Available = Ed25519.isAvailable();
        address code = address(new Vault());
        _vaultCode = code;
        for (uint256 i = 0; i < shards_; ++i) {
            Clones.cloneDeterministic(code, bytes32(i));
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
        channelId = channelIdOf(terms);
        if (!_opened[channelId]) {
            _require(Books.refuseTerms(terms, minChallengePeriod, maxChallengePeriod, ed25519Available));
            if (!_consented(channelId, terms.member, consent, asset, amount, funding)) {
                revert NotConsented(channelId, terms.member);
            }
            _opened[channelId] = true;
            emit Opened(channelId, terms.hub, terms.member, terms);
            if (amount == 0) {
                if (msg.value != 0) revert NativeAmountMismatch(msg.value, 0);
                return channelId;
            }
        }
        _deposit(channelId, asset, SIDE_MEMBER, amount, funding);
    }

    /// @inheritdoc IAdjudicator
    function deposit(Terms calldata terms, address asset, uint8 side, uint128 amount, Funding calldata funding)
        external
        payable
        nonReentrant
    {
        bytes32 channelId = channelIdOf(terms);
        _require(_refuseUnopened(channelId, _accounts[channelId][asset].readDeposits()));
        _deposit(channelId, asset, side, amount, funding);
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
    function pullExactly(address asset, address payer, address vault, uint256 amount) external {
        if (msg.sender != address(this)) revert OnlySelf(msg.sender);
        uint256 before = IERC20(asset).balanceOf(vault);
        SafeERC20.safeTransferFrom(IERC20(asset), payer, vault, amount);
        uint256 arrived = _rise(before, IERC20(asset).balanceOf(vault));
        if (arrived < amount) revert TransferShort(asset, amount, arrived);
    }

    // ---------------------------------------------------------------- settling

    /// @inheritdoc IAdjudicator
    function settle(SettleEntry calldata entry) external nonReentrant {
        _require(_settle(entry));
    }

    /// @inheritdoc IAdjudicator
    function settleMany(SettleEntry[] calldata entries) external nonReentrant {
        for (uint256 i = 0; i < entries.length; ++i) {
            _report(i, _settle(entries[i]));
        }
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
        for (uint256 i = 0; i < entries.length; ++i) {
            CloseEntry calldata e = entries[i];
            _report(i, _startClose(e.terms, e.asset, e.validUntil, e.side, e.signature));
        }
    }

    /// @inheritdoc IAdjudicator
    function respond(Terms calldata terms, address asset, Evidence calldata evidence) external nonReentrant {
        _require(_respond(terms, asset, evidence));
    }

    /// @inheritdoc IAdjudicator
    function respondMany(RespondEntry[] calldata entries) external nonReentrant {
        for (uint256 i = 0; i < entries.length; ++i) {
            _report(i, _respond(entries[i].terms, entries[i].asset, entries[i].evidence));
        }
    }

    /// @inheritdoc IAdjudicator
    function finalize(Terms calldata terms, address asset) external nonReentrant {
        _require(_finalize(terms, asset));
    }

    /// @inheritdoc IAdjudicator
    function finalizeMany(FinalizeEntry[] calldata entries) external nonReentrant {
        for (uint256 i = 0; i < entries.length; ++i) {
            _report(i, _finalize(entries[i].terms, entries[i].asset));
        }
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
        return _opened[channelId];
    }

    /// @inheritdoc IAdjudicator
    function books(bytes32 channelId, address asset) external view returns (Account memory) {
        Slots.Stored storage account = _accounts[channelId][asset];
        Slots.Deposits memory deposited = account.readDeposits();
        Slots.Withdrawn memory withdrawn = account.readWithdrawn();
        Slots.Paid memory paid = account.paid;
        return Account({
            status: deposited.status,
            deadline: deposited.deadline,
            seq: withdrawn.seq,
            memberDeposit: deposited.member,
            hubDeposit: deposited.hub,
            memberWithdrawn: withdrawn.member,
            hubWithdrawn: withdrawn.hub,
            memberPaid: paid.member,
            hubPaid: paid.hub
        });
    }

    /// @inheritdoc IAdjudicator
    function vaultOf(bytes32 channelId) public view returns (address) {
        return Clones.predictDeterministicAddress(_vaultCode, bytes32(_shardOf(channelId)));
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
        return _hashTypedDataV4(Types.hashVoucher(voucher));
    }

    /// @inheritdoc IAdjudicator
    function tickVoucherDigest(TickVoucher calldata voucher) external view returns (bytes32) {
        return _hashTypedDataV4(Types.hashTickVoucher(voucher));
    }

    /// @inheritdoc IAdjudicator
    function receiptDigest(Receipt calldata receipt) external view returns (bytes32) {
        return _hashTypedDataV4(Types.hashReceipt(receipt));
    }

    /// @inheritdoc IAdjudicator
    function settlementDigest(Settlement calldata settlement) external view returns (bytes32) {
        return _hashTypedDataV4(Types.hashSettlement(settlement));
    }

    /// @inheritdoc IAdjudicator
    function closeRequestDigest(CloseRequest calldata request) external view returns (bytes32) {
        return _hashTypedDataV4(Types.hashCloseRequest(request));
    }

    /// @inheritdoc IAdjudicator
    function batchDigest(Batch calldata batch) external view returns (bytes32) {
        return _hashTypedDataV4(Types.hashBatch(batch));
    }

    /// @inheritdoc IAdjudicator
    function batchRoot(bytes32 digest, bytes32[] calldata path) external pure returns (bytes32) {
        return MerkleProof.processProofCalldata(path, Types.leaf(digest));
    }

    // ---------------------------------------------------------------- entries: decide, write, move money

    function _settle(SettleEntry calldata e) private returns (bytes memory refusal) {
        Terms calldata terms = e.terms;
        Books.Scope memory scope = _scope(terms, e.asset);
        Slots.Stored storage account = _accounts[scope.channelId][e.asset];
        Slots.Deposits memory deposited = account.readDeposits();
        Slots.Withdrawn memory withdrawn = account.readWithdrawn();
        refusal = _refuseUnopened(scope.channelId, deposited);
        if (refusal.length == 0) refusal = scope.refuseSettlement(deposited, withdrawn, e);
        if (refusal.length > 0) return refusal;

        uint128 toMember = e.memberWithdrawn - withdrawn.member;
        uint128 toHub = e.hubWithdrawn - withdrawn.hub;
        account.writeWithdrawn(Slots.Withdrawn(e.memberWithdrawn, e.hubWithdrawn, e.seq));
        if (e.close && uint256(e.memberWithdrawn) + e.hubWithdrawn == uint256(deposited.member) + deposited.hub) {
            deposited.status = STATUS_FINAL;
            account.writeDeposits(deposited);
        }
        emit Settled(
            scope.channelId, e.asset, e.seq, e.memberWithdrawn, e.hubWithdrawn, e.close, deposited.status
        );
        _payOut(scope, terms, toMember, toHub);
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
        Slots.Deposits memory deposited = account.readDeposits();
        refusal = _refuseUnopened(scope.channelId, deposited);
        if (refusal.length == 0) {
            refusal = scope.refuseClose(deposited, terms, validUntil, side, signature, msg.sender);
        }
        if (refusal.length > 0) return refusal;

        deposited.status = STATUS_CLOSING;
        deposited.deadline = uint64(block.timestamp) + terms.challengePeriod;
        account.writeDeposits(deposited);
        emit Closing(scope.channelId, asset, deposited.deadline);
    }

    function _respond(Terms calldata terms, address asset, Evidence calldata evidence)
        private
        returns (bytes memory refusal)
    {
        Books.Scope memory scope = _scope(terms, asset);
        Slots.Stored storage account = _accounts[scope.channelId][asset];
        refusal = scope.refuseResponse(account.readDeposits());
        if (refusal.length > 0) return refusal;

        Slots.Paid memory paid = account.paid;
        (uint128 member, bytes memory memberRefusal) = scope.memberPaid(terms, evidence);
        (uint128 hub, bytes memory hubRefusal) = scope.hubPaid(terms, evidence);
        if (member <= paid.member && hub <= paid.hub) {
            if (memberRefusal.length > 0) return memberRefusal;
            if (hubRefusal.length > 0) return hubRefusal;
            return abi.encodeWithSelector(NothingRaised.selector, paid.member, paid.hub);
        }
        if (member > paid.member) paid.member = member;
        if (hub > paid.hub) paid.hub = hub;
        account.paid = paid;
        emit Proven(scope.channelId, asset, paid.member, paid.hub);
    }

    function _finalize(Terms calldata terms, address asset) private returns (bytes memory refusal) {
        Books.Scope memory scope = _scope(terms, asset);
        Slots.Stored storage account = _accounts[scope.channelId][asset];
        Slots.Deposits memory deposited = account.readDeposits();
        refusal = scope.refuseFinalize(deposited);
        if (refusal.length > 0) return refusal;

        Slots.Withdrawn memory withdrawn = account.readWithdrawn();
        (uint128 toMember, uint128 toHub) = Books.payout(deposited, withdrawn, account.paid);
        deposited.status = STATUS_FINAL;
        account.writeDeposits(deposited);
        withdrawn.member += toMember;
        withdrawn.hub += toHub;
        account.writeWithdrawn(withdrawn);
        emit Finalized(scope.channelId, asset, toMember, toHub);
        _payOut(scope, terms, toMember, toHub);
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

    function _deposit(bytes32 channelId, address asset, uint8 side, uint128 amount, Funding calldata funding)
        private
    {
        Books.Scope memory scope = Books.Scope(_domainSeparatorV4(), channelId, asset);
        Slots.Stored storage account = _accounts[channelId][asset];
        Slots.Deposits memory deposited = account.readDeposits();
        _require(scope.refuseDeposit(deposited, side, amount, 0));
        uint256 arrived = _collect(scope, side, amount, funding);
        if (arrived == 0) revert TransferShort(asset, amount, 0);
        // The balance may have risen by more than was asked for, which must not overflow the books either.
        if (arrived != amount) _require(scope.refuseDeposit(deposited, side, arrived, 0));
        _credit(account, deposited, scope, side, uint128(arrived));
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
        uint256 before = IERC20(asset).balanceOf(vault);
        if (funding.kind == FUNDING_ALLOWANCE) {
            SafeERC20.safeTransferFrom(IERC20(asset), msg.sender, vault, amount);
        } else {
            (address from, uint256 validAfter, uint256 validBefore, bytes32 payerNonce, bytes memory signature) =
                _decodeAuthorization(funding.data);
            bytes32 nonce = authorizationNonce(scope.channelId, asset, side, payerNonce);
            Vault(payable(vault)).receiveAuthorized(asset, from, amount, validAfter, validBefore, nonce, signature);
        }
        return _rise(before, IERC20(asset).balanceOf(vault));
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
        if (asset == NATIVE) _forward(vault, sum);
        else {
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
            Books.Scope memory scope = Books.Scope(0, ids[i], asset);
            Slots.Stored storage account = _accounts[ids[i]][asset];
            _credit(account, account.readDeposits(), scope, entries[i].side, entries[i].amount);
        }
        return asset == NATIVE ? sum : 0;
    }

    /// @dev The sum of the group so far counts as pending on every account of it: a little too strict near 2^128, and never too lax.
    function _refuseFunding(FundEntry calldata e, bytes32 channelId, uint256 pending)
        private
        view
        returns (bytes memory refusal)
    {
        Slots.Deposits memory deposited = _accounts[channelId][e.asset].readDeposits();
        refusal = _refuseUnopened(channelId, deposited);
        if (refusal.length > 0) return refusal;
        Books.Scope memory scope = Books.Scope(0, channelId, e.asset);
        return scope.refuseDeposit(deposited, e.side, e.amount, pending);
    }

    /// @dev Pulls from the caller; answers with the token's error. A pull that used up nearly all gas fails the whole call: else a caller who lets
    /// his node estimate gas would be told an amount that just suffices to refuse his own entries.
    function _tryPull(address asset, address vault, uint256 amount) private returns (bytes memory refusal) {
        uint256 gasBefore = gasleft();
        try this.pullExactly(asset, msg.sender, vault, amount) {}
        catch (bytes memory reason) {
            if (gasleft() < gasBefore / 32) revert PullOutOfGas(asset, amount);
            return reason.length > 0 ? reason : abi.encodeWithSelector(TransferShort.selector, asset, amount, 0);
        }
    }

    /// @dev `deposited` is what the account holds now; nothing can have changed it since it was read, because the guard is up.
    function _credit(
        Slots.Stored storage account,
        Slots.Deposits memory deposited,
        Books.Scope memory scope,
        uint8 side,
        uint128 amount
    ) private {
        uint128 total;
        if (side == SIDE_MEMBER) total = deposited.member += amount;
        else total = deposited.hub += amount;
        account.writeDeposits(deposited);
        emit Deposited(scope.channelId, scope.asset, side, amount, total);
    }

    /// @dev A vault takes every coin, so only a vault without code could make this fail, and the constructor made them all.
    function _forward(address vault, uint256 amount) private {
        if (!LowLevelCall.callNoReturn(vault, amount, "")) revert RefundFailed(vault, amount);
    }

    function _decodeAuthorization(bytes calldata data)
        private
        pure
        returns (address from, uint256 validAfter, uint256 validBefore, bytes32 payerNonce, bytes memory signature)
    {
        return abi.decode(data, (address, uint256, uint256, bytes32, bytes));
    }

    function _rise(uint256 before, uint256 afterwards) private pure returns (uint256) {
        return afterwards > before ? afterwards - before : 0;
    }

    // ---------------------------------------------------------------- money out

    /// @dev Members are paid at once. The hub's part becomes claimable: a transfer to it in every call would make its balance the one slot that all
    /// transactions wait for.
    function _payOut(Books.Scope memory scope, Terms calldata terms, uint128 toMember, uint128 toHub) private {
        if (toMember == 0 && toHub == 0) return;
        address vault = vaultOf(scope.channelId);
        if (toHub > 0) _owe(vault, scope.asset, terms.hub, toHub);
        if (toMember > 0) _pay(vault, scope.asset, terms.member, toMember);
    }

    /// @dev A payout never stops a call: what cannot be sent within its gas is owed. But the gas must be there, else a caller could starve the
    /// transfer on purpose.
    function _pay(address vault, address asset, address to, uint256 amount) private {
        uint256 available = gasleft() * 63 / 64;
        uint256 needed = PAYOUT_GAS + PAYOUT_CALL_GAS;
        if (available < needed) revert PayoutGasUnavailable(available, needed);
        try Vault(payable(vault)).send{gas: PAYOUT_GAS}(asset, to, amount) {}
        catch {
            _owe(vault, asset, to, amount);
        }
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
        Vault(payable(vault)).send(asset, to, amount);
    }

    // ---------------------------------------------------------------- helpers

    function _scope(Terms calldata terms, address asset) private view returns (Books.Scope memory) {
        bytes32 domain = _domainSeparatorV4();
        return Books.Scope(domain, Types.digest(domain, Types.hashTerms(terms)), asset);
    }

    /// @dev Money in an account proves that its channel was opened; only an empty one needs the look-up.
    function _refuseUnopened(bytes32 channelId, Slots.Deposits memory deposited)
        private
        view
        returns (bytes memory)
    {
        if (deposited.member | deposited.hub != 0 || _opened[channelId]) return "";
        return abi.encodeWithSelector(NotOpened.selector, channelId);
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

    /// @dev Tells the world why an entry of a batch had no effect.
    function _report(uint256 index, bytes memory refusal) private {
        if (refusal.length > 0) emit EntryRefused(index, refusal);
    }
}
