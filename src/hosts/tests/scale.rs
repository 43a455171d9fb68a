//! A large segment.

use super::*;

/// A thousand hosts with three vifs each: the messages of hello that a host hears, and announcements, one for each vif
/// every five minutes at least. All start at once. Only some of them hear all; the others hear those, and assume that they are
/// a thousand, which saves time and makes no difference to those that are counted.
#[test]
fn a_thousand_hosts_cost_each_host_less_than_thirty_messages_a_second() {
    const HOSTS: u32 = 1000;
    const VIFS: u64 = 3;
    const LISTENERS: u32 = 20;
    /// From one minute after the start to the next HELLO of each host, and on.
    const WINDOWS: usize = 12;
    const SECONDS: u64 = 10;
    let vnets = |n: u32| {
        let vnets = [(100 + n % 50, open(1500)), (200 + n % 30, open(1500)), (8, secured(1500, 1))];
        // All hear the beacons of all, to both groups.
        let beacons = ["224.10.0.1:1798", "[ff15::e00a:1]:1798"].map(|to| to.parse().unwrap());
        Setup { beacons: beacons.to_vec(), ..setup(vnets) }
    };
    let mut segment = Segment::new((1..=HOSTS).map(vnets).collect());
    (segment.deaf, segment.grain) = (Some(LISTENERS + 1), 50);
    (1..=HOSTS).for_each(|n| segment.at(n).assumed = HOSTS);
    segment.pass(secs(20));
    let listeners = 1..=LISTENERS;
    for n in listeners.clone() {
        let rows = segment.at(n).rows(now(20_000));
        let notes: usize = rows.iter().map(|row| row.notes.len()).sum();
        assert_eq!((segment.at(n).table.len() as u32, notes), (HOSTS - 1, 0));
    }
    segment.pass(secs(20));
    let received = |segment: &Segment| {
        listeners.clone().map(|n| segment.count(n, HostsCounter::hello_rx)).collect::<Vec<_>>()
    };
    let mut most = Vec::new();
    for _ in 0..WINDOWS {
        let before = received(&segment);
        segment.pass(secs(SECONDS));
        let after = received(&segment);
        most.push(before.iter().zip(&after).map(|(before, after)| after - before).max().unwrap());
    }
    let announced = u64::from(HOSTS) * VIFS * SECONDS / 300;
    let all = most.iter().max().unwrap() + announced;
    assert!(all < 30 * SECONDS, "{most:?} messages of hello and {announced} announcements");
    let heard = most.iter().sum::<u64>();
    assert!(heard > 8 * SECONDS * WINDOWS as u64, "{most:?}: hosts are heard");
}
