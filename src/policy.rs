//! The policy of a vnet, also while it is changed on running hosts, and the lowest policy under
//! which a backend carries frames.
//!
//! A policy consists of the level under which a host sends frames and messages, and the levels that
//! it accepts. Usually both are the same. To change a vnet's level, one host after the other takes
//! three steps. Each host accepts the frames and messages of every other host, as long as no two
//! hosts are more than one step apart:
//!
//! | Step | Policy | Sends | Accepts |
//! |---|---|---|---|
//! | | `"none"` | none | none |
//! | 1 | `["none", "conf"]` | none | none, conf |
//! | 2 | `["conf", "none"]` | conf | none, conf |
//! | 3 | `"conf"` | conf | conf |
//!
//! A host that accepts two levels is only as safe as the lower one.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// How a vnet's traffic is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Not at all.
    #[default]
    None,
    /// Only members can send, alter or repeat; anybody can read.
    Auth,
    /// Likewise, and only members can read.
    Conf,
}

impl Level {
    /// Whether there are keys.
    pub const fn is_secured(self) -> bool {
        !matches!(self, Self::None)
    }

    /// Its number in messages and labels.
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Auth => 1,
            Self::Conf => 2,
        }
    }

    /// The level of this number.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Auth),
            2 => Some(Self::Conf),
            _ => None,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Auth => "auth",
            Self::Conf => "conf",
        })
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let found = LEVELS.into_iter().find(|level| level.to_string() == s);
        found.ok_or_else(|| format!("'{s}' is not a policy: none, auth or conf"))
    }
}

/// The algorithm of a security association's packets. A suite belongs to one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Suite {
    /// AES-256-GCM (RFC 4106): conf.
    AesGcm,
    /// AES-256-GMAC (RFC 4543): auth.
    AesGmac,
    /// ChaCha20-Poly1305 (RFC 7634): conf, where AES is slow.
    ChaCha20Poly1305,
}

impl Suite {
    /// Its number in messages and labels.
    pub const fn code(self) -> u8 {
        match self {
            Self::AesGcm => 1,
            Self::AesGmac => 2,
            Self::ChaCha20Poly1305 => 3,
        }
    }

    /// The suite of this number.
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::AesGcm),
            2 => Some(Self::AesGmac),
            3 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    /// The level that it gives.
    pub const fn level(self) -> Level {
        match self {
            Self::AesGmac => Level::Auth,
            Self::AesGcm | Self::ChaCha20Poly1305 => Level::Conf,
        }
    }

    /// What two hosts use for a level: AES if both have instructions for it. `None` for a level
    /// without protection.
    pub const fn choose(level: Level, both_have_aes: bool) -> Option<Self> {
        match level {
            Level::None => None,
            Level::Auth => Some(Self::AesGmac),
            Level::Conf if both_have_aes => Some(Self::AesGcm),
            Level::Conf => Some(Self::ChaCha20Poly1305),
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AesGcm => "aes-gcm",
            Self::AesGmac => "aes-gmac",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        })
    }
}

/// All levels, from the lowest.
const LEVELS: [Level; 3] = [Level::None, Level::Auth, Level::Conf];

/// The level under which a host sends, and the levels that it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "PolicyText")]
pub struct Policy {
    sent: Level,
    /// A bit for each level, by its code.
    accepted: u8,
}

impl Default for Policy {
    fn default() -> Self {
        Self::only(Level::None)
    }
}

impl From<Level> for Policy {
    fn from(level: Level) -> Self {
        Self::only(level)
    }
}

const fn bit(level: Level) -> u8 {
    1 << level.code()
}

impl Policy {
    /// One level.
    pub const fn only(level: Level) -> Self {
        Self { sent: level, accepted: bit(level) }
    }

    /// From a list of levels, of which the first is sent; `None` if the list is empty or names one
    /// twice.
    pub fn new(levels: &[Level]) -> Option<Self> {
        let mut policy = Self { sent: *levels.first()?, accepted: 0 };
        for level in levels {
            if policy.accepts(*level) {
                return None;
            }
            policy.accepted |= bit(*level);
        }
        Some(policy)
    }

    /// From its encoding in messages: the sent level, and a bit for each accepted one.
    pub fn from_codes(sent: u8, accepted: u8) -> Option<Self> {
        let sent = Level::from_code(sent)?;
        let all = LEVELS.iter().fold(0, |all, level| all | bit(*level));
        let is_sound = accepted & !all == 0 && accepted & bit(sent) != 0;
        is_sound.then_some(Self { sent, accepted })
    }

    /// See [`Policy::from_codes`].
    pub const fn codes(self) -> (u8, u8) {
        (self.sent.code(), self.accepted)
    }

    /// The level under which this host sends.
    pub const fn sent(self) -> Level {
        self.sent
    }

    /// Whether this host accepts frames and messages under this level.
    pub const fn accepts(self, level: Level) -> bool {
        self.accepted & bit(level) != 0
    }

    /// All accepted levels: first the sent one, then the others from the highest.
    pub fn levels(self) -> impl Iterator<Item = Level> {
        let others = LEVELS.into_iter().rev().filter(move |level| *level != self.sent);
        std::iter::once(self.sent).chain(others.filter(move |level| self.accepts(*level)))
    }

    /// The accepted levels that have keys.
    pub fn secured(self) -> impl Iterator<Item = Level> {
        self.levels().filter(|level| level.is_secured())
    }

    /// Whether any accepted level has keys.
    pub fn is_secured(self) -> bool {
        self.secured().next().is_some()
    }

    /// Whether the level is being changed, that is, more than one is accepted.
    pub const fn is_changing(self) -> bool {
        !self.accepted.is_power_of_two()
    }

    /// The highest level that is accepted.
    pub fn highest(self) -> Level {
        self.levels().max().unwrap_or(self.sent)
    }

    /// The lowest accepted level, which determines the vnet's safety.
    pub fn lowest(self) -> Level {
        self.levels().min().unwrap_or(self.sent)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.levels().map(|level| level.to_string()).collect();
        f.pad(&names.join(","))
    }
}

/// A policy as written in a configuration.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a policy is none, auth or conf, or a list of these, the one that is sent under first"
)]
enum PolicyText {
    One(Level),
    Several(Vec<Level>),
}

impl TryFrom<PolicyText> for Policy {
    type Error = &'static str;

    fn try_from(text: PolicyText) -> Result<Self, Self::Error> {
        match text {
            PolicyText::One(level) => Ok(Self::only(level)),
            PolicyText::Several(levels) => {
                Self::new(&levels).ok_or("a list of policies names at least one, and none twice")
            }
        }
    }
}

/// The lowest policy under which a backend carries frames.
///
/// A missing line in a configuration would silently make a vnet plain. A backend therefore never
/// goes below `--policy`, nor below the policy that it has had since its start, except by a step: a
/// policy that lists the previous level beside a lower one, which nobody writes by mistake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// The level of `--policy`.
    pub least: Level,
    /// The lowest level of its last policy.
    pub had: Level,
}

impl Floor {
    /// For a backend that has carried no frames yet.
    pub const fn new(least: Level) -> Self {
        Self { least, had: Level::None }
    }

    /// Whether the backend may carry frames under this policy.
    pub fn admits(self, offered: Policy) -> bool {
        let is_step = offered.accepts(self.had);
        offered.lowest() >= self.least && (offered.lowest() >= self.had || is_step)
    }

    /// Records that the backend carries frames under this policy.
    pub fn note(&mut self, policy: Policy) {
        self.had = policy.lowest();
    }

    /// The level below which the backend carries no frames, except by a step.
    pub fn level(self) -> Level {
        self.least.max(self.had)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Level::{Auth, Conf, None as Plain};

    fn policy(levels: &[Level]) -> Policy {
        Policy::new(levels).unwrap()
    }

    fn all() -> Vec<Policy> {
        let codes = (0..4).flat_map(|sent| (0..16).map(move |accepted| (sent, accepted)));
        codes.filter_map(|(sent, accepted)| Policy::from_codes(sent, accepted)).collect()
    }

    #[test]
    fn numbers_lists_and_names_are_those_of_one_policy() {
        assert_eq!(all().len(), 3 + 6 + 3);
        for policy in all() {
            let (sent, accepted) = policy.codes();
            assert_eq!(Policy::from_codes(sent, accepted), Some(policy));
            assert_eq!(Policy::new(&policy.levels().collect::<Vec<_>>()), Some(policy));
            assert_eq!(policy.is_changing(), policy.levels().count() > 1);
            assert_eq!(policy.is_secured(), policy.accepts(Auth) || policy.accepts(Conf));
        }
        assert_eq!(policy(&[Plain, Conf]).to_string(), "none,conf");
        assert_eq!(policy(&[Conf, Plain]).to_string(), "conf,none");
        assert_eq!(Policy::only(Auth).to_string(), "auth");
        assert_eq!(Policy::new(&[]), None);
        assert_eq!(Policy::new(&[Conf, Conf]), None);
        assert_eq!(Policy::from_codes(2, 1), None, "what is sent under is accepted");
    }

    /// In the three steps between any two levels, a host that is one step behind accepts the
    /// other's frames.
    #[test]
    fn hosts_a_step_apart_accept_what_each_other_sends() {
        for (from, to) in [(Plain, Conf), (Conf, Plain), (Auth, Conf), (Conf, Auth), (Plain, Auth)]
        {
            let steps = [&[from][..], &[from, to], &[to, from], &[to]].map(policy);
            for pair in steps.windows(2) {
                assert!(pair[0].accepts(pair[1].sent()), "{} {}", pair[0], pair[1]);
                assert!(pair[1].accepts(pair[0].sent()), "{} {}", pair[0], pair[1]);
            }
        }
    }

    #[test]
    fn a_backend_goes_down_by_steps_only() {
        let mut floor = Floor::new(Plain);
        for (levels, is_admitted) in [
            (&[Plain][..], true),
            (&[Plain, Conf], true),
            (&[Conf, Plain], true),
            (&[Plain], true),
            (&[Conf], true),
            (&[Plain], false),
            (&[Auth], false),
            (&[Auth, Plain], false),
            (&[Auth, Conf], true),
            (&[Auth], true),
            (&[Plain], false),
            (&[Plain, Auth], true),
            (&[Plain], true),
        ] {
            let policy = policy(levels);
            assert_eq!(floor.admits(policy), is_admitted, "{floor:?}: {policy}");
            if is_admitted {
                floor.note(policy);
            }
        }
    }

    #[test]
    fn a_backend_never_goes_below_what_it_was_told_to_keep_to() {
        for policy in all() {
            for had in LEVELS {
                let floor = Floor { least: Conf, had };
                assert_eq!(floor.admits(policy), policy == Policy::only(Conf), "{policy}");
            }
        }
        assert_eq!(Floor { least: Auth, had: Conf }.level(), Conf);
    }

    #[test]
    fn codes_and_names_are_those_of_one_thing() {
        for level in [Level::None, Auth, Conf] {
            assert_eq!(Level::from_code(level.code()), Some(level));
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!(Level::from_code(3), None);
        assert!("secret".parse::<Level>().is_err());
        for suite in [Suite::AesGcm, Suite::AesGmac, Suite::ChaCha20Poly1305] {
            assert_eq!(Suite::from_code(suite.code()), Some(suite));
            assert!(suite.level().is_secured());
        }
        assert_eq!(Suite::from_code(0), None);
    }

    #[test]
    fn a_level_never_chooses_a_suite_of_another() {
        for (level, aes) in [(Auth, true), (Conf, true), (Conf, false)] {
            assert_eq!(Suite::choose(level, aes).map(Suite::level), Some(level));
        }
        assert_eq!(Suite::choose(Level::None, true), None);
    }
}
