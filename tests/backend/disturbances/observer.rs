//! Somebody at the switch who looks at all packets between the hosts: on a secured vnet nothing leaves
//! unsealed, whatever happens. Keeps the last sealed ones, to be replayed.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;

use super::{OPEN, VNETS};
use crate::support::netns::{Underlay, enter};

/// Room for the longest packet that the switch carries before it is cut, in bytes.
const ROOM: usize = 1 << 17;
/// Room for packets in the socket, in bytes.
const BUFFER: usize = 16 << 20;
/// The time between two looks at whether it is over.
const LOOK: Duration = Duration::from_millis(20);
/// Datagrams that are kept for replays, and the longest of them, in bytes.
const KEPT: usize = 256;
const LONGEST: usize = 1600;
/// UDP source port of forgeries, which do not count.
pub(super) const FORGER: u16 = 4444;

/// EtherTypes (IEEE 802) and UDP's number (IANA).
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const UDP: u8 = 17;
const ETHERNET_LEN: usize = 14;
const UDP_LEN: usize = 8;

/// A datagram as it was on the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Datagram {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) payload: Vec<u8>,
}

impl Datagram {
    /// What is in an Ethernet frame, if that is UDP in IPv4 without options or in IPv6.
    fn of(frame: &[u8]) -> Option<Self> {
        let (ethernet, ip) = frame.split_at_checked(ETHERNET_LEN)?;
        let (from, to, udp): (IpAddr, IpAddr, &[u8]) = if ethernet[12..] == IPV4 {
            let (header, udp) = ip.split_at_checked(20)?;
            let address = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).ok();
            let is_udp = header[0] == 0x45 && header[9] == UDP;
            let ends = (Ipv4Addr::from(address(12)?), Ipv4Addr::from(address(16)?));
            is_udp.then_some((ends.0.into(), ends.1.into(), udp))?
        } else if ethernet[12..] == IPV6 {
            let (header, udp) = ip.split_at_checked(40)?;
            let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok();
            let ends = (Ipv6Addr::from(address(8)?), Ipv6Addr::from(address(24)?));
            (header[6] == UDP).then_some((ends.0.into(), ends.1.into(), udp))?
        } else {
            return None;
        };
        let (header, payload) = udp.split_at_checked(UDP_LEN)?;
        let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (from, to) = (SocketAddr::new(from, port(0)), SocketAddr::new(to, port(2)));
        Some(Self { from, to, payload: payload.to_vec() })
    }

    /// The secured vnet whose frames it carries in the clear.
    fn unsealed(&self) -> Option<u32> {
        let [first, _, _, _, id @ ..] = *self.payload.first_chunk::<8>()?;
        let vnet = u32::from_be_bytes(id);
        let is_secured = vnet != OPEN && VNETS.contains(&vnet);
        (first >> 4 == 4 && is_secured && self.from.port() != FORGER).then_some(vnet)
    }

    /// Whether its receivers have to notice that they had it before: ESP, and VARP with a tag.
    fn is_sealed(&self) -> bool {
        let tagged = self.payload.starts_with(b"VA") && self.payload.len() > 84;
        self.payload.first().is_some_and(|first| *first >= 0x80) || tagged
    }
}

#[derive(Default)]
struct Seen {
    /// The first of a secured vnet that was not sealed.
    unsealed: Option<(u32, Datagram)>,
    sealed: VecDeque<Datagram>,
    /// How many sealed ones there were.
    count: u64,
}

/// Looks until it is dropped.
pub(super) struct Observer {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Observer {
    pub(super) fn new(underlay: &Underlay) -> Self {
        let (seen, over) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (list, told) = (seen.clone(), over.clone());
        let (ready, is_ready) = mpsc::channel();
        let namespace = underlay.switch().name().to_owned();
        let thread = std::thread::spawn(move || {
            enter(&namespace);
            let socket = open();
            ready.send(()).expect("somebody waits");
            look(&socket, &list, &told);
        });
        is_ready.recv().expect("the observer looks");
        Self { seen, over, thread: Some(thread) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of a secured vnet was on the underlay in the clear.
    pub(super) fn assert_all_sealed(&self, after: &str) {
        let unsealed = &self.seen().unsealed;
        assert!(unsealed.is_none(), "{after}: not sealed: {unsealed:x?}");
    }

    /// The last sealed datagrams, oldest first.
    pub(super) fn recorded(&self) -> Vec<Datagram> {
        self.seen().sealed.iter().cloned().collect()
    }

    /// How many sealed datagrams there were.
    pub(super) fn count(&self) -> u64 {
        self.seen().count
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()),
            "the observer has panicked"
        );
    }
}

fn open() -> OwnedFd {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let opened = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll);
    let opened = opened.expect("root may look at packets");
    setsockopt(&opened, sockopt::RcvBufForce, &BUFFER).expect("a large buffer");
    opened
}

fn look(socket: &OwnedFd, seen: &Mutex<Seen>, over: &AtomicBool) {
    let mut bytes = vec![0; ROOM];
    while !over.load(Ordering::Relaxed) {
        let mut ends = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        // An interrupted wait is a short one.
        let _ = ppoll(&mut ends, Some(TimeSpec::from(LOOK)), None);
        while let Ok(len) = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            let Some(datagram) = Datagram::of(&bytes[..len]) else { continue };
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(vnet) = datagram.unsealed() {
                seen.unsealed.get_or_insert((vnet, datagram));
            } else if datagram.is_sealed() {
                seen.count += 1;
                // Each is seen on its way in and on its way out.
                let known = seen.sealed.iter().rev().take(8).any(|last| *last == datagram);
                if datagram.payload.len() <= LONGEST && !known {
                    seen.sealed.push_back(datagram);
                    if seen.sealed.len() > KEPT {
                        seen.sealed.pop_front();
                    }
                }
            }
        }
    }
}
