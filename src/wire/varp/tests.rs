//! VARP messages against committed vectors, their truncations and mutations, and round trips.
use proptest::prelude::*;

use super::*;
use crate::wire::vectors::unhex;

/// Name, bytes and meaning of each committed vector.
fn vectors() -> Vec<(&'static str, Vec<u8>, Message)> {
    let texts = [
        ("request4", include_str!("../../../tests/vectors/varp/request4.hex")),
        ("refresh4", include_str!("../../../tests/vectors/varp/refresh4.hex")),
        ("reply4", include_str!("../../../tests/vectors/varp/reply4.hex")),
        ("announce6", include_str!("../../../tests/vectors/varp/announce6.hex")),
        ("correction4", include_str!("../../../tests/vectors/varp/correction4.hex")),
        ("absent", include_str!("../../../tests/vectors/varp/absent.hex")),
        ("tagged", include_str!("../../../tests/vectors/varp/tagged.hex")),
    ];
    let messages = [
        request(false),
        request(true),
        message(Body::Reply { claim: claim4(), lifetime_ms: 30_000 }),
        Message { wide: true, ..message(Body::Announce { claim: claim6(), lifetime_ms: 30_000 }) },
        Message { nonce: 0, ..message(Body::Correction { claim: claim4(), lifetime_ms: 12_345 }) },
        message(Body::Absent),
        Message {
            tag: Some(Tag {
                key_id: 0xa1b2_c3d4,
                time_ms: 0x0102_0304_0506_0708,
                tag: *b"0123456789abcdef",
            }),
            relayed: true,
            ..message(Body::Reply { claim: claim6(), lifetime_ms: 1 })
        },
    ];
    texts.into_iter().zip(messages).map(|((name, text), m)| (name, unhex(text), m)).collect()
}

fn message(body: Body) -> Message {
    let key = VifKey {
        vnet: VnetId::new(0x0102_0304).unwrap(),
        mac: Mac([0x52, 0x54, 0, 0xa, 0xb, 0xc]),
    };
    Message { key, nonce: 0x1122_3344_5566_7788, wide: false, relayed: false, body, tag: None }
}

fn request(refresh: bool) -> Message {
    let reply_to = "192.0.2.1:1798".parse().unwrap();
    Message {
        wide: !refresh,
        ..message(Body::Request { asker: coa("192.0.2.1:40001"), reply_to, refresh })
    }
}

fn coa(addr: &str) -> CareOf {
    CareOf {
        addr: addr.parse().unwrap(),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities(0x8007),
    }
}

fn claim4() -> Claim {
    Claim { stamp: Stamp(1_767_225_600_000), coa: coa("198.51.100.7:49152") }
}

fn claim6() -> Claim {
    let etherip = CareOf { kinds: EncapKinds(3), ..coa("[2001:db8::7]:49152") };
    Claim { stamp: Stamp(1_767_225_600_001), coa: etherip }
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

#[test]
fn every_mutation_is_refused_or_emitted_again() {
    let mut accepted = 0;
    for (name, bytes, message) in vectors() {
        for at in 0..bytes.len() {
            for value in 0..=u8::MAX {
                let mut mutant = bytes.clone();
                mutant[at] = value;
                if let Ok(parsed) = Message::parse(&mutant) {
                    assert_eq!(parsed.to_bytes(), mutant, "{name}, byte {at} = {value:#x}");
                    assert_eq!(parsed == message, mutant == bytes, "{name}, byte {at}");
                    accepted += 1;
                }
            }
        }
    }
    assert!(accepted > 10_000, "mutations of addresses and numbers are messages: {accepted}");
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
    let reply = message(Body::Reply { claim: claim4(), lifetime_ms: 30_000 });
    assert_eq!(refusal(&request, &[(0, 0x45)]), ParseError::Magic);
    assert_eq!(refusal(&request, &[(2, 2)]), ParseError::Version);
    assert_eq!(refusal(&request, &[(3, 0)]), ParseError::Type);
    assert_eq!(refusal(&request, &[(3, 6)]), ParseError::Type);
    assert_eq!(refusal(&request, &[(4, 0x80)]), ParseError::Reserved);
    assert_eq!(refusal(&reply, &[(5, 1)]), ParseError::Reserved, "a wide reply");
    assert_eq!(refusal(&reply, &[(5, 2)]), ParseError::Reserved, "a refreshing reply");
    assert_eq!(refusal(&request, &[(6, 16)]), ParseError::Value, "a length without a tag");
    assert_eq!(refusal(&request, &[(5, 8)]), ParseError::Value, "a flag without a length");
    assert_eq!(refusal(&request, &[(5, 8), (6, 16)]), ParseError::Truncated);
    assert_eq!(refusal(&request, &[(7, 1)]), ParseError::Reserved);
    assert_eq!(refusal(&request, &[(8, 0), (9, 0), (10, 0), (11, 0)]), ParseError::Value);
    assert_eq!(refusal(&request, &[(12, 0x53)]), ParseError::Value, "a group MAC");
    assert_eq!(refusal(&request, &[(27, 1)]), ParseError::Reserved, "a request with a stamp");
    assert_eq!(refusal(&reply, &[(40, 0)]), ParseError::Reserved, "half a CoA");
    assert_eq!(refusal(&reply, &[(40, 5)]), ParseError::Type);
    assert_eq!(refusal(&reply, &[(41, 0)]), ParseError::Value, "no way to send");
    assert_eq!(refusal(&reply, &[(41, 2)]), ParseError::Value, "a port without UDP");
    assert_eq!(refusal(&reply, &[(42, 0), (43, 0)]), ParseError::Value, "UDP without a port");
    assert_eq!(refusal(&reply, &[(48, 224)]), ParseError::Value, "multicast");
    assert_eq!(refusal(&reply, &[(48, 255), (49, 255), (50, 255), (51, 255)]), ParseError::Value);
    assert_eq!(refusal(&reply, &[(48, 0), (49, 0), (50, 0), (51, 0)]), ParseError::Value);
    assert_eq!(refusal(&reply, &[(63, 1)]), ParseError::Reserved, "after an IPv4 address");
    assert_eq!(refusal(&request, &[(66, 0), (67, 0)]), ParseError::Value, "reply to port 0");
    assert_eq!(refusal(&reply, &[(67, 1)]), ParseError::Reserved, "a reply with reply-to");
    let no_nonce = [(28, 0), (29, 0), (30, 0), (31, 0), (32, 0), (33, 0), (34, 0), (35, 0)];
    assert_eq!(refusal(&reply, &no_nonce), ParseError::Value);
}

#[test]
fn an_ipv4_mapped_address_is_refused() {
    let mapped = message(Body::Reply {
        claim: Claim { coa: coa("[::ffff:192.0.2.1]:5"), ..claim4() },
        lifetime_ms: 1,
    });
    assert_eq!(Message::parse(&mapped.to_bytes()), Err(ParseError::Value));
}

#[test]
fn the_order_of_claims_is_total_and_names_one_winner() {
    let older = claim4();
    let newer = claim6();
    assert!(newer.beats(&older) && !older.beats(&newer));
    let tie = Claim { coa: coa("198.51.100.8:49152"), ..older };
    assert!(tie.beats(&older) && !older.beats(&tie));
    let tie6 = Claim { stamp: older.stamp, ..newer };
    assert!(tie6.beats(&tie), "IPv6 above IPv4");
    let port = Claim { coa: coa("198.51.100.7:49153"), ..older };
    assert!(port.beats(&older));
    let upgraded = CareOf { capabilities: Capabilities::NONE, ..older.coa };
    let same = Claim { coa: upgraded, ..older };
    assert_eq!(same.order(&older), Ordering::Equal, "capabilities do not make an owner");
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
                 more in any::<u8>(), capabilities in any::<u16>()) -> CareOf {
        let udp = udp || !etherip;
        let kinds = u8::from(udp) | u8::from(etherip) << 1 | more & !3;
        let addr = SocketAddr::new(addr.ip(), if udp { addr.port() } else { 0 });
        CareOf { addr, kinds: EncapKinds(kinds), capabilities: Capabilities(capabilities) }
    }
}

fn any_body() -> impl Strategy<Value = Body> {
    let claim =
        (1..=u64::MAX, any_coa()).prop_map(|(stamp, coa)| Claim { stamp: Stamp(stamp), coa });
    let claimed = (claim, 1..=u32::MAX, 0..3).prop_map(|(claim, lifetime_ms, kind)| match kind {
        0 => Body::Reply { claim, lifetime_ms },
        1 => Body::Announce { claim, lifetime_ms },
        _ => Body::Correction { claim, lifetime_ms },
    });
    let request = (any_coa(), any_addr(), any::<bool>())
        .prop_map(|(asker, reply_to, refresh)| Body::Request { asker, reply_to, refresh });
    prop_oneof![claimed, request, Just(Body::Absent)]
}

proptest! {
    #[test]
    fn what_is_emitted_is_parsed(
        body in any_body(), vnet in 1..=u32::MAX, mac in any::<[u8; 6]>(), nonce in 1..=u64::MAX,
        wide in any::<bool>(), relayed in any::<bool>(),
        tag in proptest::option::of(any::<(u32, u64, [u8; 16])>()),
    ) {
        let [first, rest @ ..] = mac;
        let mut octets = [first & !1 | 2; 6];
        octets[1..].copy_from_slice(&rest);
        let key = VifKey { vnet: VnetId::new(vnet).unwrap(), mac: Mac(octets) };
        let wide = wide && matches!(body, Body::Request { .. } | Body::Announce { .. });
        let tag = tag.map(|(key_id, time_ms, tag)| Tag { key_id, time_ms, tag });
        let message = Message { key, nonce, wide, relayed, body, tag };
        prop_assert_eq!(Message::parse(&message.to_bytes()), Ok(message));
    }

    #[test]
    fn any_bytes_are_refused_or_emitted_again(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        let magic = [MAGIC.as_slice(), &[VERSION], &bytes].concat();
        for input in [bytes, magic] {
            if let Ok(message) = Message::parse(&input) {
                prop_assert_eq!(message.to_bytes(), input);
            }
        }
    }
}
