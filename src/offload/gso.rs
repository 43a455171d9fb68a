//! Segmentation: one large frame becomes frames that fit the path.
//!
//! Every segment is a whole frame with headers of its own, all of one length, so that the datagrams
//! of one UDP_SEGMENT call have one size (only the last may be shorter). [`Cut`] holds the headers
//! of a segment in the middle; writing those of a particular one is a copy and a few fields.
//! Checksums stay partial until [`Cut::complete`].

use std::ops::Range;

use super::LEAD_LEN;
use super::checksum::Sum;
use super::layout::{Layout, Transport};
use crate::packet::{IpVersion, field};

/// Most segments of a frame: the longest of 65,535 bytes in the smallest that TCP can be made to
/// use (Linux: an MSS of 48, options and all).
pub const MAX_SEGMENTS: usize = 8192;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;
/// Flags that mean something for one segment only, and can't be spread over several.
const INDIVISIBLE: u8 = SYN | RST | URG;
/// Flags that only the first or last segment carries.
const AT_ENDS: u8 = FIN | PSH | CWR;

/// Why a frame can't be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutFault {
    /// Headers are not wholly in what was copied, or inconsistent with it.
    Headers,
    /// The path has no room for the headers and a byte, or UDP datagrams (which must stay whole)
    /// don't fit it.
    Path,
    /// TCP with SYN, RST or URG, or signed (RFC 2385, RFC 5925); or plain UDP.
    Indivisible,
    /// More than [`MAX_SEGMENTS`].
    TooMany,
}

/// How a frame is cut. See the module's description.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The headers of a segment in the middle; what differs between segments is 0.
    template: [u8; LEAD_LEN],
    layout: Layout,
    /// Payload of each segment but the last, in bytes.
    size: usize,
    count: usize,
    sequence: u32,
    tcp_flags: u8,
    identification: u16,
    /// Sum of an IPv4 header without identification, length and checksum.
    ip_sum: Sum,
    /// Length field and partial checksum that differ in the last segment.
    last: Lengths,
    /// The same for all others; the template has it already.
    full: Lengths,
}

/// What depends on the length of a segment.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    /// IPv4: total length; IPv6: payload length.
    network: u16,
    /// Transport header and payload.
    transport: u16,
    /// Sum of the pseudo-header.
    partial: u16,
}

impl Cut {
    /// Cuts a frame as its virtio-net header asks: payloads of `size` bytes (not 0), or less where
    /// a segment of TCP would be longer than `max_frame` bytes, the longest frame that fits the
    /// path. `lead` holds at least the frame's headers.
    ///
    /// # Errors
    /// The fault. With [`CutFault::Path`] for UDP, a larger `max_frame` gives whole datagrams that
    /// are to be treated like any frame that is too long.
    pub fn new(
        lead: &[u8],
        layout: &Layout,
        size: u16,
        max_frame: usize,
    ) -> Result<Self, CutFault> {
        let room = max_frame.checked_sub(layout.payload_at).filter(|room| *room > 0);
        let room = room.ok_or(CutFault::Path)?;
        let size = usize::from(size.max(1));
        match layout.transport {
            Transport::Udp if size.min(layout.payload_len()) > room => Err(CutFault::Path),
            Transport::Udp => Self::prepare(lead, layout, size),
            Transport::Tcp => Self::prepare(lead, layout, size.min(room)),
        }
    }

    /// Cuts a frame that the guest meant to be one TCP segment, and that is too long for the path.
    ///
    /// # Errors
    /// The fault; [`CutFault::Indivisible`] where only the guest could have done it.
    pub fn plain(lead: &[u8], layout: &Layout, max_frame: usize) -> Result<Self, CutFault> {
        let options = lead.get(layout.transport_at + 20..layout.payload_at).unwrap_or_default();
        if layout.transport != Transport::Tcp || is_signed(options) {
            return Err(CutFault::Indivisible);
        }
        Self::new(lead, layout, u16::MAX, max_frame)
    }

    fn prepare(lead: &[u8], layout: &Layout, size: usize) -> Result<Self, CutFault> {
        let payload_len = layout.payload_len();
        let size = size.min(payload_len.max(1));
        let count = payload_len.div_ceil(size).max(1);
        if count > MAX_SEGMENTS {
            return Err(CutFault::TooMany);
        }
        let last_len = payload_len - (count - 1) * size;
        let full_len = size.min(payload_len);
        let mut cut = Self {
            template: [0; LEAD_LEN],
            layout: *layout,
            size,
            count,
            sequence: 0,
            tcp_flags: 0,
            identification: 0,
            ip_sum: Sum::ZERO,
            last: Lengths::of(lead, layout, last_len).ok_or(CutFault::Headers)?,
            full: Lengths::of(lead, layout, full_len).ok_or(CutFault::Headers)?,
        };
        cut.fill_template(lead).ok_or(CutFault::Headers)?;
        if cut.tcp_flags & INDIVISIBLE != 0 && count > 1 {
            return Err(CutFault::Indivisible);
        }
        Ok(cut)
    }

    fn fill_template(&mut self, lead: &[u8]) -> Option<()> {
        let Layout { network_at, transport_at, payload_at, .. } = self.layout;
        let template = self.template.get_mut(..payload_at)?;
        template.copy_from_slice(lead.get(..payload_at)?);
        if self.layout.transport == Transport::Tcp {
            self.sequence = field::u32_at(template, transport_at + 4)?;
            let flags = template.get_mut(transport_at + 13)?;
            self.tcp_flags = *flags;
            *flags &= !AT_ENDS;
        }
        if self.layout.version == IpVersion::V4 {
            self.identification = field::u16_at(template, network_at + 4)?;
            field::put_u16(template, network_at + 2, 0)?;
            field::put_u16(template, network_at + 4, 0)?;
            field::put_u16(template, network_at + 10, 0)?;
            self.ip_sum = Sum::of(template.get(network_at..transport_at)?);
        }
        self.full.write(&self.layout, template)
    }

    /// Number of segments; at least 1.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Length of the headers of each segment, in bytes.
    pub const fn header_len(&self) -> usize {
        self.layout.payload_at
    }

    /// Payload of each segment but the last, in bytes.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Where a segment's payload is in the large frame; empty beyond the last segment.
    pub fn payload(&self, index: usize) -> Range<usize> {
        let Layout { payload_at, end, .. } = self.layout;
        let offset = |index: usize| index.saturating_mul(self.size).saturating_add(payload_at);
        offset(index).min(end)..offset(index.saturating_add(1)).min(end)
    }

    /// Writes the headers of a segment to the beginning of `out`, with a partial checksum. Returns
    /// their length, in bytes; `None` for no such segment or too little room.
    pub fn write_header(&self, index: usize, out: &mut [u8]) -> Option<usize> {
        let Layout { network_at, transport_at, payload_at, .. } = self.layout;
        if index >= self.count {
            return None;
        }
        let is_last = index + 1 == self.count;
        let out = out.get_mut(..payload_at)?;
        out.copy_from_slice(self.template.get(..payload_at)?);
        let mut lengths = &self.full;
        if is_last {
            lengths = &self.last;
            lengths.write(&self.layout, out)?;
        }
        let [.., index0, index1] = index.to_be_bytes();
        if self.layout.version == IpVersion::V4 {
            let identification =
                self.identification.wrapping_add(u16::from_be_bytes([index0, index1]));
            let mut sum = self.ip_sum;
            sum.add_u16(identification);
            sum.add_u16(lengths.network);
            field::put_u16(out, network_at + 4, identification)?;
            field::put_u16(out, network_at + 10, sum.inverse())?;
        }
        if self.layout.transport == Transport::Tcp {
            // Below 2^16 segments of a frame below 2^16 bytes: the offset fits.
            let offset = u32::try_from(index * self.size).ok()?;
            let sequence = self.sequence.wrapping_add(offset);
            field::write(out, transport_at + 4, sequence.to_be_bytes())?;
            if index == 0 || is_last {
                let first = if index == 0 { CWR } else { 0 };
                let last = if is_last { FIN | PSH } else { 0 };
                *out.get_mut(transport_at + 13)? |= self.tcp_flags & (first | last);
            }
        }
        Some(payload_at)
    }

    /// Completes the checksum in a segment's headers, given the sum of its payload.
    pub fn complete(&self, headers: &mut [u8], payload: Sum) -> Option<()> {
        let transport = headers.get(self.layout.transport_at..self.layout.payload_at)?;
        let mut sum = Sum::of(transport);
        sum.append(payload);
        field::put_u16(headers, self.layout.checksum_at(), sum.transport())
    }
}

impl Lengths {
    fn of(lead: &[u8], layout: &Layout, payload_len: usize) -> Option<Self> {
        let transport = layout.payload_at - layout.transport_at + payload_len;
        let network = match layout.version {
            IpVersion::V4 => layout.transport_at - layout.network_at + transport,
            IpVersion::V6 => layout.transport_at - layout.network_at - 40 + transport,
        };
        Some(Self {
            network: u16::try_from(network).ok()?,
            transport: u16::try_from(transport).ok()?,
            partial: layout.pseudo_header(lead, transport).fold(),
        })
    }

    fn write(&self, layout: &Layout, headers: &mut [u8]) -> Option<()> {
        let network = match layout.version {
            IpVersion::V4 => layout.network_at + 2,
            IpVersion::V6 => layout.network_at + 4,
        };
        field::put_u16(headers, network, self.network)?;
        if layout.transport == Transport::Udp {
            field::put_u16(headers, layout.transport_at + 4, self.transport)?;
        }
        field::put_u16(headers, layout.checksum_at(), self.partial)
    }
}

/// Whether TCP options sign the segment as a whole (MD5: kind 19, RFC 2385; AO: 29, RFC 5925).
fn is_signed(mut options: &[u8]) -> bool {
    loop {
        options = match options {
            [19 | 29, ..] => return true,
            [1, rest @ ..] => rest,
            [kind, len, ..] if *kind != 0 && *len >= 2 => {
                options.get(usize::from(*len)..).unwrap_or_default()
            }
            _ => return false,
        };
    }
}

#[cfg(test)]
mod tests;
