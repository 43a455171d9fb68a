//! The backend's side of the control protocol: handles events of varpd, and makes requests.
//!
//! It does no I/O: the loop in [`crate::vif::serve`] sends and receives the messages.

mod ending;

use std::fmt::Arguments;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use log::Level;

use crate::local::ends::LaneOffer;
use crate::metrics::{Reading, VifCounter};
use crate::policy::{Floor, Policy, Suite};
use crate::quiet::QuietEach;
use crate::secret::Secret;
use crate::security::group::Salt;
use crate::sys::process;
use crate::time::Instant;
use crate::vif::announcing::Announcing;
use crate::vif::key_ends::KeyEnds;
use crate::vif::learning::Learning;
use crate::vif::nic::{Lent, Nic};
use crate::wire::control::{ErrorCode, Event, Features, Kind, Request, Sample, software};
use crate::wire::{Capabilities, CareOf, Mac, Stamp, VifKey};

/// What this backend's receivers understand beyond plain frames.
pub const CAPABILITIES: Capabilities = Capabilities(
    Capabilities::PARTIAL_CHECKSUM.0
        | Capabilities::BUNDLE.0
        | Capabilities::FRAGMENT.0
        | Capabilities::ECHO.0,
);

/// First wait before a lost varpd is called again; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(20);
/// Longest wait between two calls.
const MAX_BACKOFF: Duration = Duration::from_millis(500);

/// Lines of a kind in a minute.
const MOST_LINES: u32 = 5;

/// The registration of one vif with varpd, across varpd's restarts.
pub struct Link {
    key: VifKey,
    queue_pairs: u8,
    /// Most MACs behind the vif.
    learn: u16,
    nic: Arc<Nic>,
    stamp: Option<Stamp>,
    /// The least that frames are carried under.
    floor: Floor,
    /// What they are carried under.
    policy: Policy,
    /// The vnet's policy is below the least.
    is_halted: bool,
    told_active: bool,
    announcing: Announcing,
    is_registered: bool,
    /// MACs behind the vif.
    learning: Learning,
    /// Whether varpd has to be told all of them.
    relearn: bool,
    /// Whether keys for group frames have come, on a secured vnet.
    has_group_keys: bool,
    /// Whether varpd was away, and has not sent keys since.
    awaits_keys: bool,
    /// Sessions whose packets are accepted, which varpd waits to hear.
    ready: Vec<u32>,
    /// When keys end if varpd is away.
    key_ends: KeyEnds,
    backoff: Duration,
    /// What the log says, by kind: whoever can announce a MAC can provoke some of it.
    said: QuietEach<&'static str>,
}

impl Link {
    /// A link for a vif that varpd has just registered as inactive, behind which there may be so
    /// many MACs.
    pub fn new(key: VifKey, queue_pairs: u8, learn: usize, nic: Arc<Nic>) -> Self {
        nic.counters().inc(VifCounter::varpd_connects);
        nic.bound_receive_buffers();
        let backoff = MIN_BACKOFF;
        Self {
            key,
            queue_pairs,
            learn: u16::try_from(learn).unwrap_or(u16::MAX),
            nic,
            stamp: None,
            floor: Floor::default(),
            policy: Policy::default(),
            is_halted: false,
            told_active: false,
            announcing: Announcing::default(),
            is_registered: true,
            learning: Learning::new(learn),
            relearn: false,
            has_group_keys: false,
            awaits_keys: false,
            ready: Vec::new(),
            key_ends: KeyEnds::default(),
            backoff,
            said: QuietEach::new(MOST_LINES),
        }
    }

    /// The first message on a new connection.
    pub fn hello() -> Request {
        Request::Hello { features: Features::LANES, software: software("vhost-user-vnet") }
    }

    /// The next message on a new connection.
    pub fn register(&mut self) -> Request {
        self.told_active = self.nic.is_active();
        if !self.told_active {
            self.learning.clear(&self.nic);
        }
        Request::Register {
            key: self.key,
            capabilities: CAPABILITIES,
            queue_pairs: self.queue_pairs,
            active: self.told_active,
            stamp: self.stamp,
            learn: self.learn,
            floor: self.floor,
        }
    }

    /// The same for a vif that carries frames under this at the least.
    #[must_use]
    pub fn above(mut self, floor: Floor) -> Self {
        self.floor = floor;
        self
    }

    /// The least that frames are carried under.
    pub fn floor(&self) -> Floor {
        self.floor
    }

    /// Whether the vnet's policy is below that: then no frame is carried, and varpd does not claim the vif.
    pub fn is_halted(&self) -> bool {
        self.is_halted
    }

    /// varpd has registered the vif, on a vnet with this policy. Returns whether frames are carried.
    pub fn handle_policy(&mut self, policy: Policy) -> bool {
        if !self.floor.admits(policy) {
            // varpd finds the same, and takes the rings for stopped.
            self.told_active = false;
            self.is_halted = true;
            self.nic.set_halted(true);
            // With its keys, and nobody renews them.
            self.key_ends.handle_dropped();
            return false;
        }
        self.floor.note(policy);
        if policy != self.policy {
            self.policy = policy;
            if !policy.is_secured() {
                self.key_ends.handle_dropped();
            }
            self.nic.set_policy(self.key.vnet, policy);
        }
        if std::mem::take(&mut self.is_halted) {
            self.nic.set_halted(false);
        }
        true
    }

    /// What frames are carried under, if they are.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// The new connection's registration was accepted.
    pub fn handle_registered(&mut self, now: Instant) {
        self.nic.counters().inc(VifCounter::varpd_connects);
        self.is_registered = true;
        self.backoff = MIN_BACKOFF;
        self.relearn = true;
        self.awaits_keys = true;
        self.nic
            .workers()
            .for_each(|mut worker| worker.tunnel_mut().neighbors_mut().varpd_returned(now));
        self.nic.bound_receive_buffers();
    }

    /// The vif is at another care-of address: stamps order claims to the one before.
    pub fn handle_moved(&mut self) {
        self.stamp = None;
        self.learning.forget_stamps();
    }

    /// The connection is gone. Returns how long to wait before the next attempt.
    pub fn handle_disconnected(&mut self, now: Instant) -> Duration {
        self.key_ends.handle_left(now);
        if self.is_registered {
            self.nic
                .workers()
                .for_each(|mut worker| worker.tunnel_mut().neighbors_mut().varpd_left());
        }
        self.is_registered = false;
        let backoff = self.backoff;
        self.backoff = (backoff * 2).min(MAX_BACKOFF);
        backoff
    }

    /// Messages that varpd is owed since the last call; empty while there is no connection.
    pub fn requests(&mut self, now: Instant) -> Vec<Request> {
        if !self.is_registered {
            return Vec::new();
        }
        let mut wishes = self.nic.wishes();
        wishes.active &= !self.is_halted;
        wishes.announce &= !self.is_halted;
        let mut requests = Vec::new();
        if wishes.announce {
            self.announcing.wish();
        }
        if wishes.active != self.told_active {
            self.told_active = wishes.active;
            // It is announced when it is claimed.
            self.announcing.clear();
            if !wishes.active {
                self.learning.clear(&self.nic);
            }
            requests.push(Request::SetActive { active: wishes.active });
        } else if self.announcing.take(now) {
            requests.push(Request::Announce);
        }
        requests.extend(self.ready.drain(..).map(|number| Request::SaReady { number }));
        requests.extend(wishes.needs.iter().map(|address| Request::SaNeeded { address: *address }));
        requests.extend(wishes.lanes_ended.iter().map(|&lane| Request::LaneClosed { lane }));
        requests.extend(
            wishes.questions.iter().map(|q| Request::Resolve { mac: q.mac, refresh: q.refresh }),
        );
        if wishes.active {
            if std::mem::take(&mut self.relearn) {
                requests.extend(self.learning.all());
            }
            requests.extend(self.learning.update(&wishes.sources, &self.nic, now));
        }
        let late = wishes.late.iter();
        requests.extend(late.map(|l| Request::Late { mac: l.mac, sender: l.from }));
        requests
    }

    /// Whether varpd has sent keys for group frames. On a secured vnet nothing works before.
    pub fn has_group_keys(&self) -> bool {
        self.has_group_keys
    }

    /// Handles a message of varpd and what came with it; returns the answer if it wants one.
    pub fn handle_event(
        &mut self,
        event: Event,
        fds: Vec<OwnedFd>,
        now: Instant,
    ) -> Option<Request> {
        let millis = |ms: u32| Duration::from_millis(ms.into());
        match event {
            Event::Mapping { mac, coa, stamp: _, lifetime_ms } => {
                let lifetime = millis(lifetime_ms);
                let each = |mut w: Lent<'_>| {
                    w.handle_mapping(mac, coa, lifetime, now);
                };
                self.nic.workers().for_each(each);
            }
            Event::Unresolved { mac, hold_ms } => {
                let hold = millis(hold_ms);
                self.nic
                    .workers()
                    .for_each(|mut w| w.tunnel_mut().handle_unresolved(mac, hold, now));
            }
            Event::Invalidate { mac } => {
                self.nic.workers().for_each(|mut worker| {
                    worker.tunnel_mut().neighbors_mut().handle_invalidate(mac)
                });
            }
            Event::GroupKeys { .. }
            | Event::SaOut { .. }
            | Event::SaIn { .. }
            | Event::SaEnd { .. } => self.handle_keys(event, now),
            // What was behind a guest whose rings have stopped is gone: varpd hears it soon, if it has not.
            Event::Claimed { mac, .. } if mac != self.key.mac && !self.told_active => {}
            Event::Claimed { mac, stamp } if mac != self.key.mac => {
                self.learning.handle_claimed(mac, stamp, &self.nic, now);
            }
            Event::Refused { mac, hold_ms } => {
                self.learning.refuse(mac, millis(hold_ms), &self.nic, now);
            }
            Event::Claimed { mac, stamp } => {
                self.stamp = Some(stamp);
                self.nic.workers().for_each(|mut worker| worker.tunnel_mut().arrive(mac));
            }
            Event::Lost { mac, stamp, coa, lifetime_ms } => {
                self.say_lost(mac, coa, stamp, now);
                let lifetime = millis(lifetime_ms);
                self.learning.handle_lost(mac, &self.nic);
                self.nic.workers().for_each(|mut w| w.depart(mac, coa, lifetime, now));
            }
            Event::Lane { lane, pair, is_read, mac: _, addr } => {
                let offer = LaneOffer { lane, is_read, addr };
                return self.open_lane(pair, offer, fds, now);
            }
            Event::CloseLane { lane } => {
                self.nic.workers().for_each(|mut worker| worker.local_mut().close(lane, now));
            }
            Event::GroupLongest { longest } => {
                self.nic
                    .workers()
                    .for_each(|mut worker| worker.tunnel_mut().set_group_longest(longest));
            }
            Event::StatsRequest { xid } => return Some(self.stats(xid)),
            Event::Error { code: ErrorCode::Warning, text } => {
                self.say(Level::Warn, "varpd warns", format_args!("varpd: {text}"), now);
            }
            Event::Error { code, text } => {
                self.say(
                    Level::Warn,
                    "varpd refuses",
                    format_args!("varpd: {text} ({code:?})"),
                    now,
                );
            }
            Event::Hello { .. }
            | Event::Registered { .. }
            | Event::Columns { .. }
            | Event::Row { .. }
            | Event::End => {
                let line = format_args!("varpd sent an unexpected message");
                self.say(Level::Warn, "unexpected", line, now);
            }
        }
        None
    }

    /// Logs a line at this level or, if its kind was logged often in this minute, at one that only debugging shows.
    fn say(&mut self, level: Level, kind: &'static str, line: Arguments<'_>, now: Instant) {
        match self.said.level(kind, now) {
            Level::Warn => log::log!(level, "{line}"),
            suppressed => log::log!(suppressed, "{line}"),
        }
    }

    fn say_lost(&mut self, mac: Mac, coa: CareOf, stamp: Stamp, now: Instant) {
        let key = self.key;
        if mac == key.mac && self.nic.is_active() {
            let line = format_args!(
                "vif {key}: a guest with this MAC runs at {coa}, too, and frames for the MAC go there from now on; \
                 unless this guest has just moved there, give one of the two another MAC"
            );
            self.say(Level::Warn, "taken", line, now);
        } else {
            let line = format_args!("{mac} is now at {coa} (stamp {})", stamp.0);
            self.say(Level::Info, "moved", line, now);
        }
    }

    /// Keys of a secured vnet; on another nobody has use for them.
    fn handle_keys(&mut self, event: Event, now: Instant) {
        if let Event::SaIn { keys } = &event {
            self.ready.extend(keys.iter().map(|key| key.number));
        }
        if self.is_halted {
            return;
        }
        if let Event::GroupKeys { keys, end, .. } = &event {
            self.has_group_keys = true;
            self.key_ends.handle_keys(*end, now);
            if std::mem::take(&mut self.awaits_keys) {
                self.end_withdrawn(keys);
            }
        }
        for (index, mut worker) in (0_u16..).zip(self.nic.workers()) {
            let own = worker.tunnel().place().receiver.own;
            let Some(protection) = worker.tunnel_mut().protection_mut() else { continue };
            let (inbound, policy) = (Arc::clone(protection.inbound()), protection.policy());
            // What is received is shared by the queue pairs: told once.
            let is_first = index == 0;
            match &event {
                Event::GroupKeys { salt, keys, end: _ } => {
                    if is_first {
                        inbound.set_group(keys.clone());
                    }
                    let is_sent = |(suite, _): &&(Suite, Secret)| suite.level() == policy.sent();
                    if let Some((suite, key)) = keys.iter().find(is_sent)
                        && let Some(salt) = draw_salt(salt.wrapping_add(index))
                    {
                        let outbound = protection.outbound_mut();
                        outbound.set_group(key.clone(), *suite, self.key.vnet, own, salt);
                    }
                }
                Event::SaOut { to, keys } => match keys.keys.get(usize::from(index)) {
                    Some((spi, key)) if policy.accepts(keys.suite.level()) => {
                        let (suite, lifetime) = (keys.suite, keys.lifetime);
                        protection.outbound_mut().insert(*to, *spi, suite, key, lifetime, now);
                    }
                    _ => protection.outbound_mut().remove(*to),
                },
                Event::SaIn { keys } if is_first => {
                    for key in keys {
                        let receiver = key.receiver.clone();
                        inbound.insert(key.number, key.suite, receiver, key.lifetime, now);
                    }
                }
                Event::SaEnd { number } if is_first => inbound.remove(*number),
                _ => {}
            }
        }
    }

    /// varpd is back, and accepts these keys of group frames. If one was withdrawn while it was away,
    /// it does not know which sessions were made with that: all are over.
    fn end_withdrawn(&self, accepted: &[(Suite, Secret)]) {
        for mut worker in self.nic.workers() {
            let Some(protection) = worker.tunnel_mut().protection_mut() else { continue };
            if protection.inbound().misses_any(accepted) {
                log::info!(
                    "a key of the vnet was given up while varpd was away: ending its sessions"
                );
                protection.remove_all();
            }
        }
    }

    /// A lane that is not as agreed is declined.
    fn open_lane(
        &self,
        pair: u8,
        offer: LaneOffer,
        fds: Vec<OwnedFd>,
        now: Instant,
    ) -> Option<Request> {
        match (self.nic.worker(pair.into()), <[OwnedFd; 2]>::try_from(fds)) {
            (Some(mut worker), Ok(fds)) => worker.open_lane(offer, fds, now),
            _ => return Some(Request::LaneClosed { lane: offer.lane }),
        }
        None
    }

    fn stats(&self, xid: u32) -> Request {
        let sample = |Reading { name, unit, value }| {
            let (name, unit) = (name.to_owned(), unit.to_owned());
            Sample { name, kind: Kind::Counter, unit, value }
        };
        Request::Stats { xid, samples: self.nic.counters().readings().map(sample).collect() }
    }

    /// Frames that have waited too long are dropped, MACs not used for long forgotten.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.end_keys(now);
        self.learning.handle_timeout(&self.nic, now);
        self.nic.workers().for_each(|mut worker| worker.handle_timeout(now));
    }

    /// When [`Link::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let workers = self.nic.workers().filter_map(|worker| worker.poll_timeout()).min();
        let announcing = self.announcing.poll_timeout().filter(|_| self.is_registered);
        let others = [self.learning.poll_timeout(), announcing, self.key_ends.poll_timeout()];
        workers.into_iter().chain(others.into_iter().flatten()).min()
    }
}

/// The salt of a sender to the group, with the part that varpd hands out. The other part is the kernel's
/// randomness, which is new after a restored snapshot too.
fn draw_salt(spi: u16) -> Option<Salt> {
    match process::random() {
        Ok(random) => Some(Salt { spi, random: u32::from_ne_bytes(random) }),
        Err(error) => {
            log::error!("no new key for group frames: cannot draw random numbers: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests;
