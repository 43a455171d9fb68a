//! Whatever stands beside what in a batch: each datagram begins with a header of ours where the
//! kernel cuts the message, messages are what the kernel takes, and all frames arrive whole.

use proptest::prelude::*;

use super::*;
use crate::sys::iovec::IoVec;
use crate::sys::mmsg::{MAX_SEGMENTS, Message};
use crate::wire::encap;

/// What a guest fills frames with: nothing that looks like a header of ours.
const FILL: u8 = 0xee;

#[derive(Clone, Debug)]
enum Kind {
    /// TCP of so many bytes, to be cut to this size.
    Tso(usize, u16),
    /// A frame with this many bytes behind its Ethernet header.
    Plain(usize),
}

fn kind() -> impl Strategy<Value = Kind> {
    let size = prop_oneof![Just(1390_u16), Just(1290), Just(1190), 40..1398_u16];
    prop_oneof![
        (1..65_000_usize, size).prop_map(|(payload, size)| Kind::Tso(payload, size)),
        // What fits a datagram, often equal.
        prop_oneof![Just(1400), Just(1000), 46..1400_usize].prop_map(Kind::Plain),
        // What leaves in pieces.
        (1500..64_500_usize).prop_map(Kind::Plain),
    ]
}

fn offer(driver: &mut Driver, kind: &Kind) {
    match *kind {
        Kind::Tso(payload, size) => {
            let mut frame = tcp_frame(payload);
            frame[TCP_HEADERS..].fill(FILL);
            offer_with_header(driver, tso_header(&frame, size), &frame);
        }
        Kind::Plain(len) => {
            let frame = [&PEER[..], &OWN, &[0x88, 0xb5], &vec![FILL; len]].concat();
            offer_with_header(driver, [0; 12], &frame);
        }
    }
}

/// Refuses messages and datagrams that are longer than Linux takes, and more datagrams than it takes.
pub(super) fn too_much(message: &Message<'_>) -> Option<i32> {
    let len: usize = message.parts.iter().map(IoVec::len).sum();
    let segment = usize::from(message.segment);
    let fits = len <= 65_507
        && (segment == 0 || len.div_ceil(segment) <= MAX_SEGMENTS)
        && (if segment == 0 { len } else { segment }) <= 1472;
    (!fits).then_some(libc::EPERM)
}

fn assert_all_leaves(kinds: &[Kind], short_ends: bool) {
    let all = Capabilities(CAPABLE.0 | Capabilities::FRAGMENT.0);
    let (mut worker, mut driver) = (offloading_worker(all), Driver::new());
    worker.tunnel.stager_mut().set_short_ends(short_ends);
    worker.tunnel.underlay_mut().refuse = Some(too_much);
    for kind in kinds {
        offer(&mut driver, kind);
    }
    transmit(&mut worker, &mut driver);
    let mut payload = 0;
    for (_, datagram) in &worker.tunnel.underlay().sent {
        let (header, _) = encap::Header::parse(datagram).unwrap();
        assert_eq!((header.vnet, datagram[0]), (worker.tunnel.place().receiver.key.vnet, 0x40));
        payload += datagram.iter().filter(|&&byte| byte == FILL).count();
    }
    let dropped = worker.counters.get(VifCounter::tx_drop_error)
        + worker.counters.get(VifCounter::tx_drop_too_big)
        + worker.counters.get(VifCounter::tx_drop_header);
    assert_eq!(dropped, 0);
    let frames = worker.counters.get(VifCounter::tx_frames);
    assert_eq!(frames, kinds.len() as u64);
    let sent: usize = kinds
        .iter()
        .map(|kind| match *kind {
            Kind::Tso(len, _) | Kind::Plain(len) => len,
        })
        .sum();
    // Checksums and numbers may hold the byte as well.
    assert!(
        (sent..sent + 8 * worker.tunnel.underlay().sent.len()).contains(&payload),
        "{sent} {payload}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn each_datagram_begins_with_our_header(
        kinds in prop::collection::vec(kind(), 1..12),
        short_ends: bool,
    ) {
        assert_all_leaves(&kinds, short_ends);
    }
}

/// A short end makes up for a longer datagram before it: on average they are as long as those of the
/// next frame, and a message cut there would show what the guest wrote as a header.
#[test]
fn datagrams_of_another_length_are_no_part_of_a_message() {
    assert_all_leaves(&[Kind::Tso(2580, 1390), Kind::Tso(2580, 1290)], false);
}

/// The buffer is all but full when the last of the pieces come, and a short datagram has to follow.
#[test]
fn pieces_leave_room_for_what_ends_their_message() {
    for less in (1000..4000).step_by(20) {
        let large = Kind::Tso(64_400 - less, 1390);
        let kinds = [large.clone(), large.clone(), large.clone(), large, Kind::Plain(64_400)];
        assert_all_leaves(&kinds, true);
        assert_all_leaves(&[&kinds[..], &[Kind::Plain(1000), Kind::Plain(1000)]].concat(), true);
    }
}
