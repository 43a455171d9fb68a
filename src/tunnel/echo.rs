//! Answers echoes of other hosts, within limits.
//!
//! Anybody on the underlay can ask, so answers are limited, per source and for the whole vif, and none is longer than
//! its question. Nothing of this reaches the guest.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::limiter::TokenBucket;
use crate::time::Instant;
use crate::wire::VnetId;
use crate::wire::echo::Message;
use crate::wire::encap::{Flags, Header};

/// Limit on a vif's answers: per second, and burst.
const VIF: u32 = 100;
/// The same to one source.
const SOURCE: u32 = 10;
/// Limit on recorded sources. While the table is full, other sources get no answer.
const MAX_SOURCES: usize = 256;

/// The limits of a vif, which its queue pairs share.
#[derive(Debug)]
pub struct Limits(Mutex<Buckets>);

#[derive(Debug)]
struct Buckets {
    vif: TokenBucket,
    sources: BTreeMap<IpAddr, TokenBucket>,
}

impl Default for Limits {
    fn default() -> Self {
        let vif = TokenBucket::new(VIF, VIF);
        Self(Mutex::new(Buckets { vif, sources: BTreeMap::new() }))
    }
}

impl Limits {
    /// Whether the limits permit an answer to this source; if so, counts it.
    pub fn admits(&self, from: IpAddr, now: Instant) -> bool {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { vif, sources } = &mut *buckets;
        if !sources.contains_key(&from) && sources.len() >= MAX_SOURCES {
            sources.retain(|_, bucket| !bucket.is_full(now));
            if sources.len() >= MAX_SOURCES {
                return false;
            }
        }
        let source = sources.entry(from).or_insert_with(|| TokenBucket::new(SOURCE, SOURCE));
        source.take(now) && vif.take(now)
    }
}

/// The datagram that answers a question; `longest` is that of the vif's host. `None` if it is no question.
pub fn answer(vnet: VnetId, question: &[u8], longest: u16, wall_us: u64) -> Option<Vec<u8>> {
    let answer = Message::parse(question).ok()?.answer(longest, wall_us, wall_us)?;
    let mut datagram = Header { flags: Flags::ECHO, vnet }.emit().to_vec();
    answer.emit(&mut datagram);
    Some(datagram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn host(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    #[test]
    fn a_source_gets_ten_answers_a_second_and_all_together_a_hundred() {
        let limits = Limits::default();
        let at = Instant::from_millis(1000);
        let of = |n: u32, at| (0..50).filter(|_| limits.admits(host(n), at)).count();
        assert_eq!(of(1, at), 10);
        assert_eq!((2..20).map(|n| of(n, at)).sum::<usize>(), 90);
        let later = at + Duration::from_secs(1);
        assert_eq!(of(1, later), 10, "again");
    }

    #[test]
    fn sources_are_bounded() {
        let limits = Limits::default();
        let at = Instant::from_millis(1000);
        let admitted = (0..10_000).filter(|n| limits.admits(host(*n), at)).count();
        assert_eq!(admitted, VIF as usize);
        let count = || limits.0.lock().unwrap().sources.len();
        assert_eq!(count(), MAX_SOURCES);
        assert!(limits.admits(host(77_777), at + Duration::from_secs(2)), "there is room again");
        assert_eq!(count(), 1);
    }
}
