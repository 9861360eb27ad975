//! Slow sessions share slots.
//!
//! A session that brings less than one request per L − ℓ(1) would need a slot of its own every L − ℓ(1) nevertheless, and
//! mostly leave it empty; one that brings a few wastes what rounding its batch up takes. So slow sessions share whole devices, and what mixed devices leave of their periods: a shared
//! slot runs whichever member has work, one batch after another. How many whole devices it takes is found by playing
//! the slots with Poisson arrivals until no member misses more than one request in a hundred.
//!
//! With limited memory a device holds only so many models: then the members are divided into pools, each of which fits a
//! device's memory and is sized alone.

use super::super::ArrivalProcess;
use super::super::bound;
use super::super::load::Load;
use super::super::validity::{Entrant, Tally, Turn, play};
use super::unit::Unit;
use std::time::Duration;

/// Slots that members share.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    /// Indexes into the loads, by falling ℓ(1).
    pub members: Vec<usize>,
    /// Whole devices.
    pub devices: usize,
    pub holes: Vec<Hole>,
}

/// The end of a mixed device's period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hole {
    pub unit: usize,
    pub device: usize,
    pub offset: u64,
    pub length: u64,
    phase: u64,
    pub period: u64,
}

/// The period of a whole device: its one slot is as long, so it never ends, and the period means nothing.
pub(super) const WHOLE: u64 = 1_000_000_000;
/// Items that a batch of a shared slot may have, at most: slow sessions seldom have more waiting.
const BATCH_MAX: u32 = 8;
/// How surely a pool has to be large enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// To compare plans.
    Quick,
    /// To hand out.
    Thorough,
}

impl Trial {
    /// Requests that are played, one round after another.
    fn rounds(self) -> &'static [u64] {
        match self {
            Trial::Quick => &[10_000],
            Trial::Thorough => &[10_000, 60_000],
        }
    }
}

/// A session is slow when fewer of its requests come while one can wait.
const WAITS_MAX: f64 = 4.0;
/// Requests over which misses are counted together, of members that are alike.
const PLAYED_ALIKE: u64 = 1_500;
/// What members may miss in the playing: less than one in a hundred, so that the plan holds for other arrivals too.
const MISSES: f64 = 0.007;
/// Holes of a smaller part of their period are left to the dispatcher.
const HOLE_PART: f64 = 0.04;
/// Slots and batches for each request and turn that are played at most. Only holes of very different periods, for
/// sessions that have hours to wait, take more: they are refused, and a whole device is taken instead.
const STEPS_EACH: u64 = 16;
/// Holes that a pool uses at most, the largest first.
const HOLES_MAX: usize = 64;

/// Whether the session costs less in a pool that is used to `utilisation` than with slots of its own.
pub(super) fn prefers(load: &Load, utilisation: f64) -> bool {
    let waits = load.rate * (load.slo - load.latency(1)) as f64 / 1e9;
    waits < WAITS_MAX && load.rate * load.latency(1) as f64 / 1e9 < utilisation * load.share
}

/// `slow` sessions, by falling ℓ(1), in groups whose models fit a device's memory together.
pub(super) fn groups(loads: &[Load], mut slow: Vec<usize>, memory: Option<u64>) -> Vec<Vec<usize>> {
    slow.sort_by_key(|&index| (std::cmp::Reverse(loads[index].latency(1)), index));
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let (mut models, mut bytes) = (std::collections::BTreeSet::new(), 0u64);
    for index in slow {
        let load = &loads[index];
        let added = if models.contains(&load.model) { 0 } else { load.memory };
        match groups.last_mut().filter(|_| memory.is_none_or(|memory| bytes.saturating_add(added) <= memory)) {
            Some(group) => group.push(index),
            None => {
                groups.push(vec![index]);
                models.clear();
                bytes = 0;
            }
        }
        if models.insert(load.model) {
            bytes = bytes.saturating_add(load.memory);
        }
    }
    groups
}

impl Pool {
    /// For two `members` or more (one alone has nobody to share with), by falling ℓ(1), with as few whole devices as they
    /// need beside what the units leave.
    ///
    /// It ends: with a device for each request that can wait or run at once, every request starts when it comes.
    pub(super) fn sized(loads: &[Load], members: Vec<usize>, units: &[Unit], trial: Trial) -> Pool {
        assert!(members.len() > 1, "a pool of {} members shares nothing", members.len());
        let work: f64 = members.iter().map(|&index| bound::devices(&loads[index])).sum();
        let holes = holes(loads, &members, units);
        let lent: f64 = holes.iter().map(|hole| hole.length as f64 / hole.period as f64).sum();
        // Chance batches and the one request in a hundred must not make the plan go below the bound of plans that answer all.
        let mut pool = Pool { members, devices: (work - lent).max(0.0).ceil() as usize, holes };
        while !trial.rounds().iter().zip(1..).all(|(&requests, seed)| pool.holds(loads, seed, requests)) {
            pool.devices += 1;
        }
        pool
    }
}

/// What the units leave of their periods, the largest parts first.
fn holes(loads: &[Load], members: &[usize], units: &[Unit]) -> Vec<Hole> {
    let mut holes = Vec::new();
    // Half of the members may use a hole, and two at least, or it is not worth its place in the timetable.
    let wanted = loads[members[(members.len() / 2).min(members.len() - 2)]].latency(1);
    for (unit, built) in units.iter().enumerate() {
        for (device, member) in built.devices.iter().enumerate() {
            let length = built.period - member.used;
            if length >= wanted && length as f64 >= HOLE_PART * built.period as f64 {
                let (offset, phase, period) = (member.used, member.phase, built.period);
                holes.push(Hole { unit, device, offset, length, phase, period });
            }
        }
    }
    let part = |hole: &Hole| hole.length as f64 / hole.period as f64;
    holes.sort_by(|a, b| part(b).total_cmp(&part(a)).then((a.unit, a.device).cmp(&(b.unit, b.device))));
    holes.truncate(HOLES_MAX);
    holes
}

impl Pool {
    /// Members that may use a slot of this length: a tail of them, since they stand by falling ℓ(1).
    pub(super) fn users(&self, loads: &[Load], length: u64) -> &[usize] {
        let longer = self.members.partition_point(|&index| loads[index].latency(1) > length);
        &self.members[longer..]
    }

    /// The largest batch that all users of a slot of this length have profiled and that fits it.
    pub(super) fn batch(&self, loads: &[Load], length: u64) -> u32 {
        let fits = |&index: &usize| loads[index].profile.largest_within(Duration::from_nanos(length));
        self.users(loads, length).iter().map(fits).fold(BATCH_MAX, u32::min)
    }

    /// By position of a member: the part of the time in which it may use slots, summed over them. Its rate is spread over
    /// them by this part.
    pub(super) fn choices(&self, loads: &[Load]) -> Vec<f64> {
        let mut choices = vec![self.devices as f64; self.members.len()];
        for hole in &self.holes {
            let first = self.members.len() - self.users(loads, hole.length).len();
            for choice in &mut choices[first..] {
                *choice += hole.length as f64 / hole.period as f64;
            }
        }
        choices
    }

    fn turns(&self, loads: &[Load]) -> Vec<Turn> {
        let turn = |first: u64, period: u64, length: u64| {
            let users = self.users(loads, length).len();
            let entrants = (self.members.len() - users..self.members.len()).map(|position| position as u32).collect();
            Turn { first, period, batch: self.batch(loads, length), length, entrants }
        };
        let whole = (0..self.devices).map(|_| turn(0, WHOLE, WHOLE));
        whole.chain(self.holes.iter().map(|hole| turn(hole.phase + hole.offset, hole.period, hole.length))).collect()
    }

    /// Plays the slots with both kinds of arrivals.
    fn holds(&self, loads: &[Load], seed: u64, requests: u64) -> bool {
        let turns = self.turns(loads);
        // None may depend on luck to find a slot at all.
        let reaches = |&index: &usize| {
            let (slack, single) = (loads[index].slo - loads[index].latency(1), loads[index].latency(1));
            self.holes.iter().any(|hole| hole.length >= single && hole.period - hole.length + single <= slack)
        };
        let all_served = self.devices > 0 || self.members.iter().all(reaches);
        let arrivals = [ArrivalProcess::Poisson, ArrivalProcess::Even];
        all_served && arrivals.iter().all(|&arrivals| self.holds_with(loads, &turns, arrivals, seed, requests))
    }

    /// Plays the slots; members are judged alone, and, since some have few requests, together with those of about the
    /// same slack.
    fn holds_with(&self, loads: &[Load], turns: &[Turn], arrivals: ArrivalProcess, seed: u64, requests: u64) -> bool {
        // A member with hardly any requests would not show: it is played with a tenth of the mean rate at least.
        let floor = self.members.iter().map(|&index| loads[index].rate).sum::<f64>() / self.members.len() as f64 / 10.0;
        let entrant = |&index: &usize| {
            let load = &loads[index];
            Entrant { rate: load.rate.max(floor), slo: load.slo, profile: Some(load.profile) }
        };
        let entrants: Vec<Entrant> = self.members.iter().map(entrant).collect();
        let steps_max = STEPS_EACH * requests * (turns.len() as u64 + 1);
        let Some(tallies) = play(&entrants, turns, arrivals, seed, requests, steps_max) else { return false };
        // Alone a member is given two deviations.
        let misses = |tally: &Tally| (tally.arrived - tally.in_time) as f64;
        let allowed = |tally: &Tally| tally.arrived as f64 * MISSES;
        if tallies.iter().any(|tally| misses(tally) > allowed(tally) + 2.0 * allowed(tally).sqrt().max(1.0)) {
            return false;
        }
        let mut alike: Vec<usize> = (0..self.members.len()).collect();
        let slack = |position: usize| loads[self.members[position]].slo - loads[self.members[position]].latency(1);
        alike.sort_by_key(|&position| (slack(position), position));
        let mut sum = Tally::default();
        for (rank, &position) in alike.iter().enumerate() {
            sum.arrived += tallies[position].arrived;
            sum.in_time += tallies[position].in_time;
            if sum.arrived >= PLAYED_ALIKE || rank + 1 == alike.len() {
                if (sum.arrived - sum.in_time) as f64 > MISSES * sum.arrived.max(PLAYED_ALIKE) as f64 {
                    return false;
                }
                sum = Tally::default();
            }
        }
        true
    }
}
