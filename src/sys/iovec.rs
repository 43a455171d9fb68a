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
    /// Nothing.
    pub const EMPTY: Self = {
        let raw = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self { raw, borrow: PhantomData }
    };

    /// Our own memory.
    pub fn from_slice(slice: &'a [u8]) -> Self {
        let raw = libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
        Self { raw, borrow: PhantomData }
    }

    /// Guest memory, or memory shared with another process. The slice was bounds-checked when it
    /// was made.
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

    /// Copies bytes from `offset` on, as they are at this moment; as many as both have. Returns how
    /// many.
    #[inline]
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) -> usize {
        let len = self.len().saturating_sub(offset).min(to.len());
        if len == 0 {
            return 0;
        }
        let from = self.raw.iov_base.cast::<u8>().wrapping_add(offset);
        // SAFETY: the memory is valid for reads of its length for 'a, whoever made the IoVec upheld
        // that, and `len` bytes from `offset` on are within; `to` has as many. A guest may write to
        // it meanwhile: then the copy is of no use to the guest, which is all that it is to us (as
        // with vm-memory's own copies).
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), len) };
        len
    }

    /// Copies bytes to memory that others may use meanwhile, too: as many as both have. Returns how
    /// many.
    pub fn copy_to_slice<B: BitmapSlice>(&self, to: VolatileSlice<'_, B>) -> usize {
        let len = self.len().min(to.len());
        if len > 0 {
            // SAFETY: as in `copy_to`.
            let slice = unsafe { VolatileSlice::new(self.raw.iov_base.cast(), len) };
            slice.copy_to_volatile_slice(to);
        }
        len
    }

    /// Appends a copy of the bytes to `to`, as they are at this moment.
    pub fn append_to(&self, to: &mut Vec<u8>) {
        let start = to.len();
        to.resize(start + self.len(), 0);
        self.copy_to(0, to.get_mut(start..).unwrap_or_default());
    }

    /// The part after the first `count` bytes.
    pub fn skip(self, count: usize) -> Self {
        let count = count.min(self.len());
        let iov_base = self.raw.iov_base.wrapping_byte_add(count);
        let raw = libc::iovec { iov_base, iov_len: self.len() - count };
        Self { raw, ..self }
    }

    /// At most the first `count` bytes.
    pub fn first(self, count: usize) -> Self {
        let raw = libc::iovec { iov_len: count.min(self.len()), ..self.raw };
        Self { raw, ..self }
    }
}

/// Reads through pieces of memory in order.
#[derive(Clone, Copy, Debug)]
pub struct Gather<'p, 'm> {
    pieces: &'p [IoVec<'m>],
    offset: usize,
}

impl<'p, 'm> Gather<'p, 'm> {
    /// Reads the contents of the pieces from `skip` on.
    #[inline]
    pub fn new(mut pieces: &'p [IoVec<'m>], skip: usize) -> Self {
        let mut offset = skip;
        while let [first, rest @ ..] = pieces
            && offset >= first.len()
        {
            offset -= first.len();
            pieces = rest;
        }
        Self { pieces, offset }
    }

    /// Fills `to` with the next bytes; false if there were fewer.
    #[inline]
    pub fn copy_to(&mut self, to: &mut [u8]) -> bool {
        match self.pieces.first() {
            // Within one piece, and not to its end.
            Some(piece) if piece.len() - self.offset > to.len() => {
                self.offset += piece.copy_to(self.offset, to);
                true
            }
            _ => self.copy_across(to),
        }
    }

    fn copy_across(&mut self, mut to: &mut [u8]) -> bool {
        while !to.is_empty() {
            let Some(piece) = self.pieces.first() else { return false };
            let copied = piece.copy_to(self.offset, to);
            self.offset += copied;
            to = to.get_mut(copied..).unwrap_or_default();
            if self.offset >= piece.len() {
                self.pieces = self.pieces.get(1..).unwrap_or_default();
                self.offset = 0;
            }
        }
        true
    }

    /// Fills `to`, which others may use meanwhile, with the next bytes; false if there were fewer.
    pub fn copy_to_slice(&mut self, to: &VolatileSlice<'_>) -> bool {
        let mut at = 0;
        while at < to.len() {
            let Some(piece) = self.pieces.first() else { return false };
            let Ok(room) = to.offset(at) else { return false };
            let rest = piece.skip(self.offset);
            let copied = rest.copy_to_slice(room);
            at += copied;
            self.offset += copied;
            if copied == rest.len() {
                self.pieces = self.pieces.get(1..).unwrap_or_default();
                self.offset = 0;
            }
        }
        true
    }

    /// Appends the next `count` bytes to `to` without copying them; false if there were fewer.
    pub fn lend(&mut self, mut count: usize, to: &mut Vec<IoVec<'m>>) -> bool {
        while count > 0 {
            let Some(piece) = self.pieces.first() else { return false };
            let part = piece.skip(self.offset).first(count);
            count -= part.len();
            self.offset += part.len();
            to.push(part);
            if self.offset >= piece.len() {
                self.pieces = self.pieces.get(1..).unwrap_or_default();
                self.offset = 0;
            }
        }
        true
    }
}

/// Empties a list and ends its borrows, so that its allocation serves the next batch.
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
    fn gathers_across_pieces() {
        let pieces = [b"abc".as_slice(), b"", b"defg", b"h"].map(IoVec::from_slice);
        for skip in 0..9 {
            for len in 0..=8 - skip.min(8) {
                let mut copy = vec![0; len];
                assert!(Gather::new(&pieces, skip).copy_to(&mut copy));
                assert_eq!(copy, b"abcdefgh"[skip..skip + len]);
                let mut shared = vec![0; len];
                let slice = VolatileSlice::from(shared.as_mut_slice());
                assert!(Gather::new(&pieces, skip).copy_to_slice(&slice));
                assert_eq!(shared, copy);
                let mut parts = Vec::new();
                let mut gather = Gather::new(&pieces, skip);
                assert!(gather.lend(len, &mut parts));
                let mut lent = Vec::new();
                parts.iter().for_each(|part| part.append_to(&mut lent));
                assert_eq!(lent, copy);
            }
            let mut longer = vec![0; 9 - skip];
            assert!(!Gather::new(&pieces, skip).copy_to(&mut longer));
            let slice = VolatileSlice::from(longer.as_mut_slice());
            assert!(!Gather::new(&pieces, skip).copy_to_slice(&slice));
        }
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
