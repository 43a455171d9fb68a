//! `vnet monitor`: what happens, as it happens.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;
use vnet::wire::control::{Cell, Event, Request};

use super::peer::{ACTIVE, Backend, INACTIVE, Peer};
use super::support::wait_until;
use super::{BOTH, HASTY, Net, SOON, Varpd, key, mac};

/// A running `vnet monitor` and its lines.
struct Monitor {
    process: Child,
    lines: Receiver<String>,
}

impl Monitor {
    fn start(varpd: &Varpd, args: &[&str]) -> Self {
        let before = varpd.counter("clients_now");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vnet"));
        command.arg("--socket").arg(&varpd.socket).args(args).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (tell, lines) = channel();
        let out = process.stdout.take().unwrap();
        std::thread::spawn(move || {
            let read = |out: ChildStdout| BufReader::new(out).lines().map_while(Result::ok);
            read(out).for_each(|line| drop(tell.send(line)));
        });
        wait_until("the monitor is there", SOON, || varpd.counter("clients_now") > before);
        Self { process, lines }
    }

    /// The next line that holds all of these.
    fn find(&self, parts: &[&str]) -> String {
        loop {
            let line = self.lines.recv_timeout(SOON).unwrap_or_else(|_| panic!("no {parts:?}"));
            if parts.iter().all(|part| line.contains(part)) {
                return line;
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn it_shows_what_happens_to_vifs_and_addresses() {
    let Some(net) = Net::new("vnet monitor") else { return };
    for family in BOTH {
        let (a, b) = (net.varpd(net.a(), family, HASTY), net.varpd(net.b(), family, HASTY));
        let text = Monitor::start(&a, &["monitor"]);
        let json = Monitor::start(&a, &["-j", "monitor", "--mac", &mac(2).to_string()]);
        let one = Backend::register(&a.socket, key(1), ACTIVE);
        text.find(&["claimed", &key(1).to_string(), &one.coa.to_string()]);
        let two = Backend::register(&b.socket, key(2), ACTIVE);
        one.peer.resolve(mac(2));
        one.peer.mapping(mac(2));
        text.find(&["resolved", &key(2).to_string(), &two.coa.to_string()]);
        one.peer.resolve(mac(9));
        text.find(&["unresolved", &key(9).to_string()]);
        // It moves, to this host.
        let here = Backend::register(&a.socket, key(2), INACTIVE);
        two.peer.send(&Request::SetActive { active: false });
        here.peer.send(&Request::SetActive { active: true });
        text.find(&["claimed", &key(2).to_string(), &here.coa.to_string()]);
        // And back, while it runs here: that is also what two guests with one MAC look like.
        two.peer.send(&Request::SetActive { active: true });
        text.find(&["conflict", &key(2).to_string(), &two.coa.to_string(), &here.coa.to_string()]);
        text.find(&["lost", &key(2).to_string(), &two.coa.to_string()]);
        for event in ["resolved", "claimed", "conflict", "lost"] {
            let line = json.find(&[event]);
            let value: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(value["event"], event);
            assert_eq!(
                (value["vnet"].as_u64(), value["mac"].as_str()),
                (Some(42), Some("52:54:00:00:00:02"))
            );
            assert!(value["coa"].is_string() && value["time"].is_string(), "{value}");
        }
        assert!(a.counter("conflicts") > 0);
        assert!(json.lines.try_iter().all(|line| line.contains("52:54:00:00:00:02")), "the filter");
    }
}

/// One that never reads costs neither others nor itself its connection; it is told what it missed.
#[test]
fn one_that_does_not_read_misses_events_and_holds_up_nobody() {
    const RESOLVED: usize = 3000;
    let Some(net) = Net::new("a monitor that does not read") else { return };
    let [family, _] = BOTH;
    let limits = "[limits]\nrequests-per-second = 100000\nrequest-burst = 100000\n";
    let a = net.varpd(net.a(), family, &format!("{HASTY}{limits}"));
    let slow = Peer::connect(&a.socket);
    slow.send(&Request::Monitor);
    assert!(matches!(slow.event(), Event::Columns { .. }));
    assert_eq!(slow.event(), Event::End);
    let one = Backend::register(&a.socket, key(1), ACTIVE);
    one.peer.claimed();
    // Everything that nobody has is an event; 256 questions may be open at a time.
    for n in 0..RESOLVED {
        let [.., x, y] = n.to_be_bytes();
        one.peer.resolve(vnet::wire::Mac([2, 7, 0, 0, x, y]));
        if n % 200 == 199 {
            for _ in 0..200 {
                one.peer.find(|event| matches!(event, Event::Unresolved { .. }).then_some(()));
            }
        }
    }
    assert_eq!(a.show("vifs").len(), 1, "varpd serves others");
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < RESOLVED as u64 {
        match slow.event() {
            Event::Row { cells } if cells[1] == Cell::text("missed") => {
                let Some(Cell::Number(count)) = cells.last() else { panic!("{cells:?}") };
                missed += count;
            }
            Event::Row { cells } => seen += u64::from(cells[1] == Cell::text("unresolved")),
            other => panic!("{other:?}"),
        }
    }
    assert!(slow.0.wait_readable(Duration::ZERO).is_ok());
}
