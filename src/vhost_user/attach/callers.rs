//! The process and user at the other end of a connection, the users who may be frontends, and the
//! process for which the NIC is reserved.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::sys::process::Process;
use crate::sys::sockopt;
use crate::time::Instant;

/// Root may always connect: it controls this process anyway.
const ROOT: u32 = 0;
/// How long a NIC is reserved for a running QEMU that has lost its connection; QEMU retries once a
/// second.
const RESERVATION: Duration = Duration::from_secs(3);
/// Limit on remembered processes that the log has named.
const MOST_NAMED: usize = 64;

/// A user, by name and number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Its name, or number, as the operator wrote it.
    pub name: String,
    /// Its number.
    pub uid: u32,
}

/// The users who may be frontends.
#[derive(Clone, Debug, Default)]
pub struct Frontends(Option<Vec<User>>);

impl Frontends {
    /// These users and root. `None`: every user with access to the socket.
    pub const fn only(users: Vec<User>) -> Self {
        Self(Some(users))
    }

    /// Whether there is a list.
    pub const fn is_list(&self) -> bool {
        self.0.is_some()
    }

    /// Whether this process may be a frontend. With a list, a process that the kernel does not
    /// identify may not.
    pub(super) fn admit(&self, caller: &Caller) -> bool {
        let Some(users) = &self.0 else { return true };
        let listed = |uid| uid == ROOT || users.iter().any(|user| user.uid == uid);
        caller.who.is_some_and(|who| listed(who.uid))
    }

    /// "process 77 of user 64055 (libvirt-qemu)".
    pub(super) fn describe(&self, caller: &Caller) -> String {
        let Some(Who { pid, uid }) = caller.who else { return "an unknown process".into() };
        // A process in another PID namespace has no number here.
        let process = if pid == 0 { "a process".into() } else { format!("process {pid}") };
        let listed =
            self.0.iter().flatten().find(|user| user.uid == uid && user.name != uid.to_string());
        match listed.map(|user| user.name.as_str()).or((uid == ROOT).then_some("root")) {
            Some(name) => format!("{process} of user {uid} ({name})"),
            None => format!("{process} of user {uid}"),
        }
    }
}

/// A process and its user, recorded by the kernel when it connected, or began to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who {
    pub(super) pid: i32,
    pub(super) uid: u32,
}

/// The process at the other end.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) who: Option<Who>,
    /// From Linux 6.5 on.
    process: Option<Process>,
}

impl Caller {
    pub(super) fn of(socket: &impl AsFd) -> Self {
        let credentials = getsockopt(&socket.as_fd(), PeerCredentials).ok();
        let who = credentials.map(|c| Who { pid: c.pid(), uid: c.uid() });
        Self { who, process: sockopt::peer_process(socket).ok().map(Process::from) }
    }

    /// Whether its process is known to run still.
    pub(super) fn lives(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.has_ended())
    }
}

/// A reservation of the NIC for a process whose connection has just ended, so that no other process
/// can take it while that one reconnects.
#[derive(Debug)]
pub(super) struct Reservation {
    caller: Caller,
    until: Instant,
}

impl Reservation {
    /// For a process that still runs; `None` if it does not, or if the kernel cannot tell.
    pub(super) fn of(caller: Caller, now: Instant) -> Option<Self> {
        caller.lives().then(|| Self { caller, until: now + RESERVATION })
    }

    /// When it expires.
    pub(super) const fn until(&self) -> Instant {
        self.until
    }

    /// Readable when the process has ended. A dying QEMU closes its connection just before.
    pub(super) fn end(&self) -> Option<BorrowedFd<'_>> {
        self.caller.process.as_ref().map(AsFd::as_fd)
    }

    /// Whether it has expired or its process has ended.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until || !self.caller.lives()
    }

    /// Whether it is for this process.
    pub(super) fn is_for(&self, caller: &Caller) -> bool {
        self.caller.who.is_some() && self.caller.who == caller.who
    }
}

/// The processes that the log has named, each once.
#[derive(Debug, Default)]
pub(super) struct Named(BTreeSet<Who>);

impl Named {
    /// Whether it is the first time.
    pub(super) fn is_new(&mut self, caller: &Caller) -> bool {
        if self.0.len() >= MOST_NAMED {
            self.0.clear();
        }
        caller.who.is_none_or(|who| self.0.insert(who))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn caller(pid: i32, uid: u32) -> Caller {
        Caller { who: Some(Who { pid, uid }), process: None }
    }

    #[test]
    fn only_listed_users_and_root_may_connect() {
        let user = |name: &str, uid| User { name: name.into(), uid };
        let list = Frontends::only(vec![user("libvirt-qemu", 64055), user("1000", 1000)]);
        for (uid, admitted) in [(64055, true), (1000, true), (0, true), (1001, false)] {
            assert_eq!(list.admit(&caller(7, uid)), admitted, "{uid}");
            assert!(Frontends::default().admit(&caller(7, uid)));
        }
        let unknown = Caller { who: None, process: None };
        assert!(!list.admit(&unknown) && Frontends::default().admit(&unknown));
        assert_eq!(list.describe(&caller(7, 64055)), "process 7 of user 64055 (libvirt-qemu)");
        assert_eq!(list.describe(&caller(7, 1000)), "process 7 of user 1000");
        assert_eq!(list.describe(&caller(0, 1000)), "a process of user 1000");
        assert_eq!(Frontends::default().describe(&caller(7, 0)), "process 7 of user 0 (root)");
    }

    #[test]
    fn a_nic_is_kept_for_a_process_that_lives_and_for_no_other() {
        let (one, _other) = UnixStream::pair().unwrap();
        let now = Instant::from_millis(10);
        // This very process, if the kernel tells of it.
        let Some(kept) = Reservation::of(Caller::of(&one), now) else { return };
        assert!(kept.is_for(&Caller::of(&one)));
        assert!(!kept.is_for(&caller(1, 0)));
        assert!(!kept.is_over(now) && kept.is_over(kept.until()));
        assert!(Reservation::of(caller(1, 0), now).is_none(), "nobody knows whether that lives");
    }

    #[test]
    fn each_is_named_once() {
        let mut named = Named::default();
        assert!(named.is_new(&caller(1, 0)) && !named.is_new(&caller(1, 0)));
        assert!(named.is_new(&caller(1, 5)) && named.is_new(&caller(2, 0)));
    }
}
