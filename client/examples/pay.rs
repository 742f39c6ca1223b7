//! Pays a name or a channel once: `pay HUB NODE ADJUDICATOR SEED PAYEE AMOUNT`, amounts in whole units of the hub's
//! first asset. Opens the channel with ten times the amount where there is none.

use dispute::Chain;
use payhub_client::{Client, Error};
use proto::Amount;

#[tokio::main]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [hub, node, adjudicator, seed, payee, amount] = args.as_slice() else {
        return Err("usage: pay HUB NODE ADJUDICATOR SEED PAYEE AMOUNT".into());
    };
    let chain = Chain::discover(node, adjudicator.parse()?, 0).await?;
    let seed = hex::decode(seed.trim_start_matches("0x"))?.try_into().map_err(|_| "a seed has 32 bytes")?;
    let client = Client::builder().hub(hub).seed(seed).store("pay-store").chain(chain).connect().await?;
    let info = client.info().await?;
    let asset = info.assets.first().ok_or("the hub serves no asset")?;
    let amount = Amount::parse_units(amount, asset.decimals)?;
    if client.balance(asset.asset).await?.available < amount {
        let deposit = amount.checked_mul(10).ok_or("too much")?.max(asset.deposit_min);
        client.open(asset.asset, deposit).await?;
    }
    match client.pay(payee.as_str(), amount, asset.asset).note("from the example").await {
        Ok(paid) => println!("paid {} {}, id {}", amount.format_units(asset.decimals), asset.symbol, paid.id),
        Err(error @ Error::Unanswered { id }) => println!("{error}: {:?}", client.resolve(id).await?),
        Err(error) => return Err(error.into()),
    }
    client.shutdown().await?;
    Ok(())
}
