//! What is foreseen from the beginning of a message. That it is verified, and comes right where it was
//! wrong, is shown with a guest in `worker::tests::direct`.

use super::*;
use crate::capture::Door;
use crate::offload::features::Offloads;
use crate::offload::packets::Packet;
use crate::time::Instant;
use crate::tunnel::moved::MovedMacs;
use crate::tunnel::neighbors::Neighbors;
use crate::tunnel::rx::Receiver;
use crate::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, VifKey, VnetId};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const BEHIND: Mac = Mac([2, 0, 0, 0, 0, 7]);
/// Encapsulation, Ethernet, IPv4, TCP with time stamps.
const HEADER: usize = 8 + 14 + 20 + 32;
const TRAIN: Train = Train {
    from: std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7),
    len: 3 * (HEADER + 4000) + HEADER + 100,
    segment: HEADER + 4000,
};

/// A datagram for the vif, with 4000 bytes of payload.
fn datagram() -> Vec<u8> {
    let mut frame = Packet::tcp(4000).build_partial();
    frame[..6].copy_from_slice(&OWN.0);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    [&[0x40, 1, 0, 0, 0, 0, 0, 42][..], &frame].concat()
}

/// What is foreseen, whether for other MACs than the vif's too, and with some that have left.
fn foresee_for(
    train: Train,
    datagram: &[u8],
    offloads: Offloads,
    (takes_unknown, departed): (bool, &[Mac]),
) -> Option<Plan> {
    let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: OWN };
    let own = ([192, 0, 2, 1], 4000).into();
    let receiver = Receiver { key, own, capabilities: Capabilities(7) };
    let (neighbors, mut moved) = (Neighbors::default(), MovedMacs::default());
    let now = Instant::from_millis(0);
    let (kinds, capabilities) = (EncapKinds::UDP, Capabilities::NONE);
    let coa = CareOf {
        addr: ([192, 0, 2, 2], 4000).into(),
        kinds,
        capabilities,
        longest: Longest::UNKNOWN,
    };
    for mac in departed {
        moved.insert(*mac, coa, coa.addr.ip(), Instant::from_millis(30_000));
    }
    let home = Home {
        receiver: &receiver,
        neighbors: &neighbors,
        takes_unknown,
        moved: &mut moved,
        door: &Door::default(),
        now,
    };
    let mut merger = Merger::new(offloads, MAX_DATAGRAMS, 65_550);
    let head = datagram.get(..HEAD_LEN).unwrap_or(datagram);
    Plan::foresee(train, head, &home, &mut merger)
}

fn foresee(train: Train, datagram: &[u8]) -> Option<Plan> {
    foresee_for(train, datagram, Offloads::ALL, (false, &[]))
}

#[test]
fn headers_and_payloads_of_a_train_are_known_from_its_first_datagram() {
    let plan = foresee(TRAIN, &datagram()).unwrap();
    let datagrams: Vec<_> = plan.datagrams().collect();
    assert_eq!(datagrams, [(HEADER, 4000), (HEADER, 4000), (HEADER, 4000), (HEADER, 100)]);
    assert_eq!((plan.train(), plan.headers_len()), (TRAIN, 4 * HEADER));
    assert_eq!((plan.frame_header(), plan.frame_len()), (HEADER - 8, HEADER - 8 + 12_100));
    assert_eq!([0, 1, 4, 9].map(|n| plan.payload_len(n)), [0, 4000, 12_100, 12_100]);
    // A last datagram that is shorter than the headers of the others.
    let short = Train { len: 2 * TRAIN.segment + 30, ..TRAIN };
    let plan = foresee(short, &datagram()).unwrap();
    assert_eq!(plan.datagrams().last(), Some((30, 0)));
    assert_eq!(plan.headers(&vec![0; plan.headers_len()]).last().map(<[u8]>::len), Some(30));
}

#[test]
fn what_is_no_stream_for_this_vif_is_not_foreseen() {
    let single = Train { len: TRAIN.segment, ..TRAIN };
    let many = Train { len: 65 * TRAIN.segment, ..TRAIN };
    let short = Train { segment: HEADER + FROM - 1, ..TRAIN };
    for train in [single, many, short] {
        assert_eq!(foresee(train, &datagram()), None, "{train:?}");
    }
    // Version, flags, vnet, destination: a group or somebody else; source: the vif itself.
    for (at, value) in [(0, 0x50), (1, 0), (1, 2), (1, 5), (7, 43), (8, 0xff), (13, 7), (19, 1)] {
        let mut datagram = datagram();
        datagram[at] = value;
        assert_eq!(foresee(TRAIN, &datagram), None, "{value:#x} at {at}");
    }
    for flags in [0x02, 0x04, 0x08] {
        let mut datagram = datagram();
        datagram[8 + 14 + 20 + 13] |= flags;
        assert_eq!(foresee(TRAIN, &datagram), None, "SYN, RST or PSH: {flags:#x}");
    }
    for len in 0..HEADER {
        assert_eq!(foresee(TRAIN, &datagram()[..len]), None, "cut to {len}");
    }
    assert_eq!(foresee_for(TRAIN, &datagram(), Offloads::GUEST_CSUM, (false, &[])), None);
}

#[test]
fn macs_behind_the_vif_are_of_it_unless_some_have_left() {
    let mut behind = datagram();
    behind[8..14].copy_from_slice(&BEHIND.0);
    let all = Offloads::ALL;
    assert!(foresee_for(TRAIN, &behind, all, (true, &[])).is_some());
    assert_eq!(foresee_for(TRAIN, &behind, all, (false, &[])), None);
    assert_eq!(foresee_for(TRAIN, &behind, all, (true, &[OWN])), None);
}

#[test]
fn a_hunch_lasts_until_it_deceives() {
    let mut hunch = Hunch::default();
    hunch.merged(20_000, 14);
    hunch.merged(9000, 1);
    assert!(!hunch.is_on());
    hunch.merged(62_000, 7);
    assert!(hunch.is_on());
    hunch.missed();
    assert!(!hunch.is_on());
    for pause in [PAUSE, 2 * PAUSE, 4 * PAUSE] {
        hunch.failed();
        (0..pause).for_each(|_| hunch.merged(62_000, 7));
        assert!(!hunch.is_on());
        hunch.merged(62_000, 7);
        assert!(hunch.is_on());
    }
    hunch.came_true();
    hunch.failed();
    (0..=PAUSE).for_each(|_| hunch.merged(62_000, 7));
    assert!(hunch.is_on());
    (0..100).for_each(|_| hunch.failed());
    assert_eq!(hunch.pause, PAUSE << MAX_DOUBLINGS);
}
