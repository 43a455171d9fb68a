//! A guest that tries to reach what is underneath: the hosts, varpd, the tunnel itself.
//!
//! ```text
//!     guest 1     guest 2                    guest 3       all on vnet 42
//!        |           |                          |
//!      host a -------+   a listener           host b       a listener
//!        |  192.0.2.1, varpd                    |  192.0.2.2, varpd
//!     [================ the underlay ================]
//! ```
//!
//! Whatever is in its frames, they are the other guests' to read, and nobody else's.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};

use etherparse::{IpNumber, PacketBuilder};
use vnet::metrics::VifCounter;
use vnet::sys::clock;
use vnet::wire::name::Realm;
use vnet::wire::varp::{Author, Body, Claim, Message, PORT};
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, Stamp, VifKey, VnetId};

use crate::nic::{BROADCAST, Nic, frame, mac, vif};
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// VARP's port and group, and the port of the listeners.
const VARP: u16 = 1798;
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 10, 0, 1);
const LISTENER: u16 = 5555;

/// A socket on a host.
fn socket(net: &Net, host: usize, port: u16) -> UdpSocket {
    let host = net.underlay.host(host);
    std::thread::scope(|scope| {
        let open = || {
            host.enter();
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
        };
        scope.spawn(open).join().unwrap()
    })
}

fn coa(varpd: &Varpd, last: u8) -> SocketAddrV4 {
    let vifs = varpd.show("vifs");
    let is_it = |row: &&serde_json::Value| row["mac"] == vif(42, last).mac();
    let row = vifs.as_array().unwrap().iter().find(is_it).unwrap();
    row["coa"].as_str().unwrap().trim_start_matches("udp:").parse().unwrap()
}

/// A counter of varpd itself.
fn counter(varpd: &Varpd, name: &str) -> u64 {
    let stats = varpd.show("stats");
    let row = stats.as_array().unwrap().iter().find(|row| row["counter"] == name);
    row.unwrap()["value"].as_u64().unwrap()
}

/// What is no message of VARP.
const JUNK: &[u8] = b"VA\x02\x01 not quite a message";

/// What would lead guest 3's frames astray, if varpd heard it.
fn claim() -> Vec<u8> {
    let addr = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), LISTENER));
    let coa = CareOf {
        addr,
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    };
    let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac(mac(3)) };
    // Newer than guest 3's own, and no more so than clocks may differ.
    let claim =
        Claim { stamp: Stamp(clock::now().wall_ms + 1000), coa, realm: Realm(0), behind: None };
    let body = Body::Announce { claim, lifetime_ms: 30_000 };
    let (nonce, wide, relayed, tag) = (1, false, false, None);
    let author = Author { realm: Realm(0), addr: (Ipv4Addr::new(192, 0, 2, 1), PORT).into() };
    Message { key, author, nonce, wide, relayed, body, tag }.to_bytes()
}

/// What would be a frame for guest 3 at its care-of address.
fn tunnelled() -> Vec<u8> {
    let header = [&[0x40, 0, 0, 0][..], &42_u32.to_be_bytes()].concat();
    [header, frame(mac(3), mac(2), 1, 60)].concat()
}

/// Frames of guest 1 that are for no guest's address.
fn attempts(targets: &[SocketAddrV4]) -> Vec<Vec<u8>> {
    let mut attempts = Vec::new();
    for target in targets {
        let to = target.ip().octets();
        let builder = || PacketBuilder::ethernet2(mac(1), BROADCAST).ipv4([192, 0, 2, 77], to, 64);
        for payload in [JUNK.to_vec(), claim(), tunnelled()] {
            let mut udp = Vec::new();
            builder().udp(VARP, target.port()).write(&mut udp, &payload).unwrap();
            let mut etherip = Vec::new();
            builder().write(&mut etherip, IpNumber(97), &payload).unwrap();
            attempts.extend([udp, etherip]);
        }
        let head = [&BROADCAST[..], &mac(1), &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        attempts.push([&head[..], &mac(1), &[192, 0, 2, 77], &[0; 6], &to].concat());
    }
    // The tunnel's format with nothing around it.
    attempts.push([&BROADCAST[..], &mac(1), &[8, 0], &tunnelled()].concat());
    attempts
}

#[test]
fn what_is_underneath_is_not_reached_from_a_vnet() {
    let Some(net) = Net::new("a guest that sends to what is underneath", 2) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    let mut three = Nic::start("g3", vif(42, 3), &net.varpds[1]);
    one.introduce(&mut two);
    one.introduce(&mut three);
    let listeners = [0, 1].map(|host| socket(&net, host, LISTENER));
    let hosts = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let mut targets =
        vec![SocketAddrV4::new(GROUP, VARP), SocketAddrV4::new(Ipv4Addr::LOCALHOST, VARP)];
    for host in hosts {
        targets.extend([VARP, LISTENER].map(|port| SocketAddrV4::new(host, port)));
    }
    targets.extend([coa(&net.varpds[0], 2), coa(&net.varpds[1], 3)]);

    let attempts = attempts(&targets);
    for attempt in &attempts {
        for to in [BROADCAST, mac(2), mac(3)] {
            let mut frame = attempt.clone();
            frame[..6].copy_from_slice(&to);
            one.send_frame(&frame);
            for nic in
                [&mut two, &mut three].into_iter().filter(|n| to == BROADCAST || to == n.mac())
            {
                let arrived = nic.next_frame(SOON).expect("guests get it");
                assert!(arrived == frame, "as it was sent: {arrived:x?}");
            }
        }
    }
    for nic in [&mut one, &mut two, &mut three] {
        nic.assert_silent();
    }

    // What does reach listeners and varpd is heard: from the other host's own socket.
    let real = socket(&net, 1, 0);
    let mut buffer = [0; 100];
    for (listener, host) in listeners.iter().zip(hosts) {
        real.send_to(b"real", (host, LISTENER)).unwrap();
        listener.set_read_timeout(Some(SOON)).unwrap();
        let (len, _) = listener.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"real", "the first that arrives");
    }
    for varpd in &net.varpds {
        for name in ["varp_rx_malformed", "varp_drop_foreign"] {
            assert_eq!(counter(varpd, name), 0, "{name}");
        }
    }
    real.send_to(JUNK, (hosts[0], VARP)).unwrap();
    wait_until("varpd counts what it can't read", SOON, || {
        counter(&net.varpds[0], "varp_drop_foreign") == 1
    });
    // Guest 3 is where it was, for those who ask for it now.
    let mut four = Nic::start("g4", vif(42, 4), &net.varpds[0]);
    four.introduce(&mut three);
    let counters = one.counters(&net.varpds[0]);
    assert_eq!(counters.sum("tx_drop_"), 0, "{counters:?}");
    assert_eq!(counters.get(VifCounter::tx_frames), 2 + 3 * attempts.len() as u64);
    step(&format!("{} frames to what is underneath, each read by guests only", 3 * attempts.len()));
}
