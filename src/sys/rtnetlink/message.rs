//! Messages of rtnetlink, as bytes: the host's byte order, everything aligned to four bytes.

#![forbid(unsafe_code)]

/// Kinds of messages (netlink(7), rtnetlink(7)).
pub(super) const ERROR: u16 = libc::NLMSG_ERROR as u16;
pub(super) const DONE: u16 = libc::NLMSG_DONE as u16;
pub(super) const NEW_LINK: u16 = libc::RTM_NEWLINK;
pub(super) const NEW_ADDRESS: u16 = libc::RTM_NEWADDR;
pub(super) const NEW_ROUTE: u16 = libc::RTM_NEWROUTE;
const DEL_LINK: u16 = libc::RTM_DELLINK;

const HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// Length of `struct ifinfomsg`, and where its index is.
pub(super) const LINK_LEN: usize = 16;
const LINK_INDEX: usize = 4;
/// `RTEXT_FILTER_SKIP_STATS` of linux/rtnetlink.h.
const SKIP_STATS: u32 = 1 << 3;

/// Asks for all interfaces, without their counters.
pub(super) fn links(sequence: u32) -> Vec<u8> {
    let mut body = vec![0; LINK_LEN];
    body.extend(8_u16.to_ne_bytes());
    body.extend(libc::IFLA_EXT_MASK.to_ne_bytes());
    body.extend(SKIP_STATS.to_ne_bytes());
    request(libc::RTM_GETLINK, sequence, &body)
}

/// Asks for all addresses of both families.
pub(super) fn addresses(sequence: u32) -> Vec<u8> {
    request(libc::RTM_GETADDR, sequence, &[0; 8])
}

/// Asks for the IPv4 routes of the main table that lead to other hosts.
pub(super) fn routes_v4(sequence: u32) -> Vec<u8> {
    routes(libc::AF_INET, sequence)
}

/// The same for IPv6.
pub(super) fn routes_v6(sequence: u32) -> Vec<u8> {
    routes(libc::AF_INET6, sequence)
}

/// `struct rtmsg`. Only with NETLINK_GET_STRICT_CHK does the kernel heed table and type; without it
/// lists all.
fn routes(family: libc::c_int, sequence: u32) -> Vec<u8> {
    let family = u8::try_from(family).unwrap_or(0);
    let body = [family, 0, 0, 0, libc::RT_TABLE_MAIN, 0, 0, libc::RTN_UNICAST, 0, 0, 0, 0];
    request(libc::RTM_GETROUTE, sequence, &body)
}

fn request(kind: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or(0);
    let len = u32::try_from(HEADER_LEN + body.len()).unwrap_or(0);
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The port number, which the kernel knows.
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

/// A message of those that come together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub(super) kind: u16,
    flags: u16,
    pub(super) sequence: u32,
    pub(super) body: &'a [u8],
}

impl Part<'_> {
    /// The list changed while it was made (`NLM_F_DUMP_INTR`).
    pub(super) fn is_interrupted(&self) -> bool {
        self.flags & u16::try_from(libc::NLM_F_DUMP_INTR).unwrap_or(0) != 0
    }

    /// What an error says, or the end of a list: 0 if all is well.
    pub(super) fn error(&self) -> i32 {
        u32_at(self.body, 0).unwrap_or(0).cast_signed().wrapping_neg()
    }

    /// Whether it says that this interface is no more. (A port that leaves its bridge is deleted,
    /// too, but as one of family AF_BRIDGE.)
    pub(super) fn deletes(&self, index: u32) -> bool {
        self.kind == DEL_LINK
            && self.body.first() == Some(&0)
            && u32_at(self.body, LINK_INDEX) == Some(index)
    }

    /// The attributes behind a fixed part of this length.
    pub(super) fn attributes(&self, fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
        attributes(self.body.get(fixed..).unwrap_or_default())
    }
}

/// The messages in received bytes.
pub(super) fn parts(mut bytes: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let body = bytes.get(HEADER_LEN..len)?;
        let (kind, flags) = (u16_at(bytes, 4)?, u16_at(bytes, 6)?);
        let sequence = u32_at(bytes, 8)?;
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        Some(Part { kind, flags, sequence, body })
    })
}

/// Types and values of attributes.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        // The highest bits are flags.
        let kind = u16_at(bytes, 2)? & 0x3fff;
        let value = bytes.get(ATTRIBUTE_HEADER_LEN..len)?;
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
        Some((kind, value))
    })
}

const fn aligned(len: usize) -> usize {
    (len + 3) & !3
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
