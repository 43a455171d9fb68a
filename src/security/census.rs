//! Records the key, or none, of the last message of each other host on this host's vnets.
//!
//! The last step of a change (of a vnet's key, or of its policy) cuts off hosts that have not taken the previous
//! step. So each accepted message updates a record of its protection, and operators
//! see how many hosts still use another key or policy than this one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use super::keys::KeyId;
use crate::time::Instant;
use crate::wire::VnetId;

/// How long a silent host still counts: a host with a vif sends a message every five minutes.
pub const RECENT: Duration = Duration::from_secs(660);
/// Limit on recorded hosts, of all vnets.
const MAX_HOSTS: usize = 16_384;

/// The last message of a host.
#[derive(Clone, Copy, Debug)]
struct Last {
    key: Option<KeyId>,
    at: Instant,
}

/// The recorded hosts.
#[derive(Debug, Default)]
pub struct Census {
    hosts: BTreeMap<(VnetId, IpAddr), Last>,
}

impl Census {
    /// Records a message of a host on a vnet, tagged with this key or without a tag. Ignores further hosts when the
    /// table is full.
    pub fn note(&mut self, vnet: VnetId, host: IpAddr, key: Option<KeyId>, now: Instant) {
        let host = (vnet, host.to_canonical());
        if self.hosts.len() >= MAX_HOSTS && !self.hosts.contains_key(&host) {
            self.hosts.retain(|_, last| last.at + RECENT > now);
            if self.hosts.len() >= MAX_HOSTS {
                return;
            }
        }
        self.hosts.insert(host, Last { key, at: now });
    }

    /// The recently heard hosts of a vnet whose last message used another key than this.
    pub fn others(
        &self,
        vnet: VnetId,
        used: Option<KeyId>,
        now: Instant,
    ) -> impl Iterator<Item = IpAddr> + '_ {
        let is_other = move |(of, last): (&VnetId, &Last)| {
            *of == vnet && last.key != used && last.at + RECENT > now
        };
        let of_vnet = self.hosts.iter().map(|((of, host), last)| (of, host, last));
        of_vnet.filter(move |(of, _, last)| is_other((of, last))).map(|(_, host, _)| *host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    fn host(n: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + n).into())
    }

    #[test]
    fn what_a_host_was_last_heard_with_counts_until_it_is_not_heard_for_long() {
        let (old, new) = (Some(KeyId(1)), Some(KeyId(2)));
        let mut census = Census::default();
        let at = |secs: u64| Instant::from_millis(secs * 1000);
        census.note(vnet(42), host(1), old, at(0));
        census.note(vnet(42), host(2), None, at(0));
        census.note(vnet(43), host(3), old, at(0));
        let others =
            |census: &Census, secs| census.others(vnet(42), new, at(secs)).collect::<Vec<_>>();
        assert_eq!(others(&census, 1), [host(1), host(2)]);
        census.note(vnet(42), host(1), new, at(1));
        assert_eq!(others(&census, 1), [host(2)]);
        assert!(others(&census, RECENT.as_secs()).is_empty(), "gone");
    }

    #[test]
    fn the_table_is_bounded() {
        let mut census = Census::default();
        for n in 0..20_000 {
            census.note(vnet(42), host(n), None, Instant::ZERO);
        }
        assert_eq!(census.hosts.len(), MAX_HOSTS);
        census.note(vnet(42), host(30_000), None, Instant::ZERO + RECENT);
        assert_eq!(census.hosts.len(), 1, "those not heard for long make room");
    }
}
