//! Fragmentation: what is too long for its path becomes pieces (flag F of [`crate::wire::encap`]).
//!
//! All pieces but the last are of one length, as one UDP_SEGMENT call wants it.

use std::ops::Range;

use crate::wire::encap::{self, Flags, Header};
use crate::wire::fragment::{self, Piece};

/// What stands in front of each piece, in bytes.
pub const OVERHEAD: usize = encap::LEN + fragment::LEN;

/// How so many bytes are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    len: usize,
    /// Bytes in each piece but the last.
    room: usize,
}

impl Split {
    /// Splits `len` bytes, at least one, so that no datagram is longer than `max_datagram`. `None`
    /// where that leaves no room.
    pub fn new(len: usize, max_datagram: usize) -> Option<Self> {
        let room = max_datagram.checked_sub(OVERHEAD).filter(|room| *room > 0 && len > 0)?;
        Some(Self { len, room: room.min(len) })
    }

    /// How many pieces.
    pub const fn count(&self) -> usize {
        self.len.div_ceil(self.room)
    }

    /// Length of each datagram but the last, in bytes.
    pub const fn datagram(&self) -> usize {
        OVERHEAD + self.room
    }

    /// Length of some of the datagrams together, in bytes.
    pub fn datagrams_len(&self, pieces: &Range<usize>) -> usize {
        let end = |index: usize| index.saturating_mul(self.room).min(self.len);
        end(pieces.end).saturating_sub(end(pieces.start)) + pieces.len() * OVERHEAD
    }

    /// Writes the datagrams of some of the pieces of `whole`, one behind the other. `whole` may be a
    /// piece itself; `header` is that of the datagram that was too long. `None` when they do not fit
    /// `out`, or `whole` is not of the length that was split.
    pub fn write(
        &self,
        header: Header,
        whole: &Piece<'_>,
        pieces: Range<usize>,
        mut out: &mut [u8],
    ) -> Option<()> {
        let header = Header { flags: header.flags.with(Flags::FRAGMENT), ..header }.emit();
        for index in pieces {
            let start = index * self.room;
            let end = (start + self.room).min(self.len);
            let piece = Piece {
                offset: whole.offset + start,
                is_last: whole.is_last && end == self.len,
                bytes: whole.bytes.get(start..end)?,
                ..*whole
            };
            let (datagram, rest) = out.split_at_mut_checked(OVERHEAD + piece.bytes.len())?;
            let (first, tail) = datagram.split_first_chunk_mut()?;
            let (second, data) = tail.split_first_chunk_mut()?;
            *first = header;
            *second = piece.emit_header()?;
            data.copy_from_slice(piece.bytes);
            out = rest;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::VnetId;
    use proptest::prelude::*;

    fn header(flags: Flags) -> Header {
        Header { flags, vnet: VnetId::new(42).unwrap() }
    }

    /// The datagrams of all pieces.
    fn split(whole: &Piece<'_>, max_datagram: usize, flags: Flags) -> Vec<Vec<u8>> {
        let split = Split::new(whole.bytes.len(), max_datagram).unwrap();
        let mut out = vec![0; split.datagrams_len(&(0..split.count()))];
        split.write(header(flags), whole, 0..split.count(), &mut out).unwrap();
        let datagrams: Vec<Vec<u8>> = out.chunks(split.datagram()).map(<[u8]>::to_vec).collect();
        assert_eq!(datagrams.len(), split.count());
        datagrams
    }

    #[test]
    fn there_must_be_room() {
        assert_eq!(Split::new(1, OVERHEAD), None);
        assert_eq!(Split::new(0, 1000), None);
        assert_eq!(Split::new(3, OVERHEAD + 1).unwrap().count(), 3);
        assert_eq!(Split::new(100, 1000).unwrap().datagram(), OVERHEAD + 100);
        let split = Split::new(10, 1000).unwrap();
        let whole = Piece { id: 1, offset: 0, is_last: true, bytes: &[0; 10] };
        assert_eq!(split.write(header(Flags::NONE), &whole, 0..1, &mut [0; OVERHEAD]), None);
    }

    #[test]
    fn a_piece_can_be_cut_again() {
        let bytes: Vec<u8> = (0..200).collect();
        for is_last in [false, true] {
            let whole = Piece { id: 7, offset: 1000, is_last, bytes: &bytes };
            let datagrams = split(&whole, OVERHEAD + 90, Flags::PARTIAL_CHECKSUM);
            let pieces: Vec<Piece<'_>> =
                datagrams.iter().map(|d| Piece::parse(&d[encap::LEN..]).unwrap()).collect();
            let seen: Vec<_> = pieces.iter().map(|p| (p.id, p.offset, p.is_last)).collect();
            assert_eq!(seen, [(7, 1000, false), (7, 1090, false), (7, 1180, is_last)]);
            let (header, _) = Header::parse(&datagrams[0]).unwrap();
            assert_eq!(header.flags, Flags::FRAGMENT.with(Flags::PARTIAL_CHECKSUM));
        }
    }

    proptest! {
        #[test]
        fn pieces_fit_and_hold_everything(len in 1usize..66_000, max in OVERHEAD + 1..9000) {
            let max = max.max(OVERHEAD + len.div_ceil(300));
            let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let whole = Piece { id: 1, offset: 0, is_last: true, bytes: &bytes };
            let datagrams = split(&whole, max, Flags::NONE);
            let mut joined: Vec<u8> = Vec::new();
            for (index, datagram) in datagrams.iter().enumerate() {
                prop_assert!(datagram.len() <= max);
                let piece = Piece::parse(&datagram[encap::LEN..]).unwrap();
                prop_assert_eq!(piece.offset, joined.len());
                prop_assert_eq!(piece.is_last, index + 1 == datagrams.len());
                joined.extend(piece.bytes);
            }
            prop_assert!(joined == bytes);
        }
    }
}
