//! ESP as an independent implementation sees it: tshark decrypts and authenticates what the project
//! seals, given the keys.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use vnet::policy::Suite;
use vnet::secret::{SaKey, Secret};
use vnet::security::esp::{Numbering, Sealer};
use vnet::wire::VnetId;
use vnet::wire::encap::Header;
use vnet::wire::esp::{HEAD_LEN, Spi, Start, sealed_len};

const PORT: u16 = 40_000;

/// Whether there is a tshark that knows ESP; if not, says so where `tests/run` counts it.
fn has_tshark() -> bool {
    let has = Command::new("tshark").arg("--version").output().is_ok_and(|o| o.status.success());
    if !has {
        println!("SKIP: ESP in tshark: there is no tshark (package tshark)");
        if let Some(list) = std::env::var_os("VNET_SKIPS") {
            let mut file = OpenOptions::new().create(true).append(true).open(list).unwrap();
            writeln!(file, "ESP in tshark: there is no tshark (package tshark)").unwrap();
        }
    }
    has
}

fn key(byte: u8) -> SaKey {
    SaKey { key: Secret::new([byte; 32]), salt: [byte, 1, 2, 3] }
}

/// What is sealed: the tunnel's header and a frame with a number.
fn payload(number: u8, len: usize) -> Vec<u8> {
    let mut bytes = Header::plain(VnetId::new(42).unwrap()).emit().to_vec();
    bytes.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    bytes.resize(len, number);
    bytes
}

fn seal(sealer: &mut Sealer, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; sealed_len(payload.len())];
    packet[HEAD_LEN..HEAD_LEN + payload.len()].copy_from_slice(payload);
    sealer.seal(&mut packet, payload.len()).unwrap();
    packet
}

/// A capture file (pcap, raw IP) of UDP datagrams.
fn capture(path: &Path, datagrams: &[Vec<u8>]) {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0002_0004, 0, 0, 65_535, 228] {
        file.extend(word.to_be_bytes());
    }
    for datagram in datagrams {
        let len = u16::try_from(datagram.len()).unwrap();
        let mut packet = vec![0x45, 0];
        packet.extend((28 + len).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        packet.extend(PORT.to_be_bytes());
        packet.extend(PORT.to_be_bytes());
        packet.extend((8 + len).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(datagram);
        let captured = u32::try_from(packet.len()).unwrap();
        for word in [0, 0, captured, captured] {
            file.extend(word.to_be_bytes());
        }
        file.extend(packet);
    }
    std::fs::write(path, file).unwrap();
}

/// What tshark makes of a capture, in full.
fn look(path: &Path, spi: Spi, sa: &SaKey) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let association = format!(
        "uat:esp_sa:\"IPv4\",\"*\",\"*\",\"0x{:08x}\",\"AES-GCM with 16 octet ICV [RFC4106]\",\
         \"0x{}{}\",\"NULL\",\"\"",
        spi.0,
        hex(sa.key.bytes()),
        hex(&sa.salt),
    );
    let output = Command::new("tshark")
        .args(["-n", "-V", "-x", "-d", &format!("udp.port=={PORT},udpencap")])
        .args(["-o", "esp.enable_encryption_decode:TRUE"])
        .args(["-o", "esp.enable_authentication_check:TRUE"])
        .args(["-o", &association, "-r"])
        .arg(path)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Packets of both numberings are decrypted: payload, padding and next header come out. The integrity
/// check value is checked with numbers of 32 bits; tshark (4.0) can't be told of extended ones, which
/// the published vectors cover.
#[test]
fn tshark_decrypts_what_is_sealed() {
    if !has_tshark() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("esp.pcap");
    let (spi, sa) = (Spi::of(3, 5), key(7));
    let start = Start { second: 1_767_225_600, random: 0x0102_0304 };
    for (numbering, correct) in [(Numbering::Extended, 0), (Numbering::Group(start), 8)] {
        let mut sealer = Sealer::new(spi, Suite::AesGcm, &sa, numbering);
        let datagrams: Vec<Vec<u8>> =
            (1..=8).map(|n| seal(&mut sealer, &payload(n, 100 + usize::from(n)))).collect();
        capture(&path, &datagrams);
        let seen = look(&path, spi, &sa);
        let count = |text: &str| seen.matches(text).count();
        assert_eq!(count("Next header: Ether in IP (0x61)"), 8, "{seen}");
        assert_eq!(count("ESP Contained Data: 400000000000002a020000000002"), 8, "{seen}");
        assert_eq!(count("[correct]"), correct, "{seen}");
        let wrong = look(&path, spi, &key(8));
        assert_eq!(wrong.matches("400000000000002a").count(), 0, "with another key");
    }
}
