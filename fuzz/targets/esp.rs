//! Datagrams of a secured vnet: nothing is let through that no holder of a key has made, or that was
//! let through before; what is let through is what was sealed, whatever that is; and every
//! datagram that is not has its drop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use vnet::metrics::{VifCounter, VifCounters};
use vnet::policy::{Level, Suite};
use vnet::secret::{SaKey, Secret};
use vnet::security::group::TOLERANCE;
use vnet::security::inbound::Inbound;
use vnet::security::replay::SIZE;
use vnet::security::sadb::sender_key;
use vnet::time::{Instant, Now};
use vnet::tunnel::protect::Protection;
use vnet::tunnel::rx::{Payload, Receiver};
use vnet::underlay::Port;
use vnet::vif::link::CAPABILITIES;
use vnet::wire::esp::{ALIGNMENT, HEAD_LEN, Head, NEXT_HEADER, Spi, padding};
use vnet::wire::{Mac, VifKey, VnetId};

use super::Input;

/// Wall clock of the receiver at its start, in milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;
/// Packets that are remembered, to be sent again and altered.
const MOST_KEPT: usize = 64;
const HOUR: Duration = Duration::from_secs(3600);

/// Who numbers packets: a sender of a session, or a start of a sender to the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Line {
    Vif { session: u32, index: u32 },
    Group { from: SocketAddr, salt: u16, second: u32, random: u32 },
}

/// A packet that a holder of a key has made.
#[derive(Clone)]
struct Packet {
    line: Line,
    /// Which of the group's keys.
    key: u8,
    number: u64,
    from: SocketAddr,
    bytes: Vec<u8>,
    /// What it protects, if that ends as it should.
    payload: Option<Vec<u8>>,
}

/// What the receiver should know of a line.
#[derive(Default)]
struct Seen {
    /// The key of a group's sender, who keeps it for a start.
    key: Option<u8>,
    highest: u64,
    numbers: BTreeSet<u64>,
}

impl Seen {
    /// The number that a receiver takes these low bits for: the lowest that is not behind the window.
    fn infer(&self, low: u32) -> Option<u64> {
        let bottom = i128::from(self.highest) - i128::from(SIZE) + 1;
        let number = bottom + (i128::from(low) - bottom).rem_euclid(1 << 32);
        u64::try_from(number).ok()
    }

    fn is_fresh(&self, number: u64) -> bool {
        let is_known = number == 0 || self.numbers.contains(&number);
        !is_known && (number > self.highest || self.highest - number < SIZE)
    }

    fn mark(&mut self, number: u64, key: u8) {
        self.key = Some(key);
        self.numbers.insert(number);
        self.highest = self.highest.max(number);
    }
}

struct Bed {
    suite: Suite,
    protection: Protection,
    receiver: Receiver,
    counters: VifCounters,
    now: Instant,
    /// Sessions that there still are.
    sessions: BTreeSet<u32>,
    seen: BTreeMap<Line, Seen>,
    kept: Vec<Packet>,
    /// Datagrams that arrived, and those that were let through.
    offered: u64,
    opened: u64,
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut bed = Bed::new(match input.u8() % 3 {
        0 => Suite::AesGcm,
        1 => Suite::AesGmac,
        _ => Suite::ChaCha20Poly1305,
    });
    while !input.0.is_empty() {
        match input.u8() % 8 {
            0 => {
                let (port, from) = (port(input.u8()), address(input.u8()));
                let Some(bytes) = input.chunk() else { return };
                assert_eq!(bed.offer(port, from, bytes.to_vec()), None, "nobody sealed it");
            }
            1..=3 => {
                let from = address(input.u8());
                let line = bed.line(from, &mut input);
                let number = bed.number(line, &mut input);
                let form = input.u8();
                let Some(content) = input.chunk() else { return };
                bed.keep(seal(bed.suite, (line, form >> 6), number, from, content, form % 4 == 0));
                if input.u8() % 4 != 0 {
                    bed.send(bed.kept.len() - 1, None);
                }
            }
            4 => bed.send(input.u8().into(), None),
            5 => {
                let (which, at, change) = (input.u8(), input.u16(), input.u8());
                bed.send(which.into(), Some((at.into(), change)));
            }
            6 => bed.pass(Duration::from_millis(input.u16().into())),
            _ => bed.end_session(u32::from(input.u8() % 4)),
        }
    }
}

fn port(byte: u8) -> Port {
    if byte.is_multiple_of(2) { Port::Own } else { Port::Group }
}

fn address(byte: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2], u16::from(byte % 4)))
}

fn session_key(number: u32) -> Secret {
    Secret::new([number.to_be_bytes()[3] | 0x40; 32])
}

/// From the third on, those of other vnets.
fn group_key(number: u8) -> Secret {
    Secret::new([number | 0x80; 32])
}

impl Bed {
    fn new(suite: Suite) -> Self {
        let vnet = VnetId::new(42).expect("not 0");
        let key = VifKey { vnet, mac: Mac([2, 0, 0, 0, 0, 1]) };
        let inbound = Inbound::new(vnet, suite.level());
        for number in 0..3 {
            inbound.insert(number, suite, session_key(number), HOUR, Instant::ZERO);
        }
        // One of another policy is not taken.
        let other = if suite.level() == Level::Auth { Suite::AesGcm } else { Suite::AesGmac };
        inbound.insert(3, other, session_key(3), HOUR, Instant::ZERO);
        inbound.set_group(vec![(suite, group_key(0)), (suite, group_key(1))]);
        let mut bed = Self {
            suite,
            protection: Protection::new(Arc::new(inbound)),
            receiver: Receiver {
                key,
                own: ([192, 0, 2, 1], 4000).into(),
                capabilities: CAPABILITIES,
            },
            counters: VifCounters::default(),
            now: Instant::ZERO,
            sessions: (0..3).collect(),
            seen: BTreeMap::new(),
            kept: Vec::new(),
            offered: 0,
            opened: 0,
        };
        bed.pass(Duration::ZERO);
        bed
    }

    fn wall_ms(&self) -> u64 {
        EPOCH_MS + self.now.as_micros() / 1000
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.protection.set_clock(Now { mono: self.now, wall_ms: self.wall_ms() });
    }

    fn end_session(&mut self, number: u32) {
        self.protection.inbound().remove(number);
        self.sessions.remove(&number);
    }

    fn line(&self, from: SocketAddr, input: &mut Input<'_>) -> Line {
        let (kind, which) = (input.u8(), input.u8());
        if kind % 2 == 0 {
            return Line::Vif { session: u32::from(which % 5), index: u32::from(kind >> 6) };
        }
        let now = u32::try_from(self.wall_ms() / 1000).expect("before 2106");
        let second = now - 128 + u32::from(input.u8());
        let random = u32::from(which >> 1 & 3) * 0x0101_0101;
        Line::Group { from, salt: u16::from(which % 2), second, random }
    }

    /// Any number, or one near the window.
    fn number(&self, line: Line, input: &mut Input<'_>) -> u64 {
        let highest = self.seen.get(&line).map_or(0, |seen| seen.highest);
        let (kind, by) = (input.u8(), input.u16());
        let number = match kind % 4 {
            0 => input.u64(),
            1 => highest.wrapping_sub(by.into()),
            2 => highest.wrapping_add(u64::from(by) << 17),
            _ => highest.wrapping_add(by.into()),
        };
        if let Line::Group { .. } = line { number & 0xffff_ffff } else { number }
    }

    fn keep(&mut self, packet: Packet) {
        if self.kept.len() == MOST_KEPT {
            self.kept.remove(0);
        }
        self.kept.push(packet);
    }

    /// A packet arrives, perhaps altered at some place.
    fn send(&mut self, which: usize, change: Option<(usize, u8)>) {
        let Some(packet) = self.kept.get(which % self.kept.len().max(1)).cloned() else { return };
        let port = if let Line::Vif { .. } = packet.line { Port::Own } else { Port::Group };
        let mut bytes = packet.bytes.clone();
        if let Some((at, change)) = change.filter(|(_, change)| *change != 0) {
            let at = at % bytes.len();
            bytes[at] ^= change;
            // A number is not its neighbour's even if that one was never seen.
            assert_eq!(self.offer(port, packet.from, bytes), None, "an altered packet is dropped");
            return;
        }
        let expected = self.expect(&packet);
        assert_eq!(self.offer(port, packet.from, bytes), expected, "{:?}", packet.line);
    }

    /// What should come of an authentic packet.
    fn expect(&mut self, packet: &Packet) -> Option<Vec<u8>> {
        let (now, number) = (self.wall_ms() / 1000, packet.number);
        let inferred = match packet.line {
            Line::Vif { session, .. } if !self.sessions.contains(&session) => return None,
            Line::Vif { .. } => {
                let seen = self.seen.entry(packet.line).or_default();
                seen.infer(u32::try_from(number & 0xffff_ffff).expect("32 bits"))
            }
            Line::Group { .. } if packet.key >= 2 => return None,
            Line::Group { second, .. } if now.abs_diff(second.into()) > TOLERANCE.as_secs() => {
                return None;
            }
            Line::Group { .. } => Some(number),
        };
        let seen = self.seen.entry(packet.line).or_default();
        let is_of_another = seen.key.is_some_and(|key| key != packet.key);
        if inferred != Some(number) || !seen.is_fresh(number) || is_of_another {
            return None;
        }
        seen.mark(number, packet.key);
        packet.payload.clone()
    }

    /// A datagram arrives; returns what was in it if it is let through.
    fn offer(&mut self, port: Port, from: SocketAddr, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let (len, mut opened) = (bytes.len(), Vec::<Range<usize>>::new());
        let opening = self.protection.opening(self.now);
        let own = self.receiver.own;
        let message = (from, &mut bytes[..], len.max(1));
        opening.open_message(port, own, message, &mut opened, &self.counters);
        self.offered += 1;
        self.opened += opened.len() as u64;
        assert_eq!(self.opened + self.drops(), self.offered, "let through, or counted");
        let inner = bytes[opened.first()?.clone()].to_vec();
        assert!(inner.len() + HEAD_LEN < len);
        self.accept(port, from, &inner);
        Some(inner)
    }

    fn drops(&self) -> u64 {
        static ALL: LazyLock<Vec<VifCounter>> = LazyLock::new(|| {
            let is_drop = |counter: &&VifCounter| counter.name().starts_with("rx_drop");
            VifCounter::ALL.iter().filter(is_drop).copied().collect()
        });
        ALL.iter().map(|counter| self.counters.get(*counter)).sum()
    }

    /// What a member has sealed may be anything.
    fn accept(&self, port: Port, from: SocketAddr, inner: &[u8]) {
        match self.receiver.accept(port, from, inner) {
            Ok(Payload::Frame(entry)) => _ = self.receiver.accept_frame(port, entry.frame),
            Ok(Payload::Bundle(entries)) => {
                for entry in entries.flatten() {
                    let _ = self.receiver.accept_frame(port, entry.frame);
                }
            }
            Ok(Payload::Piece(..) | Payload::Handover(_) | Payload::Echo(_)) | Err(_) => {}
        }
    }
}

/// Seals what a sender would: the content and a trailer, or instead of both only the content. A key
/// of a session has no number.
fn seal(
    suite: Suite,
    (line, key): (Line, u8),
    number: u64,
    from: SocketAddr,
    content: &[u8],
    is_whole: bool,
) -> Packet {
    let key = if let Line::Vif { .. } = line { 0 } else { key };
    let mut body = content.to_vec();
    if is_whole {
        body.resize(body.len().next_multiple_of(ALIGNMENT).max(ALIGNMENT), 0);
    } else {
        let pad = u8::try_from(padding(body.len())).expect("at most 3");
        body.extend((1..=pad).chain([pad, NEXT_HEADER]));
    }
    let payload = unpadded(&body).map(<[u8]>::to_vec);
    let bytes = forge(suite, (line, key), number, &body);
    Packet { line, key, number, from, bytes, payload }
}

/// What a sealed body protects, if it ends as RFC 4303 (2.4) says.
fn unpadded(body: &[u8]) -> Option<&[u8]> {
    let [rest @ .., pad, NEXT_HEADER] = body else { return None };
    let (payload, padding_bytes) = rest.split_at_checked(rest.len().checked_sub((*pad).into())?)?;
    let is_counted = padding_bytes.iter().zip(1..).all(|(byte, value)| *byte == value);
    (is_counted && padding(payload.len()) == usize::from(*pad)).then_some(payload)
}

/// Seals a body with any number, which a [`vnet::security::esp::Sealer`] does not do.
fn forge(suite: Suite, (line, key): (Line, u8), number: u64, body: &[u8]) -> Vec<u8> {
    let low = u32::try_from(number & 0xffff_ffff).expect("32 bits");
    let (spi, iv, sa) = match line {
        Line::Vif { session, index } => {
            (Spi::of(session, index), number, sender_key(&session_key(session), index))
        }
        Line::Group { from, salt, second, random } => {
            let spi = Spi::of_group(VnetId::new(42).expect("not 0"), salt);
            let iv = u64::from(second) << 32 | u64::from(random ^ low);
            (spi, iv, group_sender_key(key, from, spi, [second, random]))
        }
    };
    let iv = iv.to_be_bytes();
    let mut packet = Head { spi, sequence: low, iv }.emit().to_vec();
    let mut aad = spi.0.to_be_bytes().to_vec();
    match line {
        Line::Vif { .. } => aad.extend(number.to_be_bytes()),
        Line::Group { .. } => aad.extend(low.to_be_bytes()),
    }
    let algorithm = match suite {
        Suite::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        Suite::AesGcm | Suite::AesGmac => &aead::AES_256_GCM,
    };
    let cipher = LessSafeKey::new(UnboundKey::new(algorithm, sa.key.bytes()).expect("its length"));
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&sa.salt);
    nonce[4..].copy_from_slice(&iv);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let mut text = body.to_vec();
    let tag = if suite == Suite::AesGmac {
        let covered = [&aad[..], &iv, body].concat();
        cipher.seal_in_place_separate_tag(nonce, Aad::from(covered), &mut [])
    } else {
        cipher.seal_in_place_separate_tag(nonce, Aad::from(aad), &mut text)
    };
    packet.extend(text);
    packet.extend(tag.expect("a short body").as_ref());
    packet
}

/// As [`vnet::security::group`] derives it.
fn group_sender_key(key: u8, from: SocketAddr, spi: Spi, [second, random]: [u32; 2]) -> SaKey {
    let std::net::IpAddr::V4(ip) = from.ip() else { unreachable!("addresses are IPv4") };
    let context = [
        &ip.to_ipv6_mapped().octets()[..],
        &from.port().to_be_bytes(),
        &spi.0.to_be_bytes(),
        &second.to_be_bytes(),
        &random.to_be_bytes(),
    ];
    SaKey::derive(&group_key(key), "group sender", &context)
}
