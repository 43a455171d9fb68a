//! MACs behind a vif: a bridge or router in the guest.

use vnet::wire::control::{Event, Request};
use vnet::wire::{Mac, Stamp};

use super::admission::{NOBODY, connect_as, program};
use super::peer::{ACTIVE, Backend, INACTIVE, Peer, Way, register};
use super::support::wait_until;
use super::{BOTH, Net, SOON, key, mac};

fn learn(backend: &Backend, macs: &[Mac]) {
    let macs = macs.iter().map(|&mac| (mac, None)).collect();
    backend.peer.send(&Request::Learn { macs });
}

/// The stamp of the claim to a MAC.
fn claimed(peer: &Peer, of: Mac) -> Stamp {
    peer.find(|event| match event {
        Event::Claimed { mac, stamp } if *mac == of => Some(*stamp),
        Event::Refused { mac, .. } if *mac == of => panic!("{mac} is refused"),
        _ => None,
    })
}

fn refused(peer: &Peer) -> Mac {
    peer.find(|event| match event {
        Event::Refused { mac, .. } => Some(*mac),
        _ => None,
    })
}

fn lost(peer: &Peer, of: Mac) -> Stamp {
    peer.find(|event| match event {
        Event::Lost { mac, stamp, .. } if *mac == of => Some(*stamp),
        _ => None,
    })
}

#[test]
fn what_is_behind_a_vif_is_found_there_and_follows_to_another() {
    let Some(net) = Net::new("varpd: MACs behind a vif") else { return };
    for family in BOTH {
        let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
        let one = Backend::register(&a.socket, key(1), ACTIVE);
        let two = Backend::register(&b.socket, key(2), ACTIVE);
        let user = Backend::register(&b.socket, key(3), ACTIVE);
        learn(&one, &[mac(8), mac(9)]);
        let stamp = claimed(&one.peer, mac(8));
        claimed(&one.peer, mac(9));
        user.peer.resolve(mac(8));
        assert_eq!(user.peer.mapping(mac(8)), one.coa);
        let state = |varpd: &super::Varpd, last: u8| {
            let rows = varpd.show("vifs");
            let row = rows.into_iter().find(|row| row["mac"] == mac(last).to_string());
            row.map(|row| row["state"].as_str().unwrap().to_owned())
        };
        assert_eq!(state(&a, 8).as_deref(), Some("learnt"));
        // It is seen behind another.
        learn(&two, &[mac(8)]);
        let newer = claimed(&two.peer, mac(8));
        assert!(newer > stamp);
        assert_eq!(lost(&one.peer, mac(8)), newer);
        assert_eq!(user.peer.mapping(mac(8)), two.coa);
        assert_eq!(state(&a, 8).as_deref(), Some("lost"));
        // What is forgotten is nowhere.
        one.peer.send(&Request::Forget { macs: vec![mac(9)] });
        wait_until("it is forgotten", SOON, || state(&a, 9).is_none());
        // With the rings all of it goes.
        two.peer.send(&Request::SetActive { active: false });
        wait_until("it is gone", SOON, || state(&b, 8).is_none());
    }
}

/// A backend that was given new sockets (its host has another address, say) tells the stamps of claims
/// at its old care-of address: others hold the newer of two claims for true, and of two with one stamp
/// perhaps the old one.
#[test]
fn at_a_new_address_it_is_claimed_anew() {
    let Some(net) = Net::new("varpd: MACs behind a vif with a new address") else { return };
    let [family, _] = BOTH;
    let a = net.varpd(net.a(), family, "");
    let one = Backend::register(&a.socket, key(1), ACTIVE);
    let before = Stamp(one.peer.claimed().0 - 1);
    one.peer.send(&Request::Learn { macs: vec![(mac(8), Some(before))] });
    assert!(claimed(&one.peer, mac(8)) > before);
}

/// As a virtual router (VRRP) does that fails over and back: the bound on moves is for vifs.
#[test]
fn one_that_goes_to_and_fro_is_followed_each_time() {
    let Some(net) = Net::new("varpd: a MAC behind two vifs") else { return };
    let [family, _] = BOTH;
    let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
    let one = Backend::register(&a.socket, key(1), ACTIVE);
    let two = Backend::register(&b.socket, key(2), ACTIVE);
    learn(&one, &[mac(8)]);
    let mut newest = claimed(&one.peer, mac(8));
    two.peer.resolve(mac(8));
    assert_eq!(two.peer.mapping(mac(8)), one.coa, "the other host knows");
    // More often than a vif may be taken back.
    for _ in 0..6 {
        for (from, to) in [(&one, &two), (&two, &one)] {
            learn(to, &[mac(8)]);
            let stamp = claimed(&to.peer, mac(8));
            assert!(stamp > newest);
            assert_eq!(lost(&from.peer, mac(8)), stamp);
            newest = stamp;
        }
    }
    let sum = |name| [&a, &b].map(|varpd| varpd.counter(name)).iter().sum::<u64>();
    assert_eq!((sum("damped_claims"), sum("macs_refused")), (0, 0));
    assert!(sum("deferred_claims") >= 2, "it waits for a second after the last move");
}

#[test]
fn there_are_bounds_and_nobody_takes_anothers_own() {
    let Some(net) = Net::new("varpd: bounds of MACs behind a vif") else { return };
    let [family, _] = BOTH;
    let a = net.varpd(net.a(), family, "[limits]\nlearnt-per-vif = 2\n");
    let one = Backend::register(&a.socket, key(1), ACTIVE);
    let two = Backend::register(&a.socket, key(2), ACTIVE);
    two.peer.claimed();
    learn(&one, &[mac(8), mac(9), mac(10), mac(2), mac(1), Mac::BROADCAST]);
    for mac in [mac(10), mac(2), mac(1), Mac::BROADCAST] {
        assert_eq!(refused(&one.peer), mac);
    }
    let idle = Backend::register(&a.socket, key(3), INACTIVE);
    learn(&idle, &[mac(11)]);
    assert_eq!(refused(&idle.peer), mac(11));
    assert_eq!(a.show("vifs").len(), 5);
    // The vif itself outranks what is behind another, which is behind it no more.
    let eight = Backend::register(&a.socket, key(8), ACTIVE);
    eight.peer.claimed();
    assert_eq!(refused(&one.peer), mac(8));
    assert!(a.show("vifs").iter().all(|row| row["state"] != "lost"));
}

#[test]
fn a_backend_learns_no_more_than_it_said() {
    let Some(net) = Net::new("varpd: backends that learn more than they said") else { return };
    let [family, _] = BOTH;
    let a = net.varpd(net.a(), family, "");
    let [none, two] = [0, 2].map(|most| Way { learn: most, ..ACTIVE });
    let one = Backend::register(&a.socket, key(1), none);
    learn(&one, &[mac(8)]);
    assert_eq!(refused(&one.peer), mac(8));
    let bridge = Backend::register(&a.socket, key(2), two);
    learn(&bridge, &[mac(8), mac(9), mac(10)]);
    for learnt in [mac(8), mac(9)] {
        claimed(&bridge.peer, learnt);
    }
    assert_eq!(refused(&bridge.peer), mac(10));
    assert_eq!((a.counter("macs_refused"), a.counter("macs_beyond")), (2, 2));
    // One that says nothing of it, as those before it did.
    let earlier = Backend::register(&a.socket, key(3), ACTIVE);
    learn(&earlier, &[mac(11), mac(12), mac(13)]);
    claimed(&earlier.peer, mac(13));
    assert_eq!(a.counter("macs_beyond"), 2);
    // Its successor learns less.
    let behind = || a.show("vifs").iter().filter(|row| row["state"] == "learnt").count();
    assert_eq!(behind(), 5);
    drop(bridge);
    wait_until("it is kept", SOON, || a.show("vifs").iter().any(|row| row["state"] == "kept"));
    let successor = Backend::register(&a.socket, key(2), none);
    successor.peer.claimed();
    assert_eq!(behind(), 3);
}

/// Of the room for MACs behind vifs nobody takes what is another user's share.
#[test]
fn users_share_the_room_for_macs_behind_vifs() {
    let Some(net) = Net::new("varpd: MACs behind the vifs of two users") else { return };
    program(&net);
    let [family, _] = BOTH;
    let a = net.varpd(net.a(), family, "[limits]\nlearnt = 4\n");
    let one = Backend::register(&a.socket, key(1), ACTIVE);
    learn(&one, &[mac(11), mac(12), mac(13), mac(14), mac(15)]);
    claimed(&one.peer, mac(14));
    assert_eq!(refused(&one.peer), mac(15), "there is room for four");
    let other = connect_as(NOBODY, &a.socket);
    other.send(&register(key(2), ACTIVE));
    other.claimed();
    let learn_too = |last| other.send(&Request::Learn { macs: vec![(mac(last), None)] });
    for (last, oldest) in [(21, 11), (22, 12)] {
        learn_too(last);
        claimed(&other, mac(last));
        assert_eq!(refused(&one.peer), mac(oldest));
    }
    learn_too(23);
    assert_eq!(refused(&other), mac(23), "each has two");
    learn(&one, &[mac(16)]);
    assert_eq!(refused(&one.peer), mac(16));
    let rows = a.show("vifs");
    let learnt = rows.iter().filter(|row| row["state"] == "learnt").map(|row| &row["mac"]);
    let want = [13, 14, 21, 22].map(|last| mac(last).to_string());
    assert!(learnt.eq(want.iter()), "{rows:?}");
}

#[test]
fn it_survives_backends_and_varpd() {
    let Some(net) = Net::new("varpd: restarts and MACs behind a vif") else { return };
    let [family, _] = BOTH;
    let mut a = net.varpd(net.a(), family, "");
    let one = Backend::register(&a.socket, key(1), ACTIVE);
    learn(&one, &[mac(8)]);
    let stamp = claimed(&one.peer, mac(8));
    let coa = one.coa;
    drop(one);
    wait_until("it is kept", SOON, || a.show("vifs").iter().any(|row| row["state"] == "kept"));
    let again = Backend::register(&a.socket, key(1), ACTIVE);
    assert_eq!(again.coa, coa);
    assert_eq!(claimed(&again.peer, mac(8)), stamp, "the new backend is told what is behind it");
    a.restart(&net);
    let sockets = again.sockets;
    let back = Backend::return_with(&a.socket, key(1), ACTIVE, sockets);
    back.peer.send(&Request::Learn { macs: vec![(mac(8), Some(stamp))] });
    assert_eq!(claimed(&back.peer, mac(8)), stamp, "the claim goes on");
}
