//! Where the kernel may be asked to cut messages into datagrams (UDP_SEGMENT), learnt from what it
//! refuses.
//!
//! | Error | Means (net/ipv4/udp.c, `udp_send_skb`) | Remembered |
//! |---|---|---|
//! | EIO | the path can't take it: IPsec, or before 6.11 a link without checksum offload | for the host, [`HOLD`] |
//! | EINVAL, more than 64 datagrams | a kernel before 6.9, which takes 64 | for the host, if 64 pass; for good and for all, once they did to a second host |
//! | EINVAL | before 6.13 a datagram too long for the path, or anything else | if datagrams pass by themselves, as EIO |
//! | EMSGSIZE | a datagram too long for the path | likewise |
//!
//! The message that was refused is sent again in smaller ones; those that come later are made to
//! fit from the beginning. What one host's refusal teaches says nothing of others: an address that nothing
//! can be sent to is refused with EINVAL, too.

#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use crate::sys::mmsg::{MAX_SEGMENTS, OLD_MAX_SEGMENTS};
use crate::time::Instant;

/// How long a host is sent single datagrams before it is tried again: routes and links change.
pub const HOLD: Duration = Duration::from_secs(60);
/// Hosts that are remembered at most; beyond, the oldest is forgotten and found out again.
const MAX_HOSTS: usize = 64;

/// What to do with a message that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// Send it again in messages of so many datagrams.
    pub segments: usize,
    /// What to tell operators, once.
    pub news: Option<&'static str>,
}

/// What is known of one socket. See the module's description.
#[derive(Clone, Debug)]
pub struct Segmentation {
    most: usize,
    refusing: Vec<(IpAddr, Instant)>,
    /// Hosts to which 64 datagrams passed where more were refused, until a second one confirms it.
    limited: Option<IpAddr>,
    has_told: bool,
}

impl Default for Segmentation {
    fn default() -> Self {
        Self { most: MAX_SEGMENTS, refusing: Vec::new(), limited: None, has_told: false }
    }
}

impl Segmentation {
    /// Most datagrams in a message to a host; 1: no use of UDP_SEGMENT.
    pub fn most(&self, to: IpAddr) -> usize {
        if self.is_refused(to) {
            1
        } else if self.limited == Some(to) {
            OLD_MAX_SEGMENTS
        } else {
            self.most
        }
    }

    /// Whether the host gets single datagrams because of a refusal.
    pub fn is_refused(&self, to: IpAddr) -> bool {
        self.refusing.iter().any(|(host, _)| *host == to)
    }

    /// A message of several datagrams was refused with an error. `None`: not because of them.
    pub fn handle_refusal(
        &mut self,
        errno: Option<i32>,
        to: IpAddr,
        datagrams: usize,
        now: Instant,
    ) -> Option<Remedy> {
        match errno {
            Some(libc::EIO) => Some(self.refuse(to, now)),
            Some(libc::EINVAL) if datagrams > OLD_MAX_SEGMENTS => {
                Some(Remedy { segments: OLD_MAX_SEGMENTS, news: None })
            }
            Some(libc::EINVAL | libc::EMSGSIZE) => Some(Remedy { segments: 1, news: None }),
            _ => None,
        }
    }

    /// Of a message that was refused, the beginning has left in a message of at most so many datagrams.
    /// If that was a single one, the longest, it was UDP_SEGMENT that the kernel did not like.
    pub fn handle_smaller_sent(
        &mut self,
        to: IpAddr,
        segments: usize,
        now: Instant,
    ) -> Option<Remedy> {
        if segments == 1 {
            return Some(self.refuse(to, now));
        }
        if self.limited.is_some_and(|first| first != to) {
            self.most = OLD_MAX_SEGMENTS;
        }
        self.limited = Some(to);
        None
    }

    fn refuse(&mut self, to: IpAddr, now: Instant) -> Remedy {
        if !self.is_refused(to) {
            if self.refusing.len() >= MAX_HOSTS {
                self.refusing.remove(0);
            }
            self.refusing.push((to, now + HOLD));
        }
        let news = "the kernel refuses UDP_SEGMENT: datagrams are sent one by one, which is slow, \
                    and it is tried again every minute (told once; tx_unsegmented counts)";
        let is_new = !std::mem::replace(&mut self.has_told, true);
        Remedy { segments: 1, news: is_new.then_some(news) }
    }

    /// Hosts whose time has come are tried again. Costs nothing while there are none.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.refusing.retain(|(_, until)| now < *until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    const THIRD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_link_that_cannot_is_tried_again_after_a_while() {
        let mut known = Segmentation::default();
        assert_eq!(known.most(HOST), MAX_SEGMENTS);
        let remedy = known.handle_refusal(Some(libc::EIO), HOST, 10, at(0)).unwrap();
        assert_eq!(remedy.segments, 1);
        assert!(remedy.news.is_some_and(|news| news.contains("UDP_SEGMENT")));
        assert_eq!((known.most(HOST), known.most(OTHER)), (1, MAX_SEGMENTS));
        known.handle_timeout(at(59_999));
        assert!(known.is_refused(HOST));
        known.handle_timeout(at(60_000));
        assert_eq!(known.most(HOST), MAX_SEGMENTS);
        let again = known.handle_refusal(Some(libc::EIO), HOST, 10, at(60_001)).unwrap();
        assert_eq!(again, Remedy { segments: 1, news: None }, "told once");
    }

    #[test]
    fn an_old_kernel_gets_fewer_at_a_time_once_two_hosts_have_shown_it() {
        let mut known = Segmentation::default();
        for (to, others) in [(HOST, MAX_SEGMENTS), (HOST, MAX_SEGMENTS), (OTHER, 64)] {
            let remedy = known.handle_refusal(Some(libc::EINVAL), to, 65, at(0));
            assert_eq!(remedy, Some(Remedy { segments: 64, news: None }));
            assert_eq!(known.handle_smaller_sent(to, 64, at(0)), None);
            assert_eq!((known.most(to), known.most(THIRD)), (64, others));
        }
        known.handle_timeout(at(10_000_000));
        assert_eq!(known.most(HOST), 64, "for good");
    }

    /// Whatever is sent there is refused.
    #[test]
    fn an_address_that_takes_nothing_teaches_nothing() {
        let mut known = Segmentation::default();
        for datagrams in [128, 64, 2] {
            known.handle_refusal(Some(libc::EINVAL), HOST, datagrams, at(0)).unwrap();
        }
        assert_eq!((known.most(HOST), known.most(OTHER)), (MAX_SEGMENTS, MAX_SEGMENTS));
    }

    #[test]
    fn what_may_be_the_path_is_remembered_only_once_datagrams_pass() {
        for errno in [libc::EINVAL, libc::EMSGSIZE] {
            let mut known = Segmentation::default();
            let remedy = known.handle_refusal(Some(errno), HOST, 64, at(0));
            assert_eq!(remedy, Some(Remedy { segments: 1, news: None }));
            assert_eq!(known.most(HOST), MAX_SEGMENTS);
            let learnt = known.handle_smaller_sent(HOST, 1, at(1));
            assert!(learnt.is_some_and(|learnt| learnt.news.is_some()));
            assert_eq!(known.most(HOST), 1);
        }
        let mut known = Segmentation::default();
        assert_eq!(known.handle_refusal(Some(libc::EAGAIN), HOST, 64, at(0)), None);
        assert_eq!(known.handle_refusal(None, HOST, 64, at(0)), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut known = Segmentation::default();
        for n in 0..=MAX_HOSTS {
            let host = IpAddr::from([10, 0, 0, n as u8]);
            known.handle_refusal(Some(libc::EIO), host, 2, at(n as u64));
        }
        assert_eq!(known.refusing.len(), MAX_HOSTS);
        assert!(!known.is_refused(IpAddr::from([10, 0, 0, 0])));
        assert!(known.is_refused(IpAddr::from([10, 0, 0, MAX_HOSTS as u8])));
    }
}
