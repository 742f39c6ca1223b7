//! Chain time that does not jump.
//!
//! `timestamp = max(parent, min(wall clock, parent + 2 x monotonic time since the parent))`, downtime not counted:
//! after an outage or a step of the wall clock the chain catches up at twice the real speed, so every challenge
//! window still contains real time in which one can respond. Development mode may move the time at will.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The chain runs at most this many times as fast as real time while it catches up.
pub const CATCH_UP_RATE: u32 = 2;

/// The clock of a chain. Fractions of a second are kept, or a chain with many blocks a second would stand still.
#[derive(Debug, Clone)]
pub struct ChainClock {
    /// Chain time (since 1970) at `at`.
    anchor: Duration,
    at: Instant,
    /// Development mode: added to the wall clock, in seconds.
    offset_s: i64,
}

impl ChainClock {
    /// A clock at the timestamp of a block that was sealed before this process started, or just now.
    pub fn resume(timestamp_s: u64, offset_s: i64, at: Instant) -> Self {
        Self { anchor: Duration::from_secs(timestamp_s), at, offset_s }
    }

    /// Chain time when the wall clock shows `wall` and the monotonic clock `at`.
    pub fn now(&self, wall: Duration, at: Instant) -> Duration {
        let elapsed = at.saturating_duration_since(self.at);
        let wall = if self.offset_s >= 0 {
            wall.saturating_add(Duration::from_secs(self.offset_s.unsigned_abs()))
        } else {
            wall.saturating_sub(Duration::from_secs(self.offset_s.unsigned_abs()))
        };
        let fastest = self.anchor.saturating_add(elapsed.saturating_mul(CATCH_UP_RATE));
        self.anchor.max(wall.min(fastest))
    }

    /// The timestamp a block sealed now gets.
    pub fn timestamp(&self) -> u64 {
        self.now(wall_clock(), Instant::now()).as_secs()
    }

    /// Moves the anchor to now; called for every block.
    pub fn advance(&mut self) {
        let at = Instant::now();
        self.anchor = self.now(wall_clock(), at);
        self.at = at;
    }

    /// Development mode: moves chain time to `timestamp_s` and lets it run on from there.
    pub fn set(&mut self, timestamp_s: u64) {
        let wall = i64::try_from(wall_clock().as_secs()).unwrap_or(i64::MAX);
        self.offset_s = i64::try_from(timestamp_s).unwrap_or(i64::MAX).saturating_sub(wall);
        self.anchor = Duration::from_secs(timestamp_s);
        self.at = Instant::now();
    }

    /// Seconds the clock was moved against the wall clock.
    pub fn offset_s(&self) -> i64 {
        self.offset_s
    }
}

/// Time since 1970 by the wall clock; zero if it stands before that.
pub fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn chain_time_follows_the_rule_in_every_case() {
        let start = Instant::now();
        let clock = ChainClock::resume(1_000, 0, start);
        // (wall clock, monotonic time since the parent, chain time)
        let cases = [
            (1_000, 0, 1_000),
            (1_010, 10, 1_010),  // the normal case: the wall clock
            (90_000, 10, 1_020), // after an outage of a day: twice as fast as real time
            (500, 10, 1_000),    // the wall clock stepped back: never before the parent
            (90_000, 0, 1_000),  // downtime does not count
            (90_000, 60_000, 90_000),
        ];
        for (wall, elapsed, expected) in cases {
            assert_eq!(clock.now(S(wall), start + S(elapsed)), S(expected), "wall {wall}, elapsed {elapsed}");
        }
    }

    #[test]
    fn many_blocks_a_second_do_not_stop_the_clock() {
        let start = Instant::now();
        let mut clock = ChainClock::resume(1_000, 0, start);
        for tick in 1..=4_000u64 {
            let at = start + Duration::from_millis(tick);
            let now = clock.now(S(1_000) + Duration::from_millis(tick), at);
            clock = ChainClock { anchor: now, at, offset_s: 0 };
        }
        assert_eq!(clock.anchor, S(1_004));
    }

    #[test]
    fn time_set_in_development_mode_runs_on() {
        let mut clock = ChainClock::resume(1_000, 0, Instant::now());
        let target = wall_clock().as_secs() + 86_400;
        clock.set(target);
        assert!((target..target + 5).contains(&clock.timestamp()));
        clock.advance();
        assert!(clock.timestamp() >= target);
    }
}
