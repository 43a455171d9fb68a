//! Frames of all kinds of headers, judged by etherparse where both read them.

use etherparse::SlicedPacket;
use etherparse::{Ipv6ExtensionSlice, LaxNetSlice, LaxSlicedPacket, LinkExtSlice, NetSlice};
use proptest::prelude::*;

use super::ethernet::MAX_TAGS;
use super::extension::{Extension, ExtensionSet, MAX_EXTENSIONS};
use super::*;

/// Numbers of extension headers: those of RFC 8200 in its order, authentication, mobility, HIP,
/// Shim6.
const KINDS: [u8; 8] = [0, 60, 43, 44, 51, 135, 139, 140];
const TAGS: [u16; 5] = [0x8100, 0x88a8, 0x9100, 0x9200, 0x9300];

/// A frame that is described from outside in: tags, extension headers with their lengths beyond the
/// shortest, protocol.
#[derive(Clone, Debug)]
struct Frame {
    tags: Vec<u16>,
    is_v6: bool,
    /// Words of four bytes, in IPv4.
    options: usize,
    extensions: Vec<(u8, u8)>,
    protocol: u8,
    payload: Vec<u8>,
}

impl Frame {
    fn v6(extensions: &[(u8, u8)]) -> Self {
        let extensions = extensions.to_vec();
        Self { tags: vec![], is_v6: true, options: 0, extensions, protocol: 17, payload: udp() }
    }

    fn v4() -> Self {
        Self { is_v6: false, ..Self::v6(&[]) }
    }

    fn chain(&self) -> (u8, Vec<u8>) {
        let mut bytes = Vec::new();
        for (at, &(kind, more)) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(at + 1).map_or(self.protocol, |next| next.0);
            let (units, len) = match kind {
                44 => (0, 8),
                51 => (more + 1, 12 + 4 * usize::from(more)),
                _ => (more, 8 + 8 * usize::from(more)),
            };
            let start = bytes.len();
            bytes.extend([next, units]);
            // Padding, no segments left, no offset.
            bytes.resize(start + len, 0);
        }
        (self.extensions.first().map_or(self.protocol, |first| first.0), bytes)
    }

    fn build(&self) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 7]);
        }
        let (first, chain) = self.chain();
        let len = chain.len() + self.payload.len();
        if self.is_v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((len as u16).to_be_bytes());
            frame.extend([first, 64]);
            frame.extend([[0xfd; 16], [0xfe; 16]].concat());
        } else {
            let header_len = 20 + 4 * self.options;
            frame.extend([8, 0, 0x40 | (header_len / 4) as u8, 0]);
            frame.extend(((header_len + len) as u16).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, first, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            frame.extend([1].repeat(4 * self.options));
        }
        [frame, chain, self.payload.clone()].concat()
    }
}

/// A datagram without payload.
fn udp() -> Vec<u8> {
    vec![4, 0, 8, 0, 0, 8, 0, 0]
}

fn parse(frame: &[u8]) -> Result<Packet, Stop> {
    Packet::parse(frame, frame.len(), Lengths::FieldsUnlessZero)
}

#[test]
fn two_tags_are_read_of_whatever_type() {
    for tags in [vec![], vec![0x8100], vec![0x88a8, 0x8100], vec![0x9200, 0x9300]] {
        let has_old_tags = tags.iter().any(|tag| *tag > 0x9000);
        let frame = Frame { tags: tags.clone(), ..Frame::v4() }.build();
        let ethernet = Ethernet::parse(&frame).unwrap();
        assert_eq!((ethernet.ether_type, ethernet.payload_at), (0x800, 14 + 4 * tags.len()));
        assert_eq!(ethernet.has_old_tags, has_old_tags);
        assert_eq!(parse(&frame).unwrap().network_at, ethernet.payload_at);
    }
    for third in TAGS {
        let frame = Frame { tags: vec![0x88a8, 0x8100, third], ..Frame::v4() }.build();
        assert_eq!(Ethernet::parse(&frame).unwrap().ether_type, third);
        assert_eq!(parse(&frame), Err(Stop { at: 22, reason: Reason::NotIp }));
    }
}

#[test]
fn a_length_in_place_of_a_type_is_no_packet() {
    let mut frame = Frame::v4().build();
    frame[12..14].copy_from_slice(&[0, 56]);
    assert_eq!(parse(&frame), Err(Stop { at: 14, reason: Reason::NotIp }));
}

#[test]
fn a_truncated_frame_says_how_far_the_walk_came() {
    let tags = vec![0x88a8, 0x8100];
    let v6 = Frame { tags: tags.clone(), ..Frame::v6(&[(0, 0), (43, 1), (51, 0), (44, 0)]) };
    let v4 = Frame { tags, options: 2, extensions: vec![(51, 3)], ..Frame::v4() };
    // Where each header begins, and where its successor does.
    let v6_headers =
        [(0, 14), (12, 18), (16, 22), (22, 62), (62, 70), (70, 86), (86, 98), (98, 106)];
    let v4_headers = [(0, 14), (12, 18), (16, 22), (22, 50), (50, 74)];
    for (frame, headers) in [(v6, &v6_headers[..]), (v4, &v4_headers[..])] {
        let frame = frame.build();
        let whole = parse(&frame).unwrap();
        for cut in 0..=frame.len() {
            let found = Packet::parse(&frame[..cut], frame.len(), Lengths::FieldsUnlessZero);
            let missing = headers.iter().find(|(_, end)| cut < *end);
            let expected = match missing {
                Some((at, _)) => Err(Stop { at: *at, reason: Reason::Truncated }),
                None => Ok(whole),
            };
            assert_eq!(found, expected, "{cut}");
        }
    }
}

#[test]
fn each_kind_of_extension_header_is_stepped_over() {
    for kind in KINDS {
        let packet = parse(&Frame::v6(&[(kind, 2)]).build()).unwrap();
        let len = match kind {
            44 => 8,
            51 => 20,
            _ => 24,
        };
        assert_eq!((packet.protocol, packet.transport_at), (17, 54 + len), "{kind}");
        assert_eq!(packet.fragment.is_any(), kind == 44);
        assert!(!packet.fragment.is_later());
    }
    let packet = parse(&Frame { extensions: vec![(51, 2)], ..Frame::v4() }.build()).unwrap();
    assert_eq!((packet.protocol, packet.transport_at), (17, 54));
    assert_eq!(packet.extensions, ExtensionSet::NONE.with(Extension::Authentication));
    for kind in KINDS.into_iter().filter(|kind| *kind != 51) {
        let frame = Frame { extensions: vec![(kind, 0)], ..Frame::v4() }.build();
        let packet = parse(&frame).unwrap();
        assert_eq!((packet.protocol, packet.transport_at), (kind, 34), "no header of IPv4");
    }
}

#[test]
fn chains_have_an_end_and_an_order() {
    let chain = |extensions: &[(u8, u8)]| parse(&Frame::v6(extensions).build());
    assert_eq!(chain(&[(60, 0); MAX_EXTENSIONS]).unwrap().transport_at, 54 + 64);
    let stop = Stop { at: 54 + 64, reason: Reason::TooManyExtensions };
    assert_eq!(chain(&[(60, 0); MAX_EXTENSIONS + 1]), Err(stop));
    let malformed = Err(Stop { at: 62, reason: Reason::Malformed });
    assert_eq!(chain(&[(60, 0), (0, 0)]), malformed, "hop-by-hop options are first");
    assert_eq!(chain(&[(44, 0), (44, 0)]), malformed, "a fragment of a fragment");
    let mut short = Frame::v6(&[(60, 0), (51, 0)]).build();
    short[63] = 0;
    assert_eq!(parse(&short), malformed, "shorter than an authentication header");
}

#[test]
fn a_packet_ends_within_its_frame() {
    for frame in [Frame::v4(), Frame::v6(&[])] {
        let mut frame = frame.build();
        let end = frame.len();
        frame.resize(80, 0);
        assert_eq!(parse(&frame).unwrap().end, end, "padding");
        let field = if frame[12] == 8 { 17 } else { 19 };
        frame[field] = 200;
        assert_eq!(parse(&frame), Err(Stop { at: 14, reason: Reason::Malformed }));
        let cut = Packet::parse(&frame, frame.len(), Lengths::Frame).unwrap();
        assert_eq!(cut.end, frame.len());
        frame[field] = 0;
        assert_eq!(parse(&frame).unwrap().end, frame.len());
    }
    let mut short = Frame::v4().build();
    short[17] = 19;
    assert_eq!(parse(&short), Err(Stop { at: 14, reason: Reason::Malformed }));
    let none = Packet::parse(&Frame::v4().build()[..40], 40, Lengths::Fields);
    assert_eq!(none, Err(Stop { at: 14, reason: Reason::Malformed }), "longer than its frame");
}

#[test]
fn behind_a_later_fragment_is_payload() {
    let mut v4 = Frame { extensions: vec![(51, 0)], ..Frame::v4() }.build();
    let mut v6 = Frame::v6(&[(44, 0), (60, 0)]).build();
    assert!(!parse(&v4).unwrap().fragment.is_any());
    assert!(!parse(&v6).unwrap().fragment.is_later(), "whole, with a fragment header");
    (v4[20], v6[57]) = (0x20, 1);
    for frame in [&v4, &v6] {
        let packet = parse(frame).unwrap();
        assert!(packet.fragment.is_any() && !packet.fragment.is_later());
        assert_eq!(packet.protocol, 17, "the first");
    }
    (v4[21], v6[57]) = (1, 8);
    let (v4, v6) = (parse(&v4).unwrap(), parse(&v6).unwrap());
    assert!(v4.fragment.is_later() && v6.fragment.is_later());
    assert_eq!((v4.protocol, v4.transport_at), (51, 34));
    assert_eq!((v6.protocol, v6.transport_at), (60, 62));
}

/// Protocol, beginning and end of what IP carries, by etherparse.
fn reference(frame: &[u8]) -> Option<(u8, usize, usize)> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let payload = match packet.net? {
        LaxNetSlice::Ipv4(ip) => ip.payload().clone(),
        LaxNetSlice::Ipv6(ip) => ip.payload().clone(),
        LaxNetSlice::Arp(_) => return None,
    };
    let start = payload.payload.as_ptr().addr() - frame.as_ptr().addr();
    Some((payload.ip_number.0, start, start + payload.payload.len()))
}

/// Where that begins if etherparse finds nothing wrong with the frame, and how many fragment
/// headers are before it.
fn sound(frame: &[u8]) -> Option<(usize, usize)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let is_vlan = |ext: &LinkExtSlice<'_>| matches!(ext, LinkExtSlice::Vlan(_));
    if packet.link_exts.len() > MAX_TAGS || !packet.link_exts.iter().all(is_vlan) {
        return None;
    }
    let is_fragment = |ext: &Ipv6ExtensionSlice<'_>| matches!(ext, Ipv6ExtensionSlice::Fragment(_));
    let (payload, fragments) = match packet.net? {
        NetSlice::Ipv4(ip) => (ip.payload().payload, 0),
        NetSlice::Ipv6(ip) => {
            let fragments = ip.extensions().clone().into_iter().filter(is_fragment).count();
            (ip.payload().payload, fragments)
        }
        NetSlice::Arp(_) => return None,
    };
    Some((payload.as_ptr().addr() - frame.as_ptr().addr(), fragments))
}

/// Whether etherparse reads the same headers: it knows only one of the old tags, goes on behind
/// later fragments, and reads neither mobility, HIP nor Shim6.
fn is_known_to_etherparse(frame: &[u8], packet: &Packet) -> bool {
    let mut tags = frame[12..packet.network_at - 2].chunks(4);
    let unknown = [Extension::Mobility, Extension::Hip, Extension::Shim6];
    !tags.any(|tag| matches!(tag, [0x92 | 0x93, 0, ..]))
        && !unknown.iter().any(|kind| packet.extensions.contains(*kind))
        && !packet.fragment.is_later()
}

fn assert_agrees(frame: &[u8]) {
    let found = parse(frame);
    match (&found, reference(frame)) {
        // etherparse reads one authentication header of IPv4.
        (Ok(_), Some((51, ..))) => {}
        (Ok(packet), expected) if is_known_to_etherparse(frame, packet) => {
            let offsets = (packet.protocol, packet.transport_at, packet.end);
            assert_eq!(Some(offsets), expected, "{frame:02x?}");
        }
        _ => {}
    }
    // The other way round, a walk ends earlier only in headers that etherparse does not read, in a
    // second fragment header, or in a long chain.
    if let (Err(stop), Some((start, fragments))) = (&found, sound(frame)) {
        let is_excused = match stop.reason {
            Reason::TooManyExtensions => true,
            Reason::Malformed => stop.at >= start || fragments > 1,
            Reason::Truncated | Reason::NotIp => false,
        };
        assert!(is_excused, "{stop:?} {frame:02x?}");
    }
}

prop_compose! {
    fn frames()(
        tags in prop::collection::vec(prop::sample::select(&TAGS[..]), 0..4),
        is_v6: bool,
        options in prop_oneof![3 => Just(0usize), 1 => 1usize..=10],
        extensions in prop::collection::vec((prop::sample::select(&KINDS[..]), 0u8..4), 0..4),
        protocol in prop_oneof![Just(6u8), Just(17), Just(58), Just(1), any::<u8>()],
        payload in prop::collection::vec(any::<u8>(), 0..60),
    ) -> Frame {
        Frame { tags, is_v6, options, extensions, protocol, payload }
    }
}

proptest! {
    #[test]
    fn agrees_with_etherparse(frame in frames(), padding in 0usize..20) {
        let mut frame = frame.build();
        assert_agrees(&frame);
        frame.resize(frame.len() + padding, 0);
        assert_agrees(&frame);
    }

    #[test]
    fn mutations_and_truncations_agree_with_etherparse(
        frame in frames(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        len in any::<prop::sample::Index>(),
    ) {
        let mut frame = frame.build();
        for (at, value) in changes {
            let at = at.index(frame.len());
            frame[at] = value;
            assert_agrees(&frame);
        }
        frame.truncate(len.index(frame.len()).max(14));
        assert_agrees(&frame);
    }

    #[test]
    fn noise_never_gives_offsets_outside(
        mut frame in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0usize..3,
        total in 0usize..70_000,
    ) {
        if let Some(field) = frame.get_mut(12..15) {
            field.copy_from_slice(&[[8, 0, 0x45], [0x86, 0xdd, 0x60], [0x81, 0, 0]][kind]);
        }
        for lengths in [Lengths::Fields, Lengths::FieldsUnlessZero, Lengths::Frame] {
            if let Ok(packet) = Packet::parse(&frame, total, lengths) {
                prop_assert!(packet.network_at < packet.transport_at);
                prop_assert!(packet.transport_at <= packet.end.min(frame.len()));
                prop_assert!(packet.end <= total);
            }
        }
    }
}
