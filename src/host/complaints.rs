//! Limits on the log lines that clients and other hosts can provoke, by kind, and within a kind by
//! user or vnet.
//!
//! Often all backends of a host run as one user, and a refused backend tries again every second. So
//! each vif of a user has a limit, too.

#![forbid(unsafe_code)]

use std::net::IpAddr;

use crate::quiet::{Quiet, QuietEach, QuietOf};
use crate::wire::control::ErrorCode;
use crate::wire::{VifKey, VnetId};

/// Most lines a minute of one kind about a user or a vnet.
const MOST: u32 = 20;
/// Most lines a minute of one kind about one vif of the user, or one host on the vnet.
const MOST_EACH: u32 = 2;
/// Most lines a minute about one kind of alarm on a vnet.
const MOST_ALARMS: u32 = 20;

/// The limit of each kind of line.
#[derive(Debug)]
pub(super) struct Complaints {
    /// Refused requests, by user; each by error code and vif.
    pub(super) refused: QuietOf<u32, (ErrorCode, Option<VifKey>)>,
    /// Vifs that carry no frames because the vnet's policy is too low for them, by user.
    pub(super) halted: QuietOf<u32, VifKey>,
    /// Second backends of a vif, by user.
    pub(super) twins: QuietOf<u32, VifKey>,
    /// Hosts that do not agree on keys, by vnet.
    pub(super) no_keys: QuietOf<VnetId, IpAddr>,
    /// Alarms of the mapper, by vnet; each by its name.
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
