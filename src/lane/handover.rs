//! The last datagram by UDP before frames use a lane.
//!
//! It is a bundle (flag B) without frames: the number of the lane is in its padding, so receivers
//! that do not implement the handover see only padding.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---------------------------------------------------------------+
//! |  the header with flag B, 8 bytes                              |
//! |                                                               |
//! +-------------------------------+-------------------------------+
//! |  0: no more entries           |  number of the lane ...       |
//! +-------------------------------+-------------------------------+
//! |  ... (32)                     |
//! +-------------------------------+
//! ```
//!
//! Any sender that reaches the vif can forge it. The only effect is that frames of one flow
//! overtake each other once.

#![forbid(unsafe_code)]

use crate::wire::VnetId;
use crate::wire::encap::{self, Flags, Header};

/// Length after the header, in bytes.
const BODY_LEN: usize = 6;
/// Length of the datagram, in bytes.
pub const LEN: usize = encap::LEN + BODY_LEN;

/// The datagram for a lane.
pub fn emit(vnet: VnetId, lane: u32) -> [u8; LEN] {
    let mut datagram = [0; LEN];
    let (header, body) = datagram.split_at_mut(encap::LEN);
    header.copy_from_slice(&Header { flags: Flags::BUNDLE, vnet }.emit());
    let (_, number) = body.split_at_mut(BODY_LEN - 4);
    number.copy_from_slice(&lane.to_be_bytes());
    datagram
}

/// The lane's number, if the bytes after a header with flag B are those of a handover.
pub fn parse(body: &[u8]) -> Option<u32> {
    let [0, 0, number @ ..] = *body.as_array::<BODY_LEN>()? else { return None };
    Some(u32::from_be_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offload::bundle::Entries;

    #[test]
    fn is_a_bundle_of_nothing_with_a_number() {
        let vnet = VnetId::new(42).unwrap();
        let datagram = emit(vnet, 0x0102_0304);
        assert_eq!(datagram, [0x40, 2, 0, 0, 0, 0, 0, 42, 0, 0, 1, 2, 3, 4]);
        let (header, body) = Header::parse(&datagram).unwrap();
        assert_eq!(header, Header { flags: Flags::BUNDLE, vnet });
        assert_eq!(parse(body), Some(0x0102_0304));
        assert_eq!(Entries::new(body).count(), 0);
        assert_eq!(parse(&body[1..]), None);
        assert_eq!(parse(&[0; 5]), None);
        assert_eq!(parse(&[0, 1, 0, 0, 0, 1]), None);
        assert_eq!(parse(&[]), None);
    }
}
