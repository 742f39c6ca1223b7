//! The random plays of `payhub_tests::model`, in a short and a long run. See there for the commands.

use std::panic::{AssertUnwindSafe, catch_unwind};

use alloy_primitives::{B256, Bytes};
use payhub_tests::model::cast::{DOMAIN, HUB_KEY, MEMBER_KEYS, START, account, terms};
use payhub_tests::model::{Care, Loss, Sometimes, hub_play, member_play};
use proto::account::Totals;
use proto::member::{Limits, Member, VALIDITY_LONGEST_S};
use proto::typed::{Receipt, chain_hash};
use proto::wire::{self, Credit, CreditedPayment, v1};
use proto::{Amount, ChannelId, NATIVE, Payment, PaymentId, Proven};

/// Plays of each kind in a normal test run: a few seconds without optimisation.
const PLAYS: u64 = 300;
/// From this many plays on, every rare path must have been taken.
const PLAYS_FOR_RARE: u64 = 300;

/// Careless plays of each kind that are tried until one loses.
const CARELESS_PLAYS: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// A play of one kind.
type Play = fn(u64, Care) -> Result<Sometimes, Loss>;

/// Runs plays with consecutive seeds; a failure names its seed.
fn run(kind: &str, play: Play, rare: &[&str]) {
    let (first, plays) = (number("PAYHUB_SEED").unwrap_or(0), number("PAYHUB_PLAYS").unwrap_or(PLAYS));
    let mut seen = Sometimes::default();
    for seed in first..first.saturating_add(plays) {
        let again = format!("{kind}: PAYHUB_SEED={seed} PAYHUB_PLAYS=1 plays it again");
        match catch_unwind(AssertUnwindSafe(|| play(seed, Care::Full))) {
            Ok(Ok(paths)) => seen.add(&paths),
            Ok(Err(loss)) => panic!("{loss}; {again}"),
            Err(_) => panic!("a rule was broken on the way; {again}"),
        }
    }
    if plays >= PLAYS_FOR_RARE {
        let never = seen.never(rare);
        assert!(never.is_empty(), "{kind}: paths that {plays} plays never took: {never:?}; taken: {seen:?}");
    }
}

#[test]
fn an_honest_hub_never_loses_a_unit() {
    run("hub", hub_play::play, hub_play::RARE);
}

#[test]
fn an_honest_member_never_loses_a_unit() {
    run("member", member_play::play, member_play::RARE);
}

/// The plays have teeth: whoever breaks one rule loses in some of them. The search begins a little before a play in
/// which that is so.
#[test]
fn a_careless_side_loses() {
    let table: &[(&str, Play, Care, u64)] = &[
        ("hub", hub_play::play, Care::CountsUnconfirmedDeposits, 1_730),
        ("hub", hub_play::play, Care::IgnoresCloses, 0),
        ("hub", hub_play::play, Care::ForgetsSettlements, 370),
        ("member", member_play::play, Care::CountsUnconfirmedDeposits, 720),
        ("member", member_play::play, Care::IgnoresCloses, 0),
        ("member", member_play::play, Care::ForgetsSettlements, 780),
    ];
    for (kind, play, care, from) in table {
        let loses = (*from..from + CARELESS_PLAYS).any(|seed| play(seed, *care).is_err());
        assert!(loses, "a {kind} of {care:?} never loses in {CARELESS_PLAYS} plays");
    }
}

/// A settlement that an old copy of a store forgot may take what the member paid, so nothing counts until it is over.
#[test]
fn a_restored_member_does_not_count_what_a_forgotten_settlement_took() {
    let (asset, id) = (NATIVE, account(0));
    let mut member = Member::new(*DOMAIN, MEMBER_KEYS[0].clone(), terms(0), Limits::default()).expect("his own terms");
    member.head(START);
    member.ledger(asset, Totals { member_deposit: Amount::new(100), ..Totals::default() });
    let payment = Payment {
        id: PaymentId::default(),
        payee: ChannelId::HUB,
        amount: Amount::new(50),
        fee: Amount::ZERO,
        note: Bytes::new(),
    };
    let (tag, frame) = member.sign_frame(asset, 0, vec![payment]).expect("solvent");
    let row = [(frame.payments[0].id, Amount::new(50))];
    let payments = proto::frame::payments_hash(&row);
    let body = Receipt { channelId: B256::ZERO, asset, credit: 0, amount: 50, total: 0, payments };
    let receipts = vec![wire::receipt_message(&Proven::sign(&DOMAIN, &HUB_KEY, body))];
    let accepted = v1::Accepted { flush: 1, asset: wire::bytes_of(asset), tags: vec![tag], receipts, ticks: vec![] };
    member.accepted(&accepted).expect("a good receipt");
    // From here on the hub may hold a settlement that pays it these 50, and the store forgot it.
    member.distrust();
    let credits = [CreditedPayment { id: PaymentId::default(), amount: Amount::new(50), note: Bytes::new() }];
    let credit = Credit {
        number: 1,
        payer: account(1).channel,
        amount: Amount::new(50),
        total: Amount::new(50),
        payments: credits.to_vec(),
    };
    let head = chain_hash(B256::ZERO, DOMAIN.digest(&credit.receipt(id)));
    let voucher = Proven::sign(&DOMAIN, &HUB_KEY, wire::hub_voucher(id, Amount::new(50), 1, head));
    let message = v1::Credited {
        asset: wire::bytes_of(asset),
        credits: vec![wire::credit_message(&credit)],
        voucher: Some(wire::hub_voucher_message(&voucher)),
    };
    member.credited(message).expect("well-formed");
    let unbacked = |member: &Member| member.balance(asset).map(|b| b.unbacked);
    assert_eq!(unbacked(&member), Some(Amount::new(50)));
    assert_eq!(member.ack(asset), None);
    member.head(START + VALIDITY_LONGEST_S + 1);
    assert_eq!(unbacked(&member), Some(Amount::ZERO));
}
