//! The anti-replay window: the sequence numbers that were received.
//!
//! As in RFC 6479, it is a ring of words that slides by whole words, so that moving it never
//! shifts bits. Numbers are 64 bits wide (RFC 4303, extended sequence numbers); [`Window::infer`]
//! finds the half that is not transmitted.

/// Words of the ring; one of them is being left.
const WORDS: usize = 65;
const WORD_BITS: u64 = 64;
/// How far behind the highest number one may be and still be accepted: 64 words. RFC 4303 asks for
/// 32 at least; at a million packets a second this is four milliseconds of reordering.
pub const SIZE: u64 = (WORDS as u64 - 1) * WORD_BITS;

/// The received numbers.
#[derive(Clone, Debug)]
pub struct Window {
    /// The highest number seen; 0 is never sent.
    highest: u64,
    words: [u64; WORDS],
}

impl Default for Window {
    fn default() -> Self {
        Self { highest: 0, words: [0; WORDS] }
    }
}

impl Window {
    /// The whole number that has these low bits: the one closest to the window (RFC 4303,
    /// appendix A2.2). `None` if it would be before the first.
    pub fn infer(&self, low: u32) -> Option<u64> {
        let (high, top) = (self.highest >> 32, self.highest & 0xffff_ffff);
        let low = u64::from(low);
        let high = match top.checked_sub(SIZE - 1) {
            // The window lies within one turn of the low half.
            Some(bottom) if low >= bottom => high,
            Some(_) => high.checked_add(1)?,
            // It reaches back into the turn before.
            None if low > top + (1 << 32) - SIZE => high.checked_sub(1)?,
            None => high,
        };
        (high <= u64::from(u32::MAX)).then_some(high << 32 | low)
    }

    /// Whether the number is new and not too old. Says nothing about who sent it.
    pub fn is_fresh(&self, number: u64) -> bool {
        if number == 0 {
            return false;
        }
        if number > self.highest {
            return true;
        }
        self.highest - number < SIZE && !self.is_marked(number)
    }

    /// Notes a number of an authentic packet; false if it was seen before, or is too old.
    pub fn mark(&mut self, number: u64) -> bool {
        if !self.is_fresh(number) {
            return false;
        }
        if number > self.highest {
            let (from, to) = (self.highest / WORD_BITS, number / WORD_BITS);
            for word in (from + 1..=to).take(WORDS) {
                *self.word_mut(word) = 0;
            }
            self.highest = number;
        }
        *self.word_mut(number / WORD_BITS) |= 1 << (number % WORD_BITS);
        true
    }

    fn is_marked(&self, number: u64) -> bool {
        let word = self.words.get(slot(number / WORD_BITS)).copied().unwrap_or(u64::MAX);
        word >> (number % WORD_BITS) & 1 != 0
    }

    fn word_mut(&mut self, word: u64) -> &mut u64 {
        // In bounds: a slot is a remainder.
        &mut self.words[slot(word)]
    }
}

fn slot(word: u64) -> usize {
    usize::try_from(word % WORDS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_number_once() {
        let mut window = Window::default();
        assert!(!window.mark(0), "never sent");
        for number in [1, 3, 2, 64, 63, 65, 4096, 4095, 10_000] {
            assert!(window.mark(number), "{number}");
            assert!(!window.mark(number), "{number} again");
        }
        assert!(!window.mark(10_000 - SIZE), "too old");
        assert!(window.mark(10_000 - SIZE + 1));
    }

    #[test]
    fn the_low_half_is_enough_around_a_turn() {
        let turn = 1 << 32;
        let mut window = Window::default();
        assert_eq!(window.infer(7), Some(7));
        assert_eq!(window.infer(u32::MAX), None, "before the first");
        window.mark(turn - 10);
        assert_eq!(window.infer(5), Some(turn + 5));
        assert_eq!(window.infer(u32::MAX - 100), Some(turn - 101));
        window.mark(turn + 5);
        assert_eq!(window.infer(u32::MAX), Some(turn - 1));
        assert_eq!(window.infer(6), Some(turn + 6));
        assert!(window.mark(turn - 1));
        window.mark(u64::MAX - 3);
        assert_eq!(window.infer(2), None, "behind the last");
    }

    proptest! {
        /// Against the plain definition.
        #[test]
        fn agrees_with_a_set(steps in prop::collection::vec((0u64..3, 0u64..6000), 1..300)) {
            let mut window = Window::default();
            let mut seen = BTreeSet::new();
            let mut highest = 0u64;
            for (kind, by) in steps {
                let at = match kind {
                    0 => highest + 1,
                    1 => highest.saturating_sub(by),
                    _ => highest + by,
                };
                let want = at > 0 && !seen.contains(&at) && at + SIZE > highest;
                prop_assert_eq!(window.is_fresh(at), want);
                prop_assert_eq!(window.mark(at), want);
                if want {
                    seen.insert(at);
                    highest = highest.max(at);
                }
                if at + SIZE > highest {
                    prop_assert_eq!(window.infer(u32::try_from(at).unwrap()), Some(at));
                }
            }
        }
    }
}
