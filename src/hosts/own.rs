//! This host's list of vnets, and the messages that it sends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::digest;

use crate::policy::{Level, Policy, Suite};
use crate::security::keys::{KeyId, MacKey};
use crate::security::membership::TOLERANCE;
use crate::time::Now;
use crate::wire::extension::Extensions;
use crate::wire::hello::list::{Choice, PROVED_LEN, TAG_LEN};
use crate::wire::hello::{
    Abilities, Body, Entries, Entry, Flags, HMAC_LEN, Hello, LIST_LEN, List, MAX_LEN, Message,
    Proof, Relays, Release,
};
use crate::wire::name::Name;
use crate::wire::{Longest, VnetId};

/// Number of entries that fit one LIST, with or without tags.
pub(super) const PER_LIST: usize = (MAX_LEN - LIST_LEN) / PROVED_LEN;
/// The first and the last vnet id.
pub(super) const ALL: (VnetId, VnetId) = (VnetId::MIN, VnetId::MAX);

/// This host's settings of a vnet on which it has vifs.
#[derive(Clone, Debug)]
pub struct Vnet {
    /// Its policy.
    pub policy: Policy,
    /// The cipher of the group frames that this host sends.
    pub cipher: Option<Suite>,
    /// The group that this host sends frames to, and the groups that it listens to ([`Entry::groups`]).
    pub groups: Choice,
    /// The longest datagram that all of its vifs on the vnet take.
    pub longest: Longest,
    /// The accepted keys, first the one in use; none on a vnet that is not secured.
    pub keys: Vec<(KeyId, MacKey)>,
}

impl Vnet {
    /// The entry of a LIST, without its tag.
    fn entry(&self, vnet: VnetId) -> Entry {
        let (sent, accepted) = self.policy.codes();
        let proof = |(id, _): &(KeyId, MacKey)| Proof { key_id: id.0, tag: [0; TAG_LEN] };
        Entry {
            vnet,
            policy: Choice { sent, accepted },
            cipher: self.cipher.map_or(0, Suite::code),
            groups: self.groups,
            longest: self.longest.number(),
            proof: self.keys.first().map(proof),
        }
    }

    /// The key with this id.
    pub(super) fn key(&self, id: u32) -> Option<&MacKey> {
        self.keys.iter().find(|(known, _)| known.0 == id).map(|(_, key)| key)
    }
}

/// This host's settings, as it tells them to others.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// The vnets that it has vifs on.
    pub vnets: BTreeMap<VnetId, Vnet>,
    /// Number of vifs.
    pub vifs: u32,
    /// Destination of its messages to the group.
    pub group: Option<SocketAddr>,
    /// Destinations of its beacons; without one it ignores those of others.
    pub beacons: Vec<SocketAddr>,
}

/// The bytes that the tag of an entry covers.
pub(super) fn tagged(sender: Name, time_ms: u64, generation: u32, entry: &Entry) -> Vec<u8> {
    let mut all = sender.to_bytes().to_vec();
    all.extend(time_ms.to_be_bytes());
    all.extend(generation.to_be_bytes());
    all.extend(entry.covered());
    all
}

/// The digest of a list.
pub(super) fn digest_of<'a>(entries: impl Iterator<Item = &'a Entry>) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    entries.for_each(|entry| context.update(&entry.covered()));
    let whole = context.finish();
    let first = whole.as_ref().first_chunk().copied();
    u64::from_be_bytes(first.unwrap_or_default())
}

/// The program's version.
fn release() -> Release {
    let number = |text: &str| text.parse().unwrap_or_default();
    let small = |text: &str| u8::try_from(number(text)).unwrap_or(u8::MAX);
    Release {
        major: small(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: small(env!("CARGO_PKG_VERSION_MINOR")),
        patch: number(env!("CARGO_PKG_VERSION_PATCH")),
    }
}

/// How a HELLO is addressed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Addressing {
    pub(super) flags: Flags,
    /// Both are 0 in messages to the group.
    pub(super) nonce: u64,
    pub(super) answer: u64,
}

/// This host.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) name: Name,
    pub(super) setup: Setup,
    entries: BTreeMap<VnetId, Entry>,
    generation: u32,
    digest: u64,
    /// The time of the last message.
    last_ms: u64,
    /// Vnets whose entries have changed since they were last sent to the group.
    changed: BTreeSet<VnetId>,
    /// The whole list is to be sent to the group.
    tell_all: bool,
}

impl Own {
    /// A host without vnets.
    pub(super) fn new(name: Name, now: Now) -> Self {
        let mut own = Self {
            name,
            setup: Setup::default(),
            entries: BTreeMap::new(),
            generation: 0,
            digest: digest_of(std::iter::empty()),
            last_ms: 0,
            changed: BTreeSet::new(),
            tell_all: true,
        };
        own.renew(now);
        own
    }

    /// A generation that this host has never used.
    fn renew(&mut self, now: Now) {
        let seconds = u32::try_from(now.wall_ms / 1000).unwrap_or(u32::MAX);
        self.generation = seconds.max(self.generation.wrapping_add(1));
    }

    /// Whether hosts need no right tag to count as hosts of a vnet, because it accepts frames without protection.
    /// `None` on a vnet that this host does not serve.
    pub(super) fn takes_all(&self, vnet: VnetId) -> Option<bool> {
        let own = self.setup.vnets.get(&vnet)?;
        Some(own.keys.is_empty() || own.policy.accepts(Level::None))
    }

    /// Replaces the host's settings; returns the vnets whose entry or keys have changed.
    pub(super) fn set(&mut self, setup: Setup, now: Now) -> BTreeSet<VnetId> {
        let ids = |vnet: Option<&Vnet>| {
            vnet.map(|vnet| vnet.keys.iter().map(|(id, _)| *id).collect::<Vec<_>>())
        };
        let entries: BTreeMap<VnetId, Entry> =
            setup.vnets.iter().map(|(id, vnet)| (*id, vnet.entry(*id))).collect();
        let all = self.entries.keys().chain(entries.keys());
        let is_other = |id: &&VnetId| self.entries.get(id) != entries.get(id);
        let listed: BTreeSet<VnetId> = all.filter(is_other).copied().collect();
        let has_other_keys =
            |id: &&VnetId| ids(self.setup.vnets.get(id)) != ids(setup.vnets.get(id));
        let mut others: BTreeSet<VnetId> = entries.keys().filter(has_other_keys).copied().collect();
        (self.setup, self.entries) = (setup, entries);
        if !listed.is_empty() {
            self.renew(now);
            self.digest = digest_of(self.entries.values());
            self.changed.extend(&listed);
            others.extend(listed);
        }
        others
    }

    /// Gives the host another name, under which others do not know it yet.
    pub(super) fn move_to(&mut self, name: Name, now: Now) {
        self.name = name;
        self.tell_all = true;
        self.renew(now);
    }

    /// Plans the whole list for the group, after the next HELLO.
    pub(super) const fn tell_all(&mut self) {
        self.tell_all = true;
    }

    /// The range of vnets whose entries are still to be sent to the group.
    pub(super) fn take_untold(&mut self) -> Option<(VnetId, VnetId)> {
        let changed = std::mem::take(&mut self.changed);
        if std::mem::take(&mut self.tell_all) {
            return Some(ALL);
        }
        changed.first().copied().zip(changed.last().copied())
    }

    /// Whether all changes have been sent to the group.
    pub(super) fn is_told(&self) -> bool {
        self.changed.is_empty()
    }

    #[cfg(test)]
    pub(super) const fn digest(&self) -> u64 {
        self.digest
    }

    /// The time of the next message: later than that of the last, unless the clock was far ahead and has been set right.
    fn time(&mut self, now: Now) -> u64 {
        let ahead = Duration::from_millis(self.last_ms.saturating_sub(now.wall_ms));
        self.last_ms =
            if ahead <= TOLERANCE { now.wall_ms.max(self.last_ms + 1) } else { now.wall_ms };
        self.last_ms
    }

    fn message<'a>(&mut self, body: Body<'a>, flags: Flags, time_ms: u64) -> Message<'a> {
        Message {
            flags,
            key_number: 0,
            time_ms,
            generation: self.generation,
            sender: self.name,
            body,
            extensions: Extensions::NONE,
            hmac: [0; HMAC_LEN],
        }
    }

    /// Makes a HELLO.
    pub(super) fn hello(&mut self, to: Addressing, lifetime: Duration, now: Now) -> Vec<u8> {
        let hello = Hello {
            lifetime_ms: u32::try_from(lifetime.as_millis()).unwrap_or(u32::MAX),
            release: release(),
            abilities: Abilities::default(),
            vifs: self.setup.vifs,
            digest: self.digest,
            nonce: to.nonce,
            answer: to.answer,
            group: self.setup.group,
            relays: Relays::NONE,
        };
        let time = self.time(now);
        self.message(Body::Hello(hello), to.flags, time).to_bytes()
    }

    /// Makes a LIST of the vnets from `first` to `last`, or of as many as fit; also returns the start of the next LIST.
    pub(super) fn list(
        &mut self,
        (first, last): (VnetId, VnetId),
        now: Now,
    ) -> (Vec<u8>, Option<VnetId>) {
        let time_ms = self.time(now);
        let mut rest = self.entries.range(first..=last);
        let entries: Vec<Entry> =
            rest.by_ref().take(PER_LIST).map(|(_, entry)| self.tag(*entry, time_ms)).collect();
        let (end, next) = match (rest.next(), entries.last()) {
            (Some(_), Some(entry)) => (entry.vnet, VnetId::new(entry.vnet.get().saturating_add(1))),
            _ => (last, None),
        };
        let bytes = Entries::emit(&entries);
        let entries = Entries::parse(&bytes).unwrap_or(Entries::NONE);
        let list = List { first, last: end, entries };
        (self.message(Body::List(list), Flags::NONE, time_ms).to_bytes(), next)
    }

    fn tag(&self, entry: Entry, time_ms: u64) -> Entry {
        let key = self.setup.vnets.get(&entry.vnet).and_then(|vnet| vnet.keys.first());
        let proof = key.map(|(id, key)| {
            let tag = key.sign(&[&tagged(self.name, time_ms, self.generation, &entry)]);
            Proof { key_id: id.0, tag }
        });
        Entry { proof, ..entry }
    }
}
