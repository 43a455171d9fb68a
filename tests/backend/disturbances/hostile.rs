//! Whoever means harm: forgeries and replays on the underlay, a process that takes a NIC's socket.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use vnet::config::Config;
use vnet::sys::clock;
use vnet::wire::name::Realm;
use vnet::wire::varp::{Author, Body, Claim, Message, PORT, TAG_LEN, Tag};
use vnet::wire::{
    Capabilities, CareOf, EncapKinds, Longest, Mac, Stamp, VifKey, VnetId, handshake,
};

use super::frames;
use super::observer::{Datagram, FORGER};
use super::world::World;
use super::{LONG, OPEN};
use crate::driver::{Control, request};
use crate::nic::{BROADCAST, LEN};
use crate::offpath::OffPath;
use crate::random::Random;
use crate::support::vnet::Listener;
use crate::support::wait_until;

/// Forgeries of each kind for each target.
const EACH: usize = 40;
/// Numbers of frames that no guest says.
const UNSAID: u32 = 0xffff_0000;
/// A frame without a form that hides its number.
const PLAIN: u32 = 4;

impl World {
    /// Where the secured vifs of all hosts are reached, with their MACs.
    fn targets(&self) -> Vec<(u32, [u8; 6], SocketAddr)> {
        let mut targets = Vec::new();
        for varpd in &self.net.varpds {
            let rows = varpd.show("vifs");
            for row in rows.as_array().unwrap() {
                let vnet = u32::try_from(row["vnet"].as_u64().unwrap()).unwrap();
                let mac: Mac = row["mac"].as_str().unwrap().parse().unwrap();
                let coa = row["coa"].as_str().unwrap().trim_start_matches("udp:").parse();
                if vnet != OPEN
                    && let Ok(coa) = coa
                {
                    targets.push((vnet, mac.0, coa));
                }
            }
        }
        targets
    }

    /// A user of a host sends what only members may: made-up frames, ESP, VARP and handshakes for the
    /// secured vnets.
    pub(super) fn forge(&mut self, host: usize) {
        let targets = self.targets();
        let own = self.addresses[host];
        let group = SocketAddr::new(Config::default().main_group(own), PORT);
        let hosts: Vec<SocketAddr> =
            self.addresses.iter().map(|address| SocketAddr::new(*address, PORT)).collect();
        let mut random = Random::new(self.random.next());
        let sender = self.net.underlay.host(host);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sender.enter();
                let socket = UdpSocket::bind((own, FORGER)).unwrap();
                // What the kernel has no room for would have been lost like anything else.
                let send = |bytes: &[u8], to: SocketAddr| drop(socket.send_to(bytes, to));
                for (n, &(vnet, mac, coa)) in targets.iter().enumerate() {
                    for k in 0..EACH {
                        let number = UNSAID + PLAIN * (n * EACH + k) as u32;
                        for (to, end) in [(mac, coa), (BROADCAST, group)] {
                            send(&in_the_clear(vnet, to, number), end);
                            send(&garbage(&mut random, 0x80), end);
                        }
                        let claim = claim(vnet, mac, own, &mut random);
                        for end in hosts.iter().chain([&group, &coa]) {
                            send(&claim, *end);
                            send(&handshake_garbage(&mut random), *end);
                        }
                    }
                }
            });
        });
    }

    /// Sealed datagrams come a second time, in the names of their senders where that can be (IPv4).
    pub(super) fn replay(&mut self, host: usize) {
        let recorded = self.observer.recorded();
        let own = self.addresses[host];
        let sender = self.net.underlay.host(host);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sender.enter();
                let plain = UdpSocket::bind((own, FORGER)).unwrap();
                let spoofing = match own {
                    IpAddr::V4(own) => Some(OffPath::open(own)),
                    IpAddr::V6(_) => None,
                };
                for Datagram { from, to, payload } in &recorded {
                    match (&spoofing, from, to) {
                        (Some(socket), SocketAddr::V4(from), SocketAddr::V4(to)) => {
                            let (from, to): (SocketAddrV4, SocketAddrV4) = (*from, *to);
                            socket.send(from, to, payload);
                        }
                        _ => drop(plain.send_to(payload, to)),
                    }
                }
            });
        });
    }

    /// Another process connects to a NIC's socket and talks like a frontend, while the guest's own is
    /// served, or before it comes back to a backend that was started again. The guest gets its NIC.
    pub(super) fn grab_socket(&mut self, guest: usize) {
        if self.guests.running[guest].kind.listener == Listener::Qemu {
            // Nobody but its frontend listens there.
            return self.replace_backend(guest);
        }
        let before_it_comes = self.random.per_mille(500);
        if before_it_comes {
            self.guests.running[guest].nic.backend.process.kill();
            self.guests.running[guest].nic.backend.start_again();
        }
        let grabber = Control::connect(&self.guests.running[guest].nic.backend.socket).unwrap();
        // It is served at once, waits, or is refused: whichever, it says what a frontend says first.
        let _ = grabber.send(request::SET_OWNER, 0, &[], &[]);
        let _ = grabber.send(request::GET_FEATURES, 0, &[], &[]);
        if before_it_comes {
            // Held for a while, as by a frontend that was there first.
            self.idle(300);
            drop(grabber);
            self.guests.running[guest].reconnect();
            return;
        }
        let duration = self.while_of(300);
        self.guests.chat(duration);
        self.guests.running[guest].nic.backend.process.assert_running();
        drop(grabber);
    }

    /// A host's varpd is started without what its configuration says of vnets, as if a file had been left out,
    /// and later with it. A backend that comes meanwhile does not carry its vnet's frames unsealed.
    pub(super) fn lose_config(&mut self, host: usize) {
        let varpd = &mut self.net.varpds[host];
        let config = std::fs::read_to_string(&varpd.config).unwrap();
        let (kept, _) = config.split_once("[vnet.").unwrap();
        let status = varpd.process.terminate(LONG);
        assert!(status.success(), "{status}");
        std::fs::write(&varpd.config, kept).unwrap();
        varpd.start_again();
        let mut there = self.guests.running.iter_mut().filter(|guest| guest.host == host);
        if let Some(guest) = there.next() {
            guest.nic.backend.process.kill();
            guest.nic.backend.start_again();
            guest.reconnect();
        }
        self.guests.chat(Duration::from_millis(100));
        let varpd = &mut self.net.varpds[host];
        let status = varpd.process.terminate(LONG);
        assert!(status.success(), "{status}");
        std::fs::write(&varpd.config, config).unwrap();
        varpd.start_again();
        let secured = self.guests.running.iter().filter(|guest| guest.host == host);
        for guest in secured {
            guest.nic.wait_state("active", &self.net.varpds[host]);
        }
    }

    /// The observer has seen something of all that it has to look at.
    pub(super) fn assert_observed(&self) {
        wait_until("sealed datagrams are seen", LONG, || self.observer.count() > 0);
    }
}

/// A tunnelled frame as on a vnet without keys.
fn in_the_clear(vnet: u32, to: [u8; 6], number: u32) -> Vec<u8> {
    let from = [0x52, 0x54, 0, 0, 0, 0xfe];
    let header = [&[0x40, 0, 0, 0][..], &vnet.to_be_bytes()].concat();
    [header, frames::frame(to, from, number, LEN)].concat()
}

/// Random bytes behind a first one.
fn garbage(random: &mut Random, first: u8) -> Vec<u8> {
    let len = random.range(40, 1400) as usize;
    let mut bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
    bytes[0] |= first;
    bytes
}

fn handshake_garbage(random: &mut Random) -> Vec<u8> {
    let mut bytes = garbage(random, 0);
    bytes[..2].copy_from_slice(&handshake::MAGIC);
    bytes[2] = handshake::VERSION;
    bytes[3] = random.range(1, 6) as u8;
    bytes
}

/// That a vif has just come to the forger's host: without a tag, or with one that nobody made.
fn claim(vnet: u32, mac: [u8; 6], own: IpAddr, random: &mut Random) -> Vec<u8> {
    let coa = CareOf {
        addr: SocketAddr::new(own, FORGER),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    };
    let now_ms = clock::now().wall_ms;
    let claim =
        Claim { stamp: Stamp(now_ms + random.range(0, 1000)), coa, realm: Realm(0), behind: None };
    let lifetime_ms = 30_000;
    let body = match random.range(0, 3) {
        0 => Body::Announce { claim, lifetime_ms },
        1 => Body::Reply { claim, lifetime_ms },
        _ => Body::Correction { claim, lifetime_ms },
    };
    let tag = random.per_mille(700).then(|| Tag {
        key_id: random.next() as u32,
        time_ms: now_ms,
        tag: [random.next() as u8; TAG_LEN],
    });
    let key = VifKey { vnet: VnetId::new(vnet).unwrap(), mac: Mac(mac) };
    let nonce = random.next();
    let author = Author { realm: Realm(0), addr: SocketAddr::new(own, PORT) };
    Message { key, author, nonce, wide: false, relayed: false, body, tag }.to_bytes()
}
