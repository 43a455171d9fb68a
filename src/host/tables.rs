//! The tables that operators ask for.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::mapper::{LocalVif, Row, State};
use crate::metrics::{Reading, VARPD_GAUGES};
use crate::security::sadb::rows;
use crate::time::Now;
use crate::wire::control::{Cell, Column, Kind, Sample, Table};
use crate::wire::{VifKey, VnetId};

use super::Host;
use super::clients::ClientId;
use super::learned::Learned;
use super::output::{Output, Rows};
use super::registry::{Owner, Vif};
use super::stats::Counters;

/// Rows of the mapper's table that are made in one turn of the loop: less than a millisecond's
/// work.
const PAGE: usize = 512;

/// The columns of a table.
pub(super) const fn columns(table: Table) -> &'static [Column] {
    match table {
        Table::Vnets => VNETS,
        Table::Vifs => VIFS,
        Table::Varp => VARP,
        Table::Stats => STATS,
        Table::Peers => PEERS,
        Table::Hosts => HOSTS,
    }
}

const VNETS: &[Column] = &[
    Column::number("vnet", ""),
    Column::number("vifs", "vifs"),
    Column::number("active", "vifs"),
    Column::number("cached", "mappings"),
    Column::text("group"),
    Column::text("policy"),
    Column::text("key"),
    Column::number("others", "hosts"),
    Column::number("untagged", "hosts"),
];
const VIFS: &[Column] = &[
    Column::number("vnet", ""),
    Column::text("mac"),
    Column::number("uid", ""),
    Column::number("pid", ""),
    Column::text("coa"),
    Column::text("state"),
    Column::text("stamp"),
    Column::text("since"),
];
const VARP: &[Column] = &[
    Column::number("vnet", ""),
    Column::text("mac"),
    Column::text("coa"),
    Column::text("stamp"),
    Column::text("state"),
    Column::number("age", SECONDS),
    Column::number("expires", SECONDS),
];
const PEERS: &[Column] = &[
    Column::number("vnet", ""),
    Column::text("peer"),
    Column::text("policy"),
    Column::text("state"),
    Column::text("key"),
    Column::text("cipher"),
    Column::number("age", SECONDS),
    Column::number("rekey", SECONDS),
    Column::number("expires", SECONDS),
    Column::number("senders", "senders"),
    Column::number("sessions", "sessions"),
    Column::number("made", "sessions"),
    Column::number("failed", "handshakes"),
    Column::number("dropped", "messages"),
];
const HOSTS: &[Column] = &[
    Column::text("host"),
    Column::text("version"),
    Column::number("vifs", "vifs"),
    Column::number("group", SECONDS),
    Column::number("unicast", SECONDS),
    Column::number("clock", SECONDS),
    Column::number("vnet", ""),
    Column::number("longest", "bytes"),
    Column::text("note"),
];
/// Counters of varpd itself have neither vnet nor MAC.
const STATS: &[Column] = &[
    Column::number("vnet", ""),
    Column::text("mac"),
    Column::text("counter"),
    Column::number("value", ""),
    Column::detail("unit"),
    Column::detail("kind"),
];
const SECONDS: &str = "seconds";

fn number(n: usize) -> Cell {
    Cell::Number(u64::try_from(n).unwrap_or(u64::MAX))
}

fn vnet(vnet: VnetId) -> Cell {
    Cell::Number(vnet.get().into())
}

impl Host {
    /// Sends a table to a client.
    pub(super) fn send_table(&mut self, client: ClientId, columns: &'static [Column], rows: Rows) {
        if let Some(reader) = self.clients.get_mut(client) {
            reader.is_reading = true;
            self.outputs.push_back(Output::Table { client, columns, rows });
        }
    }

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
            let heard = number(others.tagged + others.untagged);
            vec![
                self::vnet(vnet),
                number(sums.vifs),
                number(sums.active),
                number(self.mapper.known_on(vnet)),
                Cell::text(self.groups_of(vnet).to_string()),
                Cell::text(self.config.policy(vnet).to_string()),
                Cell::or_nothing(self.security.fingerprint(vnet), |key| Cell::text(key.to_owned())),
                match heard {
                    Cell::Number(heard) if others.is_full => Cell::AtLeast(heard),
                    heard => heard,
                },
                number(others.untagged),
            ]
        };
        vnets.into_iter().map(row).collect()
    }

    /// The vifs of this host, by vnet and MAC.
    pub(super) fn vif_rows(&self) -> Rows {
        let mut rows = self.learned_rows();
        let row = |vif: &Vif| {
            let cells = vec![
                vnet(vif.key.vnet),
                Cell::Mac(vif.key.mac),
                Cell::Number(vif.peer.uid.into()),
                match vif.owner {
                    Owner::Live(_) => pid(vif.peer.pid),
                    Owner::Kept(_) => Cell::Nothing,
                },
                Cell::Address(vif.coa.addr),
                Cell::text(vif.state()),
                Cell::or_nothing(vif.stamp, |stamp| Cell::Time(stamp.0)),
                Cell::Time(vif.since_ms),
            ];
            (vif.key, cells)
        };
        rows.extend(self.registry.iter().map(|(_, vif)| row(vif)));
        rows.sort_by_key(|(key, _)| *key);
        rows.into_iter().map(|(_, cells)| cells).collect()
    }

    /// The MACs behind vifs.
    fn learned_rows(&self) -> Vec<(VifKey, Vec<Cell>)> {
        let row = |vif: &Vif, learned: &Learned| {
            let key = VifKey { mac: learned.mac, ..vif.key };
            let cells = vec![
                vnet(key.vnet),
                Cell::Mac(key.mac),
                Cell::Number(vif.peer.uid.into()),
                pid(vif.peer.pid),
                Cell::Address(vif.coa.addr),
                Cell::text(if learned.stamp.is_some() { "learnt" } else { "lost" }),
                Cell::or_nothing(learned.stamp, |stamp| Cell::Time(stamp.0)),
                Cell::Time(learned.since_ms),
            ];
            (key, cells)
        };
        let behind = |(id, vif)| self.learned.of(id).map(move |(_, learned)| row(vif, learned));
        self.registry.iter().flat_map(behind).collect()
    }

    /// A page of the mapper's table: the rows after a key, and the last key if there may be more.
    pub fn varp_page(&self, after: Option<VifKey>, now: Now) -> (Rows, Option<VifKey>) {
        let rows = self.mapper.rows_after(after, PAGE, now);
        let last = rows.last().map(|row| row.key).filter(|_| rows.len() >= PAGE);
        let row = |row: &Row| {
            vec![
                vnet(row.key.vnet),
                Cell::Mac(row.key.mac),
                Cell::or_nothing(row.claim, |claim| Cell::Address(claim.coa.addr)),
                Cell::or_nothing(row.claim, |claim| Cell::Time(claim.stamp.0)),
                Cell::text(row.state.to_string()),
                Cell::Span(row.age),
                match row.state {
                    // A claim of this host has no lifetime: it lasts until the host ends it.
                    State::Local => Cell::Nothing,
                    _ => Cell::Span(row.remaining),
                },
            ]
        };
        (rows.iter().map(row).collect(), last)
    }

    /// The hosts with which this host agrees on keys, by vnet.
    pub(super) fn peer_rows(&self, now: Now) -> Rows {
        let row = |row: rows::Row| {
            let serving = row.serving;
            let of = |cell: fn(rows::Serving) -> Cell| Cell::or_nothing(serving, cell);
            vec![
                vnet(row.vnet),
                Cell::text(row.peer.to_string()),
                Cell::text(row.level.to_string()),
                Cell::text(row.state.to_string()),
                of(|s| Cell::text(if s.has_used_key { "use" } else { "other" })),
                of(|s| Cell::text(s.suite.to_string())),
                of(|s| Cell::Span(s.age)),
                of(|s| Cell::Span(s.rekey_in)),
                of(|s| Cell::Span(s.ends_in)),
                of(|s| Cell::Number(s.senders_left.into())),
                number(row.sessions),
                Cell::Number(row.tally.made),
                Cell::Number(row.tally.failed),
                Cell::Number(row.tally.dropped),
            ]
        };
        self.security.sadb.rows(now).into_iter().map(row).collect()
    }

    /// varpd's counters, then those that backends sent.
    pub(super) fn stats_rows(&self, answers: &BTreeMap<LocalVif, Option<Counters>>) -> Rows {
        let vifs = self.registry.len();
        let gauges = [self.clients.len(), vifs, self.lanes.len(), self.hello.hosts.known()];
        let gauges = VARPD_GAUGES.iter().zip(gauges).map(|((name, unit, _), value)| {
            sample(None, name, Kind::Gauge, unit, u64::try_from(value).unwrap_or(u64::MAX))
        });
        let own = self.counters.readings().chain(self.mapper.counters().readings());
        let own = own.chain(self.security.sadb.counters().readings());
        let own = own.chain(self.hello.hosts.counters().readings());
        let own =
            own.map(|Reading { name, unit, value }| sample(None, name, Kind::Counter, unit, value));
        let mut rows: Rows = gauges.chain(own).collect();
        for (&id, answer) in answers {
            let Some(vif) = self.registry.get(id) else { continue };
            let key = Some(vif.key);
            match answer {
                Some(samples) => rows.extend(samples.iter().map(|of_vif| {
                    let Sample { name, kind, unit, value } = of_vif;
                    sample(key, name, *kind, unit, *value)
                })),
                None => rows.push(sample(key, "stalled", Kind::Gauge, "", 1)),
            }
        }
        rows
    }
}

/// A row of counters: of a vif, or of varpd.
fn sample(of: Option<VifKey>, name: &str, kind: Kind, unit: &str, value: u64) -> Vec<Cell> {
    vec![
        Cell::or_nothing(of, |key| vnet(key.vnet)),
        Cell::or_nothing(of, |key| Cell::Mac(key.mac)),
        Cell::text(name.to_owned()),
        Cell::Number(value),
        if unit.is_empty() { Cell::Nothing } else { Cell::text(unit.to_owned()) },
        Cell::text(kind.name()),
    ]
}

fn pid(pid: i32) -> Cell {
    u64::try_from(pid).map_or(Cell::Nothing, Cell::Number)
}
