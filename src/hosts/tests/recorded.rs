//! Messages that somebody has recorded, and messages that a host sends after a forger has used up
//! its times.

use super::*;
use crate::wire::hello::Flags;

/// Hosts of a secured vnet, the second narrow. Returns messages of the second that the first has
/// heard, and that it has not.
fn recorded() -> (Segment, Vec<(bool, Vec<u8>)>) {
    let mut segment =
        Segment::new(vec![setup([(42, secured(9000, 1))]), setup([(42, secured(1500, 1))])]);
    let mut recorded = Vec::new();
    for n in 0..60 {
        let at = segment.now(2);
        let two = segment.at(2);
        let to_one = Addressing { flags: Flags::NONE, nonce: 5, answer: 0 };
        let new = [
            (true, two.own.hello(Addressing::default(), secs(120), at)),
            (false, two.own.hello(to_one, secs(120), at)),
            (true, two.own.list(own::ALL, at).0),
        ];
        for (is_group, bytes) in &new {
            if n % 3 == 0 {
                segment.deliver(2, 1, *is_group, bytes);
            }
        }
        recorded.extend(new);
        segment.pass(secs(2));
    }
    assert_eq!(segment.at(1).longest(vnet(42)).number(), 1500);
    (segment, recorded)
}

#[test]
fn recorded_messages_neither_keep_a_member_that_is_gone_nor_bring_it_back() {
    let (mut segment, recorded) = recorded();
    segment.hosts[1] = None;
    let mut last = 0;
    for second in 1..600 {
        for (is_group, bytes) in &recorded {
            segment.deliver(2, 1, *is_group, bytes);
        }
        segment.pass(secs(1));
        if !segment.rows(1, 2).is_empty() && segment.at(1).longest(vnet(42)).number() == 1500 {
            last = second;
        }
    }
    assert!((100..=125).contains(&last), "the end of its lifetime, not {last} s");
    assert!(segment.count(1, HostsCounter::hello_tx_questions) < 100);
}

/// A host that is not a member can be made up, so that a recorded message of one is nothing worse;
/// see `crate::hosts`.
#[test]
fn a_recorded_list_proves_nothing_to_a_host_that_has_just_started() {
    let (mut segment, recorded) = recorded();
    segment.hosts[1] = None;
    segment.pass(secs(200));
    segment.restart(1, setup([(42, secured(9000, 1))]));
    for (is_group, bytes) in &recorded {
        segment.deliver(2, 1, *is_group, bytes);
        assert_eq!(segment.at(1).longest(vnet(42)).number(), 0);
    }
}

#[test]
fn a_member_whose_times_a_forger_has_used_up_stays_as_it_answers() {
    let (mut segment, _) = recorded();
    let at = segment.now(1);
    let mut liar =
        host(2, setup([(42, open(9000))]), Now { wall_ms: at.wall_ms + 3_600_000, ..at });
    for _ in 0..100 {
        let hello = liar.own.hello(Addressing::default(), secs(120), at);
        segment.deliver(2, 1, true, &hello);
    }
    for _ in 0..60 {
        segment.pass(secs(10));
        assert_eq!(segment.at(1).longest(vnet(42)).number(), 1500);
    }
    assert_eq!(segment.count(1, HostsCounter::hello_left), 0);
    segment.hosts[1] = None;
    segment.pass(secs(250));
    assert_eq!(segment.at(1).table.len(), 0);
}

/// Its answer shows that its messages are not recorded ones.
#[test]
fn a_member_whose_clock_is_off_is_believed_once_it_answers() {
    let members = [9000, 1500].map(|longest| setup([(42, secured(longest, 1))]));
    let mut segment = Segment::new(members.into());
    segment.ahead[1] = 7_200_000;
    segment.pass(secs(20));
    assert_eq!(segment.at(1).longest(vnet(42)).number(), 1500);
    assert!(segment.rows(2, 1)[0].notes.iter().all(|note| !note.contains("not proved")));
}
