//! Routers that share an address: with a virtual MAC address, which moves from one router's NIC to another's (VRRP), or
//! without, by gratuitous ARP.
//!
//! ```text
//!   neighbour   router 0      router 1      router 2   user
//!       |          |             |             |         |
//!       +-------- host a       host b        host c -----+
//! ```

use std::time::Duration;

use vnet::sys::clock;
use vnet::time::Instant;

use crate::idle::hurry;
use crate::nic::{BROADCAST, LEN, Nic, frame, mac, number, vif};
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// The virtual MAC address.
const VIRTUAL: [u8; 6] = mac(200);
/// The MAC addresses of the user and of its neighbour.
const USERS: [u8; 2] = [11, 12];
/// Within this time after it was moved the address is reached again.
const LIMIT: Duration = Duration::from_secs(2);
/// A master says once a second that it is there.
const ADVERTISEMENT: Duration = Duration::from_secs(1);
/// Between two frames of a user.
const INTERVAL: Duration = Duration::from_millis(5);

struct Site {
    routers: Vec<Nic>,
    users: Vec<Nic>,
    number: u32,
    net: Net,
}

impl Site {
    fn new(test: &str, options: &[&str]) -> Option<Self> {
        let net = Net::new(test, 3)?;
        let router = |n: usize| {
            let (name, varpd) = (format!("r{n}"), &net.varpds[n]);
            Nic::start_with(&name, vif(42, 1 + n as u8), varpd, Nic::options(), options)
        };
        let routers = (0..3).map(router).collect();
        let user = |(host, last): (usize, u8)| {
            Nic::start(&format!("u{last}"), vif(42, last), &net.varpds[host])
        };
        let users = [2, 0].into_iter().zip(USERS).map(user).collect();
        let site = Self { routers, users, number: 0, net };
        // What is measured is not how busy the machine is.
        site.net.varpds.iter().for_each(|varpd| hurry(varpd.process.pid()));
        site.routers.iter().chain(&site.users).for_each(|nic| hurry(nic.backend.process.pid()));
        Some(site)
    }

    /// A router says that it is master, by a frame to all from the virtual MAC address.
    fn advertise(&mut self, master: usize) {
        self.number += 1;
        let advertisement = frame(BROADCAST, VIRTUAL, self.number, LEN);
        self.routers[master].send_frame(&advertisement);
    }

    /// Whether a router gets this frame of a user before it gets nothing for a while.
    fn gets(&mut self, router: usize, user: [u8; 6], wanted: u32) -> bool {
        std::iter::from_fn(|| self.next_of(router, user, INTERVAL)).any(|number| number == wanted)
    }

    /// The next frame of a user that a router gets, if one comes.
    fn next_of(&mut self, router: usize, user: [u8; 6], timeout: Duration) -> Option<u32> {
        loop {
            let frame = self.routers[router].next_frame(timeout)?;
            if frame[6..12] == user {
                return Some(number(&frame, user));
            }
        }
    }

    /// A user sends to an address until a router has got a frame of it.
    fn reach(&mut self, user: usize, router: usize, to: [u8; 6], advertised: &mut Instant) {
        let (begin, source) = (clock::mono(), self.users[user].mac());
        loop {
            self.number += 1;
            let sent = self.number;
            self.users[user].send(to, sent);
            if self.gets(router, source, sent) {
                return;
            }
            assert!(clock::mono() - begin < SOON, "{to:?} is reached at router {router}");
            if clock::mono() - *advertised >= ADVERTISEMENT {
                *advertised = clock::mono();
                self.advertise(router);
            }
        }
    }

    /// A router becomes master; how long until all users have reached it.
    fn move_to(&mut self, master: usize) -> Duration {
        let begin = clock::mono();
        let mut advertised = begin;
        self.advertise(master);
        for user in 0..self.users.len() {
            self.reach(user, master, VIRTUAL, &mut advertised);
        }
        clock::mono() - begin
    }

    /// All frames to the virtual MAC address arrive at this router.
    fn assert_master(&mut self, master: usize) {
        for user in 0..self.users.len() {
            for _ in 0..50 {
                self.number += 1;
                let (sent, source) = (self.number, self.users[user].mac());
                self.users[user].send(VIRTUAL, sent);
                assert_eq!(self.next_of(master, source, SOON), Some(sent), "router {master}");
            }
        }
    }

    fn counter(&self, name: &str) -> u64 {
        self.net.each(|varpd| counter(varpd, name)).iter().sum()
    }
}

fn counter(varpd: &Varpd, name: &str) -> u64 {
    let rows = varpd.show("stats");
    let row = rows.as_array().unwrap().iter().find(|row| row["counter"] == name);
    row.unwrap()["value"].as_u64().unwrap()
}

/// More often within a minute than a NIC's own MAC may move within three.
#[test]
fn a_virtual_mac_is_reached_within_two_seconds_after_each_of_twelve_failovers() {
    let Some(mut site) = Site::new("a virtual MAC that fails over and back", &["--learn=1"]) else {
        return;
    };
    site.move_to(0);
    let mut gaps = Vec::new();
    for round in 1..=12 {
        let gap = site.move_to(round % 2);
        assert!(gap < LIMIT, "failover {round}: reached after {gap:?}");
        site.assert_master(round % 2);
        gaps.push(gap.as_millis());
    }
    step(&format!("reached again after {gaps:?} ms"));
    assert_eq!((site.counter("damped_claims"), site.counter("damped_moves")), (0, 0));
    assert!(site.counter("deferred_claims") > 0, "claimants wait");
}

/// The master may change more often than it can be announced: the last one counts.
#[test]
fn of_three_routers_that_become_master_within_a_second_the_last_one_is_reached() {
    let Some(mut site) = Site::new("three masters within a second", &["--learn=1"]) else {
        return;
    };
    site.move_to(0);
    let mut gaps = Vec::new();
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1]] {
        let begin = clock::mono();
        for master in &order[..2] {
            site.advertise(*master);
            // Its host has seen it, and so have the others.
            let advertised = site.number;
            let heard = |user: &mut Nic| {
                wait_until("the advertisement arrives", SOON, || {
                    user.try_receive(VIRTUAL, INTERVAL) == Some(advertised)
                });
            };
            site.users.iter_mut().for_each(heard);
        }
        let [.., last] = order;
        let within = clock::mono() - begin;
        let gap = site.move_to(last);
        assert!(gap < LIMIT, "{order:?}: reached after {gap:?}");
        site.assert_master(last);
        gaps.push((within.as_millis(), gap.as_millis()));
    }
    step(&format!("two masters within, and then the third was reached after: {gaps:?} ms"));
    assert_eq!(site.counter("damped_claims"), 0);
}

/// An ARP announcement (RFC 5227, 3) of 10.0.0.100.
fn gratuitous_arp(from: [u8; 6]) -> Vec<u8> {
    let head = [8, 6, 0, 1, 8, 0, 6, 4, 0, 1];
    let address = [10, 0, 0, 100];
    let parts: [&[u8]; 7] = [&BROADCAST, &from, &head, &from, &address, &[0; 6], &address];
    let mut frame = parts.concat();
    frame.resize(LEN, 0);
    frame
}

#[test]
fn an_address_that_moves_by_gratuitous_arp_needs_no_option_and_is_reached_at_once() {
    let Some(mut site) = Site::new("an address that moves by gratuitous ARP", &[]) else {
        return;
    };
    for round in 0..12 {
        let master = round % 2;
        let announced = gratuitous_arp(site.routers[master].mac());
        site.routers[master].send_frame(&announced);
        for user in 0..site.users.len() {
            let heard = site.users[user].next_frame(SOON).expect("the announcement");
            assert_eq!(heard, announced, "round {round}");
            // As its ARP table says from now on.
            let to: [u8; 6] = heard[22..28].try_into().unwrap();
            site.number += 1;
            let (sent, source) = (site.number, site.users[user].mac());
            site.users[user].send(to, sent);
            assert_eq!(site.next_of(master, source, SOON), Some(sent), "round {round}");
        }
    }
    assert_eq!((site.counter("macs_learnt"), site.counter("moved")), (0, 0));
}
