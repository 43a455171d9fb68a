//! Extension headers of IPv6 (RFC 8200, 4), and the authentication header, which IPv4 has as well.
//!
//! ```text
//!  0             1            2           3
//!  +-------------+------------+-----------+---------------+----
//!  | next header | length     | routing: type, segments left | ..     most: units of 8 bytes beyond the first 8
//!  +-------------+------------+------------------------------+----    authentication: of 4 bytes beyond 8
//!  | next header | reserved   | fragment: offset, 0, 0, more  | ..    always 8 bytes
//!  +-------------+------------+------------------------------+----
//! ```

use super::ip::{Fragment, IpVersion};
use super::{Reason, Stop, field};

/// Most extension headers that are read; Linux sends no more than three.
pub const MAX_EXTENSIONS: usize = 8;

const FRAGMENT_LEN: usize = 8;
/// Shortest header of any kind, in bytes.
const MIN_LEN: usize = 8;
/// Shortest authentication header (RFC 4302, 2), in bytes.
const AUTHENTICATION_LEN: usize = 12;
/// Length of a routing header with an address, in bytes.
const ROUTED_LEN: usize = 24;

/// Kinds of headers that are stepped over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options (RFC 8200, 4.3).
    HopByHop = 1,
    /// Routing (RFC 8200, 4.4).
    Routing,
    /// Fragment (RFC 8200, 4.5).
    Fragment,
    /// Destination options (RFC 8200, 4.6).
    Destination,
    /// Authentication (RFC 4302), the only one that IPv4 has.
    Authentication,
    /// Mobility (RFC 6275, 6.1).
    Mobility,
    /// Host identity protocol (RFC 7401).
    Hip,
    /// Shim6 (RFC 5533).
    Shim6,
}

impl Extension {
    /// Number of the authentication header.
    pub(super) const AUTHENTICATION: u8 = 51;

    /// The kind with a number.
    #[inline]
    pub(super) const fn of(protocol: u8, version: IpVersion) -> Option<Self> {
        Some(match (protocol, version) {
            (Self::AUTHENTICATION, _) => Self::Authentication,
            (_, IpVersion::V4) => return None,
            (0, _) => Self::HopByHop,
            (43, _) => Self::Routing,
            (44, _) => Self::Fragment,
            (60, _) => Self::Destination,
            (135, _) => Self::Mobility,
            (139, _) => Self::Hip,
            (140, _) => Self::Shim6,
            _ => return None,
        })
    }
}

/// Kinds of extension headers, and whether there are options of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtensionSet(u16);

impl ExtensionSet {
    /// No header.
    pub const NONE: Self = Self(0);
    /// Options in the IPv4 header.
    pub const IPV4_OPTIONS: Self = Self(1);

    /// These, and one more.
    #[must_use]
    pub const fn with(self, kind: Extension) -> Self {
        Self(self.0 | 1 << kind as u8)
    }

    /// Whether there is one of this kind.
    pub const fn contains(self, kind: Extension) -> bool {
        self.0 & 1 << kind as u8 != 0
    }

    /// Whether there is none that `other` lacks.
    pub const fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

/// An extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Kind.
    pub kind: Extension,
    /// Where it begins, in bytes from the frame's beginning.
    pub at: usize,
    /// Its length, in bytes; at least 8.
    pub len: usize,
    /// The third and fourth byte.
    fields: [u8; 2],
}

impl Header {
    /// Whether it is a routing header with segments left: the packet is on its way.
    pub(super) const fn is_on_its_way(&self) -> bool {
        let [_, left] = self.fields;
        matches!(self.kind, Extension::Routing) && left != 0
    }

    /// Where a routing header has the address of the final destination; `None` if its type is
    /// unknown, or it is too short.
    pub(super) const fn final_destination(&self) -> Option<usize> {
        match self.fields {
            // Mobile IPv6 (RFC 6275, 6.4) has one address, segment routing (RFC 8754, 2) the last
            // first.
            [2 | 4, _] if self.len >= ROUTED_LEN => Some(self.at + 8),
            _ => None,
        }
    }

    /// What follows its first two bytes: the options of an options header.
    pub fn options<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.at + 2..self.at + self.len).unwrap_or_default()
    }
}

/// Reads one header after the other.
#[derive(Clone, Debug)]
pub struct Extensions<'a> {
    frame: &'a [u8],
    version: IpVersion,
    protocol: u8,
    at: usize,
    end: usize,
    count: usize,
    fragment: Fragment,
}

impl<'a> Extensions<'a> {
    /// Of a packet that ends at `end`, from the header at `at` on.
    pub(super) const fn new(
        frame: &'a [u8],
        version: IpVersion,
        protocol: u8,
        at: usize,
        end: usize,
    ) -> Self {
        Self { frame, version, protocol, at, end, count: 0, fragment: Fragment::NOT }
    }

    /// The next header; `None` behind the last, or behind the fragment header of a later fragment.
    ///
    /// # Errors
    /// Where the walk ended, and why.
    pub fn read(&mut self) -> Result<Option<Header>, Stop> {
        let at = self.at;
        if self.fragment.is_later() {
            return Ok(None);
        }
        let Some(kind) = Extension::of(self.protocol, self.version) else { return Ok(None) };
        if self.count == MAX_EXTENSIONS {
            return Err(Stop { at, reason: Reason::TooManyExtensions });
        }
        let is_misplaced = match kind {
            Extension::HopByHop => self.count != 0,
            Extension::Fragment => self.fragment.is_any(),
            _ => false,
        };
        if is_misplaced || at + MIN_LEN > self.end {
            return Err(Stop::malformed(at));
        }
        let [next, units, a, b] = field::read(self.frame, at).ok_or(Stop::truncated(at))?;
        let len = match kind {
            Extension::Fragment => FRAGMENT_LEN,
            Extension::Authentication => 4 * (2 + usize::from(units)),
            _ => 8 * (1 + usize::from(units)),
        };
        let is_short = kind == Extension::Authentication && len < AUTHENTICATION_LEN;
        if is_short || at + len > self.end {
            return Err(Stop::malformed(at));
        }
        if at + len > self.frame.len() {
            return Err(Stop::truncated(at));
        }
        if kind == Extension::Fragment {
            self.fragment = Fragment::of_header(u16::from_be_bytes([a, b]));
        }
        self.count += 1;
        self.protocol = next;
        self.at = at + len;
        Ok(Some(Header { kind, at, len, fields: [a, b] }))
    }

    pub(super) const fn protocol(&self) -> u8 {
        self.protocol
    }

    pub(super) const fn at(&self) -> usize {
        self.at
    }

    pub(super) const fn fragment(&self) -> Fragment {
        self.fragment
    }
}

/// The types of the options in an options header, and their data, but for padding of one byte (RFC
/// 8200, 4.2). Ends with `None` as an item if an option is longer than its header.
pub fn options(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u8, &[u8])>> {
    const PAD_1: u8 = 0;
    std::iter::from_fn(move || {
        while let [PAD_1, rest @ ..] = bytes {
            bytes = rest;
        }
        let (&kind, rest) = bytes.split_first()?;
        let option = rest.split_first().and_then(|(&len, rest)| {
            let (data, rest) = rest.split_at_checked(len.into())?;
            bytes = rest;
            Some((kind, data))
        });
        if option.is_none() {
            bytes = &[];
        }
        Some(option)
    })
}
