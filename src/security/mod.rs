//! Secured vnets: who may take part, and how what they send is protected.
//!
//! A vnet's *policy* is one of three levels ([`crate::policy::Level`]), or two of them while it is changed ([`crate::policy`]). Membership of a secured vnet is holding its
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
pub mod replay;
pub mod sadb;
pub mod segment;

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
