//! The stories, by the part of the system that they are about.

mod adversaries;
mod anvil;
mod contract;
mod layering;
mod model;
mod stories;
mod tools;
