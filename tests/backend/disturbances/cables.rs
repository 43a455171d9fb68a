//! What happens to the underlay.

use std::time::Duration;

use super::rough::{Rough, Trouble};
use super::world::World;
use crate::support::netns::Family;

/// MTU of the underlay when it is narrow, in bytes.
const NARROW: u32 = 1400;
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

    pub(super) fn take_down(&mut self, host: usize) {
        self.net.underlay.host(host).ip("link set eth0 down");
        self.idle(1000);
        let host = self.net.underlay.host(host);
        host.ip("link set eth0 up");
        // The kernel forgets IPv6 addresses of an interface that is down; who configures it does not.
        if self.shape.family == Family::V6 {
            host.ip(&format!("address add {}/64 dev eth0 nodad", host.ipv6));
        }
    }

    pub(super) fn change_width(&mut self) {
        self.is_narrow = !self.is_narrow;
        let mtu = if self.is_narrow { NARROW } else { self.shape.mtu };
        self.net.underlay.set_mtu(mtu);
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
