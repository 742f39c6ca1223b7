// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title Holds the tokens of the channels of one shard
/// @notice Obeys its adjudicator and nobody else; knows nothing about channels or tokens.
/// @dev Deployed by the adjudicator's constructor, once a shard. Sharding keeps the balances of unrelated channels in different slots, which lets a
/// ledger execute their transactions in parallel. The code is whole in every vault and small enough for that: a clone would cost each payout
/// the 2,600 gas of looking at a second account.
///
/// An order is 20 bytes of target, 32 bytes of coins, and the call's data. The adjudicator alone makes orders, and makes three kinds only:
/// `transfer` and `receiveWithAuthorization` of a channel's token, and coins without data.
contract Vault {
    /// @notice The caller is not the adjudicator.
    error NotAdjudicator(address caller);

    /// @dev The only account that this vault obeys. Not public: the vault answers to orders, so it has no functions.
    address private immutable _adjudicator = msg.sender;

    /// @notice Takes native coins. A gift from a stranger only makes the vault hold more than it owes.
    receive() external payable {}

    /// @notice Carries out an order and answers as its target did.
    /// @dev All that is copied is paid for with the gas of this call, which the adjudicator limits where the target must not be able to stop it.
    fallback() external {
        if (msg.sender != _adjudicator) revert NotAdjudicator(msg.sender);
        // Memory-safe: everything is written above the free memory pointer, and the call ends here.
        assembly ("memory-safe") {
            let ptr := mload(0x40)
            let size := sub(calldatasize(), 52)
            calldatacopy(ptr, 52, size)
            let done := call(gas(), shr(96, calldataload(0)), calldataload(20), ptr, size, 0x00, 0x00)
            returndatacopy(ptr, 0x00, returndatasize())
            if iszero(done) { revert(ptr, returndatasize()) }
            return(ptr, returndatasize())
        }
    }
}
