//! Every error of the contract: what provokes it, what it says in numbers and in words.

use std::collections::BTreeMap;

use alloy::providers::Provider;
use alloy::rpc::types::TransactionRequest;
use alloy::transports::RpcError;
use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolError, SolInterface};
use dispute::adjudicator::RefusalClass;
use dispute::adjudicator::abi::IAdjudicator as contract;
use dispute::{Call, EventKind, FundOrder, Funding, Refusal, artifacts};
use payhub_tests::chains::{PARAMETERS, Person, World};
use proto::{NATIVE, Side};

use super::pair::{NEVER, PERIOD_S, Pair, a};
use super::raw::{self, decoded};

super::on_both_ledgers![
    every_error_of_the_contract_is_provoked_and_put_in_words,
    a_signature_counts_for_one_struct_one_account_and_one_domain,
    bad_input_is_refused_with_its_values_and_changes_no_books,
];

/// What was provoked, by selector.
type Seen = BTreeMap<[u8; 4], Refusal>;

async fn every_error_of_the_contract_is_provoked_and_put_in_words(world: &World) {
    let mut seen = Seen::new();
    opening(world, &mut seen).await;
    deposits(world, &mut seen).await;
    settling(world, &mut seen).await;
    closing(world, &mut seen).await;
    evidence(world, &mut seen).await;
    short_of_gas(world, &mut seen).await;

    let all = contract::IAdjudicatorErrors::selectors();
    let missing: Vec<_> =
        all.filter(|s| !seen.contains_key(s)).filter_map(contract::IAdjudicatorErrors::name_by_selector).collect();
    assert!(missing.is_empty(), "not provoked: {missing:?}");
    for refusal in seen.values() {
        // An error that the list of words forgot would show itself by its Rust name.
        assert!(refusal.text.contains(' ') && !refusal.text.contains('{'), "{}", refusal.text);
    }
}

/// Asks, checks the error, its words and what it means for the sender; `words` must be in the text.
#[track_caller]
fn note<E: SolError>(seen: &mut Seen, refusal: Refusal, class: RefusalClass, words: &str) -> E {
    let error = decoded::<E>(&refusal);
    assert!(refusal.text.contains(words), "{}: {:?} does not say {words:?}", E::SIGNATURE, refusal.text);
    assert_eq!(refusal.class, class, "{}", E::SIGNATURE);
    seen.insert(E::SELECTOR, refusal);
    error
}

async fn opening(world: &World, seen: &mut Seen) {
    use RefusalClass::Wrong;
    let (alice, mallory) = (world.address(Person::Alice), world.address(Person::Mallory));
    let good = Pair::new(world, NATIVE, "terms");
    let open = |pair: &Pair| world.adjudicator().open(&pair.terms, Bytes::new(), NATIVE, a(1), &Funding::Caller);
    let changed = |change: &dyn Fn(&mut proto::ChannelTerms)| {
        let mut pair = good.clone();
        change(&mut pair.terms);
        open(&pair)
    };

    let refusal = world
        .refusal(alice, &world.adjudicator().deposit(&good.terms, NATIVE, Side::Hub, a(1), &Funding::Caller))
        .await;
    note::<contract::NotOpened>(seen, refusal, Wrong, "was never opened");
    let refusal = world.refusal(mallory, &open(&good)).await;
    note::<contract::NotConsented>(seen, refusal, Wrong, "did not agree");

    let bounds = (PARAMETERS.challenge_period_min_s, PARAMETERS.challenge_period_max_s);
    for period in [0, bounds.0 - 1, bounds.1 + 1, u32::MAX] {
        let refusal = world.refusal(alice, &changed(&|terms| terms.challengePeriod = period)).await;
        let error = note::<contract::PeriodOutOfBounds>(seen, refusal, Wrong, "is outside of");
        assert_eq!((error.given, error.min, error.max), (period, bounds.0, bounds.1));
    }
    let accounts: [&dyn Fn(&mut proto::ChannelTerms); 3] =
        [&|t| t.hub = Address::ZERO, &|t| t.member = Address::ZERO, &|t| t.hub = t.member];
    for change in accounts {
        let refusal = world.refusal(alice, &changed(change)).await;
        note::<contract::BadPayoutAccounts>(seen, refusal, Wrong, "must differ and not be zero");
    }
    for scheme in [0, 3, 255] {
        let refusal = world.refusal(alice, &changed(&|terms| terms.hubScheme = scheme)).await;
        assert_eq!(note::<contract::UnknownScheme>(seen, refusal, Wrong, "use 2 (secp256k1)").scheme, scheme);
        let refusal = world.refusal(alice, &changed(&|terms| terms.memberScheme = scheme)).await;
        note::<contract::UnknownScheme>(seen, refusal, Wrong, "does not work on this ledger");
    }
    if world.ledger().is_none() {
        let refusal = world.refusal(alice, &changed(&|terms| terms.memberScheme = 1)).await;
        assert_eq!(
            note::<contract::UnknownScheme>(seen, refusal, Wrong, "use 2").scheme,
            1,
            "no precompile, no Ed25519"
        );
    }
    let refusal = world.refusal(alice, &changed(&|t| (t.memberScheme, t.memberKey) = (2, B256::repeat_byte(1)))).await;
    note::<contract::IllFormedKey>(seen, refusal, Wrong, "is no key of scheme 2");

    // Terms are checked before consent, and calldata that does not decode is refused without a word.
    let mut unread = open(&good);
    unread.data = unread.data[..100].to_vec().into();
    let refusal = world.refusal(alice, &unread).await;
    assert!(refusal.text.contains("ran out of gas or is another contract") || refusal.data.is_empty(), "{refusal}");

    for (shards, min, max) in [(0, 1, 2), (129, 1, 2), (1, 0, 2), (1, 3, 2)] {
        let (challenge_period_min_s, challenge_period_max_s) = (min, max);
        let home_asset = world.usdh();
        let deployment = artifacts::Deployment { challenge_period_min_s, challenge_period_max_s, shards, home_asset };
        let creation = Call::create(artifacts::adjudicator_creation(&deployment));
        let refusal = world.refusal(alice, &creation).await;
        let error = note::<contract::BadDeployment>(seen, refusal, Wrong, "cannot be deployed");
        assert_eq!((error.shards, error.minChallengePeriod, error.maxChallengePeriod), (U256::from(shards), min, max));
    }
}

async fn deposits(world: &World, seen: &mut Seen) {
    use RefusalClass::{Moot, Wrong};
    let (adjudicator, alice) = (world.adjudicator(), world.address(Person::Alice));
    let pair = Pair::new(world, world.usdh(), "deposits").funded(world, 10, 0).await;
    let coin = pair.with_asset(NATIVE);
    let deposit =
        |pair: &Pair, amount| adjudicator.deposit(&pair.terms, pair.asset, Side::Member, a(amount), &Funding::Caller);
    let raw_deposit = |asset, side, kind, amount| {
        let funding = contract::Funding { kind, data: Bytes::new() };
        let terms = raw::terms(&pair.terms);
        raw::call(adjudicator.address(), &contract::depositCall { terms, asset, side, amount, funding })
    };

    for side in [2, 255] {
        let refusal = world.refusal(alice, &raw_deposit(pair.asset, side, 0, 1)).await;
        assert_eq!(note::<contract::UnknownSide>(seen, refusal, Wrong, "does not exist").side, side);
    }
    for (asset, kind) in [(NATIVE, 1), (NATIVE, 2), (pair.asset, 2)] {
        let refusal = world.refusal(alice, &raw_deposit(asset, 0, kind, 1)).await;
        assert_eq!(
            note::<contract::FundingKindUnsupported>(seen, refusal, Wrong, "of funding does not exist").kind,
            kind
        );
    }
    note::<contract::AmountIsZero>(seen, world.refusal(alice, &deposit(&pair, 0)).await, Wrong, "needs an amount");
    let mut wrong_value = deposit(&coin, 5);
    wrong_value.value = U256::from(4);
    note::<contract::NativeAmountMismatch>(
        seen,
        world.refusal(alice, &wrong_value).await,
        Wrong,
        "4 coins were sent and 5 asked for",
    );
    let coins_for_dollars = Call { value: U256::from(1), ..deposit(&pair, 5) };
    note::<contract::NativeAmountMismatch>(
        seen,
        world.refusal(alice, &coins_for_dollars).await,
        Wrong,
        "1 coins were sent and 0 asked for",
    );
    let refusal = world.refusal(alice, &deposit(&pair, u128::MAX)).await;
    let error = note::<contract::DepositsOverflow>(seen, refusal, Wrong, "more than an account can hold");
    assert_eq!(error.total, U256::from(u128::MAX) + U256::from(10));

    // An "asset" without code: nothing arrives.
    let nothing = pair.with_asset(Address::repeat_byte(0xdd));
    let order = |pair: &Pair| FundOrder { terms: pair.terms.clone(), asset: pair.asset, side: Side::Hub, amount: a(3) };
    let mined = world.send(alice, adjudicator.fund_many(&[order(&nothing)])).await;
    let refusal = mined.events.iter().find_map(|event| match &event.kind {
        EventKind::EntryRefused { index: 0, refusal } => Some(refusal.clone()),
        _ => None,
    });
    note::<contract::TransferShort>(seen, refusal.expect("the entry is refused"), Wrong, "0 of 3 base units");

    // A sender that takes no coins back: a token's contract, with a batch that is refused.
    let closing = Pair::new(world, NATIVE, "takes no deposits").funded(world, 1, 0).await;
    closing.start_close(world).await;
    world.set_balance(world.usdh(), U256::from(100)).await;
    let refusal = world.refusal(world.usdh(), &adjudicator.fund_many(&[order(&closing)])).await;
    note::<contract::RefundFailed>(seen, refusal, Wrong, "3 coins could not be sent back");
    note::<contract::AccountClosing>(seen, world.refusal(alice, &deposit(&closing, 1)).await, Moot, "is closing until");

    alloy_sol_types::sol! {
        function pullExactly(address asset, address payer, address vault, uint256 amount);
    }
    let (asset, vault) = (pair.asset, pair.vault(world).await);
    let pull = raw::call(adjudicator.address(), &pullExactlyCall { asset, payer: alice, vault, amount: U256::from(1) });
    note::<contract::OnlySelf>(seen, world.refusal(alice, &pull).await, Wrong, "only the contract may call");
    let refusal = world.refusal(alice, &adjudicator.claim(vault, asset, alice)).await;
    note::<contract::NothingToClaim>(seen, refusal, Moot, "nothing waits for");
}

async fn settling(world: &World, seen: &mut Seen) {
    use RefusalClass::{Moot, Wrong};
    let (adjudicator, alice) = (world.adjudicator(), world.address(Person::Alice));
    let pair = Pair::new(world, NATIVE, "settling").funded(world, 100, 100).await;
    let refuse = async |body| world.refusal(alice, &adjudicator.settle(&pair.signed(body))).await;

    let error = note::<contract::StaleSequence>(
        seen,
        refuse(pair.settlement(0, 1, 1, false)).await,
        Moot,
        "settlement 0 is overtaken by 0",
    );
    assert_eq!((error.given, error.stored), (0, 0));
    world.send(alice, adjudicator.settle(&pair.signed(pair.settlement(5, 20, 30, false)))).await;
    note::<contract::StaleSequence>(
        seen,
        refuse(pair.settlement(5, 20, 30, false)).await,
        Moot,
        "settlement 5 is overtaken by 5",
    );
    for (member, hub) in [(19, 30), (20, 29), (0, 200)] {
        let error = note::<contract::TotalsLowered>(
            seen,
            refuse(pair.settlement(6, member, hub, false)).await,
            Wrong,
            "are below the posted 20 and 30",
        );
        assert_eq!((error.memberWithdrawn, error.hubWithdrawn), (member, hub));
    }
    note::<contract::TotalsExceedDeposits>(
        seen,
        refuse(pair.settlement(6, 171, 30, true)).await,
        Wrong,
        "withdrawals of 201 exceed deposits of 200",
    );

    let now = world.now_s().await;
    let mut late = pair.settlement(6, 20, 31, false);
    late.validUntil = now - 1;
    let error = note::<contract::Expired>(seen, refuse(late).await, Moot, "the signature was valid until");
    assert_eq!(error.validUntil, now - 1);
    assert!(error.timestamp >= U256::from(now));

    // Each signature counts; the hub's may come with a path of at most 32 steps.
    let body = pair.settlement(6, 40, 40, false);
    let (member, hub) = (raw::sign(&pair, &pair.member_key, &body), raw::sign(&pair, &pair.hub_key, &body));
    let attempts = [
        (0, hub.clone(), raw::direct(hub.clone())),
        (1, member.clone(), raw::direct(member.clone())),
        (0, Bytes::new(), raw::direct(hub.clone())),
        (1, member.clone(), raw::direct(Bytes::new())),
        (1, member.clone(), raw::batched(hub.clone(), 1, Vec::new())),
    ];
    for (side, member, hub) in attempts {
        let refusal = world.refusal(alice, &raw::settle(&pair, &body, member, hub)).await;
        let error = note::<contract::BadSignature>(seen, refusal, Wrong, "is not good");
        assert_eq!(error.side, side);
        assert!(side == 1 || error.digest == pair.domain.digest(&body));
    }
    let long = raw::batched(hub, 1, vec![B256::ZERO; 33]);
    let refusal = world.refusal(alice, &raw::settle(&pair, &body, member, long)).await;
    note::<contract::PathTooLong>(seen, refusal, Wrong, "a batch path of 33 steps is too long");
}

async fn closing(world: &World, seen: &mut Seen) {
    use RefusalClass::{Early, Moot, Wrong};
    let (adjudicator, alice, mallory) =
        (world.adjudicator(), world.address(Person::Alice), world.address(Person::Mallory));
    let pair = Pair::new(world, NATIVE, "closing").funded(world, 100, 100).await;
    let finalize = adjudicator.finalize(&pair.finalize_order());
    let respond = adjudicator.respond(&pair.response([pair.voucher(0, 10)]));

    for call in [&finalize, &respond] {
        note::<contract::AccountNotClosing>(seen, world.refusal(mallory, call).await, Early, "is not closing");
    }
    let refusal = world.refusal(mallory, &adjudicator.start_close(&pair.close_order(None))).await;
    assert_eq!(note::<contract::NotPayoutAccount>(seen, refusal, Wrong, "sign a close request").caller, mallory);
    // A request is for one side's key, has an end, and names its side.
    let request = pair.close_request(NEVER);
    let by_member = raw::sign(&pair, &pair.member_key, &request);
    let refusal = world.refusal(mallory, &raw::start_close(&pair, NEVER, 1, by_member.clone())).await;
    assert_eq!(note::<contract::BadSignature>(seen, refusal, Wrong, "the signature of side 1").side, 1);
    let refusal = world.refusal(mallory, &raw::start_close(&pair, NEVER, 2, by_member.clone())).await;
    note::<contract::UnknownSide>(seen, refusal, Wrong, "side 2 does not exist");
    let refusal = world.refusal(mallory, &raw::start_close(&pair, 1, 0, by_member)).await;
    note::<contract::Expired>(seen, refusal, Moot, "was valid until 1, it is");

    pair.start_close(world).await;
    let refusal = world.refusal(mallory, &finalize).await;
    note::<contract::ChallengeRunning>(seen, refusal, Early, "the challenge period runs until");
    world.send(mallory, respond.clone()).await;
    let refusal = world.refusal(mallory, &respond).await;
    let error = note::<contract::NothingRaised>(seen, refusal, Moot, "nothing above 10 and 0");
    assert_eq!((error.memberPaid, error.hubPaid), (10, 0));
    world.pass(u64::from(PERIOD_S)).await;
    let refusal = world.refusal(mallory, &respond).await;
    note::<contract::ChallengeOver>(seen, refusal, Moot, "the challenge period ended at");
    world.send(mallory, finalize).await;
    let refusal = world.refusal(alice, &adjudicator.start_close(&pair.close_order(None))).await;
    note::<contract::AccountFinal>(seen, refusal, Moot, "is final");
}

async fn evidence(world: &World, seen: &mut Seen) {
    use RefusalClass::Wrong;
    let anyone = world.address(Person::Anyone);
    let pair = Pair::new(world, NATIVE, "evidence").funded(world, 100, 100).await;
    pair.start_close(world).await;
    let refuse = async |evidence| world.refusal(anyone, &raw::respond(&pair, evidence)).await;
    let member =
        |body: &proto::typed::Voucher| raw::voucher(body, raw::direct(raw::sign(&pair, &pair.member_key, body)));
    let by_member = |bodies: &[proto::typed::Voucher]| contract::Evidence {
        memberVouchers: bodies.iter().map(&member).collect(),
        ..raw::nothing()
    };

    for lane in [64, 255, 256, u32::MAX] {
        let refusal = refuse(by_member(&[pair.voucher_body(lane, 5)])).await;
        assert_eq!(note::<contract::LaneOutOfRange>(seen, refusal, Wrong, "for payer 0").lane, lane);
    }
    let hub_lane = proto::typed::Voucher { lane: 1, ..pair.hub_voucher_body(5, 1) };
    let proof = raw::direct(raw::sign(&pair, &pair.hub_key, &hub_lane));
    let refusal =
        refuse(contract::Evidence { hubVouchers: vec![raw::voucher(&hub_lane, proof)], ..raw::nothing() }).await;
    note::<contract::LaneOutOfRange>(seen, refusal, Wrong, "lane 1 does not exist for payer 1");
    for lanes in [[0, 0], [63, 63], [9, 3]] {
        let refusal = refuse(by_member(&lanes.map(|lane| pair.voucher_body(lane, 5)))).await;
        assert_eq!(note::<contract::LaneRepeated>(seen, refusal, Wrong, "stands twice or out of order").lane, lanes[1]);
    }
    let numbered = proto::typed::Voucher { credits: 1, ..pair.voucher_body(0, 5) };
    note::<contract::CreditsNotZero>(seen, refuse(by_member(&[numbered])).await, Wrong, "numbers 1 credits");

    // A member's signature over a batch with his own voucher in it counts for nothing.
    let body = pair.voucher_body(4, 5);
    let root = proto::batch::root_of(&pair.domain.digest(&body), &[]).expect("a short path");
    let signature = raw::sign(&pair, &pair.member_key, &proto::typed::Batch { flush: 1, root });
    let batched = raw::voucher(&body, raw::batched(signature, 1, Vec::new()));
    let refusal = refuse(contract::Evidence { memberVouchers: vec![batched], ..raw::nothing() }).await;
    note::<contract::BatchByMember>(seen, refusal, Wrong, "lane 4 is shown with a batch proof");

    let ticks = |body: proto::typed::TickVoucher, index, preimage| contract::Evidence {
        memberTicks: vec![raw::ticks(&body, index, preimage, raw::sign(&pair, &pair.member_key, &body))],
        ..raw::nothing()
    };
    let good = pair.tick_body(2, 10, 1, 20);
    for (ticks_given, index) in [(0, 0), (2049, 1), (20, 21), (u32::MAX, 0)] {
        let body = proto::typed::TickVoucher { ticks: ticks_given, ..good.clone() };
        let refusal = refuse(ticks(body, index, B256::ZERO)).await;
        note::<contract::TicksOutOfRange>(
            seen,
            refusal,
            Wrong,
            &format!("tick {index} of {ticks_given} does not exist"),
        );
    }
    let body = proto::typed::TickVoucher { tick: u128::MAX / 20, cumulative: 16, ..good.clone() };
    let refusal = refuse(ticks(body, 0, B256::ZERO)).await;
    note::<contract::TickValueOverflow>(
        seen,
        refusal,
        Wrong,
        "the last tick would be worth 340282366920938463463374607431768211456",
    );
    for (index, shown) in [(3, 4), (4, 3), (0, 1)] {
        let refusal = refuse(ticks(good.clone(), index, pair.preimage(2, 20, shown))).await;
        assert_eq!(note::<contract::WrongPreimage>(seen, refusal, Wrong, "does not lead to anchor").index, index);
    }
    let refusal = refuse(contract::Evidence {
        memberTicks: vec![raw::ticks(&good, 3, pair.preimage(2, 20, 3), raw::sign(&pair, &pair.hub_key, &good))],
        ..raw::nothing()
    });
    note::<contract::BadSignature>(seen, refusal.await, Wrong, "the signature of side 0");
    note::<contract::NothingRaised>(seen, refuse(raw::nothing()).await, RefusalClass::Moot, "nothing above 0 and 0");

    // A fault in one direction does not sink the other.
    let mut mixed = by_member(&[pair.voucher_body(64, 5)]);
    let hub = pair.hub_voucher_body(9, 1);
    mixed.hubVouchers = vec![raw::voucher(&hub, raw::direct(raw::sign(&pair, &pair.hub_key, &hub)))];
    world.send(anyone, raw::respond(&pair, mixed)).await;
    let books = pair.books(world).await;
    assert_eq!((books.member_paid, books.hub_paid), (a(0), a(9)));
}

/// Gas limits that starve one part of a call: the whole call must fail, so that no estimate settles on such a limit.
async fn short_of_gas(world: &World, seen: &mut Seen) {
    use RefusalClass::Wrong;
    let (adjudicator, alice) = (world.adjudicator(), world.address(Person::Alice));
    let pair = Pair::new(world, world.usdh(), "gas").funded(world, 100, 100).await;
    let settle = adjudicator.settle(&pair.signed(pair.settlement(1, 10, 0, false)));
    let refusal = starved::<contract::PayoutGasUnavailable>(world, alice, &settle).await;
    note::<contract::PayoutGasUnavailable>(seen, refusal, Wrong, "send more gas");
    let order = FundOrder { terms: pair.terms.clone(), asset: pair.asset, side: Side::Member, amount: a(1) };
    let fund = adjudicator.fund_many(&[order]);
    let refusal = starved::<contract::PullOutOfGas>(world, alice, &fund).await;
    note::<contract::PullOutOfGas>(seen, refusal, Wrong, "send more gas");
}

/// The refusal of the first gas limit at which the call says `E`.
async fn starved<E: SolError>(world: &World, from: Address, call: &Call) -> Refusal {
    let request = |gas| {
        let request = TransactionRequest::default().from(from).to(call.to.into_to().expect("a call")).value(call.value);
        request.input(call.data.clone().into()).gas_limit(gas)
    };
    for gas in (30_000..400_000).step_by(1_500) {
        let Err(RpcError::ErrorResp(error)) = world.chain().provider().call(request(gas)).await else { continue };
        if let Some(data) = error.as_revert_data().filter(|data| E::abi_decode(data).is_ok()) {
            return Refusal::decode(data);
        }
    }
    panic!("no gas limit provokes {}", E::SIGNATURE);
}

/// Each signature shown in the place of another: another struct, field, account, side, chain or contract.
async fn a_signature_counts_for_one_struct_one_account_and_one_domain(world: &World) {
    let anyone = world.address(Person::Anyone);
    let pair = Pair::new(world, NATIVE, "replayed").funded(world, 100, 100).await;
    let twin = Pair::new(world, NATIVE, "its twin").funded(world, 100, 100).await;
    pair.start_close(world).await;
    let domain = pair.domain;
    let places = [
        (domain, twin.id(), NATIVE),
        (domain, pair.id(), world.usdh()),
        (proto::Domain::new(domain.chain_id + 1, domain.adjudicator), pair.id(), NATIVE),
        (proto::Domain::new(domain.chain_id, Address::repeat_byte(7)), pair.id(), NATIVE),
    ];
    let bad = async |name: &str, call: Call| {
        decoded::<contract::BadSignature>(&world.refusal(anyone, &call).await);
        assert!(!name.is_empty());
    };

    // The same voucher of another channel, asset, chain or contract; or with any field changed.
    let body = pair.voucher_body(3, 50);
    let hub_body = pair.hub_voucher_body(50, 2);
    let show = |body: &proto::typed::Voucher, signature| raw::respond_voucher(&pair, body, signature);
    let show_hub = |signature| {
        let vouchers = vec![raw::voucher(&hub_body, raw::direct(signature))];
        raw::respond(&pair, contract::Evidence { hubVouchers: vouchers, ..raw::nothing() })
    };
    for (domain, channel, asset) in places {
        let there = Pair { domain, ..pair.clone() };
        let moved =
            |body: &proto::typed::Voucher| proto::typed::Voucher { channelId: channel.0, asset, ..body.clone() };
        bad("voucher", show(&body, raw::sign(&there, &pair.member_key, &moved(&body)))).await;
        bad("hub voucher", show_hub(raw::sign(&there, &pair.hub_key, &moved(&hub_body)))).await;
    }
    let fields = [
        proto::typed::Voucher { payer: 1, ..body.clone() },
        proto::typed::Voucher { payer: 2, ..body.clone() },
        proto::typed::Voucher { lane: 4, ..body.clone() },
        proto::typed::Voucher { cumulative: 49, ..body.clone() },
        proto::typed::Voucher { credits: 1, ..body.clone() },
        proto::typed::Voucher { memo: B256::ZERO, ..body.clone() },
    ];
    for field in fields {
        bad("a field", show(&body, raw::sign(&pair, &pair.member_key, &field))).await;
    }
    bad("the hub's key", show(&body, raw::sign(&pair, &pair.hub_key, &body))).await;
    bad("the member's key", show_hub(raw::sign(&pair, &pair.member_key, &hub_body))).await;

    // Structs of other kinds, signed by the right key, are no voucher, receipt or request.
    let request = pair.close_request(NEVER);
    let settlement = pair.settlement(1, 0, 0, false);
    let kinds = [
        raw::sign(&pair, &pair.member_key, &request),
        raw::sign(&pair, &pair.member_key, &settlement),
        raw::sign(&pair, &pair.member_key, &pair.tick_body(3, 50, 1, 1)),
        raw::sign(&pair, &pair.member_key, &pair.receipt_body(0, 50, 50)),
        raw::sign(&pair, &pair.member_key, &pair.terms),
    ];
    for signature in kinds {
        bad("another struct", show(&body, signature)).await;
    }
    let receipt = pair.receipt_body(2, 50, 50);
    let as_receipt = |proof| {
        raw::respond(&pair, contract::Evidence { hubReceipts: vec![raw::receipt(&receipt, proof)], ..raw::nothing() })
    };
    bad("a voucher as receipt", as_receipt(raw::direct(raw::sign(&pair, &pair.hub_key, &hub_body)))).await;

    // A batch proves its leaves in its own flush, in one domain, and nothing else.
    let flush = pair.flush(8, 2, hub_body.clone(), receipt.clone(), settlement);
    let (path, signature) = match flush.receipt.proof() {
        proto::Proof::Batch { path, signature, .. } => (path.clone(), Bytes::copy_from_slice(signature.as_slice())),
        proto::Proof::Direct(_) => unreachable!("a flush is a batch"),
    };
    let mut cut = path.clone();
    cut.pop();
    let wrong = [
        raw::batched(signature.clone(), 9, path.clone()),
        raw::batched(signature.clone(), 8, cut),
        raw::batched(signature.clone(), 8, Vec::new()),
        raw::direct(signature.clone()),
    ];
    for proof in wrong {
        bad("a batch", as_receipt(proof)).await;
    }
    world.send(anyone, as_receipt(raw::batched(signature, 8, path))).await;
    assert_eq!(pair.books(world).await.hub_paid, a(50));
    // What was refused above fails for its signature alone.
    world.send(anyone, show(&body, raw::sign(&pair, &pair.member_key, &body))).await;
    assert_eq!(pair.books(world).await.member_paid, a(50));

    // A close request is for one account, too.
    let by_member = raw::sign(&pair, &pair.member_key, &request);
    bad("a request", raw::start_close(&twin, NEVER, 0, by_member.clone())).await;
    bad(
        "a request with another end",
        raw::start_close(&twin, NEVER - 1, 0, raw::sign(&twin, &twin.member_key, &twin.close_request(NEVER))),
    )
    .await;
}

/// Not asked but sent, so that a block has it: it fails with exactly that error, and every account is as it was.
async fn bad_input_is_refused_with_its_values_and_changes_no_books(world: &World) {
    let (adjudicator, usdh, alice) = (world.adjudicator(), world.usdh(), world.address(Person::Alice));
    let open = Pair::new(world, usdh, "stays open").funded(world, 100, 100).await;
    let pair = Pair::new(world, usdh, "closes").funded(world, 100, 100).await;
    let foreign = pair.with_asset(Address::repeat_byte(0xdd));
    pair.start_close(world).await;
    let by_hub = |body: &proto::typed::Receipt| raw::receipt(body, raw::direct(raw::sign(&pair, &pair.hub_key, body)));
    let receipt = |credit, total| {
        let hub_receipts = vec![by_hub(&pair.receipt_body(credit, 10, total))];
        raw::respond(&pair, contract::Evidence { hubReceipts: hub_receipts, ..raw::nothing() })
    };
    world.send(alice, receipt(3, 50)).await;
    let deadline = pair.books(world).await.deadline_s;

    let lanes = |lanes: &[u32]| {
        let signed = |body: &proto::typed::Voucher| raw::direct(raw::sign(&pair, &pair.member_key, body));
        let bodies = lanes.iter().map(|lane| pair.voucher_body(*lane, 5));
        let vouchers = bodies.map(|body| raw::voucher(&body, signed(&body))).collect();
        raw::respond(&pair, contract::Evidence { memberVouchers: vouchers, ..raw::nothing() })
    };
    let raised = contract::NothingRaised { memberPaid: 0, hubPaid: 50 }.abi_encode();
    let (shown, elsewhere) = (pair.voucher_body(3, 50), open.voucher_body(3, 50));
    let (hub_shown, hub_elsewhere) = (pair.hub_voucher_body(90, 9), open.hub_voucher_body(90, 9));
    let of_another = raw::respond_voucher(&pair, &shown, raw::sign(&open, &pair.member_key, &elsewhere));
    let hub_signature = raw::direct(raw::sign(&open, &pair.hub_key, &hub_elsewhere));
    let hub_vouchers = vec![raw::voucher(&hub_shown, hub_signature)];
    let of_anothers_hub = raw::respond(&pair, contract::Evidence { hubVouchers: hub_vouchers, ..raw::nothing() });
    let nothing = pair.voucher_body(0, 0);
    let over_nothing = raw::respond_voucher(&pair, &nothing, raw::sign(&pair, &pair.member_key, &nothing));
    let deposit =
        |pair: &Pair, amount| adjudicator.deposit(&pair.terms, pair.asset, Side::Member, a(amount), &Funding::Caller);
    let (vault, channel) = (pair.vault(world).await, pair.id().0);
    let table = [
        ("lanes out of order", lanes(&[3, 9, 4]), contract::LaneRepeated { lane: 4 }.abi_encode()),
        ("a lane twice", lanes(&[3, 3]), contract::LaneRepeated { lane: 3 }.abi_encode()),
        ("a receipt that was counted", receipt(3, 50), raised.clone()),
        ("an older receipt", receipt(2, 40), raised.clone()),
        ("a voucher over nothing", over_nothing, raised),
        (
            "a voucher of another channel",
            of_another,
            contract::BadSignature { side: 0, digest: pair.domain.digest(&shown) }.abi_encode(),
        ),
        (
            "the hub's voucher of another channel",
            of_anothers_hub,
            contract::BadSignature { side: 1, digest: pair.domain.digest(&hub_shown) }.abi_encode(),
        ),
        ("no amount", deposit(&open, 0), contract::AmountIsZero {}.abi_encode()),
        (
            "a deposit while closing",
            deposit(&pair, 5),
            contract::AccountClosing { channelId: channel, asset: usdh, deadline }.abi_encode(),
        ),
        (
            "a claim of a token that was never here",
            adjudicator.claim(vault, foreign.asset, alice),
            contract::NothingToClaim { vault, asset: foreign.asset, account: alice }.abi_encode(),
        ),
        (
            "a response in a token that was never here",
            adjudicator.respond(&foreign.response([foreign.voucher(0, 5)])),
            contract::AccountNotClosing { channelId: channel, asset: foreign.asset }.abi_encode(),
        ),
    ];
    changes_nothing(world, &[&open, &pair, &foreign], &table).await;

    // What has an end is over after it; what the clock says stands behind the end in the error.
    world.pass(u64::from(PERIOD_S)).await;
    let over = |error: Vec<u8>| error[..4 + 32].to_vec();
    let mut expired = open.settlement(1, 5, 5, false);
    expired.validUntil = deadline;
    let timestamp = U256::ZERO;
    let table = [
        ("a response too late", lanes(&[3]), over(contract::ChallengeOver { deadline, timestamp }.abi_encode())),
        (
            "a settlement too late",
            adjudicator.settle(&pair.signed(pair.settlement(1, 5, 5, false))),
            over(contract::ChallengeOver { deadline, timestamp }.abi_encode()),
        ),
        (
            "a settlement that has expired",
            adjudicator.settle(&open.signed(expired)),
            over(contract::Expired { validUntil: deadline, timestamp }.abi_encode()),
        ),
    ];
    changes_nothing(world, &[&open, &pair, &foreign], &table).await;
}

/// Each call fails in a block, with an error that begins like that, and leaves all books as they are.
async fn changes_nothing(world: &World, pairs: &[&Pair], table: &[(&str, Call, Vec<u8>)]) {
    let books = async || {
        let mut all = Vec::new();
        for pair in pairs {
            all.push((pair.books(world).await, world.balance(world.usdh(), pair.vault(world).await).await));
        }
        all
    };
    let before = books().await;
    for (name, call, error) in table {
        let refusal = world.refusal(world.address(Person::Alice), call).await;
        assert!(refusal.data.starts_with(error), "{name}: {refusal}");
        let time_s = world.now_s().await + 1;
        assert!(!world.succeeds_at(time_s, Person::Alice, call).await, "{name}");
        assert_eq!(books().await, before, "{name}");
    }
}
