//! The mapper: the state machine inside `varpd` that knows the places of vifs.
//!
//! # Theory of operation
//!
//! A host owns a vif if it made the newest *claim* to the vif's key (vnet, MAC): the claim with
//! the highest [`Stamp`]. Only the owner's host answers a request, there is no
//! database, and every rule below is local. Hosts agree because each follows the higher stamp.
//!
//! A mapper keeps its knowledge about a key in at most one of these places:
//!
//! | Place | Meaning | Ends with |
//! |---|---|---|
//! | `vifs`, as owner | the vif is on this host | a newer claim; the rings stop |
//! | `cache`, at | it is at a remote CoA | the end of the lifetime, a newer claim, a flush |
//! | `cache`, nobody | no host answered just now | a short time, or an announcement |
//! | `pending` | a request is in progress; beside a `cache` entry, to confirm that | an answer, or failure |
//! | `notes` | it was on this host; its new place may be known | one lifetime |
//!
//! Local vifs ask with [`Mapper::resolve`] and get [`Notice`]s, at first and whenever the answer
//! changes. The notices stop when the entry ends, which is when the vif's own copy ends.
//!
//! **Claims.** A vif claims its key when its rings start ([`Mapper::set_active`]). The mapper
//! announces the claim after 0, 4, 12, 50, 200, 450 and 800 ms and then every few minutes. A host
//! that knows a newer claim than the announced one answers with a correction that repeats the
//! announcement's nonce. A *fresh* claim (the guest arrived just now) may be corrected with the
//! claim of the host that the guest has left, because that host's clock was ahead. The remaining
//! lifetime in the correction shows when its claim was last confirmed. If that was before the fresh
//! claim, the mapper repeats the fresh claim with a higher stamp, once. A claim resumed after a
//! restart of varpd is not fresh and yields. If a vif runs but has lost its key, the mapper asks
//! for the key after a lifetime, and then as often as it announces claims; if no host answers, it
//! takes the key back. `clock.rs` explains the stamps.
//!
//! **Departure.** A claim that is beaten ends at once, and the mapper tells the vif its new place.
//! It does the same for a vif that stopped on this host and is claimed elsewhere within a lifetime.
//! The backend forwards frames that still arrive for the vif, and [`Mapper::correct`] tells the
//! senders' hosts, a few times in quick succession and then once a second.
//!
//! **Another address of this host** ([`Mapper::move_to`], [`Mapper::move_vif`]): each vif that owns
//! its key claims it anew, above its claim at the old care-of address, so that hosts that know the
//! old claim follow.
//!
//! **Doubt.** The claim of a vif whose backend has ended stays, because the backend may soon be
//! back. But the mapper asks all hosts whether another host has the vif ([`Mapper::doubt`]): its
//! guest may have been started elsewhere while this host was cut off. If the vif runs on another
//! host, which lost it to this claim, that host takes the vif back when it receives the question.
//! It does not if the backend there has ended, too.
//! The mapper asks the same when the rings of a vif stop that another host has contested.
//!
//! If another host asks for a key that a running vif of this host has lost, the asker does not know
//! the owner, or got no answer from it. This host then asks the owner's host, once a second at most.
//! If that host does not have the vif, or does not answer, the mapper asks all hosts, for as short a
//! time as it asks a single one, and takes the key back if none answers.
//!
//! **MACs behind a vif** ([`Mapper::add_learnt`]) are vifs at its care-of address. The mapper
//! claims them when its backend first sees them, by *learnt* claims (flag K). Own claims beat
//! learnt ones, whatever the stamps; `rivals.rs` explains how hosts find out whether an owner still
//! exists. Among learnt claims the newest wins, and claimants wait before they claim (`learnt.rs`).
//! A MAC that was lost is claimed again only when a guest sends from it again. Such moves are
//! normal behind bridges, and no conflicts. When a vif moves, the MACs behind it follow
//! (`along.rs`).
//!
//! **Conflicts.** If another host claims a vif whose rings run here, both hosts report it,
//! whichever wins: two guests have one MAC, or a network that was split is whole again. The host
//! that has lost the vif informs the other by a correction with its own, older claim and the nonce
//! of the announcement.
//!
//! **Trust** on a vnet without keys: the mapper trusts the hosts of the segment. Other senders must
//! not be able to do harm by packets from afar. So a reply must repeat a 64-bit nonce that only the
//! addressee of the request could know; an announcement must come through the group; every message
//! must come from its author's address and from VARP's port, and claim for no other host; and a
//! correction must repeat the nonce of a question to its author. If a correction does not, it only
//! makes this host send something. If it contradicts a claim of this host, the mapper announces the
//! claim; a host that knows a newer one then sends a right correction. If it comes from the host
//! that a mapping names, the mapper asks that host, at most once a second. The mapper accepts no
//! loopback addresses, link-local addresses of another link, or addresses of this host as the place
//! of a remote vif: frames would reach services of this host. It drops a message with a tag: no key
//! on this host could check it, and a host that tags messages for this vnet treats it as secured.
//! (The code that has checked a tag removes it before.) The mapper learns nothing from requests, so
//! no host can plant a mapping by asking. The exception is the request of an owner in doubt, which
//! it accepts under the same conditions as an announcement.
//!
//! **Damping** is for own claims. A guest that migrates stops in one place before it starts in
//! another. If a vif takes its key back while its rings run all the time, another vif has the same
//! MAC; after five such times in 180 s the mapper refuses it. On other hosts, the mapper reports
//! further moves of a mapping that has moved as often to its users at most once a second. For a MAC
//! behind vifs that moves five times in 100 ms it reports five moves a second. It tells a vif that
//! has lost its key the key's further moves at most five times a second. It always reports the last
//! place.
//!
//! # Driving it
//!
//! After every input (`add_vif`, `resolve`, `handle_message`, ...) drain [`Mapper::poll_output`];
//! then wait until [`Mapper::poll_timeout`] and call [`Mapper::handle_timeout`]. Send all messages,
//! also those to the group, from the address given to [`Mapper::new`].
//!
//! # Files
//!
//! | File | Contents |
//! |---|---|
//! | `vifs` | the local vifs, and which of them own their key |
//! | `claims` | claims of local vifs: made, announced, contended, lost |
//! | `learnt` | claims of MACs behind local vifs |
//! | `along` | how MACs behind vifs follow these, also MACs that send nothing |
//! | `rivals` | learnt claims against own ones |
//! | `clock` | the hybrid logical clock for the stamps of claims |
//! | `resolve`, `pending` | questions of local vifs, and requests in progress |
//! | `receive` | messages of other hosts, and the trust in each |
//! | `cache`, `mappings` | the knowledge about remote vifs, and how it changes |
//! | `interest` | the users of a mapping, who get its changes |
//! | `notes` | vifs that were on this host and have left |
//! | `timers` | deadlines |
//! | `moves` | the count of moves that makes a vif damped |
//! | `moved` | a change of the host's own address |
//! | `config`, `counters` | settings, and counters |
//! | `output`, `rows` | the actions that the mapper requests; the rows that operators see |

#![forbid(unsafe_code)]

mod along;
mod cache;
mod claims;
mod clock;
mod config;
mod counters;
mod interest;
mod learnt;
mod mappings;
mod moved;
mod moves;
mod notes;
mod output;
mod pending;
mod receive;
mod resolve;
mod rivals;
mod rows;
mod timers;
mod vifs;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;

pub use config::{ANNOUNCE_OFFSETS, Config, Limits};
pub use counters::{MapperCounter, MapperCounters};
pub use output::{Destination, Event, Notice, Output};
pub use rows::{Row, State};
pub use vifs::Bridge;

use cache::Cache;
use clock::Clocks;
use interest::Interest;
use moves::Moves;
use notes::Notes;
use pending::PendingTable;
use timers::{Timer, Timers};
use vifs::{Vif, Vifs};

use crate::limiter::TokenBucket;
use crate::nonce::Nonces;
use crate::time::{Instant, Now};
#[cfg(doc)]
use crate::wire::Stamp;
use crate::wire::varp::{Author, Body, Claim, Message};
use crate::wire::{CareOf, VifKey};

/// Timers handled at once.
const TIMERS_AT_ONCE: usize = 1024;

/// A vif of this host, by the number that varpd's registry gave it. A number is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalVif(pub u64);

/// Why a vif is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddError {
    /// The number is in use.
    #[error("this vif is already registered")]
    Duplicate,
    /// Frames of vnet 1 are never encapsulated, so it has no care-of addresses.
    #[error("vnet 1 is the physical network, which has no care-of addresses")]
    Physical,
    /// Not the address of one interface.
    #[error("not an individual MAC address")]
    Mac,
    /// See [`Limits::vifs`].
    #[error("this host has too many vifs")]
    Full,
}

/// The state machine; see the module's text.
///
/// ```
/// use std::net::SocketAddr;
/// use vnet::mapper::{Config, Destination, LocalVif, Mapper, Notice, Output};
/// use vnet::time::{Instant, Now};
/// use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};
///
/// let now = Now { mono: Instant::from_millis(1000), wall_ms: 1_800_000_000_000 };
/// let key = |n| VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac([2, 0, 0, 0, 0, n]) };
/// let hosts: [SocketAddr; 2] = ["192.0.2.1:1798", "192.0.2.2:1798"].map(|addr| addr.parse().unwrap());
/// let vif = LocalVif(1);
/// let mut mappers = [0, 1].map(|n| {
///     let mut mapper = Mapper::new(Config::default(), [n as u8; 16], hosts[n]);
///     let coa = CareOf {
///         addr: (hosts[n].ip(), 40_000).into(),
///         kinds: EncapKinds::UDP,
///         capabilities: Capabilities::NONE,
///         longest: Longest::UNKNOWN,
///     };
///     mapper.add_vif(vif, key(n as u8), coa).unwrap();
///     mapper.set_active(vif, true, None, now);
///     mapper
/// });
/// // The guest on host 0 sends to the one on host 1.
/// mappers[0].resolve(vif, key(1).mac, false, now);
/// let mut found = None;
/// for n in [0, 1, 0] {
///     while let Some(output) = mappers[n].poll_output() {
///         match output {
///             Output::Send { to, message } => {
///                 let via_group = to == Destination::Group;
///                 mappers[1 - n].handle_message(hosts[n], via_group, &message, now);
///             }
///             Output::Notify { notice: Notice::Mapping { mac, coa, .. }, .. } => found = Some((mac, coa.addr)),
///             _ => {}
///         }
///     }
/// }
/// assert_eq!(found, Some((key(1).mac, "192.0.2.2:40000".parse().unwrap())));
/// ```
#[derive(Debug)]
pub struct Mapper {
    config: Config,
    /// This host: where VARP messages are sent from and replies come to.
    own: Author,
    /// The addresses of this host.
    local: BTreeSet<IpAddr>,
    clocks: Clocks,
    nonces: Nonces,
    vifs: Vifs,
    cache: Cache,
    pending: PendingTable,
    notes: Notes,
    timers: Timers,
    corrections: TokenBucket,
    counters: MapperCounters,
    outputs: VecDeque<Output>,
}

impl Mapper {
    /// A mapper without vifs. `seed` is secret randomness, `own` the address that its messages are
    /// sent from and replies come to.
    pub fn new(config: Config, seed: [u8; 16], own: SocketAddr) -> Self {
        let per_second = config.limits.corrections_per_second;
        Self {
            corrections: TokenBucket::new(per_second, per_second),
            own: Author { realm: config.realm, addr: receive::canonical(own) },
            config,
            clocks: Clocks::default(),
            local: BTreeSet::new(),
            nonces: Nonces::new(seed),
            vifs: Vifs::default(),
            cache: Cache::default(),
            pending: PendingTable::default(),
            notes: Notes::default(),
            timers: Timers::default(),
            counters: MapperCounters::default(),
            outputs: VecDeque::new(),
        }
    }

    /// Uses other times and bounds from now on; its realm and port stay. What exists beyond a lower bound stays.
    pub fn reconfigure(&mut self, config: Config) {
        let (realm, port) = (self.config.realm, self.config.port);
        self.config = Config { realm, port, ..config };
    }

    /// Registers a vif, whose rings do not run yet. Several may have the same key: the guest
    /// migrates within the host, or its backend was restarted.
    pub fn add_vif(&mut self, vif: LocalVif, key: VifKey, coa: CareOf) -> Result<(), AddError> {
        let room = self.vifs.len() < self.config.limits.vifs;
        self.add(vif, key, coa, None, room)
    }

    /// Registers a MAC `behind` a vif, at that one's care-of address. It is a vif of its own, except that its
    /// claim is a learnt one, that it is told only of that claim, announced at
    /// the cost of the vif, and does not claim its key again by itself once it was lost, but by
    /// [`Mapper::announce`].
    pub fn add_learnt(
        &mut self,
        vif: LocalVif,
        behind: Bridge,
        key: VifKey,
        coa: CareOf,
    ) -> Result<(), AddError> {
        let room = self.vifs.learnt_len() < self.config.limits.learnt;
        self.add(vif, key, coa, Some(behind), room)
    }

    fn add(
        &mut self,
        vif: LocalVif,
        key: VifKey,
        coa: CareOf,
        behind: Option<Bridge>,
        room: bool,
    ) -> Result<(), AddError> {
        if self.vifs.get(vif).is_some() {
            return Err(AddError::Duplicate);
        }
        if key.vnet.is_physical() {
            return Err(AddError::Physical);
        }
        if !key.mac.is_individual() {
            return Err(AddError::Mac);
        }
        if !room {
            return Err(AddError::Full);
        }
        let limits = &self.config.limits;
        let new = Vif {
            key,
            coa,
            realm: self.own.realm,
            behind,
            active: false,
            in_doubt: false,
            own: None,
            wanted: None,
            watch: None,
            asking: 0,
            bucket: TokenBucket::new(limits.requests_per_second, limits.request_burst),
            announcing: TokenBucket::new(limits.announces_per_second, limits.announce_burst),
            moves: Moves::default(),
        };
        if !self.vifs.hosts(key.vnet) {
            self.clocks.begin(key.vnet);
        }
        self.vifs.insert(vif, new);
        Ok(())
    }

    /// The vif is gone. With the last of its vnet goes what is known about that vnet.
    pub fn remove_vif(&mut self, vif: LocalVif, now: Now) {
        self.deactivate(vif, now);
        let Some(Vif { key, .. }) = self.vifs.remove(vif) else { return };
        for deserted in self.pending.desert(key.vnet, vif) {
            self.end_pending(&deserted);
        }
        if !self.vifs.hosts(key.vnet) {
            self.clocks.end(key.vnet, now.wall_ms);
            for known in self.cache.keys(Some(key.vnet)) {
                self.forget(&known);
            }
            for asked in self.pending.keys(key.vnet) {
                self.end_pending(&asked);
            }
        }
    }

    /// Does what is due: a bounded part of it, after which [`Mapper::poll_timeout`] is still in the
    /// past. However many entries end at one moment, the caller gets its turn.
    pub fn handle_timeout(&mut self, now: Now) {
        for _ in 0..TIMERS_AT_ONCE {
            let Some(timer) = self.timers.pop_due(now.mono) else { return };
            match timer {
                Timer::Request(key) => self.request_due(key, now),
                Timer::Announce(vif) => self.announcement_due(vif, now),
                Timer::Watch(vif) => self.watch_due(vif, now),
                Timer::Expire(key) => self.expire(key),
                Timer::Damped(key) => self.tell_late(key, now),
                Timer::Rival(key) => self.rival_due(key, now),
                Timer::Claim(vif) => self.claim_due(vif, now),
                Timer::Left(key) => self.tell_left(key, now.mono),
                Timer::Note(key) => self.drop_note(&key),
            }
        }
    }

    /// The next thing to do, if any; call until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Mapper::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// What it did, refused and dropped.
    pub fn counters(&self) -> &MapperCounters {
        &self.counters
    }

    /// The vif of this host that owns a key.
    pub fn owner(&self, key: &VifKey) -> Option<LocalVif> {
        self.vifs.owner(key)
    }

    /// The claim that a vif owns its key by, unless it has none.
    pub fn claim(&self, vif: LocalVif) -> Option<Claim> {
        self.vifs.get(vif)?.claim()
    }

    /// Where a vif that was here has gone, for one lifetime after it became known.
    pub fn forwarding(&self, key: VifKey) -> Option<Claim> {
        self.notes.get(&key)?.moved
    }

    fn count(&self, counter: MapperCounter) {
        self.counters.inc(counter);
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn notify(&mut self, vif: LocalVif, notice: Notice) {
        self.outputs.push_back(Output::Notify { vif, notice });
    }

    /// Tells those of `interest` that are still registered.
    fn notify_all(&mut self, key: VifKey, interest: &Interest, notice: Notice) {
        match interest.listed() {
            Some(listed) => {
                for &vif in listed.iter().filter(|&&vif| self.vifs.get(vif).is_some()) {
                    self.outputs.push_back(Output::Notify { vif, notice });
                }
            }
            None => {
                let hears =
                    |vif: &LocalVif| self.vifs.get(*vif).is_some_and(|v| v.behind.is_none());
                for vif in self.vifs.on_vnet(key.vnet).filter(hears) {
                    self.outputs.push_back(Output::Notify { vif, notice });
                }
            }
        }
    }

    /// Sends a message of this host; `wide` only for requests and announcements.
    fn send(&mut self, to: Destination, key: VifKey, nonce: u64, wide: bool, body: Body) {
        let group = to == Destination::Group;
        self.count(match body {
            Body::Request { .. } if group => MapperCounter::tx_requests,
            Body::Request { .. } => MapperCounter::tx_refreshes,
            Body::Reply { .. } => MapperCounter::tx_replies,
            Body::Announce { .. } => MapperCounter::tx_announces,
            Body::Correction { .. } => MapperCounter::tx_corrections,
            Body::Absent => MapperCounter::tx_absents,
        });
        let author = self.own;
        let message = Message { key, author, nonce, wide, relayed: false, body, tag: None };
        self.outputs.push_back(Output::Send { to, message });
    }

    /// Where the host of this IP address answers VARP.
    fn varp_address(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.config.port)
    }

    fn lifetime_ms(&self) -> u32 {
        millis(self.config.lifetime)
    }
}

/// On the wire a lifetime is at least 1 ms.
fn millis(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
}
