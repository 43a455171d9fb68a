//! Compares another host's settings of a vnet with this host's.

use std::fmt;

use super::own::Vnet;
use crate::policy::{Level, Policy, Suite};
use crate::wire::hello::Entry;
use crate::wire::hello::list::Choice;

/// A difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The policies differ, and one of the two hosts refuses the frames of the other.
    Policy {
        /// The other's.
        there: Choice,
        /// This host's.
        here: Policy,
    },
    /// The policies differ, but each host accepts the frames of the other.
    OtherPolicy {
        /// The other's.
        there: Choice,
        /// This host's.
        here: Policy,
    },
    /// The other host uses a key that this host does not accept.
    Key,
    /// The other host uses a key that this host accepts but does not use.
    OtherKey,
    /// The hosts seal group frames with different ciphers.
    Cipher {
        /// The other's code.
        there: u8,
        /// This host's code.
        here: u8,
    },
    /// The other host sends group frames to a group that this host does not listen to.
    Deaf(u8),
    /// This host sends group frames to a group that the other host does not listen to.
    Unheard(u8),
    /// The groups differ, but each host listens to the group that the other sends to.
    OtherGroups(Choice),
}

impl Difference {
    /// Whether the difference causes loss of frames or messages.
    pub const fn is_harmful(self) -> bool {
        !matches!(self, Self::OtherPolicy { .. } | Self::OtherKey | Self::OtherGroups(_))
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Policy { there, here } => {
                write!(f, "policy {}, here {here}", policy(there))
            }
            Self::OtherPolicy { there, here } => {
                write!(f, "policy {}, here {here} (compatible)", policy(there))
            }
            Self::Key => f.write_str("another key"),
            Self::OtherKey => f.write_str("the other of two accepted keys"),
            Self::Cipher { there, here } => {
                write!(f, "cipher {}, here {}", cipher(there), cipher(here))
            }
            Self::Deaf(code) => {
                write!(f, "sends to group '{}', not in groups here", group(code))
            }
            Self::Unheard(code) => {
                write!(f, "group '{}' not in groups there, but sent to here", group(code))
            }
            Self::OtherGroups(there) => write!(f, "groups {} (compatible)", groups(there)),
        }
    }
}

fn policy(choice: Choice) -> String {
    let known = Policy::from_codes(choice.sent, choice.accepted);
    known.map_or_else(|| "unknown".to_owned(), |policy| policy.to_string())
}

fn cipher(code: u8) -> String {
    match code {
        0 => "none".to_owned(),
        _ => Suite::from_code(code).map_or_else(|| "unknown".to_owned(), |suite| suite.to_string()),
    }
}

/// The word for a group in varpd.toml.
const fn group(code: u8) -> &'static str {
    match code {
        ONE => "one",
        VNET => "vnet",
        _ => "unknown",
    }
}

fn groups(choice: Choice) -> String {
    let others = [ONE, VNET].into_iter().filter(|code| *code != choice.sent);
    let listened = others.filter(|code| choice.accepted & code != 0);
    let names: Vec<&str> = std::iter::once(choice.sent).chain(listened).map(group).collect();
    names.join(",")
}

/// Code of the group of VARP, and its bit among the groups that a host listens to.
pub const ONE: u8 = 1;
/// Code of the vnet's own group, and its bit.
pub const VNET: u8 = 2;

/// All differences.
pub(super) fn differences(here: &Vnet, there: &Entry) -> Vec<Difference> {
    let mut all = Vec::new();
    let (sent, accepted) = here.policy.codes();
    let takes = |accepted: u8, sent: u8| accepted & 1_u8.checked_shl(sent.into()).unwrap_or(0) != 0;
    let agrees = takes(accepted, there.policy.sent) && takes(there.policy.accepted, sent);
    let (policy, here_policy) = (there.policy, here.policy);
    if !agrees {
        all.push(Difference::Policy { there: policy, here: here_policy });
    } else if (policy.sent, policy.accepted) != (sent, accepted) {
        all.push(Difference::OtherPolicy { there: policy, here: here_policy });
    }
    let is_sealed = Level::from_code(sent).is_some_and(Level::is_secured);
    if policy.sent == sent && is_sealed {
        let ids = there.proof.map(|proof| proof.key_id);
        if ids.is_none_or(|id| here.key(id).is_none()) {
            all.push(Difference::Key);
        } else if ids != here.keys.first().map(|(id, _)| id.0) {
            all.push(Difference::OtherKey);
        }
        let cipher = here.cipher.map_or(0, Suite::code);
        if there.cipher != cipher {
            all.push(Difference::Cipher { there: there.cipher, here: cipher });
        }
    }
    all.extend(other_groups(here.groups, there.groups));
    all
}

fn other_groups(here: Choice, there: Choice) -> Vec<Difference> {
    let mut all = Vec::new();
    if here.accepted & there.sent == 0 {
        all.push(Difference::Deaf(there.sent));
    }
    if there.accepted & here.sent == 0 {
        all.push(Difference::Unheard(here.sent));
    }
    if all.is_empty() && here != there {
        all.push(Difference::OtherGroups(there));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::security::keys::{KeyId, MacKey};
    use crate::wire::hello::Proof;
    use crate::wire::{Longest, VnetId};

    fn key(id: u32) -> (KeyId, MacKey) {
        (KeyId(id), MacKey::new(&Secret::new([9; 32])))
    }

    fn here(levels: &[Level], keys: &[u32], groups: Choice) -> Vnet {
        Vnet {
            policy: Policy::new(levels).unwrap(),
            cipher: Suite::choose(levels[0], true),
            groups,
            longest: Longest::UNKNOWN,
            keys: keys.iter().map(|id| key(*id)).collect(),
        }
    }

    fn there(levels: &[Level], key: Option<u32>, cipher: u8, groups: Choice) -> Entry {
        let (sent, accepted) = Policy::new(levels).unwrap().codes();
        let proof = key.map(|key_id| Proof { key_id, tag: [0; 16] });
        let vnet = VnetId::new(42).unwrap();
        let policy = Choice { sent, accepted };
        Entry { vnet, policy, cipher, groups, longest: 0, proof }
    }

    fn said(here: &Vnet, there: &Entry) -> String {
        let all = differences(here, there);
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    const STEPS: [Choice; 4] = [
        Choice { sent: ONE, accepted: 1 },
        Choice { sent: ONE, accepted: 3 },
        Choice { sent: VNET, accepted: 3 },
        Choice { sent: VNET, accepted: 2 },
    ];

    #[test]
    fn hosts_that_agree_differ_in_nothing() {
        use Level::{Conf, None};
        let one = STEPS[0];
        assert_eq!(said(&here(&[None], &[], one), &there(&[None], Option::None, 0, one)), "");
        assert_eq!(said(&here(&[Conf], &[7], one), &there(&[Conf], Some(7), 1, one)), "");
    }

    #[test]
    fn each_difference_is_said_in_words() {
        use Level::{Auth, Conf, None};
        let one = STEPS[0];
        let conf = here(&[Conf], &[7, 8], one);
        let none = Option::None;
        for (entry, text) in [
            (there(&[None], none, 0, one), "policy none, here conf"),
            (there(&[Auth], Some(7), 2, one), "policy auth, here conf"),
            (there(&[Conf, None], Some(7), 1, one), "policy conf,none, here conf (compatible)"),
            (there(&[Conf], Some(9), 1, one), "another key"),
            (there(&[Conf], Some(8), 1, one), "the other of two accepted keys"),
            (there(&[Conf], Some(7), 3, one), "cipher chacha20-poly1305, here aes-gcm"),
        ] {
            assert_eq!(said(&conf, &entry), text);
        }
        let unknown =
            Entry { policy: Choice { sent: 9, accepted: 0 }, ..there(&[None], none, 0, one) };
        assert_eq!(said(&conf, &unknown), "policy unknown, here conf");
    }

    /// Two hosts one step apart hear each other; two that are further apart do not.
    #[test]
    fn who_skips_a_step_of_the_change_of_groups_is_found() {
        for (n, here) in STEPS.into_iter().enumerate() {
            for (m, there) in STEPS.into_iter().enumerate() {
                let found = other_groups(here, there);
                let is_harmful = found.iter().any(|difference| difference.is_harmful());
                assert_eq!(is_harmful, n.abs_diff(m) > 1, "{n} {m}: {found:?}");
                assert_eq!(found.is_empty(), n == m);
            }
        }
        let words = |here: usize, there: usize| {
            let all = other_groups(STEPS[here], STEPS[there]);
            all.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(words(0, 1), "groups one,vnet (compatible)");
        assert_eq!(words(0, 2), "sends to group 'vnet', not in groups here");
        assert_eq!(words(2, 0), "group 'vnet' not in groups there, but sent to here");
    }
}
