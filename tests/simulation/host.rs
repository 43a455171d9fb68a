//! A simulated host: the shipped machine of its varpd, its clock, its place in the network; and the shell around the
//! machine, as far as it is needed: connections and sockets are entries of tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use vnet::config::{Config, Seconds};
use vnet::host::admission::Admission;
use vnet::host::{ClientId, Host as Machine, Place, Start, mapper_config};
use vnet::mapper::{self, LocalVif};
use vnet::security::keyfile::KeyFile;
use vnet::time::{Instant, Now};
use vnet::wire::VnetId;

use crate::random::Random;

/// When every run starts: 2026-01-01T00:00Z, in milliseconds.
const WALL: i64 = 1_767_225_600_000;
/// The port of the first instance.
const FIRST_PORT: usize = 10_000;
/// Bytes that the interface of every host takes.
const MTU: u32 = 1500;

/// How a run is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// No vnet has keys.
    None,
    /// All vnets are encrypted.
    Conf,
}

/// The sockets of a vif.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sockets {
    pub(crate) address: SocketAddr,
    pub(crate) is_watched: bool,
}

/// A running varpd.
#[derive(Debug)]
pub(crate) struct Varpd {
    pub(crate) machine: Machine,
    /// The backend at each connection.
    pub(crate) backends: BTreeMap<ClientId, usize>,
    /// Those that do not read.
    pub(crate) stalled: BTreeSet<ClientId>,
    pub(crate) sockets: BTreeMap<LocalVif, Sockets>,
    next_client: u64,
}

impl Varpd {
    /// A new connection of a backend.
    pub(crate) fn connect(&mut self, instance: usize) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        self.backends.insert(client, instance);
        client
    }

    /// The connection of a backend.
    pub(crate) fn client(&self, instance: usize) -> Option<ClientId> {
        self.backends.iter().find(|(_, of)| **of == instance).map(|(client, _)| *client)
    }
}

/// A simulated host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) number: usize,
    /// None while varpd is down.
    pub(crate) varpd: Option<Varpd>,
    /// How far its wall clock is ahead.
    pub(crate) skew_ms: i64,
    /// Hosts of different islands do not reach each other.
    pub(crate) island: u8,
}

/// Timers as shipped, except that split brains heal, and vifs are forgotten, within a run.
pub(crate) fn config(protection: Protection) -> Config {
    let mut config = Config { address: Some(Host::ip(0)), ..Config::default() };
    config.timers.announce_interval = Seconds(40_000);
    config.timers.keep = Seconds(12_000);
    config.limits.entries = 512;
    config.limits.entries_per_vnet = 128;
    config.limits.pending = 256;
    config.limits.pending_per_vif = 32;
    config.beacon = false;
    if protection == Protection::Conf {
        config.security.policy = vnet::policy::Level::Conf.into();
    }
    config
}

/// The mapper's part of it, with bounds that are reached within a run.
pub(crate) fn limits() -> mapper::Config {
    let config = mapper_config(&config(Protection::None));
    let limits =
        mapper::Limits { pending_per_vnet: 128, interest: 4, notes: 64, ..config.limits.clone() };
    mapper::Config { limits, ..config }
}

/// The key of a vnet.
pub(crate) fn key_of(vnet: VnetId) -> KeyFile {
    let mut bytes = [0x5a; 32];
    bytes[..4].copy_from_slice(&vnet.get().to_be_bytes());
    KeyFile::new(vnet::secret::Secret::new(bytes))
}

impl Host {
    /// How far a clock may be ahead, or behind: an hour.
    pub(crate) fn skew(random: &mut Random) -> i64 {
        i64::try_from(random.range(0, 7_200_000)).expect("small") - 3_600_000
    }

    /// Clocks that agree well enough for keys: 30 seconds.
    pub(crate) fn small_skew(random: &mut Random) -> i64 {
        i64::try_from(random.range(0, 60_000)).expect("small") - 30_000
    }

    pub(crate) fn ip(number: usize) -> IpAddr {
        let last = u8::try_from(number + 1).expect("few hosts");
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
    }

    /// Where its varpd sends from and listens.
    pub(crate) fn varp(number: usize) -> SocketAddr {
        SocketAddr::new(Self::ip(number), vnet::wire::varp::PORT)
    }

    /// The host that listens at this VARP address.
    pub(crate) fn at(addr: SocketAddr) -> Option<usize> {
        match addr.ip() {
            IpAddr::V4(v4) if addr.port() == vnet::wire::varp::PORT => {
                let [.., last] = v4.octets();
                usize::from(last).checked_sub(1)
            }
            _ => None,
        }
    }

    /// The address of the first sockets of an instance on this host; no two instances are given the same.
    pub(crate) fn address(number: usize, instance: usize) -> SocketAddr {
        let port = u16::try_from(FIRST_PORT + instance).expect("few instances");
        SocketAddr::new(Self::ip(number), port)
    }

    /// varpd starts. The same `start` gives the same machine.
    pub(crate) fn start(&mut self, start: Start, now: Instant) {
        let machine = Machine::new(start, self.now(now));
        let next_client = 1;
        let (backends, stalled, sockets) = Default::default();
        self.varpd = Some(Varpd { machine, backends, stalled, sockets, next_client });
    }

    /// What varpd begins with.
    pub(crate) fn setup(number: usize, protection: Protection, entropy: [u64; 2]) -> Start {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&entropy[0].to_le_bytes());
        seed[8..16].copy_from_slice(&entropy[1].to_le_bytes());
        let config = Config { address: Some(Self::ip(number)), ..config(protection) };
        let nobody = |_: &str| Err(std::io::Error::other("there are no accounts"));
        let admission = Admission::new(&config, 0, None, nobody, nobody).expect("no names");
        let place = Place { interface: "eth0".into(), index: 2, address: Self::ip(number) };
        Start { config, mapper: limits(), admission, place, mtu: Some(MTU), seed }
    }

    /// What its clocks show.
    pub(crate) fn now(&self, now: Instant) -> Now {
        let elapsed = i64::try_from(now.as_micros() / 1000).expect("a short run");
        let wall_ms = u64::try_from(WALL + elapsed + self.skew_ms).expect("after 1970");
        Now { mono: now, wall_ms }
    }
}

/// How long a mapping lives.
pub(crate) fn lifetime() -> Duration {
    limits().lifetime
}

/// Where a key file would be.
pub(crate) fn is_key_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "key")
}
