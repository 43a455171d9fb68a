//! Carries out the outputs of [`Host`](crate::host::Host).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::host::{Brought, ClientId, Descriptors, Ending, Input, LaneEnd, Output, Rejected};
use crate::lane;
use crate::mapper::LocalVif;
use crate::metrics::VarpdCounter;
use crate::sys::doorbell::Doorbell;
use crate::time::Now;
use crate::underlay::sockets::{AdoptError, Frames};
use crate::wire::VnetId;
use crate::wire::control::Event;

use super::clients::Sent;
use super::daemon::Daemon;

impl Daemon {
    /// Gives the host an input, then carries out its outputs and handles their results.
    pub(super) fn feed(&mut self, input: Input, now: Now) {
        self.host.handle(input, now);
        loop {
            while let Some(output) = self.host.poll_output() {
                self.perform(output, now);
            }
            match self.results.pop_front() {
                Some(result) => self.host.handle(result, now),
                None => return,
            }
        }
    }

    fn perform(&mut self, output: Output, now: Now) {
        match output {
            Output::Send { to, bytes } => {
                self.varp.send_bytes(to, bytes, now.mono, self.host.counters());
            }
            Output::SendBeacon { to, bytes } => {
                self.varp.send_beacon(to, bytes, now.mono, self.host.counters());
            }
            Output::Tell { client, event, descriptors } => self.tell(client, &event, descriptors),
            Output::Table { client, columns, rows } => {
                let sent = self.clients.send_rows(client, columns, rows, &self.poller, now);
                self.note(client, sent);
            }
            Output::Pages { client, columns } => {
                let sent = self.clients.begin_pages(client, columns, &self.poller, now);
                self.note(client, sent);
            }
            Output::Show { client, cells } => {
                let sent = self.clients.offer(client, cells, &self.poller, now);
                self.note(client, sent);
            }
            Output::Close { client } => drop(self.clients.remove(client)),
            Output::Bind { client, pid } => {
                let ended = self.processes.remember(pid, self.clients.get(client));
                self.results.extend(ended.into_iter().map(|pid| Input::ProcessEnded { pid }));
            }
            Output::Open { vif, vnet, groups, queue_pairs } => {
                let opened = self.opener.vif(&groups, Frames(vnet), queue_pairs);
                let result = opened.map_err(|e| e.to_string()).map(|sockets| {
                    let address = sockets.address();
                    self.vifs.insert(vif, sockets, &self.poller);
                    address
                });
                self.results.push_back(Input::Opened { vif, result });
            }
            Output::Adopt { vif, vnet, groups, queue_pairs, .. } => {
                let result = self.adopt(vif, vnet, &groups, queue_pairs);
                self.results.push_back(Input::Adopted { vif, result });
            }
            Output::HandOver { from, to } => self.vifs.hand_over(from, to),
            Output::Drop { vif } => self.vifs.remove(vif, &self.poller),
            Output::Bound { vif } => {
                if let Some(Err(e)) = self.vifs.get(vif).map(|sockets| sockets.bound()) {
                    log::debug!("can't bound what waits for a vif: {e}");
                }
            }
            Output::Widen { vif } => {
                if let Some(Err(e)) = self.vifs.get(vif).map(|sockets| self.opener.widen(sockets)) {
                    log::debug!("can't widen the sockets of a vif: {e}");
                }
            }
            Output::Watch { vif } => self.vifs.watch(vif, &self.poller),
            Output::Unwatch { vif } => self.vifs.unwatch(vif, &self.poller),
            Output::Lane { lane, from, to } => self.make_lane(lane, from, to),
            Output::ReadKey { vnet, path } => {
                let result = self.keys.read(vnet, path, self.host.counters());
                self.results.push_back(Input::Key { vnet, result });
            }
            Output::WatchKey { vnet, path } => self.keys.watch(vnet, path),
            Output::CheckKeys => {
                let changed = self.keys.read_changed(self.host.counters());
                let changed = changed.into_iter().map(|(vnet, result)| Input::Key { vnet, result });
                self.results.extend(changed);
            }
            Output::Hear(vnets) => self.hear(vnets, now),
            Output::Look => self.look(),
            Output::Rejoin(place) => self.rejoin(place),
            Output::RejoinVif { vif, before } => {
                let Some(sockets) = self.vifs.get(vif) else { return };
                let result = self.opener.rejoin_vif(sockets, before).map_err(|e| e.to_string());
                self.results.push_back(Input::Rejoined { vif, result });
            }
            Output::Move(place) => self.move_to(place, now),
            Output::Status(text) => self.manager.status(&text),
            Output::Log { level, text } => log::log!(level, "{text}"),
        }
    }

    fn tell(&mut self, client: ClientId, event: &Event, descriptors: Descriptors) {
        let sent = self.clients.send(client, event, &self.vifs.descriptors(descriptors));
        self.note(client, sent);
    }

    /// Notes the result of an attempt to send; closes a client that has stalled.
    pub(super) fn note(&mut self, client: ClientId, sent: Sent) {
        match sent {
            Sent::Ok => {}
            Sent::Taken => self.results.push_back(Input::Taken { client }),
            Sent::Stalled => {
                self.clients.remove(client);
                self.results.push_back(Input::Closed { client, why: Ending::Stalled });
            }
        }
    }

    fn adopt(
        &mut self,
        vif: LocalVif,
        vnet: VnetId,
        groups: &[std::net::IpAddr],
        queue_pairs: u8,
    ) -> Result<Brought, Rejected> {
        let offered = std::mem::take(&mut self.offered);
        let adopted = self.opener.adopt(groups, Frames(vnet), queue_pairs, offered);
        let adopted = adopted.map_err(|e| match e {
            AdoptError::Io(_) => Rejected::Failed(e.to_string()),
            _ => Rejected::Wrong(e.to_string()),
        })?;
        let brought =
            Brought { address: adopted.sockets.address(), has_new_groups: adopted.has_new_groups };
        self.vifs.insert(vif, adopted.sockets, &self.poller);
        Ok(brought)
    }

    /// Makes a lane and hands it to both backends, first to the one that reads.
    fn make_lane(&mut self, lane: u32, from: LaneEnd, to: LaneEnd) {
        let made = lane::create().and_then(|memory| Ok((memory, Doorbell::pair()?)));
        let (memory, (write_end, read_end)) = match made {
            Ok(made) => made,
            Err(e) => {
                let (vif, error) = (from.vif, e.to_string());
                return self.results.push_back(Input::LaneFailed { lane, vif, error });
            }
        };
        let mut hand = |own: LaneEnd, other: LaneEnd, is_read: bool, end: BorrowedFd<'_>| {
            let LaneEnd { mac, addr, .. } = other;
            let event = Event::Lane { lane, pair: own.pair, is_read, mac, addr };
            let sent = self.clients.send(own.client, &event, &[memory.as_fd(), end]);
            self.note(own.client, sent);
            sent == Sent::Ok
        };
        if hand(to, from, true, read_end.as_fd()) && hand(from, to, false, write_end.as_fd()) {
            self.host.counters().inc(VarpdCounter::lanes_made);
        }
    }

    /// A client has sent a message, is gone, or has room again.
    pub(super) fn handle_client(
        &mut self,
        id: ClientId,
        ready: crate::sys::event::Ready,
        now: Now,
    ) {
        if ready.writable {
            let sent = self.clients.flush(id, &self.poller, now);
            self.note(id, sent);
            self.send_next_page(id, now);
            self.feed_results(now);
        }
        if ready.readable {
            self.receive(id, now);
        }
    }

    fn receive(&mut self, client: ClientId, now: Now) {
        let mut buffer = [0; crate::wire::control::MAX_LEN];
        for _ in 0..super::daemon::CLIENT_BUDGET {
            let why = match self.clients.receive(client, &mut buffer) {
                Ok(got) if got.len > 0 => {
                    let bytes = buffer.get(..got.len).unwrap_or(&buffer).to_vec();
                    self.before_request(client, &bytes, now);
                    let (is_cut, descriptors) = (got.truncated, got.fds.len());
                    self.offered = got.fds;
                    self.feed(Input::Request { client, bytes, is_cut, descriptors }, now);
                    // A client that sends any must not have varpd hold them.
                    self.offered.clear();
                    continue;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Ok(_) => Ending::Gone,
                Err(e) => Ending::Failed(e.to_string()),
            };
            self.clients.remove(client);
            return self.feed(Input::Closed { client, why }, now);
        }
    }

    /// Gives the host the kernel's state on which a request may depend: drops, ended backends, the
    /// MTU.
    fn before_request(&mut self, client: ClientId, bytes: &[u8], now: Now) {
        if self.host.is_backend(client) {
            return;
        }
        self.varp.count_drops(true, now.mono, self.host.counters());
        let Ok(crate::wire::control::Request::Register { key, .. }) =
            crate::wire::control::Request::parse(bytes)
        else {
            return;
        };
        // Some backends of this vif may have ended although varpd has not read the end of the
        // connection.
        for client in self.host.backends_of(key) {
            if self.clients.get(client).is_some_and(|connection| connection.hung_up()) {
                self.clients.remove(client);
                self.feed(Input::Closed { client, why: Ending::Gone }, now);
            }
        }
        self.feed(Input::Mtu(self.mtu()), now);
    }

    /// Sends one page of a long table per turn of the loop, so that varpd serves other clients
    /// between.
    fn send_next_page(&mut self, id: ClientId, now: Now) {
        if let Some(after) = self.clients.wants_page(id) {
            let (rows, more) = self.host.varp_page(after, now);
            let sent = self.clients.send_page(id, rows, more, &self.poller, now);
            self.note(id, sent);
        }
    }

    /// Closes clients that do not take the rows of their tables.
    pub(super) fn end_stalled(&mut self, now: Now) {
        for client in self.clients.stalled(now.mono) {
            self.note(client, Sent::Stalled);
        }
        self.feed_results(now);
    }

    /// Gives the host the results that wait, and carries out what follows.
    pub(super) fn feed_results(&mut self, now: Now) {
        while let Some(result) = self.results.pop_front() {
            self.feed(result, now);
        }
    }
}
