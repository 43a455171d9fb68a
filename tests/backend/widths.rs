//! Hosts on one link whose interfaces have different MTUs. No router is there to say that a packet is too
//! long: an interface drops what is longer than its own.
//!
//! ```text
//!     guest 1       guest 2
//!        |             |
//!      host a ------ host b
//!     MTU 9000      MTU 1500
//! ```

use vnet::metrics::VifCounter;

use crate::driver::Options;
use crate::nic::{Nic, frame, mac, vif};
use crate::support::netns::Family;
use crate::support::step;
use crate::support::vnet::Varpd;
use crate::{JUMBO_MTU, Net, SOON};

/// Longer than the narrow interface takes.
const LONG: usize = 4000;

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
