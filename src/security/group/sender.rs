//! The sender's side: the times of its starts, and their keys.

use std::net::SocketAddr;

use super::starts::Starts;
use super::{RESTART, Salt, SenderId, StartId, seconds};
use crate::policy::{Level, Suite};
use crate::secret::Secret;
use crate::security::esp::{Exhausted, Numbering, Sealer};
use crate::wire::VnetId;
use crate::wire::esp::Spi;

/// Packets of one start at most.
const MAX_PACKETS: u64 = 1 << 30;

/// A sender of group frames.
#[derive(Debug)]
pub struct GroupSender {
    group: Secret,
    suite: Suite,
    id: SenderId,
    used: Starts,
    current: Option<Current>,
}

/// The start that serves.
#[derive(Debug)]
struct Current {
    second: u32,
    sealer: Sealer,
}

impl Current {
    fn is_over(&self, now: u32) -> bool {
        let age = u64::from(now.abs_diff(self.second));
        age >= RESTART.as_secs() || self.sealer.count() >= MAX_PACKETS
    }
}

impl GroupSender {
    /// A sender at a care-of address. `salt` is one that no other sender there had before.
    pub fn new(group: Secret, suite: Suite, vnet: VnetId, own: SocketAddr, salt: Salt) -> Self {
        let spi = Spi::of_group(vnet, salt.spi);
        let id = SenderId { at: own, spi, random: salt.random };
        Self { group, suite, id, used: Starts::default(), current: None }
    }

    /// The policy that its packets are sent under.
    pub fn level(&self) -> Level {
        self.suite.level()
    }

    /// Seals a packet as [`Sealer::seal`] does, at a time in milliseconds since 1970.
    ///
    /// # Errors
    /// [`Exhausted`]: the clock says a time that can't be sent (before 1970, after 2106).
    pub fn seal(
        &mut self,
        packet: &mut [u8],
        payload_len: usize,
        wall_ms: u64,
    ) -> Result<(), Exhausted> {
        self.sealer(wall_ms)?.seal(packet, payload_len)
    }

    /// What seals packets at a time in milliseconds since 1970.
    ///
    /// # Errors
    /// As [`GroupSender::seal`].
    pub fn sealer(&mut self, wall_ms: u64) -> Result<&mut Sealer, Exhausted> {
        let now = seconds(wall_ms).filter(|now| *now > 0).ok_or(Exhausted)?;
        if self.current.as_ref().is_none_or(|current| current.is_over(now)) {
            self.current = Some(self.start(now)?);
        }
        self.current.as_mut().map(|current| &mut current.sealer).ok_or(Exhausted)
    }

    /// A start with a key that nothing was sealed with before.
    fn start(&mut self, now: u32) -> Result<Current, Exhausted> {
        let second = self.used.take(now).ok_or(Exhausted)?;
        let id = StartId { second, sender: self.id };
        let sealer = Sealer::new(
            self.id.spi,
            self.suite,
            &id.key(&self.group),
            Numbering::Group(id.start()),
        );
        Ok(Current { second, sealer })
    }
}
