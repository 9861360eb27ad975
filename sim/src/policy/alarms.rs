//! One moment per index, and the earliest of them.

use crate::Nanos;
use std::collections::BTreeSet;

/// Alarms by index. Setting one is O(log n), the earliest is the tree's first.
pub struct Alarms {
    at: Vec<Nanos>,
    order: BTreeSet<(Nanos, usize)>,
}

impl Alarms {
    pub fn new(count: usize) -> Alarms {
        Alarms { at: vec![Nanos::MAX; count], order: BTreeSet::new() }
    }

    /// [`Nanos::MAX`] cancels it.
    pub fn set(&mut self, index: usize, at: Nanos) {
        let before = std::mem::replace(&mut self.at[index], at);
        if before == at {
            return;
        }
        if before < Nanos::MAX {
            self.order.remove(&(before, index));
        }
        if at < Nanos::MAX {
            self.order.insert((at, index));
        }
    }

    /// [`Nanos::MAX`] when none is set.
    pub fn earliest(&self) -> Nanos {
        self.order.first().map_or(Nanos::MAX, |&(at, _)| at)
    }

    /// Takes the earliest index that is due at `now`, and cancels it.
    pub fn due(&mut self, now: Nanos) -> Option<usize> {
        let &(at, index) = self.order.first().filter(|(at, _)| *at <= now)?;
        self.order.remove(&(at, index));
        self.at[index] = Nanos::MAX;
        Some(index)
    }
}
