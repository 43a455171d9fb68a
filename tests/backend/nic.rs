//! A guest's NIC: its backend, and the driver that this test plays.

use std::time::Duration;

use crate::driver::{Control, Driver, Layout, Options};
use crate::support::vnet::{Backend, Listener, Varpd, Vif};
use crate::support::wait_until;
use crate::{Counters, SOON};

/// The destination of frames to all.
pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
/// EtherType of the frames of tests (IEEE 802, local experimental).
pub(crate) const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];
/// EtherType of RARP, by which a backend says that its guest has arrived.
pub(crate) const RARP: [u8; 2] = [0x80, 0x35];
/// Length of frames unless a test needs another.
pub(crate) const LEN: usize = 60;

/// A NIC.
pub(crate) struct Nic {
    pub(crate) driver: Driver,
    pub(crate) backend: Backend,
    pub(crate) vif: Vif,
}

/// Its vnet and the last octet of its MAC.
pub(crate) const fn vif(vnet: u32, mac: u8) -> Vif {
    Vif { vnet, mac }
}

/// The MAC address of a vif.
pub(crate) const fn mac(last: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, last]
}

/// A frame with a number in it.
pub(crate) fn frame(to: [u8; 6], from: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &ETHER_TYPE, &number.to_be_bytes()].concat();
    frame.resize(len, number as u8);
    frame
}

/// The number in a frame of [`frame`], which must be whole and from this sender.
pub(crate) fn number(frame: &[u8], from: [u8; 6]) -> u32 {
    assert_eq!(frame[6..12], from, "the sender");
    let number = u32::from_be_bytes(frame[14..18].try_into().unwrap());
    let to = frame[..6].try_into().unwrap();
    assert!(frame == self::frame(to, from, number, frame.len()), "frame {number} is unchanged");
    number
}

impl Nic {
    /// A NIC whose rings run, with room for as many frames as a ring has entries.
    pub(crate) fn start(name: &str, vif: Vif, varpd: &Varpd) -> Self {
        Self::start_with(name, vif, varpd, Self::options(), &[])
    }

    /// The options of [`Nic::start`].
    pub(crate) fn options() -> Options {
        Options { layout: Layout::One, ..Options::default() }
    }

    /// The same with other options of the driver, and further arguments for the backend.
    pub(crate) fn start_with(
        name: &str,
        vif: Vif,
        varpd: &Varpd,
        options: Options,
        further: &[&str],
    ) -> Self {
        let backend = Backend::start_with(name, vif, Listener::Backend, varpd, further);
        let driver = Driver::connect(&backend.socket, options).unwrap();
        let nic = Self { driver, backend, vif };
        nic.wait_state("active", varpd);
        nic
    }

    /// Waits until varpd shows the vif in this state.
    pub(crate) fn wait_state(&self, state: &str, varpd: &Varpd) {
        let (vnet, mac) = (self.vif.vnet, self.vif.mac());
        wait_until(&format!("{mac} on vnet {vnet} is {state}"), SOON, || {
            let rows = varpd.show("vifs");
            let is_ours = |row: &serde_json::Value| row["vnet"] == vnet && row["mac"] == mac;
            // One that a guest has left may be there, too.
            rows.as_array().unwrap().iter().any(|row| is_ours(row) && row["state"] == state)
        });
    }

    /// Its MAC address.
    pub(crate) fn mac(&self) -> [u8; 6] {
        mac(self.vif.mac)
    }

    /// Connects a driver with the same rings to a backend that took the place of a killed one.
    pub(crate) fn reconnect(&mut self) {
        let control = Control::connect(&self.backend.socket).unwrap();
        self.driver.reconnect(control).unwrap();
    }

    /// Sends a numbered frame; waits for room in the ring if there is none.
    pub(crate) fn send(&mut self, to: [u8; 6], number: u32) {
        self.send_frame(&frame(to, self.mac(), number, LEN));
    }

    /// Sends any frame.
    pub(crate) fn send_frame(&mut self, frame: &[u8]) {
        self.queue_frame(frame);
        self.driver.flush(0);
    }

    /// Puts a frame into the ring without showing it to the device; waits for room, which there
    /// must be once the device has taken what it was shown.
    pub(crate) fn queue_frame(&mut self, frame: &[u8]) {
        assert!(self.driver.wait_room(0, SOON), "the device takes frames");
        assert!(self.driver.queue_frame(0, frame));
    }

    /// Waits until the device has taken all frames that were sent.
    pub(crate) fn wait_sent(&mut self) {
        let pair = &mut self.driver.pairs[0];
        wait_until("all frames are taken", SOON, || {
            pair.reclaim();
            pair.tx.is_settled()
        });
    }

    /// The next frame but for those that say that a vif has arrived.
    pub(crate) fn next_frame(&mut self, timeout: Duration) -> Option<Vec<u8>> {
        loop {
            let frame = self.driver.recv_frame(timeout)?;
            if frame[12..14] != RARP {
                return Some(frame);
            }
        }
    }

    /// The number of the next frame, which must come from this sender.
    pub(crate) fn receive(&mut self, from: [u8; 6]) -> u32 {
        let frame = self.next_frame(SOON).expect("a frame arrives");
        number(&frame, from)
    }

    /// The same for a frame that may not come.
    pub(crate) fn try_receive(&mut self, from: [u8; 6], timeout: Duration) -> Option<u32> {
        self.next_frame(timeout).map(|frame| number(&frame, from))
    }

    /// Exchanges a frame with another NIC, so that neither has to ask where the other is.
    pub(crate) fn introduce(&mut self, other: &mut Self) {
        self.send(other.mac(), 0);
        assert_eq!(other.receive(self.mac()), 0);
        other.send(self.mac(), 0);
        assert_eq!(self.receive(other.mac()), 0);
    }

    /// Nothing has arrived that was not taken.
    pub(crate) fn assert_silent(&mut self) {
        let frame = self.next_frame(Duration::ZERO);
        assert_eq!(frame, None, "{:?} received what it should not", self.vif);
    }

    /// Its counters, from the varpd of its host.
    pub(crate) fn counters(&self, varpd: &Varpd) -> Counters {
        Counters::of(varpd, self.vif)
    }
}
