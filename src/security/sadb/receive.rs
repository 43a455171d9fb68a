//! Received handshake messages: their effects, and the reasons for which others have none.

use std::net::IpAddr;
use std::time::Duration;

use super::link::{Attempt, HalfOpen, Peer, Stage};
use super::{CLOCK_TOLERANCE, HALF_OPEN, HALF_OPEN_YIELDS, Link, Output, Sadb, SadbCounter};
use crate::security::handshake::{Opened, Refused, is_of_member};
use crate::security::keys::{KeyId, MemberKeys};
use crate::time::Now;
use crate::wire::ParseError;
use crate::wire::handshake::payload::Additions;
use crate::wire::handshake::{Body, EPHEMERAL_LEN, Message};
use crate::wire::name::Name;

impl From<Refused> for SadbCounter {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Forged => Self::handshake_drop_forged,
            Refused::Malformed => Self::handshake_drop_malformed,
            Refused::Credential => Self::handshake_drop_credential,
        }
    }
}

impl From<ParseError> for SadbCounter {
    fn from(error: ParseError) -> Self {
        match error {
            ParseError::Version => Self::handshake_drop_version,
            _ => Self::handshake_drop_malformed,
        }
    }
}

impl Sadb {
    /// Takes in a datagram that came from a host.
    pub fn handle_message(&mut self, from: IpAddr, bytes: &[u8], now: Now) {
        self.counters.inc(SadbCounter::handshake_rx);
        let from = from.to_canonical();
        if let Err(counter) = self.receive(from, bytes, now) {
            self.counters.inc(counter);
            // Only of links that are known: who sends nonsense makes no state.
            if let Ok(message) = Message::parse(bytes)
                && let Some(peer) = self.peers.get_mut(&(message.header.vnet, from))
            {
                peer.tally.dropped += 1;
            }
        }
    }

    fn receive(&mut self, from: IpAddr, bytes: &[u8], now: Now) -> Result<(), SadbCounter> {
        let message = Message::parse(bytes)?;
        let (vnet, key_id) = (message.header.vnet, KeyId(message.header.key_id));
        let keys = self.keys(vnet, key_id).ok_or(SadbCounter::handshake_drop_vnet)?;
        if from == self.own.ip() || !is_of_member(&message, keys) {
            return Err(SadbCounter::handshake_drop_forged);
        }
        let link = (vnet, from);
        match message.body {
            Body::Init { name, noise } => {
                let ephemeral = noise.first_chunk().copied().unwrap_or_default();
                self.on_init(link, &message, (name, ephemeral), now)
            }
            Body::Response { .. } => self.on_response(link, &message, now),
            Body::Confirm { .. } => self.on_confirm(link, &message, now),
            Body::Ack { .. } => self.on_ack(link, &message),
            Body::Cookie { .. } => self.on_cookie(link, &message),
        }?;
        self.advance(link, now);
        Ok(())
    }

    fn on_init(
        &mut self,
        link: Link,
        message: &Message<'_>,
        (name, ephemeral): (Name, [u8; EPHEMERAL_LEN]),
        now: Now,
    ) -> Result<(), SadbCounter> {
        let (vnet, from) = link;
        let keys = self.keys(vnet, KeyId(message.header.key_id));
        let keys = keys.ok_or(SadbCounter::handshake_drop_vnet)?.clone();
        if name != self.name_of(from) {
            return Err(SadbCounter::handshake_drop_name);
        }
        if !self.cookies.accepts(from, message)
            && (self.is_fresh(now) || !self.inits.take(now.mono))
        {
            self.counters.inc(SadbCounter::handshake_cookies);
            let cookie = self.cookies.message(from, message, &keys);
            self.send(link, cookie);
            return Ok(());
        }
        let known = self.peers.get(&link);
        if let Some(half) = known.and_then(|peer| peer.half_open.as_ref())
            && half.ephemeral == ephemeral
        {
            let response = half.response.clone();
            self.send(link, response);
            return Ok(());
        }
        if self.own > name && known.is_some_and(Peer::is_asking) {
            return Err(SadbCounter::handshake_drop_crossed);
        }
        let parties = self.parties(link, keys.level, false);
        let opened = Opened::new(parties, &keys, message, self.config.required, &self.entropy)?;
        let apart = Duration::from_millis(opened.time_ms.abs_diff(now.wall_ms));
        if apart > CLOCK_TOLERANCE || known.is_some_and(|peer| opened.time_ms <= peer.newest_init) {
            return Err(SadbCounter::handshake_drop_stale);
        }
        self.answer(link, ephemeral, opened, &keys, now)
    }

    /// Answers an INIT that is authentic and new.
    fn answer(
        &mut self,
        link: Link,
        ephemeral: [u8; EPHEMERAL_LEN],
        opened: Opened,
        keys: &MemberKeys,
        now: Now,
    ) -> Result<(), SadbCounter> {
        let (vnet, from) = link;
        let full = SadbCounter::handshake_drop_full;
        if !self.has_room(link, now) {
            return Err(full);
        }
        let number = self.new_number(link).ok_or(full)?;
        let time = opened.time_ms;
        let Ok((agreed, response)) = opened.respond(keys, number, &Additions::NONE) else {
            self.numbers.remove(&number);
            return Err(SadbCounter::handshake_drop_forged);
        };
        let session = self.new_session(number, keys.id, agreed, false, now);
        let peer = self.peers.entry(link).or_default();
        (peer.newest_init, peer.newest_init_at) = (time, now.mono);
        let dropped = [peer.drop_asking(), peer.drop_half_open()];
        peer.half_open = Some(HalfOpen {
            session,
            ephemeral,
            response: response.clone(),
            until: now.mono + HALF_OPEN,
            yields: now.mono + HALF_OPEN_YIELDS,
        });
        dropped.into_iter().flatten().for_each(|number| self.release(number));
        self.outputs.push_back(Output::Receive { vnet, peer: from, number });
        self.send(link, response);
        Ok(())
    }

    fn on_response(
        &mut self,
        link: Link,
        message: &Message<'_>,
        now: Now,
    ) -> Result<(), SadbCounter> {
        let unasked = SadbCounter::handshake_drop_unasked;
        let (vnet, peer_address) = link;
        let keys = self.keys(vnet, KeyId(message.header.key_id)).ok_or(unasked)?.clone();
        let required = self.config.required;
        let peer = self.peers.get_mut(&link).ok_or(unasked)?;
        let Some(Attempt { stage: Stage::Asking(initiator), .. }) = &mut peer.attempt else {
            // The confirmation of this one was lost, or is under way.
            return Err(unasked);
        };
        if initiator.number != message.header.receiver || initiator.key_id != keys.id.0 {
            return Err(unasked);
        }
        let agreed = initiator.handle_response(message, required)?;
        let number = initiator.number;
        let session = self.new_session(number, keys.id, agreed, true, now);
        let peer = self.peers.get_mut(&link).ok_or(unasked)?;
        peer.sessions.push(session);
        peer.tally.made += 1;
        peer.attempt = Some(Attempt::confirming(number, now.mono));
        self.counters.inc(SadbCounter::sa_sessions);
        self.outputs.push_back(Output::Receive { vnet, peer: peer_address, number });
        Ok(())
    }

    fn on_confirm(
        &mut self,
        link: Link,
        message: &Message<'_>,
        now: Now,
    ) -> Result<(), SadbCounter> {
        let number = message.header.receiver;
        let unasked = SadbCounter::handshake_drop_unasked;
        let required = self.config.required;
        let peer = self.peers.get_mut(&link).ok_or(unasked)?;
        let session = peer.session_mut(number).ok_or(unasked)?;
        if session.is_initiator {
            return Err(SadbCounter::handshake_drop_forged);
        }
        session.agreed.take_confirm(message, required)?;
        if peer.half_open.as_ref().is_some_and(|half| half.session.number == number)
            && let Some(half) = peer.half_open.take()
        {
            peer.insert(half.session, now.mono);
            peer.tally.made += 1;
            self.counters.inc(SadbCounter::sa_sessions);
            // It was late, and our own has begun: that is not needed any more.
            if let Some(asking) = peer.drop_asking() {
                self.release(asking);
            }
        }
        self.send_short(link, number);
        Ok(())
    }

    fn on_ack(&mut self, link: Link, message: &Message<'_>) -> Result<(), SadbCounter> {
        let number = message.header.receiver;
        let unasked = SadbCounter::handshake_drop_unasked;
        let peer = self.peers.get_mut(&link).ok_or(unasked)?;
        let session = peer.session_mut(number).ok_or(unasked)?;
        if !session.is_initiator {
            return Err(SadbCounter::handshake_drop_forged);
        }
        session.agreed.take_ack(message)?;
        if !peer.is_confirming(number) {
            // It has arrived before.
            return Err(unasked);
        }
        peer.attempt = None;
        Ok(())
    }

    fn on_cookie(&mut self, link: Link, message: &Message<'_>) -> Result<(), SadbCounter> {
        let unasked = SadbCounter::handshake_drop_unasked;
        let peer = self.peers.get_mut(&link).ok_or(unasked)?;
        let Some(Attempt { stage: Stage::Asking(initiator), .. }) = &mut peer.attempt else {
            return Err(unasked);
        };
        if !initiator.handle_cookie(message) {
            return Err(unasked);
        }
        let bytes = initiator.message();
        self.send(link, bytes);
        Ok(())
    }
}
