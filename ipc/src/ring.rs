//! The descriptor ring of one direction: one producer, one consumer, and neither trusts what the other writes.
//!
//! Each word has exactly one writer. The producer owns `tail` and the slots, the consumer owns `head` and `need_wake`.
//! Both cursors are free-running `u32`s, kept in private memory; the shared words are only their published copies,
//! so nothing that the peer writes can move our own cursor. A peer's cursor is read once and checked; one that can't be right
//! poisons the ring. (Reading it as "empty" or "full" instead would be an endless loop.)
//!
//! A ring is only a view, made anew for each call from the mapped region, or under loom from ordinary memory: loom
//! checks the very code that runs.
//!
//! SYNC POINTs:
//! - *publish*: `tail` Release in [`Producer::publish`] with `tail` Acquire in [`Consumer::pop`]: the slot's words, and
//!   the block or record that the descriptor speaks of, are visible to whoever sees the new tail.
//! - *free*: `head` Release in [`Consumer::pop`] with `head` Acquire in [`Producer::free`]: a slot is overwritten only
//!   after its words were copied out.
//! - *sleep*: in the producer [store `tail`; fence; load `need_wake`], in the consumer [store `need_wake`; fence; load
//!   `tail`]. At least one of the two sees the other's store, so a sleeper is woken or does not fall asleep.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// A private copy of one entry; it is given a meaning only after the copy.
pub type Descriptor = [u64; 8];

/// One entry in shared memory: a cache line.
#[repr(C, align(64))]
pub struct Slot(pub [AtomicU64; 8]);

/// The shared words of a ring.
#[derive(Clone, Copy)]
pub struct Ring<'a> {
    /// The producer's word: entries published since the connection began. Also what a consumer's futex waits on.
    pub tail: &'a AtomicU32,
    /// The consumer's word: entries taken since the connection began.
    pub head: &'a AtomicU32,
    /// The consumer's word: how to wake it, [`AWAKE`] when it needs no waking.
    pub need_wake: &'a AtomicU32,
    /// A power of two of them; how many is our own configuration, never read from shared memory.
    pub slots: &'a [Slot],
}

impl Ring<'_> {
    fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    fn slot(&self, cursor: u32) -> &Slot {
        &self.slots[cursor as usize & (self.slots.len() - 1)]
    }
}

/// `need_wake`: the consumer polls.
pub const AWAKE: u32 = 0;
/// `need_wake`: the daemon sleeps on the doorbell, or the client on the futex at `tail`.
pub const ASLEEP: u32 = 1;
/// `need_wake`: the client sleeps on its end of the doorbell.
pub const ASLEEP_ON_DOORBELL: u32 = 2;

/// The peer broke the protocol in a way that no honest one can: the connection ends, with this as the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Poisoned {
    /// The producer published more than the ring holds, or took entries back.
    #[error("a ring's tail {tail} is more than {capacity} entries past its head {head}")]
    TailTooFar { tail: u32, head: u32, capacity: u32 },
    /// The consumer took more than was published, or gave entries back.
    #[error("a ring's head {head} is outside {oldest}..={tail}")]
    HeadOutside { head: u32, oldest: u32, tail: u32 },
    /// A request came while every slot was in flight or its completion unread.
    #[error("a request came while all {capacity} request slots were in flight or their completions unread")]
    NoRoom { capacity: u32 },
}

/// The producer's private cursors.
#[derive(Debug, Default)]
pub struct Producer {
    /// Entries written; those in `published..tail` are not visible yet.
    tail: u32,
    published: u32,
    /// The consumer's head when it was last read; it may only move forward, up to `published`.
    head_seen: u32,
}

impl Producer {
    /// Reads the consumer's head; returns how many entries can be pushed.
    pub fn free(&mut self, ring: &Ring<'_>) -> Result<u32, Poisoned> {
        // One load: the consumer may rewrite it between any two of ours.
        let head = ring.head.load(Ordering::Acquire); // SYNC POINT free
        if head.wrapping_sub(self.head_seen) > self.published.wrapping_sub(self.head_seen) {
            return Err(Poisoned::HeadOutside { head, oldest: self.head_seen, tail: self.published });
        }
        self.head_seen = head;
        Ok(self.known_free(ring))
    }

    /// As [`Producer::free`] without reading shared memory: never more than the truth.
    pub fn known_free(&self, ring: &Ring<'_>) -> u32 {
        ring.capacity() - self.tail.wrapping_sub(self.head_seen)
    }

    /// Writes one entry, not visible before [`Producer::publish`]. False: the ring is full.
    pub fn push(&mut self, ring: &Ring<'_>, descriptor: &Descriptor) -> Result<bool, Poisoned> {
        if self.known_free(ring) == 0 && self.free(ring)? == 0 {
            return Ok(false);
        }
        for (word, value) in ring.slot(self.tail).0.iter().zip(descriptor) {
            word.store(*value, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        Ok(true)
    }

    /// Shows the consumer what was pushed and returns its `need_wake`: unless that is [`AWAKE`], the caller wakes it.
    /// Does nothing when nothing was pushed.
    #[must_use]
    pub fn publish(&mut self, ring: &Ring<'_>) -> u32 {
        if self.published == self.tail {
            return AWAKE;
        }
        self.published = self.tail;
        ring.tail.store(self.tail, Ordering::Release); // SYNC POINT publish
        fence(Ordering::SeqCst); // SYNC POINT sleep
        ring.need_wake.load(Ordering::Relaxed)
    }
}

/// The consumer's private cursors.
#[derive(Debug, Default)]
pub struct Consumer {
    head: u32,
    /// The producer's tail when it was last read.
    tail_seen: u32,
}

impl Consumer {
    /// Copies out up to `out.len()` entries, each word once; returns how many.
    ///
    /// A producer that rewrites a published entry gets a torn copy, which is its own problem: the copy is validated.
    pub fn pop(&mut self, ring: &Ring<'_>, out: &mut [Descriptor]) -> Result<usize, Poisoned> {
        if self.tail_seen == self.head {
            self.tail_seen = self.checked_tail(ring, Ordering::Acquire)?; // SYNC POINT publish
        }
        let count = out.len().min(self.tail_seen.wrapping_sub(self.head) as usize);
        for descriptor in &mut out[..count] {
            for (value, word) in descriptor.iter_mut().zip(&ring.slot(self.head).0) {
                *value = word.load(Ordering::Relaxed);
            }
            self.head = self.head.wrapping_add(1);
        }
        if count > 0 {
            ring.head.store(self.head, Ordering::Release); // SYNC POINT free
        }
        Ok(count)
    }

    /// Announces that this side is about to sleep in the way `how`. `None`: entries arrived meanwhile, stay awake.
    /// Otherwise the tail that a futex must still find: a publish after our load is then seen by the kernel's own check.
    pub fn prepare_sleep(&self, ring: &Ring<'_>, how: u32) -> Result<Option<u32>, Poisoned> {
        ring.need_wake.store(how, Ordering::Relaxed);
        fence(Ordering::SeqCst); // SYNC POINT sleep
        match self.checked_tail(ring, Ordering::Relaxed) {
            Ok(tail) if tail == self.head => Ok(Some(tail)),
            other => {
                self.wake(ring);
                other.map(|_| None)
            }
        }
    }

    /// Announces that this side polls again.
    pub fn wake(&self, ring: &Ring<'_>) {
        ring.need_wake.store(AWAKE, Ordering::Relaxed);
    }

    fn checked_tail(&self, ring: &Ring<'_>, ordering: Ordering) -> Result<u32, Poisoned> {
        let (head, capacity) = (self.head, ring.capacity());
        // One load: the producer may rewrite it between any two of ours.
        let tail = ring.tail.load(ordering);
        let distance = tail.wrapping_sub(head);
        if distance > capacity || distance < self.tail_seen.wrapping_sub(head) {
            return Err(Poisoned::TailTooFar { tail, head, capacity });
        }
        Ok(tail)
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
#[cfg(all(test, loom))]
mod verification;
