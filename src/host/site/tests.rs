use super::*;

fn interface(name: &str, index: u32, addresses: &[&str]) -> Interface {
    Interface {
        name: name.into(),
        index,
        master: None,
        up: true,
        loopback: name == "lo",
        default_route: false,
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
    }
}

fn routed(interface: Interface) -> Interface {
    Interface { default_route: true, ..interface }
}

fn host() -> Vec<Interface> {
    vec![
        interface("lo", 1, &["127.0.0.1", "::1"]),
        routed(interface("eth0", 2, &["169.254.0.9", "192.0.2.1", "fe80::1", "2001:db8::1"])),
        interface("virbr0", 3, &["192.168.122.1"]),
    ]
}

fn on(name: &str) -> Config {
    Config { underlay: Some(name.into()), ..Config::default() }
}

fn at(address: &str) -> Config {
    Config { address: address.parse().ok(), ..Config::default() }
}

fn picked(config: &Config, interfaces: &[Interface]) -> Result<String, String> {
    choose(config, interfaces).map(|(i, a)| format!("{} {a}", i.name)).map_err(|e| e.to_string())
}

#[test]
fn a_named_interface_gives_its_first_global_address() {
    let mut config = on("eth0");
    assert_eq!(picked(&config, &host()).unwrap(), "eth0 192.0.2.1");
    config.ipv6 = true;
    assert_eq!(picked(&config, &host()).unwrap(), "eth0 2001:db8::1");
    assert_eq!(picked(&on("virbr0"), &host()).unwrap(), "virbr0 192.168.122.1");
}

#[test]
fn another_family_or_a_link_local_address_is_taken_only_if_asked_for() {
    let only = |addresses: &[&str]| [interface("eth0", 2, addresses)];
    let (v4, v6) = (on("eth0"), Config { ipv6: true, ..on("eth0") });
    let cases = [
        (&v4, &["fe80::1"][..], "no IPv4 address (only for one link: --address fe80::1)"),
        (&v4, &["169.254.0.9"], "no IPv4 address (only for one link: --address 169.254.0.9)"),
        (&v4, &["fe80::1", "2001:db8::1"], "no IPv4 address (with --ipv6: 2001:db8::1)"),
        (&v6, &["192.0.2.1", "fe80::1"], "no IPv6 address (without --ipv6: 192.0.2.1)"),
        (&v6, &[], "no IPv6 address"),
    ];
    for (config, addresses, complaint) in cases {
        let why = choose(config, &only(addresses)).unwrap_err();
        assert_eq!(why.to_string(), format!("interface 'eth0' has {complaint}"));
        assert!(why.may_pass());
    }
    assert_eq!(picked(&at("fe80::1"), &only(&["fe80::1"])).unwrap(), "eth0 fe80::1");
    let why = choose(&Config::default(), &only(&["fe80::1", "2001:db8::1"])).unwrap_err();
    assert!(why.to_string().starts_with("no interface that is up has an IPv4 address"), "{why}");
    assert!(why.may_pass());
}

#[test]
fn an_address_finds_its_interface() {
    assert_eq!(picked(&at("192.168.122.1"), &host()).unwrap(), "virbr0 192.168.122.1");
    let why = choose(&at("192.0.2.99"), &host()).unwrap_err();
    assert_eq!(
        why.to_string(),
        "no interface has the address 192.0.2.99 (there are: lo 127.0.0.1 ::1, \
         eth0 169.254.0.9 192.0.2.1 fe80::1 2001:db8::1, virbr0 192.168.122.1)"
    );
    assert!(why.may_pass(), "it may come");
}

#[test]
fn without_a_name_only_the_obvious_is_taken() {
    let config = Config::default();
    assert_eq!(picked(&config, &host()).unwrap(), "eth0 192.0.2.1");
    let mut two = host();
    two[2].default_route = true;
    let why = choose(&config, &two).unwrap_err();
    assert!(why.to_string().starts_with("which interface") && !why.may_pass(), "{why}");
    two.remove(1);
    assert_eq!(picked(&config, &two).unwrap(), "virbr0 192.168.122.1");
    two.truncate(1);
    assert!(picked(&config, &two).unwrap_err().contains("(there are: lo 127.0.0.1 ::1)"));
}

#[test]
fn a_port_stands_for_its_bridge() {
    let mut all = host();
    all[1].master = Some(3);
    assert_eq!(picked(&on("eth0"), &all).unwrap(), "eth0 192.0.2.1", "it has one of its own");
    all[1].addresses.clear();
    assert_eq!(picked(&on("eth0"), &all).unwrap(), "virbr0 192.168.122.1");
}

#[test]
fn complaints_are_clear() {
    let why = choose(&on("eth9"), &host()).unwrap_err();
    assert!(why.to_string().starts_with("no interface 'eth9'") && why.may_pass());
    let mut down = host();
    down[1].up = false;
    assert_eq!(picked(&on("eth0"), &down).unwrap_err(), "interface 'eth0' is down");
    assert_eq!(picked(&at("192.0.2.1"), &down).unwrap_err(), "interface 'eth0' is down");
    down[1].addresses.clear();
    assert_eq!(picked(&on("eth0"), &down).unwrap_err(), "interface 'eth0' is down");
    let config = Config { group: "ff15::1".parse().ok(), ..on("eth0") };
    let why = choose(&config, &[]).unwrap_err();
    assert_eq!(
        why.to_string(),
        "group ff15::1 does not fit an IPv4 underlay: choose another one, or say --ipv6"
    );
    assert!(!why.may_pass(), "no address mends that");
    assert!(choose(&Config { ipv6: true, ..config }, &host()).is_ok());
}

/// The host's place at the start of the tests below.
fn eth0() -> Place {
    Place::of(&interface("eth0", 2, &[]), "192.0.2.1".parse().unwrap())
}

fn step(config: &Config, interfaces: &[Interface]) -> Step {
    follow(config, &eth0(), false, interfaces)
}

fn place(interface: &str, index: u32, address: &str) -> Place {
    Place { interface: interface.into(), index, address: address.parse().unwrap() }
}

#[test]
fn the_address_in_use_is_kept_as_long_as_it_is_there() {
    let more = [interface("eth0", 2, &["192.0.2.50", "192.0.2.1"])];
    for config in [on("eth0"), at("192.0.2.1"), Config::default()] {
        assert_eq!(step(&config, &more), Step::Keep);
        assert_eq!(step(&config, &host()), Step::Keep);
    }
    let renamed = [interface("wan0", 2, &["192.0.2.1"])];
    for config in [on("eth0"), at("192.0.2.1"), Config::default()] {
        assert_eq!(step(&config, &renamed), Step::Rename(place("wan0", 2, "192.0.2.1")));
    }
}

#[test]
fn another_address_of_the_interface_is_followed_unless_the_address_is_named() {
    let renumbered = [interface("eth0", 2, &["fe80::1", "192.0.2.77"])];
    let moved = Step::Move(place("eth0", 2, "192.0.2.77"));
    assert_eq!(step(&on("eth0"), &renumbered), moved);
    assert_eq!(step(&Config::default(), &renumbered), moved);
    assert!(matches!(step(&at("192.0.2.1"), &renumbered), Step::Wait(SiteError::NotOurs { .. })));
    let lost = [interface("eth0", 2, &["fe80::1", "2001:db8::1"])];
    for config in [on("eth0"), at("192.0.2.1"), Config::default()] {
        assert!(matches!(step(&config, &lost), Step::Wait(_)), "never another family");
    }
    let mut down = host();
    down[1].up = false;
    down.truncate(2);
    assert_eq!(step(&on("eth0"), &down), Step::Wait(SiteError::Down("eth0".into())));
}

#[test]
fn an_interface_that_is_made_again_is_joined_again() {
    for config in [on("eth0"), at("192.0.2.1"), Config::default()] {
        let again = [interface("eth0", 9, &["192.0.2.1"])];
        assert_eq!(step(&config, &again), Step::Rejoin(place("eth0", 9, "192.0.2.1")));
        let same_index = [interface("eth0", 2, &["192.0.2.1"])];
        assert_eq!(follow(&config, &eth0(), true, &same_index), Step::Rejoin(eth0()));
    }
    // Sockets at such an address are bound to the interface.
    let before = place("eth0", 2, "fe80::1");
    let again = [interface("eth0", 9, &["fe80::1"])];
    let moved = Step::Move(place("eth0", 9, "fe80::1"));
    assert_eq!(follow(&at("fe80::1"), &before, false, &again), moved);
}

#[test]
fn a_bridge_that_takes_the_address_is_followed() {
    let port = Interface { master: Some(5), ..interface("eth0", 2, &[]) };
    let bridge = |addresses: &[&str]| [port.clone(), interface("br0", 5, addresses)];
    let rejoin = Step::Rejoin(place("br0", 5, "192.0.2.1"));
    for config in [on("eth0"), at("192.0.2.1"), Config::default()] {
        assert_eq!(step(&config, &bridge(&["192.0.2.1"])), rejoin);
        assert!(matches!(step(&config, &bridge(&[])), Step::Wait(_)));
    }
    let moved = Step::Move(place("br0", 5, "192.0.2.77"));
    assert_eq!(step(&on("eth0"), &bridge(&["192.0.2.77"])), moved);
    // The same holds where the interface is not a port of it.
    let apart = [interface("eth0", 2, &[]), interface("vlan7", 5, &["192.0.2.1"])];
    assert_eq!(step(&on("eth0"), &apart), Step::Rejoin(place("vlan7", 5, "192.0.2.1")));
    let loopback = [interface("eth0", 2, &[]), interface("lo", 1, &["192.0.2.1"])];
    assert!(matches!(step(&on("eth0"), &loopback), Step::Wait(_)), "nobody is reached there");
}

#[test]
fn where_nothing_is_named_the_default_route_is_followed() {
    let early = place("virbr0", 3, "192.168.122.1");
    let moved = Step::Move(place("eth0", 2, "192.0.2.1"));
    assert_eq!(follow(&Config::default(), &early, false, &host()), moved);
    assert_eq!(follow(&on("virbr0"), &early, false, &host()), Step::Keep);
    assert_eq!(follow(&at("192.168.122.1"), &early, false, &host()), Step::Keep);
    let mut both = host();
    both[2].default_route = true;
    assert_eq!(follow(&Config::default(), &early, false, &both), Step::Keep);
}
