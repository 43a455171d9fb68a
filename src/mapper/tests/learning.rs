//! MACs behind a vif, and what is shown when two hosts claim one.

use super::*;

const BEHIND: LocalVif = LocalVif(7);

/// With MAC 9 behind [`VIF`].
fn bridging() -> Bench {
    let mut bench = Bench::with(|config| config.announce_interval = Duration::from_secs(300));
    bench.activate(VIF, key(7, 1));
    bench.mapper.add_learnt(BEHIND, VIF, key(7, 9), coa(1, port(VIF))).unwrap();
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

#[test]
fn it_is_taken_back_when_it_is_seen_and_not_by_itself() {
    let mut bench = bridging();
    for round in 1..=5 {
        bench.hear_announce(key(7, 9), claim(2, 3_600_000 * round));
        assert_eq!(events(&mut bench), ["lost"], "no conflict: it moves as it likes");
        assert_eq!(bench.mapper.claim(BEHIND), None);
        bench.pass_ms(20_000);
        assert!(!bench.outputs().iter().any(|o| matches!(o, Output::Send { .. })));
        bench.mapper.announce(BEHIND, bench.now);
        assert!(bench.mapper.claim(BEHIND).is_some(), "round {round}");
        bench.settle();
    }
    bench.hear_announce(key(7, 9), claim(2, 3_600_000 * 6));
    bench.outputs();
    bench.mapper.announce(BEHIND, bench.now);
    assert_eq!(events(&mut bench), ["damped"]);
    assert_eq!(bench.mapper.claim(BEHIND), None);
}

#[test]
fn macs_behind_vifs_have_a_bound_of_their_own() {
    let mut bench = Bench::with(|config| (config.limits.vifs, config.limits.learnt) = (2, 1));
    bench.add(VIF, key(7, 1));
    let at = coa(1, port(VIF));
    assert_eq!(bench.mapper.add_learnt(BEHIND, VIF, key(7, 9), at), Ok(()));
    assert_eq!(bench.mapper.add_learnt(LocalVif(8), VIF, key(7, 8), at), Err(AddError::Full));
    bench.add(OTHER, key(7, 2));
    bench.mapper.remove_vif(BEHIND, bench.now);
    assert_eq!(bench.mapper.add_learnt(LocalVif(8), VIF, key(7, 8), at), Ok(()));
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
        bench.mapper.add_learnt(behind, VIF, key(7, 8), coa(1, port(VIF))).unwrap();
        bench.mapper.set_active(behind, true, None, bench.now);
        bench.pass_ms(1);
        bench.mapper.remove_vif(behind, bench.now);
        announced += bench.sent().len();
    }
    assert!((256..=256 + 5 * 50).contains(&announced), "{announced}");
}
