//! Keys of the secured vnets, which are replaced, and are away.

use super::world::World;
use super::{HOSTS, LONG, VNETS};
use crate::secured::{Keys, varpd_counter};
use crate::support::wait_until;

fn key_file(host: usize) -> String {
    format!("key-{host}")
}

/// What a host's varpd is told of the vnets.
pub(super) fn config(keys: &Keys, host: usize) -> String {
    let file = keys.write(&key_file(host), &[("use", "01")]);
    let secured = |vnet: u32, policy: &str| {
        format!("[vnet.{vnet}]\npolicy = '{policy}'\nkey-file = '{}'\n", file.display())
    };
    secured(VNETS[0], "conf") + &secured(VNETS[2], "auth")
}

impl World {
    /// Replaces the keys in three steps, as `vnet key rotate` does.
    pub(super) fn rotate_keys(&mut self) {
        let all: Vec<usize> = (0..HOSTS).collect();
        self.rotate_on(&all);
    }

    /// These hosts read each step; the others have the files only.
    fn rotate_on(&mut self, hosts: &[usize]) {
        let next = self.key % 250 + 1;
        let [old, new] = [self.key, next].map(|key| format!("{key:02x}"));
        let steps: [&[(&str, &str)]; 3] =
            [&[("use", &old), ("next", &new)], &[("use", &new), ("old", &old)], &[("use", &new)]];
        let reads = |net: &crate::Net| -> Vec<u64> {
            let read = |&host: &usize| varpd_counter(&net.varpds[host], "key_files_read");
            hosts.iter().map(read).collect()
        };
        for lines in steps {
            let before = reads(&self.net);
            (0..HOSTS).for_each(|host| drop(self.keys.write(&key_file(host), lines)));
            wait_until("the keys are read", LONG, || {
                reads(&self.net).iter().zip(&before).all(|(now, before)| now > before)
            });
        }
        self.key = next;
    }

    fn others(host: usize) -> Vec<usize> {
        (0..HOSTS).filter(|&other| other != host).collect()
    }

    pub(super) fn rotate_unseen(&mut self, host: usize) {
        self.net.varpds[host].kill();
        self.rotate_on(&Self::others(host));
        self.net.varpds[host].start_again();
        // Sessions made with the old key end when backends hear of it, and what is on its way is lost.
        for guest in self.guests.running.iter().filter(|guest| guest.host == host) {
            guest.nic.wait_state("active", &self.net.varpds[host]);
        }
    }

    pub(super) fn rotate_apart(&mut self, host: usize) {
        self.plug(host, "down");
        self.rotate_keys();
        self.plug(host, "up");
    }

    /// The file system that they are on is not mounted for a while, say.
    pub(super) fn hide_keys(&mut self, host: usize) {
        self.keys.remove(&key_file(host));
        self.idle(3000);
        let key = format!("{:02x}", self.key);
        self.keys.write(&key_file(host), &[("use", &key)]);
    }
}
