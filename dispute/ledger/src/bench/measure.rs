//! Taking the times.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{B256, keccak256};
use rayon::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use storage::{FileBackend, Journal, JournalConfig};

use super::BenchError;
use super::predict::{self, Trace};
use super::report::{Aborts, Conflict, ExecutorReport, Machine, Method, Report, WorkloadReport};
use super::workload::{Prepared, Random, Workload, Workshop};
use super::world::PreparedBlock;
use crate::block::{encode_access_list, encode_block, seal};
use crate::block_stm::BlockStm;
use crate::executor::{BlockOutput, Executor, Key, Sequential, Statistics};
use crate::replay::Replay;
use crate::state::{AccountChange, ChangeSet, State};
use crate::transaction::Recovered;
use crate::trie::StateTrie;

/// Workers of the replay from access lists.
const REPLAY_WORKERS: NonZeroUsize = NonZeroUsize::new(2).expect("two is not zero");

/// Size of a journal file of the persist phase, as the chain has it.
const SEGMENT_BYTES: u64 = 16 << 20;

/// Keys of the conflict report.
const CONFLICTS: usize = 5;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The workloads.
    pub workloads: Vec<Workload>,
    /// Transactions of each; by workload unless given.
    pub txs: Option<usize>,
    /// Numbers of workers for the parallel executor.
    pub workers: Vec<NonZeroUsize>,
    /// How often each is measured.
    pub repetitions: NonZeroUsize,
    /// Most gas of a block.
    pub block_gas: u64,
    /// The npm packages with Uniswap; looked for unless given.
    pub contracts: Option<PathBuf>,
    /// Decides the order of the measurements.
    pub seed: u64,
}

impl Plan {
    fn most_workers(&self) -> NonZeroUsize {
        self.workers.iter().max().copied().unwrap_or(NonZeroUsize::MIN)
    }
}

/// What takes its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sequential,
    BlockStm(NonZeroUsize),
    Replay(NonZeroUsize),
    SequentialListed,
    BlockStmListed(NonZeroUsize),
    RecoverOneByOne,
    Recover,
    Commit,
    Persist,
}

type Entrant = (Kind, Box<dyn Contestant>);

/// Runs the blocks of a workload, one after the other.
trait Contestant {
    /// Returns the time it took and what it tells about it.
    fn run(&mut self, prepared: &Prepared) -> Result<Sample, BenchError>;
}

#[derive(Debug, Clone, Default)]
struct Sample {
    wall: Duration,
    cpu: Duration,
    statistics: Vec<Statistics>,
}

/// Measures everything of the plan. `progress` hears what is being done, and how much of how much is.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(&str, u64, u64)) -> Result<Report, BenchError> {
    let machine = Machine::this();
    let count = plan.workloads.len() as u64;
    let mut workshop = Workshop::new(plan.contracts.clone(), plan.block_gas);
    let mut prepared = Vec::with_capacity(plan.workloads.len());
    for (done, workload) in plan.workloads.iter().enumerate() {
        progress("preparing", done as u64, count);
        prepared.push(workshop.prepare(*workload, plan.txs)?);
    }
    let mut contestants = contestants(plan)?;
    let samples = take_turns(plan, &prepared, &mut contestants, progress)?;
    let mut traces = Vec::with_capacity(prepared.len());
    for (done, prepared) in prepared.iter().enumerate() {
        progress("tracing", done as u64, count);
        traces.push(Trace::of(prepared)?);
    }
    progress("tracing", count, count);
    let kinds = contestants.iter().map(|(kind, _)| *kind).collect::<Vec<_>>();
    Ok(report(plan, machine, &prepared, &kinds, &samples, &traces))
}

/// Every contestant on every workload, `repetitions` times, in one random order, after one run each that does not count:
/// it fills caches and pools.
fn take_turns(
    plan: &Plan,
    prepared: &[Prepared],
    contestants: &mut [Entrant],
    progress: &mut dyn FnMut(&str, u64, u64),
) -> Result<Vec<Vec<Vec<Sample>>>, BenchError> {
    let all = (0..prepared.len()).flat_map(|w| (0..contestants.len()).map(move |c| (w, c))).collect::<Vec<_>>();
    let mut turns = (0..plan.repetitions.get()).flat_map(|_| all.iter().copied()).collect::<Vec<_>>();
    Random(plan.seed).shuffle(&mut turns);
    let total = (all.len() + turns.len()) as u64;
    let mut samples = vec![vec![Vec::new(); contestants.len()]; prepared.len()];
    for (done, (w, c)) in all.iter().chain(&turns).copied().enumerate() {
        progress("measuring", done as u64, total);
        let sample = contestants[c].1.run(&prepared[w])?;
        if done >= all.len() {
            samples[w][c].push(sample);
        }
    }
    Ok(samples)
}

fn contestants(plan: &Plan) -> Result<Vec<Entrant>, BenchError> {
    let mut all: Vec<Entrant> = vec![
        (Kind::Sequential, Box::new(Running(Sequential::new()))),
        (Kind::SequentialListed, Box::new(Running(Sequential::new().with_access_list(true)))),
    ];
    for workers in &plan.workers {
        all.push((Kind::BlockStm(*workers), Box::new(Running(BlockStm::new(*workers)))));
    }
    let most = plan.most_workers();
    all.push((Kind::BlockStmListed(most), Box::new(Running(BlockStm::new(most).with_access_list(true)))));
    all.push((Kind::Replay(REPLAY_WORKERS), Box::new(Replaying(Replay::new(REPLAY_WORKERS)))));
    all.push((Kind::RecoverOneByOne, Box::new(Recovering(None))));
    all.push((Kind::Recover, Box::new(Recovering(Some(threads()?)))));
    all.push((Kind::Commit, Box::new(Committing)));
    all.push((Kind::Persist, Box::new(Persisting::new()?)));
    Ok(all)
}

fn threads() -> Result<rayon::ThreadPool, BenchError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(cores().get())
        .build()
        .map_err(|e| BenchError::Setup { what: "starting threads", why: e.to_string() })
}

struct Running<E>(E);

impl<E: Executor> Contestant for Running<E> {
    fn run(&mut self, prepared: &Prepared) -> Result<Sample, BenchError> {
        execute(prepared, self.0.name(), |block, list| Ok(self.0.execute(&block.context, list, &block.state)?))
    }
}

struct Replaying(Replay);

impl Contestant for Replaying {
    fn run(&mut self, prepared: &Prepared) -> Result<Sample, BenchError> {
        execute(prepared, "replay", |block, list| {
            let access_list = block.expected.access_list.as_ref().expect("recorded when the block was made ready");
            Ok(self.0.replay(&block.context, list, &block.state, access_list)?)
        })
    }
}

/// Times executions and holds each result against the sequential one.
fn execute(
    prepared: &Prepared,
    name: &'static str,
    mut run: impl FnMut(&PreparedBlock, &[&Recovered]) -> Result<BlockOutput, BenchError>,
) -> Result<Sample, BenchError> {
    let mut sample = Sample::default();
    for block in &prepared.blocks {
        let list = block.transactions.iter().map(Arc::as_ref).collect::<Vec<_>>();
        let output = sample.time(|| run(block, &list))?;
        let expected = &block.expected;
        let differs = [
            (output.outcomes != expected.outcomes, "outcomes"),
            (output.receipts != expected.receipts, "receipts"),
            (output.changes != expected.changes, "changes"),
            // Not everybody records one.
            (output.access_list.is_some() && output.access_list != expected.access_list, "access list"),
        ];
        if let Some((_, what)) = differs.into_iter().find(|(differs, _)| *differs) {
            let (workload, number) = (prepared.workload, block.context.number);
            return Err(BenchError::Differs { executor: name, what, workload, number });
        }
        sample.statistics.push(output.statistics);
    }
    Ok(sample)
}

impl Sample {
    fn time<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let (started, cpu) = (Instant::now(), cpu_time());
        let done = run();
        self.wall += started.elapsed();
        self.cpu += cpu_time().saturating_sub(cpu);
        done
    }
}

/// Decodes transactions and recovers their senders, on threads or one by one.
struct Recovering(Option<rayon::ThreadPool>);

impl Contestant for Recovering {
    fn run(&mut self, prepared: &Prepared) -> Result<Sample, BenchError> {
        let mut sample = Sample::default();
        for block in &prepared.blocks {
            let chain = block.context.chain_id;
            let recovers =
                |tx: &Arc<Recovered>| Recovered::decode(&tx.raw, chain).is_ok_and(|again| again.sender == tx.sender);
            let good = sample.time(|| match &self.0 {
                Some(threads) => threads.install(|| block.transactions.par_iter().filter(|tx| recovers(tx)).count()),
                None => block.transactions.iter().filter(|tx| recovers(tx)).count(),
            });
            if good != block.transactions.len() {
                let why = format!("{good} of {} senders were recovered", block.transactions.len());
                return Err(BenchError::Setup { what: "recovering senders", why });
            }
        }
        Ok(sample)
    }
}

/// Seals blocks, applies their changes to the state and works out the state roots.
struct Committing;

impl Contestant for Committing {
    fn run(&mut self, prepared: &Prepared) -> Result<Sample, BenchError> {
        let mut sample = Sample::default();
        let Some(first) = prepared.blocks.first() else { return Ok(sample) };
        // The chain shares its state with nobody; sharing would copy every account that is written.
        let mut state = unshared(&first.state);
        let mut trie = StateTrie::new(cores());
        trie.rebuild(&state);
        let (mut parent, mut root) = (B256::ZERO, trie.root());
        for block in &prepared.blocks {
            let (list, receipts) = (block.transactions.clone(), block.expected.receipts.clone());
            sample.time(|| {
                let access_list = block.expected.access_list.as_ref().map(encode_access_list);
                parent = seal(&block.context, parent, root, access_list.map(keccak256), list, receipts).hash;
                state.apply(&block.expected.changes);
                trie.apply(&block.expected.changes);
                root = trie.root();
            });
        }
        Ok(sample)
    }
}

fn unshared(state: &State) -> State {
    let mut all = ChangeSet::default();
    for (address, account) in state.accounts() {
        let slots = account.slots.iter().map(|(index, value)| (*index, *value)).collect();
        all.accounts.insert(*address, AccountChange { basic: Some(account.basic), storage_reset: false, slots });
        let code = state.code(address);
        if !code.is_empty() {
            all.codes.insert(account.basic.code_hash, code);
        }
    }
    let mut copy = State::default();
    copy.apply(&all);
    copy
}

/// Writes blocks to a journal on the disk of the folder for temporary files.
struct Persisting {
    journal: Journal,
    /// Holds the files until the end.
    _folder: tempfile::TempDir,
}

impl Persisting {
    fn new() -> Result<Self, BenchError> {
        let failed = |why: String| BenchError::Setup { what: "making a journal for the persist phase", why };
        let folder = tempfile::tempdir().map_err(|e| failed(e.to_string()))?;
        let backend = FileBackend::open(folder.path()).map_err(|e| failed(e.to_string()))?;
        let journal = Journal::open(Arc::new(backend), JournalConfig { segment_bytes: SEGMENT_BYTES }, &[0; 32])
            .map_err(|e| failed(e.to_string()))?;
        Ok(Self { journal, _folder: folder })
    }
}

impl Contestant for Persisting {
    fn run(&mut self, prepared: &Prepared) -> Result<Sample, BenchError> {
        let mut sample = Sample::default();
        for block in &prepared.blocks {
            let (list, expected) = (block.transactions.clone(), &block.expected);
            let access_list = expected.access_list.as_ref().map(encode_access_list);
            let sealed = seal(&block.context, B256::ZERO, B256::ZERO, None, list, expected.receipts.clone());
            sample.time(|| {
                let record = encode_block(&sealed, &expected.changes, access_list.as_ref(), 0);
                self.journal.append(&record).map_err(crate::Error::from)
            })?;
        }
        Ok(sample)
    }
}

/// Cores that this process may use.
pub fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

fn report(
    plan: &Plan,
    machine: Machine,
    prepared: &[Prepared],
    kinds: &[Kind],
    samples: &[Vec<Vec<Sample>>],
    traces: &[Trace],
) -> Report {
    let at = |w: usize, wanted: Kind| kinds.iter().position(|kind| *kind == wanted).map(|c| &samples[w][c][..]);
    let wall = |w: usize, wanted: Kind| at(w, wanted).map(|samples| median(samples.iter().map(|s| s.wall)));
    let ratio = |w: usize, wanted: Kind| Some(wall(w, Kind::Sequential)? / wall(w, wanted)?);
    let (one, two) = (NonZeroUsize::MIN, REPLAY_WORKERS);

    let measured = (0..prepared.len()).filter_map(|w| Some((&traces[w], ratio(w, Kind::BlockStm(two))?)));
    let overhead_ns = predict::fitted_overhead(&measured.collect::<Vec<_>>(), two.get());

    let most = plan.most_workers();
    let workloads = (0..prepared.len()).map(|w| {
        let (ready, trace) = (&prepared[w], &traces[w]);
        let executors = kinds.iter().zip(&samples[w]).filter_map(|(kind, samples)| {
            let (name, workers) = match kind {
                Kind::Sequential => ("sequential", one),
                Kind::BlockStm(workers) => ("block_stm", *workers),
                Kind::Replay(workers) => ("replay", *workers),
                Kind::SequentialListed => ("sequential with access lists", one),
                Kind::BlockStmListed(workers) => ("block_stm with access lists", *workers),
                Kind::RecoverOneByOne | Kind::Recover | Kind::Commit | Kind::Persist => return None,
            };
            Some(executor_report(name, workers, samples, ready.txs(), ratio(w, *kind)))
        });
        let executors = executors.collect::<Vec<_>>();
        // Executions and aborts are those of the most workers; without a parallel executor there are none.
        let busiest = executors.iter().find(|e| e.name == "block_stm" && e.workers == most.get()).or(executors.first());
        let predicted = |workers| trace.predicted_ratio(workers, overhead_ns);
        let error = |workers: NonZeroUsize| Some(predicted(workers.get()) / ratio(w, Kind::BlockStm(workers))? - 1.0);
        let sequential = wall(w, Kind::Sequential).unwrap_or_default();
        WorkloadReport {
            name: ready.workload,
            txs: ready.txs(),
            blocks: ready.blocks.len(),
            gas: ready.gas(),
            sequential_tps: ready.txs() as f64 / sequential,
            ratio_1: ratio(w, Kind::BlockStm(one)),
            ratio_2: ratio(w, Kind::BlockStm(two)),
            replay_ratio_2: ratio(w, Kind::Replay(two)),
            executions_per_tx: busiest.map_or(1.0, |e| e.executions_per_tx),
            aborts: busiest.map(|e| e.aborts.clone()).unwrap_or_default(),
            conflicts: busiest.map(|e| e.conflicts.clone()).unwrap_or_default(),
            recover_s: wall(w, Kind::Recover).unwrap_or_default(),
            recover_one_thread_s: wall(w, Kind::RecoverOneByOne).unwrap_or_default(),
            execute_s: wall(w, Kind::BlockStmListed(most)).unwrap_or(sequential),
            commit_s: wall(w, Kind::Commit).unwrap_or_default(),
            persist_s: wall(w, Kind::Persist).unwrap_or_default(),
            predicted: [4, 8, 16, 32].map(|workers| (workers, predicted(workers))).into(),
            predictor_error: [one, two].into_iter().filter_map(|n| Some((n.get(), error(n)?))).collect(),
            critical_share: trace.critical_share(),
            conditions: ready.conditions.clone(),
            executors,
        }
    });
    Report {
        machine,
        method: Method {
            repetitions: plan.repetitions.get(),
            seed: plan.seed,
            block_gas: plan.block_gas,
            workers: plan.workers.iter().map(|workers| workers.get()).collect(),
            predictor_overhead_ns_per_read: overhead_ns,
        },
        workloads: workloads.collect(),
    }
}

fn executor_report(
    name: &'static str,
    workers: NonZeroUsize,
    samples: &[Sample],
    txs: usize,
    ratio: Option<f64>,
) -> ExecutorReport {
    let runs = samples.len().max(1) as f64;
    let all = || samples.iter().flat_map(|sample| &sample.statistics);
    let median_s = median(samples.iter().map(|s| s.wall));
    let mean = |count: fn(&Statistics) -> u64| all().map(count).sum::<u64>() as f64 / runs;
    let mut keys = BTreeMap::<Key, u64>::new();
    for (key, count) in all().flat_map(|s| &s.conflicts) {
        *keys.entry(*key).or_default() += count;
    }
    let mut conflicts = keys
        .into_iter()
        .map(|(key, count)| Conflict { key: named(&key), count: count as f64 / runs })
        .collect::<Vec<_>>();
    conflicts.sort_by(|a, b| b.count.total_cmp(&a.count));
    conflicts.truncate(CONFLICTS);
    ExecutorReport {
        name,
        workers: workers.get(),
        tps: txs as f64 / median_s,
        median_s,
        minimum_s: samples.iter().map(|s| s.wall.as_secs_f64()).fold(f64::INFINITY, f64::min),
        cpu_s: median(samples.iter().map(|s| s.cpu)),
        ratio: ratio.unwrap_or(1.0),
        executions_per_tx: mean(|s| s.executions) / txs as f64,
        validations: mean(|s| s.validations),
        aborts: Aborts {
            stale: mean(|s| s.aborts.stale_at_commit + s.aborts.stale_before_commit),
            stale_at_commit: mean(|s| s.aborts.stale_at_commit),
            estimate: mean(|s| s.aborts.estimate),
            not_executable: mean(|s| s.aborts.not_executable),
            fee_recipient: mean(|s| s.aborts.fee_recipient),
            waits: mean(|s| s.waits),
        },
        conflicts,
    }
}

fn named(key: &Key) -> String {
    match key {
        Key::Basic(address) => format!("account {address}"),
        Key::Slot(address, index) => format!("slot {index:#x} of {address}"),
        Key::StorageReset(address) => format!("storage of {address}"),
    }
}

/// The middle one, in seconds; of an even number the lower of the two.
fn median(times: impl Iterator<Item = Duration>) -> f64 {
    let mut times = times.collect::<Vec<_>>();
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).map_or(0.0, Duration::as_secs_f64)
}
