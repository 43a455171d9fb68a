//! The primitives of the Noise handshake (snow), all of aws-lc-rs, with a seeded source of
//! randomness.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::digest;
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The handshake; the parent module says why this one.
pub const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";

const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;

/// A source of secret randomness: HKDF of a seed and a counter. A running host seeds it from the
/// operating system, a test with what it likes.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<Mutex<(Secret, u64)>>);

impl Entropy {
    /// From a seed.
    pub fn new(seed: Secret) -> Self {
        Self(Arc::new(Mutex::new((seed, 0))))
    }

    /// The next bytes. What was given out can't be found from what is left: the seed moves on.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        // Poisoned only by a panic, which ends the process.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = state.0.expand("random", &[]);
        state.0 = state.0.derive("seed", &[]);
        state.1 += 1;
        bytes
    }

    /// A key.
    pub fn secret(&self) -> Secret {
        Secret::new(self.bytes())
    }

    /// A number.
    pub fn number(&self) -> u32 {
        u32::from_be_bytes(self.bytes())
    }
}

/// What snow asks for primitives.
pub(super) struct Resolver(pub(super) Entropy);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Source(self.0.clone())))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<Curve25519>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::<Sha256>::default() as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::<AesGcm>::default() as Box<dyn Cipher>)
    }
}

struct Source(Entropy);

impl Random for Source {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), Error> {
        for chunk in dest.chunks_mut(KEY_LEN) {
            let bytes: Zeroizing<[u8; KEY_LEN]> = Zeroizing::new(self.0.bytes());
            chunk.iter_mut().zip(bytes.iter()).for_each(|(to, from)| *to = *from);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Curve25519 {
    private: Zeroizing<[u8; KEY_LEN]>,
    public: [u8; KEY_LEN],
}

impl Curve25519 {
    fn key(&self) -> Option<PrivateKey> {
        PrivateKey::from_private_key(&X25519, &self.private[..]).ok()
    }
}

impl Dh for Curve25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_LEN
    }

    fn priv_len(&self) -> usize {
        KEY_LEN
    }

    fn set(&mut self, private: &[u8]) {
        self.private.iter_mut().zip(private).for_each(|(to, from)| *to = *from);
        let public = self.key().and_then(|key| key.compute_public_key().ok());
        // Every 32 bytes are a private key of X25519 (RFC 7748, 5).
        let public = public.expect("a private key has a public one");
        self.public.copy_from_slice(public.as_ref());
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        let mut private = Zeroizing::new([0; KEY_LEN]);
        rng.try_fill_bytes(&mut private[..])?;
        self.set(&private[..]);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        &self.private[..]
    }

    /// Fails for the few public keys that would make the secret zero.
    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let key = self.key().ok_or(Error::Dh)?;
        let public = public.get(..KEY_LEN).ok_or(Error::Dh)?;
        let peer = UnparsedPublicKey::new(&X25519, public);
        agreement::agree(&key, peer, Error::Dh, |shared| {
            out.get_mut(..KEY_LEN).ok_or(Error::Dh)?.copy_from_slice(shared);
            Ok(())
        })
    }
}

struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let hash = std::mem::take(self).0.finish();
        out.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
    }
}

struct AesGcm(LessSafeKey);

impl Default for AesGcm {
    fn default() -> Self {
        Self(new_key(&[0; KEY_LEN]))
    }
}

fn new_key(bytes: &[u8; KEY_LEN]) -> LessSafeKey {
    let key = UnboundKey::new(&aead::AES_256_GCM, bytes);
    LessSafeKey::new(key.expect("a key has its algorithm's length"))
}

/// Noise, 12.4: 32 bits of zeros, then the number, big-endian.
fn nonce(number: u64) -> Nonce {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    Nonce::assume_unique_for_key([0, 0, 0, 0, a, b, c, d, e, f, g, h])
}

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; KEY_LEN]) {
        self.0 = new_key(key);
    }

    fn encrypt(&self, number: u64, aad: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (text, rest) = out.split_at_mut(plain.len());
        text.copy_from_slice(plain);
        let tag = self.0.seal_in_place_separate_tag(nonce(number), Aad::from(aad), text);
        let tag = tag.expect("a message is not too long for the cipher");
        rest[..TAG_LEN].copy_from_slice(tag.as_ref());
        plain.len() + TAG_LEN
    }

    fn decrypt(
        &self,
        number: u64,
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let mut text = Zeroizing::new(sealed.to_vec());
        let opened = self.0.open_in_place(nonce(number), Aad::from(aad), &mut text[..]);
        let plain = opened.map_err(|_| Error::Decrypt)?;
        out.get_mut(..plain.len()).ok_or(Error::Decrypt)?.copy_from_slice(plain);
        Ok(plain.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(digits: &str) -> [u8; 32] {
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        std::array::from_fn(|n| byte(2 * n))
    }

    /// RFC 7748, 6.1.
    #[test]
    fn x25519_is_that_of_the_rfc() {
        let (mut alice, mut bob) = (Curve25519::default(), Curve25519::default());
        alice.set(&hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
        bob.set(&hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        let public = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        assert_eq!(bob.pubkey(), public);
        let (mut a, mut b) = ([0; 56], [0; 56]);
        alice.dh(bob.pubkey(), &mut a).unwrap();
        bob.dh(alice.pubkey(), &mut b).unwrap();
        let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!((&a[..32], &b[..32]), (&shared[..], &shared[..]));
        assert!(alice.dh(&[0; 32], &mut a).is_err(), "a point of small order");
    }

    #[test]
    fn the_source_repeats_with_its_seed_only() {
        let [a, b, c] = [1, 1, 2].map(|seed| Entropy::new(Secret::new([seed; 32])));
        let first: [u8; 48] = a.bytes();
        assert_eq!(first, b.bytes::<48>());
        assert_ne!(first, c.bytes::<48>());
        assert_ne!(first, a.bytes::<48>());
        let mut filled = [0; 70];
        Source(a.clone()).try_fill_bytes(&mut filled).unwrap();
        assert_ne!(filled[..32], filled[32..64]);
    }

    /// HMAC and HKDF of Noise stand on the hash alone; RFC 4231, test case 2.
    #[test]
    fn sha256_serves_hmac() {
        let mut out = [0; 64];
        Sha256::default().hmac(b"Jefe", b"what do ya want for nothing?", &mut out);
        let want = hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
        assert_eq!(out[..32], want);
    }
}
