//! A hub on the embedded ledger: everything that the contract, the follower, the poster and the tower do together.

use std::time::Duration;

use alloy::providers::Provider;
use alloy_primitives::{Address, Bytes, U256};
use dispute::adjudicator::Status as LedgerStatus;
use dispute::{AccountKey, Call, Chain, Funding, LedgerBooks, Order, Submitter, SubmitterConfig};
use ledger::Ledger;
use proto::books::Ask;
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::{self, v1};
use proto::{Domain, Scheme, Signed};
use serde_json::{Value, json};

use super::{Disk, Member, PATIENCE, Session, amount};
use crate::{Hub, HubConfig, StartError};

const DEPOSIT: u128 = 1_000_000;
const PERIOD_S: u32 = 600;

struct World {
    ledger: Ledger,
    chain: Chain,
    usdh: Address,
    bank: Submitter,
}

impl World {
    async fn start() -> World {
        let config = ledger::Config { heartbeat: None, ..ledger::Config::dev() };
        let ledger = Ledger::start(config).await.expect("starts");
        let deployment = ledger.deployment();
        let domain = Domain::new(deployment.chain_id, deployment.adjudicator);
        let chain = Chain::over(ledger.rpc_client(), "the embedded ledger", domain, 0);
        let rich = AccountKey::from_secret(&ledger.dev_accounts()[0].secret).expect("a key");
        let bank = Submitter::new(chain.clone(), vec![rich], SubmitterConfig::local());
        World { ledger, chain, usdh: deployment.usdh, bank }
    }

    fn config(&self, disk: &Disk) -> HubConfig {
        let mut config = disk.config();
        config.assets[0].asset = self.usdh;
        config.assets[0].inbound_target = amount(DEPOSIT);
        config.assets[0].inbound_max = amount(10 * DEPOSIT);
        config.development = true;
        config.challenge_period_s = PERIOD_S;
        config.poll = Duration::from_millis(20);
        config
    }

    async fn hub(&self, disk: &Disk) -> Hub {
        Hub::start(self.config(disk), self.chain.clone()).await.expect("the hub starts")
    }

    /// Coins and dollars for an account.
    async fn endow(&self, to: Address) {
        send(&self.bank, self.chain.transfer(proto::NATIVE, to, U256::from(10u64.pow(18)))).await;
        send(&self.bank, self.chain.mint(self.usdh, to, U256::from(100 * DEPOSIT))).await;
    }

    /// A member with an open channel.
    async fn member(&self, number: u8, deposit: u128, disk: &Disk) -> Member {
        let account = AccountKey::from_secret(&[number; 32]).expect("a key");
        self.endow(account.address()).await;
        let config = self.config(disk);
        let member = Member::of(*self.chain.domain(), account.address(), number, Scheme::Ed25519, &config);
        let purse = Submitter::new(self.chain.clone(), vec![account], SubmitterConfig::local());
        send(&purse, self.chain.approve(self.usdh, U256::MAX)).await;
        let adjudicator = self.chain.adjudicator();
        let open = adjudicator.open(&member.terms, Bytes::new(), self.usdh, amount(deposit), &Funding::Caller);
        send(&purse, open).await;
        member
    }

    async fn pass(&self, seconds: u64) {
        for (method, params) in [("evm_increaseTime", json!([seconds])), ("evm_mine", json!([]))] {
            let _: Value = self.chain.provider().raw_request(method.into(), params).await.expect("a developer chain");
        }
    }

    async fn books(&self, member: &Member) -> LedgerBooks {
        self.chain.books(&member.account()).await.expect("answers")
    }
}

async fn send(submitter: &Submitter, call: Call) {
    submitter.submit(Order::new(call)).await.mined().expect("succeeds");
}

/// A session as soon as the hub serves the channel.
async fn connect(hub: &Hub, member: &Member) -> Session {
    let tried = async {
        loop {
            match member.try_connect(hub, None).await {
                Ok(session) => return session,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("served in time")
}

/// Waits until the hub counts something of an account.
async fn until(hub: &Hub, member: &Member, what: &str, holds: impl Fn(&proto::books::Account) -> bool) {
    let id = member.account();
    let wait = async {
        loop {
            let account = hub.operations.core.query(move |books| books.account(id).cloned()).await.expect("runs");
            if account.as_ref().is_some_and(&holds) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("never: {what}; alarms: {:?}", hub.status().await.expect("runs").alarms);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_lives_from_opening_to_payout() {
    let world = World::start().await;
    let disk = Disk::default();
    world.endow(world.config(&disk).account()).await;
    let hub = world.hub(&disk).await;
    let (mut alice, bob) = (world.member(11, DEPOSIT, &disk).await, world.member(12, DEPOSIT, &disk).await);
    let (mut a, mut b) = (connect(&hub, &alice).await, connect(&hub, &bob).await);
    for member in [&alice, &bob] {
        until(&hub, member, "collateral", |a| a.ledger.hub_deposit == amount(DEPOSIT)).await;
    }
    let frame = alice.frame(1, &bob, 300_000);
    a.pay(1, &frame).await;
    assert_eq!(a.accepted().await.tags, [1]);
    assert!(b.credited().await.voucher.is_some());

    // Collateral that is used up is deposited again.
    let more = alice.frame(2, &bob, 650_000);
    a.pay(2, &more).await;
    assert_eq!(a.accepted().await.tags, [2]);
    assert_eq!(b.credited().await.credits.len(), 1);
    until(&hub, &bob, "more collateral", |a| a.ledger.hub_deposit == amount(DEPOSIT + 950_000)).await;

    // Bob takes a part out; both sign, the hub posts.
    let withdraw = wire::amount_bytes(amount(1_200_000));
    let request = v1::SettlementRequest { tag: 3, asset: wire::bytes_of(world.usdh), withdraw, close: false };
    b.send(ToHub::SettlementRequest(request)).await;
    let Kind::Proposal(proposal) = b.next().await else { panic!("a proposal") };
    let settlement = wire::read_proposal(bob.channel(), &proposal).expect("well-formed");
    let signed = Signed::sign(&bob.domain, &bob.key, settlement);
    b.send(ToHub::SettlementAnswer(wire::answer_message(world.usdh, proposal.seq, Some(&signed)))).await;
    let Kind::Posted(posted) = b.next().await else { panic!("posted") };
    assert!(posted.error.is_empty() && posted.transaction.len() == 32 && posted.proof.is_some(), "{posted:?}");
    until(&hub, &bob, "the withdrawal", |a| a.ledger.member_withdrawn == amount(1_200_000) && a.kept.is_empty()).await;
    let held = world.chain.balance(world.usdh, bob.terms.member).await.expect("answers");
    assert_eq!(held, U256::from(99 * DEPOSIT + 1_200_000));

    // Alice's account is closed by the hub alone: the tower shows what she paid, and finalizes.
    hub.start_close(alice.account()).await.expect("started");
    until(&hub, &alice, "the tower's response", |a| a.ledger.member_paid == amount(950_002)).await;
    let late = alice.frame(3, &bob, 1);
    a.pay(3, &late).await;
    assert_eq!(a.refused().await.reason, "NOT_OPEN");
    world.pass(u64::from(PERIOD_S) + 1).await;
    until(&hub, &alice, "the payout", |a| a.ledger.status == proto::account::Status::Final).await;
    let books = world.books(&alice).await;
    assert_eq!((books.status, books.member_withdrawn), (LedgerStatus::Final, amount(DEPOSIT - 950_002)));
    // What the contract kept for the hub is collected.
    let hub_account = hub.account();
    let expected = U256::from(100 * DEPOSIT - (DEPOSIT + 950_000) + 950_002);
    let collected = async {
        while world.chain.balance(world.usdh, hub_account).await.expect("answers") != expected {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, collected).await.expect("the hub's money is collected");
    let status = hub.status().await.expect("runs");
    let sums = &status.assets[0].1;
    assert_eq!(sums.custody, sums.member_nets.saturating_add(sums.hub_nets), "I1");
    assert_eq!(status.alarms, Vec::<String>::new());
    hub.shutdown().await.expect("in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_beyond_the_target_is_funded_and_then_accepted() {
    let world = World::start().await;
    let disk = Disk::default();
    world.endow(world.config(&disk).account()).await;
    let hub = world.hub(&disk).await;
    let (mut alice, bob) = (world.member(11, 3 * DEPOSIT, &disk).await, world.member(12, DEPOSIT, &disk).await);
    let mut a = connect(&hub, &alice).await;
    until(&hub, &bob, "collateral", |a| a.ledger.hub_deposit == amount(DEPOSIT)).await;
    let large = alice.frame(1, &bob, 2 * DEPOSIT);
    a.pay(1, &large).await;
    let refused = a.refused().await;
    assert!(refused.reason == "PAYEE_UNBACKED" && refused.retryable && refused.retry_after_ms > 0, "{refused:?}");
    until(&hub, &bob, "collateral for it", |a| a.ledger.hub_deposit == amount(2 * DEPOSIT)).await;
    a.pay(2, &large).await;
    assert_eq!(a.accepted().await.tags, [2]);
    hub.shutdown().await.expect("in order");
}

/// The hub agreed, and ended before it posted: the next start posts.
#[tokio::test(flavor = "multi_thread")]
async fn an_agreed_settlement_is_posted_after_a_restart() {
    let world = World::start().await;
    let disk = Disk::default();
    world.endow(world.config(&disk).account()).await;
    let hub = world.hub(&disk).await;
    let alice = world.member(11, DEPOSIT, &disk).await;
    let a = connect(&hub, &alice).await;
    until(&hub, &alice, "collateral", |a| a.ledger.hub_deposit == amount(DEPOSIT)).await;
    drop((a, hub));
    // The same books without a ledger: it agrees and cannot post.
    let disk = disk.crash(storage::Crash::Lost);
    let genesis = world.chain.genesis_hash().await.expect("answers");
    let deaf = Hub::run(world.config(&disk), *world.chain.domain(), genesis, None).await.expect("starts");
    let a = connect(&deaf, &alice).await;
    let settlement = deaf.settle(alice.account(), Ask::Withdraw(amount(5))).await.expect("proposed");
    let signed = Signed::sign(&alice.domain, &alice.key, settlement);
    a.send(ToHub::SettlementAnswer(wire::answer_message(world.usdh, 1, Some(&signed)))).await;
    until(&deaf, &alice, "the agreement", |a| a.agreed.len() == 1).await;
    deaf.operations.core.barrier().await.expect("durable");
    drop((a, deaf));
    let disk = disk.crash(storage::Crash::Lost);
    let hub = world.hub(&disk).await;
    until(&hub, &alice, "the withdrawal", |a| a.ledger.member_withdrawn == amount(5)).await;
    assert_eq!(world.books(&alice).await.seq, 1);
    hub.shutdown().await.expect("in order");
}

/// Every posting costs the hub gas, so a member who says yes a hundred times has it post once.
#[tokio::test(flavor = "multi_thread")]
async fn an_agreement_said_again_is_posted_once() {
    let world = World::start().await;
    let disk = Disk::default();
    world.endow(world.config(&disk).account()).await;
    let hub = world.hub(&disk).await;
    let alice = world.member(11, DEPOSIT, &disk).await;
    let mut a = connect(&hub, &alice).await;
    until(&hub, &alice, "collateral", |a| a.ledger.hub_deposit == amount(DEPOSIT)).await;
    let settlement = hub.settle(alice.account(), Ask::Withdraw(amount(5))).await.expect("proposed");
    let signed = Signed::sign(&alice.domain, &alice.key, settlement);
    for _ in 0..100 {
        a.send(ToHub::SettlementAnswer(wire::answer_message(world.usdh, 1, Some(&signed)))).await;
    }
    until(&hub, &alice, "the withdrawal", |a| a.ledger.member_withdrawn == amount(5)).await;
    let ending = tokio::spawn(hub.shutdown());
    let mut posted = 0;
    loop {
        match a.next().await {
            Kind::Posted(_) => posted += 1,
            Kind::Farewell(_) => break,
            _ => {}
        }
    }
    ending.await.expect("joins").expect("in order");
    assert!(posted <= 1, "posted {posted} times");
    let own = world.chain.provider().get_transaction_count(world.config(&disk).account()).await.expect("answers");
    assert!(own <= 3, "an approval, a deposit and one posting, not {own} transactions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_does_not_fit_is_refused() {
    let world = World::start().await;
    let disk = Disk::default();
    let mut config = world.config(&disk);
    config.development = false;
    config.challenge_period_s = 1;
    let refused = Hub::start(config, world.chain.clone()).await.map(drop);
    assert!(
        matches!(refused, Err(StartError::ChallengePeriodTooShort { given: 1, .. })),
        "one_second_challenge_period_not_served"
    );
    let mut config = world.config(&disk);
    config.challenge_period_s = u32::MAX;
    let refused = Hub::start(config, world.chain.clone()).await.map(drop);
    assert!(matches!(refused, Err(StartError::ChallengePeriodRefused { .. })));
    let elsewhere = Domain::new(5, world.chain.domain().adjudicator);
    let chain = Chain::over(world.ledger.rpc_client(), "the embedded ledger", elsewhere, 0);
    assert!(matches!(Hub::start(world.config(&disk), chain).await.map(drop), Err(StartError::Chain(_))));
}
