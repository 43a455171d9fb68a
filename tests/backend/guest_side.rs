//! What an operator can set up wrongly at a guest's side, and what the backend says of it.

use vnet::offload::features::Offloads;

use crate::driver::{Control, Driver, Options, request};
use crate::nic::{BROADCAST, LEN, Nic, frame, mac, vif};
use crate::support::vnet::{Backend, Listener};
use crate::support::wait_until;
use crate::{Net, SOON};

const UNSHARED: &str = "guest memory is not shared";

fn said(backend: &Backend, what: &str) -> usize {
    backend.process.log().matches(what).count()
}

/// With EVENT_IDX a driver kicks each of its rings once, and then never again.
#[test]
fn memory_that_is_not_shared_is_noticed_at_the_first_kick() {
    let Some(net) = Net::new("guest memory that is private", 1) else { return };
    let backend = Backend::start("g1", vif(42, 1), Listener::Backend, &net.varpds[0]);
    let options = Options { is_private: true, ..Nic::options() };
    let mut driver = Driver::connect(&backend.socket, options).unwrap();
    assert_eq!(driver.pairs[0].rx.kicks, 1);
    wait_until("the backend says so", SOON, || said(&backend, UNSHARED) > 0);
    assert!(backend.process.log().contains("share=on"), "and what to do");
    for _ in 0..10 {
        driver.pairs[0].rx.kick();
        driver.pairs[0].tx.kick();
    }
    driver.control.sync().unwrap();
    assert_eq!(said(&backend, UNSHARED), 1);
}

/// A frontend may kick rings that its driver has not filled yet: one whose interface is down, for example.
#[test]
fn a_kick_before_the_ring_is_filled_is_no_sign_of_private_memory() {
    let Some(net) = Net::new("kicks of empty rings", 1) else { return };
    let backend = Backend::start("g1", vif(42, 1), Listener::Backend, &net.varpds[0]);
    let control = Control::connect(&backend.socket).unwrap();
    let mut driver = Driver::new(control, Nic::options());
    driver.negotiate().unwrap();
    driver.memory.write(driver.scratch + 100, b"a guest has booted");
    driver.control.set_u64(request::SET_FEATURES, driver.features).unwrap();
    driver.send_memory().unwrap();
    for index in 0..2 {
        driver.start_ring(index).unwrap();
    }
    for _ in 0..3 {
        driver.queue(0).kick();
        driver.queue(1).kick();
    }
    driver.fill_rx(0);
    let mut one = Nic { driver, backend, vif: vif(42, 1) };
    one.wait_state("active", &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    one.introduce(&mut two);
    assert_eq!(said(&one.backend, UNSHARED), 0);
}

#[test]
fn a_guest_that_takes_another_mac_is_said_once_with_both() {
    let Some(net) = Net::new("a guest with another MAC", 1) else { return };
    let arguments = [&[][..], &["--source-mac", "drop"], &["--learn", "1"]];
    for (number, further) in (1..).zip(arguments) {
        let name = format!("g{number}");
        let varpd = &net.varpds[0];
        let mut nic = Nic::start_with(&name, vif(42, number), varpd, Nic::options(), further);
        let line = |nic: &Nic| said(&nic.backend, " sends from ");
        let before = line(&nic);
        // With --learn it has room for the first.
        for other in [0x77, 0x78, 0x79, 0x7a] {
            for n in 0..10 {
                nic.send_frame(&frame(BROADCAST, mac(other), n, LEN));
            }
        }
        nic.wait_sent();
        wait_until("the backend says so", SOON, || line(&nic) > before);
        assert_eq!(line(&nic), before + 1, "once");
        let log = nic.backend.process.log();
        let said = log.lines().find(|line| line.contains("sends from")).unwrap();
        let other =
            if further == ["--learn", "1"] { "52:54:00:00:00:78" } else { "52:54:00:00:00:77" };
        for part in [other, &nic.vif.mac(), "--learn"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}

#[test]
fn receive_offloads_are_not_offered_if_so_asked() {
    let Some(net) = Net::new("--no-receive-offloads", 1) else { return };
    let offered = |name: &str, mac, further: &[&str]| {
        let varpd = &net.varpds[0];
        let backend = Backend::start_with(name, vif(42, mac), Listener::Backend, varpd, further);
        let mut control = Control::connect(&backend.socket).unwrap();
        control.get_u64(request::GET_FEATURES).unwrap()
    };
    let all = offered("g1", 1, &[]);
    let plain = offered("g2", 2, &["--no-receive-offloads"]);
    assert_eq!(all & Offloads::ALL.bits(), Offloads::ALL.bits());
    assert_eq!(plain, all & !Offloads::RECEIVE.bits());
}
