//! A Unix stream socket that carries whole vhost-user messages with their descriptors, and never
//! waits.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use thiserror::Error;

use super::filter::{HEADER_LEN, Header, MAX_DESCRIPTORS, Refusal};
use crate::sys::ancillary;

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Header and payload, as they were on the wire.
    pub bytes: Vec<u8>,
    /// The descriptors that came along.
    pub descriptors: Vec<OwnedFd>,
}

impl Message {
    /// The payload.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }

    /// Cuts the payload to this number of bytes.
    pub fn shorten(&mut self, len: usize) {
        let Ok(size) = u32::try_from(len) else { return };
        self.bytes.truncate(HEADER_LEN + len);
        self.header.size = size;
        if let Some(field) = self.bytes.get_mut(8..HEADER_LEN) {
            field.copy_from_slice(&size.to_ne_bytes());
        }
    }

    /// The payload, to be rewritten.
    pub fn payload_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(HEADER_LEN..).unwrap_or_default()
    }
}

/// Why a channel is of no use any more.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The peer closed it between two messages.
    #[error("disconnected")]
    Closed,
    /// The peer closed it in the middle of a message.
    #[error("disconnected in the middle of a message")]
    Cut,
    /// A header that can't be read on from, or too many descriptors.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The process ran out of descriptors and lost some of a message's.
    #[error("no room for the descriptors of a message: raise the limit on open files")]
    NoDescriptors,
    /// A system call failed.
    #[error("socket error: {0}")]
    Io(#[from] io::Error),
}

/// One end of a connection.
pub struct Channel {
    socket: UnixStream,
    /// The message that is arriving.
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// What still has to leave, in order.
    outgoing: VecDeque<Outgoing>,
}

struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// A channel over a connected socket. The socket's mode is left alone, others may share it.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, bytes: Vec::new(), descriptors: Vec::new(), outgoing: VecDeque::new() }
    }

    /// The next message, if all of it has arrived.
    ///
    /// # Errors
    /// The channel is of no use any more.
    pub fn receive(&mut self) -> Result<Option<Message>, ChannelError> {
        loop {
            let header = match self.bytes.first_chunk::<HEADER_LEN>() {
                Some(bytes) => Some(Header::parse(bytes)?),
                None => None,
            };
            // Never read beyond the message: the next one's descriptors belong to it.
            let whole = HEADER_LEN + header.map_or(0, |h| usize::try_from(h.size).unwrap_or(0));
            if let Some(header) = header
                && self.bytes.len() == whole
            {
                let bytes = std::mem::take(&mut self.bytes);
                let descriptors = std::mem::take(&mut self.descriptors);
                return Ok(Some(Message { header, bytes, descriptors }));
            }
            if !self.fill(whole)? {
                return Ok(None);
            }
        }
    }

    /// Reads up to a length of `whole`; false if nothing is there now.
    fn fill(&mut self, whole: usize) -> Result<bool, ChannelError> {
        let have = self.bytes.len();
        self.bytes.resize(whole, 0);
        let space = self.bytes.get_mut(have..).unwrap_or_default();
        let received = ancillary::receive(self.socket.as_fd(), space);
        self.bytes.truncate(have + received.as_ref().map_or(0, |r| r.len));
        let received = match received {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Err(ChannelError::Closed);
            }
            other => other?,
        };
        self.descriptors.extend(received.descriptors);
        if received.truncated {
            return Err(ChannelError::NoDescriptors);
        }
        if self.descriptors.len() > MAX_DESCRIPTORS {
            let request = self.bytes.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
            let count = self.descriptors.len();
            return Err(Refusal::Descriptors { request, count }.into());
        }
        match (received.len, have) {
            (0, 0) => Err(ChannelError::Closed),
            (0, _) => Err(ChannelError::Cut),
            _ => Ok(true),
        }
    }

    /// Takes a message to be sent by [`Channel::flush`].
    pub fn send(&mut self, bytes: Vec<u8>, descriptors: Vec<OwnedFd>) {
        self.outgoing.push_back(Outgoing { bytes, sent: 0, descriptors });
    }

    /// Sends as much as the socket accepts; true if nothing is left.
    ///
    /// # Errors
    /// The channel is of no use any more.
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        while let Some(first) = self.outgoing.front_mut() {
            let rest = first.bytes.get(first.sent..).unwrap_or_default();
            match ancillary::send(self.socket.as_fd(), rest, &first.descriptors) {
                Ok(sent) => {
                    first.descriptors.clear();
                    first.sent += sent;
                    if first.sent == first.bytes.len() {
                        self.outgoing.pop_front();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                    ) =>
                {
                    return Err(ChannelError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Ends the conversation; the peer reads the end of the stream.
    pub fn shut_down(&self) {
        // It fails if the peer did it before.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Whether something waits to be sent.
    pub fn is_sending(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost_user::filter::acknowledgement;
    use std::io::Write;

    fn null() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn messages_and_their_descriptors_stay_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a), Channel::new(b));
        a.send(acknowledgement(1, 7), vec![null()]);
        a.send(acknowledgement(2, 8), vec![]);
        a.send(acknowledgement(3, 9), vec![null(), null()]);
        assert!(a.flush().unwrap() && !a.is_sending());
        for (request, count) in [(1, 1), (2, 0), (3, 2)] {
            let message = b.receive().unwrap().unwrap();
            assert_eq!((message.header.request, message.descriptors.len()), (request, count));
            assert_eq!(message.payload(), u64::from(request + 6).to_ne_bytes());
        }
        assert!(b.receive().unwrap().is_none());
        a.shut_down();
        assert!(matches!(b.receive(), Err(ChannelError::Closed)));
    }

    #[test]
    fn a_full_socket_is_waited_for() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a), Channel::new(b));
        let mut sent = 0;
        while a.flush().unwrap() {
            a.send(acknowledgement(sent, 0), vec![]);
            sent += 1;
        }
        assert!(a.is_sending());
        for n in 0..sent {
            let message = loop {
                match b.receive().unwrap() {
                    Some(message) => break message,
                    None => assert!(a.flush().unwrap()),
                }
            };
            assert_eq!(message.header.request, n);
        }
    }

    #[test]
    fn half_a_message_is_told_from_none() {
        for len in 0..20 {
            let (mut a, b) = UnixStream::pair().unwrap();
            let mut b = Channel::new(b);
            a.write_all(acknowledgement(1, 0).get(..len).unwrap()).unwrap();
            assert!(b.receive().unwrap().is_none());
            drop(a);
            let end = b.receive().unwrap_err();
            assert_eq!(matches!(end, ChannelError::Closed), len == 0, "{len} bytes");
            assert_eq!(matches!(end, ChannelError::Cut), len > 0, "{len} bytes");
        }
    }

    #[test]
    fn too_many_descriptors_are_closed() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut a, mut b) = (Channel::new(a), Channel::new(b));
        a.send(acknowledgement(5, 0), (0..33).map(|_| null()).collect());
        a.flush().unwrap();
        let refused = b.receive().unwrap_err();
        let expected = Refusal::Descriptors { request: 5, count: 33 };
        assert!(matches!(refused, ChannelError::Refused(r) if r == expected));
    }
}
