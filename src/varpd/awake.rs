//! A host that was suspended, or that is a copy of what it was.
//!
//! While a host sleeps its monotonic clock stands still, and with it the age of keys. A virtual machine that
//! was restored from a snapshot, or cloned, does not notice it by any clock; what it would seal next, another
//! copy may have sealed before with the same key and number. The hypervisor says so where it has a
//! generation id ([`crate::sys::generation`]).
//!
//! | Noticed by | Sessions with other hosts | Group frames |
//! |---|---|---|
//! | CLOCK_BOOTTIME, ahead of CLOCK_MONOTONIC by more than before | have aged by that, are replaced as soon as they are wanted | start anew |
//! | the generation id | end at once | start anew |

use std::time::Duration;

use crate::sys::process;
use crate::time::Now;

use super::daemon::Daemon;

/// The two clocks are not read at one moment; nor does a shorter sleep matter.
const LEAST: Duration = Duration::from_secs(1);

/// How long the host has been suspended, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Sleep {
    known: Option<Duration>,
}

impl Sleep {
    /// `asleep`: since the host's start. Returns how long it slept since the last call.
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
    /// To be called with each turn of the loop.
    pub(super) fn heed_sleep(&mut self, asleep: Duration, now: Now) {
        let Some(slept) = self.sleep.look(asleep) else { return };
        log::info!("this host was suspended for {} s: renewing keys", slept.as_secs());
        if let Some(seed) = seed() {
            self.security.awake(slept, seed, now);
            self.renew_group_keys(now);
        }
    }

    /// The kernel has something to say of devices.
    pub(super) fn heed_generation(&mut self, now: Now) {
        if !self.generation.as_ref().is_some_and(|generation| generation.has_changed()) {
            return;
        }
        log::warn!(
            "this machine was restored from a snapshot or cloned: ending all sessions with other hosts and \
             agreeing on new keys"
        );
        if let Some(seed) = seed() {
            self.security.begin_anew(seed, now);
            self.renew_group_keys(now);
        }
    }
}

/// Randomness that no copy of this process has; the kernel makes its own anew first.
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
        // Many short ones are one long.
        let slept: Vec<_> =
            (1..=30).filter_map(|n| sleep.look(hour * 2 + millis(100 * n))).collect();
        assert_eq!(slept, [millis(1000); 3]);
    }
}
