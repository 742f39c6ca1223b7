//! Paying: one payment, many, or a stream of them.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use alloy_primitives::Bytes;
use proto::frame::FrameError;
use proto::member::PayError;
use proto::{Amount, Asset, ChannelId, Payment, PaymentId};
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::info::Info;
use crate::owner::{Input, Paid, PayOrder, Results};
use crate::{Client, PAY_WAIT};

/// Payments in a frame by default: one signature is then a small part of the work, and a frame stays below 64 KiB.
const FRAME_PAYMENTS: usize = 256;

/// Who is paid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payee {
    /// A channel with the same hub.
    Channel(ChannelId),
    /// A name that the hub knows; the channel behind it is checked on the ledger.
    Name(String),
    /// The hub itself.
    Hub,
}

/// A payment to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPayment {
    /// Who is paid.
    pub payee: ChannelId,
    /// What he gets.
    pub amount: Amount,
    /// A note for him.
    pub note: Bytes,
    /// The id; a fresh random one if none. The same id is never paid twice.
    pub id: Option<PaymentId>,
    /// The fee; the hub's price if none.
    pub fee: Option<Amount>,
}

/// A payment that is made when it is awaited.
#[must_use = "nothing is paid until it is awaited"]
pub struct Pay<'a> {
    client: &'a Client,
    payee: Payee,
    asset: Asset,
    payment: NewPayment,
    lane: u32,
    timeout: Duration,
}

/// Payments that are made when they are awaited; each has a result of its own, in order.
#[must_use = "nothing is paid until it is awaited"]
pub struct PayMany<'a> {
    client: &'a Client,
    asset: Asset,
    payments: Vec<NewPayment>,
    lane: u32,
    frame_max: usize,
    timeout: Duration,
}

/// Pays one payee again and again without waiting; made by [`Client::payer`].
#[derive(Clone)]
pub struct Payer {
    client: Client,
    info: Arc<Info>,
    asset: Asset,
    payee: ChannelId,
    lane: u32,
    frame_max: usize,
}

/// A payment under way.
pub struct Ticket {
    /// Its id.
    pub id: PaymentId,
    results: oneshot::Receiver<Results>,
}

impl Client {
    /// Pays a payee: a channel, a name, or the hub. Await it; before that, `note`, `fee`, `lane` and others may be set.
    pub fn pay(&self, payee: impl Into<Payee>, amount: Amount, asset: Asset) -> Pay<'_> {
        let payment = NewPayment::new(ChannelId::HUB, amount);
        Pay { client: self, payee: payee.into(), asset, payment, lane: 0, timeout: PAY_WAIT }
    }

    /// Makes many payments, in frames.
    pub fn pay_many(&self, asset: Asset, payments: Vec<NewPayment>) -> PayMany<'_> {
        PayMany { client: self, asset, payments, lane: 0, frame_max: FRAME_PAYMENTS, timeout: PAY_WAIT }
    }

    /// A handle that pays one payee without waiting: payments that come while a frame is being written share the next
    /// one.
    pub async fn payer(&self, payee: impl Into<Payee>, asset: Asset) -> Result<Payer, Error> {
        let info = self.info().await?;
        info.asset(asset).ok_or(Error::UnknownAsset { asset })?;
        let payee = self.payee(payee.into()).await?;
        Ok(Payer { client: self.clone(), info, asset, payee, lane: 0, frame_max: FRAME_PAYMENTS })
    }

    /// The channel of a payee, checked on the ledger and pinned.
    pub async fn payee(&self, payee: Payee) -> Result<ChannelId, Error> {
        match payee {
            Payee::Hub => Ok(ChannelId::HUB),
            Payee::Name(name) => self.lookup(&name).await,
            Payee::Channel(channel) => self.pin(channel).await.map(|()| channel),
        }
    }
}

impl NewPayment {
    /// A payment with a fresh id, the hub's price as fee and no note.
    pub fn new(payee: ChannelId, amount: Amount) -> Self {
        NewPayment { payee, amount, note: Bytes::new(), id: None, fee: None }
    }

    fn complete(self, info: &Info, asset: Asset) -> Result<Payment, Error> {
        let served = info.asset(asset).ok_or(Error::UnknownAsset { asset })?;
        let overflow = Error::Pay(PayError::Frame(FrameError::Overflow));
        let fee = self.fee.or_else(|| served.fee(self.amount)).ok_or(overflow)?;
        let id = self.id.unwrap_or_else(PaymentId::random);
        Ok(Payment { id, payee: self.payee, amount: self.amount, fee, note: self.note })
    }
}

impl Pay<'_> {
    /// A note for the payee; at most 256 bytes.
    pub fn note(mut self, note: impl AsRef<[u8]>) -> Self {
        self.payment.note = Bytes::copy_from_slice(note.as_ref());
        self
    }

    /// The fee, instead of the hub's price.
    pub fn fee(mut self, fee: Amount) -> Self {
        self.payment.fee = Some(fee);
        self
    }

    /// The id, instead of a random one.
    pub fn id(mut self, id: PaymentId) -> Self {
        self.payment.id = Some(id);
        self
    }

    /// The lane: payments of different lanes do not wait for each other.
    pub fn lane(mut self, lane: u32) -> Self {
        self.lane = lane;
        self
    }

    /// How long to wait for the outcome.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<Paid, Error> {
        let payee = self.client.payee(self.payee).await?;
        let payments = vec![NewPayment { payee, ..self.payment }];
        let many = PayMany {
            client: self.client,
            asset: self.asset,
            payments,
            lane: self.lane,
            frame_max: FRAME_PAYMENTS,
            timeout: self.timeout,
        };
        many.run().await?.pop().expect("one payment has one result")
    }
}

impl PayMany<'_> {
    /// The lane: payments of different lanes do not wait for each other.
    pub fn lane(mut self, lane: u32) -> Self {
        self.lane = lane;
        self
    }

    /// Most payments in a frame.
    pub fn frame(mut self, payments: usize) -> Self {
        self.frame_max = payments;
        self
    }

    /// How long to wait for all outcomes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn run(self) -> Result<Results, Error> {
        let client = self.client;
        let info = client.info().await?;
        let mut payees: Vec<ChannelId> = self.payments.iter().map(|p| p.payee).collect();
        payees.sort_unstable();
        payees.dedup();
        for payee in payees {
            client.pin(payee).await?;
        }
        let payments: Vec<Payment> =
            self.payments.into_iter().map(|p| p.complete(&info, self.asset)).collect::<Result<_, _>>()?;
        let (reply, mut results) = oneshot::channel();
        let (job, frame_max) = (client.take_job(), self.frame_max);
        let order = PayOrder { job, reply, asset: self.asset, lane: self.lane, frame_max, payments };
        client.inbox().send(Input::Pay(order)).await.map_err(|_| Error::Stopped)?;
        match tokio::time::timeout(self.timeout, &mut results).await {
            Ok(results) => results.map_err(|_| Error::Stopped),
            Err(_) => {
                client.inbox().send(Input::Abandon { job }).await.map_err(|_| Error::Stopped)?;
                results.await.map_err(|_| Error::Stopped)
            }
        }
    }
}

impl Payer {
    /// Pays on another lane.
    pub fn lane(mut self, lane: u32) -> Self {
        self.lane = lane;
        self
    }

    /// Most payments in a frame.
    pub fn frame(mut self, payments: usize) -> Self {
        self.frame_max = payments;
        self
    }

    /// Orders a payment without waiting for anything. The ticket tells the outcome; dropping it changes nothing.
    pub fn pay(&self, amount: Amount, note: impl AsRef<[u8]>) -> Result<Ticket, Error> {
        let note = Bytes::copy_from_slice(note.as_ref());
        let payment = NewPayment { note, ..NewPayment::new(self.payee, amount) }.complete(&self.info, self.asset)?;
        let id = payment.id;
        let (reply, results) = oneshot::channel();
        let (job, frame_max, payments) = (self.client.take_job(), self.frame_max, vec![payment]);
        let order = PayOrder { job, reply, asset: self.asset, lane: self.lane, frame_max, payments };
        match self.client.inbox().try_send(Input::Pay(order)) {
            Ok(()) => Ok(Ticket { id, results }),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::Pay(PayError::Window)),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(Error::Stopped),
        }
    }
}

impl Future for Ticket {
    type Output = Result<Paid, Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.results).poll(context).map(|results| match results {
            Ok(mut results) => results.pop().expect("one payment has one result"),
            Err(_) => Err(Error::Stopped),
        })
    }
}

impl<'a> IntoFuture for Pay<'a> {
    type Output = Result<Paid, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<'a> IntoFuture for PayMany<'a> {
    type Output = Result<Results, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl From<ChannelId> for Payee {
    fn from(channel: ChannelId) -> Self {
        if channel == ChannelId::HUB { Payee::Hub } else { Payee::Channel(channel) }
    }
}

/// A text of 64 hexadecimal digits after `0x` is a channel, anything else a name.
impl From<&str> for Payee {
    fn from(text: &str) -> Self {
        let channel = text.strip_prefix("0x").and_then(|_| text.parse::<ChannelId>().ok());
        channel.map_or_else(|| Payee::Name(text.to_owned()), Payee::from)
    }
}

impl From<String> for Payee {
    fn from(text: String) -> Self {
        Payee::from(text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_a_channel_or_a_name() {
        let channel = ChannelId(alloy_primitives::B256::repeat_byte(7));
        let table = [
            (channel.to_string(), Payee::Channel(channel)),
            (ChannelId::HUB.to_string(), Payee::Hub),
            ("bob".to_owned(), Payee::Name("bob".to_owned())),
            ("0xbob".to_owned(), Payee::Name("0xbob".to_owned())),
            (channel.to_string()[..64].to_owned(), Payee::Name(channel.to_string()[..64].to_owned())),
        ];
        for (text, expected) in table {
            assert_eq!(Payee::from(text.as_str()), expected, "{text}");
        }
    }
}
