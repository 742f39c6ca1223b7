//! The equivocating client: two different vouchers for one place of a lane.

use dispute::{Claim, CloseOrder, Evidence, RespondOrder};
use payhub_tests::town::{DEPOSIT, Town, amount};
use proto::frame::LaneTip;

use super::wire::{FEE, Hand, payment};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_voucher_of_a_place_counts_and_the_second_moves_nothing() {
    let mut town = Town::embedded().await;
    let mallory = Hand::join(&town, 11).await;
    let (bob, carol) = (Hand::join(&town, 12).await, Hand::join(&town, 13).await);
    let mut session = mallory.connect().await;
    let to_bob = mallory.frame_at(0, LaneTip::default(), vec![payment(1, bob.channel(), 1_000)]);
    let to_carol = mallory.frame_at(0, LaneTip::default(), vec![payment(2, carol.channel(), 1_000)]);
    assert_eq!(to_bob.tip().cumulative, to_carol.tip().cumulative, "the same place");
    assert_ne!(to_bob.tip().memo, to_carol.tip().memo, "another content");
    session.pay(1, &to_bob).await;
    session.pay(2, &to_carol).await;
    assert_eq!(session.accepted().await.tags, [1]);
    let refused = session.refused().await;
    assert_eq!((refused.tag, refused.reason.as_str()), (2, "LANE_BROKEN"));
    // A successor of the refused one continues nothing either, in this session and in the next.
    let after = mallory.frame_at(0, to_carol.tip(), vec![payment(3, carol.channel(), 5)]);
    session.pay(3, &after).await;
    assert_eq!(session.refused().await.reason, "LANE_BROKEN");
    let mut session = mallory.connect().await;
    session.pay(1, &after).await;
    assert_eq!(session.refused().await.reason, "LANE_BROKEN");
    let honest = mallory.frame_at(0, to_bob.tip(), vec![payment(4, carol.channel(), 7)]);
    session.pay(2, &honest).await;
    assert_eq!(session.accepted().await.tags, [2]);
    town.check_conservation().await;

    // On the ledger, too, a place is a place: posting the other voucher raises nothing beyond its cumulative amount.
    drop(session);
    let adjudicator = town.chain().adjudicator();
    let close = CloseOrder { terms: mallory.terms.clone(), asset: mallory.asset, request: None };
    town.send_as(11, adjudicator.start_close(&close)).await;
    let mut evidence = Evidence::new(mallory.account());
    evidence.add(Claim::Member(to_carol.voucher.clone())).expect("his own signature");
    let respond = adjudicator.respond(&RespondOrder { terms: mallory.terms.clone(), evidence });
    if let Err(why) = town.try_send_as(11, respond).await {
        assert!(why.contains("proves nothing"), "only the hub's tower may have been faster: {why}");
    }
    let owed = amount(1_007 + 2 * FEE);
    let account = mallory.account();
    let town_ = &town;
    town.until("the hub's tower", || async move { town_.world().books(&account).await.member_paid == owed }).await;
    let before = town.dollars(mallory.terms.member).await;
    town.pass_period().await;
    town.until("the payout", || async move { town_.world().books(&account).await.status == dispute::Status::Final })
        .await;
    assert_eq!(town.dollars(mallory.terms.member).await - before, DEPOSIT - owed.get());
    town.check_conservation().await;
    town.stop_hub().await;
}
