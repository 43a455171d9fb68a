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
    /// Type behind the tags that were read. Below 0x600 it is a length (IEEE 802.3). If it is the type
    /// of a tag, the frame has more tags than are read.
    pub ether_type: u16,
    /// Where the payload begins, in bytes: the length of this header.
    pub payload_at: usize,
    /// Whether a tag is of a type that switches used for the outer tag before IEEE 802.1ad.
    pub has_old_tags: bool,
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
        let mut has_old_tags = false;
        for _ in 0..MAX_TAGS {
            if ether_type < LEAST_TAG {
                break;
            }
            match ether_type {
                // IEEE 802.1Q and 802.1ad.
                LEAST_TAG | 0x88a8 => {}
                0x9100 | 0x9200 | 0x9300 => has_old_tags = true,
                _ => break,
            }
            let tag_at = type_at;
            type_at += TAG_LEN;
            ether_type = field::u16_at(frame, type_at).ok_or(Stop::truncated(tag_at))?;
        }
        Ok(Self { ether_type, payload_at: type_at + 2, has_old_tags })
    }
}
