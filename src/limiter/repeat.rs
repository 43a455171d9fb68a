//! The times at which a message is repeated, because any may be lost: in quick succession at first,
//! then once a second until the receiver follows it.

use std::time::Duration;

/// The longest wait.
pub(crate) const LONGEST: Duration = Duration::from_secs(1);
/// The first.
const FIRST: Duration = Duration::from_millis(5);

/// How long to wait after something was told for so many times, once at least.
pub(crate) fn wait(times: u32) -> Duration {
    let factor = 4_u32.saturating_pow(times.saturating_sub(1));
    FIRST.saturating_mul(factor).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soon_at_first_and_then_once_a_second() {
        let waits: Vec<u128> = (1..=7).map(|times| wait(times).as_millis()).collect();
        assert_eq!(waits, [5, 20, 80, 320, 1000, 1000, 1000]);
        assert_eq!(wait(u32::MAX), LONGEST);
    }
}
