// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title Holds the tokens of the channels of one shard
/// @notice Obeys its adjudicator and nobody else; knows nothing about channels or tokens.
/// @dev Deployed by the adjudicator's constructor, once a shard. Sharding keeps the balances of unrelated channels in different slots, which lets a
/// ledger execute their transactions in parallel. The code is whole in every vault and small enough for that: a clone would cost each payout
/// the 2,600 gas of looking at a second account.
///
/// An order is a word with the target, a word with the coins, and the call's data. The adjudicator alone makes orders, and makes three kinds only:
/// `transfer` and `receiveWithAuthorization` of a channel's token, and coins without data. It also calls tokens and accounts that strangers name,
/// and a stranger may name a vault: those calls begin with a function's selector, an order with twelve bytes of zero, so none is mistaken.
contract Vault {
    /// @notice This is no order of the adjudicator.
    error NotAnOrder(address caller);

    /// @dev The only account that this vault obeys. Not public: the vault answers to orders, so it has no functions.
    address private immutable _adjudicator = msg.sender;

    /// @notice Takes native coins, from anybody: a gift only makes the vault hold more than it owes. Carries out an order and answers as its target did.
    /// @dev All that is copied is paid for with the gas of this call, which the adjudicator limits where the target must not be able to stop it.
    /// In assembly throughout, because a deployment pays for this code once a vault.
    fallback() external payable {
        address adjudicator = _adjudicator;
        bytes4 refusal = NotAnOrder.selector;
        // Memory-safe: everything is written above the free memory pointer or in scratch space, and the call ends here.
        assembly ("memory-safe") {
            if calldatasize() {
                let target := calldataload(0x00)
                if or(xor(caller(), adjudicator), or(shr(160, target), lt(calldatasize(), 0x40))) {
                    mstore(0x00, refusal)
                    mstore(0x04, caller())
                    revert(0x00, 0x24)
                }
                let ptr := mload(0x40)
                let size := sub(calldatasize(), 0x40)
                calldatacopy(ptr, 0x40, size)
                let done := call(gas(), target, calldataload(0x20), ptr, size, 0x00, 0x00)
                returndatacopy(ptr, 0x00, returndatasize())
                if iszero(done) { revert(ptr, returndatasize()) }
                return(ptr, returndatasize())
            }
        }
    }
}
