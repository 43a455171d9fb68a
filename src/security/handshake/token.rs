//! Tokens: each cookie comes with a word that INITs with the cookie repeat in the clear, so that
//! the kernel's filter (`underlay::classes`) can distinguish them from INITs of unknown hosts.
//!
//! A cookie proves that an INIT's sender receives at its address, but checking it takes a MAC
//! computation, which a filter cannot do. A token is a word of 32 bits that depends on the address
//! and a secret, by a few multiplications that a classic BPF program can do. It is no proof: an
//! attacker that sees tokens of some addresses might be able to compute others. It only selects the
//! queue in which an INIT waits: a flood of forged INITs from addresses at which the attacker does
//! not receive fills the other queue.

use std::net::IpAddr;

use crate::security::noise::Entropy;

/// The secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenKey([u32; 3]);

/// The operations on the words of an address in turn, and at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixing {
    /// What there is before the first.
    pub start: u32,
    /// For each word, after it was added bit by bit (exclusive or): multiply by this, then add
    /// itself shifted right by [`SHIFT`] bits.
    pub each: u32,
    /// The same, once more, after the last, with [`LAST_SHIFT`].
    pub last: u32,
}

/// See [`Mixing::each`].
pub const SHIFT: u32 = 15;
/// See [`Mixing::last`].
pub const LAST_SHIFT: u32 = 13;

impl TokenKey {
    /// A fresh one.
    pub fn new(entropy: &Entropy) -> Self {
        Self([entropy.number(), entropy.number(), entropy.number()])
    }

    /// How a token is computed.
    pub const fn mixing(self) -> Mixing {
        let [start, each, last] = self.0;
        // Odd numbers: a multiplication then loses nothing.
        Mixing { start, each: each | 1, last: last | 1 }
    }

    /// The token of an address.
    pub fn token(self, from: IpAddr) -> u32 {
        let Mixing { start, each, last } = self.mixing();
        let mix = |state: u32, factor: u32, shift: u32| {
            let product = state.wrapping_mul(factor);
            product ^ (product >> shift)
        };
        let word = |state: u32, word: u32| mix(state ^ word, each, SHIFT);
        let state = match from.to_canonical() {
            IpAddr::V4(ip) => word(start, ip.to_bits()),
            IpAddr::V6(ip) => [96, 64, 32, 0].into_iter().fold(start, |state, shift| {
                // Truncates on purpose: the word at this place.
                word(state, (ip.to_bits() >> shift) as u32)
            }),
        };
        mix(state, last, LAST_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn each_address_and_each_secret_has_others() {
        let entropy = Entropy::new(Secret::new([3; 32]));
        let mut seen = BTreeSet::new();
        for _ in 0..10 {
            let key = TokenKey::new(&entropy);
            for host in 0..1000_u32 {
                seen.insert(key.token(Ipv4Addr::from(0x0a00_0000 + host).into()));
                let wide = Ipv6Addr::from(u128::from(host) << 64 | 1);
                seen.insert(key.token(wide.into()));
            }
        }
        assert!(seen.len() > 19_980, "{}", seen.len());
    }
}
