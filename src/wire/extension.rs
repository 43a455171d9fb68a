//! Extensions: how messages grow without a new version.
//!
//! A message of format 2 can carry a list of them. A field of the message holds the length of the
//! list in words of 32 bits. Each extension is:
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-----------------------------+-------------------------------+
//! |C|          type (15)          |    length of the value (16)   |  0
//! +-+-----------------------------+-------------------------------+
//! |  value ...                                                    |  4
//! |                       zeros, up to the end of the word        |
//! +---------------------------------------------------------------+
//! ```
//!
//! * `C`, the type's top bit: critical. Receivers skip a type that they do not know, unless it is
//!   critical: then they drop the whole message and count it.
//! * `length`: the length of the value alone, in octets, without header and zeros.
//!
//! Extensions are in ascending order of their type as a number of 16 bits, and each type occurs at
//! most once. So one list has one form, and no receiver must choose between two values.
//!
//! The layout is that of STUN's attributes (RFC 8489, section 14). Values begin on a word boundary
//! and have an exact length, so a type's value can grow or be a text, and one value can fill the
//! longest list. Type and length of 8 bits each would save two octets for each extension but
//! prevent all three.
//!
//! No type is defined yet.

use super::ParseError;
use super::reader::Reader;

/// Length of an extension without its value, in bytes.
pub const HEADER_LEN: usize = 4;
/// The type's bit that makes an extension critical.
pub const CRITICAL: u16 = 0x8000;

/// Length of a word, in bytes.
const WORD: usize = 4;

/// One extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Its type, with [`CRITICAL`].
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl Extension<'_> {
    /// Whether a receiver that does not know it drops the message.
    pub const fn is_critical(&self) -> bool {
        self.kind & CRITICAL != 0
    }

    /// Length with header and zeros, in bytes.
    const fn len(&self) -> usize {
        HEADER_LEN + self.value.len().next_multiple_of(WORD)
    }
}

/// A checked view of a list of extensions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions<'a>(&'a [u8]);

impl<'a> Extensions<'a> {
    /// None.
    pub const NONE: Self = Self(&[]);

    /// Views a whole list. `known` are the types that the caller understands.
    ///
    /// # Errors
    /// `Truncated` for a list that ends within an extension, `Value` for types out of order or
    /// twice, `Reserved` for zeros that are not, `Critical` for a critical type that is not
    /// `known`.
    pub fn parse(bytes: &'a [u8], known: &[u16]) -> Result<Self, ParseError> {
        let mut rest = bytes;
        let mut last = None;
        while !rest.is_empty() {
            let (extension, behind) = split(rest)?;
            if last >= Some(extension.kind) {
                return Err(ParseError::Value);
            }
            if extension.is_critical() && !known.contains(&extension.kind) {
                return Err(ParseError::Critical);
            }
            (last, rest) = (Some(extension.kind), behind);
        }
        Ok(Self(bytes))
    }

    /// The list's bytes.
    pub const fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Length of the list, in words of 32 bits.
    pub const fn words(&self) -> usize {
        self.0.len() / WORD
    }

    /// All, in ascending order of type.
    pub fn iter(&self) -> impl Iterator<Item = Extension<'a>> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (extension, behind) = split(rest).ok()?;
            rest = behind;
            Some(extension)
        })
    }

    /// The value of a type.
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.iter().find(|extension| extension.kind == kind).map(|extension| extension.value)
    }
}

/// The first extension of a list that is not empty, and the rest.
fn split(list: &[u8]) -> Result<(Extension<'_>, &[u8]), ParseError> {
    let mut reader = Reader::new(list);
    let (kind, len) = (reader.u16()?, reader.u16()?);
    let value = reader.bytes(len.into())?;
    let zeros = reader.bytes(value.len().next_multiple_of(WORD) - value.len())?;
    if zeros.iter().any(|zero| *zero != 0) {
        return Err(ParseError::Reserved);
    }
    Ok((Extension { kind, value }, reader.rest()))
}

/// The bytes of a list with these extensions.
///
/// Values of more than 65,535 bytes are cut.
///
/// # Panics
/// When a type occurs twice.
pub fn emit(extensions: &[Extension<'_>]) -> Vec<u8> {
    let mut sorted = extensions.to_vec();
    sorted.sort_by_key(|extension| extension.kind);
    let is_ascending = sorted.is_sorted_by(|one, next| one.kind < next.kind);
    assert!(is_ascending, "a type of extension twice in a message");
    let mut out = Vec::with_capacity(sorted.iter().map(Extension::len).sum());
    for Extension { kind, value } in sorted {
        let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend(value.iter().take(len.into()));
        out.resize(out.len().next_multiple_of(WORD), 0);
    }
    out
}

impl<'a> Reader<'a> {
    /// A list of this many words; the reader knows none of the types.
    pub(super) fn extensions(&mut self, words: u8) -> Result<Extensions<'a>, ParseError> {
        Extensions::parse(self.bytes(usize::from(words) * WORD)?, &[])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::wire::vectors::{self, unhex};
    use proptest::prelude::*;

    const VECTOR: &str = include_str!("../../tests/vectors/extension/list.hex");
    const LIST: [Extension<'static>; 3] = [
        Extension { kind: 0x0102, value: &[0xaa, 0xbb, 0xcc] },
        Extension { kind: 0x0103, value: &[] },
        Extension { kind: 0x8001, value: &[1, 2, 3, 4] },
    ];

    fn emitted_again(bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
        let list = Extensions::parse(bytes, &[0x8001])?;
        Ok(emit(&list.iter().collect::<Vec<_>>()))
    }

    #[test]
    fn the_vector_means_what_it_says_and_is_emitted_again() {
        let bytes = unhex(VECTOR);
        let list = Extensions::parse(&bytes, &[0x8001]).unwrap();
        assert_eq!(list.iter().collect::<Vec<_>>(), LIST);
        assert_eq!((list.words(), list.bytes()), (bytes.len() / 4, &bytes[..]));
        assert_eq!(list.get(0x0102), Some(&[0xaa, 0xbb, 0xcc][..]));
        assert_eq!(list.get(2), None);
        assert_eq!(emit(&LIST), bytes);
        vectors::changed(&bytes, emitted_again);
    }

    #[test]
    fn a_list_ends_where_an_extension_does() {
        let bytes = unhex(VECTOR);
        for end in 0..bytes.len() {
            let cut = Extensions::parse(&bytes[..end], &[0x8001]);
            match end {
                0 | 8 | 12 => assert!(cut.is_ok(), "{end}"),
                _ => assert_eq!(cut, Err(ParseError::Truncated), "{end}"),
            }
        }
    }

    #[test]
    fn an_unknown_type_is_skipped_unless_it_is_critical() {
        let bytes = unhex(VECTOR);
        assert_eq!(Extensions::parse(&bytes, &[]), Err(ParseError::Critical));
        assert_eq!(Extensions::parse(&bytes, &[0x8002]), Err(ParseError::Critical));
        let harmless = Extensions::parse(&bytes[..12], &[]).unwrap();
        assert_eq!(harmless.iter().count(), 2);
        assert!(!LIST[0].is_critical() && LIST[2].is_critical());
    }

    #[test]
    fn what_has_a_second_form_is_refused() {
        let parse = |bytes: &[u8]| Extensions::parse(bytes, &[]).unwrap_err();
        assert_eq!(parse(&[0, 2, 0, 0, 0, 1, 0, 0]), ParseError::Value, "out of order");
        assert_eq!(parse(&[0, 1, 0, 0, 0, 1, 0, 0]), ParseError::Value, "twice");
        assert_eq!(parse(&[0, 1, 0, 1, 9, 0, 0, 1]), ParseError::Reserved, "zeros");
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn a_type_is_not_emitted_twice() {
        emit(&[LIST[0], LIST[0]]);
    }

    #[test]
    fn the_longest_value_is_cut_at_what_its_length_can_say() {
        let value = vec![7; 70_000];
        let bytes = emit(&[Extension { kind: 1, value: &value }]);
        let list = Extensions::parse(&bytes, &[]).unwrap();
        assert_eq!(list.get(1).map(<[u8]>::len), Some(65_535));
    }

    prop_compose! {
        fn any_list()(list in prop::collection::btree_map(
            any::<u16>(), prop::collection::vec(any::<u8>(), 0..20), 0..6,
        )) -> BTreeMap<u16, Vec<u8>> { list }
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed(list in any_list()) {
            let given: Vec<Extension<'_>> =
                list.iter().map(|(kind, value)| Extension { kind: *kind, value }).collect();
            let reversed: Vec<Extension<'_>> = given.iter().rev().copied().collect();
            let bytes = emit(&reversed);
            let known: Vec<u16> = list.keys().copied().collect();
            let parsed = Extensions::parse(&bytes, &known).unwrap();
            prop_assert_eq!(parsed.iter().collect::<Vec<_>>(), given);
            prop_assert_eq!(parsed.words() * 4, bytes.len());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(list) = Extensions::parse(&bytes, &[]) {
                prop_assert_eq!(emit(&list.iter().collect::<Vec<_>>()), bytes);
            }
        }
    }
}
