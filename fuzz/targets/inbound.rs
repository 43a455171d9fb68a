//! Datagrams on their whole way into a guest, on vnets of each policy: whatever they hold, in pieces, in
//! bundles or sealed by a member, the guest gets frames for it with headers that it has agreed to,
//! in its buffers and nowhere else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use vnet::guest::HeaderLayout;
use vnet::metrics::VifCounters;
use vnet::offload::features::Offloads;
use vnet::offload::gso::Cut;
use vnet::offload::layout::Layout;
use vnet::policy::{Level, Suite};
use vnet::port::tx::SourceMac;
use vnet::port::worker::Worker;
use vnet::secret::Secret;
use vnet::security::esp::{Numbering, Sealer};
use vnet::security::group::{GroupSender, Salt};
use vnet::security::inbound::Inbound;
use vnet::security::sadb::sender_key;
use vnet::time::{Instant, Now};
use vnet::tunnel::endpoint::Place;
use vnet::tunnel::protect::Protection;
use vnet::tunnel::rx::Receiver;
use vnet::underlay::Port;
use vnet::vif::link::CAPABILITIES;
use vnet::wire::encap::{Flags, Header};
use vnet::wire::esp::{HEAD_LEN, Spi, sealed_len};
use vnet::wire::{Mac, VifKey, VnetId};

use super::Input;
use super::guest::{Arrivals, Arrived, Guest};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SESSION: u32 = 5;
/// What the receiver's wall clock shows at first.
const WALL_MS: u64 = 1_767_225_600_000;
const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    let features = input.u64();
    let offloads = Offloads::from_features(features);
    let layout = HeaderLayout { len: 12, mergeable: features & 1 != 0 };
    let mut guest = Guest::new(&mut input);
    let suite = match input.u8() % 4 {
        0 => Some(Suite::AesGcm),
        1 => Some(Suite::AesGmac),
        _ => None,
    };
    let mut sealers = suite.map(|suite| (sealer(suite), group_sender(suite)));
    let mut worker = worker(suite);
    worker.set_features(layout, offloads);
    worker.tunnel_mut().set_clock(Now { mono: Instant::ZERO, wall_ms: WALL_MS });
    let mut now = Instant::from_millis(1000);
    while !input.0.is_empty() {
        let what = input.u8();
        now += Duration::from_millis(u64::from(what >> 5) * 50);
        for _ in 0..=input.u8() % 8 {
            let arrived = arrive(&mut input, sealers.as_mut());
            worker.tunnel_mut().underlay_mut().0.extend(arrived);
        }
        guest.offer(&mut input);
        let (queue, memory) = (&mut guest.queue, &guest.memory);
        let ports = if what & 1 == 0 { [Port::Own, Port::Group] } else { [Port::Group, Port::Own] };
        for port in ports {
            worker.receive(port, queue, memory, now).expect("the guest's ring is sound");
        }
        if worker.poll_timeout().is_some_and(|at| at <= now) {
            worker.handle_timeout(now);
        }
        guest.check(layout, offloads, MAC);
    }
}

/// The next message of the input: as it is, with a header of its vnet in front, or sealed as well.
fn arrive(input: &mut Input<'_>, sealers: Option<&mut (Sealer, GroupSender)>) -> Option<Arrived> {
    let (what, flags, last) = (input.u8(), input.u8(), input.u8());
    let content = input.chunk()?;
    let vnet = VnetId::new(42).expect("not 0");
    let flags = match flags % 8 {
        0 | 1 => Flags::NONE,
        2 => Flags::PARTIAL_CHECKSUM,
        3 | 4 => Flags::BUNDLE,
        5 => Flags::FRAGMENT,
        6 => Flags::FRAGMENT.with(Flags::BUNDLE),
        _ => Flags::FRAGMENT.with(Flags::PARTIAL_CHECKSUM),
    };
    let mut bytes = if what & 1 == 0 { Header { flags, vnet }.emit().to_vec() } else { Vec::new() };
    bytes.extend_from_slice(content);
    if what & 0x40 != 0
        && let Some(train) = stretch(input, &bytes)
    {
        let from = SocketAddr::from(([192, 0, 2, last % 4], 4000));
        return Some(Arrived { port: Port::Own, from, ..train });
    }
    let port = if what & 0x1c == 0x1c { Port::Group } else { Port::Own };
    if let Some((sealer, group)) = sealers.filter(|_| what & 2 == 0) {
        let mut packet = vec![0; sealed_len(bytes.len())];
        packet[HEAD_LEN..HEAD_LEN + bytes.len()].copy_from_slice(&bytes);
        let sealed = match port {
            Port::Own => sealer.seal(&mut packet, bytes.len()),
            // Some at another time than it is, some made up.
            Port::Group => {
                let wall_ms = WALL_MS + u64::from(last) * 1000;
                group.seal(&mut packet, bytes.len(), wall_ms)
            }
        };
        sealed.expect("numbers are left");
        if what & 0x80 != 0 && port == Port::Group {
            packet[usize::from(last) % HEAD_LEN] ^= 1;
        }
        bytes = packet;
    }
    // Cut as the kernel merges datagrams, where the input says so.
    let segment = if what & 0x20 == 0 { bytes.len() } else { usize::from(input.u16()) };
    let from = SocketAddr::from(([192, 0, 2, last % 4], 4000));
    Some(Arrived { port, from, bytes, segment: segment.max(1) })
}

/// A stream's long segments as the kernel merges them, whose headers are made from a datagram of the
/// input, and then changed here and there.
fn stretch(input: &mut Input<'_>, datagram: &[u8]) -> Option<Arrived> {
    const PAYLOAD: [u16; 2] = [3500, 8900];
    let (what, size) = (input.u8(), PAYLOAD[usize::from(input.u8() % 2)]);
    let (encapsulation, lead) = datagram.split_at_checked(8)?;
    let count = usize::from(what % 7) + 1;
    // The last may be shorter.
    let payload = count * usize::from(size) - 40 * usize::from(what >> 5);
    let layout = Layout::parse_gso(lead, lead.len()).ok()?;
    let frame_len = layout.payload_at + payload;
    let layout = Layout::parse_gso(lead, frame_len).ok()?;
    let mut frame = lead.get(..layout.payload_at)?.to_vec();
    frame.resize(frame_len, 0xa5);
    let cut = Cut::new(&frame, &layout, size, 65_550).ok()?;
    let segment = encapsulation.len() + cut.header_len() + usize::from(size);
    let mut bytes = Vec::new();
    for index in 0..cut.count() {
        let mut headers = vec![0; cut.header_len()];
        cut.write_header(index, &mut headers)?;
        bytes.extend_from_slice(&[encapsulation, &headers, &frame[cut.payload(index)]].concat());
    }
    for _ in 0..what >> 3 & 3 {
        let at = usize::from(input.u8()) % cut.count() * segment + usize::from(input.u8());
        let value = input.u8();
        bytes.get_mut(at).into_iter().for_each(|byte| *byte = value);
    }
    let from = SocketAddr::from(([192, 0, 2, 1], 4000));
    Some(Arrived { port: Port::Own, from, bytes, segment })
}

fn receive_key() -> Secret {
    Secret::new([7; 32])
}

fn sealer(suite: Suite) -> Sealer {
    let (spi, key) = (Spi::of(SESSION, 1), sender_key(&receive_key(), 1));
    Sealer::new(spi, suite, &key, Numbering::Extended)
}

fn group_sender(suite: Suite) -> GroupSender {
    let (vnet, own) = (VnetId::new(42).expect("not 0"), ([192, 0, 2, 2], 4000).into());
    GroupSender::new(Secret::new([9; 32]), suite, vnet, own, Salt { spi: 3, random: 0x0a0b_0c0d })
}

fn worker(suite: Option<Suite>) -> Worker<Arrivals> {
    let vnet = VnetId::new(42).expect("not 0");
    let own = SocketAddr::from(([192, 0, 2, 1], 4000));
    let key = VifKey { vnet, mac: MAC };
    let receiver = Receiver { key, own, capabilities: CAPABILITIES };
    let place = Place { receiver, group: own, max_datagram: 1472 };
    let counters = Arc::new(VifCounters::default());
    let mut worker = Worker::new(place, SourceMac::Stamp, counters, Arrivals::default());
    let inbound = Inbound::new(vnet, suite.map_or(Level::None, Suite::level));
    if let Some(suite) = suite {
        inbound.insert(SESSION, suite, receive_key(), HOUR, Instant::ZERO);
        inbound.set_group(vec![(suite, Secret::new([9; 32]))]);
        worker.tunnel_mut().set_protection(Some(Protection::new(Arc::new(inbound))));
    }
    worker
}
