//! A guest's NIC and its backend, as far as the mapper is concerned: what it believes about its
//! neighbours, and when it asks.

use std::collections::BTreeMap;
use std::time::Duration;

use vnet::mapper::Notice;
use vnet::time::Instant;
use vnet::tunnel::moved::MovedMacs;
use vnet::wire::{CareOf, Mac, Stamp, VifKey};

use crate::host::config;

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
    /// A MAC behind the NIC of a bridge; the bridge itself is not simulated.
    pub(crate) learnt: bool,
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
    pub(crate) fn new(key: VifKey, host: usize, coa: CareOf, learnt: bool) -> Self {
        let (neighbours, departures, stamp) = Default::default();
        let (present, active) = (true, false);
        Self { key, host, coa, learnt, present, active, stamp, neighbours, departures }
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

    /// Takes in what the mapper says.
    pub(crate) fn hear(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Mapping { mac, coa, lifetime, .. } => {
                let expires = now + lifetime;
                let mapped = Neighbour::Mapped { coa, lifetime, expires, asked: None };
                self.neighbours.insert(mac, mapped);
            }
            Notice::Unresolved { mac, hold } => {
                self.neighbours.insert(mac, Neighbour::Held { until: now + hold });
            }
            Notice::Invalidate { mac } => {
                self.neighbours.remove(&mac);
            }
            Notice::Claimed { stamp } => {
                self.stamp = Some(stamp);
                self.departures.remove(self.key.mac);
            }
            // It is another guest's own.
            Notice::Refused { .. } => (self.active, self.stamp) = (false, None),
            Notice::Lost { coa, .. } => {
                let until = now + config().lifetime;
                let own = self.coa.addr.ip();
                self.departures.insert(self.key.mac, coa, own, until);
                if self.learnt {
                    // Until the bridge sees it again.
                    (self.active, self.stamp) = (false, None);
                }
            }
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
