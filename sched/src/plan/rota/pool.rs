//! Sessions that share whole devices.
//!
//! A slot of a session's own has to be there whether requests are or not, and its batch is rounded up to what may come.
//! Devices that serve whichever session is ready lose neither: a session waits until its batch is as large as its SLO
//! allows, and then the next free device takes it. With G devices one becomes free every ℓ/G on average, so the larger the
//! pool, the less of its SLO a session has to keep for finding a device. How many devices a pool takes is found by playing
//! it (`play.rs`): for Poisson arrivals until no member misses more than one request in a hundred, for evenly spaced ones until
//! none misses any, nor comes close to it.
//!
//! A member's model lies on every device of its pool. With limited memory the pools are as many as it takes for their
//! models to fit.

use super::super::load::Load;
use super::super::play::{self, Arrivals, Member, Played, Tally};
use super::super::{ArrivalProcess, bound};
use crate::ModelId;
use std::collections::BTreeSet;

/// Devices that their members share.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// Indexes into the loads.
    pub members: Vec<usize>,
    /// By member: the batch that it waits for.
    pub batches: Vec<u32>,
    pub devices: usize,
}

/// How surely a pool has to be large enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trial {
    pub arrivals: &'static [Arrivals],
    pub length: Length,
}

/// How long a pool is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Length {
    /// To mend a plan that runs.
    Brief,
    /// To compare plans.
    Quick,
    /// To hand one out.
    Thorough,
}

/// What holds for any arrivals: the ones that fail first come first.
pub(super) const ANY: &[Arrivals] = &[Arrivals::Even, Arrivals::Even, Arrivals::Even, Arrivals::Poisson];
/// Evenly spaced ones, at several draws of their phases: a session may meet others again and again. Of slow sessions that
/// says little, so they have to hold by chance as well.
pub(super) const EVEN: &[Arrivals] = &[Arrivals::Even, Arrivals::Even, Arrivals::Even, Arrivals::SlowByChance];

impl Length {
    /// In times of the longest SLO among the members, so that a queue that grows has time to show.
    fn slos(self) -> f64 {
        match self {
            Length::Brief => 6.0,
            Length::Quick => 12.0,
            Length::Thorough => 30.0,
        }
    }

    /// Requests of each member that are played, if that takes no more than [`REQUESTS_EACH_MAX`] in all.
    fn requests_each(self) -> f64 {
        if self == Length::Thorough { 1e3 } else { 0.0 }
    }
}

/// Devices of a pool, about, unless one member alone takes more: larger ones gain little, and every model is on each.
const DEVICES: std::ops::Range<f64> = 96.0..160.0;
/// What a pool takes beyond its work, about: how sessions are divided rests on it.
pub(super) const SPARE: f64 = 1.3;
/// Pools of more work than this take this much beyond it at least: what certainly fails need not be played.
const SPARE_FROM: f64 = 4.0;
const SPARE_MIN: f64 = 0.4;
/// The same where no request may be late.
const SPARE_MIN_EVERY: f64 = 1.0;
/// What the time of a member that misses too much is worth then, in times of what it was.
const URGENCY: f64 = 8.0;
/// Part of the requests whose loss can't be mended by other batches.
const HOPELESS: f64 = 0.02;
/// The same where none may be lost.
const HOPELESS_EVERY: f64 = 0.002;
/// What has to be left to a batch that waits for a device, where none may be late, as a part of the mean latency of the
/// batches. Longer waits are rarer, so that longer playing in other phases finds none that is too long.
const SPARE_LATENCY: f64 = 0.125;
/// A session with more work than this many devices loses less by itself.
const WORK_MAX: f64 = 40.0;
/// Requests of a session that may come within its SLO, at most: beyond, batches are what the profile allows.
const WAITING_MAX: f64 = 1e4;
/// Requests that are played at least.
const REQUESTS_MIN: f64 = 1e4;
const REQUESTS_EACH_MAX: f64 = 2e5;
/// Requests that are played at most.
const REQUESTS_MAX: f64 = 5e5;
/// Means up to which e^(−mean) is a number to reckon with.
const EXACT_MAX: f64 = 500.0;
/// What members may miss in the playing: less than one in a hundred, so that the plan holds for other arrivals too.
const MISSES: f64 = 0.003;
/// Requests over which misses are counted together, of members that are alike.
const PLAYED_ALIKE: u64 = 1_500;
/// How fast the cost of a batch that leaves little time falls with that time, in mean batches over devices.
const TIME_SCALE: f64 = 2.0;
/// Up to what part the devices are planned, one after another: about all, since batches grow when devices are short.
const FULL: [f64; 3] = [1.02, 1.0, 1.06];
/// Halvings of the interval in which the price of time lies, by ratio.
const HALVINGS: u32 = 24;

/// Whether playing can judge the session in a pool.
pub(super) fn may_join(load: &Load) -> bool {
    load.rate * load.slo as f64 / 1e9 <= WAITING_MAX && bound::devices(load) <= WORK_MAX
}

/// Devices that the session takes in a pool, about: the least that its batches cost, when each leaves a device's time.
pub(super) fn devices(load: &Load) -> f64 {
    choices(load).iter().map(|choice| choice.devices).fold(f64::INFINITY, f64::min)
}

/// Mean latency by mean size of batches that start `batch` strong, or when `mean` further requests were due to come by
/// chance, nanoseconds a request.
fn cost(load: &Load, batch: u32, mean: f64) -> f64 {
    let full = f64::from(batch);
    if full > 1.0 + mean + 6.0 * mean.sqrt() {
        let reached = (1.0 + mean) as u32;
        return load.latency(reached) as f64 / f64::from(reached);
    }
    if mean > EXACT_MAX || full + 6.0 * mean.sqrt() < 1.0 + mean {
        return load.latency(batch) as f64 / full.min(1.0 + mean);
    }
    // N of a Poisson distribution: 1 + N requests below `batch`, and `batch` otherwise.
    let (mut below, mut size, mut latency, mut chance) = (0.0, 0.0, 0.0, libm::exp(-mean));
    for count in 1..batch {
        below += chance;
        size += chance * f64::from(count);
        latency += chance * load.latency(count) as f64;
        chance *= mean / f64::from(count);
    }
    let reached = 1.0 - below;
    (latency + reached * load.latency(batch) as f64) / (size + reached * full)
}

/// Models of some sessions on one device.
#[derive(Default)]
struct Group {
    members: Vec<usize>,
    work: f64,
    models: BTreeSet<ModelId>,
    bytes: u64,
}

impl Group {
    fn with(&self, load: &Load) -> u64 {
        if self.models.contains(&load.model) { self.bytes } else { self.bytes.saturating_add(load.memory) }
    }
}

/// Into how many pools `work` is divided so that they take the fewest whole devices.
fn count(work: f64) -> usize {
    let (fewest, most) =
        ((work / DEVICES.end).ceil().max(1.0) as usize, (work / DEVICES.start).ceil().max(1.0) as usize);
    let devices = |&pools: &usize| pools * (work / pools as f64 + SPARE).ceil() as usize;
    (fewest..=most).min_by_key(devices).expect("from the fewest to the most there is one")
}

/// `sessions` in groups of about equal work, whose models fit a device's memory together. Each load alone must fit it.
pub(super) fn divide(loads: &[Load], mut sessions: Vec<usize>, memory: Option<u64>) -> Vec<Vec<usize>> {
    let work: f64 = sessions.iter().map(|&index| bound::devices(&loads[index])).sum();
    let mut least = count(work);
    if let Some(memory) = memory {
        let mut models: Vec<(ModelId, u64)> =
            sessions.iter().map(|&index| (loads[index].model, loads[index].memory)).collect();
        models.sort_unstable();
        models.dedup();
        let bytes: u128 = models.iter().map(|&(_, bytes)| u128::from(bytes)).sum();
        least = least.max(bytes.div_ceil(u128::from(memory.max(1))).min(sessions.len() as u128) as usize);
    }
    let mut groups: Vec<Group> = (0..least).map(|_| Group::default()).collect();
    // Largest first, to where most is free; sessions of one model stay together where they can.
    let works: Vec<f64> = loads.iter().map(bound::devices).collect();
    sessions.sort_by(|&a, &b| works[b].total_cmp(&works[a]).then(a.cmp(&b)));
    for index in sessions {
        let load = &loads[index];
        let fits = |group: &&mut Group| memory.is_none_or(|memory| group.with(load) <= memory);
        let rank = |group: &Group| (memory.is_some() && !group.models.contains(&load.model), group.work);
        let emptiest = groups.iter_mut().filter(fits).min_by(|a, b| {
            let (a, b) = (rank(a), rank(b));
            a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
        });
        let group = match emptiest {
            Some(group) => group,
            None => {
                groups.push(Group::default());
                groups.last_mut().expect("one was pushed")
            }
        };
        group.bytes = group.with(load);
        group.models.insert(load.model);
        group.work += works[index];
        group.members.push(index);
    }
    groups.into_iter().map(|group| group.members).filter(|members| !members.is_empty()).collect()
}

impl Pool {
    /// For two `members` or more (one alone has nobody to share with), on as few devices as they need; `None` when they
    /// would need more than `devices_max`.
    pub(super) fn sized(loads: &[Load], members: Vec<usize>, devices_max: usize, trial: Trial) -> Option<Pool> {
        assert!(members.len() > 1, "a pool of {} members shares nothing", members.len());
        let work: f64 = members.iter().map(|&index| bound::devices(&loads[index])).sum();
        // Never fewer than plans need that answer all, though one request in a hundred may be lost.
        let every = loads.iter().all(|load| load.arrivals == ArrivalProcess::Even);
        let spare = match work > SPARE_FROM {
            true if every => SPARE_MIN_EVERY,
            true => SPARE_MIN,
            false => 0.0,
        };
        let mut pool = Pool { members, batches: Vec::new(), devices: ((work + spare).ceil() as usize).max(1) };
        pool.grow(loads, devices_max, trial).then_some(pool)
    }

    /// For two `members` or more, on `devices` devices, or as many more as they need.
    pub(super) fn from(loads: &[Load], members: Vec<usize>, devices: usize, trial: Trial) -> Pool {
        let mut pool = Pool { members, batches: Vec::new(), devices };
        pool.grow(loads, usize::MAX, trial);
        pool
    }

    /// Until its devices suffice; false when that takes more than `devices_max`.
    fn grow(&mut self, loads: &[Load], devices_max: usize, trial: Trial) -> bool {
        let choices: Vec<Vec<Choice>> = self.members.iter().map(|&index| choices(&loads[index])).collect();
        while self.devices <= devices_max {
            if self.settle(loads, &choices, trial) {
                return true;
            }
            self.devices += 1;
        }
        false
    }

    /// Finds batches with which its devices suffice: a member that misses too much gets more time to find a device, at the
    /// others' cost. False when none of those tried do.
    fn settle(&mut self, loads: &[Load], choices: &[Vec<Choice>], trial: Trial) -> bool {
        let mut urgency = vec![1.0; self.members.len()];
        for full in FULL {
            self.batches = batches(loads, &self.members, choices, &urgency, full * self.devices as f64);
            let mut missing = self.play(loads, Trial { length: trial.length.min(Length::Quick), ..trial });
            if missing.as_ref().is_some_and(Vec::is_empty) && trial.length == Length::Thorough {
                missing = self.play(loads, trial);
            }
            let Some(missing) = missing else { continue };
            if missing.is_empty() {
                return true;
            }
            missing.iter().for_each(|&position| urgency[position] *= URGENCY);
        }
        false
    }

    /// Positions of members that miss too much with any of the arrivals; `None` when the pool is hopelessly small.
    fn play(&self, loads: &[Load], trial: Trial) -> Option<Vec<usize>> {
        let member = |(&index, &batch): (&usize, &u32)| {
            let load = &loads[index];
            Member { rate: load.rate, slo: load.slo, profile: load.profile, batch }
        };
        let members: Vec<Member> = self.members.iter().zip(&self.batches).map(member).collect();
        let rate: f64 = members.iter().map(|member| member.rate).sum();
        let longest = members.iter().map(|member| member.slo).max().unwrap_or(0) as f64 / 1e9;
        let slowest = members.iter().map(|member| member.rate).fold(rate, f64::min);
        let each = (trial.length.requests_each() * rate / slowest).min(REQUESTS_EACH_MAX);
        let requests = (rate * longest * trial.length.slos()).max(each).clamp(REQUESTS_MIN, REQUESTS_MAX);
        // For evenly spaced requests a plan promises all, otherwise 99 %.
        let all = loads.iter().all(|load| load.arrivals == ArrivalProcess::Even);
        let spare_min = SPARE_LATENCY * latency(&members);
        let mut missing = Vec::new();
        for (seed, &arrivals) in (self.devices as u64..).zip(trial.arrivals) {
            let every = all && arrivals == Arrivals::Even;
            let lost_max = requests * if every { HOPELESS_EVERY } else { HOPELESS };
            let played = play::pool(&members, self.devices, arrivals, seed, requests as u64, lost_max as u64)?;
            missing = if every { too_close(&played, spare_min) } else { missing_too_much(&members, &played.tallies) };
            if arrivals == Arrivals::SlowByChance {
                missing.retain(|&position| members[position].is_slow());
            }
            if !missing.is_empty() {
                break;
            }
        }
        missing.sort_unstable();
        missing.dedup();
        Some(missing)
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

/// The mean latency of the members' batches, nanoseconds.
fn latency(members: &[Member]) -> f64 {
    let started = |member: &Member| member.rate / f64::from(member.batch);
    let busy = |member: &Member| started(member) * member.latency(member.batch as usize) as f64;
    let (busy, started) = members.iter().fold((0.0, 0.0), |sum, m| (sum.0 + busy(m), sum.1 + started(m)));
    busy / started
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
    found
}

/// A batch that a member may wait for.
struct Choice {
    batch: u32,
    /// Devices that the session takes in such batches, those that start before they are full included.
    devices: f64,
    /// W(b): of the SLO, what is left for finding a device free when the batch fills evenly, nanoseconds.
    left: f64,
}

/// The batches for which the members wait on `devices` devices.
///
/// A larger batch costs less of the devices and leaves W(b) = L − (b − 1)/R − ℓ(b) for finding one free. Each member takes
/// the batch with the least devices + μ·urgency·e^(−W/w), w = 2·(mean ℓ)/devices; μ is the largest with which all of them
/// together take about what there is.
fn batches(loads: &[Load], members: &[usize], choices: &[Vec<Choice>], urgency: &[f64], devices: f64) -> Vec<u32> {
    // The scale of time depends on the batches: once more with what came out.
    let mut chosen: Vec<u32> = members.iter().map(|_| 1).collect();
    for _ in 0..2 {
        let (mut busy, mut started) = (0.0, 0.0);
        for (&index, &batch) in members.iter().zip(&chosen) {
            let load = &loads[index];
            busy += load.rate / f64::from(batch) * load.latency(batch) as f64;
            started += load.rate / f64::from(batch);
        }
        let scale = TIME_SCALE * busy / started / devices;
        let haste = |choice: &Choice| libm::exp(-choice.left / scale);
        let hastes: Vec<Vec<f64>> = choices.iter().map(|choices| choices.iter().map(haste).collect()).collect();
        let cheapest = |position: usize, price: f64| {
            let costs = choices[position].iter().zip(&hastes[position]);
            let costs = costs.map(|(choice, haste)| (choice.devices + price * urgency[position] * haste, choice));
            costs.reduce(|best, next| if next.0 < best.0 { next } else { best }).expect("a batch of one is a choice").1
        };
        let used = |price: f64| (0..members.len()).map(|position| cheapest(position, price).devices).sum::<f64>();
        let (mut low, mut high) = (1e-9, 1e3);
        for _ in 0..HALVINGS {
            let middle = f64::sqrt(low * high);
            if used(middle) > devices { high = middle } else { low = middle }
        }
        chosen = (0..members.len()).map(|position| cheapest(position, low).batch).collect();
    }
    chosen
}

fn choices(load: &Load) -> Vec<Choice> {
    let left = |batch: u32| {
        let fills = f64::from(batch - 1) / load.rate * 1e9;
        load.slo as f64 - fills - load.latency(batch) as f64
    };
    let mut choices = Vec::new();
    let mut batch = 1;
    while batch <= load.profile.max_batch() && (batch == 1 || left(batch) >= 0.0) {
        let left = left(batch).max(0.0);
        // A session stops waiting when half of W is left after ℓ(b).
        let waits = load.slo.saturating_sub(load.latency(batch)) as f64 - left / 2.0;
        let devices = load.rate / 1e9 * cost(load, batch, load.rate * waits / 1e9);
        choices.push(Choice { batch, devices, left });
        // Every batch up to 32, and then about as many for each doubling.
        batch += 1 + batch / 32;
    }
    choices
}
