//! The daemon's side of one connection. The client is not trusted: every word is read once, copied, then checked.

use crate::wire::{BlockHeader, Completion, DType, OutputRecord, RANK_MAX, Reason, Submission, TENSORS_MAX};
use memmap2::MmapRaw;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The client broke the protocol in a way that no honest library can: it is disconnected, with this as the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Poisoned {
    #[error("submission ring: tail {tail} is more than {capacity} entries past head {head}")]
    TailTooFar { tail: u32, head: u32, capacity: u32 },
    #[error("completion ring: head {head} is outside {oldest}..={tail}")]
    HeadOutside { head: u32, oldest: u32, tail: u32 },
}

/// A request block that can't be served: whose fault is always the client's; the request fails with `reason` and the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct BlockError {
    pub reason: Reason,
    pub text: String,
}

/// A tensor of a request whose place was checked: `offset..offset + bytes` lies inside the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    pub offset: usize,
    pub bytes: usize,
    pub dtype: DType,
    /// Index among the model's inputs or outputs.
    pub tensor: u8,
    /// Index among the block's sessions (outputs only).
    pub session: u8,
    pub rank: u8,
    pub dims: [u32; RANK_MAX],
}

impl Tensor {
    pub fn dims(&self) -> &[u32] {
        &self.dims[..usize::from(self.rank)]
    }
}

/// A request block, copied out of the client's region once and checked for what needs no model to check: counts, reserved
/// fields, dtypes, that spans are aligned and inside the arena, that an input's bytes are its dims times its dtype.
/// Reused from request to request.
#[derive(Debug, Clone)]
pub struct RequestBlock {
    pub header: BlockHeader,
    inputs: usize,
    outputs: usize,
    tensors: [Tensor; TENSORS_MAX],
}

impl RequestBlock {
    pub fn inputs(&self) -> &[Tensor] {
        &self.tensors[..self.inputs]
    }
    pub fn outputs(&self) -> &[Tensor] {
        &self.tensors[self.inputs..self.inputs + self.outputs]
    }
}

/// What a completion's result record holds.
#[derive(Debug, Clone, Copy)]
pub enum Record<'a> {
    Outputs(&'a [OutputRecord]),
    /// Cut at the record's size.
    Text(&'a str),
}

/// The daemon's side of one client's shared memory, owned by the thread that polls it.
pub struct Connection {/* private */}

impl Connection {
    /// Makes, seals and maps the three regions and the doorbell. The descriptors are the client's, in the order of
    /// [`crate::control::Reply::Welcome`]. `slots` is a power of two in range, `arena_bytes` is rounded up to pages.
    pub fn create(slots: u32, arena_bytes: u64) -> std::io::Result<(Connection, [OwnedFd; 4])> {
        let _ = (slots, arena_bytes);
        todo!()
    }
    pub fn slots(&self) -> u32 {
        todo!()
    }
    /// The arena's mapping; it lives as long as any batch that reads or writes it.
    pub fn arena(&self) -> &Arc<MmapRaw> {
        todo!()
    }
    /// Completions that can still be promised: ring entries that neither a request in flight nor an unread completion holds.
    pub fn room(&mut self, in_flight: u32) -> Result<u32, Poisoned> {
        let _ = in_flight;
        todo!()
    }
    /// Copies out up to `out.len()` submissions; returns how many.
    pub fn pop(&mut self, out: &mut [Submission]) -> Result<usize, Poisoned> {
        let _ = out;
        todo!()
    }
    /// Copies out and checks the block of slot `slot` (already checked to be in range).
    pub fn read_block(&self, slot: u32, block_bytes: u32, into: &mut RequestBlock) -> Result<(), BlockError> {
        let _ = (slot, block_bytes, into);
        todo!()
    }
    /// Writes a completion and its record; not visible to the client before [`Connection::publish`].
    /// Room must have been promised by [`Connection::room`].
    pub fn complete(&mut self, completion: Completion, record: Record<'_>) {
        let _ = (completion, record);
        todo!()
    }
    /// Shows the client all that was completed, and wakes it if it sleeps.
    pub fn publish(&mut self) {
        todo!()
    }
    /// Asks the client to ring the doorbell for its next submission. False when work arrived meanwhile: do not sleep.
    pub fn arm(&mut self) -> Result<bool, Poisoned> {
        todo!()
    }
    /// The daemon is awake again and polls the ring.
    pub fn disarm(&mut self) {
        todo!()
    }
    /// Readable when the client rang, or hung up. Non-blocking; ours alone.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        todo!()
    }
    /// Takes the rings out of the doorbell. False: the client hung up.
    pub fn drain_doorbell(&mut self) -> bool {
        todo!()
    }
    /// Tells the client that no more submissions are taken.
    pub fn set_draining(&mut self) {
        todo!()
    }
}
