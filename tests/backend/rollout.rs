//! A vnet's policy is changed under traffic, host after host; and what happens where it is changed by mistake.
//!
//! ```text
//!     guest 1      guest 2      guest 3        each sends to each other one, and to all, all the time
//!        |            |            |
//!     host a       host b       host c         a varpd each, started anew with each step
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use vnet::metrics::VifCounter;
use vnet::sys::clock;

use crate::driver::Driver;
use crate::nic::{BROADCAST, ETHER_TYPE, Nic, mac, number, vif};
use crate::secured::{Keys, assert_no_drops, varpd_counter, wait_passes};
use crate::support::netns::Host;
use crate::support::vnet::{Backend, Listener, Varpd};
use crate::support::{pause, step, wait_until};
use crate::{Net, SOON};

/// Frames that each sends to each in a round.
pub(crate) const FRAMES: u32 = 8;
/// Rounds that pass between two hosts' steps.
const ROUNDS: u32 = 20;
/// How long a change may take to be over, with a session for each pair of hosts.
const SETTLED: Duration = Duration::from_secs(60);

fn config(policy: &str, key: &Path) -> String {
    format!("[vnet.42]\npolicy = {policy}\nkey-file = '{}'\n", key.display())
}

/// Starts a varpd anew with another configuration.
pub(crate) fn reconfigure(varpd: &mut Varpd, config: &str) {
    std::fs::write(&varpd.config, config).unwrap();
    varpd.kill();
    varpd.start_again();
}

/// Waits until varpd shows all of its vifs in a state.
pub(crate) fn wait_vifs(varpd: &Varpd, state: &str) {
    wait_until(&format!("the vifs are {state}"), SOON, || {
        let rows = varpd.show("vifs");
        let rows = rows.as_array().unwrap();
        !rows.is_empty() && rows.iter().all(|row| row["state"] == state)
    });
}

/// Each NIC sends frames to each other one and to all. Returns how many each then receives.
pub(crate) fn send_round(nics: &mut [Nic], sent: u32) -> usize {
    let macs: Vec<[u8; 6]> = nics.iter().map(Nic::mac).collect();
    for n in sent..sent + FRAMES {
        for nic in &mut *nics {
            let own = nic.mac();
            let others = macs.iter().filter(|to| **to != own);
            others.chain([&BROADCAST]).for_each(|to| nic.send(*to, n));
        }
    }
    2 * (macs.len() - 1) * FRAMES as usize
}

/// A round, of which all must arrive, once and in order.
fn round(nics: &mut [Nic], sent: u32) {
    let expected = send_round(nics, sent);
    let begin = clock::mono();
    for nic in nics {
        // What was received last, by sender and destination.
        let mut next = BTreeMap::new();
        for arrived in 0..expected {
            let Some(frame) = nic.next_frame(SOON) else {
                let after = clock::mono() - begin;
                panic!("{:?}: {arrived} of {expected} after {after:?}, of each: {next:?}", nic.vif)
            };
            let [to, from] = [0, 6].map(|at| <[u8; 6]>::try_from(&frame[at..at + 6]).unwrap());
            let want = next.entry((from, to)).or_insert(sent);
            assert_eq!(number(&frame, from), *want, "{from:x?} to {to:x?}");
            *want += 1;
        }
    }
}

/// Waits until [`ROUNDS`] more have passed.
pub(crate) fn wait_rounds(rounds: &AtomicU32) {
    let until = rounds.load(Ordering::Relaxed) + ROUNDS;
    wait_until("rounds of frames pass", SETTLED, || rounds.load(Ordering::Relaxed) >= until);
}

/// Nobody sends under another policy any more: what an operator waits for before the next step.
fn wait_agreed(net: &Net, hosts: u8, rounds: &AtomicU32) {
    let others = |net: &Net| -> Vec<u64> {
        let of = |host: u8| {
            net.counters(host.into(), vif(42, host + 1)).get(VifCounter::rx_other_policy)
        };
        (0..hosts).map(of).collect()
    };
    wait_until("all send under the same policy", SETTLED, || {
        let before = others(net);
        wait_rounds(rounds);
        let shown = net.each(|varpd| varpd.show("vnets")[0]["others"].as_u64());
        others(net) == before && shown.iter().all(|others| *others == Some(0))
    });
}

/// Takes all hosts through these steps under traffic.
fn change_in_steps(name: &str, steps: &[&str]) {
    let keys = Keys::new();
    let key = keys.write("k", &[("use", "a1")]);
    let configs = vec![config(steps[0], &key); 3];
    let Some(mut net) = Net::with_configs(name, &configs) else { return };
    let mut nics: Vec<Nic> = (0..3)
        .map(|host| {
            Nic::start(&format!("g{host}"), vif(42, host + 1), &net.varpds[usize::from(host)])
        })
        .collect();
    round(&mut nics, 0);
    let (end, rounds) = (AtomicBool::new(false), AtomicU32::new(1));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                round(&mut nics, FRAMES * rounds.load(Ordering::Relaxed));
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for policy in &steps[1..] {
                for host in 0..3 {
                    step(&format!("host {host}: policy = {policy}"));
                    reconfigure(&mut net.varpds[host], &config(policy, &key));
                    wait_vifs(&net.varpds[host], "active");
                    wait_rounds(&rounds);
                }
                wait_agreed(&net, 3, &rounds);
                let shown = net.varpds[0].show("vnets")[0]["policy"].clone();
                let want = policy.replace(['\'', '[', ']', ' '], "");
                assert_eq!(shown, want);
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
    let rounds = rounds.into_inner();
    step(&format!("{} frames, none lost", rounds * FRAMES * 9));
    for (host, nic) in nics.iter().enumerate() {
        assert_no_drops(&net, host, nic);
        assert!(net.counters(host, nic.vif).get(VifCounter::rx_other_policy) > 0, "steps are seen");
    }
}

#[test]
fn a_live_vnet_is_secured_and_opened_in_steps_without_loss() {
    let (both, instead) = ("['none', 'conf']", "['conf', 'none']");
    let steps = ["'none'", both, instead, "'conf'", instead, both, "'none'"];
    change_in_steps("none to conf and back, in steps", &steps);
}

#[test]
fn a_live_vnet_goes_from_auth_to_conf_and_back_in_steps_without_loss() {
    let (both, instead) = ("['auth', 'conf']", "['conf', 'auth']");
    let steps = ["'auth'", both, instead, "'conf'", instead, both, "'auth'"];
    change_in_steps("auth to conf and back, in steps", &steps);
}

/// Looks at the packets of a host's interfaces.
struct Sniffer(OwnedFd);

impl Sniffer {
    fn start(host: &Host) -> Self {
        let open = || {
            host.enter();
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap()
        };
        Self(std::thread::scope(|scope| scope.spawn(open).join().unwrap()))
    }

    /// How many packets have come, and how many of them show a frame of a guest.
    fn count(&self) -> (usize, usize) {
        let (mut all, mut plain) = (0, 0);
        let mut bytes = [0; 2048];
        while let Ok(len) = recv(self.0.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            all += 1;
            // Behind a guest's MAC address, which VARP names, too.
            let shown = [&mac(1)[..], &ETHER_TYPE].concat();
            plain += usize::from(bytes[..len].windows(shown.len()).any(|at| at == shown));
        }
        (all, plain)
    }
}

#[test]
fn a_nic_of_a_secured_vnet_carries_nothing_while_varpd_has_lost_its_line() {
    let keys = Keys::new();
    let secured = config("'conf'", &keys.write("k", &[("use", "a1")]));
    let configs = [secured.clone(), secured.clone()];
    let Some(mut net) = Net::with_configs("a line is missing in varpd.toml", &configs) else {
        return;
    };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    one.introduce(&mut two);
    let sniffer = Sniffer::start(net.underlay.host(0));
    reconfigure(&mut net.varpds[0], "");
    wait_vifs(&net.varpds[0], "halted");
    for n in 0..50 {
        one.send(BROADCAST, n);
        one.send(mac(2), n);
    }
    let dropped = |counter: VifCounter| one.counters(&net.varpds[0]).get(counter);
    wait_until("all are dropped", SOON, || dropped(VifCounter::tx_drop_policy) >= 100);
    wait_until("what comes is dropped, too", SOON, || {
        two.send(BROADCAST, 1);
        dropped(VifCounter::rx_drop_policy) > 0
    });
    one.assert_silent();
    two.assert_silent();
    let (all, plain) = sniffer.count();
    assert!(all > 0 && plain == 0, "{plain} of {all} packets show a frame");
    let said = one.backend.process.log();
    let want = "vnet 42 has policy none here, lower than conf, which it has had since this backend was started";
    assert_eq!(said.matches(want).count(), 1, "{said}");
    let said = net.varpds[0].process.log();
    assert!(said.contains("vif 42/52:54:00:00:00:01 carries no frame"), "{said}");
    assert_eq!(varpd_counter(&net.varpds[0], "vifs_below_policy"), 1);

    step("the line is back");
    reconfigure(&mut net.varpds[0], &secured);
    wait_vifs(&net.varpds[0], "active");
    wait_passes(&mut one, &mut two, 1000);
    wait_passes(&mut two, &mut one, 2000);
    assert!(one.backend.process.log().contains("carries frames again"));
    assert_eq!(sniffer.count().1, 0);
}

#[test]
fn a_nic_that_is_kept_to_a_policy_carries_nothing_below_it() {
    let keys = Keys::new();
    let key = keys.write("k", &[("use", "a1")]);
    let Some(mut net) =
        Net::with_configs("--policy conf", &[String::new(), config("'conf'", &key)])
    else {
        return;
    };
    let backend = Backend::start_with(
        "g1",
        vif(42, 1),
        Listener::Backend,
        &net.varpds[0],
        &["--policy", "conf"],
    );
    let driver = Driver::connect(&backend.socket, Nic::options()).unwrap();
    let mut one = Nic { driver, backend, vif: vif(42, 1) };
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let sniffer = Sniffer::start(net.underlay.host(0));
    for policy in ["'none'", "'auth'", "['none', 'conf']", "['conf', 'none']"] {
        step(policy);
        reconfigure(&mut net.varpds[0], &config(policy, &key));
        wait_vifs(&net.varpds[0], "halted");
        let dropped = |one: &Nic| one.counters(&net.varpds[0]).get(VifCounter::tx_drop_policy);
        let before = dropped(&one);
        one.send(BROADCAST, 1);
        wait_until("it is dropped", SOON, || dropped(&one) > before);
    }
    two.assert_silent();
    assert!(
        one.backend
            .process
            .log()
            .contains("lower than conf, which this backend requires (--policy)")
    );
    reconfigure(&mut net.varpds[0], &config("'conf'", &key));
    wait_vifs(&net.varpds[0], "active");
    wait_passes(&mut one, &mut two, 1000);
    wait_passes(&mut two, &mut one, 2000);
    assert_eq!(sniffer.count().1, 0);
}

#[test]
fn vnets_that_are_not_listed_are_refused() {
    let listed = "[security]\nvnets = 'listed'\n[vnet.42]\n".to_owned();
    let Some(net) = Net::with_configs("vnets = 'listed'", &[listed]) else { return };
    let varpd = &net.varpds[0];
    Nic::start("g1", vif(42, 1), varpd).assert_silent();
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-vnet"));
    command.args(["--vnet", "43", "--mac", "52:54:00:00:00:01", "--varpd"]).arg(&varpd.socket);
    let output = command.arg("--socket-path").arg(net.path().join("x.sock")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("[vnet.43]"), "{said}");
    assert_eq!(varpd_counter(varpd, "vifs_unlisted"), 1);
    assert_eq!(varpd_counter(varpd, "vifs_refused"), 1);
}

#[test]
fn hosts_that_see_a_vnet_otherwise_are_named_once_a_minute() {
    let keys = Keys::new();
    let configs = [
        keys.config("conf", "right", &[("use", "a1")], ""),
        String::new(),
        keys.config("conf", "other", &[("use", "b2")], ""),
    ];
    let Some(net) = Net::with_configs("hosts with another policy, another key", &configs) else {
        return;
    };
    let mut nics: Vec<Nic> = (0..3)
        .map(|host| {
            Nic::start(&format!("g{host}"), vif(42, host + 1), &net.varpds[usize::from(host)])
        })
        .collect();
    let named = |host: usize, other: &str, how: &str| {
        let text = format!("vnet 42: host {other} sends {how}");
        net.varpds[host].process.log().matches(&text).count()
    };
    let all = [
        (0, "192.0.2.2", "without a tag"),
        (0, "192.0.2.3", "with a key that is unknown here"),
        (1, "192.0.2.1", "with a tag"),
        (1, "192.0.2.3", "with a tag"),
        (2, "192.0.2.1", "with a key that is unknown here"),
        (2, "192.0.2.2", "without a tag"),
    ];
    wait_until("each host names the others", SOON, || {
        for (nic, to) in nics.iter_mut().zip([2, 3, 1]) {
            nic.send(mac(to), 1);
        }
        all.iter().all(|(host, other, how)| named(*host, other, how) > 0)
    });
    // Group frames come without having been asked for.
    wait_until("backends name hosts, too", SOON, || {
        nics[1].send(BROADCAST, 2);
        nics[2].send(BROADCAST, 2);
        let said = |nic: &Nic, text: &str| nic.backend.process.log().contains(text);
        said(&nics[0], "vnet 42: host 192.0.2.2 sends plain frames")
            && said(&nics[1], " sends sealed frames, but has policy none here")
    });
    for (host, other, how) in all {
        assert_eq!(named(host, other, how), 1, "{host}: {other} {how}");
    }
}

#[test]
fn an_old_key_is_not_given_up_while_a_host_uses_it() {
    let keys = Keys::new();
    let more = "[timers]\nlifetime = 2\n";
    let file = |name: &str| keys.config("conf", name, &[("use", "a1")], more);
    let configs = [file("a"), file("b")];
    let Some(net) = Net::with_configs("the last step of a rotation", &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    one.introduce(&mut two);
    let reads = |host: usize| varpd_counter(&net.varpds[host], "key_files_read");
    let write = |name: &str, host: usize, lines: &[(&str, &str)]| {
        let before = reads(host);
        let path = keys.write(name, lines);
        wait_until("the file is read", SOON, || reads(host) > before);
        path
    };
    write("b", 1, &[("use", "a1"), ("next", "b2")]);
    let path = write("a", 0, &[("use", "b2"), ("old", "a1")]);
    let rotate = |further: &[&str]| -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vnet"));
        command.arg("--socket").arg(&net.varpds[0].socket).args(["key", "rotate"]).arg(&path);
        command.args(further).output().unwrap()
    };
    let refused = rotate(&[]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("the old key stays: on vnet 42"), "{said}");
    write("b", 1, &[("use", "b2"), ("old", "a1")]);
    wait_until("the other host has the new key", SETTLED, || {
        one.send(mac(2), 7);
        assert_eq!(two.receive(mac(1)), 7);
        rotate(&[]).status.success()
    });
    assert!(!std::fs::read_to_string(&path).unwrap().contains("old "));
    let shown = net.varpds[0].show("vnets")[0].clone();
    assert!(shown["key"].as_str().unwrap().len() == 39 && shown["others"] == 0, "{shown}");
}
