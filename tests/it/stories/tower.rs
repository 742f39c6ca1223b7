//! The watchtower that is a program of its own: members upload, and it answers when they are gone for good.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use alloy::consensus::Transaction as _;
use alloy::network::TransactionResponse as _;
use alloy::providers::Provider;
use alloy::rpc::types::BlockNumberOrTag;
use alloy_primitives::{Address, B256};
use alloy_sol_types::SolCall;
use client::Event;
use dispute::adjudicator::abi::IAdjudicator as contract;
use dispute::remote::{RemoteTower, TowerConfig, TowerLimits, TowerNews, TowerStore};
use dispute::{CloseOrder, Submitter, SubmitterConfig};
use payhub_tests::chains::Person;
use payhub_tests::town::{DEPOSIT, Disk, PATIENCE, POLL, Town, account_of, amount, event};
use proto::typed::Receipt;
use proto::wire::tower::{RECEIPTS_MAX, Upload};
use proto::wire::v1::tower_answer::Result as Answer;
use proto::wire::v1::watchtower_client::WatchtowerClient;
use proto::wire::{self, v1};
use proto::{AccountId, ChannelTerms, NATIVE, Proven, Scheme, SecretKey, Signed};
use storage::Crash;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A tower whose only key is the Crony's, who has coins for gas and no part in any channel.
async fn tower(town: &Town, disk: &Disk, listen: SocketAddr, limits: TowerLimits) -> RemoteTower {
    let gas = town.world().key(Person::Crony).clone();
    let submitter = Submitter::new(town.chain().clone(), vec![gas], SubmitterConfig::local());
    let store = TowerStore::Disk(Arc::new(disk.backend.clone()), Box::new(disk.index.clone()));
    let config = TowerConfig { listen: Some(listen), store, poll: POLL, limits };
    RemoteTower::start(config, town.chain().clone(), submitter).await.expect("the tower starts")
}

fn anywhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn url(tower: &RemoteTower) -> String {
    format!("http://{}", tower.addr().expect("it listens"))
}

/// Everything that an account sent: evidence and payouts, without a coin.
async fn sent_only_answers(town: &Town, account: Address) {
    let (respond, finalize) = (contract::respondCall::SELECTOR, contract::finalizeCall::SELECTOR);
    let head = town.chain().head().await.expect("a head").number;
    let mut sent = 0;
    for number in 0..=head {
        let provider = town.chain().provider();
        let block = provider.get_block_by_number(BlockNumberOrTag::Number(number)).full().await.expect("answers");
        for tx in block.expect("it is there").transactions.into_transactions().filter(|tx| tx.from() == account) {
            let selector: [u8; 4] = tx.input()[..4].try_into().expect("a call");
            assert!(selector == respond || selector == finalize, "{selector:?}");
            assert_eq!((tx.to(), tx.value().is_zero()), (Some(town.chain().adjudicator().address()), true));
            sent += 1;
        }
    }
    assert!(sent >= 2, "it answered and paid out: {sent}");
}

/// The member's store is gone, his program is gone, the hub's operator closes with nothing. The tower was killed between
/// the upload and the close, and what it had not synced went with the power.
#[tokio::test(flavor = "multi_thread")]
async fn a_tower_of_its_own_gets_everything_for_a_member_whose_store_is_gone() {
    let mut town = Town::embedded().await;
    let (usdh, disk) = (town.usdh(), Disk::default());
    let first = tower(&town, &disk, anywhere(), TowerLimits::default()).await;
    let alice = town.member(1, "alice").await;
    let bob = town.join(2, town.client(2, "bob").without_watchtower().tower(url(&first))).await;
    for _ in 0..3 {
        alice.pay("bob", amount(100_000), usdh).await.expect("paid");
    }
    bob.pay("alice", amount(40_000), usdh).await.expect("paid");
    town.received(&bob, 300_000).await;
    bob.guarded_by_tower(PATIENCE).await.expect("the tower holds it");
    let (terms, payout) = (bob.terms().await.expect("runs").expect("open"), bob.account());
    let paid = bob.balance(usdh).await.expect("runs").paid.get();
    let account = town.account(bob.channel().await.expect("runs").expect("open"));
    bob.shutdown().await.expect("goes offline");
    drop(bob);
    alice.shutdown().await.expect("stops");
    town.stop_hub().await;

    let after_kill = disk.crash(Crash::Lost, 7);
    drop(first);
    let second = tower(&town, &after_kill, anywhere(), TowerLimits::default()).await;
    let mut news = second.news();
    assert_eq!(second.accounts(), 1, "as before the kill");
    let before = town.dollars(payout).await;
    let close = CloseOrder { terms, asset: usdh, request: None };
    town.send_as_hub(town.chain().adjudicator().start_close(&close)).await;
    let world = &town;
    town.until("the response", || async move { world.world().books(&account).await.hub_paid == amount(300_000) }).await;
    town.pass_period().await;
    town.until("the payout", || async move { world.world().books(&account).await.status == dispute::Status::Final })
        .await;
    assert_eq!(town.dollars(payout).await - before, DEPOSIT + 300_000 - paid);
    sent_only_answers(&town, second.gas_account()).await;
    let told = news.recv().await.expect("it tells");
    assert!(matches!(told, TowerNews::Responding { hub_paid, .. } if hub_paid == amount(300_000)), "{told:?}");
    let tower = &second;
    town.until("what is final is forgotten", || async move { tower.accounts() == 0 }).await;
    second.shutdown().await;
}

/// While the tower is away payments go on and acknowledgements wait; when it is back, they leave.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_before_the_tower_holds_it_and_payments_go_on() {
    let town = Town::embedded().await;
    let usdh = town.usdh();
    let address = TcpListener::bind(anywhere()).and_then(|l| l.local_addr()).expect("a free port");
    let alice = town.member(1, "alice").await;
    town.endow(account_of(2).address(), 2 * DEPOSIT).await;
    let bob = town.client(2, "bob").tower(format!("http://{address}")).connect().await.expect("connects");
    // He is told once that the tower is away, perhaps before his channel is open.
    let (mut of_alice, mut of_bob) = (alice.events(), bob.events());
    town.note_channel(bob.open(usdh, amount(DEPOSIT)).await.expect("the channel opens"));
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(alice.pay("bob", amount(1_000), usdh).await.expect("paid").id);
    }
    bob.pay("alice", amount(500), usdh).await.expect("paid");
    town.received(&bob, 3_000).await;
    event(&mut of_bob, |event| matches!(event, Event::TowerAway { .. }).then_some(())).await;
    assert_eq!(alice.balance(usdh).await.expect("runs").undelivered, amount(3_000), "nothing is acknowledged");

    let disk = Disk::default();
    let tower = tower(&town, &disk, address, TowerLimits::default()).await;
    while !ids.is_empty() {
        let delivered = event(&mut of_alice, |event| match event {
            Event::Delivered { ids, .. } => Some(ids),
            _ => None,
        });
        let delivered = delivered.await;
        ids.retain(|id| !delivered.contains(id));
    }
    event(&mut of_bob, |event| matches!(event, Event::TowerBack).then_some(())).await;
    bob.guarded_by_tower(PATIENCE).await.expect("the tower holds it");
    assert_eq!(tower.accounts(), 1);
    assert_eq!(alice.balance(usdh).await.expect("runs").undelivered, amount(0));
    tower.shutdown().await;
}

// ---- uploads that are refused --------------------------------------------------------------------------------------

/// A stream of uploads by hand.
struct Line {
    uploads: mpsc::Sender<v1::TowerUpload>,
    answers: tonic::Streaming<v1::TowerAnswer>,
}

impl Line {
    async fn try_open(url: &str) -> Result<Line, tonic::Status> {
        let mut client = WatchtowerClient::connect(url.to_owned()).await.expect("it listens");
        let (uploads, queue) = mpsc::channel(1);
        let answers = client.upload(ReceiverStream::new(queue)).await?.into_inner();
        Ok(Line { uploads, answers })
    }

    async fn open(url: &str) -> Line {
        Line::try_open(url).await.expect("a stream")
    }

    async fn ask(&mut self, upload: v1::TowerUpload) -> Result<Answer, tonic::Status> {
        self.uploads.send(upload).await.expect("the stream is open");
        let answer = self.answers.message().await?;
        Ok(answer.and_then(|answer| answer.result).expect("an answer"))
    }

    /// What is held after an upload: what the hub paid, and whether that is more than before.
    async fn holds(&mut self, upload: v1::TowerUpload) -> (u128, bool) {
        match self.ask(upload).await.expect("answered") {
            Answer::Holds(held) => {
                (wire::read_amount("hub_paid", &held.hub_paid).expect("an amount").get(), held.raised)
            }
            Answer::Refuses(refused) => panic!("{}: {}", refused.reason, refused.message),
        }
    }

    async fn refuses(&mut self, what: &str, upload: v1::TowerUpload) -> (String, String) {
        match self.ask(upload).await.unwrap_or_else(|status| panic!("{what}: {status}")) {
            Answer::Refuses(refused) => (refused.reason, refused.message),
            Answer::Holds(_) => panic!("{what} was taken"),
        }
    }
}

/// A channel whose hub and member the story plays.
struct Pair {
    town: Town,
    hub_key: SecretKey,
    member_key: SecretKey,
    terms: ChannelTerms,
    account: AccountId,
}

impl Pair {
    async fn new() -> Pair {
        let town = Town::embedded().await;
        let (terms, member_key) = town.open_by_hand(5).await;
        let scheme = town.scheme();
        let hub_key = town.hub_config().voucher_keys().into_iter().find(|key| key.scheme() == scheme).expect("a key");
        let account = town.account(town.chain().domain().channel_id(&terms));
        Pair { town, hub_key, member_key, terms, account }
    }

    /// A good upload of the hub's voucher over `total`, with a voucher of the member's.
    fn upload(&self, total: u128) -> Upload {
        let domain = self.town.chain().domain();
        let voucher = wire::hub_voucher(self.account, amount(total), 1, B256::ZERO);
        let tip = proto::LaneTip { cumulative: amount(1), memo: B256::ZERO };
        let own = proto::frame::member_voucher(self.account, 0, tip);
        Upload {
            terms: self.terms.clone(),
            account: self.account,
            hub: Some(Proven::sign(domain, &self.hub_key, voucher)),
            receipts: Vec::new(),
            lanes: vec![proto::LaneVoucher::Plain(Signed::sign(domain, &self.member_key, own))],
        }
    }

    fn receipt(&self, account: AccountId, total: u128) -> Proven<Receipt> {
        let (channel, asset) = (account.channel.0, account.asset);
        let body = Receipt { channelId: channel, asset, credit: 2, amount: 1, total, payments: B256::ZERO };
        Proven::sign(self.town.chain().domain(), &self.hub_key, body)
    }

    fn message(&self, upload: &Upload) -> v1::TowerUpload {
        upload.to_message(self.town.chain().domain(), 1)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_uploads_are_refused_with_a_reason_and_the_tower_goes_on() {
    let pair = Pair::new().await;
    let (_, stranger) = pair.town.open_by_hand(6).await;
    let disk = Disk::default();
    let tower = tower(&pair.town, &disk, anywhere(), TowerLimits::default()).await;
    let mut line = Line::open(&url(&tower)).await;
    let domain = *pair.town.chain().domain();
    let good = pair.message(&pair.upload(500));
    assert_eq!(line.holds(good.clone()).await, (500, true));
    // What is held already, and what is worth less, is no mistake: the answer says what is held.
    assert_eq!(line.holds(good.clone()).await, (500, false));
    assert_eq!(line.holds(pair.message(&pair.upload(499))).await, (500, false));
    let with_receipt = Upload { hub: None, receipts: vec![pair.receipt(pair.account, 600)], ..pair.upload(0) };
    assert_eq!(line.holds(pair.message(&with_receipt)).await, (600, true));

    let flip = |bytes: &mut prost::bytes::Bytes| {
        let mut flipped = bytes.to_vec();
        flipped[0] ^= 1;
        *bytes = flipped.into();
    };
    let terms_of = |change: &dyn Fn(&mut ChannelTerms)| {
        let mut terms = pair.terms.clone();
        change(&mut terms);
        let account = AccountId { channel: domain.channel_id(&terms), ..pair.account };
        let voucher = wire::hub_voucher(account, amount(500), 1, B256::ZERO);
        let hub = Some(Proven::sign(&domain, &pair.hub_key, voucher));
        pair.message(&Upload { terms, account, hub, receipts: Vec::new(), lanes: Vec::new() })
    };
    let edited = |edit: &dyn Fn(&mut v1::TowerUpload)| {
        let mut message = good.clone();
        edit(&mut message);
        message
    };
    let elsewhere = AccountId { channel: proto::ChannelId(B256::repeat_byte(9)), ..pair.account };
    let of_another = wire::hub_voucher(elsewhere, amount(500), 1, B256::ZERO);
    let of_another = Proven::sign(&domain, &pair.hub_key, of_another);
    let forged = Proven::sign(&domain, &stranger, wire::hub_voucher(pair.account, amount(500), 1, B256::ZERO));
    let other_scheme = match pair.hub_key.scheme() {
        Scheme::Ed25519 => SecretKey::derive(Scheme::Secp256k1, &[3; 32], "voucher"),
        Scheme::Secp256k1 => SecretKey::derive(Scheme::Ed25519, &[3; 32], "voucher"),
    };
    let other_scheme =
        Proven::sign(&domain, &other_scheme, wire::hub_voucher(pair.account, amount(500), 1, B256::ZERO));
    let with_hub = |voucher: &Proven<proto::typed::Voucher>| {
        pair.message(&Upload { hub: Some(voucher.clone()), ..pair.upload(0) })
    };
    let in_coins = AccountId { asset: NATIVE, ..pair.account };
    let coin_voucher = wire::hub_voucher(in_coins, amount(500), 1, B256::ZERO);
    let coin_voucher = Some(Proven::sign(&domain, &pair.hub_key, coin_voucher));
    let receipts = vec![pair.receipt(pair.account, 700); RECEIPTS_MAX + 1];
    let table: Vec<(&str, v1::TowerUpload, &str, &str)> = vec![
        ("another chain", edited(&|m| m.chain_id += 1), "WRONG_DOMAIN", "upload to a tower of that ledger"),
        ("another contract", edited(&|m| flip(&mut m.adjudicator)), "WRONG_DOMAIN", "this tower watches"),
        ("another channel's id", edited(&|m| flip(&mut m.channel_id)), "WRONG_CHANNEL", "terms that hash to it"),
        (
            "other terms",
            edited(&|m| m.terms.as_mut().expect("terms").challenge_period_s += 1),
            "WRONG_CHANNEL",
            "the terms are those of channel",
        ),
        ("a scheme that does not exist", terms_of(&|t| t.hubScheme = 3), "BAD_KEY", "the hub key"),
        ("a key that is none", terms_of(&|t| t.memberKey = B256::repeat_byte(0xff)), "BAD_KEY", "the member key"),
        ("a forged signature", with_hub(&forged), "BAD_SIGNATURE", "hub_voucher.proof"),
        ("a voucher of another channel", with_hub(&of_another), "BAD_SIGNATURE", "hub_voucher.proof"),
        ("a signature of another scheme", with_hub(&other_scheme), "BAD_SIGNATURE", "proof.signature"),
        ("his own voucher, forged", edited(&|m| flip(&mut m.lanes[0].signature)), "BAD_SIGNATURE", "lane.signature"),
        ("a lane that does not exist", edited(&|m| m.lanes[0].lane = 64), "MALFORMED", "lane.lane"),
        ("a channel that nobody opened", terms_of(&|t| t.salt = B256::repeat_byte(0xee)), "NOT_OPEN", "open it first"),
        (
            "an account without money",
            pair.message(&Upload {
                account: in_coins,
                hub: coin_voucher,
                receipts: Vec::new(),
                lanes: Vec::new(),
                ..pair.upload(0)
            }),
            "NOT_FUNDED",
            "never had a deposit",
        ),
        (
            "a receipt of somebody else",
            pair.message(&Upload { receipts: vec![pair.receipt(elsewhere, 700)], ..pair.upload(0) }),
            "OTHER_ACCOUNT",
            "its own payee",
        ),
        ("too many lanes", edited(&|m| m.lanes = vec![m.lanes[0].clone(); 65]), "TOO_LARGE", "upload.lanes"),
        ("too many receipts", pair.message(&Upload { receipts, ..pair.upload(0) }), "TOO_LARGE", "upload.receipts"),
        (
            "nothing at all",
            edited(&|m| (m.hub_voucher, m.lanes) = (None, Vec::new())),
            "EMPTY",
            "no voucher and no receipt",
        ),
        ("no terms", edited(&|m| m.terms = None), "MALFORMED", "upload.terms"),
        (
            "an amount of three bytes",
            edited(&|m| m.hub_voucher.as_mut().expect("one").cumulative = vec![1; 3].into()),
            "MALFORMED",
            "16",
        ),
    ];
    for (what, upload, reason, piece) in table {
        let (given, message) = line.refuses(what, upload).await;
        assert_eq!(given, reason, "{what}: {message}");
        assert!(message.contains(piece), "{what}: no {piece:?} in {message:?}");
        assert_eq!(line.holds(good.clone()).await, (600, false), "after {what}");
    }

    // What does not fit a message ends the stream with a status, and the next stream is served.
    let too_large = edited(&|m| m.lanes[0].signature = vec![0; 70_000].into());
    let status = line.ask(too_large).await.expect_err("it is too large");
    assert_eq!(status.code(), tonic::Code::OutOfRange, "{status}");
    let mut line = Line::open(&url(&tower)).await;
    assert_eq!(line.holds(good.clone()).await, (600, false));
    // Whoever sends nothing but nonsense is sent away, and may come back.
    let nonsense = edited(&|m| m.chain_id += 1);
    let mut refusals = 0;
    let status = loop {
        match line.ask(nonsense.clone()).await {
            Ok(_) => refusals += 1,
            Err(status) => break status,
        }
        if refusals == 64 {
            break line.answers.message().await.expect_err("enough");
        }
    };
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status}");
    let mut line = Line::open(&url(&tower)).await;
    assert_eq!(line.holds(pair.message(&pair.upload(601))).await, (601, true));
    tower.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tower_refuses_and_goes_on_with_what_it_holds() {
    let pair = Pair::new().await;
    let (terms, _) = pair.town.open_by_hand(6).await;
    let limits = TowerLimits { channels: 1, streams_per_address: 2, ..TowerLimits::default() };
    let disk = Disk::default();
    let tower = tower(&pair.town, &disk, anywhere(), limits).await;
    let mut line = Line::open(&url(&tower)).await;
    assert_eq!(line.holds(pair.message(&pair.upload(500))).await, (500, true));
    let account = pair.town.account(pair.town.chain().domain().channel_id(&terms));
    let voucher = wire::hub_voucher(account, amount(1), 1, B256::ZERO);
    let hub = Some(Proven::sign(pair.town.chain().domain(), &pair.hub_key, voucher));
    let second = Upload { terms, account, hub, receipts: Vec::new(), lanes: Vec::new() };
    let (reason, message) = line.refuses("a second channel", pair.message(&second)).await;
    assert_eq!(reason, "TOWER_FULL", "{message}");
    assert_eq!(line.holds(pair.message(&pair.upload(501))).await, (501, true));

    let other = Line::open(&url(&tower)).await;
    let refused = Line::try_open(&url(&tower)).await.err().expect("two are open");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    drop(other);
    let (town, url) = (&pair.town, url(&tower));
    let url = &url;
    town.until("there is room again", || async move { Line::try_open(url).await.is_ok() }).await;
    tower.shutdown().await;
}
