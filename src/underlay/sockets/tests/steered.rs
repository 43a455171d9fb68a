//! Sockets of several queue pairs, and the kernel's choice among them.

use super::*;
use crate::sys::clock;
use crate::sys::iovec::IoVec;
use crate::sys::mmsg::{Message, ReceiveBatch};
use crate::underlay::groups::Groups;
use crate::underlay::sockets::filters::WHOLE;
use crate::underlay::udp::UdpUnderlay;
use crate::underlay::{Port, Underlay};

/// As a backend takes them: one underlay for each pair.
fn underlays(sockets: &VifSockets) -> Vec<UdpUnderlay> {
    let pairs = sockets.queue_pairs();
    let mut fds = dup(sockets).into_iter();
    let mut groups = Some(Groups::new(fds.by_ref().take(1).collect()).unwrap());
    let own: Vec<OwnedFd> = fds.by_ref().take(pairs).collect();
    let underlay = |own| UdpUnderlay::new(own, groups.take().unwrap_or_default(), fds.next());
    own.into_iter().map(underlay).collect()
}

/// Sends some datagrams from one pair to a vif; which of its pairs got them all, in order.
fn received_by(from: &mut UdpUnderlay, to: SocketAddr, pairs: &mut [UdpUnderlay]) -> usize {
    const COUNT: u8 = 20;
    let bytes: Vec<[u8; 1]> = (0..COUNT).map(|n| [n]).collect();
    let parts: Vec<[IoVec<'_>; 1]> = bytes.iter().map(|b| [IoVec::from_slice(b)]).collect();
    let messages: Vec<Message<'_>> =
        parts.iter().map(|parts| Message { to, parts, segment: 0 }).collect();
    assert_eq!(from.send(&messages).unwrap(), messages.len());
    let mut found = None;
    let mut next = 0;
    let mut batch = ReceiveBatch::default();
    let deadline = clock::mono() + Duration::from_secs(10);
    while next < COUNT {
        assert!(clock::mono() < deadline, "{next} of {COUNT} arrive");
        for (n, pair) in pairs.iter_mut().enumerate() {
            while pair.receive(Port::Own, &mut batch).is_ok() {
                for datagram in (0..batch.len()).flat_map(|m| batch.get(m).unwrap().datagrams()) {
                    assert_eq!(datagram, [next], "in order");
                    assert_eq!(*found.get_or_insert(n), n, "at one pair");
                    next += 1;
                }
            }
        }
    }
    found.expect("a pair that got them")
}

#[test]
fn several_pairs_share_a_port_and_send_from_others() {
    for (mut opener, group) in sites() {
        for pairs in [2, 5, 16] {
            let vif = opener.vif(&[group], Frames(vnet(42)), pairs).unwrap();
            assert_eq!(vif.fds().len(), 1 + own_count(pairs));
            let ports = |s: &[Socket]| -> Vec<SocketAddr> {
                s.iter().map(|s| local_address(s).unwrap()).collect()
            };
            assert!(ports(&vif.unicast).iter().all(|address| *address == vif.address()));
            for (n, address) in (0..).zip(ports(&vif.senders)) {
                assert_eq!((address.ip(), address.port() % 16), (vif.address().ip(), n));
                assert_ne!(address, vif.address());
            }
            for sender in &vif.senders {
                assert!(sender.attach_filter(&[SockFilter::new(RETURN, 0, 0, WHOLE)]).is_err());
            }
        }
    }
}

#[test]
fn a_senders_pairs_are_spread_over_those_that_run() {
    for (mut opener, group) in sites() {
        let far = opener.vif(&[group], Frames(vnet(42)), 16).unwrap();
        let near = opener.vif(&[group], Frames(vnet(42)), 4).unwrap();
        let (mut from, mut to) = (underlays(&far), underlays(&near));
        for running in 1..16_u64 {
            to[0].steer(running).unwrap();
            let mut share = [0; 4];
            for pair in &mut from {
                let got = received_by(pair, near.address(), &mut to);
                share[got] += 1;
                assert_eq!(received_by(pair, near.address(), &mut to), got, "always the same");
            }
            let pairs = running.count_ones();
            for (n, share) in share.into_iter().enumerate() {
                let fair = 16 / pairs..=16_u32.div_ceil(pairs);
                let runs = running >> n & 1 == 1;
                assert!(
                    if runs { fair.contains(&share) } else { share == 0 },
                    "{running:b} {share}"
                );
            }
        }
    }
}

#[test]
fn steering_outlives_who_asked_for_it_and_adoption() {
    let [(mut opener, group), _] = sites();
    let vif = opener.vif(&[group], Frames(vnet(42)), 2).unwrap();
    let mut from = underlays(&opener.vif(&[group], Frames(vnet(42)), 2).unwrap());
    let mut share = |to: &mut [UdpUnderlay]| {
        [0, 1].map(|n: usize| received_by(&mut from[n], vif.address(), to))
    };
    let mut first = underlays(&vif);
    first[1].steer(0b11).unwrap();
    let before = share(&mut first);
    assert_ne!(before[0], before[1]);
    drop(first);
    let adopted = opener.adopt(&[group], Frames(vnet(42)), 2, dup(&vif)).unwrap().sockets;
    assert_eq!(share(&mut underlays(&adopted)), before);
    // And another backend may steer anew.
    let mut second = underlays(&adopted);
    second[0].steer(0b10).unwrap();
    assert_eq!(share(&mut second), [1, 1]);
}

#[test]
fn group_frames_leave_from_the_care_of_address() {
    let [(mut opener, group), _] = sites();
    let vif = opener.vif(&[group], Frames(vnet(42)), 2).unwrap();
    let other = opener.vif(&[group], Frames(vnet(42)), 1).unwrap();
    let mut pairs = underlays(&vif);
    let bytes = frame(42, b"x");
    let parts = [IoVec::from_slice(&bytes)];
    let all = SocketAddr::new(group, opener.site().port);
    let order = [other.address(), all, all, other.address()];
    let messages = order.map(|to| Message { to, parts: &parts, segment: 0 });
    for (pair, underlay) in pairs.iter_mut().enumerate() {
        let mut left = &messages[..];
        let mut calls = 0;
        while !left.is_empty() {
            left = &left[underlay.send(left).unwrap()..];
            calls += 1;
        }
        assert_eq!(calls, 3, "runs of one kind");
        let sender = local_address(&vif.senders[pair]).unwrap();
        for (socket, from) in [(&other.unicast[0], sender), (&other.groups[0], vif.address())] {
            assert_eq!(take(&udp(socket)), (bytes.clone(), from));
            assert_eq!(take(&udp(socket)), (bytes.clone(), from));
        }
    }
}

#[test]
fn senders_come_from_the_range_and_make_do_with_any() {
    let mut site = site(Ipv4Addr::LOCALHOST.into());
    let first = (site.port & !15).min(65_000 & !15);
    site.ports = Some(first..=first + 7);
    let mut opener = Opener::new(site);
    // Eight ports, of which VARP has one: enough for one vif with three pairs.
    let vif = opener.vif(&[GROUP_V4], Frames(vnet(42)), 3).unwrap();
    let mut ports: Vec<u16> =
        vif.senders.iter().map(|s| local_address(s).unwrap().port()).collect();
    ports.push(vif.address().port());
    assert!(ports.iter().all(|port| (first..=first + 7).contains(port)), "{ports:?}");
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 4);
    let full = opener.vif(&[GROUP_V4], Frames(vnet(42)), 6).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn a_pair_is_told_of_what_it_sent_itself() {
    for (mut opener, group) in sites() {
        let vif = opener.vif(&[group], Frames(vnet(42)), 3).unwrap();
        let mut pairs = underlays(&vif);
        let nobody = opener.vif(&[group], Frames(vnet(42)), 1).unwrap().address();
        let parts = [IoVec::from_slice(b"x")];
        pairs[1].send(&[Message { to: nobody, parts: &parts, segment: 0 }]).unwrap();
        let deadline = clock::mono() + Duration::from_secs(10);
        let report = loop {
            assert!(clock::mono() < deadline, "an ICMP message comes");
            if let Some(report) = pairs[1].take_report() {
                break report;
            }
        };
        assert_eq!((report.to, report.errno), (nobody.ip(), libc::ECONNREFUSED));
        assert!(pairs.iter_mut().all(|pair| pair.take_report().is_none()), "once, and to no other");
    }
}
