//! Attempts to get out, each in a process of its own that must not survive it.
//!
//! A test starts this very test program again, told by the environment which attempt to make. The
//! child confines itself as a backend does, does something that backends do, and then tries.

use std::fs::File;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::OnceLock;

use nix::unistd::Pid;

use super::*;

const ATTEMPT: &str = "VNET_TEST_ESCAPE";
/// What the child says when it has been confined and is well.
const CONFINED: &str = "confined and well";
/// What it says if the attempt went through.
const ESCAPED: &str = "ESCAPED";

/// A socket as varpd hands them to backends: at a port of the kernel's choice.
static UDP: OnceLock<UdpSocket> = OnceLock::new();
/// Another process, known before it can't be asked for any more.
static PARENT: OnceLock<Pid> = OnceLock::new();

/// Tries something; true if it worked.
type Attempt = fn() -> bool;

/// What is tried.
const ATTEMPTS: &[(&str, Attempt)] = &[
    ("open a file", || File::open("/etc/passwd").is_ok()),
    ("make a file", || File::create("/tmp/vnet-escape").is_ok()),
    ("read a directory", || std::fs::read_dir("/").is_ok()),
    ("remove a file", || std::fs::remove_file("/tmp/vnet-escape").is_ok()),
    ("start a program", || Command::new("/bin/true").spawn().is_ok()),
    ("open a UDP socket", || UdpSocket::bind("127.0.0.1:0").is_ok()),
    ("open a TCP socket", || std::net::TcpListener::bind("127.0.0.1:0").is_ok()),
    ("send to whoever listens", || UnixDatagram::unbound().is_ok()),
    ("take an address", || {
        let name = SocketAddr::from_abstract_name(b"vnet-escape").unwrap();
        UnixListener::bind_addr(&name).is_ok()
    }),
    ("hear the group", || {
        let socket = UDP.get().unwrap().as_raw_fd();
        let nowhere = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
        let len = u32::try_from(size_of_val(&nowhere)).unwrap();
        // SAFETY: the address is alive, and as long as is said.
        unsafe { libc::connect(socket, &raw const nowhere, len) };
        let group = nix::sys::socket::SockaddrIn::new(224, 10, 0, 1, 0);
        nix::sys::socket::bind(socket, &group).is_ok()
    }),
    ("see a process", || nix::sys::signal::kill(*PARENT.get().unwrap(), None).is_ok()),
    ("signal a process", || {
        let other = PARENT.get().unwrap().as_raw();
        // SAFETY: signal 0 only asks whether it could be sent.
        unsafe { libc::syscall(libc::SYS_tgkill, other, other, 0) == 0 }
    }),
    ("have signals sent to a process", || {
        let (socket, other) = (UDP.get().unwrap().as_raw_fd(), PARENT.get().unwrap().as_raw());
        // SAFETY: F_SETOWN takes a number.
        unsafe { libc::fcntl(socket, libc::F_SETOWN, other) == 0 }
    }),
    ("become another user", || nix::unistd::setuid(nix::unistd::Uid::from_raw(1)).is_ok()),
    ("enter a namespace", || nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER).is_ok()),
    ("map code", || {
        let code = nix::sys::mman::ProtFlags::PROT_READ | nix::sys::mman::ProtFlags::PROT_EXEC;
        let flags = nix::sys::mman::MapFlags::MAP_PRIVATE;
        let length = std::num::NonZero::new(4096).unwrap();
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        unsafe { nix::sys::mman::mmap_anonymous(None, length, code, flags) }.is_ok()
    }),
    ("change its limits", || {
        use nix::sys::resource::{Resource, setrlimit};
        setrlimit(Resource::RLIMIT_NOFILE, 10, 10).is_ok()
    }),
];

fn backend() -> Confinement {
    Confinement { profile: Profile::Backend, files: Vec::new(), capabilities: Vec::new() }
}

/// In the child: confines itself, shows that it still works, and tries.
fn run_child(attempt: &str) {
    UDP.set(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    PARENT.set(nix::unistd::getppid()).unwrap();
    backend().enter().unwrap();
    let sum = std::thread::spawn(|| (1..=10).sum::<i32>()).join().unwrap();
    assert_eq!(sum, 55, "threads work");
    // So much, in pieces so small, that a heap would shrink.
    let freed = std::thread::spawn(|| vec![vec![1_u8; 65_000]; 40].len()).join().unwrap();
    assert_eq!(freed, 40, "and free what they had");
    assert!(std::os::unix::net::UnixStream::pair().is_ok());
    println!("{CONFINED}");
    io::stdout().flush().unwrap();
    let (_, attempt) = ATTEMPTS.iter().find(|(name, _)| *name == attempt).unwrap();
    if attempt() {
        println!("{ESCAPED}");
    }
}

fn spawn(attempt: &str) -> Output {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "sys::sandbox::tests::escapes_kill"])
        .env(ATTEMPT, attempt)
        .output();
    child.unwrap()
}

#[test]
fn escapes_kill() {
    if let Ok(attempt) = std::env::var(ATTEMPT) {
        return run_child(&attempt);
    }
    for (attempt, _) in ATTEMPTS {
        let output = spawn(attempt);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(CONFINED), "{attempt}: {output:?}");
        assert!(!said.contains(ESCAPED), "{attempt}");
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{attempt}: {output:?}");
    }
}

#[test]
fn landlock_alone_keeps_files_out_of_reach() {
    let Ok(directory) = std::env::var(ATTEMPT) else {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("sys::sandbox::tests::landlock_alone_keeps_files_out_of_reach")
            .env(ATTEMPT, directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    };
    let directory = PathBuf::from(directory);
    let (readable, other) = (directory.join("a"), directory.join("b"));
    std::fs::write(&readable, "text").unwrap();
    std::fs::write(&other, "text").unwrap();
    nix::sys::prctl::set_no_new_privs().unwrap();
    let files = vec![Reach::Read(readable.clone())];
    let confinement = Confinement { files, ..backend() };
    if confinement.landlock() == Ok(RulesetStatus::NotEnforced) {
        eprintln!("skipped: no Landlock in this kernel");
        return;
    }
    assert_eq!(std::fs::read_to_string(&readable).unwrap(), "text");
    let refused = |result: io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    };
    refused(std::fs::read(&other).map(drop));
    refused(std::fs::write(&readable, ""));
    refused(std::fs::remove_file(&other));
}

#[test]
fn no_capability_is_left() {
    if std::env::var(ATTEMPT).is_err() {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "sys::sandbox::tests::no_capability_is_left"])
            .env(ATTEMPT, "capabilities")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let thread = std::thread::spawn(|| {
        backend().drop_capabilities().unwrap();
        std::fs::read_to_string("/proc/thread-self/status").unwrap()
    });
    let status = thread.join().unwrap();
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
}
