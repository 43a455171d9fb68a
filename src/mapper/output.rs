//! The actions that the mapper requests: plain data, which tests compare.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use super::LocalVif;
use crate::wire::varp::{Claim, Message};
use crate::wire::{CareOf, Mac, Stamp, Unusable, VifKey, control};

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a message.
    Send {
        /// Where to.
        to: Destination,
        /// What.
        message: Message,
    },
    /// Tell a local vif's backend.
    Notify {
        /// Whose.
        vif: LocalVif,
        /// What.
        notice: Notice,
    },
    /// Show an operator who is watching; nothing else depends on it.
    Event(Event),
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The VARP group of the segment.
    Group,
    /// One host.
    Unicast(SocketAddr),
}

/// A notice to a backend about a MAC on its vnet, or about its own vif.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The MAC is there, and may be used for so long.
    Mapping {
        /// The MAC.
        mac: Mac,
        /// Where it is.
        coa: CareOf,
        /// The stamp of the owner's claim.
        stamp: Stamp,
        /// How long.
        lifetime: Duration,
    },
    /// No host answers for the MAC, or a limit refuses to ask now.
    Unresolved {
        /// The MAC.
        mac: Mac,
        /// How long not to ask again.
        hold: Duration,
    },
    /// Forget the MAC; ask before further use.
    Invalidate {
        /// The MAC.
        mac: Mac,
    },
    /// The vif is owned here, with this stamp.
    Claimed {
        /// The stamp of the claim.
        stamp: Stamp,
    },
    /// The MAC is behind the vif no more: it is another vif's own.
    Refused {
        /// How long not to claim it again.
        hold: Duration,
    },
    /// The vif is owned elsewhere from now on.
    Lost {
        /// The stamp of the newer claim.
        stamp: Stamp,
        /// Where the vif is now.
        coa: CareOf,
    },
}

impl Notice {
    /// The message to the backend of the vif with the MAC `own`. `lifetime` is how long others may
    /// still believe that a vif is here that is not.
    pub fn event(self, own: Mac, lifetime: Duration) -> control::Event {
        use control::Event;
        let millis = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        match self {
            Self::Mapping { mac, coa, stamp, lifetime } => {
                Event::Mapping { mac, coa, stamp, lifetime_ms: millis(lifetime) }
            }
            Self::Unresolved { mac, hold } => Event::Unresolved { mac, hold_ms: millis(hold) },
            Self::Invalidate { mac } => Event::Invalidate { mac },
            Self::Refused { hold } => Event::Refused { mac: own, hold_ms: millis(hold) },
            Self::Claimed { stamp } => Event::Claimed { mac: own, stamp },
            Self::Lost { stamp, coa } => {
                Event::Lost { mac: own, stamp, coa, lifetime_ms: millis(lifetime) }
            }
        }
    }
}

/// Something worth showing (`vnet monitor`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A remote vif was found.
    Resolved {
        /// The vif.
        key: VifKey,
        /// Its owner's claim.
        claim: Claim,
    },
    /// No host answered.
    Unresolved {
        /// The vif asked for.
        key: VifKey,
    },
    /// A mapping in use has a new owner.
    Moved {
        /// The vif.
        key: VifKey,
        /// The old claim.
        from: Claim,
        /// The new one.
        to: Claim,
    },
    /// A local vif is claimed.
    Claimed {
        /// The vif.
        key: VifKey,
        /// The claim.
        claim: Claim,
    },
    /// A vif whose rings run here is claimed elsewhere, too: it has moved, two vifs share its MAC, or
    /// the network was split and is whole again.
    Conflict {
        /// The vif.
        key: VifKey,
        /// The claim of this host.
        ours: Claim,
        /// The other one.
        theirs: Claim,
        /// Ours is the newer claim: frames come here.
        ours_wins: bool,
    },
    /// A vif that was here, or a MAC behind one, is now elsewhere.
    Lost {
        /// The vif.
        key: VifKey,
        /// The claim that was made here.
        ours: Claim,
        /// The newer one.
        theirs: Claim,
    },
    /// A mapping came to its end unconfirmed.
    Expired {
        /// The vif.
        key: VifKey,
    },
    /// A mapping had to make room.
    Evicted {
        /// The vif.
        key: VifKey,
    },
    /// A vif moves too often: two guests share its MAC.
    Damped {
        /// The vif.
        key: VifKey,
    },
    /// A claim whose stamp is too far ahead of this host's clock; one of the two clocks is wrong.
    Implausible {
        /// The vif.
        key: VifKey,
        /// The claim.
        claim: Claim,
    },
    /// A remote vif was found, or has moved, to where no frame can be sent from here.
    Unusable {
        /// The vif.
        key: VifKey,
        /// Its owner's claim.
        claim: Claim,
        /// Why not.
        why: Unusable,
    },
}

impl Event {
    /// What happened, in a word.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Resolved { .. } => "resolved",
            Self::Unresolved { .. } => "unresolved",
            Self::Moved { .. } => "moved",
            Self::Claimed { .. } => "claimed",
            Self::Conflict { .. } => "conflict",
            Self::Lost { .. } => "lost",
            Self::Expired { .. } => "expired",
            Self::Evicted { .. } => "evicted",
            Self::Damped { .. } => "damped",
            Self::Implausible { .. } => "implausible",
            Self::Unusable { .. } => "unusable",
        }
    }

    /// To which vif.
    pub const fn key(&self) -> VifKey {
        match *self {
            Self::Resolved { key, .. }
            | Self::Unresolved { key }
            | Self::Moved { key, .. }
            | Self::Claimed { key, .. }
            | Self::Conflict { key, .. }
            | Self::Lost { key, .. }
            | Self::Expired { key }
            | Self::Evicted { key }
            | Self::Damped { key }
            | Self::Implausible { key, .. }
            | Self::Unusable { key, .. } => key,
        }
    }

    /// The claim that it is about: where the vif is now.
    pub const fn claim(&self) -> Option<Claim> {
        match *self {
            Self::Resolved { claim, .. }
            | Self::Claimed { claim, .. }
            | Self::Implausible { claim, .. }
            | Self::Unusable { claim, .. } => Some(claim),
            Self::Moved { to, .. } => Some(to),
            Self::Conflict { theirs, .. } | Self::Lost { theirs, .. } => Some(theirs),
            _ => None,
        }
    }

    /// The claim before it, or beside it: where the vif was.
    pub const fn before(&self) -> Option<Claim> {
        match *self {
            Self::Moved { from, .. } => Some(from),
            Self::Conflict { ours, .. } | Self::Lost { ours, .. } => Some(ours),
            _ => None,
        }
    }

    /// Whether an operator should look into it.
    pub const fn is_alarm(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. }
                | Self::Damped { .. }
                | Self::Implausible { .. }
                | Self::Unusable { .. }
        )
    }

    /// What an alarm means and what to do about it.
    fn explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict { ours, theirs, .. } if !theirs.is_own() => {
                let there = theirs.coa;
                write!(
                    f,
                    ": a guest at {there} sends from this MAC, which is that of a guest's NIC here at {}",
                    ours.coa
                )?;
                f.write_str(
                    "; frames go to the NIC. Give that guest, or what is behind it, another MAC",
                )
            }
            Self::Conflict { ours, theirs, ours_wins, .. } => {
                let (here, there) = (ours.coa, theirs.coa);
                let winner = if *ours_wins { here } else { there };
                write!(f, ": two guests have this MAC: one here at {here}, one ")?;
                match theirs.coa.addr.ip() {
                    ip if ip == ours.coa.addr.ip() => write!(f, "on this host, too, at {there}")?,
                    ip => write!(f, "on host {ip} at {there}")?,
                }
                write!(
                    f,
                    "; frames go to {winner}, where it was started last. Stop one of them or give"
                )?;
                write!(
                    f,
                    " it another MAC, unless the guest has just moved or the network was split"
                )
            }
            Self::Damped { .. } => {
                f.write_str(": moves to and fro: two guests have this MAC, see the conflicts")
            }
            Self::Implausible { claim, .. } => {
                let ip = claim.coa.addr.ip();
                write!(
                    f,
                    ": host {ip} claims it more than a day ahead of this host's clock: one of"
                )?;
                f.write_str(" the two clocks is wrong")
            }
            Self::Unusable { claim, why, .. } => {
                write!(f, ": frames to {} are dropped (tx_drop_unusable): {why}", claim.coa)
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.key())?;
        if self.is_alarm() {
            return self.explain(f);
        }
        if let Some(before) = self.before() {
            write!(f, " from {}", before.coa)?;
        }
        if let Some(claim) = self.claim() {
            write!(f, " at {} stamp {}", claim.coa, claim.stamp.0)?;
        }
        Ok(())
    }
}
