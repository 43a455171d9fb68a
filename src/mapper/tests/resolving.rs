//! Questions and answers.

use super::*;

#[test]
fn a_request_is_multicast_and_its_answer_reaches_the_asker() {
    let mut bench = Bench::hosting();
    bench.resolve(VIF, 2);
    let sent = bench.sent();
    let [(Destination::Group, asked)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(asked.key, key(7, 2));
    let asker = coa(1, port(VIF));
    assert_eq!(asked.body, Body::Request { asker, refresh: false });
    assert_eq!(asked.author, author(1));
    assert!(!asked.wide, "local first");
    bench.hear(2, false, message(key(7, 2), asked.nonce, reply(claim(2, 0))));
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(2, 0), 30_000))]);
    bench.pass_ms(2000);
    assert_eq!(bench.sent(), [], "an answered question is not asked again");
}

#[test]
fn early_retries_go_wide_and_fifteen_seconds_later_nobody_has_it() {
    let mut bench = Bench::hosting();
    bench.resolve(VIF, 2);
    let start = bench.now.mono;
    let mut requests = Vec::new();
    while bench.count(MapperCounter::unresolved) == 0 {
        for (to, message) in bench.sent() {
            assert_eq!(to, Destination::Group);
            let at = bench.now.mono.saturating_since(start).as_millis();
            requests.push((at, message.wide));
        }
        let due = bench.mapper.poll_timeout().expect("a timer while a question is open");
        bench.pass(due.saturating_since(bench.now.mono));
    }
    let times: Vec<u128> = requests.iter().map(|&(at, _)| at).collect();
    assert_eq!(times, [0, 50, 150, 350, 750, 1550, 3000, 6000, 9000, 12_000]);
    assert!(requests.iter().all(|&(at, wide)| wide == (at >= 150)));
    assert_eq!(bench.now.mono.saturating_since(start), Duration::from_secs(15));
    let hold = Duration::from_secs(1);
    let told = bench.told();
    assert_eq!(told.last(), Some(&(VIF, Notice::Unresolved { mac: mac(2), hold })));
}

#[test]
fn a_negative_entry_answers_for_a_short_while() {
    let mut bench = Bench::hosting();
    bench.resolve(VIF, 2);
    bench.pass_ms(15_000);
    bench.outputs();
    bench.pass_ms(400);
    bench.resolve(VIF, 2);
    let hold = Duration::from_millis(600);
    assert_eq!(bench.told(), [(VIF, Notice::Unresolved { mac: mac(2), hold })]);
    bench.pass_ms(700);
    bench.resolve(VIF, 2);
    assert_eq!(bench.sent().len(), 1, "asked again");
}

#[test]
fn a_cached_answer_has_the_lifetime_that_is_left() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(10_000);
    bench.resolve(VIF, 2);
    let output = Output::Notify { vif: VIF, notice: mapping_of(2, claim(2, 0), 20_000) };
    assert_eq!(bench.outputs(), [output]);
}

#[test]
fn two_askers_share_one_question() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 9));
    bench.settle();
    bench.resolve(VIF, 2);
    bench.resolve(OTHER, 2);
    let sent = bench.sent();
    assert_eq!(sent.len(), 1);
    bench.hear(2, false, message(key(7, 2), sent[0].1.nonce, reply(claim(2, 0))));
    let notice = mapping_of(2, claim(2, 0), 30_000);
    assert_eq!(bench.told(), [(VIF, notice), (OTHER, notice)]);
}

#[test]
fn a_vif_of_the_same_host_is_found_at_once_and_of_another_vnet_never() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 9));
    bench.activate(LocalVif(3), key(8, 5));
    bench.settle();
    bench.resolve(VIF, 9);
    let here = bench.mapper.claim(OTHER).unwrap();
    assert_eq!(here.coa, coa(1, port(OTHER)));
    let output = Output::Notify { vif: VIF, notice: mapping_of(9, here, 30_000) };
    assert_eq!(bench.outputs(), [output]);
    bench.resolve(VIF, 5);
    assert_eq!(bench.told(), [], "MAC 5 is on vnet 8");
    bench.resolve(LocalVif(3), 5);
}

#[test]
fn a_group_address_is_never_asked_for() {
    let mut bench = Bench::hosting();
    bench.mapper.resolve(VIF, Mac::BROADCAST, false, bench.now);
    let hold = Duration::from_secs(1);
    let notice = Notice::Unresolved { mac: Mac::BROADCAST, hold };
    assert_eq!(bench.outputs(), [Output::Notify { vif: VIF, notice }]);
}

#[test]
fn a_refresh_asks_the_owners_host_alone_and_prolongs() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.refresh(VIF, 2);
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(2, 0), 30_000))], "too early");
    bench.pass_ms(22_000);
    bench.refresh(VIF, 2);
    let sent = bench.sent();
    let [(to, asked)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(*to, Destination::Unicast(varp_of(2)));
    assert!(matches!(asked.body, Body::Request { refresh: true, .. }));
    bench.resolve(VIF, 2);
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(2, 0), 8000))], "it holds meanwhile");
    bench.hear(2, false, message(key(7, 2), asked.nonce, reply(claim(2, 0))));
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(2, 0), 30_000))]);
    bench.pass_ms(29_000);
    assert_eq!(bench.outputs(), [], "nothing more to ask, nothing expired");
}

#[test]
fn a_mapping_that_ends_soon_is_answered_and_confirmed_for_a_new_user() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(29_900);
    bench.resolve(VIF, 2);
    let outputs = bench.outputs();
    let notice = mapping_of(2, claim(2, 0), 100);
    assert!(outputs.contains(&Output::Notify { vif: VIF, notice }));
    let Output::Send { to: Destination::Unicast(host), message } = &outputs[0] else {
        panic!("{outputs:?}")
    };
    assert_eq!(*host, varp_of(2));
    bench.hear(2, false, super::message(key(7, 2), message.nonce, reply(claim(2, 0))));
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(2, 0), 30_000))]);
}

#[test]
fn a_refresh_that_nobody_answers_goes_on_to_everybody_and_ends() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(14_000);
    bench.refresh(VIF, 2);
    assert_eq!(bench.sent(), [], "more than half is left");
    bench.pass_ms(1000);
    bench.refresh(VIF, 2);
    bench.pass_ms(1549);
    let sent = bench.sent();
    assert_eq!(sent.len(), 5);
    assert!(sent.iter().all(|(to, _)| *to == Destination::Unicast(varp_of(2))));
    bench.pass_ms(1);
    assert_eq!(bench.sent()[0].0, Destination::Group);
    bench.pass_ms(15_000);
    let hold = Duration::from_secs(1);
    assert_eq!(bench.told(), [(VIF, Notice::Unresolved { mac: mac(2), hold })]);
    assert_eq!(bench.count(MapperCounter::expired), 1, "silently, at its end");
}

#[test]
fn users_of_a_mapping_that_nobody_confirms_are_told_to_forget_it() {
    let mut bench = Bench::with(|config| config.tries = 1);
    bench.activate(VIF, key(7, 1));
    bench.activate(OTHER, key(7, 9));
    bench.settle();
    bench.learn(VIF, 2, claim(2, 0));
    bench.resolve(OTHER, 2);
    bench.pass_ms(16_000);
    bench.outputs();
    bench.refresh(VIF, 2);
    bench.pass_ms(1550 + 3000);
    let (invalid, hold) = (Notice::Invalidate { mac: mac(2) }, Duration::from_secs(1));
    let unresolved = Notice::Unresolved { mac: mac(2), hold };
    assert_eq!(bench.told(), [(VIF, invalid), (OTHER, invalid), (VIF, unresolved)]);
}

#[test]
fn a_host_that_disclaims_is_left_at_once() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(20_000);
    bench.refresh(VIF, 2);
    let nonce = bench.sent()[0].1.nonce;
    bench.hear(3, false, message(key(7, 2), nonce, Body::Absent));
    bench.hear(2, false, message(key(7, 2), nonce + 1, Body::Absent));
    assert_eq!(bench.outputs(), [], "neither another host nor another nonce");
    bench.hear(2, false, message(key(7, 2), nonce, Body::Absent));
    let outputs = bench.outputs();
    let invalid = Output::Notify { vif: VIF, notice: Notice::Invalidate { mac: mac(2) } };
    assert_eq!(outputs[0], invalid);
    assert!(matches!(outputs[1], Output::Send { to: Destination::Group, .. }));
    // An older claim will do now: the newest was given up by its owner.
    bench.hear(3, false, message(key(7, 2), nonce, reply(claim(3, 0))));
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(3, 0), 30_000))]);
}

#[test]
fn an_unused_mapping_ends_silently() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(30_000);
    assert_eq!(bench.outputs(), [Output::Event(Event::Expired { key: key(7, 2) })]);
    assert_eq!(bench.mapper.poll_timeout(), None, "no timer is left");
}

#[test]
fn a_flush_tells_users_and_takes_only_what_was_named() {
    let mut bench = Bench::hosting();
    for host in 2..5 {
        bench.learn(VIF, host, claim(host, 0));
    }
    assert_eq!(bench.mapper.flush(VnetId::new(8), None), 0);
    assert_eq!(bench.mapper.flush(None, Some(mac(3))), 1);
    assert_eq!(bench.told(), [(VIF, Notice::Invalidate { mac: mac(3) })]);
    assert_eq!(bench.mapper.flush(VnetId::new(7), None), 2);
    assert_eq!(bench.told().len(), 2);
    assert_eq!(bench.mapper.poll_timeout(), None);
}

#[test]
fn rows_show_every_state() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(20_000);
    bench.refresh(VIF, 2);
    bench.learn(VIF, 3, claim(3, 0));
    bench.resolve(VIF, 4);
    bench.activate(OTHER, key(7, 5));
    bench.mapper.set_active(OTHER, false, None, bench.now);
    let rows: Vec<_> = bench.mapper.rows(bench.now);
    let states: Vec<_> = rows.iter().map(|row| (row.key.mac, row.state)).collect();
    let expected = [State::Local, State::Confirming, State::Resolved, State::Resolving];
    let expected = expected.into_iter().chain([State::Departed]);
    assert_eq!(states, (1..=5).map(mac).zip(expected).collect::<Vec<_>>());
    assert_eq!(rows[1].claim, Some(claim(2, 0)));
    assert_eq!((rows[1].age.as_secs(), rows[1].remaining.as_secs()), (20, 10));
    assert_eq!(rows[1].users, Some(1));
}

#[test]
fn a_vif_to_which_nothing_can_be_sent_has_a_name_and_is_shown_once() {
    let mut bench = Bench::hosting();
    let there =
        CareOf { addr: ([192, 0, 2, 2], 0).into(), kinds: EncapKinds::ETHERIP, ..coa(2, 0) };
    let unusable = Claim { coa: there, ..claim(2, 0) };
    let shown = |bench: &mut Bench| {
        let is_it = |o: &Output| matches!(o, Output::Event(Event::Unusable { .. }));
        bench.outputs().iter().filter(|o| is_it(o)).count()
    };
    bench.resolve(VIF, 2);
    let nonce = bench.sent()[0].1.nonce;
    bench.hear(2, false, message(key(7, 2), nonce, reply(unusable)));
    assert_eq!(shown(&mut bench), 1);
    bench.hear_announce(key(7, 2), unusable);
    assert_eq!(shown(&mut bench), 0, "it is known");
    bench.hear_announce(key(7, 2), claim(3, 1000));
    bench.hear_announce(key(7, 2), Claim { stamp: Stamp(WALL + 2000), ..unusable });
    assert_eq!(shown(&mut bench), 1, "it has moved there");
    assert_eq!(bench.count(MapperCounter::rx_unusable), 2);
}
