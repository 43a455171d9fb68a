//! The mapper's settings, and the limits of its tables.

use std::net::IpAddr;
use std::time::Duration;

use crate::wire::control::MAX_MACS;
use crate::wire::name::Realm;
use crate::wire::varp;

/// When a claim is announced, counted from the moment it is made: so early at first that three get
/// their chance before anybody feels that one was lost.
pub const ANNOUNCE_OFFSETS: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(4),
    Duration::from_millis(12),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(450),
    Duration::from_millis(800),
];

/// Timers and bounds; the defaults serve without any configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The realm of this host.
    pub realm: Realm,
    /// UDP port on which every host sends VARP, and answers it by unicast.
    pub port: u16,
    /// How long one try of a resolution waits.
    pub reply_timeout: Duration,
    /// After so many tries without an answer, nobody has the MAC. At least 1.
    pub tries: u32,
    /// Waits between the first requests of the first try: one lost packet must not cost a whole
    /// `reply_timeout`.
    pub early_retries: Vec<Duration>,
    /// So many requests of a resolution stay on the segment; later ones are marked wide.
    pub local_sends: u32,
    /// How long a claim may be believed without being confirmed.
    pub lifetime: Duration,
    /// Shorter lifetimes of peers are taken as this, since each end of one costs a request.
    pub min_lifetime: Duration,
    /// How long nobody is asked again after a resolution without an answer.
    pub negative_lifetime: Duration,
    /// How long a vif is told to wait when a limit refuses its resolution.
    pub limit_hold: Duration,
    /// While more of the lifetime than this remains, nobody is asked to confirm a mapping.
    pub refresh_below_percent: u32,
    /// When a claim is announced, counted from the moment it is made.
    pub announce_offsets: Vec<Duration>,
    /// How often a claim is announced again, plus up to a quarter at random; zero is never. Heals
    /// what a partition or lost announcements left behind, where two hosts own one vif. A vif that
    /// runs but has lost its key asks as often whether anybody still has it.
    pub announce_interval: Duration,
    /// A fresh claim is made again above a newer stamp that it is corrected with, if the owner of
    /// that confirmed it no later than this after the fresh claim was made: the old owner, whose
    /// clock is ahead. Covers the first announcements and a source that stops late.
    pub reclaim_grace: Duration,
    /// Moves of one vif within `damping_window` that make it damped.
    pub damping_moves: usize,
    /// See `damping_moves`.
    pub damping_window: Duration,
    /// How often the users of a damped mapping are told that it moved.
    pub damped_interval: Duration,
    /// Hosts that may send for others (flag L): relays between segments. varpd has none.
    pub relays: Vec<IpAddr>,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of every table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Local vifs.
    pub vifs: usize,
    /// MACs behind local vifs, in total.
    pub learnt: usize,
    /// Cached mappings in total.
    pub entries: usize,
    /// Cached mappings of one vnet.
    pub entries_per_vnet: usize,
    /// Resolutions under way in total.
    pub pending: usize,
    /// Resolutions under way of one vnet.
    pub pending_per_vnet: usize,
    /// Resolutions under way that one vif began.
    pub pending_per_vif: usize,
    /// Vifs remembered as users of one mapping; with more, all vifs of the vnet are told.
    pub interest: usize,
    /// New resolutions that one vif may begin per second.
    pub requests_per_second: u32,
    /// How many of them at once after a quiet time.
    pub request_burst: u32,
    /// Announcements per second of a vif and the MACs behind it.
    pub announces_per_second: u32,
    /// How many of them at once after a quiet time: one for each MAC that may be behind a vif.
    pub announce_burst: u32,
    /// Corrections sent per second, in total.
    pub corrections_per_second: u32,
    /// Vifs that were here and left, remembered for forwarding.
    pub notes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            vifs: 4096,
            learnt: 16_384,
            entries: 65_536,
            entries_per_vnet: 16_384,
            pending: 16_384,
            pending_per_vnet: 4096,
            pending_per_vif: 256,
            interest: 32,
            requests_per_second: 100,
            request_burst: 256,
            announces_per_second: 50,
            announce_burst: MAX_MACS as u32,
            corrections_per_second: 200,
            notes: 4096,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        let millis = |list: &[u64]| list.iter().map(|&ms| Duration::from_millis(ms)).collect();
        Self {
            realm: Realm::default(),
            port: varp::PORT,
            reply_timeout: Duration::from_secs(3),
            tries: 5,
            early_retries: millis(&[50, 100, 200, 400, 800]),
            local_sends: 2,
            lifetime: Duration::from_secs(30),
            min_lifetime: Duration::from_secs(1),
            negative_lifetime: Duration::from_secs(1),
            limit_hold: Duration::from_millis(100),
            refresh_below_percent: 50,
            announce_offsets: ANNOUNCE_OFFSETS.to_vec(),
            announce_interval: Duration::from_secs(300),
            reclaim_grace: Duration::from_secs(5),
            damping_moves: 5,
            damping_window: Duration::from_secs(180),
            damped_interval: Duration::from_secs(1),
            relays: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// How long to wait after request number `sent` (the first is 1) of a multicast resolution;
    /// `None`: after that many it has failed already. The early retries belong to the first try.
    pub(super) fn group_wait(&self, sent: u32) -> Option<Duration> {
        let early = u32::try_from(self.early_retries.len()).unwrap_or(u32::MAX);
        if sent > early.saturating_add(self.tries.max(1)) {
            return None;
        }
        if let Some(&wait) = sent.checked_sub(1).and_then(|i| self.early_retries.get(i as usize)) {
            return Some(wait);
        }
        if sent == early.saturating_add(1) {
            let spent: Duration = self.early_retries.iter().sum();
            let least = self.early_retries.last().copied().unwrap_or(self.reply_timeout);
            return Some(self.reply_timeout.saturating_sub(spent).max(least));
        }
        Some(self.reply_timeout)
    }

    /// The same where nobody needs to answer: as short as for a host that is asked alone, but everybody is asked
    /// once at least.
    pub(super) fn short_group_wait(&self, sent: u32) -> Option<Duration> {
        self.unicast_wait(sent).or_else(|| self.group_wait(sent).filter(|_| sent == 1))
    }

    /// How long to wait after unicast request number `sent` (the first is 1); `None`: the host
    /// does not answer.
    pub(super) fn unicast_wait(&self, sent: u32) -> Option<Duration> {
        sent.checked_sub(1).and_then(|i| self.early_retries.get(i as usize)).copied()
    }

    /// A peer's lifetime, as far as it is believed here.
    pub(super) fn believed(&self, lifetime_ms: u32) -> Duration {
        let asked = Duration::from_millis(u64::from(lifetime_ms));
        asked.max(self.min_lifetime).min(self.lifetime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_tries_of_three_seconds_with_early_requests_in_the_first() {
        let config = Config::default();
        let waits: Vec<u64> = (1..)
            .map_while(|sent| config.group_wait(sent))
            .map(|wait| wait.as_millis().try_into().unwrap())
            .collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1450, 3000, 3000, 3000, 3000]);
        assert_eq!(waits.iter().sum::<u64>(), 15_000);
    }

    #[test]
    fn without_early_retries_a_try_is_a_request() {
        let config = Config { early_retries: Vec::new(), tries: 2, ..Config::default() };
        let waits: Vec<_> = (1..).map_while(|sent| config.group_wait(sent)).collect();
        assert_eq!(waits, [config.reply_timeout; 2]);
        assert_eq!(config.unicast_wait(1), None);
        let waits: Vec<_> = (1..).map_while(|sent| config.short_group_wait(sent)).collect();
        assert_eq!(waits, [config.reply_timeout]);
    }

    #[test]
    fn a_peers_lifetime_is_bounded_on_both_sides() {
        let config = Config::default();
        assert_eq!(config.believed(1), config.min_lifetime);
        assert_eq!(config.believed(5000), Duration::from_secs(5));
        assert_eq!(config.believed(u32::MAX), config.lifetime);
    }
}
