//! Secured vnets: their keys, their members, and the protection of frames and messages.
//!
//! A vnet's *policy* is one of three levels ([`crate::policy::Level`]), or two of them while it is
//! changed ([`crate::policy`]). A host is a member of a secured vnet if it holds the vnet's 256-bit
//! key. Nothing here does I/O or reads a clock: randomness comes in as a seed, time as an argument,
//! effects go out as data.
//!
//! | Module | Contents |
//! |---|---|
//! | [`keys`] | the vnet key and all keys derived from it |
//! | [`keyfile`] | the text that holds a vnet key, and its rotation |
//! | [`esp`] | sealing and opening of datagrams |
//! | [`replay`] | the anti-replay window |
//! | [`group`] | keys of group traffic, which has no handshake |
//! | [`noise`], [`handshake`] | the handshake by which two hosts agree on keys, per vnet |
//! | [`sadb`] | the state machine that begins handshakes when keys are needed, and again before they are old |
//! | [`membership`] | tags of VARP messages |
//! | [`census`] | the keys and policies that other hosts use |
//! | [`segment`] | keys of relays |
//! | [`outbound`], [`inbound`] | a backend's security associations |
//!
//! # Distribution of keys
//!
//! Only varpd reads key files. A backend gets only the keys that it needs for its own vif: keys for
//! the senders that varpd assigns to it, the key from which it derives the keys of senders to its
//! vif, and the vnet's group key. If a guest takes over its backend, it can therefore neither read
//! unicast to other vifs of the host, nor send unicast in their names. Group traffic is symmetric:
//! every member can read it and can send in another member's name.
//!
//! # Reasons for a Noise handshake with one pre-shared key
//!
//! With `NNpsk0`, both sides prove that they hold the vnet key; fresh Diffie-Hellman keys give
//! forward secrecy (an attacker who records traffic and gets the vnet key later can read only group
//! traffic); and two messages suffice. The patterns with static keys (IKpsk, KKpsk) would also
//! distinguish members, but an operator would have to distribute, and withdraw, a key per host. By
//! design one key makes a host a member of a vnet, and members trust each other.

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
