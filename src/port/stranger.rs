//! Detects a guest that sends from another MAC than its NIC's, at which other guests cannot reach it.
//!
//! Such frames are counted, but operators look at counters only when they suspect a fault. So the backend logs
//! it once per NIC, if it persists; a single stray frame is not worth a line.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::wire::Mac;

/// Frames from the same foreign MAC after which the backend logs it.
const ENOUGH: u32 = 5;

/// The state of a queue pair.
#[derive(Debug, Default)]
pub struct Stranger {
    /// The last foreign MAC, and the number of its frames in a row.
    seen: Option<(Mac, u32)>,
    /// Shared by the queue pairs of a NIC.
    has_said: Arc<AtomicBool>,
}

impl Stranger {
    /// One of several that log it once in total.
    pub fn new(has_said: Arc<AtomicBool>) -> Self {
        Self { seen: None, has_said }
    }

    /// Handles a frame from `mac`, which is neither the NIC's nor learnt. True if the caller must log it.
    pub fn sees(&mut self, mac: Mac) -> bool {
        if self.has_said.load(Ordering::Relaxed) || !mac.is_individual() {
            return false;
        }
        let before = self.seen.filter(|(last, _)| *last == mac).map_or(0, |(_, count)| count);
        self.seen = Some((mac, before + 1));
        before + 1 == ENOUGH && !self.has_said.swap(true, Ordering::Relaxed)
    }
}

/// The line for the log. `learns` is the number of other MACs that the guest may have.
pub fn complaint(seen: Mac, own: Mac, learns: usize) -> String {
    match learns {
        0 => format!(
            "the guest sends from {seen}, but its NIC has {own}: other guests cannot reach it at {seen}; start the \
             backend with --mac {seen} if that is the NIC's address, or with --learn if the guest is a bridge or router"
        ),
        _ => format!(
            "the guest of NIC {own} also sends from {seen}, which the backend does not learn: the limit of {learns} other \
             addresses (--learn) is reached, or {seen} belongs to another NIC"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);
    const THIRD: Mac = Mac([2, 0, 0, 0, 0, 8]);

    #[test]
    fn a_mac_that_is_used_again_and_again_is_said_once_for_all_queue_pairs() {
        let has_said = Arc::new(AtomicBool::new(false));
        let mut pairs = [(); 2].map(|()| Stranger::new(Arc::clone(&has_said)));
        let said: Vec<bool> = (0..20).map(|_| pairs[0].sees(OTHER)).collect();
        assert_eq!(said.iter().position(|said| *said), Some(4));
        assert_eq!(said.iter().filter(|said| **said).count(), 1);
        assert!((0..20).all(|_| !pairs[1].sees(THIRD)));
    }

    #[test]
    fn stray_frames_are_not_worth_a_word() {
        let mut stranger = Stranger::default();
        assert!((0..4).all(|_| !stranger.sees(OTHER)));
        assert!((0..20).all(|n| !stranger.sees(if n % 2 == 0 { THIRD } else { OTHER })));
        assert!((0..20).all(|_| !stranger.sees(Mac::BROADCAST)), "no address at all");
    }

    #[test]
    fn what_is_said_names_both_addresses_and_what_to_do() {
        let own = Mac([2, 0, 0, 0, 0, 1]);
        let said = complaint(OTHER, own, 0);
        for part in ["02:00:00:00:00:09", "02:00:00:00:00:01", "--mac", "--learn"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(complaint(OTHER, own, 7).contains("limit of 7 other addresses"));
    }
}
