//! Parts of forgeries, and their number: that of each kind is its default, or `VNET_FORGERIES` if that is set
//! (`tests/run --forgeries N`).

use super::random::Random;

/// Number of forgeries of a kind: `VNET_FORGERIES`, or `usually` if that is not set.
pub(crate) fn count_or(usually: u64) -> u64 {
    std::env::var("VNET_FORGERIES").map_or(usually, |text| text.parse().expect("a number"))
}

/// A copy with one byte changed, within so many at the front; returns which.
pub(crate) fn alter(random: &mut Random, bytes: &[u8], within: usize) -> (usize, Vec<u8>) {
    let mut altered = bytes.to_vec();
    let at = random.index(within);
    altered[at] ^= u8::try_from(random.range(1, 256)).expect("a byte");
    (at, altered)
}

/// Any bytes.
pub(crate) fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(len).collect()
}
