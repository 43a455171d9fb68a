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
            let Some(protection) = worker.tunnel_mut().protection_mut() else { continue };
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
            let Some(protection) = worker.tunnel_mut().protection_mut() else { continue };
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
    use crate::vif::link::tests::{at, give_keys, link, seals};

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
            worker
                .tunnel_mut()
                .protection_mut()
                .unwrap()
                .seal_one_to_group(&[0; 20], at(25))
                .unwrap_err()
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
