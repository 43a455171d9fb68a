//! How committed vectors are read, and tried cut short and changed.

use super::ParseError;

/// Bytes in a `.hex` file: pairs of digits, any white space, comments from `#` to the line's end.
pub(super) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .lines()
        .flat_map(|line| line.split('#').next().unwrap_or("").bytes())
        .filter(u8::is_ascii_hexdigit)
        .collect();
    assert_eq!(digits.len() % 2, 0, "odd number of digits");
    let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// Every truncation is refused as truncated, and every change of one byte is refused or
/// emitted as it was. `again` parses a message and emits it.
pub(super) fn cut_and_changed(bytes: &[u8], again: impl Fn(&[u8]) -> Result<Vec<u8>, ParseError>) {
    for end in 0..bytes.len() {
        let cut = again(&bytes[..end]);
        assert_eq!(cut, Err(ParseError::Truncated), "cut to {end} bytes");
    }
    changed(bytes, again);
}

/// The message is emitted as it was, and so is every change of one byte that is a message.
pub(super) fn changed(bytes: &[u8], again: impl Fn(&[u8]) -> Result<Vec<u8>, ParseError>) {
    assert_eq!(again(bytes).as_deref(), Ok(bytes));
    for at in 0..bytes.len() {
        for value in 0..=u8::MAX {
            let mut mutant = bytes.to_vec();
            mutant[at] = value;
            if let Ok(emitted) = again(&mutant) {
                assert_eq!(emitted, mutant, "byte {at} = {value:#x}");
            }
        }
    }
}
