//! Whether a pool's devices suffice, found by playing it.
//!
//! Playing shows some phases of the arrivals, for some time; a plan promises that no request is late in others. So what is asked
//! is not that none was late, but that no batch came close. Nor is a short time enough: a pool that is too full drifts from
//! batches that wait a little to batches that are cut short, which take more time for each request, and then stays there.

use super::super::ArrivalProcess;
use super::super::load::Load;
use super::super::play::{self, Arrivals, Member, Played, Tally};

/// What a pool is played with, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    /// Whether evenly spaced requests must all be in time. If not, 99 % of them.
    pub every: bool,
    /// Besides evenly spaced arrivals.
    pub by_chance: Arrivals,
    pub length: Length,
}

/// How long a pool is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// To compare plans.
    Quick,
    /// To change a plan that runs, while others wait for it.
    Brief,
    /// To hand a plan out.
    Thorough,
}

/// What a length comes to.
struct Extent {
    /// Part of what a plan is judged by that is played in each draw of the phases.
    part: f64,
    /// Requests that are played in all the draws at most; then a draw has fewer, or there are fewer draws.
    requests_max: f64,
    draws: std::ops::RangeInclusive<u64>,
    /// By what the least that has to be left to a batch is larger: in less time less is seen.
    caution: f64,
    /// Part of the requests by chance that a plan is judged by which are played: when all come so, and when only those of slow
    /// members do, which takes less time.
    chance: f64,
    slow_by_chance: f64,
}

impl Length {
    fn extent(self) -> Extent {
        match self {
            Length::Quick => {
                Extent { part: 0.25, requests_max: 2e5, draws: 1..=4, caution: 1.0, chance: 0.2, slow_by_chance: 0.2 }
            }
            Length::Brief => {
                Extent { part: 0.5, requests_max: 4e5, draws: 1..=4, caution: 1.0, chance: 0.2, slow_by_chance: 0.2 }
            }
            Length::Thorough => {
                Extent { part: 0.75, requests_max: 2e6, draws: 4..=40, caution: 1.0, chance: 1.5, slow_by_chance: 3.0 }
            }
        }
    }
}

/// What has to be left to a batch that waits for a device, where none may be late, in times of the mean latency of the
/// batches: so much, and so much more divided by the devices, but no more than that. How little is left varies by about
/// the mean latency over the devices from one stretch of time to another.
const SPARE: f64 = 0.08;
const SPARE_DEVICE: f64 = 2.5;
const SPARE_MAX: f64 = 0.25;
/// Requests that are played at least.
const REQUESTS_MIN: f64 = 1e4;
/// Draws of phases when one request in a hundred may be late.
const DRAWS_MISSING: u64 = 3;
/// The same of those by chance that it is not judged by.
const CHANCE: f64 = 0.2;
/// Part of the requests whose loss can't be mended by other batches.
const HOPELESS: f64 = 0.02;
/// The same where none may be lost.
const HOPELESS_EVERY: f64 = 0.002;
/// What members may miss in the playing: less than one in a hundred, so that the plan holds for other arrivals too.
const MISSES: f64 = 0.003;
/// Requests over which misses are counted together, of members that are alike.
const PLAYED_ALIKE: u64 = 1_500;

impl Trial {
    /// For a plan for `loads`.
    pub(super) fn of(loads: &[Load], length: Length) -> Trial {
        let every = loads.iter().all(|load| load.arrivals == ArrivalProcess::Even);
        let by_chance = if every { Arrivals::SlowByChance } else { Arrivals::Poisson };
        Trial { every, by_chance, length }
    }

    /// Positions of `members` that miss too much, or come too close to it; `None` when the pool is hopelessly small.
    pub(super) fn short_of_time(self, members: &[Member], devices: usize) -> Option<Vec<usize>> {
        let extent = self.length.extent();
        let even = (extent.part * play::even_requests(members)).min(extent.requests_max / *extent.draws.start() as f64);
        let even = even.max(REQUESTS_MIN);
        let most = if self.every { *extent.draws.end() } else { DRAWS_MISSING };
        let draws = ((extent.requests_max / even) as u64).min(most);
        let spare = (SPARE + SPARE_DEVICE / devices as f64).min(SPARE_MAX) * extent.caution;
        let spare_min = spare * play::mean_latency(members);
        let play = |arrivals, seed, requests: f64, hopeless| {
            play::pool(members, devices, arrivals, seed, requests as u64, (hopeless * requests) as u64)
        };
        let hopeless = if self.every { HOPELESS_EVERY } else { HOPELESS };
        for draw in 0..draws {
            let played = play(Arrivals::Even, devices as u64 + draw, even, hopeless)?;
            let short = match self.every {
                true => too_close(&played, spare_min),
                false => missing_too_much(members, &played.tallies),
            };
            if !short.is_empty() {
                return Some(short);
            }
        }
        let promised = match self.every {
            true => (Arrivals::SlowByChance, extent.slow_by_chance),
            false => (Arrivals::Poisson, extent.chance),
        };
        let parts = [promised, (self.by_chance, CHANCE)];
        let tried = if self.by_chance == promised.0 { 1 } else { 2 };
        for (seed, &(arrivals, part)) in (devices as u64 + draws..).zip(&parts[..tried]) {
            let requests = (part * play::chance_requests(members)).max(REQUESTS_MIN);
            let mut short = missing_too_much(members, &play(arrivals, seed, requests, HOPELESS)?.tallies);
            if arrivals == Arrivals::SlowByChance {
                short.retain(|&position| members[position].is_slow());
            }
            if !short.is_empty() {
                return Some(short);
            }
        }
        Some(Vec::new())
    }
}

/// Members of which a request was late, or a batch so nearly that in other phases one may be.
fn too_close(played: &Played, spare_min: f64) -> Vec<usize> {
    let late = |position: &usize| {
        let Tally { arrived, in_time } = played.tallies[*position];
        in_time < arrived || (played.spares[*position] as f64) < spare_min
    };
    (0..played.spares.len()).filter(late).collect()
}

/// Members that miss too much: each alone, or, since some have few requests, together with those of about the same slack.
fn missing_too_much(members: &[Member], tallies: &[Tally]) -> Vec<usize> {
    let misses = |tally: &Tally| (tally.arrived - tally.in_time) as f64;
    // Alone a member is given a deviation.
    let allowed = |tally: &Tally| tally.arrived as f64 * MISSES;
    let excess = |tally: &Tally| misses(tally) > allowed(tally) + allowed(tally).sqrt().max(1.0);
    let mut found: Vec<usize> = (0..members.len()).filter(|&position| excess(&tallies[position])).collect();
    let mut alike: Vec<usize> = (0..members.len()).collect();
    let slack = |member: &Member| member.slo - member.profile.nanos(1).expect("every profile has a batch of one");
    alike.sort_by_key(|&position| (slack(&members[position]), position));
    let (mut sum, mut first) = (Tally::default(), 0);
    for (rank, &position) in alike.iter().enumerate() {
        sum.arrived += tallies[position].arrived;
        sum.in_time += tallies[position].in_time;
        if sum.arrived >= PLAYED_ALIKE || rank + 1 == alike.len() {
            if misses(&sum) > MISSES * sum.arrived.max(PLAYED_ALIKE) as f64 {
                found.extend(alike[first..=rank].iter().filter(|&&position| misses(&tallies[position]) > 0.0));
            }
            (sum, first) = (Tally::default(), rank + 1);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}
