//! The Ethernet header and the VLAN tags in it.
//!
//! ```text
//!  0             6        12                                        payload_at
//!  +-------------+--------+-----------------------+------------+----
//!  | destination | source | (TPID, TCI) 0-2 times | ether type |  ..
//!  +-------------+--------+-----------------------+------------+----
//! ```

use super::{Stop, field};

/// Length of the two addresses, in bytes.
pub const ADDRESSES_LEN: usize = 12;
/// Length of the header without VLAN tags, in bytes.
pub const HEADER_LEN: usize = ADDRESSES_LEN + 2;
/// Length of a VLAN tag, in bytes.
pub const TAG_LEN: usize = 4;
/// Most VLAN tags that are read (IEEE 802.1ad: one of the provider, one of the customer).
pub const MAX_TAGS: usize = 2;

/// The least type of a tag. Most frames have a lower one, which needs no further look.
const LEAST_TAG: u16 = 0x8100;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Type behind the tags that were read. Below 0x600 it is a length (IEEE 802.3). If it is that
    /// of a tag, there are more than are read.
    pub ether_type: u16,
    /// Where the payload begins, in bytes: the length of this header.
    pub payload_at: usize,
}

impl Ethernet {
    /// Reads the header of a frame.
    ///
    /// # Errors
    /// It is truncated.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, Stop> {
        let mut type_at = ADDRESSES_LEN;
        let mut ether_type = field::u16_at(frame, type_at).ok_or(Stop::truncated(0))?;
        for _ in 0..MAX_TAGS {
            if ether_type < LEAST_TAG || !is_tag(ether_type) && !is_old_tag(ether_type) {
                break;
            }
            let tag_at = type_at;
            type_at += TAG_LEN;
            ether_type = field::u16_at(frame, type_at).ok_or(Stop::truncated(tag_at))?;
        }
        Ok(Self { ether_type, payload_at: type_at + 2 })
    }

    /// Whether a tag is of a type from before IEEE 802.1ad. `frame` is what was parsed.
    #[inline]
    pub fn has_old_tags(&self, frame: &[u8]) -> bool {
        self.payload_at > HEADER_LEN
            && (ADDRESSES_LEN..self.payload_at - 2)
                .step_by(TAG_LEN)
                .any(|at| field::u16_at(frame, at).is_some_and(is_old_tag))
    }
}

/// Whether it is a tag protocol identifier of IEEE 802.1Q or 802.1ad.
#[inline]
const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, LEAST_TAG | 0x88a8)
}

/// Whether it is one of those that switches used for the outer tag before IEEE 802.1ad.
#[inline]
const fn is_old_tag(ether_type: u16) -> bool {
    matches!(ether_type, 0x9100 | 0x9200 | 0x9300)
}
