//! A guest: its NIC, and how its frontend meets the backend.

use std::collections::HashSet;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use vnet::sys::clock;
use vnet::time::Instant;

use super::LONG;
use super::shape::Kind;
use crate::driver::{Control, Driver, HEADER_LEN, Options, request};
use crate::nic::{Nic, RARP};
use crate::support::vnet::{Backend, Listener, Varpd, Vif};
use crate::support::wait_until;

/// Where a frontend meets backends, if they don't listen themselves.
pub(super) type Meeting = Option<UnixListener>;

/// A guest that runs on one of the hosts.
pub(super) struct Guest {
    pub(super) nic: Nic,
    meeting: Meeting,
    pub(super) kind: Kind,
    pub(super) host: usize,
    /// How often it has moved.
    pub(super) moves: usize,
    /// When it began to run where it is.
    pub(super) since: Instant,
    /// Frames that have arrived, by number.
    pub(super) heard: HashSet<u32>,
}

/// A backend to which a frontend is connected whose guest does not run yet, as QEMU's is during a
/// migration.
pub(super) struct Prepared {
    pub(super) nic: Nic,
    meeting: Meeting,
}

impl Prepared {
    pub(super) fn new(name: &str, vif: Vif, kind: Kind, varpd: &Varpd) -> Self {
        let arguments = kind.arguments(vif.vnet);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let backend = Backend::start_with(name, vif, kind.listener, varpd, &arguments);
        let meeting = (kind.listener == Listener::Qemu).then(|| {
            let listener = UnixListener::bind(&backend.socket).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        let options = Options { pairs: kind.pairs, tx_buffer: kind.room, ..Nic::options() };
        let mut driver = Driver::new(meet(&backend, &meeting), options);
        driver.negotiate().unwrap();
        Self { nic: Nic { driver, backend, vif }, meeting }
    }
}

/// Where the device would have gone on, by ring.
pub(super) struct Paused(Vec<u16>);

/// Stops the rings of a guest.
pub(super) fn pause(nic: &mut Nic) -> Paused {
    let rings = 0..2 * nic.driver.pairs.len();
    Paused(rings.map(|index| nic.driver.stop_ring(index).unwrap()).collect())
}

/// A connection to a backend.
fn meet(backend: &Backend, meeting: &Meeting) -> Control {
    let Some(listener) = meeting else { return Control::connect(&backend.socket).unwrap() };
    let mut connection = None;
    wait_until("the backend connects", LONG, || {
        connection = listener.accept().ok();
        connection.is_some()
    });
    let (connection, _) = connection.unwrap();
    connection.set_nonblocking(false).unwrap();
    Control::new(connection)
}

impl Guest {
    /// A guest that boots.
    pub(super) fn start(name: &str, vif: Vif, kind: Kind, varpd: &Varpd, host: usize) -> Self {
        let mut prepared = Prepared::new(name, vif, kind, varpd);
        let since = clock::mono();
        prepared.nic.driver.start().unwrap();
        prepared.nic.wait_state("active", varpd);
        let Prepared { nic, meeting } = prepared;
        Self { nic, meeting, kind, host, moves: 0, since, heard: HashSet::new() }
    }

    pub(super) fn vnet(&self) -> u32 {
        self.nic.vif.vnet
    }

    /// The MACs that frames of it come from.
    pub(super) fn macs(&self) -> Vec<[u8; 6]> {
        let own = self.nic.mac();
        let behind = [own[0], own[1], own[2], own[3], 1, own[5]];
        if self.kind.is_bridge { vec![own, behind] } else { vec![own] }
    }

    /// Is connected to a backend that took the place of one that has ended.
    pub(super) fn reconnect(&mut self) {
        let Self { nic, meeting, .. } = self;
        nic.driver.reconnect(meet(&nic.backend, meeting)).unwrap();
    }

    /// Its rings stop: it is about to go on elsewhere.
    pub(super) fn pause(&mut self) -> Paused {
        pause(&mut self.nic)
    }

    /// They go on where they were.
    pub(super) fn go_on(&mut self, paused: Paused) {
        for (index, base) in paused.0.into_iter().enumerate() {
            self.nic.driver.start_ring_at(index, base).unwrap();
        }
        self.nic.driver.enable(true).unwrap();
    }

    /// Goes on in another place; what it leaves is returned.
    pub(super) fn settle(&mut self, there: Prepared, host: usize) -> Prepared {
        (self.host, self.since) = (host, clock::mono());
        let nic = std::mem::replace(&mut self.nic, there.nic);
        Prepared { nic, meeting: std::mem::replace(&mut self.meeting, there.meeting) }
    }

    /// What QEMU says when a guest has arrived that can't say so itself.
    pub(super) fn announce(&mut self) {
        let mut mac = [0; 8];
        mac[..6].copy_from_slice(&self.nic.mac());
        self.nic.driver.control.set(request::SEND_RARP, &mac, &[]).unwrap();
    }

    /// Its frontend ends, and there is another, whose guest starts from the beginning.
    pub(super) fn reboot(&mut self) {
        let Self { nic, meeting, .. } = self;
        let options = nic.driver.options.clone();
        // The old connection has to be gone before there is another.
        nic.driver.control.socket.shutdown(std::net::Shutdown::Both).unwrap();
        wait_until("the backend takes a new driver", LONG, || {
            let mut driver = Driver::new(meet(&nic.backend, meeting), options.clone());
            if driver.negotiate().and_then(|()| driver.start()).is_err() {
                return false;
            }
            nic.driver = driver;
            true
        });
    }

    /// Puts a frame into the ring of a queue pair, for which there must be room once the device has
    /// taken what it was shown.
    pub(super) fn queue(&mut self, pair: usize, frame: &[u8]) {
        let driver = &mut self.nic.driver;
        assert!(driver.wait_room(pair, LONG), "the device takes frames");
        assert!(driver.queue_frame(pair, frame));
    }

    /// Shows the device what was queued.
    pub(super) fn flush(&mut self) {
        (0..self.kind.pairs).for_each(|pair| self.nic.driver.flush(pair));
    }

    /// The next frame, on any queue pair, but for those that say that a vif has arrived.
    pub(super) fn next_frame(&mut self) -> Option<Vec<u8>> {
        (0..self.kind.pairs).find_map(|pair| {
            loop {
                let (header, frame) = self.nic.driver.recv_packet(pair, Duration::ZERO)?;
                assert_eq!(header[..HEADER_LEN - 2], [0; HEADER_LEN - 2], "no offloads");
                if frame[12..14] != RARP {
                    return Some(frame);
                }
            }
        })
    }
}
