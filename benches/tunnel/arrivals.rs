//! Checks what arrives as a guest's kernel would, and more: every header, checksum and byte.

use crate::frames::{self, Flow, VIRTIO_LEN};
use crate::pattern::{self, Pattern, fold};

/// A stretch of a flow that a packet carries: of the stream, or a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Where it begins, in bytes of the stream or datagrams.
    pub(crate) at: u64,
    /// How far it goes, in the same unit.
    pub(crate) units: u64,
    /// Payload, in bytes.
    pub(crate) bytes: u64,
}

/// What is wrong with a packet.
pub(crate) type Fault = &'static str;

/// A packet that arrived, virtio-net header first, in pieces of which the first holds all headers.
pub(crate) struct Arrival<'a> {
    pieces: &'a [&'a [u8]],
    head: &'a [u8],
}

impl<'a> Arrival<'a> {
    /// The packet in `pieces`, and its destination port, if it is for `station` and may be ours.
    pub(crate) fn of(pieces: &'a [&'a [u8]], station: u8) -> Option<(u16, Self)> {
        let head = *pieces.first()?;
        let frame = head.get(VIRTIO_LEN..)?;
        let is_ours = frame.get(..6)? == Flow::mac(station) && frame.get(12..15)? == [8, 0, 0x45];
        let port = frame.get(frames::TRANSPORT + 2..frames::TRANSPORT + 4)?;
        is_ours.then(|| (u16::from_be_bytes([port[0], port[1]]), Self { pieces, head }))
    }

    /// Checks the packet; `each` is told of every stretch. `expected` is about where the flow is.
    pub(crate) fn verify(
        &self,
        pattern: &Pattern,
        expected: u64,
        each: &mut dyn FnMut(Stretch),
    ) -> Result<(), Fault> {
        let start = VIRTIO_LEN + frames::ETHERNET_LEN;
        let ip = self.part(start, frames::IP_LEN)?;
        if fold(pattern::sum(ip)) != 0xffff {
            return Err("wrong IP header checksum");
        }
        let end = start + usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let total: usize = self.pieces.iter().map(|piece| piece.len()).sum();
        if end != total {
            return Err("length of the frame is not that of the IP packet");
        }
        match ip[9] {
            frames::TCP => self.verify_stream(ip, end, pattern, expected, each),
            frames::UDP => self.verify_datagrams(ip, end, pattern, each),
            _ => Err("unknown protocol"),
        }
    }

    fn part(&self, at: usize, len: usize) -> Result<&'a [u8], Fault> {
        self.head.get(at..at + len).ok_or("headers are cut")
    }

    fn verify_stream(
        &self,
        ip: &[u8],
        end: usize,
        pattern: &Pattern,
        expected: u64,
        each: &mut dyn FnMut(Stretch),
    ) -> Result<(), Fault> {
        let start = VIRTIO_LEN + frames::TRANSPORT;
        let tcp = self.part(start, frames::TCP_LEN)?;
        let low = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        let ahead = low.wrapping_sub(expected as u32) as i32;
        let at = expected.checked_add_signed(ahead.into()).ok_or("position before the start")?;
        if !at.is_multiple_of(2) {
            return Err("odd position");
        }
        let body = start + frames::TCP_LEN;
        let len = end.checked_sub(body).ok_or("length of the segment")?;
        let place = Pattern::place(at);
        if !self.matches(body, pattern.at(place, len)) {
            return Err("wrong payload");
        }
        let sum = pattern::sum(tcp) + pattern.sum(place, len);
        self.verify_checksum(ip, end - start, frames::CHECKSUM_AT_TCP, sum)?;
        match self.head[1] & !0x80 {
            frames::GSO_NONE => {}
            frames::GSO_TCPV4 if self.gso_size() > 0 => {}
            _ => return Err("wrong GSO type"),
        }
        each(Stretch { at, units: len as u64, bytes: len as u64 });
        Ok(())
    }

    fn verify_datagrams(
        &self,
        ip: &[u8],
        end: usize,
        pattern: &Pattern,
        each: &mut dyn FnMut(Stretch),
    ) -> Result<(), Fault> {
        let start = VIRTIO_LEN + frames::TRANSPORT;
        let udp = self.part(start, frames::UDP_LEN)?;
        let body = start + frames::UDP_LEN;
        let step = match self.head[1] {
            frames::GSO_NONE => end.saturating_sub(body).max(1),
            frames::GSO_UDP_L4 if self.gso_size() > 0 => self.gso_size(),
            _ => return Err("wrong GSO type"),
        };
        let mut sum = pattern::sum(udp);
        for at in (body..end).step_by(step) {
            let len = step.min(end - at);
            let number = self.number(at)?;
            let rest = len.checked_sub(frames::NUMBER_LEN).ok_or("short datagram")?;
            let place = frames::datagram_place(number);
            if !self.matches(at + frames::NUMBER_LEN, pattern.at(place, rest)) {
                return Err("wrong payload");
            }
            sum += pattern::sum(&number.to_be_bytes()) + pattern.sum(place, rest);
            each(Stretch { at: number, units: 1, bytes: len as u64 });
        }
        self.verify_checksum(ip, end - start, frames::CHECKSUM_AT_UDP, sum)
    }

    /// The eight bytes from `at`.
    fn number(&self, at: usize) -> Result<u64, Fault> {
        let mut number = [0; frames::NUMBER_LEN];
        for (n, byte) in number.iter_mut().enumerate() {
            *byte = *self.byte(at + n).ok_or("datagram without a number")?;
        }
        Ok(u64::from_be_bytes(number))
    }

    fn byte(&self, mut at: usize) -> Option<&u8> {
        for piece in self.pieces {
            if at < piece.len() {
                return piece.get(at);
            }
            at -= piece.len();
        }
        None
    }

    fn gso_size(&self) -> usize {
        u16::from_le_bytes([self.head[4], self.head[5]]).into()
    }

    /// `sum` is that of the transport header, checksum included, and of the payload.
    fn verify_checksum(&self, ip: &[u8], len: usize, field: usize, sum: u64) -> Result<(), Fault> {
        let pseudo = frames::pseudo_sum(ip, ip[9], len);
        let flags = self.head[0];
        if flags & frames::NEEDS_CSUM != 0 {
            let word = |at: usize| u16::from_le_bytes([self.head[at], self.head[at + 1]]);
            if (usize::from(word(6)), usize::from(word(8))) != (frames::TRANSPORT, field) {
                return Err("csum_start or csum_offset");
            }
            let partial = self.part(VIRTIO_LEN + frames::TRANSPORT + field, 2)?;
            let partial = u16::from_be_bytes([partial[0], partial[1]]);
            return if partial == fold(pseudo) { Ok(()) } else { Err("wrong partial checksum") };
        }
        if self.head[1] != frames::GSO_NONE {
            return Err("GSO without NEEDS_CSUM");
        }
        // What the device has verified need not be verified again (virtio 1.2, 5.1.6.4.1), but can.
        if flags & frames::DATA_VALID != 0 || fold(pseudo + sum) == 0xffff {
            return Ok(());
        }
        Err("wrong checksum")
    }

    /// Whether the bytes from `at` are the `expected` ones.
    fn matches(&self, mut at: usize, mut expected: &[u8]) -> bool {
        for piece in self.pieces {
            if at >= piece.len() {
                at -= piece.len();
                continue;
            }
            let piece = &piece[at..];
            at = 0;
            let count = piece.len().min(expected.len());
            let (now, later) = expected.split_at(count);
            if piece[..count] != *now {
                return false;
            }
            expected = later;
        }
        expected.is_empty()
    }
}
