use super::*;
use crate::offload::envelope::Envelope;
use crate::policy::Suite;
use crate::secret::Secret;
use crate::security::group::Salt;
use crate::security::sadb::sender_key;
use crate::sys::iovec::IoVec;
use crate::sys::mmsg::{MAX_MESSAGE_LEN, MAX_SEGMENTS};
use crate::tunnel::outgoing::{Batch, Route, Staged, Step};
use crate::tunnel::rx::Payload;
use crate::wire::encap::{self, Header};
use crate::wire::esp::{Spi, payload_room};
use crate::wire::{Capabilities, Longest};
use proptest::prelude::*;
use std::time::Duration;

const NOW: u64 = 1_767_225_600_000;
const PLAIN: Capabilities = Capabilities::NONE;
const BUNDLE: Capabilities = Capabilities::BUNDLE;

fn vnet() -> VnetId {
    VnetId::new(42).unwrap()
}

fn at(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 4000).into()
}

/// A sender at one address and a receiver at the other, with keys for this way.
pub(crate) fn pair_between(from: SocketAddr, to: SocketAddr) -> (Protection, Protection) {
    pair_with(Suite::AesGcm, from, to)
}

/// The same with keys for this cipher.
pub(crate) fn pair_with(
    suite: Suite,
    from: SocketAddr,
    to: SocketAddr,
) -> (Protection, Protection) {
    let mut protection = Protection::of_vif(vnet(), suite.level());
    let mut receiver = Protection::of_vif(vnet(), suite.level());
    let (mut one, mut two) = (protection().unwrap(), receiver().unwrap());
    let (secret, hour) = (Secret::new([5; 32]), Duration::from_secs(3600));
    let (spi, key) = (Spi::of(7, 3), sender_key(&secret, 3));
    one.outbound.insert(to, spi, suite, &key, hour, Instant::ZERO);
    two.inbound.insert(7, suite, secret, hour, Instant::ZERO);
    let group = Secret::new([6; 32]);
    let salt = Salt { spi: 9, random: 7 };
    one.outbound.set_group(group.clone(), suite, vnet(), from, salt);
    two.inbound.set_group(vec![(suite, group)]);
    for protection in [&mut one, &mut two] {
        protection.set_clock(Now { mono: Instant::ZERO, wall_ms: NOW });
    }
    (one, two)
}

fn pair() -> (Protection, Protection) {
    pair_between(at(1), at(2))
}

fn route(to: SocketAddr, is_group: bool, capabilities: Capabilities) -> Route {
    Route { to, is_group, is_redirected: false, capabilities, longest: Longest::UNKNOWN }
}

fn batch(frames: &[Vec<u8>], route: Route) -> Batch<'_> {
    let mut batch = Batch::default();
    for frame in frames {
        let at = batch.pieces.len();
        batch.pieces.push(IoVec::from_slice(frame));
        let outgoing = batch.add().unwrap();
        outgoing.route = route;
        outgoing.addresses = *frame.first_chunk().unwrap();
        (outgoing.len, outgoing.pieces) = (frame.len(), at..at + 1);
    }
    batch
}

/// Messages with their bytes.
type Messages = Vec<(Staged, Vec<u8>)>;

/// Stages frames, for packets of at most so many bytes, and seals them.
fn seal(
    one: &mut Protection,
    frames: &[Vec<u8>],
    route: Route,
    (max_packet, short_ends): (usize, bool),
    counters: &VifCounters,
) -> Messages {
    let batch = batch(frames, route);
    let mut stager = Stager::new(vnet());
    stager.set_envelope(Envelope::Sealed);
    stager.set_short_ends(short_ends);
    let (mut at, mut messages) = (0, Vec::new());
    while at < frames.len() {
        match stager.stage(&batch, at, payload_room(max_packet)) {
            Step::Done(count) => at += count,
            Step::Full => flush(one, &mut stager, &batch, counters, &mut messages),
            Step::Refused(counter) => panic!("{counter:?}"),
        }
    }
    flush(one, &mut stager, &batch, counters, &mut messages);
    messages
}

fn flush(
    one: &mut Protection,
    stager: &mut Stager,
    batch: &Batch<'_>,
    counters: &VifCounters,
    messages: &mut Messages,
) {
    one.seal(stager, Instant::ZERO, |_, counter, lost| counters.add(counter, lost));
    for staged in stager.staged() {
        let (mut parts, mut bytes) = (Vec::new(), Vec::new());
        stager.parts(staged, batch, &mut parts);
        parts.iter().for_each(|part| part.append_to(&mut bytes));
        messages.push((staged.clone(), bytes));
    }
    stager.clear();
}

/// The frames in messages that are opened, and what holds for every message.
fn open(two: &Protection, messages: &Messages, port: Port, short_ends: bool) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (staged, bytes) in messages {
        let mut bytes = bytes.clone();
        assert!(bytes.len() <= MAX_MESSAGE_LEN && staged.datagrams <= MAX_SEGMENTS);
        let size = if staged.segment == 0 { bytes.len() } else { staged.segment.into() };
        assert_eq!(bytes.chunks(size).count(), staged.datagrams);
        let is_short = !bytes.len().is_multiple_of(size);
        assert!(!short_ends || staged.datagrams == 1 || is_short, "{staged:?}");
        let mut opened = Vec::new();
        let counters = VifCounters::default();
        let received = (at(1), &mut bytes[..], size);
        two.opening(Instant::ZERO).open_message(port, at(2), received, &mut opened, &counters);
        assert_eq!(opened.len(), staged.datagrams);
        for inner in opened {
            let (Header { flags, .. }, payload) = Header::parse(&bytes[inner]).unwrap();
            match Payload::open(flags, payload).unwrap() {
                Payload::Frame(entry) => frames.push(entry.frame.to_vec()),
                Payload::Bundle(all) => frames.extend(all.map(|e| e.unwrap().frame.to_vec())),
                other => panic!("{other:?}"),
            }
        }
    }
    frames
}

fn frames(lens: &[usize]) -> Vec<Vec<u8>> {
    let frame = |(n, len): (usize, &usize)| (0..*len).map(|at| (n * 7 + at) as u8).collect();
    lens.iter().enumerate().map(frame).collect()
}

#[test]
fn what_fits_a_message_is_one_when_sealed() {
    let (mut one, two) = pair();
    let counters = VifCounters::default();
    let mut check = |lens: &[usize], capabilities, short_ends, messages| {
        let frames = frames(lens);
        let route = route(at(2), false, capabilities);
        let sealed = seal(&mut one, &frames, route, (1472, short_ends), &counters);
        assert_eq!(sealed.len(), messages, "{lens:?} {short_ends}");
        assert!(sealed.iter().all(|(staged, _)| usize::from(staged.segment) <= 1472));
        assert!(open(&two, &sealed, Port::Own, short_ends) == frames);
        let counted: u64 = sealed.iter().map(|(staged, _)| staged.frames).sum();
        assert_eq!(counted, frames.len() as u64, "counted once");
    };
    check(&[100], PLAIN, false, 1);
    check(&[1000, 1000, 1000], PLAIN, false, 1);
    check(&[1000, 1000, 999], BUNDLE, false, 1);
    check(&[1400; 60], PLAIN, false, 2);
    check(&[64; 250], BUNDLE, false, 1);
    // The last is one byte shorter, but as long when it is padded.
    check(&[994, 994, 993], BUNDLE, true, 1);
    check(&[994, 994, 993], PLAIN, true, 3);
    check(&[64; 250], BUNDLE, true, 1);
    check(&[14; 3], PLAIN, true, 3);
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened(
        lens in prop::collection::vec(14usize..1400, 1..250), small in any::<bool>(),
        is_capable in any::<bool>(), short_ends in any::<bool>(),
    ) {
        let (mut one, two) = pair();
        let lens: Vec<usize> = lens.iter().map(|l| if small { 14 + l % 90 } else { *l }).collect();
        let frames = frames(&lens);
        let capabilities = if is_capable { BUNDLE } else { PLAIN };
        let counters = VifCounters::default();
        let route = route(at(2), false, capabilities);
        let sealed = seal(&mut one, &frames, route, (1472, short_ends), &counters);
        prop_assert!(open(&two, &sealed, Port::Own, short_ends) == frames);
    }
}

#[test]
fn group_frames_have_keys_of_their_own() {
    let (mut one, two) = pair();
    let (frames, counters) = (frames(&[100]), VifCounters::default());
    let sealed = seal(&mut one, &frames, route(at(9), true, PLAIN), (1472, false), &counters);
    assert!(open(&two, &sealed, Port::Group, false) == frames);
    let again = &sealed[0].1;
    let opening = two.opening(Instant::ZERO);
    let own = opening.open(Port::Own, at(1), &mut again.clone());
    assert_eq!(own, Err(VifCounter::rx_drop_spi));
    let replayed = opening.open(Port::Group, at(1), &mut again.clone());
    assert_eq!(replayed, Err(VifCounter::rx_drop_replay));
}

#[test]
fn the_wall_clock_goes_on_between_looks_at_it() {
    let (mut one, _) = pair();
    one.set_clock(Now { mono: Instant::from_millis(5000), wall_ms: NOW });
    assert_eq!(one.wall_ms(Instant::from_millis(7000)), NOW + 2000);
    one.set_clock(Now { mono: Instant::from_millis(8000), wall_ms: NOW - 9000 });
    assert_eq!(one.wall_ms(Instant::from_millis(8001)), NOW - 8999, "set back");
}

#[test]
fn after_a_move_nothing_is_sealed_with_a_key_of_the_old_name() {
    let (mut one, two) = pair();
    let datagram = [0x40; encap::LEN + 99];
    assert!(one.seal_one(at(2), &datagram).is_some());
    one.move_away();
    assert_eq!(one.seal_one(at(2), &datagram), None);
    let to_group = one.seal_one_to_group(&datagram, Instant::ZERO);
    assert_eq!(to_group, Err(VifCounter::tx_drop_no_key));
    // The group's key is told anew, for the new name: it counts from there alone.
    let salt = Salt { spi: 10, random: 8 };
    one.outbound.set_group(Secret::new([6; 32]), Suite::AesGcm, vnet(), at(3), salt);
    let packet = one.seal_one_to_group(&datagram, Instant::ZERO).unwrap();
    let opening = two.opening(Instant::ZERO);
    let from = |host| opening.open(Port::Group, at(host), &mut packet.clone());
    assert_eq!(from(1), Err(VifCounter::rx_drop_auth));
    assert!(from(3).is_ok());
}

#[test]
fn without_a_key_a_message_does_not_leave_and_others_do() {
    let (mut one, two) = pair();
    let (frames, counters) = (frames(&[500, 600, 700]), VifCounters::default());
    let mut batch = batch(&frames, route(at(2), false, PLAIN));
    batch.frames[1].route.to = at(3);
    let mut stager = Stager::new(vnet());
    stager.set_envelope(Envelope::Sealed);
    (0..3).for_each(|n| assert_eq!(stager.stage(&batch, n, 1000), Step::Done(1)));
    let mut messages = Vec::new();
    flush(&mut one, &mut stager, &batch, &counters, &mut messages);
    assert!(open(&two, &messages, Port::Own, false) == [&frames[0][..], &frames[2]]);
    assert_eq!(counters.get(VifCounter::tx_drop_no_key), 1);
}

#[test]
fn what_did_not_leave_is_opened_by_its_sender() {
    let (mut one, two) = pair();
    let datagram = [0x40; encap::LEN + 99];
    let packet = one.seal_one(at(2), &datagram).unwrap();
    (0..10).for_each(|_| drop(one.seal_one(at(2), &datagram)));
    let mut again = packet.clone();
    let inner = one.reopen(at(2), &mut again).unwrap();
    assert_eq!(again[inner], datagram);
    assert!(one.reopen(at(3), &mut packet.clone()).is_none(), "another's key");
    let mut altered = packet.clone();
    altered[HEAD_LEN] ^= 1;
    assert!(one.reopen(at(2), &mut altered).is_none());
    // It is as good as before for whom it was for.
    assert!(two.opening(Instant::ZERO).open(Port::Own, at(1), &mut packet.clone()).is_ok());
}

#[test]
fn what_is_not_opened_has_a_name() {
    let (_, two) = pair();
    let opening = two.opening(Instant::ZERO);
    let open = |bytes: &[u8]| opening.open(Port::Own, at(1), &mut bytes.to_vec());
    assert_eq!(open(&[0x40; 60]), Err(VifCounter::rx_drop_plaintext));
    assert_eq!(open(&[0x56; 60]), Err(VifCounter::rx_drop_version));
    assert_eq!(open(&[]), Err(VifCounter::rx_drop_truncated));
    assert_eq!(open(&[0x80; 30]), Err(VifCounter::rx_drop_truncated));
    assert_eq!(open(&[0xff; 60]), Err(VifCounter::rx_drop_spi));
    let known = [&Spi::of(7, 3).0.to_be_bytes()[..], &[0, 0, 0, 1], &[9; 52]].concat();
    assert_eq!(open(&known), Err(VifCounter::rx_drop_auth));
    assert!(Protection::of_vif(vnet(), Level::None)().is_none());
}

/// Good ones, one of another kind, one altered, one again, of two senders in turns.
#[test]
fn each_datagram_of_a_message_is_judged_by_itself() {
    let (mut one, two) = pair();
    let (mut other, _) = pair();
    let key = sender_key(&Secret::new([5; 32]), 4);
    let hour = Duration::from_secs(3600);
    other.outbound.insert(at(2), Spi::of(7, 4), Suite::AesGcm, &key, hour, Instant::ZERO);
    let mut packets = Vec::new();
    for n in 0..4 {
        for sender in [&mut one, &mut other] {
            packets.push(sender.seal_one(at(2), &[n; 50]).unwrap());
        }
    }
    let size = packets[0].len();
    packets.insert(3, vec![0x40; size]);
    packets[5][HEAD_LEN] ^= 1;
    packets.push(packets[0].clone());
    packets.push(packets[6][..30].to_vec());
    let mut bytes = packets.concat();
    let (mut opened, counters) = (Vec::new(), VifCounters::default());
    let received = (at(1), &mut bytes[..], size);
    let opening = two.opening(Instant::ZERO);
    opening.open_message(Port::Own, at(2), received, &mut opened, &counters);
    let good: Vec<usize> = opened.iter().map(|inner| inner.start / size).collect();
    assert_eq!(good, [0, 1, 2, 4, 6, 7, 8]);
    assert!(opened.iter().all(|inner| inner.len() == 50));
    for counter in [
        VifCounter::rx_drop_plaintext,
        VifCounter::rx_drop_auth,
        VifCounter::rx_drop_replay,
        VifCounter::rx_drop_truncated,
    ] {
        assert_eq!(counters.get(counter), 1, "{counter:?}");
    }
    let drops = counters.readings().map(|r| r.value).sum::<u64>();
    assert_eq!(drops, 4);
}
