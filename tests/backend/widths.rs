//! Hosts on one link whose interfaces have different MTUs. No router is there to say that a packet is too
//! long: an interface drops what is longer than its own.
//!
//! ```text
//!     guest 1       guest 2
//!        |             |
//!      host a ------ host b
//!     MTU 9000      MTU 1500
//! ```

use std::time::Duration;

use vnet::metrics::VifCounter;

use crate::driver::Options;
use crate::nic::{BROADCAST, Nic, frame, mac, vif};
use crate::secured::Keys;
use crate::support::netns::Family;
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{JUMBO_MTU, Net, SOON};

/// Longer than the narrow interface takes.
const LONG: usize = 4000;
/// How long a frame that may be lost is waited for.
const SHORT: Duration = Duration::from_millis(200);

#[test]
fn a_host_with_long_packets_reaches_one_with_short_ones() {
    let made = Net::build_with("hosts with different MTUs", 2, JUMBO_MTU, |host, directory| {
        if host.name == "b" {
            host.ip("link set eth0 mtu 1500");
        }
        Varpd::start(host, host.address(Family::V4), directory)
    });
    let Some(net) = made else { return };
    let options = || Options { tx_buffer: 8192, rx_buffer: 8192, ..Nic::options() };
    let start = |n: usize, name| {
        Nic::start_with(name, vif(42, n as u8 + 1), &net.varpds[n], options(), &[])
    };
    let (mut one, mut two) = (start(0, "g1"), start(1, "g2"));
    one.introduce(&mut two);
    for n in 100..150 {
        let long = frame(mac(2), mac(1), n, LONG);
        one.send_frame(&long);
        assert_eq!(two.next_frame(SOON).expect("a long frame arrives"), long);
    }
    let counters = one.counters(&net.varpds[0]);
    assert_eq!(counters.get(VifCounter::tx_fragmented), 50, "in pieces that the other host takes");
    step("hosts of MTU 9000 and 1500 on one link");
}

fn pass(from: &mut Nic, to: &mut Nic, n: u32) {
    let long = frame(BROADCAST, from.mac(), n, LONG);
    from.send_frame(&long);
    assert_eq!(to.next_frame(SOON).expect("a long broadcast arrives"), long);
}

/// Also on a secured vnet, where a host has to prove that it is one of the vnet. Before the hosts have told each
/// other, a long broadcast may be lost.
#[test]
fn hosts_with_long_and_short_packets_hear_each_others_broadcasts() {
    let keys = Keys::new();
    let secured = keys.config("conf", "key", &[("use", "01")], "");
    for (what, config) in [("open", String::new()), ("secured", secured)] {
        let test = format!("broadcasts of hosts with different MTUs, {what}");
        let made = Net::build_with(&test, 2, JUMBO_MTU, |host, directory| {
            if host.name == "b" {
                host.ip("link set eth0 mtu 1500");
            }
            Varpd::start_with(host, host.address(Family::V4), &config, directory)
        });
        let Some(net) = made else { return };
        let options = || Options { tx_buffer: 8192, rx_buffer: 8192, ..Nic::options() };
        let start = |n: usize, name| {
            Nic::start_with(name, vif(42, n as u8 + 1), &net.varpds[n], options(), &[])
        };
        let (mut one, mut two) = (start(0, "g1"), start(1, "g2"));
        let mut number = 1000;
        wait_until("a long broadcast arrives", SOON, || {
            number += 1;
            one.send_frame(&frame(BROADCAST, mac(1), number, LONG));
            two.next_frame(SHORT).is_some_and(|frame| frame.len() == LONG)
        });
        while two.next_frame(SHORT).is_some() {}
        for n in 100..150 {
            pass(&mut one, &mut two, n);
            pass(&mut two, &mut one, n);
        }
        for (nic, varpd) in [(&one, &net.varpds[0]), (&two, &net.varpds[1])] {
            let counters = nic.counters(varpd);
            assert!(counters.get(VifCounter::tx_fragmented) >= 50);
            assert_eq!(counters.get(VifCounter::tx_drop_too_big), 0);
        }
        step(&test);
    }
}
