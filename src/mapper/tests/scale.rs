//! Large tables, and flows that live for long.

use super::*;
use crate::tunnel::neighbors::{Lookup, Neighbors};

fn any_mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 1, a, b, c, d])
}

/// Lets `owner`'s host answer all requests among the outputs.
fn answer_all(bench: &mut Bench, owner: Claim) {
    for (_, request) in bench.sent() {
        let answer = message(request.key, request.nonce, reply(owner));
        bench.hear(host_of(owner.coa), false, answer);
    }
}

#[test]
fn a_million_sprayed_macs_take_nothing_from_another_vnet() {
    const MACS: u32 = 1_000_000;
    const NEIGHBOURS: u32 = 500;
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(8, 1));
    bench.settle();
    for number in 0..NEIGHBOURS {
        bench.mapper.resolve(OTHER, any_mac(number), false, bench.now);
        bench.pass_ms(11);
        answer_all(&mut bench, claim(2, 0));
    }
    let vnet = VnetId::new(8).unwrap();
    assert_eq!(bench.mapper.known_on(vnet), NEIGHBOURS as usize);
    let before = bench.count(MapperCounter::tx_requests);
    for number in 0..MACS {
        bench.mapper.resolve(VIF, any_mac(number), false, bench.now);
        if number % 100 == 0 {
            bench.pass_ms(1);
            bench.outputs();
        }
    }
    // Ten seconds: not all of its 256 open questions have ended once, with nine requests each.
    let requests = bench.count(MapperCounter::tx_requests) - before;
    assert!(requests <= 256 * 9, "{requests} requests");
    assert_eq!(bench.mapper.known_on(vnet), NEIGHBOURS as usize, "nothing is evicted");
    assert_eq!(bench.count(MapperCounter::evicted), 0);
    let rows = bench.mapper.rows(bench.now).len();
    assert!(rows <= NEIGHBOURS as usize + 2 + 256, "{rows} rows");
    assert!(bench.mapper.timers.len() <= rows + 2);
}

#[test]
fn pages_make_up_the_whole_table() {
    let mut bench = Bench::with(|config| {
        config.limits.requests_per_second = 100_000;
        config.limits.request_burst = 100_000;
    });
    bench.activate(VIF, key(7, 1));
    bench.activate(OTHER, key(7, 2));
    bench.activate(LocalVif(3), key(9, 1));
    bench.mapper.set_active(OTHER, false, None, bench.now);
    bench.settle();
    for number in 0..1000 {
        bench.mapper.resolve(VIF, any_mac(number), false, bench.now);
        match number % 4 {
            3 => drop(bench.outputs()),
            _ => answer_all(&mut bench, claim(2, 0)),
        }
        if bench.mapper.pending.len() == 200 {
            bench.pass_ms(15_000);
        }
    }
    let whole = bench.mapper.rows(bench.now);
    assert!(whole.len() > 500, "{} rows", whole.len());
    for most in [1, 2, 7, 512, 5000] {
        let (mut rows, mut after) = (Vec::new(), None);
        loop {
            let page = bench.mapper.rows_after(after, most, bench.now);
            assert!(page.len() <= most + 1, "one key has two rows at most");
            let Some(last) = page.last() else { break };
            after = Some(last.key);
            rows.extend(page);
        }
        assert_eq!(rows, whole, "pages of {most}");
    }
}

#[test]
fn many_entries_that_end_at_once_end_in_turns() {
    const ENTRIES: u32 = 5000;
    let mut bench = Bench::with(|config| config.limits.request_burst = ENTRIES);
    bench.activate(VIF, key(7, 1));
    bench.settle();
    for number in 0..ENTRIES {
        bench.mapper.resolve(VIF, any_mac(number), false, bench.now);
        answer_all(&mut bench, claim(2, 0));
    }
    bench.outputs();
    bench.turn(bench.now.mono + Duration::from_secs(31));
    let mut turns = 0;
    while bench.mapper.poll_timeout().is_some_and(|at| at <= bench.now.mono) {
        bench.mapper.handle_timeout(bench.now);
        assert!(bench.outputs().len() <= TIMERS_AT_ONCE);
        turns += 1;
    }
    assert_eq!(turns, (ENTRIES as usize).div_ceil(TIMERS_AT_ONCE));
    assert_eq!(bench.mapper.known_on(VnetId::new(7).unwrap()), 0);
}

#[test]
fn a_lost_request_costs_less_than_150_ms() {
    let mut bench = Bench::hosting();
    let asked = bench.now.mono;
    bench.resolve(VIF, 2);
    assert_eq!(bench.sent().len(), 1, "this one is lost");
    while bench.told().is_empty() {
        let due = bench.mapper.poll_timeout().expect("another try");
        bench.turn(due);
        bench.mapper.handle_timeout(bench.now);
        answer_all(&mut bench, claim(2, 0));
    }
    assert!(bench.now.mono - asked < Duration::from_millis(150));
}

/// A backend's table and its varpd's, over ten lifetimes of a flow of a frame per 10 ms: the first
/// request of each confirmation is lost, and every answer takes 2 ms.
#[test]
fn an_established_flow_never_waits_for_a_refresh() {
    let mut bench = Bench::hosting();
    let mut neighbours = Neighbors::default();
    let owner = claim(2, 0);
    let begin = bench.now.mono;
    let (mut asked, mut waited) = (0, Vec::new());
    while bench.now.mono - begin < Duration::from_secs(300) {
        if neighbours.lookup(mac(2), bench.now.mono) != Lookup::To(owner.coa) {
            waited.push(bench.now.mono - begin);
        }
        for question in neighbours.questions().collect::<Vec<_>>() {
            bench.mapper.resolve(VIF, question.mac, question.refresh, bench.now);
            asked += 1;
        }
        for output in bench.outputs() {
            match output {
                // The first of each confirmation is lost.
                Output::Send { to: Destination::Unicast(_), message: m }
                    if bench.mapper.pending.get(&m.key).is_some_and(|p| p.sent == 1) => {}
                Output::Send { message: m, .. } => {
                    bench.pass_ms(2);
                    bench.hear(2, false, message(m.key, m.nonce, reply(owner)));
                }
                Output::Notify { notice: Notice::Mapping { mac, coa, lifetime, .. }, .. } => {
                    neighbours.handle_mapping(mac, coa, coa.addr.ip(), lifetime, bench.now.mono);
                }
                _ => {}
            }
        }
        bench.pass_ms(10);
    }
    assert!(asked >= 15, "asked {asked} times");
    assert!(waited.iter().all(|at| *at < Duration::from_millis(50)), "late: {waited:?}");
}

#[test]
fn the_newest_claim_wins_in_whatever_order_they_come() {
    let claims: Vec<Claim> = (0..4).map(|n| claim(10 + n, u64::from(n) * 1000)).collect();
    for order in 0..24_usize {
        let mut left = claims.clone();
        let mut bench = Bench::hosting();
        bench.learn(VIF, 2, claim(9, 0));
        let mut rest = order;
        while !left.is_empty() {
            let next = left.remove(rest % left.len());
            rest /= 4;
            bench.hear_announce(key(7, 2), next);
        }
        let rows = bench.mapper.rows(bench.now);
        assert_eq!(rows[1].claim, Some(claims[3]), "order {order}");
    }
}
