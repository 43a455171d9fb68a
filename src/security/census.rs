//! Records the key, or none, of the last message of each other host on this host's vnets.
//!
//! The last step of a change (of a vnet's key, or of its policy) cuts off hosts that have not taken
//! the previous step. So each accepted message updates a record of its protection, and operators
//! see how many hosts still use another key or policy than this one.
//!
//! A tag proves that a member made the message; the address of a message without a tag proves
//! nothing. So each vnet has a table for each of the two kinds: messages of outsiders hide no
//! member, and messages on one vnet hide no host of another. A count includes whether its table was
//! full, because there may then be more hosts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::keys::KeyId;
use crate::time::Instant;
use crate::wire::VnetId;
use crate::wire::name::Name;

/// Time for which a silent host still counts: a host with a vif sends a message every five minutes.
pub const RECENT: Duration = Duration::from_secs(660);
/// Limit on recorded hosts of a vnet whose messages had tags.
pub const MOST_TAGGED: usize = 16_384;
/// Limit on recorded hosts of a vnet whose messages had none.
pub const MOST_UNTAGGED: usize = 4096;
/// Least time between two searches of a full table for hosts that have been silent for long.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The hosts of a vnet whose last message used another key or policy than this host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// With a tag by another key.
    pub tagged: usize,
    /// Without a tag, although this host sends tags.
    pub untagged: usize,
    /// There may be more, because a table was full recently.
    pub is_full: bool,
}

/// Hosts, and the time and the key of the last message of each.
#[derive(Debug)]
struct Heard<T> {
    hosts: BTreeMap<Name, (T, Instant)>,
    most: usize,
    sweep_at: Instant,
    /// When a host last found no room.
    full: Option<Instant>,
}

impl<T: Copy> Heard<T> {
    const fn new(most: usize) -> Self {
        Self { hosts: BTreeMap::new(), most, sweep_at: Instant::ZERO, full: None }
    }

    fn note(&mut self, host: Name, with: T, now: Instant) {
        if !self.hosts.contains_key(&host) && self.hosts.len() >= self.most {
            if self.sweep_at <= now {
                self.sweep_at = now + SWEEP_INTERVAL;
                self.hosts.retain(|_, (_, at)| *at + RECENT > now);
            }
            if self.hosts.len() >= self.most {
                self.full = Some(now);
                return;
            }
        }
        self.hosts.insert(host, (with, now));
    }

    fn last(&self, host: &Name) -> Option<Instant> {
        self.hosts.get(host).map(|(_, at)| *at)
    }

    fn recent(&self, now: Instant) -> impl Iterator<Item = (&Name, T, Instant)> {
        let recent = self.hosts.iter().filter(move |(_, (_, at))| *at + RECENT > now);
        recent.map(|(host, (with, at))| (host, *with, *at))
    }

    fn was_full(&self, now: Instant) -> bool {
        self.full.is_some_and(|at| at + RECENT > now)
    }
}

/// The recorded hosts of a vnet.
#[derive(Debug)]
struct Vnet {
    tagged: Heard<KeyId>,
    untagged: Heard<()>,
}

impl Vnet {
    const fn new() -> Self {
        Self { tagged: Heard::new(MOST_TAGGED), untagged: Heard::new(MOST_UNTAGGED) }
    }

    fn others(&self, used: Option<KeyId>, now: Instant) -> Others {
        let is_last = |at: Instant, other: Option<Instant>| other.is_none_or(|other| other <= at);
        let tagged = self
            .tagged
            .recent(now)
            .filter(|(host, key, at)| Some(*key) != used && is_last(*at, self.untagged.last(host)));
        let untagged = self.untagged.recent(now).filter(|(host, (), at)| {
            // At the same time as a tag: the tag is proved.
            used.is_some() && self.tagged.last(host).is_none_or(|tagged| tagged < *at)
        });
        let is_full = self.tagged.was_full(now) || used.is_some() && self.untagged.was_full(now);
        Others { tagged: tagged.count(), untagged: untagged.count(), is_full }
    }
}

/// The recorded hosts.
#[derive(Debug, Default)]
pub struct Census {
    vnets: BTreeMap<VnetId, Vnet>,
}

impl Census {
    /// Records a message of a host on a vnet, tagged with this key or without a tag. The vnet must
    /// be one of this host's. Ignores further hosts when the vnet's table is full.
    pub fn note(&mut self, vnet: VnetId, host: Name, key: Option<KeyId>, now: Instant) {
        let vnet = self.vnets.entry(vnet).or_insert_with(Vnet::new);
        match key {
            Some(key) => vnet.tagged.note(host, key, now),
            None => vnet.untagged.note(host, (), now),
        }
    }

    /// The recently heard hosts of a vnet whose last message used another key than this, which is
    /// none on a vnet without tags.
    pub fn others(&self, vnet: VnetId, used: Option<KeyId>, now: Instant) -> Others {
        self.vnets.get(&vnet).map(|vnet| vnet.others(used, now)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::wire::name::Realm;

    const OLD: Option<KeyId> = Some(KeyId(1));
    const NEW: Option<KeyId> = Some(KeyId(2));

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    fn host(n: u32) -> Name {
        Name::host(Realm(0), IpAddr::V4((0x0a00_0000 + n).into()))
    }

    fn at(secs: u64) -> Instant {
        Instant::from_millis(secs * 1000)
    }

    fn others(tagged: usize, untagged: usize) -> Others {
        Others { tagged, untagged, is_full: false }
    }

    #[test]
    fn the_last_message_of_a_host_counts_until_it_has_been_silent_for_long() {
        let mut census = Census::default();
        census.note(vnet(42), host(1), OLD, at(0));
        census.note(vnet(42), host(2), None, at(0));
        census.note(vnet(43), host(3), OLD, at(0));
        let found = |census: &Census, used, secs| census.others(vnet(42), used, at(secs));
        assert_eq!(found(&census, NEW, 1), others(1, 1));
        census.note(vnet(42), host(1), NEW, at(1));
        assert_eq!(found(&census, NEW, 1), others(0, 1));
        census.note(vnet(42), host(2), NEW, at(2));
        assert_eq!(found(&census, NEW, 2), others(0, 0), "it has taken the step");
        assert_eq!(found(&census, None, 2), others(2, 0), "where no tags are sent");
        census.note(vnet(42), host(2), None, at(3));
        assert_eq!((found(&census, NEW, 3), found(&census, None, 3)), (others(0, 1), others(1, 0)));
        assert_eq!(found(&census, NEW, 3 + RECENT.as_secs()), others(0, 0), "gone");
    }

    /// A change of the policy of one vnet lets outsiders be heard there.
    #[test]
    fn a_crowd_without_tags_hides_neither_members_nor_hosts_of_other_vnets() {
        let mut census = Census::default();
        for n in 0..100_000 {
            census.note(vnet(42), host(n), None, at(0));
        }
        census.note(vnet(42), host(7), OLD, at(1));
        census.note(vnet(43), host(7), OLD, at(1));
        census.note(vnet(43), host(8), None, at(1));
        assert_eq!(census.others(vnet(43), NEW, at(1)), others(1, 1));
        let full = Others { is_full: true, ..others(1, MOST_UNTAGGED - 1) };
        assert_eq!(census.others(vnet(42), NEW, at(1)), full);
        assert_eq!(census.others(vnet(42), None, at(1)), others(1, 0), "none are others there");
    }

    #[test]
    fn a_full_table_says_so_until_its_hosts_have_been_silent_for_long() {
        let mut census = Census::default();
        let most = u32::try_from(MOST_TAGGED).unwrap();
        for n in 0..=most {
            census.note(vnet(42), host(n), NEW, at(0));
        }
        let found = |census: &Census, secs| census.others(vnet(42), NEW, at(secs));
        assert_eq!(found(&census, 1), Others { is_full: true, ..others(0, 0) });
        let later = RECENT.as_secs();
        assert_eq!(found(&census, later), others(0, 0));
        census.note(vnet(42), host(most + 1), OLD, at(later));
        assert_eq!(found(&census, later), others(1, 0), "there is room again");
    }
}
