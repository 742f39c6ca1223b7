//! `payhub`: the one binary. See `payhub --help`, or the README.

mod args;
mod bench;
mod chain;
mod demo;
mod dev;
mod exit;
mod explain;
mod failure;
mod home;
mod ledger_bench;
mod ledger_verify;
mod members;
mod output;
mod plan_exit;
mod run_hub;
mod run_ledger;
mod tower;
mod verbs;
mod wallet;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, HubCommand, KeysCommand, LedgerCommand, Pay, Stream};
use failure::Failure;
use output::Output;
use wallet::Request;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let out = Output { json: cli.json };
    log_to_stderr(cli.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return fail(&Failure::other(format!("no threads to run on: {e}")), out),
    };
    match runtime.block_on(command(cli.command, out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, out),
    }
}

async fn command(command: Command, out: Output) -> Result<(), Failure> {
    match command {
        Command::Dev(args) => dev::run(args, out).await,
        Command::Bench(args) => bench::run(args, out).await,
        Command::Hub(HubCommand::Run(args)) => run_hub::run(args, out).await,
        Command::Ledger(LedgerCommand::Bench(args)) => ledger_bench::run(&args, out),
        Command::Ledger(LedgerCommand::Run(args)) => run_ledger::run(args, out).await,
        Command::Ledger(LedgerCommand::Verify(args)) => ledger_verify::run(args, out).await,
        Command::Keys(KeysCommand::New { name, data_dir, secret }) => {
            members::new_keys(&name, data_dir.as_deref(), secret.as_deref(), out)
        }
        Command::Deploy(args) => {
            let value = chain::deploy(&args).await?;
            out.say(format!("adjudicator {} on chain {}", value["adjudicator"], value["chain_id"]));
            out.object(&value);
            Ok(())
        }
        Command::Faucet(args) => members::faucet(args, out).await,
        Command::ExitKit(args) => exit::exit_kit(args, out).await,
        Command::Exit(args) => exit::exit(args, out).await,
        Command::Explain(args) => explain::run(args, out).await,
        Command::PlanExit(args) => plan_exit::run(args, out).await,
        Command::Watch(args) => match &args.member {
            Some(member) => members::watch(member, &args.at, out).await,
            None => tower::run(&args, out).await,
        },
        Command::Open(a) => members::run(&a.from, &a.at, a.scheme, Request::Open { amount: a.amount }, out).await,
        Command::Fund(a) => members::run(&a.from, &a.at, None, Request::Fund { amount: a.amount }, out).await,
        Command::Withdraw(a) => members::run(&a.from, &a.at, None, Request::Withdraw { amount: a.amount }, out).await,
        Command::Pay(a) => {
            let Pay { to, amount, from, count, frame, rate, note, at } = a;
            members::run(&from, &at, None, Request::Pay { to, amount, count, frame, rate, note }, out).await
        }
        Command::Stream(a) => {
            let Stream { to, amount, from, ticks, rate, at } = a;
            members::run(&from, &at, None, Request::Stream { to, amount, ticks, rate }, out).await
        }
        Command::Balance(a) => members::run(&a.member, &a.at, None, Request::Balance, out).await,
        Command::Channels(a) => members::run(&a.member, &a.at, None, Request::Channels, out).await,
        Command::History(a) => members::run(&a.member, &a.at, None, Request::History { limit: a.limit }, out).await,
        Command::Events(a) => members::run(&a.member, &a.at, None, Request::Events { follow: a.follow }, out).await,
        Command::Settle(a) => members::run(&a.member, &a.at, None, Request::Settle { asset: a.asset }, out).await,
        Command::Close(a) => {
            let request = Request::Close { asset: a.asset, unilateral: a.unilateral };
            members::run(&a.member, &a.at, None, request, out).await
        }
        Command::Demo(args) => demo::run(args, out).await,
    }
}

/// Waits for SIGINT or SIGTERM, which are heard from the call on, not only from the first wait.
pub(crate) fn until_stopped() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be listened for");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be listened for");
    async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

/// What the command line's parser has to say. The flag `--json` is looked for by hand, as nothing was parsed.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return ExitCode::SUCCESS;
    }
    let text = error.to_string();
    let (what, _) = text.split_once("\n\n").unwrap_or((&text, ""));
    let what = what.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    let json = std::env::args_os().any(|arg| arg == "--json");
    Output { json }.object(&Failure::usage(what, "see `payhub --help`, or that of the command").to_json());
    ExitCode::from(failure::Code::Usage as u8)
}

fn fail(failure: &Failure, out: Output) -> ExitCode {
    out.object(&failure.to_json());
    output::error_line(format_args!("payhub: {failure}"));
    ExitCode::from(failure.code as u8)
}
