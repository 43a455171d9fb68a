//! Nonces of HELLOs to single hosts: made from a secret, the address and the time, so that they
//! cost no memory.

use std::net::SocketAddr;
use std::time::Duration;

use super::schedule::LEAST_LIFETIME;
use crate::secret::Secret;
use crate::security::keys::MacKey;
use crate::time::Instant;
use crate::wire::name::mapped;

/// Time for which a nonce is the current one.
const EPOCH: Duration = Duration::from_secs(30);
/// Number of earlier nonces that are accepted: a nonce is valid for 90 s at least, and never longer
/// than the host that repeats it counts as present. A recorded answer of a host that is gone is
/// refused.
const EARLIER: u64 = 3;
const _: () = assert!((EARLIER + 1) * EPOCH.as_secs() <= LEAST_LIFETIME.as_secs());

/// Makes this host's nonces, and recognizes them when other hosts repeat them.
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

    /// Whether this host recently sent this nonce to the address.
    pub(super) fn accepts(&self, from: SocketAddr, nonce: u64, now: Instant) -> bool {
        let now = epoch(now);
        nonce != 0 && (now.saturating_sub(EARLIER)..=now).any(|at| self.of(from, at) == nonce)
    }

    fn of(&self, to: SocketAddr, epoch: u64) -> u64 {
        let parts: [&[u8]; 3] =
            [&mapped(to.ip()).octets(), &to.port().to_be_bytes(), &epoch.to_be_bytes()];
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
    fn a_nonce_is_of_one_address_and_valid_for_90_to_120_seconds() {
        let nonces = Nonces::new(&Secret::new([1; 32]));
        let (one, other) = (([192, 0, 2, 1], 1798).into(), ([192, 0, 2, 2], 1798).into());
        let at = |secs: u64| Instant::from_millis(secs * 1000);
        let nonce = nonces.current(one, at(1000));
        assert!(nonces.accepts(one, nonce, at(1000)) && nonces.accepts(one, nonce, at(1090)));
        assert!(!nonces.accepts(one, nonce, at(1110)), "too old");
        assert!(!nonces.accepts(other, nonce, at(1000)));
        assert!(!nonces.accepts(([192, 0, 2, 1], 1799).into(), nonce, at(1000)));
        assert!(!nonces.accepts(one, 0, at(1000)), "none");
        let another = Nonces::new(&Secret::new([2; 32]));
        assert!(!another.accepts(one, nonce, at(1000)));
    }
}
