//! The payhub protocol, without I/O, clock or randomness of its own. This page is its specification.
//!
//! # In one paragraph
//!
//! A **member** and a **hub** share a **channel**. Each direction is a stream of **vouchers**, signed by its payer alone,
//! whose *cumulative* amount only grows; the newest voucher of a lane replaces every earlier one. The payee needs nothing
//! but the newest voucher to be paid on the ledger. Nobody signs an old state away, no old state can be punished, and the
//! two directions never conflict. A payment from A to B is one voucher A → hub and one voucher hub → B; the hub makes
//! both durable in one write and signs everything that it owes after that write with one signature.
//!
//! # Who is who
//!
//! * A **payout account** is an address on the ledger. Money leaves a channel only to the two that its terms fix.
//! * A **voucher key** is a hot key that signs vouchers and settlements ([`keys`]): scheme 1 is Ed25519, scheme 2 secp256k1.
//! * A **channel** is named by the digest of its [`ChannelTerms`]; each asset in it is an **account** with books of its own.
//! * A **lane** is one of 64 independent sequences in the member's direction; the hub pays on lane 0.
//!
//! # What is signed
//!
//! EIP-712 structs and nothing else ([`typed`]). Members sign digests; the hub signs, once per flush and key, the Merkle
//! root over its vouchers, receipts and settlements ([`mod@batch`]). Amounts are unsigned 128-bit base units ([`amount`]).
//! A time field is valid while `timestamp <= field`.
//!
//! # The books of an account
//!
//! ```text
//! memberNet = MD - MW + PH - PM      hubNet = HD - HW + PM - PH      custody C = MD + HD - MW - HW = memberNet + hubNet
//! ```
//!
//! Deposits `MD HD` and withdrawals `MW HW` stand on the ledger; `PM PH` are what member and hub have paid off it. A
//! settlement that a party signed counts, for that party, as posted until it is overtaken or expired at the confirmed
//! head: `MW* HW*` is the largest of the ledger's withdrawals and those. **The hub accepts** a member's frame only if
//! `MD - MW* + PH - PM >= 0` after it, and reserves in the same step, for each payee, `HD - HW* + PM - PH >= 0`: it never
//! signs an unbacked credit. **A member counts** a hub voucher only under the same condition; what is above it is shown
//! as *unbacked*. Deposits count when confirmed; withdrawals, closes and settlements when seen or signed ([`account`]).
//!
//! # Paying
//!
//! A **frame** ([`frame`]) is one lane, 1 to 1,024 payments and one voucher over them. It is accepted or refused as a
//! whole, by one sequencer, in one record ([`books`]). The checks, in the order of [`books::Refusal`]: form and limits,
//! signature, ids, running, channel, session, asset, account, continuity of lane and memo, fees, payees, the payer's
//! balance, the payees' backing.
//!
//! * *Every* voucher's own signature is checked, never only that of a later one.
//! * A payment id has one outcome for ever within its payer's channel. The same payments again get the same answer.
//! * A refusal is final for the bytes that it answers. It is not stored and uses up no id.
//! * A channel has one live session. A new one is answered when all that was accepted before it is durable.
//! * A client moves a lane only over its own verified signature ([`member`]).
//!
//! **Streams** ([`stream`]). For many small ticks to one payee a member signs one voucher with an **anchor**, the end of a
//! chain of 1 to 2,048 hashes under a fresh secret, and pays by revealing words of that chain: the word of index `k`
//! makes the lane worth `cumulative + k * tick`. A tick costs a hash and no signature.
//!
//! * A lane is worth its newest voucher, plain or of ticks. What continues a lane of ticks, a frame, another opening or a
//!   *fold*, starts from the highest index accepted and the opening's memo; nothing more is revealed on the old chain.
//! * Every memo is `keccak256(previous memo, body)`: for an opening the hash of its terms, for a fold that of anchor and
//!   index. A fold is a plain voucher of the same value; it pays nothing and makes the evidence small.
//! * The checks are those of a frame, where they apply; ticks are accepted or refused up to an index. What was accepted
//!   before is known at any time. An anchor is used once: who was shown a word can claim it wherever its anchor is signed.
//! * The ticks of one opening that a flush accepts are one payment with the id `stream || k`. In the record, and in the
//!   payments that a receipt opens to, they stand after all frames of the flush.
//! * The evidence of one direction must fit one call: 10,000 gas a lane and 300 a tick that is not folded come to at most
//!   2,500,000. Beyond it the hub asks for a fold ([`stream::CLAIM_GAS_MAX`]).
//! * Who revealed a word has signed it: it counts as exposed until a receipt proves it, refused or not.
//!
//! **Flush.** Frames accepted while the last write was under way are written together. Only then does anything leave:
//! `Accepted` with receipts to payers, `Credited` with a voucher to payees.
//!
//! **Receipts.** The hub numbers the credits of each payee's account 1, 2, 3 ..., one per payer and flush. A [`typed::Receipt`]
//! says the number, the amount, the payee's total after it and the hash of the payments. `head(n) = keccak256(head(n-1),
//! digest of receipt n)` chains them; the hub's voucher carries the newest number and head. The payee acknowledges a head
//! with its own key; the hub shows that to each payer with what is needed to find his receipt in it. **Accepted** = the
//! hub owes it. **Delivered** = the payee's key signed that it has it.
//!
//! **Outcomes.** `NotPaid`: refused in the newest session, or the lane continued without it. `Paid`: a receipt of the
//! hub's pinned key, for the pinned payee, opens to this payer's ids and amounts. Otherwise `Unknown`, until the hub
//! answers or the ledger has decided.
//!
//! # Settling and closing
//!
//! A **settlement** carries cumulative withdrawals. The hub proposes; from that moment it counts the proposal as posted.
//! A party signs only if the number is above every one it signed and less than 2^32 above the ledger's, both totals are
//! at least `MW* HW*`, their sum is at most the deposits, both nets stay at or above zero with everything it signed and
//! holds, and the validity is bounded. A close freezes the account until it is posted, overtaken or expired.
//!
//! A **unilateral close** opens one challenge period, fixed once. Until the deadline anybody may post newer evidence, and
//! whoever sees a close posts at once everything he holds above what is posted, whatever the nets look like. After it
//! anybody may finalize: `m = min(C, max(0, (MD + PH) - (MW + PM)))` to the member, `C - m` to the hub. Final is for ever.
//!
//! # Invariants
//!
//! * **I1** custody equals the sum of the nets, and `MW + HW <= MD + HD`.
//! * **I2** totals on the ledger, accepted cumulatives and counters only grow.
//! * **I3** nothing leaves before the record that implies it is durable, on either side.
//! * **I4** for every flush and asset: debits = credits + the hub's income.
//! * **I5** a payment id has one outcome for ever.
//! * **I6** what a verifier accepts off the ledger, the contract accepts, and the other way round. The one exception are
//!   Ed25519 keys with torsion, of small order or off the curve: the contract opens channels with them, programs refuse to
//!   serve or use those.
//! * **I7** for every unit that a party counts as its own it holds, durable, the evidence that the ledger will pay it.
//! * **I8** memory, queues, frames, messages and evidence are bounded, and each bound has a defined behaviour.
//! * **I9** per vault and asset: balance >= custody + claimable.
//!
//! # What no text can fix
//!
//! Whoever runs the only ledger node is trusted: use a node that is not the hub's. A credit number used twice is seen by
//! comparing acknowledgement and receipt, and two signatures of the hub then prove it. After the loss of its own store a
//! member gets from the hub what the hub chooses to show: towers and backups exist for that.

pub mod account;
pub mod amount;
pub mod batch;
pub mod books;
pub mod evidence;
pub mod frame;
pub mod ids;
pub mod keys;
pub mod member;
pub mod stream;
pub mod typed;
#[cfg(test)]
mod vectors;
pub mod wire;

pub use amount::{Amount, Net};
pub use evidence::{Proof, Proven, Signed};
pub use frame::{Frame, LaneTip, Payment};
pub use ids::{AccountId, Asset, ChannelId, NATIVE, PaymentId, Side};
pub use keys::{PublicKey, Scheme, SecretKey, Signature};
pub use stream::{LaneVoucher, StreamId, StreamOpening, StreamTerms};
pub use typed::{ChannelTerms, Domain};
