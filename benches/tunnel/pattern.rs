//! What frames carry: one long stream of bytes that both ends know, so that a receiver can tell
//! from a position alone what must be there.
//!
//! Sums of 16-bit words up to every even place are kept, which makes the checksum of any stretch one
//! subtraction: the generators' own work per frame stays small beside the work that is measured.

/// After this many bytes the stream repeats. Even, for the sums, and coprime with the usual frame
/// sizes' powers of two, so that a piece put in the wrong place does not fit there.
pub(crate) const PERIOD: usize = 65_518;
/// Longest stretch that can be asked for, in bytes.
const LONGEST: usize = 65_536;
/// Length of the memory that holds the pattern, in bytes.
pub(crate) const LEN: usize = PERIOD + LONGEST;

/// The pattern and its sums.
pub(crate) struct Pattern {
    bytes: Vec<u8>,
    sums: Vec<u64>,
}

impl Pattern {
    pub(crate) fn new() -> Self {
        // xorshift64 (Marsaglia 2003).
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes: Vec<u8> = (0..PERIOD)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_be_bytes()[0]
            })
            .collect();
        bytes.extend_from_within(..);
        bytes.resize(LEN, 0);
        let begin = 2 * PERIOD;
        if begin < LEN {
            bytes.copy_within(..LEN - begin, begin);
        }
        let mut sums = vec![0; LEN / 2 + 1];
        for (n, word) in bytes.chunks_exact(2).enumerate() {
            sums[n + 1] = sums[n] + u64::from(u16::from_be_bytes([word[0], word[1]]));
        }
        Self { bytes, sums }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where in the memory the stream's byte number `position` (even) is.
    pub(crate) fn place(position: u64) -> usize {
        (position % PERIOD as u64) as usize
    }

    /// `len` bytes from `place`.
    pub(crate) fn at(&self, place: usize, len: usize) -> &[u8] {
        &self.bytes[place..place + len]
    }

    /// Sum of the 16-bit words from `place` (even); an odd last byte counts as the high one.
    pub(crate) fn sum(&self, place: usize, len: usize) -> u64 {
        debug_assert!(place.is_multiple_of(2), "sums are kept for even places");
        let last =
            if len.is_multiple_of(2) { 0 } else { u64::from(self.bytes[place + len - 1]) << 8 };
        self.sums[(place + len) / 2] - self.sums[place / 2] + last
    }
}

/// Sum of 16-bit words in network order.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2);
    words.map(|w| u64::from(w[0]) << 8 | w.get(1).copied().map_or(0, u64::from)).sum()
}

/// Folds a sum to 16 bits (RFC 1071).
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
