//! Sessions: how long they serve, what replaces them, whom they have keys for.

use super::*;

#[test]
fn keys_are_told_when_they_end_by_themselves() {
    let hour = SECOND * 3600;
    for (rekey, end) in [(1, 24), (12, 24), (13, 26), (720, 1440)] {
        let config = Config { rekey: hour * rekey, ..Config::default() };
        assert_eq!(config.end(), hour * end);
        let mut world = World::new(2, 1, config);
        world.want(0, 1, 60);
        world.run(2);
        let to = SocketAddr::new(ip(1), 4000);
        let now = world.at(0);
        let lifetime = world.hosts[0].sadb.outbound(vnet(), to, 1, now).unwrap().lifetime;
        let [usual, hard] = [(lifetime.usual, 2 * rekey), (lifetime.hard, end)]
            .map(|(got, want)| hour * want - got);
        assert_eq!(usual, hard, "both count from when the session was made");
        assert!(usual <= SECOND * 2, "{usual:?}");
    }
}

#[test]
fn a_session_is_replaced_without_a_gap() {
    for seed in 0..20 {
        let mut w = World::new(2, seed, Config { rekey: SECOND * 10, ..Config::default() });
        if seed % 2 == 1 {
            w.faults = Faults { lost: 10, twice: 10 };
        }
        w.want(0, 1, 700);
        w.run(600);
        assert!(w.is_through(0, 1), "seed {seed}");
        let made = w.count(0, SadbCounter::sa_sessions);
        assert!((50..=80).contains(&made), "seed {seed}: {made}");
        assert_eq!(w.black, 0, "seed {seed}");
        assert!(w.hosts[1].received.len() <= 6, "old ones end");
    }
}

#[test]
fn only_what_is_wanted_is_replaced() {
    let mut w = World::new(2, 3, Config { rekey: SECOND * 10, ..Config::default() });
    w.want(0, 1, 15);
    w.run(100);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), 2);
    assert!(w.hosts[0].sends.is_empty() && w.hosts[1].received.is_empty());
    assert!(w.hosts.iter().all(|host| host.sadb.numbers.is_empty()));
}

#[test]
fn rows_tell_how_far_links_are() {
    let mut w = world(2);
    let row = |w: &World, host: usize| {
        let rows = w.hosts[host].sadb.rows(w.at(host));
        assert!(rows.len() <= 1);
        rows.first().copied()
    };
    assert_eq!(row(&w, 0), None);
    w.faults.lost = 100;
    w.want(0, 1, 20_000);
    let asking = row(&w, 0).unwrap();
    assert_eq!((asking.vnet, asking.peer, asking.level), (vnet(), ip(1), Level::Conf));
    assert_eq!((asking.state, asking.serving, asking.sessions), (State::Asking, None, 0));
    while w.hosts[0].gave_up == 0 {
        w.run(1);
    }
    let failed = row(&w, 0).unwrap();
    assert_eq!((failed.state, failed.tally.failed, failed.tally.made), (State::Failed, 1, 0));

    w.faults.lost = 0;
    w.run(15);
    for host in [0, 1] {
        let open = row(&w, host).unwrap();
        let serving = open.serving.unwrap();
        assert_eq!((open.state, open.sessions, open.tally.made), (State::Open, 1, 1));
        assert!(serving.has_used_key && serving.suite.level() == Level::Conf);
        assert!(serving.age < 15 * SECOND && serving.rekey_in > 3000 * SECOND);
        assert!(serving.ends_in > serving.rekey_in);
        assert_eq!(serving.senders_left, INDICES - 2);
    }
    let init = w.recorded.iter().find(|(from, ..)| *from == 0).unwrap().2.clone();
    w.deliver(0, 1, &init);
    assert_eq!(row(&w, 1).unwrap().tally.dropped, 1, "it was heard before");

    let now = w.at(0);
    w.hosts[0].sadb.set_vnet(vnet(), Some(keyring(&[2, 1])), now);
    assert!(!row(&w, 0).unwrap().serving.unwrap().has_used_key);
    w.hosts[0].sadb.set_vnet(vnet(), Some(keyring(&[2])), now);
    let closed = row(&w, 0).unwrap();
    assert_eq!((closed.serving, closed.sessions), (None, 0));
}

#[test]
fn many_receivers_of_one_host_do_not_wear_a_session_out() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(1);
    let made = w.count(0, SadbCounter::sa_sessions);
    let mut keys = BTreeSet::new();
    for port in 1..=10_000 {
        let now = w.at(0);
        let to = SocketAddr::new(ip(1), port);
        let outbound = w.hosts[0].sadb.outbound(vnet(), to, 1, now).unwrap();
        keys.extend(outbound.keys.iter().map(|(_, key)| key.key.bytes().to_vec()));
    }
    assert_eq!(keys.len(), 10_000, "no key twice");
    w.drain(0);
    w.run(5);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), made);
}

#[test]
fn a_rotation_of_the_vnet_key_loses_nothing_and_shuts_out_the_rest() {
    let mut w = world(3);
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
        w.want(from, to, 10_000);
    }
    w.run(1);
    let steps: [&[u8]; 3] = [&[1, 2], &[2, 1], &[2]];
    for step in steps {
        // Host 2 does not get the new file.
        for n in [0, 1] {
            let now = w.at(n);
            w.hosts[n].sadb.set_vnet(vnet(), Some(keyring(step)), now);
            w.drain(n);
            if step.len() > 1 {
                w.run(2);
            }
        }
        w.run(40);
        if step.len() > 1 {
            assert_eq!(w.black, 0, "{step:?}");
        }
        assert!(w.is_through(0, 1) && w.is_through(1, 0), "{step:?}");
    }
    assert!(!w.is_through(2, 0) && !w.is_through(0, 2));
    assert!(!w.hosts[0].sends.contains_key(&ip(2)));
}

/// Each side has a session of its own making, and they hear of them in another order.
#[test]
fn two_sessions_at_once_are_in_one_order() {
    let mut w = world(2);
    w.want(0, 1, 60);
    let (.., init) = w.wire.pop_front().unwrap();
    w.faults.lost = 100;
    w.deliver(0, 1, &init);
    let (.., late) = w.recorded.last().unwrap().clone();
    assert_eq!(late[3], 2);
    // That RESPONSE is on its way for so long that host 1 begins as well.
    w.want(1, 0, 60);
    while !w.hosts[1].sadb.peers[&(vnet(), ip(0))].is_asking() {
        w.run_for(Duration::from_millis(10));
    }
    let of = |w: &World, host: usize, kind: u8| {
        let found = w.recorded.iter().rfind(|(from, _, bytes)| (*from, bytes[3]) == (host, kind));
        found.unwrap().2.clone()
    };
    w.deliver(1, 0, &late);
    w.run_for(Duration::from_millis(1));
    w.deliver(1, 0, &of(&w, 1, 1));
    w.run_for(Duration::from_millis(1));
    let (confirm, response) = (of(&w, 0, 3), of(&w, 0, 2));
    w.deliver(0, 1, &response);
    w.deliver(0, 1, &confirm);
    w.faults.lost = 0;
    w.run(100);
    assert!(w.is_through(0, 1) && w.is_through(1, 0));
    assert_eq!((w.black, w.downs), (0, 0));
    assert_eq!((w.hosts[0].received.len(), w.hosts[1].received.len()), (1, 1));
}

#[test]
fn a_session_gives_out_its_senders_and_then_makes_room() {
    let mut w = world(2);
    w.want(0, 1, 600);
    w.run(1);
    let to = SocketAddr::new(ip(1), 4000);
    let mut given = 2;
    loop {
        let now = w.at(0);
        let Some(keys) = w.hosts[0].sadb.outbound(vnet(), to, 16, now) else { break };
        given += keys.keys.len();
    }
    assert!(given > INDICES as usize - 16);
    // Others there have not had any yet, and do not wear the session out.
    let other = SocketAddr::new(ip(1), 4001);
    let now = w.at(0);
    assert!(w.hosts[0].sadb.outbound(vnet(), other, 16, now).is_some());
    w.drain(0);
    w.run(2);
    assert_eq!(w.count(0, SadbCounter::sa_sessions), 2, "another session");
    let now = w.at(0);
    assert!(w.hosts[0].sadb.outbound(vnet(), to, 16, now).is_some());
}
