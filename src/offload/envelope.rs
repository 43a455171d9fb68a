//! What surrounds a staged datagram, so that it can be sealed where it stands.
//!
//! ```text
//!  bare:               | datagram |
//!  sealed:      | head | datagram | trailer | ICV |
//! ```
//!
//! Head and ICV ([`crate::wire::esp`]) are room that sealing fills in; the trailer depends on the
//! length alone, and is written when the datagram gets its place.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

use crate::wire::esp::{self, HEAD_LEN, payload_room, sealed_len};

/// What surrounds the datagrams of a stager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Envelope {
    /// Nothing: they leave as they are.
    #[default]
    Bare,
    /// What protects them on a secured vnet.
    Sealed,
}

impl Envelope {
    /// Bytes in front of a datagram.
    #[inline]
    pub const fn head(self) -> usize {
        match self {
            Self::Bare => 0,
            Self::Sealed => HEAD_LEN,
        }
    }

    /// Length of a datagram of `len` bytes with all that surrounds it. Never shorter for a longer one.
    #[inline]
    pub const fn len_of(self, len: usize) -> usize {
        match self {
            Self::Bare => len,
            Self::Sealed => sealed_len(len),
        }
    }

    /// Longest datagram that with all that surrounds it is no longer than `max`, in bytes; 0 if there
    /// is none.
    #[inline]
    pub const fn room_in(self, max: usize) -> usize {
        match self {
            Self::Bare => max,
            Self::Sealed => payload_room(max),
        }
    }

    /// The place of a datagram of `len` bytes whose surroundings begin at the `start` of `buffer`; for
    /// the caller to fill. `None` if the buffer is too short.
    #[inline]
    pub fn place(self, buffer: &mut [u8], start: usize, len: usize) -> Option<&mut [u8]> {
        let packet = buffer.get_mut(start..start + self.len_of(len))?;
        self.close(packet, len);
        packet.get_mut(self.head()..self.head() + len)
    }

    /// Writes what follows a datagram of `len` bytes, at the beginning of `packet`, and depends on its
    /// length alone.
    #[inline]
    pub fn close(self, packet: &mut [u8], len: usize) {
        if self == Self::Sealed {
            let trailer = packet.get_mut(HEAD_LEN + len..).unwrap_or_default();
            esp::write_trailer(trailer, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::esp::{ICV_LEN, NEXT_HEADER};

    #[test]
    fn a_bare_datagram_has_all_of_its_place() {
        let mut buffer = [7; 10];
        assert_eq!(Envelope::Bare.place(&mut buffer, 2, 9), None);
        Envelope::Bare.place(&mut buffer, 2, 8).unwrap().fill(1);
        assert_eq!(buffer, [7, 7, 1, 1, 1, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn a_sealed_one_is_surrounded() {
        for len in 0..9 {
            let whole = Envelope::Sealed.len_of(len);
            let mut buffer = vec![7; 1 + whole];
            assert_eq!(Envelope::Sealed.place(&mut buffer, 2, len), None);
            let place = Envelope::Sealed.place(&mut buffer, 1, len).unwrap();
            assert_eq!(place.len(), len);
            place.fill(9);
            assert_eq!(buffer[..1 + HEAD_LEN], [7; 1 + HEAD_LEN]);
            assert_eq!(buffer[1 + HEAD_LEN..][..len], vec![9; len]);
            assert_eq!(buffer[1 + whole - ICV_LEN..], [7; ICV_LEN]);
            assert_eq!(buffer[whole - ICV_LEN], NEXT_HEADER);
            assert!(Envelope::Sealed.room_in(whole) >= len);
        }
    }
}
