//! MACs behind the vif: other source addresses than the NIC's, of a bridge in the guest.
//!
//! This is the table of one queue pair. It learns a new source at once, up to the limit, so that no frame waits.
//! [`crate::vif::learning`] then registers it with varpd, tells the other queue pairs, and removes it
//! when it has not been used for long or has moved elsewhere. With the default limit of 0
//! the table learns no addresses.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::Duration;

use crate::time::Instant;
use crate::wire::{Mac, control};

/// Limit on MACs behind one vif.
pub const MAX_LEARNT: usize = control::MAX_MACS;
/// Limit on remembered refused MACs; beyond it, the backend asks for them again.
const MAX_REFUSED: usize = 1024;
/// How long a MAC is not requested again if there is no room for it.
pub const FULL_HOLD: Duration = Duration::from_secs(1);
/// Precision of the time of last use.
const PRECISION: Duration = Duration::from_secs(1);

/// The table.
#[derive(Debug, Default)]
pub struct LearnedMacs {
    most: usize,
    /// The time of each one's last use as a source.
    macs: HashMap<Mac, Instant>,
    /// The time until which each is refused.
    refused: HashMap<Mac, Instant>,
    /// The last source, and the time until which its use need not be recorded again.
    recent: Option<(Mac, Instant)>,
    news: Vec<Mac>,
}

impl LearnedMacs {
    /// With a limit on MACs.
    pub fn new(most: usize) -> Self {
        Self { most: most.min(MAX_LEARNT), ..Self::default() }
    }

    /// The limit on MACs.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether a frame from `mac` may keep its source, because the MAC is behind the vif or was just
    /// learnt.
    pub fn sees(&mut self, mac: Mac, now: Instant) -> bool {
        if self.recent.is_some_and(|(recent, until)| recent == mac && now < until) {
            return true;
        }
        if let Some(used) = self.macs.get_mut(&mac) {
            *used = now;
        } else if !self.may_take(mac, now) {
            return false;
        } else if self.macs.len() >= self.most {
            self.refuse_beyond(mac, now);
            return false;
        } else {
            self.macs.insert(mac, now);
            self.news.push(mac);
        }
        self.recent = Some((mac, now + PRECISION));
        true
    }

    /// There is no room for a MAC: that is told once in a while, and counted then.
    fn refuse_beyond(&mut self, mac: Mac, now: Instant) {
        if self.refused.len() >= MAX_REFUSED {
            self.refused.retain(|_, until| now < *until);
        }
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(mac, now + FULL_HOLD);
            self.news.push(mac);
        }
    }

    fn may_take(&mut self, mac: Mac, now: Instant) -> bool {
        if self.most == 0 || !mac.is_individual() {
            return false;
        }
        match self.refused.get(&mac) {
            Some(&until) if now < until => false,
            Some(_) => self.refused.remove(&mac).is_some(),
            None => true,
        }
    }

    /// Whether the MAC is behind the vif.
    pub fn has(&self, mac: Mac) -> bool {
        self.macs.contains_key(&mac)
    }

    /// Adds a MAC that another queue pair has learnt.
    pub fn insert(&mut self, mac: Mac, now: Instant) {
        self.macs.entry(mac).or_insert(now);
    }

    /// Removes a MAC; its next frame adds it again.
    pub fn remove(&mut self, mac: Mac) {
        self.recent = None;
        self.macs.remove(&mac);
        self.news.retain(|&new| new != mac);
    }

    /// Removes a MAC and refuses it until `until`.
    pub fn refuse(&mut self, mac: Mac, until: Instant, now: Instant) {
        self.remove(mac);
        if self.refused.len() >= MAX_REFUSED {
            self.refused.retain(|_, until| now < *until);
        }
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(mac, until);
        }
    }

    /// Forgets all MACs.
    pub fn clear(&mut self) {
        *self = Self::new(self.most);
    }

    /// The time of a MAC's last use here, to a second.
    pub fn used(&self, mac: Mac) -> Option<Instant> {
        self.macs.get(&mac).copied()
    }

    /// Whether there are new MACs.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// Takes the new MACs.
    pub fn news(&mut self) -> impl Iterator<Item = Mac> + '_ {
        self.news.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, n])
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    #[test]
    fn sources_are_taken_up_to_the_bound_and_told_once() {
        let mut learnt = LearnedMacs::new(2);
        assert!(learnt.sees(mac(1), at(0)) && learnt.sees(mac(2), at(0)));
        assert!(!learnt.sees(mac(3), at(0)), "no room");
        assert!(learnt.sees(mac(1), at(5)));
        assert_eq!(learnt.news().collect::<Vec<_>>(), [mac(1), mac(2), mac(3)]);
        assert!(!learnt.has_news());
        learnt.remove(mac(1));
        assert!(!learnt.has(mac(1)));
        assert!(learnt.sees(mac(3), at(1000)), "there is room now");
        assert!(learnt.has_news());
    }

    /// Otherwise nobody would know that a guest shows more MACs than its backend may learn.
    #[test]
    fn what_is_beyond_the_bound_is_told_once_in_a_while() {
        let mut learnt = LearnedMacs::new(1);
        assert!(learnt.sees(mac(1), at(0)));
        for ms in 0..999 {
            assert!(!learnt.sees(mac(2), at(ms)));
        }
        assert_eq!(learnt.news().collect::<Vec<_>>(), [mac(1), mac(2)]);
        assert!(!learnt.sees(mac(2), at(1000)));
        assert_eq!(learnt.news().collect::<Vec<_>>(), [mac(2)]);
        for n in 0..100_000_u32 {
            let [a, b, c, d] = n.to_be_bytes();
            learnt.sees(Mac([2, 9, a, b, c, d]), at(1500));
        }
        assert!(learnt.news().count() <= MAX_REFUSED, "a guest that sprays MACs");
    }

    #[test]
    fn without_a_bound_nothing_is_taken() {
        let mut learnt = LearnedMacs::default();
        assert!(!learnt.sees(mac(1), at(0)));
        assert!(!learnt.has_news());
    }

    #[test]
    fn groups_and_none_are_no_sources() {
        let mut learnt = LearnedMacs::new(9);
        assert!(!learnt.sees(Mac::BROADCAST, at(0)));
        assert!(!learnt.sees(Mac([0; 6]), at(0)));
        assert!(!learnt.sees(Mac([3, 0, 0, 0, 0, 1]), at(0)));
    }

    #[test]
    fn a_refused_one_is_not_taken_for_a_while() {
        let mut learnt = LearnedMacs::new(9);
        assert!(learnt.sees(mac(1), at(0)));
        learnt.refuse(mac(1), at(1000), at(0));
        assert!(!learnt.sees(mac(1), at(999)));
        assert!(learnt.sees(mac(1), at(1000)));
        for n in 0..100_000_u32 {
            let [a, b, c, d] = n.to_be_bytes();
            learnt.refuse(Mac([2, 9, a, b, c, d]), at(5000), at(2000));
        }
        assert!(learnt.refused.len() <= MAX_REFUSED);
    }

    #[test]
    fn use_is_noted() {
        let mut learnt = LearnedMacs::new(9);
        learnt.insert(mac(1), at(0));
        assert!(!learnt.has_news(), "the other queue pair told it");
        for ms in 0..10_000 {
            assert!(learnt.sees(mac(1), at(ms)));
        }
        let idle = at(10_000) - learnt.used(mac(1)).unwrap();
        assert!(idle <= PRECISION + Duration::from_millis(1));
    }
}
