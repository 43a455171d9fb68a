//! Who is believed what.

use super::*;

#[test]
fn only_the_owner_answers_and_to_the_asker() {
    let mut bench = Bench::hosting();
    let ours = bench.mapper.claim(VIF).unwrap();
    bench.hear(2, true, message(key(7, 1), 42, request(2, false)));
    let answer = message(key(7, 1), 42, reply(ours));
    assert_eq!(
        bench.outputs(),
        [Output::Send { to: Destination::Unicast(varp_of(2)), message: answer }]
    );
    bench.learn(VIF, 3, claim(3, 0));
    bench.hear(2, true, message(key(7, 3), 42, request(2, false)));
    assert_eq!(bench.outputs(), [], "no proxy answers from its cache");
    bench.hear(2, true, message(key(8, 1), 42, request(2, false)));
    assert_eq!(bench.outputs(), [], "the same MAC on another vnet");
}

#[test]
fn a_host_that_is_asked_alone_says_no() {
    let mut bench = Bench::hosting();
    bench.hear(2, false, message(key(9, 9), 42, request(2, true)));
    let answer = message(key(9, 9), 42, Body::Absent);
    assert_eq!(bench.sent(), [(Destination::Unicast(varp_of(2)), answer)]);
    bench.hear(2, true, message(key(9, 9), 42, request(2, true)));
    assert_eq!(bench.sent(), [], "not when all are asked");
}

#[test]
fn a_reply_goes_to_no_third_host() {
    let mut bench = Bench::hosting();
    let asked = by(9, message(key(7, 1), 42, request(9, false)));
    bench.hear(2, true, asked);
    bench.hear(2, false, asked);
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.count(MapperCounter::rx_drop_source), 2);
    for via_group in [true, false] {
        bench.hear(2, via_group, Message { relayed: true, ..asked });
    }
    assert_eq!(bench.outputs(), [], "host 2 is no relay");
    assert_eq!(bench.count(MapperCounter::rx_drop_relayed), 2);
}

/// Any user of a host can send from a port that is not VARP's.
#[test]
fn who_sends_from_another_port_is_not_heard() {
    let mut bench = Bench::hosting();
    let addr = SocketAddr::from(([192, 0, 2, 2], 40_000));
    let body = [request(2, false), announce(claim(2, HOUR)), reply(claim(2, HOUR))];
    for body in body.into_iter().chain([correction(claim(2, HOUR)), Body::Absent]) {
        for author in [author(2), Author { realm: Realm(0), addr }] {
            let said = Message { author, ..message(key(7, 1), 42, body) };
            bench.mapper.handle_message(addr, true, &said, bench.now);
            bench.mapper.handle_message(addr, false, &said, bench.now);
        }
    }
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.count(MapperCounter::rx_drop_port), 20);
}

#[test]
fn a_known_relay_speaks_for_others() {
    let mut bench = Bench::with(|config| config.relays = vec![varp_of(8).ip()]);
    bench.activate(VIF, key(7, 1));
    bench.settle();
    bench.learn(VIF, 2, claim(2, 0));
    let relayed = |host, message| Message { relayed: true, ..by(host, message) };
    bench.hear(8, false, relayed(3, message(key(7, 2), 5, announce(claim(3, 2000)))));
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(3, 2000), 30_000))]);
    bench.hear(8, false, relayed(9, message(key(7, 1), 42, request(9, false))));
    assert_eq!(bench.sent()[0].0, Destination::Unicast(varp_of(9)));
    bench.hear(8, false, relayed(9, message(key(7, 2), 5, announce(claim(4, 3000)))));
    assert_eq!(bench.count(MapperCounter::rx_drop_source), 1, "in the author's name only");
}

#[test]
fn own_messages_that_come_back_are_ignored() {
    let mut bench = Bench::new();
    bench.activate(VIF, key(7, 1));
    bench.resolve(VIF, 2);
    for (_, message) in bench.sent() {
        bench.hear(1, true, message);
    }
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.count(MapperCounter::rx_drop_own), 2);
}

#[test]
fn a_reply_without_question_or_with_another_nonce_is_dropped() {
    let mut bench = Bench::hosting();
    bench.hear(2, false, message(key(7, 2), 42, reply(claim(2, 0))));
    bench.resolve(VIF, 2);
    let nonce = bench.sent()[0].1.nonce;
    bench.hear(2, false, message(key(7, 2), nonce ^ 1, reply(claim(2, 0))));
    bench.hear(2, false, message(key(8, 2), nonce, reply(claim(2, 0))));
    assert_eq!(bench.count(MapperCounter::rx_drop_unasked), 3);
    assert_eq!(bench.outputs(), []);
}

#[test]
fn a_reply_must_come_from_the_host_that_it_names() {
    let mut bench = Bench::hosting();
    bench.resolve(VIF, 2);
    let nonce = bench.sent()[0].1.nonce;
    let answer = message(key(7, 2), nonce, reply(claim(2, 0)));
    bench.hear(3, false, answer);
    bench.hear(3, false, by(2, answer));
    bench.hear(2, true, answer);
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.count(MapperCounter::rx_drop_source), 2);
    assert_eq!(bench.count(MapperCounter::rx_drop_cast), 1);
}

#[test]
fn an_announcement_must_come_through_the_group_from_the_host_that_it_names() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    let moved = message(key(7, 2), 5, announce(claim(3, 2000)));
    bench.hear(3, false, moved);
    bench.hear(4, true, moved);
    bench.hear(4, true, by(3, moved));
    bench.hear(4, true, Message { relayed: true, ..by(3, moved) });
    assert_eq!(bench.outputs(), []);
    bench.hear(3, true, moved);
    assert_eq!(bench.told().len(), 1);
}

#[test]
fn an_unproven_correction_of_a_mapping_is_dropped() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.hear(4, false, message(key(7, 2), 0, correction(claim(3, 2000))));
    bench.hear(4, false, message(key(7, 2), 77, correction(claim(3, 2000))));
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.count(MapperCounter::rx_drop_unasked), 2);
}

#[test]
fn an_unproven_correction_of_an_owner_is_met_with_an_announcement() {
    let mut bench = Bench::hosting();
    bench.pass_ms(70_000);
    let ours = bench.mapper.claim(VIF).unwrap();
    let newer = claim(3, 90_000);
    for _ in 0..10 {
        bench.hear(4, false, message(key(7, 1), 0, correction(newer)));
    }
    assert_eq!(bench.mapper.claim(VIF), Some(ours));
    let sent = bench.sent();
    let [(Destination::Group, challenge)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(*challenge.body.claim().unwrap(), ours);
    bench.hear(4, false, message(key(7, 1), challenge.nonce, correction(newer)));
    assert_eq!(bench.mapper.claim(VIF), None, "now it is proven");
}

#[test]
fn a_message_with_a_tag_is_dropped_on_a_vnet_without_keys() {
    let mut bench = Bench::hosting();
    let tag = Some(Tag { key_id: 1, time_ms: 0, tag: [0; 16] });
    bench.hear(2, true, Message { tag, ..message(key(7, 1), 42, request(2, false)) });
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.count(MapperCounter::rx_drop_tagged), 1);
}

#[test]
fn an_absurd_stamp_moves_nothing_and_ends_no_claim() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    let ours = bench.mapper.claim(VIF);
    let absurd = Claim { stamp: Stamp(u64::MAX), ..claim(3, 0) };
    bench.hear_announce(key(7, 1), absurd);
    bench.hear_announce(key(7, 2), absurd);
    assert_eq!(bench.told(), []);
    assert_eq!(bench.mapper.claim(VIF), ours);
    assert_eq!(bench.count(MapperCounter::rx_implausible), 2);
    bench.activate(OTHER, key(7, 9));
    assert!(bench.mapper.claim(OTHER).unwrap().stamp < Stamp(WALL + HOUR), "nor drags the clock");
}

#[test]
fn an_absurd_stamp_answers_a_question_and_yields_to_any_other() {
    let mut bench = Bench::hosting();
    let absurd = Claim { stamp: Stamp(u64::MAX), ..claim(3, 0) };
    bench.learn(VIF, 2, absurd);
    assert_eq!(bench.mapper.rows(bench.now)[1].claim, Some(absurd));
    bench.hear_announce(key(7, 2), claim(2, 0));
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(2, 0), 30_000))]);
}

#[test]
fn a_request_teaches_nothing() {
    let mut bench = Bench::hosting();
    bench.hear(2, true, message(key(7, 1), 42, request(2, false)));
    bench.hear(2, true, message(key(7, 9), 42, request(2, false)));
    assert_eq!(bench.mapper.rows(bench.now).len(), 1);
}

#[test]
fn an_ipv4_sender_on_a_dual_stack_socket_is_itself() {
    let mut bench = Bench::hosting();
    let asked = by(2, message(key(7, 1), 42, request(2, false)));
    let from = "[::ffff:192.0.2.2]:1798".parse().unwrap();
    bench.mapper.handle_message(from, true, &asked, bench.now);
    assert_eq!(bench.sent().len(), 1);
}

/// A vif whose guest is elsewhere could otherwise be made to take its key back, from anywhere.
#[test]
fn a_question_in_the_owners_name_is_believed_where_its_announcement_would_be() {
    let mut bench = Bench::hosting();
    bench.hear_announce(key(7, 1), claim(2, HOUR));
    bench.outputs();
    let asked = message(key(7, 1), 5, request(2, false));
    for via_group in [true, false] {
        bench.hear(9, via_group, asked);
        bench.hear(9, via_group, by(2, asked));
        bench.hear(9, false, Message { relayed: true, ..by(2, asked) });
        bench.hear(2, false, asked);
        assert_eq!((bench.mapper.claim(VIF), bench.sent()), (None, Vec::new()), "{via_group}");
    }
    bench.hear(2, true, asked);
    assert!(bench.mapper.claim(VIF).is_some());
}

/// Two private networks may use one address: host 1 of another realm is another host.
#[test]
fn own_messages_are_told_by_realm_and_address() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    let moved = of_realm7(1, message(key(7, 2), 5, announce(claim(1, 2000))));
    bench.mapper.handle_message(varp_of(2), true, &moved, bench.now);
    assert_eq!(bench.count(MapperCounter::rx_drop_own), 0);
    let ours = message(key(7, 2), 5, announce(claim(1, 2000)));
    bench.mapper.handle_message(varp_of(2), true, &ours, bench.now);
    assert_eq!(bench.count(MapperCounter::rx_drop_own), 1, "even if somebody else sends it");
}

#[test]
fn equal_stamps_of_two_realms_are_ordered_by_the_realms() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(3, 0));
    bench.hear(2, true, of_realm7(2, message(key(7, 2), 5, announce(claim(2, 0)))));
    let winner = Claim { realm: Realm(7), ..claim(2, 0) };
    assert_eq!(bench.told(), [(VIF, mapping_of(2, winner, 30_000))], "above the higher address");
}

/// What is where in another network its own hosts can't tell this one.
#[test]
fn a_correction_from_another_realm_makes_a_host_ask() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    let correction = of_realm7(2, message(key(7, 2), 0, correction(claim(3, 2000))));
    for _ in 0..10 {
        bench.hear(2, false, correction);
    }
    let sent = bench.sent();
    let [(Destination::Unicast(to), asked)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!((*to, asked.key), (varp_of(2), key(7, 2)));
    assert!(matches!(asked.body, Body::Request { refresh: true, .. }));
    assert_eq!(bench.mapper.rows(bench.now)[1].claim, Some(claim(2, 0)), "and it still holds");
    assert_eq!(bench.count(MapperCounter::rx_foreign_realm), 10);
}

#[test]
fn a_host_of_another_realm_is_answered_and_not_corrected() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(3, 5000));
    bench.hear(2, true, of_realm7(2, message(key(7, 1), 5, request(2, false))));
    let (to, answer) = bench.sent().pop().expect("an answer");
    assert_eq!(to, Destination::Unicast(varp_of(2)));
    assert_eq!(answer.author, author(1));
    bench.hear(2, true, of_realm7(2, message(key(7, 2), 5, announce(claim(2, 0)))));
    assert_eq!(bench.sent(), [], "a correction holds names of one realm");
    bench.hear(2, true, message(key(7, 2), 5, announce(claim(2, 0))));
    assert_eq!(bench.sent().len(), 1);
}
