//! An attacker on the underlay who sends packets with false source addresses.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use vnet::sys::iovec::IoVec;
use vnet::sys::{clock, mmsg};

use crate::support::netns::Host;

const IP_LEN: u16 = 20;
const UDP_LEN: u16 = 8;
const UDP: u8 = 17;

/// A socket that sends whole packets.
pub(crate) struct OffPath(Socket);

impl OffPath {
    /// On the host of this thread.
    pub(crate) fn open(own: Ipv4Addr) -> Self {
        // IPPROTO_RAW: the IP header is the sender's, all but its checksum and length (raw(7)).
        let raw = Protocol::from(libc::IPPROTO_RAW);
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(raw)).unwrap();
        socket.set_multicast_if_v4(&own).unwrap();
        Self(socket)
    }

    /// Sends a datagram; false if the kernel had no room for it.
    pub(crate) fn send(&self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> bool {
        self.0.send_to(&packet(from, to, payload), &to.into()).is_ok()
    }

    /// Sends whole packets in one system call. Returns how many the kernel took.
    fn send_all(&self, to: SocketAddrV4, packets: &[Vec<u8>]) -> u64 {
        let parts: Vec<[IoVec<'_>; 1]> =
            packets.iter().map(|packet| [IoVec::from_slice(packet)]).collect();
        let message = |parts| mmsg::Message { to: SocketAddr::V4(to), parts, segment: 0 };
        let messages: Vec<_> = parts.iter().map(|parts| message(&parts[..])).collect();
        mmsg::send(self.0.as_fd(), &messages).unwrap_or(0) as u64
    }
}

/// A whole IPv4 packet with a UDP datagram, without a checksum.
pub(crate) fn packet(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp_len = UDP_LEN + u16::try_from(payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend((IP_LEN + udp_len).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 8, UDP, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    for field in [from.port(), to.port(), udp_len, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// Packets of a flood in one system call.
const AT_ONCE: usize = 64;
/// Place of the low 24 bits of the source address in an IPv4 packet.
const SOURCE: std::ops::Range<usize> = 13..16;

/// Ends a flood when it is dropped, also by a panic.
struct Ends<'f>(&'f AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `send` with numbers from 0 on a host, as often as it can, while `watch` runs here. Returns
/// how often it was run, and what `watch` returns.
pub(crate) fn during<T>(
    host: &Host,
    send: impl Fn(&OffPath, u64) -> bool + Send + Sync,
    watch: impl FnOnce(&AtomicU64) -> T,
) -> (u64, T) {
    let (sent, end) = (AtomicU64::new(0), AtomicBool::new(false));
    let seen = std::thread::scope(|scope| {
        let _ends = Ends(&end);
        scope.spawn(|| {
            host.enter();
            let socket = OffPath::open(host.ipv4);
            let mut number = 0;
            while !end.load(Ordering::Relaxed) {
                if send(&socket, number) {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                number += 1;
            }
        });
        watch(&sent)
    });
    (sent.into_inner(), seen)
}

/// Sends a datagram from a host as fast as it can, each time from another address of 10.0.0.0/8, while `watch` runs
/// here. Returns the number of datagrams, the time, and the result of `watch`.
pub(crate) fn flooded<T>(
    host: &Host,
    to: SocketAddrV4,
    payload: &[u8],
    watch: impl FnOnce() -> T,
) -> (u64, Duration, T) {
    let (sent, end) = (AtomicU64::new(0), AtomicBool::new(false));
    let begin = clock::mono();
    let seen = std::thread::scope(|scope| {
        let _ends = Ends(&end);
        scope.spawn(|| {
            host.enter();
            let socket = OffPath::open(host.ipv4);
            let source = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 0), 9);
            let mut packets = vec![packet(source, to, payload); AT_ONCE];
            let mut number = 0_u32;
            while !end.load(Ordering::Relaxed) {
                for packet in &mut packets {
                    number = number.wrapping_add(1);
                    packet[SOURCE].copy_from_slice(&number.to_be_bytes()[1..]);
                }
                sent.fetch_add(socket.send_all(to, &packets), Ordering::Relaxed);
            }
        });
        watch()
    });
    (sent.into_inner(), clock::mono() - begin, seen)
}
