//! The same people with the same keys on two chains, a hub on each: what is signed for one is nothing on the other.

use alloy_primitives::Bytes;
use dispute::{Call, Claim, CloseOrder, Evidence, RespondOrder};
use futures::future::join;
use payhub_tests::chains::{CHAIN_ID, Person, World};
use payhub_tests::town::{Town, amount};

/// A hub process follows one ledger; an operator runs one for each chain, with the same seed if he likes.
#[tokio::test(flavor = "multi_thread")]
async fn vouchers_of_one_chain_are_worthless_on_the_other() {
    let town_on = async |chain_id| {
        let world = World::anvil_with_id(chain_id).await;
        let chain = world.chain().clone();
        Town::with(world, chain).await
    };
    let (here, there) = join(town_on(CHAIN_ID), town_on(CHAIN_ID + 1)).await;
    assert_eq!(here.chain().adjudicator().address(), there.chain().adjudicator().address());
    assert_eq!(here.usdh(), there.usdh());
    let usdh = here.usdh();
    let (alice, bob) = (here.member(1, "alice").await, here.member(2, "bob").await);
    let (alice_there, bob_there) = (there.member(1, "alice").await, there.member(2, "bob").await);
    alice.pay("bob", amount(300_000), usdh).await.expect("paid");
    here.received(&bob, 300_000).await;
    alice_there.pay("bob", amount(200_000), usdh).await.expect("paid");
    there.received(&bob_there, 200_000).await;
    assert_eq!(bob.balance(usdh).await.expect("runs").received, amount(300_000), "each has books of its own");

    let ours = here.account(bob.channel().await.expect("runs").expect("open"));
    let theirs = there.account(bob_there.channel().await.expect("runs").expect("open"));
    let voucher = bob.evidence(usdh).await.expect("runs").expect("an account").hub.expect("the hub's voucher");
    let mut evidence = Evidence::new(ours);
    evidence.add(Claim::Hub(voucher)).expect("the hub's own signature");
    let terms_here = bob.terms().await.expect("runs").expect("open");
    let terms = bob_there.terms().await.expect("runs").expect("open");
    bob_there.close_unilateral(usdh).await.expect("begun");
    let anyone = Person::Anyone;

    // As it is, on the terms of either chain; and renamed to the channel of the other chain.
    let adjudicator = there.chain().adjudicator();
    let as_it_is = adjudicator.respond(&RespondOrder { terms: terms_here, evidence: evidence.clone() });
    let on_their_terms = adjudicator.respond(&RespondOrder { terms: terms.clone(), evidence });
    let renamed = renamed(&on_their_terms, ours.channel.0.as_slice(), theirs.channel.0.as_slice());
    for call in [as_it_is, on_their_terms, renamed] {
        let refusal = there.world().refusal(there.world().address(anyone), &call).await;
        assert!(!refusal.text.is_empty());
    }
    // There the account is worth what was paid there, and his own tower shows it.
    super::on_ledger(&there, theirs, "the response there", |books| !books.hub_paid.is_zero()).await;
    assert_eq!(there.world().books(&theirs).await.hub_paid, amount(200_000));

    // On its own chain the same voucher is worth what it says.
    let close = CloseOrder { terms: bob.terms().await.expect("runs").expect("open"), asset: usdh, request: None };
    here.send_as(2, here.chain().adjudicator().start_close(&close)).await;
    super::on_ledger(&here, ours, "the response", |books| books.hub_paid == amount(300_000)).await;
    here.check_conservation().await;
    there.check_conservation().await;
}

/// The same call with one name for another.
fn renamed(call: &Call, from: &[u8], to: &[u8]) -> Call {
    let mut data = call.data.to_vec();
    let mut at = 0;
    while let Some(found) = data[at..].windows(from.len()).position(|window| window == from) {
        at += found;
        data[at..at + from.len()].copy_from_slice(to);
    }
    Call { data: Bytes::from(data), ..call.clone() }
}
