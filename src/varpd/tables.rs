//! The rows of the tables that operators ask for; [`crate::show::columns`] names their columns.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::mapper::{LocalVif, Row, State};
use crate::metrics::VARPD_GAUGES;
use crate::security::sadb::rows;
use crate::show::{self, NONE};
use crate::time::Now;
use crate::wire::{VifKey, VnetId};

use super::daemon::Daemon;
use super::learnt::Learnt;
use super::registry::Owner;
use super::stats::Counters;

/// Rows of the mapper's table that are made in one turn of the loop: less than a millisecond's work.
const PAGE: usize = 512;
/// The scope of varpd's own counters.
const OWN_SCOPE: &str = "varpd";

type Rows = Vec<Vec<String>>;

impl Daemon {
    /// The vnets that have vifs here.
    pub(super) fn vnet_rows(&self, now: Now) -> Rows {
        #[derive(Default)]
        struct Sums {
            vifs: usize,
            active: usize,
        }
        let mut vnets: BTreeMap<VnetId, Sums> = BTreeMap::new();
        for (_, vif) in self.registry.iter() {
            let sums = vnets.entry(vif.key.vnet).or_default();
            sums.vifs += 1;
            sums.active += usize::from(vif.state() == "active");
        }
        let row = |(vnet, sums): (VnetId, Sums)| {
            let others = self.security.others(vnet, now);
            let at_least = if others.is_full { show::AT_LEAST } else { "" };
            vec![
                vnet.to_string(),
                sums.vifs.to_string(),
                sums.active.to_string(),
                self.mapper.known_on(vnet).to_string(),
                self.groups_of(vnet).to_string(),
                self.config.policy(vnet).to_string(),
                self.security.fingerprint(vnet).unwrap_or(NONE).to_owned(),
                format!("{}{at_least}", others.tagged + others.untagged),
                others.untagged.to_string(),
            ]
        };
        vnets.into_iter().map(row).collect()
    }

    /// The vifs of this host, by vnet and MAC.
    pub(super) fn vif_rows(&self) -> Rows {
        let mut rows = self.learnt_rows();
        let row = |vif: &super::registry::Vif<_>| {
            let cells = vec![
                vif.key.vnet.to_string(),
                vif.key.mac.to_string(),
                vif.peer.uid.to_string(),
                match vif.owner {
                    Owner::Live(_) => vif.peer.pid.to_string(),
                    Owner::Kept(_) => NONE.to_owned(),
                },
                vif.coa.to_string(),
                vif.state().to_owned(),
                vif.stamp.map_or_else(|| NONE.to_owned(), show::stamp),
                show::time(vif.since_ms).unwrap_or_else(|| NONE.to_owned()),
            ];
            (vif.key, cells)
        };
        rows.extend(self.registry.iter().map(|(_, vif)| row(vif)));
        rows.sort_by_key(|(key, _)| *key);
        rows.into_iter().map(|(_, cells)| cells).collect()
    }

    /// The MACs behind vifs.
    fn learnt_rows(&self) -> Vec<(VifKey, Vec<String>)> {
        let row = |vif: &super::registry::Vif<_>, learnt: &Learnt| {
            let key = VifKey { mac: learnt.mac, ..vif.key };
            let cells = vec![
                key.vnet.to_string(),
                key.mac.to_string(),
                vif.peer.uid.to_string(),
                vif.peer.pid.to_string(),
                vif.coa.to_string(),
                if learnt.stamp.is_some() { "learnt" } else { "lost" }.to_owned(),
                learnt.stamp.map_or_else(|| NONE.to_owned(), show::stamp),
                show::time(learnt.since_ms).unwrap_or_else(|| NONE.to_owned()),
            ];
            (key, cells)
        };
        let behind = |(id, vif)| self.learnt.of(id).map(move |(_, learnt)| row(vif, learnt));
        self.registry.iter().flat_map(behind).collect()
    }

    /// A page of what the mapper knows: the rows behind a key, and the last key if there may be more.
    pub(super) fn varp_page(&self, after: Option<VifKey>, now: Now) -> (Rows, Option<VifKey>) {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
        let rows = self.mapper.rows_after(after, PAGE, now);
        let last = rows.last().map(|row| row.key).filter(|_| rows.len() >= PAGE);
        let row = |row: &Row| {
            vec![
                row.key.vnet.to_string(),
                row.key.mac.to_string(),
                or_none(row.claim.map(|claim| claim.coa.to_string())),
                or_none(row.claim.map(|claim| show::stamp(claim.stamp))),
                row.state.to_string(),
                seconds(row.age),
                match row.state {
                    // A claim of this host lasts until it ends.
                    State::Local => NONE.to_owned(),
                    _ => seconds(row.remaining),
                },
            ]
        };
        (rows.iter().map(row).collect(), last)
    }

    /// The hosts with which keys are agreed on, by vnet.
    pub(super) fn peer_rows(&self, now: Now) -> Rows {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
        let row = |row: rows::Row| {
            let serving = row.serving;
            let time = |of: fn(rows::Serving) -> Duration| or_none(serving.map(|s| seconds(of(s))));
            vec![
                row.vnet.to_string(),
                row.peer.to_string(),
                row.level.to_string(),
                row.state.to_string(),
                or_none(serving.map(|s| if s.has_used_key { "use" } else { "other" }.to_owned())),
                or_none(serving.map(|s| s.suite.to_string())),
                time(|s| s.age),
                time(|s| s.rekey_in),
                time(|s| s.ends_in),
                or_none(serving.map(|s| s.senders_left.to_string())),
                row.sessions.to_string(),
                row.tally.made.to_string(),
                row.tally.failed.to_string(),
                row.tally.dropped.to_string(),
            ]
        };
        self.security.sadb.rows(now).into_iter().map(row).collect()
    }

    /// varpd's counters, then those that backends sent.
    pub(super) fn stats_rows(&self, answers: &BTreeMap<LocalVif, Option<Counters>>) -> Rows {
        let row = |scope: &str, name: &str, value: u64| {
            vec![scope.to_owned(), name.to_owned(), value.to_string()]
        };
        let vifs = self.registry.iter().count();
        let gauges = [self.clients.len(), vifs, self.lanes.len(), self.hosts.known()];
        let gauges = VARPD_GAUGES.iter().zip(gauges).map(|((name, _), n)| (*name, n as u64));
        let own = self.counters.snapshot().into_iter();
        let own = gauges.chain(own).chain(self.mapper.counters().snapshot());
        let own = own.chain(self.security.sadb.counters().snapshot());
        let own = own.chain(self.hosts.counters().snapshot());
        let mut rows: Rows = own.map(|(name, value)| row(OWN_SCOPE, name, value)).collect();
        for (&id, answer) in answers {
            let Some(vif) = self.registry.get(id) else { continue };
            let scope = vif.key.to_string();
            match answer {
                Some(values) => {
                    rows.extend(values.iter().map(|(name, value)| row(&scope, name, *value)));
                }
                None => rows.push(row(&scope, "stalled", 1)),
            }
        }
        rows
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64())
}
