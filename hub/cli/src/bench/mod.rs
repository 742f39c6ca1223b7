//! `payhub bench`: load on a hub of its own, as members make it, from another process over gRPC, with the store on a
//! disk.
//!
//! Three phases a workload. *Peak*: every payer keeps a window of frames waiting, and the hub is never idle. *Half*: an
//! open loop at half of that rate, latencies counted from the time at which a frame should have left, whether or not it
//! could ([coordinated omission](https://www.hdrhistogram.org) hides nothing). *Lone*: one payer, one frame at a time.
//! Then the books of all members and of the hub are compared, and at the very end every account is closed and the
//! ledger's payouts are compared as well. What does not reconcile fails the run.

mod journal;
mod machine;
mod peer;
mod report;
mod stage;
mod svg;
mod tally;
mod workload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::{AccountId, Amount, ChannelId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use self::machine::Machine;
use self::peer::{Account, Facts, Order, Peer};
use self::report::{HalfRate, Lone, Report, WorkloadReport};
use self::stage::{Cast, Place, Stage, own_cpu_s};
use self::tally::{Latency, Tally};
use self::workload::{FrameLen, Payers, Shape, WIDE_CLIENTS, Workload};
use crate::args;
use crate::failure::{Code, Failure};
use crate::output::Output;

/// Before anything is measured, part of the time that is measured after it.
const WARM_UP: f64 = 0.25;
/// The phases beside the peak, as parts of its time.
const HALF_PHASE: f64 = 0.5;
/// See [`HALF_PHASE`].
const LONE_PHASE: f64 = 0.25;
/// How long answers and credits under way may take to come in.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(5);
/// The shortest pause of the pacer: what falls due meanwhile leaves together.
const PACE: Duration = Duration::from_micros(200);

/// Everybody under load.
struct Load {
    stage: Stage,
    facts: Arc<Facts>,
    tally: Arc<Tally>,
    orders: Vec<mpsc::UnboundedSender<Order>>,
    peers: JoinSet<()>,
    /// How many of them pay, where a workload does not say.
    clients: usize,
}

/// Counters at a time.
struct Instantaneous {
    at: Instant,
    payments: u64,
    flush: u64,
    hub_cpu_s: f64,
    own_cpu_s: f64,
}

/// What a phase came to.
struct Phase {
    seconds: f64,
    payments: u64,
    first_flush: u64,
    last_flush: u64,
    hub_cpu_s: f64,
    own_cpu_s: f64,
}

/// Measures and says what was found; fails if the books do not reconcile.
pub async fn run(args: args::Bench, out: Output) -> Result<(), Failure> {
    let measured = async {
        let report = measure(&args, out).await?;
        say(&args, &report, out)?;
        check(&report)
    };
    tokio::select! {
        result = measured => result,
        // Dropping the measurement ends its children.
        () = crate::until_stopped() => Err(Failure::other("stopped before the end")),
    }
}

async fn measure(args: &args::Bench, out: Output) -> Result<Report, Failure> {
    let usage = |what: String| Failure::usage(what, "see `payhub bench --help`");
    let mut workloads = args.workload.iter().map(|name| name.parse()).collect::<Result<Vec<_>, _>>().map_err(usage)?;
    if workloads.is_empty() {
        workloads.extend(Workload::ALL);
    }
    workloads.sort_unstable();
    workloads.dedup();
    let place = Place::new(args.data_dir.as_deref(), out)?;
    let waiting = out.spinner("measuring the machine");
    let conditions = report::Conditions::now();
    let machine = Machine::measure(place.dir()).await?;
    waiting.finish_and_clear();
    let mut stage = Stage::start(place).await?;
    let wide = workloads.iter().any(|workload| workload.shape().payers == Payers::Wide);
    let clients = if wide { WIDE_CLIENTS.max(args.clients.into()) } else { args.clients.into() };
    let bar = out.progress(clients as u64, "opening channels");
    let cast = stage.cast(clients, &bar).await?;
    bar.finish_and_clear();
    let mut load = Load::begin(stage, cast, args.clients.into()).await?;
    let mut reports = Vec::new();
    for workload in workloads {
        let spinner = out.spinner(workload.name());
        reports.push(load.measure(workload, args, &machine).await?);
        spinner.finish_and_clear();
    }
    let waiting = out.spinner("closing all channels");
    let settled = load.end().await?;
    waiting.finish_and_clear();
    Ok(Report { conditions, machine, seconds: args.seconds, workloads: reports, settled })
}

fn say(args: &args::Bench, report: &Report, out: Output) -> Result<(), Failure> {
    out.say(report.conditions());
    if cfg!(debug_assertions) {
        out.say("This build is not optimised, its numbers are worth nothing: cargo build --release");
    }
    out.say(report.machine_line());
    out.table(&report::HEAD, report.rows());
    out.table(&report::LIMIT_HEAD, report.limit_rows());
    if let Some(file) = &args.svg {
        std::fs::write(file, svg::chart(report))?;
        out.say(format!("chart: {}", file.display()));
    }
    match &args.markdown {
        Some(file) if file.as_os_str() == "-" => out.say(report.markdown()),
        Some(file) => std::fs::write(file, report.markdown())?,
        None => {}
    }
    out.object(&serde_json::to_value(report).map_err(|e| Failure::other(format!("the report is no JSON: {e}")))?);
    Ok(())
}

fn check(report: &Report) -> Result<(), Failure> {
    let wrong: Vec<&str> = report.workloads.iter().filter(|w| !w.reconciled).map(|w| w.name.name()).collect();
    let fix = "this is a bug; please report it with the output";
    if !wrong.is_empty() {
        let what = format!("members and hub disagree after {}", wrong.join(", "));
        return Err(Failure::new(Code::Other, "DOES_NOT_RECONCILE", what, fix));
    }
    if !report.settled.reconciled {
        let what = "the ledger paid out something else than the members' books say";
        return Err(Failure::new(Code::Other, "DOES_NOT_RECONCILE", what, fix));
    }
    Ok(())
}

// ---- phases --------------------------------------------------------------------------------------------------------

impl Load {
    /// Connects everybody.
    async fn begin(stage: Stage, cast: Cast, clients: usize) -> Result<Self, Failure> {
        let Cast { facts, keys } = cast;
        let (facts, tally) = (Arc::new(facts), Arc::new(Tally::new()));
        let (mut peers, mut orders) = (JoinSet::new(), Vec::new());
        for (me, key) in keys.into_iter().enumerate() {
            let (peer, inbound) = Peer::connect(facts.clone(), tally.clone(), me, key, stage.connection()?).await?;
            let (order, inbox) = mpsc::unbounded_channel();
            orders.push(order);
            peers.spawn(peer.run(inbound, inbox));
        }
        Ok(Load { stage, facts, tally, orders, peers, clients })
    }

    async fn measure(
        &mut self,
        workload: Workload,
        args: &args::Bench,
        machine: &Machine,
    ) -> Result<WorkloadReport, Failure> {
        let (shape, seconds) = (workload.shape(), args.seconds as f64);
        let payers = self.payers(shape);
        let refused = self.tally.payments_refused();
        let (phase, latency) = match args.rate {
            Some(rate) => self.open_loop(shape, rate as f64, seconds).await?,
            None => {
                let window = args.window.map_or((shape.in_flight / (payers * shape.lanes)).max(1), usize::from);
                self.closed_loop(shape, payers, window, seconds).await?
            }
        };
        let rate = phase.payments as f64 / phase.seconds;
        let half_rate = match args.rate {
            Some(_) => None,
            None => {
                let (_, latency) = self.open_loop(shape, rate / 2.0, seconds * HALF_PHASE).await?;
                Some(HalfRate { rate: (rate / 2.0).round(), latency: latency.into() })
            }
        };
        let lone = Shape { lanes: 1, frame: lone_frame(shape.frame), ..shape };
        let (_, lone) = self.closed_loop(lone, 1, 1, seconds * LONE_PHASE).await?;
        let reconciled = self.reconciles().await?;
        let journal_bytes = self.stage.journal_bytes(phase.first_flush, phase.last_flush)?;
        let (limit, formula) = workload.limit(machine);
        let per_payment = |value: f64| value / (phase.payments.max(1)) as f64;
        Ok(WorkloadReport {
            name: workload,
            clients: payers,
            payments: phase.payments,
            payments_per_s: rate.round(),
            latency: latency.into(),
            hub_cpu_us_per_payment: report::rounded(per_payment(phase.hub_cpu_s * 1e6), 3),
            client_cpu_us_per_payment: report::rounded(per_payment(phase.own_cpu_s * 1e6), 3),
            ratio_to_limit: report::rounded(rate / limit, 3),
            flushes_per_s: ((phase.last_flush - phase.first_flush) as f64 / phase.seconds).round(),
            journal_bytes_per_payment: report::rounded(per_payment(journal_bytes as f64), 1),
            reconciled,
            half_rate,
            lone: Lone::from(lone),
            limit_payments_per_s: limit.round(),
            limit_formula: formula,
            payments_refused: self.tally.payments_refused() - refused,
        })
    }

    fn payers(&self, shape: Shape) -> usize {
        match shape.payers {
            Payers::All => self.clients,
            Payers::Wide => self.orders.len(),
            Payers::One => 1,
        }
    }

    /// Payers that keep a window of frames waiting.
    async fn closed_loop(
        &mut self,
        shape: Shape,
        payers: usize,
        window: usize,
        seconds: f64,
    ) -> Result<(Phase, Latency), Failure> {
        self.tell(payers, || Order::Drive { shape, window })?;
        self.pass(seconds * WARM_UP).await?;
        let begin = self.begin_phase().await?;
        self.pass(seconds).await?;
        let phase = self.end_phase(begin).await?;
        self.tell(payers, || Order::Stop)?;
        self.settle().await?;
        Ok((phase, self.tally.end()))
    }

    /// Payers that pay at a fixed rate, whatever the hub does.
    async fn open_loop(&mut self, shape: Shape, rate: f64, seconds: f64) -> Result<(Phase, Latency), Failure> {
        let payers = self.payers(shape);
        self.tell(payers, || Order::Await { shape })?;
        let (orders, tally) = (self.orders[..payers].to_vec(), self.tally.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let frames_per_s = (rate / shape.frame.mean()).max(1.0);
        let pacer = std::thread::Builder::new().name("pacer".to_owned());
        let pacer = pacer.spawn(move || pace(&orders, &tally, frames_per_s, &stopped))?;
        // Whatever happens, the pacer must end.
        let measured = async {
            self.pass(seconds * WARM_UP).await?;
            let begin = self.begin_phase().await?;
            self.pass(seconds).await?;
            self.end_phase(begin).await
        };
        let phase = measured.await;
        stop.store(true, Ordering::Relaxed);
        pacer.join().map_err(|_| Failure::other("the pacer panicked"))?;
        let phase = phase?;
        self.settle().await?;
        self.tell(payers, || Order::Stop)?;
        Ok((phase, self.tally.end()))
    }

    fn tell(&self, payers: usize, order: impl Fn() -> Order) -> Result<(), Failure> {
        // One whose task has ended left a fault behind, which tells more.
        self.orders[..payers].iter().for_each(|peer| drop(peer.send(order())));
        Ok(())
    }

    async fn begin_phase(&mut self) -> Result<Instantaneous, Failure> {
        let now = self.now().await?;
        self.tally.begin();
        Ok(now)
    }

    async fn end_phase(&mut self, begin: Instantaneous) -> Result<Phase, Failure> {
        let end = self.now().await?;
        Ok(Phase {
            seconds: (end.at - begin.at).as_secs_f64(),
            payments: end.payments - begin.payments,
            first_flush: begin.flush,
            last_flush: end.flush,
            hub_cpu_s: end.hub_cpu_s - begin.hub_cpu_s,
            own_cpu_s: end.own_cpu_s - begin.own_cpu_s,
        })
    }

    async fn now(&mut self) -> Result<Instantaneous, Failure> {
        let hub = self.stage.hub_figures().await?;
        Ok(Instantaneous {
            at: Instant::now(),
            payments: self.tally.payments(),
            flush: hub.flush,
            hub_cpu_s: hub.cpu_s,
            own_cpu_s: own_cpu_s(),
        })
    }

    async fn pass(&self, seconds: f64) -> Result<(), Failure> {
        self.tally.pass(Duration::from_secs_f64(seconds)).await.map_err(Failure::other)
    }

    /// Waits until everything was answered and credited.
    async fn settle(&mut self) -> Result<(), Failure> {
        let until = Instant::now() + SETTLE_PATIENCE;
        // Who answers this has obeyed every order before it: nobody signs one frame more between two answers.
        self.accounts().await?;
        while self.tally.waiting() > 0 {
            if Instant::now() > until {
                return Err(Failure::other(format!("{} frames are not answered", self.tally.waiting())));
            }
            self.pass(POLL.as_secs_f64()).await?;
        }
        loop {
            let (paid, to_hub) =
                self.accounts().await?.iter().fold((0, 0), |(p, h), a| (p + a.paid.get(), h + a.to_hub.get()));
            if paid - to_hub == u128::from(self.tally.units_credited()) {
                return Ok(());
            }
            if Instant::now() > until {
                let credited = self.tally.units_credited();
                return Err(Failure::other(format!("of {paid} paid, {to_hub} to the hub, {credited} were credited")));
            }
            self.pass(POLL.as_secs_f64()).await?;
        }
    }
}

/// Tells payers in turn that a frame is due.
fn pace(payers: &[mpsc::UnboundedSender<Order>], tally: &Tally, frames_per_s: f64, stop: &AtomicBool) {
    let began = Instant::now();
    let mut frames = 0u64;
    while !stop.load(Ordering::Relaxed) {
        loop {
            let due = began + Duration::from_secs_f64(frames as f64 / frames_per_s);
            if due > Instant::now() {
                break;
            }
            tally.waits();
            let payer = usize::try_from(frames % payers.len() as u64).unwrap_or_default();
            if payers[payer].send(Order::Due(due)).is_err() {
                return;
            }
            frames += 1;
        }
        std::thread::sleep(PACE);
    }
}

/// A lone payer of mixed frames pays one by one, as people do.
fn lone_frame(frame: FrameLen) -> FrameLen {
    match frame {
        FrameLen::Fixed(len) => FrameLen::Fixed(len),
        FrameLen::Mixed => FrameLen::Fixed(1),
        FrameLen::Ticks(_) => FrameLen::Ticks(1),
    }
}

// ---- books ---------------------------------------------------------------------------------------------------------

impl Load {
    async fn accounts(&self) -> Result<Vec<Account>, Failure> {
        let mut accounts = Vec::with_capacity(self.orders.len());
        for peer in &self.orders {
            let (reply, account) = oneshot::channel();
            let _ = peer.send(Order::Report(reply));
            match account.await {
                Ok(account) => accounts.push(account),
                // Its task ended and said why.
                Err(_) => {
                    self.pass(1.0).await?;
                    return Err(Failure::other("a member ended without a reason"));
                }
            }
        }
        Ok(accounts)
    }

    /// Whether the members' receipts and credits are the hub's books, account by account, and nothing was made or lost.
    async fn reconciles(&mut self) -> Result<bool, Failure> {
        let members = self.accounts().await?;
        let hub = self.stage.hub_sums(self.facts.asset).await?;
        let figures = self.stage.hub_figures().await?;
        let same = |a: &Account| hub.accounts.get(&a.channel).is_some_and(|books| *books == (a.paid, a.received));
        let each = members.len() == hub.accounts.len() && members.iter().all(same);
        let sum = |of: fn(&Account) -> Amount| members.iter().map(|a| of(a).get()).sum::<u128>();
        let (paid, received, to_hub) = (sum(|a| a.paid), sum(|a| a.received), sum(|a| a.to_hub));
        let conserved = paid == received + to_hub && to_hub == hub.income.get();
        let backed = hub.nets.and_then(|nets| u128::try_from(nets).ok()) == Some(hub.custody.get());
        let counted = figures.payments == self.tally.payments_made();
        if !(each && conserved && backed && counted) {
            tracing::error!(each, conserved, backed, counted, ?hub, ?members, "the books do not reconcile");
        }
        Ok(each && conserved && backed && counted)
    }

    /// Closes every account together with the hub, compares what the ledger paid out, and ends everything.
    async fn end(self) -> Result<report::Settled, Failure> {
        let (mut accounts, mut reconciled) = (0, true);
        let mut closing: Vec<(ChannelId, oneshot::Receiver<Amount>)> = Vec::new();
        for (peer, channel) in self.orders.iter().zip(&self.facts.channels) {
            let (reply, closed) = oneshot::channel();
            let _ = peer.send(Order::Close(reply));
            closing.push((*channel, closed));
        }
        for (channel, closed) in closing {
            let Ok(due) = closed.await else {
                self.pass(1.0).await?;
                return Err(Failure::other("a member ended without a reason"));
            };
            let paid_out = self.stage.paid_out(&AccountId { channel, asset: self.facts.asset }).await?;
            accounts += 1;
            reconciled &= paid_out == due;
        }
        let Load { stage, orders, mut peers, .. } = self;
        drop(orders);
        while peers.join_next().await.is_some() {}
        stage.stop().await?;
        Ok(report::Settled { accounts, reconciled })
    }
}
