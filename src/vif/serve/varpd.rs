//! The connection to varpd while the guest is served: messages in both directions, and reconnecting to a varpd
//! that was away.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use zeroize::Zeroizing;

use super::{ServeError, Serving, doing, too_low};
use crate::policy::Level;
use crate::sys::seqpacket::Connection;
use crate::time::Instant;
use crate::tunnel::endpoint::Place;
use crate::vif::registration::{
    Registration, connect, longest_packet, place, register_with, registration,
};
use crate::wire::control::{self, Event, Request};

/// Timeout of a registration with a restarted varpd; the main thread does nothing else meanwhile.
const RETURN_TIMEOUT: Duration = Duration::from_millis(500);
/// Limit on messages of varpd before other events get their turn.
const EVENT_BUDGET: usize = 64;

impl Serving {
    pub(super) fn read_varpd(&mut self, now: Instant) {
        // Zeroed, because messages contain keys.
        let mut buffer = Zeroizing::new(vec![0; control::MAX_LEN]);
        for _ in 0..EVENT_BUDGET {
            let Some(varpd) = &self.varpd else { return };
            let (bytes, fds) = match varpd.recv(&mut buffer) {
                Ok(received) if received.len > 0 => {
                    (buffer.get(..received.len).unwrap_or_default(), received.fds)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                _ => return self.lose_varpd(now),
            };
            match Event::parse(bytes) {
                Ok(event @ Event::Registered { .. }) => {
                    if let Err(error) = self.follow(event, fds) {
                        log::warn!("cannot use the sockets that varpd sent: {error}");
                        return self.lose_varpd(now);
                    }
                }
                Ok(event) => {
                    if let Some(answer) = self.link.handle_event(event, fds, now) {
                        self.tell_varpd(&answer, now);
                    }
                }
                Err(error) => {
                    log::warn!("varpd sent a malformed message: {error}");
                    return self.lose_varpd(now);
                }
            }
        }
    }

    pub(super) fn write_varpd(&mut self, now: Instant) {
        for request in self.link.requests(now) {
            self.tell_varpd(&request, now);
        }
    }

    /// Sends a request. If varpd's queue is full, reconnects and registers again.
    fn tell_varpd(&mut self, request: &Request, now: Instant) {
        if let Some(varpd) = &self.varpd
            && varpd.send(&request.emit(), &[]).is_err()
        {
            self.lose_varpd(now);
        }
    }

    fn lose_varpd(&mut self, now: Instant) {
        if self.varpd.take().is_some() {
            log::warn!(
                "lost the connection to varpd: continuing with the known addresses until it is back"
            );
        }
        self.call_at = Some(now + self.link.handle_disconnected(now));
    }

    pub(super) fn call_varpd(&mut self, now: Instant) {
        self.call_at = None;
        match self.try_call() {
            Ok(varpd) => {
                log::info!("registered with varpd again");
                self.varpd = Some(varpd);
                self.link.handle_registered(now);
                if let Err(error) = self.watch_varpd() {
                    log::error!("cannot poll the connection to varpd: {error}");
                    self.lose_varpd(now);
                }
            }
            Err(error) => {
                log::debug!("{error}");
                self.tell_denied(&error);
                self.tell_lost_directory();
                self.lose_varpd(now);
            }
        }
    }

    /// Logs once that varpd's socket does not let this process in. One that root started is denied only now, without
    /// root's capabilities.
    fn tell_denied(&mut self, error: &ServeError) {
        let why = error.to_string();
        if error.is_denied() && self.refusal.as_ref() != Some(&why) {
            log::error!("{why}");
            self.refusal = Some(why);
        }
    }

    /// A confined process sees the directory of varpd's socket, not the next one of that name.
    fn tell_lost_directory(&mut self) {
        if self.varpd_directory.take_if(|directory| directory.is_removed()).is_some() {
            let directory = self.path.parent().unwrap_or(&self.path).display();
            log::error!(
                "{directory}, the directory of varpd's socket, has been removed: restart this backend, because it cannot see a \
                 new directory of that name, and so no new varpd"
            );
        }
    }

    /// Registers with the current sockets, so that the care-of address stays. If varpd refuses these, because
    /// its configuration has changed, the next attempt asks for new ones.
    fn try_call(&mut self) -> Result<Connection, ServeError> {
        let varpd = connect(&self.path)?;
        let request = self.link.register();
        let sockets = match self.keep_sockets {
            true => self.nic.sockets().map_err(doing("cannot duplicate sockets"))?,
            false => Vec::new(),
        };
        let lent: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        let registered = register_with(&varpd, &request, &lent, self.queue_pairs, RETURN_TIMEOUT);
        if let Err(ServeError::Refused { why, .. }) = &registered {
            if self.refusal.as_ref() != Some(why) {
                log::warn!("varpd refused the vif: {why}");
            }
            self.refusal = Some(why.clone());
            self.keep_sockets = false;
        }
        let registration = registered?;
        self.take_policy(&registration);
        if self.keep_sockets {
            self.take_groups(registration);
        } else {
            self.take_place(registration)?;
            self.keep_sockets = true;
        }
        Ok(varpd)
    }

    /// Handles a move of varpd on the underlay: to another address, with new sockets, or to another interface
    /// with the same ones.
    fn follow(&mut self, event: Event, fds: Vec<OwnedFd>) -> Result<(), ServeError> {
        let with_sockets = !fds.is_empty();
        let registration = registration(event, fds, with_sockets, self.queue_pairs)?;
        self.take_policy(&registration);
        if with_sockets {
            return self.take_place(registration);
        }
        let place = place(self.key, &registration);
        self.nic.workers().for_each(|mut worker| worker.tunnel_mut().set_place(place));
        Ok(())
    }

    /// A varpd that was started anew may say other groups: sessions and what has arrived stay as they are.
    fn take_groups(&mut self, registration: Registration) {
        let place = place(self.key, &registration);
        for mut worker in self.nic.workers() {
            let Place { group, max_datagram, .. } = *worker.tunnel().place();
            if (group, max_datagram) != (place.group, place.max_datagram) {
                worker.tunnel_mut().set_place(place);
            }
        }
        if let Some(groups) = registration.groups {
            log::info!("group frames go to {} from now on", place.group);
            self.nic.replace_groups(groups);
        }
    }

    fn take_place(&mut self, registration: Registration) -> Result<(), ServeError> {
        log::warn!("the vif's care-of address is now {}", registration.coa);
        let place = place(self.key, &registration);
        self.late.end(&self.poller).map_err(doing("cannot poll"))?;
        self.nic.replace_underlays(registration.underlays, place);
        self.link.handle_moved();
        Ok(())
    }

    /// Applies the vnet's policy of a registration.
    fn take_policy(&mut self, registration: &Registration) {
        let (policy, was_halted) = (registration.policy, self.link.is_halted());
        let before = self.link.policy();
        if !self.link.handle_policy(policy) {
            return log::warn!("{}", too_low(self.key, self.link.floor(), policy));
        }
        if was_halted {
            log::warn!("vif {} carries frames again", self.key);
        }
        if policy == before {
            return;
        }
        log::warn!("vnet {} now has policy {policy}", self.key.vnet);
        let most = longest_packet(registration, Level::None);
        if self.mtu > most {
            let mtu = self.mtu;
            log::warn!(
                "the guest has an MTU of {mtu} bytes, but only {most} fit from now on: longer packets travel in \
                 segments or fragments, which costs processor time; restart the backend and the guest to avoid this"
            );
        }
    }
}
