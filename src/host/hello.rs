//! Hello: gives [`Hosts`] this host's settings, sends backends the limit on the length of group
//! frames, and shows operators the hosts.

#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use crate::hosts::{self, Difference, Hosts, ONE, Row, Setup, To, VNET, Vnet};
use crate::time::Now;
use crate::wire::control::{Cell, Event};
use crate::wire::hello::list::Choice;
use crate::wire::name::{Name, Realm};
use crate::wire::{Longest, VnetId};

use super::Host;
use super::clients::ClientId;
use super::output::{Output, Rows};

/// The inputs of the host's own HELLO and LISTs: the vifs, the keys, the MTU and the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Basis {
    vifs: u64,
    keys: u64,
    mtu: Option<u32>,
    address: IpAddr,
}

/// The other hosts, and the basis of the settings that they have of this one.
#[derive(Debug)]
pub(super) struct Hello {
    pub(super) hosts: Hosts,
    /// The default groups that beacons can be sent to.
    beacons: Vec<SocketAddr>,
    /// The basis of the settings last given to [`Hosts`]; `None` to give them again.
    basis: Option<Basis>,
}

impl Hello {
    /// Without settings yet.
    pub(super) fn new(hosts: Hosts) -> Self {
        Self { hosts, beacons: Vec::new(), basis: None }
    }

    /// Beacons can be sent to these groups from now on.
    pub(super) fn set_beacons(&mut self, groups: Vec<SocketAddr>) {
        self.beacons = groups;
        self.set_up_again();
    }

    /// This host's settings have changed in a part that [`Basis`] does not contain.
    pub(super) fn set_up_again(&mut self) {
        self.basis = None;
    }
}

impl Host {
    /// Updates this host's settings if they have changed.
    pub(super) fn refresh_hello(&mut self, now: Now) {
        let basis = Basis {
            vifs: self.registry.revision(),
            keys: self.security.revision(),
            mtu: self.underlay.mtu,
            address: self.underlay.place.address,
        };
        if self.hello.basis != Some(basis) {
            self.hello.basis = Some(basis);
            let name = Name::host(Realm(self.config.realm), basis.address);
            if self.hello.hosts.name() != name {
                self.hello.hosts.move_to(name, now);
            }
            let setup = self.own_setup();
            self.hello.hosts.set_up(setup, now);
        }
        self.drive_hello(now);
    }

    fn own_setup(&self) -> Setup {
        let vnets = self.registry.vnets().into_iter().map(|vnet| (vnet, self.own_vnet(vnet)));
        Setup {
            vnets: vnets.collect(),
            vifs: u32::try_from(self.registry.len()).unwrap_or(u32::MAX),
            group: Some(self.group_address()),
            beacons: self.hello.beacons.clone(),
        }
    }

    fn own_vnet(&self, vnet: VnetId) -> Vnet {
        let policy = self.config.policy(vnet);
        let seals = policy.sent().is_secured();
        let suite = self.config.group_suites(vnet).into_iter().next();
        Vnet {
            policy,
            cipher: suite.filter(|_| seals),
            groups: self.own_groups(),
            longest: self.longest_datagram(),
            keys: self.security.hello_keys(vnet),
        }
    }

    fn own_groups(&self) -> Choice {
        let code = |choice| match choice {
            crate::config::Choice::One => ONE,
            crate::config::Choice::Vnet => VNET,
        };
        let codes: Vec<u8> = self.config.groups.iter().map(code).collect();
        let sent = codes.first().copied().unwrap_or(ONE);
        Choice { sent, accepted: codes.iter().fold(0, |all, code| all | code) }
    }

    fn drive_hello(&mut self, now: Now) {
        while let Some(output) = self.hello.hosts.poll_output() {
            match output {
                hosts::Output::Send { to, bytes } => self.outputs.push_back(match to {
                    To::Group => Output::Send { to: self.group_address(), bytes },
                    To::Host(to) => Output::Send { to, bytes },
                    To::Beacon(to) => Output::SendBeacon { to, bytes },
                }),
                hosts::Output::Longest { vnet, longest } => {
                    log::debug!("vnet {vnet}: group frames in datagrams of {longest:?}");
                    for (_, client) in self.backends(vnet) {
                        self.tell(client, Event::GroupLongest { longest });
                    }
                }
                hosts::Output::Differs { host, vnet, what } => {
                    self.doubt_setup(vnet, host, what, now);
                }
                hosts::Output::Apart { host, what, hosts } => say!(
                    self,
                    log::Level::Warn,
                    "host {host} is heard only by its beacon ({what}), so vifs there and here do not reach each other; \
                     {hosts} such hosts are known, see 'vnet show hosts'. Give all hosts the same group, port and \
                     address family, or set 'beacon = false' if these hosts are to be apart"
                ),
            }
        }
    }

    /// Tells a backend that has just registered the longest datagram for its group frames, if it is
    /// known.
    pub(super) fn tell_group_longest(&mut self, vnet: VnetId, client: ClientId) {
        let longest = self.hello.hosts.longest(vnet);
        if longest != Longest::UNKNOWN || self.hello.hosts.is_certain() {
            self.tell(client, Event::GroupLongest { longest });
        }
    }

    /// Warns of a host that loses this host's group frames, or whose group frames this host loses.
    fn doubt_setup(&mut self, vnet: VnetId, host: Name, what: Difference, now: Now) {
        let advice = match what {
            Difference::Deaf(_) | Difference::Unheard(_) => {
                "a step of the change of 'groups' was skipped, there or here: change one step at a time, on all hosts"
            }
            Difference::Cipher { .. } => "give both hosts the same group-cipher",
            // The log already says so for VARP messages that are dropped because of it.
            _ => return,
        };
        if self.security.doubts.is_other_setup(vnet, host.ip(), now.mono) {
            say!(
                self,
                log::Level::Warn,
                "vnet {vnet}: group frames between host {host} and this one are lost: {what}; {advice}"
            );
        }
    }

    /// The other hosts, as operators see them.
    pub(super) fn host_rows(&self, now: Now) -> Rows {
        let row = |row: Row| {
            vec![
                Cell::text(row.host.to_string()),
                Cell::text(row.release.to_string()),
                Cell::Number(row.vifs.into()),
                Cell::or_nothing(row.by_group, Cell::Span),
                Cell::or_nothing(row.by_unicast, Cell::Span),
                Cell::Offset(row.ahead_ms),
                Cell::or_nothing(row.vnet, |vnet| Cell::Number(vnet.get().into())),
                match row.longest {
                    0 => Cell::Nothing,
                    longest => Cell::Number(longest.into()),
                },
                match row.notes.is_empty() {
                    true => Cell::text("ok"),
                    false => Cell::text(row.notes.join("; ")),
                },
            ]
        };
        self.hello.hosts.rows(now).into_iter().map(row).collect()
    }
}
