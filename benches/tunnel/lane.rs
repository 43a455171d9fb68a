//! What a generator sends and receives through: a queue pair of a virtio NIC, or a queue of a tap.

use std::io;
use std::time::Duration;

use crate::frames::Packet;
use crate::pattern::Pattern;

/// Most pieces that a received packet comes in.
pub(crate) const PIECES: usize = 64;

/// One queue pair.
pub(crate) trait Lane: Send {
    /// Queues a packet; false if there is no room.
    fn send(&mut self, packet: &Packet<'_>, pattern: &Pattern) -> io::Result<bool>;

    /// Shows what was queued to the other side.
    fn flush(&mut self) -> io::Result<()>;

    /// Waits until there is room, or for the time.
    fn wait_room(&mut self, timeout: Duration) -> io::Result<()>;

    /// Hands at most `most` packets that have arrived to `sink`; returns how many.
    fn receive(&mut self, most: usize, sink: &mut dyn FnMut(&[&[u8]])) -> io::Result<usize>;

    /// Received frames of which the device showed the first buffer before the last was there. A
    /// guest's driver drops such frames; here they are waited for and counted.
    fn torn(&self) -> u64 {
        0
    }

    /// Waits until a packet has arrived, or for the time.
    fn wait(&mut self, timeout: Duration) -> io::Result<()>;
}
