//! The earliest of many moments, one per index.

use crate::Instant;

/// One instant per index, and the earliest of them: a tournament tree over dense indexes.
///
/// Set is O(log indexes), the earliest is one load, nothing is allocated but by [`Earliest::reserve`]. Preferred to a heap
/// because every index has exactly one entry, whose place is its index. [`Instant::MAX`]: none.
#[derive(Debug, Default)]
pub struct Earliest {
    /// A complete binary tree, root at 1; leaves from `nodes.len() / 2`. A parent is the earlier of its children.
    nodes: Vec<Instant>,
}

impl Earliest {
    /// Makes room for indexes below `indexes`.
    pub fn reserve(&mut self, indexes: usize) {
        let leaves = self.nodes.len() / 2;
        if indexes <= leaves {
            return;
        }
        let grown = indexes.next_power_of_two();
        let mut nodes = vec![Instant::MAX; 2 * grown];
        nodes[grown..grown + leaves].copy_from_slice(&self.nodes[leaves..]);
        for node in (1..grown).rev() {
            nodes[node] = nodes[2 * node].min(nodes[2 * node + 1]);
        }
        self.nodes = nodes;
    }

    pub fn set(&mut self, index: usize, at: Instant) {
        let mut node = self.nodes.len() / 2 + index;
        self.nodes[node] = at;
        while node > 1 {
            node /= 2;
            let earlier = self.nodes[2 * node].min(self.nodes[2 * node + 1]);
            if self.nodes[node] == earlier {
                break;
            }
            self.nodes[node] = earlier;
        }
    }

    pub fn of(&self, index: usize) -> Instant {
        self.nodes[self.nodes.len() / 2 + index]
    }

    /// [`Instant::MAX`] when there is none.
    pub fn earliest(&self) -> Instant {
        self.nodes.get(1).copied().unwrap_or(Instant::MAX)
    }

    /// The index with the earliest moment, the first of several.
    pub fn first(&self) -> Option<usize> {
        self.due(self.earliest())
    }

    /// The first index that is due at `now`.
    pub fn due(&self, now: Instant) -> Option<usize> {
        // An entry that is never due is not due at the end of time either.
        let now = now.min(Instant(u64::MAX - 1));
        if self.earliest() > now {
            return None;
        }
        let leaves = self.nodes.len() / 2;
        let mut node = 1;
        while node < leaves {
            node *= 2;
            if self.nodes[node] > now {
                node += 1;
            }
        }
        Some(node - leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_array(sets in prop::collection::vec((0usize..40, 0u64..100, 0u64..100), 1..200)) {
            let mut earliest = Earliest::default();
            let mut plain: Vec<Instant> = Vec::new();
            for (index, at, now) in sets {
                if index >= plain.len() {
                    plain.resize(index + 1, Instant::MAX);
                    earliest.reserve(plain.len());
                }
                plain[index] = Instant(at);
                earliest.set(index, Instant(at));
                prop_assert_eq!(Some(earliest.earliest()), plain.iter().copied().min());
                let due = plain.iter().position(|&at| at <= Instant(now));
                prop_assert_eq!(earliest.due(Instant(now)), due);
            }
        }
    }

    #[test]
    fn without_queues_nothing_is_due() {
        let earliest = Earliest::default();
        assert_eq!((earliest.earliest(), earliest.due(Instant(5))), (Instant::MAX, None));
    }
}
