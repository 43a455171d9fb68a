//! The bench accepts what its stations send, and nothing else: figures of traffic that nobody has
//! checked would say nothing.

#![expect(dead_code, reason = "the bench uses the rest")]

#[path = "../benches/tunnel/arrivals.rs"]
mod arrivals;
#[path = "../benches/tunnel/frames.rs"]
mod frames;
#[path = "../benches/tunnel/pattern.rs"]
mod pattern;

use arrivals::{Arrival, Stretch};
use frames::{Flow, Load, Offload, Packets, VIRTIO_LEN};
use pattern::Pattern;

const FLOW: Flow = Flow { from: 1, to: 2, port: 5001 };
const LOADS: [Load; 4] = [
    Load::Stream { mtu: 1450 },
    Load::Stream { mtu: 8950 },
    Load::Datagrams { frame: 64 },
    Load::Datagrams { frame: 1400 },
];
const NONE: Offload = Offload { checksum: false, tso: false };
const ALL: Offload = Offload { checksum: true, tso: true };

/// The packet after `before` others, in one piece.
fn packet(load: Load, offload: Offload, before: u64, pattern: &Pattern) -> (Vec<u8>, u64) {
    let mut packets = Packets::new(FLOW, load, offload);
    (0..before).for_each(|_| packets.sent());
    let at = packets.position();
    let packet = packets.next(pattern);
    ([packet.head, pattern.at(packet.place, packet.len)].concat(), at)
}

/// What a receiver that is at `expected` takes from a packet; none if it does not.
fn take(pieces: &[&[u8]], expected: u64, pattern: &Pattern) -> Option<Vec<Stretch>> {
    let (port, arrival) = Arrival::of(pieces, FLOW.to)?;
    let mut taken = Vec::new();
    let verdict = arrival.verify(pattern, expected, &mut |stretch| taken.push(stretch));
    (port == FLOW.port && verdict.is_ok()).then_some(taken)
}

#[test]
fn what_is_sent_is_accepted_where_it_belongs() {
    let pattern = Pattern::new();
    for load in LOADS {
        for offload in [NONE, ALL] {
            // The last is far enough for the 32 bits of a TCP position to have wrapped.
            for before in [0, 1, 77, 4_000_000] {
                let (bytes, at) = packet(load, offload, before, &pattern);
                let taken = take(&[&bytes], at, &pattern);
                let taken = taken.unwrap_or_else(|| panic!("{load:?} {offload:?} {before}"));
                assert_eq!(taken.iter().map(|stretch| stretch.at).collect::<Vec<_>>(), [at]);
                let in_pieces: Vec<&[u8]> = bytes.chunks(1001).collect();
                assert_eq!(take(&in_pieces, at, &pattern), Some(taken));
            }
        }
    }
}

#[test]
fn no_altered_byte_is_accepted() {
    let pattern = Pattern::new();
    for load in LOADS {
        let (bytes, at) = packet(load, NONE, 5, &pattern);
        // The source MAC is the backend's business: it stamps it.
        for place in (VIRTIO_LEN..VIRTIO_LEN + 6).chain(VIRTIO_LEN + 12..bytes.len()) {
            let mut altered = bytes.clone();
            altered[place] ^= 0x10;
            assert_eq!(take(&[&altered], at, &pattern), None, "{load:?}, byte {place}");
        }
        let shorter = &bytes[..bytes.len() - 1];
        assert_eq!(take(&[shorter], at, &pattern), None, "{load:?}, cut");
    }
}

#[test]
fn payload_is_compared_also_where_no_checksum_protects_it() {
    let pattern = Pattern::new();
    for load in LOADS {
        let (bytes, at) = packet(load, ALL, 5, &pattern);
        for place in [bytes.len() - 1, bytes.len() - 9] {
            let mut altered = bytes.clone();
            altered[place] ^= 1;
            assert_eq!(take(&[&altered], at, &pattern), None, "{load:?}, byte {place}");
        }
    }
}

#[test]
fn a_run_of_datagrams_is_taken_apart() {
    let pattern = Pattern::new();
    let (first, _) = packet(Load::Datagrams { frame: 64 }, ALL, 0, &pattern);
    let (second, _) = packet(Load::Datagrams { frame: 64 }, ALL, 1, &pattern);
    let payload_at = VIRTIO_LEN + frames::TRANSPORT + frames::UDP_LEN;
    let payload = first.len() - payload_at;
    let mut run = [&first[..], &second[payload_at..]].concat();
    run[1] = frames::GSO_UDP_L4;
    run[4..6].copy_from_slice(&(payload as u16).to_le_bytes());
    let ip = VIRTIO_LEN + frames::ETHERNET_LEN;
    let len = run.len() - ip;
    run[ip + 2..ip + 4].copy_from_slice(&(len as u16).to_be_bytes());
    run[ip + 10..ip + 12].fill(0);
    let checksum = !pattern::fold(pattern::sum(&run[ip..ip + frames::IP_LEN]));
    run[ip + 10..ip + 12].copy_from_slice(&checksum.to_be_bytes());
    let udp = ip + frames::IP_LEN;
    let pseudo = frames::pseudo_sum(&run[ip..udp], frames::UDP, len - frames::IP_LEN);
    run[udp + 6..udp + 8].copy_from_slice(&pattern::fold(pseudo).to_be_bytes());
    let taken = take(&[&run], 0, &pattern).expect("the run is accepted");
    assert_eq!(taken.iter().map(|stretch| stretch.at).collect::<Vec<_>>(), [0, 1]);
}
