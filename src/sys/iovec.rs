//! Scatter-gather elements that may point into guest memory.
//!
//! A Rust slice over guest memory would be undefined behaviour: the guest writes to it at any time.
//! [`IoVec`] is the borrow of such memory that only the kernel (or a volatile copy) ever reads.

use std::marker::PhantomData;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// A readable piece of memory, ours or a guest's, for `sendmsg` and the like.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct IoVec<'a> {
    raw: libc::iovec,
    borrow: PhantomData<&'a [u8]>,
}

// SAFETY: an IoVec is a shared borrow of bytes, which may be read from any thread; that a guest
// changes some of them meanwhile is allowed for (nobody makes a reference to them).
unsafe impl Send for IoVec<'_> {}

impl<'a> IoVec<'a> {
    /// Our own memory.
    pub fn from_slice(slice: &'a [u8]) -> Self {
        let raw = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
        Self { raw, borrow: PhantomData }
    }

    /// Guest memory. The slice was bounds-checked against the guest's regions when it was made.
    pub fn from_guest<B: BitmapSlice>(slice: &VolatileSlice<'a, B>) -> Self {
        let guard = slice.ptr_guard();
        let raw = libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: slice.len() };
        Self { raw, borrow: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.raw.iov_len
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a copy of the bytes to `to`, as they are at this moment.
    pub fn append_to(&self, to: &mut Vec<u8>) {
        // SAFETY: the memory is valid for reads of this length for 'a, whoever made the IoVec
        // upheld that; the volatile slice lives for this call only.
        let slice = unsafe { VolatileSlice::new(self.raw.iov_base.cast(), self.len()) };
        let start = to.len();
        to.resize(start + self.len(), 0);
        slice.copy_to(to.get_mut(start..).unwrap_or_default());
    }
}

/// Empties a list and forgets what it borrowed, so that its allocation serves the next batch.
pub fn recycle<'b>(mut list: Vec<IoVec<'_>>) -> Vec<IoVec<'b>> {
    list.clear();
    list.into_iter().map(|part| IoVec { raw: part.raw, borrow: PhantomData }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_what_it_borrows() {
        let bytes = *b"some bytes";
        let mut copy = b"> ".to_vec();
        IoVec::from_slice(&bytes).append_to(&mut copy);
        IoVec::from_slice(&[]).append_to(&mut copy);
        assert_eq!(copy, b"> some bytes");
    }

    #[test]
    fn recycling_keeps_the_allocation() {
        let bytes = [0; 4];
        let list = vec![IoVec::from_slice(&bytes); 100];
        let capacity = list.capacity();
        let again: Vec<IoVec<'static>> = recycle(list);
        assert!(again.is_empty());
        assert_eq!(again.capacity(), capacity);
    }
}
