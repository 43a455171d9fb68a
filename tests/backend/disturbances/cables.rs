//! What happens to the underlay.

use std::net::IpAddr;
use std::time::Duration;

use vnet::sys::clock;

use super::rough::{Rough, Trouble};
use super::world::World;
use crate::support::netns::Family;
use crate::support::wait_until;

/// MTU of the underlay when it is narrow, in bytes.
const NARROW: u32 = 1400;
/// Longer than varpd waits after a change of an interface before it looks.
const SETTLED: Duration = Duration::from_millis(500);
/// The longest time for which a cable is bad, in milliseconds.
const BAD: u64 = 2500;

impl World {
    pub(super) fn plug(&self, host: usize, state: &str) {
        let name = &self.net.underlay.host(host).name;
        self.net.underlay.switch().ip(&format!("link set to-{name} {state}"));
    }

    pub(super) fn pull_cable(&mut self, host: usize) {
        self.plug(host, "down");
        self.idle(1000);
        self.plug(host, "up");
    }

    pub(super) fn take_down(&mut self, number: usize) {
        self.net.underlay.host(number).ip("link set eth0 down");
        self.idle(1000);
        self.net.underlay.host(number).ip("link set eth0 up");
        // The kernel forgets IPv6 addresses of an interface that is down; who configures it does not.
        if self.shape.family == Family::V6 {
            self.address(number);
        }
    }

    /// A host gets another address, at times several in a row, to which its varpd and its backends
    /// follow; at times varpd is started again meanwhile.
    pub(super) fn renumber(&mut self, number: usize) {
        let restarts = !self.shape.programs_last && self.random.per_mille(300);
        if restarts {
            self.net.varpds[number].kill();
        }
        for _ in 0..=self.random.range(0, 3) {
            self.give_another_address(number);
            self.idle(200);
        }
        if restarts {
            self.net.varpds[number].start_again();
        }
        self.wait_settled(number);
    }

    /// Waits until the host's vifs are at its address and stay where they are: an address that was away for a
    /// moment is followed twice, and frames on their way to the care-of addresses before are lost.
    fn wait_settled(&self, number: usize) {
        let address = self.addresses[number].to_string();
        let (mut before, mut since) = (None, clock::mono());
        wait_until("vifs are at the host's address", Duration::from_secs(10), || {
            let rows = self.net.varpds[number].show("vifs");
            let places: Vec<String> = rows
                .as_array()
                .map(|rows| rows.iter().map(|row| row["coa"].to_string()).collect())
                .unwrap_or_default();
            let are_there = places.iter().all(|place| place.contains(&address));
            if !are_there || before.as_ref() != Some(&places) {
                (before, since) = (Some(places), clock::mono());
            }
            are_there && clock::mono() - since >= SETTLED
        });
    }

    fn give_another_address(&mut self, number: usize) {
        let host = self.net.underlay.host(number);
        let (old, other) = (self.addresses[number], number + 101);
        let new = match host.address(self.shape.family) {
            own if own != old => own,
            IpAddr::V4(_) => IpAddr::from([192, 0, 2, other as u8]),
            IpAddr::V6(_) => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, other as u16]),
        };
        let prefix = if new.is_ipv4() { 24 } else { 64 };
        host.ip(&format!("address delete {old}/{prefix} dev eth0"));
        self.addresses[number] = new;
        self.address(number);
        self.forget_neighbors();
    }

    /// An address can come back on an interface that was made anew. Kernels that remember its former link-layer
    /// address go on using that for eight seconds, unless they are told, as network managers do (gratuitous
    /// ARP, unsolicited neighbour advertisements).
    fn forget_neighbors(&self) {
        for number in 0..self.addresses.len() {
            self.net.underlay.host(number).ip("neigh flush dev eth0");
        }
    }

    /// Gives its interface the address that the host has.
    fn address(&self, number: usize) {
        let (address, host) = (self.addresses[number], self.net.underlay.host(number));
        match address {
            IpAddr::V4(_) => host.ip(&format!("address add {address}/24 dev eth0")),
            IpAddr::V6(_) => host.ip(&format!("address add {address}/64 dev eth0 nodad")),
        }
    }

    /// A host's interface is deleted and made again, as of a VLAN, a bond or USB.
    pub(super) fn rebuild_interface(&mut self, number: usize) {
        self.net.underlay.unplug(number);
        self.idle(1000);
        self.net.underlay.plug_in_again(number);
        self.address(number);
        self.net.underlay.set_mtu(self.width());
        self.net.underlay.host(number).ip("link set eth0 up");
    }

    /// MTU of the underlay now, in bytes.
    fn width(&self) -> u32 {
        if self.is_narrow { NARROW } else { self.shape.mtu }
    }

    pub(super) fn change_width(&mut self) {
        self.is_narrow = !self.is_narrow;
        self.net.underlay.set_mtu(self.width());
    }

    /// Frames may be lost, but none comes twice.
    pub(super) fn lose(&mut self, host: usize) {
        let lost = self.random.range(10, 600);
        let before = self.guests.repeated;
        self.chat_over(host, Trouble { lost, ..Trouble::default() });
        assert_eq!(self.guests.repeated, before, "no packet came twice, but frames did");
    }

    /// A packet that comes twice is nothing new on a secured vnet.
    pub(super) fn repeat(&mut self, host: usize) {
        let (repeated, lost) = (self.random.range(10, 600), self.random.range(0, 100));
        let longest = self.while_of(50);
        let before = self.guests.replayed;
        self.chat_over(host, Trouble { lost, repeated, delayed: 100, longest });
        assert_eq!(self.guests.replayed, before, "a replay was not noticed");
    }

    pub(super) fn reorder(&mut self, host: usize) {
        let (delayed, lost) = (self.random.range(10, 600), self.random.range(0, 100));
        let longest = self.while_of(100);
        let before = self.guests.repeated;
        self.chat_over(host, Trouble { lost, delayed, longest, repeated: 0 });
        assert_eq!(self.guests.repeated, before, "no packet came twice, but frames did");
    }

    /// A host's cable that is bad until this is dropped.
    pub(super) fn spoil_cable(&mut self, host: usize) -> Rough {
        let mut chance = || self.random.range(0, 300);
        let (lost, repeated, delayed) = (chance(), chance(), chance());
        let longest = self.while_of(50);
        let trouble = Trouble { lost, repeated, delayed, longest };
        Rough::new(&self.net.underlay, host, trouble, self.random.next())
    }

    /// Guests talk over a bad cable; what it still carries then, arrives.
    fn chat_over(&mut self, host: usize, trouble: Trouble) {
        let duration = Duration::from_millis(self.random.range(200, BAD));
        let seed = self.random.next();
        let rough = Rough::new(&self.net.underlay, host, trouble, seed);
        self.guests.chat(duration);
        drop(rough);
        self.guests.listen_until_silent();
    }
}
