//! What outsiders, strangers and recorded messages change: nothing.

use super::*;

#[test]
fn strangers_take_nothing_from_hosts_that_are_known() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(1);
    let made = w.count(0, SadbCounter::sa_sessions);
    let now = w.at(0);
    for n in 0..1000_u32 {
        let [.., c, d] = n.to_be_bytes();
        w.hosts[0].sadb.renew(vnet(), IpAddr::from([10, 1, c, d]), now);
    }
    let asked = w.hosts[0].sadb.rows(now).len();
    assert!(asked <= 2 + INITS_PER_SECOND as usize, "{asked}");
    w.hosts[0].sadb.renew(vnet(), ip(1), now);
    w.drain(0);
    w.run(2);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), made + 1);
}

/// Whoever sends made-up packets in a known host's name can have another session asked for: that
/// must neither cut the link, nor keep its hosts busy.
#[test]
fn packets_of_unknown_sessions_do_not_wear_a_link_out() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(2);
    let made = w.count(0, SadbCounter::sa_sessions);
    for _ in 0..1000 {
        for n in [0, 1] {
            let now = w.at(n);
            w.hosts[n].sadb.renew(vnet(), ip(1 - n), now);
            w.drain(n);
        }
        w.run_for(Duration::from_millis(10));
        assert!(w.is_through(0, 1) && w.is_through(1, 0), "{:?}", w.now);
    }
    assert_eq!((w.black, w.downs), (0, 0));
    let renewed = w.count(0, SadbCounter::sa_sessions) - made;
    assert!(renewed <= 26, "{renewed} in ten seconds");
}

#[test]
fn strangers_get_nowhere() {
    for (keys, level) in [(&[2][..], Level::Conf), (&[1][..], Level::Auth)] {
        let mut w = world(3);
        let mut ring = keyring(keys);
        if level == Level::Auth {
            let key = Secret::new([1; 32]);
            ring.keys = vec![MemberKeys::new(&key, vnet(), level, Suite::AesGcm)];
        }
        let now = w.at(2);
        w.hosts[2].sadb.set_vnet(vnet(), Some(ring), now);
        w.want(2, 0, 60);
        w.want(0, 2, 60);
        w.want(0, 1, 60);
        w.run(60);
        assert!(w.is_through(0, 1));
        assert!(w.hosts[2].sends.is_empty() && w.hosts[2].received.is_empty());
        assert_eq!(w.count(0, SadbCounter::sa_sessions), 1);
    }
}

#[test]
fn a_host_without_the_vnet_answers_nothing() {
    let mut w = world(2);
    let now = w.at(1);
    w.hosts[1].sadb.set_vnet(vnet(), None, now);
    w.want(0, 1, 60);
    w.want(1, 0, 60);
    w.run(10);
    assert!(w.recorded.iter().all(|(from, ..)| *from == 0));
    assert!(w.count(1, SadbCounter::handshake_drop_vnet) > 0);
}

#[test]
fn replayed_messages_change_nothing() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(2);
    let recorded = std::mem::take(&mut w.recorded);
    let sessions = [w.hosts[0].received.clone(), w.hosts[1].received.clone()];
    for _ in 0..100 {
        for (from, to, bytes) in &recorded {
            w.deliver(*from, *to, bytes);
            // As if from the other host, and from a third.
            w.deliver(*to, *from, bytes);
        }
    }
    assert_eq!([w.hosts[0].received.clone(), w.hosts[1].received.clone()], sessions);
    let answers = w.recorded.iter().filter(|(_, _, bytes)| bytes[3] != 4 && bytes[3] != 5).count();
    assert_eq!(answers, 0, "only ACKs and cookies");
    w.run(200);
    for (from, to, bytes) in &recorded {
        w.deliver(*from, *to, bytes);
    }
    w.run(10);
    assert!(w.is_through(0, 1));
}

#[test]
fn every_flipped_byte_is_dropped() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(2);
    let recorded = std::mem::take(&mut w.recorded);
    for (from, to, bytes) in &recorded {
        for at in 0..bytes.len() - if bytes[3] == 1 { 16 } else { 0 } {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x10;
            let dropped = |w: &World| -> u64 {
                let drops = [
                    SadbCounter::handshake_drop_forged,
                    SadbCounter::handshake_drop_malformed,
                    SadbCounter::handshake_drop_version,
                    SadbCounter::handshake_drop_vnet,
                ];
                drops.into_iter().map(|counter| w.count(*to, counter)).sum()
            };
            let before = dropped(&w);
            w.deliver(*from, *to, &wrong);
            assert_eq!(dropped(&w), before + 1, "type {} byte {at}", bytes[3]);
        }
    }
    assert!(w.recorded.is_empty());
}

/// A hundred thousand INITs: of outsiders, and recorded ones from false addresses.
#[test]
fn a_flood_makes_no_state_and_members_still_get_through() {
    let mut w = world(3);
    let now = w.at(0);
    let mut forged = vec![0; handshake::MAX_LEN];
    forged[..4].copy_from_slice(&[b'V', b'K', handshake::VERSION, 1]);
    forged[7] = 42;
    for n in 0..100_000_u32 {
        forged[12..16].copy_from_slice(&n.to_be_bytes());
        let [a, b, c, d] = (n | 0x0a00_0000).to_be_bytes();
        w.hosts[0].sadb.handle_message([a, b, c, d].into(), &forged, now);
    }
    assert!(w.hosts[0].sadb.poll_output().is_none(), "not one answer");
    assert!(w.hosts[0].sadb.peers.is_empty());

    // Recorded on the way from 1 to 2, sent to 2 from anywhere.
    w.want(1, 2, 600);
    w.run(1);
    let (.., init) = w.recorded[0].clone();
    for n in 0..10_000_u32 {
        let [a, b, c, d] = (n | 0x0a00_0000).to_be_bytes();
        let now = w.at(2);
        w.hosts[2].sadb.handle_message([a, b, c, d].into(), &init, now);
    }
    assert!(w.hosts[2].sadb.poll_output().is_none(), "it names the host that made it");
    assert_eq!(w.count(2, SadbCounter::handshake_drop_name), 10_000);
    // And as if from there.
    let mut answers = 0;
    for _ in 0..10_000_u32 {
        let now = w.at(2);
        w.hosts[2].sadb.handle_message(ip(1), &init, now);
        while let Some(output) = w.hosts[2].sadb.poll_output() {
            let Output::Send { bytes, .. } = output else { panic!("{output:?}") };
            assert_eq!(bytes[3], 5, "a cookie");
            answers += 1;
        }
    }
    assert!(answers > 9000);
    assert_eq!(w.hosts[2].sadb.peers.len(), 1);
    // Host 0 is a member: it has to show that it is where it says.
    w.want(0, 2, 60);
    let (.., bytes) = w.recorded.last().unwrap().clone();
    w.deliver(0, 2, &bytes);
    w.run(5);
    assert!(w.is_through(0, 2));
    assert!(w.recorded.iter().any(|(from, to, bytes)| (*from, *to, bytes[3]) == (2, 0, 5)));
}

/// Somebody sends an INIT again whose host knows nothing of it any more.
#[test]
fn an_init_that_nobody_confirms_holds_up_no_handshake_for_long() {
    for (other, host) in [(0, 1), (1, 0)] {
        let mut w = world(2);
        w.faults.lost = 100;
        w.want(other, host, 1);
        let (.., init) = w.recorded[0].clone();
        w.restart(other);
        w.hosts[other].sadb.start = Some(Instant::ZERO);
        w.deliver(other, host, &init);
        assert_eq!(w.hosts[host].received.len(), 1, "it is answered");
        w.faults.lost = 0;
        w.want(host, other, 60);
        w.run_for(HALF_OPEN_YIELDS / 2);
        assert!(!w.is_through(host, other), "it goes first");
        w.run_for(HALF_OPEN_YIELDS / 2 + 4 * MAX_DELAY);
        assert!(w.is_through(host, other) && w.is_through(other, host), "from {other}");
        assert_eq!(w.count(host, SadbCounter::sa_sessions), 1);
        w.run(60);
        assert_eq!(w.hosts[host].received.len(), 1, "nothing is left of the other");
        assert_eq!(w.black, 0);
    }
}

#[test]
fn what_was_recorded_before_a_start_is_not_answered() {
    let mut w = world(3);
    w.want(0, 1, 600);
    w.run(2);
    let (.., init) = w.recorded[0].clone();
    w.restart(1);
    for _ in 0..80 {
        w.recorded.clear();
        w.deliver(0, 1, &init);
        assert_eq!(w.recorded.len(), 1);
        assert_eq!(w.recorded[0].2[3], 5, "a cookie");
        w.run(2);
        assert!(w.hosts[1].received.is_empty() && w.hosts[1].sadb.peers.is_empty());
    }
    // Who is there has a round trip more.
    w.restart(1);
    w.recorded.clear();
    w.want(2, 1, 600);
    w.run_for(5 * MAX_DELAY);
    assert!(w.is_through(2, 1) && w.is_through(1, 2));
    let kinds: Vec<u8> = w.recorded.iter().map(|(.., bytes)| bytes[3]).collect();
    assert_eq!(kinds, [1, 5, 1, 2, 3, 4]);
    // And later not.
    w.run_for(FRESH);
    w.recorded.clear();
    w.restart(0);
    w.want(0, 1, 600);
    w.run(1);
    let kinds: Vec<u8> = w.recorded.iter().map(|(.., bytes)| bytes[3]).collect();
    assert_eq!(kinds, [1, 2, 3, 4]);
}

#[test]
fn who_has_a_token_says_so() {
    let mut w = world(2);
    w.restart(1);
    let key = w.hosts[1].sadb.token_key();
    w.want(0, 1, 600);
    w.run(1);
    assert!(w.is_through(0, 1));
    let receiver = |bytes: &[u8]| u32::from_be_bytes(bytes[16..20].try_into().unwrap());
    let inits = w.recorded.iter().filter(|(from, _, bytes)| (*from, bytes[3]) == (0, 1));
    let tokens: Vec<u32> = inits.map(|(.., bytes)| receiver(bytes)).collect();
    assert_eq!(tokens, [0, key.token(ip(0))]);
    let now = Now { mono: w.now + COOKIE_TURN, ..w.at(1) };
    w.hosts[1].sadb.handle_timeout(now);
    assert_ne!(w.hosts[1].sadb.token_key(), key, "it changes with the cookies");
}
