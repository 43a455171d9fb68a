//! A vnet is one wire, and another vnet is another wire.
//!
//! ```text
//!     vnet 42:   guest 1   guest 2                guest 3
//!     vnet 43:   guest 1   guest 2                guest 3     the same MACs
//!                   |         |                      |
//!                 host a -----+                    host b
//! ```

use vnet::metrics::VifCounter;

use crate::nic::{BROADCAST, Nic, mac, vif};
use crate::support::netns::Family;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

const VNETS: [u32; 2] = [42, 43];
/// Hosts of guests 1, 2 and 3.
const HOSTS: [usize; 3] = [0, 0, 1];
/// Frames from each guest to each other, and to all.
const FRAMES: u32 = 500;
/// A multicast address besides broadcast: that of IPv6's all nodes (RFC 2464, 7).
const MULTICAST: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

#[test]
fn vnets_are_separate_wires_on_ipv4() {
    vnets_are_separate_wires(Family::V4, "");
}

#[test]
fn vnets_are_separate_wires_on_ipv6() {
    vnets_are_separate_wires(Family::V6, "");
}

#[test]
fn vnets_with_groups_of_their_own_are_separate_wires_on_ipv4() {
    vnets_are_separate_wires(Family::V4, "groups = ['vnet']\n");
}

#[test]
fn vnets_with_groups_of_their_own_are_separate_wires_on_ipv6() {
    vnets_are_separate_wires(Family::V6, "groups = ['vnet']\n");
}

fn vnets_are_separate_wires(family: Family, config: &str) {
    let what = format!("two vnets with the same MACs, {family:?} {config}");
    let Some(net) = Net::with(&what, 2, family, config) else { return };
    let start = |vnet: u32, n: usize| {
        let guest = vif(vnet, n as u8 + 1);
        Nic::start(&format!("v{vnet}-g{}", n + 1), guest, &net.varpds[HOSTS[n]])
    };
    let mut wires = VNETS.map(|vnet| [0, 1, 2].map(|n| start(vnet, n)));
    // Numbers tell the vnets apart.
    for (wire, base) in wires.iter_mut().zip([1_000_000, 2_000_000]) {
        for from in 0..3 {
            for to in (0..3).filter(|&to| to != from) {
                pass(wire, from, &[to], mac(to as u8 + 1), base);
            }
            let others: Vec<usize> = (0..3).filter(|&to| to != from).collect();
            pass(wire, from, &others, BROADCAST, base);
            pass(wire, from, &others, MULTICAST, base);
        }
    }
    for nic in wires.iter_mut().flatten() {
        nic.assert_silent();
    }
    for wire in &wires {
        for (nic, host) in wire.iter().zip(HOSTS) {
            // From two others: to it, to all, and to the multicast address.
            check_counters(nic, &net, host, 2 * 3 * u64::from(FRAMES));
        }
    }
    step("each frame arrived once at each of its receivers, and nowhere else");
}

/// Frames pass from one guest to others, each once to each and in order; nobody else gets any.
fn pass(wire: &mut [Nic; 3], from: usize, receivers: &[usize], to: [u8; 6], base: u32) {
    let sender = wire[from].mac();
    for n in 0..FRAMES {
        wire[from].send(to, base + n);
        // A ring has room for less than half of them.
        if n % 50 == 49 {
            for &receiver in receivers {
                for m in n - 49..=n {
                    assert_eq!(wire[receiver].receive(sender), base + m);
                }
            }
        }
    }
    wire.iter_mut().for_each(Nic::assert_silent);
}

/// Every datagram that reached the vif was one for it, but copies of its own group frames.
fn check_counters(nic: &Nic, net: &Net, host: usize, received: u64) {
    let group_frames = 2 * u64::from(FRAMES);
    wait_until("own group frames have come back", SOON, || {
        let counters = nic.counters(&net.varpds[host]);
        counters.get(VifCounter::rx_drop_own) == group_frames
    });
    let counters = nic.counters(&net.varpds[host]);
    assert_eq!(counters.get(VifCounter::rx_frames), received);
    assert_eq!(counters.get(VifCounter::rx_group_frames), 2 * group_frames);
    assert_eq!(counters.sum("rx_drop_"), group_frames, "{counters:?}");
    assert_eq!(counters.get(VifCounter::tx_frames), 2 * u64::from(FRAMES) + group_frames);
    assert_eq!(counters.get(VifCounter::tx_group_frames), group_frames);
    assert_eq!(counters.sum("tx_drop_"), 0, "{counters:?}");
}
