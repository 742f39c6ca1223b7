//! Workloads of our own contract: opening, settling and mass exits, as a hub on the embedded ledger sends them.

use alloy_primitives::{Address, B256, Bytes, TxKind, U256, keccak256};
use alloy_sol_types::{SolCall, SolStruct, SolValue, eip712_domain, sol};
use proto::keys::{Scheme, SecretKey};
use proto::typed::{ChannelTerms, CloseRequest, Settlement};
use proto::{ChannelId, Domain, Proven, Side, Signed};

use super::BenchError;
use super::world::{Actor, Order, PreparedBlock, Token, World, stranger};

/// Accounts that the hub submits from, each a nonce chain of its own.
pub const SUBMITTERS: usize = 16;

/// Seconds in which a unilateral close can be answered.
const CHALLENGE_PERIOD_S: u32 = 60;

/// What a channel is opened with.
const DEPOSIT: u64 = 1_000_000;
/// What the member takes out in a settlement.
const TO_MEMBER: u128 = 400_000;
/// What the hub takes out in it.
const TO_HUB: u128 = 300_000;

/// Gas of one opening.
const OPEN_GAS: u64 = 300_000;
/// Gas of a call that pays out: the contract insists that 126,000 are left for the payout.
const PAYOUT_GAS: u64 = 300_000;
/// Gas of the start of a close.
const CLOSE_GAS: u64 = 120_000;

mod abi {
    #![allow(missing_docs, clippy::all)]
    use alloy_sol_types::sol;
    sol!(IAdjudicator, "../contracts/artifacts/IAdjudicator.json");
}
use abi::IAdjudicator as contract;

sol! {
    struct ReceiveWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
}

/// A channel between the hub and one member.
#[derive(Debug)]
struct Channel {
    member: Actor,
    key: SecretKey,
    terms: ChannelTerms,
    id: ChannelId,
    shard: u64,
}

/// The hub, its submitters and its channels.
#[derive(Debug)]
pub struct Hub<'a> {
    domain: Domain,
    usdh: Address,
    key: SecretKey,
    submitters: &'a [Actor],
    channels: Vec<Channel>,
    vaults: Vec<Address>,
}

impl<'a> Hub<'a> {
    /// A hub with one channel for each member, not opened yet. Channels stand in an order that takes the vaults in
    /// turn, as block building spreads them, and each vault belongs to one submitter, as far as there are enough.
    pub fn new(world: &mut World, shards: u16, submitters: &'a [Actor], members: &[Actor]) -> Result<Self, BenchError> {
        let deployment = world.deployment;
        let domain = Domain::new(deployment.chain_id, deployment.adjudicator);
        let key = voucher_key("hub", 0);
        let hub = stranger("hub", 0);
        let mut by_shard = (0..shards).map(|_| Vec::new()).collect::<Vec<Vec<Channel>>>();
        for (number, member) in members.iter().enumerate() {
            let member_key = voucher_key("member", number as u64);
            let terms = ChannelTerms {
                hub,
                hubKey: key.public().bytes,
                hubScheme: key.scheme().number(),
                member: member.address,
                memberKey: member_key.public().bytes,
                memberScheme: member_key.scheme().number(),
                challengePeriod: CHALLENGE_PERIOD_S,
                salt: keccak256((number as u64).abi_encode()),
            };
            let id = domain.channel_id(&terms);
            let shard = u64::try_from(U256::from_be_bytes(id.0.0) % U256::from(shards)).expect("below 2^16");
            let channel = Channel { member: *member, key: member_key, terms, id, shard };
            by_shard[shard as usize].push(channel);
        }
        let mut channels = Vec::with_capacity(members.len());
        while channels.len() < members.len() {
            channels.extend(by_shard.iter_mut().filter_map(Vec::pop));
        }
        world.fund(submitters.iter().map(|submitter| submitter.address));
        world.mint(members.iter().map(|member| member.address), DEPOSIT)?;
        let vaults = vaults(world, deployment.adjudicator, shards)?;
        Ok(Self { domain, usdh: deployment.usdh, key, submitters, channels, vaults })
    }

    /// Opens every channel before the measurement, paid by an allowance of its member.
    pub fn open_all(&self, world: &mut World) -> Result<(), BenchError> {
        let adjudicator = self.domain.adjudicator;
        let approve = Token::approveCall { spender: adjudicator, amount: U256::MAX }.abi_encode();
        let calls = self.channels.iter().flat_map(|channel| {
            let funding = contract::Funding { kind: 0, data: Bytes::new() };
            let open = self.open_call(channel, funding).abi_encode();
            let member = channel.member.address;
            [(member, TxKind::Call(self.usdh), approve.clone()), (member, TxKind::Call(adjudicator), open)]
        });
        world.setup("opening channels", calls)
    }

    /// Openings that the hub sends and pays gas for; the money comes by the member's EIP-3009 signature.
    pub fn opens(&self) -> Vec<Order> {
        let domain = eip712_domain! {
            name: "USD Hub Test",
            version: "1",
            chain_id: self.domain.chain_id,
            verifying_contract: self.usdh,
        };
        let open = |channel: &Channel| {
            let payer_nonce = keccak256(channel.id.0);
            let authorization = ReceiveWithAuthorization {
                from: channel.member.address,
                to: self.vaults[channel.shard as usize],
                value: U256::from(DEPOSIT),
                validAfter: U256::ZERO,
                validBefore: U256::from(u64::MAX),
                nonce: keccak256((channel.id.0, self.usdh, U256::from(Side::Member as u8), payer_nonce).abi_encode()),
            };
            let signature = channel.member.sign(authorization.eip712_signing_hash(&domain)).as_bytes();
            let data = (
                authorization.from,
                authorization.validAfter,
                authorization.validBefore,
                payer_nonce,
                Bytes::from(signature),
            );
            let funding = contract::Funding { kind: 1, data: data.abi_encode_params().into() };
            self.open_call(channel, funding).abi_encode()
        };
        self.orders(OPEN_GAS, open)
    }

    /// Settlements that pay both sides out and leave the channel open.
    pub fn settlements(&self) -> Vec<Order> {
        let settle = |channel: &Channel| {
            let settlement = Settlement {
                channelId: channel.id.0,
                asset: self.usdh,
                seq: 1,
                memberWithdrawn: TO_MEMBER,
                hubWithdrawn: TO_HUB,
                validUntil: u64::MAX,
                close: false,
            };
            let hub = Proven::sign(&self.domain, &self.key, settlement.clone());
            let member = Signed::sign(&self.domain, &channel.key, settlement);
            let entry = contract::SettleEntry {
                terms: terms(&channel.terms),
                asset: self.usdh,
                seq: 1,
                memberWithdrawn: TO_MEMBER,
                hubWithdrawn: TO_HUB,
                validUntil: u64::MAX,
                close: false,
                memberSignature: member.signature().as_slice().to_vec().into(),
                hubProof: contract::Proof {
                    signature: hub.proof().signature().as_slice().to_vec().into(),
                    batched: false,
                    flush: 0,
                    path: Vec::new(),
                },
            };
            contract::settleCall { entry }.abi_encode()
        };
        self.orders(PAYOUT_GAS, settle)
    }

    /// Everybody leaves at once: a close of every channel, then, after the challenge period, the payout of every one.
    pub fn exit(&self, world: &mut World) -> Result<Vec<PreparedBlock>, BenchError> {
        let close = |channel: &Channel| {
            let request = CloseRequest { channelId: channel.id.0, asset: self.usdh, validUntil: u64::MAX };
            let request = Signed::sign(&self.domain, &channel.key, request);
            contract::startCloseCall {
                terms: terms(&channel.terms),
                asset: self.usdh,
                validUntil: u64::MAX,
                side: Side::Member as u8,
                signature: request.signature().as_slice().to_vec().into(),
            }
            .abi_encode()
        };
        let finalize =
            |channel: &Channel| contract::finalizeCall { terms: terms(&channel.terms), asset: self.usdh }.abi_encode();
        let mut blocks = world.blocks(&self.orders(CLOSE_GAS, close))?;
        world.pass(u64::from(CHALLENGE_PERIOD_S) + 1);
        blocks.extend(world.blocks(&self.orders(PAYOUT_GAS, finalize))?);
        Ok(blocks)
    }

    /// One transaction for each channel; the submitters take turns over the vaults.
    fn orders(&self, gas_limit: u64, call: impl Fn(&Channel) -> Vec<u8>) -> Vec<Order> {
        let order = |(i, channel): (usize, &Channel)| {
            // With fewer vaults than submitters, turns by place keep every submitter busy.
            let turn = if self.vaults.len() < self.submitters.len() { i } else { channel.shard as usize };
            Order {
                from: self.submitters[turn % self.submitters.len()],
                to: self.domain.adjudicator,
                value: 0,
                data: call(channel).into(),
                gas_limit,
                shard: Some(channel.shard),
            }
        };
        self.channels.iter().enumerate().map(order).collect()
    }

    fn open_call(&self, channel: &Channel, funding: contract::Funding) -> contract::openCall {
        contract::openCall {
            terms: terms(&channel.terms),
            consent: Bytes::new(),
            asset: self.usdh,
            amount: u128::from(DEPOSIT),
            funding,
        }
    }
}

/// Members and hub of the embedded ledger sign with Ed25519, which it verifies by a precompile.
fn voucher_key(whose: &str, number: u64) -> SecretKey {
    SecretKey::derive(Scheme::Ed25519, &keccak256((whose, number).abi_encode()).0, "bench")
}

fn terms(terms: &ChannelTerms) -> contract::Terms {
    contract::Terms {
        hub: terms.hub,
        hubKey: terms.hubKey,
        hubScheme: terms.hubScheme,
        member: terms.member,
        memberKey: terms.memberKey,
        memberScheme: terms.memberScheme,
        challengePeriod: terms.challengePeriod,
        salt: terms.salt,
    }
}

/// The vaults by number, as the contract itself names them: a channel whose id is the number lies in it.
fn vaults(world: &World, adjudicator: Address, shards: u16) -> Result<Vec<Address>, BenchError> {
    let vault = |shard: u16| {
        let data = contract::vaultOfCall { channelId: B256::from(U256::from(shard)) }.abi_encode();
        let answer = world.ask("asking for a vault", adjudicator, data)?;
        contract::vaultOfCall::abi_decode_returns(&answer)
            .map_err(|e| BenchError::Setup { what: "asking for a vault", why: e.to_string() })
    };
    (0..shards).map(vault).collect()
}
