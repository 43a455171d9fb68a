//! Streams in long segments: the kernel copies them straight into the guest's buffers.
//!
//! ```text
//!     guest 1      guest 2
//!        |            |
//!      host a       host b       MTU 9000
//! ```

use std::time::Duration;

use etherparse::{SlicedPacket, TransportSlice};
use vnet::metrics::VifCounter;

use crate::driver::{HEADER_LEN, Layout, Options};
use crate::nic::{Nic, frame, mac, vif};
use crate::support::step;
use crate::{Net, SOON};

/// Payload of a large TCP frame, and of each of its segments.
const CHUNK: usize = 60_000;
const SEGMENT: u16 = 8900;
/// Large frames that are sent one after the other, and at once.
const ALONE: u32 = 50;
const TOGETHER: u32 = 10;
/// Features of a driver with large frames in both directions (virtio 1.2, 5.1.3): CSUM, GUEST_CSUM,
/// GUEST_TSO4, HOST_TSO4.
const OFFLOADS: u64 = 1 | 1 << 1 | 1 << 7 | 1 << 11;

fn start(net: &Net, host: u8) -> Nic {
    let options = Options {
        layout: Layout::One,
        queue_size: 256,
        tx_buffer: 66_000,
        rx_buffer: 4096,
        offloads: OFFLOADS,
        ..Options::default()
    };
    let name = format!("g{host}");
    Nic::start_with(&name, vif(42, host + 1), &net.varpds[usize::from(host)], options, &[])
}

fn byte(position: usize) -> u8 {
    (position.wrapping_mul(31) >> 5) as u8
}

/// The n-th large TCP frame from guest 1 to 2, and the virtio-net header that asks for segments.
fn large(n: u32) -> ([u8; HEADER_LEN], Vec<u8>) {
    let start = n as usize * CHUNK;
    let payload: Vec<u8> = (start..start + CHUNK).map(byte).collect();
    let ip = etherparse::PacketBuilder::ethernet2(mac(1), mac(2))
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(12_345, 80, start as u32, 65_535)
        .ack(1);
    let mut frame = Vec::with_capacity(ip.size(CHUNK));
    ip.write(&mut frame, &payload).unwrap();
    // NEEDS_CSUM, TCPV4, headers of 54 bytes; the checksum 16 behind byte 34.
    let [low, high] = SEGMENT.to_le_bytes();
    ([1, 1, 54, 0, low, high, 34, 0, 16, 0, 0, 0], frame)
}

/// Takes frames until the stream has come so far; each is its next part, as a guest must find it.
fn take_stream(receiver: &mut Nic, position: &mut usize, until: usize) {
    while *position < until {
        let (header, frame) = receiver.driver.recv_packet(0, SOON).expect("the stream goes on");
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("{frame:x?}") };
        assert_eq!((&frame[..6], &frame[6..12]), (&mac(2)[..], &mac(1)[..]));
        assert_eq!(tcp.sequence_number() as usize, *position, "in order");
        let expected = (*position..*position + tcp.payload().len()).map(byte);
        assert!(tcp.payload().iter().copied().eq(expected), "every byte behind {position}");
        let is_large = tcp.payload().len() > usize::from(SEGMENT);
        assert_eq!(header[..2], [1, u8::from(is_large)], "partial checksum, TCPV4");
        if is_large {
            assert_eq!(header[4..6], SEGMENT.to_le_bytes());
        }
        *position += tcp.payload().len();
    }
    assert_eq!(*position, until);
}

#[test]
fn a_stream_in_long_segments_goes_straight_into_the_guests_buffers() {
    let Some(net) = Net::jumbo("a stream in long segments", 2) else { return };
    let (mut one, mut two) = (start(&net, 0), start(&net, 1));
    one.introduce(&mut two);
    let mut position = 0;
    for n in 0..ALONE {
        let (header, frame) = large(n);
        assert!(one.driver.queue_packet(0, &header, &frame));
        one.driver.flush(0);
        take_stream(&mut two, &mut position, (n as usize + 1) * CHUNK);
    }
    let alone = two.counters(&net.varpds[1]);
    let direct = alone.get(VifCounter::rx_direct_frames);
    step(&format!("{direct} of {ALONE} large frames went straight into the guest's memory"));
    // The first tells that there is a stream; the kernel may part another.
    assert!(direct >= u64::from(ALONE) / 2, "{alone:?}");

    // Among others, and more at once than one wake-up handles.
    for n in ALONE..ALONE + 3 * TOGETHER {
        let (header, bytes) = large(n);
        assert!(one.driver.queue_packet(0, &header, &bytes));
        if n % TOGETHER == TOGETHER - 1 {
            one.driver.queue_frame(0, &frame(mac(2), mac(1), n, 100));
            one.driver.flush(0);
            take_stream(&mut two, &mut position, (n as usize + 1) * CHUNK);
            assert_eq!(two.receive(mac(1)), n, "behind the stream");
        }
    }
    assert!(two.driver.recv_frame(Duration::ZERO).is_none());
    let counters = two.counters(&net.varpds[1]);
    assert!(counters.get(VifCounter::rx_direct_frames) > direct, "{counters:?}");
    let own = counters.get(VifCounter::rx_drop_own);
    assert_eq!(counters.sum("rx_drop_"), own, "{counters:?}");
}
