//! What one side of the control socket can do beyond the version of the protocol.

/// A set of features, one bit each. Bits that this version does not know mean nothing to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// None.
    pub const NONE: Self = Self(0);
    /// Lanes between vifs of one host ([`super::Event::Lane`]).
    pub const LANES: Self = Self(1);

    /// Whether it has all of these.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}
