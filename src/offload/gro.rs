//! Coalescing: consecutive segments of one flow become one large frame for the guest.
//!
//! The rules are those of Linux's GRO, so that cutting the large frame again would give the
//! segments back: all headers are equal but for what a sender's segmentation changes. That makes
//! the check cheap. After the first segment of a run, the headers of the next one are *predicted*,
//! and a segment belongs to the run if its headers are exactly that.
//!
//! ```text
//!  segment 1   | headers      | payload 1 |        headers with lengths of the whole,
//!  segment 2   | as predicted | payload 2 |  ==>   partial checksum, payload 1, payload 2, ...
//!  ...
//! ```
//!
//! Order is kept: only neighbours merge, a frame of another kind ends a run. Of segments whose checksum is
//! partial only the headers are looked at, so their payload may already be where it is to go
//! ([`Received::beginning`]).

use super::LEAD_LEN;
use super::checksum::Sum;
use super::features::Offloads;
use super::header::Header;
use super::layout::{Layout, Transport};
use crate::packet::{IpVersion, field};

/// Longest IP packet that is made, in bytes.
const MAX_PACKET_LEN: usize = 65_535;
/// Most datagrams that Linux takes as one run (UDP_MAX_SEGMENTS, before it became 128).
const MAX_DATAGRAMS: usize = 64;

const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// IPv4's "don't fragment", in the first octet of flags and offset.
const DF: u8 = 0x40;

/// A frame that was received and accepted.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    bytes: &'a [u8],
    len: usize,
    is_partial: bool,
}

impl<'a> Received<'a> {
    /// A frame, and whether its transport checksum is partial (flag C).
    pub const fn whole(bytes: &'a [u8], is_partial: bool) -> Self {
        Self { bytes, len: bytes.len(), is_partial }
    }

    /// The beginning, with all headers, of a frame of `len` bytes whose transport checksum is partial: of
    /// such, nobody looks at the payload.
    pub const fn beginning(bytes: &'a [u8], len: usize) -> Self {
        Self { bytes, len, is_partial: true }
    }

    /// The frame, or its beginning.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether its transport checksum is partial.
    pub const fn is_partial(&self) -> bool {
        self.is_partial
    }
}

/// The frame says that its transport checksum is partial, but has no transport header that
/// offloads understand: it can't be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialFault;

/// What is to be delivered for the first so many frames.
#[derive(Clone, Copy, Debug)]
pub struct Merged<'m> {
    /// The virtio-net header.
    pub header: Header,
    /// The beginning of the frame: replaces the first `head.len()` bytes of the first frame.
    /// Behind it comes what follows as many bytes in each of the frames.
    pub head: &'m [u8],
    /// How many frames it is made of; at least 1.
    pub frames: usize,
}

impl Merged<'_> {
    /// The part of one of the frames that is to be copied.
    pub fn payload_of<'a>(&self, frame: &Received<'a>) -> &'a [u8] {
        frame.bytes.get(self.head.len()..).unwrap_or_default()
    }
}

/// Coalesces for one guest. Holds only headers under construction.
#[derive(Clone, Debug)]
pub struct Merger {
    offloads: Offloads,
    max_pieces: usize,
    max_len: usize,
    /// Headers of the frame to be delivered.
    head: [u8; LEAD_LEN],
    /// Headers that the next segment of the run should have.
    expected: [u8; LEAD_LEN],
}

/// A run of segments, from its first one.
#[derive(Clone, Copy, Debug)]
struct Run {
    layout: Layout,
    /// Payload of the first segment, in bytes.
    size: u16,
    /// Payload of all, in bytes.
    total: usize,
    /// No more can follow: a short segment, or PSH.
    has_ended: bool,
    has_cwr: bool,
    sequence: u32,
    identification: Identification,
    /// Sum of the IPv4 header without identification, length and checksum.
    ip_sum: Sum,
}

/// IPv4's identification of the last segment, and what it does from segment to segment.
#[derive(Clone, Copy, Debug)]
struct Identification {
    last: u16,
    /// `None` until a second segment shows it.
    step: Option<u16>,
    may_be_constant: bool,
}

impl Merger {
    /// For a guest with these offloads. A merged frame is made of at most `max_pieces` frames and
    /// has at most `max_len` bytes (what the guest's buffers take).
    pub const fn new(offloads: Offloads, max_pieces: usize, max_len: usize) -> Self {
        let (head, expected) = ([0; LEAD_LEN], [0; LEAD_LEN]);
        Self { offloads, max_pieces, max_len, head, expected }
    }

    /// Looks at the frames that wait, in order (`frame(0)` is the first), and says what is to be
    /// delivered next; `None` when there is none. Nothing is remembered: if the guest has no
    /// buffers, ask again later.
    ///
    /// # Errors
    /// The first frame is to be dropped, and only that.
    pub fn merge<'a>(
        &mut self,
        frame: impl Fn(usize) -> Option<Received<'a>>,
    ) -> Option<Result<Merged<'_>, PartialFault>> {
        let first = frame(0)?;
        if !first.is_partial && !self.offloads.has(Offloads::GUEST_CSUM) {
            return Some(Ok(unchanged(Header::PLAIN)));
        }
        let layout = match Layout::parse(first.bytes, first.len) {
            Ok(layout) if layout.payload_at <= LEAD_LEN => layout,
            _ if first.is_partial => return Some(Err(PartialFault)),
            _ => return Some(Ok(unchanged(Header::PLAIN))),
        };
        if !self.offloads.has(Offloads::GUEST_CSUM) {
            return Some(self.completed(&layout, first.bytes).ok_or(PartialFault));
        }
        let mut header = if first.is_partial { Header::partial(&layout) } else { Header::PLAIN };
        let Some(mut run) = self.begin(&layout, &first) else {
            return Some(Ok(unchanged(header)));
        };
        let limit = match layout.transport {
            Transport::Tcp => self.max_pieces,
            Transport::Udp => self.max_pieces.min(MAX_DATAGRAMS),
        };
        let mut frames = 1;
        while frames < limit
            && let Some(next) = frame(frames)
            && self.predicts(&mut run, &next)
        {
            // A sum over the payload costs more than all else: only where it can be of use.
            if frames == 1 && !first.is_partial {
                if !is_valid(&layout, first.bytes) {
                    break;
                }
                header = Header::VERIFIED;
            }
            if !next.is_partial && !is_valid(&layout.with_end(next.bytes.len()), next.bytes) {
                break;
            }
            self.append(&mut run, &next);
            frames += 1;
        }
        Some(self.finish(&run, frames, header).ok_or(PartialFault))
    }

    /// Whether a frame can be the first of a run that goes on: the length of its headers then, in bytes.
    /// What it says of a frame is what [`Merger::merge`] does with it.
    pub fn begins_run(&mut self, frame: &Received<'_>) -> Option<usize> {
        let layout = Layout::parse(frame.bytes, frame.len).ok()?;
        if !self.offloads.has(Offloads::GUEST_CSUM) || layout.payload_at > LEAD_LEN {
            return None;
        }
        let run = self.begin(&layout, frame)?;
        (!run.has_ended).then_some(layout.payload_at)
    }

    /// For a guest that knows nothing of partial checksums.
    fn completed(&mut self, layout: &Layout, frame: &[u8]) -> Option<Merged<'_>> {
        let covered = frame.get(layout.transport_at..layout.end)?;
        let checksum = Sum::of(covered).transport();
        let head = self.head.get_mut(..layout.payload_at)?;
        head.copy_from_slice(frame.get(..layout.payload_at)?);
        field::put_u16(head, layout.checksum_at(), checksum)?;
        Some(Merged { header: Header::PLAIN, head, frames: 1 })
    }

    /// Begins a run if the frame can be the first of one.
    fn begin(&mut self, layout: &Layout, frame: &Received<'_>) -> Option<Run> {
        let feature = match (layout.transport, layout.version) {
            (Transport::Tcp, IpVersion::V4) => Offloads::GUEST_TSO4,
            (Transport::Tcp, IpVersion::V6) => Offloads::GUEST_TSO6,
            (Transport::Udp, IpVersion::V4) => Offloads::GUEST_USO4,
            (Transport::Udp, IpVersion::V6) => Offloads::GUEST_USO6,
        };
        let size = u16::try_from(layout.payload_len()).ok().filter(|size| *size > 0)?;
        // Padding would end up in the middle.
        let is_whole = layout.end == frame.len && frame.len <= self.max_len;
        if !self.offloads.has(feature) || layout.has_ip_options || !is_whole {
            return None;
        }
        let headers = frame.bytes.get(..layout.payload_at)?;
        let mut run = Run {
            layout: *layout,
            size,
            total: usize::from(size),
            has_ended: false,
            has_cwr: false,
            sequence: 0,
            identification: Identification { last: 0, step: None, may_be_constant: false },
            ip_sum: Sum::ZERO,
        };
        run.read_tcp(headers, self.offloads)?;
        run.read_ipv4(headers)?;
        self.head.get_mut(..headers.len())?.copy_from_slice(headers);
        let expected = self.expected.get_mut(..headers.len())?;
        expected.copy_from_slice(headers);
        if layout.transport == Transport::Tcp {
            *expected.get_mut(layout.transport_at + 13)? &= !(PSH | CWR);
        }
        Some(run)
    }

    /// Whether a frame has the headers that the run predicts.
    fn predicts(&mut self, run: &mut Run, frame: &Received<'_>) -> bool {
        !run.has_ended && self.predict(run, frame).is_some_and(|same| same)
    }

    /// Makes the headers that the frame would have as the next segment, and compares.
    fn predict(&mut self, run: &mut Run, frame: &Received<'_>) -> Option<bool> {
        let Layout { network_at, transport_at, payload_at, transport, version, .. } = run.layout;
        let payload = frame.len.checked_sub(payload_at)?;
        let len = payload_at + run.total + payload;
        let is_too_long = len - network_at > MAX_PACKET_LEN || len > self.max_len;
        if payload == 0 || payload > usize::from(run.size) || is_too_long {
            return None;
        }
        let expected = self.expected.get_mut(..payload_at)?;
        let headers = frame.bytes.get(..payload_at)?;
        if payload != usize::from(run.size) {
            write_lengths(expected, &run.layout, payload)?;
        }
        if version == IpVersion::V4 {
            let found = field::u16_at(headers, network_at + 4)?;
            let checksum = run.ipv4_checksum(found, payload)?;
            run.identification.accepts(found).then_some(())?;
            field::put_u16(expected, network_at + 4, found)?;
            field::put_u16(expected, network_at + 10, checksum)?;
        }
        if transport == Transport::Tcp {
            let offset = u32::try_from(run.total).ok()?;
            let sequence = run.sequence.wrapping_add(offset);
            field::write(expected, transport_at + 4, sequence.to_be_bytes())?;
            let flags = expected.get_mut(transport_at + 13)?;
            *flags = *flags & !PSH | *headers.get(transport_at + 13)? & PSH;
        }
        let checksum: [u8; 2] = field::read(headers, run.layout.checksum_at())?;
        field::write(expected, run.layout.checksum_at(), checksum)?;
        Some(expected == headers)
    }

    /// Takes a predicted frame into the run.
    fn append(&mut self, run: &mut Run, frame: &Received<'_>) {
        let payload = frame.len - run.layout.payload_at;
        run.total += payload;
        run.has_ended = payload < usize::from(run.size);
        if run.layout.version == IpVersion::V4
            && let Some(found) = field::u16_at(frame.bytes, run.layout.network_at + 4)
        {
            run.identification.take(found);
        }
        if run.layout.transport == Transport::Tcp
            && let Some(flags) = field::u8_at(frame.bytes, run.layout.transport_at + 13)
            && flags & PSH != 0
            && let Some(head) = self.head.get_mut(run.layout.transport_at + 13)
        {
            *head |= PSH;
            run.has_ended = true;
        }
    }

    /// The large frame's headers, or the only frame as it was.
    fn finish(&mut self, run: &Run, frames: usize, single: Header) -> Option<Merged<'_>> {
        if frames == 1 {
            return Some(unchanged(single));
        }
        let Layout { network_at, transport_at, payload_at, .. } = run.layout;
        let head = self.head.get_mut(..payload_at)?;
        write_lengths(head, &run.layout, run.total)?;
        if run.layout.version == IpVersion::V4 {
            let first = field::u16_at(head, network_at + 4)?;
            field::put_u16(head, network_at + 10, run.ipv4_checksum(first, run.total)?)?;
        }
        let len = payload_at - transport_at + run.total;
        let partial = run.layout.pseudo_header(head, len).fold();
        field::put_u16(head, run.layout.checksum_at(), partial)?;
        let header = Header::merged(&run.layout, run.size, run.has_cwr);
        Some(Merged { header, head, frames })
    }
}

impl Run {
    /// Sequence and flags; `None` if the flags forbid merging.
    fn read_tcp(&mut self, headers: &[u8], offloads: Offloads) -> Option<()> {
        let at = self.layout.transport_at;
        if self.layout.transport != Transport::Tcp {
            return Some(());
        }
        let [reserved, flags] = field::read(headers, at + 12)?;
        self.sequence = field::u32_at(headers, at + 4)?;
        self.has_cwr = flags & CWR != 0;
        self.has_ended = flags & PSH != 0;
        let is_plain = flags & !(PSH | ECE | CWR) == ACK && reserved & 0xf == 0;
        (is_plain && (!self.has_cwr || offloads.has(Offloads::GUEST_ECN))).then_some(())
    }

    /// Identification and sum of an IPv4 header; `None` if its checksum is wrong, which merging
    /// would hide, or reserved flags are set.
    fn read_ipv4(&mut self, headers: &[u8]) -> Option<()> {
        let Layout { version, network_at, transport_at, .. } = self.layout;
        if version != IpVersion::V4 {
            return Some(());
        }
        let header: [u8; 20] = headers.get(network_at..transport_at)?.try_into().ok()?;
        let [a, b, _, _, i0, i1, flags, f, ttl, protocol, _, _, addresses @ ..] = header;
        let mut sum = Sum::of(&[a, b, flags, f, ttl, protocol]);
        sum.add(&addresses);
        self.ip_sum = sum;
        self.identification = Identification {
            last: u16::from_be_bytes([i0, i1]),
            step: None,
            may_be_constant: flags & DF != 0,
        };
        (Sum::of(&header).is_valid() && flags & !DF == 0).then_some(())
    }

    /// The header's checksum with this identification and so many bytes of payload.
    fn ipv4_checksum(&self, identification: u16, payload: usize) -> Option<u16> {
        let len = self.layout.payload_at - self.layout.network_at + payload;
        let mut sum = self.ip_sum;
        sum.add_u16(identification);
        sum.add_u16(u16::try_from(len).ok()?);
        Some(sum.inverse())
    }
}

impl Identification {
    /// Senders count up; where fragmentation is forbidden they may also stay (RFC 6864, 4.1: the
    /// field then has no meaning).
    fn accepts(&self, found: u16) -> bool {
        match (found.wrapping_sub(self.last), self.step) {
            (step, Some(expected)) => step == expected,
            (0, None) => self.may_be_constant,
            (step, None) => step == 1,
        }
    }

    fn take(&mut self, found: u16) {
        self.step = Some(found.wrapping_sub(self.last));
        self.last = found;
    }
}

const fn unchanged(header: Header) -> Merged<'static> {
    Merged { header, head: &[], frames: 1 }
}

/// Whether a frame's complete transport checksum is there and right.
fn is_valid(layout: &Layout, frame: &[u8]) -> bool {
    let is_absent =
        layout.transport == Transport::Udp && field::u16_at(frame, layout.checksum_at()) == Some(0);
    let Some(covered) = frame.get(layout.transport_at..layout.end) else { return false };
    let mut sum = layout.pseudo_header(frame, covered.len());
    sum.add(covered);
    sum.is_valid() && !is_absent
}

/// Writes the length fields for so many bytes of payload.
fn write_lengths(headers: &mut [u8], layout: &Layout, payload: usize) -> Option<()> {
    let len = u16::try_from(layout.payload_at - layout.transport_at + payload).ok()?;
    match layout.version {
        IpVersion::V4 => {
            let header_len = u16::try_from(layout.transport_at - layout.network_at).ok()?;
            field::put_u16(headers, layout.network_at + 2, len.checked_add(header_len)?)?;
        }
        IpVersion::V6 => field::put_u16(headers, layout.network_at + 4, len)?,
    }
    match layout.transport {
        Transport::Udp => field::put_u16(headers, layout.transport_at + 4, len),
        Transport::Tcp => Some(()),
    }
}

#[cfg(test)]
mod tests;
