//! Keys that varpd gives to backends.

use std::time::Duration;

use crate::policy::Suite;
use crate::secret::{SaKey, Secret};
use crate::wire::esp::Spi;

/// How long keys may serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// Then varpd ends them, if it did not replace them before.
    pub usual: Duration,
    /// Then they end by themselves ([`crate::security::sadb::Config::end`]).
    pub hard: Duration,
}

impl From<Duration> for Lifetime {
    fn from(both: Duration) -> Self {
        Self { usual: both, hard: both }
    }
}

/// Keys of the senders to one care-of address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SenderKeys {
    /// What packets are made with.
    pub suite: Suite,
    /// For each sender: its SPI and key.
    pub keys: Vec<(Spi, SaKey)>,
    /// How long they may serve.
    pub lifetime: Lifetime,
}

/// The key from which the owner of a care-of address derives its senders' keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiverKey {
    /// The session's number in SPIs.
    pub number: u32,
    /// What packets are made with.
    pub suite: Suite,
    /// The key from which [`crate::security::sadb::sender_key`] derives.
    pub receiver: Secret,
    /// How long it may serve.
    pub lifetime: Lifetime,
}
