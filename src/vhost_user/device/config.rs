//! The NIC's configuration space, which a frontend can read but not write (virtio 1.2, 5.1.4).
//!
//! ```text
//! bytes 0  MAC          for frontends that do not choose it themselves
//!       6  status (16)  not offered
//!       8  most queue pairs (16)
//!      10  MTU (16)
//! ```

use super::Device;

/// Length of the defined part, in bytes; bytes after it read as zeros.
const LEN: usize = 12;

impl Device {
    /// `size` bytes of the space from `offset` on.
    pub(in crate::vhost_user) fn config_space(&self, offset: u32, size: u32) -> Vec<u8> {
        let [offset, size] = [offset, size].map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        self.config().into_iter().chain(std::iter::repeat(0)).skip(offset).take(size).collect()
    }

    fn config(&self) -> [u8; LEN] {
        let [a, b, c, d, e, f] = self.data_path.mac().unwrap_or_default();
        let pairs = u16::try_from(self.pairs.len()).unwrap_or(u16::MAX);
        let [[g, h], [i, j]] = [pairs, self.data_path.mtu().unwrap_or(0)].map(u16::to_le_bytes);
        [a, b, c, d, e, f, 0, 0, g, h, i, j]
    }
}
