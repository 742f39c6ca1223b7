// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {LowLevelCall} from "@openzeppelin/contracts/utils/LowLevelCall.sol";

import {NATIVE} from "./Types.sol";

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

/// @title Holds the tokens of the channels of one shard
/// @notice Obeys its adjudicator and nobody else; knows nothing about channels.
/// @dev Deployed once by the adjudicator and cloned for every shard. The adjudicator is an immutable of the implementation, so that clones
/// have no storage and no initialiser. Sharding keeps the balances of unrelated channels in different slots, which lets a ledger execute their
/// transactions in parallel.
contract Vault {
    /// @notice The caller is not the adjudicator.
    error NotAdjudicator(address caller);
    /// @notice The receiver did not take the coins.
    error CoinsRefused(address to, uint256 amount);

    /// @notice The only account that this vault obeys.
    address public immutable adjudicator = msg.sender;

    modifier onlyAdjudicator() {
        if (msg.sender != adjudicator) revert NotAdjudicator(msg.sender);
        _;
    }

    /// @notice Takes native coins. A gift from a stranger only makes the vault hold more than it owes.
    receive() external payable {}

    /// @notice Sends `amount` of `asset`; reverts if it cannot.
    /// @dev Nothing that the receiver returns is copied. The caller decides how much gas this gets.
    function send(address asset, address to, uint256 amount) external onlyAdjudicator {
        if (asset != NATIVE) return SafeERC20.safeTransfer(IERC20(asset), to, amount);
        if (!LowLevelCall.callNoReturn(to, amount, "")) revert CoinsRefused(to, amount);
    }

    /// @notice Pulls tokens by an EIP-3009 authorisation to this vault.
    /// @dev 65 bytes go through the standard call, anything else through its variant for contract accounts.
    function receiveAuthorized(
        address asset,
        address from,
        uint256 amount,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external onlyAdjudicator {
        if (signature.length == 65) {
            IERC3009(asset).receiveWithAuthorization(
                from,
                address(this),
                amount,
                validAfter,
                validBefore,
                nonce,
                uint8(signature[64]),
                bytes32(signature[:32]),
                bytes32(signature[32:64])
            );
        } else {
            IERC3009Bytes(asset).receiveWithAuthorization(
                from, address(this), amount, validAfter, validBefore, nonce, signature
            );
        }
    }
}
