//! MACs behind the vif: those that a bridge or router in the guest sends from, besides its own.
//!
//! One queue pair's table. A new source is taken at once, up to the bound, so that no frame waits;
//! [`super::learning`] then has it registered, lets the other queue pairs know, and takes it out
//! again when it has not been used for long or belongs elsewhere. With a bound of 0, which is the
//! default, no source but the vif's own is ever taken.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::Duration;

use crate::time::Instant;
use crate::wire::Mac;

/// Most MACs behind one vif.
pub const MAX_LEARNT: usize = 256;
/// Refused MACs remembered at most; beyond, they are asked for again.
const MAX_REFUSED: usize = 1024;
/// The use of a MAC is noted no more often than this.
const PRECISION: Duration = Duration::from_secs(1);

/// The table.
#[derive(Debug, Default)]
pub struct Learnt {
    most: usize,
    /// When each was last used as a source.
    macs: HashMap<Mac, Instant>,
    /// Until when each is not taken.
    refused: HashMap<Mac, Instant>,
    /// The last source, and until when there is nothing to note about it: frames come in runs.
    recent: Option<(Mac, Instant)>,
    news: Vec<Mac>,
}

impl Learnt {
    /// For at most so many MACs.
    pub fn new(most: usize) -> Self {
        Self { most: most.min(MAX_LEARNT), ..Self::default() }
    }

    /// How many there may be.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Whether a frame from `mac` may keep its source: the MAC is behind the vif, perhaps from now
    /// on.
    pub fn sees(&mut self, mac: Mac, now: Instant) -> bool {
        if self.recent.is_some_and(|(recent, until)| recent == mac && now < until) {
            return true;
        }
        if let Some(used) = self.macs.get_mut(&mac) {
            *used = now;
        } else if !self.may_take(mac, now) {
            return false;
        } else {
            self.macs.insert(mac, now);
            self.news.push(mac);
        }
        self.recent = Some((mac, now + PRECISION));
        true
    }

    fn may_take(&mut self, mac: Mac, now: Instant) -> bool {
        if self.macs.len() >= self.most || !mac.is_individual() {
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

    /// Another queue pair has seen it.
    pub fn insert(&mut self, mac: Mac, now: Instant) {
        self.macs.entry(mac).or_insert(now);
    }

    /// It is not behind the vif any more; it is when next seen.
    pub fn remove(&mut self, mac: Mac) {
        self.recent = None;
        self.macs.remove(&mac);
        self.news.retain(|&new| new != mac);
    }

    /// The same, but it is not taken until then.
    pub fn refuse(&mut self, mac: Mac, until: Instant, now: Instant) {
        self.remove(mac);
        if self.refused.len() >= MAX_REFUSED {
            self.refused.retain(|_, until| now < *until);
        }
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(mac, until);
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::new(self.most);
    }

    /// When a MAC was last used here, to a second.
    pub fn used(&self, mac: Mac) -> Option<Instant> {
        self.macs.get(&mac).copied()
    }

    /// Whether there are new ones.
    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// Takes the new ones.
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
        let mut learnt = Learnt::new(2);
        assert!(learnt.sees(mac(1), at(0)) && learnt.sees(mac(2), at(0)));
        assert!(!learnt.sees(mac(3), at(0)), "no room");
        assert!(learnt.sees(mac(1), at(5)));
        assert_eq!(learnt.news().collect::<Vec<_>>(), [mac(1), mac(2)]);
        assert!(!learnt.has_news());
        learnt.remove(mac(1));
        assert!(!learnt.has(mac(1)));
        assert!(learnt.sees(mac(3), at(6)));
        assert!(learnt.has_news());
    }

    #[test]
    fn without_a_bound_nothing_is_taken() {
        let mut learnt = Learnt::default();
        assert!(!learnt.sees(mac(1), at(0)));
        assert!(!learnt.has_news());
    }

    #[test]
    fn groups_and_none_are_no_sources() {
        let mut learnt = Learnt::new(9);
        assert!(!learnt.sees(Mac::BROADCAST, at(0)));
        assert!(!learnt.sees(Mac([0; 6]), at(0)));
        assert!(!learnt.sees(Mac([3, 0, 0, 0, 0, 1]), at(0)));
    }

    #[test]
    fn a_refused_one_is_not_taken_for_a_while() {
        let mut learnt = Learnt::new(9);
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
        let mut learnt = Learnt::new(9);
        learnt.insert(mac(1), at(0));
        assert!(!learnt.has_news(), "the other queue pair told it");
        for ms in 0..10_000 {
            assert!(learnt.sees(mac(1), at(ms)));
        }
        let idle = at(10_000) - learnt.used(mac(1)).unwrap();
        assert!(idle <= PRECISION + Duration::from_millis(1));
    }
}
