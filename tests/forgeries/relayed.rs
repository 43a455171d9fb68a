//! Relayed messages, by whoever says to be a relay, at hosts that believe none.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use vnet::policy::Level;
use vnet::underlay::Port;
use vnet::wire::encap::{Flags, Header};
use vnet::wire::extension::Extensions;
use vnet::wire::name::{Name, Realm};
use vnet::wire::relayed::{HMAC_LEN, MAX_HOPS, MAX_PARTS, Relayed};

use super::nic::{Done, Nic, WALL_US};
use super::{Random, alter, count, noise, vnet};

/// A group frame of another segment, or a part of one, by a relay that made up its HMAC.
fn relayed(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let parts = 1 + random.index(MAX_PARTS.into()) as u8;
    let relayed = Relayed {
        flags: 0,
        hops: 1 + random.index(MAX_HOPS.into()) as u8,
        part: random.index(parts.into()) as u8,
        parts,
        key_number: random.range(1, 256) as u8,
        vnet: vnet(if random.per_mille(900) { 42 } else { 43 }),
        origin: random.next(),
        time_us: WALL_US + random.range(0, 1_000_000),
        sender: Name::vif(Realm(random.next() as u32), sender(random)),
        hmac: noise(random, HMAC_LEN).try_into().unwrap(),
        extensions: Extensions::NONE,
        bytes,
    };
    relayed.to_bytes()
}

fn sender(random: &mut Random) -> SocketAddr {
    let n = u32::try_from(random.range(1, 1000)).unwrap();
    (IpAddr::from(Ipv4Addr::from(0x0a00_0000 + n)), 4000).into()
}

#[test]
fn relayed_group_frames_are_dropped() {
    let mut frame = Header { flags: Flags::NONE, vnet: vnet(42) }.emit().to_vec();
    frame.extend([[0xff; 6], [2, 0, 0, 0, 0, 2], [8, 0, 1, 2, 3, 4]].concat());
    for level in [Level::None, Level::Conf] {
        let (mut nic, mut random) = (Nic::new(level), Random::new(1));
        for n in 0..count().div_ceil(2) {
            let mut bytes = relayed(&mut random, &frame);
            if n.is_multiple_of(4) {
                // Behind the two octets that say that it is one.
                let (_, altered) = alter(&mut random, &bytes[2..], bytes.len() - 2);
                bytes.splice(2.., altered);
            }
            let port = if n.is_multiple_of(3) { Port::Own } else { Port::Group };
            let done = nic.arrive(port, sender(&mut random), bytes);
            assert_eq!(done, Done { counted: vec!["rx_drop_version"], sent: Vec::new() });
        }
    }
}
