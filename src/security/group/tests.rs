//! What a sender seals, and what a receiver takes of it and of what others make up.

mod unique;

use super::candidates::Senders;
use super::*;
use crate::policy::Suite;
use crate::security::esp::OpenError;
use crate::sys::clock;
use crate::time::{Instant, Now};
use crate::wire::VnetId;
use crate::wire::esp::{HEAD_LEN, sealed_len};

const NOW: u64 = 1_767_225_600_000;
/// Of a sender.
const RANDOM: u32 = 0xa0b1_c2d3;

fn vnet() -> VnetId {
    VnetId::new(42).unwrap()
}

fn at(host: u8) -> SocketAddr {
    ([192, 0, 2, host], 4000).into()
}

fn key(byte: u8) -> Secret {
    Secret::new([byte; 32])
}

fn sender(salt: u16) -> GroupSender {
    sender_at(at(1), salt)
}

fn sender_at(own: SocketAddr, salt: u16) -> GroupSender {
    let salt = Salt { spi: salt, random: RANDOM ^ u32::from(salt) };
    GroupSender::new(key(1), Suite::AesGcm, vnet(), own, salt)
}

fn receiver(keys: &[u8]) -> GroupReceiver {
    let mut receiver = GroupReceiver::default();
    receiver.set_keys(keys.iter().map(|byte| (Suite::AesGcm, key(*byte))).collect());
    receiver.expected.unlimited();
    receiver
}

fn seal(sender: &mut GroupSender, text: &[u8], wall_ms: u64) -> Vec<u8> {
    let mut packet = vec![0; sealed_len(text.len())];
    packet[HEAD_LEN..HEAD_LEN + text.len()].copy_from_slice(text);
    sender.seal(&mut packet, text.len(), wall_ms).unwrap();
    packet
}

fn open(
    receiver: &mut GroupReceiver,
    from: SocketAddr,
    packet: &[u8],
    wall_ms: u64,
) -> Result<Vec<u8>, GroupError> {
    open_at(receiver, from, packet, wall_ms, wall_ms.saturating_sub(NOW))
}

/// The same; the monotonic clock shows something else.
fn open_at(
    receiver: &mut GroupReceiver,
    from: SocketAddr,
    packet: &[u8],
    wall_ms: u64,
    mono_ms: u64,
) -> Result<Vec<u8>, GroupError> {
    let mut packet = packet.to_vec();
    let head = Head::parse(&packet).unwrap();
    let mono = Instant::from_millis(1_000_000 + mono_ms);
    let range = receiver.open(vnet(), from, &head, &mut packet, Now { mono, wall_ms })?;
    Ok(packet[range].to_vec())
}

#[test]
fn the_first_packet_of_a_stranger_is_opened_and_only_once() {
    let (mut s, mut r) = (sender(5), receiver(&[1]));
    let first = seal(&mut s, b"who has", NOW);
    assert_eq!(open(&mut r, at(1), &first, NOW).unwrap(), b"who has");
    assert_eq!(open(&mut r, at(1), &first, NOW), Err(OpenError::Replay.into()));
    assert_eq!(open(&mut r, at(2), &first, NOW), Err(OpenError::Inauthentic.into()));
    assert_eq!(r.senders.len(), 1, "a forger leaves nothing behind");
    assert!(open(&mut receiver(&[2]), at(1), &first, NOW).is_err());
    assert_eq!(open(&mut receiver(&[2, 1]), at(1), &first, NOW).unwrap(), b"who has");
}

/// Number 0 is refused before its key is tried: that must not count as a sender who has one.
#[test]
fn forged_first_packets_leave_nothing_behind() {
    let mut r = receiver(&[2, 1]);
    let mut s = sender(5);
    let genuine = seal(&mut s, b"x", NOW);
    for host in 0..100 {
        let mut forged = genuine.clone();
        // The number: in the head, and under the random one in the IV.
        forged[4..8].fill(0);
        forged[12..16].copy_from_slice(&(RANDOM ^ 5).to_be_bytes());
        let refused = open(&mut r, at(host), &forged, NOW);
        assert_eq!(refused, Err(OpenError::Replay.into()));
    }
    assert!(r.senders.is_empty());
    assert_eq!(open(&mut r, at(1), &genuine, NOW).unwrap(), b"x", "its key is the second");
}

#[test]
fn what_is_old_is_refused_for_good() {
    let (mut s, mut r) = (sender(5), receiver(&[1]));
    let packet = seal(&mut s, b"x", NOW);
    let tolerance = 90_000;
    assert_eq!(open(&mut r, at(1), &packet, NOW + tolerance + 1000), Err(GroupError::Stale));
    assert_eq!(open(&mut r, at(1), &packet, NOW - tolerance - 1000), Err(GroupError::Stale));
    assert!(open(&mut r, at(1), &packet, NOW + tolerance).is_ok());
    r.sweep(seconds(NOW + 2 * tolerance).unwrap());
    assert!(r.senders.is_empty());
    assert_eq!(open(&mut r, at(1), &packet, NOW), Err(GroupError::Stale), "clock set back");
}

#[test]
fn a_sender_uses_no_start_twice_and_keeps_its_random_number() {
    let mut s = sender(5);
    let mut starts = Vec::new();
    // The clock goes back and forth.
    for ms in [NOW, NOW + 30_000, NOW + 29_000, NOW - 50_000, NOW - 50_000, NOW + 90_000] {
        let start = Head::parse(&seal(&mut s, b"x", ms)).unwrap().start();
        assert_eq!(start.random, RANDOM ^ 5);
        starts.push(start.second);
    }
    let first = seconds(NOW).unwrap();
    // Three starts: a clock that is off by less than half a minute makes none.
    let expected = [0, 30, 30, -50, -50, 90].map(|at| first.saturating_add_signed(at));
    assert_eq!(starts, expected);
    let again = Head::parse(&seal(&mut s, b"x", NOW)).unwrap().start();
    assert_eq!(again.second, first + 1, "the second was used");
}

/// Whoever sees a packet can make up any other number: its key is derived as a stranger's.
#[test]
fn another_random_number_is_another_sender() {
    let (mut s, mut r) = (sender(5), receiver(&[1]));
    r.expected = Senders::default();
    assert!(open(&mut r, at(1), &seal(&mut s, b"x", NOW), NOW).is_ok());
    flood(&mut r, 7, NOW + 30_000);
    for random in 0..100 {
        let mut forged = seal(&mut s, b"x", NOW + 30_000);
        forged[12..16].copy_from_slice(&u32::to_be_bytes(random));
        assert_eq!(open(&mut r, at(1), &forged, NOW + 30_000), Err(GroupError::Flood));
    }
    let packet = seal(&mut s, b"known", NOW + 30_000);
    assert_eq!(open(&mut r, at(1), &packet, NOW + 30_000).unwrap(), b"known");
}

#[test]
fn strangers_are_bounded_and_forget_in_time() {
    let mut r = receiver(&[1]);
    for n in 0..MAX_SENDERS {
        let port = u16::try_from(n + 1).unwrap();
        let from = SocketAddr::from(([192, 0, 2, 1], port));
        let mut s = sender_at(from, 1);
        let packet = seal(&mut s, b"x", NOW);
        assert!(open(&mut r, from, &packet, NOW).is_ok());
    }
    let packet = seal(&mut sender(5), b"x", NOW + 1000);
    assert_eq!(open(&mut r, at(1), &packet, NOW + 1000), Err(GroupError::Full));
    let later = NOW + 200_000;
    let packet = seal(&mut sender(7), b"x", later);
    assert!(open(&mut r, at(1), &packet, later).is_ok());
    assert_eq!(r.senders.len(), 1);
}

/// A receiver without room: fifty senders started at each second.
fn full() -> GroupReceiver {
    let mut r = receiver(&[1]);
    for n in 0..MAX_SENDERS {
        let from = SocketAddr::from(([192, 0, 2, 3], u16::try_from(n + 1).unwrap()));
        let start = NOW + u64::try_from(n % 80).unwrap() * 1000;
        let mut s = sender_at(from, 1);
        assert!(open(&mut r, from, &seal(&mut s, b"x", start), NOW).is_ok());
    }
    r
}

#[test]
fn senders_make_room_second_by_second() {
    let mut r = full();
    let now = NOW + 80_000;
    let late = seal(&mut sender(5), b"x", now);
    assert_eq!(open(&mut r, at(1), &late, now), Err(GroupError::Full));
    let now = NOW + 91_000;
    let late = seal(&mut sender(5), b"x", now);
    assert!(open(&mut r, at(1), &late, now).is_ok());
    assert_eq!(r.senders.len(), 1 + MAX_SENDERS - MAX_SENDERS.div_ceil(80));
    assert!(r.senders.keys().all(|start| start.second > seconds(NOW).unwrap()));
}

/// Outsiders can name senders that nobody knows as fast as they like.
#[test]
fn a_full_table_makes_strangers_no_dearer() {
    let (mut empty, mut full) = (receiver(&[1]), full());
    let mut packet = seal(&mut sender(5), b"x", NOW);
    *packet.last_mut().unwrap() ^= 1;
    let cost = |r: &mut GroupReceiver, want: GroupError| {
        let began = clock::mono();
        for host in 0..250 {
            assert_eq!(open(r, at(host), &packet, NOW), Err(want));
        }
        clock::mono().saturating_since(began)
    };
    let rounds = (0..20).map(|_| {
        let forged = cost(&mut empty, OpenError::Inauthentic.into());
        (cost(&mut full, GroupError::Full), forged)
    });
    let (at_full, at_empty) = rounds.min_by_key(|(at_full, _)| *at_full).unwrap();
    // It was a hundred times as much when each looked at all senders.
    assert!(at_full < at_empty * 4, "{at_full:?}, and {at_empty:?} with an empty table");
}

#[test]
fn a_removed_key_ends_its_senders() {
    let (mut s, mut r) = (sender(5), receiver(&[2, 1]));
    let [first, second] = [b"1", b"2"].map(|text| seal(&mut s, text, NOW));
    assert!(open(&mut r, at(1), &first, NOW).is_ok());
    r.set_keys(vec![(Suite::AesGcm, key(2))]);
    assert_eq!(open(&mut r, at(1), &second, NOW), Err(OpenError::Inauthentic.into()));
}

/// Packets in the name of senders that nobody knows, as many as come.
fn flood(r: &mut GroupReceiver, from: u8, wall_ms: u64) -> usize {
    let mut forged = seal(&mut sender(5), b"x", wall_ms);
    *forged.last_mut().unwrap() ^= 1;
    let refused = (0..5000_u16).map(|port| {
        let from = SocketAddr::from(([198, 51, 100, from], port));
        open(r, from, &forged, wall_ms)
    });
    refused.filter(|refused| *refused == Err(GroupError::Flood)).count()
}

#[test]
fn a_flood_of_strangers_costs_no_more_keys_than_its_budget_and_silences_nobody_who_is_known() {
    let (mut s, mut r) = (sender(5), receiver(&[2, 1]));
    r.expected = Senders::default();
    assert!(open(&mut r, at(1), &seal(&mut s, b"first", NOW), NOW).is_ok());
    for second in 1..100 {
        let now = NOW + 1000 * second;
        assert!(flood(&mut r, 7, now) >= 3999, "second {second}");
        // A start every half minute, and its clock is behind ours by nothing that matters.
        let packet = seal(&mut s, b"known", now);
        assert_eq!(open(&mut r, at(1), &packet, now).unwrap(), b"known", "second {second}");
    }
    let stranger = seal(&mut sender(5), b"x", NOW + 99_000);
    assert_eq!(open(&mut r, at(2), &stranger, NOW + 99_000), Err(GroupError::Flood));
}

/// It began while others were heard in its place.
#[test]
fn a_sender_whose_first_start_was_heard_late_is_known_all_the_same() {
    let (mut s, mut r) = (sender(5), receiver(&[1]));
    r.expected = Senders::default();
    seal(&mut s, b"lost", NOW);
    let late = NOW + 28_000;
    assert!(open(&mut r, at(1), &seal(&mut s, b"x", late), late).is_ok());
    for second in [31, 65, 99] {
        let now = NOW + 1000 * second;
        flood(&mut r, 7, now);
        assert!(open(&mut r, at(1), &seal(&mut s, b"x", now), now).is_ok(), "{second}");
    }
}

/// Who sees the packets of a sender can forge its address, its SPI and any start.
#[test]
fn a_flood_in_the_name_of_a_known_sender_does_not_silence_it() {
    let (mut s, mut r) = (sender(5), receiver(&[2, 1]));
    r.expected = Senders::default();
    assert!(open(&mut r, at(1), &seal(&mut s, b"first", NOW), NOW).is_ok());
    for second in 1..100 {
        let now = NOW + 1000 * second;
        for start in NOW / 1000 - 80..NOW / 1000 + 190 {
            let mut forged = seal(&mut sender(5), b"x", start * 1000);
            *forged.last_mut().unwrap() ^= 1;
            assert!(open(&mut r, at(1), &forged, now).is_err());
        }
        assert!(r.expected.candidates_len() <= 70);
        let packet = seal(&mut s, b"known", now);
        assert_eq!(open(&mut r, at(1), &packet, now).unwrap(), b"known", "second {second}");
    }
}

/// A packet as that one, of another start, and not authentic.
fn forge(like: &[u8], second: u64) -> Vec<u8> {
    let mut forged = like.to_vec();
    forged[8..12].copy_from_slice(&u32::try_from(second).unwrap().to_be_bytes());
    *forged.last_mut().unwrap() ^= 1;
    forged
}

/// All of a vnet's senders at once: each packet that they send shows address, SPI and random
/// number.
#[test]
fn a_flood_in_the_names_of_two_hundred_known_senders_silences_none_of_them() {
    let mut r = receiver(&[2, 1]);
    r.expected = Senders::default();
    let mut senders: Vec<(SocketAddr, GroupSender, Vec<u8>)> = Vec::new();
    for n in 0..200 {
        let from = SocketAddr::from(([192, 0, 2, 1], 4000 + n));
        let mut s = sender_at(from, n);
        let first = seal(&mut s, b"first", NOW);
        assert!(open(&mut r, from, &first, NOW).is_ok());
        senders.push((from, s, first));
    }
    for second in 25..45 {
        let (now, wall) = (NOW + 1000 * second, NOW / 1000 + second);
        for (from, _, first) in &senders {
            for start in (wall - 5..wall + 36).rev() {
                assert!(open(&mut r, *from, &forge(first, start), now).is_err());
            }
        }
        assert!(r.expected.candidates_len() <= 200 * 35);
        for (from, s, _) in &mut senders {
            let opened = open(&mut r, *from, &seal(s, b"known", now), now);
            assert_eq!(opened.as_deref(), Ok(&b"known"[..]), "{from}, second {second}");
        }
    }
}

/// A full table is swept each second; the senders that stay keep their candidates and budgets.
#[test]
fn a_full_table_silences_no_known_sender_under_a_flood_in_its_name() {
    let (mut s, mut r) = (sender(5), receiver(&[2, 1]));
    let mut port = 0;
    let mut crowd = |r: &mut GroupReceiver, count: u64, now: u64| {
        for _ in 0..count {
            port += 1;
            let from = SocketAddr::from(([198, 51, 100, 1], port));
            let _ = open(r, from, &seal(&mut sender_at(from, 1), b"x", now), now);
        }
    };
    let first = seal(&mut s, b"first", NOW);
    assert!(open(&mut r, at(1), &first, NOW).is_ok());
    for second in 0..125 {
        let (now, wall) = (NOW + 1000 * second, NOW / 1000 + second);
        for start in (wall - 5..wall + 36).rev() {
            assert!(second < 91 || open(&mut r, at(1), &forge(&first, start), now).is_err());
        }
        let opened = open(&mut r, at(1), &seal(&mut s, b"known", now), now);
        assert_eq!(opened.as_deref(), Ok(&b"known"[..]), "second {second}");
        crowd(&mut r, if second < 91 { 45 } else { 60 }, now);
        assert_eq!(r.senders.len() == MAX_SENDERS, second >= 90, "{second}");
    }
}

/// Senders that start while the clock of this host, or theirs, is far ahead.
#[test]
fn a_clock_that_was_far_ahead_keeps_nobody_out_once_it_is_right() {
    const YEAR: u64 = 365 * 24 * 3_600_000;
    let mut r = receiver(&[1]);
    for n in 0..MAX_SENDERS + 10 {
        let from = SocketAddr::from(([192, 0, 2, 1], u16::try_from(n + 1).unwrap()));
        let mut s = sender_at(from, 1);
        let _ = open_at(&mut r, from, &seal(&mut s, b"x", NOW + YEAR), NOW + YEAR, 0);
    }
    assert!(r.swept > seconds(NOW).unwrap() + tolerance());
    let (recorded, mut s) = (seal(&mut sender(6), b"x", NOW - 1000), sender(5));
    let packet = seal(&mut s, b"right", NOW);
    assert_eq!(open_at(&mut r, at(1), &packet, NOW, 10_000).unwrap(), b"right");
    let old = open_at(&mut r, at(1), &recorded, NOW, 10_000);
    assert_eq!(old, Err(GroupError::Stale), "may be old");
    // The same sender, ahead for two days, then right again.
    for n in 0..5760 {
        seal(&mut s, b"x", NOW + YEAR + 30_000 * n);
    }
    let packet = seal(&mut s, b"right", NOW + 60_000);
    assert_eq!(open(&mut r, at(1), &packet, NOW + 60_000).unwrap(), b"right");
}

/// It was heard while its clock and this host's were ahead alike.
#[test]
fn a_sender_that_was_far_ahead_is_known_again_once_it_is_right() {
    const AHEAD: u64 = 7_200_000;
    let (mut s, mut r) = (sender(5), receiver(&[1]));
    r.expected = Senders::default();
    let packet = seal(&mut s, b"ahead", NOW + AHEAD);
    assert!(open_at(&mut r, at(1), &packet, NOW + AHEAD, 0).is_ok());
    assert!(open_at(&mut r, at(1), &seal(&mut s, b"right", NOW), NOW, 1000).is_ok());
    for second in 1..100 {
        let now = NOW + 1000 * second;
        flood(&mut r, 7, now);
        let packet = seal(&mut s, b"known", now);
        assert_eq!(open(&mut r, at(1), &packet, now).unwrap(), b"known", "second {second}");
    }
}
