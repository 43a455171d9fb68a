//! Launches that cannot succeed: an exit status and one clear line for each.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vnet::sys::clock;

use crate::driver::Driver;
use crate::nic::{Nic, mac, vif};
use crate::support::step;
use crate::{Net, SOON};

/// Somebody who is neither root nor in one of its groups.
const NOBODY: u32 = 65_534;
const VIF: &str = "--vnet 42 --mac 52:54:00:00:00:01";

/// A launch: which sockets it is told of, and who does it.
struct Launch<'a> {
    socket: &'a Path,
    varpd: &'a Path,
    arguments: &'a str,
    uid: u32,
}

impl Launch<'_> {
    /// Runs `program`, which has to end soon.
    fn run(&self, program: &Path) -> Output {
        let mut command = Command::new(program);
        command.arg("--socket-path").arg(self.socket).arg("--varpd").arg(self.varpd);
        command.args(self.arguments.split(' ')).uid(self.uid).gid(self.uid);
        let begin = clock::mono();
        let output = command.output().unwrap();
        assert!(clock::mono() - begin < SOON, "it ends early");
        output
    }

    /// The launch fails with this status, and this is all that is said.
    fn fails(&self, program: &Path, status: i32, why: &str) {
        let output = self.run(program);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, format!("vhost-user-vnet: {why}\n"));
        assert_eq!(output.status.code(), Some(status), "{said}");
        assert!(output.stdout.is_empty());
        step(said.trim());
    }

    /// The command line is refused with status 2; this is said first.
    fn is_wrong(&self, program: &Path, why: &str) {
        let output = self.run(program);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.lines().next(), Some(format!("error: {why}").as_str()));
        assert_eq!(output.status.code(), Some(2), "{said}");
        step(&format!("error: {why}"));
    }
}

/// A directory that everybody can enter, with the program in it.
fn public_program(net: &Net) -> PathBuf {
    fs::set_permissions(net.path(), Permissions::from_mode(0o755)).unwrap();
    let program = net.path().join("vhost-user-vnet");
    fs::copy(env!("CARGO_BIN_EXE_vhost-user-vnet"), &program).unwrap();
    program
}

#[test]
fn launches_that_cannot_succeed_say_why() {
    let Some(net) = Net::new("launch errors", 1) else { return };
    let program = public_program(&net);
    let varpd = net.varpds[0].socket.as_path();
    let socket = net.path().join("nic.sock");
    let launch = Launch { socket: &socket, varpd, arguments: VIF, uid: 0 };

    let absent = net.path().join("absent.sock");
    let name = absent.display();
    let without_varpd = Launch { varpd: &absent, ..launch };
    let reason = |why: &str| format!("cannot reach varpd at {name}: {why}; is it running?");
    without_varpd.fails(&program, 1, &reason("No such file or directory (os error 2)"));
    drop(UnixListener::bind(&absent).unwrap());
    let output = without_varpd.run(&program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(
        said.starts_with(&format!("vhost-user-vnet: cannot reach varpd at {name}: ")),
        "{said}"
    );
    let why = "Permission denied (os error 13)";
    let question = "may this user connect (varpd --socket-group)?";
    let why = format!("cannot reach varpd at {}: {why}; {question}", varpd.display());
    Launch { uid: NOBODY, ..launch }.fails(&program, 2, &why);

    let fails = |more: &str, why: &str| {
        Launch { arguments: &format!("{VIF} {more}"), ..launch }.fails(&program, 2, why);
    };
    fails("--mtu 1551", "an MTU of 1551 does not fit the underlay: 1550 is the most");
    fails("--socket-group no-such-group", "--socket-group no-such-group: no such group");
    for mac in ["53:54:00:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
        let why = "a group address or zero, which no NIC can have";
        let why = format!("invalid value '{mac}' for '--mac <MAC>': {why}");
        let arguments = format!("--vnet 42 --mac {mac}");
        Launch { arguments: &arguments, ..launch }.is_wrong(&program, &why);
    }
    let why = "vnet 1 is the physical network, which vnet does not serve";
    let why = format!("invalid value '1' for '--vnet <ID>': {why}");
    let arguments = "--vnet 1 --mac 52:54:00:00:00:01";
    Launch { arguments, ..launch }.is_wrong(&program, &why);
    let arguments = "--vnet 0 --mac 52:54:00:00:00:01";
    let why = "invalid value '0' for '--vnet <ID>': vnet id 0 is invalid";
    Launch { arguments, ..launch }.is_wrong(&program, why);
    let why = "the following required arguments were not provided:";
    Launch { arguments: "--vnet 42", ..launch }.is_wrong(&program, why);
    let arguments = format!("{VIF} --mtu 67");
    let why = "invalid value '67' for '--mtu <N>': 67 is not in 68..=65535";
    Launch { arguments: &arguments, ..launch }.is_wrong(&program, why);
    assert!(!socket.exists(), "nothing is left behind");
}

#[test]
fn a_path_is_taken_only_from_the_dead() {
    let Some(net) = Net::new("launches at a path that exists", 2) else { return };
    let program = Path::new(env!("CARGO_BIN_EXE_vhost-user-vnet"));
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let varpd = net.varpds[0].socket.as_path();
    let socket = one.backend.socket.clone();
    let taken = format!("{} is in use: another process listens on it", socket.display());
    // For another vif, and for the very same, by mistake twice.
    for (number, mac_3) in [(1, "03"), (2, "01")] {
        let arguments = format!("--vnet 42 --mac 52:54:00:00:00:{mac_3}");
        let launch = Launch { socket: &socket, varpd, arguments: &arguments, uid: 0 };
        launch.fails(program, 1, &taken);
        two.send(mac(1), number);
        assert_eq!(one.receive(mac(2)), number, "the first is served as before");
        one.send(mac(2), number);
        assert_eq!(two.receive(mac(1)), number);
    }

    let file = net.path().join("precious");
    fs::write(&file, "data").unwrap();
    let launch = Launch { socket: &file, varpd, arguments: VIF, uid: 0 };
    launch.fails(program, 2, &format!("{} exists and is not a socket", file.display()));
    assert_eq!(fs::read(&file).unwrap(), b"data");
    let nowhere = net.path().join("no-directory/nic.sock");
    let launch = Launch { socket: &nowhere, varpd, arguments: VIF, uid: 0 };
    let why = "No such file or directory (os error 2)";
    launch.fails(program, 2, &format!("can't listen on {}: {why}", nowhere.display()));
    two.send(mac(1), 3);
    assert_eq!(one.receive(mac(2)), 3, "the first is served as before");

    one.backend.process.kill();
    assert!(socket.exists(), "a killed one leaves its socket");
    one.backend.start_again();
    one.driver = Driver::connect(&socket, Nic::options()).unwrap();
    two.send(mac(1), 4);
    assert_eq!(one.receive(mac(2)), 4, "another takes its place");
}

#[test]
fn signals_that_mean_nothing_to_a_backend_are_ignored() {
    let Some(net) = Net::new("signals to a backend", 1) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    let pid = Pid::from_raw(one.backend.process.pid().try_into().unwrap());
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        kill(pid, signal).unwrap();
        one.introduce(&mut two);
    }
    one.backend.process.assert_running();
}
