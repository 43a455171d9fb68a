//! Decides which users may have vifs on which vnet, and which users are operators.
//!
//! The kernel reports the user and groups of a connected process (SO_PEERCRED, SO_PEERGROUPS), so
//! no process can pose as another user. Root and varpd's own user may have vifs on every vnet,
//! since they can read the keys anyway.
//!
//! | Vnet | with lists of its own or of `[security]` | without lists |
//! |---|---|---|
//! | secured | users on a list | no other user |
//! | not secured | users on a list | all users who can connect |

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use thiserror::Error;

use crate::config::{Account, Accounts, Config};
use crate::policy::Level;
use crate::wire::VnetId;

const ROOT: u32 = 0;

/// The user of a connected process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who<'a> {
    pub(super) uid: u32,
    pub(super) groups: &'a [u32],
}

/// A user may not have vifs on a vnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum NotAllowed {
    /// Neither the user nor one of its groups is on the vnet's lists.
    #[error(
        "user {uid} is not allowed to have vifs on vnet {vnet}: neither the user nor one of its groups is on \
         its list (allow-users, allow-groups in varpd.toml)"
    )]
    NotListed { vnet: VnetId, uid: u32 },
    /// The vnet is secured and has no lists.
    #[error(
        "user {uid} is not allowed to have vifs on vnet {vnet}: it is secured ({level}) and has no list of users, \
         so only root may; name the user in allow-users, or a group of it in allow-groups, of [vnet.{vnet}] in \
         varpd.toml"
    )]
    Unlisted { vnet: VnetId, uid: u32, level: Level },
}

/// A user is not an operator.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("user {uid} is no operator: {} (operator-group in varpd.toml)", operators(group))]
pub(super) struct NoOperator {
    uid: u32,
    group: Option<String>,
}

fn operators(group: &Option<String>) -> String {
    match group {
        Some(group) => format!("those are root and the members of group '{group}'"),
        None => "that is root alone".into(),
    }
}

/// An unknown user or group name in a list.
#[derive(Debug)]
pub struct Unknown {
    /// The setting that contains the name.
    pub list: &'static str,
    /// The name.
    pub name: String,
    /// The reason.
    pub error: io::Error,
}

/// The users and groups of a list, by numbers.
#[derive(Clone, Debug, Default)]
struct List {
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
}

impl List {
    fn has(&self, who: Who<'_>) -> bool {
        self.users.contains(&who.uid) || who.groups.iter().any(|group| self.groups.contains(group))
    }
}

/// The group of operators.
#[derive(Clone, Debug)]
pub struct Operators {
    /// Its name in the configuration.
    pub name: String,
    /// Its group id.
    pub number: u32,
}

/// The lists of a configuration.
#[derive(Clone, Debug)]
pub struct Admission {
    /// For vnets without lists of their own.
    usual: Option<List>,
    vnets: BTreeMap<VnetId, List>,
    operators: Option<Operators>,
    /// varpd's own user.
    own: u32,
}

impl Admission {
    /// Looks up the users and groups of a configuration. Fails with the first unknown name.
    pub fn new(
        config: &Config,
        own: u32,
        operators: Option<Operators>,
        user: impl Fn(&str) -> io::Result<u32>,
        group: impl Fn(&str) -> io::Result<u32>,
    ) -> Result<Self, Unknown> {
        let list = |users: &Option<Accounts>, groups: &Option<Accounts>| {
            if users.is_none() && groups.is_none() {
                return Ok(None);
            }
            let users = numbers("allow-users", users, &user)?;
            let groups = numbers("allow-groups", groups, &group)?;
            Ok(Some(List { users, groups }))
        };
        let usual = list(&config.security.allow_users, &config.security.allow_groups)?;
        let mut vnets = BTreeMap::new();
        for (name, vnet) in &config.vnet {
            let own = list(&vnet.allow_users, &vnet.allow_groups)?;
            vnets.extend(own.map(|own| (name.0, own)));
        }
        Ok(Self { usual, vnets, operators, own })
    }

    /// Whether a user may have vifs on a vnet with this policy.
    pub(super) fn check(&self, vnet: VnetId, level: Level, who: Who<'_>) -> Result<(), NotAllowed> {
        let uid = who.uid;
        if self.is_trusted(uid) {
            return Ok(());
        }
        match self.vnets.get(&vnet).or(self.usual.as_ref()) {
            Some(list) if list.has(who) => Ok(()),
            Some(_) => Err(NotAllowed::NotListed { vnet, uid }),
            None if level.is_secured() => Err(NotAllowed::Unlisted { vnet, uid, level }),
            None => Ok(()),
        }
    }

    /// Whether a user may see tables and events, and flush the cache.
    pub(super) fn check_operator(&self, who: Who<'_>) -> Result<(), NoOperator> {
        let is_member = |of: &Operators| who.groups.contains(&of.number);
        if self.is_trusted(who.uid) || self.operators.as_ref().is_some_and(is_member) {
            return Ok(());
        }
        let group = self.operators.as_ref().map(|operators| operators.name.clone());
        Err(NoOperator { uid: who.uid, group })
    }

    fn is_trusted(&self, uid: u32) -> bool {
        [ROOT, self.own].contains(&uid)
    }
}

/// The numbers of a list's names.
fn numbers(
    list: &'static str,
    accounts: &Option<Accounts>,
    number: impl Fn(&str) -> io::Result<u32>,
) -> Result<BTreeSet<u32>, Unknown> {
    let number = |account: &Account| match account {
        Account::Number(number) => Ok(*number),
        Account::Name(name) => {
            number(name).map_err(|error| Unknown { list, name: name.clone(), error })
        }
    };
    accounts.iter().flat_map(|accounts| &accounts.0).map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// varpd's user in these tests.
    const OWN: u32 = 990;

    fn admission(text: &str) -> Result<Admission, String> {
        let config = Config::parse(text, Path::new("f.toml")).map_err(|e| e.to_string())?;
        let number = |name: &str| match name {
            "kvm" => Ok(64),
            _ => Err(io::Error::other("no such account")),
        };
        let operators = Some(Operators { name: "vnet-admin".into(), number: 77 });
        Admission::new(&config, OWN, operators, number, number)
            .map_err(|Unknown { list, name, error }| format!("{list}: '{name}': {error}"))
    }

    fn vnet(id: u32) -> VnetId {
        VnetId::new(id).unwrap()
    }

    /// Some users, each with a group of the same number and group 100.
    fn allowed(admission: &Admission, id: u32, level: Level) -> Vec<u32> {
        let may = |uid: &u32| {
            admission.check(vnet(id), level, Who { uid: *uid, groups: &[*uid, 100] }).is_ok()
        };
        [0, 64, OWN, 1000, 65534].into_iter().filter(may).collect()
    }

    fn open(admission: &Admission, id: u32) -> Vec<u32> {
        allowed(admission, id, Level::None)
    }

    const ALL: [u32; 5] = [0, 64, OWN, 1000, 65534];

    #[test]
    fn without_a_list_all_may_but_on_a_secured_vnet_root_alone() {
        let none = admission("").unwrap();
        assert_eq!(open(&none, 42), ALL);
        for level in [Level::Auth, Level::Conf] {
            assert_eq!(allowed(&none, 42, level), [0, OWN], "who could read the key as well");
        }
        let own = admission("[vnet.42]\nallow-users = []").unwrap();
        assert_eq!((open(&own, 42), open(&own, 43)), (vec![0, OWN], ALL.to_vec()));
        let refusal = none.check(vnet(42), Level::Conf, Who { uid: 1000, groups: &[1000] });
        let text = refusal.unwrap_err().to_string();
        assert!(text.contains("secured (conf) and has no list"), "{text}");
        assert!(text.contains("allow-users") && text.contains("[vnet.42]"), "{text}");
    }

    #[test]
    fn a_vnets_own_lists_go_before_the_usual_ones() {
        let text = "[security]\nallow-users = ['kvm']\n[vnet.42]\nallow-users = [1000, 65534]\n\
                    [vnet.43]\npolicy = 'none'\n[vnet.45]\nallow-groups = [1000]\n";
        let lists = admission(text).unwrap();
        for level in [Level::None, Level::Conf] {
            assert_eq!(allowed(&lists, 42, level), [0, OWN, 1000, 65534]);
            assert_eq!(allowed(&lists, 43, level), [0, 64, OWN]);
            assert_eq!(allowed(&lists, 44, level), [0, 64, OWN]);
            assert_eq!(allowed(&lists, 45, level), [0, OWN, 1000]);
        }
        let refusal = lists.check(vnet(43), Level::None, Who { uid: 1000, groups: &[] });
        let text = refusal.unwrap_err().to_string();
        assert!(text.starts_with("user 1000 is not allowed to have vifs on vnet 43"), "{text}");
    }

    #[test]
    fn a_group_is_as_good_as_a_user() {
        let lists = admission("[security]\nallow-groups = ['kvm', 100]\n").unwrap();
        assert_eq!(allowed(&lists, 42, Level::Conf), ALL);
        let both = admission("[vnet.42]\nallow-users = [1000]\nallow-groups = ['kvm']\n").unwrap();
        assert_eq!(allowed(&both, 42, Level::Conf), [0, 64, OWN, 1000]);
        let nobody = Who { uid: 1001, groups: &[] };
        assert!(both.check(vnet(42), Level::Conf, nobody).is_err());
        // A user's number is not a group's.
        let kvm = Who { uid: 64, groups: &[1] };
        assert!(both.check(vnet(42), Level::Conf, kvm).is_err());
    }

    #[test]
    fn operators_are_root_and_their_group() {
        let lists = admission("").unwrap();
        let may = |uid, groups: &[u32]| lists.check_operator(Who { uid, groups });
        assert_eq!(may(0, &[0]), Ok(()));
        assert_eq!(may(OWN, &[]), Ok(()));
        assert_eq!(may(1000, &[1000, 77]), Ok(()));
        let text = may(1000, &[1000, 100]).unwrap_err().to_string();
        let want = "user 1000 is no operator: those are root and the members of group 'vnet-admin' \
                    (operator-group in varpd.toml)";
        assert_eq!(text, want);
        let none = Admission::new(&Config::default(), OWN, None, |_| Ok(1), |_| Ok(1)).unwrap();
        let text = none.check_operator(Who { uid: 1, groups: &[1] }).unwrap_err().to_string();
        assert!(text.contains("that is root alone"), "{text}");
    }

    #[test]
    fn who_is_nobody_is_said() {
        let wrong = |text| admission(text).unwrap_err();
        assert_eq!(
            wrong("[security]\nallow-users = ['nobdy']"),
            "allow-users: 'nobdy': no such account"
        );
        assert_eq!(
            wrong("[vnet.42]\nallow-groups = [1, 'x']"),
            "allow-groups: 'x': no such account"
        );
        let text = wrong("[vnet.42]\nallow-users = [-1]");
        assert_eq!(text, "f.toml:2: a user or group is a name or a number from 0 to 4294967294");
        assert_eq!(wrong("[vnet.42]\nallow-groups = [4294967295]"), text);
        assert!(wrong("[vnet.42]\nallow-users = 1000").starts_with("f.toml:2: invalid type"));
    }
}
