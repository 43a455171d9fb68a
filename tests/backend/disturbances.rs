//! All that can happen to hosts, programs and guests, in random order, under traffic: whatever it was,
//! all guests of a vnet hear each other soon after, then nothing is lost, and none ever hears a frame
//! that is not for it.
//!
//! ```text
//!     vnet 42 (conf)     1     2     3
//!     vnet 43 (none)     1     2     3         guests that move, end, start, and are shut out
//!     vnet 44 (auth)     1     2     3
//!     hosts              a     b     c         whose cables are pulled and whose programs are killed
//! ```
//!
//! `VNET_SOAK_MINUTES` says how long ([`soak`], `tests/run --soak MINUTES`), `VNET_SOAK_SEED` with which
//! random numbers.

mod guests;

use std::collections::BTreeMap;
use std::time::Duration;

use vnet::sys::clock;
use vnet::time::Instant;

use self::guests::{Guest, Guests};
use crate::driver::{Control, Driver};
use crate::nic::{Nic, vif};
use crate::random::Random;
use crate::secured::{Keys, varpd_counter};
use crate::support::vnet::{Backend, Listener};
use crate::support::{pause, step, wait_until};
use crate::{Net, SOON};

const HOSTS: usize = 3;
const VNETS: [u32; 3] = [42, 43, 44];
/// Guests of each vnet.
const GUESTS: u8 = 3;
/// A guest moves so often at most: one that moves more often within minutes is damped.
const MOVES: usize = 4;
/// Memory of varpd that nobody else has, in KiB, at the end.
const MEMORY: u64 = 32 << 10;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A backend is killed and started again.
    BackendKilled,
    /// A mapper is killed and started again, at once or after a while.
    MapperKilled,
    /// A mapper and all backends of its host are.
    HostFailed,
    /// A guest migrates; its old backend ends at once or later.
    GuestMoved,
    /// A backend is killed, and its guest started on another host.
    GuestStartedElsewhere,
    /// A host is cut off while one of its guests is started on another as well, and heals before that
    /// guest is ended.
    GuestRunsTwice,
    /// A guest boots: its driver starts from the beginning.
    GuestRebooted,
    /// A guest ends, and another one starts somewhere.
    GuestReplaced,
    /// A host's interface goes down and up.
    InterfaceDown,
    /// A host's cable is pulled and put back.
    CablePulled,
    /// The underlay becomes narrower, or as wide as before.
    UnderlayChanged,
    /// The keys of the secured vnets are replaced.
    KeysRotated,
}

impl Event {
    const ALL: [Self; 12] = [
        Self::BackendKilled,
        Self::MapperKilled,
        Self::HostFailed,
        Self::GuestMoved,
        Self::GuestStartedElsewhere,
        Self::GuestRunsTwice,
        Self::GuestRebooted,
        Self::GuestReplaced,
        Self::InterfaceDown,
        Self::CablePulled,
        Self::UnderlayChanged,
        Self::KeysRotated,
    ];
}

/// The hosts and all that runs on them. Fields are dropped in this order.
struct World {
    guests: Guests,
    /// NICs whose guests have left, and whose backends still run.
    left_behind: Vec<Nic>,
    net: Net,
    keys: Keys,
    random: Random,
    /// How many backends were ever started.
    backends: u32,
    /// The last MAC given to a guest.
    last_mac: u8,
    /// What the key in use is made of; zeros are no key.
    key: u8,
    is_narrow: bool,
}

impl World {
    fn new(what: &str, seed: u64) -> Option<Self> {
        let keys = Keys::new();
        let configs: Vec<String> = (0..HOSTS).map(|host| config(&keys, host)).collect();
        let net = Net::with_configs(what, &configs)?;
        let mut world = Self {
            guests: Guests::default(),
            left_behind: Vec::new(),
            net,
            keys,
            random: Random::new(seed),
            backends: 0,
            last_mac: 0,
            key: 1,
            is_narrow: false,
        };
        for _ in 0..GUESTS {
            let mac = world.new_mac();
            for vnet in VNETS {
                let host = world.random.index(HOSTS);
                let guest = world.start(vnet, mac, host);
                world.guests.running.push(guest);
            }
        }
        Some(world)
    }

    /// Something happens while frames are under way.
    fn disturb(&mut self, event: Event) {
        let guest = self.random.index(self.guests.running.len());
        let host = self.random.index(HOSTS);
        self.guests.speak();
        match event {
            Event::BackendKilled => self.kill_backends(&[guest]),
            Event::MapperKilled => {
                self.net.varpds[host].kill();
                self.idle(300);
                self.net.varpds[host].start_again();
            }
            Event::HostFailed => self.fail_host(host),
            Event::GuestMoved => self.move_guest(guest),
            Event::GuestStartedElsewhere => self.start_elsewhere(guest),
            Event::GuestRunsTwice => self.run_twice(guest),
            Event::GuestRebooted => self.reboot(guest),
            Event::GuestReplaced => self.replace(guest),
            Event::InterfaceDown => {
                self.net.underlay.host(host).ip("link set eth0 down");
                self.idle(1000);
                self.net.underlay.host(host).ip("link set eth0 up");
            }
            Event::CablePulled => {
                self.plug(host, "down");
                self.idle(1000);
                self.plug(host, "up");
            }
            Event::UnderlayChanged => {
                self.is_narrow = !self.is_narrow;
                let mtu = if self.is_narrow { 1400 } else { crate::MTU };
                self.net.underlay.set_mtu(mtu);
            }
            Event::KeysRotated => self.rotate_keys(),
        }
    }

    /// Whatever happened, it is over soon.
    fn recover(&mut self, event: Event) -> Duration {
        let after = format!("{event:?}");
        let took = self.guests.wait_all_hear(&after);
        self.guests.assert_all_arrives(&after, &mut self.random);
        for guest in &mut self.guests.running {
            guest.nic.backend.process.assert_running();
        }
        for nic in &mut self.left_behind {
            nic.backend.process.assert_running();
        }
        self.net.varpds.iter_mut().for_each(|varpd| varpd.process.assert_running());
        if self.random.per_mille(500) {
            self.left_behind.clear();
        }
        took
    }

    /// Lets some time pass, at most `longest` milliseconds.
    fn idle(&mut self, longest: u64) {
        let end = clock::mono() + Duration::from_millis(self.random.range(0, longest));
        while clock::mono() < end {
            pause();
        }
    }

    fn new_mac(&mut self) -> u8 {
        self.last_mac = self.last_mac % 250 + 1;
        self.last_mac
    }

    fn name(&mut self) -> String {
        self.backends += 1;
        format!("g{}", self.backends)
    }

    fn start(&mut self, vnet: u32, mac: u8, host: usize) -> Guest {
        let name = self.name();
        Guest::new(Nic::start(&name, vif(vnet, mac), &self.net.varpds[host]), host)
    }

    fn plug(&self, host: usize, state: &str) {
        let name = &self.net.underlay.host(host).name;
        self.net.underlay.switch().ip(&format!("link set to-{name} {state}"));
    }

    fn another_host(&mut self, than: usize) -> usize {
        (than + self.random.range(1, HOSTS as u64) as usize) % HOSTS
    }

    fn kill_backends(&mut self, guests: &[usize]) {
        for &guest in guests {
            self.guests.running[guest].nic.backend.process.kill();
        }
        self.idle(100);
        for &guest in guests {
            let nic = &mut self.guests.running[guest].nic;
            nic.backend.start_again();
            nic.reconnect();
        }
    }

    fn fail_host(&mut self, host: usize) {
        // Its backends could wait no longer for what has left.
        self.left_behind.clear();
        let running = self.guests.running.iter().enumerate();
        let there: Vec<usize> =
            running.filter(|(_, guest)| guest.host == host).map(|(place, _)| place).collect();
        self.net.varpds[host].kill();
        for &guest in &there {
            self.guests.running[guest].nic.backend.process.kill();
        }
        self.net.varpds[host].start_again();
        for &guest in &there {
            let nic = &mut self.guests.running[guest].nic;
            nic.backend.start_again();
            nic.reconnect();
        }
    }

    /// A guest that may still move, in the place of this one if it may not.
    fn movable(&mut self, guest: usize) -> usize {
        if self.guests.running[guest].moves == MOVES {
            self.replace(guest);
        }
        self.guests.running[guest].moves += 1;
        guest
    }

    fn move_guest(&mut self, guest: usize) {
        let guest = self.movable(guest);
        let name = self.name();
        let (vif, here) = (self.guests.running[guest].nic.vif, self.guests.running[guest].host);
        let there = self.another_host(here);
        let backend = Backend::start(&name, vif, Listener::Backend, &self.net.varpds[there]);
        let control = Control::connect(&backend.socket).unwrap();
        let mut driver = Driver::new(control, Nic::options());
        driver.negotiate().unwrap();
        let old = &mut self.guests.running[guest].nic.driver;
        old.stop_ring(0).unwrap();
        old.stop_ring(1).unwrap();
        driver.start().unwrap();
        let running = &mut self.guests.running[guest];
        running.host = there;
        let nic = std::mem::replace(&mut running.nic, Nic { driver, backend, vif });
        if self.random.per_mille(500) {
            self.left_behind.push(nic);
        }
    }

    fn start_elsewhere(&mut self, guest: usize) {
        let guest = self.movable(guest);
        self.guests.running[guest].nic.backend.process.kill();
        self.start_copy(guest);
    }

    /// Starts a guest on another host; the NIC that it had is returned.
    fn start_copy(&mut self, guest: usize) -> Nic {
        let Guest { nic, host, .. } = &self.guests.running[guest];
        let (vif, here) = (nic.vif, *host);
        let there = self.another_host(here);
        let name = self.name();
        let new = Nic::start(&name, vif, &self.net.varpds[there]);
        let running = &mut self.guests.running[guest];
        running.host = there;
        std::mem::replace(&mut running.nic, new)
    }

    fn run_twice(&mut self, guest: usize) {
        let guest = self.movable(guest);
        let here = self.guests.running[guest].host;
        self.plug(here, "down");
        let old = self.start_copy(guest);
        self.idle(1000);
        self.plug(here, "up");
        self.idle(200);
        drop(old);
    }

    fn reboot(&mut self, guest: usize) {
        let nic = &mut self.guests.running[guest].nic;
        // The old connection has to be gone before there is another.
        let socket = nic.backend.socket.clone();
        nic.driver.control.socket.shutdown(std::net::Shutdown::Both).unwrap();
        wait_until("the backend takes a new driver", SOON, || {
            match Driver::connect(&socket, Nic::options()) {
                Ok(driver) => {
                    nic.driver = driver;
                    true
                }
                Err(_) => false,
            }
        });
    }

    fn replace(&mut self, guest: usize) {
        let vnet = self.guests.running[guest].nic.vif.vnet;
        let (mac, host) = (self.new_mac(), self.random.index(HOSTS));
        self.guests.running[guest].nic.backend.process.terminate(SOON);
        self.guests.running[guest] = self.start(vnet, mac, host);
    }

    fn rotate_keys(&mut self) {
        let next = self.key % 250 + 1;
        let [old, new] = [self.key, next].map(|key| format!("{key:02x}"));
        let steps: [&[(&str, &str)]; 3] =
            [&[("use", &old), ("next", &new)], &[("use", &new), ("old", &old)], &[("use", &new)]];
        for lines in steps {
            let read = self.net.each(|varpd| varpd_counter(varpd, "key_files_read"));
            for host in 0..HOSTS {
                self.keys.write(&key_file(host), lines);
            }
            wait_until("the keys are read", SOON, || {
                let now = self.net.each(|varpd| varpd_counter(varpd, "key_files_read"));
                now.iter().zip(&read).all(|(now, before)| now > before)
            });
        }
        self.key = next;
    }

    /// All programs have kept their heads, and the mappers little memory.
    fn end(mut self) {
        self.left_behind.clear();
        for guest in &mut self.guests.running {
            let status = guest.nic.backend.process.terminate(SOON);
            assert!(status.success(), "{status}");
            assert!(!guest.nic.backend.process.log().contains("panicked"));
        }
        for varpd in &self.net.varpds {
            assert!(!varpd.process.log().contains("panicked"));
            let memory = varpd.process.private_kib();
            assert!(memory < MEMORY, "varpd has {memory} KiB");
        }
    }
}

fn key_file(host: usize) -> String {
    format!("key-{host}")
}

fn config(keys: &Keys, host: usize) -> String {
    let file = keys.write(&key_file(host), &[("use", "01")]);
    let secured = |vnet: u32, policy: &str| {
        format!("[vnet.{vnet}]\npolicy = '{policy}'\nkey-file = '{}'\n", file.display())
    };
    secured(VNETS[0], "conf") + &secured(VNETS[2], "auth")
}

/// Disturbs until told to stop; prints how long each kind of event took until all was well.
fn run(what: &str, seed: u64, mut goes_on: impl FnMut(usize) -> bool) {
    let Some(mut world) = World::new(&format!("{what} (VNET_SOAK_SEED={seed})"), seed) else {
        return;
    };
    world.guests.wait_all_hear("the start");
    let mut took: BTreeMap<Event, Vec<Duration>> = BTreeMap::new();
    let mut events = 0;
    while goes_on(events) {
        let event = Event::ALL[world.random.index(Event::ALL.len())];
        let begin: Instant = clock::mono();
        world.disturb(event);
        let disturbed = clock::mono() - begin;
        let recovered = world.recover(event);
        println!(
            "    {events}: {event:?} took {disturbed:?}, all heard each other after {recovered:?}"
        );
        took.entry(event).or_default().push(recovered);
        events += 1;
    }
    for (event, mut times) in took {
        times.sort_unstable();
        let (count, longest) = (times.len(), times[times.len() - 1]);
        println!(
            "    {event:?}: {count} times, heard after {:?} (median), {longest:?}",
            times[count / 2]
        );
    }
    step(&format!(
        "{events} events; {} frames sent, {} arrived twice, after a backend was killed",
        world.guests.spoken(),
        world.guests.repeated
    ));
    world.end();
}

#[test]
fn whatever_happens_all_hear_each_other_soon() {
    run("whatever happens", 1, |events| events < 20);
}

/// `tests/run --soak 30`.
#[test]
#[ignore = "takes as many minutes as VNET_SOAK_MINUTES says"]
fn soak() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let minutes = number("VNET_SOAK_MINUTES").expect("VNET_SOAK_MINUTES is a number of minutes");
    let end = clock::mono() + Duration::from_secs(60 * minutes);
    let seed = number("VNET_SOAK_SEED").unwrap_or_else(|| clock::now().wall_ms);
    run(&format!("disturbances for {minutes} minutes"), seed, |_| clock::mono() < end);
}
