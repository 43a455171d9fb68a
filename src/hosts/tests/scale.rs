//! A large segment.

use super::*;

/// A thousand hosts with two vifs each: what a host hears of hello, and what announcements add, once every five
/// minutes and vif at the least. All start at once. Only some of them listen to the group; the others take it that they are
/// a thousand, which saves time and changes nothing in what those hear.
#[test]
fn a_thousand_hosts_cost_each_host_less_than_thirty_messages_a_second() {
    const HOSTS: u32 = 1000;
    const LISTENERS: u32 = 20;
    const SECONDS: u64 = 60;
    let vnets = |n: u32| setup([(100 + n % 50, open(1500)), (8, secured(1500, 1))]);
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
    let received = |segment: &Segment| {
        listeners.clone().map(|n| segment.count(n, HostsCounter::hello_rx)).collect::<Vec<_>>()
    };
    let before = received(&segment);
    segment.pass(secs(SECONDS));
    let after = received(&segment);
    let most = before.iter().zip(&after).map(|(before, after)| after - before).max().unwrap();
    let announced = u64::from(HOSTS) * 2 * SECONDS / 300;
    let all = most + announced;
    assert!(all < 30 * SECONDS, "{most} messages of hello and {announced} announcements");
    assert!(most > 10 * SECONDS, "{most}: hosts are heard");
}
