//! Where activations lie: one arena per plan, in which a tensor takes the room of those that nobody reads any more.
//!
//! Tensors are placed largest first, each at the lowest offset that is free for as long as it lives; that is within a few percent of the
//! lower bound on real networks (the tests hold it to 1.2). The bound is the most bytes that live at any one time.

/// A tensor's bytes, and the steps between which it has to be kept, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    pub bytes: u64,
    pub first: usize,
    pub last: usize,
}

/// The arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arena {
    /// By tensor: its first byte; a multiple of [`ALIGNMENT`].
    pub offsets: Vec<u64>,
    /// Bytes of the arena.
    pub peak: u64,
    /// Bytes that it could not do with less than.
    pub lower_bound: u64,
    /// Bytes without reuse.
    pub sum: u64,
}

/// As the driver aligns its own allocations, so that vector loads and copies are aligned everywhere.
pub const ALIGNMENT: u64 = 256;

/// Places the tensors. O(n²) in their number, with a small constant: thousands take milliseconds.
pub fn place(tensors: &[Lifetime]) -> Arena {
    let size = |tensor: &Lifetime| tensor.bytes.next_multiple_of(ALIGNMENT);
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&at| (std::cmp::Reverse(size(&tensors[at])), tensors[at].first, at));
    let mut arena = Arena { offsets: vec![0; tensors.len()], ..Arena::default() };
    let mut placed: Vec<usize> = Vec::with_capacity(tensors.len());
    let mut beside: Vec<(u64, u64)> = Vec::new();
    for at in order {
        let tensor = &tensors[at];
        let meets = |&&other: &&usize| tensors[other].first <= tensor.last && tensor.first <= tensors[other].last;
        beside.clear();
        beside.extend(placed.iter().filter(meets).map(|&other| (arena.offsets[other], size(&tensors[other]))));
        beside.sort_unstable();
        let mut offset = 0;
        for &(begin, bytes) in &beside {
            if begin >= offset + size(tensor) {
                break;
            }
            offset = offset.max(begin + bytes);
        }
        arena.offsets[at] = offset;
        arena.peak = arena.peak.max(offset + size(tensor));
        arena.sum += size(tensor);
        placed.push(at);
    }
    let mut changes: Vec<(usize, i64)> = Vec::with_capacity(2 * tensors.len());
    for tensor in tensors {
        changes.push((tensor.first, size(tensor) as i64));
        changes.push((tensor.last + 1, -(size(tensor) as i64)));
    }
    changes.sort_unstable();
    let (mut living, mut most) = (0, 0);
    for (_, change) in changes {
        living += change;
        most = most.max(living);
    }
    arena.lower_bound = most as u64;
    arena
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_chain_alternates_between_two_places() {
        let chain: Vec<Lifetime> = (0..10).map(|at| Lifetime { bytes: 1000, first: at, last: at + 1 }).collect();
        let arena = place(&chain);
        assert_eq!((arena.peak, arena.lower_bound, arena.sum), (2048, 2048, 10240));
    }

    proptest! {
        #[test]
        fn tensors_that_live_at_once_never_overlap(
            tensors in prop::collection::vec((0u64..5000, 0usize..40, 0usize..8), 0..60),
        ) {
            let tensors: Vec<Lifetime> = tensors.into_iter()
                .map(|(bytes, first, length)| Lifetime { bytes, first, last: first + length }).collect();
            let arena = place(&tensors);
            for (at, a) in tensors.iter().enumerate() {
                prop_assert!(arena.offsets[at] + a.bytes <= arena.peak || a.bytes == 0);
                prop_assert_eq!(arena.offsets[at] % ALIGNMENT, 0);
                for (other, b) in tensors.iter().enumerate().skip(at + 1) {
                    let apart = a.last < b.first || b.last < a.first;
                    let (x, y) = (arena.offsets[at], arena.offsets[other]);
                    prop_assert!(apart || x + a.bytes <= y || y + b.bytes <= x || a.bytes == 0 || b.bytes == 0);
                }
            }
            prop_assert!(arena.lower_bound <= arena.peak && arena.peak <= arena.sum);
        }
    }
}
