//! Adversaries, each named and in a file of its own: members who cheat a real hub, and hubs that cheat a real member.
//!
//! They speak the wire themselves: [`wire`] is a member without scruples, [`fake_hub`] a hub that says what the story
//! wants. None of them does harm: what they try is refused or comes to nothing, and those beside them go on.

mod equivocator;
mod fake_hub;
mod garbage;
mod liar;
mod overspender;
mod replayer;
mod stale_hub;
mod stranger;
mod ticker;
mod wire;
mod withholder;
