//! Limits on a simulated clock.

use super::*;

fn rate(text: &str) -> Option<Rate> {
    Some(text.parse().unwrap())
}

fn throttle(limits: Limits) -> Throttle {
    Throttle::new(&limits).unwrap()
}

fn at(micros: u64) -> Instant {
    Instant::from_micros(micros)
}

/// Lets frames of 1514 bytes pass until they are held back, at most `most`; returns how many.
fn pass(gate: &mut Gate, most: u64, now: Instant) -> (u64, bool) {
    pass_frames(gate, 1514, most, now)
}

fn pass_frames(gate: &mut Gate, len: usize, most: u64, now: Instant) -> (u64, bool) {
    let mut allowance = gate.open(now);
    let mut passed = 0;
    while passed < most && allowance.admits() {
        allowance.charge(len);
        passed += 1;
    }
    (passed, gate.close(allowance))
}

#[test]
fn without_limits_everything_passes_and_nothing_is_timed() {
    let mut throttle = Throttle::default();
    assert_eq!(pass(&mut throttle.out, 1_000_000, at(0)), (1_000_000, false));
    assert!((0..1000).all(|_| throttle.admits_group(Cost::new(65_550, 1), at(0))));
    assert!(!throttle.needs_timer());
    assert_eq!(throttle.poll_timeout(), None);
}

#[test]
fn a_gate_wakes_at_millisecond_and_keeps_the_rate() {
    let mut throttle = throttle(Limits { rate_in: rate("100M"), ..Limits::default() });
    let (mut now, mut frames, mut wakes) = (at(0), 0, 0);
    while now < at(2_000_000) {
        frames += pass(&mut throttle.incoming, u64::MAX, now).0;
        assert!(throttle.holds(Direction::In) && !throttle.holds(Direction::Out));
        wakes += 1;
        let next = throttle.poll_timeout().unwrap();
        assert!(!throttle.is_due(Direction::In, now) && throttle.is_due(Direction::In, next));
        now = next;
    }
    let bits = frames * 8 * 1514;
    assert!((200_000_000..=201_512_112 + 8 * 1514).contains(&bits), "{bits}");
    assert!(wakes <= 2000, "{wakes}");
}

#[test]
fn a_look_before_the_time_changes_nothing() {
    let mut throttle = throttle(Limits { rate_out: rate("1M"), ..Limits::default() });
    let gate = &mut throttle.out;
    let (passed, is_news) = pass(gate, u64::MAX, at(0));
    assert!(passed > 0 && is_news);
    let until = gate.until();
    assert_eq!(pass(gate, u64::MAX, at(10)), (0, false));
    assert_eq!(gate.until(), until);
    let mut now = until.unwrap();
    while pass_frames(gate, 65_550, u64::MAX, now).0 == 0 {
        now = gate.until().unwrap();
    }
    let (mut now, mut wakes) = (gate.until().unwrap(), 0);
    while pass(gate, 1, now).0 == 0 {
        (now, wakes) = (gate.until().unwrap(), wakes + 1);
    }
    assert!((50..=64).contains(&wakes), "a large frame is paid back in portions: {wakes}");
    let due = now;
    assert_eq!(pass(gate, 0, due), (0, false));
    assert_eq!(gate.until(), None, "the ring was empty");
}

#[test]
fn pairs_share_the_rate_and_are_served_in_turn() {
    for (text, lens) in [("100M", [1514, 1514, 1514]), ("20M", [60, 1514, 65_550])] {
        let shared = throttle(Limits { rate_out: rate(text), ..Limits::default() });
        let mut pairs = [shared.clone(), shared.clone(), shared];
        let want = 3 * rate(text).unwrap().bits_per_second();
        let mut passed = [0; 3];
        let mut now = at(0);
        // The first in the list is always the quickest of those that are due.
        while now < at(3_000_000) {
            for ((pair, passed), len) in pairs.iter_mut().zip(&mut passed).zip(lens) {
                if pair.out.until().is_none_or(|until| until <= now) {
                    let counts = 8 * len.max(LEAST_FRAME) as u64;
                    *passed += counts * pass_frames(&mut pair.out, len, u64::MAX, now).0;
                }
            }
            now = pairs.iter().filter_map(Throttle::poll_timeout).min().unwrap();
        }
        let total: u64 = passed.iter().sum();
        assert!(total.abs_diff(want) <= want / 50, "{text} {passed:?}");
        assert!(passed.iter().all(|bits| *bits > total / 4), "{text} {passed:?}");
    }
}

#[test]
fn what_was_booked_is_given_back_when_the_rings_stop() {
    let mut throttle = throttle(Limits { rate_out: rate("1M"), ..Limits::default() });
    let mut other = throttle.clone();
    pass(&mut other.out, u64::MAX, at(0));
    pass_frames(&mut throttle.out, 65_550, 1, at(1_000_000));
    let (passed, _) = pass(&mut throttle.out, u64::MAX, at(1_000_000));
    assert_eq!(passed, 0, "owes half a second");
    throttle.reset();
    other.reset();
    let (first, last) = (at(1_500_000), at(1_530_000));
    assert_eq!(pass(&mut other.out, 1, first).0, 0);
    other.reset();
    assert_eq!(pass(&mut other.out, 1, last).0, 1);
}

#[test]
fn group_frames_have_limits_of_their_own() {
    let limits = Limits { group_frames: Some(1000), group_rate: rate("1M"), ..Limits::default() };
    let throttle = throttle(limits);
    let admitted = (0..10_000).filter(|_| throttle.admits_group(Cost::new(60, 1), at(0))).count();
    assert_eq!(admitted, 100, "frames");
    let large =
        (0..10_000).filter(|n| throttle.admits_group(Cost::new(1514, 1), at(n * 100))).count();
    // A second at a million bits, and what was left of a burst of 16 KiB.
    assert!((82..100).contains(&large), "{large}");
    assert!(!throttle.needs_timer());
}

#[test]
fn a_burst_that_cannot_keep_up_the_rate_is_refused_in_words() {
    let size = |text: &str| Some(text.parse().unwrap());
    let limits = Limits { rate_out: rate("1G"), burst: size("64k"), ..Limits::default() };
    let why = "--burst is too small to keep up 1Gbit/s: 250000 bytes is the least";
    assert_eq!(Throttle::new(&limits).unwrap_err(), why);
    let limits = Limits { group_rate: rate("1G"), group_burst: size("1k"), ..Limits::default() };
    assert!(Throttle::new(&limits).unwrap_err().starts_with("--group-burst is too small"));
    assert!(Throttle::new(&Limits { group_rate: None, ..limits }).is_ok());
}

#[test]
fn what_waits_in_sockets_is_a_tenth_of_a_second() {
    let room = |text| {
        let limits = Limits { rate_in: rate(text), ..Limits::default() };
        throttle(limits).waiting_room(2)
    };
    assert_eq!(room("100M"), Some(625_000));
    assert_eq!(room("1M"), Some(256 << 10));
    assert_eq!(Throttle::default().waiting_room(1), None);
    let limited = throttle(Limits { rate_in: rate("100M"), ..Limits::default() });
    assert_eq!(limited.read_ahead(), Some(250_000));
    assert_eq!(Throttle::default().read_ahead(), None);
}

#[test]
fn limits_are_shown_in_words() {
    let limits = Limits { rate_in: rate("10M"), group_frames: Some(5), ..Limits::default() };
    assert_eq!(limits.to_string(), "in 10Mbit/s, to groups 5 frames/s");
    assert_eq!(Limits::default().to_string(), "");
}

#[test]
fn a_frame_costs_what_it_becomes() {
    assert_eq!(Cost::new(60, 1), Cost { frames: 1, len: LEAST_FRAME });
    assert_eq!(Cost::new(200, 1), Cost { frames: 1, len: 200 });
    assert_eq!(Cost::new(60, 0), Cost::new(60, 1), "one that is not cut");
    assert_eq!(Cost::new(65_000, 45), Cost { frames: 45, len: 65_000 });
    assert_eq!(Cost::new(8250, 8192), Cost { frames: 8192, len: 8192 * LEAST_FRAME });
}

/// Sixteen queue pairs may each have sent the most expensive frame that there is.
#[test]
fn what_is_owed_for_tiny_segments_is_paid_back() {
    let burst = Some("1M".parse().unwrap());
    let throttle = throttle(Limits { rate_out: rate("10M"), burst, ..Limits::default() });
    let mut gates: Vec<Gate> = (0..16).map(|_| throttle.out.clone()).collect();
    let mut open: Vec<Allowance> = gates.iter_mut().map(|gate| gate.open(at(0))).collect();
    for allowance in &mut open {
        assert!(allowance.admits());
    }
    for (gate, mut allowance) in gates.iter_mut().zip(open) {
        allowance.charge_cost(|| Cost::new(65_550, 8192));
        assert!(!gate.close(allowance));
    }
    // 16 times 8192 times 1024 bits, without the burst, at ten a microsecond: 12.6 seconds.
    for micros in [1, 1000, 1_000_000, 12_500_000] {
        assert!(!gates[0].clone().open(at(micros)).admits(), "{micros}");
    }
    assert!(gates[0].open(at(12_700_000)).admits());
}

/// The shortest frames, as many as pass in two seconds, from two queue pairs.
fn pass_short(limits: Limits) -> u64 {
    let shared = throttle(limits);
    let mut pairs = [shared.clone(), shared];
    let (mut passed, mut now) = (0, at(0));
    while now < at(2_000_000) {
        for pair in &mut pairs {
            if pair.out.until().is_none_or(|until| until <= now) {
                passed += pass_frames(&mut pair.out, 60, u64::MAX, now).0;
            }
        }
        let next = pairs.iter().filter_map(Throttle::poll_timeout).min().unwrap();
        assert!(next > now, "a limit that holds says until when");
        now = next;
    }
    passed
}

#[test]
fn frames_a_second_are_limited_by_backpressure() {
    let limits = Limits { frames_out: Some(5000), ..Limits::default() };
    let passed = pass_short(limits);
    assert!((10_000..=10_000 + 75 + 2).contains(&passed), "{passed}");
    // Beside a rate the narrower of the two holds.
    let both = pass_short(Limits { rate_out: rate("100M"), ..limits });
    assert!((9_900..=10_077).contains(&both), "{both}");
    let narrow = pass_short(Limits { rate_out: rate("1M"), ..limits });
    assert!((1_900..=2_100).contains(&narrow), "{narrow}");
    assert!(throttle(limits).needs_timer());
    assert_eq!(limits.to_string(), "out 5000 frames/s");
}

#[test]
fn short_frames_cost_what_they_are_on_the_underlay() {
    // 128 bytes each, whatever the guest calls them.
    let passed = pass_short(Limits { rate_out: rate("10M"), ..Limits::default() });
    assert!((19_500..=19_900).contains(&passed), "{passed}");
    let limits = Limits { rate_out: rate("10M"), overhead: 72, ..Limits::default() };
    let passed = pass_short(limits);
    assert!((12_400..=12_800).contains(&passed), "{passed}");
    assert_eq!(limits.to_string(), "out 10Mbit/s, 72 bytes more a frame");
}
