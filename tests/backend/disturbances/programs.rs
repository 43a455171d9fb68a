//! Programs that are killed, stopped and replaced.

use super::world::World;
use super::{HOSTS, LONG};

/// The longest time for which a program is stopped, in milliseconds.
const STOPPED: u64 = 3000;
/// How often guests say something meanwhile: what their rings hold.
const WORDS: usize = 3;

impl World {
    /// A backend is there again, and the guest's frontend connected to it.
    fn start_backends_again(&mut self, guests: &[usize]) {
        for &guest in guests {
            let guest = &mut self.guests.running[guest];
            guest.nic.backend.start_again();
            guest.reconnect();
        }
    }

    pub(super) fn kill_backend(&mut self, guest: usize) {
        self.guests.running[guest].nic.backend.process.kill();
        self.idle(100);
        self.start_backends_again(&[guest]);
    }

    pub(super) fn replace_backend(&mut self, guest: usize) {
        let process = &mut self.guests.running[guest].nic.backend.process;
        let status = process.terminate(LONG);
        assert!(status.success(), "{status}");
        self.start_backends_again(&[guest]);
    }

    /// Guests go on for a while, some of them in vain.
    fn go_on_without(&mut self) {
        for _ in 0..WORDS {
            self.idle(STOPPED / WORDS as u64);
            self.guests.speak();
        }
    }

    pub(super) fn stop_backend(&mut self, guest: usize) {
        self.guests.running[guest].nic.backend.process.stop();
        self.go_on_without();
        self.guests.running[guest].nic.backend.process.go_on();
    }

    pub(super) fn kill_mapper(&mut self, host: usize) {
        self.net.varpds[host].kill();
        self.idle(300);
        self.net.varpds[host].start_again();
    }

    pub(super) fn stop_mapper(&mut self, host: usize) {
        self.net.varpds[host].process.stop();
        self.go_on_without();
        self.net.varpds[host].process.go_on();
    }

    pub(super) fn replace_mappers(&mut self) {
        for host in 0..HOSTS {
            let varpd = &mut self.net.varpds[host];
            let status = varpd.process.terminate(LONG);
            assert!(status.success(), "{status}");
            varpd.start_again();
            self.guests.speak();
        }
    }

    /// The guests that run on a host.
    fn there(&self, host: usize) -> Vec<usize> {
        let running = self.guests.running.iter().enumerate();
        running.filter(|(_, guest)| guest.host == host).map(|(place, _)| place).collect()
    }

    pub(super) fn fail_host(&mut self, host: usize) {
        // Its backends could wait no longer for what has left.
        self.left_behind.clear();
        let there = self.there(host);
        self.net.varpds[host].kill();
        for &guest in &there {
            self.guests.running[guest].nic.backend.process.kill();
        }
        self.net.varpds[host].start_again();
        self.start_backends_again(&there);
    }

    pub(super) fn stop_host(&mut self, host: usize) {
        let there = self.there(host);
        self.net.varpds[host].process.stop();
        there.iter().for_each(|&guest| self.guests.running[guest].nic.backend.process.stop());
        self.go_on_without();
        there.iter().for_each(|&guest| self.guests.running[guest].nic.backend.process.go_on());
        self.idle(50);
        self.net.varpds[host].process.go_on();
    }
}
