//! Datagrams before anything about them is known: what is accepted is a frame within the datagram
//! for this vif, and merging neither loses nor invents payload.

use std::net::SocketAddr;

use vnet::offload::features::Offloads;
use vnet::offload::gro::{Merger, Received};
use vnet::tunnel::rx::{Addressee, Payload, Receiver};
use vnet::underlay::Port;
use vnet::vif::link::CAPABILITIES;
use vnet::wire::frame::Addresses;
use vnet::wire::{Mac, VifKey, VnetId};

use super::Input;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const MAX_PIECES: usize = 64;
const MAX_LEN: usize = 65_550;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let offloads = Offloads::from_features(input.u64());
    let port = if input.u8() == 0 { Port::Group } else { Port::Own };
    let key = VifKey { vnet: VnetId::new(42).expect("not 0"), mac: MAC };
    let own = SocketAddr::from(([192, 0, 2, 1], 4000));
    let receiver = Receiver { key, own, capabilities: CAPABILITIES };
    let mut frames: Vec<Received<'_>> = Vec::new();
    while let Some(datagram) = input.chunk() {
        let from = SocketAddr::from(([192, 0, 2, 2], 4000));
        match receiver.accept(port, from, datagram) {
            Ok(Payload::Frame(entry)) => {
                take(&receiver, port, entry.frame, entry.is_partial, &mut frames);
            }
            Ok(Payload::Bundle(entries)) => {
                for entry in entries.flatten() {
                    take(&receiver, port, entry.frame, entry.is_partial, &mut frames);
                }
            }
            _ => {}
        }
    }
    merge(offloads, &frames);
}

fn take<'a>(
    receiver: &Receiver,
    port: Port,
    frame: &'a [u8],
    is_partial: bool,
    frames: &mut Vec<Received<'a>>,
) {
    let Ok(addressee) = receiver.accept_frame(port, frame) else { return };
    let addresses = Addresses::parse(frame).expect("an accepted frame has addresses");
    match addressee {
        Addressee::Group => assert!(addresses.destination.is_group()),
        Addressee::Vif => assert_eq!(addresses.destination, MAC),
        // One behind the vif, perhaps; there is none here. Or nobody's, all zero.
        Addressee::Other(mac) => {
            assert!(mac == addresses.destination && mac != MAC && !mac.is_group());
            return;
        }
    }
    assert_ne!(addresses.source, MAC);
    frames.push(Received::whole(frame, is_partial));
}

fn merge(offloads: Offloads, frames: &[Received<'_>]) {
    let mut merger = Merger::new(offloads, MAX_PIECES, MAX_LEN);
    let mut next = 0;
    while let Some(merged) = merger.merge(|n| frames.get(next + n).copied()) {
        let Ok(merged) = merged else {
            next += 1;
            continue;
        };
        assert!((1..=MAX_PIECES).contains(&merged.frames));
        let run = &frames[next..next + merged.frames];
        let payload: usize = run.iter().map(|frame| merged.payload_of(frame).len()).sum();
        let len = merged.head.len() + payload;
        if merged.frames == 1 {
            assert_eq!(len, run[0].bytes().len(), "as it came");
        } else {
            assert!(len <= MAX_LEN);
        }
        next += merged.frames;
    }
    assert_eq!(next, frames.len());
}
