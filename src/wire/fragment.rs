//! Pieces of what is too long for its path (flag F of [`super::encap`]).
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |                    the encapsulation header                   |
//! |                     with F, perhaps C or B                    |
//! +---------------------------------------------------------------+
//! |                           frame id                            |
//! +-+-------------+-----------------------------------------------+
//! |L|reserved, MBZ|                  offset (24)                  |
//! +-+-------------+-----------------------------------------------+
//! |  the piece, at least one octet ...
//! ```
//!
//! * `frame id`: the same in all pieces of one frame. A sender (an address and port) does not use
//!   it again before the pieces of the other frame are forgotten.
//! * `offset`: where the piece begins, in octets.
//! * `L`: it is the last; it ends where the whole ends.
//!
//! Put together, the pieces are what would stand behind an encapsulation header without F: a frame,
//! with C beside F one whose checksum is partial, with B a bundle. A piece can be cut again, into
//! pieces with the same id, by its sender only.

use super::ParseError;

/// Length of what stands between the encapsulation header and the piece, in bytes.
pub const LEN: usize = 8;
/// The highest offset.
pub const MAX_OFFSET: usize = 0x00ff_ffff;

const LAST: u32 = 0x8000_0000;
const RESERVED: u32 = 0x7f00_0000;

/// A piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Of which frame.
    pub id: u32,
    /// Where it begins in it, in bytes.
    pub offset: usize,
    /// Whether it is the last.
    pub is_last: bool,
    /// Its contents.
    pub bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// The bytes in front of the piece; `None` when the offset is too high to be written.
    pub fn emit_header(&self) -> Option<[u8; LEN]> {
        let offset = u32::try_from(self.offset).ok().filter(|_| self.offset <= MAX_OFFSET)?;
        let word = offset | if self.is_last { LAST } else { 0 };
        let [i0, i1, i2, i3] = self.id.to_be_bytes();
        let [w0, w1, w2, w3] = word.to_be_bytes();
        Some([i0, i1, i2, i3, w0, w1, w2, w3])
    }

    /// Parses the bytes after the encapsulation header.
    ///
    /// # Errors
    /// `Truncated` for less than the header and an octet, `Reserved` for reserved bits.
    pub fn parse(payload: &'a [u8]) -> Result<Self, ParseError> {
        let (header, bytes) = payload.split_first_chunk::<LEN>().ok_or(ParseError::Truncated)?;
        let [i0, i1, i2, i3, w0, w1, w2, w3] = *header;
        let word = u32::from_be_bytes([w0, w1, w2, w3]);
        if word & RESERVED != 0 {
            return Err(ParseError::Reserved);
        }
        if bytes.is_empty() {
            return Err(ParseError::Truncated);
        }
        // 24 bits fit.
        let offset = usize::try_from(word & !LAST).map_err(|_| ParseError::Value)?;
        let id = u32::from_be_bytes([i0, i1, i2, i3]);
        Ok(Self { id, offset, is_last: word & LAST != 0, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VECTOR: &[u8] = &[0xde, 0xad, 0xbe, 0xef, 0x80, 0x00, 0x05, 0xa8, 1, 2, 3];

    #[test]
    fn committed_vector() {
        let piece = Piece::parse(VECTOR).unwrap();
        let bytes = [1, 2, 3].as_slice();
        assert_eq!(piece, Piece { id: 0xdead_beef, offset: 1448, is_last: true, bytes });
        assert_eq!(piece.emit_header().unwrap(), VECTOR[..LEN]);
    }

    #[test]
    fn every_truncation_and_every_mutation_is_refused_or_means_what_it_says() {
        for len in 0..=LEN {
            assert_eq!(Piece::parse(&VECTOR[..len]), Err(ParseError::Truncated));
        }
        for at in 0..LEN {
            for value in 0..=255 {
                let mut bytes = VECTOR.to_vec();
                bytes[at] = value;
                match Piece::parse(&bytes) {
                    Ok(piece) => assert_eq!(piece.emit_header().unwrap(), bytes[..LEN]),
                    Err(error) => assert_eq!((at, error), (4, ParseError::Reserved)),
                }
            }
        }
        let far = Piece { id: 0, offset: MAX_OFFSET + 1, is_last: false, bytes: &[0] };
        assert_eq!(far.emit_header(), None);
    }

    proptest! {
        #[test]
        fn round_trip(id: u32, offset in 0..=MAX_OFFSET, is_last: bool, tail in 1usize..50) {
            let bytes = vec![7; tail];
            let piece = Piece { id, offset, is_last, bytes: &bytes };
            let wire = [&piece.emit_header().unwrap()[..], &bytes].concat();
            prop_assert_eq!(Piece::parse(&wire), Ok(piece));
        }
    }
}
