//! Keys: the key that a vnet's members share, and all keys derived from it.
//!
//! ```text
//!  vnet key (file, 256 bits)
//!    |-- handshake PSK ----- Noise ----> two session keys, one per direction   (varpd only)
//!    |                                     '-- receiver key, per care-of address (its backend)
//!    |                                           '-- SA key, per sender          (two backends)
//!    |-- group key (all backends of the vnet) -- SA key, per sender and start
//!    |-- VARP key, hello key, handshake's first MAC   (varpd only)
//!    '-- key id, fingerprint               (public)
//! ```
//!
//! Each arrow is HKDF-Expand (RFC 5869) with SHA-256 under a label of its own; the key above is
//! uniformly random, so the extract step is not needed. The first row of labels also binds the vnet
//! id, the policy and, for group traffic, the cipher: members that disagree about these share no
//! key.
//!
//! [`crate::secret`] holds the bytes.

use std::fmt;

use aws_lc_rs::{constant_time, hkdf, hmac};
use zeroize::Zeroize;

use crate::policy::{Level, Suite};
use crate::secret::{LEN, SALT_LEN, SaKey, Secret};
use crate::wire::VnetId;

/// Length of the MACs of VARP and of the handshake, in bytes: SHA-256 cut to 128 bits.
pub const MAC_LEN: usize = 16;

impl Secret {
    /// A key under a label. `context` parts have fixed lengths or come last.
    pub fn derive(&self, label: &str, context: &[&[u8]]) -> Self {
        Self::new(self.expand(label, context))
    }

    /// Bytes under a label.
    pub fn expand<const N: usize>(&self, label: &str, context: &[&[u8]]) -> [u8; N] {
        let mut info = vec![b"vnet 1 ".as_slice(), label.as_bytes(), &[0]];
        info.extend(context);
        let mut out = [0; N];
        let key = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, self.bytes());
        let filled = key.expand(&info, Bytes(N)).and_then(|okm| okm.fill(&mut out));
        assert!(filled.is_ok(), "HKDF gives up to 255 hashes");
        out
    }
}

/// How many bytes HKDF is asked for.
struct Bytes(usize);

impl hkdf::KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl SaKey {
    /// Derived from a secret under a label.
    pub fn derive(from: &Secret, label: &str, context: &[&[u8]]) -> Self {
        let mut both: [u8; LEN + SALT_LEN] = from.expand(label, context);
        let (mut key, mut salt) = ([0; LEN], [0; SALT_LEN]);
        let (first, last) = both.split_at(LEN);
        key.copy_from_slice(first);
        salt.copy_from_slice(last);
        let derived = Self { key: Secret::new(key), salt };
        key.zeroize();
        both.zeroize();
        derived
    }
}

/// A MAC key.
#[derive(Clone)]
pub struct MacKey(hmac::Key);

impl MacKey {
    /// From secret bytes.
    pub fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.bytes()))
    }

    /// The MAC of the joined parts.
    pub fn sign(&self, parts: &[&[u8]]) -> [u8; MAC_LEN] {
        let mut context = hmac::Context::with_key(&self.0);
        parts.iter().for_each(|part| context.update(part));
        let tag = context.sign();
        let mut cut = [0; MAC_LEN];
        cut.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
        cut
    }

    /// Whether it is the MAC of the joined parts.
    pub fn verify(&self, parts: &[&[u8]], tag: &[u8; MAC_LEN]) -> bool {
        constant_time::verify_slices_are_equal(&self.sign(parts), tag).is_ok()
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey")
    }
}

/// Names a vnet key, in public.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u32);

/// The fingerprint of a vnet key: 128 bits that say nothing about it.
pub fn fingerprint(key: &Secret) -> String {
    let bytes: [u8; 16] = key.expand("fingerprint", &[]);
    let groups: Vec<String> =
        bytes.chunks(2).map(|pair| pair.iter().map(|b| format!("{b:02x}")).collect()).collect();
    groups.join(":")
}

/// What members of one vnet, with one key, under one policy, have in common.
#[derive(Clone, Debug)]
pub struct MemberKeys {
    /// Names them.
    pub id: KeyId,
    /// The policy.
    pub level: Level,
    /// What group frames are sealed with.
    pub group_suite: Suite,
    /// The handshake's pre-shared key.
    pub psk: Secret,
    /// Of the handshake's first MAC, which outsiders can't make.
    pub first_mac: MacKey,
    /// Of VARP messages.
    pub varp: MacKey,
    /// Of a host's entries in a LIST of [`crate::wire::hello`].
    pub hello: MacKey,
    /// From which senders' keys for group frames are derived.
    pub group: Secret,
}

impl MemberKeys {
    /// Those of a vnet.
    pub fn new(vnet_key: &Secret, vnet: VnetId, level: Level, group_suite: Suite) -> Self {
        let vnet = vnet.get().to_be_bytes();
        let code = [level.code()];
        let context: [&[u8]; 2] = [&vnet, &code];
        let group = [&vnet[..], &code, &[group_suite.code()]].concat();
        Self {
            id: KeyId(u32::from_be_bytes(vnet_key.expand("key id", &context))),
            level,
            group_suite,
            psk: vnet_key.derive("handshake psk", &context),
            first_mac: MacKey::new(&vnet_key.derive("handshake mac", &context)),
            varp: MacKey::new(&vnet_key.derive("varp", &context)),
            hello: MacKey::new(&vnet_key.derive("hello", &context)),
            group: vnet_key.derive("group", &[&group]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    #[test]
    fn derivation_is_hkdf_expand() {
        let prk = Secret::new([0x77; LEN]);
        let got: [u8; 42] = prk.expand("x", &[b"ab", b"c"]);
        // T(1) = HMAC(PRK, info | 1), by hand.
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[0x77; LEN]);
        let first = hmac::sign(&key, b"vnet 1 x\0abc\x01");
        let second = hmac::sign(&key, &[first.as_ref(), b"vnet 1 x\0abc\x02"].concat());
        assert_eq!(&got[..32], first.as_ref());
        assert_eq!(&got[32..], &second.as_ref()[..10]);
    }

    #[test]
    fn whatever_differs_gives_other_keys() {
        let key = Secret::new([1; LEN]);
        let base = MemberKeys::new(&key, vnet(42), Level::Conf, Suite::AesGcm);
        for other in [
            MemberKeys::new(&Secret::new([2; LEN]), vnet(42), Level::Conf, Suite::AesGcm),
            MemberKeys::new(&key, vnet(43), Level::Conf, Suite::AesGcm),
            MemberKeys::new(&key, vnet(42), Level::Auth, Suite::AesGcm),
        ] {
            assert_ne!(base.id, other.id);
            assert_ne!(base.psk, other.psk);
            assert_ne!(base.group, other.group);
            assert_ne!(base.varp.sign(&[b"x"]), other.varp.sign(&[b"x"]));
            assert_ne!(base.hello.sign(&[b"x"]), other.hello.sign(&[b"x"]));
            assert_ne!(base.first_mac.sign(&[b"x"]), other.first_mac.sign(&[b"x"]));
        }
        let cipher = MemberKeys::new(&key, vnet(42), Level::Conf, Suite::ChaCha20Poly1305);
        assert_ne!(base.group, cipher.group);
        assert_eq!(base.psk, cipher.psk, "the cipher of unicast is agreed on in the handshake");
        assert_ne!(base.varp.sign(&[b"x"]), base.first_mac.sign(&[b"x"]));
        assert_ne!(base.varp.sign(&[b"x"]), base.hello.sign(&[b"x"]));
    }

    #[test]
    fn nothing_shows_a_secret() {
        let key = Secret::new([0xab; LEN]);
        let sa = SaKey::derive(&key, "x", &[]);
        let member = MemberKeys::new(&key, vnet(42), Level::Conf, Suite::AesGcm);
        let shown = format!("{key:?} {:?} {member:?}", sa.key);
        assert!(!shown.contains("171") && !shown.contains("ab, ab"), "{shown}");
        assert_eq!(fingerprint(&key).len(), 39);
        assert_ne!(fingerprint(&key), fingerprint(&Secret::new([0xac; LEN])));
    }

    #[test]
    fn a_mac_covers_every_byte() {
        let key = MacKey::new(&Secret::new([1; LEN]));
        let tag = key.sign(&[b"ab", b"c"]);
        assert!(key.verify(&[b"abc"], &tag));
        assert!(!key.verify(&[b"abd"], &tag));
        for at in 0..MAC_LEN {
            let mut wrong = tag;
            wrong[at] ^= 1;
            assert!(!key.verify(&[b"abc"], &wrong));
        }
    }
}
