//! varpd's configuration: the file, the command line, which overrides it, and the defaults.
//!
//! The parser of the file checks values, so that each error message names the line.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

pub use self::values::{
    Account, Accounts, Choice, Choices, Cipher, Group, Port, Ports, Seconds, SocketMode, Ttl,
    VnetName, Vnets,
};
use self::values::{at_least_a_second, each_once};
use crate::mapper;
use crate::policy::{Policy, Suite};
use crate::security::sadb;
use crate::wire::{VnetId, group, varp};

/// Where varpd listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/varpd/varpd.sock";
/// Where varpd's unit has it listen for operators; `vnet` asks there first.
pub const DEFAULT_OPERATOR_SOCKET: &str = "/run/varpd/operator.sock";
/// The configuration that is read if it exists and none is named.
pub const DEFAULT_FILE: &str = "/etc/vnet/varpd.toml";
/// Where key files are unless told otherwise.
pub const DEFAULT_KEYS: &str = "/etc/vnet/keys";
/// The user as whom varpd runs if it is started as root and the user exists.
pub const DEFAULT_USER: &str = "varpd";
/// UDP port of VARP and of group traffic.
pub const DEFAULT_PORT: u16 = varp::PORT;
/// Group on an IPv4 underlay.
pub const DEFAULT_GROUP_V4: Ipv4Addr = varp::GROUP;
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
    /// The file has an invalid line.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The fault.
        message: String,
    },
}

/// varpd's configuration. Every key of the file has a field of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Path of the control socket.
    pub socket: PathBuf,
    /// As whom varpd runs if it is started as root; [`DEFAULT_USER`] if there is one.
    pub user: Option<String>,
    /// Group that may use the control socket.
    pub socket_group: Option<String>,
    /// Path of a socket for operators.
    pub operator_socket: Option<PathBuf>,
    /// Group whose members are operators, beside root.
    pub operator_group: Option<String>,
    /// Permission bits of the control socket.
    pub socket_mode: SocketMode,
    /// Interface of the underlay; excludes `address`.
    pub underlay: Option<String>,
    /// Address on the underlay; excludes `underlay`.
    pub address: Option<IpAddr>,
    /// Prefer an IPv6 address of the underlay's interface.
    pub ipv6: bool,
    /// The realm of this host: tells private networks with equal addresses apart.
    pub realm: u32,
    /// Multicast group of VARP, and of the vnets without one of their own.
    pub group: Option<Group>,
    /// The groups of vnets' frames: sent to the first, listened for at all.
    pub groups: Choices,
    /// UDP port of VARP and of all groups.
    pub port: Port,
    /// Whether hosts with another group, port or address family are to be seen, by beacons.
    pub beacon: bool,
    /// TTL or hop limit of multicast.
    pub ttl: Ttl,
    /// UDP ports for vifs; the kernel's ephemeral ones if not given.
    pub ports: Option<Ports>,
    /// Whether varpd confines itself once it has started.
    pub sandbox: bool,
    /// Protection of vnets that do not say otherwise.
    pub security: Security,
    /// Bounds.
    pub limits: Limits,
    /// Times.
    pub timers: Timers,
    /// What differs for single vnets.
    #[serde(deserialize_with = "each_once")]
    pub vnet: BTreeMap<VnetName, Vnet>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            user: None,
            socket_group: None,
            operator_socket: None,
            operator_group: None,
            socket_mode: SocketMode(0o660),
            underlay: None,
            address: None,
            ipv6: false,
            realm: 0,
            group: None,
            groups: Choices::default(),
            port: Port(DEFAULT_PORT),
            beacon: true,
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

    /// The groups of a vnet's frames on an underlay with this address.
    pub fn frame_groups(&self, vnet: VnetId, address: IpAddr) -> FrameGroups {
        let own = self.vnet.get(&VnetName(vnet)).and_then(|vnet| vnet.group);
        let mut all: Vec<IpAddr> = Vec::new();
        for choice in self.groups.iter() {
            let group = match choice {
                Choice::One => own.map_or_else(|| self.main_group(address), |group| group.0),
                Choice::Vnet => group::of_vnet(vnet, address),
            };
            if !all.contains(&group) {
                all.push(group);
            }
        }
        FrameGroups(all)
    }

    /// How a vnet's traffic is protected.
    pub fn policy(&self, vnet: VnetId) -> Policy {
        let own = self.vnet.get(&VnetName(vnet)).and_then(|vnet| vnet.policy);
        own.unwrap_or(self.security.policy)
    }

    /// What a vnet's group frames are sealed with under each of its policies that has keys, the one
    /// that is sent under first.
    pub fn group_suites(&self, vnet: VnetId) -> Vec<Suite> {
        let cipher = self.vnet.get(&VnetName(vnet)).map(|vnet| vnet.group_cipher);
        let has_aes = cipher.unwrap_or_default() == Cipher::AesGcm;
        self.policy(vnet).secured().filter_map(|level| Suite::choose(level, has_aes)).collect()
    }

    /// Whether vifs may be on a vnet.
    pub fn takes(&self, vnet: VnetId) -> bool {
        self.security.vnets == Vnets::Any || self.vnet.contains_key(&VnetName(vnet))
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

/// The groups of a vnet's frames, each once; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameGroups(Vec<IpAddr>);

impl fmt::Display for FrameGroups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }
}

impl FrameGroups {
    /// Where they are sent.
    pub fn first(&self) -> IpAddr {
        self.0.first().copied().unwrap_or(IpAddr::V4(DEFAULT_GROUP_V4))
    }

    /// Where they are listened for.
    pub fn all(&self) -> &[IpAddr] {
        &self.0
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
    /// Registrations of vifs per second, of one user other than root; at once it is
    /// `clients_per_user`.
    pub registrations_per_second: u32,
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
            registrations_per_second: 10,
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
    /// Time for which varpd sends no new request after a resolution without an answer.
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
    pub policy: Policy,
    /// Which vnets vifs may be on.
    pub vnets: Vnets,
    /// Where key files are, named `ID.key` with a decimal id.
    pub key_directory: PathBuf,
    /// Age at which keys between two hosts are replaced; at least a second.
    #[serde(deserialize_with = "at_least_a_second")]
    pub rekey: Seconds,
    /// Whether secured vnets are served on a kernel without Landlock.
    pub without_landlock: bool,
    /// Users who may have vifs on vnets that have no list of their own.
    pub allow_users: Option<Accounts>,
    /// The groups of those.
    pub allow_groups: Option<Accounts>,
}

impl Default for Security {
    fn default() -> Self {
        let rekey = sadb::Config::default().rekey;
        let rekey = Seconds(u32::try_from(rekey.as_millis()).unwrap_or(u32::MAX));
        Self {
            policy: Policy::default(),
            vnets: Vnets::Any,
            key_directory: DEFAULT_KEYS.into(),
            rekey,
            without_landlock: false,
            allow_users: None,
            allow_groups: None,
        }
    }
}

/// What differs for one vnet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Vnet {
    /// Multicast group of the vnet's group frames.
    pub group: Option<Group>,
    /// How its traffic is protected.
    pub policy: Option<Policy>,
    /// Where its key is.
    pub key_file: Option<PathBuf>,
    /// What protects its group frames, if the policy is conf.
    pub group_cipher: Cipher,
    /// Who may have vifs on it, beside root. If neither this nor `allow_groups` is given: who is on
    /// the lists of `[security]`; without those all who can connect, or on a secured vnet root
    /// alone.
    pub allow_users: Option<Accounts>,
    /// The groups of those.
    pub allow_groups: Option<Accounts>,
}
