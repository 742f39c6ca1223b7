//! What more cores would do: the dependencies that the transactions really have, and a schedule of them.
//!
//! A traced sequential run over plain revm tells which accounts and slots each transaction read and wrote, exactly, and
//! how long it took. A transaction depends on the last one before it that changed what it read. List scheduling then
//! gives each free worker the first transaction in block order whose dependencies are done. The fee recipient does not
//! count: tips are added up apart. It is a prediction and labelled as one; its error where cores exist is in the report.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Instant;

use alloy::consensus::Transaction as _;
use alloy_primitives::map::HashMap;
use alloy_primitives::{Address, KECCAK256_EMPTY, U256};
use revm::{Database, DatabaseCommit, ExecuteEvm};

use super::BenchError;
use super::workload::Prepared;
use super::world::{Group, PreparedBlock};
use crate::evm::{Checks, evm};
use crate::executor::{Executor, Frontier, FrontierEvm, Sequential};
use crate::state::Basic;

/// Traced runs; the shortest time of each transaction counts, because everything that disturbs makes it longer.
const RUNS: usize = 5;

/// No read costs that much.
const OVERHEAD_MAX_NS: f64 = 2_000.0;

/// Thirds thrown away by the fit: the rest is below a tenth of a nanosecond.
const FIT_STEPS: usize = 25;

/// Something that a transaction can read or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// Balance, nonce and code of an account.
    Basic(Address),
    /// A storage slot.
    Slot(Address, U256),
}

/// What one transaction did.
#[derive(Debug, Clone, Default)]
pub struct TracedTx {
    /// Everything that it looked at.
    pub reads: Vec<Place>,
    /// Everything whose value is another one afterwards.
    pub writes: Vec<Place>,
    /// Transactions of the block that it depends on.
    pub needs: Vec<usize>,
    /// How long its execution took alone.
    pub ns: f64,
    /// How long it took to add its result to the block.
    pub commit_ns: f64,
    /// A plain transfer: not worth being executed ahead, so it takes its turn where results are committed.
    pub plain: bool,
}

/// A workload's blocks, traced.
#[derive(Debug)]
pub struct Trace {
    /// The transactions of each block.
    pub blocks: Vec<Vec<TracedTx>>,
    /// What a sequential execution needs beside its transactions: it collects the changes.
    pub tail_ns: f64,
}

impl Trace {
    /// Traces a workload.
    pub fn of(prepared: &Prepared) -> Result<Self, BenchError> {
        let mut blocks = prepared.blocks.iter().map(places).collect::<Result<Vec<_>, _>>()?;
        let mut best = f64::INFINITY;
        for _ in 0..RUNS {
            let mut whole = 0.0;
            for (block, traced) in prepared.blocks.iter().zip(&mut blocks) {
                time(block, traced)?;
                let list = block.transactions.iter().map(AsRef::as_ref).collect::<Vec<_>>();
                let started = Instant::now();
                let output = Sequential::new().execute(&block.context, &list, &block.state)?;
                whole += started.elapsed().as_nanos() as f64;
                drop(output);
            }
            best = best.min(whole);
        }
        let alone = blocks.iter().flatten().map(|tx| tx.ns + tx.commit_ns).sum::<f64>();
        Ok(Self { blocks, tail_ns: (best - alone).max(0.0) })
    }

    /// Time of a sequential execution.
    pub fn sequential_ns(&self) -> f64 {
        self.tail_ns + self.blocks.iter().flatten().map(|tx| tx.ns + tx.commit_ns).sum::<f64>()
    }

    /// How many times faster than sequential `workers` are, if every place that a transaction looks at costs
    /// `overhead_ns` when it is executed ahead. Results are committed, and plain transfers executed, one at a time.
    /// One worker alone does not execute ahead, and more stop doing so where it does not pay: then the block takes as
    /// long as one by one.
    pub fn predicted_ratio(&self, workers: usize, overhead_ns: f64) -> f64 {
        let time = |block: &Vec<TracedTx>| {
            let alone = block.iter().map(|tx| tx.ns + tx.commit_ns).sum::<f64>();
            let in_turn = block.iter().map(|tx| tx.commit_ns + if tx.plain { tx.ns } else { 0.0 }).sum::<f64>();
            if workers <= 1 { alone } else { schedule(block, workers, overhead_ns).max(in_turn).min(alone) }
        };
        self.sequential_ns() / (self.blocks.iter().map(time).sum::<f64>() + self.tail_ns)
    }

    /// Length of the longest chain of dependent transactions, by time, as a share of all: no number of workers gets
    /// below it.
    pub fn critical_share(&self) -> f64 {
        let longest = |block: &Vec<TracedTx>| {
            let mut done = Vec::with_capacity(block.len());
            for tx in block {
                let ready = tx.needs.iter().map(|need| done[*need]).fold(0.0, f64::max);
                done.push(ready + tx.ns + tx.commit_ns);
            }
            done.into_iter().fold(0.0, f64::max)
        };
        self.blocks.iter().map(longest).sum::<f64>() / (self.sequential_ns() - self.tail_ns)
    }
}

/// Runs the block once and notes what every transaction looks at and changes.
fn places(block: &PreparedBlock) -> Result<Vec<TracedTx>, BenchError> {
    let mut evm = evm(&block.context, &block.state, Checks::Block);
    let mut last_writer = HashMap::<Place, usize>::default();
    let mut traced = Vec::with_capacity(block.transactions.len());
    for (index, tx) in block.transactions.iter().enumerate() {
        let failed = |e: String| BenchError::Failed { number: block.context.number, index, why: e };
        let done = evm.transact(tx.env()).map_err(|e| failed(e.to_string()))?;
        let database = &mut evm.ctx.journaled_state.database;
        let to_code = tx.tx.kind().to().is_none_or(|to| block.state.basic(to).code_hash != KECCAK256_EMPTY);
        let mut tx = TracedTx { plain: !to_code, ..TracedTx::default() };
        for (address, account) in done.state.iter().filter(|(address, _)| **address != block.context.fee_recipient) {
            let before = database.basic(*address).map_err(|e| failed(e.to_string()))?;
            tx.reads.push(Place::Basic(*address));
            if Basic::from(&account.info) != before.as_ref().map(Basic::from).unwrap_or_default() {
                tx.writes.push(Place::Basic(*address));
            }
            for (index, slot) in &account.storage {
                tx.reads.push(Place::Slot(*address, *index));
                if slot.is_changed() {
                    tx.writes.push(Place::Slot(*address, *index));
                }
            }
        }
        let needs = tx.reads.iter().filter_map(|place| last_writer.get(place).copied()).collect::<BTreeSet<_>>();
        tx.needs = needs.into_iter().collect();
        (tx.ns, tx.commit_ns) = (f64::INFINITY, f64::INFINITY);
        last_writer.extend(tx.writes.iter().map(|place| (*place, index)));
        traced.push(tx);
        database.commit(done.state);
    }
    Ok(traced)
}

/// Runs the block once more and keeps the times that are shorter than those known.
fn time(block: &PreparedBlock, traced: &mut [TracedTx]) -> Result<(), BenchError> {
    let mut frontier = Frontier::new(&block.context, &block.state, false, traced.len());
    let mut evm = FrontierEvm::new(&block.context);
    let mut last = Instant::now();
    for (index, (tx, traced)) in block.transactions.iter().zip(traced).enumerate() {
        let executed = frontier.execute(&mut evm, tx)?.map_err(|reason| BenchError::Failed {
            number: block.context.number,
            index,
            why: reason.to_string(),
        })?;
        let done = Instant::now();
        frontier.commit(tx, executed)?;
        let now = Instant::now();
        traced.ns = traced.ns.min((done - last).as_nanos() as f64);
        traced.commit_ns = traced.commit_ns.min((now - done).as_nanos() as f64);
        last = now;
    }
    Ok(())
}

/// The overhead with which predictions for `workers` fit the measured ratios best, all workloads together: the sum of
/// the squared logarithms of predicted by measured is least. Zero if nothing was measured.
pub fn fitted_overhead(measured: &[(&Trace, f64)], workers: usize) -> f64 {
    let error = |overhead_ns: f64| {
        let one = |(trace, ratio): &(&Trace, f64)| (trace.predicted_ratio(workers, overhead_ns) / ratio).ln().powi(2);
        measured.iter().map(one).sum::<f64>()
    };
    if measured.is_empty() {
        return 0.0;
    }
    // The error falls to its least value and rises from there, so thirds can be thrown away.
    let (mut low, mut high) = (0.0, OVERHEAD_MAX_NS);
    for _ in 0..FIT_STEPS {
        let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if error(a) <= error(b) { high = b } else { low = a }
    }
    low
}

/// Time in which `workers` get the transactions done.
fn schedule(block: &[TracedTx], workers: usize, overhead_ns: f64) -> f64 {
    let mut open = block.iter().map(|tx| tx.needs.len()).collect::<Vec<_>>();
    let mut dependents = vec![Vec::new(); block.len()];
    for (index, tx) in block.iter().enumerate() {
        tx.needs.iter().for_each(|need| dependents[*need].push(index));
    }
    let mut ready = (0..block.len()).filter(|index| open[*index] == 0).map(Reverse).collect::<BinaryHeap<_>>();
    // Whole nanoseconds order well; the error is far below what is measured.
    let mut running = BinaryHeap::<Reverse<(u64, usize)>>::new();
    let mut now = 0;
    loop {
        while running.len() < workers
            && let Some(Reverse(index)) = ready.pop()
        {
            let tx = &block[index];
            let overhead = if tx.plain { 0.0 } else { overhead_ns * tx.reads.len() as f64 };
            let cost = tx.ns + tx.commit_ns + overhead;
            running.push(Reverse((now + cost as u64, index)));
        }
        let Some(Reverse((time, index))) = running.pop() else { return now as f64 };
        now = time;
        for dependent in &dependents[index] {
            open[*dependent] -= 1;
            if open[*dependent] == 0 {
                ready.push(Reverse(*dependent));
            }
        }
    }
}

/// A place that two transactions share although they concern channels of different shards and come from different
/// senders, and that one of them changed: it would make unrelated channels wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedPlace {
    /// What they share.
    pub place: Place,
    /// The one that changed it.
    pub writer: usize,
    /// The other.
    pub other: usize,
}

/// The first such place of a block, if there is one.
pub fn shared_between_groups(block: &[TracedTx], groups: &[Option<Group>]) -> Option<SharedPlace> {
    let mut touched = HashMap::<Place, Vec<usize>>::default();
    for (index, tx) in block.iter().enumerate() {
        tx.reads.iter().for_each(|place| touched.entry(*place).or_default().push(index));
    }
    for (writer, tx) in block.iter().enumerate() {
        for place in &tx.writes {
            let unrelated = |other: &&usize| match (groups[writer], groups[**other]) {
                (Some(a), Some(b)) => a.shard != b.shard && a.submitter != b.submitter,
                _ => false,
            };
            if let Some(other) = touched.get(place).and_then(|all| all.iter().find(unrelated)) {
                return Some(SharedPlace { place: *place, writer, other: *other });
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tx(ns: f64, needs: &[usize]) -> TracedTx {
        TracedTx {
            reads: vec![Place::Basic(Address::ZERO)],
            writes: Vec::new(),
            needs: needs.to_vec(),
            ns,
            commit_ns: 0.0,
            plain: false,
        }
    }

    #[test]
    fn predictions_stay_between_one_by_one_and_what_commits_allow() {
        let trace = |blocks| Trace { blocks, tail_ns: 0.0 };
        let commits = TracedTx { commit_ns: 10.0, ..tx(30.0, &[]) };
        let plain = TracedTx { plain: true, ..tx(10.0, &[]) };
        for (what, block, workers, overhead, expected) in [
            ("free ones share the workers", vec![tx(10.0, &[]); 8], 4, 0.0, 4.0),
            ("commits take turns", vec![commits; 100], 32, 0.0, 4.0),
            ("plain transfers take turns", vec![plain; 8], 4, 0.0, 1.0),
            ("overhead above the gain is not spent", vec![tx(10.0, &[]); 8], 2, 50.0, 1.0),
            ("one worker spends none", vec![tx(10.0, &[]); 8], 1, 50.0, 1.0),
        ] {
            assert_eq!(trace(vec![block]).predicted_ratio(workers, overhead), expected, "{what}");
        }
        assert_eq!(fitted_overhead(&[], 2), 0.0);
        let free = trace(vec![vec![tx(10.0, &[]); 8]]);
        let fitted = fitted_overhead(&[(&free, free.predicted_ratio(2, 3.0))], 2);
        assert!((fitted - 3.0).abs() < 0.1, "{fitted}");
    }

    #[test]
    fn schedules_are_those_worked_out_by_hand() {
        let free = vec![tx(10.0, &[]); 6];
        let chain = (0..6).map(|i| if i == 0 { tx(10.0, &[]) } else { tx(10.0, &[i - 1]) }).collect::<Vec<_>>();
        // The long one comes last and nobody can help with it.
        let late = vec![tx(10.0, &[]), tx(10.0, &[]), tx(30.0, &[0])];
        for (block, workers, overhead, expected) in [
            (&free, 1, 0.0, 60.0),
            (&free, 2, 0.0, 30.0),
            (&free, 4, 0.0, 20.0),
            (&free, 32, 0.0, 10.0),
            (&free, 2, 5.0, 45.0),
            (&chain, 1, 0.0, 60.0),
            (&chain, 8, 0.0, 60.0),
            (&late, 2, 0.0, 40.0),
        ] {
            assert_eq!(schedule(block, workers, overhead), expected, "{workers} workers, {overhead} ns");
        }
        assert_eq!(schedule(&[], 2, 0.0), 0.0);
    }
}
