//! Sealing and opening of a queue pair's datagrams, on a secured vnet.
//!
//! Out: the worker stages datagrams as on any vnet, only so short that they fit sealed
//! ([`crate::wire::esp::payload_room`]); before a batch leaves, each is copied to its place in a second
//! buffer and sealed there. A message stays one message (UDP_SEGMENT): datagrams of one size are of
//! one size when sealed. In: each datagram is opened where it was received.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use super::outgoing::{Batch, Staged, Stager};
use crate::metrics::{VifCounter, VifCounters};
use crate::security::Level;
use crate::security::inbound::{Inbound, Refusal};
use crate::security::outbound::{Outbound, SealError};
use crate::sys::iovec::{Gather, IoVec};
use crate::sys::mmsg::{MAX_MESSAGE_LEN, MAX_SEGMENTS};
use crate::time::{Instant, Now};
use crate::underlay::Port;
use crate::wire::VnetId;
use crate::wire::encap::Kind;
use crate::wire::esp::{HEAD_LEN, sealed_len};

/// What protects a queue pair's datagrams.
#[derive(Debug)]
pub struct Protection {
    inbound: Arc<Inbound>,
    outbound: Outbound,
    /// Sealed datagrams that are to leave.
    sealed: Sealed,
    /// What the wall clock (milliseconds since 1970) is ahead of the monotonic one.
    wall_ahead: u64,
}

/// What was sealed: messages as a stager has them, their bytes in one piece each.
#[derive(Debug, Default)]
pub struct Sealed {
    /// Never shrinks, so that it need not be cleared.
    buffer: Vec<u8>,
    end: usize,
    staged: Vec<Staged>,
    /// Where in the buffer each is.
    ranges: Vec<Range<usize>>,
}

impl Sealed {
    /// What is ready to be sent.
    pub fn staged(&self) -> &[Staged] {
        &self.staged
    }

    /// The bytes of the n-th message.
    pub fn part(&self, n: usize) -> IoVec<'_> {
        let range = self.ranges.get(n).cloned().unwrap_or_default();
        IoVec::from_slice(self.buffer.get(range).unwrap_or_default())
    }

    fn truncate(&mut self, messages: usize, end: usize) {
        self.staged.truncate(messages);
        self.ranges.truncate(messages);
        self.end = end;
    }

    /// Room for a packet that protects so many bytes.
    fn place(&mut self, payload_len: usize) -> &mut [u8] {
        let start = self.end;
        self.end += sealed_len(payload_len);
        if self.buffer.len() < self.end {
            self.buffer.resize(self.end, 0);
        }
        self.buffer.get_mut(start..self.end).unwrap_or_default()
    }
}

impl Protection {
    /// For a queue pair; `inbound` is shared by those of the vif.
    pub fn new(inbound: Arc<Inbound>) -> Self {
        let (outbound, sealed) = (Outbound::default(), Sealed::default());
        Self { inbound, outbound, sealed, wall_ahead: 0 }
    }

    /// The protections of all queue pairs of a vif; none on a vnet that is not secured.
    pub fn of_vif(vnet: VnetId, level: Level) -> impl FnMut() -> Option<Self> {
        let inbound = level.is_secured().then(|| Arc::new(Inbound::new(vnet, level)));
        move || inbound.clone().map(Self::new)
    }

    /// Associations of what is received.
    pub fn inbound(&self) -> &Arc<Inbound> {
        &self.inbound
    }

    /// Associations of what is sent.
    pub fn outbound_mut(&mut self) -> &mut Outbound {
        &mut self.outbound
    }

    /// What the clocks say, for group traffic; told as often as they are read anyway.
    pub fn set_clock(&mut self, now: Now) {
        self.wall_ahead = now.wall_ms.wrapping_sub(now.mono.as_micros() / 1000);
    }

    fn wall_ms(&self, now: Instant) -> u64 {
        self.wall_ahead.wrapping_add(now.as_micros() / 1000)
    }

    /// Whether varpd has something to be told.
    pub fn has_needs(&self) -> bool {
        self.outbound.has_worn() || self.inbound.has_strangers()
    }

    /// Hosts with which another session is needed: addresses of vifs there.
    pub fn take_needs(&mut self) -> Vec<SocketAddr> {
        let mut needs = self.outbound.take_worn();
        needs.extend(self.inbound.take_strangers());
        needs
    }

    /// Seals all that is staged of a batch; what can't be sealed is counted and left out. With
    /// `short_ends` no message may have datagrams of one size only (see [`crate::underlay::probe`]).
    pub fn seal(
        &mut self,
        stager: &Stager,
        batch: &Batch<'_>,
        short_ends: bool,
        counters: &VifCounters,
        now: Instant,
    ) -> &Sealed {
        let wall_ms = self.wall_ms(now);
        let mut sealed = std::mem::take(&mut self.sealed);
        sealed.truncate(0, 0);
        let mut parts = Vec::new();
        for staged in stager.staged() {
            parts.clear();
            stager.parts(staged, batch, &mut parts);
            let (messages, end) = (sealed.staged.len(), sealed.end);
            if let Err(error) =
                self.seal_message(staged, &parts, (short_ends, wall_ms), &mut sealed)
            {
                // A message with a datagram that can't leave does not leave.
                sealed.truncate(messages, end);
                let counter = match error {
                    SealError::NoKey => VifCounter::tx_drop_no_key,
                    SealError::Exhausted => VifCounter::tx_drop_key_worn,
                };
                counters.add(counter, staged.frames.max(1));
            }
        }
        self.sealed = sealed;
        &self.sealed
    }

    /// Seals a single datagram to a vif; `None` if there is no key for it.
    pub fn seal_one(&mut self, to: SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
        let mut packet = vec![0; sealed_len(datagram.len())];
        packet.get_mut(HEAD_LEN..HEAD_LEN + datagram.len())?.copy_from_slice(datagram);
        self.outbound.seal(to, &mut packet, datagram.len()).ok()?;
        Some(packet)
    }

    fn seal_message(
        &mut self,
        staged: &Staged,
        parts: &[IoVec<'_>],
        (short_ends, wall_ms): (bool, u64),
        sealed: &mut Sealed,
    ) -> Result<(), SealError> {
        let mut left: usize = parts.iter().map(IoVec::len).sum();
        let size = if staged.segment == 0 { left } else { staged.segment.into() };
        let sealed_size = sealed_len(size);
        // What fitted one message may be too long for one when it is sealed.
        let mut most = (MAX_MESSAGE_LEN / sealed_size).clamp(1, MAX_SEGMENTS);
        let last = left.saturating_sub(size * staged.datagrams.saturating_sub(1));
        if short_ends && (staged.datagrams > most || sealed_len(last) == sealed_size) {
            most = 1;
        }
        let mut bytes = Gather::new(parts, 0);
        for mut message in staged.split(most) {
            let start = sealed.end;
            for _ in 0..message.datagrams {
                let len = size.min(left);
                left -= len;
                let packet = sealed.place(len);
                if let Some(place) = packet.get_mut(HEAD_LEN..HEAD_LEN + len) {
                    bytes.copy_to(place);
                }
                if message.route.is_group {
                    self.outbound.seal_group(packet, len, wall_ms)?;
                } else {
                    self.outbound.seal(message.route.to, packet, len)?;
                }
            }
            if message.datagrams > 1 {
                message.segment = u16::try_from(sealed_size).unwrap_or(0);
            }
            sealed.staged.push(message);
            sealed.ranges.push(start..sealed.end);
        }
        Ok(())
    }
}

/// What opening datagrams needs of a protection.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    inbound: &'a Inbound,
    wall_ms: u64,
}

impl Protection {
    /// For a batch.
    pub fn opening(&self, now: Instant) -> Opening<'_> {
        Opening { inbound: &self.inbound, wall_ms: self.wall_ms(now) }
    }
}

impl Opening<'_> {
    /// Opens the datagrams of a received message in place: its sender, bytes, and the length of each
    /// datagram but the last. Leaves in `opened` where in it the datagrams are that were sealed; what
    /// is not accepted is counted.
    pub fn open_message(
        &self,
        port: Port,
        own: SocketAddr,
        (from, bytes, segment): (SocketAddr, &mut [u8], usize),
        opened: &mut Vec<Range<usize>>,
        counters: &VifCounters,
    ) {
        opened.clear();
        if port == Port::Group && from == own {
            // One of our own that came back: none of its datagrams is opened.
            let datagrams = bytes.chunks(segment).count().max(1);
            return counters.add(VifCounter::rx_drop_own, datagrams as u64);
        }
        if bytes.is_empty() {
            counters.inc(VifCounter::rx_drop_truncated);
        }
        let mut at = 0;
        for datagram in bytes.chunks_mut(segment) {
            let len = datagram.len();
            match self.open(port, from, datagram) {
                Ok(inner) => opened.push(at + inner.start..at + inner.end),
                Err(counter) => counters.inc(counter),
            }
            at += len;
        }
    }

    /// Opens a datagram in place; returns where in it the datagram is that was sealed.
    ///
    /// # Errors
    /// The name of the drop.
    pub fn open(
        &self,
        port: Port,
        from: SocketAddr,
        datagram: &mut [u8],
    ) -> Result<Range<usize>, VifCounter> {
        match Kind::of(datagram) {
            Kind::Protected => {}
            Kind::Plain => return Err(VifCounter::rx_drop_plaintext),
            Kind::Unknown if datagram.is_empty() => return Err(VifCounter::rx_drop_truncated),
            Kind::Unknown => return Err(VifCounter::rx_drop_version),
        }
        let opened = match port {
            Port::Own => self.inbound.open(from, datagram),
            Port::Group => self.inbound.open_group(from, datagram, self.wall_ms),
        };
        opened.map_err(|refusal| match refusal {
            Refusal::Spi => VifCounter::rx_drop_spi,
            Refusal::Inauthentic => VifCounter::rx_drop_auth,
            Refusal::Replay => VifCounter::rx_drop_replay,
            Refusal::Stale => VifCounter::rx_drop_stale,
            Refusal::Malformed => VifCounter::rx_drop_next_header,
            Refusal::Full => VifCounter::rx_drop_senders,
            Refusal::Truncated => VifCounter::rx_drop_truncated,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::Suite;
    use crate::security::keys::Secret;
    use crate::security::sadb::sender_key;
    use crate::vif::outgoing::Route;
    use crate::wire::Capabilities;
    use crate::wire::esp::Spi;
    use std::time::Duration;

    const NOW: u64 = 1_767_225_600_000;

    fn vnet() -> VnetId {
        VnetId::new(42).unwrap()
    }

    fn at(host: u8) -> SocketAddr {
        ([192, 0, 2, host], 4000).into()
    }

    /// A sender at host 1 and a receiver at host 2 with keys for each other.
    fn pair() -> (Protection, Protection) {
        let mut protection = Protection::of_vif(vnet(), Level::Conf);
        let mut receiver = Protection::of_vif(vnet(), Level::Conf);
        let (mut one, two) = (protection().unwrap(), receiver().unwrap());
        let (secret, hour) = (Secret::new([5; 32]), Duration::from_secs(3600));
        let (spi, key) = (Spi::of(7, 3), sender_key(&secret, 3));
        one.outbound.insert(at(2), spi, Suite::AesGcm, &key, hour, Instant::ZERO);
        two.inbound.insert(7, Suite::AesGcm, secret, hour, Instant::ZERO);
        let group = Secret::new([6; 32]);
        one.outbound.set_group(group.clone(), Suite::AesGcm, vnet(), at(1), 9);
        two.inbound.set_group(vec![(Suite::AesGcm, group)]);
        (one, two)
    }

    fn staged(to: SocketAddr, is_group: bool, len: usize, segment: u16) -> Staged {
        let capabilities = Capabilities::NONE;
        let route = Route { to, is_group, is_redirected: false, capabilities };
        let datagrams = if segment == 0 { 1 } else { len.div_ceil(segment.into()) };
        let mut staged = Staged::nothing(route);
        (staged.datagrams, staged.segment) = (datagrams, segment);
        (staged.frames, staged.frame_bytes) = (2, 9);
        staged
    }

    fn seal(one: &mut Protection, staged: &Staged, bytes: &[u8], short_ends: bool) -> Sealed {
        let mut sealed = Sealed::default();
        let half = bytes.len() / 2;
        let parts = [&bytes[..half], &bytes[half..]].map(IoVec::from_slice);
        one.seal_message(staged, &parts, (short_ends, NOW), &mut sealed).unwrap();
        sealed
    }

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n ^ n >> 8).to_be_bytes()[7]).collect()
    }

    /// Opens all that was sealed, and puts it together again.
    fn open(two: &Protection, sealed: &Sealed, port: Port) -> Vec<u8> {
        let mut whole = Vec::new();
        for (n, staged) in sealed.staged().iter().enumerate() {
            let mut bytes = Vec::new();
            sealed.part(n).append_to(&mut bytes);
            assert!(bytes.len() <= MAX_MESSAGE_LEN && staged.datagrams <= MAX_SEGMENTS);
            let size = if staged.segment == 0 { bytes.len() } else { staged.segment.into() };
            assert_eq!(bytes.chunks(size).count(), staged.datagrams);
            let mut opened = Vec::new();
            let opening = Opening { inbound: &two.inbound, wall_ms: NOW };
            let counters = VifCounters::default();
            let received = (at(1), &mut bytes[..], size);
            opening.open_message(port, at(2), received, &mut opened, &counters);
            assert_eq!(opened.len(), staged.datagrams);
            opened.iter().for_each(|inner| whole.extend(&bytes[inner.clone()]));
        }
        whole
    }

    #[test]
    fn a_message_stays_one_unless_it_grows_too_long() {
        let (mut one, two) = pair();
        let cases =
            [(100, 0, 1), (3000, 1000, 1), (2999, 1000, 1), (65_400, 1450, 2), (64 * 60, 60, 1)];
        for (len, segment, messages) in cases {
            let whole = bytes(len);
            let sealed = seal(&mut one, &staged(at(2), false, len, segment), &whole, false);
            assert_eq!(sealed.staged().len(), messages, "{len} in {segment}");
            assert!(open(&two, &sealed, Port::Own) == whole, "{len} in {segment}");
            let frames: u64 = sealed.staged().iter().map(|s| s.frames).sum();
            assert_eq!(frames, 2, "counted once");
        }
    }

    #[test]
    fn a_short_end_is_still_shorter_when_sealed() {
        let (mut one, two) = pair();
        // The last of the first is one byte shorter, but as long when it is padded.
        for (len, segment, messages) in [(3005, 1002, 3), (2500, 1000, 1), (65_000, 1450, 45)] {
            let whole = bytes(len);
            let sealed = seal(&mut one, &staged(at(2), false, len, segment), &whole, true);
            assert_eq!(sealed.staged().len(), messages, "{len} in {segment}");
            assert!(open(&two, &sealed, Port::Own) == whole);
        }
    }

    #[test]
    fn group_frames_have_keys_of_their_own() {
        let (mut one, two) = pair();
        let whole = bytes(100);
        let sealed = seal(&mut one, &staged(at(9), true, 100, 0), &whole, false);
        assert!(open(&two, &sealed, Port::Group) == whole);
        let mut again = Vec::new();
        sealed.part(0).append_to(&mut again);
        let opening = Opening { inbound: &two.inbound, wall_ms: NOW };
        let own = opening.open(Port::Own, at(1), &mut again.clone());
        assert_eq!(own, Err(VifCounter::rx_drop_spi));
        let replayed = opening.open(Port::Group, at(1), &mut again);
        assert_eq!(replayed, Err(VifCounter::rx_drop_replay));
    }

    #[test]
    fn the_wall_clock_goes_on_between_looks_at_it() {
        let (mut one, _) = pair();
        one.set_clock(Now { mono: Instant::from_millis(5000), wall_ms: NOW });
        assert_eq!(one.wall_ms(Instant::from_millis(7000)), NOW + 2000);
        one.set_clock(Now { mono: Instant::from_millis(8000), wall_ms: NOW - 9000 });
        assert_eq!(one.wall_ms(Instant::from_millis(8001)), NOW - 8999, "set back");
    }

    #[test]
    fn what_is_not_sealed_has_a_name() {
        let (mut one, two) = pair();
        let mut sealed = Sealed::default();
        let whole = bytes(100);
        let parts = [IoVec::from_slice(&whole)];
        let nowhere =
            one.seal_message(&staged(at(3), false, 100, 0), &parts, (false, NOW), &mut sealed);
        assert_eq!(nowhere, Err(SealError::NoKey));
        let opening = Opening { inbound: &two.inbound, wall_ms: NOW };
        let open = |bytes: &[u8]| opening.open(Port::Own, at(1), &mut bytes.to_vec());
        assert_eq!(open(&[0x40; 60]), Err(VifCounter::rx_drop_plaintext));
        assert_eq!(open(&[0x56; 60]), Err(VifCounter::rx_drop_version));
        assert_eq!(open(&[]), Err(VifCounter::rx_drop_truncated));
        assert_eq!(open(&[0x80; 30]), Err(VifCounter::rx_drop_truncated));
        assert_eq!(open(&[0xff; 60]), Err(VifCounter::rx_drop_spi));
        let known = [&Spi::of(7, 3).0.to_be_bytes()[..], &[0, 0, 0, 1], &[9; 52]].concat();
        assert_eq!(open(&known), Err(VifCounter::rx_drop_auth));
        assert!(Protection::of_vif(vnet(), Level::None)().is_none());
    }
}
