//! Batches: one signature of the hub for everything that it signs in one flush.
//!
//! The tree is that of OpenZeppelin's `MerkleProof` and its JavaScript library: a leaf is
//! `keccak256(keccak256(abi.encode(digest)))`, leaves are sorted, pairs are hashed in sorted order. A single leaf is
//! its own root and is still signed as a [`Batch`]. A path is at most [`PATH_MAX`] long; there are no multiproofs.

use alloy_primitives::{B256, keccak256};

use crate::keys::{PublicKey, SecretKey, Signature};
use crate::typed::{Batch, Domain};

/// The longest path that anybody accepts: 2^32 leaves are more than a flush can hold.
pub const PATH_MAX: usize = 32;

/// The Merkle tree over the digests that one key signs in one flush.
#[derive(Clone, Debug)]
pub struct BatchTree {
    /// The nodes as a heap: the root first, the sorted leaves at the end in reverse.
    nodes: Vec<B256>,
    /// Where the leaf of each digest stands, in the order in which the digests were given.
    positions: Vec<usize>,
}

impl BatchTree {
    /// Builds the tree; `None` without digests.
    pub fn new(digests: &[B256]) -> Option<Self> {
        let count = digests.len();
        let leaves: Vec<B256> = digests.iter().map(leaf).collect();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_unstable_by_key(|&i| leaves[i]);
        let total = count.checked_mul(2)?.checked_sub(1)?;
        let mut nodes = vec![B256::ZERO; total];
        let mut positions = vec![0; count];
        for (rank, &i) in order.iter().enumerate() {
            let position = total - 1 - rank;
            nodes[position] = leaves[i];
            positions[i] = position;
        }
        for position in (0..total - count).rev() {
            nodes[position] = pair(nodes[2 * position + 1], nodes[2 * position + 2]);
        }
        Some(BatchTree { nodes, positions })
    }

    /// The root.
    pub fn root(&self) -> B256 {
        self.nodes[0]
    }

    /// The path from the leaf of the `index`-th digest to the root.
    pub fn path(&self, index: usize) -> Vec<B256> {
        let mut path = Vec::new();
        let mut position = self.positions[index];
        while position > 0 {
            let sibling = if position % 2 == 1 { position + 1 } else { position - 1 };
            path.push(self.nodes[sibling]);
            position = (position - 1) / 2;
        }
        path
    }
}

/// The root that a path leads to from a digest, or `None` where the path is too long.
pub fn root_of(digest: &B256, path: &[B256]) -> Option<B256> {
    (path.len() <= PATH_MAX).then(|| path.iter().fold(leaf(digest), |node, sibling| pair(node, *sibling)))
}

/// Signs a flush.
pub fn sign_batch(domain: &Domain, key: &SecretKey, flush: u64, root: B256) -> Signature {
    key.sign(&domain.digest(&Batch { flush, root }))
}

/// Checks the hub's signature over a flush.
pub fn verify_batch(domain: &Domain, key: &PublicKey, flush: u64, root: B256, signature: &Signature) -> bool {
    key.verify(&domain.digest(&Batch { flush, root }), signature).is_ok()
}

fn leaf(digest: &B256) -> B256 {
    keccak256(keccak256(digest))
}

fn pair(a: B256, b: B256) -> B256 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    crate::typed::chain_hash(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_leads_to_the_root_and_no_other_leaf_does() {
        for count in 1..=33u64 {
            let digests: Vec<B256> = (0..count).map(|i| keccak256(i.to_be_bytes())).collect();
            let tree = BatchTree::new(&digests).expect("there are leaves");
            for (i, digest) in digests.iter().enumerate() {
                assert_eq!(root_of(digest, &tree.path(i)), Some(tree.root()));
                assert_ne!(root_of(&keccak256(digest), &tree.path(i)), Some(tree.root()));
            }
        }
        assert!(BatchTree::new(&[]).is_none());
        assert_eq!(root_of(&B256::ZERO, &[B256::ZERO; PATH_MAX + 1]), None);
    }
}
