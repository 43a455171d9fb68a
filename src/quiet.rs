//! A limit on log messages: what guests, clients and the underlay can provoke must not fill the log.

#![forbid(unsafe_code)]

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

/// Most subjects that are told apart.
const MOST_SUBJECTS: usize = 64;

/// A limit for each of several subjects, such as kinds of messages or users: a subject that is provoked often does
/// not hide the others. Subjects for which there is no room share one limit.
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

/// How often a message is repeated while what it says goes on.
const REPEAT: Duration = Duration::from_secs(3600);

/// Lets a message about something that goes on through once, again after an hour, and at once if it is another.
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
    fn a_window_has_room_for_few() {
        let mut quiet = Quiet::new(2);
        let mut at = |ms| quiet.level(Instant::from_millis(ms)) == log::Level::Warn;
        assert!(at(0) && at(1) && !at(2) && !at(59_999));
        assert!(at(60_000) && at(60_000) && !at(119_999));
    }
}
