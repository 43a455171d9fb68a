//! Sealing and opening of datagrams: ESP in the layout of [`crate::wire::esp`].
//!
//! One security association is a [`Sealer`] at its sender and an [`Opener`] at its receiver. Both
//! work in place: the payload is already at its position in the packet. A nonce consists of the
//! key's salt and the packet's IV. The IV contains the packet's number, so no nonce occurs twice
//! with a key, and a sealer that runs out of numbers refuses.
//!
//! | Numbering | number | IV | authenticated in addition to the packet |
//! |---|---|---|---|
//! | extended (RFC 4303, ESN) | 64 bits, the high half not sent | the number | SPI, all 64 bits |
//! | of group traffic | 32 bits | the sender's start, and the number under a random one | SPI, 32 bits |

use std::ops::Range;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use thiserror::Error;

use super::replay::Window;
use crate::policy::Suite;
use crate::secret::{SALT_LEN, SaKey};
use crate::wire::esp::{
    HEAD_LEN, Head, ICV_LEN, MIN_LEN, Spi, Start, payload_len, sealed_len, write_trailer,
};

/// Packets of one association after which another should be made. Well within what is known to be
/// safe for AES-GCM and packets of this size, and an hour at a million packets a second.
pub const SOFT_LIMIT: u64 = 3 << 30;
/// Packets of one association at most.
pub const HARD_LIMIT: u64 = 1 << 33;

/// How packets are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// 64 bits.
    Extended,
    /// 32 bits, of a start of a sender to the group.
    Group(Start),
}

/// There are no numbers left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// Why a packet is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// Its number was seen before, or is too old to tell.
    #[error("replayed")]
    Replay,
    /// It was altered, or is not of this sender.
    #[error("not authentic")]
    Inauthentic,
    /// Authentic, but its content is no tunnel datagram.
    #[error("malformed")]
    Malformed,
}

/// A key at work.
#[derive(Debug)]
struct Cipher {
    key: LessSafeKey,
    salt: [u8; SALT_LEN],
    /// GMAC authenticates all and encrypts nothing: what it covers has to stand in one piece.
    covered: Option<Vec<u8>>,
}

impl Cipher {
    fn new(suite: Suite, sa: &SaKey) -> Self {
        let algorithm = match suite {
            Suite::AesGcm | Suite::AesGmac => &aead::AES_256_GCM,
            Suite::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        };
        Self::with(algorithm, sa.key.bytes(), sa.salt, suite == Suite::AesGmac)
    }

    fn with(
        algorithm: &'static aead::Algorithm,
        key: &[u8],
        salt: [u8; SALT_LEN],
        is_gmac: bool,
    ) -> Self {
        let key = UnboundKey::new(algorithm, key).expect("a key has its algorithm's length");
        Self { key: LessSafeKey::new(key), salt, covered: is_gmac.then(Vec::new) }
    }

    fn nonce(&self, iv: [u8; 8]) -> Nonce {
        let [s0, s1, s2, s3] = self.salt;
        let [i0, i1, i2, i3, i4, i5, i6, i7] = iv;
        Nonce::assume_unique_for_key([s0, s1, s2, s3, i0, i1, i2, i3, i4, i5, i6, i7])
    }

    /// Seals `body` in place; returns the ICV.
    fn seal(&mut self, aad: &[u8], iv: [u8; 8], body: &mut [u8]) -> [u8; ICV_LEN] {
        let nonce = self.nonce(iv);
        let sealed = match &mut self.covered {
            Some(covered) => {
                cover(covered, aad, iv, body);
                self.key.seal_in_place_separate_tag(nonce, Aad::from(&covered[..]), &mut [])
            }
            None => self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), body),
        };
        // Fails only for bodies of many gigabytes.
        let tag = sealed.expect("a datagram is not too long for the cipher");
        let mut icv = [0; ICV_LEN];
        icv.copy_from_slice(tag.as_ref());
        icv
    }

    /// Opens `body`, which ends with the ICV, in place.
    fn open(&mut self, aad: &[u8], iv: [u8; 8], body: &mut [u8]) -> Result<(), OpenError> {
        let nonce = self.nonce(iv);
        let at = body.len().checked_sub(ICV_LEN).ok_or(OpenError::Inauthentic)?;
        let (text, icv) = body.split_at_mut(at);
        // Of the ways to open, this one moves nothing behind it.
        let opened = match &mut self.covered {
            Some(covered) => {
                cover(covered, aad, iv, text);
                let aad = Aad::from(&covered[..]);
                self.key.open_in_place_separate_tag(nonce, aad, icv, &mut [])
            }
            None => self.key.open_in_place_separate_tag(nonce, Aad::from(aad), icv, text),
        };
        opened.map(|_| ()).map_err(|_| OpenError::Inauthentic)
    }

    /// Opens a packet with this number in place and returns where in it the payload is.
    fn open_packet(
        &mut self,
        head: &Head,
        number: u64,
        numbering: Numbering,
        packet: &mut [u8],
    ) -> Result<Range<usize>, OpenError> {
        let (aad, aad_len) = associated(head.spi, number, numbering);
        let end = packet.len() - ICV_LEN;
        let (_, body) = packet.split_at_mut(HEAD_LEN);
        self.open(&aad[..aad_len], head.iv, body)?;
        let body = packet.get(HEAD_LEN..end).unwrap_or_default();
        let len = payload_len(body).ok_or(OpenError::Malformed)?;
        Ok(HEAD_LEN..HEAD_LEN + len)
    }
}

/// RFC 4543, 3.3: SPI and sequence number, IV, then the packet's protected part.
fn cover(covered: &mut Vec<u8>, aad: &[u8], iv: [u8; 8], text: &[u8]) {
    covered.clear();
    covered.extend_from_slice(aad);
    covered.extend_from_slice(&iv);
    covered.extend_from_slice(text);
}

/// SPI and number as they are authenticated; how many of the bytes count.
fn associated(spi: Spi, number: u64, numbering: Numbering) -> ([u8; 12], usize) {
    let [s0, s1, s2, s3] = spi.0.to_be_bytes();
    let [h0, h1, h2, h3, l0, l1, l2, l3] = number.to_be_bytes();
    match numbering {
        Numbering::Extended => ([s0, s1, s2, s3, h0, h1, h2, h3, l0, l1, l2, l3], 12),
        Numbering::Group(_) => ([s0, s1, s2, s3, l0, l1, l2, l3, 0, 0, 0, 0], 8),
    }
}

/// The sender's side of a security association.
#[derive(Debug)]
pub struct Sealer {
    spi: Spi,
    cipher: Cipher,
    numbering: Numbering,
    /// The number of the last packet; the first has 1.
    last: u64,
    most: u64,
}

impl Sealer {
    /// A new association: `sa` was never used to seal before.
    pub fn new(spi: Spi, suite: Suite, sa: &SaKey, numbering: Numbering) -> Self {
        let most = match numbering {
            Numbering::Extended => HARD_LIMIT,
            Numbering::Group(_) => u32::MAX.into(),
        };
        Self { spi, cipher: Cipher::new(suite, sa), numbering, last: 0, most }
    }

    /// Packets that were sealed.
    pub fn count(&self) -> u64 {
        self.last
    }

    /// Seals the payload of `payload_len` bytes that stands behind the first [`HEAD_LEN`] bytes of
    /// `packet`, which is [`sealed_len`] bytes long.
    ///
    /// # Errors
    /// [`Exhausted`]: the association has made all its packets; nothing was changed.
    ///
    /// # Panics
    /// The lengths don't fit each other.
    pub fn seal(&mut self, packet: &mut [u8], payload_len: usize) -> Result<(), Exhausted> {
        assert_eq!(packet.len(), sealed_len(payload_len), "a packet is as long as it will be");
        if self.last >= self.most {
            return Err(Exhausted);
        }
        write_trailer(packet.get_mut(HEAD_LEN + payload_len..).unwrap_or_default(), payload_len);
        self.seal_closed(packet)
    }

    /// Seals the payload that stands behind the first [`HEAD_LEN`] bytes of `packet` with its
    /// trailer behind it, and then room for the ICV.
    ///
    /// # Errors
    /// [`Exhausted`]: the association has made all its packets; nothing was changed.
    ///
    /// # Panics
    /// The packet is shorter than any.
    pub fn seal_closed(&mut self, packet: &mut [u8]) -> Result<(), Exhausted> {
        if self.last >= self.most {
            return Err(Exhausted);
        }
        self.last += 1;
        let number = self.last;
        let [.., l0, l1, l2, l3] = number.to_be_bytes();
        let sequence = u32::from_be_bytes([l0, l1, l2, l3]);
        let iv = match self.numbering {
            Numbering::Extended => number.to_be_bytes(),
            Numbering::Group(start) => start.iv(sequence),
        };
        let (head, rest) = packet.split_at_mut(HEAD_LEN);
        head.copy_from_slice(&Head { spi: self.spi, sequence, iv }.emit());
        let (body, icv) = rest.split_at_mut(rest.len() - ICV_LEN);
        let (aad, aad_len) = associated(self.spi, number, self.numbering);
        icv.copy_from_slice(&self.cipher.seal(&aad[..aad_len], iv, body));
        Ok(())
    }

    /// Opens in place one of the last 2^32 packets that this sealed, and that did not leave;
    /// returns where in it the payload is. `None` if it is none of them.
    pub fn reopen(&mut self, packet: &mut [u8]) -> Option<Range<usize>> {
        let head = Head::parse(packet).ok().filter(|head| head.spi == self.spi)?;
        let [.., l0, l1, l2, l3] = self.last.to_be_bytes();
        let age = u32::from_be_bytes([l0, l1, l2, l3]).wrapping_sub(head.sequence);
        let number = self.last.checked_sub(age.into())?;
        self.cipher.open_packet(&head, number, self.numbering, packet).ok()
    }
}

/// The receiver's side of a security association.
#[derive(Debug)]
pub struct Opener {
    cipher: Cipher,
    numbering: Numbering,
    window: Window,
}

impl Opener {
    /// An association of which nothing was received so far.
    pub fn new(suite: Suite, sa: &SaKey, numbering: Numbering) -> Self {
        Self { cipher: Cipher::new(suite, sa), numbering, window: Window::default() }
    }

    /// Opens a packet in place and returns where in it the payload is. What is not accepted may
    /// have been scrambled.
    ///
    /// # Errors
    /// Why it is not accepted. Nothing about the association changes then.
    pub fn open(&mut self, head: &Head, packet: &mut [u8]) -> Result<Range<usize>, OpenError> {
        let number = match self.numbering {
            Numbering::Extended => self.window.infer(head.sequence).ok_or(OpenError::Replay)?,
            Numbering::Group(_) => head.sequence.into(),
        };
        if !self.window.is_fresh(number) {
            return Err(OpenError::Replay);
        }
        if packet.len() < MIN_LEN {
            return Err(OpenError::Malformed);
        }
        let opened = self.cipher.open_packet(head, number, self.numbering, packet);
        if opened != Err(OpenError::Inauthentic) {
            self.window.mark(number);
        }
        opened
    }
}

#[cfg(test)]
mod tests;
