//! Every table is bounded, and one guest's excess is its own.

use super::*;

fn any_mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 1, a, b, c, d])
}

#[test]
fn a_guest_that_sprays_macs_costs_bounded_requests_and_memory() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(8, 1));
    bench.settle();
    let (mut requests, mut refused) = (0, 0);
    for number in 0..50_000 {
        bench.mapper.resolve(VIF, any_mac(number), false, bench.now);
        bench.pass_ms(1);
        for output in bench.outputs() {
            match output {
                Output::Send { .. } => requests += 1,
                Output::Notify { notice: Notice::Unresolved { .. }, .. } => refused += 1,
                _ => {}
            }
        }
        assert!(bench.mapper.pending.len() <= 256);
    }
    // Fifty seconds: four rounds of 256 resolutions with ten requests each.
    assert!(requests <= 4 * 256 * 10, "{requests} requests");
    assert!(refused >= 50_000 - 4 * 256, "{refused} refused");
    assert!(bench.mapper.timers.len() <= 1024);
    bench.mapper.resolve(OTHER, mac(3), false, bench.now);
    assert_eq!(bench.sent().len(), 1, "another vnet asks as ever");
    bench.pass_ms(40_000);
    bench.outputs();
    assert_eq!(bench.mapper.poll_timeout(), None, "all of it ends");
    assert_eq!(bench.mapper.rows(bench.now).len(), 2);
    assert_eq!(bench.mapper.vifs.get(VIF).unwrap().asking, 0);
}

#[test]
fn the_rate_of_a_vif_is_its_own() {
    let mut bench = Bench::with(|config| {
        config.limits.requests_per_second = 10;
        config.limits.request_burst = 5;
    });
    bench.activate(VIF, key(7, 1));
    bench.activate(OTHER, key(7, 9));
    bench.settle();
    for number in 0..20 {
        bench.mapper.resolve(VIF, any_mac(number), false, bench.now);
    }
    assert_eq!(bench.sent().len(), 5);
    assert_eq!(bench.count(MapperCounter::limit_rate), 15);
    bench.mapper.resolve(OTHER, mac(3), false, bench.now);
    assert_eq!(bench.sent().len(), 1);
    bench.mapper.resolve(VIF, any_mac(0), false, bench.now);
    assert_eq!(bench.count(MapperCounter::limit_rate), 15, "joining a question is free");
}

#[test]
fn a_dead_neighbour_delays_nobody() {
    let mut bench = Bench::hosting();
    for dead in 100..150 {
        bench.resolve(VIF, dead);
    }
    bench.pass_ms(5000);
    bench.outputs();
    bench.learn(VIF, 2, claim(2, 0));
    bench.resolve(VIF, 2);
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(2, 0), 30_000))]);
}

#[test]
fn the_limits_of_vnet_and_host_hold() {
    for (vnet_limit, total_limit) in [(3, 100), (100, 3)] {
        let mut bench = Bench::with(|config| {
            config.limits.pending_per_vnet = vnet_limit;
            config.limits.pending = total_limit;
        });
        bench.activate(VIF, key(7, 1));
        bench.settle();
        for host in 2..10 {
            bench.resolve(VIF, host);
        }
        assert_eq!(bench.sent().len(), 3);
        assert_eq!(bench.count(MapperCounter::limit_pending), 5);
    }
}

#[test]
fn a_full_vnet_tells_users_what_it_forgets() {
    let mut bench = Bench::with(|config| config.limits.entries_per_vnet = 2);
    bench.activate(VIF, key(7, 1));
    bench.settle();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(10);
    bench.learn(VIF, 3, claim(3, 0));
    bench.resolve(VIF, 4);
    let nonce = bench.sent()[0].1.nonce;
    bench.hear(4, false, message(key(7, 4), nonce, reply(claim(4, 0))));
    let told = bench.told();
    assert!(told.contains(&(VIF, Notice::Invalidate { mac: mac(2) })));
    assert!(told.contains(&(VIF, mapping_of(4, claim(4, 0), 30_000))));
    bench.pass_ms(60_000);
    assert_eq!(bench.mapper.poll_timeout(), None, "the evicted entry left no timer");
}

#[test]
fn more_users_than_are_listed_all_hear_of_a_move() {
    let mut bench = Bench::with(|config| config.limits.interest = 2);
    for vif in 1..=4 {
        bench.activate(LocalVif(vif), key(7, u8::try_from(vif).unwrap()));
    }
    bench.activate(LocalVif(5), key(8, 5));
    bench.settle();
    bench.learn(LocalVif(1), 9, claim(2, 0));
    for vif in 2..=4 {
        bench.resolve(LocalVif(vif), 9);
    }
    bench.outputs();
    bench.hear_announce(key(7, 9), claim(3, 2000));
    let told: Vec<_> = bench.told().into_iter().map(|(vif, _)| vif.0).collect();
    assert_eq!(told, [1, 2, 3, 4], "all of the vnet and nobody else");
}

#[test]
fn the_last_vif_of_a_vnet_takes_its_knowledge_along() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.resolve(VIF, 3);
    bench.mapper.remove_vif(VIF, bench.now);
    bench.pass_ms(30_000);
    assert_eq!(bench.mapper.poll_timeout(), None);
    assert_eq!(bench.mapper.rows(bench.now), []);
}

#[test]
fn a_question_that_nobody_waits_for_is_not_asked_on() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 9));
    bench.settle();
    bench.resolve(OTHER, 3);
    bench.resolve(OTHER, 4);
    bench.resolve(VIF, 4);
    bench.outputs();
    bench.mapper.remove_vif(OTHER, bench.now);
    bench.pass_ms(100);
    let asked: Vec<_> = bench.sent().iter().map(|(_, m)| m.key.mac).collect();
    assert_eq!(asked, [mac(4)]);
}

#[test]
fn forwarding_notes_are_bounded() {
    let mut bench = Bench::with(|config| config.limits.notes = 2);
    for vif in 1..=4 {
        bench.activate(LocalVif(vif), key(7, u8::try_from(vif).unwrap()));
        bench.pass_ms(1);
        bench.mapper.set_active(LocalVif(vif), false, None, bench.now);
    }
    assert_eq!(bench.mapper.notes.len(), 2);
    assert!(bench.mapper.notes.get(&key(7, 4)).is_some(), "the newest stay");
    assert_eq!(bench.mapper.timers.len(), 2);
}

#[test]
fn corrections_are_limited() {
    let mut bench = Bench::with(|config| config.limits.corrections_per_second = 3);
    bench.activate(VIF, key(7, 1));
    bench.settle();
    for _ in 0..10 {
        let older = Claim { stamp: Stamp(1), ..claim(2, 0) };
        bench.hear_announce(key(7, 1), older);
    }
    assert_eq!(bench.sent().len(), 3);
    assert_eq!(bench.count(MapperCounter::limit_corrections), 7);
}

/// Whatever its guest or backend does: each announcement is heard by all hosts of the segment.
#[test]
fn announcements_of_a_vif_are_limited_and_cost_no_other_its_own() {
    let mut bench = Bench::hosting();
    let mut announced = 0;
    for round in 0..20_000 {
        match round % 2 {
            0 => bench.mapper.announce(VIF, bench.now),
            _ => {
                bench.mapper.set_active(VIF, false, None, bench.now);
                bench.mapper.set_active(VIF, true, None, bench.now);
            }
        }
        bench.pass(Duration::from_micros(100));
        announced += bench.sent().len();
    }
    assert!((256..=256 + 2 * 50).contains(&announced), "{announced} in two seconds");
    assert!(bench.count(MapperCounter::limit_announces) > 0);
    bench.activate(OTHER, key(7, 2));
    assert_eq!(bench.sent().len(), 1, "another's");
    bench.pass_ms(6000);
    bench.outputs();
    bench.mapper.announce(VIF, bench.now);
    bench.pass_ms(900);
    assert_eq!(bench.sent().len(), 7, "as always, once it is quiet");
}

/// A bridge arrives, with as many MACs behind it as there may be.
#[test]
fn early_repeats_take_nothing_from_first_announcements() {
    let mut bench = Bench::hosting();
    bench.pass_ms(10_000);
    let mut first = 0;
    for n in 0..255_u8 {
        let behind = LocalVif(100 + u64::from(n));
        let key = VifKey { mac: Mac([2, 9, 0, 0, 0, n]), ..key(7, 1) };
        let bridge = Bridge { vif: VIF, mac: mac(1) };
        bench.mapper.add_learnt(behind, bridge, key, coa(1, port(VIF))).unwrap();
        bench.mapper.set_active(behind, true, None, bench.now);
        first += bench.sent().len();
        bench.pass(Duration::from_micros(100));
        bench.outputs();
    }
    assert_eq!(first, 255, "each at once, while those before it are repeated");
}

#[test]
fn equal_seeds_and_inputs_give_equal_outputs() {
    let run = || {
        let mut bench = Bench::hosting();
        bench.learn(VIF, 2, claim(2, 0));
        bench.refresh(VIF, 3);
        bench.pass_ms(20_000);
        bench.outputs()
    };
    assert_eq!(run(), run());
}
