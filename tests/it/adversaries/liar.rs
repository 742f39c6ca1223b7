//! The lying hub: wrong receipts, wrong credits, lanes without a signature. The client says so and counts nothing.

use alloy_primitives::B256;
use client::{Event, Outcome};
use payhub_tests::town::{DEPOSIT, Town, amount, event};
use proto::frame::payments_hash;
use proto::typed::{Receipt, chain_hash};
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::{self, v1};
use proto::{AccountId, ChannelId, PaymentId, Proven, SecretKey};

use super::fake_hub::{FakeHub, FakeSession, channel_of, opening};

/// A lie to a payer: what is made of the honest answer to his frame.
type LieToPayer = fn(&FakeHub, Receipt, &mut v1::Accepted);

const LIES_TO_A_PAYER: &[(&str, LieToPayer)] = &[
    ("no receipt at all", |_, _, answer| answer.receipts.clear()),
    ("a receipt by another key", |hub, body, answer| {
        let other = SecretKey::derive(hub.key.scheme(), &[1; 32], "another");
        answer.receipts = vec![wire::receipt_message(&Proven::sign(&hub.domain, &other, body))];
    }),
    ("a receipt over less", |hub, body, answer| {
        answer.receipts = vec![hub.receipt(Receipt { amount: body.amount - 1, ..body })];
    }),
    ("a receipt for another payee", |hub, body, answer| {
        answer.receipts = vec![hub.receipt(Receipt { channelId: B256::repeat_byte(3), ..body })];
    }),
    ("a receipt in another asset", |hub, body, answer| {
        answer.receipts = vec![hub.receipt(Receipt { asset: alloy_primitives::Address::repeat_byte(4), ..body })];
    }),
    ("a receipt over other payments", |hub, body, answer| {
        let payments = payments_hash(&[(PaymentId([9; 16].into()), amount(body.amount))]);
        answer.receipts = vec![hub.receipt(Receipt { payments, ..body })];
    }),
    ("a receipt whose signature was flipped", |_, _, answer| {
        let proof = answer.receipts[0].proof.as_mut().expect("it has one");
        let mut signature = proof.signature.to_vec();
        signature[7] ^= 1;
        proof.signature = signature.into();
    }),
    ("a receipt that is cut off", |_, _, answer| answer.receipts[0].amount = wire::bytes_of([1; 3])),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_believes_no_receipt_that_does_not_prove_his_payment() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let mut hub = FakeHub::start(&town).await;
    let (alice, _, mut session) = hub.admit(&town, 21).await;
    let (bob, _) =
        town.open_with(22, payhub_tests::town::account_of(payhub_tests::town::FAKE_HUB).address(), &hub.key).await;
    let payee = channel_of(&town, &bob);
    let mut events = alice.events();
    let paying = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.pay(payee, amount(100), usdh).await })
    };
    // The same frame comes again, byte for byte, in each session until the answer is true.
    let mut first: Option<v1::Frame> = None;
    for (name, lie) in LIES_TO_A_PAYER {
        let frame = session.frame().await;
        let known = first.get_or_insert_with(|| frame.clone());
        assert_eq!((&frame.signature, &frame.payments), (&known.signature, &known.payments), "{name}");
        let (mut answer, body) = honest(&hub, payee, usdh, &frame);
        lie(&hub, body, &mut answer);
        session.send(Kind::Accepted(answer)).await;
        misbehaved(&mut events, name).await;
        assert!(!session.hung_up().await);
        let balance = alice.balance(usdh).await.expect("runs");
        assert_eq!(balance.paid, amount(0), "{name}");
        assert!(alice.history(10).await.expect("runs").is_empty(), "{name}");
        session = hub.greet(&town, |_| {}).await;
    }
    let frame = session.frame().await;
    let (answer, _) = honest(&hub, payee, usdh, &frame);
    session.send(Kind::Accepted(answer)).await;
    paying.await.expect("runs").expect("the truth is believed");
    assert_eq!(alice.balance(usdh).await.expect("runs").paid, amount(101));
}

/// What an honest hub would answer.
fn honest(hub: &FakeHub, payee: ChannelId, usdh: proto::Asset, frame: &v1::Frame) -> (v1::Accepted, Receipt) {
    let (sum, rows) = opening(frame);
    let body = Receipt {
        channelId: payee.0,
        asset: usdh,
        credit: 1,
        amount: sum.get(),
        total: sum.get(),
        payments: payments_hash(&rows),
    };
    let receipts = vec![hub.receipt(body.clone())];
    (v1::Accepted { flush: 1, asset: wire::bytes_of(usdh), tags: vec![frame.tag], receipts, ticks: vec![] }, body)
}

async fn misbehaved(events: &mut (impl futures::Stream<Item = Event> + Unpin), name: &str) {
    let fault = event(events, |event| match event {
        Event::HubMisbehaved(fault) => Some(fault),
        Event::Received { .. } | Event::Paid { .. } => panic!("{name}: the lie was believed"),
        _ => None,
    });
    fault.await;
}

/// The lanes that a refusal or a welcome shows count for nothing without the member's own signature.
#[tokio::test(flavor = "multi_thread")]
async fn a_lane_without_my_signature_is_no_lane_of_mine() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let mut hub = FakeHub::start(&town).await;
    let (alice, _, mut session) = hub.admit(&town, 21).await;
    let (bob, _) =
        town.open_with(22, payhub_tests::town::account_of(payhub_tests::town::FAKE_HUB).address(), &hub.key).await;
    let payee = channel_of(&town, &bob);
    let mut events = alice.events();
    let forged = v1::LaneState {
        lane: 0,
        cumulative: wire::amount_bytes(amount(DEPOSIT)),
        memo: wire::bytes_of([1; 32]),
        signature: wire::bytes_of([2; 64]),
        ticks: None,
    };
    let paying = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.pay(payee, amount(100), usdh).await })
    };
    let frame = session.frame().await;
    session
        .send(Kind::Refused(v1::Refused {
            tag: frame.tag,
            reason: "INSUFFICIENT_FUNDS".into(),
            message: "you have paid everything already".into(),
            asset: wire::bytes_of(usdh),
            lane: Some(forged.clone()),
            ..v1::Refused::default()
        }))
        .await;
    misbehaved(&mut events, "a forged lane in a refusal").await;
    assert_eq!(paying.await.expect("runs").expect_err("it was refused").outcome(), Outcome::NotPaid);
    drop(session);
    let mut session = hub.greet(&town, |state| state.lanes = vec![forged]).await;
    misbehaved(&mut events, "a forged lane in a welcome").await;
    let balance = alice.balance(usdh).await.expect("runs");
    assert_eq!((balance.paid, balance.available), (amount(0), amount(DEPOSIT)));
    // The next frame begins where the member knows the lane to stand.
    let paying = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.pay(payee, amount(7), usdh).await })
    };
    let frame = session.frame().await;
    assert_eq!(wire::read_amount("cumulative", &frame.cumulative).expect("well-formed"), amount(8));
    let (answer, _) = honest(&hub, payee, usdh, &frame);
    session.send(Kind::Accepted(answer)).await;
    paying.await.expect("runs").expect("paid");
}

/// A lie to a payee: what is made of an honest first credit of 50.
type LieToPayee = fn(&FakeHub, AccountId, &mut v1::Credited);

const LIES_TO_A_PAYEE: &[(&str, LieToPayee)] = &[
    ("a voucher by another key", |hub, account, message| {
        let other = SecretKey::derive(hub.key.scheme(), &[1; 32], "another");
        let body = wire::hub_voucher(account, amount(50), 1, B256::ZERO);
        message.voucher = Some(wire::hub_voucher_message(&Proven::sign(&hub.domain, &other, body)));
    }),
    ("a credit number that is skipped", |_, _, message| message.credits[0].number = 2),
    ("a total that is not the sum", |_, _, message| message.credits[0].total = wire::amount_bytes(amount(51))),
    ("an amount of nothing", |_, _, message| {
        message.credits[0].amount = wire::amount_bytes(amount(0));
        message.credits[0].payments.clear();
    }),
    ("an amount that is not its payments", |_, _, message| {
        message.credits[0].payments[0].amount = wire::amount_bytes(amount(49));
    }),
    ("another payer than the voucher's head has", |_, _, message| {
        message.credits[0].payments[0].id = wire::bytes_of([8; 16]);
    }),
    ("a voucher over another head", |hub, account, message| {
        message.voucher = Some(hub.voucher(wire::hub_voucher(account, amount(40), 1, B256::repeat_byte(1))));
    }),
    ("a credit that is cut off", |_, _, message| message.credits[0].amount = wire::bytes_of([1; 5])),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_payee_counts_no_credit_that_does_not_fit() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let mut hub = FakeHub::start(&town).await;
    let (bob, terms, mut session) = hub.admit(&town, 22).await;
    hub.fund(&town, &terms, 1_000).await;
    let account = town.account(channel_of(&town, &terms));
    let mut events = bob.events();
    for (name, lie) in LIES_TO_A_PAYEE {
        let mut message = credit_of_fifty(&hub, account);
        lie(&hub, account, &mut message);
        session.send(Kind::Credited(message)).await;
        misbehaved(&mut events, name).await;
        let balance = bob.balance(usdh).await.expect("runs");
        assert_eq!((balance.received, balance.available), (amount(0), amount(DEPOSIT)), "{name}");
        assert!(bob.history(10).await.expect("runs").is_empty(), "{name}");
        drop(session);
        session = hub.greet(&town, |_| {}).await;
    }
    session.send(Kind::Credited(credit_of_fifty(&hub, account))).await;
    town.received(&bob, 50).await;
    acked(&mut session, 1).await;
}

fn credit_of_fifty(hub: &FakeHub, account: AccountId) -> v1::Credited {
    let rows = [(PaymentId([7; 16].into()), amount(50))];
    credit(hub, account, &rows)
}

/// An honest first credit with the voucher over it.
fn credit(hub: &FakeHub, account: AccountId, rows: &[(PaymentId, proto::Amount)]) -> v1::Credited {
    let sum = proto::Amount::checked_sum(rows.iter().map(|row| row.1)).expect("small");
    let body = Receipt {
        channelId: account.channel.0,
        asset: account.asset,
        credit: 1,
        amount: sum.get(),
        total: sum.get(),
        payments: payments_hash(rows),
    };
    let head = chain_hash(B256::ZERO, hub.domain.digest(&body));
    let payments = rows.iter().map(|(id, amount)| v1::CreditedPayment {
        id: wire::bytes_of(id.0),
        amount: wire::amount_bytes(*amount),
        note: Default::default(),
    });
    let credit = v1::Credit {
        number: 1,
        payer: wire::bytes_of([5; 32]),
        amount: wire::amount_bytes(sum),
        total: wire::amount_bytes(sum),
        payments: payments.collect(),
    };
    let voucher = hub.voucher(wire::hub_voucher(account, sum, 1, head));
    v1::Credited { asset: wire::bytes_of(account.asset), credits: vec![credit], voucher: Some(voucher) }
}

async fn acked(session: &mut FakeSession, credits: u64) {
    loop {
        match session.next().await.expect("the client acknowledges") {
            ToHub::Ack(ack) => return assert_eq!(ack.credits, credits),
            _ => continue,
        }
    }
}

/// A credit beyond the collateral is kept as evidence and shown as unbacked; it is not acknowledged before it is backed.
#[tokio::test(flavor = "multi_thread")]
async fn an_unbacked_credit_is_shown_as_such_and_not_acknowledged() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let mut hub = FakeHub::start(&town).await;
    let (bob, terms, mut session) = hub.admit(&town, 22).await;
    let account = town.account(channel_of(&town, &terms));
    let mut events = bob.events();
    session.send(Kind::Credited(credit_of_fifty(&hub, account))).await;
    let unbacked = event(&mut events, |event| match event {
        Event::Unbacked { amount, .. } => Some(amount),
        _ => None,
    });
    assert_eq!(unbacked.await, amount(50));
    let balance = bob.balance(usdh).await.expect("runs");
    assert_eq!((balance.unbacked, balance.received), (amount(50), amount(50)));
    hub.fund(&town, &terms, 1_000).await;
    let backed = event(&mut events, |event| match event {
        Event::Unbacked { amount, .. } => Some(amount),
        _ => None,
    });
    assert_eq!(backed.await, amount(0));
    // The first acknowledgement comes now, and it says one credit.
    acked(&mut session, 1).await;
    assert_eq!(bob.balance(usdh).await.expect("runs").available, amount(DEPOSIT + 50));
}
