//! Rates and sizes as they are written on command lines: with the suffixes of `tc(8)`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Bits per second, 1000 to 10^12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

/// A number of bytes, 1 to 2^32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

/// Why a text is no rate or size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnitError {
    /// A suffix that means something else to `tc`.
    #[error("rates are in bits per second: 8mbit, not 1mbps")]
    Bytes,
    /// Not a number with a suffix.
    #[error("not a rate in bits per second, such as 500k, 100M or 2.5gbit")]
    Rate,
    /// Not a number with a suffix.
    #[error("not a number of bytes, such as 16384, 64k or 1M")]
    Size,
    /// Too low or too high.
    #[error("not from 1k to 1T bits per second")]
    RateRange,
    /// Too low or too high.
    #[error("not from 1 byte to 4G")]
    SizeRange,
}

impl Rate {
    const RANGE: std::ops::RangeInclusive<u128> = 1000..=1_000_000_000_000;

    /// The number.
    pub const fn bits_per_second(self) -> u64 {
        self.0
    }
}

impl Size {
    const RANGE: std::ops::RangeInclusive<u128> = 1..=1 << 32;

    /// A number of bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Bits per second: a number, which may have a fraction, then `k`, `M`, `G`, `T` (powers of 1000) or
/// `Ki`, `Mi`, `Gi`, `Ti` (of 1024), then optionally `bit`; in upper or lower case.
impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let lower = text.to_ascii_lowercase();
        if lower.ends_with("bps") {
            return Err(UnitError::Bytes);
        }
        let scaled = lower.strip_suffix("bit").unwrap_or(&lower);
        let bits = match scaled.strip_suffix('i') {
            Some(scaled) if !scaled.ends_with(|c: char| c.is_ascii_digit()) => parse(scaled, 1024),
            Some(_) => None,
            None => parse(scaled, 1000),
        };
        let bits = bits.ok_or(UnitError::Rate)?;
        in_range(bits, &Self::RANGE).map(Self).ok_or(UnitError::RateRange)
    }
}

/// Bytes: a number, then `k`, `M` or `G` (powers of 1024, as tc has it for sizes), then optionally
/// `b`; in upper or lower case.
impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let lower = text.to_ascii_lowercase();
        let bytes = parse(lower.strip_suffix('b').unwrap_or(&lower), 1024);
        let bytes = bytes.ok_or(UnitError::Size)?;
        in_range(bytes, &Self::RANGE).map(Self).ok_or(UnitError::SizeRange)
    }
}

fn in_range(value: u128, range: &std::ops::RangeInclusive<u128>) -> Option<u64> {
    if range.contains(&value) { u64::try_from(value).ok() } else { None }
}

/// A number with a fraction of up to nine digits and a letter that scales it by a power of `base`.
fn parse(text: &str, base: u128) -> Option<u128> {
    let letters = ["k", "m", "g", "t"];
    let found = letters.iter().position(|letter| text.ends_with(letter));
    let digits = found.map_or(Some(text), |_| text.get(..text.len() - 1))?;
    let scale = found.map_or(1, |power| base.pow(u32::try_from(power).unwrap_or(0) + 1));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) || whole.len() > 18 || fraction.len() > 9 {
        return None;
    }
    let tens = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let (whole, fraction) = (whole.parse::<u128>().ok()?, fraction.parse::<u128>().ok()?);
    Some(whole * scale + fraction * scale / tens)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scales = [(1_000_000_000, "G"), (1_000_000, "M"), (1000, "k")];
        let scale = scales.into_iter().find(|(scale, _)| self.0.is_multiple_of(*scale));
        let (scale, letter) = scale.unwrap_or((1, ""));
        write!(f, "{}{letter}bit/s", self.0 / scale)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_the_suffixes_of_tc() {
        let cases = [
            ("8000", 8000),
            ("8000bit", 8000),
            ("1k", 1000),
            ("500K", 500_000),
            ("100M", 100_000_000),
            ("100mbit", 100_000_000),
            ("2.5Gbit", 2_500_000_000),
            ("0.000001G", 1000),
            ("1T", 1_000_000_000_000),
            ("1kibit", 1024),
            ("1Gi", 1 << 30),
        ];
        for (text, bits) in cases {
            assert_eq!(text.parse(), Ok(Rate(bits)), "{text}");
        }
        assert_eq!("1mbps".parse::<Rate>(), Err(UnitError::Bytes));
        assert_eq!("1Bps".parse::<Rate>(), Err(UnitError::Bytes));
        for text in ["999", "0", "1.1T", "999999999999G"] {
            assert_eq!(text.parse::<Rate>(), Err(UnitError::RateRange), "{text}");
        }
        for text in
            ["", "M", "-1M", "+1M", "1e9", "1 M", "1.M", ".5M", "1.2.3M", "1x", "1ibit", "1bitM"]
        {
            assert_eq!(text.parse::<Rate>(), Err(UnitError::Rate), "{text}");
        }
    }

    #[test]
    fn sizes_have_the_suffixes_of_tc() {
        let cases = [("1", 1), ("1500b", 1500), ("64k", 65_536), ("64KB", 65_536), ("1M", 1 << 20)];
        for (text, bytes) in cases {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["0", "5G", "1T"] {
            assert_eq!(text.parse::<Size>(), Err(UnitError::SizeRange), "{text}");
        }
        for text in ["", "k", "-1", "1bit", "1kib"] {
            assert_eq!(text.parse::<Size>(), Err(UnitError::Size), "{text}");
        }
    }

    #[test]
    fn rates_are_shown_as_they_are_written() {
        for text in ["8001bit/s", "500kbit/s", "100Mbit/s", "1Gbit/s", "1500Mbit/s"] {
            let bits = text.strip_suffix("/s").unwrap().parse::<Rate>().unwrap();
            assert_eq!(bits.to_string(), text);
        }
    }
}
