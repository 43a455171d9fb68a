//! The only place that reads a clock.

use std::sync::OnceLock;
use std::time::{Duration, Instant as StdInstant, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::time::{Instant, Now};

/// Reads both clocks. Called once per turn of an event loop; the result is passed down.
pub fn now() -> Now {
    Now { mono: mono(), wall_ms: wall_ms() }
}

/// Reads the monotonic clock alone.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
pub fn mono() -> Instant {
    static ORIGIN: OnceLock<StdInstant> = OnceLock::new();
    let elapsed = StdInstant::now().duration_since(*ORIGIN.get_or_init(StdInstant::now));
    Instant::from_micros(micros(elapsed))
}

/// How long this host has been suspended since it was started: the monotonic clock stood still
/// meanwhile. Zero if the system doesn't say.
pub fn asleep() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    // In this order what passes between the two counts as time awake.
    let awake = read(ClockId::CLOCK_MONOTONIC);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(awake)
}

/// A clock that was set before 1970 reads as 1970: stamps then grow from what was seen instead.
#[expect(clippy::disallowed_methods, reason = "the one place that may")]
fn wall_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| micros(d) / 1000)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
