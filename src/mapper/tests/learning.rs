//! MACs behind a vif, and what is shown when two hosts claim one.

use super::*;

pub(super) const BEHIND: LocalVif = LocalVif(7);
const BRIDGE: Bridge = Bridge { vif: VIF, mac: Mac([2, 0, 0, 0, 0, 1]) };

/// With MAC 9 behind [`VIF`].
pub(super) fn bridging() -> Bench {
    let mut bench = Bench::with(|config| config.announce_interval = Duration::from_secs(300));
    bench.activate(VIF, key(7, 1));
    bench.mapper.add_learnt(BEHIND, BRIDGE, key(7, 9), coa(1, port(VIF))).unwrap();
    bench.mapper.set_active(BEHIND, true, None, bench.now);
    bench.settle();
    bench
}

fn events(bench: &mut Bench) -> Vec<&'static str> {
    let event = |output| match output {
        Output::Event(event) => Some(event.name()),
        _ => None,
    };
    bench.outputs().into_iter().filter_map(event).collect()
}

#[test]
fn a_mac_behind_a_vif_is_answered_for_and_told_only_of_itself() {
    let mut bench = bridging();
    bench.hear(2, true, message(key(7, 9), 5, request(2, false)));
    let (_, reply) = bench.sent().pop().expect("an answer");
    let Body::Reply { claim, .. } = reply.body else { panic!("{reply:?}") };
    assert_eq!(claim.coa, coa(1, port(VIF)));
    // More users than are listed: all vifs of the vnet are told, but it is none.
    for number in 20..60 {
        bench
            .add(LocalVif(number), VifKey { mac: Mac([2, 3, 0, 0, 0, number as u8]), ..key(7, 1) });
        bench.mapper.resolve(LocalVif(number), mac(3), false, bench.now);
    }
    bench.hear_announce(key(7, 3), super::claim(2, 0));
    assert!(bench.told().iter().all(|(vif, _)| *vif != BEHIND));
}

/// The claim of a MAC behind the vif with MAC 8 of a host.
pub(super) fn learnt(host: u8, ms: u64) -> Claim {
    Claim { behind: Some(mac(8)), ..claim(host, ms) }
}

#[test]
fn its_claim_says_which_vif_it_is_behind() {
    let mut bench = bridging();
    assert_eq!(bench.mapper.claim(BEHIND).unwrap().behind, Some(mac(1)));
    assert!(bench.mapper.claim(VIF).unwrap().is_own());
    bench.pass(Duration::from_secs(376));
    let announced = |(_, message): &(Destination, Message)| {
        message.key == key(7, 9) && message.body.claim().is_some_and(|claim| !claim.is_own())
    };
    assert!(bench.sent().iter().any(announced));
}

#[test]
fn it_is_taken_back_when_it_is_seen_and_not_by_itself() {
    let mut bench = bridging();
    for round in 1..=30 {
        bench.hear_announce(key(7, 9), learnt(2, HOUR + 20_000 * round));
        assert_eq!(events(&mut bench), ["lost"], "no conflict: it moves as it likes");
        assert_eq!(bench.mapper.claim(BEHIND), None);
        bench.pass_ms(2000);
        assert!(!bench.outputs().iter().any(|o| matches!(o, Output::Send { .. })));
        bench.mapper.announce(BEHIND, bench.now);
        assert!(bench.mapper.claim(BEHIND).is_some(), "round {round}: however often");
        bench.settle();
    }
}

/// VRRP sends from its virtual MAC each second, and fails over and back as it likes.
#[test]
fn a_claim_waits_for_a_second_after_the_last_move_and_is_never_dropped() {
    let mut bench = bridging();
    bench.pass_ms(5000);
    bench.outputs();
    let ours = bench.mapper.claim(BEHIND).unwrap();
    bench.hear_announce(key(7, 9), learnt(2, 3000));
    bench.pass_ms(300);
    bench.mapper.announce(BEHIND, bench.now);
    let seen = bench.now.wall_ms;
    assert_eq!(bench.mapper.claim(BEHIND), None);
    assert!(bench.mapper.is_claiming(BEHIND));
    bench.pass_ms(699);
    assert_eq!(bench.mapper.claim(BEHIND), None);
    // Seen again and again: there is one claim.
    bench.mapper.announce(BEHIND, bench.now);
    bench.pass_ms(1);
    let again = bench.mapper.claim(BEHIND).expect("a second has passed");
    assert!(again.beats(&ours) && (seen..bench.now.wall_ms).contains(&again.stamp.0));
    assert_eq!(bench.count(MapperCounter::deferred_claims), 1);
}

/// Else the last of many claimants would wait for all others.
#[test]
fn a_claim_that_was_put_off_is_not_put_off_again() {
    let mut bench = bridging();
    bench.pass_ms(5000);
    let at = |bench: &Bench| bench.now.wall_ms - WALL;
    bench.hear_announce(key(7, 9), learnt(2, at(&bench)));
    bench.pass_ms(100);
    bench.mapper.announce(BEHIND, bench.now);
    let seen = at(&bench);
    // Others that waited as well are heard just before its second is over.
    for host in [3, 4] {
        bench.pass_ms(400);
        bench.hear_announce(key(7, 9), learnt(host, seen - 50 + u64::from(host)));
    }
    bench.pass_ms(100);
    assert!(
        bench.mapper.claim(BEHIND).is_some(),
        "a second after the move before its guest's frame"
    );
}

/// Of several that wait, the one wins whose guest was heard last, whoever's second is over first.
#[test]
fn a_claim_that_was_put_off_has_the_stamp_of_its_guests_frame() {
    let mut bench = bridging();
    bench.pass_ms(5000);
    bench.hear_announce(key(7, 9), learnt(2, 6500));
    bench.outputs();
    bench.mapper.announce(BEHIND, bench.now);
    bench.pass_ms(200);
    // Host 3's guest sent later than ours, and its claim comes before ours is made.
    bench.hear_announce(key(7, 9), learnt(3, 6600));
    bench.pass_ms(1500);
    assert_eq!(bench.mapper.claim(BEHIND), None, "ours is the older one");
    assert!(!bench.mapper.is_claiming(BEHIND));
    let lost = |(vif, notice): &(LocalVif, Notice)| {
        *vif == BEHIND && matches!(notice, Notice::Lost { coa, .. } if *coa == coa_of(3))
    };
    assert!(bench.told().iter().any(lost), "so that the next frame claims it again");
}

pub(super) fn coa_of(host: u8) -> CareOf {
    claim(host, 0).coa
}

#[test]
fn receivers_follow_every_move_at_once() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 9, learnt(2, 0));
    for round in 1..=20 {
        let newer = learnt(2 + (round % 2) as u8, 100 * round);
        bench.hear_announce(key(7, 9), newer);
        assert_eq!(bench.told(), [(VIF, mapping_of(9, newer, 30_000))], "move {round}");
        bench.pass_ms(100);
    }
    assert_eq!(bench.count(MapperCounter::damped_moves), 0);
}

/// No guests' network fails over five times in 100 ms, but anybody on the segment can say that it does.
#[test]
fn receivers_of_a_learnt_claim_that_is_fought_for_are_told_five_times_a_second_and_then_the_last() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 9, learnt(2, 0));
    let mut told = 0;
    for round in 1..=2000 {
        bench.hear_announce(key(7, 9), learnt(2 + (round % 2) as u8, round));
        told += bench.told().len();
        bench.pass_ms(1);
    }
    assert!((10..=16).contains(&told), "five at once, then every 200 ms: {told}");
    let last = learnt(7, 10_000);
    bench.hear_announce(key(7, 9), last);
    bench.pass_ms(200);
    let told = bench.told();
    let Some((VIF, Notice::Mapping { coa, .. })) = told.last() else { panic!("{told:?}") };
    assert_eq!(*coa, last.coa);
}

/// A cache's correction that shows what came after our claim is a move, not another's clock.
#[test]
fn a_claim_that_was_beaten_since_is_not_made_again() {
    let mut bench = bridging();
    bench.pass_ms(1000);
    bench.mapper.announce(BEHIND, bench.now);
    let announced = bench.sent().into_iter().find(|(_, m)| m.key == key(7, 9)).unwrap().1;
    let newer = Body::Correction { claim: learnt(2, 90_000), lifetime_ms: 29_900 };
    bench.hear(3, false, message(key(7, 9), announced.nonce, newer));
    assert_eq!(bench.mapper.claim(BEHIND), None, "it was confirmed 100 ms ago");
    assert_eq!(bench.count(MapperCounter::reclaims), 0);
}

#[test]
fn macs_behind_vifs_have_a_bound_of_their_own() {
    let mut bench = Bench::with(|config| (config.limits.vifs, config.limits.learnt) = (2, 1));
    bench.add(VIF, key(7, 1));
    let at = coa(1, port(VIF));
    assert_eq!(bench.mapper.add_learnt(BEHIND, BRIDGE, key(7, 9), at), Ok(()));
    assert_eq!(bench.mapper.add_learnt(LocalVif(8), BRIDGE, key(7, 8), at), Err(AddError::Full));
    bench.add(OTHER, key(7, 2));
    bench.mapper.remove_vif(BEHIND, bench.now);
    assert_eq!(bench.mapper.add_learnt(LocalVif(8), BRIDGE, key(7, 8), at), Ok(()));
}

/// The network was split, both sides claimed a vif, and it is whole again.
#[test]
fn both_sides_of_a_conflict_are_shown_it() {
    let mut bench = Bench::hosting();
    bench.pass_ms(10_000);
    bench.outputs();
    // Ours is newer: said once in a lifetime, while the other side announces.
    for _ in 0..5 {
        let older = Claim { stamp: Stamp(WALL - 1), ..claim(2, 0) };
        bench.hear_announce(key(7, 1), older);
        bench.pass_ms(1000);
    }
    assert_eq!(events(&mut bench), ["conflict"]);
    assert_eq!(bench.count(MapperCounter::conflicts), 1);
    // Theirs is newer.
    bench.hear_announce(key(7, 1), claim(2, HOUR));
    assert_eq!(events(&mut bench), ["conflict", "lost"]);
    assert_eq!(bench.count(MapperCounter::conflicts), 2);
    assert_eq!(bench.mapper.claim(VIF), None);
}

/// Nor does a bridge make noise by forgetting what is behind it and learning it again.
#[test]
fn a_vif_pays_for_the_announcements_of_the_macs_behind_it() {
    let mut bench = bridging();
    let mut announced = 0;
    for round in 0..5000 {
        let behind = LocalVif(100 + round);
        bench.mapper.add_learnt(behind, BRIDGE, key(7, 8), coa(1, port(VIF))).unwrap();
        bench.mapper.set_active(behind, true, None, bench.now);
        bench.pass_ms(1);
        bench.mapper.remove_vif(behind, bench.now);
        announced += bench.sent().len();
    }
    assert!((256..=256 + 5 * 50).contains(&announced), "{announced}");
}
