//! varpd's configuration: what the file says, what the command line overrides, and the defaults.
//!
//! Values are checked while the file is parsed, so that each complaint names its line.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use crate::mapper;
use crate::security::{Level, Suite, sadb};
use crate::wire::VnetId;

/// Where varpd listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/vnet/varpd.sock";
/// The configuration that is read if it exists and none is named.
pub const DEFAULT_FILE: &str = "/etc/vnet/varpd.toml";
/// Where key files are unless told otherwise.
pub const DEFAULT_KEYS: &str = "/etc/vnet/keys";
/// UDP port of VARP and of group traffic.
pub const DEFAULT_PORT: u16 = 1798;
/// Group on an IPv4 underlay.
pub const DEFAULT_GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 10, 0, 1);
/// Group on an IPv6 underlay: transient, of site-local scope (RFC 4291, 2.7), with the same number.
pub const DEFAULT_GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff15, 0, 0, 0, 0, 0, 0xe00a, 1);

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file doesn't say what can be understood.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
}

/// varpd's configuration. Every key of the file has a field of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// Group that may use the control socket.
    pub socket_group: Option<String>,
    /// Permission bits of the control socket.
    pub socket_mode: SocketMode,
    /// Interface of the underlay; excludes `address`.
    pub underlay: Option<String>,
    /// Address on the underlay; excludes `underlay`.
    pub address: Option<IpAddr>,
    /// Prefer an IPv6 address of the underlay's interface.
    pub ipv6: bool,
    /// Multicast group of VARP, and of the vnets without one of their own.
    pub group: Option<Group>,
    /// UDP port of VARP and of all groups.
    pub port: Port,
    /// TTL or hop limit of multicast.
    pub ttl: Ttl,
    /// UDP ports for vifs; the kernel's ephemeral ones if not given.
    pub ports: Option<Ports>,
    /// Whether varpd gives up what it does not need once it has started.
    pub sandbox: bool,
    /// Protection of vnets that do not say otherwise.
    pub security: Security,
    /// Bounds.
    pub limits: Limits,
    /// Times.
    pub timers: Timers,
    /// What differs for single vnets.
    pub vnet: BTreeMap<VnetName, Vnet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            socket_group: None,
            socket_mode: SocketMode(0o660),
            underlay: None,
            address: None,
            ipv6: false,
            group: None,
            port: Port(DEFAULT_PORT),
            ttl: Ttl(1),
            ports: None,
            sandbox: true,
            security: Security::default(),
            limits: Limits::default(),
            timers: Timers::default(),
            vnet: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads a file; without a name the default one, which need not exist.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let named = path.unwrap_or(Path::new(DEFAULT_FILE));
        match std::fs::read_to_string(named) {
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read { path: named.to_owned(), source }),
            Ok(text) => Self::parse(&text, named),
        }
    }

    /// Parses a file's text; `path` is for complaints.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |at: usize, message: String| ConfigError::Parse {
            path: path.to_owned(),
            line: 1 + text.bytes().take(at).filter(|&b| b == b'\n').count(),
            message,
        };
        let config: Self = toml::from_str(text).map_err(|e| {
            // The first line says it all; the rest are hints that span lines.
            let message = e.message().lines().next().unwrap_or("malformed").to_owned();
            wrong(e.span().map_or(0, |span| span.start), message)
        })?;
        if config.underlay.is_some() && config.address.is_some() {
            let at = text.find("address").unwrap_or(0);
            return Err(wrong(at, "'underlay' and 'address' exclude each other".into()));
        }
        Ok(config)
    }

    /// The group of VARP and of vnets without one of their own, on an underlay with this address.
    pub fn main_group(&self, address: IpAddr) -> IpAddr {
        match (self.group, address) {
            (Some(Group(group)), _) => group,
            (None, IpAddr::V4(_)) => DEFAULT_GROUP_V4.into(),
            (None, IpAddr::V6(_)) => DEFAULT_GROUP_V6.into(),
        }
    }

    /// How a vnet's traffic is protected.
    pub fn policy(&self, vnet: VnetId) -> Level {
        let own = self.vnet.get(&VnetName(vnet)).and_then(|vnet| vnet.policy);
        own.unwrap_or(self.security.policy)
    }

    /// What a vnet's group frames are sealed with; `None` if it is not secured.
    pub fn group_suite(&self, vnet: VnetId) -> Option<Suite> {
        let cipher = self.vnet.get(&VnetName(vnet)).map(|vnet| vnet.group_cipher);
        Suite::choose(self.policy(vnet), cipher.unwrap_or_default() == Cipher::AesGcm)
    }

    /// Where a vnet's key is.
    pub fn key_file(&self, vnet: VnetId) -> PathBuf {
        let own = self.vnet.get(&VnetName(vnet)).and_then(|vnet| vnet.key_file.clone());
        own.unwrap_or_else(|| self.security.key_directory.join(format!("{vnet}.key")))
    }

    /// The vnets that have a section and are secured.
    pub fn secured_vnets(&self) -> impl Iterator<Item = VnetId> + '_ {
        self.vnet.keys().map(|name| name.0).filter(|vnet| self.policy(*vnet).is_secured())
    }

    /// The groups of single vnets.
    pub fn vnet_groups(&self) -> BTreeMap<VnetId, IpAddr> {
        let own = |(name, vnet): (&VnetName, &Vnet)| Some((name.0, vnet.group?.0));
        self.vnet.iter().filter_map(own).collect()
    }
}

/// Bounds of what clients and the underlay can make varpd hold.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// Connections to the control socket.
    pub clients: usize,
    /// Of these, from one user other than root.
    pub clients_per_user: usize,
    /// Vifs whose backend is gone and whose sockets are kept.
    pub kept_vifs: usize,
    /// Vifs.
    pub vifs: usize,
    /// MACs behind one vif (its backend's `--learn`).
    pub learnt_per_vif: usize,
    /// MACs behind all vifs.
    pub learnt: usize,
    /// Cached mappings.
    pub entries: usize,
    /// Of these, of one vnet.
    pub entries_per_vnet: usize,
    /// Resolutions under way.
    pub pending: usize,
    /// Of these, that one vif began.
    pub pending_per_vif: usize,
    /// New resolutions that one vif may begin per second.
    pub requests_per_second: u32,
    /// How many of them at once after a quiet time.
    pub request_burst: u32,
    /// Lanes between vifs of this host; 0: they talk over UDP.
    pub lanes: usize,
    /// Of these, to and from one vif.
    pub lanes_per_vif: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let mapper = mapper::Limits::default();
        Self {
            clients: 1024,
            clients_per_user: 512,
            kept_vifs: 256,
            vifs: mapper.vifs,
            learnt_per_vif: crate::wire::control::MAX_MACS,
            learnt: mapper.learnt,
            entries: mapper.entries,
            entries_per_vnet: mapper.entries_per_vnet,
            pending: mapper.pending,
            pending_per_vif: mapper.pending_per_vif,
            requests_per_second: mapper.requests_per_second,
            request_burst: mapper.request_burst,
            lanes: 1024,
            lanes_per_vif: 128,
        }
    }
}

/// Times.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Timers {
    /// How long the sockets of a vif are kept after its backend is gone.
    pub keep: Seconds,
    /// How long one try of a resolution waits.
    pub reply_timeout: Seconds,
    /// Tries of a resolution.
    pub tries: u32,
    /// Waits between the first requests of the first try.
    pub early_retries: Vec<Seconds>,
    /// How long a claim may be believed without being confirmed; at least a second.
    #[serde(deserialize_with = "at_least_a_second")]
    pub lifetime: Seconds,
    /// How long nobody is asked again after a resolution without an answer.
    pub negative_lifetime: Seconds,
    /// How often a claim is announced again; 0 is never.
    pub announce_interval: Seconds,
}

impl Default for Timers {
    fn default() -> Self {
        let mapper = mapper::Config::default();
        let seconds = |d: Duration| Seconds(u32::try_from(d.as_millis()).unwrap_or(u32::MAX));
        Self {
            keep: Seconds(60_000),
            reply_timeout: seconds(mapper.reply_timeout),
            tries: mapper.tries,
            early_retries: mapper.early_retries.iter().copied().map(seconds).collect(),
            lifetime: seconds(mapper.lifetime),
            negative_lifetime: seconds(mapper.negative_lifetime),
            announce_interval: seconds(mapper.announce_interval),
        }
    }
}

/// Protection.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Security {
    /// The policy of vnets that have none of their own.
    pub policy: Level,
    /// Where key files are, named `ID.key` with a decimal id.
    pub key_directory: PathBuf,
    /// Age at which keys between two hosts are replaced; at least a second.
    #[serde(deserialize_with = "at_least_a_second")]
    pub rekey: Seconds,
    /// Who may have vifs on vnets that have no list of their own.
    pub allow_users: Option<Users>,
}

impl Default for Security {
    fn default() -> Self {
        let rekey = sadb::Config::default().rekey;
        let rekey = Seconds(u32::try_from(rekey.as_millis()).unwrap_or(u32::MAX));
        Self { policy: Level::None, key_directory: DEFAULT_KEYS.into(), rekey, allow_users: None }
    }
}

/// What differs for one vnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Vnet {
    /// Multicast group of the vnet's group frames.
    pub group: Option<Group>,
    /// How its traffic is protected.
    pub policy: Option<Level>,
    /// Where its key is.
    pub key_file: Option<PathBuf>,
    /// What protects its group frames, if the policy is conf.
    pub group_cipher: Cipher,
    /// Who may have vifs on it, beside root; all who can connect if not given.
    pub allow_users: Option<Users>,
}

/// A list of users.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Users(pub Vec<User>);

/// A user, to be looked up by varpd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "UserText")]
pub enum User {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
}

/// A user as it stands in the file.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a user is a name or a number from 0 to 4294967294")]
enum UserText {
    Number(i64),
    Name(String),
}

impl TryFrom<UserText> for User {
    type Error = &'static str;

    fn try_from(text: UserText) -> Result<Self, Self::Error> {
        let wrong = "a user is a name or a number from 0 to 4294967294";
        match text {
            // The last number is nobody's (-1 of chown(2)).
            UserText::Number(n) => match u32::try_from(n).ok().filter(|uid| *uid != u32::MAX) {
                Some(uid) => Ok(Self::Number(uid)),
                None => Err(wrong),
            },
            UserText::Name(name) if name.is_empty() => Err(wrong),
            UserText::Name(name) => Ok(Self::Name(name)),
        }
    }
}

/// A cipher that is not negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cipher {
    /// AES-256-GCM.
    #[default]
    AesGcm,
    /// ChaCha20-Poly1305, for processors without instructions for AES.
    Chacha20Poly1305,
}

/// A span of time, given in seconds with decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "f64")]
pub struct Seconds(/** In milliseconds. */ pub u32);

impl Seconds {
    /// As a duration.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0.into())
    }
}

impl TryFrom<f64> for Seconds {
    type Error = String;

    fn try_from(seconds: f64) -> Result<Self, String> {
        let longest = Duration::from_secs(30 * 24 * 3600);
        let duration = Duration::try_from_secs_f64(seconds).ok().filter(|d| *d <= longest);
        let millis = duration.and_then(|d| u32::try_from(d.as_millis()).ok());
        millis.map(Self).ok_or_else(|| format!("{seconds} is not a time of 0 to 2592000 seconds"))
    }
}

fn at_least_a_second<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Seconds, D::Error> {
    let seconds = Seconds::deserialize(from)?;
    if seconds.0 < 1000 {
        return Err(serde::de::Error::custom("a lifetime is at least one second"));
    }
    Ok(seconds)
}

/// A multicast group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Group(pub IpAddr);

impl FromStr for Group {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let ip: IpAddr = s.parse().map_err(|_| format!("'{s}' is not an IP address"))?;
        if !ip.is_multicast() {
            return Err(format!("{ip} is not a multicast address"));
        }
        Ok(Self(ip))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A UDP port other than 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Port(pub u16);

impl TryFrom<i64> for Port {
    type Error = String;

    fn try_from(n: i64) -> Result<Self, String> {
        let port = u16::try_from(n).ok().filter(|&p| p != 0);
        port.map(Self).ok_or_else(|| format!("{n} is not a port from 1 to 65535"))
    }
}

impl FromStr for Port {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        s.parse::<i64>().map_err(|_| format!("'{s}' is not a port from 1 to 65535"))?.try_into()
    }
}

/// A TTL or hop limit, not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Ttl(pub u8);

impl TryFrom<i64> for Ttl {
    type Error = String;

    fn try_from(n: i64) -> Result<Self, String> {
        let ttl = u8::try_from(n).ok().filter(|&t| t != 0);
        ttl.map(Self).ok_or_else(|| format!("{n} is not a TTL from 1 to 255"))
    }
}

/// A range of UDP ports, `FIRST-LAST`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Ports(pub RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("'{s}' is not a range of ports like 40000-40999");
        let (first, last) = s.split_once('-').ok_or_else(wrong)?;
        let port = |p: &str| p.trim().parse::<Port>().map_err(|_| wrong());
        let (Port(first), Port(last)) = (port(first)?, port(last)?);
        if first > last { Err(wrong()) } else { Ok(Self(first..=last)) }
    }
}

/// Permission bits of a socket, in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SocketMode(pub u32);

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(s, 8).ok().filter(|m| *m <= 0o777);
        mode.map(Self).ok_or_else(|| format!("'{s}' is not an octal mode like 0660"))
    }
}

/// A vnet id as the name of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct VnetName(pub VnetId);

impl FromStr for VnetName {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        s.parse().map(Self)
    }
}

macro_rules! try_from_string {
    ($($name:ident),+) => {
        $(impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(s: String) -> Result<Self, String> {
                s.parse()
            }
        })+
    };
}

try_from_string!(Group, Ports, SocketMode, VnetName);

#[cfg(test)]
mod tests {
    use super::*;

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
            "socket = '/s'\nsocket-group = 'kvm'\nsocket-mode = '0600'\nunderlay = 'eth0'\n\
             ipv6 = true\ngroup = 'ff15::1'\nport = 1799\nttl = 4\nports = '40000-40999'\nsandbox = false\n\
             [limits]\nclients = 1\nclients-per-user = 2\nkept-vifs = 3\n\
             [timers]\nkeep = 1.5\nearly-retries = [0.05]\n\
             [security]\npolicy = 'auth'\nkey-directory = '/k'\nrekey = 60\n\
             allow-users = ['libvirt-qemu']\n\
             [vnet.0x2a]\ngroup = 'ff15::2'\npolicy = 'conf'\nkey-file = '/k/a'\n\
             group-cipher = 'chacha20-poly1305'\nallow-users = [1000, 'kvm']\n",
        )
        .unwrap();
        let want = Config {
            socket: "/s".into(),
            socket_group: Some("kvm".into()),
            socket_mode: SocketMode(0o600),
            underlay: Some("eth0".into()),
            address: None,
            ipv6: true,
            group: Some("ff15::1".parse().unwrap()),
            port: Port(1799),
            ttl: Ttl(4),
            ports: Some(Ports(40000..=40999)),
            sandbox: false,
            security: Security {
                policy: Level::Auth,
                key_directory: "/k".into(),
                rekey: Seconds(60_000),
                allow_users: Some(Users(vec![User::Name("libvirt-qemu".into())])),
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
                    policy: Some(Level::Conf),
                    key_file: Some("/k/a".into()),
                    group_cipher: Cipher::Chacha20Poly1305,
                    allow_users: Some(Users(vec![User::Number(1000), User::Name("kvm".into())])),
                },
            )]
            .into(),
        };
        assert_eq!(config, want);
        let groups = config.vnet_groups();
        let (own, other) = (VnetId::new(42).unwrap(), VnetId::new(43).unwrap());
        assert_eq!(groups[&own].to_string(), "ff15::2");
        assert_eq!((config.policy(own), config.policy(other)), (Level::Conf, Level::Auth));
        assert_eq!(config.group_suite(own), Some(Suite::ChaCha20Poly1305));
        assert_eq!(config.group_suite(other), Some(Suite::AesGmac));
        assert_eq!(config.key_file(own), Path::new("/k/a"));
        assert_eq!(config.key_file(other), Path::new("/k/43.key"));
        assert_eq!(config.secured_vnets().collect::<Vec<_>>(), [own]);
    }

    #[test]
    fn complaints_name_the_line() {
        let complaint = |text| parse(text).unwrap_err();
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
        assert!(complaint("[timers]\nkeep = -1").starts_with("f.toml:2: -1 is not a time"));
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let text = include_str!("../qemu-examples/varpd.toml");
        assert_eq!(parse(text).unwrap(), Config::default());
        // What is commented out is right, too: each key alone, since some exclude each other.
        let keys = text.lines().filter_map(|line| line.strip_prefix('#'));
        let keys: Vec<&str> =
            keys.filter(|line| !line.starts_with(' ') && !line.is_empty()).collect();
        assert_eq!(keys.len(), 10, "{keys:?}");
        for key in keys {
            parse(key).unwrap();
        }
    }

    #[test]
    fn only_the_default_file_may_be_missing() {
        let e = Config::load(Some(Path::new("/nonexistent/varpd.toml"))).unwrap_err();
        assert!(e.to_string().starts_with("/nonexistent/varpd.toml: No such file"), "{e}");
    }
}
