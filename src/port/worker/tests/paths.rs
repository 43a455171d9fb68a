//! Frames that are longer than their path, and paths that change.

use super::*;
use crate::sys::error_queue::Report;
use crate::tunnel::endpoint::Resolved;
use crate::tunnel::pmtu_feedback::GRACE;
use crate::tunnel::reassembly::LIFETIME;

const ALL: Capabilities = crate::vif::link::CAPABILITIES;

fn capable_worker() -> Worker<MemoryUnderlay> {
    let mut worker = offloading_worker(ALL);
    worker.tunnel.place_mut().receiver.capabilities = ALL;
    worker
}

/// The peer of [`capable_worker`], without offloads: it sees frames as they are.
fn peer() -> (Worker<MemoryUnderlay>, Driver) {
    let mut peer = capable_worker();
    peer.tunnel.place_mut().receiver.key.mac = Mac(PEER);
    peer.set_features(MERGEABLE, Offloads::NONE);
    (peer, Driver::new())
}

/// What of sent datagrams arrives at the guest of the peer, frame by frame.
fn arrive(sent: Vec<(SocketAddr, Vec<u8>)>) -> (Vec<Vec<u8>>, Worker<MemoryUnderlay>) {
    let (mut peer, _) = peer();
    let mut frames = Vec::new();
    for (_, datagram) in sent {
        peer.tunnel.underlay_mut().own.push_back((addr(9), datagram));
        let mut driver = Driver::new();
        let places: Vec<u64> =
            (0..SIZE).flat_map(|_| driver.offer(&[(&[], 0x1000, WRITE)])).collect();
        receive(&mut peer, &mut driver);
        let used = driver.used();
        if !used.is_empty() {
            let bytes: Vec<u8> = used
                .iter()
                .zip(&places)
                .flat_map(|(u, &at)| driver.read(at, u.1 as usize))
                .collect();
            frames.push(bytes[12..].to_vec());
        }
    }
    (frames, peer)
}

fn sum_drops(worker: &Worker<MemoryUnderlay>) -> u64 {
    let drops = worker.counters.readings().filter(|r| r.name.contains("_drop_"));
    drops.map(|r| r.value).sum()
}

fn addressed(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.build();
    frame[..6].copy_from_slice(&PEER);
    frame[6..12].copy_from_slice(&OWN);
    frame
}

#[test]
fn what_can_neither_be_cut_nor_told_travels_in_pieces() {
    let not_ip = {
        let mut frame = frame(PEER, OWN, &[7; 4000]);
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        frame
    };
    let may_be_fragmented = addressed(&Packet { dont_fragment: false, ..Packet::udp(1460) });
    let syn = addressed(&Packet { tcp_flags: 2, dont_fragment: false, ..Packet::tcp(1460) });
    // What the driver's ring of 64 KiB has room for.
    let longest = frame(PEER, OWN, &vec![9; 65_500]);
    for sent in [not_ip, may_be_fragmented, syn, longest] {
        let (mut worker, mut driver) = (capable_worker(), Driver::new());
        offer_with_header(&mut driver, [0; 12], &sent);
        transmit(&mut worker, &mut driver);
        let datagrams = mem::take(&mut worker.tunnel.underlay_mut().sent);
        assert!(datagrams.iter().all(|(_, d)| d.len() <= 1472 && d[..2] == [0x40, 4]));
        assert_eq!(datagrams.len(), sent.len().div_ceil(1472 - 16));
        assert_eq!(worker.counters.get(VifCounter::tx_fragmented), 1);
        assert_eq!(worker.counters.get(VifCounter::tx_frames), 1);
        assert_eq!(worker.counters.get(VifCounter::tx_bytes), sent.len() as u64);
        assert_eq!(worker.counters.get(VifCounter::tx_datagrams), datagrams.len() as u64);
        let (frames, peer) = arrive(datagrams);
        assert!(frames == [sent]);
        assert_eq!(peer.counters.get(VifCounter::rx_reassembled), 1);
        assert_eq!(peer.counters.get(VifCounter::rx_frames), 1);
    }
}

#[test]
fn a_partial_checksum_is_left_partial_in_pieces_and_completed_by_the_receiver() {
    let sent = addressed(&Packet { dont_fragment: false, ..Packet::udp(2000) });
    let mut partial = sent.clone();
    crate::offload::packets::make_partial(&mut partial);
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    offer_with_header(&mut driver, partial_header(&partial), &partial);
    transmit(&mut worker, &mut driver);
    assert!(worker.tunnel.underlay().sent.iter().all(|(_, d)| d[..2] == [0x40, 5]), "F and C");
    let (frames, _) = arrive(mem::take(&mut worker.tunnel.underlay_mut().sent));
    assert!(frames == [sent]);
}

#[test]
fn datagrams_of_a_large_frame_travel_in_pieces_each() {
    let datagram = Packet { dont_fragment: false, ..Packet::udp(2000) };
    let mut large =
        Packet { payload: [&datagram.payload[..]; 3].concat(), ..datagram }.build_partial();
    large[..6].copy_from_slice(&PEER);
    large[6..12].copy_from_slice(&OWN);
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    offer_with_header(&mut driver, tso_header(&large, 2000), &large);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().sent.len(), 6);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 1);
    let (frames, peer) = arrive(mem::take(&mut worker.tunnel.underlay_mut().sent));
    assert_eq!(frames.len(), 3);
    frames.iter().for_each(|frame| assert_complete(frame));
    assert_eq!(peer.counters.get(VifCounter::rx_reassembled), 3);
}

#[test]
fn who_does_not_heed_the_answer_is_carried() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    let long = addressed(&Packet { dont_fragment: true, ..Packet::udp(1460) });
    offer_with_header(&mut driver, [0; 12], &long);
    transmit(&mut worker, &mut driver);
    assert!(worker.tunnel.underlay().sent.is_empty() && worker.has_answers());
    assert_eq!(worker.counters.get(VifCounter::tx_drop_too_big), 1);
    offer_with_header(&mut driver, [0; 12], &long);
    let Driver { queue, memory, .. } = &mut driver;
    worker.transmit(queue, memory, Instant::ZERO + GRACE).unwrap();
    let (frames, _) = arrive(mem::take(&mut worker.tunnel.underlay_mut().sent));
    assert!(frames == [long]);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_too_big), 1);
}

#[test]
fn old_peers_get_no_pieces() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    learn(&mut worker, [2, 0, 0, 0, 0, 3], 8);
    offer_with_header(&mut driver, [0; 12], &frame([2, 0, 0, 0, 0, 3], OWN, &[0; 2000]));
    transmit(&mut worker, &mut driver);
    assert!(worker.tunnel.underlay().sent.is_empty());
    assert_eq!(worker.counters.get(VifCounter::tx_drop_too_big), 1);
    assert_eq!(worker.counters.get(VifCounter::tx_fragmented), 0);
}

/// Also if a packet says that it must not be fragmented: nobody could tell all members of a group to send less.
#[test]
fn long_group_frames_travel_in_pieces_that_each_member_takes() {
    let mut multicast = Packet { dont_fragment: true, ..Packet::udp(2000) }.build();
    multicast[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 1]);
    multicast[6..12].copy_from_slice(&OWN);
    for longest in [0, 1300] {
        let (mut worker, mut driver) = (capable_worker(), Driver::new());
        worker.tunnel.set_group_longest(Longest::new(longest, addr(7).ip()).unwrap());
        let frames = [frame([0xff; 6], OWN, &[0; 2000]), multicast.clone()];
        frames.iter().for_each(|frame| offer_with_header(&mut driver, [0; 12], frame));
        // Fits the link, and not the narrow member.
        let short = frame([0xff; 6], OWN, &[0; 1300]);
        offer_with_header(&mut driver, [0; 12], &short);
        transmit(&mut worker, &mut driver);
        let most = if longest == 0 { worker.tunnel.place().max_datagram } else { 1300 - 28 };
        let sent = mem::take(&mut worker.tunnel.underlay_mut().sent);
        assert!(
            sent.iter()
                .all(|(to, bytes)| *to == worker.tunnel.place().group && bytes.len() <= most)
        );
        let in_pieces = if longest == 0 { 2 } else { 3 };
        assert_eq!(worker.counters.get(VifCounter::tx_fragmented), in_pieces);
        assert_eq!(worker.counters.get(VifCounter::tx_drop_too_big), 0);
        assert!(!worker.has_answers());
    }
}

fn too_long_report(mtu: u32) -> Report {
    Report { to: addr(7).ip(), errno: libc::EMSGSIZE, mtu, is_local: false }
}

#[test]
fn a_router_narrows_the_path_for_what_comes_next() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    worker.tunnel.underlay_mut().reports.push_back(too_long_report(1280));
    // The error of an earlier datagram is told at the next call, here of sending.
    worker.tunnel.underlay_mut().failures.push_back(io::Error::from_raw_os_error(libc::EMSGSIZE));
    worker.tunnel.underlay_mut().max_datagram = Some(1252);
    let large = tcp_frame(20_000);
    offer_with_header(&mut driver, tso_header(&large, 1400), &large);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::path_mtu_changes), 1);
    // Cut for the wider path, its segments leave in pieces.
    let (frames, _) = arrive(mem::take(&mut worker.tunnel.underlay_mut().sent));
    let payload: Vec<u8> = frames.iter().flat_map(|f| f[TCP_HEADERS..].to_vec()).collect();
    assert!(payload == large[TCP_HEADERS..]);
    assert_eq!(worker.counters.get(VifCounter::tx_fragmented), 14);
    assert_eq!(sum_drops(&worker), 0);
    // The next is cut to fit at once.
    offer_with_header(&mut driver, tso_header(&large, 1400), &large);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().messages, 2 * 14 + 1 + 1, "the last segment was short");
    assert!(worker.tunnel.underlay().sent.iter().all(|(_, d)| d.len() <= 1252 && d[1] == 1));
    assert_eq!(worker.counters.get(VifCounter::tx_fragmented), 14);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 2);
}

/// More than the staging buffer holds: it is sent in the midst of a frame.
#[test]
fn a_path_that_becomes_narrower_in_the_midst_of_a_frame_costs_none_of_it() {
    let mut worker = capable_worker();
    let large = tcp_frame(60_000);
    let parked = vec![[&tso_header(&large, 1448)[..], &large].concat(); 12];
    worker.tunnel.underlay_mut().max_datagram = Some(1252);
    let coa = CareOf { capabilities: ALL, ..coa(7) };
    worker.send_resolved(&Resolved { coa, frames: parked.to_vec() }, Instant::ZERO);
    assert_eq!(worker.counters.get(VifCounter::path_mtu_changes), 1);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 12);
    assert_eq!(sum_drops(&worker), 0);
    let (frames, _) = arrive(mem::take(&mut worker.tunnel.underlay_mut().sent));
    let payload: Vec<u8> = frames.iter().flat_map(|f| f[TCP_HEADERS..].to_vec()).collect();
    assert!(payload == large[TCP_HEADERS..].repeat(12));
}

/// Bundles, runs of one length and single ones.
#[test]
fn whatever_is_staged_leaves_in_pieces_when_the_kernel_knows_better() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    worker.tunnel.underlay_mut().max_datagram = Some(1000);
    let mut sent = Vec::new();
    for len in [300, 300, 300, 300, 300, 300, 1200, 1200, 1100, 1400] {
        sent.push(frame(PEER, OWN, &vec![sent.len() as u8; len]));
        driver.offer_frame(sent.last().unwrap());
    }
    transmit(&mut worker, &mut driver);
    assert!(worker.tunnel.underlay().sent.iter().all(|(_, d)| d.len() <= 1000));
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 10);
    assert_eq!(sum_drops(&worker), 0);
    let (mut peer, mut driver) = peer();
    peer.tunnel.underlay_mut().own.extend(
        mem::take(&mut worker.tunnel.underlay_mut().sent).into_iter().map(|(_, d)| (addr(9), d)),
    );
    let places: Vec<u64> = (0..SIZE).flat_map(|_| driver.offer(&[(&[], 0x1000, WRITE)])).collect();
    receive(&mut peer, &mut driver);
    let arrived: Vec<Vec<u8>> = driver
        .used()
        .iter()
        .zip(&places)
        .map(|((_, len), &at)| driver.read(at, *len as usize)[12..].to_vec())
        .collect();
    assert!(arrived == sent, "all, and in order");
    assert_eq!(sum_drops(&peer), 0);
    // For a peer that takes no pieces they are lost, and its sender tries again.
    let mut worker = offloading_worker(CAPABLE);
    worker.tunnel.underlay_mut().max_datagram = Some(1000);
    let mut driver = Driver::new();
    driver.offer_frame(&sent[9]);
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_too_big), 1);
}

#[test]
fn a_piece_that_no_longer_fits_is_cut_again() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    worker.tunnel.underlay_mut().max_datagram = Some(700);
    let sent = frame(PEER, OWN, &[3; 5000]);
    offer_with_header(&mut driver, [0; 12], &sent);
    transmit(&mut worker, &mut driver);
    let datagrams = mem::take(&mut worker.tunnel.underlay_mut().sent);
    assert!(datagrams.iter().all(|(_, d)| d.len() <= 700));
    let (frames, _) = arrive(datagrams);
    assert!(frames == [sent]);
    assert_eq!(worker.counters.get(VifCounter::tx_frames), 1);
}

#[test]
fn a_path_grows_again_when_the_kernel_has_forgotten() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    worker.tunnel.underlay_mut().max_datagram = Some(1000);
    let mut send = |worker: &mut Worker<MemoryUnderlay>, at: u64| {
        driver.offer_frame(&frame(PEER, OWN, &[0; 1200]));
        let Driver { queue, memory, .. } = &mut driver;
        worker.transmit(queue, memory, Instant::from_millis(at)).unwrap();
        mem::take(&mut worker.tunnel.underlay_mut().sent).len()
    };
    assert_eq!(send(&mut worker, 0), 2);
    worker.tunnel.underlay_mut().max_datagram = None;
    assert_eq!(send(&mut worker, 1000), 2, "as known");
    assert_eq!(send(&mut worker, 10_000), 1, "asked again");
    assert_eq!(worker.counters.get(VifCounter::path_mtu_changes), 1);
    assert_eq!(sum_drops(&worker), 0);
}

#[test]
fn icmp_errors_are_drained_counted_and_cost_no_frame() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    let refused = Report { errno: libc::ECONNREFUSED, mtu: 0, ..too_long_report(0) };
    worker.tunnel.underlay_mut().reports.push_back(refused);
    worker
        .tunnel
        .underlay_mut()
        .failures
        .push_back(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    driver.offer_frame(&frame(PEER, OWN, b"one"));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.tunnel.underlay().sent.len(), 1);
    assert_eq!(worker.counters.get(VifCounter::path_errors), 1);
    assert_eq!(sum_drops(&worker), 0);
    // A wake-up for nothing but a report.
    worker.tunnel.underlay_mut().reports.extend([refused; 3]);
    receive(&mut worker, &mut driver);
    assert!(worker.tunnel.underlay().reports.is_empty());
    assert_eq!(worker.counters.get(VifCounter::path_errors), 4);
}

/// The socket's receive buffer may be too full for reports.
#[test]
fn without_a_report_the_length_is_guessed() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    worker.tunnel.underlay_mut().failures.push_back(io::Error::from_raw_os_error(libc::EMSGSIZE));
    driver.offer_frame(&frame(PEER, OWN, &[1; 1400]));
    transmit(&mut worker, &mut driver);
    let sizes: Vec<usize> = worker.tunnel.underlay().sent.iter().map(|(_, d)| d.len()).collect();
    let room = 1400 - 28 - 16;
    assert_eq!(sizes, [16 + room, 16 + 1414 - room]);
    assert_eq!(sum_drops(&worker), 0);
}

/// However fast somebody makes errors, sending ends.
#[test]
fn a_flood_of_icmp_errors_does_not_hold_the_worker() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    for _ in 0..10_000 {
        let refused = Report { errno: libc::ECONNREFUSED, mtu: 0, ..too_long_report(0) };
        worker.tunnel.underlay_mut().reports.push_back(refused);
    }
    for _ in 0..200 {
        worker
            .tunnel
            .underlay_mut()
            .failures
            .push_back(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    }
    driver.offer_frame(&frame(PEER, OWN, b"one"));
    transmit(&mut worker, &mut driver);
    assert_eq!(worker.counters.get(VifCounter::tx_drop_unreachable), 1);
    assert!(worker.tunnel.underlay().reports.len() > 1000);
}

#[test]
fn pieces_that_stay_alone_ask_for_a_timer_and_are_counted() {
    let (mut worker, mut driver) = (capable_worker(), Driver::new());
    worker.tunnel.place_mut().receiver.capabilities = ALL;
    let piece = [0x40, 4, 0, 0, 0, 0, 0, 42, 0, 0, 0, 1, 0, 0, 0, 0, 9, 9];
    assert!(!worker.wants_attention());
    worker.tunnel.underlay_mut().own.push_back((addr(9), piece.to_vec()));
    receive(&mut worker, &mut driver);
    assert!(worker.wants_attention());
    worker.handle_timeout(Instant::ZERO);
    assert!(!worker.wants_attention(), "the timer is known");
    assert_eq!(worker.poll_timeout(), Some(Instant::ZERO + LIFETIME));
    worker.handle_timeout(Instant::ZERO + LIFETIME);
    assert_eq!(worker.poll_timeout(), None);
    assert_eq!(worker.counters.get(VifCounter::rx_drop_fragment), 1);
}
