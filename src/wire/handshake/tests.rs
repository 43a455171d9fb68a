//! Committed vectors, what is refused, and what comes back as it was sent.

use super::payload::{Credential, FLAG_AES, Init, MAX_CREDENTIAL_LEN, Response};
use super::*;
use crate::wire::extension::{self, Extension, Extensions};
use crate::wire::name::Realm;
use crate::wire::vectors::{self, unhex};
use proptest::prelude::*;

const INIT: &str = include_str!("../../../tests/vectors/handshake/init.hex");
const RESPONSE: &str = include_str!("../../../tests/vectors/handshake/response.hex");
const CONFIRM: &str = include_str!("../../../tests/vectors/handshake/confirm.hex");
const ACK: &str = include_str!("../../../tests/vectors/handshake/ack.hex");
const COOKIE: &str = include_str!("../../../tests/vectors/handshake/cookie.hex");
const INIT_PAYLOAD: &str = include_str!("../../../tests/vectors/handshake/init-payload.hex");
const RESPONSE_PAYLOAD: &str =
    include_str!("../../../tests/vectors/handshake/response-payload.hex");

const MAC: [u8; MAC_LEN] = [0xa1; MAC_LEN];
const OTHER_MAC: [u8; MAC_LEN] = [0xb2; MAC_LEN];
const NOISE: [u8; INIT_NOISE_LEN] = [0xc3; INIT_NOISE_LEN];

fn header() -> Header {
    let vnet = VnetId::new(42).unwrap();
    Header { vnet, key_id: 0x0102_0304, sender: 5, receiver: 6 }
}

fn name() -> Name {
    Name::host(Realm(7), "192.0.2.1".parse().unwrap())
}

/// Kind 1, three bytes, and an extension.
fn additions() -> Additions<'static> {
    static LIST: [u8; 8] = [0x01, 0x02, 0, 2, 0xe1, 0xe2, 0, 0];
    let credential = Credential::new(1, &[0xd1, 0xd2, 0xd3]).unwrap();
    Additions { credential, extensions: Extensions::parse(&LIST, &[]).unwrap() }
}

fn bodies() -> [(&'static str, Body<'static>); 5] {
    [
        (INIT, Body::Init { name: name(), noise: &NOISE }),
        (RESPONSE, Body::Response { noise: &NOISE[..60] }),
        (CONFIRM, Body::Confirm { additions: additions(), mac: &MAC }),
        (ACK, Body::Ack { mac: &MAC }),
        (COOKIE, Body::Cookie { cookie: &MAC, init_mac: &OTHER_MAC }),
    ]
}

fn emitted(header: &Header, body: &Body<'_>, macs: &[&[u8]]) -> Vec<u8> {
    let mut bytes = header.emit(body.kind()).to_vec();
    body.emit(&mut bytes);
    bytes.extend(macs.concat());
    bytes
}

fn emitted_again(bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
    let message = Message::parse(bytes)?;
    let second = message.second_mac.map_or(&[][..], |mac| mac);
    Ok(emitted(&message.header, &message.body, &[message.first_mac, second]))
}

#[test]
fn vectors_mean_what_they_say_and_are_emitted_again() {
    for (text, body) in bodies() {
        let bytes = unhex(text);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.header, message.body), (header(), body));
        assert_eq!(message.first_mac, &[0xe4; MAC_LEN]);
        assert_eq!(message.second_mac.is_some(), body.kind() == Kind::Init);
        assert_eq!(message.covered, &bytes[..bytes.len() - body.kind().macs_len()]);
        assert!(Message::is_one(&bytes));
        assert!(body.kind().message_lens().contains(&bytes.len()));
        vectors::changed(&bytes, emitted_again);
    }
}

#[test]
fn payload_vectors_mean_what_they_say_and_are_emitted_again() {
    let init =
        Init { time_ms: 0x0102_0304_0506_0708, number: 5, flags: FLAG_AES, additions: additions() };
    let bytes = unhex(INIT_PAYLOAD);
    assert_eq!(Init::parse(bytes[..].try_into().unwrap()), Ok(init));
    vectors::changed(&bytes, |bytes| {
        Init::parse(bytes.try_into().unwrap()).map(|init| init.emit())
    });
    let response = Response { number: 5, flags: FLAG_AES, additions: additions() };
    let bytes = unhex(RESPONSE_PAYLOAD);
    assert_eq!(Response::parse(&bytes), Ok(response));
    vectors::cut_and_changed(&bytes, |bytes| {
        Response::parse(bytes).map(|response| response.emit())
    });
}

/// A RESPONSE's sealed part tells its length by where the message ends; its tag notices what is
/// missing.
#[test]
fn every_truncation_is_noticed() {
    for (text, body) in bodies() {
        let bytes = unhex(text);
        for end in 0..bytes.len() {
            let cut = Message::parse(&bytes[..end]).map(|message| message.body);
            match body {
                Body::Response { noise } if end >= *Kind::Response.message_lens().start() => {
                    let shorter = &noise[..noise.len() + end - bytes.len()];
                    assert_eq!(cut, Ok(Body::Response { noise: shorter }));
                }
                _ => assert_eq!(cut, Err(ParseError::Truncated), "{:?}: {end}", body.kind()),
            }
        }
        let longer = [&bytes[..], &[0]].concat();
        if body.kind() != Kind::Response {
            assert_eq!(Message::parse(&longer), Err(ParseError::Trailing));
        }
    }
}

#[test]
fn no_answer_is_longer_than_what_it_answers() {
    let lens = Kind::ALL.map(Kind::message_lens);
    assert_eq!(lens[0], MAX_LEN..=MAX_LEN, "an INIT has one length");
    assert!(lens.iter().all(|lens| *lens.end() <= MAX_LEN));
    assert!(Kind::Ack.message_lens().end() <= Kind::Confirm.message_lens().start());
    // With IPv6 and UDP it fits the least that a path carries (RFC 8200, section 5).
    const { assert!(MAX_LEN + 48 <= 1280) };
    let credential = Credential::new(1, &[7; MAX_CREDENTIAL_LEN]).unwrap();
    let additions = Additions { credential, extensions: Extensions::NONE };
    assert_eq!(Init { time_ms: 1, number: 2, flags: 3, additions }.emit().len(), INIT_PAYLOAD_LEN);
}

#[test]
fn faults_are_named() {
    let with = |text: &str, at: usize, value| {
        let mut bytes = unhex(text);
        bytes[at] = value;
        Message::parse(&bytes).unwrap_err()
    };
    assert_eq!(with(ACK, 1, 0x41), ParseError::Magic);
    assert_eq!(with(ACK, 2, 1), ParseError::Version);
    assert_eq!(with(ACK, 3, 6), ParseError::Type);
    assert_eq!(with(ACK, 7, 0), ParseError::Value);
    assert_eq!(with(INIT, 41, 1), ParseError::Value, "a vif's name");
    assert_eq!(with(INIT, 42, 1), ParseError::Reserved);
    assert_eq!(with(CONFIRM, 20, 33), ParseError::Value, "words");
    assert_eq!(with(CONFIRM, 21, 0), ParseError::Value, "none has no bytes");
    assert_eq!(with(CONFIRM, 22, 3), ParseError::Value, "more than 512");
    assert_eq!(with(CONFIRM, 27, 1), ParseError::Reserved, "behind the credential");
    assert_eq!(with(CONFIRM, 28, 0x81), ParseError::Critical);
    let mut bytes = unhex(INIT_PAYLOAD);
    *bytes.last_mut().unwrap() = 1;
    assert_eq!(Init::parse(bytes[..].try_into().unwrap()), Err(ParseError::Reserved));
}

#[test]
fn a_credential_has_bounds() {
    assert!(Credential::new(1, &[0; MAX_CREDENTIAL_LEN]).is_some());
    assert_eq!(Credential::new(1, &[0; MAX_CREDENTIAL_LEN + 1]), None);
    assert_eq!(Credential::new(0, &[1]), None);
    assert_eq!(Credential::new(0, &[]), Some(Credential::NONE));
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed(
        kind in 1..=u8::MAX,
        value in prop::collection::vec(any::<u8>(), 0..=MAX_CREDENTIAL_LEN),
        extension in prop::collection::vec(any::<u8>(), 0..=124),
        has_one: bool,
        words: [u32; 4],
    ) {
        let list = [Extension { kind: 9, value: &extension }];
        let list = if has_one { extension::emit(&list) } else { Vec::new() };
        let extensions = Extensions::parse(&list, &[]).unwrap();
        let additions = Additions { credential: Credential::new(kind, &value).unwrap(), extensions };
        let [number, flags, key_id, sender] = words;
        let init = Init { time_ms: 7, number, flags, additions };
        let bytes = init.emit();
        prop_assert_eq!(Init::parse(bytes[..].try_into().unwrap()), Ok(init));
        let response = Response { number, flags, additions };
        let bytes = response.emit();
        prop_assert_eq!(Response::parse(&bytes), Ok(response));
        let header = Header { key_id, sender, ..header() };
        let body = Body::Confirm { additions, mac: &MAC };
        let bytes = emitted(&header, &body, &[&OTHER_MAC]);
        let message = Message::parse(&bytes).unwrap();
        prop_assert_eq!((message.header, message.body), (header, body));
    }

    #[test]
    fn no_bytes_panic(kind in 1..6_u8, bytes in prop::collection::vec(any::<u8>(), 0..MAX_LEN)) {
        let bytes = [&MAGIC[..], &[VERSION, kind], &bytes].concat();
        if let Ok(again) = emitted_again(&bytes) {
            prop_assert_eq!(&again, &bytes);
        }
        if let Ok(response) = Response::parse(&bytes) {
            prop_assert_eq!(response.emit(), bytes);
        }
    }
}
