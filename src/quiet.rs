//! Limits on log messages, so that guests, clients and the underlay cannot fill the log.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Instant;

/// Length of a window.
const WINDOW: Duration = Duration::from_secs(60);

/// Lets a few messages through per minute.
#[derive(Debug)]
pub(crate) struct Quiet {
    most: u32,
    said: u32,
    window_ends: Instant,
}

impl Default for Quiet {
    /// Enough to see what goes on.
    fn default() -> Self {
        Self::new(5)
    }
}

impl Quiet {
    /// At most `most` messages a minute.
    pub(crate) const fn new(most: u32) -> Self {
        Self { most, said: 0, window_ends: Instant::ZERO }
    }

    /// The level for a message: a warning, or one of those that only debugging shows.
    pub(crate) fn level(&mut self, now: Instant) -> log::Level {
        if now >= self.window_ends {
            (self.said, self.window_ends) = (0, now + WINDOW);
        }
        if self.said >= self.most {
            return log::Level::Debug;
        }
        self.said += 1;
        log::Level::Warn
    }

    /// Whether there is room for another message.
    pub(crate) fn has_room(&self, now: Instant) -> bool {
        self.said < self.most || !self.is_busy(now)
    }

    /// Whether messages of this minute are counted.
    pub(crate) fn is_busy(&self, now: Instant) -> bool {
        now < self.window_ends
    }
}

/// Limit on subjects with limits of their own.
const MOST_SUBJECTS: usize = 64;

/// A limit for each of several subjects, such as kinds of messages or users: a subject that is
/// provoked often does not hide the others. Subjects for which there is no room share one limit.
#[derive(Debug)]
pub(crate) struct QuietEach<K> {
    most: u32,
    subjects: Vec<(K, Quiet)>,
    others: Quiet,
}

impl<K: PartialEq> QuietEach<K> {
    /// At most `most` messages a minute on each subject.
    pub(crate) const fn new(most: u32) -> Self {
        Self { most, subjects: Vec::new(), others: Quiet::new(most) }
    }

    /// The level for a message on a subject.
    pub(crate) fn level(&mut self, subject: K, now: Instant) -> log::Level {
        if let Some((_, quiet)) = self.subjects.iter_mut().find(|(known, _)| *known == subject) {
            return quiet.level(now);
        }
        if self.subjects.len() >= MOST_SUBJECTS {
            self.subjects.retain(|(_, quiet)| quiet.is_busy(now));
        }
        if self.subjects.len() >= MOST_SUBJECTS {
            return self.others.level(now);
        }
        let mut quiet = Quiet::new(self.most);
        let level = quiet.level(now);
        self.subjects.push((subject, quiet));
        level
    }
}

/// Limit on owners with limits of their own.
const MOST_OWNERS: usize = 256;

/// A limit for each of several owners, such as users or vnets, and for each subject of an owner,
/// such as its vifs or hosts: neither an owner nor a subject that is provoked often hides another.
/// Owners for which there is no room share one limit.
#[derive(Debug)]
pub(crate) struct QuietOf<O, K> {
    most: u32,
    most_each: u32,
    owners: BTreeMap<O, Lines<K>>,
    others: Lines<K>,
}

#[derive(Debug)]
struct Lines<K> {
    all: Quiet,
    each: QuietEach<K>,
}

impl<K: PartialEq> Lines<K> {
    const fn new(most: u32, most_each: u32) -> Self {
        Self { all: Quiet::new(most), each: QuietEach::new(most_each) }
    }

    fn level(&mut self, subject: K, now: Instant) -> log::Level {
        // Subjects are remembered only if there is room for a line, so there are few.
        if !self.all.has_room(now) {
            return log::Level::Debug;
        }
        match self.each.level(subject, now) {
            log::Level::Warn => self.all.level(now),
            suppressed => suppressed,
        }
    }
}

impl<O: Ord, K: PartialEq> QuietOf<O, K> {
    /// At most `most` messages a minute on each owner, and `most_each` on each subject of one.
    pub(crate) const fn new(most: u32, most_each: u32) -> Self {
        let others = Lines::new(most, most_each);
        Self { most, most_each, owners: BTreeMap::new(), others }
    }

    /// The level for a message on a subject of an owner.
    pub(crate) fn level(&mut self, owner: O, subject: K, now: Instant) -> log::Level {
        if self.owners.len() >= MOST_OWNERS && !self.owners.contains_key(&owner) {
            self.owners.retain(|_, lines| lines.all.is_busy(now));
        }
        let (most, most_each) = (self.most, self.most_each);
        let lines = match self.owners.len() < MOST_OWNERS || self.owners.contains_key(&owner) {
            true => self.owners.entry(owner).or_insert_with(|| Lines::new(most, most_each)),
            false => &mut self.others,
        };
        lines.level(subject, now)
    }
}

/// Interval at which a message is repeated while its cause lasts.
const REPEAT: Duration = Duration::from_secs(3600);

/// Lets a message about something that goes on through once, again after an hour, and at once if it
/// is another.
#[derive(Debug, Default)]
pub(crate) struct Lasting {
    said: String,
    again_at: Instant,
}

impl Lasting {
    /// The level for the message.
    pub(crate) fn level(&mut self, message: &str, now: Instant) -> log::Level {
        if self.said == message && now < self.again_at {
            return log::Level::Debug;
        }
        (self.said, self.again_at) = (message.to_owned(), now + REPEAT);
        log::Level::Warn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_once_an_hour() {
        let mut lasting = Lasting::default();
        let mut at = |s: u64, text: &str| {
            lasting.level(text, Instant::from_millis(1000 * s)) == log::Level::Warn
        };
        assert!(at(0, "a") && !at(2, "a") && !at(3599, "a") && at(3600, "a"));
        assert!(at(3601, "b") && !at(3602, "b"), "another is said at once");
    }

    #[test]
    fn a_subject_that_is_provoked_often_hides_no_other() {
        let mut quiet = QuietEach::new(2);
        let mut at =
            |ms, subject: u32| quiet.level(subject, Instant::from_millis(ms)) == log::Level::Warn;
        assert_eq!((0..100).filter(|_| at(0, 1)).count(), 2);
        assert!(at(0, 2) && at(0, 2) && !at(0, 2));
        let said = (0..10_000).filter(|n| at(1, 100 + n)).count();
        assert_eq!(said, MOST_SUBJECTS - 2 + 2, "those beyond share a limit");
        assert!(at(60_001, 1) && at(60_001, 20_000), "a minute later there is room again");
        assert!(quiet.subjects.len() <= MOST_SUBJECTS);
    }

    #[test]
    fn neither_an_owner_nor_a_subject_that_is_provoked_often_hides_another() {
        let mut quiet = QuietOf::new(20, 2);
        let mut at = |ms, owner: u32, subject: u32| {
            quiet.level(owner, subject, Instant::from_millis(ms)) == log::Level::Warn
        };
        assert_eq!((0..100).filter(|_| at(0, 1, 1)).count(), 2);
        assert!(at(0, 1, 2), "another subject of the owner");
        assert_eq!((0..10_000).filter(|n| at(0, 1, *n)).count(), 20 - 3, "few of one owner");
        assert!(at(0, 2, 1), "another owner");
        assert!(at(60_000, 1, 2), "a minute later there is room again");
        let said = (0..10_000).filter(|owner| at(130_000, *owner, 1)).count();
        assert_eq!(said, MOST_OWNERS + 2, "those beyond share a limit");
        assert!(at(190_000, 20_000, 1));
        assert_eq!(quiet.owners.len(), 1, "those of the minute before are forgotten");
    }

    #[test]
    fn a_window_has_room_for_few() {
        let mut quiet = Quiet::new(2);
        let mut at = |ms| quiet.level(Instant::from_millis(ms)) == log::Level::Warn;
        assert!(at(0) && at(1) && !at(2) && !at(59_999));
        assert!(at(60_000) && at(60_000) && !at(119_999));
    }
}
