//! The receiver's side: a window for each start of each sender.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;

use super::candidates::{Charge, Senders};
use super::{StartId, TOLERANCE, seconds, tolerance};
use crate::policy::{Level, Suite};
use crate::secret::{SaKey, Secret};
use crate::security::esp::{Numbering, OpenError, Opener};
use crate::time::Now;
use crate::wire::VnetId;
use crate::wire::esp::Head;

/// Senders' starts that a receiver keeps apart.
pub const MAX_SENDERS: usize = 4096;

/// Why a group packet is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupError {
    /// As with any packet.
    Open(OpenError),
    /// Its sender's start is too far from this host's clock.
    Stale,
    /// Another vnet's.
    Foreign,
    /// Too many senders.
    Full,
    /// Its sender is not known, and too many such packets came.
    Flood,
}

impl From<OpenError> for GroupError {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

/// The senders of group frames that a receiver knows.
#[derive(Debug, Default)]
pub struct GroupReceiver {
    /// The keys that are accepted.
    keys: Vec<(Suite, Secret)>,
    pub(super) senders: BTreeMap<StartId, Sender>,
    pub(super) expected: Senders,
    /// No start before this one is ever accepted (in seconds): what was forgotten stays so.
    pub(super) swept: u32,
}

#[derive(Debug)]
pub(super) struct Sender {
    opener: Opener,
    /// Under which of the keys.
    key: Secret,
}

impl GroupReceiver {
    /// The keys that are accepted.
    pub fn keys(&self) -> impl Iterator<Item = &Secret> {
        self.keys.iter().map(|(_, key)| key)
    }

    /// Keys of policies that are not accepted any more go.
    pub fn retain(&mut self, is_accepted: impl Fn(Level) -> bool) {
        let keys = self.keys.iter().filter(|(suite, _)| is_accepted(suite.level()));
        self.set_keys(keys.cloned().collect());
    }

    /// Under which policy the sender of a packet that was opened sends.
    pub fn level_of(&self, from: SocketAddr, head: &Head) -> Option<Level> {
        let sender = self.senders.get(&StartId::of(from, head))?;
        let key = self.keys.iter().find(|(_, key)| *key == sender.key);
        key.map(|(suite, _)| suite.level())
    }

    /// Accepts these keys from now on; state under others ends.
    pub fn set_keys(&mut self, keys: Vec<(Suite, Secret)>) {
        self.senders.retain(|_, sender| keys.iter().any(|(_, key)| *key == sender.key));
        self.forget_unproved();
        self.expected.forget_candidates();
        self.keys = keys;
    }

    /// Forgets senders of which no start is remembered.
    fn forget_unproved(&mut self) {
        let senders = &self.senders;
        self.expected.forget(|start| senders.contains_key(start));
    }

    /// Opens a packet that came `from` there.
    ///
    /// # Errors
    /// Why it is not accepted.
    pub fn open(
        &mut self,
        vnet: VnetId,
        from: SocketAddr,
        head: &Head,
        packet: &mut [u8],
        now: Now,
    ) -> Result<Range<usize>, GroupError> {
        if !head.spi.is_of_group(vnet) {
            return Err(GroupError::Foreign);
        }
        let id = StartId::of(from, head);
        let wall = seconds(now.wall_ms).ok_or(GroupError::Stale)?;
        self.heed_clock(wall);
        if u64::from(wall.abs_diff(id.second)) > TOLERANCE.as_secs() || id.second < self.swept {
            return Err(GroupError::Stale);
        }
        if let Some(sender) = self.senders.get_mut(&id) {
            return Ok(sender.opener.open(head, packet)?);
        }
        self.open_first(id, head, packet, wall, now)
    }

    /// The first packet of a start: whoever made it has one of the keys, or it changes nothing.
    fn open_first(
        &mut self,
        id: StartId,
        head: &Head,
        packet: &mut [u8],
        wall: u32,
        now: Now,
    ) -> Result<Range<usize>, GroupError> {
        if self.senders.len() >= MAX_SENDERS {
            self.sweep(wall);
        }
        if self.senders.len() >= MAX_SENDERS {
            return Err(GroupError::Full);
        }
        let charge = self.expected.charge(id, wall, now.mono);
        let mut openers = match charge {
            Charge::Nothing => return Err(GroupError::Flood),
            Charge::Candidate => {
                let keys = self.expected.candidate(id).ok_or(GroupError::Flood)?;
                self.openers(id, keys)
            }
            Charge::Stranger => self.openers(id, &self.derive(id)),
            Charge::Known => {
                let keys = self.derive(id);
                let openers = self.openers(id, &keys);
                self.expected.keep(id, keys, wall);
                openers
            }
        };
        let (at, opened) = try_all(&mut openers, head, packet)?;
        let (opener, key) = (openers.swap_remove(at), self.keys.get(at));
        if let Some((_, key)) = key {
            self.senders.insert(id, Sender { opener, key: key.clone() });
            self.expected.prove(id, wall);
        }
        Ok(opened?)
    }

    /// The keys of a start, for each key of the vnet.
    fn derive(&self, id: StartId) -> Vec<SaKey> {
        self.keys.iter().map(|(_, key)| id.key(key)).collect()
    }

    /// What opens packets of a start with these keys.
    fn openers(&self, id: StartId, keys: &[SaKey]) -> Vec<Opener> {
        let suites = self.keys.iter().map(|(suite, _)| *suite);
        let opener = |(suite, key)| Opener::new(suite, key, Numbering::Group(id.start()));
        suites.zip(keys).map(opener).collect()
    }

    /// Forgets senders whose start is too old to be accepted again, even if the clock is set back.
    /// Looks at those only, and at one more: anybody can send what makes a full table be swept.
    pub(super) fn sweep(&mut self, wall: u32) {
        let oldest = wall.saturating_sub(tolerance());
        self.swept = self.swept.max(oldest);
        let before = self.senders.len();
        while let Some(first) = self.senders.first_entry().filter(|e| e.key().second < self.swept) {
            first.remove();
        }
        if self.senders.len() < before {
            self.forget_unproved();
        }
    }

    /// The clock of this host may once have been far ahead, and have been set right since: what was
    /// swept then, and who is known from then, must not keep everybody out until that time has
    /// come.
    fn heed_clock(&mut self, wall: u32) {
        let latest = wall.saturating_add(tolerance());
        if self.swept > latest {
            // Nothing that was heard lately is remembered: only starts from now on are new for
            // sure.
            self.swept = wall;
        }
        if self.senders.len() < MAX_SENDERS {
            return;
        }
        let before = self.senders.len();
        while let Some(last) = self.senders.last_entry().filter(|e| e.key().second > latest) {
            last.remove();
        }
        if self.senders.len() < before {
            self.forget_unproved();
        }
    }
}

/// The opener that accepts a packet as authentic, and the opened packet.
fn try_all(
    openers: &mut [Opener],
    head: &Head,
    packet: &mut [u8],
) -> Result<(usize, Result<Range<usize>, OpenError>), OpenError> {
    // Opening scrambles what it refuses; the copy is for the next key.
    let copy = if openers.len() > 1 { packet.to_vec() } else { Vec::new() };
    for (at, opener) in openers.iter_mut().enumerate() {
        if at > 0 {
            packet.copy_from_slice(&copy);
        }
        match opener.open(head, packet) {
            Err(OpenError::Inauthentic) => {}
            // Number 0, which no window takes: nobody has proved anything.
            Err(OpenError::Replay) => return Err(OpenError::Replay),
            opened => return Ok((at, opened)),
        }
    }
    Err(OpenError::Inauthentic)
}
