//! The MACs that are here, for frames that come another way than through the sockets.

use super::moved::MovedMacs;
use super::rx::{Addressee, Receiver};
use crate::metrics::VifCounter;
use crate::underlay::Port;

/// The MACs that are here. Unlike frames in datagrams ([`super::incoming::Home`]), others are dropped if their
/// MAC has moved, not sent on.
#[derive(Clone, Copy, Debug)]
pub struct Residents<'a> {
    /// The vif.
    pub receiver: &'a Receiver,
    /// Whether unicast to other MACs is accepted.
    pub takes_unknown: bool,
    /// MACs that were here.
    pub moved: &'a MovedMacs,
}

impl Residents<'_> {
    /// Checks the addresses of a frame, or of its beginning; returns whether it is for a group.
    ///
    /// # Errors
    /// The name of the drop.
    pub fn accept(&self, frame: &[u8]) -> Result<bool, VifCounter> {
        let mac = match self.receiver.accept_frame(Port::Own, frame)? {
            Addressee::Group => return Ok(true),
            Addressee::Vif => self.receiver.key.mac,
            Addressee::Other(mac) if self.takes_unknown => mac,
            Addressee::Other(_) => return Err(VifCounter::rx_drop_destination),
        };
        match self.moved.has_left(mac) {
            true => Err(VifCounter::rx_drop_departed),
            false => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Instant;
    use crate::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const BEHIND: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const PEER: Mac = Mac([2, 0, 0, 0, 0, 3]);

    #[test]
    fn frames_for_who_is_here_or_may_be_are_taken_and_no_others() {
        let own = ([192, 0, 2, 1], 4000).into();
        let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: OWN };
        let receiver = Receiver { key, own, capabilities: Capabilities::NONE };
        let mut moved = MovedMacs::default();
        let accept = |to: Mac, takes_unknown, moved: &MovedMacs| {
            let residents = Residents { receiver: &receiver, takes_unknown, moved };
            residents.accept(&[&to.0[..], &PEER.0, &[8, 0]].concat())
        };
        assert_eq!(accept(Mac([0xff; 6]), true, &moved), Ok(true));
        assert_eq!(accept(OWN, false, &moved), Ok(false));
        let elsewhere = Err(VifCounter::rx_drop_destination);
        assert_eq!(accept(BEHIND, false, &moved), elsewhere);
        // A bridge's table may know what ours does not yet: after a migration it is empty.
        assert_eq!(accept(BEHIND, true, &moved), Ok(false));
        let (kinds, capabilities) = (EncapKinds::UDP, Capabilities::NONE);
        let coa = CareOf {
            addr: ([192, 0, 2, 2], 4000).into(),
            kinds,
            capabilities,
            longest: Longest::UNKNOWN,
        };
        for mac in [OWN, BEHIND] {
            moved.insert(mac, coa, coa.addr.ip(), Instant::from_millis(30_000));
            assert_eq!(accept(mac, true, &moved), Err(VifCounter::rx_drop_departed));
        }
        assert_eq!(accept(Mac([0xff; 6]), true, &moved), Ok(true));
    }
}
