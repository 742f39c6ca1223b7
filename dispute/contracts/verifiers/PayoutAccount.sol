// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// @title Consent of a payout account
/// @dev ERC-1271 is allowed here, and only here, because the signature is used up in the call that brings it.
library PayoutAccount {
    /// EIP-3009: what the payer signs so that `to`, and nobody else, may pull `value`.
    bytes32 internal constant RECEIVE_WITH_AUTHORIZATION_TYPEHASH = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );

    /// Whether `account` signed `digest`: 65 bytes secp256k1, or ERC-1271 if the account has code.
    function signed(address account, bytes32 digest, bytes memory signature) internal view returns (bool) {
        return SignatureChecker.isValidSignatureNow(account, digest, signature);
    }
}
