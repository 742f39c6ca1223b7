//! Ledger, hub and members: two child processes of this binary, a folder on a disk, channels with money in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U256, keccak256};
use dispute::chain::Chain;
use dispute::submitter::{AccountKey, Submitter, SubmitterConfig};
use dispute::{Funding, OpenOrder, Status};
use indicatif::ProgressBar;
use proto::wire::{self, v1};
use proto::{AccountId, Amount, Asset, ChannelId, ChannelTerms, PublicKey, Scheme, SecretKey};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};
use v1::member_client::MemberClient;
use v1::operator_client::OperatorClient;

use super::peer::{Facts, key_of};
use crate::chain::{self, chain_failure};
use crate::failure::{Code, Failure};
use crate::output::Output;

/// Everybody's deposit: base units, of which payments are made one by one.
const DEPOSIT: Amount = Amount::new(100_000_000);
/// Channels that one transaction opens: far below what a block holds.
const OPEN_AT_ONCE: usize = 50;
/// How long a child may take to say that it is ready, and to end.
const CHILD_PATIENCE: Duration = Duration::from_secs(60);
/// How long hub and ledger may take to agree on channels and payouts.
const LEDGER_PATIENCE: Duration = Duration::from_secs(120);
/// How often they are asked.
const POLL: Duration = Duration::from_millis(50);
/// Channels of one page of the operator's list.
const PAGE: u32 = 1000;
/// File descriptors that a thousand connections need, with room to spare, where the system allows.
const DESCRIPTORS: u64 = 65_536;
/// What `statfs` says of a file system in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;
/// Clock ticks of a second in `/proc`: the kernel's promise to programs, whatever its own clock does.
const TICKS_PER_S: f64 = 100.0;

/// Where everything is kept.
pub struct Place {
    dir: PathBuf,
    _temporary: tempfile::TempDir,
}

/// A child process that said it is ready.
pub struct Process {
    child: Child,
    pid: u32,
    ready: Value,
}

/// Everything that runs besides the load.
pub struct Stage {
    place: Place,
    ledger: Process,
    hub: Process,
    chain: Chain,
    operator: OperatorClient<Channel>,
}

/// Members that can begin.
pub struct Cast {
    /// What all know.
    pub facts: Facts,
    /// The key of each.
    pub keys: Vec<SecretKey>,
}

/// What the hub says of itself at a time.
#[derive(Clone, Copy, Debug)]
pub struct HubFigures {
    pub flush: u64,
    pub payments: u64,
    pub cpu_s: f64,
}

/// The hub's sums of the asset.
#[derive(Clone, Debug)]
pub struct HubSums {
    pub income: Amount,
    pub custody: Amount,
    pub nets: Option<i128>,
    pub accounts: BTreeMap<ChannelId, (Amount, Amount)>,
}

impl Place {
    /// A fresh folder in `parent`, or in the current folder; it is removed at the end.
    pub fn new(parent: Option<&Path>, out: Output) -> Result<Self, Failure> {
        let dir = parent.unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir)?;
        let in_memory = rustix::fs::statfs(dir).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(TMPFS_MAGIC));
        if in_memory && parent.is_none() {
            let what = "the current folder is in memory, where a sync costs nothing";
            return Err(Failure::new(
                Code::Refused,
                "NO_DISK",
                what,
                "change to a folder on a disk, or name one by --data-dir",
            ));
        }
        if in_memory {
            out.say(format!(
                "{} is in memory: syncs cost nothing there, the numbers are not those of a disk.",
                dir.display()
            ));
        }
        let temporary = tempfile::Builder::new().prefix("payhub-bench-").tempdir_in(dir)?;
        Ok(Place { dir: std::fs::canonicalize(temporary.path())?, _temporary: temporary })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Process {
    async fn start(args: &[&str]) -> Result<Self, Failure> {
        let name = args[..2].join(" ");
        let mut command = Command::new(std::env::current_exe()?);
        command.args(args).arg("--json").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let failed = |what: &str| Failure::other(format!("`payhub {name}` {what}"));
        let pid = child.id().ok_or_else(|| failed("ended at once"))?;
        let mut lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let line = tokio::time::timeout(CHILD_PATIENCE, lines.next_line()).await;
        let line = line.map_err(|_| failed("does not become ready"))??.ok_or_else(|| failed("ended at once"))?;
        // What it says later is read and dropped, so that it never waits for a reader.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let ready: Value = serde_json::from_str(&line).map_err(|_| failed(&format!("said {line:?}")))?;
        if ready["ready"] != true {
            return Err(failed(&format!("said {line}")));
        }
        Ok(Process { child, pid, ready })
    }

    fn said(&self, field: &str) -> Result<&str, Failure> {
        self.ready[field].as_str().ok_or_else(|| Failure::other(format!("{field} is missing in {}", self.ready)))
    }

    /// Seconds of processor time so far.
    pub fn cpu_s(&self) -> f64 {
        cpu_s(&self.pid.to_string())
    }

    async fn stop(mut self) -> Result<(), Failure> {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let ended = tokio::time::timeout(CHILD_PATIENCE, self.child.wait()).await;
        let status = ended.map_err(|_| Failure::other("a child process does not end"))??;
        if status.success() { Ok(()) } else { Err(Failure::other(format!("a child process ended with {status}"))) }
    }
}

/// Seconds of processor time that this process used so far.
pub fn own_cpu_s() -> f64 {
    cpu_s("self")
}

/// Seconds of processor time of a process; `/proc` is Linux's, elsewhere nothing is told.
fn cpu_s(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name stands in parentheses and may hold anything; user and system time are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / TICKS_PER_S
}

impl Stage {
    /// Starts ledger and hub.
    pub async fn start(place: Place) -> Result<Self, Failure> {
        raise_descriptors();
        let (ledger_dir, hub_dir) = (place.dir.join("ledger"), place.dir.join("hub"));
        let path = |dir: &Path| dir.display().to_string();
        let any = "127.0.0.1:0";
        let ledger =
            Process::start(&["ledger", "run", "--dev", "--data-dir", &path(&ledger_dir), "--listen", any]).await?;
        let rpc = ledger.said("rpc")?.to_owned();
        let hub = ["hub", "run", "--dev", "--data-dir", &path(&hub_dir), "--rpc", &rpc];
        let hub = Process::start(&[&hub[..], &["--listen", any, "--operator", any]].concat()).await?;
        let adjudicator: Address = hub.said("adjudicator")?.parse().map_err(Failure::other)?;
        let chain = Chain::discover(&rpc, adjudicator, 0).await.map_err(|e| chain_failure(&e))?;
        let operator = endpoint(hub.said("operator")?)?.connect_lazy();
        Ok(Stage { place, ledger, hub, chain, operator: OperatorClient::new(operator) })
    }

    /// A connection to the hub of its own.
    pub fn connection(&self) -> Result<MemberClient<Channel>, Failure> {
        let channel = endpoint(self.hub.said("grpc")?)?.connect_lazy();
        Ok(MemberClient::new(channel).max_decoding_message_size(wire::MESSAGE_BYTES_MAX))
    }

    /// Opens channels with deposits for `count` members, and waits until the hub serves and backs them.
    pub async fn cast(&mut self, count: usize, bar: &ProgressBar) -> Result<Cast, Failure> {
        let asset: Asset = self.ledger.said("test_dollar")?.parse().map_err(Failure::other)?;
        let info = self.connection()?.get_info(v1::GetInfoRequest {}).await.map_err(rpc_failure)?.into_inner();
        let domain = *self.chain.domain();
        let hub = wire::read_address("info.hub_account", &info.hub_account).map_err(Failure::other)?;
        let period = info.challenge_period_s;
        let offers = info.offers.iter().map(|o| wire::read_offer(&domain, hub, period, o));
        let offers = offers.collect::<Result<Vec<_>, _>>().map_err(Failure::other)?;
        let offer = offers.iter().map(|o| o.body()).find(|o| o.hubScheme == Scheme::Ed25519.number());
        let offer = offer.ok_or_else(|| Failure::other("the hub offers no Ed25519"))?;
        let hub_key = PublicKey { scheme: Scheme::Ed25519, bytes: offer.hubKey };

        let seeds = (0..count).map(|i| keccak256(format!("payhub bench member {i}")).0);
        let seeds: Vec<[u8; 32]> = seeds.collect();
        let keys: Vec<SecretKey> = seeds.iter().map(key_of).collect();
        let mut orders = Vec::with_capacity(count);
        for (seed, key) in seeds.iter().zip(&keys) {
            let account = SecretKey::derive(Scheme::Secp256k1, seed, "account").to_seed();
            let account = AccountKey::from_secret(&account).map_err(Failure::other)?;
            let terms = ChannelTerms {
                hub,
                hubKey: hub_key.bytes,
                hubScheme: hub_key.scheme.number(),
                member: account.address(),
                memberKey: key.public().bytes,
                memberScheme: key.scheme().number(),
                challengePeriod: period,
                salt: B256::random(),
            };
            let consent = account.consent(&domain, &terms);
            orders.push(OpenOrder { terms, consent, asset, amount: DEPOSIT, funding: Funding::Caller });
        }
        self.open(&orders, bar).await?;
        let channels: Vec<ChannelId> = orders.iter().map(|o| domain.channel_id(&o.terms)).collect();
        let collateral = self.backed(count, bar).await?;
        let keys_of = channels.iter().copied().zip(keys.iter().map(SecretKey::public)).collect();
        let facts =
            Facts { domain, asset, hub_key, host: info.host, channels, keys: keys_of, deposit: DEPOSIT, collateral };
        Ok(Cast { facts, keys })
    }

    /// One rich account opens all channels, with everybody's consent.
    async fn open(&self, orders: &[OpenOrder], bar: &ProgressBar) -> Result<(), Failure> {
        let rich = ledger::genesis::dev_accounts()[0];
        let key = AccountKey::from_secret(&rich.secret).map_err(Failure::other)?;
        let submitter = Submitter::new(self.chain.clone(), vec![key], SubmitterConfig::local());
        let Some(asset) = orders.first().map(|o| o.asset) else { return Ok(()) };
        let total = U256::from(DEPOSIT.get()) * U256::from(orders.len());
        chain::send(&submitter, rich.address, self.chain.mint(asset, rich.address, total), "the members' money")
            .await?;
        chain::send(&submitter, rich.address, self.chain.approve(asset, total), "the allowance").await?;
        for batch in orders.chunks(OPEN_AT_ONCE) {
            let call = self.chain.adjudicator().open_many(batch);
            chain::send(&submitter, rich.address, call, "opening the channels").await?;
            bar.inc(batch.len() as u64);
        }
        Ok(())
    }

    /// Waits until the hub has every channel and its own deposit in it; gives the smallest of those.
    async fn backed(&mut self, count: usize, bar: &ProgressBar) -> Result<Amount, Failure> {
        let until = Instant::now() + LEDGER_PATIENCE;
        bar.set_message("waiting for the hub's collateral");
        loop {
            let mut least = Vec::new();
            for channel in self.channels().await? {
                for account in &channel.accounts {
                    let totals = account.ledger.as_ref().map(wire::read_totals).transpose().map_err(Failure::other)?;
                    least.extend(totals.filter(|t| t.member_deposit >= DEPOSIT).map(|t| t.hub_deposit));
                }
            }
            bar.set_position(least.iter().filter(|d| !d.is_zero()).count() as u64);
            let smallest = least.iter().min().copied().unwrap_or_default();
            if least.len() >= count && !smallest.is_zero() {
                return Ok(smallest);
            }
            if Instant::now() > until {
                return Err(Failure::other(format!("the hub backs {} of {count} channels", least.len())));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn channels(&mut self) -> Result<Vec<v1::ChannelSummary>, Failure> {
        let (mut all, mut after) = (Vec::new(), Default::default());
        loop {
            let request = v1::ListChannelsRequest { after, limit: PAGE };
            let page = self.operator.list_channels(request).await.map_err(rpc_failure)?.into_inner();
            all.extend(page.channels);
            if page.next.is_empty() {
                return Ok(all);
            }
            after = page.next;
        }
    }

    /// Flush number, payments and processor time of the hub.
    pub async fn hub_figures(&mut self) -> Result<HubFigures, Failure> {
        let status = self.operator.get_status(v1::GetStatusRequest {}).await.map_err(rpc_failure)?.into_inner();
        if let Some(alarm) = status.alarms.last() {
            return Err(Failure::other(format!("the hub raised an alarm: {alarm}")));
        }
        Ok(HubFigures { flush: status.flush, payments: status.payments, cpu_s: self.hub.cpu_s() })
    }

    /// What the hub's books come to, account by account.
    pub async fn hub_sums(&mut self, asset: Asset) -> Result<HubSums, Failure> {
        let status = self.operator.get_status(v1::GetStatusRequest {}).await.map_err(rpc_failure)?.into_inner();
        let books = status.assets.iter().find(|books| *books.asset == *asset.as_slice());
        let books = books.ok_or_else(|| Failure::other("the hub's status lacks the asset"))?;
        let amount = |bytes: &[u8]| wire::read_amount("status", bytes).map_err(Failure::other);
        let nets = [&books.member_nets, &books.hub_nets].map(|net| net.parse::<i128>().ok());
        let mut accounts = BTreeMap::new();
        for channel in self.channels().await? {
            let id = wire::read_channel("channel_id", &channel.channel_id).map_err(Failure::other)?;
            for account in channel.accounts.iter().filter(|a| *a.asset == *asset.as_slice()) {
                accounts.insert(id, (amount(&account.paid)?, amount(&account.credited)?));
            }
        }
        let nets = nets[0].zip(nets[1]).and_then(|(member, hub)| member.checked_add(hub));
        Ok(HubSums { income: amount(&books.income)?, custody: amount(&books.custody)?, nets, accounts })
    }

    /// Bytes that the journal's records from one flush to another take on the disk, headers included.
    pub fn journal_bytes(&self, after: u64, upto: u64) -> std::io::Result<u64> {
        super::journal::bytes_between(&self.place.dir.join("hub").join("store"), after, upto)
    }

    /// What the ledger paid out to the member of a closed account; waits until it is closed.
    pub async fn paid_out(&self, account: &AccountId) -> Result<Amount, Failure> {
        let until = Instant::now() + LEDGER_PATIENCE;
        loop {
            let books = self.chain.books(account).await.map_err(|e| chain_failure(&e))?;
            if books.status == Status::Final {
                return Ok(books.member_withdrawn);
            }
            if Instant::now() > until {
                return Err(Failure::other(format!("{account} is not closed on the ledger")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends both children in order and removes their folder.
    pub async fn stop(self) -> Result<(), Failure> {
        self.hub.stop().await?;
        self.ledger.stop().await
    }
}

fn endpoint(url: &str) -> Result<Endpoint, Failure> {
    Ok(Endpoint::from_shared(url.to_owned()).map_err(Failure::other)?.tcp_nodelay(true))
}

fn rpc_failure(status: tonic::Status) -> Failure {
    Failure::connect(format!("the hub does not answer: {status}"), "")
}

/// Each connection is a file descriptor in this process and in the hub, which inherits the limit.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.unwrap_or(DESCRIPTORS).min(DESCRIPTORS);
    if current.is_some_and(|current| current < wanted) {
        // Where it is refused, a thousand members may not fit; that shows by itself.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}
