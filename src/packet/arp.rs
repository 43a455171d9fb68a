//! ARP (RFC 826) and RARP (RFC 903) of Ethernet and IPv4 addresses.
//!
//! ```text
//!  0       2          4     5     6           8            14          18           24          28
//!  +-------+----------+-----+-----+-----------+------------+-----------+------------+-----------+
//!  | 1     | 0x0800   | 6   | 4   | operation | sender MAC | sender IP | target MAC | target IP |
//!  +-------+----------+-----+-----+-----------+------------+-----------+------------+-----------+
//! ```

use std::net::Ipv4Addr;

use super::field;

/// Length of a message, in bytes.
pub const LEN: usize = 28;
/// Operations.
pub const REQUEST: u16 = 1;
/// See [`REQUEST`].
pub const REPLY: u16 = 2;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Operation.
    pub operation: u16,
    /// Hardware address of the sender.
    pub sender_mac: [u8; 6],
    /// Protocol address of the sender.
    pub sender: Ipv4Addr,
    /// Hardware address of the target.
    pub target_mac: [u8; 6],
    /// Protocol address of the target.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads the payload of a frame. `None` if it is truncated or about other kinds of addresses.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let message: [u8; LEN] = field::read(payload, 0)?;
        if !message.starts_with(&[0, 1, 8, 0, 6, 4]) {
            return None;
        }
        Some(Self {
            operation: field::u16_at(&message, 6)?,
            sender_mac: field::read(&message, 8)?,
            sender: field::read::<4>(&message, 14)?.into(),
            target_mac: field::read(&message, 18)?,
            target: field::read::<4>(&message, 24)?.into(),
        })
    }
}
