//! Timetables played with Poisson arrivals.

use super::super::random::Random;
use crate::Profile;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

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
    pub period: u64,
    pub batch: u32,
    pub execution: u64,
    /// Indexes of the entrants that may use it, ascending or not.
    pub entrants: Vec<u32>,
}

/// What became of a session's requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub arrived: u64,
    pub in_time: u64,
}

struct Play<'a> {
    entrants: &'a [Entrant<'a>],
    /// Arrival times, oldest first, by entrant.
    waiting: Vec<VecDeque<u64>>,
    /// Entrants with waiting requests, in no order.
    busy: Vec<u32>,
    tallies: Vec<Tally>,
}

/// Plays `turns` until `requests` requests have come and every one is answered or lost.
///
/// At each turn the entrant whose oldest request has the earliest latest start runs; requests that can no longer be
/// answered in time are lost when their session is looked at. Cost: the arrivals, plus for each turn the entrants that
/// have work, of which there are few unless the turns can't keep up.
pub(in super::super) fn play(entrants: &[Entrant], turns: &[Turn], seed: u64, requests: u64) -> Vec<Tally> {
    let mut cumulative = Vec::with_capacity(entrants.len());
    let mut all = 0.0;
    for entrant in entrants {
        all += entrant.rate;
        cumulative.push(all);
    }
    let mut state = Play {
        entrants,
        waiting: vec![VecDeque::new(); entrants.len()],
        busy: Vec::new(),
        tallies: vec![Tally::default(); entrants.len()],
    };
    let mut due: BinaryHeap<Reverse<(u64, usize)>> =
        turns.iter().enumerate().map(|(index, turn)| Reverse((turn.first, index))).collect();
    if !(all > 0.0) || due.is_empty() {
        return state.tallies;
    }
    let may_use: Vec<Vec<bool>> = turns
        .iter()
        .map(|turn| {
            let mut may = vec![false; entrants.len()];
            turn.entrants.iter().for_each(|&entrant| may[entrant as usize] = true);
            may
        })
        .collect();
    let mut random = Random::new(seed);
    let mut left = requests;
    // Arrivals begin once every turn has begun.
    let mut arrival = turns.iter().map(|turn| turn.first).max().unwrap_or(0) as f64;
    let shortest = turns.iter().map(|turn| turn.period).min().unwrap_or(0).max(1);
    while left > 0 || !state.busy.is_empty() {
        if state.busy.is_empty() && due.peek().is_some_and(|next| arrival > (next.0.0 + SKIPPED * shortest) as f64) {
            due = due
                .into_iter()
                .map(|Reverse((at, index))| Reverse((first_from(arrival, at, &turns[index]), index)))
                .collect();
        }
        let Some(mut next) = due.peek_mut() else { break };
        let Reverse((now, index)) = *next;
        *next = Reverse((now.saturating_add(turns[index].period), index));
        drop(next);
        while left > 0 && arrival <= now as f64 {
            let pick = random.unit() * all;
            let entrant = cumulative.partition_point(|&sum| sum <= pick).min(entrants.len() - 1);
            state.arrive(entrant, arrival as u64);
            arrival += random.exponential(1e9 / all);
            left -= 1;
        }
        state.run(&turns[index], &may_use[index], now);
    }
    state.tallies
}

/// When `turn`, next due at `at`, first begins at `from` or later.
fn first_from(from: f64, at: u64, turn: &Turn) -> u64 {
    let missed = (from as u64).saturating_sub(at).div_ceil(turn.period.max(1));
    at.saturating_add(missed.saturating_mul(turn.period))
}

/// Periods of the shortest turn without work from which on they are skipped at once instead of one by one.
const SKIPPED: u64 = 16;

impl Play<'_> {
    fn arrive(&mut self, entrant: usize, at: u64) {
        self.tallies[entrant].arrived += 1;
        if self.waiting[entrant].is_empty() {
            self.busy.push(entrant as u32);
        }
        self.waiting[entrant].push_back(at);
    }

    fn run(&mut self, turn: &Turn, may_use: &[bool], now: u64) {
        let mut chosen: Option<(u64, u32)> = None;
        let mut at = 0;
        while let Some(&entrant) = self.busy.get(at) {
            let queue = &mut self.waiting[entrant as usize];
            let Entrant { slo, profile, .. } = self.entrants[entrant as usize];
            let single = profile.and_then(|profile| profile.nanos(1)).unwrap_or(u64::MAX);
            while queue.front().is_some_and(|&came| came.saturating_add(slo) < now.saturating_add(single)) {
                queue.pop_front();
            }
            let Some(&oldest) = queue.front() else {
                self.busy.swap_remove(at);
                continue;
            };
            at += 1;
            let latest = (oldest + slo).saturating_sub(single);
            if may_use[entrant as usize] && chosen.is_none_or(|best| (latest, entrant) < best) {
                chosen = Some((latest, entrant));
            }
        }
        if let Some((_, entrant)) = chosen {
            self.execute(entrant as usize, turn, now);
        }
    }

    /// One batch: the oldest requests that it can answer in time.
    fn execute(&mut self, entrant: usize, turn: &Turn, now: u64) {
        let Entrant { slo, profile, .. } = self.entrants[entrant];
        let profile = profile.expect("only entrants that take part have requests");
        let fits = profile.largest_within(std::time::Duration::from_nanos(turn.execution)).min(turn.batch) as usize;
        let queue = &mut self.waiting[entrant];
        loop {
            let taken = queue.len().min(fits);
            let Some(&oldest) = queue.front().filter(|_| taken > 0) else { break };
            let ends = now.saturating_add(profile.nanos(taken as u32).unwrap_or(u64::MAX));
            if oldest + slo < ends {
                queue.pop_front();
                continue;
            }
            queue.drain(..taken);
            self.tallies[entrant].in_time += taken as u64;
            break;
        }
        if queue.is_empty() {
            self.busy.retain(|&other| other as usize != entrant);
        }
    }
}
