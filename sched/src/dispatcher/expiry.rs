//! When the next request becomes hopeless, over all queues.

use super::queue::QueueIndex;
use crate::Instant;

/// One instant per queue, and the earliest of them: a tournament tree over dense indexes.
///
/// Set is O(log queues), the earliest is one load, nothing is allocated but by [`Expiry::reserve`]. Preferred to a heap
/// because every queue has exactly one entry, whose place is its index.
#[derive(Debug, Default)]
pub struct Expiry {
    /// A complete binary tree, root at 1; leaves from `nodes.len() / 2`. A parent is the earlier of its children.
    nodes: Vec<Instant>,
}

impl Expiry {
    /// Makes room for indexes below `queues`.
    pub fn reserve(&mut self, queues: usize) {
        let leaves = self.nodes.len() / 2;
        if queues <= leaves {
            return;
        }
        let grown = queues.next_power_of_two();
        let mut nodes = vec![Instant::MAX; 2 * grown];
        nodes[grown..grown + leaves].copy_from_slice(&self.nodes[leaves..]);
        for node in (1..grown).rev() {
            nodes[node] = nodes[2 * node].min(nodes[2 * node + 1]);
        }
        self.nodes = nodes;
    }

    pub fn set(&mut self, queue: QueueIndex, at: Instant) {
        let mut node = self.nodes.len() / 2 + queue.0 as usize;
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

    pub fn of(&self, queue: QueueIndex) -> Instant {
        self.nodes[self.nodes.len() / 2 + queue.0 as usize]
    }

    /// [`Instant::MAX`] when no queue has one.
    pub fn earliest(&self) -> Instant {
        self.nodes.get(1).copied().unwrap_or(Instant::MAX)
    }

    /// The first queue that is due at `now`.
    pub fn due(&self, now: Instant) -> Option<QueueIndex> {
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
        Some(QueueIndex((node - leaves) as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_plain_array(sets in prop::collection::vec((0usize..40, 0u64..100, 0u64..100), 1..200)) {
            let mut expiry = Expiry::default();
            let mut plain: Vec<Instant> = Vec::new();
            for (index, at, now) in sets {
                if index >= plain.len() {
                    plain.resize(index + 1, Instant::MAX);
                    expiry.reserve(plain.len());
                }
                plain[index] = Instant(at);
                expiry.set(QueueIndex(index as u32), Instant(at));
                prop_assert_eq!(Some(expiry.earliest()), plain.iter().copied().min());
                let due = plain.iter().position(|&at| at <= Instant(now)).map(|index| QueueIndex(index as u32));
                prop_assert_eq!(expiry.due(Instant(now)), due);
            }
        }
    }

    #[test]
    fn without_queues_nothing_is_due() {
        let expiry = Expiry::default();
        assert_eq!((expiry.earliest(), expiry.due(Instant(5))), (Instant::MAX, None));
    }
}
