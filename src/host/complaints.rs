//! Limits on the log lines that clients and other hosts can provoke, by kind, and within a kind by user or vnet.
//!
//! Often all backends of a host run as one user, and one that is refused tries again every second: so there is a limit
//! for each vif of a user, too.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::quiet::{Quiet, QuietEach, QuietOf};
use crate::wire::control::ErrorCode;
use crate::wire::{VifKey, VnetId};

/// Lines of a kind in a minute about a user, or a vnet.
const MOST: u32 = 20;
/// The same about one vif of the user, or one host on the vnet.
const MOST_EACH: u32 = 2;
/// The same about one kind of alarm on a vnet.
const MOST_ALARMS: u32 = 20;

/// What has been said.
#[derive(Debug)]
pub(super) struct Complaints {
    /// Clients that are refused something, by user: which kind of refusal, and of which vif.
    pub(super) refused: QuietOf<u32, (ErrorCode, Option<VifKey>)>,
    /// Vifs that carry no frames, since the policy is too low, by user.
    pub(super) halted: QuietOf<u32, VifKey>,
    /// Second backends of a vif, by user.
    pub(super) twins: QuietOf<u32, VifKey>,
    /// Hosts that do not agree on keys, by vnet.
    pub(super) no_keys: QuietOf<VnetId, IpAddr>,
    /// Alarms of the mapper, by vnet: their names.
    pub(super) alarms: QuietOf<VnetId, &'static str>,
    /// Lanes that could not be made.
    pub(super) lanes: Quiet,
    /// Vifs that could not join their groups.
    pub(super) deaf: QuietEach<VifKey>,
}

impl Default for Complaints {
    fn default() -> Self {
        Self {
            refused: QuietOf::new(MOST, MOST_EACH),
            halted: QuietOf::new(MOST, MOST_EACH),
            twins: QuietOf::new(MOST, MOST_EACH),
            no_keys: QuietOf::new(MOST, MOST_EACH),
            alarms: QuietOf::new(MOST * MOST_ALARMS, MOST_ALARMS),
            lanes: Quiet::default(),
            deaf: QuietEach::new(1),
        }
    }
}
