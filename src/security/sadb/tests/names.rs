//! Names: of hosts that move, that are in other realms, or call themselves otherwise; and hosts of
//! another version.

use super::*;
use crate::security::handshake::Initiator;
use crate::wire::handshake::payload;

#[test]
fn a_host_at_another_address_agrees_anew_also_when_it_returns() {
    let mut w = world(3);
    w.want(0, 1, 600);
    w.want(1, 0, 600);
    w.run(1);
    assert!(w.is_through(0, 1) && w.is_through(1, 0));
    // What is at place 2 has the address that belongs there.
    for (from, to) in [(0, 2), (2, 0)] {
        let now = w.at(from);
        w.hosts[from].sadb.move_to(name(to), now);
        w.drain(from);
        let host = &w.hosts[from];
        assert!(host.received.is_empty() && host.sends.is_empty(), "all is over at once");
        assert!(host.sadb.numbers.is_empty() && host.sadb.poll_timeout().is_none());
        w.hosts.swap(from, to);
        w.want(to, 1, 600);
        w.want(1, to, 600);
        w.run(5);
        assert!(w.is_through(to, 1) && w.is_through(1, to));
        assert!(w.count(1, SadbCounter::handshake_cookies) == 0, "the other one knows its INITs");
    }
    assert_eq!(w.downs, 2, "only the host that moved");
}

/// A machine of this realm at a host's address, instead of the host's own.
fn put(w: &mut World, host: usize, realm: u32, config: Config) {
    let now = w.at(host);
    let own = Name::host(Realm(realm), ip(host));
    let mut sadb = Sadb::new(config, own, Secret::new([host as u8 + 40; 32]));
    sadb.set_vnet(vnet(), Some(keyring(&[1])), now);
    sadb.start = Some(Instant::ZERO);
    w.hosts[host].sadb = sadb;
}

#[test]
fn hosts_of_one_realm_agree_and_those_of_two_say_that_they_can_not() {
    for (realms, agree) in [([7, 7], true), ([7, 8], false), ([0, 8], false)] {
        let mut w = world(2);
        (0..2).for_each(|host| put(&mut w, host, realms[host], Config::default()));
        w.want(0, 1, 60);
        w.run(5);
        assert_eq!(w.is_through(0, 1), agree, "{realms:?}");
        assert_eq!(w.count(1, SadbCounter::handshake_drop_name) > 0, !agree, "{realms:?}");
    }
}

#[test]
fn keys_of_realms_differ() {
    let keys = [7, 8].map(|realm| {
        let own = Name::vif(Realm(realm), (ip(1), 4000).into());
        receiver_key(&Secret::new([1; 32]), own)
    });
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn an_init_from_another_address_than_its_name_says_is_not_answered() {
    let mut w = world(3);
    w.want(0, 1, 60);
    w.run(1);
    let (.., init) = w.recorded[0].clone();
    w.recorded.clear();
    w.deliver(2, 1, &init);
    w.drain(1);
    assert_eq!(w.count(1, SadbCounter::handshake_drop_name), 1);
    assert!(w.recorded.is_empty() && w.hosts[1].sadb.peers.len() == 1);
}

/// As version 1 had it: all are of lengths that no message has today, or are not.
#[test]
fn a_message_of_another_version_is_counted_and_not_answered() {
    let mut w = world(2);
    for (version, len) in [(1, 84), (1, 124), (3, 52), (0, handshake::MAX_LEN)] {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&[b'V', b'K', version, 1]);
        bytes[7] = 42;
        w.deliver(1, 0, &bytes);
    }
    assert_eq!(w.count(0, SadbCounter::handshake_drop_version), 4);
    assert!(w.recorded.is_empty() && w.hosts[0].sadb.peers.is_empty());
}

#[test]
fn a_host_that_requires_a_credential_agrees_with_nobody_who_has_none() {
    let config = Config { required: Required(Some(9)), ..Config::default() };
    for strict in 0..2 {
        let mut w = world(2);
        put(&mut w, strict, 0, config);
        w.want(0, 1, 60);
        w.run(5);
        assert!(!w.is_through(0, 1) && w.hosts[strict].received.is_empty());
        assert!(w.count(strict, SadbCounter::handshake_drop_credential) > 0, "host {strict}");
    }
}

/// Later versions may show credentials and extensions that this one does not know.
#[test]
fn an_init_with_a_credential_that_nobody_requires_is_answered() {
    let mut w = world(2);
    let credential = payload::Credential::new(9, b"nine").unwrap();
    let additions = payload::Additions { credential, ..payload::Additions::NONE };
    let [initiator, responder] = [0, 1].map(name);
    let parties = Parties { vnet: vnet(), level: Level::Conf, initiator, responder };
    let (keys, entropy) = (keyring(&[1]), Entropy::new(Secret::new([7; 32])));
    let time = w.at(0).wall_ms;
    let init = Initiator::new(parties, &keys.keys[0], 5, time, &additions, &entropy).unwrap();
    w.deliver(0, 1, &init.message());
    w.drain(1);
    assert_eq!(w.recorded.last().map(|(_, _, bytes)| bytes[3]), Some(2), "a RESPONSE");
}
