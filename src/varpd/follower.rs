//! When to look whether the underlay has changed, and how fast changes are followed.
//!
//! A change comes as a burst of news, after which the follower waits a moment. However many there are, it
//! looks no more often than every [`GAP`]; and a host whose address changes all the time moves no more often
//! than every [`REST`], since each move costs all hosts that talk to it.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use crate::config::Config;
use crate::sys::rtnetlink::{Interface, News};
use crate::time::Instant;

use super::site::{self, Place, Step};
use super::waiting::REMINDER;

/// After the first news of a change.
const SETTLE: Duration = Duration::from_millis(100);
/// Between two looks.
const GAP: Duration = Duration::from_millis(250);
/// After a look that failed, or whose outcome could not be put into effect.
const RETRY: Duration = Duration::from_secs(1);
/// Moves within [`WINDOW`] that are followed at once.
const MOST_MOVES: usize = 6;
/// See [`MOST_MOVES`].
const WINDOW: Duration = Duration::from_secs(60);
/// Between two moves when there are more.
const REST: Duration = Duration::from_secs(10);

/// That there is no place, and what is waited for.
#[derive(Debug)]
struct Wait {
    why: String,
    remind_at: Instant,
}

/// What is to be said about waiting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// There is no place: why.
    Waits(String),
    /// There is one again.
    Back,
}

/// Follows the host's place on the underlay.
#[derive(Debug, Default)]
pub(super) struct Follower {
    was_deleted: bool,
    look_at: Option<Instant>,
    looked: Option<Instant>,
    moves: VecDeque<Instant>,
    wait: Option<Wait>,
}

impl Follower {
    /// Something may have changed.
    pub(super) fn heard(&mut self, news: News, now: Instant) {
        self.was_deleted |= news.is_deleted;
        if news.any {
            self.look_from(now + SETTLE);
        }
    }

    /// The outcome could not be put into effect.
    pub(super) fn failed(&mut self, now: Instant) {
        self.look_from(now + RETRY);
    }

    fn look_from(&mut self, at: Instant) {
        let at = self.looked.map_or(at, |looked| at.max(looked + GAP));
        self.look_at = Some(self.look_at.map_or(at, |known| known.min(at)));
    }

    /// When to look at the interfaces.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.look_at.into_iter().chain(self.wait.as_ref().map(|wait| wait.remind_at)).min()
    }

    /// What to do now that the interfaces are these.
    pub(super) fn look(
        &mut self,
        config: &Config,
        place: &Place,
        interfaces: &[Interface],
        now: Instant,
    ) -> Step {
        (self.look_at, self.looked) = (None, Some(now));
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

    /// The outcome of a look was put into effect; what is to be said of waiting, if anything.
    pub(super) fn settled(&mut self, step: &Step, now: Instant) -> Option<Word> {
        match step {
            Step::Wait(why) => return self.waits(why.to_string(), now),
            // A look that was put off says nothing.
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

    /// What is waited for, if the host has no place.
    pub(super) fn awaits(&self) -> Option<&str> {
        self.wait.as_ref().map(|wait| wait.why.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEWS: News = News { any: true, is_deleted: false };

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
            multicast: true,
            default_route: false,
            addresses: vec![address.parse().unwrap()],
        }]
    }

    fn place(address: &str) -> Place {
        Place::of(&interface(address)[0], address.parse().unwrap())
    }

    /// What the follower does about a change at that time.
    fn change(follower: &mut Follower, from: &str, to: &str, now: Instant) -> Step {
        let step = follower.look(&config(), &place(from), &interface(to), now);
        follower.settled(&step, now);
        step
    }

    #[test]
    fn a_burst_of_news_is_one_look_and_looks_are_apart() {
        let mut follower = Follower::default();
        assert_eq!(follower.poll_timeout(), None);
        follower.heard(News::default(), at(0));
        assert_eq!(follower.poll_timeout(), None);
        follower.heard(NEWS, at(0));
        follower.heard(NEWS, at(50));
        assert_eq!(follower.poll_timeout(), Some(at(100)));
        assert_eq!(change(&mut follower, "192.0.2.1", "192.0.2.1", at(100)), Step::Keep);
        assert_eq!(follower.poll_timeout(), None);
        follower.heard(NEWS, at(101));
        assert_eq!(follower.poll_timeout(), Some(at(350)));
        follower.failed(at(340));
        assert_eq!(follower.poll_timeout(), Some(at(350)), "the earlier one");
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
        follower.heard(News { any: true, is_deleted: true }, at(0));
        assert!(matches!(change(&mut follower, "192.0.2.1", "fe80::1", at(0)), Step::Wait(_)));
        let again = change(&mut follower, "192.0.2.1", "192.0.2.1", at(1000));
        assert_eq!(again, Step::Rejoin(place("192.0.2.1")));
        assert_eq!(change(&mut follower, "192.0.2.1", "192.0.2.1", at(2000)), Step::Keep);
    }
}
