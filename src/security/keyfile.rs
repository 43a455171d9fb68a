//! The text file with a vnet's key, and the rotation of keys.
//!
//! ```text
//! # comment
//! use  0102...   the key to send with; 64 hex digits
//! next 0304...   at most one of these two: accepted, the next key to send with;
//! old  0506...   or accepted, the previous key
//! ```
//!
//! [`KeyFile::rotate`] takes a file one step further; the operator copies it to all hosts after
//! each step. So every host accepts a key before any host sends with it, and no frame is lost:
//!
//! | Step | File | Sent with | Accepted |
//! |---|---|---|---|
//! | | use A | A | A |
//! | 1 | use A, next B | A | A, B |
//! | 2 | use B, old A | B | A, B |
//! | 3 | use B | B | B |
//!
//! To exclude a member, do not copy the file to it; it is excluded from step 3 on.
//!
//! The parser refuses a key that a person typed (`0123...`, a placeholder from a manual), because
//! it would only seem to protect.

use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret::{LEN, Secret};

/// Limit on the length of a file, in bytes.
pub const MAX_LEN: usize = 4096;

/// A fault of a key file. The messages never reveal its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyFileError {
    /// The file is too long.
    #[error("more than {MAX_LEN} bytes")]
    TooLong,
    /// Not text.
    #[error("not a text file")]
    NotText,
    /// A line of unknown form.
    #[error("line {0}: expected 'use', 'next' or 'old' and 64 hex digits")]
    Line(usize),
    /// A superfluous line.
    #[error("line {0}: there is one 'use' line and at most one of 'next' or 'old'")]
    TooMany(usize),
    /// The same key twice.
    #[error("both keys are the same")]
    Same,
    /// No key to use.
    #[error("there is no 'use' line")]
    Empty,
    /// A key of zeros, as in a placeholder.
    #[error("line {0}: a key of zeros is no key")]
    Zero(usize),
    /// A key that was typed.
    #[error(
        "line {0}: this key was typed, not drawn (few different bytes, or even steps): have one made \
         by 'vnet key generate'"
    )]
    Typed(usize),
}

/// The role of the second key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// The next key.
    Next,
    /// The previous key.
    Old,
}

/// A vnet's keys: the one to send with, and optionally another accepted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// The key to send with.
    pub used: Secret,
    /// Another accepted key.
    pub other: Option<(Other, Secret)>,
}

impl KeyFile {
    /// A file with one key.
    pub fn new(key: Secret) -> Self {
        Self { used: key, other: None }
    }

    /// All accepted keys, the used one first.
    pub fn accepted(&self) -> impl Iterator<Item = &Secret> {
        std::iter::once(&self.used).chain(self.other.as_ref().map(|(_, key)| key))
    }

    /// Parses a file.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyFileError> {
        if bytes.len() > MAX_LEN {
            return Err(KeyFileError::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| KeyFileError::NotText)?;
        let (mut used, mut other) = (None, None);
        for (number, line) in (1..).zip(text.lines()) {
            let mut words = line.split_whitespace();
            let Some(role) = words.next().filter(|word| !word.starts_with('#')) else { continue };
            let (Some(digits), None) = (words.next(), words.next()) else {
                return Err(KeyFileError::Line(number));
            };
            let key = from_hex(digits).ok_or(KeyFileError::Line(number))?;
            if key == Secret::new([0; LEN]) {
                return Err(KeyFileError::Zero(number));
            }
            if is_typed(&key) {
                return Err(KeyFileError::Typed(number));
            }
            let is_taken = match role {
                "use" => used.replace(key).is_some(),
                "next" => other.replace((Other::Next, key)).is_some(),
                "old" => other.replace((Other::Old, key)).is_some(),
                _ => return Err(KeyFileError::Line(number)),
            };
            if is_taken {
                return Err(KeyFileError::TooMany(number));
            }
        }
        let used = used.ok_or(KeyFileError::Empty)?;
        if other.as_ref().is_some_and(|(_, key)| *key == used) {
            return Err(KeyFileError::Same);
        }
        Ok(Self { used, other })
    }

    /// The file's text.
    pub fn emit(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(512));
        text.push_str("# Key of a vnet. Who holds it is a member: keep it secret.\n");
        push_line(&mut text, "use", &self.used);
        match &self.other {
            Some((Other::Next, key)) => push_line(&mut text, "next", key),
            Some((Other::Old, key)) => push_line(&mut text, "old", key),
            None => {}
        }
        text
    }

    /// The next step of a rotation; `new` is the new key, used in the first step only.
    pub fn rotate(self, new: Secret) -> (Self, &'static str) {
        match self.other {
            None => {
                let other = Some((Other::Next, new));
                let text = "a new key is accepted, not used yet";
                (Self { used: self.used, other }, text)
            }
            Some((Other::Next, next)) => {
                let other = Some((Other::Old, self.used));
                (Self { used: next, other }, "the new key is used, the old one still accepted")
            }
            Some((Other::Old, _)) => (Self::new(self.used), "the old key is no longer accepted"),
        }
    }
}

/// Keys with fewer different bytes are not random: the probability is below 10^-13.
const FEW_BYTES: usize = 17;

/// Whether a key looks typed by a person. Keeps no copy of it.
fn is_typed(key: &Secret) -> bool {
    let bytes = key.bytes();
    let is_new = |(at, byte): &(usize, &u8)| !bytes.iter().take(*at).any(|before| before == *byte);
    let different = bytes.iter().enumerate().filter(is_new).count();
    let mut steps = bytes.iter().zip(bytes.iter().skip(1)).map(|(a, b)| b.wrapping_sub(*a));
    let first = steps.next();
    different < FEW_BYTES || steps.all(|step| Some(step) == first)
}

fn push_line(text: &mut String, role: &str, key: &Secret) {
    text.push_str(role);
    text.push(' ');
    for byte in key.bytes() {
        for digit in [byte >> 4, byte & 0xf] {
            text.push(char::from_digit(digit.into(), 16).unwrap_or('?'));
        }
    }
    text.push('\n');
}

fn from_hex(digits: &str) -> Option<Secret> {
    if digits.len() != 2 * LEN {
        return None;
    }
    let mut bytes = Zeroizing::new([0; LEN]);
    for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
        let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        let [high, low] = pair else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(Secret::new(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that differ, as if drawn.
    fn bytes(first: u8) -> [u8; LEN] {
        std::array::from_fn(|at| first.wrapping_add(u8::try_from(at * at % 256).unwrap()))
    }

    fn key(first: u8) -> Secret {
        Secret::new(bytes(first))
    }

    fn digits(first: u8) -> String {
        bytes(first).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut file = KeyFile::new(key(0xa5));
        for _ in 0..3 {
            assert_eq!(KeyFile::parse(file.emit().as_bytes()), Ok(file.clone()));
            file = file.rotate(key(2)).0;
        }
    }

    #[test]
    fn a_rotation_never_leaves_members_without_a_common_key() {
        let steps: Vec<KeyFile> =
            std::iter::successors(Some(KeyFile::new(key(1))), |f| Some(f.clone().rotate(key(2)).0))
                .take(4)
                .collect();
        for pair in steps.windows(2) {
            let [before, after] = pair else { panic!() };
            // Some hosts have the file of the step before.
            assert!(after.accepted().any(|k| *k == before.used));
            assert!(before.accepted().any(|k| *k == after.used));
        }
        assert_eq!(steps[3], KeyFile::new(key(2)));
    }

    #[test]
    fn complaints_name_the_line_and_never_the_key() {
        let line = |role: &str, first: u8| format!("{role} {}\n", digits(first));
        let fails = |text: &str| KeyFile::parse(text.as_bytes()).unwrap_err();
        assert_eq!(fails("# only\n\n"), KeyFileError::Empty);
        assert_eq!(fails(&line("next", 0x11)), KeyFileError::Empty);
        assert_eq!(fails(&format!("\n{}", line("key", 0x11))), KeyFileError::Line(2));
        assert_eq!(fails("use 11"), KeyFileError::Line(1));
        assert_eq!(fails(&line("use", 0x11).replace('1', "g")), KeyFileError::Line(1));
        assert_eq!(fails(&format!("{} more", line("use", 0x11).trim())), KeyFileError::Line(1));
        let zeros = format!("use {}", "00".repeat(LEN));
        assert_eq!(fails(&zeros), KeyFileError::Zero(1));
        let twice = line("use", 0x11) + &line("use", 0x22);
        assert_eq!(fails(&twice), KeyFileError::TooMany(2));
        let three = line("use", 0x11) + &line("next", 0x22) + &line("old", 0x33);
        assert_eq!(fails(&three), KeyFileError::TooMany(3));
        assert_eq!(fails(&(line("use", 0x11) + &line("old", 0x11))), KeyFileError::Same);
        assert_eq!(KeyFile::parse(&[0xff; 10]), Err(KeyFileError::NotText));
        assert_eq!(KeyFile::parse(&[b'#'; MAX_LEN + 1]), Err(KeyFileError::TooLong));
        assert!(
            KeyFile::parse(line("use", 0xab).to_uppercase().replace("USE", "use").as_bytes())
                .is_ok()
        );
    }

    #[test]
    fn a_key_that_a_person_typed_is_refused() {
        let refused = |digits: &str| KeyFile::parse(format!("use {digits}\n").as_bytes());
        let counted: String = (0..32).map(|n| format!("{n:02x}")).collect();
        let backwards: String = (0..32).map(|n| format!("{:02x}", 255 - 3 * n)).collect();
        let typed = [
            "01".repeat(32),
            "a5".repeat(32),
            "deadbeef".repeat(8),
            "0123456789abcdef".repeat(4),
            "00112233445566778899aabbccddeeff".repeat(2),
            format!("{}{}", "00".repeat(24), "1f2e3d4c5b6a7988"),
            counted,
            backwards,
        ];
        for digits in &typed {
            assert_eq!(digits.len(), 64);
            let error = refused(digits).unwrap_err();
            assert_eq!(error, KeyFileError::Typed(1), "{digits}");
            assert!(error.to_string().contains("vnet key generate"));
        }
        // As drawn: never.
        for n in 0..20_000_u32 {
            let drawn = Secret::new(Secret::new([7; 32]).expand("key", &[&n.to_be_bytes()]));
            assert!(!is_typed(&drawn), "{n}");
        }
    }
}
