//! The programs as they are run, on hosts that are network namespaces; the guests' side of each NIC
//! is a driver in this process, so that every frame can be made, counted and looked at.
//!
//! ```text
//!   this test:   driver          driver        driver
//!                  | vhost-user     |             |          rings and buffers in a memfd each
//!               backend          backend       backend       vhost-user-vnet
//!                  |                |             |
//!               varpd of host a ----+          varpd of b    192.0.2.1, .2, ..
//!                  |                              |
//!               [======== the underlay ============]         see support/netns.rs
//! ```
//!
//! Nothing waits for a time to pass but where silence is watched: frames that must not arrive are
//! shown to be absent by later ones that do, or by counters that account for every datagram.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

#[path = "../support/abuse.rs"]
mod abuse;
mod bridges;
mod clocks;
mod confined;
mod disguises;
mod disturbances;
#[path = "../support/driver.rs"]
mod driver;
mod echoes;
mod failover;
mod flood;
mod flows;
mod forged;
mod frontends;
mod groups;
mod guarded;
mod guest_side;
mod hostile_frontend;
mod idle;
mod injection;
mod lan;
mod launch;
mod learning;
mod limits;
mod local;
mod local_hostile;
mod members;
mod migration;
mod moves;
mod newcomers;
mod nic;
mod offpath;
mod paths;
mod queues;
#[path = "../support/random.rs"]
mod random;
mod rekey;
mod renumbered;
mod resolution;
mod restarts;
#[path = "../support/rig.rs"]
mod rig;
mod rings;
mod rollout;
mod secured;
mod spoofing;
mod strangers;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "../support/mod.rs"]
mod support;
mod trains;
mod underneath;
mod view;
mod widths;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::MutexGuard;
use std::time::Duration;

use tempfile::TempDir;
use vnet::metrics::VifCounter;

use support::netns::{Family, Host, Underlay};
use support::vnet::{Varpd, Vif};
use support::{can_make_hosts, step, take_turn, wait_until};

/// For everything that should take milliseconds.
const SOON: Duration = Duration::from_secs(10);
/// How long nothing comes before no more is expected.
const QUIET: Duration = Duration::from_millis(300);
/// MTU of the underlay unless a test needs another.
const MTU: u32 = 1600;
const JUMBO_MTU: u32 = 9000;

/// Hosts with a varpd each. Fields are dropped in this order.
struct Net {
    varpds: Vec<Varpd>,
    underlay: Underlay,
    directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Net {
    /// `None`, having said so, where hosts can't be made.
    fn new(test: &str, hosts: u8) -> Option<Self> {
        Self::with(test, hosts, Family::V4, "")
    }

    /// The same with an underlay of this family, and with what the configuration of varpd says.
    fn with(test: &str, hosts: u8, family: Family, config: &str) -> Option<Self> {
        Self::build(test, hosts, MTU, family, |_| config)
    }

    /// Hosts whose underlay takes long packets.
    fn jumbo(test: &str, hosts: u8) -> Option<Self> {
        Self::build(test, hosts, JUMBO_MTU, Family::V4, |_| "")
    }

    /// Hosts whose varpds are told the interface of the underlay, with this configuration.
    fn on_interfaces(test: &str, hosts: u8, config: &str) -> Option<Self> {
        Self::build_with(test, hosts, MTU, |host, directory| {
            Varpd::start_on(host, "eth0", config, directory)
        })
    }

    /// A host with each of these configurations.
    fn with_configs(test: &str, configs: &[String]) -> Option<Self> {
        let hosts = u8::try_from(configs.len()).unwrap();
        Self::build(test, hosts, MTU, Family::V4, |host| &configs[host])
    }

    fn build<C: AsRef<str>>(
        test: &str,
        hosts: u8,
        mtu: u32,
        family: Family,
        config: impl Fn(usize) -> C,
    ) -> Option<Self> {
        Self::build_with(test, hosts, mtu, |host, directory| {
            let number = usize::from(host.ipv4.octets()[3]) - 1;
            Varpd::start_with(host, host.address(family), config(number).as_ref(), directory)
        })
    }

    fn build_with(
        test: &str,
        hosts: u8,
        mtu: u32,
        start: impl Fn(&Host, &Path) -> Varpd,
    ) -> Option<Self> {
        if !can_make_hosts(test) {
            return None;
        }
        let turn = take_turn();
        step(test);
        let directory = tempfile::tempdir().unwrap();
        let underlay = Underlay::new(hosts, mtu);
        let start = |number: u8| start(underlay.host(number.into()), directory.path());
        let varpds = (0..hosts).map(start).collect();
        Some(Self { varpds, underlay, directory, _turn: turn })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// What there is to see at the varpd of each host.
    fn each<T>(&self, look: impl Fn(&Varpd) -> T) -> Vec<T> {
        self.varpds.iter().map(look).collect()
    }

    /// Counters of a vif on a host, as the operator sees them.
    fn counters(&self, host: usize, vif: Vif) -> Counters {
        Counters::of(&self.varpds[host], vif)
    }
}

/// The counters of a vif: what `vnet -j show stats` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// On a busy machine a backend may answer too late: then it is asked again.
    fn of(varpd: &Varpd, vif: Vif) -> Self {
        let mut found = None;
        wait_until(&format!("the counters of {vif:?}"), SOON, || {
            found = Self::ask(varpd, vif);
            found.is_some()
        });
        found.unwrap()
    }

    fn ask(varpd: &Varpd, vif: Vif) -> Option<Self> {
        let rows = varpd.show("stats");
        let is_its = |row: &&serde_json::Value| row["vnet"] == vif.vnet && row["mac"] == vif.mac();
        let of_vif = rows.as_array().unwrap().iter().filter(is_its);
        let named = |row: &serde_json::Value| {
            let name = row["counter"].as_str().unwrap().to_owned();
            (name, row["value"].as_u64().unwrap())
        };
        let counters = Self(of_vif.map(named).collect());
        (counters.0.len() == VifCounter::ALL.len()).then_some(counters)
    }

    fn get(&self, counter: VifCounter) -> u64 {
        self.0[counter.name()]
    }

    /// The counters of a kind that are not zero, `rx_drop_` say.
    fn starting_with(&self, prefix: &str) -> BTreeMap<&str, u64> {
        let ours = self.0.iter().filter(|(name, value)| name.starts_with(prefix) && **value > 0);
        ours.map(|(name, value)| (name.as_str(), *value)).collect()
    }

    /// The sum of the counters of a kind.
    fn sum(&self, prefix: &str) -> u64 {
        self.starting_with(prefix).values().sum()
    }
}
