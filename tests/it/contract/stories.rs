//! Stories about money.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::SolCall;
use dispute::adjudicator::abi::IAdjudicator as contract;
use dispute::adjudicator::{Claim, RefusalClass};
use dispute::chain::Mined;
use dispute::settlement::{self, Packed, TX_BYTES_MAX, TX_GAS_MAX};
use dispute::{Call, EventKind, FundOrder, Funding, OpenOrder, Refusal, SettleOrder, Status};
use payhub_tests::chains::{DOLLARS, Person, World};
use payhub_tests::dice::Dice;
use proto::account::Totals;
use proto::batch::{PATH_MAX, root_of, sign_batch};
use proto::typed::TickVoucher;
use proto::{Amount, ChannelId, ChannelTerms, NATIVE, Proven, Scheme, SecretKey, Side, Signed};

use super::pair::{NEVER, PERIOD_S, Pair, a, audit};
use super::raw::{self, decoded};

super::on_every_chain![
    open_deposit_and_top_up_in_coin_and_dollars,
    an_authorisation_opens_and_pays_whoever_sends_it,
    settle_a_part_and_then_close,
    settlements_are_posted_while_closing,
    a_close_pays_the_same_whoever_starts_it,
    deadlines_and_validity_are_exact_to_the_second,
    everything_held_counts_in_one_call,
    each_side_may_have_a_scheme_of_its_own,
    amounts_of_128_bits_keep_their_books,
    payouts_are_what_programs_expect,
    one_bad_entry_sinks_no_batch,
    channels_are_opened_in_batches,
    self_dealt_settlement_cannot_touch_other_custody,
    stolen_authorisation_funds_only_its_channel,
    allowance_of_a_stranger_is_not_spendable,
    a_channel_in_bobs_name_needs_bob,
    withdrawn_beyond_deposit_still_finalizes,
    max_voucher_by_hub_does_not_brick_finalize,
    receipt_and_later_voucher_count_once,
    posting_a_high_credit_first_blocks_nothing,
    evidence_fits_one_transaction_at_every_limit,
    dust_deposit_cannot_block_or_burn_a_close,
    final_is_for_ever_same_terms_refused,
    tick_and_plain_of_one_lane_count_once,
    claim_never_crosses_vaults,
    native_batch_adds_up,
];

// ---------------------------------------------------------------- the usual life of a channel

async fn open_deposit_and_top_up_in_coin_and_dollars(world: &World) {
    let coin = Pair::new(world, NATIVE, "two assets");
    let dollars = coin.with_asset(world.usdh());
    assert!(!world.chain().is_opened(coin.id()).await.expect("the chain answers"));
    for (pair, member, hub) in [(&coin, 1_000, 70), (&dollars, 2_000, 90)] {
        pair.open(world, member).await;
        pair.deposit(world, Side::Member, 11).await;
        pair.deposit(world, Side::Hub, hub).await;
        pair.deposit(world, Side::Hub, 5).await;
        // Anybody may deposit for either side.
        let gift = world.adjudicator().deposit(&pair.terms, pair.asset, Side::Member, a(1), &Funding::Caller);
        world.send(world.address(Person::Bob), gift).await;
        let books = pair.books(world).await;
        assert_eq!((books.member_deposit, books.hub_deposit), (a(member + 12), a(hub + 5)));
        assert_eq!((books.status, books.seq, books.deadline_s), (Status::Open, 0, 0));
        audit(world, &[pair]).await;
    }
    assert!(world.chain().is_opened(coin.id()).await.expect("the chain answers"));
    assert_eq!(coin.vault(world).await, dollars.vault(world).await, "one channel, one vault");

    // A channel may open without money, and an `open` of an open channel is a deposit for the member.
    let empty = Pair::new(world, NATIVE, "opened without money");
    empty.open(world, 0).await;
    assert_eq!(empty.books(world).await.custody(), U256::ZERO);
    empty.open(world, 3).await;
    assert_eq!(empty.books(world).await.member_deposit, a(3));
}

async fn an_authorisation_opens_and_pays_whoever_sends_it(world: &World) {
    let pair = Pair::new(world, world.usdh(), "paid by signature");
    let anyone = world.address(Person::Anyone);
    let before = world.balance(world.usdh(), pair.terms.member).await;

    let funding = authorization(world, &pair, Person::Alice, Side::Member, 400).await;
    let open = world.adjudicator().open(&pair.terms, Bytes::new(), pair.asset, a(400), &funding);
    let mined = world.send(anyone, open.clone()).await;
    assert!(mined.events.iter().any(|e| matches!(&e.kind, EventKind::Opened { terms, .. } if *terms == pair.terms)));
    let again = world.refusal(anyone, &open).await;
    assert!(again.text.contains("was used or cancelled before"), "the token takes an authorisation once: {again}");
    assert_eq!(again.class, RefusalClass::Moot);

    let separator = world.chain().token_separator(pair.asset).await.expect("the token has one");
    let expired =
        world.key(Person::Bob).authorize(separator, pair.vault(world).await, &pair.account(), Side::Hub, a(60), 1);
    let refusal =
        world.refusal(anyone, &world.adjudicator().deposit(&pair.terms, pair.asset, Side::Hub, a(60), &expired)).await;
    assert!(refusal.text.contains("counts after 0 and before 1"), "{refusal}");

    let funding = authorization(world, &pair, Person::Bob, Side::Hub, 60).await;
    let deposit = world.adjudicator().deposit(&pair.terms, pair.asset, Side::Hub, a(60), &funding);
    world.send(anyone, deposit).await;
    let books = pair.books(world).await;
    assert_eq!((books.member_deposit, books.hub_deposit), (a(400), a(60)));
    assert_eq!(before - world.balance(world.usdh(), pair.terms.member).await, U256::from(400));
    audit(world, &[&pair]).await;
}

async fn settle_a_part_and_then_close(world: &World) {
    for asset in [world.usdh(), NATIVE] {
        let pair = Pair::new(world, asset, "settled").funded(world, 1_000, 500).await;
        let (member, hub) = (pair.terms.member, pair.terms.hub);
        let before = world.balance(asset, member).await;

        let mined = settle(world, &pair.signed(pair.settlement(1, 200, 100, false))).await;
        assert_eq!(settled(&mined), (1, Status::Open));
        assert_eq!(world.balance(asset, member).await - before, U256::from(200), "members are paid at once");
        assert_eq!(pair.claimable(world, hub).await, U256::from(100), "the hub's part waits for it");
        audit(world, &[&pair]).await;

        // The hub's signature may be that of a whole flush.
        let body = pair.settlement(9, 950, 550, true);
        let flush = pair.flush(3, 5, pair.hub_voucher_body(1, 1), pair.receipt_body(1, 1, 1), body.clone());
        let by_member = Signed::sign(&pair.domain, &pair.member_key, body);
        let order = SettleOrder::new(pair.terms.clone(), by_member, flush.settlement).expect("both signed the same");
        assert_eq!(settled(&settle(world, &order).await), (9, Status::Final));
        assert_eq!(world.balance(asset, member).await - before, U256::from(950));
        assert_eq!(pair.claimable(world, hub).await, U256::from(550));
        assert_eq!(pair.books(world).await.custody(), U256::ZERO);

        // The hub fetches its income to wherever it likes.
        let vault = pair.vault(world).await;
        let cold = Address::repeat_byte(0xc0);
        let cold_before = world.balance(asset, cold).await;
        world.send(hub, world.adjudicator().claim_to(vault, asset, cold)).await;
        assert_eq!(world.balance(asset, cold).await - cold_before, U256::from(550));
        audit(world, &[&pair]).await;
    }
}

async fn settlements_are_posted_while_closing(world: &World) {
    let pair = Pair::new(world, world.usdh(), "settled while closing").funded(world, 1_000, 500).await;
    pair.start_close(world).await;
    let deadline = pair.books(world).await.deadline_s;
    let mined = settle(world, &pair.signed(pair.settlement(1, 100, 40, false))).await;
    assert_eq!(settled(&mined), (1, Status::Closing));
    assert_eq!(pair.books(world).await.deadline_s, deadline, "nothing moves a deadline");

    let late = pair.signed(pair.settlement(2, 1_000, 500, true));
    let other = Pair::new(world, world.usdh(), "closed by both while closing").funded(world, 10, 20).await;
    other.start_close(world).await;
    assert_eq!(settled(&settle(world, &other.signed(other.settlement(1, 30, 0, true))).await), (1, Status::Final));

    world.pass(u64::from(PERIOD_S)).await;
    let refusal = world.refusal(pair.terms.hub, &world.adjudicator().settle(&late)).await;
    assert_eq!(decoded::<contract::ChallengeOver>(&refusal).deadline, deadline);
    assert_eq!(pair.finalize(world).await, (900, 460));
    audit(world, &[&pair, &other]).await;
}

async fn a_close_pays_the_same_whoever_starts_it(world: &World) {
    let (member, hub, anyone) =
        (world.address(Person::Alice), world.address(Person::Hub), world.address(Person::Anyone));
    let starts = [
        ("by the member", member, None),
        ("by the hub", hub, None),
        ("asked for by the member's key", anyone, Some(Side::Member)),
        ("asked for by the hub's key", anyone, Some(Side::Hub)),
    ];
    let mut pairs = Vec::new();
    for (name, sender, request) in starts {
        let pair = Pair::new(world, world.usdh(), name).funded(world, 1_000, 500).await;
        let call = world.adjudicator().start_close(&pair.close_order(request));
        let mined = world.send(sender, call.clone()).await;
        let time =
            world.chain().block(mined.block_number).await.expect("the chain answers").expect("it is mined").time_s;
        let books = pair.books(world).await;
        assert_eq!((books.status, books.deadline_s), (Status::Closing, time + u64::from(PERIOD_S)), "{name}");
        let again = world.refusal(sender, &call).await;
        assert_eq!(decoded::<contract::AccountClosing>(&again).deadline, books.deadline_s, "fixed once");

        // Each party posts what it holds of the other; anybody may send it.
        pair.respond(world, [pair.voucher(0, 300)]).await;
        pair.respond(world, [pair.hub_voucher(120, 4)]).await;
        let early = world.refusal(anyone, &world.adjudicator().finalize(&pair.finalize_order())).await;
        assert_eq!(decoded::<contract::ChallengeRunning>(&early).deadline, books.deadline_s);
        pairs.push(pair);
    }
    world.pass(u64::from(PERIOD_S)).await;
    for pair in &pairs {
        let late = world.refusal(hub, &world.adjudicator().respond(&pair.response([pair.voucher(0, 900)]))).await;
        decoded::<contract::ChallengeOver>(&late);
        let before = world.balance(pair.asset, member).await;
        assert_eq!(pair.finalize(world).await, (1_000 + 120 - 300, 500 + 300 - 120));
        assert_eq!(world.balance(pair.asset, member).await - before, U256::from(820));
        assert_eq!(pair.books(world).await.status, Status::Final);
    }
    audit(world, &pairs.iter().collect::<Vec<_>>()).await;
}

async fn deadlines_and_validity_are_exact_to_the_second(world: &World) {
    let adjudicator = world.adjudicator();
    let first = Pair::new(world, NATIVE, "closed first").funded(world, 100, 100).await;
    let second = Pair::new(world, NATIVE, "closed second").funded(world, 100, 100).await;
    let time = world.now_s().await + 100;
    let mut settlement = first.settlement(1, 1, 0, false);
    settlement.validUntil = time;
    let valid = adjudicator.settle(&first.signed(settlement.clone()));
    assert!(world.succeeds_at(time, Person::Anyone, &valid).await, "valid to the last second");
    (settlement.seq, settlement.memberWithdrawn) = (2, 2);
    let late = adjudicator.settle(&first.signed(settlement));
    assert!(!world.succeeds_at(time + 1, Person::Anyone, &late).await);

    first.start_close(world).await;
    world.pass(100).await;
    second.start_close(world).await;
    let (one, two) = (first.books(world).await.deadline_s, second.books(world).await.deadline_s);
    assert!(one + 100 <= two);
    let respond = |pair: &Pair, paid| adjudicator.respond(&pair.response([pair.voucher(0, paid)]));
    let settle = |pair: &Pair, seq, paid| adjudicator.settle(&pair.signed(pair.settlement(seq, paid, 0, false)));
    let finalize = |pair: &Pair| adjudicator.finalize(&pair.finalize_order());
    let story = [
        (one - 3, respond(&first, 10), true),
        (one - 2, finalize(&first), false),
        (one - 1, respond(&first, 20), true),
        (one, respond(&first, 30), false),
        (one + 1, settle(&first, 3, 40), false),
        (two - 2, settle(&second, 3, 40), true),
        (two - 1, finalize(&second), false),
        (two, finalize(&second), true),
        (two + 1, finalize(&first), true),
    ];
    for (time, call, succeeds) in story {
        assert_eq!(world.succeeds_at(time, Person::Anyone, &call).await, succeeds, "{} s after", time - one);
    }
    assert_eq!(first.books(world).await.member_paid, a(20));
}

async fn everything_held_counts_in_one_call(world: &World) {
    let pair = Pair::new(world, NATIVE, "every kind of evidence").funded(world, 10_000, 10_000).await;
    pair.start_close(world).await;
    let ticks = pair.tick_body(7, 50, 3, 100);
    let flush = pair.flush(
        12,
        6,
        pair.hub_voucher_body(4_000, 9),
        pair.receipt_body(8, 100, 3_900),
        pair.settlement(1, 0, 0, false),
    );

    // First what was held early: a receipt of the flush, two lanes, some ticks.
    pair.respond(
        world,
        [Claim::Receipt(flush.receipt), pair.voucher(0, 10), pair.voucher(5, 20), pair.ticks(ticks.clone(), 10)],
    )
    .await;
    assert_eq!(proven(world, &pair).await, (10 + 20 + 50 + 3 * 10, 3_900));

    // Then all: higher lanes, the last lane, later ticks, the voucher of the flush.
    let all = [
        pair.voucher(0, 1_000),
        pair.voucher(5, 2_000),
        pair.voucher(63, 300),
        pair.ticks(ticks.clone(), 60),
        Claim::Hub(flush.voucher),
    ];
    pair.respond(world, all).await;
    assert_eq!(proven(world, &pair).await, (1_000 + 2_000 + 300 + 50 + 180, 4_000));

    // A tick voucher counts without any tick, and to its last one.
    pair.respond(world, [pair.voucher(0, 3_000), pair.ticks(pair.tick_body(1, 7_000, 1, 1), 0)]).await;
    assert_eq!(proven(world, &pair).await, (10_000, 4_000));
    pair.respond(world, [pair.voucher(0, 3_000), pair.ticks(pair.tick_body(1, 7_000, 1, 1), 1)]).await;
    assert_eq!(proven(world, &pair).await, (10_001, 4_000));

    assert_eq!(pair.finalize(world).await, (3_999, 16_001));
    audit(world, &[&pair]).await;
}

async fn each_side_may_have_a_scheme_of_its_own(world: &World) {
    let mut pair = Pair::new(world, NATIVE, "two schemes");
    // Where only one scheme works, both sides have that one.
    let other = match (world.ledger(), world.scheme()) {
        (Some(_), Scheme::Secp256k1) => Scheme::Ed25519,
        (Some(_), Scheme::Ed25519) | (None, _) => Scheme::Secp256k1,
    };
    pair.member_key = SecretKey::derive(other, &[3; 32], "another scheme");
    let pair = pair.with_member_key(pair.member_key.public()).funded(world, 1_000, 1_000).await;
    settle(world, &pair.signed(pair.settlement(1, 100, 200, false))).await;
    world
        .send(world.address(Person::Anyone), world.adjudicator().start_close(&pair.close_order(Some(Side::Member))))
        .await;
    let flush = pair.flush(
        2,
        9,
        pair.hub_voucher_body(40, 1),
        pair.receipt_body(1, 40, 40),
        pair.settlement(2, 100, 200, false),
    );
    pair.respond(world, [pair.voucher(0, 300), pair.ticks(pair.tick_body(1, 0, 5, 10), 10), Claim::Hub(flush.voucher)])
        .await;
    assert_eq!(proven(world, &pair).await, (350, 40));
    assert_eq!(pair.finalize(world).await, (1_000 + 40 - 100 - 350, 1_000 + 350 - 200 - 40));
    audit(world, &[&pair]).await;
}

/// Totals above 2^88 are stored in two parts; none may be lost, and 2^128 - 1 is the end.
async fn amounts_of_128_bits_keep_their_books(world: &World) {
    let (alice, hub) = (world.address(Person::Alice), world.address(Person::Hub));
    for rich in [alice, hub] {
        world.set_balance(rich, U256::MAX >> 100).await;
    }
    let (member, low) = (u128::MAX - (1 << 100), (1u128 << 88) - 1);
    let pair = Pair::new(world, NATIVE, "huge").funded(world, low, 1).await;
    assert_eq!(pair.books(world).await.custody(), U256::from(1u128 << 88));
    pair.deposit(world, Side::Member, member - low).await;
    pair.deposit(world, Side::Hub, (1 << 100) - 1).await;
    let books = pair.books(world).await;
    assert_eq!((books.member_deposit, books.hub_deposit), (a(member), a(1 << 100)));
    for side in [Side::Member, Side::Hub] {
        let more = world.adjudicator().deposit(&pair.terms, NATIVE, side, a(1), &Funding::Caller);
        let error = decoded::<contract::DepositsOverflow>(&world.refusal(hub, &more).await);
        assert_eq!(error.total, U256::from(1) << 128);
    }
    settle(world, &pair.signed(pair.settlement(u64::MAX - 1, low, 1 << 99, false))).await;
    settle(world, &pair.signed(pair.settlement(u64::MAX, 1 << 126, (1 << 99) + 5, false))).await;
    let books = pair.books(world).await;
    assert_eq!((books.member_withdrawn, books.hub_withdrawn, books.seq), (a(1 << 126), a((1 << 99) + 5), u64::MAX));
    assert_eq!(
        (books.member_deposit, books.hub_deposit),
        (a(member), a(1 << 100)),
        "the parts do not disturb each other"
    );
    pair.start_close(world).await;
    pair.respond(world, [pair.voucher(0, 1 << 127), pair.hub_voucher(1 << 90, 1)]).await;
    let to_member = member + (1 << 90) - (1 << 126) - (1 << 127);
    assert_eq!(pair.finalize(world).await, (to_member, u128::MAX - (1 << 126) - (1 << 99) - 5 - to_member));
    assert_eq!(pair.books(world).await.custody(), U256::ZERO);
    audit(world, &[&pair]).await;
}

/// Random books, each phase as one batch: what programs compute is what the contract pays.
async fn payouts_are_what_programs_expect(world: &World) {
    const CHANNELS: usize = 12;
    let seed = u64::from_be_bytes(B256::random()[..8].try_into().expect("eight of 32 bytes"));
    let mut dice = Dice::new(seed);
    let (adjudicator, hub) = (world.adjudicator(), world.address(Person::Hub));
    world.set_balance(hub, U256::MAX >> 100).await;
    // Numbers of 1 to `bits` bits, small ones as often as large ones.
    let mut any = |bits: usize| {
        let wide = (u128::from(dice.bits()) << 64) | u128::from(dice.bits());
        wide >> (127 - dice.below(bits))
    };

    let (mut pairs, mut funds, mut settles, mut closes, mut answers, mut expected) =
        (vec![], vec![], vec![], vec![], vec![], BTreeMap::new());
    for n in 0..CHANNELS {
        let pair = Pair::new(world, NATIVE, &format!("random {n}"));
        pair.open(world, 0).await;
        let (member, by_hub) = (any(126) + 1, any(126) + 1);
        for (side, amount) in [(Side::Member, member), (Side::Hub, by_hub)] {
            funds.push(FundOrder { terms: pair.terms.clone(), asset: NATIVE, side, amount: a(amount) });
        }
        let half = (member + by_hub) / 2;
        let (to_member, to_hub) = (any(128) % (half + 1), any(128) % (half + 1));
        settles.push(pair.signed(pair.settlement(1, to_member, to_hub, false)));
        closes.push(pair.close_order(Some(Side::Hub)));
        let order = pair.response([
            pair.voucher(0, any(128) + 1),
            pair.voucher(9, any(128)),
            pair.hub_voucher(any(128) + 1, 1),
        ]);
        let totals = Totals {
            member_deposit: a(member),
            hub_deposit: a(by_hub),
            member_withdrawn: a(to_member),
            hub_withdrawn: a(to_hub),
            ..Totals::default()
        };
        expected.insert(pair.account(), totals.payout(order.evidence.member_paid(), order.evidence.hub_paid()));
        answers.push(order);
        pairs.push(pair);
    }
    let send = async |calls: Vec<Call>| {
        let mut events = Vec::new();
        for call in calls {
            let mined = world.send(hub, call).await;
            assert_eq!(refused(&mined), [], "seed {seed}");
            events.extend(mined.events);
        }
        events
    };
    send(settlement::fund(adjudicator, funds).into_iter().map(|packed| packed.call).collect()).await;
    send(settlement::settle(adjudicator, settles).into_iter().map(|packed| packed.call).collect()).await;
    send(settlement::start_close(adjudicator, closes).into_iter().map(|packed| packed.call).collect()).await;
    send(settlement::respond(adjudicator, answers).into_iter().map(|packed| packed.call).collect()).await;
    audit(world, &pairs.iter().collect::<Vec<_>>()).await;
    world.pass(u64::from(PERIOD_S)).await;
    let orders = pairs.iter().map(Pair::finalize_order).collect();
    let events = send(settlement::finalize(adjudicator, orders).into_iter().map(|packed| packed.call).collect()).await;
    let paid = events.iter().filter_map(|event| match &event.kind {
        EventKind::Finalized { account, to_member, to_hub, .. } => Some((*account, (*to_member, *to_hub))),
        _ => None,
    });
    let paid: Vec<_> = paid.collect();
    assert_eq!(paid.len(), CHANNELS, "each is paid out once; seed {seed}");
    assert_eq!(paid.into_iter().collect::<BTreeMap<_, _>>(), expected, "seed {seed}");
    audit(world, &pairs.iter().collect::<Vec<_>>()).await;
}

async fn one_bad_entry_sinks_no_batch(world: &World) {
    let (adjudicator, hub) = (world.adjudicator(), world.address(Person::Hub));
    let mut pairs = Vec::new();
    for name in ["first", "second", "third"] {
        pairs.push(Pair::new(world, world.usdh(), name).funded(world, 100, 100).await);
    }
    let stranger = Pair::new(world, world.usdh(), "never opened");
    let all: Vec<&Pair> = pairs.iter().collect();
    let with_stranger = [all[0], &stranger, all[1], all[2]];
    // Batches are sorted: a refusal names a place in what was sent, and with it the channel.
    let alone_refused = |mined: &Mined, channels: Vec<ChannelId>| match refused(mined).as_slice() {
        [(at, refusal)] if channels.get(*at) == Some(&stranger.id()) => refusal.clone(),
        other => panic!("exactly the stranger's entry is to be refused: {other:?} of {channels:?}"),
    };
    let channel_of = |terms: &ChannelTerms| world.domain().channel_id(terms);

    let orders =
        with_stranger.map(|p| FundOrder { terms: p.terms.clone(), asset: p.asset, side: Side::Hub, amount: a(7) });
    for Packed { call, orders } in settlement::fund(adjudicator, orders.to_vec()) {
        let channels = orders.iter().map(|order| channel_of(&order.terms)).collect();
        decoded::<contract::NotOpened>(&alone_refused(&world.send(hub, call).await, channels));
    }
    let orders: Vec<_> = with_stranger.iter().map(|p| p.signed(p.settlement(1, 10, 0, false))).collect();
    for Packed { call, orders } in settlement::settle(adjudicator, orders) {
        let channels = orders.iter().map(|order| order.settlement().account().channel).collect();
        decoded::<contract::NotOpened>(&alone_refused(&world.send(hub, call).await, channels));
    }
    let orders: Vec<_> = with_stranger.iter().map(|p| p.close_order(Some(Side::Hub))).collect();
    for Packed { call, orders } in settlement::start_close(adjudicator, orders) {
        let channels = orders.iter().map(|order| channel_of(&order.terms)).collect();
        decoded::<contract::NotOpened>(&alone_refused(&world.send(hub, call).await, channels));
    }
    let orders: Vec<_> = with_stranger.iter().map(|p| p.response([p.voucher(0, 30)])).collect();
    for Packed { call, orders } in settlement::respond(adjudicator, orders) {
        let channels = orders.iter().map(|order| channel_of(&order.terms)).collect();
        decoded::<contract::AccountNotClosing>(&alone_refused(&world.send(hub, call).await, channels));
    }
    world.pass(u64::from(PERIOD_S)).await;
    let orders: Vec<_> = with_stranger.iter().map(|p| p.finalize_order()).collect();
    for Packed { call, orders } in settlement::finalize(adjudicator, orders) {
        let channels = orders.iter().map(|order| channel_of(&order.terms)).collect();
        decoded::<contract::AccountNotClosing>(&alone_refused(&world.send(hub, call).await, channels));
    }
    for pair in &pairs {
        let books = pair.books(world).await;
        assert_eq!((books.status, books.hub_deposit), (Status::Final, a(107)));
        assert_eq!((books.member_withdrawn, books.hub_withdrawn), (a(70), a(137)));
    }
    audit(world, &all).await;
}

async fn channels_are_opened_in_batches(world: &World) {
    let mut orders = Vec::new();
    let pairs = ["first", "not what was signed", "third"].map(|name| Pair::new(world, world.usdh(), name));
    for pair in &pairs {
        let funding = authorization(world, pair, Person::Alice, Side::Member, 400).await;
        let (terms, consent) = (pair.terms.clone(), Bytes::new());
        orders.push(OpenOrder { terms, consent, asset: pair.asset, amount: a(400), funding });
    }
    orders[1].amount = a(401);
    let mined = world.send(world.address(Person::Anyone), world.adjudicator().open_many(&orders)).await;
    match refused(&mined).as_slice() {
        [(1, refusal)] => decoded::<contract::NotConsented>(refusal),
        other => panic!("exactly entry 1 is to be refused: {other:?}"),
    };
    for (pair, deposit) in pairs.iter().zip([400, 0, 400]) {
        assert_eq!(pair.books(world).await.member_deposit, a(deposit));
        assert_eq!(world.chain().is_opened(pair.id()).await.expect("the chain answers"), deposit > 0);
    }
    audit(world, &[&pairs[0], &pairs[2]]).await;
}

// ---------------------------------------------------------------- what an adversary tries

async fn self_dealt_settlement_cannot_touch_other_custody(world: &World) {
    let usdh = world.usdh();
    let victim = Pair::new(world, usdh, "victim").funded(world, 1_000_000, 500_000).await;
    world.send(world.address(Person::Mallory), world.chain().approve(usdh, U256::MAX)).await;
    // Both sides of this channel are the adversary, and its money lies in the victim's vault.
    let own = Pair::between(world, Person::Crony, Person::Mallory, usdh, "self-dealt");
    let own = own.placed(world, victim.vault(world).await, true).await.funded(world, 100, 0).await;
    let custody = victim.books(world).await.custody();

    for (member, hub) in [(101, 0), (0, 101), (u128::MAX, 0), (u128::MAX, 1), (1, u128::MAX), (u128::MAX, u128::MAX)] {
        let order = own.signed(own.settlement(1, member, hub, true));
        let refusal = world.refusal(own.terms.member, &world.adjudicator().settle(&order)).await;
        let error = decoded::<contract::TotalsExceedDeposits>(&refusal);
        assert_eq!((error.withdrawn, error.deposited), (U256::from(member) + U256::from(hub), U256::from(100)));
    }
    settle(world, &own.signed(own.settlement(1, 60, 0, false))).await;
    // The second settlement pays the difference, not the total again.
    settle(world, &own.signed(own.settlement(2, 61, 0, false))).await;
    assert_eq!(world.balance(usdh, own.terms.member).await, U256::from(DOLLARS - 100 + 61));

    own.start_close(world).await;
    own.respond(world, [own.hub_voucher(u128::MAX, u64::MAX)]).await;
    assert_eq!(own.finalize(world).await, (39, 0));
    assert_eq!(victim.books(world).await.custody(), custody);
    audit(world, &[&victim, &own]).await;
    settle(world, &victim.signed(victim.settlement(1, 1_000_000, 500_000, true))).await;
    audit(world, &[&victim, &own]).await;
}

async fn stolen_authorisation_funds_only_its_channel(world: &World) {
    let usdh = world.usdh();
    let (adjudicator, mallory) = (world.adjudicator(), world.address(Person::Mallory));
    let meant = Pair::new(world, usdh, "meant by Alice").funded(world, 1, 0).await;
    let vault = meant.vault(world).await;
    // The thief's channel shares the vault, so that the authorisation's receiver fits.
    let thiefs = Pair::between(world, Person::Crony, Person::Mallory, usdh, "thief's").placed(world, vault, true).await;
    thiefs.clone().with_asset(NATIVE).open(world, 1).await;
    let funding = authorization(world, &meant, Person::Alice, Side::Member, 500).await;

    let side = |pair: &Pair, side, amount| adjudicator.deposit(&pair.terms, usdh, side, a(amount), &funding);
    let other = Pair::new(world, usdh, "another of Alice's").placed(world, vault, true).await.funded(world, 1, 0).await;
    let attempts = [
        ("another channel", side(&thiefs, Side::Member, 500)),
        ("another channel, other side", side(&thiefs, Side::Hub, 500)),
        ("another channel of the same member", side(&other, Side::Member, 500)),
        ("the other side", side(&meant, Side::Hub, 500)),
        ("less", side(&meant, Side::Member, 499)),
        ("more", side(&meant, Side::Member, 501)),
        ("a channel that it opens", {
            let terms = Pair::between(world, Person::Crony, Person::Mallory, usdh, "opened with loot").terms;
            adjudicator.open(&terms, Bytes::new(), usdh, a(500), &funding)
        }),
    ];
    let before = world.balance(usdh, meant.terms.member).await;
    for (name, call) in attempts {
        let refusal = world.refusal(mallory, &call).await;
        assert!(refusal.text.contains("is not signed by its payer for this"), "{name}: {refusal}");
    }
    // The token itself gives to the receiver only, which is the vault.
    let pull = pull_from_token(world, &meant, vault, &funding, 500);
    assert_eq!(decoded::<ERC20InvalidReceiver>(&world.refusal(mallory, &pull).await).receiver, vault);
    assert_eq!(world.balance(usdh, meant.terms.member).await, before);

    // Whoever sends it, it does what Alice signed.
    world.send(mallory, side(&meant, Side::Member, 500)).await;
    assert_eq!(meant.books(world).await.member_deposit, a(501));
    audit(world, &[&meant, &other]).await;
}

async fn allowance_of_a_stranger_is_not_spendable(world: &World) {
    let usdh = world.usdh();
    let (adjudicator, mallory) = (world.adjudicator(), world.address(Person::Mallory));
    let (alice, before) = (world.address(Person::Alice), world.balance(usdh, world.address(Person::Alice)).await);
    assert_eq!(world.chain().allowance(usdh, alice).await.expect("the chain answers"), U256::MAX);
    let pair = Pair::between(world, Person::Crony, Person::Mallory, usdh, "wants Alice's money");
    pair.with_asset(NATIVE).open(world, 1).await;

    // The payer is the caller, who allowed nothing.
    let deposit = adjudicator.deposit(&pair.terms, usdh, Side::Member, a(100), &Funding::Caller);
    let refusal = world.refusal(mallory, &deposit).await;
    assert!(refusal.text.contains("approve it first"), "{refusal}");

    // A signature of the thief does not pass for one of Alice, whose name it gives.
    let stolen = match authorization(world, &pair, Person::Mallory, Side::Member, 100).await {
        Funding::Authorization { valid_after_s, valid_before_s, payer_nonce, signature, .. } => {
            Funding::Authorization { from: alice, valid_after_s, valid_before_s, payer_nonce, signature }
        }
        Funding::Caller => unreachable!("authorize makes authorisations"),
    };
    let refusal = world.refusal(mallory, &adjudicator.deposit(&pair.terms, usdh, Side::Member, a(100), &stolen)).await;
    assert!(refusal.text.contains("is not signed by its payer"), "{refusal}");

    // Nor does the part that pulls for batches listen to anybody but the contract itself.
    let vault = pair.vault(world).await;
    let pull = raw::call(
        adjudicator.address(),
        &pullExactlyCall { asset: usdh, payer: alice, vault, amount: U256::from(100) },
    );
    let refusal = world.refusal(mallory, &pull).await;
    assert_eq!(decoded::<contract::OnlySelf>(&refusal).caller, mallory);

    // A batch pulls from its sender too: its entry is skipped.
    let order = FundOrder { terms: pair.terms.clone(), asset: usdh, side: Side::Member, amount: a(100) };
    let mined = world.send(mallory, adjudicator.fund_many(&[order])).await;
    assert!(matches!(refused(&mined).as_slice(), [(0, refusal)] if refusal.text.contains("approve it first")));

    // And the vaults obey only their adjudicator.
    let send = raw::call(vault, &sendCall { asset: usdh, to: mallory, amount: U256::from(1) });
    world.refusal(mallory, &send).await;
    assert_eq!(world.balance(usdh, alice).await, before);
    assert_eq!(pair.books(world).await.custody(), U256::ZERO);
}

async fn a_channel_in_bobs_name_needs_bob(world: &World) {
    let (adjudicator, mallory, bob) = (world.adjudicator(), world.address(Person::Mallory), world.address(Person::Bob));
    let pair = Pair::between(world, Person::Mallory, Person::Bob, NATIVE, "in Bob's name");
    let other = Pair::between(world, Person::Hub, Person::Bob, NATIVE, "what Bob agreed to");
    let domain = world.domain();
    let elsewhere = proto::Domain::new(domain.chain_id + 1, domain.adjudicator);
    let forged = [
        ("nothing", Bytes::new()),
        ("the signature of the hub", world.key(Person::Mallory).consent(&domain, &pair.terms)),
        ("Bob's signature of other terms", world.key(Person::Bob).consent(&domain, &other.terms)),
        ("Bob's signature for another chain", world.key(Person::Bob).consent(&elsewhere, &pair.terms)),
        ("zeros", Bytes::from(vec![0; 65])),
    ];
    for (name, consent) in forged {
        let call = adjudicator.open(&pair.terms, consent, NATIVE, a(5), &Funding::Caller);
        let error = decoded::<contract::NotConsented>(&world.refusal(mallory, &call).await);
        assert_eq!((error.channelId, error.member), (pair.id().0, bob), "{name}");
    }
    // Somebody else's payment is no consent of Bob.
    let dollars = pair.with_asset(world.usdh());
    let funding = authorization(world, &dollars, Person::Mallory, Side::Member, 5).await;
    let call = adjudicator.open(&pair.terms, Bytes::new(), dollars.asset, a(5), &funding);
    decoded::<contract::NotConsented>(&world.refusal(mallory, &call).await);

    let consent = world.key(Person::Bob).consent(&domain, &pair.terms);
    let call = adjudicator.open(&pair.terms, consent, NATIVE, a(5), &Funding::Caller);
    world.send(mallory, call.clone()).await;
    // The same consent again opens nothing again; it deposits.
    let mined = world.send(mallory, call).await;
    assert!(!mined.events.iter().any(|e| matches!(e.kind, EventKind::Opened { .. })));
    assert_eq!(pair.books(world).await.member_deposit, a(10));
}

async fn withdrawn_beyond_deposit_still_finalizes(world: &World) {
    // The member earned 900 and withdrew them; his own 100 are still in the account.
    let earned = |name| Pair::new(world, world.usdh(), name);
    let silent = earned("nothing shown").funded(world, 100, 1_000).await;
    let shown = earned("voucher shown").funded(world, 100, 1_000).await;
    for pair in [&silent, &shown] {
        settle(world, &pair.signed(pair.settlement(1, 900, 0, false))).await;
        pair.start_close(world).await;
    }
    shown.respond(world, [shown.hub_voucher(900, 9)]).await;
    assert_eq!(shown.finalize(world).await, (100, 100));
    assert_eq!(silent.finalize(world).await, (0, 200), "without evidence his net is below zero, and counts as zero");
    audit(world, &[&silent, &shown]).await;
}

async fn max_voucher_by_hub_does_not_brick_finalize(world: &World) {
    let pay = |name| Pair::new(world, world.usdh(), name);
    // (hub, member lanes) -> what the member gets of 300
    let hub_only = pay("the hub promised everything").funded(world, 100, 200).await;
    let member_only = pay("the member promised everything twice").funded(world, 100, 200).await;
    let both = pay("both did").funded(world, 100, 200).await;
    for pair in [&hub_only, &member_only, &both] {
        pair.start_close(world).await;
    }
    let all = |pair: &Pair| [pair.voucher(0, u128::MAX), pair.voucher(1, u128::MAX), pair.voucher(63, u128::MAX)];
    hub_only.respond(world, [hub_only.hub_voucher(u128::MAX, 1)]).await;
    member_only.respond(world, all(&member_only)).await;
    both.respond(world, all(&both).into_iter().chain([both.receipt(1, 1, u128::MAX)])).await;
    assert_eq!(proven(world, &both).await, (u128::MAX, u128::MAX), "sums saturate");
    assert_eq!(hub_only.finalize(world).await, (300, 0));
    assert_eq!(member_only.finalize(world).await, (0, 300));
    assert_eq!(both.finalize(world).await, (100, 200), "the promises cancel");
    audit(world, &[&hub_only, &member_only, &both]).await;
}

async fn receipt_and_later_voucher_count_once(world: &World) {
    let pair = Pair::new(world, world.usdh(), "receipt and voucher").funded(world, 100, 1_000).await;
    pair.start_close(world).await;
    let receipt = pair.receipt_body(3, 300, 300);
    let later = pair.hub_voucher_body(500, 4);
    let proof = |body| raw::direct(raw::sign(&pair, &pair.hub_key, body));
    let both = contract::Evidence {
        hubVouchers: vec![raw::voucher(&later, proof(&later))],
        hubReceipts: vec![raw::receipt(&receipt, raw::direct(raw::sign(&pair, &pair.hub_key, &receipt)))],
        ..raw::nothing()
    };
    pair.respond(world, [pair.receipt(3, 300, 300)]).await;
    assert_eq!(proven(world, &pair).await, (0, 300));
    world.send(pair.terms.member, raw::respond(&pair, both)).await;
    assert_eq!(proven(world, &pair).await, (0, 500), "the largest, and never a sum");
    let again = world
        .refusal(pair.terms.member, &world.adjudicator().respond(&pair.response([pair.receipt(3, 300, 300)])))
        .await;
    assert_eq!(decoded::<contract::NothingRaised>(&again).hubPaid, 500);
    assert_eq!(pair.finalize(world).await, (600, 500));
}

async fn posting_a_high_credit_first_blocks_nothing(world: &World) {
    let pair = Pair::new(world, world.usdh(), "a high number first").funded(world, 100, 1_000).await;
    pair.start_close(world).await;
    pair.respond(world, [pair.receipt(u64::MAX, 1, 10)]).await;
    pair.respond(world, [pair.hub_voucher(20, u64::MAX)]).await;
    // Only amounts count: lower numbers with higher totals still rise.
    pair.respond(world, [pair.hub_voucher(400, 2)]).await;
    pair.respond(world, [pair.receipt(1, 1, 401)]).await;
    assert_eq!(proven(world, &pair).await, (0, 401));
    let lower =
        world.refusal(pair.terms.hub, &world.adjudicator().respond(&pair.response([pair.hub_voucher(400, 9)]))).await;
    decoded::<contract::NothingRaised>(&lower);
    assert_eq!(pair.finalize(world).await, (501, 599));
}

async fn evidence_fits_one_transaction_at_every_limit(world: &World) {
    // The protocol's claim gas of one direction: 10,000 a lane and 300 a tick, at most 2,500,000.
    const CLAIM_GAS_MAX: u64 = 2_500_000;
    let (lanes, streams) = (64u32, 3u32);
    let claim_gas = 10_000 * u64::from(lanes) + 300 * u64::from(streams * TickVoucher::TICKS_MAX);
    assert!(claim_gas <= CLAIM_GAS_MAX && claim_gas + 300 * u64::from(TickVoucher::TICKS_MAX) > CLAIM_GAS_MAX);

    let mut pairs = Vec::new();
    for name in ["full evidence", "full evidence too"] {
        let pair = Pair::new(world, NATIVE, name).funded(world, 1_000_000, 1_000_000).await;
        pair.start_close(world).await;
        pairs.push(pair);
    }
    let full = |pair: &Pair| {
        let plain = (streams..lanes).map(|lane| pair.voucher(lane, 100));
        let ticks = (0..streams)
            .map(|lane| pair.ticks(pair.tick_body(lane, 100, 1, TickVoucher::TICKS_MAX), TickVoucher::TICKS_MAX));
        // The longest path that there can be: 2^32 leaves.
        let voucher = pair.hub_voucher_body(5_000, 7);
        let path: Vec<B256> =
            (0..PATH_MAX).map(|i| alloy_primitives::keccak256([u8::try_from(i).expect("32 steps")])).collect();
        let root = root_of(&pair.domain.digest(&voucher), &path).expect("it is not too long");
        let signature = sign_batch(&pair.domain, &pair.hub_key, 1, root);
        let hub = Proven::from_own_batch(&pair.domain, voucher, 1, path, signature);
        pair.response(ticks.chain(plain).chain([Claim::Hub(hub)]).collect::<Vec<_>>())
    };
    let one = world.adjudicator().respond(&full(&pairs[0]));
    assert!(one.data.len() <= TX_BYTES_MAX, "{} bytes", one.data.len());
    let mined = world.send(pairs[0].terms.hub, one).await;
    assert!(mined.gas_used <= CLAIM_GAS_MAX + 100_000, "{} gas for a claim gas of {claim_gas}", mined.gas_used);

    // Packed with others it still fits, in as many transactions as it takes.
    let packs = settlement::respond(world.adjudicator(), vec![full(&pairs[1]), full(&pairs[0])]);
    for packed in packs {
        assert!(packed.call.data.len() <= TX_BYTES_MAX && packed.call.gas_min <= TX_GAS_MAX);
        let mined = world.send(pairs[1].terms.hub, packed.call).await;
        for (_, refusal) in refused(&mined) {
            decoded::<contract::NothingRaised>(&refusal);
        }
    }
    let paid = u128::from(lanes) * 100 + u128::from(streams * TickVoucher::TICKS_MAX);
    for pair in &pairs {
        assert_eq!(proven(world, pair).await, (paid, 5_000));
    }
}

async fn dust_deposit_cannot_block_or_burn_a_close(world: &World) {
    let dust = async |pair: &Pair| {
        let call = world.adjudicator().deposit(&pair.terms, pair.asset, Side::Hub, a(1), &Funding::Caller);
        world.send(world.address(Person::Bob), call).await;
    };
    let pair = Pair::new(world, world.usdh(), "dust before a close of both").funded(world, 600, 400).await;
    let close = pair.signed(pair.settlement(1, 700, 300, true));
    dust(&pair).await;
    assert_eq!(settled(&settle(world, &close).await), (1, Status::Open), "it pays, and a rest is left");
    assert_eq!(pair.books(world).await.custody(), U256::from(1));
    assert_eq!(settled(&settle(world, &pair.signed(pair.settlement(2, 700, 301, true))).await), (2, Status::Final));

    let alone = Pair::new(world, world.usdh(), "dust before a close of one").funded(world, 600, 400).await;
    dust(&alone).await;
    alone.start_close(world).await;
    let late = world.adjudicator().deposit(&alone.terms, alone.asset, Side::Hub, a(1), &Funding::Caller);
    decoded::<contract::AccountClosing>(&world.refusal(world.address(Person::Bob), &late).await);
    assert_eq!(alone.finalize(world).await, (600, 401), "dust is the hub's, not lost");
    audit(world, &[&pair, &alone]).await;
}

async fn final_is_for_ever_same_terms_refused(world: &World) {
    let adjudicator = world.adjudicator();
    let agreed = Pair::new(world, world.usdh(), "closed by both").funded(world, 30, 20).await;
    settle(world, &agreed.signed(agreed.settlement(1, 50, 0, true))).await;
    let disputed = Pair::new(world, world.usdh(), "closed by one").funded(world, 30, 20).await;
    disputed.start_close(world).await;
    disputed.finalize(world).await;
    let (alice, anyone) = (world.address(Person::Alice), world.address(Person::Anyone));
    for pair in [&agreed, &disputed] {
        let books = pair.books(world).await;
        let order = FundOrder { terms: pair.terms.clone(), asset: pair.asset, side: Side::Member, amount: a(5) };
        let calls = [
            ("open", adjudicator.open(&pair.terms, Bytes::new(), pair.asset, a(5), &Funding::Caller)),
            ("deposit", adjudicator.deposit(&pair.terms, pair.asset, Side::Hub, a(5), &Funding::Caller)),
            ("settle", adjudicator.settle(&pair.signed(pair.settlement(7, 50, 0, false)))),
            ("close by both", adjudicator.settle(&pair.signed(pair.settlement(7, 50, 0, true)))),
            ("start a close", adjudicator.start_close(&pair.close_order(None))),
            ("start a close by request", adjudicator.start_close(&pair.close_order(Some(Side::Hub)))),
            ("respond", adjudicator.respond(&pair.response([pair.hub_voucher(9, 9)]))),
            ("finalize", adjudicator.finalize(&pair.finalize_order())),
        ];
        for (name, call) in calls {
            let error = decoded::<contract::AccountFinal>(&world.refusal(alice, &call).await);
            assert_eq!((error.channelId, error.asset), (pair.id().0, pair.asset), "{name}");
        }
        let mined = world.send(alice, adjudicator.fund_many(&[order])).await;
        assert!(
            matches!(refused(&mined).as_slice(), [(0, refusal)] if decoded::<contract::AccountFinal>(refusal).asset == pair.asset)
        );
        assert_eq!(pair.books(world).await, books, "nothing changed");

        // Another asset of the same channel is another account.
        let coin = pair.with_asset(NATIVE);
        let call = adjudicator.deposit(&coin.terms, NATIVE, Side::Hub, a(5), &Funding::Caller);
        world.send(anyone, call).await;
        assert_eq!(coin.books(world).await.hub_deposit, a(5));
    }
    audit(world, &[&agreed, &disputed]).await;
}

async fn tick_and_plain_of_one_lane_count_once(world: &World) {
    let pair = Pair::new(world, world.usdh(), "plain and ticks").funded(world, 1_000, 0).await;
    pair.start_close(world).await;
    let plain = pair.voucher_body(3, 100);
    let ticks = pair.tick_body(3, 100, 2, 50);
    let show = |lanes: &[u32]| contract::Evidence {
        memberVouchers: lanes
            .iter()
            .map(|lane| {
                raw::voucher(
                    &pair.voucher_body(*lane, 100),
                    raw::direct(raw::sign(&pair, &pair.member_key, &pair.voucher_body(*lane, 100))),
                )
            })
            .collect(),
        memberTicks: vec![raw::ticks(&ticks, 10, pair.preimage(3, 50, 10), raw::sign(&pair, &pair.member_key, &ticks))],
        ..raw::nothing()
    };
    for lanes in [&[3u32][..], &[1, 3], &[3, 9], &[3, 3]] {
        let refusal = world.refusal(pair.terms.hub, &raw::respond(&pair, show(lanes))).await;
        assert_eq!(decoded::<contract::LaneRepeated>(&refusal).lane, 3, "lanes {lanes:?}");
    }
    // One after the other: the lane is worth the larger.
    pair.respond(world, [Claim::Member(Signed::sign(&pair.domain, &pair.member_key, plain))]).await;
    pair.respond(world, [pair.ticks(ticks.clone(), 10)]).await;
    assert_eq!(proven(world, &pair).await, (120, 0));
    let mut evidence = dispute::Evidence::new(pair.account());
    for claim in [pair.ticks(ticks, 10), pair.voucher(3, 100), pair.voucher(3, 119)] {
        evidence.add(claim).expect("it is of this account");
    }
    assert_eq!(evidence.member_paid(), a(120), "and so it is in the evidence that programs keep");
    assert_eq!(pair.finalize(world).await, (880, 120));
}

async fn claim_never_crosses_vaults(world: &World) {
    for asset in [world.usdh(), NATIVE] {
        let one = Pair::new(world, asset, "in one vault").funded(world, 10, 100).await;
        let vault = one.vault(world).await;
        let two = Pair::new(world, asset, "in the other").placed(world, vault, false).await.funded(world, 10, 50).await;
        let (hub, anyone, other) = (one.terms.hub, world.address(Person::Anyone), two.vault(world).await);
        settle(world, &one.signed(one.settlement(1, 0, 80, false))).await;
        settle(world, &two.signed(two.settlement(1, 0, 30, false))).await;

        let wrong = [
            (vault, asset, one.terms.member),
            (vault, Address::repeat_byte(0xee), hub),
            (Address::repeat_byte(0xee), asset, hub),
            (world.adjudicator().address(), asset, hub),
        ];
        for (vault, asset, owner) in wrong {
            let refusal = world.refusal(anyone, &world.adjudicator().claim(vault, asset, owner)).await;
            let error = decoded::<contract::NothingToClaim>(&refusal);
            assert_eq!((error.vault, error.asset, error.account), (vault, asset, owner));
        }
        let (before, held) = (world.balance(asset, hub).await, world.balance(asset, other).await);
        world.send(anyone, world.adjudicator().claim(vault, asset, hub)).await;
        assert_eq!(world.balance(asset, hub).await - before, U256::from(80));
        assert_eq!(world.balance(asset, other).await, held, "the other vault paid nothing");
        decoded::<contract::NothingToClaim>(
            &world.refusal(anyone, &world.adjudicator().claim(vault, asset, hub)).await,
        );
        assert_eq!(two.claimable(world, hub).await, U256::from(30));
        audit(world, &[&one, &two]).await;
        world.send(anyone, world.adjudicator().claim(other, asset, hub)).await;
        audit(world, &[&one, &two]).await;
    }
}

async fn native_batch_adds_up(world: &World) {
    let adjudicator = world.adjudicator();
    let hub = world.address(Person::Hub);
    let mut pairs = Vec::new();
    for name in ["one", "two", "closing"] {
        pairs.push(Pair::new(world, NATIVE, name).funded(world, 1, 0).await);
    }
    pairs[2].start_close(world).await;
    let dollars = pairs[0].with_asset(world.usdh());
    let order =
        |pair: &Pair, side, amount| FundOrder { terms: pair.terms.clone(), asset: pair.asset, side, amount: a(amount) };
    let orders = [
        order(&pairs[0], Side::Hub, 100),
        order(&pairs[1], Side::Hub, 200),
        order(&pairs[2], Side::Hub, 400),
        order(&pairs[0], Side::Member, 800),
        order(&dollars, Side::Hub, 1_600),
    ];
    let call = adjudicator.fund_many(&orders);
    assert_eq!(call.value, U256::from(1_500));
    for value in [0u64, 1_499, 1_501] {
        let wrong = Call { value: U256::from(value), ..call.clone() };
        let error = decoded::<contract::NativeAmountMismatch>(&world.refusal(hub, &wrong).await);
        assert_eq!((error.sent, error.asked), (U256::from(value), U256::from(1_500)));
    }
    let mined = world.send(hub, call).await;
    assert!(
        matches!(refused(&mined).as_slice(), [(2, refusal)] if decoded::<contract::AccountClosing>(refusal).asset == NATIVE)
    );
    assert_eq!(world.balance(NATIVE, adjudicator.address()).await, U256::ZERO, "coins of refused entries went back");
    let deposits = async |pair: &Pair| {
        let books = pair.books(world).await;
        (books.member_deposit.get(), books.hub_deposit.get())
    };
    assert_eq!(deposits(&pairs[0]).await, (801, 100));
    assert_eq!(deposits(&pairs[1]).await, (1, 200));
    assert_eq!(deposits(&pairs[2]).await, (1, 0));
    assert_eq!(deposits(&dollars).await, (0, 1_600));
    audit(world, &[&pairs[0], &pairs[1], &pairs[2], &dollars]).await;
}

// ---------------------------------------------------------------- helpers

alloy_sol_types::sol! {
    function pullExactly(address asset, address payer, address vault, uint256 amount);
    function send(address asset, address to, uint256 amount);
    function receiveWithAuthorization(
        address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, uint8 v, bytes32 r, bytes32 s
    );
    error ERC20InvalidReceiver(address receiver);
}

/// A payment that a person signs for one side of one account, sent by somebody else.
async fn authorization(world: &World, pair: &Pair, payer: Person, side: Side, amount: u128) -> Funding {
    let separator = world.chain().token_separator(pair.asset).await.expect("the token has one");
    let vault = pair.vault(world).await;
    world.key(payer).authorize(separator, vault, &pair.account(), side, a(amount), NEVER)
}

/// Calls the token directly with a stolen authorisation.
fn pull_from_token(world: &World, pair: &Pair, vault: Address, funding: &Funding, amount: u64) -> Call {
    let Funding::Authorization { from, valid_after_s, valid_before_s, payer_nonce, signature } = funding else {
        unreachable!("a stolen authorisation is one");
    };
    let call = receiveWithAuthorizationCall {
        from: *from,
        to: vault,
        value: U256::from(amount),
        validAfter: U256::from(*valid_after_s),
        validBefore: U256::from(*valid_before_s),
        nonce: dispute::adjudicator::authorization_nonce(&pair.account(), Side::Member, *payer_nonce),
        v: signature[64],
        r: B256::from_slice(&signature[..32]),
        s: B256::from_slice(&signature[32..64]),
    };
    Call::of(world.usdh(), U256::ZERO, call.abi_encode().into())
}

async fn settle(world: &World, order: &SettleOrder) -> Mined {
    world.send(world.address(Person::Anyone), world.adjudicator().settle(order)).await
}

/// Number and status that the one settlement of a block reports.
fn settled(mined: &Mined) -> (u64, Status) {
    let settled = mined.events.iter().find_map(|event| match &event.kind {
        EventKind::Settled { seq, status, .. } => Some((*seq, *status)),
        _ => None,
    });
    settled.expect("a settlement is reported")
}

fn refused(mined: &Mined) -> Vec<(usize, Refusal)> {
    settlement::refused(&mined.events).map(|(index, refusal)| (index, refusal.clone())).collect()
}

/// What the ledger has proof of: paid by the member, paid by the hub.
async fn proven(world: &World, pair: &Pair) -> (u128, u128) {
    let books = pair.books(world).await;
    (Amount::get(books.member_paid), Amount::get(books.hub_paid))
}
