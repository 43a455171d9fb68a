//! Key files: whose they are, and who reads them.

use std::fs::{self, Permissions};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use vnet::sys::clock;
use vnet::wire::control::{Event, Request};
use vnet::wire::name::Realm;
use vnet::wire::varp::{Author, Body, Claim, Message};
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Stamp};

use super::peer::{ACTIVE, Backend, Way};
use super::support::netns::Family;
use super::support::process::Process;
use super::support::wait_until;
use super::{Net, SOON, key, mac, vnet};

/// Of a varpd that is not root's.
const DAEMON: u32 = 1;

/// A directory with the key of vnet 42.
pub(crate) struct Keys(PathBuf);

impl Keys {
    pub(crate) fn new(net: &Net) -> Self {
        Self::named(net, "keys")
    }

    /// In a directory of this name.
    pub(crate) fn named(net: &Net, name: &str) -> Self {
        let keys = Self::empty_named(net, name, 0);
        assert!(generate(&keys.file(), &[]).status.success());
        keys
    }

    /// Without a key, a user's.
    fn empty(net: &Net, owner: u32) -> Self {
        Self::empty_named(net, "keys", owner)
    }

    fn empty_named(net: &Net, name: &str, owner: u32) -> Self {
        let directory = net.path(name);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
        chown(&directory, Some(owner), None).unwrap();
        Self(directory)
    }

    fn file(&self) -> PathBuf {
        self.0.join("42.key")
    }

    /// The vnet is secured, and has this in its section.
    pub(crate) fn config(&self, section: &str) -> String {
        let directory = self.0.display();
        format!("[security]\nkey-directory = '{directory}'\n[vnet.42]\npolicy = 'conf'\n{section}")
    }
}

fn generate(file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vnet"));
    command.args(["key", "generate"]).arg(file).args(more).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    // Where memory can't be locked varpd says so before.
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    format!("{}\n", lines[0])
}

/// varpd as a user without any rights, at host a.
fn unprivileged(net: &Net, keys: &Keys) -> (Command, PathBuf) {
    let program = net.path("varpd");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_varpd"), &program).unwrap();
    }
    let (directory, config) = (net.path("run"), net.path("varpd.toml"));
    if !directory.exists() {
        fs::create_dir(&directory).unwrap();
        chown(&directory, Some(DAEMON), Some(DAEMON)).unwrap();
    }
    let socket = directory.join("varpd.sock");
    let head = format!("socket = '{}'\naddress = '192.0.2.1'\n", socket.display());
    fs::write(&config, head + &keys.config("")).unwrap();
    let mut command = net.a().command("setpriv");
    command.args(["--reuid=1", "--regid=1", "--clear-groups", "--"]).arg(program);
    command.arg("--config").arg(config);
    (command, socket)
}

/// The last step of a change waits for hosts that send without tags. On its own an outsider is one.
#[test]
fn a_message_without_a_tag_counts_as_that_of_its_sender_only() {
    let Some(net) = Net::new("varpd: messages without tags are counted") else { return };
    let keys = Keys::new(&net);
    let config = keys.config("").replace("'conf'", "['conf', 'none']");
    let varpd = net.varpd(net.a(), Family::V4, &config);
    let _backend = Backend::register(&varpd.socket, key(1), ACTIVE);
    let socket = std::thread::scope(|scope| {
        let open = || {
            net.b().enter();
            UdpSocket::bind("192.0.2.2:1798").unwrap()
        };
        scope.spawn(open).join().unwrap()
    });
    let announce = |author: [u8; 4], relayed: bool| {
        let addr = SocketAddr::from((author, 1798));
        let coa = CareOf {
            addr: (author, 4000).into(),
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        };
        let claim = Claim { stamp: Stamp(1), coa, realm: Realm(0), behind: None };
        let message = Message {
            key: key(9),
            author: Author { realm: Realm(0), addr },
            nonce: 1,
            wide: true,
            relayed,
            body: Body::Announce { claim, lifetime_ms: 30_000 },
            tag: None,
        };
        socket.send_to(&message.to_bytes(), "192.0.2.1:1798").unwrap();
    };
    let shown = || {
        let row = &varpd.show("vnets")[0];
        (row["others"].as_u64().unwrap(), row["untagged"].as_u64().unwrap())
    };
    for n in 3..40 {
        announce([192, 0, 2, n], n % 2 == 0);
    }
    announce([192, 0, 2, 2], true);
    wait_until("varpd has heard them", SOON, || varpd.counter("varp_other_policy") == 19);
    wait_until("and the others", SOON, || varpd.counter("rx_drop_relayed") == 19);
    assert_eq!(shown(), (0, 0), "in the names of others, and as if through a relay");
    announce([192, 0, 2, 2], false);
    wait_until("the sender itself counts", SOON, || shown() == (1, 1));
}

/// Root makes and exchanges keys; varpd, whose directory it is, can read what root has written.
#[test]
fn keys_that_root_makes_are_read_by_varpds_own_user() {
    let Some(net) = Net::new("varpd: keys of a user of its own") else { return };
    let keys = Keys::empty(&net, DAEMON);
    assert!(generate(&keys.file(), &[]).status.success());
    let is_varpds = || {
        let file = fs::metadata(keys.file()).unwrap();
        (file.uid(), file.mode() & 0o777) == (DAEMON, 0o600)
    };
    assert!(is_varpds());
    let (mut command, socket) = unprivileged(&net, &keys);
    let mut varpd = Process::start("varpd-own", net.dir.path(), &mut command);
    wait_until("varpd is ready", SOON, || {
        varpd.assert_running();
        varpd.log().contains("varpd: ready")
    });
    let counter = |name: &str| {
        let output = vnet(&socket, &["show", "stats"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let row = text.lines().find(|line| line.contains(name)).map(str::to_owned);
        row.and_then(|row| row.split_whitespace().last()?.parse::<u64>().ok()).unwrap()
    };
    for step in 2..5 {
        let rotated = Command::new(env!("CARGO_BIN_EXE_vnet"))
            // No vif of the vnet is here to say whether other hosts use the old key.
            .args(["key", "rotate", "--force"])
            .arg(keys.file())
            .output()
            .unwrap();
        assert!(rotated.status.success(), "{rotated:?}");
        assert!(is_varpds());
        wait_until("varpd reads the key again", SOON, || counter("key_files_read") == step);
    }
    assert_eq!(counter("key_files_failed"), 0);
    varpd.assert_running();
}

#[test]
fn a_key_that_varpds_user_can_not_read_says_what_to_do() {
    let Some(net) = Net::new("varpd: another user's keys") else { return };
    let keys = Keys::empty(&net, DAEMON);
    assert!(generate(&keys.file(), &["--owner", "root"]).status.success());
    assert_eq!(fs::metadata(keys.file()).unwrap().uid(), 0);
    let (mut command, _) = unprivileged(&net, &keys);
    let text = said(&command.output().unwrap());
    assert!(text.contains("42.key: user 1, as whom varpd runs, can't read it"), "{text}");
    assert!(text.contains("chown 1"), "{text}");
    let unknown = generate(&net.path("x"), &["--owner", "no-such-user"]);
    assert_eq!(said(&unknown), "vnet: --owner no-such-user: no such user\n");
}

#[test]
fn a_directory_that_others_may_enter_and_a_typed_key_are_refused() {
    let Some(net) = Net::new("varpd: keys that are none") else { return };
    let keys = Keys::new(&net);
    let config = keys.config("");
    let varpd = || {
        let file = net.path("c.toml");
        fs::write(&file, &config).unwrap();
        let mut command = net.a().command(env!("CARGO_BIN_EXE_varpd"));
        command.args(["--address", "192.0.2.1", "--socket"]).arg(net.path("own.sock"));
        said(&command.arg("--config").arg(&file).output().unwrap())
    };
    fs::set_permissions(&keys.0, Permissions::from_mode(0o750)).unwrap();
    for text in [varpd(), said(&generate(&keys.0.join("43.key"), &[]))] {
        assert!(text.contains("lets group or others in (mode 0750): chmod 700"), "{text}");
    }
    fs::set_permissions(&keys.0, Permissions::from_mode(0o700)).unwrap();
    fs::write(keys.file(), format!("use {}\n", "0123456789abcdef".repeat(4))).unwrap();
    let text = varpd();
    assert!(text.contains("line 1: this key was typed, not drawn"), "{text}");
    assert!(!text.contains("0123456789abcdef"), "{text}");
}

/// Frames for a vif whose backend is not back yet would otherwise be sealed with keys that it does not have, instead
/// of those that it has.
#[test]
fn after_a_restart_a_new_session_serves_when_backends_have_had_time_to_return() {
    /// Backends of an earlier varpd are back within this time.
    const RETURN: Duration = Duration::from_millis(700);
    let Some(net) = Net::new("varpd: a session while backends return") else { return };
    let config = Keys::new(&net).config("");
    let a = net.varpd(net.a(), Family::V4, &config);
    let mut b = net.varpd(net.b(), Family::V4, &config);
    let one = Backend::register(&a.socket, key(1), ACTIVE);
    let early = Backend::register(&b.socket, key(2), ACTIVE);
    let late = Backend::register(&b.socket, key(3), ACTIVE);
    let stamps = [early.peer.claimed(), late.peer.claimed()];
    for (of, coa) in [(2, early.coa), (3, late.coa)] {
        one.peer.resolve(mac(of));
        assert_eq!(one.peer.mapping(mac(of)), coa);
    }

    let begin = clock::mono();
    b.restart(&net);
    let return_with = |last, stamp, sockets| {
        Backend::return_with(&b.socket, key(last), Way { stamp: Some(stamp), ..ACTIVE }, sockets)
    };
    let early = return_with(2, stamps[0], early.sockets);
    early.peer.send(&Request::Resolve { mac: mac(1), refresh: true });
    let accepted = |backend: &Backend| {
        backend.peer.find(|event| match event {
            Event::SaIn { keys } => Some(keys[0].number),
            _ => None,
        })
    };
    let number = accepted(&early);
    early.peer.send(&Request::SaReady { number });
    let late = return_with(3, stamps[1], late.sockets);
    assert_eq!(accepted(&late), number);
    late.peer.send(&Request::SaReady { number });
    one.peer.find(|event| match event {
        Event::SaIn { keys } => {
            one.peer.send(&Request::SaReady { number: keys[0].number });
            Some(())
        }
        _ => None,
    });
    one.peer.find(|event| {
        matches!(event, Event::SaOut { to, .. } if *to == late.coa.addr).then_some(())
    });
    let took = clock::mono() - begin;
    assert!(
        took >= RETURN,
        "another backend might have come for {RETURN:?}, and keys did after {took:?}"
    );
}
