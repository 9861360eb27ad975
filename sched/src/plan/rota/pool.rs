//! Slow sessions share slots.
//!
//! A session that brings less than one request per L − ℓ(1) would need a slot of its own every L − ℓ(1) nevertheless, and
//! mostly leave it empty. So slow sessions share *turns*: recurring slots, each of which runs one request of whichever
//! member has to start first. Whole devices are tiled with turns of equal length, long enough for the members that may
//! use them; every member may use any turn that is as long as its ℓ(1). What mixed devices leave of their periods
//! becomes turns too. How many whole devices it takes is found by playing the turns with Poisson arrivals until no
//! member misses more than one request in a hundred.
//!
//! With limited memory a device holds only so many models: then the members are divided into pools, each of which fits a
//! device's memory and is sized alone.

use super::super::load::Load;
use super::super::validity::{Entrant, Tally, Turn, play};
use super::unit::Unit;

/// Turns that members share.
#[derive(Clone, Debug, Default)]
pub(super) struct Pool {
    /// Indexes into the loads.
    pub members: Vec<usize>,
    /// Each tiled with one turn.
    pub devices: Vec<Tile>,
    pub holes: Vec<Hole>,
}

/// A whole device: its period is one turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tile {
    pub length: u64,
    pub phase: u64,
}

/// Turns at the end of a mixed device's period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hole {
    pub unit: usize,
    pub device: usize,
    pub offset: u64,
    pub length: u64,
    pub turns: u64,
    phase: u64,
    period: u64,
}

/// Requests that are played to find how many devices are needed, and again to confirm it.
const PLAYED: [u64; 2] = [20_000, 60_000];
/// Requests over which misses are counted together, of members that are alike.
const PLAYED_ALIKE: u64 = 1_500;
/// What members may miss in the playing: less than one in a hundred, so that the plan holds for other arrivals too.
const MISSES: f64 = 0.007;
/// Holes of a smaller part of their period are left to the dispatcher.
const HOLE_PART: f64 = 0.04;
/// Holes that a pool uses at most, the largest first.
const HOLES_MAX: usize = 64;
/// Lengths of turns that whole devices may have, at most.
const BANDS_MAX: usize = 12;

/// Whether the session costs less in a pool whose turns are used to `utilisation` than with slots of its own.
pub(super) fn prefers(load: &Load, utilisation: f64) -> bool {
    load.rate * load.latency(1) as f64 / 1e9 < utilisation * load.share
}

/// Pools for `members` with as few whole devices as they need.
pub(super) fn pools(loads: &[Load], members: Vec<usize>, units: &[Unit], memory: Option<u64>) -> Vec<Pool> {
    let mut by_length = members;
    by_length.sort_by_key(|&index| (std::cmp::Reverse(loads[index].latency(1)), index));
    let Some(memory) = memory else {
        return size(loads, by_length, units).into_iter().collect();
    };
    let mut pools = Vec::new();
    let mut fits: Vec<usize> = Vec::new();
    let (mut models, mut bytes) = (std::collections::BTreeSet::new(), 0u64);
    for index in by_length {
        let load = &loads[index];
        if !models.contains(&load.model) && bytes.saturating_add(load.memory) > memory {
            pools.extend(size(loads, std::mem::take(&mut fits), &[]));
            models.clear();
            bytes = 0;
        }
        if models.insert(load.model) {
            bytes = bytes.saturating_add(load.memory);
        }
        fits.push(index);
    }
    pools.extend(size(loads, fits, &[]));
    pools
}

/// `members` by falling ℓ(1).
fn size(loads: &[Load], members: Vec<usize>, units: &[Unit]) -> Option<Pool> {
    let longest = loads[*members.first()?].latency(1);
    let work: f64 = members.iter().map(|&index| loads[index].rate * loads[index].latency(1) as f64 / 1e9).sum();
    let holes = holes(loads, &members, units, longest);
    let lent: f64 = holes.iter().map(|hole| (hole.length * hole.turns) as f64 / hole.period as f64).sum();
    let mut count = (work - lent).max(0.0).floor() as usize;
    loop {
        let mut bands = 1;
        while bands <= count.clamp(1, BANDS_MAX) {
            let devices = tiles(loads, &members, count, bands);
            let pool = Pool { members: members.clone(), devices, holes: holes.clone() };
            if PLAYED.iter().zip(1..).all(|(&requests, seed)| pool.holds(loads, seed, requests)) {
                return Some(pool);
            }
            bands += bands.div_ceil(3);
        }
        count += 1;
    }
}

/// `count` devices in `bands` lengths: each band serves neighbouring members by falling ℓ(1), with equal work.
fn tiles(loads: &[Load], members: &[usize], count: usize, bands: usize) -> Vec<Tile> {
    if count == 0 {
        return Vec::new();
    }
    let work: f64 = members.iter().map(|&index| loads[index].rate * loads[index].latency(1) as f64).sum();
    let mut lengths = Vec::with_capacity(bands);
    let mut before = 0.0;
    for &index in members {
        if before >= work * lengths.len() as f64 / bands as f64 && lengths.len() < bands {
            lengths.push(loads[index].latency(1));
        }
        before += loads[index].rate * loads[index].latency(1) as f64;
    }
    let mut devices = Vec::with_capacity(count);
    for (band, &length) in lengths.iter().enumerate() {
        // The first bands get what can't be divided: their members have the least choice.
        let share = count / lengths.len() + usize::from(band < count % lengths.len());
        let phase = |position: usize| length * position as u64 / share as u64;
        devices.extend((0..share).map(|position| Tile { length, phase: phase(position) }));
    }
    devices
}

/// Turns in what the units leave of their periods, the largest parts first.
fn holes(loads: &[Load], members: &[usize], units: &[Unit], longest: u64) -> Vec<Hole> {
    let mut holes = Vec::new();
    for (unit, built) in units.iter().enumerate() {
        for (device, member) in built.devices.iter().enumerate() {
            let free = built.period - member.used;
            // Members are by falling ℓ(1): the first that fits is the longest that does.
            let Some(&fits) = members.iter().find(|&&index| loads[index].latency(1) <= free) else { continue };
            if (free as f64) < HOLE_PART * built.period as f64 || loads[fits].latency(1) * 3 < longest {
                continue;
            }
            let turns = free / loads[fits].latency(1);
            holes.push(Hole {
                unit,
                device,
                offset: member.used,
                length: free / turns,
                turns,
                phase: member.phase,
                period: built.period,
            });
        }
    }
    let part = |hole: &Hole| (hole.length * hole.turns) as f64 / hole.period as f64;
    holes.sort_by(|a, b| part(b).total_cmp(&part(a)).then((a.unit, a.device).cmp(&(b.unit, b.device))));
    holes.truncate(HOLES_MAX);
    holes
}

impl Pool {
    /// Members that may use a turn of this length: a tail of them, since they stand by falling ℓ(1).
    pub(super) fn users(&self, loads: &[Load], length: u64) -> &[usize] {
        let longer = self.members.partition_point(|&index| loads[index].latency(1) > length);
        &self.members[longer..]
    }

    /// Turns per nanosecond that each member may use, by position: a member's rate is spread over its turns evenly.
    pub(super) fn choices(&self, loads: &[Load]) -> Vec<f64> {
        let turns = self.turns(loads);
        let mut choices = vec![0.0; self.members.len()];
        for turn in &turns {
            for &entrant in &turn.entrants {
                choices[entrant as usize] += 1.0 / turn.period as f64;
            }
        }
        choices
    }

    fn turns(&self, loads: &[Load]) -> Vec<Turn> {
        let entrants = |length: u64| {
            let users = self.users(loads, length).len();
            (self.members.len() - users..self.members.len()).map(|position| position as u32).collect()
        };
        let mut turns = Vec::new();
        for &Tile { length, phase } in &self.devices {
            turns.push(Turn { first: phase, period: length, batch: 1, execution: length, entrants: entrants(length) });
        }
        for hole in &self.holes {
            for turn in 0..hole.turns {
                turns.push(Turn {
                    first: hole.phase + hole.offset + turn * hole.length,
                    period: hole.period,
                    batch: 1,
                    execution: hole.length,
                    entrants: entrants(hole.length),
                });
            }
        }
        turns
    }

    /// Plays the turns; members are judged together with those of about the same length and slack.
    fn holds(&self, loads: &[Load], seed: u64, requests: u64) -> bool {
        let turns = self.turns(loads);
        // Every member needs a turn that it may use: the longest turn takes the first member.
        if turns.iter().all(|turn| turn.entrants.first() != Some(&0)) {
            return false;
        }
        let entrant = |&index: &usize| {
            let load = &loads[index];
            Entrant { rate: load.rate, slo: load.slo, profile: Some(load.profile) }
        };
        let entrants: Vec<Entrant> = self.members.iter().map(entrant).collect();
        let tallies = play(&entrants, &turns, seed, requests);
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
