//! Committed vectors, their truncations and mutations, and round trips of arbitrary messages.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;
use crate::policy::Level;
use crate::secret::SaKey;
use crate::wire::esp::Spi;
use crate::wire::{Capabilities, EncapKinds, Longest, ParseError, VnetId};
use std::time::Duration;

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn v4() -> CareOf {
    CareOf {
        addr: "192.0.2.1:40000".parse().unwrap(),
        kinds: EncapKinds::UDP,
        capabilities: Capabilities::BUNDLE,
        longest: Longest::of_mtu(1500, Ipv4Addr::LOCALHOST.into()),
    }
}

fn v6() -> CareOf {
    CareOf {
        addr: "[2001:db8::1]:1798".parse().unwrap(),
        kinds: EncapKinds::ETHERIP,
        capabilities: Capabilities::NONE,
        longest: Longest::UNKNOWN,
    }
}

/// Every request and its bytes in hexadecimal (spaces between fields).
fn requests() -> Vec<(Request, &'static str)> {
    let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: MAC };
    let sample = |name: &str, kind, unit: &str, value| Sample {
        name: name.into(),
        kind,
        unit: unit.into(),
        value,
    };
    vec![
        (
            Request::Hello { features: Features(1 << 63 | 1), software: "vnet 1".into() },
            "02 0d 0000 00000000 8000000000000001 0006 766e65742031",
        ),
        (
            Request::Register {
                key,
                capabilities: Capabilities(3),
                queue_pairs: 2,
                active: true,
                stamp: Some(Stamp(0x0102_0304_0506_0708)),
                learn: 16,
                floor: Floor { least: Level::Auth, had: Level::Conf },
            },
            "02 01 0000 00000000 0000002a 525400123456 02 03 0003 0010 0102030405060708 01 02 0000",
        ),
        (
            Request::Register {
                key,
                capabilities: Capabilities::NONE,
                queue_pairs: 1,
                active: false,
                stamp: None,
                learn: 0,
                floor: Floor::default(),
            },
            "02 01 0000 00000000 0000002a 525400123456 01 00 0000 0000 0000000000000000 00 00 0000",
        ),
        (Request::SetActive { active: true }, "02 02 0000 00000000 01"),
        (Request::Announce, "02 03 0000 00000000"),
        (
            Request::SaNeeded { address: "192.0.2.1:40000".parse().unwrap() },
            "02 20 0000 00000000 04 00 9c40 c0000201000000000000000000000000",
        ),
        (Request::SaReady { number: 3 }, "02 21 0000 00000000 00000003"),
        (Request::Resolve { mac: MAC, refresh: true }, "02 04 0000 00000000 525400123456 01"),
        (
            Request::Stats {
                xid: 7,
                samples: vec![
                    sample("rx", Kind::Counter, "bytes", 1),
                    sample("tx_é", Kind::Gauge, "", u64::MAX),
                ],
            },
            "02 05 0000 00000007 0002 0002 7278 01 0005 6279746573 0000000000000001 \
             0005 74785fc3a9 02 0000 ffffffffffffffff",
        ),
        (Request::Show { table: Table::Varp }, "02 06 0000 00000000 03"),
        (
            Request::Flush { vnet: VnetId::new(42), mac: Some(MAC) },
            "02 07 0000 00000000 03 00 525400123456 0000002a",
        ),
        (
            Request::Flush { vnet: None, mac: None },
            "02 07 0000 00000000 00 00 000000000000 00000000",
        ),
        (
            Request::Learn { macs: vec![(MAC, None), (MAC, Some(Stamp(7)))] },
            "02 09 0000 00000000 0002 525400123456 00 0000000000000000 \
             525400123456 01 0000000000000007",
        ),
        (Request::Monitor, "02 0b 0000 00000000"),
        (Request::Forget { macs: vec![MAC] }, "02 0a 0000 00000000 0001 525400123456"),
        (
            Request::Late { mac: MAC, sender: v4().addr },
            "02 08 0000 00000000 525400123456 04 00 9c40 c0000201000000000000000000000000",
        ),
        (Request::LaneClosed { lane: 0x0102_0304 }, "02 0c 0000 00000000 01020304"),
    ]
}

/// Every event and its bytes in hexadecimal.
fn events() -> Vec<(Event, &'static str)> {
    vec![
        (
            Event::Registered {
                coa: v4(),
                group: "224.10.0.1:1798".parse().unwrap(),
                underlay_mtu: 1500,
                policy: Policy::new(&[Level::Conf, Level::None]).unwrap(),
            },
            "02 81 0000 00000000 01 00 0002 05dc 0000 04 00 9c40 c0000201000000000000000000000000 \
             04 00 0706 e00a0001000000000000000000000000 000005dc 02 05 0000",
        ),
        (
            Event::GroupKeys {
                salt: 0x0506,
                end: Duration::from_secs(86_401),
                keys: vec![
                    (Suite::AesGcm, Secret::new([0xa1; 32])),
                    (Suite::AesGmac, Secret::new([0xa2; 32])),
                ],
            },
            "02 a0 0000 00000000 0506 00015181 0002 01 00 \
             a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1 02 00 \
             a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2a2",
        ),
        (
            Event::SaOut {
                to: "192.0.2.1:40000".parse().unwrap(),
                keys: SenderKeys {
                    suite: Suite::ChaCha20Poly1305,
                    keys: vec![(
                        Spi::of(3, 5),
                        SaKey { key: Secret::new([0xa3; 32]), salt: [1, 2, 3, 4] },
                    )],
                    lifetime: Lifetime {
                        usual: Duration::from_secs(30),
                        hard: Duration::from_secs(86_400),
                    },
                },
            },
            "02 a1 0000 00000000 04 00 9c40 c0000201000000000000000000000000 03 00 00007530 00015180 0001 \
             80003005 a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3a3 01020304",
        ),
        (
            Event::SaIn {
                keys: vec![ReceiverKey {
                    number: 3,
                    suite: Suite::AesGmac,
                    receiver: Secret::new([0xa4; 32]),
                    lifetime: Lifetime {
                        usual: Duration::from_secs(30),
                        hard: Duration::from_secs(86_400),
                    },
                }],
            },
            "02 a2 0000 00000000 0001 02 00 00000003 00007530 00015180 \
             a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4a4",
        ),
        (Event::SaEnd { number: 3 }, "02 a3 0000 00000000 00000003"),
        (
            Event::Claimed { mac: MAC, stamp: Stamp(9) },
            "02 82 0000 00000000 525400123456 0000000000000009",
        ),
        (
            Event::Lost { mac: MAC, stamp: Stamp(10), coa: v6(), lifetime_ms: 30_000 },
            "02 83 0000 00000000 525400123456 000000000000000a \
             02 00 0000 0000 0000 06 00 0706 20010db8000000000000000000000001 00007530",
        ),
        (
            Event::Mapping { mac: MAC, coa: v4(), stamp: Stamp(11), lifetime_ms: 30_000 },
            "02 84 0000 00000000 525400123456 \
             01 00 0002 05dc 0000 04 00 9c40 c0000201000000000000000000000000 000000000000000b 00007530",
        ),
        (
            Event::Unresolved { mac: MAC, hold_ms: 1000 },
            "02 85 0000 00000000 525400123456 000003e8",
        ),
        (Event::Refused { mac: MAC, hold_ms: 1000 }, "02 8b 0000 00000000 525400123456 000003e8"),
        (Event::Invalidate { mac: MAC }, "02 86 0000 00000000 525400123456"),
        (Event::StatsRequest { xid: 0xdead_beef }, "02 87 0000 deadbeef"),
        (
            Event::Hello { features: Features::LANES, software: "varpd 1".into() },
            "02 8f 0000 00000000 0000000000000001 0007 76617270642031",
        ),
        (
            Event::Columns {
                columns: vec![
                    Column::text("mac"),
                    Column::number("age", "seconds"),
                    Column::detail("kind"),
                ]
                .into(),
            },
            "02 90 0000 00000000 0003 0003 6d6163 0000 00 0003 616765 0007 7365636f6e6473 01 \
             0004 6b696e64 0000 02",
        ),
        (
            Event::Row {
                cells: vec![
                    Cell::Nothing,
                    Cell::text("a"),
                    Cell::text(""),
                    Cell::Number(u64::MAX),
                    Cell::AtLeast(2),
                    Cell::Span(Duration::from_micros(3)),
                    Cell::Offset(-1),
                    Cell::Time(4),
                    Cell::Mac(MAC),
                    Cell::Address("192.0.2.1:40000".parse().unwrap()),
                ],
            },
            "02 88 0000 00000000 000a 00 01 0001 61 01 0000 02 ffffffffffffffff 03 0000000000000002 \
             04 0000000000000003 05 ffffffffffffffff 06 0000000000000004 07 525400123456 \
             08 04 00 9c40 c0000201000000000000000000000000",
        ),
        (Event::End, "02 89 0000 00000000"),
        (
            Event::Error { code: ErrorCode::Denied, text: "no".into() },
            "02 8a 0000 00000000 02 0002 6e6f",
        ),
        (
            Event::Lane { lane: 5, pair: 15, is_read: true, mac: MAC, addr: v4().addr },
            "02 8c 0000 00000000 00000005 0f 01 525400123456 \
             04 00 9c40 c0000201000000000000000000000000",
        ),
        (
            Event::Lane { lane: u32::MAX, pair: 0, is_read: false, mac: MAC, addr: v6().addr },
            "02 8c 0000 00000000 ffffffff 00 00 525400123456 \
             06 00 0706 20010db8000000000000000000000001",
        ),
        (Event::CloseLane { lane: 5 }, "02 8d 0000 00000000 00000005"),
        (
            Event::GroupLongest { longest: Longest::of_mtu(1500, Ipv4Addr::LOCALHOST.into()) },
            "02 8e 0000 00000000 05dc 0000",
        ),
        (Event::GroupLongest { longest: Longest::UNKNOWN }, "02 8e 0000 00000000 0000 0000"),
    ]
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |p: &[u8]| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap();
    digits.chunks(2).map(pair).collect()
}

/// All vectors' bytes.
fn vectors() -> Vec<Vec<u8>> {
    let requests = requests().into_iter().map(|(_, hex)| unhex(hex));
    requests.chain(events().into_iter().map(|(_, hex)| unhex(hex))).collect()
}

/// Parses as both kinds; what parses must be emitted again as it was.
fn check(bytes: &[u8]) -> bool {
    let request = Request::parse(bytes);
    if let Ok(request) = &request {
        assert_eq!(request.emit(), bytes, "{request:?}");
    }
    let event = Event::parse(bytes);
    if let Ok(event) = &event {
        assert_eq!(event.emit(), bytes, "{event:?}");
    }
    assert!(request.is_err() || event.is_err(), "both a request and an event");
    request.is_ok() || event.is_ok()
}

#[test]
fn vectors_parse_and_emit() {
    for (request, hex) in requests() {
        assert_eq!(request.emit(), unhex(hex), "{request:?}");
        assert_eq!(Request::parse(&unhex(hex)), Ok(request));
    }
    for (event, hex) in events() {
        assert_eq!(event.emit(), unhex(hex), "{event:?}");
        assert_eq!(Event::parse(&unhex(hex)), Ok(event));
    }
}

#[test]
fn every_truncation_and_extension_is_refused() {
    for bytes in vectors() {
        for len in 0..bytes.len() {
            assert!(!check(&bytes[..len]), "{len} bytes of {bytes:02x?}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(!check(&longer), "one more than {bytes:02x?}");
    }
}

#[test]
fn every_mutated_byte_is_refused_or_emitted_as_it_was() {
    for bytes in vectors() {
        for at in 0..bytes.len() {
            for value in 0..=u8::MAX {
                let mut mutated = bytes.clone();
                mutated[at] = value;
                let parses = check(&mutated);
                let header = at == 0 || at == 2 || at == 3;
                assert!(!(header && value != bytes[at] && parses), "{mutated:02x?}");
            }
        }
    }
}

#[test]
fn each_fault_has_its_name() {
    let show = unhex("02 06 0000 00000000 01");
    let with = |at: usize, value: u8| {
        let mut bytes = show.clone();
        bytes[at] = value;
        Request::parse(&bytes)
    };
    assert_eq!(with(0, 1), Err(ParseError::Version));
    assert_eq!(with(0, 3), Err(ParseError::Version));
    assert_eq!(with(1, 0x81), Err(ParseError::Type));
    assert_eq!(with(2, 1), Err(ParseError::Reserved));
    assert_eq!(with(7, 1), Err(ParseError::Reserved));
    assert_eq!(with(8, 0), Err(ParseError::Value));
    assert_eq!(with(8, 7), Err(ParseError::Value));
    assert_eq!(Request::parse(&[]), Err(ParseError::Truncated));
    // A newer version may have another layout: it's named before anything else is looked at.
    assert_eq!(Request::parse(&[3, 0]), Err(ParseError::Version));
    let vnet_0 =
        "02 01 0000 00000000 00000000 525400123456 01 00 0000 0000 0000000000000000 00 00 0000";
    assert_eq!(Request::parse(&unhex(vnet_0)), Err(ParseError::Value));
    let no_queue =
        "02 01 0000 00000000 0000002a 525400123456 00 00 0000 0000 0000000000000000 00 00 0000";
    assert_eq!(Request::parse(&unhex(no_queue)), Err(ParseError::Value));
    let no_level =
        "02 01 0000 00000000 0000002a 525400123456 01 00 0000 0000 0000000000000000 03 00 0000";
    assert_eq!(Request::parse(&unhex(no_level)), Err(ParseError::Value));
    let reserved =
        "02 01 0000 00000000 0000002a 525400123456 01 00 0000 0000 0000000000000000 00 00 0001";
    assert_eq!(Request::parse(&unhex(reserved)), Err(ParseError::Reserved));
}

#[test]
fn oversized_contents_are_cut_to_a_valid_message() {
    let long = "é".repeat(MAX_ERROR_TEXT);
    let sample =
        Sample { name: long.clone(), kind: Kind::Counter, unit: long.clone(), value: u64::MAX };
    let stats = Request::Stats { xid: 1, samples: vec![sample; MAX_VALUES + 1] };
    let bytes = stats.emit();
    assert!(bytes.len() <= MAX_LEN, "{}", bytes.len());
    let Ok(Request::Stats { samples, .. }) = Request::parse(&bytes) else { panic!("{bytes:?}") };
    assert_eq!(samples.len(), MAX_VALUES);
    assert_eq!((samples[0].name.len(), samples[0].unit.len()), (MAX_NAME, MAX_UNIT));

    let column = Column { name: long.clone().into(), ..Column::number("", "") };
    let columns = vec![Column { unit: long.clone().into(), ..column }; MAX_CELLS + 1];
    let row = Event::Row { cells: vec![Cell::text(long.clone()); MAX_CELLS + 1] };
    for event in [row, Event::Columns { columns: columns.into() }] {
        let bytes = event.emit();
        assert!(bytes.len() <= MAX_LEN, "{}", bytes.len());
        assert!(Event::parse(&bytes).is_ok());
    }
    let hello = Request::Hello { features: Features::NONE, software: long.clone() };
    assert!(Request::parse(&hello.emit()).is_ok());

    let bytes = Event::Error { code: ErrorCode::Failed, text: format!("a{long}") }.emit();
    let Ok(Event::Error { text, .. }) = Event::parse(&bytes) else { panic!("{bytes:?}") };
    assert_eq!(text.len(), MAX_ERROR_TEXT - 1);
}

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(Mac)
}

fn vnet() -> impl Strategy<Value = VnetId> {
    (1..=u32::MAX).prop_map(|id| VnetId::new(id).unwrap())
}

fn stamp() -> impl Strategy<Value = Stamp> {
    any::<u64>().prop_map(Stamp)
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        any::<([u8; 4], u16)>().prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into()),
        any::<([u8; 16], u16)>().prop_map(|(ip, port)| (Ipv6Addr::from(ip), port).into()),
    ]
}

fn coa() -> impl Strategy<Value = CareOf> {
    (addr(), any::<u8>(), any::<u16>(), any::<u32>()).prop_map(
        |(addr, kinds, capabilities, mtu)| CareOf {
            addr,
            kinds: EncapKinds(kinds),
            capabilities: Capabilities(capabilities),
            longest: Longest::of_mtu(mtu % 70_000, addr.ip()),
        },
    )
}

fn text() -> impl Strategy<Value = String> {
    // At most 4 bytes each.
    proptest::collection::vec(any::<char>(), 0..=MAX_SOFTWARE / 4).prop_map(String::from_iter)
}

fn unit() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..=MAX_UNIT / 4).prop_map(String::from_iter)
}

fn sample() -> impl Strategy<Value = Sample> {
    (text(), any::<bool>(), unit(), any::<u64>()).prop_map(|(name, is_gauge, unit, value)| Sample {
        name,
        kind: if is_gauge { Kind::Gauge } else { Kind::Counter },
        unit,
        value,
    })
}

fn column() -> impl Strategy<Value = Column> {
    (text(), unit(), any::<(bool, bool)>()).prop_map(|(name, unit, (is_number, is_detail))| {
        Column { name: name.into(), unit: unit.into(), is_number, is_detail }
    })
}

fn cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        Just(Cell::Nothing),
        text().prop_map(Cell::text),
        any::<u64>().prop_map(Cell::Number),
        any::<u64>().prop_map(Cell::AtLeast),
        any::<u64>().prop_map(|us| Cell::Span(Duration::from_micros(us))),
        any::<i64>().prop_map(Cell::Offset),
        any::<u64>().prop_map(Cell::Time),
        mac().prop_map(Cell::Mac),
        addr().prop_map(Cell::Address),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let register = (vnet(), mac(), any::<u16>(), 1..=MAX_QUEUE_PAIRS, any::<bool>())
        .prop_flat_map(|fields| (Just(fields), proptest::option::of(stamp()), any::<u16>()))
        .prop_map(|((vnet, mac, capabilities, queue_pairs, active), stamp, learn)| {
            let capabilities = Capabilities(capabilities);
            let key = VifKey { vnet, mac };
            let floor = Floor { least: Level::None, had: Level::Conf };
            Request::Register { key, capabilities, queue_pairs, active, stamp, learn, floor }
        });
    let samples = proptest::collection::vec(sample(), 0..=MAX_VALUES);
    let table = proptest::sample::select(vec![
        Table::Vnets,
        Table::Vifs,
        Table::Varp,
        Table::Stats,
        Table::Peers,
    ]);
    prop_oneof![
        (any::<u64>(), text()).prop_map(|(features, software)| Request::Hello {
            features: Features(features),
            software
        }),
        register,
        any::<bool>().prop_map(|active| Request::SetActive { active }),
        Just(Request::Announce),
        Just(Request::Monitor),
        (mac(), any::<bool>()).prop_map(|(mac, refresh)| Request::Resolve { mac, refresh }),
        (any::<u32>(), samples).prop_map(|(xid, samples)| Request::Stats { xid, samples }),
        table.prop_map(|table| Request::Show { table }),
        (proptest::option::of(vnet()), proptest::option::of(mac()))
            .prop_map(|(vnet, mac)| Request::Flush { vnet, mac }),
        proptest::collection::vec((mac(), proptest::option::of(stamp())), 0..=MAX_MACS)
            .prop_map(|macs| Request::Learn { macs }),
        proptest::collection::vec(mac(), 0..=MAX_MACS).prop_map(|macs| Request::Forget { macs }),
        (mac(), addr()).prop_map(|(mac, sender)| Request::Late { mac, sender }),
        any::<u32>().prop_map(|lane| Request::LaneClosed { lane }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let code = proptest::sample::select(vec![
        ErrorCode::Invalid,
        ErrorCode::Denied,
        ErrorCode::NotFound,
        ErrorCode::Limit,
        ErrorCode::Failed,
        ErrorCode::Warning,
        ErrorCode::Taken,
    ]);
    prop_oneof![
        (coa(), addr(), any::<u32>()).prop_map(|(coa, group, underlay_mtu)| Event::Registered {
            policy: Level::Auth.into(),
            coa,
            group,
            underlay_mtu
        }),
        (mac(), stamp()).prop_map(|(mac, stamp)| Event::Claimed { mac, stamp }),
        (mac(), stamp(), coa(), any::<u32>()).prop_map(|(mac, stamp, coa, lifetime_ms)| {
            Event::Lost { mac, stamp, coa, lifetime_ms }
        }),
        (mac(), coa(), stamp(), any::<u32>()).prop_map(|(mac, coa, stamp, lifetime_ms)| {
            Event::Mapping { mac, coa, stamp, lifetime_ms }
        }),
        (mac(), any::<u32>()).prop_map(|(mac, hold_ms)| Event::Unresolved { mac, hold_ms }),
        (mac(), any::<u32>()).prop_map(|(mac, hold_ms)| Event::Refused { mac, hold_ms }),
        mac().prop_map(|mac| Event::Invalidate { mac }),
        any::<u32>().prop_map(|xid| Event::StatsRequest { xid }),
        (any::<u64>(), text()).prop_map(|(features, software)| Event::Hello {
            features: Features(features),
            software
        }),
        proptest::collection::vec(column(), 0..=MAX_CELLS)
            .prop_map(|columns| Event::Columns { columns: columns.into() }),
        proptest::collection::vec(cell(), 0..=MAX_CELLS).prop_map(|cells| Event::Row { cells }),
        Just(Event::End),
        (code, text()).prop_map(|(code, text)| Event::Error { code, text }),
        (any::<(u32, bool)>(), 0..MAX_QUEUE_PAIRS, mac(), addr()).prop_map(
            |((lane, is_read), pair, mac, addr)| Event::Lane { lane, pair, is_read, mac, addr }
        ),
        any::<u32>().prop_map(|lane| Event::CloseLane { lane }),
        (1280_u16..).prop_map(|len| Event::GroupLongest {
            longest: Longest::new(len, Ipv6Addr::UNSPECIFIED.into()).unwrap(),
        }),
    ]
}

proptest! {
    #[test]
    fn requests_round_trip(request in request()) {
        let bytes = request.emit();
        prop_assert!(bytes.len() <= MAX_LEN);
        prop_assert_eq!(Request::parse(&bytes), Ok(request));
    }

    #[test]
    fn events_round_trip(event in event()) {
        let bytes = event.emit();
        prop_assert!(bytes.len() <= MAX_LEN);
        prop_assert_eq!(Event::parse(&bytes), Ok(event));
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        kind in any::<u8>(),
        body in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = vec![VERSION, kind, 0, 0, 0, 0, 0, 0];
        bytes.extend(body);
        check(&bytes);
    }
}
