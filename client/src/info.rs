//! What the hub offers, checked against the ledger that this client watches itself.

use std::sync::{Arc, Mutex};

use alloy_primitives::{Address, B256};
use dispute::Chain;
use proto::typed::Offer;
use proto::wire::{self, v1};
use proto::{Amount, Asset, Scheme};

use crate::error::Error;
use crate::session::Hub;

/// What the hub says about itself; chain, contract and genesis equal the client's own, and every offer is signed with
/// the key that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The hub's host name, to which logins are bound.
    pub host: String,
    /// The hub's payout account.
    pub hub_account: Address,
    /// The challenge period of its channels, seconds.
    pub challenge_period_s: u32,
    /// Blocks that make a deposit count for it.
    pub confirmations: u32,
    /// Its signed offers, one per key.
    pub offers: Vec<Offer>,
    /// What it serves.
    pub assets: Vec<AssetInfo>,
    /// Its version.
    pub version: String,
}

/// An asset as the hub serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssetInfo {
    /// The token, or zero for the native coin.
    pub asset: Asset,
    /// Its symbol.
    pub symbol: String,
    /// Its decimal places.
    pub decimals: u8,
    /// The least first deposit.
    pub deposit_min: Amount,
    /// The most collateral that the hub puts into one account by itself.
    pub inbound_max: Amount,
    /// Fixed part of a payment's fee.
    pub fee_flat: Amount,
    /// Proportional part, parts per million.
    pub fee_ppm: u32,
}

/// Where the hub is asked, and what it answered last.
pub(crate) struct Desk {
    pub hub: Hub,
    pub url: String,
    pub chain: Chain,
    pub genesis: B256,
    known: Mutex<Option<Arc<Info>>>,
}

impl Desk {
    pub(crate) fn new(hub: Hub, url: String, chain: Chain, genesis: B256) -> Self {
        Desk { hub, url, chain, genesis, known: Mutex::default() }
    }

    /// What the hub offers; asked once, and again where that failed.
    pub(crate) async fn info(&self) -> Result<Arc<Info>, Error> {
        if let Some(info) = self.known.lock().expect("no holder panics").clone() {
            return Ok(info);
        }
        let info = Arc::new(self.ask().await?);
        *self.known.lock().expect("no holder panics") = Some(info.clone());
        Ok(info)
    }

    /// A login names the host that it is for. Who passes on another hub's greetings under his own address would get a
    /// login for that hub, were its word for its name taken.
    fn check_host(&self, said: &str) -> Result<(), Error> {
        let uri: Option<tonic::transport::Uri> = self.url.parse().ok();
        let host = uri.as_ref().and_then(tonic::transport::Uri::host).unwrap_or_default().trim_matches(['[', ']']);
        let here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if here || host.eq_ignore_ascii_case(said) {
            return Ok(());
        }
        Err(Error::OtherHost { said: said.to_owned(), url: self.url.clone() })
    }

    async fn ask(&self) -> Result<Info, Error> {
        let answer = self.hub.clone().get_info(v1::GetInfoRequest {}).await;
        let answer = answer.map_err(|e| Error::hub(&e, &self.url))?.into_inner();
        let domain = self.chain.domain();
        let adjudicator = wire::read_address("info.adjudicator", &answer.adjudicator)?;
        let genesis = wire::read_b256("info.genesis_hash", &answer.genesis_hash)?;
        same("chain id", domain.chain_id, answer.chain_id)?;
        same("adjudicator", domain.adjudicator, adjudicator)?;
        same("genesis block", self.genesis, genesis)?;
        self.check_host(&answer.host)?;
        let hub_account = wire::read_address("info.hub_account", &answer.hub_account)?;
        let period = answer.challenge_period_s;
        let offers = answer.offers.iter().map(|o| wire::read_offer(domain, hub_account, period, o));
        let offers = offers.map(|o| o.map(|o| o.body().clone())).collect::<Result<_, _>>()?;
        Ok(Info {
            host: answer.host,
            hub_account,
            challenge_period_s: period,
            confirmations: answer.confirmations,
            offers,
            assets: answer.assets.iter().map(read_asset).collect::<Result<_, _>>()?,
            version: answer.version,
        })
    }
}

impl Info {
    /// The asset as the hub serves it.
    pub fn asset(&self, asset: Asset) -> Option<&AssetInfo> {
        self.assets.iter().find(|a| a.asset == asset)
    }

    /// The asset with that symbol.
    pub fn by_symbol(&self, symbol: &str) -> Option<&AssetInfo> {
        self.assets.iter().find(|a| a.symbol.eq_ignore_ascii_case(symbol))
    }

    /// The offer of a scheme.
    pub fn offer(&self, scheme: Scheme) -> Option<&Offer> {
        self.offers.iter().find(|o| o.hubScheme == scheme.number())
    }
}

impl AssetInfo {
    /// The least fee of a payment, or `None` if it does not fit 128 bits.
    pub fn fee(&self, amount: Amount) -> Option<Amount> {
        proto::member::fee(amount, self.fee_flat, self.fee_ppm)
    }
}

fn read_asset(message: &v1::AssetInfo) -> Result<AssetInfo, wire::WireError> {
    let given = u64::from(message.decimals);
    let decimals = u8::try_from(message.decimals);
    let decimals =
        decimals.map_err(|_| wire::WireError { field: "asset.decimals", why: wire::Malformed::Value { given } })?;
    Ok(AssetInfo {
        asset: wire::read_address("asset.asset", &message.asset)?,
        symbol: message.symbol.clone(),
        decimals,
        deposit_min: wire::read_amount("asset.deposit_min", &message.deposit_min)?,
        inbound_max: wire::read_amount("asset.inbound_max", &message.inbound_max)?,
        fee_flat: wire::read_amount("asset.fee_flat", &message.fee_flat)?,
        fee_ppm: message.fee_ppm,
    })
}

fn same<T: PartialEq + ToString>(what: &'static str, ours: T, theirs: T) -> Result<(), Error> {
    if ours == theirs {
        return Ok(());
    }
    Err(Error::OtherLedger { what, ours: ours.to_string(), theirs: theirs.to_string() })
}
