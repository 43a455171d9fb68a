//! Between a frontend and a backend: their conversation as it is, but for features that the frontend is
//! not told of.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, poll};
use vnet::vhost_user::channel::{Channel, ChannelError};

/// The request whose answer names the features (vhost-user, "Front-end message types").
const GET_FEATURES: u32 = 1;
/// The time between two looks at whether it is over, in milliseconds.
const LOOK: u8 = 50;

/// A socket for one frontend, in place of its backend's. Ends when dropped.
pub(crate) struct Withholder {
    /// Where the frontend connects to.
    pub(crate) socket: PathBuf,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Withholder {
    /// Withholds features, a bit each, of the backend that listens at `backend`.
    pub(crate) fn start(backend: &Path, features: u64) -> Self {
        let socket = backend.with_extension("less.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let (backend, end) = (backend.to_owned(), Arc::<AtomicBool>::default());
        let told = Arc::clone(&end);
        let thread = std::thread::spawn(move || {
            if !wait([listener.as_fd()], &told) {
                return;
            }
            let (frontend, _) = listener.accept().expect("a frontend");
            let backend = UnixStream::connect(&backend).expect("a backend that listens");
            // Whichever ends first, the other is told.
            let _ = converse([frontend, backend], features, &told);
        });
        Self { socket, end, thread: Some(thread) }
    }
}

impl Drop for Withholder {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread has panicked");
        }
    }
}

/// Waits until one of some descriptors is readable; false if it is over.
fn wait<const N: usize>(descriptors: [impl AsFd; N], end: &AtomicBool) -> bool {
    let mut all = descriptors.each_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
    while !end.load(Ordering::Relaxed) {
        if poll(&mut all, LOOK) != Ok(0) {
            return true;
        }
    }
    false
}

/// Hands on what frontend and backend say, until one of them has no more to say.
fn converse(sockets: [UnixStream; 2], features: u64, end: &AtomicBool) -> Result<(), ChannelError> {
    let waited: [OwnedFd; 2] = sockets.each_ref().map(|s| s.try_clone().expect("a copy").into());
    let [mut frontend, mut backend] = sockets.map(Channel::new);
    while wait(waited.each_ref(), end) {
        while let Some(message) = frontend.receive()? {
            backend.send(message.bytes, message.descriptors);
        }
        while let Some(mut message) = backend.receive()? {
            if message.header.request == GET_FEATURES {
                let payload = message.payload_mut();
                let offered = payload.first_chunk_mut::<8>().expect("a number");
                *offered = (u64::from_ne_bytes(*offered) & !features).to_ne_bytes();
            }
            frontend.send(message.bytes, message.descriptors);
        }
        while !(frontend.flush()? & backend.flush()?) {}
    }
    Ok(())
}
