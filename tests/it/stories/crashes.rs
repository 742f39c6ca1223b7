//! The power goes at any operation of a disk, in the middle of payments: what was answered is there, once, and the rest
//! finds its outcome.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, Error, HistoryKind, Outcome};
use futures::future::join_all;
use payhub_tests::town::{Disk, PATIENCE, Town, amount};
use proto::PaymentId;
use storage::{Crash, Fault};

use super::tap::Tap;

/// A flush is a write and a sync; a start, a clean mark and a new segment are some more. Beyond this the run repeats.
const OPERATIONS: u64 = 24;
/// Payments ordered at once: some flushes hold several.
const AT_ONCE: usize = 3;
/// The price of the small payments here.
const FEE: u128 = 2;

fn policy(n: u64) -> Crash {
    Crash::ALL[usize::try_from(n).expect("small") % Crash::ALL.len()]
}

fn on(program: client::Builder, disk: &Disk) -> client::Builder {
    program.store_on(Arc::new(disk.backend.clone()), Box::new(disk.index.clone()))
}

/// The ids in a member's history, each of which may be there once.
async fn ids(member: &Client, wanted: impl Fn(&HistoryKind) -> Option<PaymentId>) -> BTreeSet<PaymentId> {
    let history = member.history(100_000).await.expect("runs");
    let all: Vec<PaymentId> = history.iter().filter_map(|entry| wanted(&entry.kind)).collect();
    let once: BTreeSet<PaymentId> = all.iter().copied().collect();
    assert_eq!(all.len(), once.len(), "a payment stands twice in the history");
    once
}

fn sent(kind: &HistoryKind) -> Option<PaymentId> {
    if let HistoryKind::Sent { id, .. } = kind { Some(*id) } else { None }
}

fn received(kind: &HistoryKind) -> Option<PaymentId> {
    if let HistoryKind::Received { id, .. } = kind { Some(*id) } else { None }
}

/// How a payment ended: the hub runs, so it does not stay unknown.
async fn outcome(member: &Client, id: PaymentId) -> Outcome {
    let known = async {
        loop {
            match member.resolve(id).await.expect("runs") {
                Outcome::Unknown => tokio::time::sleep(Duration::from_millis(5)).await,
                known => return known,
            }
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("an outcome")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_loses_power_at_any_operation_owes_what_it_answered_and_pays_it_once() {
    let mut town = Town::embedded().await;
    let usdh = town.usdh();
    let (alice, bob) = (town.member(1, "alice").await, town.member(2, "bob").await);
    let payer = alice.payer("bob", usdh).await.expect("known");
    let mut made = BTreeSet::new();
    for n in 0..OPERATIONS {
        let backend = &town.disk.backend;
        backend.fail_at(backend.operations() + n, Fault::PowerCut);
        let mut open = Vec::new();
        // Every answer before the power cut counts; the tickets that got none are open.
        let mut ended = Box::pin(town.hub().failed());
        loop {
            let tickets: Vec<_> = (0..AT_ONCE).map(|_| payer.pay(amount(1), []).expect("there is room")).collect();
            made.extend(tickets.iter().map(|ticket| ticket.id));
            let mut all = Box::pin(join_all(tickets));
            tokio::select! {
                results = &mut all => for result in results {
                    result.expect("paid");
                },
                _ = &mut ended => {
                    open.push(all);
                    break;
                }
            }
        }
        drop(ended);
        town.kill_hub().await;
        town.disk = town.disk.crash(policy(n), n);
        // Every third time it goes again while the hub starts.
        if n % 3 == 0 {
            town.disk.backend.fail_at(n / 3, Fault::PowerCut);
            if town.start_hub_with(town.hub_config()).await.is_ok() {
                town.kill_hub().await;
            }
            town.disk = town.disk.crash(policy(n + 1), n);
        }
        town.start_hub().await;
        for tickets in open {
            for result in tokio::time::timeout(PATIENCE, tickets).await.expect("answered after the restart") {
                result.unwrap_or_else(|error| panic!("operation {n}: {error}"));
            }
        }
        let total = made.len() as u128;
        town.received(&bob, total).await;
        let status = town.hub().status().await.expect("runs");
        assert_eq!((u128::from(status.payments), status.frozen), (total, None), "operation {n}");
        assert_eq!(alice.balance(usdh).await.expect("runs").paid.get(), total * (1 + FEE), "operation {n}");
        town.check_conservation().await;
    }
    assert_eq!(ids(&bob, received).await, made);
    assert_eq!(ids(&alice, sent).await, made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_who_loses_power_at_any_operation_never_signs_two_vouchers_of_one_place() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let tap = Tap::on(&town.url()).await;
    let mut disk = Disk::default();
    let program = |disk: &Disk| on(town.client(1, "alice").hub(&tap.url), disk);
    let mut alice = town.join(1, program(&disk)).await;
    let bob = town.member(2, "bob").await;
    let payee = bob.channel().await.expect("runs").expect("open");
    let (mut paid, mut unknown) = (BTreeSet::new(), BTreeSet::new());
    for n in 0..OPERATIONS {
        disk.backend.fail_at(disk.backend.operations() + n, Fault::PowerCut);
        let payer = match alice.payer(payee, usdh).await {
            Ok(payer) => Some(payer),
            Err(Error::Stopped) => None,
            Err(error) => panic!("operation {n}: {error}"),
        };
        'alive: while let Some(payer) = &payer {
            let tickets: Vec<_> = (0..AT_ONCE).map_while(|_| payer.pay(amount(1), []).ok()).collect();
            let ids: Vec<PaymentId> = tickets.iter().map(|ticket| ticket.id).collect();
            let results = tokio::time::timeout(PATIENCE, join_all(tickets)).await.expect("answered or stopped");
            for (id, result) in ids.iter().zip(results) {
                match result {
                    Ok(_) => drop(paid.insert(*id)),
                    Err(Error::Stopped) => drop(unknown.insert(*id)),
                    Err(error) => panic!("operation {n}: {error}"),
                }
            }
            if ids.is_empty() || !unknown.is_empty() {
                break 'alive;
            }
        }
        drop(alice);
        disk = disk.crash(policy(n), n);
        alice = program(&disk).connect().await.expect("connects");
        alice.connected(PATIENCE).await.expect("a session");
        // What was signed and durable is sent again, the rest was never signed.
        for id in std::mem::take(&mut unknown) {
            if outcome(&alice, id).await == Outcome::Paid {
                paid.insert(id);
            }
        }
        let total = paid.len() as u128;
        assert_eq!(ids(&alice, sent).await, paid, "operation {n}: what was answered is in the history");
        assert_eq!(alice.balance(usdh).await.expect("runs").paid.get(), total * (1 + FEE), "operation {n}");
        town.received(&bob, total).await;
        tap.check();
    }
    assert_eq!(ids(&bob, received).await, paid);
    assert!(tap.seen().0 > usize::try_from(OPERATIONS).expect("small"), "vouchers went by the tap");
    town.check_conservation().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payee_who_loses_power_at_any_operation_counts_each_credit_once_and_never_less_than_he_said() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let tap = Tap::on(&town.url()).await;
    let mut disk = Disk::default();
    let program = |disk: &Disk| on(town.client(2, "bob").hub(&tap.url), disk);
    let alice = town.member(1, "alice").await;
    let mut bob = town.join(2, program(&disk)).await;
    let payee = bob.channel().await.expect("runs").expect("open");
    let payer = alice.payer(payee, usdh).await.expect("known");
    let (mut total, mut shown) = (0u128, 0);
    for n in 0..OPERATIONS {
        disk.backend.fail_at(disk.backend.operations() + n, Fault::PowerCut);
        loop {
            payer.pay(amount(1), []).expect("there is room").await.expect("paid, whatever happens to the payee");
            total += 1;
            match bob.balance(usdh).await {
                Ok(balance) => shown = balance.received.get(),
                Err(Error::Stopped) => break,
                Err(error) => panic!("operation {n}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(bob);
        disk = disk.crash(policy(n), n);
        bob = program(&disk).connect().await.expect("connects");
        let newest = bob.history(1).await.expect("runs").pop().map(|entry| entry.kind);
        let restored = if let Some(HistoryKind::Received { credit, .. }) = newest { credit } else { 0 };
        assert!(restored >= tap.acked(payee.as_slice()), "operation {n}: he said that he holds more");
        let counted = bob.balance(usdh).await.expect("runs").received.get();
        assert!(counted >= shown, "operation {n}: he showed more");
        town.received(&bob, total).await;
        assert_eq!(ids(&bob, received).await.len() as u128, total, "operation {n}");
        // What he says he holds, he must hold after the next power cut.
        let (tap, newest) = (&tap, bob.history(1).await.expect("runs").pop());
        let Some(HistoryKind::Received { credit, .. }) = newest.map(|entry| entry.kind) else { panic!("a credit") };
        town.until("his acknowledgement", || async move { tap.acked(payee.as_slice()) >= credit }).await;
        tap.check();
    }
    assert!(tap.seen().1 > 0, "acknowledgements went by the tap");
    town.check_conservation().await;
}
