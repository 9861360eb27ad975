//! The runs of queries that are open: what each has called, and until when it may be finished.

use rota_sched::{Instant, RequestId};

/// Index of a run that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunIndex(u32);

/// One run of a query.
#[derive(Clone, Debug)]
pub struct Run {
    /// Index of its query.
    pub query: u32,
    /// Slab key of its client.
    pub client: u32,
    /// The client's number for it.
    pub id: u64,
    /// When the daemon took its beginning from the ring.
    pub start: Instant,
    pub deadline: Instant,
    /// When it is given up if it was not finished.
    pub expires: Instant,
    /// By stage.
    pub stages: Vec<Count>,
    /// Its calls that wait or run; each knows its place here.
    pub calls: Vec<RequestId>,
    /// Its client makes no further calls.
    pub finished: bool,
    /// The worst that became of a call, but for being dropped, which ends the run.
    pub worst: Worst,
    /// When the last call so far was answered.
    pub answered: Instant,
    older: Option<RunIndex>,
    newer: Option<RunIndex>,
}

/// What a run has asked of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub calls: u32,
    /// Of these, answered ones.
    pub answered: u32,
    /// Items that they brought.
    pub items: u32,
    pub answered_items: u32,
    /// Calls that failed with a device that was lost and have not been made again; they are none of `calls`.
    pub lost: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worst {
    #[default]
    Answered,
    /// Withdrawn by the client.
    Cancelled,
    Failed,
}

/// All runs that are open, in a slab taken at start; an entry's lists keep their capacity, and the most recently freed entry is used
/// first. The runs of one query form a list by age, which is by expiry too: all have the same time. Everything is O(1).
#[derive(Debug)]
pub struct Runs {
    entries: Vec<Run>,
    free: Vec<u32>,
    /// By query: the oldest and the newest of its runs.
    ends: Vec<Option<(RunIndex, RunIndex)>>,
}

impl Runs {
    /// # Panics
    /// When `capacity` or `queries` is zero or not below 2³².
    pub fn new(capacity: u32, queries: u32) -> Runs {
        let empty = Run {
            query: 0,
            client: 0,
            id: 0,
            start: Instant(0),
            deadline: Instant(0),
            expires: Instant(0),
            stages: Vec::new(),
            calls: Vec::new(),
            finished: false,
            worst: Worst::Answered,
            answered: Instant(0),
            older: None,
            newer: None,
        };
        Runs {
            entries: vec![empty; capacity as usize],
            free: (0..capacity).rev().collect(),
            ends: vec![None; queries as usize],
        }
    }

    /// A run of `stages` stages that begins now; the caller fills in the rest. `None` when as many are open as there may be.
    pub fn open(&mut self, query: u32, stages: usize, start: Instant) -> Option<(RunIndex, &mut Run)> {
        let index = RunIndex(self.free.pop()?);
        let ends = &mut self.ends[query as usize];
        let older = ends.map(|(_, newest)| newest);
        *ends = Some((ends.map_or(index, |(oldest, _)| oldest), index));
        if let Some(older) = older {
            self[older].newer = Some(index);
        }
        let run = &mut self.entries[index.0 as usize];
        (run.query, run.start, run.answered, run.older, run.newer) = (query, start, start, older, None);
        (run.finished, run.worst) = (false, Worst::Answered);
        run.stages.clear();
        run.stages.resize(stages, Count::default());
        debug_assert!(run.calls.is_empty());
        Some((index, run))
    }

    /// Forgets a run, none of whose calls waits or runs any more.
    pub fn close(&mut self, index: RunIndex) {
        debug_assert!(!self.free.contains(&index.0) && self[index].calls.is_empty());
        let (query, older, newer) = (self[index].query as usize, self[index].older, self[index].newer);
        if let Some(older) = older {
            self[older].newer = newer;
        }
        if let Some(newer) = newer {
            self[newer].older = older;
        }
        let (oldest, newest) = self.ends[query].expect("a query with a run has ends");
        self.ends[query] = match (oldest == index, newest == index) {
            (true, true) => None,
            (true, false) => newer.map(|newer| (newer, newest)),
            (false, true) => older.map(|older| (oldest, older)),
            (false, false) => Some((oldest, newest)),
        };
        self.free.push(index.0);
    }

    /// The run of a query that began first.
    pub fn oldest(&self, query: u32) -> Option<RunIndex> {
        self.ends[query as usize].map(|(oldest, _)| oldest)
    }

    /// The oldest of all that were not finished within their time.
    pub fn expired(&self, now: Instant) -> Option<RunIndex> {
        let oldest = self.ends.iter().flatten().map(|&(oldest, _)| oldest);
        oldest.min_by_key(|&run| self[run].expires).filter(|&run| self[run].expires <= now)
    }

    /// When the next expires.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.ends.iter().flatten().map(|&(oldest, _)| self[oldest].expires).min()
    }

    pub fn count(&self) -> u32 {
        (self.entries.len() - self.free.len()) as u32
    }
}

impl std::ops::Index<RunIndex> for Runs {
    type Output = Run;
    fn index(&self, index: RunIndex) -> &Run {
        &self.entries[index.0 as usize]
    }
}

impl std::ops::IndexMut<RunIndex> for Runs {
    fn index_mut(&mut self, index: RunIndex) -> &mut Run {
        &mut self.entries[index.0 as usize]
    }
}

/// What a client's run slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    #[default]
    Free,
    Open(RunIndex),
    /// The run of this number is over, and the client does not know it yet: its calls are answered with why.
    Lost {
        id: u64,
        why: Lost,
    },
}

/// Why a run ended before its client finished it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It can no longer be answered in time.
    Late,
    /// It was not finished for long.
    Expired,
    /// A model of it was unloaded, or the query forgotten.
    Unloaded,
    /// It never was: as many were open as there may be.
    NoRoom,
}

impl Lost {
    /// For the client whose call it is.
    pub fn text(self) -> &'static str {
        match self {
            Lost::Late => "its query can no longer be answered in time",
            Lost::Expired => "its query's run was not finished within four times its SLO, or a second",
            Lost::Unloaded => "a model of its query was unloaded, or the query is no longer declared; open it again",
            Lost::NoRoom => "too many runs of queries are open (runs_max, runs_per_user)",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_query_are_known_by_age_whichever_end() {
        // Against a plain list, for every sequence of ends of five runs.
        for order in 0..5u32.pow(5) {
            let mut runs = Runs::new(5, 2);
            let mut list: Vec<RunIndex> = (0..5u64)
                .map(|age| {
                    let (index, run) = runs.open(1, 2, Instant(age)).expect("room");
                    run.expires = Instant(10 + age);
                    index
                })
                .collect();
            assert!(runs.open(0, 1, Instant(9)).is_none(), "all are taken");
            let mut order = order;
            while !list.is_empty() {
                assert_eq!((runs.oldest(1), runs.oldest(0)), (Some(list[0]), None));
                assert_eq!(runs.count(), list.len() as u32);
                let ages = std::iter::successors(runs.oldest(1), |&run| runs[run].newer);
                assert_eq!(ages.collect::<Vec<_>>(), list);
                assert_eq!(runs.expired(Instant(9)), None);
                assert_eq!(runs.expired(Instant(20)), Some(list[0]));
                assert_eq!(runs.next_expiry(), Some(runs[list[0]].expires));
                runs.close(list.remove(order as usize % list.len()));
                order /= 5;
            }
            assert_eq!((runs.count(), runs.next_expiry()), (0, None));
        }
    }
}
