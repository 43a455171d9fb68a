//! How frames are handed to the kernel, and what becomes of them when it refuses.

use super::*;
use crate::offload::bundle::Entries;
use crate::sys::iovec::IoVec;
use crate::sys::mmsg::{MAX_PARTS, MAX_SEGMENTS, Message};
use crate::sys::sockopt;
use crate::underlay::groups::Groups;
use crate::underlay::udp::UdpUnderlay;

/// Datagrams that the worker sent since the last call.
fn sent(worker: &mut Worker<MemoryUnderlay>) -> Vec<(SocketAddr, Vec<u8>)> {
    worker.tunnel.underlay_mut().messages = 0;
    mem::take(&mut worker.tunnel.underlay_mut().sent)
}

fn len_of(message: &Message<'_>) -> usize {
    message.parts.iter().map(IoVec::len).sum()
}

fn datagrams_of(message: &Message<'_>) -> usize {
    len_of(message).div_ceil(usize::from(message.segment).max(1)).max(1)
}

/// Offers a frame in pieces of these lengths, the last as long as it takes.
fn offer_in_pieces(driver: &mut Driver, header: [u8; 12], frame: &[u8], lens: &[usize]) {
    let bytes = [&header[..], frame].concat();
    let mut rest = bytes.as_slice();
    let mut buffers = Vec::new();
    for &len in lens {
        let (piece, more) = rest.split_at(len);
        buffers.push((piece, piece.len(), 0));
        rest = more;
    }
    buffers.push((rest, rest.len(), 0));
    // A buffer has room for a page; what is longer goes on behind it, so only the last may be.
    driver.offer(&buffers);
    driver.data += rest.len() as u64;
}

/// What leaves at a large MTU, with payload scattered from so many bytes on.
fn leaves(scatter_from: usize, capabilities: Capabilities) -> (Vec<(SocketAddr, Vec<u8>)>, usize) {
    let (mut worker, mut driver) = (offloading_worker(capabilities), Driver::new());
    worker.tunnel.place_mut().max_datagram = 8972;
    worker.tunnel.stager_mut().scatter_from(scatter_from);
    let large = tcp_frame(60_000);
    for lens in [&[][..], &[12], &[12, 66], &[5, 30, 100, 4000, 1]] {
        offer_in_pieces(&mut driver, tso_header(&large, 8000), &large, lens);
    }
    transmit(&mut worker, &mut driver);
    for len in [8000, 8000, 7000, 8000] {
        let long = tcp_frame(len);
        offer_in_pieces(&mut driver, partial_header(&long), &long, &[12, 66]);
    }
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 8);
    let messages = worker.tunnel.underlay().messages;
    (sent(&mut worker), messages)
}

#[test]
fn what_is_scattered_leaves_as_what_is_staged() {
    for capabilities in [CAPABLE, Capabilities::NONE] {
        let (staged, messages) = leaves(usize::MAX, capabilities);
        assert_eq!(staged.len(), 4 * 8 + 4);
        assert_eq!(messages, 4 + 2);
        for scatter_from in [0, 1000, 7990, 8001] {
            let (scattered, as_many) = leaves(scatter_from, capabilities);
            assert!(scattered == staged, "from {scatter_from}");
            // Frames that are scattered and those that are not are in messages of their own.
            assert!(as_many <= messages + 1);
        }
    }
}

#[test]
fn payload_is_not_copied_where_the_receiver_completes_checksums() {
    fn is_copied(message: &Message<'_>) -> Option<i32> {
        (message.parts.len() == 1).then_some(libc::EPERM)
    }
    for (capabilities, copied) in [(CAPABLE, 0), (Capabilities::NONE, 1)] {
        let (mut worker, mut driver) = (offloading_worker(capabilities), Driver::new());
        worker.tunnel.place_mut().max_datagram = 8972;
        worker.tunnel.underlay_mut().refuse = Some(is_copied);
        let large = tcp_frame(30_000);
        offer_with_header(&mut driver, tso_header(&large, 8900), &large);
        transmit(&mut worker, &mut driver);
        assert_eq!(worker.counters.get(VifCounter::tx_drop_error), copied);
        assert_eq!(worker.counters.get(VifCounter::tx_frames), 1 - copied);
    }
}

#[test]
fn large_frames_that_follow_each_other_share_messages() {
    // 46 segments a frame, of which a message takes 44.
    let even = tcp_frame(46 * 1390);
    let uneven = tcp_frame(45 * 1390 + 1);
    let in_turns = [&even, &even, &uneven, &even].map(|frame| (frame, 1390));
    let short_ended = tcp_frame(2580);
    let cases: [(&[_], _); 5] = [
        (&[(&even, 1390)], 2),
        // 138 segments in four messages: 44, 44, 44 and 6.
        (&[(&even, 1390); 3], 4),
        // The short end of the third closes its message.
        (&in_turns, 4 + 2),
        // Datagrams of a message are of one length.
        (&[(&even, 1390), (&even, 695)], 2 + 2),
        // Also where that is what they are on average: 1390 and 1190.
        (&[(&short_ended, 1390), (&short_ended, 1290)], 2),
    ];
    for (frames, messages) in cases {
        let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
        for (frame, size) in frames {
            offer_in_pieces(&mut driver, tso_header(frame, *size), frame, &[12]);
        }
        transmit(&mut worker, &mut driver);
        assert_eq!(worker.tunnel.underlay().messages, messages);
        assert_eq!(worker.counters.get(VifCounter::tx_frames), frames.len() as u64);
        let mut left = worker.tunnel.underlay().sent.iter().map(|(_, d)| &d[8 + TCP_HEADERS..]);
        for (frame, size) in frames {
            for chunk in frame[TCP_HEADERS..].chunks((*size).into()) {
                assert!(left.next() == Some(chunk));
            }
        }
        assert_eq!(left.next(), None);
    }
}

#[test]
fn a_message_never_has_more_than_the_kernel_takes() {
    fn is_too_much(message: &Message<'_>) -> Option<i32> {
        let fits = message.parts.len() <= MAX_PARTS
            && datagrams_of(message) <= MAX_SEGMENTS
            && len_of(message) <= 65_507;
        (!fits).then_some(libc::EPERM)
    }
    for size in [48, 500, 1000, 8900] {
        for pieces in [0, 1, 13] {
            let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
            worker.tunnel.place_mut().max_datagram = 8972;
            worker.tunnel.stager_mut().scatter_from(0);
            worker.tunnel.underlay_mut().refuse = Some(is_too_much);
            let large = tcp_frame(60_000);
            let lens = vec![1; pieces];
            offer_in_pieces(&mut driver, tso_header(&large, size), &large, &lens);
            transmit(&mut worker, &mut driver);
            assert_eq!(worker.counters.get(VifCounter::tx_drop_error), 0, "{size}");
            let count = 60_000_usize.div_ceil(size.into());
            assert_eq!(worker.tunnel.underlay().sent.len(), count, "{size}");
        }
    }
}

fn refuses_segments(message: &Message<'_>) -> Option<i32> {
    (message.segment != 0).then_some(libc::EIO)
}

#[test]
fn a_refusal_is_remembered_for_a_while() {
    let large = tcp_frame(20_000);
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    worker.tunnel.underlay_mut().refuse = Some(refuses_segments);
    let mut send = |worker: &mut Worker<MemoryUnderlay>, now| {
        offer_with_header(&mut driver, tso_header(&large, 1398), &large);
        let Driver { queue, memory, .. } = &mut driver;
        worker.tunnel.underlay_mut().calls = 0;
        worker.transmit(queue, memory, now).unwrap();
        (sent(worker), worker.tunnel.underlay().calls)
    };
    let (first, calls) = send(&mut worker, Instant::ZERO);
    assert_eq!((first.len(), calls), (15, 2), "refused, then all at once");
    let (second, calls) = send(&mut worker, Instant::from_millis(1));
    assert_eq!(calls, 1, "many datagrams in one call, and no vain attempt");
    assert!(first == second);
    assert_eq!(worker.counters.get(VifCounter::tx_unsegmented), 30);
    assert_eq!(worker.counters.get(VifCounter::tx_datagrams), 30);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 2);
    worker.tunnel.underlay_mut().refuse = None;
    let peer = CareOf { capabilities: CAPABLE, ..coa(7) };
    let lifetime = Duration::from_secs(100);
    worker.handle_mapping(Mac(PEER), peer, lifetime, Instant::ZERO);
    let (third, calls) = send(&mut worker, Instant::from_millis(60_000));
    assert!(first == third);
    assert_eq!(calls, 1);
    assert_eq!(worker.counters.get(VifCounter::tx_unsegmented), 30, "it was tried again");
}

#[test]
fn scattered_messages_can_be_sent_one_by_one_too() {
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    worker.tunnel.place_mut().max_datagram = 8972;
    worker.tunnel.underlay_mut().refuse = Some(refuses_segments);
    let large = tcp_frame(60_000);
    for _ in 0..2 {
        offer_in_pieces(&mut driver, tso_header(&large, 8000), &large, &[40, 2000]);
        transmit(&mut worker, &mut driver);
    }
    assert_eq!(worker.tunnel.underlay().sent.len(), 16);
    let (first, second) = worker.tunnel.underlay().sent.split_at(8);
    assert!(first == second);
    let payload = first.iter().flat_map(|(_, datagram)| &datagram[8 + TCP_HEADERS..]);
    assert!(payload.eq(&large[TCP_HEADERS..]));
}

#[test]
fn a_kernel_that_takes_64_at_a_time_gets_no_more() {
    fn takes_64(message: &Message<'_>) -> Option<i32> {
        (datagrams_of(message) > 64).then_some(libc::EINVAL)
    }
    let large = tcp_frame(50_000);
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    worker.tunnel.underlay_mut().refuse = Some(takes_64);
    let mut counts = Vec::new();
    for _ in 0..2 {
        offer_with_header(&mut driver, tso_header(&large, 400), &large);
        worker.tunnel.underlay_mut().calls = 0;
        transmit(&mut worker, &mut driver);
        let messages = worker.tunnel.underlay().messages;
        counts.push((worker.tunnel.underlay().calls, messages, sent(&mut worker).len()));
    }
    assert_eq!(counts, [(2, 2, 125), (1, 2, 125)]);
    assert_eq!(worker.counters.get(VifCounter::tx_unsegmented), 0);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 2);
}

#[test]
fn what_is_too_long_for_the_path_does_not_give_up_segmentation() {
    fn path_of_1000(message: &Message<'_>) -> Option<i32> {
        let longest = if message.segment == 0 { len_of(message) } else { message.segment.into() };
        (longest > 1000).then_some(libc::EMSGSIZE)
    }
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    worker.tunnel.underlay_mut().refuse = Some(path_of_1000);
    let large = tcp_frame(1398 * 3 + 100);
    offer_with_header(&mut driver, tso_header(&large, 1398), &large);
    transmit(&mut worker, &mut driver);
    assert_eq!(sent(&mut worker).len(), 1, "the short one at the end");
    assert_eq!(worker.counters.get(VifCounter::tx_drop_too_big), 1, "a frame, not its segments");
    let fits = tcp_frame(5000);
    offer_with_header(&mut driver, tso_header(&fits, 500), &fits);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().messages, 1);
    assert_eq!(worker.tunnel.underlay().sent.len(), 10);
    assert_eq!(worker.counters.get(VifCounter::tx_unsegmented), 0);
}

/// An address that nothing can be sent to is refused with the error of an old kernel.
#[test]
fn what_one_host_refuses_costs_no_other() {
    fn takes_nothing(message: &Message<'_>) -> Option<i32> {
        (message.to == addr(8)).then_some(libc::EINVAL)
    }
    const THERE: [u8; 6] = [2, 0, 0, 0, 0, 8];
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    worker.tunnel.underlay_mut().refuse = Some(takes_nothing);
    let lifetime = Duration::from_secs(30);
    let there = CareOf { capabilities: CAPABLE, ..coa(8) };
    worker.handle_mapping(Mac(THERE), there, lifetime, Instant::ZERO);
    let large = tcp_frame(50_000);
    let mut to_there = large.clone();
    to_there[..6].copy_from_slice(&THERE);
    for lost in 1..=3 {
        offer_with_header(&mut driver, tso_header(&to_there, 400), &to_there);
        transmit(&mut worker, &mut driver);
        assert_eq!(worker.counters.get(VifCounter::tx_drop_error), lost, "a frame, not 125");
    }
    offer_with_header(&mut driver, tso_header(&large, 400), &large);
    worker.tunnel.underlay_mut().calls = 0;
    transmit(&mut worker, &mut driver);
    assert_eq!((worker.tunnel.underlay().messages, worker.tunnel.underlay().sent.len()), (1, 125));
    assert_eq!(worker.counters.get(VifCounter::tx_unsegmented), 0);
}

#[test]
fn frames_that_wait_for_an_unusable_place_are_a_drop_with_a_name() {
    let (mut worker, mut driver) = (worker(), Driver::new());
    for _ in 0..3 {
        driver.offer_frame(&frame(PEER, OWN, b"waits"));
    }
    transmit(&mut worker, &mut driver);
    let place = CareOf { addr: addr(0), kinds: EncapKinds::ETHERIP, ..coa(7) };
    worker.handle_mapping(Mac(PEER), place, Duration::from_secs(30), Instant::ZERO);
    driver.offer_frame(&frame(PEER, OWN, b"goes nowhere"));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_unusable), 4);
    assert_eq!((worker.tunnel.underlay().calls, worker.tunnel.underlay().sent.len()), (0, 0));
    learn(&mut worker, PEER, 7);
    driver.offer_frame(&frame(PEER, OWN, b"arrives"));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().sent.len(), 1);
}

/// Of frames that share a message, those are lost whose datagrams are.
#[test]
fn each_frame_that_is_lost_counts_once() {
    fn refuses_long_ones(message: &Message<'_>) -> Option<i32> {
        (message.segment != 0 || len_of(message) >= 1400).then_some(libc::EINVAL)
    }
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    worker.tunnel.underlay_mut().refuse = Some(refuses_long_ones);
    for len in [1390, 1390, 1200] {
        driver.offer_frame(&frame(PEER, OWN, &vec![0; len]));
    }
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_error), 2);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 1);
}

/// Without checksums of its own a socket can't use UDP_SEGMENT (udp(7)).
#[test]
fn a_real_kernels_refusal_costs_no_datagram() {
    let bind = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (own, receiver) = (bind(), bind());
    sockopt::set(&own, (libc::SOL_SOCKET, libc::SO_NO_CHECK), 1).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut place = *worker().tunnel.place();
    place.receiver.own = own.local_addr().unwrap();
    let counters = Arc::new(VifCounters::default());
    let underlay = UdpUnderlay::new(own.into(), Groups::default(), None);
    let mut worker = Worker::new(place, SourceMac::Stamp, counters.clone(), underlay);
    worker.set_features(MERGEABLE, Offloads::ALL);
    let addr = receiver.local_addr().unwrap();
    let peer =
        CareOf { addr, kinds: EncapKinds::UDP, capabilities: CAPABLE, longest: Longest::UNKNOWN };
    let lifetime = Duration::from_secs(30);
    worker.handle_mapping(Mac(PEER), peer, lifetime, Instant::ZERO);
    let (large, mut driver) = (tcp_frame(20_000), Driver::new());
    for round in 1..=2 {
        offer_with_header(&mut driver, tso_header(&large, 1398), &large);
        let Driver { queue, memory, .. } = &mut driver;
        worker.transmit(queue, memory, Instant::ZERO).unwrap();
        let mut payload = Vec::<u8>::new();
        let mut buffer = [0; 2000];
        while payload.len() < 20_000 {
            let len = receiver.recv(&mut buffer).unwrap();
            payload.extend(&buffer[8 + TCP_HEADERS..len]);
        }
        assert!(payload == large[TCP_HEADERS..]);
        assert_eq!(counters.get(VifCounter::tx_frames), round);
        assert_eq!(counters.get(VifCounter::tx_datagrams), 15 * round);
    }
    assert_eq!(counters.get(VifCounter::tx_unsegmented), 15, "the second time it was known");
}

// ---- kernels that damage messages of equal datagrams -------------------------------------------

fn is_damaged(message: &Message<'_>) -> Option<i32> {
    let segment = usize::from(message.segment);
    let last = len_of(message) % segment.max(1);
    let is_fine = segment == 0 || (64.min(segment - 1)..segment).contains(&last);
    (!is_fine).then_some(libc::EPERM)
}

#[test]
fn where_equal_datagrams_are_damaged_each_message_ends_with_a_shorter_one() {
    for scatter_from in [0, usize::MAX] {
        let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
        worker.tunnel.stager_mut().set_short_ends(true);
        worker.tunnel.stager_mut().scatter_from(scatter_from);
        worker.tunnel.underlay_mut().refuse = Some(is_damaged);
        let large = tcp_frame(60_000);
        offer_with_header(&mut driver, tso_header(&large, 1000), &large);
        for _ in 0..3 {
            driver.offer_frame(&frame(PEER, OWN, &[7; 1000]));
        }
        transmit(&mut worker, &mut driver);
        assert_eq!(worker.counters.get(VifCounter::tx_drop_error), 0);
        assert_eq!(worker.counters.get(VifCounter::tx_frames), 4);
        let is_padding = |datagram: &[u8]| {
            datagram[..2] == [0x40, 2] && Entries::new(&datagram[8..]).next().is_none()
        };
        let (ends, frames): (Vec<_>, Vec<_>) =
            sent(&mut worker).into_iter().partition(|(_, datagram)| is_padding(datagram));
        assert_eq!(ends.len(), 2, "one for the segments, one for the three");
        assert!(ends.iter().all(|(_, datagram)| (64..1000).contains(&datagram.len())));
        assert_eq!(frames.len(), 63);
        let payload = frames[..60].iter().flat_map(|(_, datagram)| &datagram[8 + TCP_HEADERS..]);
        assert!(payload.eq(&large[TCP_HEADERS..]));
    }
}

#[test]
fn receivers_that_know_no_padding_get_single_datagrams_there() {
    let (mut worker, mut driver) = (offloading_worker(Capabilities::NONE), Driver::new());
    worker.tunnel.stager_mut().set_short_ends(true);
    let large = tcp_frame(10_000);
    offer_with_header(&mut driver, tso_header(&large, 1000), &large);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().messages, 10);
    assert_eq!(worker.tunnel.underlay().calls, 1);
    assert_eq!(worker.tunnel.underlay().sent.len(), 10);
}

#[test]
fn such_padding_is_nothing_to_a_receiver() {
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    let padding = [&[0x40, 2, 0, 0, 0, 0, 0, 42][..], &[0; 500]].concat();
    worker.tunnel.underlay_mut().own.push_back((addr(9), padding));
    worker.tunnel.underlay_mut().own.push_back((addr(9), encapsulated_frame(OWN, PEER, b"next")));
    driver.offer(&[(&[], 100, WRITE)]);
    receive(&mut worker, &mut driver);
    assert_eq!(driver.used().len(), 1);
    let dropped = worker.counters.readings().filter(|r| r.name.contains("drop"));
    assert_eq!(dropped.map(|r| r.value).sum::<u64>(), 0);
}
