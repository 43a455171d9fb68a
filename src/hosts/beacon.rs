//! Beacons: HELLOs to the default groups and the default port of both address families, whichever of them a host uses.
//!
//! Between hosts with different groups, ports or address families, only beacons arrive. A host uses
//! the contents of a beacon only to show them to operators and to log a warning: a beacon may come
//! from an address of the other family, so not even its sender is certain.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::own::Addressing;
use super::receive::difference;
use super::schedule::within;
use super::{Hosts, HostsCounter, Output, To};
use crate::nonce::Nonces as Random;
use crate::time::{Instant, Now};
use crate::wire::hello::{Abilities, Flags, Hello, Message, Release};
use crate::wire::name::Name;

/// Interval of a host's beacons, and the interval per host on a large segment: all hosts of a
/// segment together send at most one a second to each default group.
const LEAST_INTERVAL: Duration = Duration::from_secs(60);
const PER_HOST: Duration = Duration::from_secs(1);
/// Time after the start at which the first beacon is planned, when the host has heard the others;
/// and the random time after that within which it sends the beacon on a small segment.
const FIRST: Duration = Duration::from_secs(3);
const FIRST_WITHIN: Duration = Duration::from_secs(5);
/// Number of intervals for which a beacon is shown.
const INTERVALS: u32 = 3;
/// Limit on the time for which a beacon can ask to be shown.
const LONGEST_LIFETIME: Duration = Duration::from_secs(3600);
/// Limit on hosts that are known by their beacons only.
pub(super) const MAX_BEACONS: usize = 256;
/// Least time between two warnings.
const WARN_AGAIN: Duration = Duration::from_secs(3600);

/// The contents of a host's last beacon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beacon {
    pub(super) release: Release,
    pub(super) vifs: u32,
    pub(super) group: Option<SocketAddr>,
    pub(super) ahead_ms: i64,
    until: Instant,
    /// Number of beacons.
    heard: u32,
}

/// The beacons of other hosts, and the time of this host's next.
#[derive(Debug)]
pub(super) struct Beacons {
    heard: BTreeMap<Name, Beacon>,
    at: Instant,
    is_planned: bool,
    warned: Option<Instant>,
}

impl Beacons {
    /// The beacons of a host that starts.
    pub(super) fn new(now: Instant) -> Self {
        Self { heard: BTreeMap::new(), at: now + FIRST, is_planned: false, warned: None }
    }

    /// Plans the first beacon, as after a start.
    pub(super) fn restart(&mut self, now: Instant) {
        (self.at, self.is_planned) = (now + FIRST, false);
    }

    pub(super) const fn due(&self) -> Instant {
        self.at
    }

    /// Whether beacons are due now. Plans the next.
    fn take_due(&mut self, hosts: u32, random: &mut Random, now: Instant) -> bool {
        if self.at > now {
            return false;
        }
        let is_due = std::mem::replace(&mut self.is_planned, true);
        self.at = now
            + match is_due {
                true => interval(hosts) / 2 + within(interval(hosts), random),
                false => within(FIRST_WITHIN.max(PER_HOST * hosts), random),
            };
        is_due
    }

    /// Removes the beacon of a host from which other messages arrive.
    pub(super) fn forget(&mut self, name: Name) {
        self.heard.remove(&name);
    }

    /// Hosts from which only beacons arrive.
    pub(super) fn iter(&self, now: Instant) -> impl Iterator<Item = (Name, &Beacon)> {
        let heard = self.heard.iter().map(|(name, beacon)| (*name, beacon));
        heard.filter(move |(_, beacon)| beacon.until > now)
    }
}

fn interval(hosts: u32) -> Duration {
    LEAST_INTERVAL.max(PER_HOST * hosts)
}

const fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

impl Hosts {
    /// Sends beacons if they are due.
    pub(super) fn send_beacons(&mut self, now: Now) {
        let speakers = self.speakers();
        if self.own.setup.beacons.is_empty()
            || !self.beacons.take_due(speakers, &mut self.random, now.mono)
        {
            return;
        }
        self.beacons.heard.retain(|_, beacon| beacon.until > now.mono);
        for to in self.own.setup.beacons.clone() {
            let addressing = Addressing { flags: Flags::BEACON, ..Addressing::default() };
            let bytes = self.own.hello(addressing, interval(speakers) * INTERVALS, now);
            self.send(To::Beacon(to), bytes, HostsCounter::hello_tx_beacons);
        }
    }

    /// Handles a beacon.
    pub(super) fn hear_beacon(
        &mut self,
        from: SocketAddr,
        message: &Message<'_>,
        hello: &Hello<'_>,
        now: Now,
    ) -> Result<(), HostsCounter> {
        self.counters.inc(HostsCounter::hello_rx_beacons);
        let name = message.sender;
        if name.ip() == self.own.name.ip() || from.ip() == self.own.name.ip() {
            return Err(HostsCounter::hello_drop_own);
        }
        if hello.abilities.contains(Abilities::RELAY) {
            return Err(HostsCounter::hello_drop_relay);
        }
        if hello.group.is_some_and(|group| group.port() != from.port()) {
            return Err(HostsCounter::hello_drop_port);
        }
        if from.is_ipv4() == name.ip().is_ipv4() && from.ip() != name.ip() {
            return Err(HostsCounter::hello_drop_source);
        }
        let is_known = self.table.get(name).is_some_and(|host| host.said.is_some());
        if is_known || hello.lifetime_ms == 0 || self.own.setup.beacons.is_empty() {
            self.beacons.forget(name);
            return Ok(());
        }
        let heard = &mut self.beacons.heard;
        if !heard.contains_key(&name) && heard.len() >= MAX_BEACONS {
            heard.retain(|_, beacon| beacon.until > now.mono);
            if heard.len() >= MAX_BEACONS {
                return Err(HostsCounter::hello_drop_full);
            }
        }
        let before = heard.get(&name).map_or(0, |beacon| beacon.heard);
        let lifetime = Duration::from_millis(hello.lifetime_ms.into()).min(LONGEST_LIFETIME);
        let beacon = Beacon {
            release: hello.release,
            vifs: hello.vifs,
            group: hello.group,
            ahead_ms: difference(message.time_ms, now.wall_ms),
            until: now.mono + lifetime,
            heard: before.saturating_add(1),
        };
        heard.insert(name, beacon);
        self.warn_of_beacon(name, beacon, now.mono);
        Ok(())
    }

    /// Reports a host that is heard only by its beacon, once an hour at most.
    fn warn_of_beacon(&mut self, host: Name, beacon: Beacon, now: Instant) {
        let lately = |at| now.saturating_since(at) < WARN_AGAIN;
        if self.beacons.warned.is_some_and(lately) {
            return;
        }
        let (what, is_certain) = self.apart(host, &beacon);
        // A host's first beacon may arrive before its first HELLO.
        if !is_certain && beacon.heard < 2 {
            return;
        }
        self.beacons.warned = Some(now);
        let hosts = self.beacons.iter(now).count();
        self.outputs.push_back(Output::Apart { host, what, hosts });
    }

    /// The reason why a host's other messages are not heard, and whether it is certain.
    pub(super) fn apart(&self, host: Name, beacon: &Beacon) -> (String, bool) {
        let [there, here] = [host, self.own.name].map(|name| family(name.ip()));
        if there != here {
            return (format!("{there} underlay, here {here}"), true);
        }
        let groups = beacon.group.zip(self.own.setup.group);
        match groups.filter(|(there, here)| there != here) {
            Some((there, here)) => (format!("VARP group {there}, here {here}"), true),
            None => ("multicasts to its VARP group do not arrive here".to_owned(), false),
        }
    }
}
