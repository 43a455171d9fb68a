//! Secured vnets: members exchange frames, nobody else gets, reads, injects or redirects any.
//!
//! ```text
//!     guest 1      guest 2      guest 3        guest 4
//!        |            |            |              |
//!     host a       host b       host c         host d        right key, right key, and not
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use vnet::metrics::VifCounter;
use vnet::sys::clock;

use crate::driver::Options;
use crate::nic::{BROADCAST, LEN, Nic, frame, mac, number, vif};
use crate::queues::receive_now;
use crate::support::vnet::Varpd;
use crate::support::{step, wait_until};
use crate::{Net, SOON};

/// The key that is made of a byte; no varpd takes one of equal bytes.
pub(crate) fn key(first: u8) -> [u8; 32] {
    std::array::from_fn(|at| first.wrapping_add((at * at % 256) as u8))
}

/// Key files.
pub(crate) struct Keys(TempDir);

impl Keys {
    pub(crate) fn new() -> Self {
        let closed = fs::Permissions::from_mode(0o700);
        Self(tempfile::Builder::new().permissions(closed).tempdir().unwrap())
    }

    /// Writes a file, as a whole; each line is a role and the byte that a key is made of ([`key`]).
    pub(crate) fn write(&self, name: &str, lines: &[(&str, &str)]) -> PathBuf {
        let digits = |byte: &str| -> String {
            let byte = u8::from_str_radix(byte, 16).unwrap();
            key(byte).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let line = |(role, byte): &(&str, &str)| format!("{role} {}\n", digits(byte));
        let text: String = lines.iter().map(line).collect();
        let (path, new) = (self.0.path().join(name), self.0.path().join("new"));
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&new, &path).unwrap();
        path
    }

    /// Removes a file.
    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.0.path().join(name)).unwrap();
    }

    pub(crate) fn config(
        &self,
        policy: &str,
        name: &str,
        lines: &[(&str, &str)],
        more: &str,
    ) -> String {
        let file = self.write(name, lines);
        format!("{more}[vnet.42]\npolicy = '{policy}'\nkey-file = '{}'\n", file.display())
    }
}

/// One of varpd's own counters.
pub(crate) fn varpd_counter(varpd: &Varpd, name: &str) -> u64 {
    let rows = varpd.show("stats");
    let of_varpd = |row: &&serde_json::Value| row["vnet"].is_null() && row["counter"] == name;
    rows.as_array().unwrap().iter().find(of_varpd).map_or(0, |row| row["value"].as_u64().unwrap())
}

/// Sends to and fro until frames pass: for a while after a change some may not.
pub(crate) fn wait_passes(from: &mut Nic, to: &mut Nic, first: u32) {
    let mut next = first;
    wait_until("frames pass again", SOON, || {
        next += 1;
        from.send(to.mac(), next);
        // What came before is in front of it.
        let arrived = std::iter::from_fn(|| to.try_receive(from.mac(), Duration::from_millis(50)));
        arrived.into_iter().any(|n| n >= first)
    });
    while to.driver.recv_frame(Duration::from_millis(50)).is_some() {}
}

pub(crate) fn assert_no_drops(net: &Net, host: usize, nic: &Nic) {
    let drops = net.counters(host, nic.vif);
    assert_eq!(drops.sum("rx_drop_") - drops.get(VifCounter::rx_drop_own), 0, "{drops:?}");
    assert_eq!(drops.sum("tx_drop_"), 0, "{drops:?}");
}

#[test]
fn members_exchange_frames() {
    for policy in ["auth", "conf"] {
        let keys = Keys::new();
        let config = keys.config(policy, "k", &[("use", "a1")], "");
        let configs = [config.clone(), config];
        let Some(net) = Net::with_configs(&format!("secured, {policy}"), &configs) else { return };
        let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
        let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
        let mut near = Nic::start("g3", vif(42, 3), &net.varpds[0]);
        // The very first frame of all is for everybody, and is not lost.
        one.send(BROADCAST, 5);
        for other in [&mut two, &mut near] {
            assert_eq!(other.receive(mac(1)), 5);
        }
        let begin = clock::mono();
        one.introduce(&mut two);
        step(&format!("first exchange after {:?}", clock::mono() - begin));
        near.introduce(&mut two);
        one.introduce(&mut near);
        for (n, len) in [60, 61, 62, 63, 64, 1000, 1500].into_iter().enumerate() {
            one.send_frame(&frame(mac(2), mac(1), n as u32, len));
            let got = two.driver.recv_frame(SOON).unwrap();
            assert_eq!((number(&got, mac(1)), got.len()), (n as u32, len));
        }
        for n in 0..20_000 {
            one.send(mac(2), n);
            if n % 128 == 127 {
                (n - 127..=n).for_each(|n| assert_eq!(two.receive(mac(1)), n));
            }
        }
        for (host, nic) in [(0, &one), (1, &two), (0, &near)] {
            assert_no_drops(&net, host, nic);
        }
    }
}

#[test]
fn who_is_no_member_gets_nothing() {
    let keys = Keys::new();
    let right = keys.config("conf", "right", &[("use", "a1")], "");
    let wrong = keys.config("conf", "wrong", &[("use", "b2")], "");
    let lower = keys.config("auth", "lower", &[("use", "a1")], "");
    let configs = [right.clone(), right, String::new(), wrong, lower];
    let what = "hosts without key, with a wrong key, with another policy";
    let Some(net) = Net::with_configs(what, &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    one.introduce(&mut two);
    // Each host has a guest of its own, and one that claims to be guest 2, later than that did.
    for (host, last) in [(2, 3), (2, 2), (3, 4), (3, 2), (4, 5), (4, 2)] {
        let mut stranger = Nic::start("s", vif(42, last), &net.varpds[host]);
        for n in 0..200 {
            stranger.send(BROADCAST, n);
            stranger.send(mac(1), n);
            one.send(BROADCAST, n);
            assert_eq!(two.receive(mac(1)), n);
            one.send(mac(2), n);
            assert_eq!(two.receive(mac(1)), n, "goes where it went before");
            one.send(mac(host as u8 + 1), n);
        }
        one.assert_silent();
        two.assert_silent();
        stranger.assert_silent();
        let heard = net.counters(host, stranger.vif);
        assert_eq!(heard.get(VifCounter::rx_frames), 0);
    }
    let refused: u64 = ["varp_drop_untagged", "varp_drop_key", "varp_drop_forged"]
        .iter()
        .map(|name| varpd_counter(&net.varpds[0], name))
        .sum();
    assert!(refused > 10, "{refused}");
    assert_eq!(varpd_counter(&net.varpds[0], "moved"), 0);
    assert_eq!(net.counters(0, one.vif).get(VifCounter::rx_frames), 1);
}

#[test]
fn keys_are_replaced_under_traffic_without_loss() {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "[security]\nrekey = 1\n");
    let Some(net) = Net::with_configs("new keys every second", &[config.clone(), config]) else {
        return;
    };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    one.introduce(&mut two);
    let begin = clock::mono();
    let mut sent = 0;
    while clock::mono() - begin < Duration::from_secs(8) {
        for n in sent..sent + 64 {
            one.send(mac(2), n);
            two.send(mac(1), n);
        }
        for n in sent..sent + 64 {
            assert_eq!(two.receive(mac(1)), n);
            assert_eq!(one.receive(mac(2)), n);
        }
        sent += 64;
    }
    let sessions = varpd_counter(&net.varpds[0], "sa_sessions");
    step(&format!("{sent} frames each way, {sessions} sessions"));
    assert!(sessions >= 5, "{sessions}");
    assert_shown(&net.varpds[0], sessions);
    for (host, nic) in [(0, &one), (1, &two)] {
        assert_no_drops(&net, host, nic);
    }
}

/// The only link of host a is shown as it is.
fn assert_shown(varpd: &Varpd, sessions: u64) {
    let peers = varpd.show("peers");
    let [row] = &peers.as_array().unwrap()[..] else { panic!("{peers}") };
    let cells = ["vnet", "peer", "policy", "key", "failed", "dropped"].map(|name| &row[name]);
    let want = serde_json::json!([42, "192.0.2.2", "conf", "use", 0, 0]);
    assert_eq!(serde_json::json!(cells), want, "{row}");
    assert!(["open", "replacing"].iter().any(|state| row["state"] == *state), "{row}");
    let number = |name: &str| row[name].as_f64().unwrap();
    assert!(number("age") < 3.0 && number("rekey") <= 1.2 && number("expires") <= 2.0, "{row}");
    assert!(number("made") >= sessions as f64 && number("sessions") >= 1.0, "{row}");
    assert!(number("senders") > 4000.0 && row["cipher"].is_string(), "{row}");
}

#[test]
fn restarts_bring_new_keys() {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "");
    let Some(mut net) = Net::with_configs("restarts on a secured vnet", &[config.clone(), config])
    else {
        return;
    };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    one.introduce(&mut two);

    step("a backend is killed and started again");
    two.backend.process.kill();
    two.backend.start_again();
    two.reconnect();
    wait_passes(&mut one, &mut two, 100);
    wait_passes(&mut two, &mut one, 200);

    step("varpd is killed: frames go on, and nothing is lost when it is back");
    net.varpds[1].kill();
    for n in 1000..1100 {
        one.send(mac(2), n);
        assert_eq!(two.receive(mac(1)), n);
    }
    net.varpds[1].start_again();
    two.wait_state("active", &net.varpds[1]);
    for n in 1100..1200 {
        one.send(mac(2), n);
        assert_eq!(two.receive(mac(1)), n);
        two.send(mac(1), n);
        assert_eq!(one.receive(mac(2)), n);
    }

    step("both the backend and varpd are killed: the host has lost its memory");
    two.backend.process.kill();
    net.varpds[1].kill();
    net.varpds[1].start_again();
    two.backend.start_again();
    two.reconnect();
    wait_passes(&mut one, &mut two, 2000);
    wait_passes(&mut two, &mut one, 3000);
}

/// Several queue pairs send with keys of their own, and know each other's windows.
#[test]
fn queue_pairs_share_what_they_receive() {
    let keys = Keys::new();
    let config = keys.config("conf", "k", &[("use", "a1")], "");
    let Some(net) = Net::with_configs("secured, two queue pairs", &[config.clone(), config]) else {
        return;
    };
    let start = |name: &str, last: u8, host: usize| {
        let options = Options { pairs: 2, ..Nic::options() };
        Nic::start_with(name, vif(42, last), &net.varpds[host], options, &["--queue-pairs", "2"])
    };
    let (mut one, mut two) = (start("g1", 1, 0), start("g2", 2, 1));
    let mut arrived = 0;
    for n in 0..2000 {
        let pair = n as usize % 2;
        for to in [mac(2), BROADCAST] {
            let frame = frame(to, mac(1), n, LEN);
            assert!(one.driver.wait_room(pair, SOON) && one.driver.queue_frame(pair, &frame));
        }
        one.driver.flush(pair);
        wait_until("both frames arrive", SOON, || {
            arrived += u32::from(receive_now(&mut two).is_some());
            arrived == 2 * (n + 1)
        });
    }
    for (host, nic) in [(0, &one), (1, &two)] {
        assert_no_drops(&net, host, nic);
    }
}

#[test]
fn a_rotation_loses_nothing_and_shuts_out_who_has_the_old_key() {
    let keys = Keys::new();
    let file = |name: &str| keys.config("conf", name, &[("use", "a1")], "");
    let configs = [file("a"), file("b"), file("old")];
    let Some(net) = Net::with_configs("rotation of the vnet's key", &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let mut old = Nic::start("g3", vif(42, 3), &net.varpds[2]);
    one.introduce(&mut two);
    old.introduce(&mut one);
    let reads = |host: usize| varpd_counter(&net.varpds[host], "key_files_read");
    let mut n = 0;
    let steps: [&[(&str, &str)]; 3] =
        [&[("use", "a1"), ("next", "b2")], &[("use", "b2"), ("old", "a1")], &[("use", "b2")]];
    for lines in steps {
        for (host, name) in [(0, "a"), (1, "b")] {
            let before = reads(host);
            keys.write(name, lines);
            wait_until("the file is read", SOON, || {
                for _ in 0..20 {
                    n += 1;
                    one.send(mac(2), n);
                    one.send(BROADCAST, n);
                    if lines.len() > 1 {
                        assert_eq!(two.receive(mac(1)), n, "{lines:?}");
                        assert_eq!(two.receive(mac(1)), n, "{lines:?}");
                    }
                }
                reads(host) > before
            });
        }
    }
    wait_passes(&mut one, &mut two, 100_000);
    wait_passes(&mut two, &mut one, 200_000);
    while old.driver.recv_frame(Duration::from_millis(50)).is_some() {}
    for n in 0..100 {
        one.send(BROADCAST, n);
        one.send(mac(3), n);
        old.send(BROADCAST, n);
        old.send(mac(1), n);
    }
    let last = frame(mac(1), mac(2), 7, LEN);
    two.send_frame(&last);
    assert_eq!(one.receive(mac(2)), 7, "nothing of the old one before it");
    old.assert_silent();
}

/// A varpd that was away does not know the sessions that its backends went on with.
#[test]
fn a_key_withdrawn_while_varpd_is_away_shuts_out_who_has_it() {
    let keys = Keys::new();
    let file = |name: &str| keys.config("conf", name, &[("use", "a1")], "");
    let configs = [file("a"), file("b"), file("old")];
    let what = "the vnet's key is exchanged while varpd is away";
    let Some(mut net) = Net::with_configs(what, &configs) else { return };
    let mut one = Nic::start("g1", vif(42, 1), &net.varpds[0]);
    let mut two = Nic::start("g2", vif(42, 2), &net.varpds[1]);
    let mut old = Nic::start("g3", vif(42, 3), &net.varpds[2]);
    one.introduce(&mut two);
    old.introduce(&mut one);
    for (host, name) in [(0, "a"), (1, "b")] {
        net.varpds[host].kill();
        keys.write(name, &[("use", "b2")]);
        net.varpds[host].start_again();
    }
    one.wait_state("active", &net.varpds[0]);
    two.wait_state("active", &net.varpds[1]);
    let refused = |net: &Net| net.counters(0, one.vif).get(VifCounter::rx_drop_spi);
    wait_until("the old one's session is over", SOON, || {
        old.send(mac(1), 1);
        refused(&net) > 0
    });
    while one.driver.recv_frame(Duration::from_millis(50)).is_some() {}
    for n in 0..100 {
        old.send(BROADCAST, n);
        old.send(mac(1), n);
        one.send(BROADCAST, n);
        one.send(mac(3), n);
    }
    one.assert_silent();
    old.assert_silent();
    wait_passes(&mut one, &mut two, 100_000);
    wait_passes(&mut two, &mut one, 200_000);
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let keys = Keys::new();
    let path = keys.write("42.key", &[("use", "a1")]);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let directory: &Path = keys.0.path();
    let config =
        format!("[security]\npolicy = 'conf'\nkey-directory = '{}'\n", directory.display());
    let Some(net) = Net::with_configs("a key file with a wrong mode", &[config]) else { return };
    let varpd = &net.varpds[0];
    let run = |vnet: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_vhost-user-vnet"));
        command.args(["--vnet", vnet, "--mac", "52:54:00:00:00:01", "--varpd"]);
        command.arg(&varpd.socket).arg("--socket-path").arg(net.path().join("x.sock"));
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run("42");
    assert!(said.contains("0640") && said.contains("42.key"), "{said}");
    assert!(run("43").contains("No such file"), "every vnet is secured here");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    Nic::start("g1", vif(42, 1), varpd).assert_silent();
}
