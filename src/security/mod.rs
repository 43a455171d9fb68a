//! Secured vnets: who may take part, and how what they send is protected.
//!
//! A vnet's *policy* is one of three levels ([`Level`]), or two of them while it is changed ([`policy`]). Membership of a secured vnet is holding its
//! 256-bit key. Nothing here does I/O or reads a clock: randomness comes in as a seed, time as an
//! argument, effects go out as data.
//!
//! | Module | What |
//! |---|---|
//! | [`keys`] | the vnet key and all that is derived from it |
//! | [`keyfile`] | the text that holds a vnet key, and its rotation |
//! | [`esp`] | sealing and opening of datagrams |
//! | [`replay`] | the anti-replay window |
//! | [`group`] | keys of group traffic, which has no handshake |
//! | [`noise`], [`handshake`] | how two hosts agree on keys, per vnet |
//! | [`sadb`] | the state machine that does so when keys are wanted, and again before they are old |
//! | [`membership`] | tags of VARP messages |
//! | [`policy`] | a policy that is being changed, and what a backend does not go below |
//! | [`census`] | what other hosts use |
//! | [`segment`] | keys of relays |
//! | [`outbound`], [`inbound`] | a backend's security associations |
//!
//! # Who holds which key
//!
//! varpd alone reads key files. A backend gets what it needs for its own vif and no more: keys of
//! the senders that it is told to be, the key from which it derives those of its own senders, and
//! the vnet's group key. A backend that its guest has taken over can therefore not read what is sent
//! to other vifs of its host, nor send as them to a vif's own port. Group traffic is symmetric:
//! every member can read it and could send in another member's name.
//!
//! # Why a Noise handshake with one pre-shared key
//!
//! `NNpsk0`: both sides prove that they hold the vnet key, fresh Diffie-Hellman keys give forward
//! secrecy (who records traffic and gets the vnet key later reads nothing but group traffic), and
//! two messages suffice. The patterns with static keys (IKpsk, KKpsk) would also tell members apart,
//! but somebody would have to distribute, and withdraw, a key per host; membership of a vnet is
//! one key by design, and who holds it is trusted by the others.

#![forbid(unsafe_code)]

pub mod census;
pub mod esp;
pub mod group;
pub mod handshake;
pub mod inbound;
pub mod keyfile;
pub mod keys;
pub mod membership;
pub mod noise;
pub mod outbound;
pub mod policy;
pub mod replay;
pub mod sadb;
pub mod segment;

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
    /// Nobody else can send, alter or repeat; everybody can read.
    Auth,
    /// And nobody else can read.
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
        let all = [Self::None, Self::Auth, Self::Conf];
        let found = all.into_iter().find(|level| level.to_string() == s);
        found.ok_or_else(|| format!("'{s}' is not a policy: none, auth or conf"))
    }
}

/// What a security association's packets are made with. A suite belongs to one level.
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

/// Whether this processor has instructions for AES: without them it is slow, and its time depends
/// on the data.
pub fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    let has = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let has = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    let has = false;
    has
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_are_those_of_one_thing() {
        for level in [Level::None, Level::Auth, Level::Conf] {
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
        for (level, aes) in [(Level::Auth, true), (Level::Conf, true), (Level::Conf, false)] {
            assert_eq!(Suite::choose(level, aes).map(Suite::level), Some(level));
        }
        assert_eq!(Suite::choose(Level::None, true), None);
    }
}
