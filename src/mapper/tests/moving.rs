//! Remote vifs that move, and those that move too often.

use super::*;

#[test]
fn users_hear_of_a_move_and_of_nothing_else() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(5000);
    bench.hear_announce(key(7, 2), claim(2, 0));
    assert_eq!(bench.outputs(), [], "the same claim is no news");
    bench.hear_announce(key(7, 2), claim(3, 6000));
    let outputs = bench.outputs();
    let moved = Event::Moved { key: key(7, 2), from: claim(2, 0), to: claim(3, 6000) };
    let notice = mapping_of(2, claim(3, 6000), 30_000);
    assert_eq!(outputs, [Output::Event(moved), Output::Notify { vif: VIF, notice }]);
    bench.hear_announce(key(7, 2), claim(3, 6000));
    assert_eq!(bench.outputs(), []);
}

#[test]
fn the_owners_own_announcement_prolongs_and_hearsay_does_not() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(20_000);
    bench.hear(2, false, message(key(7, 2), 0, correction(claim(2, 0))));
    assert_eq!(bench.mapper.rows(bench.now)[1].remaining, Duration::from_secs(10));
    bench.hear_announce(key(7, 2), claim(2, 0));
    assert_eq!(bench.mapper.rows(bench.now)[1].remaining, Duration::from_secs(30));
}

#[test]
fn an_older_announcement_changes_nothing_and_is_corrected_once() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(3, 6000));
    bench.pass_ms(1000);
    for _ in 0..3 {
        bench.hear_announce(key(7, 2), claim(2, 0));
    }
    let body = Body::Correction { claim: claim(3, 6000), lifetime_ms: 29_000 };
    let answer = message(key(7, 2), 99, body);
    assert_eq!(
        bench.outputs(),
        [Output::Send { to: Destination::Unicast(varp_of(2)), message: answer }]
    );
    assert_eq!(bench.count(MapperCounter::rx_stale), 3);
}

#[test]
fn an_announcement_creates_nothing() {
    let mut bench = Bench::hosting();
    bench.hear_announce(key(7, 2), claim(2, 0));
    bench.hear_announce(key(8, 2), claim(2, 0));
    assert_eq!(bench.outputs(), []);
    assert_eq!(bench.mapper.rows(bench.now).len(), 1, "only the local vif");
}

#[test]
fn an_announcement_answers_a_question_and_lifts_a_refusal() {
    let mut bench = Bench::hosting();
    bench.resolve(VIF, 2);
    bench.outputs();
    bench.hear_announce(key(7, 2), claim(2, 0));
    assert_eq!(bench.told(), [(VIF, mapping_of(2, claim(2, 0), 30_000))]);
    bench.resolve(VIF, 3);
    bench.pass_ms(15_100);
    bench.outputs();
    bench.hear_announce(key(7, 3), claim(3, 16_000));
    assert_eq!(bench.told(), [(VIF, mapping_of(3, claim(3, 16_000), 30_000))]);
}

#[test]
fn the_old_host_corrects_who_confirms_with_it() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.pass_ms(20_000);
    bench.refresh(VIF, 2);
    let nonce = bench.sent()[0].1.nonce;
    bench.hear(2, false, message(key(7, 2), nonce, correction(claim(3, 6000))));
    let notice = mapping_of(2, claim(3, 6000), 30_000);
    let told = bench.told();
    assert!(!told.is_empty() && told.iter().all(|told| *told == (VIF, notice)));
    bench.pass_ms(5000);
    assert_eq!(bench.sent(), [], "the question is answered");
}

#[test]
fn the_old_host_corrects_who_still_sends_frames() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.hear(2, false, message(key(7, 2), 0, correction(claim(3, 6000))));
    let sent = bench.sent();
    let [(Destination::Unicast(to), asked)] = sent.as_slice() else { panic!("{sent:?}") };
    assert_eq!(*to, varp_of(2), "which may be anybody's message, so host 2 is asked");
    bench.hear(2, false, message(key(7, 2), asked.nonce, correction(claim(3, 6000))));
    let told = bench.told();
    assert!(told.contains(&(VIF, mapping_of(2, claim(3, 6000), 30_000))), "{told:?}");
}

#[test]
fn two_answers_leave_the_newer_and_tell_the_host_of_the_older() {
    for newer_first in [true, false] {
        let mut bench = Bench::hosting();
        let (older, newer) = (claim(2, 0), claim(3, 500));
        bench.resolve(VIF, 5);
        let nonce = bench.sent()[0].1.nonce;
        let order = if newer_first { [newer, older] } else { [older, newer] };
        for claim in order {
            bench.hear(host_of(claim.coa), false, message(key(7, 5), nonce, reply(claim)));
        }
        let row = bench.mapper.rows(bench.now).into_iter().find(|r| r.key == key(7, 5)).unwrap();
        assert_eq!(row.claim, Some(newer));
        if newer_first {
            let answer = message(key(7, 5), nonce, correction(newer));
            assert_eq!(bench.sent(), [(Destination::Unicast(varp_of(2)), answer)]);
        }
    }
}

#[test]
fn a_vif_that_takes_its_key_back_too_often_is_refused_for_a_while() {
    let mut bench = Bench::hosting();
    let mut refused = 0;
    for round in 1..=7 {
        bench.hear_announce(key(7, 1), claim(2, round * 2000));
        assert_eq!(bench.mapper.claim(VIF), None);
        bench.pass_ms(1000);
        bench.mapper.announce(VIF, bench.now);
        refused += u64::from(bench.mapper.claim(VIF).is_none());
    }
    assert_eq!(refused, 2, "five moves, then no more");
    assert_eq!(bench.count(MapperCounter::damped_claims), 2);
    bench.pass_ms(180_000);
    bench.mapper.announce(VIF, bench.now);
    assert!(bench.mapper.claim(VIF).is_some());
}

#[test]
fn a_guest_that_migrates_back_and_forth_is_never_refused() {
    let mut bench = Bench::hosting();
    for round in 1..=20 {
        bench.mapper.set_active(VIF, false, None, bench.now);
        bench.hear_announce(key(7, 1), claim(2, round * 2000));
        bench.pass_ms(1000);
        bench.mapper.set_active(VIF, true, None, bench.now);
        assert!(bench.mapper.claim(VIF).unwrap().stamp > claim(2, round * 2000).stamp);
    }
    assert_eq!(bench.count(MapperCounter::damped_claims), 0);
}

#[test]
fn users_of_a_mapping_that_flaps_are_told_once_a_second_and_then_the_last() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    let mut told = 0;
    for round in 1..=100 {
        bench.pass_ms(20);
        bench.hear_announce(key(7, 2), claim(2 + u8::try_from(round % 2).unwrap(), round));
        told += bench.told().len();
    }
    assert!((5..=8).contains(&told), "four at once, then one a second: {told}");
    bench.hear_announce(key(7, 2), claim(9, 1000));
    bench.pass_ms(1000);
    let told = bench.told();
    let Some((VIF, Notice::Mapping { coa, .. })) = told.last() else { panic!("{told:?}") };
    assert_eq!(*coa, claim(9, 1000).coa);
}

/// Anybody on the segment can announce a MAC with rising stamps, and each announcement was once a message to the
/// backends.
#[test]
fn a_vif_that_lost_its_key_is_told_of_further_moves_five_times_a_second_and_of_the_last() {
    for has_stopped in [false, true] {
        let mut bench = Bench::hosting();
        if has_stopped {
            bench.mapper.set_active(VIF, false, None, bench.now);
            bench.outputs();
        }
        let (mut told, mut corrected) = (0, 0);
        for round in 0..2000 {
            let newer = claim(2 + u8::try_from(round % 2).unwrap(), 5000 + round);
            bench.hear_announce(key(7, 1), newer);
            for output in bench.outputs() {
                match output {
                    Output::Notify { vif: VIF, notice: Notice::Lost { coa, .. } } => {
                        told += 1;
                        assert!(round > 0 || coa == newer.coa, "the first at once");
                    }
                    Output::Send { .. } => corrected += 1,
                    _ => {}
                }
            }
            bench.pass_ms(1);
        }
        assert!((10..=11).contains(&told), "in two seconds: {told}");
        assert!(corrected <= 11, "the host that has it is told as often: {corrected}");
        let last = claim(9, 9000);
        bench.hear_announce(key(7, 1), last);
        bench.pass_ms(200);
        let told = bench.told();
        let lost = Notice::Lost { stamp: last.stamp, coa: last.coa };
        assert_eq!(told.last(), Some(&(VIF, lost)), "{told:?}");
        assert_eq!(bench.mapper.forwarding(key(7, 1)), Some(last));
        // A later one is told at once again.
        bench.pass_ms(200);
        bench.hear_announce(key(7, 1), claim(3, 10_000));
        assert_eq!(bench.told().len(), 1);
    }
}

/// A vif that has its key again is not told of a move before that.
#[test]
fn a_move_that_was_held_back_is_not_told_when_the_vif_is_back() {
    let mut bench = Bench::hosting();
    bench.mapper.set_active(VIF, false, None, bench.now);
    for round in 0..3 {
        bench.hear_announce(key(7, 1), claim(2, 5000 + round));
    }
    bench.mapper.set_active(VIF, true, None, bench.now);
    bench.outputs();
    assert!(bench.mapper.claim(VIF).is_some());
    bench.pass_ms(1000);
    assert_eq!(bench.told(), []);
}

/// A guest arrives at host 1 while a tenth of all packets is lost; host 2 talks to it.
#[test]
fn with_a_tenth_lost_all_but_one_of_a_hundred_arrivals_are_heard_within_20_ms() {
    const ARRIVALS: u32 = 3000;
    let mut lost = 0x9e37_79b9_7f4a_7c15_u64;
    let mut is_lost = || {
        lost ^= lost << 13;
        lost ^= lost >> 7;
        lost ^= lost << 17;
        lost.is_multiple_of(10)
    };
    let mut late = 0;
    for _ in 0..ARRIVALS {
        let mut bench = Bench::new();
        bench.activate(VIF, key(7, 1));
        let start = bench.now.mono;
        let heard = loop {
            if bench.sent().iter().any(|_| !is_lost()) {
                break true;
            }
            let Some(due) = bench.mapper.poll_timeout() else { break false };
            if due.saturating_since(start) > Duration::from_millis(20) {
                break false;
            }
            bench.pass(due.saturating_since(bench.now.mono));
        };
        late += u32::from(!heard);
    }
    assert!(late * 100 < ARRIVALS, "{late} of {ARRIVALS}");
}

/// Frames that still come for a guest that has left, one each millisecond.
#[test]
fn the_old_host_repeats_its_correction_early_and_then_once_a_second() {
    let mut bench = Bench::hosting();
    bench.mapper.set_active(VIF, false, None, bench.now);
    bench.hear_announce(key(7, 1), claim(2, 2000));
    bench.outputs();
    let mut times = Vec::new();
    for ms in 0..3000 {
        bench.mapper.correct(key(7, 1), coa(3, 6000).addr, bench.now);
        times.extend(bench.sent().iter().map(|_| ms));
        bench.pass_ms(1);
    }
    assert_eq!(times, [0, 5, 25, 105, 425, 1425, 2425]);
}
