//! A member's session: one connection, two halves.
//!
//! The reader takes messages in order, checks form and signatures, and hands frames to the sequencer. The writer turns
//! what the committer reports into messages. A slow member holds up his own halves and nobody else: his frames stop
//! being read, his answers wait in places that were kept for them, and his credits wait in the store.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::FutureExt;
use proto::books::{Ask, Credit, Delivery, Refusal};
use proto::keys::{PublicKey, Scheme};
use proto::stream::{Chain, LaneVoucher, Revealed, StreamError};
use proto::typed::{Login, server_id};
use proto::wire::v1::{client_message, hub_message};
use proto::wire::{self, v1};
use proto::{AccountId, Asset, ChannelId, ChannelTerms, Signed};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Code, Status, Streaming};

use crate::core::{Core, Token, random, unix_time_s};
use crate::flushed::Flushed;
use crate::limits::{
    CHAINS_MAX, HANDSHAKE_DEADLINE, HELLO_ACCOUNTS_MAX, IN_FLIGHT_MAX, PAGE_BYTES_MAX, PAGE_FLUSHES_MAX, TICKS_AT_ONCE,
    WINDOW_MAX, WINDOW_START, WRONG_WORDS_MAX,
};
use crate::link::{Event, Link, Welcomed};
use crate::rows::{Rows, RowsError};
use crate::sequencer::{Command, member_key, refused};
use crate::status;

type Outbox = mpsc::Sender<Result<v1::HubMessage, Status>>;

/// Why a session ends from this side.
enum End {
    /// The member or his connection is gone.
    Gone,
    /// He is told why.
    Farewell { reason: &'static str, message: String },
    /// The call fails with a status.
    Failed(Box<Status>),
}

/// Who is at the other end.
struct Member {
    channel: ChannelId,
    key: PublicKey,
    seen: BTreeMap<Asset, u64>,
}

/// What the halves share.
struct Shared {
    in_flight: Semaphore,
    window: AtomicU32,
    opened: Notify,
}

/// Runs a session until one side ends it.
pub(crate) async fn run(
    core: Arc<Core>,
    mut inbound: Streaming<v1::ClientMessage>,
    outbox: Outbox,
    greeting: OwnedSemaphorePermit,
) {
    let ended = core.ended.clone();
    let mut place = None;
    let served = async {
        let (member, hello) = match tokio::time::timeout(HANDSHAKE_DEADLINE, greet(&core, &mut inbound, &outbox)).await
        {
            Ok(greeted) => greeted?,
            Err(_) => return Err(End::Failed(Box::new(status::late()))),
        };
        let free = core.sessions.clone().try_acquire_owned();
        let full = |_| End::Failed(Box::new(status::exhausted("the hub serves as many sessions as it can; try again")));
        place = Some(free.map_err(full)?);
        drop(greeting);
        serve(&core, inbound, &outbox, member, hello).await
    };
    let end = tokio::select! {
        end = served => end.err(),
        () = ended.cancelled() => Some(End::Failed(Box::new(status::ended()))),
    };
    let last = match end {
        None | Some(End::Gone) => None,
        Some(End::Farewell { reason, message }) => {
            let farewell = v1::Farewell { reason: reason.to_owned(), message };
            Some(Ok(message_of(hub_message::Kind::Farewell(farewell))))
        }
        Some(End::Failed(status)) => Some(Err(*status)),
    };
    if let Some(last) = last {
        // If it finds no place at once, the member is not reading; he learns it from the end of the stream.
        let _ = outbox.try_send(last);
    }
    drop(place);
}

// ---- hello ---------------------------------------------------------------------------------------------------------

/// What a hello asks for besides the session.
struct Greeting {
    newest_batch: Option<u64>,
    forked: Option<u64>,
    name: String,
}

async fn greet(
    core: &Arc<Core>,
    inbound: &mut Streaming<v1::ClientMessage>,
    outbox: &Outbox,
) -> Result<(Member, Greeting), End> {
    let nonce = random();
    let expires = unix_time_s().saturating_add(HANDSHAKE_DEADLINE.as_secs());
    let challenge = v1::Challenge { nonce: wire::bytes_of(nonce), expires };
    send(outbox, hub_message::Kind::Challenge(challenge)).await?;
    let message = inbound.message().await.map_err(|_| End::Gone)?.ok_or(End::Gone)?;
    let Some(client_message::Kind::Hello(hello)) = message.kind else {
        return Err(refuse(Code::FailedPrecondition, "HELLO_FIRST", "the first message of a session is a hello"));
    };
    if hello.accounts.len() > HELLO_ACCOUNTS_MAX {
        return Err(refuse(Code::InvalidArgument, "MALFORMED", "a hello names at most 64 accounts"));
    }
    let channel = wire::read_channel("hello.channel_id", &hello.channel_id).map_err(malformed)?;
    let unknown = Refusal::UnknownChannel { channel };
    let rows = core.rows.clone();
    let terms = on_disk(core, move || rows.terms(channel)).await?;
    let terms = terms.ok_or_else(|| refuse(Code::NotFound, unknown.reason(), &unknown.to_string()))?;
    let key = member_key(&terms).ok_or_else(|| refuse(Code::NotFound, unknown.reason(), &unknown.to_string()))?;
    let hub_key = hub_key(&terms)
        .ok_or_else(|| refuse(Code::NotFound, unknown.reason(), "the channel names a hub key that does not exist"))?;
    let login = Login { channelId: channel.0, server: server_id(hub_key.bytes, &core.host), nonce, expires };
    let signature = wire::read_signature("hello.signature", key.scheme, &hello.signature).map_err(malformed)?;
    Signed::verify(&core.domain, &key, login, signature)
        .map_err(|e| refuse(Code::Unauthenticated, "BAD_SIGNATURE", &e.to_string()))?;
    let mut seen = BTreeMap::new();
    for account in &hello.accounts {
        seen.insert(wire::read_address("hello.accounts.asset", &account.asset).map_err(malformed)?, account.credits);
    }
    let (newest_batch, forked) = match &hello.newest_batch {
        None => (None, None),
        Some(message) => {
            let (flush, root) = wire::read_batch_seen(&core.domain, &hub_key, message).map_err(malformed)?;
            (Some(flush), check_history(core, flush, root).await?)
        }
    };
    Ok((Member { channel, key, seen }, Greeting { newest_batch, forked, name: hello.name }))
}

/// The flush, if this store has another one of that number than the hub once signed: it was rolled back and went on.
async fn check_history(core: &Arc<Core>, flush: u64, root: alloy_primitives::B256) -> Result<Option<u64>, End> {
    if flush == 0 || flush > *core.durable.borrow() {
        return Ok(None);
    }
    let rows = core.rows.clone();
    let flushed = on_disk(core, move || rows.flushed(flush)).await?;
    Ok((!flushed.roots().contains(&root)).then_some(flush))
}

// ---- the reader ----------------------------------------------------------------------------------------------------

/// Reads until the member is done (`Ok`) or the session must end.
async fn read(
    core: &Arc<Core>,
    mut inbound: Streaming<v1::ClientMessage>,
    link: &Arc<Link>,
    key: &PublicKey,
    shared: &Shared,
    mut chains: Chains,
) -> Result<(), End> {
    // What was read while more ticks were looked for.
    let mut next = None;
    loop {
        let message = match next.take() {
            Some(message) => message,
            None => inbound.message().await.map_err(|_| End::Gone)?,
        };
        let Some(message) = message else { return Ok(()) };
        let command = match message.kind {
            Some(client_message::Kind::Tick(tick)) => {
                shared.in_flight.acquire().await.map_err(|_| End::Gone)?.forget();
                let (asset, word) = wire::read_tick(&tick).map_err(bad_message)?;
                let mut run = chains.reveal(asset, &tick, word);
                // Ticks that have arrived together are verified one by one and decided as one: the last is worth them all.
                while run.revealed.is_ok() && run.ticks < TICKS_AT_ONCE {
                    let Some(message) = inbound.message().now_or_never() else { break };
                    let message = message.map_err(|_| End::Gone)?;
                    if !chains.extend(&mut run, &message, &shared.in_flight) {
                        next = Some(message);
                        break;
                    }
                }
                // An honest client knows the words of its chain; strangers to it must not have the hub hash for nothing.
                chains.wrong += u32::from(matches!(run.revealed, Err(StreamError::WrongWord { .. })));
                if chains.wrong > WRONG_WORDS_MAX {
                    let message = format!("{} words did not lead to their anchors", chains.wrong);
                    return Err(End::Farewell { reason: "BAD_PREIMAGE", message });
                }
                let TickRun { asset, lane, index, revealed, ticks } = run;
                let account = AccountId { channel: link.channel, asset };
                Command::Tick { link: link.clone(), account, lane, index, revealed, ticks }
            }
            Some(client_message::Kind::StreamOpening(opening)) => {
                shared.in_flight.acquire().await.map_err(|_| End::Gone)?.forget();
                check_opening(core, link, key, opening, &mut chains)?
            }
            Some(client_message::Kind::Fold(fold)) => {
                shared.in_flight.acquire().await.map_err(|_| End::Gone)?.forget();
                check_fold(core, link, key, fold)?
            }
            Some(client_message::Kind::Frame(frame)) => {
                let place = shared.in_flight.acquire().await.map_err(|_| End::Gone)?;
                place.forget();
                check_frame(core, link, key, frame)
            }
            Some(client_message::Kind::Ack(ack)) => {
                let ack = wire::read_ack(&core.domain, key, link.channel, &ack).map_err(bad_message)?;
                Command::Ack { ack }
            }
            Some(client_message::Kind::SettlementRequest(request)) => read_request(link, &request)?,
            Some(client_message::Kind::SettlementAnswer(answer)) => {
                let (asset, seq, signature) = wire::read_answer(key.scheme, &answer).map_err(bad_message)?;
                // A proposal that is declined just expires: its money stays reserved until then in any case.
                let Some(signature) = signature else { continue };
                let account = AccountId { channel: link.channel, asset };
                Command::Answer { link: link.clone(), account, seq, signature }
            }
            Some(client_message::Kind::Window(window)) => {
                let widen = |w: u32| Some(w.saturating_add(window.more).min(WINDOW_MAX));
                let _ = shared.window.fetch_update(Ordering::AcqRel, Ordering::Acquire, widen);
                shared.opened.notify_one();
                continue;
            }
            Some(client_message::Kind::DeliveryRequest(request)) => {
                find_delivery(core, link, &request).await?;
                continue;
            }
            Some(client_message::Kind::Hello(_)) | None => {
                let message = "a session takes one hello, and no message without content".to_owned();
                return Err(End::Farewell { reason: "MALFORMED", message });
            }
        };
        core.send(command).await.map_err(|_| End::Gone)?;
    }
}

/// Form and signature of a frame; a bad one keeps its place in the order of answers.
fn check_frame(core: &Core, link: &Arc<Link>, key: &PublicKey, frame: v1::Frame) -> Command {
    let (tag, lane, asset) =
        (frame.tag, frame.lane, wire::read_address("frame.asset", &frame.asset).unwrap_or_default());
    let account = AccountId { channel: link.channel, asset };
    let refuse =
        |refused: v1::Refused| Command::Refuse { link: link.clone(), refused: Box::new(refused), account, lane };
    let parts = match wire::read_frame(frame) {
        Ok(parts) => parts,
        Err(error) => {
            return refuse(v1::Refused {
                tag,
                reason: "MALFORMED".to_owned(),
                message: error.to_string(),
                retryable: false,
                retry_after_ms: 0,
                asset: wire::bytes_of(asset),
                lane: None,
            });
        }
    };
    match parts.verify(&core.domain, key, link.channel) {
        Ok(frame) => Command::Pay { link: link.clone(), tag, frame: frame.into() },
        Err(error) => refuse(refused(tag, asset, &Refusal::Frame(error), None)),
    }
}

/// Bounds and signature of an opening. Its words are checked from here on, whatever the books say to it.
fn check_opening(
    core: &Core,
    link: &Arc<Link>,
    key: &PublicKey,
    opening: v1::StreamOpening,
    chains: &mut Chains,
) -> Result<Command, End> {
    let parts = wire::read_opening(opening).map_err(bad_message)?;
    let (tag, asset, lane) = (parts.tag, parts.asset, parts.lane);
    match parts.verify(&core.domain, key, link.channel) {
        Ok(opening) => {
            chains.begin(asset, lane, opening.chain())?;
            Ok(Command::Open { link: link.clone(), tag, opening: Box::new(opening) })
        }
        Err(error) => Ok(refusal(link, tag, AccountId { channel: link.channel, asset }, lane, Refusal::Stream(error))),
    }
}

/// The signature of a fold.
fn check_fold(core: &Core, link: &Arc<Link>, key: &PublicKey, fold: v1::Fold) -> Result<Command, End> {
    let parts = wire::read_fold(fold).map_err(bad_message)?;
    let (tag, asset, lane) = (parts.tag, parts.asset, parts.lane);
    match parts.verify(&core.domain, key, link.channel) {
        Ok(fold) => Ok(Command::Fold { link: link.clone(), tag, fold: Box::new(fold) }),
        Err(error) => {
            let account = AccountId { channel: link.channel, asset };
            Ok(refusal(link, tag, account, lane, Refusal::Stream(StreamError::Key(error))))
        }
    }
}

fn refusal(link: &Arc<Link>, tag: u64, account: AccountId, lane: u32, refusal: Refusal) -> Command {
    let refused = Box::new(refused(tag, account.asset, &refusal, None));
    Command::Refuse { link: link.clone(), refused, account, lane }
}

/// How far each chain of the session was revealed.
#[derive(Default)]
struct Chains {
    reached: HashMap<(Asset, u32), Chain>,
    /// Words that were none of their chain.
    wrong: u32,
}

/// Ticks of one lane that arrived together: the highest index, and in how many messages they came.
struct TickRun {
    asset: Asset,
    lane: u32,
    index: u32,
    revealed: Result<Revealed, StreamError>,
    ticks: usize,
}

impl Chains {
    fn begin(&mut self, asset: Asset, lane: u32, chain: Chain) -> Result<(), End> {
        if self.reached.len() >= CHAINS_MAX && !self.reached.contains_key(&(asset, lane)) {
            let message = format!("a session keeps {CHAINS_MAX} streams; open another session");
            return Err(End::Farewell { reason: "TOO_MANY_STREAMS", message });
        }
        self.reached.insert((asset, lane), chain);
        Ok(())
    }

    /// Checks a word by as many hashes as there are new ticks.
    fn reveal(&mut self, asset: Asset, tick: &v1::Tick, word: alloy_primitives::B256) -> TickRun {
        let (lane, index) = (tick.lane, tick.index);
        let chain = self.reached.get_mut(&(asset, lane)).ok_or(StreamError::NoStream { lane });
        TickRun { asset, lane, index, revealed: chain.and_then(|chain| chain.advance(index, word)), ticks: 1 }
    }

    /// Adds a message to a run, if it is a good tick of the same lane and there is a place for it.
    fn extend(&mut self, run: &mut TickRun, message: &Option<v1::ClientMessage>, places: &Semaphore) -> bool {
        let Some(v1::ClientMessage { kind: Some(client_message::Kind::Tick(tick)) }) = message else { return false };
        let Ok((asset, word)) = wire::read_tick(tick) else { return false };
        let Some(chain) =
            self.reached.get_mut(&(asset, tick.lane)).filter(|_| (asset, tick.lane) == (run.asset, run.lane))
        else {
            return false;
        };
        let Ok(place) = places.try_acquire() else { return false };
        // A word that is refused is looked at again, on its own; the place is given back until then.
        let Ok(revealed) = chain.advance(tick.index, word) else { return false };
        place.forget();
        run.index = run.index.max(tick.index);
        run.revealed = Ok(revealed);
        run.ticks += 1;
        true
    }
}

/// What a payee acknowledged while this payer was away is told as if it came now.
async fn find_delivery(core: &Arc<Core>, link: &Arc<Link>, request: &v1::DeliveryRequest) -> Result<(), End> {
    let asset = wire::read_address("request.asset", &request.asset).map_err(bad_message)?;
    let channel = wire::read_channel("request.payee", &request.payee).map_err(bad_message)?;
    let (rows, payer, credit) = (core.rows.clone(), link.channel, request.credit);
    let found = on_disk(core, move || rows.delivery(payer, AccountId { channel, asset }, credit)).await?;
    if let Some(delivery) = found {
        link.tell(Event::Delivered(Box::new(delivery)));
    }
    Ok(())
}

fn read_request(link: &Arc<Link>, request: &v1::SettlementRequest) -> Result<Command, End> {
    let asset = wire::read_address("request.asset", &request.asset).map_err(bad_message)?;
    let ask = match request.close {
        true => Ask::Close,
        false => Ask::Withdraw(wire::read_amount("request.withdraw", &request.withdraw).map_err(bad_message)?),
    };
    let account = AccountId { channel: link.channel, asset };
    Ok(Command::Request { link: link.clone(), tag: request.tag, account, ask })
}

// ---- the writer ----------------------------------------------------------------------------------------------------

struct Writer<'a> {
    core: &'a Arc<Core>,
    outbox: &'a Outbox,
    link: &'a Arc<Link>,
    shared: &'a Shared,
    token: Token,
    /// The next credit to send of each account.
    next: BTreeMap<AccountId, u64>,
    /// What the member holds already.
    seen: BTreeMap<Asset, u64>,
    /// Accounts whose credits are read from the store.
    behind: BTreeSet<AccountId>,
}

async fn serve(
    core: &Arc<Core>,
    inbound: Streaming<v1::ClientMessage>,
    outbox: &Outbox,
    member: Member,
    greeting: Greeting,
) -> Result<(), End> {
    let (link, mut events) = Link::new(core.next_session(), member.channel);
    let shared = Shared {
        in_flight: Semaphore::new(IN_FLIGHT_MAX),
        window: AtomicU32::new(WINDOW_START),
        opened: Notify::new(),
    };
    let Greeting { newest_batch, forked, name } = greeting;
    let _goodbye = Goodbye { core: core.clone(), link: link.clone() };
    core.send(Command::Hello { link: link.clone(), newest_batch, forked, name }).await.map_err(|_| End::Gone)?;
    let mut writer = Writer {
        core,
        outbox,
        link: &link,
        shared: &shared,
        token: core.token(member.channel),
        next: BTreeMap::new(),
        seen: member.seen,
        behind: BTreeSet::new(),
    };
    // The session counts from the welcome on: nothing is read before the books took the hello.
    let Some(first) = events.recv().await else { return Err(End::Gone) };
    let mut chains = Chains::default();
    if let Event::Welcome(welcomed) = &first {
        for account in &welcomed.accounts {
            let streams = account.lanes.iter().filter_map(LaneVoucher::ticks);
            let streams = streams.map(|ticks| (ticks.opening().lane(), ticks.chain()));
            chains.reached.extend(streams.map(|(lane, chain)| ((account.account.asset, lane), chain)));
        }
    }
    writer.write(first).await?;
    let reader = read(core, inbound, &link, &member.key, &shared, chains);
    tokio::pin!(reader);
    let mut reading = true;
    loop {
        writer.catch_up().await?;
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => writer.write(event).await?,
                None => return Err(End::Gone),
            },
            () = shared.opened.notified() => {}
            read = &mut reader, if reading => {
                read?;
                reading = false;
            }
            () = outbox.closed() => return Err(End::Gone),
        }
        if !reading && shared.in_flight.available_permits() == IN_FLIGHT_MAX {
            return Ok(());
        }
    }
}

impl Writer<'_> {
    async fn write(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Accepted { flushed, asset, tags, ticks } => self.accepted(&flushed, asset, tags, ticks).await,
            Event::Opened { asset, tag } => {
                let opened = v1::StreamOpened { tag, asset: wire::bytes_of(asset) };
                send(self.outbox, hub_message::Kind::StreamOpened(opened)).await?;
                self.shared.in_flight.add_permits(1);
                Ok(())
            }
            Event::TicksRefused { refused, ticks } => {
                send(self.outbox, hub_message::Kind::TickRefused(*refused)).await?;
                self.shared.in_flight.add_permits(ticks);
                Ok(())
            }
            Event::TicksKnown { ticks } => {
                self.shared.in_flight.add_permits(ticks);
                Ok(())
            }
            Event::Again { flush, asset, tag } => {
                let rows = self.core.rows.clone();
                let flushed = match rows.recent(flush) {
                    Some(flushed) => flushed,
                    None => on_disk(self.core, move || rows.flushed(flush)).await?,
                };
                self.accepted(&flushed, asset, vec![tag], 0).await
            }
            Event::Refused(refused) => {
                send(self.outbox, hub_message::Kind::Refused(*refused)).await?;
                self.shared.in_flight.add_permits(1);
                Ok(())
            }
            Event::Credited { flushed, account } => self.credited(&flushed, account).await,
            Event::Welcome(welcome) => self.welcome(*welcome).await,
            Event::Delivered(delivery) => self.delivered(*delivery).await,
            Event::Message(message) => self.outbox.send(Ok(*message)).await.map_err(|_| End::Gone),
            Event::Farewell { reason, message } => Err(End::Farewell { reason, message }),
        }
    }

    async fn accepted(&self, flushed: &Flushed, asset: Asset, tags: Vec<u64>, ticks: usize) -> Result<(), End> {
        let places = tags.len() + ticks;
        let payer = AccountId { channel: self.link.channel, asset };
        let accepted = v1::Accepted {
            flush: flushed.number(),
            asset: wire::bytes_of(asset),
            tags,
            receipts: flushed.receipts(self.link.channel, asset).map(wire::receipt_message).collect(),
            ticks: flushed.ticks(payer).map(wire::ticks_accepted_message).collect(),
        };
        send(self.outbox, hub_message::Kind::Accepted(accepted)).await?;
        self.shared.in_flight.add_permits(places);
        Ok(())
    }

    async fn welcome(&mut self, welcome: Welcomed) -> Result<(), End> {
        let ids: Vec<AccountId> = welcome.accounts.iter().map(|a| a.account).collect();
        let rows = self.core.rows.clone();
        let read = ids.clone();
        let vouchers =
            on_disk(self.core, move || read.iter().map(|id| rows.voucher(*id)).collect::<Result<Vec<_>, _>>()).await?;
        let accounts = welcome.accounts.iter().zip(&vouchers).map(|(account, voucher)| {
            let asset = account.account.asset;
            wire::account_message(asset, &account.totals, &account.lanes, voucher.as_ref(), &account.kept)
        });
        let message =
            v1::Welcome { token: wire::bytes_of(self.token.secret), name: welcome.name, accounts: accounts.collect() };
        send(self.outbox, hub_message::Kind::Welcome(message)).await?;
        for id in ids {
            let next = self.first_credit(id);
            self.next.insert(id, next);
            self.behind.insert(id);
        }
        Ok(())
    }

    fn first_credit(&self, id: AccountId) -> u64 {
        self.seen.get(&id.asset).copied().unwrap_or_default().saturating_add(1)
    }

    async fn delivered(&self, delivery: Delivery) -> Result<(), End> {
        let Delivery { ack, credit, head_before, digests, .. } = delivery;
        let pages = digests.chunks(wire::DELIVERED_PAGE).count().max(1);
        for page in 0..pages {
            let from = page * wire::DELIVERED_PAGE;
            let to = digests.len().min(from + wire::DELIVERED_PAGE);
            let delivered = wire::Delivered {
                payee: ack.body().account().channel,
                ack: ack.clone(),
                credit,
                head_before,
                digests: digests[from..to].to_vec(),
                last_page: page + 1 == pages,
            };
            send(self.outbox, hub_message::Kind::Delivered(wire::delivered_message(&delivered))).await?;
        }
        Ok(())
    }

    /// Credits as they come, if the member has everything before them and is ready for more.
    async fn credited(&mut self, flushed: &Flushed, account: AccountId) -> Result<(), End> {
        let credits = flushed.credits(account);
        let (Some(first), Some(last)) = (credits.first(), credits.last()) else { return Ok(()) };
        let first_credit = self.first_credit(account);
        let next = self.next.entry(account).or_insert(first_credit);
        let in_order = *next == first.receipt.credit && !self.behind.contains(&account);
        if !in_order || !take_window(&self.shared.window) {
            self.behind.insert(account);
            return Ok(());
        }
        *next = last.receipt.credit.saturating_add(1);
        let message = v1::Credited {
            asset: wire::bytes_of(account.asset),
            credits: credits.iter().map(credit_message).collect(),
            voucher: flushed.voucher(account).map(wire::hub_voucher_message),
        };
        send(self.outbox, hub_message::Kind::Credited(message)).await
    }

    /// Sends one page of each account that is behind, as far as the window allows.
    async fn catch_up(&mut self) -> Result<(), End> {
        if self.link.take_behind() {
            self.behind.extend(self.next.keys().copied());
        }
        for account in std::mem::take(&mut self.behind) {
            if !take_window(&self.shared.window) {
                self.behind.insert(account);
                continue;
            }
            let first_credit = self.first_credit(account);
            let next = *self.next.entry(account).or_insert(first_credit);
            let rows = self.core.rows.clone();
            let Some(page) = on_disk(self.core, move || page(&rows, account, next)).await? else {
                self.shared.window.fetch_add(1, Ordering::AcqRel);
                continue;
            };
            self.next.insert(account, page.next);
            if page.message.voucher.is_none() {
                self.behind.insert(account);
                self.shared.opened.notify_one();
            }
            send(self.outbox, hub_message::Kind::Credited(page.message)).await?;
        }
        Ok(())
    }
}

struct Page {
    message: v1::Credited,
    next: u64,
}

/// The credits of an account from a number on, up to a page; the voucher is there if they reach it.
fn page(rows: &Rows, account: AccountId, mut next: u64) -> Result<Option<Page>, RowsError> {
    let Some(voucher) = rows.voucher(account)?.filter(|v| v.body().credits >= next) else { return Ok(None) };
    let newest = voucher.body().credits;
    let (mut credits, mut bytes) = (Vec::new(), 0);
    for _ in 0..PAGE_FLUSHES_MAX {
        if next > newest || bytes >= PAGE_BYTES_MAX {
            break;
        }
        let flush =
            rows.flush_of_credit(account, next)?.expect("every credit up to the voucher's stands in some flush");
        let flushed = rows.flushed(flush)?;
        let least = next;
        for credit in flushed.credits(account).iter().filter(|c| c.receipt.credit >= least) {
            bytes += 128 + credit.payments.iter().map(|(_, _, note)| 48 + note.len()).sum::<usize>();
            credits.push(credit_message(credit));
            next = credit.receipt.credit.saturating_add(1);
        }
    }
    let complete = next > newest;
    let voucher = complete.then(|| wire::hub_voucher_message(&voucher));
    let message = v1::Credited { asset: wire::bytes_of(account.asset), credits, voucher };
    Ok(Some(Page { message, next }))
}

/// A credit as its payee is told of it.
pub(crate) fn credit_message(credit: &Credit) -> v1::Credit {
    v1::Credit {
        number: credit.receipt.credit,
        payer: wire::bytes_of(credit.payer.0),
        amount: wire::amount_bytes(proto::Amount::new(credit.receipt.amount)),
        total: wire::amount_bytes(proto::Amount::new(credit.receipt.total)),
        payments: opening_message(credit),
    }
}

/// The payments of a credit: what its receipt opens to.
pub(crate) fn opening_message(credit: &Credit) -> Vec<v1::CreditedPayment> {
    // One allocation for all ids and amounts: they are parts of it.
    let mut words = Vec::with_capacity(32 * credit.payments.len());
    for (id, amount, _) in &credit.payments {
        words.extend_from_slice(id.as_slice());
        words.extend_from_slice(&amount.get().to_be_bytes());
    }
    let mut words = alloy_primitives::bytes::Bytes::from(words);
    let notes = credit.payments.iter().map(|(_, _, note)| note.0.clone());
    notes.map(|note| v1::CreditedPayment { id: words.split_to(16), amount: words.split_to(16), note }).collect()
}

/// Work on the disk, away from the threads that serve connections. A store that cannot be read ends the hub.
pub(crate) async fn read_rows<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce() -> Result<T, RowsError> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            core.alarm(format!("the store cannot be read: {error}"));
            Err(status::broken())
        }
        Err(_) => Err(status::broken()),
    }
}

async fn on_disk<T: Send + 'static>(
    core: &Arc<Core>,
    work: impl FnOnce() -> Result<T, RowsError> + Send + 'static,
) -> Result<T, End> {
    read_rows(core, work).await.map_err(|status| End::Failed(Box::new(status)))
}

/// Tells the sequencer that the session is over, however it ended.
struct Goodbye {
    core: Arc<Core>,
    link: Arc<Link>,
}

impl Drop for Goodbye {
    fn drop(&mut self) {
        let command = Command::Goodbye { link: self.link.clone() };
        let queue = self.core.queue.clone();
        if let Err(mpsc::error::TrySendError::Full(command)) = queue.try_send(command)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { queue.send(command).await });
        }
    }
}

fn take_window(window: &AtomicU32) -> bool {
    window.fetch_update(Ordering::AcqRel, Ordering::Acquire, |w| w.checked_sub(1)).is_ok()
}

async fn send(outbox: &Outbox, kind: hub_message::Kind) -> Result<(), End> {
    outbox.send(Ok(message_of(kind))).await.map_err(|_| End::Gone)
}

fn message_of(kind: hub_message::Kind) -> v1::HubMessage {
    v1::HubMessage { kind: Some(kind) }
}

fn hub_key(terms: &ChannelTerms) -> Option<PublicKey> {
    let scheme = Scheme::from_number(terms.hubScheme).ok()?;
    Some(PublicKey { scheme, bytes: terms.hubKey })
}

fn refuse(code: Code, reason: &str, message: &str) -> End {
    End::Failed(Box::new(status::refused(code, reason, message)))
}

fn malformed(error: wire::WireError) -> End {
    refuse(Code::InvalidArgument, "MALFORMED", &error.to_string())
}

fn bad_message(error: wire::WireError) -> End {
    End::Farewell { reason: "MALFORMED", message: error.to_string() }
}
