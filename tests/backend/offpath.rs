//! Somebody on the underlay who sends what he likes in the name of whom he likes.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

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

/// Runs `send` with numbers from 0 on a host, as often as it can, while `watch` runs here. Returns
/// how often it was run, and what `watch` returns.
pub(crate) fn during<T>(
    host: &Host,
    send: impl Fn(&OffPath, u64) -> bool + Send + Sync,
    watch: impl FnOnce(&AtomicU64) -> T,
) -> (u64, T) {
    let (sent, end) = (AtomicU64::new(0), AtomicBool::new(false));
    /// Ends the flood also when the watch panics.
    struct Ends<'f>(&'f AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
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
