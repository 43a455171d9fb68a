//! Handles messages of other hosts; the cheapest checks come first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::agree::differences;
use super::own::tagged;
use super::schedule::{LONGEST_LIFETIME, lifetime};
use super::table::{Held, Proved, Said};
use super::{Hosts, HostsCounter, Output};
use crate::security::membership::TOLERANCE;
use crate::time::Now;
use crate::wire::hello::{Abilities, Body, Entry, Flags, Hello, List, Message};
use crate::wire::name::Name;
use crate::wire::{ParseError, VnetId};

impl Hosts {
    /// Handles a datagram that came to the group or to this host alone.
    pub fn handle_message(&mut self, from: SocketAddr, is_group: bool, bytes: &[u8], now: Now) {
        self.counters.inc(HostsCounter::hello_rx);
        if let Err(counter) = self.hear(from, is_group, bytes, now) {
            self.counters.inc(counter);
        }
        self.settle();
    }

    fn hear(
        &mut self,
        from: SocketAddr,
        is_group: bool,
        bytes: &[u8],
        now: Now,
    ) -> Result<(), HostsCounter> {
        let message = Message::parse(bytes).map_err(|error| match error {
            ParseError::Version => HostsCounter::hello_rx_version,
            _ => HostsCounter::hello_rx_malformed,
        })?;
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if let Body::Hello(hello) = &message.body
            && message.flags.contains(Flags::BEACON)
        {
            return match is_group {
                true => self.hear_beacon(from, &message, hello, now),
                false => Err(HostsCounter::hello_drop_cast),
            };
        }
        if from.port() != self.port {
            return Err(HostsCounter::hello_drop_port);
        }
        if message.sender.ip() != from.ip() {
            return Err(HostsCounter::hello_drop_source);
        }
        if from.ip() == self.own.name.ip() {
            return Err(HostsCounter::hello_drop_own);
        }
        match &message.body {
            Body::Hello(hello) => self.hear_hello(from, is_group, &message, hello, now),
            Body::List(list) => self.hear_list(from, &message, list, now),
        }
    }

    fn hear_hello(
        &mut self,
        from: SocketAddr,
        is_group: bool,
        message: &Message<'_>,
        hello: &Hello<'_>,
        now: Now,
    ) -> Result<(), HostsCounter> {
        let (name, flags) = (message.sender, message.flags);
        if hello.abilities.contains(Abilities::RELAY) {
            return Err(HostsCounter::hello_drop_relay);
        }
        if is_group != (hello.nonce == 0) {
            return Err(HostsCounter::hello_drop_cast);
        }
        let is_answer = flags.contains(Flags::ANSWER);
        if is_answer && !self.nonces.accepts(from, hello.answer, now.mono) {
            return Err(HostsCounter::hello_drop_unasked);
        }
        if hello.lifetime_ms == 0 {
            return self.farewell(message);
        }
        let until = now.mono + stays(hello);
        let known = self.table.get(name).and_then(|host| host.said);
        let host = self.table.enter(name, from, until, false);
        let host = host.ok_or(HostsCounter::hello_drop_full)?;
        let is_proved = host.proved_until().is_some();
        let is_newer = host.seen.newest() < message.time_ms;
        // Forged messages may have used up the times of its answers.
        let is_new_answer = is_answer && host.answered_ms < message.time_ms;
        if !host.seen.take(message.time_ms) && !is_new_answer {
            if is_proved {
                self.doubt(name, now.mono);
            }
            return Err(HostsCounter::hello_drop_stale);
        }
        if is_proved && !is_newer && !is_new_answer {
            // An older message that was overtaken, or that somebody has recorded elsewhere.
            self.doubt(name, now.mono);
            return Err(HostsCounter::hello_drop_stale);
        }
        if is_new_answer {
            host.answered_ms = message.time_ms;
        }
        let Hello { release, vifs, digest, group, .. } = *hello;
        let generation = message.generation;
        host.said = Some(Said { release, vifs, digest, generation, group });
        host.addr = from;
        host.ahead_ms = difference(message.time_ms, now.wall_ms);
        host.stay(until);
        let until = host.until;
        if is_group {
            host.by_group = Some(now.mono);
        } else {
            host.by_unicast = Some(now.mono);
            host.hears = Some(flags.contains(Flags::HEARD));
            host.nonce = hello.nonce;
        }
        self.table.due(until);
        self.beacons.forget(name);
        if known.is_none() {
            self.counters.inc(HostsCounter::hello_joined);
        }
        // A host that has restarted has forgotten all others.
        if known.is_none_or(|known| known.generation != generation) {
            self.schedule.greet(self.speakers(), &mut self.random, now.mono);
        }
        self.plan_question(name, now);
        if is_answer {
            self.heed_answer(name, now);
        } else if !is_group {
            self.answer(name, flags, hello, now);
        }
        self.compare(name);
        Ok(())
    }

    /// A host says that it leaves. This is not believed if entries of that host had right tags.
    fn farewell(&mut self, message: &Message<'_>) -> Result<(), HostsCounter> {
        let name = message.sender;
        let host = self.table.get_mut(name).ok_or(HostsCounter::hello_drop_unknown)?;
        if host.proved_until().is_some() {
            return Err(HostsCounter::hello_drop_farewell);
        }
        if !host.seen.take(message.time_ms) {
            return Err(HostsCounter::hello_drop_stale);
        }
        let vnets: Vec<VnetId> = host.entries.keys().copied().collect();
        self.table.remove(name);
        self.counters.inc(HostsCounter::hello_left);
        self.touch(vnets);
        Ok(())
    }

    fn hear_list(
        &mut self,
        from: SocketAddr,
        message: &Message<'_>,
        list: &List<'_>,
        now: Now,
    ) -> Result<(), HostsCounter> {
        let name = message.sender;
        let proved = self.check_tags(message, list);
        let is_proved = proved.values().any(|is_right| *is_right);
        if self.table.get(name).is_none_or(|host| host.said.is_none()) && !is_proved {
            return Err(HostsCounter::hello_drop_unknown);
        }
        if is_proved && !self.is_of_now(message, now) {
            self.doubt(name, now.mono);
            return Err(HostsCounter::hello_drop_stale);
        }
        let until = now.mono + lifetime(self.speakers());
        let host = self.table.enter(name, from, until, is_proved);
        let host = host.ok_or(HostsCounter::hello_drop_full)?;
        let is_fresh = host.seen.take(message.time_ms);
        let is_newer = |vnet: &VnetId| {
            let proof = host.entries.get(vnet).and_then(|held| held.proof);
            proof.is_none_or(|proof| proof.time_ms < message.time_ms)
        };
        let mut right = proved.iter().filter(|(_, is_right)| **is_right);
        let is_newer = right.any(|(vnet, _)| is_newer(vnet));
        if !is_fresh && !is_newer {
            return Err(HostsCounter::hello_drop_stale);
        }
        if host.said.is_none() && is_newer {
            host.until = host.until.max(until);
        }
        let before = self.takes(name, list);
        let stamped = (list, message.time_ms, message.generation);
        let cut = self.table.list(name, stamped, is_fresh, &proved, now.mono);
        if cut > 0 {
            self.counters.inc(HostsCounter::hello_drop_full);
        }
        let after = self.takes(name, list);
        for ((vnet, before), (_, after)) in before.into_iter().zip(after) {
            // Only a change of the least length, or to it, makes a difference.
            let least = self.longest.get(&vnet).copied().unwrap_or(u16::MAX);
            if before != after && before.into_iter().chain(after).any(|takes| takes <= least) {
                self.touched.insert(vnet);
            }
        }
        self.compare(name);
        Ok(())
    }

    /// Whether the tags of a LIST were made lately, by this host's clock. They may be older, or
    /// made by a clock that is off, if their host has answered a question: that it is not gone is
    /// certain then.
    fn is_of_now(&self, message: &Message<'_>, now: Now) -> bool {
        let apart = Duration::from_millis(message.time_ms.abs_diff(now.wall_ms));
        let has_answered = self.table.get(message.sender).is_some_and(|host| host.answered_ms != 0);
        has_answered || apart <= TOLERANCE
    }

    /// The longest datagrams that a host takes on this host's vnets in the range of a LIST.
    fn takes(&self, name: Name, list: &List<'_>) -> Vec<(VnetId, Option<u16>)> {
        let host = self.table.get(name);
        let own = self.own.setup.vnets.range(list.first..=list.last).map(|(vnet, _)| *vnet);
        let takes = |vnet| {
            let takes_all = self.own.takes_all(vnet)?;
            host?.takes(vnet, takes_all)
        };
        own.map(|vnet| (vnet, takes(vnet))).collect()
    }

    /// For each entry with a tag that this host can check: whether the tag is right. Counts wrong
    /// tags.
    fn check_tags(&self, message: &Message<'_>, list: &List<'_>) -> BTreeMap<VnetId, bool> {
        let check = |entry: Entry| {
            let stamp = (message.sender, message.time_ms, message.generation);
            self.check_tag(stamp, &entry).map(|is_right| (entry.vnet, is_right))
        };
        let checked: BTreeMap<VnetId, bool> = list.entries.iter().filter_map(check).collect();
        let wrong = checked.values().filter(|is_right| !**is_right).count();
        self.counters.add(HostsCounter::hello_drop_forged, wrong as u64);
        checked
    }

    /// Whether an entry's tag is right; `None` without a tag, or if this host does not have the
    /// tag's key.
    fn check_tag(
        &self,
        (sender, time_ms, generation): (Name, u64, u32),
        entry: &Entry,
    ) -> Option<bool> {
        let proof = entry.proof?;
        let key = self.own.setup.vnets.get(&entry.vnet)?.key(proof.key_id)?;
        Some(key.verify(&[&tagged(sender, time_ms, generation, entry)], &proof.tag))
    }

    /// Checks the recorded entries of these vnets again, after this host's vnets or their keys have
    /// changed.
    pub(super) fn prove_again(&mut self, vnets: &BTreeSet<VnetId>, now: Now) {
        let mut right = Vec::new();
        for (name, host) in self.table.iter() {
            for (vnet, held) in
                vnets.iter().filter_map(|vnet| Some((vnet, host.entries.get(vnet)?)))
            {
                let stamp = (name, held.time_ms, held.generation);
                right.push((name, *vnet, self.check_tag(stamp, &held.entry) == Some(true)));
            }
        }
        for (name, vnet, is_right) in right {
            let Some(host) = self.table.get_mut(name) else { continue };
            let until = host.until;
            let Some(held) = host.entries.get_mut(&vnet) else { continue };
            let (longest, time_ms) = (held.entry.longest, held.time_ms);
            let proof = || Proved::new(longest, time_ms, until, now.mono);
            held.proof = is_right.then(proof);
        }
    }

    /// Whether an entry counts as its host's: its tag is right, or the vnet accepts frames without
    /// protection.
    pub(super) fn believes(&self, vnet: VnetId, held: &Held) -> bool {
        self.own.takes_all(vnet) == Some(true) || held.is_proved()
    }

    /// Reports settings of a host that cause loss of frames.
    fn compare(&mut self, name: Name) {
        let Some(host) = self.table.get(name) else { return };
        for (vnet, here) in &self.own.setup.vnets {
            let Some(held) = host.entries.get(vnet).filter(|held| held.listed) else { continue };
            if !self.believes(*vnet, held) {
                continue;
            }
            let harmful =
                differences(here, &held.entry).into_iter().filter(|what| what.is_harmful());
            let outputs = harmful.map(|what| Output::Differs { host: name, vnet: *vnet, what });
            self.outputs.extend(outputs);
        }
    }
}

/// Time for which a host counts as present without being heard.
fn stays(hello: &Hello<'_>) -> Duration {
    Duration::from_millis(hello.lifetime_ms.into()).min(LONGEST_LIFETIME)
}

/// By how much a time is ahead of another.
pub(super) fn difference(there: u64, here: u64) -> i64 {
    let apart = i64::try_from(there.abs_diff(here)).unwrap_or(i64::MAX);
    if there >= here { apart } else { -apart }
}
