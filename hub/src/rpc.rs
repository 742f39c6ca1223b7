//! The services: what members and the operator call. They translate and authorise; they decide nothing.

use std::sync::Arc;

use futures::Stream;
use futures::stream::BoxStream;
use proto::books::{Ask, Books, Entry};
use proto::typed::Offer;
use proto::wire::v1::member_server::Member;
use proto::wire::v1::operator_server::Operator;
use proto::wire::{self, v1};
use proto::{AccountId, ChannelId, Scheme, Signed};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::core::{Core, unix_time_s};
use crate::flushed::Flushed;
use crate::limits::{EVENTS_OUTBOX_MAX, LIST_MAX, OFFER_VALIDITY_S, OUTBOX_MAX};
use crate::operations::Operations;
use crate::session::{self, credit_message, opening_message, read_rows};
use crate::status;

/// Events of one channel in one flush: a cursor is the flush and the event's place in it.
const EVENTS_PER_FLUSH: u64 = 1 << 20;

/// The members' service.
#[derive(Debug, Clone)]
pub(crate) struct MemberService(pub(crate) Arc<Core>);

/// The operator's service.
#[derive(Debug, Clone)]
pub(crate) struct OperatorService(pub(crate) Operations);

fn ended(_: crate::core::Ended) -> Status {
    status::ended()
}

#[tonic::async_trait]
impl Member for MemberService {
    async fn get_info(&self, _: Request<v1::GetInfoRequest>) -> Result<Response<v1::GetInfoResponse>, Status> {
        let core = &self.0;
        let policy = &core.policy;
        let assets = policy.assets.iter().map(|a| v1::AssetInfo {
            asset: wire::bytes_of(a.asset),
            symbol: a.symbol.clone(),
            decimals: u32::from(a.decimals),
            deposit_min: wire::amount_bytes(a.deposit_min),
            inbound_max: wire::amount_bytes(a.inbound_max),
            fee_flat: wire::amount_bytes(a.fee_flat),
            fee_ppm: a.fee_ppm,
        });
        Ok(Response::new(v1::GetInfoResponse {
            chain_id: core.domain.chain_id,
            adjudicator: wire::bytes_of(core.domain.adjudicator),
            genesis_hash: wire::bytes_of(core.genesis_hash),
            host: core.host.clone(),
            hub_account: wire::bytes_of(policy.hub),
            challenge_period_s: policy.challenge_period_s,
            confirmations: core.confirmations,
            offers: offers(core),
            assets: assets.collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    type SessionStream = ReceiverStream<Result<v1::HubMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::ClientMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let greeting = self.0.greetings.clone().try_acquire_owned();
        let greeting = greeting.map_err(|_| status::exhausted("too many are logging in at once; try again"))?;
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        tokio::spawn(session::run(self.0.clone(), request.into_inner(), outbox, greeting));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    type EventsStream = BoxStream<'static, Result<v1::Event, Status>>;

    async fn events(&self, request: Request<v1::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let request = request.into_inner();
        let channel = self.0.channel_of(&request.token).ok_or_else(status::bad_token)?;
        Ok(Response::new(Box::pin(events(self.0.clone(), channel, request))))
    }

    async fn get_payment(
        &self,
        request: Request<v1::GetPaymentRequest>,
    ) -> Result<Response<v1::GetPaymentResponse>, Status> {
        let request = request.into_inner();
        let payer = self.0.channel_of(&request.token).ok_or_else(status::bad_token)?;
        let id = wire::read_payment_id("id", &request.id).map_err(|e| status::malformed(&e))?;
        let (known, flushed) = loop {
            // What is accepted and not yet durable is neither known nor unknown: wait for it.
            self.0.barrier().await.map_err(ended)?;
            let durable = *self.0.durable.borrow();
            let rows = self.0.rows.clone();
            let found = read_rows(&self.0, move || match rows.payment(payer, id)? {
                // It was accepted after the wait.
                Some(known) if known.flush > durable => Ok(Some(None)),
                Some(known) => {
                    let flushed = rows.flushed(known.flush)?;
                    Ok(Some(Some((known, flushed))))
                }
                None => Ok(None),
            });
            match found.await? {
                None => return Ok(Response::new(v1::GetPaymentResponse::default())),
                Some(None) => {}
                Some(Some(found)) => break found,
            }
        };
        let credit = flushed.credit_of(payer, known.asset, known.payment.payee, id);
        Ok(Response::new(v1::GetPaymentResponse {
            known: true,
            payment: Some(wire::payment_message(&known.payment)),
            asset: wire::bytes_of(known.asset),
            flush: known.flush,
            receipt: credit.map(|(_, receipt)| wire::receipt_message(receipt)),
            opening: credit.map(|(credit, _)| opening_message(credit)).unwrap_or_default(),
        }))
    }

    async fn lookup(&self, request: Request<v1::LookupRequest>) -> Result<Response<v1::LookupResponse>, Status> {
        let name = request.into_inner().name;
        let wanted = name.clone();
        let found = self.0.query(move |books| {
            let id = books.named(&wanted)?;
            Some((id, books.channel(id)?.terms.member))
        });
        let unknown = || status::refused(Code::NotFound, "UNKNOWN_NAME", "nobody has that name; check its spelling");
        let (id, member) = found.await.map_err(ended)?.ok_or_else(unknown)?;
        // A name is told when it is durable.
        self.0.barrier().await.map_err(ended)?;
        Ok(Response::new(v1::LookupResponse { channel_id: wire::bytes_of(id.0), member: wire::bytes_of(member), name }))
    }
}

fn offers(core: &Core) -> Vec<v1::SignedOffer> {
    let policy = &core.policy;
    let expires = unix_time_s().saturating_add(OFFER_VALIDITY_S);
    let sign = |scheme: Scheme| {
        let key = core.rows.key(scheme)?;
        let offer = Offer {
            hub: policy.hub,
            hubKey: key.public().bytes,
            hubScheme: scheme.number(),
            challengePeriod: policy.challenge_period_s,
            expires,
        };
        Some(wire::offer_message(&Signed::sign(&core.domain, key, offer)))
    };
    policy.keys.iter().filter_map(|key| sign(key.scheme)).collect()
}

// ---- events --------------------------------------------------------------------------------------------------------

/// Everything that happened to a channel after a cursor, read from the store flush by flush.
fn events(
    core: Arc<Core>,
    channel: ChannelId,
    request: v1::EventsRequest,
) -> impl Stream<Item = Result<v1::Event, Status>> {
    let (outbox, pages) = mpsc::channel(EVENTS_OUTBOX_MAX);
    tokio::spawn(async move {
        let ended = core.ended.clone();
        tokio::select! {
            told = tell_events(&core, channel, &request, &outbox) => {
                if let Err(status) = told {
                    let _ = outbox.send(Err(status)).await;
                }
            }
            () = outbox.closed() => {}
            () = ended.cancelled() => {
                let _ = outbox.try_send(Err(status::ended()));
            }
        }
    });
    ReceiverStream::new(pages)
}

async fn tell_events(
    core: &Arc<Core>,
    channel: ChannelId,
    request: &v1::EventsRequest,
    outbox: &mpsc::Sender<Result<v1::Event, Status>>,
) -> Result<(), Status> {
    let mut durable = core.durable.clone();
    let mut cursor = request.after_cursor;
    loop {
        let newest = *durable.borrow_and_update();
        loop {
            let (rows, after) = (core.rows.clone(), cursor);
            let read = read_rows(core, move || {
                // The flush of the cursor itself may hold events behind it.
                let from = (after / EVENTS_PER_FLUSH).saturating_sub(1);
                let mut from = if after == 0 { 0 } else { from };
                while let Some(flush) = rows.flush_with_events(channel, from)? {
                    let events = events_of(&*rows.flushed(flush)?, channel, after);
                    if !events.is_empty() || flush >= newest {
                        return Ok(events);
                    }
                    from = flush;
                }
                Ok(Vec::new())
            });
            let events = read.await?;
            let Some(last) = events.last() else { break };
            cursor = last.cursor;
            for event in events {
                if outbox.send(Ok(event)).await.is_err() {
                    return Ok(());
                }
            }
        }
        if !request.follow || durable.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// The events of a channel in one flush behind a cursor, in the record's order, credits last.
fn events_of(flushed: &Flushed, channel: ChannelId, after: u64) -> Vec<v1::Event> {
    use v1::event::Kind;
    let mut kinds = Vec::new();
    for entry in &flushed.record.entries {
        match entry {
            Entry::Ledger { totals, .. } => {
                let mine = totals.iter().filter(|(id, _)| id.channel == channel);
                kinds.extend(mine.map(|(id, totals)| (id.asset, Kind::Ledger(wire::totals_message(totals)))));
            }
            Entry::Proposed(settlement) if settlement.account().channel == channel => {
                kinds.push((settlement.asset, Kind::Settlement(wire::proposal_message(0, settlement))));
            }
            Entry::Opened(_)
            | Entry::Named(..)
            | Entry::Frame(_)
            | Entry::Stream(_)
            | Entry::Folded(_)
            | Entry::Ticks(_)
            | Entry::Proposed(_)
            | Entry::Agreed(_)
            | Entry::Acked(_)
            | Entry::Frozen { .. } => {}
        }
    }
    for base in flushed.record.credited.iter().filter(|base| base.account.channel == channel) {
        let credits = flushed.credits(base.account).iter();
        kinds.extend(credits.map(|credit| (base.account.asset, Kind::Credited(credit_message(credit)))));
    }
    let first = flushed.number() * EVENTS_PER_FLUSH + 1;
    let events = kinds.into_iter().enumerate().map(|(i, (asset, kind))| v1::Event {
        cursor: first + i as u64,
        asset: wire::bytes_of(asset),
        kind: Some(kind),
    });
    events.filter(|event| event.cursor > after).collect()
}

// ---- the operator --------------------------------------------------------------------------------------------------

#[tonic::async_trait]
impl Operator for OperatorService {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let status = self.0.status().await.map_err(ended)?;
        let assets = status.assets.iter().map(|(policy, sums)| v1::AssetBooks {
            asset: wire::bytes_of(policy.asset),
            symbol: policy.symbol.clone(),
            decimals: u32::from(policy.decimals),
            custody: wire::amount_bytes(proto::account::clamp(sums.custody)),
            member_nets: sums.member_nets.to_string(),
            hub_nets: sums.hub_nets.to_string(),
            paid: wire::bytes_of(sums.paid.to_be_bytes::<32>()),
            income: wire::amount_bytes(sums.income),
            windfall: sums.windfall.to_string(),
        });
        Ok(Response::new(v1::GetStatusResponse {
            chain_id: self.0.core.domain.chain_id,
            adjudicator: wire::bytes_of(self.0.core.domain.adjudicator),
            head: status.head,
            flush: status.flush,
            channels: status.channels,
            sessions: status.sessions,
            payments: status.payments,
            assets: assets.collect(),
            alarms: status.alarms,
            draining: status.draining,
            frozen: status.frozen.is_some(),
        }))
    }

    async fn list_channels(
        &self,
        request: Request<v1::ListChannelsRequest>,
    ) -> Result<Response<v1::ListChannelsResponse>, Status> {
        let request = request.into_inner();
        let after = match request.after.is_empty() {
            true => None,
            false => Some(wire::read_channel("after", &request.after).map_err(|e| status::malformed(&e))?),
        };
        let limit = (request.limit as usize).clamp(1, LIST_MAX);
        let channels = self.0.core.query(move |books| list(books, after, limit)).await.map_err(ended)?;
        let next = (channels.len() == limit).then(|| channels.last().map(|c| c.channel_id.clone())).flatten();
        Ok(Response::new(v1::ListChannelsResponse { channels, next: next.unwrap_or_default() }))
    }

    async fn settle_now(
        &self,
        request: Request<v1::SettleNowRequest>,
    ) -> Result<Response<v1::SettleNowResponse>, Status> {
        let request = request.into_inner();
        let account = read_account(&request.channel_id, &request.asset)?;
        let ask = match request.close {
            true => Ask::Close,
            false => Ask::Reclaim(self.0.reclaimable(account).await.map_err(ended)?),
        };
        let settlement = self.0.settle(account, ask).await.map_err(ended)?;
        let settlement = settlement.map_err(|refusal| status::of_refusal(&refusal))?;
        Ok(Response::new(v1::SettleNowResponse { proposal: Some(wire::proposal_message(0, &settlement)) }))
    }

    async fn start_close(
        &self,
        request: Request<v1::StartCloseRequest>,
    ) -> Result<Response<v1::StartCloseResponse>, Status> {
        let request = request.into_inner();
        let account = read_account(&request.channel_id, &request.asset)?;
        let started = self.0.start_close(account).await;
        let transaction = started.map_err(|e| status::refused(Code::FailedPrecondition, "LEDGER", &e.to_string()))?;
        Ok(Response::new(v1::StartCloseResponse { transaction: wire::bytes_of(transaction) }))
    }

    async fn drain(&self, _: Request<v1::DrainRequest>) -> Result<Response<v1::DrainResponse>, Status> {
        self.0.drain().await.map_err(ended)?;
        Ok(Response::new(v1::DrainResponse {}))
    }
}

fn read_account(channel: &[u8], asset: &[u8]) -> Result<AccountId, Status> {
    let channel = wire::read_channel("channel_id", channel).map_err(|e| status::malformed(&e))?;
    let asset = wire::read_address("asset", asset).map_err(|e| status::malformed(&e))?;
    Ok(AccountId { channel, asset })
}

fn list(books: &Books, after: Option<ChannelId>, limit: usize) -> Vec<v1::ChannelSummary> {
    use std::ops::Bound;
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let channels = books.channels().range((from, Bound::Unbounded)).take(limit);
    let summary = channels.map(|(id, channel)| v1::ChannelSummary {
        channel_id: wire::bytes_of(id.0),
        member: wire::bytes_of(channel.terms.member),
        name: channel.name.clone().unwrap_or_default(),
        online: books.session(*id).is_some(),
        accounts: channel
            .accounts
            .iter()
            .map(|(asset, account)| {
                let (member_net, hub_net) = account.ledger_nets();
                v1::AccountSummary {
                    asset: wire::bytes_of(asset),
                    ledger: Some(wire::totals_message(&account.ledger)),
                    paid: wire::amount_bytes(account.member_paid),
                    credited: wire::amount_bytes(account.hub_paid),
                    member_net: member_net.to_string(),
                    hub_net: hub_net.to_string(),
                    credits: account.credits,
                    acked: account.acked,
                }
            })
            .collect(),
    });
    summary.collect()
}
