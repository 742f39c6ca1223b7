//! What a run found, for programs (JSON), documents (Markdown) and people.

use std::fmt::Write;

use serde::Serialize;

use super::machine::Machine;
use super::tally::Latency;
use super::workload::Workload;

/// The head of the table.
pub const HEAD: [&str; 12] = [
    "workload",
    "clients",
    "payments/s",
    "of limit",
    "p50 / p99 / p99.9 ms",
    "at half: p50 / p99 / p99.9 ms",
    "lone: p50 / p99 ms",
    "hub µs",
    "client µs",
    "flushes/s",
    "journal bytes",
    "reconciled",
];

/// The head of the table of limits.
pub const LIMIT_HEAD: [&str; 3] = ["workload", "limit, payments/s", "formula"];

/// The result of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// When and where.
    pub conditions: Conditions,
    /// The machine.
    pub machine: Machine,
    /// Seconds of the peak of each workload.
    pub seconds: u64,
    /// The numbers.
    pub workloads: Vec<WorkloadReport>,
    /// The end.
    pub settled: Settled,
}

/// Where a run was.
#[derive(Clone, Debug, Serialize)]
pub struct Conditions {
    /// What the processor calls itself.
    pub cpu: String,
    /// Operating system and processor architecture.
    pub system: String,
    /// Programs that ran or wanted to, on average over the minute before.
    pub load_before: f64,
    /// Whether the compiler optimised: other numbers are worth nothing.
    pub optimised: bool,
}

/// All accounts were closed on the ledger.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Settled {
    /// How many.
    pub accounts: usize,
    /// Whether each was paid exactly what its member's books say.
    pub reconciled: bool,
}

/// The numbers of a workload. Those of payments a second, processor time, flushes and journal are of the peak.
#[derive(Clone, Debug, Serialize)]
pub struct WorkloadReport {
    /// Which.
    pub name: Workload,
    /// Payers with a connection each.
    pub clients: usize,
    /// Payments accepted, with receipts that were checked.
    pub payments: u64,
    /// The same a second.
    pub payments_per_s: f64,
    /// From signing, or in an open loop from when it should have been signed, to the checked receipt.
    #[serde(flatten)]
    pub latency: Millis,
    /// Processor time of the hub's process.
    pub hub_cpu_us_per_payment: f64,
    /// Processor time of all clients together.
    pub client_cpu_us_per_payment: f64,
    /// Against the limit.
    pub ratio_to_limit: f64,
    /// Records written and synced.
    pub flushes_per_s: f64,
    /// Bytes of the journal.
    pub journal_bytes_per_payment: f64,
    /// Whether every member's books equal the hub's and no money was made or lost.
    pub reconciled: bool,
    /// An open loop at half of the peak; absent where a rate was given.
    pub half_rate: Option<HalfRate>,
    /// One payer with one frame at a time.
    pub lone: Lone,
    /// What the machine allows.
    pub limit_payments_per_s: f64,
    /// How that follows from the machine's figures.
    pub limit_formula: String,
    /// Payments refused on the way, for want of collateral; each was replaced by another one.
    pub payments_refused: u64,
}

/// Percentiles.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Millis {
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
}

/// The open loop.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct HalfRate {
    /// Payments a second.
    pub rate: f64,
    /// From when a payment should have left.
    #[serde(flatten)]
    pub latency: Millis,
}

/// The lone payer.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Lone {
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl From<Latency> for Millis {
    fn from(l: Latency) -> Self {
        Millis { p50_ms: rounded(l.p50_ms, 3), p99_ms: rounded(l.p99_ms, 3), p999_ms: rounded(l.p999_ms, 3) }
    }
}

impl From<Latency> for Lone {
    fn from(l: Latency) -> Self {
        Lone { p50_ms: rounded(l.p50_ms, 3), p99_ms: rounded(l.p99_ms, 3) }
    }
}

/// A number with so many decimal places.
pub fn rounded(value: f64, places: i32) -> f64 {
    let scale = 10f64.powi(places);
    (value * scale).round() / scale
}

impl Conditions {
    /// This machine, now.
    pub fn now() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = read("/proc/cpuinfo");
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).and_then(|rest| rest.split_once(':'));
        let load = read("/proc/loadavg");
        Conditions {
            cpu: cpu.map_or("a processor without a name", |(_, name)| name.trim()).to_owned(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load_before: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN),
            optimised: !cfg!(debug_assertions),
        }
    }
}

impl Report {
    /// Where and how, in a sentence.
    pub fn conditions(&self) -> String {
        let Conditions { cpu, system, load_before, .. } = &self.conditions;
        format!(
            "{} cores of {cpu}, {system}; hub, ledger and clients on the same cores, over loopback gRPC, every answer after its fdatasync; {} s a workload, load {load_before:.1} before.",
            self.machine.cores, self.seconds
        )
    }

    /// The machine's figures, in a line.
    pub fn machine_line(&self) -> String {
        let m = &self.machine;
        format!(
            "This machine: sign {:.1} µs, verify_strict {:.1} µs, SHA-256 {:.0} ns, fdatasync {:.0} µs, append {} records/s, gRPC {} messages/s.",
            m.ed25519_sign_us,
            m.ed25519_verify_strict_us,
            m.sha256_ns,
            m.fdatasync_us,
            grouped(m.append_records_per_s),
            grouped(m.grpc_messages_per_s)
        )
    }

    /// The table.
    pub fn rows(&self) -> Vec<Vec<String>> {
        self.workloads.iter().map(WorkloadReport::row).collect()
    }

    /// The limits and what they are made of.
    pub fn limit_rows(&self) -> Vec<Vec<String>> {
        let row =
            |w: &WorkloadReport| vec![w.name.to_string(), grouped(w.limit_payments_per_s), w.limit_formula.clone()];
        self.workloads.iter().map(row).collect()
    }

    /// Both tables for a document.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n\n{}\n\n", self.conditions(), self.machine_line());
        table(&mut text, &HEAD, self.rows());
        text.push('\n');
        table(&mut text, &LIMIT_HEAD, self.limit_rows());
        text.push('\n');
        table(
            &mut text,
            &["workload", "what it is"],
            self.workloads.iter().map(|w| vec![w.name.to_string(), w.name.about().to_owned()]).collect(),
        );
        text
    }
}

impl WorkloadReport {
    fn row(&self) -> Vec<String> {
        let three = |l: &Millis| format!("{:.1} / {:.1} / {:.1}", l.p50_ms, l.p99_ms, l.p999_ms);
        vec![
            self.name.to_string(),
            self.clients.to_string(),
            grouped(self.payments_per_s),
            format!("{:.2}", self.ratio_to_limit),
            three(&self.latency),
            self.half_rate.as_ref().map_or("-".to_owned(), |half| three(&half.latency)),
            format!("{:.2} / {:.2}", self.lone.p50_ms, self.lone.p99_ms),
            format!("{:.2}", self.hub_cpu_us_per_payment),
            format!("{:.2}", self.client_cpu_us_per_payment),
            format!("{:.0}", self.flushes_per_s),
            format!("{:.0}", self.journal_bytes_per_payment),
            if self.reconciled { "yes" } else { "NO" }.to_owned(),
        ]
    }
}

fn table(text: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "| {} |", head.join(" | "));
    let _ = writeln!(text, "|{}", " --- |".repeat(head.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
}

/// A count with commas: `1,234,567`.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_by_thousands() {
        for (value, text) in [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(grouped(value), text);
        }
    }
}
