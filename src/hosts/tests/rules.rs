//! Who tells what to whom, and when.

use super::*;
use crate::wire::hello::{Abilities, Flags};

fn two() -> Segment {
    Segment::new(vec![setup([(42, open(1500))]), setup([(42, open(1500)), (43, open(1500))])])
}

#[test]
fn hosts_that_start_know_each_other_at_once() {
    let mut segment = two();
    segment.pass(secs(2));
    assert!(segment.has_converged());
    let rows = segment.rows(1, 2);
    assert_eq!(rows.len(), 1, "only vnets in common: {rows:?}");
    assert_eq!((rows[0].vnet, rows[0].vifs, rows[0].longest), (Some(vnet(42)), 2, 1500));
    assert!(rows[0].notes.is_empty(), "{rows:?}");
    assert_eq!(segment.rows(2, 1).len(), 1);
}

#[test]
fn a_newcomer_need_not_wait_for_an_interval() {
    let mut segment = two();
    segment.pass(secs(50));
    segment.restart(1, setup([(42, open(1500))]));
    segment.pass(secs(5));
    assert!(segment.has_converged(), "{:?}", segment.at(1).rows(now(0)));
    let lists = segment.count(2, HostsCounter::hello_tx_lists);
    assert!(lists <= 2, "one at its start, and one for the newcomer: {lists}");
}

#[test]
fn a_change_is_known_at_once_although_messages_are_lost() {
    let mut segment = two();
    segment.pass(secs(50));
    // Nothing that host 2 sends to the group in the first half second.
    segment.lose = |from, _, message| from == 2 && message % 2 == 0;
    segment.set_up(2, setup([(42, open(1400)), (44, open(1500))]));
    segment.pass(secs(8));
    assert!(segment.has_converged());
    assert_eq!(segment.rows(1, 2)[0].longest, 1400);
}

#[test]
fn a_list_that_was_lost_is_asked_for() {
    let mut segment = two();
    // All LISTs to the group are lost for a while: these are the messages that are not HELLOs.
    segment.pass(secs(50));
    segment.set_up(2, setup([(7, open(1500))]));
    let at = segment.now(2);
    segment.at(2).handle_timeout(at);
    // The HELLO arrives, the LIST does not.
    let mut outputs = std::iter::from_fn(|| segment.at(2).poll_output()).collect::<Vec<_>>();
    outputs.truncate(1);
    for output in outputs {
        let Output::Send { to: To::Group, bytes } = output else { panic!("{output:?}") };
        segment.deliver(2, 1, true, &bytes);
    }
    assert!(!segment.has_converged());
    segment.pass(secs(10));
    assert!(segment.has_converged());
    assert_eq!(segment.count(2, HostsCounter::hello_tx_answers), 1 + 1, "a nonce, and again");
}

/// Whoever has repeated no nonce gets at most one datagram for each of its own.
#[test]
fn a_list_goes_to_no_host_that_does_not_receive() {
    let mut segment = two();
    segment.pass(secs(50));
    let mut liar = host(9, setup([]), segment.now(1));
    let mut sent = 0;
    for answer in 0..200 {
        let to = Addressing { flags: Flags::WANTS_LIST, nonce: 5, answer };
        let at = Now { mono: segment.now(1).mono + secs(answer), ..segment.now(1) };
        let bytes = liar.own.hello(to, secs(120), at);
        let one = segment.at(1);
        one.handle_message(addr(9), false, &bytes, at);
        one.handle_timeout(at);
        while let Some(output) = one.poll_output() {
            if let Output::Send { to: To::Host(to), bytes: out } = output
                && to == addr(9)
            {
                sent += 1;
                assert!(out.len() <= bytes.len(), "an answer is no longer than its question");
                assert!(matches!(Message::parse(&out).unwrap().body, Body::Hello(_)));
            }
        }
    }
    assert!(sent <= 200 + 60, "answers, and its own questions: {sent}");
}

#[test]
fn questions_are_answered_within_limits() {
    let mut segment = two();
    segment.pass(secs(50));
    let before = segment.count(1, HostsCounter::hello_tx_answers);
    let at = segment.now(1);
    for n in 100..600 {
        let mut other = host(n, setup([]), at);
        for _ in 0..10 {
            let to = Addressing { flags: Flags::NONE, nonce: 5, answer: 0 };
            let bytes = other.own.hello(to, secs(120), at);
            segment.at(1).handle_message(addr(n), false, &bytes, at);
        }
    }
    assert_eq!(segment.count(1, HostsCounter::hello_tx_answers) - before, 40);
    assert_eq!(segment.count(1, HostsCounter::hello_limited), 5000 - 40);
}

#[test]
fn a_host_that_leaves_is_gone_at_once_and_one_that_is_not_heard_after_four_intervals() {
    let mut segment = two();
    segment.pass(secs(10));
    let at = segment.now(2);
    segment.at(2).leave(at);
    segment.carry();
    assert!(segment.rows(1, 2).is_empty());
    let mut segment = two();
    segment.pass(secs(10));
    segment.hosts[1] = None;
    segment.pass(secs(100));
    assert_eq!(segment.rows(1, 2).len(), 1);
    segment.pass(secs(25));
    assert!(segment.rows(1, 2).is_empty());
    assert_eq!(segment.at(1).table.len(), 0);
    assert_eq!(segment.count(1, HostsCounter::hello_left), 1);
}

#[test]
fn unicast_is_tried_both_ways_every_minute() {
    let mut segment = two();
    segment.pass(secs(200));
    for (one, other) in [(1, 2), (2, 1)] {
        let row = &segment.rows(one, other)[0];
        assert!(row.by_unicast.is_some_and(|ago| ago < secs(61)), "{row:?}");
        assert!(row.by_group.is_some_and(|ago| ago < secs(46)), "{row:?}");
    }
    let questions = [1, 2].map(|n| segment.count(n, HostsCounter::hello_tx_questions));
    assert_eq!(questions[1], 0, "one of the two asks");
    assert!((2..=4).contains(&questions[0]), "{questions:?}");
}

/// As where multicast goes one way only.
#[test]
fn a_host_that_does_not_hear_the_group_is_seen() {
    let mut segment = two();
    // Host 1 hears host 2, which hears only what is sent to it alone.
    segment.lose = |from, to, _| (from, to) == (1, 2);
    segment.pass(secs(10));
    segment.lose = |_, _, _| false;
    segment.pass(secs(2));
    let ask = |segment: &mut Segment| segment.pass(secs(60));
    assert!(segment.rows(2, 1).is_empty());
    ask(&mut segment);
    let notes = |segment: &Segment, n, m| segment.rows(n, m)[0].notes.join("; ");
    assert_eq!(notes(&segment, 1, 2), "");
    let at = segment.now(1);
    let bytes = segment.at(2).own.hello(
        Addressing { flags: Flags::NONE, nonce: 5, answer: 0 },
        secs(120),
        at,
    );
    segment.deliver(2, 1, false, &bytes);
    assert_eq!(notes(&segment, 1, 2), "does not hear this host by group");
}

#[test]
fn a_clock_that_is_off_and_another_realm_are_seen() {
    let mut segment = two();
    segment.ahead[1] = 7_200_000;
    segment.pass(secs(2));
    let row = &segment.rows(1, 2)[0];
    assert!((row.ahead_ms - 7_200_000).abs() < 10, "{row:?}");
    assert_eq!(row.notes, ["clock 7200 s ahead"]);
    assert_eq!(segment.rows(2, 1)[0].notes, ["clock 7200 s behind"]);
    let other = Name::host(Realm(7), addr(3).ip());
    let mut other = Hosts::new(other, PORT, [3; 32], now(0));
    other.set_up(setup([]), now(0));
    other.handle_timeout(now(0));
    let Some(Output::Send { bytes, .. }) = other.poll_output() else { panic!("no HELLO") };
    let at = segment.now(1);
    segment.at(1).handle_message(addr(3), true, &bytes, at);
    let rows = segment.at(1).rows(at);
    let row = rows.iter().find(|row| row.host.realm() == Realm(7)).unwrap();
    assert!(row.notes.contains(&"realm 7, here 0".to_owned()), "{row:?}");
}

/// Anybody can send such a LIST in a host's name. It must neither pass for that host's nor cause a warning.
#[test]
fn a_claim_without_a_right_tag_is_shown_as_not_proved() {
    let groups = Choice { sent: VNET, accepted: 2 };
    let mut segment =
        Segment::new(vec![setup([(42, secured(1500, 1))]), setup([(42, secured(1500, 1))])]);
    segment.pass(secs(50));
    let notes = |segment: &Segment| segment.rows(1, 2)[0].notes.join("; ");
    assert_eq!(notes(&segment), "");
    let at = segment.now(1);
    for (lie, note) in [
        (open(1500), "not proved (policy none, here conf)"),
        (secured(1500, 9), "not proved (another key)"),
        (Vnet { keys: Vec::new(), ..secured(1500, 1) }, "not proved (another key)"),
        (
            Vnet { groups, ..open(1500) },
            "not proved (policy none, here conf, sends to group 'vnet', not in groups here, \
             group 'one' not in groups there, but sent to here)",
        ),
    ] {
        let mut liar = host(2, setup([(42, lie)]), Now { wall_ms: at.wall_ms + 1, ..at });
        let list = liar.own.list(own::ALL, segment.now(1)).0;
        segment.outputs.clear();
        segment.deliver(2, 1, true, &list);
        assert!(notes(&segment).starts_with(note), "{}", notes(&segment));
        let outputs = std::iter::from_fn(|| segment.at(1).poll_output());
        let warns = outputs.filter(|output| matches!(output, Output::Differs { .. })).count();
        assert_eq!(warns, 0, "{note}");
        segment.pass(secs(1));
    }
    // The host is asked, and proves what it says.
    segment.pass(secs(60));
    assert_eq!(notes(&segment), "");
    segment.set_up(2, setup([(42, Vnet { groups, ..secured(1500, 1) })]));
    segment.pass(secs(3));
    assert!(notes(&segment).starts_with("sends to group 'vnet'"), "{}", notes(&segment));
    let warns = segment.outputs.iter().any(|(n, output)| {
        *n == 1 && matches!(output, Output::Differs { what: Difference::Deaf(_), .. })
    });
    assert!(warns, "a host that proves it is warned of");
}

#[test]
fn every_message_that_is_not_believed_has_a_name() {
    use HostsCounter as C;
    let mut segment = two();
    segment.pass(secs(50));
    let at = segment.now(1);
    let mut other = host(9, setup([]), at);
    let hello = |other: &mut Hosts, nonce, flags| {
        other.own.hello(Addressing { flags, nonce, answer: 0 }, secs(120), at)
    };
    let to_group = |other: &mut Hosts| hello(other, 0, Flags::NONE);
    let mut cases: Vec<(C, SocketAddr, bool, Vec<u8>)> = Vec::new();
    cases.push((C::hello_rx_malformed, addr(9), true, to_group(&mut other)[..100].to_vec()));
    let mut newer = to_group(&mut other);
    newer[2] = 2;
    cases.push((C::hello_rx_version, addr(9), true, newer));
    let mut port = addr(9);
    port.set_port(1799);
    cases.push((C::hello_drop_port, port, true, to_group(&mut other)));
    cases.push((C::hello_drop_source, addr(8), true, to_group(&mut other)));
    cases.push((C::hello_drop_cast, addr(9), false, to_group(&mut other)));
    cases.push((C::hello_drop_cast, addr(9), true, hello(&mut other, 5, Flags::NONE)));
    cases.push((C::hello_drop_unasked, addr(9), false, hello(&mut other, 5, Flags::ANSWER)));
    let (list, _) = other.own.list(own::ALL, at);
    cases.push((C::hello_drop_unknown, addr(9), true, list));
    let bytes = to_group(&mut other);
    let mut message = Message::parse(&bytes).unwrap();
    if let Body::Hello(hello) = &mut message.body {
        hello.abilities = Abilities::RELAY;
    }
    cases.push((C::hello_drop_relay, addr(9), true, message.to_bytes()));
    let own = segment.at(1).own.hello(Addressing::default(), secs(120), at);
    cases.push((C::hello_drop_own, addr(1), true, own));
    for (counter, from, is_group, bytes) in cases {
        let before = segment.count(1, counter);
        let known = segment.at(1).table.len();
        segment.at(1).handle_message(from, is_group, &bytes, at);
        assert_eq!(segment.count(1, counter), before + 1, "{counter:?}");
        assert_eq!(segment.at(1).table.len(), known, "{counter:?}");
    }
    let fresh = to_group(&mut other);
    segment.at(1).handle_message(addr(9), true, &fresh, at);
    segment.at(1).handle_message(addr(9), true, &fresh, at);
    assert_eq!(segment.count(1, C::hello_drop_stale), 1);
    assert_eq!(segment.count(1, C::hello_joined), 2);
}

#[test]
fn a_host_at_another_address_is_another_host() {
    let mut segment = two();
    segment.pass(secs(50));
    let at = segment.now(2);
    segment.at(2).move_to(name(3), at);
    let bytes = {
        let two = segment.at(2);
        two.handle_timeout(at);
        std::iter::from_fn(|| two.poll_output()).collect::<Vec<_>>()
    };
    for output in bytes {
        let Output::Send { to: To::Group, bytes } = output else { panic!("{output:?}") };
        segment.at(1).handle_message(addr(3), true, &bytes, at);
    }
    let one = segment.at(1);
    assert_eq!(one.table.get(name(3)).unwrap().digest, one.table.get(name(2)).unwrap().digest);
}
