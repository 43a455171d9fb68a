//! The table of other hosts that operators see.

use std::time::Duration;

use super::Hosts;
use super::agree::differences;
use super::beacon::Beacon;
use super::own::Vnet;
use super::table::{Held, Host};
use crate::security::membership::TOLERANCE;
use crate::time::Now;
use crate::wire::VnetId;
use crate::wire::hello::Release;
use crate::wire::name::Name;

/// A host, on one of the vnets that it has in common with this one, or on none.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The host.
    pub host: Name,
    /// Its program's version.
    pub release: Release,
    /// Number of its vifs.
    pub vifs: u32,
    /// Time since it was last heard by multicast.
    pub by_group: Option<Duration>,
    /// Time since it was last heard by unicast.
    pub by_unicast: Option<Duration>,
    /// By how many milliseconds its clock is ahead of this host's; below zero: behind.
    pub ahead_ms: i64,
    /// The vnet.
    pub vnet: Option<VnetId>,
    /// The longest datagram that its vifs there take; 0 if it did not say.
    pub longest: u16,
    /// The differences from this host, in words.
    pub notes: Vec<String>,
}

impl Hosts {
    /// All hosts: a row for each vnet that a host has in common with this one, or one row without a vnet.
    pub fn rows(&self, now: Now) -> Vec<Row> {
        let mut rows = Vec::new();
        for (name, host) in self.table.iter() {
            let Some(said) = host.said else { continue };
            let base = Row {
                host: name,
                release: said.release,
                vifs: said.vifs,
                by_group: host.by_group.map(|at| now.mono - at),
                by_unicast: host.by_unicast.map(|at| now.mono - at),
                ahead_ms: host.ahead_ms,
                vnet: None,
                longest: 0,
                notes: self.notes(name, host),
            };
            let common = self.own.setup.vnets.iter();
            let common = common.filter_map(|(id, here)| {
                let held = host.entries.get(id).filter(|held| held.listed)?;
                Some((*id, here, held))
            });
            let before = rows.len();
            for (id, here, held) in common {
                let mut notes = self.differences_of(id, here, held);
                notes.extend(base.notes.iter().cloned());
                let longest = held.entry.longest;
                rows.push(Row { vnet: Some(id), longest, notes, ..base.clone() });
            }
            if rows.len() == before {
                rows.push(base);
            }
        }
        let beacons = self.beacons.iter(now.mono);
        rows.extend(beacons.map(|(host, beacon)| self.beacon_row(host, beacon)));
        rows
    }

    /// The row of a host that is heard only by its beacon.
    fn beacon_row(&self, host: Name, beacon: &Beacon) -> Row {
        let mut notes = vec!["heard only by its beacon".to_owned(), self.apart(host, beacon).0];
        notes.extend(self.general_notes(host, beacon.ahead_ms));
        Row {
            host,
            release: beacon.release,
            vifs: beacon.vifs,
            by_group: None,
            by_unicast: None,
            ahead_ms: beacon.ahead_ms,
            vnet: None,
            longest: 0,
            notes,
        }
    }

    /// Notes on a host's settings of a vnet. On a secured vnet, anybody can make up an entry without a right tag.
    fn differences_of(&self, id: VnetId, here: &Vnet, held: &Held) -> Vec<String> {
        let all: Vec<String> =
            differences(here, &held.entry).iter().map(ToString::to_string).collect();
        if self.believes(id, held) {
            return all;
        }
        vec![match all.is_empty() {
            true => "not proved".to_owned(),
            false => format!("not proved ({})", all.join(", ")),
        }]
    }

    /// Notes on a host's realm and clock.
    fn general_notes(&self, name: Name, ahead_ms: i64) -> Vec<String> {
        let mut notes = Vec::new();
        if name.realm() != self.own.name.realm() {
            notes.push(format!("realm {}, here {}", name.realm(), self.own.name.realm()));
        }
        if Duration::from_millis(ahead_ms.unsigned_abs()) > TOLERANCE {
            let side = if ahead_ms > 0 { "ahead" } else { "behind" };
            notes.push(format!("clock {} s {side}", ahead_ms.unsigned_abs() / 1000));
        }
        notes
    }

    /// Notes on a host that do not depend on the vnet.
    fn notes(&self, name: Name, host: &Host) -> Vec<String> {
        let mut notes = self.general_notes(name, host.ahead_ms);
        if host.by_group.is_none() {
            notes.push("not heard by group".to_owned());
        }
        if host.hears == Some(false) {
            notes.push("does not hear this host by group".to_owned());
        }
        let (there, here) = (host.said.and_then(|said| said.group), self.own.setup.group);
        if let Some((there, here)) = there.zip(here).filter(|(there, here)| there != here) {
            notes.push(format!("VARP group {there}, here {here}"));
        }
        if host.lacks_list() {
            notes.push("its list of vnets is not known yet".to_owned());
        } else if host.is_cut {
            notes.push("it has more vnets than this host can hold".to_owned());
        }
        notes
    }
}
