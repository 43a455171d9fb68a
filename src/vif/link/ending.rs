//! Expiry of keys while varpd is away, with its log lines. [`KeyEnds`] determines the times.

use super::Link;
use crate::metrics::VifCounter;
use crate::time::Instant;
#[cfg(doc)]
use crate::vif::key_ends::KeyEnds;
use crate::vif::key_ends::{Step, in_words};

impl Link {
    /// Carries out the due actions while varpd is away.
    pub(super) fn end_keys(&mut self, now: Instant) {
        let vnet = self.key.vnet;
        while let Some(step) = self.key_ends.handle_timeout(now) {
            match step {
                Step::EndOld => self.end_old(now),
                Step::Warn { away, left } => log::warn!(
                    "varpd has been away for {}: the keys of vnet {vnet} expire in {}, and then this \
                     vif carries no frames; start varpd",
                    in_words(away),
                    in_words(left)
                ),
                Step::EndAll { away } => {
                    self.end_all();
                    log::warn!(
                        "varpd has been away for {}: the keys of vnet {vnet} have expired, and this vif \
                         carries no frames until it is back (tx_drop_key_ended, rx_drop_key_ended)",
                        in_words(away)
                    );
                }
            }
        }
    }

    /// Ends sessions that have reached their hard end.
    fn end_old(&self, now: Instant) {
        let mut ended = 0;
        for (index, mut worker) in self.nic.workers().enumerate() {
            let Some(protection) = worker.protection_mut() else { continue };
            // The queue pairs share the receiving keys.
            if index == 0 {
                ended += protection.inbound().end_old(now);
            }
            ended += protection.outbound_mut().end_old(now);
        }
        self.count_ended(ended);
    }

    fn end_all(&self) {
        let mut ended = 0;
        for (index, mut worker) in self.nic.workers().enumerate() {
            let Some(protection) = worker.protection_mut() else { continue };
            if index == 0 {
                ended += protection.inbound().end_group();
            }
            ended += protection.end_sessions();
            protection.outbound_mut().end_group();
        }
        self.count_ended(ended);
    }

    fn count_ended(&self, ended: usize) {
        self.nic.counters().add(VifCounter::keys_ended, ended as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, UdpSocket};
    use std::sync::Arc;
    use std::time::Duration;

    use crate::metrics::VifCounters;
    use crate::security::keys::{SaKey, Secret};
    use crate::security::sadb::{Inbound, Lifetime, Outbound};
    use crate::security::{Level, Suite};
    use crate::underlay::groups::Groups;
    use crate::underlay::udp::UdpUnderlay;
    use crate::vif::nic::Nic;
    use crate::vif::protect::Protection;
    use crate::vif::rx::Receiver;
    use crate::vif::tx::SourceMac;
    use crate::vif::worker::{Place, Worker};
    use crate::wire::control::Event;
    use crate::wire::esp::Spi;
    use crate::wire::{Capabilities, Mac, VifKey, VnetId};

    const HOUR: Duration = Duration::from_secs(3600);
    const SUITE: Suite = Suite::AesGcm;

    fn at(hours: u32) -> Instant {
        Instant::ZERO + HOUR * hours
    }

    fn there() -> SocketAddr {
        ([192, 0, 2, 2], 4000).into()
    }

    /// A vif on a secured vnet, whose backend has no thread but this.
    fn link() -> Link {
        let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac([2, 0, 0, 0, 0, 1]) };
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = socket.local_addr().unwrap();
        let receiver = Receiver { key, own, capabilities: Capabilities::NONE };
        let place = Place { receiver, group: ([224, 0, 0, 9], 9).into(), max_datagram: 1400 };
        let counters = Arc::new(VifCounters::default());
        let underlay = UdpUnderlay::new(socket.into(), Groups::default(), None);
        let mut worker = Worker::new(place, SourceMac::Stamp, Arc::clone(&counters), underlay);
        worker.set_protection(Protection::of_vif(key.vnet, Level::Conf)());
        Link::new(key, 1, 0, Arc::new(Nic::new(vec![worker], counters, 1400).unwrap()))
    }

    fn give_keys(link: &mut Link, now: Instant) {
        let secret = |byte| Secret::new([byte; 32]);
        let (keys, end) = (vec![(SUITE, secret(1)), (SUITE, secret(2))], HOUR * 24);
        let group = Event::GroupKeys { salt: 1, end, keys };
        let lifetime = Lifetime { usual: HOUR * 2, hard: end };
        let keys = vec![(Spi::of(3, 0), SaKey { key: secret(3), salt: [0; 4] })];
        let out = Event::SaOut { to: there(), keys: Outbound { suite: SUITE, keys, lifetime } };
        let session = Inbound { number: 5, suite: SUITE, receiver: secret(5), lifetime };
        for event in [group, out, Event::SaIn { keys: vec![session] }] {
            assert_eq!(link.handle_event(event, Vec::new(), now), None);
        }
    }

    /// Whether a datagram to a vif, and one to the group, can be sealed.
    fn seals(link: &Link, now: Instant) -> [bool; 2] {
        let mut worker = link.nic.worker(0).unwrap();
        worker.set_clock(crate::time::Now { mono: now, wall_ms: 1_767_225_600_000 });
        let protection = worker.protection_mut().unwrap();
        let to_vif = protection.seal_one(there(), &[0; 20]).is_some();
        [to_vif, protection.seal_one_to_group(&[0; 20], now).is_ok()]
    }

    #[test]
    fn keys_end_in_the_data_path_while_varpd_is_away() {
        let mut link = link();
        give_keys(&mut link, at(0));
        let tick = |link: &mut Link, hours: u32| {
            link.handle_timeout(at(hours));
            (seals(link, at(hours)), link.nic.counters().get(VifCounter::keys_ended))
        };
        link.handle_disconnected(at(1));
        // That of the session, each way, is a day old an hour before varpd was away for a day.
        assert_eq!(tick(&mut link, 23), ([true, true], 0));
        assert_eq!(tick(&mut link, 24), ([false, true], 2));
        assert_eq!(tick(&mut link, 25), ([false, false], 4));
        let refused = |link: &Link| {
            let mut worker = link.nic.worker(0).unwrap();
            worker.protection_mut().unwrap().seal_one_to_group(&[0; 20], at(25)).unwrap_err()
        };
        assert_eq!(refused(&link), VifCounter::tx_drop_key_ended);
        // Keys of a varpd that is back serve again.
        link.handle_registered(at(30));
        give_keys(&mut link, at(30));
        assert_eq!(tick(&mut link, 31), ([true, true], 4));
    }

    #[test]
    fn the_operator_is_asked_to_look_before_keys_end() {
        let mut link = link();
        give_keys(&mut link, at(0));
        let due = |link: &Link| link.poll_timeout().map(|at| (at - Instant::ZERO).as_secs());
        assert_eq!(due(&link), Some(60), "sessions are looked at");
        link.handle_disconnected(at(0));
        let (mut wakes, mut now) = (0, at(0));
        while let Some(next) = link.poll_timeout().filter(|next| *next <= at(26)) {
            assert!(next > now, "it does not spin");
            (now, wakes) = (next, wakes + 1);
            link.handle_timeout(now);
        }
        assert_eq!(now, at(24), "the last of all");
        assert!(wakes <= 24 * 60 + 3, "{wakes}");
    }
}
