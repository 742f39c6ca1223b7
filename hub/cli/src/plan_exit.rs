//! `payhub plan-exit`: what it takes when everybody leaves at once, and whether the challenge period leaves time for it.
//!
//! The arithmetic is [`dispute::exit_plan`]; here is where its numbers come from and how they are shown.

use dispute::chain::{Chain, Pace};
use dispute::exit_plan::{self, ExitPlan, ExitStep, FEE_FACTORS, Leg, Packing, SAFETY_FACTOR};
use proto::wire::v1;
use proto::wire::v1::member_client::MemberClient;
use proto::wire::v1::operator_client::OperatorClient;
use proto::{Amount, Domain};
use serde_json::{Value, json};

use crate::args::PlanExit;
use crate::chain::{chain_failure, coin, money};
use crate::explain::{grouped, span};
use crate::failure::Failure;
use crate::members;
use crate::output::Output;

/// Channels asked for at a time.
const PAGE: u32 = 500;

/// What the challenge period is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// There is time enough.
    Enough,
    /// There is not; the needed period is the plan's.
    TooShort,
    /// No challenge period is known.
    Unknown,
}

/// Runs the command.
pub async fn run(args: PlanExit, out: Output) -> Result<(), Failure> {
    let info = match &args.hub {
        Some(hub) => Some(info_of(hub).await?),
        None => None,
    };
    let accounts = match (args.channels, &args.operator) {
        (Some(channels), _) => channels,
        (None, Some(operator)) => accounts_of(operator).await?,
        (None, None) => {
            let fix = "name the hub's operator endpoint (--operator URL), or a number (--channels N)";
            return Err(Failure::usage("it is not known how many channels are to leave", fix));
        }
    };
    let confirmations = match &info {
        Some(info) => u64::from(info.confirmations),
        None => members::confirmations(&args.rpc).await?,
    };
    // Nothing is asked of a contract, so that a plan can be made before there is one.
    let chain = Chain::connect(&args.rpc, Domain::new(0, alloy_primitives::Address::ZERO), confirmations);
    let measured = chain.map_err(|e| chain_failure(&e))?.pace().await.map_err(|e| chain_failure(&e))?;
    let pace = Pace { block_time_s: args.block_time.unwrap_or(measured.block_time_s), ..measured };
    let period_s = args.challenge_period.or(info.map(|info| info.challenge_period_s)).map(u64::from);
    let plan = exit_plan::plan(accounts, &pace, confirmations);
    show(&plan, &pace, period_s, out);
    out.object(&value(&plan, &pace, period_s));
    Ok(())
}

fn verdict(plan: &ExitPlan, challenge_period_s: Option<u64>) -> Verdict {
    match challenge_period_s {
        Some(period_s) if plan.is_too_short(period_s) => Verdict::TooShort,
        Some(_) => Verdict::Enough,
        None => Verdict::Unknown,
    }
}

/// The last sentence; an alarm begins with the word, so that scripts find it.
fn conclusion(plan: &ExitPlan, challenge_period_s: Option<u64>) -> String {
    let needed = span(plan.challenge_period_needed_s);
    let given = span(challenge_period_s.unwrap_or_default());
    match verdict(plan, challenge_period_s) {
        Verdict::Enough => format!("The challenge period of {given} is long enough: {needed} are needed."),
        Verdict::TooShort => format!(
            "ALARM: the challenge period of {given} is too short for these channels: {needed} are needed, in which every \
             response has {SAFETY_FACTOR} times the planned time, and people have a day. Open new channels with a longer one."
        ),
        Verdict::Unknown => {
            format!("A challenge period of {needed} is needed; name --hub or --challenge-period to compare.")
        }
    }
}

fn names(leg: &Leg) -> (&'static str, &'static str) {
    let step = match leg.step {
        ExitStep::Start => "start",
        ExitStep::Respond => "respond",
        ExitStep::Finalize => "finalize",
    };
    let packing = match leg.packing {
        Packing::Single => "single",
        Packing::Batched => "batched",
    };
    (step, packing)
}

fn value(plan: &ExitPlan, pace: &Pace, challenge_period_s: Option<u64>) -> Value {
    let legs = plan.legs.iter().map(|leg| {
        let (step, packing) = names(leg);
        let costs = FEE_FACTORS.iter().zip(leg.cost_wei).map(|(factor, wei)| {
            json!({ "fee_factor": *factor as u64, "wei": wei.to_string(), "coin": Amount::new(wei).format_units(18) })
        });
        json!({
            "step": step, "packing": packing, "transactions": leg.transactions, "gas": leg.gas, "blocks": leg.blocks,
            "time_s": leg.time_s, "costs": costs.collect::<Vec<_>>(),
        })
    });
    json!({
        "ok": true, "accounts": plan.accounts, "block_gas_limit": pace.block_gas_limit,
        "block_time_s": pace.block_time_s, "base_fee_wei": pace.fees.base_fee_wei.to_string(),
        "priority_fee_wei": pace.fees.priority_fee_wei.to_string(), "legs": legs.collect::<Vec<_>>(),
        "challenge_period_s": challenge_period_s, "challenge_period_needed_s": plan.challenge_period_needed_s,
        "alarm": verdict(plan, challenge_period_s) == Verdict::TooShort,
    })
}

fn show(plan: &ExitPlan, pace: &Pace, challenge_period_s: Option<u64>, out: Output) {
    out.say(format!(
        "Accounts that leave now: {}. A block has {} gas, of which an exit can count on half, and comes every {}; the base fee is \
         {} wei.",
        grouped(plan.accounts.into()),
        grouped(pace.block_gas_limit.into()),
        span(pace.block_time_s),
        grouped(pace.fees.base_fee_wei)
    ));
    let factors = FEE_FACTORS.map(|factor| format!("at fee x{factor}"));
    let mut head = vec!["step", "sent", "transactions", "gas", "blocks", "time"];
    head.extend(factors.iter().map(String::as_str));
    let row = |leg: &Leg| {
        let (step, packing) = names(leg);
        let counts = [leg.transactions, leg.gas, leg.blocks].map(|n| grouped(n.into()));
        let costs = leg.cost_wei.map(|wei| money(Amount::new(wei), &coin()));
        let mut row = vec![step.to_owned(), packing.to_owned()];
        row.extend(counts);
        row.push(span(leg.time_s));
        row.extend(costs);
        row
    };
    out.table(&head, plan.legs.iter().map(row).collect());
    out.say(conclusion(plan, challenge_period_s));
}

async fn info_of(hub: &str) -> Result<v1::GetInfoResponse, Failure> {
    let away = |why: &dyn std::fmt::Display| {
        Failure::connect(format!("the hub at {hub} does not answer: {why}"), "start it, or correct --hub")
    };
    let mut client = MemberClient::connect(hub.to_owned()).await.map_err(|e| away(&e))?;
    Ok(client.get_info(v1::GetInfoRequest {}).await.map_err(|e| away(&e.message()))?.into_inner())
}

/// The accounts that a hub's operator sees and that are not final yet.
async fn accounts_of(operator: &str) -> Result<u64, Failure> {
    let away = |why: &dyn std::fmt::Display| {
        let what = format!("there is no operator's endpoint at {operator}: {why}");
        Failure::connect(what, "start the hub with --operator, or correct the address")
    };
    let mut client = OperatorClient::connect(operator.to_owned()).await.map_err(|e| away(&e))?;
    let (mut accounts, mut after) = (0u64, Vec::new());
    loop {
        let request = v1::ListChannelsRequest { after: after.into(), limit: PAGE };
        let page = client.list_channels(request).await.map_err(|e| away(&e.message()))?.into_inner();
        for account in page.channels.iter().flat_map(|channel| &channel.accounts) {
            let is_final = account.ledger.as_ref().is_some_and(|l| l.status() == v1::AccountStatus::Final);
            accounts += u64::from(!is_final);
        }
        if page.next.is_empty() {
            return Ok(accounts);
        }
        after = page.next.to_vec();
    }
}

#[cfg(test)]
mod tests {
    use dispute::chain::Fees;

    use super::*;

    #[test]
    fn a_challenge_period_that_is_too_short_is_an_alarm() {
        let fees = Fees { base_fee_wei: 1_000_000_000, priority_fee_wei: 0 };
        let pace = Pace { block_gas_limit: 30_000_000, block_time_s: 12, fees };
        let plan = exit_plan::plan(1_000, &pace, 6);
        let needed = plan.challenge_period_needed_s;
        let table = [
            (Some(60), true, "ALARM: the challenge period of 1 min is too short"),
            (Some(needed - 1), true, "ALARM"),
            (Some(needed), false, "is long enough"),
            (None, false, "name --hub or --challenge-period"),
        ];
        for (period_s, alarm, piece) in table {
            let told = conclusion(&plan, period_s);
            assert!(told.contains(piece) && told.starts_with("ALARM") == alarm, "{told}");
            assert_eq!(value(&plan, &pace, period_s)["alarm"], alarm);
        }
        let value = value(&plan, &pace, None);
        let respond = &value["legs"][1];
        assert_eq!((&respond["step"], &respond["packing"]), (&json!("respond"), &json!("single")));
        assert_eq!(respond["costs"][2], json!({ "fee_factor": 100, "wei": "4581900000000000000", "coin": "4.5819" }));
    }
}
