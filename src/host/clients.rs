//! The clients of the control sockets: their processes, users and roles, and the limits on their
//! number.

use std::collections::BTreeMap;

use crate::mapper::LocalVif;
use crate::wire::control::Features;

/// Most connections of one process, unless it is root's: a backend has one. Backends of one user
/// often serve unrelated guests, so no process may use up the connections of its user.
const MOST_PER_PROCESS: usize = 16;
/// Most connections at the operators' socket. Connections at the control socket do not count.
const MOST_OPERATORS: usize = 64;
/// Connections beyond the limit that are reserved for root, so that it can always inspect varpd.
const ROOT_RESERVE: usize = 8;

/// Identifies a connection; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// The socket that a client connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The control socket.
    Control,
    /// The operators' socket.
    Operators,
}

/// The process at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Process id; 0 if the process is in a namespace that varpd cannot see.
    pub pid: i32,
}

/// The role of a client, as its requests show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Not known yet.
    Unknown,
    /// The backend of a vif that is being registered.
    Registering(LocalVif),
    /// The backend of a vif.
    Backend(LocalVif),
    /// An operator's command that asks for tables or a flush.
    Operator,
    /// An operator's command that watches events.
    Monitor,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) peer: Peer,
    /// The groups of its user.
    pub(super) groups: Vec<u32>,
    pub(super) door: Door,
    pub(super) role: Role,
    /// Its optional features; `None` before its HELLO.
    pub(super) features: Option<Features>,
    /// It has yet to take all rows of a table.
    pub(super) is_reading: bool,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Clients {
    clients: BTreeMap<ClientId, Client>,
    most: usize,
    most_per_user: usize,
}

impl Clients {
    /// No clients. The limits apply to the control socket.
    pub(super) fn new(most: usize, most_per_user: usize) -> Self {
        Self { clients: BTreeMap::new(), most, most_per_user }
    }

    /// Sets the limits for new clients.
    pub(super) fn set_limits(&mut self, most: usize, most_per_user: usize) {
        (self.most, self.most_per_user) = (most, most_per_user);
    }

    /// Adds a client.
    ///
    /// # Errors
    /// A limit is reached; the text names it.
    pub(super) fn add(
        &mut self,
        id: ClientId,
        door: Door,
        peer: Peer,
        groups: Vec<u32>,
    ) -> Result<(), String> {
        let (most, most_per_user) = match door {
            Door::Control => (self.most, self.most_per_user),
            Door::Operators => (MOST_OPERATORS, self.most_per_user.min(MOST_OPERATORS / 2)),
        };
        let there = || self.clients.values().filter(|c| c.door == door);
        let of_user = there().filter(|c| c.peer.uid == peer.uid).count();
        let (root, all) = (peer.uid == 0, there().count());
        if all >= most + if root { ROOT_RESERVE } else { 0 } {
            return Err(format!("varpd has {all} clients already"));
        }
        if !root && of_user >= most_per_user {
            return Err(format!("user {} has {of_user} clients already", peer.uid));
        }
        let of_process = there().filter(|c| c.peer == peer).count();
        // All processes in namespaces that varpd cannot see have number 0.
        if !root && peer.pid != 0 && of_process >= MOST_PER_PROCESS {
            return Err(format!("process {} has {of_process} clients already", peer.pid));
        }
        let (role, features, is_reading) = (Role::Unknown, None, false);
        self.clients.insert(id, Client { peer, groups, door, role, features, is_reading });
        Ok(())
    }

    /// A client, read-only.
    pub(super) fn get(&self, id: ClientId) -> Option<&Client> {
        self.clients.get(&id)
    }

    /// A client, mutable.
    pub(super) fn get_mut(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(&id)
    }

    /// Forgets a client.
    pub(super) fn remove(&mut self, id: ClientId) -> Option<Client> {
        self.clients.remove(&id)
    }

    /// Number of clients.
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// Number of clients that have yet to take all rows of a table.
    pub(super) fn readers(&self) -> usize {
        self.clients.values().filter(|client| client.is_reading).count()
    }

    /// The clients that watch events.
    pub(super) fn monitors(&self) -> impl Iterator<Item = ClientId> {
        self.clients.iter().filter(|(_, c)| c.role == Role::Monitor).map(|(&id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, pid: i32) -> Peer {
        Peer { uid, pid }
    }

    fn add(clients: &mut Clients, id: u64, door: Door, peer: Peer) -> Result<(), String> {
        clients.add(ClientId(id), door, peer, Vec::new())
    }

    #[test]
    fn one_too_many_is_told_why_and_root_has_places_of_its_own() {
        let mut clients = Clients::new(2, 2);
        for id in 0..2 {
            assert_eq!(add(&mut clients, id, Door::Control, peer(1000, 1)), Ok(()));
        }
        let refusal = add(&mut clients, 2, Door::Control, peer(1001, 2)).unwrap_err();
        assert_eq!(refusal, "varpd has 2 clients already");
        let reserve = u64::try_from(ROOT_RESERVE).unwrap();
        for id in 10..10 + reserve {
            assert_eq!(add(&mut clients, id, Door::Control, peer(0, 3)), Ok(()));
        }
        assert!(add(&mut clients, 99, Door::Control, peer(0, 3)).is_err());
        assert_eq!(add(&mut clients, 100, Door::Operators, peer(1000, 4)), Ok(()));
        assert!(clients.remove(ClientId(0)).is_some());
        assert!(
            add(&mut clients, 101, Door::Control, peer(1001, 2)).is_err(),
            "root's are counted"
        );
    }

    #[test]
    fn users_and_processes_have_limits_of_their_own() {
        let mut clients = Clients::new(1000, 20);
        for id in 0..16 {
            assert_eq!(add(&mut clients, id, Door::Control, peer(1000, 7)), Ok(()));
        }
        let refusal = add(&mut clients, 16, Door::Control, peer(1000, 7)).unwrap_err();
        assert_eq!(refusal, "process 7 has 16 clients already");
        for id in 20..24 {
            assert_eq!(add(&mut clients, id, Door::Control, peer(1000, 0)), Ok(()));
        }
        let refusal = add(&mut clients, 24, Door::Control, peer(1000, 8)).unwrap_err();
        assert_eq!(refusal, "user 1000 has 20 clients already");
        assert_eq!(add(&mut clients, 25, Door::Control, peer(1001, 8)), Ok(()));
        for id in 30..60 {
            assert_eq!(
                add(&mut clients, id, Door::Control, peer(0, 9)),
                Ok(()),
                "root's is not held to it"
            );
        }
    }
}
