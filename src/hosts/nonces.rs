//! Nonces of HELLOs to single hosts: made from a secret, the address and the time, so that they cost no memory.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::security::keys::{MacKey, Secret};
use crate::time::Instant;

/// How long a nonce is the current one.
const EPOCH: Duration = Duration::from_secs(30);
/// Earlier ones that are accepted: a nonce is of use for two minutes at least.
const EARLIER: u64 = 4;

/// Makes and knows again this host's nonces.
#[derive(Debug)]
pub(super) struct Nonces(MacKey);

impl Nonces {
    pub(super) fn new(secret: &Secret) -> Self {
        Self(MacKey::new(secret))
    }

    /// The nonce for a host at an address; never 0.
    pub(super) fn current(&self, to: SocketAddr, now: Instant) -> u64 {
        self.of(to, epoch(now))
    }

    /// Whether a host at this address was sent this nonce, not long ago.
    pub(super) fn accepts(&self, from: SocketAddr, nonce: u64, now: Instant) -> bool {
        let now = epoch(now);
        nonce != 0 && (now.saturating_sub(EARLIER)..=now).any(|at| self.of(from, at) == nonce)
    }

    fn of(&self, to: SocketAddr, epoch: u64) -> u64 {
        let ip = match to.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let parts: [&[u8]; 3] =
            [&Ipv6Addr::octets(&ip), &to.port().to_be_bytes(), &epoch.to_be_bytes()];
        let [a, b, c, d, e, f, g, h, ..] = self.0.sign(&parts);
        u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1)
    }
}

fn epoch(now: Instant) -> u64 {
    now.saturating_since(Instant::ZERO).as_secs() / EPOCH.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_of_one_address_and_of_two_minutes() {
        let nonces = Nonces::new(&Secret::new([1; 32]));
        let (one, other) = (([192, 0, 2, 1], 1798).into(), ([192, 0, 2, 2], 1798).into());
        let at = |secs: u64| Instant::from_millis(secs * 1000);
        let nonce = nonces.current(one, at(1000));
        assert!(nonces.accepts(one, nonce, at(1000)) && nonces.accepts(one, nonce, at(1120)));
        assert!(!nonces.accepts(one, nonce, at(1200)), "too old");
        assert!(!nonces.accepts(other, nonce, at(1000)));
        assert!(!nonces.accepts(([192, 0, 2, 1], 1799).into(), nonce, at(1000)));
        assert!(!nonces.accepts(one, 0, at(1000)), "none");
        let another = Nonces::new(&Secret::new([2; 32]));
        assert!(!another.accepts(one, nonce, at(1000)));
    }
}
