//! What anybody can make a host keep.

use super::table::{MAX_ENTRIES, MAX_ENTRIES_PER_HOST, MAX_HOSTS};
use super::*;

fn many(count: u32, first: u32) -> Setup {
    setup((first..first + count).map(|id| (id, open(1500))))
}

/// All messages of a host that has just started.
fn messages(host: &mut Hosts, at: Now) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut at = at;
    for _ in 0..400 {
        host.handle_timeout(at);
        while let Some(output) = host.poll_output() {
            if let Output::Send { bytes, .. } = output {
                all.push(bytes);
            }
        }
        at.mono += Duration::from_millis(100);
    }
    all
}

#[test]
fn hosts_and_entries_are_bounded_and_members_find_room() {
    let at = now(0);
    let mut one = host(1, setup([(42, secured(9000, 1))]), at);
    // Each of 6,000 hosts has 40 vnets.
    for n in 2..6002 {
        for bytes in messages(&mut host(n, many(40, 100), at), at).iter().take(4) {
            one.handle_message(addr(n), true, bytes, at);
        }
    }
    assert_eq!(one.table.len(), MAX_HOSTS);
    assert!(one.table.entries() <= MAX_ENTRIES);
    assert!(one.counters.get(HostsCounter::hello_drop_full) > 1000);
    for bytes in messages(&mut host(7000, setup([(42, secured(1500, 1))]), at), at) {
        one.handle_message(addr(7000), true, &bytes, at);
    }
    assert_eq!(one.table.len(), MAX_HOSTS);
    assert_eq!(one.longest(vnet(42)).number(), 1500, "a member takes the place of another");
    // All leave.
    let later = Now { mono: at.mono + secs(1900), ..at };
    one.handle_timeout(later);
    assert_eq!((one.table.len(), one.table.entries()), (0, 0));
}

#[test]
fn a_host_with_more_vnets_than_there_is_room_for_is_not_asked_without_end() {
    let at = now(0);
    let count = u32::try_from(MAX_ENTRIES_PER_HOST).unwrap() + 100;
    let mut segment = Segment::new(vec![setup([(42, open(9000))]), many(count, 10)]);
    segment.pass(secs(600));
    let one = segment.at(1);
    assert_eq!(one.table.entries(), MAX_ENTRIES_PER_HOST);
    let notes = one.rows(at)[0].notes.join("; ");
    assert!(notes.contains("more vnets than this host can hold"), "{notes}");
    let asked = segment.count(1, HostsCounter::hello_tx_questions);
    assert!(asked < 20, "{asked}");
}
