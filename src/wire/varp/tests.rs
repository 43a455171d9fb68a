//! VARP messages against committed vectors, their truncations and mutations, and round trips.

use std::net::{IpAddr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::wire::vectors::unhex;
use crate::wire::{Capabilities, EncapKinds, Longest, ParseError, VnetId};

/// Name, bytes and meaning of each committed vector.
fn vectors() -> Vec<(&'static str, Vec<u8>, Message)> {
    let texts = [
        ("request4", include_str!("../../../tests/vectors/varp/request4.hex")),
        ("refresh4", include_str!("../../../tests/vectors/varp/refresh4.hex")),
        ("reply4", include_str!("../../../tests/vectors/varp/reply4.hex")),
        ("announce6", include_str!("../../../tests/vectors/varp/announce6.hex")),
        ("correction4", include_str!("../../../tests/vectors/varp/correction4.hex")),
        ("learnt4", include_str!("../../../tests/vectors/varp/learnt4.hex")),
        ("absent", include_str!("../../../tests/vectors/varp/absent.hex")),
        ("tagged", include_str!("../../../tests/vectors/varp/tagged.hex")),
    ];
    let learnt = Claim { behind: Some(Mac([0x52, 0x54, 0, 0xa, 0xb, 1])), ..claim4() };
    let tag =
        Tag { key_id: 0xa1b2_c3d4, time_ms: 0x0102_0304_0506_0708, tag: *b"0123456789abcdef" };
    let messages = [
        request(false),
        request(true),
        by7(Body::Reply { claim: claim4(), lifetime_ms: 30_000 }),
        Message { wide: true, ..by_v6(Body::Announce { claim: claim6(), lifetime_ms: 30_000 }) },
        Message { nonce: 0, ..message(Body::Correction { claim: claim4(), lifetime_ms: 12_345 }) },
        by7(Body::Announce { claim: learnt, lifetime_ms: 30_000 }),
        message(Body::Absent),
        Message {
            tag: Some(tag),
            relayed: true,
            ..by_v6(Body::Reply { claim: claim6(), lifetime_ms: 1 })
        },
    ];
    texts.into_iter().zip(messages).map(|((name, text), m)| (name, unhex(text), m)).collect()
}

/// Of 192.0.2.1.
fn message(body: Body) -> Message {
    let key = VifKey {
        vnet: VnetId::new(0x0102_0304).unwrap(),
        mac: Mac([0x52, 0x54, 0, 0xa, 0xb, 0xc]),
    };
    let author = Author { realm: Realm(0), addr: "192.0.2.1:1798".parse().unwrap() };
    let (nonce, wide, relayed, tag) = (0x1122_3344_5566_7788, false, false, None);
    Message { key, author, nonce, wide, relayed, body, tag }
}

/// Of 198.51.100.7.
fn by7(body: Body) -> Message {
    let author = Author { realm: Realm(0), addr: "198.51.100.7:1798".parse().unwrap() };
    Message { author, ..message(body) }
}

/// Of 2001:db8::7 in realm 7.
fn by_v6(body: Body) -> Message {
    let author = Author { realm: Realm(7), addr: "[2001:db8::7]:1798".parse().unwrap() };
    Message { author, ..message(body) }
}

fn request(refresh: bool) -> Message {
    Message { wide: !refresh, ..message(Body::Request { asker: coa("192.0.2.1:40001"), refresh }) }
}

fn coa(addr: &str) -> CareOf {
    let addr: SocketAddr = addr.parse().unwrap();
    CareOf {
        addr,
        kinds: EncapKinds::UDP,
        capabilities: Capabilities(0x8007),
        longest: Longest::of_mtu(1500, addr.ip()),
    }
}

fn claim4() -> Claim {
    let coa = coa("198.51.100.7:49152");
    Claim { stamp: Stamp(1_767_225_600_000), coa, realm: Realm(0), behind: None }
}

fn claim6() -> Claim {
    let coa = coa("[2001:db8::7]:49152");
    let longest = Longest::of_mtu(9000, coa.addr.ip());
    let coa = CareOf { kinds: EncapKinds(3), longest, ..coa };
    Claim { stamp: Stamp(1_767_225_600_001), coa, realm: Realm(7), behind: None }
}

#[test]
fn vectors_mean_what_they_say_and_are_emitted_again() {
    for (name, bytes, message) in vectors() {
        assert_eq!(Message::parse(&bytes), Ok(message), "{name}");
        assert_eq!(message.to_bytes(), bytes, "{name}");
        assert_eq!(message.len(), bytes.len(), "{name}");
    }
}

#[test]
fn every_truncation_is_refused() {
    for (name, bytes, _) in vectors() {
        for end in 0..bytes.len() {
            assert_eq!(
                Message::parse(&bytes[..end]),
                Err(ParseError::Truncated),
                "{name} cut to {end} bytes"
            );
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert_eq!(Message::parse(&longer), Err(ParseError::Trailing), "{name}");
    }
}

/// The flags that are ignored.
const SPARE: u16 = !(CRITICAL_FLAGS | FLAG_WIDE | FLAG_REFRESH | FLAG_RELAYED | FLAG_LEARNT);

/// A message without what is ignored.
fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let [high, low] = SPARE.to_be_bytes();
    bytes[FLAGS_OFFSET] &= !high;
    bytes[FLAGS_OFFSET + 1] &= !low;
    bytes
}

#[test]
fn every_mutation_is_refused_or_emitted_again() {
    let mut accepted = 0;
    for (name, bytes, message) in vectors() {
        for at in 0..bytes.len() {
            for value in 0..=u8::MAX {
                let mut mutant = bytes.clone();
                mutant[at] = value;
                if let Ok(parsed) = Message::parse(&mutant) {
                    let plain = plain(&mutant);
                    assert_eq!(parsed.to_bytes(), plain, "{name}, byte {at} = {value:#x}");
                    assert_eq!(parsed == message, plain == bytes, "{name}, byte {at}");
                    accepted += 1;
                }
            }
        }
    }
    assert!(accepted > 10_000, "mutations of addresses and numbers are messages: {accepted}");
}

#[test]
fn what_a_later_version_adds_is_skipped_unless_it_is_critical() {
    let bytes = unhex(include_str!("../../../tests/vectors/varp/extended.hex"));
    assert_eq!(Message::parse(&bytes), Ok(request(false)));
    let refused = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] |= value;
        Message::parse(&bytes).expect_err("a message that must be refused")
    };
    for flag in [0x10, 0x20, 0x40, 0x80] {
        assert_eq!(refused(FLAGS_OFFSET, flag), ParseError::Critical);
    }
    let second = LEN + 8;
    assert_eq!(refused(second, 0x80), ParseError::Critical);
    for end in 0..bytes.len() {
        assert_eq!(Message::parse(&bytes[..end]), Err(ParseError::Truncated), "{end}");
    }
    let tagged = [&bytes[..], &[7; TRAILER_LEN]].concat();
    assert_eq!(Message::parse(&tagged), Err(ParseError::Trailing), "a tag of no kind");
    let mut tagged = tagged;
    tagged[6] = TAG_HMAC_128;
    assert_eq!(Message::parse(&tagged).unwrap().tag.unwrap().tag, [7; TAG_LEN]);
    tagged[6] = 2;
    assert_eq!(Message::parse(&tagged), Err(ParseError::TagKind));
}

#[test]
fn a_tag_covers_all_before_it_but_flag_l() {
    for (name, bytes, message) in vectors() {
        let Some(_) = message.tag else { continue };
        let covered_by = covered(&bytes).unwrap();
        assert_eq!(covered_by.len(), TAGGED_LEN - TAG_LEN);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut mutant = bytes.clone();
                mutant[at] ^= 1 << bit;
                let is_free = at >= TAGGED_LEN - TAG_LEN || (at, bit) == (FLAGS_OFFSET + 1, 2);
                assert_eq!(covered(&mutant).unwrap() == covered_by, is_free, "{name}, {at}.{bit}");
            }
        }
    }
    assert_eq!(covered(&[0; TAG_LEN - 1]), None);
}

/// A reply may go to whom somebody else named: it must not multiply what it answers.
#[test]
fn an_answer_is_never_longer_than_its_question() {
    let question = request(false);
    for (_, _, message) in vectors() {
        let answer = Message { tag: question.tag, ..message };
        assert!(answer.len() <= question.len(), "{answer:?}");
    }
    assert_eq!(MAX_LEN, LEN + TRAILER_LEN + 4 * 255);
}

#[test]
fn the_first_nibble_is_neither_encapsulation_nor_esp() {
    assert_eq!(FIRST_NIBBLE, 5);
    for (name, bytes, _) in vectors() {
        assert_eq!(bytes[0] >> 4, FIRST_NIBBLE, "{name}");
        assert_eq!(bytes[VNET_OFFSET..VNET_OFFSET + 4], [1, 2, 3, 4], "{name}");
        assert_eq!(bytes[MAC_OFFSET..MAC_OFFSET + 3], [0x52, 0x54, 0], "{name}");
        assert_eq!(bytes[OPCODE_OFFSET], Message::parse(&bytes).unwrap().body.opcode(), "{name}");
    }
}

/// Sets bytes of a valid message and says why it is refused now.
fn refusal(message: &Message, changes: &[(usize, u8)]) -> ParseError {
    let mut bytes = message.to_bytes();
    for &(at, value) in changes {
        bytes[at] = value;
    }
    Message::parse(&bytes).expect_err("a message that must be refused")
}

#[test]
fn what_is_not_defined_is_refused_by_name() {
    let request = request(false);
    let reply = by7(Body::Reply { claim: claim4(), lifetime_ms: 30_000 });
    assert_eq!(refusal(&request, &[(0, 0x45)]), ParseError::Magic);
    assert_eq!(refusal(&request, &[(2, 1)]), ParseError::Version);
    assert_eq!(refusal(&request, &[(2, 3)]), ParseError::Version);
    assert_eq!(refusal(&request, &[(3, 0)]), ParseError::Type);
    assert_eq!(refusal(&request, &[(3, 6)]), ParseError::Type);
    assert_eq!(refusal(&request, &[(4, 0x80)]), ParseError::Critical);
    assert_eq!(refusal(&reply, &[(5, 1)]), ParseError::Reserved, "a wide reply");
    assert_eq!(refusal(&reply, &[(5, 2)]), ParseError::Reserved, "a refreshing reply");
    assert_eq!(refusal(&request, &[(5, 8)]), ParseError::Reserved, "a learnt request");
    assert_eq!(refusal(&reply, &[(5, 8)]), ParseError::Value, "learnt, behind no MAC");
    assert_eq!(refusal(&reply, &[(25, 1)]), ParseError::Reserved, "not learnt, behind a MAC");
    let own = [(20, 0x52), (21, 0x54), (23, 0xa), (24, 0xb), (25, 0xc)];
    assert_eq!(refusal(&reply, &[&own[..], &[(5, 8)]].concat()), ParseError::Value, "itself");
    assert_eq!(refusal(&reply, &[(5, 8), (20, 1)]), ParseError::Value, "behind a group");
    assert_eq!(refusal(&request, &[(6, 1)]), ParseError::Truncated, "a kind without a tag");
    assert_eq!(refusal(&request, &[(6, 2)]), ParseError::TagKind);
    assert_eq!(refusal(&request, &[(7, 1)]), ParseError::Truncated, "no extensions");
    assert_eq!(refusal(&request, &[(8, 0), (9, 0), (10, 0), (11, 0)]), ParseError::Value);
    assert_eq!(refusal(&request, &[(12, 0x53)]), ParseError::Value, "a group MAC");
    assert_eq!(refusal(&reply, &[(18, 2), (19, 0x27)]), ParseError::Value, "551 octets of IPv4");
    assert_eq!(refusal(&request, &[(35, 1)]), ParseError::Reserved, "a request with a stamp");
    assert_eq!(refusal(&request, &[(47, 1)]), ParseError::Reserved, "a request with a lifetime");
    assert_eq!(refusal(&reply, &[(52, 0)]), ParseError::Reserved, "half a CoA");
    assert_eq!(refusal(&reply, &[(52, 5)]), ParseError::Type);
    assert_eq!(refusal(&reply, &[(53, 0)]), ParseError::Value, "no way to send");
    assert_eq!(refusal(&reply, &[(53, 2)]), ParseError::Value, "a port without UDP");
    assert_eq!(refusal(&reply, &[(54, 0), (55, 0)]), ParseError::Value, "UDP without a port");
    assert_eq!(refusal(&reply, &[(56, 224)]), ParseError::Value, "multicast");
    assert_eq!(refusal(&reply, &[(56, 255), (57, 255), (58, 255), (59, 255)]), ParseError::Value);
    assert_eq!(refusal(&reply, &[(56, 0), (57, 0), (58, 0), (59, 0)]), ParseError::Value);
    assert_eq!(refusal(&reply, &[(71, 1)]), ParseError::Reserved, "after an IPv4 address");
    assert_eq!(refusal(&reply, &[(73, 1)]), ParseError::Reserved);
    assert_eq!(refusal(&reply, &[(74, 0), (75, 0)]), ParseError::Value, "an author without port");
    assert_eq!(refusal(&reply, &[(76, 224)]), ParseError::Value, "a group as author");
    let absent = message(Body::Absent);
    assert_eq!(refusal(&absent, &[(19, 1)]), ParseError::Reserved, "a length without a CoA");
    assert_eq!(refusal(&absent, &[(27, 1)]), ParseError::Reserved, "capabilities without a CoA");
    let none: Vec<(usize, u8)> = (72..92).map(|at| (at, 0)).collect();
    assert_eq!(refusal(&absent, &none), ParseError::Value, "no author");
    let no_nonce: Vec<(usize, u8)> = (36..44).map(|at| (at, 0)).collect();
    assert_eq!(refusal(&reply, &no_nonce), ParseError::Value);
}

/// The least of IPv4 is what Linux takes at least, that of IPv6 what every link takes.
#[test]
fn no_host_takes_less_than_the_least_datagram() {
    for (claim, least) in [(claim4(), 552), (Claim { realm: Realm(0), ..claim6() }, 1280)] {
        for (longest, is_taken) in [(0, true), (least - 1, false), (least, true), (u16::MAX, true)]
        {
            let mut bytes = message(Body::Announce { claim, lifetime_ms: 1 }).to_bytes();
            bytes[18..20].copy_from_slice(&longest.to_be_bytes());
            assert_eq!(Message::parse(&bytes).is_ok(), is_taken, "{longest}");
        }
    }
}

#[test]
fn an_ipv4_mapped_address_is_refused() {
    let mapped = message(Body::Reply {
        claim: Claim { coa: coa("[::ffff:192.0.2.1]:5"), ..claim4() },
        lifetime_ms: 1,
    });
    assert_eq!(Message::parse(&mapped.to_bytes()), Err(ParseError::Value));
    let addr = "[::ffff:192.0.2.1]:1798".parse().unwrap();
    let author = Message { author: Author { realm: Realm(0), addr }, ..message(Body::Absent) };
    assert_eq!(Message::parse(&author.to_bytes()), Err(ParseError::Value));
}

#[test]
fn the_order_of_claims_is_total_and_names_one_winner() {
    let (older, newer) = (claim4(), claim6());
    assert!(newer.beats(&older) && !older.beats(&newer));
    let stamp = older.stamp;
    let rising = [
        older,
        Claim { coa: coa("198.51.100.7:49153"), ..older },
        Claim { coa: coa("198.51.100.8:1"), ..older },
        Claim { stamp, realm: Realm(0), ..newer },
        Claim { realm: Realm(1), ..older },
        Claim { stamp, ..newer },
    ];
    for (n, lower) in rising.iter().enumerate() {
        for higher in rising.iter().skip(n + 1) {
            assert!(higher.beats(lower) && !lower.beats(higher), "{higher:?} {lower:?}");
        }
    }
    let upgraded = CareOf { capabilities: Capabilities::NONE, ..older.coa };
    let same = Claim { coa: upgraded, ..older };
    assert_eq!(same.order(&older), Ordering::Equal, "capabilities do not make an owner");
}

#[test]
fn an_own_claim_beats_a_learnt_one_whatever_the_stamps() {
    let own = claim4();
    let learnt = Claim { stamp: Stamp(u64::MAX), behind: Some(Mac([2; 6])), ..claim6() };
    assert!(own.beats(&learnt) && !learnt.beats(&own));
    let newer = Claim { stamp: Stamp(u64::MAX), ..claim4() };
    let older = Claim { stamp: Stamp(1), ..learnt };
    assert!(learnt.beats(&older) && newer.beats(&own), "among equals the stamp decides");
}

prop_compose! {
    fn any_addr()(v6 in any::<bool>(), bits in any::<u128>(), port in 1..=u16::MAX)
        -> SocketAddr
    {
        let [a, .., b, c, d] = bits.to_be_bytes();
        let v4 = Ipv4Addr::new(a % 223 + 1, b, c, d);
        // 2000::/3, so that the address is neither multicast nor mapped.
        let v6_addr = Ipv6Addr::from((bits >> 3) | (1 << 125));
        SocketAddr::new(if v6 { IpAddr::V6(v6_addr) } else { IpAddr::V4(v4) }, port)
    }
}

prop_compose! {
    fn any_coa()(addr in any_addr(), etherip in any::<bool>(), udp in any::<bool>(),
                 more in any::<u8>(), capabilities in any::<u16>(), mtu in any::<u16>())
        -> CareOf
    {
        let udp = udp || !etherip;
        let kinds = EncapKinds(u8::from(udp) | u8::from(etherip) << 1 | more & !3);
        let addr = SocketAddr::new(addr.ip(), if udp { addr.port() } else { 0 });
        let longest = Longest::of_mtu(mtu.into(), addr.ip());
        CareOf { addr, kinds, capabilities: Capabilities(capabilities), longest }
    }
}

prop_compose! {
    fn any_mac()(mac in any::<[u8; 6]>()) -> Mac {
        let [first, rest @ ..] = mac;
        let mut octets = [first & !1 | 2; 6];
        octets[1..].copy_from_slice(&rest);
        Mac(octets)
    }
}

fn any_body(realm: Realm) -> impl Strategy<Value = Body> {
    let behind = proptest::option::of(any_mac());
    let claim = (1..=u64::MAX, any_coa(), behind).prop_map(move |(stamp, coa, behind)| Claim {
        stamp: Stamp(stamp),
        coa,
        realm,
        behind,
    });
    let claimed = (claim, 1..=u32::MAX, 0..3).prop_map(|(claim, lifetime_ms, kind)| match kind {
        0 => Body::Reply { claim, lifetime_ms },
        1 => Body::Announce { claim, lifetime_ms },
        _ => Body::Correction { claim, lifetime_ms },
    });
    let request =
        (any_coa(), any::<bool>()).prop_map(|(asker, refresh)| Body::Request { asker, refresh });
    prop_oneof![claimed, request, Just(Body::Absent)]
}

prop_compose! {
    fn any_author()(realm in any::<u32>(), addr in any_addr()) -> Author {
        Author { realm: Realm(realm), addr }
    }
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed(
        (author, body) in any_author().prop_flat_map(|author| (Just(author), any_body(author.realm))),
        vnet in 1..=u32::MAX, mac in any_mac(), nonce in 1..=u64::MAX,
        wide in any::<bool>(), relayed in any::<bool>(),
        tag in proptest::option::of(any::<(u32, u64, [u8; 16])>()),
    ) {
        let key = VifKey { vnet: VnetId::new(vnet).unwrap(), mac };
        prop_assume!(body.claim().and_then(|claim| claim.behind) != Some(mac));
        let wide = wide && matches!(body, Body::Request { .. } | Body::Announce { .. });
        let tag = tag.map(|(key_id, time_ms, tag)| Tag { key_id, time_ms, tag });
        let message = Message { key, author, nonce, wide, relayed, body, tag };
        prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
    }

    #[test]
    fn any_bytes_are_refused_or_mean_what_is_emitted_again(
        bytes in proptest::collection::vec(any::<u8>(), 0..140),
    ) {
        let magic = [MAGIC.as_slice(), &[VERSION], &bytes].concat();
        for input in [bytes, magic] {
            if let Ok(message) = Message::parse(&input) {
                prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
            }
        }
    }
}
