//! Messages of other hosts: who is believed what.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::cache::Known;
use super::claims::outranks;
use super::pending::Stage;
use super::{Destination, Event, Mapper, MapperCounter, millis};
use crate::time::{Instant, Now};
use crate::wire::varp::{Body, Claim, Message};
use crate::wire::{CareOf, VifKey};

/// The least time between two corrections of one cached mapping: those who announce repeat
/// themselves, and everybody who has the mapping answers.
const CORRECTION_INTERVAL: Duration = Duration::from_secs(1);

/// How a claim came here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// From the owner itself, just now.
    Announced,
    /// From the owner itself, some time ago: an answer that came late.
    Late,
    /// From a third host, or in answer to our own announcement; the owner confirmed it then.
    Corrected(Instant),
}

impl Mapper {
    /// Takes in a message that came `from` that address, through the group or by unicast.
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
            Body::Request { asker, reply_to, refresh } => {
                if self.is_owners_question(from, via_group, asker, reply_to) {
                    self.take_back(key, asker, now);
                }
                self.answer(key, nonce, reply_to, refresh && !via_group);
            }
            Body::Reply { claim, lifetime_ms } => {
                self.on_reply(from, message, claim, lifetime_ms, now);
            }
            Body::Announce { claim, lifetime_ms } => {
                let lifetime = self.config.believed(lifetime_ms);
                match self.learn(key, claim, lifetime, Heard::Announced, now) {
                    Some(known) => self.correct_sender(from, message, claim, known, now),
                    None => self.contest(from, message, claim, now.mono),
                }
            }
            Body::Correction { claim, lifetime_ms } => {
                self.on_correction(from, message, claim, lifetime_ms, now);
            }
            Body::Absent => {
                if !self.disclaimed(key, from, nonce, now) {
                    self.count(MapperCounter::rx_drop_unasked);
                }
            }
        }
    }

    /// What is refused whatever it says, by the counter of its reason.
    fn admit(
        &self,
        from: SocketAddr,
        via_group: bool,
        message: &Message,
    ) -> Result<(), MapperCounter> {
        let own = self.own;
        let relay = self.config.relays.contains(&from.ip());
        // A relayed message is believed if it came through the group, where only hosts of the
        // segment can send, or from a known relay.
        let relayed = relay || (message.relayed && via_group);
        let speaks_for = |ip: IpAddr| relayed || ip.to_canonical() == from.ip();
        if from == own {
            return Err(MapperCounter::rx_drop_own);
        }
        if message.tag.is_some() {
            return Err(MapperCounter::rx_drop_tagged);
        }
        match message.body {
            Body::Request { reply_to, .. } if reply_to == own => Err(MapperCounter::rx_drop_own),
            Body::Request { reply_to, .. } if !speaks_for(reply_to.ip()) => {
                Err(MapperCounter::rx_drop_reply_to)
            }
            Body::Announce { .. } if !via_group && !relay => Err(MapperCounter::rx_drop_cast),
            Body::Announce { claim, .. } if !speaks_for(claim.coa.addr.ip()) => {
                Err(MapperCounter::rx_drop_source)
            }
            Body::Reply { .. } | Body::Correction { .. } | Body::Absent if via_group => {
                Err(MapperCounter::rx_drop_cast)
            }
            // A relayed reply proves itself by its nonce.
            Body::Reply { claim, .. } if !message.relayed && !speaks_for(claim.coa.addr.ip()) => {
                Err(MapperCounter::rx_drop_source)
            }
            _ => Ok(()),
        }
    }

    /// Whether a question may say that its asker's claim is in doubt: as with an announcement, whoever is
    /// not of the segment, or has not the address that it names, is not believed.
    fn is_owners_question(
        &self,
        from: SocketAddr,
        via_group: bool,
        asker: CareOf,
        reply_to: SocketAddr,
    ) -> bool {
        let is_heard = via_group || self.config.relays.contains(&from.ip());
        // That of the answer was compared with the sender's.
        is_heard && asker.addr.ip().to_canonical() == reply_to.ip().to_canonical()
    }

    /// Who owns a key asks who has it: its backend has ended ([`Mapper::doubt`]). A vif here that runs,
    /// and that had lost the key to it, takes it back.
    fn take_back(&mut self, key: VifKey, asker: CareOf, now: Now) {
        let is_of_owner = |claim: Claim| claim.coa.addr == asker.addr;
        if self.vifs.owner(&key).is_none() && self.cached_claim(&key).is_some_and(is_of_owner) {
            self.abandoned(key, now);
        }
    }

    /// Only the owner's host answers, except where it was asked alone.
    fn answer(&mut self, key: VifKey, nonce: u64, reply_to: SocketAddr, alone: bool) {
        let moved = self.notes.get(&key).and_then(|note| note.moved);
        let lifetime_ms = self.lifetime_ms();
        let body = match (self.vifs.owner_claim(&key), moved) {
            (Some((_, claim)), _) => Body::Reply { claim, lifetime_ms },
            (None, _) if !alone => return,
            (None, Some(claim)) => Body::Correction { claim, lifetime_ms },
            (None, None) => Body::Absent,
        };
        self.send(Destination::Unicast(reply_to), key, nonce, false, body);
    }

    /// An answer to a question that is open, or was answered by somebody else before.
    fn on_reply(
        &mut self,
        from: SocketAddr,
        message: &Message,
        claim: Claim,
        lifetime_ms: u32,
        now: Now,
    ) {
        let (key, nonce) = (message.key, message.nonce);
        let lifetime = self.config.believed(lifetime_ms);
        let open = self.pending.get(&key).is_some_and(|p| p.nonce == nonce);
        let known = match (open, self.cached_nonce(&key) == Some(nonce)) {
            // It was in doubt whether its owner is still here.
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
            self.correct_sender(from, message, claim, known, now);
        }
    }

    /// An open question is answered. Returns the claim that is known to be newer, if one is; then
    /// the question stays open.
    fn answered(
        &mut self,
        key: VifKey,
        claim: Claim,
        lifetime: Duration,
        now: Now,
    ) -> Option<Claim> {
        self.observe(key, claim, now);
        match self.cached_claim(&key) {
            Some(known) if outranks(&known, &claim, now.wall_ms) => {
                self.count(MapperCounter::rx_stale);
                Some(known)
            }
            _ => {
                self.found(key, claim, lifetime, now);
                None
            }
        }
    }

    /// The question that a cached mapping answered last.
    fn cached_nonce(&self, key: &VifKey) -> Option<u64> {
        match self.cache.get(key)?.known {
            Known::At { nonce, .. } => Some(nonce),
            Known::Nobody => None,
        }
    }

    /// A third host says that there is a newer claim.
    fn on_correction(
        &mut self,
        from: SocketAddr,
        message: &Message,
        claim: Claim,
        lifetime_ms: u32,
        now: Now,
    ) {
        let (key, nonce) = (message.key, message.nonce);
        let owner = self.vifs.owner(&key);
        if let Some(vif) = owner {
            let own = self.vifs.get(vif).and_then(|v| v.own.as_ref());
            if own.is_none_or(|own| own.nonce != nonce) {
                self.count(MapperCounter::rx_drop_unasked);
                self.challenge(vif, now.mono);
                return;
            }
        } else if !self.may_correct(key, nonce, from) {
            self.count(MapperCounter::rx_drop_unasked);
            return;
        }
        let lifetime = self.config.believed(lifetime_ms);
        let age_ms = self.lifetime_ms().saturating_sub(lifetime_ms);
        let age_us = u64::from(age_ms) * 1000;
        let confirmed = Instant::from_micros(now.mono.as_micros().saturating_sub(age_us));
        let known = self.learn(key, claim, lifetime, Heard::Corrected(confirmed), now);
        // A vif that we have won still runs at its host: who else would say so?
        let is_rivals = from.ip() == claim.coa.addr.ip().to_canonical();
        if let (Some(ours), Some(vif), true) = (known, owner, is_rivals) {
            self.show_rival(vif, key, ours, claim, now.mono);
        }
    }

    /// Whether a correction answers our question, or comes from the host that it disclaims for.
    fn may_correct(&self, key: VifKey, nonce: u64, from: SocketAddr) -> bool {
        let asked = |stage| matches!(stage, Stage::Confirm(host) if host.ip() == from.ip());
        let open = self.pending.get(&key).is_some_and(|p| p.nonce == nonce && asked(p.stage));
        let source = self.cached_claim(&key).map(|claim| claim.coa.addr.ip());
        open || source.is_some_and(|ip| ip == from.ip())
    }

    /// Takes a claim's stamp into the clock.
    fn observe(&mut self, key: VifKey, claim: Claim, now: Now) {
        if !self.clock.observe(claim.stamp, now.wall_ms) {
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
        match self.cached_claim(&key) {
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

    /// Tells a host with an older claim about the newer one.
    fn correct_sender(
        &mut self,
        from: SocketAddr,
        message: &Message,
        stale: Claim,
        newer: Claim,
        now: Now,
    ) {
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
        let relayed = message.relayed || from.ip() != stale.coa.addr.ip();
        let to = if relayed { self.varp_address(stale.coa.addr.ip()) } else { from };
        let body = Body::Correction { claim: newer, lifetime_ms };
        self.send(Destination::Unicast(to), message.key, message.nonce, false, body);
    }

    /// A frame arrived for a vif that has left: its sender's host, which `sender` is an address
    /// of, is told where the vif is now, if that is known; a host is told at once, soon again, and then at
    /// most once a second. Vifs of this host need not be: they heard it when it was learnt.
    pub fn correct(&mut self, key: VifKey, sender: SocketAddr, now: Now) {
        let host = sender.ip().to_canonical();
        let Some(claim) = self.forwarding(key).filter(|_| self.vifs.owner(&key).is_none()) else {
            return;
        };
        let note = self.notes.get_mut(&key).filter(|_| host != self.own.ip());
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
