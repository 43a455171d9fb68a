//! The host itself has another address.

use super::*;

#[test]
fn all_claims_are_made_anew_at_the_new_address_and_users_follow() {
    let mut bench = Bench::hosting();
    bench.activate(OTHER, key(7, 3));
    bench.add(LocalVif(3), key(7, 4));
    bench.settle();
    bench.resolve(OTHER, 1);
    let before = bench.mapper.claim(VIF).unwrap();
    bench.outputs();
    bench.mapper.move_to(varp_of(9));
    bench.mapper.move_vif(VIF, coa(9, 7000), bench.now);
    let after = bench.mapper.claim(VIF).unwrap();
    assert_eq!(after.coa, coa(9, 7000));
    assert!(after.stamp > before.stamp, "whoever knows the other follows");
    let outputs = bench.outputs();
    let told = |vif, notice| outputs.contains(&Output::Notify { vif, notice });
    assert!(told(VIF, Notice::Claimed { stamp: after.stamp }));
    assert!(told(OTHER, mapping_of(1, after, 30_000)), "a vif of this host uses it");
    let announces = |output: &&Output| match output {
        Output::Send { to: Destination::Group, message } => message.body == announce(after),
        _ => false,
    };
    assert_eq!(outputs.iter().filter(announces).count(), 1);
    bench.pass_ms(900);
    assert_eq!(bench.sent().len(), 6, "the announcement is repeated");
    // One whose rings don't run claims nothing.
    bench.mapper.move_vif(LocalVif(3), coa(9, 7001), bench.now);
    assert_eq!(bench.outputs(), []);
    // A copy of the claim at the old address is no news.
    bench.hear_announce(key(7, 1), before);
    assert_eq!(bench.mapper.claim(VIF), Some(after));
}

#[test]
fn questions_name_the_new_address() {
    let mut bench = Bench::hosting();
    bench.resolve(VIF, 2);
    bench.outputs();
    bench.mapper.move_to(varp_of(9));
    bench.mapper.move_vif(VIF, coa(9, 7000), bench.now);
    bench.outputs();
    bench.pass_ms(60);
    let body = Body::Request { asker: coa(9, 7000), refresh: false };
    let asks =
        |(_, message): &(Destination, Message)| message.body == body && message.author == author(9);
    assert!(bench.sent().iter().any(asks), "also one that was under way");
    // What came from the host itself does, under its new address.
    bench.hear(9, true, by(9, message(key(7, 1), 5, request(9, false))));
    assert_eq!(bench.count(MapperCounter::rx_drop_own), 1);
}

#[test]
fn each_host_that_is_talked_to_is_greeted_once() {
    let mut bench = Bench::hosting();
    bench.learn(VIF, 2, claim(2, 0));
    bench.learn(VIF, 3, claim(2, 0));
    bench.learn(VIF, 4, claim(3, 0));
    bench.mapper.greet(bench.now);
    let mut to: Vec<Destination> = bench.sent().into_iter().map(|(to, _)| to).collect();
    to.sort_by_key(|to| format!("{to:?}"));
    let hosts = [2, 3].map(|host| Destination::Unicast(varp_of(host)));
    assert_eq!(to, hosts);
}
