//! The virtio-net header, which precedes every frame in a ring (virtio 1.2, 5.1.6; little endian):
//!
//! ```text
//!    0       1         2         4          6            8             10
//! +-------+----------+---------+----------+------------+-------------+-------------+
//! | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset | num_buffers |
//! +-------+----------+---------+----------+------------+-------------+-------------+
//! ```
//!
//! The last field is missing for legacy drivers without mergeable buffers. A guest can write
//! anything here: [`Request::parse`] believes a field only after it has been compared with the
//! frame and with what was negotiated. `hdr_len` is a hint (5.1.6.2.2) and is never used.

use super::features::Offloads;
use super::gso::MAX_SEGMENTS;
use super::layout::{Layout, Transport};
use crate::packet::{IpVersion, Lengths, ethernet, field};

/// Length of the header, in bytes.
pub const LEN: usize = 12;
/// Length of the header of legacy drivers without mergeable buffers (5.1.6.1).
pub const LEGACY_LEN: usize = 10;

/// The checksum is partial.
const NEEDS_CSUM: u8 = 1;
/// The checksum was verified.
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Modifies the TCP types: CWR is set on the first segment only.
const GSO_ECN: u8 = 0x80;

/// Why a header is not believed. Each is a drop of its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFault {
    /// Fewer bytes than the header.
    Truncated,
    /// A partial checksum without the feature.
    ChecksumNotNegotiated,
    /// The checksum's place is not within the frame and behind its Ethernet header.
    ChecksumPlace,
    /// A GSO type that is not defined, or ECN without TCP.
    GsoType,
    /// A GSO type without its feature.
    GsoNotNegotiated,
    /// Segments whose checksum is not left to us (5.1.6.2.1: it must be).
    GsoWithoutChecksum,
    /// Segments of no bytes.
    GsoSize,
    /// The frame's headers are not what the GSO type says, the checksum is elsewhere, or the
    /// headers are longer than what was copied.
    GsoFrame,
}

/// Where a partial checksum is: sum from `start` to the end, store at `start + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte that is summed, from the frame's beginning.
    pub start: usize,
    /// The field, from `start`.
    pub offset: usize,
}

/// What a guest leaves to us for one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing.
    Plain,
    /// To complete a checksum, or to pass it on partial where that is allowed.
    Checksum {
        /// The place.
        place: PartialChecksum,
        /// Whether the place is that of the transport header: then the receiver finds it itself,
        /// which flag C relies on. It is not for example in a tunnel of the guest's own, whose
        /// inner checksum is partial: only we can complete it.
        is_transport: bool,
    },
    /// To cut the frame into segments.
    Segment {
        /// The frame's headers, which agree with the GSO type.
        layout: Layout,
        /// Payload of each segment, in bytes; not 0.
        size: u16,
    },
}

impl Request {
    /// Checks the header (`LEN` or `LEGACY_LEN` bytes) of a frame of `total_len` bytes that begins
    /// with `lead` (all of it, or at least [`super::LEAD_LEN`] bytes).
    ///
    /// Flags other than NEEDS_CSUM are ignored, as 5.1.6.2.2 demands of a device.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(
        header: &[u8],
        lead: &[u8],
        total_len: usize,
        offloads: Offloads,
    ) -> Result<Self, HeaderFault> {
        let fields = Header::parse(header).ok_or(HeaderFault::Truncated)?;
        if fields.gso_type == GSO_NONE {
            return Self::parse_whole(header, lead, total_len, offloads);
        }
        let place = fields.partial_checksum(total_len, offloads)?;
        let place = place.ok_or(HeaderFault::GsoWithoutChecksum);
        fields.segments(place, lead, total_len, offloads)
    }

    /// The same for a frame that is not to be cut; the headers in `lead` may even be incomplete:
    /// then we complete the checksum.
    ///
    /// # Errors
    /// The fault.
    #[inline]
    pub fn parse_whole(
        header: &[u8],
        lead: &[u8],
        total_len: usize,
        offloads: Offloads,
    ) -> Result<Self, HeaderFault> {
        let header = Header::parse(header).ok_or(HeaderFault::Truncated)?;
        Ok(match header.partial_checksum(total_len, offloads)? {
            Some(place) => {
                Self::Checksum { place, is_transport: place.is_transport(lead, total_len) }
            }
            None => Self::Plain,
        })
    }

    /// Checks the header of a frame that is not to be cut, without a look at the frame: whether the
    /// checksum is that of the transport header stays open. `None` if it is to be cut.
    ///
    /// # Errors
    /// The fault.
    pub fn parse_uncut(
        header: &[u8],
        total_len: usize,
        offloads: Offloads,
    ) -> Option<Result<Self, HeaderFault>> {
        let header = Header::parse(header).filter(|header| header.gso_type == GSO_NONE)?;
        let place = header.partial_checksum(total_len, offloads);
        let request = |place: Option<PartialChecksum>| {
            place.map_or(Self::Plain, |place| Self::Checksum { place, is_transport: false })
        };
        Some(place.map(request))
    }
}

impl PartialChecksum {
    /// Whether this is the transport checksum of a frame of `total_len` bytes.
    fn is_transport(self, lead: &[u8], total_len: usize) -> bool {
        Layout::read(lead, total_len, Lengths::Fields).is_ok_and(|layout| self.is_in(&layout))
    }

    /// Whether this is the transport checksum of a frame.
    fn is_in(self, layout: &Layout) -> bool {
        self.start == layout.transport_at && self.offset == layout.transport.checksum_offset()
    }
}

/// The fields of the header as they are. `num_buffers` is known only when a frame is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl Header {
    /// Nothing to say about the frame.
    pub const PLAIN: Self = Self {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// The frame's checksum was verified. Only for a guest with GUEST_CSUM.
    pub const VERIFIED: Self = Self { flags: DATA_VALID, ..Self::PLAIN };

    /// The frame's transport checksum is partial. Only for a guest with GUEST_CSUM.
    pub fn partial(layout: &Layout) -> Self {
        let (start, offset) = (layout.transport_at, layout.transport.checksum_offset());
        Self::partial_at(PartialChecksum { start, offset })
    }

    /// A checksum of the frame, of whatever header, is partial. Only for a guest with GUEST_CSUM.
    pub fn partial_at(place: PartialChecksum) -> Self {
        Self {
            flags: NEEDS_CSUM,
            csum_start: saturate(place.start),
            csum_offset: saturate(place.offset),
            ..Self::PLAIN
        }
    }

    /// A large frame made of segments with `size` bytes of payload; its checksum is partial. Only
    /// for a guest with the matching feature.
    pub fn merged(layout: &Layout, size: u16, has_cwr: bool) -> Self {
        let gso_type = match (layout.transport, layout.version) {
            (Transport::Tcp, IpVersion::V4) => GSO_TCPV4,
            (Transport::Tcp, IpVersion::V6) => GSO_TCPV6,
            (Transport::Udp, _) => GSO_UDP_L4,
        };
        Self {
            gso_type: if has_cwr { gso_type | GSO_ECN } else { gso_type },
            hdr_len: saturate(layout.payload_at),
            gso_size: size,
            ..Self::partial(layout)
        }
    }

    /// The header's bytes for a frame that takes so many buffers. Legacy drivers without mergeable
    /// buffers get the first [`LEGACY_LEN`].
    pub fn emit(&self, num_buffers: u16) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let words = [
            u16::from_le_bytes([self.flags, self.gso_type]),
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            num_buffers,
        ];
        for (field, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *field = word.to_le_bytes();
        }
        bytes
    }

    #[inline]
    fn parse(bytes: &[u8]) -> Option<Self> {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] =
            field::read::<LEGACY_LEN>(bytes, 0)?;
        Some(Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        })
    }

    #[inline]
    fn partial_checksum(
        &self,
        total_len: usize,
        offloads: Offloads,
    ) -> Result<Option<PartialChecksum>, HeaderFault> {
        if self.flags & NEEDS_CSUM == 0 {
            return Ok(None);
        }
        if !offloads.has(Offloads::CSUM) {
            return Err(HeaderFault::ChecksumNotNegotiated);
        }
        let (start, offset) = (usize::from(self.csum_start), usize::from(self.csum_offset));
        // The Ethernet header's source address is not the guest's to write.
        if start < ethernet::HEADER_LEN || start + offset + 2 > total_len {
            return Err(HeaderFault::ChecksumPlace);
        }
        Ok(Some(PartialChecksum { start, offset }))
    }

    fn segments(
        &self,
        place: Result<PartialChecksum, HeaderFault>,
        lead: &[u8],
        total_len: usize,
        offloads: Offloads,
    ) -> Result<Request, HeaderFault> {
        let (version, transport, feature) = match self.gso_type & !GSO_ECN {
            GSO_TCPV4 => (Some(IpVersion::V4), Transport::Tcp, Offloads::HOST_TSO4),
            GSO_TCPV6 => (Some(IpVersion::V6), Transport::Tcp, Offloads::HOST_TSO6),
            GSO_UDP_L4 => (None, Transport::Udp, Offloads::HOST_USO),
            _ => return Err(HeaderFault::GsoType),
        };
        let has_ecn = self.gso_type & GSO_ECN != 0;
        if has_ecn && transport != Transport::Tcp {
            return Err(HeaderFault::GsoType);
        }
        if !offloads.has(feature) || has_ecn && !offloads.has(Offloads::HOST_ECN) {
            return Err(HeaderFault::GsoNotNegotiated);
        }
        let place = place?;
        if self.gso_size == 0 {
            return Err(HeaderFault::GsoSize);
        }
        let layout = Layout::parse_gso(lead, total_len).map_err(|_| HeaderFault::GsoFrame)?;
        let agrees = version.is_none_or(|version| version == layout.version)
            && layout.transport == transport
            && place.is_in(&layout);
        if !agrees {
            return Err(HeaderFault::GsoFrame);
        }
        Ok(Request::Segment { layout, size: self.gso_size })
    }
}

/// Where a header says that a checksum is to be stored, in bytes from the frame's beginning, if it
/// leaves one to us; compared with nothing yet.
pub fn checksum_at(header: &[u8]) -> Option<usize> {
    let header = Header::parse(header).filter(|header| header.flags & NEEDS_CSUM != 0)?;
    Some(usize::from(header.csum_start) + usize::from(header.csum_offset))
}

/// Into how many frames a header says that a frame of `len` bytes is to be cut, at most; 1 if it is not
/// to be cut. Compared with nothing yet.
pub fn segments_at_most(header: &[u8], len: usize) -> usize {
    match Header::parse(header) {
        Some(Header { gso_type, gso_size, .. }) if gso_type != GSO_NONE => {
            len.div_ceil(usize::from(gso_size).max(1)).clamp(1, MAX_SEGMENTS)
        }
        _ => 1,
    }
}

/// Offsets are those of a header: of 16 bits, or below [`super::LEAD_LEN`].
fn saturate(offset: usize) -> u16 {
    u16::try_from(offset).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
