//! A host: its varpd, its clock, its place in the network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use vnet::mapper::{Config, Limits, Mapper};
use vnet::time::{Instant, Now};
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest};

use crate::random::Random;

/// When every run starts: 2026-01-01T00:00Z, in milliseconds.
const WALL: i64 = 1_767_225_600_000;
/// The port of the first instance.
const FIRST_PORT: usize = 10_000;

/// A simulated host.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) number: usize,
    /// None while varpd is down.
    pub(crate) mapper: Option<Mapper>,
    /// How far its wall clock is ahead.
    pub(crate) skew_ms: i64,
    /// Hosts of different islands do not reach each other.
    pub(crate) island: u8,
}

/// Timers as shipped, except that split brains heal within a run.
pub(crate) fn config() -> Config {
    let limits = Limits {
        entries: 512,
        entries_per_vnet: 128,
        pending: 256,
        pending_per_vnet: 128,
        pending_per_vif: 32,
        interest: 4,
        notes: 64,
        ..Limits::default()
    };
    Config { announce_interval: Duration::from_secs(40), limits, ..Config::default() }
}

impl Host {
    /// How far a clock may be ahead, or behind: an hour.
    pub(crate) fn skew(random: &mut Random) -> i64 {
        i64::try_from(random.range(0, 7_200_000)).expect("small") - 3_600_000
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

    /// The care-of address of an instance on this host; no two instances ever share a port.
    pub(crate) fn coa(number: usize, instance: usize) -> CareOf {
        let port = u16::try_from(FIRST_PORT + instance).expect("few instances");
        let addr = SocketAddr::new(Self::ip(number), port);
        CareOf {
            addr,
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        }
    }

    /// The instance behind a care-of address.
    pub(crate) fn instance(coa: CareOf) -> usize {
        usize::from(coa.addr.port()) - FIRST_PORT
    }

    pub(crate) fn start(&mut self, entropy: [u64; 2]) {
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&entropy[0].to_le_bytes());
        seed[8..].copy_from_slice(&entropy[1].to_le_bytes());
        self.mapper = Some(Mapper::new(config(), seed, Self::varp(self.number)));
    }

    /// What its clocks show.
    pub(crate) fn now(&self, now: Instant) -> Now {
        let elapsed = i64::try_from(now.as_micros() / 1000).expect("a short run");
        let wall_ms = u64::try_from(WALL + elapsed + self.skew_ms).expect("after 1970");
        Now { mono: now, wall_ms }
    }
}
