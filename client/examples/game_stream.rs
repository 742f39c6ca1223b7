//! A game loop that meters by the frame: `game_stream HUB NODE ADJUDICATOR SEED PAYEE`. Sixty times a second it adds a
//! few base units; the meter pays them in the background, many additions in one payment, and never more than its cap.

use std::time::Duration;

use dispute::Chain;
use payhub_client::Client;
use proto::Amount;

#[tokio::main]
#[allow(clippy::print_stdout)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [hub, node, adjudicator, seed, payee] = args.as_slice() else {
        return Err("usage: game_stream HUB NODE ADJUDICATOR SEED PAYEE".into());
    };
    let chain = Chain::discover(node, adjudicator.parse()?, 0).await?;
    let seed = hex::decode(seed.trim_start_matches("0x"))?.try_into().map_err(|_| "a seed has 32 bytes")?;
    let client = Client::builder().hub(hub).seed(seed).store("game-store").chain(chain).connect().await?;
    let info = client.info().await?;
    let asset = info.assets.first().ok_or("the hub serves no asset")?;
    if client.channel().await?.is_none() {
        client.open(asset.asset, asset.deposit_min.max(Amount::new(10_000_000))).await?;
    }
    let meter = client.payer(payee.as_str(), asset.asset).await?.meter(Duration::from_millis(50), 1_000_000);
    let mut frames = tokio::time::interval(Duration::from_micros(16_667));
    for frame in 0..600u64 {
        frames.tick().await;
        // One base unit a frame, and a power-up now and then.
        if let Err(full) = meter.add(if frame % 60 == 0 { 25 } else { 1 }) {
            println!("{full}");
            break;
        }
    }
    while meter.paid() + meter.failed() < meter.added() {
        frames.tick().await;
    }
    println!("{} base units paid, {} failed", meter.paid(), meter.failed());
    client.shutdown().await?;
    Ok(())
}
