//! A hub with a million idle channels: memory, time of a cold start, and payments a second with few and with many.
//!
//! `cargo run --release -p payhub-hub --example million_channels [channels [folder]]`. The store is made in one process
//! and opened in another, so that the figures are those of a start. Give a folder to keep it and use it again.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use payhub_hub::scale::Bench;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Channels that pay while the others sleep.
const PAYERS: usize = 100;
const ROUNDS: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [step, channels, dir] = arguments.as_slice()
        && let Ok(channels) = channels.parse()
    {
        match step.as_str() {
            "fill" => return fill(Path::new(dir), channels),
            "open" => return open(Path::new(dir), channels),
            _ => {}
        }
    }
    let channels = arguments.first().map_or(Ok(1_000_000), |text| text.parse::<usize>())?;
    let temporary = tempfile::tempdir()?;
    let dir = arguments.get(1).map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    if !dir.join("journal").exists() {
        run("fill", channels, &dir)?;
    }
    run("open", channels, &dir)
}

fn run(step: &str, channels: usize, dir: &Path) -> Result<(), Box<dyn Error>> {
    let status = Command::new(std::env::current_exe()?).arg(step).arg(channels.to_string()).arg(dir).status()?;
    if status.success() { Ok(()) } else { Err(format!("the step {step} failed").into()) }
}

fn fill(dir: &Path, channels: usize) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let mut bench = Bench::open(dir)?;
    bench.fill(channels);
    bench.close();
    println!("{channels} channels made in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn open(dir: &Path, channels: usize) -> Result<(), Box<dyn Error>> {
    let mut bench = Bench::open(dir)?;
    let (held, start) = (bench.held(), bench.started_in.as_secs_f64());
    let asleep = (held.channels - held.awake).max(1);
    println!("start {start:.2} s, {} MiB resident, {} MiB at the peak", memory("VmRSS")?, memory("VmHWM")?);
    println!(
        "{} channels, {} awake, {} bytes for each that sleeps",
        held.channels,
        held.awake,
        held.packed_bytes / asleep
    );
    // A stride that visits the channels in no order that the store knows.
    let payers = bench.ids((0..PAYERS.min(channels)).map(|n| n * 7919 % channels));
    bench.rounds(&payers, 10);
    let spent = bench.rounds(&payers, ROUNDS);
    let payments = payers.len() as f64 * ROUNDS as f64;
    println!(
        "{:.0} payments/s of {} channels in flushes of {} frames, {:.2} us a payment, durable, without the payers' signatures",
        payments / spent.as_secs_f64(),
        payers.len(),
        payers.len(),
        spent.as_secs_f64() * 1e6 / payments
    );
    let began = Instant::now();
    bench.checkpoint();
    println!("their checkpoint took {:.2} s", began.elapsed().as_secs_f64());
    println!("{} MiB resident afterwards", memory("VmRSS")?);
    bench.close();
    Ok(())
}

/// A line of this process's status, MiB.
fn memory(line: &str) -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let found = status.lines().find_map(|text| text.strip_prefix(line)).ok_or("no such line in /proc/self/status")?;
    let kib: u64 = found.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024)
}
