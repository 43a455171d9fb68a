//! Secured vnets: their keys, and the state machines that use them.
//!
//! varpd reads a key file when its vnet is first needed and whenever the file changes. If it can no
//! longer read a file, it keeps the keys and logs a complaint.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::config::Config;
use crate::mapper::{LocalVif, Notice};
use crate::policy::{Level, Policy, Suite};
use crate::quiet::Lasting;
use crate::secret::Secret;
use crate::security::census::{Census, Others};
use crate::security::keyfile::KeyFile;
use crate::security::keys::{KeyId, MacKey, MemberKeys, fingerprint};
use crate::security::membership::{Membership, Refusal};
use crate::security::sadb::{self, Keyring, Sadb};
use crate::time::{Instant, Now};
use crate::wire::name::{Name, Realm};
use crate::wire::varp::Message;
use crate::wire::{Mac, VnetId};

use super::Host;
use super::doubts::Doubts;
use super::gates::Gate;
use super::output::Output;

/// Interval between checks of key files for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Time that backends have to register with a restarted varpd: they try at least twice a second
/// (the backend's rule).
const RETURN: Duration = Duration::from_millis(700);

/// A vnet, and another host's address.
pub(super) type Link = (VnetId, IpAddr);

/// A secured vnet whose key was read.
#[derive(Debug)]
pub(super) struct Secured {
    /// The complaint about a file that varpd can no longer read.
    complaint: Lasting,
    pub(super) policy: Policy,
    /// The cipher suites of group frames, one for each policy level that has keys.
    pub(super) suites: Vec<Suite>,
    /// The fingerprint of the key in use.
    fingerprint: String,
    /// The accepted keys, the one in use first.
    pub(super) keys: Vec<MemberKeys>,
}

impl Secured {
    /// The key of the tags of sent messages, if they have tags.
    fn sent(&self) -> Option<KeyId> {
        self.keys.first().filter(|_| self.policy.sent().is_secured()).map(|keys| keys.id)
    }
}

/// A mapping that a backend has or waits for.
#[derive(Debug)]
pub(super) struct User {
    pub(super) to: SocketAddr,
    /// The notice of the mapping, held back until there are keys.
    pub(super) held: Option<Notice>,
    pub(super) until: Instant,
}

/// A received message that has passed its check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) message: Message,
    /// Its sender uses another policy or key than this host sends with.
    pub(super) is_other: bool,
}

/// The keys of all secured vnets, and the state machines that use them.
#[derive(Debug)]
pub(super) struct Security {
    pub(super) sadb: Sadb,
    realm: Realm,
    membership: Membership,
    census: Census,
    pub(super) doubts: Doubts,
    pub(super) vnets: BTreeMap<VnetId, Secured>,
    /// Vnets whose key files are being read for the first time.
    asked: BTreeSet<VnetId>,
    pub(super) users: BTreeMap<(LocalVif, Mac), User>,
    /// Until then, backends of an earlier varpd may still register.
    awaits_return: Instant,
    /// A backend of an earlier varpd has registered.
    has_returned: bool,
    /// Care-of addresses that a backend has keys for.
    pub(super) issued: BTreeSet<(LocalVif, SocketAddr)>,
    pub(super) gates: BTreeMap<Link, Gate>,
    /// The salt of the next sender of group frames.
    pub(super) salt: u16,
    /// Number of changes of keys.
    revision: u64,
    check_at: Option<Instant>,
}

fn first_salt(seed: &Secret) -> u16 {
    let [high, low] = seed.expand("salt", &[]);
    u16::from_be_bytes([high, low])
}

impl Security {
    /// Without vnets. `own` is the VARP address; `seed` is secret and random.
    pub(super) fn new(config: &Config, own: IpAddr, seed: &Secret, now: Instant) -> Self {
        let rekey = config.security.rekey.duration();
        let sadb_config = sadb::Config { rekey, ..sadb::Config::default() };
        let realm = Realm(config.realm);
        let sadb = Sadb::new(sadb_config, Name::host(realm, own), seed.derive("sadb", &[]));
        Self {
            sadb,
            realm,
            membership: Membership::default(),
            census: Census::default(),
            doubts: Doubts::default(),
            vnets: BTreeMap::new(),
            asked: BTreeSet::new(),
            users: BTreeMap::new(),
            awaits_return: now + RETURN,
            has_returned: false,
            issued: BTreeSet::new(),
            gates: BTreeMap::new(),
            salt: first_salt(seed),
            revision: 0,
            check_at: None,
        }
    }

    /// Takes the keys of a vnet.
    pub(super) fn set_keys(&mut self, vnet: VnetId, config: &Config, file: &KeyFile, now: Now) {
        let (policy, suites) = (config.policy(vnet), config.group_suites(vnet));
        let secured = Secured {
            complaint: Lasting::default(),
            policy,
            fingerprint: fingerprint(&file.used),
            keys: member_keys(file, vnet, &suites),
            suites,
        };
        self.vnets.insert(vnet, secured);
        self.publish(vnet, now);
        self.check_at.get_or_insert(now.mono + CHECK_INTERVAL);
    }

    /// Removes the keys of a vnet that is no longer secured.
    pub(super) fn remove_vnet(&mut self, vnet: VnetId, now: Now) {
        if self.vnets.remove(&vnet).is_some() {
            self.revision += 1;
            self.membership.set_vnet(vnet, Vec::new());
            self.sadb.set_vnet(vnet, None, now);
        }
    }

    /// The host has another address: all sessions end.
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

    /// This host was suspended for the time `asleep`, by which the keys age.
    pub(super) fn awake(&mut self, asleep: Duration, seed: [u8; 32], now: Now) {
        self.salt = first_salt(&Secret::new(seed));
        self.sadb.awake(asleep, now);
    }

    /// This host may be a copy: it stops using keys and numbers that follow from its earlier state.
    pub(super) fn begin_anew(&mut self, seed: [u8; 32], now: Now) {
        let seed = Secret::new(seed);
        self.salt = first_salt(&seed);
        self.sadb.begin_anew(seed.derive("sadb", &[]), now);
    }

    /// A number that changes whenever the keys of a vnet are set or removed.
    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    /// The accepted keys of a vnet for entries of hello, the one in use first; none if the vnet is
    /// not secured.
    pub(super) fn hello_keys(&self, vnet: VnetId) -> Vec<(KeyId, MacKey)> {
        let keys = self.vnets.get(&vnet).into_iter().flat_map(|secured| &secured.keys);
        keys.map(|keys| (keys.id, keys.hello.clone())).collect()
    }

    pub(super) fn is_secured(&self, vnet: VnetId) -> bool {
        self.vnets.contains_key(&vnet)
    }

    /// Puts a tag on a message for a secured vnet. Returns false if the message must not be sent.
    #[must_use]
    pub(super) fn tag(&mut self, message: &mut Message, now: Now) -> bool {
        self.membership.tag(message, now)
    }

    /// Checks a message of another host, received `from` an address as `bytes`, and removes its
    /// tag.
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
        // Only a tag proves the author of a message; without one, a direct message's address
        // indicates it.
        if key.is_some() || is_direct {
            self.census.note(vnet, message.author.name(), key, now.mono);
        }
        Ok(Heard { message: checked, is_other: key != secured.sent() })
    }

    /// The hosts heard recently on a vnet that use another key or policy than this one sends with.
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
    pub(super) fn seals(&self, vnet: VnetId) -> bool {
        self.vnets.get(&vnet).is_some_and(|secured| secured.policy.sent().is_secured())
    }

    /// Whether frames to a host have to wait for keys. While the policy changes, this host sends
    /// plain frames until there are keys, except to a host that sends with tags: it may accept
    /// sealed frames only.
    pub(super) fn must_seal(&self, vnet: VnetId, peer: IpAddr) -> bool {
        !self.takes_plain(vnet) || self.membership.has_heard(vnet, peer)
    }

    /// Whether frames that are not sealed are accepted on a vnet.
    pub(super) fn takes_plain(&self, vnet: VnetId) -> bool {
        self.vnets.get(&vnet).is_none_or(|secured| secured.policy.accepts(Level::None))
    }

    /// The time of the next timeout, if any.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let gates = self.gates.values().map(|gate| gate.not_before.unwrap_or(gate.until));
        self.sadb.poll_timeout().into_iter().chain(self.check_at).chain(gates).min()
    }

    /// A backend of an earlier varpd has registered with its sockets.
    pub(super) fn note_return(&mut self) {
        self.has_returned = true;
    }

    /// The time until which a new session waits for backends of an earlier varpd. Otherwise other
    /// hosts would send to them with keys that they do not have yet, instead of keys that they
    /// have. `has_none`: the vnet has no backend here, so the session can only be for these.
    pub(super) fn awaited_return(&self, has_none: bool, now: Instant) -> Option<Instant> {
        let is_restarted = self.has_returned || has_none;
        Some(self.awaits_return).filter(|at| *at > now && is_restarted)
    }

    /// Forgets the keys and mappings of a vif that is gone or has another backend.
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

    /// Forgets mappings and keys that backends no longer use.
    pub(super) fn sweep(&mut self, now: Now) {
        self.users.retain(|_, user| user.until > now.mono);
        let used: BTreeSet<_> = self.users.iter().map(|(&(vif, _), user)| (vif, user.to)).collect();
        self.issued.retain(|issued| used.contains(issued));
    }
}

/// The accepted keys under each policy level, the level that this host sends under first.
fn member_keys(file: &KeyFile, vnet: VnetId, suites: &[Suite]) -> Vec<MemberKeys> {
    let of = |suite: Suite| {
        file.accepted().map(move |key| MemberKeys::new(key, vnet, suite.level(), suite))
    };
    suites.iter().copied().flat_map(of).collect()
}

impl Host {
    /// Whether varpd has to read a vnet's key before it uses the vnet.
    pub(super) fn needs_key(&self, vnet: VnetId) -> bool {
        self.config.policy(vnet).is_secured() && !self.security.is_secured(vnet)
    }

    /// Asks the shell to read a vnet's key, unless it has been asked already.
    pub(super) fn ask_for_key(&mut self, vnet: VnetId) {
        if self.security.asked.insert(vnet) {
            let path = self.config.key_file(vnet);
            self.outputs.push_back(Output::ReadKey { vnet, path });
        }
    }

    /// A key file was read, or could not be.
    pub(super) fn handle_key(&mut self, vnet: VnetId, result: Result<KeyFile, String>, now: Now) {
        let is_first = !self.security.is_secured(vnet);
        self.security.asked.remove(&vnet);
        let policy = self.config.policy(vnet);
        if !policy.is_secured() {
            // The vnet was secured when the file was asked for.
            return self.go_on_with_key(vnet, Ok(()), now);
        }
        match result {
            Ok(file) => {
                self.security.set_keys(vnet, &self.config, &file, now);
                let fingerprint = self.security.fingerprint(vnet).unwrap_or_default();
                match is_first {
                    true => {
                        say!(self, log::Level::Info, "vnet {vnet}: {policy}, key {fingerprint}")
                    }
                    false => say!(self, log::Level::Info, "vnet {vnet}: key {fingerprint}"),
                }
                match is_first {
                    true => self.go_on_with_key(vnet, Ok(()), now),
                    false => self.hand_out_changed_keys(vnet, now),
                }
            }
            Err(why) if is_first => {
                let text = format!("vnet {vnet} is secured ({policy}), but its key {why}");
                self.go_on_with_key(vnet, Err(&text), now);
            }
            Err(why) => self.complain_of_key(vnet, &why, now),
        }
    }

    fn hand_out_changed_keys(&mut self, vnet: VnetId, now: Now) {
        for (id, client) in self.backends(vnet) {
            self.send_group_keys(id, client);
            // Other hosts learn this host's new key at once.
            self.mapper.announce(id, now);
        }
    }

    fn complain_of_key(&mut self, vnet: VnetId, why: &str, now: Now) {
        let text = format!("vnet {vnet} keeps its key: {why}");
        let Some(secured) = self.security.vnets.get_mut(&vnet) else { return };
        let level = secured.complaint.level(&text, now.mono);
        say!(self, level, "{text}");
    }

    /// Handles a timeout.
    pub(super) fn security_timeout(&mut self, now: Now) {
        self.open_gates(now);
        self.security.sadb.handle_timeout(now);
        if self.security.check_at.is_some_and(|at| at <= now.mono) {
            self.security.check_at = Some(now.mono + CHECK_INTERVAL);
            self.security.sweep(now);
            self.outputs.push_back(Output::CheckKeys);
        }
    }
}
