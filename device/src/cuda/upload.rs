//! Weights on their way to a GPU while others' batches execute there.
//!
//! A GPU has one engine for copies from the host, which takes them as they come: inputs of a batch that arrive behind the weights of a large
//! model would wait for all of them. So weights go in pieces, of which one at most is with the GPU, and a piece is given behind the inputs of
//! whichever batch is being copied at that moment (on the GPU, by an event: nobody waits on the host). So no batch has more than one piece in front of
//! its inputs, 4 MB: 0.16 ms at the 25 GB/s of PCIe 4.0 x16 (not run on a GPU); and while batches come one behind the other, each lets one
//! piece through, so loading ends under full load too.
//!
//! Pieces are copied into pinned memory first, the next while one is on its way: out of pageable memory the driver would do the same, and
//! hold up the caller.

use super::driver::{Context, DriverError, Event, PinnedMemory, Stream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The way of weights to one GPU, and what it knows of the batches' inputs.
pub(super) struct Uploads {
    ring: Mutex<Ring>,
    /// Batches whose copies of inputs were begun to be given, and those for which that has ended. The same while nobody gives any.
    begun: AtomicU64,
    given: AtomicU64,
    /// Behind the last of those copies.
    inputs: Event,
}

/// Locked for a piece at a time, so that two who upload take turns.
struct Ring {
    stream: Stream,
    pieces: [Piece; 2],
    /// Which piece is filled next. The other is with the GPU, or free.
    next: usize,
}

struct Piece {
    memory: PinnedMemory,
    /// Behind its last copy to the GPU.
    copied: Event,
}

/// Bytes that go at once.
pub(super) const PIECE_BYTES: usize = 4 << 20;

// SAFETY: streams and events are the driver's, which may be called on them from any thread.
unsafe impl Sync for Uploads {}

impl Uploads {
    pub fn new(context: &Arc<Context>) -> Result<Uploads, DriverError> {
        let piece = || -> Result<Piece, DriverError> {
            Ok(Piece { memory: PinnedMemory::new(context, PIECE_BYTES)?, copied: Event::to_wait_for(context)? })
        };
        let ring = Ring { stream: Stream::new(context)?, pieces: [piece()?, piece()?], next: 0 };
        let (begun, given) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Uploads { ring: Mutex::new(ring), begun, given, inputs: Event::new(context)? })
    }

    /// Lets `give` give the copies of one batch's inputs to `stream`: of weights, at most one piece comes before them.
    pub fn let_pass(&self, stream: &Stream, give: impl FnOnce() -> Result<(), DriverError>) -> Result<(), DriverError> {
        // Sequentially consistent with `given` below: a piece that does not see this batch was with the GPU before it.
        self.begun.fetch_add(1, Ordering::SeqCst);
        let given = give().and_then(|()| self.inputs.record(stream));
        self.given.fetch_add(1, Ordering::SeqCst);
        given
    }

    /// Copies `bytes` to the GPU's memory from `to` on, which is as large and used by nobody yet. Waits until they are there.
    pub fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DriverError> {
        for (number, bytes) in bytes.chunks(PIECE_BYTES).enumerate() {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.fill(bytes)?;
            self.wait_for_givers();
            ring.send(to + (number * PIECE_BYTES) as u64, bytes.len(), &self.inputs)?;
        }
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).stream.synchronize()
    }

    /// Fills memory that nobody uses yet with zeros, and waits until it is.
    pub fn clear(&self, at: u64, bytes: usize) -> Result<(), DriverError> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.stream.clear(at, bytes)?;
        ring.stream.synchronize()
    }

    /// Waits until the copies that somebody is giving are given: microseconds of that thread's time.
    fn wait_for_givers(&self) {
        let begun = self.begun.load(Ordering::SeqCst);
        while self.given.load(Ordering::SeqCst) < begun {
            std::thread::yield_now();
        }
    }
}

impl Ring {
    /// Fills the next piece, while the other is on its way; then waits for that.
    fn fill(&mut self, bytes: &[u8]) -> Result<(), DriverError> {
        let [next, other] = [&self.pieces[self.next], &self.pieces[1 - self.next]];
        next.copied.synchronize()?;
        // SAFETY: `bytes` is at most a piece long, and the GPU has done with this one (just waited for); nobody else has it, by `&mut self`.
        unsafe { next.memory.as_mut_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        other.copied.synchronize()
    }

    /// Gives the GPU the piece that was filled, behind `inputs`.
    fn send(&mut self, to: u64, bytes: usize, inputs: &Event) -> Result<(), DriverError> {
        let piece = &self.pieces[self.next];
        self.stream.wait(inputs)?;
        // SAFETY: the piece is not filled again before `copied`, recorded behind this, has come; the driver checks the target.
        unsafe { self.stream.upload(to, piece.memory.as_mut_ptr(), bytes)? };
        piece.copied.record(&self.stream)?;
        self.next = 1 - self.next;
        Ok(())
    }
}
