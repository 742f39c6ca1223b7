//! Opens a channel and prints what comes: `receive HUB NODE ADJUDICATOR SEED NAME`.

use dispute::Chain;
use futures::StreamExt;
use payhub_client::{Client, Event};

#[tokio::main]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [hub, node, adjudicator, seed, name] = args.as_slice() else {
        return Err("usage: receive HUB NODE ADJUDICATOR SEED NAME".into());
    };
    let chain = Chain::discover(node, adjudicator.parse()?, 0).await?;
    let seed = hex::decode(seed.trim_start_matches("0x"))?.try_into().map_err(|_| "a seed has 32 bytes")?;
    let client = Client::builder().hub(hub).seed(seed).store("receive-store").chain(chain).name(name).connect().await?;
    let info = client.info().await?;
    let asset = info.assets.first().ok_or("the hub serves no asset")?;
    if client.channel().await?.is_none() {
        client.open(asset.asset, asset.deposit_min).await?;
    }
    let mut events = client.events();
    while let Some(event) = events.next().await {
        match event {
            Event::Received { amount, payer, payments, .. } => {
                let units = amount.format_units(asset.decimals);
                println!("{units} {} from {payer} in {} payments", asset.symbol, payments.len());
            }
            Event::HubMisbehaved(fault) => println!("the hub misbehaved: {fault}"),
            other => println!("{other:?}"),
        }
    }
    Ok(())
}
