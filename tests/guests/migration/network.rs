//! What a guest is attached to on the two hosts between which it moves: a vnet.

use std::net::SocketAddr;

use crate::sniffer::Sniffer;
use crate::station::Station;
use crate::support::guest::{Guest, Nic, Qemu};
use crate::support::vnet::{Backend, Listener};
use crate::support::wait_until;
use crate::{Site, newest_qemu};

use super::{GUEST, LIMIT, PART, STATION_HOST};

/// A network on which a guest can be on host a or b, and a station is on host c.
pub(super) trait Network {
    /// What it is called in tables.
    const NAME: &'static str;

    /// A station that sends beacons to the guest.
    fn station(&self) -> Station;

    /// Starts the guest on a host (0 or 1), or a QEMU that waits for it to come there.
    fn start_guest(&self, name: &str, host: usize, awaits_migration: bool) -> Guest;

    /// Begins to look out for packets on the underlay with which frames for the guest reach a host.
    fn look_out(&self, host: usize) -> Sniffer;

    /// All have found out that the guest is on a host, or do so soon; nobody believes anything else.
    fn assert_at_home(&self, host: usize);

    /// After all is done: nothing has complained or crashed.
    fn assert_unharmed(&mut self);
}

/// What a guest is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) qemu: Qemu,
    /// Further options of its NIC, ",name=value" each.
    pub(super) options: &'static str,
    pub(super) queue_pairs: u8,
    pub(super) listener: Listener,
}

impl Kind {
    pub(super) fn plain() -> Self {
        Self { qemu: newest_qemu(), options: "", queue_pairs: 1, listener: Listener::Backend }
    }
}

/// A vnet. The backends on both hosts are there all the time.
pub(super) struct Vnet<'a> {
    kind: Kind,
    backends: [Backend; 2],
    site: &'a Site,
}

impl<'a> Vnet<'a> {
    pub(super) fn new(site: &'a Site, kind: Kind) -> Self {
        let backend = |host: usize| {
            let name = format!("g1-on-{}", ["a", "b"][host]);
            let pairs = kind.queue_pairs.to_string();
            let further = ["--queue-pairs", &pairs];
            Backend::start_with(&name, GUEST, kind.listener, &site.varpds[host], &further)
        };
        Self { kind, backends: [backend(0), backend(1)], site }
    }

    /// Port of the guest's vif on a host.
    fn port(&self, host: usize) -> u16 {
        let table = self.site.varpds[host].show("vifs");
        let mut rows = table.as_array().expect("rows").iter();
        let row = rows.find(|row| row["mac"] == GUEST.mac()).expect("the guest's vif");
        let coa = row["coa"].as_str().and_then(|coa| coa.parse::<SocketAddr>().ok());
        coa.expect("a care-of address").port()
    }
}

impl Network for Vnet<'_> {
    const NAME: &'static str = "vnet";

    fn station(&self) -> Station {
        Station::start(&self.site.underlay, &self.site.varpds[STATION_HOST], PART)
    }

    fn start_guest(&self, name: &str, host: usize, awaits_migration: bool) -> Guest {
        let Kind { qemu, options, queue_pairs, .. } = self.kind;
        let backend = &self.backends[host];
        let nic = Nic { backend, mtu: self.site.guest_mtu, options, queue_pairs };
        let start = if awaits_migration { Guest::await_migration } else { Guest::start };
        start(name, qemu, &[nic], self.site.path())
    }

    /// The vif has a port of its own.
    fn look_out(&self, host: usize) -> Sniffer {
        Sniffer::start(self.site.underlay.host(host), self.port(host), |_| true)
    }

    fn assert_at_home(&self, host: usize) {
        let address = self.site.underlay.host(host).ipv4.to_string();
        let is_guest = |row: &serde_json::Value| row["mac"] == GUEST.mac();
        wait_until("the mapping is that of the guest's host", LIMIT, || {
            let table = self.site.varpds[STATION_HOST].show("varp");
            let mut rows = table.as_array().expect("rows").iter().filter(|row| is_guest(row));
            rows.all(|row| row["coa"].as_str().is_some_and(|coa| coa.starts_with(&address)))
        });
        for (number, varpd) in self.site.varpds.iter().enumerate().take(2) {
            let wanted = if number == host { "active" } else { "registered" };
            wait_until(&format!("the vif of host {number} is {wanted}"), LIMIT, || {
                let table = varpd.show("vifs");
                let mut rows = table.as_array().expect("rows").iter().filter(|row| is_guest(row));
                rows.all(|row| row["state"] == wanted)
            });
        }
    }

    fn assert_unharmed(&mut self) {
        for backend in &mut self.backends {
            backend.process.assert_running();
            let log = backend.process.log();
            let complaint = log.lines().find(|line| line.contains("ERROR"));
            assert_eq!(complaint, None);
        }
    }
}
