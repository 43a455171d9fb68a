//! A queue pair's security associations for sending, by care-of address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;

use super::esp::{Exhausted, HARD_LIMIT, Numbering, SOFT_LIMIT, Sealer};
use super::group::{GroupSender, Salt};
use crate::policy::{Level, Policy, Suite};
use crate::secret::{SaKey, Secret};
use crate::time::Instant;
use crate::wire::VnetId;
use crate::wire::control::Lifetime;
use crate::wire::esp::Spi;

/// Associations at most: as many as there are destinations of a queue pair.
pub const MAX: usize = 16_384;

/// Why a datagram can't be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// There is no key for where it goes.
    NoKey,
    /// The association has sent all its packets, and varpd has given no other.
    Exhausted,
    /// The keys have come to their end while varpd was away.
    Ended,
}

impl From<Exhausted> for SealError {
    fn from(_: Exhausted) -> Self {
        Self::Exhausted
    }
}

#[derive(Debug)]
struct Association {
    sealer: Sealer,
    level: Level,
    /// When it makes room for others.
    usual_end: Instant,
    /// When it ends by itself.
    hard_end: Instant,
    /// Whether varpd was asked for another one.
    asked: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Outbound {
    vifs: HashMap<SocketAddr, Association>,
    group: Option<GroupSender>,
    worn: Vec<SocketAddr>,
    /// Whether the group's key has come to its end, and maybe others.
    has_ended: bool,
}

impl Outbound {
    /// Whether there is a key for a care-of address.
    pub fn has(&self, to: SocketAddr) -> bool {
        self.vifs.contains_key(&to)
    }

    /// Whether there is a key for group frames.
    pub fn has_group(&self) -> bool {
        self.group.is_some()
    }

    /// Keys of policies that are not accepted any more go.
    pub fn retain(&mut self, policy: Policy) {
        self.vifs.retain(|_, association| policy.accepts(association.level));
        self.group.take_if(|group| !policy.accepts(group.level()));
    }

    /// Seals packets to a care-of address with these keys from now on.
    pub fn insert(
        &mut self,
        to: SocketAddr,
        spi: Spi,
        suite: Suite,
        key: &SaKey,
        lifetime: impl Into<Lifetime>,
        now: Instant,
    ) {
        if self.vifs.len() >= MAX && !self.vifs.contains_key(&to) {
            self.vifs.retain(|_, association| association.usual_end > now);
            if self.vifs.len() >= MAX {
                return;
            }
        }
        let sealer = Sealer::new(spi, suite, key, Numbering::Extended);
        let Lifetime { usual, hard } = lifetime.into();
        let (usual_end, hard_end) = (now + usual, now + hard);
        let level = suite.level();
        self.vifs.insert(to, Association { sealer, level, usual_end, hard_end, asked: false });
    }

    /// Ends keys that have reached their hard end; returns their number.
    pub fn end_old(&mut self, now: Instant) -> usize {
        let before = self.vifs.len();
        self.vifs.retain(|_, association| association.hard_end > now);
        before - self.vifs.len()
    }

    /// Ends all but the group's key; returns how many those were.
    pub fn end_all(&mut self) -> usize {
        let count = self.vifs.len();
        self.vifs.clear();
        count
    }

    /// The group's key has come to its end.
    pub fn end_group(&mut self) {
        (self.group, self.has_ended) = (None, true);
    }

    /// Nothing may be sent to a care-of address any more.
    pub fn remove(&mut self, to: SocketAddr) {
        self.vifs.remove(&to);
    }

    /// Nothing may be sent to any care-of address, until there are other keys for it.
    pub fn remove_all(&mut self) {
        self.vifs.clear();
    }

    /// There is no key of group frames any more.
    pub fn remove_group(&mut self) {
        self.group = None;
    }

    /// The key of group frames; `salt` is one that no other sender at `own` had.
    pub fn set_group(
        &mut self,
        key: Secret,
        suite: Suite,
        vnet: VnetId,
        own: SocketAddr,
        salt: Salt,
    ) {
        self.group = Some(GroupSender::new(key, suite, vnet, own, salt));
        self.has_ended = false;
    }

    /// Why there is no key.
    fn missing(&self) -> SealError {
        if self.has_ended { SealError::Ended } else { SealError::NoKey }
    }

    /// Seals a packet to a vif, as [`Sealer::seal`] does.
    ///
    /// # Errors
    /// Why it must not be sent.
    pub fn seal(
        &mut self,
        to: SocketAddr,
        packet: &mut [u8],
        payload_len: usize,
    ) -> Result<(), SealError> {
        self.seal_with(to, |sealer| sealer.seal(packet, payload_len))
    }

    /// Seals the packets of a message to a vif, as [`Sealer::seal_closed`] does.
    ///
    /// # Errors
    /// Why they must not be sent; some may have been sealed.
    pub fn seal_all<'p>(
        &mut self,
        to: SocketAddr,
        mut packets: impl Iterator<Item = &'p mut [u8]>,
    ) -> Result<(), SealError> {
        self.seal_with(to, |sealer| packets.try_for_each(|packet| sealer.seal_closed(packet)))
    }

    /// Opens in place a packet that was sealed but did not leave; returns where in it the payload
    /// is, if there still is the key.
    pub fn reopen(&mut self, to: SocketAddr, packet: &mut [u8]) -> Option<Range<usize>> {
        self.vifs.get_mut(&to)?.sealer.reopen(packet)
    }

    fn seal_with(
        &mut self,
        to: SocketAddr,
        seal: impl FnOnce(&mut Sealer) -> Result<(), Exhausted>,
    ) -> Result<(), SealError> {
        let missing = self.missing();
        let association = self.vifs.get_mut(&to).ok_or(missing)?;
        seal(&mut association.sealer)?;
        if association.sealer.count() >= SOFT_LIMIT && !association.asked {
            association.asked = true;
            self.worn.push(to);
        }
        Ok(())
    }

    /// Seals the packets of a message to the group, as [`Sealer::seal_closed`] does.
    ///
    /// # Errors
    /// Why they must not be sent; some may have been sealed.
    pub fn seal_group<'p>(
        &mut self,
        mut packets: impl Iterator<Item = &'p mut [u8]>,
        wall_ms: u64,
    ) -> Result<(), SealError> {
        let missing = self.missing();
        let sealer = self.group.as_mut().ok_or(missing)?.sealer(wall_ms)?;
        Ok(packets.try_for_each(|packet| sealer.seal_closed(packet))?)
    }

    /// Whether there are associations that have sent much, and should be replaced.
    pub fn has_worn(&self) -> bool {
        !self.worn.is_empty()
    }

    /// Takes them; each is named once.
    pub fn take_worn(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.worn)
    }
}

const _: () = assert!(SOFT_LIMIT < HARD_LIMIT);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::esp::sealed_len;
    use std::time::Duration;

    fn key(byte: u8) -> SaKey {
        SaKey { key: Secret::new([byte; 32]), salt: [byte; 4] }
    }

    fn to(port: u16) -> SocketAddr {
        ([192, 0, 2, 2], port).into()
    }

    #[test]
    fn without_a_key_nothing_is_sealed() {
        let mut outbound = Outbound::default();
        let mut packet = vec![0; sealed_len(20)];
        assert_eq!(outbound.seal(to(1), &mut packet, 20), Err(SealError::NoKey));
        let packets = std::iter::once(&mut packet[..]);
        assert_eq!(outbound.seal_group(packets, 1), Err(SealError::NoKey));
        let (spi, lifetime) = (Spi::of(1, 1), Duration::from_secs(9));
        outbound.insert(to(1), spi, Suite::AesGcm, &key(1), lifetime, Instant::ZERO);
        assert_eq!(outbound.seal(to(1), &mut packet, 20), Ok(()));
        assert_eq!(packet[..4], spi.0.to_be_bytes());
        assert_eq!(outbound.seal(to(2), &mut packet, 20), Err(SealError::NoKey));
        outbound.remove(to(1));
        assert_eq!(outbound.seal(to(1), &mut packet, 20), Err(SealError::NoKey));
        outbound.insert(to(1), spi, Suite::AesGcm, &key(1), lifetime, Instant::ZERO);
        outbound.remove_all();
        assert_eq!(outbound.seal(to(1), &mut packet, 20), Err(SealError::NoKey));
    }

    #[test]
    fn nothing_is_sealed_beyond_the_hard_end() {
        let mut outbound = Outbound::default();
        let mut packet = vec![0; sealed_len(20)];
        let own = to(9);
        let (vnet, salt) = (VnetId::new(42).unwrap(), Salt { spi: 1, random: 7 });
        outbound.set_group(Secret::new([1; 32]), Suite::AesGcm, vnet, own, salt);
        let hours = |n: u64| Duration::from_secs(n * 3600);
        for (port, hard) in [(1, hours(24)), (2, hours(25))] {
            let lifetime = Lifetime { usual: hours(2), hard };
            let spi = Spi::of(1, 1);
            outbound.insert(to(port), spi, Suite::AesGcm, &key(1), lifetime, Instant::ZERO);
        }
        let at = |duration: Duration| Instant::ZERO + duration;
        let just_before = at(hours(24) - Duration::from_micros(1));
        assert_eq!(outbound.end_old(just_before), 0);
        assert_eq!(outbound.seal(to(1), &mut packet, 20), Ok(()), "past the usual end");
        assert_eq!(outbound.end_old(at(hours(24))), 1);
        assert_eq!(outbound.seal(to(1), &mut packet, 20), Err(SealError::NoKey));
        assert_eq!(outbound.seal(to(2), &mut packet, 20), Ok(()));
        let mut to_group = |outbound: &mut Outbound| {
            outbound.seal_group(std::iter::once(&mut packet[..]), 1_767_225_600_000)
        };
        assert_eq!(to_group(&mut outbound), Ok(()));
        outbound.end_group();
        assert_eq!(to_group(&mut outbound), Err(SealError::Ended));
        assert_eq!(outbound.seal(to(1), &mut [0; 64], 20), Err(SealError::Ended));
        let salt = Salt { spi: 2, random: 8 };
        outbound.set_group(Secret::new([2; 32]), Suite::AesGcm, vnet, own, salt);
        assert_eq!(outbound.seal(to(1), &mut [0; 64], 20), Err(SealError::NoKey), "varpd is back");
    }

    #[test]
    fn the_table_is_bounded_and_what_ended_makes_room() {
        let mut outbound = Outbound::default();
        let mut insert = |port, secs, at| {
            let lifetime = Duration::from_secs(secs);
            outbound.insert(to(port), Spi(1), Suite::AesGcm, &key(1), lifetime, at);
            outbound.vifs.len()
        };
        for port in 0..u16::try_from(MAX).unwrap() {
            insert(port, 10, Instant::ZERO);
        }
        assert_eq!(insert(60_000, 10, Instant::ZERO), MAX);
        assert_eq!(insert(60_000, 10, Instant::from_millis(10_000)), 1);
    }
}
