//! The client's arena: shared memory that its tensors live in, and who holds which part of it.

use super::error::Error;
use crate::wire::TENSOR_ALIGN;
use memmap2::MmapRaw;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The arena of one connection, alive as long as any request holds a span of it.
///
/// The lock is taken only when a span is made or dropped: a request that is used again takes none.
#[derive(Debug)]
pub(super) struct Arena {
    map: Arc<MmapRaw>,
    gaps: Mutex<Gaps>,
    /// The connection has ended, perhaps while the daemon still writes outputs: spans that were in flight may be free in
    /// `gaps`, so none is given out again.
    retired: AtomicBool,
}

impl Arena {
    pub(super) fn new(map: Arc<MmapRaw>) -> Arc<Arena> {
        let gaps = Mutex::new(Gaps::new(map.len()));
        Arc::new(Arena { map, gaps, retired: AtomicBool::new(false) })
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Relaxed);
    }

    /// At least `bytes`, aligned to [`TENSOR_ALIGN`].
    pub(super) fn span(self: &Arc<Arena>, bytes: usize) -> Result<Span, Error> {
        let mut gaps = self.gaps.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that whoever finds a span that was in flight also finds this.
        if self.retired.load(Ordering::Relaxed) {
            return Err(Error::Foreign { what: "the request" });
        }
        let taken = bytes.max(1).checked_next_multiple_of(ALIGN).and_then(|bytes| Some((gaps.take(bytes)?, bytes)));
        match taken {
            Some((offset, bytes)) => Ok(Span { arena: self.clone(), offset, bytes }),
            None => Err(Error::ArenaExhausted {
                wanted: bytes,
                free: gaps.free_bytes(),
                largest: gaps.largest_bytes(),
                arena: self.map.len(),
            }),
        }
    }
}

/// A part of the arena that only its holder touches, until it is in flight: then it belongs to the daemon.
#[derive(Debug)]
pub(super) struct Span {
    arena: Arc<Arena>,
    offset: usize,
    bytes: usize,
}

impl Span {
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// How much it holds.
    pub(super) fn capacity(&self) -> usize {
        self.bytes
    }

    pub(super) fn bytes(&self, count: usize) -> &[u8] {
        assert!(count <= self.bytes, "{count} bytes of a span of {}", self.bytes);
        // SAFETY: the span lies inside the arena's mapping, which it keeps alive. `Gaps` gives no byte to two spans, and
        // the daemon (which its clients trust) writes only spans that are in flight, which nobody can borrow: they are
        // inside the client then. Any bit pattern is a u8.
        unsafe { std::slice::from_raw_parts(self.arena.map.as_ptr().add(self.offset), count) }
    }

    pub(super) fn bytes_mut(&mut self, count: usize) -> &mut [u8] {
        assert!(count <= self.bytes, "{count} bytes of a span of {}", self.bytes);
        // SAFETY: as in `bytes`, and the span itself is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.arena.map.as_mut_ptr().add(self.offset), count) }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.arena.gaps.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.offset, self.bytes);
    }
}

/// The arena's free parts: sorted by offset, never empty, never touching each other.
///
/// Take is first fit, give back a binary search; both are linear in the number of gaps, which is small because spans
/// are kept from request to request.
#[derive(Debug)]
struct Gaps(Vec<Gap>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    offset: usize,
    bytes: usize,
}

impl Gaps {
    fn new(bytes: usize) -> Gaps {
        Gaps(vec![Gap { offset: 0, bytes }])
    }

    /// `bytes` is a multiple of [`ALIGN`], so all offsets are.
    fn take(&mut self, bytes: usize) -> Option<usize> {
        let index = self.0.iter().position(|gap| gap.bytes >= bytes)?;
        let gap = &mut self.0[index];
        let offset = gap.offset;
        if gap.bytes == bytes {
            self.0.remove(index);
        } else {
            *gap = Gap { offset: offset + bytes, bytes: gap.bytes - bytes };
        }
        Some(offset)
    }

    fn give_back(&mut self, offset: usize, bytes: usize) {
        let index = self.0.partition_point(|gap| gap.offset < offset);
        let joins_next = self.0.get(index).is_some_and(|next| next.offset == offset + bytes);
        let joins_previous =
            index.checked_sub(1).is_some_and(|previous| self.0[previous].offset + self.0[previous].bytes == offset);
        match (joins_previous, joins_next) {
            (true, true) => {
                self.0[index - 1].bytes += bytes + self.0[index].bytes;
                self.0.remove(index);
            }
            (true, false) => self.0[index - 1].bytes += bytes,
            (false, true) => self.0[index] = Gap { offset, bytes: bytes + self.0[index].bytes },
            (false, false) => self.0.insert(index, Gap { offset, bytes }),
        }
    }

    fn free_bytes(&self) -> usize {
        self.0.iter().map(|gap| gap.bytes).sum()
    }

    fn largest_bytes(&self) -> usize {
        self.0.iter().map(|gap| gap.bytes).max().unwrap_or(0)
    }
}

const ALIGN: usize = TENSOR_ALIGN as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNITS: usize = 64;

    proptest! {
        /// Against a naive model: one flag for each 64 bytes.
        #[test]
        fn no_byte_is_held_twice_and_none_is_lost(steps in proptest::collection::vec((any::<bool>(), 1..9usize, any::<usize>()), 1..200)) {
            let mut gaps = Gaps::new(UNITS * ALIGN);
            let mut held = [false; UNITS];
            let mut spans: Vec<(usize, usize)> = Vec::new();
            for (take, units, pick) in steps {
                if take {
                    let fits = held.windows(units).position(|window| window.iter().all(|unit| !unit));
                    let offset = gaps.take(units * ALIGN);
                    prop_assert_eq!(offset, fits.map(|unit| unit * ALIGN));
                    if let Some(unit) = fits {
                        held[unit..unit + units].fill(true);
                        spans.push((unit, units));
                    }
                } else if !spans.is_empty() {
                    let (unit, units) = spans.swap_remove(pick % spans.len());
                    held[unit..unit + units].fill(false);
                    gaps.give_back(unit * ALIGN, units * ALIGN);
                }
                prop_assert_eq!(gaps.free_bytes(), held.iter().filter(|unit| !**unit).count() * ALIGN);
                prop_assert!(gaps.0.windows(2).all(|pair| pair[0].offset + pair[0].bytes < pair[1].offset));
            }
        }
    }

    fn arena(bytes: usize) -> Arc<Arena> {
        Arena::new(Arc::new(memmap2::MmapOptions::new().len(bytes).map_anon().unwrap().into()))
    }

    #[test]
    fn exhausted_arena_says_the_figures_and_recovers() {
        let arena = arena(4096);
        let first = arena.span(1000).unwrap();
        let second = arena.span(2048).unwrap();
        assert_eq!((first.capacity(), second.offset()), (1024, 1024));
        drop(first);
        let error = arena.span(1025).unwrap_err();
        let Error::ArenaExhausted { wanted: 1025, free: 2048, largest: 1024, arena: 4096 } = error else {
            panic!("{error}");
        };
        assert!(matches!(arena.span(usize::MAX), Err(Error::ArenaExhausted { .. })));
        drop(second);
        assert_eq!(arena.span(4096).unwrap().offset(), 0);
    }

    #[test]
    fn retired_arena_gives_nothing_out() {
        let arena = arena(4096);
        let mut span = arena.span(64).unwrap();
        arena.retire();
        span.bytes_mut(64).fill(7);
        assert_eq!(span.bytes(64), [7; 64]);
        assert!(matches!(arena.span(64), Err(Error::Foreign { .. })));
    }
}
