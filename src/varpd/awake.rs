//! Notices that this host was suspended, restored from a snapshot, or cloned.
//!
//! While a host is suspended its monotonic clock stands still, and CLOCK_BOOTTIME gets ahead of it.
//! A virtual machine that was restored from a snapshot, or cloned, cannot notice this by any clock.
//! A hypervisor with a generation id reports it ([`crate::sys::generation`]).

use std::time::Duration;

use crate::host::Input;
use crate::sys::generation::{Generation, News};
use crate::sys::process;
use crate::time::Now;

use super::daemon::Daemon;

/// varpd ignores shorter suspensions: the two clocks are not read at the same moment.
const LEAST: Duration = Duration::from_secs(1);

/// The total time for which the host has been suspended.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    known: Option<Duration>,
}

impl Sleep {
    /// `asleep`: total since boot. Returns the time of suspension since the last one reported, if
    /// it is at least [`LEAST`].
    pub(super) fn look(&mut self, asleep: Duration) -> Option<Duration> {
        let known = self.known.unwrap_or(asleep);
        let slept = asleep.saturating_sub(known);
        let is_news = slept >= LEAST;
        if is_news || self.known.is_none() {
            self.known = Some(asleep);
        }
        is_news.then_some(slept)
    }
}

impl Daemon {
    /// Renews keys after a suspension. Call it once per turn of the loop.
    pub(super) fn heed_sleep(&mut self, asleep: Duration, now: Now) {
        let Some(asleep) = self.sleep.look(asleep) else { return };
        log::info!("this host was suspended for {} s: renewing keys", asleep.as_secs());
        if let Some(seed) = seed() {
            self.feed(Input::Slept { asleep, seed }, now);
        }
    }

    /// Reads device events from the kernel.
    pub(super) fn heed_generation(&mut self, now: Now) {
        let Some(news) = self.generation.as_ref().map(Generation::news) else { return };
        let (level, why) = match news {
            News::Nothing => return,
            News::Changed => {
                (log::Level::Warn, "this machine was restored from a snapshot or cloned")
            }
            // Renewing keys in vain is cheap.
            News::Lost => (
                self.alarms.level(now.mono),
                "the kernel had more device events than varpd could read, so this machine may have been restored from a \
                 snapshot",
            ),
        };
        log::log!(level, "{why}: ending all sessions with other hosts and agreeing on new keys");
        if let Some(seed) = seed() {
            self.feed(Input::Restored { seed }, now);
        }
    }
}

/// Random numbers that no copy of this process has: the kernel reseeds itself first. `None` on
/// failure.
fn seed() -> Option<[u8; 32]> {
    let seed = process::random();
    seed.inspect_err(|error| log::error!("cannot renew keys without random numbers: {error}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_slept_since_is_news_and_no_jitter() {
        let mut sleep = Sleep::default();
        let hour = Duration::from_secs(3600);
        let millis = Duration::from_millis;
        assert_eq!(sleep.look(hour), None, "before the start");
        assert_eq!(sleep.look(hour + millis(1)), None);
        assert_eq!(sleep.look(hour - millis(1)), None);
        assert_eq!(sleep.look(hour * 2), Some(hour));
        assert_eq!(sleep.look(hour * 2), None);
        // Many short suspensions add up.
        let slept: Vec<_> =
            (1..=30).filter_map(|n| sleep.look(hour * 2 + millis(100 * n))).collect();
        assert_eq!(slept, [millis(1000); 3]);
    }
}
