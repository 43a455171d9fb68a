//! Who may be a NIC's frontend: other processes, as other users, at the socket of a NIC.
//!
//! ```text
//!     guest 1: QEMU, its successor, strangers        guest 2
//!         |                                             |
//!       host a -----------------------------------------+
//! ```

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::driver::{Control, Driver};
use crate::nic::{Nic, vif};
use crate::rig::hang_up;
use crate::support::vnet::{Backend, Listener};
use crate::support::wait_until;
use crate::{Net, SOON};

/// Users who are not root.
const QEMU: u32 = 64_055;
const STRANGER: u32 = 65_533;

/// What this test program does when it is started as another process: speak at a socket, wait until it is
/// told to end, and say whether it was answered.
const SPEAK: &str = "VNET_TEST_SPEAK";
/// The same, but it listens for who is to answer.
const LISTEN: &str = "VNET_TEST_LISTEN";

/// GET_FEATURES.
const QUESTION: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// Not a test by itself: see [`SPEAK`].
#[test]
fn speak_at_a_socket() {
    let mut stream = match (std::env::var_os(SPEAK), std::env::var_os(LISTEN)) {
        (Some(path), _) => UnixStream::connect(path).unwrap(),
        (_, Some(path)) => {
            let listener = UnixListener::bind(&path).unwrap();
            // A backend without capabilities may connect, too.
            fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
            listener.accept().unwrap().0
        }
        _ => return,
    };
    let mut answer = [0; 12];
    let asked = stream.write_all(&QUESTION);
    let answered = asked.is_ok() && stream.read_exact(&mut answer).is_ok();
    println!("{}", if answered { "ANSWERED" } else { "CLOSED" });
    // Until the test closes its end.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// A process of another user that has connected and asked something.
struct Other {
    child: Child,
    hold: Option<ChildStdin>,
}

impl Other {
    fn speaking(uid: u32, program: &Path, socket: &Path) -> Self {
        Self::start(uid, program, SPEAK, socket)
    }

    fn listening(uid: u32, program: &Path, socket: &Path) -> Self {
        Self::start(uid, program, LISTEN, socket)
    }

    fn start(uid: u32, program: &Path, role: &str, socket: &Path) -> Self {
        let mut command = Command::new(program);
        command.args(["--exact", "--nocapture", "frontends::speak_at_a_socket"]);
        command.env(role, socket).uid(uid).gid(uid);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("another process");
        let hold = child.stdin.take();
        Self { child, hold }
    }

    /// Waits for one of these words of it.
    fn says(&mut self, word: &str) -> bool {
        let mut said = Vec::new();
        let out = self.child.stdout.as_mut().expect("it is piped");
        let mut byte = [0];
        while !said.ends_with(b"ANSWERED") && !said.ends_with(b"CLOSED") {
            assert_eq!(out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        said.ends_with(word.as_bytes())
    }

    /// It ends, and with it its connection.
    fn end(mut self) {
        self.hold = None;
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This program, where other users reach it.
fn public_program(net: &Net) -> std::path::PathBuf {
    fs::set_permissions(net.path(), Permissions::from_mode(0o755)).unwrap();
    let program = net.path().join("speaker");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    program
}

fn wait_log(backend: &Backend, words: &str) {
    wait_until(words, SOON, || backend.process.log().contains(words));
}

#[test]
fn another_process_waits_is_named_and_comes_next() {
    let Some(net) = Net::new("a frontend beside another", 1) else { return };
    let program = public_program(&net);
    let (options, open) = (Nic::options(), ["--socket-mode", "0666"]);
    let mut one = Nic::start_with("g1", vif(42, 1), &net.varpds[0], options, &open);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[0]);
    one.introduce(&mut two);
    let mut other = Other::speaking(STRANGER, &program, &one.backend.socket);
    let pid = other.child.id();
    let served = std::process::id();
    wait_log(
        &one.backend,
        &format!(
            "process {pid} of user {STRANGER} waits: process {served} of user 0 (root) is served until its connection ends"
        ),
    );
    let mut third = Other::speaking(QEMU, &program, &one.backend.socket);
    assert!(third.says("CLOSED"), "only one waits");
    wait_log(&one.backend, &format!("process {} of user {QEMU} is turned away", third.child.id()));
    one.introduce(&mut two);
    // QEMU connects anew while it lives: nobody slips in.
    hang_up(&one.driver);
    one.driver = Driver::connect(&one.backend.socket, Nic::options()).unwrap();
    one.wait_state("active", &net.varpds[0]);
    one.introduce(&mut two);
    // It lives, but does not come again.
    hang_up(&one.driver);
    assert!(other.says("ANSWERED"), "it is served in the end");
    other.end();
    one.driver = Driver::connect(&one.backend.socket, Nic::options()).unwrap();
    one.wait_state("active", &net.varpds[0]);
    one.introduce(&mut two);
}

#[test]
fn a_user_who_is_not_listed_is_never_served() {
    let Some(net) = Net::new("frontends of listed users only", 1) else { return };
    let program = public_program(&net);
    let listed = ["--socket-mode", "0666", "--frontend-user", "64055"];
    let vif = vif(42, 1);
    let backend = Backend::start_with("g1", vif, Listener::Backend, &net.varpds[0], &listed);
    let turned_away = |when: &str| {
        let mut stranger = Other::speaking(STRANGER, &program, &backend.socket);
        assert!(stranger.says("CLOSED"), "{when}");
        let pid = stranger.child.id();
        wait_log(&backend, &format!("process {pid} of user {STRANGER} is turned away: its user"));
    };
    turned_away("before QEMU comes");
    let mut qemu = Other::speaking(QEMU, &program, &backend.socket);
    assert!(qemu.says("ANSWERED"));
    turned_away("while it is served");
    qemu.end();
    turned_away("between two QEMUs");
    let mut qemu = Other::speaking(QEMU, &program, &backend.socket);
    assert!(qemu.says("ANSWERED"));
    qemu.end();
    let driver = Driver::connect(&backend.socket, Nic::options()).expect("root may always");
    let nic = Nic { driver, backend, vif };
    nic.wait_state("active", &net.varpds[0]);
    // Once each, and not for ever.
    assert_eq!(nic.backend.process.log().matches("is turned away").count(), 3);
}

#[test]
fn a_client_connects_only_to_listed_users() {
    let Some(net) = Net::new("a listener of another user", 1) else { return };
    let socket = net.path().join("g1.sock");
    // Root's process listens here, and root may always: so somebody else has to.
    let program = public_program(&net);
    fs::set_permissions(net.path(), Permissions::from_mode(0o777)).unwrap();
    let mut listener = Other::listening(STRANGER, &program, &socket);
    wait_until("somebody listens", SOON, || socket.exists());
    let listed = ["--frontend-user", "64055"];
    let backend = Backend::start_with("g1", vif(42, 1), Listener::Qemu, &net.varpds[0], &listed);
    let pid = listener.child.id();
    wait_log(
        &backend,
        &format!("process {pid} of user {STRANGER} listens on the socket and is not"),
    );
    assert!(listener.says("CLOSED"), "nothing is said to it");
    listener.end();
    fs::remove_file(&socket).unwrap();
    let ours = UnixListener::bind(&socket).unwrap();
    let (stream, _) = ours.accept().unwrap();
    let mut driver = Driver::new(Control::new(stream), Nic::options());
    driver.negotiate().and_then(|()| driver.start()).unwrap();
    let nic = Nic { driver, backend, vif: vif(42, 1) };
    nic.wait_state("active", &net.varpds[0]);
}
