//! Hello against committed vectors, their truncations and changes, and round trips.
use proptest::prelude::*;

use super::list::Choice;
use super::*;
use crate::wire::encap;
use crate::wire::extension::{self, Extension};
use crate::wire::handshake;
use crate::wire::name::{self, Realm};
use crate::wire::varp;
use crate::wire::vectors::{self, unhex};

const GROUP_HEX: &str = include_str!("../../../tests/vectors/hello/group.hex");
const ANSWER_HEX: &str = include_str!("../../../tests/vectors/hello/answer.hex");
const LIST_HEX: &str = include_str!("../../../tests/vectors/hello/list.hex");
/// Type 0x0102 with one octet.
const EXTENSIONS: [u8; 8] = [1, 2, 0, 1, 9, 0, 0, 0];

fn host(realm: u32, ip: &str) -> Name {
    Name::host(Realm(realm), ip.parse().unwrap())
}

fn vnet(id: u32) -> VnetId {
    VnetId::new(id).unwrap()
}

fn to_group(relays: &[u8]) -> Message<'_> {
    let hello = Hello {
        lifetime_ms: 120_000,
        release: Release { major: 1, minor: 2, patch: 3 },
        abilities: Abilities::RELAY,
        vifs: 2,
        digest: 0xe3b0_c442_98fc_1c14,
        nonce: 0,
        answer: 0,
        group: Some("224.10.0.1:1798".parse().unwrap()),
        relays: Relays::parse(relays).unwrap(),
    };
    Message {
        flags: Flags::BEACON,
        key_number: 0,
        time_ms: 1_767_225_600_000,
        generation: 0x6955_b900,
        sender: host(0, "192.0.2.1"),
        body: Body::Hello(hello),
        extensions: Extensions::NONE,
        hmac: [0; 16],
    }
}

fn answer() -> Message<'static> {
    let hello = Hello {
        lifetime_ms: 0,
        release: Release { major: 0, minor: 9, patch: 1 },
        abilities: Abilities::default(),
        vifs: 0,
        digest: 0x0001_0203_0405_0607,
        nonce: 0x1122_3344_5566_7788,
        answer: 0x8877_6655_4433_2211,
        group: None,
        relays: Relays::NONE,
    };
    Message {
        flags: Flags::HEARD.with(Flags::WANTS_LIST).with(Flags::ANSWER),
        key_number: 5,
        time_ms: 1_767_225_600_001,
        generation: 0x6955_b901,
        sender: host(0, "2001:db8::1"),
        body: Body::Hello(hello),
        extensions: Extensions::parse(&EXTENSIONS, &[]).unwrap(),
        hmac: *b"0123456789abcdef",
    }
}

fn entries() -> [Entry; 2] {
    let plain = Entry {
        vnet: vnet(42),
        policy: Choice { sent: 0, accepted: 1 },
        cipher: 0,
        groups: Choice { sent: 1, accepted: 1 },
        longest: 0,
        proof: None,
    };
    let secured = Entry {
        vnet: vnet(43),
        policy: Choice { sent: 2, accepted: 5 },
        cipher: 1,
        groups: Choice { sent: 2, accepted: 3 },
        longest: 9000,
        proof: Some(Proof { key_id: 0xa1b2_c3d4, tag: *b"fedcba9876543210" }),
    };
    [plain, secured]
}

fn list(entries: &[u8]) -> Message<'_> {
    let entries = Entries::parse(entries).unwrap();
    Message {
        flags: Flags::NONE,
        time_ms: 1_767_225_600_002,
        generation: 0x6955_b901,
        body: Body::List(List { first: vnet(2), last: vnet(u32::MAX), entries }),
        ..to_group(&[])
    }
}

/// Calls with each vector's name, bytes and meaning.
fn each_vector(check: impl Fn(&str, &[u8], Message<'_>)) {
    let relays = Relays::emit(&[host(7, "2001:db8::7")]);
    check("group", &unhex(GROUP_HEX), to_group(&relays));
    check("answer", &unhex(ANSWER_HEX), answer());
    check("list", &unhex(LIST_HEX), list(&Entries::emit(&entries())));
}

fn emitted_again(bytes: &[u8]) -> Result<Vec<u8>, ParseError> {
    Message::parse(bytes).map(|message| message.to_bytes())
}

#[test]
fn vectors_mean_what_they_say_and_are_emitted_again() {
    each_vector(|name, bytes, message| {
        assert_eq!(Message::parse(bytes), Ok(message), "{name}");
        assert_eq!(message.to_bytes(), bytes, "{name}");
        assert_eq!(message.len(), bytes.len(), "{name}");
    });
}

#[test]
fn every_truncation_and_change_is_refused_or_emitted_again() {
    each_vector(|name, bytes, _| {
        vectors::cut_and_changed(bytes, emitted_again);
        let longer = [bytes, &[0]].concat();
        assert_eq!(Message::parse(&longer), Err(ParseError::Trailing), "{name}");
    });
}

#[test]
fn lists_hold_what_was_put_in() {
    let bytes = Entries::emit(&entries());
    let parsed = Entries::parse(&bytes).unwrap();
    assert_eq!(parsed.iter().collect::<Vec<_>>(), entries());
    assert_eq!((parsed.count(), parsed.bytes()), (2, &bytes[..]));
    assert_eq!(entries().map(|entry| entry.len()).iter().sum::<usize>(), bytes.len());
    let relays = [host(7, "2001:db8::7"), host(0, "192.0.2.1")];
    let bytes = Relays::emit(&relays);
    assert_eq!(Relays::parse(&bytes).unwrap().iter().collect::<Vec<_>>(), relays);
}

/// The first nibble is VARP's; the second octet tells the formats that begin with 'V' apart.
#[test]
fn nothing_else_on_the_port_begins_like_this() {
    let bytes = answer().to_bytes();
    assert_eq!(bytes[0] >> 4, varp::FIRST_NIBBLE);
    assert_eq!(encap::Kind::of(&bytes), encap::Kind::Unknown);
    assert!(Message::is_one(&bytes) && !handshake::Message::is_one(&bytes));
    assert_eq!(varp::Message::parse(&bytes), Err(ParseError::Magic));
    let all = [MAGIC, varp::MAGIC, handshake::MAGIC, crate::wire::relayed::MAGIC];
    let mut apart = all.to_vec();
    apart.sort_unstable();
    apart.dedup();
    assert_eq!(apart.len(), all.len());
}

#[test]
fn an_answer_is_as_long_as_its_question_whoever_has_keys() {
    let keyless = Message { key_number: 0, hmac: [0; 16], ..answer() };
    assert_eq!(keyless.len(), answer().len());
    assert_eq!(keyless.len(), HELLO_LEN + EXTENSIONS.len());
}

#[test]
fn the_hmac_and_the_tag_cover_all_but_themselves() {
    let bytes = answer().to_bytes();
    assert_eq!([covered(&bytes), &answer().hmac].concat(), bytes);
    assert!(covered(&[1; 15]).is_empty());
    let [plain, secured] = entries();
    let tag = secured.proof.unwrap().tag;
    assert_eq!([&secured.covered()[..], &tag].concat(), Entries::emit(&[secured]));
    assert_eq!(plain.covered(), Entries::emit(&[plain]));
}

/// Sets bytes of a valid message and says why it is refused now.
fn refusal(message: &Message<'_>, changes: &[(usize, u8)]) -> ParseError {
    let mut bytes = message.to_bytes();
    for &(at, value) in changes {
        bytes[at] = value;
    }
    Message::parse(&bytes).expect_err("a message that must be refused")
}

#[test]
fn what_is_not_defined_is_refused_by_name() {
    let (group, one) = (to_group(&[]), answer());
    assert_eq!(refusal(&group, &[(1, 0x41)]), ParseError::Magic);
    assert_eq!(refusal(&group, &[(2, 2)]), ParseError::Version);
    assert_eq!(refusal(&group, &[(3, 3)]), ParseError::Type);
    assert_eq!(refusal(&one, &[(5, 0x17)]), ParseError::Reserved, "an unknown critical flag");
    assert_eq!(refusal(&group, &[(5, 4)]), ParseError::Reserved, "an answer to the group");
    assert_eq!(refusal(&one, &[(5, 8)]), ParseError::Reserved, "a beacon to one host");
    assert_eq!(refusal(&group, &[(119, 1)]), ParseError::Reserved, "an HMAC without a key");
    assert_eq!(refusal(&group, &[(41, 1)]), ParseError::Value, "a vif as the sender");
    assert_eq!(refusal(&group, &[(43, 1)]), ParseError::Truncated, "a relay that is not there");
    assert_eq!(refusal(&group, &[(83, 1)]), ParseError::Value, "an answer to nobody");
    assert_eq!(refusal(&group, &[(96, 192)]), ParseError::Value, "a group that is a host");
    assert_eq!(refusal(&group, &[(100, 0), (101, 0)]), ParseError::Value, "a group without port");
    assert_eq!(refusal(&group, &[(103, 1)]), ParseError::Reserved);
    assert_eq!(refusal(&one, &[(104, 0x80)]), ParseError::Critical);
    let relays = Relays::emit(&[host(7, "2001:db8::7")]);
    let heard = to_group(&relays);
    assert_eq!(refusal(&heard, &[(75, 1), (5, 0)]), ParseError::Value, "relays to one host");
    assert_eq!(refusal(&heard, &[(125, 1)]), ParseError::Value, "a vif as a relay");
    assert_eq!(refusal(&heard, &[(127, 1)]), ParseError::Reserved);
}

#[test]
fn lists_that_contradict_themselves_are_refused() {
    let bytes = Entries::emit(&entries());
    let list = list(&bytes);
    assert_eq!(refusal(&list, &[(5, 8)]), ParseError::Reserved, "flags are for HELLO");
    assert_eq!(refusal(&list, &[(47, 43)]), ParseError::Value, "42 is below the range");
    let to_42 = [(48, 0), (49, 0), (50, 0), (51, 42)];
    assert_eq!(refusal(&list, &to_42), ParseError::Value, "43 is above the range");
    assert_eq!(refusal(&list, &[(44, 255), (51, 1)]), ParseError::Value, "no range");
    assert_eq!(refusal(&list, &[(67, 42)]), ParseError::Value, "one vnet twice");
    assert_eq!(refusal(&list, &[(59, 2)]), ParseError::Reserved, "an unknown flag of an entry");
    assert_eq!(refusal(&list, &[(63, 1)]), ParseError::Reserved);
    assert_eq!(refusal(&list, &[(60, 2), (61, 39)]), ParseError::Value, "551 octets");
    let over_ipv6 = Message { sender: host(0, "2001:db8::1"), ..list };
    assert_eq!(refusal(&over_ipv6, &[(60, 4), (61, 255)]), ParseError::Value, "1279 over IPv6");
}

#[test]
fn the_longest_message_fits_every_ipv6_path() {
    let proof = entries()[1].proof;
    let many: Vec<Entry> =
        (0..37).map(|n| Entry { vnet: vnet(100 + n), proof, ..entries()[0] }).collect();
    let fits = Entries::emit(&many[..36]);
    let message = list(&fits);
    assert!(message.len() <= MAX_LEN && MAX_LEN + 48 == 1280);
    assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
    // One more than fits, put together by hand.
    let mut bytes = message.to_bytes();
    let hmac = bytes.split_off(bytes.len() - HMAC_LEN);
    many[36].emit(&mut bytes);
    bytes.extend(hmac);
    bytes[43] = 37;
    assert_eq!(Message::parse(&bytes), Err(ParseError::Trailing));
}

fn any_entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (any::<(u8, u8, u8)>(), any::<u16>(), any::<Option<(u32, [u8; 16])>>());
    prop::collection::btree_map(1..=u32::MAX, entry, 0..8).prop_map(|map| {
        let entry = |(id, ((policy, cipher, groups), longest, proof))| Entry {
            vnet: vnet(id),
            policy: Choice { sent: policy >> 4, accepted: policy & 0xf },
            cipher,
            groups: Choice { sent: groups >> 4, accepted: groups & 0xf },
            longest: if longest < 1280 { 0 } else { longest },
            proof: Option::map(proof, |(key_id, tag)| Proof { key_id, tag }),
        };
        map.into_iter().map(entry).collect()
    })
}

prop_compose! {
    fn any_hello()(
        (lifetime_ms, capabilities, vifs) in any::<(u32, u32, u32)>(),
        (digest, nonce, answer) in any::<(u64, u64, u64)>(),
        release: (u8, u8, u16), has_group: bool, is_to_group: bool,
    ) -> Hello<'static> {
        let (major, minor, patch) = release;
        Hello {
            lifetime_ms,
            release: Release { major, minor, patch },
            abilities: Abilities(capabilities),
            vifs,
            digest,
            nonce: if is_to_group { 0 } else { nonce | 1 },
            answer: if is_to_group { 0 } else { answer },
            group: has_group.then(|| "[ff15::e00a:1]:1798".parse().unwrap()),
            relays: Relays::NONE,
        }
    }
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed(
        hello in any_hello(), listed in prop::option::of(any_entries()), sender in name::tests::any_name(),
        relays in prop::collection::vec(name::tests::any_name(), 0..8), flags: u16, key_number: u8,
        hmac: [u8; 16], time_ms: u64, generation: u32, value in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let (entries, relays) = (Entries::emit(listed.as_deref().unwrap_or(&[])), Relays::emit(&relays));
        let relays = Relays::parse(if hello.nonce == 0 { &relays } else { &[] }).unwrap();
        let (body, allowed) = match &listed {
            Some(listed) => {
                let (first, last) = match &listed[..] {
                    [one, .., another] => (one.vnet, another.vnet),
                    _ => (vnet(1), vnet(u32::MAX)),
                };
                let entries = Entries::parse(&entries).unwrap();
                (Body::List(List { first, last, entries }), 0)
            }
            None if hello.nonce == 0 => (Body::Hello(Hello { relays, ..hello }), 8),
            None => (Body::Hello(hello), 7),
        };
        let list = extension::emit(&[Extension { kind: 7, value: &value }]);
        let message = Message {
            flags: Flags(flags & (0xff00 | allowed)),
            key_number,
            time_ms,
            generation,
            sender: sender.of_host(),
            body,
            extensions: Extensions::parse(&list, &[]).unwrap(),
            hmac: if key_number == 0 { [0; 16] } else { hmac },
        };
        let bytes = message.to_bytes();
        prop_assert_eq!(Message::parse(&bytes), Ok(message));
    }

    #[test]
    fn no_bytes_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300), code in 1..3_u8, few in any::<[bool; 300]>(),
    ) {
        // Mostly zeros come further.
        let sparse: Vec<u8> =
            bytes.iter().zip(few).map(|(byte, keep)| if keep { 0 } else { *byte }).collect();
        let begun = |rest: &[u8]| [&MAGIC[..], &[VERSION, code], rest].concat();
        for input in [begun(&bytes), begun(&sparse), bytes] {
            if let Ok(message) = Message::parse(&input) {
                prop_assert_eq!(message.to_bytes(), input);
            }
        }
    }
}
