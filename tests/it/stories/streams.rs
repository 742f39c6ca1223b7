//! Streams of ticks from meter to ledger: paid by the hash, claimed by the word, through crashes and restarts.

use std::sync::Arc;

use client::{Client, Error, Event, HistoryKind, Meter, MeterError};
use payhub_tests::town::{Disk, PATIENCE, Town, amount, event};
use proto::member::PayError;
use storage::{Crash, Fault};

use super::proven;
use super::tap::Tap;

/// What the payee gets a tick, and what the hub asks for that.
const RATE: u128 = 10;
const FEE: u128 = 2;

async fn finish(meter: Meter) -> client::Metered {
    tokio::time::timeout(PATIENCE, meter.finish()).await.expect("it ends").expect("everything is paid")
}

/// Ticks in a member's history as payments.
async fn sent(member: &Client) -> u128 {
    let history = member.history(100_000).await.expect("runs");
    let amounts = history.iter().map(|entry| match entry.kind {
        HistoryKind::Sent { amount, .. } => amount.get(),
        _ => 0,
    });
    amounts.sum::<u128>() / RATE
}

async fn a_stream_is_paid_to_the_last_tick_and_claimed_on_the_ledger(mut town: Town) {
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let mut of_alice = alice.events();
    // Three openings one after the other, because a chain has its end.
    let meter = alice.stream("bob", usdh).rate(amount(RATE)).ticks(400).await.expect("opened");
    for _ in 0..100 {
        meter.add(10).expect("there is no cap");
        tokio::task::yield_now().await;
    }
    let metered = finish(meter).await;
    assert_eq!((metered.added, metered.paid), (1_000, 1_000));
    town.received(&bob, 1_000 * RATE).await;
    let balance = alice.balance(usdh).await.expect("runs");
    assert_eq!((balance.paid.get(), balance.unreceipted.get()), (1_000 * (RATE + FEE), 0));
    assert_eq!(sent(&alice).await, 1_000);
    let delivered = event(&mut of_alice, |event| matches!(event, Event::Delivered { .. }).then_some(()));
    delivered.await;
    town.check_conservation().await;

    // Another stream that is not folded: its voucher and its newest word are the evidence of the lane, next to a payment
    // on a lane of its own. Both sides post them.
    let meter = alice.stream("bob", usdh).rate(amount(RATE)).await.expect("opened");
    meter.add(77).expect("there is no cap");
    town.received(&bob, 1_077 * RATE).await;
    alice.pay("bob", amount(5), usdh).await.expect("paid");
    town.received(&bob, 1_077 * RATE + 5).await;
    town.check_conservation().await;
    let kit = alice.exit_kit().await.expect("there is a channel");
    let of_ticks: Vec<u32> = kit.accounts[0].evidence.member_ticks.iter().map(|ticks| ticks.index).collect();
    assert_eq!(of_ticks, [77], "the way out shows the stream");
    assert_eq!(client::exit::ExitKit::read(&kit.to_json()).expect("what was written"), kit);
    town.stop_hub().await;
    let (before, owed) = (town.dollars(alice.account()).await, alice.balance(usdh).await.expect("runs").available);
    alice.close_unilateral(usdh).await.expect("begun");
    proven(&town, &alice).await;
    town.pass_period().await;
    alice.is_final(usdh, PATIENCE).await.expect("final");
    assert_eq!(town.dollars(alice.account()).await - before, owed.get());
    drop(meter);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_paid_to_the_last_tick_and_claimed_on_the_embedded_ledger() {
    a_stream_is_paid_to_the_last_tick_and_claimed_on_the_ledger(Town::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_paid_to_the_last_tick_and_claimed_on_anvil() {
    a_stream_is_paid_to_the_last_tick_and_claimed_on_the_ledger(Town::anvil(0).await).await;
}

/// The hub's tower posts the words that it holds: who streamed and closes with nothing does not get it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_payer_who_hides_his_ticks_pays_them_all_the_same() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let alice = town.join(1, town.client(1, "alice").without_watchtower()).await;
    let bob = town.member(2, "bob").await;
    let meter = alice.stream("bob", usdh).rate(amount(RATE)).await.expect("opened");
    meter.add(500).expect("there is no cap");
    town.received(&bob, 500 * RATE).await;
    let owed = alice.balance(usdh).await.expect("runs").available;
    let before = town.dollars(alice.account()).await;
    alice.close_unilateral(usdh).await.expect("begun");
    let account = town.account(alice.channel().await.expect("runs").expect("open"));
    let world = town.world();
    town.until("the hub posts the ticks", || async move {
        world.books(&account).await.member_paid.get() == 500 * (RATE + FEE)
    })
    .await;
    town.pass_period().await;
    alice.finalize(usdh).await.ok();
    alice.is_final(usdh, PATIENCE).await.expect("final");
    assert_eq!(town.dollars(alice.account()).await - before, owed.get());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_meter_may_not_do_it_says_at_once_and_nothing_is_lost() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let nobody = alice.stream("nobody", usdh).await.err().expect("no such name");
    assert!(matches!(nobody, Error::Payee { .. }), "{nobody}");
    let myself = alice.stream("alice", usdh).await.err().expect("a payment to oneself");
    assert!(matches!(myself, Error::Pay(PayError::PayeeIsPayer)), "{myself}");
    let dear = alice.stream("bob", usdh).fee(amount(0)).await.err().expect("below the hub's price");
    assert!(matches!(&dear, Error::Refused { reason, .. } if reason == "FEE_TOO_LOW"), "{dear}");

    let meter = alice.stream("bob", usdh).rate(amount(RATE)).cap(50).await.expect("opened");
    meter.add(50).expect("within the cap");
    assert_eq!(meter.add(1), Err(MeterError::Cap { asked: 1, added: 50, cap: 50 }));
    assert_eq!(finish(meter).await.paid, 50);

    // More than the account holds: what was paid stays paid, the rest is not signed, and the meter says why.
    let available = alice.balance(usdh).await.expect("runs").available.get();
    let meter = alice.stream("bob", usdh).rate(amount(available / 2)).await.expect("opened");
    meter.add(1).expect("it fits");
    town.until("the first is paid", || async { meter.so_far().paid == 1 }).await;
    meter.add(1).expect("a meter does not know balances");
    town.until("the meter stops", || async { meter.add(0).is_err() }).await;
    let stopped = meter.finish().await.expect_err("not everything was paid");
    assert!(matches!(&stopped, Error::StreamStopped { metered, .. } if metered.paid == 1), "{stopped}");
    town.received(&bob, 50 * RATE + available / 2).await;
    town.check_conservation().await;
}

/// The evidence of an account must fit one call to the ledger, so many long streams cannot all stay unfolded: those that the
/// hub refuses for it fold what they paid and go on.
#[tokio::test(flavor = "multi_thread")]
async fn many_meters_at_once_fold_and_go_on_to_the_last_tick() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let mut meters = Vec::new();
    for _ in 0..7 {
        meters.push(alice.stream("bob", usdh).rate(amount(RATE)).await.expect("opened"));
    }
    // Together these are more than 8,000 ticks, which is all that fits unfolded.
    for _ in 0..4 {
        for meter in &meters {
            meter.add(450).expect("there is no cap");
        }
        town.until("a round is paid", || async {
            meters.iter().all(|meter| meter.so_far().paid == meter.so_far().added)
        })
        .await;
    }
    for meter in meters {
        assert_eq!(finish(meter).await.paid, 1_800);
    }
    town.received(&bob, 7 * 1_800 * RATE).await;
    town.check_conservation().await;
}

/// The hub loses power at every operation of its disk while ticks are under way: what was receipted is there, what was
/// only revealed is accepted once, and every tick is paid in the end.
#[tokio::test(flavor = "multi_thread")]
async fn ticks_survive_a_hub_that_loses_power_at_any_operation() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let meter = alice.stream("bob", usdh).rate(amount(RATE)).ticks(64).await.expect("opened");
    let mut total = 0u64;
    for n in 0..16u64 {
        let backend = &town.disk.backend;
        backend.fail_at(backend.operations() + n % 8, Fault::PowerCut);
        let mut ended = Box::pin(town.hub().failed());
        loop {
            meter.add(7).expect("there is no cap");
            total += 7;
            let pause = tokio::time::sleep(std::time::Duration::from_millis(5));
            tokio::select! {
                _ = &mut ended => break,
                () = pause => {}
            }
        }
        drop(ended);
        town.kill_hub().await;
        let policy = Crash::ALL[usize::try_from(n).expect("small") % Crash::ALL.len()];
        town.disk = town.disk.crash(policy, n);
        town.start_hub().await;
        town.until("all is paid", || async { meter.so_far().paid == total }).await;
        town.received(&bob, u128::from(total) * RATE).await;
        town.check_conservation().await;
    }
    assert_eq!(sent(&alice).await, u128::from(total), "no tick stands twice in the history");
    assert_eq!(finish(meter).await.paid, total);
}

/// The payer's own disk loses what it was not yet told is safe: he never signs or reveals anything that contradicts what
/// he sent before, and the hub proves to him what it accepted meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn ticks_survive_a_payer_who_loses_power_at_any_operation() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let tap = Tap::on(&town.url()).await;
    let bob = town.member(2, "bob").await;
    let mut disk = Disk::default();
    let on = |town: &Town, disk: &Disk| {
        let program = town.client(1, "alice").hub(tap.url.clone());
        program.store_on(Arc::new(disk.backend.clone()), Box::new(disk.index.clone()))
    };
    let mut alice = town.join(1, on(&town, &disk)).await;
    for n in 0..12u64 {
        let meter = alice.stream("bob", usdh).rate(amount(RATE)).ticks(64).await.expect("opened");
        meter.add(3).expect("there is no cap");
        town.until("the first ticks are paid", || async { meter.so_far().paid == 3 }).await;
        disk.backend.fail_at(disk.backend.operations() + n % 6, Fault::PowerCut);
        loop {
            meter.add(2).expect("there is no cap");
            if alice.balance(usdh).await.is_err() {
                break;
            }
        }
        drop((meter, alice));
        disk = disk.crash(Crash::ALL[usize::try_from(n).expect("small") % Crash::ALL.len()], n);
        alice = on(&town, &disk).connect().await.expect("his store opens");
        alice.connected(PATIENCE).await.expect("the hub is there");
        // The hub proves what it accepted; nothing waits in the end, and both count the same.
        town.until("nothing waits", || async {
            let balance = alice.balance(usdh).await.expect("runs");
            let status = town.hub().status().await.expect("runs");
            let accepted = status.assets.iter().find(|(policy, _)| policy.asset == usdh).map(|(_, sums)| sums.paid);
            balance.unreceipted.is_zero() && accepted == Some(balance.paid.get().try_into().expect("small"))
        })
        .await;
        tap.check();
        town.check_conservation().await;
    }
    let paid = alice.balance(usdh).await.expect("runs").paid.get();
    assert_eq!(sent(&alice).await, paid / (RATE + FEE), "his history names every tick once");
    town.received(&bob, paid / (RATE + FEE) * RATE).await;
    town.stop_hub().await;
}
