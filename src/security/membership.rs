//! Tags of VARP messages: on a secured vnet only members are heard.
//!
//! A tag is a MAC of the whole message and of the address that it is sent from, with the id of the key
//! and the time at which the message was made. Freshness is of two kinds. What answers a question repeats its nonce, as on any vnet. And
//! no message is taken twice: its time must be within [`TOLERANCE`] of this host's clock, and one
//! that its sender has not used before, of which the last [`REMEMBERED`] are kept. So nothing that
//! was recorded keeps a mapping alive, or moves one, after its time. Without the address under the tag
//! a recorded message would be new once from each address that it can be sent from.
//!
//! A message says that *a member* made it, not which one: members trust each other.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Level;
use super::keys::{KeyId, MacKey};
use super::policy::Policy;
use crate::limiter::TokenBucket;
use crate::time::Now;
use crate::wire::VnetId;
use crate::wire::name::mapped;
use crate::wire::varp::{Body, Message, TAG_LEN, TAGGED_LEN, Tag};

/// How far a message's time may be from this host's clock.
pub const TOLERANCE: Duration = Duration::from_secs(90);
/// Times of a sender that are kept: so far may a message be overtaken by later ones.
pub const REMEMBERED: usize = 64;
/// Senders that are kept apart, of all vnets.
const MAX_SENDERS: usize = 16_384;
/// Messages made per second on a vnet at most, since no two have the same millisecond: with more their
/// times would run ahead of the clock, until nobody believed them.
const MESSAGES_PER_SECOND: u32 = 900;
/// How many of them at once: no further than so many milliseconds may times run ahead.
const MESSAGES_AT_ONCE: u32 = 8192;

/// What messages without a tag are on a vnet that has keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Untagged {
    /// Not heard.
    #[default]
    Refused,
    /// Heard beside those with a tag, which are sent.
    Heard,
    /// Sent; heard are both.
    Sent,
}

impl From<Policy> for Untagged {
    fn from(policy: Policy) -> Self {
        match (policy.sent().is_secured(), policy.accepts(Level::None)) {
            (true, false) => Self::Refused,
            (true, true) => Self::Heard,
            (false, _) => Self::Sent,
        }
    }
}

/// Why a message is not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has no tag.
    Untagged,
    /// Its key is none of the vnet's.
    Key,
    /// Its tag is wrong.
    Forged,
    /// Its time is too far from now.
    Stale,
    /// It was heard before, or is too late to tell.
    Replayed,
    /// Too many senders.
    Full,
}

/// The times of one sender, ascending.
#[derive(Debug, Default)]
struct Seen(VecDeque<u64>);

impl Seen {
    fn take(&mut self, time: u64) -> bool {
        match self.0.binary_search(&time) {
            Ok(_) => false,
            Err(0) if self.0.len() >= REMEMBERED => false,
            Err(at) => {
                self.0.insert(at, time);
                if self.0.len() > REMEMBERED {
                    self.0.pop_front();
                }
                true
            }
        }
    }

    fn newest(&self) -> u64 {
        self.0.back().copied().unwrap_or(0)
    }
}

/// The keys of VARP on secured vnets, and who was heard with them.
#[derive(Debug)]
pub struct Membership {
    own: IpAddr,
    vnets: BTreeMap<VnetId, Vnet>,
    heard: BTreeMap<(VnetId, IpAddr), Seen>,
}

/// What messages of a vnet are tagged and checked with.
#[derive(Debug)]
struct Vnet {
    /// The used one first.
    keys: Vec<(KeyId, MacKey)>,
    untagged: Untagged,
    /// The time of the last message made here. Each vnet has its own: what one's guests cause does not
    /// make those of others run ahead.
    last: u64,
    /// Messages that may still be made.
    room: TokenBucket,
}

impl Membership {
    /// Without vnets, of the host that sends VARP from this address.
    pub fn new(own: IpAddr) -> Self {
        Self { own, vnets: BTreeMap::new(), heard: BTreeMap::new() }
    }

    /// From now on this host sends VARP from this address.
    pub fn move_to(&mut self, own: IpAddr) {
        self.own = own;
    }

    /// The keys of a vnet, the used one first; none if it is not secured.
    pub fn set_vnet(&mut self, vnet: VnetId, keys: Vec<(KeyId, MacKey)>) {
        if keys.is_empty() {
            self.vnets.remove(&vnet);
            self.heard.retain(|(of, _), _| *of != vnet);
        } else {
            let room = || TokenBucket::new(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE);
            let untagged = Untagged::Refused;
            let new = || Vnet { keys: Vec::new(), untagged, last: 0, room: room() };
            self.vnets.entry(vnet).or_insert_with(new).keys = keys;
        }
    }

    /// What messages without a tag are on a vnet that has keys: refused unless this says something else.
    pub fn set_untagged(&mut self, vnet: VnetId, untagged: Untagged) {
        if let Some(vnet) = self.vnets.get_mut(&vnet) {
            vnet.untagged = untagged;
        }
    }

    /// Whether a host was heard on a vnet with a tag.
    pub fn has_heard(&self, vnet: VnetId, host: IpAddr) -> bool {
        self.heard.contains_key(&(vnet, host.to_canonical()))
    }

    /// Puts a tag on a message for a secured vnet; on others it stays as it is. False if too many were
    /// made there of late: then it must not be sent.
    #[must_use]
    pub fn tag(&mut self, message: &mut Message, now: Now) -> bool {
        let Some(vnet) = self.vnets.get_mut(&message.key.vnet) else { return true };
        let Vnet { keys, untagged, last, room } = vnet;
        if *untagged == Untagged::Sent {
            return true;
        }
        let Some((id, key)) = keys.first() else { return true };
        if !room.take(now.mono) {
            return false;
        }
        let wall_ms = now.wall_ms;
        // After a clock was far ahead nobody has believed its times, and it can go back.
        let is_believed = Duration::from_millis(last.saturating_sub(wall_ms)) <= TOLERANCE;
        *last = if is_believed { wall_ms.max(*last + 1) } else { wall_ms };
        message.tag = Some(Tag { key_id: id.0, time_ms: *last, tag: [0; TAG_LEN] });
        let tag = key.sign(&[&author_bytes(self.own), &covered(message)]);
        message.tag = Some(Tag { key_id: id.0, time_ms: *last, tag });
        true
    }

    /// Checks a message that came `from` there, and takes its tag off. On a vnet that is not
    /// secured messages stay as they are.
    ///
    /// # Errors
    /// Why it is not to be heard.
    pub fn check(
        &mut self,
        from: SocketAddr,
        message: Message,
        wall_ms: u64,
    ) -> Result<Message, Refusal> {
        let vnet = message.key.vnet;
        let Some(Vnet { keys, untagged, .. }) = self.vnets.get(&vnet) else { return Ok(message) };
        let tag = match message.tag {
            Some(tag) => tag,
            None if *untagged == Untagged::Refused => return Err(Refusal::Untagged),
            None => return Ok(message),
        };
        let key = keys.iter().find(|(id, _)| id.0 == tag.key_id);
        let (_, key) = key.ok_or(Refusal::Key)?;
        let author = author(from, &message);
        if !key.verify(&[&author_bytes(author), &covered(&message)], &tag.tag) {
            return Err(Refusal::Forged);
        }
        if Duration::from_millis(tag.time_ms.abs_diff(wall_ms)) > TOLERANCE {
            return Err(Refusal::Stale);
        }
        let sender = (vnet, author);
        if !self.heard.contains_key(&sender) && self.heard.len() >= MAX_SENDERS {
            let oldest = wall_ms.saturating_sub(u64::try_from(TOLERANCE.as_millis()).unwrap_or(0));
            self.heard.retain(|_, seen| seen.newest() >= oldest);
            if self.heard.len() >= MAX_SENDERS {
                return Err(Refusal::Full);
            }
        }
        if !self.heard.entry(sender).or_default().take(tag.time_ms) {
            return Err(Refusal::Replayed);
        }
        Ok(Message { tag: None, ..message })
    }
}

/// What comes first under the tag.
fn author_bytes(author: IpAddr) -> [u8; 16] {
    mapped(author).octets()
}

/// The bytes of the message under the tag.
fn covered(message: &Message) -> Vec<u8> {
    let mut bytes = Message { relayed: false, ..*message }.to_bytes();
    bytes.truncate(TAGGED_LEN - TAG_LEN);
    bytes
}

/// Who made the message, and whose clock its time: many senders would come through one relay, and only
/// what names its sender can.
pub fn author(from: SocketAddr, message: &Message) -> IpAddr {
    let named = match message.body {
        Body::Request { reply_to, .. } if message.relayed => Some(reply_to.ip()),
        Body::Reply { claim, .. } | Body::Announce { claim, .. } if message.relayed => {
            Some(claim.coa.addr.ip())
        }
        _ => None,
    };
    named.unwrap_or(from.ip()).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::keys::Secret;
    use crate::time::Instant;
    use crate::wire::varp::Claim;
    use crate::wire::{Capabilities, CareOf, EncapKinds, Mac, Stamp, VifKey};
    use std::net::Ipv4Addr;

    const NOW: u64 = 1_767_225_600_000;

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    fn key(byte: u8) -> (KeyId, MacKey) {
        (KeyId(byte.into()), MacKey::new(&Secret::new([byte; 32])))
    }

    fn member(keys: &[u8]) -> Membership {
        let mut member = Membership::new(from().ip());
        member.set_vnet(vnet(42), keys.iter().map(|byte| key(*byte)).collect());
        member
    }

    fn from() -> SocketAddr {
        ([192, 0, 2, 1], 1798).into()
    }

    fn announce(on: u32) -> Message {
        let kinds = EncapKinds::UDP;
        let coa =
            CareOf { addr: ([192, 0, 2, 1], 4000).into(), kinds, capabilities: Capabilities(3) };
        let claim = Claim { stamp: Stamp(NOW), coa };
        Message {
            key: VifKey { vnet: vnet(on), mac: Mac([2, 0, 0, 0, 0, 1]) },
            nonce: 7,
            wide: true,
            relayed: false,
            body: Body::Announce { claim, lifetime_ms: 30_000 },
            tag: None,
        }
    }

    fn tagged(member: &mut Membership, now: u64) -> Message {
        let mut message = announce(42);
        assert!(member.tag(&mut message, at(now)));
        message
    }

    fn at(wall_ms: u64) -> Now {
        Now { mono: Instant::from_millis(wall_ms), wall_ms }
    }

    #[test]
    fn members_are_heard_once() {
        let (mut a, mut b) = (member(&[1]), member(&[1]));
        let message = tagged(&mut a, NOW);
        assert_eq!(b.check(from(), message, NOW), Ok(announce(42)));
        assert_eq!(b.check(from(), message, NOW), Err(Refusal::Replayed));
        let again = tagged(&mut a, NOW);
        assert_eq!(b.check(from(), again, NOW + 1), Ok(announce(42)), "said again, not replayed");
    }

    /// Each address would be a sender of its own, and a recorded message new from each.
    #[test]
    fn recorded_messages_are_not_heard_from_other_addresses() {
        let mut b = member(&[1]);
        let message = tagged(&mut member(&[1]), NOW);
        for host in 0..u32::try_from(MAX_SENDERS).unwrap() {
            let elsewhere = SocketAddr::new(Ipv4Addr::from(host | 0x0a00_0000).into(), 1798);
            assert_eq!(b.check(elsewhere, message, NOW), Err(Refusal::Forged));
            // A relay's are those of the host that they name.
            let mut relayed = Message { relayed: true, ..message };
            assert_eq!(b.check(elsewhere, relayed, NOW).is_ok(), host == 0);
            if let Body::Announce { claim, .. } = &mut relayed.body {
                claim.coa.addr.set_ip(elsewhere.ip());
            }
            assert_eq!(b.check(elsewhere, relayed, NOW), Err(Refusal::Forged));
        }
        assert_eq!(b.heard.len(), 1, "and take nobody's place");
        assert_eq!(b.check(from(), message, NOW), Err(Refusal::Replayed));
        let mapped = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().into(), 1798);
        let again = tagged(&mut member(&[1]), NOW + 1);
        assert!(b.check(mapped, again, NOW).is_ok(), "as a dual-stack socket shows it");
    }

    #[test]
    fn others_are_not() {
        let mut b = member(&[1]);
        assert_eq!(b.check(from(), announce(42), NOW), Err(Refusal::Untagged));
        assert_eq!(b.check(from(), tagged(&mut member(&[2]), NOW), NOW), Err(Refusal::Key));
        let stale = tagged(&mut member(&[1]), NOW - 91_000);
        assert_eq!(b.check(from(), stale, NOW), Err(Refusal::Stale));
        let early = tagged(&mut member(&[1]), NOW + 91_000);
        assert_eq!(b.check(from(), early, NOW), Err(Refusal::Stale));
        assert!(b.heard.is_empty(), "they leave nothing behind");
    }

    #[test]
    fn an_unsecured_vnet_is_left_alone() {
        let mut b = member(&[1]);
        let mut message = announce(43);
        assert!(b.tag(&mut message, at(NOW)));
        assert_eq!(message, announce(43));
        assert_eq!(b.check(from(), message, NOW), Ok(message));
        let foreign = tagged(&mut member(&[1]), NOW);
        let mut none = Membership::new(from().ip());
        assert_eq!(none.check(from(), foreign, NOW), Ok(foreign), "the mapper drops it");
    }

    #[test]
    fn every_flipped_bit_is_noticed_but_the_relays() {
        let mut a = member(&[1]);
        let bytes = tagged(&mut a, NOW).to_bytes();
        let mut relayed = 0;
        for bit in 0..bytes.len() * 8 {
            let mut wrong = bytes.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let Ok(message) = Message::parse(&wrong) else { continue };
            if message.key.vnet != vnet(42) {
                continue;
            }
            match member(&[1]).check(from(), message, NOW) {
                Ok(heard) => {
                    assert!(heard.relayed);
                    relayed += 1;
                }
                Err(refusal) => assert!(refusal != Refusal::Replayed, "{bit}"),
            }
        }
        assert_eq!(relayed, 1);
    }

    #[test]
    fn overtaken_messages_are_heard_and_late_ones_not() {
        let (mut a, mut b) = (member(&[1]), member(&[1]));
        let messages: Vec<Message> = (0..200).map(|n| tagged(&mut a, NOW + n)).collect();
        for pair in messages.chunks(2) {
            assert!(b.check(from(), pair[1], NOW).is_ok());
            assert!(b.check(from(), pair[0], NOW).is_ok());
        }
        for message in &messages {
            assert_eq!(b.check(from(), *message, NOW), Err(Refusal::Replayed));
        }
    }

    /// However many messages the guests of a vnet cause, those of this host stay credible, and on other
    /// vnets they are none the later.
    #[test]
    fn a_flood_of_own_messages_is_believed_to_its_end() {
        let (mut a, mut b) = (member(&[1]), member(&[1]));
        a.set_vnet(vnet(43), vec![key(2)]);
        let (mut made, mut ms) = (0, NOW);
        while ms < NOW + 200_000 {
            for _ in 0..5 {
                let mut message = announce(42);
                if a.tag(&mut message, at(ms)) {
                    made += 1;
                    assert!(b.check(from(), message, ms).is_ok(), "{} ms", ms - NOW);
                }
            }
            ms += 1;
        }
        assert!((180_000..190_000).contains(&made), "{made}");
        let mut other = announce(43);
        assert!(a.tag(&mut other, at(ms)));
        assert_eq!(other.tag.map(|tag| tag.time_ms), Some(ms), "of now");
    }

    /// A million messages: made up, of another vnet's member, altered and recorded ones.
    #[test]
    fn a_million_forgeries_are_not_heard() {
        let (mut a, mut b, mut other) = (member(&[1]), member(&[1]), member(&[2]));
        let recorded: Vec<Message> =
            (0..REMEMBERED as u64).map(|n| tagged(&mut a, NOW + n)).collect();
        assert!(recorded.iter().all(|message| b.check(from(), *message, NOW).is_ok()));
        let (mut heard, mut forged) = (0, 0);
        for n in 0..1_000_000_u64 {
            if n % 10_000 == 0 {
                other = member(&[2]);
            }
            let mut message = match n % 4 {
                0 => recorded[(n / 4) as usize % recorded.len()],
                1 => tagged(&mut other, NOW + n / 100),
                _ => recorded[n as usize % recorded.len()],
            };
            if let Some(tag) = &mut message.tag {
                match n % 4 {
                    // Another's tag under the right name.
                    1 => tag.key_id = 1,
                    2 => tag.tag = [n.to_be_bytes(), n.to_le_bytes()].concat().try_into().unwrap(),
                    3 => tag.time_ms += 1 + n,
                    _ => {}
                }
            }
            match b.check(from(), message, NOW) {
                Ok(_) => heard += 1,
                Err(Refusal::Forged) => forged += 1,
                Err(refusal) => assert_eq!(refusal, Refusal::Replayed),
            }
        }
        assert_eq!((heard, forged), (0, 750_000));
    }

    #[test]
    fn a_change_of_policy_loses_nobody() {
        let (none, conf) = (Level::None, Level::Conf);
        let steps = [&[none][..], &[none, conf], &[conf, none], &[conf]].map(|levels| {
            let policy = Policy::new(levels).unwrap();
            let mut host = member(if policy.is_secured() { &[1] } else { &[] });
            host.set_untagged(vnet(42), policy.into());
            host
        });
        let mut steps = VecDeque::from(steps);
        let mut one = steps.pop_front().unwrap();
        for (n, mut other) in (1..).zip(steps) {
            let message = tagged(&mut one, NOW + 10 * n);
            assert!(other.check(from(), message, NOW).is_ok(), "step {n}, forward");
            let message = tagged(&mut other, NOW + 10 * n + 5);
            assert!(one.check(from(), message, NOW).is_ok(), "step {n}, backward");
            one = other;
        }
        assert!(one.has_heard(vnet(42), from().ip()));
        assert_eq!(one.check(from(), announce(42), NOW), Err(Refusal::Untagged));
    }

    #[test]
    fn a_rotation_loses_nobody() {
        let steps: [&[u8]; 4] = [&[1], &[1, 2], &[2, 1], &[2]];
        for pair in steps.windows(2) {
            for (sender, receiver) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                let message = tagged(&mut member(sender), NOW);
                assert!(member(receiver).check(from(), message, NOW).is_ok());
            }
        }
        let old = tagged(&mut member(&[1]), NOW);
        assert_eq!(member(&[2]).check(from(), old, NOW), Err(Refusal::Key));
    }
}
