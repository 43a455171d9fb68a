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
//! What is checked, in the order of its cost: the first MAC, which nobody makes without the vnet
//! key; under load, the second MAC, which nobody makes who does not receive at its address; the
//! sealed time of an INIT, which recorded ones fail. Only then Diffie-Hellman keys are computed and
//! anything is kept.

mod cookies;
#[cfg(test)]
mod tests;
pub mod token;

use std::net::IpAddr;

use snow::HandshakeState;
use zeroize::Zeroize;

pub use self::cookies::Cookies;
use self::cookies::second_mac;
use super::Suite;
use super::keys::{MAC_LEN, MacKey, MemberKeys, Secret};
use super::noise::{Entropy, PATTERN, Resolver};
use super::{Level, has_aes};
use crate::wire::VnetId;
use crate::wire::handshake::{
    FLAG_AES, Header, INIT_NOISE_LEN, INIT_PAYLOAD_LEN, Kind, Message, RESPONSE_NOISE_LEN,
    RESPONSE_PAYLOAD_LEN,
};

/// The message is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forged;

impl From<snow::Error> for Forged {
    fn from(_: snow::Error) -> Self {
        Self
    }
}

/// Between whom, for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parties {
    /// The vnet.
    pub vnet: VnetId,
    /// Its policy.
    pub level: Level,
    /// The initiator's address.
    pub initiator: IpAddr,
    /// The responder's address.
    pub responder: IpAddr,
}

impl Parties {
    /// What both must agree on for any message to be understood.
    fn prologue(&self, key_id: u32, number: u32) -> Vec<u8> {
        let octets = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        [
            &b"vnet handshake 1"[..],
            &self.vnet.get().to_be_bytes(),
            &[self.level.code()],
            &key_id.to_be_bytes(),
            &number.to_be_bytes(),
            &octets(self.initiator),
            &octets(self.responder),
        ]
        .concat()
    }

    fn builder<'a>(
        entropy: &Entropy,
        keys: &'a MemberKeys,
        prologue: &'a [u8],
    ) -> Result<snow::Builder<'a>, Forged> {
        let params = PATTERN.parse()?;
        let resolver = Box::new(Resolver(entropy.clone()));
        Ok(snow::Builder::with_resolver(params, resolver)
            .psk(0, keys.psk.bytes())?
            .prologue(prologue)?)
    }
}

/// What a handshake gives.
#[derive(Debug)]
pub struct Agreed {
    /// The peer's number of the session.
    pub peer_number: u32,
    /// Keys of what is sent here are derived from it.
    pub send: Secret,
    /// Keys of what is received here.
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
        peer: (u32, bool),
    ) -> Result<Self, Forged> {
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
        let (peer_number, peer_has_aes) = peer;
        let suite = Suite::choose(level, has_aes() && peer_has_aes).ok_or(Forged)?;
        Ok(Self { peer_number, send, receive, suite, confirm, ack })
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

    /// A CONFIRM or ACK of this session.
    pub fn short_message(&self, kind: Kind, keys: &MemberKeys, vnet: VnetId, own: u32) -> Vec<u8> {
        let header =
            Header { kind, vnet, key_id: keys.id.0, sender: own, receiver: self.peer_number };
        let head = header.emit();
        let mac = self.short_key(kind).sign(&[&head]);
        finish(&header, &mac, &keys.first_mac)
    }

    /// Whether it is the CONFIRM or ACK of this session, made by its other side.
    pub fn accepts(&self, message: &Message<'_>) -> bool {
        let head = message.header.emit();
        message
            .body
            .first_chunk::<MAC_LEN>()
            .is_some_and(|mac| self.short_key(message.header.kind).verify(&[&head], mac))
    }

    fn short_key(&self, kind: Kind) -> &MacKey {
        if kind == Kind::Confirm { &self.confirm } else { &self.ack }
    }
}

/// A message with its first MAC.
fn finish(header: &Header, body: &[u8], first_mac: &MacKey) -> Vec<u8> {
    let mut bytes = header.emit().to_vec();
    bytes.extend_from_slice(body);
    let mac = first_mac.sign(&[&bytes]);
    bytes.extend_from_slice(&mac);
    bytes
}

/// The side that began, while it waits for the answer.
#[derive(Debug)]
pub struct Initiator {
    state: HandshakeState,
    parties: Parties,
    /// This side's number of the session.
    pub number: u32,
    /// With which key.
    pub key_id: u32,
    header: Header,
    noise: [u8; INIT_NOISE_LEN],
    first_mac: MacKey,
    /// The INIT without its second MAC.
    init: Vec<u8>,
    cookie: Option<[u8; MAC_LEN]>,
}

impl Initiator {
    /// Begins. `time_ms` grows from one handshake with this peer to the next.
    pub fn new(
        parties: Parties,
        keys: &MemberKeys,
        number: u32,
        time_ms: u64,
        entropy: &Entropy,
    ) -> Result<Self, Forged> {
        let prologue = parties.prologue(keys.id.0, number);
        let mut state = Parties::builder(entropy, keys, &prologue)?.build_initiator()?;
        let mut payload = [0; INIT_PAYLOAD_LEN];
        let fields = [&time_ms.to_be_bytes()[..], &number.to_be_bytes(), &own_flags()].concat();
        payload.copy_from_slice(&fields);
        let mut noise = [0; INIT_NOISE_LEN];
        if state.write_message(&payload, &mut noise)? != noise.len() {
            return Err(Forged);
        }
        let (vnet, key_id) = (parties.vnet, keys.id.0);
        let header = Header { kind: Kind::Init, vnet, key_id, sender: number, receiver: 0 };
        let first_mac = keys.first_mac.clone();
        let init = finish(&header, &noise, &first_mac);
        Ok(Self { state, parties, number, key_id, header, noise, first_mac, init, cookie: None })
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
        let Some((cookie, echo)) = message.body.split_first_chunk::<MAC_LEN>() else {
            return false;
        };
        let is_ours = self.init.ends_with(echo) && message.header.receiver == self.number;
        if is_ours {
            self.cookie = Some(*cookie);
            self.header.receiver = message.header.sender;
            self.init = finish(&self.header, &self.noise, &self.first_mac);
        }
        is_ours
    }

    /// Takes a RESPONSE, whose first MAC was checked. A forged one changes nothing.
    ///
    /// # Errors
    /// It is not the answer to this INIT.
    pub fn handle_response(&mut self, message: &Message<'_>) -> Result<Agreed, Forged> {
        let mut payload = [0; RESPONSE_PAYLOAD_LEN];
        self.state.read_message(message.body, &mut payload)?;
        let [n0, n1, n2, n3, flags @ ..] = payload;
        let peer_number = u32::from_be_bytes([n0, n1, n2, n3]);
        if peer_number != message.header.sender {
            return Err(Forged);
        }
        Agreed::new(&mut self.state, true, self.parties.level, (peer_number, has_aes_flag(flags)))
    }
}

/// An INIT that was opened: its sender has the key, and says when it made it.
#[derive(Debug)]
pub struct Opened {
    state: HandshakeState,
    parties: Parties,
    /// The initiator's clock, milliseconds since 1970.
    pub time_ms: u64,
    /// The initiator's number of the session.
    pub peer_number: u32,
    peer_has_aes: bool,
}

impl Opened {
    /// Opens an INIT, whose first MAC was checked. Computes no Diffie-Hellman keys.
    ///
    /// # Errors
    /// It was not made with this key, or not for these parties.
    pub fn new(
        parties: Parties,
        keys: &MemberKeys,
        message: &Message<'_>,
        entropy: &Entropy,
    ) -> Result<Self, Forged> {
        let number = message.header.sender;
        let prologue = parties.prologue(keys.id.0, number);
        let mut state = Parties::builder(entropy, keys, &prologue)?.build_responder()?;
        let mut payload = [0; INIT_PAYLOAD_LEN];
        state.read_message(message.body, &mut payload)?;
        let [t0, t1, t2, t3, t4, t5, t6, t7, n0, n1, n2, n3, flags @ ..] = payload;
        if u32::from_be_bytes([n0, n1, n2, n3]) != number {
            return Err(Forged);
        }
        let time_ms = u64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        let peer_has_aes = has_aes_flag(flags);
        Ok(Self { state, parties, time_ms, peer_number: number, peer_has_aes })
    }

    /// Answers: what is agreed on, and the RESPONSE. `number` is this side's of the session.
    ///
    /// # Errors
    /// The initiator's ephemeral key is none.
    pub fn respond(mut self, keys: &MemberKeys, number: u32) -> Result<(Agreed, Vec<u8>), Forged> {
        let mut payload = [0; RESPONSE_PAYLOAD_LEN];
        payload.copy_from_slice(&[&number.to_be_bytes()[..], &own_flags()].concat());
        let mut noise = [0; RESPONSE_NOISE_LEN];
        if self.state.write_message(&payload, &mut noise)? != noise.len() {
            return Err(Forged);
        }
        let (vnet, key_id) = (self.parties.vnet, keys.id.0);
        let (kind, receiver) = (Kind::Response, self.peer_number);
        let header = Header { kind, vnet, key_id, sender: number, receiver };
        let peer = (self.peer_number, self.peer_has_aes);
        let agreed = Agreed::new(&mut self.state, false, self.parties.level, peer)?;
        Ok((agreed, finish(&header, &noise, &keys.first_mac)))
    }
}

/// Whether the first MAC is right: the message comes from a holder of the key.
pub fn is_of_member(message: &Message<'_>, keys: &MemberKeys) -> bool {
    keys.first_mac.verify(&[message.covered], message.first_mac)
}

fn own_flags() -> [u8; 4] {
    (if has_aes() { FLAG_AES } else { 0 }).to_be_bytes()
}

fn has_aes_flag(flags: [u8; 4]) -> bool {
    u32::from_be_bytes(flags) & FLAG_AES != 0
}
