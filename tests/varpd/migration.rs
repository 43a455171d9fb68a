//! Guests that move: to another host, and within one.

use vnet::wire::control::Request;

use super::peer::{ACTIVE, Backend, INACTIVE, frame, take};
use super::support::wait_until;
use super::{BOTH, Net, SOON, Varpd, key, mac};

#[test]
fn a_guest_that_moves_to_another_host_is_followed() {
    let Some(net) = Net::new("varpd: migration") else { return };
    for family in BOTH {
        let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
        let source = Backend::register(&a.socket, key(1), ACTIVE);
        let user = Backend::register(&a.socket, key(2), ACTIVE);
        let stamp = source.peer.claimed();
        user.peer.resolve(mac(1));
        assert_eq!(user.peer.mapping(mac(1)), source.coa);
        // The target's backend is there before the guest is.
        let target = Backend::register(&b.socket, key(1), INACTIVE);
        target.peer.send(&Request::SetActive { active: true });
        let newer = target.peer.claimed();
        assert!(newer > stamp);
        assert_eq!(source.peer.lost(), (newer, target.coa));
        assert_eq!(user.peer.mapping(mac(1)), target.coa);
        let row = |state: &str| a.show("vifs").iter().any(|row| row["state"] == state);
        assert!(row("lost"));
        source.peer.send(&Request::SetActive { active: false });
        wait_until("the source has stopped", SOON, || row("registered"));
        target.peer.send(&Request::Announce);
        // And back.
        source.peer.send(&Request::SetActive { active: true });
        let newest = source.peer.claimed();
        assert_eq!(target.peer.lost(), (newest, source.coa));
    }
}

#[test]
fn a_guest_that_moves_within_the_host_keeps_its_old_backend_until_it_has_moved() {
    let Some(net) = Net::new("varpd: migration within a host") else { return };
    for family in BOTH {
        let varpd = net.varpd(net.a(), family, "");
        let source = Backend::register(&varpd.socket, key(1), ACTIVE);
        let user = Backend::register(&varpd.socket, key(2), ACTIVE);
        user.peer.resolve(mac(1));
        assert_eq!(user.peer.mapping(mac(1)), source.coa);
        let target = Backend::register(&varpd.socket, key(1), INACTIVE);
        assert_ne!(target.coa, source.coa);
        assert_eq!(varpd.show("vifs").len(), 3);
        user.peer.resolve(mac(1));
        assert_eq!(user.peer.mapping(mac(1)), source.coa, "the guest is still there");
        target.peer.send(&Request::SetActive { active: true });
        let newer = target.peer.claimed();
        assert_eq!(source.peer.lost(), (newer, target.coa));
        assert_eq!(user.peer.mapping(mac(1)), target.coa);
        drop(source);
        user.peer.resolve(mac(1));
        assert_eq!(user.peer.mapping(mac(1)), target.coa);
    }
}

/// The guest stops, and its varpd knows: one that starts elsewhere before is a second guest with its MAC.
fn stop(source: &Backend, varpd: &Varpd) {
    source.peer.send(&Request::SetActive { active: false });
    wait_until("the guest has stopped", SOON, || varpd.show("vifs")[0]["state"] == "registered");
}

/// What arrived at the sockets of a guest that went elsewhere is old when the guest comes back.
#[test]
fn a_guest_that_comes_back_finds_no_late_frames() {
    let Some(net) = Net::new("varpd: migration and back") else { return };
    for family in BOTH {
        let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
        let source = Backend::register(&a.socket, key(1), ACTIVE);
        let user = Backend::register(&b.socket, key(2), ACTIVE);
        source.peer.claimed();
        let old = source.coa;
        stop(&source, &a);
        let target = Backend::register(&b.socket, key(1), ACTIVE);
        assert_eq!(source.peer.lost().1, target.coa);
        user.unicast().send_to(&frame(42, "late"), old.addr).unwrap();
        drop(source);
        wait_until("the source is gone", SOON, || a.show("vifs")[0]["state"] == "kept");
        let back = Backend::register(&a.socket, key(1), INACTIVE);
        assert_ne!(back.coa, old);
        back.peer.send(&Request::SetActive { active: true });
        back.peer.claimed();
        assert_eq!(target.peer.lost().1, back.coa);
        user.unicast().send_to(&frame(42, "now"), back.coa.addr).unwrap();
        assert_eq!(take(back.unicast()).0, frame(42, "now"));
        // Else it would take the guest back when the backend here ends.
        target.peer.send(&Request::SetActive { active: false });
        wait_until("the guest runs here alone", SOON, || {
            b.show("vifs").iter().all(|vif| vif["state"] != "lost")
        });
        // From now on it is as any other: a restart finds its address.
        drop(back.peer);
        let again = Backend::register(&a.socket, key(1), ACTIVE);
        assert_eq!(again.coa, back.coa);
    }
}

/// A backend that has ended sends nothing on; but who still sends there is told where the guest is.
#[test]
fn the_senders_of_late_frames_are_told_also_when_the_backend_has_ended() {
    let Some(net) = Net::new("varpd: late frames for a backend that has ended") else { return };
    for family in BOTH {
        let (a, b) = (net.varpd(net.a(), family, ""), net.varpd(net.b(), family, ""));
        let source = Backend::register(&a.socket, key(1), ACTIVE);
        let sender = Backend::register(&b.socket, key(2), ACTIVE);
        source.peer.claimed();
        let old = source.coa;
        stop(&source, &a);
        let target = Backend::register(&b.socket, key(1), ACTIVE);
        assert_eq!(source.peer.lost().1, target.coa);
        // While it lives it reports them.
        source.peer.send(&Request::Late { mac: mac(1), sender: sender.coa.addr });
        wait_until("the sender's host is told", SOON, || a.counter("tx_corrections") == 1);
        drop(source);
        wait_until("the source is gone", SOON, || a.show("vifs")[0]["state"] == "kept");
        for n in 1..=3 {
            sender.unicast().send_to(&frame(42, "late"), old.addr).unwrap();
            wait_until("the frame is counted", SOON, || a.counter("late_frames") == n);
        }
        wait_until("the sender's host is told again", SOON, || {
            sender.unicast().send_to(&frame(42, "late"), old.addr).unwrap();
            a.counter("tx_corrections") >= 2
        });
        wait_until("and hears it", SOON, || b.counter("rx_corrections") >= 2);
    }
}
