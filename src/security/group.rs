//! Keys of group traffic: broadcast and multicast frames of a secured vnet.
//!
//! # Theory of operation
//!
//! Nobody can shake hands with a group whose members are unknown, and the first frame a guest sends
//! is usually one for everybody. So each sender derives a key from the vnet's group key and what its
//! packets carry in the clear:
//!
//! ```text
//!  SA key = HKDF(group key; care-of address of the sender, SPI with its salt (16), start time (32))
//! ```
//!
//! Whoever has the group key can open the first packet of a sender that it never heard of.
//!
//! **No nonce is used twice.** A sender starts with number 1 under a key that nobody had: no two starts
//! of a process have the same time, even if its clock is set back; varpd hands out salts one after
//! the other, from a random one on, so a process that takes the place of another within the same
//! second has another salt.
//!
//! **Replays.** A receiver keeps a window per sender and start, and accepts only starts within
//! [`TOLERANCE`] of its own clock; a sender starts anew every [`RESTART`]. What was recorded is
//! therefore refused by the window at first, and because of its age later. Hosts of a secured
//! vnet need clocks that are right within a minute. What remains: a backend that was started anew
//! has lost its windows, and for so long accepts once more what was sent just before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use super::Suite;
use super::esp::{Exhausted, Numbering, OpenError, Opener, Sealer};
use super::keys::{SaKey, Secret};
use crate::wire::VnetId;
use crate::wire::esp::{Head, Spi};

/// How long a sender uses one start.
pub const RESTART: Duration = Duration::from_secs(30);
/// How far a sender's start may lie from the receiver's clock: [`RESTART`], and a minute for clocks
/// that differ.
pub const TOLERANCE: Duration = Duration::from_secs(90);
/// Packets of one start at most.
const MAX_PACKETS: u64 = 1 << 30;
/// Starts that a sender remembers: more than a day.
const MAX_STARTS: usize = 4096;
/// Senders' starts that a receiver keeps apart.
pub const MAX_SENDERS: usize = 4096;

/// The key of a sender's start.
fn sender_key(group: &Secret, sender: SocketAddr, spi: Spi, start: u32) -> SaKey {
    let ip = match sender.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let context = [
        &ip.octets()[..],
        &sender.port().to_be_bytes(),
        &spi.0.to_be_bytes(),
        &start.to_be_bytes(),
    ];
    SaKey::derive(group, "group sender", &context)
}

/// A sender of group frames.
#[derive(Debug)]
pub struct GroupSender {
    group: Secret,
    suite: Suite,
    spi: Spi,
    own: SocketAddr,
    /// When the sealer was made.
    start: u32,
    used: BTreeSet<u32>,
    /// Starts up to here may have been used.
    floor: u32,
    sealer: Option<Sealer>,
}

impl GroupSender {
    /// A sender at a care-of address. `salt` is one that no other sender there had before.
    pub fn new(group: Secret, suite: Suite, vnet: VnetId, own: SocketAddr, salt: u16) -> Self {
        let spi = Spi::of_group(vnet, salt);
        let (start, used, floor, sealer) = (0, BTreeSet::new(), 0, None);
        Self { group, suite, spi, own, start, used, floor, sealer }
    }

    /// Other keys, from the next packet on; `salt` as in [`GroupSender::new`].
    pub fn replace(&mut self, group: Secret, suite: Suite, vnet: VnetId, salt: u16) {
        *self = Self::new(group, suite, vnet, self.own, salt);
    }

    /// Seals a packet as [`Sealer::seal`] does, at a time in milliseconds since 1970.
    ///
    /// # Errors
    /// [`Exhausted`]: the clock says a time that can't be sent (before 1970, after 2106).
    pub fn seal(
        &mut self,
        packet: &mut [u8],
        payload_len: usize,
        wall_ms: u64,
    ) -> Result<(), Exhausted> {
        self.sealer(wall_ms)?.seal(packet, payload_len)
    }

    /// What seals packets at a time in milliseconds since 1970.
    ///
    /// # Errors
    /// As [`GroupSender::seal`].
    pub fn sealer(&mut self, wall_ms: u64) -> Result<&mut Sealer, Exhausted> {
        let now = seconds(wall_ms).filter(|now| *now > 0).ok_or(Exhausted)?;
        let is_due = match &self.sealer {
            Some(sealer) => {
                let age = u64::from(now.abs_diff(self.start));
                age >= RESTART.as_secs() || sealer.count() >= MAX_PACKETS
            }
            None => true,
        };
        if is_due {
            self.start = self.unused_start(now).ok_or(Exhausted)?;
            let key = sender_key(&self.group, self.own, self.spi, self.start);
            let numbering = Numbering::Group(self.start);
            self.sealer = Some(Sealer::new(self.spi, self.suite, &key, numbering));
        }
        self.sealer.as_mut().ok_or(Exhausted)
    }

    /// The first second from `now` on in which this sender never started.
    fn unused_start(&mut self, now: u32) -> Option<u32> {
        let mut start = now.max(self.floor.checked_add(1)?);
        while self.used.contains(&start) {
            start = start.checked_add(1)?;
        }
        self.used.insert(start);
        if self.used.len() > MAX_STARTS {
            self.floor = self.used.pop_first()?;
        }
        Some(start)
    }
}

fn seconds(wall_ms: u64) -> Option<u32> {
    u32::try_from(wall_ms / 1000).ok()
}

/// Why a group packet is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// As with any packet.
    Open(OpenError),
    /// Its sender's start is too far from this host's clock.
    Stale,
    /// Another vnet's.
    Foreign,
    /// Too many senders.
    Full,
}

impl From<OpenError> for GroupError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

/// A start of a sender. Its time comes first: the first to expire is the first of a table.
type Start = (u32, SocketAddr, Spi);

/// The senders of group frames that a receiver knows.
#[derive(Debug, Default)]
pub struct GroupReceiver {
    /// The keys that are accepted.
    keys: Vec<(Suite, Secret)>,
    senders: BTreeMap<Start, Sender>,
    /// No start before this one is ever accepted (in seconds): what was forgotten stays so.
    swept: u32,
}

#[derive(Debug)]
struct Sender {
    opener: Opener,
    /// Under which of the keys, counted over all that ever were.
    key: Secret,
}

impl GroupReceiver {
    /// The keys that are accepted.
    pub fn keys(&self) -> impl Iterator<Item = &Secret> {
        self.keys.iter().map(|(_, key)| key)
    }

    /// Accepts these keys from now on; what came under others ends.
    pub fn set_keys(&mut self, keys: Vec<(Suite, Secret)>) {
        self.senders.retain(|_, sender| keys.iter().any(|(_, key)| *key == sender.key));
        self.keys = keys;
    }

    /// Opens a packet that came `from` there, at a time in milliseconds since 1970.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn open(
        &mut self,
        vnet: VnetId,
        from: SocketAddr,
        head: &Head,
        packet: &mut [u8],
        wall_ms: u64,
    ) -> Result<Range<usize>, GroupError> {
        if !head.spi.is_of_group(vnet) {
            return Err(GroupError::Foreign);
        }
        let [t0, t1, t2, t3, number @ ..] = head.iv;
        let start = u32::from_be_bytes([t0, t1, t2, t3]);
        if u32::from_be_bytes(number) != head.sequence {
            return Err(OpenError::Inauthentic.into());
        }
        let now = seconds(wall_ms).ok_or(GroupError::Stale)?;
        if u64::from(now.abs_diff(start)) > TOLERANCE.as_secs() || start < self.swept {
            return Err(GroupError::Stale);
        }
        let id = (start, from, head.spi);
        if let Some(sender) = self.senders.get_mut(&id) {
            return Ok(sender.opener.open(head, packet)?);
        }
        self.open_first(id, head, packet, now)
    }

    /// The first packet of a start: whoever made it has one of the keys, or it changes nothing.
    fn open_first(
        &mut self,
        id: Start,
        head: &Head,
        packet: &mut [u8],
        now: u32,
    ) -> Result<Range<usize>, GroupError> {
        if self.senders.len() >= MAX_SENDERS {
            self.sweep(now);
        }
        if self.senders.len() >= MAX_SENDERS {
            return Err(GroupError::Full);
        }
        let (start, from, spi) = id;
        // Opening scrambles what it refuses; the copy is for the next key.
        let copy = if self.keys.len() > 1 { packet.to_vec() } else { Vec::new() };
        for (attempt, (suite, key)) in self.keys.iter().enumerate() {
            if attempt > 0 {
                packet.copy_from_slice(&copy);
            }
            let sa = sender_key(key, from, spi, start);
            let mut opener = Opener::new(*suite, &sa, Numbering::Group(start));
            match opener.open(head, packet) {
                Err(OpenError::Inauthentic) => {}
                // Number 0, which no window takes: nobody has proved anything.
                Err(OpenError::Replay) => return Err(OpenError::Replay.into()),
                opened => {
                    let sender = Sender { opener, key: key.clone() };
                    self.senders.insert(id, sender);
                    return Ok(opened?);
                }
            }
        }
        Err(OpenError::Inauthentic.into())
    }

    /// Forgets senders whose start is too old to be accepted again, even if the clock is set back.
    /// Looks at those only, and at one more: anybody can send what makes a full table be swept.
    fn sweep(&mut self, now: u32) {
        let tolerance = u32::try_from(TOLERANCE.as_secs()).unwrap_or(u32::MAX);
        let oldest = now.saturating_sub(tolerance);
        self.swept = self.swept.max(oldest);
        while let Some(first) = self.senders.first_entry().filter(|e| e.key().0 < self.swept) {
            first.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;
    use crate::wire::esp::{HEAD_LEN, sealed_len};

    const NOW: u64 = 1_767_225_600_000;

    fn vnet() -> VnetId {
        VnetId::new(42).unwrap()
    }

    fn at(host: u8) -> SocketAddr {
        ([192, 0, 2, host], 4000).into()
    }

    fn key(byte: u8) -> Secret {
        Secret::new([byte; 32])
    }

    fn sender(salt: u16) -> GroupSender {
        GroupSender::new(key(1), Suite::AesGcm, vnet(), at(1), salt)
    }

    fn receiver(keys: &[u8]) -> GroupReceiver {
        let mut receiver = GroupReceiver::default();
        receiver.set_keys(keys.iter().map(|byte| (Suite::AesGcm, key(*byte))).collect());
        receiver
    }

    fn seal(sender: &mut GroupSender, text: &[u8], wall_ms: u64) -> Vec<u8> {
        let mut packet = vec![0; sealed_len(text.len())];
        packet[HEAD_LEN..HEAD_LEN + text.len()].copy_from_slice(text);
        sender.seal(&mut packet, text.len(), wall_ms).unwrap();
        packet
    }

    fn open(
        receiver: &mut GroupReceiver,
        from: SocketAddr,
        packet: &[u8],
        wall_ms: u64,
    ) -> Result<Vec<u8>, GroupError> {
        let mut packet = packet.to_vec();
        let head = Head::parse(&packet).unwrap();
        let range = receiver.open(vnet(), from, &head, &mut packet, wall_ms)?;
        Ok(packet[range].to_vec())
    }

    #[test]
    fn the_first_packet_of_a_stranger_is_opened_and_only_once() {
        let (mut s, mut r) = (sender(5), receiver(&[1]));
        let first = seal(&mut s, b"who has", NOW);
        assert_eq!(open(&mut r, at(1), &first, NOW).unwrap(), b"who has");
        assert_eq!(open(&mut r, at(1), &first, NOW), Err(OpenError::Replay.into()));
        assert_eq!(open(&mut r, at(2), &first, NOW), Err(OpenError::Inauthentic.into()));
        assert_eq!(r.senders.len(), 1, "a forger leaves nothing behind");
        assert!(open(&mut receiver(&[2]), at(1), &first, NOW).is_err());
        assert_eq!(open(&mut receiver(&[2, 1]), at(1), &first, NOW).unwrap(), b"who has");
    }

    /// Number 0 is refused before its key is tried: that must not count as a sender who has one.
    #[test]
    fn forged_first_packets_leave_nothing_behind() {
        let mut r = receiver(&[2, 1]);
        let mut s = sender(5);
        let genuine = seal(&mut s, b"x", NOW);
        for host in 0..100 {
            let mut forged = genuine.clone();
            // The number: in the head, and in the IV.
            forged[4..8].fill(0);
            forged[12..16].fill(0);
            let refused = open(&mut r, at(host), &forged, NOW);
            assert_eq!(refused, Err(OpenError::Replay.into()));
        }
        assert!(r.senders.is_empty());
        assert_eq!(open(&mut r, at(1), &genuine, NOW).unwrap(), b"x", "its key is the second");
    }

    #[test]
    fn what_is_old_is_refused_for_good() {
        let (mut s, mut r) = (sender(5), receiver(&[1]));
        let packet = seal(&mut s, b"x", NOW);
        let tolerance = 90_000;
        assert_eq!(open(&mut r, at(1), &packet, NOW + tolerance + 1000), Err(GroupError::Stale));
        assert_eq!(open(&mut r, at(1), &packet, NOW - tolerance - 1000), Err(GroupError::Stale));
        assert!(open(&mut r, at(1), &packet, NOW + tolerance).is_ok());
        r.sweep(seconds(NOW + 2 * tolerance).unwrap());
        assert!(r.senders.is_empty());
        assert_eq!(open(&mut r, at(1), &packet, NOW), Err(GroupError::Stale), "clock set back");
    }

    #[test]
    fn no_key_is_used_from_two_starts() {
        let mut s = sender(5);
        let mut heads = Vec::new();
        // The clock goes back and forth.
        for ms in [NOW, NOW + 30_000, NOW + 29_000, NOW - 50_000, NOW - 50_000, NOW + 90_000] {
            let packet = seal(&mut s, b"x", ms);
            heads.push(packet[..HEAD_LEN].to_vec());
        }
        let count = heads.len();
        heads.sort();
        heads.dedup();
        assert_eq!(heads.len(), count);
        // Another process at the same place, in the same second, has another salt.
        let other = seal(&mut sender(6), b"x", NOW);
        assert_ne!(heads[0][..4], other[..4]);
    }

    #[test]
    fn strangers_are_bounded_and_forget_in_time() {
        let mut r = receiver(&[1]);
        for n in 0..MAX_SENDERS {
            let port = u16::try_from(n + 1).unwrap();
            let from = SocketAddr::from(([192, 0, 2, 1], port));
            let mut s = GroupSender::new(key(1), Suite::AesGcm, vnet(), from, 1);
            let packet = seal(&mut s, b"x", NOW);
            assert!(open(&mut r, from, &packet, NOW).is_ok());
        }
        let packet = seal(&mut sender(5), b"x", NOW + 1000);
        assert_eq!(open(&mut r, at(1), &packet, NOW + 1000), Err(GroupError::Full));
        let later = NOW + 200_000;
        let packet = seal(&mut sender(7), b"x", later);
        assert!(open(&mut r, at(1), &packet, later).is_ok());
        assert_eq!(r.senders.len(), 1);
    }

    /// A receiver without room: fifty senders started at each second.
    fn full() -> GroupReceiver {
        let mut r = receiver(&[1]);
        for n in 0..MAX_SENDERS {
            let from = SocketAddr::from(([192, 0, 2, 3], u16::try_from(n + 1).unwrap()));
            let start = NOW + u64::try_from(n % 80).unwrap() * 1000;
            let mut s = GroupSender::new(key(1), Suite::AesGcm, vnet(), from, 1);
            assert!(open(&mut r, from, &seal(&mut s, b"x", start), NOW).is_ok());
        }
        r
    }

    #[test]
    fn senders_make_room_second_by_second() {
        let mut r = full();
        let now = NOW + 80_000;
        let late = seal(&mut sender(5), b"x", now);
        assert_eq!(open(&mut r, at(1), &late, now), Err(GroupError::Full));
        let now = NOW + 91_000;
        let late = seal(&mut sender(5), b"x", now);
        assert!(open(&mut r, at(1), &late, now).is_ok());
        assert_eq!(r.senders.len(), 1 + MAX_SENDERS - MAX_SENDERS.div_ceil(80));
        assert!(r.senders.keys().all(|(start, ..)| *start > seconds(NOW).unwrap()));
    }

    /// Outsiders can name senders that nobody knows as fast as they like.
    #[test]
    fn a_full_table_makes_strangers_no_dearer() {
        let (mut empty, mut full) = (receiver(&[1]), full());
        let mut packet = seal(&mut sender(5), b"x", NOW);
        *packet.last_mut().unwrap() ^= 1;
        let cost = |r: &mut GroupReceiver, want: GroupError| {
            let began = clock::mono();
            for host in 0..250 {
                assert_eq!(open(r, at(host), &packet, NOW), Err(want));
            }
            clock::mono().saturating_since(began)
        };
        let rounds = (0..20).map(|_| {
            let forged = cost(&mut empty, OpenError::Inauthentic.into());
            (cost(&mut full, GroupError::Full), forged)
        });
        let (at_full, at_empty) = rounds.min_by_key(|(at_full, _)| *at_full).unwrap();
        // It was a hundred times as much when each looked at all senders.
        assert!(at_full < at_empty * 4, "{at_full:?}, and {at_empty:?} with an empty table");
    }

    #[test]
    fn a_removed_key_ends_its_senders() {
        let (mut s, mut r) = (sender(5), receiver(&[2, 1]));
        let [first, second] = [b"1", b"2"].map(|text| seal(&mut s, text, NOW));
        assert!(open(&mut r, at(1), &first, NOW).is_ok());
        r.set_keys(vec![(Suite::AesGcm, key(2))]);
        assert_eq!(open(&mut r, at(1), &second, NOW), Err(OpenError::Inauthentic.into()));
    }
}
