//! Blocks that are taken back: nothing counts that is not on the final chain, and nothing on it is missed.

use dispute::watchtower::{Alarm, Save, Tower, TowerHost, run_tower, tower_channel};
use dispute::{Claim, CloseOrder, CursorState, Funding, Order, Submitter, SubmitterConfig};
use futures::future::join;
use payhub_tests::chains::Person;
use payhub_tests::town::{DEPOSIT, INBOUND, PATIENCE, POLL, Town, account_of, amount};

use super::{CONFIRMATIONS, DEPTH, collateral_was_deposited_once, custody, on_ledger, reorganise};
use crate::stories::proven;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_around_opening_topping_up_settling_and_paying_out_changes_no_sum() {
    let town = Town::anvil(CONFIRMATIONS).await;
    let usdh = town.usdh();
    let bob = town.member(2, "bob").await;
    let bobs = town.account(bob.channel().await.expect("runs").expect("open"));

    // Opening: the member's own program brings the lost transaction back.
    let alice = town.client(1, "alice").connect().await.expect("connects");
    town.endow(alice.account(), 10 * DEPOSIT).await;
    let still = town.still().await;
    // What he was given stays: nobody would send that again.
    town.world().rpc("anvil_mine", json!([DEPTH])).await;
    let meanwhile = async {
        let member = &alice;
        let town_ = &town;
        town.until("the deposit is in a block", || async move {
            match member.terms().await.expect("runs") {
                Some(terms) => {
                    let channel = town_.chain().domain().channel_id(&terms);
                    town_.world().books(&town_.account(channel)).await.member_deposit == amount(DEPOSIT)
                }
                None => false,
            }
        })
        .await;
        reorganise(&town).await;
        drop(still);
    };
    let (opened, ()) = join(alice.open(usdh, amount(DEPOSIT)), meanwhile).await;
    let alices = town.account(opened.expect("the channel opens"));
    town.note_channel(alices.channel);
    collateral_was_deposited_once(&town, alices).await;

    // Topping up.
    let still = town.still().await;
    let meanwhile = async {
        on_ledger(&town, alices, "the top-up", |books| books.member_deposit == amount(2 * DEPOSIT)).await;
        reorganise(&town).await;
        drop(still);
    };
    let (topped, ()) = join(alice.deposit(usdh, amount(DEPOSIT)), meanwhile).await;
    topped.expect("the deposit counts");
    town.check_conservation().await;

    // Settling.
    alice.pay("bob", amount(300_000), usdh).await.expect("paid");
    town.received(&bob, 300_000).await;
    let before = town.dollars(bob.account()).await;
    let still = town.still().await;
    let meanwhile = async {
        on_ledger(&town, bobs, "the settlement", |books| books.seq == 1).await;
        reorganise(&town).await;
        drop(still);
    };
    let (settled, ()) = join(bob.withdraw(usdh, amount(200_000)), meanwhile).await;
    settled.expect("settled");
    on_ledger(&town, bobs, "the settlement again", |books| books.seq == 1).await;
    town.check_conservation().await;
    assert_eq!(town.dollars(bob.account()).await - before, 200_000);

    // Closing and paying out.
    let owed = bob.balance(usdh).await.expect("runs").available;
    bob.close_unilateral(usdh).await.expect("begun");
    proven(&town, &bob).await;
    let still = town.still().await;
    // The evidence stays: time jumps here, and no tower could show it again in the window.
    town.world().rpc("anvil_mine", json!([DEPTH])).await;
    town.pass_period().await;
    on_ledger(&town, bobs, "the payout", |books| books.status == dispute::Status::Final).await;
    reorganise(&town).await;
    drop(still);
    // The blocks that came instead may be from before the deadline.
    town.pass_period().await;
    on_ledger(&town, bobs, "the payout again", |books| books.status == dispute::Status::Final).await;
    bob.is_final(usdh, PATIENCE).await.expect("final");
    town.check_conservation().await;
    assert_eq!(town.dollars(bob.account()).await - before, 200_000 + owed.get());
}

/// The block that opened a channel is replaced by one without it, and nobody sends the transaction again.
#[tokio::test(flavor = "multi_thread")]
async fn a_deposit_that_is_not_on_the_final_chain_is_never_credited() {
    let town = Town::anvil(CONFIRMATIONS).await;
    let usdh = town.usdh();
    let alice = town.member(1, "alice").await;
    let alices = town.account(alice.channel().await.expect("runs").expect("open"));
    collateral_was_deposited_once(&town, alices).await;
    let bob = town.member(2, "bob").await;
    let bobs = town.account(bob.channel().await.expect("runs").expect("open"));
    collateral_was_deposited_once(&town, bobs).await;

    let still = town.still().await;
    let terms = alice.terms().await.expect("runs").expect("open");
    let adjudicator = town.chain().adjudicator();
    let deposit = adjudicator.open(&terms, Default::default(), usdh, amount(1_000_000), &Funding::Caller);
    // For a sender who needs no confirmations a transaction is over when it is in a block.
    let careless = Submitter::new(town.world().chain().clone(), vec![account_of(1)], SubmitterConfig::local());
    careless.submit(Order::new(town.chain().approve(usdh, alloy_primitives::U256::MAX))).await.mined().expect("mined");
    let mined = careless.submit(Order::new(deposit)).await.mined().expect("mined");
    assert_eq!(town.world().books(&alices).await.member_deposit, amount(DEPOSIT + 1_000_000));
    // What is withdrawn counts as soon as it is seen: a hub that has seen this block has seen the one before.
    let town_ = &town;
    bob.withdraw(usdh, amount(1)).await.expect("settled and seen");
    let custody_after = (2 * (DEPOSIT + INBOUND) - 1).to_string();
    let expected = &custody_after;
    town.until("the hub has seen it", || async move { custody(town_).await == *expected }).await;
    reorganise(&town).await;
    drop(still);
    assert_eq!(town.world().books(&alices).await.member_deposit, amount(DEPOSIT));
    town.until("the height of the lost deposit is confirmed", || async move {
        town_.hub().status().await.expect("runs").head > mined.block_number
    })
    .await;
    on_ledger(&town, bobs, "the settlement again", |books| books.seq == 1).await;
    town.check_conservation().await;
    assert_eq!(custody(&town).await, custody_after);
}

/// The run that posted the settlement is over when the block goes: nothing but the books and the ledger can tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_that_a_reorganisation_removed_is_posted_again_without_a_restart() {
    let mut town = Town::anvil(CONFIRMATIONS).await;
    let usdh = town.usdh();
    let bob = town.member(2, "bob").await;
    let bobs = town.account(bob.channel().await.expect("runs").expect("open"));
    collateral_was_deposited_once(&town, bobs).await;
    let before = town.dollars(bob.account()).await;
    let still = town.still().await;
    bob.withdraw(usdh, amount(200_000)).await.expect("settled and seen");
    let custody_after = (DEPOSIT + INBOUND - 200_000).to_string();
    let (town_, expected) = (&town, &custody_after);
    town.until("the hub has seen it", || async move { custody(town_).await == *expected }).await;
    bob.shutdown().await.expect("the member posts nothing");
    town.stop_hub().await;
    town.start_hub().await;
    let height = town.chain().head().await.expect("the chain answers").number;
    reorganise(&town).await;
    drop(still);
    on_ledger(&town, bobs, "the settlement again", |books| books.seq == 1).await;
    town.check_conservation().await;
    assert_eq!(town.dollars(bob.account()).await - before, 200_000);
    let there = town.chain().books_after(&bobs, height).await.expect("the chain answers");
    assert_eq!(there.seq, 0, "the final chain has it in a later block only");
}

/// The close stays, the answer to it goes: it is given again, in time, and pays the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_a_reorganisation_removed_is_sent_again_and_pays() {
    let mut town = Town::anvil(CONFIRMATIONS).await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.join(2, town.client(2, "bob").without_watchtower()).await);
    let bobs = town.account(bob.channel().await.expect("runs").expect("open"));
    collateral_was_deposited_once(&town, bobs).await;
    alice.pay("bob", amount(300_000), usdh).await.expect("paid");
    town.received(&bob, 300_000).await;
    let terms = bob.terms().await.expect("runs").expect("open");
    let voucher = bob.evidence(usdh).await.expect("runs").expect("an account").hub.expect("the hub's voucher");
    let payout = bob.account();
    bob.shutdown().await.expect("goes offline");
    alice.shutdown().await.expect("stops");
    town.stop_hub().await;

    let close = CloseOrder { terms: terms.clone(), asset: usdh, request: None };
    town.send_as_hub(town.chain().adjudicator().start_close(&close)).await;
    let still = town.still().await;
    // The close is older than what goes, so that nothing but the answer has to come again.
    town.world().rpc("anvil_mine", json!([DEPTH])).await;
    let deadline_s = town.world().books(&bobs).await.deadline_s;
    let guard =
        Submitter::new(town.chain().clone(), vec![town.world().key(Person::Crony).clone()], SubmitterConfig::local());
    let (handle, requests) = tower_channel();
    let (tower, start) = (Tower::new(*town.chain().domain()), CursorState::from_block(0));
    let tower = tokio::spawn(run_tower(tower, start, town.chain().clone(), guard, POLL, Forgetful, requests));
    handle.watch(terms, usdh).await.expect("watched");
    handle.offer(Claim::Hub(voucher)).await.expect("taken");
    let before = town.dollars(payout).await;
    on_ledger(&town, bobs, "the response", |books| books.hub_paid == amount(300_000)).await;
    let height = town.chain().head().await.expect("the chain answers").number;
    reorganise(&town).await;
    let there = town.chain().books_after(&bobs, height).await.expect("the chain answers");
    assert_eq!((there.status, there.hub_paid.get()), (dispute::Status::Closing, 0), "the close stays, the answer goes");
    drop(still);
    on_ledger(&town, bobs, "the response again", |books| books.hub_paid == amount(300_000)).await;
    let height = town.chain().head().await.expect("the chain answers").number;
    let town_ = &town;
    town.until("it is confirmed", || async move {
        town_.chain().head().await.expect("the chain answers").number >= height + CONFIRMATIONS
    })
    .await;
    let there = town.chain().books_after(&bobs, height).await.expect("the chain answers");
    assert_eq!((there.hub_paid, there.deadline_s), (amount(300_000), deadline_s));
    assert!(town.world().now_s().await < deadline_s, "in time");
    town.pass_period().await;
    on_ledger(&town, bobs, "the payout", |books| books.status == dispute::Status::Final).await;
    assert_eq!(town.dollars(payout).await - before, DEPOSIT + 300_000);
    tower.abort();
}

/// Whoever owns this tower remembers nothing.
struct Forgetful;

impl TowerHost for Forgetful {
    fn save(&mut self, _: &Save) -> Result<(), String> {
        Ok(())
    }

    fn alarm(&mut self, _: &Alarm) {}
}
