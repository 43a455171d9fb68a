//! The outputs of the state machine, among them the keys for backends.

use std::net::IpAddr;

#[cfg(doc)]
use super::Sadb;
use crate::secret::{SaKey, Secret};
use crate::wire::VnetId;
use crate::wire::name::Name;

/// An action for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a handshake message to the VARP port of a host.
    Send {
        /// The vnet.
        vnet: VnetId,
        /// The host.
        to: IpAddr,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A session was made: local backends of the vnet need [`Sadb::inbound`] before anything else
    /// that was asked for on this link is done.
    Receive {
        /// The vnet.
        vnet: VnetId,
        /// The host.
        peer: IpAddr,
        /// The session.
        number: u32,
    },
    /// What is sent to this host from now on is sealed with new keys: [`Sadb::outbound`].
    Serve {
        /// The vnet.
        vnet: VnetId,
        /// The host.
        peer: IpAddr,
    },
    /// A session is over.
    Ended {
        /// The vnet.
        vnet: VnetId,
        /// The session.
        number: u32,
    },
    /// Nothing serves this link any more.
    Down {
        /// The vnet.
        vnet: VnetId,
        /// The host.
        peer: IpAddr,
    },
    /// The host does not answer, or not with the vnet's key.
    GaveUp {
        /// The vnet.
        vnet: VnetId,
        /// The host.
        peer: IpAddr,
    },
}

impl Output {
    /// Of which link it is; those of one must be done in order.
    pub const fn link(&self) -> Option<(VnetId, IpAddr)> {
        match *self {
            Self::Send { vnet, to: peer, .. }
            | Self::Receive { vnet, peer, .. }
            | Self::Serve { vnet, peer }
            | Self::Down { vnet, peer }
            | Self::GaveUp { vnet, peer } => Some((vnet, peer)),
            Self::Ended { .. } => None,
        }
    }
}

/// The key of a receiver, by its vif's name, of a session's direction.
pub(super) fn receiver_key(direction: &Secret, receiver: Name) -> Secret {
    direction.derive("receiver", &[&receiver.to_bytes()])
}

/// The key of the sender with a number, of a receiver.
pub fn sender_key(receiver: &Secret, index: u32) -> SaKey {
    SaKey::derive(receiver, "sender", &[&index.to_be_bytes()])
}
