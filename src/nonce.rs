//! Nonces that an attacker cannot guess, even if it has seen others.
//!
//! They are SipHash-2-4 (Aumasson and Bernstein, 2012) of a counter under a secret key. With a
//! plain generator, a peer that is asked once would learn one output of it, and could then forge
//! the answers to all later questions.

#![forbid(unsafe_code)]

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

/// A source of nonces.
#[derive(Debug)]
pub(crate) struct Nonces {
    keyed: SipHasher24,
    counter: u64,
}

impl Nonces {
    /// Equal seeds give equal sequences; a running host seeds from the operating system.
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        Self { keyed: SipHasher24::new_with_key(&seed), counter: 0 }
    }

    /// The next one, never 0.
    pub(crate) fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        self.of(self.counter).max(1)
    }

    /// A number below `bound`, or 0; slightly uneven, which jitter does not mind.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    fn of(&self, word: u64) -> u64 {
        let mut hasher = self.keyed;
        hasher.write(&word.to_le_bytes());
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_reference_vector() {
        // From the authors' vectors: key 00..0f, input 00..07.
        let seed = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(Nonces::new(seed).of(0x0706_0504_0302_0100), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn nonces_differ_and_are_never_zero() {
        let mut nonces = Nonces::new([7; 16]);
        let mut seen: Vec<u64> = (0..1000).map(|_| nonces.next()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 1000);
        assert!(!seen.contains(&0));
        assert_eq!(nonces.below(0), 0);
        assert!((0..100).all(|_| nonces.below(3) < 3));
    }
}
