//! Descriptor chains: from a head to the pieces of memory it stands for, or to a refusal.
//!
//! Each descriptor is copied once and then judged, so that the guest can't change it in between.
//! A chain is broken if a link leads out of its table or comes round again, if a descriptor has the
//! wrong direction or points outside of memory, if its bytes are 2^32 or more, if an indirect table
//! has an odd length, lies in another or is followed by a link, or if a table has more than
//! [`MAX_LINKS`] descriptors in a row (VIRTIO 1.2, 2.7.5). Empty descriptors are allowed anywhere.

use virtio_queue::desc::split::Descriptor;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::MS;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};

use crate::vhost_user::vring::{GuestMemory, MAX_QUEUE_SIZE};

/// Guest memory that lies in one piece on this host too, to be copied from and to.
pub type Piece<'m> = VolatileSlice<'m, MS<'m, GuestMemory>>;

/// Most descriptors that are followed in one table. Linux makes at most 19 of a frame; a table may
/// be longer than the ring.
pub const MAX_LINKS: u16 = MAX_QUEUE_SIZE;

/// Size of a descriptor, in bytes.
const DESCRIPTOR: usize = size_of::<Descriptor>();

/// What a chain's buffers are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads them: a frame to be sent.
    Read,
    /// The device writes to them: room for a frame.
    Write,
}

/// A chain that can't be followed to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BrokenChain;

/// A place in a chain: the table it is in, and the next descriptor.
pub(super) struct Links<'a, 'm> {
    table: Table<'a, 'm>,
    len: u16,
    next: u16,
    /// Descriptors that may still follow in this table.
    left: u16,
    is_indirect: bool,
}

enum Table<'a, 'm> {
    /// The ring's own.
    Ring(&'a Piece<'m>),
    /// An indirect one in one piece.
    Indirect(Piece<'m>),
    /// An indirect one that is in several pieces, or partly nowhere.
    Scattered(u64),
}

impl<'a, 'm> Links<'a, 'm> {
    /// The chain that begins with descriptor `head` of a ring's table.
    pub(super) fn new(table: &'a Piece<'m>, size: u16, head: u16) -> Self {
        let table = Table::Ring(table);
        Self { table, len: size, next: head, left: size, is_indirect: false }
    }

    /// Calls `each` for each piece of memory in the chain.
    #[inline]
    pub(super) fn walk<E: From<BrokenChain>>(
        mut self,
        regions: &mut Regions<'m>,
        access: Access,
        mut each: impl FnMut(Piece<'m>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut total = 0_u32;
        loop {
            let descriptor = self.read(regions).ok_or(BrokenChain)?;
            if descriptor.refers_to_indirect_table() {
                self = self.enter(regions, &descriptor)?;
                continue;
            }
            if descriptor.is_write_only() != (access == Access::Write) {
                return Err(BrokenChain.into());
            }
            total = total.checked_add(descriptor.len()).ok_or(BrokenChain)?;
            regions.each_piece(descriptor.addr().0, descriptor.len(), &mut each)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            self.next = descriptor.next();
            self.left -= 1;
        }
    }

    /// Copies the next descriptor; `None` if there can't be one.
    fn read(&self, regions: &Regions<'m>) -> Option<Descriptor> {
        if self.left == 0 || self.next >= self.len {
            return None;
        }
        let offset = DESCRIPTOR * usize::from(self.next);
        let piece = match &self.table {
            Table::Ring(piece) => piece,
            Table::Indirect(piece) => piece,
            Table::Scattered(address) => {
                let address = address.checked_add(offset as u64)?;
                return regions.memory.read_obj(GuestAddress(address)).ok();
            }
        };
        Some(piece.get_ref(offset).ok()?.load())
    }

    /// Goes on in the indirect table that a descriptor refers to. Its direction means nothing.
    #[inline]
    fn enter(self, regions: &mut Regions<'m>, to: &Descriptor) -> Result<Self, BrokenChain> {
        let bytes = usize::try_from(to.len()).map_err(|_| BrokenChain)?;
        let len = u16::try_from(bytes / DESCRIPTOR).map_err(|_| BrokenChain)?;
        if self.is_indirect || to.has_next() || !bytes.is_multiple_of(DESCRIPTOR) {
            return Err(BrokenChain);
        }
        let address = to.addr().0;
        let table = match regions.slice(address, bytes) {
            Some(piece) => Table::Indirect(piece),
            None => Table::Scattered(address),
        };
        Ok(Self { table, len, next: 0, left: len.min(MAX_LINKS), is_indirect: true })
    }
}

/// Finds the memory of guest addresses. The region of the last one is asked first.
#[derive(Debug)]
pub(super) struct Regions<'m> {
    memory: &'m GuestMemory,
    start: u64,
    last: Option<Piece<'m>>,
}

impl<'m> Regions<'m> {
    pub(super) fn new(memory: &'m GuestMemory) -> Self {
        Self { memory, start: 0, last: None }
    }

    /// The memory at an address, if `len` bytes from there lie in one region.
    pub(super) fn slice(&mut self, address: u64, len: usize) -> Option<Piece<'m>> {
        self.begin(address, len).filter(|piece| piece.len() == len)
    }

    /// Calls `each` for `len` bytes from an address on, which may lie in several regions.
    #[inline]
    fn each_piece<E: From<BrokenChain>>(
        &mut self,
        mut address: u64,
        len: u32,
        each: &mut impl FnMut(Piece<'m>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = usize::try_from(len).map_err(|_| BrokenChain)?;
        while left > 0 {
            let piece = self.begin(address, left).ok_or(BrokenChain)?;
            left -= piece.len();
            if left > 0 {
                address = address.checked_add(piece.len() as u64).ok_or(BrokenChain)?;
            }
            each(piece)?;
        }
        Ok(())
    }

    /// What lies in one region of `len` bytes from an address on.
    #[inline]
    fn begin(&mut self, address: u64, len: usize) -> Option<Piece<'m>> {
        if let Some(piece) = self.in_last(address, len) {
            return Some(piece);
        }
        self.find(address)?;
        self.in_last(address, len)
    }

    #[inline]
    fn in_last(&self, address: u64, len: usize) -> Option<Piece<'m>> {
        let region = self.last.as_ref()?;
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let room = region.len().checked_sub(offset).filter(|&room| room > 0)?;
        region.subslice(offset, len.min(room)).ok()
    }

    #[cold]
    fn find(&mut self, address: u64) -> Option<()> {
        let region = self.memory.find_region(GuestAddress(address))?;
        self.start = region.start_addr().0;
        self.last = Some(region.as_volatile_slice().ok()?);
        Some(())
    }
}
