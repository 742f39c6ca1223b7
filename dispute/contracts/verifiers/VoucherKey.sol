// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {Ed25519} from "./Ed25519.sol";
import {Secp256k1} from "./Secp256k1.sol";

/// @title Keys that sign vouchers, settlements and close requests
/// @dev Never ERC-1271: what such a key signed must stay valid for as long as a channel lives, and a contract can change its mind.
library VoucherKey {
    uint8 internal constant ED25519 = 1;
    uint8 internal constant SECP256K1 = 2;

    /// Whether `key` is well formed for a scheme that exists.
    function isWellFormed(uint8 scheme, bytes32 key) internal pure returns (bool) {
        return scheme == ED25519 ? Ed25519.isCanonical(key) : Secp256k1.isAddress(key);
    }

    /// Whether `signature` by `key` over `digest` is valid. An unknown scheme verifies nothing.
    function verify(uint8 scheme, bytes32 key, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        if (scheme == ED25519) return Ed25519.verify(digest, key, signature);
        if (scheme == SECP256K1) return Secp256k1.verify(digest, key, signature);
        return false;
    }
}
