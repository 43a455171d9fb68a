//! A guest's NIC and its backend, as far as varpd is concerned: what it believes about its
//! neighbours, and when it asks.

use std::collections::BTreeMap;
use std::time::Duration;

use vnet::time::Instant;
use vnet::tunnel::moved::MovedMacs;
use vnet::wire::control::Event;
use vnet::wire::{CareOf, Mac, Stamp, VifKey};

use crate::host::lifetime;

/// How long a question may stay unanswered before the backend asks again.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is believed about one MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// It is there.
    Mapped { coa: CareOf, lifetime: Duration, expires: Instant, asked: Option<Instant> },
    /// It was asked for.
    Waiting { since: Instant },
    /// Nobody has it; not to be asked for until then.
    Held { until: Instant },
}

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it there; first ask for confirmation, if so marked.
    Send { coa: CareOf, refresh: bool },
    /// It waits; first ask.
    Ask,
    /// It waits, or is dropped.
    Wait,
}

/// A vif instance: one backend process on one host.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) key: VifKey,
    pub(crate) host: usize,
    pub(crate) coa: CareOf,
    /// The MAC of the bridge whose NIC the MAC is behind. The bridge has no other, and no guest of its own.
    pub(crate) behind: Option<Mac>,
    /// It has sockets, which it brings to the next varpd.
    pub(crate) has_sockets: bool,
    /// The backend runs.
    pub(crate) present: bool,
    /// The rings run.
    pub(crate) active: bool,
    /// The stamp that it would resume with.
    pub(crate) stamp: Option<Stamp>,
    pub(crate) neighbours: BTreeMap<Mac, Neighbour>,
    /// What a newer claim says to be elsewhere: the shipped table.
    pub(crate) departures: MovedMacs,
}

impl User {
    /// A backend that has just registered.
    pub(crate) fn new(key: VifKey, host: usize, coa: CareOf, behind: Option<Mac>) -> Self {
        let (neighbours, departures, stamp) = Default::default();
        let (present, active) = (true, false);
        let has_sockets = false;
        Self { key, host, coa, behind, has_sockets, present, active, stamp, neighbours, departures }
    }

    /// Decides about a frame as a backend does, and notes what it asks.
    pub(crate) fn frame(&mut self, to: Mac, now: Instant) -> Verdict {
        match self.neighbours.get_mut(&to) {
            Some(Neighbour::Mapped { coa, lifetime, expires, asked }) if *expires > now => {
                let soon = expires.saturating_since(now) * 4 < *lifetime;
                let refresh =
                    soon && asked.is_none_or(|at| now.saturating_since(at) >= *lifetime / 10);
                if refresh {
                    *asked = Some(now);
                }
                return Verdict::Send { coa: *coa, refresh };
            }
            Some(Neighbour::Waiting { since }) if now.saturating_since(*since) < PATIENCE => {
                return Verdict::Wait;
            }
            Some(Neighbour::Held { until }) if *until > now => return Verdict::Wait,
            _ => {}
        }
        self.neighbours.insert(to, Neighbour::Waiting { since: now });
        Verdict::Ask
    }

    /// Takes in what varpd says.
    pub(crate) fn hear(&mut self, event: &Event, now: Instant) {
        match *event {
            Event::Mapping { mac, coa, lifetime_ms, .. } => {
                let lifetime = Duration::from_millis(lifetime_ms.into());
                let expires = now + lifetime;
                let mapped = Neighbour::Mapped { coa, lifetime, expires, asked: None };
                self.neighbours.insert(mac, mapped);
            }
            Event::Unresolved { mac, hold_ms } => {
                let until = now + Duration::from_millis(hold_ms.into());
                self.neighbours.insert(mac, Neighbour::Held { until });
            }
            Event::Invalidate { mac } => {
                self.neighbours.remove(&mac);
            }
            Event::Claimed { mac, stamp } if mac == self.key.mac => {
                self.stamp = Some(stamp);
                self.departures.remove(mac);
            }
            // It is another guest's own.
            Event::Refused { mac, .. } if mac == self.key.mac => {
                (self.active, self.stamp) = (false, None);
            }
            Event::Lost { mac, coa, .. } if mac == self.key.mac => {
                let until = now + lifetime();
                self.departures.insert(mac, coa, self.coa.addr.ip(), until);
                if self.behind.is_some() {
                    // Until the bridge sees it again.
                    (self.active, self.stamp) = (false, None);
                }
            }
            _ => {}
        }
    }

    /// Whether frames for it are delivered to its guest.
    pub(crate) fn accepts(&self) -> bool {
        self.active && !self.departures.has_left(self.key.mac)
    }

    /// Where it was told last that a MAC is.
    pub(crate) fn answer(&self, mac: Mac) -> Option<CareOf> {
        match self.neighbours.get(&mac)? {
            Neighbour::Mapped { coa, .. } => Some(*coa),
            _ => None,
        }
    }

    /// Where it believes a MAC to be.
    pub(crate) fn mapping(&self, mac: Mac, now: Instant) -> Option<CareOf> {
        match self.neighbours.get(&mac)? {
            Neighbour::Mapped { coa, expires, .. } if *expires > now => Some(*coa),
            _ => None,
        }
    }
}
