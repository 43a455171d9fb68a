//! The offloads on which driver and device have agreed (virtio 1.2, 5.1.3).

/// The offloads in a set of negotiated virtio-net features.
///
/// A feature whose prerequisite is missing (5.1.3.1: segmentation needs checksums, ECN needs TSO)
/// counts as not negotiated. From the device's side: `HOST_*` and `CSUM` are what the guest may
/// leave to us, `GUEST_*` what it accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(u64);

impl Offloads {
    /// No offload at all.
    pub const NONE: Self = Self(0);
    /// The guest may send partial checksums (VIRTIO_NET_F_CSUM).
    pub const CSUM: Self = Self(1 << 0);
    /// The guest accepts partial and verified checksums (VIRTIO_NET_F_GUEST_CSUM).
    pub const GUEST_CSUM: Self = Self(1 << 1);
    /// The guest accepts large TCP frames over IPv4.
    pub const GUEST_TSO4: Self = Self(1 << 7);
    /// The guest accepts large TCP frames over IPv6.
    pub const GUEST_TSO6: Self = Self(1 << 8);
    /// The guest accepts large TCP frames with CWR set.
    pub const GUEST_ECN: Self = Self(1 << 9);
    /// The guest may send large TCP frames over IPv4.
    pub const HOST_TSO4: Self = Self(1 << 11);
    /// The guest may send large TCP frames over IPv6.
    pub const HOST_TSO6: Self = Self(1 << 12);
    /// The guest may send large TCP frames with CWR set.
    pub const HOST_ECN: Self = Self(1 << 13);
    /// The guest accepts runs of UDP datagrams over IPv4.
    pub const GUEST_USO4: Self = Self(1 << 54);
    /// The guest accepts runs of UDP datagrams over IPv6.
    pub const GUEST_USO6: Self = Self(1 << 55);
    /// The guest may send runs of UDP datagrams.
    pub const HOST_USO: Self = Self(1 << 56);

    /// All of them: what a device that uses this module can offer.
    pub const ALL: Self = Self(
        Self::CSUM.0
            | Self::GUEST_CSUM.0
            | Self::GUEST_TSO4.0
            | Self::GUEST_TSO6.0
            | Self::GUEST_ECN.0
            | Self::HOST_TSO4.0
            | Self::HOST_TSO6.0
            | Self::HOST_ECN.0
            | Self::GUEST_USO4.0
            | Self::GUEST_USO6.0
            | Self::HOST_USO.0,
    );

    /// Those that leave work to the guest's driver when it receives.
    pub const RECEIVE: Self = Self(
        Self::GUEST_CSUM.0
            | Self::GUEST_TSO4.0
            | Self::GUEST_TSO6.0
            | Self::GUEST_ECN.0
            | Self::GUEST_USO4.0
            | Self::GUEST_USO6.0,
    );

    /// Feature, and those of which it needs at least one.
    const NEEDS: [(Self, Self); 8] = [
        (Self::GUEST_TSO4, Self::GUEST_CSUM),
        (Self::GUEST_TSO6, Self::GUEST_CSUM),
        (Self::GUEST_USO4, Self::GUEST_CSUM),
        (Self::GUEST_USO6, Self::GUEST_CSUM),
        (Self::HOST_TSO4, Self::CSUM),
        (Self::HOST_TSO6, Self::CSUM),
        (Self::HOST_USO, Self::CSUM),
        (Self::GUEST_ECN, Self(Self::GUEST_TSO4.0 | Self::GUEST_TSO6.0)),
    ];
    /// The last rule, which depends on the others.
    const HOST_ECN_NEEDS: Self = Self(Self::HOST_TSO4.0 | Self::HOST_TSO6.0);

    /// The offloads among all negotiated feature bits.
    pub fn from_features(features: u64) -> Self {
        let mut set = features & Self::ALL.0;
        for (feature, any_of) in Self::NEEDS {
            if set & any_of.0 == 0 {
                set &= !feature.0;
            }
        }
        if set & Self::HOST_ECN_NEEDS.0 == 0 {
            set &= !Self::HOST_ECN.0;
        }
        Self(set)
    }

    /// The feature bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// This set without `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether all offloads in `other` are in this set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(of: &[Offloads]) -> u64 {
        of.iter().fold(0, |bits, offload| bits | offload.0)
    }

    #[test]
    fn numbers_are_those_of_the_specification() {
        use virtio_bindings::virtio_net as v;
        let bits = [
            (Offloads::CSUM, v::VIRTIO_NET_F_CSUM),
            (Offloads::GUEST_CSUM, v::VIRTIO_NET_F_GUEST_CSUM),
            (Offloads::GUEST_TSO4, v::VIRTIO_NET_F_GUEST_TSO4),
            (Offloads::GUEST_TSO6, v::VIRTIO_NET_F_GUEST_TSO6),
            (Offloads::GUEST_ECN, v::VIRTIO_NET_F_GUEST_ECN),
            (Offloads::HOST_TSO4, v::VIRTIO_NET_F_HOST_TSO4),
            (Offloads::HOST_TSO6, v::VIRTIO_NET_F_HOST_TSO6),
            (Offloads::HOST_ECN, v::VIRTIO_NET_F_HOST_ECN),
            (Offloads::GUEST_USO4, v::VIRTIO_NET_F_GUEST_USO4),
            (Offloads::GUEST_USO6, v::VIRTIO_NET_F_GUEST_USO6),
            (Offloads::HOST_USO, v::VIRTIO_NET_F_HOST_USO),
        ];
        for (offload, bit) in bits {
            assert_eq!(offload.0, 1 << bit);
        }
    }

    #[test]
    fn without_those_of_receiving_the_rest_is_whole() {
        let rest = Offloads::ALL.without(Offloads::RECEIVE);
        assert_eq!(Offloads::from_features(rest.bits()), rest);
        assert_eq!(Offloads::from_features(!Offloads::GUEST_CSUM.bits()), rest);
    }

    #[test]
    fn what_misses_its_prerequisite_is_not_negotiated() {
        assert_eq!(Offloads::from_features(u64::MAX), Offloads::ALL);
        let without_csum = Offloads::from_features(!Offloads::CSUM.0);
        assert!(!without_csum.has(Offloads::HOST_TSO4));
        assert!(!without_csum.has(Offloads::HOST_USO));
        assert!(!without_csum.has(Offloads::HOST_ECN), "the whole chain falls");
        assert!(without_csum.has(Offloads::GUEST_ECN));
        let without_guest_csum = Offloads::from_features(!Offloads::GUEST_CSUM.0);
        let host = Offloads::CSUM.0
            | Offloads::HOST_TSO4.0
            | Offloads::HOST_TSO6.0
            | Offloads::HOST_ECN.0
            | Offloads::HOST_USO.0;
        assert_eq!(without_guest_csum.0, host);
        let only = Offloads::from_features(set(&[Offloads::GUEST_ECN, Offloads::GUEST_CSUM]));
        assert_eq!(only, Offloads::GUEST_CSUM);
        let six = [Offloads::CSUM, Offloads::HOST_TSO6, Offloads::HOST_ECN];
        assert_eq!(Offloads::from_features(set(&six)).0, set(&six));
    }
}
