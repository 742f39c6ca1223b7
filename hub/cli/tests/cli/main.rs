//! The real binary as its user meets it: processes, ready lines, exit codes, JSON, signals, kills.
//!
//! Every test has folders and ports of its own and ends what it started. `PAYHUB_BIN` names another binary to test, as
//! the release one. The long run that kills hub and ledger with SIGKILL at fifty random points while 200,000 payments
//! are made at 20,000 a second:
//!
//! ```text
//! cargo build --release
//! PAYHUB_KILLS=50 PAYHUB_BIN=target/release/payhub cargo test -p payhub --test cli kills -- --nocapture --test-threads 1
//! ```
//!
//! `PAYHUB_SEED` repeats the random points of a run; it is printed at the start.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod apart;
mod bad_input;
mod bench;
mod cast;
mod demo;
mod dev;
mod exit;
mod explain;
mod kills;
mod tower;
mod world;
