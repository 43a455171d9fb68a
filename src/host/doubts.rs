//! Names hosts that set up a vnet otherwise than this one (another policy, key, realm, set of
//! groups or cipher), or that speak another version of the format.
//!
//! Such hosts lose each other's messages or frames, and no request fails with an error. So varpd
//! names each of them in the log, at most once a minute per reason. The name is the source address
//! of a message that may be forged: outsiders can cause wrong lines, within a bound.

use std::net::{IpAddr, SocketAddr};

use crate::metrics::VarpdCounter;
use crate::quiet::QuietOf;
use crate::security::keys::KeyId;
use crate::security::membership::Refusal;
use crate::time::{Instant, Now};
use crate::wire::handshake::Body;
use crate::wire::name::Name;
use crate::wire::varp::{Message, VERSION};
use crate::wire::{ParseError, VnetId, handshake};

use super::Host;

// VARP and the handshake have the same version number, so one line about a host covers both.
const _: () = assert!(handshake::VERSION == VERSION);
/// Most lines a minute per vnet and reason.
const LINES: u32 = 10;

/// The reason for which varpd names a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    /// Its messages have no tag, but the vnet has keys here.
    Untagged,
    /// Its messages have a tag, but the vnet has no keys here.
    Tagged,
    /// Its messages use a key that is unknown here.
    Key,
    /// It calls itself by another name than this host does.
    Name,
    /// It uses other groups, or another cipher for group frames.
    Setup,
    /// It speaks another version of VARP or of the handshake, on any vnet.
    Version,
}

/// Recently named hosts: each at most once a minute per vnet and reason. Outsiders that send from
/// many addresses can use up the lines of one vnet and reason; other vnets and reasons have lines
/// of their own.
#[derive(Debug)]
pub(super) struct Doubts(QuietOf<(Option<VnetId>, Doubt), IpAddr>);

impl Default for Doubts {
    fn default() -> Self {
        Self(QuietOf::new(LINES, 1))
    }
}

impl Doubts {
    /// Whether to name a host now because it has set up a vnet otherwise.
    pub(super) fn is_other_setup(&mut self, vnet: VnetId, host: IpAddr, now: Instant) -> bool {
        self.is_new((Some(vnet), host, Doubt::Setup), now)
    }

    /// Whether to name a host now.
    fn is_new(
        &mut self,
        (vnet, host, doubt): (Option<VnetId>, IpAddr, Doubt),
        now: Instant,
    ) -> bool {
        self.0.level((vnet, doubt), host, now) == log::Level::Warn
    }
}

impl Host {
    /// Checks a message of another host, received as `bytes`, and removes its tag. Counts the
    /// message if it is refused.
    pub(super) fn check(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        message: Message,
        now: Now,
    ) -> Option<Message> {
        let (vnet, host) = (message.key.vnet, from.ip().to_canonical());
        let refusal = match self.security.check(from, bytes, message, now) {
            Ok(heard) => {
                if heard.is_other {
                    self.counters.inc(VarpdCounter::varp_other_policy);
                }
                if heard.message.tag.is_some() {
                    self.doubt(vnet, host, Doubt::Tagged, now);
                }
                return Some(heard.message);
            }
            Err(refusal) => refusal,
        };
        self.counters.inc(match refusal {
            Refusal::Untagged => VarpdCounter::varp_drop_untagged,
            Refusal::Key => VarpdCounter::varp_drop_key,
            Refusal::Forged => VarpdCounter::varp_drop_forged,
            Refusal::Stale => VarpdCounter::varp_drop_stale,
            Refusal::Replayed | Refusal::Full => VarpdCounter::varp_drop_replayed,
        });
        match refusal {
            Refusal::Untagged => self.doubt(vnet, host, Doubt::Untagged, now),
            Refusal::Key => self.doubt(vnet, host, Doubt::Key, now),
            Refusal::Forged | Refusal::Stale | Refusal::Replayed | Refusal::Full => {}
        }
        None
    }

    /// Names the sender of a handshake message with another version, an unknown key or another
    /// name. Such a message is not authenticated.
    pub(super) fn doubt_handshake(&mut self, from: IpAddr, bytes: &[u8], now: Now) {
        let from = from.to_canonical();
        let message = match handshake::Message::parse(bytes) {
            Ok(message) => message,
            Err(ParseError::Version) => {
                let version = bytes.get(handshake::VERSION_OFFSET).copied();
                return self.doubt_version(from, version.unwrap_or_default(), now);
            }
            Err(_) => return,
        };
        let (vnet, key) = (message.header.vnet, KeyId(message.header.key_id));
        if !self.security.sadb.knows(vnet, key) {
            self.doubt(vnet, from, Doubt::Key, now);
        } else if let Body::Init { name, .. } = message.body {
            self.doubt_name(vnet, from, name, now);
        }
    }

    /// Names a host that calls itself by another name than this host does.
    fn doubt_name(&mut self, vnet: VnetId, host: IpAddr, name: Name, now: Now) {
        let here = self.security.sadb.name_of(host);
        if name == here || !self.security.doubts.is_new((Some(vnet), host, Doubt::Name), now.mono) {
            return;
        }
        say!(
            self,
            log::Level::Warn,
            "vnet {vnet}: host {host} calls itself {name}, here it is {here}: the two hosts agree on no keys \
             (all hosts need the same realm, and no address translation between them)"
        );
    }

    /// Names a host that speaks another version of VARP or of the handshake, and says which of the
    /// two hosts to upgrade.
    pub(super) fn doubt_version(&mut self, host: IpAddr, version: u8, now: Now) {
        if !self.security.doubts.is_new((None, host, Doubt::Version), now.mono) {
            return;
        }
        let old = if version < VERSION { "that host" } else { "this host" };
        say!(
            self,
            log::Level::Warn,
            "host {host} speaks version {version} of the format, this host version {VERSION}: neither finds \
             the other's vifs. Upgrade vnet on {old}"
        );
    }

    /// Names a host if this host has vifs on the vnet.
    fn doubt(&mut self, vnet: VnetId, host: IpAddr, doubt: Doubt, now: Now) {
        if !self.underlay.hears(vnet)
            || !self.security.doubts.is_new((Some(vnet), host, doubt), now.mono)
        {
            return;
        }
        let policy = self.config.policy(vnet);
        let what = match doubt {
            Doubt::Untagged => "without a tag, so the policy there is none",
            Doubt::Tagged => "with a tag, so the policy there needs keys",
            Doubt::Key => "with a key that is unknown here: another key, or another policy",
            Doubt::Name | Doubt::Setup | Doubt::Version => return,
        };
        say!(
            self,
            log::Level::Warn,
            "vnet {vnet}: host {host} sends {what}; the policy here is {policy}, so messages of {host} are dropped: \
             give both hosts the same policy and key"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_is_named_once_a_minute_and_few_at_all() {
        let vnet = VnetId::new(42);
        let host = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let at = Instant::from_millis;
        let mut doubts = Doubts::default();
        assert!(doubts.is_new((vnet, host(1), Doubt::Key), at(0)));
        assert!(!doubts.is_new((vnet, host(1), Doubt::Key), at(59_999)));
        assert!(doubts.is_new((vnet, host(1), Doubt::Untagged), at(59_999)));
        assert!(doubts.is_new((vnet, host(1), Doubt::Key), at(60_000)));
        let named =
            (0..10_000).filter(|n| doubts.is_new((vnet, host(*n), Doubt::Tagged), at(130_000)));
        assert_eq!(named.count(), LINES as usize);
        assert!(
            doubts.is_new((vnet, host(20_000), Doubt::Tagged), at(200_000)),
            "there is room again"
        );
    }

    #[test]
    fn a_flood_in_many_names_on_one_vnet_hides_no_host_of_another() {
        let host = |n: u32| IpAddr::V4((0x0a00_0000 + n).into());
        let at = Instant::from_millis(0);
        let mut doubts = Doubts::default();
        let flooded = VnetId::new(42);
        let named = (0..10_000).filter(|n| doubts.is_new((flooded, host(*n), Doubt::Untagged), at));
        assert_eq!(named.count(), LINES as usize);
        assert!(doubts.is_new((VnetId::new(43), host(1), Doubt::Untagged), at));
        assert!(doubts.is_new((None, host(1), Doubt::Version), at));
        assert!(doubts.is_new((flooded, host(1), Doubt::Key), at), "nor for another reason");
    }
}
