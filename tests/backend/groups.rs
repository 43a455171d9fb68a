//! Which multicast groups the frames of vnets go through, and going from one to the other under traffic.
//!
//! ```text
//!     guest 1      guest 2      guest 3        each sends to each other one, and to all, all the time
//!        |            |            |
//!     host a       host b       host c         a varpd each, started anew with each step
//! ```

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::nic::{BROADCAST, Nic, mac, number, vif};
use crate::rollout::{FRAMES, reconfigure, send_round, wait_rounds, wait_vifs};
use crate::secured::{Keys, assert_no_drops, wait_passes};
use crate::support::netns::{Family, Host};
use crate::support::{pause, step, wait_until};
use crate::{MTU, Net, SOON};

/// The group of VARP, and of frames unless hosts are told otherwise.
const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(224, 10, 0, 1));
const ONE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xe00a, 1));

fn config(groups: &str) -> String {
    format!("groups = {groups}\n")
}

/// The group of VARP in a family.
fn one(family: Family) -> IpAddr {
    match family {
        Family::V4 => ONE,
        Family::V6 => ONE_V6,
    }
}

/// The group of a vnet with a small id.
fn of_vnet(family: Family, id: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(239, 192, 0, id).into(),
        Family::V6 => Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0x8000, id.into()).into(),
    }
}

/// The groups that a host's interface listens at, of the two kinds.
fn joined(host: &Host, family: Family) -> BTreeSet<IpAddr> {
    let file = match family {
        Family::V4 => "/proc/net/igmp",
        Family::V6 => "/proc/net/igmp6",
    };
    let output = host.command("cat").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    match family {
        Family::V4 => {
            // As it is in memory.
            let group = |line: &str| u32::from_str_radix(line.split_whitespace().next()?, 16).ok();
            let lines = text.lines().filter(|line| line.starts_with('\t'));
            let groups = lines.filter_map(group).map(|bits| Ipv4Addr::from(bits.to_ne_bytes()));
            let groups = groups.map(IpAddr::from);
            groups.filter(|group| *group == ONE || *group >= of_vnet(family, 0)).collect()
        }
        Family::V6 => {
            let group = |line: &str| u128::from_str_radix(line.split_whitespace().nth(2)?, 16).ok();
            let groups = text.lines().filter_map(group).map(Ipv6Addr::from);
            groups.filter(|group| group.segments()[0] == 0xff15).map(IpAddr::from).collect()
        }
    }
}

/// A round: each frame arrives once, or is lost. Returns the number of frames that are lost. Frames to all may overtake
/// each other where their sender changes the group.
fn round(nics: &mut [Nic], sent: u32) -> usize {
    let expected = send_round(nics, sent);
    let mut lost = 0;
    for nic in nics {
        let mut arrived = BTreeSet::new();
        while arrived.len() < expected {
            let Some(frame) = nic.next_frame(SOON) else {
                println!("{:?}: {} of {expected} arrived: {arrived:?}", nic.vif, arrived.len());
                lost += expected - arrived.len();
                break;
            };
            let [to, from] = [0, 6].map(|at| <[u8; 6]>::try_from(&frame[at..at + 6]).unwrap());
            let n = number(&frame, from);
            assert!((sent..sent + FRAMES).contains(&n), "{n} of another round");
            assert!(arrived.insert((from, to, n)), "{n} from {from:x?} to {to:x?} came twice");
        }
    }
    lost
}

/// Takes three hosts through the steps from one group to the vnet's and back, under traffic.
fn roll_out(family: Family, is_secured: bool) {
    let (one_group, vnet) = ("['one']", "['vnet']");
    let (both, instead) = ("['one', 'vnet']", "['vnet', 'one']");
    let keys = Keys::new();
    let config = |groups: &str| match is_secured {
        true => config(groups) + &keys.config("conf", "k", &[("use", "a1")], ""),
        false => config(groups),
    };
    let name = format!("one group, groups of vnets: {family:?}, secured: {is_secured}");
    let Some(mut net) = Net::build(&name, 3, MTU, family, |_| config(one_group)) else { return };
    let start = |host: u8| {
        Nic::start(&format!("g{host}"), vif(42, host + 1), &net.varpds[usize::from(host)])
    };
    let mut nics: Vec<Nic> = (0..3).map(start).collect();
    assert_eq!(round(&mut nics, 0), 0);
    let places = |net: &Net| net.each(|varpd| varpd.show("vifs")[0]["coa"].clone());
    let before = places(&net);
    let (end, rounds) = (AtomicBool::new(false), AtomicU32::new(1));
    let mut lost = 0;
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut lost = 0;
            while !end.load(Ordering::Relaxed) {
                lost += round(&mut nics, FRAMES * rounds.load(Ordering::Relaxed));
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            lost
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for groups in [both, instead, vnet, instead, both, one_group] {
                step(&format!("groups = {groups}"));
                for host in 0..3 {
                    reconfigure(&mut net.varpds[host], &config(groups));
                    wait_vifs(&net.varpds[host], "active");
                    wait_rounds(&rounds);
                    // varpd itself listens at the one in any case.
                    let own = (groups != one_group).then_some(of_vnet(family, 42));
                    let want: BTreeSet<IpAddr> = own.into_iter().chain([one(family)]).collect();
                    wait_until(&format!("the groups of {groups} are joined"), SOON, || {
                        joined(net.underlay.host(host), family) == want
                    });
                }
            }
        }));
        end.store(true, Ordering::Relaxed);
        while !traffic.is_finished() {
            pause();
        }
        lost = traffic.join().unwrap();
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(places(&net), before, "the vifs are where they were");
    // Each NIC sends to two others, and to both of them at once.
    let sent = rounds.into_inner() * FRAMES * 9;
    step(&format!("{sent} frames sent, {lost} lost on the way to a guest"));
    assert_eq!(lost, 0, "of {sent} frames");
    for (host, nic) in nics.iter().enumerate() {
        assert_no_drops(&net, host, nic);
    }
}

#[test]
fn live_hosts_go_from_one_group_to_the_vnets_and_back_in_steps_without_loss() {
    for family in [Family::V4, Family::V6] {
        for is_secured in [false, true] {
            roll_out(family, is_secured);
        }
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
    let groups = |host: usize| joined(net.underlay.host(host), Family::V4);
    let [first, second] = [42, 43].map(|id| of_vnet(Family::V4, id));
    assert_eq!(groups(0), [ONE, first].into());
    assert_eq!(groups(1), [ONE, first, second].into());
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
