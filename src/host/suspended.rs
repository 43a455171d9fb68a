//! Renews keys after this host was suspended, restored from a snapshot, or cloned.
//!
//! While a host is suspended its monotonic clock stands still, and so does the age of keys. A
//! virtual machine that was restored from a snapshot, or cloned, cannot notice this by any clock.
//! Another copy may already have sealed packets with the same keys and numbers.
//!
//! | Input | Sessions with other hosts | Group frames |
//! |---|---|---|
//! | `Slept` | age by the difference, and are replaced when next needed | new start |
//! | `Restored` | end at once | new start |

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::time::Now;
use crate::wire::VnetId;

use super::Host;

impl Host {
    /// This host was suspended.
    pub(super) fn handle_slept(&mut self, asleep: Duration, seed: [u8; 32], now: Now) {
        self.security.awake(asleep, seed, now);
        self.renew_group_keys();
    }

    /// This machine is a copy of what it was, or may be.
    pub(super) fn handle_restored(&mut self, seed: [u8; 32], now: Now) {
        self.security.begin_anew(seed, now);
        self.renew_group_keys();
    }

    /// Gives all backends on secured vnets new salts, so that they start anew with group frames.
    fn renew_group_keys(&mut self) {
        let vnets: Vec<VnetId> = self.security.vnets.keys().copied().collect();
        for vnet in vnets {
            for (id, client) in self.backends(vnet) {
                self.send_group_keys(id, client);
            }
        }
    }
}
