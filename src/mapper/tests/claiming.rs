//! Claims of local vifs and their announcements.

use super::*;

fn announcements(bench: &mut Bench) -> Vec<Claim> {
    let sent = bench.sent().into_iter();
    let claims = sent.filter(|(to, m)| {
        *to == Destination::Group && m.wide && matches!(m.body, Body::Announce { .. })
    });
    claims.filter_map(|(_, m)| m.body.claim().copied()).collect()
}

#[test]
fn a_vif_claims_when_its_rings_start_and_announces_seven_times() {
    let mut bench = Bench::new();
    bench.add(VIF, key(7, 1));
    bench.pass_ms(5000);
    assert_eq!(bench.outputs(), [], "not before its rings run");
    bench.mapper.announce(VIF, bench.now);
    assert_eq!(bench.outputs(), [], "nor when asked to announce");
    bench.mapper.set_active(VIF, true, None, bench.now);
    let (stamp, start) = (Stamp(bench.now.wall_ms), bench.now.mono);
    assert_eq!(
        bench.mapper.claim(VIF),
        Some(Claim { stamp, coa: coa(1, port(VIF)), realm: Realm(0), behind: None })
    );
    let mut times = Vec::new();
    loop {
        for claim in announcements(&mut bench) {
            assert_eq!(claim.stamp, stamp);
            times.push(bench.now.mono.saturating_since(start).as_millis());
        }
        let Some(due) = bench.mapper.poll_timeout() else { break };
        bench.pass(due.saturating_since(bench.now.mono));
    }
    assert_eq!(times, [0, 4, 12, 50, 200, 450, 800]);
}

#[test]
fn a_late_turn_of_the_loop_announces_once_for_all_that_is_overdue() {
    let mut bench = Bench::new();
    bench.activate(VIF, key(7, 1));
    bench.outputs();
    bench.turn(bench.now.mono + Duration::from_millis(500));
    bench.mapper.handle_timeout(bench.now);
    assert_eq!(announcements(&mut bench).len(), 1);
    bench.pass_ms(10_000);
    assert_eq!(announcements(&mut bench).len(), 1, "the one at 800 ms");
}

#[test]
fn a_claim_is_announced_again_every_few_minutes() {
    let mut bench = Bench::with(|config| config.announce_interval = Duration::from_secs(300));
    bench.activate(VIF, key(7, 1));
    bench.settle();
    bench.pass(Duration::from_secs(299));
    assert_eq!(announcements(&mut bench).len(), 0);
    bench.pass(Duration::from_secs(76));
    assert_eq!(announcements(&mut bench).len(), 1);
    bench.pass(Duration::from_secs(3750));
    assert!((10..=13).contains(&announcements(&mut bench).len()));
}

#[test]
fn a_guest_that_says_it_is_here_is_announced_again_with_the_same_stamp() {
    let mut bench = Bench::hosting();
    let claim = bench.mapper.claim(VIF).unwrap();
    bench.mapper.announce(VIF, bench.now);
    bench.pass_ms(1000);
    assert_eq!(announcements(&mut bench), [claim; 7]);
}

#[test]
fn a_stopped_vif_owns_nothing_and_its_local_users_are_told() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 9));
    bench.settle();
    bench.resolve(VIF, 9);
    bench.outputs();
    bench.mapper.set_active(OTHER, false, None, bench.now);
    assert_eq!(bench.told(), [(VIF, Notice::Invalidate { mac: mac(9) })]);
    assert_eq!(bench.mapper.claim(OTHER), None);
    bench.hear(2, true, message(key(7, 9), 5, request(2, false)));
    assert_eq!(bench.sent(), []);
    bench.mapper.remove_vif(OTHER, bench.now);
    assert_eq!(bench.mapper.add_vif(OTHER, key(7, 9), coa(1, 9)), Ok(()));
}

#[test]
fn a_restarted_varpd_resumes_a_claim_and_yields_to_a_newer_one() {
    let mut bench = Bench::new();
    bench.add(VIF, key(7, 1));
    let prior = Stamp(WALL - 5000);
    bench.mapper.set_active(VIF, true, Some(prior), bench.now);
    let outputs = bench.sent();
    let announced = outputs[0].1;
    assert_eq!(bench.mapper.claim(VIF).unwrap().stamp, prior);
    // The guest had moved while varpd was away.
    let newer = claim(2, 0);
    let newer = Claim { stamp: Stamp(prior.0 + 1), ..newer };
    bench.hear(3, false, message(key(7, 1), announced.nonce, correction(newer)));
    assert_eq!(bench.told(), [(VIF, Notice::Lost { stamp: newer.stamp, coa: newer.coa })]);
    assert_eq!(bench.mapper.claim(VIF), None);
    bench.pass_ms(1000);
    assert_eq!(announcements(&mut bench), [], "the series has ended");
}

#[test]
fn an_absurd_prior_stamp_is_not_resumed() {
    let mut bench = Bench::new();
    bench.add(VIF, key(7, 1));
    bench.mapper.set_active(VIF, true, Some(Stamp(u64::MAX)), bench.now);
    assert_eq!(bench.mapper.claim(VIF).unwrap().stamp, Stamp(WALL));
}

#[test]
fn a_fresh_claim_beats_the_stamp_of_a_clock_that_was_ahead_once() {
    let mut bench = Bench::new();
    bench.activate(VIF, key(7, 1));
    let nonce = bench.sent()[0].1.nonce;
    let ahead = Claim { stamp: Stamp(WALL + HOUR), ..claim(2, 0) };
    bench.hear(3, false, message(key(7, 1), nonce, correction(ahead)));
    let outputs = bench.outputs();
    let stamp = Stamp(WALL + HOUR + 1);
    assert!(outputs.contains(&Output::Notify { vif: VIF, notice: Notice::Claimed { stamp } }));
    let again = outputs.iter().find_map(|output| match output {
        Output::Send { message, .. } => Some(*message),
        _ => None,
    });
    let again = again.expect("an announcement of the new claim");
    assert_eq!(again.body.claim().unwrap().stamp, stamp);
    // The same answer again is old news; a second newer one means that the guest is elsewhere.
    bench.hear(3, false, message(key(7, 1), nonce, correction(ahead)));
    assert!(bench.mapper.claim(VIF).is_some());
    let newer = Claim { stamp: Stamp(WALL + HOUR + 2), ..ahead };
    bench.hear(3, false, message(key(7, 1), again.nonce, correction(newer)));
    assert_eq!(bench.mapper.claim(VIF), None);
}

#[test]
fn a_fresh_claim_yields_to_one_that_was_confirmed_after_it() {
    // When the correction comes, how long the claim in it may still be believed, whether it wins.
    for (after_ms, left_ms, wins) in
        [(4000, 30_000, false), (20_000, 30_000, true), (20_000, 14_000, false), (34_000, 1, false)]
    {
        let mut bench = Bench::new();
        bench.activate(VIF, key(7, 1));
        let nonce = bench.sent()[0].1.nonce;
        bench.pass_ms(after_ms);
        let ahead = Claim { stamp: Stamp(WALL + HOUR), ..claim(2, 0) };
        let body = Body::Correction { claim: ahead, lifetime_ms: left_ms };
        bench.hear(3, false, message(key(7, 1), nonce, body));
        let lost = bench.mapper.claim(VIF).is_none();
        assert_eq!(lost, wins, "after {after_ms} ms, {left_ms} ms left");
    }
}

#[test]
fn a_vif_that_lost_its_key_takes_it_back_when_nobody_has_it() {
    let mut bench = Bench::with(|config| config.announce_interval = Duration::from_secs(300));
    bench.activate(VIF, key(7, 1));
    bench.settle();
    let newer = claim(2, 5000);
    bench.hear_announce(key(7, 1), newer);
    bench.outputs();
    bench.pass_ms(30_000);
    let asked = bench.sent()[0].1;
    assert!(matches!(asked.body, Body::Request { .. }));
    bench.hear(2, false, message(key(7, 1), asked.nonce, reply(newer)));
    bench.pass(Duration::from_secs(280));
    assert_eq!(bench.mapper.claim(VIF), None, "somebody has it");
    bench.pass(Duration::from_secs(120));
    let back = bench.mapper.claim(VIF).expect("nobody answered");
    assert!(back.beats(&newer));
    let stamp = back.stamp;
    assert!(bench.told().contains(&(VIF, Notice::Claimed { stamp })));
}

#[test]
fn a_stopped_vif_does_not_ask_for_its_key() {
    let mut bench = Bench::with(|config| config.announce_interval = Duration::from_secs(300));
    bench.activate(VIF, key(7, 1));
    bench.hear_announce(key(7, 1), claim(2, 5000));
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.outputs();
    bench.pass(Duration::from_secs(1000));
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.mapper.poll_timeout(), None);
}

#[test]
fn a_newer_claim_from_elsewhere_ends_ours_and_is_noted_for_forwarding() {
    let mut bench = Bench::hosting();
    let newer = claim(2, 5000);
    bench.hear_announce(key(7, 1), newer);
    assert_eq!(bench.told(), [(VIF, Notice::Lost { stamp: newer.stamp, coa: newer.coa })]);
    assert_eq!(bench.mapper.claim(VIF), None);
    assert_eq!(bench.mapper.forwarding(key(7, 1)), Some(newer));
    bench.mapper.correct(key(7, 1), "192.0.2.9:7777".parse().unwrap(), bench.now);
    let sent = bench.sent();
    assert_eq!(
        sent,
        [(Destination::Unicast(varp_of(9)), message(key(7, 1), 0, correction(newer)))]
    );
    bench.hear(9, false, message(key(7, 1), 4, request(9, true)));
    let told = message(key(7, 1), 4, correction(newer));
    assert_eq!(bench.sent(), [(Destination::Unicast(varp_of(9)), told)]);
    bench.pass_ms(30_000);
    assert_eq!(bench.mapper.forwarding(key(7, 1)), None, "for one lifetime");
}

#[test]
fn a_guest_that_stopped_here_first_is_followed_even_after_its_vif_is_gone() {
    let mut bench = Bench::hosting();
    bench.mapper.set_active(VIF, false, None, bench.now);
    let newer = claim(2, 5000);
    bench.hear_announce(key(7, 1), newer);
    assert_eq!(bench.told(), [(VIF, Notice::Lost { stamp: newer.stamp, coa: newer.coa })]);
    bench.hear_announce(key(7, 1), newer);
    assert_eq!(bench.told(), [], "told once");
    bench.mapper.remove_vif(VIF, bench.now);
    let third = claim(3, 6000);
    bench.hear_announce(key(7, 1), third);
    assert_eq!(bench.mapper.forwarding(key(7, 1)), Some(third));
    bench.pass_ms(60_000);
    assert_eq!(bench.mapper.poll_timeout(), None, "the note has ended");
}

#[test]
fn a_claim_moves_between_two_vifs_of_one_host() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 9));
    bench.settle();
    bench.resolve(OTHER, 1);
    bench.outputs();
    let dest = LocalVif(3);
    bench.activate(dest, key(7, 1));
    let new = bench.mapper.claim(dest).unwrap();
    let told = bench.told();
    assert!(told.contains(&(VIF, Notice::Lost { stamp: new.stamp, coa: new.coa })));
    assert!(told.contains(&(dest, Notice::Claimed { stamp: new.stamp })));
    assert!(told.contains(&(OTHER, mapping_of(1, new, 30_000))));
    assert_eq!(bench.mapper.claim(VIF), None);
    bench.mapper.remove_vif(VIF, bench.now);
    assert_eq!(bench.mapper.claim(dest), Some(new), "its end does not end the other's claim");
}

#[test]
fn a_claim_answers_the_questions_that_wait_for_it() {
    let mut bench = Bench::hosting();
    bench.resolve(VIF, 9);
    bench.outputs();
    bench.activate(OTHER, key(7, 9));
    let here = bench.mapper.claim(OTHER).unwrap();
    assert!(bench.told().contains(&(VIF, mapping_of(9, here, 30_000))));
    bench.pass_ms(15_000);
    assert_eq!(bench.count(MapperCounter::unresolved), 0);
}

#[test]
fn a_guest_that_arrives_here_is_no_longer_where_the_cache_said() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, HOUR));
    bench.activate(OTHER, key(7, 2));
    let here = bench.mapper.claim(OTHER).unwrap();
    assert_eq!(here.stamp, Stamp(WALL + HOUR + 1), "above what was seen");
    assert!(bench.told().contains(&(VIF, mapping_of(2, here, 30_000))));
}

#[test]
fn an_older_claim_is_answered_with_ours() {
    let mut bench = Bench::hosting();
    let ours = bench.mapper.claim(VIF).unwrap();
    let older = claim(2, 0);
    let older = Claim { stamp: Stamp(ours.stamp.0 - 1), ..older };
    bench.hear_announce(key(7, 1), older);
    let answer = message(key(7, 1), 99, correction(ours));
    assert_eq!(bench.sent(), [(Destination::Unicast(varp_of(2)), answer)]);
    assert_eq!(bench.mapper.claim(VIF), Some(ours));
}

#[test]
fn equal_stamps_have_one_winner_on_every_host() {
    let mut bench = Bench::hosting();
    let ours = bench.mapper.claim(VIF).unwrap();
    let higher = Claim { stamp: ours.stamp, coa: coa(2, 1), realm: Realm(0), behind: None };
    bench.hear_announce(key(7, 1), higher);
    assert_eq!(bench.mapper.claim(VIF), None, "192.0.2.2 is above 192.0.2.1");
}

#[test]
fn a_claim_of_our_own_earlier_life_is_outdone_and_not_obeyed() {
    let mut bench = Bench::new();
    bench.activate(VIF, key(7, 1));
    let nonce = bench.sent()[0].1.nonce;
    let earlier =
        Claim { stamp: Stamp(WALL + HOUR), coa: coa(1, port(VIF)), realm: Realm(0), behind: None };
    bench.hear(3, false, message(key(7, 1), nonce, correction(earlier)));
    let now = bench.mapper.claim(VIF).expect("still ours");
    assert_eq!(now.stamp, Stamp(WALL + HOUR + 1));
}

#[test]
fn a_guest_that_was_started_elsewhere_unheard_is_found_when_its_backend_ends() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 2));
    bench.resolve(VIF, 2);
    bench.settle();
    bench.mapper.doubt(OTHER, bench.now);
    let asked = bench.sent();
    let [(Destination::Group, question)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!(question.key, key(7, 2));
    let elsewhere = claim(2, HOUR);
    bench.hear(2, false, message(key(7, 2), question.nonce, reply(elsewhere)));
    assert!(bench.told().contains(&(VIF, mapping_of(2, elsewhere, 30_000))));
    assert_eq!(bench.mapper.claim(OTHER), None);
    bench.pass_ms(60_000);
    assert!(bench.sent().iter().all(|(to, _)| *to != Destination::Group), "no more questions");
}

#[test]
fn what_runs_here_takes_its_key_back_when_the_backend_ends_that_has_it() {
    let mut bench = Bench::hosting();
    let elsewhere = claim(2, HOUR);
    bench.hear_announce(key(7, 1), elsewhere);
    assert_eq!(bench.mapper.claim(VIF), None);
    bench.outputs();
    // Who has it asks.
    let ask = |host: u8| message(key(7, 1), 5, request(host, false));
    bench.hear(2, true, ask(2));
    let ours = bench.mapper.claim(VIF).unwrap();
    assert_eq!(ours.stamp, Stamp(elsewhere.stamp.0 + 1));
    let sent = bench.sent();
    let answer = (Destination::Unicast(varp_of(2)), message(key(7, 1), 5, reply(ours)));
    assert!(sent.contains(&answer), "{sent:?}");
    assert!(sent.iter().any(|(_, m)| m.body == announce(ours)), "{sent:?}");
    // One that does not run does not.
    bench.hear_announce(key(7, 1), claim(2, 2 * HOUR));
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.hear(2, true, ask(2));
    assert_eq!(bench.mapper.claim(VIF), None);
}

#[test]
fn a_vif_whose_backend_has_ended_takes_no_key_back() {
    let ask = |host: u8| message(key(7, 1), 5, request(host, false));
    for lost_first in [true, false] {
        let mut bench = Bench::hosting();
        let lose = |bench: &mut Bench| bench.hear_announce(key(7, 1), claim(2, HOUR));
        if lost_first {
            lose(&mut bench);
        }
        bench.mapper.doubt(VIF, bench.now);
        if !lost_first {
            lose(&mut bench);
        }
        assert_eq!(bench.mapper.claim(VIF), None);
        bench.outputs();
        bench.hear(2, true, ask(2));
        assert_eq!((bench.mapper.claim(VIF), bench.sent()), (None, Vec::new()));
        // Neither when nobody answers for it.
        bench.activate(OTHER, key(7, 9));
        bench.pass_ms(60_000);
        bench.resolve(OTHER, 1);
        bench.pass_ms(60_000);
        assert_eq!(bench.mapper.claim(VIF), None);
        assert_eq!(bench.count(MapperCounter::unresolved), 1);
        // Its backend was only cut off from varpd: it is as it was before.
        bench.learn(OTHER, 1, claim(2, 2 * HOUR));
        bench.mapper.set_active(VIF, true, None, bench.now);
        bench.hear(2, true, ask(2));
        assert!(bench.mapper.claim(VIF).is_some());
    }
}

#[test]
fn of_two_that_run_on_one_host_the_other_goes_on_when_a_backend_ends() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 1));
    let first = bench.mapper.claim(OTHER).unwrap();
    bench.settle();
    bench.mapper.doubt(OTHER, bench.now);
    let second = bench.mapper.claim(VIF).unwrap();
    assert!(second.beats(&first));
    assert_eq!(bench.mapper.claim(OTHER), None);
    assert!(bench.sent().iter().any(|(_, m)| m.body == announce(second)));
}

#[test]
fn a_claim_in_doubt_stands_while_nobody_else_has_it() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 2));
    bench.settle();
    let ours = bench.mapper.claim(OTHER).unwrap();
    bench.mapper.doubt(OTHER, bench.now);
    // Somebody has an older claim: that changes nothing.
    let nonce = bench.sent()[0].1.nonce;
    let older = Claim { stamp: Stamp(ours.stamp.0 - 1), ..claim(2, 0) };
    bench.hear(2, false, message(key(7, 2), nonce, reply(older)));
    bench.pass_ms(30_000);
    bench.outputs();
    assert_eq!(bench.mapper.claim(OTHER), Some(ours));
    assert_eq!(bench.count(MapperCounter::unresolved), 0);
    // Who asks is told at once, and it is asked again.
    bench.resolve(VIF, 2);
    let outputs = bench.outputs();
    let told = Output::Notify { vif: VIF, notice: mapping_of(2, ours, 30_000) };
    assert!(outputs.contains(&told), "{outputs:?}");
    let asks = |output: &Output| matches!(output, Output::Send { to: Destination::Group, .. });
    assert!(outputs.iter().any(asks), "{outputs:?}");
    // The backend is back.
    bench.pass_ms(30_000);
    bench.mapper.set_active(OTHER, true, None, bench.now);
    bench.outputs();
    bench.resolve(VIF, 2);
    assert_eq!(bench.sent(), []);
    assert_eq!(bench.mapper.claim(OTHER), Some(ours));
}

#[test]
fn what_can_not_be_a_vif_is_refused() {
    let mut bench = Bench::with(|config| config.limits.vifs = 2);
    let add = |bench: &mut Bench, vif, key| bench.mapper.add_vif(LocalVif(vif), key, coa(1, 9));
    assert_eq!(add(&mut bench, 1, key(1, 1)), Err(AddError::Physical));
    let group = VifKey { mac: Mac::BROADCAST, ..key(7, 1) };
    assert_eq!(add(&mut bench, 1, group), Err(AddError::Mac));
    assert_eq!(add(&mut bench, 1, key(7, 1)), Ok(()));
    assert_eq!(add(&mut bench, 1, key(7, 2)), Err(AddError::Duplicate));
    assert_eq!(add(&mut bench, 2, key(7, 2)), Ok(()));
    assert_eq!(add(&mut bench, 3, key(7, 3)), Err(AddError::Full));
}

// ---- two guests with one MAC ---------------------------------------------------------------------

fn conflicts(outputs: &[Output]) -> Vec<String> {
    let text = |output: &Output| match output {
        Output::Event(event @ Event::Conflict { .. }) => Some(event.to_string()),
        _ => None,
    };
    outputs.iter().filter_map(text).collect()
}

#[test]
fn both_hosts_of_two_guests_with_one_mac_say_so_and_who_gets_the_frames() {
    let (mut old, mut new) = (Bench::hosting(), Bench::new());
    new.mapper = Mapper::new(new.mapper.config.clone(), [2; 16], varp_of(2));
    let theirs = claim(2, 0).coa;
    new.mapper.add_vif(VIF, key(7, 1), theirs).unwrap();
    new.mapper.set_active(VIF, true, None, Now { wall_ms: WALL + 2000, ..new.now });
    let announced = new.sent()[0].1;
    old.hear(2, true, announced);
    let outputs = old.outputs();
    let [said] = &conflicts(&outputs)[..] else { panic!("{outputs:?}") };
    let ours = coa(1, port(VIF));
    for part in ["7/02:00:00:00:00:01", &format!("here at {ours}"), "host 192.0.2.2", "MAC"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(said.contains(&format!("frames go to {theirs}")), "{said}");
    // The other host hears it from this one, though the first time is lost, and says it once.
    old.pass_ms(200);
    old.hear(2, true, announced);
    old.hear(2, true, announced);
    let told = old.sent();
    let [(Destination::Unicast(to), told)] = told[..] else { panic!("{told:?}") };
    assert_eq!(to, varp_of(2));
    for _ in 0..2 {
        new.hear(1, false, told);
    }
    let outputs = new.outputs();
    let [said] = &conflicts(&outputs)[..] else { panic!("{outputs:?}") };
    for part in [&format!("here at {theirs}"), "host 192.0.2.1", &format!("frames go to {theirs}")]
    {
        assert!(said.contains(part), "{said}");
    }
    assert!(new.mapper.claim(VIF).is_some(), "it goes on");
    assert_eq!((old.count(MapperCounter::conflicts), new.count(MapperCounter::conflicts)), (1, 1));
}

#[test]
fn a_guest_that_has_moved_is_no_conflict_at_either_end() {
    let mut bench = Bench::hosting();
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.hear_announce(key(7, 1), claim(2, 2000));
    assert_eq!(bench.sent(), [], "nobody is told of two");
    assert_eq!(bench.count(MapperCounter::conflicts), 0);
}

#[test]
fn two_vifs_of_one_host_with_one_mac_are_a_conflict_too() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 1));
    let outputs = bench.outputs();
    let [said] = &conflicts(&outputs)[..] else { panic!("{outputs:?}") };
    assert!(said.contains(&format!("on this host, too, at {}", coa(1, port(OTHER)))), "{said}");
}

/// A host at which a vif is lost to another host's, and that host, where a second vif sends to it.
fn two_guests() -> (Bench, Bench) {
    let (mut lost, mut won) = (Bench::hosting(), Bench::new());
    won.mapper = Mapper::new(won.mapper.config.clone(), [2; 16], varp_of(2));
    for (vif, mac) in [(VIF, 1), (OTHER, 9)] {
        won.mapper.add_vif(vif, key(7, mac), coa(2, port(vif))).unwrap();
        won.mapper.set_active(vif, true, None, Now { wall_ms: WALL + 2000, ..won.now });
    }
    won.now.wall_ms = WALL + 2000;
    let announced = won.sent()[0].1;
    lost.hear(2, true, announced);
    assert_eq!(lost.mapper.claim(VIF), None);
    won.mapper.resolve(OTHER, mac(1), false, won.now);
    won.outputs();
    (lost, won)
}

/// Carries what two hosts send to everybody or to each other, until neither says more; whether the user at the second
/// is told that the vif is at the first.
fn talk(first: &mut Bench, second: &mut Bench) -> bool {
    let place = coa(1, port(VIF));
    let mut is_told = false;
    loop {
        let (ours, theirs) = (first.outputs(), second.outputs());
        if ours.is_empty() && theirs.is_empty() {
            return is_told;
        }
        is_told |= theirs.iter().any(|output| {
            matches!(output, Output::Notify { vif: OTHER, notice: Notice::Mapping { coa, .. } } if *coa == place)
        });
        for (host, outputs, to) in [(1, ours, &mut *second), (2, theirs, &mut *first)] {
            for output in outputs {
                if let Output::Send { to: way, message } = output {
                    let via_group = way == Destination::Group;
                    to.mapper.handle_message(varp_of(host), via_group, &message, to.now);
                }
            }
        }
    }
}

/// On one wire the switch would find the other at its next frame.
#[test]
fn of_two_guests_with_one_mac_the_other_is_reached_soon_after_the_rings_of_one_stop() {
    // When the host that has won hears that there are two, and after which time the other is reached.
    for (heard, limit_ms) in [("before", 0), ("after", 0), ("never", 1600)] {
        let (mut lost, mut won) = two_guests();
        match heard {
            "before" => _ = talk(&mut lost, &mut won),
            "never" => _ = lost.outputs(),
            _ => {}
        }
        assert_eq!(won.count(MapperCounter::conflicts), u64::from(heard == "before"));
        won.mapper.set_active(VIF, false, None, won.now);
        won.mapper.resolve(OTHER, mac(1), false, won.now);
        won.mapper.doubt(VIF, won.now);
        let mut passed = 0;
        while !talk(&mut lost, &mut won) && passed < 20_000 {
            lost.pass_ms(10);
            won.pass_ms(10);
            passed += 10;
        }
        assert!(passed <= limit_ms, "heard {heard}: {passed} ms");
        assert!(lost.mapper.claim(VIF).is_some());
    }
}

#[test]
fn who_wins_a_mac_that_another_guest_has_asks_for_that_one_when_its_rings_stop() {
    for is_contested in [true, false] {
        let mut bench = Bench::new();
        bench.activate(VIF, key(7, 1));
        let nonce = bench.sent()[0].1.nonce;
        if is_contested {
            let theirs = Claim { stamp: Stamp(WALL - 1000), ..claim(2, 0) };
            bench.hear(2, false, message(key(7, 1), nonce, correction(theirs)));
        }
        bench.settle();
        bench.mapper.set_active(VIF, false, None, bench.now);
        let asker = coa(1, port(VIF));
        let asked = bench.sent().into_iter().map(|(to, m)| (to, m.key, m.body)).collect::<Vec<_>>();
        let question = Body::Request { asker, refresh: false };
        let expected = is_contested.then_some((Destination::Group, key(7, 1), question));
        assert_eq!(asked, Vec::from_iter(expected), "a guest that has left is asked for by nobody");
    }
}

#[test]
fn of_two_guests_on_one_host_the_other_goes_on_when_the_rings_of_one_stop() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 1));
    let first = bench.mapper.claim(OTHER).unwrap();
    bench.settle();
    bench.mapper.set_active(OTHER, false, None, bench.now);
    let second = bench.mapper.claim(VIF).expect("it has its key again");
    assert!(second.beats(&first));
    assert!(bench.sent().iter().any(|(_, m)| m.body == announce(second)));
}

/// The winner's host may have failed, or have lost the message that there are two.
#[test]
fn when_anybody_asks_for_a_vif_that_is_lost_here_its_owner_is_asked_and_without_one_it_is_taken_back()
 {
    // How the owner's host answers, and when the vif is taken back.
    for (answers, back_ms) in [(Some(true), None), (Some(false), Some(1550)), (None, Some(3100))] {
        let mut bench = Bench::hosting();
        let theirs = claim(2, HOUR);
        bench.hear_announce(key(7, 1), theirs);
        bench.outputs();
        // Another host, or another vif of the owner's host.
        let host = if answers.is_some() { 3 } else { 2 };
        let body = Body::Request { asker: coa(host, 7000), refresh: false };
        for _ in 0..3 {
            bench.hear(host, true, message(key(7, 1), 5, body));
        }
        let sent = bench.sent();
        let [(to, asked)] = sent[..] else { panic!("one question a second at most: {sent:?}") };
        assert_eq!(to, Destination::Unicast(varp_of(2)));
        let answer = answers.map(|has_it| if has_it { reply(theirs) } else { Body::Absent });
        if let Some(answer) = answer {
            bench.hear(2, false, message(key(7, 1), asked.nonce, answer));
        }
        if let Some(back_ms) = back_ms {
            bench.pass_ms(back_ms - 1);
            assert_eq!(bench.mapper.claim(VIF), None);
            bench.pass_ms(1);
            assert!(bench.mapper.claim(VIF).is_some_and(|ours| ours.beats(&theirs)));
        } else {
            bench.pass_ms(60_000);
            assert_eq!(bench.mapper.claim(VIF), None);
        }
    }
}

#[test]
fn also_when_the_owner_was_not_heard_for_long() {
    for is_there in [true, false] {
        let mut bench = Bench::hosting();
        let theirs = claim(2, HOUR);
        bench.hear_announce(key(7, 1), theirs);
        bench.pass_ms(60_000);
        bench.outputs();
        bench.hear(2, true, message(key(7, 1), 5, request(2, false)));
        let sent = bench.sent();
        let [(to, asked)] = sent[..] else { panic!("{sent:?}") };
        assert_eq!(to, Destination::Group);
        if is_there {
            bench.hear(2, false, message(key(7, 1), asked.nonce, reply(theirs)));
        }
        bench.pass_ms(1550);
        assert_eq!(bench.mapper.claim(VIF).is_some(), !is_there);
    }
}

/// Anybody may send such a correction.
#[test]
fn a_host_that_says_too_often_that_a_stopped_vif_runs_there_is_answered_five_times_a_second() {
    let mut bench = Bench::hosting();
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.outputs();
    let older = Claim { stamp: Stamp(WALL - 1000), ..claim(2, 0) };
    let mut sent = Vec::new();
    for _ in 0..1000 {
        bench.hear(2, false, message(key(7, 1), 5, correction(older)));
        // Of somebody else's claim, or of a newer one, nothing can be known.
        bench.hear(3, false, message(key(7, 1), 5, correction(older)));
        bench.hear(2, false, message(key(7, 1), 5, correction(claim(2, HOUR))));
        sent.extend(bench.sent());
        bench.pass_ms(1);
    }
    let is_question = |(to, m): &(Destination, Message)| {
        *to == Destination::Group && matches!(m.body, Body::Request { .. })
    };
    assert!(sent.iter().all(is_question), "{sent:?}");
    assert_eq!(sent.len(), 5);
    assert_eq!(bench.told(), []);
}
