//! What sender, receiver and the one that measures tell each other, beside the network: how far a
//! flow has arrived, in shared memory, and a FIFO to wake a sender that waits for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::memory::Shared;

/// Most flows of a link.
pub(crate) const FLOWS: usize = 4;
const FLOW_LEN: usize = 256;
const STOP: usize = 0;
const FIRST: usize = 128;
/// Offsets in a flow's part; sender and receiver write to cache lines of their own.
const WAITING: usize = 0;
const ARRIVED: usize = 128;

/// What a receiver has counted of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Progress {
    /// How far the flow has come: bytes of the stream, or datagrams.
    pub(crate) arrived: u64,
    /// Verified payload, in bytes.
    pub(crate) bytes: u64,
    /// Verified units: bytes of the stream, or datagrams.
    pub(crate) units: u64,
    /// Units that were passed over and have not come later.
    pub(crate) lost: u64,
    /// Packets that were not what was sent.
    pub(crate) bad: u64,
    /// Stretches that came late or twice.
    pub(crate) reordered: u64,
    /// Packets as they arrived: of a merged or uncut one, the whole.
    pub(crate) packets: u64,
}

impl Progress {
    const LEN: usize = 7;

    fn to_words(self) -> [u64; Self::LEN] {
        let Self { arrived, bytes, units, lost, bad, reordered, packets } = self;
        [arrived, bytes, units, lost, bad, reordered, packets]
    }

    /// Two flows together.
    pub(crate) fn plus(self, other: Self) -> Self {
        let (mut words, others) = (self.to_words(), other.to_words());
        words.iter_mut().zip(others).for_each(|(word, other)| *word += other);
        Self::from_words(words)
    }

    fn from_words(words: [u64; Self::LEN]) -> Self {
        let [arrived, bytes, units, lost, bad, reordered, packets] = words;
        Self { arrived, bytes, units, lost, bad, reordered, packets }
    }
}

/// The board of one link; each process that takes part opens it by its path.
pub(crate) struct Board {
    memory: Shared,
    fifos: Vec<File>,
}

impl Board {
    /// Makes the board and its FIFOs.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        for flow in 0..FLOWS {
            mkfifo(&fifo(path, flow), Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        Self::open(path)
    }

    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let memory = Shared::at(path, 4096)?;
        let fifos = (0..FLOWS).map(|flow| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
            options.open(fifo(path, flow))
        });
        Ok(Self { memory, fifos: fifos.collect::<io::Result<_>>()? })
    }

    /// Forgets everything, before the next measurement.
    pub(crate) fn reset(&self) {
        for flow in 0..FLOWS {
            self.publish(flow, Progress::default());
            self.word(flow, WAITING).store(u64::MAX, SeqCst);
            let _ = (&self.fifos[flow]).read(&mut [0; 4096]);
        }
        self.memory.u64(STOP).store(0, SeqCst);
    }

    pub(crate) fn stop(&self) {
        self.memory.u64(STOP).store(1, SeqCst);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.memory.u64(STOP).load(Relaxed) != 0
    }

    fn word(&self, flow: usize, offset: usize) -> &std::sync::atomic::AtomicU64 {
        self.memory.u64(FIRST + flow * FLOW_LEN + offset)
    }

    /// The receiver's news; wakes the sender if this is what it waits for.
    pub(crate) fn publish(&self, flow: usize, progress: Progress) {
        for (n, word) in progress.to_words().into_iter().enumerate().skip(1) {
            self.word(flow, ARRIVED + 8 * n).store(word, Relaxed);
        }
        // Before the look at what the sender waits for, in the order of all processors.
        self.word(flow, ARRIVED).store(progress.arrived, SeqCst);
        if progress.arrived >= self.word(flow, WAITING).load(SeqCst) {
            self.word(flow, WAITING).store(u64::MAX, SeqCst);
            // A full FIFO wakes as well.
            let _ = (&self.fifos[flow]).write(&[1]);
        }
    }

    pub(crate) fn arrived(&self, flow: usize) -> u64 {
        self.word(flow, ARRIVED).load(SeqCst)
    }

    pub(crate) fn progress(&self, flow: usize) -> Progress {
        let mut words = [0; Progress::LEN];
        for (n, word) in words.iter_mut().enumerate() {
            *word = self.word(flow, ARRIVED + 8 * n).load(SeqCst);
        }
        Progress::from_words(words)
    }

    /// Waits until the flow has arrived at `position`, or for the time.
    pub(crate) fn wait_arrived(&self, flow: usize, position: u64, timeout: Duration) {
        self.word(flow, WAITING).store(position, SeqCst);
        if self.arrived(flow) < position {
            let fifo = &self.fifos[flow];
            let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
            if poll(&mut [PollFd::new(fifo.as_fd(), PollFlags::POLLIN)], timeout) == Ok(1) {
                let mut fifo = fifo;
                let _ = fifo.read(&mut [0; 64]);
            }
        }
        self.word(flow, WAITING).store(u64::MAX, SeqCst);
    }
}

fn fifo(path: &Path, flow: usize) -> PathBuf {
    path.with_extension(format!("fifo{flow}"))
}
