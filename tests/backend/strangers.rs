//! Made-up group frames of a secured vnet, from ever other addresses, as fast as one processor can send:
//! what they cost each NIC of the vnet, and that it hears those whom it knows.
//!
//! ```text
//!     guest 1          floods            guest 2
//!     host a           host b            host c
//!                 10.0.0.0/8 behind it
//! ```

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use vnet::metrics::VifCounter;
use vnet::security::group::STRANGERS_PER_SECOND;
use vnet::sys::iovec::IoVec;
use vnet::sys::{clock, mmsg};
use vnet::wire::VnetId;
use vnet::wire::esp::{Head, Spi};
use vnet::wire::varp::{GROUP, PORT};

use crate::nic::{BROADCAST, Nic, mac, vif};
use crate::offpath::packet;
use crate::secured::Keys;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// Broadcasts of guest 2 that guest 1 has to hear during the flood.
const HEARD: u32 = 200;
/// Forged frames that guest 1's backend has to get meanwhile.
const FORGED: u64 = 60_000;
/// Packets in one call.
const AT_ONCE: usize = 64;

/// Sends them until told to end.
fn flood(net: &Net, sent: &AtomicU64, end: &AtomicBool) {
    let host = net.underlay.host(1);
    host.enter();
    let raw = Protocol::from(libc::IPPROTO_RAW);
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(raw)).unwrap();
    socket.set_multicast_if_v4(&host.ipv4).unwrap();
    let to = SocketAddrV4::new(GROUP, PORT);
    let start = u32::try_from(clock::now().wall_ms / 1000).unwrap().to_be_bytes();
    let sequence = 7_u32;
    let [s0, s1, s2, s3] = start;
    let [n0, n1, n2, n3] = sequence.to_be_bytes();
    let spi = Spi::of_group(VnetId::new(42).unwrap(), 5);
    let head = Head { spi, sequence, iv: [s0, s1, s2, s3, n0, n1, n2, n3] };
    let payload = [&head.emit()[..], &[0x5a; 64 + 16]].concat();
    let source = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 0), 9);
    let mut packets = vec![packet(source, to, &payload); AT_ONCE];
    let mut number = 0_u32;
    while !end.load(Ordering::Relaxed) {
        for packet in &mut packets {
            number = number.wrapping_add(1);
            packet[13..16].copy_from_slice(&number.to_be_bytes()[1..]);
        }
        let parts: Vec<[IoVec<'_>; 1]> =
            packets.iter().map(|packet| [IoVec::from_slice(packet)]).collect();
        let message = |parts| mmsg::Message { to: SocketAddr::V4(to), parts, segment: 0 };
        let messages: Vec<_> = parts.iter().map(|parts| message(&parts[..])).collect();
        let count = mmsg::send(socket.as_fd(), &messages).unwrap_or(0);
        sent.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[test]
fn a_flood_of_made_up_group_frames_silences_nobody_who_is_known() {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "");
    let configs = [config.clone(), String::new(), config];
    let Some(net) = Net::with_configs("made-up group frames", &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[2]);
    wait_until("they know each other", SOON, || {
        two.send(BROADCAST, 0);
        one.try_receive(mac(2), Duration::from_millis(50)).is_some()
    });
    let (sent, end) = (AtomicU64::new(0), AtomicBool::new(false));
    /// Ends the flood also when something panics.
    struct Ends<'f>(&'f AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let refused = |net: &Net| {
        let counters = net.counters(0, vif(42, 1));
        [VifCounter::rx_drop_flood, VifCounter::rx_drop_auth].map(|name| counters.get(name))
    };
    let (before, ticks, begin) = (refused(&net), one.backend.process.cpu_ticks(), clock::mono());
    let (mut heard, mut tried) = (0, 0);
    std::thread::scope(|scope| {
        let _ends = Ends(&end);
        scope.spawn(|| flood(&net, &sent, &end));
        wait_until("the flood has come, and guest 2 was heard", SOON * 6, || {
            tried += 1;
            two.send(BROADCAST, tried);
            while one.try_receive(mac(2), Duration::from_millis(1)).is_some() {
                heard += 1;
            }
            let come: u64 = refused(&net).iter().zip(before).map(|(now, was)| now - was).sum();
            heard >= HEARD && come >= FORGED
        });
    });
    let took = (clock::mono() - begin).as_secs_f64();
    let ticks = one.backend.process.cpu_ticks() - ticks;
    let [flood, opened] = refused(&net).map(|count| count as f64);
    let sent = sent.into_inner() as f64;
    step(&format!(
        "  {:.0} thousand/s sent, {:.0} thousand/s received, {:.0} tried a second in {took:.1} s; g1's \
         backend: {:.0} % of a processor, {:.2} us each; {heard} of {tried} broadcasts heard",
        sent / took / 1e3,
        (flood + opened) / took / 1e3,
        opened / took,
        ticks as f64 / took,
        ticks as f64 * 1e4 / (flood + opened),
    ));
    let most = f64::from(STRANGERS_PER_SECOND) * (took + 2.0);
    assert!(opened <= most, "{opened} were tried in {took} s");
}
