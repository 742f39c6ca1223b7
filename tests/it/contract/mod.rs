//! The contract as it behaves on real chains: the embedded ledger with both signature schemes, and `anvil`.
//!
//! Each story is told once and run on every chain. [`stories`] are about money, [`refusals`] about what the contract
//! says no to and in which words, [`hostile`] about contracts that mean harm; [`vectors`] and [`digests`] hold contract
//! and programs to the same bytes.

mod digests;
mod hostile;
mod pair;
mod raw;
mod refusals;
mod stories;
mod vectors;

/// Runs each story on every chain: a test per story and chain.
macro_rules! on_every_chain {
    ($($story:ident),* $(,)?) => { $(
        mod $story {
            use payhub_tests::chains::World;
            use proto::Scheme;

            #[tokio::test]
            async fn embedded_ed25519() {
                super::$story(&World::embedded(Scheme::Ed25519).await).await;
            }

            #[tokio::test]
            async fn embedded_secp256k1() {
                super::$story(&World::embedded(Scheme::Secp256k1).await).await;
            }

            #[tokio::test]
            async fn anvil() {
                super::$story(&World::anvil().await).await;
            }
        }
    )* };
}

/// Runs each story once on the embedded ledger and once on anvil, for what does not depend on the world's scheme.
macro_rules! on_both_ledgers {
    ($($story:ident),* $(,)?) => { $(
        mod $story {
            use payhub_tests::chains::World;
            use proto::Scheme;

            #[tokio::test]
            async fn embedded() {
                super::$story(&World::embedded(Scheme::Ed25519).await).await;
            }

            #[tokio::test]
            async fn anvil() {
                super::$story(&World::anvil().await).await;
            }
        }
    )* };
}

use {on_both_ledgers, on_every_chain};
