//! What varpd's shell does, and backends at the other ends of its connections: in the simulation.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use vnet::host::{Brought, ClientId, Descriptors, Door, Ending, Input, Output, Peer};
use vnet::mapper::LocalVif;
use vnet::policy::Floor;
use vnet::wire::control::{Event as Told, Features, Request};
use vnet::wire::name::Realm;
use vnet::wire::varp::Claim;
use vnet::wire::{Capabilities, Mac, VifKey};

use crate::host::{Host, Sockets, is_key_file, key_of};
use crate::script::MILLI;
use crate::user::Neighbour;
use crate::world::{Event, World};

/// How soon a backend tries again to reach varpd.
const AGAIN: (u64, u64) = (20 * MILLI, 500 * MILLI);
/// The process of a backend, which is as good as any other of root.
const PEER: Peer = Peer { uid: 0, pid: 0 };

impl World {
    /// A host's varpd asks for something.
    pub(crate) fn perform(&mut self, host: usize, output: Output) {
        match output {
            Output::Send { to, bytes } => {
                self.note(|| format!("{host} -> {to}, {} bytes", bytes.len()));
                self.send(host, to, &bytes);
            }
            Output::Tell { client, event, descriptors } => {
                self.tell(host, client, &event, descriptors);
            }
            Output::Close { client } => self.lose(host, client),
            Output::Open { vif, .. } => {
                let address = self.unused(host);
                self.varpd(host).sockets.insert(vif, Sockets { address, is_watched: false });
                self.results.push_back(Input::Opened { vif, result: Ok(address) });
            }
            Output::Adopt { vif, client, .. } => {
                let address = self.users
                    [self.hosts[host].varpd.as_ref().expect("it runs").backends[&client]]
                    .coa
                    .addr;
                self.varpd(host).sockets.insert(vif, Sockets { address, is_watched: false });
                let brought = Brought { address, has_new_groups: false };
                self.results.push_back(Input::Adopted { vif, result: Ok(brought) });
            }
            Output::HandOver { from, to } => {
                if let Some(sockets) = self.varpd(host).sockets.remove(&from) {
                    self.varpd(host).sockets.insert(to, sockets);
                }
            }
            Output::Drop { vif } => drop(self.varpd(host).sockets.remove(&vif)),
            Output::Watch { vif } => self.set_watched(host, vif, true),
            Output::Unwatch { vif } => self.set_watched(host, vif, false),
            Output::ReadKey { vnet, path } => {
                assert!(is_key_file(&path), "{path:?}");
                self.results.push_back(Input::Key { vnet, result: Ok(key_of(vnet)) });
            }
            Output::Log { level, text } => {
                self.note(|| format!("{host} says {level} {text}"));
                if level == log::Level::Error {
                    self.violate(format!("{host} says: {text}"));
                }
            }
            // Frames of one host do not leave it here, keys do not change, and nobody looks.
            Output::Lane { lane, from, .. } => {
                let error = "lanes are not simulated".into();
                self.results.push_back(Input::LaneFailed { lane, vif: from.vif, error });
            }
            Output::Table { .. }
            | Output::Pages { .. }
            | Output::Show { .. }
            | Output::SendBeacon { .. }
            | Output::Bind { .. }
            | Output::Bound { .. }
            | Output::Widen { .. }
            | Output::Hear(_)
            | Output::WatchKey { .. }
            | Output::CheckKeys
            | Output::Look
            | Output::Rejoin(_)
            | Output::RejoinVif { .. }
            | Output::Move(_)
            | Output::Status(_) => {}
        }
    }

    fn varpd(&mut self, host: usize) -> &mut crate::host::Varpd {
        self.hosts[host].varpd.as_mut().expect("it runs")
    }

    fn set_watched(&mut self, host: usize, vif: LocalVif, is_watched: bool) {
        if let Some(sockets) = self.varpd(host).sockets.get_mut(&vif) {
            sockets.is_watched = is_watched;
        }
    }

    /// An address for the instance that is registering.
    fn unused(&self, host: usize) -> SocketAddr {
        Host::address(host, self.registering)
    }

    /// A frame has come to sockets that no backend reads.
    pub(crate) fn stray(&mut self, host: usize, at: SocketAddr, sender: SocketAddr) {
        let Some(varpd) = self.hosts[host].varpd.as_ref() else { return };
        let mut sockets = varpd.sockets.iter();
        let found = sockets.find(|(_, sockets)| sockets.address == at && sockets.is_watched);
        if let Some(vif) = found.map(|(vif, _)| *vif) {
            self.give(host, Input::Strayed { vif, senders: vec![sender] });
        }
    }

    /// The connection of a backend is gone.
    fn lose(&mut self, host: usize, client: ClientId) {
        let varpd = self.varpd(host);
        varpd.stalled.remove(&client);
        if let Some(instance) = varpd.backends.remove(&client) {
            self.totals.ended += 1;
            self.come_again(instance);
        }
    }

    /// A backend without a connection tries again soon.
    pub(crate) fn come_again(&mut self, instance: usize) {
        if self.users[instance].present {
            let wait = self.random.range(AGAIN.0, AGAIN.1);
            self.after(wait, Event::Connect { instance });
        }
    }

    /// A backend connects and registers with what it knows, and asks for what it uses.
    pub(crate) fn connect(&mut self, instance: usize) {
        let host = self.users[instance].host;
        let Some(varpd) = self.hosts[host].varpd.as_mut() else {
            // varpd is down: whoever starts it connects all backends.
            return;
        };
        if !self.users[instance].present || varpd.client(instance).is_some() {
            return;
        }
        let client = varpd.connect(instance);
        let (door, peer, groups) = (Door::Control, PEER, vec![0]);
        self.give(host, Input::Connected { client, door, peer, groups });
        let software = "a backend".into();
        self.ask(instance, &Request::Hello { features: Features::NONE, software });
        let user = &self.users[instance];
        let (key, active) = (own_key(user.key, user.behind), user.active);
        let stamp = user.stamp.filter(|_| user.behind.is_none());
        let register = Request::Register {
            key,
            capabilities: Capabilities::NONE,
            queue_pairs: 1,
            // The guest of a bridge runs as long as the bridge does.
            active: active || user.behind.is_some(),
            stamp,
            learn: u16::from(user.behind.is_some()),
            floor: Floor::default(),
        };
        let descriptors = if user.has_sockets { 2 } else { 0 };
        self.totals.adopted += u64::from(user.has_sockets);
        self.registering = instance;
        let bytes = register.emit();
        self.give(host, Input::Request { client, bytes, is_cut: false, descriptors });
        self.resume(instance);
    }

    /// What a backend asks for when it has registered.
    fn resume(&mut self, instance: usize) {
        let user = &self.users[instance];
        let in_use: Vec<(Mac, bool)> = user
            .neighbours
            .iter()
            .map(|(mac, known)| (*mac, matches!(known, Neighbour::Mapped { .. })))
            .collect();
        if user.behind.is_some() && user.active {
            let macs = vec![(user.key.mac, user.stamp)];
            self.ask(instance, &Request::Learn { macs });
        }
        for (mac, refresh) in in_use {
            self.ask(instance, &Request::Resolve { mac, refresh });
        }
    }

    /// varpd tells a backend something.
    fn tell(&mut self, host: usize, client: ClientId, event: &Told, descriptors: Descriptors) {
        self.note(|| format!("{host} tells {} {event:?} {descriptors:?}", client.0));
        let varpd = self.varpd(host);
        let Some(&instance) = varpd.backends.get(&client) else { return };
        if varpd.stalled.contains(&client) {
            self.lose(host, client);
            return self.results.push_back(Input::Closed { client, why: Ending::Stalled });
        }
        let mut hasher = DefaultHasher::new();
        (self.now, instance, std::mem::discriminant(event)).hash(&mut hasher);
        self.stir(hasher.finish());
        match event {
            Told::Registered { coa, .. } => {
                let user = &mut self.users[instance];
                let was_kept = !user.has_sockets && coa.addr != user.coa.addr;
                (user.coa, user.has_sockets) = (*coa, true);
                self.totals.resumed += u64::from(was_kept);
                self.holders.insert(coa.addr, instance);
            }
            Told::SaIn { keys } => {
                for key in keys {
                    let bytes = Request::SaReady { number: key.number }.emit();
                    let (is_cut, descriptors) = (false, 0);
                    self.results.push_back(Input::Request { client, bytes, is_cut, descriptors });
                }
            }
            Told::Error { code, text } => {
                self.note(|| format!("{instance} is told {code:?} {text}"))
            }
            event => self.hear(instance, event),
        }
    }

    /// A backend hears something about its vif, or about others.
    fn hear(&mut self, instance: usize, event: &Told) {
        let now = self.now;
        let user = &mut self.users[instance];
        if let Told::Claimed { mac, stamp } = *event
            && mac == user.key.mac
        {
            let claim = Claim { stamp, coa: user.coa, realm: Realm(0), behind: user.behind };
            let highest = self.highest.entry(user.key).or_insert(claim);
            if claim.beats(highest) {
                *highest = claim;
            }
        }
        let is_own = user.active && user.behind.is_none();
        user.hear(event, now);
        if let Told::Lost { mac, coa, .. } = *event
            && is_own
            && mac == user.key.mac
            && self.users[self.holders[&coa.addr]].behind.is_some()
        {
            self.violate(format!("{instance} has lost its own MAC to one behind a bridge"));
        }
        if matches!(event, Told::Refused { .. }) {
            self.totals.refused += 1;
        }
    }
}

/// The vif of a backend: that of the bridge, if it serves one.
fn own_key(key: VifKey, behind: Option<Mac>) -> VifKey {
    VifKey { mac: behind.unwrap_or(key.mac), ..key }
}
