//! From the guest: checks the source of a frame, and decides where it goes.

#![forbid(unsafe_code)]

use crate::metrics::VifCounter;
use crate::port::learned::LearnedMacs;
use crate::time::Instant;
use crate::tunnel::neighbors::{Lookup, Neighbors};
use crate::tunnel::outgoing::AddressBytes;
use crate::wire::frame::{self, Addresses};
use crate::wire::{CareOf, Mac, VifKey};

/// How to treat a frame whose source MAC is neither the vif's nor one learned behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceMac {
    /// The source is replaced with the NIC's address (counter tx_stamped).
    #[default]
    Stamp,
    /// The frame is dropped (counter tx_drop_source).
    Drop,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To one vif.
    Unicast(CareOf),
    /// To all vifs of the vnet.
    Group,
    /// Nowhere yet.
    Wait(Mac),
    /// Nowhere.
    Drop(VifCounter),
}

/// A frame with its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What leaves instead of the frame's own: destination, and a MAC of the vif.
    pub addresses: AddressBytes,
    /// Where to.
    pub verdict: Verdict,
    /// Whether the guest had written another source.
    pub is_stamped: bool,
}

/// Judges a frame by its copied Ethernet header.
#[inline]
pub fn judge(
    vif: VifKey,
    source_mac: SourceMac,
    lead: &[u8; frame::HEADER_LEN],
    learnt: &mut LearnedMacs,
    neighbors: &mut Neighbors,
    now: Instant,
) -> Judged {
    let Ok(addresses) = Addresses::parse(lead) else {
        let verdict = Verdict::Drop(VifCounter::tx_drop_malformed);
        let addresses = stamped(vif.mac, Mac::BROADCAST);
        return Judged { addresses, verdict, is_stamped: false };
    };
    let is_own = addresses.source == vif.mac;
    let is_foreign = !is_own && !learnt.sees(addresses.source, now);
    let verdict = if is_foreign && source_mac == SourceMac::Drop {
        Verdict::Drop(VifCounter::tx_drop_source)
    } else {
        route(vif, addresses, learnt, neighbors, now)
    };
    let source = if is_foreign { vif.mac } else { addresses.source };
    let addresses = stamped(source, addresses.destination);
    Judged { addresses, verdict, is_stamped: is_foreign }
}

#[inline]
fn route(
    vif: VifKey,
    addresses: Addresses,
    learnt: &LearnedMacs,
    neighbors: &mut Neighbors,
    now: Instant,
) -> Verdict {
    let destination = addresses.destination;
    if addresses.is_mac_control {
        Verdict::Drop(VifCounter::tx_drop_mac_control)
    } else if destination.is_group() {
        Verdict::Group
    } else if destination == vif.mac || !destination.is_individual() || learnt.has(destination) {
        Verdict::Drop(VifCounter::tx_drop_self)
    } else {
        match neighbors.lookup(destination, now) {
            Lookup::To(coa) => Verdict::Unicast(coa),
            Lookup::Wait => Verdict::Wait(destination),
            Lookup::Unresolved => Verdict::Drop(VifCounter::tx_drop_unresolved),
            Lookup::Unusable => Verdict::Drop(VifCounter::tx_drop_unusable),
            Lookup::Full => Verdict::Drop(VifCounter::tx_drop_park_full),
        }
    }
}

/// The source is always one of the vif: that is what stamping means.
#[inline]
fn stamped(source: Mac, destination: Mac) -> AddressBytes {
    let mut addresses = [0; frame::ADDRESSES_LEN];
    let (to, from) = addresses.split_at_mut(6);
    to.copy_from_slice(&destination.0);
    from.copy_from_slice(&source.0);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Capabilities, EncapKinds, Longest, VnetId};
    use std::time::Duration;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn vif() -> VifKey {
        VifKey { vnet: VnetId::new(42).unwrap(), mac: OWN }
    }

    fn lead(to: Mac, from: Mac, ether_type: u16) -> [u8; 14] {
        let mut bytes = [0; 14];
        bytes[..6].copy_from_slice(&to.0);
        bytes[6..12].copy_from_slice(&from.0);
        bytes[12..].copy_from_slice(&ether_type.to_be_bytes());
        bytes
    }

    fn judge_one(to: Mac, from: Mac, ether_type: u16, source_mac: SourceMac) -> Judged {
        let lead = lead(to, from, ether_type);
        let learnt = &mut LearnedMacs::default();
        judge(vif(), source_mac, &lead, learnt, &mut Neighbors::default(), Instant::ZERO)
    }

    #[test]
    fn a_foreign_source_is_stamped_or_dropped() {
        let judged = judge_one(Mac::BROADCAST, PEER, 0x800, SourceMac::Stamp);
        assert_eq!(judged.verdict, Verdict::Group);
        assert!(judged.is_stamped);
        assert_eq!(judged.addresses[6..], OWN.0);
        let judged = judge_one(Mac::BROADCAST, PEER, 0x800, SourceMac::Drop);
        assert_eq!(judged.verdict, Verdict::Drop(VifCounter::tx_drop_source));
        let judged = judge_one(Mac::BROADCAST, OWN, 0x800, SourceMac::Drop);
        assert_eq!(judged.verdict, Verdict::Group);
        assert!(!judged.is_stamped);
    }

    #[test]
    fn an_unknown_peer_is_waited_for_and_a_known_one_reached() {
        let mut neighbors = Neighbors::default();
        let coa = CareOf {
            addr: ([192, 0, 2, 9], 4000).into(),
            kinds: EncapKinds::UDP,
            capabilities: Capabilities::NONE,
            longest: Longest::UNKNOWN,
        };
        let lead = lead(PEER, OWN, 0x800);
        let learnt = &mut LearnedMacs::default();
        let mut judge = |n: &mut Neighbors| {
            judge(vif(), SourceMac::Stamp, &lead, learnt, n, Instant::ZERO).verdict
        };
        assert_eq!(judge(&mut neighbors), Verdict::Wait(PEER));
        neighbors.handle_mapping(PEER, coa, coa.addr.ip(), Duration::from_secs(1), Instant::ZERO);
        assert_eq!(judge(&mut neighbors), Verdict::Unicast(coa));
    }

    #[test]
    fn a_learnt_source_is_kept_and_a_frame_to_it_does_not_leave() {
        const BEHIND: Mac = Mac([2, 0, 0, 0, 0, 3]);
        let mut learnt = LearnedMacs::new(1);
        let mut judge = |to, from, source_mac| {
            let lead = lead(to, from, 0x800);
            let neighbors = &mut Neighbors::default();
            judge(vif(), source_mac, &lead, &mut learnt, neighbors, Instant::ZERO)
        };
        for source_mac in [SourceMac::Stamp, SourceMac::Drop] {
            let judged = judge(Mac::BROADCAST, BEHIND, source_mac);
            assert_eq!((judged.verdict, judged.is_stamped), (Verdict::Group, false));
            assert_eq!(judged.addresses[6..], BEHIND.0);
        }
        let verdict = judge(BEHIND, OWN, SourceMac::Stamp).verdict;
        assert_eq!(verdict, Verdict::Drop(VifCounter::tx_drop_self));
        // Beyond the bound.
        let judged = judge(Mac::BROADCAST, PEER, SourceMac::Stamp);
        assert_eq!((judged.is_stamped, &judged.addresses[6..]), (true, &OWN.0[..]));
        let verdict = judge(Mac::BROADCAST, PEER, SourceMac::Drop).verdict;
        assert_eq!(verdict, Verdict::Drop(VifCounter::tx_drop_source));
    }

    #[test]
    fn what_a_wire_keeps_to_itself() {
        let pause = "01:80:c2:00:00:01".parse().unwrap();
        let verdict = judge_one(pause, OWN, 0x8808, SourceMac::Stamp).verdict;
        assert_eq!(verdict, Verdict::Drop(VifCounter::tx_drop_mac_control));
        let verdict = judge_one(OWN, OWN, 0x800, SourceMac::Stamp).verdict;
        assert_eq!(verdict, Verdict::Drop(VifCounter::tx_drop_self));
        let verdict = judge_one(Mac([0; 6]), OWN, 0x800, SourceMac::Stamp).verdict;
        assert_eq!(verdict, Verdict::Drop(VifCounter::tx_drop_self));
    }
}
