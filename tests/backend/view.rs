//! What a confined backend sees of the file system: its own directory and varpd's, whoever started it.
//!
//! The test looks, and connects, through `/proc/PID/root`, as the backend itself would.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::driver::{Control, Driver};
use crate::nic::{Nic, mac, vif};
use crate::support::netns::Family;
use crate::support::process::Process;
use crate::support::vnet::Varpd;
use crate::support::wait_until;
use crate::{Net, SOON};

/// Somebody who is neither root nor in one of its groups.
const NOBODY: u32 = 65_534;

/// A backend of a NIC with a directory of its own.
struct Apart {
    process: Process,
    socket: PathBuf,
    driver: Option<Driver>,
}

/// A host whose varpd has a directory of its own, that everybody may enter.
fn host(test: &str) -> Option<(Net, Varpd)> {
    let net = Net::new(test, 1)?;
    fs::set_permissions(net.path(), Permissions::from_mode(0o755)).unwrap();
    let directory = net.path().join("varpd");
    fs::create_dir(&directory).unwrap();
    let host = net.underlay.host(0);
    let config = "socket-mode = '0666'\nport = 1799\n";
    let varpd = Varpd::start_with(host, host.address(Family::V4), config, &directory);
    Some((net, varpd))
}

/// A backend of guest `number`, started by a user.
fn start(net: &Net, varpd: &Varpd, number: u8, uid: u32, further: &[&str]) -> Apart {
    start_with(net, varpd, number, uid, &[further, &["--view", "required"]].concat())
}

fn start_with(net: &Net, varpd: &Varpd, number: u8, uid: u32, further: &[&str]) -> Apart {
    let name = format!("web{number}");
    let directory = net.path().join(&name);
    fs::create_dir(&directory).unwrap();
    std::os::unix::fs::chown(&directory, Some(uid), Some(uid)).unwrap();
    let program = net.path().join("vhost-user-vnet");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_vhost-user-vnet"), &program).unwrap();
    }
    let socket = directory.join("nic.sock");
    let mut command = Command::new(&program);
    command.arg("--socket-path").arg(&socket).arg("--varpd").arg(&varpd.socket);
    command.args(["--vnet", "42", "--mac", &vif(42, number).mac()]);
    command.args(further).uid(uid).gid(uid);
    let process = Process::start(&name, net.path(), &mut command);
    Apart { process, socket, driver: None }
}

impl Apart {
    /// Its own socket is there, and it is confined.
    fn wait_listening(&mut self) {
        wait_until("the backend listens, confined", SOON, || {
            self.process.assert_running();
            let status =
                fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
            self.socket.exists() && status.contains("\nSeccomp:\t2\n")
        });
    }

    /// Where it sees a path.
    fn seen(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.process.pid()));
        root.join(path.strip_prefix("/").unwrap())
    }

    fn join(&mut self) -> &mut Driver {
        self.wait_listening();
        self.driver.insert(Driver::connect(&self.socket, Nic::options()).unwrap())
    }
}

/// All regular entries below a directory, as far as it has any.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Frames pass between two guests.
fn exchange(from: &mut Driver, to: &mut Driver, number: u32) {
    let sent = crate::nic::frame(mac(2), mac(1), number, crate::nic::LEN);
    wait_until("a frame arrives", SOON, || {
        assert!(from.queue_frame(0, &sent));
        from.flush(0);
        let got = to.recv_frame(std::time::Duration::from_millis(200));
        got.is_some_and(|got| got == sent)
    });
}

fn sees_no_neighbour(test: &str, uid: u32) {
    let Some((net, mut varpd)) = host(test) else { return };
    let mut one = start(&net, &varpd, 1, uid, &[]);
    let mut two = start(&net, &varpd, 2, uid, &[]);
    one.join();
    two.join();
    let root = one.seen(Path::new("/"));
    assert_eq!(names(&one.seen(net.path())), ["varpd", "web1"]);
    assert_eq!(names(&root).len(), 1, "{:?}", names(&root));
    for hidden in ["/proc", "/etc", "/run/dbus"] {
        assert!(!one.seen(Path::new(hidden)).exists(), "{hidden}");
    }
    // Whoever it may connect to by permissions, there is nobody to connect to.
    let error = UnixStream::connect(one.seen(&two.socket)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(UnixStream::connect(one.seen(&one.socket)).is_ok(), "its own, as a check");
    // Neither does it see what is made later.
    let _later = start(&net, &varpd, 3, uid, &[]);
    assert_eq!(names(&one.seen(net.path())), ["varpd", "web1"]);
    let error = fs::create_dir(one.seen(net.path()).join("more")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));

    let mut drivers = [&mut one, &mut two].map(|apart| apart.driver.take().unwrap());
    let [first, second] = &mut drivers;
    exchange(first, second, 1);
    // varpd's next socket is in the directory that is seen.
    varpd.kill();
    varpd.start_again();
    let registered = |number: u8| {
        let rows = varpd.show("vifs");
        rows.as_array().unwrap().iter().any(|row| row["mac"] == vif(42, number).mac())
    };
    wait_until("both register again", SOON, || registered(1) && registered(2));
    exchange(first, second, 2);
    drop(drivers);
    assert!(one.process.terminate(SOON).success());
    assert!(!one.socket.exists(), "it removes its socket");
}

#[test]
fn roots_backend_sees_no_neighbour() {
    sees_no_neighbour("the view of root's backends", 0);
}

#[test]
fn a_users_backend_sees_no_neighbour() {
    sees_no_neighbour("the view of a user's backends", NOBODY);
}

#[test]
fn a_client_finds_its_qemu_again() {
    let Some((net, varpd)) = host("the view of a backend that connects") else { return };
    let mut one = start(&net, &varpd, 1, 0, &["--client"]);
    for _ in 0..2 {
        let listener = UnixListener::bind(&one.socket).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut driver = Driver::new(Control::new(stream), Nic::options());
        driver.negotiate().and_then(|()| driver.start()).unwrap();
        assert_eq!(names(&one.seen(net.path())), ["varpd", "web1"]);
        drop((listener, driver));
        fs::remove_file(&one.socket).unwrap();
    }
    one.process.assert_running();
}

/// It can't find a new varpd then, and says what is to be done.
#[test]
fn a_directory_that_is_removed_is_told_of() {
    let Some((net, mut varpd)) = host("varpd's directory is made anew") else { return };
    let mut one = start(&net, &varpd, 1, 0, &[]);
    one.join();
    varpd.kill();
    fs::remove_dir_all(net.path().join("varpd")).unwrap();
    let words = "the directory of varpd's socket, has been removed";
    wait_until(words, SOON, || one.process.log().contains(words));
    one.process.assert_running();
}

/// Without its capabilities root's process is bound by permissions: it says once that it finds no way in.
#[test]
fn a_varpd_that_does_not_let_a_running_backend_in_is_told_of() {
    let Some((net, mut varpd)) = host("varpd's next socket is another user's") else { return };
    let mut one = start(&net, &varpd, 1, 0, &[]);
    one.join();
    varpd.kill();
    let _ = fs::remove_file(&varpd.socket);
    let _closed = UnixListener::bind(&varpd.socket).unwrap();
    fs::set_permissions(&varpd.socket, Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&varpd.socket, Some(NOBODY), Some(NOBODY)).unwrap();
    let words = "Permission denied (os error 13); may this user connect (varpd --socket-group)?";
    wait_until(words, SOON, || one.process.log().contains(words));
    one.process.assert_running();
}

#[test]
fn users_who_must_be_told_apart_are_not_hidden_in_a_namespace() {
    let Some((net, varpd)) = host("listed users and a user's backend") else { return };
    let listed = ["--frontend-user", "64055"];
    let mut one = start(&net, &varpd, 1, NOBODY, &listed);
    let status = one.process.wait_end(SOON);
    let log = one.process.log();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("users cannot be distinguished"), "{log}");
    let mut two = start_with(&net, &varpd, 2, NOBODY, &listed);
    two.wait_listening();
    assert!(two.process.log().contains("no private view of the file system"));
}

#[test]
fn memory_is_neither_dumped_nor_seen_nor_swapped() {
    let Some((net, varpd)) = host("memory of the programs") else { return };
    let mut one = start(&net, &varpd, 1, NOBODY, &[]);
    let mut two = start(&net, &varpd, 2, 0, &[]);
    one.wait_listening();
    two.wait_listening();
    for process in [&one.process, &two.process, &varpd.process] {
        let directory = PathBuf::from(format!("/proc/{}", process.pid()));
        let limits = fs::read_to_string(directory.join("limits")).unwrap();
        let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(cores.split_whitespace().nth(4), Some("0"), "{cores}");
        // A process that can't be dumped is root's to look at (proc(5)).
        assert_eq!(fs::metadata(directory.join("maps")).unwrap().uid(), 0);
        let status = fs::read_to_string(directory.join("status")).unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        let locked: u64 = locked.split_whitespace().next().unwrap().parse().unwrap();
        let may = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
        let may = may.split_whitespace().nth(3) == Some("unlimited");
        assert_eq!(may, locked > 0, "memory of {} is locked if it may be", process.name());
        assert_eq!(may, !process.log().contains("memory is not locked"), "{}", process.name());
    }
}
