//! Learnt claims against own ones.

use super::*;

const BEHIND: LocalVif = LocalVif(7);
const BRIDGE: Bridge = Bridge { vif: VIF, mac: Mac([2, 0, 0, 0, 0, 1]) };

/// The claim of a MAC behind the vif with MAC 8 of a host.
fn learnt(host: u8, ms: u64) -> Claim {
    Claim { behind: Some(mac(8)), ..claim(host, ms) }
}

/// With the mapping of MAC 2, an own one, at host 2; host 3 claims it as a learnt one.
fn contested() -> Bench {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.hear_announce(key(7, 2), learnt(3, HOUR));
    assert_eq!(bench.outputs(), [], "an own claim holds, and only its host corrects");
    bench
}

/// What a host is asked, if it is asked something.
fn question(bench: &mut Bench) -> Option<(SocketAddr, u64)> {
    let asks = |(to, message): (Destination, Message)| match (to, message.body) {
        (Destination::Unicast(to), Body::Request { refresh: true, .. }) => {
            Some((to, message.nonce))
        }
        _ => None,
    };
    bench.sent().into_iter().find_map(asks)
}

fn asked(bench: &mut Bench) -> u64 {
    bench.pass_ms(300);
    let (to, nonce) = question(bench).expect("the owner is asked");
    assert_eq!(to, varp_of(2));
    nonce
}

fn known(bench: &Bench) -> Option<Claim> {
    let rows = bench.mapper.rows(bench.now);
    rows.iter().find(|row| row.key == key(7, 2)).and_then(|row| row.claim)
}

/// One frame with another guest's source address would take that guest's frames.
#[test]
fn an_own_claim_is_not_lost_to_a_learnt_one_while_its_guest_runs() {
    let mut bench = Bench::hosting();
    bench.pass_ms(10_000);
    bench.outputs();
    let ours = bench.mapper.claim(VIF).unwrap();
    let mut announced = 0;
    for n in 0..100 {
        let theirs = learnt(2, HOUR + n);
        bench.hear_announce(key(7, 1), theirs);
        let sent = bench.sent();
        let corrects = |(to, message): &(Destination, Message)| {
            *to == Destination::Unicast(varp_of(2)) && message.body == correction(ours)
        };
        assert!(sent.iter().any(corrects), "its claimant hears whose it is");
        announced += sent.iter().filter(|(to, _)| *to == Destination::Group).count();
        bench.pass_ms(100);
    }
    assert_eq!(bench.mapper.claim(VIF), Some(ours));
    assert_eq!(announced, 10, "once a second");
    assert_eq!(bench.count(MapperCounter::conflicts), 1, "and the operator is shown it");
}

#[test]
fn an_owner_claims_anew_when_somebody_believes_a_learnt_claim() {
    let mut bench = Bench::hosting();
    bench.pass_ms(10_000);
    bench.hear_announce(key(7, 1), learnt(2, HOUR));
    let challenge = bench.sent().into_iter().find(|(to, _)| *to == Destination::Group).unwrap().1;
    let ours = bench.mapper.claim(VIF).unwrap();
    for _ in 0..3 {
        bench.hear(3, false, message(key(7, 1), challenge.nonce, correction(learnt(2, HOUR))));
    }
    let anew = bench.mapper.claim(VIF).unwrap();
    assert!(anew.stamp > ours.stamp && anew.stamp > learnt(2, HOUR).stamp);
    assert_eq!(bench.count(MapperCounter::reclaims), 1);
}

#[test]
fn a_cache_asks_the_owner_only_if_that_does_not_defend_itself() {
    let mut bench = contested();
    bench.pass_ms(90);
    assert_eq!(question(&mut bench), None, "not before 100 ms");
    bench.hear_announce(key(7, 2), claim(2, 0));
    bench.pass_ms(1000);
    assert_eq!(question(&mut bench), None, "it did");
    assert_eq!(known(&bench), Some(claim(2, 0)));
    // No defence: at most one question a second, whatever is claimed.
    let mut questions = 0;
    for n in 0..30 {
        bench.hear_announce(key(7, 2), learnt(3, HOUR + n));
        bench.pass_ms(100);
        if let Some((_, nonce)) = question(&mut bench) {
            questions += 1;
            bench.hear(2, false, message(key(7, 2), nonce, reply(claim(2, 0))));
        }
    }
    assert!((2..=3).contains(&questions), "{questions}");
    assert_eq!(known(&bench), Some(claim(2, 0)));
}

#[test]
fn a_cache_takes_the_learnt_claim_when_the_owners_host_says_absent() {
    let mut bench = contested();
    let nonce = asked(&mut bench);
    bench.hear(2, false, message(key(7, 2), nonce, Body::Absent));
    let told = bench.told();
    let is_there = |(vif, told): &(LocalVif, Notice)| {
        *vif == VIF && matches!(told, Notice::Mapping { coa, .. } if *coa == claim(3, 0).coa)
    };
    assert!(!told.is_empty() && told.iter().all(is_there), "{told:?}");
    assert_eq!(known(&bench), Some(learnt(3, HOUR)));
}

#[test]
fn a_cache_takes_the_learnt_claim_after_three_questions_without_answer() {
    let mut bench = contested();
    let mut questions = 0;
    while known(&bench) == Some(claim(2, 0)) {
        bench.pass_ms(1);
        questions += u32::from(question(&mut bench).is_some());
    }
    assert_eq!(questions, 3);
    assert_eq!(known(&bench), Some(learnt(3, HOUR)));
}

#[test]
fn an_own_claim_that_was_given_up_must_be_made_anew() {
    let mut bench = contested();
    let nonce = asked(&mut bench);
    bench.hear(2, false, message(key(7, 2), nonce, Body::Absent));
    bench.outputs();
    bench.hear_announce(key(7, 2), claim(2, 0));
    assert_eq!(known(&bench), Some(learnt(3, HOUR)));
    let (to, told) = bench.sent().pop().expect("its host is told");
    assert_eq!(to, Destination::Unicast(varp_of(2)));
    assert_eq!(told.body.claim(), Some(&learnt(3, HOUR)));
    bench.hear_announce(key(7, 2), claim(2, 1));
    assert_eq!(known(&bench), Some(claim(2, 1)), "it wins whatever the learnt claim's stamp");
    bench.hear_announce(key(7, 2), learnt(3, 2 * HOUR));
    assert_eq!(known(&bench), Some(claim(2, 1)));
}

#[test]
fn of_two_answers_the_own_one_holds() {
    for order in [[0, 1], [1, 0]] {
        let mut bench = Bench::hosting();
        bench.resolve(VIF, 2);
        let nonce = bench.sent()[0].1.nonce;
        for which in order {
            let (host, answer) = [(2, claim(2, 0)), (3, learnt(3, HOUR))][which];
            bench.hear(host, false, message(key(7, 2), nonce, reply(answer)));
        }
        assert_eq!(known(&bench), Some(claim(2, 0)));
        assert_eq!(bench.sent(), [], "and nobody but its host says so to the other");
    }
}

/// With MAC 2 behind [`VIF`] as soon as its guest sends from it, and as an own one at host 2.
fn tempted() -> Bench {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.mapper.add_learnt(BEHIND, BRIDGE, key(7, 2), coa(1, port(VIF))).unwrap();
    bench.mapper.set_active(BEHIND, true, None, bench.now);
    bench
}

#[test]
fn a_mac_with_a_known_owner_is_learnt_only_after_asking() {
    let mut bench = tempted();
    let (to, nonce) = question(&mut bench).expect("at once");
    assert_eq!((to, bench.mapper.claim(BEHIND)), (varp_of(2), None));
    bench.hear(2, false, message(key(7, 2), nonce, reply(claim(2, 0))));
    let hold = Duration::from_secs(1);
    assert_eq!(
        bench.told(),
        [(BEHIND, Notice::Refused { hold }), (VIF, mapping_of(2, claim(2, 0), 30_000)),]
    );
    assert!(!bench.mapper.is_claiming(BEHIND));
    // However often it is tried.
    for _ in 0..10 {
        bench.mapper.announce(BEHIND, bench.now);
        assert_eq!(question(&mut bench), None);
    }
    assert_eq!(known(&bench), Some(claim(2, 0)));
}

#[test]
fn a_mac_whose_owner_has_gone_is_learnt() {
    let mut bench = tempted();
    let (_, nonce) = question(&mut bench).expect("at once");
    bench.hear(2, false, message(key(7, 2), nonce, Body::Absent));
    assert!(bench.mapper.claim(BEHIND).is_some());
    let mut bench = tempted();
    bench.pass_ms(400);
    assert!(bench.mapper.claim(BEHIND).is_some(), "three questions without answer");
}

#[test]
fn a_learnt_claim_yields_to_the_owner_that_corrects_it() {
    let mut bench = Bench::hosting();
    bench.mapper.add_learnt(BEHIND, BRIDGE, key(7, 2), coa(1, port(VIF))).unwrap();
    bench.mapper.set_active(BEHIND, true, None, bench.now);
    let announced = bench.sent().pop().expect("nobody is known").1;
    let older = claim(2, 0);
    bench.hear(2, false, message(key(7, 2), announced.nonce, correction(older)));
    assert_eq!(bench.mapper.claim(BEHIND), None);
    assert!(
        bench
            .told()
            .iter()
            .any(|(vif, told)| *vif == BEHIND && matches!(told, Notice::Refused { .. }))
    );
    assert_eq!(known(&bench), Some(older));
}

#[test]
fn a_vif_that_arrives_takes_its_mac_from_behind_another() {
    let mut bench = Bench::hosting();
    bench.mapper.add_learnt(BEHIND, BRIDGE, key(7, 2), coa(1, port(VIF))).unwrap();
    bench.mapper.set_active(BEHIND, true, None, bench.now);
    bench.activate(OTHER, key(7, 2));
    assert_eq!(bench.mapper.owner(&key(7, 2)), Some(OTHER));
    assert!(
        bench
            .told()
            .iter()
            .any(|(vif, told)| *vif == BEHIND && matches!(told, Notice::Refused { .. }))
    );
    bench.mapper.announce(BEHIND, bench.now);
    assert_eq!(bench.mapper.owner(&key(7, 2)), Some(OTHER));
}

#[test]
fn where_a_vif_has_stopped_its_mac_may_be_behind_another_host() {
    let mut bench = Bench::hosting();
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.hear_announce(key(7, 1), learnt(2, HOUR));
    assert_eq!(bench.mapper.forwarding(key(7, 1)), Some(learnt(2, HOUR)));
}

/// Two guests had the MAC, of which the other one has ended: a bridge that sends from it does not inherit it.
#[test]
fn a_vif_that_lost_its_mac_to_another_takes_it_back_from_a_learnt_claim() {
    let mut bench = Bench::hosting();
    bench.pass_ms(10_000);
    bench.hear_announce(key(7, 1), claim(2, HOUR));
    assert_eq!(bench.mapper.claim(VIF), None);
    bench.outputs();
    let learnt = Claim { behind: Some(mac(8)), ..claim(3, HOUR + 1000) };
    bench.hear_announce(key(7, 1), learnt);
    bench.pass_ms(300);
    let asked = |(to, message): &(Destination, Message)| {
        (*to == Destination::Unicast(varp_of(2)) && message.key == key(7, 1))
            .then_some(message.nonce)
    };
    let nonce = bench.sent().iter().find_map(asked).expect("its owner is asked");
    bench.hear(2, false, message(key(7, 1), nonce, Body::Absent));
    assert!(bench.mapper.claim(VIF).is_some_and(|ours| ours.is_own()));
}
