//! What is left to the programs once they have started. That the layers hold is shown where they
//! are made (`vnet::sys::sandbox`); here, that they are on, and that everything works behind them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use vnet::metrics::VifCounter;

use crate::driver::{Control, Driver};
use crate::nic::{Nic, mac, vif};
use crate::support::process::Process;
use crate::support::vnet::{Backend, Listener};
use crate::support::wait_until;
use crate::{Net, SOON};

/// Somebody who is neither root nor in one of its groups.
const NOBODY: u32 = 65_534;

/// A field of proc(5)'s status.
fn field(process: &Process, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("{name} in {status}")).to_owned()
}

fn capabilities(process: &Process) -> u64 {
    let effective = u64::from_str_radix(&field(process, "CapEff"), 16).unwrap();
    assert_eq!(field(process, "CapPrm"), field(process, "CapEff"));
    effective
}

fn assert_filtered(process: &Process) {
    assert_eq!(field(process, "NoNewPrivs"), "1");
    assert_eq!(field(process, "Seccomp"), "2", "a filter");
}

#[test]
fn the_programs_are_confined_and_work() {
    let Some(net) = Net::new("confined programs", 2) else { return };
    let mut a = Nic::start("a", vif(42, 1), &net.varpds[0]);
    let mut b = Nic::start("b", vif(42, 2), &net.varpds[1]);
    a.send(mac(2), 1);
    assert_eq!(b.receive(mac(1)), 1);
    for nic in [&mut a, &mut b] {
        assert_eq!(capabilities(&nic.backend.process), 0);
        assert_filtered(&nic.backend.process);
        let socket = nic.backend.socket.clone();
        assert!(nic.backend.process.terminate(SOON).success());
        assert!(!socket.exists(), "it may remove its socket");
    }
    let [varpd, _] = net.varpds.as_slice() else { unreachable!("two hosts") };
    assert_eq!(capabilities(&varpd.process), 0);
    assert_filtered(&varpd.process);
}

#[test]
fn without_sandbox_it_says_so() {
    let Some(net) = Net::new("no sandbox", 1) else { return };
    let options = Nic::options();
    let nic = Nic::start_with("a", vif(42, 1), &net.varpds[0], options, &["--no-sandbox"]);
    assert_eq!(field(&nic.backend.process, "Seccomp"), "0");
    let log = nic.backend.process.log();
    assert!(log.contains("--no-sandbox: a guest that takes over this process"), "{log}");
}

/// All that a backend needs comes through varpd's socket: it may be anybody, and nowhere.
#[test]
fn a_backend_works_as_nobody_in_an_empty_namespace() {
    let Some(net) = Net::with(
        "a backend as nobody",
        2,
        crate::support::netns::Family::V4,
        "socket-mode = '0666'\n",
    ) else {
        return;
    };
    fs::set_permissions(net.path(), Permissions::from_mode(0o777)).unwrap();
    let program = net.path().join("vhost-user-vnet");
    fs::copy(env!("CARGO_BIN_EXE_vhost-user-vnet"), &program).unwrap();
    let socket = net.path().join("nobody.sock");
    let mut command = Command::new("unshare");
    command.args(["--net", "--setuid", &NOBODY.to_string(), "--setgid", &NOBODY.to_string()]);
    command.arg(&program).arg("--socket-path").arg(&socket);
    command.arg("--varpd").arg(&net.varpds[0].socket);
    command.args(["--vnet", "42", "--mac", "52:54:00:00:00:01", "--socket-mode", "0666"]);
    command.process_group(0);
    let process = Process::start("nobody", net.path(), &mut command);
    wait_until("the backend listens", SOON, || socket.exists());
    let mut driver = Driver::connect(&socket, Nic::options()).unwrap();
    let mut b = Nic::start("b", vif(42, 2), &net.varpds[1]);
    let frame = crate::nic::frame(mac(2), mac(1), 7, crate::nic::LEN);
    assert!(driver.queue_frame(0, &frame));
    driver.flush(0);
    assert_eq!(b.receive(mac(1)), 7);
    assert_eq!(field(&process, "Uid").split('\t').next(), Some("65534"));
    assert_eq!(capabilities(&process), 0);
}

/// A backend that connects to its frontend has no socket to remove, and no calls for files at all.
#[test]
fn a_backend_that_connects_takes_lanes_as_well() {
    let Some(net) = Net::new("lanes of backends that connect", 1) else { return };
    let join = |name: &str, number: u8| {
        let socket = net.path().join(format!("{name}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let vif = vif(42, number);
        let backend = Backend::start(name, vif, Listener::Qemu, &net.varpds[0]);
        let (stream, _) = listener.accept().unwrap();
        let mut driver = Driver::new(Control::new(stream), Nic::options());
        driver.negotiate().unwrap();
        driver.start().unwrap();
        let nic = Nic { driver, backend, vif };
        nic.wait_state("active", &net.varpds[0]);
        nic
    };
    let (mut one, mut two) = (join("g1", 1), join("g2", 2));
    one.introduce(&mut two);
    wait_until("frames take lanes", SOON, || {
        one.introduce(&mut two);
        one.counters(&net.varpds[0]).get(VifCounter::tx_local_frames) > 0
    });
    one.backend.process.assert_running();
    two.backend.process.assert_running();
}
