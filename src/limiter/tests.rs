//! Buckets on a simulated clock.

use super::*;

const FRAME_LENS: [u64; 5] = [60, 577, 1514, 9014, 65_550];

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn bucket(text: &str) -> Bucket {
    Bucket::new(Limit::bits(rate(text), None, Duration::from_millis(15), 1518).unwrap())
}

fn at(micros: u64) -> Instant {
    Instant::from_micros(micros)
}

/// Sends frames of a length from `now` on for as long as the bucket lets them, and then waits for a
/// millisecond's worth; bits that passed in each of the seconds.
fn bits_per_second(bucket: &Bucket, len: u64, mut now: Instant, seconds: usize) -> Vec<u64> {
    let portion = bucket.limit().yields(Duration::from_millis(1)).max(8 * 1024);
    let begin = now;
    let mut passed = vec![0; seconds];
    let mut booked = 0;
    loop {
        let second = (now - begin).as_secs() as usize;
        if second >= seconds {
            bucket.settle(booked, 0);
            return passed;
        }
        let leased = booked + bucket.lease(u64::MAX, now);
        let used = leased.next_multiple_of(8 * len);
        bucket.settle(leased, used);
        passed[second] += used;
        booked = portion;
        let ready = bucket.book(portion, now);
        assert!(ready > now, "what there was has been taken");
        now = ready;
    }
}

#[test]
fn each_second_passes_what_the_rate_says() {
    for text in ["1M", "10M", "123456789", "1G", "25G", "100G", "1T"] {
        for len in FRAME_LENS {
            let bucket = bucket(text);
            let (want, frame) = (rate(text).bits_per_second(), 8 * len);
            let passed = bits_per_second(&bucket, len, at(0), 5);
            // A frame may fall into the next second; the first has the burst, too.
            let most = want + bucket.limit().burst() + frame;
            assert!(
                (want - frame.min(want)..=most).contains(&passed[0]),
                "{text} {len} {passed:?}"
            );
            for bits in &passed[1..] {
                assert!(
                    bits.abs_diff(want) <= frame + 8192 + want / 500,
                    "{text} {len} {passed:?}"
                );
                let is_fine = frame > want / 50 || bits.abs_diff(want) <= want / 50;
                assert!(is_fine, "{text} {len} {passed:?}");
            }
        }
    }
}

#[test]
fn a_year_later_nothing_has_drifted() {
    const YEAR: u64 = 365 * 86_400 * MICROS;
    for text in ["1M", "123456789", "1T"] {
        let bucket = bucket(text);
        let want = rate(text).bits_per_second();
        bits_per_second(&bucket, 1514, at(0), 1);
        for years in 1..4 {
            // A burst after long idleness, and no more.
            let passed = bits_per_second(&bucket, 1514, at(years * YEAR + years), 2);
            let more = passed[0].saturating_sub(want);
            assert!(more <= bucket.limit().burst() + 8 * 1514, "{text} {passed:?}");
            assert!(passed[1].abs_diff(want) <= want / 50, "{text} {passed:?}");
        }
    }
}

#[test]
fn odd_intervals_lose_nothing_to_rounding() {
    // 7 bits in a microsecond and a third: each step alone would be rounded.
    let bucket = bucket("5333333");
    bucket.lease(u64::MAX, at(0));
    let mut passed = 0;
    for micros in 1..=1_000_000 {
        passed += bucket.lease(u64::MAX, at(micros));
    }
    assert_eq!(passed, 5_333_333);
}

#[test]
fn the_burst_is_what_was_given_or_fifteen_milliseconds() {
    let time = Duration::from_millis(15);
    let burst = |rate_text, burst: Option<u64>| {
        Limit::bits(rate(rate_text), burst.map(Size::from_bytes), time, 1518).map(Limit::burst)
    };
    assert_eq!(burst("100M", None), Ok(1_500_000));
    assert_eq!(burst("100k", None), Ok(8 * 1518), "but one frame");
    assert_eq!(burst("1G", Some(1 << 20)), Ok(8 << 20));
    assert_eq!(burst("1G", Some(250_000)), Ok(2_000_000));
    assert_eq!(burst("1G", Some(249_999)), Err(Size::from_bytes(250_000)));
    assert_eq!(burst("1k", Some(1)), Ok(8));
    assert_eq!(Limit::frames(10, Duration::from_millis(100), 32).burst(), 32);
    assert_eq!(Limit::frames(10_000, Duration::from_millis(100), 32).burst(), 1000);
}

#[test]
fn a_debt_is_paid_back_before_the_next_frame() {
    let bucket = bucket("8M");
    let leased = bucket.lease(1, at(0));
    assert_eq!(leased, 1);
    // A burst of 15 ms, and a frame of a second.
    bucket.settle(leased, bucket.limit().burst() + 8_000_000);
    assert_eq!(bucket.lease(u64::MAX, at(0)), 0);
    assert_eq!(bucket.lease(u64::MAX, at(1_000_000)), 0);
    assert_eq!(bucket.lease(u64::MAX, at(1_000_001)), 8);
}

#[test]
fn what_was_not_used_is_given_back() {
    let bucket = bucket("8M");
    let full = bucket.lease(u64::MAX, at(0));
    assert_eq!(full, bucket.limit().burst());
    bucket.settle(full, 0);
    assert_eq!(bucket.lease(u64::MAX, at(0)), full);
    bucket.settle(full, full - 5);
    assert_eq!(bucket.lease(u64::MAX, at(0)), 5);
}

#[test]
fn frames_are_admitted_one_by_one() {
    let bucket = Bucket::new(Limit::frames(1000, Duration::from_millis(100), 32));
    assert_eq!((0..1000).filter(|_| bucket.admit(1, at(0))).count(), 100);
    let admitted = (0..1_000_000).filter(|&micros| bucket.admit(1, at(micros))).count();
    assert_eq!(admitted, 999);
}

#[test]
fn a_clock_that_jumps_costs_a_burst_or_a_second() {
    let bucket = bucket("8M");
    let hour = at(3600 * MICROS);
    assert_eq!(bucket.lease(u64::MAX, hour), bucket.limit().burst());
    assert_eq!(bucket.lease(u64::MAX, hour), 0);
    // Back by a little: as if it had stood still meanwhile.
    assert_eq!(bucket.lease(u64::MAX, at(3599 * MICROS + 500_000)), 0);
    // Back by much: never blocked for long.
    let passed = bits_per_second(&bucket, 1514, at(0), 4);
    assert!(passed[2..].iter().all(|bits| bits.abs_diff(8_000_000) <= 8 * 1514), "{passed:?}");
    // Ahead again.
    assert_eq!(bucket.lease(u64::MAX, at(7200 * MICROS)), bucket.limit().burst());
}

#[test]
fn threads_share_one_rate() {
    let bucket = bucket("1G");
    let clock = AtomicU64::new(0);
    let run = || {
        let mut passed = 0;
        loop {
            let micros = clock.fetch_add(1, Ordering::Relaxed);
            if micros >= 1_000_000 {
                return passed;
            }
            let leased = bucket.lease(64 << 13, at(micros));
            let used = leased.next_multiple_of(8 * 1514);
            bucket.settle(leased, used);
            passed += used;
        }
    };
    let passed: u64 = std::thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(run));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    // However long a thread is interrupted between a look at the clock and one at the bucket.
    let most = 1_000_000_000 + bucket.limit().burst() + 4 * 8 * 1514;
    assert!((980_000_000..=most).contains(&passed), "{passed}");
}

#[test]
fn who_books_later_gets_it_later() {
    let bucket = bucket("8M");
    let all = bucket.lease(u64::MAX, at(0));
    assert_eq!(bucket.book(8000, at(0)), at(1000));
    assert_eq!(bucket.book(8000, at(0)), at(2000));
    assert_eq!(bucket.lease(1, at(1999)), 0, "it is another's");
    assert_eq!(bucket.book(8, at(1999)), at(2001));
    assert_eq!(bucket.lease(u64::MAX, at(3001)), 8000);
    bucket.settle(all, 0);
    assert_eq!(bucket.book(8000, at(3001)), at(3001), "there is credit");
}
