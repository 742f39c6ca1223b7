//! The command line.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A state-channel payment hub: micropayments off the chain, durable and individually signed, with exits that need
/// nobody's help.
#[derive(Debug, Parser)]
#[command(name = "payhub", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Prints one JSON object for programs instead of tables; progress goes to standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// More of what happens, on standard error; twice for all of it. `RUST_LOG` overrides.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole story in one process: pay, settle, dispute, reconcile.
    Demo(Demo),
    /// A ledger, a hub, a faucet and three funded members to play with, until Ctrl-C.
    Dev(Dev),
    /// Measures how many payments a second a hub takes on this machine, how long they wait, and what limits them.
    Bench(Bench),
    /// The hub as a process of its own.
    #[command(subcommand)]
    Hub(HubCommand),
    /// The embedded ledger as a process of its own.
    #[command(subcommand)]
    Ledger(LedgerCommand),
    /// Keys of members.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Puts the adjudicator on a chain.
    Deploy(Deploy),
    /// Gives an account coins or test dollars, on development chains.
    Faucet(Faucet),
    /// Opens a channel: puts a deposit on the ledger in the member's name.
    Open(Open),
    /// Adds to the deposit of an open channel.
    Fund(Fund),
    /// Takes money out of the channel to the member's account, without closing it.
    Withdraw(Withdraw),
    /// Pays.
    Pay(Pay),
    /// Pays by the tick: one signature for up to 2,048 ticks, a hash for each.
    Stream(Stream),
    /// What a member has, on the ledger and in his channel.
    Balance(Of),
    /// The accounts of a member's channel with their totals on the ledger.
    Channels(Of),
    /// Payments made and received.
    History(History),
    /// What happens to a member's channel.
    Events(Events),
    /// Settles with the hub now: asks for everything that can be withdrawn.
    Settle(Settle),
    /// Closes an account and pays it out.
    Close(Close),
    /// Writes a member's exit kit: one file that gets the money out without hub and store.
    ExitKit(ExitKit),
    /// Gets the money of an exit kit out of its channel; runs again where it was stopped.
    Exit(Exit),
    /// Says in plain words what is pending in a channel, who must act by when, what it costs and where the money goes.
    Explain(Explain),
    /// Plans that all channels leave at once: gas, blocks, time and money; an alarm where the challenge period is too short.
    PlanExit(PlanExit),
    /// Watches the ledger and answers closes that hide what a member is owed: with his wallet, or as a tower of its own that
    /// members upload their evidence to.
    Watch(Watch),
}

/// Where a member's commands find him: in a running wallet of `payhub dev`, or in a store of his own.
#[derive(Clone, Debug, Args)]
pub struct Where {
    /// The data folder of `payhub dev`, or of the members of `payhub keys new`. Default: that of the `payhub dev` that
    /// was started last, else `~/.payhub`.
    #[arg(long, env = "PAYHUB_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The hub, as in http://127.0.0.1:7440. Remembered in the member's folder.
    #[arg(long, env = "PAYHUB_HUB")]
    pub hub: Option<String>,
    /// The ledger's JSON-RPC, as in http://127.0.0.1:7445; best one that is not the hub's. Remembered.
    #[arg(long, env = "PAYHUB_RPC")]
    pub rpc: Option<String>,
    /// A watchtower of `payhub watch --store`, as in http://127.0.0.1:7450, that gets the newest evidence; what comes in is
    /// acknowledged when it is held there. `none` forgets it. Remembered.
    #[arg(long, env = "PAYHUB_TOWER", value_name = "URL")]
    pub tower: Option<String>,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// How many payments.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub payments: u64,
    /// Pays from this file instead: lines `from,to,amount,asset,note`.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Dev {
    /// Where ledger, hub and wallets keep their data. Default: `~/.payhub/dev`.
    #[arg(long, env = "PAYHUB_DATA_DIR", conflicts_with = "in_memory")]
    pub data_dir: Option<PathBuf>,
    /// Keeps nothing after the end.
    #[arg(long)]
    pub in_memory: bool,
    /// First of the ports: P for the hub's gRPC, P+1 for its operator, P+5 for the ledger's RPC; 0 for any free ones.
    #[arg(long, default_value_t = 7440)]
    pub port_base: u16,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// A workload, as in `frames_64`; several are possible. Default: all. A wrong name lists them.
    #[arg(long, value_name = "W")]
    pub workload: Vec<String>,
    /// Members, each with a channel, a connection and a key of its own.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(2..=4000))]
    pub clients: u16,
    /// Seconds for which the peak of each workload is measured; the other phases are shorter.
    #[arg(long, value_name = "S", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Pays at this rate, payments a second, instead of looking for the peak.
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// Frames of each lane of each payer that wait for an answer at peak. Default: by workload.
    #[arg(long, value_name = "FRAMES", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub window: Option<u16>,
    /// The folder on a disk in which everything is kept until the end. Default: the current one.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Draws payments and limits into this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Writes the tables as Markdown, into this file if one is named.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub markdown: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum HubCommand {
    /// Runs a hub until Ctrl-C or SIGTERM.
    Run(HubRun),
}

#[derive(Debug, Args)]
pub struct HubRun {
    /// Where the hub keeps its journal, index and key.
    #[arg(long, default_value = "hub-data")]
    pub data_dir: PathBuf,
    /// Where members connect.
    #[arg(long, default_value = "127.0.0.1:7440")]
    pub listen: SocketAddr,
    /// Where the operator connects; off unless given.
    #[arg(long)]
    pub operator: Option<SocketAddr>,
    /// The ledger's JSON-RPC.
    #[arg(long, env = "PAYHUB_RPC", default_value = "http://127.0.0.1:7445")]
    pub rpc: String,
    /// The adjudicator's address. Default: the predeployed one of an embedded ledger.
    #[arg(long)]
    pub adjudicator: Option<String>,
    /// Tokens to serve besides the native coin, by address. Default: the predeployed test dollar of an embedded ledger.
    #[arg(long = "token")]
    pub tokens: Vec<String>,
    /// The name that clients know this server by; part of every login.
    #[arg(long, default_value = "localhost")]
    pub host: String,
    /// Blocks until a deposit counts. Default: 0 on an embedded ledger, 6 elsewhere.
    #[arg(long)]
    pub confirmations: Option<u32>,
    /// The challenge period of new channels, seconds. Default: 93600 (26 hours), with --dev 60.
    #[arg(long)]
    pub challenge_period: Option<u32>,
    /// Signature schemes to offer. Default: both where the ledger verifies Ed25519, else secp256k1.
    #[arg(long, value_enum)]
    pub scheme: Vec<SchemeArg>,
    /// Fee of a payment, parts per million of its amount, rounded up.
    #[arg(long, default_value_t = 0)]
    pub fee_ppm: u32,
    /// A hub for playing: short challenge periods are allowed, and its account is filled from the development faucet.
    #[arg(long)]
    pub dev: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemeArg {
    Ed25519,
    Secp256k1,
}

#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// Runs the ledger until Ctrl-C or SIGTERM.
    Run(LedgerRun),
    /// Executes the blocks of a data directory again and compares them with what is stored.
    Verify(LedgerVerify),
    /// Measures how fast blocks of real contracts are executed one by one, in parallel and replayed.
    Bench(LedgerBench),
}

#[derive(Debug, Args)]
pub struct LedgerRun {
    /// Where the blocks are kept.
    #[arg(long, default_value = "ledger-data", conflicts_with = "in_memory")]
    pub data_dir: PathBuf,
    /// Keeps nothing after the end.
    #[arg(long)]
    pub in_memory: bool,
    /// Where JSON-RPC is served, over HTTP and WebSocket.
    #[arg(long, default_value = "127.0.0.1:7445")]
    pub listen: SocketAddr,
    /// How many threads execute the transactions of a block; 1: one after the other. Default: one for each core.
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
    /// Time between blocks, as in 250ms, 2s, or milliseconds without a unit. Default: a block as soon as a transaction
    /// waits.
    #[arg(long, value_name = "TIME", value_parser = block_time)]
    pub block_time: Option<Duration>,
    /// A genesis file: JSON with `alloc`, as geth writes it.
    #[arg(long, value_name = "FILE")]
    pub genesis: Option<PathBuf>,
    /// A development chain: rich deterministic accounts, time control, the usual chain id.
    #[arg(long)]
    pub dev: bool,
}

#[derive(Debug, Args)]
pub struct LedgerBench {
    /// A workload, as in `erc20_disjoint`; several are possible. Default: all. A wrong name lists them.
    #[arg(long, value_name = "W")]
    pub workload: Vec<String>,
    /// Transactions of each workload. Default: as many as take some ten milliseconds one by one.
    #[arg(long, value_name = "N")]
    pub txs: Option<NonZeroUsize>,
    /// Workers of the parallel executor, as in `1,2,4`. Default: one, two, and as many as there are cores.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub workers: Vec<NonZeroUsize>,
    /// How often each executor runs each workload.
    #[arg(long, value_name = "N", default_value = "15")]
    pub repetitions: NonZeroUsize,
    /// Most gas of a block. Default: that of a ledger.
    #[arg(long, value_name = "GAS")]
    pub block_gas: Option<u64>,
    /// Draws the ratios into this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Writes the tables into this file, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// The npm packages with Uniswap's contracts. Default: `tests/node_modules` of the checkout that the current folder
    /// or this program is in.
    #[arg(long, value_name = "DIR")]
    pub contracts: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct LedgerVerify {
    /// The data directory of a ledger that does not run.
    #[arg(long, default_value = "ledger-data")]
    pub data_dir: PathBuf,
    /// The first block. Default: 1.
    #[arg(long, value_name = "BLOCK")]
    pub from: Option<u64>,
    /// The last block. Default: the newest.
    #[arg(long, value_name = "BLOCK")]
    pub to: Option<u64>,
    /// Who executes the blocks again: one by one, in parallel, or both.
    #[arg(long, value_enum, default_value = "all")]
    pub executor: ExecutorArg,
    /// How many threads the parallel ones use. Default: one for each core.
    #[arg(long, value_name = "N")]
    pub workers: Option<NonZeroUsize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExecutorArg {
    Sequential,
    Parallel,
    Replay,
    All,
}

/// The longest time between two blocks: a day.
const BLOCK_TIME_MAX: Duration = Duration::from_secs(86_400);

fn block_time(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number = digits.parse::<u64>().map_err(|_| "write a whole number and a unit, as in 250ms or 2s".to_owned())?;
    let time = match unit {
        "" | "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" | "min" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(format!("the unit {unit:?} is unknown; units are ms, s and min")),
    };
    if time.is_zero() {
        return Err("a block time of 0 is none; leave --block-time out for blocks on demand".to_owned());
    }
    if time > BLOCK_TIME_MAX {
        return Err("at most a day (86400s) may pass between two blocks".to_owned());
    }
    Ok(time)
}

#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Makes a member's key and folder; prints the account and where the secret is.
    New {
        /// The member's name.
        name: String,
        /// The data folder. Default: that of the `payhub dev` that was started last, else `~/.payhub`.
        #[arg(long, env = "PAYHUB_DATA_DIR")]
        data_dir: Option<PathBuf>,
        /// Takes this secret instead of a random one: 64 hexadecimal digits, `-` to read them from standard input.
        #[arg(long)]
        secret: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct Deploy {
    /// The chain's JSON-RPC.
    #[arg(long, env = "PAYHUB_RPC")]
    pub rpc: String,
    /// The account that pays for it: 64 hexadecimal digits, `-` to read them from standard input.
    #[arg(long, env = "PAYHUB_KEY", hide_env_values = true)]
    pub key: String,
    /// Shortest challenge period that the contract accepts, seconds.
    #[arg(long, default_value_t = 3600)]
    pub challenge_min: u32,
    /// Longest challenge period that the contract accepts, seconds.
    #[arg(long, default_value_t = 2_592_000)]
    pub challenge_max: u32,
    /// Vaults that the channels' money is spread over.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=128))]
    pub shards: u16,
    /// Asset that most channels will be opened with: opening with it costs a fifth less gas. Default: the test dollar if it is
    /// deployed along, else the native coin.
    #[arg(long, value_name = "ADDRESS")]
    pub home_asset: Option<alloy_primitives::Address>,
    /// Also deploys the test dollar.
    #[arg(long)]
    pub test_dollar: bool,
}

#[derive(Debug, Args)]
pub struct Faucet {
    /// A member's name or an address.
    pub to: String,
    /// An amount with its unit, as in 100USDH or 2COIN.
    #[arg(allow_hyphen_values = true)]
    pub amount: String,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Open {
    /// The first deposit, as in 100USDH.
    #[arg(allow_hyphen_values = true)]
    pub amount: String,
    /// The member.
    #[arg(long)]
    pub from: String,
    /// The member's signature scheme. Default: Ed25519 where the ledger verifies it.
    #[arg(long, value_enum)]
    pub scheme: Option<SchemeArg>,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Fund {
    /// What to add, as in 100USDH.
    #[arg(allow_hyphen_values = true)]
    pub amount: String,
    /// The member.
    #[arg(long)]
    pub from: String,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Withdraw {
    /// What to take out, as in 10USDH.
    #[arg(allow_hyphen_values = true)]
    pub amount: String,
    /// The member.
    #[arg(long)]
    pub from: String,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Pay {
    /// Whom: a member's name or a channel id.
    pub to: String,
    /// How much each time, as in 0.0001USDH.
    #[arg(allow_hyphen_values = true)]
    pub amount: String,
    /// The payer.
    #[arg(long)]
    pub from: String,
    /// How many payments of that amount.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub count: u64,
    /// Payments to a signature: one frame carries up to this many.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub frame: u64,
    /// Payments a second. Default: as fast as it goes.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    /// A note for the payee.
    #[arg(long, default_value = "")]
    pub note: String,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Stream {
    /// Whom: a member's name or a channel id.
    pub to: String,
    /// How much a tick, as in 0.0001USDH.
    #[arg(allow_hyphen_values = true)]
    pub amount: String,
    /// The payer.
    #[arg(long)]
    pub from: String,
    /// How many ticks.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub ticks: u64,
    /// Ticks a second. Default: all at once.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: Option<u64>,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Of {
    /// The member.
    pub member: String,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct History {
    /// The member.
    pub member: String,
    /// How many, the newest first.
    #[arg(long, default_value_t = 20)]
    pub limit: usize,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Events {
    /// The member.
    pub member: String,
    /// Goes on until Ctrl-C; with --json a line for each event.
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Settle {
    /// The member.
    pub member: String,
    /// The asset's symbol; all of the member's assets unless given.
    #[arg(long)]
    pub asset: Option<String>,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Close {
    /// The member.
    pub member: String,
    /// The asset's symbol; all of the member's assets unless given.
    #[arg(long)]
    pub asset: Option<String>,
    /// Without the hub: starts the challenge period on the ledger, posts everything held, and pays out after it.
    #[arg(long)]
    pub unilateral: bool,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// The member whose wallet watches; it needs his store and secret.
    #[arg(required_unless_present = "store", conflicts_with = "store")]
    pub member: Option<String>,
    /// A watchtower of its own, with its store in this folder and no key but one that pays for gas. If it is a member's
    /// store, his evidence is watched over as his programs leave it there, without a hub and without his keys.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Where members upload their evidence; `none` for nowhere.
    #[arg(long, conflicts_with = "member", value_name = "ADDR", default_value = "127.0.0.1:7450")]
    pub listen: String,
    /// A file with the secret of the account that pays for gas: 64 hexadecimal digits; `-` for standard input. Default: a
    /// secret of its own that is made in the folder.
    #[arg(long, conflicts_with = "member", value_name = "FILE")]
    pub key: Option<String>,
    /// The adjudicator's address. Default: the predeployed one of an embedded ledger, or the one that a member's store names.
    #[arg(long, conflicts_with = "member", value_name = "ADDRESS")]
    pub adjudicator: Option<alloy_primitives::Address>,
    /// Blocks until what the ledger says counts. Default: 0 on an embedded ledger, 6 elsewhere.
    #[arg(long, conflicts_with = "member", value_name = "N")]
    pub confirmations: Option<u64>,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Explain {
    /// The member, or a channel id, of which only what the ledger knows is told.
    #[arg(value_name = "NAME|CHANNEL")]
    pub who: String,
    /// The adjudicator's address, for a channel id. Default: the predeployed one of an embedded ledger.
    #[arg(long)]
    pub adjudicator: Option<alloy_primitives::Address>,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct PlanExit {
    /// The ledger's JSON-RPC.
    #[arg(long, env = "PAYHUB_RPC", default_value = "http://127.0.0.1:7445")]
    pub rpc: String,
    /// The hub, as in http://127.0.0.1:7440, whose challenge period is checked. One that is too short is no failure: the
    /// last line begins with ALARM, and with --json `alarm` is true.
    #[arg(long, env = "PAYHUB_HUB")]
    pub hub: Option<String>,
    /// The hub's operator endpoint, as in http://127.0.0.1:7441, whose accounts that are not final are counted.
    #[arg(long)]
    pub operator: Option<String>,
    /// So many channels with one account each instead of those of a hub.
    #[arg(long, value_name = "N")]
    pub channels: Option<u64>,
    /// The challenge period to check, seconds, instead of the hub's.
    #[arg(long, value_name = "SECONDS")]
    pub challenge_period: Option<u32>,
    /// Seconds between blocks. Default: the average of the last 256 blocks, which says little where blocks come on demand.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub block_time: Option<u64>,
}

#[derive(Debug, Args)]
pub struct ExitKit {
    /// The member.
    pub member: String,
    /// Where to write it; an older file is replaced.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    #[command(flatten)]
    pub at: Where,
}

#[derive(Debug, Args)]
pub struct Exit {
    /// The exit kit.
    pub file: PathBuf,
    /// The ledger's JSON-RPC, as in http://127.0.0.1:7445.
    #[arg(long, env = "PAYHUB_RPC")]
    pub rpc: String,
    /// A file with the secret of any account that has coins for gas: 64 hexadecimal digits, or a member's own `secret`;
    /// `-` for standard input. The money does not go to this account.
    #[arg(long, value_name = "FILE")]
    pub key: String,
    /// Does not wait for the challenge period; run the same command again after it.
    #[arg(long)]
    pub no_wait: bool,
}
