//! What crosses the underlay: all of it is looked at while it passes the switch, for what it is and
//! for bytes that should not be there.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};
use vnet::wire::{handshake, hello, varp};

use super::support::netns::Underlay;

/// The longest frame: the hosts' links carry GSO frames whole.
const LONGEST: usize = 128 << 10;
/// Room for what waits to be looked at.
const BUFFER: usize = 256 << 20;
const ETHERNET_LEN: usize = 14;
const UDP_LEN: usize = 8;
/// The first bit of an SPI (`vnet::wire::esp`).
const ESP_BIT: u8 = 0x80;

/// What a frame on the underlay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// ESP in UDP.
    Esp,
    /// VARP in UDP.
    Varp,
    /// A message about keys in UDP.
    Handshake,
    /// What a host says of itself in UDP.
    Hello,
    /// What a host's kernel says by itself: ARP, IGMP, IPv6 neighbours.
    Kernel,
    /// Anything else.
    Other,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Frames, by the host that sent them.
    pub(crate) kinds: BTreeMap<(Option<Ipv4Addr>, Kind), u64>,
    /// How often a pattern was seen in frames of a host; a frame counts once.
    pub(crate) patterns: BTreeMap<(Option<Ipv4Addr>, usize), u64>,
    /// The first frames of kind [`Kind::Other`].
    pub(crate) odd: Vec<Vec<u8>>,
    /// Frames that there was no room for.
    pub(crate) missed: u32,
}

impl Seen {
    /// Frames of a kind from a host.
    pub(crate) fn count(&self, host: Ipv4Addr, kind: Kind) -> u64 {
        self.kinds.get(&(Some(host), kind)).copied().unwrap_or(0)
    }

    /// Frames from a host with a pattern.
    pub(crate) fn with_pattern(&self, host: Ipv4Addr, pattern: usize) -> u64 {
        self.patterns.get(&(Some(host), pattern)).copied().unwrap_or(0)
    }
}

/// Looks at everything, until it is finished.
pub(crate) struct Capture {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

impl Capture {
    /// Begins to look, also for these patterns.
    pub(crate) fn start(underlay: &Underlay, patterns: Vec<Vec<u8>>) -> Self {
        let end = Arc::<AtomicBool>::default();
        let told = Arc::clone(&end);
        let socket = std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                underlay.switch().enter();
                open()
            });
            opened.join().expect("the thread has not panicked")
        });
        let thread = Some(std::thread::spawn(move || look(&socket, &patterns, &told)));
        Self { end, thread }
    }

    /// Ends; returns what was seen.
    pub(crate) fn finish(mut self) -> Seen {
        self.end.store(true, Ordering::Relaxed);
        self.thread.take().expect("finished once").join().expect("the thread has not panicked")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the capture has panicked");
        }
    }
}

fn open() -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
    let socket = socket.expect("root may look at packets");
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).expect("root may have room");
    setsockopt(&socket, sockopt::RxqOvfl, &1).expect("the kernel counts what it drops");
    socket
}

fn look(socket: &OwnedFd, patterns: &[Vec<u8>], end: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut bytes = vec![0; LONGEST];
    let mut control = nix::cmsg_space!(u32);
    loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::empty();
        let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let Ok(message) = received else {
            // What came before the end has been looked at.
            if end.load(Ordering::Relaxed) {
                return seen;
            }
            let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], 20_u8);
            continue;
        };
        assert!(!message.flags.contains(MsgFlags::MSG_TRUNC), "a frame is whole");
        let overflow = message.cmsgs().ok().and_then(|mut all| {
            all.find_map(|one| match one {
                ControlMessageOwned::RxqOvfl(count) => Some(count),
                _ => None,
            })
        });
        seen.missed = overflow.unwrap_or(seen.missed);
        let len = message.bytes;
        judge(&bytes[..len], patterns, &mut seen);
    }
}

fn judge(frame: &[u8], patterns: &[Vec<u8>], seen: &mut Seen) {
    let (host, kind) = classify(frame);
    *seen.kinds.entry((host, kind)).or_default() += 1;
    if kind == Kind::Other && seen.odd.len() < 4 {
        seen.odd.push(frame[..frame.len().min(64)].to_vec());
    }
    for (number, pattern) in patterns.iter().enumerate() {
        if contains(frame, pattern) {
            *seen.patterns.entry((host, number)).or_default() += 1;
        }
    }
}

fn contains(frame: &[u8], pattern: &[u8]) -> bool {
    // Most places are ruled out by one byte.
    let places = frame.iter().enumerate().filter(|(_, byte)| **byte == pattern[0]);
    places.into_iter().any(|(at, _)| frame[at..].starts_with(pattern))
}

fn classify(frame: &[u8]) -> (Option<Ipv4Addr>, Kind) {
    let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET_LEN) else {
        return (None, Kind::Other);
    };
    match ethernet[12..] {
        [0x08, 0x00] if packet.len() >= 20 => {
            let host = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
            let options = usize::from(packet[0] & 15) * 4;
            (Some(host), classify_packet(packet[9], packet.get(options..).unwrap_or(&[])))
        }
        [0x08, 0x06] if packet.len() >= 28 => {
            let host = Ipv4Addr::new(packet[14], packet[15], packet[16], packet[17]);
            (Some(host), Kind::Kernel)
        }
        [0x86, 0xdd] if packet.len() >= 40 => {
            // Of MLD, after a hop-by-hop header, and neighbour discovery.
            let kind = match packet[6] {
                0 | 58 => Kind::Kernel,
                next => classify_packet(next, &packet[40..]),
            };
            // Beacons are the only ones of a host that uses IPv4.
            (None, if matches!(kind, Kind::Kernel | Kind::Hello) { kind } else { Kind::Other })
        }
        _ => (None, Kind::Other),
    }
}

fn classify_packet(protocol: u8, body: &[u8]) -> Kind {
    const IGMP: u8 = 2;
    const UDP: u8 = 17;
    match (protocol, body.get(UDP_LEN..)) {
        (IGMP, _) => Kind::Kernel,
        (UDP, Some(said)) if said.first().is_some_and(|byte| byte & ESP_BIT != 0) => Kind::Esp,
        (UDP, Some(said)) if varp::Message::parse(said).is_ok() => Kind::Varp,
        (UDP, Some(said)) if handshake::Message::parse(said).is_ok() => Kind::Handshake,
        (UDP, Some(said)) if hello::Message::parse(said).is_ok() => Kind::Hello,
        _ => Kind::Other,
    }
}
