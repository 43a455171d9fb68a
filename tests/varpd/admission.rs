//! Lists of users: who may have vifs on which vnet, with real users and the real backend.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use vnet::wire::VifKey;
use vnet::wire::control::{ErrorCode, Event, Request, Table};

use super::keys::Keys;
use super::operators::as_user;
use super::peer::{ACTIVE, Backend, Peer, Way, register};
use super::support::netns::Family;
use super::support::process::Process;
use super::support::wait_until;
use super::{Net, SOON, Varpd, key, mac};

/// On every system; 65534 is nobody's.
const DAEMON: u32 = 1;
pub(crate) const NOBODY: u32 = 65534;

/// The backend where every user can run it, and a directory where every user can have its socket.
pub(crate) fn program(net: &Net) -> PathBuf {
    let program = net.path("vhost-user-vnet");
    fs::copy(env!("CARGO_BIN_EXE_vhost-user-vnet"), &program).unwrap();
    fs::create_dir(net.path("sockets")).unwrap();
    fs::set_permissions(net.path("sockets"), Permissions::from_mode(0o1777)).unwrap();
    program
}

/// A backend of a user, for the vif with this last octet.
fn backend(net: &Net, varpd: &Varpd, uid: u32, vnet: u32, last: u8) -> Command {
    let mut command = Command::new(net.path("vhost-user-vnet"));
    command.uid(uid).gid(uid).current_dir("/");
    command.args(["--vnet", &vnet.to_string(), "--mac", &format!("52:54:00:00:00:{last:02x}")]);
    command.arg("--varpd").arg(&varpd.socket);
    command.arg("--socket-path").arg(net.path("sockets").join(format!("{uid}-{vnet}.sock")));
    command
}

#[test]
fn a_vnet_is_open_to_the_users_on_its_list() {
    let Some(net) = Net::new("varpd: lists of users") else { return };
    program(&net);
    let config = "[security]\nallow-users = [65534]\n\
                  [vnet.42]\nallow-users = ['daemon', 1000]\n[vnet.43]\nallow-users = []\n";
    let varpd = net.varpd(net.a(), Family::V4, config);
    let refused = [(NOBODY, 42), (DAEMON, 43), (NOBODY, 43), (DAEMON, 44)];
    for (uid, vnet) in refused {
        let output = backend(&net, &varpd, uid, vnet, 1).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        let want = format!("user {uid} is not allowed to have vifs on vnet {vnet}");
        assert_eq!(said.lines().filter(|line| line.contains(&want)).count(), 1, "{said}");
        wait_until("varpd says so, too", SOON, || varpd.process.log().contains(&want));
    }
    assert!(varpd.show("vifs").is_empty());
    let count = refused.len() as u64;
    assert_eq!((varpd.counter("vifs_denied"), varpd.counter("vifs_refused")), (count, count));

    // The listed, where they are listed, and root everywhere.
    let allowed = [(DAEMON, 42, 2), (NOBODY, 44, 3)];
    let mut running: Vec<Process> = Vec::new();
    for (uid, vnet, last) in allowed {
        let mut command = backend(&net, &varpd, uid, vnet, last);
        running.push(Process::start(&format!("backend-{last}"), net.dir.path(), &mut command));
        wait_until(&format!("user {uid} has a vif on vnet {vnet}"), SOON, || {
            running.iter_mut().for_each(Process::assert_running);
            varpd.show("vifs").iter().any(|row| row["vnet"] == vnet && row["uid"] == uid)
        });
    }
    let mut on_43 = key(4);
    on_43.vnet = super::vnet_id(43);
    for key in [key(4), on_43] {
        Backend::register(&varpd.socket, key, ACTIVE).peer.claimed();
    }
    assert_eq!(varpd.counter("vifs_denied"), count);
}

/// A connection of this process in another user's name: only a thread becomes that user.
pub(crate) fn connect_as(uid: u32, socket: &Path) -> Peer {
    let connect = || {
        // SAFETY: changes the credentials of this thread, which ends with this function.
        let status = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(status, 0);
        Peer::connect(socket)
    };
    thread::scope(|scope| scope.spawn(connect).join().unwrap())
}

/// A guest that takes over its backend is not to become another one's.
#[test]
fn a_process_has_one_vif_as_long_as_it_lives() {
    let Some(net) = Net::new("varpd: a process asks for another vif") else { return };
    program(&net);
    let varpd = net.varpd(net.a(), Family::V4, "");
    // Another backend of the same user, whose place might be taken.
    let mut other = backend(&net, &varpd, NOBODY, 43, 3);
    let mut other = Process::start("other", net.dir.path(), &mut other);
    wait_until("the other backend has its vif", SOON, || !varpd.show("vifs").is_empty());

    let mut foreign = key(3);
    foreign.vnet = super::vnet_id(43);
    let mut elsewhere = key(2);
    elsewhere.vnet = super::vnet_id(43);
    let first = connect_as(NOBODY, &varpd.socket);
    first.send(&register(key(2), ACTIVE));
    first.claimed();
    let mut first = Some(first);
    for is_connected in [true, false] {
        for wanted in [foreign, elsewhere, key(4)] {
            let peer = connect_as(NOBODY, &varpd.socket);
            peer.send(&register(wanted, ACTIVE));
            let (code, text) = peer.refusal();
            assert_eq!(code, ErrorCode::Denied);
            assert!(text.contains(&format!("speaks for vif {}", key(2))), "{text}");
        }
        let flush = Request::Flush { vnet: None, mac: None };
        for asked in [Request::Show { table: Table::Varp }, Request::Monitor, flush] {
            let peer = connect_as(NOBODY, &varpd.socket);
            peer.send(&asked);
            let (code, text) = peer.refusal();
            assert_eq!(code, ErrorCode::Denied);
            assert!(text.contains("is no operator"), "{text}");
        }
        if is_connected {
            drop(first.take());
        }
    }
    let again = connect_as(NOBODY, &varpd.socket);
    again.send(&register(key(2), ACTIVE));
    again.claimed();
    other.assert_running();
    let counts = ["vifs_denied", "operators_denied"].map(|name| varpd.counter(name));
    assert_eq!(counts, [6, 6]);
}

/// All backends of a host may be one user's.
#[test]
fn a_process_does_not_take_all_places_of_its_user() {
    let Some(net) = Net::new("varpd: a process connects again and again") else { return };
    program(&net);
    let varpd = net.varpd(net.a(), Family::V4, "[limits]\nclients-per-user = 30\n");
    let held: Vec<Peer> = (0..16).map(|_| connect_as(NOBODY, &varpd.socket)).collect();
    for _ in 0..30 {
        let (code, text) = connect_as(NOBODY, &varpd.socket).refusal();
        assert_eq!(code, ErrorCode::Limit);
        assert!(text.contains("has 16 clients already"), "{text}");
    }
    let mut other = backend(&net, &varpd, NOBODY, 43, 3);
    let mut other = Process::start("other", net.dir.path(), &mut other);
    wait_until("another backend of the user has its vif", SOON, || {
        other.assert_running();
        !varpd.show("vifs").is_empty()
    });
    drop(held);
}

/// Each registration is announced to all hosts.
#[test]
fn a_user_that_registers_in_a_loop_has_to_wait() {
    let Some(net) = Net::new("varpd: a user registers again and again") else { return };
    let limits = "[limits]\nclients-per-user = 4\nregistrations-per-second = 1\n";
    let varpd =
        net.varpd(net.a(), Family::V4, &format!("{limits}[vnet.42]\nallow-users = [{NOBODY}]\n"));
    let mut refused = None;
    for _ in 0..20 {
        let peer = connect_as(NOBODY, &varpd.socket);
        peer.send(&register(key(10), ACTIVE));
        match peer.event() {
            Event::Registered { .. } => drop(peer),
            Event::Error { code, text } => {
                refused = Some((code, text));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    let (code, text) = refused.expect("nobody can register 20 vifs in this time");
    assert_eq!(code, ErrorCode::Limit, "{text}");
    assert!(text.contains(&format!("user {NOBODY} registers vifs too often")), "{text}");
    assert_eq!(varpd.counter("vifs_too_often"), 1);
    wait_until("the user may register again", SOON, || {
        let peer = connect_as(NOBODY, &varpd.socket);
        peer.send(&register(key(10), ACTIVE));
        matches!(peer.event(), Event::Registered { .. })
    });
}

/// Limits are for each user: root is one of them here, since one process can have many vifs only as root.
#[test]
fn what_is_kept_of_a_user_is_not_pushed_out_by_anothers() {
    let Some(net) = Net::new("varpd: many vifs come and go") else { return };
    program(&net);
    let varpd = net.varpd(net.a(), Family::V4, "[limits]\nkept-vifs = 3\n");
    let mut theirs =
        Process::start("theirs", net.dir.path(), &mut backend(&net, &varpd, DAEMON, 42, 1));
    wait_until("the user has a vif", SOON, || !varpd.show("vifs").is_empty());
    theirs.kill();
    wait_until("it is kept", SOON, || varpd.show("vifs")[0]["state"] == "kept");
    for last in 10..30 {
        drop(Backend::register(&varpd.socket, key(last), ACTIVE));
    }
    wait_until("all of them have gone", SOON, || varpd.counter("vifs_kept") == 21);
    let kept = varpd.show("vifs");
    assert_eq!(kept.len(), 3, "{kept:?}");
    assert!(kept.iter().any(|row| row["uid"] == DAEMON), "{kept:?}");
}

#[test]
fn who_registers_and_leaves_in_a_loop_does_not_fill_the_log() {
    let Some(net) = Net::new("varpd: a loop of registrations") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    for _ in 0..400 {
        drop(Backend::register(&varpd.socket, key(2), ACTIVE));
    }
    wait_until("the last one has gone", SOON, || varpd.counter("vifs_kept") == 400);
    let log = varpd.process.log();
    let of_vif = format!("vif {}", key(2));
    let said = log.lines().filter(|line| line.contains(" INFO ") && line.contains(&of_vif));
    let about = said.count();
    // A minute may have begun meanwhile.
    assert!((120..=360).contains(&about), "{about} lines of 800");
    assert!(log.contains("vifs of user 0 come and go more than 120 times a minute"), "{log}");
}

/// Nor is it to have more behind its vif than its backend was started for.
#[test]
fn a_process_learns_no_more_than_it_said_first() {
    let Some(net) = Net::new("varpd: a process wants to learn more") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    for (n, learn) in [0, 256, u16::MAX].into_iter().enumerate() {
        let peer = connect_as(NOBODY, &varpd.socket);
        peer.send(&register(key(2), Way { learn, ..ACTIVE }));
        peer.claimed();
        peer.send(&Request::Learn { macs: vec![(mac(9), None)] });
        let refused = peer.find(|event| match event {
            Event::Claimed { mac, .. } if *mac == super::mac(9) => panic!("{learn:?}"),
            Event::Refused { mac, .. } => Some(*mac),
            _ => None,
        });
        assert_eq!(refused, mac(9));
        assert_eq!(varpd.counter("macs_beyond"), n as u64 + 1);
    }
}

#[test]
fn a_list_that_names_nobody_is_an_error() {
    let Some(net) = Net::new("varpd: a user that does not exist") else { return };
    let file = net.path("c.toml");
    for (list, what) in [("allow-users", "user"), ("allow-groups", "group")] {
        fs::write(&file, format!("[vnet.42]\n{list} = ['no-such-{what}']\n")).unwrap();
        let mut command = net.a().command(env!("CARGO_BIN_EXE_varpd"));
        command.arg("--socket").arg(net.path("own.sock")).arg("--config").arg(&file);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said, format!("varpd: {list}: 'no-such-{what}': no such {what}\n"));
    }
}

/// Otherwise each process that may connect gets the keys of the vnet.
#[test]
fn a_secured_vnet_without_a_list_is_roots_alone() {
    let Some(net) = Net::new("varpd: a secured vnet, and users") else { return };
    program(&net);
    let keys = Keys::new(&net);
    let varpd = net.varpd(net.a(), Family::V4, &keys.config(""));
    let output = backend(&net, &varpd, NOBODY, 42, 1).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in ["secured (conf)", "allow-users", "allow-groups", "[vnet.42]"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let peer = connect_as(NOBODY, &varpd.socket);
    peer.send(&register(key(2), ACTIVE));
    assert_eq!(peer.refusal().0, ErrorCode::Denied, "and not a key before");
    assert_eq!(varpd.counter("vifs_denied"), 2);
    Backend::register(&varpd.socket, key(3), ACTIVE).peer.claimed();
    // What is open to all stays so.
    let mut other = backend(&net, &varpd, NOBODY, 43, 4);
    let mut other = Process::start("other", net.dir.path(), &mut other);
    wait_until("a vnet that is not secured has its vif", SOON, || {
        other.assert_running();
        varpd.show("vifs").iter().any(|row| row["vnet"] == 43)
    });
}

#[test]
fn a_vnet_is_open_to_the_groups_on_its_list() {
    let Some(net) = Net::new("varpd: lists of groups") else { return };
    let program = program(&net);
    let keys = Keys::new(&net);
    let varpd = net.varpd(net.a(), Family::V4, &keys.config("allow-groups = ['daemon']\n"));
    let run = |groups: &str, last: u8| {
        let mut command = as_user(groups, &program);
        command.args(["--vnet", "42", "--mac", &format!("52:54:00:00:00:{last:02x}")]);
        command.arg("--varpd").arg(&varpd.socket);
        command.arg("--socket-path").arg(net.path("sockets").join(format!("{last}.sock")));
        command
    };
    for groups in ["--clear-groups", "--groups=2,3"] {
        let output = run(groups, 1).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("user 65534 is not allowed to have vifs on vnet 42"), "{said}");
    }
    assert_eq!(varpd.counter("vifs_denied"), 2);
    let many: Vec<String> = (1000..1200).map(|group| group.to_string()).collect();
    for (n, groups) in [(2, "1"), (3, "3,1,4"), (4, &format!("{},1", many.join(",")))] {
        let mut command = run(&format!("--groups={groups}"), n);
        let mut process = Process::start(&format!("backend-{n}"), net.dir.path(), &mut command);
        wait_until(&format!("it has a vif, {groups}"), SOON, || {
            process.assert_running();
            varpd.show("vifs").iter().any(|row| row["mac"] == mac(n).to_string().as_str())
        });
    }
}

/// Often all backends run as one user, and one that is refused tries again every second.
#[test]
fn one_nic_that_is_refused_hides_no_other() {
    let Some(net) = Net::new("varpd: a NIC that is refused all the time") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "[security]\nvnets = 'listed'\n[vnet.42]\n");
    let refuse = |vnet: u32, last: u8| {
        let peer = Peer::connect(&varpd.socket);
        let key = VifKey { vnet: super::vnet_id(vnet), mac: mac(last) };
        peer.send(&register(key, ACTIVE));
        assert_eq!(peer.refusal().0, ErrorCode::Denied);
    };
    (0..200).for_each(|_| refuse(43, 1));
    refuse(44, 2);
    wait_until("the second one is named", SOON, || {
        varpd.process.log().contains("vnet 44 is not listed")
    });
    let log = varpd.process.log();
    let warned = |text: &str| {
        log.lines().filter(|line| line.contains(" WARN ") && line.contains(text)).count()
    };
    assert_eq!((warned("vnet 43 is not listed"), warned("vnet 44 is not listed")), (2, 1), "{log}");
}
