//! Offloads of frames that come through a lane. Such a frame is as its guest sent it: its checksum may be
//! partial, or it may have to be cut into segments. A guest that has negotiated to accept that gets it as
//! it is; for others the checksum is completed, and the frame cut, here.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::ops::Range;

use crate::lane::index::HeaderBytes;
use crate::offload::LEAD_LEN;
use crate::offload::checksum::{self, Sum};
use crate::offload::features::Offloads;
use crate::offload::gso::Cut;
use crate::offload::header::{Header, Request};
use crate::offload::layout::{Layout, Transport};
use crate::packet::IpVersion;

/// Segments that a reader is left to cut a frame into at most: the longest frame in 128 bytes each. Of a
/// frame in smaller ones the writer, whose guest it was that asked for them, does the work.
pub const MOST_SEGMENTS: usize = 512;

/// The virtio-net header of a frame that begins with `lead`, for a guest that accepts it with what it
/// asks for.
pub fn as_it_is(request: &Request, lead: &[u8], offloads: Offloads) -> Option<Header> {
    match request {
        Request::Plain => Some(Header::PLAIN),
        Request::Checksum { place, .. } if offloads.has(Offloads::GUEST_CSUM) => {
            Some(Header::partial_at(*place))
        }
        Request::Segment { layout, size } if accepts(offloads, layout, lead) => {
            Some(Header::merged(layout, *size, layout.has_cwr(lead)))
        }
        Request::Checksum { .. } | Request::Segment { .. } => None,
    }
}

/// Whether a frame can be treated as one that came in a datagram: what it asks for is nothing
/// (`Some(false)`), or what flag C says (`Some(true)`), that the checksum of its TCP or UDP header is
/// partial. `None` for all else.
pub fn as_in_datagram(header: &HeaderBytes, frame: &[u8]) -> Option<bool> {
    let [_, 0, ..] = header else { return None };
    let lead = frame.get(..LEAD_LEN).unwrap_or(frame);
    match Request::parse_whole(header, lead, frame.len(), Offloads::ALL) {
        Ok(Request::Plain) => Some(false),
        Ok(Request::Checksum { is_transport: true, .. }) => Some(true),
        _ => None,
    }
}

/// Whether a guest takes frames that are to be cut.
fn accepts(offloads: Offloads, layout: &Layout, lead: &[u8]) -> bool {
    let feature = match (layout.transport, layout.version) {
        (Transport::Tcp, IpVersion::V4) => Offloads::GUEST_TSO4,
        (Transport::Tcp, IpVersion::V6) => Offloads::GUEST_TSO6,
        (Transport::Udp, IpVersion::V4) => Offloads::GUEST_USO4,
        (Transport::Udp, IpVersion::V6) => Offloads::GUEST_USO6,
    };
    offloads.has(feature) && (!layout.has_cwr(lead) || offloads.has(Offloads::GUEST_ECN))
}

/// What a frame asks for can't be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfit;

/// Frames that were completed or cut here, and wait for the guest's buffers.
#[derive(Debug, Default)]
pub struct Unpacked {
    bytes: Vec<u8>,
    frames: VecDeque<(Range<usize>, Header)>,
}

impl Unpacked {
    /// Does what a frame asks for. Frames made of it are no longer than `max_frame` bytes, if they
    /// are made by cutting. Nothing may be waiting.
    ///
    /// # Errors
    /// It can't be done; nothing waits then.
    pub fn fill(
        &mut self,
        request: &Request,
        frame: &mut [u8],
        offloads: Offloads,
        max_frame: usize,
    ) -> Result<(), Unfit> {
        self.clear();
        let done = match request {
            Request::Plain => self.push(frame, Header::PLAIN),
            Request::Checksum { place, .. } => {
                let done = checksum::complete(frame, place.start, place.offset);
                done.and_then(|()| self.push(frame, Header::PLAIN))
            }
            Request::Segment { layout, size } => {
                let cut = Cut::new(frame, layout, *size, max_frame).map_err(|_| Unfit)?;
                if cut.count() > MOST_SEGMENTS {
                    return Err(Unfit);
                }
                let stays_partial = offloads.has(Offloads::GUEST_CSUM);
                (0..cut.count())
                    .try_for_each(|index| self.segment(&cut, index, layout, frame, stays_partial))
            }
        };
        done.ok_or_else(|| {
            self.clear();
            Unfit
        })
    }

    fn push(&mut self, frame: &[u8], header: Header) -> Option<()> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        self.frames.push_back((start..self.bytes.len(), header));
        Some(())
    }

    fn segment(
        &mut self,
        cut: &Cut,
        index: usize,
        layout: &Layout,
        frame: &[u8],
        stays_partial: bool,
    ) -> Option<()> {
        let payload = frame.get(cut.payload(index))?;
        let start = self.bytes.len();
        self.bytes.resize(start + cut.header_len(), 0);
        let headers = self.bytes.get_mut(start..)?;
        cut.write_header(index, headers)?;
        let mut header = Header::partial(layout);
        if !stays_partial {
            cut.complete(headers, Sum::of(payload))?;
            header = Header::PLAIN;
        }
        self.bytes.extend_from_slice(payload);
        self.frames.push_back((start..self.bytes.len(), header));
        Some(())
    }

    /// The next frame.
    pub fn first(&self) -> Option<(&[u8], &Header)> {
        let (range, header) = self.frames.front()?;
        Some((self.bytes.get(range.clone())?, header))
    }

    /// Done with it.
    pub fn take(&mut self) {
        self.frames.pop_front();
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.frames.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::header::PartialChecksum;
    use crate::offload::packets::{Packet, assert_complete};

    /// A frame whose checksum is partial, and its headers.
    fn partial(packet: &Packet) -> (Vec<u8>, Layout) {
        let mut frame = packet.build();
        let layout = Layout::parse(&frame, frame.len()).unwrap();
        let len = frame.len() - layout.transport_at;
        let sum = layout.pseudo_header(&frame, len).fold();
        let at = layout.transport_at + layout.transport.checksum_offset();
        frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        (frame, layout)
    }

    /// What a guest with these offloads gets for a frame with this header.
    fn header(header: Header, frame: &[u8], offloads: Offloads) -> Option<Header> {
        let lead = &frame[..frame.len().min(LEAD_LEN)];
        let request = Request::parse(&header.emit(0), lead, frame.len(), Offloads::ALL).unwrap();
        as_it_is(&request, lead, offloads)
    }

    #[test]
    fn a_guest_gets_what_it_accepts_as_it_is() {
        let (frame, layout) = partial(&Packet::tcp(9000));
        let large = Header::merged(&layout, 1400, false);
        assert_eq!(header(large, &frame, Offloads::ALL), Some(large));
        let sum = Header::partial(&layout);
        assert_eq!(header(sum, &frame, Offloads::GUEST_CSUM), Some(sum));
        assert_eq!(header(Header::PLAIN, &frame, Offloads::NONE), Some(Header::PLAIN));
        assert_eq!(header(large, &frame, Offloads::GUEST_CSUM), None);
        assert_eq!(header(large, &frame, Offloads::NONE), None);
        assert_eq!(header(sum, &frame, Offloads::NONE), None);
    }

    #[test]
    fn checksums_of_datagrams_are_those_of_tcp_and_udp() {
        for packet in [Packet::tcp(100), Packet::udp(100)] {
            for (is_v6, tags) in [(false, vec![]), (true, vec![]), (false, vec![0x8100])] {
                let (frame, layout) = partial(&Packet { is_v6, tags, ..packet.clone() });
                let sum = Header::partial(&layout).emit(0);
                assert_eq!(as_in_datagram(&sum, &frame), Some(true));
                assert_eq!(as_in_datagram(&Header::PLAIN.emit(0), &frame), Some(false));
                assert_eq!(as_in_datagram(&sum, &frame[..40]), None);
                let elsewhere = PartialChecksum { start: layout.transport_at + 2, offset: 6 };
                let elsewhere = Header::partial_at(elsewhere).emit(0);
                assert_eq!(as_in_datagram(&elsewhere, &frame), None);
                let large = Header::merged(&layout, 50, false).emit(0);
                assert_eq!(as_in_datagram(&large, &frame), None);
                let mut fragment = frame;
                if !is_v6 {
                    fragment[layout.network_at + 6] |= 0x20;
                    assert_eq!(as_in_datagram(&sum, &fragment), None, "not found by a receiver");
                }
            }
        }
    }

    #[test]
    fn congestion_marks_need_their_feature() {
        let packet = Packet { tcp_flags: 0x90, ..Packet::tcp(5000) };
        let (frame, layout) = partial(&packet);
        let large = Header::merged(&layout, 1400, true);
        let without = Offloads::from_features(Offloads::ALL.bits() & !Offloads::GUEST_ECN.bits());
        assert_eq!(header(large, &frame, without), None);
        assert_eq!(header(large, &frame, Offloads::ALL), Some(large));
        // The mark is in the frame, whatever the header says of it.
        let silent = Header::merged(&layout, 1400, false);
        assert_eq!(header(silent, &frame, Offloads::ALL), Some(large));
    }

    #[test]
    fn what_a_guest_does_not_accept_is_completed_and_cut() {
        for is_v6 in [false, true] {
            let (mut frame, layout) = partial(&Packet { is_v6, ..Packet::tcp(9000) });
            let request = Request::Segment { layout, size: 1400 };
            let mut unpacked = Unpacked::default();
            unpacked.fill(&request, &mut frame, Offloads::NONE, 1514).unwrap();
            let mut payload = Vec::new();
            while let Some((segment, header)) = unpacked.first() {
                assert_eq!(*header, Header::PLAIN);
                assert!(segment.len() <= 1514);
                assert_complete(segment);
                payload.extend_from_slice(&segment[layout.payload_at..]);
                unpacked.take();
            }
            assert_eq!(payload, frame[layout.payload_at..]);

            unpacked.fill(&request, &mut frame, Offloads::GUEST_CSUM, 1000).unwrap();
            assert!(unpacked.len() > 9);
            let (segment, header) = unpacked.first().unwrap();
            assert_eq!((segment.len(), *header), (1000, Header::partial(&layout)));

            let place = PartialChecksum {
                start: layout.transport_at,
                offset: layout.transport.checksum_offset(),
            };
            let request = Request::Checksum { place, is_transport: true };
            unpacked.fill(&request, &mut frame, Offloads::NONE, 1514).unwrap();
            assert_complete(unpacked.first().unwrap().0);
            assert_eq!(unpacked.len(), 1);
        }
    }

    #[test]
    fn what_cannot_be_cut_leaves_nothing() {
        let packet = Packet { tcp_flags: 0x12, ..Packet::tcp(5000) };
        let (mut frame, layout) = partial(&packet);
        let mut unpacked = Unpacked::default();
        let request = Request::Segment { layout, size: 1400 };
        assert_eq!(unpacked.fill(&request, &mut frame, Offloads::NONE, 1514), Err(Unfit));
        assert!(unpacked.is_empty());
        // Nor what would be too much work.
        let (mut frame, layout) = partial(&Packet::tcp(5120));
        for (size, is_cut) in [(10, true), (9, false), (1, false)] {
            let request = Request::Segment { layout, size };
            let done = unpacked.fill(&request, &mut frame, Offloads::NONE, 1514);
            assert_eq!((done.is_ok(), unpacked.len()), (is_cut, if is_cut { 512 } else { 0 }));
        }
    }
}
