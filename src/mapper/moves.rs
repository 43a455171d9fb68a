//! The count of moves that makes a vif damped.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Instant;

/// The least time between two messages that tell a vif of further moves of one MAC, where it moves all the time.
/// Anybody on the segment of a vnet without keys can say that it does.
pub(super) const TELL_INTERVAL: Duration = Duration::from_millis(200);
/// A MAC behind vifs that moves too often within this time does not fail over, but is fought for.
pub(super) const LEARNT_WINDOW: Duration = Duration::from_millis(100);

/// When a vif moved, as far back as matters.
#[derive(Debug, Default)]
pub(super) struct Moves(VecDeque<Instant>);

impl Moves {
    /// Notes a move, of which at most `limit` are kept.
    pub(super) fn record(&mut self, now: Instant, limit: usize) {
        self.0.push_back(now);
        while self.0.len() > limit {
            self.0.pop_front();
        }
    }

    /// Whether there were `limit` moves within the last `window`.
    pub(super) fn damped(&self, now: Instant, limit: usize, window: Duration) -> bool {
        let recent = self.0.iter().filter(|&&at| now.saturating_since(at) < window).count();
        limit > 0 && recent >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_damped_in_their_window_only() {
        let (limit, window) = (5, Duration::from_secs(180));
        let mut moves = Moves::default();
        for second in 0..5 {
            assert!(!moves.damped(Instant::from_millis(second * 1000), limit, window));
            moves.record(Instant::from_millis(second * 1000), limit);
        }
        assert!(moves.damped(Instant::from_millis(5000), limit, window));
        assert!(moves.damped(Instant::from_millis(179_000), limit, window));
        assert!(!moves.damped(Instant::from_millis(180_000), limit, window));
    }
}
