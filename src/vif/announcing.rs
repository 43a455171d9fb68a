//! Limits the guest's requests to be announced, because each costs varpd, which all vifs of the
//! host share, a message.
//!
//! Every gratuitous ARP of a guest is such a request. The backend passes on one per [`INTERVAL`];
//! those that arrive meanwhile become one more after it.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::time::Instant;

/// The least time between two announcements: that of the first two after an arrival.
const INTERVAL: Duration = Duration::from_millis(50);

/// What is to be passed on.
#[derive(Debug, Default)]
pub(super) struct Announcing {
    is_wished: bool,
    rests_until: Instant,
}

impl Announcing {
    /// The guest is to be announced.
    pub(super) fn wish(&mut self) {
        self.is_wished = true;
    }

    /// Nothing is to be announced, but what is wished from now on.
    pub(super) fn clear(&mut self) {
        self.is_wished = false;
    }

    /// Whether varpd is to be told now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let is_due = self.is_wished && now >= self.rests_until;
        if is_due {
            (self.is_wished, self.rests_until) = (false, now + INTERVAL);
        }
        is_due
    }

    /// When it is to be told, if it is.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.is_wished.then_some(self.rests_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_wishes_is_twenty_a_second_and_the_last_is_not_lost() {
        let mut announcing = Announcing::default();
        let mut told = 0;
        let start = Instant::from_millis(5000);
        for tenths in 0..10_000 {
            announcing.wish();
            told += usize::from(announcing.take(start + Duration::from_micros(100 * tenths)));
        }
        assert_eq!(told, 20);
        let due = announcing.poll_timeout().unwrap();
        assert_eq!(due, Instant::from_millis(6000));
        assert!(announcing.take(due));
        assert_eq!(announcing.poll_timeout(), None);
        assert!(!announcing.take(Instant::from_millis(9000)));
    }

    #[test]
    fn what_is_no_longer_wished_is_not_told() {
        let mut announcing = Announcing::default();
        announcing.wish();
        announcing.clear();
        assert!(!announcing.take(Instant::from_millis(1)));
    }
}
