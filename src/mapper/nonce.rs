//! Nonces that nobody who saw some of them can guess.
//!
//! SipHash-2-4 (Aumasson and Bernstein, 2012) of a counter under a secret key. A plain generator
//! would do for tests, but a peer that is asked once learns one output of it, and could then forge
//! the answers to all later questions.

/// The source of a mapper's nonces.
#[derive(Debug)]
pub(crate) struct Nonces {
    key: [u64; 2],
    counter: u64,
}

impl Nonces {
    /// Equal seeds give equal sequences; a running host seeds from the operating system.
    pub(crate) fn new(seed: [u8; 16]) -> Self {
        let whole = u128::from_le_bytes(seed);
        let low = whole & u128::from(u64::MAX);
        let halves = [low, whole >> 64].map(|half| u64::try_from(half).unwrap_or(0));
        Self { key: halves, counter: 0 }
    }

    /// The next one, never 0.
    pub(crate) fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        siphash24(self.key, self.counter).max(1)
    }

    /// A number below `bound`, or 0; slightly uneven, which jitter does not mind.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
}

/// SipHash-2-4 of the eight bytes of `word`, least significant first.
fn siphash24([k0, k1]: [u64; 2], word: u64) -> u64 {
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    // The last block of an eight-byte input holds only its length.
    for block in [word, 8 << 56] {
        v[3] ^= block;
        rounds(&mut v, 2);
        v[0] ^= block;
    }
    v[2] ^= 0xff;
    rounds(&mut v, 4);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn rounds(v: &mut [u64; 4], n: usize) {
    let [mut a, mut b, mut c, mut d] = *v;
    for _ in 0..n {
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
    }
    *v = [a, b, c, d];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_reference_vector() {
        // From the authors' vectors: key 00..0f, input 00..07.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash24(key, 0x0706_0504_0302_0100), 0x93f5_f579_9a93_2462);
        let seed = std::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(Nonces::new(seed).key, key);
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
