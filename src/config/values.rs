//! The types of the configuration's values. Each checks its value while the file is read.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::wire::VnetId;

/// A list of users, or of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Accounts(pub Vec<Account>);

/// A user or a group, to be looked up by varpd.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "AccountText")]
pub enum Account {
    /// By number.
    Number(u32),
    /// By name.
    Name(String),
}

/// A user or a group as it stands in the file.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a user or group is a name or a number from 0 to 4294967294")]
enum AccountText {
    Number(i64),
    Name(String),
}

impl TryFrom<AccountText> for Account {
    type Error = &'static str;

    fn try_from(text: AccountText) -> Result<Self, Self::Error> {
        let wrong = "a user or group is a name or a number from 0 to 4294967294";
        match text {
            // The last number is nobody's (-1 of chown(2)).
            AccountText::Number(n) => match u32::try_from(n).ok().filter(|uid| *uid != u32::MAX) {
                Some(uid) => Ok(Self::Number(uid)),
                None => Err(wrong),
            },
            AccountText::Name(name) if name.is_empty() => Err(wrong),
            AccountText::Name(name) => Ok(Self::Name(name)),
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

/// Which vnets vifs may be on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vnets {
    /// All.
    #[default]
    Any,
    /// Those that have a section.
    Listed,
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

pub(super) fn at_least_a_second<'de, D: Deserializer<'de>>(from: D) -> Result<Seconds, D::Error> {
    let seconds = Seconds::deserialize(from)?;
    if seconds.0 < 1000 {
        return Err(D::Error::custom("a lifetime is at least one second"));
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

/// Which groups a vnet's frames have, of the two that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase", expecting = "a group is \"one\" or \"vnet\"")]
pub enum Choice {
    /// That of VARP, or the one that is named for the vnet.
    One,
    /// The one that follows from the vnet id ([`crate::wire::group`]).
    Vnet,
}

/// The groups of vnets' frames: these are sent to the first, and listened for at all.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<Choice>")]
pub struct Choices(Vec<Choice>);

impl Choices {
    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = Choice> + '_ {
        self.0.iter().copied()
    }
}

impl Default for Choices {
    fn default() -> Self {
        Self(vec![Choice::One])
    }
}

impl TryFrom<Vec<Choice>> for Choices {
    type Error = String;

    fn try_from(choices: Vec<Choice>) -> Result<Self, String> {
        match choices[..] {
            [Choice::One] | [Choice::Vnet] => {}
            [first, second] if first != second => {}
            _ => return Err("groups are \"one\", \"vnet\" or both, each once".to_owned()),
        }
        Ok(Self(choices))
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

/// The sections of vnets. A vnet that has two, under numbers that are written in different ways,
/// would have the policy of one of them, and be open where the other says that it is secured.
pub(super) fn each_once<'de, D: Deserializer<'de>, V: Deserialize<'de>>(
    from: D,
) -> Result<BTreeMap<VnetName, V>, D::Error> {
    struct Sections<V>(PhantomData<V>);

    impl<'de, V: Deserialize<'de>> Visitor<'de> for Sections<V> {
        type Value = BTreeMap<VnetName, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a section for each vnet")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut sections = BTreeMap::new();
            while let Some((name, section)) = map.next_entry::<VnetName, V>()? {
                if sections.insert(name, section).is_some() {
                    let text =
                        format!("vnet {} has two sections, under names that mean the same", name.0);
                    return Err(A::Error::custom(text));
                }
            }
            Ok(sections)
        }
    }
    from.deserialize_map(Sections(PhantomData))
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
