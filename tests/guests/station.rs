//! A station on a vnet that is no guest: the kernel's TCP/IP in a network namespace of its own,
//! behind a NIC whose driver is played here.
//!
//! ```text
//!     sockets of the test          namespace "station"
//!          |
//!        eth0, a tap
//!          |  this file: frames, unchanged
//!     driver === vhost-user === backend of a host
//! ```
//!
//! It is there at once, costs little, and its clock is that of the test, so gaps in what it
//! receives can be measured to the millisecond. The same on a bridge of a host has an end of a veth pair
//! for a NIC, and nobody in between.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket,
};

use super::driver::{Driver, Layout, Options};
use super::support::netns::{Host, Namespace, Underlay};
use super::support::vnet::{Backend, Listener, Varpd, Vif};
use super::timing;

/// Request number and flags of linux/if_tun.h.
const SET_IFF: u8 = 202;
const TAP: u16 = 0x0002;
const NO_PACKET_INFO: u16 = 0x1000;
/// Length of `struct ifreq`; the name is first, then the flags.
const INTERFACE_REQUEST_LEN: usize = 40;
const NAME_LEN: usize = 16;

nix::ioctl_write_ptr_bad!(
    set_interface,
    nix::request_code_write!(b'T', SET_IFF, 4),
    [u8; INTERFACE_REQUEST_LEN]
);

/// Time between two beacons.
const BEACON_INTERVAL: Duration = Duration::from_millis(2);
/// EtherType of a beacon (IEEE 802, local experimental): who gets one ignores it.
const BEACON: [u8; 2] = [0x88, 0xb5];
/// EtherType of RARP.
const RARP: [u8; 2] = [0x80, 0x35];

/// MTU of its NIC, in bytes.
const MTU: u32 = 1450;
/// The time between two looks of a thread at whether it is over, in milliseconds.
const LOOK: u8 = 20;

/// Who a station is, and to whom it sends beacons so that it can be seen where these go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) vif: Vif,
    /// Its address with a prefix length, "10.0.0.100/24".
    pub(crate) address: &'static str,
    pub(crate) to: Vif,
}

/// A station. Fields are dropped in this order.
pub(crate) struct Station {
    threads: Vec<JoinHandle<()>>,
    end: Arc<AtomicBool>,
    is_quiet: Arc<AtomicBool>,
    rarps: Arc<AtomicU64>,
    _backend: Option<Backend>,
    namespace: Arc<Namespace>,
}

impl Station {
    /// A station on the host of `varpd`.
    pub(crate) fn start(underlay: &Underlay, varpd: &Varpd, part: Part) -> Self {
        let namespace = Arc::new(underlay.namespace("station"));
        let backend = Backend::start("station", part.vif, Listener::Backend, varpd);
        let options = Options { layout: Layout::One, ..Options::default() };
        let driver = Driver::connect(&backend.socket, options).expect("a NIC");
        let mut station = Self::inside(namespace, Some(backend));
        let tap = station.spawn(|| open_tap("eth0")).join().expect("the thread has not panicked");
        station.configure(part);
        let (told, count) = (Arc::clone(&station.end), Arc::clone(&station.rarps));
        station.threads.push(std::thread::spawn(move || pump(driver, tap, &count, &told)));
        station.send_beacons(part);
        station
    }

    /// A station whose NIC is an end of a veth pair, with the other at a bridge of a host.
    pub(crate) fn on_bridge(underlay: &Underlay, host: &Host, bridge: &str, part: Part) -> Self {
        let namespace = Arc::new(underlay.namespace("bridged"));
        host.ip(&format!(
            "link add to-station mtu {MTU} type veth peer name eth0 mtu {MTU} netns {}",
            namespace.name()
        ));
        host.ip(&format!("link set to-station master {bridge} up"));
        let mut station = Self::inside(namespace, None);
        station.configure(part);
        station.send_beacons(part);
        station
    }

    fn inside(namespace: Arc<Namespace>, backend: Option<Backend>) -> Self {
        let (end, is_quiet) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let rarps = Arc::<AtomicU64>::default();
        Self { threads: Vec::new(), end, is_quiet, rarps, _backend: backend, namespace }
    }

    fn configure(&self, part: Part) {
        self.namespace.ip(&format!("link set eth0 address {} mtu {MTU}", part.vif.mac()));
        self.namespace.ip(&format!("address add {} dev eth0", part.address));
        self.namespace.ip("link set eth0 up");
    }

    fn send_beacons(&mut self, part: Part) {
        let (is_quiet, told) = (self.quiet(), Arc::clone(&self.end));
        let mut beacon = [&part.to.mac_bytes()[..], &part.vif.mac_bytes(), &BEACON].concat();
        beacon.resize(60, 0);
        self.threads.push(self.spawn(move || send_beacons(&beacon, &is_quiet, &told)));
    }

    /// Whether it sends nothing of its own accord for now: no beacons, pings, or new bytes on connections.
    pub(crate) fn quiet(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_quiet)
    }

    /// How many RARP frames it has received.
    pub(crate) fn rarps(&self) -> u64 {
        self.rarps.load(Ordering::Relaxed)
    }

    /// Runs something in a thread whose sockets are the station's.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        run: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let inside = Arc::clone(&self.namespace);
        std::thread::spawn(move || {
            inside.enter();
            run()
        })
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread of the station panicked");
        }
    }
}

/// Makes a tap in the namespace of this thread.
fn open_tap(name: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun").expect("the kernel has taps");
    let mut request = [0; INTERFACE_REQUEST_LEN];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (TAP | NO_PACKET_INFO).to_ne_bytes();
    request[NAME_LEN..NAME_LEN + 2].copy_from_slice(&flags);
    // SAFETY: the request is as long as the kernel's ifreq and lives through the call.
    unsafe { set_interface(file.as_raw_fd(), &raw const request) }.expect("a tap");
    file
}

/// Moves frames between driver and tap until told to end.
fn pump(mut driver: Driver, mut tap: File, rarps: &AtomicU64, end: &AtomicBool) {
    timing::go_first();
    let mut buffer = [0; 2048];
    while !end.load(Ordering::Relaxed) {
        while let Some(frame) = driver.recv_frame(Duration::ZERO) {
            if frame[12..14] == RARP {
                rarps.fetch_add(1, Ordering::Relaxed);
            }
            // What the kernel has no room for is lost, as on any wire.
            let _ = tap.write(&frame);
        }
        loop {
            match tap.read(&mut buffer) {
                Ok(len) => {
                    if driver.wait_room(0, Duration::from_millis(100)) {
                        assert!(driver.queue_frame(0, &buffer[..len]));
                        driver.flush(0);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("the station's tap: {error}"),
            }
        }
        if driver.pairs[0].rx.arm_call() {
            // SAFETY: the descriptor is open as long as the driver.
            let call = unsafe { BorrowedFd::borrow_raw(driver.pairs[0].rx.call.as_raw_fd()) };
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            // An interrupted wait is a short one.
            let _ = poll(&mut [readable(call), readable(tap.as_fd())], LOOK);
            let _ = driver.pairs[0].rx.call.read();
        }
    }
}

/// Sends a frame again and again from the interface of the namespace of this thread.
fn send_beacons(beacon: &[u8], is_quiet: &AtomicBool, end: &AtomicBool) {
    timing::go_first();
    let socket: OwnedFd =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
            .expect("root may send frames");
    let to = interface("eth0");
    while !end.load(Ordering::Relaxed) {
        if !is_quiet.load(Ordering::Relaxed) {
            // What there is no room for is lost, as on any wire.
            let _ = sendto(socket.as_raw_fd(), beacon, &to, MsgFlags::MSG_DONTWAIT);
        }
        std::thread::park_timeout(BEACON_INTERVAL);
    }
}

/// Address of an interface for a packet socket.
fn interface(name: &str) -> LinkAddr {
    let mut raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: if_nametoindex(name).expect("an interface").cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&raw) as libc::socklen_t;
    // SAFETY: it is an address of this length and kind.
    unsafe { LinkAddr::from_raw((&raw mut raw).cast(), Some(len)) }.expect("of this family")
}
