//! The stories, by the part of the system that they are about.

mod contract;
mod model;
mod layering;
