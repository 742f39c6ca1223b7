//! Ledger, hub and members as processes of their own, over RPC.

use std::future::Future;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256};
use dispute::chain::Chain;
use dispute::submitter::{Order, Submitter, SubmitterConfig};
use dispute::{CloseOrder, LedgerBooks};
use proto::wire::v1::operator_client::OperatorClient;
use proto::wire::v1::{GetStatusRequest, GetStatusResponse};
use proto::{AccountId, ChannelId};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::world::{PATIENCE, Running, World, free_port, has_fields, row};

/// A ledger and a hub on ports that stay the same when they are started again.
pub struct Apart {
    pub world: World,
    pub ledger: Option<Running>,
    pub hub: Option<Running>,
    pub adjudicator: Address,
    pub usdh: Address,
    fee_ppm: u32,
    ledger_port: u16,
    hub_port: u16,
    operator_port: u16,
}

impl Apart {
    /// Starts both.
    pub fn start(fee_ppm: u32) -> Self {
        let [ledger_port, hub_port, operator_port] = [free_port(), free_port(), free_port()];
        let mut apart = Apart {
            world: World::new(),
            ledger: None,
            hub: None,
            adjudicator: Address::ZERO,
            usdh: Address::ZERO,
            fee_ppm,
            ledger_port,
            hub_port,
            operator_port,
        };
        let ready = apart.start_ledger();
        let address = |field: &str| ready[field].as_str().and_then(|text| text.parse().ok()).expect(field);
        (apart.adjudicator, apart.usdh) = (address("adjudicator"), address("test_dollar"));
        let ready = apart.start_hub();
        has_fields(&ready, &["ready", "grpc", "operator", "rpc", "chain_id", "adjudicator", "account"]);
        apart
    }

    pub fn start_ledger(&mut self) -> Value {
        let listen = format!("127.0.0.1:{}", self.ledger_port);
        let (ledger, ready) =
            self.world.start(&["ledger", "run", "--dev", "--data-dir", "ledger", "--listen", &listen]);
        self.ledger = Some(ledger);
        ready
    }

    pub fn start_hub(&mut self) -> Value {
        let listen = format!("127.0.0.1:{}", self.hub_port);
        let operator = format!("127.0.0.1:{}", self.operator_port);
        let (rpc, fee) = (self.rpc(), self.fee_ppm.to_string());
        let (hub, ready) = self.world.start(&[
            "hub",
            "run",
            "--dev",
            "--data-dir",
            "hub",
            "--listen",
            &listen,
            "--operator",
            &operator,
            "--rpc",
            &rpc,
            "--fee-ppm",
            &fee,
        ]);
        self.hub = Some(hub);
        ready
    }

    pub fn rpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.ledger_port)
    }

    pub fn grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.hub_port)
    }

    /// A member with keys, coins for gas, 1,000 test dollars and a channel that holds `deposit` of them.
    pub fn member(&self, name: &str, deposit: &str) {
        self.world.json(&["keys", "new", name]);
        self.world.json(&["faucet", name, "5COIN", "--rpc", &self.rpc()]);
        self.world.json(&["faucet", name, "1000USDH", "--rpc", &self.rpc()]);
        let opened = self.world.json(&["open", deposit, "--from", name, "--hub", &self.grpc(), "--rpc", &self.rpc()]);
        assert_eq!(opened["asset"], "USDH");
    }

    pub fn dollars(&self, name: &str) -> Value {
        row(&self.world.json(&["balance", name]), "assets", "USDH").clone()
    }

    /// A member's account in test dollars; asking opens his wallet for a moment.
    pub fn account(&self, name: &str) -> AccountId {
        let channels = self.world.json(&["channels", name]);
        let channel: B256 = channels["channel"].as_str().and_then(|c| c.parse().ok()).expect("a channel");
        AccountId { channel: ChannelId(channel), asset: self.usdh }
    }

    pub fn chain(&self) -> Chain {
        wait(Chain::discover(&self.rpc(), self.adjudicator, 0)).expect("the ledger answers")
    }

    /// What the ledger says of an account.
    pub fn books(&self, account: &AccountId) -> LedgerBooks {
        wait(self.chain().books(account)).expect("the ledger answers")
    }

    pub fn status(&self) -> GetStatusResponse {
        let url = format!("http://127.0.0.1:{}", self.operator_port);
        let asked = async {
            let mut operator: OperatorClient<Channel> =
                OperatorClient::connect(url).await.expect("the operator's port");
            operator.get_status(GetStatusRequest {}).await.expect("a status").into_inner()
        };
        wait(asked)
    }

    /// Whoever has the hub's key closes a member's account on the ledger and posts nothing.
    pub fn hub_closes(&self, account: &AccountId) {
        let secret = std::fs::read_to_string(self.world.path("hub/secret")).expect("the hub's secret");
        let seed: [u8; 32] = hex::decode(secret.trim()).ok().and_then(|s| s.try_into().ok()).expect("a secret");
        let chain = self.chain();
        let key = hub::account_key(&seed, 0);
        let from = key.address();
        let closed = async {
            let head = chain.head().await.expect("a head").number;
            let events = chain.events_in(0, head).await.expect("events").into_iter();
            let terms = events.filter_map(|event| match event.kind {
                dispute::EventKind::Opened { channel, terms } if channel == account.channel => Some(terms),
                _ => None,
            });
            let terms = terms.last().expect("the channel was opened");
            let call = chain.adjudicator().start_close(&CloseOrder { terms, asset: account.asset, request: None });
            let submitter = Submitter::new(chain.clone(), vec![key], SubmitterConfig::local());
            submitter.submit(Order::new(call).from(from)).await.mined().expect("the close starts");
        };
        wait(closed);
    }

    /// Turns the ledger's clock forward.
    pub fn pass_time(&self, seconds: u64) {
        use alloy::providers::Provider;
        let chain = self.chain();
        let turned = async {
            let _: Value = chain.provider().raw_request("evm_increaseTime".into(), (seconds,)).await.expect("time");
            let _: Value = chain.provider().raw_request("evm_mine".into(), ()).await.expect("a block");
        };
        wait(turned);
    }

    /// Ends both in order.
    pub fn stop(mut self) {
        self.hub.take().expect("the hub runs").stop();
        self.ledger.take().expect("the ledger runs").stop();
    }
}

/// Asks the ledger again and again until it says so.
pub fn until(there: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !there() {
        assert!(Instant::now() < end, "the ledger does not say so");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits for a future.
pub fn wait<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

#[test]
fn members_open_pay_settle_and_close_over_rpc() {
    let apart = Apart::start(1000);
    let world = &apart.world;
    apart.member("alice", "500USDH");
    apart.member("bob", "1USDH");
    let paid = world.json(&["pay", "bob", "0.5USDH", "--from", "alice", "--count", "20"]);
    assert_eq!((&paid["paid"], &paid["amount"]), (&json!(20), &json!("10")));
    // A fee of a tenth of a percent is the payer's.
    assert_eq!(apart.dollars("alice")["paid"], "10.01");
    assert_eq!(apart.dollars("bob")["received"], "10");
    let settled = world.json(&["settle", "bob"]);
    assert_eq!(row(&settled, "settled", "USDH")["withdrawn"], "11");
    assert_eq!(apart.dollars("bob")["wallet"], "1010");

    // Alice closes without the hub; her watch pays out when the challenge period is over.
    let closing = world.json(&["close", "alice", "--unilateral"]);
    let closing = row(&closing, "closed", "USDH");
    assert!(closing["how"] == "unilateral" && closing["deadline"].is_u64(), "{closing}");
    let channels = world.json(&["channels", "alice"]);
    assert_eq!(row(&channels, "accounts", "USDH")["status"], "closing");
    let (watching, _) = world.start(&["watch", "alice"]);
    apart.pass_time(61);
    let last = watching.until(|e| e["event"] == "final");
    assert_eq!(last["asset"], "USDH");
    let channels = world.json(&["channels", "alice"]);
    let account = row(&channels, "accounts", "USDH");
    assert_eq!((&account["status"], &account["withdrawn"]), (&json!("final"), &json!("489.99")));
    assert_eq!(account["lost"], "0");
    assert_eq!(apart.dollars("alice")["wallet"], "989.99");
    watching.stop();
    apart.stop();
}

#[test]
fn a_vanished_hub_takes_nothing_from_who_watches_and_the_cli_says_what_others_lost() {
    let mut apart = Apart::start(0);
    apart.member("alice", "500USDH");
    let hub = apart.hub.take().expect("the hub runs");
    let world = &apart.world;
    for name in ["bob", "carol"] {
        apart.member(name, "10USDH");
        world.json(&["pay", name, "25USDH", "--from", "alice"]);
        // Each takes his credit home before he goes offline.
        assert_eq!(apart.dollars(name)["received"], "25");
    }
    let (bob, carol) = (apart.account("bob"), apart.account("carol"));
    let (watching, _) = world.start(&["watch", "bob"]);
    // The hub is gone but for its key, and from now on Carol's wallet stays closed: an open one would answer for her.
    hub.kill();
    apart.hub_closes(&bob);
    apart.hub_closes(&carol);
    watching.until(|e| e["event"] == "closing");
    // The watch answers before the deadline: what the hub owed is on the ledger.
    until(|| apart.books(&bob).hub_paid.get() == 25_000_000);
    apart.pass_time(61);
    watching.until(|e| e["event"] == "final");
    watching.stop();
    let bob = world.json(&["channels", "bob"]);
    let bob = row(&bob, "accounts", "USDH");
    assert_eq!((&bob["withdrawn"], &bob["lost"]), (&json!("35"), &json!("0")), "{bob}");
    assert_eq!(apart.dollars("bob")["wallet"], "1025");

    // Carol did not watch: after the deadline she gets her deposit, and is told what was never posted.
    let (late, _) = world.start(&["watch", "carol"]);
    late.until(|e| e["event"] == "final");
    late.stop();
    assert_eq!(apart.books(&carol).status, dispute::Status::Final);
    let carol = world.json(&["channels", "carol"]);
    let account = row(&carol, "accounts", "USDH");
    assert_eq!((&account["status"], &account["lost"]), (&json!("final"), &json!("25")), "{carol}");
    let said = world.run(&["channels", "carol"]);
    assert!(said.stdout.contains("payhub watch") && said.stdout.contains("25"), "{}", said.stdout);

    // Alice leaves by herself, and nobody is there but the ledger.
    let closing = world.json(&["close", "alice", "--unilateral"]);
    assert_eq!(row(&closing, "closed", "USDH")["how"], "unilateral");
    let (leaving, _) = world.start(&["watch", "alice"]);
    apart.pass_time(61);
    leaving.until(|e| e["event"] == "final");
    leaving.stop();
    assert_eq!(row(&world.json(&["channels", "alice"]), "accounts", "USDH")["withdrawn"], "450");
    assert_eq!(apart.dollars("alice")["wallet"], "950");
    apart.ledger.take().expect("the ledger runs").stop();
}

#[test]
fn a_contract_deployed_by_its_user_serves_a_hub() {
    let world = World::new();
    let (ledger, ready) =
        world.start(&["ledger", "run", "--dev", "--in-memory", "--listen", "127.0.0.1:0", "--block-time", "50"]);
    let rpc = ready["rpc"].as_str().expect("a URL").to_owned();
    // The first one, so that the faucet may give the token away.
    let key = hex::encode(ledger::genesis::dev_accounts()[0].secret);
    let deploy = |args: &[&str], key: &str| {
        let base = ["deploy", "--rpc", &rpc, "--key", "-", "--json"];
        world.run_with(&[&base[..], args].concat(), key)
    };
    let done = deploy(&["--test-dollar", "--challenge-min", "60"], &key);
    assert_eq!(done.code(), 0, "{done:#?}");
    let deployed = done.object();
    let text = |field: &str| deployed[field].as_str().expect(field).to_owned();
    let (adjudicator, dollar) = (text("adjudicator"), text("test_dollar"));
    let at = ["--adjudicator", &adjudicator, "--token", &dollar, "--rpc", &rpc, "--listen", "127.0.0.1:0"];
    let (hub, ready) = world.start(&[&["hub", "run", "--dev", "--data-dir", "h"][..], &at].concat());
    assert_eq!(ready["adjudicator"], adjudicator.as_str());
    hub.stop();
    ledger.stop();
}
