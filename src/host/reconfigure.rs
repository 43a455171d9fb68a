//! Changes the configuration under running vifs.
//!
//! - Limits, times, lists of users and the choice of vnets take effect at once. Objects beyond a
//!   lower limit stay.
//! - A vnet's policy, key file and group cipher take effect at once: its backends get the policy
//!   and the keys.
//! - Other settings take effect at the next start, and a line of the log names them: sockets, users
//!   and groups of the process, place on the underlay, ports, groups, beacon, hop limit, realm,
//!   `rekey`, sandbox.
//!
//! The shell reads the keys beforehand ([`Host::vnets_with_keys`]), so a configuration whose keys
//! it cannot read changes nothing.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use log::Level;

use crate::config::{Config, Security};
use crate::mapper::LocalVif;
use crate::security::keyfile::KeyFile;
use crate::time::Now;
use crate::wire::VnetId;

use super::admission::Admission;
use super::arrivals::Arrivals;
use super::clients::ClientId;
use super::output::Output;
use super::register::Handed;
use super::{Host, mapper_config};

impl Host {
    /// The vnets whose keys the shell has to read before this host uses a configuration.
    pub fn vnets_with_keys(&self, config: &Config) -> BTreeSet<VnetId> {
        let here =
            self.registry.vnets().into_iter().filter(|vnet| config.policy(*vnet).is_secured());
        here.chain(config.secured_vnets()).collect()
    }

    /// Uses another configuration from now on. `keys` are those of [`Host::vnets_with_keys`].
    pub(super) fn reconfigure(
        &mut self,
        new: Config,
        admission: Admission,
        keys: &BTreeMap<VnetId, KeyFile>,
        now: Now,
    ) {
        let later = settings_for_later(&self.config, &new);
        if !later.is_empty() {
            say!(
                self,
                Level::Warn,
                "these settings take effect at the next start of varpd: {}",
                later.join(", ")
            );
        }
        let before = self.config.clone();
        self.config = kept_until_start(&before, new);
        self.admission = admission;
        let limits = &self.config.limits;
        self.clients.set_limits(limits.clients, limits.clients_per_user);
        let (old, per_second) = (&before.limits, limits.registrations_per_second);
        if (old.registrations_per_second, old.clients_per_user)
            != (per_second, limits.clients_per_user)
        {
            self.arrivals = Arrivals::new(per_second, limits.clients_per_user);
        }
        let mapper = mapper_config(&self.config);
        if mapper != mapper_config(&before) {
            self.mapper.reconfigure(mapper);
        }
        self.hello.set_up_again();
        let vnets = self.registry.vnets().into_iter().chain(self.security.vnets.keys().copied());
        for vnet in vnets.chain(keys.keys().copied()).collect::<BTreeSet<_>>() {
            self.reconfigure_vnet(vnet, &before, keys.get(&vnet), now);
        }
        say!(self, Level::Info, "the configuration has changed");
    }

    /// Changes the protection of a vnet.
    fn reconfigure_vnet(&mut self, vnet: VnetId, before: &Config, key: Option<&KeyFile>, now: Now) {
        let settings = |config: &Config| {
            let policy = config.policy(vnet);
            // Without keys it does not matter where their file would be.
            let path = policy.is_secured().then(|| config.key_file(vnet));
            (policy, config.group_suites(vnet), path)
        };
        let (old, new) = (settings(before), settings(&self.config));
        if old == new {
            return;
        }
        let policy = new.0;
        say!(self, Level::Info, "vnet {vnet}: policy {policy}, before {}", old.0);
        let backends = self.backends(vnet);
        match key {
            Some(file) => self.security.set_keys(vnet, &self.config, file, now),
            None => self.security.remove_vnet(vnet, now),
        }
        if let Some(path) = new.2 {
            self.outputs.push_back(Output::WatchKey { vnet, path });
        }
        for (id, client) in backends {
            self.tell_policy(id, client, now);
        }
        if policy.sent() != old.0.sent() {
            // Backends resolve known places anew, and their frames wait for that and for keys.
            self.release_all(vnet, now);
            self.mapper.flush(Some(vnet), None);
        }
    }

    /// Sends a backend the policy and keys of its vnet; halts its vif if the policy is too low for
    /// it.
    fn tell_policy(&mut self, id: LocalVif, client: ClientId, now: Now) {
        let Some(vif) = self.registry.get_mut(id) else { return };
        let policy = self.config.policy(vif.key.vnet);
        let is_halted = !vif.floor.admits(policy);
        let has_stopped = is_halted && !vif.is_halted;
        vif.is_halted = is_halted;
        if has_stopped {
            (vif.active, vif.stamp, vif.since_ms) = (false, None, now.wall_ms);
            let (key, least) = (vif.key, vif.floor.level());
            say!(
                self,
                Level::Warn,
                "vif {key} carries no frame any more: its vnet has policy {policy} here, but its backend requires {least}"
            );
            self.close_lanes_of(id);
            self.clear_learned(id, now);
            self.mapper.set_active(id, false, None, now);
        }
        self.tell_place(id, client, Handed::Nothing);
        self.send_keys(id, client, now);
        // Other hosts learn this host's new policy at once.
        self.mapper.announce(id, now);
    }
}

/// The new configuration, with the old settings that stay until the next start.
fn kept_until_start(old: &Config, new: Config) -> Config {
    let vnet = new.vnet.into_iter().map(|(name, vnet)| {
        let group = old.vnet.get(&name).and_then(|old| old.group);
        (name, crate::config::Vnet { group, ..vnet })
    });
    Config {
        vnet: vnet.collect(),
        security: Security {
            rekey: old.security.rekey,
            without_landlock: old.security.without_landlock,
            ..new.security
        },
        limits: new.limits,
        timers: new.timers,
        ..old.clone()
    }
}

/// The names of the settings that differ and take effect at the next start.
fn settings_for_later(old: &Config, new: &Config) -> Vec<&'static str> {
    let groups = |config: &Config| config.vnet_groups();
    let all = [
        ("socket", old.socket != new.socket),
        ("user", old.user != new.user),
        ("socket-group", old.socket_group != new.socket_group),
        ("operator-socket", old.operator_socket != new.operator_socket),
        ("operator-group", old.operator_group != new.operator_group),
        ("socket-mode", old.socket_mode != new.socket_mode),
        ("underlay", old.underlay != new.underlay),
        ("address", old.address != new.address),
        ("ipv6", old.ipv6 != new.ipv6),
        ("realm", old.realm != new.realm),
        ("group", old.group != new.group || groups(old) != groups(new)),
        ("groups", old.groups != new.groups),
        ("port", old.port != new.port),
        ("beacon", old.beacon != new.beacon),
        ("ttl", old.ttl != new.ttl),
        ("ports", old.ports != new.ports),
        ("sandbox", old.sandbox != new.sandbox),
        ("rekey", old.security.rekey != new.security.rekey),
        ("without-landlock", old.security.without_landlock != new.security.without_landlock),
    ];
    all.into_iter().filter_map(|(name, differs)| differs.then_some(name)).collect()
}
