//! Vifs, claims and messages, as the cases need them.

use std::net::{Ipv4Addr, SocketAddr};

use vnet::mapper::{Config, LocalVif, Mapper, Output};
use vnet::time::{Instant, Now};
use vnet::wire::name::Realm;
use vnet::wire::varp::{Author, Body, Claim, Message, PORT};
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, Stamp, VifKey, VnetId};

/// The wall clock when everything begins: 2026-01-01T00:00Z, in milliseconds.
pub(crate) const WALL: u64 = 1_767_225_600_000;

/// Both clocks, so many microseconds after the begin.
pub(crate) fn now(micros: u64) -> Now {
    Now { mono: Instant::from_micros(micros), wall_ms: WALL + micros / 1000 }
}

/// Where host `number` answers VARP.
pub(crate) fn varp(number: usize) -> SocketAddr {
    SocketAddr::from((ip(number), PORT))
}

fn ip(number: usize) -> Ipv4Addr {
    let [.., b, c, d] = (number + 1).to_be_bytes();
    Ipv4Addr::new(10, b, c, d)
}

/// The host that has this address.
pub(crate) fn host_at(addr: SocketAddr) -> usize {
    let std::net::IpAddr::V4(v4) = addr.ip() else { panic!("all are IPv4") };
    let [_, b, c, d] = v4.octets();
    usize::from(b) * 65_536 + usize::from(c) * 256 + usize::from(d) - 1
}

/// A care-of address on a host.
pub(crate) fn coa(host: usize, port: usize) -> CareOf {
    let port = u16::try_from(1024 + port % 60_000).expect("a port");
    let addr = SocketAddr::from((ip(host), port));
    CareOf {
        addr,
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    }
}

/// The `mac`th MAC on the `vnet`th vnet.
pub(crate) fn key(vnet: usize, mac: usize) -> VifKey {
    let vnet = u32::try_from(vnet + 2).ok().and_then(VnetId::new).expect("a vnet");
    let [.., b, c, d, e] = mac.to_be_bytes();
    VifKey { vnet, mac: Mac([2, 0, b, c, d, e]) }
}

/// A mapper on a host without limits that would be reached.
pub(crate) fn mapper(host: usize, config: Config) -> Mapper {
    let seed = u128::try_from(host + 1).expect("small").to_le_bytes();
    Mapper::new(config, seed, varp(host))
}

/// A configuration whose tables are as large as is asked.
pub(crate) fn unbounded() -> Config {
    let mut config = Config::default();
    let limits = &mut config.limits;
    (limits.vifs, limits.entries, limits.entries_per_vnet) = (1 << 24, 1 << 24, 1 << 24);
    (limits.pending, limits.pending_per_vnet, limits.pending_per_vif) = (1 << 24, 1 << 24, 1 << 24);
    (limits.requests_per_second, limits.request_burst) = (1_000_000_000, 1_000_000_000);
    config
}

/// Makes a vif that runs, without its announcements.
pub(crate) fn start(mapper: &mut Mapper, vif: usize, key: VifKey, coa: CareOf, now: Now) {
    let vif = LocalVif(vif as u64);
    mapper.add_vif(vif, key, coa).expect("room");
    mapper.set_active(vif, true, None, now);
}

/// Drops what is to be done; returns the nonce of the last request.
pub(crate) fn drain(mapper: &mut Mapper) -> Option<u64> {
    let mut nonce = None;
    while let Some(output) = mapper.poll_output() {
        if let Output::Send { message, .. } = output {
            nonce = Some(message.nonce);
        }
    }
    nonce
}

/// The host at a care-of address.
fn author(coa: CareOf) -> Author {
    Author { realm: Realm(0), addr: SocketAddr::new(coa.addr.ip(), PORT) }
}

/// The owner's reply.
pub(crate) fn reply(key: VifKey, nonce: u64, coa: CareOf) -> Message {
    let body = Body::Reply {
        claim: Claim { stamp: Stamp(WALL), coa, realm: Realm(0), behind: None },
        lifetime_ms: 30_000,
    };
    Message { key, author: author(coa), nonce, wide: false, relayed: false, body, tag: None }
}

/// The owner's announcement.
pub(crate) fn announce(key: VifKey, coa: CareOf, stamp: u64) -> Message {
    let body = Body::Announce {
        claim: Claim { stamp: Stamp(stamp), coa, realm: Realm(0), behind: None },
        lifetime_ms: 30_000,
    };
    Message { key, author: author(coa), nonce: 7, wide: true, relayed: false, body, tag: None }
}
