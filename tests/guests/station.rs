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
//! receives can be measured to the millisecond.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use vnet::sys::clock;

use super::driver::{Driver, Layout, Options};
use super::support::netns::{Namespace, Underlay};
use super::support::vnet::{Backend, Listener, Varpd, Vif};

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

/// A station. Fields are dropped in this order.
pub(crate) struct Station {
    pump: Option<JoinHandle<()>>,
    end: Arc<AtomicBool>,
    rarps: Arc<AtomicU64>,
    _backend: Backend,
    namespace: Arc<Namespace>,
}

impl Station {
    /// A station on the host of `varpd`, with an address ("10.0.0.100/24") on its vif. It sends
    /// beacons to another vif, so that it can be seen where these go.
    pub(crate) fn start(
        underlay: &Underlay,
        varpd: &Varpd,
        vif: Vif,
        address: &str,
        to: Vif,
    ) -> Self {
        let namespace = Arc::new(underlay.namespace("station"));
        let backend = Backend::start("station", vif, Listener::Backend, varpd);
        let options = Options { layout: Layout::One, ..Options::default() };
        let driver = Driver::connect(&backend.socket, options).expect("a NIC");
        let inside = Arc::clone(&namespace);
        let tap = std::thread::spawn(move || {
            inside.enter();
            open_tap("eth0")
        });
        let tap = tap.join().expect("the thread has not panicked");
        namespace.ip(&format!("link set eth0 address {} mtu 1450", vif.mac()));
        namespace.ip(&format!("address add {address} dev eth0"));
        namespace.ip("link set eth0 up");
        let end = Arc::new(AtomicBool::new(false));
        let rarps = Arc::<AtomicU64>::default();
        let (told, count) = (Arc::clone(&end), Arc::clone(&rarps));
        let mut beacon = [&to.mac_bytes()[..], &vif.mac_bytes(), &BEACON].concat();
        beacon.resize(60, 0);
        let pump = Some(std::thread::spawn(move || pump(driver, tap, &beacon, &count, &told)));
        Self { pump, end, rarps, _backend: backend, namespace }
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
        if let Some(pump) = self.pump.take() {
            let ended = pump.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the station's pump has panicked");
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

/// Moves frames between driver and tap, and sends beacons, until told to end.
fn pump(mut driver: Driver, mut tap: File, beacon: &[u8], rarps: &AtomicU64, end: &AtomicBool) {
    let mut buffer = [0; 2048];
    let mut next = clock::mono();
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
        let now = clock::mono();
        if now >= next && driver.queue_frame(0, beacon) {
            driver.flush(0);
            next = now + BEACON_INTERVAL;
        }
        if driver.pairs[0].rx.arm_call() {
            // SAFETY: the descriptor is open as long as the driver.
            let call = unsafe { BorrowedFd::borrow_raw(driver.pairs[0].rx.call.as_raw_fd()) };
            let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
            // An interrupted wait is a short one.
            let _ = poll(&mut [readable(call), readable(tap.as_fd())], 1_u8);
            let _ = driver.pairs[0].rx.call.read();
        }
    }
}
