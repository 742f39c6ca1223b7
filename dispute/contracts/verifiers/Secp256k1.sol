// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @title Secp256k1 by recovery
/// @dev Exactly 65 bytes (r, s at most half the order, v 27 or 28). The key is the signer's address, left-padded to 32 bytes.
library Secp256k1 {
    /// Whether `signature` recovers to `key`.
    function verify(bytes32 digest, bytes32 key, bytes calldata signature) internal pure returns (bool) {
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        return failure == ECDSA.RecoverError.NoError && bytes32(uint256(uint160(signer))) == key;
    }

    /// Whether the key is a left-padded address other than zero.
    function isAddress(bytes32 key) internal pure returns (bool) {
        return key != 0 && uint256(key) <= type(uint160).max;
    }
}
