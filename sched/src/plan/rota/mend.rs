//! Pools of a plan that runs, made to fit what has changed.

use super::super::load::Load;
use super::super::{Steps, Timetable, bound};
use super::pool::{Pool, SPARE};
use super::timetables;
use super::trial::{Length, Trial};

/// A pool that runs.
#[derive(Clone, Debug)]
pub(in super::super) struct Mended {
    /// Indexes into the loads.
    pub members: Vec<usize>,
    /// The devices of the running plan that are its own; `None` for further ones.
    pub devices: Vec<Option<usize>>,
    /// What each of them does.
    pub timetable: Timetable,
    /// It has to be planned again.
    pub stale: bool,
}

impl Mended {
    fn work(&self, loads: &[Load]) -> f64 {
        self.members.iter().map(|&index| bound::devices(&loads[index])).sum()
    }

    fn holds(&self, loads: &[Load], load: &Load, memory: Option<u64>) -> bool {
        let mut models: Vec<_> = self.members.iter().map(|&index| (loads[index].model, loads[index].memory)).collect();
        models.push((load.model, load.memory));
        models.sort_unstable();
        models.dedup();
        let bytes = models.iter().fold(0u64, |sum, model| sum.saturating_add(model.1));
        memory.is_none_or(|memory| bytes <= memory)
    }
}

/// Timetables of `pools` and of the `free` loads, and the running device that each goes on from.
///
/// A free load joins the pool with the most room, if it has enough; the others are planned among themselves.
pub(in super::super) fn mend(
    loads: &[Load],
    kind: usize,
    memory: Option<u64>,
    mut pools: Vec<Mended>,
    mut free: Vec<usize>,
) -> Vec<(Timetable, Option<usize>)> {
    // One member alone has nobody to share with.
    for pool in &mut pools {
        if pool.members.len() < 2 {
            free.append(&mut pool.members);
        }
    }
    pools.retain(|pool| !pool.members.is_empty());
    let work: Vec<f64> = loads.iter().map(bound::devices).collect();
    free.sort_by(|&a, &b| work[b].total_cmp(&work[a]).then(a.cmp(&b)));
    let mut rooms: Vec<f64> = pools.iter().map(|pool| pool.devices.len() as f64 - SPARE - pool.work(loads)).collect();
    let mut rest = Vec::new();
    for index in free {
        let fits = |&pool: &usize| {
            rooms[pool] >= work[index]
                && super::pool::may_join(&loads[index])
                && pools[pool].holds(loads, &loads[index], memory)
        };
        match (0..pools.len()).filter(fits).max_by(|&a, &b| rooms[a].total_cmp(&rooms[b])) {
            Some(pool) => {
                rooms[pool] -= work[index];
                pools[pool].members.push(index);
                pools[pool].stale = true;
            }
            None => rest.push(index),
        }
    }
    let mut devices = Vec::new();
    for pool in pools {
        devices.extend(settled(loads, kind, pool));
    }
    let rest: Vec<Load> = rest.into_iter().map(|index| loads[index].clone()).collect();
    let more = super::pack(&rest, kind, memory, Steps(0), usize::MAX).expect("there is no limit to the devices");
    devices.extend(more.into_iter().map(|timetable| (timetable, None)));
    devices
}

/// The pool's devices: as many as before, unless it takes more, or fewer are ample.
fn settled(loads: &[Load], kind: usize, pool: Mended) -> Vec<(Timetable, Option<usize>)> {
    let mut devices = pool.devices.clone();
    let timetable = if pool.stale {
        let work = pool.work(loads);
        let ample = (work * AMPLE + 3.0 * SPARE).ceil() as usize;
        let from = if ample < devices.len() { ample } else { devices.len().max(work.ceil() as usize) };
        let before = (from == devices.len()).then(|| continued(loads, &pool)).flatten();
        let brief = Trial::of(loads, Length::Brief);
        let adapted = before.and_then(|before| {
            let mut more = (0..=FURTHER).map(|more| Pool { devices: before.devices + more, ..before.clone() });
            more.find_map(|mut pool| pool.adapt(loads, brief).then_some(pool))
        });
        let pool = adapted.unwrap_or_else(|| Pool::from(loads, pool.members, from, Trial::of(loads, Length::Thorough)));
        devices.resize(pool.devices, None);
        timetables::shared(loads, kind, &pool)
    } else {
        pool.timetable
    };
    devices.into_iter().map(|device| (timetable.clone(), device)).collect()
}

/// The pool as it runs: each member waits for the batch that it waits for now, or, when its rate is another, for the largest
/// that leaves it as much of its SLO. `None` when somebody joins it, or more than a little changes.
///
/// What was found out about the pool at length is then true of it still, so that little playing has to confirm it.
fn continued(loads: &[Load], pool: &Mended) -> Option<Pool> {
    let shares = &pool.timetable.slots.first()?.shares;
    let (mut batches, mut changed) = (Vec::with_capacity(pool.members.len()), 0.0);
    for &index in &pool.members {
        let load = &loads[index];
        let share = shares[shares.binary_search_by_key(&load.session, |share| share.session).ok()?];
        let rate = share.rate * pool.devices.len() as f64;
        changed += bound::devices(load) * (1.0 - rate / load.rate).abs();
        let left =
            |rate: f64, batch: u32| load.slo as f64 - f64::from(batch - 1) / rate * 1e9 - load.latency(batch) as f64;
        let least = left(rate, share.batch) * (1.0 - 1e-9);
        let mut batches_down = (1..=load.profile.max_batch()).rev();
        let batch = if load.rate > rate { batches_down.find(|&batch| left(load.rate, batch) >= least) } else { None };
        batches.push(batch.unwrap_or(share.batch));
    }
    let continued = Pool { members: pool.members.clone(), batches, devices: pool.devices.len() };
    (changed <= CHANGED_MAX * pool.work(loads)).then_some(continued)
}

/// Devices that a pool which continues as it was may get.
const FURTHER: usize = 2;
/// Part of a pool's work that may change for it to continue as it was.
const CHANGED_MAX: f64 = 0.05;
/// Times its work, and somewhat more, is what a pool has at most before it is planned as if new to give devices up: that costs
/// more time than all else.
const AMPLE: f64 = 1.03;
