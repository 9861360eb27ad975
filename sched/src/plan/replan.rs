//! A new plan beside one that runs: what changes, and which models have to be loaded for it.
//!
//! A plan entitles each session to a rate. As long as demand stays a little below, nothing changes. Otherwise only the parts
//! that demand has left are planned again: a pool gets new batches, and a device more or less; own slots of a session that
//! grew are given up, and it joins a pool that has room, or is planned with others like it. What the parts lose together
//! may call for a plan from scratch: with steps to search, one is made, and taken when the devices that it saves are
//! worth the time that they all take to load.

use super::load::Load;
use super::rota::{self, Mended};
use super::{Demand, DeviceKind, Fleet, Plan, PlanError, Planner, Steps, Timetable, bound};
use crate::ModelId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A plan that continues another.
#[derive(Clone, Debug, PartialEq)]
pub struct Replan {
    pub plan: Plan,
    /// For each device of the plan, which one of the running plan it goes on from; `None` for one more.
    pub continues: Vec<Option<usize>>,
    /// What has to be loaded and unloaded, by device of the plan.
    pub moves: Vec<Move>,
    /// What loading takes, summed over the devices.
    pub load_time: Duration,
}

/// A model that comes to a device, or leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Index into the devices of the new plan.
    pub device: usize,
    pub model: ModelId,
    pub change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Unload,
    Load,
}

/// The part of its planned rate by which a session may fall short before its part of the plan is planned again.
pub const BAND: f64 = 0.05;
/// How long a device that is saved must load at most, to be worth it: that it saves as long is a safe guess.
pub const WORTH: Duration = Duration::from_secs(60);

/// A plan for `demand`, close to `running`, which was made for `before`.
///
/// A session is known by its index: it is the same when its model and SLO are. One that is gone keeps its place at rate
/// zero; new ones follow. A fixed fleet is planned as a whole, and its timetables given to the devices that hold most of
/// their models.
pub fn replan(
    demand: &Demand,
    before: &Demand,
    running: &Plan,
    planner: Planner,
    budget: Steps,
) -> Result<Replan, PlanError> {
    super::check_numbers(demand)?;
    let changed = Changed::between(demand, before, running);
    if changed.sessions.is_empty() && demand.fleet == before.fleet && demand.arrivals == before.arrivals {
        let continues = (0..running.devices.len()).map(Some).collect();
        return Ok(Replan { plan: running.clone(), continues, moves: Vec::new(), load_time: Duration::ZERO });
    }
    let same_kind = demand.fleet == before.fleet && demand.arrivals == before.arrivals;
    let (Fleet::Unlimited(kind), Planner::Rota, true) = (&demand.fleet, planner, same_kind) else {
        let plan = super::plan(demand, planner, budget)?;
        return Ok(matched(demand, before, running, plan));
    };
    let mended = mend(demand, before, running, *kind, &changed)?;
    if budget > Steps(0) {
        let fresh = super::plan(demand, planner, budget)?;
        let saved = mended.plan.devices.len().saturating_sub(fresh.devices.len()) as u32;
        if saved > 0 {
            let fresh = matched(demand, before, running, fresh);
            if fresh.load_time <= mended.load_time.saturating_add(WORTH.saturating_mul(saved)) {
                return Ok(fresh);
            }
        }
    }
    Ok(mended)
}

/// Sessions whose part of the running plan does not do any more.
struct Changed {
    sessions: BTreeSet<usize>,
    /// Of those, the ones that the running plan serves as another session, or with other latencies.
    strange: BTreeSet<usize>,
}

impl Changed {
    fn between(demand: &Demand, before: &Demand, running: &Plan) -> Changed {
        let mut planned = vec![0.0; demand.sessions.len().max(before.sessions.len())];
        for share in running.devices.iter().flat_map(|device| &device.slots).flat_map(|slot| &slot.shares) {
            planned[share.session] += share.rate;
        }
        let (mut sessions, mut strange) = (BTreeSet::new(), BTreeSet::new());
        for (session, planned) in planned.iter().copied().enumerate() {
            let (now, then) = (demand.sessions.get(session), before.sessions.get(session));
            let costs = |demand: &Demand, model: ModelId| -> Vec<_> {
                demand.kinds.iter().map(|kind| (kind.memory_bytes, kind.models.get(&model).cloned())).collect()
            };
            let same = now.zip(then).is_some_and(|(now, then)| {
                now.model == then.model && now.slo == then.slo && costs(demand, now.model) == costs(before, then.model)
            });
            let rate = now.map_or(0.0, |now| now.rate);
            if !same && (rate > 0.0 || planned > 0.0) {
                strange.insert(session);
            }
            let left_out = running.unplaced.iter().any(|unplaced| unplaced.session == session);
            let within = rate <= planned * (1.0 + 1e-9) && rate >= planned * (1.0 - BAND);
            if strange.contains(&session) || left_out && rate > 0.0 || !within {
                sessions.insert(session);
            }
        }
        Changed { sessions, strange }
    }
}

/// The running plan with the parts planned again that demand has left.
fn mend(demand: &Demand, before: &Demand, running: &Plan, kind: usize, changed: &Changed) -> Result<Replan, PlanError> {
    let (loads, unplaced) = Load::all(demand, kind);
    Load::check_size(&loads)?;
    let load_of: BTreeMap<usize, usize> = loads.iter().enumerate().map(|(index, load)| (load.session, index)).collect();
    let memory = demand.kinds[kind].memory_bytes;
    let mut kept: Vec<(Timetable, Option<usize>)> = Vec::with_capacity(running.devices.len());
    let mut pools: Vec<Mended> = Vec::new();
    let mut pool_of: BTreeMap<usize, usize> = BTreeMap::new();
    for (device, timetable) in running.devices.iter().enumerate() {
        let shared = timetable.slots.iter().find(|slot| slot.shares.len() > 1);
        if let Some(slot) = shared {
            let pool = *pool_of.entry(slot.shares[0].session).or_insert(pools.len());
            if pool == pools.len() {
                let stays = |session: &usize| load_of.contains_key(session) && !changed.strange.contains(session);
                let sessions = slot.shares.iter().map(|share| share.session);
                let stale = slot.shares.iter().any(|share| changed.sessions.contains(&share.session));
                let members = sessions.filter(stays).map(|session| load_of[&session]).collect();
                pools.push(Mended { members, devices: Vec::new(), timetable: timetable.clone(), stale });
            }
            pools[pool].devices.push(Some(device));
        } else {
            let mut timetable = timetable.clone();
            timetable.slots.retain(|slot| !gives_up(demand, slot.shares[0].session, running, changed));
            if !timetable.slots.is_empty() {
                kept.push((timetable, Some(device)));
            }
        }
    }
    let served: BTreeSet<usize> = kept
        .iter()
        .flat_map(|(timetable, _)| timetable.slots.iter().map(|slot| slot.shares[0].session))
        .chain(pools.iter().flat_map(|pool| &pool.members).map(|&index| loads[index].session))
        .collect();
    let free: Vec<usize> = (0..loads.len()).filter(|&index| !served.contains(&loads[index].session)).collect();
    kept.extend(rota::mend(&loads, kind, memory, pools, free));
    kept.sort_by_key(|(_, from)| from.unwrap_or(usize::MAX));
    let (devices, continues): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
    let plan = Plan { devices, unplaced, lower_bound: bound::lower_bound(demand) };
    Ok(Replan::new(demand, before, running, plan, continues))
}

/// Whether a session's own slots are given up: it has grown, is another, or has lost half of its rate.
fn gives_up(demand: &Demand, session: usize, running: &Plan, changed: &Changed) -> bool {
    if !changed.sessions.contains(&session) {
        return false;
    }
    let slots = running.devices.iter().flat_map(|device| &device.slots);
    let planned: f64 = slots.flat_map(|slot| &slot.shares).filter(|s| s.session == session).map(|s| s.rate).sum();
    let rate = demand.sessions.get(session).map_or(0.0, |asked| asked.rate);
    changed.strange.contains(&session) || rate > planned * (1.0 + 1e-9) || rate < planned / 2.0
}

/// `plan` on the devices of `running` that hold most of what it needs.
fn matched(demand: &Demand, before: &Demand, running: &Plan, plan: Plan) -> Replan {
    let wanted: Vec<BTreeSet<ModelId>> = plan.devices.iter().map(|device| models(demand, device)).collect();
    let held: Vec<BTreeSet<ModelId>> = running.devices.iter().map(|device| models(before, device)).collect();
    let fixed = matches!(demand.fleet, Fleet::Fixed(_)) && demand.fleet == before.fleet;
    let mut taken = vec![false; held.len()];
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by_key(|&device| (std::cmp::Reverse(wanted[device].len()), device));
    let mut continues = vec![None; wanted.len()];
    for device in order {
        let kind = plan.devices[device].kind;
        let same = (0..held.len()).filter(|&other| !taken[other] && running.devices[other].kind == kind);
        let common = |&other: &usize| (held[other].intersection(&wanted[device]).count(), std::cmp::Reverse(other));
        if let Some(other) = same.max_by_key(common) {
            taken[other] = true;
            continues[device] = Some(other);
        }
    }
    let mut devices: Vec<(Timetable, Option<usize>)> = plan.devices.into_iter().zip(continues).collect();
    // A fixed fleet's devices stay in their places; others stand as they did.
    debug_assert!(!fixed || devices.iter().all(|(_, from)| from.is_some()));
    if fixed || !matches!(demand.fleet, Fleet::Fixed(_)) {
        devices.sort_by_key(|(_, from)| from.unwrap_or(usize::MAX));
    }
    let (devices, continues): (Vec<_>, Vec<_>) = devices.into_iter().unzip();
    Replan::new(demand, before, running, Plan { devices, ..plan }, continues)
}

impl Replan {
    fn new(demand: &Demand, before: &Demand, running: &Plan, plan: Plan, continues: Vec<Option<usize>>) -> Replan {
        let (mut moves, mut load_time) = (Vec::new(), Duration::ZERO);
        for (device, (timetable, from)) in plan.devices.iter().zip(&continues).enumerate() {
            if from.is_some_and(|from| alike(demand, timetable, before, &running.devices[from])) {
                continue;
            }
            let wanted = models(demand, timetable);
            let held = from.map(|from| models(before, &running.devices[from])).unwrap_or_default();
            let kind: &DeviceKind = &demand.kinds[timetable.kind];
            moves.extend(held.difference(&wanted).map(|&model| Move { device, model, change: Change::Unload }));
            for &model in wanted.difference(&held) {
                moves.push(Move { device, model, change: Change::Load });
                load_time = load_time.saturating_add(kind.models[&model].load_time);
            }
        }
        Replan { plan, continues, moves, load_time }
    }
}

/// Whether two timetables serve the models in the same places: seen sooner than that their sets are equal.
fn alike(demand: &Demand, timetable: &Timetable, before: &Demand, running: &Timetable) -> bool {
    let shares = timetable.slots.iter().flat_map(|slot| &slot.shares);
    let others = running.slots.iter().flat_map(|slot| &slot.shares);
    let models = shares.map(|share| demand.sessions[share.session].model);
    models.eq(others.map(|share| before.sessions[share.session].model))
}

/// The models that a device holds for its timetable.
fn models(demand: &Demand, timetable: &Timetable) -> BTreeSet<ModelId> {
    let shares = timetable.slots.iter().flat_map(|slot| &slot.shares);
    shares.map(|share| demand.sessions[share.session].model).collect()
}
