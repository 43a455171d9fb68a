//! Hosts that find each other's vifs, and frames that then pass.

use std::net::IpAddr;

use vnet::wire::control::{Event, Request};

use super::peer::{ACTIVE, Backend, frame, take};
use super::support::netns::{Family, Host};
use super::support::wait_until;
use super::{BOTH, HASTY, Net, SOON, key, mac, vnet_id};

#[test]
fn vifs_find_each_other_across_hosts() {
    let Some(net) = Net::new("varpd: resolution") else { return };
    for family in BOTH {
        let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
        let here = Backend::register(&a.socket, key(1), ACTIVE);
        let there = Backend::register(&b.socket, key(2), ACTIVE);
        let stamp = here.peer.claimed();
        there.peer.resolve(mac(1));
        let (coa, found) = there.peer.find(|event| match event {
            Event::Mapping { mac: of, coa, stamp, .. } if *of == mac(1) => Some((*coa, *stamp)),
            _ => None,
        });
        assert_eq!((coa, found), (here.coa, stamp));
        there.unicast().send_to(&frame(42, "hello"), coa.addr).unwrap();
        assert_eq!(take(here.unicast()), (frame(42, "hello"), there.coa.addr));
        here.peer.resolve(mac(2));
        assert_eq!(here.peer.mapping(mac(2)), there.coa);

        let rows = b.show("varp");
        let row = rows.iter().find(|row| row["mac"] == mac(1).to_string()).unwrap();
        assert_eq!(
            (&row["state"], &row["coa"]),
            (&"resolved".into(), &here.coa.to_string().into())
        );
        assert!(row["expires"].as_f64().unwrap() > 20.0, "{row}");
        assert!(row["stamp"].as_str().unwrap().starts_with("20"), "{row}");
        assert_eq!(b.show("vnets")[0]["cached"], 1);
    }
}

#[test]
fn link_local_addresses_serve_as_well() {
    let Some(net) = Net::new("varpd: link-local underlay") else { return };
    let link_local = |host: &Host| {
        let address = || {
            let mut command = host.command("ip");
            let output = command.args(["-6", "-o", "address", "show", "scope", "link"]).output();
            let text = String::from_utf8(output.unwrap().stdout).unwrap();
            let line = text.lines().find(|line| !line.contains("tentative"))?;
            let (_, rest) = line.split_once("inet6 ")?;
            rest.split_once('/').map(|(address, _)| address.parse::<IpAddr>().unwrap())
        };
        wait_until("duplicate address detection is over", SOON, || address().is_some());
        address().unwrap()
    };
    let a = net.varpd_at(net.a(), link_local(net.a()), "");
    let b = net.varpd_at(net.b(), link_local(net.b()), "");
    let here = Backend::register(&a.socket, key(1), ACTIVE);
    let there = Backend::register(&b.socket, key(2), ACTIVE);
    there.peer.resolve(mac(1));
    assert_eq!(there.peer.mapping(mac(1)), here.coa);
    // No scope is known to a peer: the socket is bound to its link.
    there.unicast().send_to(&frame(42, "hello"), here.coa.addr).unwrap();
    assert_eq!(take(here.unicast()).0, frame(42, "hello"));
    there.unicast().send_to(&frame(42, "all"), there.group).unwrap();
    assert_eq!(take(here.group_socket()).0, frame(42, "all"));
    let Backend { peer, coa, sockets, .. } = here;
    drop(peer);
    assert_eq!(Backend::return_with(&a.socket, key(1), ACTIVE, sockets).coa, coa);
}

#[test]
fn group_frames_reach_all_vifs_of_the_vnet_and_no_others() {
    let Some(net) = Net::new("varpd: group frames") else { return };
    for family in BOTH {
        let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
        let sender = Backend::register(&a.socket, key(1), ACTIVE);
        let near = Backend::register(&a.socket, key(2), ACTIVE);
        let far = Backend::register(&b.socket, key(3), ACTIVE);
        let mut elsewhere = key(4);
        elsewhere.vnet = vnet_id(43);
        let other = Backend::register(&b.socket, elsewhere, ACTIVE);
        for text in
            ["VA\x02\x03\0\0\0\0\0\0\0\x2a no frame", "VA\x01\x03 no frame", "\x50no kind of ours"]
        {
            sender.unicast().send_to(text.as_bytes(), sender.group).unwrap();
        }
        sender.unicast().send_to(&frame(42, "all"), sender.group).unwrap();
        for vif in [&sender, &near, &far] {
            // The source is the sender's care-of address: it knows its own by that.
            assert_eq!(take(vif.group_socket()), (frame(42, "all"), sender.coa.addr));
        }
        sender.unicast().send_to(&frame(43, "others"), sender.group).unwrap();
        assert_eq!(take(other.group_socket()), (frame(43, "others"), sender.coa.addr));
        wait_until("varpd sees what looks like VARP", SOON, || {
            let each_once = |varpd: &&super::Varpd| {
                ["varp_rx_malformed", "varp_rx_version"].iter().all(|name| varpd.counter(name) == 1)
            };
            [&a, &b].iter().all(each_once)
        });
    }
}

#[test]
fn nobody_answers_for_an_unknown_mac() {
    let Some(net) = Net::new("varpd: unresolved") else { return };
    let varpd = net.varpd(net.a(), Family::V4, HASTY);
    let vif = Backend::register(&varpd.socket, key(1), ACTIVE);
    vif.peer.resolve(mac(77));
    let hold = vif.peer.find(|event| match event {
        Event::Unresolved { mac: of, hold_ms } if *of == mac(77) => Some(*hold_ms),
        Event::Mapping { .. } => panic!("{event:?}"),
        _ => None,
    });
    assert!((1..=1000).contains(&hold), "{hold} ms");
}

#[test]
fn vifs_of_one_host_find_each_other() {
    let Some(net) = Net::new("varpd: resolution on one host") else { return };
    let varpd = net.varpd(net.a(), Family::V6, "");
    let one = Backend::register(&varpd.socket, key(1), ACTIVE);
    let two = Backend::register(&varpd.socket, key(2), ACTIVE);
    one.peer.resolve(mac(2));
    assert_eq!(one.peer.mapping(mac(2)), two.coa);
    two.peer.send(&Request::SetActive { active: false });
    one.peer.find(|event| match event {
        Event::Invalidate { mac: of } if *of == mac(2) => Some(()),
        _ => None,
    });
}
