//! Guests that migrate, are started elsewhere, and run twice.

use super::guests::{Prepared, pause};
use super::world::World;

/// A guest moves so often at most: one that moves more often within minutes is damped.
const MOVES: usize = 4;

impl World {
    /// A guest that may still move so often, in the place of this one if it may not.
    fn movable(&mut self, guest: usize, times: usize) {
        if self.guests.running[guest].moves + times > MOVES {
            self.replace(guest);
        }
        self.guests.running[guest].moves += times;
    }

    /// A backend on another host, for a guest that is to come; and which host that is.
    fn prepare(&mut self, guest: usize) -> (Prepared, usize) {
        let there = self.another_host(self.guests.running[guest].host);
        (self.prepare_on(guest, there), there)
    }

    fn prepare_on(&mut self, guest: usize, host: usize) -> Prepared {
        let name = self.name();
        let guest = &self.guests.running[guest];
        Prepared::new(&name, guest.nic.vif, guest.kind, &self.net.varpds[host])
    }

    /// A backend whose guest has gone ends at once or later.
    fn leave(&mut self, left: Prepared) {
        if self.random.per_mille(500) {
            self.left_behind.push(left);
        }
    }

    pub(super) fn move_guest(&mut self, guest: usize) {
        self.movable(guest, 1);
        let (mut there, host) = self.prepare(guest);
        let running = &mut self.guests.running[guest];
        running.pause();
        there.nic.driver.start().unwrap();
        let left = running.settle(there, host);
        if self.random.per_mille(300) {
            self.guests.running[guest].announce();
        }
        self.leave(left);
    }

    pub(super) fn move_and_back(&mut self, guest: usize) {
        self.movable(guest, 2);
        let (mut there, _) = self.prepare(guest);
        let paused = self.guests.running[guest].pause();
        there.nic.driver.start().unwrap();
        self.idle(100);
        pause(&mut there.nic);
        self.guests.running[guest].go_on(paused);
        self.leave(there);
    }

    pub(super) fn fail_migration(&mut self, guest: usize) {
        let (there, _) = self.prepare(guest);
        let paused = self.guests.running[guest].pause();
        self.idle(100);
        self.guests.running[guest].go_on(paused);
        self.leave(there);
    }

    /// Starts a guest on another host; the NIC that it had is returned.
    fn start_copy(&mut self, guest: usize) -> Prepared {
        let (mut there, host) = self.prepare(guest);
        there.nic.driver.start().unwrap();
        there.nic.wait_state("active", &self.net.varpds[host]);
        self.guests.running[guest].settle(there, host)
    }

    pub(super) fn start_elsewhere(&mut self, guest: usize) {
        self.movable(guest, 1);
        self.guests.running[guest].nic.backend.process.kill();
        self.start_copy(guest);
    }

    pub(super) fn start_twice(&mut self, guest: usize) {
        // To two places, and back to the first.
        self.movable(guest, 3);
        self.guests.running[guest].nic.backend.process.kill();
        let (mut one, first) = self.prepare(guest);
        let second = self.another_host(first);
        let mut two = self.prepare_on(guest, second);
        self.idle(20);
        one.nic.driver.start().unwrap();
        two.nic.driver.start().unwrap();
        self.idle(200);
        let (stays, host, goes) = match self.random.per_mille(500) {
            true => (one, first, two),
            false => (two, second, one),
        };
        self.guests.running[guest].settle(stays, host);
        drop(goes);
    }

    pub(super) fn run_twice(&mut self, guest: usize) {
        self.movable(guest, 1);
        let here = self.guests.running[guest].host;
        self.plug(here, "down");
        let old = self.start_copy(guest);
        self.idle(1000);
        self.plug(here, "up");
        self.idle(200);
        drop(old);
    }
}
