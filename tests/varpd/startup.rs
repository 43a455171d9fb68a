//! Starting and ending, and every way in which starting fails.

use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::support::netns::Family;
use super::support::wait_until;
use super::{Net, SOON, vnet};

const VARPD: &str = env!("CARGO_BIN_EXE_varpd");

/// Runs a command that must fail with this code; returns why it says it does. What it has logged before,
/// of memory that can't be locked, say, is no part of that.
fn complaint(command: &mut Command, code: i32) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text.split_inclusive('\n').filter(|line| !line.starts_with("[20")).collect()
}

#[test]
fn help_and_version_work_without_anything() {
    let help = Command::new(VARPD).arg("--help").output().unwrap();
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    for option in ["--config", "--socket", "--underlay", "--address", "--group", "--port", "1798"] {
        assert!(help.contains(option), "{option}");
    }
    let version = Command::new(VARPD).arg("--version").output().unwrap();
    assert_eq!(version.stdout, format!("varpd {}\n", env!("CARGO_PKG_VERSION")).as_bytes());
}

#[test]
fn every_failure_is_one_clear_line() {
    let Some(net) = Net::new("varpd: start errors") else { return };
    let own = net.path("own.sock");
    let says = |args: &[&str], code| {
        let mut command = net.a().command(VARPD);
        command.arg("--socket").arg(&own).args(args);
        let text = complaint(&mut command, code);
        assert!(text.starts_with("error: ") || text.lines().count() == 1, "{text}");
        assert!(!own.exists(), "{text}");
        text
    };
    let config = |text: &str| {
        let file = net.path("c.toml");
        std::fs::write(&file, text).unwrap();
        let text = says(&["--config", file.to_str().unwrap()], 2);
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };

    let text = says(&["--group", "192.0.2.9"], 2);
    assert!(text.contains("192.0.2.9 is not a multicast address"), "{text}");
    let text = says(&["--underlay", "eth0", "--group", "ff15::1"], 2);
    assert!(text.contains("group ff15::1 does not fit an IPv4 underlay"), "{text}");
    let text = says(&["--underlay", "eth0", "--socket-group", "no-such-group"], 2);
    assert_eq!(text, "varpd: socket-group: 'no-such-group': no such group\n");
    let text = says(&["--underlay", "eth0", "--user", "no-such-user"], 2);
    assert_eq!(text, "varpd: user 'no-such-user': no such user\n");
    let text = config("port = 1798\n\nunderlay = 7\n");
    assert!(text.contains("c.toml:3: invalid type"), "{text}");
    let keys = net.path("no-such-directory");
    let text =
        config(&format!("[security]\nkey-directory = '{}'\npolicy = 'conf'\n", keys.display()));
    assert!(text.contains("no-such-directory, the directory for keys"), "{text}");
    let text = config("ttl = 1\ngroup = '10.0.0.1'\n");
    assert!(text.contains("c.toml:2: 10.0.0.1 is not a multicast address"), "{text}");
    let text = says(&["--config", "/nonexistent.toml"], 2);
    assert_eq!(text, "varpd: /nonexistent.toml: No such file or directory (os error 2)\n");

    let varpd = net.varpd(net.a(), Family::V4, "");
    let text = says(&["--underlay", "eth0"], 1);
    assert_eq!(text, "varpd: 192.0.2.1:1798 is in use: is another varpd running?\n");
    let mut same_socket = net.a().command(VARPD);
    same_socket.args(["--underlay", "eth0", "--port", "1799", "--socket"]).arg(&varpd.socket);
    let text = complaint(&mut same_socket, 1);
    assert!(text.contains("another process is listening there"), "{text}");
    assert!(vnet(&varpd.socket, &["show", "vifs"]).status.success(), "the first is unharmed");

    std::fs::write(&own, "precious").unwrap();
    let mut on_file = net.a().command(VARPD);
    on_file.args(["--underlay", "eth0", "--port", "1799", "--socket"]).arg(&own);
    assert!(complaint(&mut on_file, 2).contains("exists and is not a socket"));
    assert_eq!(std::fs::read(&own).unwrap(), b"precious");
}

#[test]
fn without_permission_it_says_for_what() {
    let Some(net) = Net::new("varpd: permission") else { return };
    // The build's directory may be closed to other users.
    let program = net.path("varpd");
    std::fs::copy(VARPD, &program).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = net.a().command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        complaint(command.args(args), 2)
    };
    let text = as_nobody(&["--underlay", "eth0", "--socket", net.path("s").to_str().unwrap()]);
    assert!(text.contains("can't create the socket: Permission denied"), "{text}");
    let text = as_nobody(&["--underlay", "eth0", "--port", "17"]);
    assert!(
        text.contains("can't open the VARP socket at 192.0.2.1:17: Permission denied"),
        "{text}"
    );
}

#[test]
fn it_ends_quickly_and_leaves_nothing_behind() {
    let Some(net) = Net::new("varpd: end") else { return };
    let mut varpd = net.varpd(net.a(), Family::V4, "");
    assert!(varpd.socket.exists());
    let status = varpd.process.terminate(Duration::from_secs(1));
    assert!(status.success(), "{status}");
    assert!(!varpd.socket.exists());
    assert_eq!(vnet(&varpd.socket, &["show", "vifs"]).status.code(), Some(4));

    // One that is killed leaves its socket file, which the next replaces.
    let mut varpd = net.varpd(net.a(), Family::V4, "");
    varpd.process.kill();
    assert!(varpd.socket.exists());
    assert_eq!(vnet(&varpd.socket, &["show", "vifs"]).status.code(), Some(4));
    varpd.restart(&net);
    assert!(varpd.show("vifs").is_empty());
}

#[test]
fn the_service_manager_is_told() {
    let Some(net) = Net::new("varpd: ready notification") else { return };
    let path = net.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut command = net.a().command(VARPD);
    command.args(["--underlay", "eth0", "--socket"]).arg(net.path("s"));
    let _varpd = super::spawn("notifying", &net, command.env("NOTIFY_SOCKET", &path));
    let mut buffer = [0; 64];
    let n = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..n], b"READY=1\nSTATUS=at 192.0.2.1 on eth0\n");
    assert!(vnet(&net.path("s"), &["show", "vifs"]).status.success(), "it is ready");
}

/// Nothing is ready that will end in a moment.
#[test]
fn without_the_directory_of_keys_it_is_never_ready_and_says_what_to_do() {
    let Some(net) = Net::new("varpd: no directory of keys") else { return };
    let (path, file) = (net.path("notify"), net.path("c.toml"));
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let keys = net.path("no-keys");
    let at = keys.display();
    let start = |config: String| {
        std::fs::write(&file, config).unwrap();
        let mut command = net.a().command(VARPD);
        command.args(["--underlay", "eth0", "--socket"]).arg(net.path("s"));
        command.arg("--config").arg(&file).env("NOTIFY_SOCKET", &path);
        let text = complaint(&mut command, 2);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(manager.recv(&mut [0; 64]).is_err(), "nobody was told that it is ready");
        assert!(!net.path("s").exists());
        text
    };
    let all = format!("[security]\npolicy = 'conf'\nkey-directory = '{at}'\n");
    let one = format!("[vnet.42]\npolicy = 'conf'\nkey-file = '{at}/42.key'\n");
    for config in [&all, &one] {
        let text = start(config.clone());
        assert!(
            text.starts_with(&format!("varpd: {at}, the directory for keys of secured vnets")),
            "{text}"
        );
        assert!(text.contains(&format!("install -d -m 700 {at}")), "{text}");
    }
    std::fs::DirBuilder::new().mode(0o700).create(&keys).unwrap();
    let text = start(one);
    assert!(text.contains(&format!("its key {at}/42.key: No such file")), "{text}");
}

#[test]
fn signals_that_mean_nothing_to_it_are_ignored() {
    let Some(net) = Net::new("varpd: signals") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let pid = Pid::from_raw(varpd.process.pid().try_into().unwrap());
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        kill(pid, signal).unwrap();
        assert!(varpd.show("vifs").is_empty(), "it answers after {signal}");
    }
}

#[test]
fn the_only_interface_is_the_obvious_underlay() {
    let Some(net) = Net::new("varpd: obvious underlay") else { return };
    let mut command = net.a().command(VARPD);
    command.arg("-6").arg("--socket").arg(net.path("s"));
    let process = super::spawn("obvious", &net, &mut command);
    wait_until("it is ready", SOON, || process.log().contains("varpd: ready"));
    let log = process.log();
    assert!(log.contains("on eth0 at [2001:db8::1]:1798, group [ff15::e00a:1]:1798"), "{log}");
}
