//! Bytes of keys: zeroed when dropped, never shown, compared in constant time.
//! [`crate::security::keys`] derives them.

#![forbid(unsafe_code)]

use std::fmt;

use aws_lc_rs::constant_time;
use zeroize::Zeroizing;

/// Length of a vnet key and of most derived keys, in bytes.
pub const LEN: usize = 32;
/// Length of the salt that is part of a nonce (RFC 4106, 4543 and 7634), in bytes.
pub const SALT_LEN: usize = 4;

/// 256 secret bits.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; LEN]>);

impl Secret {
    /// These bytes, which the caller should forget.
    pub fn new(bytes: [u8; LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; LEN] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        constant_time::verify_slices_are_equal(self.bytes(), other.bytes()).is_ok()
    }
}

impl Eq for Secret {}

/// Key and salt of a security association.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaKey {
    /// The cipher's key.
    pub key: Secret,
    /// The constant part of each nonce.
    pub salt: [u8; SALT_LEN],
}
