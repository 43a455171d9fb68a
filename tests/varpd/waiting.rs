//! varpd that is started before the host has a place on the underlay.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::support::process::Process;
use super::support::wait_until;
use super::{Net, SOON, vnet};

const VARPD: &str = env!("CARGO_BIN_EXE_varpd");

/// varpd of host a with these arguments, and who hears when it is ready.
fn start(net: &Net, args: &[&str]) -> (Process, UnixDatagram) {
    let path = net.path("notify");
    let _ = std::fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut command = net.a().command(VARPD);
    command.arg("--socket").arg(net.path("s")).args(args).env("NOTIFY_SOCKET", &path);
    (super::spawn("early", net, &mut command), manager)
}

fn told(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    let n = manager.recv(&mut buffer).expect("the service manager is told something");
    String::from_utf8(buffer[..n].to_vec()).unwrap()
}

/// Waits for its complaint; nothing is served, and it ends when it is told to.
fn assert_waits(net: &Net, args: &[&str], why: &str) {
    let (mut varpd, manager) = start(net, args);
    let line = format!("waiting for an address on the underlay: {why}");
    wait_until(&line, SOON, || varpd.log().contains(&line));
    let text = told(&manager);
    assert!(text.starts_with("EXTEND_TIMEOUT_USEC=180000000\n"), "{text}");
    assert!(text.contains(&format!("STATUS=waiting: {why}")), "{text}");
    varpd.assert_running();
    assert!(!net.path("s").exists());
    assert!(varpd.terminate(Duration::from_secs(1)).success());
}

/// Waits until it serves at an address.
fn assert_serves(net: &Net, varpd: &Process, manager: &UnixDatagram, address: &str) {
    wait_until("it is ready", SOON, || {
        let text = told(manager);
        text.starts_with("READY=1\n") && text.contains(&format!("STATUS=at {address} on eth0"))
    });
    assert!(vnet(&net.path("s"), &["show", "vifs"]).status.success());
    assert!(varpd.log().contains("varpd: ready on eth0 at "));
}

#[test]
fn what_is_waited_for_is_named() {
    let Some(net) = Net::new("varpd: no place") else { return };
    assert_waits(&net, &["--underlay", "eth9"], "no interface 'eth9' (there are: lo 127.0.0.1");
    let address = ["--address", "192.0.2.77"];
    assert_waits(&net, &address, "no interface has the address 192.0.2.77 (there are: lo 127.0");
    net.a().ip("link set eth0 down");
    assert_waits(&net, &["--underlay", "eth0"], "interface 'eth0' is down");
    assert_waits(&net, &[], "no interface that is up has an IPv4 address");
}

#[test]
fn neither_another_family_nor_a_link_local_address_is_taken_before_the_address_comes() {
    let Some(net) = Net::new("varpd: before its address") else { return };
    net.a().ip("-4 address flush dev eth0");
    let (varpd, manager) = start(&net, &["--underlay", "eth0"]);
    let text = told(&manager);
    let why = "interface 'eth0' has no IPv4 address (with --ipv6: 2001:db8::1)";
    assert!(text.contains(&format!("STATUS=waiting: {why}")), "{text}");
    net.a().ip("-6 address delete 2001:db8::1/64 dev eth0");
    wait_until("a link-local address is not taken", SOON, || {
        varpd.log().contains("no IPv4 address (only for one link: --address fe80::")
    });
    assert!(!varpd.log().contains("varpd: ready"));
    net.a().ip("address add 192.0.2.1/24 dev eth0");
    assert_serves(&net, &varpd, &manager, "192.0.2.1");
    drop(varpd);

    let (varpd, manager) = start(&net, &["--underlay", "eth0", "-6"]);
    let text = told(&manager);
    assert!(text.contains("no IPv6 address (without --ipv6: 192.0.2.1)"), "{text}");
    // Nobody may use it before it is known to be nobody else's.
    net.a().ip("address add 2001:db8::1/64 dev eth0");
    assert_serves(&net, &varpd, &manager, "2001:db8::1");
}

#[test]
fn an_interface_that_comes_later_is_taken() {
    let Some(net) = Net::new("varpd: before its interface") else { return };
    net.underlay.unplug(0);
    let (varpd, manager) = start(&net, &[]);
    assert!(told(&manager).contains("no interface that is up has an IPv4 address"));
    net.underlay.plug_in_again(0);
    net.a().ip("link set eth0 up");
    net.a().ip("address add 192.0.2.1/24 dev eth0");
    assert_serves(&net, &varpd, &manager, "192.0.2.1");
}
