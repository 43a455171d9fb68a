//! Whatever stands beside what in a batch, on a secured vnet: each datagram opens at its receiver, all
//! frames are there and in order, each datagram is sealed once, and no number serves twice.

use proptest::prelude::*;

use super::messages::too_much;
use super::*;
use crate::policy::Suite;
use crate::sys::mmsg::Message;
use crate::tunnel::protect::Protection;
use crate::tunnel::protect::tests::pair_with;
use crate::tunnel::rx::Payload;
use crate::wire::esp::Head;

const ALL: Capabilities = crate::vif::link::CAPABILITIES;
const EVERYBODY: [u8; 6] = [0xff; 6];

/// What a guest sends.
#[derive(Clone, Debug)]
enum Kind {
    /// TCP of so many bytes to the peer, to be cut to this size.
    Tso(usize, u16),
    /// A frame with this many bytes behind its Ethernet header, to the peer or to everybody.
    Plain(usize, [u8; 6]),
}

fn kind() -> impl Strategy<Value = Kind> {
    let size = prop_oneof![Just(1364_u16), Just(1300), Just(1190), 40..1460_u16];
    let to = prop_oneof![4 => Just(PEER), 1 => Just(EVERYBODY)];
    let len = prop_oneof![Just(1400), Just(1000), Just(60), 46..1400_usize];
    prop_oneof![
        (1..65_000_usize, size).prop_map(|(payload, size)| Kind::Tso(payload, size)),
        (len, to).prop_map(|(len, to)| Kind::Plain(len, to)),
        // What leaves in pieces.
        (1430..64_500_usize).prop_map(|len| Kind::Plain(len, PEER)),
    ]
}

/// The n-th frame, all of whose payload is its own.
fn frame_of(n: usize, kind: &Kind) -> Vec<u8> {
    let mut frame = match *kind {
        Kind::Tso(payload, _) => tcp_frame(payload),
        Kind::Plain(len, to) => [&to[..], &OWN, &[0x88, 0xb5], &vec![0; len]].concat(),
    };
    let begin = if matches!(kind, Kind::Tso(..)) { TCP_HEADERS } else { 14 };
    for (at, byte) in frame[begin..].iter_mut().enumerate() {
        *byte = (n * 83 + at * 7 + at / 256) as u8;
    }
    frame
}

fn offer(driver: &mut Driver, kind: &Kind, frame: &[u8]) {
    let header = match *kind {
        Kind::Tso(_, size) => tso_header(frame, size),
        Kind::Plain(..) => [0; 12],
    };
    offer_with_header(driver, header, frame);
}

/// What a kernel refuses that does not cut messages.
fn more_than_one(message: &Message<'_>) -> Option<i32> {
    if message.segment > 0 { Some(libc::EIO) } else { too_much(message) }
}

/// What there is to be seen of a sender.
#[derive(Default)]
struct Sent {
    /// Frames, by whether they went to the group.
    frames: [Vec<Vec<u8>>; 2],
    /// Numbers in the order in which they were sent, likewise.
    numbers: [Vec<u64>; 2],
}

/// Opens what was sent as its receivers do.
fn opened(sent: &[(SocketAddr, Vec<u8>)], two: &Protection) -> Sent {
    let receiver = Receiver {
        key: VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac(PEER) },
        own: addr(7),
        capabilities: ALL,
    };
    let (mut all, mut joined) = (Sent::default(), Vec::new());
    for (to, datagram) in sent {
        let (port, group) = match to.port() {
            7 => (Port::Own, 0),
            _ => (Port::Group, 1),
        };
        let Head { sequence, iv, .. } = Head::parse(datagram).unwrap();
        let iv = u64::from_be_bytes(iv);
        // That of a group frame's IV is hidden by random bits of its start.
        let number = u64::from(sequence);
        assert!(group == 1 || iv == number);
        all.numbers[group].push(number);
        let mut bytes = datagram.clone();
        let inner = two.opening(Instant::ZERO).open(port, addr(1), &mut bytes).unwrap();
        let frames = &mut all.frames[group];
        match receiver.accept(port, addr(1), &bytes[inner]).unwrap() {
            Payload::Piece(flags, piece) => {
                assert_eq!(piece.offset, joined.len(), "pieces of a frame follow each other");
                joined.extend_from_slice(piece.bytes);
                if piece.is_last {
                    take(Payload::open(flags, &mem::take(&mut joined)).unwrap(), frames);
                }
            }
            payload => take(payload, frames),
        }
    }
    assert!(joined.is_empty());
    all
}

fn take(payload: Payload<'_>, frames: &mut Vec<Vec<u8>>) {
    match payload {
        Payload::Frame(entry) => frames.push(entry.frame.to_vec()),
        Payload::Bundle(all) => frames.extend(all.map(|entry| entry.unwrap().frame.to_vec())),
        Payload::Piece(..) | Payload::Handover(_) | Payload::Echo(_) => panic!("a frame"),
    }
}

/// The segments of a frame are in front of `arrived`: takes them out.
fn take_segments(frame: &[u8], arrived: &mut impl Iterator<Item = Vec<u8>>) {
    let sequence = |frame: &[u8]| u32::from_be_bytes(*frame[38..].first_chunk().unwrap());
    let mut at = 0;
    while at < frame.len() - TCP_HEADERS {
        let segment = arrived.next().unwrap();
        assert_eq!((&segment[..14], &segment[26..38]), (&frame[..14], &frame[26..38]));
        assert_eq!(sequence(&segment), sequence(frame).wrapping_add(at as u32));
        let payload = &segment[TCP_HEADERS..];
        assert!(!payload.is_empty() && frame[TCP_HEADERS + at..].starts_with(payload));
        at += payload.len();
    }
}

/// How the kernel and the path are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Under {
    /// As known.
    Known,
    /// Messages of one datagram only leave.
    Single,
    /// The path is narrower than known. A frame that is cut while that shows is cut in two ways, so
    /// all is to leave at once.
    Narrow,
}

/// About as many bytes are staged for a frame, and not more.
fn staged_len(kind: &Kind) -> usize {
    let (len, size) = match *kind {
        Kind::Tso(payload, size) => (payload, usize::from(size.min(1300))),
        Kind::Plain(len, _) => (len, 1300),
    };
    len + len.div_ceil(size) * 140
}

fn assert_all_opens(kinds: &[Kind], suite: Suite, short_ends: bool, under: Under) {
    let (one, two) = pair_with(suite, addr(1), addr(7));
    let (mut worker, mut driver) = (offloading_worker(ALL), Driver::new());
    worker.tunnel.set_protection(Some(one));
    worker.tunnel.stager_mut().set_short_ends(short_ends);
    worker.tunnel.underlay_mut().refuse =
        Some(if under == Under::Single { more_than_one } else { too_much });
    worker.tunnel.underlay_mut().max_datagram = (under == Under::Narrow).then_some(1200);
    let frames: Vec<Vec<u8>> =
        kinds.iter().enumerate().map(|(n, kind)| frame_of(n, kind)).collect();
    for (kind, frame) in kinds.iter().zip(&frames) {
        offer(&mut driver, kind, frame);
    }
    transmit(&mut worker, &mut driver);
    let drops: Vec<(&str, u64)> = worker
        .counters
        .readings()
        .filter(|r| r.name.contains("_drop_") && r.value > 0)
        .map(|r| (r.name, r.value))
        .collect();
    assert_eq!(drops, []);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), kinds.len() as u64);

    let Sent { frames: [own, group], numbers } = opened(&worker.tunnel.underlay().sent, &two);
    let (mut own, mut group) = (own.into_iter(), group.into_iter());
    for (kind, frame) in kinds.iter().zip(&frames) {
        match kind {
            Kind::Tso(..) => take_segments(frame, &mut own),
            Kind::Plain(_, PEER) => assert!(own.next().as_ref() == Some(frame)),
            Kind::Plain(..) => assert!(group.next().as_ref() == Some(frame)),
        }
    }
    assert_eq!((own.next(), group.next()), (None, None), "and nothing else");
    for mut numbers in numbers {
        let count = numbers.len() as u64;
        if under != Under::Narrow {
            assert_eq!(numbers, (1..=count).collect::<Vec<_>>(), "each is sealed once");
        }
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len() as u64, count, "no number serves twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn each_datagram_opens_to_what_was_sent(
        kinds in prop::collection::vec(kind(), 1..12),
        short_ends: bool,
        suite in prop::sample::select(
            vec![Suite::AesGcm, Suite::AesGmac, Suite::ChaCha20Poly1305],
        ),
        under in prop::sample::select(vec![Under::Known, Under::Single, Under::Narrow]),
    ) {
        // Of the group's path nobody learns.
        let to_all = kinds.iter().any(|k| matches!(k, Kind::Plain(1100.., EVERYBODY)));
        let at_once = kinds.iter().map(staged_len).sum::<usize>() < 250_000;
        let under = match under {
            Under::Narrow if to_all || !at_once => Under::Known,
            under => under,
        };
        assert_all_opens(&kinds, suite, short_ends, under);
    }
}
