//! Timetables played with arrivals.

use super::super::ArrivalProcess;
use super::super::random::Random;
use crate::Profile;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

/// A session that takes part.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Entrant<'a> {
    /// Items per second; zero when it does not take part.
    pub rate: f64,
    /// Nanoseconds.
    pub slo: u64,
    /// `Some` when it takes part.
    pub profile: Option<&'a Profile>,
}

impl Entrant<'_> {
    pub(in super::super) fn absent() -> Self {
        Entrant { rate: 0.0, slo: 0, profile: None }
    }
}

/// A slot that recurs; times in nanoseconds.
#[derive(Clone, Debug)]
pub(in super::super) struct Turn {
    pub first: u64,
    /// Above zero.
    pub period: u64,
    pub batch: u32,
    /// As long as the period: the slot never ends.
    pub length: u64,
    /// Indexes of the entrants that may use it. Of one alone it runs one batch, at its start; several run one batch
    /// after another, as long as each ends within the slot.
    pub entrants: Vec<u32>,
}

/// What became of a session's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub arrived: u64,
    pub in_time: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Opens,
    /// A batch in it ends.
    Ends,
}

struct Play<'a> {
    entrants: &'a [Entrant<'a>],
    turns: &'a [Turn],
    /// By turn and entrant.
    may_use: Vec<Vec<bool>>,
    due: BinaryHeap<Reverse<(u64, usize, Due)>>,
    /// By turn: when the slot that opened last closes.
    closes: Vec<u64>,
    /// Turns that are open and have nothing to do; some may have closed since.
    idle: Vec<usize>,
    /// Arrival times, oldest first, by entrant.
    waiting: Vec<VecDeque<u64>>,
    /// Entrants with waiting requests, in no order.
    busy: Vec<u32>,
    tallies: Vec<Tally>,
    /// Slots and batches so far.
    steps: u64,
}

/// Plays `turns` until `requests` requests have come and every one is answered or lost; `None` when that takes more than
/// `steps_max` slots and batches.
///
/// The entrant whose oldest request has the earliest latest start runs; requests that can no longer be answered in time
/// are lost when their session is looked at. Cost: the arrivals and the slots that open while there is work, each times
/// the entrants that have work, of which there are few unless the turns can't keep up.
pub(in super::super) fn play(
    entrants: &[Entrant],
    turns: &[Turn],
    arrivals: ArrivalProcess,
    seed: u64,
    requests: u64,
    steps_max: u64,
) -> Option<Vec<Tally>> {
    let mut state = Play::new(entrants, turns);
    if turns.is_empty() {
        return Some(state.tallies);
    }
    // Arrivals begin once every turn has opened.
    let begin = turns.iter().map(|turn| turn.first).max().unwrap_or(0);
    let mut source = Source::new(entrants, arrivals, seed, begin);
    let shortest = turns.iter().map(|turn| turn.period).min().unwrap_or(0);
    for _ in 0..requests {
        let Some((arrival, entrant)) = source.next().filter(|&(arrival, _)| arrival < HORIZON) else { break };
        let mut skipped = false;
        while state.next_due() <= arrival {
            if !skipped && state.busy.is_empty() && (arrival - state.next_due()) / SKIPPED > shortest {
                state.skip_to(arrival);
                skipped = true;
            }
            state.step();
            if state.steps > steps_max {
                return None;
            }
        }
        state.arrive(entrant, arrival);
    }
    while !state.busy.is_empty() && !state.due.is_empty() {
        state.step();
        // Nothing may open for those that are left: they are lost when their time has come.
        state.forget_hopeless(state.next_due());
        if state.steps > steps_max {
            return None;
        }
    }
    Some(state.tallies)
}

/// When requests come, nanoseconds, and whose they are.
enum Source<'a> {
    /// All streams are one, of which each request belongs to an entrant by chance.
    Poisson {
        random: Random,
        /// Sums of the rates up to each entrant.
        cumulative: Vec<f64>,
        at: f64,
    },
    /// Evenly spaced, at phases by chance.
    Even { entrants: &'a [Entrant<'a>], next: BinaryHeap<Reverse<(u64, usize)>> },
}

impl<'a> Source<'a> {
    fn new(entrants: &'a [Entrant<'a>], arrivals: ArrivalProcess, seed: u64, begin: u64) -> Source<'a> {
        let mut random = Random::new(seed);
        match arrivals {
            ArrivalProcess::Poisson => {
                let sums = entrants.iter().scan(0.0, |sum, entrant| {
                    *sum += entrant.rate;
                    Some(*sum)
                });
                Source::Poisson { random, cumulative: sums.collect(), at: begin as f64 }
            }
            ArrivalProcess::Even => {
                let first = |(index, entrant): (usize, &Entrant)| {
                    (entrant.rate > 0.0)
                        .then(|| Reverse((begin.saturating_add((random.unit() * 1e9 / entrant.rate) as u64), index)))
                };
                Source::Even { entrants, next: entrants.iter().enumerate().filter_map(first).collect() }
            }
        }
    }

    fn next(&mut self) -> Option<(u64, usize)> {
        match self {
            Source::Poisson { random, cumulative, at } => {
                let all = cumulative.last().copied().filter(|&all| all > 0.0)?;
                *at += random.exponential(1e9 / all);
                let pick = random.unit() * all;
                Some((*at as u64, cumulative.partition_point(|&sum| sum <= pick).min(cumulative.len() - 1)))
            }
            Source::Even { entrants, next } => {
                let mut first = next.peek_mut()?;
                let Reverse((at, entrant)) = *first;
                *first = Reverse((at.saturating_add((1e9 / entrants[entrant].rate) as u64), entrant));
                Some((at, entrant))
            }
        }
    }
}

/// Thirty-one years, nanoseconds: what comes later is not played. Sums of two such times do not overflow.
const HORIZON: u64 = 1_000_000_000_000_000_000;

/// Periods of the shortest turn without work from which on they are skipped at once instead of one by one.
const SKIPPED: u64 = 16;

impl<'a> Play<'a> {
    fn new(entrants: &'a [Entrant<'a>], turns: &'a [Turn]) -> Play<'a> {
        let may = |turn: &Turn| {
            let mut may = vec![false; entrants.len()];
            turn.entrants.iter().for_each(|&entrant| may[entrant as usize] = true);
            may
        };
        Play {
            entrants,
            turns,
            may_use: turns.iter().map(may).collect(),
            due: turns.iter().enumerate().map(|(index, turn)| Reverse((turn.first, index, Due::Opens))).collect(),
            closes: vec![0; turns.len()],
            idle: Vec::new(),
            waiting: vec![VecDeque::new(); entrants.len()],
            busy: Vec::new(),
            tallies: vec![Tally::default(); entrants.len()],
            steps: 0,
        }
    }

    fn next_due(&self) -> u64 {
        self.due.peek().map_or(u64::MAX, |Reverse((at, ..))| *at)
    }

    /// Leaves out the slots that open and close before `now`, while no work waits.
    fn skip_to(&mut self, now: u64) {
        let turns = self.turns;
        let later = std::mem::take(&mut self.due).into_iter().map(|Reverse((at, index, due))| {
            let missed = match due {
                Due::Opens => now.saturating_sub(at) / turns[index].period,
                Due::Ends => 0,
            };
            Reverse((at.saturating_add(missed.saturating_mul(turns[index].period)), index, due))
        });
        self.due = later.collect();
    }

    fn step(&mut self) {
        let Some(Reverse((now, index, due))) = self.due.pop() else { return };
        self.steps += 1;
        let turn = &self.turns[index];
        if due == Due::Opens {
            if turn.length >= turn.period && turn.entrants.len() > 1 {
                self.closes[index] = u64::MAX;
            } else {
                self.closes[index] = now.saturating_add(turn.length);
                self.due.push(Reverse((now.saturating_add(turn.period), index, Due::Opens)));
            }
        } else if turn.entrants.len() == 1 {
            return;
        }
        if !self.run(index, now) && turn.entrants.len() > 1 && !self.idle.contains(&index) {
            self.idle.push(index);
        }
    }

    fn arrive(&mut self, entrant: usize, now: u64) {
        self.tallies[entrant].arrived += 1;
        if self.waiting[entrant].is_empty() {
            self.busy.push(entrant as u32);
        }
        self.waiting[entrant].push_back(now);
        let single = self.single(entrant);
        let closes = &self.closes;
        self.idle.retain(|&index| closes[index] > now);
        // Of the open slots that are long enough the one that closes first: the others may still serve longer work.
        let open = self
            .idle
            .iter()
            .enumerate()
            .filter(|&(_, &index)| self.may_use[index][entrant] && now.saturating_add(single) <= closes[index]);
        if let Some((position, &index)) = open.min_by_key(|&(_, &index)| (closes[index], index)) {
            self.idle.swap_remove(position);
            if !self.run(index, now) {
                self.idle.push(index);
            }
        }
    }

    /// Starts a batch; false when there is none to start.
    fn run(&mut self, index: usize, now: u64) -> bool {
        self.forget_hopeless(now);
        let left = self.closes[index].saturating_sub(now);
        let mut chosen: Option<(u64, u32)> = None;
        for &entrant in &self.busy {
            let single = self.single(entrant as usize);
            let oldest = self.waiting[entrant as usize][0];
            let latest = oldest.saturating_add(self.entrants[entrant as usize].slo).saturating_sub(single);
            let may = self.may_use[index][entrant as usize] && single <= left;
            if may && chosen.is_none_or(|best| (latest, entrant) < best) {
                chosen = Some((latest, entrant));
            }
        }
        let Some((_, entrant)) = chosen else { return false };
        let took = self.execute(entrant as usize, index, now, left);
        self.due.push(Reverse((now.saturating_add(took), index, Due::Ends)));
        true
    }

    fn forget_hopeless(&mut self, now: u64) {
        let mut at = 0;
        while let Some(&entrant) = self.busy.get(at) {
            let (single, slo) = (self.single(entrant as usize), self.entrants[entrant as usize].slo);
            let queue = &mut self.waiting[entrant as usize];
            while queue.front().is_some_and(|&came| came.saturating_add(slo) < now.saturating_add(single)) {
                queue.pop_front();
            }
            if queue.is_empty() {
                self.busy.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// One batch of the oldest requests. Returns how long it takes.
    ///
    /// In a slot of its own a session drops requests that would make the batch smaller: it has no other turn in this
    /// period. In a shared slot the batch is as large as the oldest can bear: the rest's turn comes next.
    fn execute(&mut self, entrant: usize, index: usize, now: u64, left: u64) -> u64 {
        let Entrant { slo, profile, .. } = self.entrants[entrant];
        let profile = profile.expect("only entrants that take part have requests");
        let queue = &mut self.waiting[entrant];
        let turn = &self.turns[index];
        let batch_ends = |waiting: usize| profile.nanos(turn.batch.min(waiting as u32)).unwrap_or(u64::MAX);
        while turn.entrants.len() == 1
            && queue.len() > 1
            && queue[0].saturating_add(slo) < now.saturating_add(batch_ends(queue.len()))
        {
            queue.pop_front();
        }
        let patience = queue[0].saturating_add(slo).saturating_sub(now).min(left);
        let fits = profile.largest_within(Duration::from_nanos(patience)).min(turn.batch);
        let taken = queue.len().min(fits as usize);
        queue.drain(..taken);
        self.tallies[entrant].in_time += taken as u64;
        if queue.is_empty() {
            self.busy.retain(|&other| other as usize != entrant);
        }
        profile.nanos(taken as u32).expect("a batch of one fits, and no more than is profiled is taken")
    }

    /// ℓ(1) of an entrant.
    fn single(&self, entrant: usize) -> u64 {
        self.entrants[entrant].profile.and_then(|profile| profile.nanos(1)).unwrap_or(u64::MAX)
    }
}
