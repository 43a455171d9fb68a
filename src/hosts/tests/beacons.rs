//! Hosts that hear nothing of each other but beacons.

use super::beacon::MAX_BEACONS;
use super::*;

fn defaults() -> Vec<SocketAddr> {
    ["224.10.0.1:1798", "[ff15::e00a:1]:1798"].map(|to| to.parse().unwrap()).to_vec()
}

/// A host with a vif, at this group.
fn at_group(group: &str) -> Setup {
    let group = Some(group.parse().unwrap());
    Setup { group, beacons: defaults(), ..setup([(42, open(1500))]) }
}

/// The address of a HELLO's sender in the other family.
fn v6() -> SocketAddr {
    SocketAddr::new("fe80::7".parse().unwrap(), PORT)
}

/// Runs a host alone; returns its beacons with their times.
fn beacons(host: &mut Hosts, time: Duration) -> Vec<(u64, SocketAddr, Vec<u8>)> {
    let mut all = Vec::new();
    let end = now(0).mono + time;
    while host.poll_timeout() <= end {
        let ms = (host.poll_timeout() - now(0).mono).as_millis() as u64 + 1;
        host.handle_timeout(now(ms));
        while let Some(output) = host.poll_output() {
            if let Output::Send { to: To::Beacon(to), bytes } = output {
                all.push((ms, to, bytes));
            }
        }
    }
    all
}

fn notes(host: &Hosts, at: Now) -> Vec<String> {
    host.rows(at).iter().map(|row| row.notes.join("; ")).collect()
}

fn warnings(host: &mut Hosts) -> Vec<(Name, String, usize)> {
    let apart = |output| match output {
        Output::Apart { host, what, hosts } => Some((host, what, hosts)),
        _ => None,
    };
    std::iter::from_fn(|| host.poll_output()).filter_map(apart).collect()
}

#[test]
fn beacons_go_to_the_defaults_of_both_families_about_once_a_minute() {
    let mut one = host(1, at_group("224.10.0.1:1798"), now(0));
    let sent = beacons(&mut one, secs(3600));
    for to in defaults() {
        let times: Vec<u64> =
            sent.iter().filter(|(_, group, _)| *group == to).map(|(ms, ..)| *ms).collect();
        assert!((3000..8100).contains(&times[0]), "{times:?}");
        assert!((50..=70).contains(&times.len()), "{to}: {times:?}");
        assert!(times.windows(2).all(|two| (30_000..=90_001).contains(&(two[1] - two[0]))));
    }
    for (_, _, bytes) in &sent {
        let message = Message::parse(bytes).unwrap();
        assert!(message.flags.contains(crate::wire::hello::Flags::BEACON));
    }
    assert_eq!(one.counters.get(HostsCounter::hello_tx_beacons), sent.len() as u64);
    let mut silent = host(1, Setup { beacons: Vec::new(), ..at_group("224.10.0.1:1798") }, now(0));
    assert!(beacons(&mut silent, secs(600)).is_empty());
}

#[test]
fn a_host_with_another_group_or_port_is_shown_until_it_is_heard_otherwise() {
    for group in ["224.10.0.2:1798", "224.10.0.1:1799"] {
        let mut one = host(1, at_group("224.10.0.1:1798"), now(0));
        let mut two = host(2, at_group(group), now(0));
        let (ms, _, bytes) = beacons(&mut two, secs(10)).remove(0);
        let mut from = addr(2);
        from.set_port(group.parse::<SocketAddr>().unwrap().port());
        one.handle_message(from, true, &bytes, now(ms));
        let rows = one.rows(now(ms));
        assert_eq!((rows.len(), rows[0].host, rows[0].vifs), (1, name(2), 1));
        assert_eq!((rows[0].by_group, rows[0].by_unicast, rows[0].vnet), (None, None, None));
        let what = format!("VARP group {group}, here 224.10.0.1:1798");
        assert_eq!(notes(&one, now(ms)), [format!("heard only by its beacon; {what}")]);
        assert_eq!(warnings(&mut one), [(name(2), what, 1)]);
        assert_eq!(one.known(), 0);
        // Three intervals later it is gone.
        assert_eq!(notes(&one, now(ms + 179_000)).len(), 1);
        assert!(notes(&one, now(ms + 181_000)).is_empty());
        // Now it is set right.
        let mut two = host(2, at_group("224.10.0.1:1798"), now(ms));
        let bytes = two.own.hello(Addressing::default(), secs(120), now(ms));
        one.handle_message(addr(2), true, &bytes, now(ms));
        one.handle_message(addr(2), true, &beacons(&mut two, secs(30))[0].2, now(ms));
        let notes = notes(&one, now(ms + 1));
        assert!(notes.len() == 1 && !notes[0].contains("beacon"), "{notes:?}");
    }
}

#[test]
fn a_host_of_the_other_family_is_shown() {
    let mut one = host(1, at_group("224.10.0.1:1798"), now(0));
    let name = Name::host(Realm(0), "2001:db8::2".parse().unwrap());
    let mut two = Hosts::new(name, PORT, [3; 32], now(0));
    two.set_up(at_group("[ff15::e00a:1]:1798"), now(0));
    let (ms, _, bytes) = beacons(&mut two, secs(10)).remove(0);
    for from in [addr(77), v6()] {
        // In the family of its name it has to have that address; in the other it may have any.
        one.handle_message(from, true, &bytes, now(ms));
    }
    assert_eq!(one.counters.get(HostsCounter::hello_drop_source), 1, "another IPv6 address");
    assert_eq!(notes(&one, now(ms)), ["heard only by its beacon; IPv6 underlay, here IPv4"]);
}

/// A first beacon may arrive before a first HELLO; a second means that HELLOs do not arrive.
#[test]
fn a_host_whose_multicasts_do_not_arrive_is_warned_of_at_its_second_beacon() {
    let mut one = host(1, at_group("224.10.0.1:1798"), now(0));
    let mut two = host(2, at_group("224.10.0.1:1798"), now(0));
    let sent = beacons(&mut two, secs(200));
    let of_v6 = sent.iter().filter(|(_, to, _)| to.is_ipv6());
    let mut times = Vec::new();
    for (ms, _, bytes) in of_v6 {
        one.handle_message(v6(), true, bytes, now(*ms));
        times.push(warnings(&mut one).len());
    }
    assert_eq!(times[..2], [0, 1]);
    let notes = notes(&one, now(sent[0].0));
    let want = "heard only by its beacon; multicasts to its VARP group do not arrive here";
    assert_eq!(notes, [want]);
}

#[test]
fn many_beacons_take_bounded_memory_and_cause_one_warning_an_hour() {
    let mut one = host(1, at_group("224.10.0.1:1798"), now(0));
    let mut warned = Vec::new();
    for hour in 0..2_u64 {
        for n in 2..1002 {
            let at = now(hour * 3_600_000 + u64::from(n));
            let mut liar = host(n, at_group("224.10.0.9:1798"), at);
            let flags = crate::wire::hello::Flags::BEACON;
            let bytes =
                liar.own.hello(Addressing { flags, ..Addressing::default() }, secs(999_999), at);
            one.handle_message(addr(n), true, &bytes, at);
        }
        warned.push(warnings(&mut one).len());
        let rows = one.rows(now(hour * 3_600_000 + 2000)).len();
        assert_eq!((rows, one.table.len(), one.known()), (MAX_BEACONS, 0, 0));
    }
    assert_eq!(warned, [1, 1]);
    let full = one.counters.get(HostsCounter::hello_drop_full);
    assert_eq!(full, 2 * (1000 - MAX_BEACONS as u64), "hour-old ones make room");
    assert_eq!(one.longest(vnet(42)), Longest::UNKNOWN);
}

#[test]
fn every_beacon_that_is_not_believed_has_a_name() {
    use HostsCounter as C;
    let mut one = host(1, at_group("224.10.0.1:1798"), now(0));
    let mut two = host(2, at_group("224.10.0.2:1798"), now(0));
    let (ms, _, bytes) = beacons(&mut two, secs(10)).remove(0);
    let own = beacons(&mut host(1, at_group("224.10.0.1:1798"), now(0)), secs(10)).remove(0).2;
    let mut relays = Message::parse(&bytes).unwrap();
    if let Body::Hello(hello) = &mut relays.body {
        hello.abilities = crate::wire::hello::Abilities::RELAY;
    }
    let mut port = addr(2);
    port.set_port(1799);
    for (counter, from, is_group, bytes) in [
        (C::hello_drop_port, port, true, bytes.clone()),
        (C::hello_drop_source, addr(3), true, bytes.clone()),
        (C::hello_drop_cast, addr(2), false, bytes.clone()),
        (C::hello_drop_own, v6(), true, own),
        (C::hello_drop_relay, addr(2), true, relays.to_bytes()),
    ] {
        one.handle_message(from, is_group, &bytes, now(ms));
        assert_eq!(one.counters.get(counter), 1, "{counter:?}");
        assert!(one.rows(now(ms)).is_empty(), "{counter:?}");
    }
    assert_eq!(one.counters.get(C::hello_rx_beacons), 4, "those to the group");
}
