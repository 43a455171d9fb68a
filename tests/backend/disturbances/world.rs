//! The hosts, and all that runs on them.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use vnet::sys::clock;

use super::growth::Growth;
use super::guests::{Guest, Prepared};
use super::hearing::Guests;
use super::keys::config;
use super::observer::Observer;
use super::shape::{Kind, Shape};
use super::{Event, GUESTS, HOSTS, LONG, VNETS};
use crate::Net;
use crate::nic::vif;
use crate::random::Random;
use crate::secured::Keys;
use crate::support::vnet::Varpd;
use crate::support::{pause, step};

/// Fields are dropped in this order.
pub(super) struct World {
    pub(super) guests: Guests,
    /// NICs whose guests have left, and whose backends still run.
    pub(super) left_behind: Vec<Prepared>,
    pub(super) observer: Observer,
    pub(super) net: Net,
    pub(super) keys: Keys,
    pub(super) random: Random,
    pub(super) shape: Shape,
    pub(super) growth: Growth,
    /// How many backends were ever started.
    backends: u32,
    /// The last MAC given to a guest.
    last_mac: u8,
    /// What the key in use is made of; zeros are no key.
    pub(super) key: u8,
    pub(super) is_narrow: bool,
    /// Where each host is on the underlay.
    pub(super) addresses: Vec<IpAddr>,
}

impl World {
    pub(super) fn new(what: &str, seed: u64) -> Option<Self> {
        let mut random = Random::new(seed);
        let shape = Shape::new(&mut random);
        let keys = Keys::new();
        let config = |host| shape.config() + &config(&keys, host);
        let configs: Vec<String> = (0..HOSTS).map(config).collect();
        let hosts = HOSTS as u8;
        let net = Net::build_with(what, hosts, shape.mtu, |host, directory| {
            let number = usize::from(host.ipv4.octets()[3]) - 1;
            Varpd::start_on(host, "eth0", &configs[number], directory)
        })?;
        step(&format!("{shape:?}"));
        let address = |host| net.underlay.host(host).address(shape.family);
        let addresses = (0..HOSTS).map(address).collect();
        let mut world = Self {
            guests: Guests::new(shape.longest()),
            left_behind: Vec::new(),
            observer: Observer::new(&net.underlay),
            net,
            keys,
            random,
            shape,
            growth: Growth::default(),
            backends: 0,
            last_mac: 0,
            key: 1,
            is_narrow: false,
            addresses,
        };
        for _ in 0..GUESTS {
            let mac = world.new_mac();
            for vnet in VNETS {
                let guest = world.start_somewhere(vnet, mac);
                world.guests.running.push(guest);
            }
        }
        Some(world)
    }

    pub(super) fn next_event(&mut self) -> Event {
        let possible = |event: &&Event| !(self.shape.programs_last && event.ends_programs());
        let possible: Vec<Event> = Event::ALL.iter().filter(possible).copied().collect();
        possible[self.random.index(possible.len())]
    }

    /// Whatever happened, it is over soon.
    pub(super) fn recover(&mut self, after: &str) -> Duration {
        let took = self.guests.wait_all_hear(after);
        self.guests.assert_all_arrives(after, &mut self.random);
        self.observer.assert_all_sealed(after);
        for guest in &mut self.guests.running {
            guest.nic.backend.process.assert_running();
            self.growth.look(&guest.nic.backend.process, after);
        }
        for left in &mut self.left_behind {
            left.nic.backend.process.assert_running();
        }
        for varpd in &mut self.net.varpds {
            varpd.process.assert_running();
            self.growth.look_at_varpd(varpd, after);
        }
        if self.random.per_mille(500) {
            self.left_behind.clear();
        }
        took
    }

    /// A time of at most so many milliseconds.
    pub(super) fn while_of(&mut self, longest: u64) -> Duration {
        Duration::from_millis(self.random.range(0, longest))
    }

    /// Lets some time pass, at most `longest` milliseconds.
    pub(super) fn idle(&mut self, longest: u64) {
        let end = clock::mono() + self.while_of(longest);
        while clock::mono() < end {
            pause();
        }
    }

    fn new_mac(&mut self) -> u8 {
        self.last_mac = self.last_mac % 250 + 1;
        self.last_mac
    }

    pub(super) fn name(&mut self) -> String {
        self.backends += 1;
        format!("g{}", self.backends)
    }

    fn start_somewhere(&mut self, vnet: u32, mac: u8) -> Guest {
        let (name, host) = (self.name(), self.random.index(HOSTS));
        let kind = Kind::new(&self.shape, &mut self.random);
        Guest::start(&name, vif(vnet, mac), kind, &self.net.varpds[host], host)
    }

    /// A guest ends; another one starts in its place.
    pub(super) fn replace(&mut self, guest: usize) {
        let vnet = self.guests.running[guest].vnet();
        let mac = self.new_mac();
        self.guests.running[guest].nic.backend.process.terminate(LONG);
        self.guests.running[guest] = self.start_somewhere(vnet, mac);
    }

    pub(super) fn another_host(&mut self, than: usize) -> usize {
        (than + self.random.range(1, HOSTS as u64) as usize) % HOSTS
    }

    /// All programs have kept their heads.
    pub(super) fn end(mut self) {
        self.left_behind.clear();
        for guest in &mut self.guests.running {
            let status = guest.nic.backend.process.terminate(LONG);
            assert!(status.success(), "{status}");
        }
        for (name, log) in logs(self.net.path()) {
            assert!(!log.contains("panicked"), "{name}: {log}");
        }
    }
}

/// The logs of all programs that ever ran, with their names.
fn logs(directory: &Path) -> Vec<(String, String)> {
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let logs = files.filter(|path| path.extension().is_some_and(|end| end == "log"));
    let read = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (name, String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned())
    };
    logs.map(read).collect()
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // What fails here has failed the test before.
        let kept = std::env::temp_dir().join(format!("vnet-soak-{}", std::process::id()));
        if std::fs::create_dir_all(&kept).is_ok() {
            for (name, log) in logs(self.net.path()) {
                let _ = std::fs::write(kept.join(name), log);
            }
            println!("the logs are in {}", kept.display());
        }
    }
}
