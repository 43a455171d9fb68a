//! What a NIC costs that nobody uses.

use std::time::Duration;

use vnet::sys::clock;

use crate::Net;
use crate::nic::{BROADCAST, Nic, mac, vif};
use crate::support::{pause, step};

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
