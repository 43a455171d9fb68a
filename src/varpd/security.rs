//! Secured vnets: the shell around [`Sadb`] and [`Membership`], and what backends are told.
//!
//! A backend is told keys before it is told to use them: on a secured vnet a mapping is held back
//! until there is a session with its host, and the keys for its care-of address have been sent. Key
//! files are read when a vnet is first needed and whenever they change; a file that can't be read any
//! more leaves the keys as they are, and is complained about.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Config;
use crate::mapper::{LocalVif, Notice};
use crate::metrics::{VarpdCounter, VarpdCounters};
use crate::policy::{Level, Policy, Suite};
use crate::quiet::Lasting;
use crate::secret::Secret;
use crate::security::census::{Census, Others};
use crate::security::keyfile::{self, KeyFile};
use crate::security::keys::{KeyId, MacKey, MemberKeys, fingerprint};
use crate::security::membership::{Membership, Refusal};
use crate::security::sadb::{self, Keyring, Output, Sadb};
use crate::sys::process;
use crate::sys::secret_file::{self, Version};
use crate::time::{Instant, Now};
use crate::wire::control::{Event, Lifetime, MAX_INBOUND, SenderKeys};
use crate::wire::name::{Name, Realm};
use crate::wire::varp::Message;
use crate::wire::{CareOf, Mac, VnetId};

use super::clients::ClientId;
use super::daemon::Daemon;
use super::doubts::Doubts;
use super::registry::Owner;

/// How often key files are looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How long nobody asks again for a vif whose host does not agree on keys.
const GAVE_UP_HOLD: Duration = Duration::from_secs(1);

/// How long the backends of a vnet may take to say that they accept the first session with a host.
const FIRST_GATE_TIMEOUT: Duration = Duration::from_millis(50);
/// The same for another session, while the one before it serves.
const GATE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long backends may take to come back to a varpd that was started again: they try at least twice a second
/// ([`crate::vif::link`]).
const RETURN: Duration = Duration::from_millis(700);

/// A vnet and another host.
type Link = (VnetId, IpAddr);

/// Holds back what is to happen on a link until local backends accept its new session: nobody there
/// is to send with it before.
#[derive(Debug)]
struct Gate {
    waiting: BTreeSet<(LocalVif, u32)>,
    /// Backends of an earlier varpd may still be on their way back until then.
    not_before: Option<Instant>,
    /// It does not wait for longer.
    until: Instant,
    held: VecDeque<Output>,
}

/// A secured vnet whose key was read.
#[derive(Debug)]
struct Secured {
    path: PathBuf,
    version: Version,
    /// About a file that is no good any more.
    complaint: Lasting,
    policy: Policy,
    /// Of group frames, one for each policy that has keys.
    suites: Vec<Suite>,
    /// The fingerprint of the key that is used.
    fingerprint: String,
    /// Those that are accepted, the used one first.
    keys: Vec<MemberKeys>,
}

impl Secured {
    /// What messages are sent with, if they have tags.
    fn sent(&self) -> Option<KeyId> {
        self.keys.first().filter(|_| self.policy.sent().is_secured()).map(|keys| keys.id)
    }
}

/// A mapping that a backend has or waits for.
#[derive(Debug)]
struct User {
    to: SocketAddr,
    /// Not told yet: there are no keys.
    held: Option<Notice>,
    until: Instant,
}

/// A message that was heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) message: Message,
    /// It came under another policy or key than this host sends under.
    pub(super) is_other: bool,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Security {
    pub(super) sadb: Sadb,
    realm: Realm,
    membership: Membership,
    census: Census,
    pub(super) doubts: Doubts,
    vnets: BTreeMap<VnetId, Secured>,
    users: BTreeMap<(LocalVif, Mac), User>,
    /// Backends of an earlier varpd may still be on their way back until then.
    awaits_return: Option<Instant>,
    /// One of them has come.
    has_returned: bool,
    /// Care-of addresses that a backend has keys for.
    issued: BTreeSet<(LocalVif, SocketAddr)>,
    gates: BTreeMap<Link, Gate>,
    /// For the next sender of group frames.
    salt: u16,
    /// Changes of keys.
    revision: u64,
    check_at: Option<Instant>,
}

fn first_salt(seed: &Secret) -> u16 {
    let [high, low] = seed.expand("salt", &[]);
    u16::from_be_bytes([high, low])
}

impl Security {
    /// Without vnets. `seed` is secret randomness, `own` the VARP address.
    pub(super) fn new(config: &Config, own: IpAddr, seed: [u8; 32]) -> Self {
        let seed = Secret::new(seed);
        let rekey = config.security.rekey.duration();
        let sadb_config = sadb::Config { rekey, ..sadb::Config::default() };
        let realm = Realm(config.realm);
        let name = Name::host(realm, own);
        Self {
            sadb: Sadb::new(sadb_config, name, seed.derive("sadb", &[])),
            realm,
            membership: Membership::default(),
            census: Census::default(),
            doubts: Doubts::default(),
            vnets: BTreeMap::new(),
            users: BTreeMap::new(),
            awaits_return: None,
            has_returned: false,
            issued: BTreeSet::new(),
            gates: BTreeMap::new(),
            salt: first_salt(&seed),
            revision: 0,
            check_at: None,
        }
    }

    /// Reads a vnet's key, unless that was done; fails with one line for people.
    pub(super) fn load(
        &mut self,
        vnet: VnetId,
        config: &Config,
        counters: &VarpdCounters,
        now: Now,
    ) -> Result<(), String> {
        let policy = config.policy(vnet);
        if !policy.is_secured() || self.vnets.contains_key(&vnet) {
            return Ok(());
        }
        let path = config.key_file(vnet);
        let (file, version) = read(&path, counters).map_err(|e| {
            format!("vnet {vnet} is secured ({policy}), but its key {}: {e}", path.display())
        })?;
        let (suites, fingerprint) = (config.group_suites(vnet), fingerprint(&file.used));
        log::info!("vnet {vnet}: {policy}, key {fingerprint}");
        let keys = member_keys(&file, vnet, &suites);
        let complaint = Lasting::default();
        let secured = Secured { path, version, complaint, policy, suites, fingerprint, keys };
        self.vnets.insert(vnet, secured);
        self.publish(vnet, now);
        self.check_at.get_or_insert(now.mono + CHECK_INTERVAL);
        Ok(())
    }

    /// The host has another address: all sessions are over.
    pub(super) fn move_to(&mut self, own: IpAddr, now: Now) {
        self.sadb.move_to(Name::host(self.realm, own), now);
        self.gates.clear();
    }

    /// Hands a vnet's keys to the state machines.
    fn publish(&mut self, vnet: VnetId, now: Now) {
        self.revision += 1;
        let Some(secured) = self.vnets.get(&vnet) else { return };
        let tags = secured.keys.iter().map(|keys| (keys.id, keys.varp.clone())).collect();
        self.membership.set_vnet(vnet, tags);
        self.membership.set_untagged(vnet, secured.policy.into());
        self.sadb.set_vnet(vnet, Some(Keyring { keys: secured.keys.clone() }), now);
    }

    /// Reads the key files that have changed; returns their vnets.
    fn reload(&mut self, counters: &VarpdCounters, now: Now) -> Vec<VnetId> {
        let mut changed = Vec::new();
        for (&vnet, secured) in &mut self.vnets {
            if secret_file::version(&secured.path).is_ok_and(|v| v == secured.version) {
                continue;
            }
            match read(&secured.path, counters) {
                Ok((file, version)) => {
                    secured.version = version;
                    secured.complaint = Lasting::default();
                    secured.keys = member_keys(&file, vnet, &secured.suites);
                    secured.fingerprint = fingerprint(&file.used);
                    log::info!("vnet {vnet}: key {}", secured.fingerprint);
                    changed.push(vnet);
                }
                Err(e) => {
                    let text =
                        format!("vnet {vnet} keeps its key: {}: {e}", secured.path.display());
                    log::log!(secured.complaint.level(&text, now.mono), "{text}");
                }
            }
        }
        for vnet in &changed {
            self.publish(*vnet, now);
        }
        changed
    }

    /// This host was suspended: keys age while it is.
    pub(super) fn awake(&mut self, asleep: Duration, seed: [u8; 32], now: Now) {
        self.salt = first_salt(&Secret::new(seed));
        self.sadb.awake(asleep, now);
    }

    /// This host is a copy of what it was: nothing that follows from the state before is used again.
    pub(super) fn begin_anew(&mut self, seed: [u8; 32], now: Now) {
        let seed = Secret::new(seed);
        self.salt = first_salt(&seed);
        self.sadb.begin_anew(seed.derive("sadb", &[]), now);
    }

    /// A number that is another whenever keys were read.
    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    /// The keys for entries of hello that are accepted on a vnet, the used one first; none if it is not secured.
    pub(super) fn hello_keys(&self, vnet: VnetId) -> Vec<(KeyId, MacKey)> {
        let keys = self.vnets.get(&vnet).into_iter().flat_map(|secured| &secured.keys);
        keys.map(|keys| (keys.id, keys.hello.clone())).collect()
    }

    pub(super) fn is_secured(&self, vnet: VnetId) -> bool {
        self.vnets.contains_key(&vnet)
    }

    /// Puts a tag on a message for a secured vnet; false if it must not be sent.
    #[must_use]
    pub(super) fn tag(&mut self, message: &mut Message, now: Now) -> bool {
        self.membership.tag(message, now)
    }

    /// Checks a message of another host, which came `from` there as these bytes, and takes its tag off.
    pub(super) fn check(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        message: Message,
        now: Now,
    ) -> Result<Heard, Refusal> {
        let (vnet, tag) = (message.key.vnet, message.tag);
        let checked = self.membership.check(bytes, message, now.wall_ms)?;
        let Some(secured) = self.vnets.get(&vnet) else {
            return Ok(Heard { message: checked, is_other: false });
        };
        let key = tag.map(|tag| KeyId(tag.key_id));
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let is_direct = !message.relayed && message.author.addr == from;
        // Whose message it is nothing but its tag says, or else its address.
        if key.is_some() || is_direct {
            self.census.note(vnet, message.author.name(), key, now.mono);
        }
        Ok(Heard { message: checked, is_other: key != secured.sent() })
    }

    /// The hosts heard of late on a vnet that use another key or policy than this one sends with.
    pub(super) fn others(&self, vnet: VnetId, now: Now) -> Others {
        let secured = self.vnets.get(&vnet);
        let others = secured.map(|secured| self.census.others(vnet, secured.sent(), now.mono));
        others.unwrap_or_default()
    }

    /// The fingerprint of the key that a vnet uses.
    pub(super) fn fingerprint(&self, vnet: VnetId) -> Option<&str> {
        self.vnets.get(&vnet).map(|secured| secured.fingerprint.as_str())
    }

    /// Whether frames are sealed on a vnet.
    fn seals(&self, vnet: VnetId) -> bool {
        self.vnets.get(&vnet).is_some_and(|secured| secured.policy.sent().is_secured())
    }

    /// Whether frames to a host have to wait for keys. While the policy changes they go there plain until there
    /// are keys, but to a host that sends with tags: it may take sealed frames only.
    fn must_seal(&self, vnet: VnetId, peer: IpAddr) -> bool {
        !self.takes_plain(vnet) || self.membership.has_heard(vnet, peer)
    }

    /// Whether frames that are not sealed are accepted on a vnet.
    fn takes_plain(&self, vnet: VnetId) -> bool {
        self.vnets.get(&vnet).is_none_or(|secured| secured.policy.accepts(Level::None))
    }

    /// When something is due.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let gates = self.gates.values().map(|gate| gate.not_before.unwrap_or(gate.until));
        self.sadb.poll_timeout().into_iter().chain(self.check_at).chain(gates).min()
    }

    /// varpd serves from now on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.awaits_return = Some(now + RETURN);
    }

    /// A backend has come back from an earlier varpd, with its sockets.
    pub(super) fn note_return(&mut self) {
        self.has_returned = true;
    }

    /// Until when a new session waits for backends that may be on their way back: others would send to them with keys that they
    /// do not have yet, instead of those that they have. On a vnet without a backend, only they can be meant.
    fn awaited_return(&self, has_none: bool, now: Instant) -> Option<Instant> {
        let is_restarted = self.has_returned || has_none;
        self.awaits_return.filter(|at| *at > now && is_restarted)
    }

    /// A vif is gone, or has another backend.
    pub(super) fn forget_vif(&mut self, vif: LocalVif) {
        self.users.retain(|(of, _), _| *of != vif);
        self.issued.retain(|(of, _)| *of != vif);
        for gate in self.gates.values_mut() {
            gate.waiting.retain(|(of, _)| *of != vif);
            if gate.waiting.is_empty() && gate.not_before.is_none() {
                gate.until = Instant::ZERO;
            }
        }
    }

    /// Mappings that are no longer used.
    fn sweep(&mut self, now: Now) {
        self.users.retain(|_, user| user.until > now.mono);
        let used: BTreeSet<_> = self.users.iter().map(|(&(vif, _), user)| (vif, user.to)).collect();
        self.issued.retain(|issued| used.contains(issued));
    }
}

fn read(path: &Path, counters: &VarpdCounters) -> io::Result<(KeyFile, Version)> {
    counters.inc(VarpdCounter::key_files_read);
    let read = || {
        let (bytes, version) = secret_file::read(path, keyfile::MAX_LEN)
            .map_err(|e| explained(e, process::own_user()))?;
        Ok((KeyFile::parse(&bytes).map_err(io::Error::other)?, version))
    };
    read().inspect_err(|_| counters.inc(VarpdCounter::key_files_failed))
}

/// What to do about a key that can't be read by varpd's user.
fn explained(error: io::Error, user: u32) -> io::Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => io::Error::other(format!(
            "user {user}, as whom varpd runs, can't read it: the file and its directory must be that \
             user's (chown {user})"
        )),
        _ => error,
    }
}

/// Those under each policy, that which is sent under first.
fn member_keys(file: &KeyFile, vnet: VnetId, suites: &[Suite]) -> Vec<MemberKeys> {
    let of = |suite: Suite| {
        file.accepted().map(move |key| MemberKeys::new(key, vnet, suite.level(), suite))
    };
    suites.iter().copied().flat_map(of).collect()
}

impl Daemon {
    /// Reads the keys of the vnets that are configured to be secured.
    pub(super) fn load_keys(&mut self, now: Now) -> Result<(), String> {
        self.security.begin(now.mono);
        for vnet in self.config.secured_vnets() {
            self.security.load(vnet, &self.config, &self.counters, now)?;
        }
        Ok(())
    }

    /// What a backend on a secured vnet needs before anything else.
    pub(super) fn send_keys(&mut self, id: LocalVif, client: ClientId, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let (vnet, own) = (vif.key.vnet, vif.coa.addr);
        if !self.security.is_secured(vnet) {
            return;
        }
        self.security.forget_vif(id);
        self.send_group_keys(id, client, now);
        let (mut keys, mut peers) = (Vec::new(), BTreeMap::new());
        for (number, peer) in self.security.sadb.sessions(vnet) {
            // An earlier backend may have had it, and the window that goes with it.
            let inbound = self.security.sadb.inbound(number, own, now);
            *peers.entry(peer).or_insert(false) |= inbound.is_some();
            // What waits for others waits for this one, too.
            if let (Some(_), Some(gate)) = (&inbound, self.security.gates.get_mut(&(vnet, peer))) {
                gate.waiting.insert((id, number));
            }
            keys.extend(inbound);
        }
        // One that it can have is newer than all that it can't.
        for (peer, _) in peers.into_iter().filter(|(_, has_one)| !has_one) {
            self.security.sadb.renew(vnet, peer, now);
        }
        for keys in keys.chunks(MAX_INBOUND) {
            self.tell(client, &Event::SaIn { keys: keys.to_vec() }, now);
        }
    }

    /// Makes all backends on secured vnets start anew with group frames.
    pub(super) fn renew_group_keys(&mut self, now: Now) {
        let vnets: Vec<VnetId> = self.security.vnets.keys().copied().collect();
        for vnet in vnets {
            for (id, client) in self.backends(vnet) {
                self.send_group_keys(id, client, now);
            }
        }
    }

    fn send_group_keys(&mut self, id: LocalVif, client: ClientId, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let Some(secured) = self.security.vnets.get(&vif.key.vnet) else { return };
        let pairs = u16::try_from(vif.sockets.queue_pairs()).unwrap_or(u16::MAX);
        let salt = self.security.salt;
        self.security.salt = salt.wrapping_add(pairs);
        let keys = secured.keys.iter().map(|keys| (keys.group_suite, keys.group.clone()));
        let end = self.security.sadb.end();
        let event = Event::GroupKeys { salt, end, keys: keys.collect() };
        self.tell(client, &event, now);
    }

    pub(super) fn tell(&mut self, client: ClientId, event: &Event, now: Now) {
        let sent = self.clients.send(client, event, &[]);
        self.drop_if_stalled(client, sent, now);
    }

    /// The live backends of a vnet.
    pub(super) fn backends(&self, vnet: VnetId) -> Vec<(LocalVif, ClientId)> {
        let live = |(id, vif): (LocalVif, &super::registry::Vif<_>)| match vif.owner {
            Owner::Live(client) if vif.key.vnet == vnet => Some((id, client)),
            _ => None,
        };
        self.registry.iter().filter_map(live).collect()
    }

    /// Whether a notice has to wait until there are keys; then it is told later. Keeps account of
    /// who uses what.
    pub(super) fn holds_back(&mut self, id: LocalVif, notice: Notice, now: Now) -> bool {
        let Some(vif) = self.registry.get(id) else { return false };
        let vnet = vif.key.vnet;
        if !self.security.seals(vnet) {
            return false;
        }
        match notice {
            // Its frames are dropped whatever keys there are.
            Notice::Mapping { coa, .. } if coa.usable_from(self.opener.site().address).is_err() => {
                false
            }
            Notice::Mapping { mac, coa, lifetime, .. } => {
                let (to, until) = (coa.addr, now.mono + lifetime);
                let waits = self.security.must_seal(vnet, to.ip());
                let user = User { to, held: waits.then_some(notice), until };
                self.security.users.insert((id, mac), user);
                self.security.sadb.want(vnet, to.ip(), until, now);
                self.serve_if_open(id, vnet, to, now);
                waits
            }
            Notice::Unresolved { mac, .. } | Notice::Invalidate { mac } => {
                self.security.users.remove(&(id, mac));
                false
            }
            Notice::Lost { coa, .. } => {
                self.send_on(id, vif.key.mac, coa, now);
                false
            }
            Notice::Claimed { .. } | Notice::Refused { .. } => false,
        }
    }

    /// A MAC of this backend is elsewhere: for a while it sends on what still comes, and needs keys
    /// for that.
    pub(super) fn send_on(&mut self, id: LocalVif, mac: Mac, coa: CareOf, now: Now) {
        let Some(vnet) = self.registry.get(id).map(|vif| vif.key.vnet) else { return };
        if !self.security.seals(vnet) {
            return;
        }
        let (to, until) = (coa.addr, now.mono + self.config.timers.lifetime.duration());
        self.security.users.insert((id, mac), User { to, held: None, until });
        self.security.sadb.want(vnet, to.ip(), until, now);
        self.serve_if_open(id, vnet, to, now);
    }

    /// Serves a backend at once if there are keys for where it sends, and nothing waits.
    fn serve_if_open(&mut self, id: LocalVif, vnet: VnetId, to: SocketAddr, now: Now) {
        // Keys for the host may be among the outputs: they come first.
        self.drive_security(now);
        let is_gated = self.security.gates.contains_key(&(vnet, to.ip().to_canonical()));
        if !is_gated && self.security.sadb.is_served(vnet, to.ip(), now) {
            self.serve(id, to, false, now);
        }
    }

    /// Tells a backend keys for a care-of address, if it has none or is to have others, and then what
    /// waits for them.
    fn serve(&mut self, id: LocalVif, to: SocketAddr, anew: bool, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let Owner::Live(client) = vif.owner else { return };
        let (vnet, pairs) = (vif.key.vnet, vif.sockets.queue_pairs());
        if anew || !self.security.issued.contains(&(id, to)) {
            let pairs = u32::try_from(pairs).unwrap_or(1);
            let Some(keys) = self.security.sadb.outbound(vnet, to, pairs, now) else { return };
            self.security.issued.insert((id, to));
            self.tell(client, &Event::SaOut { to, keys }, now);
        }
        self.release(id, to, now);
    }

    /// Tells a backend the mappings to a care-of address that were held back.
    fn release(&mut self, id: LocalVif, to: SocketAddr, now: Now) {
        let Some(vif) = self.registry.get(id) else { return };
        let Owner::Live(client) = vif.owner else { return };
        let own = vif.key.mac;
        let of_vif = self.security.users.range_mut((id, Mac([0; 6]))..=(id, Mac([0xff; 6])));
        let held: Vec<Notice> =
            of_vif.filter(|(_, user)| user.to == to).filter_map(|(_, u)| u.held.take()).collect();
        for notice in held {
            if let Notice::Mapping { mac, coa, .. } = notice {
                self.offer_lanes(id, mac, coa, now);
            }
            let event = notice.event(own, self.config.timers.lifetime.duration());
            self.tell(client, &event, now);
        }
    }

    /// Who sends to vifs of a host, and where.
    fn users_of(&self, vnet: VnetId, peer: IpAddr) -> BTreeSet<(LocalVif, SocketAddr)> {
        let users = self.security.users.iter();
        let of_peer = users.filter(|(_, user)| user.to.ip().to_canonical() == peer);
        let of_vnet = |vif: &LocalVif| self.registry.get(*vif).is_some_and(|v| v.key.vnet == vnet);
        of_peer.map(|(&(vif, _), user)| (vif, user.to)).filter(|(vif, _)| of_vnet(vif)).collect()
    }

    /// Does what the database asks for.
    pub(super) fn drive_security(&mut self, now: Now) {
        while let Some(output) = self.security.sadb.poll_output() {
            let gate = output.link().and_then(|link| self.security.gates.get_mut(&link));
            match (gate, &output) {
                (Some(gate), output) if !matches!(output, Output::Receive { .. }) => {
                    gate.held.push_back(output.clone());
                }
                _ => self.perform(output, now),
            }
        }
    }

    fn perform(&mut self, output: Output, now: Now) {
        match output {
            Output::Send { to, bytes, .. } => {
                let to = SocketAddr::new(to, self.config.port.0);
                self.varp.send_bytes(to, bytes, now.mono, &self.counters);
            }
            Output::Receive { vnet, peer, number } => self.hand_out((vnet, peer), number, now),
            Output::Serve { vnet, peer } => {
                for (vif, to) in self.users_of(vnet, peer) {
                    self.serve(vif, to, true, now);
                }
            }
            Output::Ended { vnet, number } => {
                for (_, client) in self.backends(vnet) {
                    self.tell(client, &Event::SaEnd { number }, now);
                }
            }
            Output::Down { vnet, peer } => self.link_down(vnet, peer, now),
            Output::GaveUp { vnet, peer } => self.gave_up(vnet, peer, now),
        }
    }

    /// Gives local backends a session's key, and waits for their word.
    fn hand_out(&mut self, link: Link, number: u32, now: Now) {
        let mut waiting = BTreeSet::new();
        for (id, client) in self.backends(link.0) {
            let Some(own) = self.registry.get(id).map(|vif| vif.coa.addr) else { continue };
            if let Some(inbound) = self.security.sadb.inbound(number, own, now) {
                self.tell(client, &Event::SaIn { keys: vec![inbound] }, now);
                waiting.insert((id, number));
            }
        }
        let not_before = self.security.awaited_return(waiting.is_empty(), now.mono);
        if !waiting.is_empty() || not_before.is_some() {
            let another_serves = self.security.sadb.is_served_without(link.0, link.1, number, now);
            let timeout = if another_serves { GATE_TIMEOUT } else { FIRST_GATE_TIMEOUT };
            let until = not_before.unwrap_or(now.mono) + timeout;
            let gate = Gate { waiting: BTreeSet::new(), not_before, until, held: VecDeque::new() };
            let gate = self.security.gates.entry(link).or_insert(gate);
            gate.waiting.extend(waiting);
            gate.until = until;
        }
    }

    /// A backend accepts a session.
    pub(super) fn sa_ready(&mut self, id: LocalVif, number: u32, now: Now) {
        for gate in self.security.gates.values_mut() {
            gate.waiting.remove(&(id, number));
        }
        self.open_gates(now);
    }

    /// Goes on with links whose backends are ready, or too slow.
    fn open_gates(&mut self, now: Now) {
        for gate in self.security.gates.values_mut() {
            gate.not_before = gate.not_before.filter(|at| *at > now.mono);
        }
        let is_open = |gate: &Gate| {
            gate.not_before.is_none() && (gate.waiting.is_empty() || gate.until <= now.mono)
        };
        let gates = self.security.gates.iter();
        let open: Vec<Link> = gates.filter(|(_, g)| is_open(g)).map(|(link, _)| *link).collect();
        for link in open {
            let held = self.security.gates.remove(&link).map(|gate| gate.held);
            held.into_iter().flatten().for_each(|output| self.perform(output, now));
        }
    }

    /// No key serves a host any more: its vifs are resolved anew before anything is sent there.
    fn link_down(&mut self, vnet: VnetId, peer: IpAddr, now: Now) {
        for (id, to) in self.users_of(vnet, peer) {
            self.security.issued.remove(&(id, to));
            let Some(Owner::Live(client)) = self.registry.get(id).map(|vif| vif.owner) else {
                continue;
            };
            let secured = self.security.vnets.get(&vnet);
            if let Some(suite) = secured.and_then(|secured| secured.suites.first()) {
                let none =
                    SenderKeys { suite: *suite, keys: Vec::new(), lifetime: Lifetime::default() };
                self.tell(client, &Event::SaOut { to, keys: none }, now);
            }
            let of_vif = self.security.users.iter().filter(|((of, _), u)| *of == id && u.to == to);
            let macs: Vec<Mac> = of_vif.map(|((_, mac), _)| *mac).collect();
            for mac in macs {
                self.security.users.remove(&(id, mac));
                self.tell(client, &Event::Invalidate { mac }, now);
            }
        }
    }

    /// A host does not agree on keys: who waits for them hears that nobody is there. Where plain frames are
    /// accepted, too, they go there.
    fn gave_up(&mut self, vnet: VnetId, peer: IpAddr, now: Now) {
        let level = self.complaints.no_keys.level(vnet, peer, now.mono);
        log::log!(level, "vnet {vnet}: {peer} does not agree on keys (another key or policy?)");
        for (id, to) in self.users_of(vnet, peer) {
            if self.security.takes_plain(vnet) {
                // It will not get better: while the policy changes, plain frames may do.
                self.release(id, to, now);
                continue;
            }
            let Some(Owner::Live(client)) = self.registry.get(id).map(|vif| vif.owner) else {
                continue;
            };
            let waits = |((of, _), user): &(&(LocalVif, Mac), &User)| {
                *of == id && user.to == to && user.held.is_some()
            };
            let users = self.security.users.iter().filter(waits);
            let macs: Vec<Mac> = users.map(|((_, mac), _)| *mac).collect();
            let hold_ms = u32::try_from(GAVE_UP_HOLD.as_millis()).unwrap_or(u32::MAX);
            for mac in macs {
                self.security.users.remove(&(id, mac));
                self.tell(client, &Event::Unresolved { mac, hold_ms }, now);
            }
        }
    }

    /// A backend needs another session with a host.
    pub(super) fn sa_needed(&mut self, id: LocalVif, address: SocketAddr, now: Now) {
        self.counters.inc(VarpdCounter::sa_needed);
        if let Some(vif) = self.registry.get(id) {
            self.security.sadb.renew(vif.key.vnet, address.ip(), now);
        }
    }

    /// Does what is due.
    pub(super) fn security_timeout(&mut self, now: Now) {
        self.open_gates(now);
        self.security.sadb.handle_timeout(now);
        if self.security.check_at.is_none_or(|at| at > now.mono) {
            return;
        }
        self.security.check_at = Some(now.mono + CHECK_INTERVAL);
        self.security.sweep(now);
        for vnet in self.security.reload(&self.counters, now) {
            for (id, client) in self.backends(vnet) {
                self.send_group_keys(id, client, now);
                // Others hear at once what is used here.
                self.mapper.announce(id, now);
            }
        }
    }
}
