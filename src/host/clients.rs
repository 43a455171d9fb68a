//! The clients of the control sockets: who they are and what they have shown themselves to be.

use std::collections::BTreeMap;

use crate::mapper::LocalVif;
use crate::wire::control::Features;

/// Connections of one process at most, unless it is root's: a backend has one. Those of a user often
/// serve guests that have nothing to do with each other, and none is to take all places of the user.
const MOST_PER_PROCESS: usize = 16;
/// Connections at the operators' socket: those of backends take none of their places.
const MOST_OPERATORS: usize = 64;
/// Root may always look: this many connections beyond the limit are its own.
const ROOT_RESERVE: usize = 8;

/// Names a connection; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u64);

/// The socket that a client connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The control socket.
    Control,
    /// That of operators.
    Operators,
}

/// The process at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user id.
    pub uid: u32,
    /// Process id, 0 if it is in a namespace that is not visible from here.
    pub pid: i32,
}

/// What a client has shown itself to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Nothing yet.
    Unknown,
    /// The backend of a vif that is being registered.
    Registering(LocalVif),
    /// The backend of a vif.
    Backend(LocalVif),
    /// Asks for tables.
    Operator,
    /// Watches events.
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
    /// What it has beyond the version of the protocol, once it has said HELLO.
    pub(super) features: Option<Features>,
    /// A table is on its way to it.
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
    /// None; the limits are those of the control socket.
    pub(super) fn new(most: usize, most_per_user: usize) -> Self {
        Self { clients: BTreeMap::new(), most, most_per_user }
    }

    /// Other limits for those that are still to come.
    pub(super) fn set_limits(&mut self, most: usize, most_per_user: usize) {
        (self.most, self.most_per_user) = (most, most_per_user);
    }

    /// Takes a new client.
    ///
    /// # Errors
    /// A limit is reached: which, in words.
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
        // All processes in a namespace that is not visible from here have number 0.
        if !root && peer.pid != 0 && of_process >= MOST_PER_PROCESS {
            return Err(format!("process {} has {of_process} clients already", peer.pid));
        }
        let (role, features, is_reading) = (Role::Unknown, None, false);
        self.clients.insert(id, Client { peer, groups, door, role, features, is_reading });
        Ok(())
    }

    /// A client, to look at.
    pub(super) fn get(&self, id: ClientId) -> Option<&Client> {
        self.clients.get(&id)
    }

    /// A client, to change.
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

    /// Number of clients that tables are on their way to.
    pub(super) fn readers(&self) -> usize {
        self.clients.values().filter(|client| client.is_reading).count()
    }

    /// Those who watch events.
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
