// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";

/// @title Test dollar
/// @notice A worthless token for test networks, shaped like the common dollar tokens: 6 decimals, ERC-2612 permits, EIP-3009 authorisations.
contract TestDollar is ERC20, ERC20Permit, ERC3009 {
    /// @notice Only the faucet mints.
    error NotFaucet(address caller);

    /// @notice The account that may mint.
    address public immutable faucet;

    constructor(address faucet_) ERC20("USD Hub Test", "USDH") ERC20Permit("USD Hub Test") {
        faucet = faucet_;
    }

    /// @notice Makes `amount` base units for `to`.
    function mint(address to, uint256 amount) external {
        if (msg.sender != faucet) revert NotFaucet(msg.sender);
        _mint(to, amount);
    }

    /// @inheritdoc ERC20
    function decimals() public pure override returns (uint8) {
        return 6;
    }
}
