//! A hub over gRPC on a disk in memory, with the ledger's updates fed by hand.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use dispute::chain::{Fees, Pace};
use proto::account::{Status, Totals};
use proto::books::LedgerUpdate;
use proto::frame::LaneTip;
use proto::typed::{Ack, Login, Settlement, server_id};
use proto::wire::v1::client_message::Kind as ToHub;
use proto::wire::v1::hub_message::Kind;
use proto::wire::v1::member_client::MemberClient;
use proto::wire::{self, v1};
use proto::{
    AccountId, Amount, ChannelId, ChannelTerms, Domain, Frame, Payment, PaymentId, PublicKey, Scheme, SecretKey, Signed,
};
use storage::{Crash, Fault, MemoryBackend, MemoryIndex};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

mod on_a_ledger;

use crate::sequencer::Command;
use crate::{AssetPolicy, Hub, HubConfig, StartError, StoreAt};

const SEED: [u8; 32] = [7; 32];
const GENESIS: B256 = B256::repeat_byte(3);
/// Nothing here takes a second; what takes this long will not come.
const PATIENCE: Duration = Duration::from_secs(20);

fn domain() -> Domain {
    Domain::new(31337, Address::repeat_byte(1))
}

fn asset() -> Address {
    Address::repeat_byte(9)
}

fn amount(base_units: u128) -> Amount {
    Amount::new(base_units)
}

#[derive(Clone, Default)]
struct Disk {
    backend: MemoryBackend,
    index: MemoryIndex,
}

impl Disk {
    fn config(&self) -> HubConfig {
        let asset = AssetPolicy {
            asset: asset(),
            symbol: "USDH".into(),
            decimals: 6,
            deposit_min: amount(10),
            inbound_target: amount(1_000),
            inbound_max: amount(10_000),
            fee_flat: amount(1),
            fee_ppm: 0,
        };
        let at = StoreAt::Backend(Arc::new(self.backend.clone()), Box::new(self.index.clone()));
        let mut config = HubConfig::new(SEED, at, vec![asset]);
        config.store_config.journal.segment_bytes = 1 << 20;
        config
    }

    async fn start(&self) -> Hub {
        Hub::run(self.config(), domain(), GENESIS, None).await.expect("the hub starts")
    }

    /// The disk after the power went away.
    fn crash(&self, policy: Crash) -> Disk {
        Disk { backend: self.backend.crash(policy, 1), index: self.index.crash(policy, 1) }
    }
}

struct Member {
    domain: Domain,
    asset: Address,
    key: SecretKey,
    terms: ChannelTerms,
    tip: LaneTip,
}

struct Session {
    outbox: mpsc::Sender<v1::ClientMessage>,
    inbox: Streaming<v1::HubMessage>,
    client: MemberClient<Channel>,
    welcome: v1::Welcome,
}

impl Member {
    fn new(number: u8, scheme: Scheme, hub: &HubConfig) -> Self {
        Member::of(domain(), Address::repeat_byte(number), number, scheme, hub)
    }

    fn of(domain: Domain, payout: Address, number: u8, scheme: Scheme, hub: &HubConfig) -> Self {
        let key = SecretKey::derive(scheme, &[number; 32], "voucher");
        let hub_key = hub.voucher_keys().into_iter().find(|key| key.scheme() == scheme).expect("served").public();
        let terms = ChannelTerms {
            hub: hub.account(),
            hubKey: hub_key.bytes,
            hubScheme: scheme.number(),
            member: payout,
            memberKey: key.public().bytes,
            memberScheme: scheme.number(),
            challengePeriod: hub.challenge_period_s,
            salt: B256::repeat_byte(number),
        };
        Member { domain, asset: hub.assets[0].asset, key, terms, tip: LaneTip::default() }
    }

    fn channel(&self) -> ChannelId {
        self.domain.channel_id(&self.terms)
    }

    fn account(&self) -> AccountId {
        AccountId { channel: self.channel(), asset: self.asset }
    }

    fn hub_key(&self) -> PublicKey {
        PublicKey::new(Scheme::from_number(self.terms.hubScheme).expect("known"), self.terms.hubKey).expect("good")
    }

    /// The next frame of lane 0: one payment.
    fn frame(&mut self, id: u8, payee: &Member, base_units: u128) -> Frame {
        let payment = Payment {
            id: PaymentId([id; 16].into()),
            payee: payee.channel(),
            amount: amount(base_units),
            fee: amount(1),
            note: Default::default(),
        };
        let frame = Frame::sign(&self.domain, &self.key, self.account(), 0, self.tip, vec![payment]).expect("fits");
        self.tip = frame.tip();
        frame
    }

    async fn try_connect(&self, hub: &Hub, seen: Option<u64>) -> Result<Session, tonic::Status> {
        self.connect_with(hub, seen, None, "localhost").await
    }

    async fn connect_with(
        &self,
        hub: &Hub,
        seen: Option<u64>,
        newest_batch: Option<v1::BatchSeen>,
        host: &str,
    ) -> Result<Session, tonic::Status> {
        let mut client = MemberClient::connect(format!("http://{}", hub.addr())).await.expect("listens");
        let (outbox, messages) = mpsc::channel(64);
        let mut inbox = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let Some(Kind::Challenge(challenge)) = inbox.message().await?.and_then(|m| m.kind) else {
            panic!("a challenge")
        };
        let login = Login {
            channelId: self.channel().0,
            server: server_id(self.terms.hubKey, host),
            nonce: B256::from_slice(&challenge.nonce),
            expires: challenge.expires,
        };
        let signed = Signed::sign(&self.domain, &self.key, login);
        let account = |credits| v1::AccountSeen { asset: wire::bytes_of(self.asset), credits, ..Default::default() };
        let hello = v1::Hello {
            channel_id: wire::bytes_of(self.channel().0),
            signature: wire::bytes_of(signed.signature().as_slice()),
            newest_batch,
            accounts: seen.map(account).into_iter().collect(),
            name: format!("member-{}", self.terms.salt[0]),
        };
        outbox.send(v1::ClientMessage { kind: Some(ToHub::Hello(hello)) }).await.expect("open");
        match inbox.message().await?.and_then(|m| m.kind) {
            Some(Kind::Welcome(welcome)) => Ok(Session { outbox, inbox, client, welcome }),
            Some(Kind::Farewell(farewell)) => Err(tonic::Status::unavailable(farewell.reason)),
            other => panic!("a welcome, not {other:?}"),
        }
    }

    async fn connect(&self, hub: &Hub) -> Session {
        self.try_connect(hub, None).await.expect("welcome")
    }
}

impl Session {
    async fn send(&self, kind: ToHub) {
        self.outbox.send(v1::ClientMessage { kind: Some(kind) }).await.expect("open");
    }

    async fn pay(&self, tag: u64, frame: &Frame) {
        self.send(ToHub::Frame(wire::frame_message(tag, frame))).await;
    }

    /// The next message, account updates left out.
    async fn next(&mut self) -> Kind {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.inbox.message()).await.expect("in time");
            match message.expect("open").expect("a message").kind.expect("content") {
                Kind::Account(_) => {}
                kind => return kind,
            }
        }
    }

    async fn accepted(&mut self) -> v1::Accepted {
        match self.next().await {
            Kind::Accepted(accepted) => accepted,
            other => panic!("accepted, not {other:?}"),
        }
    }

    async fn refused(&mut self) -> v1::Refused {
        match self.next().await {
            Kind::Refused(refused) => refused,
            other => panic!("refused, not {other:?}"),
        }
    }

    async fn credited(&mut self) -> v1::Credited {
        match self.next().await {
            Kind::Credited(credited) => credited,
            other => panic!("credited, not {other:?}"),
        }
    }
}

async fn tell(hub: &Hub, update: LedgerUpdate) {
    let (done, durable) = oneshot::channel();
    hub.operations.core.send(Command::Ledger { update, done }).await.expect("runs");
    durable.await.expect("durable");
}

async fn open(hub: &Hub, members: &[&Member]) {
    let totals = |m: &&Member| {
        let totals = Totals { member_deposit: amount(1_000), hub_deposit: amount(1_000), ..Totals::default() };
        (m.account(), totals)
    };
    let update = LedgerUpdate {
        confirmed: 1,
        confirmed_time: 1_000,
        opened: members.iter().map(|m| m.terms.clone()).collect(),
        totals: members.iter().map(totals).collect(),
        cursor: vec![1].into(),
    };
    tell(hub, update).await;
}

async fn world(scheme: Scheme) -> (Disk, Hub, Member, Member) {
    let disk = Disk::default();
    let hub = disk.start().await;
    let (alice, bob) = (Member::new(1, scheme, &disk.config()), Member::new(2, scheme, &disk.config()));
    open(&hub, &[&alice, &bob]).await;
    (disk, hub, alice, bob)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_pay_each_other() {
    for scheme in [Scheme::Ed25519, Scheme::Secp256k1] {
        let (_disk, hub, mut alice, mut bob) = world(scheme).await;
        let (mut a, mut b) = (alice.connect(&hub).await, bob.connect(&hub).await);
        assert_eq!(a.welcome.name, "member-1");
        let frame = alice.frame(1, &bob, 100);
        a.pay(1, &frame).await;
        let accepted = a.accepted().await;
        assert_eq!(accepted.tags, [1]);
        let receipt = wire::read_receipt(&domain(), &bob.hub_key(), &accepted.receipts[0]).expect("proven");
        assert_eq!((receipt.body().amount, receipt.body().credit, receipt.body().total), (100, 1, 100));
        let credited = b.credited().await;
        let voucher = credited.voucher.expect("the newest");
        let voucher = wire::read_hub_voucher(&domain(), &bob.hub_key(), bob.account(), &voucher).expect("proven");
        assert_eq!((voucher.body().cumulative, voucher.body().credits), (100, 1));
        let credit = wire::read_credit(credited.credits[0].clone()).expect("well-formed");
        assert_eq!(credit.receipt(bob.account()), *receipt.body());
        let frame = bob.frame(1, &alice, 50);
        b.pay(9, &frame).await;
        assert_eq!(b.accepted().await.tags, [9]);
        assert_eq!(a.credited().await.credits.len(), 1);
        let ack = Ack { channelId: bob.channel().0, asset: asset(), credits: 1, head: voucher.body().memo };
        b.send(ToHub::Ack(wire::ack_message(&Signed::sign(&domain(), &bob.key, ack)))).await;
        let Kind::Delivered(delivered) = a.next().await else { panic!("delivered") };
        let delivered = wire::read_delivered(&domain(), &bob.key.public(), &delivered).expect("signed");
        assert!(delivered.last_page && delivered.credit == 1);
        let head = wire::head_after(delivered.head_before, [receipt.digest()]);
        assert_eq!(wire::head_after(head, delivered.digests), delivered.ack.body().head);
        let status = hub.status().await.expect("runs");
        let sums = &status.assets[0].1;
        assert_eq!((status.payments, sums.income), (2, amount(2)));
        assert_eq!(sums.custody, sums.member_nets.saturating_add(sums.hub_nets), "I1");
        hub.shutdown().await.expect("in order");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_keep_their_place_and_show_the_lane() {
    let (_disk, hub, mut alice, bob) = world(Scheme::Ed25519).await;
    let mut a = alice.connect(&hub).await;
    let good = alice.frame(1, &bob, 10);
    let tip = alice.tip;
    let too_much = alice.frame(2, &bob, 5_000);
    let after_it = alice.frame(3, &bob, 1);
    let mut unsigned = wire::frame_message(4, &good);
    unsigned.cumulative = wire::amount_bytes(amount(12));
    let mut malformed = wire::frame_message(5, &good);
    malformed.memo = wire::bytes_of([0; 3]);
    a.pay(1, &good).await;
    a.pay(2, &too_much).await;
    a.pay(3, &after_it).await;
    a.send(ToHub::Frame(unsigned)).await;
    a.send(ToHub::Frame(malformed)).await;
    assert_eq!(a.accepted().await.tags, [1]);
    for (tag, reason) in [(2, "INSUFFICIENT_FUNDS"), (3, "LANE_BROKEN"), (4, "BAD_SIGNATURE"), (5, "MALFORMED")] {
        let refused = a.refused().await;
        assert_eq!((refused.tag, refused.reason.as_str()), (tag, reason));
        let lane = refused.lane.expect("something was accepted");
        let lane = wire::read_lane(&domain(), &alice.key.public(), alice.account(), &lane).expect("his own signature");
        assert_eq!(lane.value(), tip.cumulative);
    }
    alice.tip = tip;
    let retry = alice.frame(2, &bob, 20);
    a.pay(6, &retry).await;
    assert_eq!(a.accepted().await.tags, [6], "a_refused_id_may_be_paid_later");
}

#[tokio::test(flavor = "multi_thread")]
async fn ghost_frame_of_an_old_session_is_refused() {
    let (_disk, hub, mut alice, bob) = world(Scheme::Ed25519).await;
    let mut old = alice.connect(&hub).await;
    let mut new = alice.connect(&hub).await;
    let Kind::Farewell(farewell) = old.next().await else { panic!("farewell") };
    assert_eq!(farewell.reason, "OLD_SESSION");
    let frame = alice.frame(1, &bob, 10);
    let (ghost, _events) = crate::link::Link::new(proto::books::SessionId(1), alice.channel());
    hub.operations.core.send(Command::Pay { link: ghost, tag: 1, frame: frame.clone().into() }).await.expect("runs");
    new.pay(2, &frame).await;
    assert_eq!(new.accepted().await.tags, [2], "the ghost was not accepted, or this would be a repetition");
    assert_eq!(hub.status().await.expect("runs").payments, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_learn_nothing() {
    let (_disk, hub, alice, _bob) = world(Scheme::Ed25519).await;
    let stranger = Member::new(8, Scheme::Ed25519, &Disk::default().config());
    let refused = stranger.try_connect(&hub, None).await.map(drop).expect_err("unknown");
    assert_eq!(refused.code(), tonic::Code::NotFound);
    let elsewhere = alice.connect_with(&hub, None, None, "elsewhere").await.map(drop).expect_err("another server");
    assert_eq!(elsewhere.code(), tonic::Code::Unauthenticated);
    let impostor = Member { key: stranger.key.clone(), ..Member::new(1, Scheme::Ed25519, &Disk::default().config()) };
    assert_eq!(
        impostor.try_connect(&hub, None).await.map(drop).expect_err("his key").code(),
        tonic::Code::Unauthenticated
    );
    let mut client = MemberClient::connect(format!("http://{}", hub.addr())).await.expect("listens");
    let request = v1::GetPaymentRequest { token: wire::bytes_of([1; 32]), id: wire::bytes_of([1; 16]) };
    assert_eq!(client.get_payment(request).await.map(drop).expect_err("no token").code(), tonic::Code::Unauthenticated);
    let info = client.get_info(v1::GetInfoRequest {}).await.expect("public").into_inner();
    for offer in &info.offers {
        wire::read_offer(&domain(), hub.account(), info.challenge_period_s, offer).expect("signed by its key");
    }
    assert_eq!(info.offers.len(), 2);
}

/// After every kind of crash: what was answered is there, the answer is the same, and books and index agree.
#[tokio::test(flavor = "multi_thread")]
async fn an_answered_payment_survives_every_crash_and_is_answered_again() {
    for policy in Crash::ALL {
        let (disk, hub, mut alice, mut bob) = world(Scheme::Ed25519).await;
        let (mut a, mut b) = (alice.connect(&hub).await, bob.connect(&hub).await);
        let first = alice.frame(1, &bob, 100);
        a.pay(1, &first).await;
        let answer = a.accepted().await;
        let back = bob.frame(2, &alice, 30);
        b.pay(1, &back).await;
        while !matches!(b.next().await, Kind::Accepted(_)) {}
        let voucher = a.credited().await.voucher;
        let disk = disk.crash(policy);
        drop(hub);
        let hub = disk.start().await;
        let mut a = alice.try_connect(&hub, Some(1)).await.expect("welcome");
        let mut b = bob.connect(&hub).await;
        assert_eq!(a.welcome.accounts[0].hub_voucher, voucher, "the same bytes after {policy:?}");
        a.pay(7, &first).await;
        let again = a.accepted().await;
        assert_eq!((again.flush, &again.receipts), (answer.flush, &answer.receipts));
        let missed = b.credited().await;
        assert_eq!((missed.credits.len(), missed.voucher.is_some()), (1, true));
        let second = alice.frame(3, &bob, 5);
        a.pay(8, &second).await;
        assert_eq!(a.accepted().await.tags, [8]);
        assert_eq!(hub.status().await.expect("runs").payments, 3);
        hub.shutdown().await.expect("in order");
    }
}

/// Whatever operation of the disk fails, nothing is answered that is not there after the restart.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_answered_before_it_is_durable() {
    for (fault, step) in
        [Fault::Broken, Fault::DiskFull, Fault::PowerCut].into_iter().flat_map(|f| [0, 1].map(|s| (f, s)))
    {
        let (disk, hub, mut alice, bob) = world(Scheme::Ed25519).await;
        let mut a = alice.connect(&hub).await;
        hub.operations.core.barrier().await.expect("everything before is written");
        disk.backend.fail_at(disk.backend.operations() + step, fault);
        let frame = alice.frame(1, &bob, 100);
        a.pay(1, &frame).await;
        let answer = tokio::time::timeout(PATIENCE, a.inbox.message()).await.expect("in time");
        assert!(!matches!(answer, Ok(Some(v1::HubMessage { kind: Some(Kind::Accepted(_)) }))), "{fault:?} {step}");
        hub.failed().await.expect_err("a failed write ends the hub");
        assert!(hub.status().await.is_err(), "and nothing is told after it");
        let disk = disk.crash(Crash::Lost);
        let hub = disk.start().await;
        let mut a = alice.connect(&hub).await;
        a.pay(2, &frame).await;
        assert_eq!(a.accepted().await.tags, [2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolled_back_store_freezes() {
    let (disk, hub, mut alice, bob) = world(Scheme::Ed25519).await;
    let mut a = alice.connect(&hub).await;
    hub.operations.core.barrier().await.expect("written");
    let older = disk.crash(Crash::Lost);
    let frame = alice.frame(1, &bob, 100);
    a.pay(1, &frame).await;
    let accepted = a.accepted().await;
    let receipt = wire::read_receipt(&domain(), &bob.hub_key(), &accepted.receipts[0]).expect("proven");
    let seen = wire::batch_seen_message(receipt.digest(), receipt.proof()).expect("batched");
    // The same flush number again with another content: the newest batch is not ahead, but it is another one.
    for other_history in [false, true] {
        let image = older.crash(Crash::Lost);
        let hub = image.start().await;
        if other_history {
            let mut a = alice.connect(&hub).await;
            let other = Member::new(1, Scheme::Ed25519, &image.config()).frame(9, &bob, 7);
            a.pay(1, &other).await;
            assert_eq!(a.accepted().await.flush, accepted.flush);
        }
        let mut a = alice.connect_with(&hub, None, Some(seen.clone()), "localhost").await.expect("welcome");
        a.pay(1, &frame).await;
        let refused = a.refused().await;
        assert_eq!(refused.reason, "HUB_FROZEN");
        assert!(hub.status().await.expect("runs").frozen.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_payee_catches_up_from_the_store() {
    let (_disk, hub, mut alice, bob) = world(Scheme::Ed25519).await;
    let (mut a, mut b) = (alice.connect(&hub).await, bob.connect(&hub).await);
    let count = 40;
    for i in 0..count {
        let frame = alice.frame(i, &bob, 1);
        a.pay(u64::from(i), &frame).await;
        a.accepted().await;
    }
    let mut credits = Vec::new();
    let mut newest = 0;
    while credits.len() < usize::from(count) {
        if credits.len() == usize::from(crate::limits::WINDOW_START as u16) {
            b.send(ToHub::Window(v1::CreditWindow { more: 2 })).await;
        }
        let credited = b.credited().await;
        credits.extend(credited.credits.iter().map(|credit| credit.number));
        newest = credited.voucher.map_or(newest, |voucher| voucher.credits);
    }
    assert_eq!(credits, (1..=u64::from(count)).collect::<Vec<_>>());
    assert_eq!(newest, u64::from(count));
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_and_events_are_told_to_their_channel_only() {
    let (_disk, hub, mut alice, bob) = world(Scheme::Ed25519).await;
    let (mut a, mut b) = (alice.connect(&hub).await, bob.connect(&hub).await);
    for i in 1..=3 {
        let frame = alice.frame(i, &bob, 10);
        a.pay(u64::from(i), &frame).await;
        a.accepted().await;
    }
    let ask =
        |token: &[u8], id: u8| v1::GetPaymentRequest { token: wire::bytes_of(token), id: wire::bytes_of([id; 16]) };
    let mine = a.client.get_payment(ask(&a.welcome.token, 2)).await.expect("told").into_inner();
    assert!(mine.known && mine.opening.len() == 1);
    let receipt = wire::read_receipt(&domain(), &bob.hub_key(), &mine.receipt.expect("one")).expect("proven");
    assert_eq!(receipt.body().credit, 2);
    assert!(!a.client.get_payment(ask(&a.welcome.token, 9)).await.expect("told").into_inner().known);
    assert!(!b.client.get_payment(ask(&b.welcome.token, 2)).await.expect("told").into_inner().known);
    let events = |after_cursor, follow| v1::EventsRequest { token: b.welcome.token.clone(), after_cursor, follow };
    let mut client = b.client.clone();
    let mut stream = client.events(events(0, false)).await.expect("open").into_inner();
    let mut cursors = Vec::new();
    let mut credits = 0;
    while let Some(event) = stream.message().await.expect("open") {
        credits += u64::from(matches!(event.kind, Some(v1::event::Kind::Credited(_))));
        cursors.push(event.cursor);
    }
    assert_eq!((cursors.len(), credits), (4, 3), "one ledger event and three credits");
    assert!(cursors.is_sorted_by(|a, b| a < b));
    let mut rest = client.events(events(cursors[1], true)).await.expect("open").into_inner();
    for cursor in &cursors[2..] {
        assert_eq!(rest.message().await.expect("open").expect("an event").cursor, *cursor);
    }
    let frame = alice.frame(4, &bob, 10);
    a.pay(4, &frame).await;
    let next = tokio::time::timeout(PATIENCE, rest.message()).await.expect("in time").expect("open").expect("an event");
    assert!(next.cursor > cursors[3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_is_kept_proposed_again_and_agreed() {
    let (disk, hub, alice, _bob) = world(Scheme::Ed25519).await;
    let mut a = alice.connect(&hub).await;
    let request = v1::SettlementRequest {
        tag: 5,
        asset: wire::bytes_of(asset()),
        withdraw: wire::amount_bytes(amount(400)),
        close: false,
    };
    a.send(ToHub::SettlementRequest(request.clone())).await;
    let Kind::Proposal(proposal) = a.next().await else { panic!("a proposal") };
    assert_eq!((proposal.tag, proposal.seq), (5, 1));
    a.send(ToHub::SettlementRequest(v1::SettlementRequest {
        withdraw: wire::amount_bytes(amount(700)),
        tag: 6,
        ..request
    }))
    .await;
    let Kind::SettlementRefused(refused) = a.next().await else { panic!("a refusal") };
    assert_eq!(refused.reason, "PAYOUT_TOO_LARGE", "a_kept_settlement_cannot_withdraw_spent_money");
    let disk = {
        drop(hub);
        disk.crash(Crash::Lost)
    };
    let hub = disk.start().await;
    let a = alice.connect(&hub).await;
    let kept = &a.welcome.accounts[0].kept;
    assert_eq!(kept.len(), 1);
    let settlement: Settlement = wire::read_proposal(alice.channel(), &kept[0]).expect("well-formed");
    let signed = Signed::sign(&domain(), &alice.key, settlement);
    a.send(ToHub::SettlementAnswer(wire::answer_message(asset(), 1, Some(&signed)))).await;
    let core = &hub.operations.core;
    let half = loop {
        core.barrier().await.expect("runs");
        if let Some(half) = core.rows.settlement(alice.account(), 1).expect("reads") {
            break half;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(half.digest(), signed.digest(), "both halves are over one struct");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_signature_under_a_settlement_ends_the_session() {
    let (_disk, hub, alice, bob) = world(Scheme::Ed25519).await;
    let mut a = alice.connect(&hub).await;
    let settlement = hub.settle(alice.account(), proto::books::Ask::Withdraw(amount(5))).await.expect("proposed");
    assert!(matches!(a.next().await, Kind::Proposal(_)));
    let of_bob = Signed::sign(&domain(), &bob.key, settlement.clone());
    a.send(ToHub::SettlementAnswer(wire::answer_message(asset(), 1, Some(&of_bob)))).await;
    let Kind::Farewell(farewell) = a.next().await else { panic!("a farewell") };
    assert_eq!(farewell.reason, "BAD_SIGNATURE");
    // What it had sent before is nobody's word any more, and the next session may agree.
    let a = alice.connect(&hub).await;
    let signed = Signed::sign(&domain(), &alice.key, settlement);
    a.send(ToHub::SettlementAnswer(wire::answer_message(asset(), 1, Some(&signed)))).await;
    let core = &hub.operations.core;
    loop {
        core.barrier().await.expect("runs");
        if core.rows.settlement(alice.account(), 1).expect("reads").is_some() {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_survives_checkpoints_and_their_crashes() {
    // Without a fault, and with the index failing at each of its first operations, mark and sync included.
    for fail_at in [None].into_iter().chain((0..12).map(Some)) {
        checkpoint_story(fail_at).await;
    }
}

async fn checkpoint_story(fail_at: Option<u64>) {
    let (disk, hub, mut alice, mut bob) = world(Scheme::Ed25519).await;
    let (mut a, mut b) = (alice.connect(&hub).await, bob.connect(&hub).await);
    let rows = hub.operations.core.rows.clone();
    let mut frames = Vec::new();
    for i in 0..20u8 {
        let (from, to, session) = if i % 2 == 0 { (&mut alice, &bob, &mut a) } else { (&mut bob, &alice, &mut b) };
        let frame = from.frame(i, to, 3);
        session.pay(u64::from(i), &frame).await;
        while !matches!(session.next().await, Kind::Accepted(_)) {}
        frames.push(frame);
        if i == 4 || i == 9 || i == 14 {
            let snapshot = snapshot(&hub).await;
            rows.begin_payments();
            rows.begin_words();
            let last = i == 14;
            if let Some(n) = fail_at.filter(|_| last) {
                disk.index.fail_at(disk.index.operations() + n);
            }
            if rows.checkpoint(snapshot).is_err() {
                assert!(last && fail_at.is_some());
                break;
            }
        }
    }
    let before = (rows.payments_total(), *hub.operations.core.durable.borrow());
    for policy in Crash::ALL {
        let again = disk.crash(policy).start().await;
        let after = again.status().await.expect("runs");
        assert_eq!(before, (after.payments, after.flush), "{policy:?} {fail_at:?}");
        let sums = &after.assets[0].1;
        assert_eq!(sums.custody, sums.member_nets.saturating_add(sums.hub_nets), "I1 {policy:?} {fail_at:?}");
        assert_eq!(sums.income, amount(frames.len() as u128), "{policy:?} {fail_at:?}");
        for frame in &frames {
            let rows = &again.operations.core.rows;
            let known = rows.payment(frame.account().channel, frame.payments[0].id).expect("reads").expect("known");
            assert_eq!(known.payment, frame.payments[0], "{policy:?} {fail_at:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_follow_the_flushes_and_large_channels_are_kept_in_parts() {
    let disk = Disk::default();
    let mut config = disk.config();
    config.checkpoint_flushes = 7;
    let hub = Hub::run(config, domain(), GENESIS, None).await.expect("starts");
    let (mut alice, bob) =
        (Member::new(1, Scheme::Ed25519, &disk.config()), Member::new(2, Scheme::Ed25519, &disk.config()));
    open(&hub, &[&alice, &bob]).await;
    let mut a = alice.connect(&hub).await;
    let count = 180;
    let mut frames = Vec::new();
    for i in 0..count {
        let frame = alice.frame(i, &bob, 1);
        a.pay(u64::from(i), &frame).await;
        a.accepted().await;
        frames.push(frame);
    }
    let rows = hub.operations.core.rows.clone();
    hub.shutdown().await.expect("in order");
    // Each payment makes three; how many of them are in rows depends on how fast the checkpoints are.
    assert!(rows.fresh() < 3 * usize::from(count), "some entries are in rows");
    drop(rows);
    let image = disk.crash(Crash::Lost);
    let hub = image.start().await;
    let mut b = bob.try_connect(&hub, Some(170)).await.expect("welcome");
    let credited = b.credited().await;
    assert_eq!(credited.credits.len(), usize::from(count) - 170);
    let ack = Ack {
        channelId: bob.channel().0,
        asset: asset(),
        credits: u64::from(count),
        head: B256::from_slice(&credited.voucher.expect("the newest").memo),
    };
    let mut a = alice.connect(&hub).await;
    b.send(ToHub::Ack(wire::ack_message(&Signed::sign(&domain(), &bob.key, ack)))).await;
    let Kind::Delivered(delivered) = a.next().await else { panic!("delivered") };
    assert_eq!((delivered.credit, delivered.digests.len()), (1, usize::from(count) - 1), "all links were kept");
    for frame in &frames {
        a.pay(1, frame).await;
        assert_eq!(a.accepted().await.tags, [1]);
    }
    assert_eq!(hub.status().await.expect("runs").payments, u64::from(count));
}

/// What the sequencer takes when a checkpoint is due, between two flushes.
async fn snapshot(hub: &Hub) -> crate::rows::Snapshot {
    let taken = hub.operations.core.query(|books| {
        let touched = books.take_touched();
        let channels = touched.into_iter().filter_map(|id| books.channel(id).map(|c| (id, c.clone()))).collect();
        crate::rows::Snapshot { upto: books.sealed(), ground: books.ground(), channels }
    });
    taken.await.expect("runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closing_account_pays_no_more() {
    let (_disk, hub, mut alice, bob) = world(Scheme::Ed25519).await;
    let mut a = alice.connect(&hub).await;
    let totals = Totals {
        member_deposit: amount(1_000),
        hub_deposit: amount(1_000),
        status: Status::Closing,
        deadline: 9_000,
        ..Totals::default()
    };
    let update = LedgerUpdate {
        confirmed: 2,
        confirmed_time: 1_001,
        totals: vec![(bob.account(), totals)],
        cursor: vec![2].into(),
        ..Default::default()
    };
    tell(&hub, update).await;
    let frame = alice.frame(1, &bob, 10);
    a.pay(1, &frame).await;
    assert_eq!(a.refused().await.reason, "PAYEE_CLOSING");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_hub_finishes_and_takes_nothing_new() {
    let (disk, hub, mut alice, bob) = world(Scheme::Ed25519).await;
    let mut a = alice.connect(&hub).await;
    hub.drain().await.expect("runs");
    let frame = alice.frame(1, &bob, 10);
    a.pay(1, &frame).await;
    let refused = a.refused().await;
    assert!(refused.reason == "DRAINING" && refused.retryable && refused.retry_after_ms > 0);
    hub.shutdown().await.expect("in order");
    let Kind::Farewell(farewell) = a.next().await else { panic!("farewell") };
    assert_eq!(farewell.reason, "SHUTTING_DOWN");
    let hub = disk.start().await;
    let mut a = alice.connect(&hub).await;
    a.pay(1, &frame).await;
    assert_eq!(a.accepted().await.tags, [1]);
}

#[tokio::test]
async fn a_store_of_another_chain_is_refused() {
    let disk = Disk::default();
    disk.start().await.shutdown().await.expect("in order");
    let other = Hub::run(disk.config(), Domain::new(1, Address::repeat_byte(1)), GENESIS, None).await;
    assert!(matches!(other, Err(StartError::StoreOfAnother { chain_id: 1, .. })));
    let other = Hub::run(disk.config(), domain(), B256::ZERO, None).await;
    assert!(matches!(other, Err(StartError::StoreOfAnother { .. })), "developer chains share chain id and addresses");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let disk = Disk::default();
    let hub = disk.start().await;
    let mut config = Disk::default().config();
    config.listen = hub.addr();
    let refused = Hub::run(config, domain(), GENESIS, None).await;
    assert!(matches!(refused, Err(StartError::Listen { address, .. }) if address == hub.addr()));
}

#[test]
fn one_second_challenge_period_not_served() {
    let day = 24 * 3600;
    for (confirmations, block_time_s, least) in [(0, 1, day), (0, 12, day), (64, 12, day + 64 * 2 * 12)] {
        let fees = Fees { base_fee_wei: 0, priority_fee_wei: 0 };
        let pace = Pace { block_gas_limit: 30_000_000, block_time_s, fees };
        let needed = dispute::exit_plan::challenge_period_needed_s(0, &pace, confirmations);
        assert!(needed > least && needed > 1);
        assert!(needed <= 26 * 3600, "the default period is served on such a chain");
    }
}
