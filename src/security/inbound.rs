//! A vif's security associations for receiving, shared by its queue pairs.
//!
//! varpd provides one key per session with another host. The keys of that host's senders derive
//! from it ([`super::sadb::sender_key`]): the first authentic packet of a sender creates its
//! association, and forged packets create no state. The queue pairs share the replay windows, too:
//! a replay is detected whichever queue pair receives it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::esp::{Numbering, OpenError, Opener};
use super::group::{GroupError, GroupReceiver};
use super::sadb::sender_key;
use crate::policy::{Level, Policy, Suite};
use crate::secret::Secret;
use crate::time::{Instant, Now};
use crate::wire::VnetId;
use crate::wire::control::Lifetime;
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
    /// Of a sender that is not known, while too many such packets come.
    Flood,
    /// Too short or otherwise no ESP.
    Truncated,
    /// No key any more: they have come to their end while varpd was away.
    Ended,
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
            GroupError::Flood => Self::Flood,
        }
    }
}

#[derive(Debug)]
struct Session {
    receiver: Secret,
    suite: Suite,
    /// When it makes room for others.
    usual_end: Instant,
    /// When it ends by itself.
    hard_end: Instant,
}

type Association = Arc<Mutex<Opener>>;

#[derive(Debug, Default)]
struct Tables {
    policy: Policy,
    sessions: HashMap<u32, Session>,
    associations: HashMap<Spi, Association>,
    group: GroupReceiver,
    /// Senders of unknown sessions, an address per host.
    strangers: Vec<SocketAddr>,
    /// How many of them varpd has been told.
    strangers_told: usize,
    /// Whether the keys of group frames have come to their end, and maybe others.
    has_ended: bool,
}

/// All of a vif's.
#[derive(Debug)]
pub struct Inbound {
    vnet: VnetId,
    tables: Mutex<Tables>,
}

/// Most strangers that are remembered, until all are forgotten at once: anybody can pose as one,
/// and must neither fill varpd's queue nor keep it busy.
const MAX_STRANGERS: usize = 16;

impl Inbound {
    /// For a vif on a vnet with this policy.
    pub fn new(vnet: VnetId, policy: impl Into<Policy>) -> Self {
        let tables = Tables { policy: policy.into(), ..Tables::default() };
        Self { vnet, tables: Mutex::new(tables) }
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        self.tables().policy
    }

    /// Sets the policy. Associations under a policy that is no longer accepted end.
    pub fn set_policy(&self, policy: Policy) {
        let mut tables = self.tables();
        tables.policy = policy;
        let is_over = |(number, session): (&u32, &Session)| {
            (!policy.accepts(session.suite.level())).then_some(*number)
        };
        let over: Vec<u32> = tables.sessions.iter().filter_map(is_over).collect();
        over.into_iter().for_each(|number| tables.forget(number));
        tables.group.retain(|level| policy.accepts(level));
    }

    /// Under which policy a packet was sent that [`Inbound::open`] took.
    pub fn level_of(&self, head: &Head) -> Option<Level> {
        let tables = self.tables();
        tables.sessions.get(&head.spi.session()).map(|session| session.suite.level())
    }

    /// Under which policy a packet was sent that [`Inbound::open_group`] took.
    pub fn group_level_of(&self, from: SocketAddr, head: &Head) -> Option<Level> {
        self.tables().group.level_of(from, head)
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
        lifetime: impl Into<Lifetime>,
        now: Instant,
    ) {
        let mut tables = self.tables();
        if !tables.policy.accepts(suite.level()) {
            return;
        }
        tables.forget(number);
        tables.forget_all(|session| session.usual_end <= now);
        if tables.sessions.len() < MAX_SESSIONS {
            let Lifetime { usual, hard } = lifetime.into();
            let (usual_end, hard_end) = (now + usual, now + hard);
            tables.sessions.insert(number, Session { receiver, suite, usual_end, hard_end });
        }
    }

    /// Ends the sessions that have reached their hard end; returns how many those were.
    pub fn end_old(&self, now: Instant) -> usize {
        self.tables().forget_all(|session| session.hard_end <= now)
    }

    /// Ends all sessions; returns how many those were.
    pub fn end_all(&self) -> usize {
        self.tables().forget_all(|_| true)
    }

    /// The keys of group frames have come to their end; returns how many there were.
    pub fn end_group(&self) -> usize {
        let mut tables = self.tables();
        let count = tables.group.keys().count();
        tables.group.set_keys(Vec::new());
        tables.has_ended = true;
        count
    }

    /// A session is over.
    pub fn remove(&self, number: u32) {
        self.tables().forget(number);
    }

    /// The keys of group frames that are accepted; those of another policy are not.
    pub fn set_group(&self, keys: Vec<(Suite, Secret)>) {
        let mut tables = self.tables();
        let policy = tables.policy;
        let keys = keys.into_iter().filter(|(suite, _)| policy.accepts(suite.level())).collect();
        tables.group.set_keys(keys);
        tables.has_ended = false;
    }

    /// There are no keys of group frames any more.
    pub fn remove_group(&self) {
        self.tables().group.set_keys(Vec::new());
    }

    /// Whether one of the keys of group frames that are accepted is none of these.
    pub fn misses_any(&self, keys: &[(Suite, Secret)]) -> bool {
        self.tables().group.keys().any(|key| !keys.iter().any(|(_, other)| other == key))
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

    /// Opens packets as [`Inbound::open`] does, and tells what became of each; what they come with
    /// is handed through. The association of packets that follow each other is looked for once.
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

    /// Opens a packet that came to the group.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn open_group(
        &self,
        from: SocketAddr,
        packet: &mut [u8],
        now: Now,
    ) -> Result<Range<usize>, Refusal> {
        let head = Head::parse(packet).map_err(|_| Refusal::Truncated)?;
        let mut tables = self.tables();
        if tables.has_ended {
            return Err(Refusal::Ended);
        }
        Ok(tables.group.open(self.vnet, from, &head, packet, now)?)
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

    /// Forgets all sessions of a kind; returns how many those were.
    fn forget_all(&mut self, which: impl Fn(&Session) -> bool) -> usize {
        let over = self.sessions.iter().filter(|(_, session)| which(session));
        let over: Vec<u32> = over.map(|(number, _)| *number).collect();
        over.iter().for_each(|number| self.forget(*number));
        over.len()
    }

    /// The first packet of an association: whoever made it has the key, or it changes nothing.
    fn open_first(
        &mut self,
        from: SocketAddr,
        head: &Head,
        packet: &mut [u8],
    ) -> Result<Range<usize>, Refusal> {
        let Some(session) = self.sessions.get(&head.spi.session()) else {
            if self.has_ended {
                return Err(Refusal::Ended);
            }
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
    use std::time::Duration;

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
    fn nothing_is_opened_beyond_the_hard_end() {
        let inbound = inbound();
        let lifetime = Lifetime { usual: HOUR * 2, hard: HOUR * 24 };
        inbound.insert(6, Suite::AesGcm, Secret::new([6; 32]), lifetime, Instant::ZERO);
        let at = |duration: Duration| Instant::ZERO + duration;
        let mut a = sealer(6, 0);
        assert_eq!(open(&inbound, &seal(&mut a, b"x")).unwrap(), b"x");
        assert_eq!(inbound.end_old(at(HOUR)), 1);
        assert_eq!(inbound.end_old(at(HOUR * 24 - Duration::from_micros(1))), 0);
        assert_eq!(open(&inbound, &seal(&mut a, b"y")).unwrap(), b"y", "past the usual end");
        assert_eq!(inbound.end_old(at(HOUR * 24)), 1);
        assert_eq!(open(&inbound, &seal(&mut a, b"z")), Err(Refusal::Spi));
        inbound.set_group(vec![(Suite::AesGcm, Secret::new([1; 32]))]);
        assert_eq!(inbound.end_group(), 1);
        assert_eq!(open(&inbound, &seal(&mut a, b"z")), Err(Refusal::Ended));
        let group = inbound.open_group(
            from(1),
            &mut seal(&mut a, b"z"),
            Now { mono: at(HOUR), wall_ms: 1 },
        );
        assert_eq!(group, Err(Refusal::Ended));
        inbound.set_group(vec![(Suite::AesGcm, Secret::new([1; 32]))]);
        assert_eq!(open(&inbound, &seal(&mut a, b"z")), Err(Refusal::Spi), "varpd is back");
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
