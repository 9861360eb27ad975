//! The runs of queries that a client has open.

use crate::wire::{Reason, Submission, run_id};
use std::collections::VecDeque;

/// One run of a query that is open. Of another connection, or ended, it is of no further use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunId {
    slot: u32,
    generation: u32,
}

/// A call of a run, as a request carries it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) run: RunId,
    pub(super) stage: u16,
    /// Index of its query.
    pub(super) query: usize,
}

/// The runs of a connection, by slot: as many as there are request slots. O(1) each; allocates nothing per run.
#[derive(Debug)]
pub(super) struct Runs {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// What the ring had no room for. It leaves in order before anything else does, and while it is not empty no run begins, so
    /// it holds at most one entry for each run.
    pub(super) unsent: VecDeque<Submission>,
    /// Indexes of queries that the daemon serves no longer, or anew: they are opened again when they are next asked for.
    pub(super) stale: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Above zero; of the run that has the slot, or had it last.
    generation: u32,
    /// Index of the query while the run is open.
    query: Option<usize>,
}

impl Runs {
    pub(super) fn new(slots: u32) -> Runs {
        let entry = Entry { generation: 0, query: None };
        Runs {
            entries: vec![entry; slots as usize],
            free: (0..slots).rev().collect(),
            unsent: VecDeque::with_capacity(slots as usize),
            stale: Vec::new(),
        }
    }

    /// Those of a new connection: none is open, and none that was is mistaken for one that will be.
    pub(super) fn renewed(&self, slots: u32) -> Runs {
        let mut runs = Runs::new(slots);
        let last = self.entries.iter().map(|entry| entry.generation).max().unwrap_or(0);
        runs.entries.iter_mut().for_each(|entry| entry.generation = last);
        runs
    }

    pub(super) fn begin(&mut self, query: usize) -> Option<RunId> {
        let slot = self.free.pop()?;
        let entry = &mut self.entries[slot as usize];
        (entry.generation, entry.query) = (entry.generation.wrapping_add(1).max(1), Some(query));
        Some(RunId { slot, generation: entry.generation })
    }

    /// The query of a run that is open.
    pub(super) fn query(&self, run: RunId) -> Option<usize> {
        self.entries.get(run.slot as usize).filter(|entry| entry.generation == run.generation)?.query
    }

    /// A call was answered so: its query may have to be opened again.
    pub(super) fn answered(&mut self, call: Option<Call>, reason: Reason) {
        if let Some(Call { query, .. }) = call
            && reason == Reason::Unloaded
            && !self.stale.contains(&query)
        {
            self.stale.push(query);
        }
    }

    /// False when it has ended already.
    pub(super) fn end(&mut self, run: RunId) -> bool {
        let open = self.query(run).is_some();
        if open {
            self.entries[run.slot as usize].query = None;
            self.free.push(run.slot);
        }
        open
    }
}

impl RunId {
    /// As submissions name it.
    pub(super) fn id(self) -> u64 {
        run_id(self.slot, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_known_until_it_ends_and_never_mistaken_for_another_in_its_slot() {
        let mut runs = Runs::new(2);
        let mut seen = std::collections::HashSet::new();
        let (mut open, mut ended) = (Vec::new(), Vec::new());
        for round in 0..1000usize {
            match runs.begin(round % 3) {
                Some(run) => {
                    assert!(seen.insert(run.id()), "{run:?} was there before");
                    open.push((run, round % 3));
                }
                None => {
                    assert_eq!(open.len(), 2);
                    let (run, _) = open.remove(round % 2);
                    assert!(runs.end(run) && !runs.end(run));
                    ended.push(run);
                }
            }
            assert!(open.iter().all(|&(run, query)| runs.query(run) == Some(query)));
            assert!(ended.iter().all(|&run| runs.query(run).is_none()));
            if round == 500 {
                // Nor for one before a reconnect.
                runs = runs.renewed(2);
                ended.extend(open.drain(..).map(|(run, _)| run));
            }
        }
    }
}
