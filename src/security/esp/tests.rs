use super::*;
use crate::secret::Secret;
use proptest::prelude::*;

const SUITES: [Suite; 3] = [Suite::AesGcm, Suite::AesGmac, Suite::ChaCha20Poly1305];

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap())
        .collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn sa(byte: u8) -> SaKey {
    SaKey::derive(&Secret::new([byte; 32]), "test", &[])
}

fn sealer(suite: Suite) -> Sealer {
    Sealer::new(Spi::of(1, 2), suite, &sa(7), Numbering::Extended)
}

fn start(second: u32) -> Start {
    Start { second, random: 0x0102_0304 }
}

fn seal(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; sealed_len(payload.len())];
    packet[HEAD_LEN..HEAD_LEN + payload.len()].copy_from_slice(payload);
    sealer.seal(&mut packet, payload.len()).unwrap();
    packet
}

fn open(opener: &mut Opener, packet: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut packet = packet.to_vec();
    let head = Head::parse(&packet).map_err(|_| OpenError::Malformed)?;
    let range = opener.open(&head, &mut packet)?;
    Ok(packet[range].to_vec())
}

/// A published vector: what is authenticated, IV, what is protected with its ICV.
struct Vector {
    algorithm: &'static aead::Algorithm,
    is_gmac: bool,
    key: &'static str,
    salt: &'static str,
    aad: &'static str,
    iv: &'static str,
    plain: &'static str,
    sealed: &'static str,
}

impl Vector {
    fn check(&self) {
        let salt = hex(self.salt).try_into().unwrap();
        let iv = hex(self.iv).try_into().unwrap();
        let aad = hex(self.aad);
        let mut cipher = Cipher::with(self.algorithm, &hex(self.key), salt, self.is_gmac);
        let mut body = hex(self.plain);
        let icv = cipher.seal(&aad, iv, &mut body);
        body.extend(icv);
        assert_eq!(body, hex(self.sealed));
        cipher.open(&aad, iv, &mut body).unwrap();
        assert_eq!(body[..body.len() - ICV_LEN], hex(self.plain));
    }
}

/// draft-mcgrew-gcm-test-01, ESP with AES-GCM and a 256-bit key.
#[test]
fn mcgrew_256() {
    let vector = Vector {
        algorithm: &aead::AES_256_GCM,
        is_gmac: false,
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        salt: "11223344",
        aad: "4a2cbfe300000002",
        iv: "0102030405060708",
        plain: "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee000000000
                7002400020bf0000020405b40101040201020201",
        sealed: "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763
                 748a637985771d347f0545659f14e99def842d8eb335f4eecfdbf831824b4c49
                 15956c96",
    };
    vector.check();
}

/// The same draft, with an extended sequence number.
#[test]
fn mcgrew_extended_sequence_number() {
    let vector = Vector {
        algorithm: &aead::AES_128_GCM,
        is_gmac: false,
        key: "4c80cdefbb5d10da906ac73c3613a634",
        salt: "2e443b68",
        aad: "000043218765432100000000",
        iv: "4956ed7e3b244cfe",
        plain: "45000048699a000080114db7c0a80102c0a801010a9bf15638d3010000010000
                00000000045f736970045f756470037369700963796265726369747902646b00
                0021000101020201",
        sealed: "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34
                 cfa2436f14a3f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce
                 61bc17d768fd9732459018148f6cbe722fd04796562dfdb4",
    };
    vector.check();
    let number = 0x8765_4321_0000_0000;
    let (aad, len) = associated(Spi(0x4321), number, Numbering::Extended);
    assert_eq!(aad[..len], hex(vector.aad));
}

/// The same draft, AES-GMAC (RFC 4543).
#[test]
fn mcgrew_gmac() {
    let vector = Vector {
        algorithm: &aead::AES_128_GCM,
        is_gmac: true,
        key: "4c80cdefbb5d10da906ac73c3613a634",
        salt: "22433c64",
        aad: "0000432100000007",
        iv: "0000000000000000",
        plain: "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364
                65666768696a6b6c6d6e6f707172737401020201",
        sealed: "45000030da3a00008001df3bc0a80005c0a800010800c6cd0200070061626364
                 65666768696a6b6c6d6e6f707172737401020201
                 f2a9a836e155106aa8dcd618e4099aaa",
    };
    vector.check();
}

/// RFC 7634, appendix A.
#[test]
fn rfc_7634() {
    let vector = Vector {
        algorithm: &aead::CHACHA20_POLY1305,
        is_gmac: false,
        key: "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
        salt: "a0a1a2a3",
        aad: "0102030400000005",
        iv: "1011121314151617",
        plain: "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec10
                0007362708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20212223
                2425262728292a2b2c2d2e2f303132333435363701020204",
        sealed: "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c6
                 14ee8099d52844eb61aa95dfab4c02f72aa71e7c4c4f64c9befe2facc638e8f3
                 cbec163fac469b502773f6fb94e664da9165b82829f641e0
                 76aaa8266b7fb0f7b11b369907e1ad43",
    };
    vector.check();
}

#[test]
fn a_packet_is_opened_once() {
    for suite in SUITES {
        let (mut sealer, mut opener) =
            (sealer(suite), Opener::new(suite, &sa(7), sealer_numbers()));
        for payload in [&b"payload"[..], b"", &[3; 1400]] {
            let packet = seal(&mut sealer, payload);
            assert_eq!(packet.windows(7).any(|w| w == b"payload"), {
                payload == b"payload" && suite == Suite::AesGmac
            });
            assert_eq!(open(&mut opener, &packet).unwrap(), payload);
            assert_eq!(open(&mut opener, &packet), Err(OpenError::Replay));
        }
    }
}

fn sealer_numbers() -> Numbering {
    Numbering::Extended
}

#[test]
fn another_key_suite_spi_or_salt_opens_nothing() {
    let packet = seal(&mut sealer(Suite::AesGcm), b"payload");
    for (suite, key) in [(Suite::AesGcm, 8), (Suite::AesGmac, 7), (Suite::ChaCha20Poly1305, 7)] {
        let mut opener = Opener::new(suite, &sa(key), Numbering::Extended);
        assert_eq!(open(&mut opener, &packet), Err(OpenError::Inauthentic));
    }
    let other_salt = SaKey { salt: [0; 4], ..sa(7) };
    let mut opener = Opener::new(Suite::AesGcm, &other_salt, Numbering::Extended);
    assert_eq!(open(&mut opener, &packet), Err(OpenError::Inauthentic));
    let mut opener = Opener::new(Suite::AesGcm, &sa(7), Numbering::Group(start(0)));
    assert_eq!(open(&mut opener, &packet), Err(OpenError::Inauthentic));
}

/// Every byte of ten thousand packets flipped: none is accepted, and the association goes on.
#[test]
fn no_altered_packet_is_accepted() {
    let (mut sealer, mut opener) =
        (sealer(Suite::AesGcm), Opener::new(Suite::AesGcm, &sa(7), Numbering::Extended));
    let mut altered = 0_u64;
    for n in 0..10_000_usize {
        let payload: Vec<u8> = (0..n % 64).map(|b| u8::try_from(b ^ (n & 0x7f)).unwrap()).collect();
        let packet = seal(&mut sealer, &payload);
        for at in 0..packet.len() {
            let mut wrong = packet.clone();
            wrong[at] ^= 1 << (n % 8);
            let Err(error) = open(&mut opener, &wrong) else { panic!("packet {n}, byte {at}") };
            altered += u64::from(error != OpenError::Malformed || at == 0);
        }
        assert_eq!(open(&mut opener, &packet).unwrap(), payload);
    }
    assert!(altered > 600_000, "{altered}");
}

/// A million replays, in and out of the window: none is delivered.
#[test]
fn a_million_replays_deliver_nothing() {
    let (mut sealer, mut opener) =
        (sealer(Suite::AesGcm), Opener::new(Suite::AesGcm, &sa(7), Numbering::Extended));
    let mut packets = Vec::new();
    for n in 0..10_000_u32 {
        let packet = seal(&mut sealer, &n.to_be_bytes());
        assert!(open(&mut opener, &packet).is_ok());
        packets.push(packet);
    }
    for _ in 0..100 {
        for packet in &packets {
            assert!(open(&mut opener, packet).is_err());
        }
    }
}

#[test]
fn numbers_run_out_before_a_nonce_repeats() {
    let mut sealer = Sealer::new(Spi::of(1, 2), Suite::AesGcm, &sa(7), Numbering::Group(start(9)));
    sealer.last = u64::from(u32::MAX) - 1;
    seal(&mut sealer, b"last");
    let mut packet = vec![0; sealed_len(4)];
    assert_eq!(sealer.seal(&mut packet, 4), Err(Exhausted));
    assert_eq!(packet, vec![0; sealed_len(4)], "untouched");
}

#[test]
fn the_high_half_of_the_number_is_authenticated() {
    let mut sealer = sealer(Suite::AesGcm);
    sealer.last = (1 << 32) - 3;
    let mut opener = Opener::new(Suite::AesGcm, &sa(7), Numbering::Extended);
    opener.window.mark((1 << 32) - 3);
    for n in 0..6_u8 {
        assert_eq!(open(&mut opener, &seal(&mut sealer, &[n])).unwrap(), [n], "over the turn");
    }
    let mut late = Opener::new(Suite::AesGcm, &sa(7), Numbering::Extended);
    let packet = seal(&mut sealer, b"x");
    assert_eq!(
        open(&mut late, &packet),
        Err(OpenError::Inauthentic),
        "takes it for the first turn"
    );
}

#[test]
fn a_trailer_that_is_not_ours_is_malformed() {
    for trailer in [[1, 2, 2, 4], [1, 9, 2, 97], [1, 2, 3, 97], [1, 2, 200, 97], [1, 2, 1, 97]] {
        let mut cipher = Cipher::new(Suite::AesGcm, &sa(7));
        let (aad, len) = associated(Spi::of(1, 2), 1, Numbering::Extended);
        let iv = 1_u64.to_be_bytes();
        let mut body = trailer.to_vec();
        let icv = cipher.seal(&aad[..len], iv, &mut body);
        let head = Head { spi: Spi::of(1, 2), sequence: 1, iv }.emit();
        let packet = [&head[..], &body, &icv].concat();
        let mut opener = Opener::new(Suite::AesGcm, &sa(7), Numbering::Extended);
        let malformed = open(&mut opener, &packet) == Err(OpenError::Malformed);
        assert!(malformed, "{trailer:?}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(packet: Vec<u8>) {
        let mut opener = Opener::new(Suite::AesGmac, &sa(7), Numbering::Extended);
        prop_assert!(open(&mut opener, &packet).is_err());
    }

    #[test]
    fn round_trip(payload: Vec<u8>, which in 0..SUITES.len(), second: u32, random: u32) {
        for numbering in [Numbering::Extended, Numbering::Group(Start { second, random })] {
            let suite = SUITES[which];
            let mut sealer = Sealer::new(Spi::of(9, 9), suite, &sa(1), numbering);
            let mut opener = Opener::new(suite, &sa(1), numbering);
            let packet = seal(&mut sealer, &payload);
            let opened = open(&mut opener, &packet);
            prop_assert_eq!(opened.unwrap(), payload.clone());
        }
    }
}
