//! Decides when varpd examines the interfaces, and how fast it follows changes.
//!
//! A change causes a burst of notifications, so the follower waits a moment after the first one. At
//! least [`GAP`] lies between two examinations of the interfaces, and they take a tenth of the time
//! at most: on a router with a million routes each examination takes long, and routes change all
//! the time. A host whose address keeps changing moves at most once every [`REST`] after its first
//! moves, because each move costs all hosts that send to it.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Config;
use crate::time::Instant;

use super::site::{self, Interface, Place, Step};

/// Interval between repeats of the line that says why varpd waits.
pub(crate) const REMINDER: Duration = Duration::from_secs(60);
/// Delay after the first notification of a change.
const SETTLE: Duration = Duration::from_millis(100);
/// Least time between two examinations.
const GAP: Duration = Duration::from_millis(250);
/// The least time between two examinations is this many times the duration of the first.
const GAP_FACTOR: u32 = 9;
/// Delay after an examination that failed, or whose result varpd could not apply.
const RETRY: Duration = Duration::from_secs(1);
/// Moves within [`WINDOW`] that varpd follows at once.
const MOST_MOVES: usize = 6;
/// See [`MOST_MOVES`].
const WINDOW: Duration = Duration::from_secs(60);
/// Least time between further moves.
const REST: Duration = Duration::from_secs(10);

/// The least time between the end of an examination that took this long and the next one.
pub(crate) fn gap_after(took: Duration) -> Duration {
    GAP.max(took.saturating_mul(GAP_FACTOR))
}

/// The host has no place, and varpd waits for one.
#[derive(Debug)]
struct Wait {
    why: String,
    remind_at: Instant,
}

/// A message about waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// There is no place; the reason.
    Waits(String),
    /// There is a place again.
    Back,
}

/// Follows the host's place on the underlay.
#[derive(Debug, Default)]
pub(super) struct Follower {
    was_deleted: bool,
    look_at: Option<Instant>,
    /// Earliest time of the next examination.
    rests_until: Option<Instant>,
    moves: VecDeque<Instant>,
    wait: Option<Wait>,
}

impl Follower {
    /// Handles a notification of a change.
    pub(super) fn heard(&mut self, any: bool, is_deleted: bool, now: Instant) {
        self.was_deleted |= is_deleted;
        if any {
            self.look_from(now + SETTLE);
        }
    }

    /// varpd could not apply the result.
    pub(super) fn failed(&mut self, now: Instant) {
        self.look_from(now + RETRY);
    }

    fn look_from(&mut self, at: Instant) {
        let at = self.rests_until.map_or(at, |rested| at.max(rested));
        self.look_at = Some(self.look_at.map_or(at, |known| known.min(at)));
    }

    /// Time of the next examination.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.look_at.into_iter().chain(self.wait.as_ref().map(|wait| wait.remind_at)).min()
    }

    /// Handles the end of an examination that took this long.
    pub(super) fn looked(&mut self, took: Duration, end: Instant) {
        (self.look_at, self.rests_until) = (None, Some(end + gap_after(took)));
    }

    /// The step for these interfaces.
    pub(super) fn look(
        &mut self,
        config: &Config,
        place: &Place,
        interfaces: &[Interface],
        now: Instant,
    ) -> Step {
        let step = site::follow(config, place, self.was_deleted, interfaces);
        if matches!(step, Step::Move(_)) {
            while self.moves.front().is_some_and(|at| now.saturating_since(*at) >= WINDOW) {
                self.moves.pop_front();
            }
            let rested = self.moves.back().map_or(now, |last| *last + REST);
            if self.moves.len() >= MOST_MOVES && rested > now {
                self.look_at = Some(rested);
                return Step::Keep;
            }
        }
        step
    }

    /// varpd has applied the result of an examination. Returns the message about waiting, if any.
    pub(super) fn settled(&mut self, step: &Step, now: Instant) -> Option<Word> {
        match step {
            Step::Wait(why) => return self.waits(why.to_string(), now),
            // A postponed examination has no message.
            Step::Keep if self.look_at.is_some() => return None,
            Step::Move(_) => {
                self.was_deleted = false;
                self.moves.push_back(now);
                if self.moves.len() > MOST_MOVES {
                    self.moves.pop_front();
                }
            }
            Step::Rejoin(_) => self.was_deleted = false,
            Step::Keep | Step::Rename(_) => {}
        }
        self.wait.take().map(|_| Word::Back)
    }

    fn waits(&mut self, why: String, now: Instant) -> Option<Word> {
        let is_due = |wait: &Wait| wait.why != why || wait.remind_at <= now;
        let is_news = self.wait.as_ref().is_none_or(is_due);
        if is_news {
            self.wait = Some(Wait { why: why.clone(), remind_at: now + REMINDER });
        }
        is_news.then_some(Word::Waits(why))
    }

    /// The reason for waiting, if the host has no place.
    pub(super) fn awaits(&self) -> Option<&str> {
        self.wait.as_ref().map(|wait| wait.why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(100_000 + ms)
    }

    fn config() -> Config {
        Config { underlay: Some("eth0".into()), ..Config::default() }
    }

    fn interface(address: &str) -> Vec<Interface> {
        vec![Interface {
            name: "eth0".into(),
            index: 2,
            master: None,
            up: true,
            loopback: false,
            default_route: false,
            addresses: vec![address.parse().unwrap()],
        }]
    }

    fn place(address: &str) -> Place {
        Place::of(&interface(address)[0], address.parse().unwrap())
    }

    /// The follower's step for a change at that time.
    fn change(follower: &mut Follower, from: &str, to: &str, now: Instant) -> Step {
        follower.looked(Duration::ZERO, now);
        let step = follower.look(&config(), &place(from), &interface(to), now);
        follower.settled(&step, now);
        step
    }

    #[test]
    fn a_burst_of_news_is_one_look_and_looks_are_apart() {
        let mut follower = Follower::default();
        assert_eq!(follower.poll_timeout(), None);
        follower.heard(false, false, at(0));
        assert_eq!(follower.poll_timeout(), None);
        follower.heard(true, false, at(0));
        follower.heard(true, false, at(50));
        assert_eq!(follower.poll_timeout(), Some(at(100)));
        assert_eq!(change(&mut follower, "192.0.2.1", "192.0.2.1", at(100)), Step::Keep);
        assert_eq!(follower.poll_timeout(), None);
        follower.heard(true, false, at(101));
        assert_eq!(follower.poll_timeout(), Some(at(350)));
        follower.failed(at(340));
        assert_eq!(follower.poll_timeout(), Some(at(350)), "the earlier one");
    }

    /// Routes change all the time on a router, and listing a million of them takes long.
    #[test]
    fn no_more_than_a_tenth_of_the_time_goes_into_looks() {
        let mut follower = Follower::default();
        let took = Duration::from_millis(700);
        let (mut now, mut looks) = (0, 0);
        while now < 60_000 {
            follower.heard(true, false, at(now));
            if follower.poll_timeout().is_some_and(|due| due <= at(now)) {
                looks += 1;
                now += 700;
                follower.looked(took, at(now));
                // Other sources have their turn, and notifications continue.
                follower.heard(true, false, at(now));
            }
            now += 10;
        }
        assert!((8..=9).contains(&looks), "{looks} looks a minute");
        follower.failed(at(now));
        assert!(follower.poll_timeout() > Some(at(now)), "nor after one that failed");
    }

    #[test]
    fn few_moves_are_followed_at_once_and_more_with_rests_between() {
        let mut follower = Follower::default();
        for n in 0..6 {
            let step = change(&mut follower, "192.0.2.1", "192.0.2.2", at(1000 * n));
            assert_eq!(step, Step::Move(place("192.0.2.2")));
        }
        assert_eq!(change(&mut follower, "192.0.2.1", "192.0.2.2", at(6000)), Step::Keep);
        assert_eq!(follower.poll_timeout(), Some(at(15_000)), "put off, not forgotten");
        let step = change(&mut follower, "192.0.2.1", "192.0.2.2", at(15_000));
        assert_eq!(step, Step::Move(place("192.0.2.2")));
        assert_eq!(change(&mut follower, "192.0.2.1", "192.0.2.2", at(16_000)), Step::Keep);
        let step = change(&mut follower, "192.0.2.1", "192.0.2.2", at(80_000));
        assert_eq!(step, Step::Move(place("192.0.2.2")), "the window is over");
        assert!(follower.moves.len() <= MOST_MOVES);
    }

    #[test]
    fn what_is_waited_for_is_said_at_once_and_now_and_then() {
        let mut follower = Follower::default();
        let mut look = |addresses: &str, ms| {
            follower.looked(Duration::ZERO, at(ms));
            let step = follower.look(&config(), &place("192.0.2.1"), &interface(addresses), at(ms));
            let word = follower.settled(&step, at(ms));
            (word, follower.awaits().is_some(), follower.poll_timeout())
        };
        let (word, waits, remind) = look("fe80::1", 0);
        assert!(matches!(word, Some(Word::Waits(why)) if why.contains("has no IPv4 address")));
        assert!(waits);
        assert_eq!(remind, Some(at(60_000)));
        assert_eq!(look("fe80::1", 1000).0, None, "the same again");
        assert!(matches!(look("fe80::2", 2000).0, Some(Word::Waits(_))), "something else");
        assert!(matches!(look("fe80::2", 62_000).0, Some(Word::Waits(_))), "a reminder");
        assert_eq!(look("192.0.2.1", 63_000), (Some(Word::Back), false, None));
        assert_eq!(look("192.0.2.1", 64_000).0, None);
    }

    #[test]
    fn a_deleted_interface_is_remembered_until_it_is_joined_again() {
        let mut follower = Follower::default();
        follower.heard(true, true, at(0));
        assert!(matches!(change(&mut follower, "192.0.2.1", "fe80::1", at(0)), Step::Wait(_)));
        let again = change(&mut follower, "192.0.2.1", "192.0.2.1", at(1000));
        assert_eq!(again, Step::Rejoin(place("192.0.2.1")));
        assert_eq!(change(&mut follower, "192.0.2.1", "192.0.2.1", at(2000)), Step::Keep);
    }
}
