//! What the tests share. One integration binary, `it`, holds the stories.

pub mod chains;
pub mod dice;
pub mod model;
pub mod town;
