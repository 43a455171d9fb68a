//! Frames that wait for their destination to be resolved: bounded per destination and in total.

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::time::Instant;
use crate::wire::Mac;

/// Frames that wait for one destination at most.
pub const MAX_FRAMES_PER_MAC: usize = 64;
/// Bytes that wait in total at most.
pub const MAX_BYTES: usize = 1 << 20;
/// How long a frame waits at most: as long as varpd waits for a reply.
pub const MAX_WAIT: Duration = Duration::from_secs(3);

/// No room; the frame is to be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
struct Parked {
    frame: Vec<u8>,
    until: Instant,
}

/// The waiting frames of one queue pair.
#[derive(Debug, Default)]
pub struct UnresolvedQueue {
    waiting: HashMap<Mac, VecDeque<Parked>>,
    bytes: usize,
}

impl UnresolvedQueue {
    /// Lets a frame wait for `mac`.
    ///
    /// # Errors
    /// [`Full`] when a bound is reached.
    pub fn push(&mut self, mac: Mac, frame: Vec<u8>, now: Instant) -> Result<(), Full> {
        if self.bytes + frame.len() > MAX_BYTES {
            return Err(Full);
        }
        let queue = self.waiting.entry(mac).or_default();
        if queue.len() >= MAX_FRAMES_PER_MAC {
            return Err(Full);
        }
        self.bytes += frame.len();
        queue.push_back(Parked { frame, until: now + MAX_WAIT });
        Ok(())
    }

    /// Takes the frames that wait for `mac`, in the order they came.
    pub fn take(&mut self, mac: Mac) -> Vec<Vec<u8>> {
        let frames: Vec<Vec<u8>> =
            self.waiting.remove(&mac).unwrap_or_default().into_iter().map(|p| p.frame).collect();
        self.bytes -= frames.iter().map(Vec::len).sum::<usize>();
        frames
    }

    /// Drops the frames that have waited too long. Returns how many, and adds to `abandoned` the
    /// destinations that nothing waits for any more.
    pub fn expire(&mut self, now: Instant, abandoned: &mut Vec<Mac>) -> u64 {
        let mut expired = 0;
        let bytes = &mut self.bytes;
        self.waiting.retain(|&mac, queue| {
            while queue.front().is_some_and(|parked| parked.until <= now) {
                *bytes -= queue.pop_front().map_or(0, |parked| parked.frame.len());
                expired += 1;
            }
            if queue.is_empty() {
                abandoned.push(mac);
            }
            !queue.is_empty()
        });
        expired
    }

    /// When the next frame will have waited too long.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|queue| queue.front()).map(|parked| parked.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn at(secs: u64) -> Instant {
        Instant::from_millis(secs * 1000)
    }

    #[test]
    fn frames_leave_in_order() {
        let mut park = UnresolvedQueue::default();
        park.push(A, vec![1], at(0)).unwrap();
        park.push(B, vec![9], at(0)).unwrap();
        park.push(A, vec![2], at(0)).unwrap();
        assert_eq!(park.take(A), [vec![1], vec![2]]);
        assert!(park.take(A).is_empty());
        assert_eq!(park.take(B), [vec![9]]);
        assert_eq!(park.bytes, 0);
    }

    #[test]
    fn one_destination_and_all_together_are_bounded() {
        let mut park = UnresolvedQueue::default();
        for _ in 0..MAX_FRAMES_PER_MAC {
            park.push(A, vec![0; 100], at(0)).unwrap();
        }
        assert_eq!(park.push(A, vec![0; 100], at(0)), Err(Full));
        park.push(B, vec![0; 100], at(0)).expect("others still have room");
        assert_eq!(park.push(B, vec![0; MAX_BYTES], at(0)), Err(Full));
        park.take(A);
        park.take(B);
        park.push(B, vec![0; MAX_BYTES], at(0)).unwrap();
    }

    #[test]
    fn waiting_ends() {
        let mut park = UnresolvedQueue::default();
        assert_eq!(park.poll_timeout(), None);
        park.push(A, vec![1], at(0)).unwrap();
        park.push(A, vec![2], at(1)).unwrap();
        park.push(B, vec![3], at(2)).unwrap();
        assert_eq!(park.poll_timeout(), Some(at(3)));
        let mut abandoned = Vec::new();
        assert_eq!(park.expire(at(3), &mut abandoned), 1);
        assert_eq!(abandoned, []);
        assert_eq!(park.expire(at(4), &mut abandoned), 1);
        assert_eq!(abandoned, [A]);
        assert_eq!(park.take(B), [vec![3]]);
        assert_eq!(park.bytes, 0);
    }
}
