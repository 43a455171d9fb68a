//! The operator's command against a real varpd.

use serde_json::Value;
use vnet::wire::control::Event;

use super::peer::{ACTIVE, Backend};
use super::support::netns::Family;
use super::{HASTY, Net, key, mac, vnet};

#[test]
fn tables_are_shown_as_text_and_json() {
    let Some(net) = Net::new("vnet: tables") else { return };
    let varpd = net.varpd(net.a(), Family::V4, "");
    let one = Backend::register(&varpd.socket, key(1), ACTIVE);
    one.peer.claimed();
    let run = |args: &[&str]| {
        let output = vnet(&varpd.socket, args);
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&["show", "vnets"]);
    assert_eq!(code, 0);
    assert_eq!(
        text,
        "VNET  VIFS  ACTIVE  CACHED  GROUP       POLICY  KEY  OTHERS  UNTAGGED\n  42     1       1       0  224.10.0.1  none    -         0         0\n"
    );
    let (code, text) = run(&["-j", "show", "vnets"]);
    let json: Value = serde_json::from_str(&text).unwrap();
    let want = serde_json::json!(
        [{"vnet": 42, "vifs": 1, "active": 1, "cached": 0, "group": "224.10.0.1", "policy": "none",
          "key": null, "others": 0, "untagged": 0}]
    );
    assert_eq!((code, json), (0, want));
    let (code, text) = run(&["show", "vifs", "--vnet", "0x2a", "--mac", "52:54:00:00:00:01"]);
    assert_eq!((code, text.lines().count()), (0, 2), "{text}");
    assert!(text.contains(&one.coa.to_string()), "{text}");
    assert_eq!(run(&["show", "vifs", "--vnet", "43"]), (3, String::new()));
    assert_eq!(run(&["show", "stats", "--mac", "52:54:00:00:00:02"]).0, 3);
    assert_eq!(run(&["show", "nonsense"]).0, 2);
    assert_eq!(run(&["show", "vnets", "--mac", "52:54:00:00:00:02"]).0, 2);
}

#[test]
fn flushing_tells_the_users() {
    let Some(net) = Net::new("vnet: flush") else { return };
    let (a, b) = (net.varpd(net.a(), Family::V4, HASTY), net.varpd(net.b(), Family::V4, ""));
    let here = Backend::register(&a.socket, key(1), ACTIVE);
    let there = Backend::register(&b.socket, key(2), ACTIVE);
    here.peer.resolve(mac(2));
    assert_eq!(here.peer.mapping(mac(2)), there.coa);
    assert!(
        vnet(&a.socket, &["flush", "--vnet", "42", "--mac", &mac(2).to_string()]).status.success()
    );
    here.peer.find(|event| match event {
        Event::Invalidate { mac: of } if *of == mac(2) => Some(()),
        _ => None,
    });
    assert_eq!(a.show("vnets")[0]["cached"], 0);
    here.peer.resolve(mac(2));
    assert_eq!(here.peer.mapping(mac(2)), there.coa, "asked for anew");
}
