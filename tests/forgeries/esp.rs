//! Datagrams of a secured vnet at a vif's own port and at the group's. Attackers record packets,
//! see all but keys, and may be members of other vnets.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use vnet::metrics::VifCounters;
use vnet::policy::{Level, Suite};
use vnet::secret::{SaKey, Secret};
use vnet::security::esp::{Numbering, Sealer};
use vnet::security::group::{GroupSender, Salt, TOLERANCE};
use vnet::security::inbound::Inbound;
use vnet::security::replay;
use vnet::security::sadb::sender_key;
use vnet::time::{Instant, Now};
use vnet::tunnel::protect::Protection;
use vnet::underlay::Port;
use vnet::wire::encap::{Flags, Header};
use vnet::wire::esp::{HEAD_LEN, Spi, sealed_len};

use super::{Random, Tally, alter, count, noise, size, vnet};

const SUITE: Suite = Suite::AesGcm;
const SESSION: u32 = 5;
const INDEX: u32 = 1;
const WALL_MS: u64 = 1_767_225_600_000;
const HOUR: Duration = Duration::from_secs(3600);
/// Packets that the attacker has recorded: some are behind the window.
const RECORDED: u64 = replay::SIZE + 500;
/// Hosts that varpd is asked for a session with, in a tenth of a second.
const STRANGERS: usize = 16;
/// How much more a vif may remember: keys of the sender's next starts, and addresses of strangers.
const GROWTH: usize = 64 << 10;

fn own() -> SocketAddr {
    ([192, 0, 2, 1], 4000).into()
}

/// The care-of address of the honest sender.
fn peer() -> SocketAddr {
    ([192, 0, 2, 2], 4000).into()
}

/// Of whoever is not it.
fn other(random: &mut Random) -> SocketAddr {
    let [a, b, c, d] = (random.next() as u32).to_be_bytes();
    ([a & 0x7f, b, c, d], 4000).into()
}

fn session_key() -> Secret {
    Secret::new([7; 32])
}

fn group_key() -> Secret {
    Secret::new([9; 32])
}

/// Of another vnet, or of nobody.
fn wrong_key() -> Secret {
    Secret::new([8; 32])
}

fn sealer(spi: Spi, key: &SaKey) -> Sealer {
    Sealer::new(spi, SUITE, key, Numbering::Extended)
}

fn group_sender(key: Secret, at: SocketAddr) -> GroupSender {
    GroupSender::new(key, SUITE, vnet(42), at, Salt { spi: 3, random: 0x0a0b_0c0d })
}

/// A datagram with a frame, and room around it for ESP.
fn envelope(n: u64) -> (Vec<u8>, usize) {
    let mut datagram = Header { flags: Flags::NONE, vnet: vnet(42) }.emit().to_vec();
    datagram.extend([[0xff; 6], [2, 0, 0, 0, 0, 2]].concat());
    datagram.extend(n.to_be_bytes());
    let mut packet = vec![0; sealed_len(datagram.len())];
    packet[HEAD_LEN..HEAD_LEN + datagram.len()].copy_from_slice(&datagram);
    (packet, datagram.len())
}

fn seal(sealer: &mut Sealer, n: u64) -> Vec<u8> {
    let (mut packet, len) = envelope(n);
    sealer.seal(&mut packet, len).unwrap();
    packet
}

fn seal_to_group(sender: &mut GroupSender, n: u64, wall_ms: u64) -> Vec<u8> {
    let (mut packet, len) = envelope(n);
    sender.seal(&mut packet, len, wall_ms).unwrap();
    packet
}

/// A vif, the one sender that it has heard, and all that was sent so far.
struct Bench {
    protection: Protection,
    counters: VifCounters,
    tally: Tally,
    now: Instant,
    sealer: Sealer,
    sender: GroupSender,
    next: u64,
    own_port: Vec<Vec<u8>>,
    group: Vec<Vec<u8>>,
    random: Random,
}

impl Bench {
    fn new() -> Self {
        let inbound = Inbound::new(vnet(42), Level::Conf);
        inbound.insert(SESSION, SUITE, session_key(), HOUR, Instant::ZERO);
        inbound.set_group(vec![(SUITE, group_key())]);
        let mut bench = Self {
            protection: Protection::new(Arc::new(inbound)),
            counters: VifCounters::default(),
            tally: Tally::default(),
            now: Instant::ZERO,
            sealer: sealer(Spi::of(SESSION, INDEX), &sender_key(&session_key(), INDEX)),
            sender: group_sender(group_key(), peer()),
            next: 0,
            own_port: Vec::new(),
            group: Vec::new(),
            random: Random::new(1),
        };
        bench.pass(Duration::ZERO);
        for _ in 0..RECORDED {
            let packets = bench.honest();
            bench.own_port.push(packets[0].clone());
            bench.group.push(packets[1].clone());
            bench.is_heard(packets);
        }
        bench
    }

    fn wall_ms(&self) -> u64 {
        WALL_MS + self.now.as_micros() / 1000
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.protection.set_clock(Now { mono: self.now, wall_ms: self.wall_ms() });
    }

    /// The sender's next packets: to the vif, and to the group.
    fn honest(&mut self) -> [Vec<u8>; 2] {
        self.next += 1;
        let wall_ms = self.wall_ms();
        [seal(&mut self.sealer, self.next), seal_to_group(&mut self.sender, self.next, wall_ms)]
    }

    fn is_heard(&mut self, packets: [Vec<u8>; 2]) {
        for (port, packet) in [Port::Own, Port::Group].into_iter().zip(packets) {
            let opened = self.offer(port, peer(), packet);
            assert_eq!(opened, Ok(self.next.to_be_bytes().to_vec()), "{port:?}");
        }
    }

    /// A datagram arrives; the last octets of what is in it, or the name of its drop.
    fn offer(
        &mut self,
        port: Port,
        from: SocketAddr,
        mut bytes: Vec<u8>,
    ) -> Result<Vec<u8>, &'static str> {
        let mut opened = Vec::<Range<usize>>::new();
        let len = bytes.len().max(1);
        let opening = self.protection.opening(self.now);
        opening.open_message(port, own(), (from, &mut bytes, len), &mut opened, &self.counters);
        let counted = self.tally.since(self.counters.readings());
        match (&opened[..], &counted[..]) {
            ([inner], []) => Ok(bytes[inner.end - 8..inner.end].to_vec()),
            ([], [drop]) => Err(drop),
            _ => panic!("opened {opened:?}, counted {counted:?}"),
        }
    }

    /// Sends many forgeries, each of which must be dropped under one of these names; then the
    /// honest sender is heard as if nothing had come.
    fn refuses(
        &mut self,
        port: Port,
        names: &[&str],
        mut forge: impl FnMut(&mut Self, u64) -> (SocketAddr, Vec<u8>),
    ) {
        let before = size(&self.protection);
        for n in 0..count() {
            let (from, bytes) = forge(self, n);
            let drop = self.offer(port, from, bytes.clone());
            let is_right = drop.as_ref().is_err_and(|name| names.contains(name));
            assert!(is_right, "{n}: {drop:?} {bytes:02x?}");
            if n.is_multiple_of(16) {
                self.pass(Duration::from_millis(1));
                assert!(self.protection.take_needs().len() <= STRANGERS);
            }
        }
        let after = size(&self.protection);
        assert!(after < before + GROWTH, "{before} and then {after}");
        let packets = self.honest();
        self.is_heard(packets);
        // As well with its next start.
        self.pass(Duration::from_secs(31));
        let packets = self.honest();
        self.is_heard(packets);
    }
}

#[test]
fn replayed_packets_are_dropped() {
    let mut bench = Bench::new();
    // A number behind the window is taken for one that comes when the 32 bits of the packet have
    // wrapped.
    bench.refuses(Port::Own, &["rx_drop_replay", "rx_drop_auth"], |bench, n| {
        // Whoever sends them: sessions do not depend on addresses.
        let from = if n.is_multiple_of(2) { peer() } else { other(&mut bench.random) };
        let which = bench.random.index(bench.own_port.len());
        (from, bench.own_port[which].clone())
    });
}

#[test]
fn altered_packets_are_dropped() {
    let names =
        ["rx_drop_auth", "rx_drop_replay", "rx_drop_spi", "rx_drop_version", "rx_drop_plaintext"];
    let mut bench = Bench::new();
    // One that is still expected, too.
    let unheard = bench.honest()[0].clone();
    bench.refuses(Port::Own, &names, |bench, n| {
        let which = bench.random.index(bench.own_port.len());
        let genuine = if n.is_multiple_of(2) { &unheard } else { &bench.own_port[which] };
        (peer(), alter(&mut bench.random, genuine, genuine.len()).1)
    });
    let late = bench.offer(Port::Own, peer(), unheard.clone());
    assert!(late.is_ok(), "it has not been heard by any of its altered copies");
    bench.refuses(Port::Own, &["rx_drop_auth", "rx_drop_replay"], |bench, _| {
        let fresh = bench.honest()[0].clone();
        let (at, mut altered) = (HEAD_LEN + bench.random.index(fresh.len() - HEAD_LEN), fresh);
        altered[at] ^= 1 << bench.random.range(0, 8);
        (peer(), altered)
    });
}

#[test]
fn packets_of_sessions_and_keys_that_are_not_this_vifs_are_dropped() {
    let mut bench = Bench::new();
    let key = sender_key(&wrong_key(), INDEX);
    bench.refuses(Port::Own, &["rx_drop_spi"], |bench, n| {
        let session = 6 + bench.random.range(0, 1 << 18) as u32;
        (other(&mut bench.random), seal(&mut sealer(Spi::of(session, INDEX), &key), n))
    });
    let mut forger = sealer(Spi::of(SESSION, INDEX), &key);
    bench.refuses(Port::Own, &["rx_drop_auth", "rx_drop_replay"], |bench, n| {
        let index = bench.random.range(0, 1 << 12) as u32;
        let from = if n.is_multiple_of(2) { peer() } else { other(&mut bench.random) };
        let spi = Spi::of(SESSION, index);
        (from, if n % 4 < 2 { seal(&mut forger, n) } else { seal(&mut sealer(spi, &key), n) })
    });
}

#[test]
fn what_was_made_up_or_is_not_sealed_is_dropped() {
    let names = ["rx_drop_auth", "rx_drop_replay", "rx_drop_spi", "rx_drop_truncated"];
    let mut bench = Bench::new();
    bench.refuses(Port::Own, &names, |bench, n| {
        let len = 1 + bench.random.index(200);
        let mut bytes = noise(&mut bench.random, len);
        let spi = Spi::of(SESSION, INDEX).0.to_be_bytes();
        let known = if n.is_multiple_of(2) { &spi[..] } else { &[0x80 | bytes[0]][..] };
        bytes.splice(..known.len().min(len), known.iter().copied());
        (peer(), bytes)
    });
    for port in [Port::Own, Port::Group] {
        bench.refuses(port, &["rx_drop_plaintext"], |bench, n| {
            let (packet, len) = envelope(n);
            let from = if n.is_multiple_of(2) { peer() } else { other(&mut bench.random) };
            (from, packet[HEAD_LEN..HEAD_LEN + len].to_vec())
        });
    }
}

#[test]
fn replayed_group_packets_are_dropped() {
    let mut bench = Bench::new();
    let replays = |bench: &mut Bench, from: Option<SocketAddr>| {
        let which = bench.random.index(bench.group.len());
        (from.unwrap_or(peer()), bench.group[which].clone())
    };
    // In a run of a million a minute passes.
    bench.refuses(Port::Group, &["rx_drop_replay", "rx_drop_stale"], |bench, _| {
        replays(bench, None)
    });
    bench.refuses(Port::Group, &["rx_drop_auth", "rx_drop_flood", "rx_drop_stale"], |bench, _| {
        let from = other(&mut bench.random);
        replays(bench, Some(from))
    });
    bench.pass(TOLERANCE + Duration::from_secs(1));
    bench.refuses(Port::Group, &["rx_drop_stale"], |bench, _| replays(bench, None));
    bench.refuses(Port::Group, &["rx_drop_own"], |bench, _| replays(bench, Some(own())));
}

#[test]
fn altered_group_packets_are_dropped() {
    let names = [
        "rx_drop_auth",
        "rx_drop_replay",
        "rx_drop_spi",
        "rx_drop_stale",
        "rx_drop_flood",
        "rx_drop_version",
        "rx_drop_plaintext",
    ];
    let mut bench = Bench::new();
    bench.refuses(Port::Group, &names, |bench, n| {
        let fresh = bench.honest()[1].clone();
        let which = bench.random.index(bench.group.len());
        let genuine = if n.is_multiple_of(2) { &fresh } else { &bench.group[which] };
        (peer(), alter(&mut bench.random, genuine, genuine.len()).1)
    });
}

#[test]
fn group_packets_with_another_start_or_of_another_vnet_are_dropped() {
    let mut bench = Bench::new();
    let tolerance = u64::try_from(TOLERANCE.as_millis()).unwrap();
    // The key is right: a member's whose clock is wrong.
    bench.refuses(Port::Group, &["rx_drop_stale"], |bench, n| {
        let off = tolerance + 1000 + bench.random.range(0, 1_000_000_000);
        let wall_ms = bench.wall_ms();
        let then = if n.is_multiple_of(2) { wall_ms + off } else { wall_ms - off };
        (peer(), seal_to_group(&mut group_sender(group_key(), peer()), n, then))
    });
    let forged = ["rx_drop_auth", "rx_drop_flood", "rx_drop_replay", "rx_drop_stale"];
    // A member of another vnet in the known sender's name, and in any other.
    bench.refuses(Port::Group, &forged, |bench, n| {
        let at = if n.is_multiple_of(2) { peer() } else { other(&mut bench.random) };
        let then = bench.wall_ms() - tolerance + bench.random.range(0, 2 * tolerance);
        (at, seal_to_group(&mut group_sender(wrong_key(), at), n, then))
    });
    bench.refuses(Port::Group, &["rx_drop_spi"], |bench, n| {
        let salt = Salt { spi: 3, random: 0x0a0b_0c0d };
        let mut sender = GroupSender::new(group_key(), SUITE, vnet(43), peer(), salt);
        (peer(), seal_to_group(&mut sender, n, bench.wall_ms()))
    });
}
