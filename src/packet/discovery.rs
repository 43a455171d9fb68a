//! Neighbour discovery (RFC 4861): messages that hosts send.
//!
//! ```text
//!  0      1      2          4                8                24
//!  +------+------+----------+----------------+----------------+----
//!  | type | code | checksum | flags          | target address | options ..    solicitation, advertisement
//!  +------+------+----------+----------------+----------------+----
//!  | type | code | checksum | reserved       | options ..                     router solicitation
//!  +------+------+----------+----------------+----
//!                                              option: | type | length, units of 8 bytes | data .. |
//! ```

use std::net::Ipv6Addr;

use super::{field, transport};

/// Types of messages.
pub const ROUTER_SOLICITATION: u8 = 133;
/// See [`ROUTER_SOLICITATION`].
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// See [`ROUTER_SOLICITATION`].
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// See [`ROUTER_SOLICITATION`].
pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// See [`ROUTER_SOLICITATION`].
pub const REDIRECT: u8 = 137;

/// Types of options that name a link-layer address.
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;

/// A message of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discovery<'a> {
    /// The neighbour that it is about; router solicitations have none.
    pub target: Option<Ipv6Addr>,
    options: &'a [u8],
}

impl<'a> Discovery<'a> {
    /// Reads a whole ICMPv6 message. `None` if it is truncated or of another type.
    pub fn parse(message: &'a [u8]) -> Option<Self> {
        match transport::message_type(message)? {
            ROUTER_SOLICITATION => Some(Self { target: None, options: message.get(8..)? }),
            NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
                let target = field::read::<16>(message, 8)?;
                Some(Self { target: Some(target.into()), options: message.get(24..)? })
            }
            _ => None,
        }
    }

    /// The MAC addresses that its options name. Ends with `None` as an item if an option has no
    /// length or is longer than the message.
    pub fn macs(self) -> impl Iterator<Item = Option<[u8; 6]>> {
        let mut options = self.options;
        std::iter::from_fn(move || {
            while let Some(&kind) = options.first() {
                let units = field::u8_at(options, 1).unwrap_or(0);
                let Some((option, rest)) =
                    options.split_at_checked(8 * usize::from(units)).filter(|_| units > 0)
                else {
                    options = &[];
                    return Some(None);
                };
                options = rest;
                if matches!(kind, SOURCE_LINK_LAYER | TARGET_LINK_LAYER) {
                    return Some(field::read(option, 2));
                }
            }
            None
        })
    }
}
