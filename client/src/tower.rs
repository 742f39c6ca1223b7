//! The remote watchtower: the member's newest evidence goes there, and nothing is acknowledged before it is held there.
//!
//! # Why an acknowledgement waits, and a payment does not
//! An acknowledgement tells the payer that the money has arrived for good. With a tower that means: even if this
//! program and its disk are gone a moment later. So while the tower is away nothing is acknowledged ([`Gate`]). Payments
//! go on in both directions: what the member receives is durable in his own store and counts for him, and what is
//! acknowledged late harms nobody, because the payer has his receipt. To acknowledge without the tower would be the one
//! thing that breaks the promise, silently, at the moment when the tower is needed.
//!
//! # How it is kept up to date
//! [`run`] sends the newest evidence of each account, one upload at a time, and takes the next newest when that one is
//! answered: however much is received meanwhile, it is one more upload. A tower that is away is tried again for ever.
//! Receipts for payees who have not acknowledged go there too, so that a payee whose hub withholds a credit is paid
//! while this program is off.

use std::collections::BTreeMap;
use std::time::Duration;

use dispute::Chain;
use proto::member::{Evidence, Member};
use proto::typed::{Ack, Receipt};
use proto::wire::tower::Upload;
use proto::wire::v1;
use proto::{AccountId, Asset, ChannelTerms, Proven, Signed};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use v1::tower_answer::Result as Answer;
use v1::watchtower_client::WatchtowerClient;

use crate::error::Error;
use crate::owner::{Guarded, Inbox, Input, Reading};
use crate::wallet::Wallet;

/// An answer that takes longer than this is not waited for: the connection is made anew.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// Pause before a tower that failed is tried again; it doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time between looks for receipts that wait for their payees: most are acknowledged within a second and never go.
const RECEIPTS_EVERY: Duration = Duration::from_secs(5);
/// Receipts that are uploaded at one look: those beyond it go with the next ones.
const RECEIPTS_MAX: usize = 256;

/// Acknowledgements that were signed and may not leave before the tower holds what they acknowledge: one per account.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    waiting: BTreeMap<Asset, Signed<Ack>>,
    /// Credits that the tower holds the hub's voucher over.
    held: BTreeMap<Asset, u64>,
}

impl Gate {
    /// Whether an acknowledgement of the account waits: then the next one is not signed yet.
    pub(crate) fn waits(&self, asset: Asset) -> bool {
        self.waiting.contains_key(&asset)
    }

    /// Keeps an acknowledgement until the tower holds its credits; gives it back if it does.
    pub(crate) fn admit(&mut self, ack: Signed<Ack>) -> Option<Signed<Ack>> {
        let Ack { asset, credits, .. } = *ack.body();
        if self.held.get(&asset).is_some_and(|held| *held >= credits) {
            return Some(ack);
        }
        self.waiting.insert(asset, ack);
        None
    }

    /// The tower holds evidence of an account: what it covers may leave.
    pub(crate) fn holds(&mut self, asset: Asset, evidence: &Evidence) -> Option<Signed<Ack>> {
        let credits = evidence.hub.as_ref().map_or(0, |voucher| voucher.body().credits);
        let held = self.held.entry(asset).or_default();
        *held = credits.max(*held);
        let covered = self.waiting.get(&asset).is_some_and(|ack| ack.body().credits <= *held);
        if covered { self.waiting.remove(&asset) } else { None }
    }

    /// A session ended: the next one signs its acknowledgements anew.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// Why a tower does not hold the evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Away {
    #[error("the watchtower at {url} does not answer: {why}")]
    Silent { url: String, why: String },
    #[error(
        "the watchtower at {url} watches another ledger ({theirs}) than this member's ({ours}); name one of his ledger"
    )]
    OtherLedger { url: String, ours: String, theirs: String },
    #[error("the watchtower at {url} refuses the evidence: {message}")]
    Refused { url: String, message: String },
    /// The program ends.
    #[error("the client has stopped")]
    Ending,
}

/// Keeps the tower up to date until the owner is gone.
pub(crate) async fn run(
    url: String,
    endpoint: Endpoint,
    chain: Chain,
    mut guarded: watch::Receiver<Guarded>,
    inbox: Inbox,
) {
    let mut told: Option<String> = None;
    let mut pause = PAUSE_MIN;
    loop {
        let mut link = Link::new(&url, &chain, &inbox);
        let away = match link.keep(&endpoint, &mut guarded, &mut told).await {
            Ok(never) => match never {},
            Err(Away::Ending) => return,
            Err(away) => away,
        };
        if link.held_something {
            pause = PAUSE_MIN;
        }
        let why = away.to_string();
        if told.as_ref() != Some(&why) {
            tracing::warn!(why, "acknowledgements wait for the watchtower");
            told = Some(why.clone());
            if inbox.send(Input::TowerAway { why }).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The endpoint behind an address.
pub(crate) fn endpoint(url: &str) -> Result<Endpoint, Error> {
    let bad = |why: String| Error::BadUrl { url: url.to_owned(), why };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|e| bad(e.to_string()))?;
    if endpoint.uri().scheme().is_none() {
        return Err(bad("it does not begin with http://".to_owned()));
    }
    Ok(endpoint
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_while_idle(true)
        .tcp_nodelay(true))
}

/// One connection.
struct Link<'a> {
    url: &'a str,
    chain: &'a Chain,
    inbox: &'a Inbox,
    tag: u64,
    held_something: bool,
}

type Uploads = mpsc::Sender<v1::TowerUpload>;
type Answers = tonic::Streaming<v1::TowerAnswer>;

impl<'a> Link<'a> {
    fn new(url: &'a str, chain: &'a Chain, inbox: &'a Inbox) -> Self {
        Link { url, chain, inbox, tag: 0, held_something: false }
    }

    fn silent(&self, why: impl std::fmt::Display) -> Away {
        Away::Silent { url: self.url.to_owned(), why: why.to_string() }
    }

    /// Connects, and uploads whatever is newer than what this connection brought.
    async fn keep(
        &mut self,
        endpoint: &Endpoint,
        guarded: &mut watch::Receiver<Guarded>,
        told: &mut Option<String>,
    ) -> Result<std::convert::Infallible, Away> {
        guarded.wait_for(|g| g.terms.is_some()).await.map_err(|_| Away::Ending)?;
        let channel = endpoint.connect().await.map_err(|e| self.silent(e))?;
        let mut tower = WatchtowerClient::new(channel);
        self.check(&mut tower).await?;
        let (uploads, queue) = mpsc::channel(1);
        let answers = tower.upload(ReceiverStream::new(queue)).await.map_err(|e| self.silent(e.message()))?;
        let (mut answers, mut held) = (answers.into_inner(), BTreeMap::new());
        let (mut receipts_at, mut receipts_held) = (tokio::time::Instant::now() + RECEIPTS_EVERY, BTreeMap::new());
        loop {
            let newest = guarded.borrow_and_update().clone();
            let Some(terms) = newest.terms else { return Err(Away::Ending) };
            for (asset, evidence) in newest.evidence {
                let worth_something = evidence.hub.is_some() || !evidence.lanes.is_empty();
                if worth_something && held.get(&asset) != Some(&evidence) {
                    self.upload_own(&uploads, &mut answers, &terms, asset, &evidence).await?;
                    held.insert(asset, evidence);
                }
            }
            if told.take().is_some() {
                self.inbox.send(Input::TowerBack).await.map_err(|_| Away::Ending)?;
            }
            tokio::select! {
                changed = guarded.changed() => changed.map_err(|_| Away::Ending)?,
                ended = answers.message() => return Err(match ended {
                    Err(status) => self.silent(status.message()),
                    Ok(_) => self.silent("it ended the stream"),
                }),
                () = tokio::time::sleep_until(receipts_at) => {
                    self.upload_receipts(&uploads, &mut answers, &mut receipts_held).await?;
                    receipts_at = tokio::time::Instant::now() + RECEIPTS_EVERY;
                }
            }
        }
    }

    /// A tower of another ledger would hold the evidence and never see the close.
    async fn check(&self, tower: &mut WatchtowerClient<Channel>) -> Result<(), Away> {
        let asked = tokio::time::timeout(ANSWER_WAIT, tower.get_info(v1::GetTowerInfoRequest {})).await;
        let info = asked.map_err(|_| self.silent("no answer"))?.map_err(|e| self.silent(e.message()))?.into_inner();
        let genesis = self.chain.genesis_hash().await.map_err(|e| self.silent(e))?;
        let domain = self.chain.domain();
        let ledger = |chain: u64, adjudicator: &[u8], genesis: &[u8]| {
            let hex = |bytes: &[u8]| alloy_primitives::hex::encode_prefixed(bytes);
            format!("chain {chain}, genesis {}, adjudicator {}", hex(genesis), hex(adjudicator))
        };
        let ours = ledger(domain.chain_id, domain.adjudicator.as_slice(), genesis.as_slice());
        let theirs = ledger(info.chain_id, &info.adjudicator, &info.genesis_hash);
        if ours == theirs { Ok(()) } else { Err(Away::OtherLedger { url: self.url.to_owned(), ours, theirs }) }
    }

    async fn upload_own(
        &mut self,
        uploads: &Uploads,
        answers: &mut Answers,
        terms: &ChannelTerms,
        asset: Asset,
        evidence: &Evidence,
    ) -> Result<(), Away> {
        let account = AccountId { channel: self.chain.domain().channel_id(terms), asset };
        let Evidence { lanes, hub } = evidence.clone();
        let upload = Upload { terms: terms.clone(), account, hub, receipts: Vec::new(), lanes };
        match self.ask(uploads, answers, &upload).await? {
            Answer::Holds(_) => self.held_something = true,
            // Nothing can be shown for an account that is paid out: there is nothing to wait for either.
            Answer::Refuses(refused) if refused.reason == "FINAL" => {}
            Answer::Refuses(refused) => {
                return Err(Away::Refused { url: self.url.to_owned(), message: refused.message });
            }
        }
        let holds = Input::TowerHolds { asset, evidence: evidence.clone() };
        self.inbox.send(holds).await.map_err(|_| Away::Ending)
    }

    /// Receipts are for others: a tower that does not take one keeps nothing of this member's waiting.
    async fn upload_receipts(
        &mut self,
        uploads: &Uploads,
        answers: &mut Answers,
        held: &mut BTreeMap<AccountId, Proven<Receipt>>,
    ) -> Result<(), Away> {
        let (reply, receipts) = oneshot::channel();
        let look = move |wallet: &Wallet, _: &Reading| drop(reply.send(receipts_of(wallet.member())));
        self.inbox.send(Input::Read(Box::new(look))).await.map_err(|_| Away::Ending)?;
        let receipts = receipts.await.map_err(|_| Away::Ending)?;
        held.retain(|account, _| receipts.iter().any(|(_, receipt)| receipt.body().account() == *account));
        let new = receipts.into_iter().filter(|(_, receipt)| held.get(&receipt.body().account()) != Some(receipt));
        for (terms, receipt) in new.take(RECEIPTS_MAX).collect::<Vec<_>>() {
            let account = receipt.body().account();
            let upload = Upload { terms, account, hub: None, receipts: vec![receipt.clone()], lanes: Vec::new() };
            if let Answer::Refuses(refused) = self.ask(uploads, answers, &upload).await? {
                tracing::debug!(%account, message = refused.message, "the watchtower does not take a receipt");
            }
            held.insert(account, receipt);
        }
        Ok(())
    }

    async fn ask(&mut self, uploads: &Uploads, answers: &mut Answers, upload: &Upload) -> Result<Answer, Away> {
        self.tag += 1;
        let message = upload.to_message(self.chain.domain(), self.tag);
        let asked = async {
            uploads.send(message).await.map_err(|_| self.silent("it ended the stream"))?;
            let answer = answers.message().await.map_err(|e| self.silent(e.message()))?;
            answer.ok_or_else(|| self.silent("it ended the stream"))
        };
        let answer = tokio::time::timeout(ANSWER_WAIT, asked).await.map_err(|_| self.silent("no answer"))??;
        if answer.tag != self.tag {
            return Err(self.silent(format!("it answered upload {} when asked {}", answer.tag, self.tag)));
        }
        answer.result.ok_or_else(|| self.silent("its answer is empty"))
    }
}

/// The largest receipt for each payee who has not acknowledged, with the terms of his channel.
pub(crate) fn receipts_of(member: Option<&Member>) -> Vec<(ChannelTerms, Proven<Receipt>)> {
    let Some(member) = member else { return Vec::new() };
    let of =
        |(asset, payee, _)| member.receipt_for(asset, payee).map(|(terms, receipt)| (terms.clone(), receipt.clone()));
    member.undelivered().into_iter().filter_map(of).collect()
}

/// Whether the tower holds all that the member could show.
pub(crate) fn holds_all(member: Option<&Member>, held: &BTreeMap<Asset, Evidence>) -> bool {
    let Some(member) = member else { return true };
    let covered = |asset: &Asset| {
        let evidence = member.evidence(*asset).filter(|e| e.hub.is_some() || !e.lanes.is_empty());
        evidence.is_none() || evidence.as_ref() == held.get(asset)
    };
    member.assets().iter().all(covered)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_primitives::{Address, B256};
    use proto::{Amount, ChannelId, Domain, Scheme, SecretKey, wire};

    #[test]
    fn an_acknowledgement_leaves_when_the_tower_holds_its_credits_and_not_before() {
        let domain = Domain::new(1, Address::repeat_byte(1));
        let key = SecretKey::derive(Scheme::Ed25519, &[1; 32], "voucher");
        let account = AccountId { channel: ChannelId(B256::repeat_byte(2)), asset: Asset::repeat_byte(3) };
        let ack = |credits| {
            let body = Ack { channelId: account.channel.0, asset: account.asset, credits, head: B256::ZERO };
            Signed::sign(&domain, &key, body)
        };
        let holds = |credits| {
            let voucher = wire::hub_voucher(account, Amount::new(u128::from(credits)), credits, B256::ZERO);
            Evidence { lanes: Vec::new(), hub: Some(Proven::sign(&domain, &key, voucher)) }
        };
        let left = |ack: Option<Signed<Ack>>| ack.map(|ack| ack.body().credits);
        let mut gate = Gate::default();
        assert_eq!(left(gate.admit(ack(5))), None);
        assert!(gate.waits(account.asset));
        assert_eq!(left(gate.holds(account.asset, &holds(4))), None, "one credit short");
        assert_eq!(left(gate.holds(account.asset, &holds(9))), Some(5), "more than enough");
        assert!(!gate.waits(account.asset));
        assert_eq!(left(gate.admit(ack(9))), Some(9), "it is held already");
        assert_eq!(left(gate.holds(account.asset, &holds(3))), None, "an older answer takes nothing back");
        assert_eq!(left(gate.admit(ack(10))), None);
        gate.clear();
        assert_eq!(left(gate.holds(account.asset, &holds(10))), None, "that session is over");
    }
}
