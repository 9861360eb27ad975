//! Copies that belong together: a batch's inputs out of many arenas, its outputs into them, a part's items out of what the part above
//! left.
//!
//! A copy of its own costs a call and the copy engine's start, 1 to 2 us in which the bus (PCIe 5 x16: 64 GB/s) would carry 100 KB. So many
//! small pieces go by one launch of a kernel, which reads where they lie from a table in pinned memory and reaches the arenas itself; few or
//! large ones go by the copy engines, which leave the multiprocessors to the batch that executes. (The border is arithmetic, not measured:
//! not run on a GPU.)

use super::super::driver::{Context, DriverError, PinnedMemory, Stream};
use super::super::gpu::Session;
use rota_kernels::params::MoveEntry;
use rota_kernels::{Move, Pointer};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Between which memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// From the host to the GPU.
    In,
    /// From the GPU to the host.
    Out,
    /// Inside the GPU.
    Within,
}

/// Some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    source: u64,
    target: u64,
    bytes: u64,
    /// How a kernel addresses the host's end; `None`: it can't. Inside the GPU it is not looked at.
    reach: Option<u64>,
}

/// Pieces that are given to a stream together.
#[derive(Default)]
pub(super) struct Moves {
    pieces: Vec<Piece>,
    entries: Vec<MoveEntry>,
}

/// More pieces than that go by a kernel, if they are small.
const COPIES_MAX: usize = 2;
/// Larger ones, on average, keep the bus busy each on its own.
const SMALL_BYTES: u64 = 64 << 10;

impl Moves {
    /// One more; where it goes on where the last one ends, that becomes longer.
    pub fn push(&mut self, source: u64, target: u64, bytes: usize, reach: Option<u64>) {
        let bytes = bytes as u64;
        if bytes == 0 {
            return;
        }
        if let Some(last) = self.pieces.last_mut() {
            let follows = |begin: u64, next: u64| begin + last.bytes == next;
            if follows(last.source, source)
                && follows(last.target, target)
                && last.reach.map(|at| at + last.bytes) == reach
            {
                last.bytes += bytes;
                return;
            }
        }
        self.pieces.push(Piece { source, target, bytes, reach });
    }

    fn suit_a_kernel(&self, way: Way) -> bool {
        let bytes: u64 = self.pieces.iter().map(|piece| piece.bytes).sum();
        match way {
            Way::Within => self.pieces.len() > 1,
            Way::In | Way::Out => {
                self.pieces.len() > COPIES_MAX
                    && bytes / self.pieces.len() as u64 <= SMALL_BYTES
                    && self.pieces.iter().all(|piece| piece.reach.is_some())
            }
        }
    }

    /// Gives all of them to the stream, and forgets them.
    ///
    /// # Safety
    /// Each piece's source is readable and its target writable for its bytes, as the stream's contract says; of the host's end others may
    /// change the bytes meanwhile. `table` is not read by anything that `stream` does not come behind.
    pub unsafe fn give(
        &mut self,
        session: &Session,
        stream: &Stream,
        table: &mut Table,
        way: Way,
    ) -> Result<(), DriverError> {
        // SAFETY: the caller's promise, for the pieces of this list.
        let given = unsafe { self.give_all(session, stream, table, way) };
        self.clear();
        given
    }

    /// Forgets all of them: what of a batch that was given up is still there must not go with the next one's.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }

    /// # Safety
    /// As [`Moves::give`].
    unsafe fn give_all(
        &mut self,
        session: &Session,
        stream: &Stream,
        table: &mut Table,
        way: Way,
    ) -> Result<(), DriverError> {
        if self.suit_a_kernel(way) {
            self.entries.clear();
            self.entries.extend(self.pieces.iter().map(|piece| piece.entry(way)));
            // SAFETY: nothing that has not ended reads the part of the table that was not taken yet (the caller's promise).
            if let Some((count, entries)) = unsafe { table.take(&self.entries) } {
                let bytes_max = self.pieces.iter().map(|piece| piece.bytes).max().unwrap_or(0);
                let launch = Move { entries, count, entries_max: self.entries.len() as u32, bytes_max }.launch();
                let function = session.function(launch.kernel)?;
                // SAFETY: the catalogue made the parameters for this kernel; the table names ranges as the caller promises.
                return unsafe { stream.launch(function, launch.grid, launch.block, 0, &launch.params) };
            }
        }
        for &Piece { source, target, bytes, .. } in &self.pieces {
            // SAFETY: the caller's promise; the driver checks the GPU's end.
            unsafe {
                match way {
                    Way::In => stream.upload(target, source as *const u8, bytes as usize)?,
                    Way::Out => stream.download(target as *mut u8, source, bytes as usize)?,
                    Way::Within => stream.copy(target, source, bytes as usize)?,
                }
            }
        }
        Ok(())
    }
}

impl Piece {
    /// As the kernel reads it.
    fn entry(&self, way: Way) -> MoveEntry {
        let reach = self.reach.unwrap_or(0);
        let (source, target) = match way {
            Way::In => (reach, self.target),
            Way::Out => (self.source, reach),
            Way::Within => (self.source, self.target),
        };
        MoveEntry { source: Pointer(source), target: Pointer(target), bytes: self.bytes }
    }
}

/// Pinned memory in which kernels find what to move; taken piece by piece for one batch, and again for the next.
pub(super) struct Table {
    memory: PinnedMemory,
    used: usize,
}

/// Entries of all moves of a batch: 200 KB. What finds no room goes by copies.
const ENTRIES_MAX: usize = 8192;
/// A count has an entry's alignment to itself.
const COUNT_BYTES: usize = 8;

impl Table {
    pub fn new(context: &Arc<Context>) -> Result<Table, DriverError> {
        Ok(Table { memory: PinnedMemory::new(context, ENTRIES_MAX * size_of::<MoveEntry>())?, used: 0 })
    }

    /// All of it is free again.
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Writes a list: where its count is, and where its entries are. `None` where there is no room.
    ///
    /// # Safety
    /// Nothing that has not ended reads what was not taken since the last [`Table::clear`].
    unsafe fn take(&mut self, entries: &[MoveEntry]) -> Option<(Pointer, Pointer)> {
        let (at, bytes) = (self.used, COUNT_BYTES + size_of_val(entries));
        if self.memory.size() - at < bytes {
            return None;
        }
        self.used += bytes;
        // SAFETY: this part of the table is nobody else's (the caller's promise).
        unsafe {
            self.memory.write(at, (entries.len() as u64).as_bytes());
            self.memory.write(at + COUNT_BYTES, entries.as_bytes());
        }
        // Pinned memory has one address for host and GPU (unified addressing, on every 64-bit host).
        let count = self.memory.as_mut_ptr() as u64 + at as u64;
        Some((Pointer(count), Pointer(count + COUNT_BYTES as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves(pieces: &[(u64, u64, usize, Option<u64>)]) -> Moves {
        let mut moves = Moves::default();
        pieces.iter().for_each(|&(source, target, bytes, reach)| moves.push(source, target, bytes, reach));
        moves
    }

    #[test]
    fn pieces_that_follow_each_other_become_one() {
        let one = moves(&[(100, 0, 10, Some(1100)), (110, 10, 0, Some(1110)), (110, 10, 20, Some(1110))]);
        assert_eq!(one.pieces, [Piece { source: 100, target: 0, bytes: 30, reach: Some(1100) }]);
        // Side by side for the host, and not for the GPU: two arenas.
        assert_eq!(moves(&[(100, 0, 10, Some(1100)), (110, 10, 20, Some(5000))]).pieces.len(), 2);
        assert_eq!(moves(&[(100, 0, 10, None), (110, 20, 20, None)]).pieces.len(), 2);
    }

    #[test]
    fn many_small_pieces_go_by_a_kernel_and_few_or_large_ones_by_copies() {
        let apart = |count: u64, bytes: usize, reach: Option<u64>| {
            moves(&(0..count).map(|at| (at << 20, at << 30, bytes, reach)).collect::<Vec<_>>())
        };
        assert!(apart(3, 1000, Some(0)).suit_a_kernel(Way::In));
        assert!(!apart(2, 1000, Some(0)).suit_a_kernel(Way::Out), "few");
        assert!(!apart(64, 600_000, Some(0)).suit_a_kernel(Way::In), "large");
        assert!(!apart(64, 1000, None).suit_a_kernel(Way::In), "out of a kernel's reach");
        assert!(apart(2, 600_000, None).suit_a_kernel(Way::Within));
        assert!(!apart(1, 1000, None).suit_a_kernel(Way::Within));
    }
}
