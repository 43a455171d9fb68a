//! MACs behind a vif follow it, also those that say nothing.

use super::learning::{BEHIND, bridging, coa_of, learnt};
use super::*;

/// A bridge that migrates takes its MACs along.
#[test]
fn macs_behind_a_vif_follow_its_claim() {
    let mut bench = Bench::hosting();
    for n in 10..60 {
        bench.learn(VIF, n, learnt(2, 0));
    }
    let other = Claim { behind: Some(mac(77)), ..claim(2, 0) };
    bench.learn(VIF, 60, other);
    bench.hear_announce(key(7, 8), claim(3, 1000));
    let told = bench.told();
    assert_eq!(told.len(), 50, "those behind MAC 8");
    assert!(
        told.iter()
            .all(|(_, told)| matches!(told, Notice::Mapping { coa, .. } if *coa == coa_of(3)))
    );
    assert_eq!(bench.count(MapperCounter::carried), 50);
    // What comes late from the place before changes nothing.
    bench.hear_announce(key(7, 10), learnt(2, 0));
    bench.hear_announce(key(7, 8), claim(2, 500));
    assert_eq!(bench.told(), []);
    // One that is seen elsewhere since goes there.
    bench.hear_announce(key(7, 10), learnt(4, 2000));
    assert_eq!(bench.told(), [(VIF, mapping_of(10, learnt(4, 2000), 30_000))]);
    bench.hear_announce(key(7, 8), claim(5, 1500));
    assert_eq!(bench.told().len(), 49);
}

#[test]
fn macs_behind_a_vif_follow_it_to_this_host() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 9, learnt(2, 0));
    bench.activate(OTHER, key(7, 8));
    let here = coa(1, port(OTHER));
    let is_it = |(vif, told): &(LocalVif, Notice)| {
        *vif == VIF
            && matches!(told, Notice::Mapping { mac: of, coa, .. } if *of == mac(9) && *coa == here)
    };
    assert!(bench.told().iter().any(is_it));
}

/// This host confirms such a MAC at once, and tells its user once.
#[test]
fn a_user_is_told_once_when_this_host_confirms_a_mac_behind_its_own_vif() {
    for refresh in [false, true] {
        let mut bench = Bench::hosting();
        bench.learn(VIF, 9, learnt(2, 0));
        bench.activate(OTHER, key(7, 8));
        bench.pass_ms(16_000);
        bench.outputs();
        bench.mapper.resolve(VIF, mac(9), refresh, bench.now);
        let here = Claim { coa: coa(1, port(OTHER)), ..bench.mapper.claim(OTHER).unwrap() };
        assert_eq!(bench.told(), [(VIF, mapping_of(9, here, 30_000))], "refresh: {refresh}");
    }
}

/// A user waits for the confirmation of a mapping, and its owner's host says that the vif has moved.
#[test]
fn a_user_that_waits_for_a_confirmation_is_told_once_of_a_move() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 8, claim(2, 0));
    bench.activate(OTHER, key(7, 2));
    bench.pass_ms(16_000);
    bench.outputs();
    bench.refresh(VIF, 8);
    bench.resolve(OTHER, 8);
    bench.outputs();
    bench.hear_announce(key(7, 8), claim(3, 1000));
    let mut told = bench.told();
    told.sort_by_key(|(vif, _)| *vif);
    let moved = mapping_of(8, claim(3, 1000), 30_000);
    assert_eq!(told, [(VIF, moved), (OTHER, moved)]);
}

/// And from here: late frames for what was behind it go where it is.
#[test]
fn macs_that_were_behind_a_vif_of_this_host_are_where_it_has_gone() {
    let mut bench = bridging();
    bench.add(OTHER, key(7, 2));
    bench.mapper.remove_vif(BEHIND, bench.now);
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.hear_announce(key(7, 1), claim(2, 5000));
    let moved = bench.mapper.forwarding(key(7, 9)).expect("it went along");
    assert_eq!((moved.coa, moved.behind), (coa_of(2), Some(mac(1))));
}

/// Its users here are told, whether they asked before that was known or ask after it.
#[test]
fn local_users_follow_macs_that_were_behind_a_vif_of_this_host() {
    let mut bench = bridging();
    bench.activate(OTHER, key(7, 2));
    bench.mapper.remove_vif(BEHIND, bench.now);
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.outputs();
    bench.resolve(OTHER, 9);
    assert_eq!(bench.told(), [], "nobody knows yet");
    bench.hear_announce(key(7, 1), claim(2, 5000));
    assert!(bench.told().contains(&(OTHER, mapping_of(9, claim(2, 5000), 30_000))));
    bench.resolve(OTHER, 9);
    assert_eq!(bench.told(), [(OTHER, mapping_of(9, claim(2, 5000), 30_000))]);
    assert!(bench.mapper.forwarding(key(7, 9)).is_some(), "late frames are sent on");
}

/// A guest whose source stops late is elsewhere already: so is all that is behind it.
#[test]
fn macs_behind_a_vif_that_is_beaten_are_beaten_with_it() {
    let mut bench = bridging();
    bench.pass_ms(10_000);
    bench.activate(OTHER, key(7, 2));
    bench.resolve(OTHER, 9);
    bench.outputs();
    bench.hear_announce(key(7, 1), claim(2, HOUR));
    assert_eq!((bench.mapper.claim(VIF), bench.mapper.claim(BEHIND)), (None, None));
    let told = bench.told();
    assert!(told.contains(&(OTHER, mapping_of(9, claim(2, HOUR), 30_000))), "{told:?}");
    let is_lost = |(vif, notice): &(LocalVif, Notice)| {
        *vif == BEHIND && matches!(notice, Notice::Lost { coa, .. } if *coa == coa_of(2))
    };
    assert!(told.iter().any(is_lost), "its backend sends late frames on");
}

/// MAC 9, behind the vif with MAC 8, which has moved to host 3; it has said nothing there, and its
/// mapping is to be confirmed. Returns the question.
fn refreshing() -> (Bench, Message) {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 9, learnt(2, 0));
    bench.hear_announce(key(7, 8), claim(3, 1000));
    bench.pass_ms(16_000);
    bench.outputs();
    bench.refresh(VIF, 9);
    let [(to, question)] = bench.sent()[..] else { panic!("a question") };
    assert_eq!((to, question.key), (Destination::Unicast(varp_of(3)), key(7, 9)));
    (bench, question)
}

/// Its host says that MAC 9 is not there. Returns the questions to all for the MAC, and to the host
/// for the vif.
fn doubted() -> (Bench, Message, Message) {
    let (mut bench, question) = refreshing();
    bench.hear(3, false, message(key(7, 9), question.nonce, Body::Absent));
    let outputs = bench.outputs();
    assert!(!outputs.iter().any(|output| matches!(output, Output::Notify { .. })), "it holds");
    let sent = outputs.into_iter().filter_map(|output| match output {
        Output::Send { to, message } => Some((to, message)),
        _ => None,
    });
    let sent: Vec<(Destination, Message)> = sent.collect();
    let [(all, for_mac), (host, for_vif)] = sent[..] else { panic!("{sent:?}") };
    assert_eq!((all, for_mac.key), (Destination::Group, key(7, 9)));
    assert_eq!((host, for_vif.key), (Destination::Unicast(varp_of(3)), key(7, 8)));
    (bench, for_mac, for_vif)
}

fn mapped(told: &[(LocalVif, Notice)], of: u8) -> Option<CareOf> {
    told.iter().rev().find_map(|(vif, notice)| match notice {
        Notice::Mapping { mac: to, coa, .. } if *vif == VIF && *to == mac(of) => Some(*coa),
        _ => None,
    })
}

#[test]
fn a_silent_mac_behind_a_vif_that_has_moved_holds_as_long_as_the_vif_is_there() {
    let (mut bench, _, for_vif) = doubted();
    bench.hear(3, false, message(key(7, 8), for_vif.nonce, reply(claim(3, 1000))));
    assert_eq!(mapped(&bench.told(), 9), Some(coa_of(3)));
    bench.pass_ms(29_000);
    bench.outputs();
    bench.resolve(VIF, 9);
    assert_eq!(mapped(&bench.told(), 9), Some(coa_of(3)), "for a lifetime");
}

#[test]
fn a_silent_mac_is_lost_when_the_vif_that_it_was_behind_is_not_there() {
    let (mut bench, _, for_vif) = doubted();
    bench.hear(3, false, message(key(7, 8), for_vif.nonce, Body::Absent));
    assert!(bench.told().contains(&(VIF, Notice::Invalidate { mac: mac(9) })));
    bench.pass_ms(16_000);
    let unresolved = |(vif, notice): &(LocalVif, Notice)| {
        *vif == VIF && matches!(notice, Notice::Unresolved { mac: of, .. } if *of == mac(9))
    };
    assert!(bench.told().iter().any(unresolved), "nobody has it");
}

/// A guest stops in one place before it starts in another, and may be asked for just then.
#[test]
fn a_silent_mac_that_is_asked_for_while_its_vif_moves_is_found_with_it() {
    let (mut bench, _, for_vif) = doubted();
    bench.hear(3, false, message(key(7, 8), for_vif.nonce, Body::Absent));
    bench.pass_ms(200);
    bench.outputs();
    bench.hear_announce(key(7, 8), claim(3, 1000));
    assert_eq!(mapped(&bench.told(), 9), None, "that is its old place");
    bench.hear_announce(key(7, 8), claim(4, 20_000));
    assert_eq!(mapped(&bench.told(), 9), Some(coa_of(4)));
}

/// Its host knows where the vif is now.
#[test]
fn a_silent_mac_follows_a_correction_about_its_vif() {
    let (mut bench, _, for_vif) = doubted();
    bench.hear(3, false, message(key(7, 8), for_vif.nonce, correction(claim(4, 9000))));
    assert_eq!(mapped(&bench.told(), 9), Some(coa_of(4)));
    bench.pass_ms(5000);
    assert!(!bench.told().contains(&(VIF, Notice::Invalidate { mac: mac(9) })));
}

#[test]
fn a_silent_mac_is_lost_when_the_host_of_its_vif_does_not_answer() {
    let (mut bench, ..) = doubted();
    bench.pass_ms(1999);
    assert!(!bench.told().contains(&(VIF, Notice::Invalidate { mac: mac(9) })));
    bench.pass_ms(1);
    assert!(bench.told().contains(&(VIF, Notice::Invalidate { mac: mac(9) })));
}

/// It may have moved behind another vif, which was not heard.
#[test]
fn who_has_a_mac_is_believed_before_and_after_its_former_vif_is_there() {
    for is_late in [false, true] {
        let (mut bench, for_mac, for_vif) = doubted();
        let there = message(key(7, 8), for_vif.nonce, reply(claim(3, 1000)));
        let elsewhere = message(key(7, 9), for_mac.nonce, reply(learnt(4, 9000)));
        let mut answers = [(4, elsewhere), (3, there)];
        if is_late {
            answers.reverse();
        }
        let mut told = Vec::new();
        for (host, answer) in answers {
            bench.hear(host, false, answer);
            told.extend(bench.told());
        }
        assert_eq!(mapped(&told, 9), Some(coa_of(4)), "late: {is_late}");
    }
}

/// Its vif came to this host, which needs to ask nobody whether it is there.
#[test]
fn a_silent_mac_that_came_here_with_its_vif_holds_without_a_question_to_this_host() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 9, learnt(2, 0));
    bench.activate(OTHER, key(7, 8));
    bench.pass_ms(16_000);
    bench.outputs();
    bench.refresh(VIF, 9);
    let outputs = bench.outputs();
    let unicast =
        |output: &Output| matches!(output, Output::Send { to: Destination::Unicast(_), .. });
    assert!(!outputs.iter().any(unicast), "{outputs:?}");
    let here = coa(1, port(OTHER));
    let confirmed = |output: &Output| {
        let Output::Notify { vif: VIF, notice: Notice::Mapping { coa, lifetime, .. } } = output
        else {
            return false;
        };
        *coa == here && *lifetime == Duration::from_secs(30)
    };
    assert!(outputs.iter().any(confirmed), "{outputs:?}");
}
