//! Who may look: operators have a socket, and a group, of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use vnet::wire::control::ErrorCode;

use super::peer::{ACTIVE, Peer, register};
use super::support::netns::Family;
use super::{Net, key, mac};

/// A program as nobody, in groups by setpriv's option.
pub(crate) fn as_user(groups: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", groups, "--"]).arg(program).current_dir("/");
    command
}

/// The operator's command where every user can run it.
fn operators_command(net: &Net) -> PathBuf {
    let program = net.path("vnet");
    fs::copy(env!("CARGO_BIN_EXE_vnet"), &program).unwrap();
    program
}

#[test]
fn operators_are_root_and_a_group_and_nobody_else() {
    let Some(net) = Net::new("varpd: operators") else { return };
    let program = operators_command(&net);
    let socket = net.path("operator.sock");
    let config = format!("operator-socket = '{}'\noperator-group = 'daemon'\n", socket.display());
    let varpd = net.varpd(net.a(), Family::V4, &config);
    let run = |groups: &str, socket: &Path, args: &[&str]| {
        let mut command = as_user(groups, &program);
        let output = command.arg("--socket").arg(socket).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let asked: [&[&str]; 3] = [&["show", "varp"], &["show", "stats"], &["flush"]];
    for args in asked {
        let (member, stranger) = ("--groups=1", "--clear-groups");
        assert_eq!(run(member, &socket, args), (Some(0), String::new()), "{args:?}");
        // The control socket is open to all here; its group may be in both.
        assert_eq!(run(member, &varpd.socket, args), (Some(0), String::new()), "{args:?}");
        let (code, said) = run(stranger, &socket, args);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("operator.sock: permission denied: operators are root"), "{said}");
        let (code, said) = run(stranger, &varpd.socket, args);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("user 65534 is no operator"), "{said}");
        assert!(said.contains("group 'daemon'") && said.contains("operator.sock"), "{said}");
    }
    assert_eq!(varpd.counter("operators_denied"), 3);
    let (code, said) = run("--clear-groups", &varpd.socket, &["monitor"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is no operator"), "{said}");

    // Nor is an operator a backend.
    let peer = Peer::connect(&socket);
    peer.send(&register(key(1), ACTIVE));
    let (code, text) = peer.refusal();
    assert_eq!(code, ErrorCode::Denied);
    assert!(text.starts_with("vifs are registered at "), "{text}");
    assert!(varpd.show("vifs").is_empty());
}

#[test]
fn clients_at_one_socket_take_no_places_of_the_other() {
    let Some(net) = Net::new("varpd: places of operators") else { return };
    let socket = net.path("operator.sock");
    let config = format!("operator-socket = '{}'\n[limits]\nclients = 4\n", socket.display());
    let varpd = net.varpd(net.a(), Family::V4, &config);
    // Root has eight more.
    let backends: Vec<Peer> = (0..12).map(|_| Peer::connect(&varpd.socket)).collect();
    for (n, peer) in (0..).zip(&backends) {
        peer.send(&register(key(n), ACTIVE));
        peer.claimed();
    }
    assert_eq!(Peer::connect(&varpd.socket).refusal().0, ErrorCode::Limit);
    let crowd: Vec<Peer> = (0..30).map(|_| Peer::connect(&socket)).collect();
    let shown = super::vnet(&socket, &["show", "vifs"]);
    assert!(shown.status.success(), "{shown:?}");
    drop(backends);
    let backend = Peer::connect(&varpd.socket);
    backend.send(&register(key(20), ACTIVE));
    backend.claimed();
    backend.resolve(mac(20));
    drop(crowd);
}
