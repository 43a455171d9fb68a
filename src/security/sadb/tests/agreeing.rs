//! Hosts agree on keys, over a network that loses, repeats and reorders, or find that they can not.

use super::*;

#[test]
fn two_hosts_agree_and_derive_the_same_keys() {
    let mut w = world(2);
    w.want(0, 1, 60);
    w.run(1);
    assert!(w.is_through(0, 1) && w.is_through(1, 0));
    assert_eq!(w.count(0, SadbCounter::sa_sessions), 1);
    let [a, b] = [0, 1].map(|n| w.at(n));
    let to: SocketAddr = (ip(1), 4001).into();
    let out = w.hosts[0].sadb.outbound(vnet(), to, 1, a).unwrap();
    let (spi, key) = &out.keys[0];
    let inbound = w.hosts[1].sadb.inbound(spi.session(), to, b).unwrap();
    assert_eq!(sender_key(&inbound.receiver, spi.index()), *key);
    let other = w.hosts[1].sadb.inbound(spi.session(), (ip(1), 4002).into(), b).unwrap();
    assert_ne!(other.receiver, inbound.receiver, "each vif has its own");
    let again = w.hosts[0].sadb.outbound(vnet(), to, 1, a).unwrap();
    assert_ne!(again.keys[0], out.keys[0], "no sender gets another's key");
}

#[test]
fn a_host_sends_to_itself_without_asking() {
    let mut w = world(1);
    w.want(0, 0, 60);
    assert!(w.is_through(0, 0));
    assert!(w.recorded.is_empty());
}

#[test]
fn both_at_once_end_with_one_session() {
    for seed in 0..50 {
        let mut w = World::new(2, seed, Config::default());
        w.want(0, 1, 60);
        w.want(1, 0, 60);
        w.run(5);
        assert!(w.is_through(0, 1) && w.is_through(1, 0), "seed {seed}");
        let sessions = w.count(0, SadbCounter::sa_sessions);
        assert_eq!((sessions, w.count(1, SadbCounter::sa_sessions)), (1, 1), "seed {seed}");
        assert_eq!(w.black, 0, "seed {seed}");
    }
}

#[test]
fn losses_reorder_and_duplicates_only_delay() {
    for seed in 0..50 {
        let mut w = World::new(4, seed, Config::default());
        w.faults = Faults { lost: 30, twice: 20 };
        for (from, to) in [(0, 1), (1, 0), (2, 1), (3, 0), (0, 3), (3, 2)] {
            w.want(from, to, 200);
        }
        w.run(60);
        for (from, to) in [(0, 1), (1, 0), (2, 1), (3, 0), (0, 3), (3, 2)] {
            assert!(w.is_through(from, to), "seed {seed}: {from} to {to}");
        }
    }
}

#[test]
fn who_does_not_answer_is_given_up_and_tried_again() {
    let mut w = world(2);
    w.faults.lost = 100;
    w.want(0, 1, 100);
    w.run(30);
    assert!(w.hosts[0].gave_up >= 2, "{}", w.hosts[0].gave_up);
    assert!(w.recorded.len() < 40, "backs off: {}", w.recorded.len());
    w.faults.lost = 0;
    w.run(15);
    assert!(w.is_through(0, 1));
    w.run(1000);
    assert!(w.hosts[0].sadb.numbers.len() <= 1, "nothing is left of the attempts");
}

#[test]
fn a_host_that_lost_its_memory_asks_for_another_session() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(1);
    w.restart(1);
    w.run(5);
    assert!(!w.is_through(0, 1));
    // A backend there has seen packets of a session that it does not know.
    for _ in 0..1000 {
        let now = w.at(1);
        w.hosts[1].sadb.renew(vnet(), ip(0), now);
    }
    w.drain(1);
    // Three messages; the other side does not go on with the old session for a while.
    w.run_for(3 * MAX_DELAY);
    assert!(w.is_through(0, 1), "told once, all is well again");
    w.run(5);
    assert_eq!(w.count(1, SadbCounter::sa_sessions), 1);
}

#[test]
fn an_answer_that_is_late_ends_what_began_meanwhile() {
    for (first, second) in [(0, 1), (1, 0)] {
        let mut w = world(2);
        w.want(first, second, 60);
        w.run_for(MAX_DELAY);
        assert!(w.hosts[second].sadb.rows(w.at(second))[0].sessions == 1, "answered");
        // Nothing gets through until the other has begun as well.
        w.wire.clear();
        w.faults.lost = 100;
        w.want(second, first, 60);
        w.run_for(HALF_OPEN_YIELDS + Duration::from_millis(50));
        w.faults.lost = 0;
        w.run(5);
        assert!(w.is_through(0, 1) && w.is_through(1, 0), "{first}");
        assert_eq!(w.count(0, SadbCounter::sa_sessions), w.count(1, SadbCounter::sa_sessions));
        w.run(40);
        assert_eq!((w.black, w.hosts[0].received.len(), w.hosts[1].received.len()), (0, 1, 1));
    }
}

#[test]
fn a_wrong_clock_is_said_and_does_no_harm() {
    let mut w = world(2);
    w.hosts[0].clock_ms += 200_000;
    w.want(0, 1, 60);
    w.run(20);
    assert!(!w.is_through(0, 1));
    assert!(w.count(1, SadbCounter::handshake_drop_stale) > 0);
    w.hosts[0].clock_ms -= 200_000;
    w.run(30);
    assert!(w.is_through(0, 1));
}
