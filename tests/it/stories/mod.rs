//! Hub, members and ledger together, over real gRPC: what a user lives through.
//!
//! [`paying`] is daily life, [`leaving`] how money comes out, with the hub or without it, [`exits`] how it comes out with
//! one file, [`streams`] what meters pay, [`tower`] how a watchtower of its own gets it for whoever is away, [`withheld`]
//! how a payee gets it whose hub tells him nothing, [`restarts`] what programs survive that are stopped in order,
//! [`crashes`] what they survive when the power
//! goes at any operation of the disk, and [`rules`] holds the list of rules that each have a test by name.

mod crashes;
mod exits;
mod leaving;
mod paying;
mod restarts;
mod rules;
mod streams;
mod tap;
mod tower;
mod withheld;

pub(crate) use paying::proven;
