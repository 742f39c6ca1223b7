//! Contracts that mean harm, assembled by hand: a token that calls back, and members that do not take their money.

use alloy::providers::Provider;
use alloy_primitives::{Address, Bytes, U256};
use dispute::adjudicator::abi::IAdjudicator as contract;
use dispute::{Call, FundOrder, Funding};
use payhub_tests::chains::{Person, World};
use proto::{NATIVE, Side};

use super::pair::{Pair, a, audit};
use super::raw::{self, decoded};

super::on_both_ledgers![reentrant_deposit_credits_once, what_a_member_cannot_receive_waits_for_him];

async fn reentrant_deposit_credits_once(world: &World) {
    let adjudicator = world.adjudicator();
    // A view is not guarded: it shows that the token's call does get through where nothing stops it.
    const VIEW: &str = "a view";
    let coin = Pair::new(world, NATIVE, "with a hostile token").funded(world, 50, 50).await;
    let inner = |token: &Pair| -> Vec<(&'static str, Call)> {
        let order = FundOrder { terms: token.terms.clone(), asset: token.asset, side: Side::Member, amount: a(100) };
        vec![
            ("deposit", adjudicator.deposit(&token.terms, token.asset, Side::Member, a(100), &Funding::Caller)),
            ("open", adjudicator.open(&token.terms, Bytes::new(), token.asset, a(100), &Funding::Caller)),
            ("fundMany", adjudicator.fund_many(&[order])),
            ("settle", adjudicator.settle(&coin.signed(coin.settlement(1, 60, 40, true)))),
            ("startClose", adjudicator.start_close(&token.close_order(Some(Side::Hub)))),
            ("respond", adjudicator.respond(&token.response([token.voucher(0, 1)]))),
            ("finalize", adjudicator.finalize(&token.finalize_order())),
            ("claim", adjudicator.claim(Address::ZERO, NATIVE, token.terms.hub)),
            (VIEW, raw::call(adjudicator.address(), &contract::channelCall { channelId: token.id().0 })),
        ]
    };
    for n in 0..9u8 {
        let token = coin.with_asset(Address::repeat_byte(0xb0 + n));
        let (name, call) = inner(&token).swap_remove(usize::from(n));
        world.set_code(token.asset, &hostile_token(adjudicator.address(), &call.data)).await;
        token.deposit(world, Side::Member, 100).await;
        let slot = async |index| {
            let word = world.chain().provider().get_storage_at(token.asset, U256::from(index)).await;
            word.expect("the chain answers")
        };
        assert_eq!(slot(2).await, U256::from(1), "{name}: tried");
        assert_eq!(slot(1).await, U256::from(u8::from(name == VIEW)), "{name}: and refused");
        assert_eq!(slot(0).await, U256::from(100), "{name}: what arrived");
        let books = token.books(world).await;
        assert_eq!((books.member_deposit, books.hub_deposit), (a(100), a(0)), "{name}");
    }
    assert_eq!(coin.books(world).await.custody(), U256::from(100));
    audit(world, &[&coin]).await;
}

async fn what_a_member_cannot_receive_waits_for_him(world: &World) {
    let crony = world.address(Person::Crony);
    let (burns_gas, reverts) = (Bytes::from_static(&[0x5b, 0x5f, 0x56]), Bytes::from_static(&[0x5f, 0x5f, 0xfd]));
    let mut pairs = Vec::new();
    for name in ["burns", "reverts"] {
        pairs.push(Pair::between(world, Person::Hub, Person::Crony, NATIVE, name).funded(world, 100, 10).await);
    }
    let anyone = world.address(Person::Anyone);
    let mut waits = 0u64;
    for (pair, code) in pairs.iter().zip([&burns_gas, &reverts]) {
        world.set_code(crony, code).await;
        world.send(anyone, world.adjudicator().settle(&pair.signed(pair.settlement(1, 30, 5, false)))).await;
        world.send(pair.terms.hub, world.adjudicator().start_close(&pair.close_order(None))).await;
        assert_eq!(pair.finalize(world).await, (70, 5), "a receiver cannot hold up a payout");
        waits = if pair.vault(world).await == pairs[0].vault(world).await { waits + 100 } else { 100 };
        assert_eq!(pair.claimable(world, crony).await, U256::from(waits));
        world.refusal(anyone, &world.adjudicator().claim(pair.vault(world).await, NATIVE, crony)).await;
        audit(world, &pairs.iter().collect::<Vec<_>>()).await;
    }
    world.set_code(crony, &Bytes::new()).await;
    let (vault, before) = (pairs[1].vault(world).await, world.balance(NATIVE, crony).await);
    world.send(anyone, world.adjudicator().claim(vault, NATIVE, crony)).await;
    assert_eq!(world.balance(NATIVE, crony).await - before, U256::from(waits));
    let again = world
        .refusal(
            anyone,
            &raw::call(world.adjudicator().address(), &contract::claimCall { vault, asset: NATIVE, account: crony }),
        )
        .await;
    decoded::<contract::NothingToClaim>(&again);
}

/// A token whose `transferFrom` first calls `target` with `data`, once.
///
/// Slot 0 is the balance of whoever is asked about, slot 1 whether the call back succeeded, slot 2 whether it was made.
fn hostile_token(target: Address, data: &Bytes) -> Bytes {
    const TRANSFER_FROM: u8 = 0x17;
    const TRANSFER: u8 = 0x4d;
    const DATA: u8 = 0x5e;
    let length = u16::try_from(data.len()).expect("a call of some kilobytes").to_be_bytes();
    let code = [
        // If the selector is that of transferFrom, go there; else answer slot 0.
        &[0x5f, 0x35, 0x60, 0xe0, 0x1c, 0x63, 0x23, 0xb8, 0x72, 0xdd, 0x14, 0x61, 0, TRANSFER_FROM, 0x57][..],
        &[0x5f, 0x54, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xf3],
        // transferFrom: the second time, only move the money.
        &[0x5b, 0x60, 2, 0x54, 0x61, 0, TRANSFER, 0x57],
        // Remember; copy the data behind the code to memory; call; remember how it went.
        &[0x60, 1, 0x60, 2, 0x55, 0x61, length[0], length[1], 0x61, 0, DATA, 0x5f, 0x39],
        &[0x5f, 0x5f, 0x61, length[0], length[1], 0x5f, 0x5f, 0x73],
        target.as_slice(),
        &[0x5a, 0xf1, 0x60, 1, 0x55],
        // Add the amount to slot 0 and answer true.
        &[0x5b, 0x60, 0x44, 0x35, 0x5f, 0x54, 0x01, 0x5f, 0x55, 0x60, 1, 0x5f, 0x52, 0x60, 0x20, 0x5f, 0xf3],
    ]
    .concat();
    let jumps = [TRANSFER_FROM, TRANSFER].map(|to| code[usize::from(to)]);
    assert_eq!((jumps, code.len()), ([0x5b; 2], usize::from(DATA)), "jumps lead where they should");
    [code.as_slice(), data].concat().into()
}
