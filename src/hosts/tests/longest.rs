//! How long group frames may be.

use super::*;

fn longest_of(segment: &mut Segment, n: u32, of: u32) -> u16 {
    segment.at(n).longest(vnet(of)).number()
}

#[test]
fn group_frames_are_as_long_as_the_narrowest_host_of_the_vnet_takes() {
    let mut segment = Segment::new(vec![
        setup([(42, open(9000)), (43, open(9000))]),
        setup([(42, open(1500))]),
        setup([(42, open(9000)), (43, open(4000))]),
        setup([(7, open(1300))]),
    ]);
    segment.pass(secs(2));
    assert_eq!(longest_of(&mut segment, 1, 42), 1500);
    assert_eq!(longest_of(&mut segment, 1, 43), 4000);
    assert_eq!(longest_of(&mut segment, 4, 7), 0, "nobody else is there");
    let told: Vec<&Output> =
        segment.outputs.iter().filter(|(n, _)| *n == 1).map(|(_, output)| output).collect();
    let last = |of| {
        told.iter().rev().find_map(|output| match output {
            Output::Longest { vnet, longest } if *vnet == of => Some(longest.number()),
            _ => None,
        })
    };
    assert_eq!((last(vnet(42)), last(vnet(43))), (Some(1500), Some(4000)));
    // The narrow host leaves the vnet.
    segment.set_up(2, setup([(5, open(1500))]));
    segment.pass(secs(4));
    assert_eq!(longest_of(&mut segment, 1, 42), 0, "the others take as much as this host");
    segment.hosts[2] = None;
    segment.pass(secs(100));
    assert_eq!(longest_of(&mut segment, 1, 43), 4000);
    segment.pass(secs(30));
    assert_eq!(longest_of(&mut segment, 1, 43), 0, "its lifetime has ended");
}

#[test]
fn nobody_makes_group_frames_shorter_than_1280() {
    let mut segment = Segment::new(vec![setup([(42, open(9000))]), setup([(42, open(600))])]);
    segment.pass(secs(2));
    assert_eq!(longest_of(&mut segment, 1, 42), 1280);
}

#[test]
fn on_a_secured_vnet_only_members_make_group_frames_shorter() {
    let mut segment = Segment::new(vec![
        setup([(42, secured(9000, 1))]),
        setup([(42, secured(1500, 2))]),
        setup([(42, open(1400))]),
    ]);
    segment.pass(secs(2));
    assert_eq!(longest_of(&mut segment, 1, 42), 0);
    let notes = |segment: &Segment, of| segment.rows(1, of)[0].notes.join("; ");
    assert_eq!(notes(&segment, 2), "not proved (another key)");
    assert_eq!(notes(&segment, 3), "not proved (policy none, here conf)");
    segment.set_up(2, setup([(42, secured(1500, 1))]));
    segment.pass(secs(3));
    assert_eq!(longest_of(&mut segment, 1, 42), 1500);
    assert_eq!(notes(&segment, 2), "");
}

/// A host whose vnet gets a key later, or another one, looks again at what it has heard.
#[test]
fn a_member_is_believed_also_if_the_key_came_after_its_list() {
    let mut segment = Segment::new(vec![setup([]), setup([(42, secured(1500, 1))])]);
    segment.pass(secs(50));
    segment.set_up(1, setup([(42, secured(9000, 1))]));
    assert_eq!(longest_of(&mut segment, 1, 42), 1500);
    segment.set_up(1, setup([(42, secured(9000, 2))]));
    assert_eq!(longest_of(&mut segment, 1, 42), 0);
    let both = Vnet { keys: vec![key(2), key(1)], ..secured(9000, 2) };
    segment.set_up(1, setup([(42, both)]));
    assert_eq!(longest_of(&mut segment, 1, 42), 1500, "while the key is changed");
}

/// Farewells, HELLOs with other lists, LISTs without the vnet, or with a longer length, under the member's name and
/// from its address.
#[test]
fn forged_messages_do_not_end_what_a_member_has_proved() {
    let mut segment =
        Segment::new(vec![setup([(42, secured(9000, 1))]), setup([(42, secured(1500, 1))])]);
    segment.pass(secs(50));
    assert_eq!(longest_of(&mut segment, 1, 42), 1500);
    for step in 0..100_u64 {
        let at = segment.now(1);
        for (n, lie) in [
            setup([(7, open(9000))]),
            setup([(42, open(9000))]),
            setup([(42, secured(9000, 9))]),
            setup([]),
        ]
        .into_iter()
        .enumerate()
        {
            let mut liar = host(2, lie, Now { wall_ms: at.wall_ms + 5 + n as u64, ..at });
            let list = liar.own.list(own::ALL, at).0;
            let hello = liar.own.hello(Addressing::default(), secs(120), at);
            let farewell = liar.own.hello(Addressing::default(), Duration::ZERO, at);
            for bytes in [list, hello, farewell] {
                segment.at(1).handle_message(addr(2), true, &bytes, at);
            }
        }
        segment.pass(secs(3));
        assert_eq!(longest_of(&mut segment, 1, 42), 1500, "after {step} steps");
    }
}

/// A recorded LIST is no news, also after its host has changed.
#[test]
fn a_recorded_entry_does_not_come_back() {
    let mut segment =
        Segment::new(vec![setup([(42, secured(9000, 1))]), setup([(42, secured(1500, 1))])]);
    let at = segment.now(2);
    let (recorded, _) = segment.at(2).own.list(own::ALL, at);
    segment.pass(secs(10));
    segment.set_up(2, setup([(42, secured(9000, 1))]));
    segment.pass(secs(5));
    assert_eq!(longest_of(&mut segment, 1, 42), 0);
    let at = segment.now(1);
    segment.at(1).handle_message(addr(2), true, &recorded, at);
    assert_eq!(longest_of(&mut segment, 1, 42), 0);
    let mut altered = recorded.clone();
    let last = altered.len() - 20;
    altered[last] ^= 1;
    altered[15] ^= 0x40;
    segment.at(1).handle_message(addr(2), true, &altered, at);
    assert_eq!(segment.count(1, HostsCounter::hello_drop_forged), 1);
    assert_eq!(longest_of(&mut segment, 1, 42), 0);
}
