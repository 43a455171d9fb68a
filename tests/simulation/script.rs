//! What happens in a run: who is there, what goes wrong, and when it is looked at.

use std::time::Duration;

use vnet::host::{Ending, Input};
use vnet::wire::control::Request;
use vnet::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};

use crate::host::{Host, Protection};
use crate::network::Weather;
use crate::user::User;
use crate::world::{Event, World};

/// Kinds of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scenario {
    /// Nothing happens: no mapping in use ever has a gap.
    Quiet,
    /// Guests migrate, and are started elsewhere, on a good network: they are found again within
    /// milliseconds.
    Migrations,
    /// Everything goes wrong.
    Chaos,
    /// Everything goes wrong, and a guest sprays MACs.
    Spray,
    /// Two guests with one MAC, on a bad network.
    Duplicates,
    /// MACs behind bridges move all the time, and bridges send from others' own MACs, on a good network.
    Routers,
}

impl Scenario {
    pub(crate) const ALL: [Self; 6] =
        [Self::Quiet, Self::Migrations, Self::Chaos, Self::Spray, Self::Duplicates, Self::Routers];

    pub(crate) fn roll(seed: u64) -> Self {
        match seed % 10 {
            0 => Self::Quiet,
            1 | 2 => Self::Migrations,
            3 => Self::Spray,
            4 => Self::Duplicates,
            5 => Self::Routers,
            _ => Self::Chaos,
        }
    }
}

/// A step of the script.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// The rings of an instance start.
    Activate(usize),
    /// They stop.
    Deactivate(usize),
    /// The backend ends. varpd keeps the vif for a while.
    Remove(usize),
    /// A backend is started again beside the guest that it served, on a new connection and without sockets.
    Replace(VifKey),
    /// A backend does not read what varpd sends next.
    Stall(VifKey),
    /// A backend sends something that is no message, or one that is out of place.
    Lie(VifKey),
    /// The guest says that it is here.
    Garp(usize),
    /// A guest moves to another host, its source stopping first, or some time after.
    Migrate { key: VifKey, clean: bool },
    /// Somebody behind a bridge moves behind one on another host.
    Wander(VifKey),
    /// A guest that is a bridge on a host sends from another guest's own MAC.
    Steal(VifKey, usize),
    /// Somebody behind a bridge sends a frame, which the bridge's backend sees; and again later.
    Seen(VifKey),
    /// A backend is killed; its guest is started again on one host, or on two at once, of which one is
    /// killed soon.
    Crash(VifKey),
    /// The backend of an instance is killed.
    Die(usize),
    /// A guest reboots.
    Reboot(VifKey),
    /// The wall clock of a host jumps, by up to an hour either way.
    Jump(usize),
    /// varpd of a host ends, and comes back.
    Stop(usize),
    /// varpd of a host starts.
    Start(usize),
    /// The network falls apart.
    Part,
    /// It is whole again.
    Heal,
    /// An instance asks for MACs that nobody has.
    Spray { from: usize, left: u32 },
    /// Is a guest found again that runs elsewhere?
    Found(VifKey),
    /// Is a MAC behind a bridge reached where it was last sent from, if it has not moved since so many moves?
    Settled(VifKey, u32),
    /// Is a guest's own MAC where the guest is?
    Safe(VifKey),
}

/// Times in microseconds.
pub(crate) const MILLI: u64 = 1000;
pub(crate) const SECOND: u64 = 1_000_000;
/// Who moves more often within minutes is found late: the fifth time is damped.
const UNDAMPED: u32 = 4;
const TALK: Duration = Duration::from_millis(1000);

/// Plays the whole run.
pub(crate) fn play(world: &mut World) -> Result<(), String> {
    populate(world);
    match world.scenario {
        Scenario::Quiet => {
            world.run_for(Duration::from_secs(5))?;
            world.no_gap = true;
            world.run_for(Duration::from_secs(150))?;
        }
        Scenario::Migrations => {
            world.run_for(Duration::from_secs(5))?;
            migrations(world);
            world.run_for(Duration::from_secs(110))?;
        }
        Scenario::Routers => {
            world.run_for(Duration::from_secs(5))?;
            crate::routers::play(world);
            world.run_for(Duration::from_secs(70))?;
        }
        Scenario::Chaos | Scenario::Spray | Scenario::Duplicates => {
            storm(world);
            world.run_for(Duration::from_secs(70))?;
            peace(world);
            // The longest that anything wrong can live: one interval of announcements with its
            // jitter, one lifetime, one resolution.
            world.run_for(Duration::from_secs(50 + 30 + 16))?;
        }
    }
    crate::checks::ends_at_the_truth(world)
}

/// Vnets with equal MACs, one guest per key, each talking to some others.
fn populate(world: &mut World) {
    let (vnets, macs) = (world.random.range(2, 4), world.random.range(2, 6));
    for vnet in 0..vnets {
        for mac in 0..world.random.range(0, 3) {
            wanderer(world, key(vnet, BEHIND + mac));
        }
        for mac in 0..macs {
            let key = key(vnet, mac);
            let host = world.random.index(world.hosts.len());
            let instance = world.create(key, host);
            let start = world.random.range(0, 500 * MILLI);
            world.after(start, Event::Act(Action::Activate(instance)));
        }
    }
}

/// Somebody behind a bridge, who will move some times: more often than guests' own MACs may.
fn wanderer(world: &mut World, key: VifKey) {
    let moves = match world.scenario {
        Scenario::Quiet | Scenario::Routers => 0,
        _ => world.random.range(0, 20),
    };
    for n in 0..=moves {
        let at = if n == 0 { 0 } else { world.random.range(SECOND, 60 * SECOND) };
        world.after(at, Event::Act(Action::Wander(key)));
    }
    world.after(SECOND, Event::Act(Action::Seen(key)));
}

/// The bridge that an instance is behind.
fn bridge(instance: usize) -> Mac {
    let [.., high, low] = instance.to_be_bytes();
    Mac([2, 1, 0, 0, high, low])
}

/// MACs from here on are behind bridges.
const BEHIND: u64 = 100;

fn key(vnet: u64, mac: u64) -> VifKey {
    let vnet = VnetId::new(u32::try_from(vnet + 100).expect("small")).expect("not 0");
    VifKey { vnet, mac: Mac([2, 0, 0, 0, 0, u8::try_from(mac).expect("small")]) }
}

/// Migrations and crashes one after the other, each of them checked.
fn migrations(world: &mut World) {
    for round in 0..10 {
        let key = world.any_key();
        let action = match world.random.range(0, 10) {
            0..=2 => Action::Crash(key),
            3..=5 => Action::Migrate { key, clean: false },
            _ => Action::Migrate { key, clean: true },
        };
        world.after(round * 10 * SECOND, Event::Act(action));
    }
}

/// A minute of everything.
fn storm(world: &mut World) {
    world.weather = Weather {
        loss: world.random.range(0, 250),
        copies: world.random.range(0, 100),
        late: world.random.range(0, 100),
    };
    for _ in 0..world.random.range(5, 25) {
        let at = world.random.range(SECOND, 60 * SECOND);
        let host = world.random.index(world.hosts.len());
        let key = world.any_key();
        let action = match world.random.range(0, 16) {
            13 => Action::Replace(key),
            14 => Action::Stall(key),
            15 => Action::Lie(key),
            0 | 1 => Action::Part,
            2 | 3 => Action::Stop(host),
            4 => Action::Reboot(key),
            5..=7 => Action::Migrate { key, clean: true },
            8 => Action::Jump(host),
            9 | 10 => Action::Crash(key),
            _ => Action::Migrate { key, clean: false },
        };
        world.after(at, Event::Act(action));
    }
    for _ in 0..world.random.range(0, 40) {
        let at = world.random.range(SECOND, 65 * SECOND);
        let host = world.random.index(world.hosts.len());
        let key = world.any_key();
        world.after(at, Event::Act(Action::Steal(key, host)));
    }
    match world.scenario {
        Scenario::Spray => {
            let guests = world.guests();
            let from = guests[world.random.index(guests.len())];
            world.after(SECOND, Event::Act(Action::Spray { from, left: 5000 }));
        }
        Scenario::Duplicates => duplicates(world),
        _ => {}
    }
}

/// A second guest with the MAC of the first, both of which say that they are here.
fn duplicates(world: &mut World) {
    let key = contested();
    let host = world.random.index(world.hosts.len());
    let first = world.users.iter().position(|user| user.key == key).expect("populated");
    let second = world.create(key, host);
    let at = world.random.range(SECOND, 20 * SECOND);
    world.after(at, Event::Act(Action::Activate(second)));
    for _ in 0..world.random.range(0, 30) {
        let at = world.random.range(SECOND, 65 * SECOND);
        let who = if world.random.per_mille(500) { first } else { second };
        world.after(at, Event::Act(Action::Garp(who)));
    }
}

/// The key that has two guests in [`Scenario::Duplicates`]; it does not migrate.
pub(crate) fn contested() -> VifKey {
    key(0, 0)
}

/// Whatever was wrong is over; what went wrong by it is not.
fn peace(world: &mut World) {
    world.weather = Weather::FAIR;
    world.act(Action::Heal);
    for host in 0..world.hosts.len() {
        world.act(Action::Start(host));
    }
}

impl World {
    pub(crate) fn any_key(&mut self) -> VifKey {
        let keys: Vec<VifKey> = self.guests().iter().map(|&i| self.users[i].key).collect();
        let mut key = keys[self.random.index(keys.len())];
        if self.scenario == Scenario::Duplicates && key == contested() {
            key = keys[1];
        }
        key
    }

    /// The instances that are vifs of their own.
    pub(crate) fn guests(&self) -> Vec<usize> {
        (0..self.users.len()).filter(|&i| self.users[i].behind.is_none()).collect()
    }

    fn wander(&mut self, key: VifKey) {
        self.totals.wanders += 1;
        let host = self.random.index(self.hosts.len());
        let instance = self.behind_bridge(key, host);
        self.intended.insert(key, instance);
        self.see(key, instance);
        let moves = self.count_moves(key, 1);
        if self.scenario == Scenario::Routers {
            self.after(crate::routers::SETTLED, Event::Act(Action::Settled(key, moves)));
        }
    }

    /// A guest that is a bridge sends from another guest's own MAC.
    fn steal(&mut self, key: VifKey, host: usize) {
        let instance = self.behind_bridge(key, host);
        self.totals.thefts += 1;
        self.see(key, instance);
        if self.scenario == Scenario::Routers {
            for after in crate::routers::LOOKS {
                self.after(after, Event::Act(Action::Safe(key)));
            }
        }
    }

    /// The instance of a MAC behind a bridge of a host; the bridge is there as soon as it is needed.
    fn behind_bridge(&mut self, key: VifKey, host: usize) -> usize {
        let known = |user: &User| user.key == key && user.host == host && user.behind.is_some();
        if let Some(instance) = self.users.iter().position(known) {
            return instance;
        }
        self.enter(key, host, Some(bridge(self.users.len())))
    }

    /// As a backend does: a MAC that is not known to be here is registered.
    fn see(&mut self, key: VifKey, instance: usize) {
        let user = &mut self.users[instance];
        if user.active {
            return;
        }
        user.active = true;
        user.departures.remove(key.mac);
        self.ask(instance, &Request::Learn { macs: vec![(key.mac, None)] });
    }

    /// A backend starts on a host.
    pub(crate) fn enter(&mut self, key: VifKey, host: usize, behind: Option<Mac>) -> usize {
        let instance = self.users.len();
        let coa = CareOf {
            addr: Host::address(host, instance),
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        };
        self.users.push(User::new(key, host, coa, behind));
        self.holders.insert(coa.addr, instance);
        self.connect(instance);
        instance
    }

    /// A backend starts on a host, and will talk to some others of its vnet.
    pub(crate) fn create(&mut self, key: VifKey, host: usize) -> usize {
        let instance = self.enter(key, host, None);
        for _ in 0..3 {
            let behind = if self.random.per_mille(250) { BEHIND } else { 0 };
            let last = behind + self.random.range(0, 4);
            let to = Mac([2, 0, 0, 0, 0, u8::try_from(last).expect("small")]);
            let start = self.random.range(0, SECOND);
            if to != key.mac {
                self.after(start, Event::Frame { from: instance, to, every: TALK });
            }
        }
        instance
    }

    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::Activate(instance) => self.activate(instance),
            Action::Deactivate(instance) => self.deactivate(instance),
            Action::Remove(instance) => self.remove(instance),
            Action::Garp(instance) => self.ask(instance, &Request::Announce),
            Action::Replace(key) => self.replace(key),
            Action::Stall(key) => self.stall(self.intended[&key]),
            Action::Lie(key) => self.lie(self.intended[&key]),
            Action::Wander(key) => self.wander(key),
            Action::Steal(key, host) => self.steal(key, host),
            Action::Seen(key) => {
                self.see(key, self.intended[&key]);
                self.after(SECOND, Event::Act(Action::Seen(key)));
            }
            Action::Migrate { key, clean } => self.migrate(key, clean),
            Action::Crash(key) => self.crash(key),
            Action::Die(instance) => self.die(instance),
            Action::Reboot(key) => {
                let instance = self.intended[&key];
                if self.users[instance].active && !self.is_starting(key) {
                    self.deactivate(instance);
                    self.after(2 * SECOND, Event::Act(Action::Activate(instance)));
                }
            }
            Action::Jump(host) => {
                self.totals.jumps += 1;
                self.hosts[host].skew_ms = match self.protection {
                    Protection::None => Host::skew(&mut self.random),
                    Protection::Conf => Host::small_skew(&mut self.random),
                };
            }
            Action::Stop(host) => self.stop(host),
            Action::Start(host) => self.start(host),
            Action::Part => self.part(),
            Action::Heal => self.hosts.iter_mut().for_each(|host| host.island = 0),
            Action::Spray { from, left } => self.spray(from, left),
            Action::Found(key) => crate::checks::is_found_again(self, key),
            Action::Settled(key, moves) => crate::routers::is_settled(self, key, moves),
            Action::Safe(key) => crate::routers::is_safe(self, key),
        }
    }

    fn activate(&mut self, instance: usize) {
        let user = &mut self.users[instance];
        // Removed, or another instance has taken over while this one was to come back.
        if !user.present || user.active {
            return;
        }
        user.active = true;
        user.departures.remove(user.key.mac);
        self.intended.insert(user.key, instance);
        self.ask(instance, &Request::SetActive { active: true });
    }

    fn deactivate(&mut self, instance: usize) {
        let user = &mut self.users[instance];
        (user.active, user.stamp) = (false, None);
        self.ask(instance, &Request::SetActive { active: false });
    }

    fn remove(&mut self, instance: usize) {
        let user = &mut self.users[instance];
        (user.present, user.active) = (false, false);
        let host = user.host;
        let Some(varpd) = self.hosts[host].varpd.as_mut() else { return };
        let Some(client) = varpd.client(instance) else { return };
        varpd.backends.remove(&client);
        varpd.stalled.remove(&client);
        self.give(host, Input::Closed { client, why: Ending::Gone });
    }

    /// A new backend takes the place of one that was killed, on the same host: its guest goes on, and nothing that the
    /// old one knew is left.
    fn replace(&mut self, key: VifKey) {
        let old = self.intended[&key];
        if !self.users[old].active || self.users[old].behind.is_some() || self.is_starting(key) {
            return;
        }
        let host = self.users[old].host;
        self.remove(old);
        let new = self.create(key, host);
        self.activate(new);
    }

    fn stall(&mut self, instance: usize) {
        if let Some(varpd) = self.hosts[self.users[instance].host].varpd.as_mut()
            && let Some(client) = varpd.client(instance)
        {
            varpd.stalled.insert(client);
        }
    }

    fn lie(&mut self, instance: usize) {
        let host = self.users[instance].host;
        let Some(client) = self.hosts[host].varpd.as_ref().and_then(|v| v.client(instance)) else {
            return;
        };
        let bytes = match self.random.range(0, 3) {
            0 => vec![0xff; 40],
            1 => Request::Monitor.emit(),
            _ => Request::Hello {
                features: vnet::wire::control::Features::NONE,
                software: String::new(),
            }
            .emit(),
        };
        self.give(host, Input::Request { client, bytes, is_cut: false, descriptors: 0 });
    }

    fn crash(&mut self, key: VifKey) {
        let source = self.intended[&key];
        if !self.users[source].active || self.is_starting(key) {
            return;
        }
        self.totals.crashes += 1;
        self.die(source);
        let start = self.random.range(0, SECOND);
        let mut over = start;
        let places = if self.random.per_mille(500) { 1 } else { 2 };
        for n in 0..places {
            let host = self.random.index(self.hosts.len());
            let dest = self.create(key, host);
            let starts = start + self.random.range(0, 20 * MILLI);
            self.after(starts, Event::Act(Action::Activate(dest)));
            over = over.max(starts);
            if n > 0 {
                let ends = starts + self.random.range(20 * MILLI, 300 * MILLI);
                self.after(ends, Event::Act(Action::Die(dest)));
                over = ends;
            }
        }
        self.starting.insert(key, self.now + Duration::from_micros(over));
        // To two places, whose claims may cross so that each makes another, and back.
        let moves = self.count_moves(key, if places == 1 { 1 } else { 5 });
        if self.scenario == Scenario::Migrations && moves <= UNDAMPED {
            // A question, an announcement, a correction and an announcement, each at most 2 ms.
            self.after(over + 9 * MILLI, Event::Act(Action::Found(key)));
        }
    }

    /// Whether the guest was killed lately and is still being started again. Whoever killed the first of two starts would leave
    /// a second one behind that nobody ever ends.
    fn is_starting(&self, key: VifKey) -> bool {
        self.starting.get(&key).is_some_and(|&over| self.now <= over)
    }

    /// How often a key has moved, now that it moves so many times more.
    fn count_moves(&mut self, key: VifKey, more: u32) -> u32 {
        let moves = self.moves.entry(key).or_default();
        *moves += more;
        *moves
    }

    fn die(&mut self, instance: usize) {
        let user = &mut self.users[instance];
        (user.present, user.active) = (false, false);
        let key = user.key;
        // The last one to be created: an earlier one is the source of a migration, and about to stop.
        let runs = |user: &User| user.key == key && user.active && user.behind.is_none();
        if let Some(other) = self.users.iter().rposition(runs)
            && self.intended[&key] == instance
        {
            self.intended.insert(key, other);
        }
        self.remove(instance);
    }

    fn migrate(&mut self, key: VifKey, clean: bool) {
        let Some(&source) = self.intended.get(&key) else { return };
        let runs = |user: &&User| user.key == key && user.active && user.behind.is_none();
        // While a guest is started in two places at once, there is no telling which of them migrates.
        let is_one = self.users.iter().filter(runs).count() == 1 && !self.is_starting(key);
        if !self.users[source].active || !is_one {
            return;
        }
        self.totals.migrations += 1;
        let host = self.random.index(self.hosts.len());
        let dest = self.create(key, host);
        // How long until the guest runs again, and until its source is gone.
        let (runs, stops) = match clean {
            true => (self.random.range(MILLI, 100 * MILLI), 0),
            false => (0, self.random.range(MILLI, 5 * SECOND)),
        };
        self.after(stops, Event::Act(Action::Deactivate(source)));
        let ends = stops + self.random.range(0, 2 * SECOND);
        self.after(ends, Event::Act(Action::Remove(source)));
        self.after(runs, Event::Act(Action::Activate(dest)));
        let moves = self.count_moves(key, 1);
        if self.scenario == Scenario::Migrations && moves <= UNDAMPED {
            // An announcement, a correction and an announcement, each at most 2 ms.
            self.after(runs + 7 * MILLI, Event::Act(Action::Found(key)));
        }
    }

    fn stop(&mut self, host: usize) {
        if self.hosts[host].varpd.take().is_some() {
            self.totals.restarts += 1;
            let back = self.random.range(10 * MILLI, 3 * SECOND);
            self.after(back, Event::Act(Action::Start(host)));
        }
    }

    /// varpd starts: every backend comes to it with what it knows.
    fn start(&mut self, host: usize) {
        if self.hosts[host].varpd.is_some() {
            return;
        }
        let entropy = [self.random.next(), self.random.next()];
        let setup = Host::setup(host, self.protection, entropy);
        let now = self.now;
        self.hosts[host].start(setup, now);
        for instance in 0..self.users.len() {
            if self.users[instance].host == host {
                self.come_again(instance);
            }
        }
    }

    fn part(&mut self) {
        self.totals.partitions += 1;
        for host in 0..self.hosts.len() {
            self.hosts[host].island = u8::from(self.random.per_mille(500));
        }
        let heals = self.random.range(SECOND, 20 * SECOND);
        self.after(heals, Event::Act(Action::Heal));
    }

    fn spray(&mut self, from: usize, left: u32) {
        let ([x, y], [a, b, c, d]) = (crate::checks::SPRAYED, left.to_be_bytes());
        let host = self.users[from].host;
        if self.users[from].active {
            self.ask(from, &Request::Resolve { mac: Mac([x, y, a, b, c, d]), refresh: false });
            crate::checks::is_bounded(self, host);
        }
        if left > 0 {
            self.after(5 * MILLI, Event::Act(Action::Spray { from, left: left - 1 }));
        }
    }
}
