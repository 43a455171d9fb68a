//! A vif's security associations for what it receives, shared by its queue pairs.
//!
//! varpd hands in one key per session with another host. The keys of that host's senders follow from
//! it ([`super::sadb::sender_key`]), so an association comes to be with its first authentic packet;
//! forged ones leave nothing behind. The windows are shared too: whichever queue pair a replay is
//! steered to, it is known there.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::esp::{Numbering, OpenError, Opener};
use super::group::{GroupError, GroupReceiver};
use super::keys::Secret;
use super::sadb::sender_key;
use super::{Level, Suite};
use crate::time::Instant;
use crate::wire::VnetId;
use crate::wire::esp::{Head, Spi};

/// Sessions at most.
pub const MAX_SESSIONS: usize = 8192;
/// Associations at most.
pub const MAX_ASSOCIATIONS: usize = 16_384;

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No key for its SPI.
    Spi,
    /// Not authentic.
    Inauthentic,
    /// Seen before, or too old.
    Replay,
    /// A group frame of a sender whose clock is elsewhere.
    Stale,
    /// Authentic, but no tunnel datagram.
    Malformed,
    /// No room for another sender.
    Full,
    /// Too short or otherwise no ESP.
    Truncated,
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Replay => Self::Replay,
            OpenError::Inauthentic => Self::Inauthentic,
            OpenError::Malformed => Self::Malformed,
        }
    }
}

impl From<GroupError> for Refusal {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Open(error) => error.into(),
            GroupError::Stale => Self::Stale,
            GroupError::Foreign => Self::Spi,
            GroupError::Full => Self::Full,
        }
    }
}

#[derive(Debug)]
struct Session {
    receiver: Secret,
    suite: Suite,
    ends: Instant,
}

type Association = Arc<Mutex<Opener>>;

#[derive(Debug, Default)]
struct Tables {
    sessions: HashMap<u32, Session>,
    associations: HashMap<Spi, Association>,
    group: GroupReceiver,
    /// Senders of unknown sessions, an address per host.
    strangers: Vec<SocketAddr>,
    /// How many of them varpd has been told.
    strangers_told: usize,
}

/// All of a vif's.
#[derive(Debug)]
pub struct Inbound {
    level: Level,
    vnet: VnetId,
    tables: Mutex<Tables>,
}

/// Most strangers that are remembered, until all are forgotten at once: anybody can pose as one, and
/// must neither fill varpd's queue nor keep it busy.
const MAX_STRANGERS: usize = 16;

impl Inbound {
    /// For a vif on a vnet with this policy.
    pub fn new(vnet: VnetId, level: Level) -> Self {
        Self { level, vnet, tables: Mutex::default() }
    }

    /// The policy.
    pub fn level(&self) -> Level {
        self.level
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        // Poisoned only by a panic, which ends the process.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session's key. One of another policy is not taken.
    pub fn insert(
        &self,
        number: u32,
        suite: Suite,
        receiver: Secret,
        lifetime: Duration,
        now: Instant,
    ) {
        if suite.level() != self.level {
            return;
        }
        let mut tables = self.tables();
        tables.forget(number);
        let over: Vec<u32> =
            tables.sessions.iter().filter(|(_, s)| s.ends <= now).map(|(n, _)| *n).collect();
        over.into_iter().for_each(|number| tables.forget(number));
        if tables.sessions.len() < MAX_SESSIONS {
            let ends = now + lifetime;
            tables.sessions.insert(number, Session { receiver, suite, ends });
        }
    }

    /// A session is over.
    pub fn remove(&self, number: u32) {
        self.tables().forget(number);
    }

    /// The keys of group frames that are accepted; those of another policy are not.
    pub fn set_group(&self, keys: Vec<(Suite, Secret)>) {
        let keys = keys.into_iter().filter(|(suite, _)| suite.level() == self.level).collect();
        self.tables().group.set_keys(keys);
    }

    /// Whether one of the keys of group frames that are accepted is none of these.
    pub fn misses_any(&self, keys: &[Secret]) -> bool {
        self.tables().group.keys().any(|key| !keys.contains(key))
    }

    /// All sessions are over.
    pub fn remove_all(&self) {
        let mut tables = self.tables();
        tables.sessions.clear();
        tables.associations.clear();
    }

    /// Opens a packet that came to the vif's own port; see [`Opener::open`].
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn open(&self, from: SocketAddr, packet: &mut [u8]) -> Result<Range<usize>, Refusal> {
        let mut opened = Err(Refusal::Truncated);
        self.open_all(from, std::iter::once(((), packet)), |(), done| opened = done);
        opened
    }

    /// Opens packets as [`Inbound::open`] does, and tells what became of each; what they come with is
    /// handed through. The association of packets that follow each other is looked for once.
    pub fn open_all<'p, T>(
        &self,
        from: SocketAddr,
        mut packets: impl Iterator<Item = (T, &'p mut [u8])>,
        mut done: impl FnMut(T, Result<Range<usize>, Refusal>),
    ) {
        let mut next = packets.next();
        while let Some((with, packet)) = next.take() {
            let Ok(head) = Head::parse(packet) else {
                done(with, Err(Refusal::Truncated));
                next = packets.next();
                continue;
            };
            let mut tables = self.tables();
            let Some(association) = tables.associations.get(&head.spi).map(Arc::clone) else {
                // Under one lock, or two queue pairs might each make one of it.
                done(with, tables.open_first(from, &head, packet));
                next = packets.next();
                continue;
            };
            drop(tables);
            let mut opener = association.lock().unwrap_or_else(PoisonError::into_inner);
            done(with, opener.open(&head, packet).map_err(Refusal::from));
            next = open_run(&mut opener, head.spi, &mut packets, &mut done);
        }
    }

    /// Opens a packet that came to the group, at a time in milliseconds since 1970.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn open_group(
        &self,
        from: SocketAddr,
        packet: &mut [u8],
        wall_ms: u64,
    ) -> Result<Range<usize>, Refusal> {
        let head = Head::parse(packet).map_err(|_| Refusal::Truncated)?;
        Ok(self.tables().group.open(self.vnet, from, &head, packet, wall_ms)?)
    }

    /// Whether packets of unknown sessions came.
    pub fn has_strangers(&self) -> bool {
        let tables = self.tables();
        tables.strangers.len() > tables.strangers_told
    }

    /// Takes their senders, each host once until [`Inbound::forget_strangers`].
    pub fn take_strangers(&self) -> Vec<SocketAddr> {
        let mut tables = self.tables();
        let untold = tables.strangers.get(tables.strangers_told..).unwrap_or_default().to_vec();
        tables.strangers_told = tables.strangers.len();
        untold
    }

    /// Those that come from now on are taken anew.
    pub fn forget_strangers(&self) {
        let mut tables = self.tables();
        tables.strangers.clear();
        tables.strangers_told = 0;
    }
}

/// Opens packets as long as they have this SPI; returns the first that has another.
fn open_run<'p, T>(
    opener: &mut Opener,
    spi: Spi,
    packets: &mut impl Iterator<Item = (T, &'p mut [u8])>,
    done: &mut impl FnMut(T, Result<Range<usize>, Refusal>),
) -> Option<(T, &'p mut [u8])> {
    for (with, packet) in packets {
        match Head::parse(packet) {
            Ok(head) if head.spi == spi => {
                done(with, opener.open(&head, packet).map_err(Refusal::from));
            }
            _ => return Some((with, packet)),
        }
    }
    None
}

impl Tables {
    fn forget(&mut self, number: u32) {
        if self.sessions.remove(&number).is_some() {
            self.associations.retain(|spi, _| spi.session() != number);
        }
    }

    /// The first packet of an association: whoever made it has the key, or it changes nothing.
    fn open_first(
        &mut self,
        from: SocketAddr,
        head: &Head,
        packet: &mut [u8],
    ) -> Result<Range<usize>, Refusal> {
        let Some(session) = self.sessions.get(&head.spi.session()) else {
            let is_named = self.strangers.iter().any(|known| known.ip() == from.ip());
            if self.strangers.len() < MAX_STRANGERS && !is_named {
                self.strangers.push(from);
            }
            return Err(Refusal::Spi);
        };
        if self.associations.len() >= MAX_ASSOCIATIONS {
            return Err(Refusal::Full);
        }
        let key = sender_key(&session.receiver, head.spi.index());
        let mut opener = Opener::new(session.suite, &key, Numbering::Extended);
        let opened = opener.open(head, packet);
        if !matches!(opened, Err(OpenError::Inauthentic | OpenError::Replay)) {
            self.associations.insert(head.spi, Arc::new(Mutex::new(opener)));
        }
        Ok(opened?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::esp::Sealer;
    use crate::wire::esp::{HEAD_LEN, sealed_len};

    const HOUR: Duration = Duration::from_secs(3600);

    fn inbound() -> Inbound {
        let inbound = Inbound::new(VnetId::new(42).unwrap(), Level::Conf);
        inbound.insert(5, Suite::AesGcm, Secret::new([5; 32]), HOUR, Instant::ZERO);
        inbound
    }

    fn from(port: u16) -> SocketAddr {
        ([192, 0, 2, 2], port).into()
    }

    fn sealer(session: u32, index: u32) -> Sealer {
        let byte = u8::try_from(session).unwrap();
        let key = sender_key(&Secret::new([byte; 32]), index);
        Sealer::new(Spi::of(session, index), Suite::AesGcm, &key, Numbering::Extended)
    }

    fn seal(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; sealed_len(text.len())];
        packet[HEAD_LEN..HEAD_LEN + text.len()].copy_from_slice(text);
        sealer.seal(&mut packet, text.len()).unwrap();
        packet
    }

    fn open(inbound: &Inbound, packet: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut packet = packet.to_vec();
        let range = inbound.open(from(1), &mut packet)?;
        Ok(packet[range].to_vec())
    }

    #[test]
    fn senders_of_a_session_are_told_apart() {
        let inbound = inbound();
        let (mut a, mut b) = (sealer(5, 0), sealer(5, 1));
        let [x, y] = [seal(&mut a, b"x"), seal(&mut b, b"y")];
        assert_eq!(open(&inbound, &x).unwrap(), b"x");
        assert_eq!(open(&inbound, &y).unwrap(), b"y");
        assert_eq!(open(&inbound, &x), Err(Refusal::Replay));
        // One sender can't speak as another: the SPI names the key.
        let mut posing = seal(&mut a, b"z");
        posing[3] ^= 1;
        assert_eq!(open(&inbound, &posing), Err(Refusal::Inauthentic));
    }

    #[test]
    fn forged_first_packets_leave_nothing_behind() {
        let inbound = inbound();
        for index in 0..100 {
            let mut packet = seal(&mut sealer(5, index), b"x");
            *packet.last_mut().unwrap() ^= 1;
            assert_eq!(open(&inbound, &packet), Err(Refusal::Inauthentic));
        }
        assert!(inbound.tables().associations.is_empty());
        assert_eq!(open(&inbound, &[0x80; 40]), Err(Refusal::Spi));
        assert_eq!(open(&inbound, &[0x80; 17]), Err(Refusal::Truncated));
    }

    #[test]
    fn strangers_are_named_once_and_bounded() {
        let inbound = inbound();
        let packet = seal(&mut sealer(6, 0), b"x");
        let come = |hosts: Range<u8>| {
            for n in hosts.flat_map(|host| [(host, 1), (host, 2)]) {
                let from = ([192, 0, 2, n.0], n.1).into();
                assert_eq!(inbound.open(from, &mut packet.clone()), Err(Refusal::Spi));
            }
        };
        come(0..5);
        assert_eq!(inbound.take_strangers().len(), 5, "a host each");
        come(0..5);
        assert!(!inbound.has_strangers(), "they are known by now");
        come(3..100);
        assert_eq!(inbound.take_strangers().len(), MAX_STRANGERS - 5);
        come(100..200);
        assert!(!inbound.has_strangers());
        inbound.forget_strangers();
        come(0..1);
        assert_eq!(inbound.take_strangers().len(), 1);
    }

    #[test]
    fn a_session_that_is_over_opens_nothing() {
        let inbound = inbound();
        let mut a = sealer(5, 0);
        assert!(open(&inbound, &seal(&mut a, b"x")).is_ok());
        inbound.remove(5);
        assert_eq!(open(&inbound, &seal(&mut a, b"y")), Err(Refusal::Spi));
        // A key of another policy is never taken.
        let lower = Suite::AesGmac;
        inbound.insert(5, lower, Secret::new([5; 32]), HOUR, Instant::ZERO);
        assert_eq!(open(&inbound, &seal(&mut a, b"z")), Err(Refusal::Spi));
    }
}
