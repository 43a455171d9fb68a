//! Keys of group traffic: broadcast and multicast frames of a secured vnet.
//!
//! # Theory of operation
//!
//! A sender cannot shake hands with a group whose members are unknown, and the first frame of a
//! guest is usually a broadcast. So each sender derives a key from the vnet's group key and from
//! values that its packets carry in the clear:
//!
//! ```text
//!  SA key = HKDF(group key; IP (128), port (16), SPI with its salt (32), start (32), random (32))
//!  IV     = start (32) | random xor number (32)
//! ```
//!
//! IP and port are the sender's care-of address, the start is a second of its clock, and the
//! packet's number is in the sequence field, so that the receiver finds the random number in the
//! IV. A receiver with the group key can open the first packet of a sender that it does not know.
//!
//! **No nonce occurs twice.** A sender starts with number 1 under a new key. No two starts of one
//! sender have the same second, even if its clock is set back. Two senders at one address differ by
//! their [`Salt`], whatever their clocks show: varpd assigns the 16 bits in the SPI in ascending
//! order from a random one, and the sender itself draws 32. A key recurs only if address, second
//! and all 48 bits agree.
//!
//! **A sender keeps its random number** from one start to the next. So a receiver that knows the
//! sender can predict the key of each start that may be next. If each start had another number, an
//! attacker that sees one packet could make receivers derive a key for each number that it invents.
//!
//! **Replays.** A receiver keeps a window per sender and start, and accepts only starts within
//! [`TOLERANCE`] of its own clock; a sender starts anew every [`RESTART`], and at once if its clock
//! is set. The receiver therefore refuses recorded packets at first by the window, and later
//! because of their age. The clocks of a secured vnet's hosts must agree within [`TOLERANCE`]. One
//! gap remains: a backend that has just started, or whose host's clock was set back by more than
//! that, has lost its windows. During that time it accepts, once more, packets that were sent just
//! before.
//!
//! **Floods.** Forged packets cause key derivations only within a budget: see `candidates`.

mod candidates;
mod receiver;
mod sender;
mod starts;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

pub use self::candidates::STRANGERS_PER_SECOND;
pub use self::receiver::{GroupError, GroupReceiver, MAX_SENDERS};
pub use self::sender::GroupSender;
use crate::secret::{SaKey, Secret};
use crate::wire::esp::{Head, Spi, Start};
use crate::wire::name::mapped;

/// How long a sender uses one start.
pub const RESTART: Duration = Duration::from_secs(30);
/// How far a sender's start may lie from the receiver's clock: [`RESTART`], and a minute for clocks
/// that differ.
pub const TOLERANCE: Duration = Duration::from_secs(90);

/// What tells senders at one address apart: 48 bits that no other sender there had in the same
/// second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt {
    /// In the SPI.
    pub spi: u16,
    /// In the IVs.
    pub random: u32,
}

/// A sender, as its packets name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct SenderId {
    /// Its care-of address.
    at: SocketAddr,
    spi: Spi,
    random: u32,
}

/// A start of a sender. Its time comes first: the first to expire is the first of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StartId {
    second: u32,
    sender: SenderId,
}

impl StartId {
    /// Under which key a packet that came `from` there was sealed, as it says.
    fn of(from: SocketAddr, head: &Head) -> Self {
        let Start { second, random } = head.start();
        Self { second, sender: SenderId { at: from, spi: head.spi, random } }
    }

    /// How its packets show it.
    const fn start(self) -> Start {
        Start { second: self.second, random: self.sender.random }
    }

    /// The key of its packets.
    fn key(self, group: &Secret) -> SaKey {
        let SenderId { at, spi, random } = self.sender;
        let context = [
            &mapped(at.ip()).octets()[..],
            &at.port().to_be_bytes(),
            &spi.0.to_be_bytes(),
            &self.second.to_be_bytes(),
            &random.to_be_bytes(),
        ];
        SaKey::derive(group, "group sender", &context)
    }
}

/// A time in seconds since 1970, if a start can have it.
fn seconds(wall_ms: u64) -> Option<u32> {
    u32::try_from(wall_ms / 1000).ok()
}

/// [`TOLERANCE`], in seconds.
fn tolerance() -> u32 {
    u32::try_from(TOLERANCE.as_secs()).unwrap_or(u32::MAX)
}
