//! As whom a guest may send: the MACs and the IP addresses that its frames may come from.

#![forbid(unsafe_code)]

use super::guard::Prefix;
use super::guard::exit::Exit;
use super::learned::LearnedMacs;
use super::stranger::{self, Stranger};
use super::tx::{self, Judged, SourceMac};
use crate::guest::transmit::TransmitFrame;
use crate::metrics::{VifCounter, VifCounters};
use crate::time::Instant;
use crate::tunnel::neighbors::Neighbors;
use crate::wire::VifKey;
use crate::wire::frame::Addresses;

/// The senders that a guest may be.
#[derive(Debug, Default)]
pub(super) struct Identity {
    source_mac: SourceMac,
    /// MACs behind the vif.
    learned: LearnedMacs,
    /// Whether the guest uses other MACs than those.
    stranger: Stranger,
    /// Checks addresses, if the guest is kept to a list of them.
    exit: Option<Box<Exit>>,
}

impl Identity {
    /// A guest that has the NIC's MAC alone, and any address. Frames from other MACs are treated as
    /// `source_mac` says.
    pub(super) fn new(source_mac: SourceMac) -> Self {
        Self { source_mac, ..Self::default() }
    }

    /// Several queue pairs look for strangers together.
    pub(super) fn set_stranger(&mut self, stranger: Stranger) {
        self.stranger = stranger;
    }

    /// Keeps the guest to these addresses, unless the list is empty. A batch has at most `frames` frames.
    pub(super) fn allow(&mut self, addresses: &[Prefix], frames: usize) {
        let exit = || Box::new(Exit::new(addresses.to_vec(), frames));
        self.exit = (!addresses.is_empty()).then(exit);
    }

    /// Lets up to `most` MACs be behind the vif.
    pub(super) fn learn(&mut self, most: usize) {
        self.learned = LearnedMacs::new(most);
    }

    /// The MACs behind the vif.
    pub(super) const fn learned(&self) -> &LearnedMacs {
        &self.learned
    }

    /// See [`Identity::learned`].
    pub(super) const fn learned_mut(&mut self) -> &mut LearnedMacs {
        &mut self.learned
    }

    /// Lends the check of addresses for a batch, whose frames borrow from it.
    pub(super) fn lend_exit(&mut self) -> Option<Box<Exit>> {
        self.exit.take()
    }

    /// Takes it back; the batch has left.
    pub(super) fn take_back(&mut self, mut exit: Option<Box<Exit>>) {
        if let Some(exit) = &mut exit {
            exit.clear();
        }
        self.exit = exit;
    }

    /// Judges a frame by its MACs, and counts it if its source is replaced.
    #[inline]
    pub(super) fn judge(
        &mut self,
        vif: VifKey,
        frame: &TransmitFrame,
        neighbors: &mut Neighbors,
        counters: &VifCounters,
        now: Instant,
    ) -> Judged {
        let Self { source_mac, learned, .. } = self;
        let judged = tx::judge(vif, *source_mac, frame.ethernet(), learned, neighbors, now);
        if judged.is_stamped {
            self.look_at_stranger(vif, frame, counters);
        }
        judged
    }

    /// Handles a frame whose source MAC is none of the vif's.
    #[cold]
    fn look_at_stranger(&mut self, vif: VifKey, frame: &TransmitFrame, counters: &VifCounters) {
        if self.source_mac == SourceMac::Stamp {
            counters.inc(VifCounter::tx_stamped);
        }
        let Ok(addresses) = Addresses::parse(frame.ethernet()) else { return };
        if self.stranger.sees(addresses.source) {
            log::warn!("{}", stranger::complaint(addresses.source, vif.mac, self.learned.most()));
        }
    }
}
