//! Attempts to get out, each in a process of its own that must not survive it.
//!
//! A test starts this very test program again, told by the environment which attempt to make. The
//! child confines itself as a backend does, does something that backends do, and then tries.

use std::fs::File;
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
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
    ("replace rules of iptables", || sets(libc::IPPROTO_IP, IPT_SO_SET_REPLACE)),
    ("read rules of iptables", || reads(libc::IPPROTO_IP, IPT_SO_GET_INFO)),
    ("make up an IP header", || sets(libc::IPPROTO_IP, libc::IP_HDRINCL)),
    ("send from another's address", || sets(libc::IPPROTO_IP, libc::IP_TRANSPARENT)),
    ("bind to an interface by its name", || sets(libc::SOL_SOCKET, libc::SO_BINDTODEVICE)),
    ("join a group", || sets(libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP)),
    ("share a port", || sets(libc::SOL_SOCKET, libc::SO_REUSEADDR)),
    ("change what a socket lets pass", || sets(libc::SOL_SOCKET, libc::SO_DETACH_FILTER)),
    ("take more memory", || sets(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE)),
    // An option of this name is allowed, at another level.
    ("mistake a level", || sets(libc::SOL_UDP, libc::SO_RCVBUF)),
];

/// What varpd must not do that is not forbidden to it because of its capabilities alone.
const ATTEMPTS_OF_VARPD: &[(&str, Attempt)] = &[
    ("start a program", || Command::new("/bin/true").spawn().is_ok()),
    ("replace rules of iptables", || sets(libc::IPPROTO_IP, IPT_SO_SET_REPLACE)),
    ("replace rules of ip6tables", || sets(libc::IPPROTO_IPV6, IPT_SO_SET_REPLACE)),
    ("read rules of iptables", || reads(libc::IPPROTO_IP, IPT_SO_GET_INFO)),
    ("make up an IP header", || sets(libc::IPPROTO_IP, libc::IP_HDRINCL)),
    ("send from another's address", || sets(libc::IPPROTO_IP, libc::IP_TRANSPARENT)),
    ("bind to an interface by its name", || sets(libc::SOL_SOCKET, libc::SO_BINDTODEVICE)),
    ("mark packets", || sets(libc::SOL_SOCKET, libc::SO_MARK)),
    ("share a port with other users", || sets(libc::SOL_SOCKET, libc::SO_REUSEADDR)),
    ("change what a socket lets pass", || sets(libc::SOL_SOCKET, libc::SO_DETACH_FILTER)),
    ("take more memory", || sets(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE)),
    ("open a file", || File::open("/etc/passwd").is_ok()),
];

/// What the opener must not do: beside its capability it has nothing.
const ATTEMPTS_OF_THE_OPENER: &[(&str, Attempt)] = &[
    ("open a file", || File::open("/etc/passwd").is_ok()),
    ("start a program", || Command::new("/bin/true").spawn().is_ok()),
    ("start a thread", || std::thread::Builder::new().spawn(|| ()).is_ok()),
    ("open a UDP socket", || UdpSocket::bind("127.0.0.1:0").is_ok()),
    ("open a Unix socket", || UnixDatagram::unbound().is_ok()),
    ("bind", || {
        let any = nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, 0);
        nix::sys::socket::bind(UDP.get().unwrap().as_raw_fd(), &any).is_ok()
    }),
    ("read the network", || UDP.get().unwrap().recv_from(&mut [0]).is_ok()),
    ("see a process", || nix::sys::signal::kill(*PARENT.get().unwrap(), None).is_ok()),
    ("replace rules of iptables", || sets(libc::IPPROTO_IP, IPT_SO_SET_REPLACE)),
    ("replace rules of ip6tables", || sets(libc::IPPROTO_IPV6, IPT_SO_SET_REPLACE)),
    ("read rules of iptables", || reads(libc::IPPROTO_IP, IPT_SO_GET_INFO)),
    ("mark packets", || sets(libc::SOL_SOCKET, libc::SO_MARK)),
    ("change an interface", || {
        let mut nothing = [0_u8; 64];
        let socket = UDP.get().unwrap().as_raw_fd();
        // SAFETY: the request is alive, and longer than the kernel reads.
        unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, nothing.as_mut_ptr()) == 0 }
    }),
];

/// From `linux/netfilter_ipv4/ip_tables.h`; those of IPv6 have the same numbers.
const IPT_SO_SET_REPLACE: libc::c_int = 64;
const IPT_SO_GET_INFO: libc::c_int = 64;

/// Sets an option of [`UDP`], to nothing.
fn sets(level: libc::c_int, name: libc::c_int) -> bool {
    let socket = UDP.get().unwrap().as_raw_fd();
    // SAFETY: no value is passed.
    unsafe { libc::setsockopt(socket, level, name, std::ptr::null(), 0) == 0 }
}

/// Reads one, of which nothing is kept.
fn reads(level: libc::c_int, name: libc::c_int) -> bool {
    let socket = UDP.get().unwrap().as_raw_fd();
    let (mut value, mut len) = ([0_u8; 64], 64);
    let to = value.as_mut_ptr().cast();
    // SAFETY: `value` is alive, and as long as is said.
    unsafe { libc::getsockopt(socket, level, name, to, &raw mut len) == 0 }
}

fn backend() -> Confinement {
    confinement(Profile::Backend)
}

fn confinement(profile: Profile) -> Confinement {
    let (files, capabilities) = (Vec::new(), Vec::new());
    Confinement { profile, files, capabilities, needs_landlock: false }
}

/// In the child: confines itself, shows that it still works, and tries.
fn run_child(attempts: &[(&str, Attempt)], attempt: &str, confine: impl FnOnce()) {
    UDP.set(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    PARENT.set(nix::unistd::getppid()).unwrap();
    confine();
    println!("{CONFINED}");
    io::stdout().flush().unwrap();
    let (_, attempt) = attempts.iter().find(|(name, _)| *name == attempt).unwrap();
    if attempt() {
        println!("{ESCAPED}");
    }
}

/// Becomes a program of this kind, and does what it does.
fn confine_as(profile: Profile) {
    confinement(profile).enter().unwrap();
    if profile != Profile::Opener {
        threads_work();
        assert!(std::os::unix::net::UnixStream::pair().is_ok());
    }
    let (sets_it, reads_it) = options::of(profile);
    // What they answer does not matter: another one would have killed.
    let _ = sets_it.iter().filter(|(level, name)| sets(*level, *name)).count();
    let _ = reads_it.iter().filter(|(level, name)| reads(*level, *name)).count();
}

fn threads_work() {
    let sum = std::thread::spawn(|| (1..=10).sum::<i32>()).join().unwrap();
    assert_eq!(sum, 55, "threads work");
    // So much, in pieces so small, that a heap would shrink.
    let freed = std::thread::spawn(|| vec![vec![1_u8; 65_000]; 40].len()).join().unwrap();
    assert_eq!(freed, 40, "and free what they had");
}

/// Runs a test of this file again, in a child that makes an attempt.
fn spawn(test: &str, attempt: &str) -> Output {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture"])
        .arg(format!("sys::sandbox::tests::{test}"))
        .env(ATTEMPT, attempt)
        .output();
    child.unwrap()
}

fn each_kills(test: &str, profile: Profile, attempts: &[(&str, Attempt)]) {
    each_kills_with(test, attempts, || confine_as(profile));
}

fn each_kills_with(test: &str, attempts: &[(&str, Attempt)], confine: impl FnOnce()) {
    if let Ok(attempt) = std::env::var(ATTEMPT) {
        return run_child(attempts, &attempt, confine);
    }
    for (attempt, _) in attempts {
        let output = spawn(test, attempt);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(CONFINED), "{attempt}: {output:?}");
        assert!(!said.contains(ESCAPED), "{attempt}");
        assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{attempt}: {output:?}");
    }
}

#[test]
fn escapes_kill() {
    each_kills("escapes_kill", Profile::Backend, ATTEMPTS);
}

#[test]
fn escapes_of_varpd_kill() {
    each_kills("escapes_of_varpd_kill", Profile::Varpd, ATTEMPTS_OF_VARPD);
}

#[test]
fn escapes_of_the_opener_kill() {
    each_kills("escapes_of_the_opener_kill", Profile::Opener, ATTEMPTS_OF_THE_OPENER);
}

/// What the calls for reading are for, with a file in reach.
#[test]
fn who_reads_files_can_not_write_them() {
    let attempts: [(&str, Attempt); 3] = [
        ("write", || File::options().write(true).open("/dev/null").is_ok()),
        ("make", || File::create("/tmp/vnet-escape").is_ok()),
        ("empty", || {
            File::options().read(true).custom_flags(libc::O_TRUNC).open("/dev/null").is_ok()
        }),
    ];
    each_kills_with("who_reads_files_can_not_write_them", &attempts, || {
        let files = vec![Reach::Read("/dev".into())];
        Confinement { files, ..confinement(Profile::Varpd) }.enter().unwrap();
        assert!(File::open("/dev/null").is_ok(), "reading works");
    });
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
