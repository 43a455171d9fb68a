//! Hosts that slept, and hosts that are copies of what they were.

use super::*;

#[test]
fn sessions_age_while_their_host_sleeps_and_are_replaced_without_a_gap() {
    let mut w = world(2);
    w.want(0, 1, 100_000);
    w.run(1);
    let sleep = |w: &mut World, asleep: Duration| {
        let now = w.at(0);
        w.hosts[0].sadb.awake(asleep, now);
        w.drain(0);
        w.run(5);
    };
    sleep(&mut w, SECOND * 60);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), 2, "another at once");
    assert!(w.is_through(0, 1) && w.is_through(1, 0));
    assert_eq!(w.black, 0);
    // Longer than a key may live at all.
    sleep(&mut w, SECOND * 8000);
    assert!(w.is_through(0, 1));
    assert_eq!(w.count(0, SadbCounter::sa_sessions), 3);
    assert_eq!(w.count(0, SadbCounter::sa_ended), 2);
}

#[test]
fn a_copy_of_a_host_uses_no_session_and_no_randomness_of_before() {
    let mut w = world(2);
    w.want(0, 1, 100_000);
    w.run(1);
    let before = w.hosts[0].sends[&ip(1)].keys[0].0.session();
    let begun = w.recorded.len();
    let now = w.at(0);
    w.hosts[0].sadb.begin_anew(Secret::new([77; 32]), now);
    w.drain(0);
    assert!(w.hosts[0].received.is_empty() && w.hosts[0].sends.is_empty(), "at once");
    w.run(5);
    assert!(w.is_through(0, 1) && w.is_through(1, 0));
    assert_ne!(w.hosts[0].sends[&ip(1)].keys[0].0.session(), before);
    // The same state with another seed sends other messages.
    let first = w.recorded[begun].2.clone();
    let mut other = world(2);
    other.want(0, 1, 100_000);
    other.run(1);
    let now = other.at(0);
    other.hosts[0].sadb.begin_anew(Secret::new([78; 32]), now);
    other.drain(0);
    assert_eq!(other.recorded[..begun], w.recorded[..begun]);
    assert_ne!(other.recorded[begun].2, first);
}
