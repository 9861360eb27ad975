//! The daemon's side of one connection. The client is not trusted: every word is read once, copied, then checked.

mod block;

pub use crate::ring::Poisoned;
pub use block::{BlockError, RequestBlock, Tensor};

use crate::doorbell::{Doorbell, Peer};
use crate::region::{Regions, State};
use crate::ring::{ASLEEP, ASLEEP_ON_DOORBELL, Consumer, Descriptor, Producer};
use crate::wire::{
    Completion, OP_BEGIN, OP_CANCEL, OP_FINISH, OP_GIVE_UP, OP_INFER, OUTPUTS_MAX, OutputRecord, PRIORITIES,
    RECORD_BYTES, Reason, Submission,
};
use memmap2::MmapRaw;
use rustix::thread::futex;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, IntoBytes};

/// What a completion's result record holds.
#[derive(Debug, Clone, Copy)]
pub enum Record<'a> {
    /// At most [`OUTPUTS_MAX`].
    Outputs(&'a [OutputRecord]),
    /// Cut at the record's size.
    Text(&'a str),
}

/// The daemon's side of one client's shared memory, owned by the thread that polls it.
///
/// A turn: [`pop`](Connection::pop) some submissions; for each that asks for inference, [`reserve`](Connection::reserve)
/// its completion, [`check_submission`] and [`read_block`](Connection::read_block); [`complete`](Connection::complete) what is
/// finished; [`publish`](Connection::publish) once. Before sleeping, [`arm`](Connection::arm).
/// None of these allocates (but for the text of a refusal), locks or blocks, and none makes more than one system call.
/// Whatever returns [`Poisoned`] ends the connection: [`poison`](Connection::poison) it and tell the client why.
#[derive(Debug)]
pub struct Connection {
    regions: Regions,
    submissions: Consumer,
    completions: Producer,
    doorbell: Doorbell,
}

impl Connection {
    /// Makes, seals and maps the three regions and the doorbell. The descriptors are the client's, in the order of
    /// [`crate::control::Reply::Welcome`]. `slots` is a power of two in range, `arena_bytes` is rounded up to pages.
    ///
    /// All pages are allocated here, so it takes about as long as zeroing the arena.
    pub fn create(slots: u32, arena_bytes: u64) -> io::Result<(Connection, [OwnedFd; 4])> {
        let (regions, [client, daemon, arena]) = Regions::create(slots, arena_bytes)?;
        let (doorbell, theirs) = Doorbell::pair()?;
        regions.state().store(State::Serving as u32, Ordering::Relaxed);
        let connection =
            Connection { regions, submissions: Consumer::default(), completions: Producer::default(), doorbell };
        Ok((connection, [client, daemon, arena, theirs]))
    }

    pub fn slots(&self) -> u32 {
        self.regions.slots()
    }

    /// The arena's mapping; it lives as long as any batch that reads or writes it.
    pub fn arena(&self) -> &Arc<MmapRaw> {
        self.regions.arena()
    }

    /// Copies `into.len()` bytes of the arena, from `offset`, out of the client's reach.
    ///
    /// # Panics
    /// When they are not all inside the arena: the caller checked the span.
    pub fn copy_out(&self, offset: usize, into: &mut [u8]) {
        let arena = self.arena();
        assert!(offset.checked_add(into.len()).is_some_and(|end| end <= arena.len()), "a span outside the arena");
        // SAFETY: the source lies inside the mapping, which the `Arc` keeps, and `into` is ours and so apart from it. The
        // client may write there meanwhile: whatever bytes come are copied once and looked at only in the copy.
        unsafe { std::ptr::copy_nonoverlapping(arena.as_ptr().add(offset), into.as_mut_ptr(), into.len()) };
    }

    /// Completions that can still be promised: ring entries that neither a request in flight nor an unread completion
    /// holds. `in_flight`: requests that were taken and not completed.
    pub fn room(&mut self, in_flight: u32) -> Result<u32, Poisoned> {
        Ok(self.completions.free(&self.regions.completions())?.saturating_sub(in_flight))
    }

    /// Promises the completion of one more request, after it was popped. An honest client always has room, because it
    /// reuses a request slot only when it has read the slot's completion; one that has not is poisoned.
    pub fn reserve(&mut self, in_flight: u32) -> Result<(), Poisoned> {
        if self.completions.known_free(&self.regions.completions()) > in_flight || self.room(in_flight)? > 0 {
            return Ok(());
        }
        Err(Poisoned::NoRoom { capacity: self.slots() })
    }

    /// Copies out up to `out.len()` submissions; returns how many.
    pub fn pop(&mut self, out: &mut [Submission]) -> Result<usize, Poisoned> {
        let out = <[Descriptor]>::mut_from_bytes(out.as_mut_bytes()).expect("a submission is laid out as a descriptor");
        self.submissions.pop(&self.regions.submissions(), out)
    }

    /// Copies out and checks the block of slot `slot` (already checked to be in range).
    pub fn read_block(&self, slot: u32, block_bytes: u32, into: &mut RequestBlock) -> Result<(), BlockError> {
        into.read(self.regions.block(slot), block_bytes, self.arena().len() as u64)
    }

    /// Writes a completion and its record; not visible to the client before [`Connection::publish`].
    /// Room must have been promised by [`Connection::room`] or [`Connection::reserve`]: without it this panics.
    ///
    /// `outputs` and `record_bytes` are filled in here. A slot out of range (the client's fault) has no record.
    pub fn complete(&mut self, mut completion: Completion, record: Record<'_>) {
        completion.outputs = 0;
        completion.record_bytes = 0;
        if completion.slot < self.slots() {
            let bytes = match record {
                Record::Outputs(outputs) => {
                    assert!(
                        outputs.len() <= OUTPUTS_MAX,
                        "{} outputs, but a record holds {OUTPUTS_MAX}",
                        outputs.len()
                    );
                    completion.outputs = outputs.len() as u8;
                    outputs.as_bytes()
                }
                Record::Text(text) => &text.as_bytes()[..text.floor_char_boundary(RECORD_BYTES)],
            };
            completion.record_bytes = bytes.len() as u32;
            store_bytes(self.regions.record(completion.slot), bytes);
        }
        let descriptor = Descriptor::read_from_bytes(completion.as_bytes()).expect("a completion is laid out as one");
        let pushed = self.completions.push(&self.regions.completions(), &descriptor);
        assert_eq!(pushed, Ok(true), "a completion without promised room");
    }

    /// Shows the client all that was completed, and wakes it if it sleeps.
    ///
    /// A client that pins its `need_wake` costs us one system call here, no more; with nothing new there is none.
    pub fn publish(&mut self) {
        let ring = self.regions.completions();
        match self.completions.publish(&ring) {
            // Not private: the sleeper is another process. It can only fail on a bad address, which ours is not.
            ASLEEP => {
                let _ = futex::wake(ring.tail, futex::Flags::empty(), 1);
            }
            ASLEEP_ON_DOORBELL => self.doorbell.ring(),
            _ => {}
        }
    }

    /// Asks the client to ring the doorbell for its next submission. False when work arrived meanwhile: do not sleep.
    pub fn arm(&mut self) -> Result<bool, Poisoned> {
        Ok(self.submissions.prepare_sleep(&self.regions.submissions(), ASLEEP)?.is_some())
    }

    /// The daemon is awake again and polls the ring.
    pub fn disarm(&mut self) {
        self.submissions.wake(&self.regions.submissions());
    }

    /// Readable when the client rang, or hung up. Non-blocking; ours alone.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    /// Takes the rings out of the doorbell. False: the client hung up.
    pub fn drain_doorbell(&mut self) -> bool {
        self.doorbell.drain() == Peer::Alive
    }

    /// Tells the client that no more submissions are taken.
    pub fn set_draining(&mut self) {
        self.regions.state().store(State::Draining as u32, Ordering::Release);
    }

    /// Tells the client that it broke the protocol and wakes it; the connection is of no further use.
    pub fn poison(&mut self) {
        self.regions.state().store(State::Poisoned as u32, Ordering::Release);
        // A bad address is the only failure, and ours is none.
        let _ = futex::wake(self.regions.completions().tail, futex::Flags::empty(), 1);
        self.doorbell.ring();
    }
}

/// Checks what can be checked of a request's or cancel's submission alone: its operation, reserved fields and slot. What is said
/// about runs of queries is never answered, so that what is wrong there is not told.
pub fn check_submission(submission: &Submission, slots: u32) -> Result<(), BlockError> {
    let refuse = |reason, text| Err(BlockError { reason, text });
    if ![OP_INFER, OP_CANCEL].contains(&submission.op) {
        let text = format!(
            "operation {} is unknown: {OP_INFER} infers, {OP_CANCEL} cancels, {OP_BEGIN} begins a query's run, {OP_FINISH} \
             finishes it, {OP_GIVE_UP} gives it up",
            submission.op
        );
        return refuse(Reason::BadDescriptor, text);
    }
    let priorities = if submission.op == OP_INFER { PRIORITIES } else { 1 };
    if submission.priority >= priorities {
        let text = format!("priority {} is not below {priorities}", submission.priority);
        return refuse(Reason::BadDescriptor, text);
    }
    if submission.reserved0 != 0 || submission.reserved != [0; 3] {
        return refuse(Reason::BadDescriptor, "a submission's reserved fields must be zero".into());
    }
    if submission.slot >= slots {
        return refuse(Reason::BadSlot, format!("slot {} is not below {slots}", submission.slot));
    }
    Ok(())
}

/// Writes `bytes` to shared words, one store each; the last word is padded with zeros.
fn store_bytes(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut value = [0; 8];
        value[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_ne_bytes(value), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
