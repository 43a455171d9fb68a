//! One handshake between two hosts for a vnet: making and checking its messages.
//!
//! ```text
//!  initiator                                            responder
//!     |------------------- INIT ------------------------->|   nothing kept under load:
//!     |<------------------ COOKIE ------------------------|   (only then)
//!     |------------------- INIT with second MAC --------->|   receives with the new keys from now on
//!     |<------------------ RESPONSE ----------------------|
//!     |   both keys known, sends                          |
//!     |------------------- CONFIRM ---------------------->|   sends: the INIT was no replay
//!     |<------------------ ACK ---------------------------|
//! ```
//!
//! Checks are in the order of their cost: the first MAC, which needs the vnet key; under load, the
//! second MAC, which only a host that receives at its address can make; and the sealed time of an
//! INIT, which recorded INITs fail. Only after these does a host compute Diffie-Hellman keys and
//! keep state.
//!
//! Noise's prologue binds keys and messages to the two hosts' names, the vnet, its policy and the
//! initiator's number. INIT, RESPONSE and CONFIRM have room for a [`Credential`], which no host
//! sends yet. A host can require a credential of some kind; one that requires none accepts a
//! message with any.

mod cookies;
#[cfg(test)]
mod tests;
pub mod token;

use snow::HandshakeState;
use zeroize::Zeroize;

pub use self::cookies::Cookies;
use self::cookies::second_mac;
use super::has_aes;
use super::keys::{MAC_LEN, MacKey, MemberKeys};
use super::noise::{Entropy, PATTERN, Resolver};
use crate::policy::{Level, Suite};
use crate::secret::Secret;
use crate::wire::handshake::payload::{self, Additions, Credential, FLAG_AES, INIT_PAYLOAD_LEN};
use crate::wire::handshake::{Body, Header, INIT_NOISE_LEN, Kind, MAX_LEN, Message};
use crate::wire::name::Name;
use crate::wire::{ParseError, VnetId};

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It was not made with this key, for these parties, or as an answer to this message.
    Forged,
    /// A member made it, but its sealed part is malformed, or has a critical extension that is not
    /// known.
    Malformed,
    /// It has no credential of the kind that is required.
    Credential,
}

impl From<snow::Error> for Refused {
    fn from(_: snow::Error) -> Self {
        Self::Forged
    }
}

impl From<ParseError> for Refused {
    fn from(_: ParseError) -> Self {
        Self::Malformed
    }
}

/// The kind of credential that a host requires of others, if it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Required(pub Option<u8>);

impl Required {
    /// Whether it is satisfied with a credential.
    fn check(self, credential: Credential<'_>) -> Result<(), Refused> {
        let is_enough = self.0.is_none_or(|kind| kind == credential.kind());
        if is_enough { Ok(()) } else { Err(Refused::Credential) }
    }
}

/// Between whom, for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parties {
    /// The vnet.
    pub vnet: VnetId,
    /// Its policy.
    pub level: Level,
    /// The initiator.
    pub initiator: Name,
    /// The responder.
    pub responder: Name,
}

impl Parties {
    /// What both must agree on for any message to be understood.
    fn prologue(&self, key_id: u32, number: u32) -> Vec<u8> {
        [
            &b"vnet handshake 2"[..],
            &self.vnet.get().to_be_bytes(),
            &[self.level.code()],
            &key_id.to_be_bytes(),
            &number.to_be_bytes(),
            &self.initiator.to_bytes(),
            &self.responder.to_bytes(),
        ]
        .concat()
    }

    fn builder<'a>(
        entropy: &Entropy,
        keys: &'a MemberKeys,
        prologue: &'a [u8],
    ) -> Result<snow::Builder<'a>, Refused> {
        let params = PATTERN.parse()?;
        let resolver = Box::new(Resolver(entropy.clone()));
        Ok(snow::Builder::with_resolver(params, resolver)
            .psk(0, keys.psk.bytes())?
            .prologue(prologue)?)
    }
}

/// The result of a handshake.
#[derive(Debug)]
pub struct Agreed {
    /// The peer's number of the session.
    pub peer_number: u32,
    /// The keys for sending derive from it.
    pub send: Secret,
    /// The keys for receiving derive from it.
    pub receive: Secret,
    /// What packets are made with.
    pub suite: Suite,
    confirm: MacKey,
    ack: MacKey,
}

impl Agreed {
    fn new(
        state: &mut HandshakeState,
        is_initiator: bool,
        level: Level,
        peer: Peer,
    ) -> Result<Self, Refused> {
        let (mut up, mut down) = state.dangerously_get_raw_split();
        let [to_responder, to_initiator] = [Secret::new(up), Secret::new(down)];
        up.zeroize();
        down.zeroize();
        let confirm = MacKey::new(&to_responder.derive("confirm", &[]));
        let ack = MacKey::new(&to_initiator.derive("ack", &[]));
        let (send, receive) = match is_initiator {
            true => (to_responder, to_initiator),
            false => (to_initiator, to_responder),
        };
        let suite = Suite::choose(level, has_aes() && peer.has_aes).ok_or(Refused::Forged)?;
        Ok(Self { peer_number: peer.number, send, receive, suite, confirm, ack })
    }

    /// A session of a host with itself, which nobody has to be asked for.
    pub fn with_self(entropy: &Entropy, level: Level, number: u32) -> Option<Self> {
        let secret = entropy.secret();
        Some(Self {
            peer_number: number,
            suite: Suite::choose(level, has_aes())?,
            confirm: MacKey::new(&secret),
            ack: MacKey::new(&secret),
            send: secret.clone(),
            receive: secret,
        })
    }

    /// The CONFIRM of this session; `own` is this side's number.
    pub fn confirm(
        &self,
        additions: &Additions<'_>,
        keys: &MemberKeys,
        vnet: VnetId,
        own: u32,
    ) -> Vec<u8> {
        let header = self.header(keys, vnet, own);
        let mut covered = header.emit(Kind::Confirm).to_vec();
        additions.emit(&mut covered);
        let mac = self.confirm.sign(&[&covered]);
        finish(&header, &Body::Confirm { additions: *additions, mac: &mac }, &keys.first_mac)
    }

    /// The ACK of this session; `own` is this side's number.
    pub fn ack(&self, keys: &MemberKeys, vnet: VnetId, own: u32) -> Vec<u8> {
        let header = self.header(keys, vnet, own);
        let mac = self.ack.sign(&[&header.emit(Kind::Ack)]);
        finish(&header, &Body::Ack { mac: &mac }, &keys.first_mac)
    }

    const fn header(&self, keys: &MemberKeys, vnet: VnetId, own: u32) -> Header {
        Header { vnet, key_id: keys.id.0, sender: own, receiver: self.peer_number }
    }

    /// Takes the CONFIRM of this session.
    ///
    /// # Errors
    /// The initiator did not make it, or has not the credential that is required.
    pub fn take_confirm(&self, message: &Message<'_>, required: Required) -> Result<(), Refused> {
        let Body::Confirm { additions, mac } = message.body else { return Err(Refused::Forged) };
        verify(&self.confirm, message, mac)?;
        required.check(additions.credential)
    }

    /// Takes the ACK of this session.
    ///
    /// # Errors
    /// The responder did not make it.
    pub fn take_ack(&self, message: &Message<'_>) -> Result<(), Refused> {
        let Body::Ack { mac } = message.body else { return Err(Refused::Forged) };
        verify(&self.ack, message, mac)
    }
}

/// Whether a body ends with the MAC of all before it.
fn verify(key: &MacKey, message: &Message<'_>, mac: &[u8; MAC_LEN]) -> Result<(), Refused> {
    let (before, _) = message.covered.split_last_chunk::<MAC_LEN>().ok_or(Refused::Forged)?;
    if key.verify(&[before], mac) { Ok(()) } else { Err(Refused::Forged) }
}

/// A message with its first MAC.
fn finish(header: &Header, body: &Body<'_>, first_mac: &MacKey) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAX_LEN);
    bytes.extend_from_slice(&header.emit(body.kind()));
    body.emit(&mut bytes);
    let mac = first_mac.sign(&[&bytes]);
    bytes.extend_from_slice(&mac);
    bytes
}

/// The sealed statement of a side about itself.
#[derive(Clone, Copy, Debug)]
struct Peer {
    number: u32,
    has_aes: bool,
}

/// The side that began, while it waits for the answer.
///
/// ```
/// use vnet::policy::{Level, Suite};
/// use vnet::secret::Secret;
/// use vnet::security::handshake::{Initiator, Opened, Parties, Required, is_of_member};
/// use vnet::security::keys::MemberKeys;
/// use vnet::security::noise::Entropy;
/// use vnet::wire::VnetId;
/// use vnet::wire::handshake::Message;
/// use vnet::wire::handshake::payload::Additions;
/// use vnet::wire::name::{Name, Realm};
///
/// let (vnet, level) = (VnetId::new(42).unwrap(), Level::Conf);
/// let keys = MemberKeys::new(&Secret::new([1; 32]), vnet, level, Suite::AesGcm);
/// let [initiator, responder] =
///     ["192.0.2.1", "192.0.2.2"].map(|ip| Name::host(Realm(0), ip.parse().unwrap()));
/// let parties = Parties { vnet, level, initiator, responder };
/// let [one, two] = [2, 3].map(|byte| Entropy::new(Secret::new([byte; 32])));
/// let (any, none) = (Required::default(), Additions::NONE);
///
/// let mut initiator = Initiator::new(parties, &keys, 7, 1_800_000_000_000, &none, &one).unwrap();
/// let init = initiator.message();
/// let init = Message::parse(&init).unwrap();
/// assert!(is_of_member(&init, &keys));
/// let opened = Opened::new(parties, &keys, &init, any, &two).unwrap();
/// let (responder, response) = opened.respond(&keys, 8, &none).unwrap();
///
/// let response = Message::parse(&response).unwrap();
/// let initiator = initiator.handle_response(&response, any).unwrap();
/// assert_eq!(initiator.send.bytes(), responder.receive.bytes());
/// let confirm = initiator.confirm(&none, &keys, vnet, 7);
/// assert_eq!(responder.take_confirm(&Message::parse(&confirm).unwrap(), any), Ok(()));
/// let ack = responder.ack(&keys, vnet, 8);
/// assert_eq!(initiator.take_ack(&Message::parse(&ack).unwrap()), Ok(()));
/// ```
#[derive(Debug)]
pub struct Initiator {
    state: HandshakeState,
    parties: Parties,
    /// This side's number of the session.
    pub number: u32,
    /// With which key.
    pub key_id: u32,
    header: Header,
    noise: Box<[u8; INIT_NOISE_LEN]>,
    first_mac: MacKey,
    /// The INIT without its second MAC.
    init: Vec<u8>,
    cookie: Option<[u8; MAC_LEN]>,
}

impl Initiator {
    /// Begins. `time_ms` grows from one handshake with this peer to the next.
    ///
    /// # Errors
    /// The primitives fail.
    pub fn new(
        parties: Parties,
        keys: &MemberKeys,
        number: u32,
        time_ms: u64,
        additions: &Additions<'_>,
        entropy: &Entropy,
    ) -> Result<Self, Refused> {
        let prologue = parties.prologue(keys.id.0, number);
        let mut state = Parties::builder(entropy, keys, &prologue)?.build_initiator()?;
        let payload =
            payload::Init { time_ms, number, flags: own_flags(), additions: *additions }.emit();
        let mut noise = Box::new([0; INIT_NOISE_LEN]);
        if state.write_message(&payload, &mut noise[..])? != noise.len() {
            return Err(Refused::Forged);
        }
        let (vnet, key_id) = (parties.vnet, keys.id.0);
        let header = Header { vnet, key_id, sender: number, receiver: 0 };
        let first_mac = keys.first_mac.clone();
        let (init, cookie) = (Vec::new(), None);
        let mut initiator =
            Self { state, parties, number, key_id, header, noise, first_mac, init, cookie };
        initiator.finish();
        Ok(initiator)
    }

    /// Makes the INIT, but for its second MAC.
    fn finish(&mut self) {
        let body = Body::Init { name: self.parties.initiator, noise: &self.noise };
        self.init = finish(&self.header, &body, &self.first_mac);
    }

    /// The INIT, as it is to be sent now.
    pub fn message(&self) -> Vec<u8> {
        let mut bytes = self.init.clone();
        let second = match self.cookie {
            Some(cookie) => second_mac(cookie, &bytes),
            None => [0; MAC_LEN],
        };
        bytes.extend_from_slice(&second);
        bytes
    }

    /// Takes a COOKIE, whose first MAC was checked: the INIT has a second MAC from now on, and the
    /// token that came with the cookie. False if it answers another INIT.
    pub fn handle_cookie(&mut self, message: &Message<'_>) -> bool {
        let Body::Cookie { cookie, init_mac } = message.body else { return false };
        let is_ours = self.init.ends_with(init_mac) && message.header.receiver == self.number;
        if is_ours {
            self.cookie = Some(*cookie);
            self.header.receiver = message.header.sender;
            self.finish();
        }
        is_ours
    }

    /// Takes a RESPONSE, whose first MAC was checked. A forged one changes nothing.
    ///
    /// # Errors
    /// It is not the answer to this INIT, or not one that is accepted.
    pub fn handle_response(
        &mut self,
        message: &Message<'_>,
        required: Required,
    ) -> Result<Agreed, Refused> {
        let Body::Response { noise } = message.body else { return Err(Refused::Forged) };
        let mut opened = [0; MAX_LEN];
        let len = self.state.read_message(noise, &mut opened)?;
        let opened = payload::Response::parse(opened.get(..len).unwrap_or_default())?;
        if opened.number != message.header.sender {
            return Err(Refused::Forged);
        }
        required.check(opened.additions.credential)?;
        let peer = Peer { number: opened.number, has_aes: opened.flags & FLAG_AES != 0 };
        Agreed::new(&mut self.state, true, self.parties.level, peer)
    }
}

/// An INIT that was opened: its sender has the key, and says when it made it.
#[derive(Debug)]
pub struct Opened {
    state: HandshakeState,
    parties: Parties,
    /// The initiator's clock, milliseconds since 1970.
    pub time_ms: u64,
    peer: Peer,
}

impl Opened {
    /// Opens an INIT, whose first MAC was checked. Computes no Diffie-Hellman keys.
    ///
    /// # Errors
    /// It was not made with this key, or not for these parties, or is not accepted.
    pub fn new(
        parties: Parties,
        keys: &MemberKeys,
        message: &Message<'_>,
        required: Required,
        entropy: &Entropy,
    ) -> Result<Self, Refused> {
        let Body::Init { noise, .. } = message.body else { return Err(Refused::Forged) };
        let number = message.header.sender;
        let prologue = parties.prologue(keys.id.0, number);
        let mut state = Parties::builder(entropy, keys, &prologue)?.build_responder()?;
        let mut opened = [0; INIT_PAYLOAD_LEN];
        state.read_message(noise, &mut opened)?;
        let opened = payload::Init::parse(&opened)?;
        if opened.number != number {
            return Err(Refused::Forged);
        }
        required.check(opened.additions.credential)?;
        let peer = Peer { number, has_aes: opened.flags & FLAG_AES != 0 };
        Ok(Self { state, parties, time_ms: opened.time_ms, peer })
    }

    /// Answers: returns the agreed keys, and the RESPONSE. `number` is this side's of the session.
    ///
    /// # Errors
    /// The initiator's ephemeral key is none.
    pub fn respond(
        mut self,
        keys: &MemberKeys,
        number: u32,
        additions: &Additions<'_>,
    ) -> Result<(Agreed, Vec<u8>), Refused> {
        let payload =
            payload::Response { number, flags: own_flags(), additions: *additions }.emit();
        let mut noise = [0; MAX_LEN];
        let len = self.state.write_message(&payload, &mut noise)?;
        let body = Body::Response { noise: noise.get(..len).unwrap_or_default() };
        let (vnet, key_id) = (self.parties.vnet, keys.id.0);
        let header = Header { vnet, key_id, sender: number, receiver: self.peer.number };
        let agreed = Agreed::new(&mut self.state, false, self.parties.level, self.peer)?;
        Ok((agreed, finish(&header, &body, &keys.first_mac)))
    }
}

/// Whether the first MAC is right: the message comes from a holder of the key.
pub fn is_of_member(message: &Message<'_>, keys: &MemberKeys) -> bool {
    keys.first_mac.verify(&[message.covered], message.first_mac)
}

fn own_flags() -> u32 {
    if has_aes() { FLAG_AES } else { 0 }
}
