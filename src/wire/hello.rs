//! Hello: hosts and relays announce their presence and the vnets that they serve.
//!
//! Each speaker (a host or relay) regularly sends a HELLO of one datagram, and LISTs of the vnets
//! on which it has vifs. Both are UDP datagrams from and to port [`super::varp::PORT`], to the VARP
//! group or to one host. The first two octets distinguish them from all other datagrams on that
//! port. No message is longer than [`MAX_LEN`], which fits every IPv6 path.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------+---------------+---------------+---------------+
//! |   'V' 0x56    |   'H' 0x48    |  version = 1  |     type      |  0
//! +---------------+---------------+---------------+---------------+
//! |          flags (16)           |  key number   |   ext words   |  4
//! +-------------------------------+---------------+---------------+
//! |             time, milliseconds since 1970 (64)                |  8
//! |                                                               |
//! +---------------------------------------------------------------+
//! |                        generation (32)                        | 16
//! +---------------------------------------------------------------+
//! |             sender's name (176): realm, IP address, port 0    | 20
//! |                                                               |
//! |                               +-------------------------------+
//! |                               |          count (16)           | 40
//! +-------------------------------+-------------------------------+
//! |  body, by type ...                                            | 44
//! +---------------------------------------------------------------+
//! |  extensions (ext words * 32) ...                              |
//! +---------------------------------------------------------------+
//! |  HMAC (128) with the segment key; zeros without one           |
//! +---------------------------------------------------------------+
//!
//! HELLO, type 1:
//! +---------------------------------------------------------------+
//! |                    lifetime, milliseconds (32)                | 44
//! +---------------------------------------------------------------+
//! |      version of the program: major (8), minor (8), patch (16) | 48
//! +---------------------------------------------------------------+
//! |                       capabilities (32)                       | 52
//! +---------------------------------------------------------------+
//! |                      number of vifs (32)                      | 56
//! +---------------------------------------------------------------+
//! |                    digest of the list (64)                    | 60
//! |                                                               |
//! +---------------------------------------------------------------+
//! |                          nonce (64)                           | 68
//! |                                                               |
//! +---------------------------------------------------------------+
//! |                          answer (64)                          | 76
//! |                                                               |
//! +---------------------------------------------------------------+
//! |               the sender's VARP group (128), or 0             | 84
//! |                                                               |
//! +-------------------------------+-------------------------------+
//! |     its UDP port (16), or 0   |           MBZ (16)            | 100
//! +-------------------------------+-------------------------------+
//! |  count times, only to the group: a relay that was heard:      | 104
//! |       its name (176), MBZ (16)                                |
//! +---------------------------------------------------------------+
//!
//! LIST, type 2:
//! +---------------------------------------------------------------+
//! |                      first vnet id (32)                       | 44
//! +---------------------------------------------------------------+
//! |                       last vnet id (32)                       | 48
//! +---------------------------------------------------------------+
//! |  count times: an entry, see [`list`]                          | 52
//! +---------------------------------------------------------------+
//! ```
//!
//! * `flags`: H 0x0001, the sender hears the addressee by group; W 0x0002, the sender wants the
//!   addressee's list; R 0x0004, the message answers a HELLO; B 0x0008, the message is a beacon.
//!   Only HELLOs have flags: H, W and R those to a single host, B those to a group. A receiver
//!   refuses unknown flags of the lower octet and ignores those of the upper.
//! * `key number`: the number of the segment key with which the HMAC was made; 0 without one. The
//!   HMAC (SHA-256, cut to 128 bits, key: [`Segment::hello`]) covers all octets before it. Without
//!   a key its place stays: so an answer is as long as its question, whichever of the two hosts has
//!   a key.
//! * `time`: the sender's clock. Each message of a sender has a later time than the one before.
//! * `generation`: a number for the sender's list of vnets. Each change takes a number that the
//!   sender never used before: the seconds since 1970 by its clock, or one more than the last
//!   number if that is greater.
//! * `lifetime`: the time for which receivers count the sender as present: four of its intervals,
//!   or in a beacon three intervals of its beacons; 0 when it leaves.
//! * `capabilities`: 1, the sender is a relay. Receivers ignore others.
//! * `digest`: the first 64 bits of SHA-256 over all entries of the list in ascending order of
//!   vnet, without their tags.
//! * `nonce`, `answer`: see "Nonces" below. Both are 0 to a group.
//! * `group`, `port`: the destination of the sender's own group messages; 0 if it sends none.
//!
//! # Messages to the group
//!
//! A speaker sends a HELLO every max(30 s, speakers / 10 s), up to half more or less at random.
//! When it starts, and when its list, its group or its address changes, it sends HELLOs after 0,
//! 0.3 and 1 s as well; the next such change waits until max(2 s, speakers / 100 s) after the last.
//! When it hears a new speaker, or one with another generation, it sends its next HELLO within
//! max(1 s, speakers / 20 s), but not sooner than max(3 s, speakers / 20 s) after the last. So a
//! segment of any size hears about 10 HELLOs a second, and up to 20 while speakers are new. A
//! change of the number of vifs alone waits for the next HELLO.
//!
//! Every max(60 s, speakers * 1 s), up to half more or less at random, a speaker sends the same
//! HELLO with flag B, a beacon, to the default group and port of both address families, also if it
//! uses one of them. It listens there for beacons of others. So operators see hosts with another
//! group, port or family. The lifetime of a beacon is three of these intervals. A beacon must come
//! from the port of its `group`. If it is of the address family of its sender's name, it must come
//! from the address in that name. A receiver ignores beacons of a speaker from which it hears other
//! messages.
//!
//! When a speaker starts, it sends all its LISTs; after a change, those whose range has a change.
//! It sends each once, after the HELLO with the new generation and at most 20 a second.
//!
//! # Messages to one host
//!
//! A HELLO to one host has a nonce. Without flag R it is a question, and the addressee answers it
//! by one HELLO with R, within limits (per source, and in total). No speaker answers a HELLO with
//! R, so no exchange goes on forever. Question and answer list no relays. A speaker sends no answer
//! that would be longer than its question.
//!
//! **Nonces.** `answer` repeats the nonce of the addressee's last HELLO to the sender; 0 if there
//! is none. A host that repeats a nonce proves that it receives at the address to which the nonce
//! was sent. A speaker accepts its own nonces of the last two minutes. It can make them from a
//! secret, the address and the time, so that they cost no memory. Until a host has proved an
//! address, a speaker sends at most one datagram there for each of the host's own. That limit
//! includes LISTs, copies of group frames and relayed messages.
//!
//! **The list.** A host may lack the list to which the digest of a HELLO belongs. It then waits at
//! least two seconds for LISTs to the group, and sends the speaker a HELLO with W. If that has a
//! right answer, the speaker sends its LISTs to that host, at most 20 LISTs a second. Otherwise its
//! HELLO with R brings the nonce for a right answer, and the host asks again at once. A right
//! answer is enough, without an HMAC: it proves that the host receives at that address, and has
//! asked. If the host still asks without a right answer after the speaker has sent it a nonce,
//! unicast to it does not arrive: then the speaker sends its LISTs to the group after its next
//! HELLO.
//!
//! **Checks of unicast.** Of each two hosts the one with the lower name asks the other once in
//! max(60 s, speakers / 2 s), without W.
//!
//! # LISTs
//!
//! A LIST contains all vnets of its sender from `first` to `last`. It is complete in itself: a
//! receiver replaces its entries of this range by those in the LIST and need not wait for other
//! LISTs. All LISTs of a speaker together cover ids 1 to 4294967295, without gap or overlap. The
//! digest shows a receiver whether it has all. Parts that are numbered `n of m` would be worse: a
//! speaker would have to send all of them for one change, and a receiver that lost one would have
//! none.
//!
//! # Trust
//!
//! A message must come from the VARP port and from the address in its sender's name. Receivers
//! accept a HELLO from another address only with a right HMAC and a right answer (a host behind
//! NAT): it binds the name to that address and port, for the HELLO's lifetime. A receiver accepts
//! each time of a sender once, and none older than the last 64. With an HMAC it accepts only times
//! within 90 s of its own clock. Relays with a segment key accept only messages with a right HMAC.
//! Members of a secured vnet accept an entry with a right tag, also without an HMAC. They keep it
//! until its sender's lifetime ends, an entry with a right tag and a later time arrives, or a LIST
//! with a right HMAC leaves the vnet out. Anybody on the segment can forge everything else. Hosts
//! therefore only show it, and on vnets without keys use the longest datagram in it for their group
//! frames. They do not accept the farewell of a host that had an entry with a right tag: that host
//! is gone when its lifetime has ended. LISTs without a right tag end an entry that had one only
//! ten minutes after the entry arrived; meanwhile hosts ask that host for its list again.

pub mod list;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

pub use self::list::{Entries, Entry, Proof};
use super::extension::Extensions;
use super::name::{self, Name};
use super::reader::Reader;
use super::{Longest, ParseError, VnetId};
#[cfg(doc)]
use crate::security::segment::Segment;

/// The first two bytes.
pub const MAGIC: [u8; 2] = *b"VH";
/// Version of the format.
pub const VERSION: u8 = 1;
/// Where a kernel filter finds the type (one byte).
pub const TYPE_OFFSET: usize = 3;
/// Where a kernel filter finds the flags (two bytes).
pub const FLAGS_OFFSET: usize = 4;
/// The longest message, in bytes: an IPv6 packet of 1280 without IP and UDP header.
pub const MAX_LEN: usize = 1232;
/// Length of the HMAC at the end, in bytes.
pub const HMAC_LEN: usize = 16;
/// Length of a HELLO without relays and extensions, in bytes.
pub const HELLO_LEN: usize = 104 + HMAC_LEN;
/// Length of a LIST without entries and extensions, in bytes.
pub const LIST_LEN: usize = 52 + HMAC_LEN;
/// Length of a relay that was heard, in bytes.
pub const RELAY_LEN: usize = name::LEN + 2;

/// Type of [`Body::Hello`].
pub const HELLO: u8 = 1;
/// Type of [`Body::List`].
pub const LIST: u8 = 2;

/// The flags of a message; a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(pub u16);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// Flag H: the addressee was heard by group.
    pub const HEARD: Self = Self(1);
    /// Flag W: the addressee is asked for its list.
    pub const WANTS_LIST: Self = Self(2);
    /// Flag R: answers a HELLO.
    pub const ANSWER: Self = Self(4);
    /// Flag B: goes where hosts that have nothing configured listen.
    pub const BEACON: Self = Self(8);
    /// Those that make a message invalid for receivers that do not know them.
    const CRITICAL: u16 = 0x00ff;

    /// Whether all flags in `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These and others.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Only those that a message of this type, and with this nonce, can have.
    const fn check(self, code: u8, is_to_group: bool) -> Result<(), ParseError> {
        let allowed = match code {
            HELLO if is_to_group => Self::BEACON,
            HELLO => Self::HEARD.with(Self::WANTS_LIST).with(Self::ANSWER),
            _ => Self::NONE,
        };
        if self.0 & Self::CRITICAL & !allowed.0 != 0 { Err(ParseError::Reserved) } else { Ok(()) }
    }
}

/// The capabilities of a speaker; a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Abilities(pub u32);

impl Abilities {
    /// It carries messages and frames to other segments.
    pub const RELAY: Self = Self(1);

    /// Whether all in `other` are in this set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Version of a program, for show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    /// Incompatible changes.
    pub major: u8,
    /// Compatible ones.
    pub minor: u8,
    /// Repairs.
    pub patch: u16,
}

impl std::fmt::Display for Release {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}.{}.{}", self.major, self.minor, self.patch))
    }
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Flags.
    pub flags: Flags,
    /// Number of the segment key that made the HMAC; 0: none did.
    pub key_number: u8,
    /// When the sender made it, milliseconds since 1970.
    pub time_ms: u64,
    /// Of the sender's list.
    pub generation: u32,
    /// The host or relay that speaks.
    pub sender: Name,
    /// Its contents.
    pub body: Body<'a>,
    /// Extensions.
    pub extensions: Extensions<'a>,
    /// The HMAC, not checked; zeros with key number 0.
    pub hmac: [u8; HMAC_LEN],
}

/// The contents of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// I am here.
    Hello(Hello<'a>),
    /// These are my vnets in a range.
    List(List<'a>),
}

/// The body of a HELLO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// How long the speaker may be taken as present, in milliseconds; 0 when it leaves.
    pub lifetime_ms: u32,
    /// The program's version.
    pub release: Release,
    /// The speaker's capabilities.
    pub abilities: Abilities,
    /// Number of vifs.
    pub vifs: u32,
    /// Digest of the list.
    pub digest: u64,
    /// To be repeated by the addressee; 0 to the group.
    pub nonce: u64,
    /// The addressee's nonce, or 0.
    pub answer: u64,
    /// Where the speaker's group messages go, if it sends any.
    pub group: Option<SocketAddr>,
    /// Relays that the speaker has heard by group.
    pub relays: Relays<'a>,
}

/// The body of a LIST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List<'a> {
    /// The first vnet that it speaks about.
    pub first: VnetId,
    /// The last one.
    pub last: VnetId,
    /// All vnets of the speaker between the two, in ascending order.
    pub entries: Entries<'a>,
}

impl<'a> Message<'a> {
    /// Whether a datagram claims to be one of these.
    pub fn is_one(datagram: &[u8]) -> bool {
        datagram.starts_with(&MAGIC)
    }

    /// Views a whole datagram.
    ///
    /// # Errors
    /// The fault. `Trailing` also stands for a message longer than [`MAX_LEN`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut rest = Reader::new(bytes);
        if rest.array::<2>()? != MAGIC {
            return Err(ParseError::Magic);
        }
        if rest.u8()? != VERSION {
            return Err(ParseError::Version);
        }
        if bytes.len() > MAX_LEN {
            return Err(ParseError::Trailing);
        }
        let code = rest.u8()?;
        let flags = Flags(rest.u16()?);
        let (key_number, words) = (rest.u8()?, rest.u8()?);
        let (time_ms, generation, sender) = (rest.u64()?, rest.u32()?, rest.name()?);
        if sender.port() != 0 {
            return Err(ParseError::Value);
        }
        let count = rest.u16()?;
        let (body, is_to_group) = match code {
            HELLO => {
                let hello = rest.hello(count)?;
                (Body::Hello(hello), hello.nonce == 0)
            }
            LIST => (Body::List(rest.list(count, Longest::least(sender.ip()))?), false),
            _ => return Err(ParseError::Type),
        };
        flags.check(code, is_to_group)?;
        let extensions = rest.extensions(words)?;
        let hmac = rest.array()?;
        rest.end()?;
        if key_number == 0 && hmac != [0; HMAC_LEN] {
            return Err(ParseError::Reserved);
        }
        Ok(Self { flags, key_number, time_ms, generation, sender, body, extensions, hmac })
    }

    /// Length of the message, in bytes.
    pub const fn len(&self) -> usize {
        let body = match &self.body {
            Body::Hello(hello) => HELLO_LEN + hello.relays.0.len(),
            Body::List(list) => LIST_LEN + list.entries.bytes().len(),
        };
        body + self.extensions.bytes().len()
    }

    /// Never: a message has a fixed part.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Appends the message to `out`.
    ///
    /// # Panics
    /// When it is longer than [`MAX_LEN`].
    pub fn emit(&self, out: &mut Vec<u8>) {
        assert!(self.len() <= MAX_LEN, "a hello of {} bytes", self.len());
        let (code, count) = match &self.body {
            Body::Hello(hello) => (HELLO, hello.relays.count()),
            Body::List(list) => (LIST, list.entries.count()),
        };
        // Each fits, since the message does.
        let number = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        let [_, words] = number(self.extensions.words()).to_be_bytes();
        out.reserve(self.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[VERSION, code]);
        out.extend_from_slice(&self.flags.0.to_be_bytes());
        out.extend_from_slice(&[self.key_number, words]);
        out.extend_from_slice(&self.time_ms.to_be_bytes());
        out.extend_from_slice(&self.generation.to_be_bytes());
        self.sender.emit(out);
        out.extend_from_slice(&number(count).to_be_bytes());
        match &self.body {
            Body::Hello(hello) => hello.emit(out),
            Body::List(list) => list.emit(out),
        }
        out.extend_from_slice(self.extensions.bytes());
        out.extend_from_slice(&self.hmac);
    }

    /// The message as a datagram.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len());
        self.emit(&mut out);
        out
    }
}

/// The part of a whole message that the HMAC covers.
pub fn covered(datagram: &[u8]) -> &[u8] {
    datagram.split_last_chunk::<HMAC_LEN>().map_or(&[], |(covered, _)| covered)
}

impl Hello<'_> {
    fn emit(&self, out: &mut Vec<u8>) {
        let Release { major, minor, patch } = self.release;
        out.extend_from_slice(&self.lifetime_ms.to_be_bytes());
        out.extend_from_slice(&[major, minor]);
        out.extend_from_slice(&patch.to_be_bytes());
        out.extend_from_slice(&self.abilities.0.to_be_bytes());
        out.extend_from_slice(&self.vifs.to_be_bytes());
        for number in [self.digest, self.nonce, self.answer] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        let group = self.group.map_or(Ipv6Addr::UNSPECIFIED, |group| name::mapped(group.ip()));
        out.extend_from_slice(&group.octets());
        out.extend_from_slice(&self.group.map_or(0, |group| group.port()).to_be_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.relays.0);
    }
}

impl List<'_> {
    fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first.get().to_be_bytes());
        out.extend_from_slice(&self.last.get().to_be_bytes());
        out.extend_from_slice(self.entries.bytes());
    }
}

impl<'a> Reader<'a> {
    fn hello(&mut self, count: u16) -> Result<Hello<'a>, ParseError> {
        let lifetime_ms = self.u32()?;
        let release = Release { major: self.u8()?, minor: self.u8()?, patch: self.u16()? };
        let (abilities, vifs) = (Abilities(self.u32()?), self.u32()?);
        let (digest, nonce, answer) = (self.u64()?, self.u64()?, self.u64()?);
        let group = self.group()?;
        let relays = Relays::parse(self.bytes(usize::from(count) * RELAY_LEN)?)?;
        // To the group there is nobody to answer, and to one host no relay is listed.
        if nonce == 0 && answer != 0 || nonce != 0 && count != 0 {
            return Err(ParseError::Value);
        }
        Ok(Hello { lifetime_ms, release, abilities, vifs, digest, nonce, answer, group, relays })
    }

    fn group(&mut self) -> Result<Option<SocketAddr>, ParseError> {
        let ip = Ipv6Addr::from(self.array::<16>()?).to_canonical();
        let port = self.u16()?;
        self.zero::<2>()?;
        match (ip, port) {
            (ip, 0) if ip == IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ok(None),
            (ip, port) if ip.is_multicast() && port != 0 => Ok(Some(SocketAddr::new(ip, port))),
            _ => Err(ParseError::Value),
        }
    }

    fn list(&mut self, count: u16, least: u16) -> Result<List<'a>, ParseError> {
        let mut vnet = || VnetId::new(self.u32()?).ok_or(ParseError::Value);
        let (first, last) = (vnet()?, vnet()?);
        let entries = self.entries(count)?;
        let is_sound = |entry: Entry| {
            (first..=last).contains(&entry.vnet) && (entry.longest == 0 || entry.longest >= least)
        };
        if first > last || !entries.iter().all(is_sound) {
            return Err(ParseError::Value);
        }
        Ok(List { first, last, entries })
    }
}

/// A checked view of the relays that were heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relays<'a>(&'a [u8]);

impl<'a> Relays<'a> {
    /// None.
    pub const NONE: Self = Self(&[]);

    /// Views a whole list.
    ///
    /// # Errors
    /// `Truncated`, `Reserved` for a field that must be zero, `Value` for what is not the name of a
    /// host.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParseError> {
        let mut rest = Reader::new(bytes);
        while !rest.rest().is_empty() {
            if rest.name()?.port() != 0 {
                return Err(ParseError::Value);
            }
            rest.zero::<2>()?;
        }
        Ok(Self(bytes))
    }

    /// The bytes of a list of these.
    pub fn emit(relays: &[Name]) -> Vec<u8> {
        let mut out = Vec::with_capacity(relays.len() * RELAY_LEN);
        for relay in relays {
            relay.of_host().emit(&mut out);
            out.extend_from_slice(&[0; 2]);
        }
        out
    }

    /// Number of relays.
    pub const fn count(&self) -> usize {
        self.0.len() / RELAY_LEN
    }

    /// All.
    pub fn iter(&self) -> impl Iterator<Item = Name> + use<'a> {
        let chunks = self.0.chunks_exact(RELAY_LEN);
        chunks.filter_map(|chunk| Name::parse(chunk).ok().map(|(name, _)| name))
    }
}

#[cfg(test)]
mod tests;
