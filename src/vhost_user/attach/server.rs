//! The loop that serves connections, one at a time, each until it ends.
//!
//! | Connection | Treatment |
//! |---|---|
//! | of a user who may not connect | closed |
//! | that has sent nothing yet | kept aside without effect on the guest: a process that checks whether the backend listens, or a QEMU during its set-up |
//! | that sends while none is served | served until it ends |
//! | that sends while another is served | waits, is named in the log, and is served next; any further one is closed |
//! | that disconnects while it waits | forgotten |
//!
//! So no process that may connect can take a NIC from its QEMU. When a connection ends but its
//! process lives (QEMU reconnects), the loop serves only that process for some seconds.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, socket,
};

use super::callers::{Caller, Frontends, Named, Reservation, Who};
use super::{AttachError, Source};
use crate::quiet::{Quiet, QuietEach};
use crate::sys::clock;
use crate::vhost_user::connection::{Connection, End, EndKind};
use crate::vhost_user::device::DataPath;

/// First pause before reconnecting to a QEMU that does not answer; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Limit on connections that have sent nothing yet.
const MOST_SILENT: usize = 8;
/// Connections accepted in one turn: a crowd at the socket must not keep the loop from the frontend
/// that is served.
const ACCEPT_BUDGET: usize = 16;
/// Pause after an error that a retry may cure, such as too many open files.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// A connection that is not served yet.
struct Call {
    stream: UnixStream,
    caller: Caller,
}

impl Call {
    fn new(stream: UnixStream) -> Self {
        let caller = Caller::of(&stream);
        Self { stream, caller }
    }

    /// Its state, by what it has sent so far.
    fn state(&self) -> State {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.stream.as_raw_fd(), &mut [0], flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => State::Silent,
            Ok(0) | Err(_) => State::Closed,
            Ok(_) => State::Speaks,
        }
    }

    /// Whether the other end has closed it, even if there is data left to read.
    fn is_hung_up(&self) -> bool {
        let mut set = [hang_up(&self.stream)];
        poll(&mut set, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

enum State {
    Silent,
    Speaks,
    Closed,
}

/// Waits only for the end of a connection, which poll(2) always reports.
fn hang_up(stream: &UnixStream) -> PollFd<'_> {
    PollFd::new(stream.as_fd(), PollFlags::empty())
}

/// The connection that is served.
struct Served {
    connection: Connection,
    caller: Caller,
    /// Whether the frontend has sent anything.
    heard: bool,
}

/// The loop's state.
pub(super) struct Server {
    source: Source,
    frontends: Frontends,
    data_path: Arc<dyn DataPath>,
    current: Option<Served>,
    /// The connection to serve next.
    waiting: Option<Call>,
    /// Connections that have sent nothing yet, oldest first.
    silent: Vec<Call>,
    /// The process that the NIC is reserved for.
    kept: Option<Reservation>,
    /// How long to wait before connecting or accepting again; `None` to do it now.
    pause: Option<Duration>,
    /// The next pause between attempts to connect.
    backoff: Duration,
    /// The logged reason for which the loop closed the last faulty connection.
    refused: String,
    /// Limits repeats of that line: QEMU retries each second.
    quiet_about_the_same: Quiet,
    /// Limits lines about each kind of faulty connection: reasons carry numbers, of which a
    /// frontend has plenty.
    quiet_about_refusals: QuietEach<EndKind>,
    /// Limits lines about frontends that connect.
    quiet_about_connects: Quiet,
    /// Limits lines about frontends that disconnect.
    quiet_about_ends: Quiet,
    /// Limits lines about waiting frontends that disconnect.
    quiet_about_leaving: Quiet,
    /// Limits lines about other errors.
    quiet_about_errors: Quiet,
    /// Limits lines about processes that may not connect, or not yet.
    quiet_about_others: Quiet,
    /// The processes that the log has named.
    named: Named,
}

impl Server {
    pub(super) fn new(source: Source, frontends: Frontends, data_path: Arc<dyn DataPath>) -> Self {
        Self {
            source,
            frontends,
            data_path,
            current: None,
            waiting: None,
            silent: Vec::new(),
            kept: None,
            pause: None,
            backoff: FIRST_PAUSE,
            refused: String::new(),
            quiet_about_the_same: Quiet::new(2),
            quiet_about_refusals: QuietEach::new(10),
            quiet_about_connects: Quiet::new(20),
            quiet_about_ends: Quiet::new(20),
            quiet_about_leaving: Quiet::new(5),
            quiet_about_errors: Quiet::new(5),
            quiet_about_others: Quiet::new(5),
            named: Named::default(),
        }
    }

    pub(super) fn run(mut self, shutdown: BorrowedFd<'_>) -> Result<(), AttachError> {
        loop {
            if self.current.is_none() {
                match &mut self.source {
                    Source::Once(stream) => match stream.take() {
                        Some(stream) => self.begin(Call::new(stream)),
                        None => return Ok(()),
                    },
                    Source::Peer(_) if self.pause.is_none() => self.connect(),
                    Source::Peer(_) => {}
                    Source::Listener(..) => self.serve_next(),
                }
            }
            if self.wait(shutdown)? {
                return Ok(());
            }
            self.accept();
            // Before reading new connections: the process that was served may have hung up and
            // reconnected.
            self.step();
            self.renew();
            self.sort();
        }
    }

    /// Switches to other descriptors if the data path has new ones.
    fn renew(&mut self) {
        let Some(changed) = self.data_path.changed() else { return };
        if nix::unistd::read(changed, &mut [0; 8]).is_err() {
            return;
        }
        let ended = self.current.take_if(|served| !served.connection.renew_descriptors());
        if let Some(Served { caller, .. }) = ended {
            log::warn!("disconnecting the frontend: varpd gave the vif another number of sockets");
            self.keep_for(caller);
        }
        self.data_path.descriptors_taken();
    }

    /// Waits for an event; true if it is the shutdown.
    fn wait(&mut self, shutdown: BorrowedFd<'_>) -> Result<bool, AttachError> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut set = vec![readable(shutdown)];
        set.extend(self.data_path.changed().map(readable));
        if let (Source::Listener(listener, _), None) = (&self.source, self.pause) {
            set.push(readable(listener.as_fd()));
        }
        set.extend(self.silent.iter().map(|call| readable(call.stream.as_fd())));
        set.extend(self.waiting.iter().map(|call| hang_up(&call.stream)));
        set.extend(self.awaited().and_then(Reservation::end).map(readable));
        let current = self.current.iter();
        set.extend(current.flat_map(|served| served.connection.interest()));
        let ready = match poll(&mut set, self.timeout()) {
            Err(Errno::EINTR) => return Ok(false),
            other => other.map_err(|e| AttachError::Io { what: "can't poll", error: e.into() })?,
        };
        let over = set.first().and_then(PollFd::any).unwrap_or(false);
        if ready == 0 {
            self.pause = None;
        }
        Ok(over)
    }

    /// Reserves the NIC for this process for a moment, if others could connect.
    fn keep_for(&mut self, caller: Caller) {
        if let Source::Listener(..) = self.source {
            self.kept = Reservation::of(caller, clock::mono());
        }
    }

    /// The reservation, while no connection is served.
    fn awaited(&self) -> Option<&Reservation> {
        self.kept.as_ref().filter(|_| self.current.is_none())
    }

    fn timeout(&self) -> PollTimeout {
        let kept = self.awaited().map(|kept| kept.until().saturating_since(clock::mono()));
        // Rounded up, so that the time has come when poll(2) returns.
        let kept = kept.map(|left| left + Duration::from_millis(1));
        let soonest = self.pause.into_iter().chain(kept).min();
        soonest.map_or(PollTimeout::NONE, |time| {
            PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX)
        })
    }

    /// Takes some of the new connections. The rest wakes the loop again.
    fn accept(&mut self) {
        for _ in 0..ACCEPT_BUDGET {
            let (Source::Listener(listener, _), None) = (&self.source, self.pause) else { return };
            match listener.accept() {
                Ok((stream, _)) => self.receive(Call::new(stream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    let level = self.quiet_about_errors.level(clock::mono());
                    log::log!(level, "can't accept a connection: {error}");
                    self.pause = Some(ERROR_PAUSE);
                    return;
                }
            }
        }
    }

    fn receive(&mut self, call: Call) {
        if !self.frontends.admit(&call.caller) {
            return self.say_not_listed(&call.caller);
        }
        // One that has spoken since the last turn is no longer silent, and is heard in this turn.
        let is_silent = |call: &Call| matches!(call.state(), State::Silent);
        let silent = (0..).zip(&self.silent).filter(|(_, call)| is_silent(call));
        let (places, callers): (Vec<usize>, Vec<_>) =
            silent.map(|(place, call)| (place, call.caller.who)).unzip();
        if places.len() >= MOST_SILENT
            && let Some(place) = places.get(most_present(&callers))
        {
            self.silent.remove(*place);
        }
        self.silent.push(call);
    }

    /// Checks which connections have sent something and which have ended.
    fn sort(&mut self) {
        if self.waiting.as_ref().is_some_and(Call::is_hung_up) {
            let level = self.quiet_about_leaving.level(clock::mono()).max(Level::Info);
            log::log!(level, "the waiting frontend has disconnected");
            self.waiting = None;
        }
        for call in std::mem::take(&mut self.silent) {
            match call.state() {
                State::Silent => self.silent.push(call),
                State::Closed => log::debug!("a connection was closed before it said anything"),
                State::Speaks => self.heard(call),
            }
        }
    }

    /// Handles the first data of a connection.
    fn heard(&mut self, call: Call) {
        if self.current.is_none() && self.may_begin(&call.caller) {
            return self.begin(call);
        }
        if self.waiting.is_some() {
            return self.say_others(&call.caller, "is turned away: another waits already");
        }
        let reason = match &self.current {
            Some(served) => {
                let served = self.frontends.describe(&served.caller);
                format!("waits: {served} is served until its connection ends")
            }
            None => "waits: the NIC is kept for a moment for the process that had it".to_owned(),
        };
        self.say_others(&call.caller, &reason);
        self.waiting = Some(call);
    }

    /// Whether the NIC is not reserved for another process.
    fn may_begin(&mut self, caller: &Caller) -> bool {
        self.kept.take_if(|kept| kept.is_over(clock::mono()));
        self.kept.as_ref().is_none_or(|kept| kept.is_for(caller))
    }

    /// Serves the waiting connection, if no other is served and it still exists.
    fn serve_next(&mut self) {
        self.kept.take_if(|kept| kept.is_over(clock::mono()));
        let Some(call) = self.waiting.take_if(|call| !call.is_hung_up()) else {
            self.waiting = None;
            return;
        };
        match self.may_begin(&call.caller) {
            true => self.begin(call),
            false => self.waiting = Some(call),
        }
    }

    fn connect(&mut self) {
        let Source::Peer(path) = &self.source else { return };
        match connect_now(path) {
            Ok(stream) => {
                let call = Call::new(stream);
                if self.frontends.admit(&call.caller) {
                    return self.begin(call);
                }
                self.say_not_listed(&call.caller);
            }
            Err(error) => {
                if self.backoff == FIRST_PAUSE {
                    log::info!("waiting for a frontend at {}: {error}", path.display());
                }
            }
        }
        self.back_off();
    }

    fn back_off(&mut self) {
        self.pause = Some(self.backoff);
        self.backoff = (self.backoff * 2).min(LONGEST_PAUSE);
    }

    /// Serves a connection from now on.
    fn begin(&mut self, call: Call) {
        self.kept = None;
        let Call { stream, caller } = call;
        match Connection::start(stream, self.data_path.clone()) {
            Ok(connection) => {
                let level = self.quiet_about_connects.level(clock::mono()).max(Level::Info);
                log::log!(level, "a frontend connected: {}", self.frontends.describe(&caller));
                self.current = Some(Served { connection, caller, heard: false });
            }
            Err(error) => {
                let level = as_error(self.quiet_about_errors.level(clock::mono()));
                log::log!(level, "cannot serve a frontend: {error}");
                self.pause = Some(ERROR_PAUSE);
            }
        }
    }

    /// Moves messages of the connection that is served.
    fn step(&mut self) {
        let Some(served) = &mut self.current else { return };
        let end = match served.connection.step() {
            Ok(heard) => {
                served.heard |= heard;
                return;
            }
            Err(end) => end,
        };
        let Some(Served { caller, heard, .. }) = self.current.take() else { return };
        self.keep_for(caller);
        if matches!(end, End::Disconnected) {
            let level = self.quiet_about_ends.level(clock::mono()).max(Level::Info);
            log::log!(level, "{end}");
            if heard {
                self.backoff = FIRST_PAUSE;
            }
        } else {
            self.say_refused(&end);
        }
        if let Source::Peer(_) = self.source {
            self.back_off();
        }
    }

    fn say_not_listed(&mut self, caller: &Caller) {
        let what = match self.source {
            Source::Peer(_) => "listens on the socket and is not a frontend (--frontend-user)",
            _ => "is turned away: its user may not be a frontend (--frontend-user)",
        };
        self.say_others(caller, what);
    }

    /// Logs a process other than the served one: each once, and few a minute.
    fn say_others(&mut self, caller: &Caller, what: &str) {
        let who = self.frontends.describe(caller);
        let level = match self.named.is_new(caller) {
            true => self.quiet_about_others.level(clock::mono()),
            false => Level::Debug,
        };
        log::log!(level, "{who} {what}");
    }

    fn say_refused(&mut self, end: &End) {
        let (why, now) = (end.to_string(), clock::mono());
        let is_repeated = why == self.refused;
        let mut level = Level::Warn;
        if is_repeated {
            level = self.quiet_about_the_same.level(now);
        }
        if level == Level::Warn {
            level = self.quiet_about_refusals.level(end.kind(), now);
        }
        log::log!(as_error(level), "{why}");
        self.refused = why;
    }
}

/// The level for an error where a limit allows a warning.
fn as_error(level: Level) -> Level {
    if level == Level::Warn { Level::Error } else { level }
}

/// The oldest connection of the process that has most of them: nobody crowds others out.
fn most_present(callers: &[Option<Who>]) -> usize {
    let count = |who| callers.iter().filter(|other| **other == who).count();
    let most = callers.iter().map(|who| count(*who)).max();
    callers.iter().position(|who| Some(count(*who)) == most).unwrap_or(0)
}

/// Connects without blocking: a listener with a full queue counts as absent.
fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::vhost_user::device::{Interest, Rings, Wake};

    /// Nothing behind the device.
    struct NoFrames;

    impl DataPath for NoFrames {
        fn queue_pairs(&self) -> usize {
            1
        }

        fn mtu(&self) -> Option<u16> {
            None
        }

        fn descriptors(&self, _pair: usize) -> Vec<i32> {
            Vec::new()
        }

        fn handle(&self, _pair: usize, _wake: Wake, _rings: &mut Rings<'_>) -> Interest {
            Interest::ALL
        }

        fn set_running(&self, _pair: usize, _running: bool) {}

        fn set_features(&self, _features: u64) {}

        fn set_mtu(&self, _mtu: u16) -> bool {
            true
        }

        fn announce(&self) {}

        fn ring_failed(&self, _pair: usize) {}

        fn frontend_connected(&self) {}

        fn frontend_disconnected(&self) {}
    }

    /// A server at a socket without a name in any file system, and another way to that socket.
    fn server() -> (Server, UnixListener) {
        let fd =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        let address = UnixAddr::new_unnamed();
        nix::sys::socket::bind(fd.as_raw_fd(), &address).unwrap();
        nix::sys::socket::listen(&fd, nix::sys::socket::Backlog::new(100).unwrap()).unwrap();
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true).unwrap();
        let other = listener.try_clone().unwrap();
        let source = Source::Listener(listener, None);
        (Server::new(source, Frontends::default(), Arc::new(NoFrames)), other)
    }

    fn client(of: &UnixListener) -> UnixStream {
        UnixStream::connect_addr(&of.local_addr().unwrap()).unwrap()
    }

    #[test]
    fn a_crowd_at_the_socket_keeps_nobody_for_more_than_a_turn() {
        let (mut server, listener) = server();
        let crowd: Vec<_> = (0..40).map(|_| client(&listener)).collect();
        server.accept();
        let mut left = 0;
        while listener.accept().is_ok() {
            left += 1;
        }
        assert_eq!(crowd.len() - left, ACCEPT_BUDGET);
    }

    #[test]
    fn a_frontend_that_has_spoken_is_not_pushed_out_by_those_that_are_silent() {
        let (mut server, listener) = server();
        let mut frontend = client(&listener);
        io::Write::write_all(&mut frontend, &[1]).unwrap();
        let _crowd: Vec<_> = (0..=MOST_SILENT).map(|_| client(&listener)).collect();
        server.accept();
        server.sort();
        assert!(server.current.is_some(), "it is served");
        assert_eq!(server.silent.len(), MOST_SILENT, "and the rest is bounded");
    }

    #[test]
    fn who_makes_a_crowd_makes_room() {
        let who = |pid| Some(Who { pid, uid: 0 });
        assert_eq!(most_present(&[who(1), who(2), who(3), who(2)]), 1);
        assert_eq!(most_present(&[who(1), who(2), None, None]), 2);
        assert_eq!(most_present(&[who(7), who(8)]), 0);
    }
}
