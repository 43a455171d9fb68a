//! varpd without capabilities, and the process beside it that has one.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use socket2::SockRef;

use super::peer::{ACTIVE, Backend, Way};
use super::support::netns::Family;
use super::support::process::Process;
use super::support::wait_until;
use super::{BOTH, Net, SOON, Varpd, key};

const VARPD: &str = env!("CARGO_BIN_EXE_varpd");
/// Somebody who is neither root nor in one of its groups.
const NOBODY: u32 = 65_534;
/// CAP_NET_ADMIN (capabilities(7)).
const NET_ADMIN: u64 = 1 << 12;
/// What the sockets of a vif are to have, as the kernel doubles it.
const LARGE: usize = 32 << 20;

/// A field of proc(5)'s status.
fn field(pid: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    line.unwrap_or_else(|| panic!("{name} in {status}")).to_owned()
}

fn capabilities(pid: u32, set: &str) -> u64 {
    u64::from_str_radix(&field(pid, set), 16).unwrap()
}

/// The process that another has started.
fn child_of(parent: u32) -> Option<u32> {
    let is_child = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (_, fields) = stat.rsplit_once(')').unwrap_or_default();
        fields.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(is_child)
}

fn opener_of(varpd: &Process) -> u32 {
    child_of(varpd.pid()).expect("varpd has started one")
}

fn is_running(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

/// A container that lets varpd change its groups and not its user; nobody has configured one, and there is one.
#[test]
fn a_change_of_user_that_fails_halfway_ends_varpd() {
    let Some(net) = Net::new("varpd: half a change of user") else { return };
    let passwd = net.path("passwd");
    let text = fs::read_to_string("/etc/passwd").unwrap();
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("varpd:")).collect();
    let own = "varpd:x:64999:64999::/nonexistent:/usr/sbin/nologin";
    fs::write(&passwd, format!("{}\n{own}\n", without.join("\n"))).unwrap();
    let run = |dropped: &str| {
        let mut command = net.a().command("unshare");
        let script = "mount --bind \"$0\" /etc/passwd && exec setpriv --bounding-set \"$1\" -- \"$2\" --underlay no-such --socket \"$3\"";
        command.args(["--mount", "sh", "-c", script]).arg(&passwd).args([dropped, VARPD]);
        command.arg(net.path("s"));
        Process::start("half", net.dir.path(), &mut command)
    };
    let mut half = run("-setuid");
    let status = half.wait_end(SOON);
    let log = half.log();
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(log.contains("varpd: user 'varpd': ") && log.contains("CAP_SETUID"), "{log}");
    let neither = run("-setuid,-setgid");
    wait_until("without either it stays root", SOON, || {
        neither.log().contains("waiting for an address on the underlay")
    });
    let pid = neither.pid();
    assert_eq!(field(pid, "Uid"), ["0"; 4].join("\t"));
    assert_eq!(field(pid, "Groups").trim(), field(std::process::id(), "Groups").trim());
}

/// What the kernel gives who asks without a capability, as it doubles it.
fn usual(limit: &str) -> usize {
    let most = fs::read_to_string(format!("/proc/sys/net/core/{limit}")).unwrap();
    LARGE.min(2 * most.trim().parse::<usize>().unwrap())
}

fn buffers(vif: &Backend) -> Vec<(usize, usize)> {
    let of = |socket| {
        let socket = SockRef::from(socket);
        (socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap())
    };
    vif.sockets.iter().map(of).collect()
}

fn assert_large(vif: &Backend) {
    assert_eq!(buffers(vif), vec![(LARGE, LARGE); vif.sockets.len()]);
}

#[test]
fn varpd_has_its_own_user_and_no_capability_and_the_opener_one() {
    let Some(net) = Net::new("varpd: no capability") else { return };
    for family in BOTH {
        let varpd = net.varpd(net.a(), family, "user = 'nobody'\n");
        let (own, opener) = (varpd.process.pid(), opener_of(&varpd.process));
        for pid in [own, opener] {
            for id in ["Uid", "Gid"] {
                assert_eq!(field(pid, id), [NOBODY.to_string().as_str(); 4].join("\t"));
            }
            for set in ["CapInh", "CapBnd", "CapAmb"] {
                assert_eq!(capabilities(pid, set), 0, "{set} of {pid}");
            }
            assert_eq!(field(pid, "NoNewPrivs"), "1");
            assert_eq!(field(pid, "Seccomp"), "2", "a filter");
        }
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(capabilities(own, set), 0);
            assert_eq!(capabilities(opener, set), NET_ADMIN);
        }
        let open = fs::read_dir(format!("/proc/{opener}/fd")).unwrap();
        let links = open.map(|fd| fs::read_link(fd.unwrap().path()).unwrap());
        let sockets = links.filter(|link| link.to_string_lossy().starts_with("socket:")).count();
        assert_eq!(sockets, 1, "it sees nothing but its connection");
        // Nothing of it depends on net.core.rmem_max.
        assert_large(&Backend::register(&varpd.socket, key(1), Way { queue_pairs: 2, ..ACTIVE }));
        assert_eq!(varpd.counter("buffers_small"), 0);
    }
}

#[test]
fn without_its_opener_varpd_goes_on_and_says_so_once() {
    let Some(net) = Net::new("varpd: the opener is killed") else { return };
    let mut varpd = net.varpd(net.a(), Family::V4, "user = 'nobody'\n");
    let before = Backend::register(&varpd.socket, key(1), ACTIVE);
    let opener = opener_of(&varpd.process);
    // Whoever means varpd's whole group, or everything of its name, does not mean it.
    for harmless in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1] {
        signal(opener, harmless);
    }
    assert_large(&Backend::register(&varpd.socket, key(2), ACTIVE));
    signal(opener, Signal::SIGKILL);
    let lost = "the opener has ended";
    wait_until("it is noticed", SOON, || varpd.process.log().contains(lost));
    wait_until("nobody has to wait for it", SOON, || !is_running(opener));
    let small = (usual("rmem_max"), usual("wmem_max"));
    let after = [3, 4].map(|last| Backend::register(&varpd.socket, key(last), ACTIVE));
    for vif in &after {
        assert_eq!(buffers(vif), [small; 2]);
    }
    assert_large(&before);
    let is_less = small != (LARGE, LARGE);
    wait_until("they are counted", SOON, || {
        varpd.counter("buffers_small") == if is_less { 4 } else { 0 }
    });
    assert_eq!(varpd.process.log().matches(lost).count(), 1);

    // The next varpd has one again: also for sockets that it did not open.
    varpd.restart(&net);
    let [vif, _] = after;
    let Backend { sockets, coa, peer, .. } = vif;
    drop(peer);
    let vif = Backend::return_with(&varpd.socket, key(3), ACTIVE, sockets);
    assert_eq!(vif.coa, coa);
    assert_large(&vif);
}

#[test]
fn the_opener_ends_with_varpd() {
    let Some(net) = Net::new("varpd: end of the opener") else { return };
    for end in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut varpd = net.varpd(net.a(), Family::V4, "user = 'nobody'\n");
        let opener = opener_of(&varpd.process);
        signal(varpd.process.pid(), end);
        varpd.process.wait_end(SOON);
        wait_until("the opener has ended", SOON, || !is_running(opener));
    }
}

/// As an ordinary user, with these capabilities.
fn as_nobody(net: &Net, name: &str, capabilities: &[&str]) -> Varpd {
    // The build's directory may be closed to other users.
    let (program, directory) = (net.path("varpd"), net.path(name));
    fs::copy(VARPD, &program).unwrap();
    fs::create_dir(&directory).unwrap();
    chown(&directory, Some(NOBODY), None).unwrap();
    let socket = directory.join("varpd.sock");
    let mut command = net.a().command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(capabilities);
    command.arg(&program).args(["--underlay", "eth0", "--socket"]).arg(&socket);
    let process = super::spawn(name, net, &mut command);
    let mut varpd = Varpd { process, command, name: name.to_owned(), socket };
    varpd.wait_ready();
    varpd
}

/// As by a service manager: `User=` and `AmbientCapabilities=CAP_NET_ADMIN`.
#[test]
fn one_ambient_capability_is_enough() {
    let Some(net) = Net::new("varpd: an ambient capability") else { return };
    let capability = ["--inh-caps=+net_admin", "--ambient-caps=+net_admin"];
    let mut varpd = as_nobody(&net, "ambient", &capability);
    let (own, opener) = (varpd.process.pid(), opener_of(&varpd.process));
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(capabilities(own, set), 0, "{set}");
    }
    assert_eq!(capabilities(opener, "CapEff"), NET_ADMIN);
    assert_eq!(capabilities(opener, "CapAmb"), 0);
    assert_large(&Backend::register(&varpd.socket, key(1), ACTIVE));
    assert!(varpd.process.terminate(SOON).success());
    assert!(!varpd.socket.exists(), "it removes its socket");
}

#[test]
fn without_any_capability_it_works_with_the_kernels_usual_buffers() {
    let Some(net) = Net::new("varpd: no capability at all") else { return };
    let varpd = as_nobody(&net, "bare", &[]);
    assert_eq!(capabilities(opener_of(&varpd.process), "CapEff"), 0);
    let vif = Backend::register(&varpd.socket, key(1), ACTIVE);
    let small = (usual("rmem_max"), usual("wmem_max"));
    assert_eq!(buffers(&vif), [small; 2]);
    if small != (LARGE, LARGE) {
        let log = varpd.process.log();
        assert!(
            log.contains("start varpd with CAP_NET_ADMIN, or raise net.core.rmem_max"),
            "{log}"
        );
    }
}

/// A kernel without Landlock: the call does not exist.
fn without_landlock(command: &mut Command) {
    let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())].into();
    let no_call = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let here = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, no_call, here).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&program)
                .map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))
        })
    };
}

#[test]
fn without_landlock_secured_vnets_are_refused_unless_it_is_waived() {
    let Some(net) = Net::new("varpd: no Landlock") else { return };
    let keys = net.path("keys");
    fs::create_dir(&keys).unwrap();
    fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let mut generate = Command::new(env!("CARGO_BIN_EXE_vnet"));
    let made = generate.args(["key", "generate"]).arg(keys.join("42.key")).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let start = |name: &str, config: &str| {
        let file = net.path("c.toml");
        fs::write(&file, config.replace("KEYS", keys.to_str().unwrap())).unwrap();
        let mut command = net.a().command(VARPD);
        command.args(["--underlay", "eth0", "--socket"]).arg(net.path("s"));
        command.arg("--config").arg(&file);
        without_landlock(&mut command);
        super::spawn(name, &net, &mut command)
    };
    let secured = "[vnet.42]\npolicy = 'conf'\n[security]\nkey-directory = 'KEYS'\n";
    let mut refused = start("refused", secured);
    assert_eq!(refused.wait_end(SOON).code(), Some(2));
    let log = refused.log();
    assert!(
        log.contains("this kernel has no Landlock") && log.contains("without-landlock"),
        "{log}"
    );
    assert!(!log.contains("varpd: ready"), "{log}");
    for (name, config) in
        [("waived", format!("{secured}without-landlock = true\n")), ("plain", String::new())]
    {
        let mut process = start(name, &config);
        wait_until("it is ready", SOON, || {
            process.assert_running();
            process.log().contains("varpd: ready")
        });
        assert!(process.log().contains("no Landlock"), "{}", process.log());
    }
}
