//! What guests leave to us: large frames, checksums; and what shares datagrams and messages.

use super::*;

#[test]
fn a_large_frame_leaves_in_segments_that_fit_the_path() {
    let large = tcp_frame(20_000);
    for capabilities in [CAPABLE, Capabilities::NONE] {
        let (mut worker, mut driver) = (offloading_worker(capabilities), Driver::new());
        offer_with_header(&mut driver, tso_header(&large, 1448), &large);
        transmit(&mut worker, &mut driver);
        let sent = mem::take(&mut worker.tunnel.underlay_mut().sent);
        assert_eq!(worker.tunnel.underlay().messages, 1);
        let mut payload: Vec<u8> = Vec::new();
        for (to, datagram) in &sent {
            assert_eq!(*to, addr(7));
            assert!(datagram.len() <= worker.tunnel.place().max_datagram);
            let (encapsulation, frame) = datagram.split_at(8);
            let layout = Layout::parse(frame, frame.len()).unwrap();
            payload.extend(&frame[layout.payload_at..]);
            if capabilities == CAPABLE {
                assert_eq!(encapsulation, [0x40, 1, 0, 0, 0, 0, 0, 42]);
            } else {
                assert_eq!(encapsulation, [0x40, 0, 0, 0, 0, 0, 0, 42]);
                assert_complete(frame);
            }
        }
        assert!(payload == large[TCP_HEADERS..]);
        assert_eq!(worker.counters.get(VifCounter::tx_frames), 1);
        assert_eq!(worker.counters.get(VifCounter::tx_datagrams), sent.len() as u64);
    }
}

#[test]
fn the_largest_frame_in_the_smallest_segments_leaves_whole() {
    let large = tcp_frame(60_000);
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    offer_with_header(&mut driver, tso_header(&large, 50), &large);
    transmit(&mut worker, &mut driver);
    let sent: usize =
        worker.tunnel.underlay().sent.iter().map(|(_, d)| d.len() - 8 - TCP_HEADERS).sum();
    assert_eq!(sent, 60_000);
    assert_eq!(worker.tunnel.underlay().sent.len(), 1200);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 1);
}

#[test]
fn a_kernel_without_segmentation_gets_datagrams_one_by_one() {
    let large = tcp_frame(20_000);
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    worker.tunnel.underlay_mut().failures.push_back(io::Error::from_raw_os_error(libc::EIO));
    offer_with_header(&mut driver, tso_header(&large, 1448), &large);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().sent.len(), worker.tunnel.underlay().messages);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 1);
    assert_eq!(
        worker.counters.get(VifCounter::tx_datagrams),
        worker.tunnel.underlay().sent.len() as u64
    );
}

#[test]
fn a_frame_longer_than_the_path_is_cut_if_it_is_tcp_and_dropped_otherwise() {
    let long = tcp_frame(1460);
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    offer_with_header(&mut driver, partial_header(&long), &long);
    offer_with_header(&mut driver, [0; 12], &frame(PEER, OWN, &[0; 1460]));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().sent.len(), 2);
    assert!(
        worker
            .tunnel
            .underlay()
            .sent
            .iter()
            .all(|(_, d)| d.len() <= worker.tunnel.place().max_datagram)
    );
    assert_eq!(worker.counters.get(VifCounter::tx_drop_too_big), 1);
}

#[test]
fn the_guest_is_told_what_fits_when_its_packet_does_not() {
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    let mut long = Packet { dont_fragment: true, ..Packet::udp(1460) }.build();
    long[..6].copy_from_slice(&PEER);
    long[6..12].copy_from_slice(&OWN);
    offer_with_header(&mut driver, [0; 12], &long);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_too_big), 1);
    assert!(worker.has_answers());
    let mut driver = Driver::new();
    let room = driver.offer(&[(&[], 300, WRITE)]);
    let Driver { queue, memory, .. } = &mut driver;
    worker.answer(queue, memory).unwrap();
    let (_, len) = driver.used()[0];
    let answer = driver.read(room[0] + 12, len as usize - 12);
    assert_eq!(answer[..12], [OWN, PEER].concat());
    assert_eq!(told_mtu(&answer), Some(1472 - 8 - 14));
    assert!(!worker.has_answers());
}

#[test]
fn partial_checksums_are_left_to_those_who_can_and_completed_for_others() {
    let small = tcp_frame(100);
    let mut to_all = small.clone();
    to_all[..6].fill(0xff);
    for (capabilities, frame, flags) in
        [(CAPABLE, &small, 1), (Capabilities::NONE, &small, 0), (CAPABLE, &to_all, 0)]
    {
        let (mut worker, mut driver) = (offloading_worker(capabilities), Driver::new());
        offer_with_header(&mut driver, partial_header(frame), frame);
        transmit(&mut worker, &mut driver);
        let (_, datagram) = worker.tunnel.underlay_mut().sent.pop().unwrap();
        assert_eq!(datagram[..2], [0x40, flags]);
        if flags == 0 {
            assert_complete(&datagram[8..]);
        } else {
            assert_eq!(datagram[8..], frame[..]);
        }
    }
}

#[test]
fn small_frames_to_one_place_share_datagrams_in_order() {
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    for n in 0..10 {
        driver.offer_frame(&frame(PEER, OWN, &[n; 300]));
    }
    driver.offer_frame(&frame([0xff; 6], OWN, b"to all"));
    driver.offer_frame(&frame(PEER, OWN, &[99; 50]));
    transmit(&mut worker, &mut driver);
    let (all, single) = (&worker.tunnel.underlay().sent[3], &worker.tunnel.underlay().sent[4]);
    assert_eq!(all.1, encapsulated_frame([0xff; 6], OWN, b"to all"));
    assert_eq!(single.1, encapsulated_frame(PEER, OWN, &[99; 50]), "alone: no bundle");
    let mut frames = Vec::new();
    for (to, datagram) in &worker.tunnel.underlay().sent[..3] {
        assert_eq!(*to, addr(7));
        assert_eq!(datagram[..8], [0x40, 2, 0, 0, 0, 0, 0, 42]);
        frames.extend(Entries::new(&datagram[8..]).map(|entry| entry.unwrap().frame));
    }
    let expected: Vec<Vec<u8>> = (0..10).map(|n| frame(PEER, OWN, &[n; 300])).collect();
    assert_eq!(frames, expected);
    assert_eq!(worker.tunnel.underlay().messages, 3);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 12);
    assert_eq!(worker.counters.get(VifCounter::tx_datagrams), 5);
}

#[test]
fn frames_of_one_length_share_a_message() {
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    for (n, len) in [1000, 1000, 900, 1000, 1100].into_iter().enumerate() {
        driver.offer_frame(&frame(PEER, OWN, &vec![n as u8; len]));
    }
    transmit(&mut worker, &mut driver);
    let lens: Vec<usize> =
        worker.tunnel.underlay().sent.iter().map(|(_, d)| d.len() - 8 - 14).collect();
    assert_eq!(lens, [1000, 1000, 900, 1000, 1100]);
    assert_eq!(worker.tunnel.underlay().messages, 3, "1000 1000 900, 1000, 1100");
}

#[test]
fn what_leaves_in_pieces_arrives_as_it_was() {
    let (mut sender, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    let large = tcp_frame(30_000);
    offer_with_header(&mut driver, tso_header(&large, 1448), &large);
    for n in 0..5 {
        driver.offer_frame(&frame(PEER, OWN, &[n; 60]));
    }
    transmit(&mut sender, &mut driver);

    let mut receiver = offloading_worker(CAPABLE);
    receiver.tunnel.place_mut().receiver.key.mac = Mac(PEER);
    // As UDP_GRO hands them over: runs of one size in one message.
    let sent = mem::take(&mut sender.tunnel.underlay_mut().sent);
    receiver.tunnel.underlay_mut().own.extend(sent.into_iter().map(|(_, bytes)| (addr(9), bytes)));
    let mut driver = Driver::new();
    let places: Vec<u64> = (0..SIZE).flat_map(|_| driver.offer(&[(&[], 0xf00, WRITE)])).collect();
    // The segments come in two batches.
    receive(&mut receiver, &mut driver);
    let mut bytes = Vec::new();
    let mut used = driver.used().into_iter().zip(&places).map(|((_, len), &at)| (len, at));
    while let Some((len, at)) = used.next() {
        let mut one = driver.read(at, len as usize);
        let count = u16::from_le_bytes([one[10], one[11]]);
        for _ in 1..count {
            let (len, at) = used.next().unwrap();
            one.extend(driver.read(at, len as usize));
        }
        bytes.push(one);
    }
    assert_eq!(bytes.len(), 7, "30000 bytes in two frames, and five small ones");
    let payloads: Vec<u8> =
        bytes[..2].iter().flat_map(|b| b[12 + TCP_HEADERS..].to_vec()).collect();
    assert!(payloads == large[TCP_HEADERS..]);
    for large in &bytes[..2] {
        assert_eq!(large[..2], [1, 1], "NEEDS_CSUM, TCPV4");
        assert_eq!(u16::from_le_bytes([large[4], large[5]]), 1398, "what fits the path");
    }
    for (n, small) in bytes[2..].iter().enumerate() {
        assert_eq!(small[12..], frame(PEER, OWN, &[n as u8; 60]));
    }
    assert_eq!(receiver.counters.get(VifCounter::rx_frames), 7);
}

#[test]
fn segments_stay_apart_for_a_ring_that_holds_only_one() {
    let (mut sender, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    let large = tcp_frame(10_000);
    offer_with_header(&mut driver, tso_header(&large, 1398), &large);
    transmit(&mut sender, &mut driver);
    let mut receiver = offloading_worker(CAPABLE);
    receiver.tunnel.place_mut().receiver.key.mac = Mac(PEER);
    let sent = mem::take(&mut sender.tunnel.underlay_mut().sent);
    let count = sent.len();
    receiver.tunnel.underlay_mut().own.extend(sent.into_iter().map(|(_, bytes)| (addr(9), bytes)));
    let mut driver = Driver::new();
    for _ in 0..SIZE {
        driver.offer(&[(&[], 500, WRITE)]);
    }
    receive(&mut receiver, &mut driver);
    let before = receiver.counters.get(VifCounter::rx_frames);
    assert_eq!(before, 5, "three buffers each");
    assert_eq!(receiver.counters.get(VifCounter::rx_drop_no_buffer), 0);
    assert!(receiver.is_blocked() && count == 8);
}

#[test]
fn an_offload_that_was_not_negotiated_is_a_lie() {
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    worker.set_features(MERGEABLE, Offloads::CSUM);
    let large = tcp_frame(5000);
    offer_with_header(&mut driver, tso_header(&large, 1448), &large);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_header), 1);
    assert!(worker.tunnel.underlay().sent.is_empty());
}

#[test]
fn large_frames_wait_for_resolution_and_leave_in_segments() {
    let (mut worker, mut driver) = (offloading_worker(CAPABLE), Driver::new());
    let mut large = tcp_frame(5000);
    large[..6].copy_from_slice(&[2, 0, 0, 0, 0, 3]);
    offer_with_header(&mut driver, tso_header(&large, 1000), &large);
    transmit(&mut worker, &mut driver);
    assert!(worker.tunnel.underlay().sent.is_empty());
    learn(&mut worker, [2, 0, 0, 0, 0, 3], 8);
    assert_eq!(worker.tunnel.underlay().sent.len(), 5);
    worker.tunnel.underlay().sent.iter().for_each(|(_, datagram)| assert_complete(&datagram[8..]));
}
