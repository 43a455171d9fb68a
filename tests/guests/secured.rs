//! A secured vnet as its guests and its neighbours see it: guests notice nothing, not even that the
//! key is exchanged; who has not got the key reads nothing, finds nobody and is not heard.
//!
//! ```text
//!     g1       g2       a driver of this test: a stranger, then one that claims to be g2
//!     |        |        |              |              |
//!   host a   host b   host c         host d         host e
//!    key      key     none           another        the key, until it is exchanged
//!     |        |        |              |              |
//!   [== to-a == to-b == to-c ======= to-d ========= to-e ==]   all of it is looked at
//! ```

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::capture::{Capture, Kind, Seen};
use super::driver::{Driver, Layout, Options};
use super::ping::{Pings, assert_all_answered};
use super::support::guest::{Guest, Qemu};
use super::support::vnet::{Backend, Listener, Varpd, Vif};
use super::support::{can_boot_guests, step, take_turn, wait_until};
use super::{Site, newest_qemu, transfer, transfer_output};

const SOON: Duration = Duration::from_secs(10);
const G1: Vif = Vif { vnet: 42, mac: 1 };
const G2: Vif = Vif { vnet: 42, mac: 2 };
const BROADCAST: [u8; 6] = [0xff; 6];
/// Frames that a stranger sends of each kind.
const TRIES: usize = 100;
/// What pings carry, and the text that is sent over TCP.
const PING_BYTE: u8 = 0x5a;
const TEXT: &str = "only members of vnet 42 read this";
/// Resolutions that fail do so soon.
const HASTY: &str = "[timers]\nreply-timeout = 0.3\ntries = 2\nearly-retries = [0.05]\n";

/// What is looked for on the underlay; their places in the list.
const HEADERS: [usize; 3] = [0, 1, 2];
const CONTENTS: [usize; 2] = [3, 4];
const STRANGERS: usize = 5;

fn patterns() -> Vec<Vec<u8>> {
    let (g1, g2) = (G1.mac_bytes(), G2.mac_bytes());
    vec![
        [&g2[..], &g1].concat(),
        [&g1[..], &g2].concat(),
        [&BROADCAST[..], &g1].concat(),
        vec![PING_BYTE; 24],
        TEXT.as_bytes().to_vec(),
        [&BROADCAST[..], &stranger_on(2).mac_bytes()].concat(),
    ]
}

const fn stranger_on(host: u8) -> Vif {
    Vif { vnet: 42, mac: 0x10 + host }
}

/// Runs `vnet key`.
fn key(arguments: &[&str], file: &Path) {
    let mut vnet = Command::new(env!("CARGO_BIN_EXE_vnet"));
    let output = vnet.arg("key").args(arguments).arg(file).output().expect("the vnet command");
    assert!(output.status.success(), "vnet key {arguments:?}: {output:?}");
}

/// Copies a key file as operators do: it appears as a whole.
fn hand_out(directory: &Path, from: &str, to: &str) {
    let new = directory.join("new");
    fs::copy(directory.join(from), &new).expect("a copy of the key");
    fs::rename(new, directory.join(to)).expect("the copy in its place");
}

fn site() -> Site {
    let secured = |file: &str| format!("[vnet.42]\npolicy = 'conf'\nkey-file = 'DIR/{file}.key'\n");
    let stranger = |file: &str| HASTY.to_owned() + &secured(file);
    let configs =
        [secured("a"), secured("b"), HASTY.to_owned(), stranger("wrong"), stranger("old")];
    Site::prepared(&configs, |directory| {
        key(&["generate"], &directory.join("a.key"));
        key(&["generate"], &directory.join("wrong.key"));
        hand_out(directory, "a.key", "b.key");
        hand_out(directory, "a.key", "old.key");
    })
}

/// A counter of varpd or of a vif.
fn counter(varpd: &Varpd, of: Option<Vif>, matches: impl Fn(&str) -> bool) -> u64 {
    let rows = varpd.show("stats");
    let is_its = |row: &&serde_json::Value| match of {
        Some(vif) => row["vnet"] == vif.vnet && row["mac"] == vif.mac(),
        None => row["vnet"].is_null(),
    };
    let rows = rows.as_array().expect("rows").iter().filter(is_its);
    let ours = rows.filter(|row| row["counter"].as_str().is_some_and(&matches));
    ours.filter_map(|row| row["value"].as_u64()).sum()
}

/// A NIC whose guest is this test.
struct Stranger<'s> {
    driver: Driver,
    backend: Backend,
    varpd: &'s Varpd,
    vif: Vif,
}

impl<'s> Stranger<'s> {
    fn start(name: &str, vif: Vif, varpd: &'s Varpd) -> Self {
        let backend = Backend::start(name, vif, Listener::Backend, varpd);
        let options = Options { layout: Layout::One, ..Options::default() };
        let driver = Driver::connect(&backend.socket, options).expect("a NIC");
        Self { driver, backend, varpd, vif }
    }

    /// Asks for an IP address, in the name of another: everybody, or one MAC.
    fn ask(&mut self, to: [u8; 6], own: u8, wanted: u8) {
        let mac = self.vif.mac_bytes();
        let mut frame = [&to[..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        frame.extend([&mac[..], &[10, 0, 0, own], &[0; 6], &[10, 0, 0, wanted]].concat());
        frame.resize(60, 0);
        assert!(self.driver.wait_room(0, SOON), "the backend takes frames");
        self.driver.send_frame(&frame);
    }

    /// The next frame, other than those by which backends say that their guests have arrived.
    fn receive(&mut self, timeout: Duration) -> Option<Vec<u8>> {
        loop {
            let frame = self.driver.recv_frame(timeout)?;
            if frame[12..14] != [0x80, 0x35] {
                return Some(frame);
            }
        }
    }

    fn counter(&self, matches: impl Fn(&str) -> bool) -> u64 {
        counter(self.varpd, Some(self.vif), matches)
    }

    /// Tries to reach g1 and to be reached, and what it can.
    fn assert_shut_out(&mut self, address: u8) {
        let read = self.counter(|name| name == "rx_frames");
        for _ in 0..TRIES {
            self.ask(BROADCAST, address, 1);
            self.ask(G1.mac_bytes(), address, 1);
        }
        wait_until("nobody answers for g1", SOON, || {
            self.ask(G1.mac_bytes(), address, 1);
            self.counter(|name| name == "tx_drop_unresolved") > 0
        });
        let rows = self.varpd.show("varp");
        let known = |row: &&serde_json::Value| {
            let is_guest = [G1.mac(), G2.mac()].iter().any(|mac| row["mac"] == mac.as_str());
            is_guest && ["resolved", "confirming"].iter().any(|state| row["state"] == *state)
        };
        assert_eq!(rows.as_array().expect("rows").iter().find(known), None);
        assert_eq!(self.receive(Duration::ZERO), None, "a frame for a stranger");
        assert_eq!(self.counter(|name| name == "rx_frames"), read);
    }

    fn end(mut self) {
        self.backend.process.terminate(SOON);
    }
}

/// Exchanges the key on hosts a and b, in three steps; each is seen by both before the next.
fn exchange_key(site: &Site) {
    let of_each = |name: &str| {
        [0, 1].map(|host| counter(&site.varpds[host], None, |counter| counter == name))
    };
    for number in 1..=3 {
        let reads = of_each("key_files_read");
        // A host is to be left behind, for whose sake the old key would stay.
        key(&["rotate", "--force"], &site.path().join("a.key"));
        hand_out(site.path(), "a.key", "b.key");
        wait_until("both hosts read the key", SOON, || {
            of_each("key_files_read").iter().zip(reads).all(|(now, before)| *now > before)
        });
        wait_until("what serves was made with the key that is used", SOON, || {
            [(0, 1), (1, 0)].into_iter().all(|(host, peer)| {
                let peer = site.underlay.host(peer).ipv4.to_string();
                let rows = site.varpds[host].show("peers");
                let mut rows = rows.as_array().expect("rows").iter();
                rows.any(|row| row["peer"] == peer.as_str() && row["key"] == "use")
            })
        });
        step(&format!("  step {number}"));
    }
}

#[test]
fn guests_on_a_secured_vnet() {
    if !can_boot_guests("guests on a secured vnet") {
        return;
    }
    let _turn = take_turn();
    let mut site = site();
    // What fits beside header and ESP.
    site.guest_mtu = Some(1500 - 84);
    let capture = Capture::start(&site.underlay, patterns());
    let mut m1 = site.start("g1", 0, G1, Listener::Backend, Qemu::Installed);
    let mut m2 = site.start("g2", 1, G2, Listener::Backend, newest_qemu());
    let mut member = Stranger::start("e", stranger_on(4), &site.varpds[4]);
    m1.bring_up("10.0.0.1/24");
    m2.bring_up("10.0.0.2/24");
    let (g1, g2) = (&mut m1.guest, &mut m2.guest);

    step("pings, and TCP in both directions");
    assert_all_answered(g1, 200, &format!("-i 0.01 -p {PING_BYTE:02x} -s 200 10.0.0.2"));
    transfer(g1, g2, "10.0.0.2", 4);
    transfer(g2, g1, "10.0.0.1", 4);
    transfer_output(g1, g2, "10.0.0.2", &format!("yes {TEXT} | head -c 1000000"));
    transfer_output(g2, g1, "10.0.0.1", &format!("yes {TEXT} | head -c 1000000"));

    step("host e is a member: its NIC gets an answer from g1");
    member.ask(BROADCAST, 60, 1);
    wait_until("it arrives", SOON, || {
        let ends = [&stranger_on(4).mac_bytes()[..], &G1.mac_bytes()].concat();
        member.receive(SOON).is_some_and(|frame| frame[..12] == ends)
    });

    step("the key is exchanged on hosts a and b during 1500 pings");
    let pings = Pings::start(g1, 1500, "-i 0.01 10.0.0.2");
    wait_until("the first answers", SOON, || pings.answered(g1) >= 20);
    exchange_key(&site);
    let answered = pings.answered(g1);
    assert!(answered < 1450, "{answered} pings were answered before it was done");
    pings.assert_all_answered(g1);

    strangers_try(&site, g1, g2, member);

    transfer(g1, g2, "10.0.0.2", 1);
    for machine in [&mut m1, &mut m2] {
        machine.guest.assert_not_rebooted();
        machine.guest.assert_no_complaints();
    }
    assert_sealed(&site, &capture.finish());
}

/// Hosts without the key, with another and with the old one, while g1 pings g2.
fn strangers_try(site: &Site, g1: &mut Guest, g2: &mut Guest, mut member: Stranger<'_>) {
    step("hosts without the key, with another one and with the old one, during 800 pings");
    let flush = Command::new(env!("CARGO_BIN_EXE_vnet"))
        .arg("--socket")
        .arg(&site.varpds[4].socket)
        .arg("flush")
        .status();
    assert!(flush.is_ok_and(|status| status.success()), "vnet flush");
    while member.receive(Duration::from_millis(50)).is_some() {}
    let pings = Pings::start(g1, 800, "-i 0.01 10.0.0.2");
    let start = |host: u8| {
        Stranger::start(&format!("s{host}"), stranger_on(host), &site.varpds[usize::from(host)])
    };
    let mut strangers = [start(2), start(3), member];
    let unread = |stranger: &Stranger<'_>| stranger.counter(|name| name.starts_with("rx_drop_"));
    let before: Vec<u64> = strangers.iter().map(unread).collect();
    // Nobody has this address: everybody is asked for it.
    let asked = g2.spawn("ping -c 1 -W 1 10.0.0.99");
    for (address, stranger) in (70..).zip(&mut strangers) {
        stranger.assert_shut_out(address);
    }
    g2.wait(asked);
    for number in [1, 2] {
        assert!(
            unread(&strangers[number]) > before[number],
            "what it can't read does arrive there"
        );
    }
    strangers.into_iter().for_each(Stranger::end);

    step("they claim to be g2");
    for host in [2_u8, 3, 4] {
        let name = format!("i{host}");
        let mut impostor = Stranger::start(&name, G2, &site.varpds[usize::from(host)]);
        impostor.assert_shut_out(2);
        impostor.end();
    }
    pings.assert_all_answered(g1);
    assert_all_answered(g1, 50, "-i 0.01 10.0.0.2");
    for varpd in &site.varpds[..2] {
        assert_eq!(counter(varpd, None, |name| ["moved", "losses"].contains(&name)), 0);
    }
    for guest in [g1, g2] {
        let known = guest.run("cat /proc/net/arp");
        for address in 70..73 {
            assert!(!known.contains(&format!("10.0.0.{address} ")), "{known}");
        }
    }
}

/// All that crossed the underlay from hosts a and b is ESP, or about addresses, keys and hosts; the host that
/// is not secured shows that other things would have been seen.
fn assert_sealed(site: &Site, seen: &Seen) {
    let [a, b, c] = [0, 1, 2].map(|host| site.underlay.host(host).ipv4);
    step(&format!("on the underlay: {:?}", seen.kinds));
    assert_eq!(seen.missed, 0, "all was looked at");
    for host in [a, b] {
        assert!(seen.count(host, Kind::Esp) > 2000, "{seen:?}");
        assert!(seen.count(host, Kind::Varp) > 0, "{seen:?}");
        assert!(seen.count(host, Kind::Handshake) > 0, "{seen:?}");
        assert_eq!(seen.count(host, Kind::Other), 0, "{seen:?}");
        for pattern in HEADERS.into_iter().chain(CONTENTS) {
            assert_eq!(
                seen.with_pattern(host, pattern),
                0,
                "pattern {pattern} of {host}: {seen:?}"
            );
        }
    }
    assert_eq!(seen.kinds.get(&(None, Kind::Other)), None, "{seen:?}");
    assert!(seen.with_pattern(c, STRANGERS) > 0, "what host c sends is not sealed: {seen:?}");
}
