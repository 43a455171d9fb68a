//! Hosts tell each other of themselves: `vnet show hosts`, and the longest datagrams of group frames.

use serde_json::Value;
use vnet::wire::control::Event;

use super::keys::Keys;
use super::peer::{ACTIVE, Backend, Peer, register};
use super::support::clocks::Clock;
use super::support::netns::{Family, Host};
use super::support::wait_until;
use super::{BOTH, Net, SOON, Varpd, key, vnet};

/// The rows about a host.
fn rows(varpd: &Varpd, host: &str) -> Vec<Value> {
    let mut rows = varpd.show("hosts");
    rows.retain(|row| row["host"] == host);
    rows
}

/// The note in the only row about a host, which is to appear soon and to be like this.
fn wait_for_note(varpd: &Varpd, host: &str, wanted: impl Fn(&str) -> bool) -> Value {
    let mut last = Vec::new();
    wait_until(&format!("the note on {host} is as expected"), SOON, || {
        last = rows(varpd, host);
        last.len() == 1 && last[0]["note"].as_str().is_some_and(&wanted)
    });
    last.remove(0)
}

fn is_ok(note: &str) -> bool {
    note == "ok"
}

/// A backend that may be given the sockets of several groups.
fn join(varpd: &Varpd) -> Peer {
    let peer = Peer::connect(&varpd.socket);
    peer.send(&register(key(2), ACTIVE));
    peer.claimed();
    peer
}

#[test]
fn hosts_that_are_set_up_alike_are_shown_with_what_they_say() {
    for family in BOTH {
        let Some(net) = Net::new("varpd: two hosts of one kind") else { return };
        let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
        let _one = Backend::register(&a.socket, key(1), ACTIVE);
        let _two = Backend::register(&b.socket, key(2), ACTIVE);
        let _three = Backend::register(&b.socket, key(3), ACTIVE);
        let host = net.b().address(family).to_string();
        wait_until("the vnet in common is known", SOON, || {
            rows(&a, &host).first().is_some_and(|row| row["vnet"] == 42)
        });
        let row = wait_for_note(&a, &host, is_ok);
        assert_eq!(row["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(row["longest"], 1400, "{row}");
        assert!(row["group"].as_f64().is_some_and(|ago| ago < 10.0), "{row}");
        assert!(row["clock"].as_f64().is_some_and(|ahead| ahead.abs() < 1.0), "{row}");
        wait_until("both vifs are counted", SOON, || rows(&a, &host)[0]["vifs"] == 2);
        assert_eq!(a.counter("hosts_now"), 1);
        let shown = vnet(&a.socket, &["show", "hosts", "--vnet", "42"]);
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(text.starts_with("HOST") && text.lines().count() == 2, "{text}");
        assert_eq!(vnet(&a.socket, &["show", "hosts", "--vnet", "43"]).status.code(), Some(3));
        assert_eq!(
            vnet(&a.socket, &["show", "hosts", "--mac", "2:0:0:0:0:1"]).status.code(),
            Some(2)
        );
    }
}

#[test]
fn a_host_with_another_policy_or_key_is_shown_in_words() {
    let Some(net) = Net::new("varpd: hosts that do not agree") else { return };
    let keys = Keys::new(&net);
    let a = net.varpd(net.a(), Family::V4, &keys.config(""));
    let _one = Backend::register(&a.socket, key(1), ACTIVE);
    let (here, there) = ("192.0.2.1", "192.0.2.2");
    let mut b = net.varpd(net.b(), Family::V4, "");
    let two = Backend::register(&b.socket, key(2), ACTIVE);
    wait_for_note(&a, there, |note| note == "not proved (policy none, here conf)");
    wait_for_note(&b, here, |note| note == "policy conf, here none");
    drop(two);
    b.process.kill();
    let others = Keys::named(&net, "keys-b");
    let mut b = net.varpd(net.b(), Family::V4, &others.config(""));
    let two = Backend::register(&b.socket, key(2), ACTIVE);
    wait_for_note(&a, there, |note| note == "not proved (another key)");
    wait_for_note(&b, here, |note| note == "not proved (another key)");
    drop(two);
    b.process.kill();
    let config = keys.config("group-cipher = 'chacha20-poly1305'\n");
    let b = net.varpd(net.b(), Family::V4, &config);
    let _two = Backend::register(&b.socket, key(2), ACTIVE);
    wait_for_note(&a, there, |note| note == "cipher chacha20-poly1305, here aes-gcm");
    wait_until("varpd warns of it", SOON, || {
        a.process.log().contains("give both hosts the same group-cipher")
    });
}

#[test]
fn a_host_that_skips_a_step_of_the_change_of_groups_is_warned_of() {
    let Some(net) = Net::new("varpd: a step skipped") else { return };
    let a = net.varpd(net.a(), Family::V4, "groups = ['one']\n");
    let mut b = net.varpd(net.b(), Family::V4, "groups = ['one', 'vnet']\n");
    let _one = Backend::register(&a.socket, key(1), ACTIVE);
    let two = join(&b);
    wait_for_note(&a, "192.0.2.2", |note| note == "groups one,vnet (compatible)");
    assert!(!a.process.log().contains("a step of the change"));
    drop(two);
    b.process.kill();
    let b = net.varpd(net.b(), Family::V4, "groups = ['vnet', 'one']\n");
    let _two = join(&b);
    wait_for_note(&a, "192.0.2.2", |note| note == "sends to group 'vnet', not in groups here");
    wait_for_note(&b, "192.0.2.1", |note| {
        note == "group 'vnet' not in groups there, but sent to here"
    });
    for varpd in [&a, &b] {
        wait_until("varpd warns of it", SOON, || {
            varpd.process.log().contains("a step of the change of 'groups' was skipped")
        });
    }
}

#[test]
fn a_host_whose_clock_is_off_is_shown() {
    let Some(net) = Net::new("varpd: a clock that is off") else { return };
    let _clock = Clock::new(net.dir.path(), &["varpd-b"], 7200);
    let (a, b) =
        (net.varpd(net.a(), Family::V4, ""), net.varpd(net.b(), Family::V4, "realm = 5\n"));
    let row = wait_for_note(&a, "5/192.0.2.2", |note| note.contains(" s ahead"));
    assert!(row["clock"].as_f64().is_some_and(|ahead| (ahead - 7200.0).abs() < 5.0), "{row}");
    assert!(row["note"].as_str().unwrap().contains("realm 5, here 0"), "{row}");
    let row = wait_for_note(&b, "192.0.2.1", |note| note.contains(" s behind"));
    assert!(row["clock"].as_f64().is_some_and(|ahead| (ahead + 7200.0).abs() < 5.0), "{row}");
}

/// Neither hears anything else of the other.
#[test]
fn a_host_with_another_group_port_or_family_is_shown_and_warned_of() {
    let Some(net) = Net::new("varpd: hosts apart") else { return };
    let shown = |varpd: &Varpd, host: &str, wanted: &str| {
        let is_it = |row: &Value| row["note"].as_str().is_some_and(|note| note.starts_with(wanted));
        wait_until(&format!("{host}: {wanted}"), 3 * SOON, || {
            let rows = rows(varpd, host);
            rows.len() == 1 && is_it(&rows[0])
        });
    };
    for (family, config, there) in [
        (Family::V4, "group = '224.10.0.2'\n", "VARP group 224.10.0.2:1798, here 224.10.0.1:1798"),
        (Family::V4, "port = 1799\n", "VARP group 224.10.0.1:1799, here 224.10.0.1:1798"),
        (Family::V6, "", "IPv6 underlay, here IPv4"),
    ] {
        let mut a = net.varpd(net.a(), Family::V4, "");
        let mut b = net.varpd(net.b(), family, config);
        shown(
            &a,
            &net.b().address(family).to_string(),
            &format!("heard only by its beacon; {there}"),
        );
        shown(&b, "192.0.2.1", "heard only by its beacon; ");
        for varpd in [&a, &b] {
            let count = || varpd.process.log().matches("only by its beacon (").count();
            wait_until("varpd warns of it", SOON, || count() == 1);
            assert_eq!(varpd.counter("hosts_now"), 0);
        }
        a.process.kill();
        b.process.kill();
    }
    let a = net.varpd(net.a(), Family::V4, "");
    let b = net.varpd(net.b(), Family::V4, "group = '224.10.0.2'\nbeacon = false\n");
    wait_until("the other's beacons were sent", 3 * SOON, || a.counter("hello_tx_beacons") >= 2);
    // Who has beacons listens at the default group of the other family.
    let listens = |host: &Host| {
        let output = host.command("cat").arg("/proc/net/igmp6").output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("ff1500000000000000000000e00a0001")
    };
    assert_eq!([net.a(), net.b()].map(listens), [true, false]);
    assert_eq!((b.counter("hello_tx_beacons"), b.counter("hello_rx_beacons")), (0, 0));
}

/// A host that ends without vifs says so; one whose vifs live on is kept in the table.
#[test]
fn a_host_that_leaves_is_not_shown_any_more() {
    let Some(net) = Net::new("varpd: a host that leaves") else { return };
    let a = net.varpd(net.a(), Family::V4, "");
    let mut b = net.varpd(net.b(), Family::V4, "");
    wait_for_note(&a, "192.0.2.2", is_ok);
    b.process.terminate(SOON);
    wait_until("the host is gone", SOON, || rows(&a, "192.0.2.2").is_empty());
    let mut b = net.varpd(net.b(), Family::V4, "");
    let _two = Backend::register(&b.socket, key(2), ACTIVE);
    wait_until("its vif is counted", SOON, || {
        rows(&a, "192.0.2.2").first().is_some_and(|row| row["vifs"] == 1)
    });
    let left = a.counter("hello_left");
    b.process.terminate(SOON);
    b.restart(&net);
    wait_until("it is heard again", SOON, || {
        rows(&a, "192.0.2.2").first().is_some_and(|row| row["vifs"] == 0)
    });
    assert_eq!(a.counter("hello_left"), left);
}

#[test]
fn backends_are_told_of_the_narrowest_host_of_their_vnet() {
    let Some(net) = Net::new("varpd: the longest datagrams of groups") else { return };
    let keys = Keys::new(&net);
    net.b().ip("link set eth0 mtu 1300");
    for config in ["", &keys.config("")] {
        let a = net.varpd(net.a(), Family::V4, config);
        let mut b = net.varpd(net.b(), Family::V4, config);
        let one = Backend::register(&a.socket, key(1), ACTIVE);
        let two = Backend::register(&b.socket, key(2), ACTIVE);
        let told = |backend: &Backend| {
            backend.peer.find(|event| match event {
                Event::GroupLongest { longest } => Some(longest.known()),
                _ => None,
            })
        };
        assert_eq!(told(&one), Some(1300));
        let later = Backend::register(&a.socket, key(3), ACTIVE);
        assert_eq!(told(&later), Some(1300), "also one that comes later");
        drop(two);
        b.process.kill();
    }
}
