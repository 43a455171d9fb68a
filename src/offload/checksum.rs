//! The Internet checksum (RFC 1071), complete and partial.
//!
//! A *partial* checksum is virtio's and Linux's way to leave work to the NIC: the field holds the
//! sum of the pseudo-header, not inverted, and whoever completes it sums from the transport header
//! to the end of the frame, field included, and stores the inverse.

use crate::packet::field;

/// Sums pieces of bytes one after the other, whatever their lengths: a piece that starts at an odd
/// offset counts as if all were one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of 16-bit words in network order, not folded. Each piece adds at most 2^16.
    words: u64,
    is_odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self { words: 0, is_odd: false };

    /// The sum of one piece.
    pub fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::ZERO;
        sum.add(bytes);
        sum
    }

    /// The sum of an IP pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1): both addresses, of either
    /// version, the protocol and the length of transport header and payload.
    pub fn pseudo_header(source: &[u8], destination: &[u8], protocol: u8, len: usize) -> Self {
        let mut sum = Self::of(source);
        sum.add(destination);
        sum.words += u64::from(protocol) + len as u64 % (1 << 32);
        sum
    }

    /// Continues with a piece.
    pub fn add(&mut self, bytes: &[u8]) {
        self.append(Self { words: sum_words(bytes).into(), is_odd: bytes.len() % 2 == 1 });
    }

    /// Continues with a piece that was summed on its own.
    pub fn append(&mut self, piece: Self) {
        let words = piece.fold();
        self.words += u64::from(if self.is_odd { words.swap_bytes() } else { words });
        self.is_odd ^= piece.is_odd;
    }

    /// Adds a 16-bit field that stands at an even offset.
    pub fn add_u16(&mut self, field: u16) {
        self.words += u64::from(field);
    }

    /// The sum as 16 bits, not inverted: what a partial checksum's field holds.
    pub const fn fold(self) -> u16 {
        fold(self.words)
    }

    /// What a receiver finds when it sums everything including a correct checksum.
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    /// The inverse, for an IPv4 header.
    pub const fn inverse(self) -> u16 {
        !self.fold()
    }

    /// The inverse, for a transport header: never 0, which in UDP means that there is no checksum
    /// (RFC 768). For TCP both mean the same.
    pub const fn transport(self) -> u16 {
        match self.inverse() {
            0 => 0xffff,
            checksum => checksum,
        }
    }
}

/// Folds carries back into 16 bits.
const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let [.., high, low] = sum.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// Bytes summed at a time: eight 64-bit words, each into lanes of its own, which the compiler turns
/// into vector instructions.
const BLOCK: usize = 64;
const LANES: usize = BLOCK / 8;

/// The folded sum of one piece, padded with a zero if odd. Words are added in the machine's byte
/// order and swapped once, at the end (RFC 1071, 2(B)).
fn sum_words(bytes: &[u8]) -> u16 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    let mut sum = if blocks.is_empty() { 0 } else { sum_blocks(blocks) };
    let (words, rest) = rest.as_chunks::<4>();
    sum += words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    sum += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(sum))
}

/// The sum of the 32-bit words of blocks, partly folded: less than 2^32.
///
/// Vectors have no carry, so that a 64-bit word is added as two halves: `highs` is the sum of the
/// upper ones; `totals` is the sum of all words modulo 2^64, from which that of the lower halves
/// follows, as it is less than 2^64 (of up to 2^32 words).
///
/// Not inlined: only in a function of its own does the compiler keep all lanes in registers, which
/// is twice as fast.
#[inline(never)]
fn sum_blocks(blocks: &[[u8; BLOCK]]) -> u64 {
    let mut totals = [0u64; LANES];
    let mut highs = [0u64; LANES];
    for block in blocks {
        let (words, _) = block.as_chunks::<8>();
        for ((total, high), word) in totals.iter_mut().zip(&mut highs).zip(words) {
            let word = u64::from_ne_bytes(*word);
            *total = total.wrapping_add(word);
            *high += word >> 32;
        }
    }
    let high = highs.iter().sum::<u64>();
    let total = totals.iter().fold(0, |sum: u64, lane| sum.wrapping_add(*lane));
    let low = total.wrapping_sub(high << 32);
    u64::from(fold(high)) + u64::from(fold(low))
}

/// Completes a partial checksum in place: sums from `start` to the end and stores the inverse at
/// `start + offset`. Returns `None`, and changes nothing, when the field is not in the frame.
pub fn complete(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let covered = frame.get_mut(start..)?;
    let sum = Sum::of(covered);
    field::put_u16(covered, offset, sum.transport())
}

/// The checksum after a 16-bit field that it covers changed from `old` to `new` (RFC 1624, eqn. 3).
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 word by word, as slow as it is plain.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(Sum::of(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]).fold(), 0xddf2);
    }

    #[test]
    fn the_largest_frames_do_not_overflow() {
        for len in [65_534, 65_535, 1 << 20] {
            let bytes = vec![0xff; len];
            assert_eq!(Sum::of(&bytes).fold(), if len % 2 == 1 { 0xff00 } else { 0xffff });
        }
        let mut sum = Sum::ZERO;
        (0..100_000).for_each(|_| sum.add(&[0xff; 3]));
        assert_eq!(sum.fold(), 0xffff);
    }

    #[test]
    fn a_udp_checksum_of_zero_becomes_all_ones() {
        let mut frame = [0xff, 0xff, 0, 0, 0, 0];
        complete(&mut frame, 0, 2).unwrap();
        assert_eq!(frame, [0xff, 0xff, 0xff, 0xff, 0, 0]);
        assert!(Sum::of(&frame).is_valid());
    }

    #[test]
    fn a_field_outside_changes_nothing() {
        let mut frame = [7; 20];
        assert_eq!(complete(&mut frame, 10, 9), None);
        assert_eq!(complete(&mut frame, 21, 0), None);
        assert_eq!(complete(&mut frame, usize::MAX, usize::MAX), None);
        assert_eq!(frame, [7; 20]);
        assert_eq!(complete(&mut frame, 10, 8), Some(()));
    }

    proptest! {
        #[test]
        fn pieces_sum_like_the_whole(bytes: Vec<u8>, cuts in prop::collection::vec(0usize..400, 0..8)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut sum = Sum::ZERO;
            let mut from = 0;
            for to in cuts.into_iter().chain([bytes.len()]) {
                sum.add(&bytes[from..to]);
                from = to;
            }
            prop_assert_eq!(sum.fold(), reference(&bytes));
        }

        #[test]
        fn long_pieces_too(len in 0usize..5000, seed: u64, skip in 0usize..9) {
            let bytes: Vec<u8> = (0..len as u64)
                .map(|i| (i.wrapping_mul(seed | 1) >> 7) as u8)
                .collect();
            let bytes = bytes.get(skip..).unwrap_or_default();
            prop_assert_eq!(Sum::of(bytes).fold(), reference(bytes));
        }

        #[test]
        fn completed_means_valid(mut bytes in prop::collection::vec(any::<u8>(), 22..300),
                                 start in 0usize..20, seed: u16) {
            // The seed stands for the pseudo-header, which is not in the frame.
            let start = start & !1;
            field::put_u16(&mut bytes, start, seed).unwrap();
            complete(&mut bytes, start, 0).unwrap();
            let mut sum = Sum::of(&bytes[start..]);
            sum.add_u16(seed);
            prop_assert!(sum.is_valid());
        }

        #[test]
        fn an_update_is_like_summing_again(mut bytes in prop::collection::vec(any::<u8>(), 20), new: u16, at in 0usize..9) {
            let at = at * 2;
            let old = field::u16_at(&bytes, at).unwrap();
            let before = Sum::of(&bytes).inverse();
            field::put_u16(&mut bytes, at, new).unwrap();
            let after = Sum::of(&bytes).inverse();
            let updated = update(before, old, new);
            // Both are right when all words are zero but one form of zero was chosen.
            prop_assert!(updated == after || (updated ^ after) == 0xffff && (after == 0 || updated == 0));
        }

        #[test]
        fn pseudo_headers_match_etherparse(source: [u8; 4], destination: [u8; 4], s6: [u8; 16],
                                           d6: [u8; 16], payload: Vec<u8>) {
            let udp = etherparse::UdpHeader {
                source_port: 1, destination_port: 2,
                length: u16::try_from(8 + payload.len()).unwrap(), checksum: 0,
            };
            let len = 8 + payload.len();
            let mut bytes = udp.to_bytes().to_vec();
            bytes.extend(&payload);
            let mut sum = Sum::pseudo_header(&source, &destination, 17, len);
            sum.add(&bytes);
            prop_assert_eq!(sum.transport(), udp.calc_checksum_ipv4_raw(source, destination, &payload).unwrap());
            let mut sum = Sum::pseudo_header(&s6, &d6, 17, len);
            sum.add(&bytes);
            prop_assert_eq!(sum.transport(), udp.calc_checksum_ipv6_raw(s6, d6, &payload).unwrap());
        }
    }
}
