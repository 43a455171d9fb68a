//! A rate limit per user for log lines about vifs that come and go. A user who registers and leaves
//! in a loop neither fills the log nor displaces other users' lines. Counters include suppressed
//! events (`vifs_registered`, `vifs_kept`, `vifs_forgotten`), and `-v` logs them.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Arguments;

use crate::quiet::Quiet;
use crate::time::Instant;

use super::output::Output;

/// Most lines per user and minute: enough for a host that starts sixty guests at once.
const MOST_LINES: u32 = 120;
/// Users with separate limits; all others share one.
const MOST_USERS: usize = 64;

/// The limits on lines about each user's vifs.
#[derive(Debug, Default)]
pub(super) struct Comings {
    users: BTreeMap<u32, Quiet>,
    others: Option<Quiet>,
}

/// The destination of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Log,
    /// To the log, with a note that further lines are suppressed.
    LogLast,
    Debug,
}

impl Comings {
    /// Writes a line about a user's vif, at level info or, beyond the limit, at level debug.
    pub(super) fn log(
        &mut self,
        uid: u32,
        line: Arguments<'_>,
        now: Instant,
        outputs: &mut VecDeque<Output>,
    ) {
        let place = self.place(uid, now);
        if place == Place::Debug {
            return log::debug!("{line}");
        }
        outputs.push_back(Output::Log { level: log::Level::Info, text: line.to_string() });
        if place == Place::LogLast {
            let text = format!(
                "vifs of user {uid} come and go more than {MOST_LINES} times a minute: suppressing \
                 further lines; their backends' logs say why they end"
            );
            outputs.push_back(Output::Log { level: log::Level::Warn, text });
        }
    }

    fn place(&mut self, uid: u32, now: Instant) -> Place {
        if self.users.len() >= MOST_USERS && !self.users.contains_key(&uid) {
            self.users.retain(|_, quiet| quiet.is_busy(now));
        }
        let quiet = match self.users.len() < MOST_USERS || self.users.contains_key(&uid) {
            true => self.users.entry(uid).or_insert(Quiet::new(MOST_LINES)),
            false => self.others.get_or_insert(Quiet::new(MOST_LINES)),
        };
        match (quiet.level(now), quiet.has_room(now)) {
            (log::Level::Debug, _) => Place::Debug,
            (_, true) => Place::Log,
            (_, false) => Place::LogLast,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn a_flood_of_one_user_is_cut_short_once_a_minute_and_hides_nobody_else() {
        let mut comings = Comings::default();
        let mut minute =
            |ms: u64| (0..2000).map(|_| comings.place(1000, at(ms))).collect::<Vec<_>>();
        for ms in [0, 60_000] {
            let places = minute(ms);
            let count = |what: Place| places.iter().filter(|place| **place == what).count();
            assert_eq!([Place::Log, Place::LogLast].map(count), [119, 1]);
            assert_eq!(places[119], Place::LogLast);
        }
        assert_eq!(comings.place(1001, at(60_000)), Place::Log);
    }

    #[test]
    fn as_many_users_as_there_are_fill_neither_log_nor_memory() {
        let mut comings = Comings::default();
        let said = (0..10_000).filter(|uid| comings.place(*uid, at(0)) != Place::Debug).count();
        assert_eq!(said, MOST_USERS + 120);
        assert_eq!(comings.users.len(), MOST_USERS);
        assert_eq!(comings.place(20_000, at(60_000)), Place::Log);
        assert_eq!(comings.users.len(), 1, "those of the minute before are forgotten");
    }
}
