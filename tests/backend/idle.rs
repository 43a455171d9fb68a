//! What a NIC costs that nobody uses.

use std::process::Command;
use std::time::Duration;

use vnet::metrics::VifCounter;
use vnet::sys::clock;

use crate::nic::{BROADCAST, Nic, mac, vif};
use crate::support::{pause, step, wait_until};
use crate::{Net, SOON};

/// How long the processor time is watched.
const WATCHED: Duration = Duration::from_secs(3);
/// Memory of a backend's own, at most.
const MOST_KIB: u64 = 8 << 10;

/// Two NICs that have exchanged frames, so that all that is ever allocated is.
#[test]
fn an_idle_backend_costs_nothing() {
    let Some(net) = Net::new("an idle backend", 2) else { return };
    let mut nics =
        [1, 2].map(|n| Nic::start(&format!("g{n}"), vif(42, n), &net.varpds[usize::from(n) - 1]));
    // So that on a busy machine, too, the backends have handled the last frame before they are measured.
    nics.iter().for_each(|nic| hurry(nic.backend.process.pid()));
    let [a, b] = &mut nics;
    for n in 0..2000 {
        a.send(mac(2), n);
        assert_eq!(b.receive(mac(1)), n);
        b.send(BROADCAST, n);
        assert_eq!(a.receive(mac(2)), n);
    }
    let ticks = |nics: &[Nic; 2]| [0, 1].map(|n: usize| nics[n].backend.process.cpu_ticks());
    let begin = clock::mono();
    let before = ticks(&nics);
    while clock::mono() - begin < WATCHED {
        pause();
    }
    assert_eq!(ticks(&nics), before, "processor time within {WATCHED:?}");
    for nic in &nics {
        let kib = nic.backend.process.private_kib();
        step(&format!("{:?}: {kib} KiB of its own", nic.vif));
        assert!(kib <= MOST_KIB, "{kib} KiB");
    }
}

/// Lets this thread and all of a process run before others, where that is allowed: on a busy
/// machine frames come slowly, and then they are rightly not looked for.
pub(crate) fn hurry(process: u32) {
    let chrt = |arguments: &str, id: String| {
        let _ = Command::new("chrt").args(arguments.split(' ')).arg(id).output();
    };
    chrt("--rr --all-tasks --pid 1", process.to_string());
    chrt("--rr --reset-on-fork --pid 1", nix::unistd::gettid().to_string());
}

/// Looking for frames ends with the frames.
#[test]
fn an_idle_backend_that_polls_costs_nothing() {
    let Some(net) = Net::new("an idle backend that polls", 2) else { return };
    let start = |n: u8| {
        let varpd = &net.varpds[usize::from(n) - 1];
        let polling = ["--busy-poll", "1000"];
        Nic::start_with(&format!("g{n}"), vif(42, n), varpd, Nic::options(), &polling)
    };
    let mut nics = [start(1), start(2)];
    nics.iter().for_each(|nic| hurry(nic.backend.process.pid()));
    let [a, b] = &mut nics;
    let paid = |nic: &Nic, host: usize| nic.counters(&net.varpds[host]).get(VifCounter::polls_paid);
    wait_until("looking has paid", SOON, || {
        for n in 0..1000 {
            a.send(mac(2), n);
            assert_eq!(b.receive(mac(1)), n);
            b.send(mac(1), n);
            assert_eq!(a.receive(mac(2)), n);
        }
        paid(a, 0) > 0 && paid(b, 1) > 0
    });
    let ticks = |nics: &[Nic; 2]| [0, 1].map(|n: usize| nics[n].backend.process.cpu_ticks());
    let begin = clock::mono();
    let before = ticks(&nics);
    while clock::mono() - begin < WATCHED {
        pause();
    }
    assert_eq!(ticks(&nics), before, "processor time within {WATCHED:?}");
    let [a, b] = &mut nics;
    a.send(mac(2), 1);
    assert_eq!(b.receive(mac(1)), 1, "a frame wakes those that sleep");
}

/// Questions that nobody hears are kept, not called out again and again.
#[test]
fn a_backend_without_varpd_waits_in_peace() {
    let Some(mut net) = Net::new("a backend without varpd", 1) else { return };
    let mut nic = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    net.varpds[0].kill();
    nic.send(mac(9), 1);
    nic.wait_sent();
    let ticks = |nic: &Nic| nic.backend.process.cpu_ticks();
    let begin = clock::mono();
    let before = ticks(&nic);
    while clock::mono() - begin < WATCHED {
        pause();
    }
    // It calls for varpd twice a second. A tick is 10 ms.
    let spent = ticks(&nic) - before;
    assert!(spent <= 10, "{spent} ticks of processor time within {WATCHED:?}");
}
