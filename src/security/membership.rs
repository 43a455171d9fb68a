//! Tags of VARP messages: on a secured vnet, hosts accept only messages of members.
//!
//! A tag is a MAC of the whole message, including its author's name, with the id of the key and the
//! time at which the message was made. Two rules ensure freshness. An answer repeats the nonce of
//! its question, as on any vnet. And a receiver accepts no message twice: its time must be within
//! [`TOLERANCE`] of the receiver's clock, and its author must not have used this time before; the
//! receiver keeps the last [`REMEMBERED`] times of each author. So a recorded message can neither
//! keep a mapping alive nor move one later, whatever address it is sent from.
//!
//! A tag proves that *a member* made the message, not which one: members trust each other.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::keys::{KeyId, MacKey};
use crate::limiter::TokenBucket;
use crate::policy::{Level, Policy};
use crate::time::Now;
use crate::wire::VnetId;
use crate::wire::name::Name;
use crate::wire::varp::{self, Message, TAG_LEN, Tag};

/// How far a message's time may be from this host's clock.
pub const TOLERANCE: Duration = Duration::from_secs(90);
/// Times of an author that are kept: so far may a message be overtaken by later ones.
pub const REMEMBERED: usize = 64;
/// Authors that are kept apart on a vnet: members of one take no place from those of another.
const MAX_AUTHORS: usize = 16_384;
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
    /// Too many authors.
    Full,
}

/// The times of one author, ascending.
#[derive(Debug, Default)]
pub(crate) struct Seen(VecDeque<u64>);

impl Seen {
    pub(crate) fn take(&mut self, time: u64) -> bool {
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

    /// The newest time; 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        self.0.back().copied().unwrap_or(0)
    }
}

/// The keys of VARP on secured vnets, and who was heard with them.
///
/// ```
/// use vnet::policy::{Level, Suite};
/// use vnet::secret::Secret;
/// use vnet::security::keys::MemberKeys;
/// use vnet::security::membership::{Membership, Refusal};
/// use vnet::time::{Instant, Now};
/// use vnet::wire::name::Realm;
/// use vnet::wire::varp::{Author, Body, Message};
/// use vnet::wire::{Mac, VifKey, VnetId};
///
/// let vnet = VnetId::new(42).unwrap();
/// let keys = MemberKeys::new(&Secret::new([1; 32]), vnet, Level::Conf, Suite::AesGcm);
/// let member = || {
///     let mut member = Membership::default();
///     member.set_vnet(vnet, vec![(keys.id, keys.varp.clone())]);
///     member
/// };
/// let author = Author { realm: Realm(0), addr: "192.0.2.1:1798".parse().unwrap() };
/// let key = VifKey { vnet, mac: Mac([2, 0, 0, 0, 0, 1]) };
/// let (nonce, body) = (1, Body::Absent);
/// let mut message = Message { key, author, nonce, wide: false, relayed: false, body, tag: None };
/// let now = Now { mono: Instant::from_millis(1000), wall_ms: 1_800_000_000_000 };
/// assert!(member().tag(&mut message, now));
///
/// let (mut other, bytes) = (member(), message.to_bytes());
/// let heard = Message::parse(&bytes).unwrap();
/// assert!(other.check(&bytes, heard, now.wall_ms).is_ok());
/// assert_eq!(other.check(&bytes, heard, now.wall_ms), Err(Refusal::Replayed));
/// ```
#[derive(Debug, Default)]
pub struct Membership {
    vnets: BTreeMap<VnetId, Vnet>,
}

/// What messages of a vnet are tagged and checked with.
#[derive(Debug)]
struct Vnet {
    /// The used one first.
    keys: Vec<(KeyId, MacKey)>,
    untagged: Untagged,
    heard: BTreeMap<Name, Seen>,
    /// The time of the last message made here. Each vnet has its own: what one's guests cause does not
    /// make those of others run ahead.
    last: u64,
    /// Messages that may still be made.
    room: TokenBucket,
}

impl Membership {
    /// The keys of a vnet, the used one first; none if it is not secured.
    pub fn set_vnet(&mut self, vnet: VnetId, keys: Vec<(KeyId, MacKey)>) {
        if keys.is_empty() {
            self.vnets.remove(&vnet);
        } else {
            let room = || TokenBucket::new(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE);
            let untagged = Untagged::Refused;
            let heard = BTreeMap::new;
            let new = || Vnet { keys: Vec::new(), untagged, heard: heard(), last: 0, room: room() };
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
        let host = host.to_canonical();
        let heard = self.vnets.get(&vnet).map(|vnet| vnet.heard.keys());
        heard.into_iter().flatten().any(|name| name.ip() == host)
    }

    /// Puts a tag on a message for a secured vnet; on others it stays as it is. False if too many were
    /// made there of late: then it must not be sent.
    #[must_use]
    pub fn tag(&mut self, message: &mut Message, now: Now) -> bool {
        let Some(vnet) = self.vnets.get_mut(&message.key.vnet) else { return true };
        let Vnet { keys, untagged, last, room, .. } = vnet;
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
        let tag = Tag { key_id: id.0, time_ms: *last, tag: [0; TAG_LEN] };
        message.tag = Some(tag);
        let covered = varp::covered(&message.to_bytes()).unwrap_or_default();
        message.tag = Some(Tag { tag: key.sign(&[&covered]), ..tag });
        true
    }

    /// Checks a message that came as these bytes, and takes its tag off. On a vnet that is not
    /// secured messages stay as they are.
    ///
    /// # Errors
    /// Why it is not to be heard.
    pub fn check(
        &mut self,
        bytes: &[u8],
        message: Message,
        wall_ms: u64,
    ) -> Result<Message, Refusal> {
        let vnet = message.key.vnet;
        let Some(Vnet { keys, untagged, heard, .. }) = self.vnets.get_mut(&vnet) else {
            return Ok(message);
        };
        let tag = match message.tag {
            Some(tag) => tag,
            None if *untagged == Untagged::Refused => return Err(Refusal::Untagged),
            None => return Ok(message),
        };
        let key = keys.iter().find(|(id, _)| id.0 == tag.key_id);
        let (_, key) = key.ok_or(Refusal::Key)?;
        let covered = varp::covered(bytes).ok_or(Refusal::Forged)?;
        if !key.verify(&[&covered], &tag.tag) {
            return Err(Refusal::Forged);
        }
        if Duration::from_millis(tag.time_ms.abs_diff(wall_ms)) > TOLERANCE {
            return Err(Refusal::Stale);
        }
        let author = message.author.name();
        if !heard.contains_key(&author) && heard.len() >= MAX_AUTHORS {
            let oldest = wall_ms.saturating_sub(u64::try_from(TOLERANCE.as_millis()).unwrap_or(0));
            heard.retain(|_, seen| seen.newest() >= oldest);
            if heard.len() >= MAX_AUTHORS {
                return Err(Refusal::Full);
            }
        }
        if !heard.entry(author).or_default().take(tag.time_ms) {
            return Err(Refusal::Replayed);
        }
        Ok(Message { tag: None, ..message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::time::Instant;
    use crate::wire::name::Realm;
    use crate::wire::varp::{Author, Body, Claim, TAGGED_LEN};
    use crate::wire::{Capabilities, CareOf, EncapKinds, Longest, Mac, Stamp, VifKey};
    use std::net::SocketAddr;

    const NOW: u64 = 1_767_225_600_000;

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    fn key(byte: u8) -> (KeyId, MacKey) {
        (KeyId(byte.into()), MacKey::new(&Secret::new([byte; 32])))
    }

    fn member(keys: &[u8]) -> Membership {
        let mut member = Membership::default();
        member.set_vnet(vnet(42), keys.iter().map(|byte| key(*byte)).collect());
        member
    }

    fn author() -> Author {
        Author { realm: Realm(0), addr: ([192, 0, 2, 1], 1798).into() }
    }

    fn authors(host: &Membership, of: u32) -> usize {
        host.vnets.get(&vnet(of)).map_or(0, |vnet| vnet.heard.len())
    }

    /// A host's verdict about an unchanged message.
    fn hear(host: &mut Membership, message: Message, wall_ms: u64) -> Result<Message, Refusal> {
        host.check(&message.to_bytes(), message, wall_ms)
    }

    fn announce(on: u32) -> Message {
        let kinds = EncapKinds::UDP;
        let coa = CareOf {
            addr: ([192, 0, 2, 1], 4000).into(),
            kinds,
            capabilities: Capabilities(3),
            longest: Longest::UNKNOWN,
        };
        let claim = Claim { stamp: Stamp(NOW), coa, realm: Realm(0), behind: None };
        Message {
            key: VifKey { vnet: vnet(on), mac: Mac([2, 0, 0, 0, 0, 1]) },
            author: author(),
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

    /// Whoever sends an untagged question from another's address during a change of the policy has that host sent this
    /// much more than the question.
    #[test]
    fn an_answer_to_an_untagged_question_is_longer_by_a_tag_and_no_more() {
        let question = Message { body: Body::Absent, ..announce(42) };
        let mut member = member(&[1]);
        for (untagged, more) in [(Untagged::Heard, TAGGED_LEN - varp::LEN), (Untagged::Sent, 0)] {
            member.set_untagged(vnet(42), untagged);
            assert_eq!(hear(&mut member, question, NOW), Ok(question));
            let mut answer = announce(42);
            assert!(member.tag(&mut answer, at(NOW)));
            assert_eq!(answer.len() - question.len(), more, "{untagged:?}");
        }
        assert_eq!((varp::LEN, TAGGED_LEN), (92, 120), "as SECURITY.md says");
    }

    #[test]
    fn members_are_heard_once() {
        let (mut a, mut b) = (member(&[1]), member(&[1]));
        let message = tagged(&mut a, NOW);
        assert_eq!(hear(&mut b, message, NOW), Ok(announce(42)));
        assert_eq!(hear(&mut b, message, NOW), Err(Refusal::Replayed));
        let again = tagged(&mut a, NOW);
        assert_eq!(hear(&mut b, again, NOW + 1), Ok(announce(42)), "said again, not replayed");
    }

    /// Each name would be an author of its own, and a recorded message new from each.
    #[test]
    fn recorded_messages_are_not_heard_under_other_names() {
        let mut b = member(&[1]);
        let message = tagged(&mut member(&[1]), NOW);
        for n in 0..u32::try_from(MAX_AUTHORS).unwrap() {
            let addr = SocketAddr::from((n.to_be_bytes().map(|octet| octet | 1), 1798));
            let author = match n % 3 {
                0 => Author { addr, ..message.author },
                1 => Author { realm: Realm(n), ..message.author },
                _ => Author { addr: (message.author.addr.ip(), 1799).into(), ..message.author },
            };
            let mut elsewhere = Message { author, ..message };
            if let Body::Announce { claim, .. } = &mut elsewhere.body {
                claim.realm = author.realm;
            }
            if elsewhere != message {
                assert_eq!(hear(&mut b, elsewhere, NOW), Err(Refusal::Forged));
            }
        }
        assert_eq!(authors(&b, 42), 0, "and take nobody's place");
        let relayed = Message { relayed: true, ..message };
        assert!(hear(&mut b, relayed, NOW).is_ok(), "flag L is a relay's");
        assert_eq!(hear(&mut b, message, NOW), Err(Refusal::Replayed));
    }

    /// Two private networks that have one address have two hosts.
    #[test]
    fn the_hosts_of_two_realms_with_one_address_have_windows_of_their_own() {
        let (mut a, mut other, mut b) = (member(&[1]), member(&[1]), member(&[1]));
        for n in 0..2 * REMEMBERED as u64 {
            assert!(hear(&mut b, tagged(&mut a, NOW + 1000 + n), NOW).is_ok());
        }
        let mut message = announce(42);
        message.author.realm = Realm(7);
        if let Body::Announce { claim, .. } = &mut message.body {
            claim.realm = Realm(7);
        }
        assert!(other.tag(&mut message, at(NOW)));
        assert!(hear(&mut b, message, NOW).is_ok(), "its clock is behind the other's");
        assert_eq!(authors(&b, 42), 2);
    }

    /// What a later version adds is under the tag as well, though it is skipped here.
    #[test]
    fn flags_and_extensions_that_are_ignored_are_covered() {
        let (_, mac_key) = key(1);
        let mut bytes = tagged(&mut member(&[1]), NOW).to_bytes();
        bytes[varp::FLAGS_OFFSET] = 0x0a;
        bytes[7] = 1;
        bytes.splice(varp::LEN..varp::LEN, [0, 1, 0, 0]);
        let signed = mac_key.sign(&[&varp::covered(&bytes).unwrap()]);
        let start = bytes.len() - TAG_LEN;
        bytes[start..].copy_from_slice(&signed);
        let check = |bytes: &[u8]| {
            let message = Message::parse(bytes).unwrap();
            member(&[1]).check(bytes, message, NOW)
        };
        assert_eq!(check(&bytes), Ok(announce(42)));
        for (at, value) in [(varp::FLAGS_OFFSET, 0x02), (varp::LEN + 1, 2)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert_eq!(check(&wrong), Err(Refusal::Forged), "octet {at}");
        }
    }

    #[test]
    fn others_are_not() {
        let mut b = member(&[1]);
        assert_eq!(hear(&mut b, announce(42), NOW), Err(Refusal::Untagged));
        assert_eq!(hear(&mut b, tagged(&mut member(&[2]), NOW), NOW), Err(Refusal::Key));
        let stale = tagged(&mut member(&[1]), NOW - 91_000);
        assert_eq!(hear(&mut b, stale, NOW), Err(Refusal::Stale));
        let early = tagged(&mut member(&[1]), NOW + 91_000);
        assert_eq!(hear(&mut b, early, NOW), Err(Refusal::Stale));
        assert_eq!(authors(&b, 42), 0, "they leave nothing behind");
    }

    #[test]
    fn an_unsecured_vnet_is_left_alone() {
        let mut b = member(&[1]);
        let mut message = announce(43);
        assert!(b.tag(&mut message, at(NOW)));
        assert_eq!(message, announce(43));
        assert_eq!(hear(&mut b, message, NOW), Ok(message));
        let foreign = tagged(&mut member(&[1]), NOW);
        let mut none = Membership::default();
        assert_eq!(hear(&mut none, foreign, NOW), Ok(foreign), "the mapper drops it");
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
            match member(&[1]).check(&wrong, message, NOW) {
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
            assert!(hear(&mut b, pair[1], NOW).is_ok());
            assert!(hear(&mut b, pair[0], NOW).is_ok());
        }
        for message in &messages {
            assert_eq!(hear(&mut b, *message, NOW), Err(Refusal::Replayed));
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
                    assert!(hear(&mut b, message, ms).is_ok(), "{} ms", ms - NOW);
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
        assert!(recorded.iter().all(|message| hear(&mut b, *message, NOW).is_ok()));
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
            match hear(&mut b, message, NOW) {
                Ok(_) => heard += 1,
                Err(Refusal::Forged) => forged += 1,
                Err(refusal) => assert_eq!(refusal, Refusal::Replayed),
            }
        }
        assert_eq!((heard, forged), (0, 750_000));
    }

    #[test]
    fn a_member_that_makes_up_authors_silences_nobody_on_other_vnets() {
        let (mut a, mut b) = (member(&[1]), member(&[1]));
        let mut other = Membership::default();
        for host in [&mut other, &mut b] {
            host.set_vnet(vnet(43), vec![key(2)]);
        }
        for n in 0..=u32::try_from(MAX_AUTHORS).unwrap() {
            let mut message = announce(43);
            message.author.realm = Realm(n);
            if let Body::Announce { claim, .. } = &mut message.body {
                claim.realm = Realm(n);
            }
            assert!(other.tag(&mut message, at(NOW + u64::from(n) * 2)));
            let heard = hear(&mut b, message, NOW + 32_000);
            assert_eq!(heard.is_ok(), (n as usize) < MAX_AUTHORS, "{n}");
        }
        assert!(hear(&mut b, tagged(&mut a, NOW + 32_000), NOW + 32_000).is_ok());
        assert!(authors(&b, 43) <= MAX_AUTHORS);
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
            assert!(hear(&mut other, message, NOW).is_ok(), "step {n}, forward");
            let message = tagged(&mut other, NOW + 10 * n + 5);
            assert!(hear(&mut one, message, NOW).is_ok(), "step {n}, backward");
            one = other;
        }
        assert!(one.has_heard(vnet(42), author().addr.ip()));
        assert_eq!(hear(&mut one, announce(42), NOW), Err(Refusal::Untagged));
    }

    #[test]
    fn a_rotation_loses_nobody() {
        let steps: [&[u8]; 4] = [&[1], &[1, 2], &[2, 1], &[2]];
        for pair in steps.windows(2) {
            for (sender, receiver) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                let message = tagged(&mut member(sender), NOW);
                assert!(hear(&mut member(receiver), message, NOW).is_ok());
            }
        }
        let old = tagged(&mut member(&[1]), NOW);
        assert_eq!(hear(&mut member(&[2]), old, NOW), Err(Refusal::Key));
    }
}
