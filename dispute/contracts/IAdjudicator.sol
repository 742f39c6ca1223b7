// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {
    Account,
    Batch,
    CloseEntry,
    CloseRequest,
    Evidence,
    FinalizeEntry,
    FundEntry,
    Funding,
    OpenEntry,
    Receipt,
    RespondEntry,
    SettleEntry,
    Settlement,
    Terms,
    TickVoucher,
    Voucher
} from "./Types.sol";

/// @title The adjudicator of payhub channels
/// @notice Holds the deposits of channels between members and hubs, pays what both sign, and pays what the evidence shows when they do not agree.
/// @dev A channel is known by the digest of its terms; the terms travel in calldata and only one bit per channel is stored. Each (channel, asset)
/// is an account with its own books. Immutable: no owner, no upgrade, no pause.
///
/// Promises (`docs/contract.md` lists them all, with the tests that hold the code to them):
///  - I1: `memberWithdrawn + hubWithdrawn <= memberDeposit + hubDeposit` for every account after every call.
///  - I2: every total and `seq` only grows; a deadline is set once; Final is for ever.
///  - I9: per vault and asset, the token balance covers the custody of its accounts and everything claimable from it. Tokens that take fees on
///    transfer are credited with what arrived; tokens whose balances shrink by themselves are unsupported.
///
/// Batches (`...Many`): an entry that the single call would refuse is skipped with `EntryRefused`. A batch reverts as a whole only when gas runs
/// short (so that gas estimation never settles on an amount that quietly skips entries) or when its calldata is malformed. Neighbouring entries
/// of one vault and asset share a token transfer (`fundMany`) or the hub's claimable slot and event (`settleMany`, `finalizeMany`): sort by them.
///
/// Sides: 0 member, 1 hub. Status: 0 Open, 1 Closing, 2 Final. Asset zero is the native coin. Times are seconds; a field is valid while
/// `block.timestamp <= field`. Amounts are base units.
interface IAdjudicator {
    // ---------------------------------------------------------------- events

    /// @notice A channel came into being.
    event Opened(bytes32 indexed channelId, address indexed hub, address indexed member, Terms terms);
    /// @notice `amount` arrived for `side`; `total` is the cumulative deposit of that side.
    event Deposited(bytes32 indexed channelId, address indexed asset, uint8 side, uint128 amount, uint128 total);
    /// @notice A settlement was posted. `close` with a `status` other than 2 means that a deposit crossed the close and a rest is left.
    event Settled(
        bytes32 indexed channelId,
        address indexed asset,
        uint64 seq,
        uint128 memberWithdrawn,
        uint128 hubWithdrawn,
        bool close,
        uint8 status
    );
    /// @notice A unilateral close began. Evidence counts in blocks with a timestamp before `deadline`.
    event Closing(bytes32 indexed channelId, address indexed asset, uint64 deadline);
    /// @notice Evidence raised a total; both proven totals as they are now.
    event Proven(bytes32 indexed channelId, address indexed asset, uint128 memberPaid, uint128 hubPaid);
    /// @notice A unilateral close ended; what each side got in this call. The account is Final.
    event Finalized(bytes32 indexed channelId, address indexed asset, uint128 toMember, uint128 toHub);
    /// @notice `amount` became claimable for `account`, `total` is what it can claim from this vault now.
    event Claimable(address indexed vault, address indexed asset, address indexed account, uint256 amount, uint256 total);
    /// @notice `account`'s claimable `amount` was sent to `to`.
    event Claimed(address indexed vault, address indexed asset, address indexed account, address to, uint256 amount);
    /// @notice Entry `index` of a batch had no effect; `reason` is the ABI-encoded error that the single call would have reverted with.
    event EntryRefused(uint256 index, bytes reason);

    // ---------------------------------------------------------------- errors: terms and consent

    /// @notice No `open` for these terms was ever accepted.
    error NotOpened(bytes32 channelId);
    /// @notice The member neither called, nor signed the terms, nor signed the authorisation that pays.
    error NotConsented(bytes32 channelId, address member);
    /// @notice The challenge period is outside of this deployment's bounds, in seconds.
    error PeriodOutOfBounds(uint32 given, uint32 min, uint32 max);
    /// @notice Payout accounts must differ and not be zero.
    error BadPayoutAccounts(address hub, address member);
    /// @notice A key scheme that does not exist (1 Ed25519, 2 secp256k1), or Ed25519 where the ledger cannot verify it.
    error UnknownScheme(uint8 scheme);
    /// @notice Not a canonical Ed25519 key, or not a left-padded non-zero address.
    error IllFormedKey(uint8 scheme, bytes32 key);

    // ---------------------------------------------------------------- errors: deposits

    /// @notice Neither 0 (member) nor 1 (hub).
    error UnknownSide(uint8 side);
    /// @notice The ways to pay are 0 (caller) and 1 (EIP-3009, tokens only).
    error FundingKindUnsupported(uint8 kind);
    /// @notice A deposit needs an amount.
    error AmountIsZero();
    /// @notice The coins sent with the call are not the sum that its entries name.
    error NativeAmountMismatch(uint256 sent, uint256 asked);
    /// @notice Deposits of one account may sum to 2^128 - 1 at most.
    error DepositsOverflow(uint256 total);
    /// @notice Fewer tokens reached the vault than were asked for.
    error TransferShort(address asset, uint256 asked, uint256 arrived);
    /// @notice Coins could not be sent: back to the caller of a batch with refused entries, or to the account that claims them.
    error RefundFailed(address to, uint256 amount);
    /// @notice A transfer or an opening in a batch used up the gas; nothing was done. Send more gas.
    error PullOutOfGas(address asset, uint256 amount);
    /// @notice Only the contract itself may call this.
    error OnlySelf(address caller);

    // ---------------------------------------------------------------- errors: status and time

    /// @notice The account is closing; `deadline` ends the challenge period.
    error AccountClosing(bytes32 channelId, address asset, uint64 deadline);
    /// @notice The account is not closing: nothing to respond to and nothing to finalize.
    error AccountNotClosing(bytes32 channelId, address asset);
    /// @notice Final is for ever.
    error AccountFinal(bytes32 channelId, address asset);
    /// @notice The challenge period is over.
    error ChallengeOver(uint64 deadline, uint256 timestamp);
    /// @notice The challenge period still runs.
    error ChallengeRunning(uint64 deadline, uint256 timestamp);
    /// @notice `validUntil` is past.
    error Expired(uint64 validUntil, uint256 timestamp);

    // ---------------------------------------------------------------- errors: settlements and closes

    /// @notice A settlement with this or a higher sequence number was posted before.
    error StaleSequence(uint64 given, uint64 stored);
    /// @notice Withdrawn totals never fall.
    error TotalsLowered(uint128 memberWithdrawn, uint128 hubWithdrawn, uint128 storedMember, uint128 storedHub);
    /// @notice Nothing is paid beyond the custody of the account.
    error TotalsExceedDeposits(uint256 withdrawn, uint256 deposited);
    /// @notice A close without a signature must come from one of the two payout accounts.
    error NotPayoutAccount(address caller);
    /// @notice The signature of `side` does not verify over `digest` (the digest of the batch for a batch proof).
    error BadSignature(uint8 side, bytes32 digest);
    /// @notice Batch proofs have at most 32 steps.
    error PathTooLong(uint256 length);

    // ---------------------------------------------------------------- errors: evidence

    /// @notice Members use lanes 0 to 63, the hub lane 0 only.
    error LaneOutOfRange(uint8 payer, uint32 lane);
    /// @notice Lanes of a list must rise, and no lane may appear as plain and as tick voucher.
    error LaneRepeated(uint32 lane);
    /// @notice Only hub vouchers number credits.
    error CreditsNotZero(uint64 credits);
    /// @notice Only the hub signs batches.
    error BatchByMember(uint32 lane);
    /// @notice 1 to 2048 ticks, and an index of at most that.
    error TicksOutOfRange(uint32 ticks, uint32 index);
    /// @notice The last tick would be worth more than 2^128 - 1.
    error TickValueOverflow(uint256 value);
    /// @notice SHA-256 applied `index` times to the preimage does not give the anchor.
    error WrongPreimage(bytes32 anchor, uint32 index);
    /// @notice The evidence proves nothing above what is stored.
    error NothingRaised(uint128 memberPaid, uint128 hubPaid);

    // ---------------------------------------------------------------- errors: payouts and deployment

    /// @notice Nothing is claimable.
    error NothingToClaim(address vault, address asset, address account);
    /// @notice A payout must get its full gas allowance, else the caller could make it fail on purpose. Send more gas.
    error PayoutGasUnavailable(uint256 available, uint256 needed);
    /// @notice Shards must be 1 to 128, periods `1 <= min <= max`.
    error BadDeployment(uint256 shards, uint32 minChallengePeriod, uint32 maxChallengePeriod);

    // ---------------------------------------------------------------- opening and funding

    /// @notice Opens a channel and deposits for the member. For a channel that is open already this is a deposit.
    /// @dev Needs the member's consent: he is the caller; or `consent` is his signature over the channel id (65 bytes secp256k1, or ERC-1271 if
    /// the account has code); or `funding` is an EIP-3009 authorisation that he signed, whose nonce names this channel. `amount` may be 0.
    /// @param terms the terms; their digest is the channel id
    /// @param consent empty when consent is given otherwise
    /// @param asset the token, zero for the native coin
    /// @param amount base units; credited is what arrives
    /// @param funding how it is paid, see `Funding`
    /// @return channelId the digest of the terms
    function open(
        Terms calldata terms,
        bytes calldata consent,
        address asset,
        uint128 amount,
        Funding calldata funding
    ) external payable returns (bytes32 channelId);

    /// @notice Many channels; what `open` would refuse is skipped with `EntryRefused`. The caller pays where no authorisation does.
    /// @dev Takes no coins: a native entry opens with amount 0 and is funded by `fundMany`.
    /// @param entries one struct for each call of the single kind, in any order unless said otherwise
    function openMany(OpenEntry[] calldata entries) external;

    /// @notice Deposits for either side. Anyone may, while the account is Open.
    /// @param terms the channel's terms, whose digest is its id
    /// @param asset the token, zero for the native coin
    /// @param side 0 member, 1 hub
    /// @param amount base units; credited is what arrives
    /// @param funding how it is paid, see `Funding`
    function deposit(Terms calldata terms, address asset, uint8 side, uint128 amount, Funding calldata funding)
        external
        payable;

    /// @notice Many deposits paid by the caller. Neighbouring entries of one (vault, asset) are pulled with one transfer, so sort by those.
    /// @dev `msg.value` must be exactly the sum of the native entries; coins of refused entries are sent back.
    /// @param entries one struct for each call of the single kind, in any order unless said otherwise
    function fundMany(FundEntry[] calldata entries) external payable;

    // ---------------------------------------------------------------- settling

    /// @notice Posts a settlement that both signed and pays the difference to what was withdrawn before. Works while Open and, before the
    /// deadline, while Closing. With `close` the account becomes Final if nothing is left in it.
    /// @param entry the settlement and both signatures, see `SettleEntry`
    function settle(SettleEntry calldata entry) external;

    /// @notice Many settlements; a bad one is skipped with `EntryRefused`.
    /// @param entries one struct for each call of the single kind, in any order unless said otherwise
    function settleMany(SettleEntry[] calldata entries) external;

    // ---------------------------------------------------------------- closing

    /// @notice Starts a unilateral close. With an empty `signature` the caller must be a payout account and `validUntil` and `side` are not
    /// looked at; else `signature` is over `CloseRequest(channelId, asset, validUntil)` by the voucher key of `side`.
    /// @param terms the channel's terms, whose digest is its id
    /// @param asset the token, zero for the native coin
    /// @param validUntil until when the request counts, a timestamp in seconds
    /// @param side 0 member, 1 hub
    /// @param signature the voucher key's signature over the request; empty for a payout account that calls
    function startClose(Terms calldata terms, address asset, uint64 validUntil, uint8 side, bytes calldata signature)
        external;

    /// @notice Many unilateral closes; a bad one is skipped with `EntryRefused`.
    /// @param entries one struct for each call of the single kind, in any order unless said otherwise
    function startCloseMany(CloseEntry[] calldata entries) external;

    /// @notice Posts evidence while the challenge period runs. Anyone may. Each direction counts on its own and only upwards.
    /// @dev Reverts only if nothing was raised: with the first fault found, or `NothingRaised`.
    /// @param terms the channel's terms, whose digest is its id
    /// @param asset the token, zero for the native coin
    /// @param evidence vouchers, ticks and receipts, see `Evidence`
    function respond(Terms calldata terms, address asset, Evidence calldata evidence) external;

    /// @notice Many responses; a bad one is skipped with `EntryRefused`.
    /// @param entries one struct for each call of the single kind, in any order unless said otherwise
    function respondMany(RespondEntry[] calldata entries) external;

    /// @notice Pays out after the deadline. Anyone may. The member gets `min(C, max(0, MD + PH - MW - PM))`, the hub the rest of the custody `C`.
    /// @param terms the channel's terms, whose digest is its id
    /// @param asset the token, zero for the native coin
    function finalize(Terms calldata terms, address asset) external;

    /// @notice Many payouts; a bad one is skipped with `EntryRefused`.
    /// @param entries one struct for each call of the single kind, in any order unless said otherwise
    function finalizeMany(FinalizeEntry[] calldata entries) external;

    // ---------------------------------------------------------------- claiming

    /// @notice Sends everything claimable of `account` to `account`. Anyone may; reverts if it cannot be sent.
    /// @param vault the vault that owes it, see `vaultOf`
    /// @param asset the token, zero for the native coin
    /// @param account whose money it is
    function claim(address vault, address asset, address account) external;

    /// @notice Sends everything claimable of the caller to `to`.
    /// @param vault the vault that owes it, see `vaultOf`
    /// @param asset the token, zero for the native coin
    /// @param to where it goes
    function claimTo(address vault, address asset, address to) external;

    // ---------------------------------------------------------------- views

    /// @notice The channel id of terms, valid or not.
    /// @param terms the channel's terms, whose digest is its id
    /// @return the channel id
    function channelIdOf(Terms calldata terms) external view returns (bytes32);

    /// @notice Whether a channel was opened.
    /// @param channelId the digest of the channel's terms
    /// @return opened whether `open` was ever accepted for its terms
    function channel(bytes32 channelId) external view returns (bool opened);

    /// @notice The books of an account.
    /// @param channelId the digest of the channel's terms
    /// @param asset the token, zero for the native coin
    /// @return everything that is known of the account; all zero if nothing ever happened to it
    function books(bytes32 channelId, address asset) external view returns (Account memory);

    /// @notice The vault that holds a channel's money.
    /// @param channelId the digest of the channel's terms
    /// @return the vault
    function vaultOf(bytes32 channelId) external view returns (address);

    /// @notice What `account` can claim from `vault`.
    /// @param vault the vault that owes it, see `vaultOf`
    /// @param asset the token, zero for the native coin
    /// @param account whose money it is
    /// @return base units
    function claimable(address vault, address asset, address account) external view returns (uint256);

    /// @notice The EIP-712 domain separator of everything signed for this contract.
    /// @return the separator of name "payhub", version "1", this chain and this contract
    function domainSeparator() external view returns (bytes32);

    /// @notice Whether Ed25519 keys (scheme 1) can be used on this ledger.
    /// @return whether the precompile answered when this contract was deployed
    function ed25519Available() external view returns (bool);

    /// @notice Shortest challenge period accepted, in seconds.
    /// @return seconds
    function minChallengePeriod() external view returns (uint32);

    /// @notice Longest challenge period accepted, in seconds.
    /// @return seconds
    function maxChallengePeriod() external view returns (uint32);

    /// @notice The asset whose accounts are the cheapest to open: the mark that a channel is open lies in its account in this asset.
    /// @return the token, zero for the native coin
    function homeAsset() external view returns (address);

    /// @notice Number of vaults.
    /// @return how many there are
    function shards() external view returns (uint256);

    /// @notice The gas that a payout to a member gets; what fails within it becomes claimable.
    /// @return gas
    function payoutGas() external pure returns (uint256);

    /// @notice The nonce that an EIP-3009 authorisation must carry to pay a deposit: it binds the money to one side of one account.
    /// @param channelId the digest of the channel's terms
    /// @param asset the token, zero for the native coin
    /// @param side 0 member, 1 hub
    /// @param payerNonce 32 bytes of the payer's choice
    /// @return the nonce
    function authorizationNonce(bytes32 channelId, address asset, uint8 side, bytes32 payerNonce)
        external
        pure
        returns (bytes32);

    /// @notice Digest that the payer of a voucher signs.
    /// @param voucher the signed struct
    /// @return the EIP-712 digest
    function voucherDigest(Voucher calldata voucher) external view returns (bytes32);

    /// @notice Digest that the member signs for a stream of ticks.
    /// @param voucher the signed struct
    /// @return the EIP-712 digest
    function tickVoucherDigest(TickVoucher calldata voucher) external view returns (bytes32);

    /// @notice Digest that the hub signs for a receipt.
    /// @param receipt the signed struct
    /// @return the EIP-712 digest
    function receiptDigest(Receipt calldata receipt) external view returns (bytes32);

    /// @notice Digest that both sign for a settlement.
    /// @param settlement the signed struct
    /// @return the EIP-712 digest
    function settlementDigest(Settlement calldata settlement) external view returns (bytes32);

    /// @notice Digest that a voucher key signs to allow a close.
    /// @param request the signed struct
    /// @return the EIP-712 digest
    function closeRequestDigest(CloseRequest calldata request) external view returns (bytes32);

    /// @notice Digest that the hub signs for a flush.
    /// @param batch the signed struct
    /// @return the EIP-712 digest
    function batchDigest(Batch calldata batch) external view returns (bytes32);

    /// @notice The Merkle root that `path` leads to from the leaf of `digest`.
    /// @param digest the digest that is the leaf
    /// @param path the siblings from the leaf upwards, at most 32 where it is evidence
    /// @return the root
    function batchRoot(bytes32 digest, bytes32[] calldata path) external pure returns (bytes32);
}
