//! A game loop that meters by the frame: `game_stream HUB NODE ADJUDICATOR SEED PAYEE`. Sixty times a second it adds a
//! few ticks; the client pays them in the background, by a hash each, and never more than the cap.

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
    // One signature opens a stream of up to 2,048 ticks; each tick is a hash.
    let meter = client.stream(payee.as_str(), asset.asset).rate(Amount::new(10)).cap(100_000).await?;
    let mut frames = tokio::time::interval(Duration::from_micros(16_667));
    for frame in 0..600u64 {
        frames.tick().await;
        // One tick a frame, and a power-up now and then.
        if let Err(full) = meter.add(if frame % 60 == 0 { 25 } else { 1 }) {
            println!("{full}");
            break;
        }
    }
    let metered = meter.finish().await?;
    println!("{} ticks added, {} paid", metered.added, metered.paid);
    client.shutdown().await?;
    Ok(())
}
