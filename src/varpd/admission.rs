//! Which users may have vifs on which vnet.
//!
//! The kernel tells whose process connected (SO_PEERCRED), so a user is who it says. Root may have
//! vifs everywhere: it could read the keys as well.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use thiserror::Error;

use crate::config::{Config, User, Users};
use crate::sys::seqpacket::Peer;
use crate::wire::VnetId;

const ROOT: u32 = 0;

/// A user may not have vifs on a vnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("user {uid} is not allowed to have vifs on vnet {vnet} (allow-users of its host)")]
pub(super) struct NotAllowed {
    vnet: VnetId,
    uid: u32,
}

/// The lists, by numbers of users.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// For vnets without a list of their own; without one, all who can connect.
    usual: Option<BTreeSet<u32>>,
    vnets: BTreeMap<VnetId, BTreeSet<u32>>,
}

impl Admission {
    /// Looks up the users that are named in a configuration. Fails with the name that is unknown.
    pub(super) fn new(
        config: &Config,
        number: impl Fn(&str) -> io::Result<u32>,
    ) -> Result<Self, (String, io::Error)> {
        let look_up = |users: &Users| {
            let number = |user: &User| match user {
                User::Number(uid) => Ok(*uid),
                User::Name(name) => number(name).map_err(|e| (name.clone(), e)),
            };
            users.0.iter().map(number).collect::<Result<BTreeSet<u32>, _>>()
        };
        let own = config.vnet.iter().filter_map(|(name, vnet)| {
            let users = vnet.allow_users.as_ref()?;
            Some(look_up(users).map(|users| (name.0, users)))
        });
        let usual = config.security.allow_users.as_ref().map(look_up).transpose()?;
        Ok(Self { usual, vnets: own.collect::<Result<_, _>>()? })
    }

    /// Whether a user may have vifs on a vnet.
    pub(super) fn check(&self, vnet: VnetId, peer: Peer) -> Result<(), NotAllowed> {
        let users = self.vnets.get(&vnet).or(self.usual.as_ref());
        let is_allowed = users.is_none_or(|users| users.contains(&peer.uid)) || peer.uid == ROOT;
        if is_allowed { Ok(()) } else { Err(NotAllowed { vnet, uid: peer.uid }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn admission(text: &str) -> Result<Admission, String> {
        let config = Config::parse(text, Path::new("f.toml")).map_err(|e| e.to_string())?;
        let number = |name: &str| match name {
            "kvm" => Ok(64),
            _ => Err(io::Error::other("no such user")),
        };
        Admission::new(&config, number).map_err(|(name, e)| format!("{name}: {e}"))
    }

    fn allowed(admission: &Admission, id: u32) -> Vec<u32> {
        let may = |uid: &u32| {
            admission.check(VnetId::new(id).unwrap(), Peer { uid: *uid, pid: 1 }).is_ok()
        };
        [0, 64, 1000, 65534].into_iter().filter(may).collect()
    }

    #[test]
    fn without_a_list_all_may() {
        assert_eq!(allowed(&admission("").unwrap(), 42), [0, 64, 1000, 65534]);
        let own = admission("[vnet.42]\nallow-users = []").unwrap();
        assert_eq!((allowed(&own, 42), allowed(&own, 43)), (vec![0], vec![0, 64, 1000, 65534]));
    }

    #[test]
    fn a_vnets_own_list_goes_before_the_usual_one() {
        let text = "[security]\nallow-users = ['kvm']\n[vnet.42]\nallow-users = [1000, 65534]\n\
                    [vnet.43]\npolicy = 'none'\n";
        let lists = admission(text).unwrap();
        assert_eq!(allowed(&lists, 42), [0, 1000, 65534]);
        assert_eq!(allowed(&lists, 43), [0, 64]);
        assert_eq!(allowed(&lists, 44), [0, 64]);
        let refusal = lists.check(VnetId::new(43).unwrap(), Peer { uid: 1000, pid: 1 });
        assert_eq!(
            refusal.unwrap_err().to_string(),
            "user 1000 is not allowed to have vifs on vnet 43 (allow-users of its host)"
        );
    }

    #[test]
    fn what_is_no_user_is_said() {
        let wrong = |text| admission(text).unwrap_err();
        assert_eq!(wrong("[security]\nallow-users = ['nobdy']"), "nobdy: no such user");
        assert_eq!(wrong("[vnet.42]\nallow-users = [1, 'x']"), "x: no such user");
        let text = wrong("[vnet.42]\nallow-users = [-1]");
        assert_eq!(text, "f.toml:2: a user is a name or a number from 0 to 4294967294");
        assert_eq!(wrong("[vnet.42]\nallow-users = [4294967295]"), text);
        assert!(wrong("[vnet.42]\nallow-users = 1000").starts_with("f.toml:2: invalid type"));
    }
}
