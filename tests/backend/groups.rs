//! Which multicast groups the frames of vnets go through, and going from one to the other under traffic.
//!
//! ```text
//!     guest 1      guest 2      guest 3        each sends to each other one, and to all, all the time
//!        |            |            |
//!     host a       host b       host c         a varpd each, started anew with each step
//! ```

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::nic::{BROADCAST, Nic, mac, number, vif};
use crate::rollout::{FRAMES, reconfigure, send_round, wait_rounds, wait_vifs};
use crate::secured::{assert_no_drops, wait_passes};
use crate::support::netns::Host;
use crate::support::{pause, step};
use crate::{Net, SOON};

/// The group of VARP, and of frames unless hosts are told otherwise.
const ONE: Ipv4Addr = Ipv4Addr::new(224, 10, 0, 1);

fn config(groups: &str) -> String {
    format!("groups = {groups}\n")
}

/// The group of a vnet with a small id.
fn of_vnet(id: u8) -> Ipv4Addr {
    Ipv4Addr::new(239, 192, 0, id)
}

/// The groups that a host's interface listens at, of the two kinds.
fn joined(host: &Host) -> BTreeSet<Ipv4Addr> {
    let mut command = host.command("cat");
    let output = command.arg("/proc/net/igmp").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let group = |line: &str| u32::from_str_radix(line.split_whitespace().next()?, 16).ok();
    // As it is in memory.
    let groups = text.lines().filter(|line| line.starts_with('\t')).filter_map(group);
    let groups = groups.map(|bits| Ipv4Addr::from(bits.to_ne_bytes()));
    groups.filter(|group| *group == ONE || group.octets()[0] == 239).collect()
}

/// A round, of which all must arrive, once. Frames to all may overtake each other where their sender changes the
/// group.
fn round(nics: &mut [Nic], sent: u32) {
    let expected = send_round(nics, sent);
    for nic in nics {
        let mut arrived = BTreeSet::new();
        while arrived.len() < expected {
            let Some(frame) = nic.next_frame(SOON) else {
                panic!("{:?}: {} of {expected} arrived: {arrived:?}", nic.vif, arrived.len())
            };
            let [to, from] = [0, 6].map(|at| <[u8; 6]>::try_from(&frame[at..at + 6]).unwrap());
            let n = number(&frame, from);
            assert!((sent..sent + FRAMES).contains(&n), "{n} of another round");
            assert!(arrived.insert((from, to, n)), "{n} from {from:x?} to {to:x?} came twice");
        }
    }
}

#[test]
fn live_hosts_go_from_one_group_to_the_vnets_and_back_in_steps_without_loss() {
    let (one, vnet) = ("['one']", "['vnet']");
    let (both, instead) = ("['one', 'vnet']", "['vnet', 'one']");
    let name = "from one group to those of vnets and back, in steps";
    let Some(mut net) = Net::with_configs(name, &[config(one), config(one), config(one)]) else {
        return;
    };
    let start = |host: u8| {
        Nic::start(&format!("g{host}"), vif(42, host + 1), &net.varpds[usize::from(host)])
    };
    let mut nics: Vec<Nic> = (0..3).map(start).collect();
    round(&mut nics, 0);
    let places = |net: &Net| net.each(|varpd| varpd.show("vifs")[0]["coa"].clone());
    let before = places(&net);
    let (end, rounds) = (AtomicBool::new(false), AtomicU32::new(1));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                round(&mut nics, FRAMES * rounds.load(Ordering::Relaxed));
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for groups in [both, instead, vnet, instead, both, one] {
                for host in 0..3 {
                    step(&format!("host {host}: groups = {groups}"));
                    reconfigure(&mut net.varpds[host], &config(groups));
                    wait_vifs(&net.varpds[host], "active");
                    wait_rounds(&rounds);
                    // varpd itself listens at the one in any case.
                    let own = (groups != one).then_some(of_vnet(42));
                    let want = own.into_iter().chain([ONE]).collect();
                    assert_eq!(joined(net.underlay.host(host)), want, "{groups}");
                }
            }
        }));
        end.store(true, Ordering::Relaxed);
        while !traffic.is_finished() {
            pause();
        }
        // What was lost says more than that it was waited for.
        traffic.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(places(&net), before, "the vifs are where they were");
    step(&format!("{} frames, none lost", rounds.into_inner() * FRAMES * 9));
    for (host, nic) in nics.iter().enumerate() {
        assert_no_drops(&net, host, nic);
    }
}

#[test]
fn a_host_listens_only_at_the_groups_of_its_own_vnets() {
    let configs = [config("['vnet']"), config("['vnet']")];
    let Some(net) = Net::with_configs("hosts with different vnets", &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let other = Nic::start("g3", vif(43, 3), &net.varpds[1]);
    wait_passes(&mut one, &mut two, 1);
    let groups = |host: usize| joined(net.underlay.host(host));
    assert_eq!(groups(0), [ONE, of_vnet(42)].into());
    assert_eq!(groups(1), [ONE, of_vnet(42), of_vnet(43)].into());
    drop(other);
    one.send(mac(2), 2);
    assert_eq!(two.receive(mac(1)), 2);
}

#[test]
fn hosts_with_the_two_ends_of_the_list_do_not_hear_each_others_group_frames() {
    let configs = [config("['one']"), config("['vnet']")];
    let Some(net) = Net::with_configs("one group and those of vnets", &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    for n in 0..20 {
        one.send(BROADCAST, n);
        two.send(BROADCAST, n);
    }
    // VARP and unicast frames have nothing to do with it. What was sent before them would be here.
    wait_passes(&mut one, &mut two, 1000);
    wait_passes(&mut two, &mut one, 2000);
    for (host, nic) in [&one, &two].into_iter().enumerate() {
        let group = net.counters(host, nic.vif).get(vnet::metrics::VifCounter::rx_group_frames);
        assert_eq!(group, 0, "host {host}");
    }
}
