//! Senders of packets that are too long for their path: which were told so, and go on all the same.
//!
//! A router drops such packets for ever, and where the ICMP message is filtered or ignored its
//! sender's connections hang ("ping works, ssh does not"). Here a sender has [`GRACE`] to obey, which
//! is ample within a host; its packets meanwhile are dropped, as it expects of a path that is too
//! narrow. After that they travel in pieces, and it is reminded now and then.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Instant;
use crate::tunnel::too_big;

/// How long after the first message packets are still dropped.
pub const GRACE: Duration = Duration::from_millis(200);
/// How often those that do not obey are told again.
const REMIND: Duration = Duration::from_secs(1);
/// Who has sent nothing too long for this time has obeyed.
const FORGET: Duration = Duration::from_secs(30);
/// Pairs of addresses that are remembered at most.
const MAX_ENTRIES: usize = 256;
/// Limit on answers that wait; more say nothing new.
const MAX_ANSWERS: usize = 16;

/// Answers to the senders of packets that are too long (ICMP), for whoever delivers them.
#[derive(Debug, Default)]
pub struct PmtuFeedback {
    informed: InformedSenders,
    answers: Vec<Vec<u8>>,
}

impl PmtuFeedback {
    /// Whether a frame of `len` bytes that is longer than `max_frame` and can't be cut is carried all the
    /// same, given its headers. If it must not be fragmented its sender is informed, as by a router; if it
    /// may be, can't be informed, or its sender does not listen, it is carried where that `is_possible`.
    pub fn is_carried(
        &mut self,
        lead: Option<&[u8]>,
        len: usize,
        max_frame: usize,
        is_possible: bool,
        now: Instant,
    ) -> bool {
        let Some(answer) = lead.and_then(|lead| too_big::answer(lead, len, max_frame)) else {
            return true;
        };
        let verdict = self.informed.judge(answer.flow, now);
        let is_carried = verdict.carry && is_possible;
        if (verdict.tell || !is_carried) && self.answers.len() < MAX_ANSWERS {
            self.answers.push(answer.frame);
        }
        is_carried
    }

    /// Whether answers wait.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// Takes the answers: frames for the senders.
    pub fn take_answers(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.answers)
    }
}

/// Source and destination IP address of packets: hosts keep path MTUs by these.
pub type Flow = (IpAddr, IpAddr);

#[derive(Clone, Copy, Debug)]
struct Told {
    first: Instant,
    last: Instant,
    seen: Instant,
}

/// What to do about a packet that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Tell its sender.
    pub tell: bool,
    /// Carry it in pieces.
    pub carry: bool,
}

/// The senders that were told, behind one queue pair.
#[derive(Debug, Default)]
pub struct InformedSenders {
    told: HashMap<Flow, Told>,
}

impl InformedSenders {
    /// Judges the next packet that is too long.
    pub fn judge(&mut self, flow: Flow, now: Instant) -> Verdict {
        if self.told.len() >= MAX_ENTRIES && !self.told.contains_key(&flow) {
            self.told.retain(|_, told| now - told.seen < FORGET);
            if self.told.len() >= MAX_ENTRIES {
                // Too many to be remembered: nobody's packets are to be lost for that.
                return Verdict { tell: true, carry: true };
            }
        }
        let new = Told { first: now, last: now, seen: now };
        let told = self.told.entry(flow).or_insert(new);
        if now - told.seen >= FORGET {
            *told = new;
        }
        told.seen = now;
        if now - told.first < GRACE {
            return Verdict { tell: true, carry: false };
        }
        let tell = now - told.last >= REMIND;
        if tell {
            told.last = now;
        }
        Verdict { tell, carry: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(n: u32) -> Flow {
        (IpAddr::V4(n.into()), IpAddr::V4(1.into()))
    }

    fn at(millis: u64) -> Instant {
        Instant::from_millis(1000 + millis)
    }

    const DROP: Verdict = Verdict { tell: true, carry: false };
    const CARRY: Verdict = Verdict { tell: false, carry: true };
    const REMINDED: Verdict = Verdict { tell: true, carry: true };

    #[test]
    fn who_does_not_obey_is_carried_and_reminded() {
        let mut senders = InformedSenders::default();
        assert_eq!(senders.judge(flow(1), at(0)), DROP);
        assert_eq!(senders.judge(flow(1), at(199)), DROP);
        assert_eq!(senders.judge(flow(2), at(200)), DROP, "another");
        assert_eq!(senders.judge(flow(1), at(200)), CARRY);
        assert_eq!(senders.judge(flow(1), at(999)), CARRY);
        assert_eq!(senders.judge(flow(1), at(1000)), REMINDED);
        assert_eq!(senders.judge(flow(1), at(1001)), CARRY);
    }

    #[test]
    fn who_obeyed_is_told_afresh_later() {
        let mut senders = InformedSenders::default();
        assert_eq!(senders.judge(flow(1), at(0)), DROP);
        assert_eq!(senders.judge(flow(1), at(600_000)), DROP, "tries a larger one");
        assert_eq!(senders.judge(flow(1), at(600_300)), CARRY);
    }

    #[test]
    fn bounded() {
        let mut senders = InformedSenders::default();
        for n in 0..256 {
            assert_eq!(senders.judge(flow(n), at(0)), DROP);
        }
        assert_eq!(senders.judge(flow(999), at(0)), REMINDED);
        assert_eq!(senders.judge(flow(3), at(300)), CARRY);
        assert_eq!(senders.judge(flow(999), at(30_000)), DROP, "old ones are forgotten");
        assert_eq!(senders.told.len(), 2);
    }
}
