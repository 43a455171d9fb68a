//! One connection of a frontend: its filter, the crate's daemon and the device behind it.
//!
//! ```text
//!   QEMU <== socket ==> Channel | Filter | Channel <== socket pair ==> VhostUserDaemon - Device
//! ```
//! Everything between the two sockets runs in the caller's thread and never waits:
//! [`Connection::step`] does what can be done now, [`Connection::interest`] says what to poll for.
//! When the connection is dropped, the daemon's thread and the workers have ended and every
//! descriptor is closed.

use std::collections::VecDeque;
use std::io;
use std::mem::{Discriminant, discriminant};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use log::Level;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockname, listen,
    socket,
};
use nix::unistd::{Whence, lseek};
use thiserror::Error;
use vhost::vhost_user::{Error as UserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};

use super::channel::{Channel, ChannelError, Message};
use super::complaints;
use super::device::{DataPath, Device};
use super::dirty::{Log, LogError};
use super::filter::{self, Filter, Refusal, Step};
use super::memory_table::{self, Region, TableError};
use super::vring::{GuestMemory, SharedMemory};

/// Messages handled in one step, so that one frontend can't keep the thread.
const STEP_MESSAGES: usize = 64;

/// Why a connection could not be made.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// A system call failed, most likely for want of descriptors.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The crate could not start its threads.
    #[error("{0}")]
    Daemon(String),
}

/// How a connection ended.
#[derive(Debug, Error)]
pub enum End {
    /// The frontend closed it.
    #[error("the frontend disconnected")]
    Disconnected,
    /// The frontend's channel broke, or its message cannot be obeyed.
    #[error("the frontend's connection is ended: {0}")]
    Frontend(ChannelError),
    /// The log of a migration can't be used.
    #[error("the frontend's connection is ended: SET_LOG_BASE with {0}")]
    Log(#[from] LogError),
    /// The device refused a message and closed its end.
    #[error("the frontend's connection is ended: {request} failed: {why}")]
    Device {
        /// The last request passed on.
        request: &'static str,
        /// The device's error.
        why: String,
    },
}

/// Kind of an [`End`]: ends that differ only in numbers are of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndKind(
    Discriminant<End>,
    Option<Discriminant<ChannelError>>,
    Option<Discriminant<Refusal>>,
);

impl End {
    /// Its kind.
    pub fn kind(&self) -> EndKind {
        let channel = match self {
            Self::Frontend(error) => Some(error),
            _ => None,
        };
        let refusal = match channel {
            Some(ChannelError::Refused(refusal)) => Some(discriminant(refusal)),
            _ => None,
        };
        EndKind(discriminant(self), channel.map(discriminant), refusal)
    }
}

/// A frontend and its device.
pub struct Connection {
    frontend: Channel,
    device_end: Channel,
    filter: Filter,
    steps: VecDeque<Step>,
    /// The message that a [`Step::Forward`] among `steps` sends.
    message: Option<Message>,
    last_request: u32,
    /// Where the frontend could be called, which nobody does.
    channel: Option<OwnedFd>,
    has_said_byte_order: bool,
    device: Arc<Device>,
    /// `None` only while being dropped.
    daemon: Option<VhostUserDaemon<Arc<Device>>>,
}

impl Connection {
    /// Starts a device for the frontend at the other end of `socket`.
    ///
    /// # Errors
    /// No descriptors or threads left.
    pub fn start(socket: UnixStream, data_path: Arc<dyn DataPath>) -> Result<Self, ConnectError> {
        let memory = SharedMemory::new(GuestMemory::new());
        let device = Device::new(data_path, memory.clone())?;
        let failed = |error: DaemonError| ConnectError::Daemon(error.to_string());
        let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), device.clone(), memory)
            .inspect_err(|_| device.end_workers())
            .map_err(failed)?;
        device.set_pollers(&daemon.get_epoll_handlers())?;
        let (mut listener, device_end) = private_listener()?;
        daemon.start(&mut listener).map_err(failed)?;
        device.data_path().frontend_connected();
        Ok(Self {
            frontend: Channel::new(socket),
            device_end: Channel::new(device_end),
            filter: Filter::new(device.ring_count()),
            steps: VecDeque::new(),
            message: None,
            last_request: 0,
            channel: None,
            has_said_byte_order: false,
            device,
            daemon: Some(daemon),
        })
    }

    /// The data path has other descriptors; false if the connection can't go on with them.
    #[must_use]
    pub fn renew_descriptors(&self) -> bool {
        self.device.renew_descriptors()
    }

    /// What to wait for before the next [`Connection::step`].
    ///
    /// While the device works on an answer the frontend is left out: its hang-up can't be masked,
    /// and would wake the caller for nothing until the answer is there.
    pub fn interest(&self) -> impl Iterator<Item = PollFd<'_>> {
        let wanted = |channel: &Channel, reading: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLOUT, channel.is_sending());
            flags.set(PollFlags::POLLIN, reading);
            flags
        };
        let frontend = wanted(&self.frontend, self.may_read());
        let device = wanted(&self.device_end, !self.frontend.is_sending());
        [(&self.frontend, frontend), (&self.device_end, device)]
            .into_iter()
            .filter(|(_, flags)| !flags.is_empty())
            .map(|(channel, flags)| PollFd::new(channel.as_fd(), flags))
    }

    /// Whether the next message of the frontend may be read: all that the last one asked for is
    /// done, and answered.
    fn may_read(&self) -> bool {
        self.steps.is_empty()
            && self.filter.awaited().is_none()
            && !self.frontend.is_sending()
            && !self.device_end.is_sending()
    }

    /// Does all that can be done without waiting. True if a message of the frontend was handled.
    ///
    /// It stops early only between two messages, where [`Connection::interest`] asks for the next.
    ///
    /// # Errors
    /// The connection has ended; it should be dropped.
    pub fn step(&mut self) -> Result<bool, End> {
        let mut handled = 0;
        // What the device refused is the better explanation if both ends are closed.
        while self.flush_to_device()? && self.pump_answers()? {
            if let Some(step) = self.steps.pop_front() {
                self.perform(step)?;
                continue;
            }
            if !self.may_read() || handled == STEP_MESSAGES {
                break;
            }
            let received = self.frontend.receive().map_err(frontend_ended)?;
            let Some(message) = received else { break };
            handled += 1;
            let count = message.descriptors.len();
            let steps = self.filter.request(&message.header, message.payload(), count);
            self.steps = steps.map_err(|r| End::Frontend(r.into()))?.into();
            self.last_request = message.header.request;
            self.message = Some(message);
        }
        Ok(handled > 0)
    }

    fn flush_to_device(&mut self) -> Result<bool, End> {
        self.device_end.flush().map_err(|error| self.device_ended(&error))
    }

    /// Moves answers from the device to the frontend; true if none is left half sent.
    fn pump_answers(&mut self) -> Result<bool, End> {
        while self.frontend.flush().map_err(frontend_ended)? {
            let received = self.device_end.receive();
            let received = received.map_err(|error| self.device_ended(&error))?;
            let Some(mut answer) = received else { return Ok(true) };
            let header = answer.header;
            self.filter
                .reply(&header, answer.payload_mut())
                .map_err(|r| End::Frontend(r.into()))?;
            self.frontend.send(answer.bytes, answer.descriptors);
        }
        Ok(false)
    }

    fn perform(&mut self, step: Step) -> Result<(), End> {
        match step {
            Step::Shorten(len) => self.message.iter_mut().for_each(|message| message.shorten(len)),
            Step::KeepChannel => {
                self.channel = self.message.as_mut().and_then(|message| message.descriptors.pop());
            }
            Step::OtherByteOrder => self.say_other_byte_order(),
            Step::Inject(bytes) => self.device_end.send(bytes, Vec::new()),
            Step::Forward { .. } => {
                if let Some(message) = self.message.take() {
                    self.device_end.send(message.bytes, message.descriptors);
                }
            }
            Step::Answer(bytes) => self.frontend.send(bytes, Vec::new()),
            Step::Announce => self.device.data_path().announce(),
            Step::SetLog { size, offset } => {
                // The filter has seen that one came.
                if let Some(file) = self.message.as_mut().and_then(|m| m.descriptors.pop()) {
                    self.device.set_log(Log::map(file, size, offset)?)?;
                    self.frontend.send(filter::acknowledgement(self.last_request, 0), Vec::new());
                }
            }
            Step::Measure { first, regions } => {
                let files = self.message.iter().flat_map(|message| &message.descriptors);
                measure((first..).zip(&regions), files).map_err(|error| {
                    let request = self.last_request;
                    End::Frontend(Refusal::Memory { request, error }.into())
                })?;
            }
            Step::SetMtu { mtu, acknowledge } => {
                let taken = self.device.data_path().set_mtu(mtu);
                if acknowledge {
                    let refused = u64::from(!taken);
                    let answer = filter::acknowledgement(self.last_request, refused);
                    self.frontend.send(answer, Vec::new());
                }
            }
        }
        // Descriptors of a message that is not passed on are closed with it.
        if self.steps.is_empty() {
            self.message = None;
        }
        Ok(())
    }

    fn say_other_byte_order(&mut self) {
        if !std::mem::replace(&mut self.has_said_byte_order, true) {
            complaints::log(
                Level::Warn,
                "the guest's driver is big-endian and from before virtio 1, which is not supported: the guest has no network \
                 until it loads another driver (network-boot firmware is often such a driver: boot from a disk)",
                format_args!(""),
            );
        }
    }

    /// The device closed its end, or can't be reached: finds out why.
    fn device_ended(&mut self, error: &ChannelError) -> End {
        // An answer that it sent before, such as a failed acknowledgement, still goes out.
        while let Ok(Some(mut answer)) = self.device_end.receive() {
            let header = answer.header;
            if self.filter.reply(&header, answer.payload_mut()).is_ok() {
                self.frontend.send(answer.bytes, Vec::new());
            }
        }
        let _ = self.frontend.flush();
        // The daemon's thread may be well and waiting for the next message.
        self.device_end.shut_down();
        let request = filter::name(self.last_request);
        let why = match self.daemon.as_mut().map(VhostUserDaemon::wait) {
            Some(Err(DaemonError::HandleRequest(UserError::Disconnected)))
            | Some(Ok(()))
            | None => error.to_string(),
            Some(Err(error)) => explain(&error),
        };
        End::Device { request, why }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.request_shutdown();
            // Its error, if any, was reported where it ended the connection.
            let _ = daemon.wait();
        }
        self.device.stop_all();
        self.device.data_path().frontend_disconnected();
    }
}

/// Checks that each region, with its number, lies within its file.
fn measure<'m>(
    regions: impl Iterator<Item = (usize, &'m Region)>,
    files: impl Iterator<Item = &'m OwnedFd>,
) -> Result<(), TableError> {
    for ((number, region), file) in regions.zip(files) {
        // Not by fstat(2), which a confined process may lack.
        let len = lseek(file, 0, Whence::SeekEnd).map_err(|why| TableError::NotAFile {
            region: number,
            why: io::Error::from(why).to_string(),
        })?;
        memory_table::check_file(number, region, u64::try_from(len).unwrap_or(0))?;
    }
    Ok(())
}

fn frontend_ended(error: ChannelError) -> End {
    match error {
        ChannelError::Closed => End::Disconnected,
        other => End::Frontend(other),
    }
}

/// The crate's error in words, with the cause that people can do something about.
fn explain(error: &DaemonError) -> String {
    match error {
        DaemonError::HandleRequest(UserError::ReqHandlerError(inner))
            if inner.to_string() == "Missing memory mapping" =>
        {
            format!("the ring is not within the shared memory; {}", filter::UNSHARED)
        }
        DaemonError::HandleRequest(inner) => inner.to_string(),
        other => other.to_string(),
    }
}

/// A listener with exactly one connection waiting: ours.
///
/// The crate takes connections only from a listener or a path. The kernel chooses an abstract
/// address, and a backlog of 0 leaves room for one connection, so when ours was taken, no other
/// process came first and none can come after.
fn private_listener() -> io::Result<(Listener, UnixStream)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let open = || socket(AddressFamily::Unix, SockType::Stream, flags, None);
    loop {
        let listener: OwnedFd = open()?;
        bind(listener.as_raw_fd(), &UnixAddr::new_unnamed())?;
        listen(&listener, Backlog::new(0)?)?;
        let address: UnixAddr = getsockname(listener.as_raw_fd())?;
        let ours = UnixStream::from(open()?);
        ours.set_nonblocking(true)?;
        match connect(ours.as_raw_fd(), &address) {
            Ok(()) => return Ok((Listener::from(UnixListener::from(listener)), ours)),
            // Somebody guessed the address: take another.
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_that_differ_in_numbers_are_of_one_kind() {
        let flags = |flags| End::Frontend(Refusal::Flags { request: 1, flags }.into()).kind();
        assert_eq!(flags(0), flags(4));
        let other = End::Frontend(Refusal::TooLong { request: 1, size: 9 }.into()).kind();
        assert_ne!(flags(0), other);
        assert_ne!(End::Frontend(ChannelError::Cut).kind(), other);
        assert_ne!(End::Disconnected.kind(), End::Frontend(ChannelError::Closed).kind());
    }
}
