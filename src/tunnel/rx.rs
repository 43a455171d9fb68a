//! From the underlay: whether a datagram holds a frame for this vif.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

use std::net::SocketAddr;

use crate::lane::handover;
use crate::metrics::VifCounter;
use crate::offload::bundle::{Entries, Entry};
use crate::underlay::Port;
use crate::wire::encap::{Flags, Header, Kind};
use crate::wire::fragment::Piece;
use crate::wire::frame::Addresses;
use crate::wire::{Capabilities, Mac, ParseError, VifKey};

/// Who receives.
#[derive(Clone, Copy, Debug)]
pub struct Receiver {
    /// The vif.
    pub key: VifKey,
    /// Its care-of address: group frames from there are its own, handed back by the underlay.
    pub own: SocketAddr,
    /// What it told others to understand.
    pub capabilities: Capabilities,
}

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressee {
    /// All, or a group.
    Group,
    /// The vif's own MAC.
    Vif,
    /// Another MAC, which may be or have been here, too.
    Other(Mac),
}

/// What a datagram for this vif holds.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// One frame.
    Frame(Entry<'a>),
    /// Many, each to be checked by [`Receiver::accept_frame`].
    Bundle(Entries<'a>),
    /// A piece of what [`Payload::open`] makes one of the above, once it is whole.
    Piece(Flags, Piece<'a>),
    /// No frame: what follows comes through this lane.
    Handover(u32),
    /// No frame: a message of [`crate::wire::echo`] between hosts.
    Echo(&'a [u8]),
}

impl<'a> Payload<'a> {
    /// What follows an encapsulation header with these flags, F excepted.
    ///
    /// # Errors
    /// The name of the drop.
    pub fn open(flags: Flags, payload: &'a [u8]) -> Result<Self, VifCounter> {
        match flags {
            Flags::NONE => Ok(Self::Frame(Entry { frame: payload, is_partial: false })),
            Flags::PARTIAL_CHECKSUM => Ok(Self::Frame(Entry { frame: payload, is_partial: true })),
            Flags::BUNDLE => Ok(match handover::parse(payload) {
                Some(lane) => Self::Handover(lane),
                None => Self::Bundle(Entries::new(payload)),
            }),
            // A combination that has no meaning: in a bundle each entry has a C of its own.
            _ => Err(VifCounter::rx_drop_flags),
        }
    }
}

impl Receiver {
    /// Checks a datagram in the order of its bytes: kind, header, vnet, flags.
    ///
    /// # Errors
    /// The name of the drop.
    pub fn accept<'a>(
        &self,
        port: Port,
        from: SocketAddr,
        datagram: &'a [u8],
    ) -> Result<Payload<'a>, VifCounter> {
        if port == Port::Group && from == self.own {
            return Err(VifCounter::rx_drop_own);
        }
        match Kind::of(datagram) {
            Kind::Plain => {}
            Kind::Protected => return Err(VifCounter::rx_drop_protected),
            Kind::Unknown if datagram.is_empty() => return Err(VifCounter::rx_drop_truncated),
            Kind::Unknown => return Err(VifCounter::rx_drop_version),
        }
        let (Header { flags, vnet }, payload) =
            Header::parse(datagram).map_err(|error| match error {
                ParseError::Truncated => VifCounter::rx_drop_truncated,
                ParseError::Value => VifCounter::rx_drop_vnet,
                _ => VifCounter::rx_drop_flags,
            })?;
        if vnet != self.key.vnet {
            return Err(VifCounter::rx_drop_vnet);
        }
        // Each receiver of a group puts pieces together, but not each takes bundles or partial checksums.
        let is_refused = port == Port::Group && flags.without(Flags::FRAGMENT) != Flags::NONE;
        if is_refused || !flags.understood_by(self.capabilities) {
            return Err(VifCounter::rx_drop_flags);
        }
        if flags == Flags::ECHO {
            return Ok(Payload::Echo(payload));
        }
        let whole = Payload::open(flags.without(Flags::FRAGMENT), payload)?;
        if !flags.contains(Flags::FRAGMENT) {
            return Ok(whole);
        }
        let piece = Piece::parse(payload).map_err(|_| VifCounter::rx_drop_fragment)?;
        Ok(Payload::Piece(flags.without(Flags::FRAGMENT), piece))
    }

    /// Checks the addresses of a frame; returns whom it is for.
    ///
    /// # Errors
    /// The name of the drop.
    pub fn accept_frame(&self, port: Port, frame: &[u8]) -> Result<Addressee, VifCounter> {
        let addresses = Addresses::parse(frame).map_err(|_| VifCounter::rx_drop_truncated)?;
        let Addresses { destination, source, .. } = addresses;
        if source == self.key.mac || !source.is_individual() {
            Err(VifCounter::rx_drop_source)
        } else if destination.is_group() {
            Ok(Addressee::Group)
        } else if port == Port::Group {
            Err(VifCounter::rx_drop_not_group)
        } else if destination == self.key.mac {
            Ok(Addressee::Vif)
        } else {
            Ok(Addressee::Other(destination))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::VnetId;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn receiver() -> Receiver {
        Receiver {
            key: VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac(OWN) },
            own: ([192, 0, 2, 1], 4000).into(),
            capabilities: Capabilities::NONE,
        }
    }

    fn datagram(vnet: u8, to: [u8; 6], from: [u8; 6]) -> Vec<u8> {
        let mut bytes = vec![0x40, 0, 0, 0, 0, 0, 0, vnet];
        bytes.extend(to);
        bytes.extend(from);
        bytes.extend([8, 0, 1, 2, 3]);
        bytes
    }

    fn accept(port: Port, bytes: &[u8]) -> Result<Addressee, VifCounter> {
        let receiver = receiver();
        match receiver.accept(port, ([192, 0, 2, 2], 5000).into(), bytes)? {
            Payload::Frame(entry) => receiver.accept_frame(port, entry.frame),
            other => panic!("nobody announced to understand {other:?}"),
        }
    }

    #[test]
    fn own_and_group_frames_are_delivered() {
        assert_eq!(accept(Port::Own, &datagram(42, OWN, PEER)), Ok(Addressee::Vif));
        let group = Ok(Addressee::Group);
        assert_eq!(accept(Port::Group, &datagram(42, [0xff; 6], PEER)), group);
        assert_eq!(accept(Port::Own, &datagram(42, [0xff; 6], PEER)), group, "replicated");
        let other = Ok(Addressee::Other(Mac(PEER)));
        assert_eq!(accept(Port::Own, &datagram(42, PEER, PEER)), other);
    }

    #[test]
    fn everything_else_has_a_name() {
        use VifCounter as C;
        let refused = |port, bytes: &[u8]| accept(port, bytes).unwrap_err();
        assert_eq!(refused(Port::Own, &datagram(43, OWN, PEER)), C::rx_drop_vnet);
        assert_eq!(refused(Port::Own, &datagram(0, OWN, PEER)), C::rx_drop_vnet);
        assert_eq!(refused(Port::Own, &datagram(42, OWN, OWN)), C::rx_drop_source);
        assert_eq!(refused(Port::Own, &datagram(42, OWN, [0xff; 6])), C::rx_drop_source);
        assert_eq!(refused(Port::Group, &datagram(42, OWN, PEER)), C::rx_drop_not_group);
        assert_eq!(refused(Port::Own, &[]), C::rx_drop_truncated);
        assert_eq!(refused(Port::Own, &[0x40, 0, 0, 0, 0, 0, 0, 42]), C::rx_drop_truncated);
        assert_eq!(refused(Port::Own, &[0x56; 40]), C::rx_drop_version);
        assert_eq!(refused(Port::Own, &[0x80; 40]), C::rx_drop_protected);
        for (at, value) in [(0, 0x48), (1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (3, 1)] {
            let mut bytes = datagram(42, OWN, PEER);
            bytes[at] = value;
            assert_eq!(refused(Port::Own, &bytes), C::rx_drop_flags, "{at} {value}");
        }
    }

    #[test]
    fn own_group_frames_that_come_back_are_dropped() {
        let bytes = datagram(42, [0xff; 6], OWN);
        let back = receiver().accept(Port::Group, receiver().own, &bytes);
        assert_eq!(back.unwrap_err(), VifCounter::rx_drop_own);
    }

    #[test]
    fn flags_mean_what_they_say_if_they_were_announced() {
        let capable = Receiver {
            capabilities: Capabilities(Capabilities::PARTIAL_CHECKSUM.0 | Capabilities::BUNDLE.0),
            ..receiver()
        };
        let mut bytes = datagram(42, OWN, PEER);
        let mut accept = |port, flags| {
            bytes[1] = flags;
            match capable.accept(port, ([192, 0, 2, 2], 5000).into(), &bytes) {
                Ok(Payload::Frame(entry)) => Ok(entry.is_partial),
                Ok(other) => panic!("{other:?}"),
                Err(counter) => Err(counter),
            }
        };
        assert_eq!(accept(Port::Own, 0), Ok(false));
        assert_eq!(accept(Port::Own, 1), Ok(true));
        for (port, flags) in [(Port::Own, 3), (Port::Own, 4), (Port::Group, 1), (Port::Group, 2)] {
            assert_eq!(accept(port, flags), Err(VifCounter::rx_drop_flags), "{port:?} {flags}");
        }
        let frame = &datagram(42, OWN, PEER)[8..];
        let entry = [&[0, frame.len() as u8][..], frame].concat();
        let bundle = [&[0x40, 2, 0, 0, 0, 0, 0, 42][..], &entry, &entry, &entry].concat();
        let from = ([192, 0, 2, 2], 5000).into();
        let Ok(Payload::Bundle(entries)) = capable.accept(Port::Own, from, &bundle) else {
            panic!("a bundle")
        };
        assert_eq!(entries.flatten().filter(|e| e.frame == frame).count(), 3);
    }

    #[test]
    fn pieces_are_told_with_the_flags_of_the_whole() {
        let capable = Receiver { capabilities: Capabilities(7), ..receiver() };
        let from = ([192, 0, 2, 2], 5000).into();
        let accept = |port, flags, payload: &[u8]| {
            let bytes = [&[0x40, flags, 0, 0, 0, 0, 0, 42][..], payload].concat();
            match capable.accept(port, from, &bytes) {
                Ok(Payload::Piece(flags, piece)) => Ok((flags, piece.offset, piece.bytes.len())),
                Ok(other) => panic!("{other:?}"),
                Err(counter) => Err(counter),
            }
        };
        let payload = [0, 0, 0, 9, 0, 0, 1, 0, 5, 5, 5];
        assert_eq!(accept(Port::Own, 4, &payload), Ok((Flags::NONE, 256, 3)));
        assert_eq!(accept(Port::Own, 5, &payload), Ok((Flags::PARTIAL_CHECKSUM, 256, 3)));
        assert_eq!(accept(Port::Own, 6, &payload), Ok((Flags::BUNDLE, 256, 3)));
        assert_eq!(accept(Port::Own, 7, &payload), Err(VifCounter::rx_drop_flags));
        assert_eq!(accept(Port::Group, 4, &payload), Ok((Flags::NONE, 256, 3)));
        assert_eq!(accept(Port::Group, 5, &payload), Err(VifCounter::rx_drop_flags));
        assert_eq!(accept(Port::Own, 4, &payload[..8]), Err(VifCounter::rx_drop_fragment));
    }

    #[test]
    fn every_truncation_and_mutation_is_accepted_or_named() {
        let vector = datagram(42, OWN, PEER);
        for len in 0..8 + 14 {
            assert_eq!(accept(Port::Own, &vector[..len]), Err(VifCounter::rx_drop_truncated));
        }
        let mut accepted = 0;
        for at in 0..vector.len() {
            for value in 0..=255 {
                let mut bytes = vector.clone();
                bytes[at] = value;
                accepted += usize::from(accept(Port::Own, &bytes).is_ok());
            }
        }
        assert!(accepted > 0);
    }
}
