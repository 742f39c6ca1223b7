//! Following the chain: filters that a client polls, and subscriptions over WebSocket.
//!
//! Neither keeps a queue. A follower is a [`Cursor`], the number of the next block to report, and reads blocks from the
//! chain when its client is ready, so that a slow client costs no memory. One that falls too far behind is ended with
//! the reason. Blocks that development mode takes back are reported again with `removed: true`, the newest first.
//!
//! Differences to other nodes: a log filter reports from its creation on (as geth does), older logs are in
//! `eth_getFilterLogs`; of pending transactions those are reported that arrive after the filter was made.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use alloy::rpc::types::{Filter, FilterBlockOption, Log as RpcLog, Transaction as RpcTransaction};
use alloy_primitives::{B128, B256, U128, hex};
use jsonrpsee::core::SubscriptionError;
use jsonrpsee::server::{IdProvider, PendingSubscriptionSink, SendTimeoutError, SubscriptionMessage, SubscriptionSink};
use jsonrpsee::types::{ErrorObjectOwned, Params, SubscriptionId};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast::{self, error::RecvError, error::TryRecvError};

use super::eth::{self, LOGS_MAX};
use super::{Node, RpcError};
use crate::Ledger;
use crate::block::Block;
use crate::chain::{ARRIVALS_KEPT, Revert};

/// Filters that exist at a time, those of all clients together.
const FILTERS_MAX: usize = 1_024;

/// A filter that is not asked for this long is removed (geth's value).
const FILTER_IDLE_MAX: Duration = Duration::from_secs(5 * 60);

/// Blocks that one `eth_getFilterChanges` looks at; the next one goes on from there.
const BLOCKS_PER_POLL_MAX: usize = 1_024;

/// Blocks read at a time, so that a follower holds few of them in memory.
const BLOCKS_AT_ONCE: usize = 16;

/// A subscriber that is further behind is dropped.
const SUBSCRIBER_BLOCKS_BEHIND_MAX: u64 = 16_384;

/// A subscriber whose connection takes nothing for this long is dropped.
const SUBSCRIBER_PATIENCE: Duration = Duration::from_secs(10);

/// The next block that a follower has not reported.
#[derive(Debug)]
struct Cursor {
    next: u64,
    reverts: broadcast::Receiver<Arc<Revert>>,
}

/// What happened to a block.
enum Step {
    Added(Arc<Block>),
    Removed(Arc<Block>),
}

impl Cursor {
    /// From the block after the head on.
    fn new(node: &Ledger) -> Self {
        // A revert is announced under the view's lock, so none comes between the two.
        let view = node.shared().view();
        Self { next: view.head().header.number + 1, reverts: node.shared().reverts.subscribe() }
    }

    /// What happened since, at most `limit` new blocks of it.
    fn advance(&mut self, node: &Ledger, limit: usize) -> Result<Vec<Step>, RpcError> {
        let mut steps = Vec::new();
        loop {
            let head = {
                let view = node.shared().view();
                self.take_reverts(&mut steps)?;
                view.head().header.number
            };
            while self.next <= head && steps.len() < limit {
                let block = node.shared().block(self.next)?;
                // A revert in between may have put another block there, or none.
                let Some(block) = block.filter(|_| self.reverts.is_empty()) else { break };
                steps.push(Step::Added(block));
                self.next += 1;
            }
            if self.reverts.is_empty() {
                return Ok(steps);
            }
        }
    }

    fn take_reverts(&mut self, steps: &mut Vec<Step>) -> Result<(), RpcError> {
        loop {
            match self.reverts.try_recv() {
                Ok(revert) => {
                    let reported = revert.gone.iter().rev().filter(|block| block.header.number < self.next);
                    steps.extend(reported.cloned().map(Step::Removed));
                    self.next = self.next.min(revert.to + 1);
                }
                Err(TryRecvError::Lagged(missed)) => {
                    let message = format!("{missed} reverts were missed: ask more often, and install a new filter");
                    return Err(RpcError::Lost(message));
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
            }
        }
    }

    /// Adds the logs of the next blocks. Returns whether there may be more.
    fn logs(&mut self, node: &Ledger, filter: &Filter, found: &mut Vec<RpcLog>) -> Result<bool, RpcError> {
        let steps = self.advance(node, BLOCKS_AT_ONCE)?;
        for step in &steps {
            let (block, removed) = match step {
                Step::Added(block) => (block, false),
                Step::Removed(block) => (block, true),
            };
            if in_range(filter, block.header.number) && filter.matches_bloom(block.header.logs_bloom) {
                let before = found.len();
                eth::collect_logs(block, filter, found);
                if removed {
                    found[before..].iter_mut().for_each(|log| log.removed = true);
                    found[before..].reverse();
                }
            }
        }
        Ok(!steps.is_empty())
    }
}

fn in_range(filter: &Filter, number: u64) -> bool {
    let number_of = |tag: Option<alloy::eips::BlockNumberOrTag>| tag.and_then(|tag| tag.as_number());
    match filter.block_option {
        FilterBlockOption::Range { from_block, to_block } => {
            number_of(from_block).is_none_or(|from| from <= number) && number_of(to_block).is_none_or(|to| number <= to)
        }
        FilterBlockOption::AtBlockHash(_) => false,
    }
}

/// What a filter reports.
#[derive(Debug)]
enum Kind {
    Blocks(Cursor),
    Logs(Box<Filter>, Cursor),
    Arrivals(broadcast::Receiver<B256>),
}

#[derive(Debug)]
struct Installed {
    kind: Arc<Mutex<Kind>>,
    used: Instant,
}

/// The installed filters. Their names are random, so that nobody takes what is another's.
#[derive(Debug, Default)]
pub struct Filters(Mutex<HashMap<U128, Installed>>);

/// The answer to `eth_getFilterChanges`.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Changes {
    /// Of blocks or transactions.
    Hashes(Vec<B256>),
    /// Of logs.
    Logs(Vec<RpcLog>),
}

impl Filters {
    /// A filter for blocks.
    pub fn blocks(&self, node: &Ledger) -> Result<U128, RpcError> {
        self.install(Kind::Blocks(Cursor::new(node)))
    }

    /// A filter for logs.
    pub fn logs(&self, node: &Ledger, filter: Filter) -> Result<U128, RpcError> {
        eth::check_filter(&filter)?;
        if matches!(filter.block_option, FilterBlockOption::AtBlockHash(_)) {
            let message = "a filter follows the chain: ask eth_getLogs for the logs of one block";
            return Err(RpcError::Parameter(message.to_owned()));
        }
        self.install(Kind::Logs(Box::new(filter), Cursor::new(node)))
    }

    /// A filter for transactions that begin to wait.
    pub fn arrivals(&self, node: &Ledger) -> Result<U128, RpcError> {
        self.install(Kind::Arrivals(node.shared().arrivals.subscribe()))
    }

    fn install(&self, kind: Kind) -> Result<U128, RpcError> {
        let mut filters = self.lock();
        filters.retain(|_, filter| filter.used.elapsed() < FILTER_IDLE_MAX);
        if filters.len() >= FILTERS_MAX {
            let message = format!("there are {FILTERS_MAX} filters: uninstall some, or subscribe over WebSocket");
            return Err(RpcError::Limit(message));
        }
        let id = U128::from_be_bytes(B128::random().0);
        filters.insert(id, Installed { kind: Arc::new(Mutex::new(kind)), used: Instant::now() });
        Ok(id)
    }

    /// Removes a filter. Returns whether it was there.
    pub fn uninstall(&self, id: U128) -> bool {
        self.lock().remove(&id).is_some()
    }

    /// What happened since the last time.
    pub fn changes(&self, node: &Ledger, id: U128) -> Result<Changes, RpcError> {
        let kind = self.find(id)?;
        let changes = poll(node, &mut kind.lock().unwrap_or_else(PoisonError::into_inner));
        if matches!(changes, Err(RpcError::Lost(_))) {
            self.uninstall(id);
        }
        changes
    }

    /// Everything a log filter matches, old logs too.
    pub fn all_logs(&self, node: &Ledger, id: U128) -> Result<Vec<RpcLog>, RpcError> {
        let kind = self.find(id)?;
        let filter = match &*kind.lock().unwrap_or_else(PoisonError::into_inner) {
            Kind::Logs(filter, _) => filter.clone(),
            Kind::Blocks(_) | Kind::Arrivals(_) => {
                return Err(RpcError::Parameter(format!("filter {id:#x} is not one for logs")));
            }
        };
        eth::logs(node, &filter)
    }

    fn find(&self, id: U128) -> Result<Arc<Mutex<Kind>>, RpcError> {
        let mut filters = self.lock();
        let found = filters.get_mut(&id).filter(|filter| filter.used.elapsed() < FILTER_IDLE_MAX);
        let found = found.ok_or(RpcError::NoFilter(id))?;
        found.used = Instant::now();
        Ok(found.kind.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<U128, Installed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn poll(node: &Ledger, kind: &mut Kind) -> Result<Changes, RpcError> {
    match kind {
        Kind::Blocks(cursor) => {
            let steps = cursor.advance(node, BLOCKS_PER_POLL_MAX)?;
            let hashes = steps.iter().filter_map(|step| match step {
                Step::Added(block) => Some(block.hash),
                Step::Removed(_) => None,
            });
            Ok(Changes::Hashes(hashes.collect()))
        }
        Kind::Logs(filter, cursor) => {
            let (mut found, mut looked_at) = (Vec::new(), 0);
            while found.len() < LOGS_MAX && looked_at < BLOCKS_PER_POLL_MAX && cursor.logs(node, filter, &mut found)? {
                looked_at += BLOCKS_AT_ONCE;
            }
            Ok(Changes::Logs(found))
        }
        Kind::Arrivals(arrivals) => {
            let mut hashes = Vec::new();
            loop {
                match arrivals.try_recv() {
                    Ok(hash) => hashes.push(hash),
                    Err(TryRecvError::Lagged(_)) => return Err(too_many_arrivals()),
                    Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(Changes::Hashes(hashes)),
                }
            }
        }
    }
}

fn too_many_arrivals() -> RpcError {
    RpcError::Lost(format!("more than {ARRIVALS_KEPT} transactions arrived since: ask more often, and start again"))
}

/// Names subscriptions as Ethereum tools expect them: hexadecimal, and nobody can guess another's.
#[derive(Debug, Clone, Copy)]
pub struct SubscriptionIds;

impl IdProvider for SubscriptionIds {
    fn next_id(&self) -> SubscriptionId<'static> {
        hex::encode_prefixed(B128::random()).into()
    }
}

/// What a subscriber wants.
enum Subject {
    Heads,
    Logs(Box<Filter>),
    Arrivals { full: bool },
}

/// Serves one `eth_subscribe` until the subscriber leaves or is dropped.
pub async fn subscribe(
    params: Params<'static>,
    pending: PendingSubscriptionSink,
    node: Arc<Node>,
) -> Result<(), SubscriptionError> {
    let node = node.ledger.clone();
    let subject = match subject(&params) {
        Ok(subject) => subject,
        Err(error) => {
            pending.reject(error).await;
            return Ok(());
        }
    };
    // Before the answer: what happens after the client knows that it is subscribed is reported.
    let (cursor, arrivals) = (Cursor::new(&node), node.shared().arrivals.subscribe());
    let Ok(sink) = pending.accept().await else { return Ok(()) };
    let ended = match subject {
        Subject::Heads => follow_blocks(&node, cursor, None, &sink).await,
        Subject::Logs(filter) => follow_blocks(&node, cursor, Some(filter), &sink).await,
        Subject::Arrivals { full } => follow_arrivals(&node, arrivals, full, &sink).await,
    };
    match ended {
        Ok(()) => Ok(()),
        Err(why) => {
            tracing::debug!(%why, "a subscriber was dropped");
            Err(ErrorObjectOwned::from(why).message().into())
        }
    }
}

fn subject(params: &Params<'_>) -> Result<Subject, ErrorObjectOwned> {
    let mut params = params.sequence();
    let (kind, options): (String, _) = (params.next()?, params.optional_next::<Value>()?);
    let wrong = |what: &str| RpcError::Parameter(format!("the options of `{kind}` are wrong: {what}"));
    match (kind.as_str(), options) {
        ("newHeads", _) => Ok(Subject::Heads),
        ("logs", None) => Ok(Subject::Logs(Box::default())),
        ("logs", Some(options)) => {
            let filter: Filter = serde_json::from_value(options).map_err(|e| wrong(&e.to_string()))?;
            eth::check_filter(&filter)?;
            Ok(Subject::Logs(Box::new(filter)))
        }
        ("newPendingTransactions", None) => Ok(Subject::Arrivals { full: false }),
        ("newPendingTransactions", Some(Value::Bool(full))) => Ok(Subject::Arrivals { full }),
        ("newPendingTransactions", Some(_)) => Err(wrong("only true or false can follow").into()),
        (other, _) => {
            let message = format!("there is no subscription `{other}`: use newHeads, logs or newPendingTransactions");
            Err(RpcError::Parameter(message).into())
        }
    }
}

async fn follow_blocks(
    node: &Ledger,
    mut cursor: Cursor,
    filter: Option<Box<Filter>>,
    sink: &SubscriptionSink,
) -> Result<(), RpcError> {
    let mut heads = node.heads();
    heads.mark_changed();
    loop {
        tokio::select! {
            () = sink.closed() => return Ok(()),
            changed = heads.changed() => if changed.is_err() { return Ok(()) },
        }
        loop {
            let behind = (*heads.borrow() + 1).saturating_sub(cursor.next);
            if behind > SUBSCRIBER_BLOCKS_BEHIND_MAX {
                return Err(RpcError::Lost(format!("the subscriber is {behind} blocks behind: subscribe again")));
            }
            // Old blocks are read from disk.
            let (node, wanted) = (node.clone(), filter.clone());
            let read = tokio::task::spawn_blocking(move || {
                let found = match wanted {
                    None => heads_after(&mut cursor, &node),
                    Some(filter) => logs_after(&mut cursor, &node, &filter),
                };
                (cursor, found)
            });
            let (back, found) = read.await.map_err(|e| RpcError::Failed(e.to_string()))?;
            cursor = back;
            let (messages, more) = found?;
            for message in &messages {
                if !send(sink, message).await? {
                    return Ok(());
                }
            }
            if !more {
                break;
            }
        }
    }
}

/// What is sent next, and whether there may be more.
type Found = Result<(Vec<Value>, bool), RpcError>;

fn heads_after(cursor: &mut Cursor, node: &Ledger) -> Found {
    let steps = cursor.advance(node, BLOCKS_AT_ONCE)?;
    let added = steps.iter().filter_map(|step| match step {
        Step::Added(block) => Some(json(&eth::rpc_header(block))),
        Step::Removed(_) => None,
    });
    Ok((added.collect(), !steps.is_empty()))
}

fn logs_after(cursor: &mut Cursor, node: &Ledger, filter: &Filter) -> Found {
    let mut found = Vec::new();
    let more = cursor.logs(node, filter, &mut found)?;
    Ok((found.iter().map(json).collect(), more))
}

async fn follow_arrivals(
    node: &Ledger,
    mut arrivals: broadcast::Receiver<B256>,
    full: bool,
    sink: &SubscriptionSink,
) -> Result<(), RpcError> {
    loop {
        let arrived = tokio::select! {
            () = sink.closed() => return Ok(()),
            arrived = arrivals.recv() => arrived,
        };
        let message = match arrived {
            Ok(hash) if full => match eth::waiting_transaction(node, hash)? {
                Some(transaction) => json::<RpcTransaction>(&transaction),
                None => continue,
            },
            Ok(hash) => json(&hash),
            Err(RecvError::Lagged(_)) => return Err(too_many_arrivals()),
            Err(RecvError::Closed) => return Ok(()),
        };
        if !send(sink, &message).await? {
            return Ok(());
        }
    }
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("answers have no keys but strings")
}

/// Sends a notification. Returns whether the subscriber is still there.
async fn send(sink: &SubscriptionSink, message: &Value) -> Result<bool, RpcError> {
    let message = SubscriptionMessage::new(sink.method_name(), sink.subscription_id(), message);
    let message = message.map_err(|e| RpcError::Failed(e.to_string()))?;
    match sink.send_timeout(message, SUBSCRIBER_PATIENCE).await {
        Ok(()) => Ok(true),
        Err(SendTimeoutError::Closed(_)) => Ok(false),
        Err(SendTimeoutError::Timeout(_)) => {
            let patience_s = SUBSCRIBER_PATIENCE.as_secs();
            Err(RpcError::Lost(format!("the subscriber took nothing for {patience_s} s: read faster, subscribe again")))
        }
    }
}
