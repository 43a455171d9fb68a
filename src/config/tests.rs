//! Files as an operator writes them, and complaints about wrong ones.

use super::*;
use crate::policy::Level;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("f.toml")).map_err(|e| e.to_string())
}

#[test]
fn everything_has_a_default() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    let v4 = config.main_group("192.0.2.1".parse().unwrap());
    assert_eq!(v4.to_string(), "224.10.0.1");
    let v6 = config.main_group("2001:db8::1".parse().unwrap());
    assert_eq!(v6.to_string(), "ff15::e00a:1");
}

#[test]
fn every_key_is_read() {
    let config = parse(
        "socket = '/s'\nuser = 'u'\nsocket-group = 'kvm'\noperator-socket = '/o'\noperator-group = 'vnet-admin'\n\
         socket-mode = '0600'\nunderlay = 'eth0'\n\
         ipv6 = true\nrealm = 7\ngroup = 'ff15::1'\ngroups = ['vnet', 'one']\nport = 1799\nbeacon = false\nttl = 4\nports = '40000-40999'\nsandbox = false\n\
         [limits]\nclients = 1\nclients-per-user = 2\nkept-vifs = 3\n\
         [timers]\nkeep = 1.5\nearly-retries = [0.05]\n\
         [security]\npolicy = 'auth'\nvnets = 'listed'\nkey-directory = '/k'\nrekey = 60\n\
         without-landlock = true\n\
         allow-users = ['libvirt-qemu']\nallow-groups = ['vnet']\n\
         [vnet.0x2a]\ngroup = 'ff15::2'\npolicy = 'conf'\nkey-file = '/k/a'\n\
         group-cipher = 'chacha20-poly1305'\nallow-users = [1000, 'kvm']\nallow-groups = [0]\n",
    )
    .unwrap();
    let want = Config {
        socket: "/s".into(),
        user: Some("u".into()),
        socket_group: Some("kvm".into()),
        operator_socket: Some("/o".into()),
        operator_group: Some("vnet-admin".into()),
        socket_mode: SocketMode(0o600),
        underlay: Some("eth0".into()),
        address: None,
        ipv6: true,
        realm: 7,
        group: Some("ff15::1".parse().unwrap()),
        groups: vec![Choice::Vnet, Choice::One].try_into().unwrap(),
        port: Port(1799),
        beacon: false,
        ttl: Ttl(4),
        ports: Some(Ports(40000..=40999)),
        sandbox: false,
        security: Security {
            policy: Policy::only(Level::Auth),
            vnets: Vnets::Listed,
            key_directory: "/k".into(),
            rekey: Seconds(60_000),
            without_landlock: true,
            allow_users: Some(Accounts(vec![Account::Name("libvirt-qemu".into())])),
            allow_groups: Some(Accounts(vec![Account::Name("vnet".into())])),
        },
        limits: Limits { clients: 1, clients_per_user: 2, kept_vifs: 3, ..Limits::default() },
        timers: Timers {
            keep: Seconds(1500),
            early_retries: vec![Seconds(50)],
            ..Timers::default()
        },
        vnet: [(
            VnetName(VnetId::new(42).unwrap()),
            Vnet {
                group: Some("ff15::2".parse().unwrap()),
                policy: Some(Policy::only(Level::Conf)),
                key_file: Some("/k/a".into()),
                group_cipher: Cipher::Chacha20Poly1305,
                allow_users: Some(Accounts(vec![
                    Account::Number(1000),
                    Account::Name("kvm".into()),
                ])),
                allow_groups: Some(Accounts(vec![Account::Number(0)])),
            },
        )]
        .into(),
    };
    assert_eq!(config, want);
    let groups = config.vnet_groups();
    let (own, other) = (VnetId::new(42).unwrap(), VnetId::new(43).unwrap());
    assert_eq!(groups[&own].to_string(), "ff15::2");
    let policies = [own, other].map(|vnet| config.policy(vnet));
    assert_eq!(policies, [Level::Conf, Level::Auth].map(Policy::only));
    assert_eq!(config.group_suites(own), [Suite::ChaCha20Poly1305]);
    assert_eq!(config.group_suites(other), [Suite::AesGmac]);
    assert_eq!((config.takes(own), config.takes(other)), (true, false));
    assert_eq!(config.key_file(own), Path::new("/k/a"));
    assert_eq!(config.key_file(other), Path::new("/k/43.key"));
    assert_eq!(config.secured_vnets().collect::<Vec<_>>(), [own]);
}

#[test]
fn frames_go_to_the_first_group_and_come_from_all() {
    let groups = |text: &str, id| {
        let config = parse(text).unwrap();
        let groups = config.frame_groups(VnetId::new(id).unwrap(), "192.0.2.1".parse().unwrap());
        assert_eq!(groups.first(), groups.all()[0]);
        groups.all().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(groups("", 42), ["224.10.0.1"]);
    assert_eq!(groups("groups = ['one', 'vnet']", 42), ["224.10.0.1", "239.192.0.42"]);
    assert_eq!(groups("groups = ['vnet', 'one']", 42), ["239.192.0.42", "224.10.0.1"]);
    assert_eq!(groups("groups = ['vnet']", 42), ["239.192.0.42"]);
    let named = "groups = ['one', 'vnet']\n[vnet.42]\ngroup = '224.10.0.9'\n[vnet.43]\ngroup = '239.192.0.43'";
    assert_eq!(groups(named, 42), ["224.10.0.9", "239.192.0.42"]);
    assert_eq!(groups(named, 43), ["239.192.0.43"], "one socket for one group");
    assert_eq!(groups(named, 44), ["224.10.0.1", "239.192.0.44"]);
}

#[test]
fn complaints_name_the_line() {
    let complaint = |text: &str| parse(text).unwrap_err();
    assert_eq!(
        complaint("port = 1\n\ngroup = '10.0.0.1'\n"),
        "f.toml:3: 10.0.0.1 is not a multicast address"
    );
    assert_eq!(complaint("port = 0"), "f.toml:1: 0 is not a port from 1 to 65535");
    assert!(complaint("ttl = 1\nprot = 1").starts_with("f.toml:2: unknown field `prot`"));
    assert!(complaint("ttl = 1\nport = ").starts_with("f.toml:2: "));
    assert!(complaint("\nttl = 'x'").starts_with("f.toml:2: invalid type"));
    assert_eq!(
        complaint("\nports = '9-8'"),
        "f.toml:2: '9-8' is not a range of ports like 40000-40999"
    );
    assert!(complaint("[vnet.0]\ngroup = '224.0.0.9'").contains("vnet id 0 is invalid"));
    assert_eq!(
        complaint("underlay = 'eth0'\naddress = '192.0.2.1'"),
        "f.toml:2: 'underlay' and 'address' exclude each other"
    );
    assert_eq!(
        complaint("[timers]\nkeep = 1\nlifetime = 0.5"),
        "f.toml:3: a lifetime is at least one second"
    );
    let groups = "groups are \"one\", \"vnet\" or both, each once";
    for wrong in ["[]", "['one', 'one']", "['vnet', 'one', 'vnet']"] {
        assert_eq!(complaint(&format!("\ngroups = {wrong}")), format!("f.toml:2: {groups}"));
    }
    assert!(complaint("\ngroups = ['two']").starts_with("f.toml:2: unknown variant `two`"));
    assert!(complaint("[timers]\nkeep = -1").starts_with("f.toml:2: -1 is not a time"));
}

#[test]
fn the_example_shows_the_defaults() {
    let text = include_str!("../../qemu-examples/varpd.toml");
    assert_eq!(parse(text).unwrap(), Config::default());
    // What is commented out is right, too: each key alone, since some exclude each other.
    let keys = text.lines().filter_map(|line| line.strip_prefix('#'));
    let keys: Vec<&str> = keys.filter(|line| !line.starts_with(' ') && !line.is_empty()).collect();
    assert_eq!(keys.len(), 15, "{keys:?}");
    for key in keys {
        parse(key).unwrap();
    }
}

#[test]
fn only_the_default_file_may_be_missing() {
    let e = Config::load(Some(Path::new("/nonexistent/varpd.toml"))).unwrap_err();
    assert!(e.to_string().starts_with("/nonexistent/varpd.toml: No such file"), "{e}");
}

/// The policy of one of them would be in force, whichever that is.
#[test]
fn a_vnet_has_one_section() {
    for other in ["0x2a", "0x2A", "042"] {
        let text = format!("[vnet.42]\npolicy = 'conf'\n[vnet.{other}]\ngroup = '224.10.0.9'\n");
        let complaint = parse(&text).unwrap_err();
        assert!(complaint.contains("vnet 42 has two sections"), "{other}: {complaint}");
    }
    let two = parse("[vnet.42]\npolicy = 'conf'\n[vnet.0x2b]\npolicy = 'auth'\n").unwrap();
    assert_eq!(two.vnet.len(), 2);
}

#[test]
fn a_policy_may_be_a_list_that_begins_with_what_is_sent() {
    let policy = |text: &str| {
        let config = parse(&format!("[vnet.42]\npolicy = {text}\n"))?;
        Ok::<_, String>(config.policy(VnetId::new(42).unwrap()).to_string())
    };
    assert_eq!(policy("'none'").unwrap(), "none");
    assert_eq!(policy("['none', 'conf']").unwrap(), "none,conf");
    assert_eq!(policy("['conf', 'none']").unwrap(), "conf,none");
    assert_eq!(policy("['conf']").unwrap(), "conf");
    let wrong = policy("[]").unwrap_err();
    assert_eq!(wrong, "f.toml:2: a list of policies names at least one, and none twice");
    assert_eq!(policy("['conf', 'conf']").unwrap_err(), wrong);
    assert!(policy("'clear'").unwrap_err().starts_with("f.toml:2: a policy is none, auth or conf"));
    let both = parse("[vnet.42]\npolicy = ['none', 'auth', 'conf']\n").unwrap();
    let vnet = VnetId::new(42).unwrap();
    assert_eq!(both.group_suites(vnet), [Suite::AesGcm, Suite::AesGmac]);
    assert_eq!(both.secured_vnets().count(), 1, "its key is read");
}
