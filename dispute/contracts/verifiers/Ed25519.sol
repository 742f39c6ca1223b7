// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title Ed25519 by precompile
/// @dev Exists on the embedded ledger only. Input: digest (32 bytes), key (32), signature (64). Output: the number 1 in 32 bytes when the signature
/// is valid by the protocol's one rule (no cofactor, s < L, canonical R), else nothing. A call to an empty address succeeds with no output, so
/// only the exact answer counts as valid.
library Ed25519 {
    address internal constant PRECOMPILE = 0x0000000000000000000000000000000000000Ed2;

    // A signature over SHA-256("payhub precompile check") by the key of RFC 8032, section 7.1, test 1.
    bytes32 private constant PROBE_DIGEST = 0x419ed105599af97916dce5904848f5ebdc64b4d168e4863619ef67981eb15286;
    bytes32 private constant PROBE_KEY = 0xd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a;
    bytes32 private constant PROBE_R = 0xa4adffe5680e09e732e8e216a5b69b86b4044840f0a72551f875ed38ba633fc7;
    bytes32 private constant PROBE_S = 0xcdcd76e2269168c4dba9dc03fbbd0dcc064a5432dfdfddcfd77cfddc1ffa5c01;
    // The same s plus the group order: valid for a verifier that forgets to check s < L.
    bytes32 private constant PROBE_S_PLUS_L = 0xbaa16c3f41f47a1cb246d4a6d9b7ece0064a5432dfdfddcfd77cfddc1ffa5c11;

    /// Whether `signature` is exactly 64 bytes and valid.
    function verify(bytes32 digest, bytes32 key, bytes calldata signature) internal view returns (bool) {
        if (signature.length != 64) return false;
        return _ask(digest, key, bytes32(signature[:32]), bytes32(signature[32:]));
    }

    /// Whether the 32 bytes encode y < 2^255 - 19 (little-endian, top bit is the sign of x) and are not all zero.
    /// Torsion is checked by hub and client before they serve or use a channel.
    function isCanonical(bytes32 key) internal pure returns (bool) {
        if (key == 0) return false;
        uint256 bits = uint256(key);
        // y >= p only if bytes 1..30 are 0xff, byte 31 is 0x7f without its sign bit, and byte 0 is at least 0xed.
        uint256 tail = (bits & ~(uint256(0xff) << 248)) | 0x80;
        return tail != (type(uint256).max >> 8) || (bits >> 248) < 0xed;
    }

    /// Whether the precompile answers, accepts a good signature and refuses bad ones.
    function isAvailable() internal view returns (bool) {
        return _ask(PROBE_DIGEST, PROBE_KEY, PROBE_R, PROBE_S)
            && !_ask(PROBE_DIGEST ^ bytes32(uint256(1)), PROBE_KEY, PROBE_R, PROBE_S)
            && !_ask(PROBE_DIGEST, PROBE_KEY, PROBE_R, PROBE_S_PLUS_L);
    }

    function _ask(bytes32 digest, bytes32 key, bytes32 r, bytes32 s) private view returns (bool valid) {
        address precompile = PRECOMPILE;
        assembly ("memory-safe") {
            let ptr := mload(0x40)
            mstore(ptr, digest)
            mstore(add(ptr, 0x20), key)
            mstore(add(ptr, 0x40), r)
            mstore(add(ptr, 0x60), s)
            let ok := staticcall(gas(), precompile, ptr, 0x80, 0x00, 0x20)
            valid := and(and(ok, eq(returndatasize(), 0x20)), eq(mload(0x00), 1))
        }
    }
}
