//! No key seals two packets with one nonce, whatever clocks, restarts and reboots do; and what that
//! rests on.
//!
//! The packets of a care-of address are compared by their heads: SPI, start and random number make
//! the key, the IV makes the nonce.

use std::collections::BTreeSet;

use super::*;
use crate::security::noise::Entropy;

/// Bits of a random source that differ from draw to draw; the others repeat.
#[derive(Clone, Copy)]
struct Bits {
    /// Of varpd's first salt.
    spi: u16,
    /// Of a sender's own number.
    random: u32,
}

const ALL: Bits = Bits { spi: u16::MAX, random: u32::MAX };

/// A backend at one care-of address, and what it gets from its host: salts of varpd's, the time.
struct Host {
    /// Decides what happens.
    history: Entropy,
    /// What programs draw from.
    source: Entropy,
    bits: Bits,
    next_spi: u16,
    wall_ms: u64,
    sender: GroupSender,
    heads: BTreeSet<Vec<u8>>,
    packets: usize,
}

impl Host {
    fn new(seed: u16, bits: Bits) -> Self {
        let [history, source] = ["history", "source"]
            .map(|label| Entropy::new(key(1).derive(label, &[&seed.to_be_bytes()])));
        let (heads, sender) = (BTreeSet::new(), sender(0));
        let mut host =
            Self { history, source, bits, next_spi: 0, wall_ms: NOW, sender, heads, packets: 0 };
        host.boot();
        host
    }

    fn below(&self, n: u32) -> u32 {
        self.history.number() % n
    }

    /// All is started anew; the clock shows the same as at each boot.
    fn boot(&mut self) {
        self.wall_ms = NOW;
        self.start_varpd();
    }

    /// varpd is started anew, and the backend gets its keys from it.
    fn start_varpd(&mut self) {
        let [high, low] = self.source.bytes();
        self.next_spi = u16::from_be_bytes([high, low]) & self.bits.spi;
        self.start_sender();
    }

    /// The backend restarts, or gets other keys.
    fn start_sender(&mut self) {
        let salt = Salt { spi: self.next_spi, random: self.source.number() & self.bits.random };
        self.next_spi = self.next_spi.wrapping_add(1);
        self.sender = GroupSender::new(key(1), Suite::AesGcm, vnet(), at(1), salt);
    }

    /// The guest sends some broadcasts.
    fn send(&mut self) {
        let apart_ms = [0, 400, 15_000][self.below(3) as usize];
        for _ in 0..=self.below(4) {
            let packet = seal(&mut self.sender, b"x", self.wall_ms);
            self.heads.insert(packet[..HEAD_LEN].to_vec());
            self.packets += 1;
            self.wall_ms += apart_ms;
        }
    }

    fn step(&mut self) {
        match self.below(10) {
            0 => self.boot(),
            1 => self.start_varpd(),
            2 | 3 => self.start_sender(),
            // The clock is set: to where it was before, or anywhere within some hours.
            4 => self.wall_ms = NOW + u64::from(self.below(3)) * 1000,
            5 => self.wall_ms = NOW + u64::from(self.below(14_400)) * 1000 - 7_200_000,
            _ => self.send(),
        }
    }
}

/// Counts the packets that had key and nonce of another one.
fn recurrences(bits: Bits, histories: u16) -> usize {
    let recur = |seed| {
        let mut host = Host::new(seed, bits);
        (0..300).for_each(|_| host.step());
        assert!(host.packets > 100, "packets are sent");
        host.packets - host.heads.len()
    };
    (0..histories).map(recur).sum()
}

#[test]
fn no_key_and_nonce_recur_whatever_clocks_and_restarts_do() {
    assert_eq!(recurrences(ALL, 100), 0);
}

#[test]
fn any_32_of_the_random_bits_suffice() {
    for bits in [
        Bits { spi: 0, ..ALL },
        Bits { random: 0xffff_0000, ..ALL },
        Bits { random: 0x0000_ffff, ..ALL },
    ] {
        assert_eq!(recurrences(bits, 100), 0);
    }
}

/// Else the histories would show nothing.
#[test]
fn without_random_bits_a_reboot_repeats_keys_and_nonces() {
    assert_ne!(recurrences(Bits { spi: 0, random: 0 }, 10), 0);
}

/// Heads stand for keys and nonces.
#[test]
fn whatever_differs_in_a_start_gives_another_key() {
    let group = key(1);
    let id = SenderId { at: at(1), spi: Spi::of_group(vnet(), 5), random: 7 };
    let start = StartId { second: 1_767_225_600, sender: id };
    let with = |sender| StartId { sender, ..start };
    let others = [
        StartId { second: 1_767_225_601, ..start },
        with(SenderId { at: at(2), ..id }),
        with(SenderId { at: ([192, 0, 2, 1], 4001).into(), ..id }),
        with(SenderId { spi: Spi::of_group(vnet(), 6), ..id }),
        with(SenderId { random: 8, ..id }),
    ];
    for other in others {
        assert_ne!(start.key(&group), other.key(&group), "{other:?}");
    }
    assert_ne!(start.key(&group), start.key(&key(2)));
}
