//! Records the starts that a sender has used, so that it uses none twice.
//!
//! It keeps the newest one by one, and older ones as spans that may include some that were not
//! used. A clock that was far ahead for days leaves such a span in the future, and all seconds
//! before it stay free.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// Starts that are remembered one by one: more than a day.
pub(super) const MOST: usize = 4096;
/// Spans at most; beyond, the two that are nearest to each other become one.
const MOST_SPANS: usize = 16;
/// Starts no further apart than this, in seconds, are of one span.
const GAP: u32 = 600;

/// Starts that may have been used, in seconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Starts {
    newest: BTreeSet<u32>,
    /// In order, apart from each other.
    spans: Vec<RangeInclusive<u32>>,
}

impl Starts {
    /// The first second from `now` on that was not used; it is now.
    pub(super) fn take(&mut self, now: u32) -> Option<u32> {
        let mut start = now;
        loop {
            if let Some(span) = self.spans.iter().find(|span| span.contains(&start)) {
                start = span.end().checked_add(1)?;
            } else if self.newest.contains(&start) {
                start = start.checked_add(1)?;
            } else {
                break;
            }
        }
        self.newest.insert(start);
        if self.newest.len() > MOST {
            // The first that is not ahead of the clock, or else the last: what is far from now.
            let first = self.newest.first().copied()?;
            let far = if first <= now { first } else { self.newest.last().copied()? };
            self.newest.remove(&far);
            self.add(far);
        }
        Some(start)
    }

    /// Adds a start to the spans.
    fn add(&mut self, start: u32) {
        let near = |span: &RangeInclusive<u32>| {
            start.saturating_add(GAP) >= *span.start() && start <= span.end().saturating_add(GAP)
        };
        match self.spans.iter().position(near) {
            Some(at) => {
                if let Some(span) = self.spans.get_mut(at) {
                    *span = start.min(*span.start())..=start.max(*span.end());
                }
            }
            None => {
                let at = self.spans.partition_point(|span| *span.end() < start);
                self.spans.insert(at, start..=start);
            }
        }
        if self.spans.len() > MOST_SPANS {
            let gap = |at: &usize| match self.spans.get(*at..at + 2) {
                Some([a, b]) => b.start().saturating_sub(*a.end()),
                _ => u32::MAX,
            };
            if let Some(at) = (0..MOST_SPANS).min_by_key(gap) {
                let next = self.spans.remove(at + 1);
                if let Some(span) = self.spans.get_mut(at) {
                    *span = *span.start()..=*next.end();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_767_225_600;
    const YEAR: u32 = 365 * 24 * 3600;

    #[test]
    fn a_clock_that_was_far_ahead_for_days_leaves_the_present_free() {
        let mut starts = Starts::default();
        let mut used = BTreeSet::new();
        let mut days = |starts: &mut Starts, from: u32, count: u32| {
            for n in 0..count {
                assert!(used.insert(starts.take(from + 30 * n).unwrap()), "never twice");
            }
        };
        days(&mut starts, NOW, 2 * 2880);
        days(&mut starts, NOW + YEAR, 3 * 2880);
        let now = NOW + 5 * 24 * 3600;
        assert_eq!(starts.take(now), Some(now), "it was set right");
        days(&mut starts, now + 30, 3 * 2880);
        assert!(starts.spans.len() <= 3, "{:?}", starts.spans);
        // And set back to when it had been right at first: nothing of that is used again.
        days(&mut starts, NOW, 100);
    }

    #[test]
    fn memory_is_bounded_however_the_clock_jumps() {
        let mut starts = Starts::default();
        let mut used = BTreeSet::new();
        for n in 0..20_000_u32 {
            let now = NOW + (n % 97) * 1_000_000 + n;
            assert!(used.insert(starts.take(now).unwrap()));
        }
        assert!(starts.newest.len() <= MOST && starts.spans.len() <= MOST_SPANS);
    }
}
