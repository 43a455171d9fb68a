//! Two sides that talk to each other, and who is turned away.

use std::net::IpAddr;

use super::*;
use crate::wire::extension::Extensions;
use crate::wire::handshake::{EPHEMERAL_LEN, HEADER_LEN};
use crate::wire::name::Realm;

fn keys(byte: u8, level: Level) -> MemberKeys {
    MemberKeys::new(&Secret::new([byte; 32]), vnet(), level, Suite::AesGcm)
}

fn vnet() -> VnetId {
    VnetId::new(42).unwrap()
}

fn ip(host: u8) -> IpAddr {
    [192, 0, 2, host].into()
}

fn name(host: u8) -> Name {
    Name::host(Realm(0), ip(host))
}

fn parties() -> Parties {
    Parties { vnet: vnet(), level: Level::Conf, initiator: name(1), responder: name(2) }
}

fn entropy(seed: u8) -> Entropy {
    Entropy::new(Secret::new([seed; 32]))
}

fn begin(keys: &MemberKeys) -> Initiator {
    begin_with(keys, &Additions::NONE, 1)
}

fn begin_with(keys: &MemberKeys, additions: &Additions<'_>, seed: u8) -> Initiator {
    Initiator::new(parties(), keys, 7, 1000, additions, &entropy(seed)).unwrap()
}

fn with_credential(kind: u8, value: &[u8]) -> Additions<'_> {
    let credential = Credential::new(kind, value).unwrap();
    Additions { credential, extensions: Extensions::NONE }
}

fn open(parties: Parties, keys: &MemberKeys, init: &[u8]) -> Result<Opened, Refused> {
    Opened::new(parties, keys, &Message::parse(init).unwrap(), Required(None), &entropy(2))
}

#[test]
fn both_sides_agree() {
    let keys = keys(1, Level::Conf);
    let mut initiator = begin(&keys);
    let init = initiator.message();
    assert!(is_of_member(&Message::parse(&init).unwrap(), &keys));
    let opened = open(parties(), &keys, &init).unwrap();
    assert_eq!((opened.time_ms, opened.peer.number), (1000, 7));
    let (theirs, response) = opened.respond(&keys, 9, &Additions::NONE).unwrap();
    let ours =
        initiator.handle_response(&Message::parse(&response).unwrap(), Required(None)).unwrap();
    assert_eq!((&ours.send, &ours.receive), (&theirs.receive, &theirs.send));
    assert_ne!(ours.send, ours.receive);
    assert_eq!((ours.peer_number, theirs.peer_number), (9, 7));
    assert_eq!((ours.suite, ours.suite.level()), (theirs.suite, Level::Conf));

    let confirm = ours.confirm(&Additions::NONE, &keys, vnet(), 7);
    let confirm = Message::parse(&confirm).unwrap();
    assert!(is_of_member(&confirm, &keys));
    assert_eq!(theirs.take_confirm(&confirm, Required(None)), Ok(()));
    let ack = theirs.ack(&keys, vnet(), 9);
    let ack = Message::parse(&ack).unwrap();
    assert_eq!(ours.take_ack(&ack), Ok(()));
    // Nobody is taken in by what is sent back.
    assert_eq!(theirs.take_ack(&confirm), Err(Refused::Forged));
    assert_eq!(ours.take_confirm(&ack, Required(None)), Err(Refused::Forged));
    let back = ours.ack(&keys, vnet(), 7);
    let Body::Confirm { mac, .. } = confirm.body else { panic!("{confirm:?}") };
    let back = Message { body: Body::Ack { mac }, ..Message::parse(&back).unwrap() };
    assert_eq!(ours.take_ack(&back), Err(Refused::Forged));
}

#[test]
fn each_handshake_gives_other_keys() {
    let keys = keys(1, Level::Conf);
    let agreed = |seed| {
        let mut initiator = begin_with(&keys, &Additions::NONE, seed);
        let opened = open(parties(), &keys, &initiator.message()).unwrap();
        let (_, response) = opened.respond(&keys, 9, &Additions::NONE).unwrap();
        initiator.handle_response(&Message::parse(&response).unwrap(), Required(None)).unwrap().send
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
    let elsewhere = Parties { responder: name(3), ..parties() };
    assert!(open(elsewhere, &ours, &init).is_err(), "meant for another host");
    let back = Parties { initiator: name(2), responder: name(1), ..parties() };
    assert!(open(back, &ours, &init).is_err(), "reflected");
    let far = Name::host(Realm(1), ip(1));
    assert!(open(Parties { initiator: far, ..parties() }, &ours, &init).is_err(), "another realm");
    let lower = Parties { level: Level::Auth, ..parties() };
    assert!(open(lower, &ours, &init).is_err(), "another policy");
}

#[test]
fn every_flipped_byte_is_noticed() {
    let keys = keys(1, Level::Conf);
    let mut initiator = begin(&keys);
    let init = initiator.message();
    let (_, response) =
        open(parties(), &keys, &init).unwrap().respond(&keys, 9, &Additions::NONE).unwrap();
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
    assert!(initiator.handle_response(&Message::parse(&wrong).unwrap(), Required(None)).is_err());
    assert!(initiator.handle_response(&Message::parse(&response).unwrap(), Required(None)).is_ok());
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
    let mut other =
        Initiator::new(parties(), &keys, 8, 1001, &Additions::NONE, &entropy(9)).unwrap();
    assert!(!other.handle_cookie(&Message::parse(&cookie).unwrap()));
}

#[test]
fn an_altered_ephemeral_key_is_refused() {
    let keys = keys(1, Level::Conf);
    let mut init = begin(&keys).message();
    let at = HEADER_LEN + 24;
    init[at..at + EPHEMERAL_LEN].fill(0);
    assert!(open(parties(), &keys, &init).is_err(), "the tag covers the key");
}

#[test]
fn a_message_with_the_longest_credential_is_understood_and_covered() {
    let (keys, value) = (keys(1, Level::Conf), [0xd5; payload::MAX_CREDENTIAL_LEN]);
    let additions = with_credential(9, &value);
    let mut initiator = begin_with(&keys, &additions, 1);
    let init = initiator.message();
    assert_eq!(init.len(), begin(&keys).message().len(), "whatever is in it");
    let opened = open(parties(), &keys, &init).unwrap();
    let (theirs, response) = opened.respond(&keys, 9, &additions).unwrap();
    assert!(response.len() <= init.len());
    let ours =
        initiator.handle_response(&Message::parse(&response).unwrap(), Required(Some(9))).unwrap();
    let confirm = ours.confirm(&additions, &keys, vnet(), 7);
    let parsed = Message::parse(&confirm).unwrap();
    assert_eq!(theirs.take_confirm(&parsed, Required(Some(9))), Ok(()));
    for at in 0..confirm.len() - MAC_LEN {
        let mut wrong = confirm.clone();
        wrong[at] ^= 1;
        let is_taken = Message::parse(&wrong)
            .is_ok_and(|message| theirs.take_confirm(&message, Required(None)).is_ok());
        assert!(!is_taken, "byte {at}");
    }
}

#[test]
fn who_requires_no_credential_takes_any_and_who_requires_one_takes_that_kind() {
    let keys = keys(1, Level::Conf);
    for (kind, value) in [(0, &[][..]), (9, b"nine"), (10, b"ten")] {
        let additions = with_credential(kind, value);
        let mut initiator = begin_with(&keys, &additions, 1);
        let init = initiator.message();
        let init = Message::parse(&init).unwrap();
        let open = |required| Opened::new(parties(), &keys, &init, required, &entropy(2));
        assert!(open(Required(None)).is_ok(), "kind {kind}");
        let wanted = if kind == 9 { None } else { Some(Refused::Credential) };
        assert_eq!(open(Required(Some(9))).err(), wanted, "kind {kind}");
        let opened = open(Required(None)).unwrap();
        let (theirs, response) = opened.respond(&keys, 9, &additions).unwrap();
        let response = Message::parse(&response).unwrap();
        let ours = initiator.handle_response(&response, Required(None)).unwrap();
        let confirm = ours.confirm(&additions, &keys, vnet(), 7);
        let confirm = Message::parse(&confirm).unwrap();
        assert_eq!(theirs.take_confirm(&confirm, Required(Some(9))).err(), wanted, "kind {kind}");
        let mut again = begin_with(&keys, &additions, 1);
        assert_eq!(again.handle_response(&response, Required(Some(9))).err(), wanted);
    }
}

#[test]
fn an_unknown_extension_is_skipped_unless_it_is_critical() {
    let keys = keys(1, Level::Conf);
    let init = |kind: [u8; 2]| {
        let list = [kind[0], kind[1], 0, 0];
        let known = [u16::from_be_bytes(kind)];
        let extensions = Extensions::parse(&list, &known).unwrap();
        let additions = Additions { credential: Credential::NONE, extensions };
        open(parties(), &keys, &begin_with(&keys, &additions, 1).message())
    };
    assert!(init([0x01, 0x02]).is_ok());
    assert_eq!(init([0x81, 0x02]).err(), Some(Refused::Malformed));
}
