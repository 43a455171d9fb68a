//! Whether the guest is here: since when its rings run or stand still, and how it makes itself known.

#![forbid(unsafe_code)]

use std::time::Duration;

use super::arrival::Arrival;
use crate::time::Instant;

/// Frames that arrived while the rings stood still for longer than this are not delivered any more.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// A frontend that goes on with a new backend starts the rings within this time of its connection;
/// one that starts them later waited for a guest, to boot or to migrate here.
const SETUP: Duration = Duration::from_millis(250);

/// A guest that comes and goes.
#[derive(Debug, Default)]
pub(super) struct Presence {
    is_running: bool,
    /// When the rings stopped, if they have not run since.
    stopped_at: Option<Instant>,
    /// When the frontend connected, if its rings have not run since.
    connected_at: Option<Instant>,
    /// The guest has announced itself; varpd must learn that.
    has_announced: bool,
    /// Whether the guest has migrated here, and which announcements of that are still due.
    arrival: Arrival,
}

impl Presence {
    /// Whether the rings run.
    pub(super) const fn is_running(&self) -> bool {
        self.is_running
    }

    /// A frontend connected.
    pub(super) const fn frontend_connected(&mut self, now: Instant) {
        self.connected_at = Some(now);
    }

    /// The rings start. Returns whether frames that have arrived before are not for the guest: the rings
    /// stood still for long, or the guest was not here (group frames it has had where it was).
    #[must_use]
    pub(super) fn rings_started(&mut self, now: Instant) -> bool {
        self.is_running = true;
        let was_long = |since: Option<Instant>, limit| since.is_some_and(|at| now - at > limit);
        let has_arrived = was_long(self.connected_at.take(), SETUP);
        was_long(self.stopped_at.take(), STALE_AFTER) || has_arrived
    }

    /// The rings stop.
    pub(super) fn rings_stopped(&mut self, now: Instant) {
        self.is_running = false;
        self.stopped_at = Some(now);
        self.arrival.rings_stopped();
    }

    /// Whether the rings have stood still for so long that frames from then are not delivered any more.
    pub(super) fn is_long_gone(&self, now: Instant) -> bool {
        self.stopped_at.is_some_and(|at| now - at > STALE_AFTER)
    }

    /// The guest has announced itself.
    pub(super) const fn note_announcement(&mut self) {
        self.has_announced = true;
    }

    /// Whether the guest has announced itself since [`Presence::take_announcement`].
    pub(super) const fn has_announced(&self) -> bool {
        self.has_announced
    }

    /// The same; from now on only a new announcement counts.
    pub(super) fn take_announcement(&mut self) -> bool {
        std::mem::take(&mut self.has_announced)
    }

    /// Whether the guest has migrated here.
    pub(super) const fn arrival(&self) -> &Arrival {
        &self.arrival
    }

    /// See [`Presence::arrival`].
    pub(super) const fn arrival_mut(&mut self) -> &mut Arrival {
        &mut self.arrival
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_millis(10_000 + millis)
    }

    #[test]
    fn frames_from_a_short_stop_are_still_for_the_guest() {
        for (stop, is_stale) in [(900, false), (1100, true)] {
            let mut presence = Presence::default();
            assert!(!presence.rings_started(at(0)), "nothing came before");
            presence.rings_stopped(at(0));
            assert_eq!(presence.is_long_gone(at(stop)), is_stale);
            assert_eq!(presence.rings_started(at(stop)), is_stale);
            assert!(!presence.is_long_gone(at(60_000)), "the rings run");
        }
    }

    #[test]
    fn frames_from_before_a_guest_came_are_not_for_it() {
        for (wait, has_arrived) in [(200, false), (300, true)] {
            let mut presence = Presence::default();
            presence.frontend_connected(at(0));
            assert_eq!(presence.rings_started(at(wait)), has_arrived);
            presence.rings_stopped(at(wait));
            assert!(!presence.rings_started(at(wait)), "the connection is old news");
        }
    }
}
