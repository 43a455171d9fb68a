//! The state machine that agrees on keys with other hosts, one session per vnet and host.
//!
//! # Theory of operation
//!
//! varpd tells the state machine the hosts to which it wants to send ([`Sadb::want`]), passes it
//! the handshake messages that arrive, and performs the outputs of [`Sadb::poll_output`]. A *link*
//! is a vnet and another host's address. The state of a link has these parts:
//!
//! | Part | Meaning | Ends with |
//! |---|---|---|
//! | attempt, asking | this host has sent an INIT | RESPONSE, the peer's INIT, giving up |
//! | attempt, confirming | the RESPONSE has arrived: the keys serve, the host repeats CONFIRM | ACK, giving up |
//! | half open | this host has answered the peer's INIT, and accepts its packets | CONFIRM, a short time |
//! | sessions | agreed keys; the newest that serves is *current* | their expiry, another session |
//!
//! **Make before break.** A receiver has the keys of a new session before its sender uses them: the
//! responder passes them to its backends before it answers, and the initiator before it confirms.
//! So each side can switch as soon as it is sure of the new session. That matters most if a
//! receiver has lost the old session ([`Sadb::renew`]). Receivers accept the old session for some
//! time ([`OVERLAP`]) longer.
//!
//! **Renewal.** The initiator of a session renews it when it is [`Config::rekey`] old; the other
//! side does so some time later if the initiator has not; each only while it wants to send. When
//! both begin at once, the host with the higher address drops the INIT of the lower and gets an
//! answer to its own. A host that has answered an INIT begins no handshake, but only for a moment
//! ([`HALF_OPEN_YIELDS`]): if the INIT was a recorded one, no CONFIRM arrives.
//!
//! **Losses.** Only the initiator repeats: INIT until RESPONSE, CONFIRM until ACK. A responder
//! answers repetitions with the same message, so it needs only one timer, after which it gives up.
//! After [`TRIES`] an initiator gives up, which is an output, and begins anew after [`HOLD`] if the
//! link is still wanted.
//!
//! **A host that has lost its state** cannot be noticed by senders: their packets name sessions
//! that it does not know. Its backends report such packets, and the host begins a handshake itself
//! ([`Sadb::renew`]). It also does not know which INITs it has answered before. So for some time
//! ([`FRESH`]) it answers only INITs with a cookie of its own: this costs another round trip, and
//! recorded INITs have no such cookie.
//!
//! **Another address of this host** ([`Sadb::move_to`]) ends all sessions: their keys derive from
//! it.
//!
//! **Floods.** A message without a right first MAC, which needs the vnet key, creates no state and
//! gets no answer. If more than [`INITS_PER_SECOND`] INITs with a right MAC arrive (recorded ones,
//! from false addresses), the host answers them with a cookie, without state. All tables are
//! bounded.

mod link;
mod moved;
mod output;
mod receive;
pub mod rows;
#[cfg(test)]
mod tests;

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::handshake::token::TokenKey;
use super::handshake::{Agreed, Cookies, Parties, Required};
use super::keys::{KeyId, MemberKeys};
use super::noise::Entropy;
use crate::limiter::TokenBucket;
use crate::metrics::counters;
use crate::policy::Level;
use crate::secret::Secret;
use crate::time::{Instant, Now};
use crate::wire::VnetId;
use crate::wire::control::{ReceiverKey, SenderKeys};
use crate::wire::esp::{INDICES, SESSIONS, Spi};
use crate::wire::name::Name;

pub use output::{Output, sender_key};

use link::{Peer, Session};
use output::receiver_key;

/// How long a replaced session is still received.
pub const OVERLAP: Duration = Duration::from_secs(30);
/// Repetitions of a message without an answer; the waits double from [`FIRST_WAIT`] to
/// [`LAST_WAIT`].
pub const TRIES: u32 = 8;
/// See [`TRIES`].
pub const FIRST_WAIT: Duration = Duration::from_millis(100);
/// See [`TRIES`].
pub const LAST_WAIT: Duration = Duration::from_secs(3);
/// How long a link rests after its initiator gave up.
pub const HOLD: Duration = Duration::from_secs(3);
/// How long an answered INIT waits for its confirmation: longer than the initiator tries.
pub const HALF_OPEN: Duration = Duration::from_secs(30);
/// How long a handshake of our own lets it go first: some round trips, and repetitions of what was
/// lost.
pub const HALF_OPEN_YIELDS: Duration = Duration::from_secs(1);
/// How far the initiator's clock may be from the responder's.
pub const CLOCK_TOLERANCE: Duration = Duration::from_secs(90);
/// How long after the start every INIT needs a cookie: so long one that was recorded before it can
/// look new, if the initiator's clock is ahead.
pub const FRESH: Duration = Duration::from_secs(2 * CLOCK_TOLERANCE.as_secs());
/// INITs handled per second without a cookie.
pub const INITS_PER_SECOND: u32 = 64;
/// Renewals of a link per second, and [`RENEWALS_AT_ONCE`]. If the other side renews as often, a
/// link never has more sessions than its table holds, so none ends while its packets are under
/// way.
const RENEWALS_PER_SECOND: u32 = 1;
/// See [`RENEWALS_PER_SECOND`].
const RENEWALS_AT_ONCE: u32 = 3;
/// A secret that cookies are made with serves twice as long.
const COOKIE_TURN: Duration = Duration::from_secs(120);
/// Links.
const MAX_LINKS: usize = 16_384;
/// Sessions of one link that are received at once.
const MAX_SESSIONS: usize = 8;
/// Of the senders' numbers of a session, so many are left when another is made.
const SPARE_INDICES: u32 = INDICES / 4;

counters! {
    /// The counters of a security association database.
    SadbCounters by SadbCounter {
        sa_sessions [sessions] = "sessions made with other hosts, per vnet",
        sa_given_up [handshakes] = "handshakes without an answer in time",
        sa_ended [sessions] = "sessions that ended: they were replaced, they expired, or their key was given up",
        handshake_tx [messages] = "handshake messages sent",
        handshake_rx [messages] = "handshake messages received",
        handshake_cookies [messages] = "of handshake_tx, cookies: too many INITs arrived, or varpd started less than three minutes ago",
        handshake_drop_malformed [messages] = "handshake messages that are malformed, or have an unknown critical extension",
        handshake_drop_version [messages] = "handshake messages of hosts with another version of the format",
        handshake_drop_vnet [messages] = "handshake messages for a vnet or with a key that this host does not have",
        handshake_drop_forged [messages] = "handshake messages that no holder of the key made for this host",
        handshake_drop_name [messages] = "INITs that name another address than their source (NAT), or another realm",
        handshake_drop_credential [messages] = "handshake messages without a credential of the required kind",
        handshake_drop_stale [messages] = "INITs that are old, or of a host whose clock is wrong by more than 90 s",
        handshake_drop_unasked [messages] = "handshake messages that answer no message of this host",
        handshake_drop_crossed [messages] = "INITs that crossed an INIT of this host, which takes precedence",
        handshake_drop_full [messages] = "INITs dropped because the table of handshakes was full",
    }
}

/// Times that can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Age at which a session is replaced. It ends at twice that, if it could not be replaced.
    pub rekey: Duration,
    /// What other hosts have to show beside holding the vnet's key.
    pub required: Required,
}

/// No key ends by itself sooner than that: a varpd that is away for a day cuts nobody off.
const LEAST_END: Duration = Duration::from_secs(24 * 3600);

impl Config {
    /// Age at which keys end by themselves where they are used, if varpd is not there to end them:
    /// of a session its own; of group keys, which have none, how long varpd has been away.
    pub fn end(&self) -> Duration {
        (self.rekey * 2).max(LEAST_END)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { rekey: Duration::from_secs(3600), required: Required::default() }
    }
}

/// The keys that a secured vnet's members share.
#[derive(Clone, Debug)]
pub struct Keyring {
    /// Keys that are accepted, each under its policy; the first is used.
    pub keys: Vec<MemberKeys>,
}

/// A vnet and another host.
type Link = (VnetId, IpAddr);

/// The state machine; see the module's text.
///
/// ```
/// use std::net::IpAddr;
/// use std::time::Duration;
/// use vnet::policy::{Level, Suite};
/// use vnet::secret::Secret;
/// use vnet::security::keys::MemberKeys;
/// use vnet::security::sadb::{Config, Keyring, Output, Sadb};
/// use vnet::time::{Instant, Now};
/// use vnet::wire::VnetId;
/// use vnet::wire::name::{Name, Realm};
///
/// let vnet = VnetId::new(42).unwrap();
/// let now = Now { mono: Instant::from_millis(1000), wall_ms: 1_800_000_000_000 };
/// let ips: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap());
/// let mut hosts = [0, 1].map(|n| {
///     let (name, seed) = (Name::host(Realm(0), ips[n]), Secret::new([n as u8; 32]));
///     let mut host = Sadb::new(Config::default(), name, seed);
///     let keys = vec![MemberKeys::new(&Secret::new([1; 32]), vnet, Level::Conf, Suite::AesGcm)];
///     host.set_vnet(vnet, Some(Keyring { keys }), now);
///     host
/// });
/// hosts[0].want(vnet, ips[1], now.mono + Duration::from_secs(60), now);
/// // Messages pass until none is left.
/// let mut is_done = false;
/// while !is_done {
///     is_done = true;
///     for n in 0..2 {
///         while let Some(output) = hosts[n].poll_output() {
///             is_done = false;
///             if let Output::Send { bytes, .. } = output {
///                 hosts[1 - n].handle_message(ips[n], &bytes, now);
///             }
///         }
///     }
/// }
/// assert!(hosts[0].is_served(vnet, ips[1], now));
/// ```
#[derive(Debug)]
pub struct Sadb {
    config: Config,
    own: Name,
    entropy: Entropy,
    cookies: Cookies,
    cookies_turn: Instant,
    /// When there were keys for the first time.
    start: Option<Instant>,
    vnets: BTreeMap<VnetId, Keyring>,
    peers: BTreeMap<Link, Peer>,
    /// Session numbers in use, and whose they are.
    numbers: BTreeMap<u32, Link>,
    timers: BTreeSet<(Instant, Link)>,
    inits: TokenBucket,
    renewals: TokenBucket,
    first_renewals: TokenBucket,
    /// The time in the last INIT.
    last_time: u64,
    outputs: VecDeque<Output>,
    counters: SadbCounters,
}

impl Sadb {
    /// Without vnets; `own` is this host's name, by its VARP address, `seed` is secret randomness.
    pub fn new(config: Config, own: Name, seed: Secret) -> Self {
        let entropy = Entropy::new(seed);
        Self {
            config,
            own,
            cookies: Cookies::new(&entropy),
            cookies_turn: Instant::ZERO,
            start: None,
            entropy,
            vnets: BTreeMap::new(),
            peers: BTreeMap::new(),
            numbers: BTreeMap::new(),
            timers: BTreeSet::new(),
            inits: TokenBucket::new(INITS_PER_SECOND, INITS_PER_SECOND),
            renewals: TokenBucket::new(INITS_PER_SECOND, INITS_PER_SECOND),
            first_renewals: TokenBucket::new(INITS_PER_SECOND, INITS_PER_SECOND),
            last_time: 0,
            outputs: VecDeque::new(),
            counters: SadbCounters::default(),
        }
    }

    /// The keys of a vnet, or that it has none any more. Sessions made with keys that are gone end
    /// now; those made with a key that is only still accepted are replaced soon.
    pub fn set_vnet(&mut self, vnet: VnetId, keyring: Option<Keyring>, now: Now) {
        self.start.get_or_insert(now.mono);
        let links: Vec<Link> = self.peers.keys().filter(|(of, _)| *of == vnet).copied().collect();
        match keyring {
            Some(keyring) => self.vnets.insert(vnet, keyring),
            None => self.vnets.remove(&vnet),
        };
        for link in links {
            self.end_withdrawn(link, now);
            self.advance(link, now);
        }
    }

    /// The host was suspended for the time `asleep`, in which the monotonic clock stood still.
    /// Sessions have aged by it, and are replaced when they are next needed.
    pub fn awake(&mut self, asleep: Duration, now: Now) {
        let links: Vec<Link> = self.peers.keys().copied().collect();
        for link in links {
            for session in self.peers.get_mut(&link).iter_mut().flat_map(|peer| &mut peer.sessions)
            {
                session.rekey_at = session.rekey_at.min(now.mono);
                session.ends = session.ends.earlier(asleep);
            }
            self.advance(link, now);
        }
    }

    /// The memory of this process is a copy (a snapshot was restored, or a machine cloned), and
    /// another with the same contents may run: other randomness from `seed`, and no session of
    /// before.
    pub fn begin_anew(&mut self, seed: Secret, now: Now) {
        self.entropy = Entropy::new(seed);
        self.cookies = Cookies::new(&self.entropy);
        // What was recorded since is new to this copy.
        self.start = Some(now.mono);
        let wanted: Vec<(Link, Instant)> =
            self.peers.iter().map(|(link, peer)| (*link, peer.wanted_until)).collect();
        let vnets = self.vnets.clone();
        for vnet in vnets.keys() {
            self.set_vnet(*vnet, None, now);
        }
        for (link, until) in wanted {
            if let Some(peer) = self.peers.get_mut(&link) {
                (peer.wanted_until, peer.rest_until) = (until, now.mono);
            }
        }
        for (vnet, keyring) in vnets {
            self.set_vnet(vnet, Some(keyring), now);
        }
    }

    /// Frames are to be sent to a host on a vnet, until then at least.
    pub fn want(&mut self, vnet: VnetId, peer: IpAddr, until: Instant, now: Now) {
        let link = (vnet, peer.to_canonical());
        if !self.vnets.contains_key(&vnet) || !self.has_room(link, now) {
            return;
        }
        let known = self.peers.entry(link).or_default();
        known.wanted_until = known.wanted_until.max(until);
        self.advance(link, now);
    }

    /// Packets of a session that is not known came from a host: it is asked for another one.
    /// Anybody can make such packets in its name, so a link is renewed now and then only.
    pub fn renew(&mut self, vnet: VnetId, peer: IpAddr, now: Now) {
        let link = (vnet, peer.to_canonical());
        let refuses =
            |peer: &mut Peer| peer.is_negotiating(now.mono) || !peer.renewals.take(now.mono);
        if self.peers.get_mut(&link).is_some_and(refuses)
            || !self.vnets.contains_key(&vnet)
            || !self.has_room(link, now)
            || !self.bucket_of(link).take(now.mono)
        {
            return;
        }
        let known = self.peers.entry(link).or_default();
        if known.rest_until <= now.mono {
            self.begin(link, now);
        }
        self.advance(link, now);
    }

    /// What limits renewals with a host: anybody can pose as one that is not known, and takes
    /// nothing from those that are.
    fn bucket_of(&mut self, link: Link) -> &mut TokenBucket {
        let is_known = self.peers.get(&link).is_some_and(|peer| !peer.sessions.is_empty());
        if is_known { &mut self.renewals } else { &mut self.first_renewals }
    }

    /// Keys for `count` senders of this host to a care-of address, if a session serves the link.
    /// Each call gives keys that were never given before.
    pub fn outbound(
        &mut self,
        vnet: VnetId,
        to: SocketAddr,
        count: u32,
        now: Now,
    ) -> Option<SenderKeys> {
        let link = (vnet, to.ip().to_canonical());
        let session = self.peers.get_mut(&link)?.current_mut(now.mono)?;
        let next = session.next_index.entry(to.port()).or_default();
        let first = *next;
        if first + count > INDICES {
            return None;
        }
        *next += count;
        let is_worn = *next + SPARE_INDICES > INDICES;
        let receiver = receiver_key(&session.agreed.send, Name::vif(self.own.realm(), to));
        let spi = |index| Spi::of(session.agreed.peer_number, index);
        let keys = (first..first + count).map(|i| (spi(i), sender_key(&receiver, i))).collect();
        let lifetime = session.lifetime(&self.config, now.mono);
        let outbound = SenderKeys { suite: session.agreed.suite, keys, lifetime };
        if is_worn {
            session.rekey_at = session.rekey_at.min(now.mono);
            self.advance(link, now);
        }
        Some(outbound)
    }

    /// The receive key of a session for a care-of address of this host. It is given out once: who
    /// comes later (a backend started anew) has not the window that goes with it.
    pub fn inbound(&mut self, number: u32, own: SocketAddr, now: Now) -> Option<ReceiverKey> {
        let link = *self.numbers.get(&number)?;
        let session = self.peers.get_mut(&link)?.session_mut(number)?;
        if !session.handed.insert(own.port()) {
            return None;
        }
        let receiver = receiver_key(&session.agreed.receive, Name::vif(self.own.realm(), own));
        let suite = session.agreed.suite;
        let lifetime = session.lifetime(&self.config, now.mono);
        Some(ReceiverKey { number, suite, receiver, lifetime })
    }

    /// The sessions of a vnet whose packets are accepted, with their hosts.
    pub fn sessions(&self, vnet: VnetId) -> Vec<(u32, IpAddr)> {
        let of_vnet = self.numbers.iter().filter(|(_, (of, _))| *of == vnet);
        let exists = |(number, link): (&u32, &Link)| {
            let session = self.peers.get(link)?.session(*number)?;
            Some((session.number, link.1))
        };
        of_vnet.filter_map(exists).collect()
    }

    /// Whether packets can be sent to a host now.
    pub fn is_served(&self, vnet: VnetId, peer: IpAddr, now: Now) -> bool {
        let peer = self.peers.get(&(vnet, peer.to_canonical()));
        peer.is_some_and(|peer| peer.current(now.mono).is_some())
    }

    /// Whether packets can be sent to a host by another session than this one.
    pub fn is_served_without(&self, vnet: VnetId, peer: IpAddr, number: u32, now: Now) -> bool {
        let peer = self.peers.get(&(vnet, peer.to_canonical()));
        peer.is_some_and(|peer| peer.is_served_without(number, now.mono))
    }

    /// Carries out due actions.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.cookies_turn <= now.mono {
            self.cookies_turn = now.mono + COOKIE_TURN;
            self.cookies.turn(&self.entropy);
        }
        while let Some(&(at, link)) = self.timers.first().filter(|(at, _)| *at <= now.mono) {
            self.timers.remove(&(at, link));
            if let Some(peer) = self.peers.get_mut(&link) {
                peer.due = None;
            }
            self.advance(link, now);
        }
    }

    /// The next thing to do, if any; call until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Sadb::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// See [`Config::end`].
    pub fn end(&self) -> Duration {
        self.config.end()
    }

    /// What tokens are made with at the moment: INITs with the right one are worth more.
    pub const fn token_key(&self) -> TokenKey {
        self.cookies.token_key()
    }

    /// Its counters.
    pub fn counters(&self) -> &SadbCounters {
        &self.counters
    }

    /// Whether INITs may have been answered before by a predecessor.
    fn is_fresh(&self, now: Now) -> bool {
        self.start.is_none_or(|start| now.mono < start + FRESH)
    }

    /// Whether a key is one of a vnet's.
    pub fn knows(&self, vnet: VnetId, id: KeyId) -> bool {
        self.keys(vnet, id).is_some()
    }

    fn keys(&self, vnet: VnetId, id: KeyId) -> Option<&MemberKeys> {
        self.vnets.get(&vnet)?.keys.iter().find(|keys| keys.id == id)
    }

    /// The name of a host of this realm.
    pub const fn name_of(&self, host: IpAddr) -> Name {
        Name::host(self.own.realm(), host)
    }

    fn parties(&self, (vnet, peer): Link, level: Level, we_begin: bool) -> Parties {
        let peer = self.name_of(peer);
        let (initiator, responder) = if we_begin { (self.own, peer) } else { (peer, self.own) };
        Parties { vnet, level, initiator, responder }
    }

    fn send(&mut self, (vnet, to): Link, bytes: Vec<u8>) {
        self.counters.inc(SadbCounter::handshake_tx);
        self.outputs.push_back(Output::Send { vnet, to, bytes });
    }

    fn has_room(&mut self, link: Link, now: Now) -> bool {
        if self.peers.len() >= MAX_LINKS && !self.peers.contains_key(&link) {
            let idle = |peer: &Peer| peer.is_idle(now.mono);
            self.peers.retain(|_, peer| !idle(peer));
            self.timers.retain(|(_, link)| self.peers.contains_key(link));
        }
        self.peers.len() < MAX_LINKS || self.peers.contains_key(&link)
    }

    /// A number that no other session of this host has.
    fn new_number(&mut self, link: Link) -> Option<u32> {
        // With half of all numbers in use, ten tries fail once in a thousand.
        for _ in 0..10 {
            let number = self.entropy.number() % SESSIONS;
            if let Entry::Vacant(vacant) = self.numbers.entry(number) {
                vacant.insert(link);
                return Some(number);
            }
        }
        None
    }

    fn new_session(
        &self,
        number: u32,
        key_id: KeyId,
        agreed: Agreed,
        is_initiator: bool,
        now: Now,
    ) -> Session {
        // The initiator begins again first, and not all links at once.
        let part = if is_initiator { 900 } else { 1100 } + self.entropy.number() % 100;
        let rekey = self.config.rekey * part / 1000;
        Session {
            number,
            key_id,
            agreed,
            is_initiator,
            made: now.mono,
            rekey_at: now.mono + rekey,
            ends: now.mono + self.config.rekey * 2,
            next_index: BTreeMap::new(),
            handed: BTreeSet::new(),
        }
    }

    /// A session is no more.
    fn release(&mut self, number: u32) {
        if let Some((vnet, _)) = self.numbers.remove(&number) {
            self.outputs.push_back(Output::Ended { vnet, number });
        }
    }
}
