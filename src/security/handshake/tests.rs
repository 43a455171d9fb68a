//! Two sides that talk to each other, and who is turned away.

use super::*;

fn keys(byte: u8, level: Level) -> MemberKeys {
    MemberKeys::new(&Secret::new([byte; 32]), vnet(), level, Suite::AesGcm)
}

fn vnet() -> VnetId {
    VnetId::new(42).unwrap()
}

fn ip(host: u8) -> IpAddr {
    [192, 0, 2, host].into()
}

fn parties() -> Parties {
    Parties { vnet: vnet(), level: Level::Conf, initiator: ip(1), responder: ip(2) }
}

fn entropy(seed: u8) -> Entropy {
    Entropy::new(Secret::new([seed; 32]))
}

fn begin(keys: &MemberKeys) -> Initiator {
    Initiator::new(parties(), keys, 7, 1000, &entropy(1)).unwrap()
}

fn open(parties: Parties, keys: &MemberKeys, init: &[u8]) -> Result<Opened, Forged> {
    Opened::new(parties, keys, &Message::parse(init).unwrap(), &entropy(2))
}

#[test]
fn both_sides_agree() {
    let keys = keys(1, Level::Conf);
    let mut initiator = begin(&keys);
    let init = initiator.message();
    assert!(is_of_member(&Message::parse(&init).unwrap(), &keys));
    let opened = open(parties(), &keys, &init).unwrap();
    assert_eq!((opened.time_ms, opened.peer_number), (1000, 7));
    let (theirs, response) = opened.respond(&keys, 9).unwrap();
    let ours = initiator.handle_response(&Message::parse(&response).unwrap()).unwrap();
    assert_eq!((&ours.send, &ours.receive), (&theirs.receive, &theirs.send));
    assert_ne!(ours.send, ours.receive);
    assert_eq!((ours.peer_number, theirs.peer_number), (9, 7));
    assert_eq!((ours.suite, ours.suite.level()), (theirs.suite, Level::Conf));

    let confirm = ours.short_message(Kind::Confirm, &keys, vnet(), 7);
    let confirm = Message::parse(&confirm).unwrap();
    assert!(is_of_member(&confirm, &keys) && theirs.accepts(&confirm));
    let ack = theirs.short_message(Kind::Ack, &keys, vnet(), 9);
    let ack = Message::parse(&ack).unwrap();
    assert!(ours.accepts(&ack));
    // Nobody is taken in by what is sent back.
    assert!(
        !ours.accepts(&Message { header: Header { kind: Kind::Ack, ..confirm.header }, ..confirm })
    );
}

#[test]
fn each_handshake_gives_other_keys() {
    let keys = keys(1, Level::Conf);
    let agreed = |seed| {
        let mut initiator = Initiator::new(parties(), &keys, 7, 1000, &entropy(seed)).unwrap();
        let opened = open(parties(), &keys, &initiator.message()).unwrap();
        let (_, response) = opened.respond(&keys, 9).unwrap();
        initiator.handle_response(&Message::parse(&response).unwrap()).unwrap().send
    };
    assert_eq!(agreed(1), agreed(1), "a seed repeats itself");
    assert_ne!(agreed(1), agreed(3));
}

#[test]
fn nobody_else_is_understood() {
    let ours = keys(1, Level::Conf);
    let init = begin(&ours).message();
    let view = Message::parse(&init).unwrap();
    for theirs in [keys(2, Level::Conf), keys(1, Level::Auth)] {
        assert!(!is_of_member(&view, &theirs));
        assert!(open(parties(), &theirs, &init).is_err());
    }
    let elsewhere = Parties { responder: ip(3), ..parties() };
    assert!(open(elsewhere, &ours, &init).is_err(), "meant for another host");
    let back = Parties { initiator: ip(2), responder: ip(1), ..parties() };
    assert!(open(back, &ours, &init).is_err(), "reflected");
    let lower = Parties { level: Level::Auth, ..parties() };
    assert!(open(lower, &ours, &init).is_err(), "another policy");
}

#[test]
fn every_flipped_byte_is_noticed() {
    let keys = keys(1, Level::Conf);
    let mut initiator = begin(&keys);
    let init = initiator.message();
    let (_, response) = open(parties(), &keys, &init).unwrap().respond(&keys, 9).unwrap();
    for (bytes, ignored) in [(&init, MAC_LEN), (&response, 0)] {
        for at in 0..bytes.len() - ignored {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            let member = Message::parse(&wrong).is_ok_and(|view| is_of_member(&view, &keys));
            assert!(!member, "byte {at}");
        }
    }
    // Even from a member, a wrong answer changes nothing, and the right one still counts.
    let mut wrong = response.clone();
    wrong[30] ^= 1;
    assert!(initiator.handle_response(&Message::parse(&wrong).unwrap()).is_err());
    assert!(initiator.handle_response(&Message::parse(&response).unwrap()).is_ok());
}

#[test]
fn a_cookie_is_good_for_one_address_and_two_turns() {
    let keys = keys(1, Level::Conf);
    let mut cookies = Cookies::new(&entropy(5));
    let mut initiator = begin(&keys);
    let first = initiator.message();
    let view = Message::parse(&first).unwrap();
    assert!(!cookies.accepts(ip(1), &view));
    let cookie = cookies.message(ip(1), &view, &keys);
    assert!(is_of_member(&Message::parse(&cookie).unwrap(), &keys));
    assert!(initiator.handle_cookie(&Message::parse(&cookie).unwrap()));
    let again = initiator.message();
    let view = Message::parse(&again).unwrap();
    assert!(cookies.accepts(ip(1), &view));
    assert!(!cookies.accepts(ip(3), &view));
    cookies.turn(&entropy(6));
    assert!(cookies.accepts(ip(1), &view));
    cookies.turn(&entropy(7));
    assert!(!cookies.accepts(ip(1), &view));
    // A cookie for another INIT is not taken.
    let mut other = Initiator::new(parties(), &keys, 8, 1001, &entropy(9)).unwrap();
    assert!(!other.handle_cookie(&Message::parse(&cookie).unwrap()));
}

#[test]
fn an_altered_ephemeral_key_is_refused() {
    let keys = keys(1, Level::Conf);
    let mut init = begin(&keys).message();
    init[20..52].fill(0);
    assert!(open(parties(), &keys, &init).is_err(), "the tag covers the key");
}
