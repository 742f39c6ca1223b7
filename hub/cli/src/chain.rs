//! What the commands do on the ledger by themselves: find the contracts, deploy, mint, send.

use alloy_primitives::{Address, U256};
use dispute::artifacts::{self, Deployment};
use dispute::chain::{Chain, ChainError};
use dispute::submitter::{AccountKey, Order, Outcome, Submitter, SubmitterConfig};
use dispute::{adjudicator::Call, chain::Mined};
use proto::{Amount, Asset, Domain, NATIVE};
use serde::Serialize;
use serde_json::{Value, json};

use crate::args;
use crate::failure::{Code, Failure};
use crate::home;

/// An asset as people write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AssetInfo {
    /// The symbol.
    pub symbol: String,
    /// The token, or zero for the coin.
    #[serde(rename = "address")]
    pub asset: Asset,
    /// Decimal places.
    pub decimals: u8,
}

/// The chain's own coin.
pub fn coin() -> AssetInfo {
    AssetInfo { symbol: "COIN".to_owned(), asset: NATIVE, decimals: 18 }
}

/// The test dollar at `asset`.
pub fn test_dollar(asset: Asset) -> AssetInfo {
    AssetInfo { symbol: "USDH".to_owned(), asset, decimals: 6 }
}

/// Reads an amount with its unit, as in `0.25USDH` or `0.25 USDH`.
pub fn parse_money<'a>(text: &str, assets: &'a [AssetInfo]) -> Result<(Amount, &'a AssetInfo), Failure> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = (&text[..split], text[split..].trim());
    let known: Vec<&str> = assets.iter().map(|a| a.symbol.as_str()).collect();
    let known = known.join(", ");
    if unit.starts_with(['-', '+']) {
        let what = format!("{text:?} is not an amount");
        return Err(Failure::usage(what, "write a positive decimal number and a unit, as in 0.25USDH"));
    }
    if unit.is_empty() {
        let what = format!("{text:?} has no unit");
        return Err(Failure::usage(what, format!("say of what, as in {digits}USDH; units here: {known}")));
    }
    let Some(asset) = assets.iter().find(|a| a.symbol.eq_ignore_ascii_case(unit)) else {
        return Err(Failure::not_found(format!("there is no asset {unit:?} here"), format!("units here: {known}")));
    };
    let amount = Amount::parse_units(digits, asset.decimals)
        .map_err(|e| Failure::usage(format!("{text:?}: {e}"), "correct the amount"))?;
    if amount.is_zero() {
        return Err(Failure::usage(format!("{text:?} is zero"), "amounts are positive"));
    }
    Ok((amount, asset))
}

/// A decimal string of whole units.
pub fn units(amount: Amount, asset: &AssetInfo) -> String {
    amount.format_units(asset.decimals)
}

/// An amount with its unit, for people.
pub fn money(amount: Amount, asset: &AssetInfo) -> String {
    format!("{} {}", units(amount, asset), asset.symbol)
}

/// A 256-bit balance as a decimal string; what does not fit 128 bits is shown as the largest amount.
pub fn units_256(value: U256, asset: &AssetInfo) -> String {
    units(Amount::new(u128::try_from(value).unwrap_or(u128::MAX)), asset)
}

/// A failure to reach or trust a chain, with its exit code.
pub fn chain_failure(error: &ChainError) -> Failure {
    let (code, reason) = match error {
        ChainError::Unreachable { .. } | ChainError::Nonsense { .. } => (Code::Connect, "CANNOT_CONNECT"),
        ChainError::BadUrl { .. } => (Code::Usage, "USAGE"),
        ChainError::WrongChain { .. } | ChainError::WrongGenesis { .. } => (Code::Other, "OTHER_LEDGER"),
        ChainError::NoContract { .. } => (Code::Other, "NO_CONTRACT"),
        ChainError::WrongContract { .. } => (Code::Other, "WRONG_CONTRACT"),
        ChainError::Refused { .. } | ChainError::Event(_) => (Code::Other, "LEDGER"),
    };
    let fix = match error {
        ChainError::Nonsense { .. } => "name the JSON-RPC of an EVM node, as in --rpc http://127.0.0.1:7445",
        _ => "",
    };
    Failure::new(code, reason, error, fix)
}

/// Sends a call and waits until it is in a block.
pub async fn send(submitter: &Submitter, from: Address, call: Call, what: &str) -> Result<Mined, Failure> {
    match submitter.submit(Order::new(call).from(from)).await {
        Outcome::Mined(mined) => Ok(mined),
        Outcome::Reverted { refusal, .. } => {
            let what = format!("{what} was refused by the ledger: {refusal}");
            Err(Failure::new(
                Code::Refused,
                "LEDGER_REFUSED",
                what,
                "look at the account and at what the contract allows",
            ))
        }
        Outcome::NotSent { why } => {
            let fix = "see that the account has coins for gas and that the ledger answers";
            Err(Failure::new(Code::Refused, "NOT_SENT", format!("{what} was not sent: {why}"), fix))
        }
        Outcome::Unknown { tx_hashes } => {
            let what = format!("{what} was sent as {tx_hashes:?} and is in no block yet");
            Err(Failure::new(Code::Unknown, "OUTCOME_UNKNOWN", what, "look at the balance before trying again"))
        }
    }
}

/// Gives an account coins or test dollars from the first developer account.
pub async fn faucet(chain: &Chain, to: Address, amount: Amount, asset: &AssetInfo) -> Result<Mined, Failure> {
    let faucet = ledger::genesis::dev_accounts()[0];
    let key = AccountKey::from_secret(&faucet.secret).map_err(Failure::other)?;
    let balance = chain.balance(NATIVE, faucet.address).await.map_err(|e| chain_failure(&e))?;
    if balance.is_zero() {
        let what = "the developer account has no coins on this chain, so this is not a development chain";
        return Err(Failure::new(Code::Refused, "NO_FAUCET", what, "get coins where this chain's users get theirs"));
    }
    let submitter = Submitter::new(chain.clone(), vec![key], SubmitterConfig::local());
    let value = U256::from(amount.get());
    let call =
        if asset.asset == NATIVE { chain.transfer(NATIVE, to, value) } else { chain.mint(asset.asset, to, value) };
    let sent = send(&submitter, faucet.address, call, "the gift").await;
    sent.map_err(|failure| match failure.reason.as_str() {
        "LEDGER_REFUSED" => {
            let fix = "only test dollars deployed by the first developer account can be given away here";
            Failure { fix: fix.to_owned(), ..failure }
        }
        _ => failure,
    })
}

/// `payhub deploy`.
pub async fn deploy(args: &args::Deploy) -> Result<Value, Failure> {
    let secret = if args.key == "-" { std::io::read_to_string(std::io::stdin())? } else { args.key.clone() };
    let key = AccountKey::from_secret(&home::parse_secret(&secret)?).map_err(Failure::other)?;
    let from = key.address();
    // The chain is only sent to; that the address has no contract yet is the point.
    let unborn = Chain::connect(&args.rpc, Domain::new(chain_id(&args.rpc).await?, Address::ZERO), 0);
    let chain = unborn.map_err(|e| chain_failure(&e))?;
    let submitter = Submitter::new(chain.clone(), vec![key], SubmitterConfig::remote());
    let shards = args.shards;
    let mut test_dollar = None;
    if args.test_dollar {
        let call = Call::create(artifacts::test_dollar_creation(from));
        test_dollar = send(&submitter, from, call, "the test dollar's deployment").await?.created;
    }
    let home_asset = args.home_asset.or(test_dollar).unwrap_or_default();
    let deployment = Deployment {
        challenge_period_min_s: args.challenge_min,
        challenge_period_max_s: args.challenge_max,
        shards,
        home_asset,
    };
    let call = Call::create(artifacts::adjudicator_creation(&deployment));
    let mined = send(&submitter, from, call, "the adjudicator's deployment").await?;
    let address = mined.created.ok_or_else(|| Failure::other("the deployment made no contract"))?;
    let checked = Chain::discover(&args.rpc, address, 0).await.map_err(|e| chain_failure(&e))?;
    let ed25519 = checked.ed25519_available().await.map_err(|e| chain_failure(&e))?;
    let mut result = json!({
        "ok": true, "chain_id": checked.chain_id(), "adjudicator": address, "transaction": mined.tx_hash,
        "gas_used": mined.gas_used, "ed25519": ed25519, "shards": shards,
        "home_asset": home_asset,
    });
    if args.test_dollar {
        result["test_dollar"] = json!(test_dollar);
    }
    Ok(result)
}

/// Asks a node for its chain id.
pub async fn chain_id(rpc: &str) -> Result<u64, Failure> {
    use alloy::providers::{Provider, ProviderBuilder};
    let url =
        rpc.parse().map_err(|e| Failure::usage(format!("{rpc:?} is not a URL: {e}"), "as in http://127.0.0.1:7445"))?;
    let provider = ProviderBuilder::new().connect_http(url);
    provider.get_chain_id().await.map_err(|e| {
        Failure::connect(format!("the ledger at {rpc} does not answer: {e}"), "start it, or correct --rpc")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_carry_a_unit() {
        let assets = [coin(), test_dollar(Address::repeat_byte(1))];
        let good =
            [("0.25USDH", 250_000, "USDH"), ("1 usdh", 1_000_000, "USDH"), ("2COIN", 2 * 10u128.pow(18), "COIN")];
        for (text, amount, symbol) in good {
            let (parsed, asset) = parse_money(text, &assets).expect(text);
            assert_eq!((parsed.get(), asset.symbol.as_str()), (amount, symbol), "{text}");
        }
        let bad = [
            ("0.25", Code::Usage),
            ("0USDH", Code::Usage),
            ("-1USDH", Code::Usage),
            ("0.1234567USDH", Code::Usage),
            ("1e3USDH", Code::NotFound),
            ("1EUR", Code::NotFound),
            ("USDH", Code::Usage),
            ("", Code::Usage),
        ];
        for (text, code) in bad {
            assert_eq!(parse_money(text, &assets).expect_err(text).code, code, "{text}");
        }
    }
}
