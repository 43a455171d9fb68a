//! Tests of the link, and what they share.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::metrics::VifCounters;
use crate::policy::{Level, Suite};
use crate::port::tx::SourceMac;
use crate::port::worker::Worker;
use crate::secret::{SaKey, Secret};
use crate::tunnel::endpoint::Place;
use crate::tunnel::protect::Protection;
use crate::tunnel::rx::Receiver;
use crate::underlay::groups::Groups;
use crate::underlay::udp::UdpUnderlay;
use crate::wire::VnetId;
use crate::wire::control::{Lifetime, ReceiverKey, SenderKeys};
use crate::wire::esp::Spi;

const HOUR: Duration = Duration::from_secs(3600);
const SUITE: Suite = Suite::AesGcm;

pub(super) fn at(hours: u32) -> Instant {
    Instant::ZERO + HOUR * hours
}

fn there() -> SocketAddr {
    ([192, 0, 2, 2], 4000).into()
}

/// A vif on a secured vnet, whose backend has no thread but this.
pub(super) fn link() -> Link {
    let key = VifKey { vnet: VnetId::new(42).unwrap(), mac: Mac([2, 0, 0, 0, 0, 1]) };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let own = socket.local_addr().unwrap();
    let receiver = Receiver { key, own, capabilities: Capabilities::NONE };
    let place = Place { receiver, group: ([224, 0, 0, 9], 9).into(), max_datagram: 1400 };
    let counters = Arc::new(VifCounters::default());
    let underlay = UdpUnderlay::new(socket.into(), Groups::default(), None);
    let mut worker = Worker::new(place, SourceMac::Stamp, Arc::clone(&counters), underlay);
    worker.tunnel_mut().set_protection(Protection::of_vif(key.vnet, Level::Conf)());
    Link::new(key, 1, 0, Arc::new(Nic::new(vec![worker], counters, 1400).unwrap()))
}

pub(super) fn give_keys(link: &mut Link, now: Instant) {
    let secret = |byte| Secret::new([byte; 32]);
    let (keys, end) = (vec![(SUITE, secret(1)), (SUITE, secret(2))], HOUR * 24);
    let group = Event::GroupKeys { salt: 1, end, keys };
    let lifetime = Lifetime { usual: HOUR * 2, hard: end };
    let keys = vec![(Spi::of(3, 0), SaKey { key: secret(3), salt: [0; 4] })];
    let out = Event::SaOut { to: there(), keys: SenderKeys { suite: SUITE, keys, lifetime } };
    let session = ReceiverKey { number: 5, suite: SUITE, receiver: secret(5), lifetime };
    for event in [group, out, Event::SaIn { keys: vec![session] }] {
        assert_eq!(link.handle_event(event, Vec::new(), now), None);
    }
}

/// Whether a datagram to a vif, and one to the group, can be sealed.
pub(super) fn seals(link: &Link, now: Instant) -> [bool; 2] {
    let mut worker = link.nic.worker(0).unwrap();
    worker.tunnel_mut().set_clock(crate::time::Now { mono: now, wall_ms: 1_767_225_600_000 });
    let protection = worker.tunnel_mut().protection_mut().unwrap();
    let to_vif = protection.seal_one(there(), &[0; 20]).is_some();
    [to_vif, protection.seal_one_to_group(&[0; 20], now).is_ok()]
}

#[test]
fn a_halted_nic_has_no_keys() {
    let mut link = link();
    assert!(link.handle_policy(Policy::only(Level::Conf)));
    give_keys(&mut link, at(0));
    assert_eq!(seals(&link, at(0)), [true, true]);
    link.handle_disconnected(at(1));
    // varpd.toml has lost the vnet's line when varpd is back.
    assert!(!link.handle_policy(Policy::only(Level::None)));
    link.handle_registered(at(1));
    assert_eq!(seals(&link, at(1)), [false, false]);
    give_keys(&mut link, at(1));
    assert_eq!(seals(&link, at(1)), [false, false], "of a policy that is too low");
    let has_received = |link: &Link| {
        let mut worker = link.nic.worker(0).unwrap();
        let inbound = worker.tunnel_mut().protection_mut().unwrap().inbound();
        inbound.misses_any(&[]) || inbound.end_all() > 0
    };
    assert!(!has_received(&link), "nor keys of what is received");
    assert_eq!(link.key_ends.poll_timeout(), None);
    // The line is there again: no session from before is.
    assert!(link.handle_policy(Policy::only(Level::Conf)));
    link.handle_registered(at(2));
    assert_eq!(seals(&link, at(2)), [false, false]);
    give_keys(&mut link, at(2));
    assert_eq!(seals(&link, at(2)), [true, true]);
}

#[test]
fn stamps_are_forgotten_when_the_care_of_address_changes() {
    let mut link = link();
    let mac = link.key.mac;
    link.handle_event(Event::Claimed { mac, stamp: Stamp(7) }, Vec::new(), at(0));
    let stamp = |link: &mut Link| match link.register() {
        Request::Register { stamp, .. } => stamp,
        other => panic!("{other:?}"),
    };
    assert_eq!(stamp(&mut link), Some(Stamp(7)));
    link.handle_moved();
    assert_eq!(stamp(&mut link), None);
}
