//! What a run found, for programs (JSON), documents (Markdown) and people.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::measure::cores;
use super::workload::Workload;

/// The load from which a machine is not idle: a program that ended less than a minute ago leaves less.
const BUSY: f64 = 0.7;

/// The result of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// How it was measured.
    pub method: Method,
    /// The numbers.
    pub workloads: Vec<WorkloadReport>,
}

/// A machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Cores that the process may use.
    pub cores: usize,
    /// What the processor calls itself.
    pub cpu: String,
    /// Operating system and processor architecture.
    pub system: String,
    /// Programs that ran or wanted to, on average over the minute before: above zero the numbers are those of a busy
    /// machine.
    pub load_before: f64,
    /// Whether the compiler optimised: other numbers are worth nothing.
    pub optimised: bool,
}

/// How numbers were taken.
#[derive(Debug, Clone, Serialize)]
pub struct Method {
    /// Times that each executor ran each workload.
    pub repetitions: usize,
    /// What decided their order.
    pub seed: u64,
    /// Most gas of a block.
    pub block_gas: u64,
    /// Numbers of workers.
    pub workers: Vec<usize>,
    /// The predictor's one fitted constant: what each account or slot that a transaction reads costs when it is
    /// executed ahead. It makes predictions for two workers best over all workloads together.
    pub predictor_overhead_ns_per_read: f64,
}

/// The numbers of a workload. Times are medians, in seconds, for all of its transactions; ratios are against the
/// sequential executor, more than 1 is faster.
#[derive(Debug, Clone, Serialize)]
pub struct WorkloadReport {
    /// Which.
    pub name: Workload,
    /// Transactions.
    pub txs: usize,
    /// Blocks that they are in.
    pub blocks: usize,
    /// Gas used.
    pub gas: u64,
    /// Transactions a second, one by one.
    pub sequential_tps: f64,
    /// The parallel executor with one worker.
    pub ratio_1: Option<f64>,
    /// The parallel executor with two workers.
    pub ratio_2: Option<f64>,
    /// The replay from access lists with two workers.
    pub replay_ratio_2: Option<f64>,
    /// Executions for each transaction, with the most workers measured.
    pub executions_per_tx: f64,
    /// Executions thrown away, by cause, with the most workers measured.
    pub aborts: Aborts,
    /// What made transactions wait or run again most often, with the most workers measured.
    pub conflicts: Vec<Conflict>,
    /// Decoding and recovering senders, on all cores.
    pub recover_s: f64,
    /// The same on one thread.
    pub recover_one_thread_s: f64,
    /// Execution by the parallel executor with the most workers measured, access lists recorded, as a chain does it.
    pub execute_s: f64,
    /// Sealing, applying changes and state roots.
    pub commit_s: f64,
    /// Encoding and writing to the journal, until it is safe on the disk.
    pub persist_s: f64,
    /// PREDICTED ratios for numbers of workers, from the traced dependencies.
    pub predicted: BTreeMap<usize, f64>,
    /// Predicted by measured ratio, less 1, where both exist.
    pub predictor_error: BTreeMap<usize, f64>,
    /// The longest chain of dependent transactions, as a share of the time of all.
    pub critical_share: f64,
    /// What was measured exactly.
    pub conditions: String,
    /// Each executor apart.
    pub executors: Vec<ExecutorReport>,
}

/// The numbers of an executor on a workload.
#[derive(Debug, Clone, Serialize)]
pub struct ExecutorReport {
    /// Its name.
    pub name: &'static str,
    /// Its workers.
    pub workers: usize,
    /// Transactions a second.
    pub tps: f64,
    /// Time, the median.
    pub median_s: f64,
    /// Time, the shortest.
    pub minimum_s: f64,
    /// Processor time of the whole process, the median.
    pub cpu_s: f64,
    /// Against the sequential executor.
    pub ratio: f64,
    /// Executions for each transaction.
    pub executions_per_tx: f64,
    /// Executions ahead of the committed state that were checked against it, in one run, on average.
    pub validations: f64,
    /// Executions thrown away in one run, by cause, on average.
    pub aborts: Aborts,
    /// What made transactions wait or run again most often.
    pub conflicts: Vec<Conflict>,
}

/// Executions thrown away and waits in one run, on average.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Aborts {
    /// A value that was read had changed.
    pub stale: f64,
    /// Of these, those noticed only when the transaction's turn came.
    pub stale_at_commit: f64,
    /// A value that is about to change was read.
    pub estimate: f64,
    /// It could not be executed on what it saw.
    pub not_executable: f64,
    /// It touched the fee recipient.
    pub fee_recipient: f64,
    /// Times that an execution was put off until another one was done.
    pub waits: f64,
}

/// A key that transactions conflicted on.
#[derive(Debug, Clone, Serialize)]
pub struct Conflict {
    /// Account or slot.
    pub key: String,
    /// How often in one run, on average.
    pub count: f64,
}

impl Machine {
    /// The one that this runs on.
    pub fn this() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            cores: cores().get(),
            cpu: cpu.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            load_before: load_average(),
            optimised: !cfg!(debug_assertions),
        }
    }
}

/// The load average of the last minute; zero where the system does not tell.
fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// The head of the table, for documents and terminals.
pub const HEAD: [&str; 13] = [
    "workload",
    "txs",
    "Mgas",
    "sequential tx/s",
    "1 worker",
    "2 workers",
    "replay, 2",
    "runs/tx",
    "recover ms",
    "execute ms",
    "commit ms",
    "persist ms",
    "predicted 4/8/16/32",
];

impl Report {
    /// The table's rows.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let ms = |seconds: f64| format!("{:.1}", seconds * 1e3);
        let row = |w: &WorkloadReport| {
            vec![
                w.name.to_string(),
                w.txs.to_string(),
                format!("{:.0}", w.gas as f64 / 1e6),
                format!("{:.0}", w.sequential_tps),
                ratio(w.ratio_1),
                ratio(w.ratio_2),
                ratio(w.replay_ratio_2),
                format!("{:.2}", w.executions_per_tx),
                ms(w.recover_s),
                ms(w.execute_s),
                ms(w.commit_s),
                ms(w.persist_s),
                w.predicted.values().map(|r| format!("{r:.1}")).collect::<Vec<_>>().join(" / "),
            ]
        };
        self.workloads.iter().map(row).collect()
    }

    /// One line about where and how.
    pub fn conditions(&self) -> String {
        let Machine { cores, cpu, system, load_before, optimised } = &self.machine;
        let busy = if *load_before < BUSY { String::new() } else { format!(", BUSY with a load of {load_before}") };
        let build = if *optimised { "" } else { ", NOT optimised" };
        format!(
            "{cores} cores of {cpu}, {system}{build}{busy}; {} repetitions in random order, medians; blocks of at most {} Mgas",
            self.method.repetitions,
            self.method.block_gas / 1_000_000
        )
    }

    /// Tables for a document: the ratios and phases, and what each workload is.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}.\n\n", self.conditions());
        markdown_table(&mut text, &HEAD, &self.rows());
        let errors = |w: &WorkloadReport, workers| {
            w.predictor_error.get(&workers).map_or_else(|| "-".to_owned(), |e| format!("{:+.0} %", e * 100.0))
        };
        let details = |w: &WorkloadReport| {
            let conflicts =
                w.conflicts.first().map_or_else(|| "-".to_owned(), |c| format!("{} ({:.0})", c.key, c.count));
            vec![
                w.name.to_string(),
                w.conditions.clone(),
                format!("{:.0} %", w.critical_share * 100.0),
                format!("{} / {}", errors(w, 1), errors(w, 2)),
                conflicts,
            ]
        };
        text.push('\n');
        let head = ["workload", "what it is", "longest chain", "predictor's error at 1 / 2", "most frequent conflict"];
        markdown_table(&mut text, &head, &self.workloads.iter().map(details).collect::<Vec<_>>());
        text
    }
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"))
}

fn markdown_table(text: &mut String, head: &[&str], rows: &[Vec<String>]) {
    let mut line = |cells: &[String]| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    };
    line(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
    line(&head.iter().map(|_| "---".to_owned()).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}
