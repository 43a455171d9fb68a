//! The underlay changes under running programs: host a gets another address, its interface is made again, or
//! is called otherwise, or a bridge takes its address. Frontends notice nothing, and frames pass again.
//!
//! ```text
//!     guest 1  guest 3  (guest 4)     guest 2
//!        |        |        |             |
//!      host a ----+--------+           host b
//!        | eth0  192.0.2.1 and others     | 192.0.2.2
//!     [============ the underlay ============]
//! ```

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use vnet::metrics::VifCounter;
use vnet::sys::clock;

use crate::Net;
use crate::driver::Options;
use crate::nic::{BROADCAST, ETHER_TYPE, Nic, mac, vif};
use crate::secured::{Keys, varpd_counter};
use crate::support::netns::Host;
use crate::support::vnet::Varpd;
use crate::support::{pause, step, wait_until};

/// Frames pass again within 10 s, and more on a machine that has much to do.
const LIMIT: Duration = Duration::from_secs(40);
/// How long a frame may take before the next is sent.
const SHORT: Duration = Duration::from_millis(50);

/// Guests 1 and 3 on host a, guest 2 on host b.
struct World {
    one: Nic,
    two: Nic,
    three: Nic,
    net: Net,
    /// Removed after the programs that read them have ended.
    _keys: Keys,
}

impl World {
    fn new(what: &str, policy: &str) -> Option<Self> {
        let keys = Keys::new();
        let config = match policy {
            "none" => String::new(),
            "ipv6" => "ipv6 = true\n".to_owned(),
            _ => keys.config(policy, "k", &[("use", "a1")], ""),
        };
        let net = Net::on_interfaces(&format!("{what}, {policy}"), 2, &config)?;
        let several = Options { pairs: 2, ..Nic::options() };
        let further = ["--queue-pairs", "2"];
        let one = Nic::start_with("g1", vif(42, 1), &net.varpds[0], several, &further);
        let two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
        let three = Nic::start("g3", vif(42, 3), &net.varpds[0]);
        let mut world = Self { one, two, three, net, _keys: keys };
        world.flow();
        Some(world)
    }

    fn host(&self) -> &Host {
        self.net.underlay.host(0)
    }

    fn varpd(&self) -> &Varpd {
        &self.net.varpds[0]
    }

    /// Waits until frames to one and to all pass between the hosts, and within host a.
    fn flow(&mut self) {
        let begin = clock::mono();
        let Self { one, two, three, .. } = self;
        for to in [mac(2), mac(3), BROADCAST] {
            let receiver = if to == mac(3) { &mut *three } else { &mut *two };
            wait_passes(one, receiver, to);
        }
        for (receiver, to) in [(one, mac(1)), (three, BROADCAST)] {
            wait_passes(two, receiver, to);
        }
        step(&format!("frames pass after {:?}", clock::mono() - begin));
    }

    /// Where guest 1 is, as its own varpd says. It is nowhere for a moment if an address was gone again before
    /// sockets could be opened there: then its backend registers once more.
    fn try_place(&self) -> Option<String> {
        let rows = self.varpd().show("vifs");
        let is_it = |row: &&serde_json::Value| row["mac"] == vif(42, 1).mac();
        let row = rows.as_array().unwrap().iter().find(is_it)?;
        Some(row["coa"].as_str().unwrap().to_owned())
    }

    fn place(&self) -> String {
        self.try_place().expect("the vif of guest 1")
    }

    fn wait_place(&self, address: &str) {
        wait_until(&format!("guest 1 is at {address}"), LIMIT, || {
            self.try_place().is_some_and(|place| place.contains(&format!("{address}:")))
        });
    }

    fn wait_log(&self, text: &str) {
        wait_until(&format!("varpd says: {text}"), LIMIT, || {
            self.varpd().process.log().contains(text)
        });
    }

    /// A backend that comes now is served like the others.
    fn take_newcomer(&mut self) {
        let mut four = Nic::start("g4", vif(42, 4), &self.net.varpds[0]);
        wait_passes(&mut four, &mut self.two, mac(2));
        wait_passes(&mut self.two, &mut four, mac(4));
    }

    /// Keys derive from names: had a frame been sealed with a key of an old one, the receiver would say so.
    fn assert_sealed_anew(&self) {
        for (host, nic) in [(0, &self.one), (1, &self.two)] {
            let refused = self.net.counters(host, nic.vif).get(VifCounter::rx_drop_auth);
            assert_eq!(refused, 0, "guest {}", nic.vif.mac);
        }
    }

    /// Backends and varpd have run all the time.
    fn assert_whole(mut self) {
        for nic in [&mut self.one, &mut self.two, &mut self.three] {
            nic.backend.process.assert_running();
            let counters = nic.counters(&self.net.varpds[usize::from(nic.vif.mac == 2)]);
            assert_eq!(counters.get(VifCounter::guest_connects), 1);
        }
        self.net.varpds.iter_mut().for_each(|varpd| varpd.process.assert_running());
    }
}

/// Sends frames until one of them arrives.
fn wait_passes(from: &mut Nic, receiver: &mut Nic, to: [u8; 6]) {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let first = NEXT.load(Ordering::Relaxed);
    wait_until(&format!("frames of {:?} pass to {to:x?}", from.vif), LIMIT, || {
        from.send(to, NEXT.fetch_add(1, Ordering::Relaxed));
        while let Some(frame) = next_of(receiver) {
            let number = u32::from_be_bytes(frame[14..18].try_into().unwrap());
            let is_ours = frame[..6] == to && frame[6..12] == from.mac();
            if is_ours && frame[12..14] == ETHER_TYPE && number >= first {
                return true;
            }
        }
        false
    });
}

/// The next frame on any queue pair, if one comes soon.
fn next_of(nic: &mut Nic) -> Option<Vec<u8>> {
    let until = clock::mono() + SHORT;
    loop {
        let mut pairs = 0..nic.driver.pairs.len();
        let arrived = pairs.find_map(|pair| nic.driver.recv_packet(pair, Duration::ZERO));
        if arrived.is_some() || clock::mono() >= until {
            return arrived.map(|(_, frame)| frame);
        }
        pause();
    }
}

fn on_each_policy(what: &str, test: impl Fn(&mut World)) {
    for policy in ["none", "conf"] {
        let Some(mut world) = World::new(what, policy) else { return };
        test(&mut world);
        world.flow();
        world.assert_sealed_anew();
        world.take_newcomer();
        world.assert_whole();
    }
}

#[test]
fn a_host_with_another_address_is_followed() {
    on_each_policy("renumbered", |world| {
        world.host().ip("address delete 192.0.2.1/24 dev eth0");
        world.host().ip("address add 192.0.2.77/24 dev eth0");
        world.wait_place("192.0.2.77");
        world.wait_log("the host has moved to 192.0.2.77 on eth0, before at 192.0.2.1");
        world.flow();
        assert_eq!(varpd_counter(world.varpd(), "underlay_moves"), 1);
        // Without an address for a moment, as with DHCP.
        world.host().ip("address flush dev eth0");
        world
            .wait_log("the underlay is gone, waiting for it: interface 'eth0' has no IPv4 address");
        world.host().ip("address add 192.0.2.78/24 dev eth0");
        world.wait_place("192.0.2.78");
    });
}

#[test]
fn a_host_with_another_ipv6_address_is_followed() {
    let Some(mut world) = World::new("renumbered", "ipv6") else { return };
    world.host().ip("address delete 2001:db8::1/64 dev eth0");
    world.wait_log("interface 'eth0' has no IPv6 address (without --ipv6: 192.0.2.1)");
    // It is used when the kernel knows that no other host has it.
    world.host().ip("address add 2001:db8::77/64 dev eth0");
    world.wait_place("[2001:db8::77]");
    world.flow();
    world.net.underlay.unplug(0);
    world.net.underlay.plug_in_again(0);
    world.host().ip("link set eth0 up");
    world.host().ip("address add 2001:db8::77/64 dev eth0 nodad");
    world
        .wait_log("2001:db8::77 is on eth0 now, before on eth0: joined the multicast groups there");
    world.flow();
    world.take_newcomer();
    world.assert_whole();
}

#[test]
fn an_address_that_changes_twice_in_a_row_is_followed() {
    on_each_policy("renumbered twice", |world| {
        for address in ["192.0.2.77", "192.0.2.1", "192.0.2.78"] {
            world.host().ip("address flush dev eth0");
            world.host().ip(&format!("address add {address}/24 dev eth0"));
        }
        world.wait_place("192.0.2.78");
        world.flow();
        // Back to one that the others have known.
        world.host().ip("address flush dev eth0");
        world.host().ip("address add 192.0.2.1/24 dev eth0");
        world.wait_place("192.0.2.1");
    });
}

#[test]
fn an_interface_that_is_made_again_is_joined() {
    on_each_policy("the interface is made again", |world| {
        let before = world.place();
        world.net.underlay.unplug(0);
        world.wait_log("the underlay is gone, waiting for it: no interface 'eth0'");
        world.net.underlay.plug_in_again(0);
        world.host().ip("address add 192.0.2.1/24 dev eth0");
        world.host().ip("link set eth0 up");
        world.wait_log(
            "192.0.2.1 is on eth0 now, before on eth0: joined the multicast groups there",
        );
        world.flow();
        assert_eq!(world.place(), before, "vifs keep their sockets");
        assert_eq!(varpd_counter(world.varpd(), "underlay_joins"), 1);
        // With another address at once.
        world.net.underlay.unplug(0);
        world.net.underlay.plug_in_again(0);
        world.host().ip("address add 192.0.2.77/24 dev eth0");
        world.host().ip("link set eth0 up");
        world.wait_place("192.0.2.77");
    });
}

#[test]
fn an_interface_with_another_name_is_known() {
    on_each_policy("the interface is renamed", |world| {
        let before = world.place();
        world.host().ip("link set eth0 down");
        world.host().ip("link set eth0 name wan0");
        world.host().ip("link set wan0 up");
        world.wait_log("interface eth0 is now called wan0");
        world.wait_log("the underlay's interface is now wan0, but the configuration says 'eth0'");
        world.flow();
        assert_eq!(world.place(), before);
    });
}

#[test]
fn a_bridge_that_takes_the_address_is_joined() {
    on_each_policy("a bridge takes the address", |world| {
        let before = world.place();
        let host = world.host();
        host.ip("link add br0 mtu 1600 type bridge forward_delay 0 mcast_snooping 0");
        host.ip("link set br0 up");
        host.ip("address delete 192.0.2.1/24 dev eth0");
        host.ip("link set eth0 master br0");
        host.ip("address add 192.0.2.1/24 dev br0");
        world
            .wait_log("192.0.2.1 is on br0 now, before on eth0: joined the multicast groups there");
        world.flow();
        assert_eq!(world.place(), before, "vifs keep their sockets");
        // And by DHCP another one.
        world.host().ip("address flush dev br0");
        world.host().ip("address add 192.0.2.77/24 dev br0");
        world.wait_place("192.0.2.77");
    });
}

/// What is kept for a backend moves with the host.
#[test]
fn a_backend_that_comes_back_after_the_host_was_renumbered_is_served() {
    on_each_policy("a backend is away meanwhile", |world| {
        world.three.backend.process.kill();
        world.host().ip("address delete 192.0.2.1/24 dev eth0");
        world.host().ip("address add 192.0.2.77/24 dev eth0");
        world.wait_place("192.0.2.77");
        world.three.backend.start_again();
        world.three.reconnect();
        world.three.wait_state("active", world.varpd());
        world.flow();
        let log = world.varpd().process.log();
        assert!(log.contains("(resumed)") && !log.contains("is forgotten"), "{log}");
    });
}

#[test]
fn without_an_address_new_backends_are_told_why() {
    let Some(mut world) = World::new("no address", "none") else { return };
    world.host().ip("address flush dev eth0");
    world.wait_log("the underlay is gone");
    let arguments = ["--vnet", "42", "--mac", "52:54:00:00:00:09", "--socket-path"];
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vhost-user-vnet"))
        .args(arguments)
        .arg(world.net.path().join("nine.sock"))
        .arg("--varpd")
        .arg(&world.varpd().socket)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    let why = "this host has no place on the underlay now: interface 'eth0' has no IPv4 address";
    assert!(!output.status.success() && text.contains(why), "{text}");
    world.host().ip("address add 192.0.2.1/24 dev eth0");
    world.wait_log("the underlay is there again");
    world.flow();
    world.assert_whole();
}
