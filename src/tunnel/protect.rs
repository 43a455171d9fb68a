//! Sealing and opening of a queue pair's datagrams, on a secured vnet.
//!
//! Out: the worker stages datagrams as on any vnet, only so short that they fit sealed
//! ([`crate::wire::esp::payload_room`]), and with room around each ([`crate::offload::envelope`]); before
//! a batch leaves, each is sealed where it stands. A message stays one message (UDP_SEGMENT): datagrams
//! of one size are of one size when sealed. In: each datagram is opened where it was received.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{VifCounter, VifCounters};
use crate::offload::envelope::Envelope;
use crate::policy::{Level, Policy};
use crate::security::inbound::{Inbound, Refusal};
use crate::security::outbound::{Outbound, SealError};
use crate::time::{Instant, Now};
use crate::tunnel::outgoing::{Losses, Staged, Stager};
use crate::underlay::Port;
use crate::wire::VnetId;
use crate::wire::encap::Kind;
use crate::wire::esp::{HEAD_LEN, Head, sealed_len};

/// What protects a queue pair's datagrams.
#[derive(Debug)]
pub struct Protection {
    policy: Policy,
    inbound: Arc<Inbound>,
    outbound: Outbound,
    /// What the wall clock (milliseconds since 1970) is ahead of the monotonic one.
    wall_ahead: u64,
    /// When strangers are heeded anew.
    forget_at: Instant,
    /// Frames that were not sealed.
    losses: Losses,
}

/// Hosts of unknown sessions that varpd is told of come in turns this long: what anybody can send
/// must not keep varpd busy.
const STRANGERS_TURN: Duration = Duration::from_millis(100);

impl Protection {
    /// For a queue pair; `inbound` is shared by those of the vif.
    pub fn new(inbound: Arc<Inbound>) -> Self {
        let (policy, outbound, losses) = (inbound.policy(), Outbound::default(), Losses::default());
        let forget_at = Instant::ZERO;
        Self { policy, inbound, outbound, wall_ahead: 0, forget_at, losses }
    }

    /// The protections of all queue pairs of a vif; none on a vnet that is not secured.
    pub fn of_vif(vnet: VnetId, policy: impl Into<Policy>) -> impl FnMut() -> Option<Self> {
        let policy = policy.into();
        let inbound = policy.is_secured().then(|| Arc::new(Inbound::new(vnet, policy)));
        move || inbound.clone().map(Self::new)
    }

    /// What is sent under, and what is accepted.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The policy from now on. Associations of policies that are not accepted any more end.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.inbound.set_policy(policy);
        self.outbound.retain(policy);
    }

    /// Whether what goes to a care-of address is sealed. While the policy changes, and plain datagrams are
    /// accepted, that waits for a key.
    #[inline]
    pub fn seals_to(&self, to: SocketAddr) -> bool {
        self.policy.sent().is_secured()
            && (!self.policy.accepts(Level::None) || self.outbound.has(to))
    }

    /// Whether there is a key for a care-of address.
    pub fn has_key(&self, to: SocketAddr) -> bool {
        self.outbound.has(to)
    }

    /// Whether group frames are sealed, likewise.
    #[inline]
    pub fn seals_group(&self) -> bool {
        self.policy.sent().is_secured()
            && (!self.policy.accepts(Level::None) || self.outbound.has_group())
    }

    /// Associations of what is received.
    pub fn inbound(&self) -> &Arc<Inbound> {
        &self.inbound
    }

    /// Associations of what is sent.
    pub fn outbound_mut(&mut self) -> &mut Outbound {
        &mut self.outbound
    }

    /// All sessions are over.
    pub fn remove_all(&mut self) {
        self.inbound.remove_all();
        self.outbound.remove_all();
    }

    /// The vif is at another address: keys derive from it, so all that were told are over. What has come
    /// from the group is remembered.
    pub fn move_away(&mut self) {
        self.remove_all();
        self.outbound.remove_group();
    }

    /// All keys are over.
    pub fn drop_keys(&mut self) {
        self.move_away();
        self.inbound.remove_group();
    }

    /// The sessions have come to their end; returns how many keys those were, of what is received and sent.
    pub fn end_sessions(&mut self) -> usize {
        self.inbound.end_all() + self.outbound.end_all()
    }

    /// What the clocks say, for group traffic; told as often as they are read anyway.
    pub fn set_clock(&mut self, now: Now) {
        self.wall_ahead = now.wall_ms.wrapping_sub(now.mono.as_micros() / 1000);
        if now.mono >= self.forget_at {
            self.forget_at = now.mono + STRANGERS_TURN;
            self.inbound.forget_strangers();
        }
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

    /// Seals all that is staged, where it is; a message with a datagram that can't be sealed is left out.
    /// Then `refused` gets the name of the drop, and how many frames are lost.
    pub fn seal(
        &mut self,
        stager: &mut Stager,
        now: Instant,
        mut refused: impl FnMut(&Staged, VifCounter, u64),
    ) {
        let wall_ms = self.wall_ms(now);
        let Self { outbound, losses, .. } = self;
        stager.seal(
            |route, packets| {
                if route.is_group {
                    outbound.seal_group(packets, wall_ms)
                } else {
                    outbound.seal_all(route.to, packets)
                }
            },
            |staged, sealed| match sealed {
                Ok(()) => losses.sent(staged),
                Err(error) => refused(staged, unsealed(error), losses.lost(staged)),
            },
        );
    }

    /// Seals a single datagram to a vif; `None` if there is no key for it.
    pub fn seal_one(&mut self, to: SocketAddr, datagram: &[u8]) -> Option<Vec<u8>> {
        let mut packet = vec![0; sealed_len(datagram.len())];
        packet.get_mut(HEAD_LEN..HEAD_LEN + datagram.len())?.copy_from_slice(datagram);
        self.outbound.seal(to, &mut packet, datagram.len()).ok()?;
        Some(packet)
    }

    /// Seals a single datagram to the group.
    ///
    /// # Errors
    /// The name of the drop: there is no key, or it has no numbers left.
    pub fn seal_one_to_group(
        &mut self,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Vec<u8>, VifCounter> {
        let mut packet = vec![0; sealed_len(datagram.len())];
        if let Some(place) = Envelope::Sealed.place(&mut packet, 0, datagram.len()) {
            place.copy_from_slice(datagram);
        }
        let wall_ms = self.wall_ms(now);
        let packets = std::iter::once(packet.as_mut_slice());
        self.outbound.seal_group(packets, wall_ms).map_err(unsealed)?;
        Ok(packet)
    }

    /// Opens in place a datagram to a vif that was sealed but did not leave; returns where in it the
    /// one is that was sealed.
    pub fn reopen(&mut self, to: SocketAddr, packet: &mut [u8]) -> Option<Range<usize>> {
        self.outbound.reopen(to, packet)
    }
}

/// The name of the drop of what can't be sealed.
fn unsealed(error: SealError) -> VifCounter {
    match error {
        SealError::NoKey => VifCounter::tx_drop_no_key,
        SealError::Exhausted => VifCounter::tx_drop_key_worn,
        SealError::Ended => VifCounter::tx_drop_key_ended,
    }
}

/// What opening datagrams needs of a protection.
#[derive(Clone, Copy, Debug)]
pub struct Opening<'a> {
    is_closed: bool,
    policy: Policy,
    inbound: &'a Inbound,
    now: Now,
}

impl Protection {
    /// For a batch.
    pub fn opening(&self, now: Instant) -> Opening<'_> {
        let wall_ms = self.wall_ms(now);
        let (policy, inbound, now) = (self.policy, &*self.inbound, Now { mono: now, wall_ms });
        Opening { is_closed: false, policy, inbound, now }
    }
}

impl Opening<'_> {
    /// For a halted NIC, which has no keys: all that comes is dropped, and asks for no sessions.
    #[must_use]
    pub fn closed(self, is_closed: bool) -> Self {
        Self { is_closed, ..self }
    }

    /// Whether datagrams that are not sealed are accepted.
    pub fn takes_plain(&self) -> bool {
        self.policy.accepts(Level::None)
    }

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
        if self.is_closed {
            let datagrams = bytes.chunks(segment).count().max(1);
            return counters.add(VifCounter::rx_drop_policy, datagrams as u64);
        }
        if bytes.is_empty() {
            counters.inc(VifCounter::rx_drop_truncated);
        }
        let packets = bytes.chunks_mut(segment).zip((0..).step_by(segment));
        let mut done = |at: usize, inner: Result<Range<usize>, VifCounter>| match inner {
            Ok(inner) => opened.push(at + inner.start..at + inner.end),
            Err(counter) => counters.inc(counter),
        };
        if self.policy.is_changing() {
            return packets.for_each(|(packet, at)| {
                done(at, self.open_changing(port, from, packet, counters));
            });
        }
        if port == Port::Group {
            return packets.for_each(|(packet, at)| done(at, self.open(port, from, packet)));
        }
        let packets = packets.filter_map(|(packet, at)| match check_kind(packet) {
            Ok(()) => Some((at, packet)),
            Err(counter) => {
                counters.inc(counter);
                None
            }
        });
        self.inbound.open_all(from, packets, |at, inner| done(at, inner.map_err(unopened)));
    }

    /// The same as [`Opening::open`] while the vnet's policy changes: what was not sealed may be accepted as it is.
    /// Counts what came under another policy than this host sends under.
    fn open_changing(
        &self,
        port: Port,
        from: SocketAddr,
        datagram: &mut [u8],
        counters: &VifCounters,
    ) -> Result<Range<usize>, VifCounter> {
        let is_plain = Kind::of(datagram) == Kind::Plain;
        let head = Head::parse(datagram).ok().filter(|_| !is_plain);
        let inner = match is_plain && self.takes_plain() {
            true => 0..datagram.len(),
            false => self.open(port, from, datagram)?,
        };
        let level = match head {
            Some(head) if port == Port::Group => self.inbound.group_level_of(from, &head),
            Some(head) => self.inbound.level_of(&head),
            None => Some(Level::None),
        };
        if level != Some(self.policy.sent()) {
            counters.inc(VifCounter::rx_other_policy);
        }
        Ok(inner)
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
        check_kind(datagram)?;
        let opened = match port {
            Port::Own => self.inbound.open(from, datagram),
            Port::Group => self.inbound.open_group(from, datagram, self.now),
        };
        opened.map_err(unopened)
    }
}

/// Whether a datagram may be one that was sealed.
fn check_kind(datagram: &[u8]) -> Result<(), VifCounter> {
    match Kind::of(datagram) {
        Kind::Protected => Ok(()),
        Kind::Plain => Err(VifCounter::rx_drop_plaintext),
        Kind::Unknown if datagram.is_empty() => Err(VifCounter::rx_drop_truncated),
        Kind::Unknown => Err(VifCounter::rx_drop_version),
    }
}

/// The name of the drop of what is not accepted.
fn unopened(refusal: Refusal) -> VifCounter {
    match refusal {
        Refusal::Spi => VifCounter::rx_drop_spi,
        Refusal::Inauthentic => VifCounter::rx_drop_auth,
        Refusal::Replay => VifCounter::rx_drop_replay,
        Refusal::Stale => VifCounter::rx_drop_stale,
        Refusal::Malformed => VifCounter::rx_drop_next_header,
        Refusal::Full => VifCounter::rx_drop_senders,
        Refusal::Flood => VifCounter::rx_drop_flood,
        Refusal::Truncated => VifCounter::rx_drop_truncated,
        Refusal::Ended => VifCounter::rx_drop_key_ended,
    }
}

#[cfg(test)]
pub(crate) mod tests;
