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

/// Its sender's address proves nothing.
#[test]
fn a_correction_in_the_name_of_the_owners_host_makes_this_one_ask_and_no_more() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    for nonce in 0..10 {
        bench.hear(2, false, message(key(7, 2), nonce, correction(claim(3, 2000))));
        assert_eq!(bench.mapper.rows(bench.now)[1].claim, Some(claim(2, 0)));
    }
    assert_eq!(bench.count(MapperCounter::rx_unproven), 10);
    let sent = bench.sent();
    let [(Destination::Unicast(to), asked)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(*to, varp_of(2));
    let still = message(key(7, 2), asked.nonce, reply(claim(2, 0)));
    bench.hear(2, false, still);
    bench.hear(2, false, message(key(7, 2), asked.nonce, correction(claim(3, 2000))));
    assert_eq!(bench.mapper.rows(bench.now)[1].claim, Some(claim(2, 0)), "the answer was given");
    assert_eq!(bench.sent(), [], "and nobody is asked again at once");
    bench.pass_ms(1000);
    bench.hear(2, false, message(key(7, 2), 0, correction(claim(3, 2000))));
    assert_eq!(bench.sent().len(), 1);
}

fn at(ip: &str) -> CareOf {
    CareOf { addr: SocketAddr::new(ip.parse().unwrap(), 6000), ..coa(2, 0) }
}

/// Frames would go into services of this host.
#[test]
fn no_vif_is_at_a_loopback_address_or_at_one_of_this_host() {
    let mut bench = Bench::hosting();
    bench.mapper.set_local(["192.0.2.1", "10.0.0.1"].map(|ip| ip.parse().unwrap()).into());
    bench.learn(VIF, 2, claim(2, 0));
    let ours = bench.mapper.claim(VIF);
    let places = ["127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1"];
    let others = ["255.255.255.255", "fe80::1", "169.254.1.1", "192.0.2.1", "10.0.0.1"];
    for place in places.into_iter().chain(others) {
        bench.pass_ms(2000);
        bench.refresh(VIF, 2);
        let stamp = Stamp(bench.now.wall_ms);
        let there = Claim { coa: at(place), stamp, ..claim(2, 0) };
        // What host 2 is asked about another vif, or says of this host's own one.
        bench.hear(2, false, message(key(7, 2), 0, correction(there)));
        let asked = bench.sent().into_iter().find(|(_, m)| m.key == key(7, 2));
        let nonce = asked.map_or(1, |(_, message)| message.nonce);
        bench.hear(2, false, message(key(7, 2), nonce, correction(there)));
        bench.hear(2, false, message(key(7, 2), nonce, reply(there)));
        bench.hear(2, true, message(key(7, 2), nonce, announce(there)));
        // And in the name of whoever has that address.
        let addr = SocketAddr::new(there.coa.addr.ip(), varp::PORT);
        for body in [announce(there), reply(there), correction(claim(3, 2000)), correction(there)] {
            let author = Author { realm: Realm(0), addr };
            let said = Message { author, ..message(key(7, 2), nonce, body) };
            for via_group in [true, false] {
                bench.mapper.handle_message(varp_of(2), via_group, &said, bench.now);
            }
        }
        let rows = bench.mapper.rows(bench.now);
        assert_eq!(rows[1].claim, Some(claim(2, 0)), "{place}");
        bench.hear_announce(key(7, 2), claim(2, 0));
        bench.outputs();
    }
    assert_eq!(bench.mapper.claim(VIF), ours);
    assert!(bench.count(MapperCounter::rx_drop_address) >= 4 * 12);
}

/// Whoever is asked, or hears an announcement, could otherwise send a vif's frames into services of its own host.
#[test]
fn a_claim_of_this_host_to_its_own_vif_is_outdone() {
    let mut bench = Bench::hosting();
    bench.pass_ms(70_000);
    bench.mapper.announce(VIF, bench.now);
    let nonce = bench.sent()[0].1.nonce;
    let stamp = Stamp(bench.now.wall_ms + HOUR);
    let there = Claim { stamp, coa: coa(1, 53), ..claim(1, 0) };
    bench.hear(2, false, message(key(7, 1), nonce, correction(there)));
    assert_eq!(bench.mapper.claim(VIF).unwrap().stamp, Stamp(stamp.0 + 1));
    let told = bench.told();
    assert!(!told.iter().any(|(_, notice)| matches!(notice, Notice::Lost { .. })), "{told:?}");
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.hear(2, false, message(key(7, 1), nonce, correction(there)));
    assert_eq!(bench.mapper.forwarding(key(7, 1)), None, "nor is it followed when the vif is away");
}

/// Two varpds on one host, for two underlays say, are two hosts to each other.
#[test]
fn another_varpd_of_this_host_speaks_for_its_own_address() {
    let mut bench = Bench::hosting();
    bench.mapper.set_local(["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().unwrap()).into());
    bench.learn(VIF, 2, claim(2, 0));
    assert_eq!(bench.mapper.rows(bench.now)[1].claim, Some(claim(2, 0)));
    bench.learn(VIF, 3, claim(3, 0));
    bench.refresh(VIF, 3);
    bench.pass_ms(20_000);
    bench.refresh(VIF, 3);
    let nonce = bench.sent().pop().unwrap().1.nonce;
    bench.hear(3, false, message(key(7, 3), nonce, correction(claim(2, 5000))));
    assert_eq!(bench.count(MapperCounter::rx_drop_address), 1, "and nobody else does");
}

#[test]
fn on_a_link_local_underlay_link_local_addresses_are_places() {
    let config = Config { announce_interval: Duration::ZERO, ..Config::default() };
    let own = "[fe80::1]:1798".parse().unwrap();
    let now = Now { mono: Instant::from_millis(1_000_000), wall_ms: WALL };
    let mut bench = Bench { mapper: Mapper::new(config, [1; 16], own), now };
    bench.mapper.add_vif(VIF, key(7, 1), at("fe80::1")).unwrap();
    bench.mapper.set_active(VIF, true, None, bench.now);
    bench.resolve(VIF, 2);
    let nonce = bench.sent().pop().unwrap().1.nonce;
    let there = Claim { coa: at("fe80::2"), ..claim(2, 0) };
    let from = "[fe80::2]:1798".parse().unwrap();
    let author = Author { realm: Realm(0), addr: from };
    let said = Message { author, ..message(key(7, 2), nonce, reply(there)) };
    bench.mapper.handle_message(from, false, &said, bench.now);
    assert_eq!(bench.mapper.rows(bench.now)[1].claim, Some(there));
}

/// Anybody on the segment of a vnet without keys could otherwise run the clocks of all others a day ahead.
#[test]
fn stamps_of_one_vnet_do_not_move_those_of_another() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(8, 1));
    bench.hear_announce(key(8, 2), claim(2, HOUR));
    bench.hear_announce(key(9, 2), claim(2, 2 * HOUR));
    bench.pass_ms(5000);
    for (vif, expected) in [(VIF, bench.now.wall_ms), (OTHER, WALL + HOUR + 1)] {
        bench.mapper.set_active(vif, false, None, bench.now);
        bench.mapper.set_active(vif, true, None, bench.now);
        assert_eq!(bench.mapper.claim(vif).unwrap().stamp, Stamp(expected));
    }
    let third = LocalVif(3);
    bench.activate(third, key(9, 1));
    assert_eq!(bench.mapper.claim(third).unwrap().stamp, Stamp(bench.now.wall_ms));
}

/// A random message of anybody, to a host that knows and has some vifs: whatever it sends by unicast goes to where the
/// message came from, or is a question to the host that it knows as that of the vif.
#[test]
fn nobody_is_made_to_answer_a_third_host() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % n
    };
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    let (mut answers, mut questions) = (0, 0);
    for round in 0..20_000 {
        if round % 200 == 0 {
            bench.mapper.flush(None, None);
            bench.resolve(VIF, 2);
            bench.hear_announce(key(7, 2), claim(2, bench.now.wall_ms - WALL));
            bench.outputs();
        }
        let mut host = || u8::try_from(2 + below(4)).unwrap();
        let (from, third, fourth) = (host(), host(), host());
        let author = if below(4) == 0 { third } else { from };
        let owner = if below(2) == 0 { fourth } else { author };
        let mac = u8::try_from(1 + below(4)).unwrap();
        let stamp = bench.now.wall_ms - WALL + below(2000);
        let behind = (below(3) == 0).then_some(key(7, 9).mac);
        let claim = Claim { behind, ..claim(owner, stamp) };
        let bodies = [
            request(owner, false),
            request(owner, true),
            reply(claim),
            announce(claim),
            correction(claim),
            Body::Absent,
        ];
        let body = bodies[usize::try_from(below(6)).unwrap()];
        let relayed = below(8) == 0;
        let said = Message { relayed, ..by(author, message(key(7, mac), 1 + below(3), body)) };
        let known = bench.mapper.rows(bench.now);
        let knows = |to: SocketAddr| {
            let at = |row: &Row| row.claim.is_some_and(|claim| claim.coa.addr.ip() == to.ip());
            known.iter().any(|row| row.key == said.key && at(row))
        };
        bench.mapper.handle_message(varp_of(from), below(2) == 0, &said, bench.now);
        for (to, sent) in bench.sent() {
            match (to, sent.body) {
                (Destination::Group, _) => {}
                (Destination::Unicast(to), Body::Request { .. }) if knows(to) => questions += 1,
                (Destination::Unicast(to), _) => {
                    assert_eq!((to, from), (varp_of(from), author), "{said:?}: {sent:?}");
                    answers += 1;
                }
            }
        }
        // Confirmations come due, as questions to hosts that are known.
        bench.pass_ms(below(100));
        bench.outputs();
    }
    assert!(answers > 500 && questions > 10, "{answers} answers, {questions} questions");
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
