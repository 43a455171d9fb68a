//! The segment key, which relays and the hosts that accept their messages share. It belongs to no
//! vnet, and opens no frame.
//!
//! ```text
//!  segment key (256 bits, with a number from 1 to 255)
//!    |-- hello key --------- HELLO and LIST                         (varpd and relays)
//!    |-- trailer key ------- the trailer of a relayed VARP message  (varpd and relays)
//!    |-- trace key --------- traces                                 (varpd and relays)
//!    '-- frames key, per vnet -- relayed group frames               (also all backends of the vnet)
//! ```
//!
//! Each arrow is [`Secret::derive`] under a label of its own. A backend gets the frames key of its
//! vnet and no other key: if its guest takes it over, it can pose as a relay neither to other vnets
//! nor to any varpd.

use super::keys::MacKey;
use crate::secret::Secret;
use crate::wire::VnetId;

/// A segment key.
#[derive(Clone, Debug)]
pub struct Segment(Secret);

impl Segment {
    /// From its secret bytes.
    pub const fn new(key: Secret) -> Self {
        Self(key)
    }

    /// Of [`crate::wire::hello`].
    pub fn hello(&self) -> MacKey {
        self.mac("segment hello", &[])
    }

    /// Of [`crate::wire::trailer`].
    pub fn trailer(&self) -> MacKey {
        self.mac("segment trailer", &[])
    }

    /// Of traces ([`crate::wire::echo`]).
    pub fn trace(&self) -> MacKey {
        self.mac("segment trace", &[])
    }

    /// Of a vnet's relayed group frames ([`crate::wire::relayed`]): this secret may be given to the
    /// vnet's backends.
    pub fn frames(&self, vnet: VnetId) -> Secret {
        self.0.derive("segment frames", &[&vnet.get().to_be_bytes()])
    }

    fn mac(&self, label: &str, context: &[&[u8]]) -> MacKey {
        MacKey::new(&self.0.derive(label, context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: [u8; 16] = [
        0x67, 0xbd, 0x26, 0x40, 0x50, 0xc4, 0x14, 0x52, 0x7c, 0xd0, 0x5d, 0xe0, 0x7b, 0xcf, 0x35,
        0x7f,
    ];
    const TRAILER: [u8; 16] = [
        0x71, 0x72, 0x4c, 0xb7, 0x5c, 0xa3, 0x40, 0xd4, 0x39, 0x1d, 0x96, 0xb6, 0x6b, 0xee, 0x8c,
        0x84,
    ];
    const TRACE: [u8; 16] = [
        0xe9, 0x05, 0x18, 0x4b, 0x83, 0x2e, 0xd2, 0x28, 0x6e, 0x39, 0xae, 0x4d, 0xbe, 0x48, 0x9f,
        0x9d,
    ];
    const FRAMES: [u8; 16] = [
        0x55, 0xe3, 0xa2, 0x23, 0x22, 0x47, 0x01, 0x4e, 0xd2, 0x71, 0xb4, 0xcb, 0xb6, 0xcc, 0x0a,
        0x00,
    ];

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    /// Made with another implementation: HKDF-Expand and HMAC of Python's hmac and hashlib.
    #[test]
    fn committed_vectors() {
        let segment = Segment::new(Secret::new([0x77; 32]));
        assert_eq!(segment.hello().sign(&[b"x"]), HELLO);
        assert_eq!(segment.trailer().sign(&[b"x"]), TRAILER);
        assert_eq!(segment.trace().sign(&[b"x"]), TRACE);
        assert_eq!(MacKey::new(&segment.frames(vnet(42))).sign(&[b"x"]), FRAMES);
    }

    #[test]
    fn whatever_differs_gives_other_keys() {
        let one = Segment::new(Secret::new([1; 32]));
        let other = Segment::new(Secret::new([2; 32]));
        assert_ne!(one.frames(vnet(42)), one.frames(vnet(43)));
        assert_ne!(one.frames(vnet(42)), other.frames(vnet(42)));
        assert_ne!(one.hello().sign(&[b"x"]), other.hello().sign(&[b"x"]));
        assert!(!format!("{one:?}").contains('1'), "nothing shows a secret");
    }
}
