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

use super::super::bound;
use super::super::load::Load;
use super::super::play::Member;
use super::trial::Trial;
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

/// Devices of a pool, about, unless one member alone takes more: larger ones gain little, and every model is on each.
const DEVICES: std::ops::Range<f64> = 96.0..160.0;
/// What a pool takes beyond its work, about: how sessions are divided rests on it.
pub(super) const SPARE: f64 = 1.3;
/// Pools of more work than this take this much beyond it at least: what certainly fails need not be played.
const SPARE_FROM: f64 = 4.0;
const SPARE_MIN: f64 = 0.4;
/// The same where no request may be late.
const SPARE_MIN_EVERY: f64 = 0.5;
/// What the time of a member that misses too much is worth then, in times of what it was.
const URGENCY: f64 = 8.0;
/// A session with more work than this many devices loses less by itself.
const WORK_MAX: f64 = 40.0;
/// Requests of a session that may come within its SLO, at most: beyond, batches are what the profile allows.
const WAITING_MAX: f64 = 1e4;
/// Means up to which e^(−mean) is a number to reckon with.
const EXACT_MAX: f64 = 500.0;
/// How fast the cost of a batch that leaves little time falls with that time, in mean batches over devices.
const TIME_SCALE: f64 = 2.0;
/// Up to what part the devices are planned, one after another: about all, since batches grow when devices are short.
const FULL: [f64; 5] = [1.02, 1.0, 1.06, 1.02, 1.0];
/// How often a running pool's batches are tried, a little smaller each time.
const ADAPTED: u32 = 4;
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
        let spare = match work > SPARE_FROM {
            true if trial.every => SPARE_MIN_EVERY,
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

    /// Makes its batches fit its devices by small steps: members that come too close to missing wait for a little less. False
    /// when a few steps do not do.
    pub(super) fn adapt(&mut self, loads: &[Load], trial: Trial) -> bool {
        for _ in 0..ADAPTED {
            match self.short_of_time(loads, trial) {
                Some(short) if short.is_empty() => return true,
                Some(short) => short
                    .iter()
                    .for_each(|&at| self.batches[at] -= self.batches[at].div_ceil(10).min(self.batches[at] - 1)),
                None => return false,
            }
        }
        false
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
            let Some(missing) = self.short_of_time(loads, trial) else { continue };
            if missing.is_empty() {
                return true;
            }
            missing.iter().for_each(|&position| urgency[position] *= URGENCY);
        }
        false
    }

    /// Positions of members that miss too much, or come too close to it; `None` when the pool is hopelessly small.
    fn short_of_time(&self, loads: &[Load], trial: Trial) -> Option<Vec<usize>> {
        let member = |(&index, &batch): (&usize, &u32)| {
            let load = &loads[index];
            Member { rate: load.rate, slo: load.slo, profile: load.profile, batch }
        };
        let members: Vec<Member> = self.members.iter().zip(&self.batches).map(member).collect();
        trial.short_of_time(&members, self.devices)
    }
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
