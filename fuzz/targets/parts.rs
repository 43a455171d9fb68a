//! Parts of messages: names, lists of extensions, and what handshakes seal. What parses is written as it was.

use vnet::wire::extension::{self, Extension, Extensions};
use vnet::wire::handshake::payload::{
    Additions, INIT_PAYLOAD_LEN, Init, MAX_ADDITIONS_LEN, MAX_CREDENTIAL_LEN, Response,
};
use vnet::wire::name::{self, Name};

use super::Input;

/// The type of a critical extension that is known.
const KNOWN: u16 = 0x8001;

pub(crate) fn run(data: &[u8]) {
    let mut input = Input(data);
    match input.u8() % 4 {
        0 => name(input.0),
        1 => extensions(input.0),
        2 => init(&mut input),
        _ => response(input.0),
    }
}

fn name(bytes: &[u8]) {
    let Ok((name, rest)) = Name::parse(bytes) else { return };
    assert_eq!(name.to_bytes(), bytes[..name::LEN], "one form for each name");
    assert_eq!(name::LEN + rest.len(), bytes.len());
    assert!(!name.ip().is_unspecified() && !name.ip().is_multicast());
    assert_eq!(name.ip().to_canonical(), name.ip());
    assert_eq!(name.of_host().port(), 0);
}

fn extensions(bytes: &[u8]) {
    let Ok(list) = Extensions::parse(bytes, &[KNOWN]) else { return };
    let all: Vec<Extension<'_>> = list.iter().collect();
    assert_eq!(extension::emit(&all), bytes, "one form for each list");
    assert!(all.is_sorted_by(|one, next| one.kind < next.kind));
    for extension in all {
        assert!(!extension.is_critical() || extension.kind == KNOWN);
        assert_eq!(list.get(extension.kind), Some(extension.value));
    }
}

fn init(input: &mut Input<'_>) {
    // Zeros at the end, as there are in most.
    let mut bytes = [0; INIT_PAYLOAD_LEN];
    let front = input.take(INIT_PAYLOAD_LEN);
    bytes[..front.len()].copy_from_slice(front);
    let Ok(init) = Init::parse(&bytes) else { return };
    assert_eq!(init.emit(), bytes, "one form for each INIT");
    additions(&init.additions);
}

fn response(bytes: &[u8]) {
    let Ok(response) = Response::parse(bytes) else { return };
    assert_eq!(response.emit(), bytes, "one form for each RESPONSE");
    additions(&response.additions);
}

fn additions(additions: &Additions<'_>) {
    let Additions { credential, extensions } = additions;
    assert!(credential.value().len() <= MAX_CREDENTIAL_LEN);
    assert!(credential.kind() != 0 || credential.value().is_empty());
    assert!(extensions.iter().all(|extension| !extension.is_critical()));
    let mut bytes = Vec::new();
    additions.emit(&mut bytes);
    assert!(bytes.len() <= MAX_ADDITIONS_LEN);
}
