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
//! vnet need clocks that are right within a minute. What remains: a backend that was started anew, or whose
//! host's clock was set back by more than that, has lost its windows, and for so long accepts once more
//! what was sent just before.
//!
//! **Floods.** What outsiders make up costs a key derivation only as far as there is a budget for it: see
//! `candidates`.

mod candidates;
mod starts;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

pub use self::candidates::STRANGERS_PER_SECOND;
use self::candidates::{Charge, Senders};
use self::starts::Starts;
use super::esp::{Exhausted, Numbering, OpenError, Opener, Sealer};
use super::keys::{SaKey, Secret};
use super::{Level, Suite};
use crate::time::Now;
use crate::wire::VnetId;
use crate::wire::esp::{Head, Spi};

/// How long a sender uses one start.
pub const RESTART: Duration = Duration::from_secs(30);
/// How far a sender's start may lie from the receiver's clock: [`RESTART`], and a minute for clocks
/// that differ.
pub const TOLERANCE: Duration = Duration::from_secs(90);
/// Packets of one start at most.
const MAX_PACKETS: u64 = 1 << 30;
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
    used: Starts,
    sealer: Option<Sealer>,
}

impl GroupSender {
    /// A sender at a care-of address. `salt` is one that no other sender there had before.
    pub fn new(group: Secret, suite: Suite, vnet: VnetId, own: SocketAddr, salt: u16) -> Self {
        let spi = Spi::of_group(vnet, salt);
        let (start, used, sealer) = (0, Starts::default(), None);
        Self { group, suite, spi, own, start, used, sealer }
    }

    /// The policy that its packets are sent under.
    pub fn level(&self) -> Level {
        self.suite.level()
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
            self.start = self.used.take(now).ok_or(Exhausted)?;
            let key = sender_key(&self.group, self.own, self.spi, self.start);
            let numbering = Numbering::Group(self.start);
            self.sealer = Some(Sealer::new(self.spi, self.suite, &key, numbering));
        }
        self.sealer.as_mut().ok_or(Exhausted)
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
    /// Its sender is not known, and too many such packets came.
    Flood,
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
    expected: Senders,
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

    /// Keys of policies that are not accepted any more go.
    pub fn retain(&mut self, is_accepted: impl Fn(Level) -> bool) {
        let keys = self.keys.iter().filter(|(suite, _)| is_accepted(suite.level()));
        self.set_keys(keys.cloned().collect());
    }

    /// Under which policy the sender of a packet that was opened sends.
    pub fn level_of(&self, from: SocketAddr, head: &Head) -> Option<Level> {
        let [t0, t1, t2, t3, ..] = head.iv;
        let start = u32::from_be_bytes([t0, t1, t2, t3]);
        let sender = self.senders.get(&(start, from, head.spi))?;
        let key = self.keys.iter().find(|(_, key)| *key == sender.key);
        key.map(|(suite, _)| suite.level())
    }

    /// Accepts these keys from now on; what came under others ends.
    pub fn set_keys(&mut self, keys: Vec<(Suite, Secret)>) {
        self.senders.retain(|_, sender| keys.iter().any(|(_, key)| *key == sender.key));
        self.forget_unproved();
        self.keys = keys;
    }

    fn forget_unproved(&mut self) {
        let senders = &self.senders;
        self.expected.forget(|start| senders.contains_key(start));
    }

    /// Opens a packet that came `from` there.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn open(
        &mut self,
        vnet: VnetId,
        from: SocketAddr,
        head: &Head,
        packet: &mut [u8],
        now: Now,
    ) -> Result<Range<usize>, GroupError> {
        if !head.spi.is_of_group(vnet) {
            return Err(GroupError::Foreign);
        }
        let [t0, t1, t2, t3, number @ ..] = head.iv;
        let start = u32::from_be_bytes([t0, t1, t2, t3]);
        if u32::from_be_bytes(number) != head.sequence {
            return Err(OpenError::Inauthentic.into());
        }
        let wall = seconds(now.wall_ms).ok_or(GroupError::Stale)?;
        self.heed_clock(wall);
        if u64::from(wall.abs_diff(start)) > TOLERANCE.as_secs() || start < self.swept {
            return Err(GroupError::Stale);
        }
        let id = (start, from, head.spi);
        if let Some(sender) = self.senders.get_mut(&id) {
            return Ok(sender.opener.open(head, packet)?);
        }
        self.open_first(id, head, packet, wall, now)
    }

    /// The first packet of a start: whoever made it has one of the keys, or it changes nothing.
    fn open_first(
        &mut self,
        id: Start,
        head: &Head,
        packet: &mut [u8],
        wall: u32,
        now: Now,
    ) -> Result<Range<usize>, GroupError> {
        if self.senders.len() >= MAX_SENDERS {
            self.sweep(wall);
        }
        if self.senders.len() >= MAX_SENDERS {
            return Err(GroupError::Full);
        }
        let charge = self.expected.charge(id, wall, now.mono);
        let mut made = match charge {
            Charge::Nothing => return Err(GroupError::Flood),
            Charge::Candidate => Vec::new(),
            Charge::Known | Charge::Stranger => self.openers(id),
        };
        if charge == Charge::Known {
            self.expected.keep(id, std::mem::take(&mut made));
        }
        let openers = match charge {
            Charge::Stranger => &mut made,
            _ => self.expected.candidate(id).ok_or(GroupError::Flood)?,
        };
        let (at, opened) = try_all(openers, head, packet)?;
        let (opener, key) = (openers.swap_remove(at), self.keys.get(at));
        if let Some((_, key)) = key {
            self.senders.insert(id, Sender { opener, key: key.clone() });
            self.expected.prove(id, wall);
        }
        Ok(opened?)
    }

    /// What opens packets of a start, for each key.
    fn openers(&self, (start, from, spi): Start) -> Vec<Opener> {
        let opener = |(suite, key): &(Suite, Secret)| {
            let sa = sender_key(key, from, spi, start);
            Opener::new(*suite, &sa, Numbering::Group(start))
        };
        self.keys.iter().map(opener).collect()
    }

    /// Forgets senders whose start is too old to be accepted again, even if the clock is set back.
    /// Looks at those only, and at one more: anybody can send what makes a full table be swept.
    fn sweep(&mut self, wall: u32) {
        let oldest = wall.saturating_sub(tolerance());
        self.swept = self.swept.max(oldest);
        let before = self.senders.len();
        while let Some(first) = self.senders.first_entry().filter(|e| e.key().0 < self.swept) {
            first.remove();
        }
        if self.senders.len() < before {
            self.forget_unproved();
        }
    }

    /// The clock of this host may once have been far ahead, and have been set right since: what was
    /// swept then, and who is known from then, must not keep everybody out until that time has come.
    fn heed_clock(&mut self, wall: u32) {
        let latest = wall.saturating_add(tolerance());
        if self.swept > latest {
            // Nothing that was heard lately is remembered: only starts from now on are new for sure.
            self.swept = wall;
        }
        if self.senders.len() < MAX_SENDERS {
            return;
        }
        let before = self.senders.len();
        while let Some(last) = self.senders.last_entry().filter(|e| e.key().0 > latest) {
            last.remove();
        }
        if self.senders.len() < before {
            self.forget_unproved();
        }
    }
}

/// [`TOLERANCE`], in seconds.
fn tolerance() -> u32 {
    u32::try_from(TOLERANCE.as_secs()).unwrap_or(u32::MAX)
}

/// Which of the openers accepts a packet as authentic, and what it opens.
fn try_all(
    openers: &mut [Opener],
    head: &Head,
    packet: &mut [u8],
) -> Result<(usize, Result<Range<usize>, OpenError>), OpenError> {
    // Opening scrambles what it refuses; the copy is for the next key.
    let copy = if openers.len() > 1 { packet.to_vec() } else { Vec::new() };
    for (at, opener) in openers.iter_mut().enumerate() {
        if at > 0 {
            packet.copy_from_slice(&copy);
        }
        match opener.open(head, packet) {
            Err(OpenError::Inauthentic) => {}
            // Number 0, which no window takes: nobody has proved anything.
            Err(OpenError::Replay) => return Err(OpenError::Replay),
            opened => return Ok((at, opened)),
        }
    }
    Err(OpenError::Inauthentic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;
    use crate::time::Instant;
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
        receiver.expected.unlimited();
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
        open_at(receiver, from, packet, wall_ms, wall_ms.saturating_sub(NOW))
    }

    /// The same; the monotonic clock shows something else.
    fn open_at(
        receiver: &mut GroupReceiver,
        from: SocketAddr,
        packet: &[u8],
        wall_ms: u64,
        mono_ms: u64,
    ) -> Result<Vec<u8>, GroupError> {
        let mut packet = packet.to_vec();
        let head = Head::parse(&packet).unwrap();
        let mono = Instant::from_millis(1_000_000 + mono_ms);
        let range = receiver.open(vnet(), from, &head, &mut packet, Now { mono, wall_ms })?;
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

    /// Packets in the name of senders that nobody knows, as many as come.
    fn flood(r: &mut GroupReceiver, from: u8, wall_ms: u64) -> usize {
        let mut forged = seal(&mut sender(5), b"x", wall_ms);
        *forged.last_mut().unwrap() ^= 1;
        let refused = (0..5000_u16).map(|port| {
            let from = SocketAddr::from(([198, 51, 100, from], port));
            open(r, from, &forged, wall_ms)
        });
        refused.filter(|refused| *refused == Err(GroupError::Flood)).count()
    }

    #[test]
    fn a_flood_of_strangers_costs_no_more_keys_than_its_budget_and_silences_nobody_who_is_known() {
        let (mut s, mut r) = (sender(5), receiver(&[2, 1]));
        r.expected = Senders::default();
        assert!(open(&mut r, at(1), &seal(&mut s, b"first", NOW), NOW).is_ok());
        for second in 1..100 {
            let now = NOW + 1000 * second;
            assert!(flood(&mut r, 7, now) >= 3999, "second {second}");
            // A start every half minute, and its clock is behind ours by nothing that matters.
            let packet = seal(&mut s, b"known", now);
            assert_eq!(open(&mut r, at(1), &packet, now).unwrap(), b"known", "second {second}");
        }
        let stranger = seal(&mut sender(5), b"x", NOW + 99_000);
        assert_eq!(open(&mut r, at(2), &stranger, NOW + 99_000), Err(GroupError::Flood));
    }

    /// It began while others were heard in its place.
    #[test]
    fn a_sender_whose_first_start_was_heard_late_is_known_all_the_same() {
        let (mut s, mut r) = (sender(5), receiver(&[1]));
        r.expected = Senders::default();
        seal(&mut s, b"lost", NOW);
        let late = NOW + 28_000;
        assert!(open(&mut r, at(1), &seal(&mut s, b"x", late), late).is_ok());
        for second in [31, 65, 99] {
            let now = NOW + 1000 * second;
            flood(&mut r, 7, now);
            assert!(open(&mut r, at(1), &seal(&mut s, b"x", now), now).is_ok(), "{second}");
        }
    }

    /// Who sees the packets of a sender can forge its address, its SPI and any start.
    #[test]
    fn a_flood_in_the_name_of_a_known_sender_does_not_silence_it() {
        let (mut s, mut r) = (sender(5), receiver(&[2, 1]));
        r.expected = Senders::default();
        assert!(open(&mut r, at(1), &seal(&mut s, b"first", NOW), NOW).is_ok());
        for second in 1..100 {
            let now = NOW + 1000 * second;
            for start in NOW / 1000 - 80..NOW / 1000 + 190 {
                let mut forged = seal(&mut sender(5), b"x", start * 1000);
                *forged.last_mut().unwrap() ^= 1;
                assert!(open(&mut r, at(1), &forged, now).is_err());
            }
            assert!(r.expected.candidates_len() <= 70);
            let packet = seal(&mut s, b"known", now);
            assert_eq!(open(&mut r, at(1), &packet, now).unwrap(), b"known", "second {second}");
        }
    }

    /// Senders that start while the clock of this host, or theirs, is far ahead.
    #[test]
    fn a_clock_that_was_far_ahead_keeps_nobody_out_once_it_is_right() {
        const YEAR: u64 = 365 * 24 * 3_600_000;
        let mut r = receiver(&[1]);
        for n in 0..MAX_SENDERS + 10 {
            let from = SocketAddr::from(([192, 0, 2, 1], u16::try_from(n + 1).unwrap()));
            let mut s = GroupSender::new(key(1), Suite::AesGcm, vnet(), from, 1);
            let _ = open_at(&mut r, from, &seal(&mut s, b"x", NOW + YEAR), NOW + YEAR, 0);
        }
        assert!(r.swept > seconds(NOW).unwrap() + tolerance());
        let (recorded, mut s) = (seal(&mut sender(6), b"x", NOW - 1000), sender(5));
        let packet = seal(&mut s, b"right", NOW);
        assert_eq!(open_at(&mut r, at(1), &packet, NOW, 10_000).unwrap(), b"right");
        let old = open_at(&mut r, at(1), &recorded, NOW, 10_000);
        assert_eq!(old, Err(GroupError::Stale), "may be old");
        // The same sender, ahead for two days, then right again.
        for n in 0..5760 {
            seal(&mut s, b"x", NOW + YEAR + 30_000 * n);
        }
        let packet = seal(&mut s, b"right", NOW + 60_000);
        assert_eq!(open(&mut r, at(1), &packet, NOW + 60_000).unwrap(), b"right");
    }
}
