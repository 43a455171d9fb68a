//! The reasons for which the filter closes a connection, in words.

use thiserror::Error;

use super::{MAX_PAYLOAD, UNSHARED, name};
use crate::vhost_user::memory_table::TableError;

/// Why a connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Not a message of this version.
    #[error("{} has flags {flags:#x}, which vhost-user version 1 does not define", name(*request))]
    Flags {
        /// The request's number.
        request: u32,
        /// Its flags.
        flags: u32,
    },
    /// The payload is too long.
    #[error("{} announces {size} bytes of payload; the most is {MAX_PAYLOAD}", name(*request))]
    TooLong {
        /// The request's number.
        request: u32,
        /// The length it claims.
        size: u32,
    },
    /// The payload does not fit the request.
    #[error("{} has a malformed payload", name(*.0))]
    Malformed(u32),
    /// Descriptors with a request that takes none, or too many of them.
    #[error("{} came with {count} descriptors", name(*request))]
    Descriptors {
        /// The request's number.
        request: u32,
        /// How many.
        count: usize,
    },
    /// Memory regions without descriptors.
    #[error("{UNSHARED}")]
    MemoryNotShared,
    /// Unusable guest memory.
    #[error("{} with {error}", name(*request))]
    Memory {
        /// The request's number.
        request: u32,
        /// The fault.
        error: TableError,
    },
    /// A ring that this device does not have.
    #[error(
        "{} for ring {ring}, where {rings} are served, those of {} queue pair(s): {}",
        name(*request), rings / 2, beyond(*rings, *is_control)
    )]
    NoSuchRing {
        /// The request's number.
        request: u32,
        /// The ring's number.
        ring: u32,
        /// How many there are.
        rings: usize,
        /// Whether the driver takes it for its control queue.
        is_control: bool,
    },
    /// A request that this device does not offer, and that has no reply to refuse it with.
    #[error("{} (request {}) is not supported", name(*.0), .0)]
    Unsupported(u32),
    /// The device answered another request than the pending one.
    #[error("the device answered {} out of turn", name(*.0))]
    OutOfTurn(u32),
}

/// The remedy for a frontend that wants more rings than there are.
fn beyond(rings: usize, is_control: bool) -> String {
    if is_control {
        return "the driver wants a control queue, which only some frontends serve (QEMU, Cloud Hypervisor): start the \
                backend with --queue-pairs 1"
            .to_owned();
    }
    format!(
        "give QEMU no more than queues={}, or start the backend with more --queue-pairs",
        rings / 2
    )
}
