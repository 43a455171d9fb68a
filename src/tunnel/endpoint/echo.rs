//! Echoes: questions of other hosts are answered, and all else is counted.

use std::net::SocketAddr;
use std::sync::Arc;

use super::Endpoint;
use crate::metrics::VifCounter;
use crate::sys::mmsg::Message;
use crate::time::Instant;
use crate::tunnel::echo::{Limits, answer};
use crate::underlay::Underlay;
use crate::wire::encap;
use crate::wire::esp;

impl<U: Underlay> Endpoint<U> {
    /// The limits of answers that it shares with the endpoints of the vif's other queue pairs.
    pub fn set_echo_limits(&mut self, limits: Arc<Limits>) {
        self.echo_limits = limits;
    }

    /// Whether messages wait for [`Endpoint::answer_echoes`].
    pub const fn has_echoes(&self) -> bool {
        self.incoming.has_echoes()
    }

    /// Answers the questions that have come. `wall_us` is the wall clock, microseconds since 1970.
    pub fn answer_echoes(&mut self, wall_us: u64, now: Instant) {
        for (from, question) in self.incoming.take_echoes() {
            self.counters.inc(VifCounter::rx_echoes);
            let counter = match self.answer_echo(from, &question, wall_us, now) {
                Ok(()) => VifCounter::tx_echoes,
                Err(counter) => counter,
            };
            self.counters.inc(counter);
        }
    }

    fn answer_echo(
        &mut self,
        from: SocketAddr,
        question: &[u8],
        wall_us: u64,
        now: Instant,
    ) -> Result<(), VifCounter> {
        let longest = self.place.max_datagram + encap::outer_len(from.ip());
        let longest = u16::try_from(longest).unwrap_or(u16::MAX);
        let vnet = self.place.receiver.key.vnet;
        let mut datagram =
            answer(vnet, question, longest, wall_us).ok_or(VifCounter::rx_drop_echo)?;
        if !self.echo_limits.admits(from.ip(), now) {
            return Err(VifCounter::tx_drop_echo);
        }
        let protection = self.protection.as_mut();
        if let Some(protection) = protection.filter(|protection| protection.seals_to(from)) {
            // While the vnet's policy changes, a plain question may get a sealed answer: that is not longer either.
            let is_longer = esp::sealed_len(datagram.len()) > encap::LEN + question.len();
            if protection.policy().is_changing() && is_longer {
                return Err(VifCounter::tx_drop_echo);
            }
            let sealed = protection.seal_one(from, &datagram);
            datagram = sealed.ok_or(VifCounter::tx_drop_echo)?;
        }
        let like = Message { to: from, parts: &[], segment: 0 };
        let sent = self.send_all(std::iter::once(datagram.as_slice()), &like);
        sent.map_err(|_| VifCounter::tx_drop_echo)
    }
}
