//! Messages of other hosts, and the trust in each.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::cache::Known;
use super::claims::outranks;
use super::clock::Clock;
use super::pending::Stage;
use super::{Destination, Event, Mapper, MapperCounter, millis};
use crate::time::{Instant, Now};
use crate::wire::name::is_reachable;
use crate::wire::varp::{Author, Body, Claim, Message};
use crate::wire::{CareOf, VifKey};

/// The least time between two corrections of one cached mapping: those who announce repeat
/// themselves, and everybody who has the mapping answers.
const CORRECTION_INTERVAL: Duration = Duration::from_secs(1);

/// The way by which a claim arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// From the owner itself, just now.
    Announced,
    /// From the owner itself, some time ago: a late answer.
    Late,
    /// From a third host, or in answer to an announcement of this host, with the time at which the
    /// owner last confirmed it.
    Corrected(Instant),
}

impl Mapper {
    /// Handles a message from the address `from`, through the group or by unicast.
    pub fn handle_message(
        &mut self,
        from: SocketAddr,
        via_group: bool,
        message: &Message,
        now: Now,
    ) {
        let from = canonical(from);
        self.count(match message.body {
            Body::Request { .. } => MapperCounter::rx_requests,
            Body::Reply { .. } => MapperCounter::rx_replies,
            Body::Announce { .. } => MapperCounter::rx_announces,
            Body::Correction { .. } => MapperCounter::rx_corrections,
            Body::Absent => MapperCounter::rx_absents,
        });
        if let Err(drop) = self.admit(from, via_group, message) {
            self.count(drop);
            return;
        }
        let (key, nonce) = (message.key, message.nonce);
        match message.body {
            Body::Request { asker, refresh } => {
                if self.is_believed_question(via_group, message, asker) {
                    self.hear_question(key, asker, now);
                }
                self.answer(key, nonce, message.author, refresh && !via_group);
            }
            Body::Reply { claim, lifetime_ms } => {
                self.on_reply(message, claim, lifetime_ms, now);
            }
            Body::Announce { claim, lifetime_ms } => {
                let lifetime = self.config.believed(lifetime_ms);
                match self.learn(key, claim, lifetime, Heard::Announced, now) {
                    Some(known) => self.correct_author(message, known, now),
                    None => self.contest(message, claim, now.mono),
                }
            }
            Body::Correction { claim, lifetime_ms } => {
                self.on_correction(message, claim, lifetime_ms, now);
            }
            Body::Absent => {
                if !self.disclaimed(key, message.author, nonce, now) {
                    self.count(MapperCounter::rx_drop_unasked);
                }
            }
        }
    }

    /// Refuses and counts a message with flag L that came `from` there, unless that is a relay.
    pub fn refuses_relayed(&mut self, from: SocketAddr) -> bool {
        let is_refused = !self.config.relays.contains(&canonical(from).ip());
        if is_refused {
            self.count(MapperCounter::rx_drop_relayed);
        }
        is_refused
    }

    /// Checks the origin of a message. Returns the counter of the reason to drop it.
    fn admit(
        &self,
        from: SocketAddr,
        via_group: bool,
        message: &Message,
    ) -> Result<(), MapperCounter> {
        let author = message.author;
        let is_relay = self.config.relays.contains(&from.ip());
        if from == self.own.addr || author.name() == self.own.name() {
            return Err(MapperCounter::rx_drop_own);
        }
        if message.tag.is_some() {
            return Err(MapperCounter::rx_drop_tagged);
        }
        if message.relayed && !is_relay {
            return Err(MapperCounter::rx_drop_relayed);
        }
        if !is_relay && from.port() != self.config.port {
            return Err(MapperCounter::rx_drop_port);
        }
        if !is_relay && author.addr != from {
            return Err(MapperCounter::rx_drop_source);
        }
        if !self.is_elsewhere(author.addr.ip(), from.ip())
            || message.body.claim().is_some_and(|claim| !self.is_place(message, *claim, from))
        {
            return Err(MapperCounter::rx_drop_address);
        }
        let is_authors = |claim: Claim| claim.owner().of_host() == author.name();
        match message.body {
            Body::Announce { .. } if !via_group && !is_relay => Err(MapperCounter::rx_drop_cast),
            Body::Reply { .. } | Body::Correction { .. } | Body::Absent if via_group => {
                Err(MapperCounter::rx_drop_cast)
            }
            Body::Announce { claim, .. } | Body::Reply { claim, .. } if !is_authors(claim) => {
                Err(MapperCounter::rx_drop_source)
            }
            _ => Ok(()),
        }
    }

    /// Whether a vif can be at the care-of address in its claim.
    fn is_place(&self, message: &Message, claim: Claim, from: SocketAddr) -> bool {
        if self.is_elsewhere(claim.coa.addr.ip(), from.ip()) {
            return true;
        }
        // A claim of this host's own earlier life is outdone where the vif is here; see `contend`.
        let is_of_earlier_life = claim.owner().of_host() == self.own.name();
        let is_correction = matches!(message.body, Body::Correction { .. });
        is_correction && is_of_earlier_life && self.vifs.owner(&message.key).is_some()
    }

    /// Whether an address can be that of another host on this underlay. An address of this host can
    /// be that of another varpd here if the message comes from it: the kernel drops IPv4 packets of
    /// other hosts whose source is an address of this host.
    pub(super) fn is_elsewhere(&self, ip: IpAddr, from: IpAddr) -> bool {
        let own = self.own.addr.ip();
        let is_neighbour = from == ip && ip.is_ipv4() || own.is_loopback();
        let is_local = ip == own || self.local.contains(&ip) && !is_neighbour;
        !is_local && is_reachable(ip, own)
    }

    /// Whether a question to all hosts may cast doubt on a claim. As with announcements, only a
    /// host of the segment may do so, and only for the address from which it sends.
    fn is_believed_question(&self, via_group: bool, message: &Message, asker: CareOf) -> bool {
        let is_heard = via_group || message.relayed;
        is_heard && asker.addr.ip() == message.author.addr.ip()
    }

    /// Another host asks all hosts for a key that a running vif of this host has lost. If the asker
    /// is the vif that has the key, it has stopped or its backend has ended ([`Mapper::doubt`]): the
    /// vif here takes its key back. Any other asker does not know the owner, or has lost it: this
    /// host asks whether the owner is there.
    fn hear_question(&mut self, key: VifKey, asker: CareOf, now: Now) {
        let Some(vif) = self.vifs.running(key).filter(|_| self.vifs.owner(&key).is_none()) else {
            return;
        };
        match self.cached_claim(&key) {
            Some(claim) if claim.coa.addr == asker.addr => {
                self.abandoned(key, now);
            }
            Some(_) => {
                self.doubt_mapping(key, now);
            }
            None => self.ask_for(vif, now),
        }
    }

    /// Answers a request: to one through the group, only the owner does; to one to this host
    /// `alone`, any host.
    fn answer(&mut self, key: VifKey, nonce: u64, asker: Author, alone: bool) {
        let moved = self.forwarding(key).filter(|claim| self.may_tell(claim, asker));
        let lifetime_ms = self.lifetime_ms();
        let body = match (self.vifs.owner_claim(&key), moved) {
            (Some((_, claim)), _) => Body::Reply { claim, lifetime_ms },
            (None, _) if !alone => return,
            (None, Some(claim)) => Body::Correction { claim, lifetime_ms },
            (None, None) => Body::Absent,
        };
        self.send(Destination::Unicast(asker.addr), key, nonce, false, body);
    }

    /// A reply to an open question, or to one that another host has answered before.
    fn on_reply(&mut self, message: &Message, claim: Claim, lifetime_ms: u32, now: Now) {
        let (key, nonce) = (message.key, message.nonce);
        let lifetime = self.config.believed(lifetime_ms);
        let open = self.pending.get(&key).is_some_and(|p| p.nonce == nonce);
        let known = match (open, self.cached_nonce(&key) == Some(nonce)) {
            // It was in doubt whether its owner is still on this host.
            (true, _) if self.vifs.owner(&key).is_some() => {
                self.learn(key, claim, lifetime, Heard::Announced, now)
            }
            (true, _) => self.answered(key, claim, lifetime, now),
            (false, true) => self.learn(key, claim, lifetime, Heard::Late, now),
            (false, false) => {
                self.count(MapperCounter::rx_drop_unasked);
                return;
            }
        };
        if let Some(known) = known {
            self.correct_author(message, known, now);
        }
    }

    /// Handles the answer to an open question. If a newer claim is known, returns that; then
    /// the question stays open.
    fn answered(
        &mut self,
        key: VifKey,
        claim: Claim,
        lifetime: Duration,
        now: Now,
    ) -> Option<Claim> {
        self.observe(key, claim, now);
        self.carry_along(key, claim, now);
        match self.cached_claim(&key) {
            Some(known) if known.is_own() && !claim.is_own() => {
                let is_asked_all = self.pending.get(&key).is_some_and(|p| p.stage == Stage::Ask);
                // The owner's host itself says this, or does not answer.
                if is_asked_all || claim.owner().of_host() == known.owner().of_host() {
                    self.give_up_own(key, claim, lifetime, now);
                }
                None
            }
            Some(known) if outranks(&known, &claim, now.wall_ms) => {
                self.count(MapperCounter::rx_stale);
                Some(known)
            }
            _ => {
                self.found(key, claim, lifetime, now);
                self.vouch(key, claim, lifetime, now);
                None
            }
        }
    }

    /// The nonce of the question that a cached mapping answered last.
    fn cached_nonce(&self, key: &VifKey) -> Option<u64> {
        match self.cache.get(key)?.known {
            Known::At { nonce, .. } => Some(nonce),
            Known::Nobody => None,
        }
    }

    /// A third host reports a newer claim.
    fn on_correction(&mut self, message: &Message, claim: Claim, lifetime_ms: u32, now: Now) {
        let (key, nonce, author) = (message.key, message.nonce, message.author);
        let owner = self.vifs.owner(&key);
        // Two networks may use one address: only the owner can tell the place of a vif in another
        // realm.
        let is_foreign = author.realm != self.own.realm;
        if is_foreign {
            self.count(MapperCounter::rx_foreign_realm);
        }
        if let Some(vif) = owner {
            let own = self.vifs.get(vif).and_then(|v| v.own.as_ref());
            if is_foreign || own.is_none_or(|own| own.nonce != nonce) {
                self.count(MapperCounter::rx_drop_unasked);
                self.challenge(vif, now.mono);
                return;
            }
        } else if is_foreign || !self.is_answer(key, nonce, author) {
            if self.is_owners_host(key, author) {
                self.count(MapperCounter::rx_unproven);
                self.doubt_mapping(key, now);
            } else if claim.owner().of_host() == author.name() && self.release(key, claim, now.mono)
            {
                self.count(MapperCounter::rx_unproven);
            } else {
                self.count(MapperCounter::rx_drop_unasked);
            }
            return;
        }
        let lifetime = self.config.believed(lifetime_ms);
        let age_ms = self.lifetime_ms().saturating_sub(lifetime_ms);
        let age_us = u64::from(age_ms) * 1000;
        let confirmed = Instant::from_micros(now.mono.as_micros().saturating_sub(age_us));
        let known = self.learn(key, claim, lifetime, Heard::Corrected(confirmed), now);
        // A vif that we have won still runs at its host: who else would say so?
        let is_rivals = claim.owner().of_host() == author.name();
        if let (Some(ours), Some(vif), true) = (known, owner, is_rivals) {
            self.show_rival(vif, key, ours, claim, now.mono);
        }
    }

    /// Whether a correction answers our question to its author.
    fn is_answer(&self, key: VifKey, nonce: u64, author: Author) -> bool {
        let asked = |stage| matches!(stage, Stage::Confirm(host) if host == author.addr);
        self.pending.get(&key).is_some_and(|p| p.nonce == nonce && asked(p.stage))
    }

    /// Whether a cached mapping names the author as the host of the vif.
    fn is_owners_host(&self, key: VifKey, author: Author) -> bool {
        let ip = author.addr.ip();
        self.cached_claim(&key).is_some_and(|claim| claim.coa.addr.ip() == ip)
    }

    /// Takes a claim's stamp into the clock of its vnet.
    fn observe(&mut self, key: VifKey, claim: Claim, now: Now) {
        let is_plausible = match self.vifs.hosts(key.vnet) {
            true => self.clocks.of(key.vnet).observe(claim.stamp, now.wall_ms),
            false => Clock::plausible(claim.stamp, now.wall_ms),
        };
        if !is_plausible {
            self.count(MapperCounter::rx_implausible);
            self.event(Event::Implausible { key, claim });
        }
    }

    /// Takes in a claim to any key. Returns the claim that is known to be newer, if one is.
    fn learn(
        &mut self,
        key: VifKey,
        claim: Claim,
        lifetime: Duration,
        heard: Heard,
        now: Now,
    ) -> Option<Claim> {
        self.observe(key, claim, now);
        if self.vifs.owner(&key).is_some() {
            let confirmed = match heard {
                Heard::Corrected(at) => Some(at),
                Heard::Announced | Heard::Late => None,
            };
            return self.contend(key, claim, confirmed, lifetime, now);
        }
        self.follow(key, claim, now);
        if !self.vifs.hosts(key.vnet) {
            return None;
        }
        self.carry_along(key, claim, now);
        match self.cached_claim(&key) {
            Some(known) if known.is_own() && !claim.is_own() => {
                match heard {
                    // By the owner's host.
                    Heard::Corrected(_) => self.give_up_own(key, claim, lifetime, now),
                    Heard::Announced | Heard::Late => {
                        self.hear_rival(key, claim, lifetime, now.mono);
                    }
                }
                None
            }
            Some(known) if heard == Heard::Announced && self.is_disclaimed(&key, &claim) => {
                self.count(MapperCounter::rx_stale);
                Some(known)
            }
            Some(known) if outranks(&claim, &known, now.wall_ms) => {
                self.found(key, claim, lifetime, now);
                None
            }
            Some(known) if outranks(&known, &claim, now.wall_ms) => {
                self.count(MapperCounter::rx_stale);
                Some(known)
            }
            // Only its owner can prolong a claim, and only by saying so now.
            Some(_) if heard == Heard::Announced => {
                self.found(key, claim, lifetime, now);
                None
            }
            Some(_) => None,
            None => {
                let wanted = self.cache.get(&key).is_some() || self.pending.get(&key).is_some();
                if wanted {
                    self.found(key, claim, lifetime, now);
                }
                None
            }
        }
    }

    /// Whether a host may be told of somebody's claim: a message is of one realm, and so are corrections.
    fn may_tell(&self, claim: &Claim, host: Author) -> bool {
        claim.realm == self.own.realm && host.realm == self.own.realm
    }

    /// Tells the author of an older claim about the newer one.
    fn correct_author(&mut self, message: &Message, newer: Claim, now: Now) {
        if !self.may_tell(&newer, message.author) {
            return;
        }
        let mut lifetime_ms = self.lifetime_ms();
        if let Some(entry) = self.cache.get_mut(&message.key) {
            let lately = |at| now.mono.saturating_since(at) < CORRECTION_INTERVAL;
            if entry.corrected.is_some_and(lately) {
                return;
            }
            entry.corrected = Some(now.mono);
            lifetime_ms = millis(entry.expires.saturating_since(now.mono));
        }
        if !self.corrections.take(now.mono) {
            self.count(MapperCounter::limit_corrections);
            return;
        }
        let (to, body) = (message.author.addr, Body::Correction { claim: newer, lifetime_ms });
        self.send(Destination::Unicast(to), message.key, message.nonce, false, body);
    }

    /// A frame arrived for a vif that has left: its sender's host, which `sender` is an address
    /// of, is told where the vif is now, if that is known; a host is told at once, soon again, and then at
    /// most once a second. Vifs of this host need not be: they heard it when it was learnt. That host then asks this one.
    pub fn correct(&mut self, key: VifKey, sender: SocketAddr, now: Now) {
        let host = sender.ip().to_canonical();
        let Some(claim) = self.forwarding(key).filter(|_| self.vifs.owner(&key).is_none()) else {
            return;
        };
        let is_told = self.is_elsewhere(host, host);
        let note = self.notes.get_mut(&key).filter(|_| is_told);
        if !note.is_some_and(|note| note.tell(host, now.mono)) {
            return;
        }
        if !self.corrections.take(now.mono) {
            self.count(MapperCounter::limit_corrections);
            return;
        }
        let to = Destination::Unicast(self.varp_address(host));
        let body = Body::Correction { claim, lifetime_ms: self.lifetime_ms() };
        self.send(to, key, 0, false, body);
    }
}

/// An address as it is in messages: a dual-stack socket shows IPv4 senders as IPv4-mapped IPv6 addresses,
/// and a link-local address has a scope id here only.
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
